"""The shipped graph, on networks of one or two nodes whose answers numpy gives in closed form."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import numpy as np
import pytest

from fundus_rt.models import CARD_KEY, ModelCard, load_card
from fundus_rt.models.errors import UnsupportedCheckpointError

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402

from fundus_rt.converters.graphs.graph_cleaning import leanness  # noqa: E402
from fundus_rt.converters.graphs.graph_ending import activation_inside  # noqa: E402
from fundus_rt.converters.graphs.graph_names import rename  # noqa: E402
from fundus_rt.converters.shipping import ship  # noqa: E402

SIZE = 16
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def card_for(color_order: str = "RGB", interpolation: str = "pillow-bilinear", **spec: Any) -> ModelCard:
    """A regression card at 16 pixels with ImageNet's mean and deviation."""
    card = load_card("joir-age")
    changes = {"mean": MEAN, "std": STD, "scale": 1 / 255} | spec
    preprocessing = dataclasses.replace(
        card.preprocessing, input_size=(SIZE, SIZE), color_order=color_order, interpolation=interpolation, **changes
    )
    return dataclasses.replace(card, preprocessing=preprocessing)


def network(nodes: list[Any], weights: dict[str, np.ndarray], channels_first: bool = True, opset: int = 17) -> Any:
    """A model from ``x`` to ``answers`` [N, columns]."""
    dims = ["N", 3, SIZE, SIZE] if channels_first else ["N", SIZE, SIZE, 3]
    graph = helper.make_graph(
        nodes,
        "made by hand",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, dims)],
        [helper.make_tensor_value_info("answers", TensorProto.FLOAT, ["N", 1])],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


def convolution_network(pads: list[int], before: list[Any] = (), bias: bool = True, **layout: Any) -> tuple[Any, Any]:  # type: ignore[assignment]
    """Conv 3 x 3, stride 2, then the mean over the picture; and its weights, for numpy."""
    random = np.random.default_rng(3)
    kernel = random.normal(size=(1, 3, 3, 3)).astype(np.float32)
    weights = {"kernel": kernel, "bias": np.array([0.7], np.float32)}
    start = before[-1].output[0] if before else "x"
    nodes = [
        *before,
        helper.make_node("Conv", [start, "kernel", *(["bias"] if bias else [])], ["map"], pads=pads, strides=[2, 2]),
        helper.make_node("GlobalAveragePool", ["map"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["answers"]),
    ]
    return network(nodes, weights, **layout), (kernel.astype(np.float64), 0.7 if bias else 0.0)


def convolved(images: np.ndarray, kernel: np.ndarray, bias: float, pads: list[int]) -> np.ndarray:
    """What `convolution_network` computes, by its definition, in float64; images are [N, 3, H, W]."""
    padded = np.pad(images, ((0, 0), (0, 0), (pads[0], pads[2]), (pads[1], pads[3])))
    rows, columns = (padded.shape[2] - 3) // 2 + 1, (padded.shape[3] - 3) // 2 + 1
    total = np.zeros((len(images), rows, columns))
    for down in range(3):
        for across in range(3):
            window = padded[:, :, down : down + 2 * rows : 2, across : across + 2 * columns : 2]
            total += np.einsum("nchw,c->nhw", window[:, :, :rows, :columns], kernel[0, :, down, across])
    return (total + bias).mean(axis=(1, 2))[:, None]


def frames(count: int = 3, dtype: Any = np.uint8) -> np.ndarray:
    random = np.random.default_rng(5)
    values = (
        random.integers(0, 256, (count, SIZE, SIZE, 3)) if dtype == np.uint8 else random.uniform(0, 255, (count, SIZE, SIZE, 3))
    )
    return values.astype(dtype)


def normalised(pictures: np.ndarray, color_order: str, mean: Any = MEAN, std: Any = STD, scale: float = 1 / 255) -> np.ndarray:
    """[N, 3, H, W], float64, by the definition."""
    pixels = pictures.astype(np.float64)[..., ::-1] if color_order == "RGB" else pictures.astype(np.float64)
    return ((pixels * scale - np.array(mean)) / np.array(std)).transpose(0, 3, 1, 2)


def run(model: Any, pictures: np.ndarray) -> dict[str, np.ndarray]:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(None, {"frames": pictures}), strict=True))


