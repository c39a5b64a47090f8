"""What a graph does to grey levels before its first convolution, and the word that is said where the card has done it already."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fundus_rt.benchmarks.conversion_case import ConversionCase
from fundus_rt.converters.graphs.graph_beginning import grey_level_notes
from fundus_rt.converters.graphs.graph_cleaning import clean_graph
from fundus_rt.models.card import ModelCard
from tests.test_foreign_onnx import classifier, constants
from tests.test_onnx_from_checkpoint import convert

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
helper = onnx.helper
SIZE = 32
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def card(scale: float = 1 / 255, mean: tuple[float, ...] = MEAN, std: tuple[float, ...] = STD) -> ModelCard:
    made = ConversionCase("x", "x", "x", ("onnx", "none"), lambda *_: Path(), SIZE, SIZE, 3).card(SIZE)
    spec = dataclasses.replace(made.preprocessing, scale=scale, mean=mean, std=std)
    return dataclasses.replace(made, preprocessing=spec)


PLAIN = card(1.0, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
ZERO_TO_ONE = card(1 / 255, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
STEPS: dict[str, list[tuple[str, Any]]] = {
    "none": [],
    "divided": [("Div", 255.0)],
    "divided, mean taken off": [("Div", 255.0), ("Sub", [0.4, 0.5, 0.6])],
    "doubled, moved": [("Mul", 2.0), ("Add", -1.0)],
    "reversed, mean taken off": [("Reverse", None), ("Sub", [103.9, 116.8, 123.7])],
    "ImageNet's": [("Div", 255.0), ("Sub", MEAN), ("Div", STD)],
    "nothing in effect": [("Mul", 1.0), ("Add", 0.0)],
}
EXPECTED = {
    ("none", "imagenet"): "",
    ("divided", "imagenet"): "warned",
    ("divided, mean taken off", "imagenet"): "warned",
    ("divided", "plain"): "said",
    ("ImageNet's", "plain"): "said",
    ("ImageNet's", "imagenet"): "warned",
    ("reversed, mean taken off", "plain"): "said",
    ("reversed, mean taken off", "imagenet"): "warned",
    ("doubled, moved", "zero to one"): "said",
    ("doubled, moved", "imagenet"): "warned",
    ("nothing in effect", "imagenet"): "",
}
CARDS = {"imagenet": card(), "plain": PLAIN, "zero to one": ZERO_TO_ONE}


def network(path: Path, steps: list[tuple[str, Any]], channels_first: bool) -> Path:
    """A convolution, pooling and a head behind these steps."""
    tensors = constants(np.random.default_rng(3), kernel=(8, 3, 3, 3), head=(3, 8))
    nodes, name, axis = [], "image", 1 if channels_first else 3
    for index, (kind, value) in enumerate(steps):
        inputs = [name, f"constant_{index}"]
        if kind == "Reverse":
            tensors += [
                onnx.numpy_helper.from_array(np.asarray([number], np.int64), f"{key}_{index}")
                for key, number in (("from", -1), ("to", -(2**31)), ("axis", axis), ("by", -1))
            ]
            inputs = [name, *(f"{key}_{index}" for key in ("from", "to", "axis", "by"))]
        else:
            shape = (1, -1, 1, 1) if channels_first else (1, 1, 1, -1)
            tensors.append(onnx.numpy_helper.from_array(np.asarray(value, np.float32).reshape(shape), f"constant_{index}"))
        name = f"step_{index}"
        nodes.append(helper.make_node("Slice" if kind == "Reverse" else kind, inputs, [name]))
    if not channels_first:
        nodes.append(helper.make_node("Transpose", [name], ["first"], perm=[0, 3, 1, 2]))
        name = "first"
    nodes += [
        helper.make_node("Conv", [name, "kernel"], ["a"], strides=[2, 2]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("GlobalAveragePool", ["b"], ["c"]),
        helper.make_node("Flatten", ["c"], ["d"]),
        helper.make_node("Gemm", ["d", "head"], ["answer"], transB=1),
    ]
    image = ["N", 3, SIZE, SIZE] if channels_first else ["N", SIZE, SIZE, 3]
    return classifier(path, nodes, tensors, image=image, answer=["N", 3])


def reaching_the_convolution(path: Path, spec: Any) -> tuple[float, float]:
    """Least and largest number before the convolution, asked of ONNX Runtime with all-black and all-white pictures."""
    model = onnx.load(str(path))
    before = next(node.input[0] for node in model.graph.node if node.op_type == "Conv")
    del model.graph.output[:]
    model.graph.output.append(helper.make_tensor_value_info(before, onnx.TensorProto.FLOAT, None))
    if before == "image":
        return 0.0, 0.0
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    first = session.get_inputs()[0].shape[1] == 3
    levels = np.stack([np.full((SIZE, SIZE, 3), level, np.float64) for level in (0, 255)])
    images = ((levels * spec.scale - spec.mean) / spec.std).astype(np.float32)
    found = session.run(None, {"image": images.transpose(0, 3, 1, 2).copy() if first else images})[0]
    return float(found.min()), float(found.max())


@pytest.mark.parametrize("channels_first", [True, False])
@pytest.mark.parametrize(("steps", "prepared"), EXPECTED)
def test_a_graph_that_scales_behind_a_card_that_scales_is_warned_of(
    tmp_path: Path, steps: str, prepared: str, channels_first: bool
) -> None:
    path = network(tmp_path / "net.onnx", STEPS[steps], channels_first)
    model = onnx.load(str(path))
    clean_graph(model)
    notes, warnings = grey_level_notes(model, CARDS[prepared])
    assert (bool(notes), bool(warnings)) == {"": (False, False), "said": (True, False), "warned": (True, True)}[
        EXPECTED[steps, prepared]
    ]
    if warnings:
        ends = re.search(r"reach it as (\S+) to (\S+):", warnings[0])
        assert ends is not None and "normalised twice" in warnings[0]
        expected = reaching_the_convolution(path, CARDS[prepared].preprocessing)
        np.testing.assert_allclose([float(ends[1]), float(ends[2])], expected, rtol=1e-3)


def test_the_warning_is_in_the_report_of_a_foreign_graph(tmp_path: Path) -> None:
    path = network(tmp_path / "net.onnx", STEPS["divided, mean taken off"], True)
    report = convert(path, card(), tmp_path / "twice.onnx")
    assert any("normalised twice" in warning for warning in report.warnings)
    assert not any("normalised twice" in warning for warning in convert(path, PLAIN, tmp_path / "once.onnx").warnings)
