"""From a framework's float graph to the graph that is shipped: pixels in, the card's outputs and a receipt out.

The same for both frameworks, on the ONNX level. What comes before the first convolution (the card's scale, mean, std and
colour order, and what the network itself does, as EfficientNet's Rescaling and Normalization) is one affine map per channel
and is folded into that convolution where it is exact.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fundus_rt.converters.backends import require
from fundus_rt.converters.graphs.graph_beginning import affine_steps, readers
from fundus_rt.converters.graphs.graph_cleaning import clean_graph, constant_of, initializers_by_name, new_initializer
from fundus_rt.converters.graphs.graph_names import all_names, give_way, rename
from fundus_rt.converters.graphs.onnx_upgrade import IR_VERSION, OPSETS
from fundus_rt.models.card import CARD_KEY, ModelCard
from fundus_rt.models.errors import UnsupportedCheckpointError

INPUT = "frames"
RECEIPT = "receipt"
PIXELS = "frames_float32"


def ship(model: Any, card: ModelCard) -> Any:
    """Give a float network the input, the outputs and the metadata of the shipped form.

    Input ``frames`` [N, H, W, 3], BGR, uint8 or float32 grey levels 0 to 255 as the card says, batch dynamic; uint8 is cast
    to float32 by the first node, float32 needs no cast. Output ``receipt`` float32 [N, H]: sums over width and channels of
    these float32 grey levels, exact for uint8 because W * 3 * 255 < 2^24 up to a width of 21,931. One output per entry of the
    card, under its name, float32 [N, columns].

    Args:
        model: an `onnx.ModelProto` with one float32 input, [N, 3, H, W] or [N, H, W, 3], normalised pixels in the card's
            colour order. It is changed in place, for a copy of a large one would double the memory.
        card: the card; its JSON goes into the metadata.

    Returns:
        The same model.

    Raises:
        UnsupportedCheckpointError: the graph has another input or other outputs than the card, or is no valid graph.
    """
    onnx = require("onnx")
    graph = model.graph
    clean_graph(model)
    channels_first = _input_layout(onnx, graph, card)
    give_way(graph, [INPUT, PIXELS, RECEIPT, *(spec.name for spec in card.outputs)])
    _name_outputs(onnx, graph, card)
    _replace_input(onnx, graph, card, channels_first)
    clean_graph(model)
    _stamp(onnx, model, card)
    try:
        onnx.checker.check_model(model)
    except Exception as error:  # the checker's own classes
        text = " ".join(str(error).split())[:300]
        raise UnsupportedCheckpointError(
            f"the network makes no valid ONNX graph with the input and the outputs of the card {card.name!r}: {text}. Export "
            f"it again with the exporter's standard operators."
        ) from error
    return model


def embed_card(model: Any, card: ModelCard) -> None:
    """Write the card into the metadata of a model, in place of the one that is there."""
    kept = [(entry.key, entry.value) for entry in model.metadata_props if entry.key != CARD_KEY]
    require("onnx").helper.set_model_props(model, dict(kept) | {CARD_KEY: card.to_json()})


def _input_layout(onnx: Any, graph: Any, card: ModelCard) -> bool:
    """True when the graph's one input has its channels first."""
    known = initializers_by_name(graph)
    inputs = [value for value in graph.input if value.name not in known]
    height, width = card.preprocessing.input_size
    dims = [dim.dim_value for dim in inputs[0].type.tensor_type.shape.dim] if len(inputs) == 1 else []
    is_float = len(inputs) == 1 and inputs[0].type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    for channels_first, expected in ((True, [3, height, width]), (False, [height, width, 3])):
        if is_float and dims[1:] == expected:
            return channels_first
    shown = ", ".join(
        f"{value.name} {[d.dim_value or d.dim_param for d in value.type.tensor_type.shape.dim]}" for value in inputs
    )
    raise UnsupportedCheckpointError(
        f"the network takes {shown or 'no input'}; the card {card.name!r} expects one float32 picture of {height} x {width} "
        f"pixels with three channels"
    )


