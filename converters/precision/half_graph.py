"""A float32 graph with chosen nodes in half precision: float16 weights, and a Cast wherever the precision changes.

What a processor answers to such a graph proves nothing, for ONNX Runtime computes it there in float32; it is judged by
`fundus_rt.benchmarks.proof.half_precision`, or on a GPU.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np

from fundus_rt.converters.graphs.graph_editor import GraphEditor
from fundus_rt.converters.graphs.graph_values import carry_shapes
from fundus_rt.converters.precision.heavy_nodes import before_first_layer, named
from fundus_rt.converters.precision.int8_graph import ACTIVATIONS
from fundus_rt.models.errors import UsageError

DELICATE = (
    *("LayerNormalization", "InstanceNormalization", "GroupNormalization", "Softmax", "LogSoftmax", "Pow", "Sqrt", "Exp", "Log"),
    *("Reciprocal", "GlobalAveragePool", "Cast", "CastLike", "Shape", "Size", "Resize", "Constant", "ConstantOfShape", "Range"),
    *("QuantizeLinear", "DequantizeLinear", "If", "Loop"),
)
"""Operators that stay in float32: sums and squares that overflow 65,504 or lose their small parts, and what is no arithmetic."""


def halvable(model: Any) -> list[str]:
    """Nodes that may be computed in half precision, in the order of the graph.

    Left out are `DELICATE` operators, sums over axes, what makes an output (the receipt among them), and what stands before the
    first layer with weights of its own: grey levels and their normalisation.
    """
    editor = GraphEditor(model)
    kinds = carry_shapes(editor).kinds
    single = editor.onnx.TensorProto.FLOAT
    before = {id(node) for node in before_first_layer(editor)}
    return [
        name
        for name, node in named(model).items()
        if node.op_type not in DELICATE
        and not node.op_type.startswith("Reduce")
        and id(node) not in before
        and not editor.held.intersection(node.output)
        and any(kinds.get(read) == single for read in node.input)
        and all(kinds.get(made) == single for made in node.output if made)
    ]


def halvable_beside(model: Any, int8: Collection[str]) -> list[str]:
    """`halvable` nodes of a float32 graph that nothing in int8 needs: neither its own nodes nor the activations behind them.

    Args:
        model: as `halvable`.
        int8: names of the nodes that are computed in int8.
    """
    editor, nodes = GraphEditor(model), named(model)
    taken = {id(nodes[name]) for name in int8}
    for name in int8:
        after = editor.only_reader(nodes[name].output[0], *ACTIVATIONS)
        taken |= {id(after)} if after is not None else set()
    return [name for name in halvable(model) if id(nodes[name]) not in taken]


def write_half(model: Any, chosen: Collection[str]) -> None:
    """Put the chosen nodes of a graph into half precision.

    Args:
        model: an `onnx.ModelProto` in the shipped form, float32; changed in place. Its inputs and outputs keep their types.
        chosen: names of nodes (`heavy_nodes.named`), each one of `halvable`.

    Raises:
        UsageError: a node is not there or has to stay in float32, or a weight is beyond half precision's largest number.
    """
    wrong = sorted(set(chosen) - set(halvable(model)))
    if wrong:
        raise UsageError(f"the node {wrong[0]!r} cannot be computed in half precision; the recipe was written for another file")
    editor = GraphEditor(model)
    kinds = carry_shapes(editor).kinds
    inside = {id(node) for name, node in named(model).items() if name in set(chosen)}
    single, half = editor.onnx.TensorProto.FLOAT, editor.onnx.TensorProto.FLOAT16
    narrowed: dict[str, str] = {}
    for node in [node for node in editor.nodes if id(node) in inside]:
        reads = []
        for name in node.input:
            maker = editor.producer(name)
            if kinds.get(name) != single or (maker is not None and id(maker) in inside):
                reads.append(name)
                continue
            if name not in narrowed:
                narrowed[name] = _narrowed(editor, name, half)
            reads.append(narrowed[name])
        editor.set_inputs(node, reads)
    for node in [node for node in editor.nodes if id(node) in inside]:
        for name in list(node.output):
            _widened(editor, name, inside, single)
    editor.commit()


def _narrowed(editor: GraphEditor, name: str, half: int) -> str:
    """A tensor in half precision: a weight stored so, a number by a Cast."""
    weights = editor.value(name)
    if weights is None:
        return editor.add("Cast", [name], f"{name}/half", to=half)
    with np.errstate(over="ignore"):
        rounded = weights.astype(np.float16)
    if not np.isfinite(rounded).all():
        raise UsageError(
            f"the weights {name!r} reach {np.abs(weights).max():.3g}, half precision ends at 65504; leave its node out"
        )
    return editor.constant(f"{name}/half", rounded)


def _widened(editor: GraphEditor, name: str, inside: set[int], single: int) -> None:
    """Give readers in float32 what a node in half precision made."""
    outside = {id(one): one for one in editor.readers(name) if id(one) not in inside}
    if outside:
        wide = editor.add("Cast", [name], f"{name}/single", to=single)
        for reader in outside.values():
            editor.set_inputs(reader, [wide if read == name else read for read in reader.input])
