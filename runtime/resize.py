"""Resize a picture with exactly the numbers of the library that a model was trained with.

The published models saw photographs that one library had reduced, and libraries differ by up to 57 grey levels under the same
filter name. So every filter is named by its library (`fundus_rt.models.card.INTERPOLATIONS`) and its numbers are that library's:
Pillow and OpenCV do their own, TensorFlow's two filters are computed here from their definition, for a device has no TensorFlow.
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fundus_rt.models.card import INTERPOLATIONS

PILLOW_FILTERS = {
    "pillow-nearest": Image.Resampling.NEAREST,
    "pillow-bilinear": Image.Resampling.BILINEAR,
    "pillow-bicubic": Image.Resampling.BICUBIC,
    "pillow-lanczos": Image.Resampling.LANCZOS,
    "pillow-box": Image.Resampling.BOX,
    "keras-nearest": Image.Resampling.NEAREST,
}
OPENCV_FILTERS = {
    "opencv-nearest": cv2.INTER_NEAREST,
    "opencv-linear": cv2.INTER_LINEAR,
    "opencv-cubic": cv2.INTER_CUBIC,
    "opencv-area": cv2.INTER_AREA,
}


def resize(image: NDArray[np.uint8], size: tuple[int, int], interpolation: str) -> NDArray[Any]:
    """Resize a whole picture.

    Args:
        image: uint8 [H, W, 3], any order of channels. Not changed.
        size: height and width of the result, pixels.
        interpolation: one of `fundus_rt.models.card.INTERPOLATIONS`.

    Returns:
        [height, width, 3], uint8, or float32 (grey levels, not rounded) for ``tf-bilinear``.

    Raises:
        ValueError: unknown `interpolation`.
    """
    height, width = size
    if interpolation in PILLOW_FILTERS:
        picture = Image.fromarray(np.ascontiguousarray(image))
        return np.asarray(picture.resize((width, height), PILLOW_FILTERS[interpolation]))
    if interpolation in OPENCV_FILTERS:
        return cv2.resize(image, (width, height), interpolation=OPENCV_FILTERS[interpolation])
    if interpolation == "tf-bilinear":
        return _tf_bilinear(image, height, width)
    if interpolation == "tf-nearest":
        rows, columns = _tf_nearest_places(image.shape[0], height), _tf_nearest_places(image.shape[1], width)
        return np.ascontiguousarray(image[rows[:, None], columns])
    raise ValueError(f"got the filter {interpolation!r}, expected one of {', '.join(INTERPOLATIONS)}")


def _tf_bilinear(image: NDArray[np.uint8], height: int, width: int) -> NDArray[np.float32]:
    """`tf.image.resize(image, size, "bilinear")`: half-pixel centres, two taps, float32 arithmetic in TensorFlow's order.

    Source: `compute_interpolation_weights` and `compute_lerp` in tensorflow/core/kernels/image/resize_bilinear_op.cc.
    """
    top, bottom, down = _tf_bilinear_taps(image.shape[0], height)
    left, right, along = _tf_bilinear_taps(image.shape[1], width)
    across = []
    for rows in (image[top], image[bottom]):
        begins, ends = rows[:, left].astype(np.float32), rows[:, right].astype(np.float32)
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
