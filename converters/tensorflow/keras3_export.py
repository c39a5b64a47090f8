"""A network of Keras 3: its reference answers and its ONNX graph, through Keras 3 itself on TensorFlow.

Keras 3 and tf_keras (Keras 2) work in one process; each file is loaded by the generation that wrote it.
"""

from __future__ import annotations

import copy
import dataclasses
import gc
import hashlib
import io
import json
import os
import shutil
import tempfile
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from fundus_rt.converters.architecture import Architecture, Network
from fundus_rt.converters.backends import quiet_standard_error, quiet_tracing, require, require_keras
from fundus_rt.converters.checkpoint import Checkpoint
from fundus_rt.converters.tensorflow.keras3_files import WEIGHTS, walk_objects
from fundus_rt.converters.tensorflow.keras_ending import ending_of
from fundus_rt.converters.tensorflow.keras_export import OPSET, garbage_collected_often, keras_answers, require_columns
from fundus_rt.models.card import ModelCard
from fundus_rt.models.errors import BackendUnavailableError, UnsupportedCheckpointError

PACKAGES = ("tensorflow", "keras", "tf2onnx")
OTHER_PRECISIONS = ("mixed_float16", "mixed_bfloat16", "float16", "bfloat16", "float64")
OLDEST = (3, 6)
"""Keras before 3.6 reads Normalization layers of an ``.h5`` as doing nothing (its issue 20147)."""


def identify_keras3(checkpoint: Checkpoint, card: ModelCard) -> Architecture:
    """Say which family of keras.applications a file of Keras 3 holds; the layers' names are those of Keras 2.

    Raises:
        UnsupportedCheckpointError: as `identify_keras` of Keras 2 says, or channels first.
    """
    from fundus_rt.converters.tensorflow.keras_families import identify_keras

    config = checkpoint.keras_config or {}
    for place, found in walk_objects(config):
        settings = found.get("config")
        if isinstance(settings, dict) and settings.get("data_format") == "channels_first":
            raise UnsupportedCheckpointError(
                f"{checkpoint.path.name} has its channels first (layer {place!r}), which TensorFlow cannot run on a CPU, so it "
                f"cannot be proved. Rebuild it with data_format='channels_last' and the same weights."
            )
    architecture = identify_keras(_with_statistics(checkpoint), card)
    head = ending_of(config, checkpoint.path.name)
    check = partial(head.require_probabilities, output=card.outputs[0], file=checkpoint.path.name)

    def build() -> Network:
        network = build_keras3(checkpoint, architecture.description)
        network = require_columns(network, architecture.columns, checkpoint.path.name)
        return Keras3Network(network, architecture.input_size, check)

    notes = architecture.notes
    _, lowered = in_single_precision(config)
    if lowered:
        notes += (
            f"{len(lowered)} layers computed in another precision at training ({lowered[0]}, ...): computed in float32 here, as "
            f"their weights are stored",
        )
    return dataclasses.replace(architecture, build=build, packages=PACKAGES, notes=notes)


def _with_statistics(checkpoint: Checkpoint) -> Checkpoint:
    """A ``.keras`` checkpoint whose configuration states mean and variance of its Normalization layer, as an ``.h5`` names them.

    The archive keeps them under numbers: variable 0 is the mean, 1 the variance.
    """
    config = copy.deepcopy(checkpoint.keras_config or {})
    layers = [found for _, found in walk_objects(config) if found["class_name"] == "Normalization"]
    places = {name.removesuffix("/vars/0") for name in checkpoint.shapes if name.endswith("/vars/0")}
    places = {place for place in places if place.rpartition("/")[2].startswith("normalization")}
    if checkpoint.format != "keras-archive" or len(layers) != 1 or len(places) != 1:
        return checkpoint
    stored = dict(_stored_tensors(checkpoint))
    for number, kind in enumerate(("mean", "variance")):
        layers[0]["config"][kind] = stored[f"{next(iter(places))}/vars/{number}"].reshape(-1).tolist()
    return dataclasses.replace(checkpoint, keras_config=config)


class Keras3Network:
    """A network of Keras 3 with a checkpoint's weights: see `fundus_rt.converters.architecture.Network`."""

    def __init__(self, network: Any, input_size: tuple[int, int], check: Callable[[Any], None]) -> None:
        """Hold a network as `build_keras3` gives it, for pictures of `input_size` (height, width).

        `check` is called with the graph, before it is handed on.
        """
        self.network = network
        self.check = check
        self.input_size = input_size

    def answers(self, images: np.ndarray) -> np.ndarray:
        """Answers of Keras: float32, first axis N, of images float32 [N, H, W, 3]."""
        return keras_answers(self.network, images)

    def graph(self) -> Any:
        """ONNX graph by tf2onnx."""
        _fix_constants(self.network)
        model = onnx_from_tensorflow(lambda images: self.network(images, training=False), (None, *self.input_size, 3))
        self.check(model)
        return model

    def close(self) -> None:
        """Forget the network, and what Keras keeps of it."""
        self.network = None
        _, keras = require_keras3()
        keras.backend.clear_session()
        gc.collect()


