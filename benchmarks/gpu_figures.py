"""From a decoded photograph and its crop to an answer on a GPU: our fused path, the bare network, ONNX Runtime, torch, the host.

    python -m fundus_rt.benchmarks.gpu_figures                              MobileNet, EfficientNet-B7, Swin-B, random weights
    python -m fundus_rt.benchmarks.gpu_figures --model joir-age.onnx        files that are there; leaves torch out

No way contains decoding, and none but ``field_of_view`` the search for the crop, which the processor does for each photograph
beforehand whatever computes the rest: a photograph costs the two together.

Every way takes its turn in every round of one run, on 4-megapixel photographs made from the examples. Engines are built anew, and
timed. The record goes to ``benchmarks/results``. Without a GPU nothing is measured and nothing written: exit status 2.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import os
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from fundus_rt.benchmarks import gpu_ways, published
from fundus_rt.benchmarks.environment import environment, run_measured
from fundus_rt.models.artifacts import atomic_path, sha256_of_file
from fundus_rt.models.engine_cache import EngineCache
from fundus_rt.models.errors import BackendUnavailableError, FundusRtError
from fundus_rt.models.registry import EXAMPLE_FOLDER
from fundus_rt.runtime.nvidia.machine import machine_identity
from fundus_rt.runtime.nvidia.tensorrt_session import TensorRTSession

MEGAPIXELS = 4.0
BATCHES = (1, 2, 4, 8, 16, 32)
FOR_ONE, FOR_BATCHES = "1,1,1", "1,16,32"
AIMS = {"mobilenet": 1.25, "efficientnet-b7": 1.05, "swin-base": 1.05}
"""Most of the fused path's time, as a multiple of the bare network's and the bytes' copy together."""
LIBRARIES = ("tensorrt", "tensorrt-cu12", "tensorrt-cu13", "cuda-python", "cuda-bindings", "onnxruntime-gpu")
WAYS = (
    "network_only", "copy_only", "fused", "field_of_view", "tensor_to_answer", "host_preprocessing", "host_and_network",
    "onnxruntime_cuda", "torch_eager_fp32", "torch_compile_fp16",
)  # fmt: skip
"""Rows of the table at batch 1, see `gpu_ways`."""
PROGRAM = [sys.executable, "-c", "from fundus_rt.runtime.cli import main; main()"]
NOT_YET = "not yet run"
"""What stands in a table where nothing was measured."""


