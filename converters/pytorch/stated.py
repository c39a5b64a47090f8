"""What a file, or a configuration beside it, says of its network, held against what is concluded and what the card prepares.

timm's hub writes ``config.json`` (architecture, pretrained_cfg, label_names); Hugging Face transformers write ``config.json``
(id2label) and ``preprocessor_config.json`` (image_mean, image_std, resample). Training scripts keep the name
of the architecture in the file.
"""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from fundus_rt.converters.architecture import Architecture
from fundus_rt.converters.backends import require_timm, require_torchvision
from fundus_rt.converters.checkpoint import Checkpoint
from fundus_rt.models.card import ModelCard, PreprocessingSpec
from fundus_rt.models.errors import BackendUnavailableError, UnsupportedCheckpointError

CONFIG, PREPROCESSOR = "config.json", "preprocessor_config.json"
LARGEST_CONFIG = 1 << 20
"""Bytes; a configuration has some thousand."""
RESAMPLE = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "box"}
"""Pillow's numbers of its filters, as Hugging Face's configurations have them."""


def stated_title(checkpoint: Checkpoint) -> tuple[str, str]:
    """The network that the file, or timm's ``config.json`` beside it, says it is.

    Returns:
        ``timm/NAME`` or ``torchvision/NAME`` without a tag, and who says so; both empty where nothing is said, or a name that
        neither library has.
    """
    stated, source = getattr(checkpoint, "stated_architecture", "") or "", "the file itself"
    if not stated:
        content = read_beside(checkpoint.path, CONFIG)[0]
        stated, source = str(content.get("architecture") or ""), f"{CONFIG} beside {checkpoint.path.name}"
    title = title_of(stated)
    return (title, source) if title else ("", "")


def title_of(name: str) -> str:
    """``timm/NAME`` or ``torchvision/NAME`` of a name that one of them knows, older names of timm translated; else empty."""
    given, _, bare = name.rpartition("/")
    bare = bare.partition(".")[0]
    if not re.fullmatch(r"\w+", bare) or given not in ("", "timm", "torchvision"):
        return ""
    if given != "torchvision":
        try:
            timm = require_timm()
            older = timm.models.get_deprecated_models() if hasattr(timm.models, "get_deprecated_models") else {}
            if timm.is_model(bare):
                return f"timm/{(older.get(bare) or bare).partition('.')[0]}"
        except BackendUnavailableError:  # torchvision's names are still known
            pass
    try:
        models = require_torchvision().models
    except BackendUnavailableError:
        return ""
    return f"torchvision/{bare}" if bare in models.list_models(module=models) else ""


def refuse_contradiction(checkpoint: Checkpoint, named: str) -> None:
    """Hold the name that the caller gives against the one that the file gives; tags after a dot are left aside.

    Args:
        checkpoint: the file.
        named: ``timm/NAME`` or ``torchvision/NAME``, with arguments or without.

    Raises:
        UnsupportedCheckpointError: they differ.
    """
    stated, source = stated_title(checkpoint)
    plain = named.partition("?")[0].partition(".")[0]
    if stated and stated.partition("/")[2] not in (plain.partition("/")[2], (title_of(plain) or plain).partition("/")[2]):
        raise UnsupportedCheckpointError(
            f"{checkpoint.path.name}: {source} calls the network {stated.partition('/')[2]}, but {plain} was asked for; "
            f"networks with the same tensors can compute differently, so it is not converted as another one. Say "
            f"--architecture {stated}."
        )


def read_beside(path: Path, name: str) -> tuple[dict[str, Any], str]:
    """A JSON object in the checkpoint's folder, and why it could not be read; empty where there is none."""
    file = path.parent / name
    if not file.is_file():
        return {}, ""
    try:
        if file.stat().st_size > LARGEST_CONFIG:
            raise ValueError(f"it has more than {LARGEST_CONFIG:,} bytes")
        content = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        return {}, f"{name} beside the checkpoint cannot be read ({error}) and was not used"
    return (
        (content, "") if isinstance(content, dict) else ({}, f"{name} beside the checkpoint is no JSON object; it was not used")
    )


