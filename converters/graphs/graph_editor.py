"""An ONNX graph with its tensors indexed, so that one node can be changed without reading all of them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from fundus_rt.converters.backends import require
from fundus_rt.converters.graphs.graph_names import captured_names, inner_names
from fundus_rt.models.errors import UnsupportedCheckpointError


class GraphEditor:
    """Nodes and initializers of a graph while it is rewritten; `commit` writes them back.

    Names that a graph's outputs or the graphs inside its nodes (If, Loop) read are held: whatever is done, a tensor of that
    name with those values stays. A tensor that is changed for one reader becomes a new initializer, so another reader of the
    same one keeps what it had.
    """

    def __init__(self, model: Any) -> None:
        """Index the graph of `model`, which stays as it is until `commit`."""
        self.onnx = require("onnx")
        self.model = model
        self.graph = model.graph
        self.nodes: list[Any] = list(self.graph.node)
        self.tensors: dict[str, Any] = {tensor.name: tensor for tensor in self.graph.initializer}
        self.inputs = [value for value in self.graph.input if value.name not in self.tensors]
        self.outputs = {value.name for value in self.graph.output}
        self.opset = next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 0)
        self.changes = 0
        self._arrays: dict[str, np.ndarray] = {}
        self._fresh = 0
        self._gone: set[int] = set()
        self._index()

    def _index(self) -> None:
        self.held = self.outputs | {name for node in self.nodes for name in inner_names(node)}
        self._producers: dict[str, Any] = {}
        self._readers: dict[str, list[Any]] = {}
        for node in self.nodes:
            self._enter(node)

    def _enter(self, node: Any) -> None:
        for name in node.output:
            if name:
                self._producers[name] = node
        for name in node.input:
            self._readers.setdefault(name, []).append(node)

    def alive(self, node: Any) -> bool:
        """Whether the node was not removed meanwhile."""
        return id(node) not in self._gone

    def each(self, *kinds: str) -> Iterable[Any]:
        """Nodes of the kinds, or all, in the order of the graph; those removed on the way are left out."""
        for node in list(self.nodes):
            if self.alive(node) and (not kinds or (node.op_type in kinds and node.domain in ("", "ai.onnx"))):
                yield node

    def producer(self, name: str, *kinds: str) -> Any:
        """The node that computes a tensor, where it is of one of the kinds (or of any, without kinds); None otherwise."""
        node = self._producers.get(name)
        if node is None or (kinds and (node.op_type not in kinds or node.domain not in ("", "ai.onnx"))):
            return None
        return node

    def readers(self, name: str) -> list[Any]:
        """The nodes that read a tensor, one entry for each time."""
        return list(self._readers.get(name, ()))

    def only_reader(self, name: str, *kinds: str) -> Any:
        """The one node that reads a tensor which nothing else needs; None where there is no such, or of another kind."""
        readers = self._readers.get(name, ())
        if len(readers) != 1 or name in self.held or (kinds and readers[0].op_type not in kinds):
            return None
        return readers[0]

    def value(self, name: str) -> np.ndarray | None:
        """Value of an initializer; None where the name is none."""
        if name not in self.tensors:
            return None
        if name not in self._arrays:
            array = np.asarray(self.onnx.numpy_helper.to_array(self.tensors[name]))
            if array.size > 1 << 16:
                return array
            self._arrays[name] = array
        return self._arrays[name]

    def size(self, name: str) -> int | None:
        """Number of elements of an initializer, without reading it; None where the name is none."""
        return int(np.prod(list(self.tensors[name].dims), dtype=np.int64)) if name in self.tensors else None

    def constant(self, hint: str, value: np.ndarray) -> str:
        """A new initializer under a free name; returns the name."""
        name = self.free_name(hint)
        self.tensors[name] = self.onnx.numpy_helper.from_array(np.ascontiguousarray(value).reshape(value.shape), name)
        return name

    def free_name(self, hint: str) -> str:
        """A name that no tensor has."""
        name = hint
        while name in self.tensors or name in self._producers or name in self._readers or name in self.held:
            self._fresh += 1
            name = f"{hint}_{self._fresh}"
        return name

    def add(self, kind: str, inputs: list[str], hint: str, **attributes: Any) -> str:
        """A new node with one output; returns the output's name."""
        output = self.free_name(hint)
        node = self.onnx.helper.make_node(kind, inputs, [output], name=output, **attributes)
        self.nodes.append(node)
        self._enter(node)
        self.changes += 1
        return output

    def set_inputs(self, node: Any, inputs: list[str]) -> None:
        """Give a node other inputs."""
        for name in node.input:
            self._forget_reader(name, node)
        del node.input[:]
        node.input.extend(inputs)
        for name in inputs:
            self._readers.setdefault(name, []).append(node)
        self.changes += 1

    def replace(self, name: str, by: str) -> bool:
        """Let everything that reads `name` read `by`, and remove the node that computed `name`.

        Where `name` is an output of the graph, the tensor `by` takes its name. Returns False, with nothing changed, where
        neither is possible.
        """
        old, new = self._producers.get(name), self._producers.get(by)
        if name in self.held:
            if name not in self.outputs or new is None or new is old or by in self.held:
                return False
            if old is not None:
                self.remove(old)
            index = list(new.output).index(by)
            new.output[index] = name
            del self._producers[by]
            self._producers[name] = new
            name, by = by, name
        for reader in self.readers(name):
            self.set_inputs(reader, [by if read == name else read for read in reader.input])
        if old is not None and not any(self._readers.get(output) or output in self.held for output in old.output):
            self.remove(old)
        self.changes += 1
        return True

    def remove(self, node: Any) -> None:
        """Take a node away whose outputs nothing reads any more."""
        if id(node) in self._gone:
            return
        self._gone.add(id(node))
        for name in node.input:
            self._forget_reader(name, node)
        for name in node.output:
            if self._producers.get(name) is node:
                del self._producers[name]
        self.changes += 1

    def _forget_reader(self, name: str, node: Any) -> None:
        readers = self._readers[name]
        del readers[next(index for index, reader in enumerate(readers) if reader is node)]

    def drop_dead(self) -> None:
        """Remove every node whose outputs nothing needs."""
        waiting = list(self.each())[::-1]
        while waiting:
            node = waiting.pop()
            if not self.alive(node) or any(self._readers.get(name) or name in self.held for name in node.output):
                continue
            before = [self._producers[name] for name in node.input if name in self._producers]
            self.remove(node)
            waiting.extend(before)

    def commit(self) -> None:
        """Write nodes in an order in which they can run, and the initializers that are read, into the graph."""
        self.drop_dead()
        ordered = self.ordered()
        del self.graph.node[:]
        self.graph.node.extend(ordered)
        needed = self.held | {name for node in ordered for name in node.input}
        present = set()
        for index in range(len(self.graph.initializer) - 1, -1, -1):
            name = self.graph.initializer[index].name
            if name not in needed or name not in self.tensors:
                del self.graph.initializer[index]
            else:
                present.add(name)
        self.graph.initializer.extend(t for name, t in self.tensors.items() if name in needed and name not in present)
        stale = {value.name for value in self.graph.input} - {value.name for value in self.inputs}
        for index in range(len(self.graph.input) - 1, -1, -1):
            if self.graph.input[index].name in stale:
                del self.graph.input[index]
        del self.graph.value_info[:]

    def ordered(self) -> list[Any]:
        """The nodes, each after those whose outputs it reads, otherwise in the order in which they were.

        Raises:
            UnsupportedCheckpointError: a node needs its own output, through others.
        """
        done: set[int] = set()
        begun: set[int] = set()
        ordered: list[Any] = []
        for root in self.each():
            stack = [root]
            while stack:
                node = stack[-1]
                missing = [before for before in self._needed(node) if id(before) not in done]
                if id(node) in done or not missing:
                    stack.pop()
                    if id(node) not in done:
                        done.add(id(node))
                        ordered.append(node)
                elif id(node) in begun:
                    raise UnsupportedCheckpointError(
                        f"the graph runs in a circle: its node {node.name or node.output[0]!r} ({node.op_type}) needs its own "
                        f"output. Export the network again."
                    )
                else:
                    begun.add(id(node))
                    stack.extend(missing)
        return ordered

    def _needed(self, node: Any) -> list[Any]:
        """The nodes whose outputs a node reads, by itself or in the graphs inside it."""
        names = [*node.input, *captured_names(node)]
        return [self._producers[name] for name in names if name in self._producers and self._producers[name] is not node]


def attribute(node: Any, name: str, default: Any = None) -> Any:
    """Value of a node's attribute: numbers as they are, lists as lists, strings as `str`."""
    for entry in node.attribute:
        if entry.name == name:
            value = require("onnx").helper.get_attribute_value(entry)
            if isinstance(value, bytes):
                return value.decode()
            return list(value) if entry.ints or entry.floats else value
    return default


def set_attribute(node: Any, name: str, value: Any) -> None:
    """Give a node an attribute in place of the one that it had."""
    for index in range(len(node.attribute) - 1, -1, -1):
        if node.attribute[index].name == name:
            del node.attribute[index]
    node.attribute.append(require("onnx").helper.make_attribute(name, value))


def permutation(node: Any) -> list[int]:
    """Axes of a Transpose; empty where the attribute is left out, which reverses them."""
    return next((list(entry.ints) for entry in node.attribute if entry.name == "perm"), [])
