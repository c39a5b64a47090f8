"""Faults put into the real way from a photograph to an answer: each has to be caught, and blamed on the stage where it is."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

from onnx import helper, numpy_helper  # noqa: E402

from fundus_rt.benchmarks.proof.explanations import explanations, sentences  # noqa: E402
from fundus_rt.benchmarks.proof.half_precision import emulated_half  # noqa: E402
from fundus_rt.benchmarks.proof.locate import locate  # noqa: E402
from fundus_rt.benchmarks.proof.original import OriginalModel  # noqa: E402
from fundus_rt.benchmarks.proof.photographs import photograph_of  # noqa: E402
from fundus_rt.benchmarks.proof.stages import StageSplit, stage_split  # noqa: E402
from fundus_rt.benchmarks.proof.value_ranges import value_ranges  # noqa: E402
from fundus_rt.converters.shipping import embed_card  # noqa: E402
from fundus_rt.models.errors import CanaryError, ReceiptError  # noqa: E402
from fundus_rt.runtime import decode, preprocess  # noqa: E402
from fundus_rt.runtime.guarded_session import GuardedSession  # noqa: E402
from fundus_rt.runtime.session import Session, open_session  # noqa: E402
from tests import proof_networks as proof  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread")

BY_FAR = 0.95


@dataclasses.dataclass
class Healthy:
    """A checkpoint, its file, and both opened."""

    checkpoint: Path
    file: Path
    original: OriginalModel
    session: Session


@pytest.fixture(scope="module")
def healthy(tmp_path_factory: pytest.TempPathFactory) -> Healthy:
    folder = tmp_path_factory.mktemp("healthy")
    checkpoint = proof.write_checkpoint(folder / "age.pth")
    file = proof.convert(checkpoint, folder / "age.onnx")
    return Healthy(checkpoint, file, proof.original_of(checkpoint), open_session(file, threads=1))


def split(healthy: Healthy, file: Path | None = None, session: Session | None = None, alone: bool = False) -> StageSplit:
    file = file or healthy.file
    opened = session or open_session(file, threads=1)
    found = stage_split(healthy.original, opened, proof.cases(), file, alone=alone, threads=1)
    for output in found.outputs:
        whole = output.found - output.reference
        np.testing.assert_allclose(output.differences.sum(axis=0), whole, rtol=1e-12, atol=1e-12)
    return found


def blamed(found: StageSplit, stage: str) -> None:
    """The stage has by far the most of a difference that matters, and a sentence says so."""
    (output,) = found.outputs
    shares = output.shares()
    assert shares is not None and found.blamed() == (stage,)
    assert shares[stage] >= BY_FAR, shares
    assert output.largest(stage) > 0.01
    assert f"of the difference is the {stage}" in output.sentences()[0]


def answers(healthy: Healthy, session: Session) -> dict[str, np.ndarray]:
    """What a session says of the photographs on the runtime's way."""
    rows = [session.run(tensor[None])["age"] for tensor in runtime_tensors(healthy)]
    return {"age": np.concatenate(rows)}


def runtime_tensors(healthy: Healthy) -> np.ndarray:
    """As the chain makes them: through the modules that a test may have spoilt."""
    made = []
    for case in proof.cases():
        frame = decode.decode(case.content).frame
        view = preprocess_view(frame)
        box = preprocess.crop_box(view, frame.shape, healthy.session.card.preprocessing)
        made.append(preprocess.tensor_from_box(frame, box, healthy.session.card.preprocessing, case.eye == "left"))
    return np.stack(made)


def preprocess_view(frame: np.ndarray) -> Any:
    from fundus_rt.runtime.field_of_view import find_field_of_view

    return find_field_of_view(frame)


def explained(healthy: Healthy, session: Session) -> tuple[str, ...]:
    photographs = [photograph_of(case, healthy.original.card) for case in proof.cases()]
    return sentences(explanations(healthy.original, photographs, answers(healthy, session)))


def saved(model: Any, path: Path, card: Any = None) -> Path:
    if card is not None:
        embed_card(model, card)
    onnx.save_model(model, str(path))
    return path


