"""Configurations of every version of Keras 2: read as that version meant them, and nothing in them run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fundus_rt.benchmarks.keras_networks import with_edited_config
from fundus_rt.converters.architecture import identify_architecture
from fundus_rt.converters.checkpoint import read_checkpoint
from fundus_rt.converters.tensorflow.keras_modern import modernised
from fundus_rt.models.errors import UnsupportedCheckpointError, UntrustedCheckpointError
from tests.keras_toys import answers_of, card_for, file_of, images, keras, keras_model, shake, toy

pytest.importorskip("tf_keras")
h5py = pytest.importorskip("h5py")

Config = dict[str, Any]


def layer_of(config: Config, name: str) -> Config:
    found: Config = next(layer for layer in config["config"]["layers"] if layer["config"]["name"] == name)
    return found


def old_class_of_network(config: Config) -> None:
    """Keras up to 2.3: the class Model, and no dtype."""
    config["class_name"] = "Model"
    for layer in config["config"]["layers"]:
        layer["config"].pop("dtype")


def relu6_as_activation(name: str) -> Callable[[Config], None]:
    def edit(config: Config) -> None:
        layer_of(config, "relu_b").update(class_name="Activation", config={"name": "relu_b", "activation": name})

    return edit


def relu6_as_function(config: Config) -> None:
    function = {"class_name": "function", "config": "relu6"}
    layer_of(config, "relu_b").update(class_name="Activation", config={"name": "relu_b", "activation": function})


def old_batch_norm(kind: str, axis: Any) -> Callable[[Config], None]:
    def edit(config: Config) -> None:
        layer = layer_of(config, "bn_a")
        layer["class_name"] = kind
        layer["config"]["axis"] = axis

    return edit


def groups_of_depthwise(config: Config) -> None:
    layer_of(config, "dw_b")["config"]["groups"] = 1


def mixed_precision(policy: Any) -> Callable[[Config], None]:
    def edit(config: Config) -> None:
        for layer in config["config"]["layers"]:
            layer["config"]["dtype"] = policy

    return edit


def authors_regularizer(config: Config) -> None:
    """Objects of the author's that have no part in an answer."""
    own = {"module": "author", "class_name": "Own", "config": {"a": 1}, "registered_name": "author>Own"}
    layer_of(config, "conv_a")["config"] |= {"kernel_regularizer": own, "kernel_initializer": own, "activity_regularizer": own}


def with_modules(config: Config) -> None:
    """As Keras 2.13 and later write a configuration."""
    for layer in config["config"]["layers"]:
        layer |= {"module": "keras.layers", "registered_name": None, "build_config": {"input_shape": [None, 16, 16, 3]}}
        layer["config"]["dtype"] = {
            "module": "keras", "class_name": "Policy", "config": {"name": "float32"}, "registered_name": None,
        }  # fmt: skip


@pytest.mark.parametrize(
    "edit",
    [
        old_class_of_network,
        *map(relu6_as_activation, ("relu6", "_relu6", "relu_6")),
        relu6_as_function,
        old_batch_norm("BatchNormalizationV1", [3]),
        old_batch_norm("BatchNormalizationV2", 3),
        old_batch_norm("BatchNormalization", {"class_name": "__tuple__", "items": [3]}),
        groups_of_depthwise,
        *map(mixed_precision, ("float16", "float64", {"class_name": "Policy", "config": {"name": "mixed_float16"}})),
        authors_regularizer,
        with_modules,
    ],
)
def test_what_other_versions_wrote_gives_the_same_answers(tmp_path: Path, edit: Callable[[Config], None]) -> None:
    network = toy()
    expected = network.predict(images(), verbose=0)
    assert np.ptp(expected, axis=0).max() > 0.01
    path = with_edited_config(file_of(network, tmp_path / "x.h5"), tmp_path / "old.hdf5", edit, "2.1.6")
    np.testing.assert_allclose(answers_of(path, images()), expected, atol=1e-6)


def plain_objects(config: Config) -> None:
    """Layers inside settings as Keras up to 2.12 write them: class and settings alone."""
    for layer in config["config"]["layers"]:
        inside = layer["config"].get("activation")
        if isinstance(inside, dict):
            layer["config"]["activation"] = {"class_name": inside["class_name"], "config": inside["config"]}


