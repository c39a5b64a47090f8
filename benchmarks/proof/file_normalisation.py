"""What a shipped graph does to grey levels before its network, learnt from the graph and held against the checkpoint's own.

A shipped graph carries its normalisation: colour order and scale are folded into the first convolution, and at most one
multiplication and one addition are left before it. So the weights of that convolution, held against those of a fresh export of
the checkpoint, tell in which order the file takes the colours and by which factor and shift it differs.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fundus_rt.converters.backends import require
from fundus_rt.converters.graphs.graph_cleaning import initializers_by_name
from fundus_rt.converters.graphs.graph_editor import attribute
from fundus_rt.models.card import PreprocessingSpec

Numbers = NDArray[np.float64]

FIT_FLOAT = 2e-3
"""Largest part of a convolution's weights, by their norm, that may stay unexplained in float32 and float16 (2^-11 a weight)."""
FIT_QUANTISED = 0.05
"""The same for weights of eight bits."""
SAME_LEVELS_FLOAT = 0.02
"""Grey levels by which a file's normalisation may differ from the checkpoint's and count as the same: rounding of its weights."""
SAME_LEVELS_REDUCED = 0.5
"""The same for weights of half precision or eight bits."""


@dataclass(frozen=True)
class PixelMap:
    """The file answers grey levels x as the checkpoint, normalised as its author does, answers ``x[order] * factor + shift``."""

    order: tuple[int, ...]
    """For each of the checkpoint's channels in BGR, the channel of the file's frames that it sees."""
    factor: tuple[float, ...]
    shift: tuple[float, ...]
    """Grey levels."""
    source: str
    """Where it was learnt, for the reader: ``graph`` or ``card``."""

    def __call__(self, frames: NDArray[Any]) -> NDArray[np.float32]:
        """Frames [N, H, W, 3] in BGR as the checkpoint would have to see them: float32 grey levels, any value."""
        levels = frames.astype(np.float64)[..., list(self.order)] * np.array(self.factor) + np.array(self.shift)
        return np.ascontiguousarray(levels, np.float32)

    def back(self, frames: NDArray[Any]) -> NDArray[np.float32]:
        """The inverse: what the file would have to see to answer as the checkpoint answers `frames`."""
        levels = (frames.astype(np.float64) - np.array(self.shift)) / np.array(self.factor)
        return np.ascontiguousarray(levels[..., np.argsort(self.order)], np.float32)

    def largest_change(self) -> float:
        """Largest change of a grey level from 0 to 255; infinite where colours are exchanged."""
        if self.order != (0, 1, 2):
            return float("inf")
        ends = np.stack([np.array(self.shift), np.array(self.shift) + 255 * (np.array(self.factor) - 1)])
        return float(np.abs(ends).max())

    def describe(self, spec: PreprocessingSpec) -> str:
        """In words, as colour order, mean and deviation on values from 0 to 1; `spec` is the author's."""
        order = [2, 1, 0] if spec.color_order == "RGB" else [0, 1, 2]
        factor = np.array(self.factor)[order] * spec.scale / np.array(spec.std)
        shift = (np.array(self.shift)[order] * spec.scale - np.array(spec.mean)) / np.array(spec.std)
        seen = "".join("BGR"[self.order[channel]] for channel in order)
        return f"colours in the order {seen}, mean {_triple(-shift / (255 * factor))}, deviation {_triple(1 / (255 * factor))}"


IDENTITY = PixelMap((0, 1, 2), (1.0, 1.0, 1.0), (0.0, 0.0, 0.0), "graph")


@dataclass(frozen=True)
class Beginning:
    """A graph up to its first node that is no arithmetic on single pixels."""

    order: tuple[int, ...]
    """For each channel there, the channel of the frames, BGR."""
    factor: Numbers
    shift: Numbers
    """Float64 [3]: value = level * factor + shift."""
    operator: str
    kernel: Numbers | None
    """Weights [out, 3, h, w] where that node is a convolution of three channels with constant weights."""
    bias: Numbers
    padded: bool
    quantised: bool
    half: bool


