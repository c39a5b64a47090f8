"""The nodes of a shipped graph that lower precision is about: names, multiplications, and the layers that do most of them."""

from __future__ import annotations

from collections import Counter
from typing import Any

from fundus_rt.converters.backends import require
from fundus_rt.converters.graphs.graph_editor import GraphEditor, attribute
from fundus_rt.converters.graphs.graph_values import Shapes, carry_shapes

HEAVY = ("Conv", "Gemm", "MatMul")
"""Operators in which nearly all multiplications of a network are."""


def named(model: Any) -> dict[str, Any]:
    """The nodes of a graph by a name of their own: the node's, or its first output's where several share it or it is empty.

    Args:
        model: an `onnx.ModelProto`.

    Returns:
        Nodes by name in the order of the graph.
    """
    often = Counter(node.name for node in model.graph.node)
    return {node.name if node.name and often[node.name] == 1 else node.output[0]: node for node in model.graph.node}


def constants(model: Any) -> set[str]:
    """Names of the tensors whose numbers are in the file."""
    stored = {tensor.name for tensor in model.graph.initializer}
    return stored | {node.output[0] for node in model.graph.node if node.op_type == "Constant"}


def multiplications(model: Any) -> dict[str, int]:
    """Multiplications of each heavy node for one picture.

    Args:
        model: an `onnx.ModelProto` in the shipped form, float32 or quantised; it is only read.

    Returns:
        By the names of `named`; a product whose shape ONNX's inference does not find counts as 0.
    """
    light = _with_plain_weights(model)
    shapes = carry_shapes(GraphEditor(light))
    found = {}
    for name, node in named(model).items():
        if node.op_type in HEAVY:
            found[name] = _of_node(node, shapes)
    return found


def _of_node(node: Any, shapes: Shapes) -> int:
    result, weights = shapes.of(node.output[0]), shapes.of(node.input[1])
    data = shapes.of(node.input[0])
    if result is None or weights is None or data is None:
        return 0
    count = 1
    for size in result[0]:
        count *= size
    if node.op_type == "Conv":
        for size in weights[0][1:]:
            count *= size
        return count
    inner = data[0][0] if node.op_type == "Gemm" and attribute(node, "transA", 0) else data[0][-1]
    return count * inner


def _with_plain_weights(model: Any) -> Any:
    """The graph's structure with the types and shapes of large constants, without their numbers."""
    onnx = require("onnx")
    light = onnx.ModelProto(ir_version=model.ir_version)
    light.opset_import.extend(model.opset_import)
    light.graph.CopyFrom(onnx.GraphProto(name=model.graph.name))
    light.graph.node.extend(model.graph.node)
    light.graph.input.extend(model.graph.input)
    light.graph.output.extend(model.graph.output)
    for tensor in model.graph.initializer:
        if len(tensor.raw_data) <= 4096:
            light.graph.initializer.append(tensor)
        else:
            light.graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims)))
    return light


def before_first_layer(editor: GraphEditor) -> list[Any]:
    """Nodes between the frames and the first convolution or product: grey levels and their normalisation."""
    found: dict[int, Any] = {}
    waiting = [value.name for value in editor.inputs]
    while waiting:
        for node in editor.readers(waiting.pop()):
            if node.op_type not in HEAVY and id(node) not in found:
                found[id(node)] = node
                waiting += node.output
    return list(found.values())
