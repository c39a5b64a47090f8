"""A float32 graph with its heavy layers in int8, as QuantizeLinear and DequantizeLinear pairs that every runtime reads.

The portable form: int8 with zero point 0 everywhere, for TensorRT refuses uint8 and other zero points; one scale for each
activation, one for each channel of a weight; no pair on a bias, which stays float32. Weights are stored as int8 with a
DequantizeLinear behind them, a quarter of the bytes.

ONNX Runtime's own quantiser is not used: wherever it writes Q/DQ pairs it also writes them on biases, as int32, and it knows
neither of the two placements below.

A runtime turns ``DequantizeLinear -> layer -> QuantizeLinear`` into one layer of int8. What it needs for that, found on the
graphs that ONNX Runtime 1.31 and OpenVINO 2026.4 really run, is not the same:

* OpenVINO (and TensorRT, by its documentation) takes an activation behind the layer along, and one pair serves all readers.
* ONNX Runtime on a processor with x86 instructions does not fuse an activation where the zero point is 0, so it needs the pair
  on both sides of it; the scale is the same on both, so the second rounding changes nothing. It also needs a pair for each
  reader of its own, or it leaves the readers in float32: it computes in uint8, and turns only pairs with one reader into that.
  Equal pairs are merged when a file is opened, so their scales are one unit in the last place apart; and pairs that follow one
  another are merged, so where a layer without an activation has several readers (SiLU, a residual sum), a Clip that never clips
  stands between.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fundus_rt.converters.graphs.graph_editor import GraphEditor, attribute
from fundus_rt.converters.precision.heavy_nodes import HEAVY, constants, named
from fundus_rt.models.errors import UsageError

LEVELS = 127
"""Largest whole number that is used, on both sides of 0: -128 has no counterpart."""
SMALLEST_SCALE = 1e-8
"""A channel of zeros has no scale of its own; TensorRT refuses 0."""
SELECTING = ("MaxPool", "Relu", "Clip")
"""Operators whose result takes the scale of what they read: they choose or clip numbers."""
JOINING = ("Sigmoid", "Add", "Concat", "AveragePool", "GlobalAveragePool", "MaxPool", "Mul")
"""Light operators that may stand between two heavy ones in int8."""
ACTIVATIONS = ("Relu", "Clip")


def quantisable(model: Any) -> list[str]:
    """Nodes that can be computed in int8: heavy ones with constant weights, and light ones on activations alone.

    Returns:
        Names (`heavy_nodes.named`) in the order of the graph.
    """
    editor, stored = GraphEditor(model), constants(model)
    found = []
    for name, node in named(model).items():
        if node.op_type in HEAVY:
            weights = editor.tensors.get(node.input[1])
            if weights is not None and weights.data_type == editor.onnx.TensorProto.FLOAT and len(weights.dims) > 1:
                found.append(name)
        elif node.op_type in JOINING and not stored.intersection(node.input):
            found.append(name)
    return found


def activations_of(model: Any, chosen: Collection[str]) -> list[str]:
    """Names of the tensors that get a Q/DQ pair when the chosen nodes are computed in int8, in the order of the graph."""
    return list(_Plan(GraphEditor(model), model, chosen).tensors)


class _Plan:
    """Which tensors are quantised, which share a scale, and who reads them so."""

    def __init__(self, editor: GraphEditor, model: Any, chosen: Collection[str], split: bool = True) -> None:
        self.split = split
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


def write_int8(model: Any, chosen: Collection[str], largest: Mapping[str, float], split: bool = True) -> None:
    """Put the chosen nodes of a graph into int8.

    Args:
        model: an `onnx.ModelProto` in the shipped form, float32; changed in place.
        chosen: names of nodes (`heavy_nodes.named`), each one of `quantisable`.
        largest: for every tensor of `activations_of` the number, above 0, that 127 stands for; larger ones are clipped.
        split: write pairs on both sides of an activation behind a layer, and one for each reader, which ONNX Runtime needs;
            False: one pair behind the activation.

    Raises:
        UsageError: a node is not there or cannot be computed in int8, or a range is missing.
    """
    allowed = set(quantisable(model))
    wrong = sorted(set(chosen) - allowed)
    if wrong:
        raise UsageError(f"the node {wrong[0]!r} cannot be computed in int8; the recipe was written for another file")
    editor = GraphEditor(model)
    plan = _Plan(editor, model, chosen, split)
    for name, source in plan.tensors.items():
        after = editor.only_reader(name, *ACTIVATIONS)
        if not split and source != name and after is not None and after.output[0] == source:
            continue
        if not largest.get(source, 0) > 0:
            raise UsageError(f"the range of the tensor {source!r} is not known; calibrate again")
        _pair(editor, plan, name, float(largest[source]))
    for node in plan.chosen:
        if node.op_type in HEAVY:
            _store_weights(editor, node)
    editor.commit()


def _pair(editor: GraphEditor, plan: _Plan, name: str, largest: float) -> None:
    """Round a tensor to int8 and back, for those of its readers that compute in int8; for all, where its own node does."""
    maker = editor.producer(name)
    everyone = maker is not None and id(maker) in plan.inside
    readers = [node for node in {id(n): n for n in editor.readers(name)}.values() if everyone or id(node) in plan.inside]
    scale = np.float32(max(largest / LEVELS, SMALLEST_SCALE))
    if len(readers) == 1 or not plan.split:
        _restore(editor, name, readers, scale)
        return
    own = [node for node in readers if id(node) in plan.inside]
    if everyone and (maker.op_type not in SELECTING or len(own) < len(readers)):
        restored = _restore(editor, name, readers, scale)  # a layer of int8 has one QuantizeLinear behind it
        ends = [
            editor.constant(f"{name}/{end}", np.asarray(way * largest, np.float32)) for end, way in (("least", -2), ("most", 2))
        ]
        name = editor.add("Clip", [restored, *ends], f"{name}/shared")
        for node in readers:
            editor.set_inputs(node, [name if read == restored else read for read in node.input])
    for reader in own:
        scale = np.nextafter(scale, np.float32(np.inf))
        _restore(editor, name, [reader], scale)


def _restore(editor: GraphEditor, name: str, readers: list[Any], scale: np.float32) -> str:
    """One Q/DQ pair behind a tensor, read by some of its readers; returns the name of what it gives."""
    inputs = [editor.constant(f"{name}/scale", np.asarray(scale)), editor.constant(f"{name}/zero", np.zeros((), np.int8))]
    rounded = editor.add("QuantizeLinear", [name, *inputs], f"{name}/int8")
    restored = editor.add("DequantizeLinear", [rounded, *inputs], f"{name}/restored")
    for node in readers:
        editor.set_inputs(node, [restored if read == name else read for read in node.input])
    return restored


def _store_weights(editor: GraphEditor, node: Any) -> None:
    name = node.input[1]
    weights = editor.value(name)
    assert weights is not None, "quantisable asks for constant weights"
    axis = 0 if node.op_type == "Conv" or attribute(node, "transB", 0) else weights.ndim - 1
    levels, scales = rounded_weights(weights, axis)
    stored = editor.constant(f"{name}/int8", levels)
    scale = editor.constant(f"{name}/scales", scales)
    zero = editor.constant(f"{name}/zeros", np.zeros(len(scales), np.int8))
    restored = editor.add("DequantizeLinear", [stored, scale, zero], f"{name}/restored", axis=axis)
    editor.set_inputs(node, [node.input[0], restored, *node.input[2:]])


def rounded_weights(weights: NDArray[np.float32], axis: int) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Weights as whole numbers from -127 to 127, with one scale for each channel.

    Args:
        weights: float32.
        axis: of the output channels.

    Returns:
        int8 of the same shape, and float32 scales [channels]; their product is the weight to within half a scale.
    """
    others = tuple(a for a in range(weights.ndim) if a != axis)
    scales = np.maximum(np.abs(weights).max(axis=others) / LEVELS, SMALLEST_SCALE).astype(np.float32)
    spread = scales.reshape([-1 if a == axis else 1 for a in range(weights.ndim)])
    return np.clip(np.rint(weights / spread), -LEVELS, LEVELS).astype(np.int8), scales
