"""How the answers of a file, and its parity with the original, move when photographs get worse: a row for each photograph."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Set
from dataclasses import dataclass
from pathlib import Path

from fundus_rt.benchmarks.proof.photographs import Case
from fundus_rt.benchmarks.robustness.answering import Original, Row, VersionAnswerer
from fundus_rt.benchmarks.robustness.plan import Plan
from fundus_rt.benchmarks.robustness.summary import Summary, summarised
from fundus_rt.models.errors import FundusRtError, StoppedError, UsageError
from fundus_rt.runtime.eye import eye_from_file_name
from fundus_rt.runtime.output import open_output
from fundus_rt.runtime.pipeline import Pipeline
from fundus_rt.runtime.rows import JsonLines

ROWS = "robustness.jsonl"
"""Name of the file of rows in a report's folder."""
FORMAT = 2
"""Counts up when rows or degradations are made in another way, so that earlier rows are not gone on with."""


@dataclass(frozen=True)
class Measured:
    """What was found on the photographs of one call."""

    summary: Summary
    path: Path
    """Of the file of rows; it may hold rows of other photographs, from earlier calls."""
    asked: Set[str]
    """What tells the rows of this call's photographs."""

    def rows(self) -> Iterator[Row]:
        """The rows of this call's photographs, one at a time."""
        return read_rows(self.path, self.asked)


def measure(
    photographs: Iterable[Case],
    pipeline: Pipeline,
    watch: Pipeline | None,
    original: Original | None,
    plan: Plan,
    rows: Path,
    resume: bool = False,
    show: Callable[[int], None] = lambda done: None,
) -> Measured:
    """Answer every version of every photograph and sum up.

    Args:
        photographs: read one after the other; only one is in memory.
        pipeline: the examined file.
        watch: the acquisition model, see `VersionAnswerer`.
        original: the checkpoint in its own framework; None to leave parity out.
        plan: which versions are made.
        rows: JSON lines, one a photograph, written as soon as it is done; its folder exists.
        resume: go on with what `rows` holds.
        show: called with the number of photographs that are done.

    Raises:
        UsageError: `rows` exists and `resume` is not given, or holds rows of another file, checkpoint, plan or backend.
        StoppedError: what computes cannot be trusted or is gone; the finished rows stay.
    """
    run = run_digest(pipeline, original, plan)
    if resume and rows.exists():
        _require_same_run(rows, run)
    answerer = VersionAnswerer(pipeline, plan, watch, original)
    asked: set[str] = set()
    with open_output(rows, resume, JsonLines()) as writer:
        for done, case in enumerate(photographs, 1):
            key = _key(case, run)
            if key not in asked and bytes.fromhex(key) not in writer.finished:
                writer.write(_row(answerer, case, key, run))
            asked.add(key)
            show(done)
    summary = summarised(read_rows(rows, asked), pipeline.card, plan, original is not None)
    return Measured(summary, rows, asked)


def read_rows(path: Path, asked: Set[str]) -> Iterator[Row]:
    """The rows of the photographs `asked` for, one at a time and each once: of a file that could not be read, the last row."""
    failed: dict[str, Row] = {}
    with open(path, encoding="utf-8") as stream:
        for line in stream:
            row: Row = json.loads(line)
            if row["photograph"] not in asked:
                continue
            if row["key"] is None:
                failed[row["photograph"]] = row
            else:
                yield row
    yield from failed.values()


def run_digest(pipeline: Pipeline, original: Original | None, plan: Plan) -> str:
    """16 hexadecimal digits of everything but the photographs that decides a row."""
    of_original = [original.checkpoint_sha256, original.beside_sha256, original.card.to_json()] if original else []
    parts = [str(FORMAT), pipeline.identity.sha256, plan.digest(), *pipeline.asked, *of_original]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def _key(case: Case, run: str) -> str:
    """What makes a row the same row: the run, the content, and what is said of the eye; 32 hexadecimal digits."""
    parts = [run, case.sha256, str(case.eye), str(eye_from_file_name(os.path.basename(case.name))), os.path.abspath(case.name)]
    return hashlib.sha256("\0".join(parts).encode("utf-8", "surrogateescape")).hexdigest()[:32]


def _row(answerer: VersionAnswerer, case: Case, key: str, run: str) -> Row:
    """The row of one photograph; a file that cannot be read has no key, so it is tried again."""
    row: Row = {"file": case.name, "sha256": case.sha256, "key": key, "photograph": key, "run": run, "error": None}
    if case.problem:
        row["key"] = None
    try:
        row.update(answerer.row(case))
    except StoppedError:
        raise
    except FundusRtError as error:
        row["error"] = " ".join(str(error).split())
    return row


def _require_same_run(rows: Path, run: str) -> None:
    """Refuse to go on with rows of other options: their figures cannot be put together.

    Raises:
        UsageError: the first whole row is of another run, or none of these.
    """
    with open(rows, "rb") as stream:
        first = stream.readline()
    if not first.endswith(b"\n"):
        return
    try:
        found = json.loads(first)["run"]
    except (ValueError, KeyError, TypeError):
        found = None
    if found != run:
        raise UsageError(
            f"{rows} holds rows of another model file, checkpoint, backend, seed or choice of changes, so --resume cannot go on "
            "with it; nothing of it was changed. Give the options of before, or another --report folder."
        )
