"""``fundus-rt robustness``: figures against closed forms, and the whole command on real photographs and real networks."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from click.testing import CliRunner, Result

from fundus_rt.benchmarks.robustness.degradations import COMBINATIONS
from fundus_rt.benchmarks.robustness.plan import AS_IT_CAME, Plan, plan_of
from fundus_rt.benchmarks.robustness.robustness import ROWS
from fundus_rt.benchmarks.robustness.robustness_document import summary_lines, verdict
from fundus_rt.benchmarks.robustness.robustness_sections import _first_changes as first_changes
from fundus_rt.benchmarks.robustness.summary import Summary, summarised
from fundus_rt.models.card import ModelCard
from fundus_rt.models.errors import UsageError
from fundus_rt.models.registry import EXAMPLE_FOLDER, load_card
from fundus_rt.runtime.cli import cli


def run(*words: object) -> Result:
    return CliRunner().invoke(cli, [str(word) for word in words], catch_exceptions=True)


def lines(report: Path) -> list[dict[str, Any]]:
    """The rows that a run kept."""
    return [json.loads(line) for line in (report / ROWS).read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three real photographs of three cameras."""
    folder = tmp_path_factory.mktemp("photographs")
    for name in ("chase_01L.jpg", "idrid_085.jpg", "haggstrom_right.jpg"):
        shutil.copy(EXAMPLE_FOLDER / name, folder / name)
    return folder


def card_of(task: str) -> ModelCard:
    """A card with one output that is decided at 0.5, or an age."""
    card = load_card("joir-sex-mobilenet" if task == "binary" else "joir-age")
    output = dataclasses.replace(card.outputs[0], activation="none", columns=1, tolerance=0.01)
    return dataclasses.replace(card, outputs=(output,))


def row_of(name: str, card: ModelCard, values: dict[tuple[str, int], float | None], **more: Any) -> dict[str, Any]:
    """A photograph's row with one number a version; None for a version that was refused."""
    versions = [
        {
            "change": change, "level": level, "values": {} if value is None else {card.outputs[0].name: [value]},
            "problem": "no fundus photograph" if value is None else None, "degraded": None if value is None else level > 2,
            "gradability": 0.25,
        }
        for (change, level), value in values.items()
    ]  # fmt: skip
    return {"file": name, "sha256": "0" * 64, "key": "00", "error": None, "versions": versions, **more}


BLUR = Plan((("blur",),), (1, 3, 5), (), (), 0)


def test_figures_are_those_of_a_hand_count() -> None:
    card = card_of("binary")
    name = card.outputs[0].name
    rows = [
        row_of("a", card, {(AS_IT_CAME, 0): 0.6, ("blur", 1): 0.55, ("blur", 3): 0.4, ("blur", 5): 0.2}),
        row_of("b", card, {(AS_IT_CAME, 0): 0.1, ("blur", 1): 0.2, ("blur", 3): 0.45, ("blur", 5): 0.15}),
        row_of("c", card, {(AS_IT_CAME, 0): 0.9, ("blur", 1): 0.9, ("blur", 3): 0.8, ("blur", 5): None}),
        row_of("d", card, {}, error="cannot be read"),
    ]
    summary = summarised(rows, card, BLUR, compares=False)
    middle, worst = summary.answers[("blur", 3), name], summary.answers[("blur", 5), name]
    assert middle.mean == pytest.approx((0.2 + 0.35 + 0.1) / 3)
    assert (middle.largest, middle.largest_in) == (pytest.approx(0.35), "b")
    assert (middle.decided, middle.changed) == (1, ["a"])
    assert (worst.photographs, worst.decided) == (2, 1)
    assert worst.mean == pytest.approx((0.4 + 0.05) / 2)
    assert summary.refusals[("blur", 5)].unanswerable == 1
    assert (summary.refusals[("blur", 3)].degraded, summary.refusals[("blur", 1)].degraded) == (3, 0)
    assert (summary.photographs, summary.failed) == (3, 1)
    falls = summary.falls["blur", name]
    assert (falls.not_monotone, falls.most_in, falls.most) == (1, "b", pytest.approx(0.3))
    assert not summary.mean_falls("blur", name)
    assert "blur, severity 5" in verdict(summary).sentence
    assert verdict(summary).passed is None
    figures = json.loads(json.dumps(summary.to_dict()))
    binomial = pytest.importorskip("scipy.stats").binomtest(1, 3).proportion_ci(0.95, "exact")
    found = next(entry for entry in figures["answers"] if entry["level"] == 3)["decisions_changed_interval_95"]
    assert found == pytest.approx([binomial.low, binomial.high], abs=1e-9)


