"""Rows as text, and what an interrupted run leaves behind."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
from pathlib import Path
from typing import Any

import pytest

from fundus_rt.models.errors import UsageError
from fundus_rt.models.registry import load_card
from fundus_rt.runtime.output import RowWriter, open_output
from fundus_rt.runtime.rows import row_format

CARD = load_card("joir-sex-mobilenet")
KEYS = ["00" * 16, "01" * 16, "02" * 16]


def row(key: str, name: str = "a.jpg", error: str | None = None) -> dict[str, Any]:
    answer = {"value": 0.75, "unit": "probability", "label": "class 1", "decision": "class 1"}
    return {
        "file": name,
        "sha256": "ff",
        "model": {"name": CARD.name, "sha256": "ee", "precision": "fp32", "certificate": "none"},
        "backend": {"name": "onnxruntime", "device": "cpu", "version": "1"},
        "eye": None if error else {"value": "left", "source": "call", "mirrored": False},
        "field_of_view": None if error else {"center": [1.0, 2.0], "radius": 3.0, "cut": ["top"], "found": True},
        "outputs": {} if error else {"sex": {**answer, "probabilities": {"class 0": 0.25, "class 1": 0.75}}},
        "warnings": [] if error else ["one", "two"],
        "timing_ms": {} if error else {"total": 4.0},
        "error": error,
        "key": key,
    }


def write(path: Path, name: str, keys: list[str], resume: bool = False) -> frozenset[bytes]:
    with open_output(path, resume, row_format(name, CARD, ())) as writer:
        for key in keys:
            writer.write(row(key))
        return writer.finished


@pytest.mark.parametrize("name", ["jsonl", "csv"])
def test_resume_knows_whole_rows_and_cuts_off_the_unfinished_one(tmp_path: Path, name: str) -> None:
    path = tmp_path / f"rows.{name}"
    write(path, name, KEYS[:2])
    whole = path.read_bytes()
    path.write_bytes(whole[:-7])  # a kill in the middle of the second row
    finished = write(path, name, KEYS[1:], resume=True)
    assert finished == {bytes.fromhex(KEYS[0])}
    text = path.read_text()
    found = [json.loads(line)["key"] for line in text.splitlines()] if name == "jsonl" else [r["key"] for r in read_csv(text)]
    assert found == KEYS


@pytest.mark.parametrize("cut", range(0, 200, 13))
def test_a_kill_at_any_byte_leaves_a_file_to_go_on_with(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "rows.csv"
    write(path, "csv", KEYS)
    path.write_bytes(path.read_bytes()[: -1 - cut])
    finished = write(path, "csv", [], resume=True)
    write(path, "csv", [key for key in KEYS if bytes.fromhex(key) not in finished], resume=True)
    assert [r["key"] for r in read_csv(path.read_text())] == KEYS


def read_csv(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def test_csv_has_a_column_for_every_number(tmp_path: Path) -> None:
    write(tmp_path / "r.csv", "csv", KEYS[:1])
    (found,) = read_csv((tmp_path / "r.csv").read_text())
    assert found["outputs.sex.value"] == "0.75" and found["outputs.sex.decision"] == "class 1"
    assert found["outputs.sex.probabilities.class 0"] == "0.25" and found["error"] == ""
    assert found["eye.value"] == "left" and found["field_of_view.center.y"] == "2.0" and found["field_of_view.cut"] == "top"
    assert found["warnings"] == "one; two" and found["timing_ms.total"] == "4.0"


def test_file_names_that_are_no_text_survive(tmp_path: Path) -> None:
    name = b'\xff\xfe,"x".jpg'.decode("utf-8", "surrogateescape")
    path = tmp_path / "r.csv"
    with open_output(path, False, row_format("csv", CARD, ())) as writer:
        writer.write(row(KEYS[0], name))
    assert b"\xff\xfe" in path.read_bytes()
    assert write(path, "csv", [], resume=True) == {bytes.fromhex(KEYS[0])}


def test_a_table_shows_decision_probability_and_errors() -> None:
    table = row_format("table", CARD, ("said once",))
    assert table.header().startswith("# said once\n")
    assert "class 1 0.75" in table.line(row(KEYS[0])) and "one; two" in table.line(row(KEYS[0]))
    assert "ERROR no eye" in table.line(row(KEYS[0], error="no eye"))


def test_finished_rows_are_never_overwritten(tmp_path: Path) -> None:
    write(tmp_path / "r.csv", "csv", KEYS)
    before = (tmp_path / "r.csv").read_bytes()
    with pytest.raises(UsageError, match="--resume"):
        write(tmp_path / "r.csv", "csv", KEYS)
    assert (tmp_path / "r.csv").read_bytes() == before


def test_resume_refuses_rows_of_another_kind(tmp_path: Path) -> None:
    (tmp_path / "r.csv").write_text("name,age\nx,3\n")
    with pytest.raises(UsageError, match="does not hold rows"):
        write(tmp_path / "r.csv", "csv", KEYS, resume=True)
    assert (tmp_path / "r.csv").read_text() == "name,age\nx,3\n"


@pytest.mark.parametrize("name", ["csv", "jsonl"])
@pytest.mark.parametrize("content", ['{"my": "precious report"}', "notes", '{"my": 1}\n', "a,b\n1,2\n", '{"file": 3}\n'])
def test_resume_never_empties_a_file_of_somebody_else(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / "r").write_text(content)
    with pytest.raises(UsageError, match="nothing of it was changed"):
        write(tmp_path / "r", name, KEYS, resume=True)
    assert (tmp_path / "r").read_text() == content


def test_rows_of_a_card_with_other_labels_are_not_mixed(tmp_path: Path) -> None:
    write(tmp_path / "r.csv", "csv", KEYS)
    swapped = dataclasses.replace(CARD, outputs=(dataclasses.replace(CARD.outputs[0], labels=("class 1", "class 0")),))
    with pytest.raises(UsageError, match="this model"), open_output(tmp_path / "r.csv", True, row_format("csv", swapped, ())):
        pass


def test_errors_of_an_earlier_run_still_count(tmp_path: Path) -> None:
    for name in ("csv", "jsonl"):
        path = tmp_path / f"r.{name}"
        with open_output(path, False, row_format(name, CARD, ())) as writer:
            writer.write(row(KEYS[0], error='not a picture,\n"cut" off'))
            writer.write({**row(KEYS[1], error="no memory"), "key": None})
            writer.write(row(KEYS[2]))
        with open_output(path, True, row_format(name, CARD, ())) as writer:
            assert writer.finished == {bytes.fromhex(KEYS[0]), bytes.fromhex(KEYS[2])}
            assert writer.failed == 1


def test_a_short_write_is_finished() -> None:
    class Slow(io.BytesIO):
        def write(self, content: Any) -> int:
            return super().write(bytes(content)[:7])

    stream = Slow()
    RowWriter(stream, row_format("jsonl", CARD, ())).write(row(KEYS[0]))
    assert json.loads(stream.getvalue())["key"] == KEYS[0]


def test_json_lines_are_utf8_whatever_the_file_is_called() -> None:
    name = b"caf\xe9.jpg".decode("utf-8", "surrogateescape")
    line = row_format("jsonl", CARD, ()).line(row(KEYS[0], name))
    assert json.loads(line.encode("utf-8"))["file"] == name


def test_two_runs_do_not_share_an_output(tmp_path: Path) -> None:
    with open_output(tmp_path / "r.csv", False, row_format("csv", CARD, ())), pytest.raises(UsageError, match="another run"):
        write(tmp_path / "r.csv", "csv", KEYS, resume=True)


@pytest.mark.parametrize("target", ["", "missing/r.csv", "/dev/null", "/dev/full"])
def test_an_output_that_cannot_be_written(tmp_path: Path, target: str) -> None:
    with pytest.raises(UsageError, match="output"):
        write(tmp_path / target, "csv", KEYS)
