"""What an EfficientNet of Keras does to grey levels before its first convolution: five versions wrote five different things.

Read in ``applications/efficientnet.py`` of Keras 2.4 to 2.15. The published weights carry a Normalization layer whose "variance"
is the deviation itself, (0.229, 0.224, 0.225), and the layer divides by its root. Keras up to 2.8 left it at that; 2.9 divides
once more by the root (an operation between layers, ``tf.math.truediv``), 2.10 and later with a second Rescaling
layer, tf_keras with ``tf.math.multiply``. Built without the published weights, the Normalization layer does nothing and no
second division is there.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from fundus_rt.converters.backends import require
from fundus_rt.converters.checkpoint import Checkpoint
from fundus_rt.converters.tensorflow.keras_config import Config, layer_name, settings_of, walk_layers

IMAGENET_DEVIATION = (0.229, 0.224, 0.225)
"""Deviation of ImageNet's channels on values 0 to 1, which Keras up to 2.15 stores as "variance"."""

SECOND_RESCALING = tuple(1.0 / math.sqrt(deviation) for deviation in IMAGENET_DEVIATION)
"""Factors of the second Rescaling layer of Keras 2.10 and later: 2.0897, 2.1129, 2.1082."""

SECOND_DIVISION_SINCE = (2, 9)
"""The first version of Keras that divides a second time."""


def normalisation_note(config: Config, stored: dict[str, np.ndarray]) -> str | None:
    """What the layers before ``stem_conv`` do to a grey level 0 to 255, in one sentence with numbers.

    Args:
        config: configuration of the whole network, channels last.
        stored: ``mean`` and ``variance`` of its Normalization layer from the file; empty where it has none.

    Returns:
        The sentence; None where a layer stands there whose effect is not one factor and one shift per channel.
    """
    factor, shift = np.ones(3), np.zeros(3)  # value = grey * factor + shift
    seen = []
    for layer in walk_layers(config):
        kind, settings = layer["class_name"], settings_of(layer)
        if layer_name(layer).startswith("stem_conv"):
            break
        if kind == "Rescaling":
            scale, offset = _three(settings.get("scale", 1.0)), _three(settings.get("offset", 0.0))
            factor, shift = factor * scale, shift * scale + offset
        elif kind == "Normalization":
            mean, variance = _statistics(settings, stored)
            deviation = np.maximum(np.sqrt(variance), 1e-7)  # keras.backend.epsilon()
            factor, shift = factor / deviation, (shift - mean) / deviation
        elif kind == "TFOpLambda":
            operand = _operand(layer)
            if settings.get("function") not in ("math.truediv", "math.multiply", "math.subtract") or operand is None:
                return None
            if settings["function"] == "math.subtract":
                shift = shift - operand
            else:
                by = operand if settings["function"] == "math.multiply" else 1.0 / operand
                factor, shift = factor * by, shift * by
        else:
            continue
        seen.append(layer_name(layer))
    if not seen:
        return (
            "grey levels reach the first convolution as the card's preprocessing leaves them: this EfficientNet has no "
            "Rescaling or Normalization of its own (as in the efficientnet package, or in a network cut after them)"
        )
    mean, deviation = -shift / factor / 255.0, 1.0 / (factor * 255.0)
    if np.allclose(mean, 0.0) and np.allclose(deviation, deviation[0]):
        effect = f"value / {255.0 * deviation[0]:.6g}"
    else:
        effect = f"(value / 255 - mean) / deviation with mean {_numbers(mean)} and deviation {_numbers(deviation)}"
    return f"the network itself takes grey levels 0 to 255 and computes {effect} in RGB ({', '.join(seen)})"


