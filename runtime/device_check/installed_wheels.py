"""Which wheels bring a package, and whose files are the ones that are imported.

Wheels that bring the same package overwrite one another's files, and pip does not say so; when one of them is uninstalled, it
takes files of the other away.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path


@dataclass(frozen=True)
class Wheel:
    """An installed distribution that brings a package."""

    name: str
    version: str
    folder: Path
    """Where its packages lie, ``site-packages``."""
    own_files: bool
    """The compiled part of the package on the disk is this wheel's own, by the hash in its record."""

    def __str__(self) -> str:
        return f"{self.name} {self.version}"


def wheels_with(package: str, names: str, compiled: str, path: Sequence[str] | None = None) -> list[Wheel]:
    """The installed distributions that bring a package, sorted by name.

    Args:
        package: its folder, ``cv2``.
        names: regular expression of the beginning of the distributions' names, which saves reading the records of all others.
        compiled: regular expression of the file name of its compiled part, by which the wheels are told apart.
        path: folders to look in; None for `sys.path`.
    """
    found: dict[tuple[str, Path], Wheel] = {}
    distributions = metadata.distributions() if path is None else metadata.distributions(path=list(path))
    for distribution in distributions:
        name = _normalised(distribution.metadata["Name"])
        if not re.match(names, name):
            continue
        files = [file for file in distribution.files or () if file.parts[0] == package]
        if not any(file.name == "__init__.py" and len(file.parts) == 2 for file in files):
            continue
        folder = Path(str(distribution.locate_file(""))).resolve()
        own = [_unchanged(file) for file in files if re.fullmatch(compiled, file.name)]
        found.setdefault((name, folder), Wheel(name, distribution.version, folder, bool(own) and all(own)))
    return sorted(found.values(), key=lambda wheel: wheel.name)


def in_one_folder(wheels: Sequence[Wheel]) -> list[Wheel]:
    """Those wheels that overwrite each other, because they lie in the same folder."""
    folders = [wheel.folder for wheel in wheels]
    return [wheel for wheel in wheels if folders.count(wheel.folder) > 1]


def imported_from(wheels: Sequence[Wheel], file: str) -> Wheel | None:
    """The wheel whose files an imported module has; None for one that came without a wheel, or when it cannot be told.

    Args:
        wheels: from `wheels_with`.
        file: ``__file__`` of the imported package.
    """
    folder = Path(file).resolve().parent.parent
    there = [wheel for wheel in wheels if wheel.folder == folder]
    own = [wheel for wheel in there if wheel.own_files]
    return there[0] if len(there) == 1 else own[0] if len(own) == 1 else None


def distribution_version(*names: str) -> str:
    """Version of the first of some distributions that is installed; empty when none is."""
    for name in names:
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return ""


def major(version: str) -> int:
    """First number of a version; 0 where there is none."""
    found = re.match(r"\d+", version)
    return int(found[0]) if found else 0


def _normalised(name: str | None) -> str:
    return re.sub(r"[-_.]+", "-", name or "").lower()


def _unchanged(file: metadata.PackagePath) -> bool:
    """Whether a file on the disk has the hash that its wheel's record states (PEP 376: URL-safe base64 without padding)."""
    if file.hash is None or file.hash.mode not in hashlib.algorithms_guaranteed:
        return False
    digest = hashlib.new(file.hash.mode)
    try:
        for piece in _pieces(Path(str(file.locate()))):
            digest.update(piece)
    except OSError:
        return False
    return base64.urlsafe_b64encode(digest.digest()).rstrip(b"=").decode() == file.hash.value


def _pieces(path: Path) -> Iterator[bytes]:
    with open(path, "rb") as stream:
        while piece := stream.read(1 << 20):
            yield piece
