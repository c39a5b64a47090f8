"""Other preprocessings that an author may have used, where a card's is assumed."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fundus_rt.models.card import CROP_MODES, ModelCard, PreprocessingSpec
from fundus_rt.models.errors import UsageError

FILTERS = ("pillow-bilinear", "pillow-bicubic", "opencv-linear", "opencv-area", "tf-bilinear", "keras-nearest")
"""The filters that training code takes by default: torchvision, timm, OpenCV, cofe-Net's kind, tf.image, Keras' `load_img`."""
Normalisation = tuple[float, tuple[float, float, float], tuple[float, float, float]]
NORMALISATIONS: dict[str, Normalisation] = {
    "ImageNet mean and deviation": (1 / 255, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "values from -1 to 1": (1 / 127.5, (1.0, 1.0, 1.0), (1.0, 1.0, 1.0)),
    "values from 0 to 1": (1 / 255, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
    "values from 0 to 255": (1.0, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
}
"""Scale, mean and deviation of torchvision and timm, of Keras' mode ``tf``, of `ToTensor` alone, and of networks that scale by
themselves."""
CAFFE: Normalisation = (1.0, (103.939, 116.779, 123.68), (1.0, 1.0, 1.0))
"""Keras' mode ``caffe``, which is BGR (`keras.applications.imagenet_utils`)."""
FIELDS = ("crop_mode", "interpolation", "color_order", "normalisation", "laterality")
"""What a candidate can change; ``normalisation`` is scale, mean and std together."""


@dataclass(frozen=True)
class Candidate:
    """One way from a photograph to the network."""

    name: str
    """What it changes of the card's, in words; ``the card's own`` for none."""
    spec: PreprocessingSpec
    laterality: str

    @property
    def identity(self) -> tuple[object, ...]:
        """Equal for two candidates that do the same."""
        spec = self.spec
        return (spec.crop_mode, spec.interpolation, spec.color_order, spec.scale, spec.mean, spec.std, self.laterality)


def card_candidate(card: ModelCard) -> Candidate:
    """What the card says."""
    return Candidate("the card's own", card.preprocessing, card.laterality)


def assumed_fields(card: ModelCard) -> tuple[str, ...]:
    """Those of `FIELDS` that the card assumes."""
    found: list[str] = [name for name in ("crop_mode", "interpolation", "color_order") if name in card.preprocessing.assumed]
    if {"scale", "mean", "std"} & set(card.preprocessing.assumed):
        found.append("normalisation")
    return tuple(found)


def neighbours(base: Candidate, fields: Iterable[str]) -> list[Candidate]:
    """Every candidate that differs from `base` in one thing.

    Args:
        base: what is changed.
        fields: of `FIELDS`, what may be changed.

    Raises:
        UsageError: a field that is none.
    """
    wrong = [name for name in fields if name not in FIELDS]
    if wrong:
        raise UsageError(f"a preprocessing has no {', '.join(wrong)} to try; expected some of {', '.join(FIELDS)}")
    found = [candidate for name in FIELDS if name in fields for candidate in _changed(base, name)]
    return [candidate for candidate in distinct(found) if candidate.identity != base.identity]


def distinct(candidates: Iterable[Candidate]) -> list[Candidate]:
    """Each once, the first name of those that do the same."""
    return list({candidate.identity: candidate for candidate in reversed(list(candidates))}.values())[::-1]


def fed_tensor(levels: NDArray[np.generic], candidate: PreprocessingSpec, own: PreprocessingSpec) -> NDArray[np.float32]:
    """What a shipped file has to be fed so that its network sees another colour order and normalisation than the file's own.

    The file computes ``(x * scale - mean) / std`` with its own numbers; this is that, solved for x. Exact but for float32.

    Args:
        levels: [H, W, 3], BGR, grey levels 0 to 255, cropped and resized as the candidate says.
        candidate: colour order, scale, mean and std that the network is to see.
        own: those of the file.

    Returns:
        float32 [H, W, 3], in the BGR places of the file.
    """
    if _normalisation(candidate) == _normalisation(own) and candidate.color_order == own.color_order:
        return np.ascontiguousarray(levels, np.float32)
    ordered = np.asarray(levels, np.float64)
    ordered = ordered[..., ::-1] if candidate.color_order == "RGB" else ordered
    seen = (ordered * candidate.scale - np.asarray(candidate.mean)) / np.asarray(candidate.std)
    fed = (seen * np.asarray(own.std) + np.asarray(own.mean)) / own.scale
    return np.ascontiguousarray(fed[..., ::-1] if own.color_order == "RGB" else fed, np.float32)


def _normalisation(spec: PreprocessingSpec) -> Normalisation:
    return spec.scale, tuple(spec.mean), tuple(spec.std)  # type: ignore[return-value]


def _changed(base: Candidate, field: str) -> list[Candidate]:
    spec = base.spec
    if field == "crop_mode":
        return [_with(base, f"crop {mode}", crop_mode=mode) for mode in CROP_MODES]
    if field == "interpolation":
        return [_with(base, f"resize {name}", interpolation=name) for name in FILTERS]
    if field == "color_order":
        return [_with(base, "red and blue swapped", color_order="BGR" if spec.color_order == "RGB" else "RGB")]
    if field == "laterality":
        other = "none" if base.laterality == "mirror-left" else "mirror-left"
        words = "left eyes mirrored" if other == "mirror-left" else "left eyes not mirrored"
        return [Candidate(_joined(base, words), spec, other)]
    scaled = [_normalised(base, words, numbers) for words, numbers in NORMALISATIONS.items()]
    return [*scaled, _normalised(base, "BGR less Caffe's means", CAFFE, color_order="BGR")]


def _normalised(base: Candidate, words: str, numbers: Normalisation, **changes: str) -> Candidate:
    scale, mean, std = numbers
    return _with(base, words, scale=scale, mean=mean, std=std, **changes)


def _with(base: Candidate, words: str, **changes: object) -> Candidate:
    return Candidate(_joined(base, words), dataclasses.replace(base.spec, **changes), base.laterality)  # type: ignore[arg-type]


def _joined(base: Candidate, words: str) -> str:
    return words if base.name == "the card's own" else f"{base.name}, {words}"
