"""Keras ``.h5`` files: the layers they name and the tensors they hold, read with h5py before any of it is loaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fundus_rt.converters.backends import require
from fundus_rt.converters.checkpoint import Checkpoint
from fundus_rt.converters.tensorflow.hdf5_links import refuse_links, tensor_shapes, text_of
from fundus_rt.converters.tensorflow.keras_config import (
    Config,
    activation_layer,
    activation_of,
    layer_name,
    layers_of,
    settings_of,
    walk_layers,
)
from fundus_rt.converters.tensorflow.keras_loading import stored_layers, stored_names
from fundus_rt.converters.tensorflow.keras_modern import DROPOUTS, RELU6, RENAMED, residual_sums
from fundus_rt.models.errors import UnsupportedCheckpointError, UntrustedCheckpointError

_IMAGE_LAYERS = """
    Activation Add AlphaDropout Average AveragePooling2D BatchNormalization CenterCrop Concatenate Conv2D Conv2DTranspose
    Cropping2D Dense DepthwiseConv2D Dropout ELU Flatten Functional GaussianDropout GaussianNoise GlobalAveragePooling2D
    GlobalMaxPooling2D GroupNormalization InputLayer LayerNormalization LeakyReLU MaxPooling2D Maximum Minimum Model Multiply
    Normalization PReLU Permute RandomBrightness RandomContrast RandomCrop RandomFlip RandomRotation RandomTranslation
    RandomZoom ReLU Rescaling Reshape Resizing SeparableConv2D Sequential SlicingOpLambda Softmax SpatialDropout2D Subtract
    TFOpLambda ThresholdedReLU UpSampling2D ZeroPadding2D
"""
KNOWN_LAYERS = frozenset(_IMAGE_LAYERS.split())
"""Layers of Keras 2 that image networks are made of and that carry no code of their own."""

OWN_SETTINGS = {
    "BatchNormalization": {"axis", "epsilon"},
    "Concatenate": {"axis"},
    "ELU": {"alpha"},
    "GroupNormalization": {"groups", "axis", "epsilon"},
    "LayerNormalization": {"axis", "epsilon"},
    "LeakyReLU": {"alpha"},
    "Softmax": {"axis"},
    "ThresholdedReLU": {"theta"},
}
"""Settings that every version of Keras 2 writes for layers that would be built without them too. A file that lacks them has a
class of its author's own under such a name, which Keras writes without any mark."""

_ACTIVATIONS = """
    elu exponential gelu hard_sigmoid hard_silu hard_swish leaky_relu linear relu relu6 selu sigmoid silu softmax softplus
    softsign swish tanh
"""
KNOWN_ACTIVATIONS = frozenset(_ACTIVATIONS.split())

HARMLESS_OPERATIONS = ("math.", "nn.", "__operators__.", "cast", "reshape", "concat", "expand_dims", "squeeze", "identity")
"""TensorFlow functions that a ``TFOpLambda`` may call. Others can read and write files (``io.write_file``)."""


LARGEST_JSON = 64 << 20
"""Bytes of a JSON file beside the weights that is looked into; the configuration of a large network has one million."""

CONCLUDED = "that the network is the one of"
"""With this begins the note on a JSON file of another name than the weights'."""

TRAINING_STATE = ("optimizer_weights", "optimizer")
"""Groups beside ``model_weights`` that hold no parameters of the network."""


def read_keras_h5(path: Path, sha256: str, trust: bool) -> Checkpoint:
    """Read the configuration and the tensors' shapes of a Keras ``.h5`` or ``.hdf5`` file; no weights, no TensorFlow.

    A file of `model.save_weights` has no configuration. The one of the JSON file (`model.to_json`) beside it is taken, where
    exactly one there has the file's layers; else the configuration stays None, and the layers' names have to tell the network.

    Args:
        path: the file.
        sha256: hash of its content.
        trust: allow Lambda layers, whose Python byte code Keras would execute.

    Raises:
        UnsupportedCheckpointError: damaged, custom layers, of Keras 1, not of Keras, or tensors that lie in other files.
        UntrustedCheckpointError: it has layers that carry code, and is not trusted.
    """
    h5py = require("h5py")
    try:
        with h5py.File(path, "r") as file:
            refuse_links(h5py, file, path)
            return _read(h5py, file, path, sha256, trust)
    except (OSError, RuntimeError, KeyError, TypeError, AttributeError) as error:
        raise UnsupportedCheckpointError(
            f"{path.name} is an HDF5 file that is cut short or damaged ({str(error)[:160]}); download it again"
        ) from error


