"""What the last operators of a graph make of its numbers: probabilities, their logarithms, or neither.

The range of a tensor is carried from sigmoids, softmaxes and exponentials through what follows them, as in interval arithmetic:
the mean of two probabilities, or one minus one, is a probability still, and a sigmoid times 100 is none.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from fundus_rt.converters.backends import require

SAME = frozenset(("Identity", "Reshape", "Squeeze", "Unsqueeze", "Flatten", "Transpose", "Cast", "Dropout", "Clip"))
SAME |= frozenset(("Expand", "Tile"))
"""Operators that leave numbers, and which of them belong together, what they are."""
CHOOSING = frozenset(("Slice", "Gather", "Split"))
"""Operators that hand on a part of the numbers."""
EXTREME = frozenset(("ReduceMax", "ReduceMin", "GlobalMaxPool", "MaxPool"))
AVERAGING = frozenset(("ReduceMean", "GlobalAveragePool", "AveragePool")) | EXTREME
"""Operators whose results lie between the least and the largest number that they are given. The largest of several classes'
probabilities is how sure a network is, and no class's probability."""
SOURCES = {
    "Sigmoid": (0.0, 1.0, "sigmoid"),
    "HardSigmoid": (0.0, 1.0, "sigmoid"),
    "Tanh": (-1.0, 1.0, "sigmoid"),
    "Softplus": (0.0, math.inf, "sigmoid"),
    "Exp": (0.0, math.inf, "sigmoid"),
    "Softmax": (0.0, 1.0, "softmax"),
    "LogSoftmax": (-math.inf, 0.0, "softmax"),
}
"""Range of what an operator gives, whatever it is given, and which activation it is, or is a part of."""
ROUNDING = frozenset(("Round", "Floor", "Ceil"))
DEEPEST = 100
"""Operators behind an activation, at most."""
MOST_SUMMED = 1e6
"""Numbers that one sum adds up, at most; how many they are is not looked up."""
SUM_ERROR = 1e-3
"""How far from 1 the float32 probabilities of classes that exclude each other may add up."""


@dataclass(frozen=True)
class Span:
    """Between which numbers a tensor lies, and where they come from."""

    lowest: float
    highest: float
    sources: frozenset[tuple[str, str]]
    """Output and kind (``sigmoid`` or ``softmax``) of every activation that it is made of."""
    chosen: bool = False
    """Whether a part of them was chosen on the way."""
    mixed: bool = False
    """Whether they were computed with, so that only the numbers tell which of them add up to 1."""


def activation_inside(model: Any, output: str, answers: np.ndarray | None = None) -> str:
    """What a graph has applied to the numbers of an output.

    Args:
        model: an `onnx.ModelProto`.
        output: name of the output.
        answers: float [N, columns] of the network for different pictures. Whether probabilities out of a softmax add up to 1
            for each of them tells all the classes of one softmax from parts of it and from several; without answers the graph
            alone is asked.

    Returns:
        ``softmax`` where the numbers are probabilities of classes that exclude each other, ``sigmoid`` for probabilities of
        their own (one chosen out of a softmax among them), ``log-softmax`` for logarithms of the first, of which a softmax
        makes them again, ``logarithm`` for those of others, ``changed`` for what arithmetic has made of them (a probability in
        percent, one moved around zero, a tanh), and ``none`` for any other numbers: those of a linear layer, and log-odds, which
        are unbounded on both sides again.
    """
    span = _Spans(model).of(output)
    if span is None:
        return "none"
    likely = span.lowest >= -SUM_ERROR and span.highest <= 1 + SUM_ERROR
    logarithm = span.lowest < -3 and span.highest <= SUM_ERROR
    if not likely and not logarithm:
        unbounded = span.lowest == -math.inf and span.highest == math.inf
        return "changed" if span.sources and not unbounded else "none"
    exclusive = _is_exclusive(span, _width_of(model, output), answers, logarithm)
    if logarithm:
        return "log-softmax" if exclusive else "logarithm"
    return "softmax" if exclusive else "sigmoid"


def _is_exclusive(span: Span, width: int, answers: np.ndarray | None, logarithm: bool) -> bool:
    """Whether probabilities, or their logarithms, are those of classes that exclude each other."""
    of_softmax = any(kind == "softmax" for _, kind in span.sources)
    by_graph = of_softmax and len(span.sources) == 1 and not span.mixed and not (span.chosen and (logarithm or width == 1))
    known = answers is not None and answers.ndim == 2 and answers.shape[1] > 1 and bool(np.isfinite(answers).all())
    if not known or not (of_softmax or span.mixed):
        return by_graph
    numbers = np.asarray(answers, np.float64)
    sums = (np.exp(numbers) if logarithm else numbers).sum(axis=1)
    return bool(np.abs(sums - 1).max() < SUM_ERROR)


