"""Names of classes in the order of a network's columns, as training scripts and exporters write them down."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Mapping
from typing import Any

_NAMES = """
    classes class_names class_name classnames class_list class_labels class_order class_to_idx class_to_index class2idx
    class_indices class_map class_mapping idx_to_class index_to_class idx2class index_to_name label_names label_list label_order
    label_map label_mapping label_to_idx label2idx label2id id2label id_to_label idx_to_label idx2label labels names target_names
    categories
"""
NAMES_OF_LISTS = frozenset(_NAMES.split())
"""Keys, in small letters, under which the classes are listed: Hugging Face's ``id2label``, torchvision's ``class_to_idx``, Keras'
``class_indices``, scikit-learn's ``target_names``, Ultralytics' ``names``, ..."""
MOST_CLASSES = 10_000


def class_order(entry: Any) -> tuple[str, ...]:
    """Names of classes in the order of the columns.

    Args:
        entry: a list of names; a dictionary from names to columns or from columns to names; or either as text: JSON, Python, or
            one name in each line, or between commas, with its number before it or without.

    Returns:
        The names; empty where the entry is something else, a name or a column is missing or there twice.
    """
    if isinstance(entry, str):
        return _order_in_text(entry)
    if isinstance(entry, Mapping):
        entry = _by_column(entry)
    if not isinstance(entry, (list, tuple)) or not 2 <= len(entry) <= MOST_CLASSES:
        return ()
    if not all(isinstance(name, str) and name.strip() for name in entry):
        return ()
    names = tuple(" ".join(name.split()) for name in entry)
    return names if len(set(names)) == len(names) else ()


def listed_classes(options: Mapping[Any, Any]) -> list[tuple[str, tuple[str, ...]]]:
    """Every list of classes in a dictionary, with its key."""
    keys = [key for key in options if isinstance(key, str) and key.lower() in NAMES_OF_LISTS]
    return [(key, order) for key in keys if (order := class_order(options[key]))]


def in_another_order(labels: tuple[str, ...], stated: tuple[str, ...]) -> bool:
    """Whether two lists have the same names in different orders; capital and small letters are the same."""
    own, other = ([" ".join(name.split()).casefold() for name in names] for names in (labels, stated))
    return sorted(own) == sorted(other) and own != other


def _by_column(entry: Mapping[Any, Any]) -> list[Any]:
    """Names in the order of their columns; empty where the columns are not 0, 1, 2, ..."""
    pairs = [(_column(value), key) for key, value in entry.items()]
    if any(column is None for column, _ in pairs):
        pairs = [(_column(key), value) for key, value in entry.items()]
    named = {column: name for column, name in pairs if column is not None}
    return [named[column] for column in range(len(entry))] if sorted(named) == list(range(len(entry))) else []


def _column(value: Any) -> int | None:
    if type(value) is int:
        return value
    return int(value) if isinstance(value, str) and re.fullmatch(r"[0-9]{1,6}", value) else None


def _order_in_text(text: str) -> tuple[str, ...]:
    text = text.strip("\ufeff \t\r\n")
    if len(text) > 1 << 20:
        return ()
    if text[:1] in ("[", "{", "("):
        for read in (json.loads, ast.literal_eval):
            try:
                content = read(text)
            except (ValueError, SyntaxError, MemoryError, RecursionError):
                continue
            return () if isinstance(content, str) else class_order(content)
        return ()
    lines = [line.strip() for line in (text.splitlines() if "\n" in text else text.split(","))]
    lines = [line for line in lines if line]
    numbered = [re.fullmatch(r"([0-9]{1,6})\s*[:,;\s]\s*(.+)", line) for line in lines]
    if lines and all(numbered):
        return class_order({found[1]: found[2] for found in numbered if found})
    return class_order(lines)