def test_an_answer_that_moves_back_on_average_is_said() -> None:
    card = card_of("regression")
    rows = [row_of("a", card, {(AS_IT_CAME, 0): 50.0, ("blur", 1): 58.0, ("blur", 3): 55.0, ("blur", 5): 57.0})]
    summary = summarised(rows, card, BLUR, compares=False)
    assert summary.mean_falls("blur", "age")
    assert summary.answers[("blur", 5), "age"].decided is None
    assert "age by 8 years" in verdict(summary).sentence


def test_parity_is_held_against_the_cards_tolerance() -> None:
    card = card_of("binary")
    rows = [row_of("a", card, {(AS_IT_CAME, 0): 0.6, ("blur", 1): 0.52, ("blur", 3): 0.7, ("blur", 5): None})]
    for version, value in zip(rows[0]["versions"], (0.601, 0.499, 0.705), strict=False):
        version["original"] = {card.outputs[0].name: [1 - value, value]}
    summary = summarised(rows, card, BLUR, compares=True)
    problems = summary.parity_problems()
    assert len(problems) == 2
    assert "0.021" in problems[0]
    assert "1 of 1 changed" in problems[1]
    assert verdict(summary).passed is False
    rows[0]["versions"][1]["original"] = {card.outputs[0].name: [0.48, 0.52]}
    good = summarised(rows, card, BLUR, compares=True)
    assert good.parity_problems() == []
    assert verdict(good).passed is True
    assert "3 versions" in verdict(good).sentence


@pytest.mark.parametrize(
    ("only", "degradations", "disturbances"),
    [
        (None, COMBINATIONS, {"shift", "jpeg", "pixel"}),
        ("blur", (("blur",),), set()),
        ("jpeg, blur+illumination", (("illumination", "blur"),), {"jpeg"}),
        ("pixel,shift", (), {"pixel", "shift"}),
    ],
)
def test_words_of_the_call_make_the_plan(only: str | None, degradations: object, disturbances: set[str]) -> None:
    plan = plan_of(only, "5,1", 7, 3)
    assert plan.degradations == degradations
    assert plan.severities == (1, 5)
    assert {name for name, _ in plan.changes() if name in ("shift", "jpeg", "pixel")} == disturbances
    assert plan.digest() != plan_of(only, "5,1", 7, 4).digest()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--only", "fog"), "'fog'"),
        (("--only", "blur+blur"), "mixture"),
        (("--severities", "0,1"), "whole numbers from 1 to 5"),
        (("--severities", "strong"), "whole numbers from 1 to 5"),
        (("--resume",), "--report"),
        (("--card", "joir-age"), "--checkpoint"),
        (("--checkpoint", "none.pth"), "does not exist"),
    ],
)
def test_calls_without_sense_are_refused(words: tuple[str, ...], said: str) -> None:
    done = run("robustness", "acquisition", *words)
    assert isinstance(done.exception, UsageError)
    assert said in str(done.exception)


