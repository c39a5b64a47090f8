"""A photograph on its author's way to the network: decoded, resized and normalised by the libraries that the card names.

The other side of a conversion's proof. The runtime makes the same tensors with code of its own; here nothing of that is used,
so a mistake in the runtime's preprocessing, or in the normalisation that is folded into the shipped graph, shows as a
difference between the answers.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fundus_rt.converters.backends import require, require_keras, require_torchvision
from fundus_rt.models.card import PreprocessingSpec

KERAS_MODES: dict[str, tuple[str, float, tuple[float, ...], tuple[float, ...]]] = {
    "tf": ("RGB", 1 / 127.5, (1.0, 1.0, 1.0), (1.0, 1.0, 1.0)),
    "caffe": ("BGR", 1.0, (103.939, 116.779, 123.68), (1.0, 1.0, 1.0)),
    "torch": ("RGB", 1 / 255, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}
"""Colour order, scale, mean and deviation of `keras.applications.imagenet_utils.preprocess_input`, by its mode."""


@dataclass(frozen=True)
class Photograph:
    """A photograph before anything is done to it, and what the card's crop and laterality rules make of it."""

    content: bytes
    """The file: JPEG, PNG, TIFF, PPM or BMP."""
    box: tuple[int, int, int, int]
    """Left, top, right, bottom in whole pixels of the upright picture, right and bottom excluded. May reach beyond it."""
    mirror: bool = False
    """Exchange left and right, before the resize."""


@dataclass(frozen=True)
class OriginalInputs:
    """Network inputs as the author's libraries make them."""

    images: np.ndarray
    """float32 [N, H, W, 3], normalised, in the network's colour order."""
    libraries: str
    """What made them, for the reader."""


def original_inputs(photographs: Sequence[Photograph], spec: PreprocessingSpec, framework: str) -> OriginalInputs:
    """Make network inputs with the libraries that a card names and its framework's own functions.

    Args:
        photographs: at least one.
        spec: the card's preprocessing.
        framework: ``pytorch`` takes torchvision's functional transforms, ``keras`` and ``tensorflow`` Keras' `load_img`,
            `img_to_array` and `preprocess_input`, others Pillow and NumPy. The filter decides first: ``opencv-*`` is OpenCV's
            decoder and resize, ``tf-*`` is `tf.image.resize`.

    Raises:
        BackendUnavailableError: one of the libraries is not installed.
        ValueError: a picture that Pillow or OpenCV cannot read.
    """
    if spec.interpolation.startswith("opencv-"):
        levels, library = [_resized_by_opencv(photograph, spec) for photograph in photographs], "OpenCV"
    elif spec.interpolation.startswith("tf-"):
        levels, library = [_resized_by_tensorflow(photograph, spec) for photograph in photographs], "Pillow and tf.image"
    elif framework in ("keras", "tensorflow"):
        levels, library = [_resized_by_keras(photograph, spec) for photograph in photographs], "Keras' load_img"
    elif framework == "pytorch":
        levels, library = [_resized_by_torchvision(photograph, spec) for photograph in photographs], "Pillow and torchvision"
    else:
        levels, library = [_resized_by_pillow(photograph, spec) for photograph in photographs], "Pillow"
    normalise, by = _normaliser(spec, framework)
    return OriginalInputs(np.stack([normalise(picture) for picture in levels]), f"{library}, normalised by {by}")


def normalised(levels: np.ndarray, spec: PreprocessingSpec, framework: str) -> np.ndarray:
    """Grey levels that are resized already, normalised by the framework's own functions as `original_inputs` does it.

    Args:
        levels: [N, H, W, 3], RGB, uint8 or float32, 0 to 255.
        spec, framework: as `original_inputs`.

    Returns:
        float32 [N, H, W, 3], in the network's colour order.
    """
    normalise, _ = _normaliser(spec, framework)
    return np.stack([normalise(picture) for picture in levels])


def largest_level_difference(images: np.ndarray, others: np.ndarray, spec: PreprocessingSpec) -> float:
    """Largest difference between two sets of network inputs, in grey levels.

    Args:
        images: float32 [N, H, W, 3], normalised, in the network's colour order.
        others: the same.
        spec: the card's preprocessing; only scale and deviation are used.
    """
    apart = np.abs(images.astype(np.float64) - others) * (np.asarray(spec.std, np.float64) / spec.scale)
    return float(apart.max())


def _pillow_picture(photograph: Photograph) -> Any:
    """RGB, upright, cropped (black beyond the picture), mirrored."""
    from PIL import Image, ImageOps

    try:
        with Image.open(io.BytesIO(photograph.content)) as opened:
            picture = ImageOps.exif_transpose(opened).convert("RGB")
    except (OSError, SyntaxError) as error:
        raise ValueError(f"Pillow cannot read a photograph of {len(photograph.content):,} bytes ({error})") from error
    picture = picture.crop(photograph.box)
    return ImageOps.mirror(picture) if photograph.mirror else picture


def _filter_name(spec: PreprocessingSpec) -> str:
    """The filter's name without its library: ``bilinear``, ``nearest``, ..."""
    return spec.interpolation.partition("-")[2]