def kinds(model: Any) -> list[str]:
    return [node.op_type for node in model.graph.node]


@pytest.mark.parametrize("color_order", ["RGB", "BGR"])
@pytest.mark.parametrize("pads", [[0, 0, 0, 0], [1, 1, 1, 1], [0, 0, 1, 1]])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_colours_scale_mean_and_deviation_are_in_the_graph(color_order: str, pads: list[int], bias: bool, dtype: Any) -> None:
    model, (kernel, offset) = convolution_network(pads, bias=bias)
    card = card_for(color_order, "pillow-bilinear" if dtype == np.uint8 else "tf-bilinear")
    model = ship(model, card)
    for count in (1, 2, 3):
        pictures = frames(count, dtype)
        answered = run(model, pictures)
        expected = convolved(normalised(pictures, color_order), kernel, offset, pads)
        np.testing.assert_allclose(answered["age"], expected, rtol=2e-5, atol=2e-5)
        sums = pictures.astype(np.float64).sum(axis=(2, 3))
        if dtype == np.uint8:
            np.testing.assert_array_equal(answered["receipt"], sums)
        else:
            np.testing.assert_allclose(answered["receipt"], sums, rtol=1e-6)


def test_without_padding_nothing_is_left_before_the_convolution_and_with_it_one_addition() -> None:
    model, _ = convolution_network([0, 0, 0, 0])
    assert kinds(ship(model, card_for()))[:4] == ["Cast", "ReduceSum", "Transpose", "Conv"]
    model, _ = convolution_network([1, 1, 1, 1])
    assert kinds(ship(model, card_for()))[:5] == ["Cast", "ReduceSum", "Transpose", "Add", "Conv"]
    model, _ = convolution_network([1, 1, 1, 1])
    assert kinds(ship(model, card_for(mean=(0.0, 0.0, 0.0))))[:4] == ["Cast", "ReduceSum", "Transpose", "Conv"]


