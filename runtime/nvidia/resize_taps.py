"""Every resize filter as weights on a band of neighbouring pixels: what the GPU needs instead of the library itself.

All filters that a card can name are separable: each pixel of the result is a weighted sum along a row, then along a column. For
one crop this module states the weights exactly as the library has them, fixed point where it computes in fixed point, and which
arithmetic stands between the two passes and behind them (`ARITHMETICS`). Two things are made of it: the tables of the
CUDA kernel (`fused_kernel`), which follows the arithmetic to the last bit, and the two dense matrices of the
portable graph (`filter_matrices`, for `fundus_rt.converters.engines.frame_head`).

The pass along the rows, which makes a picture narrow, always comes first; so do Pillow before version 13, OpenCV and TensorFlow.
Weights clamp at the crop's edge, never at the frame's: a crop, then a resize. Where the crop reaches beyond the frame it is
black there.

Sources of the formulas: Pillow, src/libImaging/Resample.c (filters, coefficients in 22 bits); OpenCV,
modules/imgproc/src/resize.cpp (coefficients in 11 bits, area); TensorFlow, core/kernels/image/resize_bilinear_op.cc. Nearest
neighbours are asked of `fundus_rt.runtime.resize`, which asks the libraries.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fundus_rt.models.card import INTERPOLATIONS, PreprocessingSpec
from fundus_rt.runtime.resize import Box, resize

PILLOW_BITS = 22
"""Bits behind the point of Pillow's weights for 8-bit pictures."""
OPENCV_BITS = 11
"""Bits behind the point of OpenCV's weights for linear and cubic on 8-bit pictures."""

ARITHMETICS = (
    "pillow",
    "opencv-linear",
    "opencv-cubic",
    "opencv-area-integer",
    "opencv-area-halves",
    "opencv-area",
    "tf-bilinear",
)
"""What is computed with the weights; the position is the number by which the CUDA kernel knows it.

``pillow``: sums of integer weights with 22 bits, rounded half up and bounded to 0 ... 255 after each pass. Nearest neighbours of
every library are this with one weight of 2^22.
``opencv-linear``: first pass exact with 11 bits, S; second ``((b0 * (S0 >> 4)) >> 16) + ((b1 * (S1 >> 4)) >> 16) + 2 >> 2``.
``opencv-cubic``: first pass exact with 11 bits; second in float32, ``S0*b0 + (S1*b1 + (S2*b2 + S3*b3))`` with the weights
divided by 2^22, rounded half to even; the last ``3 * width % 8`` values of a row in integers, rounded half up.
``opencv-area-integer``: whole factors: the exact sum of the block times float32 1/area, rounded half to even.
``opencv-area-halves``: the factor 2 x 2: (sum + 2) >> 2.
``opencv-area``: other reductions: float32 sums in the order of the pixels, first along the row, rounded half to even.
``tf-bilinear``: float32 ``lower + (upper - lower) * share``, first along the row; not rounded.
"""

_SUPPORT = {"pillow-bilinear": 1.0, "pillow-bicubic": 2.0, "pillow-lanczos": 3.0, "pillow-box": 0.5}
_NEAREST = tuple(name for name in INTERPOLATIONS if name.endswith("-nearest"))
_UNITS = {"pillow": 1 / (1 << PILLOW_BITS), "opencv-linear": 1 / (1 << OPENCV_BITS), "opencv-cubic": 1 / (1 << OPENCV_BITS)}
"""What an integer weight counts in the matrices; 1 where it is not named."""
_AREA_EDGE = 1e-3
"""OpenCV leaves a share of a pixel out that is not above this."""


@dataclass(frozen=True)
class Taps:
    """The weights of one pass. Pixel ``i`` of the result takes pixels ``first[i] + k`` of the crop, clamped to its edges."""

    first: NDArray[np.int32]
    """[wanted]; may be negative, or lie so that the last ones are beyond the edge."""
    weights: NDArray[Any]
    """[wanted, taps], int32 in fixed point or float32."""
    length: int
    """Pixels of the crop in this direction: indices clamp to 0 ... length - 1."""


