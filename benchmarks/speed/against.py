"""Every way to one checkpoint's answers, in turns in one process, after each has shown that its answers are the original's."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from fundus_rt.benchmarks.proof.author_card import author_card
from fundus_rt.benchmarks.proof.original import OriginalModel
from fundus_rt.benchmarks.speed.alternation import alternate
from fundus_rt.benchmarks.speed.bench import latency_figures
from fundus_rt.benchmarks.speed.call import BenchCall, Feedback, Measured
from fundus_rt.benchmarks.speed.order_statistics import median_ratio
from fundus_rt.benchmarks.speed.own_ways import NETWORK_ONLY, Sample, open_own, samples_of
from fundus_rt.benchmarks.speed.peers import Missing, Way, framework_ways, prepared_originals, runtime_ways, torch_threads
from fundus_rt.models.card import OutputSpec
from fundus_rt.models.errors import FundusRtError
from fundus_rt.runtime.agreement import values_in_unit

CPU_BACKENDS = ("onnxruntime", "openvino")
COMPARED = 8
"""Photographs on which a way has to answer as the first one does."""


def measure_against(call: BenchCall, contents: list[bytes], measured: Measured, feedback: Feedback) -> None:
    """Open all ways, compare their answers, and time those that agree, round by round in a seeded order.

    `measured.record["against"]` is filled as parts are finished.

    Raises:
        FundusRtError: the checkpoint or a file cannot be opened, or no photograph can be answered.
    """
    assert call.against is not None, "asked for"
    with ExitStack() as stack:
        own = open_own(call.files[0], call.backend, call.device, call.threads, call.check)
        stack.callback(own.close)
        samples, _ = samples_of(own.pipeline, contents)
        author = author_card(own.pipeline.card, call.card)
        with feedback.step("Loading the original network in its own framework"):
            original = OriginalModel(call.against, author.card, call.architecture, call.trust_pickle, feedback.say)
            stack.callback(original.close)
        stack.enter_context(torch_threads(call.used_threads))
        with feedback.step("Opening every way"):
            prepared = prepared_originals(original, samples)
            found = [
                *framework_ways(original, prepared, call.used_threads, call.torch_compile),
                *runtime_ways(original, prepared),
                *_own_ways(call, samples, original.card.outputs[0].name, stack),
                *(_gpu_ways(call, original, prepared.images) if call.device != "cpu" else ()),
            ]
        ways = [way for way in found if isinstance(way, Way)]
        wrong = [
            {"name": way.name, "part": None, "problem": "", "reason": way.reason} for way in found if isinstance(way, Missing)
        ]
        record: dict[str, Any] = {
            "framework": original.framework,
            "network": original.description,
            "versions": original.versions,
            "checkpoint_sha256": original.checkpoint_sha256,
            "photographs": len(samples),
            "wrong": wrong,
            "parts": {},
        }
        measured.record["against"] = record
        reference = [ways[0].answer(index) for index in range(min(COMPARED, len(samples)))] if ways else []
        for part in call.parts:
            output = own.pipeline.card.outputs[0]
            right, apart = _answering_alike([way for way in ways if way.part == part], reference, output, wrong)
            with feedback.step(f"{len(right)} ways in turns, {part.replace('_', ' ')}"):
                record["parts"][part] = _timed(call, right, apart, len(samples), part, measured)


def _own_ways(call: BenchCall, samples: Sequence[Sample], output: str, stack: ExitStack) -> Iterator[Way | Missing]:
    """Every file on every backend, in both parts."""
    backends = CPU_BACKENDS if call.device == "cpu" else ("onnxruntime", "tensorrt")
    for file in call.files:
        for backend in backends:
            name = f"{Path(file).name}, {backend}"
            try:
                opened = open_own(file, backend, call.device, call.threads, call.check)
            except FundusRtError as error:
                yield Missing(name, " ".join(str(error).split())[:200])
                continue
            stack.callback(opened.close)
            for part in call.parts:
                precision = opened.pipeline.identity.precision
                yield Way(name, part, _own_answer(opened.by_part(part, samples), len(samples), output), precision)


def _own_answer(answer: Callable[[int], Any], count: int, output: str) -> Callable[[int], np.ndarray]:
    return lambda index: np.asarray(answer(index % count)[output])


def _gpu_ways(call: BenchCall, original: OriginalModel, images: list[np.ndarray]) -> Iterator[Way | Missing]:
    """torch on the GPU, eager and compiled; ONNX Runtime with CUDA is among the files' own ways."""
    names = ("PyTorch on the GPU, eager", "PyTorch on the GPU, torch.compile")
    if original.framework != "pytorch":
        yield from (Missing(name, f"the checkpoint is of {original.framework}") for name in names)
        return
    import copy

    import torch

    try:
        eager = copy.deepcopy(original.network.original).to(call.device)
    except (RuntimeError, AssertionError) as error:  # torch without CUDA asserts
        yield from (Missing(name, " ".join(str(error).split())[:200]) for name in names)
        return

    def way(network: Any) -> Callable[[int], np.ndarray]:
        def answer(index: int) -> np.ndarray:
            with torch.inference_mode():
                given = torch.from_numpy(np.ascontiguousarray(images[index % len(images)].transpose(0, 3, 1, 2)))
                return np.asarray(network(given.to(call.device)).cpu().numpy()[0])

        return answer

    yield Way(names[0], NETWORK_ONLY, way(eager))
    if not call.torch_compile:
        return
    try:
        compiled = way(torch.compile(eager, mode="reduce-overhead"))
        compiled(0)
    except Exception as error:  # the compiler raises classes of its own
        yield Missing(names[1], f"{type(error).__name__}: {' '.join(str(error).split())[:200]}")
        return
    yield Way(names[1], NETWORK_ONLY, compiled)