def beginning_of(model: Any) -> Beginning:
    """Walk from the frames of a shipped graph to its first real node."""
    onnx = require("onnx")
    graph = model.graph
    known = initializers_by_name(graph)
    producers = {name: node for node in graph.node for name in node.output}
    order, factor, shift = [0, 1, 2], np.ones(3), np.zeros(3)
    name, quantised = "frames", False
    while True:
        readers = [node for node in graph.node if name in node.input and list(node.output) != ["receipt"]]
        node = readers[0] if len(readers) == 1 else None
        if node is None:
            return Beginning(tuple(order), factor, shift, "", None, np.zeros(0), False, quantised, False)
        values = [_constant(onnx, known, producers, read) for read in node.input if read != name]
        first = np.ravel(values[0]) if values and values[0] is not None else np.zeros(0)
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            quantised = True
        elif node.op_type == "Gather" and sorted(first.astype(int)) == [0, 1, 2]:
            turn = first.astype(int)
            order, factor, shift = [order[channel] for channel in turn], factor[turn], shift[turn]
        elif node.op_type in ("Mul", "Div", "Add", "Sub") and first.size in (1, 3) and node.input[0] == name:
            numbers = np.broadcast_to(first.astype(np.float64), (3,))
            factor, shift = {
                "Mul": (factor * numbers, shift * numbers),
                "Div": (factor / numbers, shift / numbers),
                "Add": (factor, shift + numbers),
                "Sub": (factor, shift - numbers),
            }[node.op_type]
        elif node.op_type not in ("Cast", "Transpose", "Identity"):
            break
        name = node.output[0]
    kernel = values[0] if node.op_type == "Conv" and attribute(node, "group", 1) == 1 and values else None
    bias = values[1] if kernel is not None and len(values) > 1 and values[1] is not None else np.zeros(0)
    if kernel is None or kernel.ndim != 4 or kernel.shape[1] != 3:
        return Beginning(tuple(order), factor, shift, node.op_type, None, bias, False, quantised, False)
    padded = any(attribute(node, "pads", [0])) or attribute(node, "auto_pad", "NOTSET") not in ("NOTSET", "VALID")
    wide = np.asarray(kernel, np.float64)
    return Beginning(
        tuple(order), factor, shift, "Conv", wide, np.asarray(bias, np.float64), padded, quantised, kernel.dtype == np.float16
    )


def pixel_map_of_graphs(file: Beginning, fresh: Beginning) -> PixelMap | None:
    """What a file's graph does to grey levels otherwise than the fresh export; None where their weights do not tell."""
    if (file.kernel is None) != (fresh.kernel is None):
        return None
    if file.kernel is None or fresh.kernel is None:
        return _from_arithmetic(file, fresh) if file.operator == fresh.operator != "Conv" else None
    if file.kernel.shape != fresh.kernel.shape:
        return None
    ours, ours_shift = _by_pixel_channel(file)
    theirs, their_shift = _by_pixel_channel(fresh)
    limit = FIT_QUANTISED if file.quantised or file.kernel.dtype.kind != "f" else FIT_FLOAT
    found = None
    for order in sorted(itertools.permutations(range(3)), key=lambda turn: (turn != (0, 1, 2), turn != (2, 1, 0))):
        ratio, left = _ratios(ours[:, list(order)], theirs)
        if ratio.min() > 0 and left <= limit and (found is None or left < 0.1 * found[2]):
            found = order, ratio, left
    if found is None:
        return None
    order, ratio, _ = found
    shift = ratio * ours_shift[list(order)] - their_shift
    more = _from_biases(file, fresh, theirs, limit)
    if more is None:
        return None
    shift = shift + more
    mapped = PixelMap(order, tuple(ratio.tolist()), tuple(shift.tolist()), "graph")
    same = SAME_LEVELS_REDUCED if file.half or file.quantised else SAME_LEVELS_FLOAT
    return IDENTITY if mapped.largest_change() <= same else mapped


def pixel_map_of_cards(file: PreprocessingSpec, author: PreprocessingSpec) -> PixelMap:
    """The same from what the file's own card and the author's card state."""
    channels = [[2, 1, 0] if spec.color_order == "RGB" else [0, 1, 2] for spec in (file, author)]
    order, factor, shift = [0, 1, 2], np.ones(3), np.zeros(3)
    for channel in range(3):
        at = channels[1][channel]
        order[at] = channels[0][channel]
        share = author.std[channel] / file.std[channel]
        factor[at] = file.scale * share / author.scale
        shift[at] = (author.mean[channel] - file.mean[channel] * share) / author.scale
    mapped = PixelMap(tuple(order), tuple(factor.tolist()), tuple(shift.tolist()), "card")
    return mapped if mapped.largest_change() > 1e-6 else PixelMap(IDENTITY.order, IDENTITY.factor, IDENTITY.shift, "card")


