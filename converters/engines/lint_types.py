"""Types of tensors that TensorRT 10.3 does not compute with, and quantisation that it does not read."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fundus_rt.converters.engines.engine_facts import graphs_of, import_onnx, nodes_of
from fundus_rt.converters.engines.lint_finding import LintFinding

SMALL = 4096
"""Most numbers of a constant whose values are looked at: scales, zero points, sizes."""
UINT8, INT8, INT32, DOUBLE = 2, 3, 6, 11
NAMES = {
    4: "uint16", 5: "int16", 8: "string", 11: "float64", 12: "uint32", 13: "uint64", 14: "complex64", 15: "complex128",
}  # fmt: skip
"""Types, by ONNX's numbers, that no tensor of a network may have; float64 alone is read, as float32."""
UINT8_PLACES = ("Cast", "CastLike", "QuantizeLinear", "DequantizeLinear")
"""The operators at which uint8 may stand or has rules of its own."""


class TypedGraph:
    """Element types and small constants of a graph, by the names of its tensors."""

    def __init__(self, model: Any) -> None:
        self.types: dict[str, int] = {}
        """ONNX number of the element type, where ONNX's inference finds it."""
        self.kinds: dict[str, str] = {}
        """Names of tensors that are sequences, maps or optional values, and which of these."""
        self.constants: dict[str, Any] = {}
        """Tensors whose numbers are in the file: initialisers and outputs of Constant nodes."""
        self.inputs = {value.name for value in model.graph.input}
        self.outputs = {value.name for value in model.graph.output}
        self.nodes = list(nodes_of(model.graph))
        self.opset = max((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), default=0)
        for graph in graphs_of(model.graph):
            self.constants.update({tensor.name: tensor for tensor in graph.initializer})
        for node in self.nodes:
            if node.op_type == "Constant":
                self.constants[node.output[0]] = next((a.t for a in node.attribute if a.name == "value"), None)
        for graph in graphs_of(_inferred(model).graph):
            for value in (*graph.input, *graph.output, *graph.value_info):
                kind = value.type.WhichOneof("value")
                if kind == "tensor_type":
                    self.types[value.name] = value.type.tensor_type.elem_type
                elif kind:
                    self.kinds[value.name] = kind.removesuffix("_type")
        self.types.update({name: tensor.data_type for name, tensor in self.constants.items() if tensor is not None})

    def is_constant(self, name: str) -> bool:
        """Whether a tensor's numbers are in the file."""
        return name in self.constants

    def value(self, name: str) -> NDArray[Any] | None:
        """The numbers of a small constant; None for another tensor."""
        tensor = self.constants.get(name)
        if tensor is None or int(np.prod(tensor.dims, dtype=np.int64)) > SMALL or tensor.data_location:
            return None
        return np.asarray(import_onnx().numpy_helper.to_array(tensor))


def _inferred(model: Any) -> Any:
    """The graph with the types of its tensors, without the numbers of large constants: their types are enough."""
    onnx = import_onnx()
    light = onnx.ModelProto(ir_version=model.ir_version)
    light.opset_import.extend(model.opset_import)
    light.functions.extend(model.functions)
    light.graph.name = "typed"
    light.graph.node.extend(model.graph.node)
    light.graph.output.extend(model.graph.output)
    light.graph.input.extend(model.graph.input)
    declared = {value.name for value in model.graph.input}
    for tensor in model.graph.initializer:
        if int(np.prod(tensor.dims, dtype=np.int64)) <= SMALL and not tensor.data_location:
            light.graph.initializer.append(tensor)
        elif tensor.name not in declared:
            light.graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims)))
    try:
        return onnx.shape_inference.infer_shapes(light, data_prop=False, strict_mode=False)
    except Exception:  # a graph that ONNX itself cannot follow: the declared types are what there is
        return light


