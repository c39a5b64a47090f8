"""Resize a picture with exactly the numbers of the library that a model was trained with.

The published models saw photographs that one library had reduced, and libraries differ by up to 57 grey levels under the
same filter name. So every filter is named by its library (`fundus_rt.models.card.INTERPOLATIONS`), and its numbers are that
library's: Pillow and OpenCV do their own; TensorFlow's two filters are computed here, for a device has no TensorFlow.

Pillow's filters take most of the time that preprocessing takes, so Pillow is fed in the way that costs it least, which changes
no value. It keeps RGB in four bytes a pixel and copies a numpy array into that form slowly; here OpenCV widens the pixels, and
Pillow reads them in place as ``RGBX``. Pillow reduces rows first, rounds to grey levels, then columns: the two passes are
called one after the other, so that black rows above and below the photograph take part in the second one only. It also keeps
the numbers those of the Pillow that the models were trained with: from version 13 on, `Image.resize` takes the passes in the
other order where the height shrinks much more than the width (python-pillow/Pillow#9549), which moves values by one. And a row
knows nothing of its neighbours in the first pass, so as many threads as OpenCV may use (``cv2.setNumThreads``) share the rows.

OpenCV hands some calls to what the processor's maker wrote for it, which need not have OpenCV's numbers: with KleidiCV, in the
arm64 wheels of OpenCV 5.0, ``opencv-linear`` is up to 2 grey levels away in a third of all values. So on first use it is
looked at, and where it differs the same filter is asked for in a way that no such library takes.
"""

from __future__ import annotations

import functools
import os
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fundus_rt.models.card import INTERPOLATIONS

Pixels = NDArray[np.uint8]
Box = tuple[int, int, int, int]

PILLOW_FILTERS = {
    "pillow-bilinear": Image.Resampling.BILINEAR,
    "pillow-bicubic": Image.Resampling.BICUBIC,
    "pillow-lanczos": Image.Resampling.LANCZOS,
    "pillow-box": Image.Resampling.BOX,
}
"""Pillow's separable filters. They widen with the reduction (antialias)."""
OPENCV_FILTERS = {
    "opencv-nearest": cv2.INTER_NEAREST,
    "opencv-linear": cv2.INTER_LINEAR,
    "opencv-cubic": cv2.INTER_CUBIC,
    "opencv-area": cv2.INTER_AREA,
}
PILLOW_NEAREST = ("pillow-nearest", "keras-nearest")
"""Keras' `load_img(target_size=...)` is Pillow's nearest neighbour unless told otherwise."""

_LINEAR_SIZES = ((131, 127), (96, 99), (80, 80), (71, 62), (53, 57), (41, 37), (224, 200), (320, 320), (64, 224))
"""Heights and widths that `opencv_resizes_linear_itself` tries from 160 x 160: reduced by up to 4, enlarged up to 2 times."""
_ROWS = 256
"""Rows that a thread widens to four bytes a pixel at a time: bounds the memory beside the frame."""


def resize(image: Pixels, size: tuple[int, int], interpolation: str) -> NDArray[Any]:
    """Resize a whole picture, see `resize_box`."""
    return resize_box(image, (0, 0, image.shape[1], image.shape[0]), size, interpolation)


def resize_box(image: Pixels, box: Box, size: tuple[int, int], interpolation: str) -> NDArray[Any]:
    """Crop, then resize: nothing outside of the box has any influence.

    (Pillow's own ``resize(box=...)`` is something else: it reads beyond the box.)

    Args:
        image: uint8 [H, W, 3], any order of channels. Not changed.
        box: left, top, right, bottom in whole pixels, right and bottom excluded. Where it reaches beyond the picture it is
            black. It must have a pixel in common with the picture.
        size: height and width of the result, pixels.
        interpolation: one of `fundus_rt.models.card.INTERPOLATIONS`.

    Returns:
        A new array [height, width, 3], uint8, or float32 (grey levels, not rounded) for ``tf-bilinear``.

    Raises:
        ValueError: unknown `interpolation`, or a box without a pixel of the picture.
    """
    left, top, right, bottom = box
    if min(right, image.shape[1]) <= max(left, 0) or min(bottom, image.shape[0]) <= max(top, 0):
        raise ValueError(f"got the box {box}, which has no pixel of the picture of {image.shape[1]} x {image.shape[0]}")
    if interpolation in PILLOW_FILTERS:
        return _pillow(image, box, size, PILLOW_FILTERS[interpolation])
    picture = cropped(image, box)
    height, width = size
    if interpolation == "opencv-linear" and not opencv_resizes_linear_itself():
        return _opencv_linear(picture, height, width)
    if interpolation in OPENCV_FILTERS:
        return np.asarray(cv2.resize(picture, (width, height), interpolation=OPENCV_FILTERS[interpolation]))
    if interpolation == "tf-bilinear":
        return _tf_bilinear(picture, height, width)
    if interpolation in PILLOW_NEAREST:
        return picture[_pillow_places(picture.shape[0], height)[:, None], _pillow_places(picture.shape[1], width)]
    if interpolation == "tf-nearest":
        return picture[_tf_nearest_places(picture.shape[0], height)[:, None], _tf_nearest_places(picture.shape[1], width)]
    raise ValueError(f"got the filter {interpolation!r}, expected one of {', '.join(INTERPOLATIONS)}")


