"""Ranges of activations on real photographs: one pass over the photographs, in the same memory however many there are."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from typing import Any

import numpy as np

from fundus_rt.benchmarks.precision.histograms import Histogram
from fundus_rt.benchmarks.proof.graph_runs import GraphSession, copy_of
from fundus_rt.converters.backends import require
from fundus_rt.converters.graphs.graph_editor import GraphEditor
from fundus_rt.converters.precision.heavy_nodes import before_first_layer
from fundus_rt.converters.precision.int8_graph import activations_of, bounds_of

HEADROOM = 1.25
"""How much further a range goes than the largest number that was met: a photograph whose numbers are clipped is answered
otherwise."""


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
    frame = None
    for count, frame in enumerate(frames, 1):
        answered = session.run(frame[None])
        for name in names:
            found[name].add(answered.get(name, frame))
        show(count)
    pixels = {name for node in before_first_layer(GraphEditor(model)) for name in node.output}.intersection(names)
    if frame is not None and pixels:  # black and white are the ends of what the first layer can ever read
        for level in (0, 255):
            answered = session.run(np.full_like(frame, level)[None])
            for name in pixels:
                found[name].add(answered[name])
    return found


def ranges_by(model: Any, histograms: dict[str, Histogram], method: str) -> dict[str, tuple[float, float]]:
    """What is kept as it is in each tensor, least and largest.

    Args:
        model: the graph of the histograms.
        histograms: from `activation_histograms`.
        method: one of `histograms.METHODS`. With ``max`` there is room of `HEADROOM` for photographs that go further than these,
            as far as the graph lets a tensor go at all; the other two clip on purpose.
    """
    found = {name: one.range_by(method) for name, one in histograms.items()}
    if method != "max":
        return found
    pixels = {name for node in before_first_layer(GraphEditor(model)) for name in node.output}
    bounds = bounds_of(model, histograms)
    for name in found.keys() - pixels:
        (least, most), (lowest, highest) = found[name], bounds[name]
        found[name] = max(lowest, HEADROOM * least) if least else 0.0, min(highest, HEADROOM * most) if most else 0.0
    return found
