"""How sharp a frame is inside its field of view."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from fundus_rt.runtime.field_of_view import FieldOfView

LEAST_DETAIL = 0.24
"""`Sharpness.detail` below which a frame is not sharp, whatever the others of its burst are.

Measured on 110 photographs (99 of one camera, 11 of two others) reduced to 1080 rows, with noise of 1.5 grey levels: 2 lie below
it as they are, 30 blurred by a Gaussian of 0.6 % of the field's radius, 105 of 1.2 %, all of 2 %.
"""
_SIDE = 512
"""Pixels of the square into which the field of view is brought, so that distance and resolution of a camera do not matter."""
_INNER = 0.85
"""Share of the radius that counts: the rim's step says nothing of the retina."""
_SCALES = (1.4, 2.8, 5.6)
"""Deviations of the Gaussians, pixels of that square, between which detail is measured; the first one is above its noise."""
_LIGHT = 20.0
"""Deviation of the Gaussian whose mean the frame is divided by: sharpness must not follow brightness."""


@dataclass(frozen=True)
class Sharpness:
    """Two measures of one frame."""

    focus: float
    """Variance of the Laplacian of the evenly lit green channel, times a million. It falls with any blur, but depends on the
    retina as well: only frames of one view can be compared by it."""
    detail: float
    """Variance of the fine structures (1.4 to 2.8 pixels of 512) divided by that of coarser ones (2.8 to 5.6). It hardly
    depends on the retina, and says whether a frame is sharp by itself, see `LEAST_DETAIL`."""


def sharpness_of(frame: NDArray[np.uint8], view: FieldOfView) -> Sharpness:
    """Measure the sharpness of a frame's field of view.

    The variance of the Laplacian is the focus measure LAPV of Pertuz, Puig and Garcia, Analysis of focus measure operators for
    shape-from-focus, Pattern Recognition 46 (2013).

    Args:
        frame: uint8 [H, W, 3], BGR.
        view: in pixels of the frame.
    """
    green, counted = _scaled(frame, view)
    level = green / (cv2.GaussianBlur(green, (0, 0), _LIGHT) + 8.0)
    smooth = [cv2.GaussianBlur(level, (0, 0), scale) for scale in _SCALES]
    fine, coarse = (float(np.var((a - b)[counted])) for a, b in itertools.pairwise(smooth))
    laplacian = cv2.Laplacian(smooth[0], cv2.CV_32F)
    return Sharpness(1e6 * float(np.var(laplacian[counted])), fine / coarse if coarse > 0 else 0.0)


def _scaled(frame: NDArray[np.uint8], view: FieldOfView) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """The green channel with the field of view as large as the square, and the pixels that count; both [_SIDE, _SIDE]."""
    step = 2 * view.radius / _SIDE
    green = frame[:, :, 1]
    x, y = view.center
    if step > 1:  # reduced by areas first: a warp alone would take single pixels
        green = np.asarray(cv2.resize(green, None, fx=1 / step, fy=1 / step, interpolation=cv2.INTER_AREA), np.uint8)
        # Whole pixels from here on: a shift by half of one would soften by itself.
        x, y, step = round((x + 0.5) / step) - 0.5, round((y + 0.5) / step) - 0.5, 1.0
    middle = (_SIDE - 1) / 2
    to_square = np.array([[1 / step, 0, middle - x / step], [0, 1 / step, middle - y / step]], np.float32)
    square = cv2.warpAffine(green, to_square, (_SIDE, _SIDE), flags=cv2.INTER_LINEAR)
    shown = cv2.warpAffine(np.full(green.shape, 255, np.uint8), to_square, (_SIDE, _SIDE))
    rows, columns = np.ogrid[:_SIDE, :_SIDE]
    inside = (rows - middle) ** 2 + (columns - middle) ** 2 < (_INNER * _SIDE / 2) ** 2
    return square.astype(np.float32), inside & (cv2.erode(shown, np.ones((9, 9), np.uint8)) == 255)
