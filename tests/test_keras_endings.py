"""Keras networks that end with more than one Dense layer: heads that are put together, scaled, or followed by operations.

The shipped answers are held against those of Keras itself, in the output's unit.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fundus_rt.converters.architecture import Architecture, identify_architecture
from fundus_rt.converters.checkpoint import read_checkpoint
from fundus_rt.converters.parity import reference_tensor
from fundus_rt.models.errors import UnsupportedCheckpointError
from tests import make_checkpoints as make
from tests.keras_toys import card_for, file_of, keras, keras_model, shake

pytest.importorskip("tf_keras")
pytest.importorskip("onnxruntime")
from tests.test_onnx_from_checkpoint import convert, open_shipped

End = Callable[[Any, Any], Any]


def network_with(end: End) -> Any:
    """A convolution, and what `end` makes of its features, given Keras' layers; Dense layers small, so that nothing saturates."""
    layers = keras().layers
    image = layers.Input((16, 16, 3))
    features = layers.Conv2D(6, 3, strides=2, activation="relu", name="features")(image)
    network = shake(keras_model(image, end(layers, layers.Flatten(name="flat")(features))))
    for weight in network.weights:
        if "dense" in weight.name:
            weight.assign(0.03 * weight)
    return network


def ensemble(kind: str, units: int, activation: str | None, **settings: Any) -> End:
    return lambda layers, found: getattr(layers, kind)(**settings)(
        [layers.Dense(units, activation=activation)(found) for _ in range(3)]
    )


def shared_network(layers: Any, found: Any) -> Any:
    """One nested head that is asked twice, as at test-time augmentation."""
    image = layers.Input(found.shape[1:])
    head = keras_model(image, layers.Dense(5, activation="softmax")(image))
    return layers.Average()([head(found), head(layers.ReLU()(found))])


def years(layers: Any, found: Any) -> Any:
    return layers.Rescaling(100.0)(layers.Dense(1, activation="sigmoid")(found))


def bounded_years(layers: Any, found: Any) -> Any:
    return layers.Rescaling(50.0, 50.0)(layers.Dense(1, activation="tanh")(found))


def normalised_logits(layers: Any, found: Any) -> Any:
    return layers.Softmax()(layers.BatchNormalization()(layers.Dense(5)(found)))


def hundredths(layers: Any, found: Any) -> Any:
    """An operation between layers."""
    return layers.Dense(1, activation="sigmoid")(found) * 100.0


def both_heads(layers: Any, found: Any) -> Any:
    """Operations that put two heads together: the mean of two logits."""
    return (layers.Dense(1)(found) + layers.Dense(1)(found)) / 2.0


CASES: dict[str, tuple[End, int]] = {
    "sigmoid times 100": (years, 1),
    "tanh spread over years": (bounded_years, 1),
    "operation times 100": (hundredths, 1),
    "operation on two heads": (both_heads, 1),
    "batch norm of logits": (normalised_logits, 5),
    "sum of linear heads": (ensemble("Add", 5, None), 5),
    "mean of softmax heads": (ensemble("Average", 5, "softmax"), 5),
    "a head asked twice": (shared_network, 5),
}
APPLIED = {"sum of linear heads": "softmax"}
"""What is left for the shipped form to apply; nothing for the others."""


@pytest.mark.parametrize("name", CASES)
def test_heads_of_every_form_answer_as_keras_does(tmp_path: Path, name: str) -> None:
    end, columns = CASES[name]
    network = network_with(end)
    path = file_of(network, tmp_path / "x.h5")
    card = card_for(16, "keras", columns=columns)
    frames = make.photographs(16, 6, 3)
    expected = network.predict(reference_tensor(frames, card.preprocessing), verbose=0)
    assert np.ptp(expected, axis=0).max() > 0.01
    report = convert(path, card, tmp_path / "shipped.onnx", tensors=frames)
    answered = open_shipped(tmp_path / "shipped.onnx")(frames)[card.outputs[0].name]
    np.testing.assert_allclose(answered, expected, rtol=1e-4, atol=1e-4)
    assert report.card.outputs[0].activation == APPLIED.get(name, "none")


def test_joined_sigmoids_are_one_output_with_all_their_numbers(tmp_path: Path) -> None:
    path = file_of(network_with(ensemble("Concatenate", 2, "sigmoid")), tmp_path / "x.h5")
    found = identified(path, 6)
    assert found.columns == 6 and found.build().answers(np.zeros((1, 16, 16, 3), np.float32)).shape == (1, 6)


def identified(path: Path, columns: int, **output: Any) -> Architecture:
    return identify_architecture(read_checkpoint(path), card_for(16, "keras", columns=columns, **output))


def unlike(layers: Any, found: Any) -> Any:
    return layers.Average()([layers.Dense(5)(found), layers.Dense(5, activation="softmax")(found)])


def percent(layers: Any, found: Any) -> Any:
    return layers.Rescaling(100.0)(layers.Dense(5, activation="softmax")(found))


def doubled(layers: Any, found: Any) -> Any:
    """Merged over and over: 2 to the 60 ways back."""
    found = layers.Dense(5)(found)
    for _ in range(60):
        found = layers.Add()([found, found])
    return found


@pytest.mark.parametrize(
    ("end", "message"),
    [
        (percent, r"applies softmax and then a scaling layer: for classes .*\"activation\": \"none\""),
        (ensemble("Add", 5, "sigmoid"), "applies sigmoid and then arithmetic between heads"),
        (ensemble("Concatenate", 5, "softmax"), "applies softmax and then arithmetic between heads"),
        (unlike, r"puts 2 heads together at its end \(Average 'average'\) that differ .*softmax applied"),
        (doubled, "ends with a layer Add"),
        (lambda layers, found: layers.LayerNormalization()(found), "ends with a layer LayerNormalization.*without a head"),
    ],
)
def test_ends_whose_numbers_have_no_known_meaning_are_refused(tmp_path: Path, end: End, message: str) -> None:
    path = file_of(network_with(end), tmp_path / "x.h5")
    with pytest.raises(UnsupportedCheckpointError, match=message):
        identified(path, 5)


def test_probabilities_that_an_operation_changes_are_told_by_the_graph(tmp_path: Path) -> None:
    """Twice one minus a softmax is no probability; one minus it is one, of its own."""
    path = file_of(
        network_with(lambda layers, found: 2.0 * (1.0 - layers.Dense(5, activation="softmax")(found))), tmp_path / "x.h5"
    )
    found = identified(path, 5)
    assert found.activation is None
    with pytest.raises(UnsupportedCheckpointError, match="applies softmax and then an operation, then an operation: for classes"):
        found.build().graph()
    assert identified(path, 5, activation="none").build().graph().graph.output


def test_the_cards_word_settles_what_the_numbers_are(tmp_path: Path) -> None:
    """Probabilities in per cent, used as they are because the card says so."""
    path = file_of(network_with(percent), tmp_path / "x.h5")
    assert identified(path, 5, activation="none").activation is None
