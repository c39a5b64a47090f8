"""Published checkpoint files: what kind a file is, and its tensors, read without executing anything it carries."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fundus_rt.models.artifacts import sha256_of_file
from fundus_rt.models.errors import UnsupportedCheckpointError

HDF5_SIGNATURE = b"\x89HDF\r\n\x1a\n"
ZIP_SIGNATURE = b"PK\x03\x04"
TORCH_LEGACY_SIGNATURE = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
"""The pickled magic number 0x1950a86a20f9469cfc6c with which `torch.save` began before torch 1.6."""
NETWORK_FILES = ("model.safetensors", "pytorch_model.bin", "open_clip_pytorch_model.bin", "tf_model.h5", "model.onnx")
"""Names under which folders of the Hugging Face hub keep the network, the safest kind first."""


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint file holds, before anything is concluded from it."""

    path: Path
    sha256: str
    format: str
    """``torch-zip``, ``torch-legacy``, ``safetensors``, ``keras-h5``, ``keras-h5-weights``, ``keras-archive``,
    ``saved-model`` or ``onnx``."""
    framework: str
    """``pytorch``, ``keras``, ``tensorflow`` or ``onnx``."""
    shapes: dict[str, tuple[int, ...]]
    """Shape of every tensor of the network by its name, container and common prefix taken off."""
    state: dict[str, Any] = field(default_factory=dict, repr=False)
    """The same tensors as torch tensors; empty for the others, whose own loaders read them from `path`."""
    keras_config: dict[str, Any] | None = field(default=None, repr=False)
    """The file's ``model_config``; None for torch."""
    keras_version: str = ""
    """Version of Keras that wrote the file, as it says itself."""
    notes: tuple[str, ...] = ()
    """What was unwrapped, taken off or left aside, one sentence each."""
    trusted: bool = False
    """Whether the caller allowed code from the file to be executed."""
    module: Any = field(default=None, repr=False)
    """The whole pickled module (`torch.nn.Module`, wrappers taken off) of a trusted file; None for all others."""
    classes: tuple[str, ...] = ()
    """Names of the classes in the order of the columns, the first list of the file itself (OpenMMLab's
    ``meta.dataset_meta.classes``, torchvision's ``class_to_idx``); empty when it has none."""
    class_lists: tuple[tuple[str, tuple[str, ...]], ...] = ()
    """Every list that may be one of the classes which the file holds, with its key; each is held against the card."""
    stated_architecture: str = ""
    """What the file's own training options call the network (``arch``, ``args.model``), unchecked; empty when they do not."""
    warnings: tuple[str, ...] = ()
    """What lies beside the network, was not used and may belong to its answer, one sentence each."""
    stated_preparation: dict[str, Any] = field(default_factory=dict)
    """What the file's own training options say, unchecked: ``mean``, ``std`` (RGB, on values from 0 to 1), ``interpolation``,
    ``img_size`` or ``input_size``, pixels, and options of the network that no tensor shows (``gp``, ``bn_eps``, ...)."""

    @property
    def parameters(self) -> int:
        """Numbers in all tensors of the network together."""
        total = 0
        for shape in self.shapes.values():
            total += numbers_in(shape)
        return total


def numbers_in(shape: tuple[int, ...]) -> int:
    """How many numbers a tensor of this shape holds."""
    product = 1
    for length in shape:
        product *= length
    return product


def read_checkpoint(path: Path | str, trust_pickle: bool = False, progress: Callable[[str], None] | None = None) -> Checkpoint:
    """Read a checkpoint of PyTorch (``.pth``, ``.pt``, ``.bin``, ``.tar``, ``.safetensors``), of Keras (``.h5``,
    ``.keras``), of TensorFlow (the folder of a SavedModel), or an ONNX model that others exported.

    The kind is told from the content, never from the file's ending. Nothing that the file carries is executed unless
    `trust_pickle` is given.

    Args:
        path: the file; for a SavedModel the folder.
        trust_pickle: allow a pickled module or a Lambda layer, that is: run code from the file.
        progress: called with one sentence before code of the file is run, which names what it asks for.

    Raises:
        UnsupportedCheckpointError: no such file, not a checkpoint, cut short, or of a kind that is not read.
        UntrustedCheckpointError: reading it would execute code from the file.
        BackendUnavailableError: the package that reads this kind is not installed.
    """
    path = Path(path)
    if (path / "saved_model.pb").is_file():
        from fundus_rt.converters.tensorflow.saved_model import read_saved_model

        return read_saved_model(path, trust_pickle)
    head = _head_of(path)
    _refuse_known_strangers(path, head)
    if head.startswith(HDF5_SIGNATURE):
        from fundus_rt.converters.tensorflow.keras_files import read_keras_h5

        return read_keras_h5(path, sha256_of_file(path), trust_pickle)
    if head.startswith(ZIP_SIGNATURE) and _is_keras_archive(path):
        from fundus_rt.converters.tensorflow.keras3_files import read_keras_archive

        return read_keras_archive(path, sha256_of_file(path), trust_pickle)
    if looks_like_onnx(head):
        from fundus_rt.converters.graphs.foreign_onnx import read_onnx

        return read_onnx(path, sha256_of_file(path))
    from fundus_rt.converters.pytorch.torch_files import read_safetensors, read_torch

    if head.startswith((ZIP_SIGNATURE, TORCH_LEGACY_SIGNATURE)):
        kind = "torch-zip" if head.startswith(ZIP_SIGNATURE) else "torch-legacy"
        return read_torch(path, sha256_of_file(path), kind, trust_pickle, progress)
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") < path.stat().st_size:
        return read_safetensors(path, sha256_of_file(path))
    raise UnsupportedCheckpointError(
        f"{path.name} is not a checkpoint that can be read: it begins with {head[:8]!r}. Expected a file of torch.save "
        f"(.pth, .pt, .bin, .tar), .safetensors, HDF5 of Keras (.h5, .hdf5), .keras, .onnx, or the folder of a SavedModel."
    )


