"""`resize` in grey levels against the library that each filter is named after."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import PIL
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from fundus_rt.models.card import INTERPOLATIONS
from fundus_rt.runtime.resize import (
    OPENCV_FILTERS,
    PILLOW_FILTERS,
    cropped,
    opencv_resizes_linear_itself,
    resize,
    resize_box,
)
from tests.conftest import environment
from tests.photographs import drawn_fundus

STORED = Path(__file__).parent / "data" / "tf_resize.npz"
PILLOW = {
    "pillow-nearest": Image.Resampling.NEAREST,
    "pillow-bilinear": Image.Resampling.BILINEAR,
    "pillow-bicubic": Image.Resampling.BICUBIC,
    "pillow-lanczos": Image.Resampling.LANCZOS,
    "pillow-box": Image.Resampling.BOX,
    "keras-nearest": Image.Resampling.NEAREST,
}
TF_SIZES = (((61, 83), (16, 24)), ((61, 83), (70, 90)), ((47, 31), (47, 20)), ((384, 300), (32, 32)))
"""Heights and widths, from and to."""


def noise(height: int, width: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def by_pillow(image: Any, box: tuple[int, int, int, int], size: tuple[int, int], name: str) -> Any:
    """Pillow's own crop (black outside) and resize: rows, then columns, as Pillow had it before version 13."""
    picture = Image.fromarray(image).crop(box)
    narrow = picture.resize((size[1], picture.height), PILLOW[name])
    return np.asarray(narrow.resize((size[1], size[0]), PILLOW[name]))


BOXES = ((0, 0, 207, 151), (10, 20, 190, 140), (-50, -30, 220, 240), (-1, 5, 100, 152), (60, -90, 180, 30), (200, 145, 300, 245))


@pytest.mark.parametrize("name", PILLOW)
@pytest.mark.parametrize("box", BOXES)
@pytest.mark.parametrize("size", [(48, 48), (33, 130), (300, 300), (151, 207), (150, 270)])
def test_pillow_filters_differ_in_no_value(name: str, box: tuple[int, int, int, int], size: tuple[int, int]) -> None:
    image = noise(151, 207)
    before = image.copy()
    result = resize_box(image, box, size, name)
    assert result.dtype == np.uint8 and result.flags.c_contiguous
    np.testing.assert_array_equal(result, by_pillow(image, box, size, name))
    np.testing.assert_array_equal(image, before)


@pytest.mark.parametrize("name", PILLOW)
def test_pillow_in_one_call(name: str) -> None:
    """Squares are reduced by Pillow of every version in the same order; other shapes are by Pillow before 13."""
    image = drawn_fundus(1100, 1100, (540.0, 560.0), 520.0)
    expected = np.asarray(Image.fromarray(image).resize((384, 384), PILLOW[name]))
    np.testing.assert_array_equal(resize(image, (384, 384), name), expected)
    if int(PIL.__version__.split(".")[0]) < 13:
        tall = noise(470, 300)
        expected = np.asarray(Image.fromarray(tall).resize((200, 96), PILLOW[name]))
        np.testing.assert_array_equal(resize(tall, (96, 200), name), expected)


@settings(max_examples=60, deadline=None)
@given(
    name=st.sampled_from(sorted(PILLOW)),
    height=st.integers(1, 600),
    width=st.integers(1, 300),
    left=st.integers(-200, 250),
    top=st.integers(-300, 500),
    side=st.integers(1, 500),
    rows=st.integers(16, 150),
    columns=st.integers(16, 150),
    seed=st.integers(0, 9),
)
def test_pillow_filters_on_any_crop(
    name: str, height: int, width: int, left: int, top: int, side: int, rows: int, columns: int, seed: int
) -> None:
    image = noise(height, width, seed)
    box = (left, top, left + side, top + side)
    if min(left + side, width) <= max(left, 0) or min(top + side, height) <= max(top, 0):
        with pytest.raises(ValueError, match="no pixel"):
            resize_box(image, box, (rows, columns), name)
    else:
        np.testing.assert_array_equal(resize_box(image, box, (rows, columns), name), by_pillow(image, box, (rows, columns), name))


