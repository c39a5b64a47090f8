"""What a file, or timm's ``config.json`` beside it, calls its network, held against what the caller calls it."""

from __future__ import annotations

import re

from fundus_rt.converters.backends import require_timm, require_torchvision
from fundus_rt.converters.checkpoint import Checkpoint
from fundus_rt.converters.statements import CONFIG, read_beside
from fundus_rt.models.errors import BackendUnavailableError, UnsupportedCheckpointError


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
