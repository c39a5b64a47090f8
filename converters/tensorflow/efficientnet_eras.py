"""What an EfficientNet of Keras does to grey levels before its first convolution: five versions wrote five different things.

Read in ``applications/efficientnet.py`` of Keras 2.4 to 2.15. The published weights carry a Normalization layer whose "variance"
is the deviation itself, (0.229, 0.224, 0.225), and the layer divides by its root. Keras up to 2.8 left it at that; 2.9 divides
once more by the root (an operation between layers, ``tf.math.truediv``), 2.10 and later with a second Rescaling
layer, tf_keras with ``tf.math.multiply``. Built without the published weights, the Normalization layer does nothing and no
second division is there.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fundus_rt.converters.backends import require
from fundus_rt.converters.checkpoint import Checkpoint
from fundus_rt.converters.tensorflow.keras_config import NETWORKS, Config, layer_name, layers_of, settings_of, walk_layers
from fundus_rt.models.card import PreprocessingSpec

IMAGENET_DEVIATION = (0.229, 0.224, 0.225)
"""Deviation of ImageNet's channels on values 0 to 1, which Keras up to 2.15 stores as "variance"."""

SECOND_RESCALING = tuple(1.0 / math.sqrt(deviation) for deviation in IMAGENET_DEVIATION)
"""Factors of the second Rescaling layer of Keras 2.10 and later: 2.0897, 2.1129, 2.1082."""

SECOND_DIVISION_SINCE = (2, 9)
"""The first version of Keras that divides a second time."""


ERA_KINDS = frozenset({"Rescaling", "Normalization", "math.truediv", "math.multiply"})

_NO_EFFECT = """
    InputLayer Dropout SpatialDropout2D GaussianDropout GaussianNoise AlphaDropout RandomBrightness RandomContrast RandomFlip
    RandomRotation RandomTranslation RandomZoom ZeroPadding2D Functional Model Sequential
"""
NO_EFFECT = frozenset(_NO_EFFECT.split())
"""Layers that leave grey levels as they are when a network answers; networks, whose own layers follow, among them."""

FIRST_WEIGHTS = ("Conv2D", "DepthwiseConv2D", "SeparableConv2D", "Conv2DTranspose", "Dense")
"""Layers at which the beginning of a network ends."""

ARITHMETIC = ("Rescaling", "Normalization", "TFOpLambda", "Lambda")
"""Layers that scale grey levels; arithmetic between layers of Keras 3 comes from modules called ``ops``."""

Statistics = dict[str, dict[str, np.ndarray]]
"""``mean`` and ``variance`` of each Normalization layer by its outermost layer and its own name, ``network/layer``."""


@dataclass(frozen=True)
class Beginning:
    """What a network does to the numbers of a picture before its first convolution."""

    scaling: tuple[str, ...]
    """Layers that scale by fixed numbers, in order."""
    others: tuple[str, ...]
    """Layers whose effect on a grey level is not one factor and one shift per channel, or not known."""
    factor: np.ndarray
    """Float64 [3]: value = grey level * factor + shift, where `others` is empty."""
    shift: np.ndarray

    @property
    def changes(self) -> bool:
        """Whether grey levels are scaled, as far as it is known."""
        known = not self.others
        return bool(self.scaling) and not (known and np.allclose(self.factor, 1.0) and np.allclose(self.shift, 0.0))


def beginning_of(config: Config, stored: Statistics) -> Beginning:
    """What the layers before the first convolution do to a grey level.

    Args:
        config: configuration of the whole network.
        stored: as `stored_statistics` reads them from the file.
    """
    factor, shift = np.ones(3), np.zeros(3)
    scaling, others = [], []
    for layer, statistics in _first_layers(config, stored):
        kind, name, step = layer["class_name"], layer_name(layer), None
        if kind in NO_EFFECT:
            continue
        try:
            step = _step(layer, statistics)
        except (ValueError, TypeError, KeyError):
            step = None  # numbers that are not one for each channel
        if kind in ARITHMETIC or ".ops." in f"{layer.get('module')}.":
            scaling.append(name)
        if step is None:
            others.append(name)
        else:
            factor, shift = factor * step[0], shift * step[0] + step[1]
    return Beginning(tuple(scaling), tuple(others), factor, shift)