def _read(h5py: Any, file: Any, path: Path, sha256: str, trust: bool) -> Checkpoint:
    text = _joined(file.attrs, "model_config")
    if text is None:
        return _read_weights(h5py, file, path, sha256, trust)
    try:
        config = json.loads(text)
    except ValueError as error:
        raise UnsupportedCheckpointError(f"{path.name}: its model_config is not JSON ({error}); the file is damaged") from error
    group = file["model_weights"]
    version, notes = _origin(path, group, file)
    if version.startswith("3."):
        from fundus_rt.converters.tensorflow.keras3_files import read_keras3_h5

        return read_keras3_h5(h5py, file, path, sha256, config, trust)
    if version.startswith("1.") or "nb_filter" in text:
        raise UnsupportedCheckpointError(
            f"{path.name} was written by Keras {version or '1'}, whose layers have other settings; expected Keras 2. Load it "
            f"with Keras 2.0 to 2.2, which translates them, and save it again with model.save('model.h5')."
        )
    notes += refuse_code(path, config, trust)
    notes += left_aside(h5py, file, path)
    shapes = tensor_shapes(h5py, group)
    return Checkpoint(path, sha256, "keras-h5", "keras", shapes, {}, config, version, tuple(notes), trust)


def _read_weights(h5py: Any, file: Any, path: Path, sha256: str, trust: bool) -> Checkpoint:
    """A file of `model.save_weights`, with the configuration beside it where there is one."""
    if not stored_names(file, "layer_names"):
        if "layers" in file or "_layer_checkpoint_dependencies" in file:
            raise UnsupportedCheckpointError(
                f"{path.name} holds weights only, in the form that Keras 3, and 2.13 to 2.15 under a name ending in "
                f".weights.h5, write, which has no names of layers. Load them where the network is defined and save both with "
                f"model.save('model.h5')."
            )
        raise UnsupportedCheckpointError(
            f"{path.name} is an HDF5 file but not one of Keras: no model_config and no layer_names; it has "
            f"{', '.join(list(file)[:6]) or 'nothing'}. Expected the file of model.save('model.h5')."
        )
    version, notes = _origin(path, file, file)
    layers = stored_layers(file)
    config, beside = _configuration_beside(path, layers)
    if config is not None:
        notes += refuse_code(path.with_name(beside), config, trust)
        notes.append(f"weights only: the network is the one of {beside} beside it")
        if beside not in _own_names(path):
            notes.append(
                f"{CONCLUDED} {beside} is concluded from the names of its layers alone: activations, strides and pooling come "
                f"from that file, and weights fit them all. Name it {path.stem}.json if it is the right one"
            )
    return Checkpoint(
        path, sha256, "keras-h5-weights", "keras", tensor_shapes(h5py, file), {}, config, version, tuple(notes), trust
    )  # fmt: skip


def _configuration_beside(path: Path, layers: dict[str, dict[str, tuple[int, ...]]]) -> tuple[Config | None, str]:
    """Configuration and name of the one JSON file in the same folder whose layers are those of a weights-only file.

    One of the file's own name is taken whatever its layers are called: loading says whether the weights fit it.

    Raises:
        UnsupportedCheckpointError: several different ones fit, and none has the file's own name.
    """
    fitting: dict[str, Config] = {}
    for other in sorted(path.parent.glob("*.json")):
        try:
            if other.stat().st_size > LARGEST_JSON:
                continue
            config = json.loads(other.read_text(encoding="utf-8"))
            config = json.loads(config) if isinstance(config, str) else config  # json.dump(model.to_json()) quotes it twice
            names = [layer_name(layer) for layer in layers_of(config)] if "class_name" in config else []
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            continue  # another file that happens to lie there
        if names and (other.name in _own_names(path) or {name for name, weights in layers.items() if weights} <= set(names)):
            fitting[other.name] = config
    own = [name for name in fitting if name in _own_names(path)]
    different = {json.dumps(config, sort_keys=True) for config in fitting.values()}
    if not own and len(different) > 1:
        raise UnsupportedCheckpointError(
            f"{path.name} holds weights only, and its layers fit {len(fitting)} different JSON files beside it "
            f"({', '.join(fitting)}); name the right one {path.stem}.json, or move the others away"
        )
    name = next(iter(own or fitting), "")
    return fitting.get(name), name


def _own_names(path: Path) -> tuple[str, str]:
    """Names under which the JSON of a weights-only file belongs to it beyond doubt."""
    return f"{path.stem}.json", f"{path.name}.json"


