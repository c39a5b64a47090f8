"""The resize of each library as ONNX nodes around two matrix products; what the matrices are is told in `frame_head`."""

from __future__ import annotations

from typing import Any

import numpy as np

from fundus_rt.converters.graphs.graph_cleaning import new_initializer
from fundus_rt.converters.graphs.graph_names import all_names
from fundus_rt.models.card import INTERPOLATIONS

FRAME, ROW_FILTER, COLUMN_FILTER = "frame", "row_filter", "column_filter"
RECEIPT, RECEIPT_NETWORK, RECEIPT_FILTERS = "receipt", "receipt_network", "receipt_filters"
_PART = 4096
"""Pillow's weights are split at this: both parts stay within 11 bits, also weights of up to 2 as there are at the edges of a
picture that is enlarged."""


class HeadNodes:
    """Nodes in front of the network, in order, and constants by their value."""

    def __init__(self, onnx: Any, graph: Any) -> None:
        self.onnx = onnx
        self.graph = graph
        self.nodes: list[Any] = []
        self._taken = all_names(graph)
        self._numbers: dict[float, str] = {}

    def add(self, kind: str, *inputs: str, outputs: int = 1, name: str = "", **attributes: Any) -> Any:
        """Append a node; its output's name, or the list of them where it has several."""
        names = [name or self._free(f"head_{len(self.nodes)}_{kind.lower()}_{i}") for i in range(outputs)]
        self.nodes.append(self.onnx.helper.make_node(kind, list(inputs), names, name=names[0], **attributes))
        return names[0] if outputs == 1 else names

    def number(self, value: float) -> str:
        """A float32 scalar."""
        if value not in self._numbers:
            self._numbers[value] = self.constant(np.asarray(value, np.float32))
        return self._numbers[value]

    def whole(self, *values: int) -> str:
        """An int64 vector: axes, sizes, starts."""
        return self.constant(np.asarray(values, np.int64))

    def constant(self, value: np.ndarray) -> str:
        """An initializer."""
        return str(new_initializer(self.graph, "head_constant", value))

    def _free(self, name: str) -> str:
        while name in self._taken:
            name += "_"
        self._taken.add(name)
        return name


def picture_nodes(head: HeadNodes, interpolation: str, height: int, width: int) -> str:
    """From the three inputs to the network's picture, float32 [N, h, w, 3], and the two receipts that are made of them."""
    pixels = head.add("Cast", FRAME, to=head.onnx.TensorProto.FLOAT)
    head.add("ReduceSum", pixels, head.whole(2, 3), keepdims=0, name=RECEIPT)
    head.add("Concat", _places(head, ROW_FILTER), _places(head, COLUMN_FILTER), axis=1, name=RECEIPT_FILTERS)
    planes = head.add("Transpose", pixels, perm=[0, 3, 1, 2])
    if interpolation.endswith("-nearest") or interpolation == "tf-bilinear":
        planes = _rows_of(head, ROW_FILTER, _narrow(head, planes, COLUMN_FILTER))
    elif interpolation.startswith("pillow-"):
        planes = _pillow(head, planes, height, width)
    elif interpolation == "opencv-linear":
        planes = _opencv_linear(head, planes, width)
    elif interpolation == "opencv-cubic":
        planes = _opencv_cubic(head, planes, width)
    elif interpolation == "opencv-area":
        planes = _opencv_area(head, planes)
    else:
        raise ValueError(f"got the filter {interpolation!r}, expected one of {', '.join(INTERPOLATIONS)}")
    return str(head.add("Transpose", planes, perm=[0, 2, 3, 1]))


def _places(head: HeadNodes, matrix: str) -> str:
    """The sum of ``matrix[n, i, j] * j`` over j."""
    zero, one, last = (head.constant(np.asarray(value, np.int64)) for value in (0, 1, 2))
    size = head.add("Gather", head.add("Shape", matrix), last, axis=0)
    places = head.add("Cast", head.add("Range", zero, size, one), to=head.onnx.TensorProto.FLOAT)
    return str(head.add("ReduceSum", head.add("Mul", matrix, places), head.whole(2), keepdims=0))


def _narrow(head: HeadNodes, planes: str, columns: str) -> str:
    """``planes`` [N, 3, H, W] times the transposed ``columns`` [N, k, W]: [N, 3, H, k]."""
    across = head.add("Unsqueeze", head.add("Transpose", columns, perm=[0, 2, 1]), head.whole(1))
    return str(head.add("MatMul", planes, across))


def _rows_of(head: HeadNodes, rows: str, planes: str) -> str:
    """``rows`` [N, k, H] times ``planes`` [N, 3, H, w]: [N, 3, k, w]."""
    return str(head.add("MatMul", head.add("Unsqueeze", rows, head.whole(1)), planes))


def _halves_of(head: HeadNodes, value: str, unit: float) -> tuple[str, str]:
    """A whole number as ``high * unit + low`` with 0 <= low < unit, both exact in float32."""
    high = head.add("Floor", head.add("Mul", value, head.number(1 / unit)))
    return high, head.add("Sub", value, head.add("Mul", high, head.number(unit)))


