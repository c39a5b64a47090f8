"""What is read from an ONNX graph for an engine's record: the card, and the precision that it is in."""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator
from typing import Any

from fundus_rt.models.card import CARD_KEY
from fundus_rt.models.errors import BackendUnavailableError, ModelFileError

FLOAT16 = 10
"""Number of float16 in ONNX (`onnx.TensorProto.FLOAT16`)."""
TENSOR, GRAPH, GRAPHS = 4, 5, 10
"""Numbers of ONNX's kinds of attributes that hold constants and graphs (`onnx.AttributeProto.TENSOR` …)."""


def import_onnx() -> Any:
    """The package ``onnx``: of the whole ``convert`` extra the only one that building an engine needs.

    Raises:
        BackendUnavailableError: it is not installed, or cannot be imported.
    """
    try:
        return importlib.import_module("onnx")
    except ImportError as error:
        raise BackendUnavailableError(
            f"building an engine needs the package onnx, which cannot be imported ({error}); pip install onnx"
        ) from error


def card_of(model: Any, name: str) -> dict[str, Any]:
    """The model card that an ONNX file carries.

    Raises:
        ModelFileError: it carries none, so it was not written by this package.
    """
    for entry in model.metadata_props:
        if entry.key == CARD_KEY:
            try:
                return dict(json.loads(entry.value))
            except ValueError as error:
                raise ModelFileError(
                    f"the model card in {name} cannot be read ({error}); convert the checkpoint again"
                ) from error
    raise ModelFileError(
        f"{name} carries no model card ({CARD_KEY}): it was not written by this package. "
        "Convert the original checkpoint with `fundus-rt convert CHECKPOINT --card NAME`."
    )


def precision_of(model: Any) -> str:
    """In what a graph computes: ``int8`` with Q/DQ pairs, ``fp16`` with half-precision numbers, else ``fp32``.

    Precision lives in the graph, and a strongly typed engine computes as the graph says.
    """
    kinds = {node.op_type for node in nodes_of(model.graph)}
    if kinds & {"QuantizeLinear", "DequantizeLinear"}:
        return "int8"
    if any(tensor.data_type == FLOAT16 for tensor in tensors_of(model.graph)) or any(
        attribute.name == "to" and attribute.i == FLOAT16 for node in nodes_of(model.graph) for attribute in node.attribute
    ):
        return "fp16"
    return "fp32"


def graphs_of(graph: Any) -> Iterator[Any]:
    """A graph and every graph inside its nodes."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs) if attribute.type in (GRAPH, GRAPHS) else ():
                yield from graphs_of(inner)


def nodes_of(graph: Any) -> Iterator[Any]:
    """The nodes of a graph and of every graph inside them."""
    for inner in graphs_of(graph):
        yield from inner.node


def tensors_of(graph: Any) -> Iterator[Any]:
    """The constants of a graph: initialisers, and tensors in the attributes of nodes."""
    for inner in graphs_of(graph):
        yield from inner.initializer
        for node in inner.node:
            for attribute in node.attribute:
                if attribute.type == TENSOR:
                    yield attribute.t
