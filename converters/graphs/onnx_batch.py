"""A graph exported for one picture at a time, made to take any number of them, and proved to."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import numpy as np

from fundus_rt.converters.backends import require
from fundus_rt.converters.graphs.graph_cleaning import constant_of, new_initializer
from fundus_rt.models.errors import UnsupportedCheckpointError

AGREEMENT = 1e-4
"""Largest difference between a picture's answers alone and in a batch, as a share of the largest answer: rounding of sums in
another order, far below what a mixed-up batch makes."""


def any_batch(model: Any, input_shape: tuple[int, ...], file: str, alone: Callable[[np.ndarray], np.ndarray]) -> Any:
    """Make a model take any number of pictures, and prove it on batches of 1, 2 and 3.

    Sizes that the exporter wrote for its example batch are rewritten where the static shapes say what they are: first
    entries of Reshape, target sizes of Resize, constants that are joined to every picture.

    Args:
        model: as `upgraded` gives it; changed in place.
        input_shape: of the input as the exporter saw it, its own batch size (1 where it took any) first.
        file: its name, for messages.
        alone: the original's answers [n, columns], each picture by itself or in the original's own batch size, to pictures
            [n, ...] in the layout of the input.

    Returns:
        The model, its input [N, ...] and its output [N, columns].

    Raises:
        UnsupportedCheckpointError: it does not run on several pictures, or then answers otherwise; with the node's name.
    """
    onnx = require("onnx")
    graph = model.graph
    pictures = _trial_pictures(input_shape)
    expected = alone(pictures)
    _settle_constants(onnx, model)
    shapes = _static_shapes(onnx, model, input_shape)
    del graph.value_info[:]
    _set_shape(onnx, graph.input[0], ["N", *input_shape[1:]])
    _set_shape(onnx, graph.output[0], ["N", expected.shape[1]])
    if not _batch_problem(model, pictures, expected):
        return model
    changed = _free_the_batch(onnx, graph, shapes, input_shape[0])
    problem = _batch_problem(model, pictures, expected)
    if problem:
        raise UnsupportedCheckpointError(
            f"{file} was exported for {input_shape[0]} picture{'s' if input_shape[0] > 1 else ''} at a time and cannot be made "
            f"to take any number: {problem} ({changed} sizes in it were rewritten). Export it again with its first axis "
            f"dynamic."
        )
    return model


def _settle_constants(onnx: Any, model: Any) -> None:
    """Compute what does not depend on the picture, sizes above all, and hold it as initializers."""
    from fundus_rt.converters.graphs.foreign_onnx import open_original

    graph = model.graph
    on_pictures = {graph.input[0].name}
    settled, kept = [], []
    for node in graph.node:
        inner = any(entry.HasField("g") or entry.graphs for entry in node.attribute)
        random = not node.input and node.op_type != "Constant"
        if on_pictures.intersection(node.input) or inner or random:
            on_pictures.update(node.output)
            kept.append(node)
        else:
            settled.append(node)
    read = {name for node in kept for name in node.input}
    wanted = [name for node in settled for name in node.output if name in read]
    if not wanted:
        return
    part = onnx.ModelProto()
    part.CopyFrom(model)
    del part.graph.node[:], part.graph.input[:], part.graph.output[:]
    part.graph.node.extend(settled)
    part.graph.output.extend(onnx.ValueInfoProto(name=name) for name in wanted)
    values = open_original(part.SerializeToString()).run(None, {})
    del graph.node[:]
    graph.node.extend(kept)
    for name, value in zip(wanted, values, strict=True):
        graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(value), name))


def _static_shapes(onnx: Any, model: Any, input_shape: tuple[int, ...]) -> dict[str, list[int]]:
    """Shape of every tensor whose lengths are all known when the input has the exporter's batch size."""
    _set_shape(onnx, model.graph.input[0], list(input_shape))
    inferred = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    shapes = {}
    for value in (*inferred.value_info, *inferred.input, *inferred.output):
        dims = value.type.tensor_type.shape.dim
        if all(dim.HasField("dim_value") for dim in dims):
            shapes[value.name] = [dim.dim_value for dim in dims]
    return shapes | {tensor.name: list(tensor.dims) for tensor in model.graph.initializer}


