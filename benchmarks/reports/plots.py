"""A plot as a piece of SVG that can stand inside a page: light, with its text as text, and with no name that another plot has."""

from __future__ import annotations

import io
import re
import warnings
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass, replace

import numpy as np

from fundus_rt.benchmarks.extras import require_proof
from fundus_rt.benchmarks.reports.document import Plot
from fundus_rt.benchmarks.reports.drawings import DRAWINGS, MOST_POINTS, bars_lie
from fundus_rt.benchmarks.reports.numbers import number_in_words
from fundus_rt.benchmarks.reports.plot_style import SETTINGS, printable, wrapped

WIDTH = 5.2
"""Width of a plot, inches of 96 pixels on the screen; the height follows the kind."""
_MOST_SPOKEN = 24
"""Most bars whose heights are read aloud one by one."""
_KINDS_IN_WORDS = {
    "scatter": "Scatter plot",
    "bland_altman": "Bland-Altman plot",
    "histogram": "Histogram",
    "roc": "ROC curve",
    "calibration": "Calibration plot",
    "bars": "Bar chart",
    "stacked_bars": "Stacked bar chart",
    "confusion": "Confusion matrix, rows are the reference",
    "lines": "Line chart",
}
_SVG = "{http://www.w3.org/2000/svg}"
_LINK = "{http://www.w3.org/1999/xlink}href"
_FONT = re.compile(r"font-family:[^;]*;? ?")
_DIGITS = re.compile(r"(\d\.\d\d)\d+")
_METADATA = {"Date": None, "Creator": None, "Format": None, "Type": None}


@dataclass(frozen=True)
class DrawnPlot:
    """A plot ready for a page."""

    svg: str
    """One ``<svg>`` element, text as text, to be put into HTML as it is."""
    left_out: int
    """How many values were not drawn because they are not finite."""


def svg_from_plot(plot: Plot, number: int = 0) -> DrawnPlot:
    """Draw a plot.

    Args:
        plot: what to draw; its title is not in the drawing, a page sets it above.
        number: tells plots of one page apart: the ids in the SVG begin with it.

    Raises:
        BackendUnavailableError: matplotlib is not installed.
    """
    matplotlib = require_proof("matplotlib")
    figures = require_proof("matplotlib.figure")
    canvases = require_proof("matplotlib.backends.backend_svg")
    stream = io.BytesIO()
    with matplotlib.rc_context(SETTINGS), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # letters that the font has not are drawn by the browser's own
        figure = figures.Figure(figsize=(WIDTH, _height(plot)), layout="constrained")
        canvases.FigureCanvasSVG(figure)
        axes = figure.add_subplot()
        axes.set_xlabel(wrapped(plot.x_label, 60, 2))
        axes.set_ylabel(wrapped(plot.y_label, 44, 2))
        cleaned = _with_printable_names(plot)
        if _drawable(plot):
            DRAWINGS[plot.kind](axes, cleaned)
        else:
            axes.text(0.5, 0.5, "no values to draw", ha="center", va="center", transform=axes.transAxes)
            axes.set_xticks([])
            axes.set_yticks([])
        figure.savefig(stream, format="svg", metadata=_METADATA)
    return DrawnPlot(_inline(stream.getvalue(), plot, number), _left_out(plot))


def summary_of(plot: Plot) -> str:
    """One sentence for those who cannot see the plot: its kind, its axes, and its values where they are few, else how many."""
    kind = _KINDS_IN_WORDS.get(plot.kind, plot.kind)
    rows = [(tick, plot.ticks, row) for tick, row in zip(plot.ticks, plot.matrix, strict=False)]
    if plot.kind in ("bars", "stacked_bars") and len(plot.ticks) * len(plot.series) <= _MOST_SPOKEN:
        rows = [(series.name, plot.ticks, series.y) for series in plot.series]
    words = "; ".join(
        f"{name}: " + ", ".join(f"{other} {_number(value)}" for other, value in zip(others, values, strict=True))
        for name, others, values in rows
    )
    if not rows:
        counts = [(series.name, max(len(series.x), len(series.y))) for series in plot.series]
        words = ", ".join(f"{name} ({count:,} value{'' if count == 1 else 's'})" for name, count in counts) or "no values"
    return printable(f"{kind}, {plot.y_label} against {plot.x_label}. {words}.")


def _number(value: float) -> str:
    """A height or a count in words; a whole number without decimals."""
    return number_in_words(int(value) if np.isfinite(value) and value == np.floor(value) else float(value))


