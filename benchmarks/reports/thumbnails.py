"""Small pictures for a report: pixels only, encoded anew, so that nothing a camera wrote into its file goes along."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from fundus_rt.models.errors import UsageError
from fundus_rt.runtime import decode

MOST_SIDE = 256
"""Longest side of a thumbnail, pixels."""
_QUALITY = 85


def thumbnail(photograph: NDArray[np.uint8] | bytes, size: int = MOST_SIDE) -> bytes:
    """A JPEG of at most `size` pixels a side, without metadata.

    Reduced by area averages; a photograph that is smaller already keeps its size.

    Args:
        photograph: a frame, uint8 [H, W, 3], BGR, 0 to 255; or the content of a picture file, which is decoded and turned
            upright as the runtime does it.
        size: longest side, pixels, 16 to 256.

    Returns:
        The JPEG file: no EXIF, no colour profile, no comment.

    Raises:
        UsageError: the frame or the size is not as above.
        DecodeError: the content is no picture.
    """
    if not 16 <= size <= MOST_SIDE:
        raise UsageError(f"a thumbnail of {size} pixels was asked for, expected 16 to {MOST_SIDE}")
    frame = decode.decode(photograph).frame if isinstance(photograph, bytes) else photograph
    if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3 or 0 in frame.shape:
        raise UsageError(f"a thumbnail needs a frame of uint8 [H, W, 3], got {frame.dtype} {list(frame.shape)}")
    height, width = frame.shape[:2]
    factor = size / max(height, width)
    if factor < 1:
        smaller = (max(round(width * factor), 1), max(round(height * factor), 1))
        frame = np.asarray(cv2.resize(frame, smaller, interpolation=cv2.INTER_AREA), np.uint8)
    done, encoded = cv2.imencode(".jpg", np.ascontiguousarray(frame), [cv2.IMWRITE_JPEG_QUALITY, _QUALITY])
    if not done:
        raise UsageError(f"OpenCV {cv2.__version__} cannot encode JPEG; install opencv-python-headless")
    return bytes(encoded)
