"""The original's side of a conversion's proof: its own libraries on real photographs, and mistakes on our side that must show."""

from __future__ import annotations

import dataclasses
import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fundus_rt.converters import original_preprocessing as originals
from fundus_rt.converters.original_preprocessing import Photograph, largest_level_difference, original_inputs
from fundus_rt.converters.parity import Reference, compare_shipped, reference_tensor
from fundus_rt.models.card import INTERPOLATIONS, ModelCard, PreprocessingSpec
from fundus_rt.models.errors import ParityError
from fundus_rt.models.registry import EXAMPLE_FOLDER, load_card
from fundus_rt.runtime.decode import decode
from fundus_rt.runtime.field_of_view import find_field_of_view
from fundus_rt.runtime.preprocess import crop_box, tensor_from_frame

pytest.importorskip("torch")
pytest.importorskip("tf_keras")

IMAGENET: dict[str, Any] = {"scale": 1 / 255, "mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
KERAS: dict[str, Any] = {"scale": 1 / 127.5, "mean": (1.0, 1.0, 1.0), "std": (1.0, 1.0, 1.0)}
PHOTOGRAPHS = ("chase_01L.jpg", "haggstrom_right.jpg", "idrid_285.jpg")


def spec_for(interpolation: str, crop_mode: str = "field-of-view", color_order: str = "RGB", **changes: Any) -> PreprocessingSpec:
    return PreprocessingSpec((96, 80), crop_mode, interpolation, color_order, **(IMAGENET | changes))


def both_ways(
    spec: PreprocessingSpec, mirror: bool = False, names: tuple[str, ...] = PHOTOGRAPHS
) -> tuple[Any, list[Photograph]]:
    """The runtime's frames, and the photographs for the original's side."""
    tensors, photographs = [], []
    for name in PHOTOGRAPHS:
        content = (EXAMPLE_FOLDER / name).read_bytes()
        frame = decode(content).frame
        view = find_field_of_view(frame)
        tensors.append(tensor_from_frame(frame, view, spec, mirror=mirror))
        photographs.append(Photograph(content, crop_box(view, frame.shape, spec), mirror))
    return np.stack(tensors), photographs


@pytest.mark.parametrize("mirror", [False, True])
@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
def test_every_filter_is_the_librarys_own(interpolation: str, mirror: bool) -> None:
    """The filters that decide to one side when mirrored are the two that `tensor_from_frame` names."""
    spec = spec_for(interpolation)
    tensors, photographs = both_ways(spec, mirror)
    theirs = original_inputs(photographs, spec, "pytorch")
    assert theirs.images.dtype == np.float32 and theirs.images.shape == (3, 96, 80, 3)
    library = interpolation.partition("-")[0]
    assert {"pillow": "torchvision", "opencv": "OpenCV", "tf": "tf.image", "keras": "torchvision"}[library] in theirs.libraries
    apart = largest_level_difference(theirs.images, reference_tensor(tensors, spec), spec)
    one_sided = mirror and interpolation in ("opencv-nearest", "pillow-box", "pillow-nearest", "keras-nearest", "tf-nearest")
    most = 255.0 if one_sided else 1.01 if mirror else 2e-3
    assert apart <= most


@pytest.mark.parametrize("framework", ["keras", "pytorch", "onnx"])
@pytest.mark.parametrize("crop_mode", ["none", "center", "field-of-view"])
def test_every_framework_crops_and_orders_colours_as_the_card_says(framework: str, crop_mode: str) -> None:
    for order in ("RGB", "BGR"):
        spec = spec_for("pillow-bicubic", crop_mode, order)
        tensors, photographs = both_ways(spec)
        theirs = original_inputs(photographs, spec, framework)
        assert largest_level_difference(theirs.images, reference_tensor(tensors, spec), spec) < 2e-3


@pytest.mark.parametrize("mode", sorted(originals.KERAS_MODES))
def test_keras_own_normalisation_is_used_where_the_card_has_its_numbers(mode: str) -> None:
    order, scale, mean, std = originals.KERAS_MODES[mode]
    spec = spec_for("keras-nearest", "none", order, scale=scale, mean=mean, std=std)
    tensors, photographs = both_ways(spec)
    theirs = original_inputs(photographs, spec, "keras")
    assert f"'{mode}'" in theirs.libraries and "load_img" in theirs.libraries
    assert largest_level_difference(theirs.images, reference_tensor(tensors, spec), spec) < 2e-3
    own = original_inputs(photographs, dataclasses.replace(spec, scale=scale * 1.01), "keras")
    assert "NumPy" in own.libraries


def test_the_difference_is_in_grey_levels() -> None:
    spec = spec_for("pillow-bilinear")
    levels = np.full((1, 96, 80, 3), 100, np.uint8)
    ours, theirs = reference_tensor(levels, spec), reference_tensor(levels + np.uint8(7), spec)
    assert largest_level_difference(ours, theirs, spec) == pytest.approx(7, rel=1e-5)


def test_a_rotated_photograph_is_turned_upright_on_both_sides() -> None:
    picture = Image.open(EXAMPLE_FOLDER / "chase_01L.jpg").convert("RGB")
    exif = Image.Exif()
    exif[0x0112] = 6
    stored = io.BytesIO()
    picture.save(stored, "JPEG", quality=95, exif=exif)
    for interpolation in ("pillow-bilinear", "opencv-linear"):
        spec = spec_for(interpolation, "none")
        frame = decode(stored.getvalue()).frame
        tensor = tensor_from_frame(frame, find_field_of_view(frame), spec)
        photograph = Photograph(stored.getvalue(), (0, 0, picture.height, picture.width))
        theirs = original_inputs([photograph], spec, "pytorch")
        assert largest_level_difference(theirs.images, reference_tensor(tensor[None], spec), spec) < 2e-3


def test_what_cannot_be_read_is_said() -> None:
    for interpolation, library in (("pillow-bilinear", "Pillow"), ("opencv-linear", "OpenCV")):
        with pytest.raises(ValueError, match=f"{library} cannot read a photograph of 7 bytes"):
            original_inputs([Photograph(b"nothing", (0, 0, 5, 5))], spec_for(interpolation), "pytorch")


class Columns:
    """A network without framework: mean square of the upper half less that of the lower half, in "years"."""

    @staticmethod
    def answers(images: np.ndarray) -> np.ndarray:
        squares = np.square(images)
        halves = squares[:, :48].mean(axis=(1, 2)) - squares[:, 48:].mean(axis=(1, 2))
        return np.asarray(10 * halves.sum(axis=1, keepdims=True), np.float32)


def age_card(spec: PreprocessingSpec, tolerance: float) -> ModelCard:
    card = load_card("joir-age")
    output = dataclasses.replace(card.outputs[0], tolerance=tolerance, columns=1, activation="none")
    return dataclasses.replace(card, preprocessing=spec, outputs=(output,))


def shipped(spec: PreprocessingSpec) -> Any:
    """A shipped file of `Columns` that normalises as `spec` says."""

    def run(frames: np.ndarray) -> dict[str, np.ndarray]:
        receipt = frames.astype(np.float64).sum(axis=(2, 3))
        return {"age": Columns.answers(reference_tensor(frames, spec)), "receipt": receipt}

    return run


def proof(spec: PreprocessingSpec, ours: PreprocessingSpec, tolerance: float) -> Any:
    """Compare a conversion whose card says `spec` but whose runtime prepares and normalises as `ours`."""
    tensors, _ = both_ways(ours)
    _, photographs = both_ways(spec)
    theirs = original_inputs(photographs, spec, "pytorch")
    answers = {"age": Columns.answers(theirs.images)}
    same = {"age": Columns.answers(reference_tensor(tensors, ours))}
    levels = largest_level_difference(theirs.images, reference_tensor(tensors, ours), spec)
    reference = Reference(answers, same, theirs.libraries, levels)
    return reference, compare_shipped(shipped(ours), tensors, reference, age_card(spec, tolerance))


def test_right_preprocessing_passes_to_rounding() -> None:
    spec = spec_for("pillow-bilinear")
    reference, (difference,) = proof(spec, spec, 1e-4)
    assert difference.largest < 1e-4 and reference.levels < 2e-3
    assert "largest difference" in str(reference) and "torchvision" in str(reference)


@pytest.mark.parametrize(
    "wrong",
    [
        {"interpolation": "opencv-linear"},
        {"crop_mode": "none"},
        {"color_order": "BGR"},
        {"mean": (0.5, 0.5, 0.5)},
        {"scale": 1.0},
    ],
)
def test_wrong_preprocessing_shows_though_the_network_is_right(wrong: dict[str, Any]) -> None:
    spec = spec_for("pillow-bilinear")
    ours = dataclasses.replace(spec, **wrong)
    with pytest.raises(ParityError, match=r"(?s)beyond the tolerance.*of the network alone.*grey levels"):
        proof(spec, ours, 1e-3)
    reference, (difference,) = proof(spec, ours, 1e9)
    assert difference.network_largest is not None and difference.network_largest < 1e-4 < 1e-3 < difference.largest
    assert reference.levels > 1


def test_the_report_says_when_only_frames_were_given() -> None:
    answers = {"age": np.zeros((1, 1), np.float32)}
    assert "not compared" in str(Reference(answers, answers))
