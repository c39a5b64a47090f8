"""Ways that take turns: what disturbs the machine then disturbs all of them alike, and ratios of one round are paired."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

import numpy as np

from fundus_rt.benchmarks.speed.scenarios import WARM_UP, Answer

UNTIMED_AHEAD = 7
"""How far ahead of the timed sample the untimed one lies."""


def alternate(
    ways: Mapping[str, Answer], seconds: float, rounds: int, seed: int = 0, say: Callable[[int], None] = lambda done: None
) -> dict[str, list[float]]:
    """Seconds of every way in every round; in each round all ways answer the same sample, in a seeded order.

    A turn is two answers, to different samples, of which the second is timed: threads of the way before may still be spinning
    in the first.

    Args:
        ways: by name, what answers the sample of an index.
        seconds: until when there are rounds; at least `rounds`, unless that takes four times as long, then at least six.
        rounds: see `seconds`.
        seed: of the order.
        say: told the number of rounds that are done.
    """
    rng = np.random.default_rng(seed)
    for answer in ways.values():
        for index in range(WARM_UP):
            answer(index)
    times: dict[str, list[float]] = {name: [] for name in ways}
    names = list(ways)
    begun, done = time.perf_counter(), 0
    while True:
        passed = time.perf_counter() - begun
        if (passed >= seconds and done >= rounds) or (passed >= 4 * seconds > 0 and done >= min(rounds, 6)):
            return times
        for place in rng.permutation(len(names)):
            answer = ways[names[place]]
            answer(done + UNTIMED_AHEAD)
            started = time.perf_counter()
            answer(done)
            times[names[place]].append(time.perf_counter() - started)
        done += 1
        say(done)
