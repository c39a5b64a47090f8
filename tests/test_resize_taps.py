"""The weights of every filter against those that its library shows when it resizes single bright pixels."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from fundus_rt.models.card import INTERPOLATIONS, PreprocessingSpec
from fundus_rt.runtime.nvidia.resize_taps import ARITHMETICS, OPENCV_BITS, PILLOW_BITS, Taps, filter_matrices, resize_taps
from tests.filter_references import OPENCV, PILLOW, by_library, noise, tent, without_ipp

LENGTHS = ((60, 24), (61, 24), (47, 20), (24, 24), (23, 57), (100, 33), (7, 30), (1, 16), (300, 17))
"""From and to, pixels."""


def matrix(taps: Taps, bits: int = 0) -> Any:
    """The weights as a matrix, float64."""
    dense = np.zeros((len(taps.first), taps.length))
    for k in range(taps.weights.shape[1]):
        place = np.clip(taps.first + k, 0, taps.length - 1)
        np.add.at(dense, (np.arange(len(place)), place), taps.weights[:, k] / 2**bits)
    return dense


def spec(interpolation: str, size: tuple[int, int] = (48, 40)) -> PreprocessingSpec:
    return PreprocessingSpec(size, "none", interpolation, "RGB", 1.0, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


@pytest.mark.parametrize("name", [name for name in PILLOW if not name.endswith("nearest")])
@pytest.mark.parametrize(("length", "wanted"), LENGTHS)
def test_pillow_weights_are_those_of_its_float_pictures(name: str, length: int, wanted: int) -> None:
    taps = resize_taps(name, (5, length), (5, wanted))
    assert taps.arithmetic == "pillow"
    shown = [
        np.asarray(Image.fromarray(row[None]).resize((wanted, 1), PILLOW[name]))[0] for row in np.eye(length, dtype=np.float32)
    ]
    np.testing.assert_allclose(matrix(taps.columns, PILLOW_BITS), np.stack(shown, axis=1), atol=2.0**-23 + 1e-7)
    np.testing.assert_array_equal(matrix(taps.rows, PILLOW_BITS), np.eye(5))


@pytest.mark.parametrize("name", ["opencv-linear", "opencv-cubic", "opencv-area"])
@pytest.mark.parametrize(("length", "wanted"), LENGTHS)
def test_opencv_weights_are_those_of_its_float_pictures(name: str, length: int, wanted: int) -> None:
    taps = resize_taps(name, (length, length), (wanted, wanted))
    with without_ipp():
        lines = np.repeat(np.eye(length, dtype=np.float32)[:, None], length, axis=1)
        shown = np.stack([cv2.resize(line, (wanted, wanted), interpolation=OPENCV[name])[0] for line in lines], axis=1)
    if taps.arithmetic in ("opencv-area-integer", "opencv-area-halves"):
        np.testing.assert_allclose(matrix(taps.columns) * wanted / length, shown, atol=1e-6)
    elif taps.arithmetic == "opencv-area":
        np.testing.assert_allclose(matrix(taps.columns), shown, atol=1e-6)
    else:
        np.testing.assert_allclose(matrix(taps.columns, OPENCV_BITS), shown, atol=2 * 2.0**-12 + 1e-5)
    np.testing.assert_array_equal(matrix(taps.columns), matrix(taps.rows))


@pytest.mark.parametrize(("length", "wanted"), LENGTHS)
def test_tensorflow_weights_are_tents(length: int, wanted: int) -> None:
    taps = resize_taps("tf-bilinear", (length, 3), (wanted, 3))
    np.testing.assert_allclose(matrix(taps.rows), tent(length, wanted), atol=3e-5)


@pytest.mark.parametrize("name", [name for name in INTERPOLATIONS if name.endswith("-nearest")])
@pytest.mark.parametrize("length", [(61, 83), (700, 333), (20, 5)])
def test_nearest_takes_the_librarys_pixels(name: str, length: tuple[int, int]) -> None:
    image = noise(*length)
    taps = resize_taps(name, length, (48, 40))
    rows, columns = matrix(taps.rows, PILLOW_BITS), matrix(taps.columns, PILLOW_BITS)
    assert set(np.unique(rows)) == {0, 1}
    found = image[rows.argmax(axis=1)][:, columns.argmax(axis=1)]
    np.testing.assert_array_equal(found, by_library(image, (0, 0, length[1], length[0]), (48, 40), name))


@pytest.mark.parametrize(
    ("name", "length", "wanted", "expected"),
    [
        ("opencv-area", (64, 96), (32, 48), "opencv-area-halves"),
        ("opencv-area", (64, 96), (32, 32), "opencv-area-integer"),
        ("opencv-area", (32, 96), (32, 32), "opencv-area-integer"),
        ("opencv-area", (64, 97), (32, 32), "opencv-area"),
        ("opencv-area", (31, 96), (32, 32), "opencv-linear"),
        ("opencv-linear", (64, 96), (32, 48), "opencv-area-halves"),
        ("opencv-linear", (64, 96), (32, 32), "opencv-linear"),
    ],
)
def test_opencv_changes_its_arithmetic_with_the_factor(
    name: str, length: tuple[int, int], wanted: tuple[int, int], expected: str
) -> None:
    assert resize_taps(name, length, wanted).arithmetic == expected
    assert expected in ARITHMETICS


@settings(max_examples=40, deadline=None)
@given(
    name=st.sampled_from(INTERPOLATIONS),
    length=st.integers(1, 900),
    wanted=st.integers(1, 300),
)
def test_weights_touch_the_crop_and_sum_to_one(name: str, length: int, wanted: int) -> None:
    taps = resize_taps(name, (length, length), (wanted, wanted))
    unit = {"pillow": 2.0**PILLOW_BITS, "opencv-linear": 2048.0, "opencv-cubic": 2048.0}.get(taps.arithmetic, 1.0)
    if taps.arithmetic in ("opencv-area-integer", "opencv-area-halves"):
        unit = length / wanted
    sums = taps.columns.weights.sum(axis=1) / unit
    rounded = 0.5 * taps.columns.weights.shape[1] / unit if taps.arithmetic == "pillow" else 0.0  # half a unit for each weight
    np.testing.assert_allclose(sums, 1, atol=2 / 2048 if taps.arithmetic == "opencv-cubic" else 1e-5 + rounded)
    assert taps.columns.first.max() < length and (taps.columns.first + taps.columns.weights.shape[1]).min() > 0


def test_kept_weights_cannot_be_changed() -> None:
    taps = resize_taps("pillow-bilinear", (50, 50), (20, 20))
    with pytest.raises(ValueError, match="read-only"):
        taps.rows.weights[0, 0] = 1


BOXES = ((0, 0, 207, 151), (10, 20, 190, 140), (-50, -30, 220, 240), (60, -90, 180, 30), (200, 145, 300, 245))


@pytest.mark.parametrize("name", INTERPOLATIONS)
@pytest.mark.parametrize("box", BOXES)
@pytest.mark.parametrize("mirror", [False, True])
def test_matrices_crop_mirror_and_resize_a_frame(name: str, box: tuple[int, int, int, int], mirror: bool) -> None:
    """In exact arithmetic, so rounding between the passes and cut-off bits may move a value by one."""
    frame = noise(151, 207)
    rows, columns = filter_matrices(spec(name), box, frame.shape, mirror)
    assert rows.shape == (48, 151) and columns.shape == (40, 207)
    assert rows.dtype == columns.dtype == np.float32
    assert rows.flags.c_contiguous and columns.flags.c_contiguous
    narrow = columns.astype(float) @ frame.astype(float)
    if name.startswith("pillow-"):  # grey levels between the passes
        narrow = narrow.clip(0, 255)
    short = np.tensordot(rows.astype(float), narrow, axes=1)
    if name == "opencv-area":  # whole factors add blocks up
        short /= round(rows.sum(axis=1).max()) * round(columns.sum(axis=1).max())
    expected = by_library(frame, box, (48, 40), name).astype(float)
    allowed = 0 if name.endswith("-nearest") else 0.01 if name == "tf-bilinear" else 1.6
    assert np.abs(short.clip(0, 255) - (expected[:, ::-1] if mirror else expected)).max() <= allowed
    outside = np.ones(frame.shape[:2], bool)
    outside[max(box[1], 0) : max(box[3], 0), max(box[0], 0) : max(box[2], 0)] = False
    assert not (outside & (np.abs(rows).sum(axis=0)[:, None] * np.abs(columns).sum(axis=0) > 0)).any()


def test_refusals_say_what_was_got() -> None:
    with pytest.raises(ValueError, match="pillow-hamming"):
        resize_taps("pillow-hamming", (10, 10), (5, 5))
    with pytest.raises(ValueError, match="1 pixel or more"):
        resize_taps("pillow-box", (10, 0), (5, 5))
    with pytest.raises(ValueError, match="no pixel of the frame"):
        filter_matrices(spec("pillow-box"), (300, 0, 400, 90), (100, 200, 3), False)