@pytest.mark.parametrize("edit", [lambda config: None, plain_objects], ids=["Keras 2.15", "Keras 2.4"])
@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("ELU", {"alpha": 0.1}),
        ("LeakyReLU", {"alpha": 0.1}),
        ("LeakyReLU", {"alpha": 0.4, "name": "relu"}),
        ("ReLU", {"max_value": 0.5, "negative_slope": 0.2}),
        ("ThresholdedReLU", {"theta": 0.7}),
        ("PReLU", {"shared_axes": [1, 2]}),
        ("Softmax", {"axis": 1}),
        ("Activation", {"activation": "tanh", "name": "relu"}),
    ],
)
def test_a_layer_given_as_activation_keeps_its_settings(
    tmp_path: Path, kind: str, settings: Config, edit: Callable[[Config], None]
) -> None:
    """``Conv2D(activation=LeakyReLU(0.1))``, also under the name of a function of Keras that computes something else."""
    layers = keras().layers
    image = layers.Input((16, 16, 3))
    found = layers.Conv2D(4, 3, activation=getattr(layers, kind)(**settings))(image)
    found = layers.Activation(getattr(layers, kind)(**settings))(layers.Conv2D(4, 3, name="second")(found))
    network = shake(keras_model(image, layers.Dense(3, name="answer")(layers.Flatten()(found))))
    expected = network.predict(images(), verbose=0)
    assert np.ptp(expected, axis=0).max() > 0.01
    path = with_edited_config(file_of(network, tmp_path / "x.h5"), tmp_path / "y.h5", edit)
    assert identify_architecture(read_checkpoint(path), card_for(16, "keras", columns=3)).activation == "none"
    np.testing.assert_allclose(answers_of(path, images()), expected, atol=1e-6)


@pytest.mark.parametrize(
    ("kind", "settings"),
    [("GroupNormalization", {"groups": 3}), ("LeakyReLU", {"slope": 0.1}), ("BatchNormalization", {}), ("Softmax", {})],
)
def test_a_class_of_the_authors_under_a_name_of_keras_is_not_taken_for_it(tmp_path: Path, kind: str, settings: Config) -> None:
    """Keras writes no mark on it, but the settings that its own class always has are missing."""

    def edit(config: Config) -> None:
        layer_of(config, "relu_b").update(class_name=kind, config={"name": "relu_b", "trainable": True, **settings})

    path = with_edited_config(file_of(toy(), tmp_path / "x.h5"), tmp_path / "y.h5", edit)
    with pytest.raises(UnsupportedCheckpointError, match=rf"'relu_b' \(layer {kind}, without settings .*author's own"):
        read_checkpoint(path)


def test_code_in_a_layer_given_as_activation_is_refused(tmp_path: Path) -> None:
    def edit(config: Config) -> None:
        inside = {"class_name": "Lambda", "config": {"name": "relu", "function": ["4wEAAAA=", None, None]}}
        layer_of(config, "conv_a")["config"]["activation"] = inside

    path = with_edited_config(file_of(toy(), tmp_path / "x.h5"), tmp_path / "y.h5", edit)
    with pytest.raises(UntrustedCheckpointError, match=r"'relu' \(a Lambda layer with Python byte code\)"):
        read_checkpoint(path)


@pytest.mark.parametrize(
    ("kind", "settings", "same"),
    [
        ("FixedDropout", {"rate": 0.5, "noise_shape": [None, 1, 1, 1], "seed": None}, "Dropout"),
        ("DropConnect", {"drop_connect_rate": 0.5}, "Dropout"),
        ("Swish", {}, "Activation"),
    ],
)
def test_layers_of_the_efficientnet_packages_are_known(tmp_path: Path, kind: str, settings: Config, same: str) -> None:
    module = keras()
    inside = module.layers.Dropout(0.5, name="odd") if same == "Dropout" else module.layers.Activation("swish", name="odd")
    network = toy(inside=inside)
    expected = network.predict(images(), verbose=0)

    def edit(config: Config) -> None:
        layer_of(config, "odd").update(class_name=kind, config={"name": "odd", "trainable": True, **settings})

    path = with_edited_config(file_of(network, tmp_path / "x.h5"), tmp_path / "y.h5", edit)
    found = identify_architecture(read_checkpoint(path), card_for(16, "keras"))
    assert any(kind in note and "efficientnet" in note for note in found.notes)
    np.testing.assert_allclose(answers_of(path, images()), expected, atol=1e-6)


FAMILY = ("mixed_5b", "mixed_6a", "mixed_7a", "conv_7b")


