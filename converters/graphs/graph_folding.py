"""Arithmetic by constants taken into the weights before it: BatchNormalization, factors, sums; sums are made in float64."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from fundus_rt.converters.graphs.graph_editor import GraphEditor, attribute, permutation, set_attribute
from fundus_rt.converters.graphs.graph_values import Shapes

LINEAR = ("Conv", "ConvTranspose", "Gemm", "MatMul")
AFFINE = ("BatchNormalization", "Mul", "Div", "Add", "Sub")


@dataclass
class Affine:
    """``factor * x + shift``, one number of each for every channel, float64 [channels]."""

    factor: np.ndarray
    shift: np.ndarray

    def then(self, other: Affine) -> Affine:
        """This map, and `other` after it."""
        return Affine(self.factor * other.factor, self.shift * other.factor + other.shift)


def fold_affine(editor: GraphEditor, shapes: Shapes) -> None:
    """Fold what follows a convolution or a matrix product, one constant for each of its outputs, into its weights.

    A chain of such arithmetic that stands elsewhere becomes one BatchNormalization where it begins with one; alone it stays
    what it is. A weight that something else reads too is copied, never changed.
    """
    for node in editor.each("Mul", "Div"):
        _lift_factor(editor, node, shapes)
    for node in editor.each(*LINEAR):
        if node.op_type != "MatMul" or node.input[1] in editor.tensors:
            _fold_behind(editor, node, shapes)
    for node in editor.each("BatchNormalization"):
        _join_behind(editor, node, shapes)
    for node in editor.each("Add"):
        _join_sums(editor, node, shapes)


def _lift_factor(editor: GraphEditor, node: Any, shapes: Shapes) -> None:
    """A constant factor behind a Transpose goes before it, where a linear node can take it: ConvNeXt's layer scale."""
    transpose = editor.producer(node.input[0], "Transpose")
    value, rank = editor.value(node.input[1]) if len(node.input) == 2 else None, shapes.rank(node.input[0])
    if transpose is None or value is None or rank is None or value.ndim > rank or not permutation(transpose):
        return
    if editor.only_reader(node.input[0]) is not node or editor.only_reader(transpose.input[0]) is not transpose:
        return
    before = editor.producer(transpose.input[0], "Add", *LINEAR)
    if before is None or (before.op_type == "Add" and _constant_input(editor, before) is None):
        return
    full = value.reshape((1,) * (rank - value.ndim) + value.shape)
    axes = permutation(transpose)
    lifted = editor.constant(f"{node.input[1]}_lifted", full.transpose([axes.index(axis) for axis in range(rank)]))
    scaled = editor.add(node.op_type, [transpose.input[0], lifted], f"{node.output[0]}_lifted")
    editor.replace(node.output[0], editor.add("Transpose", [scaled], f"{node.output[0]}_transposed", perm=axes))


def _join_sums(editor: GraphEditor, node: Any, shapes: Shapes) -> None:
    """A constant added to a sum with a constant: one constant, as with a class token and position embeddings."""
    before, after = _constant_input(editor, node), editor.only_reader(node.output[0], "Add")
    second = _constant_input(editor, after) if after is not None else None
    if before is None or second is None or list(after.input).count(node.output[0]) != 1:
        return
    first_value, second_value = editor.value(node.input[before]), editor.value(after.input[second])
    if first_value is None or second_value is None or first_value.dtype != np.float32 or second_value.dtype != np.float32:
        return
    total = (first_value.astype(np.float64) + second_value.astype(np.float64)).astype(np.float32)
    if total.size > max(first_value.size, second_value.size) or not shapes.same(node.input[1 - before], after.output[0]):
        return
    joined = editor.add("Add", [node.input[1 - before], editor.constant("sum", total)], f"{node.output[0]}_joined")
    editor.replace(after.output[0], joined)


def _constant_input(editor: GraphEditor, node: Any) -> int | None:
    """Which of two inputs is a constant; None where none or both are."""
    found = [index for index, name in enumerate(node.input) if name in editor.tensors]
    return found[0] if len(found) == 1 else None


def foldable_behind(editor: GraphEditor, node: Any, shapes: Shapes) -> Affine | None:
    """The arithmetic by constants that directly follows a linear node, where it can be taken into its weights."""
    reader = editor.only_reader(node.output[0], *AFFINE)
    channels = _channels(editor, node)
    if reader is None or channels is None or len(node.output) != 1:
        return None
    return affine_of(editor, reader, node.output[0], channels, shapes, node.op_type in ("Conv", "ConvTranspose"))


