"""Which ONNX operators TensorRT 10.3's parser reads.

Sources: the table "Supported ONNX Operators" of NVIDIA's parser (github.com/onnx/onnx-tensorrt, docs/operators.md) as of TensorRT
10.6, less what its changelog says 10.4 to 10.6 added; the static checks of the parser's own source of 10.0 and 10.6 agree with
it for every operator below.
"""

from __future__ import annotations

_READ = """
Abs Acos Acosh Add And ArgMax ArgMin Asin Asinh Atan Atanh AveragePool BatchNormalization Cast CastLike Ceil Celu Clip Concat
Constant ConstantOfShape Conv ConvTranspose Cos Cosh CumSum DeformConv DepthToSpace DequantizeLinear Div Dropout Einsum Elu
Equal Erf Exp Expand EyeLike Flatten Floor GRU Gather GatherElements GatherND Gemm GlobalAveragePool GlobalLpPool
GlobalMaxPool Greater GreaterOrEqual GridSample GroupNormalization HardSigmoid HardSwish Hardmax Identity If ImageScaler
InstanceNormalization IsInf IsNaN LRN LSTM LayerNormalization LeakyRelu Less LessOrEqual Log LogSoftmax Loop LpNormalization
LpPool MatMul Max MaxPool Mean MeanVarianceNormalization Min Mod Mul Neg NonMaxSuppression NonZero Not OneHot Or PRelu Pad
ParametricSoftplus Pow QuantizeLinear RNN RandomNormal RandomNormalLike RandomUniform RandomUniformLike Range Reciprocal
ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum ReduceSumSquare Relu
Reshape Resize ReverseSequence RoiAlign Round ScaledTanh Scan Scatter ScatterElements ScatterND Selu Shape Shrink Sigmoid
Sign Sin Sinh Size Slice Softmax Softplus Softsign SpaceToDepth Split Sqrt Squeeze Sub Sum Tan Tanh ThresholdedRelu Tile
TopK Transpose Trilu Unsqueeze Upsample Where Xor
"""
READ = frozenset(_READ.split())
"""Operators of ONNX's own domain that the parser of 10.3 reads."""
DOUBTFUL = frozenset(("Gelu", "Mish"))
"""Absent from the parser of 10.0 and present in that of 10.6; its changelog does not say since when."""
DATA_DEPENDENT = frozenset(("NonZero", "NonMaxSuppression"))
"""Read, but how large their answer is depends on the numbers in it, so no buffer can be sized before."""
REMEDIES = {
    "ConvInteger": "quantise with QuantizeLinear and DequantizeLinear pairs around the convolution",
    "MatMulInteger": "quantise with QuantizeLinear and DequantizeLinear pairs around the product",
    "QLinearConv": "quantise in the QDQ format, not in the operator format",
    "QLinearMatMul": "quantise in the QDQ format, not in the operator format",
    "DynamicQuantizeLinear": "quantise statically, with scales from calibration photographs",
    "STFT": "this operator came with TensorRT 10.5; compute it before the network",
    "BlackmanWindow": "this operator came with TensorRT 10.4; give the window as a constant",
    "HammingWindow": "this operator came with TensorRT 10.4; give the window as a constant",
    "HannWindow": "this operator came with TensorRT 10.4; give the window as a constant",
    "Gelu": "export with operator set 17 to 19, where it is written as Erf and products",
    "Mish": "write it as x * Tanh(Softplus(x))",
    "AffineGrid": "compute the grid before the network and give it as a constant",
    "Compress": "choose with Gather and constant positions",
    "Unique": "compute it after the network",
}
"""What to do about an operator that is not read; where nothing is said, export the network without it."""