@dataclass(frozen=True)
class ResizeTaps:
    """A resize of one crop: the two passes and the arithmetic that joins them."""

    arithmetic: str
    """One of `ARITHMETICS`."""
    columns: Taps
    """First pass: along each row, from the crop's width to the wanted width."""
    rows: Taps
    """Second pass: along each column, from the crop's height to the wanted height."""


def resize_taps(interpolation: str, length: tuple[int, int], wanted: tuple[int, int]) -> ResizeTaps:
    """The weights with which a filter resizes a crop.

    Args:
        interpolation: one of `fundus_rt.models.card.INTERPOLATIONS`.
        length: height and width of the crop, pixels, 1 or more.
        wanted: height and width of the result, pixels, 1 or more.

    Raises:
        ValueError: unknown `interpolation`, or a length below 1.
    """
    if min(*length, *wanted) < 1:
        raise ValueError(f"got a crop of {length} for a result of {wanted} (height, width), expected 1 pixel or more")
    if interpolation in _SUPPORT:
        return ResizeTaps("pillow", *(_pillow_taps(interpolation, length[i], wanted[i]) for i in (1, 0)))
    if interpolation in _NEAREST:
        return ResizeTaps("pillow", *(_nearest_taps(interpolation, length[i], wanted[i], i) for i in (1, 0)))
    if interpolation == "tf-bilinear":
        return ResizeTaps("tf-bilinear", *(_tf_bilinear_taps(length[i], wanted[i]) for i in (1, 0)))
    if interpolation == "opencv-cubic":
        return ResizeTaps("opencv-cubic", *(_opencv_taps(length[i], wanted[i], _cubic_weights, _half_pixel) for i in (1, 0)))
    if interpolation in ("opencv-linear", "opencv-area"):
        return _opencv_linear_or_area(interpolation, length, wanted)
    raise ValueError(f"got the filter {interpolation!r}, expected one of {', '.join(INTERPOLATIONS)}")


