"""Graphs made node by node, and what a cleaned graph is held against."""

from __future__ import annotations

import collections
from typing import Any

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402

from fundus_rt.converters.graphs.graph_cleaning import clean_graph, leanness  # noqa: E402

COUNTS = ("cancelling_transposes", "dead_initializers", "foldable_batch_norms", "idle_nodes", "constant_nodes", "shape_nodes")
CHANNELS = 4


class Builder:
    """A graph from ``x`` [N, 4, 8, 8], node by node."""

    def __init__(self, seed: int = 0, opset: int = 17) -> None:
        self.random = np.random.default_rng(seed)
        self.nodes: list[Any] = []
        self.weights: dict[str, np.ndarray] = {}
        self.opset = opset
        self.outputs: list[str] = []

    def weight(self, *shape: int, positive: bool = False) -> str:
        """Random numbers that keep the size of activations, so that rounding errors do not grow from node to node."""
        size = self.random.uniform(0.5, 1.5, shape) / np.sqrt(np.prod(shape[1:]) if len(shape) > 1 else 1)
        signs = 1 if positive else self.random.choice([-1.0, 1.0], shape)
        return self.constant((size * signs).astype(np.float32))

    def constant(self, value: np.ndarray) -> str:
        name = f"w{len(self.weights)}"
        self.weights[name] = value
        return name

    def integers(self, *values: int) -> str:
        return self.constant(np.asarray(values, np.int64))

    def node(self, kind: str, *inputs: str, **attributes: Any) -> str:
        output = f"t{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [output], **attributes))
        return output

    def conv(self, x: str, bias: bool = True, group: int = 1, **attributes: Any) -> str:
        kernel = self.weight(CHANNELS, CHANNELS // group, 3, 3)
        attributes = {"pads": [1, 1, 1, 1]} | attributes
        return self.node("Conv", x, kernel, *([self.weight(CHANNELS)] if bias else []), group=group, **attributes)

    def norm(self, x: str, channels: int = CHANNELS) -> str:
        parts = [self.weight(channels), self.weight(channels), self.weight(channels), self.weight(channels, positive=True)]
        return self.node("BatchNormalization", x, *parts)

    def model(self, *outputs: str) -> Any:
        for index, name in enumerate(outputs):
            self.nodes.append(helper.make_node("Flatten", [name], [f"answer{index}"]))
        names = [f"answer{index}" for index in range(len(outputs))] + self.outputs
        graph = helper.make_graph(
            self.nodes,
            "made by hand",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", CHANNELS, 8, 8])],
            [
                helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", "a"] if name.startswith("answer") else list("Nabc"))
                for name in names
            ],
            [numpy_helper.from_array(value, name) for name, value in self.weights.items()],
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", self.opset)], ir_version=8)


def answers(model: Any, batch: int, dims: tuple[int, ...] = (CHANNELS, 8, 8)) -> dict[str, np.ndarray]:
    """All outputs, computed node by node as they stand."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    x = np.random.default_rng(batch).normal(size=(batch, *dims)).astype(np.float32)
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(None, {session.get_inputs()[0].name: x}), strict=True))


def cleaned(model: Any, dims: tuple[int, ...] = (CHANNELS, 8, 8), tolerance: float = 1e-6) -> collections.Counter[str]:
    """Clean a model in place, hold its answers against those of before, and return how many nodes of each kind are left."""
    before = {batch: answers(model, batch, dims) for batch in (1, 2, 5)}
    clean_graph(model)
    onnx.checker.check_model(model, full_check=True)
    for batch, expected in before.items():
        for name, answer in answers(model, batch, dims).items():
            scale = np.abs(expected[name]).max()
            assert np.abs(expected[name]).std() > 0, "the network is dead, equal answers would show nothing"
            assert np.abs(answer - expected[name]).max() <= tolerance * scale, name
    assert not any(leanness(model)[count] for count in COUNTS), leanness(model)
    kinds = collections.Counter(node.op_type for node in model.graph.node)
    clean_graph(model)
    assert collections.Counter(node.op_type for node in model.graph.node) == kinds, "cleaning twice changes nothing more"
    return kinds
