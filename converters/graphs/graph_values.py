"""What of an ONNX graph is known before it runs: constants, and shapes whatever the batch is.

Exporters write the reading of a shape, and the arithmetic on it, into the graph: chains of Shape, Gather, Mod and Concat
before each reshape. With the picture's size fixed only the batch is open, so every such number is a constant or follows
the batch. Which of the two is found by carrying three batches through ONNX's own shape inference, node by node.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fundus_rt.converters.backends import require
from fundus_rt.converters.graphs.graph_editor import GraphEditor, attribute, permutation

BATCHES = (1, 2, 67)
"""Batches that are carried through the graph: a number that is the same for all three does not follow the batch."""
LARGEST_FOLDED = 1 << 24
"""Elements of the largest constant that folding may make, 64 MiB of float32: above Swin's position biases."""
LARGEST_CARRIED = 1 << 12
"""Elements of the largest value that is carried along with the shapes."""

Shape = tuple[int, ...]


@dataclass
class Shapes:
    """Shapes, element types and small values of a graph's tensors, one entry for each of `BATCHES`."""

    shapes: list[dict[str, Shape]] = field(default_factory=list)
    kinds: dict[str, int] = field(default_factory=dict)
    values: list[dict[str, np.ndarray]] = field(default_factory=list)

    def of(self, name: str) -> tuple[Shape, ...] | None:
        """The tensor's shape under each batch; None where it is not known."""
        found = tuple(shapes[name] for shapes in self.shapes if name in shapes)
        return found if found and len(found) == len(self.shapes) else None

    def rank(self, name: str) -> int | None:
        """Number of axes; None where it is not known."""
        found = self.of(name)
        return len(found[0]) if found and len({len(shape) for shape in found}) == 1 else None

    def same(self, first: str, second: str) -> bool:
        """Whether two tensors are known to have one shape under every batch."""
        found = self.of(first)
        return found is not None and found == self.of(second)

    def fixed(self, name: str) -> np.ndarray | None:
        """The value that a tensor has under every batch; None where it has none."""
        found = [values[name] for values in self.values if name in values]
        if len(found) < len(self.values) or not found:
            return None
        first = found[0]
        same = all(f.dtype == first.dtype and f.shape == first.shape and np.array_equal(f, first) for f in found[1:])
        return first if same else None

    def target(self, name: str) -> list[int] | None:
        """What a Reshape to the tensor's shape asks for, -1 for the one axis that follows the batch; None: more than one."""
        found = self.of(name)
        if found is None or self.rank(name) is None or any(0 in shape for shape in found):
            return None
        open_axes = [axis for axis, sizes in enumerate(zip(*found, strict=True)) if len(set(sizes)) > 1]
        if len(open_axes) > 1:
            return None
        return [-1 if axis in open_axes else size for axis, size in enumerate(found[0])]


def carry_shapes(editor: GraphEditor) -> Shapes:
    """Carry `BATCHES` through the graph.

    The batch is the first axis of each input where that is open. A tensor behind an operator that shape inference does not
    know, or behind another open axis, is simply not known.
    """
    found = Shapes()
    ordered = editor.ordered()
    for batch in BATCHES:
        types, values = _carry(editor, ordered, batch)
        shapes = {}
        for name, kind in types.items():
            tensor = kind.tensor_type
            if kind.HasField("tensor_type") and tensor.HasField("shape"):
                sizes = [dim.dim_value if dim.HasField("dim_value") else -1 for dim in tensor.shape.dim]
                if -1 not in sizes:
                    shapes[name] = tuple(sizes)
            found.kinds[name] = tensor.elem_type
        found.shapes.append(shapes)
        found.values.append(values)
    return found


def _carry(editor: GraphEditor, ordered: list[Any], batch: int) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    onnx = editor.onnx
    types: dict[str, Any] = {}
    for value in editor.inputs:
        kind = onnx.TypeProto.FromString(value.type.SerializeToString())
        dims = kind.tensor_type.shape.dim
        if dims and not dims[0].HasField("dim_value"):
            dims[0].dim_value = batch
        types[value.name] = kind
    values: dict[str, np.ndarray] = {}
    for name, tensor in editor.tensors.items():
        types[name] = onnx.helper.make_tensor_type_proto(tensor.data_type, list(tensor.dims))
        if (editor.size(name) or 0) <= LARGEST_CARRIED:
            value = editor.value(name)
            if value is not None:
                values[name] = value
    for node in ordered:
        _carry_node(editor, node, types, values)
    return types, values


