"""What a report says, before it is written: plain values that parity, evaluation, robustness and bench build alike.

`fundus_rt.benchmarks.reports.report_files.write_report` makes ``report.json``, ``photographs.csv`` and ``report.html`` of it.
Nothing in this module draws or writes, and it needs the standard library alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from fundus_rt.models.errors import UsageError

Scalar: TypeAlias = "str | int | float | bool | None"
"""One cell of a table or of the CSV. A float that is not finite is written as empty, with the word for it where there is room."""

Row: TypeAlias = "Mapping[str, Scalar]"
"""One photograph, of a bench one timed answer: column name to value. Rows may have different columns; a missing one is left
empty."""

Rows: TypeAlias = "Iterable[Row] | Callable[[], Iterable[Row]]"
"""The photographs: a collection, a generator, or a function that gives one. Run through once and never held in memory."""

REPORT_KINDS = ("parity", "evaluation", "robustness", "bench")
"""Kinds of report."""

PLOT_KINDS = ("scatter", "bland_altman", "histogram", "roc", "calibration", "bars", "stacked_bars", "confusion", "lines")
"""Kinds of plot; `Plot` says what each takes of its series."""


@dataclass(frozen=True)
class Table:
    """A table; columns of numbers are set right-aligned.

    Floats are shown as `fundus_rt.benchmarks.reports.numbers.column_in_words` has them: few digits, very small ones as "below
    0.001"; give a text where another form is wanted. The full value stands in ``report.json``.

    Raises:
        UsageError: a row has more or fewer cells than there are columns.
    """

    title: str
    columns: tuple[str, ...]
    """Headings, with the unit where there is one: ``"mean difference, years"``."""
    rows: tuple[tuple[Scalar, ...], ...]
    """Cells, one tuple a row. The first cell of a row is its heading."""
    note: str = ""
    """Sentence below the table."""

    def __post_init__(self) -> None:
        for number, row in enumerate(self.rows):
            if len(row) != len(self.columns):
                raise UsageError(
                    f"table {self.title!r}: row {number} has {len(row)} cells, expected {len(self.columns)} as there are columns"
                )


@dataclass(frozen=True)
class Series:
    """One curve, cloud, set of bars or line of a plot; what the fields mean depends on the kind, see `Plot`.

    Raises:
        UsageError: `low` and `high` are not of one length, or not as long as `y`.
    """

    name: str
    """Shown in the legend or beside the curve."""
    x: tuple[float, ...] = ()
    y: tuple[float, ...] = ()
    low: tuple[float, ...] = ()
    """Lower ends of the intervals around `y`: values on the axis, not lengths. Empty: no intervals."""
    high: tuple[float, ...] = ()
    """Upper ends, as long as `low`."""

    def __post_init__(self) -> None:
        if len(self.low) != len(self.high) or (self.low and len(self.low) != len(self.y)):
            raise UsageError(
                f"series {self.name!r}: {len(self.low)} lower and {len(self.high)} upper ends for {len(self.y)} values; "
                "expected one of each per value, or none"
            )


@dataclass(frozen=True)
class Plot:
    """A plot. Values that are not finite are left out of the drawing, and the caption says how many.

    What each kind takes of its series:

    * ``scatter``: points; with `identity` the line y = x. A series of more than 2,000 is drawn as hexagons
      shaded by how many points fall into each.
    * ``bland_altman``: series with x are points (mean, difference); a series without x is a horizontal line at its only y
      (mean, limits of agreement), with its interval where `low` and `high` are given.
    * ``histogram``: x alone are values, which are counted here; with y, x are the edges of the bins (one more than there are
      counts) and y the counts.
    * ``roc``: false positive rate and sensitivity, 0 to 1, band from `low` to `high`; a series of one point is an operating
      point, drawn as a marker. The diagonal is drawn.
    * ``calibration``: mean predicted and observed probability, 0 to 1, with bars. The diagonal is drawn.
    * ``bars``: y, one height per entry of `ticks`, with bars of error; several series stand beside one another.
    * ``stacked_bars``: y, one length per entry of `ticks`; the series lie one after the other in one horizontal bar per tick.
      In both kinds of bars `x_label` says what the categories are and `y_label` what the values are, also where bars lie.
    * ``confusion``: `matrix`, rows are the reference and columns the answer, `ticks` the classes; no series.
    * ``lines``: curves with markers and bands; with `ticks`, x counts through them from 0.

    Raises:
        UsageError: the kind is unknown or the lengths do not fit to it.
    """

    kind: str
    """One of `PLOT_KINDS`."""
    title: str
    x_label: str
    """With the unit: ``"age by the original, years"``."""
    y_label: str
    series: tuple[Series, ...] = ()
    note: str = ""
    """Sentence below the plot: what a reader should see in it."""
    matrix: tuple[tuple[float, ...], ...] = ()
    """``confusion`` only: counts, one row per class of the reference."""
    ticks: tuple[str, ...] = ()
    """Names of the categories on the axis."""
    identity: bool = False
    """``scatter`` only: draw the line y = x."""

    def __post_init__(self) -> None:
        where = f"plot {self.title!r} ({self.kind})"
        if self.kind not in PLOT_KINDS:
            raise UsageError(f"{where}: unknown kind, expected one of {', '.join(PLOT_KINDS)}")
        if self.kind == "confusion":
            size = len(self.ticks)
            if not size or len(self.matrix) != size or any(len(row) != size for row in self.matrix):
                raise UsageError(f"{where}: the matrix must have {size} rows and columns, as many as `ticks`, and one at least")
        for series in self.series:
            problem = _length_problem(self, series)
            if problem:
                raise UsageError(f"{where}: series {series.name!r} {problem}")


def _length_problem(plot: Plot, series: Series) -> str:
    """Why a series cannot be drawn in a plot of this kind; empty when it can."""
    across, up = len(series.x), len(series.y)
    if plot.kind in ("bars", "stacked_bars"):
        return "" if up == len(plot.ticks) else f"has {up} values, expected {len(plot.ticks)} as there are ticks"
    if plot.kind == "histogram":
        return "" if up == 0 or across == up + 1 else f"has {across} edges for {up} counts, expected {up + 1}"
    if plot.kind == "bland_altman" and across == 0:
        return "" if up == 1 else f"has no x and {up} values, expected one: the height of the line"
    return "" if across == up else f"has {across} x and {up} y, expected as many of each"


@dataclass(frozen=True)
class Picture:
    """A small picture with a line below it; made by `fundus_rt.benchmarks.reports.thumbnails.thumbnail`."""

    caption: str
    jpeg: bytes = field(repr=False)
    """JPEG file, at most 256 pixels a side, without metadata."""


@dataclass(frozen=True)
class Section:
    """One chapter of a report: sentences first, then tables, plots and pictures."""

    title: str
    sentences: tuple[str, ...] = ()
    """Plain English, one paragraph each."""
    tables: tuple[Table, ...] = ()
    plots: tuple[Plot, ...] = ()
    pictures: tuple[Picture, ...] = ()


@dataclass(frozen=True)
class Verdict:
    """What the report comes to."""

    passed: bool | None
    """None: the report measures and does not judge."""
    sentence: str
    """One sentence that a clinician understands."""


@dataclass(frozen=True)
class ReportDocument:
    """A whole report.

    Raises:
        UsageError: the kind is unknown.
    """

    kind: str
    """One of `REPORT_KINDS`."""
    title: str
    verdict: Verdict
    subject: Mapping[str, str]
    """What was examined: names, hashes, versions, the machine, the date; shown in this order."""
    figures: Mapping[str, Any]
    """Machine-readable numbers: texts, numbers, booleans, None, lists and mappings of these. NumPy scalars and arrays are
    taken as their Python values."""
    sections: tuple[Section, ...] = ()
    rows: Rows = ()
    """One row per photograph, for the CSV and the JSON; see `Rows`."""

    def __post_init__(self) -> None:
        if self.kind not in REPORT_KINDS:
            raise UsageError(f"a report of the kind {self.kind!r} is unknown, expected one of {', '.join(REPORT_KINDS)}")

    def photograph_rows(self) -> Iterator[Row]:
        """The rows, one after the other, whichever form they were given in."""
        return iter(self.rows() if callable(self.rows) else self.rows)
