"""What really ran: which heavy layers a backend computed in int8, by their share of the multiplications."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fundus_rt.converters.backends import require
from fundus_rt.converters.precision.heavy_nodes import multiplications
from fundus_rt.models.errors import ParityError
from fundus_rt.runtime.onnx_providers import session_options
from fundus_rt.runtime.onnx_session import import_onnxruntime
from fundus_rt.runtime.openvino_session import import_openvino, shared_core

LEAST_SHARE = 0.95
"""Of the multiplications that a recipe puts into int8, what a backend has to compute so."""
INT8_KINDS = ("QLinearConv", "ConvInteger", "QGemm", "QLinearMatMul", "MatMulInteger", "MatMulIntegerToFloat")
"""ONNX Runtime's operators that multiply whole numbers."""


@dataclass(frozen=True)
class Audit:
    """Heavy layers of a file, and which of them ran in int8."""

    backend: str
    work: dict[str, int]
    """Multiplications for one picture by node."""
    in_int8: frozenset[str]
    """Nodes that ran in int8."""

    @property
    def share(self) -> float:
        """Of all multiplications, 0 to 1."""
        return self.share_of(self.work)

    def share_of(self, nodes: Collection[str]) -> float:
        """Of the multiplications of some nodes, 0 to 1; 0 where none of theirs are known."""
        total = sum(self.work.get(name, 0) for name in nodes)
        ran = sum(self.work.get(name, 0) for name in nodes if name in self.in_int8)
        return ran / total if total else 0.0

    def require(self, nodes: Collection[str], least: float = LEAST_SHARE) -> None:
        """Refuse a file whose int8 is only written and not computed.

        Args:
            nodes: those that the recipe puts into int8.
            least: share of their multiplications, 0 to 1.

        Raises:
            ParityError: less of it ran in int8; with the largest layers that did not.
        """
        if self.share_of(nodes) >= least:
            return
        missed = sorted((n for n in nodes if n in self.work and n not in self.in_int8), key=lambda name: -self.work[name])
        raise ParityError(
            f"{self.backend} computed {100 * self.share_of(nodes):.1f} % of the multiplications in int8 that the file puts into "
            f"int8, expected {100 * least:g} %; in float32 stayed {', '.join(missed[:5])}{' and others' * (len(missed) > 5)}. "
            "Write the file for this backend: fundus-rt quantize --backend"
        )


def audited(path: Path, backend: str) -> Audit:
    """Look at the graph that a backend makes of a file and would run.

    Args:
        path: an ``.onnx`` file with Q/DQ pairs.
        backend: ``onnxruntime`` or ``openvino``.
    """
    work = multiplications(require("onnx").load(str(path)))
    found = _onnxruntime_layers(path) if backend == "onnxruntime" else _openvino_layers(path)
    return Audit(backend, work, frozenset(name for name in found if name in work))


def _onnxruntime_layers(path: Path) -> set[str]:
    """Names of the nodes that are whole-number products in the graph that ONNX Runtime optimised for this processor."""
    ort, onnx = import_onnxruntime(), require("onnx")
    with tempfile.TemporaryDirectory() as folder:
        options = session_options(ort)
        options.log_severity_level = 4
        options.optimized_model_filepath = str(Path(folder) / "optimised.onnx")
        ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        graph: Any = onnx.load(options.optimized_model_filepath).graph
    return {re.sub(r"(_token_\d+|_nchwc|_nhwc)+$", "", node.name) for node in graph.node if node.op_type in INT8_KINDS}


def _openvino_layers(path: Path) -> set[str]:
    """Names of the layers that OpenVINO's runtime model computes on whole numbers of 8 bits."""
    settings = {"INFERENCE_PRECISION_HINT": "f32", "EXECUTION_MODE_HINT": "ACCURACY", "PERFORMANCE_HINT": "LATENCY"}
    compiled = shared_core(import_openvino()).compile_model(str(path), "CPU", settings)
    found: set[str] = set()
    for layer in compiled.get_runtime_model().get_ops():
        facts = layer.get_rt_info()
        kind, precision = (str(facts[key].astype(str)) for key in ("layerType", "runtimePrecision"))
        if kind in ("Convolution", "FullyConnected", "MatMul") and precision in ("i8", "u8"):
            layers = str(facts["originalLayersNames"].astype(str)).split(",")
            found |= {re.sub(r"(/WithoutBiases|/DequantizationMultiply)+$", "", name) for name in layers}
    return found
