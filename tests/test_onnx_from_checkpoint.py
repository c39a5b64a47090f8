"""From a checkpoint to a proved file: both frameworks, and every way in which the proof can fail."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fundus_rt.converters import backends
from fundus_rt.converters.conversion import ConversionReport, onnx_from_checkpoint
from fundus_rt.converters.parity import reference_tensor
from fundus_rt.models import CARD_KEY, ModelCard, load_card
from fundus_rt.models.errors import BackendUnavailableError, ParityError, UnsupportedCheckpointError, UsageError
from tests import make_checkpoints as make

torch = pytest.importorskip("torch")
onnxruntime = pytest.importorskip("onnxruntime")
make.skip_without_timm()


def sized(name: str, size: int, *families: str, **output: Any) -> ModelCard:
    """A published card at a small size, with changes to its output."""
    card = load_card(name)
    return dataclasses.replace(
        card,
        families=families or card.families,
        preprocessing=dataclasses.replace(card.preprocessing, input_size=(size, size)),
        outputs=(dataclasses.replace(card.outputs[0], **output),),
    )


def open_shipped(path: Path) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
    """ONNX Runtime with nothing of this package between."""
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return lambda batch: dict(zip(names, session.run(None, {"frames": batch}), strict=True))


def convert(source: Path, card: ModelCard, target: Path, **changes: Any) -> ConversionReport:
    size = card.preprocessing.input_size[0]
    arguments = {"tensors": make.photographs(size), "open_shipped": open_shipped} | changes
    return onnx_from_checkpoint(source, card, target, **arguments)


@pytest.fixture(scope="module")
def swin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small Swin as Microsoft's training code saves it, data parallel."""
    state = {f"module.{name}": tensor for name, tensor in make.swin_microsoft_layout(make.swin_network()).items()}
    return make.save_torch(tmp_path_factory.mktemp("swin") / "age.pth", make.training_container(state))


@pytest.fixture(scope="module")
def converted(swin: Path) -> tuple[Path, ConversionReport]:
    """The small Swin, converted, and the report."""
    target = swin.with_name("age.onnx")
    return target, convert(swin, sized("joir-age", 96), target)


