"""How sure a count is: exact confidence bounds of a rate, without SciPy, for they are needed on devices too."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

CONFIDENCE = 0.95


def clopper_pearson(count: int, of: int, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """The exact two-sided interval of a rate (Clopper and Pearson, Biometrika 26, 1934).

    Args:
        count: how many of `of` it happened to.
        of: how many were looked at; for 0 nothing is known, and the interval is (0, 1).
        confidence: between 0 and 1; what is missing to 1 is shared by the two ends.

    Returns:
        Lowest and highest rate, 0 to 1.

    Raises:
        ValueError: a count below 0 or above `of`, or a confidence outside of 0 to 1.
    """
    _require_count(count, of, confidence)
    tail = (1.0 - confidence) / 2
    return 1.0 - _upper(of - count, of, tail), _upper(count, of, tail)


def upper_bound(count: int, of: int, confidence: float = CONFIDENCE) -> float:
    """The exact one-sided upper bound of a rate: for 0 of n it is ``1 - (1 - confidence) ** (1 / n)``.

    Args:
        count, of, confidence: as `clopper_pearson`.

    Raises:
        ValueError: as `clopper_pearson`.
    """
    _require_count(count, of, confidence)
    return _upper(count, of, 1.0 - confidence)


def rate_in_words(count: int, of: int, what: str = "changed") -> str:
    """A count with what it says about the rate: ``0 of 413 changed: below 0.9 % at 95 %``.

    The ends are those of `clopper_pearson` at 95 %, rounded outwards, so that the sentence stays true.

    Args:
        count, of: as `clopper_pearson`.
        what: what happened, after the count.
    """
    low, high = clopper_pearson(count, of)
    said = f"{count} of {of} {what}"
    if of == 0:
        return said
    if count == 0:
        return f"{said}: below {_percent(high, math.ceil)} % at 95 %"
    if count == of:
        return f"{said}: above {_percent(low, math.floor)} % at 95 %"
    return f"{said}: between {_percent(low, math.floor)} % and {_percent(high, math.ceil)} % at 95 %"


def _require_count(count: int, of: int, confidence: float) -> None:
    if not 0 <= count <= of:
        raise ValueError(f"got {count} of {of}, expected a count from 0 to the number that was looked at")
    if not 0 < confidence < 1:
        raise ValueError(f"got a confidence of {confidence}, expected a number between 0 and 1")


def _upper(count: int, of: int, tail: float) -> float:
    """The rate at which `count` or fewer of `of` have the probability `tail`."""
    if count == of:
        return 1.0
    if count == 0:
        return -math.expm1(math.log(tail) / of)
    few = np.arange(count + 1)
    ways = np.array([math.lgamma(of + 1) - math.lgamma(k + 1) - math.lgamma(of - k + 1) for k in few])
    low, high = 0.0, 1.0
    while low < (middle := (low + high) / 2) < high:
        if _at_most(few, ways, of, middle) > tail:
            low = middle
        else:
            high = middle
    return high


def _at_most(few: np.ndarray, ways: np.ndarray, of: int, rate: float) -> float:
    """Probability of the counts `few` in `of` trials at a rate above 0 and below 1; `ways` are logarithms of C(of, few)."""
    return float(np.exp(ways + few * math.log(rate) + (of - few) * math.log1p(-rate)).sum())


def _percent(rate: float, rounded: Callable[[float], int]) -> str:
    """A rate in per cent: one decimal, or one digit that is not 0 below 0.1 %."""
    percent = 100.0 * rate
    digits = 1 if percent >= 0.1 or percent == 0 else -math.floor(math.log10(percent))
    return f"{rounded(percent * 10**digits) / 10**digits:.{digits}f}"
