"""A weights-only ``.h5`` of a ``keras.applications`` family: its network, rebuilt from the names of its layers.

``layer_names`` lists the file's outer layers in order, those without weights included, so the head can be told as far as it is
made of pooling, dropout and one Dense layer, in an order that is known. What no name and no shape says (the activation at the
end, what stands between two Dense layers) is never guessed: the card says it, or the file is refused.
"""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from dataclasses import dataclass
from typing import Any

from fundus_rt.converters.backends import quiet_standard_error, quiet_tracing, require, require_keras
from fundus_rt.converters.checkpoint import Checkpoint
from fundus_rt.converters.tensorflow.efficientnet_eras import SECOND_RESCALING, second_division, stored_statistics
from fundus_rt.converters.tensorflow.keras_config import Config, inbound_names, layer_name, layers_of
from fundus_rt.converters.tensorflow.keras_landmarks import Landmark, landmark_of, mobilenet_v2_alpha
from fundus_rt.converters.tensorflow.keras_loading import stored_layers, without_number
from fundus_rt.converters.tensorflow.keras_modern import RESIDUAL, custom_layers, modernised
from fundus_rt.models.card import ModelCard
from fundus_rt.models.errors import UnsupportedCheckpointError

Shapes = dict[str, tuple[int, ...]]

LETTERS = {
    "global_average_pooling2d": "A",
    "avg_pool": "A",
    "global_average_pooling2d_global_average_pooling2d": "A",
    "global_max_pooling2d": "M",
    "max_pool": "M",
    "flatten": "F",
    **dict.fromkeys(("dropout", "top_dropout", "spatial_dropout2d", "gaussian_dropout", "gaussian_noise"), "D"),
    "reshape_1": "R",
    "reshape_2": "R",
    "act_softmax": "S",
    "predictions": "S",
}
"""Layers without weights after a backbone, by the names that Keras gives to their kinds and keras.applications to its own:
pooling by mean and by maximum, Flatten, dropout, and what stands around MobileNet's ``conv_preds``. In `HEADS` a Dense layer is
W and that convolution C."""

HEADS = (
    r"D*(?P<pooling>[AM])[DF]*WD*",
    r"D*(?P<pooling>F)D*WD*",
    r"(?P<pooling>A)R?D*C(RS?|SR)",
    r"(?P<pooling>)D*WD*",
)
"""Orders of layers whose function is known; the last one is a nested backbone that pools by itself."""

ADVICE = (
    "Put the network's JSON (model.to_json()) beside it under the same name with the ending .json, or load the weights where "
    "the network is defined and save both with model.save('model.h5')."
)


@dataclass(frozen=True)
class Head:
    """What stands after the backbone."""

    pooling: str
    """``avg``, ``max``, ``flatten``, or ``inside`` where the backbone itself pools, which does not say how."""
    name: str
    """Of the Dense layer, or of the convolution of 1 x 1 that MobileNet ends with."""
    units: int
    bias: bool
    convolution: bool