def _rounded(head: HeadNodes, high: str, low: str, unit: int, halves_to_even: bool = False) -> str:
    """``high * unit + low`` in units of 2^-22: rounded, halves up or to even, and bounded to 0 ... 255.

    The carry of the low part is added to the high one before it is divided, so no number needs more than 24 bits.
    """
    carry, left_low = _halves_of(head, low, unit)
    total = head.add("Add", head.add("Add", high, carry), head.number((1 << 21) // unit))
    level, left_high = _halves_of(head, total, (1 << 22) // unit)
    if halves_to_even:  # nothing is left over: it was a half, and an odd level goes back by one
        was_half = head.add("Relu", head.add("Sub", head.number(1), head.add("Add", left_low, left_high)))
        odd = _halves_of(head, level, 2)[1]
        level = head.add("Sub", level, head.add("Mul", was_half, odd))
    return str(head.add("Clip", level, head.number(0), head.number(255)))


def _pillow(head: HeadNodes, planes: str, height: int, width: int) -> str:
    """Pillow: weights of 22 bits, rounding after each pass. The weights go in as two parts of 11 bits or fewer, side by side."""
    narrow = _narrow(head, planes, _weight_parts(head, COLUMN_FILTER))
    high, low = head.add("Split", narrow, head.whole(width, width), outputs=2, axis=3)
    short = _rows_of(head, _weight_parts(head, ROW_FILTER), _rounded(head, high, low, _PART))
    high, low = head.add("Split", short, head.whole(height, height), outputs=2, axis=2)
    return _rounded(head, high, low, _PART)


def _weight_parts(head: HeadNodes, matrix: str) -> str:
    """A matrix [N, k, L] of multiples of 2^-22 as whole numbers [N, 2k, L]: multiples of 2^-10, then what is left."""
    scaled = head.add("Mul", matrix, head.number((1 << 22) // _PART))
    high = head.add("Round", scaled)
    low = head.add("Mul", head.add("Sub", scaled, high), head.number(_PART))
    return str(head.add("Concat", high, low, axis=1))


def _opencv_sums(head: HeadNodes, planes: str) -> str:
    """OpenCV's exact first pass, in whole numbers: the weights have 11 bits."""
    return _narrow(head, planes, head.add("Mul", COLUMN_FILTER, head.number(2048)))


def _opencv_linear(head: HeadNodes, planes: str, width: int) -> str:
    """OpenCV's linear: each of the two rows is cut off by itself, ``(b * (S >> 4)) >> 16``, before they are added.

    The two lie side by side, so one has an even place and the other an odd one; each product has one factor a row.
    """
    sums = head.add("Floor", head.add("Mul", _opencv_sums(head, planes), head.number(1 / 16)))
    parts = head.add("Concat", *_halves_of(head, sums, 128), axis=3)
    rows = head.add("Mul", ROW_FILTER, head.number(2048))
    cut = []
    for parity in (0, 1):
        every_other = (head.whole(parity), head.whole(np.iinfo(np.int64).max), head.whole(2), head.whole(2))
        product = _rows_of(head, head.add("Slice", rows, *every_other), head.add("Slice", parts, *every_other))
        high, low = head.add("Split", product, head.whole(width, width), outputs=2, axis=3)
        carry = head.add("Floor", head.add("Mul", low, head.number(1 / 128)))
        cut.append(head.add("Floor", head.add("Mul", head.add("Add", high, carry), head.number(1 / 512))))
    total = head.add("Add", head.add("Add", *cut), head.number(2))
    level = head.add("Floor", head.add("Mul", total, head.number(1 / 4)))
    return str(head.add("Clip", level, head.number(0), head.number(255)))


def _opencv_cubic(head: HeadNodes, planes: str, width: int) -> str:
    """OpenCV's cubic: both passes exact, one rounding at the end, of halves to even as its vector instructions do."""
    parts = head.add("Concat", *_halves_of(head, _opencv_sums(head, planes), 2048), axis=3)
    product = _rows_of(head, head.add("Mul", ROW_FILTER, head.number(2048)), parts)
    high, low = head.add("Split", product, head.whole(width, width), outputs=2, axis=3)
    return _rounded(head, high, low, 2048, halves_to_even=True)


def _opencv_area(head: HeadNodes, planes: str) -> str:
    """OpenCV's area: sums, times one over the area of a block of whole pixels; rounded half to even, at 2 x 2 half up."""
    sides = [_block_side(head, matrix) for matrix in (ROW_FILTER, COLUMN_FILTER)]
    scale = head.add("Div", head.number(1), head.add("Mul", *sides))
    total = _rows_of(head, ROW_FILTER, _narrow(head, planes, COLUMN_FILTER))
    mean = head.add("Mul", total, scale)
    to_even = head.add("Round", mean)
    half_up = head.add("Floor", head.add("Add", mean, head.number(0.5)))
    away = head.add("Add", *(head.add("Abs", head.add("Sub", side, head.number(2))) for side in sides))
    is_two_by_two = head.add("Sub", head.number(1), head.add("Min", head.number(1), away))
    level = head.add("Add", to_even, head.add("Mul", is_two_by_two, head.add("Sub", half_up, to_even)))
    return str(head.add("Clip", level, head.number(0), head.number(255)))


def _block_side(head: HeadNodes, matrix: str) -> str:
    """Pixels that a row of the matrix adds up, [N, 1, 1, 1]: 1 for weights that are shares; rows cut by the frame have less."""
    sums = head.add("ReduceSum", matrix, head.whole(2), keepdims=1)
    longest = head.add("TopK", sums, head.whole(1), outputs=2, axis=1)[0]
    return str(head.add("Round", head.add("Unsqueeze", longest, head.whole(1))))
