"""Keras ``.h5`` files: the layers they name and the tensors they hold, read with h5py before any of it is loaded."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fundus_rt.converters.backends import require
from fundus_rt.converters.checkpoint import Checkpoint
from fundus_rt.models.errors import UnsupportedCheckpointError, UntrustedCheckpointError

_IMAGE_LAYERS = """
    Activation Add AlphaDropout Average AveragePooling2D BatchNormalization Concatenate Conv2D Conv2DTranspose Cropping2D
    Dense DepthwiseConv2D Dropout ELU Flatten Functional GaussianDropout GaussianNoise GlobalAveragePooling2D
    GlobalMaxPooling2D InputLayer LayerNormalization LeakyReLU MaxPooling2D Maximum Minimum Model Multiply Normalization
    PReLU Permute RandomBrightness RandomContrast RandomFlip RandomRotation RandomTranslation RandomZoom ReLU Rescaling
    Reshape SeparableConv2D Sequential Softmax SpatialDropout2D Subtract TFOpLambda UpSampling2D ZeroPadding2D
"""
KNOWN_LAYERS = frozenset(_IMAGE_LAYERS.split())
"""Layers of Keras 2 that image networks are made of and that carry no code of their own."""

_ACTIVATIONS = "elu exponential gelu hard_sigmoid linear relu relu6 selu sigmoid silu softmax softplus softsign swish tanh"
KNOWN_ACTIVATIONS = frozenset(_ACTIVATIONS.split())

HARMLESS_OPERATIONS = ("math.", "nn.", "__operators__.", "cast", "reshape", "concat", "expand_dims", "squeeze", "identity")
"""TensorFlow functions that a ``TFOpLambda`` may call. Others can read and write files (``io.write_file``)."""


def read_keras_h5(path: Path, sha256: str, trust: bool) -> Checkpoint:
    """Read the configuration and the tensors' shapes of a Keras ``.h5`` or ``.hdf5`` file; no weights, no TensorFlow.

    Args:
        path: the file.
        sha256: hash of its content.
        trust: allow Lambda layers, whose Python byte code Keras would execute.

    Raises:
        UnsupportedCheckpointError: damaged, weights only, custom layers, of Keras 3, or not of Keras.
        UntrustedCheckpointError: it has layers that carry code, and is not trusted.
    """
    h5py = require("h5py")
    try:
        with h5py.File(path, "r") as file:
            return _read(h5py, file, path, sha256, trust)
    except (OSError, RuntimeError, KeyError, TypeError, AttributeError) as error:
        raise UnsupportedCheckpointError(
            f"{path.name} is an HDF5 file that is cut short or damaged ({str(error)[:160]}); download it again"
        ) from error


def _read(h5py: Any, file: Any, path: Path, sha256: str, trust: bool) -> Checkpoint:
    if "model_config" not in file.attrs:
        raise UnsupportedCheckpointError(_without_config(file, path))
    try:
        config = json.loads(_text(file.attrs["model_config"]))
    except ValueError as error:
        raise UnsupportedCheckpointError(f"{path.name}: its model_config is not JSON ({error}); the file is damaged") from error
    group = file["model_weights"]
    version = _text(group.attrs.get("keras_version", file.attrs.get("keras_version", "")))
    backend = _text(group.attrs.get("backend", file.attrs.get("backend", "")))
    if version.startswith("3."):
        raise UnsupportedCheckpointError(
            f"{path.name} was written by Keras {version}; files of Keras 2 are read so far. Load it with the Keras that "
            f"wrote it and save it from tf_keras, or ask for the next release."
        )
    notes = [f"written by Keras {version or 'of unknown version'}" + (f" on {backend}" if backend else "")]
    _refuse_code(path, config, trust)
    others = [key for key in file if key != "model_weights"]
    if others:
        notes.append(f"left aside: {', '.join(others)} (state of the training)")
    shapes: dict[str, tuple[int, ...]] = {}

    def collect(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset):
            shapes[name] = tuple(int(length) for length in item.shape)

    group.visititems(collect)
    return Checkpoint(path, sha256, "keras-h5", "keras", shapes, {}, config, version, tuple(notes), trust)


def _without_config(file: Any, path: Path) -> str:
    if "layer_names" in file.attrs:
        names = [_text(name) for name in file.attrs["layer_names"]]
        shown = ", ".join(names[:4])
        return (
            f"{path.name} holds weights only ({len(names)} layers: {shown}, ...), not the network they belong to; that is "
            f"not read yet, for a rebuilt network can differ silently. Load the weights where the network is defined and "
            f"save both with model.save('model.h5')."
        )
    return (
        f"{path.name} is an HDF5 file but not one of Keras: no model_config and no layer_names; it has "
        f"{', '.join(list(file)[:6]) or 'nothing'}. Expected the file of model.save('model.h5')."
    )


def _refuse_code(path: Path, config: dict[str, Any], trust: bool) -> None:
    """Raise for layers that carry or call code, and for those of other packages."""
    executed, foreign = [], []
    for layer in walk_layers(config):
        kind, name, settings = layer["class_name"], _layer_name(layer), layer.get("config", {})
        if kind == "TFOpLambda":
            function = str(settings.get("function", ""))
            if not function.startswith(HARMLESS_OPERATIONS):
                executed.append(f"{name!r} (calls tf.{function})")
        elif kind == "Lambda":
            executed.append(f"{name!r} (a Lambda layer with Python byte code)")
        elif kind not in KNOWN_LAYERS:
            foreign.append(f"{name!r} (layer {kind})")
        activation = settings.get("activation", "linear") if isinstance(settings, dict) else "linear"
        if isinstance(activation, dict):
            activation = str(activation.get("config", activation.get("class_name")))
        if activation is not None and activation not in KNOWN_ACTIVATIONS:
            foreign.append(f"{name!r} (activation {activation})")
    if executed and not trust:
        raise UntrustedCheckpointError(
            f"{path.name}: loading it would execute code that it carries, in {', '.join(executed[:5])}. If you know where "
            f"the file comes from and trust its authors, add --trust-pickle."
        )
    if foreign:
        raise UnsupportedCheckpointError(
            f"{path.name} uses objects that are not part of Keras: {', '.join(foreign[:5])}. Replace them by Keras' own "
            f"layers where the network is defined, and save it again with model.save('model.h5')."
        )


def walk_layers(config: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Every layer of a ``model_config``, nested models before what is in them."""
    settings = config.get("config", {})
    layers = settings if isinstance(settings, list) else settings.get("layers", [])
    for layer in layers:
        yield layer
        if layer["class_name"] in ("Functional", "Model", "Sequential"):
            yield from walk_layers(layer)
        elif isinstance(layer.get("config"), dict) and isinstance(layer["config"].get("layer"), dict):
            yield layer["config"]["layer"]  # a wrapper such as TimeDistributed


