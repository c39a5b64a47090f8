"""Rewrites of an ONNX graph that move no number: reshapes, Transposes, copies, and nodes that do nothing at all."""

from __future__ import annotations

from typing import Any

import numpy as np

from fundus_rt.converters.graphs.graph_editor import GraphEditor, attribute, permutation, set_attribute
from fundus_rt.converters.graphs.graph_values import Shapes

RESHAPES = ("Reshape", "Squeeze", "Unsqueeze", "Flatten")
"""Operators that only give the same numbers another shape."""
_ELEMENTWISE = (
    "Abs Add Cast Ceil Clip Div Elu Erf Exp Floor HardSigmoid HardSwish LeakyRelu Log Max Min Mul Neg Pow Reciprocal Relu "
    "Selu Sigmoid Softplus Sqrt Sub Sum Tanh"
)
ELEMENTWISE = frozenset(_ELEMENTWISE.split())
"""Operators that answer each number by itself, with broadcasting where they take several."""
NEUTRAL = {"Add": 0, "Sub": 0, "Mul": 1, "Div": 1}
"""Operators, and the second number that changes nothing."""
BROADCASTING = ("Add", "Sub", "Mul", "Div", "Max", "Min", "Pow", "Equal", "Where")


def drop_idle(editor: GraphEditor, shapes: Shapes) -> None:
    """Remove nodes that answer what they were given: Identity, Dropout at inference, casts, pads, slices, one-piece Concat."""
    for node in editor.each():
        if node.input and node.output and _is_idle(editor, node, shapes):
            editor.replace(node.output[0], node.input[0])
        elif node.op_type in NEUTRAL:
            _drop_neutral(editor, node, shapes)


def _drop_neutral(editor: GraphEditor, node: Any, shapes: Shapes) -> None:
    """A constant zero that is added, or a constant one that is multiplied."""
    for index in (1, 0) if node.op_type in ("Add", "Mul") else (1,):
        value, kept = editor.value(node.input[index]), node.input[1 - index]
        if value is not None and (value == NEUTRAL[node.op_type]).all() and shapes.same(kept, node.output[0]):
            editor.replace(node.output[0], kept)
            return


def _is_idle(editor: GraphEditor, node: Any, shapes: Shapes) -> bool:
    kind, source, output = node.op_type, node.input[0], node.output[0]
    if kind == "Identity":
        return True
    if kind == "Dropout":
        training = editor.value(node.input[2]) if len(node.input) > 2 and node.input[2] else None
        masks = any(name and (editor.readers(name) or name in editor.held) for name in node.output[1:])
        given = len(node.input) > 2 and bool(node.input[2])
        return not masks and (not given or (training is not None and not training.any()))
    if kind == "Cast":
        return bool(shapes.kinds.get(source, 0) == attribute(node, "to"))
    if kind == "Concat":
        return len(node.input) == 1
    if kind == "Transpose":
        axes = permutation(node)
        return bool(axes) and axes == sorted(axes)
    if kind == "Pad":
        pads = editor.value(node.input[1]) if len(node.input) > 1 else None
        return pads is not None and not pads.any()
    if kind == "Slice":
        steps = editor.value(node.input[4]) if len(node.input) > 4 else np.ones(1)
        return shapes.same(source, output) and steps is not None and bool((steps == 1).all())
    return kind in ("Expand", "Tile", *RESHAPES) and shapes.same(source, output)


def settle_reshapes(editor: GraphEditor, shapes: Shapes) -> None:
    """Make one Reshape to a constant shape of a chain of Reshape, Squeeze, Unsqueeze and Flatten, or of one whose shape is
    computed."""
    for node in editor.each(*RESHAPES):
        source = node.input[0]
        before = editor.producer(source, *RESHAPES)
        start = source
        while before is not None:
            start = before.input[0]
            before = editor.producer(start, *RESHAPES)
        computed = node.op_type == "Reshape" and node.input[1] not in editor.tensors
        if start == source and not computed:
            continue
        if shapes.same(start, node.output[0]):
            editor.replace(node.output[0], start)
            continue
        target = shapes.target(node.output[0])
        if target is not None and (computed or editor.only_reader(source) is node):
            shape = editor.constant("shape", np.asarray(target, np.int64))
            name = editor.add("Reshape", [start, shape], f"{node.output[0]}_settled")
            editor.replace(node.output[0], name)


