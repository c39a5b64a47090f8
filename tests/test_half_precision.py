"""Half precision on the CPU: against numpy's float16, number by number, where ONNX Runtime itself computes in float32."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402

from fundus_rt.benchmarks.proof import half_precision  # noqa: E402
from fundus_rt.benchmarks.proof.graph_runs import GraphSession  # noqa: E402
from fundus_rt.benchmarks.proof.half_precision import emulated_half, open_emulated, require_rounding  # noqa: E402
from fundus_rt.benchmarks.proof.value_ranges import value_ranges  # noqa: E402
from fundus_rt.models.errors import BackendUnavailableError, UnsupportedCheckpointError  # noqa: E402

LEVELS = ("ORT_DISABLE_ALL", "ORT_ENABLE_BASIC", "ORT_ENABLE_EXTENDED", "ORT_ENABLE_ALL")
WIDTH = 8
ROWS = np.random.default_rng(0).normal(0, 3, (5, WIDTH)).astype(np.float32)


def graph(nodes: list[Any], weights: dict[str, Any], half: bool = True, columns: Any = WIDTH, opset: int = 17) -> Any:
    """A graph from ``frames`` float32 [N, WIDTH] to ``y``; with `half`, float16 between two Casts, ``x`` and ``h``."""
    kind = np.float16 if half else np.float32
    stored = [
        numpy_helper.from_array(np.asarray(v, kind) if np.asarray(v).dtype.kind == "f" else np.asarray(v), name)
        for name, v in weights.items()
    ]
    if half:
        first = helper.make_node("Cast", ["frames"], ["x"], to=TensorProto.FLOAT16)
        nodes = [first, *nodes, helper.make_node("Cast", ["h"], ["y"], to=TensorProto.FLOAT)]
    value = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", size]) for name, size in (("frames", WIDTH), ("y", columns))
    ]
    made = helper.make_graph(nodes, "test", value[:1], value[1:], stored)
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)


def norm(half: bool) -> Any:
    """x / sqrt(mean(x * x)), in single operators."""
    first, last = ("x", "h") if half else ("frames", "y")
    nodes = [
        helper.make_node("Mul", [first, first], ["squares"], name="square"),
        helper.make_node("ReduceMean", ["squares"], ["mean"], axes=[1], name="average"),
        helper.make_node("Sqrt", ["mean"], ["root"]),
        helper.make_node("Div", [first, "root"], [last]),
    ]
    return graph(nodes, {}, half)


def rounded(values: Any) -> Any:
    with np.errstate(over="ignore"):
        return np.asarray(values, np.float32).astype(np.float16)


def norm_in_numpy(rows: np.ndarray) -> np.ndarray:
    """The same with every step in float16; numpy's own mean would add up in float32 and divide before it rounds."""
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        x = rounded(rows)
        squares = x * x
        total = rounded(squares.astype(np.float32).sum(axis=1, keepdims=True))
        return (x / np.sqrt(total / np.float16(rows.shape[1]))).astype(np.float32)


@pytest.mark.parametrize("level", LEVELS)
def test_onnx_runtime_itself_does_not_round_and_the_emulation_does(level: str) -> None:
    thousands = np.full((1, WIDTH), 1000, np.float32)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
    model = norm(half=True)

    def answers(made: Any) -> np.ndarray:
        session = onnxruntime.InferenceSession(made.SerializeToString(), options, providers=["CPUExecutionProvider"])
        return np.asarray(session.run(["y"], {"frames": thousands})[0])

    np.testing.assert_array_equal(answers(model), 1.0)  # the trap
    np.testing.assert_array_equal(norm_in_numpy(thousands), 0.0)
    np.testing.assert_array_equal(answers(emulated_half(model)), 0.0)
    np.testing.assert_array_equal(answers(emulated_half(norm(half=False))), 0.0)
    np.testing.assert_array_equal(open_emulated(model).run(thousands)["y"], 0.0)


def test_a_runtime_that_takes_roundings_out_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    require_rounding()
    monkeypatch.setattr(half_precision.HalfSteps, "round", lambda self, exact, result: self.exact("Identity", [exact], result))
    with pytest.raises(BackendUnavailableError, match="takes roundings"):
        require_rounding()


@given(hnp.arrays(np.float32, (3, WIDTH), elements=st.floats(-70000, 70000, width=32)))
@settings(max_examples=60, deadline=None)
def test_the_decomposed_norm_is_numpys(rows: np.ndarray) -> None:
    found = _norm_session().run(rows)["y"]
    np.testing.assert_array_equal(found, norm_in_numpy(rows))


_SESSIONS: dict[str, GraphSession] = {}


def _norm_session() -> GraphSession:
    if "norm" not in _SESSIONS:
        _SESSIONS["norm"] = open_emulated(norm(half=True), threads=1)
    return _SESSIONS["norm"]