def _name_outputs(onnx: Any, graph: Any, card: ModelCard) -> None:
    """Give the outputs the card's names, in order."""
    if len(graph.output) != len(card.outputs):
        raise UnsupportedCheckpointError(
            f"the network has {len(graph.output)} outputs, the card {card.name!r} describes {len(card.outputs)}"
        )
    renamed: dict[str, str] = {}
    for value, spec in zip(graph.output, card.outputs, strict=True):
        rank = len(value.type.tensor_type.shape.dim)
        if rank != 2:
            raise UnsupportedCheckpointError(
                f"the network's output {value.name!r} has {rank} dimensions, expected two, [N, columns]: it answers with a "
                f"map, so its pooling was left out when the head was replaced"
            )
        renamed[value.name] = spec.name
        columns = [spec.columns] if spec.columns is not None else ["columns"]
        value.CopyFrom(onnx.helper.make_tensor_value_info(value.name, onnx.TensorProto.FLOAT, ["N", *columns]))
    rename(graph, renamed)


def _replace_input(onnx: Any, graph: Any, card: ModelCard, channels_first: bool) -> None:
    """Put frames, cast, receipt and colours where the float input was."""
    known = initializers_by_name(graph)
    old = next(value.name for value in graph.input if value.name not in known)
    spec = card.preprocessing
    height, width = spec.input_size
    factor = spec.scale / np.asarray(spec.std, np.float64)
    shift = -np.asarray(spec.mean, np.float64) / np.asarray(spec.std, np.float64)
    order = [2, 1, 0] if spec.color_order == "RGB" else [0, 1, 2]
    factor, shift, entry, layout_first = _absorb_affine(graph, old, factor, shift, channels_first)
    head = _HeadBuilder(onnx, graph)
    consumers = readers(graph, entry)
    if len(consumers) == 1 and layout_first and _can_take_pixels(graph, consumers[0], entry):
        factor, shift = _fold_into_convolution(graph, consumers[0], factor, shift, order)
        last = head.add("Transpose", PIXELS, perm=[0, 3, 1, 2])
        last = head.affine(last, factor[order], shift[order], (1, 3, 1, 1))
    else:
        last = PIXELS
        if order != [0, 1, 2]:
            last = head.add("Gather", last, head.constant("colour_order", np.asarray(order, np.int64)), axis=3)
        last = head.affine(last, factor, shift, (1, 1, 1, 3))
        if layout_first:
            last = head.add("Transpose", last, perm=[0, 3, 1, 2])
    rename(graph, {entry: last})
    cast = onnx.helper.make_node("Cast", [INPUT], [PIXELS], name="pixels_to_float32", to=onnx.TensorProto.FLOAT)
    axes = head.constant("receipt_axes", np.asarray([2, 3], np.int64))
    total = onnx.helper.make_node("ReduceSum", [PIXELS, axes], [RECEIPT], name="receipt", keepdims=0)
    nodes = [cast, total, *head.nodes, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)
    kind = onnx.TensorProto.UINT8 if spec.input_dtype == "uint8" else onnx.TensorProto.FLOAT
    del graph.input[:]
    graph.input.append(onnx.helper.make_tensor_value_info(INPUT, kind, ["N", height, width, 3]))
    graph.output.append(onnx.helper.make_tensor_value_info(RECEIPT, onnx.TensorProto.FLOAT, ["N", height]))


class _HeadBuilder:
    """Nodes between the pixels and the network, in order."""

    def __init__(self, onnx: Any, graph: Any) -> None:
        self.onnx = onnx
        self.graph = graph
        self.nodes: list[Any] = []

    def constant(self, name: str, value: np.ndarray) -> str:
        return new_initializer(self.graph, name, value)

    def add(self, kind: str, *inputs: str, **attributes: Any) -> str:
        output = self._free_name(f"prepared_{len(self.nodes)}")
        node = self.onnx.helper.make_node(kind, list(inputs), [output], name=f"prepare_{kind.lower()}", **attributes)
        self.nodes.append(node)
        return output

    def _free_name(self, name: str) -> str:
        taken = all_names(self.graph)
        while name in taken:
            name += "_"
        return name

    def affine(self, name: str, factor: np.ndarray, shift: np.ndarray, shape: tuple[int, ...]) -> str:
        """``name * factor + shift`` per channel, left out where it changes nothing."""
        if np.any(factor != 1):
            name = self.add("Mul", name, self.constant("prepare_factor", factor.astype(np.float32).reshape(shape)))
        if np.any(shift != 0):
            name = self.add("Add", name, self.constant("prepare_shift", shift.astype(np.float32).reshape(shape)))
        return name


