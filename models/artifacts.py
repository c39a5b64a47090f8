"""Identity of files: hashes, and writes that either happen whole or not at all."""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def sha256_of_file(path: Path | str) -> str:
    """SHA-256 of a file's content, 64 hexadecimal digits; read in pieces, so memory stays flat."""
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        while piece := stream.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def sha256_of_bytes(content: bytes) -> str:
    """SHA-256 of bytes, 64 hexadecimal digits."""
    return hashlib.sha256(content).hexdigest()


def bytes_of_file(path: Path, most: int) -> bytes:
    """The content of a file, cut off after `most` + 1 bytes, so that the caller sees where it is too large.

    No more memory is taken than the file has bytes.

    Raises:
        OSError: it cannot be read.
    """
    with open(path, "rb") as stream:
        return stream.read(min(os.fstat(stream.fileno()).st_size, most) + 1)


def sync_folder(folder: Path) -> None:
    """Bring the names in a folder to the disk, where the system knows that of folders."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


@contextmanager
def atomic_path(target: Path, mode: int = 0o644) -> Iterator[Path]:
    """A temporary path beside `target` that replaces it when the block ends without an error.

    The content is on the disk before the name changes, and the name is when the block is left, so after a power cut the
    target is either the old file or the whole new one. On an error the temporary file is removed and the target stays as it was.

    Args:
        target: the file; its folder must exist.
        mode: who may do what with the new file, as `os.chmod` takes it.

    Raises:
        OSError: the folder is missing or cannot be written.
    """
    handle, name = tempfile.mkstemp(prefix=f".{target.name}.", suffix=target.suffix, dir=target.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with open(temporary, "rb") as stream:
            os.fsync(stream.fileno())
        os.chmod(temporary, mode)
        os.replace(temporary, target)
        sync_folder(target.parent)
    finally:
        temporary.unlink(missing_ok=True)
