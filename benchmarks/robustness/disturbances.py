"""Small changes that no answer should depend on: one pixel, a shift by a few pixels, another JPEG compression."""

from __future__ import annotations

import io
from collections.abc import Iterator

import cv2
import numpy as np
from PIL import Image

from fundus_rt.benchmarks.robustness.field import Field, Frame
from fundus_rt.runtime.field_of_view import FieldOfView

JPEG_QUALITIES = (95, 90, 75, 50)
"""Pillow's qualities, from nearly nothing to visible blocks."""
SHIFTS = (1, 2, 4, 8)
"""Pixels of the photograph."""
_SIDES = (("left", "right"), ("top", "bottom"))
_DIRECTIONS = ((1, 0), (-1, 0), (0, 1), (0, -1))


def recompressed(frame: Frame, quality: int) -> Frame:
    """The frame after Pillow's JPEG compression and decoding, with Pillow's own choice of subsampling.

    Args:
        frame: uint8 [H, W, 3], BGR.
        quality: 1 to 95.
    """
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(frame[..., ::-1])).save(file, "JPEG", quality=quality)
    return np.ascontiguousarray(np.asarray(Image.open(file).convert("RGB"))[..., ::-1])


def shifted(frame: Frame, view: FieldOfView, pixels: int, seed: int | list[int]) -> Frame:
    """The frame moved by whole pixels along one axis, in the same direction for every number of pixels.

    The direction is drawn among those along which no side cuts the field, so that surround moves out and in and the retina stays
    whole; where there is none, among all four. New pixels repeat the frame's outermost ones.

    Args:
        frame: uint8 [H, W, 3], BGR.
        view: of this frame.
        pixels: at least 0, less than the frame is wide and high.
        seed: for the direction.
    """
    ways = [way for way in _DIRECTIONS if not set(_SIDES[way[0] == 0]) & set(view.cut)]
    ways = ways or list(_DIRECTIONS)
    dx, dy = ways[int(np.random.default_rng(seed).integers(len(ways)))]
    height, width = frame.shape[:2]
    x, y = dx * pixels, dy * pixels
    taken = frame[max(0, -y) : height - max(0, y), max(0, -x) : width - max(0, x)]
    moved = cv2.copyMakeBorder(taken, max(0, y), max(0, -y), max(0, x), max(0, -x), cv2.BORDER_REPLICATE)
    return np.asarray(moved, np.uint8)


def with_one_pixel(frame: Frame, field: Field, count: int, seed: int | list[int]) -> Iterator[tuple[Frame, tuple[int, int]]]:
    """The frame with one pixel of the field changed as much as it can be, at one place after the other.

    Each channel of the pixel becomes 0 or 255, whichever is farther away.

    Args:
        frame: uint8 [H, W, 3], BGR. Not changed.
        field: of this frame.
        count: how many places are tried.
        seed: for the places; they are spread evenly over the field.

    Yields:
        A frame and the changed place (x, y). The array is one and the same and is changed back afterwards: copy it to keep it.
    """
    rng = np.random.default_rng(seed)
    rows, columns = np.nonzero(field.mask[::2, ::2] >= 1)
    left, top = field.box[:2]
    own = frame.copy()
    for index in rng.integers(len(rows), size=count) if len(rows) else ():
        x, y = left + 2 * int(columns[index]), top + 2 * int(rows[index])
        before = own[y, x].copy()
        own[y, x] = np.where(before < 128, 255, 0)
        yield own, (x, y)
        own[y, x] = before