def main() -> None:
    """Measure, print and keep."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", default=",".join(published.CARDS), help="comma-separated; made with random weights")
    parser.add_argument("--model", type=Path, action="append", default=[], help="an .onnx file instead; may be repeated")
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results"), help="folder for the record")
    options = parser.parse_args()
    try:
        machine = machine_identity(int(options.device.partition(":")[2] or 0))
    except BackendUnavailableError as error:
        sys.stderr.write(f"{NOT_YET}: no GPU ({error})\n")
        sys.exit(2)
    installed = {name: version for name in LIBRARIES if (version := _version(name))}
    record: dict[str, Any] = {
        "what": "milliseconds of wall-clock time from call to answer; every way once in every round. 'fused' begins with a "
        "decoded photograph whose crop is known; finding the crop is 'field_of_view', and decoding is in none",
        "date": datetime.date.today().isoformat(),
        "environment": {**environment(), "gpu": asdict(machine), "libraries": installed},
        "networks": {},
    }
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["FUNDUS_RT_CACHE"] = str(Path(scratch) / "cache")  # engines are built anew
        models = {path.stem: path for path in options.model} or _made(options.networks.split(","), Path(scratch))
        for name, path in models.items():
            record["networks"][name] = network_figures(name, path, options.device, options.rounds)
            sys.stdout.write("\n".join(table(name, record["networks"][name])) + "\n")
            target = options.results / f"{result_name(machine.gpu_name, record['networks'])}.json"
            options.results.mkdir(parents=True, exist_ok=True)
            with atomic_path(target) as temporary:  # what was measured is kept, whatever the next network does
                temporary.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
            sys.stdout.write(f"kept as {target}\n")


def network_figures(name: str, path: Path, device: str, rounds: int) -> dict[str, Any]:
    """Everything about one network: build, batch 1, the best batch, and what could not be measured and why.

    One engine is built for single pictures, and one for batches: TensorRT chooses its kernels for one size.
    """
    left_out: dict[str, str] = {}
    record = build_engine(path, FOR_ONE, device)
    with contextlib.ExitStack() as stack:
        session = stack.enter_context(TensorRTSession(path, device=device, contexts=1))
        found = {
            "engine": {"build_s": record.build_seconds, "megabytes": round(record.engine_bytes / 1e6, 1)},
            "backend": asdict(session.backend),
            "warnings": list(session.warnings),
            "aim_fused_to_network_and_copy": AIMS.get(name),
        }
        ways = dict(stack.enter_context(gpu_ways.engine_ways(session, photographs())))
        if "fused" not in ways:
            left_out["fused"] = "; ".join(session.warnings)
        ways |= other_ways(name, path, device, 1, session, left_out)
        times = alternate(ways, rounds)
    found["batch_1_ms"] = {way: spread(values) for way, values in times.items()}
    if "fused" in times:
        bound = [network + copied for network, copied in zip(times["network_only"], times["copy_only"], strict=True)]
        found["fused_to_network_and_copy"] = spread([f / b for f, b in zip(times["fused"], bound, strict=True)], 1.0)
    build_engine(path, FOR_BATCHES, device)
    with TensorRTSession(path, device=device, contexts=1) as session:
        found["by_batch_ms_a_picture"] = batches(session, name, path, device, max(rounds // 10, 5), left_out)
    found["left_out"] = left_out
    return found


def batches(
    session: TensorRTSession, name: str, path: Path, device: str, rounds: int, left_out: dict[str, str]
) -> dict[str, dict[str, Any]]:
    """Milliseconds a picture of each way at every batch size that the engine takes; by size, then by way."""
    assert session._engine is not None, "the session is open"
    most = session._engine.batch[1]
    found = {}
    for rows in (size for size in BATCHES if size <= most):
        bare = gpu_ways.BareNetwork(session, rows)
        batch = gpu_ways.noise(rows, session.card)
        ways: gpu_ways.Ways = {"network_only": bare, "tensor_to_answer": partial(session.run, batch)}
        ways |= other_ways(name, path, device, rows, session, left_out)
        found[str(rows)] = {way: spread(values, 1e3 / rows) for way, values in alternate(ways, rounds).items()}
        bare.close()
    return found


def other_ways(
    name: str, path: Path, device: str, rows: int, session: TensorRTSession, left_out: dict[str, str]
) -> gpu_ways.Ways:
    """ONNX Runtime and torch, as far as they are there; `left_out` gets what is not, and why."""
    found: gpu_ways.Ways = {}
    makers: dict[str, Callable[[], gpu_ways.Ways]] = {
        "onnxruntime_cuda": lambda: {"onnxruntime_cuda": gpu_ways.onnxruntime_way(path, device, rows, session.card)},
        "torch": lambda: gpu_ways.torch_ways(name, rows, device),
    }
    for other, make in makers.items():
        try:
            ways = make()
            for way in ways.values():
                way()
            found |= ways
        except (FundusRtError, ImportError, RuntimeError, KeyError) as error:
            reason = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
            if reason not in left_out.values():
                left_out[f"{other}, batch {rows} and above"] = reason
    return found


def alternate(ways: gpu_ways.Ways, rounds: int, clock: Callable[[], float] = time.perf_counter) -> dict[str, list[float]]:
    """Seconds of each way in each of `rounds` rounds; every round has all ways, beginning with another one each time."""
    for way in ways.values():
        for _ in range(3):  # recording of graphs, kernels that are chosen in the first runs
            way()
    times: dict[str, list[float]] = {name: [] for name in ways}
    names = list(ways)
    for turn in range(rounds):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            started = clock()
            ways[name]()
            times[name].append(clock() - started)
    return times


def spread(values: Sequence[float], unit: float = 1e3) -> dict[str, Any]:
    """Median, quartiles and 90th percentile of values times `unit`, and how many they are."""
    scaled = [value * unit for value in values]
    low, _, high = statistics.quantiles(scaled, n=4) if len(scaled) > 1 else scaled * 3
    return {
        "median": round(statistics.median(scaled), 4),
        "quartiles": [round(low, 4), round(high, 4)],
        "p90": round(float(np.percentile(scaled, 90)), 4),
        "rounds": len(scaled),
    }


def table(name: str, found: dict[str, Any]) -> list[str]:
    """One network's figures as lines of Markdown; what was not measured says so."""
    engine, aim = found["engine"], found["aim_fused_to_network_and_copy"]
    lines = [f"### {name}", "", f"engine of {engine['megabytes']} MB, built in {engine['build_s']:.0f} s", ""]
    lines += ["| way, batch 1 | median ms | quartiles |", "|---|---|---|"]
    for way in WAYS:
        figures = found["batch_1_ms"].get(way)
        shown = (
            f"{figures['median']:.3f} | {figures['quartiles'][0]:.3f} to {figures['quartiles'][1]:.3f}"
            if figures
            else f"{NOT_YET} | "
        )
        lines.append(f"| {way.replace('_', ' ')} | {shown} |")
    ratio = found.get("fused_to_network_and_copy")
    if ratio:
        verdict = "" if aim is None else f", aim {aim}: {'met' if ratio['median'] <= aim else 'missed'}"
        low, high = ratio["quartiles"]
        lines += ["", f"fused to network and copy: {ratio['median']:.3f} ({low:.3f} to {high:.3f}){verdict}"]
    best = best_batches(found["by_batch_ms_a_picture"])
    lines += [
        "",
        "best batch: " + (", ".join(f"{way} {ms:.3f} ms a picture at {rows}" for way, (rows, ms) in best.items()) or NOT_YET),
    ]
    return [*lines, *(f"left out: {what} ({why})" for what, why in found["left_out"].items()), ""]


