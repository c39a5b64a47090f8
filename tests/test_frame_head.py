"""The portable frame head on ONNX Runtime, in grey levels against each filter's own library, and through TensorRT's parser."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from fundus_rt.converters.engines import lint_onnx
from fundus_rt.converters.engines.frame_head import (
    FRAME_HEAD_FORMAT,
    FRAME_HEAD_KEY,
    FULL_FLOAT32,
    frame_onnx_from_onnx,
    with_frame_head,
)
from fundus_rt.converters.shipping import embed_card
from fundus_rt.models.card import CARD_KEY, INTERPOLATIONS, ModelCard, PreprocessingSpec, card_from_json
from fundus_rt.models.errors import ModelFileError
from fundus_rt.models.registry import bundled_file, load_card
from fundus_rt.runtime.decode import decode
from fundus_rt.runtime.field_of_view import find_field_of_view
from fundus_rt.runtime.nvidia.resize_taps import filter_matrices
from fundus_rt.runtime.preprocess import crop_box, tensor_from_frame
from tests.filter_references import by_library, noise, without_ipp

Box = tuple[int, int, int, int]
EXACT = tuple(name for name in INTERPOLATIONS if name.startswith("pillow-") or name.endswith("-nearest"))


def card_for(interpolation: str, size: tuple[int, int], crop_mode: str = "none") -> ModelCard:
    spec = PreprocessingSpec(size, crop_mode, interpolation, "BGR", 1.0, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    return dataclasses.replace(load_card("joir-age"), preprocessing=spec)


def identity(card: ModelCard, kind: int = TensorProto.FLOAT, beginning: str = "pixels") -> Any:
    """A shipped network whose output ``age`` is the picture that it saw, float32 [N, h * w * 3]."""
    height, width = card.preprocessing.input_size
    pixels = TensorProto.UINT8 if card.preprocessing.input_dtype == "uint8" else TensorProto.FLOAT
    nodes = [
        helper.make_node("Cast", ["frames"], [beginning], to=kind),
        helper.make_node("Cast", [beginning], ["seen"], to=TensorProto.FLOAT),
        helper.make_node("ReduceSum", ["seen", "axes"], ["receipt"], keepdims=0),
        helper.make_node("Reshape", ["seen", "flat"], ["age"]),
    ]
    constants = [numpy_helper.from_array(np.array(v, np.int64), n) for n, v in (("axes", [2, 3]), ("flat", [0, -1]))]
    outputs = [
        helper.make_tensor_value_info("age", TensorProto.FLOAT, ["N", height * width * 3]),
        helper.make_tensor_value_info("receipt", TensorProto.FLOAT, ["N", height]),
    ]
    frames = helper.make_tensor_value_info("frames", pixels, ["N", height, width, 3])
    graph = helper.make_graph(nodes, "identity", [frames], outputs, constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    embed_card(model, card)
    return model


def run(model: Any, frames: Any, filters: list[tuple[Any, Any]]) -> dict[str, Any]:
    """The outputs by name."""
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    rows, columns = (np.stack(matrices) for matrices in zip(*filters, strict=True))
    values = session.run(names, {"frame": frames, "row_filter": rows, "column_filter": columns})
    return dict(zip(names, values, strict=True))


def pictures(model: Any, frames: Any, crops: list[tuple[Box, bool]], card: ModelCard) -> Any:
    """What the network saw, [N, h, w, 3]; every receipt is held to it."""
    spec = card.preprocessing
    filters = [filter_matrices(spec, box, frames.shape[1:], mirror) for box, mirror in crops]
    answer = run(model, frames, filters)
    seen = answer["age"].reshape(len(frames), *spec.input_size, 3)
    np.testing.assert_array_equal(answer["receipt"], frames.reshape(*frames.shape[:2], -1).sum(axis=2))
    np.testing.assert_allclose(answer["receipt_network"], seen.reshape(*seen.shape[:2], -1).sum(axis=2, dtype=float), rtol=1e-5)
    for (rows, columns), found in zip(filters, answer["receipt_filters"], strict=True):
        places = [matrix.astype(float) @ np.arange(matrix.shape[1]) for matrix in (rows, columns)]
        np.testing.assert_allclose(found, np.concatenate(places), rtol=1e-5, atol=1e-3)
    return seen


def expected_pictures(frames: Any, crops: list[tuple[Box, bool]], card: ModelCard) -> Any:
    spec = card.preprocessing
    with without_ipp():
        made = [by_library(f, box, spec.input_size, spec.interpolation) for f, (box, _) in zip(frames, crops, strict=True)]
    return np.stack([p[:, ::-1] if mirror else p for p, (_, mirror) in zip(made, crops, strict=True)]).astype(np.float64)


def most(name: str, enlarged: bool) -> tuple[float, float]:
    """Largest difference in grey levels, and the share of values that may have it, as the module's page states them."""
    if name in EXACT or (name == "opencv-linear" and not enlarged):
        return 0, 0
    if name == "tf-bilinear":
        return 0.01, 1  # the closed form is in float64
    return 1, {"opencv-linear": 0.02, "opencv-cubic": 0.002, "opencv-area": 0.1 if enlarged else 1e-3}[name]