def _first_layers(config: Config, stored: Statistics) -> Iterator[tuple[Config, dict[str, np.ndarray]]]:
    """The layers before the first convolution, those of nested networks in their places, and the statistics of each."""
    layers = [(layer_name(outer), layer) for outer in layers_of(config) for layer in (outer, *_inside(outer))]
    single = len(stored) == 1 and sum(layer["class_name"] == "Normalization" for _, layer in layers) == 1
    for outer, layer in layers:
        if layer["class_name"] in FIRST_WEIGHTS:
            return
        statistics = stored.get(f"{outer}/{layer_name(layer)}", {})
        if single and layer["class_name"] == "Normalization":
            statistics = next(iter(stored.values()))  # names of another session
        yield layer, statistics


def _inside(layer: Config) -> Iterator[Config]:
    return walk_layers(layer) if layer["class_name"] in NETWORKS else iter(())


def _step(layer: Config, statistics: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray] | None:
    """Factor and shift of one layer; None where it is something else."""
    kind, settings = layer["class_name"], settings_of(layer)
    if kind == "Rescaling":
        return _three(settings.get("scale", 1.0)), _three(settings.get("offset", 0.0))
    if kind == "Normalization" and not settings.get("invert"):
        found = _statistics(settings, statistics)
        if found is None:
            return None
        deviation = np.maximum(np.sqrt(found[1]), 1e-7)  # keras.backend.epsilon()
        return 1.0 / deviation, -found[0] / deviation
    operand = _operand(layer) if kind == "TFOpLambda" else None
    if operand is None:
        return None
    steps = {
        "math.truediv": (1.0 / operand, np.zeros(3)),
        "math.multiply": (operand, np.zeros(3)),
        "math.subtract": (np.ones(3), -operand),
    }
    return steps.get(str(settings.get("function")))


def normalisation_note(config: Config, stored: Statistics) -> str | None:
    """What the layers before the first convolution do to a grey level 0 to 255, in one sentence with numbers.

    Args:
        config: configuration of the whole network, channels last.
        stored: as `stored_statistics` reads them from the file.

    Returns:
        The sentence; None where a layer stands there whose effect is not one factor and one shift per channel, or not known.
    """
    found = beginning_of(config, stored)
    if found.others:
        return None
    if not found.scaling:
        return (
            "grey levels reach the first convolution as the card's preprocessing leaves them: this EfficientNet has no "
            "Rescaling or Normalization of its own (as in the efficientnet package, or in a network cut after them)"
        )
    mean, deviation = -found.shift / found.factor / 255.0, 1.0 / (found.factor * 255.0)
    if np.allclose(mean, 0.0) and np.allclose(deviation, deviation[0]):
        effect = f"value / {255.0 * deviation[0]:.6g}"
    else:
        effect = f"(value / 255 - mean) / deviation with mean {_numbers(mean)} and deviation {_numbers(deviation)}"
    return f"the network itself takes grey levels 0 to 255 and computes {effect} in RGB ({', '.join(found.scaling)})"


def era_note(config: Config, stored: Statistics) -> str | None:
    """Which of the known habits the layers before the first convolution follow; None where it is none of them."""
    first = [(layer, statistics) for layer, statistics in _first_layers(config, stored) if layer["class_name"] not in NO_EFFECT]
    kinds = [str(settings_of(layer).get("function", layer["class_name"])) for layer, _ in first]
    if kinds.count("Normalization") != 1 or not set(kinds) <= ERA_KINDS:
        return None
    statistics = first[kinds.index("Normalization")][1]
    if "variance" not in statistics or "mean" not in statistics:
        return None
    after = kinds[kinds.index("Normalization") + 1 :]
    if np.allclose(statistics["variance"], IMAGENET_DEVIATION, atol=1e-4):
        if "Rescaling" in after or "math.multiply" in after:
            return "that is EfficientNet as Keras 2.10 and later write it with weights='imagenet'"
        if "math.truediv" in after:
            return "that is EfficientNet as Keras 2.9 writes it with weights='imagenet'"
        return (
            "that is EfficientNet as Keras up to 2.8 writes it with weights='imagenet': it divides by the root of ImageNet's "
            "deviation, as it was trained"
        )
    if np.allclose(statistics["variance"], 1.0) and np.allclose(statistics["mean"], 0.0):
        return "its Normalization layer was never adapted and changes nothing, as Keras writes it with weights=None"
    return None


