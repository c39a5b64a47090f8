"""Where the network is in what a torch file holds: out of containers, wrappers and prefixes, tensor by tensor checked."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fundus_rt.converters.pytorch.torch_hints import Stated, note_hints
from fundus_rt.models.errors import UnsupportedCheckpointError

CONTAINER_KEYS = (
    "state_dict_ema",
    "model_ema",
    "ema_state_dict",
    "ema",
    "model",
    "state_dict",
    "model_state_dict",
    "net",
    "network",
    "module",
    "teacher",
    "visionfm_state_dict",
    "weights",
    "params",
)
"""Keys under which training scripts put the network, the first present one taken: averaged weights before the last
step's, as timm's `load_state_dict(use_ema=True)` does; which one was taken is always said."""

PREFIXES = ("module.", "_orig_mod.", "backbone.", "model.", "net.", "network.", "encoder.", "swin.", "base_model.")
"""Prefixes of wrapper modules (DataParallel, torch.compile, Lightning, own classes), taken off when every tensor has it."""

INNER_WRAPPERS = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")
"""What torch.compile, FSDP and activation checkpointing put into the names of the parts that they wrap, at any depth."""

WRAPPER_CLASSES = {
    "DataParallel": "module",
    "DistributedDataParallel": "module",
    "OptimizedModule": "_orig_mod",
    "AveragedModel": "module",
    "ModelEma": "ema",
    "ModelEmaV2": "module",
    "ModelEmaV3": "module",
}
"""Classes of torch and timm around a network, and the attribute under which each keeps it."""

LOSS = {"criterion", "criterions", "loss", "loss_fn", "loss_func", "loss_function", "losses"}
"""Parts of the names of a loss's tensors, where it was a part of the training module (class weights, for example)."""

TRAINING_STATE = ("optim", "sched", "scaler", "loss_fn", "criterion", "callbacks", "loops")
"""Parts of the keys of what training alone needs."""
TRAINING_WORDS = {"amp", "args", "cfg", "config", "hparams", "history", "hyper", "log", "logs", "losses", "meta", "metric"}
TRAINING_WORDS |= {"message", "metrics", "opt", "options", "random", "rng"}
"""Words that such keys consist of: options, records and the states of random generators."""
COMMON_WORDS = {"best", "cpu", "cuda", "dict", "generator", "hub", "native", "np", "numpy", "parameters", "params", "python"}
COMMON_WORDS |= {"scaling", "state", "states", "test", "torch", "train", "training", "val", "valid", "validation"}
"""Words that may stand beside those."""
LOSS_VECTORS = ("class_weight", "class_weights", "pos_weight")
"""Vectors that a loss function of torch is given, saved beside the network."""
SECOND_NETWORKS = ("student", "center", "momentum", "momentum_encoder", "dino_loss", "ibot_patch_loss")
"""What self-distillation trains beside the ``teacher``, whose weights are the ones that are used (DINO)."""
DEEPEST = 5
"""Containers within containers, at most."""


@dataclass(frozen=True)
class Found:
    """The network in a file of torch.save, and what the file says of it."""

    state: dict[str, Any]
    """Tensors by name, wrappers' prefixes taken off."""
    module: Any = None
    """The whole module where the file holds one, else None."""
    classes: tuple[str, ...] = ()
    """Names of the classes in the order of the columns, as the file lists them; empty when it does not."""
    architecture: str = ""
    """What the training options call the network; empty when they do not."""


def network_in(torch: Any, path: Path, content: Any, notes: list[str]) -> Found:
    """The network's tensors out of whatever containers the training script put around them.

    Args:
        torch: the module.
        path: the file, for messages.
        content: what was unpickled.
        notes: gets one sentence for each thing that was unwrapped or left aside.

    Returns:
        The network, every tensor of the file either in it or known to be no part of it.

    Raises:
        UnsupportedCheckpointError: no network, several and none by a known name, or tensors beside it that may be parts of it.
    """
    stated = Stated()
    for _ in range(DEEPEST):
        if isinstance(content, torch.nn.Module):
            module = _unwrapped(torch, content, notes)
            return _found(torch, path, dict(module.state_dict()), module, stated, notes)
        if not isinstance(content, Mapping):
            raise UnsupportedCheckpointError(
                f"{path.name} holds a {_kind_of(content)}, expected a dictionary of tensors; save model.state_dict()"
            )
        note_hints(content, stated, notes)
        tensors = {str(k): v for k, v in content.items() if isinstance(v, torch.Tensor)}
        inner = [k for k, v in content.items() if isinstance(v, (Mapping, torch.nn.Module)) and _holds_tensors(torch, v)]
        beside = all(_is_training_state(key) for key in inner) and any(tensor.ndim for tensor in tensors.values())
        if tensors and (not inner or beside):
            _note_others(content, tensors, notes)
            stated.outside += [(str(k), v) for k, v in content.items() if str(k) not in tensors]
            return _found(torch, path, tensors, None, stated, notes)
        key = _container_key(path, content, inner, notes)
        notes.append(f"network taken from {key!r}")
        stated.outside += [(str(k), v) for k, v in content.items() if k != key]
        content = content[key]
    raise UnsupportedCheckpointError(f"{path.name} nests its tensors deeper than five containers; save model.state_dict()")


