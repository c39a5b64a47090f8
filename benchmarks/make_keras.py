"""Keras 2 files with random weights, of true architectures, in the forms in which versions 2.0 to 2.15 wrote them.

What today's tf_keras writes otherwise than an older version is edited in the file's configuration, as that version had it.
"""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from fundus_rt.benchmarks.conversion_case import IMAGENET, ConversionCase
from fundus_rt.benchmarks.keras_networks import (
    Config,
    backbone,
    drop_layers,
    enliven,
    lively_network,
    normalisation_of,
    save_keras,
    with_edited_config,
    with_head,
)
from fundus_rt.benchmarks.lively import pictures
from fundus_rt.models.card import ModelCard


def full_model(application: str, folder: Path, size: int, columns: int, **changes: Any) -> Path:
    """A network, compiled and saved whole."""
    network = lively_network(application, size, columns, _activation(columns), **changes)
    return save_keras(folder / f"{application}.h5", network)


def weights_with_json(application: str, folder: Path, size: int, columns: int, **changes: Any) -> Path:
    """Weights only, with `model.to_json()` beside them."""
    network = lively_network(application, size, columns, _activation(columns), **changes)
    (folder / f"{application}.json").write_text(network.to_json(), encoding="utf-8")
    network.save_weights(folder / f"{application}.h5", save_format="h5")
    return folder / f"{application}.h5"


def weights_only(application: str, folder: Path, size: int, columns: int, **changes: Any) -> Path:
    """Weights only; the activation at the end is linear, for the file does not hold it."""
    network = lively_network(application, size, columns, None, **changes)
    network.save_weights(folder / f"{application}_weights.h5", save_format="h5")
    return folder / f"{application}_weights.h5"


def nested(application: str, folder: Path, size: int, columns: int, **changes: Any) -> Path:
    """Sequential(Sequential(backbone, pooling), Sequential(Dense)), as Teachable Machine nests its networks."""
    from fundus_rt.converters.backends import require_keras

    _, keras = require_keras()
    flat = lively_network(application, size, columns, _activation(columns), **changes)
    base = backbone(application, size, **changes)
    base.set_weights([values for layer in flat.layers[: len(base.layers)] for values in layer.get_weights()])
    features = keras.Sequential([base, keras.layers.GlobalAveragePooling2D()])
    head = keras.Sequential(
        [keras.layers.Dense(columns, activation=_activation(columns), input_shape=(features.output_shape[1],))]
    )
    network = keras.Sequential([features, head])
    head.set_weights(flat.layers[-1].get_weights())
    return save_keras(folder / "nested.h5", network, compiled=False)


def channels_first(application: str, folder: Path, size: int, columns: int, **changes: Any) -> Path:
    """The same network built with data_format="channels_first"; its weights do not know the difference."""
    from fundus_rt.converters.backends import require_keras

    _, keras = require_keras()
    flat = lively_network(application, size, columns, _activation(columns), **changes)
    weights = flat.get_weights()
    keras.backend.set_image_data_format("channels_first")
    try:
        base = getattr(keras.applications, application)(input_shape=(3, size, size), include_top=False, weights=None, **changes)
        network = with_head(base, columns, _activation(columns))
    finally:
        keras.backend.set_image_data_format("channels_last")
    network.set_weights(weights)
    return save_keras(folder / "channels_first.h5", network, compiled=False)


def efficientnet_of_era(era: str, folder: Path, size: int, columns: int, application: str = "EfficientNetB0") -> Path:
    """An EfficientNet as a version of Keras writes it with weights='imagenet', before the training went on."""
    network = efficientnet_network(era, size, columns, _activation(columns), application)
    path = save_keras(folder / f"efficientnet-{era}.h5", network)
    return with_edited_config(path, path, lambda config: None, era)


def efficientnet_network(era: str, size: int, columns: int, activation: str | None, application: str = "EfficientNetB0") -> Any:
    """An EfficientNet with ImageNet's mean and deviation in its Normalization layer, and the second division of its era.

    Args:
        era: version of Keras; from 2.9 a ``tf.math.truediv``, from 2.10 a Rescaling layer stands after Normalization.
        size: height and width, pixels.
        columns: outputs.
        activation: at the end.
        application: which EfficientNet.
    """
    from fundus_rt.converters.backends import require_keras

    _, keras = require_keras()
    base = backbone(application, size)
    config = base.get_config()
    extra = second_division_of(era, "normalization")
    if extra is not None:
        stem = next(layer for layer in config["layers"] if layer["name"] == "stem_conv_pad")
        stem["inbound_nodes"] = [[[extra["name"], 0, 0, {}]]]
        config["layers"].insert(3, extra)
        base = keras.Model.from_config(config)
    normalization = base.get_layer("normalization")
    normalization.set_weights([np.asarray(values, np.float32) for values in (IMAGENET[1], IMAGENET[2], 0)])
    normalization.finalize_state()
    network = with_head(base, columns, activation)
    enliven(network, pictures(size))
    return network


