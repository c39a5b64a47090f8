"""Distributions of activations, in one pass and in the same memory however many numbers come."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

BINS = 4096
"""Bins of one distribution: a power of two, so that two neighbours can become one."""
METHODS = ("max", "percentile", "least-squares")
"""How a range is found: the largest number, the one that `SHARE` of all numbers do not exceed, or the one that leaves the least
squared error of rounding and clipping together."""
SHARE = 0.9999
"""Of the method ``percentile``."""
LEVELS = 127
"""Whole numbers on one side of 0."""
CANDIDATES = 160
"""Ranges that ``least-squares`` tries, between a fortieth of the largest number and all of it."""


class Histogram:
    """How often each magnitude was met. The width of a bin doubles when a number lies beyond the last, so one pass is enough."""

    def __init__(self) -> None:
        """Empty, of bins that the first numbers size."""
        self.counts: NDArray[np.float64] = np.zeros(BINS)
        self.reach = 0.0
        """Upper end of the last bin: a power of two; 0 before the first number that is not 0."""
        self.largest = 0.0

    def add(self, values: NDArray[np.float32]) -> None:
        """Count the magnitudes of values, of any shape.

        Raises:
            ValueError: a value is not finite.
        """
        sizes = np.abs(values, dtype=np.float32).ravel()
        top = float(sizes.max(initial=0.0))
        if not math.isfinite(top):
            raise ValueError("the network makes numbers that are not finite")
        self.largest = max(self.largest, top)
        if top > self.reach:
            self._reach_to(top)
        if self.reach > 0:
            self.counts += np.histogram(sizes, BINS, (0.0, self.reach))[0]
        else:
            self.counts[0] += len(sizes)

    def _reach_to(self, top: float) -> None:
        reach = 2.0 ** math.ceil(math.log2(top))
        if self.reach == 0:
            self.reach = reach
        while self.reach < reach:
            pairs = self.counts.reshape(-1, 2).sum(axis=1)
            self.counts = np.concatenate([pairs, np.zeros(BINS // 2)])
            self.reach *= 2

    def range_by(self, method: str) -> float:
        """The magnitude that 127 shall stand for, above 0.

        Args:
            method: one of `METHODS`.
        """
        if self.largest == 0:
            return 1.0  # a tensor of zeros: any range holds it
        if method == "max":
            return self.largest
        if method == "percentile":
            upto = np.cumsum(self.counts)
            first = int(np.searchsorted(upto, SHARE * upto[-1]))
            return min(self.largest, (first + 1) * self.reach / BINS)
        tried = np.linspace(self.largest / 40, self.largest, CANDIDATES)
        return float(tried[int(np.argmin([self.squared_error(one) for one in tried]))])

    def squared_error(self, largest: float) -> float:
        """Sum over all numbers of the squared difference that int8 with a range makes, by the middles of the bins."""
        middles = (np.arange(BINS) + 0.5) * self.reach / BINS
        middles[0] = 0.0  # nearly all there are zeros: behind an activation half of all numbers are
        scale = largest / LEVELS
        rounded = np.minimum(np.rint(middles / scale), LEVELS) * scale
        return float((self.counts * np.square(rounded - middles)).sum())
