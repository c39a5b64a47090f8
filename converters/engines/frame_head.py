"""A shipped network that takes whole frames: crop, mirror and the author's own resize inside the graph, as two matrix products.

Every separable filter is ``row_filter x frame x column_filter transposed``. The matrices are computed for each frame on the
host: a crop is a shift of their columns, mirroring is the reversed order of the rows of `column_filter`. So one graph serves
frames of any size on every runtime that knows MatMul. Between and behind the two products stands the rounding of the library
that the filter is named after. It is dear on large frames, for the products are dense: with a Pillow filter the first one of a
frame of 4 megapixels takes 2 x 2 x 3 x 2000 x 2000 x 384 = 18 GFLOP. Crop to the field of view before, where that can be done.

Inputs
    ``frame`` uint8 [N, H, W, 3], BGR, H and W open, 2 pixels or more;
    ``row_filter`` float32 [N, h, H]; ``column_filter`` float32 [N, w, W]; h and w are the network's input size.
Outputs
    those of the card, float32 [N, columns];
    ``receipt`` float32 [N, H]: the sum of each row of the frame over width and channels, exact up to a width of 21,931;
    ``receipt_network`` float32 [N, h]: the network's own receipt, the same sums of the picture that it saw;
    ``receipt_filters`` float32 [N, h + w]: the sum over j of ``row_filter[i, j] * j`` for each of its rows, then the same of
    `column_filter`: which filters were used, so that those of another frame are noticed. Compare to one part in 10^5.
Metadata
    the card, and under `FRAME_HEAD_KEY` JSON with ``format`` (`FRAME_HEAD_FORMAT`), ``interpolation`` and ``tf32_is_exact``.

How the matrices are computed. The crop is the box left, top, right, bottom in whole pixels of the frame, right and bottom
excluded; it may reach beyond the frame and is black there. For the columns n = right - left and m = w, for the rows
n = bottom - top and m = h. Row i of the matrix (0 <= i < m) has the weights below at the pixels j of the crop (0 <= j < n);
pixel j is column j + left of `column_filter`, j + top of `row_filter`. Weights outside of the frame are left out, everything
else is 0. Where two weights fall on one pixel they are added. To mirror, write the rows of `column_filter` in reverse order.
``scale`` is n / m in double precision; floor, ceil and trunc as in C.

``pillow-bilinear``, ``pillow-bicubic``, ``pillow-lanczos``, ``pillow-box``
    ``stretch = max(scale, 1)``; ``reach = support * stretch`` with the supports 1, 2, 3, 0.5; ``center = (i + 0.5) * scale``.
    Pixels j from ``max(0, trunc(center - reach + 0.5))`` to below ``min(n, trunc(center + reach + 0.5))``.
    The weight is ``f((j - center + 0.5) / stretch)``, divided by the sum of the row's weights, then rounded to a multiple of
    2^-22, halves away from 0. f(x) is ``1 - |x|``; Keys' cubic with a = -0.5; ``sinc(x) * sinc(x / 3)`` for -3 <= x < 3; 1 for
    -0.5 < x <= 0.5; and 0 elsewhere.
``pillow-nearest``, ``keras-nearest``, ``tf-nearest``, ``opencv-nearest``
    The weight 1 at ``j = floor((i + 0.5) * scale)`` (TensorFlow, in float32; Pillow and Keras begin with ``0.5 * scale`` and add
    ``scale`` for each further i, in double), or at ``j = floor(i * (1 / (m / n)))`` (OpenCV, in double); at most n - 1.
``opencv-linear``
    ``x = float((i + 0.5) * (1 / (m / n)) - 0.5)``, ``j = floor(x)``, ``s = x - j``. The weights ``1 - s`` at j and ``s`` at j
    + 1, in float32, are multiplied by 2048, rounded to whole numbers (halves to even) and divided by 2048. Pixels clamp to 0
    ... n - 1.
``opencv-cubic``
    The same at j - 1 to j + 2 with Keys' cubic, a = -0.75, in float32; the last weight is 1 less the three others.
``opencv-area``
    Both scales whole numbers: the weight 1 at ``i * scale`` to below ``(i + 1) * scale``.
    Both 1 or more: with ``b = i * scale``, ``e = b + scale``, ``cell = min(scale, n - b)``, ``last = min(floor(e), n - 1)``,
    as float32: ``(ceil(b) - b) / cell`` at ``ceil(b) - 1`` where ``ceil(b) - b > 0.001``; ``1 / cell`` from ``ceil(b)`` to
    below ``last``; ``min(e - last, 1, cell) / cell`` at ``last`` where ``e - last > 0.001``. One of them below 1: as
    ``opencv-linear`` with ``j = floor(i * scale)`` and ``s = (i + 1) - (j + 1) * (m / n)``, 0 where that is negative, else its
    fraction.
``tf-bilinear``
    In float32: ``x = (i + 0.5) * (n / m) - 0.5``, ``j = floor(x)``, ``s = x - j``; ``1 - s`` at j and ``s`` at j + 1, clamped.

`fundus_rt.runtime.nvidia.resize_taps.filter_matrices` does this in Python.

How near it comes to the library, in grey levels. Pillow's filters, every nearest neighbour and OpenCV's linear: no difference,
in TF32 as well, for all factors are split into whole numbers of 11 bits whose sums stay below 2^24. (Linear that enlarges:
one, in 0.2 % of the values, in the first and last rows. Pillow with more than 32 weights in a row could pass 2^24 and so
differ by one next to a half; not seen.) OpenCV's cubic: one, where OpenCV's own float32 sums fall on the other side of a half,
1 value in 10^5; in TF32 one at the edges where it enlarges. OpenCV's area: none at whole factors, one in 1 value of 10^5 at
others, one in 4 % where it enlarges. TensorFlow's bilinear: float32 rounding, 3 in 10^5 of a grey level. Area and TensorFlow's
bilinear want products in full float32: leave TF32 off (``tf32_is_exact`` is false).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fundus_rt.converters.backends import require
from fundus_rt.converters.engines.engine_facts import import_onnx
from fundus_rt.converters.engines.head_filters import (
    COLUMN_FILTER,
    FRAME,
    RECEIPT,
    RECEIPT_FILTERS,
    RECEIPT_NETWORK,
    ROW_FILTER,
    HeadNodes,
    picture_nodes,
)
from fundus_rt.converters.graphs.graph_names import give_way, inner_names, rename
from fundus_rt.models.artifacts import atomic_path
from fundus_rt.models.card import CARD_KEY, ModelCard, card_from_json
from fundus_rt.models.errors import BackendUnavailableError, ModelFileError

FRAME_HEAD_KEY = "fundus_rt.frame_head"
"""Key in the ``metadata_props`` of a graph that takes whole frames."""
FRAME_HEAD_FORMAT = 1
"""Version of the inputs and outputs and of the meaning of the matrices."""
FULL_FLOAT32 = ("opencv-area", "tf-bilinear")
"""Filters whose products are inexact in TF32."""


def with_frame_head(model: Any, card: ModelCard | None = None) -> Any:
    """Give a shipped network the inputs and outputs that this module's page states.

    Args:
        model: an `onnx.ModelProto` in the shipped form (`fundus_rt.converters.shipping.ship`). It is changed in place.
        card: its card, whose `preprocessing` decides the filter; None for the one in the model's metadata.

    Returns:
        The same model, of the same operator set and IR version.

    Raises:
        ModelFileError: the model is not in the shipped form, carries no card, or has a frame head already.
    """
    onnx = require("onnx")
    graph = model.graph
    card = card or _card_inside(model)
    height, width = card.preprocessing.input_size
    _require_shipped(graph, card)
    give_way(graph, [FRAME, ROW_FILTER, COLUMN_FILTER, RECEIPT_NETWORK, RECEIPT_FILTERS])
    rename(graph, {RECEIPT: RECEIPT_NETWORK})
    head = HeadNodes(onnx, graph)
    picture = picture_nodes(head, card.preprocessing.interpolation, height, width)
    _join(onnx, graph, head, picture)
    del graph.input[:]
    tensor, kinds = onnx.helper.make_tensor_value_info, onnx.TensorProto
    graph.input.append(tensor(FRAME, kinds.UINT8, ["N", "H", "W", 3]))
    graph.input.append(tensor(ROW_FILTER, kinds.FLOAT, ["N", height, "H"]))
    graph.input.append(tensor(COLUMN_FILTER, kinds.FLOAT, ["N", width, "W"]))
    graph.output.append(tensor(RECEIPT, kinds.FLOAT, ["N", "H"]))
    graph.output.append(tensor(RECEIPT_FILTERS, kinds.FLOAT, ["N", height + width]))
    entry = model.metadata_props.add()
    entry.key, entry.value = FRAME_HEAD_KEY, json.dumps(_facts(card))
    onnx.checker.check_model(model)
    return model


def frame_onnx_from_onnx(source: Path, target: Path) -> ModelCard:
    """Write a shipped file with a frame head: ``NAME.onnx`` becomes ``NAME.frames.onnx``, for a program in any language.

    Args:
        source: a file that `fundus-rt convert` wrote. Not changed.
        target: written whole or not at all.

    Returns:
        The card in both files.

    Raises:
        ModelFileError: the source is no ONNX file, or as `with_frame_head`.
        OSError: the target cannot be written.
    """
    onnx = require("onnx")
    try:
        model = onnx.load(str(source))
    except OSError:
        raise
    except Exception as error:  # protobuf's own classes
        raise ModelFileError(
            f"{source.name} is not an ONNX file ({type(error).__name__}); convert the checkpoint again"
        ) from error
    card = _card_inside(model)
    with_frame_head(model, card)
    with atomic_path(target) as path:
        onnx.save(model, str(path))
    return card


def head_facts(model: Any, name: str) -> dict[str, Any] | None:
    """What a graph's metadata says of its own frame head: ``format``, ``interpolation``, ``tf32_is_exact``; None without one.

    Args:
        model: an `onnx.ModelProto`.
        name: the file's name, for the message.

    Raises:
        ModelFileError: the entry is not what this package writes.
    """
    text = next((entry.value for entry in model.metadata_props if entry.key == FRAME_HEAD_KEY), None)
    if text is None:
        return None
    try:
        facts = json.loads(text)
    except ValueError:
        facts = None
    if not isinstance(facts, dict) or type(facts.get("format")) is not int:
        raise ModelFileError(
            f"the entry {FRAME_HEAD_KEY} in {name} cannot be read; "
            f"write the file again with `fundus-rt build MODEL.onnx -o {name}`"
        )
    return facts


def head_format_in_file(path: Path) -> int | None:
    """Version of the frame head that an ONNX file has itself; None without one, and for a file that is no ONNX file.

    Raises:
        BackendUnavailableError: the package ``onnx`` is not installed.
        ModelFileError: the entry is not what this package writes.
        OSError: the file cannot be read.
    """
    content = path.read_bytes()
    try:
        model = import_onnx().load_model_from_string(content)
    except BackendUnavailableError:
        raise
    except Exception:  # protobuf's own classes; the build says what is wrong with the file
        return None
    facts = head_facts(model, path.name)
    return None if facts is None else int(facts["format"])


def _facts(card: ModelCard) -> dict[str, Any]:
    name = card.preprocessing.interpolation
    return {"format": FRAME_HEAD_FORMAT, "interpolation": name, "tf32_is_exact": name not in FULL_FLOAT32}


def _card_inside(model: Any) -> ModelCard:
    text = next((entry.value for entry in model.metadata_props if entry.key == CARD_KEY), None)
    if text is None:
        raise ModelFileError(f"the graph carries no model card ({CARD_KEY}); give the file that `fundus-rt convert` wrote")
    return card_from_json(text, "the model's card")


def _require_shipped(graph: Any, card: ModelCard) -> None:
    constants = {tensor.name for tensor in graph.initializer}
    inputs = {value.name: value for value in graph.input if value.name not in constants}
    outputs = {value.name for value in graph.output}
    shape = [dim.dim_value for dim in inputs["frames"].type.tensor_type.shape.dim][1:] if "frames" in inputs else []
    expected = [*card.preprocessing.input_size, 3]
    if set(inputs) != {"frames"} or shape != expected or not {"receipt", *(o.name for o in card.outputs)} <= outputs:
        raise ModelFileError(
            f"the graph has the inputs {sorted(inputs)} and the outputs {sorted(outputs)}; a head for whole frames is put before "
            f"a shipped network with the input 'frames' [N, {expected[0]}, {expected[1]}, 3] alone, the outputs of the card "
            f"{card.name!r} and 'receipt'. Give the file that `fundus-rt convert` wrote."
        )


def _join(onnx: Any, graph: Any, head: HeadNodes, picture: str) -> None:
    """Let the network read the head's picture where it read its input; a Cast of it to float32 is left out."""
    if any("frames" in inner_names(node) for node in graph.node):
        raise ModelFileError(
            "a graph inside a node reads the input 'frames'; convert the checkpoint again with fixed control flow"
        )
    readers = [node for node in graph.node if "frames" in node.input]
    renamed = {"frames": picture}
    for node in readers:
        to = next((entry.i for entry in node.attribute if entry.name == "to"), None)
        if node.op_type == "Cast" and to == onnx.TensorProto.FLOAT and not _is_output(graph, node.output[0]):
            renamed[node.output[0]] = picture
            graph.node.remove(node)
        elif node.op_type != "Cast" and graph.input[0].type.tensor_type.elem_type != onnx.TensorProto.FLOAT:
            raise ModelFileError(f"the input 'frames' is read by {node.op_type}, expected a Cast; convert the checkpoint again")
    rename(graph, renamed)
    nodes = [*head.nodes, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)
    del graph.value_info[:]


def _is_output(graph: Any, name: str) -> bool:
    return any(value.name == name for value in graph.output)