def require_keras3() -> tuple[Any, Any]:
    """TensorFlow and Keras 3 on it, silenced and kept on the CPU.

    Returns:
        The modules ``tensorflow`` and ``keras``.

    Raises:
        BackendUnavailableError: one of them is missing or broken, Keras is too old, or it runs on another framework.
    """
    os.environ.setdefault("KERAS_BACKEND", "tensorflow")
    tensorflow, _ = require_keras()
    with quiet_standard_error():
        keras = require("keras")
    version = tuple(int(part) for part in keras.__version__.split(".")[:2])
    if version < OLDEST:
        raise BackendUnavailableError(
            f"keras {keras.__version__} is installed; files of Keras 3 need 3.6 or later, which reads them rightly: "
            f"pip install --upgrade keras"
        )
    if keras.backend.backend() != "tensorflow":
        raise BackendUnavailableError(
            f"Keras runs on {keras.backend.backend()} here; conversion needs it on TensorFlow: set KERAS_BACKEND=tensorflow"
        )
    return tensorflow, keras


def build_keras3(checkpoint: Checkpoint, description: str) -> Any:
    """Load a file of Keras 3 without its training state, and hold every weight against the file's own bytes.

    Args:
        checkpoint: as `read_checkpoint` gives it, searched for code.
        description: for the message of a failure.

    Raises:
        UnsupportedCheckpointError: Keras cannot load it, or the network's weights are not those of the file.
        BackendUnavailableError: TensorFlow or Keras is missing or too old.
    """
    _, keras = require_keras3()
    ending = ".keras" if checkpoint.format == "keras-archive" else ".h5"
    try:
        with quiet_tracing(), _loadable(checkpoint, ending) as path:
            network = keras.saving.load_model(path, compile=False, safe_mode=not checkpoint.trusted)
    except Exception as error:  # whatever a layer's constructor raises on settings that it does not know
        text = " ".join(str(error).split())[:300]
        raise UnsupportedCheckpointError(
            f"{checkpoint.path.name} (Keras {checkpoint.keras_version}) is recognised as {description} but Keras "
            f"{keras.__version__} cannot load it: {type(error).__name__}: {text}"
        ) from error
    if len(network.outputs) != 1 or len(network.inputs) != 1:
        raise UnsupportedCheckpointError(
            f"{checkpoint.path.name} has {len(network.inputs)} inputs and {len(network.outputs)} outputs, expected one each"
        )
    _compare_weights(checkpoint, network)
    return network


def onnx_from_tensorflow(function: Any, shape: tuple[int | None, ...]) -> Any:
    """Trace a function of TensorFlow on one float32 picture tensor and convert it with tf2onnx, variables as constants.

    Args:
        function: one tensor in, one tensor out.
        shape: of the input; None is a dynamic length.

    Returns:
        An `onnx.ModelProto` of operator set 17.

    Raises:
        UnsupportedCheckpointError: an operation that tf2onnx does not know.
        BackendUnavailableError: tf2onnx is missing.
    """
    tensorflow, _ = require_keras()
    with quiet_standard_error():
        converter = require("tf2onnx").convert
    signature = (tensorflow.TensorSpec(shape, tensorflow.float32, name="images"),)
    try:
        with quiet_tracing(), garbage_collected_often():
            traced = tensorflow.function(function, input_signature=signature)
            model, _ = converter.from_function(traced, input_signature=signature, opset=OPSET)
    except Exception as error:  # whatever tf2onnx raises on an operation that it does not know
        text = " ".join(str(error).split())[:300]
        raise UnsupportedCheckpointError(f"tf2onnx cannot export the network: {type(error).__name__}: {text}") from error
    return model


def _fix_constants(network: Any) -> None:
    """Make the statistics of Normalization layers plain arrays, which a trace holds as constants.

    Keras keeps them as tensors apart from the layer's variables; a trace would take them for inputs, which tf2onnx then
    misses.
    """
    for layer in network._flatten_layers():
        if type(layer).__name__ == "Normalization" and layer.mean is not None:
            layer.mean, layer.variance = np.asarray(layer.mean), np.asarray(layer.variance)


def _compare_weights(checkpoint: Checkpoint, network: Any) -> None:
    """Raise unless the network's weights are the file's tensors, value by value: each exactly once, none left over.

    An ``.h5`` names its tensors, and each has to be in the weight of that name: Keras loads in the order of ``layer_names``,
    which could put the tensors of two layers of one shape in each other's place. An archive numbers them by the same
    configuration that makes the network.
    """
    if checkpoint.format != "keras-archive":
        _compare_names(checkpoint, network)
    loaded: Counter[str] = Counter(_fingerprint(np.asarray(weight)) for weight in network.weights)
    stored: dict[str, str] = {}
    held: Counter[str] = Counter()
    for name, values in _stored_tensors(checkpoint):
        stored[name] = _fingerprint(values)
        held[stored[name]] += 1
    missing = sum((loaded - held).values())
    unused = [name for name, fingerprint in stored.items() if (held - loaded)[fingerprint]]
    if missing or unused:
        raise UnsupportedCheckpointError(
            f"{checkpoint.path.name}: of the network's {sum(loaded.values())} tensors {missing} are not as in the file, and "
            f"{len(unused)} of the file's were not loaded ({', '.join(unused[:4]) or 'none'}); a network loaded in part "
            f"gives wrong answers, so nothing is converted"
        )