def affine_of(editor: GraphEditor, node: Any, name: str, channels: int, shapes: Shapes, channels_first: bool) -> Affine | None:
    """What a node does to each channel of the tensor `name`; None where it is no map per channel with constants."""
    if node.op_type == "BatchNormalization":
        if node.input[0] != name or sum(1 for output in node.output if output) != 1 or attribute(node, "training_mode", 0):
            return None
        if not channels_first and shapes.rank(name) != 2:
            return None
        parts = [editor.value(given) for given in list(node.input)[1:]]
        if any(part is None for part in parts):
            return None
        gamma, beta, mean, variance = (np.asarray(part, np.float64) for part in parts)
        factor = gamma / np.sqrt(variance + attribute(node, "epsilon", 1e-5))
        return Affine(factor, beta - mean * factor)
    at = 1 - list(node.input).index(name)
    if node.op_type not in AFFINE or list(node.input).count(name) != 1 or (at == 0 and node.op_type in ("Sub", "Div")):
        return None
    rank = shapes.rank(name)
    values = _by_channel(editor.value(node.input[at]), channels, rank, 1 if channels_first else -1)
    if values is None or not np.isfinite(values).all():
        return None
    ones, zeros = np.ones(channels), np.zeros(channels)
    if node.op_type in ("Add", "Sub"):
        return Affine(ones, values if node.op_type == "Add" else -values)
    if node.op_type == "Div" and not values.all():
        return None
    return Affine(values if node.op_type == "Mul" else 1.0 / values, zeros)


def _by_channel(value: np.ndarray | None, channels: int, rank: int | None, axis: int) -> np.ndarray | None:
    """A constant as one float64 for each channel; None when it is none, varies elsewhere or adds an axis."""
    if value is None or value.dtype != np.float32:
        return None
    if value.size == 1 and (rank is None or value.ndim <= rank):
        return np.full(channels, float(value.reshape(-1)[0]))
    if rank is None or value.ndim > rank:
        return None
    full = value.reshape((1,) * (rank - value.ndim) + value.shape)
    expected = [1] * rank
    expected[axis] = channels
    return full.reshape(-1).astype(np.float64) if list(full.shape) == expected else None


def _channels(editor: GraphEditor, node: Any) -> int | None:
    """Outputs of a linear node whose weights are constant float32."""
    tensor = editor.tensors.get(node.input[1])
    if tensor is None or tensor.data_type != editor.onnx.TensorProto.FLOAT:
        return None
    if len(node.input) > 2 and node.input[2] and node.input[2] not in editor.tensors:
        return None
    dims = list(tensor.dims)
    if node.op_type == "Conv":
        return int(dims[0])
    if node.op_type == "ConvTranspose":
        return int(dims[1]) * int(attribute(node, "group", 1))
    if node.op_type == "Gemm":
        return int(dims[0] if attribute(node, "transB", 0) else dims[1])
    return int(dims[1]) if len(dims) == 2 else None


def _fold_behind(editor: GraphEditor, node: Any, shapes: Shapes) -> None:
    total, chain = None, []
    last = node
    channels = _channels(editor, node)
    while channels is not None:
        reader = editor.only_reader(last.output[0], *AFFINE)
        first_axis = node.op_type in ("Conv", "ConvTranspose")
        step = None if reader is None else affine_of(editor, reader, last.output[0], channels, shapes, first_axis)
        if step is None:
            break
        total = step if total is None else total.then(step)
        chain.append(reader)
        last = reader
    if total is None or not chain or channels is None:
        return
    if node.op_type == "MatMul":
        rank = shapes.rank(node.input[0])
        if rank == 2:
            _as_gemm(editor, node, total, chain[-1].output[0])
        elif len(chain) > 1 or chain[0].op_type not in ("Add", "Sub"):
            _scale_product(editor, node, total, chain[-1].output[0])
        return
    weights = editor.value(node.input[1])
    bias = editor.value(node.input[2]) if len(node.input) > 2 and node.input[2] else None
    assert weights is not None, "_channels says that the weights are a constant"
    offset = np.zeros(channels) if bias is None else np.broadcast_to(bias.astype(np.float64).reshape(-1), (channels,))
    if node.op_type == "Gemm":
        if bias is not None and bias.size not in (1, channels):
            return
        offset = offset * attribute(node, "beta", 1.0)
        set_attribute(node, "beta", 1.0)
    scaled = (weights.astype(np.float64) * _along(node, total.factor, weights.shape)).astype(np.float32)
    offset = (offset * total.factor + total.shift).astype(np.float32)
    changed = np.any(total.factor != 1)
    kernel = editor.constant(f"{node.input[1]}_folded", scaled) if changed else node.input[1]
    editor.set_inputs(node, [node.input[0], kernel, editor.constant(f"{node.output[0]}_bias", offset)])
    _end_with(editor, node, chain)


