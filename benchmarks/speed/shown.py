"""A measurement in the terminal, and its record on the disk."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from fundus_rt.benchmarks.environment import label
from fundus_rt.benchmarks.reports.json_values import json_ready
from fundus_rt.benchmarks.speed.call import Measured
from fundus_rt.models.artifacts import atomic_path

TOO_FEW = "too few samples"
PART_WORDS = {"bytes_to_result": "bytes to result", "network_only": "network only"}


def show(measured: Measured) -> None:
    """Print the tables and the warnings."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    for title, columns, rows in tables(measured.record):
        table = Table(title=title, title_justify="left")
        for number, column in enumerate(columns):
            table.add_column(column, justify="left" if number == 0 else "right", overflow="fold")
        for row in rows:
            table.add_row(*row)
        console.print(table)
    for warning in measured.warnings:
        console.print(f"warning: {warning}", markup=False, soft_wrap=True)


Shown = tuple[str, tuple[str, ...], list[tuple[str, ...]]]
"""Title, headings and rows of a table; all texts."""


def tables(record: dict[str, Any]) -> list[Shown]:
    """Every table of a record that has rows."""
    found = [_latencies(record), _rates(record), _processes(record), _floor(record), _caching(record)]
    for part, ways in ((record["against"] or {}).get("parts", {})).items():
        found.append(_against(part, ways))
    wrong = (record["against"] or {}).get("wrong", [])
    found.append(("Not timed", ("way", "why"), [(way["name"], way["problem"] or way["reason"]) for way in wrong]))
    return [table for table in found if table[2]]


def percentile_in_words(found: dict[str, Any] | None) -> str:
    """``12.3 (12.0 to 12.9)``, or how many samples there would have to be."""
    if found is None:
        return "–"
    if found["value"] is None:
        return f"{TOO_FEW}: {found['samples']} of {found['samples_needed']}"
    return f"{in_words(found['value'])} ({in_words(found['low'])} to {in_words(found['high'])})"


def interval_in_words(found: dict[str, Any]) -> str:
    """``1.52 (1.47 to 1.58)``, or without an interval where there is none."""
    if found["low"] is None:
        return f"{in_words(found['value'])} ({TOO_FEW} for an interval)"
    return f"{in_words(found['value'])} ({in_words(found['low'])} to {in_words(found['high'])})"


def in_words(value: float | None) -> str:
    """A positive number with three significant digits; a dash for None."""
    if value is None:
        return "–"
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def keep_record(measured: Measured, folder: Path) -> Path:
    """Write the record, named by machine, cores, versions and files; one of that name and this processor is replaced."""
    folder.mkdir(parents=True, exist_ok=True)
    names = "-".join(dict.fromkeys(Path(found["name"]).stem for found in measured.record["files"])) or "none"
    words = f"bench-{names}-{label(measured.record['environment'])}"
    path = folder / f"{_in_a_name(words)}.json"
    processor = measured.record["environment"]["processor"]
    if path.exists() and json.loads(path.read_text(encoding="utf-8"))["environment"]["processor"] != processor:
        path = folder / f"{_in_a_name(f'{words}-{processor}')}.json"
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(json_ready(measured.record, {}), indent=1) + "\n", encoding="utf-8")
    return path


