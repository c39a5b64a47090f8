"""Uneven light: another colour, light that leaks in from the rim, a patch that lies in shade.

Own implementation, from a description of its constants, of the illumination part of the degradation model of cofe-Net (Shen et
al., IEEE TMI 2021, "Modeling and Enhancing Low-Quality Retinal Fundus Images"). The published constants hold for pictures of
512 x 512 pixels that the field of view fills; here they are shares of its diameter. What was resolved:

* The published means are taken over the whole picture, black surround included, so a wider surround would change the result.
  Here they are means inside the field times pi / 4, the share that a circle has of its square.
* The published reach of the leak mixes up height and width; in a square they are the same.
* A blurring kernel of the leak's size minus the clear centre's can become one pixel, which leaves a hard edge; here the edge is
  at least `LEAST_EDGE` wide. Kernels were computed before they were rounded to odd sizes; here nothing is rounded.
* The published Gaussian kernels are narrower than their deviation, so they are nearly boxes, and a blurred disc is nearly a disc
  with a linear edge. Here the edge is a smooth curve in closed form, the same at every resolution.
* Of three tints of leaking light the nearly white one is only for brightness factors below 0.2, which are never drawn.
* Pictures of a mean of at most 0.25 get no shade in the published form, which would make the strength of a degradation jump
  between two photographs of nearly the same brightness, and subtracting the same from every channel leaves red alone. Here every
  photograph gets shade, and it takes the same share of every channel: the share that the published amount is of the brightest.
"""

from __future__ import annotations

import cv2
import numpy as np

from fundus_rt.benchmarks.robustness.field import Field, Floats

BRIGHTNESS, CONTRAST, SATURATION = (0.7, 1.2), (0.6, 1.4), (0.6, 1.4)
"""Published ranges of the factors, as torchvision's ``adjust_*`` apply them."""
LEAK_TINTS = ((238, 238, 141), (147, 195, 177))
"""BGR weights of the leaking light, of 255."""
LEAST_EDGE = 0.15
"""Least width of the leak's edge, diameters."""
LEAST_BRIGHT = 0.45
"""A photograph whose brightest channel is darker than this loses no larger share of it."""
MOST_TAKEN = 0.97
CIRCLE_IN_SQUARE = np.float32(np.pi / 4)
_LUMA = np.array([[0.114, 0.587, 0.299]], np.float32)
"""Weights of BGR in the grey that contrast and saturation refer to (ITU-R BT.601, as in torchvision and Pillow)."""


def with_uneven_light(levels: Floats, field: Field, rng: np.random.Generator, strength: float) -> Floats:
    """Change colour, add leaking light, take light from one patch.

    Args:
        levels: float32 [h, w, 3], BGR, 0 to 1. Not changed.
        field: of these levels.
        rng: the same draws are made for every picture and strength.
        strength: 1 is the published amount; every factor's distance from "none" is in proportion to it.

    Returns:
        float32 [h, w, 3], 0 to 1. Outside of the field the values mean nothing.
    """
    factors = [rng.uniform(*published) for published in (BRIGHTNESS, CONTRAST, SATURATION)]
    ring, tint = _leak(rng, field)
    shade, depth = _shade(rng, field)
    means = field.mean(levels)
    mean = float(means.mean())
    levels = with_colour(levels, field, *(1 + strength * (factor - 1) for factor in factors))
    light = field.enlarged(ring * np.float32(strength * mean * CIRCLE_IN_SQUARE))
    levels += light[..., None] * tint
    np.clip(levels, 0, 1, out=levels)
    base, slope = depth
    taken = min(MOST_TAKEN, strength * (base + slope * mean) / max(LEAST_BRIGHT, float(means.max())))
    levels *= (1 - field.enlarged(shade * np.float32(taken)))[..., None]
    return levels


def with_colour(levels: Floats, field: Field, brightness: float, contrast: float, saturation: float) -> Floats:
    """Multiply the levels, their distance from the mean grey, and their distance from their own grey; a new array.

    Args:
        levels: float32 [h, w, 3], BGR, 0 to 1.
        field: the mean grey is that inside of it times pi / 4.
        brightness, contrast, saturation: factors; 1 changes nothing.
    """
    levels = np.minimum(levels * np.float32(brightness), 1)
    grey = float((_LUMA @ field.mean(levels))[0] * CIRCLE_IN_SQUARE)
    levels = levels * np.float32(contrast) + np.float32(grey * (1 - contrast))
    np.clip(levels, 0, 1, out=levels)
    mix = np.float32(saturation) * np.eye(3, dtype=np.float32) + np.float32(1 - saturation) * np.repeat(_LUMA, 3, axis=0)
    return np.asarray(np.clip(cv2.transform(levels, mix), 0, 1), np.float32)


def edge(distance: Floats, radius: float, width: Floats | float) -> Floats:
    """1 inside of a disc, 0 outside, with a smooth edge: a cubic from `radius` - `width` / 2 to `radius` + `width` / 2."""
    t = np.clip((np.float32(radius) - distance) / width + np.float32(0.5), 0, 1)
    return np.asarray(t * t * (3 - 2 * t), np.float32)


def _leak(rng: np.random.Generator, field: Field) -> tuple[Floats, Floats]:
    """A ring around a clear, off-centre disc on the field's grid, 0 to 1, and its BGR weights.

    Published, in diameters: centre within 1/8 of the middle along each axis, clear disc of diameter 0.75 to 1, ring of an outer
    diameter of at least 1.5, edge as wide as the farthest side is beyond the clear disc.
    """
    across, down = rng.uniform(-0.125, 0.125, 2)
    clear = rng.uniform(0.75, 1.0)
    reach = 0.5 + max(abs(across), abs(down))
    farthest = 2 * float(np.hypot(0.5 + abs(across), 0.5 + abs(down)))
    outer = rng.uniform(1.0, farthest) + abs(max(across, down)) + 0.5
    tint = np.asarray(np.divide(LEAK_TINTS[int(rng.integers(len(LEAK_TINTS)))], 255), np.float32)
    width = max(LEAST_EDGE, 2 * reach - clear)
    x, y = field.grid()
    distance = np.hypot(x - np.float32(across), y - np.float32(down))
    return edge(distance, outer / 2, width) * (1 - edge(distance, clear / 2, width)), tint


def _shade(rng: np.random.Generator, field: Field) -> tuple[Floats, tuple[float, float]]:
    """A soft patch on the field's grid, 0 to 1, and base and slope of the light that it takes: base + slope * mean level.

    Published, in diameters: a disc of 0.4 to 0.7, its centre 1/4 to 3/4 across and 3/8 to 5/8 down, the edge 0.55 to 0.75 of
    the disc along each axis; it takes 0.26 to 0.262 and 0.05 to 0.06 of the mean.
    """
    disc = rng.uniform(0.4, 0.7)
    across, down = rng.uniform(-0.25, 0.25), rng.uniform(-0.125, 0.125)
    wide, high = rng.uniform(0.55, 0.75, 2) * disc
    depth = float(rng.uniform(0.26, 0.262)), float(rng.uniform(0.05, 0.06))
    x, y = field.grid()
    dx, dy = (x - np.float32(across)) ** 2, (y - np.float32(down)) ** 2
    squares = np.maximum(dx + dy, np.float32(1e-12))
    return edge(np.sqrt(squares), disc / 2, np.asarray((wide * dx + high * dy) / squares, np.float32)), depth
