"""Where in a graph an error begins: node by node against a reference graph, by the names of nodes and tensors."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fundus_rt.benchmarks.proof.graph_runs import Answers, GraphSession, copy_of
from fundus_rt.benchmarks.proof.half_precision import tensor_types
from fundus_rt.benchmarks.reports.document import Plot, Section, Series
from fundus_rt.converters.backends import require
from fundus_rt.models.errors import UsageError

CHUNK_BYTES = 256 << 20
"""Memory for the inner tensors of one graph that are held at a time."""
CHUNK_NODES = 200
"""Most nodes whose tensors are taken out in one run."""
SAME_WEIGHTS = 1e-6
"""Relative difference up to which two initializers are the same in float32; half precision's is 2^-10."""


@dataclass(frozen=True)
class NodeError:
    """How far one tensor of the examined graph is from the reference's."""

    node: str
    operator: str
    tensor: str
    error: float
    """Largest difference as a share of the reference tensor's own range (largest less smallest value), over all frames."""


@dataclass(frozen=True)
class Located:
    """The first node whose error leaves the budget."""

    node: str
    """Its name in the reference graph, as is its operator: in the other one several nodes may stand for it."""
    operator: str
    tensor: str
    error: float
    """Largest difference of its result as a share of the reference tensor's range."""
    own_error: float | None
    """The same when the node is given the reference's inputs; None where it has no counterpart of these."""
    inherited: float
    """Largest error of its inputs."""
    budget: float
    weights: tuple[str, ...]
    """Initializers that it reads and whose values differ from the reference's."""
    compared: int
    """Tensors that were compared until then."""
    of: int
    """Tensors of the examined graph that the reference has, too."""
    trail: tuple[NodeError, ...]
    """Every node until then, in order."""
    above: tuple[str, tuple[str, ...]] | None = None
    """Where the error does not arise here: the first node before it with other weights than the reference's, and those."""

    @property
    def arises_here(self) -> bool:
        """Whether the node makes the error itself, whatever it is given."""
        return self.own_error is not None and not self.own_error <= self.budget

    def sentences(self) -> tuple[str, ...]:
        """For the reader."""
        said = [
            f"The first tensor beyond the budget of {100 * self.budget:.3g} % of its range is {self.tensor!r} of the node "
            f"{self.node!r} ({self.operator}), number {self.compared} of {self.of}: it is off by {_share(self.error)}, its "
            f"inputs by {_share(self.inherited)}."
        ]
        if self.own_error is None:
            said.append("The reference has no counterpart of all its inputs, so its own part was not measured.")
        elif self.arises_here:
            said.append(f"Given the reference's inputs, the node is off by {_share(self.own_error)}: the error arises here.")
        else:
            said.append(
                f"Given the reference's inputs, the node is off by {_share(self.own_error)} only: the error came from above, "
                "where it grew from node to node without leaving the budget."
            )
        if self.above is not None:
            node, weights = self.above
            said.append(f"The first node above it with other weights than the reference's is {node!r}: {', '.join(weights)}.")
        if self.weights:
            said.append(f"Its weights differ from the reference's: {', '.join(self.weights)}.")
        return tuple(said)

    def to_section(self) -> Section:
        """For a report."""
        errors = tuple(min(entry.error, 1.0) for entry in self.trail)
        line = Series("largest difference", tuple(float(i) for i in range(len(errors))), errors)
        plot = Plot(
            "lines",
            "Error along the network",
            "node, in the order of the graph",
            "largest difference, share of the tensor's range",
            (line, Series("budget", (0.0, float(max(len(errors) - 1, 1))), (self.budget, self.budget))),
        )
        return Section("Layer by layer", self.sentences(), plots=(plot,))


def locate(
    reference: Any,
    examined: Any,
    frames: NDArray[Any],
    budget: float,
    threads: int | None = None,
    progress: Callable[[str], None] | None = None,
) -> Located | None:
    """Walk through two graphs of one network and find the first node that is wrong.

    Both are run node by node as they are written, with none of ONNX Runtime's optimisations; a part of the tensors at a time,
    so that memory stays bounded. Tensors are matched by name, which conversions of one checkpoint share; Casts and quantisers
    between them, which only one graph has, are passed over. For half precision give the graph of
    `fundus_rt.benchmarks.proof.half_precision.emulated_half`: ONNX Runtime's CPU does not compute it.

    Args:
        reference: `onnx.ModelProto` in the shipped form that is right; not changed.
        examined: the other; not changed.
        frames: [N, H, W, 3], BGR, uint8 or float32 as each graph takes them (they are converted without loss).
        budget: largest difference that is allowed, as a share of the range of the reference's tensor.
        threads: of one run.
        progress: called with one sentence for each part.

    Returns:
        The first node in the order of the examined graph whose result leaves the budget; None where none does.

    Raises:
        UsageError: the two graphs have hardly a tensor in common.
    """
    pair = _Pair(reference, examined, frames, threads)
    trail: list[NodeError] = []
    for part in pair.parts():
        if progress is not None:
            progress(f"layer by layer: {len(trail)} of {len(pair.matched)} tensors compared")
        errors = pair.errors(part)
        for name in part:
            node = pair.reference_producers[name]
            trail.append(NodeError(node.name or name, node.op_type, name, errors[name]))
            if not errors[name] <= budget:
                return _located(pair, name, trail, budget)
    return None


