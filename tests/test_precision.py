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

from fundus_rt.benchmarks.precision.audit import Audit, audited  # noqa: E402
from fundus_rt.benchmarks.precision.calibration import activation_histograms, ranges_by  # noqa: E402
from fundus_rt.benchmarks.precision.network_inputs import network_inputs  # noqa: E402
from fundus_rt.benchmarks.precision.quantisation import Progress, QuantiseCall, lines, quantise  # noqa: E402
from fundus_rt.benchmarks.precision.search import Search  # noqa: E402
from fundus_rt.benchmarks.precision.trials import TrialFile, Workbench  # noqa: E402
from fundus_rt.benchmarks.proof.graph_runs import GraphSession, copy_of  # noqa: E402
from fundus_rt.converters.engines.engine_lint import lint_onnx  # noqa: E402
from fundus_rt.converters.precision.heavy_nodes import multiplications  # noqa: E402
from fundus_rt.converters.precision.int8_graph import BACKENDS, quantisable  # noqa: E402
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
    return Recipe(graph_digest(model), tuple(nodes), backend="onnxruntime", ranges=ranges_by(model, found, "max"))


# The graphs


def test_the_last_layer_and_the_mean_in_front_of_it_stay_in_float32(float32: tuple[Any, ModelCard]) -> None:
    names = [node.name for node in float32[0].graph.node]
    left = [name for name in names[names.index("first") :] if name not in quantisable(float32[0])]
    assert left == ["first_relu", "one_relu", "add_relu", "pool", "flatten", "head"]  # a Relu is taken along by what is before it


def test_multiplications_are_those_of_the_formula(float32: tuple[Any, ModelCard]) -> None:
    half, c = SIZE // 2, 16
    expected = [half**2 * c * 27, half**2 * c * c, half**2 * c * c * 9, half**2 * c * c, c]
    assert multiplications(float32[0]) == dict(zip((*CONVOLUTIONS, "head"), expected, strict=True))


def test_ranges_have_room_for_other_photographs_as_far_as_the_graph_lets_a_tensor_go(
    float32: tuple[Any, ModelCard], frames: np.ndarray
) -> None:
    model = float32[0]
    found = activation_histograms(model, quantisable(model), frames[:2])
    ranges = ranges_by(model, found, "max")
    assert ranges["normal"] == pytest.approx((-1.0, 255 / 64 - 1))  # black and white, whatever the photographs hold
    assert ranges["a_relu"] == (0.0, pytest.approx(1.25 * found["a_relu"].most))
    assert ranges["gate"] == (0.0, 1.0) or ranges["gate"][1] == pytest.approx(1.25 * found["gate"].most)
    assert ranges["gate"][1] <= 1.0 and ranges["silu"][0] == pytest.approx(1.25 * found["silu"].least)
    assert ranges_by(model, found, "percentile")["a_relu"][1] <= found["a_relu"].most


def fake(values: np.ndarray, ends: tuple[float, float], backend: str) -> tuple[np.ndarray, np.float32]:
    """Rounded to 8 bits and back, in numpy, and the step."""
    if backend == "onnxruntime":
        step = np.float32((ends[1] - ends[0]) / 255)
        zero = round(-ends[0] / float(step))
        return ((np.clip(np.rint(values / step) + zero, 0, 255) - zero) * step).astype(np.float32), step
    levels, lowest = (255, 0) if backend == "openvino" and ends[0] == 0 else (127, -128)
    step = np.float32(max(ends[1], -ends[0]) / levels)
    return (np.clip(np.rint(values / step), lowest, levels) * step).astype(np.float32), step


@pytest.mark.parametrize("backend", BACKENDS)
def test_one_layer_of_int8_computes_what_numpy_computes(
    backend: str, float32: tuple[Any, ModelCard], whole: Recipe, frames: np.ndarray
) -> None:
    model, card = float32
    recipe = dataclasses.replace(whole, int8=("one",), backend=backend)
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
    read, _ = fake(entered, whole.ranges["a_relu"], backend)
    summed = np.einsum("oi,nihw->nohw", kernel, read) + stored["one_b"][:, None, None]
    expected, step = fake(np.maximum(summed, 0), whole.ranges["b_relu"], backend)
    assert np.abs(found - expected).max() <= 1.01 * step  # a sum on the edge between two levels may fall to either
    assert np.mean(np.abs(found - expected) > 0.01 * step) < 1e-3


