"""Synthetic degradations of colour fundus photographs: uneven light, spots, blur.

An independent implementation, from a description of their constants, of the degradation model that cofe-Net
(Shen et al., IEEE TMI 2021, "Modeling and Enhancing Low-Quality Retinal Fundus Images") was trained with. A picture
degraded here is *synthetically degraded*; whether a clinician would call it ungradable is another question.

All functions take and return `float32 [H, W, 3]` RGB frames in 0..1 and a field-of-view mask `[H, W]` (1 inside,
0 outside; bool or float). The published constants hold for 512 x 512 pixels; here every length is a fraction of the
frame's height, so that the same rng gives the same degradation at any resolution. `severity` scales the effect: 1 is the
published strength, 0 leaves the frame as it is.
"""

from collections.abc import Iterable, Sequence

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float32]

KINDS = ("blur", "spot", "illumination")

# All seven mixtures, in the order of the published three-bit codes 001 ... 111 (blur | spot | illumination).
COMBINATIONS = (
    ("illumination",),
    ("spot",),
    ("spot", "illumination"),
    ("blur",),
    ("blur", "illumination"),
    ("blur", "spot"),
    ("blur", "spot", "illumination"),
)

PUBLISHED_SIZE = 512.0

# Light leaks: RGB weights of the two coloured styles. A third, nearly white one exists but is never drawn at the
# published brightness factors (all above 0.2).
HALO_COLOURS = np.array([[141, 238, 238], [177, 195, 147]], np.float32) / 255.0

# Fields of light are so smooth that a grid of about this many rows carries them; the blurring kernels, half a frame
# wide, would otherwise take seconds on a 4-megapixel photograph.
FIELD_ROWS = 128

LUMA = np.array([0.299, 0.587, 0.114], np.float32)


def degrade(
    frame_rgb_float: ArrayLike, mask: ArrayLike, kinds: Iterable[str], rng: np.random.Generator, severity: float = 1.0
) -> Floats:
    """Return the frame with the named degradations, in the published order illumination, spots, blur.

    frame_rgb_float: float32 [H, W, 3], RGB, 0..1.
    mask: [H, W], 1 inside the field of view.
    kinds: some of `KINDS`; one of `COMBINATIONS`, say.
    rng: numpy.random.Generator.
    severity: 0 (untouched) to 1 (published strength); values above 1 extrapolate.
    Returns float32 [H, W, 3], RGB, 0..1, zero outside the mask.
    """
    kinds = set(kinds)
    unknown = sorted(kinds - set(KINDS))
    if unknown:
        raise ValueError(f"unknown degradation {unknown}; expected some of {list(KINDS)}")
    frame: Floats = np.asarray(frame_rgb_float, np.float32)
    if frame.ndim != 3 or frame.shape[2] != 3:
        raise ValueError(f"got a frame of shape {frame.shape}; expected (height, width, 3)")
    if np.shape(mask) != frame.shape[:2]:
        raise ValueError(f"got a mask of shape {np.shape(mask)}; expected {frame.shape[:2]}, as the frame")
    if "illumination" in kinds:
        frame = illumination(frame, mask, rng, severity)
    if "spot" in kinds:
        frame = spots(frame, mask, rng, severity)
    if "blur" in kinds:
        frame = blur(frame, mask, rng, severity)
    return _in_range(frame, mask)


def illumination(frame: ArrayLike, mask: ArrayLike, rng: np.random.Generator, severity: float = 1.0) -> Floats:
    """Return the frame with changed colour, a coloured light leak and a dark, uneven patch.

    Shapes and ranges as in `degrade`. Published ranges: brightness 0.7..1.2, contrast 0.6..1.4, saturation 0.6..1.4.
    """
    levels = _changed_colour(np.asarray(frame, np.float32), rng, severity)
    levels = levels + np.float32(severity) * _halo(levels, rng)
    levels = np.clip(levels, 0.0, 1.0) * _mask_plane(mask)
    levels = levels + np.float32(severity) * _hole(levels, mask, rng)[..., None]
    return _in_range(levels, mask)


