"""Percentiles with bounds that assume nothing about how the times are distributed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

CONFIDENCE = 0.95
PERCENTILES = (50, 90, 99)
RESAMPLES = 2000
"""Draws of the bootstrap."""


@dataclass(frozen=True)
class Percentile:
    """One percentile of a sample with its interval; all None where the sample is too small for the interval to exist."""

    percent: int
    value: float | None
    low: float | None
    high: float | None
    samples: int
    samples_needed: int
    """Fewest samples with which both bounds exist."""


def percentile(values: Sequence[float], percent: int, confidence: float = CONFIDENCE) -> Percentile:
    """A percentile with a distribution-free interval of order statistics.

    The number of values below the true percentile is binomial, so the interval between two order statistics holds it with a
    probability that depends on their ranks alone (David and Nagaraja, Order Statistics, 3rd edition, section 7.1). What is
    missing to `confidence` is shared by the two sides.

    Args:
        values: at least one, in any order and unit.
        percent: 1 to 99.
        confidence: between 0 and 1.

    Returns:
        The smallest value that at least `percent` per cent of the sample do not exceed, and its bounds.
    """
    ranks = interval_ranks(len(values), percent, confidence)
    needed = samples_needed(percent, confidence)
    if ranks is None:
        return Percentile(percent, None, None, None, len(values), needed)
    ordered = sorted(values)
    middle = ordered[max(-(-len(ordered) * percent // 100), 1) - 1]
    return Percentile(percent, middle, ordered[ranks[0] - 1], ordered[ranks[1] - 1], len(ordered), needed)


def percentiles(values: Sequence[float]) -> list[Percentile]:
    """`percentile` for each of `PERCENTILES`."""
    return [percentile(values, percent) for percent in PERCENTILES]


@lru_cache(maxsize=256)
def interval_ranks(count: int, percent: int, confidence: float = CONFIDENCE) -> tuple[int, int] | None:
    """Ranks, counted from 1, of the two order statistics that bound a percentile; None where one of them does not exist.

    Args:
        count: size of the sample.
        percent, confidence: as `percentile`.
    """
    if count < samples_needed(percent, confidence):
        return None
    tail, share = (1 - confidence) / 2, percent / 100
    number = np.arange(count + 1)
    logarithm = (
        math.lgamma(count + 1)
        - np.array([math.lgamma(k + 1) + math.lgamma(count - k + 1) for k in number])
        + number * math.log(share)
        + (count - number) * math.log1p(-share)
    )
    chance = np.exp(logarithm)
    at_most, at_least = np.cumsum(chance), np.cumsum(chance[::-1])[::-1]
    low = int(np.searchsorted(at_most, tail, side="right"))  # largest rank r with P(B <= r - 1) <= tail
    high = int(np.argmax(at_least <= tail))  # smallest rank r with P(B >= r) <= tail
    return low, high


def samples_needed(percent: int, confidence: float = CONFIDENCE) -> int:
    """Fewest samples with which both bounds of a percentile exist: 6 for the median, 36 for p90, 368 for p99 at 95 %."""
    rarer = max(percent, 100 - percent) / 100
    return math.ceil(math.log((1 - confidence) / 2) / math.log(rarer) - 1e-9)


@dataclass(frozen=True)
class Interval:
    """A figure with its 95 % interval; the bounds are None where there is too little to draw from."""

    value: float
    low: float | None
    high: float | None


def median_ratio(first: Sequence[float], second: Sequence[float], seed: int = 0) -> Interval:
    """Median of paired ratios ``first / second`` with a percentile bootstrap over the pairs (Efron, 1979).

    Args:
        first, second: positive, of one length; those of one index were measured in one round.
        seed: of the draws.

    Returns:
        The interval is None with fewer than six rounds, for which that of the median does not exist either.
    """
    ratios = np.asarray(first, np.float64) / np.asarray(second, np.float64)
    middle = float(np.median(ratios))
    if len(ratios) < samples_needed(50):
        return Interval(middle, None, None)
    drawn = np.random.default_rng(seed).integers(0, len(ratios), (RESAMPLES, len(ratios)))
    low, high = np.quantile(np.median(ratios[drawn], axis=1), [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Interval(middle, float(low), float(high))
