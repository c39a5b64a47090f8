"""The test vectors: what is stored is what the libraries give, what our runtime gives, and what the porting page gives."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import platform
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from fundus_rt.benchmarks import make_vectors
from fundus_rt.benchmarks.vectors import circles, drawn, outputs, photographs
from fundus_rt.models.canary import canary_from_dict, canary_picture
from fundus_rt.models.card import CARD_KEY, INTERPOLATIONS, OutputSpec, PreprocessingSpec
from fundus_rt.models.registry import VECTOR_FOLDER, bundled_file, load_card
from fundus_rt.runtime import Pipeline
from fundus_rt.runtime.decode import decode, upright
from fundus_rt.runtime.field_of_view import FieldOfView, find_field_of_view
from fundus_rt.runtime.interpret import interpret
from fundus_rt.runtime.onnx_session import OnnxRuntimeSession
from fundus_rt.runtime.preprocess import crop_box, tensor_from_box
from fundus_rt.runtime.resize import cropped, opencv_resizes_linear_itself, resize_box
from tests import porting, porting_field_of_view
from tests.conftest import REPOSITORY
from tests.filter_references import by_library, without_ipp

PHOTOGRAPHS: list[str] = [
    vector["file"] for vector in json.loads((VECTOR_FOLDER / "photographs.json").read_text())["photographs"]
]


def stored(name: str) -> Any:
    return json.loads((VECTOR_FOLDER / f"{name}.json").read_text(encoding="utf-8"))


def pixels(values: list[Any], size: tuple[int, int], dtype: str = "uint8") -> Any:
    return np.array(values, dtype).reshape(*size, 3)


class TestStored:
    """What is stored is what the generator writes, from the libraries."""

    @pytest.mark.parametrize(
        ("name", "made"),
        [
            ("canary", drawn.canary_vectors),
            ("crop", drawn.crop_vectors),
            ("orientation", drawn.orientation_vectors),
            ("field_of_view", circles.circle_vectors),
        ],
    )
    def test_the_same_bytes_again(self, name: str, made: Any) -> None:
        assert (VECTOR_FOLDER / f"{name}.json").read_text(encoding="utf-8") == photographs.lines(made())

    def test_outputs_by_scipy(self) -> None:
        pytest.importorskip("scipy")
        again = outputs.output_vectors()["cases"]
        for one, other in zip(stored("outputs")["cases"], again, strict=True):
            assert one["expected"]["decision"] == other["expected"]["decision"]
            assert one["expected"]["probabilities"] == pytest.approx(other["expected"]["probabilities"], abs=1e-11)

    @pytest.mark.parametrize("name", INTERPOLATIONS)
    def test_resized_by_the_library(self, name: str) -> None:
        vectors = stored("resize")
        cases = [case for case in vectors["cases"] if case["interpolation"] == name]
        assert len(cases) == 10
        for case in cases:
            picture = np.asarray(drawn.drawn_picture(*map(int, case["picture"].split("x"))))
            assert vectors["pictures"][case["picture"]] == picture.reshape(-1).tolist()
            with without_ipp():
                expected = by_library(picture, tuple(case["box"]), tuple(case["size"]), name)
            expected = expected[:, ::-1] if case["mirrored"] else expected
            slack = 1e-3 if name == "tf-bilinear" else 0.0  # the closed form is in float64
            if name == "opencv-linear" and not opencv_resizes_linear_itself():  # KleidiCV, in OpenCV's wheels for arm64
                slack = 2.0
            np.testing.assert_allclose(pixels(case["values"], case["size"], "float32"), expected, rtol=0, atol=slack)

    @pytest.mark.full
    @pytest.mark.skipif(importlib.util.find_spec("tensorflow") is None, reason="tensorflow is not installed")
    def test_everything_again_with_tensorflow(self) -> None:
        made = make_vectors.all_vectors()
        assert set(made) == {path.name for path in VECTOR_FOLDER.iterdir()} - {"README.md"}
        for name in set(made) - {"photographs.json", "outputs.json"}:
            assert made[name] == (VECTOR_FOLDER / name).read_bytes(), name


class TestRuntime:
    """What is stored is what this package computes."""

    @pytest.mark.parametrize("name", INTERPOLATIONS)
    def test_resize(self, name: str) -> None:
        vectors = stored("resize")
        for case in vectors["cases"]:
            if case["interpolation"] == name:
                picture = pixels(vectors["pictures"][case["picture"]], tuple(map(int, case["picture"].split("x"))))
                spec = PreprocessingSpec((16, 16), "none", name, "RGB", 1.0, (0, 0, 0), (1, 1, 1))
                found = resize_box(picture, tuple(case["box"]), tuple(case["size"]), name)
                found = cv2.flip(found, 1) if case["mirrored"] else found
                expected = pixels(case["values"], case["size"], spec.input_dtype)
                most = int(name == "opencv-cubic")  # Intel's own code in OpenCV's wheels
                assert np.abs(found.astype(np.float64) - expected).max() <= most, case["shows"]

    def test_crops_boxes_and_orientation(self) -> None:
        vectors = stored("crop")
        for case in vectors["crops"]:
            found = cropped(pixels(case["picture"], case["size"]), case["box"])
            assert found.reshape(-1).tolist() == case["values"]
        for case in vectors["boxes"]:
            spec = PreprocessingSpec((16, 16), case["crop_mode"], "pillow-box", "RGB", 1.0, (0, 0, 0), (1, 1, 1))
            view = FieldOfView(tuple(case.get("center", (0, 0))), case.get("radius", 1))
            assert list(crop_box(view, tuple(case["frame"]), spec)) == case["box"]
        orientations = stored("orientation")
        for case in orientations["cases"]:
            found = upright(pixels(orientations["stored"], orientations["size"]), case["orientation"])
            assert list(found.shape[:2]) == case["size"] and found.reshape(-1).tolist() == case["values"]

    def test_meanings(self) -> None:
        card = load_card("acquisition")
        for case in stored("outputs")["cases"]:
            spec = OutputSpec("x", tolerance=0.001, **{**case["output"], "labels": tuple(case["output"]["labels"])})
            numbers = {"x": np.array(case["numbers"], np.float64)}
            found = interpret(numbers, type("Card", (), {"outputs": (spec,), "name": card.name}))["x"]  # type: ignore[arg-type]
            expected = case["expected"]
            assert found.value == pytest.approx(expected["value"], abs=1e-9)
            assert (found.label, found.decision) == (expected["label"], expected["decision"])
            assert found.probabilities == (expected["probabilities"] and pytest.approx(expected["probabilities"], abs=1e-9))

    def test_circles_of_drawn_discs(self) -> None:
        for disc in stored("field_of_view")["discs"]:
            found = find_field_of_view(frame_of(disc))
            assert found.center == pytest.approx(disc["center"], abs=0.01 * disc["radius"])
            assert found.radius == pytest.approx(disc["radius"], rel=0.01)
            assert found.found and list(found.cut) == disc["cut"]

    def test_the_words_choose_as_numpy_does(self) -> None:
        for count in (37, 700, 1501):
            expected = np.random.default_rng(0).integers(count, size=480).tolist()
            assert porting_chosen(stored("field_of_view")["random_words"], count) == expected

    @pytest.mark.parametrize("name", PHOTOGRAPHS)
    def test_photographs(self, name: str, examples: Path) -> None:
        vector = stored("photographs")["photographs"][PHOTOGRAPHS.index(name)]
        content = (examples / name).read_bytes()
        assert hashlib.sha256(content).hexdigest() == vector["sha256"]
        frame = decode(content).frame
        assert same(frame, vector["frame"])
        view, card = find_field_of_view(frame), load_card("acquisition")
        known = vector["field_of_view"]
        assert view.center == pytest.approx(known["center"], abs=0.002 * known["radius"])
        assert view.radius == pytest.approx(known["radius"], rel=0.002)
        assert (list(view.cut), view.found) == (known["cut"], known["found"])
        circle = FieldOfView(tuple(known["center"]), known["radius"])
        assert list(crop_box(circle, frame.shape, card.preprocessing)) == vector["box"]
        tensor = tensor_from_box(frame, vector["box"], card.preprocessing)
        # OpenCV's area filter sums in float32, on arm64 otherwise than on x86-64: one of 150,528 values of one of the eleven
        # photographs differs by one grey level there. `same` holds the listed pixels to the vector anywhere.
        whole = same(tensor, vector["input"])
        assert whole or platform.machine().lower() not in ("x86_64", "amd64")
        assert "file" not in vector["input"] or (VECTOR_FOLDER / vector["input"]["file"]).read_bytes() == tensor.tobytes()
        answers = OnnxRuntimeSession(bundled_file(card)).run(tensor[None])
        assert np.abs(answers["receipt"][0] - vector["receipt"]).sum() <= (0 if whole else 1)
        for output in card.outputs:
            assert answers[output.name][0] == pytest.approx(vector["outputs"][output.name], abs=1e-4)
        said = interpret({o.name: answers[o.name][0] for o in card.outputs}, card)
        assert {key: value.decision for key, value in said.items()} == vector["decisions"]

    def test_the_pipeline_from_frame_to_decision(self, examples: Path) -> None:
        vector = stored("photographs")["photographs"][PHOTOGRAPHS.index("haggstrom_right.jpg")]
        result = Pipeline()(decode((examples / "haggstrom_right.jpg").read_bytes()).frame)
        assert {key: value.decision for key, value in result.outputs.items()} == vector["decisions"]


class TestPage:
    """docs/porting.md is enough: plain Python written from it alone gives the vectors."""

    @pytest.mark.parametrize("name", INTERPOLATIONS)
    def test_resize(self, name: str) -> None:
        vectors = stored("resize")
        for case in vectors["cases"]:
            if case["interpolation"] == name:
                size = tuple(map(int, case["picture"].split("x")))
                picture = porting.picture_of(vectors["pictures"][case["picture"]], *size)
                found = porting.resize(porting.cropped(picture, case["box"]), case["size"], name)
                found = porting.mirrored(found) if case["mirrored"] else found
                values = porting.values_of(found)
                expected = [porting.f32(value) for value in case["values"]] if name == "tf-bilinear" else case["values"]
                assert values == expected, case["shows"]

    def test_crops_boxes_and_orientation(self) -> None:
        vectors = stored("crop")
        for case in vectors["crops"]:
            found = porting.cropped(porting.picture_of(case["picture"], *case["size"]), case["box"])
            assert porting.values_of(found) == case["values"]
        for case in vectors["boxes"]:
            found_box = porting.crop_box(case["crop_mode"], case["frame"], case.get("center", (0, 0)), case.get("radius", 0))
            assert list(found_box) == case["box"]
        orientations = stored("orientation")
        picture = porting.picture_of(orientations["stored"], *orientations["size"])
        for case in orientations["cases"]:
            assert porting.values_of(porting.upright(picture, case["orientation"])) == case["values"]

    def test_meanings(self) -> None:
        for case in stored("outputs")["cases"]:
            found, expected = porting.meaning(case["output"], case["numbers"]), case["expected"]
            assert found["decision"] == expected["decision"]
            assert found["value"] == pytest.approx(expected["value"], abs=1e-9)
            assert found["probabilities"] == (expected["probabilities"] and pytest.approx(expected["probabilities"], abs=1e-9))

    @pytest.mark.parametrize("most", [47, pytest.param(512, marks=pytest.mark.full)])
    def test_drawings(self, most: int) -> None:
        for case in stored("canary")["cases"]:
            if case["size"][0] <= most:
                values = porting.values_of(porting.drawing(case["which"], *case["size"]))
                assert hashlib.sha256(bytes(values)).hexdigest() == case["sha256"]
                assert values == case.get("values", values)

    def test_receipts(self) -> None:
        for vector in stored("photographs")["photographs"]:
            if "file" in vector["input"]:
                given = (VECTOR_FOLDER / vector["input"]["file"]).read_bytes()
                assert hashlib.sha256(given).hexdigest() == vector["input"]["sha256"]
                assert porting.receipt(porting.picture_of(given, *vector["input"]["size"])) == vector["receipt"]

    @pytest.mark.full
    def test_from_a_frame_to_input_and_receipt(self, examples: Path) -> None:
        vector = stored("photographs")["photographs"][PHOTOGRAPHS.index("haggstrom_right.jpg")]
        with Image.open(examples / vector["file"]) as file:
            rgb = file.convert("RGB")
        red, green, blue = (channel.tobytes() for channel in rgb.split())
        levels = [level for pixel in zip(blue, green, red, strict=True) for level in pixel]
        frame = porting.picture_of(levels, rgb.height, rgb.width)
        known = vector["field_of_view"]
        box = porting.crop_box("field-of-view", (rgb.height, rgb.width), known["center"], known["radius"])
        assert list(box) == vector["box"]
        given = porting.resize(porting.cropped(frame, box), vector["input"]["size"], "opencv-area")
        assert hashlib.sha256(bytes(porting.values_of(given))).hexdigest() == vector["input"]["sha256"]
        assert porting.receipt(given) == vector["receipt"]

    @pytest.mark.parametrize("which", [0, *(pytest.param(which, marks=pytest.mark.full) for which in (1, 2))])
    def test_circles_of_drawn_discs(self, which: int) -> None:
        vectors = stored("field_of_view")
        disc = vectors["discs"][which]
        frame = frame_of(disc)
        picture = porting.picture_of(frame.reshape(-1).tolist(), *disc["frame"])
        found = porting_field_of_view.field_of_view(picture, vectors["random_words"])
        assert found["center"] == pytest.approx(disc["center"], abs=0.01 * disc["radius"])
        assert found["radius"] == pytest.approx(disc["radius"], rel=0.01)
        assert found["found"] and found["cut"] == disc["cut"]

    @pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.full) for name in PHOTOGRAPHS])
    def test_circles_of_photographs(self, name: str, examples: Path) -> None:
        known = stored("photographs")["photographs"][PHOTOGRAPHS.index(name)]["field_of_view"]
        frame = decode((examples / name).read_bytes()).frame
        picture = porting.picture_of(frame.reshape(-1).tolist(), *frame.shape[:2])
        found = porting_field_of_view.field_of_view(picture, stored("field_of_view")["random_words"])
        assert found["center"] == pytest.approx(known["center"], abs=1e-3 * known["radius"])
        assert found["radius"] == pytest.approx(known["radius"], rel=1e-3)
        assert (found["found"], found["cut"]) == (known["found"], known["cut"])

    def test_card_and_canary_of_a_file(self) -> None:
        card = json.loads(porting.card_text(bundled_file(load_card("acquisition")).read_bytes()))
        assert card["name"] == "acquisition" and CARD_KEY == "fundus_rt.card"
        ours = canary_from_dict(card["canary"])
        assert ours is not None
        for name, known in card["canary"]["answers"].items():
            for off in (0.0, 0.01, 0.04, 0.2):
                answered = [[x + off for x in row] for row in known]
                others = {n: rows for n, rows in ours.answers.items() if n != name}
                problems = ours.problems({**others, name: np.asarray(answered, np.float32)})
                assert porting.canary_holds(known, answered) == (not problems)

    @pytest.mark.skipif(int(cv2.__version__.split(".")[0]) < 5, reason="earlier versions do not read the graph")
    def test_opencv_computes_the_graph(self) -> None:
        network = cv2.dnn.readNetFromONNX(str(bundled_file(load_card("acquisition"))))
        names = network.getUnconnectedOutLayersNames()
        for vector in stored("photographs")["photographs"]:
            if "file" in vector["input"]:
                given = np.fromfile(VECTOR_FOLDER / vector["input"]["file"], np.uint8).reshape(1, *vector["input"]["size"], 3)
                network.setInput(given)
                found = [answer[0] for answer in network.forward(names)]
                assert any(np.array_equal(answer, vector["receipt"]) for answer in found)
                for numbers in vector["outputs"].values():
                    assert any(answer.shape == (len(numbers),) and np.allclose(answer, numbers, atol=1e-4) for answer in found)

    def test_it_names_what_a_card_holds(self) -> None:
        page = (REPOSITORY / "docs" / "porting.md").read_text(encoding="utf-8")
        assert all(f"`{name}`" in page for name in INTERPOLATIONS)
        assert CARD_KEY in page and all(f"`{path.name}`" in page for path in VECTOR_FOLDER.glob("*.json"))


def frame_of(disc: Any) -> Any:
    """A drawing on black, cut where it reaches beyond the frame."""
    height, width = disc["frame"]
    top, left = disc["drawing_at"]
    picture = canary_picture(disc["drawing"], tuple(disc["drawing_size"]))
    return np.ascontiguousarray(cropped(picture, (-left, -top, width - left, height - top)))


def porting_chosen(words: list[int], count: int) -> list[int]:
    """Step 7 of the field of view."""
    found = []
    for word in words:
        if word * count % 2**32 >= 2**32 % count:
            found.append(word * count >> 32)
    return found[:480]


def same(picture: Any, vector: Any) -> bool:
    """Whether a picture has size, pixels and SHA-256 of a vector."""
    rows = [[row, column, *picture[row, column].tolist()] for row, column, *_ in vector["pixels"]]
    assert list(picture.shape[:2]) == vector["size"] and rows == vector["pixels"]
    return hashlib.sha256(picture.tobytes()).hexdigest() == vector["sha256"]