@pytest.fixture(scope="module")
def mobilenet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small MobileNet with one sigmoid."""
    pytest.importorskip("tf_keras")
    network = make.keras_network("mobilenet", 64, 1, "sigmoid", alpha=0.25)
    return make.save_keras(tmp_path_factory.mktemp("keras") / "sex.h5", network)


def test_a_swin_becomes_a_file_that_answers_as_timm_does(tmp_path: Path, swin: Path) -> None:
    steps, said = [], []

    class Step:
        def __init__(self, message: str) -> None:
            self.message = message

        def __enter__(self) -> None:
            steps.append(self.message)

        def __exit__(self, *error: object) -> None: ...

    card = sized("joir-age", 96)
    report = convert(swin, card, tmp_path / "age.onnx", step=Step, progress=said.append)
    pictures = make.photographs(96, 5, seed=9)
    answered = open_shipped(tmp_path / "age.onnx")(pictures)
    images = torch.from_numpy(reference_tensor(pictures, card.preprocessing).transpose(0, 3, 1, 2).copy())
    with torch.inference_mode():
        expected = make.swin_network()(images).numpy()
    np.testing.assert_allclose(answered["age"], expected, atol=1e-4)
    assert np.ptp(expected) > 0.01
    np.testing.assert_array_equal(answered["receipt"], pictures.astype(np.int64).sum(axis=(2, 3)))
    assert report.differences[0].largest < 1e-4 < report.differences[0].spread
    assert any("Exporting" in step for step in steps) and any("96 x 96" in message for message in said)
    text = "\n".join(report.lines())
    assert "100 % of the network's" in text and "years" in text


def test_the_file_carries_its_card_with_what_was_read_and_measured(swin: Path, converted: tuple[Path, ConversionReport]) -> None:
    onnx = pytest.importorskip("onnx")
    target, report = converted
    model = onnx.load(str(target))
    card = json.loads({entry.key: entry.value for entry in model.metadata_props}[CARD_KEY])
    assert card["outputs"][0]["columns"] == 1 and card["outputs"][0]["activation"] == "none"
    provenance = card["provenance"]
    assert provenance["checkpoint"]["sha256"] == hashlib.sha256(swin.read_bytes()).hexdigest()
    assert provenance["parity"]["outputs"][0]["largest"] == report.differences[0].largest
    assert {"torch", "timm", "onnx"} <= set(provenance["versions"])
    assert report.sha256 == hashlib.sha256(target.read_bytes()).hexdigest()
    kinds = {node.op_type for node in model.graph.node}
    assert not kinds & {"Constant", "Identity", "Shape", "If", "Loop", "Mod"}, "shapes are constants but for the batch"
    assert "LayerNormalization" in kinds


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_any_batch_gives_the_same_answers(converted: tuple[Path, ConversionReport], count: int) -> None:
    run = open_shipped(converted[0])
    pictures = make.photographs(96, count, seed=4)
    singly = np.concatenate([run(pictures[index : index + 1])["age"] for index in range(count)])
    np.testing.assert_allclose(run(pictures)["age"], singly, atol=1e-4)


@pytest.mark.parametrize(
    ("family", "units", "activation", "resolved"),
    [
        pytest.param("mobilenet", 1, "sigmoid", "none", marks=pytest.mark.full),
        ("mobilenet", 1, "linear", "sigmoid"),
        pytest.param("mobilenet", 2, "linear", "softmax", marks=pytest.mark.full),
        pytest.param("efficientnet-b0", 2, "softmax", "none", marks=pytest.mark.full),
    ],
)
def test_a_keras_network_becomes_a_file_that_answers_as_keras_does(
    tmp_path: Path, family: str, units: int, activation: str, resolved: str
) -> None:
    pytest.importorskip("tf_keras")
    size = 64
    small = {"alpha": 0.25} if family == "mobilenet" else {}
    network = make.keras_network(family, size, units, activation, **small)
    source = make.save_keras(tmp_path / "sex.h5", network)
    name = "joir-sex-mobilenet" if family == "mobilenet" else "joir-sex-efficientnet-b7"
    card = sized(name, size, family)
    pictures = make.photographs(size, 4, seed=9)
    expected = network.predict(reference_tensor(pictures, card.preprocessing), verbose=0)
    report = convert(source, card, tmp_path / "sex.onnx")
    answered = open_shipped(tmp_path / "sex.onnx")(pictures)
    np.testing.assert_allclose(answered["sex"], expected, atol=1e-3)
    assert np.ptp(expected, axis=0).max() > 0.01, "the test's network answers the same for different pictures"
    assert report.card.outputs[0].activation == resolved
    assert report.card.outputs[0].columns == units


def test_a_softmax_is_not_applied_twice(tmp_path: Path, mobilenet: Path) -> None:
    with pytest.raises(UnsupportedCheckpointError, match=r"already ends with sigmoid.*sigmoid on top"):
        convert(mobilenet, sized("joir-sex-mobilenet", 64, activation="sigmoid"), tmp_path / "x.onnx")


def test_a_number_of_outputs_that_the_card_does_not_have_is_refused(tmp_path: Path, swin: Path, mobilenet: Path) -> None:
    grades = ("none", "mild", "moderate", "severe", "proliferative")
    card = sized("joir-sex-mobilenet", 64, task="multiclass", labels=grades)
    with pytest.raises(UnsupportedCheckpointError, match=r"gives 1 number per picture.*needs 5 for the labels none, mild"):
        convert(mobilenet, card, tmp_path / "x.onnx")
    two = make.save_torch(tmp_path / "two.pth", make.swin_new_layout(make.swin_network(2)))
    with pytest.raises(UnsupportedCheckpointError, match="gives 2 numbers per picture, but output 'age'"):
        convert(two, sized("joir-age", 96), tmp_path / "x.onnx")


def test_differences_beyond_the_tolerance_leave_the_old_file_untouched(
    tmp_path: Path, swin: Path, converted: tuple[Path, ConversionReport]
) -> None:
    target, before = tmp_path / "age.onnx", converted[0].read_bytes()
    target.write_bytes(before)

    def one_year_older(path: Path) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
        run = open_shipped(path)
        return lambda batch: run(batch) | {"age": run(batch)["age"] + 1}

    with pytest.raises(ParityError, match=r"beyond the tolerance: age: largest difference 1 years"):
        convert(swin, sized("joir-age", 96), target, open_shipped=one_year_older)
    assert target.read_bytes() == before
    assert list(tmp_path.iterdir()) == [target]


def test_nothing_but_an_earlier_conversion_is_written_over(
    tmp_path: Path, swin: Path, converted: tuple[Path, ConversionReport]
) -> None:
    onnx = pytest.importorskip("onnx")
    card = sized("joir-age", 96)
    node = onnx.helper.make_node("Identity", ["x"], ["y"])
    ends = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["N", 3, 96, 96]) for name in "xy"]
    original = tmp_path / "joir-age.onnx"
    onnx.save(onnx.helper.make_model(onnx.helper.make_graph([node], "net", ends[:1], ends[1:])), str(original))
    (tmp_path / "notes.onnx").write_text("what I saw")
    link = tmp_path / "link.onnx"
    link.symlink_to(original)
    folder = tmp_path / "saved"
    folder.mkdir()
    (folder / "saved_model.pb").write_bytes(b"")
    held = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    for source, target, message in (
        (original, original, "is the checkpoint itself"),
        (original, link, "is the checkpoint itself"),
        (folder, folder / "net.onnx", "the checkpoint itself"),
        (swin, original, "was not written by fundus-rt convert"),
        (swin, tmp_path / "notes.onnx", "was not written by fundus-rt convert"),
    ):
        with pytest.raises(UsageError, match=message):
            convert(source, card, target)
        assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == held
    again = tmp_path / "age.onnx"
    again.write_bytes(converted[0].read_bytes() + b"")
    convert(swin, card, again)
    assert onnxruntime.InferenceSession(str(again), providers=["CPUExecutionProvider"]).get_inputs()[0].name == "frames"


def swapped_rows(path: Path) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
    """A runtime that mixes up the pictures of a batch."""
    run = open_shipped(path)
    return lambda batch: {name: answer[::-1] for name, answer in run(batch).items()}


def not_finite(path: Path) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
    run = open_shipped(path)
    return lambda batch: run(batch) | {"age": run(batch)["age"] * np.nan}


def only_single(path: Path) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
    """A graph whose batch was frozen in the export."""
    run = open_shipped(path)

    def answer(batch: np.ndarray) -> dict[str, np.ndarray]:
        if len(batch) > 1:
            raise RuntimeError("Got invalid dimensions for input: frames")
        return run(batch)

    return answer


@pytest.mark.parametrize(
    ("opener", "message"), [(swapped_rows, "receipt is up to"), (not_finite, "NaN"), (only_single, "batch of 2")]
)
def test_a_runtime_that_answers_wrongly_is_caught(tmp_path: Path, swin: Path, opener: Any, message: str) -> None:
    with pytest.raises(ParityError, match=message):
        convert(swin, sized("joir-age", 96), tmp_path / "age.onnx", open_shipped=opener)
    assert list(tmp_path.iterdir()) == []


def test_a_network_with_the_same_answer_for_every_picture_proves_nothing(tmp_path: Path) -> None:
    state = make.swin_new_layout(make.swin_network())
    state["head.fc.weight"] *= 0
    with pytest.raises(ParityError, match="for each of the 6 photographs"):
        convert(make.save_torch(tmp_path / "x.pth", state), sized("joir-age", 96), tmp_path / "x.onnx")


def test_a_network_that_answers_nan_is_refused(tmp_path: Path) -> None:
    state = make.swin_new_layout(make.swin_network())
    state["norm.weight"][3] = state["head.fc.weight"][0, 3] = 3e38  # finite weights, whose product is not
    with pytest.raises(ParityError, match="the original framework answers with NaN"):
        convert(make.save_torch(tmp_path / "x.pth", state), sized("joir-age", 96), tmp_path / "x.onnx")


def test_a_regression_is_measured_in_years(tmp_path: Path, swin: Path, converted: tuple[Path, ConversionReport]) -> None:
    """A standardised target: differences and spread are those of value * 12 + 50."""
    plain = converted[1].differences[0]
    scaled = convert(swin, sized("joir-age", 96, scale=12.0, offset=50.0), tmp_path / "b.onnx").differences[0]
    assert scaled.lowest == pytest.approx(12 * plain.lowest + 50)
    assert scaled.spread == pytest.approx(12 * plain.spread)


def test_half_precision_weights_are_computed_in_float32(tmp_path: Path) -> None:
    state = {name: tensor.half() for name, tensor in make.swin_new_layout(make.swin_network()).items()}
    report = convert(make.save_torch(tmp_path / "x.pth", state), sized("joir-age", 96), tmp_path / "x.onnx")
    assert report.differences[0].largest < 1e-4


def test_calls_that_cannot_be_answered_are_usage_errors(tmp_path: Path, swin: Path) -> None:
    card = sized("joir-age", 96)
    for frames in (make.photographs(64), make.photographs(96).astype(np.float32), make.photographs(96)[:0]):
        with pytest.raises(UsageError, match="expected"):
            convert(swin, card, tmp_path / "x.onnx", tensors=frames)
    with pytest.raises(UsageError, match=r"\.onnx"):
        convert(swin, card, tmp_path / "x.engine")
    with pytest.raises(UsageError, match="does not exist"):
        convert(swin, card, tmp_path / "none" / "x.onnx")


def test_a_missing_framework_is_named_with_its_extra(tmp_path: Path, swin: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> Any:
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    monkeypatch.setattr(backends.importlib, "import_module", missing)
    with pytest.raises(BackendUnavailableError, match=r"torch is not installed.*pip install 'fundus-rt\[convert\]'"):
        convert(swin, sized("joir-age", 96), tmp_path / "x.onnx")


QUIET = """
import sys
sys.path.insert(0, {root!r}); sys.path.insert(0, {typing!r})
from pathlib import Path
from tests import test_onnx_from_checkpoint as t
t.convert(Path({source!r}), t.sized({card!r}, {size}), Path({target!r}))
"""


@pytest.mark.parametrize("framework", ["torch", pytest.param("keras", marks=pytest.mark.full)])
def test_frameworks_say_nothing_to_the_user(tmp_path: Path, framework: str, request: pytest.FixtureRequest) -> None:
    source = request.getfixturevalue("swin" if framework == "torch" else "mobilenet")
    root = Path(__file__).parent.parent
    card, size = ("joir-age", 96) if framework == "torch" else ("joir-sex-mobilenet", 64)
    program = QUIET.format(
        root=str(root), typing=str(root / ".typing"), source=str(source), card=card, size=size, target=str(tmp_path / "x.onnx")
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=300, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


FULL = {
    "swin-b": ("joir-age", {"embed_dim": 128, "depths": (2, 2, 18, 2), "num_heads": (4, 8, 16, 32), "window_size": 12}),
    "mobilenet": ("joir-sex-mobilenet", {}),
    "efficientnet-b7": ("joir-sex-efficientnet-b7", {}),
}


def make_full(kind: str, path: str) -> None:
    """Write the full-size checkpoint, in a process of its own."""
    if kind == "swin-b":
        state = make.swin_microsoft_layout(make.swin_network(img_size=384, **FULL[kind][1]))
        make.save_torch(Path(path), make.training_container(state))
    else:
        make.save_keras(Path(path), make.keras_network(kind, 384, 1, "sigmoid"))


def convert_full(kind: str, path: str) -> None:
    """Convert it as published, and hold the differences and the memory against what is promised."""
    report = convert(Path(path), load_card(FULL[kind][0]), Path(path + ".onnx"))
    print("\n".join(report.lines()))
    assert report.differences[0].largest < 1e-4
    assert report.peak_memory is not None and report.peak_memory < 8 * 2**30


@pytest.mark.full
@pytest.mark.parametrize("kind", FULL)
def test_full_size_networks_convert_below_eight_gibibytes(tmp_path: Path, kind: str) -> None:
    root = Path(__file__).parent.parent
    path = tmp_path / ("x.pth" if kind == "swin-b" else "x.h5")
    for function in ("make_full", "convert_full"):
        program = f"import sys; sys.path[:0] = [{str(root)!r}, {str(root / '.typing')!r}]\n"
        program += f"from tests import test_onnx_from_checkpoint as t\nt.{function}({kind!r}, {str(path)!r})"
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=1800, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
        print(done.stdout)