def rebuilt(checkpoint: Checkpoint, card: ModelCard) -> tuple[Checkpoint, tuple[str, ...], tuple[str, ...]]:
    """The checkpoint with the configuration of the network that its layers' names and shapes tell, notes and warnings.

    Args:
        checkpoint: of format ``keras-h5-weights``, without configuration.
        card: its input size is taken, and its activation, which the file cannot say.

    Raises:
        UnsupportedCheckpointError: a family that is not known, layers that differ from those of keras.applications, a head
            whose function cannot be told, or no activation in the card.
    """
    with require("h5py").File(checkpoint.path, "r") as file:
        layers = stored_layers(file)
    backbone, inner = _backbone(layers)
    landmark, unknown = _family(inner)
    if landmark is None or not landmark.builder:
        found = f"{landmark.title}, which is not rebuilt" if landmark else unknown
        if landmark and landmark.family == "squeezenet" and "conv10" not in layers:
            found += " (and without its last convolution, conv10: the file holds features, not answers)"
        raise _refused(checkpoint, layers, found)
    if card.outputs[0].activation is None:
        raise _refused(
            checkpoint, layers,
            f"{landmark.title}; the activation after its last layer is not in the file. Say it in the card "
            f"(outputs[0].activation: 'none', 'sigmoid' or 'softmax'), if its authors did",
        )  # fmt: skip
    notes = [f"the network was rebuilt as {landmark.title} of keras.applications from the names and shapes of its layers"]
    warnings = [f"that {card.outputs[0].activation!r} follows the last layer is the card's word; the file does not hold it"]
    with quiet_tracing(), quiet_standard_error():
        base = _base(checkpoint, landmark, inner, card)
    if backbone is not None and _own_name(backbone) != _own_name(base.name):
        raise _refused(
            checkpoint, layers,
            f"{landmark.title} inside the layer {backbone!r}, a network that its author put together (keras.applications names "
            f"its own {base.name!r}), which hides its layers without weights",
        )  # fmt: skip
    config = _as_written(checkpoint, layers, backbone, base, landmark, notes, warnings)
    after = _after_backbone(checkpoint, layers, backbone, base, config, landmark)
    head = _head(checkpoint, layers, after, landmark, backbone is not None)
    warnings.append(
        f"what {', '.join(after)} compute is concluded from their names, which are those that Keras gives to layers of its own: "
        f"other layers that the author named so would answer otherwise"
    )
    if head.pooling == "inside":
        raise _refused(
            checkpoint, layers,
            f"{landmark.title} inside the layer {backbone!r}, which hides whether its pooling takes the mean or the largest "
            f"value",
        )  # fmt: skip
    whole = _with_head(config, base, backbone, head)
    return dataclasses.replace(checkpoint, keras_config=whole), tuple(notes), tuple(warnings)


def _own_name(name: str) -> str:
    """A network's name without its width, its size and a running number: ``mobilenet_1.00_224_1`` is ``mobilenet``."""
    return re.sub(r"(_[\d.]+)+$", "", name).replace("-", "").lower()


def _backbone(layers: dict[str, Shapes]) -> tuple[str | None, dict[str, Shapes]]:
    """Name of the layer that holds the backbone, None where it lies open; and its own layers with their weights' shapes."""
    inside = {name: {part.split("/")[-2] for part in weights if "/" in part} for name, weights in layers.items()}
    largest = max(inside, key=lambda name: len(inside[name]), default="")
    if len(inside.get(largest, ())) < 8:
        return None, {name: weights for name, weights in layers.items() if weights}
    nested: dict[str, Shapes] = {}
    for weight, shape in layers[largest].items():
        parts = weight.split("/")
        nested.setdefault(parts[-2], {})[parts[-1]] = shape
    return largest, nested


def _family(inner: dict[str, Shapes]) -> tuple[Landmark | None, str]:
    kinds = Counter(without_number(name) for name in inner)
    names = set(inner)
    if kinds["conv2d"] in (94, 95) and kinds["batch_normalization"] in (94, 95):
        names |= {"mixed0", "mixed10"}  # Inception-v3's layers with weights have running numbers only
    return landmark_of(names, _filters(inner, "top_conv"))


def _filters(inner: dict[str, Shapes], name: str) -> int | None:
    """Filters of a convolution: the last length of its kernel."""
    return next((shape[-1] for weight, shape in inner.get(name, {}).items() if len(shape) == 4), None)


def _base(checkpoint: Checkpoint, landmark: Landmark, inner: dict[str, Shapes], card: ModelCard) -> Any:
    """The family's network without its head, of the width that the file has."""
    _, keras = require_keras()
    changes: dict[str, float] = {}
    if landmark.family == "mobilenet":
        changes["alpha"] = (_filters(inner, "conv_pw_13") or 0) / 1024
    if landmark.family == "mobilenet-v2":
        changes["alpha"] = mobilenet_v2_alpha(_filters(inner, "block_16_project") or 0)
    try:
        shape = (*card.preprocessing.input_size, 3)
        return getattr(keras.applications, landmark.builder)(include_top=False, weights=None, input_shape=shape, **changes)
    except ValueError as error:
        raise UnsupportedCheckpointError(
            f"{checkpoint.path.name} looks like {landmark.title}, but it cannot be built ({str(error)[:200]}). {ADVICE}"
        ) from error


