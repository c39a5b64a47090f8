"""What Keras 2 of any version wrote, said as the ``tf_keras`` of today reads it.

The configuration stays the architecture; only names and settings that later versions renamed or dropped are replaced, and
layers whose code is not part of Keras but is known and does one thing. What has no part in an answer (initializers,
regularizers, constraints) is left out, so that no object of the author's is looked up for it. The keys by which Keras 2.13
and later import classes from any module (``module``, ``registered_name``) are taken out: a layer's class is then one of
Keras itself or of `custom_layers`, or the file is not loaded.
"""

from __future__ import annotations

import re
from typing import Any

from fundus_rt.converters.backends import require_keras
from fundus_rt.converters.tensorflow.keras_config import (
    NETWORKS,
    Config,
    activation_layer,
    activation_of,
    inbound_names,
    layer_name,
    layer_names,
    layers_of,
    settings_of,
    walk_layers,
)

RENAMED = {
    "BatchNormalizationV1": "BatchNormalization",
    "BatchNormalizationV2": "BatchNormalization",
    "SyncBatchNormalization": "BatchNormalization",
    "Model": "Functional",
    "Convolution2D": "Conv2D",
    "SeparableConvolution2D": "SeparableConv2D",
}
"""Class names of other versions: tf.keras 1.x numbered two generations of BatchNormalization."""

DROPOUTS = ("FixedDropout", "DropConnect")
"""Dropout of the ``efficientnet`` packages (qubvel, titu1994), which does nothing at inference."""

RELU6 = ("relu6", "_relu6", "relu_6")
"""``keras.applications.mobilenet.relu6`` of Keras 2.0 and 2.1, and names under which others saved it."""

RESIDUAL = re.compile(r"block(35|17|8)_\d+")
"""Names of the layers that scale and add in Inception-ResNet-v2 of Keras 2.0 to 2.8 (a Lambda)."""

INCEPTION_RESNET = frozenset({"mixed_5b", "mixed_6a", "mixed_7a", "conv_7b"})
"""Layers that a network has to have for its Lambdas to be taken for those of Inception-ResNet-v2."""

NOT_FOR_ANSWERS = ("module", "registered_name", "build_config", "compile_config")


def custom_layers() -> dict[str, Any]:
    """Classes that a modernised configuration may name beside those of Keras."""
    tensorflow, keras = require_keras()

    layer: Any = keras.layers.Layer

    class ScaledSum(layer):  # type: ignore[misc]
        """``inputs[0] + scale * inputs[1]``: the residual sum of Inception-ResNet (Szegedy et al., arXiv 1602.07261)."""

        def __init__(self, scale: float, **settings: Any) -> None:
            super().__init__(**settings)
            self.scale = float(scale)

        def call(self, inputs: Any) -> Any:
            return inputs[0] + inputs[1] * self.scale

        def get_config(self) -> dict[str, Any]:
            return {**super().get_config(), "scale": self.scale}

    return {"ScaledSum": ScaledSum, "relu6": tensorflow.nn.relu6}


def modernised(config: Config) -> tuple[Config, tuple[str, ...]]:
    """A configuration that today's tf_keras builds, and one sentence for each kind of replacement.

    Args:
        config: ``model_config`` of a file of Keras 2, every layer of it known (see `keras_files.refuse_code`). It is not
            changed.
    """
    said: dict[str, list[str]] = {}
    renewed = _network(config, residual_sums(config), said)
    return renewed, tuple(_sentence(kind, names) for kind, names in said.items())


def residual_sums(config: Config) -> frozenset[str]:
    """Names of the layers that are the scaled sum of Inception-ResNet-v2.

    Keras up to 2.8 wrote it as a Lambda with byte code, ``inputs[0] + inputs[1] * scale``, later versions as CustomScaleLayer.
    A Lambda is taken for it in that network only, by its name, its one argument and its two inputs.
    """
    in_family = INCEPTION_RESNET.issubset(layer_names(config))
    return frozenset(layer_name(layer) for layer in walk_layers(config) if _is_residual_sum(layer, in_family))


def _is_residual_sum(layer: Config, in_family: bool) -> bool:
    settings = settings_of(layer)
    kind = str(layer["class_name"]).rpartition(">")[2]
    if kind == "CustomScaleLayer":
        return isinstance(settings.get("scale"), (int, float))
    arguments = settings.get("arguments")
    return (
        in_family
        and kind == "Lambda"
        and RESIDUAL.fullmatch(layer_name(layer)) is not None
        and isinstance(arguments, dict)
        and set(arguments) == {"scale"}
        and isinstance(arguments["scale"], (int, float))
        and len(inbound_names(layer)) == 2
    )


