"""Python values as strict JSON: no bare NaN or Infinity, but null with the reason beside it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from fundus_rt.models.errors import UsageError


def json_ready(value: Any, reasons: dict[str, str], pointer: str = "") -> Any:
    """A copy of `value` made of what JSON knows.

    Args:
        value: texts, numbers, booleans, None, lists, tuples and mappings of these, NumPy scalars and arrays.
        reasons: filled with ``pointer: "nan" | "inf" | "-inf"`` for each float that became null.
        pointer: where the value stands in the file, as a JSON pointer (RFC 6901).

    Raises:
        UsageError: something else is in it, or a key is no text or whole number.
    """
    if hasattr(value, "tolist"):  # NumPy's scalars and arrays, without importing NumPy
        value = value.tolist()
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        if math.isfinite(value):
            return value
        reasons[pointer] = str(value)
        return None
    if isinstance(value, Mapping):
        return {_key(key, pointer): json_ready(item, reasons, f"{pointer}/{_escaped(key)}") for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [json_ready(item, reasons, f"{pointer}/{number}") for number, item in enumerate(value)]
    raise UsageError(
        f"the report's {pointer or 'value'} is a {type(value).__name__}, expected a text, a number, a boolean, None, a list "
        "or a mapping"
    )


def _key(key: Any, pointer: str) -> str:
    """A key as text."""
    if isinstance(key, bool) or not isinstance(key, (str, int)):
        raise UsageError(f"the report's {pointer or 'value'} has the key {key!r}, expected a text or a whole number")
    return str(key)


def _escaped(key: Any) -> str:
    """A key as one step of a JSON pointer."""
    return str(key).replace("~", "~0").replace("/", "~1")
