"""Half precision on a processor that has none: every tensor rounded to IEEE 754 binary16 after every operator.

ONNX Runtime's CPU computes a graph of float16 in float32 and takes the roundings between the nodes out, so running one there
says nothing of a GPU: a norm of values around 1,000 answers 1.0 there and 0 in true half precision, whose largest number is
65,504. Here such a graph becomes one of float32 in which each result goes through a pair of explicit Casts, which ONNX Runtime
keeps; `open_emulated` looks once whether it does.

What is rounded, and how far that is what a GPU does:

* Every tensor between two nodes, and every weight: overflow becomes infinity, subnormal numbers keep the bits they have there.
* *Inside* LayerNormalization, InstanceNormalization, Softmax, LogSoftmax and of means, sums and norms over axes, global
  average pooling among them, each step is rounded too: the differences, their squares, the sum before it is divided. This is
  the pessimistic reading. A GPU's kernel may keep float32 inside; `inside=False` reads it so.
* GELU and SiLU are several nodes in these graphs, and are rounded between them; Erf, Exp, Sigmoid and the like are computed
  in float32 and rounded once.
* Products of matrices and convolutions add up in float32, as tensor cores do, and are rounded once at their end.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np

from fundus_rt.benchmarks.proof.graph_runs import GraphSession, copy_of, has_half
from fundus_rt.benchmarks.proof.half_steps import DECOMPOSED, HalfSteps
from fundus_rt.converters.backends import require
from fundus_rt.converters.graphs.graph_names import inner_graphs
from fundus_rt.models.errors import BackendUnavailableError, UnsupportedCheckpointError

LARGEST_HALF = 65504.0
"""Largest finite number of binary16 (IEEE 754-2008, table 3.5: (2 - 2^-10) * 2^15)."""
SMALLEST_NORMAL_HALF = 2.0**-14
"""Smallest number of binary16 with all its eleven bits."""

SELECTING = frozenset(
    (
        *("Identity", "Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze", "Slice", "Gather", "GatherElements", "GatherND"),
        *("Concat", "Split", "Expand", "Tile", "Pad", "DepthToSpace", "SpaceToDepth", "MaxPool", "GlobalMaxPool", "Relu", "Neg"),
        *("Abs", "Max", "Min", "ReduceMax", "ReduceMin", "Where", "Sign", "Floor", "Ceil", "Round", "Dropout", "Clip"),
        *("Constant", "ConstantOfShape"),
    )
)
"""Operators whose results are numbers that were there before, or that binary16 holds exactly."""
WORDS = ("Shape", "Size", "ArgMax", "ArgMin", "NonZero")
BOOLEANS = ("Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "And", "Or", "Not", "Xor", "IsNaN", "IsInf")


def emulated_half(model: Any, inside: bool = True, rounding: bool = True, keep: Collection[str] = ()) -> Any:
    """A float32 graph that computes what a graph computes in half precision.

    Args:
        model: an `onnx.ModelProto` in the shipped form. Where it holds float16 tensors, these are what is rounded; where it
            holds none, it is judged as if all of it were in half precision but for the frames and the receipt.
        inside: also round inside of norms, softmax and sums, see the module.
        rounding: False decomposes in the same way and rounds nothing, to see how large each step's numbers get.
        keep: names of nodes that stay in float32 (a graph without float16 only).

    Returns:
        A new model with the same inputs, outputs and names of tensors; steps inside of a node are named ``TENSOR/step``.

    Raises:
        UnsupportedCheckpointError: the graph has nodes with graphs inside them (If, Loop).
    """
    onnx = require("onnx")
    made = copy_of(model)
    graph = made.graph
    nested = next((node for node in graph.node if inner_graphs(node)), None)
    if nested is not None:
        raise UnsupportedCheckpointError(
            f"half precision cannot be emulated in the node {nested.name!r} ({nested.op_type}), which holds a graph of its own; "
            "export the network without branches"
        )
    kinds = tensor_types(onnx, graph)
    halves = _half_tensors(onnx, made, kinds, frozenset(keep))
    wide = {name for name, kind in kinds.items() if kind == onnx.TensorProto.FLOAT} - halves
    opset = next(entry.version for entry in made.opset_import if entry.domain in ("", "ai.onnx"))
    steps = HalfSteps(onnx, opset, rounding)
    _widen_stored(onnx, graph, halves, rounding)
    for node in graph.node:
        if node.op_type in SELECTING and not wide.intersection(node.input):
            steps.nodes.append(_with_wide_value(onnx, node))
        else:
            _widen_node(onnx, steps, node, halves, inside)
    del graph.node[:]
    graph.node.extend(steps.nodes)
    graph.initializer.extend(steps.constants)
    for value in (*graph.input, *graph.output):
        if value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT16:
            value.type.tensor_type.elem_type = onnx.TensorProto.FLOAT
    del graph.value_info[:]
    return made


def open_emulated(model: Any, inside: bool = True, threads: int | None = None) -> GraphSession:
    """`emulated_half` of a graph, opened.

    Raises:
        BackendUnavailableError: this ONNX Runtime does not round where it is told to.
        UnsupportedCheckpointError: as `emulated_half`.
    """
    require_rounding()
    return GraphSession(emulated_half(model, inside), optimised=False, threads=threads)


def require_rounding() -> None:
    """Raise `BackendUnavailableError` unless ONNX Runtime rounds a number to half precision where a graph says so."""
    onnx = require("onnx")
    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    steps = HalfSteps(onnx, 17, True)
    steps.nodes.append(helper.make_node("Mul", ["frames", "frames"], ["squares/exact"]))
    steps.round("squares/exact", "squares")
    steps.nodes.append(helper.make_node("Sqrt", ["squares"], ["roots"]))
    value = [helper.make_tensor_value_info(name, kind, ["N"]) for name in ("frames", "roots")]
    graph = helper.make_graph(steps.nodes, "rounding", value[:1], value[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    sent = np.array([1000.0, 1.0 + 2.0**-11, 2.0**-13], np.float32)
    with np.errstate(over="ignore"):
        expected = np.sqrt(np.square(sent).astype(np.float16).astype(np.float32))
    found = GraphSession(model, optimised=False, threads=1).run(sent)["roots"]
    if not np.array_equal(found, expected):
        raise BackendUnavailableError(
            f"this ONNX Runtime takes roundings to half precision out of a graph: got {found.tolist()}, expected "
            f"{expected.tolist()}; half precision cannot be judged with it, install another version"
        )


def _half_tensors(onnx: Any, model: Any, kinds: dict[str, int], keep: frozenset[str]) -> set[str]:
    """Names of the tensors that are, or are to be taken for, half precision."""
    if has_half(model):
        return {name for name, kind in kinds.items() if kind == onnx.TensorProto.FLOAT16}
    producers = {name: node for node in model.graph.node for name in node.output}
    exact: set[str] = {value.name for value in model.graph.input}
    waiting = ["receipt"]
    while waiting:
        name = waiting.pop()
        exact.add(name)
        node = producers.get(name)
        waiting += [] if node is None else [read for read in node.input if read not in exact]
    for node in model.graph.node:
        if node.name in keep:
            exact.update(node.output)
        elif node.op_type == "Resize":
            exact.update(node.input[1:3])  # the scales of the picture's sides
    return {name for name, kind in kinds.items() if kind == onnx.TensorProto.FLOAT} - exact


def tensor_types(onnx: Any, graph: Any) -> dict[str, int]:
    """Element type of every tensor of a graph, by ONNX's rules for the operators of float networks."""
    kinds = {tensor.name: tensor.data_type for tensor in graph.initializer}
    kinds.update({value.name: value.type.tensor_type.elem_type for value in graph.input})
    floats = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.DOUBLE, onnx.TensorProto.BFLOAT16)
    for node in graph.node:
        read = [kinds[name] for name in node.input if name in kinds]
        kind = next((found for found in read if found in floats), read[0] if read else onnx.TensorProto.FLOAT)
        attributes = {entry.name: entry for entry in node.attribute}
        if node.op_type == "Cast":
            kind = attributes["to"].i
        elif node.op_type in ("Constant", "ConstantOfShape"):
            kind = attributes["value"].t.data_type if "value" in attributes else onnx.TensorProto.FLOAT
        elif node.op_type in WORDS:
            kind = onnx.TensorProto.INT64
        elif node.op_type in BOOLEANS:
            kind = onnx.TensorProto.BOOL
        elif node.op_type == "QuantizeLinear":
            kind = kinds.get(node.input[2], onnx.TensorProto.UINT8) if len(node.input) > 2 else onnx.TensorProto.UINT8
        elif node.op_type in ("Gather", "Slice", "Reshape", "Expand"):
            kind = read[0]
        for name in node.output:
            kinds[name] = kind
    return kinds