def cropped(image: Pixels, box: Box) -> Pixels:
    """The pixels of a box, black where it reaches beyond the picture; a view of the picture where it does not."""
    left, top, right, bottom = box
    height, width = image.shape[:2]
    inner = image[max(top, 0) : max(bottom, 0), max(left, 0) : max(right, 0)]
    if left >= 0 and top >= 0 and right <= width and bottom <= height:
        return inner
    padded = np.zeros((bottom - top, right - left, 3), np.uint8)
    row, column = max(-top, 0), max(-left, 0)
    padded[row : row + inner.shape[0], column : column + inner.shape[1]] = inner
    return padded


def _pillow(image: Pixels, box: Box, size: tuple[int, int], filter_: Image.Resampling) -> Pixels:
    """Pillow's resize of a crop: its pass over rows on the picture's own rows, then its pass over columns on the square."""
    left, top, right, bottom = box
    height, width = size
    rows = image[max(top, 0) : bottom, max(left, 0) : right]
    before = max(-left, 0)
    narrow = Image.new("RGBX", (width, bottom - top))  # a black row stays black in the pass over rows

    def over_rows(start: int) -> Image.Image:
        some = rows[start : start + _ROWS]
        wide = np.zeros((some.shape[0], right - left, 4), np.uint8)
        cv2.cvtColor(some, cv2.COLOR_BGR2BGRA, dst=wide[:, before : before + some.shape[1]])
        picture = Image.frombuffer("RGBX", (wide.shape[1], wide.shape[0]), wide, "raw", "RGBX", 0, 1)  # no copy
        return picture.resize((width, wide.shape[0]), filter_)

    starts = range(0, rows.shape[0], _ROWS)
    threads = min(cv2.getNumThreads(), len(starts))
    for start, part in zip(starts, _pool(threads).map(over_rows, starts) if threads > 1 else map(over_rows, starts), strict=True):
        narrow.paste(part, (0, max(-top, 0) + start))
    reduced = np.asarray(narrow.resize((width, height), filter_))
    return np.asarray(cv2.cvtColor(reduced, cv2.COLOR_BGRA2BGR), np.uint8)


@functools.lru_cache(maxsize=1)
def opencv_resizes_linear_itself() -> bool:
    """Whether this machine's OpenCV has its own numbers for linear on pictures of three channels, by small noisy ones."""
    picture = np.random.default_rng(0).integers(0, 256, (160, 160, 3), dtype=np.uint8)
    for height, width in _LINEAR_SIZES:
        usual = np.asarray(cv2.resize(picture, (width, height), interpolation=cv2.INTER_LINEAR))
        if not np.array_equal(usual, _opencv_linear(picture, height, width)):
            return False
    return True


def _opencv_linear(image: Pixels, height: int, width: int) -> Pixels:
    """OpenCV's own linear filter, whatever library it was built with: the makers' libraries take one to four channels.

    At exactly half of the size OpenCV takes the area filter instead, for up to four channels only.
    """
    if image.shape[:2] == (2 * height, 2 * width):
        return np.asarray(cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA), np.uint8)
    wide = np.zeros((*image.shape[:2], 5), np.uint8)
    wide[..., :3] = image
    resized = np.asarray(cv2.resize(wide, (width, height), interpolation=cv2.INTER_LINEAR), np.uint8)
    return np.ascontiguousarray(resized[..., :3])


@functools.lru_cache(maxsize=4)
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="resize")


if hasattr(os, "register_at_fork"):  # a forked process has the pool without its threads, and would wait for them for ever
    os.register_at_fork(after_in_child=_pool.cache_clear)


@functools.lru_cache(maxsize=64)
def _pillow_places(length: int, wanted: int) -> NDArray[np.int32]:
    """Which pixel Pillow's nearest neighbour takes: its own answer for a line of counting numbers."""
    line = Image.fromarray(np.arange(length, dtype=np.int32)[None])
    places: NDArray[np.int32] = np.asarray(line.resize((wanted, 1), Image.Resampling.NEAREST), np.int32)[0]
    return places


def _tf_bilinear(image: Pixels, height: int, width: int) -> NDArray[np.float32]:
    """`tf.image.resize(image, size, "bilinear")`: half-pixel centres, two taps, float32 arithmetic in TensorFlow's order.

    Source: `compute_interpolation_weights` and `compute_lerp` in tensorflow/core/kernels/image/resize_bilinear_op.cc.
    """
    top, bottom, down = _tf_bilinear_taps(image.shape[0], height)
    left, right, along = _tf_bilinear_taps(image.shape[1], width)
    across = []
    for rows in (top[:, None], bottom[:, None]):
        begins, ends = image[rows, left].astype(np.float32), image[rows, right].astype(np.float32)
        across.append(begins + (ends - begins) * along[:, None])
    result: NDArray[np.float32] = across[0] + (across[1] - across[0]) * down[:, None, None]
    return result


def _tf_bilinear_taps(length: int, wanted: int) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
    """Lower and upper neighbour of each wanted pixel, and how far it lies from the lower one."""
    places = _tf_places(length, wanted) - np.float32(0.5)
    floor = np.floor(places)
    lower = np.maximum(floor.astype(np.int64), 0)
    upper = np.minimum(np.ceil(places).astype(np.int64), length - 1)
    return lower, upper, places - floor


def _tf_nearest_places(length: int, wanted: int) -> NDArray[np.int64]:
    return np.minimum(np.floor(_tf_places(length, wanted)).astype(np.int64), length - 1)


def _tf_places(length: int, wanted: int) -> NDArray[np.float32]:
    """Centres of the wanted pixels in pixels of the source, edges at whole numbers, in float32 as TensorFlow has them."""
    scale = np.float32(length) / np.float32(wanted)
    places: NDArray[np.float32] = (np.arange(wanted, dtype=np.float32) + np.float32(0.5)) * scale
    return places