def _head_of(path: Path) -> bytes:
    if path.is_dir():
        known = [name for name in NETWORK_FILES if (path / name).is_file()]
        if known:
            raise UnsupportedCheckpointError(f"{path} is a folder; give the file of the network in it: {path / known[0]}")
        raise UnsupportedCheckpointError(
            f"{path} is a folder without saved_model.pb; give the checkpoint file itself, or the folder of a SavedModel"
        )
    try:
        with open(path, "rb") as stream:
            head = stream.read(512)
    except FileNotFoundError as error:
        raise UnsupportedCheckpointError(f"{path} does not exist; give the path of a downloaded checkpoint") from error
    except OSError as error:
        raise UnsupportedCheckpointError(f"{path} cannot be read ({error.strerror}); check its permissions") from error
    if not head:
        raise UnsupportedCheckpointError(f"{path.name} is empty (0 bytes): the download failed; fetch it again")
    return head


def _refuse_known_strangers(path: Path, head: bytes) -> None:
    """Raise for files that are often given by mistake, with what each of them is."""
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    size = path.stat().st_size
    found = ""
    if start.startswith(b"version https://git-lfs"):
        found = "a Git LFS pointer, not the file itself; fetch the content with: git lfs pull"
    elif start.startswith((b"<!doctype", b"<html", b"<?xml", b"<head")):
        found = "a web page, so the download stopped at a page of the site; open the link in a browser and save the file"
    elif start.startswith(b"{") and path.name.endswith(".index.json"):
        found = (
            "the index of a network that is kept in several files; load it with the library that wrote it and save its "
            "state_dict as one file"
        )
    elif head.startswith(b"\x1f\x8b") or head[257:262] == b"ustar" or head.startswith((b"7z\xbc\xaf", b"Rar!")):
        found = "a packed archive; unpack it and give the checkpoint in it"
    elif (
        head[:1] == b"\x80" and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05") and not head.startswith(TORCH_LEGACY_SIGNATURE)
    ):
        found = (
            "a pickle that torch.save did not write; it could run code and is not read. Save model.state_dict() with torch.save"
        )
    elif path.name == "saved_model.pb":
        found = "one file of a TensorFlow SavedModel; give the folder that it lies in, with variables/ beside it"
    elif head.startswith(ZIP_SIGNATURE) and size > 0:
        found = _stranger_in_zip(path)
    if found:
        raise UnsupportedCheckpointError(f"{path.name} ({size:,} bytes) is {found}")


def _stranger_in_zip(path: Path) -> str:
    """What a zip file is that torch.save did not write; empty when torch did write it."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return "cut short or damaged (a zip file whose table of contents is missing or spoilt); download it again"
    if any(name.endswith("/data.pkl") or name == "data.pkl" for name in names):
        if any("/code/" in f"/{name}" for name in names):
            return (
                "a TorchScript program (torch.jit.save), which holds code; save the state_dict of the network instead, "
                "with torch.save(model.state_dict(), ...)"
            )
        return ""
    if _is_keras_archive(path):
        return ""
    if any(name.rpartition("/")[2] == "saved_model.pb" for name in names):
        return "a packed TensorFlow SavedModel; unpack it and give the folder that holds saved_model.pb"
    return f"a zip archive of {', '.join(names[:3]) or 'nothing'}; unpack it and give the checkpoint in it"


def _is_keras_archive(path: Path) -> bool:
    """Whether a zip file is a ``.keras`` archive, complete or not."""
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
    return "config.json" in names and bool({"metadata.json", "model.weights.h5"}.intersection(names))


def looks_like_onnx(head: bytes) -> bool:
    """Whether a file begins as an ONNX model does: the version of its format, 1 to 31, then another of its own fields.

    Args:
        head: its first bytes. A model is a protobuf message without a signature; field 1 is a number (key byte 8), and
            fields 2 to 25 are those of `ModelProto`.
    """
    return len(head) > 16 and head[0] == 0x08 and 1 <= head[1] < 32 and head[2] in (0x12, 0x1A, 0x22, 0x28, 0x32, 0x3A, 0x42)