def lambda_file(folder: Path, names: tuple[str, ...], scale: Any = 0.17) -> tuple[Path, np.ndarray]:
    """A small network with the scaled sum of Inception-ResNet-v2 as a Lambda, and the answers of x + scale * branch."""
    module = keras()
    layers = module.layers
    image = layers.Input((16, 16, 3))
    trunk = image
    for name in names:
        trunk = layers.Conv2D(4, 1, name=name)(trunk)
    branch = layers.Conv2D(4, 3, padding="same", name="block35_1_conv")(trunk)
    summed = layers.Add(name="block35_1")([trunk, branch])
    features = layers.GlobalAveragePooling2D()(summed)
    network = shake(keras_model(image, layers.Dense(3, name="answer")(features)))
    ends = module.Model(image, [trunk, branch]).predict(images(), verbose=0)
    kernel, bias = network.get_layer("answer").get_weights()
    expected = (ends[0] + 0.17 * ends[1]).mean(axis=(1, 2)) @ kernel + bias

    def edit(config: Config) -> None:
        settings = {"name": "block35_1", "function": ["4wEAAAA=", None, None], "arguments": {"scale": scale}}
        layer_of(config, "block35_1").update(class_name="Lambda", config={**settings, "function_type": "lambda"})

    return with_edited_config(file_of(network, folder / "x.h5"), folder / "lambda.h5", edit), expected


def test_the_lambdas_of_inception_resnet_are_arithmetic_and_their_code_is_not_run(tmp_path: Path) -> None:
    """The byte code in the file is cut short: running it would fail."""
    path, expected = lambda_file(tmp_path, FAMILY)
    np.testing.assert_allclose(answers_of(path, images()), expected, atol=1e-5)
    notes = identify_architecture(read_checkpoint(path), card_for(16, "keras", columns=3)).notes
    assert any("Lambdas with byte code, which is not run" in note for note in notes)


@pytest.mark.parametrize(("names", "scale"), [(FAMILY[:2], 0.17), (FAMILY, "0.17"), (FAMILY, None)])
def test_the_same_lambda_elsewhere_is_code_of_the_author(tmp_path: Path, names: tuple[str, ...], scale: Any) -> None:
    path, _ = lambda_file(tmp_path, names, scale)
    with pytest.raises(UntrustedCheckpointError, match=r"block35_1.*byte code"):
        read_checkpoint(path)


def test_todays_scaled_sum_is_the_same_arithmetic(tmp_path: Path) -> None:
    path, expected = lambda_file(tmp_path, FAMILY)

    def edit(config: Config) -> None:
        settings = {"name": "block35_1", "scale": 0.17}
        layer_of(config, "block35_1").update(class_name="Custom>CustomScaleLayer", config=settings)

    path = with_edited_config(path, tmp_path / "today.h5", edit)
    np.testing.assert_allclose(answers_of(path, images()), expected, atol=1e-5)


def test_classes_named_by_module_are_never_looked_up(tmp_path: Path) -> None:
    """Keras 2.13 and later import what ``module`` names, for an initializer too; here it would create a file."""
    target = tmp_path / "created"
    hostile = {"module": "pathlib", "class_name": "Path", "config": {"value": str(target)}, "registered_name": None}

    def edit(config: Config) -> None:
        layer_of(config, "conv_a")["config"]["kernel_initializer"] = hostile
        layer_of(config, "conv_a").update(module="os", registered_name="os>Conv2D")
        layer_of(config, "dw_b")["config"]["depthwise_constraint"] = hostile

    path = with_edited_config(file_of(toy(), tmp_path / "x.h5"), tmp_path / "y.h5", edit)
    renewed, _ = modernised(read_checkpoint(path).keras_config or {})
    assert "module" not in str(renewed) and "pathlib" not in str(renewed)
    assert answers_of(path, images()).shape == (4, 5)


@pytest.mark.parametrize(
    ("function", "refused"), [("math.truediv", False), ("io.write_file", True), ("py_function", True), ("numpy_function", True)]
)
def test_operations_between_layers_are_known_or_refused(tmp_path: Path, function: str, refused: bool) -> None:
    import tensorflow

    network = toy(before=lambda image: tensorflow.math.truediv(image, 2.0))
    expected = network.predict(images(), verbose=0)

    def edit(config: Config) -> None:
        layer_of(config, "tf.math.truediv")["config"]["function"] = function

    path = with_edited_config(file_of(network, tmp_path / "x.h5"), tmp_path / "y.h5", edit)
    if refused:
        with pytest.raises(UntrustedCheckpointError, match=rf"calls tf\.{function}"):
            read_checkpoint(path)
    else:
        np.testing.assert_allclose(answers_of(path, images()), expected, atol=1e-6)


