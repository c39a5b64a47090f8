"""TensorFlow SavedModel folders: searched for foreign operators and accounted for before TensorFlow loads anything."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np

from fundus_rt.converters.architecture import Architecture, LoadAccount, Network
from fundus_rt.converters.backends import quiet_standard_error, quiet_tracing, require, require_keras
from fundus_rt.converters.checkpoint import Checkpoint, numbers_in
from fundus_rt.converters.tensorflow.saved_model_operators import foreign_operators
from fundus_rt.converters.tensorflow.saved_model_variables import accounted_variables
from fundus_rt.models.artifacts import sha256_of_file
from fundus_rt.models.card import ModelCard
from fundus_rt.models.errors import UnsupportedCheckpointError, UntrustedCheckpointError

FAMILY = "saved-model"
PACKAGES = ("tensorflow", "tf2onnx")
UNTOLD = "the graph of a SavedModel does not name its architecture: that it is the card's network was taken for granted"
INITIALISER = "__saved_model_init_op"


def read_saved_model(path: Path, trust: bool) -> Checkpoint:
    """Read the graph and the variables' shapes of a SavedModel; neither is loaded.

    Args:
        path: the folder with ``saved_model.pb``.
        trust: allow operators that image networks are not made of, which may read or write files, or run other code.

    Raises:
        UnsupportedCheckpointError: damaged, of TensorFlow 1, or variables that no signature reads and no training explains.
        UntrustedCheckpointError: operators that image networks are not made of, and not trusted.
        BackendUnavailableError: TensorFlow is missing.
    """
    graph = parse(path)
    if not graph.object_graph_def.nodes:
        raise UnsupportedCheckpointError(
            f"{path.name} is a SavedModel of TensorFlow 1 (its variables belong to a session), which is not read. Load it in "
            f"TensorFlow 2 with tf.saved_model.load, and save its signature as a tf.Module with tf.saved_model.save."
        )
    notes = [f"written by TensorFlow {graph.meta_info_def.tensorflow_version or 'of unknown version'}"]
    foreign = [] if trust else list(dict.fromkeys(foreign_operators(graph)))
    if foreign:
        raise UntrustedCheckpointError(
            f"{path.name}: its graph holds operators that image networks are not made of, and that may read or write files or "
            f"run other code: {', '.join(foreign[:5])}{' and more' if len(foreign) > 5 else ''}. If you know where it comes "
            f"from and trust its authors, add --trust-pickle."
        )
    variables = accounted_variables(path, graph, signature_name(path, graph))
    return Checkpoint(
        path, _sha256_of_folder(path), "saved-model", "tensorflow", variables.used, notes=tuple(notes), trusted=trust
    )


def identify_saved_model(checkpoint: Checkpoint, card: ModelCard) -> Architecture:
    """Say what the signature of a SavedModel takes and answers.

    Raises:
        UnsupportedCheckpointError: more than one input or output, an input that is no float32 colour picture, or an answer
            that is a map instead of numbers.
    """
    path, graph = checkpoint.path, parse(checkpoint.path)
    name = signature_name(path, graph)
    signature = graph.signature_def[name]
    argument, dims = _picture(path, name, signature)
    answer, columns = _answer(path, name, signature)
    size = (dims[1] or card.preprocessing.input_size[0], dims[2] or card.preprocessing.input_size[1])
    variables = accounted_variables(path, graph, name)
    used = checkpoint.parameters
    unused = sum(numbers_in(shape) for shape in variables.unused_shapes.values())
    account = LoadAccount(
        len(variables.used) + len(variables.unused), used + unused, len(variables.used), used, used, dict(variables.unused)
    )
    batch = "any number of pictures" if dims[0] is None else f"{dims[0]} picture{'s' if dims[0] > 1 else ''}"
    described = (
        f"a TensorFlow SavedModel, signature {name!r}, {size[0]} x {size[1]} pixels, {batch} per run, {columns} "
        f"output{'s' if columns > 1 else ''}"
    )

    def build() -> Network:
        return SavedModelNetwork(path, name, argument, answer, (dims[0], *size))

    return Architecture(FAMILY, described, size, columns, None, account, build, "tf2onnx", PACKAGES, (), (UNTOLD,))


class SavedModelNetwork:
    """One signature of a SavedModel: see `fundus_rt.converters.architecture.Network`."""

    def __init__(self, path: Path, signature: str, argument: str, answer: str, shape: tuple[int | None, int, int]) -> None:
        """Load the folder; `shape` is pictures per run (None: any number), height and width."""
        self.tensorflow, _ = require_keras()
        self.file = path.name
        self.argument, self.answer, self.shape = argument, answer, shape
        try:
            with quiet_tracing(), quiet_standard_error():
                self.loaded = self.tensorflow.saved_model.load(str(path))
        except Exception as error:  # TensorFlow's own classes
            text = " ".join(str(error).split())[:300]
            raise UnsupportedCheckpointError(f"{path.name} cannot be loaded by TensorFlow: {text}") from error
        self.function = self.loaded.signatures[signature]

    def answers(self, images: np.ndarray) -> np.ndarray:
        """Answers float32 [N, columns] of the signature, in its own batch size or one by one, to float32 [N, H, W, 3].

        Raises:
            UnsupportedCheckpointError: TensorFlow cannot run the signature.
        """
        size = self.shape[0] or 1
        answers = []
        for start in range(0, len(images), size):
            batch = images[start : start + size]
            filled = np.concatenate([batch, np.repeat(batch[-1:], size - len(batch), axis=0)])
            try:
                found = self.function(**{self.argument: self.tensorflow.constant(filled)})[self.answer].numpy()
            except Exception as error:  # TensorFlow's own classes
                text = " ".join(str(error).split())[:300]
                raise UnsupportedCheckpointError(
                    f"{self.file} does not run on pictures of shape {list(filled.shape)}: {type(error).__name__}: {text}"
                ) from error
            answers.append(found[: len(batch)])
        return np.concatenate(answers)

    def graph(self) -> Any:
        """ONNX graph by tf2onnx, the batch dynamic.

        Raises:
            UnsupportedCheckpointError: an operator that ONNX does not have, or a batch that cannot be made dynamic.
        """
        from fundus_rt.converters.graphs.onnx_batch import any_batch
        from fundus_rt.converters.tensorflow.keras3_export import onnx_from_tensorflow

        batch, height, width = self.shape
        model = onnx_from_tensorflow(
            lambda images: self.function(**{self.argument: images})[self.answer], (batch, height, width, 3)
        )
        _require_operators(model, self.file)
        return any_batch(model, (batch or 1, height, width, 3), self.file, self.answers)

    def close(self) -> None:
        """Forget the network."""
        from fundus_rt.converters.tensorflow.keras_export import forget_keras

        self.loaded = self.function = None
        forget_keras()


def _require_operators(model: Any, file: str) -> None:
    """Refuse what tf2onnx hands on as it is, for it only logs that it does not know an operator."""
    onnx = require("onnx")
    unknown = [node.op_type for node in model.graph.node if not onnx.defs.has(node.op_type, node.domain)]
    if unknown:
        raise UnsupportedCheckpointError(
            f"{file}: ONNX has no operator for {', '.join(dict.fromkeys(unknown))} of its graph. Random ones belong to layers "
            f"that change pictures in training (RandomFlip, RandomRotation): export the network again without them."
        )


def parse(path: Path) -> Any:
    """The one graph of a SavedModel, as a `MetaGraphDef`.

    Raises:
        UnsupportedCheckpointError: damaged, or not exactly one graph for serving.
        BackendUnavailableError: TensorFlow is missing.
    """
    require_keras()
    proto = require("tensorflow.core.protobuf.saved_model_pb2")
    try:
        saved = proto.SavedModel.FromString((path / "saved_model.pb").read_bytes())
    except Exception as error:  # protobuf's own classes
        raise UnsupportedCheckpointError(
            f"{path.name}/saved_model.pb is cut short or damaged ({str(error)[:100]}); download it again"
        ) from error
    serving = [graph for graph in saved.meta_graphs if "serve" in graph.meta_info_def.tags] or list(saved.meta_graphs)
    if len(serving) != 1:
        raise UnsupportedCheckpointError(f"{path.name} holds {len(serving)} graphs for serving, expected one; save it again")
    return serving[0]


def signature_name(path: Path, graph: Any) -> str:
    """The signature to convert: ``serving_default``, or the only one.

    Raises:
        UnsupportedCheckpointError: none, or several of which none is the default.
    """
    names = [name for name in graph.signature_def if name != INITIALISER]
    if "serving_default" in names:
        return "serving_default"
    if len(names) == 1:
        return str(names[0])
    raise UnsupportedCheckpointError(
        f"{path.name} has the signatures {', '.join(sorted(names)) or 'none'}, expected one, or one named serving_default. "
        f"Save it with tf.saved_model.save(network, folder, signatures=network.THE_ONE)."
    )


def _picture(path: Path, name: str, signature: Any) -> tuple[str, list[int | None]]:
    """Name and lengths (None: any) of the input."""
    types = require("tensorflow").dtypes
    if len(signature.inputs) != 1:
        raise UnsupportedCheckpointError(
            f"{path.name}: signature {name!r} takes {', '.join(sorted(signature.inputs)) or 'nothing'}, expected one picture"
        )
    argument, tensor = next(iter(signature.inputs.items()))
    kind = types.as_dtype(tensor.dtype)
    if kind != types.float32:
        advice = {
            types.string: "it decodes files itself; export the network without that",
            types.uint8: "it prepares the picture itself; export the network without that preprocessing, which the card states",
        }.get(kind, "export it with a float32 picture as its input")
        raise UnsupportedCheckpointError(
            f"{path.name}: signature {name!r} takes {kind.name} numbers ({argument}), expected float32: {advice}"
        )
    dims = [None if dim.size < 0 else int(dim.size) for dim in tensor.tensor_shape.dim]
    if len(dims) != 4 or dims[3] != 3:
        raise UnsupportedCheckpointError(
            f"{path.name}: signature {name!r} takes an input of shape {[d or '?' for d in dims]}, expected [N, height, width, "
            f"3]: colour pictures, channels last"
        )
    return str(argument), dims


def _answer(path: Path, name: str, signature: Any) -> tuple[str, int]:
    """Name and number of columns of the output."""
    if len(signature.outputs) != 1:
        raise UnsupportedCheckpointError(
            f"{path.name}: signature {name!r} has the outputs {', '.join(sorted(signature.outputs)) or 'none'}, expected one; "
            f"save a signature that gives only the one the card describes"
        )
    answer, tensor = next(iter(signature.outputs.items()))
    dims = [int(dim.size) for dim in tensor.tensor_shape.dim]
    kind = require("tensorflow").dtypes.as_dtype(tensor.dtype)
    if len(dims) != 2 or dims[1] < 1 or kind.name != "float32":
        what = "a map: a segmentation, or a network without its pooling" if len(dims) == 4 else "not a row of numbers per picture"
        raise UnsupportedCheckpointError(
            f"{path.name}: signature {name!r} answers with {kind.name} numbers of shape {[d if d > 0 else '?' for d in dims]} "
            f"({answer}), which is {what}; expected float32 [N, columns]"
        )
    return str(answer), dims[1]


def _sha256_of_folder(path: Path) -> str:
    """Hash over the names and the contents of all files in a folder, in the order of their names."""
    digest = hashlib.sha256()
    for file in sorted(entry for entry in path.rglob("*") if entry.is_file()):
        digest.update(f"{file.relative_to(path).as_posix()} {sha256_of_file(file)}\n".encode())
    return digest.hexdigest()
