"""What a graph does to the numbers of a picture before its first convolution: one factor and one shift for each channel."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from fundus_rt.converters.graphs.graph_cleaning import constant_of, initializers_by_name, permutation
from fundus_rt.converters.graphs.graph_editor import attribute
from fundus_rt.converters.graphs.graph_names import captured_names
from fundus_rt.models.card import ModelCard

CHANGE = 1e-6
"""Relative difference below which a factor or shift does nothing."""
USUAL = (
    ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
    ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    ((0.406, 0.456, 0.485), (0.225, 0.224, 0.229)),
    ((0.0, 0.0, 0.0), (1 / 255, 1 / 255, 1 / 255)),
)
"""Mean and deviation, on values from 0 to 1, with which networks are usually trained: 0 to 1, -1 to 1, ImageNet's in RGB and
BGR, grey levels as they are."""


@dataclass(frozen=True)
class Step:
    """One node between the picture and the network."""

    node: Any
    factor: np.ndarray
    """Float64 [3]: result = value * factor + shift."""
    shift: np.ndarray
    channels_first: bool
    """Layout of the result."""


def affine_steps(graph: Any, name: str, channels_first: bool) -> Iterator[Step]:
    """Walk from a tensor through arithmetic with one constant for each channel, and the change of layout.

    Args:
        graph: an `onnx.GraphProto` whose constants are initializers; a node may be taken out once the next step is asked for.
        name: the tensor, four dimensions, three channels.
        channels_first: its layout.
    """
    while True:
        consumers = readers(graph, name)
        if len(consumers) != 1 or name not in consumers[0].input or any(value.name == name for value in graph.output):
            return
        node = consumers[0]
        factor, shift = np.ones(3), np.zeros(3)
        if node.op_type == "Transpose" and not channels_first and permutation(node) == [0, 3, 1, 2]:
            channels_first = True
        elif node.op_type in ("Mul", "Add", "Sub", "Div"):
            at = 1 - list(node.input).index(name)
            values = _per_channel(constant_of(graph, node.input[at]), channels_first)
            if values is None or (at == 0 and node.op_type in ("Sub", "Div")):
                return
            if node.op_type in ("Mul", "Div"):
                factor = values if node.op_type == "Mul" else 1.0 / values
            else:
                shift = values if node.op_type == "Add" else -values
        else:
            return
        name = node.output[0]
        yield Step(node, factor, shift, channels_first)


def grey_level_notes(model: Any, card: ModelCard) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """A note on what a graph does to its input before the network, and a warning where the card has done that already.

    Args:
        model: an `onnx.ModelProto`, cleaned, its input the card's normalised pixels.
        card: what prepares them.

    Returns:
        Notes and warnings, one sentence each; both empty where the graph computes nothing.
    """
    graph, spec = model.graph, card.preprocessing
    known = initializers_by_name(graph)
    inputs = [value for value in graph.input if value.name not in known]
    dims = [dim.dim_value for dim in inputs[0].type.tensor_type.shape.dim] if len(inputs) == 1 else []
    if len(dims) != 4 or 3 not in (dims[1], dims[3]):
        return (), ()
    factor, shift, kinds = _own_arithmetic(graph, inputs[0].name, dims[1] == 3)
    if np.allclose(factor, 1, rtol=CHANGE, atol=0) and np.allclose(shift, 0, atol=CHANGE):
        return (), ()
    said = (
        f"the graph itself computes value * {_numbers(factor)} + {_numbers(shift)} for its three channels before its first "
        f"convolution ({', '.join(kinds)})"
    )
    by_card = spec.scale / np.asarray(spec.std, np.float64), -np.asarray(spec.mean) / np.asarray(spec.std, np.float64)
    together = by_card[0] * factor, by_card[1] * factor + shift
    scales = not (np.allclose(by_card[0], 1) and np.allclose(by_card[1], 0))
    if not scales or _is_usual(*together):
        return (said,), ()
    ends = np.stack([together[1], together[1] + 255 * together[0]])
    return (said,), (
        f"{said}, and the card {card.name!r} scales too, so grey levels 0 to 255 reach it as {ends.min():.4g} to "
        f"{ends.max():.4g}: normalised twice, which is right only if it was trained so. Where it takes grey levels, give a card "
        f"with scale 1, mean 0 and std 1",
    )


def readers(graph: Any, name: str) -> list[Any]:
    """The nodes that read a tensor, by themselves or in the graphs inside them."""
    return [node for node in graph.node if name in node.input or name in captured_names(node)]


def _own_arithmetic(graph: Any, name: str, channels_first: bool) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Factor and shift for each channel of the input, and the operators that make them; exchanges of the colours are seen
    through."""
    factor, shift, kinds, turn = np.ones(3), np.zeros(3), [], 1
    while True:
        for step in affine_steps(graph, name, channels_first):
            factor, shift = factor * step.factor[::turn], shift * step.factor[::turn] + step.shift[::turn]
            name, channels_first = step.node.output[0], step.channels_first
            kinds += [step.node.op_type] if step.node.op_type != "Transpose" else []
        node = next(iter(readers(graph, name)), None)
        if node is None or not _exchanges_colours(graph, node, channels_first):
            return factor, shift, kinds
        turn, name = -turn, node.output[0]


def _exchanges_colours(graph: Any, node: Any, channels_first: bool) -> bool:
    """Whether a node turns RGB into BGR."""
    axis = 1 if channels_first else 3
    values = [constant_of(graph, name) for name in node.input[1:]]
    if any(value is None for value in values):
        return False
    numbers = [[int(number) for number in np.ravel(value)] for value in values if value is not None]
    if node.op_type == "Gather":
        return attribute(node, "axis", 0) % 4 == axis and numbers == [[2, 1, 0]]
    if node.op_type != "Slice" or len(numbers) != 4 or len(numbers[2]) != 1:
        return False
    return numbers[0] in ([-1], [2]) and numbers[1][0] < -3 and numbers[2][0] % 4 == axis and numbers[3] == [-1]


def _is_usual(factor: np.ndarray, shift: np.ndarray) -> bool:
    for mean, std in USUAL:
        if np.allclose(factor * 255 * std, 1, rtol=1e-2) and np.allclose(shift * std, -np.asarray(mean), atol=1e-2):
            return True
    return False


def _per_channel(values: np.ndarray | None, channels_first: bool) -> np.ndarray | None:
    """A constant as one number per channel, float64 [3]; None when it is none or varies over the picture."""
    if values is None:
        return None
    full = values.reshape((1,) * (4 - values.ndim) + values.shape) if values.ndim <= 4 else np.zeros((0, 0, 0, 0))
    axis = 1 if channels_first else 3
    allowed = [1, 1, 1, 1]
    allowed[axis] = full.shape[axis]
    if list(full.shape) != allowed or full.shape[axis] not in (1, 3):
        return None
    return np.broadcast_to(full.reshape(-1), (3,)).astype(np.float64)


def _numbers(values: np.ndarray) -> str:
    if np.allclose(values, values[0]):
        return f"{values[0]:.4g}"
    return "(" + ", ".join(f"{value:.4g}" for value in values) + ")"
