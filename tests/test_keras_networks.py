"""Whole Keras networks: every family as it is published, channels first, and conversions to the last bit of the way."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fundus_rt.benchmarks.conversion_case import ConversionCase
from fundus_rt.benchmarks.keras_networks import lively_network, prepared, with_edited_config
from fundus_rt.benchmarks.lively import pictures
from fundus_rt.benchmarks.make_keras import CASES, lambdas_for_scaled_sums
from fundus_rt.converters.architecture import identify_architecture
from fundus_rt.converters.checkpoint import read_checkpoint
from fundus_rt.converters.conversion import onnx_from_checkpoint
from fundus_rt.converters.tensorflow.keras_landmarks import (
    LANDMARKS,
    Landmark,
    changed_backbone,
    efficientnet,
    published_parameters,
)
from fundus_rt.models.errors import UnsupportedCheckpointError
from tests.keras_toys import answers_of, card_for, file_of, images, keras, keras_model, shake, toy

pytest.importorskip("tf_keras")
onnxruntime = pytest.importorskip("onnxruntime")

QUICK = ("mobilenet-0.25-keras.applications-keras-2-full-model",)
"""All the others are in the full suite; channels first is tried below as well."""


def open_shipped(path: Path) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
    """ONNX Runtime with nothing of this package between."""
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return lambda batch: dict(zip(names, session.run(None, {"frames": batch}), strict=True))


@pytest.mark.parametrize(
    "case", [pytest.param(case, id=case.name, marks=() if case.name in QUICK else pytest.mark.full) for case in CASES]
)
def test_a_file_becomes_a_graph_that_answers_as_keras_does(tmp_path: Path, case: ConversionCase) -> None:
    source = case.make(tmp_path, case.size, case.columns)
    frames = pictures(case.size, 4, 5)[..., ::-1].astype(np.uint8)
    report = onnx_from_checkpoint(
        source, case.card(case.size), tmp_path / "x.onnx", tensors=np.ascontiguousarray(frames), open_shipped=open_shipped
    )
    account, difference = report.architecture.account, report.differences[0]
    assert account.used_parameters == account.network_parameters == account.file_parameters
    assert report.architecture.family == case.families[0]
    assert difference.spread > 0.01
    if difference.largest > 1e-4 * difference.spread:  # float32's own noise: as near to float64 as Keras is
        exact, apart = keras_in_float64(source, frames)
        (answers,) = (rows for name, rows in open_shipped(tmp_path / "x.onnx")(frames).items() if name != "receipt")
        assert np.abs(answers - exact).max() <= 1.5 * apart
        assert difference.largest <= 2e-3 * difference.spread


def keras_in_float64(source: Path, frames: np.ndarray) -> tuple[np.ndarray, float]:
    """Answers of the same weights computed in float64, and how far Keras' float32 is from them: in one graph, and operator by
    operator, the larger of the two.

    A random EfficientNet-B3 to B7 on pictures of 64 x 64 makes 1e-4 of it.
    """
    model = keras().models.load_model(source, compile=False)
    twin = keras().models.model_from_json(model.to_json().replace('"float32"', '"float64"'))
    twin.set_weights(model.get_weights())
    pixels = frames[..., ::-1].astype(np.float32)
    exact = twin(pixels.astype(np.float64), training=False).numpy()
    assert exact.dtype == np.float64
    rounded = (model.predict(pixels, verbose=0), model(pixels, training=False).numpy())
    return exact, max(float(np.abs(rows - exact).max()) for rows in rounded)


def test_the_cases_have_names_of_their_own() -> None:
    names = [case.name for case in CASES]
    assert len(set(names)) == len(names) and set(QUICK) <= set(names)


def count(landmark: Landmark, **changes: Any) -> int:
    """Numbers in the backbone of keras.applications, its Normalization layer left out."""
    module = keras()
    builder = getattr(module.applications, landmark.builder)
    network = builder(input_shape=(96, 96, 3), include_top=False, weights=None, **changes)
    return int(network.count_params()) - (7 if landmark.family.startswith("efficientnet") else 0)


@pytest.mark.parametrize("alpha", [0.25, 0.5, 1.0])
def test_mobilenets_size_by_formula_is_that_of_keras(alpha: float) -> None:
    assert published_parameters(LANDMARKS[0], int(1024 * alpha)) == count(LANDMARKS[0], alpha=alpha)


@pytest.mark.parametrize(("alpha", "width"), [(0.35, 112), (1.0, 320), (1.4, 448)])
def test_mobilenet_v2s_size_by_formula_is_that_of_keras(alpha: float, width: int) -> None:
    assert published_parameters(LANDMARKS[1], width) == count(LANDMARKS[1], alpha=alpha)


@pytest.mark.full
@pytest.mark.parametrize(
    "landmark",
    [*(found for found in LANDMARKS[2:] if found.builder), *map(efficientnet, range(8))],
    ids=lambda found: found.title,
)
def test_the_sizes_of_published_networks_are_those_of_keras(landmark: Landmark) -> None:
    assert published_parameters(landmark, 0) == count(landmark)


def test_a_network_with_a_familys_names_and_another_size_is_not_that_family(tmp_path: Path) -> None:
    module = keras()
    base = module.applications.MobileNet(input_shape=(32, 32, 3), alpha=0.25, include_top=False, weights=None)
    config = base.get_config()
    for layer in config["layers"]:
        if layer["config"]["name"] in ("conv_pw_6", "conv_pw_7"):
            layer["config"]["filters"] = 100
    changed = module.Model.from_config(config)
    features = module.layers.GlobalAveragePooling2D()(changed.output)
    path = file_of(module.Model(changed.input, module.layers.Dense(5)(features)), tmp_path / "x.h5")
    with pytest.raises(UnsupportedCheckpointError, match=r"the layer names of MobileNet \(v1\), but [\d,]+ parameters"):
        identify_architecture(read_checkpoint(path), card_for(32, "mobilenet"))
    found = identify_architecture(read_checkpoint(path), card_for(32, "mobilenet", "keras"))
    assert found.family == "keras" and "in place of" in found.description


@pytest.mark.full
def test_the_size_of_a_backbone_is_told_beside_and_inside_other_layers(tmp_path: Path) -> None:
    """Heads with convolutions of their own, names with a slash (DenseNet's), a nested backbone: none of them changes it."""
    module = keras()
    layers = module.layers
    base = module.applications.DenseNet121(input_shape=(32, 32, 3), include_top=False, weights=None)
    found = layers.Conv2D(8, 1, name="conv2d_head")(base.output)
    flat = module.Model(base.input, layers.Dense(5)(layers.GlobalAveragePooling2D()(found)))
    densenet = next(landmark for landmark in LANDMARKS if landmark.family == "densenet-121")
    for number, network in enumerate((flat, module.Sequential([base, layers.GlobalAveragePooling2D(), layers.Dense(5)]))):
        path = file_of(network, tmp_path / f"{number}.h5")
        assert changed_backbone(read_checkpoint(path), densenet) == ""


def channels_first_toy() -> tuple[Any, Any]:
    """The same network twice, channels first and last, with every layer whose axis counts; their weights are the same."""
    module = keras()
    layers, networks = module.layers, []
    for layout, axis in (("channels_first", 1), ("channels_last", 3)):
        image = layers.Input((3, 20, 18) if axis == 1 else (20, 18, 3))
        padded = layers.ZeroPadding2D(((0, 1), (2, 1)), data_format=layout)(image)
        found = layers.Conv2D(6, 3, strides=2, data_format=layout, name="conv")(padded)
        found = layers.BatchNormalization(axis=axis, name="norm")(found)
        left = layers.DepthwiseConv2D(3, padding="same", data_format=layout, name="depthwise")(found)
        right = layers.SeparableConv2D(4, 3, padding="same", activation="relu", data_format=layout, name="separable")(found)
        found = layers.Concatenate(axis=axis)([left, right])
        found = layers.AveragePooling2D(2, data_format=layout)(layers.ReLU(6.0)(found))
        found = layers.MaxPooling2D(2, padding="same", data_format=layout)(found)
        found = layers.Flatten(data_format=layout, name="flat")(found)
        networks.append(keras_model(image, layers.Dense(5, activation="softmax", name="answer")(found)))
    shake(networks[0], 3)
    kernel, bias = networks[0].get_layer("answer").get_weights()
    networks[0].get_layer("answer").set_weights([kernel * 0.05, bias])
    networks[1].set_weights(networks[0].get_weights())
    return networks[0], networks[1]


def test_channels_first_answers_as_the_same_network_with_its_channels_last(tmp_path: Path) -> None:
    first, last = channels_first_toy()
    path = file_of(first, tmp_path / "first.h5")
    given = np.random.default_rng(1).uniform(-1, 1, (5, 20, 18, 3)).astype(np.float32)
    expected = last.predict(given, verbose=0)
    assert np.ptp(expected, axis=0).max() > 0.01
    spec = card_for(20, "keras")
    found = identify_architecture(read_checkpoint(path), sized(spec, 20, 18))
    assert "channels first" in found.description and any("layout" in note for note in found.notes)
    network = found.build()
    np.testing.assert_allclose(network.answers(given), expected, atol=1e-5)
    session = onnxruntime.InferenceSession(network.graph().SerializeToString(), providers=["CPUExecutionProvider"])
    feed = {session.get_inputs()[0].name: np.ascontiguousarray(given.transpose(0, 3, 1, 2))}
    np.testing.assert_allclose(session.run(None, feed)[0], expected, atol=1e-5)


def sized(card: Any, height: int, width: int) -> Any:
    return dataclasses.replace(card, preprocessing=dataclasses.replace(card.preprocessing, input_size=(height, width)))


def without_settings(config: dict[str, Any]) -> None:
    """Keras 3 refuses settings of Keras 2's depthwise and separable layers that have no effect."""
    for layer in config["config"]["layers"]:
        if layer["class_name"] in ("DepthwiseConv2D", "SeparableConv2D"):
            for key in ("groups", "kernel_initializer", "kernel_regularizer", "kernel_constraint"):
                layer["config"].pop(key, None)


def test_channels_first_answers_as_keras_3_on_torch_does(tmp_path: Path) -> None:
    """Torch computes with channels first on a CPU: another framework, and nothing turned round."""
    pytest.importorskip("torch")
    pytest.importorskip("keras")
    first, _ = channels_first_toy()
    path = file_of(first, tmp_path / "whole.h5")
    with_edited_config(path, tmp_path / "first.h5", without_settings)
    given = np.random.default_rng(1).uniform(-1, 1, (3, 20, 18, 3)).astype(np.float32)
    np.save(tmp_path / "given.npy", given.transpose(0, 3, 1, 2))
    script = (
        "import sys, numpy, keras\n"
        "network = keras.saving.load_model(sys.argv[1] + '/first.h5', compile=False)\n"
        "numpy.save(sys.argv[1] + '/answers.npy', network.predict(numpy.load(sys.argv[1] + '/given.npy'), verbose=0))\n"
    )
    surroundings = {**os.environ, "KERAS_BACKEND": "torch"}
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, env=surroundings, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    network = identify_architecture(read_checkpoint(path), sized(card_for(20, "keras"), 20, 18)).build()
    np.testing.assert_allclose(network.answers(given), np.load(tmp_path / "answers.npy"), atol=1e-5)


@pytest.mark.full
def test_inception_resnet_of_keras_2_4_answers_as_keras_builds_it(tmp_path: Path) -> None:
    """Its forty Lambdas, with byte code that is none, against the network of keras.applications that wrote the weights."""
    network = lively_network("InceptionResNetV2", 80, 5, "softmax")
    given = prepared("InceptionResNetV2", pictures(80, 3, 9))
    expected = network.predict(given, verbose=0)
    path = file_of(network, tmp_path / "x.h5")
    path = with_edited_config(path, path, lambdas_for_scaled_sums, "2.4.0")
    np.testing.assert_allclose(answers_of(path, given), expected, atol=1e-6)


@pytest.mark.parametrize(
    ("end", "columns", "inside"),
    [
        (lambda layers: [layers.GlobalAveragePooling2D(), layers.Dense(1, activation="sigmoid")], 1, "sigmoid"),
        (lambda layers: [layers.GlobalAveragePooling2D(), layers.Dense(2), layers.Softmax()], 2, "softmax"),
        (lambda layers: [layers.GlobalAveragePooling2D(), layers.Dense(2), layers.Activation("sigmoid")], 2, "sigmoid"),
        (lambda layers: [layers.Conv2D(2, 1), layers.GlobalAveragePooling2D(), layers.Activation("softmax")], 2, "softmax"),
        (lambda layers: [layers.Conv2D(5, 7), layers.Flatten()], 5, "none"),
        (lambda layers: [layers.Conv2D(5, 7), layers.Activation("softmax"), layers.Reshape((5,))], 5, "softmax"),
        (lambda layers: [layers.Conv2D(5, 7), layers.Reshape((5,), name="r"), layers.Activation("softmax")], 5, "softmax"),
        (lambda layers: [layers.Flatten(), layers.Dense(5, activation="softmax"), layers.Dropout(0.1)], 5, "softmax"),
    ],
)
def test_ends_are_understood(tmp_path: Path, end: Callable[[Any], list[Any]], columns: int, inside: str) -> None:
    found, network = ended(tmp_path, end, "keras", columns)
    assert (found.columns, found.activation) == (columns, inside)
    given = images(16, 3)
    np.testing.assert_allclose(found.build().answers(given), network.predict(given, verbose=0), rtol=1e-4, atol=1e-5)


def ended(folder: Path, end: Callable[[Any], list[Any]], family: str, columns: int) -> tuple[Any, Any]:
    module = keras()
    start = [module.layers.Conv2D(4, 4, strides=2, activation="relu", input_shape=(16, 16, 3))]
    network = shake(module.Sequential([*start, *end(module.layers)]))
    path = file_of(network, folder / "x.h5")
    return identify_architecture(read_checkpoint(path), card_for(16, family, columns=columns)), network


@pytest.mark.parametrize(
    ("end", "message"),
    [
        (lambda layers: [layers.Conv2D(2, 3, name="map")], r"ends with a map of 2 channels \('map'"),
        (lambda layers: [layers.Conv2D(2, 3, name="map"), layers.Activation("sigmoid")], "ends with a map of 2 channels"),
        (lambda layers: [layers.ReLU(), layers.GlobalAveragePooling2D()], "features without a head"),
        (lambda layers: [layers.Flatten(), layers.Dense(2, activation="tanh")], "activation 'tanh'"),
        (lambda layers: [layers.Flatten(), layers.Dense(2, activation="relu")], "'relu'.*for classes"),
    ],
)
def test_ends_without_a_meaning_are_refused(tmp_path: Path, end: Callable[[Any], list[Any]], message: str) -> None:
    with pytest.raises(UnsupportedCheckpointError, match=message):
        ended(tmp_path, end, "keras", 2)


def test_a_dense_layer_at_each_place_of_a_map_is_refused(tmp_path: Path) -> None:
    """The configuration ends with a Dense layer, and its output still has four dimensions."""
    found, _ = ended(tmp_path, lambda layers: [layers.Dense(2)], "keras", 2)
    with pytest.raises(UnsupportedCheckpointError, match=r"answers with \[None, 7, 7, 2\]"):
        found.build()


def test_a_regression_may_end_with_relu(tmp_path: Path) -> None:
    path = file_of(toy(units=1, activation="relu"), tmp_path / "x.h5")
    assert identify_architecture(read_checkpoint(path), card_for(16, "keras", columns=1)).activation == "none"


@pytest.mark.parametrize("number", [*range(4), *(pytest.param(number, marks=pytest.mark.full) for number in range(4, 8))])
def test_every_efficientnet_is_told_by_its_depths_and_its_top(number: int) -> None:
    """The configuration as keras.applications writes it: B1 and B2 differ in neither depths nor stem."""
    from fundus_rt.benchmarks.keras_networks import backbone
    from fundus_rt.converters.tensorflow.keras_landmarks import landmark_of_config

    network = backbone(f"EfficientNetB{number}", 64)
    config = {"class_name": "Functional", "config": network.get_config()}
    landmark, _ = landmark_of_config(config)
    assert landmark is not None and landmark.family == f"efficientnet-b{number}"
