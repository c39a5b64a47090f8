"""The shipped graph against the plain exporter's in ONNX Runtime, in turns, on the same pictures.

    python -m fundus_rt.benchmarks.conversion_speed CHECKPOINT CARD SHIPPED.onnx -o FILE.json

The plain exporter's graph is what `torch.onnx.export` or tf2onnx writes for the network as its own library computes it, from
the normalised float picture on. Where the checkpoint is an ONNX file it is that file's own graph, brought to an operator set
that is shipped and made to take any batch; of a SavedModel, tf2onnx' graph of its signature. The shipped graph begins with
grey levels and also sums the receipt, so it does more.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from fundus_rt.models.card import ModelCard, card_from_json

SECONDS = 12.0
"""What the rounds of one pair may take, about."""
ROUNDS = (9, 200)
"""Fewest and most rounds."""


def main() -> None:
    """Measure, and keep the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("card", type=Path)
    parser.add_argument("shipped", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--architecture")
    parser.add_argument("--trust-pickle", action="store_true")
    options = parser.parse_args()
    card = card_from_json(options.card.read_text())
    plain = plain_graph(options.checkpoint, card, options.architecture, options.trust_pickle)
    options.output.write_text(json.dumps(ratio(plain, options.shipped, card)))


def plain_graph(checkpoint_path: Path, card: ModelCard, named: str | None = None, trust: bool = False) -> Any:
    """The graph that the shipped one is held against: an `onnx.ModelProto` with a normalised float input.

    For PyTorch and Keras what the plain exporter writes. For an ONNX file no exporter runs: it is the file's own graph as
    `fundus_rt.converters.graphs.onnx_upgrade` and `onnx_batch` give it (functions inlined, Dropout taken out, the operator set
    changed, sizes of the batch rewritten where there were any), not yet cleaned. For a SavedModel it is what tf2onnx writes, its
    batch freed in the same way.
    """
    from fundus_rt.converters.architecture import identify_architecture
    from fundus_rt.converters.checkpoint import read_checkpoint

    return plain_graph_of(identify_architecture(read_checkpoint(checkpoint_path, trust), card, named).build(), card)


def plain_graph_of(network: Any, card: ModelCard) -> Any:
    """As `plain_graph`, of a `fundus_rt.converters.architecture.Network` that is built already."""
    from fundus_rt.converters.pytorch.torch_export import onnx_from_torch

    original = getattr(network, "original", None)
    return network.graph() if original is None else onnx_from_torch(original, card.preprocessing.input_size)


def ratio(plain: Any, shipped: Path, card: ModelCard, seconds: float = SECONDS) -> dict[str, Any]:
    """Time both graphs in turns, batch 1, in ONNX Runtime on the CPU.

    Args:
        plain: `onnx.ModelProto` with one float input.
        shipped: the shipped file.
        card: the shipped file's card.
        seconds: about how long to measure, each of two ways.

    Returns:
        ``plain_nodes``; ``speed_ratio``, the median over the rounds of the plain graph's time divided by the shipped one's
        (above 1 the shipped graph is faster) with its quartiles, wall-clock at ONNX Runtime's default settings;
        ``processor_ratio``, the same of processor time on one thread, which a busy machine disturbs less; the medians of
        both graphs in ms.
    """
    from fundus_rt.converters.parity import reference_tensor

    height, width = card.preprocessing.input_size
    frames = np.random.default_rng(0).integers(0, 256, (1, height, width, 3)).astype(card.preprocessing.input_dtype)
    pixels = reference_tensor(frames, card.preprocessing)
    graphs = (plain.SerializeToString(), str(shipped))
    found: dict[str, Any] = {"plain_nodes": len(plain.graph.node)}
    del plain
    for name, threads, clock in (("speed", 0, time.perf_counter), ("processor", 1, time.thread_time)):
        before, after = _times(graphs, pixels, frames, threads, clock, seconds)
        ratios = [first / second for first, second in zip(before, after, strict=True)]
        quartiles = statistics.quantiles(ratios, n=4)
        found[f"{name}_ratio"] = round(statistics.median(ratios), 3)
        found[f"{name}_ratio_quartiles"] = [round(quartiles[0], 3), round(quartiles[2], 3)]
        found[f"{name}_rounds"] = len(ratios)
        found[f"{name}_ms"] = [round(statistics.median(times) * 1e3, 2) for times in (before, after)]
    return found


def _times(
    graphs: tuple[bytes, str], pixels: np.ndarray, frames: np.ndarray, threads: int, clock: Callable[[], float], seconds: float
) -> tuple[list[float], list[float]]:
    """Seconds of every round of the plain and of the shipped graph, which take turns in going first."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads
    sessions = [onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"]) for graph in graphs]
    first = sessions[0].get_inputs()[0]
    given = [{first.name: np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)) if first.shape[1] == 3 else pixels}]
    given.append({sessions[1].get_inputs()[0].name: frames})
    once = 0.0
    for _ in range(2):
        started = time.perf_counter()
        for session, feed in zip(sessions, given, strict=True):
            session.run(None, feed)
        once = time.perf_counter() - started
    times: tuple[list[float], list[float]] = ([], [])
    for turn in range(int(min(max(seconds / once, ROUNDS[0]), ROUNDS[1]))):
        for which in (0, 1) if turn % 2 else (1, 0):
            begun = clock()
            sessions[which].run(None, given[which])
            times[which].append(clock() - begun)
    return times


if __name__ == "__main__":
    main()
