"""Lower precision: its numbers against numpy's, what runtimes make of the graphs, recipes, the search and the command."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from fundus_rt.benchmarks.precision.audit import audited  # noqa: E402
from fundus_rt.benchmarks.precision.calibration import activation_histograms, ranges_by  # noqa: E402
from fundus_rt.benchmarks.precision.network_inputs import network_inputs  # noqa: E402
from fundus_rt.benchmarks.precision.search import Search  # noqa: E402
from fundus_rt.benchmarks.precision.trials import TrialFile, Workbench  # noqa: E402
from fundus_rt.benchmarks.proof.graph_runs import GraphSession, copy_of  # noqa: E402
from fundus_rt.benchmarks.proof.half_precision import open_emulated  # noqa: E402
from fundus_rt.converters.engines.engine_lint import lint_onnx  # noqa: E402
from fundus_rt.converters.precision.half_graph import halvable  # noqa: E402
from fundus_rt.converters.precision.heavy_nodes import multiplications  # noqa: E402
from fundus_rt.converters.precision.int8_graph import quantisable  # noqa: E402
from fundus_rt.converters.precision.node_groups import node_groups  # noqa: E402
from fundus_rt.converters.precision.recipe import (  # noqa: E402
    Recipe,
    graph_digest,
    onnx_from_recipe,
    read_recipe,
    serialised,
    shipped_model,
)
from fundus_rt.models.card import ModelCard  # noqa: E402
from fundus_rt.models.errors import ModelFileError, ParityError, UsageError  # noqa: E402
from fundus_rt.models.registry import EXAMPLE_FOLDER  # noqa: E402
from fundus_rt.runtime.guarded_session import open_guarded  # noqa: E402
from fundus_rt.runtime.pipeline import Pipeline  # noqa: E402
from tests.conftest import Run  # noqa: E402
from tests.quantised_networks import CONVOLUTIONS, SIZE, photographs, shipped  # noqa: E402


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("precision") / "small.onnx"
    shipped(path)
    return path


@pytest.fixture(scope="module")
def float32(file: Path) -> tuple[Any, ModelCard]:
    return shipped_model(file)


@pytest.fixture(scope="module")
def frames() -> np.ndarray:
    return photographs()


@pytest.fixture(scope="module")
def whole(float32: tuple[Any, ModelCard], frames: np.ndarray) -> Recipe:
    """Everything that can be in int8, with ranges from the photographs."""
    model, _ = float32
    nodes = quantisable(model)
    found = activation_histograms(model, nodes, frames)
    return Recipe(graph_digest(model), tuple(nodes), placement="around", ranges=ranges_by(found, "max"))


# The graphs


def test_multiplications_are_those_of_the_formula(float32: tuple[Any, ModelCard]) -> None:
    half, c = SIZE // 2, 16
    expected = [half**2 * c * 27, half**2 * c * c, half**2 * c * c * 9, half**2 * c * c, c]
    assert multiplications(float32[0]) == dict(zip((*CONVOLUTIONS, "head"), expected, strict=True))


def fake(values: np.ndarray, largest: float) -> np.ndarray:
    """Rounded to int8 and back, in numpy."""
    scale = np.float32(largest / 127)
    return (np.clip(np.rint(values / scale), -128, 127) * scale).astype(np.float32)


@pytest.mark.parametrize("placement", ["around", "behind"])
def test_one_layer_of_int8_computes_what_numpy_computes(
    placement: str, float32: tuple[Any, ModelCard], whole: Recipe, frames: np.ndarray
) -> None:
    model, card = float32
    recipe = dataclasses.replace(whole, int8=("one",), placement=placement)
    made = onnx_from_recipe(model, card, recipe)
    kind = onnx.TensorProto.FLOAT
    before = copy_of(model)
    before.graph.output.append(onnx.helper.make_tensor_value_info("a_relu", kind, None))
    made.graph.output.append(onnx.helper.make_tensor_value_info("b_relu/restored", kind, None))
    entered = GraphSession(before, optimised=False).run(frames[:3])["a_relu"]
    found = GraphSession(made, optimised=False).run(frames[:3])["b_relu/restored"]
    stored = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    levels = stored["one_w"][:, :, 0, 0]
    steps = np.abs(levels).max(axis=1, keepdims=True) / 127
    kernel = np.rint(levels / steps) * steps
    summed = np.einsum("oi,nihw->nohw", kernel, fake(entered, whole.ranges["a_relu"])) + stored["one_b"][:, None, None]
    expected = fake(np.maximum(summed, 0), whole.ranges["b_relu"])
    step = whole.ranges["b_relu"] / 127
    assert np.abs(found - expected).max() <= 1.01 * step  # a sum on the edge between two levels may fall to either
    assert np.mean(np.abs(found - expected) > 0.01 * step) < 1e-3


@pytest.mark.parametrize("placement", ["around", "behind"])
def test_int8_is_in_the_form_that_tensorrt_reads(placement: str, float32: tuple[Any, ModelCard], whole: Recipe) -> None:
    made = onnx_from_recipe(*float32, dataclasses.replace(whole, placement=placement))
    onnx.checker.check_model(made, full_check=True)
    assert lint_onnx(made) == []
    restored = {node.output[0] for node in made.graph.node if node.op_type == "DequantizeLinear"}
    heavy = [node for node in made.graph.node if node.op_type in ("Conv", "Gemm")]
    assert len(heavy) == 5 and all(set(node.input[:2]) <= restored and node.input[2] not in restored for node in heavy)
    kinds = {tensor.name: tensor.data_type for tensor in made.graph.initializer}
    assert all(kinds[node.input[2]] == onnx.TensorProto.FLOAT for node in heavy)
    receipt = next(node for node in made.graph.node if "receipt" in node.output)
    assert not restored.intersection(receipt.input)


def test_onnx_runtime_fuses_every_layer_and_an_audit_refuses_the_other_placement(
    tmp_path: Path, float32: tuple[Any, ModelCard], whole: Recipe
) -> None:
    shares = {}
    for placement in ("around", "behind"):
        path = tmp_path / f"{placement}.onnx"
        path.write_bytes(serialised(onnx_from_recipe(*float32, dataclasses.replace(whole, placement=placement))))
        shares[placement] = audited(path, "onnxruntime")
    convolutions = [name for name in whole.int8 if name in CONVOLUTIONS]
    shares["around"].require(convolutions, 1.0)
    assert shares["around"].share > 0.99
    with pytest.raises(ParityError, match="expected 95 %; in float32 stayed "):
        shares["behind"].require(convolutions)


def test_openvino_fuses_the_pairs_behind_the_activations(tmp_path: Path, float32: tuple[Any, ModelCard], whole: Recipe) -> None:
    pytest.importorskip("openvino")
    path = tmp_path / "int8.onnx"
    path.write_bytes(serialised(onnx_from_recipe(*float32, dataclasses.replace(whole, placement="behind"))))
    found = audited(path, "openvino")
    found.require(whole.int8)
    assert found.share == 1.0


def test_an_audit_of_a_float32_file_finds_no_int8(file: Path) -> None:
    found = audited(file, "onnxruntime")
    assert found.share == 0
    with pytest.raises(ParityError, match=r"0\.0 % of the multiplications"):
        found.require(CONVOLUTIONS)


# Half precision


def test_half_precision_keeps_delicate_nodes_and_answers_as_numpys_float16(
    float32: tuple[Any, ModelCard], frames: np.ndarray
) -> None:
    model, card = float32
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


def test_weights_beyond_half_precision_are_refused_with_their_size(float32: tuple[Any, ModelCard]) -> None:
    model = copy_of(float32[0])
    bias = next(tensor for tensor in model.graph.initializer if tensor.name == "two_b")
    bias.CopyFrom(onnx.numpy_helper.from_array(np.full(16, 1e5, np.float32), "two_b"))
    with pytest.raises(UsageError, match=r"reach 1e\+05"):
        onnx_from_recipe(model, float32[1], Recipe(graph_digest(model), fp16=("two",)))


# Recipes


def test_a_recipe_read_back_makes_the_same_bytes(tmp_path: Path, file: Path, whole: Recipe) -> None:
    path = tmp_path / "small.recipe.json"
    path.write_text(whole.to_json(), encoding="utf-8")
    first = serialised(onnx_from_recipe(*shipped_model(file), whole))
    second = serialised(onnx_from_recipe(*shipped_model(file), read_recipe(path)))
    assert first == second
    (tmp_path / "int8.onnx").write_bytes(first)
    with pytest.raises(ModelFileError, match="is in int8 already"):
        shipped_model(tmp_path / "int8.onnx")
    session = open_guarded(tmp_path / "int8.onnx")  # its card, its receipt and its known pictures are looked at
    assert session.card.provenance["precision"] == "int8"
    assert session.card.canary == shipped_model(file)[1].canary
    session.close()


def test_a_recipe_of_another_graph_is_refused(float32: tuple[Any, ModelCard], whole: Recipe) -> None:
    changed = copy_of(float32[0])
    changed.graph.node[0].name = "another"
    with pytest.raises(UsageError, match="another graph"):
        onnx_from_recipe(changed, float32[1], whole)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"format": 0}, "format 0"),
        ({"placement": "before"}, "'before'"),
        ({"int8": []}, "0 nodes in int8"),
        ({"fp16": ["one"]}, "1 in fp16"),
        ({"ranges": {"a": 0}}, "ranges"),
        ({"more": 1}, "is no recipe"),
    ],
)
def test_a_recipe_that_cannot_be_followed_is_refused(tmp_path: Path, whole: Recipe, change: dict[str, Any], said: str) -> None:
    path = tmp_path / "wrong.json"
    path.write_text(json.dumps({**json.loads(whole.to_json()), **change}), encoding="utf-8")
    with pytest.raises(UsageError, match=said):
        read_recipe(path)


def test_a_missing_range_and_an_unknown_node_are_refused(float32: tuple[Any, ModelCard], whole: Recipe) -> None:
    with pytest.raises(UsageError, match="'a_relu' is not known"):
        onnx_from_recipe(*float32, dataclasses.replace(whole, ranges={**whole.ranges, "a_relu": 0.0}))
    with pytest.raises(UsageError, match="'four'"):
        onnx_from_recipe(*float32, dataclasses.replace(whole, int8=("four",)))


# Search


def test_pieces_hold_every_node_once_in_order(float32: tuple[Any, ModelCard]) -> None:
    model = float32[0]
    nodes = quantisable(model)
    for most in (1, 2, 12):
        groups = node_groups(model, nodes, most)
        assert [name for group in groups for name in group.nodes] == nodes
        assert sum(group.multiplications for group in groups) == sum(multiplications(model).values())
    residual = next(group for group in node_groups(model, nodes, 1) if "one" in group.nodes)
    assert {"one", "two", "add"} <= set(residual.nodes)


@pytest.fixture
def bench(float32: tuple[Any, ModelCard], frames: np.ndarray) -> Workbench:
    made = Workbench(*float32, frames, "onnxruntime", tolerance=0.2, threads=1)
    made.start()
    return made


def test_a_search_takes_the_fastest_set_inside_of_the_budget_and_goes_on_where_it_was_stopped(
    tmp_path: Path, bench: Workbench, whole: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fundus_rt.runtime.agreement.RESOLUTION", 0.5)
    times: list[int] = []

    def ratio(self: Workbench, recipe: Recipe, turns: int) -> float:
        times.append(len(recipe.int8))
        return 1.0 - 0.1 * len(times) if len(times) < 3 else 1.5

    monkeypatch.setattr(Workbench, "time_ratio", ratio)
    groups = node_groups(bench.model, whole.int8)
    kept = tmp_path / "small.trials.jsonl"
    found = Search(bench, whole, TrialFile(kept), "photographs", lambda *shown: None).run(groups)
    assert len(times) >= 3 and len(found.recipe.int8) == times[1]
    assert found.row["passed"] and found.ratio == 0.8
    trial = bench.trial(found.recipe)
    assert trial.damage == found.row["damage"] <= 1

    kept.write_bytes(kept.read_bytes()[:-20])  # a kill in the middle of the last line
    asked: list[Recipe] = []
    monkeypatch.setattr(Workbench, "trial", lambda self, recipe: asked.append(recipe))
    again = Search(bench, whole, TrialFile(kept), "photographs", lambda *shown: None).run(groups)
    assert again.recipe == found.recipe and not asked
    rows = [json.loads(line) for line in kept.read_text().splitlines() if line.endswith("}")]
    assert not any("idrid" in json.dumps(row) or ".jpg" in json.dumps(row) for row in rows)


def test_other_photographs_are_another_search(tmp_path: Path, bench: Workbench, whole: Recipe) -> None:
    groups = node_groups(bench.model, whole.int8)[:1]
    kept = tmp_path / "small.trials.jsonl"
    for digest in ("first", "second", "first"):
        Search(bench, whole, TrialFile(kept), digest, lambda *shown: None).tried(groups)
    assert len(kept.read_text().splitlines()) == 2


def test_a_budget_that_nothing_stays_in_is_said(tmp_path: Path, bench: Workbench, whole: Recipe) -> None:
    tight = dataclasses.replace(bench, tolerance=1e-7)
    search = Search(tight, whole, TrialFile(tmp_path / "t.jsonl"), "photographs", lambda *shown: None)
    with pytest.raises(ParityError, match="not one of"):
        search.run(node_groups(bench.model, whole.int8))


def test_a_file_that_does_not_know_its_pictures_leaves_the_budget(bench: Workbench, whole: Recipe) -> None:
    coarse = dataclasses.replace(whole, ranges={name: 100 * largest for name, largest in whole.ranges.items()})
    assert any("drawn pictures" in problem for problem in bench.trial(coarse).problems)
    assert not bench.trial(whole).canary


# Photographs and the command


def test_ranges_come_from_other_photographs_than_the_judged_ones(tmp_path: Path, file: Path) -> None:
    for index, path in enumerate(sorted(EXAMPLE_FOLDER.glob("*.jpg"))[:6]):
        (tmp_path / f"{index}.jpg").write_bytes(path.read_bytes())
        (tmp_path / f"{index}-copy.jpg").write_bytes(path.read_bytes())
    (tmp_path / "broken.jpg").write_bytes(b"no picture")
    pipeline = Pipeline(file)
    found = network_inputs(pipeline, [str(tmp_path)])
    assert (len(found.calibration), len(found.judged), found.refused) == (3, 3, 1)
    assert not any(np.array_equal(one, other) for one in found.calibration for other in found.judged)
    (tmp_path / "0.jpg").unlink()
    (tmp_path / "0-copy.jpg").unlink()
    with pytest.raises(UsageError, match="5 photographs can be used and 1 not"):
        network_inputs(pipeline, [str(tmp_path)])
    pipeline.close()


def test_the_command_replays_a_recipe_and_its_file_answers(tmp_path: Path, file: Path, whole: Recipe, fundus_rt: Run) -> None:
    recipe, target = tmp_path / "small.recipe.json", tmp_path / "int8.onnx"
    recipe.write_text(whole.to_json(), encoding="utf-8")
    made = fundus_rt("quantize", file, "--precision", recipe, "-o", target)
    assert made.returncode == 0, made.stderr
    assert target.read_bytes() == serialised(onnx_from_recipe(*shipped_model(file), whole))
    assert "100.0 % of the multiplications in int8" in made.stdout
    photograph = sorted(EXAMPLE_FOLDER.glob("*.jpg"))[0]
    answered = fundus_rt("infer", photograph, "--model", target, "--format", "jsonl")
    assert answered.returncode == 0, answered.stderr
    assert json.loads(answered.stdout)["model"]["precision"] == "int8"


def test_the_command_writes_nothing_that_leaves_the_budget(tmp_path: Path, file: Path, fundus_rt: Run) -> None:
    target = tmp_path / "out.onnx"
    made = fundus_rt("quantize", file, "--precision", "int8", "--whole", "--tolerance", "1e-7", "-o", target)
    assert made.returncode == 1 and "leaves the budget" in made.stderr
    assert not target.exists() and target.with_suffix(".trials.jsonl").exists()