def _width_of(model: Any, output: str) -> int:
    """Columns of an output as the graph declares them; 0 where it does not."""
    dims = [dim.dim_value for value in model.graph.output if value.name == output for dim in value.type.tensor_type.shape.dim]
    return dims[-1] if dims else 0


class _Spans:
    """The spans of a graph's tensors, found from an output upwards."""

    def __init__(self, model: Any) -> None:
        self.producers = {name: node for node in model.graph.node for name in node.output if name}
        self.constants = {tensor.name: tensor for tensor in model.graph.initializer}
        for node in model.graph.node:
            if node.op_type == "Constant" and node.attribute[0].HasField("t"):
                self.constants[node.output[0]] = node.attribute[0].t
        self.found: dict[str, Span | None] = {}

    def of(self, name: str, depth: int = 0) -> Span | None:
        """The span of a tensor; None where nothing is known of its numbers."""
        if name not in self.found:
            self.found[name] = None  # a tensor that is asked about again on the way comes from itself
            self.found[name] = self._made(name, depth + 1) if depth < DEEPEST else None
        return self.found[name]

    def _made(self, name: str, depth: int) -> Span | None:
        node = self.producers.get(name)
        if name in self.constants or node is None:
            return self._constant(name)
        kind = node.op_type
        if kind in ("Exp", "Log"):
            return self._exponential(node, depth)
        if kind in SOURCES:
            lowest, highest, activation = SOURCES[kind]
            return Span(lowest, highest, frozenset([(name, activation)]))
        if kind == "Div" and self._divides_by_own_sum(node):
            inner = self.of(node.input[0], depth)
            if self.producers[node.input[0]].op_type == "Exp":
                return Span(0.0, 1.0, frozenset([(name, "softmax")]))
            return _rounded(inner, "LpNormalization") if inner is not None else None
        if kind in SAME or kind in CHOOSING or kind in AVERAGING:
            inner = self.of(node.input[0], depth)
            if inner is None or kind in SAME:
                return inner
            if kind in EXTREME and any(activation == "softmax" for _, activation in inner.sources):
                return None
            return replace(inner, chosen=True) if kind in CHOOSING else replace(inner, mixed=True)
        if kind in ("ReduceSum", "ReduceL1"):
            inner = self.of(node.input[0], depth)
            return _summed(inner) if kind == "ReduceSum" or inner is None or inner.lowest >= 0 else None
        if kind in ROUNDING or kind == "LpNormalization":
            inner = self.of(node.input[0], depth)
            return None if inner is None else _rounded(inner, kind)
        if kind in ("MatMul", "Gemm"):
            return self._scaled(node, depth)
        if kind in _JOINING:
            parts = [self.of(part, depth) for part in (node.input[1:] if kind == "Where" else node.input)]
            spans = [part for part in parts if part is not None]
            return _joined(kind, spans) if len(spans) == len(parts) else None
        return None

    def _scaled(self, node: Any, depth: int) -> Span | None:
        """A product with a constant that scales each column by itself. Any other mixes what comes from a hidden layer."""
        factors = self.constants.get(node.input[1])
        matrix = None if factors is None else np.asarray(require("onnx").numpy_helper.to_array(factors))
        if matrix is None or matrix.ndim != 2 or len(matrix) != len(matrix.T) or np.any(matrix - np.diag(np.diag(matrix))):
            return None
        inner, ends = self.of(node.input[0], depth), np.diag(matrix)
        if inner is None or len(node.input) > 2:
            return None
        return _joined("Mul", [inner, Span(float(ends.min()), float(ends.max()), frozenset())])

    def _constant(self, name: str) -> Span | None:
        tensor = self.constants.get(name)
        if tensor is None:
            return None
        values = np.asarray(require("onnx").numpy_helper.to_array(tensor))
        if not values.size or values.dtype.kind not in "iuf":
            return None
        return Span(float(values.min()), float(values.max()), frozenset())

    def _exponential(self, node: Any, depth: int) -> Span | None:
        """An exponential, which is positive whatever it is made of, or the logarithm of what is known."""
        inner = self.of(node.input[0], depth)
        if node.op_type == "Exp":
            if inner is None or not inner.sources:
                return Span(0.0, math.inf, frozenset([(node.output[0], "sigmoid")]))
            with np.errstate(over="ignore"):
                return replace(inner, lowest=float(np.exp(inner.lowest)), highest=float(np.exp(inner.highest)))
        if inner is None or inner.lowest < 0:
            return None
        with np.errstate(divide="ignore"):
            return replace(inner, lowest=float(np.log(inner.lowest)), highest=float(np.log(inner.highest)))

    def _divides_by_own_sum(self, node: Any) -> bool:
        """Whether numbers are divided by their sum; of exponentials that is a softmax written out."""
        above, below = (self.producers.get(name) for name in node.input)
        return (
            above is not None and below is not None and below.op_type in ("ReduceSum", "ReduceL1")
            and below.input[0] == node.input[0]
        )  # fmt: skip


