"""The drawings of a report: every value is in them, they are light, and they can be read."""

from __future__ import annotations

import io
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from fundus_rt.benchmarks.reports.document import PLOT_KINDS, Plot, Series
from fundus_rt.benchmarks.reports.drawings import MOST_POINTS, bars_lie, draw_bars
from fundus_rt.benchmarks.reports.plot_style import COLOURS, label_at_right, text_colour_on, thinned
from fundus_rt.benchmarks.reports.plots import svg_from_plot
from fundus_rt.benchmarks.reports.thumbnails import thumbnail
from fundus_rt.models.errors import UsageError
from tests.report_samples import SAMPLES
from tests.test_reports import contrast


def svg(plot: Plot, number: int = 0) -> ElementTree.Element:
    """The drawing of a plot."""
    return ElementTree.fromstring(svg_from_plot(plot, number).svg)


def texts(plot: Plot) -> list[str]:
    """What is written in a plot."""
    return [element.text or "" for element in svg(plot).iter("text")]


def marks(plot: Plot, colour: str) -> int:
    """How many marks of a colour a plot has."""
    return sum(f"fill: {colour.lower()}" in element.attrib.get("style", "").lower() for element in svg(plot).iter("use"))


def test_every_point_is_drawn_once_and_what_is_not_finite_is_counted() -> None:
    cloud = Series("c", (1.0, 2.0, float("nan"), 4.0), (1.0, float("inf"), 2.0, 3.0))
    plot = Plot("scatter", "t", "x, years", "y, years", (cloud, Series("d", (1.5,), (2.5,))), identity=True)
    assert svg_from_plot(plot).left_out == 2
    assert marks(plot, COLOURS[0]) == 2 + 1 and marks(plot, COLOURS[1]) == 1 + 1  # one more of each in the legend
    assert {"x, years", "y, years", "both equal", "c", "d"} <= set(texts(plot))


def test_many_points_are_light() -> None:
    chance = np.random.default_rng(0)
    x, y = chance.normal(50, 10, (2, 100_000))
    plot = Plot("scatter", "t", "x", "y", (Series("all", tuple(x), tuple(y)), Series("changed", (50.0,), (50.0,))))
    assert len(svg_from_plot(plot).svg) < 300_000 and marks(plot, COLOURS[1]) == 1
    assert "photographs in a hexagon" in texts(plot)
    edges = Plot("scatter", "t", "x", "y", (Series("all", tuple(x[:MOST_POINTS]), tuple(y[:MOST_POINTS])),))
    assert marks(edges, COLOURS[0]) == MOST_POINTS
    curve = Plot("roc", "t", "x", "y", (Series("c", tuple(np.linspace(0, 1, 100_000)), tuple(np.linspace(0, 1, 100_000))),))
    assert len(svg_from_plot(curve).svg) < 60_000


@settings(deadline=None)
@given(st.integers(0, 5000))
def test_a_thinned_curve_keeps_its_ends(count: int) -> None:
    kept = thinned(count)
    assert kept.size <= 1000 and np.all(np.diff(kept) > 0)
    if count:
        assert (kept[0], kept[-1]) == (0, count - 1)


def test_lines_of_agreement_are_named_with_their_values() -> None:
    lines = (Series("mean", (), (0.4321,)), Series("upper limit", (), (5.5,), (5.0,), (6.0,)), Series("lower limit", (), (-4.6,)))
    written_texts = texts(Plot("bland_altman", "t", "x", "y", (Series("p", (50.0, 60.0), (-1.0, 1.0)), *lines)))
    assert {"mean", "0.43", "upper limit", "5.50", "lower limit", "-4.60"} <= set(written_texts)


def test_a_confusion_matrix_shows_its_counts_and_shares() -> None:
    plot = Plot("confusion", "t", "answer", "truth", matrix=((90.0, 10.0), (0.0, 12345.0)), ticks=("ill", "well"))
    written_texts = texts(plot)
    assert {"90", "90 %", "10", "10 %", "0", "12,345", "100 %", "ill", "well", "answer", "truth"} <= set(written_texts)
    assert "ill: ill 90, well 10; well: ill 0, well 12,345." in svg(plot).attrib["aria-label"]


