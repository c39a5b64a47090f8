"""`resize` in grey levels against the library that each filter is named after."""

from __future__ import annotations

import importlib.util
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
from fundus_rt.runtime.resize import OPENCV_FILTERS, resize, resize_box
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
    image = noise(151, 207)
    flag = getattr(cv2, f"INTER_{name.removeprefix('opencv-').upper()}")
    left, top, right, bottom = box
    framed = cv2.copyMakeBorder(image, 300, 300, 300, 300, cv2.BORDER_CONSTANT, value=(0, 0, 0))
    picture = np.ascontiguousarray(framed[top + 300 : bottom + 300, left + 300 : right + 300])
    np.testing.assert_array_equal(resize_box(image, box, (70, 96), name), cv2.resize(picture, (96, 70), interpolation=flag))


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
