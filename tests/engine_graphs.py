"""Graphs for the engine tests: each breaks one rule of the lint; and one small network in float32, float16 and portable int8."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fundus_rt.models.artifacts import sha256_of_file
from fundus_rt.models.card import CARD_KEY, ModelCard
from fundus_rt.models.engines import EngineKey, EngineProfile
from fundus_rt.runtime.nvidia.tensorrt_library import TensorRTLibrary
from tests.make_models import AGE, tiny_card

SIZE = 32
PRECISIONS = ("fp32", "fp16", "int8")
JETPACK = TensorRTLibrary(None, "tensorrt", "10.3.0.30")
"""TensorRT of JetPack 6, without its module."""


@dataclass(frozen=True)
class Breaking:
    """A graph that breaks one rule of the lint."""

    rule: str
    operator: str
    body: str
    """Nodes in ONNX's text form; ``x`` is the input, ``y`` the output."""
    takes: str = "float[N,3,8,8]"
    gives: str = "float[N,3,8,8]"
    known: str = ""
    """Initialisers in ONNX's text form."""
    opset: int = 17
    rtx: bool | None = True
    """Whether TensorRT-RTX 1.7.1 (parser of TensorRT 11) refuses it as well; None where that is not asked."""
    refused: bool = True

    @property
    def name(self) -> str:
        return f"{self.rule}-{self.operator or self.opset}".replace(" ", "-").lower()

    def model(self) -> Any:
        from onnx import parser

        known = f"<{self.known}>" if self.known else ""
        text = f"""<ir_version: 8, opset_import: ["" : {self.opset}, "own" : 1]>
        g ({self.takes} x) => ({self.gives} y) {known} {{ {self.body} }}"""
        return parser.parse_model(text)

    def shipped(self) -> Any:
        """The same graph with a card, as a file of this package carries one."""
        model = self.model()
        add_card(model, small_card())
        return model


def add_card(model: Any, card: ModelCard) -> None:
    """Put a card into a graph's metadata."""
    entry = model.metadata_props.add()
    entry.key, entry.value = CARD_KEY, card.to_json()


def small_card() -> ModelCard:
    """A card of an age at 32 x 32 pixels."""
    card = tiny_card("small", "none", AGE)
    return dataclasses.replace(card, preprocessing=dataclasses.replace(card.preprocessing, input_size=(SIZE, SIZE)))


def small_network(precision: str) -> Any:
    """A shipped network of two convolutions with the inputs and outputs of the package's contract.

    ``fp16``: half-precision weights and tensors between two casts. ``int8``: signed Q/DQ pairs with zero point 0, a scale for
    each channel of the weights, and biases in float32. The receipt is float32 in each.
    """
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    rng = np.random.default_rng(0)
    nodes, constants = [], {"receipt_axes": np.asarray([2, 3], np.int64)}
    half = precision == "fp16"

    def add(kind: str, *inputs: str, to: str = "", **attributes: Any) -> str:
        name = to or f"{kind.lower()}_{len(nodes)}"
        nodes.append(helper.make_node(kind, list(inputs), [name], name=name, **attributes))
        return name

    def constant(name: str, value: np.ndarray) -> str:
        constants[name] = value.astype(np.float16) if half and value.dtype == np.float32 else value
        return name

    def convolution(source: str, name: str, channels: tuple[int, int], scale: float) -> str:
        weights = rng.normal(0, 0.3 / channels[0] ** 0.5, (channels[1], channels[0], 3, 3)).astype(np.float32)
        kernel = f"{name}_weights"
        if precision == "int8":
            scales = np.abs(weights).max(axis=(1, 2, 3)) / 127
            constant(f"{kernel}_q", np.round(weights / scales[:, None, None, None]).astype(np.int8))
            constant(f"{kernel}_s", scales.astype(np.float32))
            constant(f"{kernel}_z", np.zeros(channels[1], np.int8))
            kernel = add("DequantizeLinear", f"{kernel}_q", f"{kernel}_s", f"{kernel}_z", axis=0)
            pair = (constant(f"{name}_scale", np.asarray(scale, np.float32)), constant(f"{name}_zero", np.asarray(0, np.int8)))
            source = add("DequantizeLinear", add("QuantizeLinear", source, *pair), *pair)
        else:
            constant(kernel, weights)
        bias = constant(f"{name}_bias", rng.normal(0, 0.1, channels[1]).astype(np.float32))
        return add("Relu", add("Conv", source, kernel, bias, strides=[2, 2], pads=[1, 1, 1, 1]))

    def cast(source: str, name: str, kind: int) -> str:
        nodes.append(helper.make_node("Cast", [source], [name], name=name, to=kind))
        return name

    pixels = cast("frames", "pixels", TensorProto.FLOAT)
    add("ReduceSum", pixels, "receipt_axes", to="receipt", keepdims=0)
    tensor = add("Transpose", pixels, perm=[0, 3, 1, 2])
    if half:
        tensor = cast(tensor, "halves", TensorProto.FLOAT16)
    tensor = convolution(convolution(tensor, "first", (3, 8), 2.0), "second", (8, 8), 1.0)
    tensor = add("Flatten", add("GlobalAveragePool", tensor))
    head = constant("head", rng.normal(0, 0.3, (8, 1)).astype(np.float32))
    answer = add("MatMul", tensor, head, to="" if half else "age")
    if half:
        cast(answer, "age", TensorProto.FLOAT)
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("frames", TensorProto.UINT8, ["N", SIZE, SIZE, 3])],
        [
            helper.make_tensor_value_info("age", TensorProto.FLOAT, ["N", 1]),
            helper.make_tensor_value_info("receipt", TensorProto.FLOAT, ["N", SIZE]),
        ],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    add_card(model, small_card())
    onnx.checker.check_model(model, full_check=True)
    return model


