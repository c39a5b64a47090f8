"""What was tried towards the arithmetic floor on a processor, each in turns with the way as shipped: what pays, and what not.

    python -m fundus_rt.benchmarks.cpu_trials NAME.onnx [NAME.onnx ...]

Of the network alone on ONNX Runtime, beside OpenVINO's float32 where it is installed: several pictures in one inference, sessions
of one thread side by side, processes on cores of their own, weights or products in int8 without ranges, and two of ONNX Runtime's
graph optimisations left out. Of whole photographs: JPEGs decoded at half their size. Of products in int8 without ranges also what
they do to answers, and what another picture in the same inference does. The record goes to ``benchmarks/results``.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.util
import json
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from fundus_rt.benchmarks.environment import environment, label
from fundus_rt.benchmarks.pinned_processes import PinnedProcesses
from fundus_rt.benchmarks.speed.alternation import alternate
from fundus_rt.benchmarks.speed.order_statistics import median_ratio
from fundus_rt.converters.backends import require
from fundus_rt.converters.precision.heavy_nodes import HEAVY
from fundus_rt.converters.precision.int8_graph import quantisable, write_weights_int8
from fundus_rt.converters.precision.recipe import serialised, shipped_model
from fundus_rt.models.artifacts import atomic_path
from fundus_rt.models.card import ModelCard
from fundus_rt.models.registry import EXAMPLE_FOLDER
from fundus_rt.runtime.agreement import values_in_unit
from fundus_rt.runtime.decode import decode
from fundus_rt.runtime.field_of_view import find_field_of_view
from fundus_rt.runtime.onnx_providers import session_options
from fundus_rt.runtime.onnx_session import import_onnxruntime
from fundus_rt.runtime.openvino_session import OpenVinoSession
from fundus_rt.runtime.preprocess import tensor_from_frame
from fundus_rt.runtime.session import usable_cores

BATCHES = (2, 4, 8)
"""Pictures in one inference."""
LEFT_OUT = ("QuickGeluFusion", "NchwcTransformer")
"""ONNX Runtime's optimisations that are tried without: x * sigmoid(x) in one operator, and the layout in blocks of channels."""
SHIPPED = "as shipped"
OPENVINO = "OpenVINO, float32"
DYNAMIC = "linear layers in dynamic int8"


def main() -> None:
    """Measure, print and keep."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("files", type=Path, nargs="+", help=".onnx files in float32")
    parser.add_argument("--seconds", type=float, default=20.0, help="least duration of a comparison (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=12, help="least number of rounds (default: %(default)s)")
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results"), help="folder for the record")
    options = parser.parse_args()
    found = environment()
    rows = {path.stem: file_trials(path, options.seconds, options.rounds) for path in options.files}
    record = {"date": datetime.date.today().isoformat(), "environment": found, "files": rows}
    text = json.dumps(record, indent=1)
    options.results.mkdir(parents=True, exist_ok=True)
    kept = options.results / f"cpu-trials-{label(found)}.json"
    with atomic_path(kept) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")
    sys.stdout.write(f"{text}\nkept as {kept}\n")


def file_trials(path: Path, seconds: float, rounds: int) -> dict[str, Any]:
    """Every trial of one file.

    Args:
        path: in float32.
        seconds, rounds: as `fundus_rt.benchmarks.speed.alternation.alternate`.

    Returns:
        For the network, by trial: median milliseconds a picture, and how many times as fast as shipped with the interval of the
        pairs; for ``half size``, what decoding at half the size does to grey levels and answers; for ``dynamic int8``, what it
        does to answers.
    """
    model, card = shipped_model(path)
    frames, halves = _frames(card)
    with tempfile.TemporaryDirectory() as folder, PinnedProcesses(path, frames[0], usable_cores()) as processes:
        dynamic = _dynamic(path, Path(folder))
        ways = _ways(model, path, frames, dynamic)
        pictures = {name: count for name, (_, count) in ways.items()}
        calls = {name: call for name, (call, _) in ways.items()}
        for name, pinned in (("a process a core, pinned", True), ("a process a core, not pinned", False)):
            calls[name], pictures[name] = processes.answering(pinned), usable_cores()
        times = alternate(calls, seconds, rounds)
    each = {name: [second / pictures[name] for second in values] for name, values in times.items()}
    network = {
        name: {
            "ms_a_picture": round(1e3 * float(np.median(values)), 2),
            "times_as_fast": asdict(median_ratio(each[SHIPPED], values)),
        }
        for name, values in each.items()
    }
    return {
        "network": network,
        "half size": _half_size(path, card, frames, halves),
        "dynamic int8": _dynamic_answers(path.read_bytes(), dynamic, card, frames),
    }


def _ways(model: Any, path: Path, frames: np.ndarray, dynamic: bytes) -> dict[str, tuple[Callable[[int], Any], int]]:
    """By trial, what answers, and how many pictures it answers at once."""
    cores = usable_cores()
    shipped = _opened(path.read_bytes(), cores)
    ways = {SHIPPED: (_batches(shipped, frames, 1), 1)}
    for count in BATCHES:
        ways[f"{count} pictures in one inference"] = (_batches(shipped, frames, count), count)
    for name in LEFT_OUT:
        ways[f"without {name}"] = (_batches(_opened(path.read_bytes(), cores, [name]), frames, 1), 1)
    ways[f"{cores} sessions of one thread"] = (_side_by_side(path, frames, cores), cores)
    weights = require("onnx").ModelProto()
    weights.CopyFrom(model)
    write_weights_int8(weights, [name for name in quantisable(model) if _is_heavy(model, name)])
    ways["weights in int8"] = (_batches(_opened(serialised(weights), cores), frames, 1), 1)
    ways[DYNAMIC] = (_batches(_opened(dynamic, cores), frames, 1), 1)
    if importlib.util.find_spec("openvino") is not None:
        other = OpenVinoSession(path, threads=cores)
        ways[OPENVINO] = (lambda index: other.run(frames[index % len(frames)][None]), 1)
    return ways


def _dynamic(path: Path, folder: Path) -> bytes:
    """The file with the products of its linear layers in int8, by the range of each tensor as it comes, from ONNX Runtime."""
    quantization, made = require("onnxruntime.quantization"), folder / "dynamic.onnx"
    quantization.quantize_dynamic(str(path), str(made), op_types_to_quantize=["MatMul", "Gemm"], per_channel=True)
    return made.read_bytes()


def _dynamic_answers(content: bytes, dynamic: bytes, card: ModelCard, frames: np.ndarray) -> dict[str, Any]:
    """How far int8 without ranges moves answers, and how far a picture's answer moves with the others of its inference."""
    output = card.outputs[0]

    def answered(session: Any, batches: list[np.ndarray]) -> Any:
        return values_in_unit(np.concatenate([session.run([output.name], {"frames": batch})[0] for batch in batches]), output)

    lower = _opened(dynamic, usable_cores())
    before = answered(_opened(content, usable_cores()), [frame[None] for frame in frames])
    alone, together = answered(lower, [frame[None] for frame in frames]), answered(lower, [frames])
    return {
        "photographs": len(frames),
        "answers_largest": float(np.abs(alone - before).max()),
        "answers_largest_by_company": float(np.abs(together - alone).max()),
        "answers_apart": float(np.ptp(before, axis=0).max()),
        "unit": output.unit,
        "tolerance": output.tolerance,
    }


