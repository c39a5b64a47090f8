"""A float32 graph with its heavy layers in int8, as QuantizeLinear and DequantizeLinear pairs that every runtime reads.

Weights are whole numbers from -127 to 127, one scale for each output channel, stored as int8 with a DequantizeLinear behind them,
a quarter of the bytes. Biases stay float32. One pair stands behind each activation, and serves all of its readers. How a pair
writes its numbers depends on what shall compute the file, found on the graphs that ONNX Runtime 1.31 and OpenVINO 2026.4 really
run and on what TensorRT's parser takes:

* ``tensorrt``: int8 with zero point 0 everywhere, the portable form; TensorRT refuses uint8 and other zero points. Half of the
  steps are lost behind a Relu, which is never below 0.
* ``onnxruntime``: uint8 with a zero point, which uses all 255 steps. On a processor with x86 instructions ONNX Runtime multiplies
  uint8 by int8 (without VNNI by uint8), and drops a Relu or Clip whose bounds the pair itself keeps; with signed pairs it does
  neither.
* ``openvino``: uint8 with zero point 0 for tensors that are never below 0, int8 with zero point 0 for all others; a zero point
  elsewhere costs it half of the gain. On a processor without VNNI weights end at 63, for its sums of two products have 16 bits
  (`fundus_rt.runtime.device_kind.sums_8_bit_products_in_16`).

ONNX Runtime's own quantiser is not used: wherever it writes Q/DQ pairs it also writes them on biases, as int32.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fundus_rt.converters.graphs.graph_editor import GraphEditor, attribute
from fundus_rt.converters.precision.heavy_nodes import HEAVY, constants, named
from fundus_rt.models.errors import UsageError

LEVELS = 127
"""Largest whole number that is used, on both sides of 0: -128 has no counterpart."""
UNSIGNED_LEVELS = 255
"""Largest whole number of uint8."""
SMALLEST_SCALE = 1e-8
"""A channel of zeros has no scale of its own; TensorRT refuses 0."""
BACKENDS = ("onnxruntime", "openvino", "tensorrt")
"""What a file of int8 is written for."""
JOINING = ("Sigmoid", "Add", "Concat", "AveragePool", "GlobalAveragePool", "MaxPool", "Mul")
"""Light operators that may stand between two heavy ones in int8."""
ACTIVATIONS = ("Relu", "Clip")
PASSING = ("MaxPool", "AveragePool", "GlobalAveragePool", "Concat", "Squeeze", "Flatten", "Reshape", "Transpose")
"""Operators whose result lies between the least and the largest number of what they read."""


def quantisable(model: Any) -> list[str]:
    """Nodes that can be computed in int8: heavy ones with constant weights, and light ones on activations alone.

    The last heavy nodes stay in float32, and so does the mean over the picture in front of them: they are a thousandth of the
    work, and their steps would be steps of the answer.

    Returns:
        Names (`heavy_nodes.named`) in the order of the graph.
    """
    editor, stored = GraphEditor(model), constants(model)
    following = _heavy_behind(editor, model)
    found = []
    for name, node in named(model).items():
        behind = following[id(node)]
        if behind == 0 or (behind == 1 and node.op_type == "GlobalAveragePool"):
            continue
        if node.op_type in HEAVY:
            weights = editor.tensors.get(node.input[1])
            if weights is not None and weights.data_type == editor.onnx.TensorProto.FLOAT and len(weights.dims) > 1:
                found.append(name)
        elif node.op_type in JOINING and not stored.intersection(node.input):
            found.append(name)
    return found


def _heavy_behind(editor: GraphEditor, model: Any) -> dict[int, int]:
    """How many heavy nodes follow one another, at most, behind each node; by ``id`` of the node."""
    found: dict[int, int] = {}
    for node in reversed(model.graph.node):
        readers = [reader for name in node.output for reader in editor.readers(name)]
        found[id(node)] = max((found[id(one)] + (one.op_type in HEAVY) for one in readers), default=0)
    return found


def activations_of(model: Any, chosen: Collection[str]) -> list[str]:
    """Names of the tensors that get a Q/DQ pair when the chosen nodes are computed in int8, in the order of the graph."""
    return list(_Plan(GraphEditor(model), model, chosen).tensors)


def bounds_of(model: Any, names: Collection[str]) -> dict[str, tuple[float, float]]:
    """What tensors can never exceed, whatever the picture is: by the activation that makes them, else infinite.

    Args:
        model: an `onnx.ModelProto` in the shipped form.
        names: of tensors.

    Returns:
        Least and largest number by name.
    """
    editor = GraphEditor(model)
    found: dict[str, tuple[float, float]] = {}
    for node in editor.nodes:
        ends = (-np.inf, np.inf)
        if node.op_type == "Relu":
            ends = (0.0, np.inf)
        elif node.op_type == "Sigmoid":
            ends = (0.0, 1.0)
        elif node.op_type == "Clip":
            limits = [editor.value(name) if name else None for name in (*node.input[1:], "", "")[:2]]
            least, most = (math.nan if value is None else float(value) for value in limits)
            ends = (-np.inf if math.isnan(least) else least, np.inf if math.isnan(most) else most)
        elif node.op_type in PASSING:
            read = [found.get(name, ends) for name in (node.input if node.op_type == "Concat" else node.input[:1])]
            padded = 0.0 if node.op_type == "AveragePool" else np.inf  # zeros beyond the edge may count
            ends = (min(padded, *(one[0] for one in read)), max(-padded, *(one[1] for one in read)))
        found.update((name, ends) for name in node.output)
    return {name: found.get(name, (-np.inf, np.inf)) for name in names}


class _Plan:
    """Which tensors are quantised, which share a scale, and who reads them so."""

    def __init__(self, editor: GraphEditor, model: Any, chosen: Collection[str]) -> None:
        nodes, stored = named(model), constants(model)
        unknown = [name for name in chosen if name not in nodes]
        if unknown:
            raise UsageError(f"the graph has no node {unknown[0]!r}; the recipe was written for another file")
        self.editor = editor
        self.chosen = [node for name, node in nodes.items() if name in set(chosen)]
        self.tensors: dict[str, str] = {}
        """Quantised tensors, and the one whose range each of them takes: its own, or what an activation makes of it."""
        self.inside: set[int] = {id(node) for node in self.chosen}
        """Nodes that read the restored tensors: the chosen ones and the activations behind them."""
        for node in self.chosen:
            reads = node.input[:1] if node.op_type in HEAVY else node.input
            for name in reads:
                if name not in stored:
                    self.tensors.setdefault(name, name)
            self._result(node)
        for node in self.chosen:
            if node.op_type == "MaxPool" and node.output[0] in self.tensors:
                self.tensors[node.output[0]] = self.tensors[node.input[0]]

    def _result(self, node: Any) -> None:
        name = node.output[0]
        if name in self.editor.held:
            return
        after = self.editor.only_reader(name, *ACTIVATIONS)
        if after is None or after.output[0] in self.editor.held:
            self.tensors.setdefault(name, name)
            return
        self.inside.add(id(after))
        self.tensors.setdefault(name, after.output[0])
        self.tensors.setdefault(after.output[0], after.output[0])


def write_int8(
    model: Any, chosen: Collection[str], ranges: Mapping[str, tuple[float, float]], backend: str, weight_levels: int = LEVELS
) -> None:
    """Put the chosen nodes of a graph into int8.

    Args:
        model: an `onnx.ModelProto` in the shipped form, float32; changed in place.
        chosen: names of nodes (`heavy_nodes.named`), each one of `quantisable`.
        ranges: for every tensor of `activations_of` the least number, at most 0, and the largest, at least 0, that is kept as it
            is; others are clipped.
        backend: one of `BACKENDS`.
        weight_levels: largest whole number of a weight.

    Raises:
        UsageError: a node is not there or cannot be computed in int8, or a range is missing.
    """
    allowed = set(quantisable(model))
    wrong = sorted(set(chosen) - allowed)
    if wrong:
        raise UsageError(f"the node {wrong[0]!r} cannot be computed in int8; the recipe was written for another file")
    editor = GraphEditor(model)
    plan = _Plan(editor, model, chosen)
    for name, source in plan.tensors.items():
        after = editor.only_reader(name, *ACTIVATIONS)
        if source != name and after is not None and after.output[0] == source:
            continue
        least, most = ranges.get(source, (0.0, 0.0))
        if not least <= 0 <= most or least == most:
            raise UsageError(f"the range of the tensor {source!r} is not known; calibrate again")
        _pair(editor, plan, name, *scale_and_zero(least, most, backend))
    for node in plan.chosen:
        if node.op_type in HEAVY:
            _store_weights(editor, node, weight_levels)
    editor.commit()


def write_weights_int8(model: Any, chosen: Collection[str]) -> None:
    """Store the weights of the chosen heavy nodes in int8, and compute in float32: a quarter of the bytes.

    Args:
        model: an `onnx.ModelProto` in the shipped form, float32; changed in place.
        chosen: names of heavy nodes with constant weights.
    """
    editor, nodes = GraphEditor(model), named(model)
    for name in chosen:
        _store_weights(editor, nodes[name])
    editor.commit()


def scale_and_zero(least: float, most: float, backend: str) -> tuple[NDArray[np.float32], NDArray[np.int8] | NDArray[np.uint8]]:
    """How the numbers of a range are written.

    Args:
        least, most: ends of the range; 0 is inside.
        backend: one of `BACKENDS`.

    Returns:
        The scale, float32 [], and the zero point, int8 or uint8 []: a number is ``scale * (level - zero)``, and 0 is a level.
    """
    if backend == "onnxruntime":
        scale = np.float32(max((most - least) / UNSIGNED_LEVELS, SMALLEST_SCALE))
        return np.asarray(scale), np.asarray(min(round(-least / float(scale)), UNSIGNED_LEVELS), np.uint8)
    if backend == "openvino" and least == 0:
        return np.asarray(np.float32(max(most / UNSIGNED_LEVELS, SMALLEST_SCALE))), np.asarray(0, np.uint8)
    return np.asarray(np.float32(max(most, -least, LEVELS * SMALLEST_SCALE) / LEVELS)), np.asarray(0, np.int8)


def _pair(editor: GraphEditor, plan: _Plan, name: str, scale: NDArray[Any], zero: NDArray[Any]) -> None:
    """Round a tensor to 8 bits and back, for those of its readers that compute in int8; for all, where its own node does."""
    maker = editor.producer(name)
    everyone = maker is not None and id(maker) in plan.inside
    readers = [node for node in {id(n): n for n in editor.readers(name)}.values() if everyone or id(node) in plan.inside]
    inputs = [editor.constant(f"{name}/scale", scale), editor.constant(f"{name}/zero", zero)]
    rounded = editor.add("QuantizeLinear", [name, *inputs], f"{name}/int8")
    restored = editor.add("DequantizeLinear", [rounded, *inputs], f"{name}/restored")
    for node in readers:
        editor.set_inputs(node, [restored if read == name else read for read in node.input])


def _store_weights(editor: GraphEditor, node: Any, most: int = LEVELS) -> None:
    name = node.input[1]
    weights = editor.value(name)
    assert weights is not None, "quantisable asks for constant weights"
    axis = 0 if node.op_type == "Conv" or attribute(node, "transB", 0) else weights.ndim - 1
    levels, scales = rounded_weights(weights, axis, most)
    stored = editor.constant(f"{name}/int8", levels)
    scale = editor.constant(f"{name}/scales", scales)
    zero = editor.constant(f"{name}/zeros", np.zeros(len(scales), np.int8))
    restored = editor.add("DequantizeLinear", [stored, scale, zero], f"{name}/restored", axis=axis)
    editor.set_inputs(node, [node.input[0], restored, *node.input[2:]])


def rounded_weights(weights: NDArray[np.float32], axis: int, most: int = LEVELS) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Weights as whole numbers, with one scale for each channel.

    Args:
        weights: float32.
        axis: of the output channels.
        most: largest whole number, on both sides of 0.

    Returns:
        int8 of the same shape, and float32 scales [channels]; their product is the weight to within half a scale.
    """
    others = tuple(a for a in range(weights.ndim) if a != axis)
    scales = np.maximum(np.abs(weights).max(axis=others) / most, SMALLEST_SCALE).astype(np.float32)
    spread = scales.reshape([-1 if a == axis else 1 for a in range(weights.ndim)])
    return np.clip(np.rint(weights / spread), -most, most).astype(np.int8), scales
