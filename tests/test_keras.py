"""Keras ``.h5`` files: families told from the file, code in them refused, and what Keras cannot load said clearly."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from fundus_rt.benchmarks.keras_networks import with_edited_config
from fundus_rt.converters.architecture import identify_architecture
from fundus_rt.converters.checkpoint import Checkpoint, read_checkpoint
from fundus_rt.models import ModelCard, load_card
from fundus_rt.models.errors import UnsupportedCheckpointError, UntrustedCheckpointError
from tests import make_checkpoints as make

pytest.importorskip("tf_keras")
h5py = pytest.importorskip("h5py")


def card_for(size: int, *families: str) -> ModelCard:
    """The card of the sex model at another size and for other families."""
    card = load_card("joir-sex-mobilenet")
    spec = dataclasses.replace(card.preprocessing, input_size=(size, size))
    return dataclasses.replace(card, preprocessing=spec, families=families or card.families)


@pytest.fixture(scope="module")
def mobilenet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MobileNet, a quarter of the width, 64 pixels, one sigmoid, with the optimizer's state."""
    network = make.keras_network("mobilenet", 64, 1, "sigmoid", alpha=0.25)
    return make.save_keras(tmp_path_factory.mktemp("keras") / "mobilenet.h5", network)


def test_a_full_model_is_identified_and_accounted_for(mobilenet: Path) -> None:
    from fundus_rt.converters.tensorflow.keras_export import build_keras

    checkpoint = read_checkpoint(mobilenet)
    architecture = identify_architecture(checkpoint, card_for(64))
    assert (architecture.family, architecture.columns, architecture.activation) == ("mobilenet", 1, "sigmoid")
    assert architecture.input_size == (64, 64)
    network = build_keras(checkpoint, architecture.description)
    assert network.count_params() == architecture.account.used_parameters == architecture.account.file_parameters
    assert any("optimizer_weights" in note for note in checkpoint.notes)


@pytest.mark.parametrize(("units", "activation", "inside"), [(2, "softmax", "softmax"), (2, "linear", "none"), (5, None, "none")])
def test_the_end_of_the_network_is_read_from_the_file(tmp_path: Path, units: int, activation: Any, inside: str) -> None:
    network = make.keras_network("mobilenet", 32, units, activation, alpha=0.25)
    architecture = identify_architecture(read_checkpoint(make.save_keras(tmp_path / "x.h5", network, False)), card_for(32))
    assert (architecture.columns, architecture.activation) == (units, inside)


def test_mobilenets_own_top_and_a_nested_network_are_understood(tmp_path: Path) -> None:
    from fundus_rt.converters.backends import require_keras

    _, keras = require_keras()
    top = keras.applications.MobileNet(input_shape=(32, 32, 3), alpha=0.25, weights=None, classes=3)
    found = identify_architecture(read_checkpoint(make.save_keras(tmp_path / "top.h5", top, False)), card_for(32))
    assert (found.family, found.columns, found.activation) == ("mobilenet", 3, "softmax")
    base = keras.applications.MobileNet(input_shape=(32, 32, 3), alpha=0.25, weights=None, include_top=False)
    nested = keras.Sequential(
        [base, keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(1), keras.layers.Activation("sigmoid")]
    )
    found = identify_architecture(read_checkpoint(make.save_keras(tmp_path / "nested.h5", nested, False)), card_for(32))
    assert (found.family, found.columns, found.activation) == ("mobilenet", 1, "sigmoid")


def test_features_without_a_head_are_refused(tmp_path: Path) -> None:
    from fundus_rt.converters.backends import require_keras

    _, keras = require_keras()
    base = keras.applications.MobileNet(input_shape=(32, 32, 3), alpha=0.25, weights=None, include_top=False, pooling="avg")
    with pytest.raises(UnsupportedCheckpointError, match="without a head"):
        identify_architecture(read_checkpoint(make.save_keras(tmp_path / "x.h5", base, False)), card_for(32))


