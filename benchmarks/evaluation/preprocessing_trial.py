"""Other preprocessings tried on the shipped file itself, with the photographs that were answered already."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np

from fundus_rt.benchmarks.evaluation.answers import Answered
from fundus_rt.benchmarks.evaluation.candidate_answers import (
    KnownPhotograph,
    answer_candidates,
    candidate_values,
    float_input_copy,
)
from fundus_rt.benchmarks.evaluation.candidates import Candidate, card_candidate
from fundus_rt.benchmarks.evaluation.estimates import SEED, renumbered
from fundus_rt.benchmarks.evaluation.preprocessing_search import CandidateAnswers, SearchResult, search_preprocessing
from fundus_rt.models.card import OutputSpec
from fundus_rt.models.errors import UsageError
from fundus_rt.runtime.guarded_session import GuardedSession, open_guarded
from fundus_rt.runtime.pipeline import Pipeline
from fundus_rt.runtime.session import resolve_model, usable_cores

Progress = Callable[[str, int], AbstractContextManager[Callable[[int], None]]]
SAME = 2e-3
"""How far the card's own preprocessing may answer here from what the runtime answered, as a share of the answers' spread."""


class PreprocessingTrial:
    """One comparison: what is asked, of which photographs, and where finished answers are kept."""

    def __init__(
        self,
        pipeline: Pipeline,
        model: str | Path,
        answered: Answered,
        place: int,
        folder: Path,
        most: int,
        progress: Progress,
        mirrored_by_source: bool = False,
    ) -> None:
        """Args:
        pipeline: what answered with the card's own preprocessing.
        model: its ``.onnx`` file, or the name of a bundled one.
        answered: what became of every line.
        place: of the question whose labels decide.
        folder: where answers are kept; those of an earlier run are gone on with.
        most: photographs that are asked at most, drawn by patient.
        progress: shows the work.
        mirrored_by_source: as for ``fundus-rt infer``.
        """
        self._pipeline = pipeline
        self._model = resolve_model(model)
        self._answered = answered
        self._answers = answered.of(place)
        self._place = place
        self._folder = folder
        self._progress = progress
        self._mirrored_by_source = mirrored_by_source
        self._lines = _drawn(answered, self._answers.lines, most)
        self._rounds = 0
        self.notes: list[str] = []
        """What a reader should know of the comparison."""

    def search(self, fields: Sequence[str]) -> SearchResult:
        """Compare every candidate, see `search_preprocessing`.

        Raises:
            UsageError: the file is an engine.
            BackendUnavailableError: the package onnx or SciPy is missing.
            ParityError: the card's own preprocessing answers otherwise here than in the runtime.
        """
        if self._model.suffix != ".onnx":
            raise UsageError(
                f"{self._model.name} is no .onnx file; preprocessings can be compared on the .onnx that it was built from"
            )
        copy = self._folder / "float-input.onnx"
        float_input_copy(self._model, copy)
        workers = usable_cores()
        _, device, _ = self._pipeline.asked
        session = open_guarded(copy, "onnxruntime", device, threads=max(1, usable_cores() // workers))
        try:
            return search_preprocessing(
                card_candidate(self._pipeline.card), fields, self._output, lambda tried: self._ask(session, tried, workers)
            )
        finally:
            session.close()
            copy.unlink(missing_ok=True)

    @property
    def _output(self) -> OutputSpec:
        return self._answers.question.output

    def _ask(self, session: GuardedSession, tried: Sequence[Candidate], workers: int) -> CandidateAnswers:
        self._rounds += 1
        rows = self._folder / f"candidates-{self._rounds}.jsonl"
        paths = {path: line for path, line in self._answered.table.places.items() if line in self._lines}
        photographs = (KnownPhotograph(path, self._answered.eyes[line]) for path, line in paths.items())
        sha256 = self._pipeline.identity.sha256
        with self._progress(f"comparing {len(tried)} preprocessings", len(paths)) as show:
            answer_candidates(session, tried, photographs, rows, sha256, workers, show, self._mirrored_by_source)
        found = {
            paths[path]: (values, said)
            for path, values, said in candidate_values(rows, tried, sha256, self._output)
            if path in paths
        }
        if len(found) < len(paths):
            self.notes.append(f"{len(paths) - len(found)} of {len(paths)} photographs could not be answered with every candidate")
        lines = np.array(sorted(found), np.int64)
        if not len(lines):
            raise UsageError("not one photograph could be answered with every candidate; its rows in the report folder say why")
        values = np.stack([found[line][0] for line in lines], axis=1)
        said = np.stack([found[line][1] for line in lines], axis=1)
        if self._rounds == 1:
            self._note_difference(values[0], lines)
        table = self._answered.table
        return CandidateAnswers(values, said, table.truths[self._place][lines], renumbered(table.patients[lines]))

    def _note_difference(self, own: np.ndarray, lines: np.ndarray) -> None:
        """Say so where the card's own preprocessing answers otherwise here than in the runtime."""
        runtime = self._answered.values[self._place][lines]
        apart = float(np.abs(own - runtime).max())
        if apart > max(SAME * float(np.ptp(runtime)), 1e-5):
            self.notes.append(
                f"the card's own preprocessing answers up to {apart:.3g} {self._output.unit} away from what the runtime "
                "answered; do not rely on this comparison, and report it"
            )


def _drawn(answered: Answered, lines: np.ndarray, most: int) -> frozenset[int]:
    """At most so many lines, whole patients drawn without replacement."""
    if len(lines) <= most:
        return frozenset(lines.tolist())
    patients = answered.table.patients[lines]
    order = np.random.default_rng(SEED).permutation(np.unique(patients))
    rank = np.empty(int(patients.max()) + 1, np.int64)
    rank[order] = np.arange(len(order))
    kept = lines[np.argsort(rank[patients], kind="stable")][:most]
    return frozenset(kept.tolist())