def spots(frame: ArrayLike, mask: ArrayLike, rng: np.random.Generator, severity: float = 1.0) -> Floats:
    """Return the frame with 5 to 10 soft bright spots, as dust or drops on the lens give.

    A spot is a disc of diameter r between 0.01 and 0.05 of the height. With u = r / (0.05 height), its light is
    (0.56 + 1 - u) * (1 - exp(-(0.5 + u) * 0.3 u)), blurred by a truncated Gaussian of
    sigma = 2 (5 + 20 u) pixels and kernel sides between sigma/5 and sigma/4 (pixels of the published 512).
    """
    levels = np.asarray(frame, np.float32)
    height, width = levels.shape[:2]
    pixel = height / PUBLISHED_SIZE
    light = np.zeros((height, width), np.float32)
    for _ in range(int(rng.integers(5, 11))):
        u = rng.uniform(0.2, 1.0)
        sigma = 2.0 * (5.0 + 20.0 * u)
        sides = rng.uniform(sigma / 5.0, sigma / 4.0, 2)
        strength = (14.0 / 25.0 + 1.0 - u) * (1.0 - np.exp(-(0.5 + u) * 0.3 * u))
        center = (rng.uniform(0.0, 1.0) * width, rng.uniform(0.0, 1.0) * height)
        radius = 0.5 * u * 0.05 * height
        _add_spot(light, center, radius, strength, [float(side) * pixel for side in sides], sigma * pixel)
    return _in_range(levels + np.float32(severity) * light[..., None], mask)


def blur(frame: ArrayLike, mask: ArrayLike, rng: np.random.Generator, severity: float = 1.0) -> Floats:
    """Return the frame blurred by a truncated Gaussian, nearly a box.

    sigma 5..15 and kernel sides between sigma/3 and sigma/2, at most 7 pixels, both in pixels of the published 512.
    """
    sigma = rng.uniform(5.0, 15.0)
    # Integer draws in pixels of the published size, then made odd, as published: 1, 3, 5 or 7. The rare pair (1, 1)
    # would blur nothing and yet be called degraded, so it is raised to 3.
    sides = [int(rng.integers(int(sigma / 3.0), int(sigma / 2.0) + 1)) | 1 for _ in range(2)]
    if max(sides) == 1:
        sides = [3, 3]
    levels = np.asarray(frame, np.float32)
    pixel = levels.shape[0] / PUBLISHED_SIZE * severity
    return _in_range(_blur_by_sides(levels, np.multiply(sides, pixel), sigma * pixel), mask)


def _mask_plane(mask: ArrayLike) -> Floats:
    """Return the mask as float32 [H, W, 1]."""
    return np.asarray(mask, np.float32)[..., None]


def _in_range(levels: Floats, mask: ArrayLike) -> Floats:
    """Return the levels cut to 0..1 and black outside the mask, float32 [H, W, 3]."""
    return np.asarray(np.clip(levels, 0.0, 1.0) * _mask_plane(mask), np.float32)


def _changed_colour(frame: Floats, rng: np.random.Generator, severity: float) -> Floats:
    """Return the frame, float32 [H, W, 3], with another brightness, contrast and saturation."""
    brightness = 1.0 + severity * (rng.uniform(0.7, 1.2) - 1.0)
    contrast = 1.0 + severity * (rng.uniform(0.6, 1.4) - 1.0)
    saturation = 1.0 + severity * (rng.uniform(0.6, 1.4) - 1.0)
    frame = np.clip(frame * np.float32(brightness), 0.0, 1.0)
    level = np.float32((frame @ LUMA).mean())
    frame = np.clip(level + (frame - level) * np.float32(contrast), 0.0, 1.0)
    grey = (frame @ LUMA)[..., None]
    return np.asarray(np.clip(grey + (frame - grey) * np.float32(saturation), 0.0, 1.0), np.float32)


def _field_grid(height: int, width: int) -> tuple[int, int, float]:
    """Return (rows, columns, step): a coarse grid for smooth fields and its spacing in pixels."""
    step = max(1.0, height / FIELD_ROWS)
    return round(height / step), max(1, round(width / step)), step


def _filled_disc(rows: int, columns: int, center: tuple[float, float], diameter: float) -> Floats:
    """Return float32 [rows, columns], 1 inside the disc, with an antialiased rim."""
    y, x = np.mgrid[0:rows, 0:columns].astype(np.float32)
    distance = np.hypot(x + 0.5 - center[0], y + 0.5 - center[1])
    return np.asarray(np.clip(diameter / 2.0 - distance + 0.5, 0.0, 1.0), np.float32)


