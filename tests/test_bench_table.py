"""The README's table out of records of ``bench --against``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fundus_rt.benchmarks.bench_table import HEAD, has_line, line_of
from fundus_rt.benchmarks.speed.bench_document import bench_document
from fundus_rt.benchmarks.speed.call import Measured
from tests.conftest import REPOSITORY

RESULTS = sorted((REPOSITORY / "benchmarks" / "results").glob("bench-*.json"))
LINES = [path for path in RESULTS if has_line(json.loads(path.read_text(encoding="utf-8")))]


@pytest.mark.parametrize("path", LINES, ids=[path.stem for path in LINES])
def test_each_line_states_the_records_own_ratios(path: Path) -> None:
    record = json.loads(path.read_text(encoding="utf-8"))
    cells = [cell.strip() for cell in line_of(record).strip("|\n ").split("|")]
    assert len(cells) == HEAD.splitlines()[0].count("|") - 1
    ways = {way["name"]: way["first_to_this"]["value"] for way in record["against"]["parts"]["network_only"]["ways"]}
    names = {file["name"]: file["precision"] for file in record["files"]}
    own = {name: value for name, value in ways.items() if name.rpartition(", ")[0] in names}
    others = [value for name, value in ways.items() if name not in own]
    assert cells[5] == f"{max(own.values()):.1f}x"
    assert cells[6] == f"{max(own.values()) / max(others):.2f}x"
    whole = {way["name"]: way["first_to_this"]["value"] for way in record["against"]["parts"]["bytes_to_result"]["ways"]}
    plain = [value for name, value in whole.items() if "plain export" in name]
    assert cells[9] == (f"{max(plain):.1f}x" if plain else "-")
    assert cells[4] == f"{max(v for n, v in own.items() if names[n.rpartition(', ')[0]] == 'fp32'):.1f}x"


def test_a_file_that_is_not_certified_is_neither_ours_nor_a_peer() -> None:
    record = next(found for path in RESULTS if len((found := json.loads(path.read_text(encoding="utf-8")))["files"]) > 1)
    lower = [file["name"] for file in record["files"] if file["precision"] != "fp32"]
    cells = [cell.strip() for cell in line_of(record, lower).strip("|\n ").split("|")]
    assert cells[5] == cells[4] and cells[11] == cells[10]
    assert float(cells[6][:-1]) < float(line_of(record).split("|")[7].strip()[:-1])


def test_a_record_of_one_part_has_no_line() -> None:
    record = json.loads(LINES[0].read_text(encoding="utf-8"))
    del record["against"]["parts"]["network_only"]
    assert not has_line(record)
    assert not has_line({**record, "against": None})


def test_the_page_names_the_way_that_is_the_most_times_as_fast_as_the_first() -> None:
    """Of two that are close, the one with the least median may have the lesser ratio."""
    for path in LINES:
        record = json.loads(path.read_text(encoding="utf-8"))
        verdict = bench_document(Measured(record)).verdict
        part = next(iter(record["against"]["parts"].values()))
        ratios = {way["name"]: way["first_to_this"]["value"] for way in part["ways"]}
        assert f"the fastest of {len(ratios)} ways is {max(ratios, key=lambda name: ratios[name])}: " in verdict.sentence