def test_a_histogram_counts_every_value() -> None:
    values = np.random.default_rng(1).normal(0, 1, 500)
    plot = Plot("histogram", "t", "x", "photographs", (Series("v", tuple(values)),))
    given_counts = np.histogram(values, int(np.sqrt(500)))
    same = Plot(
        "histogram", "t", "x", "photographs", (Series("v", tuple(given_counts[1]), tuple(given_counts[0].astype(float))),)
    )
    paths = [[path.attrib["d"] for path in svg(p).iter("path")] for p in (plot, same)]
    assert paths[0] == paths[1]


def test_stacked_bars_are_as_long_as_their_values() -> None:
    plot = Plot("stacked_bars", "t", "output", "share", (Series("a", (), (0.75,)), Series("b", (), (0.25,))), ticks=("age",))
    ends = {}
    for path in svg(plot).iter("path"):
        fill = re.search(r"fill: (#\w+)", path.attrib.get("style", ""))
        across = [float(pair) for pair in re.findall(r"[ML] ([-\d.]+) ", path.attrib["d"])]
        if fill and fill[1].upper() in COLOURS and path.attrib.get("clip-path"):
            ends[fill[1].upper()] = min(across), max(across)
    first, second = ends[COLOURS[0]], ends[COLOURS[1]]
    assert (first[1] - first[0]) / (second[1] - second[0]) == pytest.approx(3, rel=1e-3)
    assert second[0] == pytest.approx(first[1], abs=0.02)  # the second begins where the first ends
    assert {"0.75", "0.25", "a", "b", "age", "share", "output"} <= set(texts(plot))


@pytest.mark.parametrize("kind", PLOT_KINDS)
def test_every_kind_draws_also_when_there_is_nothing(kind: str) -> None:
    nan = float("nan")
    matrix = {"matrix": ((0.0, 0.0), (nan, 0.0)), "ticks": ("a", "b")} if kind == "confusion" else {}
    bars = {"ticks": ("a",)} if kind.endswith("bars") else {}
    for series in ((), (Series("s", () if bars else (nan,), () if kind == "histogram" else (nan,)),), (Series("s", (), (nan,)),)):
        if kind not in ("bars", "stacked_bars", "bland_altman") and series and not series[0].x:
            continue
        plot = Plot(kind, "t", "x", "y", () if matrix else series, **matrix, **bars)
        drawn = svg_from_plot(plot)
        assert drawn.svg.startswith("<svg ") and drawn.left_out == (1 if matrix or series else 0)
        assert matrix or "no values to draw" in texts(plot)


def test_two_plots_of_one_page_share_no_name() -> None:
    plot = SAMPLES["parity"]().sections[0].plots[0]
    first, second = ({e.attrib["id"] for e in svg(plot, n).iter() if "id" in e.attrib} for n in (0, 1))
    assert first and not first & second
    assert svg_from_plot(plot).svg == svg_from_plot(plot).svg


def test_labels_beside_the_axes_do_not_overlap() -> None:
    from matplotlib.figure import Figure

    axes = Figure().add_subplot()
    axes.set_ylim(0, 1)
    label_at_right(axes, [(0.98, "a"), (0.99, "b"), (0.97, "c"), (0.1, "d")])
    heights = sorted(text.get_position()[1] for text in axes.texts)
    assert np.all(np.diff(heights) >= 0.07) and heights[-1] <= 1 and heights[0] == 0.1
    assert [t.get_text() for t in sorted(axes.texts, key=lambda t: float(t.get_position()[1]))] == ["d", "c", "a", "b"]


@pytest.mark.parametrize(
    "plot",
    [
        {"kind": "pie"},
        {"kind": "scatter", "series": (Series("s", (1.0,), ()),)},
        {"kind": "bars", "series": (Series("s", (), (1.0, 2.0)),), "ticks": ("a",)},
        {"kind": "histogram", "series": (Series("s", (1.0, 2.0), (1.0, 2.0)),)},
        {"kind": "bland_altman", "series": (Series("s", (), (1.0, 2.0)),)},
        {"kind": "confusion", "matrix": ((1.0, 2.0),), "ticks": ("a",)},
    ],
)
def test_a_plot_whose_lengths_do_not_fit_is_refused(plot: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=r"plot 't'.*expected|matrix must have"):
        Plot(**{"title": "t", "x_label": "x", "y_label": "y", **plot})


