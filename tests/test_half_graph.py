"""Graphs with nodes in half precision: what stays in float32, and what they compute."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from fundus_rt.benchmarks.proof.graph_runs import GraphSession  # noqa: E402
from fundus_rt.benchmarks.proof.half_precision import open_emulated  # noqa: E402
from fundus_rt.converters.precision.half_graph import halvable, halvable_beside  # noqa: E402
from fundus_rt.converters.precision.recipe import Recipe, graph_digest, onnx_from_recipe  # noqa: E402
from fundus_rt.models.errors import UsageError  # noqa: E402
from tests.quantised_networks import CONVOLUTIONS, photographs, shipped  # noqa: E402


def test_half_precision_keeps_delicate_nodes_and_answers_as_numpys_float16(tmp_path: Path) -> None:
    frames = photographs()
    model, card = shipped(tmp_path / "small.onnx")
    nodes = halvable(model)
    assert set(nodes) == {
        "first",
        "first_relu",
        "one",
        "one_relu",
        "two",
        "add",
        "add_relu",
        "three",
        "three_gate",
        "three_silu",
        "flatten",
    }
    made = onnx_from_recipe(model, card, Recipe(graph_digest(model), fp16=tuple(nodes)))
    onnx.checker.check_model(made, full_check=True)
    stored = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in made.graph.initializer}
    original = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    for name in CONVOLUTIONS:
        np.testing.assert_array_equal(stored[f"{name}_w/half"], original[f"{name}_w"].astype(np.float16))
        assert f"{name}_w" not in stored
    assert {value.name: value.type.tensor_type.elem_type for value in (*made.graph.input, *made.graph.output)} == {
        value.name: value.type.tensor_type.elem_type for value in (*model.graph.input, *model.graph.output)
    }
    before, after = GraphSession(model).run(frames)["sex"], open_emulated(made).run(frames)["sex"]
    assert 0 < np.abs(before - after).max() < 2e-2 * np.ptp(before)


def test_weights_beyond_half_precision_are_refused_with_their_size(tmp_path: Path) -> None:
    model, card = shipped(tmp_path / "small.onnx")
    bias = next(tensor for tensor in model.graph.initializer if tensor.name == "two_b")
    bias.CopyFrom(onnx.numpy_helper.from_array(np.full(16, 1e5, np.float32), "two_b"))
    with pytest.raises(UsageError, match=r"reach 1e\+05"):
        onnx_from_recipe(model, card, Recipe(graph_digest(model), fp16=("two",)))


def test_beside_int8_neither_its_layers_nor_the_activations_behind_them_are_halved(tmp_path: Path) -> None:
    model, _ = shipped(tmp_path / "small.onnx")
    assert set(halvable(model)) - set(halvable_beside(model, ["first", "two"])) == {"first", "first_relu", "two"}
