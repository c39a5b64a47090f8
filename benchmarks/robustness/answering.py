"""One photograph and all its changed versions: the answers of the file, of the acquisition check and of the original."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from fundus_rt.benchmarks.proof.photographs import Case, photograph_of
from fundus_rt.benchmarks.robustness.disturbances import with_one_pixel
from fundus_rt.benchmarks.robustness.field import Field, Frame, field_in_frame
from fundus_rt.benchmarks.robustness.plan import AS_IT_CAME, PIXEL, Change, Plan, changed_frames, seed_of
from fundus_rt.models.artifacts import sha256_of_bytes
from fundus_rt.models.card import ModelCard, OutputSpec
from fundus_rt.models.errors import EyeError, FundusRtError, NotFundusError
from fundus_rt.runtime.agreement import decisions, values_in_unit
from fundus_rt.runtime.decode import decode
from fundus_rt.runtime.eye import eye_from_file_name
from fundus_rt.runtime.field_of_view import find_field_of_view
from fundus_rt.runtime.interpret import Prediction
from fundus_rt.runtime.pipeline import ACQUISITION, Pipeline, Prepared
from fundus_rt.runtime.result import Result

Row = dict[str, Any]
Answer = dict[str, list[float]]
"""Values of one version by output, as `fundus_rt.runtime.agreement.values_in_unit` gives them."""
_TOGETHER = 8
"""Pictures in one inference."""
_DIGITS = 8
"""Decimals of the values in rows; a card's tolerance is never as small."""


class Original(Protocol):
    """The part of `fundus_rt.benchmarks.proof.original.OriginalModel` that is used here."""

    card: ModelCard
    checkpoint_sha256: str
    beside_sha256: str

    def inputs(self, photographs: Sequence[Any]) -> Any: ...

    def answers(self, images: Any) -> dict[str, NDArray[np.float32]]: ...

    def close(self) -> None: ...