def test_keras_nearest_is_what_load_img_gives(tmp_path: Path) -> None:
    keras = pytest.importorskip("keras")
    image = noise(151, 207)
    Image.fromarray(image).save(tmp_path / "a.png")
    expected = np.asarray(keras.utils.load_img(tmp_path / "a.png", target_size=(64, 48)))
    np.testing.assert_array_equal(resize(image, (64, 48), "keras-nearest"), expected)


@pytest.mark.parametrize("name", OPENCV_FILTERS)
@pytest.mark.parametrize("box", BOXES)
def test_opencv_filters_differ_in_no_value(name: str, box: tuple[int, int, int, int]) -> None:
    if name == "opencv-linear" and not opencv_resizes_linear_itself():
        pytest.skip("this OpenCV leaves its linear filter to another library; the closed form is what counts")
    image = noise(151, 207)
    flag = getattr(cv2, f"INTER_{name.removeprefix('opencv-').upper()}")
    left, top, right, bottom = box
    framed = cv2.copyMakeBorder(image, 300, 300, 300, 300, cv2.BORDER_CONSTANT, value=(0, 0, 0))
    picture = np.ascontiguousarray(framed[top + 300 : bottom + 300, left + 300 : right + 300])
    np.testing.assert_array_equal(resize_box(image, box, (70, 96), name), cv2.resize(picture, (96, 70), interpolation=flag))


def linear_in_closed_form(image: Any, size: tuple[int, int]) -> Any:
    """OpenCV's linear filter for 8 bits in whole numbers, as modules/imgproc/src/resize.cpp has it: weights in 11 bits, the rows
    first and exactly, then the columns with 4 and 16 bits cut off; at exactly half of the size the mean of four pixels."""
    if image.shape[:2] == (2 * size[0], 2 * size[1]):
        four = image.astype(int)
        return (four[::2, ::2] + four[::2, 1::2] + four[1::2, ::2] + four[1::2, 1::2] + 2) >> 2

    def taps(length: int, wanted: int) -> Any:
        places = ((np.arange(wanted) + 0.5) * (1.0 / (wanted / length)) - 0.5).astype(np.float32)
        lower = np.floor(places)
        share = places - lower
        weights = [np.rint(w * np.float32(2048)).astype(int) for w in (np.float32(1) - share, share)]
        return [(np.clip(lower.astype(int) + k, 0, length - 1), weights[k]) for k in (0, 1)]

    across = sum(image[:, at].astype(int) * weight[None, :, None] for at, weight in taps(image.shape[1], size[1]))
    down = sum((weight[:, None, None] * (across[at] >> 4)) >> 16 for at, weight in taps(image.shape[0], size[0]))
    return (down + 2) >> 2


LINEAR_SIZES = [
    ((151, 207), (70, 96)),
    ((160, 160), (80, 80)),
    ((97, 131), (224, 224)),
    ((448, 448), (384, 384)),
    ((301, 90), (77, 88)),
]


@pytest.mark.parametrize(("before", "after"), LINEAR_SIZES)
def test_opencv_linear_is_its_closed_form(before: tuple[int, int], after: tuple[int, int]) -> None:
    image = noise(*before)
    np.testing.assert_array_equal(resize(image, after, "opencv-linear"), linear_in_closed_form(image, after))