def _compare_names(checkpoint: Checkpoint, network: Any) -> None:
    """Raise unless each weight holds the tensor of its own layer and name in an ``.h5``."""
    places = {id(weight): f"{layer.name}/{weight.path}" for layer in network.layers for weight in layer.weights}
    wanted = {places.get(id(weight), f"top_level_model_weights/{weight.path}"): weight for weight in network.weights}
    if len(wanted) == len(network.weights) and set(wanted) != set(checkpoint.shapes):
        outer = sorted({layer.name for layer in network.layers} | {"top_level_model_weights"}, key=len, reverse=True)
        wanted = {_layer_and_weight(name, outer): weight for name, weight in wanted.items()}
        names = {name: _layer_and_weight(name, outer) for name in checkpoint.shapes}
    else:
        names = {name: name for name in checkpoint.shapes}
    certain = (
        len(wanted) == len(network.weights) and len(set(names.values())) == len(names) and set(wanted) == set(names.values())
    )
    other = [
        name
        for name, values in (_stored_tensors(checkpoint) if certain else ())
        if _fingerprint(values) != _fingerprint(np.asarray(wanted[names[name]]))
    ]
    if other or not certain:
        found = f"its tensor {other[0]!r} is not in the weight of that name" if other else "its tensors have other names"
        raise UnsupportedCheckpointError(
            f"{checkpoint.path.name}: Keras loads it in the order of its list of layers, and {found} ({len(other)} of "
            f"{len(names)}); a network with its weights in other places gives wrong answers, so nothing is converted. Save it "
            f"again with model.save('model.keras') where it answers rightly."
        )


def _layer_and_weight(name: str, outer: list[str]) -> str:
    """The outermost layer, the layer that has the weight, and the weight, without the scopes between them."""
    layer = next((found for found in outer if name.startswith(f"{found}/")), "")
    return "/".join([layer, *name.removeprefix(f"{layer}/").split("/")[-2:]])


def _stored_tensors(checkpoint: Checkpoint) -> Iterator[tuple[str, np.ndarray]]:
    h5py = require("h5py")
    if checkpoint.format == "keras-archive":
        with zipfile.ZipFile(checkpoint.path) as archive:
            source: Any = io.BytesIO(archive.read(WEIGHTS))
    else:
        source = checkpoint.path
    with h5py.File(source, "r") as file:
        group = file if checkpoint.format == "keras-archive" else file["model_weights"]
        for name in checkpoint.shapes:
            yield name, np.asarray(group[name])


def _fingerprint(values: np.ndarray) -> str:
    """Shape, whether whole numbers, and the hash of the values: quantized weights are not those that a network computes with."""
    numbers = np.ascontiguousarray(values)
    return f"{values.shape} {values.dtype.kind in 'iub'} {hashlib.sha256(numbers.astype(np.float32).tobytes()).hexdigest()}"


@contextmanager
def _loadable(checkpoint: Checkpoint, ending: str) -> Iterator[Path]:
    """The file in single precision, under a name with the ending by which Keras chooses its reader."""
    source = checkpoint.path
    config, layers = in_single_precision(checkpoint.keras_config or {})
    if source.suffix == ending and not layers:
        yield source
        return
    with tempfile.TemporaryDirectory() as folder:
        other = Path(folder) / f"network{ending}"
        if not layers:
            other.symlink_to(source.resolve())
        elif ending == ".keras":
            with zipfile.ZipFile(source) as archive, zipfile.ZipFile(other, "w") as copied:
                for name in archive.namelist():
                    copied.writestr(name, json.dumps(config).encode() if name == "config.json" else archive.read(name))
        else:
            shutil.copyfile(source, other)
            with require("h5py").File(other, "r+") as file:
                file.attrs["model_config"] = json.dumps(config)
        yield other


def in_single_precision(config: dict[str, Any]) -> tuple[dict[str, Any], tuple[str, ...]]:
    """A configuration whose layers compute in float32, and the names of those for which that is another precision."""
    changed: list[str] = []

    def renewed(value: Any, name: str) -> Any:
        if isinstance(value, list):
            return [renewed(inner, name) for inner in value]
        if not isinstance(value, dict):
            return value
        own = str(value.get("name") or name)
        if _policy(value.get("dtype")) in OTHER_PRECISIONS:
            if value.get("class_name") is None and "keras_history" not in value:
                changed.append(own)
            value = {**value, "dtype": "float32"}
        return {key: renewed(inner, own) for key, inner in value.items()}

    single = renewed(config, "")
    return single, tuple(dict.fromkeys(changed))


def _policy(dtype: Any) -> str:
    """Name of a precision, given plainly or as a DTypePolicy."""
    settings = dtype.get("config") if isinstance(dtype, dict) else None
    return str(settings.get("name")) if isinstance(settings, dict) else str(dtype)
