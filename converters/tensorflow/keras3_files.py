"""Files that Keras 3 wrote, ``.keras`` archives and ``.h5``: read and searched for code before any of it is loaded.

Keras 3 imports classes and functions by the names that a file gives. Files were published that named ``builtins.exec``, that
called ``keras.utils.get_file``, that turned Keras' own safe mode off from inside, or whose tensors lay in other files of the
reader's machine. So nothing is excluded here by name: what is not in the tables below is refused.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fundus_rt.converters.backends import require
from fundus_rt.converters.checkpoint import Checkpoint
from fundus_rt.converters.tensorflow.hdf5_links import refuse_links, tensor_shapes, text_of
from fundus_rt.converters.tensorflow.keras_files import KNOWN_ACTIVATIONS, KNOWN_LAYERS, code_run, left_aside
from fundus_rt.models.errors import UnsupportedCheckpointError, UntrustedCheckpointError

WEIGHTS = "model.weights.h5"
ARCHIVE_MEMBERS = frozenset({"metadata.json", "config.json", WEIGHTS})

LAYER_MODULES = ("keras.layers", "keras.src.layers", "keras.models", "keras.src.models", "keras")
"""Where Keras 3 says that its layers and networks come from; the older releases of it give the inner modules."""
OPERATION_MODULES = ("keras.src.ops.numpy", "keras.src.ops.nn", "keras.src.ops.math", "keras.src.ops.image", "keras.ops")
"""Arithmetic written between layers; ``keras.ops.core``, which takes functions, is not among them."""
INERT_MODULES = ("initializers", "regularizers", "constraints", "optimizers", "losses", "metrics", "dtype_policies")
"""Modules of Keras whose classes hold numbers and do nothing at loading."""
_OPERATIONS = """
    Absolute Add Average Clip Concatenate Divide DivideNoNan Exp ExpandDims Flatten Gelu HardSigmoid HardSwish LeakyRelu Log
    LogSoftmax Max Maximum Mean Min Minimum Multiply Negative Pad Permute Power Relu Relu6 Reshape Resize Selu Sigmoid Silu
    Softmax Softplus Sqrt Square Squeeze Std Subtract Sum Swish Tanh Transpose TrueDivide