def exported_with(healthy: Healthy, card: Any, path: Path) -> Path:
    """The checkpoint's graph with another card's normalisation inside, and the right card on it."""
    other = proof.original_of(healthy.checkpoint, card)
    model = other.export()
    other.close()
    return saved(model, path, dataclasses.replace(healthy.session.card, canary={}))


def test_a_healthy_file_blames_nothing(healthy: Healthy) -> None:
    found = split(healthy, alone=True)
    (output,) = found.outputs
    assert found.blamed() == () and output.shares() is None
    assert "no stage makes a difference" in output.sentences()[0]
    assert np.ptp(output.reference) > 10, "answers that do not vary would hide every fault"
    assert explained(healthy, healthy.session) == ()


@pytest.mark.parametrize("by", ["code", "card"])
def test_opencvs_linear_resize_in_place_of_pillows(
    healthy: Healthy, by: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, right = healthy.file, preprocess.resize_box
    if by == "code":
        monkeypatch.setattr(preprocess, "resize_box", lambda frame, box, size, name: right(frame, box, size, "opencv-linear"))
    else:
        card = healthy.session.card
        changed = dataclasses.replace(card, preprocessing=dataclasses.replace(card.preprocessing, interpolation="opencv-linear"))
        file = saved(onnx.load(str(healthy.file)), tmp_path / "age.onnx", changed)
    found = split(healthy, file)
    blamed(found, "resize")
    if by == "code":
        assert any("opencv-linear" in sentence for sentence in explained(healthy, healthy.session))


def test_red_and_blue_swapped_by_the_decoder(healthy: Healthy, monkeypatch: pytest.MonkeyPatch) -> None:
    right = decode.decode

    def swapped(content: bytes, name: str = "") -> Any:
        decoded = right(content, name)
        return dataclasses.replace(decoded, frame=np.ascontiguousarray(decoded.frame[..., ::-1]))

    monkeypatch.setattr(decode, "decode", swapped)
    blamed(split(healthy, alone=True), "decode")
    assert "The file answers as if red and blue were swapped" in explained(healthy, healthy.session)[0]


def test_red_and_blue_swapped_in_the_graph(healthy: Healthy, tmp_path: Path) -> None:
    scale, mean, std = proof.IMAGENET
    other = proof.card_for((scale, mean, std), "BGR")
    file = exported_with(healthy, other, tmp_path / "age.onnx")
    found = split(healthy, file, alone=True)
    blamed(found, "normalisation")
    assert any("By its graph, the file normalises with colours in the order BGR" in note for note in found.notes)
    assert "as if red and blue were swapped" in explained(healthy, open_session(file, threads=1))[0]


def test_mean_and_deviation_of_another_model(healthy: Healthy, tmp_path: Path) -> None:
    file = exported_with(healthy, proof.card_for(proof.HALVES), tmp_path / "age.onnx")
    found = split(healthy, file, alone=True)
    blamed(found, "normalisation")
    assert any("mean (0.5, 0.5, 0.5), deviation (0.5, 0.5, 0.5)" in note for note in found.notes), found.notes
    assert "values from -1 to 1" in explained(healthy, open_session(file, threads=1))[0]


@pytest.mark.parametrize("by", ["code", "card"])
def test_a_left_eye_that_is_not_mirrored(healthy: Healthy, by: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, right = healthy.file, preprocess.tensor_from_box
    if by == "code":
        monkeypatch.setattr(preprocess, "tensor_from_box", lambda frame, box, spec, mirror=False: right(frame, box, spec, False))
    else:
        changed = dataclasses.replace(healthy.session.card, laterality="none")
        file = saved(onnx.load(str(healthy.file)), tmp_path / "age.onnx", changed)
    found = split(healthy, file)
    blamed(found, "mirror")
    moved = np.abs(found.outputs[0].found - found.outputs[0].reference)[:, 0] > 0.01
    assert moved.tolist() == [eye == "left" for eye in proof.PHOTOGRAPHS.values()]
    if by == "code":
        assert "as if left eyes were not mirrored" in explained(healthy, healthy.session)[0]


def half_of(file: Path, path: Path) -> Path:
    """The file's graph in float16 between the pixels and the answer; the receipt stays in float32."""
    model = onnx.load(str(file))
    for tensor in model.graph.initializer:
        if tensor.data_type == onnx.TensorProto.FLOAT:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float16), tensor.name))
    nodes = []
    for node in model.graph.node:
        inputs = ["pixels_half" if name == "prepared_0" else name for name in node.input]
        outputs = ["age_half" if name == "age" else name for name in node.output]
        del node.input[:], node.output[:]
        node.input.extend(inputs)
        node.output.extend(outputs)
        nodes.append(node)
        if node.name == "prepare_transpose":
            nodes.append(helper.make_node("Cast", ["prepared_0"], ["pixels_half"], to=onnx.TensorProto.FLOAT16))
    nodes.append(helper.make_node("Cast", ["age_half"], ["age"], to=onnx.TensorProto.FLOAT))
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return saved(model, path)


