"""Every tensor that an ONNX file holds, wherever it holds it, and whether a node reads it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fundus_rt.converters.architecture import LoadAccount
from fundus_rt.converters.checkpoint import numbers_in
from fundus_rt.converters.graphs.graph_names import graphs_of
from fundus_rt.models.errors import UnsupportedCheckpointError

DEAD = "no node of the graph reads it"
LARGEST_DEAD = 1_000
"""Numbers in the largest tensor that may be left aside: exporters leave sizes and statistics behind, but no layers."""


def tensors_of(model: Any) -> dict[str, tuple[int, ...]]:
    """Shapes of the initializers, dense and sparse, and of the Constant nodes, those of inner graphs and functions included.

    Args:
        model: an `onnx.ModelProto`; of tensors outside of the file only the shapes are looked at.
    """
    found: dict[str, tuple[int, ...]] = {}
    for name, shape, _ in _tensors(model):
        free, number = name, 1
        while free in found:
            free, number = f"{name} ({number})", number + 1
        found[free] = shape
    return found


def account_of(path: Path, model: Any) -> LoadAccount:
    """Which of a model's tensors its nodes read.

    Raises:
        UnsupportedCheckpointError: a tensor of more than `LARGEST_DEAD` numbers that nothing reads, or no tensors at all.
    """
    shapes = tensors_of(model)
    reads = [name in read for name, _, read in _tensors(model)]
    unused = {name: DEAD for name, used in zip(shapes, reads, strict=True) if not used}
    large = [name for name in unused if numbers_in(shapes[name]) > LARGEST_DEAD]
    if large:
        shown = ", ".join(f"{name} {list(shapes[name])}" for name in large[:4]) + (" and more" if len(large) > 4 else "")
        raise UnsupportedCheckpointError(
            f"{path.name}: no node of its graph reads {len(large)} of its tensors: {shown}. "
            f"A part of the network is missing in the graph, or the file holds more than one. Export the one network that is "
            f"meant, or take the tensors out if they are known to be left over."
        )
    total = sum(numbers_in(shape) for shape in shapes.values())
    used = total - sum(numbers_in(shapes[name]) for name in unused)
    if not used:
        raise UnsupportedCheckpointError(
            f"{path.name} holds no parameters that its graph reads, expected a trained network; export it with its parameters"
        )
    return LoadAccount(len(shapes), total, len(shapes) - len(unused), used, used, unused)


def _tensors(model: Any) -> Iterator[tuple[str, tuple[int, ...], set[str]]]:
    """Name and shape of every tensor, and the names that are read where it is."""
    graphs = list(graphs_of(model.graph))
    yield from _in(graphs, {name for graph in graphs for name in _read_in(graph)})
    for function in model.functions:
        graphs = [function, *(inner for node in function.node for inner in _below(node))]
        yield from _in(graphs, {name for graph in graphs for name in _read_in(graph)})


def _below(node: Any) -> Iterator[Any]:
    for entry in node.attribute:
        for inner in ([entry.g] if entry.HasField("g") else []) + list(entry.graphs):
            yield from graphs_of(inner)


def _in(graphs: list[Any], read: set[str]) -> Iterator[tuple[str, tuple[int, ...], set[str]]]:
    for graph in graphs:
        for tensor in getattr(graph, "initializer", ()):
            yield tensor.name, tuple(tensor.dims), read
        for tensor in getattr(graph, "sparse_initializer", ()):
            yield tensor.values.name, tuple(tensor.dims), read
        for node in graph.node:
            if node.op_type == "Constant" and node.attribute:
                yield node.output[0], _constant_shape(node.attribute[0]), read


def _constant_shape(attribute: Any) -> tuple[int, ...]:
    """Shape of what a Constant node gives."""
    if attribute.HasField("t"):
        return tuple(attribute.t.dims)
    if attribute.HasField("sparse_tensor"):
        return tuple(attribute.sparse_tensor.dims)
    lists = {"value_ints": attribute.ints, "value_floats": attribute.floats, "value_strings": attribute.strings}
    return (len(lists[attribute.name]),) if attribute.name in lists else ()


def _read_in(graph: Any) -> Iterator[str]:
    """Names that the nodes of a graph or function read, and those that it answers with."""
    for node in graph.node:
        yield from node.input
    for value in graph.output:
        yield value if isinstance(value, str) else value.name
