"""Figures as a person reads them: few digits, the unit, and nothing rounded to a nought or to a hundred that it is not."""

from __future__ import annotations

import math
from collections.abc import Sequence

from fundus_rt.benchmarks.reports.document import Scalar

SMALLEST = 1e-6
"""Values closer to zero than this are only said to be so: no unit of a retina, an age or a probability has more digits."""
ABSENT = "–"
"""Shown for a value that there is not."""
_MOST_DECIMALS = 6


def number_in_words(value: float | int | None, unit: str = "", digits: int = 3) -> str:
    """One number to so many significant digits, with its unit.

    ``0.00213`` is "0.00213", ``213.4`` is "213", ``12345.6`` is "12,346", ``2.1e-7`` is "below 1e-6", ``-2.1e-7`` is
    "above -1e-6", ``0.0`` is "0". Whole numbers (`int`) keep all their digits.

    Args:
        value: the number; None and what is not finite become words.
        unit: appended after a space, ``years``; ``%`` does not multiply the value, see `share_in_words`.
        digits: significant digits of a `float`, one or more.
    """
    words = _one_number(value, digits)
    return f"{words} {unit}" if unit and words != ABSENT else words


def interval_in_words(low: float, high: float, unit: str = "", digits: int = 3) -> str:
    """Two ends of an interval with as many decimals each: "2.10 to 2.71 years"."""
    words = " to ".join(column_in_words((float(low), float(high)), digits))
    return f"{words} {unit}" if unit else words


def share_in_words(share: float) -> str:
    """A part of a whole as a percentage: "91 %", "2.4 %", "0.034 %", "99.70 %".

    Whole percents from 5 to 95, else two significant digits of the share or of what is missing to the whole. Only a share of
    exactly 0 is "0 %", and only one of exactly 1 is "100 %".

    Args:
        share: 0 to 1; a share outside of it is shown as it is.
    """
    if not math.isfinite(share):
        return _not_finite(share)
    percent = 100 * share
    nearest = min(abs(percent), abs(100 - percent))
    if nearest >= 5 or nearest == 0:
        return f"{percent:.0f} %"
    if nearest < 100 * SMALLEST:
        return f"below {100 * SMALLEST:.4f} %" if percent < 50 else f"above {100 - 100 * SMALLEST:.4f} %"
    return f"{percent:.{max(1 - _exponent(nearest), 0)}f} %"


def column_in_words(values: Sequence[Scalar], digits: int = 3) -> list[str]:
    """The cells of one column, the floats of it with one number of decimals, so that their points stand below one another.

    So many decimals that all from 1 or from a tenth of the largest on show `digits`, and smaller ones two. What is a thousand
    times smaller than the largest has no say in it and is "below 0.001" (or what the last decimal is) where it would be a nought.
    True and False become "yes" and "no", None a dash, and 0.0 is "0".

    Args:
        values: the cells; texts stay as they are.
        digits: significant digits of the larger `float`, one or more.
    """
    values = [getattr(value, "item", lambda value=value: value)() for value in values]  # NumPy's scalars have it
    sizes = [abs(v) for v in values if isinstance(v, float) and math.isfinite(v) and abs(v) >= SMALLEST]
    largest = max(sizes, default=0.0)
    needed = [
        (digits if size >= 1 or size >= largest / 10 else min(digits, 2)) - 1 - _exponent(size)
        for size in sizes
        if size >= largest / 1000
    ]
    decimals = max([0, *needed])
    return [_cell(value, digits, decimals) for value in values]


def _cell(value: Scalar, digits: int, decimals: int) -> str:
    """One cell, a float with so many decimals."""
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "yes" if value else "no"
    shared = isinstance(value, float) and math.isfinite(value) and value != 0 and decimals <= _MOST_DECIMALS
    if not shared or value is None:
        return _one_number(value, digits)
    if abs(value) >= 10.0 ** (min(digits, 2) - 1 - decimals):
        return f"{value:,.{decimals}f}" if abs(value) >= 10_000 else f"{value:.{decimals}f}"
    least = max(decimals, 3)
    if abs(value) >= 10.0**-least or abs(value) < SMALLEST:
        return _one_number(value, digits)
    return f"{'below ' if value > 0 else 'above -'}{10.0**-least:.{least}f}"


def _one_number(value: float | int | None, digits: int) -> str:
    """A number by itself, without unit."""
    if value is None:
        return ABSENT
    if isinstance(value, int):
        return f"{value:,}" if abs(value) >= 10_000 else str(value)
    if not math.isfinite(value):
        return _not_finite(value)
    if value == 0:
        return "0"
    if abs(value) < SMALLEST:
        return f"below {SMALLEST:.0e}".replace("e-0", "e-") if value > 0 else f"above -{SMALLEST:.0e}".replace("e-0", "e-")
    decimals = max(digits - 1 - _exponent(value), 0)
    if abs(value) < 1e-3:
        return f"{value:.{digits - 1}e}".replace("e-0", "e-")
    return f"{value:,.{decimals}f}" if abs(value) >= 10_000 else f"{value:.{decimals}f}"


def _exponent(value: float) -> int:
    """Power of ten of the first digit: 0 for 1 to 9.99, -3 for 0.00213."""
    return math.floor(math.log10(abs(value)))


def _not_finite(value: float) -> str:
    """The word for a float that is no number on the axis."""
    return "not a number" if math.isnan(value) else ("infinite" if value > 0 else "minus infinite")
