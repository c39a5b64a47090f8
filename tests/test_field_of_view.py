"""`find_field_of_view` on drawn photographs of known circle, and on real ones against a plain fit at full resolution."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import least_squares

from fundus_rt.models.errors import NotFundusError
from fundus_rt.runtime.field_of_view import find_field_of_view
from tests.photographs import Case, Image, drawn_fundus, hard_cases, with_jpeg

EXAMPLES = sorted((Path(__file__).resolve().parent.parent / "models" / "examples").glob("*.jpg"))


def largest_error(frame: Image, center: tuple[float, float], radius: float) -> float:
    """Largest error of centre and radius as a share of the radius."""
    view = find_field_of_view(frame)
    assert view.found
    return max(abs(view.center[0] - center[0]), abs(view.center[1] - center[1]), abs(view.radius - radius)) / radius


@pytest.mark.parametrize("name", hard_cases())
def test_known_circle_within_a_hundredth_of_its_radius(name: str) -> None:
    make: Callable[[], Case] = hard_cases()[name]
    frame, center, radius = make()
    before = frame.copy()
    assert largest_error(frame, center, radius) < 0.01
    np.testing.assert_array_equal(frame, before)


@pytest.mark.parametrize(
    ("size", "center", "radius", "cut"),
    [
        ((1000, 900), (500.0, 450.0), 400.0, ()),
        ((1000, 700), (500.0, 350.0), 400.0, ("top", "bottom")),
        ((1000, 700), (500.0, 250.0), 400.0, ("top",)),
        ((1000, 900), (380.0, 450.0), 400.0, ("left",)),
        ((1000, 900), (640.0, 520.0), 400.0, ("bottom", "right")),
        ((700, 600), (350.0, 300.0), 390.0, ("top", "bottom", "left", "right")),
    ],
)
def test_sides_that_cut_the_field(
    size: tuple[int, int], center: tuple[float, float], radius: float, cut: tuple[str, ...]
) -> None:
    view = find_field_of_view(drawn_fundus(*size, center, radius))
    assert view.cut == cut and view.found and view.confidence > 0.9


@settings(max_examples=25, deadline=None)
@given(
    x=st.floats(0.35, 0.65),
    y=st.floats(0.35, 0.65),
    radius=st.floats(0.3, 0.62),
    limb=st.floats(0, 0.7),
    brightness=st.floats(0.2, 1.2),
    width=st.integers(300, 1400),
    aspect=st.floats(0.66, 1.0),
    seed=st.integers(0, 99),
)
def test_any_circle_that_leaves_a_corner(
    x: float, y: float, radius: float, limb: float, brightness: float, width: int, aspect: float, seed: int
) -> None:
    height = round(width * aspect)
    center, pixels = (x * width, y * height), radius * width
    frame = drawn_fundus(width, height, center, pixels, limb=limb, brightness=brightness, seed=seed)
    corners = np.array([[0, 0], [width, 0], [0, height], [width, height]])
    beyond = np.hypot(*(corners - np.array(center)).T) / pixels
    if np.count_nonzero(beyond > 1.1) >= 3:
        assert largest_error(with_jpeg(frame, 85), center, pixels) < 0.01


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_real_photographs(path: Path) -> None:
    """Against a least-squares circle (soft L1) through the ends of every row and column that are brighter than the surround."""
    frame = np.asarray(cv2.imread(str(path)), np.uint8)
    bright = cv2.medianBlur(frame.max(axis=2), 9) > 24
    points = []
    for mask, swap in ((bright, False), (bright.T, True)):
        rows = np.flatnonzero(mask.any(axis=1))
        first, last = mask[rows].argmax(axis=1), mask.shape[1] - 1 - mask[rows, ::-1].argmax(axis=1)
        ends = [np.stack([e[keep], rows[keep]], axis=1) for e, keep in ((first, first > 4), (last, last < mask.shape[1] - 5))]
        points += [end[:, ::-1] if swap else end for end in ends]
    outline = np.concatenate(points).astype(float)
    height, width = bright.shape
    fit = least_squares(
        lambda c: np.hypot(outline[:, 0] - c[0], outline[:, 1] - c[1]) - c[2],
        (width / 2, height / 2, height / 2),
        loss="soft_l1",
        f_scale=width / 1000,
    )
    assert largest_error(frame, (fit.x[0], fit.x[1]), fit.x[2]) < 0.015
    assert find_field_of_view(frame).confidence > 0.9


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
@pytest.mark.parametrize("shares", [(0.68, 0.68), (0.85, 0.5), (0.4, 0.4)])
@pytest.mark.parametrize("vignette", [False, True])
def test_full_frame_is_not_given_a_circle(path: Path, shares: tuple[float, float], vignette: bool) -> None:
    """A rectangle from inside the field, its corners darkened smoothly as a lens does."""
    frame = np.asarray(cv2.imread(str(path)), np.uint8)
    view = find_field_of_view(frame)
    (x, y), (w, h) = view.center, (shares[0] * view.radius, shares[1] * view.radius)
    inner = np.ascontiguousarray(frame[max(0, round(y - h)) : round(y + h), max(0, round(x - w)) : round(x + w)])
    if vignette:
        v, u = np.mgrid[-1 : 1 : inner.shape[0] * 1j, -1 : 1 : inner.shape[1] * 1j]
        inner = (inner * np.clip(1.25 - 0.8 * (u**2 + v**2), 0.02, 1)[..., None]).astype(np.uint8)
    found = find_field_of_view(inner)
    assert not found.found and found.confidence == 0 and found.cut == ("top", "bottom", "left", "right")
    assert found.center == ((inner.shape[1] - 1) / 2, (inner.shape[0] - 1) / 2) and found.radius == max(inner.shape[:2]) / 2


def test_channel_order_does_not_matter() -> None:
    frame = drawn_fundus(600, 500, (300.0, 250.0), 230.0)
    assert find_field_of_view(frame) == find_field_of_view(np.ascontiguousarray(frame[..., ::-1]))


def test_enlarged_photograph_gives_the_enlarged_circle() -> None:
    small = find_field_of_view(drawn_fundus(700, 500, (351.5, 247.5), 215.0))
    large = find_field_of_view(drawn_fundus(2100, 1500, (1055.5, 743.5), 645.0))
    assert large.radius == pytest.approx(3 * small.radius, rel=0.004)
    assert large.center[0] == pytest.approx(3 * small.center[0] + 1, abs=3)


NOISE = np.random.default_rng(0).integers(0, 4, (480, 640, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    ("frame", "word"),
    [
        (np.zeros((480, 640, 3), np.uint8), "black"),
        (NOISE, "black"),
        (with_jpeg(NOISE + np.uint8(9), 50), "black"),
        (np.full((480, 640, 3), 255, np.uint8), "one colour"),
        (np.full((480, 640, 3), (20, 60, 180), np.uint8), "one colour"),
        (np.zeros((0, 640, 3), np.uint8), "empty"),
        (np.zeros((480, 0, 3), np.uint8), "empty"),
    ],
)
def test_frames_without_anything_are_no_fundus(frame: Image, word: str) -> None:
    with pytest.raises(NotFundusError, match=word):
        find_field_of_view(frame)


def test_small_and_odd_frames_do_not_fail() -> None:
    rng = np.random.default_rng(0)
    for height, width in ((32, 32), (32, 3000), (3000, 32), (33, 401), (400, 401), (801, 799)):
        assert not find_field_of_view(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).found


@pytest.mark.parametrize("frame", [np.zeros((9, 9), np.uint8), np.zeros((9, 9, 3), np.float32), np.zeros((9, 9, 4), np.uint8)])
def test_other_arrays_are_refused(frame: Image) -> None:
    with pytest.raises(ValueError, match="expected uint8"):
        find_field_of_view(frame)