def settle_expands(editor: GraphEditor, shapes: Shapes) -> None:
    """Take Expand out where its reader broadcasts anyway, and where it only gives a class token to every picture."""
    for node in editor.each("Expand"):
        full = shapes.of(node.output[0])
        for reader in editor.readers(node.output[0]):
            others = [name for name in reader.input if name != node.output[0]]
            if full and reader.op_type in BROADCASTING and any(shapes.of(name) == full for name in others):
                editor.set_inputs(reader, [node.input[0] if name == node.output[0] else name for name in reader.input])
    for node in editor.each("Concat"):
        _add_tokens(editor, node, shapes)


def _add_tokens(editor: GraphEditor, node: Any, shapes: Shapes) -> None:
    """Concat of constants that an Expand repeats over the batch, and one tensor: that tensor padded with zeros, plus a
    constant. No number changes: x + 0 is x, and 0 + c is c."""
    rank, kind = shapes.rank(node.output[0]), shapes.kinds.get(node.output[0])
    if rank is None or kind != editor.onnx.TensorProto.FLOAT:
        return
    axis = attribute(node, "axis") % rank
    pieces: list[np.ndarray | None] = []
    for name in node.input:
        expand = editor.producer(name, "Expand")
        value = editor.value(expand.input[0]) if expand is not None else None
        pieces.append(value if value is not None and value.ndim == rank and value.shape[0] == 1 else None)
    tokens = [name for name, piece in zip(node.input, pieces, strict=True) if piece is None]
    whole = shapes.of(node.output[0])
    if len(tokens) != 1 or len(pieces) < 2 or axis == 0 or whole is None:
        return
    size = [1, *whole[0][1:]]
    if any(list(shape[1:]) != size[1:] for shape in whole):
        return
    at, before, sizes = 0, 0, shapes.of(tokens[0])
    constant = np.zeros(size, np.float32)
    for piece in pieces:
        if piece is None:
            before = at
            at += sizes[0][axis] if sizes else 0
            continue
        where = [slice(None)] * rank
        where[axis] = slice(at, at + piece.shape[axis])
        constant[tuple(where)] = piece
        at += piece.shape[axis]
    if sizes is None or at != size[axis]:
        return
    pads = np.zeros(2 * rank, np.int64)
    pads[axis], pads[rank + axis] = before, size[axis] - before - sizes[0][axis]
    padded = editor.add("Pad", [tokens[0], editor.constant("token_pads", pads)], "tokens_padded")
    editor.replace(node.output[0], editor.add("Add", [padded, editor.constant("tokens", constant)], "tokens_added"))


def join_transposes(editor: GraphEditor, shapes: Shapes) -> None:
    """Make one Transpose of two, and none of two that undo each other, also through elementwise operators between them."""
    for node in editor.each("Transpose"):
        before = editor.producer(node.input[0], "Transpose")
        first, second = permutation(before) if before is not None else [], permutation(node)
        if first and second:
            both = [first[axis] for axis in second]
            if both == sorted(both):
                editor.replace(node.output[0], before.input[0])
            else:
                name = editor.add("Transpose", [before.input[0]], f"{node.output[0]}_joined", perm=both)
                editor.replace(node.output[0], name)
        elif second and cancels_above(editor, node, shapes):
            moved = _moved(editor, node.input[0], second, shapes)
            if not editor.replace(node.output[0], moved):
                editor.replace(node.output[0], editor.add("Identity", [moved], f"{node.output[0]}_same"))


def cancels_above(editor: GraphEditor, node: Any, shapes: Shapes) -> bool:
    """Whether a Transpose can be taken up through elementwise operators until it meets others that undo it everywhere."""
    return bool(permutation(node)) and _absorbs(editor, node.input[0], permutation(node), shapes, node)


def _absorbs(editor: GraphEditor, name: str, axes: list[int], shapes: Shapes, reader: Any) -> bool:
    """Whether a tensor, transposed by `axes`, can be had without a Transpose."""
    node = editor.producer(name)
    if node is None:
        return False
    if node.op_type == "Transpose":
        first = permutation(node)
        return bool(first) and [first[axis] for axis in axes] == list(range(len(axes)))
    if node.op_type not in ELEMENTWISE and node.op_type != "Concat":
        return False
    if editor.only_reader(name) is not reader or len(node.output) != 1:
        return False
    varying = [given for given in _tensor_inputs(node) if given not in editor.tensors]
    if node.op_type == "Concat" and len(varying) < len(node.input):
        return False
    return bool(varying) and all(
        shapes.rank(given) == len(axes) and _absorbs(editor, given, axes, shapes, node) for given in varying
    )


