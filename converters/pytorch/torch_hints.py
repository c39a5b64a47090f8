"""What a torch file says of its network in words: its name in the training options, the names of the classes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fundus_rt.converters.class_order import in_another_order, listed_classes
from fundus_rt.converters.network_options import stated_options
from fundus_rt.models.errors import UnsupportedCheckpointError

OPTIONS = ("args", "hyper_parameters", "config", "cfg", "preprocessing", "preprocess", "normalization", "normalize", "transform")
"""Containers of options in which the network, the classes and the preprocessing are named."""
HINTS = ("arch", "model", "model_name", "architecture", "backbone", "net")
"""Training options that name the network."""


@dataclass
class Stated:
    """What is met on the way to the network."""

    outside: list[tuple[str, Any]] = field(default_factory=list)
    """Entries beside the network, and beside each container that it was taken out of, by their keys."""
    lists: list[tuple[str, tuple[str, ...]]] = field(default_factory=list)
    """Every list that may name the classes in the order of the columns, with its key."""
    architecture: str = ""
    """What the training options call the network; empty when they do not."""
    preparation: dict[str, Any] = field(default_factory=dict)
    """``mean``, ``std``, ``interpolation``, ``img_size``, ``input_size`` and `NETWORK_OPTIONS` of the training options."""


def note_hints(content: Mapping[Any, Any], stated: Stated, notes: list[str]) -> None:
    """Take from one dictionary of a file the network's name, of which the first counts, and every list of the classes.

    Args:
        content: the dictionary, or a container in it.
        stated: gets them.
        notes: gets one sentence for each that was not said yet.

    Raises:
        UnsupportedCheckpointError: two lists of the same classes in different orders.
    """
    meta = content.get("meta")
    described = meta.get("dataset_meta") if isinstance(meta, Mapping) else None
    for where in (content, *(content.get(key) for key in OPTIONS), meta, described):
        options: Mapping[Any, Any] = where if isinstance(where, Mapping) else getattr(where, "__dict__", {})
        for key in HINTS if where is not meta and where is not described else ():
            word = options.get(key)
            if not isinstance(word, str) or not word:
                continue
            stated.architecture = stated.architecture or word[:200]
            said = f"the file calls its network {word[:60]!r}"
            if said not in notes:
                notes.append(said)
        for key in ("mean", "std", "interpolation", "img_size", "input_size"):
            value = options.get(key)
            if isinstance(value, (str, list, tuple, int, float)) and value and not isinstance(value, bool):
                stated.preparation.setdefault(key, list(value) if isinstance(value, tuple) else value)
        for key, value in stated_options(options).items():
            stated.preparation.setdefault(key, value)
        for key, classes in listed_classes(options):
            _note_classes(key, classes, stated, notes)


def _note_classes(key: str, classes: tuple[str, ...], stated: Stated, notes: list[str]) -> None:
    for other, earlier in stated.lists:
        if in_another_order(earlier, classes):
            raise UnsupportedCheckpointError(
                f"the file lists its classes twice, as {', '.join(earlier)} ({other}) and as {', '.join(classes)} ({key}); which "
                f"order holds cannot be told. Ask its authors, and save the file with the one that holds."
            )
    if (key, classes) not in stated.lists:
        stated.lists.append((key, classes))
    said = f"the file lists its classes as {', '.join(repr(name[:40]) for name in classes[:12])}"
    said += f" ({key})" if len(stated.lists) > 1 else ""
    if said not in notes:
        notes.append(said)
