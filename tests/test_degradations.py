"""Degradations and small changes of photographs, against closed forms, Pillow's and SciPy's own operations."""

from __future__ import annotations

import io
import itertools
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageEnhance

from fundus_rt.benchmarks.robustness import blur, degradations, illumination, spots
from fundus_rt.benchmarks.robustness.degradations import COMBINATIONS, KINDS, MOST_SEVERITY, STRENGTHS, degrade
from fundus_rt.benchmarks.robustness.disturbances import recompressed, shifted, with_one_pixel
from fundus_rt.benchmarks.robustness.field import Field, Frame, field_in_frame
from fundus_rt.models.registry import EXAMPLE_FOLDER
from fundus_rt.runtime.decode import decode
from fundus_rt.runtime.field_of_view import SIDES, FieldOfView, find_field_of_view
from tests.photographs import drawn_fundus

SEVERITIES = range(1, MOST_SEVERITY + 1)
VIEW = FieldOfView((150.3, 118.6), 104.0)


@pytest.fixture(scope="module")
def frame() -> Frame:
    """A drawn photograph whose circle is `VIEW`."""
    return drawn_fundus(310, 240, VIEW.center, VIEW.radius)


@pytest.fixture(scope="module")
def field(frame: Frame) -> Field:
    return field_in_frame(frame, VIEW)


def distances(shape: tuple[int, ...], view: FieldOfView = VIEW) -> NDArray[np.float64]:
    """Distance of every pixel from the centre, pixels."""
    y, x = np.mgrid[: shape[0], : shape[1]]
    return np.hypot(x - view.center[0], y - view.center[1])


def even_field(level: tuple[int, int, int] = (60, 110, 190), radius: float = 100.0, side: int = 240) -> tuple[Frame, Field]:
    """A disc of one colour on black, and its field."""
    view = FieldOfView(((side - 1) / 2, (side - 1) / 2), radius)
    inside = distances((side, side), view) <= radius
    frame = (inside[..., None] * np.array(level)).astype(np.uint8)
    return frame, field_in_frame(frame, view)


def mean_change(changed: Frame, frame: Frame) -> float:
    return float(cv2.absdiff(changed, frame).mean())


@pytest.mark.parametrize("kinds", COMBINATIONS, ids="+".join)
def test_severity_zero_changes_nothing_and_no_severity_leaves_the_field(
    frame: Frame, field: Field, kinds: tuple[str, ...]
) -> None:
    before = frame.copy()
    unchanged = degrade(frame, field, kinds, 0, 7)
    assert unchanged is not frame
    np.testing.assert_array_equal(unchanged, frame)
    outside = distances(frame.shape) > VIEW.radius
    for severity in SEVERITIES:
        changed = degrade(frame, field, kinds, severity, 7)
        assert changed.dtype == np.uint8
        assert changed.shape == frame.shape
        np.testing.assert_array_equal(changed[outside], frame[outside])
        assert (changed != frame).any()
    np.testing.assert_array_equal(frame, before)


def test_there_are_seven_combinations_of_three_kinds() -> None:
    assert len({frozenset(kinds) for kinds in COMBINATIONS}) == 7 == len(COMBINATIONS)
    assert all(set(kinds) <= set(KINDS) for kinds in COMBINATIONS)


@pytest.mark.parametrize("kinds", COMBINATIONS, ids="+".join)
def test_change_grows_with_severity(frame: Frame, field: Field, kinds: tuple[str, ...]) -> None:
    means = [np.mean([mean_change(degrade(frame, field, kinds, s, seed), frame) for seed in range(12)]) for s in (0, *SEVERITIES)]
    assert means[0] == 0
    assert all(after > 1.1 * before for before, after in itertools.pairwise(means[1:])), means


def test_strengths_rise_between_whole_severities_too(frame: Frame, field: Field) -> None:
    for strengths in STRENGTHS.values():
        assert strengths[0] == 0
        assert list(strengths) == sorted(set(strengths))
    changes = [mean_change(degrade(frame, field, ("illumination",), s, 3), frame) for s in (2, 2.5, 3)]
    assert changes == sorted(set(changes))