def _is_heavy(model: Any, name: str) -> bool:
    return any(node.op_type in HEAVY for node in model.graph.node if name in (node.name, node.output[0]))


def _opened(content: bytes, threads: int, left_out: list[str] | None = None) -> Any:
    ort = import_onnxruntime()
    options = session_options(ort, threads)
    return ort.InferenceSession(content, options, providers=["CPUExecutionProvider"], disabled_optimizers=left_out)


def _batches(session: Any, frames: np.ndarray, count: int) -> Callable[[int], Any]:
    places = [(np.arange(count) + first) % len(frames) for first in range(len(frames))]
    batches = [np.ascontiguousarray(frames[place]) for place in places]
    return lambda index: session.run(None, {"frames": batches[index % len(batches)]})


def _side_by_side(path: Path, frames: np.ndarray, count: int) -> Callable[[int], Any]:
    """A picture for each of several sessions at the same time."""
    answering = [_batches(_opened(path.read_bytes(), 1), frames, 1) for _ in range(count)]
    pool = ThreadPoolExecutor(count)
    return lambda index: list(pool.map(lambda place: answering[place](index + place), range(count)))


def _frames(card: ModelCard) -> tuple[np.ndarray, np.ndarray]:
    """The example photographs as the network takes them, decoded whole and at half their size."""
    whole, half = [], []
    for path in sorted(EXAMPLE_FOLDER.glob("*.jpg")):
        content = path.read_bytes()
        frame = decode(content).frame
        reduced = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_REDUCED_COLOR_2)
        view = find_field_of_view(frame)
        # the middle of pixel i at half the size is the middle of the pixels 2 i and 2 i + 1
        center = ((view.center[0] - 0.5) / 2, (view.center[1] - 0.5) / 2)
        whole.append(tensor_from_frame(frame, view, card.preprocessing))
        half.append(
            tensor_from_frame(np.asarray(reduced), replace(view, center=center, radius=view.radius / 2), card.preprocessing)
        )
    return np.stack(whole), np.stack(half)


def _half_size(path: Path, card: ModelCard, frames: np.ndarray, halves: np.ndarray) -> dict[str, Any]:
    """What decoding at half the size does to the network's input and to its answers."""
    session = _opened(path.read_bytes(), usable_cores())
    output = card.outputs[0]
    sides = [np.concatenate([session.run([output.name], {"frames": f[None]})[0] for f in side]) for side in (frames, halves)]
    before, after = (values_in_unit(side, output) for side in sides)
    levels = np.abs(frames.astype(np.float32) - halves)
    return {
        "photographs": len(frames),
        "grey_levels_mean": round(float(levels.mean()), 2),
        "grey_levels_largest": round(float(levels.max()), 1),
        "answers_largest": float(np.abs(before - after).max()),
        "unit": output.unit,
        "tolerance": output.tolerance,
    }


if __name__ == "__main__":
    main()
