"""Files of Keras 3: converted by Keras 3 itself, to the last weight, and searched for code before that."""

from __future__ import annotations

import dataclasses
import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fundus_rt.benchmarks.conversion_case import ConversionCase
from fundus_rt.benchmarks.make_foreign import CASES
from fundus_rt.converters.checkpoint import Checkpoint, read_checkpoint
from fundus_rt.converters.parity import reference_tensor
from fundus_rt.models.errors import BackendUnavailableError, UnsupportedCheckpointError, UntrustedCheckpointError
from tests import make_checkpoints as make
from tests.keras_toys import card_for
from tests.test_onnx_from_checkpoint import convert, open_shipped

h5py = pytest.importorskip("h5py")
onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("tf_keras")
from fundus_rt.converters.tensorflow import keras3_export  # noqa: E402

try:
    TENSORFLOW, KERAS = keras3_export.require_keras3()
except BackendUnavailableError as reason:
    pytest.skip(str(reason), allow_module_level=True)

KERAS3 = [case for case in CASES if case.layout == "Keras 3"]
QUICK = ("mobilenet-nested-keras-3-.keras",)


@pytest.mark.parametrize(
    "case",
    [pytest.param(case, id=case.name, marks=[] if case.name.startswith(QUICK) else pytest.mark.full) for case in KERAS3],
)
def test_networks_of_keras_3_convert(tmp_path: Path, case: ConversionCase) -> None:
    source = case.make(tmp_path, case.size, case.columns)
    card = case.card(case.size)
    pictures = make.photographs(case.size, 3, seed=7)
    original = KERAS.saving.load_model(source, compile=False)
    expected = original.predict(reference_tensor(pictures, card.preprocessing), verbose=0)
    report = convert(source, card, tmp_path / "shipped.onnx")
    answered = open_shipped(tmp_path / "shipped.onnx")(pictures)
    np.testing.assert_allclose(answered[card.outputs[0].name], expected, atol=1e-4)
    assert np.ptp(expected, axis=0).max() > 0.05
    assert report.architecture.account.used_parameters == original.count_params()
    assert report.architecture.family == case.families[0] and "Keras 3" in report.notes[0]
    if case.architecture.startswith("EfficientNet"):
        assert "deviation (0.4785, 0.4733, 0.4743)" in " ".join(report.lines()), "the roots of 0.229, 0.224 and 0.225"


def test_the_two_generations_of_keras_work_after_each_other(tmp_path: Path, small: Path) -> None:
    from fundus_rt.converters.backends import require_keras
    from fundus_rt.converters.tensorflow.keras_export import build_keras

    _, keras2 = require_keras()
    keras2.utils.set_random_seed(1)
    layers = [keras2.layers.Conv2D(4, 3, input_shape=(16, 16, 3)), keras2.layers.GlobalAveragePooling2D()]
    old = keras2.Sequential([*layers, keras2.layers.Dense(2)])
    old.save(tmp_path / "two.h5", save_format="h5")
    images = np.random.default_rng(0).uniform(0, 255, (3, 16, 16, 3)).astype(np.float32)
    expected2, expected3 = old.predict(images, verbose=0), small_network().predict(images, verbose=0)
    for _ in range(2):
        network2 = build_keras(read_checkpoint(tmp_path / "two.h5"), "a test's network")
        network3 = keras3_export.build_keras3(read_checkpoint(small), "a test's network")
        np.testing.assert_allclose(network2.predict(images, verbose=0), expected2, rtol=1e-5)
        np.testing.assert_allclose(network3.predict(images, verbose=0), expected3, rtol=1e-5)
        assert type(network2).__module__.startswith("tf_keras.") and type(network3).__module__.startswith("keras.")


def small_network() -> Any:
    """Layers whose reading went wrong in some release: Rescaling with a list, Normalization, random layers; and arithmetic."""
    layers = KERAS.layers
    KERAS.utils.set_random_seed(3)
    image = KERAS.Input((16, 16, 3))
    normalization = layers.Normalization()
    found = normalization(layers.Rescaling(1 / 255)(image))
    normalization.set_weights([np.asarray([0.4, 0.3, 0.1]), np.asarray([0.2, 0.1, 0.3]), np.asarray(0)])
    normalization.finalize_state()
    found = layers.RandomFlip()(layers.Rescaling([2.0, 1.5, 0.5])(found)) / 2.0
    found = layers.Conv2D(8, 3, strides=2, activation="relu")(found)
    found = layers.Dropout(0.3)(layers.GlobalAveragePooling2D()(layers.BatchNormalization()(found)))
    return KERAS.Model(image, layers.Dense(2, activation="softmax")(found))


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("small") / "small.keras"
    small_network().save(path)
    return path


