"""Attributes and inputs of single operators that TensorRT 10.3 refuses, though it reads the operator.

Source: the column "Restrictions" of the parser's operator table (see `operator_table`), and the static checks in its source.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from fundus_rt.converters.engines.lint_finding import LintFinding
from fundus_rt.converters.engines.lint_types import TypedGraph

Fault = tuple[str, str]
"""What is wrong, what to do."""
RESIZE_COORDINATES = ("half_pixel", "pytorch_half_pixel", "tf_half_pixel_for_nn", "asymmetric", "align_corners")


def node_findings(node: Any, typed: TypedGraph) -> list[LintFinding]:
    """Faults of one node whose operator is read."""
    check = _CHECKS.get(node.op_type)
    if check is None:
        return []
    attributes = {attribute.name: attribute for attribute in node.attribute}
    return [LintFinding.of(node, "attribute", *fault) for fault in check(node, attributes, typed)]


def _whole(attributes: dict[str, Any], name: str, default: int = 0) -> int:
    return int(attributes[name].i) if name in attributes else default


def _text(attributes: dict[str, Any], name: str, default: str) -> str:
    return attributes[name].s.decode(errors="replace") if name in attributes else default


def _input(node: Any, position: int) -> str:
    return node.input[position] if len(node.input) > position else ""


def _resize(node: Any, attributes: dict[str, Any], typed: TypedGraph) -> Iterator[Fault]:
    if _whole(attributes, "antialias"):
        yield "antialias is 1, read is 0", "resize before the network, or with two MatMul as the package's frame head does"
    mode = _text(attributes, "coordinate_transformation_mode", "half_pixel")
    if mode not in RESIZE_COORDINATES:
        yield f"coordinate_transformation_mode is {mode}, read are {', '.join(RESIZE_COORDINATES)}", "export with one of these"
    nearest = _text(attributes, "nearest_mode", "round_prefer_floor")
    if mode == "tf_half_pixel_for_nn" and nearest != "round_prefer_floor":
        yield f"nearest_mode is {nearest} with tf_half_pixel_for_nn, read is round_prefer_floor", "export with half_pixel"
    policy = _text(attributes, "keep_aspect_ratio_policy", "stretch")
    if policy != "stretch":
        yield f"keep_aspect_ratio_policy is {policy}, read is stretch", "compute the sizes before the network"


def _pool(node: Any, attributes: dict[str, Any], typed: TypedGraph) -> Iterator[Fault]:
    if "dilations" in attributes and any(step != 1 for step in attributes["dilations"].ints):
        yield f"dilations are {list(attributes['dilations'].ints)}, read is 1", "pool without dilation"
    if node.op_type == "MaxPool" and len(node.output) > 1 and node.output[1]:
        yield "its second output, the positions, is used", "compute them otherwise; only the largest values are read"
    if node.op_type == "LpPool" and _whole(attributes, "p", 2) not in (1, 2):
        yield f"p is {_whole(attributes, 'p', 2)}, read are 1 and 2", "pool with another norm"


def _norm(node: Any, attributes: dict[str, Any], typed: TypedGraph) -> Iterator[Fault]:
    if _whole(attributes, "training_mode"):
        yield "training_mode is 1", "export the network in evaluation mode"
    if node.op_type == "LayerNormalization" and any(node.output[1:]):
        yield "its mean or deviation is an output that is used, read is the first output", "export for inference"
    if node.op_type == "LpNormalization" and _whole(attributes, "p", 2) not in (1, 2):
        yield f"p is {_whole(attributes, 'p', 2)}, read are 1 and 2", "export with another norm"


def _dropout(node: Any, attributes: dict[str, Any], typed: TypedGraph) -> Iterator[Fault]:
    mode = _input(node, 2)
    value = typed.value(mode)
    if mode and (value is None or bool(value)):
        yield "training_mode is on, or is computed", "export the network in evaluation mode"


def _constant_input(position: int, what: str, remedy: str) -> Callable[..., Iterator[Fault]]:
    def check(node: Any, attributes: dict[str, Any], typed: TypedGraph) -> Iterator[Fault]:
        name = _input(node, position)
        if name and not typed.is_constant(name):
            yield f"its {what} is computed while the network runs, read is a constant", remedy

    return check


def _pad(node: Any, attributes: dict[str, Any], typed: TypedGraph) -> Iterator[Fault]:
    if _input(node, 3):
        yield "it says which axes it pads (input axes), which came with TensorRT 10.4", "pad with one pair of sizes per axis"


def _scatter(node: Any, attributes: dict[str, Any], typed: TypedGraph) -> Iterator[Fault]:
    if _text(attributes, "reduction", "none") != "none":
        yield f"reduction is {_text(attributes, 'reduction', 'none')}, read is none", "add or multiply with separate nodes"


def _constant(node: Any, attributes: dict[str, Any], typed: TypedGraph) -> Iterator[Fault]:
    for name in ("sparse_value", "value_string", "value_strings"):
        if name in attributes:
            yield f"it has {name}", "write the constant as ordinary numbers"


def _einsum(node: Any, attributes: dict[str, Any], typed: TypedGraph) -> Iterator[Fault]:
    letters = set(_text(attributes, "equation", "")) - set("abcdefghijklmnopqrstuvwxyz->., ")
    if letters:
        yield f"its equation has {', '.join(sorted(letters))}, read are small letters", "write the equation in small letters"


def _recurrent(node: Any, attributes: dict[str, Any], typed: TypedGraph) -> Iterator[Fault]:
    if _whole(attributes, "input_forget"):
        yield "input_forget is 1, read is 0", "export without coupled gates"
    if _whole(attributes, "layout"):
        yield "layout is 1, read is 0", "put the steps first"
    names = [text.decode() for text in attributes["activations"].strings] if "activations" in attributes else []
    if _text(attributes, "direction", "forward") == "bidirectional" and names[: len(names) // 2] != names[len(names) // 2 :]:
        yield "its two directions have different activations", "use the same for both"


def _branches(node: Any, attributes: dict[str, Any], typed: TypedGraph) -> Iterator[Fault]:
    if {"then_branch", "else_branch"} - set(attributes):
        return
    then, other = (list(attributes[name].g.output) for name in ("then_branch", "else_branch"))
    if {value.name for value in then} & {value.name for value in other}:
        yield "its two branches give outputs of the same name", "give each branch's outputs names of their own"
    ranks = [tuple(len(value.type.tensor_type.shape.dim) for value in values) for values in (then, other)]
    shaped = all(value.type.tensor_type.HasField("shape") for value in (*then, *other))
    if shaped and ranks[0] != ranks[1]:
        yield (
            f"its branches give {list(ranks[0])} and {list(ranks[1])} dimensions, read are equal numbers",
            "give both the same shape",
        )


def _loop(node: Any, attributes: dict[str, Any], typed: TypedGraph) -> Iterator[Fault]:
    carried = len(node.input) - 2
    if any(node.output[carried:]) and not (_input(node, 0) and typed.is_constant(_input(node, 0))):
        yield "it collects an output over a number of turns that is not constant", "give the number of turns as a constant"


def _argument(node: Any, attributes: dict[str, Any], typed: TypedGraph) -> Iterator[Fault]:
    if _whole(attributes, "select_last_index") and typed.opset < 12:
        yield "select_last_index is 1, before operator set 12", "export with operator set 17 to 19"


def _deform(node: Any, attributes: dict[str, Any], typed: TypedGraph) -> Iterator[Fault]:
    pads = list(attributes["pads"].ints) if "pads" in attributes else []
    if pads[: len(pads) // 2] != pads[len(pads) // 2 :]:
        yield f"its pads {pads} differ at the beginning and the end", "pad equally, with a Pad before it"


_CHECKS: dict[str, Callable[..., Iterator[Fault]]] = {
    "Resize": _resize, "AveragePool": _pool, "MaxPool": _pool, "LpPool": _pool, "BatchNormalization": _norm,
    "LayerNormalization": _norm, "LpNormalization": _norm, "Dropout": _dropout, "Pad": _pad, "ScatterND": _scatter,
    "Constant": _constant, "Einsum": _einsum, "LSTM": _recurrent, "GRU": _recurrent, "RNN": _recurrent, "If": _branches,
    "Loop": _loop, "ArgMax": _argument, "ArgMin": _argument, "DeformConv": _deform,
    "CumSum": _constant_input(1, "axis", "export with a fixed axis"),
    "OneHot": _constant_input(1, "depth", "export with a fixed number of classes"),
    "Squeeze": _constant_input(1, "axes", "export with fixed axes"),
    "Unsqueeze": _constant_input(1, "axes", "export with fixed axes"),
    **{
        f"Reduce{kind}": _constant_input(1, "axes", "export with fixed axes")
        for kind in ("L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "Sum", "SumSquare")
    },
}  # fmt: skip
