"""Names of tensors in torch files: what wrappers around a network, and around its parts, put into them."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

PREFIXES = ("module.", "_orig_mod.", "backbone.", "model.", "net.", "network.", "encoder.", "swin.", "base_model.")
"""Prefixes of wrapper modules (DataParallel, torch.compile, Lightning, own classes), taken off when every tensor has it."""

INNER_WRAPPERS = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")
"""What torch.compile, FSDP and activation checkpointing put into the names of the parts that they wrap, at any depth."""

LOSS = {"criterion", "criterions", "loss", "loss_fn", "loss_func", "loss_function", "losses"}
"""Parts of the names of a loss's tensors, where it was a part of the training module (class weights, for example)."""


def without_wrappers(state: dict[str, Any], notes: list[str]) -> dict[str, Any]:
    """Tensors under the network's own names; what is known to be no part of its answer is left aside, and said.

    That is the counter of an averaged model (``n_averaged`` of torch, ``steps`` of MMEngine) and the vectors of a loss. Any
    other stranger stays, so that it is refused as left over.
    """
    aside = [name for name, t in state.items() if name.rpartition(".")[2] == "n_averaged" or (name == "steps" and not t.ndim)]
    if aside:
        notes.append(f"{', '.join(aside[:6])}, the counter of an averaged model, left aside")
    losses = [name for name, tensor in state.items() if tensor.ndim <= 1 and is_of_a_loss(name)]
    if losses:
        notes.append(f"tensors of a loss, which take no part in the answer, left aside: {', '.join(losses[:6])}")
    kept = {name: tensor for name, tensor in state.items() if name not in {*aside, *losses}}
    names, prefix = plain_names(kept)
    if prefix:
        notes.append(f"prefix {prefix!r} taken off every name")
    if len(set(names.values())) < len(names):
        return kept
    return {names[name]: tensor for name, tensor in kept.items()}


def is_of_a_loss(name: str) -> bool:
    *parts, last = name.split(".")
    return not LOSS.isdisjoint(parts) and re.fullmatch(r"\w+", last) is not None


def plain_names(names: Iterable[str]) -> tuple[dict[str, str], str]:
    """Names without the prefix that all of them share, and without wrappers inside them.

    The prefix may be of several parts; a last part that is a number or a tensor's own name stays.

    Returns:
        The plain name of each, and the prefix taken off.
    """
    plain = {name: name for name in names}
    stripped = ""
    while prefix := _shared_part(plain.values()):
        plain = {name: short[len(prefix) :] for name, short in plain.items()}
        stripped += prefix
    for wrapper in INNER_WRAPPERS:
        plain = {name: short.replace(f".{wrapper}", ".") for name, short in plain.items()}
    return plain, stripped


def _shared_part(names: Iterable[str]) -> str:
    """First part, with its dot, that every name has; empty when there is none that can go."""
    names = list(names)
    if not names:
        return ""
    part = names[0].partition(".")[0] + "."
    if part[:-1].isdigit() or not all(name.startswith(part) for name in names):
        return ""
    own_layer = any("." not in name[len(part) :] for name in names)
    return "" if own_layer and part not in PREFIXES else part