def _located(pair: _Pair, name: str, trail: list[NodeError], budget: float) -> Located:
    found = trail[-1]
    own, inherited = pair.own_error(name)
    located = Located(
        found.node, found.operator, name, found.error, own, inherited, budget, pair.other_weights(name),
        len(trail), len(pair.matched), tuple(trail),
    )  # fmt: skip
    if located.arises_here:
        return located
    differing = ((before.node, pair.other_weights(before.tensor)) for before in trail[:-1])
    return dataclasses.replace(located, above=next(((node, weights) for node, weights in differing if weights), None))


class _Pair:
    """Two graphs of one network, and what both call by the same name."""

    def __init__(self, reference: Any, examined: Any, frames: NDArray[Any], threads: int | None) -> None:
        self._onnx = require("onnx")
        self._models = (reference, examined)
        self._threads = threads
        self._frames = [_frames_for(self._onnx, model, frames) for model in self._models]
        self.producers = {name: node for node in examined.graph.node for name in node.output if name}
        self._weights = [{tensor.name: tensor for tensor in model.graph.initializer} for model in self._models]
        floats = (self._onnx.TensorProto.FLOAT, self._onnx.TensorProto.FLOAT16)
        kinds = [tensor_types(self._onnx, model.graph) for model in self._models]
        made = self.reference_producers = {name: node for node in reference.graph.node for name in node.output if name}
        self.matched = [
            name
            for name in self.producers
            if name in made and name != "receipt" and kinds[0][name] in floats and kinds[1][name] in floats
        ]
        if len(self.matched) < max(2, len(made) // 4):
            raise UsageError(
                f"the two graphs share {len(self.matched)} of {len(made)} names of tensors, too few to walk through them; give "
                "two conversions of one checkpoint by the same version of this package"
            )
        self._sizes = self._bytes_of_tensors()

    def parts(self) -> Iterator[list[str]]:
        """The matched tensors in order, as many at a time as the memory allows."""
        part: list[str] = []
        held = 0
        for name in self.matched:
            size = self._sizes.get(name, CHUNK_BYTES // CHUNK_NODES)
            if part and (held + size > CHUNK_BYTES or len(part) >= CHUNK_NODES):
                yield part
                part, held = [], 0
            part.append(name)
            held += size
        if part:
            yield part

    def errors(self, names: list[str]) -> dict[str, float]:
        """Error of each tensor over all frames."""
        sessions = [GraphSession(self._with_outputs(model, names), False, self._threads) for model in self._models]
        worst = dict.fromkeys(names, 0.0)
        for index in range(len(self._frames[0])):
            right, found = (s.run(f[index : index + 1]) for s, f in zip(sessions, self._frames, strict=True))
            for name in names:
                worst[name] = _worse(worst[name], error_of_range(right[name], found[name]))
        return worst

    def own_error(self, name: str) -> tuple[float | None, float]:
        """The error that the node of a tensor makes with the reference's inputs (None: not to be had), and that of its inputs."""
        nodes, inputs = self._back_to_matched(name)
        usable = [read for read in inputs if read != "frames"]
        if not set(usable) <= set(self.matched):
            return None, 0.0
        piece = self._piece(nodes, inputs, name)
        runs = [GraphSession(self._with_outputs(model, usable), False, self._threads) for model in self._models if usable]
        answer = GraphSession(self._with_outputs(self._models[0], [name]), False, self._threads)
        session = GraphSession(piece, False, self._threads)
        own = inherited = 0.0
        for index in range(len(self._frames[0])):
            sent = [frames[index : index + 1] for frames in self._frames]
            right, found = (run.run(frame) for run, frame in zip(runs, sent, strict=True)) if usable else ({}, {})
            for read in usable:
                inherited = _worse(inherited, error_of_range(right[read], found[read]))
            given: Answers = {read: right[read].astype(found[read].dtype) for read in usable}
            if "frames" in inputs:
                given["frames"] = sent[1]
            expected = answer.run(sent[0])[name]
            own = _worse(own, error_of_range(expected, session.feed(given)[name]))
        return own, inherited

    def other_weights(self, name: str) -> tuple[str, ...]:
        """Initializers that the node of a tensor reads whose values are other ones in the reference, or not there."""
        nodes, _ = self._back_to_matched(name)
        counterpart = self.reference_producers[name]
        found = []
        for read in dict.fromkeys(read for node in nodes for read in node.input if read in self._weights[1]):
            right = self._weights[0].get(read)
            if right is None and len(nodes) == 1:
                right = self._weights[0].get(counterpart.input[list(nodes[0].input).index(read)])
            if right is not None and not self._same_values(right, self._weights[1][read]):
                found.append(read)
        return tuple(found)

    def _same_values(self, right: Any, other: Any) -> bool:
        to_array = self._onnx.numpy_helper.to_array
        before, after = to_array(right), to_array(other)
        if before.shape != after.shape:
            return False
        if before.dtype.kind != "f":
            return bool(np.array_equal(before, after))
        half = np.float16 in (before.dtype, after.dtype)
        scale = max(float(np.abs(before).max(initial=0.0)), 1e-30)
        apart = np.abs(before.astype(np.float64) - after.astype(np.float64)).max(initial=0.0)
        return bool(apart <= (2.0**-10 if half else SAME_WEIGHTS) * scale)

    def _back_to_matched(self, name: str) -> tuple[list[Any], list[str]]:
        """The node of a tensor with those before it that only the examined graph has, in order, and what they read."""
        nodes: list[Any] = []
        inputs: list[str] = []
        waiting, seen = [name], {name}
        matched = set(self.matched)
        while waiting:
            node = self.producers[waiting.pop(0)]
            if any(node is other for other in nodes):
                continue
            nodes.insert(0, node)
            for read in node.input:
                if not read or read in seen or read in self._weights[1]:
                    continue
                seen.add(read)
                if read in self.producers and read not in matched:
                    waiting.append(read)
                else:
                    inputs.append(read)
        order = {id(node): index for index, node in enumerate(self._models[1].graph.node)}
        return sorted(nodes, key=lambda node: order[id(node)]), inputs

    def _piece(self, nodes: list[Any], inputs: list[str], name: str) -> Any:
        """A model of some nodes of the examined graph."""
        onnx, model = self._onnx, self._models[1]
        kinds = tensor_types(onnx, model.graph)
        read = {used for node in nodes for used in node.input}
        graph = onnx.helper.make_graph(
            nodes,
            "piece",
            [onnx.helper.make_tensor_value_info(used, kinds[used], None) for used in inputs],
            [onnx.helper.make_tensor_value_info(name, kinds[name], None)],
            [tensor for used, tensor in self._weights[1].items() if used in read],
        )
        return onnx.helper.make_model(graph, opset_imports=list(model.opset_import), ir_version=model.ir_version)

    def _with_outputs(self, model: Any, names: list[str]) -> Any:
        """The model with other outputs, and only the nodes and weights that these need."""
        onnx = self._onnx
        kinds = tensor_types(onnx, model.graph)
        needed, kept = set(names), []
        for node in reversed(model.graph.node):
            if needed.intersection(node.output):
                kept.append(node)
                needed.update(node.input)
        graph = onnx.helper.make_graph(
            kept[::-1],
            "part",
            list(model.graph.input),
            [onnx.helper.make_tensor_value_info(name, kinds[name], None) for name in names],
            [tensor for tensor in model.graph.initializer if tensor.name in needed],
        )
        return onnx.helper.make_model(graph, opset_imports=list(model.opset_import), ir_version=model.ir_version)

    def _bytes_of_tensors(self) -> dict[str, int]:
        """Size of each tensor for one frame, where ONNX's shape inference knows it."""
        onnx, graph = self._onnx, self._models[1].graph
        light = copy_of(self._models[1])
        for value in light.graph.input:
            value.type.tensor_type.shape.dim[0].dim_value = 1
        for tensor in light.graph.initializer:
            if tensor.data_type != onnx.TensorProto.INT64:
                values = [onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims))]
                light.graph.input.extend(values)
        kept = [tensor for tensor in light.graph.initializer if tensor.data_type == onnx.TensorProto.INT64]
        del light.graph.initializer[:]
        light.graph.initializer.extend(kept)
        inferred = onnx.shape_inference.infer_shapes(light)
        sizes = {}
        for value in (*inferred.graph.value_info, *graph.output):
            dims = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
            if all(dims):
                sizes[value.name] = 4 * int(np.prod(dims, dtype=np.int64))
        return sizes


