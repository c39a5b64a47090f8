"""The bundled model: its contract, its card, and what it says of real photographs that are turned, mirrored and spoilt."""

from __future__ import annotations

import json

import cv2
import numpy as np
import pytest

from fundus_rt.models.registry import bundled_file, load_card
from fundus_rt.runtime.pipeline import Frame, Pipeline
from fundus_rt.runtime.session import open_session
from tests.conftest import REPOSITORY

EYES = {
    "idrid_005": "left", "idrid_165": "left", "idrid_325": "left", "idrid_111_12mp": "left", "hrf_06_h": "left",
    "idrid_085": "right", "idrid_205": "right", "idrid_285": "right", "haggstrom_right": "right",
    "chase_01L": "left", "chase_03R": "right",
}  # fmt: skip
"""Which eye each example photograph shows, from the data sets' own labels."""
SURE = ("idrid_005", "idrid_165", "idrid_325", "idrid_111_12mp", "idrid_085", "idrid_205", "idrid_285")


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return Pipeline(threads=2)


def photograph(name: str) -> Frame:
    frame = cv2.imread(str(REPOSITORY / "models" / "examples" / f"{name}.jpg"))
    assert frame is not None
    return np.asarray(frame, np.uint8)


def turned(frame: Frame, degrees: float) -> Frame:
    height, width = frame.shape[:2]
    matrix = cv2.getRotationMatrix2D((width / 2, height / 2), degrees, 1.0)
    return np.asarray(cv2.warpAffine(frame, matrix, (width, height)), np.uint8)


def test_the_file_carries_the_card_of_the_package() -> None:
    assert open_session("acquisition").card == load_card("acquisition")
    assert bundled_file(load_card("acquisition")).stat().st_size <= 4_000_000


def test_the_card_states_what_was_measured() -> None:
    card = load_card("acquisition")
    results = json.loads((REPOSITORY / "models" / "training" / "acquisition_results.json").read_text())
    eye = next(output for output in card.outputs if output.name == "eye")
    assert eye.threshold == results["calibration"]["eye_threshold"]
    assert "CHASE_DB1" in card.performance and "HRF" in card.performance and "synthetic" in card.performance


@pytest.mark.parametrize("name", EYES)
def test_it_is_never_surely_wrong_on_a_real_photograph(pipeline: Pipeline, name: str) -> None:
    said = pipeline(photograph(name)).outputs["eye"].decision
    assert said in (EYES[name], "unknown")
    if name in SURE:
        assert said == EYES[name]


@pytest.mark.parametrize("name", SURE)
def test_a_mirrored_photograph_is_the_other_eye(pipeline: Pipeline, name: str) -> None:
    mirrored = np.ascontiguousarray(photograph(name)[:, ::-1])
    other = {"left": "right", "right": "left"}[EYES[name]]
    assert pipeline(mirrored).outputs["eye"].decision in (other, "unknown")
    back = pipeline(mirrored, mirrored_by_source=True)
    assert back.outputs["eye"].decision == EYES[name]


@pytest.mark.parametrize("degrees", [-10, 10, 45, 90, 135, 180, -90])
@pytest.mark.parametrize("name", SURE)
def test_turning_never_makes_it_the_other_eye(pipeline: Pipeline, name: str, degrees: float) -> None:
    said = pipeline(turned(photograph(name), degrees)).outputs["eye"].decision
    assert said in ((EYES[name], "unknown") if abs(degrees) <= 30 else ("unknown",))


def test_upside_down_is_unknown(pipeline: Pipeline) -> None:
    said = [pipeline(turned(photograph(name), 180)).outputs["eye"].decision for name in SURE]
    assert said == ["unknown"] * len(SURE)


def test_light_and_size_do_not_change_the_eye(pipeline: Pipeline) -> None:
    for name in SURE:
        frame = photograph(name)
        for changed in (
            (frame * 0.5).astype(np.uint8),
            np.clip(frame * np.array([0.7, 1.0, 1.3]), 0, 255).astype(np.uint8),
            cv2.resize(frame, None, fx=0.4, fy=0.4, interpolation=cv2.INTER_AREA),
        ):
            assert pipeline(np.asarray(changed, np.uint8)).outputs["eye"].decision in (EYES[name], "unknown")


def external_eye() -> Frame:
    """A drawn outer eye: skin, white, iris, pupil, lashes, a highlight."""
    frame = np.full((480, 640, 3), (140, 170, 215), np.uint8)
    cv2.ellipse(frame, (320, 240), (230, 110), 0, 0, 360, (235, 235, 240), -1)
    cv2.circle(frame, (320, 240), 95, (60, 90, 130), -1)
    cv2.circle(frame, (320, 240), 42, (10, 10, 10), -1)
    cv2.circle(frame, (350, 210), 12, (255, 255, 255), -1)
    for x in range(110, 540, 18):
        cv2.line(frame, (x, 150), (x - 10, 105), (30, 35, 45), 3)
    return np.asarray(cv2.GaussianBlur(frame, (5, 5), 0), np.uint8)


def test_an_outer_eye_gets_no_side_and_a_clear_sentence(pipeline: Pipeline) -> None:
    result = pipeline(external_eye())
    assert result.eye.value is None
    assert any("take" in warning for warning in result.warnings)


def test_noise_and_text_get_no_side(pipeline: Pipeline) -> None:
    rng = np.random.default_rng(0)
    page = np.full((600, 800, 3), 255, np.uint8)
    for line in range(40, 600, 40):
        cv2.putText(page, "fundus photograph report 2026", (20, line), cv2.FONT_HERSHEY_SIMPLEX, 1.0, (0, 0, 0), 2)
    for frame in (rng.integers(0, 256, (480, 640, 3), dtype=np.uint8), page):
        assert pipeline(frame).eye.value is None
