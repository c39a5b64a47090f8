"""Where rows go: written whole one by one, so that no kill and no power cut loses one; continued only where they belong."""

from __future__ import annotations

import csv
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from fundus_rt.models.artifacts import sync_folder
from fundus_rt.models.errors import UsageError
from fundus_rt.runtime.rows import Row, RowFormat


class RowWriter:
    """Writes rows, and knows those that an earlier run wrote to the same file."""

    def __init__(
        self,
        stream: BinaryIO,
        row_format: RowFormat,
        finished: frozenset[bytes] = frozenset(),
        failed: int = 0,
        durable: bool = False,
    ) -> None:
        self._stream = stream
        self._durable = durable
        self._format = row_format
        self.finished = finished
        """Keys of the rows that the file held already."""
        self.failed = failed
        """How many of those say that their picture cannot be answered."""

    def begin(self) -> None:
        """Write what stands before the first row."""
        self._put(self._format.header())

    def write(self, row: Row) -> None:
        """Write one row; when this returns it has reached the system, whole, and in a file the disk.

        Raises:
            OSError: the disk is full, or the reader of a pipe has gone.
        """
        self._put(self._format.line(row))

    def _put(self, text: str) -> None:
        # File names may hold bytes that are no UTF-8; in a table or CSV they go out as they came in.
        rest = memoryview(text.encode("utf-8", "surrogateescape"))
        while rest:
            rest = rest[self._stream.write(rest) :]
        self._stream.flush()
        if self._durable:  # a power cut takes what only the system has
            os.fsync(self._stream.fileno())


@contextmanager
def open_output(path: Path | None, resume: bool, row_format: RowFormat) -> Iterator[RowWriter]:
    """A writer to a file, or to standard output.

    A file is locked while it is open, and a last row that a kill left unfinished is cut off.

    Args:
        path: the file, or None for standard output.
        resume: go on with what the file holds.
        row_format: how rows look; a file that is continued must hold rows of the same format and card.

    Raises:
        UsageError: the file cannot be written, is in use, holds rows that would be overwritten, or other rows than these.
    """
    if path is None:
        writer = RowWriter(sys.stdout.buffer, row_format)
        writer.begin()
        yield writer
        return
    from filelock import FileLock, Timeout

    _require_output(path, resume)
    lock = FileLock(path.with_name(f".{path.name}.lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise UsageError(f"output {path} is being written by another run; wait for it or give another name") from None
    except OSError as error:
        raise UsageError(f"output {path} cannot be written ({error.strerror}); give a folder that is writable") from error
    try:
        with _opened(path) as stream:
            sync_folder(path.parent)
            writer = _continued(stream, path, row_format)
            if stream.tell() == 0:
                writer.begin()
            yield writer
    finally:
        Path(lock.lock_file).unlink(missing_ok=True)
        lock.release()


def _require_output(path: Path, resume: bool) -> None:
    if not path.parent.is_dir():
        raise UsageError(f"output {path} cannot be written: folder {path.parent} does not exist; create it")
    if path.exists() and not path.is_file():
        raise UsageError(f"output {path} is a folder or a device; give the name of a file, or leave --output out for a pipe")
    if path.exists() and path.stat().st_size and not resume:
        raise UsageError(f"output {path} exists already; add --resume to go on with it, give another name, or remove it")


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    try:
        stream = open(path, "r+b" if path.exists() else "w+b", buffering=0)  # noqa: SIM115 - closed below
    except OSError as error:
        raise UsageError(f"output {path} cannot be written ({error.strerror}); give a writable file") from error
    with stream:
        yield stream


def _continued(stream: BinaryIO, path: Path, row_format: RowFormat) -> RowWriter:
    """A writer after the last whole row of a file; what a kill left of a further row is cut off."""
    keys: set[bytes] = set()
    failed, end = 0, 0
    with open(stream.fileno(), "rb", closefd=False) as reader:
        for found, end_of_row in _rows(reader, path, row_format):
            end = end_of_row
            if found.get("key"):
                keys.add(bytes.fromhex(found["key"]))
                failed += bool(found.get("error"))
        reader.seek(end)
        rest = reader.read(4096)
    beginning = row_format.header().encode() if end == 0 and row_format.header() else b'{"file": "'
    whole_start = rest.rstrip(b"\0")[: len(beginning)]  # a power cut may leave zeros in the place of what was not written
    if not beginning.startswith(whole_start) and not (end and row_format.header()):
        raise _not_ours(path)
    stream.truncate(end)
    stream.seek(end)
    return RowWriter(stream, row_format, frozenset(keys), failed, durable=True)


def _rows(reader: Any, path: Path, row_format: RowFormat) -> Iterator[tuple[dict[str, Any], int]]:
    """Whole rows of a file, the header as an empty one, and where each ends; `UsageError` for rows that are not ours."""
    consumed = 0

    def lines() -> Iterator[str]:
        nonlocal consumed
        for line in reader:
            if not line.endswith(b"\n"):
                return
            consumed += len(line)
            yield line.decode("utf-8", "surrogateescape")

    header = row_format.header()
    if not header:
        for line in lines():
            try:
                found = json.loads(line)
                bytes.fromhex(found["key"] or "")
            except (ValueError, KeyError, TypeError) as error:
                raise _not_ours(path) from error
            yield found, consumed
        return
    columns = next(csv.reader([header]))
    records = csv.reader(lines())
    for number, cells in enumerate(records):
        if number == 0 and cells != columns:
            raise _not_ours(path)
        if len(cells) != len(columns):
            if next(records, None) is not None:
                raise _not_ours(path)
            return  # the unfinished last row: a line end inside of a quoted cell
        yield ({} if number == 0 else dict(zip(columns, cells, strict=True))), consumed


def _not_ours(path: Path) -> UsageError:
    return UsageError(
        f"output {path} does not hold rows of this model in this format, so --resume cannot go on with it; nothing of it was "
        "changed. Give the --model and --format of before, or another file."
    )
