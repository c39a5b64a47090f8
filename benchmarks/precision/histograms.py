"""Distributions of activations, in one pass and in the same memory however many numbers come."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

BINS = 4096
"""Bins of one distribution: a power of two, so that two neighbours can become one."""
METHODS = ("max", "percentile", "least-squares")
"""How a range is found: the least and the largest number, the ones that `SHARE` of all numbers do not exceed on either side, or
the ones that leave the least squared error of rounding and clipping together."""
SHARE = 0.9999
"""Of the method ``percentile``."""
STEPS = 255
"""Steps of 8 bits between the ends of a range."""
CANDIDATES = 160
"""Ranges that ``least-squares`` tries, between a fortieth of the largest one and all of it."""


class Histogram:
    """How often each number was met. The width of a bin doubles when a number lies beyond the last, so one pass is enough."""

    def __init__(self) -> None:
        """Empty, of bins that the first numbers size."""
        self.counts: NDArray[np.float64] = np.zeros(BINS)
        """Of bins from ``-reach`` to ``reach``."""
        self.reach = 0.0
        """Upper end of the last bin: a power of two; 0 before the first number that is not 0."""
        self.least = 0.0
        """Least number that was met, at most 0."""
        self.most = 0.0
        """Largest number that was met, at least 0."""

    def add(self, values: NDArray[np.float32]) -> None:
        """Count values, of any shape.

        Raises:
            ValueError: a value is not finite.
        """
        numbers = np.asarray(values, np.float32).ravel()
        least, most = float(numbers.min(initial=0.0)), float(numbers.max(initial=0.0))
        if not math.isfinite(most - least):
            raise ValueError("the network makes numbers that are not finite")
        self.least, self.most = min(self.least, least), max(self.most, most)
        if max(most, -least) > self.reach:
            self._reach_to(max(most, -least))
        if self.reach > 0:
            self.counts += np.histogram(numbers, BINS, (-self.reach, self.reach))[0]
        else:
            self.counts[BINS // 2] += len(numbers)

    def _reach_to(self, top: float) -> None:
        reach = 2.0 ** math.ceil(math.log2(top))
        if self.reach == 0:
            self.reach = reach
        while self.reach < reach:
            pairs = self.counts.reshape(-1, 2).sum(axis=1)
            rim = np.zeros(BINS // 4)
            self.counts = np.concatenate([rim, pairs, rim])
            self.reach *= 2

    def range_by(self, method: str) -> tuple[float, float]:
        """The ends of the range that shall be kept, at most 0 and at least 0, not both 0.

        Args:
            method: one of `METHODS`.
        """
        if self.least == self.most:
            return 0.0, 1.0  # a tensor of zeros: any range holds it
        if method == "max":
            return self.least, self.most
        if method == "percentile":
            edges = np.linspace(-self.reach, self.reach, BINS + 1)
            upto = np.cumsum(self.counts)
            first = int(np.searchsorted(upto, (1 - SHARE) * upto[-1], side="right"))
            last = int(np.searchsorted(upto, SHARE * upto[-1]))
            return max(self.least, min(0.0, float(edges[first]))), min(self.most, max(0.0, float(edges[last + 1])))
        shares = np.linspace(1 / 40, 1, CANDIDATES)
        best = float(shares[int(np.argmin([self.squared_error(s * self.least, s * self.most) for s in shares]))])
        return best * self.least, best * self.most

    def squared_error(self, least: float, most: float) -> float:
        """Sum over all numbers of the squared difference that 8 bits with a range make, by the middles of the bins."""
        width = 2 * self.reach / BINS
        middles = (np.arange(BINS) + 0.5) * width - self.reach
        middles[BINS // 2] = 0.0  # nearly all there are zeros: behind an activation half of all numbers are
        step = (most - least) / STEPS
        rounded = np.clip(np.rint(middles / step), np.rint(least / step), np.rint(most / step)) * step
        return float((self.counts * np.square(rounded - middles)).sum())