def _found(torch: Any, path: Path, tensors: dict[str, Any], module: Any, stated: Stated, notes: list[str]) -> Found:
    """The network, once the tensors outside it are accounted for."""
    state = without_wrappers(tensors, notes)
    shapes = {name: _shape_of(tensor) for name, tensor in state.items()}
    twins, training, numbers, lost = [], [], [], []
    for key, value in stated.outside:
        held = _tensors_in(torch, key, value)
        if not held:
            continue
        if _is_training_state(key, value):
            training.append(key)
        elif key in SECOND_NETWORKS or _is_twin(torch, shapes, key, value):
            twins.append(key)
        else:
            numbers += [f"{name} = {tensor.item():.6g}" for name, tensor in held if _is_a_number(name, tensor)]
            lost += [f"{name} {list(_shape_of(tensor))}" for name, tensor in held if not _is_a_number(name, tensor)]
    if lost:
        more = f" and {len(lost) - 8} more" if len(lost) > 8 else ""
        raise UnsupportedCheckpointError(
            f"{path.name}: tensors lie outside the network that was found, of {len(state)} tensors, and would be lost "
            f"({len(lost)}): {', '.join(name[:80] for name in lost[:8])}{more}. If they are parts of the network, save the "
            f"state_dict of the whole; if they are not, save the network's state_dict alone."
        )
    if twins:
        notes.append(f"also there and not used: {', '.join(twins)}")
    if training:
        notes.append(f"training state and options that hold tensors, left aside: {', '.join(training[:8])}")
    if numbers:
        notes.append(f"single numbers beside the network, left aside: {', '.join(numbers[:8])}")
    return Found(state, module, stated.classes, stated.architecture)


def _tensors_in(torch: Any, name: str, value: Any) -> list[tuple[str, Any]]:
    """Every tensor in dictionaries, lists, options and modules, at any depth, under its path; each container is looked into
    once, for a forged one may hold itself."""
    found, seen, left = [], set(), [(name, value)]
    while left:
        name, value = left.pop()
        if isinstance(value, torch.Tensor):
            found.append((name, value))
            continue
        inner: Iterable[tuple[Any, Any]] = ()
        if isinstance(value, torch.nn.Module):
            inner = value.state_dict().items()
        elif isinstance(value, argparse.Namespace):
            inner = vars(value).items()
        elif isinstance(value, Mapping):
            inner = value.items()
        elif isinstance(value, (list, tuple, set, frozenset)):
            inner = enumerate(value)
        else:
            continue
        if id(value) not in seen:
            seen.add(id(value))
            left += [(f"{name}.{key}"[:400], part) for key, part in inner]
    return found[::-1]


def _is_twin(torch: Any, shapes: dict[str, tuple[int, ...]], key: str, value: Any) -> bool:
    """Whether a container holds the same network with other numbers: averaged weights, the last step's, a student.

    Counters beside them (``steps``, ``decay``) do not count.
    """
    if isinstance(value, torch.Tensor):
        return False
    found = [(name[len(key) + 1 :], tensor) for name, tensor in _tensors_in(torch, key, value)]
    found = [(name, tensor) for name, tensor in found if tensor.ndim or "." in name]
    tensors = dict(found)
    if len(tensors) < len(found):
        return False
    for outer in CONTAINER_KEYS:
        if tensors and all(name.startswith(f"{outer}.") for name in tensors):
            tensors = {name[len(outer) + 1 :]: tensor for name, tensor in tensors.items()}
    own = {name: _shape_of(tensor) for name, tensor in without_wrappers(tensors, []).items()}
    return own == shapes


def _is_a_number(name: str, tensor: Any) -> bool:
    """Whether a tensor is a single number that a training script keeps (an epoch, the best loss), and no weight."""
    last = name.rpartition(".")[2].lower()
    weight = any(word in last for word in ("weight", "bias", "temperature", "logit", "scale", "alpha", "gamma", "beta"))
    plain = not (tensor.is_meta or tensor.is_nested or tensor.is_sparse or tensor.is_complex())
    return plain and tensor.numel() == 1 and not weight


def _shape_of(tensor: Any) -> tuple[int, ...]:
    """Shape, before it is known what kind of tensor this is: a nested one has none."""
    return () if tensor.is_nested else tuple(tensor.shape)


def _kind_of(value: Any) -> str:
    """Class of a value; of a list also what is in it."""
    kind = type(value).__name__
    if isinstance(value, (list, tuple)):
        return f"{kind} of {len(value)} ({', '.join(sorted({type(part).__name__ for part in value[:50]})[:4]) or 'empty'})"
    return kind