@pytest.mark.parametrize("kinds", COMBINATIONS, ids="+".join)
def test_seeds_decide_and_repeat(frame: Frame, field: Field, kinds: tuple[str, ...]) -> None:
    first = degrade(frame, field, kinds, 4, 11)
    np.testing.assert_array_equal(first, degrade(frame, field, kinds[::-1], 4, [11]))
    assert mean_change(degrade(frame, field, kinds, 4, 12), first) > 0.05


def test_a_mixture_holds_the_degradations_that_come_alone(frame: Frame, field: Field) -> None:
    """Spots that are seen alone are where the mixture with uneven light differs from uneven light alone."""
    alone = degrade(frame, field, ("spots",), 5, 2) != frame
    added = degrade(frame, field, ("illumination", "spots"), 5, 2) != degrade(frame, field, ("illumination",), 5, 2)
    assert np.count_nonzero(added & ~alone) <= 0.03 * np.count_nonzero(alone)
    assert np.count_nonzero(added & alone) > 0.5 * np.count_nonzero(alone)


@pytest.mark.parametrize("kinds", COMBINATIONS, ids="+".join)
@pytest.mark.parametrize("severity", [2, 5])
def test_the_same_at_another_resolution(kinds: tuple[str, ...], severity: int) -> None:
    """Degraded, then reduced, is reduced, then degraded: on a real photograph, by 3."""
    large = decode((EXAMPLE_FOLDER / "idrid_205.jpg").read_bytes()).frame
    height, width = (side // 3 for side in large.shape[:2])
    large = np.ascontiguousarray(large[: 3 * height, : 3 * width])
    view = find_field_of_view(large)
    center = ((view.center[0] + 0.5) / 3 - 0.5, (view.center[1] + 0.5) / 3 - 0.5)
    small_view = FieldOfView(center, view.radius / 3, view.cut)

    def reduced(picture: Frame) -> Frame:
        return np.asarray(cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA), np.uint8)

    small = reduced(large)
    first = reduced(degrade(large, field_in_frame(large, view), kinds, severity, 5))
    second = degrade(small, field_in_frame(small, small_view), kinds, severity, 5)
    inside = distances(small.shape, small_view) < 0.97 * small_view.radius
    apart = np.abs(first.astype(float) - second)[inside]
    assert apart.mean() < 0.5
    assert np.percentile(apart, 99.5) < 4


def test_colour_is_what_pillow_makes_of_it() -> None:
    """Brightness and saturation as Pillow's `ImageEnhance`, contrast around its mean grey of the square that the disc fills."""
    rng = np.random.default_rng(0)
    frame, field = even_field(radius=120, side=240)
    inside = frame.any(axis=2)
    frame[inside] = np.clip(frame[inside] + rng.normal(0, 25, (np.count_nonzero(inside), 3)), 1, 254).astype(np.uint8)
    levels = field.piece(frame)
    picture = Image.fromarray(np.ascontiguousarray(frame[..., ::-1]))
    left, top, right, bottom = field.box
    for own, pillows in (
        ((1.2, 1, 1), ImageEnhance.Brightness(picture).enhance(1.2)),
        ((0.7, 1, 1), ImageEnhance.Brightness(picture).enhance(0.7)),
        ((1, 1.4, 1), ImageEnhance.Contrast(picture).enhance(1.4)),
        ((1, 0.6, 1), ImageEnhance.Contrast(picture).enhance(0.6)),
        ((1, 1, 1.4), ImageEnhance.Color(picture).enhance(1.4)),
        ((1, 1, 0.6), ImageEnhance.Color(picture).enhance(0.6)),
    ):
        found = 255 * illumination.with_colour(levels, field, *own)
        expected = np.asarray(pillows)[top:bottom, left:right, ::-1]
        assert np.abs(found - expected)[field.mask >= 1].max() < 2.6, own


