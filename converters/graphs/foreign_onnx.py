"""ONNX models that others exported: what they hold, their own answers, and whether they can be shipped."""

from __future__ import annotations

import dataclasses
import math
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from fundus_rt.converters.architecture import Architecture, Network
from fundus_rt.converters.backends import require
from fundus_rt.converters.checkpoint import Checkpoint
from fundus_rt.converters.class_order import in_another_order, listed_classes
from fundus_rt.converters.graphs.graph_names import graphs_of
from fundus_rt.converters.graphs.onnx_account import account_of, tensors_of
from fundus_rt.models.artifacts import sha256_of_file
from fundus_rt.models.card import CARD_KEY, ModelCard
from fundus_rt.models.errors import UnsupportedCheckpointError

FAMILY = "onnx"
PACKAGES = ("onnxruntime",)
OWN_DOMAINS = ("", "ai.onnx")
WHOLE_NUMBERS = ("ConvInteger", "MatMulInteger", "QLinearConv", "QLinearMatMul")
"""Operators that multiply numbers of 8 bits."""
UNTOLD = "the graph of an ONNX model does not name its architecture: that it is the card's network was taken for granted"


@dataclasses.dataclass(frozen=True)
class Signature:
    """The one input of a model and what it answers."""

    name: str
    """Of the input."""
    batch: int | None
    """Pictures per run; None: any number."""
    channels_first: bool
    size: tuple[int, int]
    """Height and width, pixels."""
    columns: int


def read_onnx(path: Path, sha256: str) -> Checkpoint:
    """Read an ONNX model's tensors and hold its graph against what can be shipped; it is not run.

    Args:
        path: the file; tensors kept outside of it are read only from files beside it.
        sha256: hash of its content.

    Raises:
        UnsupportedCheckpointError: damaged, converted by this package already, with operators of other makers, with nodes
            that train, or with tensors in files that are missing or lie elsewhere.
    """
    model = load_onnx(path, with_tensors=False)
    keys = {entry.key for entry in model.metadata_props}
    if CARD_KEY in keys:
        raise UnsupportedCheckpointError(
            f"{path.name} was written by fundus-rt and is already converted; run it with: fundus-rt infer --model {path.name}"
        )
    external = _external_files(path, model)
    _refuse_operators(path, model)
    versions = ", ".join(f"{entry.domain or 'ai.onnx'} {entry.version}" for entry in model.opset_import)
    maker = f"{model.producer_name} {model.producer_version}".strip() or "an unknown exporter"
    notes = [f"written by {maker}: format {model.ir_version}, operator set {versions}"]
    notes += [f"tensors beside it in {other.name}, sha256 {sha256_of_file(other)[:16]}" for other in external]
    listed = listed_classes({entry.key: entry.value for entry in model.metadata_props})
    notes += [f"its metadata lists the classes as {', '.join(order)} ({key})" for key, order in listed]
    orders = [order for _, order in listed] or [()]
    if any(in_another_order(one, other) for one, other in combinations(orders, 2)):
        raise UnsupportedCheckpointError(f"{path.name}: {'; '.join(notes[-len(listed) :])}; which order holds cannot be told")
    return Checkpoint(
        path, sha256, "onnx", "onnx", tensors_of(model), notes=tuple(notes), classes=orders[0], class_lists=tuple(listed)
    )  # fmt: skip


def identify_onnx(checkpoint: Checkpoint, card: ModelCard) -> Architecture:
    """Say what an ONNX model takes and answers, by running it once on a grey picture.

    Raises:
        UnsupportedCheckpointError: more than one input or output, an input that is no float32 colour picture of the card's
            size, an answer that is a map instead of numbers, or parameters that nothing reads.
        BackendUnavailableError: ONNX Runtime is missing.
    """
    model = load_onnx(checkpoint.path, with_tensors=False)
    signature = _signature(checkpoint.path, model, card)
    account = account_of(checkpoint.path, model)
    height, width = signature.size
    batch = "any number of" if signature.batch is None else signature.batch
    described = (
        f"an ONNX graph of {len(model.graph.node)} nodes, {height} x {width} pixels, channels "
        f"{'first' if signature.channels_first else 'last'}, {batch} picture{'' if signature.batch == 1 else 's'} per run, "
        f"{signature.columns} output{'s' if signature.columns > 1 else ''}"
    )

    def build() -> Network:
        return OnnxNetwork(checkpoint.path, signature)

    return Architecture(
        FAMILY, described, signature.size, signature.columns, None, account, build, "onnx", PACKAGES, (), (UNTOLD,)
    )  # fmt: skip