def without_wrappers(state: dict[str, Any], notes: list[str]) -> dict[str, Any]:
    """Tensors under the network's own names; what is known to be no part of its answer is left aside, and said.

    That is the counter of an averaged model (``n_averaged`` of torch, ``steps`` of MMEngine) and the vectors of a loss. Any
    other stranger stays, so that it is refused as left over.
    """
    aside = [name for name, t in state.items() if name.rpartition(".")[2] == "n_averaged" or (name == "steps" and not t.ndim)]
    if aside:
        notes.append(f"{', '.join(aside[:6])}, the counter of an averaged model, left aside")
    losses = [name for name, tensor in state.items() if tensor.ndim <= 1 and _is_of_a_loss(name)]
    if losses:
        notes.append(f"tensors of a loss, which take no part in the answer, left aside: {', '.join(losses[:6])}")
    kept = {name: tensor for name, tensor in state.items() if name not in {*aside, *losses}}
    names, prefix = plain_names(kept)
    if prefix:
        notes.append(f"prefix {prefix!r} taken off every name")
    if len(set(names.values())) < len(names):
        return kept
    return {names[name]: tensor for name, tensor in kept.items()}


def _is_of_a_loss(name: str) -> bool:
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


def _unwrapped(torch: Any, module: Any, notes: list[str]) -> Any:
    """The network inside DataParallel and its like; an averaged model's wrapper goes too."""
    outer = []
    while True:
        inner = getattr(module, WRAPPER_CLASSES.get(type(module).__name__, ""), None)
        if not isinstance(inner, torch.nn.Module):
            break
        outer.append(type(module).__name__)
        module = inner
    around = f", taken out of {' in '.join(reversed(outer))}" if outer else ""
    notes.append(f"the file is a whole pickled module ({type(module).__module__}.{type(module).__qualname__}){around}")
    return module


def _container_key(path: Path, content: Mapping[Any, Any], inner: list[Any], notes: list[str]) -> Any:
    meta = content.get("meta")
    of_mmengine = "message_hub" in content or (isinstance(meta, Mapping) and "mmengine_version" in meta)
    if of_mmengine and "state_dict" in inner:
        if "ema_state_dict" in inner:
            notes.append(
                "saved by MMEngine, whose EMAHook swaps the two when it saves: state_dict holds the averaged weights, "
                "ema_state_dict those of the last step"
            )
        return "state_dict"
    known = [key for key in CONTAINER_KEYS if key in inner]
    if known:
        return known[0]
    networks = [key for key in inner if not _is_training_state(key)]
    if len(networks) == 1:
        return networks[0]
    odd = [
        f"{key!r} is a {_kind_of(value)}"
        for key, value in content.items()
        if key not in inner and (key in CONTAINER_KEYS or isinstance(value, (list, tuple)))
    ]
    but = f" Of these {'; '.join(odd[:4])}; give a file of one network." if odd else ""
    raise UnsupportedCheckpointError(
        f"{path.name}: cannot tell which entry is the network; it has {', '.join(map(repr, list(content)[:12])) or 'none'}.{but} "
        f"Expected a dictionary of tensors under one of {', '.join(CONTAINER_KEYS)}, or tensors at the top; save "
        f"model.state_dict() alone."
    )


def _is_training_state(key: Any, value: Any = None) -> bool:
    """Whether an entry is what training alone needs. A tensor at the top counts by its own name, as a whole."""
    name = str(key).lower()
    if hasattr(value, "ndim") and ("." in name or name in LOSS_VECTORS):
        return value.ndim <= 1 and (name in LOSS_VECTORS or _is_of_a_loss(name))
    if "temperature" in name:
        return False
    if any(word in name for word in TRAINING_STATE):
        return True
    words = {word for word in re.split(r"[^a-z]+", name) if word}
    return not TRAINING_WORDS.isdisjoint(words) and words <= TRAINING_WORDS | COMMON_WORDS


def _holds_tensors(torch: Any, value: Any, depth: int = DEEPEST, seen: set[int] | None = None) -> bool:
    """Whether a module or tensor is in there; each container is looked into once, for a forged one may hold itself."""
    seen = set() if seen is None else seen
    if isinstance(value, (torch.nn.Module, torch.Tensor)):
        return True
    if not isinstance(value, Mapping) or depth == 0 or id(value) in seen:
        return False
    seen.add(id(value))
    return any(_holds_tensors(torch, inner, depth - 1, seen) for inner in value.values())


def _note_others(content: Mapping[Any, Any], tensors: Mapping[str, Any], notes: list[str]) -> None:
    others = [str(key) for key in content if str(key) not in tensors]
    if others:
        notes.append(f"entries that are not tensors, left aside: {', '.join(others[:6])}")
