"""Framing, sharpness, mixed frames, and the choice of a burst's frame."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from fundus_rt.runtime import Pipeline
from fundus_rt.runtime.camera.burst import Burst, BurstCollector
from fundus_rt.runtime.camera.connection import ROW_STEP, CameraFrame
from fundus_rt.runtime.camera.framing import framing_problem
from fundus_rt.runtime.camera.judge import FrameJudge, FrameQuality, is_mixed
from fundus_rt.runtime.camera.sharpness import LEAST_DETAIL, sharpness_of
from fundus_rt.runtime.field_of_view import FieldOfView, find_field_of_view
from tests.films import SIZE, Scene, frames_of
from tests.photographs import drawn_fundus

NOTHING = np.zeros((1, 1, 3), np.uint8)


@pytest.mark.parametrize(
    ("center", "radius", "words"),
    [
        ((320, 240), 220, ""),
        ((120, 240), 220, "too far left"),
        ((520, 240), 220, "too far right"),
        ((320, 140), 220, "too far up"),
        ((320, 340), 220, "too far down"),
        ((320, 240), 100, "too small: move closer"),
        ((320, 240), 270, ""),  # as cameras that cut top and bottom by design
        ((320, 240), 420, "too large"),
    ],
)
def test_framing(center: tuple[float, float], radius: float, words: str) -> None:
    view = find_field_of_view(drawn_fundus(640, 480, center, radius)) if radius < 400 else FieldOfView(center, radius)
    said = framing_problem(view, 480, 640)
    assert said.startswith(words) and bool(said) == bool(words)


def test_the_example_photographs_are_framed_and_sharp_enough(examples: Path) -> None:
    for path in sorted(examples.glob("*.jpg")):
        picture = cv2.imread(str(path))
        picture = cv2.resize(picture, None, fx=1000 / picture.shape[1], fy=1000 / picture.shape[1], interpolation=cv2.INTER_AREA)
        view = find_field_of_view(picture)
        assert framing_problem(view, *picture.shape[:2]) == "", path.name
        assert sharpness_of(picture, view).detail > LEAST_DETAIL, path.name
        blurred = cv2.GaussianBlur(picture, (0, 0), 0.02 * view.radius)
        assert sharpness_of(np.asarray(blurred, np.uint8), view).detail < LEAST_DETAIL, path.name


def test_no_rim_is_said() -> None:
    assert framing_problem(FieldOfView((320, 240), 320, (), False, 0.0), 480, 640).startswith("cut: no rim")


def test_focus_falls_with_blur_and_hardly_follows_light_or_distance(examples: Path) -> None:
    picture = cv2.imread(str(examples / "chase_01L.jpg"))
    view = find_field_of_view(picture)
    focus = [sharpness_of(np.asarray(cv2.GaussianBlur(picture, (0, 0), s), np.uint8), view).focus for s in (0.5, 1, 2, 4, 8)]
    assert focus == sorted(focus, reverse=True) and focus[-1] < 0.2 * focus[0]
    whole = sharpness_of(picture, view).focus
    assert sharpness_of((picture * 0.7).astype(np.uint8), view).focus == pytest.approx(whole, rel=0.15)
    moved = cv2.copyMakeBorder(picture, 100, 50, 30, 300, cv2.BORDER_CONSTANT)
    assert sharpness_of(np.asarray(moved, np.uint8), find_field_of_view(np.asarray(moved, np.uint8))).focus == pytest.approx(
        whole, rel=0.02
    )
    small = np.asarray(cv2.resize(picture, None, fx=0.7, fy=0.7, interpolation=cv2.INTER_AREA), np.uint8)
    assert sharpness_of(small, find_field_of_view(small)).focus == pytest.approx(whole, rel=0.15)


def test_the_judge_needs_an_eye_where_the_model_does(examples: Path) -> None:
    """A field of even colour passes as a fundus, its eye unknown."""
    pipeline = Pipeline()
    frame = next(frame for _, frame in frames_of([Scene("sharp", 1)], examples))
    turned = np.ascontiguousarray(np.rot90(frame))
    seen = pipeline(turned)
    assert seen.eye.value is None and seen.outputs["fundus"].decision == "fundus"
    asked = CameraFrame(0, 0.0, 0.0, turned)
    assert FrameJudge(pipeline, eye_needed=True)(asked).problem.startswith("which eye?")
    assert "which eye" not in FrameJudge(pipeline, "left", eye_needed=True)(asked).problem
    assert "which eye" not in FrameJudge(pipeline)(asked).problem


def compared(frame: np.ndarray, before: np.ndarray) -> CameraFrame:
    """The frame as a connection hands it over after another."""
    small, old = frame[::ROW_STEP, ::ROW_STEP].astype(float), before[::ROW_STEP, ::ROW_STEP].astype(float)
    same = (small == old).all(axis=(1, 2))
    others = (small - old)[~same]
    return CameraFrame(1, 0.0, 0.0, frame, same, float(np.sqrt((others**2).mean())) if others.size else 0.0)


@pytest.mark.parametrize(
    ("rows", "mixed"),
    [
        (slice(0, 0), False),
        (slice(SIZE // 2, SIZE), True),
        (slice(150, 250), True),
        (slice(0, SIZE), False),  # the same picture once more
        (slice(SIZE - 40, SIZE), False),  # black surround
    ],
)
def test_rows_of_the_frame_before(examples: Path, rows: slice, mixed: bool) -> None:
    before, frame = (frame for _, frame in frames_of([Scene("sharp", 2)], examples))
    view = find_field_of_view(frame)
    torn = frame.copy()
    torn[rows] = before[rows]
    assert is_mixed(compared(torn, before), view) == mixed


def test_a_frame_that_is_cut_off_or_blurred_is_not_good(examples: Path) -> None:
    judge, lenient = FrameJudge(Pipeline()), FrameJudge(Pipeline(), any_quality=True)
    (_, sharp), (_, blurred) = frames_of([Scene("sharp", 1), Scene("blurred", 1)], examples)
    filled = sharp.copy()
    filled[SIZE * 9 // 10 :] = 128
    said = [judge(CameraFrame(0, 0.0, 0.0, frame)).problem for frame in (sharp, filled, blurred)]
    assert said[0] == "" and said[1].startswith("incomplete") and said[2].startswith("not sharp")
    said = [lenient(CameraFrame(0, 0.0, 0.0, frame)).problem for frame in (sharp, filled, blurred)]
    assert said[0] == "" and said[1].startswith("incomplete") and said[2] == ""


def captured(qualities: list[FrameQuality], step: float = 0.11, end: bool = False) -> list[tuple[int, int]]:
    """Number of the frame that is captured, and of the frame at which it is decided."""
    collector, found = BurstCollector(), []
    burst: Burst | None
    for index, quality in enumerate(qualities):
        _, burst = collector.add(CameraFrame(index, 0.0, index * step, NOTHING), quality)
        if burst is not None:
            found.append((burst.frame.number, index))
    if end and (burst := collector.end()) is not None:
        found.append((burst.frame.number, len(qualities)))
    return found


def good(focus: float, eye: str | None = "left") -> FrameQuality:
    return FrameQuality(True, "", eye, focus)


BAD = FrameQuality(True, "not sharp", "left")
AWAY = FrameQuality(False, "dark")


@pytest.mark.parametrize(
    ("qualities", "expected"),
    [
        ([good(7), good(9), good(8), good(7), good(7)], [(1, 3)]),
        ([good(5), good(6), good(7), good(8), good(9), good(8)], [(4, 5)]),  # not before it gets no sharper
        ([good(9), AWAY, AWAY, good(8), good(7), good(7)], [(0, 5)]),  # a blink ends no burst
        ([good(9), good(9), *[AWAY] * 8, good(8), good(8)], []),  # two frames of one view, two of another
        ([good(9), BAD, good(8), BAD, good(8), BAD], [(0, 5)]),
        ([*[good(5)] * 4, *[good(5)] * 20], [(0, 3)]),  # once for each view
        ([*[good(5)] * 5, *[AWAY] * 8, *[good(5)] * 5], [(0, 3), (13, 16)]),
        ([*[good(5)] * 5, *[good(5, "right")] * 8], [(0, 3), (7, 10)]),  # the other eye without a gap
        ([*[good(5)] * 5, good(5, "right"), *[good(5)] * 8], [(0, 3)]),  # one frame that says so is no other eye
        ([good(1), good(1), good(1), good(9), good(8), good(8), good(8)], [(3, 6)]),  # what was blurred does not count
        ([good(10 + i) for i in range(30)], [(13, 14)]),  # for ever sharper: after a second and a half
    ],
)
def test_which_frame_of_a_burst(qualities: list[FrameQuality], expected: list[tuple[int, int]]) -> None:
    assert captured(qualities) == expected


def test_the_last_frame_of_a_film_does_not_count() -> None:
    assert captured([good(5), good(6), good(7), good(99)], step=0.05, end=True) == [(2, 4)]
    assert captured([good(5), good(6), good(99)], step=0.05, end=True) == []


def test_a_loss_forgets_the_burst() -> None:
    collector = BurstCollector()
    for index in range(3):
        collector.add(CameraFrame(index, 0.0, index * 0.1, NOTHING), good(5))
    collector.lost()
    assert collector.add(CameraFrame(3, 0.0, 0.9, NOTHING), good(5))[1] is None
    assert collector.end() is None