def second_division_of(era: str, source: str) -> Config | None:
    """Configuration of the layer that divides once more by the root of ImageNet's deviation; None before Keras 2.9."""
    roots = [math.sqrt(deviation) for deviation in IMAGENET[2]]
    number = tuple(int(part) for part in era.split(".")[:2])
    if number < (2, 9):
        return None
    if number < (2, 10):
        settings = {"name": "tf.math.truediv", "trainable": True, "dtype": "float32", "function": "math.truediv"}
        node = [source, 0, 0, {"y": roots, "name": None}]
        return {"class_name": "TFOpLambda", "name": settings["name"], "config": settings, "inbound_nodes": [node]}
    settings = {
        "name": "rescaling_1",
        "trainable": True,
        "dtype": "float32",
        "scale": [1 / root for root in roots],
        "offset": 0.0,
    }
    return {"class_name": "Rescaling", "name": "rescaling_1", "config": settings, "inbound_nodes": [[[source, 0, 0, {}]]]}


def qubvel_efficientnet(folder: Path, size: int, columns: int) -> Path:
    """EfficientNet-B0 as the ``efficientnet`` package writes it: FixedDropout, and no normalisation of its own."""
    network = lively_network("EfficientNetB0", size, columns, _activation(columns))
    path = save_keras(folder / "efficientnet-b0-qubvel.h5", network)
    drop_layers(path, ("rescaling", "normalization"))
    return with_edited_config(path, path, _fixed_dropouts, "2.3.1")


def _fixed_dropouts(config: Config) -> None:
    config["class_name"] = "Model"
    for layer in config["config"]["layers"]:
        if layer["class_name"] == "Dropout" and layer["name"].startswith("block"):
            layer["class_name"] = "FixedDropout"


def inception_resnet_with_lambdas(folder: Path, size: int, columns: int) -> Path:
    """Inception-ResNet-v2 as Keras 2.0 to 2.8 write it: its scaled sums are Lambda layers, here with byte code that is none."""
    path = full_model("InceptionResNetV2", folder, size, columns)
    return with_edited_config(path, path, lambdas_for_scaled_sums, "2.4.0")


def lambdas_for_scaled_sums(config: Config) -> None:
    """Give the scaled sums of today's Inception-ResNet-v2 the class and the names of before."""
    text, layers = json.dumps(config), config["config"]["layers"]
    renamed = {}
    for layer in layers:
        if layer["class_name"].endswith("CustomScaleLayer"):
            renamed[layer["name"]] = layer["inbound_nodes"][0][1][0].removesuffix("_conv")
    for old, new in sorted(renamed.items(), key=lambda pair: -len(pair[0])):
        text = text.replace(f'"{old}"', f'"{new}"')
    config.clear()
    config.update(json.loads(text))
    for layer in config["config"]["layers"]:
        if layer["name"] in renamed.values():
            scale = layer["config"]["scale"]
            layer["class_name"] = "Lambda"
            layer["config"] = {
                "name": layer["name"], "trainable": True, "dtype": "float32", "arguments": {"scale": scale},
                "function": ["this is no byte code", None, None], "function_type": "lambda", "output_shape": None,
                "output_shape_type": "raw", "output_shape_module": None, "module": "keras_applications.inception_resnet_v2",
            }  # fmt: skip


def mobilenet_of_2017(folder: Path, size: int, columns: int, **changes: Any) -> Path:
    """MobileNet as Keras 2.0 and 2.1 write it: class Model, Activation layers with relu6, depthwise layers with old keys."""
    path = full_model("MobileNet", folder, size, columns, **changes)
    return with_edited_config(path, path, _as_of_2017, "2.1.2")


def _as_of_2017(config: Config) -> None:
    config["class_name"] = "Model"
    for layer in config["config"]["layers"]:
        settings = layer["config"]
        settings.pop("dtype", None)
        if layer["class_name"] == "ReLU":
            layer["class_name"], layer["config"] = "Activation", {"name": layer["name"], "activation": "relu6", "trainable": True}
        elif layer["class_name"] == "DepthwiseConv2D":
            settings |= {"groups": 1, "kernel_initializer": {"class_name": "VarianceScaling", "config": {}}}
        elif layer["class_name"] == "BatchNormalization":
            settings["axis"] = 3


