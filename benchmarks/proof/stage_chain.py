"""One photograph taken from its author's pipeline to ours, one stage after the other."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from fundus_rt.benchmarks.proof.file_normalisation import (
    IDENTITY,
    PixelMap,
    beginning_of,
    pixel_map_of_cards,
    pixel_map_of_graphs,
)
from fundus_rt.benchmarks.proof.graph_runs import GraphSession, has_half, has_integers, with_float_frames
from fundus_rt.benchmarks.proof.half_precision import emulated_half, require_rounding
from fundus_rt.benchmarks.proof.original import OriginalModel
from fundus_rt.benchmarks.proof.photographs import Case, author_frame, photograph_of
from fundus_rt.converters.backends import require
from fundus_rt.converters.original_preprocessing import Photograph, normalised
from fundus_rt.models.card import ModelCard, PreprocessingSpec
from fundus_rt.models.errors import UsageError
from fundus_rt.runtime import decode, field_of_view, preprocess
from fundus_rt.runtime.agreement import ROUNDING, values_in_unit
from fundus_rt.runtime.session import Session

PIPELINE = "pipeline"
"""The rest: what a user's call answers less what its own parts, called one by one, come to."""
STAGES = ("decode", "field of view", "mirror", "resize", "normalisation", "fp32 graph", "lower precision", "engine", PIPELINE)
"""In the order in which a photograph meets them."""

Values = dict[str, NDArray[np.float64]]
"""By output: [columns], in the output's unit."""


@dataclass(frozen=True)
class Links:
    """The answers to one photograph along the chain."""

    states: tuple[Values, ...]
    """The whole of the author's pipeline first, then with each of `STAGES` replaced by ours, in turn."""
    alone: dict[str, Values]
    """By stage: the difference where only this one is ours. Empty where that was not asked for."""


@dataclass(frozen=True)
class _Ours:
    """What the runtime makes of a photograph."""

    frame: NDArray[np.uint8]
    box: tuple[int, int, int, int]
    mirror: bool
    tensor: NDArray[Any]