def _carry_node(editor: GraphEditor, node: Any, types: dict[str, Any], values: dict[str, np.ndarray]) -> None:
    """Shapes, and values where they are small and known, of one node's outputs."""
    onnx, names = editor.onnx, [name for name in node.input if name]
    if any(name not in types for name in names):
        return
    known = {name: values[name] for name in names if name in values}
    try:
        schema = onnx.defs.get_schema(node.op_type, editor.opset, node.domain)
        read = {name: types[name] for name in names}
        data = {name: onnx.numpy_helper.from_array(value, name) for name, value in known.items() if value.dtype.kind in "iu"}
        opsets = [onnx.helper.make_opsetid("", editor.opset)]
        types.update(onnx.shape_inference.infer_node_outputs(schema, node, read, data, opset_imports=opsets))
    except (onnx.defs.SchemaError, onnx.shape_inference.InferenceError, ValueError, KeyError):
        return  # an operator that has no inference, or a shape that is open: its outputs stay unknown
    results: list[np.ndarray] | None = None
    if node.op_type == "Shape":
        sizes = types[names[0]].tensor_type
        if sizes.HasField("shape") and all(dim.HasField("dim_value") for dim in sizes.shape.dim):
            numbers = np.asarray([dim.dim_value for dim in sizes.shape.dim], np.int64)
            results = [numbers[attribute(node, "start", 0) : attribute(node, "end", len(numbers))]]
    elif len(known) == len(set(names)):
        results = evaluate(node, values, editor.opset, LARGEST_CARRIED)
    for name, value in zip(node.output, results or (), strict=False):
        values[name] = value


def fold_constants(editor: GraphEditor, shapes: Shapes | None = None) -> None:
    """Compute every node whose inputs are constants, or whose value `shapes` knows; its result becomes an initializer."""
    for node in editor.ordered():
        names = [name for name in node.input if name]
        if not names or any(name in editor.held for name in node.output):
            continue
        results: list[np.ndarray] | None = None
        fixed = [shapes.fixed(name) for name in node.output] if shapes is not None else []
        if fixed and all(value is not None for value in fixed):
            results = [value for value in fixed if value is not None]
        elif all(name in editor.tensors for name in names) and node.op_type in FOLDED:
            arrays = {name: value for name in names if (value := editor.value(name)) is not None}
            results = evaluate(node, arrays, editor.opset, LARGEST_FOLDED)
        if results is None:
            continue
        for name, value in zip(node.output, results, strict=False):
            if name:
                editor.replace(name, editor.constant(f"{name}_folded", value))


def evaluate(node: Any, values: dict[str, np.ndarray], opset: int, largest: int) -> list[np.ndarray] | None:
    """Outputs of a node whose inputs are all known; None for kinds that are not folded, or above `largest` elements."""
    if node.op_type not in FOLDED or node.domain not in ("", "ai.onnx"):
        return None
    arrays = [values[name] if name else None for name in node.input]
    size = sum(array.size for array in arrays if array is not None)
    if node.op_type not in ("Slice", "Gather", "Squeeze", "Split", "ReduceSum", "ReduceMean") and size > 2 * largest:
        return None
    if node.op_type in ("ConstantOfShape", "Expand", "Tile"):
        wanted = arrays[-1] if arrays[-1] is not None else np.asarray([])
        if float(np.prod(wanted.astype(np.float64))) * max(1, size if node.op_type == "Tile" else 1) > largest:
            return None
    try:
        with np.errstate(all="ignore"):
            if node.op_type in _NUMPY:
                results = [np.asarray(_NUMPY[node.op_type](node, *arrays))]
            else:
                evaluator = require("onnx.reference").ReferenceEvaluator(node, opsets={"": opset})
                results = evaluator.run(None, {name: values[name] for name in node.input if name})
    except (ValueError, IndexError, TypeError, NotImplementedError, RuntimeError):
        return None  # left as it is: the runtime says what is wrong with it, if anything is
    results = [np.asarray(result) for result in results]
    return results if all(result.size <= largest for result in results) else None