def _by_pixel_channel(begun: Beginning) -> tuple[Numbers, Numbers]:
    """Weights for the frames' own channels in BGR, and the grey levels that are added to these before."""
    assert begun.kernel is not None
    weights, shift = np.zeros_like(begun.kernel), np.zeros(3)
    for channel, at in enumerate(begun.order):
        weights[:, at] = begun.kernel[:, channel] * begun.factor[channel]
        shift[at] = begun.shift[channel] / begun.factor[channel]
    return weights, shift


def _ratios(ours: Numbers, theirs: Numbers) -> tuple[Numbers, float]:
    """Least-squares factor of each channel's weights, and the largest part of a channel that it leaves unexplained."""
    ratio, left = np.ones(3), 0.0
    for channel in range(3):
        mine, other = ours[:, channel].ravel(), theirs[:, channel].ravel()
        if other @ other > 0:
            ratio[channel] = (mine @ other) / (other @ other)
        size = float(np.linalg.norm(mine))
        rest = float(np.linalg.norm(mine - ratio[channel] * other))
        left = max(left, rest / size if size > 0 else float(bool(np.any(other))))
    return ratio, left


def _from_biases(file: Beginning, fresh: Beginning, theirs: Numbers, limit: float) -> Numbers | None:
    """Grey levels that lie in the difference of the two biases: a shift is folded into them where nothing is padded."""
    count = len(theirs)
    biases = [begun.bias if begun.bias.size else np.zeros(count) for begun in (file, fresh)]
    apart = biases[0] - biases[1]
    level = np.abs(theirs).sum(axis=(1, 2, 3))  # what one grey level can do to each result
    if (np.abs(apart) <= (SAME_LEVELS_REDUCED if file.half or file.quantised else SAME_LEVELS_FLOAT) * level).all():
        return np.zeros(3)
    if file.padded or count < 3:
        return None
    sums = theirs.sum(axis=(2, 3))
    shift, _, rank, _ = np.linalg.lstsq(sums, apart, rcond=1e-6)
    left = np.linalg.norm(apart - sums @ shift) / np.linalg.norm(apart)
    return np.asarray(shift, np.float64) if rank == 3 and left <= 10 * limit else None


def _from_arithmetic(file: Beginning, fresh: Beginning) -> PixelMap:
    """Where no convolution follows, factor and shift stand in the graphs as they are."""
    order, factor, shift = [0, 1, 2], np.ones(3), np.zeros(3)
    for channel in range(3):
        at = fresh.order[channel]
        order[at] = file.order[channel]
        factor[at] = file.factor[channel] / fresh.factor[channel]
        shift[at] = (file.shift[channel] - fresh.shift[channel]) / fresh.factor[channel]
    mapped = PixelMap(tuple(order), tuple(factor.tolist()), tuple(shift.tolist()), "graph")
    return IDENTITY if mapped.largest_change() <= SAME_LEVELS_FLOAT else mapped


def _constant(onnx: Any, known: dict[str, Any], producers: dict[str, Any], name: str) -> Any:
    """Value of a constant, seen through Cast and DequantizeLinear; None where it is none."""
    if name in known:
        return onnx.numpy_helper.to_array(known[name])
    node = producers.get(name)
    if node is None or node.op_type not in ("Cast", "DequantizeLinear", "Identity"):
        return None
    parts = [_constant(onnx, known, producers, read) for read in node.input]
    if any(part is None for part in parts):
        return None
    if node.op_type != "DequantizeLinear":
        return parts[0]
    stored, scale = parts[0].astype(np.float64), np.asarray(parts[1], np.float64)
    zero = np.asarray(parts[2], np.float64) if len(parts) > 2 else np.zeros_like(scale)
    if scale.ndim == 1 and scale.size > 1:
        along = [1] * stored.ndim
        along[attribute(node, "axis", 1)] = -1
        scale, zero = scale.reshape(along), zero.reshape(along)
    return (stored - zero) * scale


def _triple(values: Any) -> str:
    return "(" + ", ".join(f"{value + 0.0:.4g}" for value in np.round(values, 9)) + ")"