def test_sums_and_products_are_those_of_float16_to_the_bit() -> None:
    random = np.random.default_rng(1)
    rows = np.concatenate([random.normal(0, 10.0**power, (4, WIDTH)) for power in range(-8, 5)]).astype(np.float32)
    weight, bias = rounded(random.normal(0, 30, WIDTH)), rounded(random.normal(0, 1e-3, WIDTH))
    nodes = [helper.make_node("Mul", ["x", "w"], ["a"]), helper.make_node("Add", ["a", "b"], ["h"])]
    found = open_emulated(graph(nodes, {"w": weight, "b": bias})).run(rows)["y"]
    with np.errstate(over="ignore", under="ignore"):
        expected = rounded(rows) * weight + bias
    np.testing.assert_array_equal(found, expected.astype(np.float32))
    assert np.isinf(found).any() and (np.abs(found[:8]) < 2e-3).all()


def test_a_matrix_product_is_added_up_exactly_and_rounded_once() -> None:
    weight = rounded(np.random.default_rng(2).normal(0, 1, (WIDTH, 3)))
    model = graph([helper.make_node("MatMul", ["x", "w"], ["h"])], {"w": weight}, columns=3)
    found = open_emulated(model).run(ROWS)["y"]
    exact = rounded(ROWS).astype(np.float64) @ weight.astype(np.float64)
    apart = np.abs(found - exact)
    assert (apart <= np.spacing(np.abs(exact).astype(np.float16)).astype(np.float64) * 0.51).all()
    np.testing.assert_array_equal(found, found.astype(np.float16).astype(np.float32))


def softmax_in_numpy(rows: np.ndarray, logarithm: bool) -> np.ndarray:
    x = rounded(rows)
    apart = x - x.max(axis=1, keepdims=True)
    powers = rounded(np.exp(apart.astype(np.float32)))
    total = rounded(powers.astype(np.float32).sum(axis=1, keepdims=True))
    found = apart - rounded(np.log(total.astype(np.float32))) if logarithm else powers / total
    return np.asarray(found, np.float32)


def layer_norm_in_numpy(rows: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
    x, count = rounded(rows), np.float16(rows.shape[1])
    with np.errstate(over="ignore", invalid="ignore"):
        mean = rounded(x.astype(np.float32).sum(axis=1, keepdims=True)) / count
        apart = x - mean
        squares = apart * apart
        variance = rounded(squares.astype(np.float32).sum(axis=1, keepdims=True)) / count
        root = np.sqrt(variance + np.float16(1e-5))
        return np.asarray(apart / root * weight + bias, np.float32)


def near(found: np.ndarray, expected: np.ndarray) -> None:
    """Equal but for single roundings to the other side, where two libraries' exponentials differ in float32's last bit."""
    np.testing.assert_allclose(found, expected, rtol=2.0**-10, atol=2.0**-24)
    assert np.mean(found == expected) > 0.8


@pytest.mark.parametrize("kind", ["Softmax", "LogSoftmax"])
def test_softmax_is_numpys_step_by_step(kind: str) -> None:
    rows = np.concatenate([ROWS, 4 * ROWS])
    found = open_emulated(graph([helper.make_node(kind, ["x"], ["h"], axis=-1)], {})).run(rows)["y"]
    near(found, softmax_in_numpy(rows, kind == "LogSoftmax"))


@pytest.mark.parametrize("loud", [1.0, 10.0, 300.0])
def test_layer_normalization_is_numpys_step_by_step_and_overflows(loud: float) -> None:
    random = np.random.default_rng(3)
    weight, bias = rounded(random.normal(1, 0.1, WIDTH)), rounded(random.normal(0, 0.1, WIDTH))
    node = helper.make_node("LayerNormalization", ["x", "w", "b"], ["h"], axis=-1, epsilon=1e-5)
    model = graph([node], {"w": weight, "b": bias})
    rows = loud * ROWS
    expected = layer_norm_in_numpy(rows, weight, bias)
    np.testing.assert_array_equal(open_emulated(model).run(rows)["y"], expected)
    kernel = open_emulated(model, inside=False).run(rows)["y"]  # with float32 inside, nothing overflows at any loudness
    exact = (rows - rows.mean(axis=1, keepdims=True)) / np.sqrt(rows.var(axis=1, keepdims=True) + 1e-5) * weight + bias
    np.testing.assert_allclose(kernel, exact, atol=0.01)
    assert np.allclose(expected, np.broadcast_to(bias, expected.shape)) == (loud > 100)


@pytest.mark.parametrize(("kind", "opset"), [("ReduceMean", 17), ("ReduceMean", 18), ("ReduceSum", 17), ("ReduceL2", 18)])
def test_sums_over_axes_overflow_before_they_are_divided(kind: str, opset: int) -> None:
    listed = opset >= 18 or kind == "ReduceSum"
    node = helper.make_node(kind, ["x", "axes"] if listed else ["x"], ["h"], **({} if listed else {"axes": [1]}))
    model = graph([node], {"axes": np.array([1], np.int64)} if listed else {}, columns=1, opset=opset)
    found = open_emulated(model).run(np.stack([np.full(WIDTH, 3, np.float32), np.full(WIDTH, 20000, np.float32)]))["y"][:, 0]
    expected = {"ReduceMean": [3, np.inf], "ReduceSum": [24, np.inf], "ReduceL2": [np.float16(np.sqrt(72)), np.inf]}[kind]
    np.testing.assert_array_equal(found, np.array(expected, np.float32))


def test_pooling_and_instance_norm_over_maps() -> None:
    maps = rounded(np.random.default_rng(4).normal(2, 1, (2, 3, 4, 4))).astype(np.float32)
    weight, bias = np.array([1.0, 2.0, 0.5], np.float16), np.array([0.0, 0.25, 1.0], np.float16)
    nodes = [
        helper.make_node("InstanceNormalization", ["frames", "w", "b"], ["maps"]),
        helper.make_node("GlobalAveragePool", ["maps"], ["y"]),
    ]
    value = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        for name, shape in (("frames", ["N", 3, 4, 4]), ("maps", ["N", 3, 4, 4]), ("y", ["N", 3, 1, 1]))
    ]
    stored = [numpy_helper.from_array(v.astype(np.float32), n) for n, v in (("w", weight), ("b", bias))]
    model = helper.make_model(
        helper.make_graph(nodes, "maps", value[:1], value[1:], stored), opset_imports=[helper.make_opsetid("", 17)], ir_version=9
    )
    found = open_emulated(model).run(maps)
    assert found["maps"].shape == maps.shape
    rows = maps.reshape(6, 16)
    standard = layer_norm_in_numpy(rows, np.float16(1), np.float16(0)).reshape(2, 3, 16)
    expected = rounded(standard) * weight[:, None] + bias[:, None]
    np.testing.assert_array_equal(found["maps"].reshape(2, 3, 16), expected.astype(np.float32))
    total = rounded(expected.astype(np.float32).sum(axis=2)) / np.float16(16)
    np.testing.assert_allclose(found["y"][..., 0, 0], total.astype(np.float32), rtol=2.0**-10, atol=2.0**-12)


