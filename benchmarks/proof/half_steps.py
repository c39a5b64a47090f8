"""Norms, softmax and sums written out step by step, each step rounded to half precision."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from fundus_rt.converters.graphs.graph_editor import attribute


class HalfSteps:
    """Nodes of a graph that is being written, in order, and the constants that they need."""

    def __init__(self, onnx: Any, opset: int, rounding: bool) -> None:
        self._onnx = onnx
        self._opset = opset
        self._rounding = rounding
        self.nodes: list[Any] = []
        self.constants: list[Any] = []

    def round(self, exact: str, result: str) -> None:
        """`exact` rounded to half precision, as `result`; without rounding, the same."""
        helper, kinds = self._onnx.helper, self._onnx.TensorProto
        if not self._rounding:
            self.nodes.append(helper.make_node("Identity", [exact], [result], name=f"{result}/kept"))
            return
        self.nodes.append(helper.make_node("Cast", [exact], [f"{result}/half"], name=f"{result}/to_half", to=kinds.FLOAT16))
        self.nodes.append(helper.make_node("Cast", [f"{result}/half"], [result], name=f"{result}/from_half", to=kinds.FLOAT))

    def step(self, kind: str, inputs: list[str], result: str, **attributes: Any) -> str:
        """One operator with its result rounded; returns the result's name."""
        exact = self.exact(kind, inputs, f"{result}/exact", **attributes)
        self.round(exact, result)
        return result

    def exact(self, kind: str, inputs: list[str], result: str, **attributes: Any) -> str:
        """One operator whose result needs no rounding; returns its name."""
        self.nodes.append(self._onnx.helper.make_node(kind, inputs, [result], name=result, **attributes))
        return result

    def constant(self, name: str, values: Any) -> str:
        """A constant; returns its name."""
        self.constants.append(self._onnx.numpy_helper.from_array(np.asarray(values), name))
        return name

    def total(self, name: str, axes: str, result: str, keep: int = 1) -> str:
        """Sum over axes, rounded at its end."""
        return self.step("ReduceSum", [name, axes], result, keepdims=keep)

    def largest(self, name: str, axes: list[int], result: str) -> str:
        """Maximum over axes, which are kept with length 1."""
        if self._opset < 18:
            return self.exact("ReduceMax", [name], result, axes=axes, keepdims=1)
        return self.exact("ReduceMax", [name, self.constant(f"{result}/axes", np.array(axes, np.int64))], result, keepdims=1)

    def mean(self, name: str, axes: str, result: str, keep: int = 1) -> str:
        """Mean over axes: the sum is rounded before it is divided by how many there are."""
        total = self.total(name, axes, f"{result}/sum", keep)
        sizes = self.exact("Gather", [self.exact("Shape", [name], f"{result}/shape"), axes], f"{result}/sizes")
        count = self.exact("ReduceProd", [sizes], f"{result}/product", keepdims=0)
        number = self.exact("Cast", [count], f"{result}/count", to=self._onnx.TensorProto.FLOAT)
        return self.step("Div", [total, number], result)

    def standardised(self, name: str, axes: str, epsilon: float, where: str) -> str:
        """``(x - mean) / sqrt(variance + epsilon)`` over axes."""
        apart = self.step("Sub", [name, self.mean(name, axes, f"{where}/mean")], f"{where}/apart")
        squares = self.step("Mul", [apart, apart], f"{where}/squares")
        variance = self.mean(squares, axes, f"{where}/variance")
        small = self.constant(f"{where}/epsilon", np.float32(np.float16(epsilon) if self._rounding else epsilon))
        root = self.step("Sqrt", [self.step("Add", [variance, small], f"{where}/above_zero")], f"{where}/deviation")
        return self.step("Div", [apart, root], f"{where}/standardised")