def held_against_statements(checkpoint: Checkpoint, card: ModelCard, found: Architecture) -> Architecture:
    """An architecture with a warning for everything that configurations beside the file say and the card prepares otherwise.

    Raises:
        UnsupportedCheckpointError: a configuration has the card's labels in another order.
    """
    config, unread = read_beside(checkpoint.path, CONFIG)
    images, unread_too = read_beside(checkpoint.path, PREPROCESSOR)
    _check_labels(checkpoint, card, config)
    warnings = [reason for reason in (unread, unread_too) if reason]
    inner = config.get("pretrained_cfg")
    inner = inner if isinstance(inner, dict) else {}
    warnings += _warnings_of(CONFIG, card, inner.get("mean"), inner.get("std"), inner.get("interpolation"))
    mean, std = images.get("image_mean"), images.get("image_std")
    if images.get("do_normalize") is False:
        mean, std = [0.0, 0.0, 0.0], [1.0, 1.0, 1.0]
    resample = images.get("resample")
    warnings += _warnings_of(PREPROCESSOR, card, mean, std, RESAMPLE.get(resample) if isinstance(resample, int) else None)
    return replace(found, warnings=(*found.warnings, *warnings)) if warnings else found


def same_normalisation(spec: PreprocessingSpec, mean: Any, std: Any) -> bool:
    """Whether a card normalises as `mean` and `std`, RGB, on values from 0 to 1, do."""
    mean, std = np.asarray(mean, np.float64), np.asarray(std, np.float64)
    if spec.color_order == "BGR":
        mean, std = mean[::-1], std[::-1]
    own = np.stack([1 / (255 * std), -mean / std])
    cards = np.stack([spec.scale / np.asarray(spec.std), -np.asarray(spec.mean) / np.asarray(spec.std)])
    return bool(np.allclose(own, cards, rtol=1e-3, atol=1e-6))


def _warnings_of(file: str, card: ModelCard, mean: Any, std: Any, filtered: Any) -> list[str]:
    """What a configuration says of normalisation and of the resize filter where the card says otherwise."""
    spec, found = card.preprocessing, []
    if _three(mean) and _three(std) and min(std) > 0 and not same_normalisation(spec, mean, std):
        found.append(
            f"{file} beside the checkpoint says mean {list(mean)} and std {list(std)} on values from 0 to 1, the card "
            f"{card.name!r} prepares with mean {list(spec.mean)} and std {list(spec.std)} after the factor {spec.scale:.6g}; one "
            f"of them is wrong for this file."
        )
    if isinstance(filtered, str) and filtered in RESAMPLE.values() and spec.interpolation != f"pillow-{filtered}":
        found.append(
            f"{file} beside the checkpoint says that pictures are resized with Pillow's {filtered} filter, the card "
            f"{card.name!r} resizes with {spec.interpolation}."
        )
    return found


def _three(values: Any) -> bool:
    return isinstance(values, list) and len(values) == 3 and all(isinstance(v, (int, float)) for v in values)


def _check_labels(checkpoint: Checkpoint, card: ModelCard, config: dict[str, Any]) -> None:
    """The names of the columns in ``config.json``, where they are the card's, in the card's order."""
    labels = config.get("id2label") or config.get("label_names")
    if isinstance(labels, dict) and all(str(key).isdigit() for key in labels):
        labels = [labels[key] for key in sorted(labels, key=int)]
    if not isinstance(labels, list):
        return
    given = [" ".join(str(label).split()) for label in labels]
    folded = [label.casefold() for label in given]
    for output in card.outputs:
        own = [label.casefold() for label in output.labels]
        if sorted(own) == sorted(folded) and own != folded:
            raise UnsupportedCheckpointError(
                f"{CONFIG} beside {checkpoint.path.name} names the columns {', '.join(given)}, in this order, but the card "
                f"{card.name!r} names them {', '.join(output.labels)}: every answer would be called by another class. Give "
                f"--labels {','.join(given)!r}, the order of the file."
            )