def test_the_networks_own_scaling_is_folded_too_and_follows_the_colours() -> None:
    """EfficientNet's start: Rescaling and Normalization on [N, H, W, 3], then the change of layout."""
    own_mean, own_std = np.array([0.4, 0.5, 0.6], np.float32), np.array([0.2, 0.25, 0.3], np.float32)
    before = [
        helper.make_node("Mul", ["x", "by"], ["a"]),
        helper.make_node("Sub", ["a", "own_mean"], ["b"]),
        helper.make_node("Div", ["b", "own_std"], ["c"]),
        helper.make_node("Transpose", ["c"], ["d"], perm=[0, 3, 1, 2]),
    ]
    pads = [0, 0, 1, 1]
    model, (kernel, offset) = convolution_network(pads, before, channels_first=False)
    for name, value in (("by", np.float32(1 / 255)), ("own_mean", own_mean), ("own_std", own_std.reshape(1, 1, 1, 3))):
        model.graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
    model = ship(model, card_for("RGB", mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0), scale=1.0))
    assert kinds(model) == ["Cast", "ReduceSum", "Transpose", "Add", "Conv", "GlobalAveragePool", "Flatten"]
    pictures = frames()
    expected = convolved(normalised(pictures, "RGB", own_mean, own_std), kernel, offset, pads)
    np.testing.assert_allclose(run(model, pictures)["age"], expected, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("channels_first", [True, False])
def test_a_network_that_does_not_begin_with_a_convolution_gets_plain_nodes(channels_first: bool) -> None:
    """The mean over the picture of the second channel, by a weighted sum: colours and affine map have to be right."""
    axes = [2, 3] if channels_first else [1, 2]
    nodes = [
        helper.make_node("ReduceMean", ["x"], ["means"], axes=axes, keepdims=0),
        helper.make_node("MatMul", ["means", "choice"], ["answers"]),
    ]
    model = network(nodes, {"choice": np.array([[1.0], [10.0], [100.0]], np.float32)}, channels_first)
    model = ship(model, card_for("RGB"))
    pictures = frames()
    expected = normalised(pictures, "RGB").mean(axis=(2, 3)) @ np.array([[1.0], [10.0], [100.0]])
    np.testing.assert_allclose(run(model, pictures)["age"], expected, rtol=2e-5, atol=2e-4)


def test_arithmetic_that_varies_over_the_picture_is_kept() -> None:
    ramp = np.linspace(0, 1, SIZE, dtype=np.float32).reshape(1, 1, 1, SIZE)
    before = [helper.make_node("Mul", ["x", "ramp"], ["a"])]
    model, (kernel, offset) = convolution_network([1, 1, 1, 1], before)
    model.graph.initializer.append(numpy_helper.from_array(ramp, "ramp"))
    pictures = frames()
    expected = convolved(normalised(pictures, "RGB") * ramp.astype(np.float64), kernel, offset, [1, 1, 1, 1])
    np.testing.assert_allclose(run(ship(model, card_for()), pictures)["age"], expected, rtol=2e-5, atol=2e-5)


def test_the_form_is_the_shipped_one() -> None:
    model, _ = convolution_network([1, 1, 1, 1])
    model.opset_import.append(helper.make_opsetid("ai.onnx.ml", 2))
    model.graph.node[0].doc_string = "/home/somebody/site-packages/torch/conv.py"
    model = ship(model, card_for())
    assert model.ir_version <= 9
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 17)]
    assert model.graph.node[0].op_type == "Cast" and model.graph.node[0].input[0] == "frames"
    assert [value.name for value in model.graph.input] == ["frames"]
    shape = model.graph.input[0].type.tensor_type
    assert shape.elem_type == TensorProto.UINT8
    assert [dim.dim_param or dim.dim_value for dim in shape.shape.dim] == ["N", SIZE, SIZE, 3]
    assert [value.name for value in model.graph.output] == ["age", "receipt"]
    assert json.loads({p.key: p.value for p in model.metadata_props}[CARD_KEY])["name"] == "joir-age"
    assert b"site-packages" not in model.SerializeToString()


