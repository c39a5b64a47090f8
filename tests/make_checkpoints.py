"""Small checkpoints with random weights, of true architectures, in the forms in which they are published.

Weights are drawn so that activations stay alive through the whole depth and answers differ between photographs: a network
whose answers are constant would pass any comparison.
"""

from __future__ import annotations

import argparse
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np

SWIN_SMALL = {"embed_dim": 32, "depths": (2, 2, 2, 2), "num_heads": (1, 2, 4, 8), "window_size": 3, "img_size": 96}
"""At 96 pixels with windows of 3 the grids are 24, 12, 6 and 3: shifted windows in three stages and none in the last, the
proportions of the published network at 384 with windows of 12."""


def skip_without_timm() -> None:
    """Skip the calling module where timm is missing; torchvision over a CPU torch is no reason to."""
    import pytest

    from fundus_rt.converters.backends import require_timm_swin
    from fundus_rt.models.errors import BackendUnavailableError

    try:
        require_timm_swin()
    except BackendUnavailableError as error:
        pytest.skip(str(error), allow_module_level=True)


def swin_network(outputs: int = 1, seed: int = 0, **changes: Any) -> Any:
    """timm's SwinTransformer with random weights, in evaluation mode."""
    import torch

    from fundus_rt.converters.backends import require_timm_swin

    torch.manual_seed(seed)
    network = require_timm_swin().SwinTransformer(num_classes=outputs, **(SWIN_SMALL | changes))
    with torch.no_grad():
        for name, weight in network.named_parameters():
            if "norm" in name:
                weight.normal_(1.0 if name.endswith("weight") else 0.0, 0.2)
            elif name.endswith("bias"):
                weight.normal_(0.0, 0.1)
            elif name.endswith("relative_position_bias_table"):
                weight.normal_(0.0, 0.5)
            elif weight.ndim >= 2:
                weight.normal_(0.0, 1.2 / np.sqrt(weight[0].numel()))
    return network.eval()


def swin_new_layout(network: Any) -> dict[str, Any]:
    """Tensors as timm from 0.9.6 saves them."""
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


def swin_microsoft_layout(network: Any) -> dict[str, Any]:
    """Tensors as Microsoft and timm up to 0.6.13 save them: merging one stage earlier, plain head, buffers."""
    state = {}
    for name, tensor in swin_new_layout(network).items():
        parts = name.split(".")
        if parts[0] == "layers" and parts[2] == "downsample":
            parts[1] = str(int(parts[1]) - 1)
        state[".".join(parts).replace("head.fc.", "head.")] = tensor
    for name, buffer in network.named_buffers():
        if name.endswith(("relative_position_index", "attn_mask")):
            state[name] = buffer.clone()
    return state


def save_torch(path: Path, content: Any, legacy: bool = False) -> Path:
    """`torch.save`, in today's zip format or in the one before torch 1.6."""
    import torch

    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    return path


def training_container(state: dict[str, Any]) -> dict[str, Any]:
    """What a training script saves around the weights."""
    import torch

    moments = {"state": {0: {"exp_avg": torch.zeros(3)}}, "param_groups": [{"lr": 1e-4}]}
    options = argparse.Namespace(lr=1e-4, data="fundus")
    return {"model": state, "optimizer": moments, "epoch": 12, "args": options, "best": np.float64(2.39)}


class TouchesAFile:
    """A pickle that creates a file when it is read: what an attacker's checkpoint would do, harmlessly."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (str(self.target), "w")


def hostile_checkpoint(path: Path, target: Path, legacy: bool = False) -> Path:
    """A torch file that looks like a checkpoint and creates `target` when it is unpickled without care."""
    return save_torch(path, {"model": {}, "callback": TouchesAFile(target)}, legacy)


def plain_pickle(path: Path) -> Path:
    """A pickle that torch.save did not write."""
    path.write_bytes(pickle.dumps({"weights": [1.0, 2.0]}))
    return path


def resnet_state() -> dict[str, Any]:
    """Names and shapes of a torchvision ResNet-50's first and last tensors, enough to be told for one."""
    import torch

    state = {"conv1.weight": torch.zeros(64, 3, 7, 7), "bn1.weight": torch.zeros(64)}
    for stage, blocks in enumerate((3, 4, 6, 3), start=1):
        for block in range(blocks):
            for conv in (1, 2, 3):
                state[f"layer{stage}.{block}.conv{conv}.weight"] = torch.zeros(8, 8, 1, 1)
    state["fc.weight"] = torch.zeros(1000, 2048)
    return state


def keras_network(family: str, size: int, units: int, activation: str, seed: int = 0, **changes: Any) -> Any:
    """A network of keras.applications (Keras 2) with a Dense head, its BatchNorm statistics and weights random but alive."""
    from fundus_rt.converters.backends import require_keras

    _, keras = require_keras()
    keras.backend.clear_session()
    keras.utils.set_random_seed(seed)
    builders = {"mobilenet": "MobileNet", "inception-v3": "InceptionV3", "resnet-50": "ResNet50"}
    name = builders.get(family) or "EfficientNet" + family.rpartition("-")[2].upper()
    base = getattr(keras.applications, name)(
        input_shape=(size, size, 3), include_top=False, weights=None, pooling="avg", **changes
    )
    head = keras.layers.Dropout(0.2)(base.output)
    head = keras.layers.Dense(units, activation=activation)(head)
    network = keras.Model(base.input, head)
    pictures = photographs(size, 12, seed + 1).astype(np.float32)[..., ::-1]
    enliven(network, keras, pictures if family.startswith("efficientnet") else pictures / 127.5 - 1.0, seed)
    return network