def _layer_normalization(steps: HalfSteps, node: Any) -> bool:
    axis = attribute(node, "axis", -1)
    if axis >= 0 or any(node.output[1:]):
        return False
    where = node.output[0]
    axes = steps.constant(f"{where}/axes", np.arange(axis, 0, dtype=np.int64))
    found = steps.standardised(node.input[0], axes, attribute(node, "epsilon", 1e-5), where)
    if len(node.input) < 3 or not node.input[2]:
        steps.step("Mul", [found, node.input[1]], where)
        return True
    scaled = steps.step("Mul", [found, node.input[1]], f"{where}/scaled")
    steps.step("Add", [scaled, node.input[2]], where)
    return True


def _instance_normalization(steps: HalfSteps, node: Any) -> bool:
    name, where = node.input[0], node.output[0]
    shape = steps.exact("Shape", [name], f"{where}/shape")
    rows = steps.exact("Reshape", [name, steps.constant(f"{where}/rows", np.array([0, 0, -1], np.int64))], f"{where}/flat")
    axes = steps.constant(f"{where}/axes", np.array([2], np.int64))
    found = steps.standardised(rows, axes, attribute(node, "epsilon", 1e-5), where)
    last = steps.constant(f"{where}/last", np.array([1], np.int64))
    weight = steps.exact("Unsqueeze", [node.input[1], last], f"{where}/weight")
    bias = steps.exact("Unsqueeze", [node.input[2], last], f"{where}/bias")
    moved = steps.step("Add", [steps.step("Mul", [found, weight], f"{where}/scaled"), bias], f"{where}/moved")
    steps.exact("Reshape", [moved, shape], where)
    return True


def _softmax(steps: HalfSteps, node: Any) -> bool:
    name, where = node.input[0], node.output[0]
    axis = attribute(node, "axis", -1)
    axes = steps.constant(f"{where}/axes", np.array([axis], np.int64))
    apart = steps.step("Sub", [name, steps.largest(name, [axis], f"{where}/largest")], f"{where}/apart")
    powers = steps.step("Exp", [apart], f"{where}/powers")
    total = steps.total(powers, axes, f"{where}/sum")
    if node.op_type == "Softmax":
        steps.step("Div", [powers, total], where)
    else:
        steps.step("Sub", [apart, steps.step("Log", [total], f"{where}/logarithm")], where)
    return True


def _reduction(steps: HalfSteps, node: Any) -> bool:
    """ReduceMean, ReduceSum, ReduceSumSquare and ReduceL2 over stated axes."""
    name, where, keep = node.input[0], node.output[0], attribute(node, "keepdims", 1)
    stated = attribute(node, "axes")
    if stated is not None:
        axes = steps.constant(f"{where}/axes", np.array(stated, np.int64))
    elif len(node.input) > 1 and node.input[1]:
        axes = node.input[1]
    else:
        return False
    if node.op_type == "ReduceMean":
        steps.mean(name, axes, where, keep)
    elif node.op_type == "ReduceSum":
        steps.total(name, axes, where, keep)
    else:
        squares = steps.step("Mul", [name, name], f"{where}/squares")
        if node.op_type == "ReduceSumSquare":
            steps.total(squares, axes, where, keep)
        else:
            steps.step("Sqrt", [steps.total(squares, axes, f"{where}/sum", keep)], where)
    return True


def _global_average_pool(steps: HalfSteps, node: Any) -> bool:
    axes = steps.constant(f"{node.output[0]}/axes", np.array([2, 3], np.int64))
    steps.mean(node.input[0], axes, node.output[0])
    return True


DECOMPOSED: dict[str, Callable[[HalfSteps, Any], bool]] = {
    "LayerNormalization": _layer_normalization,
    "InstanceNormalization": _instance_normalization,
    "Softmax": _softmax,
    "LogSoftmax": _softmax,
    "ReduceMean": _reduction,
    "ReduceSum": _reduction,
    "ReduceSumSquare": _reduction,
    "ReduceL2": _reduction,
    "GlobalAveragePool": _global_average_pool,
}
"""Operators that are written out, by name; each adds its steps, or adds nothing and answers False where it cannot."""
