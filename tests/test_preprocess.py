"""`tensor_from_frame` against pipelines that are written here with Pillow alone and with OpenCV alone."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image, ImageOps

from fundus_rt.models.card import INTERPOLATIONS, PreprocessingSpec
from fundus_rt.runtime.field_of_view import SIDES, FieldOfView
from fundus_rt.runtime.preprocess import crop_box, tensor_from_frame
from tests.photographs import drawn_fundus

EXAMPLES = sorted((Path(__file__).resolve().parent.parent / "models" / "examples").glob("*.jpg"))
FRAME = drawn_fundus(620, 410, (300.0, 190.0), 240.0)
VIEW = FieldOfView((300.2, 189.7), 240.3, ("top", "bottom"))
SPEC = PreprocessingSpec((96, 96), "field-of-view", "pillow-bilinear", "RGB", 1 / 255, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
PILLOW = ("pillow-nearest", "pillow-bilinear", "pillow-bicubic", "pillow-lanczos", "pillow-box", "keras-nearest")
OPENCV = ("opencv-nearest", "opencv-linear", "opencv-cubic", "opencv-area")


def square(view: FieldOfView) -> tuple[float, float, int]:
    """Left and upper pixel and side of the square around a circle."""
    side = round(2 * view.radius)
    return view.center[0] + 0.5 - side / 2, view.center[1] + 0.5 - side / 2, side


def by_pillow(frame: Any, view: FieldOfView, spec: PreprocessingSpec, mirror: bool) -> Any:
    """RGB in Pillow from end to end, then BGR: its crop is black outside of the picture."""
    picture = Image.fromarray(np.ascontiguousarray(frame[..., ::-1]))
    height, width = spec.input_size
    name = spec.interpolation.removeprefix("pillow-").replace("keras-", "").upper()
    if spec.crop_mode == "field-of-view":
        left, top, side = square(view)
        picture = picture.crop((round(left), round(top), round(left) + side, round(top) + side))
    elif spec.crop_mode == "center":
        side = min(picture.size)
        left, top = round((picture.width - side) / 2), round((picture.height - side) / 2)
        picture = picture.crop((left, top, left + side, top + side))
    picture = picture.resize((width, picture.height), Image.Resampling[name])  # rows first, as before Pillow 13
    picture = picture.resize((width, height), Image.Resampling[name])
    return np.asarray(ImageOps.mirror(picture) if mirror else picture)[..., ::-1]


def by_opencv(frame: Any, view: FieldOfView, spec: PreprocessingSpec, mirror: bool) -> Any:
    height, width = spec.input_size
    if spec.crop_mode == "field-of-view":
        left, top, side = square(view)
        wide = cv2.copyMakeBorder(frame, side, side, side, side, cv2.BORDER_CONSTANT, value=(0, 0, 0))
        frame = wide[round(top) + side : round(top) + 2 * side, round(left) + side : round(left) + 2 * side]
    elif spec.crop_mode == "center":
        side = min(frame.shape[:2])
        left, top = round((frame.shape[1] - side) / 2), round((frame.shape[0] - side) / 2)
        frame = frame[top : top + side, left : left + side]
    flag = getattr(cv2, f"INTER_{spec.interpolation.removeprefix('opencv-').upper()}")
    small = cv2.resize(np.ascontiguousarray(frame), (width, height), interpolation=flag)
    return cv2.flip(small, 1) if mirror else small


@pytest.mark.parametrize("mirror", [False, True])
@pytest.mark.parametrize("crop_mode", ["none", "field-of-view", "center"])
@pytest.mark.parametrize("interpolation", PILLOW + OPENCV)
def test_no_value_differs_from_the_named_library(interpolation: str, crop_mode: str, mirror: bool) -> None:
    spec = dataclasses.replace(SPEC, interpolation=interpolation, crop_mode=crop_mode, input_size=(90, 112))
    independent = by_pillow if interpolation in PILLOW else by_opencv
    before = FRAME.copy()
    tensor = tensor_from_frame(FRAME, VIEW, spec, mirror=mirror)
    assert tensor.dtype == np.uint8 and tensor.flags.c_contiguous
    np.testing.assert_array_equal(tensor, independent(FRAME, VIEW, spec, mirror))
    np.testing.assert_array_equal(FRAME, before)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_no_value_differs_on_real_photographs(path: Path) -> None:
    from fundus_rt.runtime.field_of_view import find_field_of_view

    frame = np.asarray(cv2.imread(str(path)), np.uint8)
    view = find_field_of_view(frame)
    for name, independent in (("pillow-bilinear", by_pillow), ("pillow-bicubic", by_pillow), ("opencv-area", by_opencv)):
        spec = dataclasses.replace(SPEC, interpolation=name, input_size=(384, 384))
        np.testing.assert_array_equal(tensor_from_frame(frame, view, spec), independent(frame, view, spec, False))


SYMMETRIC = [name for name in INTERPOLATIONS if "nearest" not in name and name != "pillow-box"]


@pytest.mark.parametrize("interpolation", SYMMETRIC)
def test_mirror_before_or_after_the_resize(interpolation: str) -> None:
    """Symmetric filters: what differs is the rounding of single coefficients, which OpenCV's own cubic does more often than the
    one of Intel's that its wheels for x86-64 have."""
    spec = dataclasses.replace(SPEC, interpolation=interpolation, crop_mode="none")
    after = tensor_from_frame(FRAME, VIEW, spec, mirror=True).astype(float)
    before = tensor_from_frame(np.ascontiguousarray(FRAME[:, ::-1]), VIEW, spec).astype(float)
    difference = np.abs(after - before)
    share = 0.01 if interpolation == "opencv-cubic" else 0.001
    assert difference.max() <= 1 and (difference > 0.01).mean() < share


