"""Finding the node at which two graphs of one network part."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402

from fundus_rt.benchmarks.proof import locate as locating  # noqa: E402
from fundus_rt.benchmarks.proof.graph_runs import copy_of  # noqa: E402
from fundus_rt.benchmarks.proof.half_precision import emulated_half  # noqa: E402
from fundus_rt.benchmarks.proof.locate import error_of_range, locate  # noqa: E402
from fundus_rt.models.errors import UsageError  # noqa: E402

SIZE, DEPTH = 16, 6
FRAMES = np.random.default_rng(9).integers(0, 256, (3, SIZE, SIZE, 3), dtype=np.uint8)


def network(half: bool = False) -> Any:
    """A shipped graph of `DEPTH` convolutions, each with a Relu, and one linear layer; float16 with `half`."""
    random = np.random.default_rng(7)
    weights: dict[str, np.ndarray] = {"scale": np.array([1 / 255], np.float32)}
    nodes = [
        helper.make_node("Cast", ["frames"], ["frames_float32"], name="pixels_to_float32", to=TensorProto.FLOAT),
        helper.make_node("ReduceSum", ["frames_float32", "axes"], ["receipt"], name="receipt", keepdims=0),
        helper.make_node("Transpose", ["frames_float32"], ["pixels"], name="layout", perm=[0, 3, 1, 2]),
    ]
    nodes += [helper.make_node("Cast", ["pixels"], ["pixels_half"], to=TensorProto.FLOAT16)] if half else []
    nodes.append(helper.make_node("Mul", ["pixels_half" if half else "pixels", "scale"], ["map_0"], name="scaling"))
    channels = 3
    for depth in range(DEPTH):
        kernel = random.normal(0, 1 / np.sqrt(9 * channels), (8, channels, 3, 3))
        weights[f"kernel_{depth}"] = kernel.astype(np.float32)
        nodes.append(helper.make_node("Conv", [f"map_{depth}", f"kernel_{depth}"], [f"raw_{depth}"], name=f"conv_{depth}"))
        nodes[-1].attribute.append(helper.make_attribute("pads", [1, 1, 1, 1]))
        nodes.append(helper.make_node("Relu", [f"raw_{depth}"], [f"map_{depth + 1}"], name=f"relu_{depth}"))
        channels = 8
    weights["head"] = random.normal(0, 1, (8, 1)).astype(np.float32)
    nodes += [
        helper.make_node("ReduceMean", [f"map_{DEPTH}"], ["means"], name="pool", axes=[2, 3], keepdims=0),
        helper.make_node("MatMul", ["means", "head"], ["age_half" if half else "age"], name="head"),
    ]
    nodes += [helper.make_node("Cast", ["age_half"], ["age"], to=TensorProto.FLOAT)] if half else []
    stored = [numpy_helper.from_array(v.astype(np.float16) if half else v, n) for n, v in weights.items()]
    stored.append(numpy_helper.from_array(np.array([2, 3], np.int64), "axes"))
    made = helper.make_graph(
        nodes,
        "network",
        [helper.make_tensor_value_info("frames", TensorProto.UINT8, ["N", SIZE, SIZE, 3])],
        [
            helper.make_tensor_value_info("age", TensorProto.FLOAT, ["N", 1]),
            helper.make_tensor_value_info("receipt", TensorProto.FLOAT, ["N", SIZE]),
        ],
        stored,
    )
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def with_weights(model: Any, name: str, change: Any) -> Any:
    """A copy with one initializer changed."""
    copied = copy_of(model)
    for tensor in copied.graph.initializer:
        if tensor.name == name:
            tensor.CopyFrom(numpy_helper.from_array(change(numpy_helper.to_array(tensor)), name))
    return copied


def test_a_graph_against_itself_has_nothing_to_find() -> None:
    assert locate(network(), network(), FRAMES, 1e-6) is None


@pytest.mark.parametrize("depth", [0, 3, 5])
@pytest.mark.parametrize("small_parts", [False, True])
def test_other_weights_are_found_at_their_node_and_named(depth: int, small_parts: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if small_parts:
        monkeypatch.setattr(locating, "CHUNK_BYTES", 1)
    name = f"kernel_{depth}"
    other = np.random.default_rng(11).normal(0, 0.1, (8, 3 if depth == 0 else 8, 3, 3)).astype(np.float32)
    found = locate(network(), with_weights(network(), name, lambda kernel: other), FRAMES, 1e-3, threads=1)
    assert found is not None
    assert (found.node, found.operator, found.tensor) == (f"conv_{depth}", "Conv", f"raw_{depth}")
    assert found.weights == (name,)
    assert found.arises_here and found.own_error == pytest.approx(found.error, rel=1e-4)
    assert found.inherited < 1e-6 and found.compared == len(found.trail) == 3 + 2 * depth + 1
    assert name in " ".join(found.sentences()) and found.to_section().plots


def test_the_error_is_that_of_numpy() -> None:
    """The last layer's weights a tenth larger: a tenth of the answers, held against how far these lie apart."""
    found = locate(network(), with_weights(network(), "head", lambda weight: weight * np.float32(1.1)), FRAMES[:1], 1e-3)
    assert found is not None and found.node == "head"
    assert found.error == pytest.approx(0.1, rel=1e-4)  # one answer has no range: its magnitude counts
    right, other = np.array([1.0, 5.0, 3.0]), np.array([1.0, 5.0, 3.5])
    assert error_of_range(right, other) == pytest.approx(0.125)
    assert error_of_range(right, other[:2]) == np.inf
    assert error_of_range(right, np.array([1.0, np.nan, 3.0])) == np.inf
    assert error_of_range(np.zeros(3), np.full(3, 0.25)) == 0.25