def _in_a_name(words: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", words)[:180]


def title_of(found: dict[str, Any]) -> str:
    """A file with what computes it."""
    return f"{found['name']}, {found['precision']}, {found['backend']['name']}"


def _measurements(record: dict[str, Any]) -> list[tuple[str, str, str, dict[str, Any]]]:
    """Title, scenario, part and figures of everything that was measured."""
    return [
        (title_of(found), scenario, part, figures)
        for found in record["files"]
        for scenario, parts in found["scenarios"].items()
        for part, figures in parts.items()
    ]


def _latencies(record: dict[str, Any]) -> Shown:
    rows: list[tuple[str, ...]] = [
        (title, scenario.replace("_", " "), PART_WORDS[part], str(figures["answers"]),
         *(percentile_in_words(figures["percentiles_ms"].get(name)) for name in ("p50", "p90", "p99")))
        for title, scenario, part, figures in _measurements(record)
        if scenario != "offline"
    ]  # fmt: skip
    return (
        "Latency, ms, with 95 % bounds",
        ("file", "scenario", "what", "answers", "p50", "p90", "p99"),
        rows,
    )


def _rates(record: dict[str, Any]) -> Shown:
    rows: list[tuple[str, ...]] = []
    for title, scenario, part, figures in _measurements(record):
        said = ""
        if scenario == "offline":
            interval = figures["rate_interval"]
            said = f"{in_words(interval[0])} to {in_words(interval[1])}" if interval else TOO_FEW
        elif scenario == "server":
            bound = figures["latency_bound_ms"]
            kept = {True: "kept", False: "not kept", None: "no bound" if bound is None else "no rate keeps it"}
            said = kept[figures["keeps_bound"]] + (f", {in_words(bound)} ms" if bound else "")
        rows.append((title, scenario.replace("_", " "), PART_WORDS[part], in_words(figures["rate"]), said, _joules(figures)))
    return (
        "Photographs a second",
        ("file", "scenario", "what", "rate", "95 % interval, or bound of p99", "joules each"),
        rows,
    )


def _joules(figures: dict[str, Any]) -> str:
    told = {name: value for name, value in figures["machine"]["joules_an_answer"].items() if value is not None}
    return ", ".join(f"{in_words(value)} ({name.replace('_', ' ')})" for name, value in told.items()) or "not told here"


def _processes(record: dict[str, Any]) -> Shown:
    rows: list[tuple[str, ...]] = []
    for found in record["files"]:
        if (fresh := found["processes"]) is None:
            continue
        interval = fresh["first_answer_interval_s"]
        said = f"{in_words(interval[0])} to {in_words(interval[1])}" if interval else TOO_FEW
        peak = "not told here" if fresh["peak_bytes"] is None else in_words(fresh["peak_bytes"] / 2**20)
        rows.append((title_of(found), in_words(fresh["first_answer_s"]), said, in_words(fresh["load_s"]), peak))
    return ("Fresh processes", ("file", "first answer, s", "95 % interval", "of it opening, s", "peak memory, MiB"), rows)


def _floor(record: dict[str, Any]) -> Shown:
    rows: list[tuple[str, ...]] = []
    for found in record["files"]:
        counted = found["arithmetic"]
        share = counted["share_of_floor"]
        rows.append((
            title_of(found), in_words(counted["gflop"]) if counted["gflop"] else counted["reason"],
            in_words(record["ceiling_gflop_s"]), in_words(counted["floor_ms"]),
            "–" if share is None else f"{100 * share:.0f} %",
        ))  # fmt: skip
    return (
        "Arithmetic floor: time of the network's products at the speed of a large float32 matrix product",
        ("file", "GFLOP a photograph", "ceiling, GFLOP/s", "floor, ms", "floor to network's median"),
        rows,
    )


def _caching(record: dict[str, Any]) -> Shown:
    rows: list[tuple[str, ...]] = [
        (title_of(found), PART_WORDS[part], interval_in_words(figures["unique_to_same"]), str(figures["rounds"]))
        for found in record["files"]
        for part, figures in found["same_against_unique"].items()
    ]
    return (
        "Different photographs against one and the same (above 1: a cache is at work)",
        ("file", "what", "time ratio, 95 % interval", "rounds"),
        rows,
    )


def _against(part: str, ways: dict[str, Any]) -> Shown:
    rows: list[tuple[str, ...]] = [
        (way["name"], in_words(way["median_ms"]), percentile_in_words(way["percentiles_ms"]["p90"]),
         interval_in_words(way["first_to_this"]), f"{way['largest_difference']:.2g}")
        for way in ways["ways"]
    ]  # fmt: skip
    return (
        f"Ways in turns, {PART_WORDS[part]}, {ways['rounds']} rounds",
        (
            "way",
            "median, ms",
            "p90, ms",
            f"times as fast as {ways['ways'][0]['name'] if ways['ways'] else ''}",
            "answers differ by",
        ),
        rows,
    )