def _along(node: Any, factor: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The factor in a shape that multiplies the weights output by output."""
    if node.op_type == "Gemm":
        return factor[:, None] if attribute(node, "transB", 0) else factor[None, :]
    if node.op_type == "Conv":
        return factor.reshape(-1, *(1,) * (len(shape) - 1))
    groups = attribute(node, "group", 1)
    rows = np.repeat(factor.reshape(groups, -1), shape[0] // groups, axis=0)
    return rows.reshape(shape[0], shape[1], *(1,) * (len(shape) - 2))


def _as_gemm(editor: GraphEditor, node: Any, total: Affine, output: str) -> None:
    weights = editor.value(node.input[1])
    assert weights is not None, "the caller looked"
    scaled = node.input[1]
    if np.any(total.factor != 1):
        scaled = editor.constant(f"{scaled}_folded", (weights.astype(np.float64) * total.factor).astype(np.float32))
    bias = editor.constant(f"{node.output[0]}_bias", total.shift.astype(np.float32))
    editor.replace(output, editor.add("Gemm", [node.input[0], scaled, bias], f"{node.output[0]}_gemm"))


def _scale_product(editor: GraphEditor, node: Any, total: Affine, output: str) -> None:
    """A product of rank three or more keeps its sum as a node: no operator has both."""
    weights = editor.value(node.input[1])
    assert weights is not None, "the caller looked"
    scaled = editor.constant(f"{node.input[1]}_folded", (weights.astype(np.float64) * total.factor).astype(np.float32))
    last = editor.add("MatMul", [node.input[0], scaled], f"{node.output[0]}_scaled")
    if np.any(total.shift != 0):
        shift = editor.constant(f"{node.output[0]}_bias", total.shift.astype(np.float32))
        last = editor.add("Add", [last, shift], f"{node.output[0]}_shifted")
    editor.replace(output, last)


def _end_with(editor: GraphEditor, node: Any, chain: list[Any]) -> None:
    """Let a node stand for the chain behind it."""
    for behind in chain:
        editor.replace(behind.output[0], node.output[0])


def _join_behind(editor: GraphEditor, node: Any, shapes: Shapes) -> None:
    """A BatchNormalization and arithmetic per channel behind it: one BatchNormalization."""
    reader = editor.only_reader(node.output[0], *AFFINE)
    value = editor.value(node.input[1])
    if reader is None or value is None:
        return
    own = affine_of(editor, node, node.input[0], value.size, shapes, True)
    step = affine_of(editor, reader, node.output[0], value.size, shapes, True)
    if own is None or step is None:
        return
    total, name = own.then(step), node.output[0]
    numbers = (total.factor, total.shift, np.zeros(value.size), np.ones(value.size))
    names = [editor.constant(f"{name}_{at}", number.astype(np.float32)) for at, number in enumerate(numbers)]
    joined = editor.add("BatchNormalization", [node.input[0], *names], f"{name}_joined", epsilon=0.0)
    editor.replace(reader.output[0], joined)


def means_to_pooling(editor: GraphEditor, shapes: Shapes) -> None:
    """ReduceMean over height and width that keeps its axes: GlobalAveragePool, which is the same by definition."""
    for node in editor.each("ReduceMean"):
        axes = editor.value(node.input[1]) if len(node.input) > 1 else attribute(node, "axes")
        if axes is None or shapes.rank(node.input[0]) != 4 or not attribute(node, "keepdims", 1):
            continue
        if sorted(int(axis) % 4 for axis in axes) == [2, 3]:
            editor.replace(node.output[0], editor.add("GlobalAveragePool", [node.input[0]], f"{node.output[0]}_pooled"))