class Chain:
    """Both ends of the chain, and everything between them, opened once."""

    def __init__(
        self, original: OriginalModel, session: Session, onnx_file: Path | None, alone: bool = True, threads: int | None = None
    ) -> None:
        """Open what lies between.

        Args:
            original: the checkpoint in its framework.
            session: the shipped file as the runtime opens it.
            onnx_file: the ``.onnx`` that `session` runs or was built from; None where there is only an engine.
            alone: also see what each stage does by itself.
            threads: of one run of a graph.

        Raises:
            UsageError: the two cards are of networks with other inputs or outputs.
        """
        self._original, self._session, self._alone, self._threads = original, session, alone, threads
        self.card: ModelCard = session.card
        self._author: ModelCard = original.card
        _require_alike(self.card, self._author)
        self._model: Any = require("onnx").load(str(onnx_file)) if onnx_file is not None else None
        self.half = self._model is not None and has_half(self._model)
        self.reduced = self.half or (self._model is not None and has_integers(self._model))
        backend = session.backend
        self.on_cpu = backend.name == "onnxruntime" and backend.provider in ("", "CPUExecutionProvider")
        if self.half:
            require_rounding()
        self.notes: dict[str, None] = {}
        """What a reader should know of how it was done, in the order in which it came up."""
        self._map: PixelMap | None = None
        self._opened: dict[str, GraphSession] = {}
        self._tensors: dict[Photograph, NDArray[np.float32]] = {}
        self._known: dict[tuple[str, bytes], Values] = {}

    def links(self, case: Case, row: Mapping[str, NDArray[Any]] | None = None) -> Links:
        """The chain of one photograph.

        Args:
            case: the photograph.
            row: by output, float32 [columns]: what a user's call answered; None where nobody called, and its stage is empty.

        Raises:
            FundusRtError: it cannot be decoded or is no fundus photograph, its eye is not known where a side mirrors left eyes,
                or the session stopped.
        """
        self._known.clear()
        self._tensors.clear()
        spec = self._author.preprocessing
        photograph = photograph_of(case, self._author)
        ours = self._ours(case)
        theirs_frame = author_frame(photograph.content, spec)
        content = photograph.content if np.array_equal(theirs_frame, ours.frame) else _png(ours.frame)
        mirrored = self._really_mirrored(ours, content)
        tensors = [self._author_tensor(photograph)]
        for box, mirror in ((photograph.box, photograph.mirror), (ours.box, photograph.mirror), (ours.box, mirrored)):
            tensors.append(self._author_tensor(Photograph(content, box, mirror)))
        tensors.append(self._normalised(ours.tensor))
        states = [self._framework(tensor) for tensor in tensors]
        mapped = self._pixel_map(ours.tensor, states[-1])
        states.append(states[-1] if mapped is IDENTITY else self._framework(self._normalised(mapped(ours.tensor))))
        states.append(self._graph(ours.tensor, mapped))
        session = None if self.half and self.on_cpu and row is None else self._answered(ours.tensor)
        answered = None if self.half and self.on_cpu else session
        states.append(self._lower(ours.tensor, states[-1], answered))
        states.append(states[-1] if answered is None else answered)
        states.append(states[-1] if row is None or session is None else self._called(row, session, states[-1]))
        alone = self._each_alone(photograph, theirs_frame, ours, content, mirrored, states, mapped) if self._alone else {}
        return Links(tuple(states), alone)

    def _ours(self, case: Case) -> _Ours:
        """The runtime's own functions, each by its module, so that what it really does is what is measured."""
        decoded = decode.decode(case.content)
        view = field_of_view.find_field_of_view(decoded.frame)
        box = preprocess.crop_box(view, decoded.frame.shape, self.card.preprocessing)
        mirror = self.card.laterality == "mirror-left" and (case.eye or decoded.eye) == "left"
        tensor = preprocess.tensor_from_box(decoded.frame, box, self.card.preprocessing, mirror)
        return _Ours(decoded.frame, box, mirror, tensor)

    def _really_mirrored(self, ours: _Ours, content: bytes) -> bool:
        """Whether the runtime's tensor shows the picture mirrored: what it was told to do is not asked."""
        apart = []
        for mirror in (ours.mirror, not ours.mirror):
            tensor = self._author_tensor(Photograph(content, ours.box, mirror))
            apart.append(float(np.abs(grey_levels(tensor, self._author.preprocessing) - ours.tensor).mean()))
            if apart[0] < 1.0:
                return ours.mirror
        return ours.mirror if apart[0] <= apart[1] else not ours.mirror

    def _pixel_map(self, tensor: NDArray[Any], framework: Values) -> PixelMap:
        """What the file's graph does to grey levels; looked for only where its answers differ from the framework's."""
        if self._map is not None:
            return self._map
        if self._model is not None and not self.reduced and not _apart(self._file(tensor), framework):
            return IDENTITY
        found = None
        if self._model is not None:
            found = pixel_map_of_graphs(beginning_of(self._model), beginning_of(self._original.export()))
        if found is None:
            why = "are not the checkpoint's" if self._model is not None else "are in an engine"
            self._note(
                f"The weights of the file's first operator {why}, so what it does to grey levels cannot be read from them: its "
                "normalisation is taken from its own card."
            )
            found = pixel_map_of_cards(self.card.preprocessing, self._author.preprocessing)
        if found.largest_change() == 0.0:
            found = IDENTITY
        else:
            self._note(
                f"By its {found.source}, the file normalises with {found.describe(self._author.preprocessing)}; the original "
                f"with {IDENTITY.describe(self._author.preprocessing)} (values from 0 to 1)."
            )
        self._map = found
        return found

    def _graph(self, tensor: NDArray[Any], mapped: PixelMap) -> Values:
        """The fp32 graph: the file itself where it is one, else a fresh export, given the same normalised pixels."""
        if self._model is not None and not self.reduced:
            return self._file(tensor)
        return self._run("fresh", lambda: with_float_frames(self._original.export()), mapped(tensor))

    def _lower(self, tensor: NDArray[Any], fp32: Values, answered: Values | None) -> Values:
        if not self.reduced:
            return fp32
        if not self.half:
            return self._file(tensor)
        emulated = self._run("emulated", lambda: with_float_frames(emulated_half(self._model)), tensor.astype(np.float32))
        finite = all(np.isfinite(values).all() for values in emulated.values())
        if finite or answered is None:
            self._note(
                "Half precision is judged by an emulation on the CPU that rounds every tensor, inside norms, softmax and sums "
                "too: a GPU's kernels may keep float32 there and be nearer."
                + (" What the CPU itself answers says nothing of it and is left out." if self.on_cpu else "")
            )
            return emulated
        self._note(
            "Emulated in half precision with every step rounded, the file overflows; the engine does not, so here the lower "
            "precision is only that of the file's stored weights, and what its arithmetic adds is counted with the engine."
        )
        return self._file(tensor)

    def _each_alone(
        self,
        photograph: Photograph,
        frame: NDArray[np.uint8],
        ours: _Ours,
        content: bytes,
        mirrored: bool,
        states: list[Values],
        mapped: PixelMap,
    ) -> dict[str, Values]:
        """The difference that each stage makes where every other one is the author's."""
        spec, first = self._author.preprocessing, states[0]
        resized = preprocess.tensor_from_box(frame, photograph.box, self.card.preprocessing, photograph.mirror)
        levels = grey_levels(self._author_tensor(photograph), spec)
        swapped = {
            "decode": Photograph(content, photograph.box, photograph.mirror),
            "field of view": Photograph(photograph.content, ours.box, photograph.mirror),
            "mirror": Photograph(photograph.content, photograph.box, mirrored),
        }
        answers = {stage: self._framework(self._author_tensor(one)) for stage, one in swapped.items()}
        answers["resize"] = self._framework(self._normalised(resized))
        answers["normalisation"] = first if mapped is IDENTITY else self._framework(self._normalised(mapped(levels)))
        alone = {stage: _less(values, first) for stage, values in answers.items()}
        seen = mapped.back(levels)
        if self._model is not None and not self.reduced:
            fp32 = self._run("float file", lambda: with_float_frames(self._model), seen)
        else:
            fp32 = self._run("fresh", lambda: with_float_frames(self._original.export()), levels)
        alone["fp32 graph"] = _less(fp32, first)
        lower = fp32
        if self.half:
            lower = self._run("emulated", lambda: with_float_frames(emulated_half(self._model)), seen)
        elif self.reduced:
            lower = self._run("float file", lambda: with_float_frames(self._model), seen)
        alone["lower precision"] = _less(lower, fp32)
        for place, stage in ((-2, "engine"), (-1, PIPELINE)):  # they take no other frames than the runtime's
            alone[stage] = _less(states[place], states[place - 1])
        return alone

    def _author_tensor(self, photograph: Photograph) -> NDArray[np.float32]:
        """float32 [H, W, 3] as the author's libraries make it."""
        if photograph not in self._tensors:
            self._tensors[photograph] = np.asarray(self._original.inputs([photograph]).images[0], np.float32)
        return self._tensors[photograph]

    def _normalised(self, levels: NDArray[Any]) -> NDArray[np.float32]:
        """BGR grey levels [H, W, 3] normalised as the author does it."""
        made = normalised(levels[None, ..., ::-1], self._author.preprocessing, self._original.framework)
        return np.asarray(made[0], np.float32)

    def _framework(self, tensor: NDArray[np.float32]) -> Values:
        return self._once("framework", tensor, lambda: self._in_unit(self._original.answers(tensor[None]), self._author))

    def _file(self, tensor: NDArray[Any]) -> Values:
        """The file on ONNX Runtime's CPU, opened apart from the session."""
        return self._run("file", lambda: self._model, tensor)

    def _answered(self, tensor: NDArray[Any]) -> Values:
        return self._in_unit(self._session.run(np.ascontiguousarray(tensor[None])), self.card)

    def _called(self, row: Mapping[str, NDArray[Any]], session: Values, last: Values) -> Values:
        """The end of the chain as a user's call gives it. Where half precision is emulated, the call answered in float32 and is
        held against the session, which did the same."""
        called = self._in_unit({name: numbers[None] for name, numbers in row.items()}, self.card)
        if last is session:
            return called
        rest = _less(called, session)
        return {name: last[name] + rest[name] for name in last}

    def _run(self, name: str, model: Callable[[], Any], tensor: NDArray[Any]) -> Values:
        if name not in self._opened:
            self._opened[name] = GraphSession(model(), optimised=name != "emulated", threads=self._threads)
        session = self._opened[name]
        return self._once(name, tensor, lambda: self._in_unit(session.run(np.ascontiguousarray(tensor[None])), self.card))

    def _once(self, name: str, tensor: NDArray[Any], answer: Callable[[], Values]) -> Values:
        """An answer to a tensor of this photograph that was asked for before is kept: most stages change nothing."""
        key = name, hashlib.sha256(tensor.tobytes()).digest()
        if key not in self._known:
            self._known[key] = answer()
        return self._known[key]

    def _in_unit(self, rows: Mapping[str, NDArray[Any]], card: ModelCard) -> Values:
        """Values of the outputs that the original has."""
        wanted = {output.name for output in self._author.outputs}
        return {output.name: values_in_unit(rows[output.name], output)[0] for output in card.outputs if output.name in wanted}

    def _note(self, sentence: str) -> None:
        self.notes.setdefault(sentence)


