"""Keras networks that scale by themselves, end oddly, or carry more than themselves: said, warned of, or refused."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fundus_rt.converters.architecture import Architecture, identify_architecture
from fundus_rt.converters.checkpoint import Checkpoint, read_checkpoint
from fundus_rt.converters.tensorflow import keras_files
from fundus_rt.converters.tensorflow.efficientnet_eras import normalisation_note, notes_on_grey_levels, stored_statistics
from fundus_rt.models.errors import UnsupportedCheckpointError
from tests.keras_toys import card_for, file_of, keras, keras_model, shake, toy

pytest.importorskip("tf_keras")
h5py = pytest.importorskip("h5py")


def identified(path: Path, trust: bool = False, **output: Any) -> Architecture:
    return identify_architecture(read_checkpoint(path, trust), card_for(16, "keras", **output))


def ending(*after: Callable[[Any], Any]) -> Any:
    """A small network with these layers after its first convolution."""
    image = found = keras_layers().Input((16, 16, 3))
    for layer in after:
        found = layer(found)
    return shake(keras_model(image, found))


@pytest.mark.parametrize(("activation", "refused"), [("sigmoid", True), ("softmax", True), ("relu", False), (None, False)])
def test_an_activation_before_the_last_pooling_is_not_taken_for_logits(
    tmp_path: Path, activation: str | None, refused: bool
) -> None:
    layers = keras().layers
    network = ending(layers.Conv2D(5, 1, activation=activation), layers.GlobalMaxPooling2D())
    path = file_of(network, tmp_path / "x.h5")
    if refused:
        with pytest.raises(UnsupportedCheckpointError, match=f"applies '{activation}' at each place of a map"):
            identified(path)
    else:
        assert identified(path).activation == "none"


def test_a_dense_layer_at_each_place_of_a_map_has_more_outputs_than_units(tmp_path: Path) -> None:
    layers = keras().layers
    network = ending(layers.AveragePooling2D(8), layers.Dense(1), layers.Flatten())
    assert network.output_shape == (None, 4)
    found = identified(file_of(network, tmp_path / "x.h5"), columns=1)
    with pytest.raises(UnsupportedCheckpointError, match=r"answers with \[None, 4\].*has 1 outputs"):
        found.build()


def rescaled(image: Any) -> Any:
    return keras_layers().Rescaling(1 / 127.5, -1.0)(image)


def subtracted(image: Any) -> Any:
    import tensorflow

    return tensorflow.math.subtract(tensorflow.math.truediv(image, 127.5), 1.0)


def keras_layers() -> Any:
    from fundus_rt.converters.backends import require_keras

    return require_keras()[1].layers


@pytest.mark.parametrize("before", [rescaled, subtracted])
def test_a_network_that_scales_under_a_card_that_scales_is_warned_of(tmp_path: Path, before: Any) -> None:
    checkpoint = read_checkpoint(file_of(toy(before=before), tmp_path / "x.h5"))
    card = card_for(16, "keras")
    assert card.preprocessing.scale != 1
    found = identify_architecture(checkpoint, card)
    assert any("mean (0.5000, 0.5000, 0.5000) and deviation (0.5000, 0.5000, 0.5000)" in note for note in found.notes)
    assert any("normalised twice" in warning for warning in found.warnings)
    plain = dataclasses.replace(card.preprocessing, scale=1.0, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    assert not identify_architecture(checkpoint, dataclasses.replace(card, preprocessing=plain)).warnings


def test_a_network_that_does_not_scale_has_no_note_on_it(tmp_path: Path) -> None:
    found = identified(file_of(toy(), tmp_path / "x.h5"))
    assert not found.warnings and not any("grey levels" in note or "normalises" in note for note in found.notes)


def test_each_normalization_counts_with_its_own_statistics(tmp_path: Path) -> None:
    """One in front of a nested network that has another; closed form: two affine maps after each other."""
    layers = keras().layers
    inner_image = layers.Input((16, 16, 3))
    inner = keras_model(inner_image, layers.Conv2D(4, 3)(layers.Normalization(name="second")(inner_image)))
    image = layers.Input((16, 16, 3))
    found = layers.GlobalAveragePooling2D()(inner(layers.Normalization(name="first")(image)))
    network = keras_model(image, layers.Dense(5)(found))
    for layer, mean, variance in ((network.get_layer("first"), 100.0, 400.0), (inner.get_layer("second"), 0.5, 0.25)):
        layer.set_weights([np.full(3, mean), np.full(3, variance), np.zeros((), np.int64)])
    checkpoint = read_checkpoint(file_of(network, tmp_path / "x.h5"))
    said = normalisation_note(checkpoint.keras_config or {}, stored_statistics(checkpoint)) or ""
    # ((x - 100) / 20 - 0.5) / 0.5 = (x - 110) / 10
    assert f"mean ({110 / 255:.4f}" in said and f"deviation ({10 / 255:.4f}" in said
    assert normalisation_note(checkpoint.keras_config or {}, {}) is None


def test_no_numbers_are_given_where_a_batch_norm_stands_in_front(tmp_path: Path) -> None:
    def before(image: Any) -> Any:
        return keras_layers().BatchNormalization(name="batch_normalization")(rescaled(image))

    checkpoint = read_checkpoint(file_of(toy(before=before), tmp_path / "x.h5"))
    spec = card_for(16).preprocessing
    notes, warnings = notes_on_grey_levels(checkpoint.keras_config or {}, stored_statistics(checkpoint), spec, True)
    assert "normalises inside, which is not spelled out (rescaling" in notes[0] and len(warnings) == 1


def test_a_tensor_without_a_layer_is_no_statistics(tmp_path: Path) -> None:
    assert stored_statistics(Checkpoint(tmp_path / "x.h5", "0", "keras-h5", "keras", {"mean": (3,), "kernel": (3,)})) == {}


def test_a_pooling_that_no_name_shows_is_not_guessed(tmp_path: Path) -> None:
    module = keras()
    settings = {"alpha": 0.25, "include_top": False, "weights": None, "pooling": "max"}
    base = module.applications.MobileNet(input_shape=(32, 32, 3), **settings)
    module.Sequential([base, module.layers.Dense(5)]).save_weights(tmp_path / "x.h5", save_format="h5")
    card = card_for(32, "mobilenet", activation="softmax")
    with pytest.raises(UnsupportedCheckpointError, match="hides whether its pooling takes the mean or the largest"):
        identify_architecture(read_checkpoint(tmp_path / "x.h5"), card)


def test_a_json_of_another_name_is_taken_with_a_warning_and_a_large_one_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = toy()
    network.save_weights(tmp_path / "best.h5", save_format="h5")
    (tmp_path / "experiment.json").write_text(network.to_json(), encoding="utf-8")
    found = identified(tmp_path / "best.h5")
    assert any("experiment.json" in warning and "activations, strides and pooling" in warning for warning in found.warnings)
    monkeypatch.setattr(keras_files, "LARGEST_JSON", 100)
    assert read_checkpoint(tmp_path / "best.h5").keras_config is None
    monkeypatch.undo()
    os.rename(tmp_path / "experiment.json", tmp_path / "best.json")
    assert not identified(tmp_path / "best.h5").warnings


def test_other_tensors_beside_the_network_are_refused_by_name(tmp_path: Path) -> None:
    path = file_of(toy(), tmp_path / "x.h5")
    with h5py.File(path, "r+") as file:
        file["optimizer_weights/adam/m"] = np.zeros(3)
        file.create_group("empty")
    assert "left aside: optimizer_weights (state of the training)" in read_checkpoint(path).notes
    with h5py.File(path, "r+") as file:
        file["second_head/kernel"] = np.zeros(3)
    with pytest.raises(UnsupportedCheckpointError, match="holds tensors in 'second_head' beside those of the network"):
        read_checkpoint(path)


def test_groups_that_are_linked_over_and_over_are_looked_into_once(tmp_path: Path) -> None:
    """Forty groups, each linked twice from the one before: 2 to the 40 paths."""
    path = file_of(toy(), tmp_path / "x.h5")
    with h5py.File(path, "r+") as file:
        group = file.create_group("links")
        for _ in range(40):
            inner = group.create_group("a")
            group["b"] = inner
            group = inner
    assert read_checkpoint(path).parameters > 0


def test_code_that_was_trusted_is_named(tmp_path: Path) -> None:
    from tests import make_checkpoints as make

    notes = read_checkpoint(make.lambda_network(tmp_path / "x.h5"), True).notes
    assert any(note.startswith("ran code of the file") and "Lambda layer" in note for note in notes)


@pytest.mark.parametrize("trust", [False, True])
def test_an_archive_of_keras_2_is_refused_as_what_it_is(tmp_path: Path, trust: bool) -> None:
    toy().save(tmp_path / "x.keras")
    with pytest.raises(UnsupportedCheckpointError, match=r"archive of Keras 2\.\d+.*model\.save\('model\.h5'\)"):
        read_checkpoint(tmp_path / "x.keras", trust)


def test_a_json_that_was_quoted_twice_is_read(tmp_path: Path) -> None:
    network = toy()
    network.save_weights(tmp_path / "x.h5", save_format="h5")
    (tmp_path / "x.json").write_text(json.dumps(network.to_json()), encoding="utf-8")
    assert identified(tmp_path / "x.h5").activation == "softmax"