def test_text_in_coloured_bars_can_be_read() -> None:
    for colour in COLOURS:
        ink = text_colour_on([int(colour[n : n + 2], 16) / 255 for n in (1, 3, 5)])
        assert contrast({"white": "#ffffff", "black": "#000000"}[ink], colour) >= 4.5


def test_a_thumbnail_keeps_the_picture_and_nothing_else(examples: Path) -> None:
    content = (examples / "idrid_005.jpg").read_bytes()
    original = Image.open(io.BytesIO(content)).convert("RGB")
    exif = Image.Exif()
    exif[0x0112], exif[0x010E], exif[0x013B] = 6, "MRN 12345", "Dr. Who"
    carrier = io.BytesIO()
    original.save(carrier, "JPEG", quality=95, exif=exif, comment=b"born 1950", icc_profile=b"profile of this camera")
    small = thumbnail(carrier.getvalue())
    for secret in (b"MRN", b"Who", b"Exif", b"1950", b"profile"):
        assert secret in carrier.getvalue() and secret not in small
    with Image.open(io.BytesIO(small)) as opened:
        assert (
            opened.format == "JPEG"
            and max(opened.size) == 256
            and set(opened.info) <= {"jfif", "jfif_version", "jfif_unit", "jfif_density"}
        )
        upright = original.transpose(Image.Transpose.ROTATE_270)
        expected = np.asarray(upright.resize(opened.size, Image.Resampling.BOX), np.float64)
        found = np.asarray(opened.convert("RGB"), np.float64)
    assert np.abs(found - expected).mean() < 3.0
    turned = np.asarray(original.resize(found.shape[1::-1], Image.Resampling.BOX), np.float64)
    assert np.abs(found - turned).mean() > 10


def test_a_thumbnail_averages_over_areas() -> None:
    noise = np.repeat(np.random.default_rng(3).integers(0, 256, (512, 1024, 1)).astype(np.uint8), 3, axis=2)
    means = noise[..., 0].reshape(128, 4, 256, 4).mean(axis=(1, 3))
    with Image.open(io.BytesIO(thumbnail(noise))) as opened:
        found = np.asarray(opened.convert("L"), np.float64)
    assert found.shape == means.shape and np.abs(found - means).mean() < 5 < noise.std() / 10


def test_small_frames_keep_their_size_and_wrong_ones_are_refused() -> None:
    frame = np.zeros((50, 120, 3), np.uint8)
    frame[..., 2] = 200  # red, in BGR
    with Image.open(io.BytesIO(thumbnail(frame))) as opened:
        assert opened.size == (120, 50)
        red, green, blue = np.asarray(opened.convert("RGB"))[25, 60]
    assert red > 190 and max(green, blue) < 10
    with Image.open(io.BytesIO(thumbnail(frame, 60))) as opened:
        assert opened.size == (60, 25)
    for wrong in (frame.astype(np.float32), frame[..., 0], frame[:0]):
        with pytest.raises(UsageError, match="uint8"):
            thumbnail(wrong)
    with pytest.raises(UsageError, match="1000 pixels"):
        thumbnail(frame, 1000)


@pytest.mark.parametrize("tick", ["a", "a long name that lies"])
def test_the_value_of_a_bar_stands_where_the_bar_ends(tick: str) -> None:
    """Not where its interval ends: a bar of 0 with an interval up to 71 has its 0 at 0."""
    pyplot = pytest.importorskip("matplotlib.pyplot")
    figure, axes = pyplot.subplots()
    plot = Plot("bars", "t", "", "%", (Series("s", (0.0, 1.0), (0.0, 20.0), (0.0, 10.0), (71.0, 40.0)),), ticks=(tick, "b"))
    draw_bars(axes, plot)
    along = 0 if bars_lie(plot) else 1
    assert [(text.get_text(), text.xy[along]) for text in axes.texts] == [("0", 0.0), ("20.0", 20.0)]
    pyplot.close(figure)