@pytest.mark.parametrize(("before", "after"), LINEAR_SIZES)
def test_an_opencv_that_leaves_linear_to_another_library_is_found_and_gone_around(
    before: tuple[int, int], after: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    own = cv2.resize

    def by_another_library(picture: Any, size: tuple[int, int], interpolation: int) -> Any:
        """As KleidiCV: takes up to four channels of linear, and rounds otherwise."""
        found = own(picture, size, interpolation=interpolation)
        taken = interpolation == cv2.INTER_LINEAR and picture.shape[2] <= 4
        return found ^ 1 if taken else found

    image = noise(*before)
    monkeypatch.setattr(cv2, "resize", by_another_library)
    opencv_resizes_linear_itself.cache_clear()
    try:
        assert not opencv_resizes_linear_itself()
        found = resize(image, after, "opencv-linear")
    finally:
        opencv_resizes_linear_itself.cache_clear()
    assert found.flags.c_contiguous and found.dtype == np.uint8
    np.testing.assert_array_equal(found, linear_in_closed_form(image, after))


def tf_vectors() -> dict[str, Any]:
    """`tf.image.resize` of noise. ``python -m tests.test_resize`` writes them to `STORED`."""
    import tensorflow as tf

    found = {}
    for i, (shape, size) in enumerate(TF_SIZES):
        for method in ("bilinear", "nearest"):
            found[f"{method}-{i}"] = tf.image.resize(noise(*shape), size, method).numpy()
    return found


def check_tf(vectors: Any) -> None:
    for i, (shape, size) in enumerate(TF_SIZES):
        for method, dtype in (("bilinear", np.float32), ("nearest", np.uint8)):
            result = resize(noise(*shape), size, f"tf-{method}")
            assert result.dtype == dtype and result.flags.c_contiguous
            np.testing.assert_array_equal(result, vectors[f"{method}-{i}"])


def test_tf_filters_differ_in_no_value_from_stored_results() -> None:
    with np.load(STORED) as vectors:
        check_tf(vectors)


@pytest.mark.skipif(importlib.util.find_spec("tensorflow") is None, reason="tensorflow is not installed")
def test_tf_filters_differ_in_no_value_from_tensorflow() -> None:
    check_tf(tf_vectors())


def test_every_filter_is_implemented() -> None:
    for name in INTERPOLATIONS:
        assert resize(noise(90, 80), (40, 30), name).shape == (40, 30, 3)
    with pytest.raises(ValueError, match="expected one of"):
        resize(noise(90, 80), (40, 30), "pillow-hamming")


if __name__ == "__main__":
    np.savez_compressed(STORED, **tf_vectors())


@pytest.mark.parametrize("interpolation", sorted(PILLOW_FILTERS))
def test_threads_that_share_the_rows_change_no_value(interpolation: str) -> None:
    picture = np.random.default_rng(5).integers(0, 256, (1111, 700, 3), np.uint8)
    box = (-40, 30, 760, 1000)
    threads = cv2.getNumThreads()
    try:
        found = []
        for count in (1, 2, 5):
            cv2.setNumThreads(count)
            found.append(resize_box(picture, box, (97, 130), interpolation))
    finally:
        cv2.setNumThreads(threads)
    filter_ = PILLOW_FILTERS[interpolation]
    expected = np.asarray(Image.fromarray(cropped(picture, box)).resize((130, 970), filter_).resize((130, 97), filter_))
    assert all(np.array_equal(one, expected) for one in found)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there are no forked processes here")
def test_a_forked_process_resizes_with_threads_of_its_own() -> None:
    code = """
import multiprocessing, cv2, numpy as np
from fundus_rt.runtime.resize import resize
picture = np.random.default_rng(0).integers(0, 256, (900, 700, 3), np.uint8)
def answer(): return resize(picture, (40, 30), "pillow-bilinear").tobytes()
cv2.setNumThreads(2)
before = answer()
with multiprocessing.get_context("fork").Pool(1) as pool:
    assert pool.apply_async(answer).get(30) == before
print("same")
"""
    call = [sys.executable, "-c", code]
    done = subprocess.run(call, capture_output=True, text=True, env=environment(), check=False, timeout=90)
    assert done.stdout == "same\n", done.stderr
