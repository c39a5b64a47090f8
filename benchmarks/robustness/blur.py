"""Blur, as an eye out of focus gives.

Own implementation, from a description of its constants, of the blur of the degradation model of cofe-Net (Shen et al., IEEE TMI
2021). The published constants are pixels of pictures of 512 x 512 that the field of view fills. What was resolved:

* The published Gaussian has a deviation of 5 to 15 pixels and is cut off at a third to half of that, 1 to 7 pixels after rounding
  to odd sides: what remains is nearly a box of that side, whose deviation is the side divided by the square root of 12. Here a
  whole Gaussian of *that* deviation is taken, so that a blur is the same at every resolution and no draw gives none.
* Severity doubles the deviation from step to step, for the eye sees blur in octaves: severity 2 is the published kernel as it
  was computed, cut off, and severity 5 the published deviation as it was written, uncut.
* Nothing of the black surround is mixed in: in a camera the stop that borders the field stays sharp when the retina is not.
"""

from __future__ import annotations

import cv2
import numpy as np

from fundus_rt.benchmarks.robustness.field import Field, Floats

_PUBLISHED_SIDE = 512.0
_FINENESS = 3.0
"""A reduced copy is blurred where a deviation of it still spans this many pixels."""
_NARROW = 0.6
"""Deviation in pixels below which samples of a Gaussian no longer have it."""


def with_blur(levels: Floats, field: Field, rng: np.random.Generator, strength: float) -> Floats:
    """Blur inside the field.

    Args:
        levels: float32 [h, w, 3], BGR, 0 to 1. Not changed.
        field: of these levels.
        rng: the same draws are made for every picture and strength.
        strength: factor on the deviations of the published kernels as they were computed.

    Returns:
        float32 [h, w, 3], 0 to 1. Outside of the field the values mean nothing.
    """
    nominal = rng.uniform(5.0, 15.0)
    sides = rng.uniform(nominal / 3, nominal / 2, 2)
    across, down = sides / np.sqrt(12) / _PUBLISHED_SIDE * strength * field.diameter
    inside = (field.mask > 0).astype(np.float32)
    light = blurred(levels * inside[..., None], float(across), float(down))
    weight = blurred(inside, float(across), float(down))
    np.maximum(weight, np.float32(1e-3), out=weight)
    light /= weight[..., None]
    return np.asarray(np.clip(light, 0, 1, out=light), np.float32)


def blurred(picture: Floats, across: float, down: float) -> Floats:
    """The picture after a Gaussian blur with black beyond its sides; a wide one on a reduced copy.

    Means of squares of n pixels add (n^2 - 1) / 12 to the variance, and linear enlargement (n^2 - 1) / 6: the copy's blur is
    narrower by that.

    Args:
        picture: float32 [h, w] or [h, w, 3].
        across, down: standard deviations in pixels.
    """
    height, width = picture.shape[:2]
    step = int(min(across, down) / _FINENESS)
    if step <= 1:
        return _gaussian(picture, across, down)
    columns, rows = -(-width // step) + 2, -(-height // step) + 2
    padded = cv2.copyMakeBorder(
        picture, step, (rows - 1) * step - height, step, (columns - 1) * step - width, cv2.BORDER_CONSTANT, value=0
    )
    small = cv2.resize(padded, (columns, rows), interpolation=cv2.INTER_AREA)
    added = (step**2 - 1) / 4
    small = _gaussian(np.asarray(small, np.float32), *(np.sqrt(s**2 - added) / step for s in (across, down)))
    large = cv2.resize(small, (columns * step, rows * step), interpolation=cv2.INTER_LINEAR)
    return np.ascontiguousarray(large[step : step + height, step : step + width], np.float32)


def _gaussian(picture: Floats, across: float, down: float) -> Floats:
    """A Gaussian blur of four deviations each way, black beyond the sides."""
    return np.asarray(cv2.sepFilter2D(picture, -1, _kernel(across), _kernel(down), borderType=cv2.BORDER_CONSTANT), np.float32)


def _kernel(deviation: float) -> Floats:
    """Weights of a Gaussian; a very narrow one, whose samples would have another deviation, is three weights that have it."""
    if deviation < _NARROW:
        outer = deviation**2 / 2
        return np.array([outer, 1 - 2 * outer, outer], np.float32)
    return np.asarray(cv2.getGaussianKernel(2 * int(np.ceil(4 * deviation)) + 1, deviation, cv2.CV_32F), np.float32)
