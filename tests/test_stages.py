"""The split by stage itself: what is read from graphs, what adds up, what it says."""

from __future__ import annotations

import contextlib
import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402

from fundus_rt.benchmarks.proof.explanations import NORMALISATIONS, Explanation, explanations, sentences  # noqa: E402
from fundus_rt.benchmarks.proof.file_normalisation import (  # noqa: E402
    IDENTITY,
    beginning_of,
    pixel_map_of_cards,
    pixel_map_of_graphs,
)
from fundus_rt.benchmarks.proof.photographs import photograph_of  # noqa: E402
from fundus_rt.benchmarks.proof.stages import STAGES, OutputSplit, StageSplit, stage_split  # noqa: E402
from fundus_rt.converters.original_preprocessing import KERAS_MODES  # noqa: E402
from fundus_rt.converters.parity import reference_tensor  # noqa: E402
from fundus_rt.converters.shipping import ship  # noqa: E402
from fundus_rt.models.card import PreprocessingSpec  # noqa: E402
from fundus_rt.models.errors import UsageError  # noqa: E402
from fundus_rt.runtime import pipeline as pipeline_module  # noqa: E402
from fundus_rt.runtime.pipeline import Pipeline  # noqa: E402
from fundus_rt.runtime.result import Result  # noqa: E402
from fundus_rt.runtime.session import open_session  # noqa: E402
from tests import proof_networks as proof  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread")

SIZE = 16
FRAMES = np.random.default_rng(2).integers(0, 256, (4, SIZE, SIZE, 3), dtype=np.uint8)
SPECS = {
    "imagenet": PreprocessingSpec((SIZE, SIZE), "none", "pillow-bilinear", "RGB", *proof.IMAGENET),
    "halves": PreprocessingSpec((SIZE, SIZE), "none", "pillow-bilinear", "RGB", *proof.HALVES),
    "caffe": PreprocessingSpec((SIZE, SIZE), "none", "pillow-bilinear", "BGR", *KERAS_MODES["caffe"][1:]),  # type: ignore[arg-type]
    "raw": PreprocessingSpec((SIZE, SIZE), "none", "pillow-bilinear", "RGB", 1.0, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
}


def shipped(spec: PreprocessingSpec, beginning: str, half: bool = False) -> Any:
    """A network of one layer, shipped with `spec`: a convolution with or without padding, or a plain mean of the pixels."""
    random = np.random.default_rng(5)
    stored = {"kernel": random.normal(0, 0.2, (6, 3, 3, 3)), "bias": random.normal(0, 1, 6), "head": random.normal(0, 1, (6, 1))}
    if beginning == "mean":
        nodes = [helper.make_node("ReduceMean", ["x"], ["pooled"], axes=[2, 3], keepdims=0)]
        stored["head"] = random.normal(0, 1, (3, 1))
    else:
        pads = [1, 1, 1, 1] if beginning == "padded" else [0, 0, 0, 0]
        nodes = [
            helper.make_node("Conv", ["x", "kernel", "bias"], ["maps"], pads=pads),
            helper.make_node("ReduceMean", ["maps"], ["pooled"], axes=[2, 3], keepdims=0),
        ]
    nodes.append(helper.make_node("MatMul", ["pooled", "head"], ["answers"]))
    used = {name for node in nodes for name in node.input}
    graph = helper.make_graph(
        nodes,
        "made by hand",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, SIZE, SIZE])],
        [helper.make_tensor_value_info("answers", TensorProto.FLOAT, ["N", 1])],
        [numpy_helper.from_array(v.astype(np.float32), n) for n, v in stored.items() if n in used],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    model = ship(model, dataclasses.replace(proof.card_for(), preprocessing=spec))
    if half:
        for tensor in model.graph.initializer:
            if tensor.name.startswith("first_convolution"):
                value = numpy_helper.to_array(tensor).astype(np.float16)
                tensor.CopyFrom(numpy_helper.from_array(value, f"{tensor.name}_half"))
                name = tensor.name.removesuffix("_half")
                model.graph.node.insert(0, helper.make_node("Cast", [f"{name}_half"], [name], to=TensorProto.FLOAT))
    return model


def run(model: Any, frames: np.ndarray) -> np.ndarray:
    model = onnx.ModelProto.FromString(model.SerializeToString())
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.FLOAT
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(["age"], {"frames": frames.astype(np.float32)})[0])


@pytest.mark.parametrize("beginning", ["padded", "unpadded", "mean"])
@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("half", [False, True])
def test_the_files_normalisation_is_read_from_its_graph(beginning: str, name: str, half: bool) -> None:
    """The file answers grey levels x as the fresh export answers the mapped ones, whatever the file's card would say."""
    fresh, file = shipped(SPECS["imagenet"], beginning), shipped(SPECS[name], beginning, half)
    mapped = pixel_map_of_graphs(beginning_of(file), beginning_of(fresh))
    assert mapped is not None and (mapped is IDENTITY) == (name == "imagenet")
    found, expected = run(fresh, mapped(FRAMES)), run(file, FRAMES)
    if mapped is not IDENTITY:
        seen, wanted = reference_tensor(mapped(FRAMES), SPECS["imagenet"]), reference_tensor(FRAMES, SPECS[name])
        np.testing.assert_allclose(seen, wanted, rtol=2e-3, atol=2e-3 * np.abs(wanted).max())
    scale = np.abs(expected).max()
    np.testing.assert_allclose(found, expected, atol=scale * (5e-3 if half else 2e-5))
    np.testing.assert_allclose(mapped.back(mapped(FRAMES)), FRAMES, atol=1e-3)