def error_of_range(right: NDArray[Any], found: NDArray[Any]) -> float:
    """Largest difference as a share of the right tensor's range; infinite where the found one is not finite, or of another shape.

    A tensor that is the same everywhere has no range: its largest magnitude is taken, or 1 where that is 0.
    """
    if right.shape != found.shape:
        return float("inf")
    if not right.size:
        return 0.0
    before, after = right.astype(np.float64), found.astype(np.float64)
    if not np.isfinite(after).all():
        return 0.0 if np.array_equal(before, after, equal_nan=True) else float("inf")
    extent = float(np.ptp(before)) or float(np.abs(before).max()) or 1.0
    return float(np.abs(after - before).max() / extent)


def _worse(first: float, second: float) -> float:
    return max(first, second)


def _frames_for(onnx: Any, model: Any, frames: NDArray[Any]) -> NDArray[Any]:
    kind = next(value.type.tensor_type.elem_type for value in model.graph.input if value.name == "frames")
    wanted = np.uint8 if kind == onnx.TensorProto.UINT8 else np.float32
    converted = frames.astype(wanted)
    if not np.array_equal(converted, frames):
        raise UsageError(f"a graph takes {wanted.__name__} frames, and the ones given are no whole grey levels from 0 to 255")
    return np.ascontiguousarray(converted)


def _share(error: float) -> str:
    return "numbers that are not finite" if not np.isfinite(error) else f"{100 * error:.3g} %"
