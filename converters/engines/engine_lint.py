"""What TensorRT 10.3, the oldest that Jetsons with JetPack 6 have, would refuse of a graph; found before a build, all at once.

The library names one fault at a time, in its own terms, after minutes. Here every operator, type and attribute is looked at
first. What TensorRT-RTX's parser refuses as well is tested against it; the rest rests on NVIDIA's published tables.

Not among the rules: whole numbers of 64 bits, large ones included, which TensorRT reads since 9.0 (exporters write 2^63 - 1 for
"to the end" in every Slice).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fundus_rt.converters.engines.engine_facts import graphs_of, import_onnx, nodes_of
from fundus_rt.converters.engines.lint_finding import LINTED_VERSION, LintFinding
from fundus_rt.converters.engines.lint_nodes import node_findings
from fundus_rt.converters.engines.lint_types import TypedGraph, type_findings
from fundus_rt.converters.engines.operator_table import DATA_DEPENDENT, DOUBTFUL, READ, REMEDIES

__all__ = ["LINTED_VERSION", "LintFinding", "lint_onnx"]

OPSETS = (9, 20)
"""Operator sets of ONNX that the parser of 10.3 reads."""
IR_VERSION = 10
"""IR version of the ONNX release (1.16) that 10.3's parser was built with; newer ones are read with a warning."""
LIBRARY_DOMAINS = ("", "ai.onnx")
EXTERNAL = 1
"""`onnx.TensorProto.EXTERNAL`."""


def lint_onnx(model: Any) -> list[LintFinding]:
    """Everything in a graph that TensorRT 10.3 refuses, or that is known to go wrong there.

    Args:
        model: an `onnx.ModelProto`, or the path of an ``.onnx`` file.

    Returns:
        Findings in the order of the graph; empty for a graph that 10.3 is expected to read.
    """
    if isinstance(model, (str, Path)):
        model = import_onnx().load(str(model), load_external_data=False)
    typed = TypedGraph(model)
    findings = [*_version_findings(model), *_storage_findings(model), *type_findings(typed)]
    functions = {(function.domain, function.name) for function in model.functions}
    nodes = [*nodes_of(model.graph), *(node for function in model.functions for node in function.node)]
    for node in nodes:
        refused = list(_operator_findings(node, functions))
        findings += refused or node_findings(node, typed)
    return findings


def _version_findings(model: Any) -> Iterator[LintFinding]:
    for entry in model.opset_import:
        if entry.domain in LIBRARY_DOMAINS and not OPSETS[0] <= entry.version <= OPSETS[1]:
            yield LintFinding(
                "operator set", "", "", f"the graph is of operator set {entry.version}, read are {OPSETS[0]} to {OPSETS[1]}",
                "export it with operator set 17 to 19",
            )  # fmt: skip
    if model.ir_version > IR_VERSION:
        yield LintFinding(
            "IR version", "", "", f"the file is of ONNX's IR version {model.ir_version}, the parser knows up to {IR_VERSION}",
            "set ir_version to 9, as `fundus-rt convert` does", refused=False,
        )  # fmt: skip


def _storage_findings(model: Any) -> Iterator[LintFinding]:
    for graph in graphs_of(model.graph):
        for tensor in graph.initializer:
            if tensor.data_location == EXTERNAL:
                yield LintFinding(
                    "external data", tensor.name, "", "its numbers lie in another file",
                    "save the model as one file: onnx.save(onnx.load(PATH), PATH)",
                )  # fmt: skip
        if graph.sparse_initializer:
            yield LintFinding("sparse constant", graph.name, "", "it has sparse constants", "write them as ordinary ones")


def _operator_findings(node: Any, functions: set[tuple[str, str]]) -> Iterator[LintFinding]:
    """Whether an operator is read at all."""
    kind = node.op_type
    if (node.domain, kind) in functions:  # its nodes are looked at by themselves
        return
    if node.domain not in LIBRARY_DOMAINS:
        yield LintFinding.of(
            node, "operator of another domain", f"it belongs to {node.domain!r}, which needs a plug-in",
            "export the network with ONNX's own operators",
        )  # fmt: skip
    elif kind in DOUBTFUL:
        problem = "TensorRT 10.0 does not read this operator and 10.6 does; whether 10.3 does is not documented"
        yield LintFinding.of(node, "operator", problem, REMEDIES[kind], refused=False)
    elif kind not in READ:
        remedy = REMEDIES.get(kind, "export the network without it")
        yield LintFinding.of(node, "operator", "this operator is not read", remedy)
    elif kind in DATA_DEPENDENT:
        yield LintFinding.of(
            node, "size that depends on the numbers", "how large its answer is depends on the numbers in it",
            "leave it to the program that reads the network's answers", refused=False,
        )  # fmt: skip
