"""Rows as text, and what an interrupted run leaves behind."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest

from fundus_rt.models.errors import UsageError
from fundus_rt.models.registry import load_card
from fundus_rt.runtime.rows import RowWriter, open_output, row_format

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
    with open_output(path, resume, name) as (stream, finished):
        writer = RowWriter(stream, row_format(name, CARD, ()), fresh=stream.tell() == 0)
        for key in keys:
            writer.write(row(key))
        return finished


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
    with open_output(path, False, "csv") as (stream, _):
        RowWriter(stream, row_format("csv", CARD, ()), fresh=True).write(row(KEYS[0], name))
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
    with pytest.raises(UsageError, match="line 1"):
        write(tmp_path / "r.csv", "csv", KEYS, resume=True)
    assert (tmp_path / "r.csv").read_text() == "name,age\nx,3\n"


def test_two_runs_do_not_share_an_output(tmp_path: Path) -> None:
    with open_output(tmp_path / "r.csv", False, "csv"), pytest.raises(UsageError, match="another run"):
        write(tmp_path / "r.csv", "csv", KEYS, resume=True)


@pytest.mark.parametrize("target", ["", "missing/r.csv"])
def test_an_output_that_cannot_be_written(tmp_path: Path, target: str) -> None:
    with pytest.raises(UsageError, match="output"):
        write(tmp_path / target, "csv", KEYS)