def filter_matrices(
    spec: PreprocessingSpec, box: Box, frame_shape: tuple[int, ...], mirror: bool
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """The two matrices with which a graph with a frame head crops, mirrors and resizes a whole frame.

    Fixed-point weights are divided by 2^22 (Pillow) or 2^11 (OpenCV), which is exact in float32. Whole factors of
    ``opencv-area`` have the weight 1 on each pixel of a block; the graph divides by the block's area. The crop shifts the
    columns, what lies outside of it is 0, and mirroring reverses the rows of `column_filter`.

    Args:
        spec: the card's preprocessing; `input_size` and `interpolation` are used.
        box: left, top, right, bottom of the crop in whole pixels of the frame, right and bottom excluded.
        frame_shape: height and width of the frame, and more.
        mirror: exchange left and right.

    Returns:
        `row_filter` float32 [h, H] and `column_filter` float32 [w, W], C-contiguous; h, w the network's input size.

    Raises:
        ValueError: a box without a pixel of the frame.
    """
    left, top, right, bottom = box
    height, width = frame_shape[:2]
    if min(right, width) <= max(left, 0) or min(bottom, height) <= max(top, 0):
        raise ValueError(f"got the box {box}, which has no pixel of the frame of {width} x {height}")
    taps = resize_taps(spec.interpolation, (bottom - top, right - left), spec.input_size)
    unit = _UNITS.get(taps.arithmetic, 1.0)
    if spec.interpolation == "opencv-linear" and taps.arithmetic == "opencv-area-halves":
        unit = 0.5  # linear at exactly 2 x 2 has the weights 1/2, and with them the arithmetic of linear gives the same numbers
    columns = _dense(taps.columns, unit, left, width)
    return _dense(taps.rows, unit, top, height), np.ascontiguousarray(columns[::-1]) if mirror else columns


def _dense(taps: Taps, unit: float, offset: int, length: int) -> NDArray[np.float32]:
    """The weights, times `unit`, as a matrix over a frame of `length` pixels in which the crop begins at `offset`."""
    wanted, band = taps.weights.shape
    matrix = np.zeros((wanted, length), np.float32)
    weights = (taps.weights * unit).astype(np.float32)
    everywhere = np.arange(wanted)
    for k in range(band):  # at one k each row of the matrix has one place, so += sees no place twice
        place = np.clip(taps.first + k, 0, taps.length - 1) + offset
        inside = (place >= 0) & (place < length)
        matrix[everywhere[inside], place[inside]] += weights[inside, k]
    return matrix


@functools.lru_cache(maxsize=32)
def _pillow_taps(interpolation: str, length: int, wanted: int) -> Taps:
    """Pillow's weights: the filter widens with the reduction, its ends are cut at the edge and the rest sums to one."""
    scale = length / wanted
    stretch = max(scale, 1.0)
    support = _SUPPORT[interpolation] * stretch
    center = (np.arange(wanted) + 0.5) * scale
    first = np.maximum((center - support + 0.5).astype(np.int64), 0)
    count = np.minimum((center + support + 0.5).astype(np.int64), length) - first
    k = np.arange(int(count.max()))
    shape = {"pillow-bilinear": _triangle, "pillow-bicubic": _bicubic, "pillow-lanczos": _lanczos, "pillow-box": _box}
    weights = shape[interpolation](((k + first[:, None]) - center[:, None] + 0.5) * (1.0 / stretch))
    weights = np.where(k < count[:, None], weights, 0.0)
    total = np.zeros(wanted)
    for column in range(len(k)):  # one after the other, as Pillow adds them
        total = total + weights[:, column]
    weights = weights / np.where(total == 0, 1.0, total)[:, None] * (1 << PILLOW_BITS)
    return _frozen(first, np.trunc(weights + np.copysign(0.5, weights)).astype(np.int32), length)


def _triangle(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.maximum(1.0 - np.abs(x), 0.0)


def _bicubic(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Keys' kernel with a = -0.5."""
    a, x = -0.5, np.abs(x)
    near = ((a + 2.0) * x - (a + 3.0)) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * a
    return np.where(x < 1.0, near, np.where(x < 2.0, far, 0.0))


def _lanczos(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.where((x >= -3.0) & (x < 3.0), np.sinc(x) * np.sinc(x / 3), 0.0)


def _box(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.where((x > -0.5) & (x <= 0.5), 1.0, 0.0)


@functools.lru_cache(maxsize=32)
def _nearest_taps(interpolation: str, length: int, wanted: int, axis: int) -> Taps:
    """One pixel each: which one is read off a line of pixels that are numbered in their three channels."""
    counted = np.arange(length, dtype=np.uint32)
    line = np.stack([(counted >> shift & 255).astype(np.uint8) for shift in (0, 8, 16)], axis=1)
    picture = line[:, None] if axis == 0 else line[None]
    found = resize(np.ascontiguousarray(picture), (wanted, 1) if axis == 0 else (1, wanted), interpolation)
    digits = found.reshape(wanted, 3).astype(np.int64)
    return _frozen(digits @ (1, 1 << 8, 1 << 16), np.full((wanted, 1), 1 << PILLOW_BITS, np.int32), length)


@functools.lru_cache(maxsize=32)
def _tf_bilinear_taps(length: int, wanted: int) -> Taps:
    """Half-pixel centres in float32; the weights are one less the share, and the share."""
    scale = np.float32(length) / np.float32(wanted)
    places = (np.arange(wanted, dtype=np.float32) + np.float32(0.5)) * scale - np.float32(0.5)
    share = places - np.floor(places)
    return _frozen(np.floor(places), np.stack([np.float32(1) - share, share], axis=1), length)


def _opencv_linear_or_area(interpolation: str, length: tuple[int, int], wanted: tuple[int, int]) -> ResizeTaps:
    """OpenCV's choice: linear at exactly 2 x 2 is area, area that enlarges in one direction is linear with other places."""
    factors = [_opencv_scale(length[i], wanted[i]) for i in (1, 0)]
    whole = [round(factor) for factor in factors]
    are_whole = all(abs(f - w) < np.finfo(np.float64).eps for f, w in zip(factors, whole, strict=True))
    by_area = interpolation == "opencv-area" and min(factors) >= 1
    if are_whole and (by_area or (interpolation == "opencv-linear" and whole == [2, 2])):
        arithmetic = "opencv-area-halves" if whole == [2, 2] else "opencv-area-integer"
        columns, rows = (
            _frozen(np.arange(wanted[i]) * k, np.ones((wanted[i], k), np.int32), length[i])
            for i, k in zip((1, 0), whole, strict=True)
        )
        return ResizeTaps(arithmetic, columns, rows)
    if by_area:
        return ResizeTaps("opencv-area", *(_opencv_area_taps(length[i], wanted[i]) for i in (1, 0)))
    place = _half_pixel if interpolation == "opencv-linear" else _area_place
    return ResizeTaps("opencv-linear", *(_opencv_taps(length[i], wanted[i], _linear_weights, place) for i in (1, 0)))


def _opencv_scale(length: int, wanted: int) -> float:
    return 1.0 / (wanted / length)


@functools.lru_cache(maxsize=32)
def _opencv_area_taps(length: int, wanted: int) -> Taps:
    """Shares of the pixels that an output pixel covers, in float32: a part of the first, whole ones, a part of the last."""
    scale = _opencv_scale(length, wanted)
    begin = np.arange(wanted) * scale
    end = begin + scale
    cell = np.minimum(scale, length - begin)
    last = np.minimum(np.floor(end).astype(np.int64), length - 1)
    whole = np.minimum(np.ceil(begin).astype(np.int64), last)
    has_part = whole - begin > _AREA_EDGE
    first = whole - has_part
    k = np.arange(int((last - first).max()) + 1)
    place = first[:, None] + k
    weights = np.where((place >= whole[:, None]) & (place < last[:, None]), (1.0 / cell)[:, None], 0.0)
    weights = np.where((place < whole[:, None]), ((whole - begin) / cell)[:, None], weights)
    tail = np.where(end - last > _AREA_EDGE, np.minimum(np.minimum(end - last, 1.0), cell) / cell, 0.0)
    weights = np.where(place == last[:, None], tail[:, None], weights)
    return _frozen(first, weights.astype(np.float32), length)


def _half_pixel(length: int, wanted: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Lower neighbour and share of the upper one with pixel centres at halves, the share in float32 as OpenCV has it."""
    place = ((np.arange(wanted) + 0.5) * _opencv_scale(length, wanted) - 0.5).astype(np.float32)
    lower = np.floor(place)
    return lower.astype(np.int64), place - lower


def _area_place(length: int, wanted: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """As `_half_pixel` for an area that enlarges: pixels are copied, and mixed where a border falls inside one."""
    lower = np.floor(np.arange(wanted) * _opencv_scale(length, wanted)).astype(np.int64)
    share = ((np.arange(wanted) + 1) - (lower + 1) * (wanted / length)).astype(np.float32)
    return lower, np.where(share <= 0, np.float32(0), share - np.floor(share)).astype(np.float32)


def _linear_weights(share: NDArray[np.float32]) -> list[NDArray[np.float32]]:
    return [np.float32(1) - share, share]


def _cubic_weights(share: NDArray[np.float32]) -> list[NDArray[np.float32]]:
    """Keys' kernel with a = -0.75, in float32 in OpenCV's order; the last weight is what is left of one."""
    a, one = np.float32(-0.75), np.float32(1)
    two, three, five, eight, four = (np.float32(v) for v in (2, 3, 5, 8, 4))
    other, far = one - share, share + one
    w0 = ((a * far - five * a) * far + eight * a) * far - four * a
    w1 = ((a + two) * share - (a + three)) * share * share + one
    w2 = ((a + two) * other - (a + three)) * other * other + one
    return [w0, w1, w2, one - w0 - w1 - w2]


def _opencv_taps(
    length: int,
    wanted: int,
    weights_of: Callable[[NDArray[np.float32]], list[NDArray[np.float32]]],
    place: Callable[[int, int], tuple[NDArray[np.int64], NDArray[np.float32]]],
) -> Taps:
    """OpenCV's fixed-point weights; what reaches beyond the edge takes the edge's pixel."""
    lower, share = place(length, wanted)
    weights = np.stack(weights_of(share), axis=1)
    fixed = np.rint(weights * np.float32(1 << OPENCV_BITS)).astype(np.int32)
    return _frozen(lower - (fixed.shape[1] // 2 - 1), fixed, length)


def _frozen(first: NDArray[Any], weights: NDArray[Any], length: int) -> Taps:
    """Taps whose arrays nobody can change: they are kept and handed out again."""
    places = first.astype(np.int32)
    places.flags.writeable = weights.flags.writeable = False
    return Taps(places, weights, length)
