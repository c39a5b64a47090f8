"""The whole measurement: every file in every scenario, then all ways in turns; what is finished stays when it is interrupted."""

from __future__ import annotations

import datetime
import itertools
import statistics
import time
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fundus_rt.benchmarks.environment import environment
from fundus_rt.benchmarks.speed.alternation import alternate
from fundus_rt.benchmarks.speed.arithmetic import arithmetic_of, ceiling
from fundus_rt.benchmarks.speed.call import FORMAT, OFFLINE, SINGLE_STREAM, BenchCall, Feedback, Measured
from fundus_rt.benchmarks.speed.machine_state import Reading, busy_warning, change, read_machine, tegrastats
from fundus_rt.benchmarks.speed.order_statistics import median_ratio, percentile, percentiles
from fundus_rt.benchmarks.speed.own_ways import (
    NETWORK_ONLY,
    OwnModel,
    Sample,
    open_own,
    read_photographs,
    samples_of,
    shifted_copies,
)
from fundus_rt.benchmarks.speed.processes import own_process
from fundus_rt.benchmarks.speed.scenarios import (
    WARM_UP,
    Answer,
    ServerTrial,
    highest_rate,
    offline,
    passes,
    queries_needed,
    server,
    single_stream,
)
from fundus_rt.models.errors import FundusRtError
from fundus_rt.runtime.session import ENGINE_SUFFIX, resolve_model

COPIES = 66
"""Different pictures of one photograph in the run that exposes caching."""
MEMORY_ANSWERS = 3
"""How often the process whose memory is measured answers each of its photographs."""
MEMORY_PHOTOGRAPHS = 4


def measure(call: BenchCall, feedback: Feedback) -> Measured:
    """Measure all that was asked for.

    Returns:
        The record and the times. After an interruption (Ctrl-C) `Measured.interrupted` is True and what was finished is there.

    Raises:
        UsageError: no photograph can be used, or a path is wrong.
        FundusRtError: a file cannot be opened, or a checkpoint cannot be read.
    """
    contents = read_photographs(call.images)
    began = read_machine()
    measured = Measured(_header(call, began))
    try:
        with feedback.step("Measuring this machine's ceiling with a matrix product"):
            measured.record["ceiling_gflop_s"] = ceiling(call.used_threads) / 1e9
        for file in call.files:
            _measure_file(call, file, contents, measured, feedback)
        if call.against is not None:
            from fundus_rt.benchmarks.speed.against import measure_against

            measure_against(call, contents, measured, feedback)
    except KeyboardInterrupt:
        measured.interrupted = measured.record["interrupted"] = True
    except FundusRtError as error:
        if not measured.record["files"]:
            raise
        measured.failure = error
        measured.warnings.append(f"ended early: {' '.join(str(error).split())}")
    whole = change(began, read_machine())
    measured.record["machine"] = whole
    warning = busy_warning(whole["others_share"])
    measured.warnings.extend([warning] if warning else [])
    return measured


def _header(call: BenchCall, began: Reading) -> dict[str, Any]:
    """What was asked for, without the photographs' names."""
    return {
        "format": FORMAT,
        "date": datetime.date.today().isoformat(),
        "environment": environment(),
        "asked": {
            "scenarios": list(call.scenarios), "parts": list(call.parts), "backend": call.backend, "device": call.device,
            "threads": call.used_threads, "workers": call.workers, "check": call.check, "seed": call.seed,
            "least_seconds": call.length.seconds, "least_samples": call.length.samples, "warm_up": WARM_UP,
        },
        "load_before": began.load,
        "warnings": [],
        "interrupted": False,
        "ceiling_gflop_s": None,
        "machine": None,
        "files": [],
        "against": None,
    }  # fmt: skip