class VersionAnswerer:
    """Answers every version of a photograph, as `fundus-rt infer` would, and counts what would be refused."""

    def __init__(self, pipeline: Pipeline, plan: Plan, watch: Pipeline | None, original: Original | None) -> None:
        """Args:
        pipeline: the examined file.
        plan: the versions.
        watch: the acquisition model, asked of every version whether it looks degraded; None where it is the examined file itself.
        original: the checkpoint in its own framework, asked the same; None to leave parity out.
        """
        self._pipeline = pipeline
        self._plan = plan
        self._watch = watch
        self._original = original
        # where the eye is what is asked, another source that contradicts would turn a changed answer into a refused one
        self._asks_eye = any({"left", "right"} <= set(output.labels) for output in pipeline.card.outputs)

    def row(self, case: Case) -> Row:
        """Everything that is found on one photograph, JSON-ready.

        Raises:
            StoppedError: what computes cannot be trusted or is gone.
            FundusRtError: the photograph cannot be decoded, shows no field of view, or the model cannot answer it as it came.
        """
        if case.problem:
            raise FundusRtError(case.problem)
        decoded = decode(case.content)
        view = find_field_of_view(decoded.frame)
        field = field_in_frame(decoded.frame, view)
        seed = seed_of(self._plan, case.sha256)
        named = eye_from_file_name(os.path.basename(case.name))
        sources = {} if self._asks_eye else {"list": case.eye, "file name": named, "dicom": decoded.eye}
        clean = self._version((AS_IT_CAME, 0), decoded.frame, sources)
        if clean["problem"]:
            raise FundusRtError(clean["problem"])
        versions = [clean]
        compared = [(clean, decoded.frame)] if self._original else []
        for change, frame in changed_frames(decoded.frame, view, field, self._plan, seed):
            versions.append(self._version(change, frame, sources))
            if self._original and not versions[-1]["problem"]:
                compared.append((versions[-1], frame))
            if len(compared) >= _TOGETHER:
                self._compare(compared)
                compared = []
        self._compare(compared)
        if self._plan.pixels:
            versions.append(self._worst_pixel(decoded.frame, field, sources, clean["values"], seed))
        return {"field_of_view_found": view.found, "versions": versions}

    def _version(self, change: Change, frame: Frame, sources: dict[str, str | None]) -> Row:
        """The entry of one version."""
        found: Row = {"change": change[0], "level": change[1], "values": {}, "eye": None, "problem": None, "degraded": None}
        try:
            result = self._pipeline.finish([self._pipeline.prepare(frame, sources)])[0]
            if isinstance(result, EyeError):
                raise result
            found["eye"] = result.eye.value
            found["values"] = self._values(result)
        except (NotFundusError, EyeError) as error:
            found["problem"] = " ".join(str(error).split())
        self._look(frame, found)
        return found

    def _look(self, frame: Frame, found: Row) -> None:
        """Write what the acquisition model says into an entry, nothing where no field of view is left to look at.

        It is asked without any source of the eye, so that it answers whatever the eye.
        """
        watch = self._watch or self._pipeline
        try:
            result = watch.finish([watch.prepare(frame, {})])[0]
        except NotFundusError:
            return
        if isinstance(result, EyeError):
            raise result
        found["degraded"] = result.outputs["gradability"].decision != "clean"
        found["gradability"] = round(result.outputs["gradability"].value, _DIGITS)
        if result.outputs["fundus"].decision != "fundus":
            found["problem"] = found["problem"] or "the acquisition model takes it for something else than a fundus photograph"

    def _values(self, result: Result) -> Answer:
        return {output.name: _row_of(result.outputs[output.name], output) for output in self._pipeline.card.outputs}

    def _compare(self, versions: list[tuple[Row, Frame]]) -> None:
        """Write the original's values into entries: the same frames, handed over as PNG, on the author's own way.

        The eye is the one that was taken for the same version: another one is a change of the answer, not of parity.
        """
        if self._original is None or not versions:
            return
        photographs = []
        for entry, frame in versions:
            content = bytes(cv2.imencode(".png", frame, [cv2.IMWRITE_PNG_COMPRESSION, 1])[1])
            name = f"{entry['change']} {entry['level']}"
            photographs.append(photograph_of(Case(name, content, sha256_of_bytes(content), entry["eye"]), self._original.card))
        answers = self._original.answers(self._original.inputs(photographs).images)
        for output in self._original.card.outputs:
            values = values_in_unit(answers[output.name], output)
            for (entry, _), row in zip(versions, values, strict=True):
                entry.setdefault("original", {})[output.name] = [round(float(value), _DIGITS) for value in row]

    def _worst_pixel(self, frame: Frame, field: Field, sources: dict[str, str | None], clean: Answer, seed: Sequence[int]) -> Row:
        """The entry of the worst changed pixel: by output the answer farthest from the clean one, another decision first."""
        worst: Answer = dict(clean)
        order: dict[str, tuple[bool, float]] = dict.fromkeys(clean, (False, -1.0))
        found: Row = {"change": PIXEL, "level": self._plan.pixels, "values": worst, "problem": None, "degraded": None}
        try:
            for answer in self._one_pixel_answers(frame, field, sources, seed):
                for output in self._pipeline.card.outputs:
                    rank = _rank(clean[output.name], answer[output.name], output)
                    if rank > order[output.name]:
                        order[output.name], worst[output.name] = rank, answer[output.name]
        except (NotFundusError, EyeError) as error:
            found["problem"] = " ".join(str(error).split())
        return found

    def _one_pixel_answers(
        self, frame: Frame, field: Field, sources: dict[str, str | None], seed: Sequence[int]
    ) -> Iterator[Answer]:
        waiting: list[Prepared] = []
        for changed, _ in with_one_pixel(frame, field, self._plan.pixels, list(seed)):
            waiting.append(self._pipeline.prepare(changed, sources))
            if len(waiting) == _TOGETHER:
                yield from self._finished(waiting)
                waiting = []
        yield from self._finished(waiting)

    def _finished(self, pictures: list[Prepared]) -> Iterator[Answer]:
        for result in self._pipeline.finish(pictures) if pictures else ():
            if isinstance(result, EyeError):
                raise result
            yield self._values(result)


def watch_for(pipeline: Pipeline, backend: str, device: str) -> Pipeline | None:
    """The acquisition model beside an examined file; None where that is the acquisition model itself."""
    return None if pipeline.card.name == ACQUISITION else Pipeline(ACQUISITION, backend, device)


def _row_of(prediction: Prediction, output: OutputSpec) -> list[float]:
    """The values of one output in the card's order; for two classes the probability of the second label alone."""
    if prediction.probabilities is None or output.task == "binary":
        return [round(prediction.value, _DIGITS)]
    return [round(prediction.probabilities[label], _DIGITS) for label in output.labels]


def _rank(clean: list[float], answer: list[float], output: OutputSpec) -> tuple[bool, float]:
    """Whether an answer is decided otherwise, and its largest difference from the clean one."""
    both = np.array([clean, answer])
    said = decisions(both, output)
    return len(set(said)) > 1, float(np.abs(both[1] - both[0]).max())