"""
OPERATIONS = frozenset(_OPERATIONS.split())
INERT_OBJECTS = frozenset({"__keras_tensor__", "__numpy__", "__tensor__", "__slice__", "__ellipsis__"})
"""Values that a configuration spells out."""

LARGEST_ARCHIVE = 50
"""How many times its own size an archive may unpack to. Keras does not compress; weights would not shrink to a half."""


def read_keras_archive(path: Path, sha256: str, trust: bool) -> Checkpoint:
    """Read the configuration and the tensors' shapes of a ``.keras`` archive; no weights, no TensorFlow.

    Args:
        path: the file, a zip archive with ``config.json``.
        sha256: hash of its content.
        trust: allow Lambda layers, whose Python byte code Keras would execute.

    Raises:
        UnsupportedCheckpointError: damaged, with other files in it, of Keras 2, or with objects that are not known.
        UntrustedCheckpointError: it carries or calls code, and is not trusted.
    """
    h5py = require("h5py")
    try:
        with zipfile.ZipFile(path) as archive:
            _refuse_members(path, archive)
            config = json.loads(archive.read("config.json"))
            version = str(json.loads(archive.read("metadata.json")).get("keras_version", ""))
            _refuse_generation(path, config, version)
            with h5py.File(io.BytesIO(archive.read(WEIGHTS)), "r") as file:
                refuse_links(h5py, file, path)
                shapes = tensor_shapes(h5py, file)
        notes = [f"written by Keras {version or 'of unknown version'}"]
        notes += _refuse_code(path, config, trust)
    except (OSError, RuntimeError, KeyError, TypeError, ValueError, AttributeError, zipfile.BadZipFile) as error:
        raise UnsupportedCheckpointError(
            f"{path.name} is a .keras archive that is damaged ({str(error)[:160]}); download it again"
        ) from error
    shapes, left = _without_training_state(shapes)
    return Checkpoint(path, sha256, "keras-archive", "keras", shapes, {}, config, version, (*notes, *left), trust)


def read_keras3_h5(h5py: Any, file: Any, path: Path, sha256: str, config: dict[str, Any], trust: bool) -> Checkpoint:
    """Read an ``.h5`` that `model.save` of Keras 3 wrote.

    Args:
        h5py: the module.
        file: the file, open.
        path: where it lies.
        sha256: hash of its content.
        config: its ``model_config``.
        trust: allow Lambda layers, whose Python byte code Keras would execute.

    Raises:
        UnsupportedCheckpointError: objects that are not known, or tensors in other files.
        UntrustedCheckpointError: it carries or calls code, and is not trusted.
    """
    refuse_links(h5py, file, path)
    run = _refuse_code(path, config, trust)
    group = file["model_weights"]
    version = text_of(group.attrs.get("keras_version", file.attrs.get("keras_version", "")))
    shapes, left = _without_training_state(tensor_shapes(h5py, group))
    notes = [f"written by Keras {version}", *left, *left_aside(h5py, file, path), *run]
    return Checkpoint(path, sha256, "keras-h5", "keras", shapes, {}, config, version, tuple(notes), trust)


def is_training_state(name: str) -> str:
    """Why a tensor of this path is no parameter of the network; empty where it is one."""
    parts = name.split("/")
    if parts[0] in ("optimizer", "_optimizer"):
        return "state of the optimizer"
    if any(part.startswith("seed_generator") for part in parts):
        return "state of a random generator, used in training only"
    return ""


def walk_objects(value: Any, place: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Every object that Keras would make from a configuration, with the name of the layer that it is in."""
    if isinstance(value, dict):
        settings = value.get("config")
        named = settings.get("name") if isinstance(settings, dict) else None
        place = str(value.get("name") or named or place) if "class_name" in value else place
        if "class_name" in value:
            yield place, value
        for key, inner in value.items():
            if key != "compile_config" or place:  # the outermost is taken away before loading
                yield from walk_objects(inner, place)
    elif isinstance(value, list):
        for inner in value:
            yield from walk_objects(inner, place)


def _refuse_members(path: Path, archive: zipfile.ZipFile) -> None:
    names = set(archive.namelist())
    size = sum(member.file_size for member in archive.infolist())
    if len(names) < len(archive.namelist()) or size > LARGEST_ARCHIVE * path.stat().st_size:
        raise UnsupportedCheckpointError(
            f"{path.name} names a member twice, or unpacks to {size:,} bytes, more than {LARGEST_ARCHIVE} times its own; it is "
            f"damaged or made to exhaust the memory"
        )
    missing, others = ARCHIVE_MEMBERS - names, names - ARCHIVE_MEMBERS
    if missing or others:
        raise UnsupportedCheckpointError(
            f"{path.name} is an archive of Keras 3 (.keras) with {'no ' + ', '.join(sorted(missing)) if missing else ''}"
            f"{' and ' if missing and others else ''}{'also ' + ', '.join(sorted(others)[:4]) if others else ''}; expected "
            f"metadata.json, config.json and {WEIGHTS} alone. Load it in Keras and save it with model.save('model.keras')."
        )


def _refuse_generation(path: Path, config: dict[str, Any], version: str) -> None:
    """Raise for an archive of Keras 2 (TensorFlow 2.12 to 2.15, or ``tf_keras``), whose weights have other names."""
    modules = {str(found.get("module") or "").partition(".")[0] for _, found in walk_objects(config)}
    if version.startswith(("0.", "1.", "2.")) or "tf_keras" in modules:
        raise UnsupportedCheckpointError(
            f"{path.name} is a .keras archive of Keras {version or '2'} (TensorFlow 2.12 to 2.15, or tf_keras); expected one of "
            f"Keras 3. Load it where it was made, and save it with model.save('model.h5'), which is converted."
        )


