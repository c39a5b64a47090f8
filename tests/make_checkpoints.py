"""Small checkpoints with random weights, of true architectures, in the forms in which they are published.

Weights are drawn so that activations stay alive through the whole depth and answers differ between photographs: a network
whose answers are constant would pass any comparison.
"""

from __future__ import annotations

import argparse
import pickle
from pathlib import Path
from typing import Any

import numpy as np

from fundus_rt.benchmarks import make_swin
from fundus_rt.benchmarks.keras_networks import lively_network, save_keras
from fundus_rt.benchmarks.lively import pictures

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
    return make_swin.swin_network("timm", 1, outputs, seed, **(SWIN_SMALL | changes))


def swin_new_layout(network: Any) -> dict[str, Any]:
    """Tensors as timm from 0.9.6 saves them."""
    return make_swin.tensors_of("timm", network)


def swin_microsoft_layout(network: Any) -> dict[str, Any]:
    """Tensors as Microsoft and timm up to 0.6.13 save them: merging one stage earlier, plain head, buffers."""
    return make_swin.tensors_of("Microsoft", network)


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
    """A network of keras.applications (Keras 2) with a Dense head, by the family's name in a card; see `lively_network`."""
    builders = {"mobilenet": "MobileNet", "inception-v3": "InceptionV3", "resnet-50": "ResNet50"}
    name = builders.get(family) or "EfficientNet" + family.rpartition("-")[2].upper()
    return lively_network(name, size, units, activation, seed, **changes)


def lambda_network(path: Path) -> Path:
    """An ``.h5`` with a Lambda layer in it."""
    from fundus_rt.converters.backends import require_keras

    _, keras = require_keras()
    image = keras.Input((32, 32, 3))
    scaled = keras.layers.Lambda(lambda x: x / 255.0)(image)
    answer = keras.layers.Dense(1)(keras.layers.GlobalAveragePooling2D()(scaled))
    return save_keras(path, keras.Model(image, answer), compiled=False)


def photographs(size: int, count: int = 6, seed: int = 0) -> np.ndarray:
    """Frames [N, size, size, 3], uint8, BGR, that look like fundus photographs to a network.

    Real photographs are used by the tests of the command line.
    """
    return np.ascontiguousarray(pictures(size, count, seed)[..., ::-1].astype(np.uint8))