def _network(config: Config, sums: frozenset[str], said: dict[str, list[str]]) -> Config:
    settings = config["config"]
    layers = [_layer(layer, sums, said) for layer in layers_of(config)]
    kind = "Sequential" if config.get("class_name") == "Sequential" or isinstance(settings, list) else "Functional"
    renewed = _plain({key: value for key, value in config.items() if key not in ("config", *NOT_FOR_ANSWERS)})
    outside = {} if isinstance(settings, list) else {key: _plain(value) for key, value in settings.items() if key != "layers"}
    outside = {key: value for key, value in outside.items() if key not in ("build_input_shape", "dtype")}
    if kind == "Sequential":  # before Keras 2.2.3 it has no name of its own
        outside.setdefault("name", renewed.get("name", "sequential"))
    return {**renewed, "class_name": kind, "config": {**outside, "layers": layers}}


def _layer(layer: Config, sums: frozenset[str], said: dict[str, list[str]]) -> Config:
    kind, name = str(layer["class_name"]), layer_name(layer)
    if kind in NETWORKS:
        return _network(layer, sums, said)
    settings = {key: _setting(key, value, name, said) for key, value in settings_of(layer).items()}
    settings = {
        key: value for key, value in settings.items() if not key.endswith(("_regularizer", "_constraint", "_initializer"))
    }
    if "activation" in settings:
        inside, activation = activation_layer(layer), activation_of(layer)
        function = "relu6" if activation in RELU6 else activation
        settings["activation"] = function if inside is None else _layer(inside, sums, said)
    if name in sums:
        said.setdefault("Lambda" if kind == "Lambda" else "", []).append(name)
        scale = settings["arguments"]["scale"] if kind == "Lambda" else settings["scale"]
        kind, settings = "ScaledSum", {"name": name, "scale": scale}
    elif kind in DROPOUTS:
        said.setdefault(kind, []).append(name)
        kind, settings = "Dropout", {"name": name, "rate": settings.get("rate", settings.get("drop_connect_rate", 0.0))}
    elif kind == "Swish":
        said.setdefault(kind, []).append(name)
        kind, settings = "Activation", {"name": name, "activation": "swish"}
    elif kind == "SyncBatchNormalization":
        settings.pop("synchronized", None)
    kind = RENAMED.get(kind, kind).removeprefix("experimental.preprocessing.")
    outside = {key: _plain(value) for key, value in layer.items() if key not in ("config", *NOT_FOR_ANSWERS)}
    return {**outside, "class_name": kind, "config": settings}


def _setting(key: str, value: Any, name: str, said: dict[str, list[str]]) -> Any:
    """One setting of a layer; data types are float32."""
    if key == "dtype":
        while isinstance(value, dict):
            value = value.get("config", value.get("name"))
            value = value.get("name") if isinstance(value, dict) and "name" in value else value
        if value not in (None, "float32"):
            said.setdefault(str(value), []).append(name)
        return "float32"
    return _plain(value)


def _plain(value: Any) -> Any:
    """JSON without the keys that name modules, and with tuples and the ellipsis as Python has them."""
    if isinstance(value, list):
        return [_plain(inner) for inner in value]
    if isinstance(value, dict):
        if value.get("class_name") in ("__tuple__", "ListWrapper"):
            return tuple(_plain(inner) for inner in value.get("items", ()))
        if value.get("class_name") == "__ellipsis__":
            return Ellipsis
        return {key: _plain(inner) for key, inner in value.items() if key not in NOT_FOR_ANSWERS}
    return value


def _sentence(kind: str, names: list[str]) -> str:
    count = f"{len(names)} layer{'s' if len(names) > 1 else ''}"
    if kind == "Lambda":
        return (
            f"{count} of Inception-ResNet-v2 ({names[0]}, ...) are Lambdas with byte code, which is not run: the sum "
            f"inputs[0] + scale * inputs[1] stands in their place, as keras.applications defines them, with the file's scales"
        )
    if kind in DROPOUTS:
        return f"{count} of class {kind} ({names[0]}, ...), of the efficientnet packages, read as Dropout: no effect on answers"
    if kind == "Swish":
        return f"{count} of class Swish ({names[0]}, ...), of the efficientnet packages, read as x * sigmoid(x)"
    if kind == "":
        return f"{count} of class CustomScaleLayer ({names[0]}, ...) computed as inputs[0] + scale * inputs[1]"
    return f"{count} computed in {kind} at training ({names[0]}, ...): computed in float32 here, as their weights are stored"
