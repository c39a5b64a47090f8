"""What plain data beside the weights of a torch file is read as, so that neither its own code nor numpy's runs."""

from __future__ import annotations

import argparse
import struct
from collections import OrderedDict
from typing import Any

from fundus_rt.converters.pytorch.pickle_listing import DATA_CLASSES, DICTIONARIES, SEQUENCES

NUMBERS = {
    "f2": "e",
    "f4": "f",
    "f8": "d",
    "i1": "b",
    "i2": "h",
    "i4": "i",
    "i8": "q",
    "u1": "B",
    "u2": "H",
    "u4": "I",
    "u8": "Q",
}
"""Codes of numpy's kinds of numbers, and of `struct`."""


class LeftAside:
    """Stands for plain data beside the weights: takes whatever a pickle gives it, and keeps nothing."""

    def __init__(self, *arguments: Any) -> None:
        """Hold nothing, whatever the arguments are."""

    def __setstate__(self, state: Any) -> None:
        """Ignore the state."""


class Dictionary:
    """Stands for the dictionary classes of other packages; torch's safe reader sets entries of its own kinds only."""

    def __new__(cls, *arguments: Any) -> OrderedDict[str, Any]:  # type: ignore[misc]
        """An empty dictionary, whatever the arguments are."""
        return OrderedDict()


class Sequence:
    """Stands for a list-like class; torch's safe reader appends to lists only."""

    def __new__(cls, *arguments: Any) -> list[Any]:  # type: ignore[misc]
        """An empty list, whatever the arguments are."""
        return []


class Encoded:
    """Stands for `_codecs.encode`, with which older pickles write bytes."""

    def __new__(cls, *arguments: Any) -> bytes:  # type: ignore[misc]
        """The bytes of a text of Latin-1 characters; none for anything else."""
        text = arguments[0] if arguments else ""
        return text.encode("latin1", "replace") if isinstance(text, str) else b""


class Kind(LeftAside):
    """Stands for `numpy.dtype`, and keeps its code."""

    def __init__(self, *arguments: Any) -> None:
        """Keep the first argument where it is a short text, such as ``f8``."""
        text = arguments[0] if arguments else ""
        self.code = text if isinstance(text, str) and len(text) < 9 else ""


class Number:
    """Stands for numpy's numbers."""

    def __new__(cls, *arguments: Any) -> Any:
        """The number of a `Kind` and its bytes, little-endian; a `LeftAside` for anything else."""
        kind, content = arguments if len(arguments) == 2 else (None, None)
        letter = NUMBERS.get(kind.code) if isinstance(kind, Kind) else None
        if letter is None or not isinstance(content, bytes) or len(content) != struct.calcsize("<" + letter):
            return LeftAside()
        return struct.unpack("<" + letter, content)[0]


class Array(LeftAside):
    """Stands for an array of numpy: its shape and its kind, and no number of it; of texts the texts."""

    shape: tuple[int, ...] | None = None
    """None where the pickle does not say it as numpy does."""
    code = ""
    """Kind of its numbers as numpy codes it: ``f4``, ``i8``, ``O8``, ``U12``."""
    names: tuple[str, ...] = ()
    """Its elements where these are texts."""

    def __init__(self, *arguments: Any) -> None:
        """Take the arguments of numpy's `_frombuffer` (content, kind, shape, order); those of `_reconstruct` say nothing."""
        if len(arguments) == 4:
            self._keep(arguments[1], arguments[2], arguments[0])

    def __setstate__(self, state: Any) -> None:
        """Take shape and kind out of what numpy's arrays are pickled as: version, shape, kind, order, content."""
        if isinstance(state, tuple) and len(state) == 5:
            self._keep(state[2], state[1], state[4])

    def _keep(self, kind: Any, shape: Any, content: Any) -> None:
        if isinstance(shape, tuple) and all(type(length) is int for length in shape):
            self.shape = shape
            self.code = kind.code if isinstance(kind, Kind) else ""
            self.names = _texts(self.code, content)


def _texts(code: str, content: Any) -> tuple[str, ...]:
    """Elements of an array of texts, which numpy pickles as a list of objects or as UTF-32 padded with zeros; else nothing."""
    if code.startswith("O") and isinstance(content, list) and all(isinstance(part, str) for part in content):
        return tuple(content)
    width = 4 * int(code[1:]) if code[:1] == "U" and code[1:].isdigit() else 0
    if not width or not isinstance(content, (bytes, bytearray)) or len(content) % width or len(content) > 1 << 20:
        return ()
    parts = (bytes(content[start : start + width]) for start in range(0, len(content), width))
    return tuple(part.decode("utf-32-le", "replace").rstrip("\0") for part in parts)


_OWN: dict[str, Any] = {"_codecs.encode": Encoded, "numpy.dtype": Kind, "types.SimpleNamespace": argparse.Namespace}


def stand_in_for(name: str) -> Any:
    """The class that one of `DATA_CLASSES` is read as."""
    if name in _OWN:
        return _OWN[name]
    if name.endswith((".multiarray._reconstruct", ".numeric._frombuffer")):
        return Array
    return Number if name.endswith(".multiarray.scalar") else LeftAside


STAND_INS: list[Any] = [
    argparse.Namespace,
    *((stand_in_for(name), name) for name in DATA_CLASSES),
    *((Dictionary, name) for name in DICTIONARIES),
    *((Sequence, name) for name in SEQUENCES),
]
"""For `torch.serialization.safe_globals`: `argparse.Namespace` itself, and each stand-in with the name that it is read for."""
