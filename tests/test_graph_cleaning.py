"""Cleaning of graphs made by hand: every answer as before in ONNX Runtime without its own optimisations, nothing idle left."""

from __future__ import annotations

import collections

import numpy as np
import pytest

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from onnx import TensorProto, helper, numpy_helper

from fundus_rt.converters.graphs.graph_cleaning import clean_graph, leanness
from fundus_rt.models.errors import UnsupportedCheckpointError
from tests.graph_builder import CHANNELS, COUNTS, Builder, answers, cleaned


def test_a_graph_that_runs_in_a_circle_is_refused() -> None:
    nodes = [
        helper.make_node("Add", ["x", "b"], ["a"]),
        helper.make_node("Relu", ["a"], ["b"], name="second"),
        helper.make_node("Neg", ["a"], ["y"]),
    ]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 3]) for name in ("x", "y")]
    model = helper.make_model(helper.make_graph(nodes, "circle", ends[:1], ends[1:]))
    with pytest.raises(UnsupportedCheckpointError, match="runs in a circle"):
        clean_graph(model)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("group", [1, 2, 4])
def test_arithmetic_behind_a_convolution_is_folded(bias: bool, group: int) -> None:
    build = Builder()
    x = build.norm(build.conv("x", bias, group))
    x = build.node("Add", build.node("Mul", x, build.weight(1, CHANNELS, 1, 1)), build.weight(CHANNELS, 1, 1))
    x = build.node("Div", build.node("Sub", x, build.weight(1)), build.weight(positive=True))
    assert cleaned(build.model(build.node("Relu", x))) == {"Conv": 1, "Relu": 1, "Flatten": 1}


def test_a_transposed_convolution_is_folded_group_by_group() -> None:
    build = Builder()
    kernel = build.weight(CHANNELS, 3, 3, 3)
    x = build.norm(build.node("ConvTranspose", "x", kernel, group=2), 6)
    assert cleaned(build.model(x)) == {"ConvTranspose": 1, "Flatten": 1}


def test_a_head_of_products_and_normalisation_is_folded() -> None:
    """Linear, BatchNorm, ReLU, Linear as torch writes it, and MatMul with Add as tf2onnx writes it."""
    build = Builder()
    x = build.node("Flatten", build.node("GlobalAveragePool", "x"))
    x = build.node("Gemm", x, build.weight(7, CHANNELS), build.weight(7), transB=1, beta=0.5)
    x = build.node("Relu", build.norm(x, 7))
    x = build.norm(build.node("Gemm", x, build.weight(7, 5), alpha=0.7), 5)
    x = build.node("Add", build.node("MatMul", build.node("Tanh", x), build.weight(5, 3)), build.weight(3))
    assert cleaned(build.model(x)) == {"GlobalAveragePool": 1, "Gemm": 3, "Relu": 1, "Tanh": 1, "Flatten": 1}


def test_a_product_of_higher_rank_keeps_one_sum() -> None:
    build = Builder()
    x = build.node("MatMul", build.node("Transpose", "x", perm=[0, 2, 3, 1]), build.weight(CHANNELS, 6))
    x = build.node("Mul", build.node("Add", x, build.weight(6)), build.weight(6))
    assert cleaned(build.model(x)) == {"Transpose": 1, "MatMul": 1, "Add": 1, "Flatten": 1}


def test_a_factor_behind_a_transpose_is_folded_too() -> None:
    """ConvNeXt: the layer scale is applied after the change of layout, the product whose weights can take it before."""
    build = Builder()
    x = build.node("MatMul", build.node("Transpose", "x", perm=[0, 3, 2, 1]), build.weight(CHANNELS, 6))
    x = build.node("Transpose", build.node("Add", x, build.weight(6)), perm=[0, 3, 2, 1])
    x = build.node("Mul", x, build.weight(6, 1, 1))
    assert cleaned(build.model(x)) == {"Transpose": 2, "MatMul": 1, "Add": 1, "Flatten": 1}


def test_weights_that_two_convolutions_share_are_folded_for_one_only() -> None:
    build = Builder()
    kernel, bias = build.weight(CHANNELS, CHANNELS, 1, 1), build.weight(CHANNELS)
    first = build.norm(build.node("Conv", "x", kernel, bias))
    second = build.node("Relu", build.node("Conv", first, kernel, bias))
    third = build.node("Mul", second, build.node("Reshape", bias, build.integers(1, CHANNELS, 1, 1)))
    assert cleaned(build.model(third)) == {"Conv": 2, "Relu": 1, "Mul": 1, "Flatten": 1}


