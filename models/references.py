"""``NAME.reference``: pictures as the network takes them and what the original framework answered, for any device to replay.

It is a zip archive of plain NumPy arrays and one JSON text, so that NumPy alone reads it: ``reference.json``, ``frames.npy``, and
``answers/0.npy`` onwards in the order of the JSON's ``outputs``. Nothing in it is compressed and every time in it is the same, so
the same content gives the same bytes on every machine, and a small file cannot unfold into a large one. There are no names of
photographs in it; the pictures are photographs of patients all the same, so the file is to be kept like them.
"""

from __future__ import annotations

import io
import json
import re
import struct
import tokenize
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fundus_rt.models.artifacts import atomic_path, bytes_of_file, sha256_of_bytes, sha256_of_file
from fundus_rt.models.errors import ModelFileError, UsageError

REFERENCE_FORMAT = 1
"""Version of the archive's layout."""
REFERENCE_SUFFIX = ".reference"
MOST_BYTES = 1 << 30
"""Largest file that is read: 600 photographs of 768 x 768 pixels, or 150 of float32."""
MOST_OUTPUTS = 64
LEAST_PHOTOGRAPHS = 8
"""Different photographs that a certificate needs. Where none of 8 changed, up to 37 % could (Clopper-Pearson, 95 %): a net for a
wrong file, no figure for a clinic; that is `parity` on hundreds."""
REQUIRED_FACTS = ("checkpoint_sha256", "card_sha256")
"""What `ReplayReference.facts` must hold: SHA-256 as 64 hexadecimal digits; the card's is
`fundus_rt.models.certificates.card_sha256`."""

_DESCRIPTION = "reference.json"
_FRAMES = "frames.npy"
_MOST_TEXT = 1 << 20
_END = struct.Struct("<4s4H2LH")
"""The end of a zip archive: mark, four counts, size and place of the list of entries, length of a comment (APPNOTE 4.3.16)."""
_TIME = (1980, 1, 1, 0, 0, 0)


@dataclass(frozen=True)
class ReplayReference:
    """What a device has to answer as the original framework did."""

    frames: NDArray[Any]
    """uint8 or float32 [N, H, W, 3], BGR, grey levels 0 to 255: as the network takes them, mirrored where its rule says so."""
    answers: dict[str, NDArray[np.float32]]
    """By output: float32 [N, columns], the original framework's numbers before any activation, for the same photographs on their
    author's own way."""
    facts: dict[str, Any] = field(default_factory=dict)
    """JSON-ready: `REQUIRED_FACTS`, and what else is known of the original: versions, libraries. No names of photographs."""

    def different_photographs(self) -> int:
        """How many frames differ from each other."""
        return len(set(self.digests()))

    def digests(self) -> list[str]:
        """SHA-256 of each frame."""
        return [sha256_of_bytes(np.ascontiguousarray(frame).tobytes()) for frame in self.frames]

    def problems(self) -> list[str]:
        """Every reason why this is not a reference; empty where it is one."""
        shape, dtype = self.frames.shape, self.frames.dtype
        found = []
        if len(shape) != 4 or shape[3] != 3 or not shape[0] or dtype not in (np.dtype("uint8"), np.dtype("<f4")):
            found.append(f"the frames are {dtype} {list(shape)}, expected uint8 or float32 [N, H, W, 3]")
        elif dtype != np.uint8 and not np.isfinite(self.frames).all():
            found.append("the frames are not finite")
        if not 1 <= len(self.answers) <= MOST_OUTPUTS:
            found.append(f"there are answers of {len(self.answers)} outputs, expected 1 to {MOST_OUTPUTS}")
        for name, rows in self.answers.items():
            if rows.dtype != np.dtype("<f4") or rows.ndim != 2 or len(rows) != len(self.frames) or not rows.shape[1]:
                found.append(f"the answers of {name!r} are {rows.dtype} {list(rows.shape)}, expected float32 [N, columns]")
            elif not np.isfinite(rows).all():
                found.append(f"the answers of {name!r} are not finite")
        for name in REQUIRED_FACTS:
            if not isinstance(self.facts.get(name), str) or not re.fullmatch("[0-9a-f]{64}", self.facts[name]):
                found.append(f"{name} is {self.facts.get(name)!r:.80}, expected 64 hexadecimal digits")
        return found


def reference_path(model_file: Path) -> Path:
    """Where the reference of a model file lies: ``NAME.reference`` beside ``NAME.onnx`` or ``NAME.engine``."""
    return model_file.with_suffix(REFERENCE_SUFFIX)


def write_reference(path: Path, reference: ReplayReference) -> str:
    """Write a reference, whole or not at all.

    Args:
        path: the file; its folder must exist.
        reference: what stands in it.

    Returns:
        SHA-256 of the file; the same for the same content.

    Raises:
        UsageError: it could not be read again: other shapes or types, too many photographs, facts that are no JSON.
        OSError: the folder cannot be written.
    """
    if problems := reference.problems():
        raise UsageError(f"{path.name} cannot be written: {'; '.join(problems)}")
    names = list(reference.answers)
    try:
        text = json.dumps(
            {"facts": reference.facts, "format": REFERENCE_FORMAT, "outputs": names}, sort_keys=True, indent=1, allow_nan=False
        )
    except (TypeError, ValueError) as error:
        raise UsageError(f"{path.name} cannot be written: its facts are no JSON ({error})") from error
    size = reference.frames.nbytes + sum(rows.nbytes for rows in reference.answers.values())
    if len(text) > _MOST_TEXT or size > MOST_BYTES - _MOST_TEXT:
        raise UsageError(
            f"{path.name} would have {size / 1e6:.0f} MB, expected at most {MOST_BYTES / 1e6:.0f} MB; give fewer photographs"
        )
    with atomic_path(path) as temporary:
        with zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
            with archive.open(_entry(_DESCRIPTION), "w") as stream:
                stream.write(text.encode("utf-8"))
            arrays = {_FRAMES: reference.frames, **dict(zip(_answer_files(len(names)), reference.answers.values(), strict=True))}
            for name, values in arrays.items():
                with archive.open(_entry(name), "w") as stream:
                    np.lib.format.write_array(stream, np.ascontiguousarray(values), (1, 0), allow_pickle=False)
        digest = sha256_of_file(temporary)
    return digest


