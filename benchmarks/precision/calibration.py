"""Ranges of activations on real photographs: one pass over the photographs, in the same memory however many there are."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from typing import Any

from fundus_rt.benchmarks.precision.histograms import Histogram
from fundus_rt.benchmarks.proof.graph_runs import GraphSession, copy_of
from fundus_rt.converters.backends import require
from fundus_rt.converters.precision.int8_graph import activations_of


def activation_histograms(
    model: Any, nodes: Collection[str], frames: Iterable[Any], show: Callable[[int], None] = lambda done: None
) -> dict[str, Histogram]:
    """How large the numbers get that would be rounded to int8.

    Args:
        model: the float32 `onnx.ModelProto`; it stays as it is.
        nodes: those that may be computed in int8, by name.
        frames: network inputs, [H, W, 3] each; answered one at a time, so memory is that of one picture's activations.
        show: told after each how many were answered.

    Returns:
        One distribution for each tensor.

    Raises:
        ValueError: an activation is not finite.
    """
    tapped = copy_of(model)
    onnx = require("onnx")
    names = activations_of(model, nodes)
    outputs = {value.name for value in tapped.graph.output}
    kind = onnx.TensorProto.FLOAT
    inputs = {value.name for value in tapped.graph.input}
    made = [name for name in names if name not in inputs]
    tapped.graph.output.extend(onnx.helper.make_tensor_value_info(name, kind, None) for name in made if name not in outputs)
    session = GraphSession(tapped)
    found = {name: Histogram() for name in names}
    for count, frame in enumerate(frames, 1):
        answered = session.run(frame[None])
        for name in names:
            found[name].add(answered.get(name, frame))
        show(count)
    return found


def ranges_by(histograms: dict[str, Histogram], method: str) -> dict[str, float]:
    """The number that 127 stands for in each tensor, rounded to float32's nearest, by one of `histograms.METHODS`."""
    return {name: float(one.range_by(method)) for name, one in histograms.items()}