def _layer_name(layer: dict[str, Any]) -> str:
    settings = layer.get("config")
    named = settings.get("name") if isinstance(settings, dict) else None
    return str(layer.get("name") or named or layer["class_name"])


def layer_names(config: dict[str, Any]) -> list[str]:
    """Names of all layers in the file's order."""
    return [_layer_name(layer) for layer in walk_layers(config)]


def last_layer(config: dict[str, Any]) -> dict[str, Any]:
    """The layer that gives the network's output, found through nested models.

    Raises:
        UnsupportedCheckpointError: the network has more than one output.
    """
    settings = config["config"]
    layers = settings if isinstance(settings, list) else settings["layers"]
    last: dict[str, Any] = layers[-1]
    outputs = None if isinstance(settings, list) else settings.get("output_layers")
    if outputs:
        outputs = [outputs] if isinstance(outputs[0], str) else outputs
        if len(outputs) != 1:
            raise UnsupportedCheckpointError(f"the network has {len(outputs)} outputs, expected one; cut it down to one in Keras")
        last = next(layer for layer in layers if _layer_name(layer) == outputs[0][0])
    return last_layer(last) if last["class_name"] in ("Functional", "Model", "Sequential") else last


def _text(value: Any) -> str:
    return value.decode("utf-8") if isinstance(value, bytes) else str(value)
