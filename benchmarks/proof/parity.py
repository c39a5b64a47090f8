"""A shipped file held against the checkpoint that it was made from, on photographs: would any patient have had another answer?"""

from __future__ import annotations

import dataclasses
import gc
import hashlib
import itertools
import json
import os
import tempfile
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from fundus_rt.benchmarks.proof.answer_cache import opened_cache
from fundus_rt.benchmarks.proof.author_card import AuthorCard, author_card, settled_differences
from fundus_rt.benchmarks.proof.original import OriginalModel
from fundus_rt.benchmarks.proof.parity_figures import OutputFigures, chosen, figures, further_problems
from fundus_rt.benchmarks.proof.parity_rows import CHUNK, Answered, ParityRows, Row, answered_rows
from fundus_rt.benchmarks.proof.photographs import Case, cases, count_cases
from fundus_rt.benchmarks.reports.report_files import prepare_report_folder
from fundus_rt.converters.backends import versions
from fundus_rt.converters.conversion_report import peak_memory
from fundus_rt.models.card import ModelCard
from fundus_rt.models.errors import BackendUnavailableError, UsageError
from fundus_rt.models.registry import EXAMPLE_FOLDER
from fundus_rt.runtime.certification import binding_of, checkpoint_sha256
from fundus_rt.runtime.guarded_session import GuardedSession, open_guarded
from fundus_rt.runtime.onnx_providers import TF32_VARIABLE
from fundus_rt.runtime.output import RowWriter, open_output
from fundus_rt.runtime.pipeline import Pipeline
from fundus_rt.runtime.rows import JsonLines
from fundus_rt.runtime.session import BackendInfo, ModelIdentity, usable_cores

ROWS_FILE = "photographs.jsonl"
"""One row for each photograph, in the folder of the report."""
FORMAT = 2
"""Counts up when rows are made in another way, so that earlier ones are not gone on with."""


@dataclass(frozen=True)
class ParityCall:
    """What is held against what."""

    checkpoint: Path
    file: str
    """An ``.onnx`` or ``.engine`` file, or a bundled model's name."""
    card: str | None = None
    """Name or ``.json`` file of the author's card; None: see `author_card`."""
    images: tuple[str, ...] = (str(EXAMPLE_FOLDER),)
    list_file: str | None = None
    """A CSV file of photographs, instead of `images`."""
    backend: str = "auto"
    device: str = "cpu"
    provider: str = "auto"
    architecture: str | None = None
    trust_pickle: bool = False
    report: Path | None = None
    """Folder for rows and report; None: nothing is kept."""
    resume: bool = False


@dataclass(frozen=True)
class Feedback:
    """Where a run says what it does."""

    say: Callable[[str], None] = lambda sentence: None
    """One sentence at a time."""
    step: Callable[[str], AbstractContextManager[Any]] = nullcontext
    """Around each long step, given its description."""
    bar: Callable[[Callable[[], int]], AbstractContextManager[Callable[[int], None]]] = lambda count: nullcontext(
        lambda done: None
    )
    """Progress over photographs: given what counts them all, gives what is told how many are done."""


@dataclass
class Parity:
    """A finished comparison. It holds the original network and the file of rows until `close`."""

    call: ParityCall
    original: OriginalModel
    author: AuthorCard
    own: ModelCard
    """The card inside of the file."""
    identity: ModelIdentity
    backend: BackendInfo
    answered: Answered
    figures: list[OutputFigures]
    copies: int
    """Photographs left out because another one of the same content was answered."""
    problems: list[str]
    """Why the file does not answer as the checkpoint does, one sentence each."""
    versions: dict[str, str]
    """Installed packages that had a part in it."""
    peak_memory: int | None
    """Largest resident memory of this process, bytes."""
    kept: ExitStack = field(repr=False)

    @property
    def passed(self) -> bool:
        """Whether every photograph was answered, and no patient would have had another answer."""
        return not self.problems

    def disproved(self) -> bool:
        """Whether cards or answers speak against the file. That a photograph could not be answered does not."""
        return bool(self.author.differences) or any(one.disagrees for one in self.figures)

    def other_checkpoint(self) -> str:
        """That the file says it was made from another checkpoint than it was held against; empty where it does not."""
        return _other_checkpoint(self.own, self.original)

    def sample(self, most: int) -> list[Row]:
        """Rows of photographs that stand for all: the worst, the nearest to an operating point, the rest spread."""
        return [self.answered.row(index) for index in chosen(self.figures, len(self.answered.offsets), most)]

    def session(self) -> GuardedSession:
        """The shipped file, opened as it was for the comparison."""
        return open_guarded(self.call.file, self.call.backend, self.call.device, None, self.call.provider)

    def close(self) -> None:
        """Give memory and temporary files back."""
        self.original.close()
        self.kept.close()


