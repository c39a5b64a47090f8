"""Weights of Keras files: each into its own place, by name, and nothing left over on either side."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fundus_rt.benchmarks.lively import pictures
from fundus_rt.converters.architecture import identify_architecture
from fundus_rt.converters.checkpoint import read_checkpoint
from fundus_rt.models.errors import UnsupportedCheckpointError
from tests.keras_toys import answers_of, card_for, file_of, images, keras, keras_model, shake, toy

pytest.importorskip("tf_keras")
h5py = pytest.importorskip("h5py")


def twins(trainable: bool = True) -> Any:
    """Convolutions of one shape in a nested network, half of them frozen, between two of the outer network."""
    layers = keras().layers
    inner_image = layers.Input((16, 16, 4))
    found = inner_image
    for name in ("one", "two", "three"):
        found = layers.BatchNormalization(name=f"{name}_bn")(layers.Conv2D(4, 3, name=name)(found))
    inner = keras_model(inner_image, found)
    inner.trainable = trainable
    inner.get_layer("two").trainable = False
    image = layers.Input((16, 16, 3))
    features = layers.GlobalAveragePooling2D()(inner(layers.Conv2D(4, 1, name="before")(image)))
    return shake(keras_model(image, layers.Dense(3, name="answer")(features)))


@pytest.mark.parametrize("trainable", [True, False])
def test_nested_and_partly_frozen_networks_are_loaded_by_name(tmp_path: Path, trainable: bool) -> None:
    network = twins(trainable)
    path = file_of(network, tmp_path / "x.h5")
    np.testing.assert_allclose(answers_of(path, images()), network.predict(images(), verbose=0), rtol=1e-5)


def nested_of_equal_shapes() -> Any:
    """Three convolutions of one shape in a nested network, with the names that Keras gives in its session."""
    from fundus_rt.converters.backends import require_keras

    module = require_keras()[1]
    layers = module.layers
    inner = module.Sequential([layers.Conv2D(3, 3, activation="tanh", input_shape=(16, 16, 3)), layers.Conv2D(3, 3)], name="base")
    inner.add(layers.Conv2D(3, 3, activation="tanh"))
    return module.Sequential([inner, layers.GlobalAveragePooling2D(name="pool"), layers.Dense(2, name="answer")])


@pytest.mark.parametrize("damage", ["", "no order", "frozen later"])
def test_frozen_layers_of_another_session_are_paired_by_number_not_by_place(tmp_path: Path, damage: str) -> None:
    """Keras lists frozen weights last; three of equal shape would change places without a word.

    Where the JSON does not say which layers were frozen, the list in the file could also be that of other layers.
    """
    keras()
    described = nested_of_equal_shapes()
    described.layers[0].layers[1].trainable = damage == "frozen later"
    (tmp_path / "x.json").write_text(described.to_json(), encoding="utf-8")
    network = shake(nested_of_equal_shapes())
    network.layers[0].layers[1].trainable = False
    path = tmp_path / "x.h5"
    network.save_weights(path)
    with h5py.File(path, "r+") as file:
        names = [text.decode() if isinstance(text, bytes) else text for text in file["base"].attrs["weight_names"]]
        assert [name.split("/")[0] for name in names[::2]] == ["conv2d_3", "conv2d_5", "conv2d_4"]
        if damage == "no order":
            for group in (file["base"],):
                group.move("conv2d_4", "conv2d_4_1")
                group.attrs["weight_names"] = np.asarray([name.replace("conv2d_4", "conv2d_4_1") for name in names], dtype="S")
    if damage:
        message = "does not fit its network to the last weight" if damage == "no order" else "conv2d_4/kernel:0 after .*conv2d_5"
        with pytest.raises(UnsupportedCheckpointError, match=message):
            answers_of(path, images())
        return
    expected = network.predict(images(), verbose=0)
    assert np.ptp(expected, axis=0).max() > 0.01
    np.testing.assert_allclose(answers_of(path, images()), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("nested", "same"), [(False, True), (False, False), (True, True), (True, False)])
def test_names_that_keras_gave_are_not_taken_for_layers_in_another_order(tmp_path: Path, nested: bool, same: bool) -> None:
    """A JSON of another session: the same names, but the layer that is called conv2d there is called conv2d_1 here."""

    def chain(order: tuple[int, int]) -> Any:
        layers = keras().layers
        convolutions = [layers.Conv2D(3, 3, activation="tanh") for _ in range(2)]
        image = layers.Input((16, 16, 3))
        found = convolutions[order[1]](convolutions[order[0]](image))
        if nested:
            inner, image = keras_model(image, found), layers.Input((16, 16, 3))
            found = inner(image)
        return keras_model(image, layers.Dense(2)(layers.GlobalAveragePooling2D()(found)))

    (tmp_path / "x.json").write_text(chain((1, 0) if same else (0, 1)).to_json(), encoding="utf-8")
    network = shake(chain((1, 0)))
    network.save_weights(tmp_path / "x.h5")
    expected = network.predict(images(), verbose=0)
    if same:
        np.testing.assert_allclose(answers_of(tmp_path / "x.h5", images()), expected, atol=1e-6)
    else:
        found = (
            r"lists .*conv2d/kernel:0 after .*conv2d_1/kernel:0, its network .*Write model\.to_json\(\) again from the session"
        )
        with pytest.raises(UnsupportedCheckpointError, match=found):
            answers_of(tmp_path / "x.h5", images())


def test_the_order_of_layers_in_the_file_does_not_matter(tmp_path: Path) -> None:
    """Keras itself loads in order: it would exchange two layers of one shape without a word."""
    layers = keras().layers
    image = layers.Input((16, 16, 3))
    left, right = layers.Conv2D(4, 3, name="left")(image), layers.Conv2D(4, 3, name="right")(image)
    features = layers.GlobalAveragePooling2D()(layers.Subtract()([layers.ReLU()(left), layers.ReLU()(right)]))
    network = shake(keras_model(image, layers.Dense(2, name="answer")(features)))
    path = file_of(network, tmp_path / "x.h5")
    with h5py.File(path, "r+") as file:
        names = [name.decode() if isinstance(name, bytes) else name for name in file["model_weights"].attrs["layer_names"]]
        file["model_weights"].attrs["layer_names"] = np.asarray(names[::-1], dtype="S")
    np.testing.assert_allclose(answers_of(path, images()), network.predict(images(), verbose=0), rtol=1e-5)


def test_names_that_hdf5_split_into_parts_are_put_together(tmp_path: Path) -> None:
    network = toy()
    path = file_of(network, tmp_path / "x.h5")
    with h5py.File(path, "r+") as file:
        for group, key in ((file["model_weights"], "layer_names"), (file["model_weights"]["bn_a"], "weight_names")):
            names = group.attrs.pop(key)
            group.attrs[f"{key}0"], group.attrs[f"{key}1"] = names[:2], names[2:]
    np.testing.assert_allclose(answers_of(path, images()), network.predict(images(), verbose=0), rtol=1e-5)


def test_weights_that_another_session_numbered_are_recognised(tmp_path: Path) -> None:
    """Keras 2.0 to 2.2 name the weights of a network that was loaded and saved again ``conv_a_1/kernel:0``."""
    network = toy()
    path = file_of(network, tmp_path / "x.h5")
    with h5py.File(path, "r+") as file:
        group = file["model_weights"]["conv_a"]
        group.move("conv_a", "conv_a_1")
        group.attrs["weight_names"] = np.asarray(["conv_a_1/kernel:0", "conv_a_1/bias:0"], dtype="S")
    np.testing.assert_allclose(answers_of(path, images()), network.predict(images(), verbose=0), rtol=1e-5)


def test_a_shared_layer_is_loaded_once_and_used_twice(tmp_path: Path) -> None:
    layers = keras().layers
    image = layers.Input((16, 16, 3))
    shared = layers.Conv2D(3, 3, padding="same", name="shared")
    features = layers.GlobalAveragePooling2D()(shared(layers.ReLU()(shared(image))))
    network = shake(keras_model(image, layers.Dense(2, name="answer")(features)))
    path = file_of(network, tmp_path / "x.h5")
    assert read_checkpoint(path).parameters == network.count_params()
    np.testing.assert_allclose(answers_of(path, images()), network.predict(images(), verbose=0), rtol=1e-5)


def change(path: Path, what: str) -> Path:
    """Damage one layer of a saved toy."""
    with h5py.File(path, "r+") as file:
        group = file["model_weights"]
        inner = group["conv_a"]["conv_a"]
        if what == "missing weight":
            group["conv_a"].attrs["weight_names"] = group["conv_a"].attrs["weight_names"][:1]
        elif what == "missing layer":
            group.attrs["layer_names"] = [name for name in group.attrs["layer_names"] if name not in (b"conv_a", "conv_a")]
        elif what == "another shape":
            kernel = np.asarray(inner["kernel:0"])
            del inner["kernel:0"]
            inner["kernel:0"] = kernel.transpose(1, 0, 3, 2)
        elif what == "another layer":
            names = [b"conv_z" if name in (b"conv_a", "conv_a") else name for name in group.attrs["layer_names"]]
            group.move("conv_a", "conv_z")
            group.attrs["layer_names"] = np.asarray(names, dtype="S")
        elif what == "left over":
            group["conv_a"]["forgotten"] = np.zeros(7, np.float32)
        elif what == "whole numbers":
            kernel = np.asarray(inner["kernel:0"])
            del inner["kernel:0"]
            inner["kernel:0"] = np.round(kernel * 20).astype(np.int8)
        elif what == "another weight":
            inner.move("bias:0", "offset:0")
            group["conv_a"].attrs["weight_names"] = [b"conv_a/kernel:0", b"conv_a/offset:0"]
    return path


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("missing weight", r"the network needs and the file lacks: conv_a/conv_a/bias"),
        ("missing layer", r"the network needs and the file lacks: layer 'conv_a'"),
        ("another shape", r"conv_a/conv_a/kernel:0 is \[3, 3, 6, 3\] in the file where \[3, 3, 3, 6\] is needed"),
        ("another layer", r"the file holds and the network has not: layer 'conv_z'"),
        ("left over", r"the network has [\d,]+ parameters, the file [\d,]+"),
        ("whole numbers", r"conv_a/conv_a/kernel:0 holds whole numbers \(int8\).*quantized"),
        ("another weight", r"the file holds and the network has not: conv_a/conv_a/offset"),
    ],
)
def test_a_file_that_does_not_fit_to_the_last_weight_is_refused(tmp_path: Path, what: str, message: str) -> None:
    path = change(file_of(toy(), tmp_path / "x.h5"), what)
    with pytest.raises(UnsupportedCheckpointError, match=message):
        answers_of(path, images())


def first_layers(mean: Any, variance: Any, extra: str) -> Any:
    """The beginning of an EfficientNet, as eras of Keras wrote it, and a small rest."""
    import tensorflow

    layers = keras().layers
    roots = np.sqrt(np.asarray([0.229, 0.224, 0.225], np.float32))
    image = layers.Input((16, 16, 3))
    found = layers.Normalization(axis=3, name="normalization")(layers.Rescaling(1 / 255, name="rescaling")(image))
    if extra == "truediv":
        found = tensorflow.math.truediv(found, roots)
    elif extra == "rescaling":
        found = layers.Rescaling((1 / roots).tolist(), name="rescaling_1")(found)
    elif extra == "multiply":
        found = tensorflow.math.multiply(found, tensorflow.reshape((1 / roots).tolist(), [1, 1, 1, 3]))
    padded = layers.ZeroPadding2D(((0, 1), (0, 1)), name="stem_conv_pad")(found)
    features = layers.GlobalAveragePooling2D()(layers.Conv2D(4, 3, strides=2, name="stem_conv")(padded))
    network = shake(keras_model(image, layers.Dense(2, name="answer")(features)))
    layer = network.get_layer("normalization")
    layer.set_weights([np.float32(mean), np.float32(variance), np.zeros((), np.int64)])
    layer.finalize_state()
    return network


IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
UNADAPTED = ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


@pytest.mark.parametrize(
    ("statistics", "extra", "era", "deviation"),
    [
        (IMAGENET, "", "up to 2.8", np.sqrt(IMAGENET[1])),
        (IMAGENET, "truediv", "Keras 2.9", np.asarray(IMAGENET[1])),
        (IMAGENET, "rescaling", "2.10 and later", np.asarray(IMAGENET[1])),
        (IMAGENET, "multiply", "2.10 and later", np.asarray(IMAGENET[1])),
        (UNADAPTED, "", "never adapted", np.ones(3)),
        (((0.5, 0.3, 0.2), (0.04, 0.09, 0.01)), "", "", np.asarray([0.2, 0.3, 0.1])),
    ],
)
def test_normalisation_of_every_era_is_restored_and_stated(
    tmp_path: Path, statistics: Any, extra: str, era: str, deviation: np.ndarray
) -> None:
    """What a loaded network does to grey levels, measured on it, against the closed form and the sentence printed."""
    from fundus_rt.converters.backends import require_keras
    from fundus_rt.converters.tensorflow.efficientnet_eras import era_note, normalisation_note, stored_statistics
    from fundus_rt.converters.tensorflow.keras_export import build_keras

    path = file_of(first_layers(*statistics, extra), tmp_path / "x.h5")
    checkpoint = read_checkpoint(path)
    loaded = build_keras(checkpoint, "a toy")
    levels = pictures(16, 3)
    before = require_keras()[1].Model(loaded.input, loaded.get_layer("stem_conv_pad").input).predict(levels, verbose=0)
    mean = np.asarray(statistics[0])
    np.testing.assert_allclose(before, (levels / 255 - mean) / deviation, atol=2e-5)
    config, stored = checkpoint.keras_config or {}, stored_statistics(checkpoint)
    said = normalisation_note(config, stored)
    assert said is not None
    numbers = ", ".join(f"{value:.4f}" for value in deviation)
    assert f"deviation ({numbers})" in said if mean.any() else "value / 255 in RGB" in said
    assert era in (era_note(config, stored) or "")


def test_the_effect_of_unknown_layers_before_the_first_convolution_is_not_made_up(tmp_path: Path) -> None:
    import tensorflow

    from fundus_rt.converters.tensorflow.efficientnet_eras import normalisation_note

    layers = keras().layers
    image = layers.Input((16, 16, 3))
    found = layers.Conv2D(4, 3, name="stem_conv")(tensorflow.math.sqrt(layers.Rescaling(1 / 255)(image)))
    network = keras_model(image, layers.Dense(2)(layers.GlobalAveragePooling2D()(found)))
    checkpoint = read_checkpoint(file_of(network, tmp_path / "x.h5"))
    assert normalisation_note(checkpoint.keras_config or {}, {}) is None


def test_files_of_others_are_what_they_are(tmp_path: Path) -> None:
    """Published files: a nested network of Teachable Machine, and a small face classifier with grey pictures."""
    from tests.conftest import DATA

    theia = DATA / "weights" / "theia_teachable_machine.h5"
    found = identify_architecture(read_checkpoint(theia), card_for(224, "mobilenet-v2", columns=6))
    assert (found.family, found.columns, found.activation) == ("mobilenet-v2", 6, "softmax")
    assert found.account.used_parameters == 538_908
    network = found.build()
    original = keras().models.load_model(theia, compile=False)
    given = np.random.default_rng(0).uniform(-1, 1, (3, 224, 224, 3)).astype(np.float32)
    expected = original.predict(given, verbose=0)
    assert np.ptp(expected, axis=0).max() > 1e-3
    np.testing.assert_allclose(network.answers(given), expected, atol=1e-6)


@pytest.mark.parametrize(
    ("family", "message"),
    [("xception", r"46 layers that is not known.*families are \['keras'\]"), ("keras", r"1 channel \(grey pictures\)")],
)
def test_mini_xception_is_not_xception_and_takes_grey_pictures(family: str, message: str) -> None:
    from tests.conftest import DATA

    checkpoint = read_checkpoint(DATA / "weights" / "gender_mini_xception.hdf5")
    assert checkpoint.keras_version == "2.0.5" and checkpoint.parameters == 52_658
    with pytest.raises(UnsupportedCheckpointError, match=message):
        identify_architecture(checkpoint, card_for(64, family, columns=2))


@pytest.mark.parametrize("weights_only", [False, True])
def test_tensors_that_lie_in_another_file_are_refused(tmp_path: Path, weights_only: bool) -> None:
    """HDF5 may say that a tensor's bytes are those of any other file of the machine."""
    secret = tmp_path / "secret"
    secret.write_bytes(bytes(range(48)))
    path = tmp_path / "x.h5"
    network = toy()
    if weights_only:
        network.save_weights(path)
        (tmp_path / "x.json").write_text(network.to_json())
    else:
        file_of(network, path)
    with h5py.File(path, "r+") as file:
        group = file if weights_only else file["model_weights"]
        tensors: list[str] = []
        group.visititems(lambda name, item: tensors.append(name) if isinstance(item, h5py.Dataset) else None)
        shape = group[tensors[0]].shape
        del group[tensors[0]]
        group.create_dataset(tensors[0], shape, "f4", external=[(str(secret), 0, h5py.h5f.UNLIMITED)])
    with pytest.raises(UnsupportedCheckpointError, match="secret"):
        read_checkpoint(path)
