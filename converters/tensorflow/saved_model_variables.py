"""Which variables of a SavedModel its signature reads, told from its two tables of objects without loading it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fundus_rt.converters.backends import require
from fundus_rt.models.errors import UnsupportedCheckpointError

ENDING = "/.ATTRIBUTES/VARIABLE_VALUE"
TABLE = "_CHECKPOINTABLE_OBJECT_GRAPH"
SECOND_COPY = "second copy of a parameter, which the export of Keras 3 writes"


@dataclass(frozen=True)
class Variables:
    """The tensors of a SavedModel, by their place in its table of objects."""

    used: dict[str, tuple[int, ...]]
    """Shapes of those that the signature reads."""
    unused: dict[str, str]
    """Why each of the others is no parameter of the network."""
    unused_shapes: dict[str, tuple[int, ...]]


def accounted_variables(path: Path, graph: Any, signature: str) -> Variables:
    """Account for every tensor in ``variables/`` of a SavedModel.

    Args:
        path: the folder.
        graph: its `MetaGraphDef`.
        signature: the one that is converted.

    Raises:
        UnsupportedCheckpointError: the variables are missing or damaged, the signature reads none, or there are others that
            neither training nor Keras' export explains.
    """
    reader = _reader(path)
    shapes = {key: tuple(shape) for key, shape in reader.get_variable_to_shape_map().items() if key != TABLE}
    keys, names = _places(path, graph, reader)
    bound = _bound_nodes(path, graph, signature)
    used = {keys[node] for node in bound if node in keys}
    missing = [names.get(node, str(node)) for node in bound if node not in keys or keys[node] not in shapes]
    if missing:
        raise UnsupportedCheckpointError(
            f"{path.name}: {len(missing)} variables that its signature {signature!r} reads are not in variables/ "
            f"({', '.join(missing[:4])}); download the folder again, or save the network again"
        )
    if not used:
        raise UnsupportedCheckpointError(
            f"{path.name}: its signature {signature!r} reads no variables, so its parameters are frozen into the graph and "
            f"cannot be accounted for. Save the network itself with tf.saved_model.save or model.export."
        )
    full_names = {keys[node]: name for node, name in names.items() if node in keys}
    unused = {key: _reason(key, full_names.get(key, ""), used, full_names, reader) for key in shapes.keys() - used}
    left = sorted(key for key, reason in unused.items() if not reason)
    if left:
        shown = ", ".join(f"{key.removesuffix(ENDING)} {list(shapes[key])}" for key in left[:4])
        raise UnsupportedCheckpointError(
            f"{path.name}: {len(left)} of its variables are not read by the signature {signature!r} and belong to no optimizer: "
            f"{shown}{' and more' if len(left) > 4 else ''}. The signature may be another network than the one trained; save "
            f"the network with the one signature that is meant."
        )
    plain = {key.removesuffix(ENDING): shapes[key] for key in sorted(used)}
    return Variables(plain, {key.removesuffix(ENDING): reason for key, reason in sorted(unused.items())},
                     {key.removesuffix(ENDING): shapes[key] for key in sorted(unused)})  # fmt: skip


def _reader(path: Path) -> Any:
    prefix = path / "variables" / "variables"
    try:
        if not prefix.with_name("variables.index").is_file():
            raise FileNotFoundError("variables/variables.index is not there")
        return require("tensorflow").train.load_checkpoint(str(prefix))
    except Exception as error:  # TensorFlow's own classes
        raise UnsupportedCheckpointError(
            f"the variables of {path.name} cannot be read ({' '.join(str(error).split())[:160]}); download the whole folder again"
        ) from error


def _places(path: Path, graph: Any, reader: Any) -> tuple[dict[int, str], dict[int, str]]:
    """For every node of the graph's table of objects its key in ``variables/``, and the variable's own name.

    The two tables are walked together from their roots along the names of the children: their numbering may differ.
    """
    proto = require("tensorflow.core.protobuf.trackable_object_graph_pb2")
    try:
        stored = proto.TrackableObjectGraph.FromString(reader.get_tensor(TABLE)).nodes
    except Exception as error:  # TensorFlow's and protobuf's own classes
        raise UnsupportedCheckpointError(
            f"{path.name}: variables/ has no readable table of objects ({str(error)[:100]}); save the network again with "
            f"TensorFlow 2"
        ) from error
    objects = graph.object_graph_def.nodes
    keys: dict[int, str] = {}
    names = {number: node.variable.name for number, node in enumerate(objects) if node.WhichOneof("kind") == "variable"}
    waiting, seen = [(0, 0)], {0}
    while waiting:
        here, there = waiting.pop()
        for attribute in stored[there].attributes:
            if attribute.name == "VARIABLE_VALUE":
                keys[here] = attribute.checkpoint_key
        children = {child.local_name: child.node_id for child in stored[there].children}
        for child in objects[here].children:
            if child.local_name in children and child.node_id not in seen:
                seen.add(child.node_id)
                waiting.append((child.node_id, children[child.local_name]))
    return keys, names


def _bound_nodes(path: Path, graph: Any, signature: str) -> list[int]:
    """Numbers of the variables that a signature's function is bound to."""
    objects = graph.object_graph_def.nodes
    children = {child.local_name: child.node_id for child in objects[0].children}
    signatures = objects[children["signatures"]].children if "signatures" in children else []
    number = {child.local_name: child.node_id for child in signatures}.get(signature)
    if number is None:
        raise UnsupportedCheckpointError(f"{path.name} names no function for its signature {signature!r}; save it again")
    function = graph.object_graph_def.concrete_functions[objects[number].bare_concrete_function.concrete_function_name]
    return [node for node in function.bound_inputs if objects[node].WhichOneof("kind") == "variable"]


def _reason(key: str, name: str, used: set[str], names: dict[str, str], reader: Any) -> str:
    """Why a tensor that the signature does not read is no parameter; empty where nothing explains it."""
    if ".OPTIMIZER_SLOT" in key or key.startswith(("optimizer/", "_optimizer/", "keras_api/optimizer")):
        return "state of the optimizer"
    if key == f"save_counter{ENDING}" or key.startswith("_CHECKPOINTABLE"):
        return "counter of the checkpoint"
    if "seed_generator" in name or "random_generator" in key:
        return "state of a random generator, used in training only"
    if "metrics/" in key:
        return "state of a metric"
    for other in used:
        if name and names.get(other) == name and np.array_equal(reader.get_tensor(other), reader.get_tensor(key)):
            return SECOND_COPY
    return ""