def _slice(node: Any, data: np.ndarray, starts: Any, ends: Any, axes: Any = None, steps: Any = None) -> np.ndarray:
    axes = range(len(starts)) if axes is None else axes
    steps = [1] * len(starts) if steps is None else steps
    where = [slice(None)] * data.ndim
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        first = int(start) + (data.shape[axis] if start < 0 else 0)
        last = int(end) + (data.shape[axis] if end < 0 else 0)
        where[axis] = slice(max(first, 0), max(last, 0) if step > 0 else (last if last >= 0 else None), int(step))
    return data[tuple(where)]


def _reshape(node: Any, data: np.ndarray, shape: np.ndarray) -> np.ndarray:
    sizes = [int(size) for size in shape]
    if not attribute(node, "allowzero", 0):
        sizes = [data.shape[axis] if size == 0 else size for axis, size in enumerate(sizes)]
    return data.reshape(sizes)


def _divide(node: Any, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    if first.dtype.kind not in "iu":
        return np.asarray(first / second)
    return np.asarray(np.sign(first) * np.sign(second) * (np.abs(first) // np.abs(second))).astype(first.dtype)


def _cast(node: Any, data: np.ndarray) -> np.ndarray:
    return data.astype(require("onnx").helper.tensor_dtype_to_np_dtype(attribute(node, "to")))


def _constant_of_shape(node: Any, shape: np.ndarray) -> np.ndarray:
    tensor = attribute(node, "value")
    value = np.zeros(1, np.float32) if tensor is None else require("onnx").numpy_helper.to_array(tensor)
    return np.full([int(size) for size in shape], value.reshape(-1)[0], value.dtype)


def _axes(node: Any, axes: np.ndarray | None) -> tuple[int, ...] | None:
    """Axes of Squeeze and Unsqueeze: an input from operator set 13 on, an attribute before."""
    found = attribute(node, "axes") if axes is None else axes
    return None if found is None else tuple(int(axis) for axis in found)


_NUMPY: dict[str, Callable[..., Any]] = {
    "Add": lambda node, a, b: a + b,
    "Sub": lambda node, a, b: a - b,
    "Mul": lambda node, a, b: a * b,
    "Div": _divide,
    "Mod": lambda node, a, b: np.fmod(a, b) if attribute(node, "fmod", 0) else np.mod(a, b),
    "Neg": lambda node, a: -a,
    "Sqrt": lambda node, a: np.sqrt(a),
    "Ceil": lambda node, a: np.ceil(a),
    "Floor": lambda node, a: np.floor(a),
    "Equal": lambda node, a, b: a == b,
    "Less": lambda node, a, b: a < b,
    "Greater": lambda node, a, b: a > b,
    "Not": lambda node, a: ~a,
    "And": lambda node, a, b: a & b,
    "Or": lambda node, a, b: a | b,
    "Where": lambda node, condition, a, b: np.where(condition, a, b),
    "Identity": lambda node, a: a,
    "Cast": _cast,
    "Slice": _slice,
    "Gather": lambda node, data, indices: np.take(data, indices, axis=attribute(node, "axis", 0)),
    "Unsqueeze": lambda node, data, axes=None: np.expand_dims(data, _axes(node, axes) or ()),
    "Squeeze": lambda node, data, axes=None: np.squeeze(data, _axes(node, axes)),
    "Concat": lambda node, *parts: np.concatenate(parts, axis=attribute(node, "axis")),
    "Reshape": _reshape,
    "Transpose": lambda node, data: np.transpose(data, permutation(node) or None),
    "ConstantOfShape": _constant_of_shape,
    "Expand": lambda node, data, shape: np.broadcast_to(data, np.broadcast_shapes(data.shape, tuple(map(int, shape)))),
    "Range": lambda node, start, limit, delta: np.arange(start, limit, delta, dtype=start.dtype),
    "Size": lambda node, data: np.asarray(data.size, np.int64),
    "Shape": lambda node, data: np.asarray(data.shape, np.int64)[attribute(node, "start", 0) : attribute(node, "end", 99)],
}
_BY_REFERENCE = (
    "Abs Clip CumSum Cos Erf Exp Flatten GatherElements GatherND Gemm HardSigmoid LayerNormalization Log MatMul Max Min Pad "
    "Pow ReduceL2 ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum Relu Round ScatterND Sigmoid Sign Sin Softmax Split Sum "
    "Tanh Tile Trilu"
)
FOLDED = frozenset(_NUMPY) | frozenset(_BY_REFERENCE.split())
"""Operators that are computed beforehand; not DequantizeLinear, whose weights are small on purpose, and nothing random."""