class OnnxNetwork:
    """A foreign ONNX model: see `fundus_rt.converters.architecture.Network`.

    Its own answers are those of the file's own bytes, in ONNX Runtime on the CPU: see `open_original`.
    """

    def __init__(self, path: Path, signature: Signature) -> None:
        """Open the file, whose input and output `identify_onnx` found."""
        self.path = path
        self.signature = signature
        self.session = open_original(path)

    def answers(self, images: np.ndarray) -> np.ndarray:
        """Answers float32 [N, columns] to images float32 [N, H, W, 3], in the file's own batch size, or one by one."""
        size = self.signature.batch or 1
        answers = []
        for start in range(0, len(images), size):
            batch = images[start : start + size]
            filled = np.concatenate([batch, np.repeat(batch[-1:], size - len(batch), axis=0)])
            answers.append(_run(self.session, self.signature, filled)[: len(batch)])
        return np.concatenate(answers)

    def graph(self) -> Any:
        """The graph at an operator set that is shipped, the batch dynamic."""
        from fundus_rt.converters.graphs.onnx_batch import any_batch
        from fundus_rt.converters.graphs.onnx_upgrade import upgraded

        first, size = self.signature.channels_first, self.signature.size
        shape = (self.signature.batch or 1, *((3, *size) if first else (*size, 3)))
        model = upgraded(load_onnx(self.path), self.path.name)
        return any_batch(model, shape, self.path.name, lambda fed: self.answers(fed.transpose(0, 2, 3, 1) if first else fed))

    def close(self) -> None:
        """Close the file."""
        self.session = None


def load_onnx(path: Path, with_tensors: bool = True) -> Any:
    """An ONNX model from its file; tensors outside of it only from files beside it.

    Raises:
        UnsupportedCheckpointError: damaged, or with tensors elsewhere.
    """
    onnx = require("onnx")
    try:
        model = onnx.load_model(str(path), load_external_data=False)
        if not model.graph.node:
            raise ValueError("no nodes")
    except Exception as error:  # protobuf's own classes
        raise UnsupportedCheckpointError(
            f"{path.name} is not an ONNX model, or is cut short ({str(error)[:100]}); download it again"
        ) from error
    if with_tensors and _external_files(path, model):
        onnx.external_data_helper.load_external_data_for_model(model, str(path.parent))
    return model