def test_an_fp32_graph_is_judged_with_its_weights_rounded_and_its_receipt_exact() -> None:
    """uint8 frames, a receipt beyond 65,504 that has to stay, and a weight that half precision does not have."""
    nodes = [
        helper.make_node("Cast", ["frames"], ["pixels"], to=TensorProto.FLOAT),
        helper.make_node("ReduceSum", ["pixels", "sides"], ["receipt"], keepdims=0),
        helper.make_node("ReduceMax", ["pixels"], ["top"], axes=[1, 2], keepdims=0),
        helper.make_node("Mul", ["top", "w"], ["age"], name="weigh"),
    ]
    stored = [
        numpy_helper.from_array(np.array([2, 3], np.int64), "sides"),
        numpy_helper.from_array(np.array([1 + 2.0**-12], np.float32), "w"),
    ]
    model = helper.make_model(
        helper.make_graph(
            nodes,
            "shipped",
            [helper.make_tensor_value_info("frames", TensorProto.UINT8, ["N", 4, 128, 3])],
            [
                helper.make_tensor_value_info("age", TensorProto.FLOAT, ["N", 3]),
                helper.make_tensor_value_info("receipt", TensorProto.FLOAT, ["N", 4]),
            ],
            stored,
        ),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=9,
    )
    frames = np.full((1, 4, 128, 3), 255, np.uint8)
    found = open_emulated(model).run(frames)
    np.testing.assert_array_equal(found["receipt"], 128 * 3 * 255)
    np.testing.assert_array_equal(found["age"], 255.0)
    kept = GraphSession(emulated_half(model, keep=["weigh"]), optimised=False).run(frames)["age"]
    np.testing.assert_array_equal(kept, 255.0)  # its weight is still stored in half precision


def test_a_graph_with_branches_is_refused() -> None:
    inner = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["kept"])],
        "b",
        [],
        [helper.make_tensor_value_info("kept", TensorProto.FLOAT16, None)],
    )
    node = helper.make_node("If", ["choice"], ["h"], name="either", then_branch=inner, else_branch=inner)
    with pytest.raises(UnsupportedCheckpointError, match="'either'"):
        emulated_half(graph([node], {"choice": np.array(True)}))


def test_the_largest_numbers_are_found_and_named() -> None:
    rows = np.stack([np.full(WIDTH, 900, np.float32), np.linspace(-200, 100, WIDTH, dtype=np.float32)])
    model = norm(half=True)
    audit = value_ranges(model, rows)
    by_place = {(found.node, found.step): found.largest for found in audit.ranges}
    assert by_place["square", ""] == 810_000
    assert by_place["average", "sum"] == 810_000 * WIDTH
    assert by_place["average", ""] == 810_000
    assert {(found.node, found.step) for found in audit.beyond} == {("square", ""), ("average", "sum"), ("average", "")}
    assert "average (ReduceMean, sum)" in audit.sentences()[1]
    quiet = value_ranges(model, rows / 900 / 1000)
    assert not quiet.beyond and {"square", "average"} <= {found.node for found in quiet.faint}
    near_limit = value_ranges(model, np.full((1, WIDTH), 200, np.float32))
    assert {found.node for found in near_limit.near} == {"square", "average"}
    assert near_limit.to_section().tables[0].rows
