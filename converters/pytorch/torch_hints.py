"""What a torch file says of its network in words: its name in the training options, the names of the classes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fundus_rt.converters.class_order import in_another_order, listed_classes
from fundus_rt.converters.network_options import stated_options
from fundus_rt.converters.pytorch.telling_words import is_optimizer
from fundus_rt.models.errors import UnsupportedCheckpointError

_OPTIONS = """
    args hyper_parameters config cfg opt options hparams train_args training_args preprocessing preprocess normalization normalize
    transform
"""
OPTIONS = tuple(_OPTIONS.split())
"""Containers of options in which the network is named. Classes and preprocessing are looked for in all others too."""
DEEPEST, MOST_LOOKED_AT = 5, 2000
"""Dictionaries inside one another, and in all, that are looked into."""
_HINTS = """
    arch model model_name architecture backbone net network model_arch arch_name timm_name encoder encoder_name backbone_name
    net_name network_name
"""
HINTS = tuple(_HINTS.split())
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
    named = [content, *(content.get(key) for key in OPTIONS)]
    for where in (*named, *_inner(content)):
        options = _entries(where)
        for key in HINTS if any(where is one for one in named) else ():
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


def _inner(content: Mapping[Any, Any]) -> list[Any]:
    """Every dictionary and set of options in a dictionary, at any depth; weights, and the state of an optimizer, are none."""
    found: list[Any] = []
    left = [(0, part) for key, part in content.items() if not is_optimizer(str(key))]
    while left and len(found) < MOST_LOOKED_AT:
        depth, where = left.pop(0)
        entries = _entries(where)
        if not entries or any(_is_array(part) for part in entries.values()):
            continue
        if not any(where is one for one in found):
            found.append(where)
            left += [(depth + 1, part) for part in entries.values()] if depth < DEEPEST else []
    return found


def _entries(where: Any) -> Mapping[Any, Any]:
    """What a dictionary, a `Namespace` or an object of options holds; empty for anything else."""
    if isinstance(where, Mapping):
        return where
    return {} if hasattr(type(where), "shape") else getattr(where, "__dict__", {})


def _is_array(part: Any) -> bool:
    """Whether this is a tensor or an array of more than one number; a nested tensor has no shape to ask for."""
    return hasattr(type(part), "shape") and (getattr(part, "is_nested", False) or bool(part.shape))


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
