"""The published way of answering: the framework as its sample code calls it, with Pillow before it; and its checkpoints."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from fundus_rt.models.registry import EXAMPLE_FOLDER

SIZE = 384

CARDS = {
    "mobilenet": "joir-sex-mobilenet",
    "efficientnet-b7": "joir-sex-efficientnet-b7",
    "swin-base": "joir-age",
}
"""Networks that are measured, and the card of each."""


def write_checkpoint(name: str, folder: Path) -> Path:
    """A checkpoint of random weights in the architecture and format of the published file.

    Args:
        name: one of `CARDS`.
        folder: where to write it.
    """
    if name == "swin-base":
        from fundus_rt.converters.backends import require_timm_swin

        swin = require_timm_swin()
        import torch

        torch.manual_seed(0)
        network = swin.SwinTransformer(
            img_size=SIZE, window_size=12, embed_dim=128, depths=(2, 2, 18, 2), num_heads=(4, 8, 16, 32), num_classes=1
        )
        path = folder / "swin-base.pth"
        torch.save({"model": network.state_dict()}, path)
        return path
    keras = _keras()
    keras.utils.set_random_seed(0)
    family = {"mobilenet": "MobileNet", "efficientnet-b7": "EfficientNetB7"}[name]
    base = getattr(keras.applications, family)(include_top=False, weights=None, input_shape=(SIZE, SIZE, 3), pooling="avg")
    network = keras.Model(base.input, keras.layers.Dense(1, activation="sigmoid")(base.output))
    _enliven(network, keras, name)
    path = folder / f"{name}.h5"
    network.save(path)
    return path


def open_published(name: str, checkpoint: Path) -> Callable[[Path], float]:
    """A function from a photograph's path to the answer, as sample code of the framework has it.

    Keras: `load_img` with Pillow's bilinear, then ``model.predict`` on a batch of one. PyTorch: Pillow, torchvision's
    `Resize` and `Normalize` written out, eager mode without gradients.
    """
    if name == "swin-base":
        return _torch_swin(checkpoint)
    keras = _keras()
    network = keras.models.load_model(checkpoint, compile=False)

    def answer(path: Path) -> float:
        picture = keras.utils.load_img(path, target_size=(SIZE, SIZE), interpolation="bilinear")
        values = keras.utils.img_to_array(picture)[None]
        if name == "mobilenet":
            values = keras.applications.mobilenet.preprocess_input(values)
        return float(network.predict(values, verbose=0)[0, 0])

    return answer


def _enliven(network: Any, keras: Any, name: str) -> None:
    """Give the batch normalisations the statistics of real photographs: with untrained ones every answer is the same."""
    pictures = [keras.utils.load_img(path, target_size=(SIZE, SIZE)) for path in sorted(EXAMPLE_FOLDER.glob("*.jpg"))[:4]]
    values = np.stack([keras.utils.img_to_array(picture) for picture in pictures])
    if name == "mobilenet":
        values = keras.applications.mobilenet.preprocess_input(values)
    normalisations = [layer for layer in network.layers if isinstance(layer, keras.layers.BatchNormalization)]
    momenta = [layer.momentum for layer in normalisations]
    for layer in normalisations:
        layer.momentum = 0.0
    network(values, training=True)
    for layer, momentum in zip(normalisations, momenta, strict=True):
        layer.momentum = momentum


def _torch_swin(checkpoint: Path) -> Callable[[Path], float]:
    from fundus_rt.converters.backends import require_timm_swin

    swin = require_timm_swin()
    import torch
    from PIL import Image

    network = swin.SwinTransformer(
        img_size=SIZE, window_size=12, embed_dim=128, depths=(2, 2, 18, 2), num_heads=(4, 8, 16, 32), num_classes=1
    )
    network.load_state_dict(torch.load(checkpoint, weights_only=True)["model"])
    network.eval()
    mean, std = np.array([0.485, 0.456, 0.406], np.float32), np.array([0.229, 0.224, 0.225], np.float32)

    def answer(path: Path) -> float:
        with Image.open(path) as picture:
            resized = picture.convert("RGB").resize((SIZE, SIZE), Image.Resampling.BILINEAR)
        values = (np.asarray(resized, np.float32) / 255 - mean) / std
        with torch.no_grad():
            return float(network(torch.from_numpy(values.transpose(2, 0, 1)[None].copy()))[0, 0])

    return answer


def _keras() -> Any:
    from fundus_rt.converters.backends import require_keras

    return require_keras()[1]
