"""How much arithmetic a network is, and how much this machine can do: the floor under every time."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fundus_rt.models.errors import FundusRtError

COUNTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")
"""Operators whose multiplications and additions are counted; all others are small beside them."""
_NOT_UNDERSTOOD = (
    "Einsum",
    "ConvInteger",
    "MatMulInteger",
    "QLinearConv",
    "QLinearMatMul",
    "FusedConv",
    "FusedMatMul",
    "LSTM",
    "GRU",
)
"""Operators that do much arithmetic and are not counted here: with one of them there is no figure."""
SIDE = 2048
"""Rows and columns of the measured matrix product."""

_PRODUCT = """
import json, sys, time
import numpy as np
side, rounds = int(sys.argv[1]), int(sys.argv[2])
rng = np.random.default_rng(0)
a, b = (rng.random((side, side), np.float32) for _ in range(2))
out = np.empty((side, side), np.float32)
best = float("inf")
for _ in range(rounds):
    started = time.perf_counter()
    np.matmul(a, b, out=out)
    best = min(best, time.perf_counter() - started)
print(json.dumps(2 * side**3 / best))
"""


@dataclass(frozen=True)
class Arithmetic:
    """Floating-point operations of one picture."""

    flop: float | None
    """Two for each multiplication with its addition; None where they cannot be counted."""
    reason: str = ""
    """Why not."""


def arithmetic_of(model: Any) -> Arithmetic:
    """Count the operations of `COUNTED` in a graph for a batch of one.

    Args:
        model: `onnx.ModelProto` or the path of an ``.onnx`` file; shapes come from ONNX' own inference with every input's first
            axis set to 1.
    """
    import onnx

    graph_model = onnx.load(str(model), load_external_data=False) if isinstance(model, (str, Path)) else model
    copied = onnx.ModelProto()
    copied.CopyFrom(graph_model)
    for entry in copied.graph.input:
        if entry.type.tensor_type.shape.dim:
            entry.type.tensor_type.shape.dim[0].dim_value = 1
    del copied.graph.value_info[:]
    for entry in copied.graph.output:
        entry.type.tensor_type.ClearField("shape")
    inferred = onnx.shape_inference.infer_shapes(copied, data_prop=True).graph
    shapes = {entry.name: list(entry.dims) for entry in inferred.initializer}
    for entry in (*inferred.value_info, *inferred.input, *inferred.output):
        dims = entry.type.tensor_type.shape.dim
        if all(dim.HasField("dim_value") for dim in dims):
            shapes.setdefault(entry.name, [dim.dim_value for dim in dims])
    flop = 0
    for node in inferred.node:
        if node.op_type in _NOT_UNDERSTOOD:
            return Arithmetic(None, f"the graph has {node.op_type}, which is not counted")
        if node.op_type in COUNTED:
            needed = (node.input[0], node.input[1], node.output[0])
            if any(name not in shapes for name in needed):
                return Arithmetic(None, f"the shapes at {node.op_type} {node.name or node.output[0]} cannot be inferred")
            flop += _operations(node, *(shapes[name] for name in needed))
    return Arithmetic(float(flop)) if flop else Arithmetic(None, "the graph has no convolution and no matrix product")


def ceiling(threads: int, rounds: int = 12) -> float:
    """Floating-point operations a second of a large float32 matrix product by NumPy's BLAS: what this machine can do just now.

    Measured in a process of its own, in which `threads` can be set before BLAS is loaded; the best of `rounds`.

    Raises:
        FundusRtError: that process failed.
    """
    limits = dict.fromkeys(("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS"), str(threads))
    done = subprocess.run(
        [sys.executable, "-c", _PRODUCT, str(SIDE), str(rounds)],
        capture_output=True, text=True, env={**os.environ, **limits}, check=False,
    )  # fmt: skip
    if done.returncode:
        raise FundusRtError(f"the matrix product that measures the ceiling failed: {done.stderr.strip()[-300:]}")
    return float(json.loads(done.stdout))


def _operations(node: Any, first: list[int], second: list[int], out: list[int]) -> int:
    """Operations of one node from the shapes of its first two inputs and its output."""
    if node.op_type == "Conv":
        return 2 * math.prod(out) * math.prod(second[1:])
    if node.op_type == "ConvTranspose":
        return 2 * math.prod(first) * math.prod(second[1:])
    if node.op_type == "Gemm":
        transposed = any(attribute.name == "transA" and attribute.i for attribute in node.attribute)
        return 2 * math.prod(out) * first[0 if transposed else 1]
    return 2 * math.prod(out) * first[-1]