CASES = (
    ((151, 207), (70, 96), (-50, -30, 220, 240)),
    ((100, 130), (120, 140), (0, 0, 130, 100)),
    ((101, 131), (61, 53), (20, -31, 161, 60)),
    ((128, 256), (64, 128), (0, 0, 256, 128)),
    ((96, 121), (32, 20), (0, 0, 120, 96)),
    ((300, 310), (40, 36), (-3, 2, 307, 299)),
)
"""Frame, result and box: beyond the frame, enlarged, reduced, 2 x 2, other whole factors, much reduced."""


@pytest.mark.parametrize("name", INTERPOLATIONS)
@pytest.mark.parametrize(("shape", "size", "box"), CASES)
def test_two_crops_at_once_as_their_library_makes_them(
    name: str, shape: tuple[int, int], size: tuple[int, int], box: Box
) -> None:
    card = card_for(name, size)
    frames = np.stack([noise(*shape, seed) for seed in (0, 1)])
    crops = [(box, False), ((3, 2, shape[1] - 1, shape[0] - 5), True)]
    seen = pictures(with_frame_head(identity(card), card), frames, crops, card)
    difference = np.abs(seen - expected_pictures(frames, crops, card))
    largest, share = most(name, size[0] > box[3] - box[1] or size[1] > box[2] - box[0])
    assert difference.max() <= largest and (difference > 0.01).mean() <= share


@pytest.mark.parametrize("name", INTERPOLATIONS)
def test_photographs_as_their_library_makes_them(examples: Path, name: str) -> None:
    card = card_for(name, (224, 224), "field-of-view")
    frames = np.stack([decode((examples / f"idrid_{number}.jpg").read_bytes()).frame for number in ("085", "285")])
    views = [find_field_of_view(frame) for frame in frames]
    crops = [
        (crop_box(view, frames.shape[1:], card.preprocessing), mirror) for view, mirror in zip(views, (False, True), strict=True)
    ]
    seen = pictures(with_frame_head(identity(card), card), frames, crops, card)
    difference = np.abs(seen - expected_pictures(frames, crops, card))
    largest, share = most(name, False)
    assert difference.max() <= largest and (difference > 0.01).mean() <= share


def in_tf32(model: Any) -> Any:
    """The graph with the factors of every product rounded to 11 bits as tensor cores take them; by Veltkamp's splitting."""
    graph = model.graph
    graph.initializer.append(numpy_helper.from_array(np.float32(2**13 + 1), "splitter"))
    nodes = []
    for number, node in enumerate(list(graph.node)):
        if node.op_type == "MatMul":
            for side in (0, 1):
                stem = f"tf32_{number}_{side}"
                nodes.append(helper.make_node("Mul", [node.input[side], "splitter"], [f"{stem}_a"]))
                nodes.append(helper.make_node("Sub", [f"{stem}_a", node.input[side]], [f"{stem}_b"]))
                nodes.append(helper.make_node("Sub", [f"{stem}_a", f"{stem}_b"], [stem]))
                node.input[side] = stem
        nodes.append(node)
    del graph.node[:]
    graph.node.extend(nodes)
    return model