def _halo(frame: Floats, rng: np.random.Generator) -> Floats:
    """Return a light leak, float32 [H, W, 3], to be added: a coloured ring around a clear centre."""
    height, width = frame.shape[:2]
    short, long = min(height, width), max(height, width)
    cx = width / 2.0 + rng.uniform(-1.0, 1.0) * width / 8.0
    cy = height / 2.0 + rng.uniform(-1.0, 1.0) * height / 8.0
    reach_x, reach_y = max(cx, width - cx), max(cy, height - cy)
    widest = 2.0 * np.hypot(reach_x, reach_y) / short
    inner = short * rng.uniform(0.75, 1.0)
    outer = short * rng.uniform(1.0, max(1.0, widest)) + abs(max(cx - width / 2.0, cy - height / 2.0) + long / 2.0)
    colour = HALO_COLOURS[int(rng.integers(len(HALO_COLOURS)))]
    rows, columns, step = _field_grid(height, width)
    center = (cx / step, cy / step)
    ring = np.abs(_filled_disc(rows, columns, center, inner / step) - _filled_disc(rows, columns, center, outer / step))
    side = abs(2.0 * max(reach_x, reach_y) - inner) / step
    ring = _blur_by_sides(ring, (side, side), 2.0 / 3.0 * side)
    light = cv2.resize(ring, (width, height), interpolation=cv2.INTER_LINEAR) * np.float32(frame.mean())
    return np.asarray(light[..., None] * colour, np.float32)


def _hole(frame: Floats, mask: ArrayLike, rng: np.random.Generator) -> Floats:
    """Return the darkening of one unevenly lit patch, float32 [H, W], zero or negative, to be added.

    Frames whose mean level inside the field of view is at most 0.25 are dark already and get none, as published.
    """
    height, width = frame.shape[:2]
    diameter = rng.uniform(0.4, 0.7) * width
    center = (rng.uniform(0.25, 0.75) * width, rng.uniform(0.375, 0.625) * height)
    level = float(frame.sum() / (3.0 * max(1.0, float(np.sum(np.asarray(mask, np.float32))))))
    base = rng.uniform(-0.262, -0.26)
    amplitude = rng.uniform(base - 0.06 * level, base - 0.05 * level)
    sides = rng.uniform(0.55, 0.75, 2) * diameter
    if level <= 0.25:
        return np.zeros((height, width), np.float32)
    rows, columns, step = _field_grid(height, width)
    disc = _filled_disc(rows, columns, (center[0] / step, center[1] / step), diameter / step)
    disc = _blur_by_sides(disc, sides / step, 0.8 * sides.max() / step)
    return np.asarray(cv2.resize(disc, (width, height), interpolation=cv2.INTER_LINEAR) * amplitude, np.float32)


def _add_spot(
    light: Floats, center: tuple[float, float], radius: float, strength: float, sides: Sequence[float], sigma: float
) -> None:
    """Add one blurred disc to `light`, float32 [H, W], in place; only its neighbourhood is computed."""
    height, width = light.shape
    reach = radius + max(sides) + 2.0
    left, top = max(0, int(center[0] - reach)), max(0, int(center[1] - reach))
    right, bottom = min(width, int(center[0] + reach) + 1), min(height, int(center[1] + reach) + 1)
    disc = _filled_disc(bottom - top, right - left, (center[0] - left, center[1] - top), 2.0 * radius)
    light[top:bottom, left:right] += np.float32(strength) * _blur_by_sides(disc, sides, sigma)


def _blur_by_sides(picture: Floats, sides: Iterable[float], sigma: float) -> Floats:
    """Return the picture blurred by a Gaussian cut off at a window of `sides` = (x, y) pixels, not necessarily whole.

    The outermost weight of a window is in proportion to how much of that pixel it covers, so that the strength of a
    blur goes smoothly with the resolution instead of jumping between odd kernel sizes.
    """
    across, down = (_window(side, sigma) for side in sides)
    return np.asarray(cv2.sepFilter2D(picture, -1, across, down, borderType=cv2.BORDER_REFLECT_101), np.float32)


def _window(side: float, sigma: float) -> Floats:
    """Return the normalised weights, float32 [n] with n odd, of a Gaussian cut off at `side` pixels."""
    half = max(0.0, (float(side) - 1.0) / 2.0)
    whole = int(np.ceil(half))
    offset = np.abs(np.arange(-whole, whole + 1, dtype=np.float32))
    weight = np.exp(-0.5 * (offset / max(float(sigma), 1e-3)) ** 2)
    weight = weight * np.clip(half - offset + 1.0, 0.0, 1.0)
    return np.asarray(weight / weight.sum(), np.float32)
