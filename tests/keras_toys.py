"""Small Keras networks of every kind of layer that matters, and their files; what several tests of Keras files use."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from fundus_rt.benchmarks.keras_networks import save_keras
from fundus_rt.benchmarks.lively import pictures
from fundus_rt.converters.backends import require_keras
from fundus_rt.converters.checkpoint import read_checkpoint
from fundus_rt.converters.tensorflow.keras_export import build_keras
from fundus_rt.models import ModelCard, load_card
from fundus_rt.models.card import OutputSpec


def keras() -> Any:
    """The module ``tf_keras``, its graph empty."""
    module = require_keras()[1]
    module.backend.clear_session()
    module.utils.set_random_seed(0)
    return module


def card_for(size: int, *families: str, columns: int = 5, **output: Any) -> ModelCard:
    """A card for classes (or, with one column, for an age) at a size in pixels, for some families."""
    card = load_card("joir-sex-mobilenet")
    spec = dataclasses.replace(card.preprocessing, input_size=(size, size))
    labels = tuple(f"grade {number}" for number in range(columns))
    found = OutputSpec("grade", "multiclass", "probability", 1e-3, labels, **output)
    if columns == 1:
        found = OutputSpec("age", "regression", "years", 1e-2, **output)
    return dataclasses.replace(card, preprocessing=spec, families=families, outputs=(found,))


def shake(network: Any, seed: int = 0) -> Any:
    """Give every weight a random value, variances positive ones, and return the network."""
    random = np.random.default_rng(seed)
    for weight in network.weights:
        values = random.normal(0, 1.0, weight.shape)
        weight.assign(np.abs(values) + 0.5 if "variance" in weight.name else values.astype(weight.dtype.as_numpy_dtype))
    for layer in network._flatten_layers():
        layer.finalize_state()
    return network


def toy(size: int = 16, units: int = 5, activation: str | None = "softmax", before: Any = None, inside: Any = None) -> Any:
    """Convolution, BatchNorm, relu6, depthwise convolution, pooling and a Dense layer.

    Args:
        size: of the pictures.
        units: outputs.
        activation: at the end.
        before: layer between the picture and the first convolution.
        inside: layer after the depthwise convolution.
    """
    layers = keras().layers
    image = layers.Input((size, size, 3))
    found = layers.Conv2D(6, 3, strides=2, name="conv_a")(image if before is None else before(image))
    found = layers.BatchNormalization(name="bn_a")(found)
    found = layers.Activation("relu", name="act_a")(found)
    found = layers.DepthwiseConv2D(3, padding="same", name="dw_b")(found)
    found = found if inside is None else inside(found)
    found = layers.ReLU(6.0, name="relu_b")(found)
    found = layers.GlobalAveragePooling2D(name="pool")(found)
    return shake(keras_model(image, layers.Dense(units, activation=activation, name="answer")(found)))


def keras_model(image: Any, answer: Any) -> Any:
    """A Functional network."""
    return require_keras()[1].Model(image, answer)


def images(size: int = 16, count: int = 4) -> np.ndarray:
    """Float32 [count, size, size, 3] from -1 to 1."""
    return pictures(size, count) / 127.5 - 1


def file_of(network: Any, path: Path) -> Path:
    """The network saved whole, without training state."""
    return save_keras(path, network, compiled=False)


def answers_of(path: Path, given: np.ndarray, trust: bool = False) -> np.ndarray:
    """What the network of a file answers, loaded as a conversion loads it."""
    return np.asarray(build_keras(read_checkpoint(path, trust), "a toy").predict(given, verbose=0))
