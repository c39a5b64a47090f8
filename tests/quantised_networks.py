"""A small network with a residual sum, in the shipped form, for the tests of lower precision."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from fundus_rt.benchmarks.lively import telling_head
from fundus_rt.benchmarks.proof.graph_runs import GraphSession
from fundus_rt.converters.shipping import embed_card
from fundus_rt.models.canary import PICTURES, canary_picture, chosen_canary
from fundus_rt.models.card import ModelCard, OutputSpec, PreprocessingSpec
from fundus_rt.models.registry import EXAMPLE_FOLDER, load_card
from fundus_rt.runtime.decode import decode
from fundus_rt.runtime.field_of_view import find_field_of_view
from fundus_rt.runtime.preprocess import tensor_from_frame

SIZE = 64
CHANNELS = 16
CONVOLUTIONS = ("first", "one", "two", "three")


def card() -> ModelCard:
    """Of a sex model that never mirrors, without a canary."""
    spec = PreprocessingSpec((SIZE, SIZE), "field-of-view", "pillow-bilinear", "BGR", 1.0, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    output = OutputSpec("sex", "binary", "probability", 0.05, ("female", "male"), activation="sigmoid", columns=1)
    return dataclasses.replace(
        load_card("joir-sex-mobilenet"), name="small", outputs=(output,), preprocessing=spec, laterality="none"
    )


def photographs() -> np.ndarray:
    """The example photographs as the network takes them, uint8 [N, SIZE, SIZE, 3]."""
    frames = [decode(path.read_bytes()).frame for path in sorted(EXAMPLE_FOLDER.glob("*.jpg"))]
    return np.stack([tensor_from_frame(frame, find_field_of_view(frame), card().preprocessing, False) for frame in frames])


def network(seed: int = 0) -> Any:
    """An `onnx.ModelProto`: four convolutions with Relu or SiLU and one residual sum, a mean, one linear layer."""
    random = np.random.default_rng(seed)
    weights: dict[str, Any] = {"axes": np.array([2, 3], np.int64), "scale": np.float32(1 / 64), "middle": np.float32(-1)}
    for name, inputs, size in zip(CONVOLUTIONS, (3, CHANNELS, CHANNELS, CHANNELS), (3, 1, 3, 1), strict=True):
        spread = np.sqrt(2 / (inputs * size * size))
        weights[f"{name}_w"] = random.normal(0, spread, (CHANNELS, inputs, size, size)).astype(np.float32)
        weights[f"{name}_b"] = random.normal(0, 0.1, CHANNELS).astype(np.float32)
    weights["head_w"], weights["head_b"] = np.zeros((CHANNELS, 1), np.float32), np.zeros(1, np.float32)

    def convolution(name: str, read: str, made: str, **attributes: Any) -> Any:
        return helper.make_node("Conv", [read, f"{name}_w", f"{name}_b"], [made], name=name, **attributes)

    nodes = [
        helper.make_node("Cast", ["frames"], ["pixels"], name="cast", to=TensorProto.FLOAT),
        helper.make_node("ReduceSum", ["pixels", "axes"], ["receipt"], name="receipt", keepdims=0),
        helper.make_node("Transpose", ["pixels"], ["planes"], name="transpose", perm=[0, 3, 1, 2]),
        helper.make_node("Mul", ["planes", "scale"], ["scaled"], name="scaling"),
        helper.make_node("Add", ["scaled", "middle"], ["normal"], name="centring"),
        convolution("first", "normal", "a", strides=[2, 2], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["a"], ["a_relu"], name="first_relu"),
        convolution("one", "a_relu", "b"),
        helper.make_node("Relu", ["b"], ["b_relu"], name="one_relu"),
        convolution("two", "b_relu", "c", pads=[1, 1, 1, 1]),
        helper.make_node("Add", ["c", "a_relu"], ["sum"], name="add"),
        helper.make_node("Relu", ["sum"], ["sum_relu"], name="add_relu"),
        convolution("three", "sum_relu", "d"),
        helper.make_node("Sigmoid", ["d"], ["gate"], name="three_gate"),
        helper.make_node("Mul", ["d", "gate"], ["silu"], name="three_silu"),
        helper.make_node("GlobalAveragePool", ["silu"], ["mean"], name="pool"),
        helper.make_node("Flatten", ["mean"], ["features"], name="flatten"),
        helper.make_node("Gemm", ["features", "head_w", "head_b"], ["sex"], name="head"),
    ]
    frames = helper.make_tensor_value_info("frames", TensorProto.UINT8, ["N", SIZE, SIZE, 3])
    outputs = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["N", c]) for n, c in (("sex", 1), ("receipt", SIZE))]
    stored = [numpy_helper.from_array(np.asarray(value), name) for name, value in weights.items()]
    graph = helper.make_graph(nodes, "small", [frames], outputs, stored)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    _tell_photographs_apart(model)
    onnx.checker.check_model(model)
    return model


def _tell_photographs_apart(model: Any) -> None:
    """Give the linear layer weights under which the photographs' answers differ."""
    tapped = onnx.ModelProto()
    tapped.CopyFrom(model)
    tapped.graph.output.append(helper.make_tensor_value_info("features", TensorProto.FLOAT, None))
    kernel, bias = telling_head(GraphSession(tapped).run(photographs())["features"], 1, deviation=2.0)
    for tensor in model.graph.initializer:
        if tensor.name in ("head_w", "head_b"):
            tensor.CopyFrom(numpy_helper.from_array(kernel if tensor.name == "head_w" else bias, tensor.name))


def shipped(path: Path) -> tuple[Any, ModelCard]:
    """The network as a file with its card and canary; returns graph and card."""
    model = network()
    pictures = np.stack([canary_picture(which, (SIZE, SIZE)) for which in range(PICTURES)])
    canary = chosen_canary({"sex": GraphSession(model).run(pictures)["sex"]})
    assert canary is not None, "the drawn pictures have to be told apart"
    described = dataclasses.replace(card(), canary=canary.to_dict()).validate()
    embed_card(model, described)
    onnx.save(model, str(path))
    return model, described