def read_reference(path: Path) -> tuple[ReplayReference, str]:
    """Read a reference; every byte of the file is looked at, and none of it is ever executed or unfolded.

    Returns:
        The reference, and the SHA-256 of the bytes that it was read from.

    Raises:
        ModelFileError: missing, cut off, damaged, too large, of a later format, or no reference; with the reason.
    """
    try:
        content = bytes_of_file(path, MOST_BYTES)
    except OSError as error:
        raise ModelFileError(f"the reference {path} cannot be read ({error.strerror}); `fundus-rt parity` writes it") from error
    try:
        reference = _parsed(content)
    except _REFUSALS as error:
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise ModelFileError(
            f"{path.name} is not a whole reference that this version reads ({reason}); write it again with `fundus-rt parity`"
        ) from error
    return reference, sha256_of_bytes(content)


_REFUSALS = (
    ValueError, KeyError, TypeError, AttributeError, IndexError, EOFError, OverflowError, RecursionError, MemoryError,
    RuntimeError, NotImplementedError, SyntaxError, OSError, struct.error, zipfile.BadZipFile, zipfile.LargeZipFile,
    tokenize.TokenError,
)  # fmt: skip
"""What Python's readers of zip, NumPy and JSON raise on damaged content."""


def _parsed(content: bytes) -> ReplayReference:
    _require_plain_end(content)
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        entries = archive.infolist()
        if any(entry.compress_type != zipfile.ZIP_STORED or entry.file_size != entry.compress_size for entry in entries):
            raise ValueError("its entries are compressed")
        if sum(entry.file_size for entry in entries) > len(content):
            raise ValueError("its entries lie over each other")
        described = archive.getinfo(_DESCRIPTION)
        if described.file_size > _MOST_TEXT:
            raise ValueError(f"its description has {described.file_size} bytes")
        about = json.loads(archive.read(described))
        if not isinstance(about, Mapping) or not isinstance(about.get("format"), int):
            raise ValueError("its description is no reference's")
        if about["format"] != REFERENCE_FORMAT:
            raise ValueError(f"it has format {about['format']}, this version reads {REFERENCE_FORMAT}; update fundus-rt")
        names, facts = about["outputs"], about["facts"]
        if not isinstance(names, list) or len(set(names)) != len(names) or not isinstance(facts, dict):
            raise ValueError("its description has other fields")
        files = [_FRAMES, *_answer_files(len(names))]
        if [entry.filename for entry in entries] != [_DESCRIPTION, *files]:
            raise ValueError("it has other entries than its description says")
        arrays = [_array(archive.read(name), name) for name in files]
    reference = ReplayReference(arrays[0], dict(zip(names, arrays[1:], strict=True)), facts)
    if problems := reference.problems():
        raise ValueError("; ".join(problems))
    return reference


def _require_plain_end(content: bytes) -> None:
    """Refuse what is no archive with few entries before its list of entries is read, which may ask for much memory."""
    if len(content) > MOST_BYTES:
        raise ValueError(f"it has more than {MOST_BYTES} bytes")
    if len(content) < _END.size:
        raise ValueError("it ends too early")
    mark, disk, first_disk, here, entries, size, place, comment = _END.unpack(content[-_END.size :])
    if mark != b"PK\x05\x06" or comment:
        raise ValueError("it is cut off, or no archive")
    if disk or first_disk or here != entries or entries > MOST_OUTPUTS + 2 or size > 1 << 16:
        raise ValueError(f"it has {entries} entries")
    if place + size != len(content) - _END.size:
        raise ValueError("its list of entries lies elsewhere")


def _array(content: bytes, name: str) -> NDArray[Any]:
    """An array from the bytes of a ``.npy`` file; only plain numbers in C order, exactly as many as it says."""
    stream = io.BytesIO(content)
    if np.lib.format.read_magic(stream) != (1, 0):
        raise ValueError(f"{name} is of another version of NumPy's format")
    shape, fortran, dtype = np.lib.format.read_array_header_1_0(stream)
    if fortran or dtype not in (np.dtype("uint8"), np.dtype("<f4")):
        raise ValueError(f"{name} is {dtype}{' in Fortran order' if fortran else ''}")
    count = 1
    for length in shape:
        count *= length
    if count * dtype.itemsize != len(content) - stream.tell():
        raise ValueError(f"{name} has {len(content) - stream.tell()} bytes for the shape {list(shape)}")
    return np.frombuffer(content, dtype, count, stream.tell()).reshape(shape)


def _answer_files(count: int) -> list[str]:
    return [f"answers/{number}.npy" for number in range(count)]


def _entry(name: str) -> zipfile.ZipInfo:
    """An entry whose time, system and rights are the same everywhere."""
    entry = zipfile.ZipInfo(name, _TIME)
    entry.create_system = 3
    entry.external_attr = 0o644 << 16
    return entry
