"""What lies beside the network in a torch file: every tensor, array and telling number of it is accounted for."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fundus_rt.converters.network_options import NETWORK_OPTIONS
from fundus_rt.converters.pytorch.stand_ins import Array
from fundus_rt.converters.pytorch.telling_words import is_a_record, is_optimizer, tells, words_of
from fundus_rt.converters.pytorch.torch_hints import HINTS
from fundus_rt.converters.pytorch.torch_names import is_of_a_loss, without_wrappers
from fundus_rt.models.errors import UnsupportedCheckpointError

TRAINING_STATE = ("sched", "loss_fn", "criterion", "callbacks", "loops")
"""Parts of the keys of what training alone needs."""
TRAINING_WORDS = {"amp", "args", "cfg", "config", "hparams", "history", "hyper", "log", "logs", "losses", "meta", "metric"}
TRAINING_WORDS |= {"message", "metrics", "opt", "options", "random", "rng", "confusion", "confmat", "predictions", "preds", "roc"}
TRAINING_WORDS |= {"pred", "probs", "probabilities", "targets"}
"""Words that such keys consist of: options, records and the states of random generators."""
COMMON_WORDS = {"best", "cpu", "cuda", "curve", "dict", "generator", "hub", "matrix", "native", "np", "numpy", "parameters"}
COMMON_WORDS |= {"params", "python", "scaling", "state", "states", "test", "torch", "train", "training", "val", "valid"}
COMMON_WORDS |= {"validation", "true", "y"}
"""Words that may stand beside those."""
GRAD_SCALER_WORDS = {
    "scaler",
    "scalers",
    "grad",
    "gradscaler",
    "amp",
    "loss",
    "native",
    "fp",
    "mixed",
    "precision",
    "state",
    "dict",
}
GRAD_SCALER_KEYS = {"scale", "_scale", "growth_factor", "backoff_factor", "growth_interval", "_growth_tracker", "growth_tracker"}
GRAD_SCALER_KEYS |= {"loss_scale", "loss_scaler0", "unskipped", "enabled"}
"""Words of the keys of `torch.amp.GradScaler` and apex's, and what their states hold; no other scaler is training's alone."""
LOSS_VECTORS = ("class_weight", "class_weights", "pos_weight", "loss_weight", "loss_weights")
"""Vectors that a loss function of torch is given, saved beside the network."""
SECOND_NETWORKS = ("student", "center", "momentum", "momentum_encoder", "dino_loss", "ibot_patch_loss")
"""What self-distillation trains beside the ``teacher``, whose weights are the ones that are used (DINO)."""
AVERAGED = {"ema", "swa", "avg", "average", "averaged", "polyak", "shadow"}
"""Words of the keys of averaged weights."""
SHOWN = 8
MOST_LISTED = 100
HUGE = 1e300
"""Numbers that are none of an answer."""
USED = {*HINTS, *NETWORK_OPTIONS, "mean", "std", "interpolation", "img_size", "input_size"}
"""Keys of entries that are read and held against the card."""

Leaf = tuple[str, Any]
"""A tensor or an array, and the path to it."""


def account_beside(
    torch: Any,
    file: Path,
    state: Mapping[str, Any],
    outside: Iterable[tuple[str, Any]],
    containers: Iterable[str],
    notes: list[str],
) -> list[str]:
    """See that nothing beside the network can be a part of it.

    Args:
        torch: the module.
        file: for messages.
        state: the network's tensors.
        outside: entries beside the network, and beside each container that it was taken out of, by their keys.
        containers: keys of containers of a network, inside which a twin of it may lie.
        notes: gets one sentence for each kind of thing that is left aside.

    Returns:
        Warnings: what may belong to the answer, and was not used.

    Raises:
        UnsupportedCheckpointError: tensors, or arrays like a layer's weights, that no known part of training explains.
    """
    shapes = {name: shape_of(tensor) for name, tensor in state.items()}
    twins, training, numbers, arrays, lost, telling, rows = [], [], [], [], [], [], []
    plain: list[str] = []
    for key, value in outside:
        held = _leaves(torch, key, value)
        plain += _plain_entries(torch, key, value)
        if is_training_state(key, value) and not any(_is_of_a_layer(name, leaf) for name, leaf in held):
            telling += [] if is_optimizer(key) else _telling_numbers(torch, key, value, True)
            training += [key] if any(isinstance(leaf, torch.Tensor) for _, leaf in held) else []
            continue
        if held and (key in SECOND_NETWORKS or is_twin(torch, shapes, key, value, containers)):
            twins.append(key)
            continue
        telling += _telling_numbers(torch, key, value)
        for name, leaf in held:
            if _is_a_number(torch, name, leaf):
                numbers.append(f"{name} = {leaf.item():.6g}")
            elif _cannot_be_weights(torch, name, leaf):
                rows.append(name)
            elif isinstance(leaf, torch.Tensor) or _may_be_weights(leaf):
                lost.append(f"{name} {list(shape_of(leaf))}")
            else:
                arrays.append(name)
    if lost:
        more = f" and {len(lost) - SHOWN} more" if len(lost) > SHOWN else ""
        raise UnsupportedCheckpointError(
            f"{file.name}: tensors lie outside the network that was found, of {len(state)} tensors, and would be lost "
            f"({len(lost)}): {', '.join(name[:80] for name in lost[:SHOWN])}{more}. If they are parts of the network, save the "
            f"state_dict of the whole; if they are not, save the network's state_dict alone."
        )
    for said, found in (
        ("also there and not used", twins),
        ("training state and options that hold tensors, left aside", training),
        ("single numbers beside the network, left aside", numbers),
        ("whole numbers and records beside the network, which cannot be weights, left aside", rows),
        ("arrays beside the network, left aside", arrays),
    ):
        if found:
            notes.append(f"{said}: {', '.join(found[:SHOWN])}")
    if plain:
        more = f" and {len(plain) - MOST_LISTED} more" if len(plain) > MOST_LISTED else ""
        notes.append(f"entries of the file that were not used: {', '.join(plain[:MOST_LISTED])}{more}")
    other = [key for key in twins if key not in (*containers, *SECOND_NETWORKS)]
    averaged = [key for key in other if not AVERAGED.isdisjoint(words_of(key))]
    if averaged:
        raise UnsupportedCheckpointError(
            f"{file.name} holds the network twice, once with averaged weights ({', '.join(averaged[:SHOWN])}), and which of "
            f"the two was evaluated it does not say. Save that one's state_dict alone, and convert that."
        )
    warnings = []
    if telling:
        warnings.append(
            f"beside the network the file holds {', '.join(telling[:SHOWN])}, which was not used: if the answers are to be "
            f"scaled, shifted, sharpened or cut by it, say so (--standardised MEAN,DEVIATION for a regression, threshold in the "
            f"card)"
        )
    better = [key for key in twins if key in other or "best" in key.lower()]
    if better:
        warnings.append(
            f"the file holds the network more than once, and {', '.join(better[:SHOWN])} was not used; if that is the one that "
            f"was evaluated, save it alone and convert that; of several that answer together each is a network of its own"
        )
    return warnings


def is_training_state(key: Any, value: Any = None) -> bool:
    """Whether an entry is what training alone needs. A tensor at the top counts by its own name, as a whole."""
    name = str(key).lower()
    if hasattr(value, "ndim") and ("." in name or name in LOSS_VECTORS):
        return value.ndim <= 1 and (name in LOSS_VECTORS or is_of_a_loss(name))
    if "temperature" in name:
        return False
    words = {word for word in re.split(r"[^a-z]+", name) if word}
    if "scaler" in name:
        known = not isinstance(value, Mapping) or {str(part) for part in value} <= GRAD_SCALER_KEYS
        return words <= GRAD_SCALER_WORDS and known
    if any(word.startswith("optim") and not word.startswith("optimal") for word in words):
        return True
    if any(word in name for word in TRAINING_STATE):
        return True
    return not TRAINING_WORDS.isdisjoint(words) and words <= TRAINING_WORDS | COMMON_WORDS


def is_twin(torch: Any, shapes: dict[str, tuple[int, ...]], key: str, value: Any, containers: Iterable[str]) -> bool:
    """Whether a container holds the same network with other numbers: averaged weights, the last step's, a student.

    Counters beside them (``steps``, ``decay``) do not count.
    """
    if isinstance(value, torch.Tensor):
        return False
    found = [(name[len(key) + 1 :], leaf) for name, leaf in _leaves(torch, key, value) if isinstance(leaf, torch.Tensor)]
    found = [(name, tensor) for name, tensor in found if tensor.ndim or "." in name]
    tensors = dict(found)
    if len(tensors) < len(found):
        return False
    for outer in containers:
        if tensors and all(name.startswith(f"{outer}.") for name in tensors):
            tensors = {name[len(outer) + 1 :]: tensor for name, tensor in tensors.items()}
    own = {name: shape_of(tensor) for name, tensor in without_wrappers(tensors, []).items()}
    return own == shapes


def shape_of(value: Any) -> tuple[int, ...]:
    """Shape, before it is known what kind of tensor this is: a nested one has none."""
    return () if getattr(value, "is_nested", False) else tuple(value.shape or ())


def _leaves(torch: Any, name: str, value: Any) -> list[Leaf]:
    """Every tensor and array, at any depth, under its path."""
    kinds = (torch.Tensor, Array, np.ndarray)
    return [(path, part) for path, part in _parts(torch, name, value) if isinstance(part, kinds)]


def _parts(torch: Any, name: str, value: Any) -> list[tuple[str, Any]]:
    """Everything in dictionaries, lists, options and modules, at any depth, under its path; each container is looked into once,
    for a forged one may hold itself."""
    found, seen, left = [], set(), [(name, value)]
    while left:
        name, value = left.pop()
        inner: Iterable[tuple[Any, Any]] = ()
        if isinstance(value, torch.nn.Module):
            inner = value.state_dict().items()
        elif isinstance(value, argparse.Namespace) or type(value).__name__ == "SimpleNamespace":
            inner = vars(value).items()
        elif isinstance(value, Mapping):
            inner = value.items()
        elif isinstance(value, (list, tuple, set, frozenset)):
            inner = enumerate(value)
        else:
            found.append((name, value))
            continue
        if id(value) not in seen:
            seen.add(id(value))
            left += [(f"{name}.{key}"[:400], part) for key, part in inner]
    return found[::-1]


def _is_a_number(torch: Any, name: str, leaf: Any) -> bool:
    """Whether a tensor is a single number that a training script keeps (an epoch, the best loss), and no weight."""
    if not isinstance(leaf, torch.Tensor):
        return False
    last = name.rpartition(".")[2].lower()
    weight = any(word in last for word in ("weight", "bias", "temperature", "logit", "scale", "alpha", "gamma", "beta"))
    plain = not (leaf.is_meta or leaf.is_nested or leaf.is_sparse or leaf.is_complex())
    return plain and leaf.numel() == 1 and not weight


def _may_be_weights(leaf: Any) -> bool:
    """Whether an array of numpy has floating-point numbers in rows and columns."""
    floating = leaf.code.startswith("f") if isinstance(leaf, Array) else leaf.dtype.kind == "f"
    return floating and len(shape_of(leaf)) > 1


def _is_of_a_layer(name: str, leaf: Any) -> bool:
    """Whether a tensor has the name and the shape of a layer's weights, wherever it lies."""
    last = name.rpartition(".")[2].lower()
    return len(shape_of(leaf)) > 1 and ("weight" in last or "kernel" in last or last == "w")


