"""What an ONNX file holds, read from its bytes without a library: weights outside of it, anything computed in half precision, and
its metadata.

A card may not say either. Field numbers are those of onnx.proto; weights are passed over, not read.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

from fundus_rt.models.artifacts import sha256_of_bytes
from fundus_rt.models.errors import ModelFileError

Content: TypeAlias = "bytes | mmap.mmap"

_MODEL_GRAPH, _MODEL_METADATA, _MODEL_FUNCTIONS = 7, 14, 25
_ENTRY_KEY, _ENTRY_VALUE = 1, 2
_GRAPH_NODE, _GRAPH_INITIALIZER, _GRAPH_SPARSE = 1, 5, 15
_FUNCTION_NODE = 7
_NODE_OPERATOR, _NODE_ATTRIBUTE = 4, 5
_ATTRIBUTE_NAME, _ATTRIBUTE_INTEGER = 1, 3
_ATTRIBUTE_TENSOR, _ATTRIBUTE_TENSORS = 5, 10
_ATTRIBUTE_GRAPH, _ATTRIBUTE_GRAPHS = 6, 11
_ATTRIBUTE_SPARSE, _ATTRIBUTE_SPARSES = 22, 23
_SPARSE_VALUES, _SPARSE_INDICES = 1, 2
_TENSOR_TYPE, _TENSOR_EXTERNAL, _TENSOR_LOCATION = 2, 13, 14
_HALF = (10, 16)
"""TensorProto.FLOAT16 and BFLOAT16."""
_VARINT, _EIGHT_BYTES, _LENGTH, _FOUR_BYTES = 0, 1, 2, 5
"""Wire types of Protocol Buffers."""
_MOST_DEPTH = 16
"""Graphs inside of graphs; ours have none."""


@dataclass
class OnnxFacts:
    """What was found in a file."""

    external: bool = False
    """A tensor lies in another file, whose bytes no hash of this one covers."""
    half: bool = False
    """A tensor or a Cast is of 16 bits: something is computed in half precision."""
    metadata: dict[str, str] = field(default_factory=dict)


def read_onnx(path: Path) -> tuple[bytes, str]:
    """The bytes of a shipped file and their SHA-256, read once, so that what is opened is what was hashed.

    Raises:
        ModelFileError: the file cannot be read, is no ONNX file, or has weights in another file.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ModelFileError(f"{path.name} cannot be read ({error.strerror})") from error
    if onnx_facts(content, path.name).external:
        raise ModelFileError(
            f"{path.name} has weights in another file, which no certificate could be bound to; convert the checkpoint again with "
            "`fundus-rt convert`, which writes one file"
        )
    return content, sha256_of_bytes(content)


def holds_half_precision(path: Path) -> bool:
    """Whether anything in an ONNX file is stored or computed in 16 bits. Memory stays flat.

    Raises:
        ModelFileError: not the encoding of an ONNX file.
        OSError: the file cannot be read.
    """
    with open(path, "rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return onnx_facts(content, path.name).half


def onnx_facts(content: Content, name: str) -> OnnxFacts:
    """Look through all graphs of a file.

    Args:
        content: of the file.
        name: of the file, for the message.

    Raises:
        ModelFileError: not the encoding of an ONNX file.
    """
    found = OnnxFacts()
    try:
        for number, begin, end in _fields(content, 0, len(content)):
            if number == _MODEL_GRAPH:
                _look_at_graph(content, begin, end, found, 0)
            elif number == _MODEL_METADATA:
                entry = {part: bytes(content[inner:last]).decode() for part, inner, last in _fields(content, begin, end)}
                found.metadata[entry.get(_ENTRY_KEY, "")] = entry.get(_ENTRY_VALUE, "")
            elif number == _MODEL_FUNCTIONS:
                for part, inner, last in _fields(content, begin, end):
                    if part == _FUNCTION_NODE:
                        _look_at_node(content, inner, last, found, 0)
    except (IndexError, KeyError, ValueError) as error:
        raise ModelFileError(f"{name} is not an ONNX file, or is cut off; convert the checkpoint again") from error
    return found


def _look_at_graph(content: Content, begin: int, end: int, found: OnnxFacts, depth: int) -> None:
    if depth > _MOST_DEPTH:
        raise ValueError("graphs are nested too deeply")
    for number, inner, last in _fields(content, begin, end):
        if number == _GRAPH_NODE:
            _look_at_node(content, inner, last, found, depth)
        elif number == _GRAPH_INITIALIZER:
            _look_at_tensor(content, inner, last, found)
        elif number == _GRAPH_SPARSE:
            _look_at_sparse(content, inner, last, found)


def _look_at_node(content: Content, begin: int, end: int, found: OnnxFacts, depth: int) -> None:
    operator, wanted = b"", []
    for number, inner, last in _fields(content, begin, end):
        if number == _NODE_OPERATOR:
            operator = bytes(content[inner:last])
        elif number == _NODE_ATTRIBUTE:
            wanted.append((inner, last))
    for inner, last in wanted:
        name, value = b"", 0
        for number, first, behind in _fields(content, inner, last):
            if number == _ATTRIBUTE_NAME:
                name = bytes(content[first:behind])
            elif number == _ATTRIBUTE_INTEGER:
                value = first
            elif number in (_ATTRIBUTE_TENSOR, _ATTRIBUTE_TENSORS):
                _look_at_tensor(content, first, behind, found)
            elif number in (_ATTRIBUTE_GRAPH, _ATTRIBUTE_GRAPHS):
                _look_at_graph(content, first, behind, found, depth + 1)
            elif number in (_ATTRIBUTE_SPARSE, _ATTRIBUTE_SPARSES):
                _look_at_sparse(content, first, behind, found)
        found.half |= operator == b"Cast" and name == b"to" and value in _HALF


def _look_at_sparse(content: Content, begin: int, end: int, found: OnnxFacts) -> None:
    for number, inner, last in _fields(content, begin, end):
        if number in (_SPARSE_VALUES, _SPARSE_INDICES):
            _look_at_tensor(content, inner, last, found)


def _look_at_tensor(content: Content, begin: int, end: int, found: OnnxFacts) -> None:
    for number, value, _ in _fields(content, begin, end):
        found.half |= number == _TENSOR_TYPE and value in _HALF
        found.external |= number == _TENSOR_EXTERNAL or (number == _TENSOR_LOCATION and value != 0)


def _fields(content: Content, position: int, end: int) -> Iterator[tuple[int, int, int]]:
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


def _varint(content: Content, position: int) -> tuple[int, int]:
    value = shift = 0
    while shift < 64:
        byte = content[position]
        position += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, position
        shift += 7
    raise ValueError("a number of more than 64 bits")