def _origin(path: Path, group: Any, file: Any) -> tuple[str, list[str]]:
    """Version of Keras that wrote the file, and that said in words.

    Raises:
        UnsupportedCheckpointError: it was written on Theano.
    """
    version = text_of(group.attrs.get("keras_version", file.attrs.get("keras_version", "")))
    backend = text_of(group.attrs.get("backend", file.attrs.get("backend", "")))
    if backend == "theano":
        raise UnsupportedCheckpointError(
            f"{path.name} was written on Theano, which stores convolution kernels mirrored; expected TensorFlow. Load it with "
            f"Keras 2.0 to 2.3 on TensorFlow, which turns them round, and save it again with model.save('model.h5')."
        )
    return version, [f"written by Keras {version or 'of unknown version'}" + (f" on {backend}" if backend else "")]


def _joined(attributes: Any, key: str) -> str | None:
    """Text of an attribute, put together where it was split into ``key0``, ``key1``, ... for HDF5's limit of 64 KiB."""
    if key in attributes:
        return text_of(attributes[key])
    parts: list[str] = []
    while f"{key}{len(parts)}" in attributes:
        parts.append(text_of(attributes[f"{key}{len(parts)}"]))
    return "".join(parts) if parts else None


def left_aside(h5py: Any, file: Any, path: Path) -> list[str]:
    """A sentence on the state of the training in a whole model's ``.h5``; none where there is no such state.

    Raises:
        UnsupportedCheckpointError: other tensors beside ``model_weights``, which may belong to the network.
    """
    others = [key for key in file if key not in ("model_weights", *TRAINING_STATE)]
    unknown = [key for key in others if isinstance(file[key], h5py.Dataset) or tensor_shapes(h5py, file[key])]
    if unknown:
        raise UnsupportedCheckpointError(
            f"{path.name} holds tensors in {', '.join(map(repr, unknown[:5]))} beside those of the network ('model_weights'); "
            f"what they are for is not known. Load it where the network is defined, and save it again with model.save()."
        )
    state = [key for key in file if key in TRAINING_STATE]
    return [f"left aside: {', '.join(state)} (state of the training)"] if state else []


def refuse_code(path: Path, config: Config, trust: bool) -> list[str]:
    """Look through a configuration of Keras 2 for what would run code, and for what is not known.

    Args:
        path: of the file, for messages.
        config: as read; nothing of it was looked up yet.
        trust: allow Lambda layers.

    Returns:
        A sentence that names the layers whose code is run when the network is loaded; empty where there are none.

    Raises:
        UntrustedCheckpointError: layers that carry or call code.
        UnsupportedCheckpointError: layers or activations of other packages.
    """
    executed, foreign, sums = [], [], residual_sums(config)
    for layer in walk_layers(config):
        kind, name = str(layer["class_name"]), layer_name(layer)
        short = RENAMED.get(kind, kind).removeprefix("experimental.preprocessing.")
        if kind in ("TFOpLambda", "SlicingOpLambda"):
            function = str(settings_of(layer).get("function", ""))
            if not function.startswith(HARMLESS_OPERATIONS):
                executed.append(f"{name!r} (calls tf.{function})")
        elif name in sums or kind in (*DROPOUTS, "Swish"):
            continue  # what it computes is known, and is written out in its place
        elif kind == "Lambda":
            executed.append(f"{name!r} (a Lambda layer with Python byte code)")
        elif short not in KNOWN_LAYERS:
            foreign.append(f"{name!r} (layer {kind})")
        elif OWN_SETTINGS.get(short, set()) - set(settings_of(layer)):
            foreign.append(f"{name!r} (layer {kind}, without settings that the one of Keras has: a class of the author's own)")
        activation = activation_of(layer) if activation_layer(layer) is None else None  # a layer is looked at by itself
        if activation is not None and activation not in KNOWN_ACTIVATIONS and activation not in RELU6:
            foreign.append(f"{name!r} (activation {activation})")
    if executed and not trust:
        raise UntrustedCheckpointError(
            f"{path.name}: loading it would execute code that it carries, in {', '.join(executed[:5])}. If you know where "
            f"the file comes from and trust its authors, add --trust-pickle."
        )
    if foreign:
        raise UnsupportedCheckpointError(
            f"{path.name} uses objects that are not among the layers and functions of Keras known here: "
            f"{', '.join(foreign[:5])}. Export the network as ONNX or as a SavedModel where it is defined, or replace them and "
            f"save it again with model.save('model.h5')."
        )
    return code_run(executed)


def code_run(executed: list[str]) -> list[str]:
    """A sentence on the code of a trusted file; none where it has no code.

    Args:
        executed: layers with what each carries or calls, in words.
    """
    return [f"ran code of the file, which was trusted: {', '.join(executed)}"] if executed else []