def _rounded(span: Span, kind: str) -> Span | None:
    """The span of whole numbers, or of numbers divided by their sum or norm."""
    if kind == "LpNormalization":
        return replace(span, lowest=0.0, highest=1.0, mixed=True) if span.lowest >= 0 and span.sources else None
    if not math.isfinite(span.lowest) or not math.isfinite(span.highest):
        return replace(span, mixed=True)
    return replace(span, lowest=float(math.floor(span.lowest)), highest=float(math.ceil(span.highest)), mixed=True)


def _summed(span: Span | None) -> Span | None:
    """The span of a sum of one or many numbers."""
    if span is None or not span.sources:
        return None
    lowest = span.lowest if span.lowest >= 0 else span.lowest * MOST_SUMMED
    return replace(span, lowest=lowest, highest=span.highest * (MOST_SUMMED if span.highest > 0 else 1), mixed=True)


def _joined(kind: str, spans: list[Span]) -> Span | None:
    """The span of an operator that takes several tensors."""
    sources: frozenset[tuple[str, str]] = frozenset().union(*(span.sources for span in spans))
    ends = _JOINING[kind](spans)
    if not sources or ends is None or any(math.isnan(end) for end in ends):
        return None
    joined = Span(ends[0], ends[1], sources, any(span.chosen for span in spans), any(span.mixed for span in spans))
    if kind == "Concat":
        return replace(joined, chosen=True)
    if kind not in ("Min", "Max"):
        return replace(joined, mixed=True)
    if sum(bool(span.sources) for span in spans) == 1:
        return joined  # the others are bounds
    return None if any(activation == "softmax" for _, activation in sources) else replace(joined, mixed=True)


def _hull(spans: list[Span]) -> tuple[float, float] | None:
    return min(span.lowest for span in spans), max(span.highest for span in spans)


def _least(spans: list[Span]) -> tuple[float, float] | None:
    return min(span.lowest for span in spans), min(span.highest for span in spans)


def _largest(spans: list[Span]) -> tuple[float, float] | None:
    return max(span.lowest for span in spans), max(span.highest for span in spans)


def _sum(spans: list[Span]) -> tuple[float, float] | None:
    return sum(span.lowest for span in spans), sum(span.highest for span in spans)


def _difference(spans: list[Span]) -> tuple[float, float] | None:
    return (spans[0].lowest - spans[1].highest, spans[0].highest - spans[1].lowest)


def _negative(spans: list[Span]) -> tuple[float, float] | None:
    return -spans[0].highest, -spans[0].lowest


def _product(spans: list[Span]) -> tuple[float, float] | None:
    return _extremes(a * b for a in _ends(spans[0]) for b in _ends(spans[1]))


def _quotient(spans: list[Span]) -> tuple[float, float] | None:
    if spans[1].lowest <= 0 <= spans[1].highest:
        return None
    return _extremes(a / b for a in _ends(spans[0]) for b in _ends(spans[1]))


def _power(spans: list[Span]) -> tuple[float, float] | None:
    if spans[0].lowest < 0 or spans[1].lowest != spans[1].highest or spans[1].lowest <= 0:
        return None
    return spans[0].lowest ** spans[1].lowest, spans[0].highest ** spans[1].lowest


def _inverse(spans: list[Span]) -> tuple[float, float] | None:
    return _quotient([Span(1.0, 1.0, frozenset()), spans[0]])


def _root(spans: list[Span]) -> tuple[float, float] | None:
    return (math.sqrt(spans[0].lowest), math.sqrt(spans[0].highest)) if spans[0].lowest >= 0 else None


def _ends(span: Span) -> tuple[float, float]:
    return span.lowest, span.highest


def _extremes(numbers: Iterable[float]) -> tuple[float, float]:
    """Least and largest; NaN where one of them is (infinity times zero)."""
    found = list(numbers)
    return (math.nan, math.nan) if any(math.isnan(number) for number in found) else (min(found), max(found))


_JOINING: dict[str, Callable[[list[Span]], tuple[float, float] | None]] = {
    "Concat": _hull,
    "Mean": _hull,
    "Where": _hull,
    "Pow": _power,
    "Min": _least,
    "Max": _largest,
    "Add": _sum,
    "Sum": _sum,
    "Sub": _difference,
    "Neg": _negative,
    "Mul": _product,
    "Div": _quotient,
    "Reciprocal": _inverse,
    "Sqrt": _root,
}
"""Range of what an operator makes of the ranges that it is given."""
