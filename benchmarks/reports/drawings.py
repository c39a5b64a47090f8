"""The kinds of plot, each drawn on an axes of matplotlib; `fundus_rt.benchmarks.reports.document.Plot` says what they take."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from fundus_rt.benchmarks.extras import require_proof
from fundus_rt.benchmarks.reports.document import Plot, Series
from fundus_rt.benchmarks.reports.numbers import column_in_words, number_in_words, share_in_words
from fundus_rt.benchmarks.reports.plot_style import (
    DASHES,
    GREY,
    MARKS,
    colour_of,
    finite,
    label_at_right,
    legend_below,
    text_colour_on,
    thinned,
    wrapped,
)

MOST_POINTS = 2000
"""Most points of one series that are drawn one by one: each is about 60 bytes of the page."""
_MOST_BINS = 40
_FEWEST_BINS = 8
_MOST_MARKED = 40
"""Most points of a curve that get a mark."""


def draw_scatter(axes: Any, plot: Plot) -> None:
    """Points, or hexagons of many, and the line y = x where asked for."""
    handles, names = _clouds(axes, plot, [s for s in plot.series if s.x])
    if plot.identity:
        _square(axes, plot)
        handles.append(axes.axline((0, 0), slope=1, color=GREY, linestyle="--", linewidth=1.2, zorder=1))
        names.append("both equal")
    if len(names) > 1:
        legend_below(axes, handles, names)


def draw_bland_altman(axes: Any, plot: Plot) -> None:
    """Differences over means, with the lines handed in and their intervals."""
    handles, names = _clouds(axes, plot, [s for s in plot.series if s.x])
    lines = [s for s in plot.series if not s.x and np.isfinite(s.y[0])]
    labels = []
    for line, value in zip(lines, column_in_words([float(s.y[0]) for s in lines]), strict=True):
        middle = lines.index(line) == 0
        axes.axhline(line.y[0], color="black", linewidth=1.4, linestyle="-" if middle else "--")
        if line.low and np.isfinite([line.low[0], line.high[0]]).all():
            axes.axhspan(line.low[0], line.high[0], color="black", alpha=0.1, linewidth=0)
        labels.append((float(line.y[0]), f"{wrapped(line.name, 14, 2)}\n{value}"))
    axes.axhline(0, color=GREY, linewidth=0.8, zorder=1)
    axes.margins(y=0.08)
    label_at_right(axes, labels)
    if len(names) > 1:
        legend_below(axes, handles, names)


def draw_histogram(axes: Any, plot: Plot) -> None:
    """Counts over bins common to all series, or over the bins handed in."""
    values = [finite(s.x)[0] for s in plot.series if not s.y]
    together = np.concatenate(values) if values else np.empty(0)
    bins = int(np.clip(np.sqrt(together.size), _FEWEST_BINS, _MOST_BINS))
    edges = np.histogram_bin_edges(together, bins) if together.size else np.asarray([0.0, 1.0])
    handles = []
    for number, series in enumerate(plot.series):
        counts, borders = (series.y, series.x) if series.y else np.histogram(finite(series.x)[0], edges)
        single = len(plot.series) == 1
        colour = colour_of(number)
        handles.append(axes.stairs(counts, borders, fill=True, color=colour, alpha=0.85 if single else 0.3, linewidth=0))
        outline = "white" if single else colour
        axes.stairs(counts, borders, color=outline, linewidth=0.8 if single else 1.6, linestyle=DASHES[number % len(DASHES)])
    axes.set_ylim(bottom=0)
    axes.grid(visible=False, axis="x")
    if len(plot.series) > 1:
        legend_below(axes, handles, [s.name for s in plot.series])


def draw_roc(axes: Any, plot: Plot) -> None:
    """Sensitivity over false positive rate; a series of one point is an operating point."""
    handles = []
    for number, series in enumerate(plot.series):
        if len(series.x) == 1:
            handles += axes.plot(
                series.x, series.y, MARKS[number % len(MARKS)], color=colour_of(number), markersize=7, markeredgecolor="black"
            )
            _whiskers(axes, series.x, series, colour_of(number))
        else:
            handles.append(_curve(axes, series, number, marked=False))
    _unit_square(axes)
    if plot.series:
        legend_below(axes, handles, [s.name for s in plot.series])


def draw_calibration(axes: Any, plot: Plot) -> None:
    """Observed over predicted probability, with the interval of each group."""
    handles = []
    for number, series in enumerate(plot.series):
        mark, colour = MARKS[number % len(MARKS)], colour_of(number)
        handles += axes.plot(series.x, series.y, mark, color=colour, markersize=6, linestyle="-", linewidth=1.2)
        _whiskers(axes, series.x, series, colour)
    _unit_square(axes)
    if len(plot.series) > 1:
        legend_below(axes, handles, [s.name for s in plot.series])


def draw_bars(axes: Any, plot: Plot) -> None:
    """Bars beside one another; lying where their names are long or many, standing else."""
    lying = bars_lie(plot)
    positions = np.arange(len(plot.ticks))
    width = 0.8 / max(len(plot.series), 1)
    handles = []
    for number, series in enumerate(plot.series):
        places = positions + (number - (len(plot.series) - 1) / 2) * width
        bar = axes.barh if lying else axes.bar
        handles.append(bar(places, series.y, width * 0.92, color=colour_of(number)))
        _whiskers(axes, tuple(places), series, "#404040", lying=lying, width=0.9)
        if len(plot.ticks) * len(plot.series) <= (24 if lying else 8):
            _values_at_bars(axes, places, series, lying)
    _name_categories(axes, plot, lying)
    axes.margins(**{"x" if lying else "y": 0.15})
    if all(value >= 0 or not np.isfinite(value) for s in plot.series for value in (*s.y, *s.low)):
        (axes.set_xlim if lying else axes.set_ylim)(0)
    if len(plot.series) > 1:
        legend_below(axes, handles, [s.name for s in plot.series])


def draw_stacked_bars(axes: Any, plot: Plot) -> None:
    """One lying bar per tick, the series one after the other; values below zero go to the left."""
    heights = np.asarray([np.nan_to_num(s.y, nan=0.0, posinf=0.0, neginf=0.0) for s in plot.series]).reshape(-1, len(plot.ticks))
    whole = max(float(np.abs(heights).sum(axis=0).max(initial=0)), np.finfo(float).tiny)
    ends = np.zeros((2, len(plot.ticks)))
    positions = np.arange(len(plot.ticks))
    handles = []
    for number, lengths in enumerate(heights):
        side = (lengths < 0).astype(int)
        starts = ends[side, positions].copy()
        handles.append(axes.barh(positions, lengths, 0.7, left=starts, color=colour_of(number), edgecolor="white", linewidth=0.8))
        ends[side, positions] += lengths
        ink = text_colour_on(require_proof("matplotlib.colors").to_rgb(colour_of(number)))
        for place, start, length in zip(positions, starts, lengths, strict=True):
            if abs(length) >= 0.08 * whole:
                text = number_in_words(float(length), digits=2)
                axes.text(start + length / 2, place, text, ha="center", va="center", color=ink, fontsize=9)
    _name_categories(axes, plot, lying=True)
    axes.margins(x=0.01)
    legend_below(axes, handles, [s.name for s in plot.series])


def draw_confusion(axes: Any, plot: Plot) -> None:
    """Counts, each cell shaded by its share of its row."""
    counts = np.asarray(plot.matrix, np.float64)
    totals = np.nansum(counts, axis=1, keepdims=True)
    shares = np.divide(counts, totals, out=np.zeros_like(counts), where=totals > 0)
    colours = _blues(0.0)
    axes.pcolormesh(np.arange(counts.shape[1] + 1), np.arange(counts.shape[0] + 1), shares, cmap=colours, vmin=0, vmax=1,
                    edgecolors="white", linewidth=1.5)  # fmt: skip
    small = len(plot.ticks) > 6
    for (row, column), count in np.ndenumerate(counts):
        text = number_in_words(int(count) if count == np.floor(count) else float(count)) if np.isfinite(count) else "–"
        if count > 0 and not small:
            text += f"\n{share_in_words(float(shares[row, column]))}"
        ink = text_colour_on(colours(shares[row, column]))
        axes.text(column + 0.5, row + 0.5, text, ha="center", va="center", color=ink, fontsize=8 if small else 10)
    names = [wrapped(tick, 16, 2) for tick in plot.ticks]
    turned = {"rotation": 45, "ha": "right"} if max(map(len, plot.ticks)) > 6 and len(plot.ticks) > 4 else {}
    axes.set_xticks(np.arange(len(names)) + 0.5, names, **turned)
    axes.set_yticks(np.arange(len(names)) + 0.5, names)
    axes.tick_params(length=0)
    axes.grid(visible=False)
    axes.invert_yaxis()
    axes.set_aspect("equal")
    for spine in axes.spines.values():
        spine.set_visible(False)


def draw_lines(axes: Any, plot: Plot) -> None:
    """Curves with bands, named at their right ends where they are few, else in a legend."""
    handles = [_curve(axes, series, number, marked=True) for number, series in enumerate(plot.series)]
    if plot.ticks:
        names = [wrapped(tick, 12, 2) for tick in plot.ticks]
        axes.set_xticks(range(len(names)), names)
    ends = [finite(s.x, s.y) for s in plot.series]
    last = {float(x[-1]) for x, _ in ends if x.size}
    if len(plot.series) == 1:
        return
    if len(plot.series) <= 5 and len(last) == 1 and all(x.size for x, _ in ends):
        label_at_right(axes, [(float(y[-1]), wrapped(s.name, 18, 2)) for s, (_, y) in zip(plot.series, ends, strict=True)])
    elif plot.series:
        legend_below(axes, handles, [s.name for s in plot.series])


DRAWINGS: dict[str, Callable[[Any, Plot], None]] = {
    "scatter": draw_scatter,
    "bland_altman": draw_bland_altman,
    "histogram": draw_histogram,
    "roc": draw_roc,
    "calibration": draw_calibration,
    "bars": draw_bars,
    "stacked_bars": draw_stacked_bars,
    "confusion": draw_confusion,
    "lines": draw_lines,
}


def bars_lie(plot: Plot) -> bool:
    """Whether bars lie: their names would not fit below standing ones."""
    return len(plot.ticks) > 7 or any(len(tick) > 12 for tick in plot.ticks) or len(plot.ticks) * len(plot.series) > 16


def _clouds(axes: Any, plot: Plot, clouds: list[Series]) -> tuple[list[Any], list[str]]:
    """Draw points; the series with too many of them together as hexagons. Returns what the legend shows of each."""
    handles, names = [], []
    crowded = [s for s in clouds if len(s.x) > MOST_POINTS]
    if crowded:
        x, y = (np.concatenate(part) for part in zip(*(finite(s.x, s.y) for s in crowded), strict=True))
        hexagons = axes.hexbin(x, y, gridsize=32, mincnt=1, bins="log", cmap=_blues(0.7), linewidths=0.2)
        most = float(hexagons.get_array().max())
        ticks = [step * 10**power for power in range(6) for step in (1, 2, 5) if step * 10**power <= most]
        bar = axes.figure.colorbar(hexagons, ax=axes, location="bottom", fraction=0.04, pad=0.03, aspect=40)
        bar.set_ticks(ticks, labels=[f"{tick:,}" for tick in ticks])
        bar.minorticks_off()
        bar.set_label("photographs in a hexagon")
        bar.outline.set_visible(False)
    for number, series in enumerate(s for s in clouds if len(s.x) <= MOST_POINTS):
        number += bool(crowded)
        mark = MARKS[number % len(MARKS)]
        x, y = finite(series.x, series.y)
        handles += axes.plot(
            x, y, mark, color=colour_of(number), markersize=5, markeredgecolor="white", markeredgewidth=0.4, alpha=0.8
        )
        names.append(series.name)
    return handles, names


def _curve(axes: Any, series: Series, number: int, marked: bool) -> Any:
    """One line with its band; returns the line."""
    x, y = finite(series.x, series.y)
    chosen = thinned(x.size)
    mark = MARKS[number % len(MARKS)] if marked and x.size <= _MOST_MARKED else None
    dash = DASHES[number % len(DASHES)]
    (line,) = axes.plot(x[chosen], y[chosen], color=colour_of(number), linestyle=dash, marker=mark, markersize=5)
    if series.low and x.size > 1:
        across, low, high = finite(series.x, series.low, series.high)
        chosen = thinned(across.size)
        axes.fill_between(across[chosen], low[chosen], high[chosen], color=colour_of(number), alpha=0.15, linewidth=0)
    elif series.low:
        _whiskers(axes, series.x, series, colour_of(number))
    return line


def _whiskers(axes: Any, places: tuple[float, ...], series: Series, colour: str, lying: bool = False, width: float = 1.4) -> None:
    """The intervals of a series as thin lines at `places` along the axis of the categories."""
    if not series.low:
        return
    at, low, high = finite(places, series.low, series.high)
    draw = axes.hlines if lying else axes.vlines
    draw(at, low, high, color=colour, linewidth=width)


def _values_at_bars(axes: Any, places: Any, series: Series, lying: bool) -> None:
    """The height of each bar in figures where the bar ends, on white so that the line of its interval runs behind."""
    for place, value, text in zip(places, series.y, column_in_words([float(v) for v in series.y]), strict=True):
        if not np.isfinite(value):
            continue
        tip = max(value, 0.0)
        spot = (tip, place) if lying else (place, tip)
        away = (4, 0) if lying else (0, 3)
        align = {"ha": "left", "va": "center"} if lying else {"ha": "center", "va": "bottom"}
        paper = {"facecolor": "white", "edgecolor": "none", "pad": 0.6, "alpha": 0.9}
        axes.annotate(text, spot, away, textcoords="offset points", fontsize=9, bbox=paper, **align)


def _name_categories(axes: Any, plot: Plot, lying: bool) -> None:
    """The names of the categories on their axis, and the labels of both axes."""
    names = [wrapped(tick, 26 if lying else 12, 2 if lying else 3) for tick in plot.ticks]
    if lying:
        axes.set_yticks(range(len(names)), names)
        axes.invert_yaxis()
    else:
        axes.set_xticks(range(len(names)), names)
    axes.grid(visible=False, axis="y" if lying else "x")
    axes.set_xlabel(wrapped(plot.y_label if lying else plot.x_label, 60, 2))
    axes.set_ylabel(wrapped(plot.x_label if lying else plot.y_label, 44, 2))


def _square(axes: Any, plot: Plot) -> None:
    """The same limits on both axes, wide enough for every point."""
    x, y = (
        (np.concatenate(part) for part in zip(*(finite(s.x, s.y) for s in plot.series), strict=True)) if plot.series else ([], [])
    )
    both = np.concatenate([x, y])
    low, high = (float(both.min()), float(both.max())) if both.size else (0.0, 1.0)
    room = 0.04 * (high - low) or 0.5
    axes.set_xlim(low - room, high + room)
    axes.set_ylim(low - room, high + room)
    axes.set_aspect("equal")


def _unit_square(axes: Any) -> None:
    """Both axes from 0 to 1, with the diagonal."""
    axes.plot([0, 1], [0, 1], color=GREY, linestyle="--", linewidth=1.0, zorder=1)
    axes.set_xlim(-0.02, 1.02)
    axes.set_ylim(-0.02, 1.02)
    axes.set_aspect("equal")


def _blues(lightest: float) -> Any:
    """Shades from light (white at `lightest` 0) to dark blue."""
    light = tuple(1 - lightest * (1 - part) for part in (0.45, 0.68, 0.87))
    return require_proof("matplotlib.colors").LinearSegmentedColormap.from_list("blues", [light, "#56B4E9", "#08306b"])