def open_original(source: Path | bytes) -> Any:
    """ONNX Runtime on the CPU, without any optimisation of the graph.

    Only a graph that multiplies whole numbers is optimised, as every runtime does: else ONNX Runtime does not add them up exactly
    on a processor without VNNI (`fundus_rt.runtime.onnx_providers.session_options`).

    Raises:
        UnsupportedCheckpointError: it cannot be run.
    """
    runtime = require("onnxruntime")
    options = runtime.SessionOptions()
    options.log_severity_level = 4
    options.add_session_config_entry("session.x64quantprecision", "1")
    name = source.name if isinstance(source, Path) else "the graph"
    try:
        if isinstance(source, Path):  # tensors beside the file are put into it: the runtime cannot read all kinds from there
            model = load_onnx(source, with_tensors=False)
            whole = any(node.op_type in WHOLE_NUMBERS for node in _all_nodes(model))
            source = load_onnx(source).SerializeToString() if _external_files(source, model) else source
        else:
            whole = any(kind.encode() in source for kind in WHOLE_NUMBERS)
        if not whole:
            options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_DISABLE_ALL
        bytes_or_path = str(source) if isinstance(source, Path) else source
        return runtime.InferenceSession(bytes_or_path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's own classes
        text = " ".join(str(error).split())[:300]
        raise UnsupportedCheckpointError(f"{name} cannot be run by ONNX Runtime: {text}") from error


def _external_files(path: Path, model: Any) -> list[Path]:
    """Files beside the model that hold its tensors, each checked to lie in its folder."""
    onnx = require("onnx")
    found = []
    sparse = [tensor for graph in graphs_of(model.graph) for tensor in graph.sparse_initializer]
    sparse += [attribute.sparse_tensor for node in _all_nodes(model) for attribute in node.attribute]
    inside = [part for tensor in sparse for part in (tensor.values, tensor.indices)]
    for tensor in (*onnx.external_data_helper._get_all_tensors(model), *inside):
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            continue
        entries = {entry.key: entry.value for entry in tensor.external_data}
        location = entries.get("location", "")
        other = path.parent / location
        if not location or Path(location).name != location or "\\" in location or other.is_symlink():
            raise UnsupportedCheckpointError(
                f"{path.name} keeps its tensor {tensor.name!r} in {location!r}; only plain files in the model's own folder are "
                f"read. Save it as one file with onnx.save(onnx.load('model.onnx'), 'whole.onnx')."
            )
        needed = sum(_bytes_told(path, tensor, entries, key) for key in ("offset", "length"))
        if not other.is_file() or other.stat().st_size < needed:
            size = f"has {other.stat().st_size:,} bytes, fewer than {needed:,}" if other.is_file() else "is not there"
            raise UnsupportedCheckpointError(
                f"{path.name} keeps its tensors in {location}, which {size}; download it too, into the same folder"
            )
        if other not in found:
            found.append(other)
    return found


def _bytes_told(path: Path, tensor: Any, entries: dict[str, str], key: str) -> int:
    """A number of bytes that an external tensor's entry tells; 0 where it is left out."""
    told = entries.get(key, "0")
    if not (told.isascii() and told.isdecimal() and len(told) < 16):
        raise UnsupportedCheckpointError(
            f"{path.name} says of its tensor {tensor.name!r}, kept in {entries['location']}, that its {key} is {told[:40]!r}; "
            f"expected a number of bytes, 0 or more. The file is damaged: download it again, or export it again."
        )
    return int(told)


def _refuse_operators(path: Path, model: Any) -> None:
    """Raise for operators of other makers and for nodes that train."""
    own = {(function.domain, function.name) for function in model.functions}
    problems = []
    for node in _all_nodes(model):
        if node.domain not in OWN_DOMAINS and (node.domain, node.op_type) not in own:
            problems.append(f"the operator {node.domain}.{node.op_type} (node {node.name or node.output[0]!r})")
        trains = any(attribute.name == "training_mode" and attribute.i for attribute in node.attribute)
        if node.op_type == "BatchNormalization" and (trains or len([name for name in node.output if name]) > 1):
            problems.append(f"a BatchNormalization that is still training (node {node.name or node.output[0]!r})")
    if problems:
        shown = list(dict.fromkeys(problems))
        raise UnsupportedCheckpointError(
            f"{path.name} uses {', '.join(shown[:4])}{' and more' if len(shown) > 4 else ''}; only ONNX's own operators run on "
            f"every device. Export the network again, in evaluation mode, with the exporter's standard operators."
        )


def _all_nodes(model: Any) -> list[Any]:
    """Nodes of the graph, of the graphs inside its nodes, and of its functions."""
    waiting = list(model.graph.node) + [node for function in model.functions for node in function.node]
    found = []
    while waiting:
        node = waiting.pop()
        found.append(node)
        for attribute in node.attribute:
            for inner in [attribute.g, *attribute.graphs]:
                waiting += inner.node
    return found


def _signature(path: Path, model: Any, card: ModelCard) -> Signature:
    onnx = require("onnx")
    held = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in held]
    outputs = [value.name for value in model.graph.output]
    if len(inputs) != 1 or len(outputs) != 1:
        raise UnsupportedCheckpointError(
            f"{path.name} has the inputs {', '.join(value.name for value in inputs) or 'none'} and the outputs "
            f"{', '.join(outputs)}, expected one picture and one answer. Cut it down with onnx.utils.extract_model."
        )
    kind = inputs[0].type.tensor_type.elem_type
    dims = [dim.dim_value or None for dim in inputs[0].type.tensor_type.shape.dim]
    if kind != onnx.TensorProto.FLOAT:
        advice = {
            onnx.TensorProto.UINT8: "it prepares the picture itself; export the network without that preprocessing, which the "
            "card states instead",
            onnx.TensorProto.FLOAT16: "it computes in half precision, which a CPU cannot prove; export it in float32",
        }.get(kind, "export it with a float32 picture as its input")
        raise UnsupportedCheckpointError(
            f"{path.name} takes {onnx.TensorProto.DataType.Name(kind).lower()} numbers, expected float32: {advice}"
        )
    declared = model.graph.output[0].type.tensor_type.shape.dim
    if len(declared) == 4:
        _columns(path, outputs[0], np.zeros([dim.dim_value for dim in declared], np.float32))
    session, complaint = open_original(path), ""
    stated_last = dims[3:] == [3] and dims[1:2] != [3]
    for found in (_layout(inputs[0].name, dims, first, card) for first in (not stated_last, stated_last)):
        if found is None:
            continue
        try:
            answer = _run(session, found, np.full((found.batch or 1, *found.size, 3), 0.5, np.float32))
        except UnsupportedCheckpointError as error:
            complaint = complaint or f"; {error}"
            continue
        return dataclasses.replace(found, columns=_columns(path, outputs[0], answer))
    raise UnsupportedCheckpointError(
        f"{path.name} takes an input of shape {[d or '?' for d in dims]}, expected one colour picture, [N, 3, height, width] or "
        f"[N, height, width, 3]{complaint}"
    )