def _tensor_inputs(node: Any) -> list[str]:
    """Inputs that broadcast with the result; the bounds of a Clip are numbers."""
    return list(node.input)[:1] if node.op_type == "Clip" else list(node.input)


def _moved(editor: GraphEditor, name: str, axes: list[int], shapes: Shapes) -> str:
    """Rewire what `_absorbs` accepted, and return the name of the tensor that stands for the transposed one."""
    value = editor.value(name)
    if value is not None:
        if value.ndim == 0 or value.size == 1:
            return name
        full = value.reshape((1,) * (len(axes) - value.ndim) + value.shape)
        return editor.constant(f"{name}_moved", full.transpose(axes))
    node = editor.producer(name)
    if node.op_type == "Transpose":
        return str(node.input[0])
    kept = list(node.input)[len(_tensor_inputs(node)) :]
    settings = {entry.name: editor.onnx.helper.get_attribute_value(entry) for entry in node.attribute}
    if node.op_type == "Concat":
        settings["axis"] = axes.index(settings["axis"] % len(axes))
    inputs = [_moved(editor, given, axes, shapes) for given in _tensor_inputs(node)]
    return editor.add(node.op_type, [*inputs, *kept], f"{name}_moved", **settings)


def merge_pads(editor: GraphEditor, shapes: Shapes) -> None:
    """Take a Pad with zeros into the convolution or pooling behind it, where that is exact.

    A MaxPool pads with minus infinity: the same only for what is never below zero. An AveragePool counts padded zeros only
    when it is told to, so its own padding must be none or counted too.
    """
    for node in editor.each("Pad"):
        pads = editor.value(node.input[1]) if len(node.input) > 1 else attribute(node, "pads")
        fill = editor.value(node.input[2]) if len(node.input) > 2 and node.input[2] else np.zeros(1)
        if pads is None or attribute(node, "mode", "constant") != "constant" or fill is None or fill.any():
            continue
        sizes = np.asarray(pads)
        rank = len(sizes) // 2
        outer = [*sizes[:2], *sizes[rank : rank + 2]]
        if len(node.input) > 3 or rank < 3 or any(outer) or (sizes < 0).any():
            continue
        spatial = [int(size) for size in (*sizes[2:rank], *sizes[rank + 2 :])]
        for reader in editor.readers(node.output[0]):
            if _takes_zeros(editor, reader, node, spatial):
                _widen(reader, spatial)
                editor.set_inputs(reader, [node.input[0], *list(reader.input)[1:]])


def _takes_zeros(editor: GraphEditor, reader: Any, pad: Any, more: list[int]) -> bool:
    own, window = attribute(reader, "pads", []), attribute(reader, "kernel_shape", [])
    if list(reader.input).count(pad.output[0]) != 1 or reader.input[0] != pad.output[0]:
        return False
    if attribute(reader, "auto_pad", "NOTSET") not in ("NOTSET", "VALID") or attribute(reader, "ceil_mode", 0):
        return False
    if reader.op_type == "Conv":
        return True
    total = [mine + added for mine, added in zip(own or [0] * len(more), more, strict=True)]
    if any(size >= width for size, width in zip(total, [*window, *window], strict=False)):
        return False  # ONNX Runtime takes no padding as wide as the window
    if reader.op_type == "AveragePool":
        return not any(own) or bool(attribute(reader, "count_include_pad", 0))
    before = editor.producer(pad.input[0])
    positive = before is not None and before.op_type in ("Relu", "Sigmoid", "HardSigmoid", "Softmax")
    if before is not None and before.op_type == "Clip" and len(before.input) > 1:
        least = editor.value(before.input[1])
        positive = least is not None and bool((least >= 0).all())
    return bool(reader.op_type == "MaxPool" and positive and len(reader.output) == 1)


def _widen(reader: Any, spatial: list[int]) -> None:
    own = attribute(reader, "pads", [0] * len(spatial))
    set_attribute(reader, "pads", [mine + more for mine, more in zip(own, spatial, strict=True)])
    set_attribute(reader, "auto_pad", "NOTSET")
    if reader.op_type == "AveragePool":
        set_attribute(reader, "count_include_pad", 1)
