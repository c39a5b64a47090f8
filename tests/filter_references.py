"""What each resize filter's own library makes of a crop, for tests: no code of the package is in here."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import cv2
import numpy as np
from PIL import Image

PILLOW = {
    "pillow-nearest": Image.Resampling.NEAREST,
    "pillow-bilinear": Image.Resampling.BILINEAR,
    "pillow-bicubic": Image.Resampling.BICUBIC,
    "pillow-lanczos": Image.Resampling.LANCZOS,
    "pillow-box": Image.Resampling.BOX,
    "keras-nearest": Image.Resampling.NEAREST,
}
OPENCV = {
    "opencv-nearest": cv2.INTER_NEAREST,
    "opencv-linear": cv2.INTER_LINEAR,
    "opencv-cubic": cv2.INTER_CUBIC,
    "opencv-area": cv2.INTER_AREA,
}

Box = tuple[int, int, int, int]


def crop(image: Any, box: Box) -> Any:
    """The pixels of a box, black outside of the picture; by Pillow."""
    return np.asarray(Image.fromarray(image).crop(box))


def by_library(image: Any, box: Box, size: tuple[int, int], name: str) -> Any:
    """Crop, then resize with the library that `name` names; TensorFlow's two filters in closed form.

    Args:
        image: uint8 [H, W, 3].
        size: height and width.

    Returns:
        uint8 [h, w, 3], float64 for ``tf-bilinear``.
    """
    picture = crop(image, box)
    height, width = size
    if name in PILLOW:  # along the rows, then along the columns, as one call did before Pillow 13
        narrow = Image.fromarray(picture).resize((width, picture.shape[0]), PILLOW[name])
        return np.asarray(narrow.resize((width, height), PILLOW[name]))
    if name in OPENCV:
        return cv2.resize(picture, (width, height), interpolation=OPENCV[name])
    if name == "tf-nearest":
        rows, columns = (centres(n, m).astype(int) for n, m in zip(picture.shape[:2], size, strict=True))
        return picture[rows][:, columns]
    down, across = (tent(n, m) for n, m in zip(picture.shape[:2], size, strict=True))
    return np.tensordot(down, across @ picture.astype(np.float64), axes=1)


def centres(length: int, wanted: int) -> Any:
    """Centres of the wanted pixels, edges of the source's pixels at whole numbers."""
    return (np.arange(wanted) + 0.5) * length / wanted


def tent(length: int, wanted: int) -> Any:
    """Bilinear interpolation without antialias as a matrix [wanted, length], the edge repeated outwards."""
    places = np.clip(centres(length, wanted) - 0.5, 0, length - 1)
    return np.maximum(1 - np.abs(places[:, None] - np.arange(length)), 0)


def noise(height: int, width: int, seed: int = 0) -> Any:
    """Every grey level beside every other."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@contextmanager
def without_ipp() -> Iterator[None]:
    """OpenCV's own code, not Intel's IPP that its wheels for x86-64 prefer for cubic."""
    before = cv2.ipp.useIPP()
    cv2.ipp.setUseIPP(False)
    try:
        yield
    finally:
        cv2.ipp.setUseIPP(before)