def test_what_does_no_work_is_taken_out() -> None:
    before = [
        helper.make_node("Identity", ["x"], ["a"]),
        helper.make_node("Transpose", ["a"], ["b"], perm=[0, 2, 3, 1]),
        helper.make_node("Transpose", ["b"], ["c"], perm=[0, 3, 1, 2]),
        helper.make_node("Constant", [], ["unused"], value_float=3.0),
        helper.make_node("Neg", ["c"], ["dead"]),
        helper.make_node("Identity", ["c"], ["d"]),
    ]
    model, (kernel, offset) = convolution_network([1, 1, 1, 1], before)
    model.graph.initializer.append(numpy_helper.from_array(np.zeros(1000, np.float32), "dead_weight"))
    model = ship(model, card_for())
    assert kinds(model) == ["Cast", "ReduceSum", "Transpose", "Add", "Conv", "GlobalAveragePool", "Flatten"]
    used = {name for node in model.graph.node for name in node.input}
    assert {tensor.name for tensor in model.graph.initializer} <= used
    pictures = frames()
    expected = convolved(normalised(pictures, "RGB"), kernel, offset, [1, 1, 1, 1])
    np.testing.assert_allclose(run(model, pictures)["age"], expected, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("interpolation", ["pillow-bilinear", "tf-bilinear"])
def test_a_pad_and_a_normalisation_around_the_first_convolution_are_folded(interpolation: str) -> None:
    """Keras' start: ZeroPadding on normalised pixels, a convolution without padding of its own, BatchNormalization."""
    before = [helper.make_node("Pad", ["x", "pads"], ["padded"])]
    model, (kernel, _) = convolution_network([0, 0, 0, 0], before, bias=False)
    model.graph.node[1].output[0] = "convolved"
    norm = helper.make_node("BatchNormalization", ["convolved", "gamma", "beta", "mean", "variance"], ["map"], epsilon=1e-3)
    model.graph.node.insert(2, norm)
    numbers = {"gamma": 1.7, "beta": -0.4, "mean": 0.9, "variance": 2.5}
    for name, number in numbers.items():
        model.graph.initializer.append(numpy_helper.from_array(np.array([number], np.float32), name))
    model.graph.initializer.append(numpy_helper.from_array(np.array([0, 0, 0, 0, 0, 0, 1, 1], np.int64), "pads"))
    model = ship(model, card_for("RGB", interpolation))
    start = ["Cast"] if interpolation == "pillow-bilinear" else []
    assert kinds(model) == [*start, "ReduceSum", "Transpose", "Add", "Conv", "GlobalAveragePool", "Flatten"]
    counts = leanness(model)
    assert not any(counts[name] for name in counts if name not in ("nodes", "initializers"))
    pictures = frames(dtype=np.uint8 if start else np.float32)
    mean = convolved(normalised(pictures, "RGB"), kernel, 0.0, [0, 0, 1, 1])
    expected = (mean - numbers["mean"]) * numbers["gamma"] / np.sqrt(numbers["variance"] + 1e-3) + numbers["beta"]
    np.testing.assert_allclose(run(model, pictures)["age"], expected, rtol=2e-5, atol=2e-5)


def test_a_tensor_that_already_has_the_outputs_name_gives_way() -> None:
    model, (kernel, offset) = convolution_network([0, 0, 0, 0])
    model.graph.node[0].output[0] = model.graph.node[1].input[0] = "age"
    pictures = frames()
    expected = convolved(normalised(pictures, "RGB"), kernel, offset, [0, 0, 0, 0])
    np.testing.assert_allclose(run(ship(model, card_for()), pictures)["age"], expected, rtol=2e-5, atol=2e-5)


def branches(read: str) -> dict[str, Any]:
    """Both branches of an If: the tensor as it is, and its negative."""

    def branch(kind: str, name: str) -> Any:
        made = helper.make_tensor_value_info(name, TensorProto.FLOAT, None)
        return helper.make_graph([helper.make_node(kind, [read], [name])], kind, [], [made])

    return {"then_branch": branch("Identity", "kept"), "else_branch": branch("Neg", "turned")}


@pytest.mark.parametrize("name", ["age", "receipt", "frames", "frames_float32", "prepared_0", "kernel"])
@pytest.mark.parametrize("reads_input", [False, True])
def test_a_branch_reads_what_it_read_whatever_the_name(name: str, reads_input: bool) -> None:
    """An If on a tensor inside, or on the input itself, which has a name that the shipped form uses; the branch is taken."""
    model, (kernel, offset) = convolution_network([0, 0, 0, 0])
    graph = model.graph
    graph.initializer.append(numpy_helper.from_array(np.float32(-1e9), "low"))
    choice = [
        helper.make_node("ReduceMean", ["x"], ["level"], keepdims=0),
        helper.make_node("Greater", ["level", "low"], ["high"]),
    ]
    if reads_input:
        choice.append(helper.make_node("If", ["high"], ["chosen"], name="if", **branches("x")))
        graph.node[0].input[0] = "chosen"
        nodes = [*choice, *graph.node]
        renamed = {"x": name} if name != "kernel" else {}
    else:
        graph.node[1].input[0] = "chosen"
        nodes = [*choice, graph.node[0], helper.make_node("If", ["high"], ["chosen"], **branches("map")), *graph.node[1:]]
        renamed = {"map": name} if name != "kernel" else {"kernel": "frames"}
    del graph.node[:]
    graph.node.extend(nodes)
    rename(graph, renamed)
    pictures = frames()
    expected = convolved(normalised(pictures, "RGB"), kernel, offset, [0, 0, 0, 0])
    shipped = run(ship(model, card_for()), pictures)
    np.testing.assert_allclose(shipped["age"], expected, rtol=2e-5, atol=2e-5)
    np.testing.assert_array_equal(shipped["receipt"], pictures.astype(np.float32).sum(axis=(2, 3)))


@pytest.mark.parametrize("pads", [[0, 0, 0, 0], [1, 1, 1, 1]])
def test_a_convolution_of_single_channels_at_the_start_is_not_folded_into(pads: list[int]) -> None:
    """Depthwise, the same kernel for each colour with a weight of its own: the sum is a plain convolution's."""
    random = np.random.default_rng(4)
    kernel = random.normal(size=(3, 1, 3, 3)).astype(np.float32)
    nodes = [
        helper.make_node("Conv", ["x", "kernel"], ["maps"], group=3, pads=pads, strides=[2, 2]),
        helper.make_node("Conv", ["maps", "ones"], ["map"]),
        helper.make_node("GlobalAveragePool", ["map"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["answers"]),
    ]
    model = ship(network(nodes, {"kernel": kernel, "ones": np.ones((1, 3, 1, 1), np.float32)}), card_for("RGB"))
    pictures = frames()
    expected = convolved(normalised(pictures, "RGB"), kernel.reshape(1, 3, 3, 3).astype(np.float64), 0.0, pads)
    np.testing.assert_allclose(run(model, pictures)["age"], expected, rtol=2e-5, atol=2e-5)


def test_a_graph_that_the_checker_rejects_is_refused() -> None:
    model, _ = convolution_network([0, 0, 0, 0])
    model.graph.node[1].op_type = "GlobalAveragePooling"
    with pytest.raises(UnsupportedCheckpointError, match=r"no valid ONNX graph .*GlobalAveragePooling"):
        ship(model, card_for())


def test_an_answer_with_four_dimensions_is_refused_with_the_reason() -> None:
    model, _ = convolution_network([1, 1, 1, 1])
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("map", TensorProto.FLOAT, ["N", 1, 8, 8]))
    with pytest.raises(UnsupportedCheckpointError, match=r"4 dimensions.*pooling"):
        ship(model, card_for())


def test_other_inputs_outputs_and_opsets_are_refused() -> None:
    model, _ = convolution_network([1, 1, 1, 1])
    with pytest.raises(UnsupportedCheckpointError, match=r"\['N', 3, 16, 16\].*32 x 32"):
        ship(
            model,
            dataclasses.replace(card_for(), preprocessing=dataclasses.replace(card_for().preprocessing, input_size=(32, 32))),
        )
    model, _ = convolution_network([1, 1, 1, 1])
    model.graph.output.append(helper.make_tensor_value_info("pooled", TensorProto.FLOAT, ["N", 1, 1, 1]))
    with pytest.raises(UnsupportedCheckpointError, match="2 outputs"):
        ship(model, card_for())
    model, _ = convolution_network([1, 1, 1, 1], opset=13)
    with pytest.raises(UnsupportedCheckpointError, match="17 to 19"):
        ship(model, card_for())


@pytest.mark.parametrize(("kind", "expected"), [("Sigmoid", "sigmoid"), ("Softmax", "softmax"), ("Relu", "none")])
def test_the_activation_at_the_end_is_seen_through_reshapes(kind: str, expected: str) -> None:
    model, _ = convolution_network([1, 1, 1, 1])
    model.graph.node[-1].output[0] = "flat"
    model.graph.node.append(helper.make_node(kind, ["flat"], ["active"]))
    model.graph.node.append(helper.make_node("Identity", ["active"], ["answers"]))
    assert activation_inside(model, "answers") == expected
