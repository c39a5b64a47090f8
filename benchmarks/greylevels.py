"""Our preprocessing against the library that each filter is named after, in grey levels, on the example photographs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fundus_rt.models.card import INTERPOLATIONS, PreprocessingSpec
from fundus_rt.models.registry import EXAMPLE_FOLDER
from fundus_rt.runtime.decode import decode
from fundus_rt.runtime.field_of_view import find_field_of_view
from fundus_rt.runtime.preprocess import tensor_from_frame

SIZE = 384

_PILLOW = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
    "box": Image.Resampling.BOX,
}
_OPENCV = {
    "nearest": cv2.INTER_NEAREST,
    "linear": cv2.INTER_LINEAR,
    "cubic": cv2.INTER_CUBIC,
    "area": cv2.INTER_AREA,
}


def library_resize(name: str) -> Callable[[NDArray[np.uint8]], NDArray[Any]] | None:
    """The library's own resize of a whole RGB picture to 384 x 384; None where the library is not installed."""
    library, _, kind = name.partition("-")
    if library == "keras":
        library, kind = "pillow", "nearest"
    if library == "pillow":
        return lambda rgb: np.asarray(Image.fromarray(rgb).resize((SIZE, SIZE), _PILLOW[kind]))
    if library == "opencv":
        return lambda rgb: np.asarray(cv2.resize(rgb, (SIZE, SIZE), interpolation=_OPENCV[kind]))
    try:
        import tensorflow
    except ImportError:
        return None
    return lambda rgb: np.asarray(tensorflow.image.resize(rgb, (SIZE, SIZE), method=kind))


def grey_level_table() -> dict[str, dict[str, Any]]:
    """By filter: largest difference in grey levels and share of values that differ, from file to tensor.

    One side is Pillow's decoder and the named library on the whole picture, the other our decoder and `tensor_from_frame`.
    """
    found: dict[str, dict[str, Any]] = {}
    for name in INTERPOLATIONS:
        reference = library_resize(name)
        if reference is None:
            found[name] = {"not_run": "tensorflow is not installed"}
            continue
        spec = PreprocessingSpec((SIZE, SIZE), "none", name, "RGB", 1.0, (0, 0, 0), (1, 1, 1))
        differences = []
        for path in sorted(EXAMPLE_FOLDER.glob("*.jpg")):
            with Image.open(path) as picture:
                theirs = reference(np.asarray(picture.convert("RGB"))).astype(np.float64)
            frame = decode(path.read_bytes()).frame
            ours = tensor_from_frame(frame, find_field_of_view(frame), spec)[..., ::-1].astype(np.float64)
            differences.append(np.abs(ours - theirs))
        every = np.stack(differences)
        found[name] = {"largest": float(every.max()), "share_that_differs": float((every > 1e-3).mean())}
    return found