@pytest.mark.parametrize("backend", BACKENDS)
def test_int8_has_no_pair_on_a_bias_and_none_on_the_receipt(backend: str, float32: tuple[Any, ModelCard], whole: Recipe) -> None:
    made = onnx_from_recipe(*float32, dataclasses.replace(whole, backend=backend))
    onnx.checker.check_model(made, full_check=True)
    restored = {node.output[0] for node in made.graph.node if node.op_type == "DequantizeLinear"}
    heavy = [node for node in made.graph.node if node.op_type == "Conv"]
    assert len(heavy) == 4 and all(set(node.input[:2]) <= restored and node.input[2] not in restored for node in heavy)
    kinds = {tensor.name: tensor.data_type for tensor in made.graph.initializer}
    assert all(kinds[node.input[2]] == onnx.TensorProto.FLOAT for node in heavy)
    receipt = next(node for node in made.graph.node if "receipt" in node.output)
    assert not restored.intersection(receipt.input)


def test_only_the_portable_form_is_what_tensorrt_reads(float32: tuple[Any, ModelCard], whole: Recipe) -> None:
    assert lint_onnx(onnx_from_recipe(*float32, dataclasses.replace(whole, backend="tensorrt"))) == []
    assert lint_onnx(onnx_from_recipe(*float32, whole)) != []


def test_onnx_runtime_fuses_every_layer_written_for_it_and_an_audit_refuses_one_that_is_not(
    tmp_path: Path, float32: tuple[Any, ModelCard], whole: Recipe
) -> None:
    convolutions = [name for name in whole.int8 if name in CONVOLUTIONS]
    path = tmp_path / "int8.onnx"
    path.write_bytes(serialised(onnx_from_recipe(*float32, whole)))
    found = audited(path, "onnxruntime")
    found.require(convolutions, 1.0)
    assert found.share > 0.99
    alone = dataclasses.replace(whole, int8=("one",))
    path.write_bytes(serialised(onnx_from_recipe(*float32, alone)))
    with pytest.raises(ParityError, match="expected 95 %; in float32 stayed "):
        audited(path, "onnxruntime").require(convolutions)


def test_openvino_fuses_the_pairs_behind_the_activations(tmp_path: Path, float32: tuple[Any, ModelCard], whole: Recipe) -> None:
    pytest.importorskip("openvino")
    path = tmp_path / "int8.onnx"
    path.write_bytes(serialised(onnx_from_recipe(*float32, dataclasses.replace(whole, backend="openvino"))))
    found = audited(path, "openvino")
    found.require(whole.int8)
    assert found.share > 0.999  # the head is in float32


def test_an_audit_of_a_float32_file_finds_no_int8(file: Path) -> None:
    found = audited(file, "onnxruntime")
    assert found.share == 0
    with pytest.raises(ParityError, match=r"0\.0 % of the multiplications"):
        found.require(CONVOLUTIONS)


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
        ({"backend": "another"}, "'another'"),
        ({"int8": []}, "0 nodes in int8"),
        ({"fp16": ["one"]}, "1 in fp16"),
        ({"fp16": ["one"], "backend": "tensorrt"}, "each node once"),
        ({"ranges": {"a": [0, 0]}}, "ranges"),
        ({"ranges": {"a": [1, 2]}}, "ranges"),
        ({"ranges": {"a": 2}}, "is no recipe"),
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
        onnx_from_recipe(*float32, dataclasses.replace(whole, ranges={**whole.ranges, "a_relu": (0.0, 0.0)}))
    with pytest.raises(UsageError, match="'four'"):
        onnx_from_recipe(*float32, dataclasses.replace(whole, int8=("four",)))


# Search


def test_pieces_hold_every_node_once_in_order(float32: tuple[Any, ModelCard]) -> None:
    model = float32[0]
    nodes = quantisable(model)
    for most in (1, 2, 12):
        groups = node_groups(model, nodes, most)
        assert [name for group in groups for name in group.nodes] == nodes
        assert sum(group.multiplications for group in groups) == sum(multiplications(model)[name] for name in CONVOLUTIONS)
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
    coarse = dataclasses.replace(whole, ranges={name: (1e4 * least, 1e4 * most) for name, (least, most) in whole.ranges.items()})
    assert any("drawn pictures" in problem for problem in bench.trial(coarse).problems)
    assert not bench.trial(whole).canary