def _free_the_batch(onnx: Any, graph: Any, shapes: dict[str, list[int]], batch: int) -> int:
    """Rewrite every size in which the batch is written down; returns how many were."""
    changed, nodes = 0, []
    on_pictures = {graph.input[0].name}
    for node in graph.node:
        if not on_pictures.intersection(node.input):
            nodes.append(node)
            continue
        on_pictures.update(node.output)
        if node.op_type == "Reshape":
            changed += _free_reshape(graph, node, shapes.get(node.input[0]))
        elif node.op_type == "Resize" and len(node.input) == 4 and node.input[3]:
            sizes = constant_of(graph, node.input[3])
            if sizes is not None and len(sizes) > 2 and sizes[0] == batch:
                rest = new_initializer(graph, "resized", sizes[1:].astype(np.int64))
                nodes += _length_then(onnx, node.input[0], rest, f"{node.output[0]}_sizes")
                node.input[3], changed = f"{node.output[0]}_sizes", changed + 1
        elif node.op_type == "Concat" and _axis(node) != 0:
            changed += _free_joined(onnx, graph, nodes, node, on_pictures)
        nodes.append(node)
    del graph.node[:]
    graph.node.extend(nodes)
    return changed


def _free_reshape(graph: Any, node: Any, shape: list[int] | None) -> int:
    """Take the batch out of a Reshape's constant: 0 (as before) where the first length stays, else -1 (what is left)."""
    target = constant_of(graph, node.input[1])
    if target is None or shape is None or target.ndim != 1 or len(target) == 0 or target[0] in (0, -1):
        return 0
    if any(attribute.name == "allowzero" and attribute.i for attribute in node.attribute):
        return 0
    full = [shape[axis] if length == 0 else int(length) for axis, length in enumerate(target)]
    known = math.prod(length for length in full if length != -1)
    full = [math.prod(shape) // max(1, known) if length == -1 else length for length in full]
    stays = full[0] == shape[0]
    target = np.asarray([0, *target[1:]] if stays else [-1, *full[1:]])
    node.input[1] = new_initializer(graph, "reshaped", target.astype(np.int64))
    return 1


def _free_joined(onnx: Any, graph: Any, nodes: list[Any], node: Any, on_pictures: set[str]) -> int:
    """Repeat a constant that is joined to every picture (a class token) for as many pictures as there are."""
    changed = 0
    for index, name in enumerate(node.input):
        value = constant_of(graph, name) if name not in on_pictures else None
        if value is None or value.ndim < 2 or len(value) == 0 or np.any(value != value[:1]):
            continue
        like = next(other for other in node.input if other in on_pictures)
        first = new_initializer(graph, "joined", value[:1])
        ones = new_initializer(graph, "ones", np.ones(value.ndim - 1, np.int64))
        target = f"{node.output[0]}_joined_{index}"
        nodes += _length_then(onnx, like, ones, f"{target}_shape")
        nodes.append(onnx.helper.make_node("Expand", [first, f"{target}_shape"], [target]))
        node.input[index], changed = target, changed + 1
    return changed


def _length_then(onnx: Any, like: str, rest: str, name: str) -> list[Any]:
    """Nodes that give the first length of a tensor, followed by constants."""
    return [
        onnx.helper.make_node("Shape", [like], [f"{name}_first"], start=0, end=1),
        onnx.helper.make_node("Concat", [f"{name}_first", rest], [name], axis=0),
    ]


def _batch_problem(model: Any, pictures: np.ndarray, expected: np.ndarray) -> str:
    """Why a model does not answer for 1, 2 and 3 pictures at once as the original does for each; empty when it does."""
    from fundus_rt.converters.graphs.foreign_onnx import open_original

    limit = AGREEMENT * max(float(np.abs(expected).max()), 1e-6)
    try:
        session = open_original(model.SerializeToString())
    except UnsupportedCheckpointError as error:
        return str(error)
    name = session.get_inputs()[0].name
    for count in (1, 2, 3):
        try:
            answer = np.asarray(session.run(None, {name: pictures[:count]})[0])
        except Exception as error:  # ONNX Runtime's own classes
            text = " ".join(str(error).split())
            node = re.search(r"running (\w+) node\. Name:'([^']*)'", text)
            where = f"the node {node[2] or 'without a name'} ({node[1]}) fails" if node else "it fails"
            return f"{where} on {count} pictures: {text[-160:]}"
        if answer.shape != expected[:count].shape or not np.abs(answer - expected[:count]).max() <= limit:
            return f"the answers to {count} pictures at once are not those to each alone"
    return ""


def _trial_pictures(input_shape: tuple[int, ...]) -> np.ndarray:
    """Three different pictures: uniform noise on a level of its own for each, values -1 to 2 as after normalisation."""
    random = np.random.default_rng(0)
    levels = np.asarray([-0.5, 0.5, 1.5]).reshape(3, 1, 1, 1)
    return np.asarray(levels + random.uniform(-0.5, 0.5, (3, *input_shape[1:])), np.float32)


def _set_shape(onnx: Any, value: Any, dims: list[Any]) -> None:
    value.CopyFrom(onnx.helper.make_tensor_value_info(value.name, value.type.tensor_type.elem_type, dims))


def _axis(node: Any) -> int:
    return next((int(attribute.i) for attribute in node.attribute if attribute.name == "axis"), 0)
