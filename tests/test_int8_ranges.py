"""Ranges of int8: what a graph lets a tensor reach, and the levels that a range becomes."""

from __future__ import annotations

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")

from fundus_rt.converters.precision.int8_graph import BACKENDS, bounds_of, scale_and_zero  # noqa: E402


def test_what_a_graph_lets_a_tensor_reach() -> None:
    model = onnx.parser.parse_model("""<ir_version: 8, opset_import: ["" : 17]>
        g (float[N,3,8,8] x) => (float[N,6,4,4] y) <float low = {0}, float high = {6}> {
          a = Clip(x, low, high)
          b = Relu(x)
          c = Clip(x, , high)
          d = Concat<axis=1>(a, b)
          e = MaxPool<kernel_shape=[2,2], strides=[2,2]>(d)
          f = AveragePool<kernel_shape=[2,2], pads=[1,1,1,1]>(c)
          s = Sigmoid(x)
          y = Identity(e)
        }""")
    inf = float("inf")
    assert bounds_of(model, "abcdefsxy") == {
        "a": (0.0, 6.0), "b": (0.0, inf), "c": (-inf, 6.0), "d": (0.0, inf), "e": (0.0, inf), "f": (-inf, 6.0), "s": (0.0, 1.0),
        "x": (-inf, inf), "y": (-inf, inf),
    }  # fmt: skip


@pytest.mark.parametrize(("least", "most"), [(-0.278, 6.0), (0.0, 6.0), (-3.0, 0.0), (-1e-12, 1e-12), (-5.0, 0.1)])
@pytest.mark.parametrize("backend", BACKENDS)
def test_the_levels_of_a_range_hold_its_ends_and_zero(least: float, most: float, backend: str) -> None:
    scale, zero = scale_and_zero(least, most, backend)
    kind = np.iinfo(zero.dtype)
    assert kind.min <= zero <= kind.max and scale > 0
    held = [(int(level) - int(zero)) * float(scale) for level in (kind.min, kind.max)]
    assert held[0] <= least + 0.51 * scale and held[1] >= most - 0.51 * scale
    assert (zero == 0) or backend == "onnxruntime"
    if backend == "onnxruntime":  # no step is lost: twice as fine as the portable form behind a Relu
        assert scale <= 1.0001 * max((most - least) / 255, 1e-8)
