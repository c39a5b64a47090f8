"""Vectors on pictures of some tens of pixels: resize filters, crops, EXIF orientation; by the libraries, without our runtime."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from fundus_rt.converters.backends import require
from fundus_rt.models.artifacts import sha256_of_bytes
from fundus_rt.models.canary import PICTURES, canary_picture
from fundus_rt.models.card import INTERPOLATIONS

Picture = NDArray[np.uint8]
Box = tuple[int, int, int, int]
Vector = dict[str, Any]

_PILLOW = {
    "pillow-nearest": Image.Resampling.NEAREST,
    "pillow-bilinear": Image.Resampling.BILINEAR,
    "pillow-bicubic": Image.Resampling.BICUBIC,
    "pillow-lanczos": Image.Resampling.LANCZOS,
    "pillow-box": Image.Resampling.BOX,
    "keras-nearest": Image.Resampling.NEAREST,
}
_OPENCV = {
    "opencv-nearest": cv2.INTER_NEAREST,
    "opencv-linear": cv2.INTER_LINEAR,
    "opencv-cubic": cv2.INTER_CUBIC,
    "opencv-area": cv2.INTER_AREA,
}
_CASES: tuple[tuple[str, tuple[int, int], Box, tuple[int, int], bool], ...] = (
    # what it shows; height and width of the picture; box; height and width of the result; mirrored
    ("reduced, broken factors", (29, 40), (0, 0, 40, 29), (10, 12), False),
    ("reduced by 2 and 2", (20, 24), (0, 0, 24, 20), (10, 12), False),
    ("reduced by 3 and 2", (20, 36), (0, 0, 36, 20), (10, 12), False),
    ("enlarged", (8, 9), (0, 0, 9, 8), (10, 12), False),
    ("one side reduced, one enlarged", (33, 7), (0, 0, 7, 33), (10, 12), False),
    ("much reduced", (90, 21), (0, 0, 21, 90), (10, 12), False),
    ("a crop inside", (29, 40), (7, 3, 34, 28), (10, 12), False),
    ("a crop beyond the border", (29, 40), (-5, -7, 33, 31), (10, 12), False),
    ("a crop beyond the border, mirrored", (29, 40), (-5, -7, 33, 31), (10, 12), True),
    ("nothing to do", (10, 12), (0, 0, 12, 10), (10, 12), False),
)
_CROPS = ((20, 13, (2, 3, 9, 11)), (20, 13, (-3, -2, 8, 6)), (20, 13, (10, 9, 25, 24)), (20, 13, (-4, -5, 24, 23)))
_CANARY_SIZES = ((16, 16), (33, 47), (224, 224), (384, 384), (512, 512))


def drawn_picture(height: int, width: int, number: int = 0) -> Picture:
    """A smooth slope with edges and single odd pixels, uint8 [height, width, 3], by whole numbers only."""
    row, column = np.arange(height)[:, None, None], np.arange(width)[None, :, None]
    channel = np.arange(3)[None, None, :]
    slope = row * (5 + channel) + column * (7 - 2 * channel) + 40 * channel + 11 * number
    edge = 120 * (((row // 4 + column // 5) % 3) == channel)
    odd = (row * 37 + column * 101 + channel * 53 + number) * 2654435761 % 4294967296 >> 24
    return np.asarray(np.where(odd % 5 == 0, odd, (slope + edge) % 256), np.uint8)


def numbers(picture: NDArray[Any]) -> list[Any]:
    """The values of a picture, row by row, channels of a pixel together; float32 as the shortest text that reads back."""
    if picture.dtype == np.uint8:
        return [int(value) for value in picture.reshape(-1)]
    return [float(str(value)) for value in picture.astype(np.float32).reshape(-1)]


def library_resize(picture: Picture, size: tuple[int, int], name: str) -> NDArray[Any]:
    """Resize by the library that a filter is named after; Pillow along the rows first, as before its version 13.

    Raises:
        BackendUnavailableError: TensorFlow is not installed, for its two filters.
    """
    height, width = size
    if name in _PILLOW:
        narrow = Image.fromarray(picture).resize((width, picture.shape[0]), _PILLOW[name])
        return np.asarray(narrow.resize((width, height), _PILLOW[name]))
    if name in _OPENCV:
        with _own_code_of_opencv():
            return np.asarray(cv2.resize(picture, (width, height), interpolation=_OPENCV[name]))
    tensorflow = require("tensorflow")
    return np.asarray(tensorflow.image.resize(picture, size, name.removeprefix("tf-")))


def resize_vectors() -> Vector:
    """Every filter on every case of `_CASES`."""
    pictures: dict[str, list[int]] = {}
    cases = []
    for shows, (height, width), box, size, mirrored in _CASES:
        picture = drawn_picture(height, width)
        pictures[f"{height}x{width}"] = numbers(picture)
        cropped = np.asarray(Image.fromarray(picture).crop(box))
        for name in INTERPOLATIONS:
            result = library_resize(cropped, size, name)
            if mirrored:
                result = result[:, ::-1]
            case: Vector = {"shows": shows, "picture": f"{height}x{width}", "box": list(box), "size": list(size)}
            cases.append({**case, "mirrored": mirrored, "interpolation": name, "values": numbers(result)})
    return {"pictures": pictures, "cases": cases}


def crop_vectors() -> Vector:
    """Crops beyond the border by Pillow, and crop boxes of circles in fractions."""
    cases = []
    for height, width, box in _CROPS:
        picture = drawn_picture(height, width, 1)
        cropped = np.asarray(Image.fromarray(picture).crop(box))
        cases.append({"picture": numbers(picture), "size": [height, width], "box": list(box), "values": numbers(cropped)})
    return {"crops": cases, "boxes": _boxes()}


def orientation_vectors() -> Vector:
    """A picture stored with each EXIF orientation, upright by Pillow."""
    stored = drawn_picture(3, 4, 2)
    cases = []
    for orientation in range(1, 9):
        file = io.BytesIO()
        exif = Image.Exif()
        exif[0x0112] = orientation
        Image.fromarray(stored).save(file, "PNG", exif=exif)
        upright = np.asarray(ImageOps.exif_transpose(Image.open(file)))
        cases.append({"orientation": orientation, "size": list(upright.shape[:2]), "values": numbers(upright)})
    return {"size": [3, 4], "stored": numbers(stored), "cases": cases}


def canary_vectors() -> Vector:
    """The drawn pictures with known answers, at some sizes; the smallest in full."""
    cases = []
    for size in _CANARY_SIZES:
        for which in range(PICTURES):
            picture = canary_picture(which, size)
            case: Vector = {"which": which, "size": list(size), "sha256": sha256_of_bytes(picture.tobytes())}
            cases.append({**case, "values": numbers(picture)} if size == _CANARY_SIZES[0] else case)
    return {"drawing": 1, "cases": cases}


def _boxes() -> list[Vector]:
    """Boxes of the three crop modes, computed with fractions of integers, ties to the even number."""
    circles = ((100.0, 80.0, 50.0), (100.5, 80.5, 50.25), (99.75, 81.0, 50.75), (10.0, 12.5, 40.0), (100.0, 80.0, 50.5))
    found: list[Vector] = []
    for x, y, radius in circles:
        side = _half_even(2 * radius)
        left, top = _half_even(x + 0.5 - side / 2), _half_even(y + 0.5 - side / 2)
        box = [left, top, left + side, top + side]
        found.append({"crop_mode": "field-of-view", "frame": [160, 200], "center": [x, y], "radius": radius, "box": box})
    for height, width in ((160, 200), (201, 160), (163, 160), (161, 160)):
        side = min(width, height)
        left, top = _half_even((width - side) / 2), _half_even((height - side) / 2)
        frame = [height, width]
        found.append({"crop_mode": "center", "frame": frame, "box": [left, top, left + side, top + side]})
        found.append({"crop_mode": "none", "frame": frame, "box": [0, 0, width, height]})
    return found


def _half_even(value: float) -> int:
    return int(np.rint(value))


@contextmanager
def _own_code_of_opencv() -> Iterator[None]:
    """Not Intel's IPP, which OpenCV's wheels for x86-64 prefer for the cubic filter and nobody else has."""
    before = cv2.ipp.useIPP()
    cv2.ipp.setUseIPP(False)
    try:
        yield
    finally:
        cv2.ipp.setUseIPP(before)