def test_what_something_else_reads_too_is_not_folded() -> None:
    """The convolution's own answer is needed: by another node in one graph, as an output in the other."""
    build = Builder()
    plain = build.conv("x")
    assert cleaned(build.model(build.node("Relu", build.norm(plain)), plain))["BatchNormalization"] == 1
    build = Builder()
    plain = build.conv("x")
    build.outputs = [plain]
    model = build.model(build.norm(plain))
    assert cleaned(model)["BatchNormalization"] == 1
    assert [output.name for output in model.graph.output] == ["answer0", plain]


def test_arithmetic_that_is_no_map_per_channel_stays() -> None:
    build = Builder()
    over_the_picture = build.node("Mul", build.conv("x"), build.weight(1, 1, 8, 8))
    along_the_width = build.node("Add", build.conv(over_the_picture), build.weight(8))
    from_a_constant = build.node("Sub", build.weight(CHANNELS, 1, 1), build.conv(along_the_width))
    computed = build.node("Mul", build.conv(from_a_constant), build.node("GlobalAveragePool", "x"))
    kinds = cleaned(build.model(build.node("Tanh", computed)))
    assert (kinds["Conv"], kinds["Mul"], kinds["Add"], kinds["Sub"]) == (4, 2, 1, 1)


def test_a_normalisation_before_an_activation_stays_one_node() -> None:
    """As in DenseNet, behind a Concat; the factor and shift behind it go into it."""
    build = Builder()
    joined = build.node("Concat", "x", build.conv("x"), axis=1)
    norm = build.norm(joined, 2 * CHANNELS)
    scaled = build.node("Add", build.node("Mul", norm, build.weight(1)), build.weight(2 * CHANNELS, 1, 1))
    assert cleaned(build.model(build.node("Relu", scaled))) == {
        "Conv": 1, "Concat": 1, "BatchNormalization": 1, "Relu": 1, "Flatten": 1,
    }  # fmt: skip


def test_transposes_cancel_through_elementwise_operators_and_joins() -> None:
    build = Builder()
    there = {"perm": [0, 2, 3, 1]}
    first, second = build.node("Transpose", "x", **there), build.node("Transpose", build.conv("x"), **there)
    total = build.node("Add", build.node("Mul", build.node("Relu", first), build.weight(CHANNELS)), build.node("Sigmoid", second))
    joined = build.node("Concat", total, build.node("Transpose", build.conv("x"), **there), axis=3)
    back = build.node(
        "Transpose", build.node("Clip", joined, build.constant(np.float32(-1)), build.constant(np.float32(2))), perm=[0, 3, 1, 2]
    )
    kinds = cleaned(build.model(build.node("Tanh", back)))
    assert kinds["Transpose"] == 0 and kinds["Concat"] == 1


def test_transposes_that_do_not_cancel_become_one() -> None:
    build = Builder()
    x = build.node("Transpose", build.node("Transpose", "x", perm=[0, 2, 3, 1]), perm=[0, 2, 1, 3])
    assert cleaned(build.model(x)) == {"Transpose": 1, "Flatten": 1}


def test_pads_go_into_convolutions_and_poolings_only_where_exact() -> None:
    build = Builder()
    pads, small = build.integers(0, 0, 1, 2, 0, 0, 1, 0), build.integers(0, 0, 1, 0, 0, 0, 0, 1)
    pool = {"kernel_shape": [3, 3], "strides": [2, 2]}
    exact = [
        build.conv(build.node("Pad", "x", pads), pads=[1, 0, 0, 1]),
        build.node("MaxPool", build.node("Pad", build.node("Relu", "x"), pads), **pool),
        build.node("AveragePool", build.node("Pad", "x", pads), **pool),
        build.node("AveragePool", build.node("Pad", "x", small), count_include_pad=1, pads=[1, 1, 1, 1], **pool),
    ]
    assert cleaned(build.model(*exact))["Pad"] == 0
    build = Builder()
    pads, half = build.integers(0, 0, 1, 2, 0, 0, 1, 0), build.constant(np.float32(0.5))
    small = build.integers(0, 0, 1, 0, 0, 0, 0, 1)
    other = [
        build.node("MaxPool", build.node("Pad", "x", pads), **pool),
        build.node(
            "AveragePool", build.node("Pad", build.node("Neg", "x"), small), count_include_pad=0, pads=[1, 1, 1, 1], **pool
        ),
        build.conv(build.node("Pad", build.node("Abs", "x"), pads, half)),
        build.conv(build.node("Pad", build.node("Exp", "x"), pads, mode="reflect")),
        build.conv(build.node("Pad", build.node("Sin", "x"), build.integers(0, 0, -1, 0, 0, 0, 0, 0))),
        build.node("AveragePool", build.node("Pad", build.node("Cos", "x"), pads), ceil_mode=1, **pool),
    ]
    wide = build.node("Pad", build.node("Sigmoid", "x"), build.integers(0, 0, 3, 3, 0, 0, 3, 3))
    other.append(build.node("MaxPool", wide, **pool))  # runtimes take no padding as wide as the window
    assert cleaned(build.model(*other))["Pad"] == 7