def test_mirror_before_or_after_a_filter_that_breaks_ties_to_one_side() -> None:
    """OpenCV's nearest takes the pixel at the left of its place, so here the order is seen; so it is said in the docstring."""
    spec = dataclasses.replace(SPEC, interpolation="opencv-nearest", crop_mode="none")
    after = tensor_from_frame(FRAME, VIEW, spec, mirror=True)
    before = tensor_from_frame(np.ascontiguousarray(FRAME[:, ::-1]), VIEW, spec)
    assert (after != before).mean() > 0.1


def test_float_tensor_of_tf_bilinear() -> None:
    spec = dataclasses.replace(SPEC, interpolation="tf-bilinear")
    tensor = tensor_from_frame(FRAME, VIEW, spec)
    assert tensor.dtype == np.float32 and tensor.max() > 1.5 and (tensor != np.round(tensor)).mean() > 0.3
    np.testing.assert_array_equal(tensor_from_frame(FRAME, VIEW, spec, mirror=True), tensor[:, ::-1])


@pytest.mark.parametrize("interpolation", ["pillow-bilinear", "opencv-area", "tf-bilinear"])
def test_writes_into_a_row_of_a_batch(interpolation: str) -> None:
    spec = dataclasses.replace(SPEC, interpolation=interpolation)
    batch = np.full((3, 96, 96, 3), 7, spec.input_dtype)
    returned = tensor_from_frame(FRAME, VIEW, spec, mirror=True, out=batch[1])
    assert returned.base is batch and (batch[[0, 2]] == 7).all()
    np.testing.assert_array_equal(batch[1], tensor_from_frame(FRAME, VIEW, spec, mirror=True))


@pytest.mark.parametrize("out", [np.zeros((96, 97, 3), np.uint8), np.zeros((96, 96, 3), np.float32)])
def test_out_of_another_shape_or_type_is_refused(out: Any) -> None:
    with pytest.raises(ValueError, match="expected uint8"):
        tensor_from_frame(FRAME, VIEW, SPEC, out=out)


def test_crop_boxes() -> None:
    def box(view: FieldOfView, shape: tuple[int, int, int], mode: str) -> tuple[int, int, int, int]:
        return crop_box(view, shape, dataclasses.replace(SPEC, crop_mode=mode))

    assert box(VIEW, FRAME.shape, "none") == (0, 0, 620, 410)
    assert box(VIEW, FRAME.shape, "center") == (105, 0, 515, 410)
    tight = FieldOfView((49.5, 49.5), 50.0)  # touches all sides of a picture of 100 x 100
    assert box(tight, (100, 100, 3), "field-of-view") == (0, 0, 100, 100)
    assert box(FieldOfView((50.0, 50.0), 50.5), (101, 101, 3), "field-of-view") == (0, 0, 101, 101)
    whole = FieldOfView((309.5, 204.5), 310.0, SIDES, False, 0.0)  # what a full-frame photograph gets
    assert box(whole, FRAME.shape, "field-of-view") == (0, -105, 620, 515)
    with pytest.raises(ValueError, match="expected one of none"):
        box(VIEW, FRAME.shape, "ellipse")


def test_whole_full_frame_photograph_is_seen_in_its_proportions() -> None:
    spec = dataclasses.replace(SPEC, interpolation="opencv-area", input_size=(310, 310))
    white = np.full((410, 620, 3), 255, np.uint8)
    tensor = tensor_from_frame(white, FieldOfView((309.5, 204.5), 310.0, SIDES, False, 0.0), spec)
    assert (tensor[53:257] == 255).all() and not tensor[:52].any() and not tensor[258:].any()