def test_an_overflow_of_half_precision_in_a_layer_norm(healthy: Healthy, tmp_path: Path) -> None:
    """The same network with its last convolution 500 times as large, which LayerNorm takes out again: right in float32, and on
    ONNX Runtime's CPU in float16 too, but not in half precision."""
    checkpoint = proof.write_checkpoint(tmp_path / "loud.pth", loud=500.0)
    file = proof.convert(checkpoint, tmp_path / "loud.onnx")
    loud = Healthy(checkpoint, file, proof.original_of(checkpoint), open_session(file, threads=1))
    assert split(loud).blamed() == ()
    half = half_of(file, tmp_path / "half.onnx")
    found = split(loud, half, alone=True)
    blamed(found, "lower precision")
    assert any("emulation" in note for note in found.notes)
    cpu = answers(loud, open_session(half, threads=1))["age"]
    assert np.abs(cpu - found.outputs[0].reference).max() < 0.5, "ONNX Runtime's CPU does not show it"
    frames = runtime_tensors(loud)[:2]
    audit = value_ranges(onnx.load(str(half)), frames)
    assert any(entry.operator == "LayerNormalization" and "squares" in entry.step for entry in audit.beyond)
    located = locate(onnx.load(str(file)), emulated_half(onnx.load(str(half))), frames, 0.02)
    assert located is not None and located.operator == "LayerNormalization" and located.arises_here


def test_half_precision_without_overflow_is_small_and_still_the_lower_precision(healthy: Healthy, tmp_path: Path) -> None:
    half = half_of(healthy.file, tmp_path / "half.onnx")
    found = split(healthy, half)
    (output,) = found.outputs
    assert found.blamed() == ("lower precision",) and output.largest("lower precision") < 0.5


def test_weights_of_eight_bits_are_the_lower_precision(healthy: Healthy, tmp_path: Path) -> None:
    model = onnx.load(str(healthy.file))
    (tensor,) = [tensor for tensor in model.graph.initializer if tensor.name == "conv2.weight"]
    weight = numpy_helper.to_array(tensor)
    scale = np.float32(np.abs(weight).max() / 15)  # coarse on purpose
    stored = {"levels": np.round(weight / scale).astype(np.int8), "step": scale, "zero": np.int8(0)}
    model.graph.initializer.remove(tensor)
    model.graph.initializer.extend(numpy_helper.from_array(np.asarray(value), name) for name, value in stored.items())
    model.graph.node.insert(0, helper.make_node("DequantizeLinear", list(stored), ["conv2.weight"]))
    blamed(split(healthy, saved(model, tmp_path / "int8.onnx"), alone=True), "lower precision")


