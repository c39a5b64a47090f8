"""What configurations beside a checkpoint say of its classes and its preprocessing, held against the card.

timm's hub writes ``config.json`` (architecture, pretrained_cfg, label_names); Hugging Face transformers write ``config.json``
(id2label) and ``preprocessor_config.json`` (image_mean, image_std, resample); exporters and training scripts leave
``labels.txt``, ``class_indices.json`` and their like.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from fundus_rt.converters.architecture import Architecture
from fundus_rt.converters.checkpoint import Checkpoint
from fundus_rt.converters.class_order import NAMES_OF_LISTS, class_order, in_another_order, listed_classes
from fundus_rt.converters.network_options import as_arguments, stated_options, unusual_options
from fundus_rt.models.card import ModelCard, PreprocessingSpec
from fundus_rt.models.errors import UnsupportedCheckpointError

CONFIG, PREPROCESSOR = "config.json", "preprocessor_config.json"
LISTS = tuple(f"{name}{suffix}" for name in sorted(NAMES_OF_LISTS) for suffix in (".json", ".txt", ".csv"))
"""Files that hold nothing but the names of the classes."""
INNER_FOLDERS = ("onnx", "saved_model")
"""Folders inside the one with the configuration, where the Hugging Face hub has exported graphs."""
LARGEST_CONFIG = 1 << 20
"""Bytes; a configuration has some thousand."""
RESAMPLE = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "box"}
"""Pillow's numbers of its filters, as Hugging Face's configurations have them."""


def read_beside(path: Path, name: str) -> tuple[dict[str, Any], str]:
    """A JSON object beside the checkpoint, and why it could not be read; empty where there is none."""
    text, problem = _text_beside(path, name)
    if not text:
        return {}, problem
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        return {}, f"{name} beside the checkpoint cannot be read ({error}) and was not used"
    return (
        (content, "") if isinstance(content, dict) else ({}, f"{name} beside the checkpoint is no JSON object; it was not used")
    )


def held_against_statements(checkpoint: Checkpoint, card: ModelCard, found: Architecture, named: str = "") -> Architecture:
    """An architecture with a warning for everything that the file and configurations beside it say and the card prepares
    otherwise.

    Args:
        checkpoint: the file.
        card: what prepares its pictures and names its classes.
        found: the network.
        named: what the caller, or the card's family, calls it, with arguments or as a function of his own; empty when neither
            does.

    Raises:
        UnsupportedCheckpointError: the card has its labels in another order than the file, or a list beside it; the file was
            trained with options that change its answers, and no arguments are named.
    """
    config, unread = read_beside(checkpoint.path, CONFIG)
    images, unread_too = read_beside(checkpoint.path, PREPROCESSOR)
    notes = _check_labels(checkpoint, card, config)
    warnings = [reason for reason in (unread, unread_too) if reason]
    inner = config.get("pretrained_cfg")
    inner = inner if isinstance(inner, dict) else config  # before timm 0.8 they are at the top
    beside = f"{CONFIG} beside the checkpoint"
    warnings += preparation_warnings(beside, card, inner.get("mean"), inner.get("std"), inner.get("interpolation"))
    mean, std = images.get("image_mean"), images.get("image_std")
    if images.get("do_normalize") is False:
        mean, std = [0.0, 0.0, 0.0], [1.0, 1.0, 1.0]
    resample = images.get("resample")
    filtered = RESAMPLE.get(resample) if isinstance(resample, int) else None
    warnings += preparation_warnings(f"{PREPROCESSOR} beside the checkpoint", card, mean, std, filtered)
    called = f"{found.family} {found.description}"
    warnings += _option_warnings(checkpoint, card, named, called)
    if checkpoint.framework == "pytorch" and not found.family.startswith("swin"):  # whose own reader holds all of it against it
        title = checkpoint.stated_architecture or str(config.get("architecture") or "")
        warnings += _network_warnings(checkpoint, stated_options(config), beside, (named, called, title))
    return replace(found, notes=(*found.notes, *notes), warnings=(*found.warnings, *warnings)) if warnings or notes else found


def same_normalisation(spec: PreprocessingSpec, mean: Any, std: Any) -> bool:
    """Whether a card normalises as `mean` and `std`, RGB, on values from 0 to 1, do."""
    mean, std = np.asarray(mean, np.float64), np.asarray(std, np.float64)
    if spec.color_order == "BGR":
        mean, std = mean[::-1], std[::-1]
    own = np.stack([1 / (255 * std), -mean / std])
    cards = np.stack([spec.scale / np.asarray(spec.std), -np.asarray(spec.mean) / np.asarray(spec.std)])
    return bool(np.allclose(own, cards, rtol=1e-3, atol=1e-6))


def preparation_warnings(source: str, card: ModelCard, mean: Any, std: Any, filtered: Any) -> list[str]:
    """What a source says of normalisation and of the resize filter where the card says otherwise, one sentence each."""
    spec, found = card.preprocessing, []
    if _three(mean) and _three(std) and max(mean) > 2:  # of grey levels to 255
        mean, std = [value / 255 for value in mean], [value / 255 for value in std]
    if _three(mean) and _three(std) and min(std) > 0 and not same_normalisation(spec, mean, std):
        found.append(
            f"{source} says mean {list(mean)} and std {list(std)} on values from 0 to 1, the card {card.name!r} prepares with "
            f"mean {list(spec.mean)} and std {list(spec.std)} after the factor {spec.scale:.6g}; one of them is wrong for this "
            f"file."
        )
    if isinstance(filtered, str) and filtered in RESAMPLE.values() and spec.interpolation != f"pillow-{filtered}":
        found.append(
            f"{source} says that pictures are resized with Pillow's {filtered} filter, the card {card.name!r} resizes with "
            f"{spec.interpolation}."
        )
    return found


def _option_warnings(checkpoint: Checkpoint, card: ModelCard, named: str, called: str) -> list[str]:
    """What the training options in the file say otherwise than the card, or of the network and no tensor shows."""
    source = f"{checkpoint.path.name} itself"
    said = dict(checkpoint.stated_preparation)
    filtered = str(said.pop("interpolation", "")).lower()
    found = preparation_warnings(source, card, said.pop("mean", None), said.pop("std", None), filtered)
    sizes = [said.pop(key, None) for key in ("img_size", "input_size")]
    for size in sizes:
        sides = size if isinstance(size, (list, tuple)) else [size]
        numbers = [round(side) for side in sides if isinstance(side, (int, float)) and abs(side) < 1e9]
        if numbers and not set(numbers) >= set(card.preprocessing.input_size):
            found.append(
                f"{source} says pictures of {' x '.join(map(str, numbers))} pixels, the card {card.name!r} prepares "
                f"{' x '.join(map(str, card.preprocessing.input_size))}"
            )
    found += _network_warnings(checkpoint, said, source, (named, called, checkpoint.stated_architecture))
    return found


def _network_warnings(checkpoint: Checkpoint, said: Mapping[str, Any], source: str, names: tuple[str, str, str]) -> list[str]:
    """What options of a network need that no tensor shows: that the caller names them, or his own function.

    The names are those that the caller, this package, and the file or its configuration give the network.
    """
    named, _, title = names
    unusual = unusual_options(said, " ".join(names))
    options = ", ".join(f"{key} = {value!r}"[:60] for key, value in unusual.items())
    if options and checkpoint.module is None and "?" not in named and ":" not in named:
        name = title.rpartition("/")[2].partition(".")[0]
        away = f"; move {CONFIG} away if it belongs to another model" if source.startswith(CONFIG) else ""
        name = name if re.fullmatch("[a-z0-9_]+", name) else "NAME"
        raise UnsupportedCheckpointError(
            f"{source} says that it was trained with {options}, which no tensor shows and which changes every answer. Name the "
            f"network with it, --architecture 'timm/{name}?{as_arguments(unusual)}', or a function of your own that builds it, "
            f"--architecture package.module:factory{away}"
        )
    return [f"{source} says that it was trained with {options}: {named} has to say so too"] if options else []


def _three(values: Any) -> bool:
    return isinstance(values, (list, tuple)) and len(values) == 3 and all(isinstance(v, (int, float)) for v in values)


def _text_beside(path: Path, name: str) -> tuple[str, str]:
    """The text of a file beside the checkpoint, and why it could not be read; both empty where there is none."""
    file = next((folder / name for folder in _folders_of(path) if (folder / name).is_file()), None)
    if file is None:
        return "", ""
    try:
        if file.stat().st_size > LARGEST_CONFIG:
            raise ValueError(f"it has more than {LARGEST_CONFIG:,} bytes")
        return file.read_text(encoding="utf-8"), ""
    except (ValueError, OSError) as error:
        return "", f"{name} beside the checkpoint cannot be read ({error}) and was not used"


def _folders_of(path: Path) -> list[Path]:
    """Folders whose files speak of a checkpoint: its own, a SavedModel's inside and beside it, those around the hub's inner
    ones."""
    folders = [path / "assets", path / "assets.extra", path] if path.is_dir() else []
    folders.append(path.absolute().parent)
    if folders[-1].name in INNER_FOLDERS:
        folders.append(folders[-1].parent)
    return folders


def _check_labels(checkpoint: Checkpoint, card: ModelCard, config: Mapping[str, Any]) -> list[str]:
    """Hold every list of the classes, in the file and beside it, against the card and against each other.

    Returns:
        A note for each list beside the file.
    """
    file = checkpoint.path.name
    inner = config.get("pretrained_cfg")
    beside: list[tuple[tuple[str, ...], str]] = []
    for options in (config, inner if isinstance(inner, dict) else {}):
        beside += [(order, f"{CONFIG} beside {file} ({key})") for key, order in listed_classes(options)]
    unread = []
    for name in LISTS:
        text, problem = _text_beside(checkpoint.path, name)
        beside.append((class_order(text), f"{name} beside {file}"))
        if problem or (text and not beside[-1][0]):
            unread.append(problem or f"{name} beside {file} is no list of classes that is understood, and was not used")
    beside = [(order, source) for order, source in beside if order]
    inside = [(order, f"{file} ({key})") for key, order in checkpoint.class_lists] or [(checkpoint.classes, file)]
    for (order, source), (other, elsewhere) in combinations((*inside, *beside), 2):
        if in_another_order(order, other):
            raise UnsupportedCheckpointError(
                f"{source} names the columns {', '.join(order)}, and {elsewhere} names them {', '.join(other)}: which order "
                f"holds cannot be told. Ask the authors, and move the one that does not hold, or belongs to another model, away."
            )
    for order, source in (*inside, *beside):
        away = ", or move it away if it belongs to another model" if (order, source) in beside else ""
        for output in card.outputs:
            if in_another_order(output.labels, order):
                raise UnsupportedCheckpointError(
                    f"{source} names the columns {', '.join(order)}, in this order, but the card {card.name!r} names them "
                    f"{', '.join(output.labels)}: every answer would be called by another class. Give "
                    f"--labels {','.join(order)!r}, the order of the file{away}."
                )
    return [*unread, *(f"{source} lists {', '.join(repr(name[:40]) for name in order[:12])}" for order, source in beside)]