def test_arithmetic_on_shapes_becomes_constants_that_follow_the_batch() -> None:
    """Windows of 4 x 4 as TorchScript writes them; one reshape would be wrong if the traced batch were frozen."""
    build = Builder()
    shape = build.node("Shape", "x")
    batch, height = (build.node("Gather", shape, build.integers(axis)) for axis in (0, 2))
    four, one = build.integers(4), build.integers(1)
    windows = build.node("Div", height, four)
    padding = build.node("Mod", build.node("Sub", four, build.node("Mod", height, four)), four)
    target = build.node("Concat", batch, build.integers(CHANNELS), windows, four, windows, four, axis=0)
    cut = build.node("Transpose", build.node("Reshape", "x", target), perm=[0, 2, 4, 3, 5, 1])
    count = build.node("Mul", build.node("Mul", batch, windows), windows)
    cut = build.node("Reshape", cut, build.node("Concat", count, build.integers(16), build.integers(CHANNELS), axis=0))
    none = build.node("Concat", build.integers(0, 0, 0, 0), padding, build.integers(0), axis=0)
    cut = build.node("Pad", cut, none)
    cut = build.node("Slice", cut, build.integers(0), build.node("Mul", height, build.integers(2)), one)
    kinds = cleaned(build.model(cut))
    assert kinds == {"Reshape": 2, "Transpose": 1}


def test_a_class_token_needs_no_shape() -> None:
    """ViT's start: a token repeated over the batch, joined to the patches, position embeddings on top."""
    build = Builder()
    tokens = build.node("Transpose", build.node("Reshape", build.conv("x"), build.integers(0, CHANNELS, 64)), perm=[0, 2, 1])
    batch = build.node("Slice", build.node("Shape", "x"), build.integers(0), build.integers(1))
    shape = build.node("Concat", batch, build.integers(2, CHANNELS), axis=0)
    joined = build.node("Concat", build.node("Expand", build.weight(1, 2, CHANNELS), shape), tokens, axis=1)
    summed = build.node("Add", joined, build.weight(1, 66, CHANNELS))
    assert cleaned(build.model(summed)) == {"Conv": 1, "Reshape": 1, "Transpose": 1, "Pad": 1, "Add": 1, "Flatten": 1}


def test_nodes_that_answer_what_they_are_given_go_and_equal_ones_become_one() -> None:
    build = Builder()
    x = build.node("Cast", build.node("Identity", build.node("Dropout", "x")), to=TensorProto.FLOAT)
    x = build.node("Transpose", build.node("Concat", x, axis=1), perm=[0, 1, 2, 3])
    x = build.node("Pad", x, build.integers(*[0] * 8))
    twice = build.node("Add", build.node("Sigmoid", x), build.node("Sigmoid", x))
    model = build.model(twice, twice)
    model.graph.initializer.extend(numpy_helper.from_array(np.ones((3, 3), np.float32), f"dead{i}") for i in range(3))
    assert cleaned(model) == {"Sigmoid": 1, "Add": 1, "Flatten": 2}
    assert not model.graph.initializer


def test_equal_weights_are_kept_once() -> None:
    build = Builder()
    mask = np.random.default_rng(1).normal(size=(1, 1, 8, 8)).astype(np.float32)
    first = build.node("Relu", build.node("Add", "x", build.constant(mask)))
    second = build.node("Tanh", build.node("Add", first, build.constant(mask.copy())))
    model = build.model(build.node("Add", second, build.constant(mask + 1)))
    cleaned(model)
    assert len(model.graph.initializer) == 2


