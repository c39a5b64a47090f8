"""The model's answers for labelled photographs, by the runtime's own way, and what belongs to which label."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fundus_rt.benchmarks.evaluation.labels import LabelTable
from fundus_rt.benchmarks.evaluation.truths import Question
from fundus_rt.models.artifacts import sha256_of_file
from fundus_rt.models.card import OutputSpec
from fundus_rt.models.errors import FundusRtError
from fundus_rt.runtime.batch import Answerer, AnswerOptions, row_key
from fundus_rt.runtime.inputs import Item
from fundus_rt.runtime.output import open_output
from fundus_rt.runtime.pipeline import Pipeline
from fundus_rt.runtime.rows import JsonLines

Row = dict[str, Any]


@dataclass(frozen=True)
class QuestionAnswers:
    """Truth and answers of all photographs that have both, for one output."""

    question: Question
    lines: NDArray[np.int64]
    """[M], the line of each in the table, counted from 0."""
    truth: NDArray[np.float64]
    """[M, T], as `LabelTable.truths`."""
    values: NDArray[np.float64]
    """[M, C]: the value of a regression, or a probability for each label."""
    decided: NDArray[np.int64]
    """[M], place of the label that the runtime said; -1 where it said none, and for a regression and several labels at once."""
    clusters: NDArray[np.int64]
    """[M], patients, numbered from 0 without gaps."""

    def part(self, kept: NDArray[np.bool_]) -> QuestionAnswers:
        """Only some of the photographs, [M]."""
        clusters = np.asarray(np.unique(self.clusters[kept], return_inverse=True)[1], np.int64).reshape(-1)
        arrays = (self.lines[kept], self.truth[kept], self.values[kept], self.decided[kept])
        return QuestionAnswers(self.question, *arrays, clusters)


@dataclass
class Answered:
    """What became of every line."""

    table: LabelTable
    values: list[NDArray[np.float64]]
    """By question [N, C]; nan where there is no answer."""
    decided: list[NDArray[np.int64]]
    """By question [N]."""
    eyes: list[str]
    """[N], the eye that the runtime went by; empty where it knew none."""
    digests: list[bytes]
    """[N], SHA-256 of each photograph; empty where it was not read."""
    problems: dict[int, str]
    """By line why it is not counted: of the table, of the photograph, or two labels for one content."""
    unanswered: int
    """Photographs that the runtime could not answer."""

    def of(self, place: int) -> QuestionAnswers:
        """Everything that one question can be measured with."""
        known = ~np.isnan(self.table.truths[place][:, 0]) & ~np.isnan(self.values[place][:, 0])
        for line in self.problems:
            known[line] = False
        lines = np.flatnonzero(known)
        clusters = np.asarray(np.unique(self.table.patients[lines], return_inverse=True)[1], np.int64).reshape(-1)
        question = self.table.questions[place]
        found = (self.table.truths[place][lines], self.values[place][lines], self.decided[place][lines])
        return QuestionAnswers(question, lines, *found, clusters)


def answer_options(table: LabelTable, mirrored_by_source: bool = False) -> AnswerOptions:
    """Where the eye is what is asked, no name of a file may tell it: a wrong answer would become an error and not be counted."""
    return AnswerOptions(None, mirrored_by_source, read_file_names=not table.asks_eye)


def answer_photographs(
    pipeline: Pipeline,
    items: Iterable[Item],
    options: AnswerOptions,
    output: Path,
    resume: bool,
    workers: int,
    batch: int = 1,
    show: Callable[[int], None] = lambda done: None,
) -> None:
    """Answer photographs as ``fundus-rt infer`` does; each row is on the disk before the next one is begun.

    Args:
        pipeline: the opened model.
        items: the photographs.
        options: as for `fundus_rt.runtime.batch.Answerer`.
        output: JSON lines; one that holds rows already needs `resume`.
        resume: leave out what it holds.
        workers: photographs at once.
        batch: photographs in one inference.
        show: called with the number that is done.

    Raises:
        UsageError: the output cannot be written, or holds rows and `resume` is not given.
        StoppedError: what computes cannot be trusted any more.
    """
    with open_output(output, resume, JsonLines()) as writer:
        answerer = Answerer(pipeline, options, workers, batch, writer.finished)
        for row in answerer.rows(items):
            writer.write(row)
            show(answerer.taken)


def join_answers(table: LabelTable, rows: Path, pipeline: Pipeline, options: AnswerOptions) -> Answered:
    """Find the answer of every line.

    Rows of another model, content, eye or call, which a resumed file may hold, are passed over. The same content under two names
    is counted once, and not at all where it has two labels.

    Args:
        table: the labels.
        rows: what `answer_photographs` wrote.
        pipeline, options: what it was called with.
    """
    count = len(table)
    found = Answered(
        table=table,
        values=[np.full((count, max(1, len(q.output.labels))), np.nan) for q in table.questions],
        decided=[np.full(count, -1, np.int64) for _ in table.questions],
        eyes=[""] * count,
        digests=[b""] * count,
        problems=dict(table.problems),
        unanswered=0,
    )
    errors: dict[int, str] = {}
    for row in read_rows(rows):
        place = table.places.get(row["file"])
        if place is None or place in table.problems or not _is_of(row, place, found, pipeline, options):
            continue
        if row["error"]:
            errors[place] = row["error"]
            continue
        errors.pop(place, None)
        _take(row, place, found)
    found.problems.update(errors)
    found.unanswered = len(errors)
    _leave_out_repeats(found)
    return found


def read_rows(path: Path) -> Iterator[Row]:
    """Whole rows of a file of JSON lines, one after the other."""
    with open(path, "rb") as stream:
        for line in stream:
            if line.endswith(b"\n"):
                yield json.loads(line.decode("utf-8", "surrogateescape"))


def label_values(prediction: dict[str, Any], output: OutputSpec) -> tuple[list[float], int]:
    """Numbers of an answer in a row, the value or a probability for each label, and the place of the decided label or -1."""
    if output.task == "regression":
        return [prediction["value"]], -1
    decided = output.labels.index(prediction["decision"]) if prediction["decision"] in output.labels else -1
    return [prediction["probabilities"][label] for label in output.labels], -1 if output.task == "multilabel" else decided


def _is_of(row: Row, place: int, found: Answered, pipeline: Pipeline, options: AnswerOptions) -> bool:
    """Whether a row answers the photograph of a line, as it is now and with this call."""
    if row["model"]["sha256"] != pipeline.identity.sha256:
        return False
    if row["key"] is None:  # could not be answered this time; it counts until it can
        return not found.digests[place]
    if row["key"] != row_key(Item(row["file"], found.table.listed_eye(place)), row["sha256"], pipeline, options):
        return False
    digest = bytes.fromhex(row["sha256"])
    if found.digests[place] and found.digests[place] != digest:
        try:
            return bool(sha256_of_file(row["file"]) == row["sha256"])
        except OSError as error:
            raise FundusRtError(
                f"{row['file']} cannot be read any more ({error.strerror}); put it back, then --resume"
            ) from error
    return True


def _take(row: Row, place: int, found: Answered) -> None:
    found.digests[place] = bytes.fromhex(row["sha256"])
    found.eyes[place] = (row["eye"] or {}).get("value") or ""
    for question, values, decided in zip(found.table.questions, found.values, found.decided, strict=True):
        numbers, said = label_values(row["outputs"][question.output.name], question.output)
        values[place], decided[place] = numbers, said


def _leave_out_repeats(found: Answered) -> None:
    """One content under several names."""
    places: dict[bytes, list[int]] = {}
    for place, digest in enumerate(found.digests):
        if digest and place not in found.problems:
            places.setdefault(digest, []).append(place)
    for same in places.values():
        if len(same) == 1:
            continue
        first = same[0]
        agree = all(np.array_equal(truth[first], truth[other], equal_nan=True) for truth in found.table.truths for other in same)
        for place in same[1:] if agree else same:
            other = same[0] if place != first else same[1]
            said = "counted once" if agree else "with another label: neither is used"
            found.problems[place] = f"the same content as line {found.table.numbers[other]}, {said}"