def _refuse_code(path: Path, config: dict[str, Any], trust: bool) -> list[str]:
    """Raise for objects that carry or call code, and for those that are not known; a sentence on the code of a trusted file."""
    executed: list[str] = []
    foreign: list[str] = []
    outermost = {key: value for key, value in config.items() if key != "compile_config"}
    for place, found in walk_objects(outermost):
        problem, carries_code = _problem_of(found)
        if problem:
            (executed if carries_code else foreign).append(f"{place!r} ({problem})")
    for layer in (found for _, found in walk_objects(outermost) if isinstance(found.get("config"), dict)):
        activation = layer["config"].get("activation", "linear")
        if isinstance(activation, str) and activation not in KNOWN_ACTIVATIONS:
            foreign.append(f"{layer['config'].get('name')!r} (activation {activation})")
    if executed and not trust:
        raise UntrustedCheckpointError(
            f"{path.name}: loading it would execute code that it carries or names, in {', '.join(executed[:5])}. If you know "
            f"where the file comes from and trust its authors, add --trust-pickle."
        )
    if foreign:
        raise UnsupportedCheckpointError(
            f"{path.name} uses objects that are not among the layers and functions of Keras known here: "
            f"{', '.join(foreign[:5])}. Export the network as ONNX or as a SavedModel where it is defined, or replace them and "
            f"save it again with model.save('model.keras')."
        )
    return code_run(executed)


def _problem_of(found: dict[str, Any]) -> tuple[str, bool]:
    """What is wrong with one object, empty for nothing, and whether loading it executes code of the file's choice."""
    kind, module = str(found["class_name"]), found.get("module")
    registered = str(found.get("registered_name") or "")
    if kind in ("Lambda", "__lambda__"):
        return "a Lambda layer with Python byte code", True
    if kind in INERT_OBJECTS:
        return "", False
    if kind == "function":
        name = found.get("config")
        if module in (None, "builtins", "keras.activations", "keras.src.activations.activations") and name in KNOWN_ACTIVATIONS:
            return "", False
        return f"the function {module}.{name}", True
    if ">" in registered:
        return f"{registered.partition('>')[0]}'s own class {registered.partition('>')[2]}", False
    if module is None:  # an .h5 names no modules: Keras looks in its own layers only
        return ("", False) if kind in KNOWN_LAYERS | OPERATIONS | _INERT_WITHOUT_MODULE else (f"layer {kind}", False)
    if not isinstance(module, str) or not (module == "keras" or module.startswith("keras.")):
        return f"{module}.{kind}", True
    if any(module == inert or module.startswith(f"{inert}.") for inert in _INERT):
        return "", False
    if module in OPERATION_MODULES:
        return ("", False) if kind in OPERATIONS else (f"operation {kind}", False)
    inside = any(module == own or (own != "keras" and module.startswith(f"{own}.")) for own in LAYER_MODULES)
    if inside and kind in KNOWN_LAYERS | {"DTypePolicy"}:
        return "", False
    return (f"layer {kind}", False) if inside else (f"{module}.{kind}", True)


_INERT = tuple(f"{root}.{name}" for root in ("keras", "keras.src") for name in INERT_MODULES)
_INITIALIZERS = """
    Constant GlorotNormal GlorotUniform HeNormal HeUniform L1 L1L2 L2 LecunNormal LecunUniform Ones Orthogonal RandomNormal
    RandomUniform TruncatedNormal VarianceScaling Zeros
"""
_INERT_WITHOUT_MODULE = frozenset(_INITIALIZERS.split())


def _without_training_state(shapes: dict[str, tuple[int, ...]]) -> tuple[dict[str, tuple[int, ...]], list[str]]:
    """Tensors of the network, and a sentence for each kind that was left aside."""
    reasons: dict[str, int] = {}
    kept = {}
    for name, shape in shapes.items():
        reason = is_training_state(name)
        if reason:
            reasons[reason] = reasons.get(reason, 0) + 1
        else:
            kept[name] = shape
    return kept, [f"left aside: {count} tensors ({reason})" for reason, count in reasons.items()]