def test_int8_and_half_precision_share_a_file_for_tensorrt(tmp_path: Path, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fundus_rt.runtime.agreement.COARSE", 0.5)
    call = QuantiseCall(file, "mixed", tmp_path / "mixed.onnx", (str(EXAMPLE_FOLDER),), tolerance=0.1)
    made = quantise(call, Progress())
    recipe, model = made.recipe, onnx.load(str(call.output))
    assert recipe.int8 and recipe.fp16 and not set(recipe.int8) & set(recipe.fp16)
    assert made.row is not None and made.row["passed"] and made.audit is None and made.ratio is None
    assert lint_onnx(model) == []
    kinds = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    stored = {node.name: node.input[1] for node in model.graph.node if node.op_type == "Conv"}
    halves = {name for name, weights in stored.items() if kinds.get(weights) == onnx.TensorProto.FLOAT16}
    restored = {node.output[0] for node in model.graph.node if node.op_type == "DequantizeLinear"}
    assert halves == set(recipe.fp16) & set(stored)
    assert {name for name, weights in stored.items() if weights in restored} == set(recipe.int8) & set(stored)
    for node in model.graph.node:  # what stands between a layer of int8 and its pair stays as it is, or it would not fuse
        if node.op_type == "QuantizeLinear":
            assert not any(one.op_type == "Cast" and one.output[0] == node.input[0] for one in model.graph.node)
    assert any("nodes in int8" in line and "nodes in fp16" in line for line in lines(made))
    with pytest.raises(UsageError, match="are for TensorRT"):
        quantise(dataclasses.replace(call, backend="openvino"), Progress())
    replay = QuantiseCall(file, str(made.recipe_path), tmp_path / "replayed.onnx", (), backend="onnxruntime")
    with pytest.raises(UsageError, match="int8 and half precision in one file, which is for TensorRT"):
        quantise(replay, Progress())
    assert not replay.output.exists()
    assert quantise(dataclasses.replace(replay, backend=None), Progress()).sha256 == made.sha256


def test_an_audit_that_knows_of_no_work_does_not_pass() -> None:
    with pytest.raises(ParityError, match=r"computed 0\.0 % of the multiplications in int8"):
        Audit("onnxruntime", {}, frozenset()).require(["conv"])


def test_trials_of_another_machine_are_not_taken_for_those_of_this(
    bench: Workbench, whole: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def key() -> str:
        kept = TrialFile(tmp_path / "trials.jsonl")
        return Search(bench, whole, kept, "photographs", lambda *shown: None)._key("time", whole)

    here = key()
    assert key() == here
    with monkeypatch.context() as one:
        one.setattr("fundus_rt.benchmarks.precision.search.usable_cores", lambda: 99)
        fewer = key()
    monkeypatch.setattr("fundus_rt.benchmarks.precision.search.device_kind", lambda device: "another processor")
    assert len({here, fewer, key()}) == 3


# Photographs and the command


def test_ranges_come_from_other_photographs_than_the_judged_ones(tmp_path: Path, file: Path) -> None:
    for index, path in enumerate(sorted(EXAMPLE_FOLDER.glob("*.jpg"))[:6]):
        (tmp_path / f"{index}.jpg").write_bytes(path.read_bytes())
        (tmp_path / f"{index}-copy.jpg").write_bytes(path.read_bytes())
    (tmp_path / "broken.jpg").write_bytes(b"no picture")
    pipeline = Pipeline(file)
    found = network_inputs(pipeline, [str(tmp_path)])
    assert (len(found.calibration), len(found.judged)) == (3, 3)
    assert len(found.refused) == 1 and "not a picture that can be read" in found.refused[0] and "broken" not in found.refused[0]
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


def test_a_recipe_is_written_for_another_backend(tmp_path: Path, file: Path, whole: Recipe, fundus_rt: Run) -> None:
    recipe, target = tmp_path / "small.recipe.json", tmp_path / "portable.onnx"
    recipe.write_text(whole.to_json(), encoding="utf-8")
    made = fundus_rt("quantize", file, "--precision", recipe, "--backend", "tensorrt", "-o", target)
    assert made.returncode == 0, made.stderr
    assert "written for TensorRT" in made.stdout
    assert lint_onnx(onnx.load(str(target))) == []
    assert read_recipe(tmp_path / "portable.recipe.json") == dataclasses.replace(whole, backend="tensorrt")


def test_the_command_writes_nothing_that_leaves_the_budget(tmp_path: Path, file: Path, fundus_rt: Run) -> None:
    target = tmp_path / "out.onnx"
    made = fundus_rt("quantize", file, "--precision", "int8", "--whole", "--tolerance", "1e-7", "-o", target)
    assert made.returncode == 1 and "leaves the budget" in made.stderr
    assert not target.exists() and target.with_suffix(".trials.jsonl").exists()
