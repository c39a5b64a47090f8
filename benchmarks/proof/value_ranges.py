"""How large the numbers inside a network get on photographs: what half precision can hold of them, and what not."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fundus_rt.benchmarks.proof.graph_runs import GraphSession
from fundus_rt.benchmarks.proof.half_precision import LARGEST_HALF, SMALLEST_NORMAL_HALF, emulated_half, tensor_types
from fundus_rt.benchmarks.reports.document import Section, Table
from fundus_rt.converters.backends import require

NEAR = 4.0
"""A tensor whose largest number is within this factor of half precision's largest is named: other photographs may pass it."""


@dataclass(frozen=True)
class TensorRange:
    """The largest magnitude of one tensor over all photographs."""

    node: str
    """The node that makes the tensor."""
    operator: str
    step: str
    """Which step inside of the node, for example ``squares``; empty for its result."""
    largest: float

    @property
    def place(self) -> str:
        """Where it is, for the reader."""
        return f"{self.node} ({self.operator}" + (f", {self.step})" if self.step else ")")


@dataclass(frozen=True)
class RangeAudit:
    """The ranges of all float tensors of a graph."""

    photographs: int
    ranges: tuple[TensorRange, ...]
    """In the order of the graph."""

    @property
    def beyond(self) -> tuple[TensorRange, ...]:
        """Tensors with numbers that half precision makes infinite (or that are infinite already), the largest first."""
        return self._largest_first(found for found in self.ranges if not found.largest <= LARGEST_HALF)

    @property
    def near(self) -> tuple[TensorRange, ...]:
        """Tensors within a factor of `NEAR` of that, the largest first."""
        return self._largest_first(found for found in self.ranges if LARGEST_HALF / NEAR < found.largest <= LARGEST_HALF)

    @property
    def faint(self) -> tuple[TensorRange, ...]:
        """Tensors all of whose numbers are below the smallest normal one of half precision, and lose bits or become 0."""
        return tuple(found for found in self.ranges if 0 < found.largest < SMALLEST_NORMAL_HALF)

    def sentences(self) -> tuple[str, ...]:
        """What the audit comes to."""
        said = [
            f"On {self.photographs} photographs, {len(self.beyond)} of {len(self.ranges)} tensors pass {LARGEST_HALF:,.0f}, the "
            f"largest number of half precision; {len(self.near)} more come within a factor of {NEAR:g} of it, and "
            f"{len(self.faint)} stay below its smallest normal number, {SMALLEST_NORMAL_HALF:.2g}. Steps inside of norms, "
            "softmax and sums are counted: a GPU's kernel may keep them in float32."
        ]
        for word, group in (("Beyond it", self.beyond), ("Near it", self.near), ("Too faint", self.faint)):
            if group:
                named = ", ".join(f"{found.place} {found.largest:.3g}" for found in group[:8])
                said.append(f"{word}: {named}" + (f" and {len(group) - 8} more." if len(group) > 8 else "."))
        return tuple(said)

    def to_section(self) -> Section:
        """For a report: the tensors that half precision cannot hold, or hardly."""
        rows = [
            (found.node, found.operator, found.step, found.largest, word)
            for word, group in (("beyond", self.beyond), ("near", self.near), ("too faint", self.faint))
            for found in group
        ]
        table = Table("Numbers that half precision cannot hold", ("node", "operator", "step", "largest", "which is"), tuple(rows))
        return Section("Ranges met on photographs", self.sentences(), (table,) if rows else ())

    @staticmethod
    def _largest_first(found: Iterable[TensorRange]) -> tuple[TensorRange, ...]:
        return tuple(sorted(found, key=lambda entry: -np.nan_to_num(entry.largest, nan=np.inf)))


def value_ranges(model: Any, frames: NDArray[Any], inside: bool = True, threads: int | None = None) -> RangeAudit:
    """Run a graph in float32 and see how large the numbers of each of its tensors get.

    Only the maxima leave the graph, so the memory is that of one run of one photograph.

    Args:
        model: an `onnx.ModelProto` in the shipped form, of float32 or float16; it is not changed.
        frames: [N, H, W, 3], BGR, of the graph's input type.
        inside: also look inside of norms, softmax and sums.
        threads: of one run.

    Raises:
        UnsupportedCheckpointError: the graph has nodes with graphs inside them.
    """
    onnx = require("onnx")
    wide = emulated_half(model, inside, rounding=False)
    graph = wide.graph
    operators = {name: (node.name or name, node.op_type) for node in model.graph.node for name in node.output}
    kinds = tensor_types(onnx, graph)
    # the graph of one photograph reads pixels and makes a receipt; neither is part of the network
    left_out = {"receipt"} | {name for node in graph.node if "frames" in node.input for name in node.output}
    watched = []
    for node in list(graph.node):
        for name in node.output:
            copies = node.op_type == "Identity" and (name.endswith("/exact") or node.input[0] == f"{name}/exact")
            if name and kinds[name] == onnx.TensorProto.FLOAT and name not in left_out and not copies:
                watched.append(name)
                graph.node.append(onnx.helper.make_node("Abs", [name], [f"{name}/magnitude"]))
                graph.node.append(onnx.helper.make_node("ReduceMax", [f"{name}/magnitude"], [f"{name}/most"], keepdims=0))
    del graph.output[:]
    graph.output.extend(onnx.helper.make_tensor_value_info(f"{n}/most", onnx.TensorProto.FLOAT, []) for n in watched)
    session = GraphSession(wide, optimised=False, threads=threads)
    most = np.zeros(len(watched))
    for frame in frames:
        found = session.run(frame[None])
        most = np.maximum(most, [float(found[f"{name}/most"]) for name in watched])  # NaN stays
    return RangeAudit(len(frames), tuple(_range(name, value, operators) for name, value in zip(watched, most, strict=True)))


def _range(name: str, largest: float, operators: dict[str, tuple[str, str]]) -> TensorRange:
    """The range of a tensor of the graph that was written out, under the node that it belongs to."""
    whole, step = name, ""
    while whole not in operators and "/" in whole:
        whole, _, last = whole.rpartition("/")
        step = f"{last}/{step}" if step else last
    node, operator = operators.get(whole, (whole, "?"))
    return TensorRange(node, operator, step.removesuffix("/exact").removesuffix("exact"), float(largest))
