"""MLPerf Inference's scenarios: single stream, offline, and server with Poisson arrivals.

The definitions are those of the MLPerf Inference rules: in *single stream* the next query is sent when the last was answered; in
*offline* all samples are there at once; in *server* queries arrive by a Poisson process, and a latency counts from the moment the
query was due, so that waiting in the queue is part of it.
"""

from __future__ import annotations

import math
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from fundus_rt.benchmarks.speed.order_statistics import interval_ranks, samples_needed

WARM_UP = 5
"""Answers before the clock counts, of every way in every scenario."""
LOWEST_SHARE = 0.2
"""Where the search for the highest rate begins, as a share of what cannot be exceeded."""
SEARCH_STEPS = 6
"""Halvings of the logarithm of the rate in the search for the highest one."""

Answer = Callable[[int], Any]
"""Answers the sample of an index, see `fundus_rt.benchmarks.speed.own_ways`; raises what goes wrong."""


@dataclass(frozen=True)
class Length:
    """How long a scenario runs: until both are reached."""

    seconds: float
    samples: int


@dataclass(frozen=True)
class Pass:
    """One pass of *offline*."""

    samples: int
    rate: float
    """Samples a second."""


@dataclass(frozen=True)
class ServerTrial:
    """One run at one rate."""

    rate: float
    """Scheduled arrivals a second."""
    latencies: list[float]
    """Seconds from the scheduled arrival to the answer, in the order of arrival; fewer than asked for where it was cut short."""
    complete: bool
    """False: cut short, because so many queries were late that the rate could not pass any more."""


def single_stream(answer: Answer, samples: int, length: Length, seed: int) -> list[float]:
    """Seconds of each query, one after the other.

    Args:
        answer: what is measured.
        samples: how many samples there are; they are asked for in a seeded order, again and again.
        length: least duration and least number of queries.
        seed: of the order.
    """
    order = np.random.default_rng(seed).permutation(samples)
    _warm_up(answer, samples)
    times: list[float] = []
    begun = time.perf_counter()
    while len(times) < length.samples or time.perf_counter() - begun < length.seconds:
        index = int(order[len(times) % samples])
        started = time.perf_counter()
        answer(index)
        times.append(time.perf_counter() - started)
    return times


def offline(answer: Answer, samples: int, workers: int, length: Length) -> list[Pass]:
    """Samples a second of whole passes: all samples are handed over at once and taken by `workers` threads.

    Args:
        answer, samples: as `single_stream`.
        workers: how many are answered at once.
        length: least duration of all passes, and least number of samples in them.

    Returns:
        Every pass.
    """
    each = max(samples, 4 * workers)
    found: list[Pass] = []
    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(lambda index: answer(index % samples), range(max(WARM_UP, workers))))
        begun = time.perf_counter()
        while len(found) * each < length.samples or time.perf_counter() - begun < length.seconds:
            started = time.perf_counter()
            for _ in pool.map(lambda index: answer(index % samples), range(each)):
                pass
            found.append(Pass(each, each / (time.perf_counter() - started)))
    return found


def server(
    answer: Answer, samples: int, workers: int, rate: float, queries: int, seed: int, bound_s: float | None = None
) -> ServerTrial:
    """Answer queries that arrive by a Poisson process.

    Args:
        answer, samples: as `single_stream`.
        workers: how many queries are answered at once; the others wait in one queue.
        rate: arrivals a second.
        queries: how many arrive.
        seed: of the arrivals and of the samples.
        bound_s: where given, stop as soon as p99 can no longer be shown to be below it.

    Raises:
        Whatever `answer` raises, once the other queries under way have ended.
    """
    rng = np.random.default_rng(seed)
    due = np.cumsum(rng.exponential(1 / rate, queries))
    which = rng.integers(0, samples, queries)
    _warm_up(answer, samples)
    latencies: list[float | None] = [None] * queries
    errors: list[BaseException] = []
    waiting: queue.SimpleQueue[int | None] = queue.SimpleQueue()
    stop = threading.Event()
    late_allowed = late_queries_allowed(queries)
    late = [0]
    begun = time.perf_counter() + 0.01

    def work() -> None:
        while (query := waiting.get()) is not None and not stop.is_set():
            try:
                answer(int(which[query]))
            except BaseException as error:
                errors.append(error)
                stop.set()
                return
            latencies[query] = time.perf_counter() - begun - float(due[query])
            late[0] += bound_s is not None and latencies[query] > bound_s  # type: ignore[operator]
            if bound_s is not None and late_allowed is not None and late[0] > late_allowed:
                stop.set()

    threads = [threading.Thread(target=work, daemon=True) for _ in range(workers)]
    for thread in threads:
        thread.start()
    try:
        for query in range(queries):
            if stop.wait(max(0.0, begun + float(due[query]) - time.perf_counter())):
                break
            waiting.put(query)
    except BaseException:
        stop.set()
        raise
    finally:
        for _ in threads:
            waiting.put(None)
        for thread in threads:
            thread.join()
    if errors:
        raise errors[0]
    done = [latency for latency in latencies if latency is not None]
    return ServerTrial(rate, done, len(done) == queries)


def late_queries_allowed(queries: int, percent: int = 99) -> int | None:
    """Most late queries with which the upper bound of a percentile is still in time; None with too few queries to tell."""
    ranks = interval_ranks(queries, percent)
    return None if ranks is None else queries - ranks[1]


def passes(trial: ServerTrial, bound_s: float) -> bool:
    """Whether the upper 95 % bound of a trial's p99 is at most `bound_s`; too few queries never pass."""
    allowed = late_queries_allowed(len(trial.latencies))
    return trial.complete and allowed is not None and sum(latency > bound_s for latency in trial.latencies) <= allowed


def highest_rate(try_rate: Callable[[float], ServerTrial], bound_s: float, upper: float) -> list[ServerTrial]:
    """Search for the highest rate that `passes`, between `LOWEST_SHARE` of `upper` and `upper`, on a logarithmic scale.

    Args:
        try_rate: runs `server` at a rate.
        bound_s: bound of p99, seconds.
        upper: a rate that cannot be exceeded, such as that of *offline*.

    Returns:
        Every trial in its order; the answer is the highest rate of one that `passes`, none where not even the lowest did.
    """
    trials: list[ServerTrial] = []
    low, high = upper * LOWEST_SHARE, upper
    for _ in range(SEARCH_STEPS):
        rate = (low * high) ** 0.5
        trials.append(try_rate(rate))
        low, high = (rate, high) if passes(trials[-1], bound_s) else (low, rate)
    return trials


def queries_needed(length: Length, rate: float) -> int:
    """Queries of one trial: until the least duration and number are reached, and enough for the bound of p99."""
    return max(length.samples, math.ceil(rate * length.seconds), samples_needed(99))


def _warm_up(answer: Answer, samples: int) -> None:
    for index in range(WARM_UP):
        answer(index % samples)
