"""Cleaning of random graphs and of what the exporters write: every answer as before, nothing idle left."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from onnx import TensorProto

from fundus_rt.converters.graphs.graph_cleaning import leanness
from tests.graph_builder import CHANNELS, Builder, cleaned


@pytest.mark.parametrize("seed", range(25))
def test_random_graphs_answer_as_before(seed: int) -> None:
    """Networks of up to thirty nodes in random order, with several outputs and tensors that are read more than once."""
    build = Builder(seed)
    choose = np.random.default_rng(seed + 1000)
    pool = ["x"]

    def shared(shape: tuple[int, ...]) -> str:
        same = [name for name, value in build.weights.items() if value.shape == shape and value.dtype == np.float32]
        return str(choose.choice(same)) if same and choose.random() < 0.4 else build.weight(*shape)

    def step(x: str) -> str:
        kind = choose.integers(0, 16)
        channel = [(1, CHANNELS, 1, 1), (CHANNELS, 1, 1), (1,), (), (1, 1, 8, 8), (8,)][choose.integers(0, 6)]
        if kind == 0:
            return build.conv(x, bias=bool(choose.integers(0, 2)), group=int(choose.choice([1, 2, 4])))
        if kind == 1:
            return build.node("Conv", x, shared((CHANNELS, CHANNELS, 3, 3)), shared((CHANNELS,)), pads=[1, 1, 1, 1])
        if kind == 2:
            return build.norm(x)
        if kind in (3, 4):
            inputs = [x, shared(channel)]
            return build.node(str(choose.choice(["Mul", "Add", "Sub"])), *(inputs if choose.integers(0, 3) else inputs[::-1]))
        if kind == 5:
            return build.node("Div", x, build.weight(*channel, positive=True))
        if kind == 6:
            middle = build.node("Transpose", x, perm=[0, 2, 3, 1])
            middle = build.node(str(choose.choice(["Relu", "Sigmoid", "Identity"])), middle)
            if choose.integers(0, 2):
                middle = build.node("Mul", middle, build.weight(CHANNELS))
            pool.append(build.node("Transpose", middle, perm=[0, 3, 1, 2]) if choose.random() < 0.3 else x)
            return build.node("Transpose", middle, perm=[0, 3, 1, 2])
        if kind == 7:
            flat = build.node("Reshape", x, build.integers(-1, CHANNELS, 64))
            return build.node("Reshape", build.node("Unsqueeze", flat, build.integers(0)), build.integers(-1, CHANNELS, 8, 8))
        if kind == 8:
            batch = build.node("Slice", build.node("Shape", x), build.integers(0), build.integers(1))
            shape = build.node("Concat", batch, build.integers(64), build.integers(CHANNELS), axis=0)
            moved = build.node("Transpose", build.node("Reshape", x, shape), perm=[0, 2, 1])
            return build.node("Reshape", moved, build.integers(-1, CHANNELS, 8, 8))
        if kind == 9:
            return build.conv(build.node("Pad", x, build.integers(0, 0, 1, 0, 0, 0, 1, 1)), pads=[0, 1, 0, 0])
        if kind == 10:
            other = str(choose.choice(pool))
            return build.node("Add", x, other)
        if kind == 11:
            return build.node("Relu", x)
        if kind == 12:
            means = build.node("ReduceMean", x, axes=[2, 3], keepdims=1)
            return build.node("Mul", x, build.node("Sigmoid", means))
        if kind == 13:
            size = build.node("Cast", build.node("Gather", build.node("Shape", x), build.integers(2)), to=TensorProto.FLOAT)
            return build.node("Div", x, build.node("Sqrt", size))
        if kind == 14:
            return build.node("Dropout", x)
        return build.node("Tanh", x)

    for _ in range(int(choose.integers(6, 22))):
        pool.append(step(pool[-1] if choose.random() < 0.8 else str(choose.choice(pool))))
    scaled = [build.node("Tanh", name) for name in {pool[-1], str(choose.choice(pool[1:]))}]
    cleaned(build.model(*scaled), tolerance=2e-5)


def torch_graph(network: Any, size: int) -> Any:
    from fundus_rt.converters.pytorch.torch_export import onnx_from_torch

    return onnx_from_torch(network, (size, size))


@pytest.fixture(scope="module")
def timm() -> Any:
    from fundus_rt.converters.backends import require_timm
    from tests.make_checkpoints import skip_without_timm

    skip_without_timm()
    return require_timm()


def lively(network: Any) -> Any:
    """Normalisations with statistics of their own, so that folding them changes every weight."""
    import torch

    torch.manual_seed(1)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.weight, 0.7, 1.3)
            torch.nn.init.normal_(module.bias, 0, 0.2)
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.6, 1.5)
    return network.eval()


def test_swin_of_timm_loses_its_shapes_and_masks(timm: Any) -> None:
    from tests.make_checkpoints import swin_network

    model = torch_graph(swin_network(3, depths=(2, 2, 2), num_heads=(1, 2, 4)), 96)
    before = leanness(model)
    kinds = cleaned(model, (3, 96, 96))
    assert before["shape_nodes"] > 50 and before["nodes"] > 1000
    assert kinds.total() < 0.25 * before["nodes"]
    assert not kinds.keys() & {"Shape", "Gather", "Mod", "Expand", "ScatterND", "ConstantOfShape", "Cast", "Unsqueeze"}


@pytest.mark.parametrize(
    ("name", "size", "gone"),
    [
        ("vit_tiny_patch16_224", 64, {"Shape", "Expand", "Where", "Sqrt", "Cast", "Concat"}),
        ("tf_efficientnet_b0", 64, {"Shape", "Pad", "Cast", "ReduceMean", "BatchNormalization"}),
    ],
)
def test_networks_of_timm(timm: Any, name: str, size: int, gone: set[str]) -> None:
    options = {"img_size": size, "depth": 3} if name.startswith("vit") else {}
    model = torch_graph(lively(timm.create_model(name, pretrained=False, num_classes=3, **options)), size)
    kinds = cleaned(model, (3, size, size))
    assert not kinds.keys() & gone


def test_a_network_of_keras_with_separable_convolutions_and_padding() -> None:
    """What keras.applications is made of, in one small network: ZeroPadding, depthwise, separable, squeeze-excite, BatchNorm."""
    pytest.importorskip("tf2onnx")
    pytest.importorskip("tf_keras")
    from fundus_rt.benchmarks.keras_networks import set_norm
    from fundus_rt.converters.backends import require_keras
    from fundus_rt.converters.tensorflow.keras_export import onnx_from_keras

    _, keras = require_keras()
    layers = keras.layers
    keras.utils.set_random_seed(0)
    image = keras.Input((32, 32, 3))
    x = layers.Conv2D(8, 3, strides=2, use_bias=False)(layers.ZeroPadding2D(((0, 1), (0, 1)))(image))
    x = layers.Activation("relu")(layers.BatchNormalization()(x))
    x = layers.MaxPooling2D(3, 2)(layers.ZeroPadding2D(1)(x))
    x = layers.Activation("swish")(layers.BatchNormalization()(layers.SeparableConv2D(12, 3, padding="same", use_bias=False)(x)))
    gate = layers.Reshape((1, 1, 12))(layers.GlobalAveragePooling2D()(x))
    gate = layers.Conv2D(12, 1, activation="sigmoid")(layers.Conv2D(3, 1, activation="swish")(gate))
    x = layers.multiply([x, gate])
    x = layers.concatenate([x, layers.BatchNormalization()(layers.DepthwiseConv2D(3, padding="same", use_bias=False)(x))])
    x = layers.Activation("relu")(layers.BatchNormalization()(x))
    x = layers.Dense(5, activation="softmax")(layers.Dropout(0.3)(layers.GlobalAveragePooling2D()(x)))
    network = keras.Model(image, x)
    random = np.random.default_rng(0)
    for layer in network.layers:
        if isinstance(layer, layers.BatchNormalization):
            shape = layer.gamma.shape
            parts = [random.uniform(0.7, 1.3, shape), *random.normal(0, 0.3, (2, *shape)), random.uniform(0.5, 2.0, shape)]
            set_norm(layer, *parts)
    model = onnx_from_keras(network, (32, 32))
    kinds = cleaned(model, (32, 32, 3))
    assert kinds["BatchNormalization"] == 1 and not kinds.keys() & {"Pad", "Unsqueeze", "Identity", "ReduceMean"}
    assert kinds["Transpose"] <= 1
