"""Keras files of weights only: with the JSON beside them, rebuilt from their layers' names, or refused."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fundus_rt.benchmarks.keras_networks import lively_network, prepared
from fundus_rt.benchmarks.lively import pictures
from fundus_rt.benchmarks.make_keras import efficientnet_network, weights_only, weights_with_json
from fundus_rt.converters.architecture import Architecture, identify_architecture
from fundus_rt.converters.checkpoint import read_checkpoint
from fundus_rt.converters.tensorflow.efficientnet_eras import second_division
from fundus_rt.models.errors import UnsupportedCheckpointError
from tests.keras_toys import answers_of, card_for, images, keras, keras_model, shake, toy

pytest.importorskip("tf_keras")
h5py = pytest.importorskip("h5py")

STATED = {"activation": "softmax"}


def weights_of(network: Any, path: Path) -> Path:
    network.save_weights(path, save_format="h5")
    return path


def identified(path: Path, size: int, *families: str, **output: Any) -> Architecture:
    return identify_architecture(read_checkpoint(path), card_for(size, *families, **output))


def answers(architecture: Architecture, given: np.ndarray) -> np.ndarray:
    network = architecture.build()
    try:
        return network.answers(given)
    finally:
        network.close()


@pytest.mark.parametrize("name", ["weights.json", "weights.h5.json", "architecture.json"])
def test_the_json_beside_the_weights_is_the_network(tmp_path: Path, name: str) -> None:
    network = toy()
    expected = network.predict(images(), verbose=0)
    (tmp_path / name).write_text(network.to_json(), encoding="utf-8")
    (tmp_path / "notes.json").write_text('{"accuracy": 0.9}', encoding="utf-8")
    (tmp_path / "list.json").write_text("[1, 2]", encoding="utf-8")
    path = weights_of(network, tmp_path / "weights.h5")
    checkpoint = read_checkpoint(path)
    assert any(name in note for note in checkpoint.notes)
    np.testing.assert_allclose(answers_of(path, images()), expected, atol=1e-6)


def test_the_json_of_the_files_own_name_counts_whatever_its_layers_are_called(tmp_path: Path) -> None:
    """Running numbers of another session: the weights are paired in order, and a network that they do not fit is refused."""
    layers = keras().layers

    def network(columns: int = 2) -> Any:
        image = layers.Input((16, 16, 3))
        return keras_model(image, layers.Dense(columns, activation="sigmoid")(layers.GlobalMaxPooling2D()(image)))

    (tmp_path / "x.json").write_text(network().to_json(), encoding="utf-8")
    later = shake(network())
    path = weights_of(later, tmp_path / "x.h5")
    assert identified(path, 16, "keras", columns=2).activation == "sigmoid"
    np.testing.assert_allclose(answers_of(path, images()), later.predict(images(), verbose=0), atol=1e-6)
    (tmp_path / "x.json").write_text(network(3).to_json(), encoding="utf-8")
    with pytest.raises(UnsupportedCheckpointError, match="nothing is converted"):
        answers_of(path, images())


@pytest.mark.parametrize("other", ["pooling", "rescaling", "activation"])
def test_layers_without_weights_have_to_be_those_of_the_file(tmp_path: Path, other: str) -> None:
    """They are in no tensor, so the weights fit whatever they are; the file lists them all the same."""
    layers = keras().layers

    def network(of: str = "") -> Any:
        image = layers.Input((16, 16, 3))
        hidden = layers.Conv2D(4, 3, name="first")(layers.Rescaling(2.0)(image) if of == "rescaling" else image)
        hidden = layers.LeakyReLU()(hidden) if of == "activation" else layers.Activation("relu")(hidden)
        hidden = (
            layers.Dropout(0.5)(layers.GlobalMaxPooling2D()(hidden))
            if of == "pooling"
            else layers.GlobalAveragePooling2D()(hidden)
        )
        return keras_model(image, layers.Dense(2, name="last")(hidden))

    path = weights_of(shake(network()), tmp_path / "x.h5")
    (tmp_path / "x.json").write_text(network(other).to_json(), encoding="utf-8")
    with pytest.raises(UnsupportedCheckpointError, match=r"has not .*the answers would be others"):
        answers_of(path, images())
    (tmp_path / "x.json").write_text(network().to_json(), encoding="utf-8")
    assert answers_of(path, images()).shape[1] == 2


def test_the_json_of_a_sequential_of_keras_2_1_is_a_list_of_layers(tmp_path: Path) -> None:
    module = keras()
    network = shake(module.Sequential([module.layers.Flatten(input_shape=(16, 16, 3)), module.layers.Dense(2, name="answer")]))
    path = weights_of(network, tmp_path / "x.h5")
    config = json.loads(network.to_json())
    kept = [layer for layer in config["config"]["layers"] if layer["class_name"] != "InputLayer"]
    kept[0]["config"]["batch_input_shape"] = [None, 16, 16, 3]
    (tmp_path / "x.json").write_text(json.dumps({"class_name": "Sequential", "config": kept}), encoding="utf-8")
    expected = network.predict(images(), verbose=0)
    np.testing.assert_allclose(answers_of(path, images()), expected, rtol=1e-4, atol=1e-5)


def test_two_networks_beside_the_weights_are_not_chosen_between(tmp_path: Path) -> None:
    network = toy()
    (tmp_path / "one.json").write_text(network.to_json(), encoding="utf-8")
    (tmp_path / "two.json").write_text(toy(activation="sigmoid").to_json(), encoding="utf-8")
    path = weights_of(network, tmp_path / "weights.h5")
    with pytest.raises(UnsupportedCheckpointError, match=r"2 different JSON files.*one\.json, two\.json"):
        read_checkpoint(path)
    (tmp_path / "weights.json").write_text(network.to_json(), encoding="utf-8")
    assert identified(path, 16, "keras").activation == "softmax"


def test_code_in_the_json_is_refused_as_in_a_whole_model(tmp_path: Path) -> None:
    network = toy()
    (tmp_path / "weights.json").write_text(network.to_json().replace('"ReLU"', '"OwnLayer"'), encoding="utf-8")
    with pytest.raises(UnsupportedCheckpointError, match=r"weights\.json uses objects.*OwnLayer"):
        read_checkpoint(weights_of(network, tmp_path / "weights.h5"))


def test_a_network_that_no_name_tells_is_refused_with_what_to_do(tmp_path: Path) -> None:
    path = weights_of(toy(), tmp_path / "weights.h5")
    with pytest.raises(UnsupportedCheckpointError, match=r"weights only .*conv_a.*not known.*model\.to_json"):
        identified(path, 16, "keras")


@pytest.fixture(scope="module")
def mobilenet(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any, np.ndarray]:
    """Weights of a quarter MobileNet with one Dense layer, what it was given, and its answers."""
    folder = tmp_path_factory.mktemp("weights")
    network = lively_network("MobileNet", 32, 5, None, alpha=0.25)
    given = prepared("MobileNet", pictures(32, 4, 9))
    return weights_of(network, folder / "mobilenet.h5"), given, network.predict(given, verbose=0)


def test_mobilenet_is_rebuilt_from_its_layers_names(mobilenet: tuple[Path, Any, np.ndarray]) -> None:
    path, given, expected = mobilenet
    found = identified(path, 32, "mobilenet", **STATED)
    assert (found.family, found.columns, found.activation) == ("mobilenet", 5, "none")
    assert any("card's word" in warning for warning in found.warnings)
    assert any("global_average_pooling2d, dropout, dense compute is concluded from their names" in w for w in found.warnings)
    np.testing.assert_allclose(answers(found, given), expected, atol=1e-4)


def test_without_the_cards_word_on_the_activation_it_is_refused(mobilenet: tuple[Path, Any, np.ndarray]) -> None:
    with pytest.raises(UnsupportedCheckpointError, match=r"the activation after its last layer is not in the file"):
        identified(mobilenet[0], 32, "mobilenet")


def renamed(path: Path, target: Path, changes: dict[str, str | None], added: tuple[str, ...] = ()) -> Path:
    """A copy whose list of layers was changed: names without weights replaced, taken out (None) or added at the end."""
    target.write_bytes(path.read_bytes())
    with h5py.File(target, "r+") as file:
        names = [name.decode() if isinstance(name, bytes) else name for name in file.attrs["layer_names"]]
        kept = [changes.get(name, name) for name in names]
        for name in (*(new for old, new in changes.items() if new), *added):
            if name not in file:
                file.create_group(name).attrs["weight_names"] = np.asarray([], dtype="S")
        file.attrs["layer_names"] = np.asarray([name for name in (*kept, *added) if name], dtype="S")
    return target


@pytest.mark.parametrize(
    ("changes", "added", "message"),
    [
        ({"conv1_relu": "conv1_swish"}, (), r"not with the layers that today's keras.applications gives it"),
        ({"conv_pw_13_bn": None}, (), r"not with the layers"),
        ({"global_average_pooling2d": None}, (), r"a Dense layer at each place of its map"),
        ({}, ("my_activation",), r"a layer 'my_activation' after it, which can be anything"),
    ],
)
def test_layers_that_are_not_those_of_the_family_are_refused(
    tmp_path: Path, mobilenet: tuple[Path, Any, np.ndarray], changes: dict[str, str | None], added: tuple[str, ...], message: str
) -> None:
    path = renamed(mobilenet[0], tmp_path / "x.h5", changes, added)
    with pytest.raises(UnsupportedCheckpointError, match=message):
        identified(path, 32, "mobilenet", **STATED)


def mobilenet_with(*after: Any) -> Any:
    """A quarter MobileNet with layers after it."""
    module = keras()
    base = module.applications.MobileNet(input_shape=(32, 32, 3), alpha=0.25, include_top=False, weights=None)
    found = base.output
    for layer in after:
        found = layer(found)
    return shake(keras_model(base.input, found))


def test_heads_whose_function_no_name_tells_are_refused(tmp_path: Path) -> None:
    layers = keras().layers
    pool, hidden, answer = layers.GlobalAveragePooling2D(), layers.Dense(8, activation="relu"), layers.Dense(5)
    path = weights_of(mobilenet_with(pool, hidden, answer), tmp_path / "hidden.h5")
    with pytest.raises(UnsupportedCheckpointError, match=r"2 layers after it.*activation, is not in the file"):
        identified(path, 32, "mobilenet", **STATED)
    path = weights_of(mobilenet_with(layers.GlobalAveragePooling2D()), tmp_path / "features.h5")
    with pytest.raises(UnsupportedCheckpointError, match="without a head"):
        identified(path, 32, "mobilenet", **STATED)


@pytest.mark.parametrize(
    "head",
    [
        lambda layers: [layers.Dense(5), layers.GlobalMaxPooling2D()],
        lambda layers: [layers.Dense(5, activation="sigmoid"), layers.GlobalAveragePooling2D()],
        lambda layers: [layers.Activation("tanh", name="predictions"), layers.GlobalAveragePooling2D(), layers.Dense(5)],
        lambda layers: [layers.Activation("tanh", name="reshape"), layers.GlobalAveragePooling2D(), layers.Dense(5)],
        lambda layers: [layers.GlobalAveragePooling2D(), layers.Dense(5), layers.Activation("tanh", name="predictions")],
        lambda layers: [layers.GlobalMaxPooling2D(keepdims=True), layers.GlobalAveragePooling2D(), layers.Dense(5)],
    ],
)
def test_the_same_layers_in_another_order_are_not_taken_for_a_known_head(tmp_path: Path, head: Any) -> None:
    """Each holds the same weights as a pooling and one Dense layer, and answers otherwise."""
    path = weights_of(mobilenet_with(*head(keras().layers)), tmp_path / "x.h5")
    with pytest.raises(UnsupportedCheckpointError, match=r"after it in this order|'reshape' after it, which can be anything"):
        identified(path, 32, "mobilenet", **STATED)


def test_a_nested_network_of_the_authors_own_is_not_taken_for_the_published_one(tmp_path: Path) -> None:
    """The published layers, and a tanh behind them that has no weights, in a network called model."""
    module = keras()
    inner = mobilenet_with(module.layers.Activation("tanh"))
    network = module.Sequential([inner, module.layers.GlobalAveragePooling2D(), module.layers.Dense(5)])
    path = weights_of(network, tmp_path / "x.h5")
    with pytest.raises(UnsupportedCheckpointError, match=r"inside the layer 'model', a network that its author put together"):
        identified(path, 32, "mobilenet", **STATED)


@pytest.mark.parametrize("pooling", ["flatten", "max", "top", "nested"])
def test_heads_that_names_and_shapes_tell_are_rebuilt(
    tmp_path: Path, mobilenet: tuple[Path, Any, np.ndarray], pooling: str
) -> None:
    module = keras()
    layers = module.layers
    if pooling == "top":
        network = shake(module.applications.MobileNet((32, 32, 3), 0.25, weights=None, classes=5, classifier_activation=None))
    elif pooling == "nested":
        base = module.applications.MobileNet(input_shape=(32, 32, 3), alpha=0.25, include_top=False, weights=None)
        network = shake(module.Sequential([base, layers.GlobalAveragePooling2D(), layers.Dropout(0.1), layers.Dense(5)]))
    else:
        pool = layers.Flatten() if pooling == "flatten" else layers.GlobalMaxPooling2D()
        network = mobilenet_with(pool, layers.Dense(5, use_bias=False))
    with h5py.File(mobilenet[0], "r") as file:  # a backbone that is alive
        for layer in network._flatten_layers(recursive=True, include_self=False):
            if layer.name in file and layer.weights and not layer.name.startswith("dense"):
                layer.set_weights([np.asarray(file[layer.name][weight.name]) for weight in layer.weights])
    given = mobilenet[1]
    path = weights_of(network, tmp_path / "x.h5")
    expected = network.predict(given, verbose=0)
    assert np.ptp(expected, axis=0).max() > 0.01 * np.abs(expected).max()
    found = identified(path, 32, "mobilenet", **STATED)
    np.testing.assert_allclose(answers(found, given), expected, atol=1e-4 * np.abs(expected).max())


ROOTS = np.sqrt([0.229, 0.224, 0.225])
FLAT = ["input_1", "rescaling", "normalization", "stem_conv_pad", "stem_conv"]


@pytest.mark.parametrize(
    ("names", "version", "variance", "nested", "second"),
    [
        (FLAT, "2.4.0", ROOTS**2, False, False),
        (FLAT, "2.11.0", ROOTS**2, False, False),
        ([*FLAT[:3], "tf.math.truediv", *FLAT[3:]], "2.9.0", ROOTS**2, False, True),
        ([*FLAT[:3], "rescaling_1", *FLAT[3:]], "2.12.0", ROOTS**2, False, True),
        (["efficientnetb0", "dense"], "2.8.0", ROOTS**2, True, False),
        (["efficientnetb0", "dense"], "2.9.0", ROOTS**2, True, None),
        (["efficientnetb0", "dense"], "2.15.0", ROOTS**2, True, None),
        (["efficientnetb0", "dense"], "", ROOTS**2, True, None),
        (["efficientnetb0", "dense"], "2.15.0", np.ones(3), True, False),
        (["efficientnetb0", "dense"], "2.15.0", np.asarray([0.04, 0.09, 0.01]), True, None),
        (["efficientnet-b0", "dense"], "2.3.1", None, True, False),
    ],
)
def test_the_second_division_is_told_from_names_then_from_the_version(
    names: list[str], version: str, variance: Any, nested: bool, second: bool | None
) -> None:
    found, evidence = second_division(names, version, variance, nested)
    assert found is second and evidence


@pytest.mark.full
@pytest.mark.parametrize(("era", "hidden"), [("2.9.0", False), ("2.8.0", False), ("2.13.1", False), ("2.8.0", True)])
def test_efficientnets_of_every_era_are_rebuilt_with_their_own_normalisation(tmp_path: Path, era: str, hidden: bool) -> None:
    """Answers of the network that was saved, with the second division or without, against those of the rebuilt one."""
    network = efficientnet_network(era, 32, 5, None)
    given = pictures(32, 3, 7)
    expected = network.predict(given, verbose=0)
    if hidden:
        module = keras()
        base = module.Model(network.input, network.get_layer("top_activation").output, name="efficientnetb0")
        dense = network.layers[-1]
        nested = module.Sequential([base, module.layers.GlobalAveragePooling2D(), module.layers.Dense(5)])
        nested.layers[-1].set_weights(dense.get_weights())
        network = nested
    path = weights_of(network, tmp_path / "x.h5")
    with h5py.File(path, "r+") as file:
        file.attrs["keras_version"] = era
    found = identified(path, 32, "efficientnet-b0", **STATED)
    assert any("second division" in note for note in found.notes)
    assert any("concluded from the version" in warning for warning in found.warnings) is hidden
    np.testing.assert_allclose(answers(found, given), expected, atol=2e-3 * np.ptp(expected))
    if hidden:
        for version in ("", "2.13.1"):  # with the published weights Keras 2.13 divides twice, without them once
            with h5py.File(path, "r+") as file:
                file.attrs["keras_version"] = version
            with pytest.raises(UnsupportedCheckpointError, match="cannot be told"):
                identified(path, 32, "efficientnet-b0", **STATED)


@pytest.mark.full
@pytest.mark.parametrize(
    ("application", "family", "size"),
    [("MobileNetV2", "mobilenet-v2", 32), ("DenseNet121", "densenet-121", 32), ("InceptionV3", "inception-v3", 80),
     ("ResNet50", "resnet-50", 32), ("Xception", "xception", 72), ("InceptionResNetV2", "inception-resnet-v2", 80)],
)  # fmt: skip
def test_other_families_are_rebuilt_from_their_layers_names(tmp_path: Path, application: str, family: str, size: int) -> None:
    path = weights_only(application, tmp_path, size, 5)
    network = lively_network(application, size, 5, None)
    given = prepared(application, pictures(size, 3, 7))
    expected = network.predict(given, verbose=0)
    found = identified(path, size, family, **STATED)
    np.testing.assert_allclose(answers(found, given), expected, atol=2e-3 * np.ptp(expected))


def test_weights_in_the_form_without_names_are_refused(tmp_path: Path) -> None:
    """What save_weights of Keras 2.13 and later writes under a name that ends in .weights.h5."""
    network = toy()
    network.save_weights(tmp_path / "x.weights.h5")
    with pytest.raises(UnsupportedCheckpointError, match="has no names of layers"):
        read_checkpoint(tmp_path / "x.weights.h5")


def test_a_squeezenet_without_its_top_is_refused_with_the_reason() -> None:
    """DeepCognition/keras-squeezenet's file (MIT), whose layers have names with slashes, so that HDF5 groups nest."""
    folder = os.environ.get("FUNDUS_RT_WEIGHTS", "")
    path = Path(folder) / "keras_weights_only_squeezenet_imagenet_notop.h5"
    if not folder or not path.exists():
        pytest.skip("FUNDUS_RT_WEIGHTS does not name a folder with the SqueezeNet file (3 MB, not in the repository)")
    checkpoint = read_checkpoint(path)
    assert checkpoint.parameters == 722_496
    card = dataclasses.replace(card_for(227, "keras"))
    with pytest.raises(UnsupportedCheckpointError, match=r"SqueezeNet.*without its last convolution"):
        identify_architecture(checkpoint, card)


def test_the_makers_of_the_benchmark_write_what_they_say(tmp_path: Path) -> None:
    path = weights_with_json("MobileNet", tmp_path, 32, 5, alpha=0.25)
    found = identified(path, 32, "mobilenet")
    assert found.activation == "softmax" and "with their configuration" in found.description
