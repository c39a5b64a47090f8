"""Which operators a SavedModel's graph may hold without being trusted: those that image networks are made of."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from fundus_rt.converters.backends import require

_ARITHMETIC = """
    Abs AccumulateNV2 Acos Acosh Add AddN AddV2 ApproximateEqual Asin Asinh Atan Atan2 Atanh Bitcast BitwiseAnd BitwiseOr
    BitwiseXor Cast Ceil ClipByValue Cos Cosh Cumprod Cumsum Digamma Div DivNoNan Elu EluGrad Equal Erf Erfc Erfinv Exp Expm1
    Floor FloorDiv FloorMod Greater GreaterEqual Inv Invert IsFinite IsInf IsNan LeakyRelu LeakyReluGrad LeftShift Less
    LessEqual Lgamma Log Log1p LogSoftmax LogicalAnd LogicalNot LogicalOr Maximum Minimum Mod Mul MulNoNan Neg NotEqual Pow
    RealDiv Reciprocal ReciprocalGrad Relu Relu6 Relu6Grad ReluGrad RightShift Rint Round Rsqrt RsqrtGrad Select SelectV2 Selu
    SeluGrad Sigmoid SigmoidGrad Sign Sin Sinh Softmax Softplus SoftplusGrad Softsign SoftsignGrad Sqrt SqrtGrad Square
    SquaredDifference Sub Tan Tanh TanhGrad TruncateDiv TruncateMod Xdivy Xlog1py Xlogy
"""
_NETWORK = """
    AvgPool AvgPool3D AvgPoolGrad BatchMatMul BatchMatMulV2 BatchMatMulV3 BatchNormWithGlobalNormalization BiasAdd BiasAddGrad
    BiasAddV1 Conv Conv2D Conv2DBackpropFilter Conv2DBackpropInput Conv3D Conv3DBackpropInputV2 DepthwiseConv2dNative
    DepthwiseConv2dNativeBackpropFilter DepthwiseConv2dNativeBackpropInput Dilation2D Einsum FakeQuantWithMinMaxArgs
    FakeQuantWithMinMaxVars FakeQuantWithMinMaxVarsPerChannel FusedBatchNorm FusedBatchNormGradV3 FusedBatchNormV2
    FusedBatchNormV3 L2Loss LRN MatMul MaxPool MaxPool3D MaxPoolGrad MaxPoolV2 MaxPoolWithArgmax QuantizeAndDequantizeV2
    QuantizeAndDequantizeV3 QuantizeAndDequantizeV4 SoftmaxCrossEntropyWithLogits SparseSoftmaxCrossEntropyWithLogits
"""
_ARRAY = """
    BatchToSpace BatchToSpaceND BroadcastArgs BroadcastGradientArgs BroadcastTo Concat ConcatOffset ConcatV2 Const
    ConjugateTranspose DataFormatDimMap DataFormatVecPermute DepthToSpace Diag DiagPart DynamicPartition DynamicStitch
    EnsureShape ExpandDims ExtractImagePatches Fill Gather GatherNd GatherV2 Identity IdentityN InvertPermutation LinSpace
    MatrixBandPart MatrixDiagPartV3 MatrixDiagV3 MatrixSetDiagV3 MirrorPad OneHot OnesLike Pack Pad PadV2 Placeholder
    PlaceholderWithDefault PreventGradient Range Rank Reshape Reverse ReverseV2 Roll ScatterNd Shape ShapeN Size Slice Snapshot
    SpaceToBatch SpaceToBatchND SpaceToDepth Split SplitV Squeeze StopGradient StridedSlice StridedSliceGrad
    TensorListElementShape TensorListFromTensor TensorListGetItem TensorListLength TensorListPopBack TensorListPushBack
    TensorListReserve TensorListSetItem TensorListStack EmptyTensorList TensorScatterAdd TensorScatterUpdate Tile Transpose
    UnravelIndex Unpack Where ZerosLike
"""
_REDUCTION = """
    All Any ArgMax ArgMin Bincount CumulativeLogsumexp DenseBincount EuclideanNorm InTopKV2 Max Mean Min NthElement Prod
    SegmentMax SegmentMean SegmentSum Sum TopK TopKV2 UnsortedSegmentMax UnsortedSegmentSum
