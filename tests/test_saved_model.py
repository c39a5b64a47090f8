"""SavedModel folders: harmful graphs refused unread, every variable accounted for, the signature converted and proved."""

from __future__ import annotations

import shutil
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fundus_rt.benchmarks.conversion_case import ConversionCase
from fundus_rt.benchmarks.make_foreign import CASES
from fundus_rt.converters.architecture import identify_architecture
from fundus_rt.converters.backends import require_keras
from fundus_rt.converters.checkpoint import read_checkpoint
from fundus_rt.converters.parity import reference_tensor
from fundus_rt.models.errors import BackendUnavailableError, UnsupportedCheckpointError, UntrustedCheckpointError
from tests import make_checkpoints as make
from tests.test_onnx_from_checkpoint import convert, open_shipped

try:
    tensorflow, KERAS = require_keras()
except BackendUnavailableError as reason:
    pytest.skip(str(reason), allow_module_level=True)

SIZE, COLUMNS = 32, 3
CARD = ConversionCase("x", "x", "x", ("saved-model",), lambda *_: Path(), SIZE, SIZE, COLUMNS).card(SIZE)


def module(batch: int | None = None, shape: tuple[Any, ...] = (SIZE, SIZE, 3), kind: Any = None, changes: Any = None) -> Any:
    """A network of two variables as a plain `tf.Module`; `changes(picture, answer)` gives another answer."""
    random = np.random.default_rng(2)
    kind = kind or tensorflow.float32

    class Network(tensorflow.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.kernel = tensorflow.Variable(random.normal(0, 0.3, (3, 3, 3, 8)).astype(np.float32))
            self.head = tensorflow.Variable(random.normal(0, 0.6, (8, COLUMNS)).astype(np.float32))

        @tensorflow.function(input_signature=[tensorflow.TensorSpec((batch, *shape), kind, name="picture")])
        def answer(self, picture: Any) -> Any:
            numbers = (
                tensorflow.cast(picture, tensorflow.float32) if kind != tensorflow.string else tensorflow.zeros((1, 32, 32, 3))
            )
            found = tensorflow.nn.relu(tensorflow.nn.conv2d(numbers, self.kernel, 2, "SAME"))
            pooled = tensorflow.reduce_mean(found, [1, 2])
            if batch:
                pooled = tensorflow.reshape(pooled, [batch, 8])
            answer = tensorflow.nn.softmax(pooled @ self.head)
            return {"grade": answer} if changes is None else changes(numbers, answer)

    return Network()


def save(folder: Path, network: Any, **signatures: Any) -> Path:
    tensorflow.saved_model.save(network, str(folder), signatures=signatures or {"serving_default": network.answer})
    return folder


@pytest.mark.parametrize("batch", [None, 1, 2])
def test_a_module_converts_whatever_its_batch(tmp_path: Path, batch: int | None) -> None:
    network = module(batch)
    source = save(tmp_path / "network", network)
    report = convert(source, CARD, tmp_path / "shipped.onnx")
    pictures = make.photographs(SIZE, 4, seed=7)
    images = reference_tensor(pictures, CARD.preprocessing)
    count = batch or 1
    groups = [tensorflow.constant(np.repeat(image[None], count, axis=0)) for image in images]
    expected = np.concatenate([network.answer(group)["grade"].numpy()[:1] for group in groups])
    np.testing.assert_allclose(open_shipped(report.output)(pictures)["grade"], expected, atol=1e-5)
    assert np.ptp(expected, axis=0).max() > 0.01
    account = report.architecture.account
    assert account.used_parameters == account.network_parameters == 3 * 3 * 3 * 8 + 8 * COLUMNS
    assert report.architecture.activation == "softmax" and report.architecture.input_size == (SIZE, SIZE)
    assert any("does not name its architecture" in warning for warning in report.warnings)


def test_a_network_of_keras_2_with_its_training_state(tmp_path: Path) -> None:
    KERAS.utils.set_random_seed(0)
    layers = KERAS.layers
    network = KERAS.Sequential(
        [layers.Conv2D(8, 3, input_shape=(SIZE, SIZE, 3)), layers.GlobalAveragePooling2D(), layers.Dense(COLUMNS)]
    )
    network.compile("adam", "mse", metrics=["mae"])
    network.fit(np.ones((2, SIZE, SIZE, 3), np.float32), np.ones((2, COLUMNS)), verbose=0)
    network.layers[-1].kernel.assign(network.layers[-1].kernel * 4)
    network.save(tmp_path / "network", save_format="tf")
    report = convert(tmp_path / "network", CARD, tmp_path / "shipped.onnx")
    assert report.architecture.account.used_parameters == network.count_params()
    assert {"state of the optimizer", "state of a metric"} <= set(report.architecture.account.unused.values())
    assert report.differences[0].largest < 1e-5


@pytest.mark.full
@pytest.mark.parametrize("case", [case for case in CASES if case.families == ("saved-model",)], ids=lambda case: case.name)
def test_published_architectures_convert(tmp_path: Path, case: ConversionCase) -> None:
    source = case.make(tmp_path, case.size, case.columns)
    report = convert(source, case.card(case.size), tmp_path / "shipped.onnx")
    assert report.differences[0].largest < 1e-4 < 0.05 < report.differences[0].spread
    assert report.architecture.account.used_tensors == 137, "MobileNet: 27 convolutions, 27 norms of 4, kernel and bias"


def test_the_second_copy_that_keras_3_exports_is_no_second_network(tmp_path: Path) -> None:
    keras3_export = pytest.importorskip("fundus_rt.converters.tensorflow.keras3_export")
    _, keras = keras3_export.require_keras3()
    image = keras.Input((SIZE, SIZE, 3))
    found = keras.layers.Dropout(0.2)(keras.layers.GlobalAveragePooling2D()(keras.layers.Conv2D(4, 3)(image)))
    network = keras.Model(image, keras.layers.Dense(COLUMNS)(found))
    network.export(str(tmp_path / "network"), verbose=False)
    architecture = identify_architecture(read_checkpoint(tmp_path / "network"), CARD)
    assert architecture.account.used_parameters == network.count_params()
    assert set(architecture.account.unused.values()) <= {
        "second copy of a parameter, which the export of Keras 3 writes",
        "state of a random generator, used in training only",
    }


def test_an_operator_that_onnx_does_not_have_is_named(tmp_path: Path) -> None:
    """What RandomRotation leaves in a graph; tf2onnx hands it on and only logs that it does not know it."""

    def turned(picture: Any, answer: Any) -> Any:
        transformed = tensorflow.raw_ops.ImageProjectiveTransformV3(
            images=picture, transforms=np.eye(3, dtype=np.float32).reshape(1, 9)[:, :8], output_shape=[SIZE, SIZE],
            fill_value=0.0, interpolation="BILINEAR",
        )  # fmt: skip
        return {"grade": answer + tensorflow.reduce_mean(transformed, [1, 2])}

    path = save(tmp_path / "network", module(changes=turned))
    with pytest.raises(UnsupportedCheckpointError, match="no operator for ImageProjectiveTransformV3"):
        convert(path, CARD, tmp_path / "shipped.onnx")


def python_function(picture: Any, answer: Any) -> Any:
    return {"grade": tensorflow.numpy_function(lambda value: value, [answer], tensorflow.float32)}


def reads_a_file(picture: Any, answer: Any) -> Any:
    return {
        "grade": answer + tensorflow.cast(tensorflow.strings.length(tensorflow.io.read_file("/etc/passwd")), tensorflow.float32)
    }


def writes_a_file(picture: Any, answer: Any) -> Any:
    with tensorflow.control_dependencies([tensorflow.io.write_file("stolen", "x")]):
        return {"grade": tensorflow.identity(answer)}


def restores_a_checkpoint(picture: Any, answer: Any) -> Any:
    """What only the folder's own restore function may do."""
    (values,) = tensorflow.raw_ops.RestoreV2(
        prefix="/some/where", tensor_names=["x"], shape_and_slices=[""], dtypes=[tensorflow.float32]
    )
    return {"grade": answer + values}


def reads_a_vocabulary(picture: Any, answer: Any) -> Any:
    """TensorFlow does not call it stateful, nor does its name speak of files."""
    found = tensorflow.raw_ops.GenerateVocabRemapping(
        new_vocab_file="/some/where", old_vocab_file="/some/where", new_vocab_offset=0, num_new_vocab=1, old_vocab_size=-1
    )
    return {"grade": answer + tensorflow.cast(found.num_present, tensorflow.float32)}


def prints(picture: Any, answer: Any) -> Any:
    tensorflow.print(answer)
    return {"grade": answer}


@pytest.mark.parametrize(
    ("changes", "operator"),
    [
        (reads_a_vocabulary, "GenerateVocabRemapping"),
        (prints, "StringFormat"),
        (python_function, "PyFunc"),
        (reads_a_file, "ReadFile"),
        (writes_a_file, "WriteFile"),
        (restores_a_checkpoint, "RestoreV2"),
    ],
)
def test_graphs_that_touch_files_or_run_code_are_refused_unread(tmp_path: Path, changes: Any, operator: str) -> None:
    source = save(tmp_path / "network", module(1, changes=changes))
    with pytest.raises(UntrustedCheckpointError, match=rf"{operator} \(in .*--trust-pickle"):
        read_checkpoint(source)
    assert read_checkpoint(source, trust_pickle=True).trusted


def test_every_operator_that_takes_the_name_of_a_file_is_left_out() -> None:
    """TensorFlow's own list of operators: none that is allowed reads a string or a table, but for Assert's and Const's texts."""
    from tensorflow.python.framework import op_def_registry

    from fundus_rt.converters.tensorflow.saved_model_operators import ALLOWED

    for name in ALLOWED:
        definition = op_def_registry.get(name)
        assert definition is not None, f"{name} is no operator of TensorFlow"
        texts = [given.name for given in definition.input_arg if given.type == tensorflow.string.as_datatype_enum]
        assert not texts, f"{name} is given texts: {texts}"
        harmful = [word for word in ("File", "Dataset", "PyFunc", "Lookup", "Decode", "Save", "Restore") if word in name]
        assert not harmful, f"{name} is allowed"


def test_what_tensorflow_cannot_run_is_refused(tmp_path: Path) -> None:
    source = save(tmp_path / "network", module(1, changes=reads_a_vocabulary))
    network = identify_architecture(read_checkpoint(source, trust_pickle=True), CARD).build()
    with pytest.raises(
        UnsupportedCheckpointError, match=r"network does not run on pictures of shape \[1, 32, 32, 3\].*/some/where"
    ):
        network.answers(np.zeros((1, SIZE, SIZE, 3), np.float32))


def test_tables_and_files_beside_the_variables_are_refused(tmp_path: Path) -> None:
    (tmp_path / "labels.txt").write_text("a 1\nb 2\n")
    network = module()
    initializer = tensorflow.lookup.TextFileInitializer(
        str(tmp_path / "labels.txt"), tensorflow.string, 0, tensorflow.int64, 1, delimiter=" "
    )
    network.table = tensorflow.lookup.StaticHashTable(initializer, -1)
    with pytest.raises(UntrustedCheckpointError, match=r"HashTableV2|InitializeTable"):
        read_checkpoint(save(tmp_path / "network", network))


def test_variables_that_nothing_explains_are_listed(tmp_path: Path) -> None:
    network = module()
    network.second_head = tensorflow.Variable(tensorflow.zeros((8, 7)))
    with pytest.raises(UnsupportedCheckpointError, match=r"1 of its variables .*second_head \[8, 7\]"):
        read_checkpoint(save(tmp_path / "network", network))


def test_signatures_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    def refused(name: str, network: Any, message: str, **signatures: Any) -> None:
        with pytest.raises(UnsupportedCheckpointError, match=message):
            identify_architecture(read_checkpoint(save(tmp_path / name, network, **signatures)), CARD)

    two = module()
    refused("a", two, r"signatures first, second, expected one", first=two.answer, second=two.answer)
    refused("b", module(1, kind=tensorflow.uint8), r"uint8 numbers \(picture\).*prepares the picture itself")
    refused("c", module(shape=(), kind=tensorflow.string), "string numbers .*decodes files itself")
    refused(
        "d", module(changes=lambda picture, answer: {"grade": answer, "other": answer * 2}), "outputs grade, other, expected one"
    )
    refused("e", module(changes=lambda picture, answer: {"map": picture * answer[0, 0]}), "a map: a segmentation")
    refused("f", module(shape=(64, 64, 3)), "64 x 64 pixels, but the card")
    open_size = module(shape=(None, None, 3))
    found = identify_architecture(read_checkpoint(save(tmp_path / "g", open_size, only=open_size.answer)), CARD)
    assert found.input_size == (SIZE, SIZE) and "'only'" in found.description


def test_damaged_packed_and_old_folders_are_refused(tmp_path: Path) -> None:
    source = save(tmp_path / "network", module())
    with pytest.raises(UnsupportedCheckpointError, match="give the folder"):
        read_checkpoint(source / "saved_model.pb")
    with zipfile.ZipFile(tmp_path / "network.zip", "w") as archive:
        archive.write(source / "saved_model.pb", "network/saved_model.pb")
    with pytest.raises(UnsupportedCheckpointError, match="packed TensorFlow SavedModel"):
        read_checkpoint(tmp_path / "network.zip")
    without = shutil.copytree(source, tmp_path / "without")
    shutil.rmtree(without / "variables")
    with pytest.raises(UnsupportedCheckpointError, match="variables of without cannot be read"):
        read_checkpoint(without)
    (source / "saved_model.pb").write_bytes((source / "saved_model.pb").read_bytes()[:-50])
    with pytest.raises(UnsupportedCheckpointError, match="cut short or damaged"):
        read_checkpoint(source)


def test_a_session_of_tensorflow_1_is_refused(tmp_path: Path) -> None:
    old = tensorflow.compat.v1
    with tensorflow.Graph().as_default(), old.Session() as session:
        picture = old.placeholder(tensorflow.float32, (None, SIZE, SIZE, 3))
        kernel = old.get_variable("kernel", (3, COLUMNS))
        answer = tensorflow.reduce_mean(picture, [1, 2]) @ kernel
        session.run(old.global_variables_initializer())
        old.saved_model.simple_save(session, str(tmp_path / "old"), {"picture": picture}, {"answer": answer})
    with pytest.raises(UnsupportedCheckpointError, match="SavedModel of TensorFlow 1"):
        read_checkpoint(tmp_path / "old")
