"""Where the network is in what a torch file holds: out of containers, wrappers and prefixes, tensor by tensor checked."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

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

LOSS = re.compile(r"(.*\.)?(criterion|criterions|loss|loss_fn|loss_func|loss_function|losses)\.(.*\.)?\w+")
"""Names of the tensors of a loss that was a part of the training module (class weights, for example)."""

TRAINING_STATE = ("optim", "sched", "scaler", "loss_fn", "criterion", "callbacks", "loops")
DEEPEST = 5
"""Containers within containers, at most."""
COPIES = 8
"""How many times the file's size its tensors may take in memory together, before they are held for a forgery."""
HINTS = ("arch", "model", "model_name", "architecture", "backbone", "net")
"""Training options that name the network."""


def network_in(torch: Any, path: Path, content: Any, notes: list[str]) -> tuple[dict[str, Any], Any]:
    """The network's tensors out of whatever containers the training script put around them.

    Args:
        torch: the module.
        path: the file, for messages.
        content: what was unpickled.
        notes: gets one sentence for each thing that was unwrapped or left aside.

    Returns:
        Tensors by name, wrappers' prefixes taken off, and the whole module where the file holds one, else None.

    Raises:
        UnsupportedCheckpointError: no network, or several and none by a known name.
    """
    for _ in range(DEEPEST):
        if isinstance(content, torch.nn.Module):
            module = _unwrapped(torch, content, notes)
            return without_wrappers(dict(module.state_dict()), notes), module
        if not isinstance(content, Mapping):
            raise UnsupportedCheckpointError(
                f"{path.name} holds a {type(content).__name__}, expected a dictionary of tensors; save model.state_dict()"
            )
        _note_hints(content, notes)
        tensors = {str(k): v for k, v in content.items() if isinstance(v, torch.Tensor)}
        inner = [k for k, v in content.items() if isinstance(v, (Mapping, torch.nn.Module)) and _holds_tensors(torch, v)]
        beside = all(_is_training_state(key) for key in inner) and any(tensor.ndim for tensor in tensors.values())
        if tensors and (not inner or beside):
            _note_others(content, tensors, notes)
            return without_wrappers(tensors, notes), None
        key = _container_key(path, content, inner)
        others = [k for k in inner if k != key and not _is_training_state(k)]
        also = f"; also there and not used: {', '.join(map(str, others))}" if others else ""
        notes.append(f"network taken from {key!r}{also}")
        content = content[key]
    raise UnsupportedCheckpointError(f"{path.name} nests its tensors deeper than five containers; save model.state_dict()")


def without_wrappers(state: dict[str, Any], notes: list[str]) -> dict[str, Any]:
    """Tensors under the network's own names; what is known to be no part of its answer is left aside, and said.

    That is ``n_averaged`` of `AveragedModel` and the vectors of a loss. Any other stranger stays, so that it is refused
    as left over.
    """
    aside = [name for name in state if name.rpartition(".")[2] == "n_averaged"]
    if aside:
        notes.append("n_averaged, the counter of an averaged model, left aside")
    losses = [name for name, tensor in state.items() if LOSS.fullmatch(name) and tensor.ndim <= 1]
    if losses:
        notes.append(f"tensors of a loss, which take no part in the answer, left aside: {', '.join(losses[:6])}")
    kept = {name: tensor for name, tensor in state.items() if name not in {*aside, *losses}}
    names, prefix = plain_names(kept)
    if prefix:
        notes.append(f"prefix {prefix!r} taken off every name")
    if len(set(names.values())) < len(names):
        return kept
    return {names[name]: tensor for name, tensor in kept.items()}


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


def check_tensors(torch: Any, path: Path, state: Mapping[str, Any], notes: list[str]) -> None:
    """Refuse tensors that a network does not have, before anything is computed with them.

    Raises:
        UnsupportedCheckpointError: sparse, quantized, complex or meta tensors, tensors of another package's class, tensors
            that repeat their own numbers, or more numbers than the file can hold.
    """
    total = 0
    for name, tensor in state.items():
        problem = _problem_of(torch, tensor)
        if problem:
            raise UnsupportedCheckpointError(
                f"{path.name}: the tensor {name} {list(tensor.shape)} {problem}; expected plain tensors of numbers. Save "
                f"model.state_dict() of the float network"
            )
        total += tensor.numel() * tensor.element_size()
    held = path.stat().st_size
    if total > COPIES * held + 2**24:
        raise UnsupportedCheckpointError(
            f"{path.name} has {held:,} bytes, but its tensors claim {total:,}: many of them are views of the same numbers, "
            f"which no network has; it is damaged or forged"
        )
    kinds = sorted({str(t.dtype).removeprefix("torch.") for t in state.values() if t.is_floating_point()} - {"float32"})
    if kinds:
        notes.append(f"weights are stored as {' and '.join(kinds)}; the network is computed in float32")


def _problem_of(torch: Any, tensor: Any) -> str:
    if type(tensor) not in (torch.Tensor, torch.nn.Parameter, torch.nn.Buffer):
        return f"is of the class {type(tensor).__module__}.{type(tensor).__name__}"
    if tensor.is_meta:
        return "is on torch's meta device: it has a shape and no numbers"
    if tensor.is_nested or tensor.layout != torch.strided:
        return f"is not dense ({str(tensor.layout).removeprefix('torch.')})"
    if tensor.is_quantized:
        return f"is quantized ({str(tensor.dtype).removeprefix('torch.')})"
    if tensor.is_complex():
        return "is complex"
    extent = 1 + sum((length - 1) * stride for length, stride in zip(tensor.shape, tensor.stride(), strict=True))
    if tensor.numel() > extent:
        return f"repeats its own numbers (strides {list(tensor.stride())})"
    return ""


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


def _container_key(path: Path, content: Mapping[Any, Any], inner: list[Any]) -> Any:
    known = [key for key in CONTAINER_KEYS if key in inner]
    if known:
        return known[0]
    networks = [key for key in inner if not _is_training_state(key)]
    if len(networks) == 1:
        return networks[0]
    raise UnsupportedCheckpointError(
        f"{path.name}: cannot tell which entry is the network; it has {', '.join(map(repr, list(content)[:12])) or 'none'}. "
        f"Expected one of {', '.join(CONTAINER_KEYS)}, or tensors at the top; save model.state_dict() alone."
    )


def _is_training_state(key: Any) -> bool:
    return str(key).lower() == "opt" or any(word in str(key).lower() for word in TRAINING_STATE)


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


def _note_hints(content: Mapping[Any, Any], notes: list[str]) -> None:
    """What the file says of itself in words: the network's name in the training options, the names of the classes."""
    for where in (content, content.get("args"), content.get("hyper_parameters"), content.get("config")):
        options: Mapping[Any, Any] = where if isinstance(where, Mapping) else getattr(where, "__dict__", {})
        for key in HINTS:
            word = options.get(key)
            said = f"the file calls its network {word[:60]!r}" if isinstance(word, str) else ""
            if said and said not in notes:
                notes.append(said)
    meta = content.get("meta")
    classes = meta.get("CLASSES", (meta.get("dataset_meta") or {}).get("classes")) if isinstance(meta, Mapping) else None
    if isinstance(classes, (list, tuple)) and all(isinstance(name, str) for name in classes):
        notes.append(f"the file lists its classes as {', '.join(repr(name[:40]) for name in classes[:12])}")