def test_dropout_that_is_told_to_drop_and_random_numbers_stay() -> None:
    build = Builder()
    ratio, training = build.constant(np.float32(0.5)), build.constant(np.asarray(True))
    drops = [build.node("Dropout", "x", ratio, training) for _ in range(2)]
    noises = [build.node("RandomNormalLike", "x") for _ in range(2)]
    model = build.model(build.node("Add", *drops), build.node("Add", *noises))
    clean_graph(model)
    kinds = collections.Counter(node.op_type for node in model.graph.node)
    assert kinds["Dropout"] == kinds["RandomNormalLike"] == 2


def test_quantised_weights_stay_small() -> None:
    build = Builder()
    kernel = build.constant(np.random.default_rng(0).integers(-128, 127, (CHANNELS, CHANNELS, 3, 3)).astype(np.int8))
    scale, zero = build.constant(np.full(CHANNELS, 0.01, np.float32)), build.constant(np.zeros(CHANNELS, np.int8))
    model = build.model(build.node("Conv", "x", build.node("DequantizeLinear", kernel, scale, zero, axis=0)))
    before = answers(model, 2)
    clean_graph(model)
    assert [node.op_type for node in model.graph.node] == ["DequantizeLinear", "Conv", "Flatten"]
    np.testing.assert_array_equal(answers(model, 2)["answer0"], before["answer0"])


def test_graphs_inside_nodes_keep_what_they_read() -> None:
    """An If whose branches read tensors from outside, one of them through an Identity and one from a weight."""
    build = Builder()
    same = build.node("Identity", build.conv("x"))
    weight = build.weight(1, CHANNELS, 1, 1)
    total = build.node("ReduceSum", "x", keepdims=0)
    condition = build.node("Greater", total, build.constant(np.float32(0)))
    branches = [
        helper.make_graph(
            [helper.make_node(kind, [same, weight], [f"inside_{kind}"])],
            kind,
            [],
            [helper.make_tensor_value_info(f"inside_{kind}", TensorProto.FLOAT, None)],
        )
        for kind in ("Add", "Mul")
    ]
    model = build.model(build.node("If", condition, then_branch=branches[0], else_branch=branches[1]))
    before = {batch: answers(model, batch)["answer0"] for batch in (1, 2, 5)}
    clean_graph(model)
    for batch, expected in before.items():
        np.testing.assert_allclose(answers(model, batch)["answer0"], expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("opset", [11, 13, 17, 18])
def test_operator_sets_in_which_axes_and_pads_are_written_differently(opset: int) -> None:
    build = Builder(opset=opset)
    axes = [2, 3]
    if opset >= 18:
        means = build.node("ReduceMean", "x", build.integers(*axes), keepdims=1)
    else:
        means = build.node("ReduceMean", "x", axes=axes, keepdims=1)
    if opset >= 13:
        flat = build.node("Squeeze", means, build.integers(*axes))
        wide = build.node("Unsqueeze", flat, build.integers(*axes))
    else:
        flat = build.node("Squeeze", means, axes=axes)
        wide = build.node("Unsqueeze", flat, axes=axes)
    assert cleaned(build.model(build.node("Tanh", wide))) == {"GlobalAveragePool": 1, "Tanh": 1, "Flatten": 1}


def test_counts_of_what_is_not_lean() -> None:
    """The counts see what cleaning takes out."""
    build = Builder()
    x = build.norm(build.conv("x"))
    x = build.node("Relu", build.node("Transpose", build.node("Identity", x), perm=[0, 2, 3, 1]))
    x = build.node("Transpose", x, perm=[0, 3, 1, 2])
    x = build.node("Reshape", x, build.node("Shape", build.conv("x")))
    x = build.node("Add", x, build.node("Neg", build.weight(1)))
    model = build.model(x)
    model.graph.initializer.append(numpy_helper.from_array(np.ones(3, np.float32), "dead"))
    counts = leanness(model)
    assert [counts[name] for name in COUNTS] == [1, 1, 1, 1, 1, 1]
    cleaned(model)


def test_sums_with_zero_and_products_with_one_go() -> None:
    build = Builder()
    zeros, ones = build.constant(np.zeros((CHANNELS, 1, 1), np.float32)), build.constant(np.ones(1, np.float32))
    x = build.node("Mul", ones, build.node("Add", build.node("Sub", "x", zeros), zeros))
    x = build.node("Sub", zeros, build.node("Div", x, ones))
    wider = build.node("Add", build.node("GlobalAveragePool", "x"), build.constant(np.zeros((1, 1, 8, 8), np.float32)))
    kinds = cleaned(build.model(build.node("Add", build.node("Tanh", x), wider)))
    assert kinds == {"Sub": 1, "Tanh": 1, "GlobalAveragePool": 1, "Add": 2, "Flatten": 1}