def _measure_file(call: BenchCall, file: str, contents: list[bytes], measured: Measured, feedback: Feedback) -> None:
    """All of one file; its entry in the record grows as the run goes on."""
    with feedback.step(f"Opening {Path(file).name}"):
        own = open_own(file, call.backend, call.device, call.threads, call.check)
    with closing(own):
        samples, refused = samples_of(own.pipeline, contents)
        found = _identity(file, own)
        found |= {"photographs": len(samples), "refused": refused, "arithmetic": _arithmetic(file, measured)}
        found |= {"scenarios": {}, "same_against_unique": {}, "processes": None}
        measured.record["files"].append(found)
        for scenario in call.scenarios:
            for part in call.parts:
                with feedback.step(f"{found['name']}: {scenario}, {part}"):
                    result = _scenario(call, scenario, own.by_part(part, samples), len(samples), measured, (found["name"], part))
                found["scenarios"].setdefault(scenario, {})[part] = result
        with feedback.step(f"{found['name']}: {COPIES} different photographs of one cost"):
            different, _ = samples_of(own.pipeline, shifted_copies(samples[0].content, COPIES))
        for part in call.parts:
            with feedback.step(f"{found['name']}: one photograph against different ones, {part}"):
                unique = _same_against_unique(own, different, part, call.length.seconds, call.seed)
                found["same_against_unique"][part] = unique
        _share_of_floor(found)
    if call.processes:
        with feedback.step(f"{found['name']}: {call.processes} fresh processes"):
            found["processes"] = _processes(call, file, samples)


def _identity(file: str, own: OwnModel) -> dict[str, Any]:
    """Which file, and what computes it."""
    path, identity = resolve_model(file), own.pipeline.identity
    return {
        "name": path.name,
        "card": identity.name,
        "sha256": identity.sha256,
        "precision": identity.precision,
        "file_bytes": path.stat().st_size,
        "backend": asdict(own.pipeline.backend),
        "checked_by_acquisition_model": own.pipeline.checks,
        "load_s": own.load_s,
    }


def _arithmetic(file: str, measured: Measured) -> dict[str, Any]:
    """Operations of a picture, and the least time that they take at the ceiling."""
    path = resolve_model(file)
    if path.suffix == ENGINE_SUFFIX:
        return {"gflop": None, "floor_ms": None, "reason": "an engine does not show its graph", "share_of_floor": None}
    try:
        counted = arithmetic_of(path)
    except ImportError:
        return {"gflop": None, "floor_ms": None, "reason": "onnx is not installed (extra [convert])", "share_of_floor": None}
    gflop = None if counted.flop is None else counted.flop / 1e9
    floor_ms = None if gflop is None else gflop / measured.record["ceiling_gflop_s"] * 1e3
    return {"gflop": gflop, "floor_ms": floor_ms, "reason": counted.reason, "share_of_floor": None}


def _share_of_floor(found: dict[str, Any]) -> None:
    """The floor as a share of the network's own median, where both are known."""
    alone = found["scenarios"].get(SINGLE_STREAM, {}).get(NETWORK_ONLY)
    if alone and found["arithmetic"]["floor_ms"] is not None:
        found["arithmetic"]["share_of_floor"] = found["arithmetic"]["floor_ms"] / alone["median_ms"]


def _scenario(
    call: BenchCall, scenario: str, answer: Answer, samples: int, measured: Measured, where: tuple[str, str]
) -> dict[str, Any]:
    """One part of one file in one scenario."""
    with tegrastats() as power:
        before = read_machine()
        if scenario == SINGLE_STREAM:
            found, answers, seconds = _single_stream(call, answer, samples)
        elif scenario == OFFLINE:
            found, answers, seconds = _offline(call, answer, samples)
        else:
            found, answers, seconds = _server(call, answer, samples)
        after = read_machine()
    if seconds:
        name, part = where
        measured.latencies.append({"file": name, "scenario": scenario, "part": part, "way": "", "seconds": seconds})
    return {**found, "machine": change(before, after, answers, power)}


def _single_stream(call: BenchCall, answer: Answer, samples: int) -> tuple[dict[str, Any], int, list[float]]:
    seconds = single_stream(answer, samples, call.length, call.seed)
    return {**latency_figures(seconds), "rate": len(seconds) / sum(seconds)}, len(seconds) + WARM_UP, seconds


def _offline(call: BenchCall, answer: Answer, samples: int) -> tuple[dict[str, Any], int, list[float]]:
    passes_made = offline(answer, samples, call.workers, call.length)
    middle = percentile([one.rate for one in passes_made], 50)
    answers = sum(one.samples for one in passes_made)
    found = {
        "rate": answers / sum(one.samples / one.rate for one in passes_made),
        "rate_interval": None if middle.low is None else [middle.low, middle.high],
        "passes": len(passes_made),
        "answers": answers,
        "workers": call.workers,
    }
    return found, answers + max(WARM_UP, call.workers), []


