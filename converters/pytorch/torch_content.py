"""Where the network is in what a torch file holds: out of containers, wrappers and prefixes, tensor by tensor checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fundus_rt.converters.pytorch.torch_beside import account_beside, is_training_state
from fundus_rt.converters.pytorch.torch_hints import Stated, note_hints
from fundus_rt.converters.pytorch.torch_names import without_wrappers
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

DEEPEST = 5
"""Containers within containers, at most."""


@dataclass(frozen=True)
class Found:
    """The network in a file of torch.save, and what the file says of it."""

    state: dict[str, Any]
    """Tensors by name, wrappers' prefixes taken off."""
    module: Any = None
    """The whole module where the file holds one, else None."""
    stated: Stated = field(default_factory=Stated)
    """What the file says of its classes, its architecture and its preprocessing."""
    warnings: tuple[str, ...] = ()
    """What lies beside the network, was not used and may belong to its answer."""


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
        beside = all(is_training_state(key) for key in inner) and any(tensor.ndim for tensor in tensors.values())
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
    """The network, once everything outside it is accounted for."""
    state = without_wrappers(tensors, notes)
    warnings = account_beside(torch, path, state, stated.outside, CONTAINER_KEYS, notes)
    return Found(state, module, stated, tuple(warnings))


def _kind_of(value: Any) -> str:
    """Class of a value; of a list also what is in it."""
    kind = type(value).__name__
    if isinstance(value, (list, tuple)):
        return f"{kind} of {len(value)} ({', '.join(sorted({type(part).__name__ for part in value[:50]})[:4]) or 'empty'})"
    return kind


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
    networks = [key for key in inner if not is_training_state(key)]
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