@pytest.mark.parametrize("name", INTERPOLATIONS)
def test_tf32_changes_nothing_where_the_head_says_so(name: str) -> None:
    card = card_for(name, (48, 40))
    model = with_frame_head(identity(card), card)
    facts = json.loads(next(entry.value for entry in model.metadata_props if entry.key == FRAME_HEAD_KEY))
    assert facts == {"format": FRAME_HEAD_FORMAT, "interpolation": name, "tf32_is_exact": name not in FULL_FLOAT32}
    frames, same = noise(301, 307)[None], []
    boxes = [(5, 3, 301, 299), (100, 120, 350, 301)] + ([(5, 3, 36, 38)] if name.startswith("pillow-") else [])
    whole = [pictures(model, frames, [(box, False)], card) for box in boxes]
    in_tf32(model)
    for box, expected in zip(boxes, whole, strict=True):
        same.append(np.array_equal(pictures(model, frames, [(box, False)], card), expected))
    assert all(same) if facts["tf32_is_exact"] else not any(same)


def test_the_shipped_networks_answer_the_same(examples: Path, tiny_age: Path, tiny_sex: Path) -> None:
    """From whole photographs, against the network on the host's tensor."""
    for path in (tiny_age, tiny_sex, bundled_file(load_card("acquisition"))):
        model = onnx.load(path)
        card = card_from_json(next(entry.value for entry in model.metadata_props if entry.key == CARD_KEY))
        before = [value.name for value in model.graph.output if value.name != "receipt"]
        plain = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        headed = with_frame_head(model)
        assert [value.name for value in headed.graph.output if not value.name.startswith("receipt")] == before
        for number, mirror in (("idrid_085.jpg", False), ("chase_03R.jpg", True)):
            frame = decode((examples / number).read_bytes()).frame
            view = find_field_of_view(frame)
            tensor = tensor_from_frame(frame, view, card.preprocessing, mirror)
            box = crop_box(view, frame.shape, card.preprocessing)
            found = run(headed, frame[None], [filter_matrices(card.preprocessing, box, frame.shape, mirror)])
            for output in card.outputs:
                (expected,) = plain.run([output.name], {"frames": tensor[None]})
                assert np.abs(found[output.name] - expected).max() <= output.tolerance
            np.testing.assert_array_equal(found["receipt_network"][0], tensor.reshape(len(tensor), -1).sum(axis=1))


@pytest.mark.parametrize("name", INTERPOLATIONS)
def test_the_graph_is_for_old_runtimes(name: str) -> None:
    card = card_for(name, (64, 48))
    model = with_frame_head(identity(card))
    onnx.shape_inference.infer_shapes(model, strict_mode=True, check_type=True)
    assert lint_onnx(model) == []
    assert model.ir_version <= 9 and 17 <= model.opset_import[0].version <= 19
    readers = [node.op_type for node in model.graph.node if "frame" in node.input]
    assert readers == ["Cast"]
    shapes = {v.name: [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim] for v in model.graph.input}
    assert shapes == {"frame": ["N", "H", "W", 3], "row_filter": ["N", 64, "H"], "column_filter": ["N", 48, "W"]}
    outputs = {v.name for v in model.graph.output}
    assert outputs == {"age", "receipt", "receipt_network", "receipt_filters"}