def _answering_alike(
    ways: list[Way], reference: list[np.ndarray], output: OutputSpec, wrong: list[dict[str, Any]]
) -> tuple[list[Way], list[float]]:
    """The ways whose answers are the first way's within what the card allows, with their largest difference in the card's unit.

    The others are added to `wrong`.
    """
    right: list[Way] = []
    apart: list[float] = []
    for way in ways:
        try:
            answers = [way.answer(index) for index in range(len(reference))]
            problem, difference = difference_to(reference, answers, output, way.precision)
        except FundusRtError as error:
            problem, difference = " ".join(str(error).split())[:200], 0.0
        if problem:
            wrong.append({"name": way.name, "part": way.part, "problem": f"WRONG: {problem}", "reason": ""})
        else:
            right.append(way)
            apart.append(difference)
    return right, apart


def difference_to(
    reference: list[np.ndarray], answers: list[np.ndarray], output: OutputSpec, precision: str = "fp32"
) -> tuple[str, float]:
    """Why answers are not the reference's, or an empty text, and the largest difference in the card's unit.

    Args:
        reference, answers: float32 [columns] for each photograph, before the card's activation.
        output: of the shipped card; its tolerance decides, and its budget where the answers are of lower precision.
        precision: of the graph that gave `answers`.
    """
    if any(first.shape != second.shape for first, second in zip(reference, answers, strict=True)):
        return f"got answers of shape {list(answers[0].shape)}, expected {list(reference[0].shape)}", 0.0
    first, second = values_in_unit(np.stack(reference), output), values_in_unit(np.stack(answers), output)
    largest = float(np.abs(first - second).max())
    if not largest <= (allowed := output.allowed(precision)):
        return f"answers differ by up to {largest:.3g} {output.unit}, allowed is {allowed:g}", largest
    return "", largest


def _timed(call: BenchCall, ways: list[Way], apart: list[float], samples: int, part: str, measured: Measured) -> dict[str, Any]:
    """Times of every way, and how many times as fast as the first each is, by the rounds' ratios."""
    rounds = max(call.length.samples // 4, 12)
    seconds = alternate({way.name: way.answer for way in ways}, call.length.seconds * len(ways), rounds, call.seed)
    found = []
    for way, difference in zip(ways, apart, strict=True):
        times = seconds[way.name]
        figures = latency_figures(times)
        ratio = median_ratio(seconds[ways[0].name], times, call.seed)
        found.append({"name": way.name, **figures, "first_to_this": asdict(ratio), "largest_difference": difference})
        series = {"file": "", "scenario": "in turns", "part": part, "way": way.name, "seconds": times}
        measured.latencies.append(series)
    return {"rounds": len(next(iter(seconds.values()), [])), "samples": samples, "ways": found}