def _as_written(
    checkpoint: Checkpoint,
    layers: dict[str, Shapes],
    backbone: str | None,
    base: Any,
    landmark: Landmark,
    notes: list[str],
    warnings: list[str],
) -> Config:
    """Configuration of the base, with the normalisation that an EfficientNet of the file's version has."""
    config: Config = {"class_name": "Functional", "config": base.get_config()}
    if "Normalization" not in {layer["class_name"] for layer in layers_of(config)}:
        return config
    statistics = stored_statistics(checkpoint)
    if len(statistics) > 1:
        raise _refused(checkpoint, layers, f"{landmark.title} with {len(statistics)} Normalization layers in place of one")
    variance = next(iter(statistics.values()), {}).get("variance")
    second, evidence = second_division(list(layers), checkpoint.keras_version, variance, backbone is not None)
    if second is None:
        raise _refused(
            checkpoint, layers,
            f"{landmark.title}, inside the layer {backbone!r}, and whether it divides grey levels a second time by their "
            f"deviation cannot be told: {evidence}",
        )  # fmt: skip
    first = next(layer for layer in layers_of(config) if layer_name(layer) == "stem_conv_pad")
    if variance is None:
        _feed(first, base.layers[0].name)
        config["config"]["layers"] = [
            layer for layer in layers_of(config) if layer["class_name"] not in ("Rescaling", "Normalization")
        ]
    elif second:
        source = inbound_names(first)[0]
        position = layers_of(config).index(first)
        scale = {"name": "second_rescaling", "scale": list(SECOND_RESCALING)}
        extra = {"class_name": "Rescaling", "name": "second_rescaling", "config": scale, "inbound_nodes": [[[source, 0, 0, {}]]]}
        layers_of(config).insert(position, extra)
        _feed(first, "second_rescaling")
    has = "has" if second else "has not"
    notes.append(f"it {has} the second division by the deviation that Keras writes since 2.9: {evidence}")
    if backbone is not None and "Keras" in evidence:
        warnings.append(
            f"{backbone!r} hides its layers without weights: that it {has} the second division of grey levels was concluded from "
            f"the version of Keras alone"
        )
    return config


def _feed(layer: Config, source: str) -> None:
    layer["inbound_nodes"] = [[[source, 0, 0, {}]]]


def _after_backbone(
    checkpoint: Checkpoint, layers: dict[str, Shapes], backbone: str | None, base: Any, config: Config, landmark: Landmark
) -> list[str]:
    """Names of the file's layers after the backbone, whose own have all to be those of the rebuilt one."""
    names = [name for name in layers if not re.fullmatch(r"(input|.*_input)(_\d+)?", name)]
    if backbone is not None:
        position = names.index(backbone)
        if position:
            raise _refused(checkpoint, layers, f"{landmark.title} with the layers {', '.join(names[:position])} before it")
        return names[1:]
    wanted = [_comparable(layer_name(layer)) for layer in layers_of(config) if layer["class_name"] != "InputLayer"]
    found = [_comparable(name) for name in names[: len(wanted)]]
    if landmark.family.startswith("efficientnet"):
        changes = {"tf.math.truediv": "second_rescaling", "tf.math.multiply": "second_rescaling"}
        twice = found.count("rescaling") == 2
        found = [
            "second_rescaling" if twice and i == _last(found, "rescaling") else changes.get(n, n) for i, n in enumerate(found)
        ]
    other = [*(Counter(wanted) - Counter(found)), *(Counter(found) - Counter(wanted))]
    if other:
        raise _refused(
            checkpoint, layers,
            f"{landmark.title}, but not with the layers that today's keras.applications gives it (the first that differ: "
            f"{', '.join(other[:4])})",
        )  # fmt: skip
    return names[len(wanted) :]


def _last(names: list[str], name: str) -> int:
    return len(names) - 1 - names[::-1].index(name)


def _comparable(name: str) -> str:
    """A layer's name without the running number; the scaled sums of Inception-ResNet-v2 had other names up to Keras 2.8."""
    return "custom_scale_layer" if RESIDUAL.fullmatch(name) else without_number(name)


