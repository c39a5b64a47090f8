"""Which pictures are to be answered: files, folders, globs, lists."""

from __future__ import annotations

import csv
import glob
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from fundus_rt.models.errors import UsageError
from fundus_rt.runtime.eye import EYES

SUFFIXES = frozenset(
    (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".tif", ".tiff", ".bmp", ".ppm", ".pgm", ".pnm", ".dcm", ".dicom")
)
"""Endings that are taken from folders and globs; a file that is named itself is always tried."""


@dataclass(frozen=True)
class Item:
    """One picture to answer."""

    path: str
    listed_eye: str | None = None
    """What the ``eye`` column of a list says of it."""
    problem: str = ""
    """Why there is nothing to read; such an item becomes an error row at once."""


def items_from_paths(paths: Sequence[str]) -> Iterator[Item]:
    """The pictures behind files, folders (with their subfolders) and globs, in order of their names within each.

    A path without a picture gives one item with a `problem`, so that it has its own row.
    """
    for path in paths:
        found = False
        for item in _items_from_path(path):
            found = True
            yield item
        if not found:
            endings = ", ".join(sorted(SUFFIXES))
            yield Item(path, problem=f"no picture is in there; expected files ending in {endings}")


def items_from_list(path: str) -> Iterator[Item]:
    """The pictures named in the ``file`` column of a CSV file, with the ``eye`` column where there is one.

    Relative names are taken from the list's own folder. ``eye`` is left, right, L, R, OD, OS in any case, or empty.

    A line that names no file, or an eye that is none of these, gives an item with a `problem`.

    Raises:
        UsageError: the list cannot be read, or has no ``file`` column.
    """
    try:
        # Bytes that are no UTF-8 are kept, so that a name in another encoding still finds its file.
        stream = open(path, newline="", encoding="utf-8-sig", errors="surrogateescape")  # noqa: SIM115 - closed by the with
    except OSError as error:
        raise UsageError(f"list {path} cannot be read ({error.strerror}); give a CSV file with a file column") from error
    with stream:
        rows = csv.DictReader(stream)
        if "file" not in (rows.fieldnames or []):
            raise UsageError(f"list {path} has the columns {rows.fieldnames}, expected one named file and, optionally, eye")
        listed = 0
        for row in rows:
            listed += 1
            yield _listed(row, Path(path), rows.line_num)
        if not listed:
            yield Item(path, problem="the list names no picture; give a line for each")


def _items_from_path(path: str) -> Iterator[Item]:
    if os.path.isdir(path):
        yield from _items_from_folder(path)
    elif os.path.exists(path):
        yield Item(path)
    elif glob.has_magic(path):
        for match in sorted(glob.iglob(path, recursive=True)):
            if os.path.isfile(match) and (_is_picture_name(match) or _is_bare_dicom(match)):
                yield Item(match)
    else:
        yield Item(path, problem="no such file or folder; check the name")


def _items_from_folder(folder: str) -> Iterator[Item]:
    unreadable: list[OSError] = []
    for root, folders, files in os.walk(folder, onerror=unreadable.append):
        yield from _unread(unreadable)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            full = os.path.join(root, name)
            if not name.startswith(".") and (_is_picture_name(name) or _is_bare_dicom(full)):
                yield Item(full)
    yield from _unread(unreadable)


def _unread(errors: list[OSError]) -> Iterator[Item]:
    """An item for each folder that could not be listed since the last call."""
    while errors:
        error = errors.pop(0)
        yield Item(str(error.filename), problem=f"the folder cannot be read ({error.strerror}); check its rights")


def _is_picture_name(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in SUFFIXES


def _is_bare_dicom(path: str) -> bool:
    """Archives hand out DICOM files without an ending; their bytes 128 to 132 say what they are (PS3.10, 7.1)."""
    if os.path.splitext(path)[1]:
        return False
    try:
        with open(path, "rb") as stream:
            return stream.read(132)[128:] == b"DICM"
    except OSError:
        return False


def _listed(row: dict[str, str | None], path: Path, line: int) -> Item:
    if not row["file"]:
        return Item(f"{path}:{line}", problem="this line of the list names no file; give one")
    full = str(path.parent / row["file"])
    said = (row.get("eye") or "").strip().lower()
    eye = {"": None, "l": "left", "os": "left", "r": "right", "od": "right"}.get(said, said)
    if eye is not None and eye not in EYES:
        return Item(full, problem=f"line {line} of the list says the eye is {said!r}, expected left, right, OD, OS or nothing")
    return Item(full, eye)