def notes_on_grey_levels(
    config: Config, stored: Statistics, preprocessing: PreprocessingSpec, efficientnet: bool
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Notes on what a network does to grey levels before its first convolution, and warnings where the card does it too.

    Args:
        config: configuration of the whole network, channels last or first.
        stored: as `stored_statistics` reads them from the file.
        preprocessing: of the card.
        efficientnet: whether it is an EfficientNet, whose habits are named and which is told where it has none.
    """
    found = beginning_of(config, stored)
    if not found.scaling and not efficientnet and not any("normalization" in name for name in found.others):
        return (), ()
    effect = normalisation_note(config, stored)
    if effect is None:
        shown = ", ".join(dict.fromkeys((*found.scaling, *found.others)))
        notes: tuple[str, ...] = (f"the network normalises inside, which is not spelled out ({shown})",)
    else:
        era = era_note(config, stored) if efficientnet else None
        notes = ("; ".join(sentence for sentence in (effect, era) if sentence),)
    by_card = preprocessing.scale != 1 or any(preprocessing.mean) or any(value != 1 for value in preprocessing.std)
    if not (found.changes and by_card):
        return notes, ()
    return notes, (
        f"the network scales by itself ({', '.join(found.scaling)}) and the card scales too: normalised twice, which is right "
        f"only if it was trained so",
    )


def second_division(names: Sequence[str], version: str, variance: np.ndarray | None, nested: bool) -> tuple[bool | None, str]:
    """Whether a weights-only EfficientNet divides a second time, and what says so.

    Args:
        names: ``layer_names`` of the file, layers without weights included.
        version: of Keras that wrote the file; may be empty.
        variance: stored in its Normalization layer; None where there is none.
        nested: whether the backbone is one layer of the file, which hides the names of its own layers.

    Returns:
        True, False, or None where nothing says it; and the evidence in words. A nested network of Keras 2.9 or later with
        ImageNet's statistics may have been built without the published weights and loaded them later, which leaves the second
        division out (tensorflow#62193): nothing in the file tells.
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
    if tuple(numbers) >= SECOND_DIVISION_SINCE:
        return None, (
            f"Keras {version} writes one with weights='imagenet' and none where such weights were loaded later; model.to_json() "
            f"of Keras 2.13 to 2.15, also of the same network made anew, says it"
        )
    return False, f"Keras {version} has not the second division in its EfficientNets"


def stored_statistics(checkpoint: Checkpoint) -> Statistics:
    """``mean`` and ``variance`` of the Normalization layers in an HDF5 file, float64 [channels] each, by ``outermost/layer``."""
    found: Statistics = {}
    parts_of = {name: name.removesuffix(":0").split("/") for name in checkpoint.shapes}
    names = [name for name, parts in parts_of.items() if len(parts) > 1 and parts[-1] in ("mean", "variance")]
    if not names or not checkpoint.format.startswith("keras-h5"):
        return found
    with require("h5py").File(checkpoint.path, "r") as file:
        group = file.get("model_weights", file)
        for name in names:
            outer, layer, kind = parts_of[name][0], parts_of[name][-2], parts_of[name][-1]
            found.setdefault(f"{outer}/{layer}", {})[kind] = np.asarray(group[name], np.float64).reshape(-1)
    return found


def _statistics(settings: Config, stored: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray] | None:
    mean, variance = (stored.get(key, settings.get(key)) for key in ("mean", "variance"))
    return None if mean is None or variance is None else (_three(mean), _three(variance))


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