def _height(plot: Plot) -> float:
    """Height of a plot, inches: square axes need more, lying bars a line each."""
    legend = 0.2 * len(plot.series) if len(plot.series) > 1 else 0.0
    shades = 0.6 if any(len(series.x) > MOST_POINTS for series in plot.series) else 0.0
    if plot.kind == "bland_altman":
        return 3.5 + shades + 0.2 * sum(bool(series.x) for series in plot.series[1:])
    if plot.kind == "scatter":
        return (4.3 if plot.identity else 3.5) + shades + legend
    if plot.kind == "stacked_bars":
        return 1.3 + 0.45 * len(plot.ticks) + 0.12 * len(plot.series)
    if plot.kind == "bars" and bars_lie(plot):
        return 1.2 + len(plot.ticks) * max(0.34, 0.22 * len(plot.series)) + legend
    if plot.kind in ("roc", "calibration"):
        return 4.3 + legend
    if plot.kind == "confusion":
        return 4.4
    return 3.5 + legend * (plot.kind != "lines" or len(plot.series) > 5)


def _drawable(plot: Plot) -> bool:
    """Whether there is one value at least."""
    values = [v for s in plot.series for v in (*s.x[:1], *s.y[:1])]
    return bool(plot.matrix) or any(np.isfinite(np.asarray([*s.x, *s.y], np.float64)).any() for s in plot.series if values)


def _left_out(plot: Plot) -> int:
    """How many points, bars or cells are not finite."""
    count = int(np.sum(~np.isfinite(np.asarray(plot.matrix, np.float64)))) if plot.matrix else 0
    for series in plot.series:
        columns = [np.asarray(column, np.float64) for column in (series.x, series.y) if column]
        if len({column.size for column in columns}) == 1:
            count += int(np.sum(~np.logical_and.reduce([np.isfinite(column) for column in columns])))
        else:  # edges and counts of a histogram
            count += sum(int(np.sum(~np.isfinite(column))) for column in columns)
    return count


def _with_printable_names(plot: Plot) -> Plot:
    """The plot with names that a legend can show; one that begins with "_" would be left out of it."""
    series = tuple(replace(s, name=f" {printable(s.name)}" if s.name.startswith("_") else printable(s.name)) for s in plot.series)
    return replace(plot, series=series)


def _inline(svg: bytes, plot: Plot, number: int) -> str:
    """matplotlib's file as an element of a page: short, without metadata, with ids of its own and a text for screen readers.

    Elements lose their namespace: inside HTML, an ``<svg>`` has it by itself. The page chooses the font.
    """
    root = ElementTree.fromstring(svg)
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag in (f"{_SVG}metadata", f"{_SVG}style"):
                parent.remove(child)
    _rename(root, f"plot{number}-")
    for element in root.iter():
        element.tag = str(element.tag).removeprefix(_SVG)
        element.tail = None
        element.text = element.text if element.tag in ("text", "tspan") else None
        for name, value in element.attrib.items():
            element.attrib[name] = _FONT.sub("", value) if name == "style" else _DIGITS.sub(r"\1", value)
        if element.attrib.get("transform", "").startswith("rotate(-0 "):
            del element.attrib["transform"]
    box = root.attrib["viewBox"]
    width, height = (round(float(part) * 96 / 72) for part in box.split()[2:])
    words = f"{printable(plot.title)}. {summary_of(plot)}"
    root.attrib = {"viewBox": box, "width": str(width), "height": str(height), "role": "img", "aria-label": words}
    return ElementTree.tostring(root, encoding="unicode")


def _rename(root: ElementTree.Element, prefix: str) -> None:
    """Keep the ids that something in the drawing refers to, under names that no other drawing has; drop the others."""
    names: dict[str, str] = {}
    for element in root.iter():
        link = element.attrib.pop(_LINK, "")
        if link and not link.startswith("#"):  # a small raster inside, the scale of shades
            element.attrib["href"] = link
        elif link:
            names.setdefault(link[1:], f"{prefix}{len(names)}")
            element.attrib["href"] = f"#{names[link[1:]]}"
        clip = element.attrib.get("clip-path", "")
        if clip.startswith("url(#"):
            name = clip[5:-1]
            names.setdefault(name, f"{prefix}{len(names)}")
            element.attrib["clip-path"] = f"url(#{names[name]})"
    for element in root.iter():
        name = element.attrib.pop("id", "")
        if name in names:
            element.attrib["id"] = names[name]
