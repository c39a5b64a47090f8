"""Whether an ONNX file holds weights in half precision, read from the file itself: a card may not say it."""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path

from fundus_rt.models.errors import ModelFileError

_GRAPH, _INITIALIZER, _DATA_TYPE = 7, 5, 2
"""Numbers of the fields ModelProto.graph, GraphProto.initializer and TensorProto.data_type in onnx.proto."""
_HALF = (10, 16)
"""TensorProto.FLOAT16 and BFLOAT16."""
_VARINT, _EIGHT_BYTES, _LENGTH, _FOUR_BYTES = 0, 1, 2, 5
"""Wire types of Protocol Buffers."""


def holds_half_weights(path: Path) -> bool:
    """Whether any weight of an ONNX file is of 16 bits. Weights are passed over, not read, so memory stays flat.

    Raises:
        ModelFileError: not the encoding of an ONNX file.
        OSError: the file cannot be read.
    """
    with open(path, "rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
        try:
            return any(
                kind == _DATA_TYPE and value in _HALF
                for number, graph_begin, graph_end in _fields(content, 0, len(content))
                if number == _GRAPH
                for part, begin, end in _fields(content, graph_begin, graph_end)
                if part == _INITIALIZER
                for kind, value, _ in _fields(content, begin, end)
            )
        except (IndexError, KeyError, ValueError) as error:
            raise ModelFileError(f"{path.name} is not an ONNX file, or is cut off; convert the checkpoint again") from error


def _fields(content: mmap.mmap, position: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Number, begin and end of each field between two positions; for a whole number its value stands in place of the begin."""
    while position < end:
        tag, position = _varint(content, position)
        number, kind = tag >> 3, tag & 7
        if kind == _VARINT:
            value, position = _varint(content, position)
            yield number, value, position
            continue
        length, position = _varint(content, position) if kind == _LENGTH else ({_EIGHT_BYTES: 8, _FOUR_BYTES: 4}[kind], position)
        if position + length > end:
            raise ValueError("a field reaches beyond its end")
        if kind == _LENGTH:
            yield number, position, position + length
        position += length


def _varint(content: mmap.mmap, position: int) -> tuple[int, int]:
    value = shift = 0
    while shift < 64:
        byte = content[position]
        position += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, position
        shift += 7
    raise ValueError("a number of more than 64 bits")
