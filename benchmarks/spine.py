"""From files to answers: how near ``infer`` comes to what the machine allows, and how far it is from the published way.

    python -m fundus_rt.benchmarks.spine                     MobileNet, start-up, memory, grey levels
    python -m fundus_rt.benchmarks.spine --networks all      EfficientNet-B7 and Swin-B as well

Everything is measured in one run, in turns, on the same 4-megapixel JPEGs made from the example photographs. Weights are
random: they cost the same arithmetic as published ones. The record goes to ``benchmarks/results``.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from fundus_rt.benchmarks import published
from fundus_rt.benchmarks.environment import environment, label, run_measured
from fundus_rt.benchmarks.greylevels import grey_level_table
from fundus_rt.models.registry import EXAMPLE_FOLDER, bundled_file, load_card
from fundus_rt.runtime.batch import Answerer, AnswerOptions
from fundus_rt.runtime.decode import decode
from fundus_rt.runtime.field_of_view import find_field_of_view
from fundus_rt.runtime.inputs import Item
from fundus_rt.runtime.pipeline import Pipeline
from fundus_rt.runtime.preprocess import tensor_from_frame

MEGAPIXELS = 4.0
MIRRORED = ("idrid_085", "idrid_205", "idrid_285", "haggstrom_right", "chase_03R")
"""Right eyes among the examples; they are mirrored, so that one ``--eye left`` holds for every picture of the benchmark."""
PROGRAM = [sys.executable, "-c", "from fundus_rt.runtime.cli import main; main()"]
"""The command line, in a process of its own."""


def main() -> None:
    """Measure, print and keep."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", default="mobilenet", help=f"comma-separated of {', '.join(published.CARDS)}, or all")
    parser.add_argument("--photographs", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results"), help="folder for the record")
    options = parser.parse_args()
    names = list(published.CARDS) if options.networks == "all" else options.networks.split(",")
    found = environment()
    record: dict[str, Any] = {"date": datetime.date.today().isoformat(), "environment": found}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        pictures = write_photographs(folder / "photographs", options.photographs)
        record["start"] = start_and_memory(pictures)
        record["grey_levels"] = grey_level_table()
        record["networks"] = {name: network_figures(name, folder, pictures, options.rounds) for name in names}
    text = json.dumps(record, indent=2)
    options.results.mkdir(parents=True, exist_ok=True)
    path = options.results / f"spine-{label(found)}.json"
    path.write_text(text + "\n")
    sys.stdout.write(f"{text}\nkept as {path}\n")


def write_photographs(folder: Path, count: int) -> list[Path]:
    """JPEGs of 4 megapixels, quality 92, each with other pixels, from the example photographs."""
    folder.mkdir()
    sources = []
    for path in sorted(EXAMPLE_FOLDER.glob("*.jpg")):
        frame = np.asarray(cv2.imread(str(path)))
        sources.append(frame[:, ::-1] if path.stem in MIRRORED else frame)
    paths = []
    for index in range(count):
        source = sources[index % len(sources)]
        factor = (MEGAPIXELS * 1e6 / (source.shape[0] * source.shape[1])) ** 0.5
        frame = cv2.resize(source, None, fx=factor, fy=factor, interpolation=cv2.INTER_CUBIC)
        frame = np.roll(frame, index // len(sources), axis=1)
        paths.append(folder / f"{index:04}.jpg")
        cv2.imwrite(str(paths[-1]), frame, [cv2.IMWRITE_JPEG_QUALITY, 92])
    return paths


def start_and_memory(pictures: list[Path], runs: int = 7) -> dict[str, Any]:
    """Process start to first answer with the bundled model, start to help, peak memory; medians of whole processes."""
    first = [run_measured([*PROGRAM, "infer", str(EXAMPLE_FOLDER / "idrid_005.jpg")]) for _ in range(runs)]
    help_text = [run_measured([*PROGRAM, "--help"]) for _ in range(runs)]
    many = run_measured([*PROGRAM, "infer", *map(str, pictures)])
    model_mb = bundled_file(load_card("acquisition")).stat().st_size / 1e6
    return {
        "what": "whole processes, file cache warm; memory is the peak resident set",
        "first_answer_s": median(first),
        "help_s": median(help_text),
        "peak_mb_one_small_picture": round(first[0][1], 1),
        "peak_mb_4_megapixels": round(many[1], 1),
        "peak_mb_aim": round(model_mb * 3 + 200, 1),
    }


def network_figures(name: str, folder: Path, pictures: list[Path], rounds: int) -> dict[str, Any]:
    """Rates and core-times of one network; `rounds` turns of every way, the median of each kept."""
    checkpoint = published.write_checkpoint(name, folder)
    model = folder / f"{name}.onnx"
    order = ["--labels", "assumed"] if any(o.labels_assumed for o in load_card(published.CARDS[name]).outputs) else []
    run_measured([*PROGRAM, "convert", str(checkpoint), "--card", published.CARDS[name], *order, "-o", str(model)])
    cores = int(environment()["cores"])
    pipeline = Pipeline(model, threads=1)
    unchecked = Pipeline(model, threads=1, check=False)
    eye = "left" if pipeline.card.laterality == "mirror-left" else None
    times = core_times(pipeline, pictures)
    slow = times["network"] > 0.2
    some = pictures[: 2 * cores] if slow else pictures
    ways: dict[str, Callable[[], float]] = {
        "infer": lambda: infer_rate(pipeline, some, cores, eye),
        "infer_no_check": lambda: infer_rate(unchecked, some, cores, eye),
        "network_one_thread_a_picture": lambda: network_rate(pipeline, some, cores),
        "network_all_cores_a_picture": lambda: network_rate(Pipeline(model, threads=cores), some, 1),
    }
    answer = published.open_published(name, checkpoint)
    answer(pictures[0])
    ways["published"] = lambda: rate(lambda: [answer(path) for path in some[:6]], len(some[:6]))
    rates: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(rounds):
        for way, measure in ways.items():
            rates[way].append(measure())
    middle = {way: statistics.median(values) for way, values in rates.items()}
    stages = ("decode", "resize", "network")
    bound = cores / sum(times[stage] for stage in stages)
    return {
        "what": "pictures a second on 4-megapixel JPEGs, median of alternating rounds; core-times of one thread in ms",
        "core_ms": {stage: round(value * 1e3, 2) for stage, value in times.items()},
        "rates": {way: round(value, 3) for way, value in middle.items()},
        "bound_of_decode_resize_network": round(bound, 3),
        "infer_to_bound": round(middle["infer"] / bound, 3),
        "infer_no_check_to_bound": round(middle["infer_no_check"] / bound, 3),
        "infer_to_bare_network": round(middle["infer"] / max(middle["network_one_thread_a_picture"], 1e-9), 3),
        "infer_to_published": round(middle["infer"] / middle["published"], 2),
        "rounds": {way: [round(v, 3) for v in values] for way, values in rates.items()},
    }


def core_times(pipeline: Pipeline, pictures: list[Path], most: int = 12) -> dict[str, float]:
    """Median processor seconds of one thread for each stage of one picture."""
    found: dict[str, list[float]] = {"decode": [], "field_of_view": [], "resize": [], "network": []}
    spec = pipeline.card.preprocessing
    for path in pictures[:most]:
        decoded = timed(found["decode"], decode, path.read_bytes())
        view = timed(found["field_of_view"], find_field_of_view, decoded.frame)
        tensor = timed(found["resize"], tensor_from_frame, decoded.frame, view, spec)
        timed(found["network"], pipeline._session.run, tensor[None])
    return {stage: statistics.median(values) for stage, values in found.items()}


def timed(times: list[float], work: Callable[..., Any], *arguments: Any) -> Any:
    """Do `work` and append its thread's processor seconds."""
    started = time.thread_time()
    value = work(*arguments)
    times.append(time.thread_time() - started)
    return value


def infer_rate(pipeline: Pipeline, pictures: list[Path], workers: int, eye: str | None) -> float:
    """Pictures a second from files to rows, everything included but the start of the process."""
    answerer = Answerer(pipeline, AnswerOptions(eye), workers, 1, frozenset())
    items = [Item(str(path)) for path in pictures]

    def run() -> None:
        failed = [row["error"] for row in answerer.rows(items) if row["error"]]
        if failed:
            raise RuntimeError(failed[0])

    return rate(run, len(pictures))


def network_rate(pipeline: Pipeline, pictures: list[Path], threads: int) -> float:
    """Pictures a second of the bare ONNX Runtime call on ready tensors, `threads` calls at once."""
    height, width = pipeline.card.preprocessing.input_size
    rng = np.random.default_rng(0)
    tensors = [rng.integers(0, 256, (1, height, width, 3), dtype=np.uint8) for _ in pictures]
    opened: Any = pipeline._session._session  # the guard's own session, which holds ONNX Runtime's
    session = opened._session
    session.run(None, {"frames": tensors[0]})

    def run() -> None:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(lambda tensor: session.run(None, {"frames": tensor}), tensors))

    return rate(run, len(tensors))


def rate(work: Callable[[], Any], count: int) -> float:
    """Pictures a second of wall-clock time."""
    started = time.perf_counter()
    work()
    return count / (time.perf_counter() - started)


def median(measured: list[tuple[float, float]]) -> float:
    """Median of the seconds of several `run_measured`."""
    return round(statistics.median(seconds for seconds, _ in measured), 3)


if __name__ == "__main__":
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    main()