def test_rescaling_and_normalization_are_exported_as_keras_computes_them(tmp_path: Path, small: Path) -> None:
    shutil.copy(small, tmp_path / "small.bin")
    checkpoint = read_checkpoint(tmp_path / "small.bin")
    network = keras3_export.Keras3Network(
        keras3_export.build_keras3(checkpoint, "a test's network"), (16, 16), lambda model: None
    )
    images = np.random.default_rng(0).uniform(0, 255, (3, 16, 16, 3)).astype(np.float32)
    model = network.graph()
    (found,) = onnxruntime.InferenceSession(model.SerializeToString()).run(None, {"images": images})
    np.testing.assert_allclose(found, small_network().predict(images, verbose=0), atol=1e-6)
    assert np.ptp(found, axis=0).max() > 1e-4
    assert model.opset_import[0].version == 17


def test_a_network_with_other_weights_than_the_file_is_refused(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load = KERAS.saving.load_model

    def one_bias_lost(*arguments: Any, **options: Any) -> Any:
        network = load(*arguments, **options)
        network.layers[-1].bias.assign([0.5, 0.5])
        return network

    monkeypatch.setattr(KERAS.saving, "load_model", one_bias_lost)
    with pytest.raises(UnsupportedCheckpointError, match=r"11 tensors 1 are not as in the file, and 1 .*layers/dense/vars/1"):
        keras3_export.build_keras3(read_checkpoint(small), "a test's network")


def test_quantized_weights_are_no_weights(tmp_path: Path, small: Path) -> None:
    """Whole numbers equal to those that Keras would load: their scale is not in the file."""
    with zipfile.ZipFile(small) as archive:
        (tmp_path / "weights.h5").write_bytes(archive.read("model.weights.h5"))
    with h5py.File(tmp_path / "weights.h5", "r+") as file:
        bias = np.asarray(file["layers/dense/vars/1"])
        del file["layers/dense/vars/1"]
        file["layers/dense/vars/1"] = np.zeros(bias.shape, np.int8)
    changed = {"model.weights.h5": (tmp_path / "weights.h5").read_bytes()}
    path = edited(small, tmp_path / "x.keras", lambda config: None, **changed)
    with pytest.raises(UnsupportedCheckpointError, match=r"1 are not as in the file, and 1 .*layers/dense/vars/1"):
        keras3_export.build_keras3(read_checkpoint(path), "a test's network")


@pytest.mark.parametrize("operation", ["sigmoid", "softmax"])
def test_an_operation_at_the_end_is_read_from_the_graph(tmp_path: Path, operation: str) -> None:
    image = KERAS.Input((16, 16, 3))
    found = KERAS.layers.Dense(2)(KERAS.layers.GlobalAveragePooling2D()(KERAS.layers.Conv2D(4, 3)(image)))
    network = KERAS.Model(image, getattr(KERAS.ops, operation)(found))
    network.save(tmp_path / "x.keras")
    card = card_for(16, "keras", columns=2)
    output = dataclasses.replace(card.outputs[0], task="multilabel" if operation == "sigmoid" else "multiclass")
    card = dataclasses.replace(card, outputs=(output,))
    frames = make.photographs(16, 4, 3)
    report = convert(tmp_path / "x.keras", card, tmp_path / "shipped.onnx", tensors=frames)
    assert report.card.outputs[0].activation == "none"
    expected = network.predict(reference_tensor(frames, card.preprocessing), verbose=0)
    answered = open_shipped(tmp_path / "shipped.onnx")(frames)[card.outputs[0].name]
    np.testing.assert_allclose(answered, expected, atol=1e-5)


def test_an_h5_that_keras_cannot_load_again_says_so(tmp_path: Path) -> None:
    """Keras 3 writes arithmetic between layers into an ``.h5`` under names that it does not find again."""
    small_network().save(tmp_path / "x.h5")
    with pytest.raises(UnsupportedCheckpointError, match=r"Keras 3\.\d+\.\d+\) is recognised as .* cannot load it"):
        keras3_export.build_keras3(read_checkpoint(tmp_path / "x.h5"), "a test's network")


def edited(source: Path, target: Path, edit: Callable[[dict[str, Any]], None], **members: bytes) -> Path:
    """A copy of a ``.keras`` archive with another configuration and other members."""
    with zipfile.ZipFile(source) as archive:
        content = {name: archive.read(name) for name in archive.namelist()}
    config = json.loads(content["config.json"])
    edit(config)
    with zipfile.ZipFile(target, "w") as archive:
        for name, data in (content | {"config.json": json.dumps(config).encode()} | members).items():
            archive.writestr(name, data)
    return target


def hostile(**settings: Any) -> Callable[[dict[str, Any]], None]:
    """Turn the Dropout layer into another object."""

    def edit(config: dict[str, Any]) -> None:
        next(layer for layer in config["config"]["layers"] if layer["class_name"] == "Dropout").update(settings)

    return edit


def called(module: str, name: str) -> Callable[[dict[str, Any]], None]:
    """Name a function as the activation of the Dense layer."""

    def edit(config: dict[str, Any]) -> None:
        function = {"module": module, "class_name": "function", "config": name, "registered_name": name}
        next(layer for layer in config["config"]["layers"] if layer["class_name"] == "Dense")["config"]["activation"] = function

    return edit


def byte_code(config: dict[str, Any]) -> None:
    value = {"class_name": "__lambda__", "config": {"value": "4wEAAAA=", "defaults": None, "closure": None}}
    config["config"]["layers"][-1]["config"]["activation"] = value


EXECUTED = {
    "exec": hostile(module="builtins", class_name="exec", config={"name": "x"}),
    "system": called("os", "system"),
    "download": called("keras.utils", "get_file"),
    "safe mode off": called("keras.config", "enable_unsafe_deserialization"),
    "lambda layer": hostile(class_name="Lambda"),
    "lambda value": byte_code,
    "pickled module": hostile(module="keras.src.utils.torch_utils", class_name="TorchModuleWrapper"),
}
FOREIGN = {
    "registered": hostile(registered_name="Author>FixedDropout", class_name="FixedDropout"),
    "saved model inside": hostile(class_name="TFSMLayer"),
    "vocabulary file": hostile(class_name="StringLookup"),
    "operation with functions": hostile(module="keras.src.ops.core", class_name="Map"),
    "activation": lambda config: config["config"]["layers"][-1]["config"].update(activation="own_activation"),
}


@pytest.mark.parametrize("name", [*EXECUTED, *FOREIGN])
def test_code_and_foreign_objects_are_refused_before_keras_sees_them(tmp_path: Path, small: Path, name: str) -> None:
    edit = (EXECUTED | FOREIGN)[name]
    path = edited(small, tmp_path / "x.keras", edit)
    with pytest.raises(
        UnsupportedCheckpointError, match=r"would execute code|not among the layers and functions of Keras"
    ) as caught:
        read_checkpoint(path)
    assert isinstance(caught.value, UntrustedCheckpointError) == (name in EXECUTED or "functions" in name)
    if name == "lambda layer":
        assert read_checkpoint(path, trust_pickle=True).trusted


def test_the_training_loss_of_the_author_is_no_hindrance(tmp_path: Path, small: Path) -> None:
    def own_loss(config: dict[str, Any]) -> None:
        config["compile_config"] = {"loss": {"module": "author", "class_name": "function", "config": "focal_loss"}}

    assert read_checkpoint(edited(small, tmp_path / "x.keras", own_loss)).parameters == 3 * 3 * 3 * 8 + 8 + 4 * 8 + 16 + 2 + 7


def linked(file: Any, tmp_path: Path) -> None:
    """A tensor in another HDF5 file of the machine."""
    file["layers/dense/vars"]["2"] = h5py.ExternalLink(str(tmp_path / "secret.h5"), "values")


def stored_outside(file: Any, tmp_path: Path) -> None:
    """A tensor whose bytes are those of any other file."""
    file["layers/dense/vars"].create_dataset("2", (16,), "u1", external=[(str(tmp_path / "secret.h5"), 0, 16)])


def virtual(file: Any, tmp_path: Path) -> None:
    """A tensor that stands for a part of another HDF5 file."""
    layout = h5py.VirtualLayout((4,), "f4")
    layout[:] = h5py.VirtualSource(str(tmp_path / "secret.h5"), "values", (4,))
    file["layers/dense/vars"].create_virtual_dataset("2", layout)


def enormous(file: Any, tmp_path: Path) -> None:
    """A tensor of a terabyte of which nothing is stored."""
    file["layers/dense/vars"].create_dataset("2", (1 << 38,), "f4", chunks=(1 << 20,))


@pytest.mark.parametrize(
    ("attack", "message"),
    [(linked, "secret.h5"), (stored_outside, "secret.h5"), (virtual, "secret.h5"), (enormous, "exhaust the memory")],
)
def test_tensors_in_other_files_are_not_opened(tmp_path: Path, small: Path, attack: Any, message: str) -> None:
    with h5py.File(tmp_path / "secret.h5", "w") as file:
        file["values"] = np.arange(4, dtype=np.float32)
    with zipfile.ZipFile(small) as archive:
        (tmp_path / "weights.h5").write_bytes(archive.read("model.weights.h5"))
    with h5py.File(tmp_path / "weights.h5", "r+") as file:
        attack(file, tmp_path)
    changed = {"model.weights.h5": (tmp_path / "weights.h5").read_bytes()}
    with pytest.raises(UnsupportedCheckpointError, match=message):
        read_checkpoint(edited(small, tmp_path / "x.keras", lambda config: None, **changed))


def test_other_members_and_damage_are_refused(tmp_path: Path, small: Path) -> None:
    extra = {"assets/vocabulary.txt": b"x"}
    with pytest.raises(UnsupportedCheckpointError, match=r"also assets/vocabulary\.txt"):
        read_checkpoint(edited(small, tmp_path / "x.keras", lambda config: None, **extra))
    with pytest.raises(UnsupportedCheckpointError, match="damaged"):
        read_checkpoint(edited(small, tmp_path / "x.keras", lambda config: None, **{"model.weights.h5": b"none"}))
    with zipfile.ZipFile(tmp_path / "bomb.keras", "w", zipfile.ZIP_DEFLATED) as archive:
        for name in ("metadata.json", "config.json", "model.weights.h5"):
            archive.writestr(name, bytes(1 << 20))
    with pytest.raises(UnsupportedCheckpointError, match="exhaust the memory"):
        read_checkpoint(tmp_path / "bomb.keras")
    (tmp_path / "y.keras").write_bytes(small.read_bytes()[:-3000])
    with pytest.raises(UnsupportedCheckpointError, match="download it again"):
        read_checkpoint(tmp_path / "y.keras")


def test_random_generators_and_the_optimizer_are_no_parameters(tmp_path: Path) -> None:
    network = small_network()
    network.compile("adam", "categorical_crossentropy")
    network.optimizer.build(network.trainable_variables)
    network.save(tmp_path / "x.keras")
    checkpoint: Checkpoint = read_checkpoint(tmp_path / "x.keras")
    assert checkpoint.parameters == network.count_params() and len(checkpoint.shapes) == len(network.weights)
    assert any("state of the optimizer" in note for note in checkpoint.notes)


def test_a_keras_that_reads_normalization_wrongly_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(KERAS, "__version__", "3.5.0")
    with pytest.raises(BackendUnavailableError, match=r"keras 3\.5\.0 is installed.*3\.6 or later"):
        keras3_export.require_keras3()


def convolutions(folder: Path) -> tuple[Any, Path]:
    """A network with two convolutions of one shape, and its ``.h5``."""
    layers = KERAS.layers
    KERAS.utils.set_random_seed(4)
    found = [layers.Conv2D(3, 3, name=name, activation="tanh", bias_initializer="normal") for name in ("first", "second")]
    pooled = [layers.GlobalAveragePooling2D(name="pool"), layers.Dense(2, name="answer")]
    network = KERAS.Sequential([KERAS.Input((16, 16, 3)), *found, *pooled])
    network.save(folder / "x.h5")
    return network, folder / "x.h5"


def test_layers_of_one_shape_that_changed_places_in_an_h5_are_noticed(tmp_path: Path) -> None:
    """Keras loads in the order of ``layer_names``: the same values, in the wrong layers."""
    network, path = convolutions(tmp_path)
    images = np.random.default_rng(0).uniform(0, 1, (3, 16, 16, 3)).astype(np.float32)
    loaded = keras3_export.build_keras3(read_checkpoint(path), "a test's network")
    np.testing.assert_allclose(loaded.predict(images, verbose=0), network.predict(images, verbose=0), rtol=1e-5)
    with h5py.File(path, "r+") as file:
        names = list(file["model_weights"].attrs["layer_names"])
        first, second = (next(i for i, name in enumerate(names) if word in str(name)) for word in ("first", "second"))
        names[first], names[second] = names[second], names[first]
        file["model_weights"].attrs["layer_names"] = names
    with pytest.raises(UnsupportedCheckpointError, match=r"its tensor 'first/.*' is not in the weight of that name \(4 of 6\)"):
        keras3_export.build_keras3(read_checkpoint(path), "a test's network")


@pytest.mark.parametrize("ending", ["h5", "keras"])
def test_a_toy_with_the_layer_names_of_mobilenet_is_not_mobilenet(tmp_path: Path, ending: str) -> None:
    from fundus_rt.converters.tensorflow.keras_landmarks import changed_backbone, landmark_of_config

    layers = KERAS.layers
    found = [layers.Conv2D(8, 3, name="conv_dw_1"), layers.Conv2D(16, 3, name="conv_pw_13")]
    found += [layers.BatchNormalization(name="conv_pw_13_bn"), layers.GlobalAveragePooling2D(), layers.Dense(1)]
    KERAS.Sequential([KERAS.Input((16, 16, 3)), *found]).save(tmp_path / f"x.{ending}")
    checkpoint = read_checkpoint(tmp_path / f"x.{ending}")
    landmark, _ = landmark_of_config(checkpoint.keras_config or {})
    assert landmark is not None and landmark.family == "mobilenet"
    assert "but 1,456 parameters in them" in changed_backbone(checkpoint, landmark)
    published = KERAS.applications.MobileNet(input_shape=(32, 32, 3), alpha=0.25, weights=None, include_top=False)
    KERAS.Sequential([published, layers.GlobalAveragePooling2D(), layers.Dense(1)]).save(tmp_path / f"y.{ending}")
    assert changed_backbone(read_checkpoint(tmp_path / f"y.{ending}"), landmark) == ""


@pytest.mark.parametrize("ending", ["h5", "keras"])
def test_networks_of_mixed_precision_compute_in_float32(tmp_path: Path, ending: str) -> None:
    from tests.keras_toys import card_for

    KERAS.config.set_dtype_policy("mixed_float16")
    try:
        mixed, _ = convolutions(tmp_path)
    finally:
        KERAS.config.set_dtype_policy("float32")
    single, _ = convolutions(tmp_path)
    mixed.save(tmp_path / f"x.{ending}")
    single.set_weights(mixed.get_weights())
    images = np.random.default_rng(0).uniform(0, 1, (3, 16, 16, 3)).astype(np.float32)
    checkpoint = read_checkpoint(tmp_path / f"x.{ending}")
    loaded = keras3_export.build_keras3(checkpoint, "a test's network")
    assert {layer.compute_dtype for layer in loaded.layers} == {"float32"}
    np.testing.assert_allclose(loaded.predict(images, verbose=0), single.predict(images, verbose=0), atol=1e-6)
    notes = keras3_export.identify_keras3(checkpoint, card_for(16, "keras", columns=2)).notes
    assert any("computed in another precision at training" in note for note in notes)


def test_layers_and_activations_of_keras_3_alone_convert(tmp_path: Path) -> None:
    layers = KERAS.layers
    KERAS.utils.set_random_seed(2)
    found = [layers.RandomCrop(16, 16), layers.Conv2D(8, 3, activation="leaky_relu"), layers.GroupNormalization(4)]
    found += [layers.Conv2D(8, 3, activation="hard_silu"), layers.GlobalAveragePooling2D(), layers.Dense(2)]
    original = KERAS.Sequential([KERAS.Input((16, 16, 3)), *found])
    original.save(tmp_path / "x.keras")
    images = np.random.default_rng(0).uniform(-1, 1, (3, 16, 16, 3)).astype(np.float32)
    loaded = keras3_export.build_keras3(read_checkpoint(tmp_path / "x.keras"), "a test's network")
    model = keras3_export.Keras3Network(loaded, (16, 16), lambda model: None).graph()
    (answered,) = onnxruntime.InferenceSession(model.SerializeToString()).run(None, {"images": images})
    np.testing.assert_allclose(answered, original.predict(images, verbose=0), atol=1e-5)