def era_note(config: Config, stored: dict[str, np.ndarray]) -> str | None:
    """Which of the known habits the layers before the first convolution follow; None where it is none of them."""
    kinds = []
    for layer in walk_layers(config):
        if layer_name(layer).startswith("stem_conv"):
            break
        kinds.append(str(settings_of(layer).get("function", layer["class_name"])))
    if "Normalization" not in kinds or "variance" not in stored:
        return None
    after = kinds[kinds.index("Normalization") + 1 :]
    if np.allclose(stored["variance"], IMAGENET_DEVIATION, atol=1e-4):
        if "Rescaling" in after or "math.multiply" in after:
            return "that is EfficientNet as Keras 2.10 and later write it with weights='imagenet'"
        if "math.truediv" in after:
            return "that is EfficientNet as Keras 2.9 writes it with weights='imagenet'"
        return (
            "that is EfficientNet as Keras up to 2.8 writes it with weights='imagenet': it divides by the root of ImageNet's "
            "deviation, as it was trained"
        )
    if np.allclose(stored["variance"], 1.0) and np.allclose(stored["mean"], 0.0):
        return "its Normalization layer was never adapted and changes nothing, as Keras writes it with weights=None"
    return None


def second_division(names: Sequence[str], version: str, variance: np.ndarray | None, nested: bool) -> tuple[bool | None, str]:
    """Whether a weights-only EfficientNet divides a second time, and what says so.

    Args:
        names: ``layer_names`` of the file, layers without weights included.
        version: of Keras that wrote the file; may be empty.
        variance: stored in its Normalization layer; None where there is none.
        nested: whether the backbone is one layer of the file, which hides the names of its own layers.

    Returns:
        True, False, or None where nothing says it; and the evidence in words.
    """
    if variance is None:
        return False, "the file has no Normalization layer"
    if np.allclose(variance, 1.0):
        return False, "its Normalization layer was never adapted (mean 0, variance 1), so it was built with weights=None"
    if not nested:
        start = next((index for index, name in enumerate(names) if name.startswith("normalization")), len(names))
        end = next((index for index, name in enumerate(names) if name.startswith("stem_conv")), len(names))
        between = [
            name for name in names[start + 1 : end] if name.startswith(("rescaling", "tf.math.truediv", "tf.math.multiply"))
        ]
        return bool(between), f"its layer {between[0]!r} says so" if between else "no layer between normalization and stem_conv"
    if not np.allclose(variance, IMAGENET_DEVIATION, atol=1e-4):
        return None, "the variance in the file is none that Keras ships"
    numbers = [int(part) for part in version.split(".")[:2] if part.isdigit()]
    if len(numbers) < 2:
        return None, "the file does not say which Keras wrote it"
    second = tuple(numbers) >= SECOND_DIVISION_SINCE
    return second, f"Keras {version} {'has' if second else 'has not'} the second division in its EfficientNets"


def stored_statistics(checkpoint: Checkpoint) -> dict[str, np.ndarray]:
    """``mean`` and ``variance`` of the Normalization layer in an HDF5 file, float64 [3] each; empty where it has none."""
    found: dict[str, Any] = {}
    names = [name for name in checkpoint.shapes if "normalization" in name.split("/")[-2] and "batch" not in name]
    if not names or not checkpoint.format.startswith("keras-h5"):
        return found
    with require("h5py").File(checkpoint.path, "r") as file:
        group = file.get("model_weights", file)
        for name in names:
            kind = name.split("/")[-1].removesuffix(":0")
            if kind in ("mean", "variance"):
                found[kind] = np.asarray(group[name], np.float64).reshape(-1)
    return found


def _statistics(settings: Config, stored: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    if settings.get("mean") is not None and settings.get("variance") is not None:
        return _three(settings["mean"]), _three(settings["variance"])
    return _three(stored.get("mean", 0.0)), _three(stored.get("variance", 1.0))


def _operand(layer: Config) -> np.ndarray | None:
    """The constant that an operation between layers takes beside the tensor: ``y`` in the arguments of its call."""
    try:
        arguments: Any = layer["inbound_nodes"][0]
        while isinstance(arguments, list):
            arguments = arguments[-1]
        return _three(arguments["y"])
    except (KeyError, IndexError, TypeError, ValueError):
        return None


def _three(value: Any) -> np.ndarray:
    """One number per channel."""
    return np.broadcast_to(np.asarray(value, np.float64).reshape(-1), (3,)).copy()


def _numbers(values: np.ndarray) -> str:
    return "(" + ", ".join(f"{value:.4f}" for value in values) + ")"
