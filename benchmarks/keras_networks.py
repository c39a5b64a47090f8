"""Networks of ``keras.applications`` with random weights that are alive, and the writing of their files.

Weights are drawn so that activations stay alive through the whole depth and answers differ between photographs: a network
whose answers are constant would pass any comparison.
"""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from fundus_rt.benchmarks.conversion_case import IMAGENET, MINUS_ONE_TO_ONE, RAW
from fundus_rt.benchmarks.lively import pictures, telling_head

CAFFE = (1.0, (123.68, 116.779, 103.939), (1.0, 1.0, 1.0))
"""Scale, mean and deviation of keras.applications' mode ``caffe``, in RGB."""
BRANCHES = ("project_bn", "project_BN", "_3_bn", "sepconv3_bn")
"""Last BatchNorm of a branch that is added to a shortcut, by its ending."""

Config = dict[str, Any]


def backbone(application: str, size: int, seed: int = 0, **changes: Any) -> Any:
    """A network of keras.applications without its head, weights as Keras draws them."""
    from fundus_rt.converters.backends import require_keras

    _, keras = require_keras()
    keras.backend.clear_session()
    keras.utils.set_random_seed(seed)
    return getattr(keras.applications, application)(input_shape=(size, size, 3), include_top=False, weights=None, **changes)


def with_head(base: Any, units: int, activation: str | None) -> Any:
    """Global average pooling, dropout and one Dense layer after a backbone."""
    from fundus_rt.converters.backends import require_keras

    _, keras = require_keras()
    pooled = base.output if len(base.output.shape) == 2 else keras.layers.GlobalAveragePooling2D()(base.output)
    return keras.Model(base.input, keras.layers.Dense(units, activation=activation)(keras.layers.Dropout(0.2)(pooled)))


def lively_network(application: str, size: int, units: int, activation: str | None, seed: int = 0, **changes: Any) -> Any:
    """A network of keras.applications with a Dense head, its BatchNorm statistics and weights random but alive."""
    network = with_head(backbone(application, size, seed, **changes), units, activation)
    enliven(network, prepared(application, pictures(size, 12, seed + 1)), seed)
    return network


def prepared(application: str, images: np.ndarray) -> np.ndarray:
    """Pictures as the application expects them."""
    scale, mean, std = normalisation_of(application)
    return np.asarray((images * scale - np.asarray(mean)) / np.asarray(std), np.float32)


def normalisation_of(application: str) -> tuple[float, tuple[float, float, float], tuple[float, float, float]]:
    """Scale, mean and deviation of an application's own `preprocess_input`, in RGB."""
    if application.startswith("EfficientNet"):
        return RAW
    if application.startswith("DenseNet"):
        return IMAGENET
    return CAFFE if application.startswith("ResNet") else MINUS_ONE_TO_ONE


def enliven(network: Any, images: np.ndarray, seed: int = 0, keras: Any = None) -> None:
    """Draw weights, and set every BatchNorm to the statistics that it really meets, moved a little at random.

    One forward pass in training mode with momentum 0 gives each BatchNorm the statistics of its input under the layers before
    it; so no activation dies or explodes, however deep the network is. Branches that are added to a shortcut get a small
    factor, without which a deep random network is chaotic: rounding errors of 1e-7 grow to the size of the answer.

    Args:
        network: a flat model that ends with a Dense layer.
        images: as the network expects them.
        seed: of the random numbers.
        keras: the module that made it; None: ``tf_keras``.
    """
    from fundus_rt.converters.backends import require_keras

    keras = keras or require_keras()[1]
    random = np.random.default_rng(seed)
    norms = [layer for layer in network.layers if isinstance(layer, keras.layers.BatchNormalization)]
    dropouts = [layer for layer in network.layers if isinstance(layer, keras.layers.Dropout)]
    rates = [layer.rate for layer in dropouts]
    for layer in dropouts:
        layer.rate = 0.0
    for layer in norms:
        layer.momentum = 0.0
        gamma, beta, mean, variance = weights_of_norm(layer)
        branch = 0.1 if layer.name.endswith(BRANCHES) else 1.0
        set_norm(layer, random.uniform(0.7, 1.3, gamma.shape) * branch, random.normal(0, 0.3, beta.shape), mean, variance)
    network(images, training=True)
    for layer, rate in zip(dropouts, rates, strict=True):
        layer.rate = rate
    for layer in norms:
        layer.momentum = 0.99
        gamma, beta, mean, variance = weights_of_norm(layer)
        variance = np.maximum(variance, np.mean(variance)) * random.uniform(0.8, 1.25, variance.shape)
        set_norm(layer, gamma, beta, mean, variance)
    head = next(layer for layer in reversed(network.layers) if isinstance(layer, keras.layers.Dense))
    features = keras.Model(network.input, head.input).predict(images, batch_size=4, verbose=0)
    head.set_weights(list(telling_head(features, head.units)))


def weights_of_norm(layer: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Gamma (ones where the layer has none), beta, mean and variance of a BatchNorm."""
    weights = layer.get_weights()
    return (weights[0] if layer.scale else np.ones_like(weights[0]), *weights[-3:])


def set_norm(layer: Any, gamma: np.ndarray, *others: np.ndarray) -> None:
    """Counterpart of `weights_of_norm`."""
    layer.set_weights([gamma, *others] if layer.scale else list(others))


def save_keras(path: Path, network: Any, compiled: bool = True) -> Path:
    """`model.save` to HDF5; compiled with the optimizer's state, as after a training."""
    if compiled:
        network.compile("adam", "binary_crossentropy")
        network.optimizer.build(network.trainable_variables)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        network.save(path, save_format="h5")
    return path


def with_edited_config(source: Path, target: Path, edit: Callable[[Config], object], version: str = "") -> Path:
    """A copy of an ``.h5`` whose configuration was changed by `edit(config)`, and its version of Keras where one is given."""
    import h5py

    if source != target:
        shutil.copy(source, target)
    with h5py.File(target, "r+") as file:
        config = json.loads(file.attrs["model_config"])
        edit(config)
        file.attrs["model_config"] = json.dumps(config)
        if version:
            file.attrs["keras_version"] = version
            file["model_weights"].attrs["keras_version"] = version
    return target


def drop_layers(path: Path, names: tuple[str, ...]) -> None:
    """Take layers out of a chain in a full-model ``.h5``, configuration and weights."""
    import h5py

    with h5py.File(path, "r+") as file:
        config = json.loads(file.attrs["model_config"])
        layers = {layer["name"]: layer for layer in config["config"]["layers"]}
        for layer in layers.values():
            while layer["inbound_nodes"] and layer["inbound_nodes"][0][0][0] in names:
                layer["inbound_nodes"] = layers[layer["inbound_nodes"][0][0][0]]["inbound_nodes"]
        config["config"]["layers"] = [layer for name, layer in layers.items() if name not in names]
        file.attrs["model_config"] = json.dumps(config)
        group = file["model_weights"]
        kept = [name for name in group.attrs["layer_names"] if (name.decode() if isinstance(name, bytes) else name) not in names]
        group.attrs["layer_names"] = np.asarray(kept, dtype="S")
        for name in names:
            del group[name]