def _server(call: BenchCall, answer: Answer, samples: int) -> tuple[dict[str, Any], int, list[float]]:
    """At the rate that was asked for, or a search; the latencies are those of the highest rate that passed."""
    bound_s = None if call.latency_bound_ms is None else call.latency_bound_ms / 1e3

    def one(rate: float, until: float | None) -> ServerTrial:
        return server(answer, samples, call.workers, rate, queries_needed(call.length, rate), call.seed, until)

    if call.rate is not None:
        trials = [one(call.rate, None)]
        chosen: ServerTrial | None = trials[0]
    else:
        assert bound_s is not None, "one of the two is given"
        limit = bound_s
        quick = offline(answer, samples, call.workers, type(call.length)(0.5, 4 * call.workers))
        trials = highest_rate(lambda rate: one(rate, limit), limit, 1.2 * statistics.median(p.rate for p in quick))
        chosen = max((t for t in trials if passes(t, limit)), key=lambda t: t.rate, default=None)
    answers = sum(len(trial.latencies) + WARM_UP for trial in trials)
    found = {
        "rate": None if chosen is None else chosen.rate,
        "searched": call.rate is None,
        "latency_bound_ms": call.latency_bound_ms,
        "keeps_bound": None if bound_s is None or chosen is None else passes(chosen, bound_s),
        "trials": [{"rate": t.rate, "queries": len(t.latencies), "complete": t.complete} for t in trials],
        "workers": call.workers,
        **(latency_figures(chosen.latencies) if chosen else {"median_ms": None, "percentiles_ms": {}, "answers": 0, "curve": []}),
    }
    return found, answers, chosen.latencies if chosen else []


def latency_figures(seconds: list[float]) -> dict[str, Any]:
    """Median, percentiles with their bounds, and the cumulative curve of times, in ms."""
    ordered = sorted(seconds)
    found = {f"p{p.percent}": asdict(p) for p in percentiles([value * 1e3 for value in seconds])}
    steps = min(len(ordered), 101)
    places = [round(step * (len(ordered) - 1) / max(steps - 1, 1)) for step in range(steps)]
    return {
        "answers": len(seconds),
        "median_ms": statistics.median(seconds) * 1e3,
        "percentiles_ms": found,
        "curve": [[ordered[place] * 1e3, (place + 1) / len(ordered)] for place in places],
    }


def _same_against_unique(own: OwnModel, different: list[Sample], part: str, seconds: float, seed: int) -> dict[str, Any]:
    """One picture again and again, in turns with different ones of the same cost: a ratio above 1 is a cache at work.

    No different one is asked for twice, so that a cache of any size shows.
    """
    answer, fresh = own.by_part(part, different), itertools.cycle(range(1, len(different)))
    answer(0)
    begun = time.perf_counter()
    answer(0)
    affordable = int(seconds / (4 * (time.perf_counter() - begun)))  # two answers of each way in a round
    rounds = max(1, min((len(different) - 1 - WARM_UP) // 2, max(6, affordable)))
    turn = alternate({"same": lambda index: answer(0), "unique": lambda index: answer(next(fresh))}, 0.0, rounds, seed)
    ratio = median_ratio(turn["unique"], turn["same"], seed)
    return {"unique_to_same": asdict(ratio), "rounds": len(turn["same"]), "pictures": len(different)}


def _processes(call: BenchCall, file: str, samples: list[Sample]) -> dict[str, Any]:
    """Cold starts, and the memory of one more process that answers several photographs."""
    photographs = [(sample.content, sample.eye) for sample in samples[:MEMORY_PHOTOGRAPHS]]
    options = (call.backend, call.device, call.threads, call.check)
    starts = [own_process(file, photographs[:1], 1, *options) for _ in range(call.processes)]
    longer = own_process(file, photographs, MEMORY_ANSWERS, *options)
    middle = percentile([start.first_answer_s for start in starts], 50)
    return {
        "what": "whole processes with the file cache warm; from the start to the first answer",
        "first_answer_s": statistics.median(start.first_answer_s for start in starts),
        "first_answer_interval_s": None if middle.low is None else [middle.low, middle.high],
        "first_answers_s": [start.first_answer_s for start in starts],
        "load_s": statistics.median(start.load_s for start in starts),
        "peak_bytes": longer.peak_bytes,
        "peak_answers": MEMORY_ANSWERS * len(photographs),
    }