def _require_alike(file: ModelCard, author: ModelCard) -> None:
    if file.preprocessing.input_size != author.preprocessing.input_size:
        raise UsageError(
            f"the file takes pictures of {file.preprocessing.input_size} pixels, the checkpoint's card says "
            f"{author.preprocessing.input_size}; give the card of the same network"
        )
    names = [output.name for output in author.outputs]
    if [output.name for output in file.outputs] != names:
        raise UsageError(
            f"the file answers {[o.name for o in file.outputs]}, the checkpoint's card {names}; give the card of the file"
        )


def grey_levels(tensor: NDArray[np.float32], spec: PreprocessingSpec) -> NDArray[np.float32]:
    """Grey levels [H, W, 3] in BGR behind a normalised tensor; whole numbers where the card's filter rounds."""
    levels = (tensor.astype(np.float64) * np.array(spec.std) + np.array(spec.mean)) / spec.scale
    levels = np.rint(levels) if spec.input_dtype == "uint8" else levels
    return np.ascontiguousarray(levels[..., ::-1] if spec.color_order == "RGB" else levels, np.float32)


def _apart(found: Values, expected: Values) -> bool:
    """Whether answers differ by more than float32's rounding."""
    return any(
        not np.abs(found[name] - values).max() <= ROUNDING * max(float(np.abs(values).max()), 1e-30)
        for name, values in expected.items()
    )


def _less(values: Values, others: Values) -> Values:
    with np.errstate(invalid="ignore"):
        return {name: values[name] - others[name] for name in values}


def _png(frame: NDArray[np.uint8]) -> bytes:
    """A frame as a file that every library decodes to the same values."""
    return bytes(cv2.imencode(".png", frame, [cv2.IMWRITE_PNG_COMPRESSION, 1])[1])