"""
_PICTURE = """
    AdjustContrastv2 AdjustHue AdjustSaturation CropAndResize HSVToRGB ImageProjectiveTransformV2 ImageProjectiveTransformV3
    RGBToHSV ResizeArea ResizeBicubic ResizeBilinear ResizeBilinearGrad ResizeNearestNeighbor ResizeNearestNeighborGrad
    ScaleAndTranslate
"""
_FLOW = """
    Assert Case CheckNumerics CheckNumericsV2 ControlTrigger Enter Exit FakeParam If LoopCond Merge NextIteration NoOp
    PartitionedCall StatefulPartitionedCall StatelessCase StatelessIf StatelessWhile Switch While
"""
_VARIABLES = """
    AssignAddVariableOp AssignSubVariableOp AssignVariableOp DisableCopyOnRead ReadVariableOp ResourceGather ResourceGatherNd
    VarHandleOp VarIsInitializedOp VariableShape
"""
_RANDOM = """
    Multinomial RandomGamma RandomShuffle RandomStandardNormal RandomUniform RandomUniformInt RngReadAndSkip RngSkip
    StatefulRandomBinomial StatefulStandardNormalV2 StatefulTruncatedNormal StatefulUniform StatefulUniformFullInt
    StatefulUniformInt StatelessRandomGetAlg StatelessRandomGetKeyCounter StatelessRandomGetKeyCounterAlg StatelessRandomNormal
    StatelessRandomNormalV2 StatelessRandomUniform StatelessRandomUniformInt StatelessRandomUniformIntV2
    StatelessRandomUniformV2 StatelessTruncatedNormal StatelessTruncatedNormalV2 StatelessRandomUniformFullInt
    StatelessRandomUniformFullIntV2 TruncatedNormal
"""
ALLOWED = frozenset(" ".join((_ARITHMETIC, _NETWORK, _ARRAY, _REDUCTION, _PICTURE, _FLOW, _VARIABLES, _RANDOM)).split())
"""Operators that compute on numbers or call a function of the same graph. None takes the name of a file, a host or a table;
the random numbers and the assignments are those of the training functions that Keras saves beside the signature."""
SAVING = frozenset({"MergeV2Checkpoints", "RestoreV2", "SaveV2", "ShardedFilename", "StaticRegexFullMatch", "StringJoin"})
"""What the two functions of every SavedModel use that write and read its own variables."""


def foreign_operators(graph: Any) -> Iterator[str]:
    """Operators outside of what an image network needs, with the function that each is in, and files beside the variables.

    Args:
        graph: a `MetaGraphDef`; it is not loaded.
    """
    registry = require("tensorflow.python.framework.op_def_registry")
    functions = {function.signature.name: function.node_def for function in graph.graph_def.library.function}
    own = _saving_functions(graph, functions)
    places = [("the graph itself", graph.graph_def.node, False)]
    places += [(name, nodes, name in own) for name, nodes in functions.items()]
    for place, nodes, saves in places:
        for node in nodes:
            if node.op in ALLOWED or (saves and node.op in SAVING):
                continue
            known = registry.get(node.op) is not None
            if known or node.op not in functions:
                yield f"{node.op} (in {place}{'' if known else ', not an operator of TensorFlow'})"
    for node in graph.object_graph_def.nodes:
        if node.WhichOneof("kind") in ("asset", "resource"):
            yield f"{node.WhichOneof('kind')} (a file or a table beside the variables)"


def _saving_functions(graph: Any, functions: dict[str, Any]) -> set[str]:
    """The functions that only the saver calls."""
    saver = {name.partition(":")[0] for name in (graph.saver_def.save_tensor_name, graph.saver_def.restore_op_name)}
    own: set[str] = set()
    others = set(graph.object_graph_def.concrete_functions)
    for node in graph.graph_def.node:
        (own if node.name in saver else others).update(_called(node))
    for nodes in functions.values():
        others.update(name for node in nodes for name in _called(node))
    return own - others


def _called(node: Any) -> Iterator[str]:
    """Names of the functions that a node calls."""
    for value in node.attr.values():
        if value.WhichOneof("value") == "func":
            yield value.func.name
        yield from (function.name for function in value.list.func)
    yield node.op