def test_an_error_that_grows_from_above_is_told_from_one_that_arises_here() -> None:
    """Each layer is a little off; none by more than the budget, all together by more."""
    examined = network()
    for depth in range(DEPTH):
        examined = with_weights(examined, f"kernel_{depth}", lambda kernel: kernel * np.float32(1.004))
    found = locate(network(), examined, FRAMES, 0.01)
    assert found is not None and not found.arises_here
    assert found.own_error is not None and found.own_error < 0.01 < found.error
    assert 0.004 < found.inherited <= 0.01
    assert "came from above" in " ".join(found.sentences())
    assert found.above == ("conv_0", ("kernel_0",)) and "'conv_0': kernel_0." in " ".join(found.sentences())


def test_casts_between_are_passed_over_and_a_half_precision_overflow_is_found_where_it_arises() -> None:
    """The fourth layer's numbers pass 65,504; the three before it are right to half precision."""
    quiet, half = network(), network(half=True)

    def louder(model: Any) -> Any:
        model = with_weights(model, "scale", np.ones_like)
        return with_weights(model, "kernel_3", lambda kernel: (kernel.astype(np.float16) * np.float16(2e4)).astype(kernel.dtype))

    loud, fitting = louder(half), louder(quiet)
    assert locate(quiet, emulated_half(half), FRAMES, 0.02) is None
    found = locate(fitting, emulated_half(loud), FRAMES, 0.02)
    assert found is not None and (found.node, found.operator) == ("conv_3", "Conv")
    assert found.error == np.inf and found.own_error == np.inf and found.inherited < 0.02
    assert "not finite" in found.sentences()[0]
    own = locate(quiet, half, FRAMES, 1e-7)  # float16 itself: the Cast, which only one side has, belongs to its reader
    assert own is not None and own.own_error is not None


def test_the_very_first_node_can_be_the_wrong_one() -> None:
    examined = copy_of(network())
    examined.graph.node[2].attribute[0].CopyFrom(helper.make_attribute("perm", [0, 3, 2, 1]))
    found = locate(network(), examined, FRAMES, 1e-3)
    assert found is not None and found.node == "layout" and found.arises_here and found.inherited == 0
    doubled = copy_of(network())
    doubled.graph.node[0].op_type, doubled.graph.input[0].type.tensor_type.elem_type = "Neg", TensorProto.FLOAT
    del doubled.graph.node[0].attribute[:]
    found = locate(network(), doubled, FRAMES, 1e-3)
    assert found is not None and found.node == "pixels_to_float32" and found.arises_here


def test_graphs_of_different_networks_are_refused() -> None:
    other = copy_of(network())
    for node in other.graph.node:
        for index, name in enumerate(node.output):
            node.output[index] = name if name in ("age", "receipt") else f"other_{name}"
        for index, name in enumerate(node.input):
            if name.startswith(("map", "raw", "means", "pixels", "frames_")):
                node.input[index] = f"other_{name}"
    with pytest.raises(UsageError, match="share 1 of"):
        locate(network(), other, FRAMES, 1e-3)