def _widen_stored(onnx: Any, graph: Any, halves: set[str], rounding: bool) -> None:
    """Weights of half precision as float32 with the same values; those that are to be taken for half, rounded."""
    for tensor in graph.initializer:
        if tensor.name in halves:
            values = onnx.numpy_helper.to_array(tensor)
            with np.errstate(over="ignore"):
                rounded = values.astype(np.float16) if rounding else values
            tensor.CopyFrom(onnx.numpy_helper.from_array(rounded.astype(np.float32), tensor.name))


def _widen_node(onnx: Any, steps: HalfSteps, node: Any, halves: set[str], inside: bool) -> None:
    """Add a node with its results rounded, where they are half precision."""
    if node.op_type == "Cast":
        _widen_cast(onnx, steps, node, halves)
        return
    rounded = [name for name in node.output if name in halves]
    if not rounded:
        steps.nodes.append(node)
        return
    if inside and node.op_type in DECOMPOSED and DECOMPOSED[node.op_type](steps, node):
        return
    for index, name in enumerate(node.output):
        if name in halves:
            node.output[index] = f"{name}/exact"
    steps.nodes.append(node)
    for name in rounded:
        steps.round(f"{name}/exact", name)


def _with_wide_value(onnx: Any, node: Any) -> Any:
    """The node with a constant of half precision that it carries as float32."""
    for entry in node.attribute:
        if entry.name == "value" and entry.t.data_type == onnx.TensorProto.FLOAT16:
            entry.t.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(entry.t).astype(np.float32)))
    return node


def _widen_cast(onnx: Any, steps: HalfSteps, node: Any, halves: set[str]) -> None:
    """A Cast to half precision becomes a rounding, one from it to float32 does nothing, others stay."""
    to = next(entry for entry in node.attribute if entry.name == "to")
    if node.output[0] in halves and node.input[0] not in halves:
        if to.i == onnx.TensorProto.FLOAT16:
            to.i = onnx.TensorProto.FLOAT
        result = node.output[0]
        node.output[0] = f"{result}/exact"
        steps.nodes.append(node)
        steps.round(f"{result}/exact", result)
    elif node.input[0] in halves and to.i in (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16):
        steps.nodes.append(onnx.helper.make_node("Identity", list(node.input), list(node.output), name=node.name))
    else:
        steps.nodes.append(node)
