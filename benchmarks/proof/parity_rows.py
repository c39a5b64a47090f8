"""One row for each photograph of a proof: made in small chunks, kept at once, read again as compact numbers."""

from __future__ import annotations

import array
import hashlib
import json
import math
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, BinaryIO

import numpy as np

from fundus_rt.benchmarks.proof.answer_cache import AnswerCache, answer_digest
from fundus_rt.benchmarks.proof.original import OriginalModel
from fundus_rt.benchmarks.proof.photographs import Case, photograph_of
from fundus_rt.converters.original_preprocessing import Photograph
from fundus_rt.models.card import OutputSpec
from fundus_rt.models.errors import BackendUnavailableError, EyeError, FundusRtError, StoppedError
from fundus_rt.runtime.agreement import decisions, values_in_unit
from fundus_rt.runtime.eye import eye_from_file_name
from fundus_rt.runtime.pipeline import Pipeline
from fundus_rt.runtime.result import Result

Row = dict[str, Any]
Numbers = dict[str, np.ndarray]
"""float32 [columns] by output."""

CHUNK = 8
"""Photographs in work at once: what bounds the memory."""


class ParityRows:
    """Both sides' answers to photographs, as rows."""

    def __init__(
        self, original: OriginalModel, pipeline: Pipeline, run: str, cache: AnswerCache | None, workers: int = 1
    ) -> None:
        """Args:
        original: the author's side.
        pipeline: the shipped file as a user runs it.
        run: digest of everything but the photographs that decides the answers.
        cache: for the original's answers; None to ask it every time.
        workers: photographs that are decoded, prepared and answered on our side at once.
        """
        self._workers = workers
        self._original = original
        self._pipeline = pipeline
        self._run = run
        self._cache = cache if original.repeatable else None

    def digest(self, case: Case) -> str:
        """What makes a row the same row: run, content and what is said of the eye; 32 hexadecimal digits."""
        name = case.name if case.problem else str(eye_from_file_name(os.path.basename(case.name)))
        parts = [self._run, case.sha256, str(case.eye), name, str(bool(case.problem))]
        return hashlib.sha256("\0".join(parts).encode("utf-8", "surrogateescape")).hexdigest()[:32]

    def rows(self, some: Sequence[Case]) -> list[Row]:
        """Rows of a few photographs, in their order. One that a side cannot answer has an ``error`` and no ``key``.

        Raises:
            StoppedError: the shipped file's device cannot be trusted any more.
        """
        with ThreadPoolExecutor(self._workers) as pool:
            rows = list(pool.map(self._ours, some))
            found = list(pool.map(self._theirs, some, rows))
        photographs = {index: photograph for index, photograph in enumerate(found) if photograph is not None}
        for index, (numbers, milliseconds, kept) in self._originals(photographs, rows).items():
            self._complete(rows[index], numbers, photographs[index], milliseconds, kept)
        return rows

    def _ours(self, case: Case) -> Row:
        """A row with our side's answer, by the way that a user's photograph takes."""
        row: Row = {
            "file": case.name, "sha256": case.sha256 or None, "key": None, "photograph": self.digest(case), "eye": None,
            "mirrored": None, "outputs": {}, "warnings": [], "timing_ms": {}, "error": case.problem or None,
        }  # fmt: skip
        if case.problem:
            return row
        sources = {"list": case.eye, "file name": eye_from_file_name(os.path.basename(case.name))}
        started = time.perf_counter()
        try:
            prepared = self._pipeline.prepare_bytes(case.content, sources)
            found = self._pipeline.finish([prepared])[0]
        except StoppedError:
            raise
        except FundusRtError as error:
            return _fail(row, f"the shipped file's side: {_line(error)}")
        except Exception as error:  # one picture must not end the run of all others; its row says what happened
            return _fail(row, f"the shipped file's side: unexpected {type(error).__name__}: {_line(error)}")
        if isinstance(found, EyeError):
            return _fail(row, f"the shipped file's side: {_line(found)}")
        row["timing_ms"]["ours"] = round((time.perf_counter() - started) * 1e3, 2)
        return _with_ours(row, found)

    def _theirs(self, case: Case, row: Row) -> Photograph | None:
        """The photograph on its author's way, mirrored by the eye that the sources state; None where our side has failed."""
        if row["error"] is not None:
            return None
        try:
            return photograph_of(replace(case, eye=row["eye"]["value"]), self._original.card)
        except FundusRtError as error:
            _fail(row, f"the original's side: {_line(error)}")
            return None

    def _originals(self, photographs: dict[int, Photograph], rows: list[Row]) -> dict[int, tuple[Numbers, float, bool]]:
        """By index of the row: the original's numbers, milliseconds a photograph, and whether they were kept from before."""
        columns = {output.name: output.columns or 1 for output in self._original.card.outputs}
        found: dict[int, tuple[Numbers, float, bool]] = {}
        keys = {index: answer_digest(self._original, photograph) for index, photograph in photographs.items()}
        for index, key in keys.items():
            known = self._cache.get(key, columns) if self._cache else None
            if known is not None:
                found[index] = known, 0.0, True
        started = time.perf_counter()
        images: dict[int, np.ndarray] = {}
        for index in photographs:
            if index in found:
                continue
            try:
                images[index] = self._original.inputs([photographs[index]]).images
            except BackendUnavailableError:
                raise  # a missing library is no fault of a photograph
            except (FundusRtError, ValueError, OSError) as error:
                _fail(rows[index], f"the original's side: {_line(error)}")
        if images:
            answers = self._original.answers(np.concatenate(list(images.values())))
            each = (time.perf_counter() - started) * 1e3 / len(images)
            for place, index in enumerate(images):
                found[index] = {name: numbers[place] for name, numbers in answers.items()}, each, False
            if self._cache:
                self._cache.put({keys[index]: found[index][0] for index in images})
        return found

    def _complete(self, row: Row, numbers: Numbers, photograph: Photograph, milliseconds: float, kept: bool) -> None:
        """Put the original's side beside ours, and give the row its key: it is finished."""
        row["mirrored"]["original"] = photograph.mirror
        row["original_kept_from_before"] = kept
        if not kept:
            row["timing_ms"]["original"] = round(milliseconds, 2)
        sides = {"original": self._original.card.outputs, "ours": self._pipeline.card.outputs}
        for output in self._original.card.outputs:
            found = row["outputs"].setdefault(output.name, {})
            found["original"] = _json_numbers(numbers[output.name])
            for side, outputs in sides.items():
                spec = next(one for one in outputs if one.name == output.name)
                found.update(_said(side, _numbers(found[side]), spec))
        row["key"] = row["photograph"]


