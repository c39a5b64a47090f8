"""What a torch file says of its network in words: its name in the training options, the names of the classes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

HINTS = ("arch", "model", "model_name", "architecture", "backbone", "net")
"""Training options that name the network."""
CLASS_LISTS = ("classes", "CLASSES", "class_names", "class_to_idx")
"""Entries that list the classes in the order of the columns; the last one, of torchvision's ImageFolder, by their column."""


@dataclass
class Stated:
    """What is met on the way to the network."""

    outside: list[tuple[str, Any]] = field(default_factory=list)
    """Entries beside the network, and beside each container that it was taken out of, by their keys."""
    classes: tuple[str, ...] = ()
    """Names of the classes in the order of the columns, as the file lists them; empty when it does not."""
    architecture: str = ""
    """What the training options call the network; empty when they do not."""


def note_hints(content: Mapping[Any, Any], stated: Stated, notes: list[str]) -> None:
    """Take from one dictionary of a file the network's name and the names of the classes; the first of each counts.

    Args:
        content: the dictionary, or a container in it.
        stated: gets them.
        notes: gets one sentence for each that was not said yet.
    """
    meta = content.get("meta")
    described = meta.get("dataset_meta") if isinstance(meta, Mapping) else None
    for where in (content, content.get("args"), content.get("hyper_parameters"), content.get("config"), meta, described):
        options: Mapping[Any, Any] = where if isinstance(where, Mapping) else getattr(where, "__dict__", {})
        for key in HINTS if where is not meta and where is not described else ():
            word = options.get(key)
            if not isinstance(word, str) or not word:
                continue
            stated.architecture = stated.architecture or word[:200]
            said = f"the file calls its network {word[:60]!r}"
            if said not in notes:
                notes.append(said)
        for key in CLASS_LISTS:
            _note_classes(_class_names(options.get(key)), stated, notes)


def _note_classes(classes: tuple[str, ...], stated: Stated, notes: list[str]) -> None:
    stated.classes = stated.classes or classes
    said = f"the file lists its classes as {', '.join(repr(name[:40]) for name in classes[:12])}"
    if classes and said not in notes:
        notes.append(said)


def _class_names(entry: Any) -> tuple[str, ...]:
    """Names in the order of the columns, out of a list of them or a dictionary from names to columns; else none."""
    if isinstance(entry, Mapping):
        columns = [column for column in entry.values() if type(column) is int]
        if len(columns) < len(entry) or sorted(columns) != list(range(len(columns))):
            return ()
        entry = sorted(entry, key=entry.__getitem__)
    if isinstance(entry, (list, tuple)) and all(isinstance(name, str) for name in entry):
        return tuple(entry)
    return ()
