"""Files of torch.save and safetensors: tensors out, code never in unless it is trusted."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fundus_rt.converters.backends import require, require_torchvision, versions
from fundus_rt.converters.checkpoint import Checkpoint
from fundus_rt.converters.pytorch.pickle_listing import protocol_of, walk
from fundus_rt.converters.pytorch.stand_ins import STAND_INS
from fundus_rt.converters.pytorch.torch_content import network_in
from fundus_rt.converters.pytorch.torch_hints import Stated, note_hints
from fundus_rt.converters.pytorch.torch_names import without_wrappers
from fundus_rt.converters.pytorch.torch_tensors import check_tensors
from fundus_rt.models.errors import UnsupportedCheckpointError, UntrustedCheckpointError

SHOWN = 12
"""How many of the names that a pickle asks for are shown."""
FOLDER = 0x10
"""Attribute of a folder in a zip file's table of contents. torch gives the memory of such an entry unfilled, whatever was in
it before, and zipfile does not look at it."""
INFLATION = 16
"""How many times its own size a zip file may unpack to; torch.save does not compress."""


def read_torch(path: Path, sha256: str, kind: str, trust_pickle: bool, progress: Callable[[str], None] | None) -> Checkpoint:
    """Read a file of torch.save, either format; see `read_checkpoint`.

    Args:
        path: the file.
        sha256: hash of its content.
        kind: ``torch-zip`` or ``torch-legacy``.
        trust_pickle: allow code from the file.
        progress: told what is about to be executed when `trust_pickle` is given and needed.

    Raises:
        UnsupportedCheckpointError: damaged, no network in it, or tensors that are no plain numbers.
        UntrustedCheckpointError: it asks for code and is not trusted.
    """
    torch = require("torch")
    if kind == "torch-zip":
        _refuse_forged_zip(path)
    content = _load(torch, path, trust_pickle, progress)
    notes: list[str] = []
    found = network_in(torch, path, content, notes)
    state = found.state
    check_tensors(torch, path, state, notes)
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    return Checkpoint(
        path,
        sha256,
        kind,
        "pytorch",
        shapes,
        state,
        module=found.module,
        notes=tuple(notes),
        trusted=trust_pickle,
        classes=found.stated.lists[0][1] if found.stated.lists else (),
        class_lists=tuple(found.stated.lists),
        stated_architecture=found.stated.architecture,
        stated_preparation=found.stated.preparation,
        warnings=found.warnings,
    )


def read_safetensors(path: Path, sha256: str) -> Checkpoint:
    """Read a ``.safetensors`` file, a format that cannot carry code.

    Raises:
        UnsupportedCheckpointError: damaged, or tensors that are no plain numbers.
    """
    torch = require("torch")
    try:
        with require("safetensors").safe_open(str(path), framework="pt") as file:
            metadata = file.metadata() or {}
        state = require("safetensors.torch").load_file(str(path))
    except Exception as error:  # the library raises its own class, which it does not export in every version
        raise UnsupportedCheckpointError(
            f"{path.name} is not a readable safetensors file ({error}); download it again"
        ) from error
    notes: list[str] = []
    stated = Stated()
    note_hints(metadata, stated, notes)
    state = without_wrappers(dict(state), notes)
    check_tensors(torch, path, state, notes)
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    return Checkpoint(
        path, sha256, "safetensors", "pytorch", shapes, state, notes=tuple(notes),
        classes=stated.lists[0][1] if stated.lists else (), class_lists=tuple(stated.lists),
        stated_architecture=stated.architecture, stated_preparation=stated.preparation,
    )  # fmt: skip


def _refuse_forged_zip(path: Path) -> None:
    """Refuse a zip file that torch.save did not leave like this: inflated, an entry twice, a checksum that does not hold.

    torch itself reads past wrong checksums. With `torch.serialization.set_crc32_options(False)` it writes zeros for all.
    """
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        unpacked, held = sum(entry.file_size for entry in entries), path.stat().st_size
        if unpacked > INFLATION * held + 2**20:
            raise UnsupportedCheckpointError(
                f"{path.name} has {held:,} bytes and would unpack to {unpacked:,}; torch.save does not compress, so it is "
                f"damaged or forged"
            )
        if len({entry.filename for entry in entries}) < len(entries):
            raise UnsupportedCheckpointError(
                f"{path.name} holds two entries of one name; torch.save does not write that, so it is damaged or forged"
            )
        folders = [entry.filename for entry in entries if entry.file_size and entry.external_attr & FOLDER]
        if folders:
            raise UnsupportedCheckpointError(
                f"{path.name} is damaged: its table of contents calls {folders[0]} a folder; download it again"
            )
        try:
            spoilt = archive.testzip() if any(entry.CRC for entry in entries) else None
        except Exception as error:  # what zipfile and zlib raise depends on where the damage is
            spoilt = _first_line(error)
    if spoilt is not None:
        raise UnsupportedCheckpointError(
            f"{path.name} is damaged: the checksum of {spoilt} does not hold, so its weights are not the ones that were saved; "
            f"download it again"
        )


def _load(torch: Any, path: Path, trust_pickle: bool, progress: Callable[[str], None] | None) -> Any:
    """The unpickled content, through torch's restricted unpickler unless trusted code is needed."""
    import warnings

    try:
        with torch.serialization.safe_globals(STAND_INS), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        asked, stopped = walk(path)
        protocol = protocol_of(path)
        listing = ", ".join(asked[:SHOWN]) + (f" and {len(asked) - SHOWN} more" if len(asked) > SHOWN else "")
        listing = listing or f"no code by name, but torch's safe reader does not take it (pickle protocol {protocol})"
        if stopped:
            raise UntrustedCheckpointError(
                f"{path.name} is damaged or forged: it asks for {', '.join(asked[:SHOWN]) or 'nothing'} up to a place where it "
                f"cannot be followed ({stopped}), so what it would run cannot be listed and it is not read, trusted or not. "
                f"Download it again, or ask for the state_dict."
            ) from error
        if not asked and not trust_pickle and protocol <= 2:
            raise UnsupportedCheckpointError(
                f"{path.name} is damaged, or holds what torch's safe reader does not take ({_reason(error)}); download it "
                f"again, or ask for the state_dict alone"
            ) from error
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
        progress(f"Running code from {path.name}, as --trust-pickle allows: it asks for {', '.join(asked) or listing}")
    if any(name.startswith(("torchvision.", "timm.")) for name in asked):
        require_torchvision()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=False)
    except Exception as error:  # whatever the file's own code raises
        raise UnsupportedCheckpointError(
            f"{path.name} cannot be unpickled ({type(error).__name__}: {_first_line(error)}); {_what_is_missing(error)}"
        ) from error


def _what_is_missing(error: Exception) -> str:
    """What to do about a pickle whose classes are not where it says."""
    if isinstance(error, ModuleNotFoundError) and error.name:
        package = error.name.partition(".")[0]
        found = versions(package)
        if found:
            return (
                f"the installed {package} {found[package]} has no {error.name}: it was moved, so install the version of "
                f"{package} that the file was saved with, or ask the authors for the state_dict"
            )
        return (
            f"it needs the module {error.name}, the code that it was saved with: put its folder on PYTHONPATH or install it, "
            f"or ask the authors for the state_dict"
        )
    if isinstance(error, AttributeError):
        return (
            "a class is not in its module any more: install the version of that package that the file was saved with, or ask "
            "the authors for the state_dict"
        )
    return "it needs the code it was saved with: install that, or ask the authors for the state_dict"


def _reason(error: BaseException) -> str:
    """What torch's safe reader says itself, without the advice around it."""
    return " ".join(str(error).partition("WeightsUnpickler error:")[2].split())[:120] or _first_line(error)


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0][:200] or type(error).__name__