def test_slices_rescaling_and_augmentation_inside_the_network(tmp_path: Path) -> None:
    module = keras()
    layers = module.layers
    augmentation = module.Sequential([layers.RandomFlip(), layers.RandomRotation(0.1), layers.Rescaling(0.5)])
    network = toy(before=lambda image: augmentation(image)[:, :, ::-1, :])
    expected = network.predict(images(), verbose=0)
    path = file_of(network, tmp_path / "x.h5")
    np.testing.assert_allclose(answers_of(path, images()), expected, atol=1e-6)


def test_a_sequential_of_keras_2_1_has_a_list_for_a_configuration(tmp_path: Path) -> None:
    module = keras()
    layers = [module.layers.Conv2D(4, 3, input_shape=(16, 16, 3)), module.layers.Flatten(), module.layers.Dense(2)]
    network = shake(module.Sequential(layers))

    def edit(config: Config) -> None:
        kept = [layer for layer in config["config"]["layers"] if layer["class_name"] != "InputLayer"]
        kept[0]["config"]["batch_input_shape"] = [None, 16, 16, 3]
        config["config"] = kept

    path = with_edited_config(file_of(network, tmp_path / "x.h5"), tmp_path / "y.h5", edit, "2.1.6")
    found = identify_architecture(read_checkpoint(path), card_for(16, "keras", columns=2))
    assert (found.columns, found.activation, found.input_size) == (2, "none", (16, 16))
    np.testing.assert_allclose(answers_of(path, images()), network.predict(images(), verbose=0), atol=1e-6)


def test_a_loss_of_the_author_and_the_optimizer_do_not_matter(tmp_path: Path) -> None:
    network = toy()
    network.compile("adam", loss=lambda wanted, given: given)
    network.optimizer.build(network.trainable_variables)
    path = file_of(network, tmp_path / "x.h5")
    checkpoint = read_checkpoint(path)
    assert checkpoint.parameters == network.count_params()
    assert any("optimizer_weights" in note for note in checkpoint.notes)
    np.testing.assert_allclose(answers_of(path, images()), network.predict(images(), verbose=0), atol=1e-6)


def test_a_configuration_split_for_the_limit_of_hdf5_is_put_together(tmp_path: Path) -> None:
    network = toy()
    path = file_of(network, tmp_path / "x.h5")
    with h5py.File(path, "r+") as file:
        text = file.attrs.pop("model_config")
        text = text.decode() if isinstance(text, bytes) else text
        file.attrs["model_config0"], file.attrs["model_config1"] = text[:700].encode(), text[700:]
        file.attrs["keras_version"] = file["model_weights"].attrs["keras_version"] = b"2.2.4"
    assert read_checkpoint(path).keras_version == "2.2.4"
    np.testing.assert_allclose(answers_of(path, images()), network.predict(images(), verbose=0), atol=1e-6)


@pytest.mark.parametrize(
    ("version", "backend", "message"), [("1.2.2", "tensorflow", "Keras 2.0 to 2.2"), ("2.1.0", "theano", "mirrored")]
)
def test_files_whose_numbers_mean_something_else_are_refused(tmp_path: Path, version: str, backend: str, message: str) -> None:
    path = with_edited_config(file_of(toy(), tmp_path / "x.h5"), tmp_path / "y.h5", lambda config: None, version)
    with h5py.File(path, "r+") as file:
        file["model_weights"].attrs["backend"] = backend
    with pytest.raises(UnsupportedCheckpointError, match=message):
        read_checkpoint(path)


def test_several_outputs_and_inputs_are_refused_by_their_names(tmp_path: Path) -> None:
    module = keras()
    one, other = module.layers.Input((16, 16, 3), name="left"), module.layers.Input((16, 16, 3), name="right")
    pooled = module.layers.GlobalAveragePooling2D()(module.layers.Add()([one, other]))
    answers = [module.layers.Dense(2, name="sex")(pooled), module.layers.Dense(1, name="age")(pooled)]
    path = file_of(module.Model([one, other], answers[0]), tmp_path / "inputs.h5")
    with pytest.raises(UnsupportedCheckpointError, match=r"2 inputs \(left, right\)"):
        identify_architecture(read_checkpoint(path), card_for(16, "keras", columns=2))
    single = module.layers.Dense(1, name="age")(module.layers.GlobalAveragePooling2D()(one))
    both = module.Model(one, [module.layers.Dense(2, name="sex")(module.layers.GlobalAveragePooling2D()(one)), single])
    path = file_of(both, tmp_path / "outputs.h5")
    with pytest.raises(UnsupportedCheckpointError, match=r"2 outputs \(sex, age\)"):
        identify_architecture(read_checkpoint(path), card_for(16, "keras", columns=2))