def test_one_layers_weights_of_another_checkpoint(healthy: Healthy, tmp_path: Path) -> None:
    model = onnx.load(str(healthy.file))
    other = torch.load(proof.write_checkpoint(tmp_path / "other.pth", seed=5), weights_only=True)["conv2.weight"].numpy()
    (tensor,) = [t for t in model.graph.initializer if tuple(t.dims) == other.shape and t.name != "first_convolution_pixels"
                 and np.array_equal(numpy_helper.to_array(t), healthy_weights(healthy)["conv2.weight"])]  # fmt: skip
    tensor.CopyFrom(numpy_helper.from_array(other, tensor.name))
    reader = next(node for node in model.graph.node if tensor.name in node.input)
    file = saved(model, tmp_path / "age.onnx")
    blamed(split(healthy, file, alone=True), "fp32 graph")
    located = locate(healthy.original.export(), model, runtime_tensors(healthy)[:2], 1e-3)
    assert located is not None and located.arises_here
    assert (located.node, located.operator, located.weights) == (reader.name, "Conv", (tensor.name,))


def test_the_first_layers_weights_of_another_checkpoint(healthy: Healthy, tmp_path: Path) -> None:
    """From them the normalisation cannot be read any more: the card's is taken, and it is said."""
    model = onnx.load(str(healthy.file))
    tensor = next(t for t in model.graph.initializer if t.name == "first_convolution_pixels")
    other = np.random.default_rng(1).normal(0, 0.003, tuple(tensor.dims)).astype(np.float32)
    tensor.CopyFrom(numpy_helper.from_array(other, tensor.name))
    found = split(healthy, saved(model, tmp_path / "age.onnx"))
    blamed(found, "fp32 graph")
    assert any("taken from its own card" in note for note in found.notes)


def healthy_weights(healthy: Healthy) -> dict[str, np.ndarray]:
    return {name: value.numpy() for name, value in torch.load(healthy.checkpoint, weights_only=True).items()}


class Stale:
    """ONNX Runtime's session, whose outputs are those of the call before (with `honest` the receipt is today's)."""

    def __init__(self, session: Any, honest: bool) -> None:
        self._session, self._honest, self._last = session, honest, None

    def run(self, names: list[str], feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
        now = self._session.run(names, feeds)
        before, self._last = self._last, now
        if before is None:
            return now
        if not self._honest:
            return before
        return [*(np.repeat(rows[-1:], len(now[-1]), axis=0) for rows in before[:-1]), now[-1]]


def stale_session(file: Path, honest: bool) -> Session:
    session: Any = open_session(file, threads=1)
    session._session = Stale(session._session, honest)
    return session  # type: ignore[no-any-return]


def test_the_previous_photographs_answer_returned_again_is_caught_by_the_receipt(healthy: Healthy) -> None:
    with pytest.raises(ReceiptError):
        split(healthy, session=stale_session(healthy.file, honest=False))


def test_the_previous_photographs_answer_is_caught_by_the_canary(healthy: Healthy) -> None:
    """At the start nothing came before; the next time the known pictures are asked for, it shows."""
    guarded = GuardedSession(stale_session(healthy.file, honest=True), every=3)
    frames = runtime_tensors(healthy)
    guarded.run(frames[:1])
    guarded.run(frames[1:2])
    with pytest.raises(CanaryError):
        guarded.run(frames[2:3])
    with pytest.raises(CanaryError):
        guarded.run(frames[3:4])


def test_the_previous_photographs_answer_with_an_honest_receipt_is_the_engine_and_is_explained(healthy: Healthy) -> None:
    blamed(split(healthy, session=stale_session(healthy.file, honest=True), alone=True), "engine")
    said = explained(healthy, stale_session(healthy.file, honest=True))
    assert said == ("The file answers exactly as if each answer were the previous photograph's.",) or (
        "each answer were the previous photograph's" in said[0] and len(said) == 1
    )


@pytest.mark.parametrize("spoil", [lambda rows: rows + 0.5, lambda rows: rows * 1.01])
def test_another_engine_that_answers_otherwise(healthy: Healthy, spoil: Callable[[np.ndarray], np.ndarray]) -> None:
    session: Any = proof.Reopened(healthy.session, lambda answered: {**answered, "age": spoil(answered["age"])})
    session.backend = SimpleNamespace(name="tensorrt", provider="", device="test", version="")
    blamed(split(healthy, session=session), "engine")
