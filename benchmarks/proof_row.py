"""One row of the table of proofs: make the file in its precision, prove it with the command line, read the report."""

from __future__ import annotations

import json
import sys
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fundus_rt.benchmarks.environment import run_measured
from fundus_rt.benchmarks.proof_answers import ALL, HELD_OUT, compared, rows_of
from fundus_rt.benchmarks.proof_case import CALIBRATION, Grader
from fundus_rt.models.artifacts import atomic_path, sha256_of_file

COMMAND = [sys.executable, "-c", "from fundus_rt.runtime.cli import main; main()"]
"""The command line in a process of its own: its seconds and peak memory are those of a user."""
MODULE = [sys.executable, "-m"]
BACKENDS = ("onnxruntime", "openvino")
"""Of a processor, the first one first: it has the original's answers."""
PRECISIONS = ("fp32", "fp16", "int8")
ROWS = "photographs.jsonl"
"""What a proof keeps of each photograph, in the folder of its report."""
LOOKED_AT = 24
"""Photographs that are looked at stage by stage."""


def row_of(grader: Grader, backend: str, precision: str, lists: Mapping[str, Path], work: Path) -> dict[str, Any]:
    """Make and measure one row.

    Args:
        grader: the network.
        backend: one of `BACKENDS`; the lower precisions are those of ``onnxruntime``.
        precision: one of `PRECISIONS`. The float32 file goes through ``fundus-rt parity``; the others are held against the
            answers that this one has from the original, see `fundus_rt.benchmarks.proof_answers`.
        lists: CSV files with a ``file`` column: all photographs, those held out and those for calibration.
        work: folder where the files and the reports stay.

    Returns:
        What the row is of, and either ``error`` (the text of what failed) or the figures.
    """
    row: dict[str, Any] = {
        "network": grader.name,
        "checkpoint_sha256": grader.sha256,
        "backend": backend,
        "provider": "CPU",
        "precision": precision,
        "emulated": precision == "fp16",
    }
    try:
        target, made = shipped_file(grader, precision, lists, work)
        report = work / "reports" / (grader.name if backend == BACKENDS[0] else f"{grader.name}-{backend}")
        proof = _proved(grader, backend, target, lists[ALL], report) if precision == "fp32" else {}
        if not (report / ROWS).exists():
            raise RuntimeError("the float32 file comes first: its proof has the original's answers")
        return row | {"made": made, **proof, **compared(target, report / ROWS, lists[HELD_OUT])}
    except Exception as error:  # a row says what failed, whatever it was, and the others go on
        text = str(error) if isinstance(error, RuntimeError) else "".join(traceback.format_exception(error)[-2:])
        return row | {"error": text.replace(str(work), "...").strip()[-800:]}


def shipped_file(grader: Grader, precision: str, lists: Mapping[str, Path], work: Path) -> tuple[Path, dict[str, Any]]:
    """The file of a grader in a precision, made where it is not there yet; and what making it took.

    Raises:
        RuntimeError: the conversion failed; with what it printed.
    """
    target, note = work / f"{grader.name}-{precision}.onnx", work / f"{grader.name}-{precision}.json"
    if target.exists() and note.exists():
        made: dict[str, Any] = json.loads(note.read_text(encoding="utf-8"))
        if made["checkpoint_sha256"] == grader.sha256:
            return target, made
    if precision == "fp32":
        words = [*COMMAND, "convert", str(grader.checkpoint), "--card", str(grader.card), "-o", str(target)]
    else:
        plain, _ = shipped_file(grader, "fp32", lists, work)
        words = [*MODULE, "fundus_rt.benchmarks.proof_precision", str(plain), "-o", str(target), "--precision", precision]
        words += ["--calibration", str(lists[CALIBRATION])] if precision == "int8" else []
    seconds, peak = run_measured(words)
    made = {"seconds": round(seconds, 1), "peak_mb": round(peak), "bytes": target.stat().st_size}
    made |= {"sha256": sha256_of_file(target), "checkpoint_sha256": grader.sha256}
    with atomic_path(note) as temporary:
        temporary.write_text(json.dumps(made) + "\n", encoding="utf-8")
    return target, made


def _proved(grader: Grader, backend: str, target: Path, photographs: Path, report: Path) -> dict[str, Any]:
    """What ``fundus-rt parity`` says of a file and what it took; its rows and its report lie in the folder `report`."""
    words = [*COMMAND, "parity", str(grader.checkpoint), str(target), "--card", str(grader.card), "--list", str(photographs)]
    words += ["--report", str(report), "--backend", backend, "--stages", str(LOOKED_AT), "--no-reference"]
    log = report.with_suffix(".txt")
    report.mkdir(parents=True, exist_ok=True)
    for old in ("report.json", "report.html", "photographs.csv", ROWS):
        (report / old).unlink(missing_ok=True)
    seconds, peak = run_measured(words, accepted=(0, 1), log=log)  # 1: some answers differ, which is a figure like any other
    if not (report / "report.json").exists():
        raise RuntimeError(log.read_text(encoding="utf-8"))
    found = json.loads((report / "report.json").read_text(encoding="utf-8"))["figures"]
    stages = next(iter(found["stages"]["outputs"].values()))
    kept = sum(row.get("original_kept_from_before", False) for row in rows_of(report / ROWS))
    return {
        "seconds": round(seconds, 1),
        "peak_mb": round(peak),
        "kept_from_before": kept,
        "shares": stages["shares"],
        "stages_largest": stages["largest"],
        **{key: found[key] for key in ("copies", "not_answered", "milliseconds")},
    }
