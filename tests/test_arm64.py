"""The comparison with emulated arm64: what it must notice, and what it says where it cannot be done."""

from __future__ import annotations

import copy
import platform
from pathlib import Path
from typing import Any

import pytest

from fundus_rt.benchmarks.arm64 import debian_root
from fundus_rt.benchmarks.arm64.__main__ import problems
from fundus_rt.benchmarks.arm64.agreement import compared
from fundus_rt.benchmarks.arm64.debian_root import RootError, make_root, require_tools
from fundus_rt.benchmarks.arm64.device import counted
from fundus_rt.models.registry import load_card
from fundus_rt.runtime.batch import Answerer, AnswerOptions
from fundus_rt.runtime.inputs import Item
from fundus_rt.runtime.pipeline import Pipeline
from tests.conftest import REPOSITORY

CARD = load_card("acquisition")


@pytest.fixture(scope="module")
def rows() -> list[dict[str, Any]]:
    """Real answers to two photographs."""
    pipeline = Pipeline("acquisition")
    items = [Item(str(REPOSITORY / "models/examples" / name)) for name in ("chase_01L.jpg", "haggstrom_right.jpg")]
    found = list(Answerer(pipeline, AnswerOptions(), 1, 1, frozenset()).rows(items))
    pipeline.close()
    return found


def changed(rows: list[dict[str, Any]], change: Any) -> dict[str, Any]:
    theirs = copy.deepcopy(rows)
    change(theirs[1])
    return compared(CARD, rows, theirs)


def test_equal_answers_agree(rows: list[dict[str, Any]]) -> None:
    found = compared(CARD, rows, copy.deepcopy(rows))
    assert found["problems"] == [] and found["photographs"] == 2 and found["field_of_view_pixels"] == 0
    assert set(found["outputs"]) == {output.name for output in CARD.outputs}


def test_small_differences_are_measured_in_the_outputs_unit(rows: list[dict[str, Any]]) -> None:
    def nudge(row: dict[str, Any]) -> None:
        row["outputs"]["eye"]["probabilities"]["left"] += 4e-4
        row["field_of_view"]["radius"] += 0.25

    found = changed(rows, nudge)
    assert found["outputs"]["eye"]["largest_difference"] == pytest.approx(4e-4)
    assert found["outputs"]["eye"]["unit"] == "probability" and found["field_of_view_pixels"] == pytest.approx(0.25)
    assert found["problems"] == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda row: row["outputs"]["eye"].update(decision="unknown"), "haggstrom_right.jpg: another decision of eye"),
        (lambda row: row["outputs"]["fundus"]["probabilities"].update(fundus=0.5), "fundus differs by"),
        (lambda row: row["outputs"]["fundus"]["probabilities"].update(fundus=float("nan")), "fundus differs by nan"),
        (lambda row: row["outputs"]["fundus"].update(probabilities={"fundus": 1.0}), "fundus differs by inf"),
        (lambda row: row.update(error="damaged"), "answered here, damaged there"),
        (lambda row: row.update(sha256="0" * 64), "sha256 is"),
        (lambda row: row["eye"].update(value="left"), "eye is"),
        (lambda row: row.update(file="x/other.jpg"), "of other photographs"),
    ],
)
def test_what_must_not_be_is_said(rows: list[dict[str, Any]], change: Any, said: str) -> None:
    found = changed(rows, change)["problems"]
    assert found and any(said in sentence for sentence in found)


def test_missing_rows_and_no_rows_are_no_agreement(rows: list[dict[str, Any]]) -> None:
    assert "2 rows here, 1 there" in compared(CARD, rows, rows[:1])["problems"][0]
    assert compared(CARD, [], [])["problems"] == ["no photograph was answered"]


def test_a_record_with_a_failed_part_has_problems() -> None:
    versions = {"numpy": "2.4.6"}
    record: dict[str, Any] = {
        "models": {"m": {"problems": [], "replay": {"verdict": "passed"}}},
        "selftest": {"verdict": "passed"},
        "tests": {"failed": []},
        "arm64": {"packages": versions},
        "x86_64": {"packages": versions},
    }
    assert problems(record) == []
    record["models"]["m"] = {"problems": ["p"], "replay": {"verdict": "failed"}}
    record["selftest"], record["tests"] = {"verdict": "failed"}, {"failed": ["t"]}
    record["x86_64"] = {"packages": {"numpy": "1.26.4"}}
    assert len(problems(record)) == 5


def test_tests_are_counted_by_what_became_of_them() -> None:
    report = """<testsuites><testsuite time="3.6"><testcase classname="tests.test_a" name="one"/>
    <testcase classname="tests.test_a" name="two"><skipped message="needs a GPU"/></testcase>
    <testcase classname="tests.test_b" name="three[x]"><failure message="assert"/></testcase>
    <testcase classname="tests.test_b" name="four"><error message="fixture"/></testcase></testsuite></testsuites>"""
    found = counted(report)
    assert found["passed"] == 1 and found["skipped"] == {"test_a::two": "needs a GPU"} and found["seconds"] == 4
    assert found["failed"] == ["test_b::three[x]", "test_b::four"]


def test_a_root_whose_making_was_cut_off_is_not_used(tmp_path: Path) -> None:
    (tmp_path / "root/usr/bin").mkdir(parents=True)
    (tmp_path / "root/usr/bin/dpkg").touch()
    make_root(tmp_path / "root")  # whole: nothing to do
    (tmp_path / "root/debootstrap").mkdir()  # the second stage takes this away at its end
    with pytest.raises(RootError, match="no finished Debian root; remove it"):
        make_root(tmp_path / "root")


def test_what_is_missing_is_named_with_its_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(platform, "system", lambda: "Linux")
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(debian_root, "_search", lambda: str(tmp_path))
    monkeypatch.setattr(debian_root, "_FORMAT", tmp_path / "qemu-aarch64.conf")
    with pytest.raises(RootError, match=r"debootstrap, .* is not here: apt-get install coreutils debootstrap qemu-user-static"):
        require_tools()
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    with pytest.raises(RootError, match="on a machine with arm64 itself run `fundus-rt selftest`"):
        require_tools()
