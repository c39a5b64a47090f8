"""From a frame and its field of view to the network's input: crop, resize, mirror, exactly as a card says.

Colour order and normalisation are no part of this: they are in the shipped graph.
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from fundus_rt.models.card import CROP_MODES, PreprocessingSpec
from fundus_rt.runtime.field_of_view import FieldOfView
from fundus_rt.runtime.resize import Box, resize_box

Frame = NDArray[np.uint8]


def crop_box(field_of_view: FieldOfView, frame_shape: tuple[int, ...], spec: PreprocessingSpec) -> Box:
    """The part of the frame that a model sees, as left, top, right, bottom in whole pixels; right and bottom are excluded.

    ``none`` is the whole frame. ``center`` is the largest centred square, rounded towards the upper left as torchvision's
    CenterCrop does. ``field-of-view`` is the square of side ``2 * radius`` around the centre; it may reach beyond the frame.

    Args:
        field_of_view: in pixels of the frame.
        frame_shape: height and width of the frame, and more.
        spec: only `crop_mode` is used.
    """
    height, width = frame_shape[:2]
    if spec.crop_mode == "none":
        return 0, 0, width, height
    if spec.crop_mode == "center":
        side = min(width, height)
        left, top = round((width - side) / 2), round((height - side) / 2)
    elif spec.crop_mode == "field-of-view":
        side = max(1, round(2 * field_of_view.radius))
        left, top = (round(middle + 0.5 - side / 2) for middle in field_of_view.center)  # pixel centres are at whole numbers
    else:
        raise ValueError(f"got the crop mode {spec.crop_mode!r}, expected one of {', '.join(CROP_MODES)}")
    return left, top, left + side, top + side


def tensor_from_frame(
    frame: Frame,
    field_of_view: FieldOfView,
    spec: PreprocessingSpec,
    mirror: bool = False,
    out: NDArray[Any] | None = None,
) -> NDArray[Any]:
    """The network's input for one photograph.

    A left eye is mirrored after the resize, so that the large frame need not be copied. The bilinear, bicubic, lanczos, linear,
    cubic and area filters are symmetric: it is the resize of the mirrored photograph but for single values that differ by one.
    ``opencv-nearest``, and ``pillow-box`` on ties, decide to one side; with them an author who mirrored first got other pixels.

    Args:
        frame: uint8 [H, W, 3], BGR. Not changed.
        field_of_view: in pixels of the frame; used where the card crops to it.
        spec: the card's preprocessing.
        mirror: exchange left and right.
        out: where to write, [height, width, 3] of `spec.input_size` and `spec.input_dtype`, for example a row of a batch; None
            for a new array.

    Returns:
        `out`, or a new C-contiguous array: BGR grey levels 0 to 255, uint8, or float32 where the card's filter does not round.

    Raises:
        ValueError: `out` has another shape or dtype.
    """
    return tensor_from_box(frame, crop_box(field_of_view, frame.shape, spec), spec, mirror, out)


def tensor_from_box(
    frame: Frame, box: Box, spec: PreprocessingSpec, mirror: bool = False, out: NDArray[Any] | None = None
) -> NDArray[Any]:
    """`tensor_from_frame` for a crop that is known already: left, top, right, bottom as `crop_box` gives them."""
    expected = (*spec.input_size, 3)
    if out is None:
        out = np.empty(expected, spec.input_dtype)
    elif out.shape != expected or out.dtype != spec.input_dtype:
        raise ValueError(f"got out of {out.dtype} {out.shape}, expected {spec.input_dtype} {expected}")
    tensor = resize_box(frame, box, spec.input_size, spec.interpolation)
    np.copyto(out, cv2.flip(tensor, 1) if mirror else tensor)
    return out
