"""Files of torch.save and safetensors: tensors out, code never in unless it is trusted."""

from __future__ import annotations

import argparse
import io
import pickle
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from fundus_rt.converters.backends import require
from fundus_rt.converters.checkpoint import Checkpoint
from fundus_rt.models.errors import UnsupportedCheckpointError, UntrustedCheckpointError

CONTAINER_KEYS = (
    "state_dict_ema",
    "model_ema",
    "ema_state_dict",
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

HARMLESS_GLOBALS = ("collections.OrderedDict", "argparse.Namespace", "torch._utils.", "torch.Size", "torch.device")


def read_torch(path: Path, sha256: str, kind: str, trust_pickle: bool, progress: Callable[[str], None] | None) -> Checkpoint:
    """Read a file of torch.save, either format; see `read_checkpoint`.

    Args:
        path: the file.
        sha256: hash of its content.
        kind: ``torch-zip`` or ``torch-legacy``.
        trust_pickle: allow code from the file.
        progress: told what is about to be executed when `trust_pickle` is given and needed.

    Raises:
        UnsupportedCheckpointError: damaged, or no network in it.
        UntrustedCheckpointError: it asks for code and is not trusted.
    """
    torch = require("torch")
    content = _load(torch, path, trust_pickle, progress)
    notes: list[str] = []
    state = _without_prefix(_network_of(torch, path, content, notes), notes)
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    return Checkpoint(path, sha256, kind, "pytorch", shapes, state, notes=tuple(notes), trusted=trust_pickle)


def read_safetensors(path: Path, sha256: str) -> Checkpoint:
    """Read a ``.safetensors`` file, a format that cannot carry code.

    Raises:
        UnsupportedCheckpointError: damaged.
    """
    loader = require("safetensors.torch")
    try:
        state = loader.load_file(str(path))
    except Exception as error:  # the library raises its own class, which it does not export in every version
        raise UnsupportedCheckpointError(
            f"{path.name} is not a readable safetensors file ({error}); download it again"
        ) from error
    notes: list[str] = []
    state = _without_prefix(dict(state), notes)
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    return Checkpoint(path, sha256, "safetensors", "pytorch", shapes, state, notes=tuple(notes))


def _load(torch: Any, path: Path, trust_pickle: bool, progress: Callable[[str], None] | None) -> Any:
    """The unpickled content, through torch's restricted unpickler unless trusted code is needed."""
    try:
        with torch.serialization.safe_globals(_plain_types()):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        asked = globals_asked_for(path)
        if not asked:
            raise UnsupportedCheckpointError(f"{path.name} is damaged ({_first_line(error)}); download it again") from error
        listing = ", ".join(asked[:6]) + (f" and {len(asked) - 6} more" if len(asked) > 6 else "")
        if not trust_pickle:
            raise UntrustedCheckpointError(
                f"{path.name} is not only tensors: reading it would run code, for it asks for {listing}. If you know where "
                f"the file comes from and trust its authors, add --trust-pickle; or ask them for the state_dict."
            ) from error
    except Exception as error:  # what torch raises on damage depends on where the damage is
        raise UnsupportedCheckpointError(
            f"{path.name} is cut short or damaged ({_first_line(error)}); download it again and compare its size"
        ) from error
    if progress is not None:
        progress(f"Running code from {path.name}, as --trust-pickle allows: it asks for {listing}")
    try:
        return torch.load(path, map_location="cpu", weights_only=False)
    except Exception as error:  # whatever the file's own code raises
        raise UnsupportedCheckpointError(
            f"{path.name} cannot be unpickled ({type(error).__name__}: {_first_line(error)}); it needs the code it was "
            f"saved with: install that, or ask the authors for the state_dict"
        ) from error


def _plain_types() -> list[Any]:
    """Types that training scripts store beside the weights and that cannot run code: options, and numpy's scalars."""
    import codecs

    import numpy as np

    scalar = np.float64(0).__reduce__()[0]
    allowed: list[Any] = [argparse.Namespace, np.dtype, scalar, codecs.encode]
    allowed += [(scalar, "numpy.core.multiarray.scalar"), (scalar, "numpy._core.multiarray.scalar")]
    return allowed + [type(np.dtype(code)) for code in ("f8", "f4", "i8", "i4", "?")]


def globals_asked_for(path: Path) -> tuple[str, ...]:
    """Names of the functions and classes, other than torch's tensors, that a pickle asks for; nothing of it is run.

    Every global is answered with an inert stand-in, so the whole pickle can be walked.
    """
    asked: dict[str, None] = {}

    class _Inert:
        def __init__(self, *args: Any, **kwargs: Any) -> None: ...
        def __call__(self, *args: Any, **kwargs: Any) -> _Inert:
            return _Inert()

        def __setstate__(self, state: Any) -> None: ...
        def __setitem__(self, key: Any, value: Any) -> None: ...
        def append(self, value: Any) -> None: ...
        def extend(self, values: Any) -> None: ...
        def add(self, value: Any) -> None: ...
        def __hash__(self) -> int:
            return 0

    class _Lister(pickle.Unpickler):
        def find_class(self, module: str, name: str, /) -> Any:
            full = f"{module}.{name}".replace("__builtin__.", "builtins.")
            storage = full.startswith("torch.") and full.endswith("Storage")
            if not storage and not full.startswith(HARMLESS_GLOBALS):
                asked[full] = None
            return _Inert

        def persistent_load(self, pid: Any, /) -> Any:
            return _Inert()

    try:
        for stream in _pickles_of(path):
            _Lister(stream).load()
    except Exception as error:  # a hostile or damaged pickle may stop anywhere: what was asked until then still counts
        if not asked and isinstance(error, OSError):
            raise
    return tuple(asked)


def _pickles_of(path: Path) -> list[Any]:
    """Streams at the pickles of a torch file: ``data.pkl`` of the zip format, else the file's four in a row."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            name = next(n for n in archive.namelist() if n.endswith("data.pkl"))
            return [io.BytesIO(archive.read(name))]
    stream = io.BytesIO(path.read_bytes())
    return [stream] * 4


def _network_of(torch: Any, path: Path, content: Any, notes: list[str]) -> dict[str, Any]:
    """The network's tensors by name, out of whatever containers the training script put around them."""
    for _ in range(5):
        if isinstance(content, torch.nn.Module):
            notes.append(f"the file is a whole pickled module ({type(content).__name__}); its state_dict is used")
            content = content.state_dict()
        if not isinstance(content, Mapping):
            raise UnsupportedCheckpointError(
                f"{path.name} holds a {type(content).__name__}, expected a dictionary of tensors; save model.state_dict()"
            )
        tensors = {str(k): v for k, v in content.items() if isinstance(v, torch.Tensor)}
        inner = [k for k, v in content.items() if isinstance(v, (Mapping, torch.nn.Module)) and _holds_tensors(torch, v)]
        if tensors and not inner:
            _note_others(content, tensors, notes)
            return tensors
        key = _container_key(path, content, inner)
        others = [k for k in inner if k != key and not _is_training_state(k)]
        also = f"; also there and not used: {', '.join(map(str, others))}" if others else ""
        notes.append(f"network taken from {key!r}{also}")
        content = content[key]
    raise UnsupportedCheckpointError(f"{path.name} nests its tensors deeper than five containers; save model.state_dict()")


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
    return any(word in str(key).lower() for word in ("optim", "sched", "scaler", "loss_fn", "criterion"))


def _holds_tensors(torch: Any, value: Any) -> bool:
    if isinstance(value, torch.nn.Module):
        return True
    return any(isinstance(v, torch.Tensor) or (isinstance(v, Mapping) and _holds_tensors(torch, v)) for v in value.values())


def _note_others(content: Mapping[Any, Any], tensors: Mapping[str, Any], notes: list[str]) -> None:
    others = [str(key) for key in content if str(key) not in tensors]
    if others:
        notes.append(f"entries that are not tensors, left aside: {', '.join(others[:6])}")


def _without_prefix(state: dict[str, Any], notes: list[str]) -> dict[str, Any]:
    """Take off wrapper prefixes that every tensor carries; ``n_averaged`` of `AveragedModel` is left aside."""
    if "n_averaged" in state:
        notes.append("n_averaged, the counter of an averaged model, left aside")
        state = {name: tensor for name, tensor in state.items() if name != "n_averaged"}
    stripped = ""
    while prefix := next((p for p in PREFIXES if state and all(name.startswith(p) for name in state)), ""):
        state = {name[len(prefix) :]: tensor for name, tensor in state.items()}
        stripped += prefix
    if stripped:
        notes.append(f"prefix {stripped!r} taken off every name")
    return state


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0][:200] or type(error).__name__
