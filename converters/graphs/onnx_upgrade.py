"""A foreign ONNX graph brought to the operator set that is shipped."""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np

from fundus_rt.converters.backends import require
from fundus_rt.converters.graphs.graph_cleaning import constant_of, initializers_by_name, new_initializer
from fundus_rt.models.errors import UnsupportedCheckpointError

OPSETS = (17, 19)
"""Oldest and newest operator set that is shipped."""
IR_VERSION = 9
"""Version of the file format: the newest that JetPack 6's runtimes read."""


def upgraded(model: Any, file: str) -> Any:
    """Bring a model to operator set 17 to 19, functions inlined, initializers no inputs, Dropout taken out.

    Args:
        model: an `onnx.ModelProto` with its tensors; may be changed.
        file: its name, for messages.

    Returns:
        The model to go on with.

    Raises:
        UnsupportedCheckpointError: an operator that has no counterpart in these operator sets, named.
    """
    onnx = require("onnx")
    if model.functions:
        model = require("onnx.inliner").inline_local_functions(model)
    graph = model.graph
    held = initializers_by_name(graph)
    inputs = [value for value in graph.input if value.name not in held]
    del graph.input[:]
    graph.input.extend(inputs)
    model.ir_version = IR_VERSION
    _hold_constants(onnx, graph)
    _drop_dropouts(graph, file)
    version = next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
    _set_version(onnx, model, version)
    if OPSETS[0] <= version <= OPSETS[1]:
        return model
    if version > OPSETS[1]:
        _spell_out_gelu(onnx, graph)
        if _is_valid_at(onnx, model, OPSETS[1]):
            return model
    target = OPSETS[0] if version < OPSETS[0] else OPSETS[1]
    del graph.value_info[:]
    try:
        converted = require("onnx.version_converter").convert_version(model, target)
        onnx.checker.check_model(converted)
    except Exception as error:  # the converter's own classes
        text = " ".join(str(error).split())[:240]
        named = re.search(r"op_type:\s*(\w+)|[Ff]or (?:op |operator )?(\w+)", text)
        operator = f"its operator {named[1] or named[2]}" if named else "its graph"
        raise UnsupportedCheckpointError(
            f"{file} is of operator set {version}, and {operator} cannot be brought to {target} ({text}). Export the network "
            f"again with operator set 17."
        ) from error
    if version < 11:
        _keep_old_sampling(onnx, converted.graph)
    converted.ir_version = min(converted.ir_version, IR_VERSION)
    return converted


def _set_version(onnx: Any, model: Any, version: int) -> None:
    del model.opset_import[:]
    model.opset_import.append(onnx.helper.make_opsetid("", version))


def _is_valid_at(onnx: Any, model: Any, version: int) -> bool:
    """Give a model an older operator set where all its nodes exist there as they are, which most do: later sets allowed more
    types of numbers. Whether the meaning stayed is measured with the answers."""
    before = model.opset_import[0].version
    _set_version(onnx, model, version)
    try:
        onnx.checker.check_model(model, full_check=True)
    except Exception:  # the checker's own classes: the converter is asked next, and says what is wrong
        _set_version(onnx, model, before)
        return False
    return True


def _hold_constants(onnx: Any, graph: Any) -> None:
    """Constant nodes with a tensor in them as initializers, which is where sizes are looked for below."""
    kept = []
    for node in graph.node:
        entry = node.attribute[0] if node.op_type == "Constant" else None
        if entry is None or entry.name != "value":
            kept.append(node)
            continue
        tensor = onnx.TensorProto.FromString(entry.t.SerializeToString())
        tensor.name = node.output[0]
        graph.initializer.append(tensor)
    del graph.node[:]
    graph.node.extend(kept)


def _drop_dropouts(graph: Any, file: str) -> None:
    """Dropout does nothing at inference: an Identity in its place, which the cleaning takes out."""
    read = {name for node in graph.node for name in node.input} | {value.name for value in graph.output}
    for node in graph.node:
        if node.op_type != "Dropout":
            continue
        training = constant_of(graph, node.input[2]) if len(node.input) > 2 and node.input[2] else np.asarray(False)
        if training is None or training.any() or any(name in read for name in node.output[1:] if name):
            raise UnsupportedCheckpointError(
                f"{file} has a Dropout that is still training (node {node.name or node.output[0]!r}); export the network in "
                f"evaluation mode"
            )
        node.op_type = "Identity"
        del node.input[1:], node.output[1:], node.attribute[:]


def _spell_out_gelu(onnx: Any, graph: Any) -> None:
    """Gelu, new in operator set 20, in the operators that its own definition gives:
    x / 2 * (1 + erf(x / sqrt(2))), or with tanh(sqrt(2 / pi) * (x + 0.044715 x^3)) in place of erf."""
    nodes = []
    for node in graph.node:
        if node.op_type != "Gelu":
            nodes.append(node)
            continue
        tanh = any(attribute.name == "approximate" and attribute.s == b"tanh" for attribute in node.attribute)
        x, prefix = node.input[0], f"{node.output[0]}_gelu"

        def add(kind: str, name: str, *inputs: Any, before: str = prefix) -> str:
            names = [
                value if isinstance(value, str) else new_initializer(graph, "gelu", np.asarray(value, np.float32))
                for value in inputs
            ]
            nodes.append(onnx.helper.make_node(kind, names, [name if name == "" else f"{before}_{name}"]))
            return f"{before}_{name}"

        if tanh:
            cubed = add("Mul", "cubed", add("Mul", "squared", x, x), x)
            inner = add("Add", "inner", x, add("Mul", "scaled", cubed, 0.044715))
            bent = add("Tanh", "bent", add("Mul", "bowed", inner, math.sqrt(2 / math.pi)))
        else:
            bent = add("Erf", "bent", add("Mul", "narrowed", x, math.sqrt(0.5)))
        half = add("Mul", "half", x, 0.5)
        nodes.append(onnx.helper.make_node("Mul", [half, add("Add", "raised", bent, 1.0)], [node.output[0]]))
    del graph.node[:]
    graph.node.extend(nodes)


def _keep_old_sampling(onnx: Any, graph: Any) -> None:
    """Say of every Resize what Upsample and Resize meant before operator set 11: output pixel x is taken at x / scale, rounded
    down. Since then the default is half a pixel away, and the converter leaves it open."""
    for node in graph.node:
        if node.op_type == "Resize":
            others = [entry for entry in node.attribute if entry.name not in ("coordinate_transformation_mode", "nearest_mode")]
            del node.attribute[:]
            node.attribute.extend(others)
            node.attribute.append(onnx.helper.make_attribute("coordinate_transformation_mode", "asymmetric"))
            node.attribute.append(onnx.helper.make_attribute("nearest_mode", "floor"))