@dataclass(frozen=True)
class Answered:
    """All rows of a run, as arrays. N photographs were answered by both sides."""

    stream: BinaryIO
    """The rows, open to be read for as long as this is used."""
    offsets: np.ndarray
    """int64 [N]: where each row begins in the file."""
    original: Numbers
    """float32 [N, columns] by output."""
    ours: Numbers
    """float32 [N, columns] by output."""
    milliseconds: np.ndarray
    """float64 [N, 2]: the original's side (NaN where its answer was kept from before) and ours."""
    failed: np.ndarray
    """int64: where the rows begin of photographs that a side could not answer."""
    repeats: int = 0
    """Photographs that were answered once more under another name, with nothing else that decides the answer; left out."""

    def row(self, index: int) -> Row:
        """The row of one photograph."""
        return self._at(int(self.offsets[index]))

    def failures(self) -> Iterator[Row]:
        """Rows of photographs that could not be answered."""
        return (self._at(int(offset)) for offset in self.failed)

    def rows(self) -> Iterator[Row]:
        """Every row, in the order of the file."""
        for offset in np.sort(np.concatenate([self.offsets, self.failed])):
            yield self._at(int(offset))

    def _at(self, offset: int) -> Row:
        self.stream.seek(offset)
        row: Row = json.loads(self.stream.readline().decode("utf-8", "surrogateescape"))
        return row


def answered_rows(stream: BinaryIO, asked: Iterable[str], outputs: Sequence[OutputSpec]) -> Answered:
    """Read the rows of the photographs that were asked for; of several for one photograph the finished one counts.

    Args:
        stream: ``photographs.jsonl``, to be read; it is kept open by the caller.
        asked: `ParityRows.digest` of each photograph of this run; other rows are another run's.
        outputs: with columns resolved.
    """
    wanted = {bytes.fromhex(digest) for digest in asked}
    offsets, milliseconds = array.array("q"), array.array("d")
    sides = {side: {output.name: array.array("f") for output in outputs} for side in ("original", "ours")}
    failed: dict[bytes, int] = {}
    seen: set[tuple[str, str]] = set()
    position = repeats = 0
    stream.seek(0)
    for line in stream:
        row = json.loads(line.decode("utf-8", "surrogateescape"))
        digest = bytes.fromhex(row["photograph"])
        if digest in wanted and row["error"] is not None:
            failed[digest] = position
        elif digest in wanted:
            wanted.discard(digest)
            failed.pop(digest, None)
            same = (row["sha256"], str(row["mirrored"]))
            repeats += same in seen
            if same not in seen:
                seen.add(same)
                offsets.append(position)
                _take(row, sides, milliseconds)
        position += len(line)
    count = len(offsets)
    original, ours = (
        {name: np.frombuffer(numbers, np.float32).reshape(count, -1) if count else np.zeros((0, 1), np.float32)
         for name, numbers in columns.items()}
        for columns in sides.values()
    )  # fmt: skip
    places = np.array(offsets, np.int64)
    return Answered(
        stream,
        places,
        original,
        ours,
        np.array(milliseconds).reshape(count, 2),
        np.array(list(failed.values()), np.int64),
        repeats,
    )


def _take(row: Row, sides: dict[str, dict[str, array.array[float]]], milliseconds: array.array[float]) -> None:
    """Append one row to the columns."""
    milliseconds.extend(row["timing_ms"].get(side, math.nan) for side in ("original", "ours"))
    for side, columns in sides.items():
        for name, numbers in columns.items():
            numbers.extend(_numbers(row["outputs"][name][side]).tolist())


def _with_ours(row: Row, found: Result) -> Row:
    row["eye"] = {"value": found.eye.value, "source": found.eye.source}
    row["mirrored"] = {"ours": found.eye.mirrored}
    row["warnings"] = list(found.warnings)
    row["outputs"] = {name: {"ours": _json_numbers(numbers)} for name, numbers in found.numbers.items()}
    return row


def _said(side: str, numbers: np.ndarray, output: OutputSpec) -> Row:
    """A side's values in the output's unit, and its decision."""
    values = values_in_unit(numbers[None], output)
    said = decisions(values, output)
    return {f"{side}_values": _json_numbers(values[0]), **({f"{side}_decision": said[0]} if said else {})}


def _fail(row: Row, problem: str) -> Row:
    row["error"] = problem
    return row


def _line(error: Exception) -> str:
    return " ".join(str(error).split())


def _json_numbers(numbers: np.ndarray) -> list[float | None]:
    """Numbers as JSON has them; what is not finite becomes null."""
    return [float(number) if math.isfinite(number) else None for number in numbers]


def _numbers(found: Sequence[float | None]) -> np.ndarray:
    """float32 [columns]; null becomes NaN."""
    return np.array([math.nan if number is None else number for number in found], np.float32)