def _resized_by_pillow(photograph: Photograph, spec: PreprocessingSpec) -> np.ndarray:
    """uint8 [H, W, 3], RGB."""
    from PIL import Image

    height, width = spec.input_size
    return np.asarray(_pillow_picture(photograph).resize((width, height), Image.Resampling[_filter_name(spec).upper()]))


def _resized_by_torchvision(photograph: Photograph, spec: PreprocessingSpec) -> np.ndarray:
    """uint8 [H, W, 3], RGB, through `torchvision.transforms.functional.resize` on the Pillow picture."""
    require_torchvision()
    functional = require("torchvision.transforms.functional")
    mode = functional.InterpolationMode[_filter_name(spec).upper()]
    return np.asarray(functional.resize(_pillow_picture(photograph), list(spec.input_size), mode))


def _resized_by_keras(photograph: Photograph, spec: PreprocessingSpec) -> np.ndarray:
    """float32 [H, W, 3], RGB, through Keras' `load_img` on the cropped picture, which is handed over without loss."""
    _, keras = require_keras()
    cropped = io.BytesIO()
    _pillow_picture(photograph).save(cropped, "PNG", compress_level=1)
    cropped.seek(0)
    picture = keras.utils.load_img(cropped, target_size=spec.input_size, interpolation=_filter_name(spec))
    return np.asarray(keras.utils.img_to_array(picture), np.float32)


def _resized_by_tensorflow(photograph: Photograph, spec: PreprocessingSpec) -> np.ndarray:
    """float32 [H, W, 3], RGB, through `tf.image.resize` without antialias."""
    tensorflow, _ = require_keras()
    picture = np.asarray(_pillow_picture(photograph))
    return np.asarray(tensorflow.image.resize(picture, spec.input_size, method=_filter_name(spec)), np.float32)


def _resized_by_opencv(photograph: Photograph, spec: PreprocessingSpec) -> np.ndarray:
    """uint8 [H, W, 3], RGB, decoded and resized by OpenCV."""
    cv2 = require("cv2")
    frame = cv2.imdecode(np.frombuffer(photograph.content, np.uint8), cv2.IMREAD_COLOR)
    if frame is None:
        raise ValueError(f"OpenCV cannot read a photograph of {len(photograph.content):,} bytes")
    left, top, right, bottom = photograph.box
    height, width = frame.shape[:2]
    inside = frame[max(top, 0) : min(bottom, height), max(left, 0) : min(right, width)]
    beyond = (max(-top, 0), max(bottom - height, 0), max(-left, 0), max(right - width, 0))
    inside = cv2.copyMakeBorder(inside, *beyond, cv2.BORDER_CONSTANT, value=(0, 0, 0))
    if photograph.mirror:
        inside = cv2.flip(inside, 1)
    method = getattr(cv2, f"INTER_{_filter_name(spec).upper()}")
    resized = cv2.resize(inside, (spec.input_size[1], spec.input_size[0]), interpolation=method)
    return np.asarray(cv2.cvtColor(resized, cv2.COLOR_BGR2RGB))


def _normaliser(spec: PreprocessingSpec, framework: str) -> tuple[Any, str]:
    """A function from RGB grey levels [H, W, 3] to the network's input float32 [H, W, 3], and whose it is."""
    if framework == "pytorch":
        return _normaliser_of_torchvision(spec), "torchvision"
    if framework in ("keras", "tensorflow"):
        for mode, (order, scale, mean, std) in KERAS_MODES.items():
            if (order, *mean, *std) == (spec.color_order, *spec.mean, *spec.std) and np.isclose(scale, spec.scale, rtol=1e-12):
                return _normaliser_of_keras(mode), f"keras.applications in its mode {mode!r}"
    return _normaliser_of_numpy(spec), "NumPy"


def _normaliser_of_torchvision(spec: PreprocessingSpec) -> Any:
    """`to_tensor` where the card divides by 255, then `normalize`."""
    torch = require("torch")
    require_torchvision()
    functional = require("torchvision.transforms.functional")

    def normalise(levels: np.ndarray) -> np.ndarray:
        ordered = levels[..., ::-1] if spec.color_order == "BGR" else levels
        if levels.dtype == np.uint8 and spec.scale == 1 / 255:
            tensor = functional.to_tensor(np.array(ordered))
        else:
            tensor = torch.from_numpy(np.ascontiguousarray(ordered.transpose(2, 0, 1), np.float32)) * spec.scale
        return np.ascontiguousarray(functional.normalize(tensor, spec.mean, spec.std).numpy().transpose(1, 2, 0))

    return normalise


def _normaliser_of_keras(mode: str) -> Any:
    _, keras = require_keras()

    def normalise(levels: np.ndarray) -> np.ndarray:
        pixels = np.array(levels, np.float32)[None]  # a copy: Keras works in place
        return np.asarray(keras.applications.imagenet_utils.preprocess_input(pixels, mode=mode)[0], np.float32)

    return normalise


def _normaliser_of_numpy(spec: PreprocessingSpec) -> Any:
    def normalise(levels: np.ndarray) -> np.ndarray:
        ordered = levels[..., ::-1] if spec.color_order == "BGR" else levels
        return ((np.float64(spec.scale) * ordered - spec.mean) / spec.std).astype(np.float32)

    return normalise