def test_weights_of_another_network_tell_nothing() -> None:
    fresh, other = shipped(SPECS["imagenet"], "padded"), shipped(SPECS["imagenet"], "padded")
    for tensor in other.graph.initializer:
        if tensor.name == "first_convolution_pixels":
            drawn = np.random.default_rng(8).normal(0, 0.001, tuple(tensor.dims)).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(drawn, tensor.name))
    assert pixel_map_of_graphs(beginning_of(other), beginning_of(fresh)) is None
    assert pixel_map_of_graphs(beginning_of(shipped(SPECS["raw"], "mean")), beginning_of(fresh)) is None


@pytest.mark.parametrize("name", SPECS)
def test_the_cards_say_the_same_as_the_graphs(name: str) -> None:
    mapped = pixel_map_of_cards(SPECS[name], SPECS["imagenet"])
    seen = reference_tensor(mapped(FRAMES), SPECS["imagenet"])
    np.testing.assert_allclose(seen, reference_tensor(FRAMES, SPECS[name]), rtol=1e-4, atol=1e-4)
    assert (mapped.largest_change() == 0) == (name == "imagenet")


def output_split(by_stage: dict[str, list[float]], name: str = "age") -> OutputSplit:
    """Two photographs, one column."""
    differences = np.zeros((len(STAGES), 2, 1))
    for stage, values in by_stage.items():
        differences[STAGES.index(stage), :, 0] = values
    start = np.full((2, 1), 50.0)
    return OutputSplit(name, "years", start, start + differences.sum(axis=0), differences, None)


def test_shares_are_of_the_sizes_and_are_said() -> None:
    found = output_split({"resize": [1.0, -0.82], "decode": [0.1, 0.04], "normalisation": [0.0, 0.04]})
    assert found.shares() == pytest.approx({**dict.fromkeys(STAGES, 0.0), "resize": 0.91, "decode": 0.07, "normalisation": 0.02})
    assert found.blamed == "resize"
    assert found.sentences() == (
        "age: 91 % of the difference is the resize (up to 1 years on one photograph); 7 % the decode, 2 % the normalisation.",
    )


def test_rounding_is_not_divided_into_shares() -> None:
    found = output_split({"fp32 graph": [3e-5, -1e-5], "normalisation": [1e-6, 0.0]})
    assert found.shares() is None and found.blamed is None
    assert "rounding of float32" in found.sentences()[0] and "%" not in found.sentences()[0]
    assert found.to_table().rows[0][1] == "rounding"


def test_stages_that_cancel_and_answers_that_are_no_numbers_are_said() -> None:
    found = output_split({"resize": [2.0, 0.0], "lower precision": [-1.9, 0.0]})
    assert "cancel one another" in found.sentences()[1]
    broken = output_split({"resize": [2.0, 0.0], "lower precision": [np.nan, 0.0]}, "grade")
    assert broken.blamed == "lower precision" and broken.shares()["lower precision"] == 1.0  # type: ignore[index]
    assert "1 in the stage 'lower precision'" in broken.sentences()[0]
    whole = StageSplit((found, broken), ("a.jpg", "b.jpg"), ("A note.",))
    assert whole.blamed() == ("resize", "lower precision") and whole.sentences()[-1] == "A note."
    section = whole.to_section()
    assert len(section.tables) == 2 and section.plots[0].ticks == ("age", "grade")
    assert "a.jpg" not in str(whole.to_dict())


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return proof.write_checkpoint(tmp_path_factory.mktemp("stages") / "age.pth")


def test_two_stages_at_once_are_told_apart_and_add_up(checkpoint: Path, tmp_path: Path) -> None:
    """A file of another filter and another normalisation, each as its own card says: both are named, and they are the whole."""
    original = proof.original_of(checkpoint)
    wrong = proof.card_for(proof.HALVES)
    wrong = dataclasses.replace(wrong, preprocessing=dataclasses.replace(wrong.preprocessing, interpolation="opencv-nearest"))
    other = proof.original_of(checkpoint, wrong)
    onnx.save_model(other.export(), str(tmp_path / "age.onnx"))
    session = open_session(tmp_path / "age.onnx", threads=1)
    cases = proof.cases()[:3]
    said: list[str] = []
    found = stage_split(original, session, cases, tmp_path / "age.onnx", threads=1, progress=said.append)
    (output,) = found.outputs
    shares = output.shares()
    assert shares is not None and shares["resize"] > 0.02 and shares["normalisation"] > 0.3
    assert shares["resize"] + shares["normalisation"] > 0.99
    np.testing.assert_allclose(output.differences.sum(axis=0), output.found - output.reference, rtol=1e-12)
    assert output.alone is not None
    # the first stage that differs is given what the original gave it, so alone it does the same
    np.testing.assert_allclose(output.alone[STAGES.index("resize")], output.differences[STAGES.index("resize")], atol=1e-4)
    assert len(said) == 3 and found.photographs == tuple(case.name for case in cases)
    # the ends are what the two sides answer by themselves
    for index, case in enumerate(cases):
        images = original.inputs([photograph_of(case, original.card)]).images
        np.testing.assert_allclose(output.reference[index], original.answers(images)["age"][0], rtol=1e-6)


