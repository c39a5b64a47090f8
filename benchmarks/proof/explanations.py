"""Which single mistake would explain the answers: each is made on purpose with the original, and its answers are compared.

A stage says where a difference arises; this says what was done there. A mistake is named only where it brings the difference
down by a factor of `FACTOR`, or to rounding; where several do so alike, all are named, for the answers do not tell them apart.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fundus_rt.benchmarks.proof.original import OriginalModel
from fundus_rt.benchmarks.proof.photographs import author_frame
from fundus_rt.benchmarks.proof.stage_chain import grey_levels
from fundus_rt.converters.original_preprocessing import Photograph, normalised, original_inputs
from fundus_rt.models.card import INTERPOLATIONS, OutputSpec, PreprocessingSpec
from fundus_rt.models.errors import UsageError
from fundus_rt.runtime.agreement import ROUNDING, values_in_unit
from fundus_rt.runtime.field_of_view import find_field_of_view
from fundus_rt.runtime.preprocess import crop_box

FACTOR = 20.0
"""By which a mistake has to bring the mean difference down to be named."""
ALIKE = 3.0
"""Mistakes whose remaining differences are within this factor of the least explain the answers alike."""

Rows = Mapping[str, NDArray[Any]]
Numbers = tuple[float, tuple[float, ...], tuple[float, ...]]

NORMALISATIONS: dict[str, Numbers] = {
    "ImageNet's mean and deviation": (1 / 255, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "values from -1 to 1": (1 / 127.5, (1.0, 1.0, 1.0), (1.0, 1.0, 1.0)),
    "values from 0 to 1": (1 / 255, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
    "grey levels as they are": (1.0, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
    "ImageNet's mean in grey levels": (1.0, (123.68, 116.779, 103.939), (1.0, 1.0, 1.0)),
    "CLIP's mean and deviation": (1 / 255, (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
    "VisionFM's mean and deviation": (1 / 255, (0.424, 0.261, 0.128), (0.295, 0.202, 0.137)),
    "the Fundus Image Toolbox's mean and deviation": (1 / 255, (0.387, 0.241, 0.136), (0.325, 0.217, 0.158)),
    "ImageNet's mean and the root of its deviation": (1 / 255, (0.485, 0.456, 0.406), (0.47854, 0.47329, 0.47434)),
}
"""Scale, mean and deviation in RGB that networks in use were trained with, or are given by mistake (the last one is what
keras.applications' EfficientNet does to ImageNet's numbers, tensorflow#49930)."""


@dataclass(frozen=True)
class Explanation:
    """One mistake that explains the answers."""

    mistake: str
    """Completes the sentence "the file answers as if ..."."""
    before: float
    """Mean difference to the original, in the network's own numbers."""
    after: float
    """The same to the original with this mistake made."""

    def __str__(self) -> str:
        if self.after <= 0:
            return f"The file answers exactly as if {self.mistake}."
        return f"The file answers as if {self.mistake}: that leaves 1/{self.before / self.after:,.0f} of the difference."


@dataclass(frozen=True)
class _Way:
    """One mistake: what it is and the answers that it leads to, by output."""

    mistake: str
    answers: Callable[[], Rows]


def explanations(
    original: OriginalModel,
    photographs: Sequence[Photograph],
    found: Rows,
    reference: Rows | None = None,
    progress: Callable[[str], None] | None = None,
) -> tuple[Explanation, ...]:
    """Find the single mistakes that would lead from the original to the answers that were found.

    Args:
        original: the checkpoint in its framework.
        photographs: on their author's way, in the order in which they were answered; a sample of ten or so is enough.
        found: float32 [N, columns] by output: what the shipped file answered, before any activation.
        reference: the original's answers; None to ask for them.
        progress: called with one sentence for each mistake that is tried.

    Returns:
        The mistakes that explain the answers alike, the nearest first; empty where none does or nothing has to be explained.

    Raises:
        UsageError: as many answers as photographs are expected.
    """
    names = [output.name for output in original.card.outputs if output.name in found]
    if not photographs or any(len(found[name]) != len(photographs) for name in names):
        raise UsageError(
            f"got {[len(found[name]) for name in names]} answers for {len(photographs)} photographs; give one for each"
        )
    if not all(np.isfinite(found[name]).all() for name in names):
        return ()
    right = _answers(original, photographs, original.card.preprocessing) if reference is None else reference
    rounding = ROUNDING * max(float(np.abs(right[name]).max()) for name in names)
    before = _distance(found, right, names)
    if before <= rounding:
        return ()
    tried = []
    for way in _ways(original, photographs, right, found):
        if progress is not None:
            progress(f"trying whether {way.mistake}")
        after = _distance(found, way.answers(), names)
        if after <= max(before / FACTOR, rounding):
            tried.append(Explanation(way.mistake, before, after))
    tried.sort(key=lambda explanation: explanation.after)
    return tuple(one for one in tried if one.after <= max(ALIKE * tried[0].after, rounding))


def sentences(explained: Sequence[Explanation]) -> tuple[str, ...]:
    """For the reader; says so where several mistakes explain the answers alike."""
    if len(explained) < 2:
        return tuple(str(explanation) for explanation in explained)
    return (
        f"{len(explained)} mistakes explain the answers alike, and these photographs do not tell them apart:",
        *(str(explanation) for explanation in explained),
    )


def _ways(original: OriginalModel, whole: Sequence[Photograph], right: Rows, found: Rows) -> Iterator[_Way]:
    spec = original.card.preprocessing
    photographs = [_cut_out(photograph, spec) for photograph in whole]  # decoded once, not for each mistake

    levels = [grey_levels(original.inputs([photograph]).images[0], spec) for photograph in photographs]

    def with_numbers(mistake: str, changed: PreprocessingSpec) -> _Way:
        return _Way(mistake, lambda: _answers_to_levels(original, levels, changed))

    def with_spec(mistake: str, changed: PreprocessingSpec) -> _Way:
        return _Way(mistake, lambda: _answers(original, photographs, changed))

    def with_photographs(mistake: str, changed: Sequence[Photograph]) -> _Way:
        return _Way(mistake, lambda: _answers(original, changed, spec))

    yield from _other_answers(original.card.outputs, right, found)
    order = "BGR" if spec.color_order == "RGB" else "RGB"
    yield with_numbers("red and blue were swapped", dataclasses.replace(spec, color_order=order))
    for name, changed in _other_normalisations(spec):
        yield with_numbers(f"pixels were normalised to {name}", changed)
    own = original.framework in ("keras", "tensorflow")  # TensorFlow's filters are no others' mistake, and cost its import
    for interpolation in INTERPOLATIONS:
        if interpolation != spec.interpolation and (own or not interpolation.startswith("tf-")):
            changed = dataclasses.replace(spec, interpolation=interpolation)
            yield with_spec(f"photographs were resized with {interpolation}, not {spec.interpolation}", changed)
    turned = [dataclasses.replace(photograph, mirror=not photograph.mirror) for photograph in photographs]
    if any(photograph.mirror for photograph in photographs):
        never = [dataclasses.replace(photograph, mirror=False) for photograph in photographs]
        yield with_photographs("left eyes were not mirrored", never)
    if not all(photograph.mirror for photograph in photographs):
        yield with_photographs("every photograph was mirrored", [dataclasses.replace(p, mirror=True) for p in photographs])
    if 0 < sum(photograph.mirror for photograph in photographs) < len(photographs):
        yield with_photographs("the other eyes were mirrored", turned)
    for crop_mode, words in (
        ("none", "the whole picture was taken"),
        ("center", "the middle of the picture was taken"),
        ("field-of-view", "the field of view was cut out"),
    ):
        if crop_mode != spec.crop_mode:
            yield with_photographs(words, _cropped(whole, dataclasses.replace(spec, crop_mode=crop_mode)))
    yield with_photographs("photographs were upside down", [_upside_down(photograph, spec) for photograph in photographs])


def _other_answers(outputs: Sequence[OutputSpec], right: Rows, found: Rows) -> Iterator[_Way]:
    """Mistakes after the network."""
    if len(next(iter(right.values()))) > 2:
        # what came before the first photograph, or after the last, is not known: there the answer found stands for it
        before = {name: np.concatenate([found[name][:1], rows[:-1]]) for name, rows in right.items()}
        after = {name: np.concatenate([rows[1:], found[name][-1:]]) for name, rows in right.items()}
        yield _Way("each answer were the previous photograph's", lambda: before)
        yield _Way("each answer were the next photograph's", lambda: after)
        yield _Way("each answer were the first photograph's", lambda: {n: np.repeat(r[:1], len(r), 0) for n, r in right.items()})
        yield _Way("the photographs were answered in reverse order", lambda: {n: rows[::-1] for n, rows in right.items()})
    if any(rows.shape[1] == 2 for rows in right.values()):
        yield _Way("the two classes were exchanged", lambda: {n: r[:, ::-1] if r.shape[1] == 2 else r for n, r in right.items()})
    if any(output.activation in ("sigmoid", "softmax") for output in outputs):
        active = {output.name: values_in_unit(right[output.name], output) for output in outputs if output.name in right}
        yield _Way("the activation were applied twice", lambda: active)


def _other_normalisations(spec: PreprocessingSpec) -> Iterator[tuple[str, PreprocessingSpec]]:
    """Every other normalisation in use, in the network's own colour order."""
    here = spec.scale / np.array(spec.std), -np.array(spec.mean) / np.array(spec.std)
    turn = slice(None) if spec.color_order == "RGB" else slice(None, None, -1)
    for name, (scale, mean, std) in NORMALISATIONS.items():
        own_mean, own_std = mean[turn], std[turn]
        there = scale / np.array(own_std), -np.array(own_mean) / np.array(own_std)
        if not all(np.allclose(one, other, rtol=1e-3, atol=1e-6) for one, other in zip(here, there, strict=True)):
            mean_of_three, std_of_three = (own_mean[0], own_mean[1], own_mean[2]), (own_std[0], own_std[1], own_std[2])
            yield name, dataclasses.replace(spec, scale=scale, mean=mean_of_three, std=std_of_three)


def _answers(original: OriginalModel, photographs: Sequence[Photograph], spec: PreprocessingSpec) -> Rows:
    """The original's answers with a changed preprocessing, one photograph after the other."""
    rows: dict[str, list[NDArray[Any]]] = {}
    for photograph in photographs:
        inputs = original_inputs([photograph], spec, original.framework)
        for name, row in original.answers(inputs.images).items():
            rows.setdefault(name, []).append(row)
    return {name: np.concatenate(parts) for name, parts in rows.items()}


def _answers_to_levels(original: OriginalModel, levels: Sequence[NDArray[np.float32]], spec: PreprocessingSpec) -> Rows:
    """The original's answers to resized pictures [H, W, 3] in BGR with another normalisation."""
    rows: dict[str, list[NDArray[Any]]] = {}
    for picture in levels:
        tensor = normalised(picture[None, ..., ::-1], spec, original.framework)
        for name, row in original.answers(tensor).items():
            rows.setdefault(name, []).append(row)
    return {name: np.concatenate(parts) for name, parts in rows.items()}


def _cropped(photographs: Sequence[Photograph], spec: PreprocessingSpec) -> list[Photograph]:
    found = []
    for photograph in photographs:
        frame = author_frame(photograph.content, spec)
        found.append(dataclasses.replace(photograph, box=crop_box(find_field_of_view(frame), frame.shape, spec)))
    return found


def _cut_out(photograph: Photograph, spec: PreprocessingSpec) -> Photograph:
    """What the network sees of a photograph, black beyond the picture, in a file that is decoded at once (PPM)."""
    frame = author_frame(photograph.content, spec)
    left, top, right, bottom = photograph.box
    height, width = frame.shape[:2]
    picture = np.zeros((bottom - top, right - left, 3), np.uint8)
    seen = frame[max(top, 0) : min(bottom, height), max(left, 0) : min(right, width)]
    down, across = max(-top, 0), max(-left, 0)
    picture[down : down + seen.shape[0], across : across + seen.shape[1]] = seen
    return _photograph_from(picture, photograph.mirror)


def _upside_down(photograph: Photograph, spec: PreprocessingSpec) -> Photograph:
    return _photograph_from(author_frame(photograph.content, spec)[::-1, ::-1], photograph.mirror)


def _photograph_from(picture: NDArray[np.uint8], mirror: bool) -> Photograph:
    """The whole of a picture [H, W, 3] in BGR."""
    height, width = picture.shape[:2]
    content = b"P6\n%d %d\n255\n" % (width, height) + np.ascontiguousarray(picture[..., ::-1]).tobytes()
    return Photograph(content, (0, 0, width, height), mirror)


def _distance(found: Rows, expected: Rows, names: Sequence[str]) -> float:
    """Mean difference of the network's own numbers; infinite where a side is not finite."""
    sides = [(np.asarray(found[name], np.float64), np.asarray(expected[name], np.float64)) for name in names]
    if not all(np.isfinite(other).all() and one.shape == other.shape for one, other in sides):
        return float("inf")
    return float(np.mean([np.abs(one - other).mean() for one, other in sides]))
