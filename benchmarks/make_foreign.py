"""Checkpoints of Keras 3, SavedModel folders and other people's ONNX files, with random, lively weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from fundus_rt.benchmarks.conversion_case import IMAGENET, MINUS_ONE_TO_ONE, RAW, ConversionCase
from fundus_rt.benchmarks.keras_networks import enliven
from fundus_rt.benchmarks.lively import pictures, telling_head

SMALL = 128
"""Input sizes below this, pixels, get a MobileNet of a quarter of the width, which is published too."""


def keras_network(keras: Any, name: str, size: int, columns: int, nested: bool = False, seed: int = 0) -> Any:
    """A network of keras.applications under a Dropout and a Dense layer, alive.

    Args:
        keras: the module ``tf_keras`` (Keras 2) or ``keras`` (Keras 3).
        name: ``MobileNet`` or ``EfficientNetB0``.
        size: input, pixels.
        columns: outputs; one is linear, several get softmax.
        nested: keep the network of keras.applications as one layer of a Sequential.
        seed: of the weights.
    """
    keras.backend.clear_session()
    keras.utils.set_random_seed(seed)
    width = {"alpha": 0.25 if size < SMALL else 1.0} if name == "MobileNet" else {}
    base = getattr(keras.applications, name)(input_shape=(size, size, 3), include_top=False, weights=None, **width)
    pooling = keras.layers.GlobalAveragePooling2D()
    dropout = keras.layers.Dropout(0.2)
    head = keras.layers.Dense(columns, activation="softmax" if columns > 1 else None)
    network = keras.Model(base.input, head(dropout(pooling(base.output))))
    levels = pictures(size, 8, seed + 1)
    for layer in network.layers:
        if isinstance(layer, keras.layers.Normalization):
            layer.set_weights([np.asarray(IMAGENET[1]), np.asarray(IMAGENET[2]), np.asarray(0)])
            layer.finalize_state()
    enliven(network, levels if name.startswith("EfficientNet") else levels / 127.5 - 1.0, seed, keras)
    if not nested:
        return network
    return keras.Sequential([base, pooling, dropout, head])


def _trained(network: Any) -> Any:
    """Compiled, with an optimizer that has a state: what a training leaves."""
    network.compile("adam", "mean_squared_error")
    network.optimizer.build(network.trainable_variables)
    return network


def _keras3(name: str, ending: str, nested: bool = False) -> Callable[[Path, int, int], Path]:
    def make(folder: Path, size: int, columns: int) -> Path:
        from fundus_rt.converters.tensorflow.keras3_export import require_keras3

        _, keras = require_keras3()
        path = folder / f"network{ending}"
        _trained(keras_network(keras, name, size, columns, nested)).save(path)
        return path

    return make


def _saved_by_keras2(folder: Path, size: int, columns: int) -> Path:
    from fundus_rt.converters.backends import quiet_tracing, require_keras

    _, keras = require_keras()
    with quiet_tracing():
        _trained(keras_network(keras, "MobileNet", size, columns)).save(folder / "network", save_format="tf")
    return folder / "network"


def _exported_by_keras3(folder: Path, size: int, columns: int) -> Path:
    from fundus_rt.converters.tensorflow.keras3_export import require_keras3

    _, keras = require_keras3()
    keras_network(keras, "MobileNet", size, columns).export(str(folder / "network"), verbose=False)
    return folder / "network"


def torch_network(name: str, size: int, columns: int, seed: int = 0) -> Any:
    """A network of timm with random weights, its BatchNorms and its head set to the pictures that it meets."""
    import torch

    from fundus_rt.converters.backends import require_timm_swin

    require_timm_swin()
    import timm

    torch.manual_seed(seed)
    network = timm.create_model(name, num_classes=columns).train()
    levels = pictures(size, 8, seed + 1) / 255
    images = torch.from_numpy(((levels - IMAGENET[1]) / IMAGENET[2]).transpose(0, 3, 1, 2).astype(np.float32))
    norms = [module for module in network.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    with torch.no_grad():
        for norm in norms:
            norm.momentum = 1.0
            norm.weight.uniform_(0.7, 1.3)
            norm.bias.normal_(0, 0.3)
        network(images)
        network.eval()
        for norm in norms:
            norm.running_var.clamp_(min=float(norm.running_var.mean()))
        features = network.forward_head(network.forward_features(images), pre_logits=True).numpy()
        weight, bias = telling_head(features, columns)
        head = network.get_classifier()
        head.weight.copy_(torch.from_numpy(weight.T.copy()))
        head.bias.copy_(torch.from_numpy(bias))
    return network


def export_torch(network: Any, path: Path, size: int, opset: int, dynamic: bool, old_inputs: bool = False) -> Path:
    """Write a torch network as ONNX, as the exporters of several years did.

    Args:
        network: in evaluation mode, input [N, 3, size, size].
        path: file to write.
        size: pixels.
        opset: operator set.
        dynamic: leave the first axis open; otherwise one picture at a time.
        old_inputs: list every parameter as an input too, in format 3: what exporters before 2019 wrote.
    """
    import onnx
    import torch

    from fundus_rt.converters.backends import quiet_tracing

    axes = {"image": {0: "batch"}, "answer": {0: "batch"}} if dynamic else None
    with quiet_tracing():
        torch.onnx.export(
            network, (torch.zeros(1, 3, size, size),), str(path), opset_version=opset, dynamo=False, input_names=["image"],
            output_names=["answer"], dynamic_axes=axes, keep_initializers_as_inputs=old_inputs,
            do_constant_folding=not old_inputs,
        )  # fmt: skip
    if old_inputs:
        model = onnx.load(str(path))
        model.ir_version = 3
        onnx.save(model, str(path))
    return path


def _onnx_of(name: str, opset: int, dynamic: bool) -> Callable[[Path, int, int], Path]:
    def make(folder: Path, size: int, columns: int) -> Path:
        network = torch_network(name, size, columns)
        return export_torch(network, folder / "network.onnx", size, opset, dynamic, old_inputs=opset == 9)

    return make


CASES: tuple[ConversionCase, ...] = (
    ConversionCase(
        "MobileNet", ".keras with optimizer", "Keras 3", ("mobilenet",), _keras3("MobileNet", ".keras"), 64, 384, 2,
        MINUS_ONE_TO_ONE,
    ),
    ConversionCase(
        "MobileNet nested", ".h5 with optimizer", "Keras 3", ("mobilenet",), _keras3("MobileNet", ".h5", True), 64, 384, 5,
        MINUS_ONE_TO_ONE,
    ),
    ConversionCase(
        "MobileNet nested", ".keras with optimizer", "Keras 3", ("mobilenet",), _keras3("MobileNet", ".keras", True), 64, 384, 5,
        MINUS_ONE_TO_ONE,
    ),
    ConversionCase(
        "EfficientNet-B0", ".keras with optimizer", "Keras 3", ("efficientnet-b0",), _keras3("EfficientNetB0", ".keras"), 64, 384,
        2, RAW,
    ),
    ConversionCase(
        "EfficientNet-B0", ".h5 with optimizer", "Keras 3", ("efficientnet-b0",), _keras3("EfficientNetB0", ".h5"), 64, 384, 1,
        RAW,
    ),
    ConversionCase(
        "MobileNet", "SavedModel with optimizer", "Keras 2", ("saved-model",), _saved_by_keras2, 64, 384, 5, MINUS_ONE_TO_ONE
    ),
    ConversionCase(
        "MobileNet", "SavedModel", "Keras 3 export", ("saved-model",), _exported_by_keras3, 64, 384, 5, MINUS_ONE_TO_ONE
    ),
    ConversionCase(
        "ResNet-18", "ONNX opset 9, one picture, old inputs", "torch", ("onnx",), _onnx_of("resnet18", 9, False), 64, 384,
    ),
    ConversionCase(
        "MobileNetV3-small", "ONNX opset 20, any batch", "torch", ("onnx",), _onnx_of("mobilenetv3_small_050", 20, True), 64, 384
    ),
)  # fmt: skip