def type_findings(typed: TypedGraph) -> Iterator[LintFinding]:
    """Faults of types and of quantisation."""
    for node in typed.nodes:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            yield from _quantisation(node, typed)
            continue
        yield from _uint8(node, typed)
        for name in node.output:
            if name in typed.kinds:
                yield LintFinding.of(
                    node, "type", f"it gives a {typed.kinds[name]}, read are tensors", "export the network with tensors alone"
                )
            elif typed.types.get(name) in NAMES and node.op_type != "Constant":
                yield _unknown_type(node, typed.types[name])
    for name in sorted(typed.inputs | set(typed.constants)):
        if typed.types.get(name) in NAMES:
            kind = "the input" if name in typed.inputs else "the constant"
            found = typed.types[name]
            yield LintFinding(
                *("type" if found != DOUBLE else "float64", name, "", f"{kind} is {_what_of(found)}"),
                "export the network in float32, with whole numbers of 32 or 64 bits", refused=found != DOUBLE,
            )  # fmt: skip


def _unknown_type(node: Any, kind: int) -> LintFinding:
    if kind == DOUBLE:
        return LintFinding.of(node, "float64", f"it gives {_what_of(kind)}", "compute in float32", refused=False)
    return LintFinding.of(node, "type", f"it gives {_what_of(kind)}", "use float32, or whole numbers of 32 or 64 bits")


def _what_of(kind: int) -> str:
    return "float64, which is narrowed to float32 without a word" if kind == DOUBLE else f"{NAMES[kind]}, which is not read"


def _uint8(node: Any, typed: TypedGraph) -> Iterator[LintFinding]:
    """uint8 is for the network's inputs and outputs: behind an input a Cast comes first, before an output a Cast comes last."""
    reads = [name for name in node.input if typed.types.get(name) == UINT8]
    gives = [name for name in node.output if typed.types.get(name) == UINT8]
    remedy = "cast to float32 first: Cast has to be the first node behind a uint8 input"
    if reads and node.op_type not in UINT8_PLACES:
        yield LintFinding.of(node, "uint8", f"it reads {reads[0]!r} as uint8, which only Cast may", remedy)
    elif [name for name in reads if name not in typed.inputs and name not in typed.constants]:
        yield LintFinding.of(node, "uint8", "it reads uint8 from inside the graph", "keep numbers in float32 between the nodes")
    elif [name for name in gives if name not in typed.outputs]:
        yield LintFinding.of(node, "uint8", "it gives uint8 inside the graph", "keep numbers in float32 between the nodes")


def _quantisation(node: Any, typed: TypedGraph) -> Iterator[LintFinding]:
    """Q/DQ as TensorRT reads it: int8, zero point 0, constant positive scales, weights and activations only, no biases."""
    quantised = typed.types.get((node.output if node.op_type == "QuantizeLinear" else node.input)[0])
    zero = node.input[2] if len(node.input) > 2 else ""
    if node.op_type == "QuantizeLinear" and not zero:
        yield LintFinding.of(
            node, "quantisation in uint8", "it has no zero point: ONNX then means uint8, TensorRT takes it for int8",
            "give the zero point 0 as int8",
        )  # fmt: skip
    elif quantised == UINT8:
        yield LintFinding.of(
            node, "quantisation in uint8", "it quantises to uint8, read is int8",
            "quantise with signed activations: QuantType.QInt8, symmetric",
        )  # fmt: skip
    elif quantised == INT32:
        yield LintFinding.of(
            node, "quantised bias", "it restores a bias from int32, read is int8",
            "leave biases in float32: no Q/DQ pair on them",
        )  # fmt: skip
    elif quantised is not None and quantised in NAMES:
        yield LintFinding.of(node, "type", f"it quantises in {NAMES[quantised]}, read is int8", "quantise in int8")
    offset = typed.value(zero) if zero else None
    if zero and offset is None and not typed.is_constant(zero):
        yield LintFinding.of(node, "zero point", "its zero point is computed", "give 0 as a constant")
    elif offset is not None and quantised != UINT8 and np.any(offset != 0):
        yield LintFinding.of(
            node, "zero point", f"its zero point is {int(offset.flat[int(np.argmax(offset != 0))])}, read is 0",
            "quantise symmetrically",
        )  # fmt: skip
    scale = typed.value(node.input[1])
    if scale is not None and not np.all(scale > 0):
        yield LintFinding.of(node, "scale", "a scale is not above 0", "calibrate again, or leave this tensor in float32")
    elif not typed.is_constant(node.input[1]):
        yield LintFinding.of(node, "scale", "its scale is computed while the network runs", "quantise statically")
