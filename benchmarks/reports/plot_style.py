"""Colours, marks and labels that all plots share.

The colours are those of Okabe and Ito, which people with the common kinds of colour blindness tell apart (M. Okabe and K. Ito,
"Color Universal Design", 2008), in an order that puts the strongest first; series differ in the mark and the dash of their
line, too.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#666666", "#F0E442", "#000000")
INK = "#222222"
GREY = "#767676"
MARKS = ("o", "s", "^", "D", "v", "P", "X", "*")
DASHES = ("-", "--", "-.", ":")
SETTINGS: dict[str, Any] = {
    "font.family": ["DejaVu Sans"],
    "font.size": 10,
    "axes.labelsize": 10,
    "axes.labelcolor": INK,
    "axes.edgecolor": GREY,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.formatter.limits": (-4, 6),
    "axes.formatter.useoffset": False,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.6,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "legend.fontsize": 9,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "text.color": INK,
    "text.parse_math": False,
    "text.usetex": False,
    "path.simplify": True,
    "svg.fonttype": "none",
    "svg.hashsalt": "fundus-rt",
}
"""Settings of matplotlib. Text stays text: it can be searched, read aloud and copied, and ``$`` in a file name is a ``$``."""
MOST_CURVE_POINTS = 1000
_LABEL_WIDTH = 16
_LEGEND_WIDTH = 62
"""Letters that fit below a plot."""
_LABEL_STEP = 0.075
"""Least distance of two labels beside the axes, as a part of its height: one line of text."""


def colour_of(number: int) -> str:
    """The colour of the series with this number, counted from 0."""
    return COLOURS[number % len(COLOURS)]


def text_colour_on(rgb: Sequence[float]) -> str:
    """Black or white, whichever is read better on a colour (relative luminance of WCAG 2.1; red, green, blue of 0 to 1)."""
    linear = [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in rgb[:3]]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return "white" if 1.05 / (luminance + 0.05) > (luminance + 0.05) / 0.05 else "black"


def printable(text: str) -> str:
    """`text` without what neither XML nor a font can show: control characters and halves of characters become U+FFFD."""
    return "".join(letter if letter.isprintable() or letter in " \n\t" else "\ufffd" for letter in text)


def wrapped(text: str, width: int = _LABEL_WIDTH, lines: int = 3) -> str:
    """`text` over several short lines, the last one cut with an ellipsis where there is more of it."""
    return textwrap.fill(printable(text), width, max_lines=lines, placeholder=" …") or " "


def finite(*columns: Sequence[float]) -> tuple[NDArray[np.float64], ...]:
    """The columns as float64, without the entries at which one of them is not finite."""
    arrays = [np.asarray(column, np.float64) for column in columns]
    whole = np.logical_and.reduce([np.isfinite(array) for array in arrays])
    return tuple(array[whole] for array in arrays)


def thinned(count: int) -> NDArray[np.intp]:
    """Indices of at most `MOST_CURVE_POINTS` of `count` points of a curve, evenly spread, both ends among them."""
    return np.unique(np.linspace(0, max(count - 1, 0), min(count, MOST_CURVE_POINTS)).round().astype(np.intp))


def label_at_right(axes: Any, labels: Sequence[tuple[float, str]]) -> None:
    """Write texts beside the right edge of the axes at heights of its y axis, moved apart where they would overlap."""
    low, high = axes.get_ylim()
    wanted = sorted(((height - low) / (high - low), text) for height, text in labels)
    places: list[float] = []
    for height, text in wanted:
        room = _LABEL_STEP * (1 + text.count("\n"))
        places.append(height if not places else max(height, places[-1] + room))
    if places and places[-1] > 1:
        places[-1] = 1.0
        for number in range(len(places) - 2, -1, -1):
            room = _LABEL_STEP * (1 + wanted[number][1].count("\n"))
            places[number] = min(places[number], places[number + 1] - room)
    for place, (_, text) in zip(places, wanted, strict=True):
        axes.text(1.02, place, text, transform=axes.transAxes, va="center", ha="left", fontsize=9)


def legend_below(axes: Any, handles: Sequence[Any], names: Sequence[str]) -> None:
    """The legend under the axes, where it covers nothing."""
    longest = max(map(len, names), default=0)
    columns = max(1, _LEGEND_WIDTH // (longest + 7))  # the sample of the line and the gap take about seven letters
    axes.figure.legend(
        list(handles),
        [wrapped(name, 66, 2) for name in names],
        loc="outside lower center",
        ncols=min(columns, len(names)),
        handlelength=2.2,
        columnspacing=1.4,
    )
