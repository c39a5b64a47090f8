"""The example photographs as this device sees them, and as they were seen when the package was made."""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fundus_rt.models.artifacts import sha256_of_bytes
from fundus_rt.models.card import ModelCard
from fundus_rt.models.registry import EXAMPLE_FOLDER
from fundus_rt.runtime.decode import decode
from fundus_rt.runtime.field_of_view import find_field_of_view
from fundus_rt.runtime.preprocess import tensor_from_box, tensor_from_frame
from fundus_rt.runtime.session import Box

REFERENCE_FILE = EXAMPLE_FOLDER / "acquisition_answers.json"
"""By photograph: hash and some values of its frame and of the bundled model's tensor, the crop of that, and the model's answers.
Written by ``python -m fundus_rt.benchmarks.make_example_answers``."""
SAMPLES = 256
"""Pixels of a frame or tensor whose values are stored."""


@dataclass(frozen=True)
class Example:
    """One photograph of the package."""

    name: str
    content: bytes


def examples() -> list[Example]:
    """The package's photographs, by name."""
    return [Example(path.stem, path.read_bytes()) for path in sorted(EXAMPLE_FOLDER.glob("*.jpg"))]


@functools.lru_cache(maxsize=1)
def reference() -> dict[str, Any]:
    """What `REFERENCE_FILE` holds: ``versions``, ``photographs``."""
    found: dict[str, Any] = json.loads(Path(REFERENCE_FILE).read_text(encoding="utf-8"))
    return found


def fingerprint(pixels: NDArray[Any]) -> dict[str, Any]:
    """Shape, SHA-256 and some values of a picture [H, W, 3]; by the values, two devices' pictures can be compared in levels."""
    return {
        "shape": list(pixels.shape),
        "sha256": sha256_of_bytes(np.ascontiguousarray(pixels).tobytes()),
        "values": sampled(pixels).tolist(),
    }


def sampled(pixels: NDArray[Any]) -> NDArray[Any]:
    """`SAMPLES` pixels spread over a picture [H, W, 3] by Knuth's multiplicative hash; [SAMPLES, 3]."""
    flat = pixels.reshape(-1, 3)
    return np.asarray(flat[np.arange(SAMPLES, dtype=np.uint64) * np.uint64(2654435761) % np.uint64(len(flat))])


def tensor_of(content: bytes, card: ModelCard) -> NDArray[Any]:
    """The network's input for a photograph that is not mirrored, [H, W, 3]."""
    frame = decode(content).frame
    return tensor_from_frame(frame, find_field_of_view(frame), card.preprocessing)


def tensor_in_box(content: bytes, box: Box, card: ModelCard) -> NDArray[Any]:
    """The network's input for a stated crop of a photograph, [H, W, 3]: nothing but decoding and resizing decides about it."""
    return tensor_from_box(decode(content).frame, box, card.preprocessing, False)


def levels_apart(pixels: NDArray[Any], stored: dict[str, Any]) -> dict[str, Any]:
    """How far a picture is from a stored fingerprint: ``same`` to the last bit; largest and mean difference in grey levels.

    Raises:
        ValueError: a picture of another size.
    """
    if list(pixels.shape) != stored["shape"]:
        raise ValueError(f"the picture is {list(pixels.shape)}, expected {stored['shape']}")
    if fingerprint(pixels)["sha256"] == stored["sha256"]:
        return {"same": True, "largest_levels": 0.0, "mean_levels": 0.0}
    difference = np.abs(sampled(pixels).astype(np.float64) - np.asarray(stored["values"], np.float64))
    return {"same": False, "largest_levels": float(difference.max()), "mean_levels": round(float(difference.mean()), 4)}
