"""ONNX graphs that are held in memory, run on ONNX Runtime's CPU as they are written or as the runtime would run them."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fundus_rt.converters.backends import require
from fundus_rt.runtime.onnx_providers import session_options
from fundus_rt.runtime.onnx_session import import_onnxruntime
from fundus_rt.runtime.session import usable_cores

Answers = dict[str, NDArray[np.float32]]


class GraphSession:
    """A graph on ONNX Runtime's CPU."""

    def __init__(self, model: Any, optimised: bool = True, threads: int | None = None) -> None:
        """Open a graph.

        Args:
            model: an `onnx.ModelProto` in the shipped form: input ``frames``.
            optimised: False runs every node by itself, as it is written, so that each tensor is what its node made.
            threads: of one run; None for all cores that this process may use.
        """
        ort = import_onnxruntime()
        options = session_options(ort, threads or usable_cores())
        if not optimised:
            options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        self._session: Any = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        self.names: list[str] = [output.name for output in self._session.get_outputs()]
        self.inputs: dict[str, str] = {value.name: value.type for value in self._session.get_inputs()}

    def run(self, frames: NDArray[Any]) -> Answers:
        """All outputs for frames [N, H, W, 3], BGR, of the graph's own input type."""
        return self.feed({"frames": frames})

    def feed(self, values: dict[str, NDArray[Any]]) -> Answers:
        """All outputs for values of the inputs by name."""
        return dict(zip(self.names, self._session.run(self.names, values), strict=True))


def copy_of(model: Any) -> Any:
    """Another `onnx.ModelProto` with the same content."""
    copied = require("onnx").ModelProto()
    copied.CopyFrom(model)
    return copied


def with_float_frames(model: Any) -> Any:
    """A copy of a shipped graph that takes its frames as float32 grey levels, which need not be whole numbers."""
    onnx = require("onnx")
    copied = copy_of(model)
    for value in copied.graph.input:
        if value.name == "frames":
            value.type.tensor_type.elem_type = onnx.TensorProto.FLOAT
    return copied


def has_half(model: Any) -> bool:
    """Whether a graph holds or makes tensors of half precision."""
    half = require("onnx").TensorProto.FLOAT16
    stored = any(tensor.data_type == half for tensor in model.graph.initializer)
    return stored or any(
        entry.name == "to" and entry.i == half for node in model.graph.node if node.op_type == "Cast" for entry in node.attribute
    )


def has_integers(model: Any) -> bool:
    """Whether a graph is quantised with QuantizeLinear and DequantizeLinear."""
    return any(node.op_type in ("QuantizeLinear", "DequantizeLinear") for node in model.graph.node)