@pytest.fixture(scope="module")
def acquisition_report(photographs: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    """The bundled model on three photographs, one of its inputs being no photograph at all."""
    given = tmp_path_factory.mktemp("given")
    for path in photographs.iterdir():
        shutil.copy(path, given)
    (given / "broken.jpg").write_bytes(b"\xff\xd8 no picture")
    report = given.parent / "report"
    return report, run("robustness", "acquisition", "--images", given, "--pixels", "8", "--severities", "1,5", "--report", report)


def test_the_acquisition_model_calls_worse_photographs_worse(acquisition_report: tuple[Path, Result]) -> None:
    report, done = acquisition_report
    assert done.exit_code == 1, done.output  # one file is no picture
    assert "1 photograph(s) could not be answered" in done.stderr
    rows = {Path(row["file"]).name: row for row in lines(report)}
    assert "not a picture" in rows.pop("broken.jpg")["error"]
    assert len(rows) == 3
    clean, spoilt = [], []
    for row in rows.values():
        versions = {(version["change"], version["level"]): version for version in row["versions"]}
        assert len(versions) == 1 + 2 * 7 + 4 + 4 + 1
        clean.append(versions[AS_IT_CAME, 0]["gradability"])
        spoilt.append(versions["illumination+spots+blur", 5]["gradability"])
        for level in (1, 2, 4, 8):
            assert abs(versions["shift", level]["values"]["gradability"][0] - clean[-1]) < 0.15
    assert np.mean(spoilt) < np.mean(clean) - 0.4


def test_report_and_rows_agree(acquisition_report: tuple[Path, Result]) -> None:
    report, done = acquisition_report
    found = json.loads((report / "report.json").read_text(encoding="utf-8"))
    card = load_card("acquisition")
    summary = summarised(lines(report), card, plan_of(None, "1,5", 8, 0), compares=False)
    assert found["figures"]["answers"] == json.loads(json.dumps(summary.to_dict()["answers"]))
    assert all(line in done.stdout for line in summary_lines(summary))
    table = (report / "photographs.csv").read_text(encoding="utf-8").splitlines()
    assert len(table) == 1 + 4
    page = (report / "report.html").read_text(encoding="utf-8")
    assert page.count("data:image/jpeg") == 1 + 2 * 4
    assert "severity 5" in page


def test_going_on_repeats_nothing_and_loses_nothing(photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ("robustness", "acquisition", "--images", photographs, "--only", "blur,pixel", "--pixels", "3", "--severities", "4")
    whole = run(*words, "--report", tmp_path / "whole")
    assert whole.exit_code == 0, whole.output
    expected = (tmp_path / "whole" / ROWS).read_bytes()
    cut = tmp_path / "cut"
    cut.mkdir()
    first = expected.index(b"\n") + 1
    (cut / ROWS).write_bytes(expected[: first + 200])  # killed in the second row
    kept = []
    answer = Summary.add
    monkeypatch.setattr(Summary, "add", lambda self, row: (kept.append(row["file"]), answer(self, row))[1])
    again = run(*words, "--report", cut, "--resume")
    assert again.exit_code == 0, again.output
    assert (cut / ROWS).read_bytes() == expected
    assert again.stdout == whole.stdout
    assert len(kept) == len(set(kept)) == 3
    refused = run(*words, "--report", cut)
    assert isinstance(refused.exception, UsageError)
    assert "--resume" in str(refused.exception)
    other = run(*words, "--report", cut, "--resume", "--seed", "1")
    assert isinstance(other.exception, UsageError)
    assert "another" in str(other.exception)
    assert (cut / ROWS).read_bytes() == expected
    fewer = tmp_path / "fewer"
    shutil.copytree(photographs, fewer)
    (fewer / "idrid_085.jpg").unlink()
    part = run("robustness", "acquisition", "--images", fewer, *words[4:], "--report", cut, "--resume")
    assert "of 2 unanswerable" in part.stdout  # photographs that are not asked for any more do not count


@pytest.fixture(scope="module")
def converted(photographs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small network for an age that mirrors left eyes: checkpoint, card, file, and a file of swapped red and blue."""
    pytest.importorskip("torch")
    pytest.importorskip("onnx")
    from tests import proof_networks

    folder = tmp_path_factory.mktemp("converted")
    checkpoint = proof_networks.write_checkpoint(folder / "age.pth")
    for name, order in (("age", "RGB"), ("swapped", "BGR")):
        card = proof_networks.card_for(color_order=order)
        (folder / f"{name}.json").write_text(card.to_json(), encoding="utf-8")
        proof_networks.convert(checkpoint, folder / f"{name}.onnx", card)
    return folder


def robustness_of(folder: Path, name: str, photographs: Path, report: Path) -> Result:
    from tests import proof_networks

    # The eye has to be known: two of the three file names say it.
    given = report.with_name(f"{report.name}-given")
    given.mkdir()
    for photograph in ("chase_01L.jpg", "haggstrom_right.jpg"):
        shutil.copy(photographs / photograph, given)
    return run(
        "robustness", folder / f"{name}.onnx", "--checkpoint", folder / "age.pth", "--card", folder / "age.json",
        "--architecture", proof_networks.NAMED, "--images", given, "--only", "illumination,jpeg", "--severities", "3,5",
        "--report", report,
    )  # fmt: skip


def test_a_true_file_keeps_its_parity_on_spoilt_photographs(converted: Path, photographs: Path, tmp_path: Path) -> None:
    done = robustness_of(converted, "age", photographs, tmp_path / "report")
    assert done.exit_code == 0, done.output
    found = json.loads((tmp_path / "report" / "report.json").read_text(encoding="utf-8"))
    assert found["verdict"]["passed"] is True
    parity = found["figures"]["parity"]
    assert len(parity) == 1 + 2 + 4
    assert max(entry["largest"] for entry in parity) < 0.01
    moved = [entry["mean"] for entry in found["figures"]["answers"] if entry["change"] == "illumination"]
    assert min(moved) > 0.5  # the photographs were changed for both sides alike


def test_a_file_with_red_and_blue_swapped_is_told(converted: Path, photographs: Path, tmp_path: Path) -> None:
    done = robustness_of(converted, "swapped", photographs, tmp_path / "report")
    assert done.exit_code == 1, done.output
    assert "does not answer as its checkpoint" in done.stderr
    assert "parity: as it came, age" in done.stdout


def test_versions_that_were_all_refused_are_not_called_unchanged() -> None:
    card, plan = card_of("binary"), plan_of("blur", "3,5", 0, 0)
    name = card.outputs[0].name
    refused = {(AS_IT_CAME, 0): 0.9, ("blur", 3): None, ("blur", 5): None}
    all_refused = summarised([row_of(str(n), card, refused) for n in range(50)], card, plan, False)
    assert first_changes(all_refused, card.outputs[0]) == (
        "With blur alone every version was refused (100), so nothing is known of its decisions.",
    )
    some = summarised([row_of(str(n), card, {**refused, ("blur", 3): 0.8}) for n in range(50)], card, plan, False)
    assert some.answers[("blur", 3), name].photographs == 50
    assert first_changes(some, card.outputs[0]) == (
        "With blur alone no decision changes up to severity 3; 50 refused versions are left out.",
    )


def test_a_long_problem_is_cut_between_words() -> None:
    card, plan = card_of("binary"), plan_of("blur", "5", 0, 0)
    row = row_of("a", card, {(AS_IT_CAME, 0): 0.9, ("blur", 5): None})
    row["versions"][1]["problem"] = " ".join(["mirrored"] * 40)
    (said,) = summarised([row], card, plan, False).problems
    assert set(said.split()) == {"mirrored", "..."} and len(said) <= 160


def test_the_asked_eye_is_not_refused_for_a_file_name(photographs: Path, tmp_path: Path) -> None:
    """A mirrored right eye whose name says right: its answer is a left eye, and every version is answered."""
    mirrored = cv2.imread(str(photographs / "haggstrom_right.jpg"))[:, ::-1]
    cv2.imwrite(str(tmp_path / "haggstrom_right.png"), np.ascontiguousarray(mirrored))
    done = run("robustness", "acquisition", "--images", tmp_path / "haggstrom_right.png", "--only", "blur", "--severities", "1",
               "--report", tmp_path / "report")  # fmt: skip
    assert done.exit_code == 0, (done.output, done.exception)
    versions = lines(tmp_path / "report")[0]["versions"]
    assert [version["problem"] for version in versions] == [None, None] and versions[0]["eye"] == "left"