@pytest.mark.parametrize(
    "name", ["pillow-bilinear", "pillow-nearest", "opencv-linear", "opencv-cubic", "opencv-area", "tf-bilinear"]
)
def test_tensorrt_builds_an_engine_of_it(name: str) -> None:
    from tests.tensorrt_host import host_library

    trt = host_library().module
    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    model = with_frame_head(identity(card_for(name, (96, 96))))
    assert parser.parse(model.SerializeToString()), [parser.get_error(i).desc() for i in range(parser.num_errors)]
    config, profile = builder.create_builder_config(), builder.create_optimization_profile()
    for tensor, row in (("frame", False), ("row_filter", True), ("column_filter", True)):
        side = 0 if tensor == "row_filter" else 1
        sizes = ((200, 300), (1500, 1900), (2848, 4288))
        profile.set_shape(tensor, *((1, 96, size[side]) if row else (1, *size, 3) for size in sizes))
    config.add_optimization_profile(profile)
    config.builder_optimization_level = 0
    plan = builder.build_serialized_network(network, config)
    assert plan is not None and plan.nbytes > 10_000


def test_names_of_the_head_are_taken_from_the_network() -> None:
    card = card_for("pillow-bilinear", (32, 32))
    frames, crops = noise(60, 70)[None], [((0, 0, 70, 60), False)]
    expected = expected_pictures(frames, crops, card)
    for beginning in ("frame", "row_filter", "receipt_network", "head_constant", "head_0_cast_0"):
        np.testing.assert_array_equal(
            pictures(with_frame_head(identity(card, beginning=beginning)), frames, crops, card), expected
        )
    half = pictures(with_frame_head(identity(card, TensorProto.FLOAT16)), frames, crops, card)  # whole numbers are exact in it
    np.testing.assert_array_equal(half, expected)


def test_filters_of_another_frame_show_in_their_receipt() -> None:
    card = card_for("pillow-bilinear", (32, 32))
    model = with_frame_head(identity(card))
    boxes = (((0, 0, 70, 60), False), ((0, 0, 70, 60), True), ((1, 0, 70, 60), False), ((0, 0, 70, 59), False))
    filters = [filter_matrices(card.preprocessing, box, (60, 70), mirror) for box, mirror in boxes]
    receipts = run(model, np.repeat(noise(60, 70)[None], 4, axis=0), filters)["receipt_filters"]
    for other in receipts[1:]:
        assert np.abs(other - receipts[0]).max() > 0.4


def test_a_file_gets_its_head(tiny_age: Path, tmp_path: Path) -> None:
    target = tmp_path / "tiny.frames.onnx"
    before = tiny_age.read_bytes()
    card = frame_onnx_from_onnx(tiny_age, target)
    assert tiny_age.read_bytes() == before
    metadata = onnxruntime.InferenceSession(str(target), providers=["CPUExecutionProvider"]).get_modelmeta().custom_metadata_map
    assert card_from_json(metadata[CARD_KEY]) == card
    assert json.loads(metadata[FRAME_HEAD_KEY])["format"] == FRAME_HEAD_FORMAT
    (tmp_path / "text.onnx").write_text("no model")
    with pytest.raises(ModelFileError, match=r"text\.onnx"):
        frame_onnx_from_onnx(tmp_path / "text.onnx", target)
    with pytest.raises(ModelFileError, match="row_filter"):
        frame_onnx_from_onnx(target, target)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["text.onnx", "tiny.frames.onnx"]


def test_refusals_say_what_was_got(tiny_age: Path) -> None:
    card = card_for("pillow-bilinear", (32, 32))
    headed = with_frame_head(identity(card))
    with pytest.raises(ModelFileError, match="row_filter"):
        with_frame_head(headed)
    with pytest.raises(ModelFileError, match=r"\[N, 32, 32, 3\]"):
        with_frame_head(onnx.load(tiny_age), card)
    bare = identity(card)
    del bare.metadata_props[:]
    with pytest.raises(ModelFileError, match="no model card"):
        with_frame_head(bare)
    uncast = identity(card)
    uncast.graph.node[0].CopyFrom(helper.make_node("Identity", ["frames"], ["pixels"]))
    with pytest.raises(ModelFileError, match="read by Identity"):
        with_frame_head(uncast)