def _absorb_affine(
    graph: Any, name: str, factor: np.ndarray, shift: np.ndarray, channels_first: bool
) -> tuple[np.ndarray, np.ndarray, str, bool]:
    """Walk from the input through per-channel arithmetic and the change of layout, and take it over.

    Args:
        graph: its nodes on the way are removed.
        name: the input.
        factor: float64 [3], applied to grey levels in the network's colour order.
        shift: float64 [3], added after it.
        channels_first: layout of the input.

    Returns:
        Factor and shift with the network's own arithmetic in them, the name of the tensor that now stands for the result,
        and whether that has its channels first.
    """
    for step in affine_steps(graph, name, channels_first):
        factor, shift = factor * step.factor, shift * step.factor + step.shift
        name, channels_first = step.node.output[0], step.channels_first
        graph.node.remove(step.node)
    return factor, shift, name, channels_first


def _can_take_pixels(graph: Any, node: Any, name: str) -> bool:
    """Whether a node is a convolution of three channels at once, with constant weights, that colours and scale fold into."""
    if node.op_type != "Conv" or list(node.input).count(name) != 1 or node.input[0] != name:
        return False
    grouped = any(attribute.name == "group" and attribute.i != 1 for attribute in node.attribute)
    weights = constant_of(graph, node.input[1])
    settled = len(node.input) < 3 or not node.input[2] or constant_of(graph, node.input[2]) is not None
    return not grouped and settled and weights is not None and weights.ndim == 4 and weights.shape[1] == 3


def _fold_into_convolution(
    graph: Any, node: Any, factor: np.ndarray, shift: np.ndarray, order: list[int]
) -> tuple[np.ndarray, np.ndarray]:
    """Give a convolution weights for BGR pixels, with the affine map inside where that is exact.

    The factor always folds. The shift folds into the bias only without padding: padded zeros stand for the *normalised*
    value 0, and a bias would act on them too. With padding, ``factor * x + shift`` is ``factor * (x + shift / factor)``, so
    one addition before the convolution remains (for MobileNet ``x - 127.5``, exact in float32). Sums are made in float64.

    Returns:
        Factor and shift that are still to be applied before the convolution.
    """
    weights = np.asarray(constant_of(graph, node.input[1]), np.float64)
    scaled = (weights * factor[None, :, None, None])[:, order]
    node.input[1] = new_initializer(graph, "first_convolution_pixels", scaled.astype(np.float32))
    if np.any(shift != 0) and _is_padded(node):
        return np.ones(3), shift / factor
    if np.any(shift != 0):
        bias = constant_of(graph, node.input[2]) if len(node.input) > 2 else None
        total = (weights * shift[None, :, None, None]).sum(axis=(1, 2, 3)) + (0.0 if bias is None else bias.astype(np.float64))
        name = new_initializer(graph, "first_convolution_pixels_bias", total.astype(np.float32))
        del node.input[2:]
        node.input.append(name)
    return np.ones(3), np.zeros(3)


def _is_padded(node: Any) -> bool:
    for attribute in node.attribute:
        if attribute.name == "pads" and any(attribute.ints):
            return True
        if attribute.name == "auto_pad" and attribute.s not in (b"", b"NOTSET", b"VALID"):
            return True
    return False


def _stamp(onnx: Any, model: Any, card: ModelCard) -> None:
    """Versions that old runtimes read, no traces of the machine it was made on, the card."""
    used = {node.domain for node in model.graph.node}
    versions = {entry.domain: entry.version for entry in model.opset_import if entry.domain in used or not entry.domain}
    if set(versions) != {""} or not OPSETS[0] <= versions[""] <= OPSETS[1]:
        raise UnsupportedCheckpointError(
            f"the graph uses the operator sets {versions}; expected only ONNX's own, {OPSETS[0]} to {OPSETS[1]}"
        )
    del model.opset_import[:]
    model.opset_import.append(onnx.helper.make_opsetid("", versions[""]))
    model.ir_version = min(model.ir_version, IR_VERSION)
    model.graph.name = card.name
    model.graph.doc_string = model.doc_string = ""
    model.producer_name = "fundus-rt"
    model.producer_version = ""
    for node in model.graph.node:
        node.doc_string = ""
        if hasattr(node, "metadata_props"):
            del node.metadata_props[:]
    del model.metadata_props[:]
    embed_card(model, card)
