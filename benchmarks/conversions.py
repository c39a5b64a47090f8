"""Architecture x container x layout: what each conversion matched, how far it is from the framework, what it took.

    python -m fundus_rt.benchmarks.conversions                   every case at its smallest size
    python -m fundus_rt.benchmarks.conversions --full --speed    at the published sizes, with ONNX Runtime's ratio
    python -m fundus_rt.benchmarks.conversions --only swin       cases with the word in their name, also with --markdown
    python -m fundus_rt.benchmarks.conversions --markdown        the table for a README, from the record that is there

Every checkpoint is written with random weights (not timed) and converted by ``fundus-rt convert`` on the example photographs
in a process of its own, so seconds and peak memory belong to one conversion. Each finished row is kept at once in
``benchmarks/results``, with the date, the machine and the versions of the run that made it; a later run does only what is
missing or failed. The exit status is 1 where a row failed.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from fundus_rt.benchmarks.conversion_case import ConversionCase
from fundus_rt.benchmarks.conversion_row import LEAN, MODULES, cases_of, row_of
from fundus_rt.benchmarks.environment import environment, label
from fundus_rt.models.artifacts import atomic_path

AIM = 1e-4
"""Largest difference to the framework, divided by the range of the photographs' answers, that is aimed at in float32."""
COLUMNS: tuple[tuple[str, Callable[[dict[str, Any]], str]], ...] = (
    ("architecture", lambda row: row["architecture"]),
    ("container", lambda row: row["container"]),
    ("layout", lambda row: row["layout"]),
    ("size", lambda row: str(row["size"])),
    ("parameters", lambda row: f"{row['parameters_used']:,}"),
    ("matched", lambda row: f"{row['matched_per_cent']:g} %"),
    ("difference", lambda row: f"{row['largest_of_network']:.1e} {row['unit']}"),
    ("of range", lambda row: f"{row['relative_to_range']:.1e}"),
    ("with preprocessing", lambda row: f"{row['largest']:.1e}"),
    ("seconds", lambda row: f"{row['seconds']:.1f}"),
    ("peak GB", lambda row: f"{row['peak_mb'] / 1e3:.1f}"),
    ("nodes", lambda row: str(row["nodes"])),
    ("lean", lambda row: ", ".join(f"{name} {row[name]}" for name in LEAN if row[name]).replace("_", " ") or "yes"),
    ("speed", lambda row: f"{row['speed_ratio']:.2f}" if "speed_ratio" in row else "-"),
    ("one thread", lambda row: f"{row['processor_ratio']:.2f}" if "processor_ratio" in row else "-"),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what is missing, print the table; 1 where a row failed."""
    options = _options(arguments)
    found = environment()
    kind = "full" if options.full else "quick"
    path = options.output or Path("benchmarks/results") / f"conversions-{kind}-{label(found)}.json"
    record = json.loads(path.read_text()) if path.exists() else {"rows": []}
    stamp = {"date": datetime.date.today().isoformat(), "environment": found}
    rows: dict[tuple[str, int], dict[str, Any]] = {(row["case"], row["size"]): row for row in record["rows"]}
    kept = [row for row in rows.values() if options.only in row["case"]]
    if options.markdown and kept:
        sys.stdout.write(markdown(kept))
        return int(any("error" in row for row in kept))
    chosen = [(module, case) for module, case in _all_cases(options.cases or MODULES) if options.only in case.name]
    if not chosen:
        sys.stderr.write(f"no case has {options.only!r} in its name\n")
        return 2
    done = []
    for number, (module, case) in enumerate(chosen, start=1):
        key = (case.name, case.full_size if options.full else case.size)
        row = rows.get(key)
        if row is None or "error" in row or (options.speed and "speed_ratio" not in row):
            sys.stderr.write(f"{number}/{len(chosen)} {case.name} at {key[1]}\n")
            rows[key] = row = row_of(module, case, key[1], options.speed) | stamp
            _keep(path, {"rows": list(rows.values())})
        done.append(row)
    sys.stdout.write(markdown(done) if options.markdown else _table(done))
    sys.stdout.write(summary(done))
    sys.stdout.write(f"kept as {path}\n")
    return int(any("error" in row for row in done))


def summary(rows: list[dict[str, Any]]) -> str:
    """In one sentence: how many are at 100 %, within the aim, lean; and every failure by name."""
    good = [row for row in rows if "error" not in row]
    whole = sum(row["matched_per_cent"] == 100 for row in good)
    near = sum(row["relative_to_range"] < AIM for row in good)
    lean = sum(not any(row[name] for name in LEAN) for row in good)
    text = f"{len(good)} of {len(rows)} converted: {whole} at 100 %, {near} within {AIM:g} of the range, {lean} lean\n"
    for row in rows:
        if "error" in row:
            text += f"FAILED {row['case']} at {row['size']}: {row['error']}\n"
    return text


def markdown(rows: list[dict[str, Any]]) -> str:
    """The rows as a Markdown table; failed ones say so."""
    lines = ["| " + " | ".join(name for name, _ in COLUMNS) + " |", "|" + "---|" * len(COLUMNS)]
    lines += ["| " + " | ".join(cell.replace("|", "/") for cell in _cells(row)) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def _cells(row: dict[str, Any]) -> list[str]:
    if "error" not in row:
        return [text(row) for _, text in COLUMNS]
    return [*(text(row) for _, text in COLUMNS[:4]), "FAILED", *[""] * (len(COLUMNS) - 5)]


def _table(rows: list[dict[str, Any]]) -> str:
    """The rows in columns of the width that each needs."""
    cells = [[name for name, _ in COLUMNS], *map(_cells, rows)]
    widths = [max(len(line[column]) for line in cells) for column in range(len(COLUMNS))]
    return "".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() + "\n" for line in cells
    )


def _all_cases(modules: Sequence[str]) -> list[tuple[str, ConversionCase]]:
    found: list[tuple[str, ConversionCase]] = []
    for module in modules:
        found += [(module, case) for case in cases_of(module)]
    names = [case.name for _, case in found]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise SystemExit(f"two cases have one name: {', '.join(twice)}")
    return found


def _keep(path: Path, record: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(record, indent=2) + "\n")


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    sizes = parser.add_mutually_exclusive_group()
    sizes.add_argument("--quick", action="store_true", help="smallest sizes (the default)")
    sizes.add_argument("--full", action="store_true", help="sizes at which the networks are published")
    parser.add_argument("--only", default="", metavar="TEXT", help="cases with this in their name")
    parser.add_argument("--speed", action="store_true", help="also time the shipped graph against the plain exporter's")
    parser.add_argument("--markdown", action="store_true", help="print Markdown, from the record where there is one")
    parser.add_argument("--output", type=Path, metavar="FILE.json", help="the record  [default: in benchmarks/results]")
    parser.add_argument("--cases", action="append", metavar="MODULE", help="a module with a tuple CASES, in place of ours")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    sys.exit(main())