def mixed_precision(folder: Path, size: int, columns: int, **changes: Any) -> Path:
    """MobileNet trained in mixed_float16, its last layer in float32."""
    path = full_model("MobileNet", folder, size, columns, **changes)
    policy = {"class_name": "Policy", "config": {"name": "mixed_float16"}}

    def edit(config: Config) -> None:
        for layer in config["config"]["layers"][1:-1]:
            layer["config"]["dtype"] = policy

    return with_edited_config(path, path, edit, "2.8.0")


def _activation(columns: int) -> str | None:
    return "softmax" if columns > 1 else None


@dataclass(frozen=True)
class StatedCase(ConversionCase):
    """A case whose card says the activation, for the file cannot."""

    activation: str = "softmax"

    def card(self, size: int) -> ModelCard:
        """As `ConversionCase.card`, with the activation."""
        card = super().card(size)
        return dataclasses.replace(card, outputs=(dataclasses.replace(card.outputs[0], activation=self.activation),))


def _case(
    application: str, family: str, container: str, make: Any, size: int, full_size: int,
    kind: type[ConversionCase] = ConversionCase, title: str = "", layout: str = "keras.applications", columns: int = 5,
) -> ConversionCase:  # fmt: skip
    return kind(
        title or application, container, layout, (family,), make, size, full_size, columns, normalisation_of(application)
    )  # fmt: skip


FULL_MODELS = (
    ("MobileNet", "mobilenet", 64, 384),
    ("MobileNetV2", "mobilenet-v2", 64, 384),
    ("Xception", "xception", 72, 384),
    ("InceptionV3", "inception-v3", 80, 384),
    ("ResNet50", "resnet-50", 64, 384),
    ("InceptionResNetV2", "inception-resnet-v2", 80, 384),
    ("DenseNet121", "densenet-121", 64, 384),
    ("DenseNet169", "densenet-169", 64, 384),
    ("DenseNet201", "densenet-201", 64, 384),
    *((f"EfficientNetB{number}", f"efficientnet-b{number}", 64, 384) for number in range(8)),
)
"""Application, family, smallest size used here, published size: the networks of the JOIR study and of DiaRet."""

WHOLE = "Keras 2 full model"

CASES: tuple[ConversionCase, ...] = (
    *(_case(name, family, WHOLE, partial(full_model, name), size, full) for name, family, size, full in FULL_MODELS),
    _case("MobileNet", "mobilenet", "Keras 2 weights with JSON", partial(weights_with_json, "MobileNet"), 64, 384),
    _case("MobileNet", "mobilenet", "Keras 2 weights only", partial(weights_only, "MobileNet"), 64, 384, StatedCase),
    _case("InceptionV3", "inception-v3", "Keras 2 weights only", partial(weights_only, "InceptionV3"), 80, 384, StatedCase),
    _case("DenseNet121", "densenet-121", "Keras 2 weights only", partial(weights_only, "DenseNet121"), 64, 384, StatedCase),
    _case("MobileNetV2", "mobilenet-v2", "Keras 2 nested", partial(nested, "MobileNetV2", alpha=0.35), 64, 224,
          title="MobileNetV2 0.35"),
    _case("MobileNet", "mobilenet", "Keras 2 channels first", partial(channels_first, "MobileNet"), 64, 384),
    _case("DenseNet121", "densenet-121", "Keras 2 channels first", partial(channels_first, "DenseNet121"), 64, 384),
    *(
        _case("EfficientNetB0", "efficientnet-b0", WHOLE, partial(efficientnet_of_era, era), 64, 384, layout=f"Keras {era}")
        for era in ("2.8.0", "2.9.0", "2.13.1")
    ),
    _case("InceptionResNetV2", "inception-resnet-v2", WHOLE, inception_resnet_with_lambdas, 80, 384, layout="Keras 2.4, Lambda"),
    ConversionCase("EfficientNetB0", WHOLE, "efficientnet package", ("efficientnet-b0",), qubvel_efficientnet, 64, 384,
                   normalisation=(1 / 255, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))),
    _case("MobileNet", "mobilenet", WHOLE, mobilenet_of_2017, 64, 384, layout="Keras 2.1, relu6"),
    _case("MobileNet", "mobilenet", WHOLE, mixed_precision, 64, 384, layout="Keras 2.8, mixed_float16"),
    _case("MobileNet", "mobilenet", WHOLE, partial(full_model, "MobileNet", alpha=0.25), 64, 384, title="MobileNet 0.25",
          columns=1),
)  # fmt: skip
