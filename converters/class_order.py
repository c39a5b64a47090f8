"""Names of classes in the order of a network's columns, as training scripts and exporters write them down."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

_NAMES = """
    classes class_names class_name classnames class_list class_labels class_order class_to_idx class_to_index class2idx
    class_indices class_map class_mapping idx_to_class index_to_class idx2class index_to_name label_names label_list label_order
    label_map label_mapping label_to_idx label2idx label2id id2label id_to_label idx_to_label idx2label labels names target_names
    categories classes_ label_encoder encoder_classes
"""
NAMES_OF_LISTS = frozenset(_NAMES.split())
"""Keys, in small letters, under which the classes are listed: Hugging Face's ``id2label``, torchvision's ``class_to_idx``, Keras'
``class_indices``, scikit-learn's ``target_names``, Ultralytics' ``names``, ..."""
MOST_CLASSES = 10_000
HEADINGS = {"name", "names", "class", "classes", "class name", "label", "labels", "label name", "category"}
"""A first line that is no class."""
_BETWEEN = r"\s*(?:->|=>|[:,;=.)|\s-])\s*"
NUMBER_FIRST = re.compile(rf"(?P<column>[0-9]{{1,6}}){_BETWEEN}(?P<name>.+)")
NUMBER_LAST = re.compile(rf"(?P<name>.*?){_BETWEEN}(?P<column>[0-9]{{1,6}})")
"""A name with its column in one line."""


def class_order(entry: Any) -> tuple[str, ...]:
    """Names of classes in the order of the columns.

    Args:
        entry: a list or an array of names; a dictionary from names to columns or from columns to names; or either as text: JSON,
            Python, or one name in each line, or between commas, with its number before it, behind it or without. Columns count
            from 0 or from 1. Lines that begin with # are comments, and a table may have a line of headings.

    Returns:
        The names; empty where the entry is something else, a name or a column is missing or there twice.
    """
    if isinstance(entry, str):
        return _order_in_text(entry)
    if isinstance(entry, Mapping):
        inner = listed_classes(entry)
        entry = inner[0][1] if inner else _by_column(entry)
    if isinstance(entry, (list, tuple)) and entry and all(isinstance(part, Mapping) for part in entry):
        entry = _by_column({_first_of(part, ("name", "label")): _first_of(part, ("id", "index")) for part in entry})
    if isinstance(entry, np.ndarray):
        entry = entry.tolist()
    entry = getattr(entry, "names", entry)  # of an array that a stand-in was read for
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
    """Whether two lists of one length have a name in different columns.

    Capital and small letters are the same, and so are blanks and signs between words ("No DR", "no_dr", "No-DR"). Where no name
    is in both lists, the beginnings of names ("F", "M" for female, male) are taken for them.
    """
    own, other = (plain_names(names) for names in (labels, stated))
    if len(own) != len(other) or len(set(own)) < len(own) or len(set(other)) < len(other):
        return False
    if not set(own) & set(other):
        own, other = _written_out(own, other), _written_out(other, own)
    return any(name in own and own.index(name) != column for column, name in enumerate(other))


def _written_out(short: list[str], full: list[str]) -> list[str]:
    """Names in place of their beginnings, where each is the beginning of one other name alone; else the names as they are."""
    meant = [[name for name in full if name.startswith(beginning) and beginning.isalpha()] for beginning in short]
    one_each = all(len(names) == 1 for names in meant) and len({names[0] for names in meant}) == len(short)
    return [names[0] for names in meant] if one_each else short


def plain_names(names: Iterable[str]) -> list[str]:
    """Names in small letters, with one blank in place of what stands between words; a name of signs alone stays."""
    return [re.sub(r"[\W_]+", " ", name.casefold()).strip() or name for name in names]


def _by_column(entry: Mapping[Any, Any]) -> list[Any]:
    """Names in the order of their columns; empty where the columns are neither 0, 1, 2, ... nor 1, 2, 3, ..."""
    pairs = [(_column(value), key) for key, value in entry.items()]
    if any(column is None for column, _ in pairs):
        pairs = [(_column(key), value) for key, value in entry.items()]
    named = {column: name for column, name in pairs if column is not None}
    columns = sorted(named)
    return [named[column] for column in columns] if columns in (list(range(len(entry))), list(range(1, len(entry) + 1))) else []


def _first_of(entry: Mapping[Any, Any], keys: tuple[str, ...]) -> Any:
    """The first entry of these keys that is a word or a number; None without one."""
    return next((entry[key] for key in keys if isinstance(entry.get(key), (str, int))), None)


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
    lines = [_without_signs(line) for line in lines if line and not line.startswith("#")]
    for rows in (lines, lines[1:]):  # the second: without a line of headings
        for form in (NUMBER_FIRST, NUMBER_LAST):
            numbered = [form.fullmatch(row) for row in rows]
            if len(rows) > 1 and all(numbered):
                order = class_order({found["column"]: _without_signs(found["name"]) for found in numbered if found})
                if order or form is NUMBER_FIRST:  # the lines "grade 0", "grade 1" are names themselves
                    return order
    if len(lines) > 2 and plain_names(lines[:1])[0] in HEADINGS:
        lines = lines[1:]
    return class_order(lines)


def _without_signs(line: str) -> str:
    """A line without quotation marks around its parts and the sign of a list before it."""
    line = re.sub(r"^[-*+\u2022]\s+", "", line)
    return re.sub(r"(?<!\w)[\"']|[\"'](?!\w)", "", line).strip()