def hold_against(call: ParityCall, feedback: Feedback) -> Parity:
    """Ask both sides about every photograph, and say where they differ.

    The original framework answers what its author's libraries make of the files, the shipped file what our pipeline makes of
    them, guards included. Rows are written as they are made; memory does not grow with the number of photographs.

    Raises:
        UsageError: a path or option that cannot be used, or a checkpoint that gives other numbers than the file.
        BackendUnavailableError: a report is wanted and cannot be drawn, or the checkpoint's framework is not installed.
        StoppedError: the device that runs the file cannot be trusted any more; finished rows are kept.
        FundusRtError: the checkpoint or the file cannot be opened, see `OriginalModel` and `Pipeline`.
    """
    kept = ExitStack()
    with ExitStack() as undone:
        undone.callback(kept.close)
        rows_file = _rows_file(call)
        with feedback.step("Opening the shipped file"):
            workers = usable_cores()
            pipeline = Pipeline(call.file, call.backend, call.device, threads=1, provider=call.provider)
            undone.callback(pipeline.close)
        author = author_card(pipeline.card, call.card)
        with feedback.step("Loading the original network in its own framework"):
            original = OriginalModel(call.checkpoint, author.card, call.architecture, call.trust_pickle, feedback.say)
            kept.callback(original.close)
        _require_same_columns(original.card, pipeline.card, call)
        if other := _other_checkpoint(pipeline.card, original):
            feedback.say(f"{other}: no certificate will be written")
        settled = settled_differences(pipeline.card, author, original.card)
        author = dataclasses.replace(author, differences=author.differences + settled)
        cache = opened_cache(feedback.say)
        kept.callback(cache.close)
        rows = ParityRows(original, pipeline, _run_digest(call, original, pipeline), cache, workers)
        if rows_file is None:  # names of patients' photographs: a file without a name goes with the process, however it ends
            stream: BinaryIO = kept.enter_context(tempfile.TemporaryFile())
            asked, copies = _answer_all(call, rows, nullcontext(RowWriter(stream, JsonLines())), feedback)
        else:
            asked, copies = _answer_all(call, rows, open_output(rows_file, call.resume, JsonLines()), feedback)
            stream = kept.enter_context(open(rows_file, "rb"))
        answered = answered_rows(stream, asked, original.card.outputs)
        found = figures(answered, original.card.outputs, pipeline.card.outputs, pipeline.identity.precision)
        problems = [problem for one in found for problem in one.agreement.problems]
        result = Parity(
            call, original, author, pipeline.card, pipeline.identity, pipeline.backend, answered, found,
            copies + answered.repeats, author.problems() + problems + further_problems(found, len(answered.failed)),
            {**versions("fundus-rt", "onnxruntime", "onnxruntime-gpu"), **original.versions}, peak_memory(), kept,
        )  # fmt: skip
        undone.pop_all()
        pipeline.close()
    gc.collect()
    return result


def _other_checkpoint(own: ModelCard, original: OriginalModel) -> str:
    made_from = checkpoint_sha256(own)
    if made_from in ("", original.checkpoint_sha256):
        return ""
    return (
        f"the file says that it was made from another checkpoint (sha256 {made_from:.16}, this one's is "
        f"{original.checkpoint_sha256:.16})"
    )


def _rows_file(call: ParityCall) -> Path | None:
    """Where the rows are kept; None where no report is wanted."""
    if call.report is None:
        if call.resume:
            raise UsageError("--resume goes on with the rows of a --report folder; name it")
        return None
    prepare_report_folder(call.report)
    return call.report / ROWS_FILE


def _answer_all(
    call: ParityCall, rows: ParityRows, output: AbstractContextManager[RowWriter], feedback: Feedback
) -> tuple[list[str], int]:
    """Write the rows that are not there yet; digests of all photographs asked for, and how many were copies of others."""
    asked: dict[str, None] = {}
    done = copies = 0
    with ExitStack() as stack:
        writer = stack.enter_context(output)
        show = stack.enter_context(feedback.bar(lambda: count_cases(call.images, call.list_file)))
        source = cases(call.images, call.list_file)
        while some := list(itertools.islice(source, CHUNK)):
            new: list[Case] = []
            for case in some:
                digest = rows.digest(case)
                copies += digest in asked
                if digest not in asked and bytes.fromhex(digest) not in writer.finished:
                    new.append(case)
                asked.setdefault(digest)
            for row in rows.rows(new):
                writer.write(row)
            done += len(some)
            show(done)
    return list(asked), copies


def _require_same_columns(stated: ModelCard, own: ModelCard, call: ParityCall) -> None:
    columns = {output.name: output.columns for output in own.outputs}
    for output in stated.outputs:
        if columns[output.name] not in (None, output.columns):
            raise UsageError(
                f"{call.checkpoint.name} gives {output.columns} numbers for {output.name!r}, {call.file} gives "
                f"{columns[output.name]}: the file was made from another checkpoint"
            )


def _run_digest(call: ParityCall, original: OriginalModel, pipeline: Pipeline) -> str:
    """Everything but the photographs that decides the rows: checkpoint, file or engine, cards, what computes, libraries."""
    parts: list[Any] = [
        FORMAT, original.checkpoint_sha256, original.beside_sha256, original.description, original.card.to_json(),
        original.versions,
        pipeline.identity.sha256, pipeline.card.to_json(), pipeline.asked, _computed_by(call, pipeline),
        versions("fundus-rt"), call.architecture,
    ]  # fmt: skip
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _computed_by(call: ParityCall, pipeline: Pipeline) -> list[Any]:
    """What a certificate of it would be bound to: the engine's bytes, backend, provider, version, kind of device, TF32."""
    try:
        return list(dataclasses.astuple(binding_of(pipeline.backend, pipeline.card, pipeline.identity, call.device)))
    except BackendUnavailableError as error:  # the device cannot be asked what it is
        return [*dataclasses.astuple(pipeline.backend), os.environ.get(TF32_VARIABLE, "0"), str(error)]