@pytest.mark.parametrize("number", [0, 3, pytest.param(7, marks=pytest.mark.full)])
def test_efficientnets_are_told_apart_as_keras_builds_them(tmp_path: Path, number: int) -> None:
    """Depths and stem width by Tan & Le's formula against the configuration that keras.applications makes."""
    from fundus_rt.converters.backends import require_keras

    _, keras = require_keras()
    builder = getattr(keras.applications, f"EfficientNetB{number}")
    config = builder(input_shape=(64, 64, 3), weights=None, classes=2).get_config()
    checkpoint = Checkpoint(
        tmp_path / "x.h5", "0", "keras-h5", "keras", {}, keras_config={"class_name": "Functional", "config": config}
    )
    families = [f"efficientnet-b{n}" for n in range(8)]
    assert identify_architecture(checkpoint, card_for(64, *families)).family == f"efficientnet-b{number}"


def test_another_family_is_named_with_what_was_expected(mobilenet: Path) -> None:
    with pytest.raises(UnsupportedCheckpointError, match=r"MobileNet \(v1\)\. The card .* expects efficientnet-b7"):
        identify_architecture(read_checkpoint(mobilenet), card_for(64, "efficientnet-b7"))


def test_another_input_size_is_refused(mobilenet: Path) -> None:
    with pytest.raises(UnsupportedCheckpointError, match=r"64 x 64 pixels, but the card .* prepares 96 x 96"):
        identify_architecture(read_checkpoint(mobilenet), card_for(96))


def test_a_lambda_layer_is_refused_before_anything_is_loaded(tmp_path: Path) -> None:
    with pytest.raises(UntrustedCheckpointError, match=r"Lambda layer.*--trust-pickle"):
        read_checkpoint(make.lambda_network(tmp_path / "x.h5"))


def edit_operation(config: dict[str, Any]) -> None:
    """Make one layer an operation that writes a file."""
    config["config"]["layers"][2] |= {"class_name": "TFOpLambda"}
    config["config"]["layers"][2]["config"] = {"name": "op", "function": "io.write_file"}


def edit_foreign(config: dict[str, Any]) -> None:
    """Make one layer a class of another package."""
    config["config"]["layers"][2]["class_name"] = "UnitNormalization"


def edit_activation(config: dict[str, Any]) -> None:
    """Give one layer an activation of the author's own."""
    layer = next(layer for layer in config["config"]["layers"] if layer["class_name"] == "Dense")
    layer["config"]["activation"] = {"class_name": "function", "config": "my_activation"}


def edit_layers(config: dict[str, Any]) -> None:
    """A configuration that is no network."""
    config["config"] = {"layers": 3}


@pytest.mark.parametrize(
    ("edit", "error", "message"),
    [
        (edit_operation, UntrustedCheckpointError, r"calls tf\.io\.write_file"),
        (edit_foreign, UnsupportedCheckpointError, "layer UnitNormalization"),
        (edit_activation, UnsupportedCheckpointError, "activation my_activation"),
        (edit_layers, UnsupportedCheckpointError, "damaged"),
    ],
)
def test_what_keras_does_not_have_is_refused(
    tmp_path: Path, mobilenet: Path, edit: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        read_checkpoint(with_edited_config(mobilenet, tmp_path / "x.h5", edit))


def test_other_hdf5_files_are_refused_with_what_they_hold(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["data"] = [1, 2]
    with pytest.raises(UnsupportedCheckpointError, match=r"not one of Keras.*data"):
        read_checkpoint(tmp_path / "other.h5")


@pytest.mark.parametrize("share", [0.01, 0.5, 0.9])
def test_a_file_cut_short_is_refused(tmp_path: Path, mobilenet: Path, share: float) -> None:
    whole = mobilenet.read_bytes()
    (tmp_path / "x.h5").write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(UnsupportedCheckpointError, match="download it again"):
        read_checkpoint(tmp_path / "x.h5")