def pipeline_answers(file: Path) -> dict[str, np.ndarray]:
    """What a user's call says of the photographs."""
    with contextlib.closing(Pipeline(str(file), threads=1, check=False)) as pipeline:
        prepared = [pipeline.prepare_bytes(case.content, {"list": case.eye}) for case in proof.cases()[:3]]
        found = [pipeline.finish([one])[0] for one in prepared]
    return {"age": np.stack([one.numbers["age"] for one in found if isinstance(one, Result)])}


def test_the_stages_account_for_what_a_users_call_answers(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The end of the chain is the call's answer. A call that crops beside the field is a stage of its own."""
    file = proof.convert(checkpoint, tmp_path / "age.onnx")
    original, session = proof.original_of(checkpoint), open_session(file, threads=1)
    right = pipeline_answers(file)
    beside = pipeline_module.crop_box
    monkeypatch.setattr(pipeline_module, "crop_box", lambda *given: tuple(side + 60 for side in beside(*given)))
    wrong = pipeline_answers(file)
    for rows, blamed in ((right, ()), (wrong, ("pipeline",))):
        found = stage_split(original, session, proof.cases()[:3], file, rows, threads=1)
        (output,) = found.outputs
        assert found.blamed() == blamed
        np.testing.assert_array_equal(output.found, rows["age"].astype(np.float64))
        np.testing.assert_allclose(output.differences.sum(axis=0), rows["age"] - output.reference, rtol=1e-9)
    assert output.largest("pipeline") > 0.1 and "100 % of the difference is the pipeline" in output.sentences()[0]
    assert "the fault lies between them" in output.sentences()[1]


def test_a_small_rest_of_a_large_difference_is_named() -> None:
    found = output_split({"resize": [9.0, 9.0], "pipeline": [0.01, 0.0]})
    assert "0 % the pipeline" in found.sentences()[0] and "up to 0.01 years otherwise" in found.sentences()[1]
    rounding = output_split({"resize": [9.0, 9.0], "pipeline": [1e-6, 0.0]})
    assert "pipeline" not in " ".join(rounding.sentences())


def test_cards_of_other_networks_are_refused(checkpoint: Path, tiny_age: Path) -> None:
    original, session = proof.original_of(checkpoint), open_session(tiny_age, threads=1)
    with pytest.raises(UsageError, match=r"\(64, 64\) pixels.*\(96, 96\)"):
        stage_split(original, session, proof.cases()[:1], tiny_age)
    with pytest.raises(UsageError, match="no photographs"):
        stage_split(original, session, [], tiny_age)


def test_mistakes_that_explain_alike_are_all_named(checkpoint: Path) -> None:
    """On a grey picture red and blue are the same, so nothing tells which of the two mistakes, and none is the only one."""
    said = sentences(
        (Explanation("red and blue were swapped", 1.0, 0.0), Explanation("every photograph was mirrored", 1.0, 0.01))
    )
    assert said[0].startswith("2 mistakes explain the answers alike") and len(said) == 3
    assert said[1] == "The file answers exactly as if red and blue were swapped."
    assert said[2].endswith("that leaves 1/100 of the difference.")
    assert NORMALISATIONS["ImageNet's mean in grey levels"][1] == KERAS_MODES["caffe"][2][::-1]


def test_answers_that_no_single_mistake_explains_are_left_unexplained(checkpoint: Path) -> None:
    original = proof.original_of(checkpoint)
    photographs = [photograph_of(case, original.card) for case in proof.cases()[:3]]
    right = {"age": np.concatenate([original.answers(original.inputs([p]).images)["age"] for p in photographs])}
    drawn = right["age"] + np.array([[3.0], [-4.0], [5.0]], np.float32)
    assert explanations(original, photographs, {"age": drawn}, right) == ()
    assert explanations(original, photographs, {"age": right["age"] * np.float32(np.nan)}, right) == ()
    (constant,) = explanations(original, photographs, {"age": np.repeat(right["age"][:1], 3, axis=0)}, right)
    assert constant.mistake == "each answer were the first photograph's" and constant.after == 0
    with pytest.raises(UsageError, match=r"\[2\] answers for 3"):
        explanations(original, photographs, {"age": drawn[:2]}, right)
