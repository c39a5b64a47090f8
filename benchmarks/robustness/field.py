"""The part of a frame that a degradation may change, and lengths relative to it."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from fundus_rt.runtime.field_of_view import FieldOfView

Frame = NDArray[np.uint8]
"""uint8 [H, W, 3], BGR."""
Floats = NDArray[np.float32]

RIM = 0.01
"""Share of the radius, inside of the rim, over which a change fades in: the rim of a photograph is no sharp edge either."""
_GRID = 160
"""Cells along the longer side of the grid on which smooth light is computed."""
_SAMPLES = 400
"""Pixels along the diameter that are looked at for means and straight cuts."""
_SURROUND_NOISE = 5
"""Grey levels within which a pixel has the surround's colour."""


@dataclass(frozen=True)
class Field:
    """A field of view in its own piece of the frame, and coordinates in which its diameter is 1.

    Every length of a degradation is given in diameters, so that it means the same for a photograph of any size.
    """

    box: tuple[int, int, int, int]
    """Left, top, right, bottom of the piece in whole pixels of the frame, right and bottom excluded."""
    center: tuple[float, float]
    """x and y of the field's centre in pixels of the piece."""
    diameter: float
    """Pixels."""
    mask: Floats
    """float32 [h, w] of the piece: 1 inside, 0 outside, rising over `RIM` of the radius inside of the rim."""

    def piece(self, frame: Frame) -> Floats:
        """The piece of a frame as float32 [h, w, 3], 0 to 1."""
        left, top, right, bottom = self.box
        return np.multiply(frame[top:bottom, left:right], np.float32(1 / 255), dtype=np.float32)

    def placed(self, levels: Floats, frame: Frame) -> Frame:
        """A copy of the frame with changed levels inside the field; outside of it every value is the frame's own.

        Args:
            levels: float32 [h, w, 3] of the piece, 0 to 1.
            frame: uint8 [H, W, 3].
        """
        left, top, right, bottom = self.box
        before = frame[top:bottom, left:right]
        share = self.mask[..., None]
        changed = levels * np.float32(255)
        changed -= before
        changed *= share
        changed += before
        result = frame.copy()
        result[top:bottom, left:right] = np.clip(np.rint(changed, out=changed), 0, 255).astype(np.uint8)
        return result

    def mean(self, levels: Floats) -> Floats:
        """Mean level inside the field by channel, float32 [3], from every so many pixels."""
        stride = max(1, int(self.diameter) // _SAMPLES)
        share = self.mask[::stride, ::stride]
        weighed = (levels[::stride, ::stride] * share[..., None]).sum(axis=(0, 1), dtype=np.float64)
        return np.asarray(weighed / max(1e-6, float(share.sum(dtype=np.float64))), np.float32)

    def grid(self) -> tuple[Floats, Floats]:
        """x [1, columns] and y [rows, 1] of a coarse grid over the piece, in diameters from the field's centre."""
        height, width = self.mask.shape
        step = max(1.0, max(height, width) / _GRID)
        columns, rows = max(1, round(width / step)), max(1, round(height / step))
        x = (np.arange(columns, dtype=np.float32) + 0.5) * (width / columns) - 0.5
        y = (np.arange(rows, dtype=np.float32) + 0.5) * (height / rows) - 0.5
        return ((x - self.center[0]) / self.diameter)[None], ((y - self.center[1]) / self.diameter)[:, None]

    def enlarged(self, light: Floats) -> Floats:
        """Smooth light on `grid`, float32 [rows, columns], at every pixel of the piece, [h, w]."""
        height, width = self.mask.shape
        return np.asarray(cv2.resize(light, (width, height), interpolation=cv2.INTER_LINEAR), np.float32)


def field_in_frame(frame: Frame, view: FieldOfView) -> Field:
    """The field of a photograph, without what is black inside of its circle because the picture was cut straight.

    Args:
        frame: uint8 [H, W, 3], BGR.
        view: of this frame. Where no border was found, the whole frame is the field and its longer side the diameter.

    Raises:
        ValueError: `frame` is not uint8 [H, W, 3].
    """
    if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3:
        raise ValueError(f"got an array of {frame.dtype} {frame.shape}, expected uint8 [H, W, 3]")
    height, width = frame.shape[:2]
    diameter = 2.0 * view.radius
    if not view.found:
        whole = np.ones((height, width), np.float32)
        return Field((0, 0, width, height), view.center, diameter, whole)
    low = [max(0, int(np.floor(middle - view.radius))) for middle in view.center]
    high = [
        max(start + 1, min(side, int(np.ceil(middle + view.radius)) + 1))
        for start, middle, side in zip(low, view.center, (width, height), strict=True)
    ]
    box = (low[0], low[1], high[0], high[1])
    center = (view.center[0] - low[0], view.center[1] - low[1])
    x = np.arange(high[0] - low[0], dtype=np.float32)[None] - np.float32(center[0])
    y = np.arange(high[1] - low[1], dtype=np.float32)[:, None] - np.float32(center[1])
    fade = np.float32(max(1.0, RIM * view.radius))
    depth = np.float32(view.radius) - cv2.magnitude(*np.broadcast_arrays(x, y))  # pixels inside of the rim
    left, right, top, bottom = _straight_cuts(frame, view)
    depth = np.minimum(depth, np.minimum(x + center[0] + low[0] - left, right - (x + center[0] + low[0])))
    depth = np.minimum(depth, np.minimum(y + center[1] + low[1] - top, bottom - (y + center[1] + low[1])))
    return Field(box, center, diameter, np.asarray(np.clip(depth / fade, 0, 1), np.float32))


def _straight_cuts(frame: Frame, view: FieldOfView) -> tuple[float, float, float, float]:
    """Left, right, top and bottom pixel of the frame beyond which the circle shows nothing but surround; infinite where it
    shows the retina up to its rim or to the frame's side."""
    stride = max(1, int(2 * view.radius) // _SAMPLES)
    some = frame[::stride, ::stride]
    y, x = np.ogrid[: some.shape[0], : some.shape[1]]
    squares = (x * stride - view.center[0]) ** 2 + (y * stride - view.center[1]) ** 2
    inside = squares < view.radius**2
    outside = squares > (1.03 * view.radius) ** 2
    if np.count_nonzero(outside) < 50:
        return -np.inf, np.inf, -np.inf, np.inf
    surround = np.median(some[outside], axis=0)
    shown = (np.abs(some - surround).max(axis=2) > _SURROUND_NOISE) & inside
    least = 0.04 * view.radius
    columns = _span(shown.sum(axis=0), inside.sum(axis=0), stride, view.center[0], view.radius - least)
    rows = _span(shown.sum(axis=1), inside.sum(axis=1), stride, view.center[1], view.radius - least)
    return *columns, *rows


def _span(shown: NDArray[np.int64], of: NDArray[np.int64], stride: int, middle: float, reach: float) -> tuple[float, float]:
    """First and last pixel of the lines that show retina, infinite where they begin within `reach` of the rim or at the side.

    Args:
        shown: pixels per line that differ from the surround.
        of: pixels per line inside the circle.
        stride: pixels of the frame between lines.
        middle: place of the circle's centre, pixels of the frame.
        reach: pixels from the centre; lines farther out are so short that they say nothing.
    """
    lines = np.flatnonzero(shown > 0.05 * np.maximum(of, 1))
    if not len(lines):
        return -np.inf, np.inf
    first, last = float(lines[0] * stride), float(lines[-1] * stride)
    low = first if first > max(0.0, middle - reach) else -np.inf
    high = last if last < min(float((len(shown) - 1) * stride), middle + reach) else np.inf
    return low, high
