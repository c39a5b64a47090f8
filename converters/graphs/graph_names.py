"""Names of tensors in an ONNX graph and in the graphs inside its nodes (If, Loop, Scan)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any


def graphs_of(graph: Any) -> Iterator[Any]:
    """A graph and every graph inside its nodes, however deep."""
    waiting = [graph]
    while waiting:
        here = waiting.pop()
        yield here
        for node in here.node:
            waiting += inner_graphs(node)


def inner_graphs(node: Any) -> list[Any]:
    """The graphs that a node holds."""
    return [inner for entry in node.attribute for inner in ([entry.g] if entry.HasField("g") else []) + list(entry.graphs)]


def inner_names(node: Any) -> list[str]:
    """What the graphs inside a node (If, Loop, Scan) read, their own tensors included."""
    names: list[str] = []
    for outer in inner_graphs(node):
        for inner in graphs_of(outer):
            names += [name for nested in inner.node for name in nested.input]
            names += [value.name for value in inner.output]
    return names


def captured_names(node: Any) -> list[str]:
    """What the graphs inside a node read from outside of them."""
    own = {name for outer in inner_graphs(node) for inner in graphs_of(outer) for name in _made_in(inner)}
    return [name for name in inner_names(node) if name not in own]


def all_names(graph: Any) -> set[str]:
    """Every name of a tensor in a graph and in the graphs inside it."""
    found: set[str] = set()
    for inner in graphs_of(graph):
        found.update(_made_in(inner))
        found.update(name for node in inner.node for name in node.input)
        found.update(value.name for value in inner.output)
    return found - {""}


def rename(graph: Any, renamed: dict[str, str]) -> None:
    """Give tensors other names, wherever a graph or the graphs inside it make, read or declare them."""
    for inner in graphs_of(graph):
        for node in inner.node:
            for names in (node.input, node.output):
                for index, name in enumerate(names):
                    if name in renamed:
                        names[index] = renamed[name]
        sparse = [tensor.values for tensor in inner.sparse_initializer]
        for named in (*inner.initializer, *sparse, *inner.input, *inner.output, *inner.value_info):
            named.name = renamed.get(named.name, named.name)


def give_way(graph: Any, reserved: Iterable[str]) -> None:
    """Give every tensor with one of the reserved names another, free one."""
    taken = all_names(graph)
    wanted = set(reserved)
    renamed: dict[str, str] = {}
    for name in sorted(taken & wanted):
        free, number = f"{name}_inside", 1
        while free in taken | wanted:
            free, number = f"{name}_inside_{number}", number + 1
        taken.add(free)
        renamed[name] = free
    rename(graph, renamed)


def _made_in(graph: Any) -> list[str]:
    """Names that a graph itself gives: its inputs, its initializers and what its nodes compute."""
    names = [tensor.name for tensor in (*graph.initializer, *graph.input)]
    names += [tensor.values.name for tensor in graph.sparse_initializer]
    return names + [name for node in graph.node for name in node.output]