def test_leaking_light_is_added_at_the_rim_and_shade_taken_in_the_middle(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("BRIGHTNESS", "CONTRAST", "SATURATION"):
        monkeypatch.setattr(illumination, name, (1.0, 1.0))
    frame, field = even_field()
    inside = distances(frame.shape, FieldOfView((119.5, 119.5), 100.0)) < 95
    dark, bright = illumination._shade, illumination._leak
    for seed in range(6):
        monkeypatch.setattr(illumination, "_shade", lambda rng, area: (np.zeros_like(dark(rng, area)[0]), (0.0, 0.0)))
        leak = degrade(frame, field, ("illumination",), 3, seed).astype(int) - frame
        assert leak.min() >= 0
        assert leak.max() > 15
        assert leak[118:122, 118:122].max() <= 2
        monkeypatch.setattr(illumination, "_shade", dark)
        monkeypatch.setattr(illumination, "_leak", lambda rng, area: (0 * bright(rng, area)[0], np.ones(3, np.float32)))
        shade = degrade(frame, field, ("illumination",), 3, seed).astype(int) - frame
        monkeypatch.setattr(illumination, "_leak", bright)
        assert shade.max() <= 0
        assert shade[..., 2].min() < -60
        kept = (frame + shade)[inside] / frame[inside]
        np.testing.assert_allclose(kept[:, 0], kept[:, 2], atol=0.02)  # the same share of every channel


@pytest.mark.parametrize(("severity", "factor"), [(1, 0.9), (3, 0.7), (5, 0.5)])
def test_brightness_falls_in_proportion_to_severity(monkeypatch: pytest.MonkeyPatch, severity: int, factor: float) -> None:
    monkeypatch.setattr(illumination, "BRIGHTNESS", (0.7, 0.7))
    monkeypatch.setattr(illumination, "CONTRAST", (1.0, 1.0))
    monkeypatch.setattr(illumination, "SATURATION", (1.0, 1.0))
    for name, nothing in (("_shade", (0.0, 0.0)), ("_leak", np.ones(3, np.float32))):
        own = getattr(illumination, name)
        monkeypatch.setattr(illumination, name, lambda rng, area, own=own, nothing=nothing: (0 * own(rng, area)[0], nothing))
    frame, field = even_field((60, 110, 190))
    changed = degrade(frame, field, ("illumination",), severity, 0)
    np.testing.assert_allclose(changed[120, 120], np.array([60, 110, 190]) * factor, atol=0.51)


def test_every_kind_draws_from_a_stream_of_its_own(frame: Frame, field: Field, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that spots are where they are alone, whatever else is done, and no kind repeats another one's numbers."""
    drawn: dict[str, list[float]] = {kind: [] for kind in KINDS}

    def recorded(kind: str) -> None:
        def step(levels: Any, area: Field, rng: np.random.Generator, strength: float) -> Any:
            drawn[kind].append(rng.random())
            return levels

        monkeypatch.setitem(degradations._STEPS, kind, step)

    for kind in KINDS:
        recorded(kind)
    for kinds in COMBINATIONS:
        degrade(frame, field, kinds, 2, 9)
    assert [len(numbers) for numbers in drawn.values()] == [4, 4, 4]
    assert [len(set(numbers)) for numbers in drawn.values()] == [1, 1, 1]
    assert len({numbers[0] for numbers in drawn.values()}) == 3


def test_an_edge_is_half_at_its_radius_and_even_beyond_its_width() -> None:
    distance = np.array([0, 0.8, 0.9, 1.0, 1.1, 1.2, 3], np.float32)
    np.testing.assert_allclose(illumination.edge(distance, 1.0, 0.4), [1, 1, 0.84375, 0.5, 0.15625, 0, 0], atol=1e-5)


def test_spots_are_discs_of_light() -> None:
    """5 to 10 of them, no larger than a twentieth and its edge, no brighter than the formula, the weaker among the stronger."""
    frame, field = even_field((40, 60, 80), radius=300, side=640)
    u = np.linspace(0.2, 1, 50)
    most = float(((14 / 25 + 1 - u) * (1 - np.exp(-(0.5 + u) * 0.3 * u))).max())
    widest = (spots.LARGEST + 2 * 25 / 4 / 512) * field.diameter + 2
    counts = []
    for seed in range(8):
        light = degrade(frame, field, ("spots",), 3, seed).astype(int) - frame
        assert light.min() >= 0
        assert np.ptp(light, axis=2).max() <= 1
        count, _, figures, _ = cv2.connectedComponentsWithStats((light[..., 0] > 0).astype(np.uint8))
        counts.append(count - 1)
        alone = figures[1:][figures[1:, cv2.CC_STAT_AREA] < 0.8 * widest**2]
        assert alone[:, [cv2.CC_STAT_WIDTH, cv2.CC_STAT_HEIGHT]].max() <= widest
        assert np.median(light[light > 0]) < 255 * most + 1
        stronger = degrade(frame, field, ("spots",), 5, seed).astype(int) - frame
        assert (stronger >= light).all()
        assert np.count_nonzero(stronger) > np.count_nonzero(light)
    assert min(counts) >= 1
    assert max(counts) <= 10


@pytest.mark.parametrize("deviations", [(0.7, 1.3), (3.1, 3.4), (6.0, 9.0), (25.0, 19.0)])
def test_blur_is_scipys_gaussian(deviations: tuple[float, float]) -> None:
    """A wide blur is computed on a reduced copy; it has to be the same."""
    ndimage = pytest.importorskip("scipy.ndimage")
    rng = np.random.default_rng(1)
    picture = rng.uniform(0, 1, (233, 310, 3)).astype(np.float32)
    picture[60:150, 80:200] = 1
    found = blur.blurred(picture, *deviations)
    expected = ndimage.gaussian_filter(picture.astype(np.float64), (deviations[1], deviations[0], 0), mode="constant", truncate=6)
    assert np.abs(found - expected).max() < 1.2 / 255


@pytest.mark.parametrize("deviations", [(0.3, 0.5), (1.7, 2.2), (8.0, 12.0), (31.0, 24.0)])
def test_blur_of_a_point_has_the_variance_that_is_asked_for(deviations: tuple[float, float]) -> None:
    """On average over where the point lies in the reduced copy's pixels, around the point itself."""
    shift, variance = np.zeros(2), np.zeros(2)
    for place in range(150, 166):
        picture = np.zeros((311, 315), np.float32)
        picture[place, place] = 1
        found = blur.blurred(picture, *deviations).astype(np.float64)
        assert found.sum() == pytest.approx(1, abs=2e-3)
        for axis in (0, 1):
            weights = found.sum(axis=axis) / found.sum()
            offsets = np.arange(len(weights)) - place
            shift[axis] += (weights * offsets).sum() / 16
            variance[axis] += (weights * offsets**2).sum() / 16
    np.testing.assert_allclose(shift, 0, atol=0.01)
    np.testing.assert_allclose(variance, np.square(deviations), rtol=0.01)


def test_blur_softens_step_by_step_and_leaves_an_even_field_even(frame: Frame, field: Field) -> None:
    middle = distances(frame.shape) < 0.8 * VIEW.radius
    for seed in range(4):
        sharp = [
            cv2.Laplacian(degrade(frame, field, ("blur",), s, seed)[..., 1], cv2.CV_64F)[middle].var() for s in (0, *SEVERITIES)
        ]
        assert all(after < before for before, after in itertools.pairwise(sharp)), sharp
    even, disc = even_field()
    changed = degrade(even, disc, ("blur",), 5, 0)
    assert cv2.absdiff(changed, even).max() <= 1  # nothing of the black surround is mixed in


def test_a_straight_cut_inside_of_the_circle_is_surround() -> None:
    """As photographs that were cut at top and bottom and then filled up with black to a square."""
    view = FieldOfView((199.5, 199.5), 180.0)
    frame = drawn_fundus(400, 400, view.center, view.radius)
    frame[:80] = 2
    frame[330:] = 2
    field = field_in_frame(frame, view)
    for seed in range(3):
        changed = degrade(frame, field, KINDS, 5, seed)
        np.testing.assert_array_equal(changed[:79], frame[:79])
        np.testing.assert_array_equal(changed[331:], frame[331:])
    assert mean_change(changed[100:300], frame[100:300]) > 3
    whole = field_in_frame(drawn_fundus(400, 400, view.center, view.radius), view)
    assert whole.mask[whole.mask.shape[0] // 2].sum() > 0.97 * field.diameter


@pytest.mark.parametrize(
    ("size", "view"),
    [
        ((64, 48), FieldOfView((31.5, 23.5), 22.0)),
        ((300, 200), FieldOfView((149.5, 99.5), 150.0, SIDES, False, 0.0)),
        ((300, 200), FieldOfView((20.0, 110.0), 130.0, ("left", "top", "bottom"))),
    ],
    ids=["small", "no border found", "cut"],
)
def test_any_frame_can_be_spoilt(size: tuple[int, int], view: FieldOfView) -> None:
    frame = drawn_fundus(*size, view.center, view.radius, brightness=1.5)
    field = field_in_frame(frame, view)
    for severity in (1, 5):
        changed = degrade(frame, field, KINDS, severity, 1)
        assert changed.shape == frame.shape
        assert mean_change(changed, frame) > 1
    if not view.found:
        assert (degrade(frame, field, ("blur",), 5, 1)[0] != frame[0]).any()


def test_mistakes_are_named(frame: Frame, field: Field) -> None:
    with pytest.raises(ValueError, match="fog"):
        degrade(frame, field, ("fog",), 1, 0)
    with pytest.raises(ValueError, match="severity 6"):
        degrade(frame, field, ("blur",), 6, 0)
    with pytest.raises(ValueError, match="uint8"):
        field_in_frame(frame[..., 0], VIEW)


def test_a_shift_moves_the_field_and_keeps_it_whole(frame: Frame) -> None:
    for seed in range(6):
        ways = set()
        for pixels in (1, 2, 4, 8):
            moved = shifted(frame, VIEW, pixels, seed)
            assert moved.shape == frame.shape
            seen = find_field_of_view(moved).center
            before = find_field_of_view(frame).center
            step = (round((seen[0] - before[0]) / pixels), round((seen[1] - before[1]) / pixels))
            ways.add(step)
            dx, dy = step[0] * pixels, step[1] * pixels
            np.testing.assert_array_equal(moved[20 + dy : 220 + dy, 20 + dx : 290 + dx], frame[20:220, 20:290])
        assert len(ways) == 1
        assert abs(step[0]) + abs(step[1]) == 1
    cut = FieldOfView(VIEW.center, VIEW.radius, ("top", "bottom"))
    for seed in range(8):
        moved = shifted(frame, cut, 8, seed)
        assert np.array_equal(moved[:, 8:], frame[:, :-8]) or np.array_equal(moved[:, :-8], frame[:, 8:])


def test_recompression_is_pillows_and_worsens(frame: Frame) -> None:
    file = io.BytesIO()
    Image.fromarray(frame[..., ::-1]).save(file, "JPEG", quality=75)
    expected = cv2.cvtColor(np.array(Image.open(file)), cv2.COLOR_RGB2BGR)
    np.testing.assert_array_equal(recompressed(frame, 75), expected)
    changes = [mean_change(recompressed(frame, quality), frame) for quality in (95, 90, 75, 50)]
    assert changes == sorted(set(changes))


def test_one_pixel_of_the_field_is_changed_at_a_time(frame: Frame, field: Field) -> None:
    before = frame.copy()
    places = set()
    for changed, (x, y) in with_one_pixel(frame, field, 20, 3):
        different = np.argwhere((changed != frame).any(axis=2))
        assert different.tolist() == [[y, x]]
        assert np.hypot(x - VIEW.center[0], y - VIEW.center[1]) < VIEW.radius
        assert np.abs(changed[y, x].astype(int) - frame[y, x]).min() >= 127
        places.add((x, y))
    assert len(places) >= 19
    np.testing.assert_array_equal(frame, before)