def written_row(name: str, i: int, n: int, m: int) -> dict[int, float]:
    """Row i of a matrix, weight by weight, as the page of `frame_head` tells a C++ programmer to compute it."""
    scale, f32 = n / m, np.float32
    weights: dict[int, float] = {}
    if name.startswith("pillow-"):
        support = {"bilinear": 1.0, "bicubic": 2.0, "lanczos": 3.0, "box": 0.5}[name.removeprefix("pillow-")]
        stretch = max(scale, 1.0)
        reach, center = support * stretch, (i + 0.5) * scale
        for j in range(max(0, math.trunc(center - reach + 0.5)), min(n, math.trunc(center + reach + 0.5))):
            weights[j] = shape(name, (j - center + 0.5) / stretch)
        total = sum(weights.values())
        scaled = {j: w / total * 2**22 for j, w in weights.items()}
        return {j: math.trunc(w + math.copysign(0.5, w)) / 2**22 for j, w in scaled.items()}
    if name == "tf-bilinear":
        x = (f32(i) + f32(0.5)) * (f32(n) / f32(m)) - f32(0.5)
        j, share = math.floor(x), x - np.floor(x)
        pairs = [(j, f32(1) - share), (j + 1, share)]
    elif name == "opencv-area" and n >= m:
        if n % m == 0:
            return dict.fromkeys(range(i * n // m, (i + 1) * n // m), 1.0)
        scale = 1 / (m / n)
        b, e = i * scale, i * scale + scale
        cell, last = min(scale, n - b), min(math.floor(e), n - 1)
        if math.ceil(b) - b > 0.001:
            weights[math.ceil(b) - 1] = float(f32((math.ceil(b) - b) / cell))
        weights.update({j: float(f32(1 / cell)) for j in range(math.ceil(b), last)})
        if e - last > 0.001:
            weights[last] = float(f32(min(e - last, 1, cell) / cell))
        return weights
    else:
        if name == "opencv-area":
            j = math.floor(i * (1 / (m / n)))
            share = f32((i + 1) - (j + 1) * (m / n))
            share = f32(0) if share <= 0 else share - np.floor(share)
        else:
            x = f32((i + 0.5) * (1 / (m / n)) - 0.5)
            j, share = math.floor(x), x - np.floor(x)
        pairs = [(j, f32(1) - share), (j + 1, share)]
        pairs = [(j, np.rint(w * f32(2048)) / f32(2048)) for j, w in pairs]
    for j, w in pairs:
        place = min(max(j, 0), n - 1)
        weights[place] = weights.get(place, 0.0) + float(w)
    return weights


def shape(name: str, x: float) -> float:
    """f(x) of Pillow's filters."""
    x = abs(x) if name != "pillow-box" else x
    if name == "pillow-bilinear":
        return max(0.0, 1 - x)
    if name == "pillow-box":
        return 1.0 if -0.5 < x <= 0.5 else 0.0
    if name == "pillow-lanczos":
        return 0.0 if x >= 3 else 1.0 if x == 0 else math.sin(math.pi * x) * math.sin(math.pi * x / 3) * 3 / (math.pi * x) ** 2
    a = -0.5
    if x < 1:
        return (a + 2) * x**3 - (a + 3) * x**2 + 1
    return a * (x**3 - 5 * x**2 + 8 * x - 4) if x < 2 else 0.0


@pytest.mark.parametrize(
    "name", ["pillow-bilinear", "pillow-bicubic", "pillow-lanczos", "pillow-box", "opencv-linear", "opencv-area", "tf-bilinear"]
)
@pytest.mark.parametrize(("n", "m"), [(300, 40), (280, 40), (80, 40), (33, 40), (41, 40)])
def test_the_page_tells_how_the_matrices_are_computed(name: str, n: int, m: int) -> None:
    left, frame = 7, (n + 20, n + 20, 3)
    card = card_for(name, (m, m))
    rows, columns = filter_matrices(card.preprocessing, (left, left, left + n, left + n), frame, True)
    expected = np.zeros((m, n + 20))
    for i in range(m):
        for j, weight in written_row(name, i, n, m).items():
            expected[i, j + left] = weight
    np.testing.assert_allclose(rows, expected, atol=2.0**-22 + 1e-9 if name.startswith("pillow-") else 1e-9)
    np.testing.assert_array_equal(columns, rows[::-1])