def _head(checkpoint: Checkpoint, layers: dict[str, Shapes], names: list[str], landmark: Landmark, nested: bool) -> Head:
    """The head that the remaining layers make, if nothing about it has to be guessed: neither their kinds nor their order."""
    weighted = [name for name in names if layers[name]]
    letters = "".join(_letter(name, layers[name]) for name in names)
    if "?" in letters:
        name = names[letters.index("?")]
        raise _refused(checkpoint, layers, f"{landmark.title} with a layer {name!r} after it, which can be anything")
    if not weighted:
        raise _refused(checkpoint, layers, f"{landmark.title} without a head: features, not answers")
    if len(weighted) > 1:
        raise _refused(
            checkpoint, layers,
            f"{landmark.title} with {len(weighted)} layers after it ({', '.join(weighted)}); what stands between them, such as "
            f"an activation, is not in the file",
        )  # fmt: skip
    kernel = next((shape for weight, shape in layers[weighted[0]].items() if "kernel" in weight), ())
    if "w" in letters:
        raise _refused(checkpoint, layers, f"{landmark.title} with a layer {weighted[0]!r} after it that is no Dense layer")
    found = next((match for pattern in HEADS if (match := re.fullmatch(pattern, letters)) is not None), None)
    if not set("AMF") & set(letters) and not nested:
        raise _refused(checkpoint, layers, f"{landmark.title} with a Dense layer at each place of its map, and no pooling")
    if found is None:
        raise _refused(
            checkpoint, layers,
            f"{landmark.title} with the layers {', '.join(names)} after it in this order; expected a pooling or Flatten, then "
            f"one Dense layer (or keras.applications' own head of MobileNet), so what is computed in between is not known",
        )  # fmt: skip
    pooling = {"A": "avg", "M": "max", "F": "flatten"}.get(found["pooling"] or "", "inside")
    return Head(pooling, weighted[0], kernel[-1], len(layers[weighted[0]]) == 2, "C" in letters)


def _letter(name: str, weights: Shapes) -> str:
    """What a layer after the backbone is, as `LETTERS` and `HEADS` write it."""
    kernel = next((shape for weight, shape in weights.items() if "kernel" in weight), ())
    if not weights:
        return LETTERS.get(name) or LETTERS.get(without_number(name), "?")
    if name == "conv_preds" and len(kernel) == 4 and kernel[:2] == (1, 1):
        return "C"
    return "W" if len(kernel) == 2 else "w"


def _with_head(config: Config, base: Any, backbone: str | None, head: Head) -> Config:
    """Configuration of the whole network; its last layer is linear, for the card says what follows."""
    _, keras = require_keras()
    with quiet_tracing(), quiet_standard_error():
        body = keras.models.model_from_config(modernised(config)[0], custom_objects=custom_layers())
        if backbone is not None:
            body._name = backbone
            image = keras.Input(body.input_shape[1:])
            features = body(image)
        else:
            image, features = body.input, body.output
        pooling = keras.layers.GlobalMaxPooling2D if head.pooling == "max" else keras.layers.GlobalAveragePooling2D
        vector = keras.layers.Flatten()(features) if head.pooling == "flatten" else pooling()(features)
        if head.convolution:
            vector = keras.layers.Reshape((1, 1, vector.shape[-1]))(vector)
            vector = keras.layers.Conv2D(head.units, 1, use_bias=head.bias, name=head.name)(vector)
            answer = keras.layers.Reshape((head.units,))(vector)
        else:
            answer = keras.layers.Dense(head.units, use_bias=head.bias, name=head.name)(vector)
        network = keras.Model(image, answer)
    return {"class_name": "Functional", "config": network.get_config()}


def _refused(checkpoint: Checkpoint, layers: dict[str, Shapes], found: str) -> UnsupportedCheckpointError:
    shown = ", ".join(list(layers)[:4])
    return UnsupportedCheckpointError(
        f"{checkpoint.path.name} holds weights only ({len(layers)} layers: {shown}, ...), not the network they belong to. Its "
        f"names are those of {found}. {ADVICE}"
    )