def enliven(network: Any, keras: Any, pictures: np.ndarray, seed: int) -> None:
    """Draw weights, and set every BatchNorm to the statistics that it really meets, moved a little at random.

    One forward pass in training mode with momentum 0 gives each BatchNorm the statistics of its input under the layers
    before it; so no activation dies or explodes, however deep the network is. Branches that are added to a shortcut get a
    small factor, without which a deep random network is chaotic: rounding errors of 1e-7 grow to the size of the answer.
    """
    random = np.random.default_rng(seed)
    norms = [layer for layer in network.layers if isinstance(layer, keras.layers.BatchNormalization)]
    dropouts = [layer for layer in network.layers if isinstance(layer, keras.layers.Dropout)]
    rates = [layer.rate for layer in dropouts]
    for layer in dropouts:
        layer.rate = 0.0
    for layer in norms:
        layer.momentum = 0.0
        gamma, beta, mean, variance = weights_of_norm(layer)
        branch = 0.1 if layer.name.endswith(("project_bn", "_3_bn")) else 1.0
        set_norm(layer, random.uniform(0.7, 1.3, gamma.shape) * branch, random.normal(0, 0.3, beta.shape), mean, variance)
    network(pictures, training=True)
    for layer, rate in zip(dropouts, rates, strict=True):
        layer.rate = rate
    for layer in norms:
        layer.momentum = 0.99
        gamma, beta, mean, variance = weights_of_norm(layer)
        variance = np.maximum(variance, np.mean(variance)) * random.uniform(0.8, 1.25, variance.shape)
        set_norm(layer, gamma, beta, mean, variance)
    head = next(layer for layer in reversed(network.layers) if isinstance(layer, keras.layers.Dense))
    features = keras.Model(network.input, head.input).predict(pictures, batch_size=2, verbose=0)
    _, _, axes = np.linalg.svd(features - features.mean(axis=0), full_matrices=False)
    kernel = axes[: head.units].T  # where pictures differ most: along others, answers are differences of large numbers
    kernel = kernel / np.std(features @ kernel, axis=0)  # logits of the pictures drawn here get a deviation of 1
    head.set_weights([kernel, -np.mean(features @ kernel, axis=0)])


def weights_of_norm(layer: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Gamma (ones where the layer has none), beta, mean and variance of a BatchNorm."""
    weights = layer.get_weights()
    return (weights[0] if layer.scale else np.ones_like(weights[0]), *weights[-3:])


def set_norm(layer: Any, gamma: np.ndarray, *others: np.ndarray) -> None:
    """Counterpart of `weights_of_norm`."""
    layer.set_weights([gamma, *others] if layer.scale else list(others))


def save_keras(path: Path, network: Any, compiled: bool = True) -> Path:
    """`model.save` to HDF5 with the optimizer's state, as after a training."""
    import warnings

    if compiled:
        network.compile("adam", "binary_crossentropy")
        network.optimizer.build(network.trainable_variables)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        network.save(path, save_format="h5")
    return path


def lambda_network(path: Path) -> Path:
    """An ``.h5`` with a Lambda layer in it."""
    from fundus_rt.converters.backends import require_keras

    _, keras = require_keras()
    image = keras.Input((32, 32, 3))
    scaled = keras.layers.Lambda(lambda x: x / 255.0)(image)
    answer = keras.layers.Dense(1)(keras.layers.GlobalAveragePooling2D()(scaled))
    return save_keras(path, keras.Model(image, answer), compiled=False)


def with_edited_config(source: Path, target: Path, edit: Any) -> Path:
    """A copy of an ``.h5`` whose configuration was changed by `edit(config)`."""
    import shutil

    import h5py

    shutil.copy(source, target)
    with h5py.File(target, "r+") as file:
        config = json.loads(file.attrs["model_config"])
        edit(config)
        file.attrs["model_config"] = json.dumps(config)
    return target


def photographs(size: int, count: int = 6, seed: int = 0) -> np.ndarray:
    """Frames [N, size, size, 3], uint8, BGR, that look like fundus photographs to a network.

    An orange disc on black, each of another brightness and colour, with a bright spot and dark curves, and noise: enough
    for answers to differ. Real photographs are used by the tests of the command line.
    """
    random = np.random.default_rng(seed)
    down, across = np.mgrid[0:size, 0:size] / size - 0.5
    frames = []
    for _ in range(count):
        colour = np.array([40, 90, 180]) * random.uniform(0.5, 1.3, 3)
        spot = np.exp(-((down - random.uniform(-0.2, 0.2)) ** 2 + (across - random.uniform(-0.3, 0.3)) ** 2) / 0.005)
        vessel = 30 * (np.sin(20 * across + random.uniform(0, 6)) > 0.9 * np.cos(9 * down))
        picture = colour + (90 * spot - vessel)[..., None] + random.normal(0, 12, (size, size, 3))
        picture *= (down**2 + across**2 < 0.23)[..., None]
        frames.append(np.clip(picture, 0, 255).astype(np.uint8))
    return np.stack(frames)
