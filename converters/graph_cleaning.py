"""Taking out of an ONNX graph what does no work: constants as nodes, identities, Transpose pairs, dead weight."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np

from fundus_rt.converters.backends import require


def clean_graph(model: Any) -> None:
    """Remove Constant and Identity nodes, Transpose pairs that cancel, dead nodes and dead initializers; in place.

    Values do not change: only names are rewired. Shapes noted for inner tensors are dropped, for exporters write those of
    their example batch there.
    """
    graph = model.graph
    _constants_to_initializers(graph)
    _drop_identities(graph)
    _drop_cancelling_transposes(graph)
    _drop_dead(graph)
    del graph.value_info[:]


def initializers_by_name(graph: Any) -> dict[str, Any]:
    """Every initializer by its name."""
    return {tensor.name: tensor for tensor in graph.initializer}


def constant_of(graph: Any, name: str) -> np.ndarray | None:
    """Value of an initializer; None where the name is none."""
    for tensor in graph.initializer:
        if tensor.name == name:
            return np.asarray(require("onnx").numpy_helper.to_array(tensor))
    return None


def new_initializer(graph: Any, name: str, value: np.ndarray) -> str:
    """Add an initializer under a name that is still free, and return the name."""
    taken = {tensor.name for tensor in graph.initializer} | {output for node in graph.node for output in node.output}
    free, number = name, 1
    while free in taken:
        free, number = f"{name}_{number}", number + 1
    graph.initializer.append(require("onnx").numpy_helper.from_array(np.ascontiguousarray(value), free))
    return free


def _constants_to_initializers(graph: Any) -> None:
    onnx = require("onnx")
    kept = []
    for node in graph.node:
        tensor = _constant_tensor(onnx, node) if node.op_type == "Constant" else None
        if tensor is None:
            kept.append(node)
            continue
        tensor.name = node.output[0]
        graph.initializer.append(tensor)
    _set_nodes(graph, kept)


def _constant_tensor(onnx: Any, node: Any) -> Any:
    """The tensor of a Constant node, whichever of its attributes holds it; None for kinds that no exporter here writes."""
    attribute = node.attribute[0]
    value = onnx.helper.get_attribute_value(attribute)
    if attribute.name == "value":
        return onnx.TensorProto.FromString(value.SerializeToString())
    kinds = {"value_int": np.int64, "value_ints": np.int64, "value_float": np.float32, "value_floats": np.float32}
    if attribute.name not in kinds:
        return None
    return onnx.numpy_helper.from_array(np.asarray(value, kinds[attribute.name]))


def _drop_identities(graph: Any) -> None:
    outputs = {value.name for value in graph.output}
    source: dict[str, str] = {}
    kept = []
    for node in graph.node:
        if node.op_type == "Identity" and node.output[0] not in outputs:
            source[node.output[0]] = source.get(node.input[0], node.input[0])
        else:
            kept.append(node)
    _rewire(kept, source)
    _set_nodes(graph, kept)


def _drop_cancelling_transposes(graph: Any) -> None:
    """A Transpose whose input is a Transpose: drop both where they undo each other."""
    outputs = {value.name for value in graph.output}
    producers = {node.output[0]: node for node in graph.node if node.op_type == "Transpose"}
    source: dict[str, str] = {}
    for node in producers.values():
        before = producers.get(node.input[0])
        if before is None or node.output[0] in outputs:
            continue
        first, second = permutation(before), permutation(node)
        if first and second and [first[axis] for axis in second] == list(range(len(first))):
            source[node.output[0]] = source.get(before.input[0], before.input[0])
    kept = [node for node in graph.node if not (node.output and node.output[0] in source)]
    _rewire(kept, source)
    _set_nodes(graph, kept)


def permutation(node: Any) -> list[int]:
    return next((list(attribute.ints) for attribute in node.attribute if attribute.name == "perm"), [])


def _drop_dead(graph: Any) -> None:
    needed = Counter(value.name for value in graph.output)
    kept = []
    for node in reversed(list(graph.node)):
        if any(needed[name] for name in node.output):
            kept.append(node)
            needed.update(_names_read(node))
    _set_nodes(graph, kept[::-1])
    alive = [tensor for tensor in graph.initializer if needed[tensor.name]]
    if len(alive) < len(graph.initializer):
        del graph.initializer[:]
        graph.initializer.extend(alive)


def _names_read(node: Any) -> list[str]:
    """Inputs of a node and of the graphs inside it (If, Loop)."""
    names = list(node.input)
    for attribute in node.attribute:
        for inner in ([attribute.g] if attribute.HasField("g") else []) + list(attribute.graphs):
            names += [name for nested in inner.node for name in _names_read(nested)]
            names += [value.name for value in inner.output]
    return names


def _rewire(nodes: list[Any], source: dict[str, str]) -> None:
    for node in nodes:
        for index, name in enumerate(node.input):
            if name in source:
                node.input[index] = source[name]


def _set_nodes(graph: Any, nodes: list[Any]) -> None:
    if len(nodes) == len(graph.node):
        return
    del graph.node[:]
    graph.node.extend(nodes)