def _cannot_be_weights(torch: Any, name: str, leaf: Any) -> bool:
    """Whether a tensor is none of a network's: whole numbers (states of random generators, indices, labels), a row of records."""
    if not isinstance(leaf, torch.Tensor) or _is_of_a_layer(name, leaf):
        return False
    if not (leaf.is_floating_point() or leaf.is_complex() or leaf.is_quantized):
        return True
    return len(shape_of(leaf)) <= 1 and not leaf.is_nested and is_a_record(name)


def _telling_numbers(torch: Any, key: str, value: Any, in_options: bool = False) -> list[str]:
    """Plain numbers, one or a few, whose names say that an answer may have to be scaled or cut by them."""
    found = []
    for name, part in _parts(torch, key, value):
        if hasattr(part, "transform"):  # as scikit-learn's scalers have
            found.append(f"{name} ({type(part).__name__})")
            continue
        if not tells(name, in_options):
            continue
        number = part.item() if isinstance(part, np.generic) or _is_a_number(torch, name, part) else part
        if isinstance(number, (int, float)) and not isinstance(number, bool) and abs(number) < HUGE:
            found.append(f"{name} = {number:.6g}")
        elif isinstance(part, (Array, np.ndarray)):
            found.append(f"{name} (an array)")
    return found


def _plain_entries(torch: Any, key: str, value: Any) -> list[str]:
    """Numbers and words at the top of a file and in its options, as they are listed; of words the names alone."""
    found = []
    for name, part in _parts(torch, key, value) if not is_optimizer(key) else []:
        if name.count(".") > 2 or name.split(".")[-1] in USED or (name.split(".")[-1].isdigit() and "." in name):
            continue
        if isinstance(part, np.generic):
            part = part.item()
        if isinstance(part, (bool, int, float)):
            found.append(f"{name} = {part:.6g}" if isinstance(part, float) else f"{name} = {part}"[:80])
        elif isinstance(part, str):
            found.append(name)
    return found