QUANTISED = "float s = {0.1}, "
BREAKING = (
    # operators
    Breaking("operator", "Det", "y = Det(x)", gives="float[N,3]"),
    Breaking("operator", "BitShift", 'a = Cast<to=12>(x) b = BitShift<direction="LEFT">(a, a) y = Cast<to=1>(b)'),
    Breaking(
        "operator",
        "QLinearConv",
        "q = QuantizeLinear(x, s, z) c = QLinearConv(q, s, z, w, s, z, s, z) y = DequantizeLinear(c, s, z)",
        known=QUANTISED + "int8 z = {0}, int8[3,3,1,1] w = {1,1,1,1,1,1,1,1,1}",
    ),
    Breaking("operator", "DynamicQuantizeLinear", "a, s, z = DynamicQuantizeLinear(x) y = DequantizeLinear(a, s, z)"),
    Breaking(
        "operator",
        "ConvInteger",
        "q = QuantizeLinear(x, s, z) c = ConvInteger(q, w) y = Cast<to=1>(c)",
        known=QUANTISED + "int8 z = {0}, int8[3,3,1,1] w = {1,1,1,1,1,1,1,1,1}",
    ),
    Breaking("operator", "Unique", "u = Unique(x) y = Identity(u)", gives="float[M]"),
    Breaking("operator", "HannWindow", "w = HannWindow(n) y = Mul(x, w)", known="int64 n = {8}", rtx=False),
    Breaking("operator", "CenterCropPad", "y = CenterCropPad<axes=[2,3]>(x, n)", known="int64[2] n = {8,8}", opset=18),
    Breaking("operator", "Gelu", "y = Gelu(x)", opset=20, rtx=False, refused=False),
    Breaking("operator of another domain", "Special", "y = own.Special(x)"),
    Breaking(
        "size that depends on the numbers",
        "NonZero",
        "n = NonZero(x) y = Cast<to=1>(n)",
        gives="float[4,M]",
        rtx=None,
        refused=False,
    ),
    # types
    Breaking("uint8", "Transpose", "a = Transpose<perm=[0,3,1,2]>(x) y = Cast<to=1>(a)", takes="uint8[N,8,8,3]"),
    Breaking("uint8", "Cast", "a = Cast<to=2>(x) b = Transpose<perm=[0,1,3,2]>(a) y = Cast<to=1>(b)"),
    Breaking("type", "Cast", "a = Cast<to=5>(x) y = Cast<to=1>(a)"),
    Breaking(
        "float64", "Mul", "a = Cast<to=11>(x) b = Mul(a, k) y = Cast<to=1>(b)", known="double k = {2.0}", rtx=False, refused=False
    ),
    Breaking("type", "SequenceConstruct", "q = SequenceConstruct(x, x) y = SequenceAt(q, k)", known="int64 k = {0}"),
    # quantisation
    Breaking(
        "quantisation in uint8",
        "QuantizeLinear",
        "q = QuantizeLinear(x, s, z) y = DequantizeLinear(q, s, z)",
        known=QUANTISED + "uint8 z = {128}",
    ),
    Breaking(
        "quantisation in uint8",
        "QuantizeLinear",
        "q = QuantizeLinear(x, s) y = DequantizeLinear(q, s)",
        known="float s = {0.1}",
        rtx=False,
    ),
    Breaking(
        "quantised bias",
        "DequantizeLinear",
        "c = DequantizeLinear(b, s, z) y = Conv(x, w, c)",
        known=QUANTISED + "int32 z = {0}, int32[3] b = {1,2,3}, float[3,3,1,1] w = {1,0,0,0,1,0,0,0,1}",
    ),
    Breaking(
        "zero point",
        "QuantizeLinear",
        "q = QuantizeLinear(x, s, z) y = DequantizeLinear(q, s, z)",
        known=QUANTISED + "int8 z = {3}",
    ),
    Breaking(
        "scale",
        "QuantizeLinear",
        "q = QuantizeLinear(x, s, z) y = DequantizeLinear(q, s, z)",
        known="float s = {-0.1}, int8 z = {0}",
    ),
    Breaking(
        "scale",
        "QuantizeLinear",
        "s = ReduceMax<keepdims=0>(x) q = QuantizeLinear(x, s, z) y = DequantizeLinear(q, s, z)",
        known="int8 z = {0}",
        rtx=None,
    ),
    # attributes
    Breaking(
        "attribute",
        "Resize",
        'y = Resize<mode="linear", antialias=1>(x, , k)',
        known="float[4] k = {1.0,1.0,2.0,2.0}",
        gives="float[N,3,16,16]",
        opset=18,
    ),
    Breaking(
        "attribute",
        "Resize",
        'y = Resize<mode="linear", coordinate_transformation_mode="tf_crop_and_resize">(x, r, k)',
        known="float[4] k = {1.0,1.0,2.0,2.0}, float[8] r = {0.,0.,0.,0.,1.,1.,1.,1.}",
        gives="float[N,3,16,16]",
    ),
    Breaking(
        "attribute",
        "Resize",
        'y = Resize<mode="linear", keep_aspect_ratio_policy="not_larger", axes=[2,3]>(x, , , k)',
        known="int64[2] k = {16,16}",
        gives="float[N,3,16,16]",
        opset=18,
    ),
    Breaking(
        "attribute",
        "Resize",
        'y = Resize<mode="nearest", nearest_mode="floor", coordinate_transformation_mode="tf_half_pixel_for_nn">(x, r, k)',
        known="float[4] k = {1.0,1.0,2.0,2.0}, float[8] r = {0.,0.,0.,0.,1.,1.,1.,1.}",
        gives="float[N,3,16,16]",
        opset=11,
    ),
    Breaking("attribute", "MaxPool", "y = MaxPool<kernel_shape=[2,2], dilations=[2,2]>(x)", gives="float[N,3,6,6]"),
    Breaking(
        "attribute", "MaxPool", "a, b = MaxPool<kernel_shape=[2,2]>(x) c = Cast<to=1>(b) y = Add(a, c)", gives="float[N,3,7,7]"
    ),
    Breaking("attribute", "LpPool", "y = LpPool<kernel_shape=[2,2], p=3>(x)", gives="float[N,3,7,7]"),
    Breaking(
        "attribute",
        "BatchNormalization",
        "y, m, v = BatchNormalization<training_mode=1>(x, k, k, k, k)",
        known="float[3] k = {1.0,1.0,1.0}",
    ),
    Breaking(
        "attribute",
        "LayerNormalization",
        "a, m = LayerNormalization(x, k) y = Add(a, m)",
        known="float[8] k = {1.,1.,1.,1.,1.,1.,1.,1.}",
    ),
    Breaking("attribute", "LpNormalization", "y = LpNormalization<p=3>(x)"),
    Breaking("attribute", "Dropout", "y = Dropout(x, r, t)", known="float r = {0.5}, bool t = {1}"),
    Breaking(
        "attribute",
        "Pad",
        "y = Pad(x, p, c, a)",
        known="int64[2] p = {1,1}, float c = {0.}, int64[1] a = {3}",
        gives="float[N,3,8,10]",
        opset=18,
        rtx=False,
    ),
    Breaking(
        "attribute",
        "ScatterND",
        'y = ScatterND<reduction="add">(x, i, u)',
        takes="float[4,8]",
        gives="float[4,8]",
        known="int64[1,1] i = {0}, float[1,8] u = {1.,1.,1.,1.,1.,1.,1.,1.}",
    ),
    Breaking("attribute", "Constant", 'k = Constant<value_string="a">() y = Identity(x)'),
    Breaking("attribute", "Einsum", 'y = Einsum<equation="NCHW->NCWH">(x)'),
    Breaking(
        "attribute",
        "GRU",
        'g, y = GRU<hidden_size=1, direction="bidirectional", activations=["Sigmoid","Tanh","Sigmoid","Relu"]>(x, w, r)',
        takes="float[4,N,1]",
        gives="float[2,N,1]",
        known="float[2,3,1] w = {1.,1.,1.,1.,1.,1.}, float[2,3,1] r = {1.,1.,1.,1.,1.,1.}",
    ),
    Breaking(
        "attribute",
        "LSTM",
        "g, h, c = LSTM<hidden_size=1, input_forget=1>(x, w, r) y = Identity(h)",
        takes="float[4,N,1]",
        gives="float[1,N,1]",
        known="float[1,4,1] w = {1.,1.,1.,1.}, float[1,4,1] r = {1.,1.,1.,1.}",
    ),
    Breaking(
        "attribute",
        "DeformConv",
        "y = DeformConv<kernel_shape=[1,1], pads=[0,0,1,1]>(x, w, o)",
        known="float[3,3,1,1] w = {1.,0.,0.,0.,1.,0.,0.,0.,1.}, float[1,2,3,3] o = {" + ",".join(["0."] * 18) + "}",
        takes="float[1,3,2,2]",
        gives="float[1,3,3,3]",
        opset=19,
    ),
    Breaking(
        "attribute",
        "If",
        "m = ReduceMax<keepdims=0>(x) c = Cast<to=9>(m) y = If(c) "
        "<then_branch = t () => (float[N,3,8,8] v) { v = Identity(x) }, else_branch = e () => (float[N,3,8,8] v) { v = Neg(x) }>",
        rtx=False,
    ),
    Breaking(
        "attribute",
        "If",
        "m = ReduceMax<keepdims=0>(x) c = Cast<to=9>(m) y = If(c) "
        "<then_branch = t () => (float[N,3,8,8] v) { v = Identity(x) }, else_branch = e () => (float[N,3] u) "
        "{ u = ReduceMax<keepdims=0, axes=[2,3]>(x) }>",
        rtx=None,
    ),
    Breaking("attribute", "CumSum", "m = ReduceMax<keepdims=0>(x) k = Cast<to=7>(m) y = CumSum(x, k)", rtx=False),
    Breaking(
        "attribute",
        "ReduceMean",
        "m = ReduceMax<keepdims=1>(x, n) f = Reshape(m, o) k = Cast<to=7>(f) y = ReduceMean(x, k)",
        known="int64[4] n = {0,1,2,3}, int64[1] o = {1}",
        opset=18,
        gives="float[a,b,c,d]",
    ),
    Breaking(
        "attribute",
        "Unsqueeze",
        "m = ReduceMax<keepdims=1>(x) f = Reshape(m, o) k = Cast<to=7>(f) y = Unsqueeze(x, k)",
        known="int64[1] o = {1}",
        gives="float[a,b,c,d,e]",
    ),
    # the file
    Breaking("operator set", "", "y = Relu(x)", opset=21, rtx=False),
)


def antialiased() -> Any:
    """A file of this package's form with an operator that no TensorRT reads: Resize with antialias, whose output is ``y``."""
    return next(case for case in BREAKING if "antialias=1" in case.body).shipped()


def saved(path: Path, model: Any) -> Path:
    """Write a graph; returns the path."""
    import onnx

    onnx.save(model, path)
    return path


def key_of(path: Path, library: TensorRTLibrary = JETPACK, profile: EngineProfile | None = None) -> EngineKey:
    """A key for a file, as on a Jetson Orin with JetPack 6."""
    profile = profile or EngineProfile()
    return EngineKey(sha256_of_file(path), library.flavour, library.version, "Orin", "8.7", "12.6", "36.4.3", profile)