def best_batches(by_batch: dict[str, dict[str, Any]]) -> dict[str, tuple[int, float]]:
    """By way the batch size with the least time for a picture, and that time in ms."""
    best: dict[str, tuple[int, float]] = {}
    for rows, ways in by_batch.items():
        for way, figures in ways.items():
            if way not in best or figures["median"] < best[way][1]:
                best[way] = (int(rows), figures["median"])
    return best


def result_name(gpu: str, networks: dict[str, Any]) -> str:
    """Name of the record: GPU, library and its version; no host name."""
    backend = next((found["backend"] for found in networks.values()), {"name": "none", "version": "0"})
    words = f"gpu-{gpu}-{backend['name']}{backend['version']}"
    return re.sub(r"[^a-z0-9.]+", "-", words.lower()).strip("-")


def build_engine(path: Path, batch: str, device: str) -> Any:
    """Build as `fundus-rt build` does on ``cuda:N``, for MIN,OPT,MAX pictures; the engine's record.

    The last built is what a session opens.
    """
    from fundus_rt.runtime.commands.build import build

    build.main([str(path), "--batch", batch, "--device", device], standalone_mode=False)
    return EngineCache().entries(sha256_of_file(path))[0]


def photographs() -> list[gpu_ways.Frame]:
    """Example photographs at 4 megapixels, decoded."""
    frames = []
    for path in sorted(EXAMPLE_FOLDER.glob("*.jpg")):
        frame = np.asarray(cv2.imread(str(path)), np.uint8)
        factor = (MEGAPIXELS * 1e6 / (frame.shape[0] * frame.shape[1])) ** 0.5
        frames.append(np.asarray(cv2.resize(frame, None, fx=factor, fy=factor, interpolation=cv2.INTER_CUBIC), np.uint8))
    return frames


def _made(names: Sequence[str], folder: Path) -> dict[str, Path]:
    """Networks with random weights, converted."""
    models = {}
    for name in names:
        checkpoint = published.write_checkpoint(name, folder)
        models[name] = folder / f"{name}.onnx"
        labels = [] if published.CARDS[name] == "joir-age" else ["--labels", "assumed"]
        run_measured([*PROGRAM, "convert", str(checkpoint), "--card", published.CARDS[name], "-o", str(models[name]), *labels])
    return models


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


if __name__ == "__main__":
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    main()