def _layout(name: str, dims: list[int | None], channels_first: bool, card: ModelCard) -> Signature | None:
    """The input read in one of the two layouts; None where its shape does not allow it."""
    channels, size = (1, dims[2:4]) if channels_first else (3, dims[1:3])
    if len(dims) != 4 or dims[channels] not in (3, None):
        return None
    height, width = card.preprocessing.input_size
    return Signature(name, dims[0], channels_first, (size[0] or height, size[1] or width), 0)


def _columns(path: Path, output: str, answer: np.ndarray) -> int:
    if answer.dtype != np.float32:
        raise UnsupportedCheckpointError(
            f"{path.name} answers with {answer.dtype} numbers ({output!r}), expected float32: a class number or a label in "
            f"place of the probabilities. Export the network without its last step."
        )
    if answer.ndim != 2 or answer.shape[1] == 0:
        kind = "a map: a segmentation, or a network without its pooling" if answer.ndim == 4 else "no row of numbers per picture"
        if answer.ndim < 2:
            kind = "without an axis of columns; export the network without the Squeeze or Reshape at its end"
        raise UnsupportedCheckpointError(
            f"{path.name} answers with a tensor of shape {list(answer.shape)} ({output!r}), which is {kind}; expected "
            f"[N, columns], the numbers of a classification or a regression"
        )
    return math.prod(answer.shape[1:])


def _run(session: Any, signature: Signature, images: np.ndarray) -> np.ndarray:
    """Answers to images [batch, H, W, 3], in the layout that the network takes."""
    fed = images.transpose(0, 3, 1, 2) if signature.channels_first else images
    try:
        return np.asarray(session.run(None, {signature.name: np.ascontiguousarray(fed)})[0])
    except Exception as error:  # ONNX Runtime's own classes
        text = " ".join(str(error).split())[:300]
        raise UnsupportedCheckpointError(f"the network does not run on {fed.shape}: {text}") from error
