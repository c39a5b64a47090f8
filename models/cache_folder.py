"""Where the package may keep what it builds: which folders, how much of the disk, and whether other users could write there."""

from __future__ import annotations

import os
import re
import stat
import tempfile
from collections.abc import Callable
from pathlib import Path

from fundus_rt.models.errors import UsageError

FOLDER_VARIABLE = "FUNDUS_RT_CACHE"
"""Environment variable that names the cache folder."""
LIMIT_VARIABLE = "FUNDUS_RT_CACHE_LIMIT"
"""Environment variable with the most bytes that the engines may take: ``500M``, ``8G`` …"""
DEFAULT_LIMIT_BYTES = 8 << 30
"""Room for about twenty engines of a Swin-B at 384 pixels."""

_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


def cache_folders(kind: str = "engines") -> list[Path]:
    """Folders for one kind of built file, in the order of preference; none of them is made or looked at.

    ``$FUNDUS_RT_CACHE`` when it is set, then the user's cache folder (XDG Base Directory Specification), then a folder of
    this user below the system's temporary folder, which a restart may empty.
    """
    roots = []
    if os.environ.get(FOLDER_VARIABLE):
        roots.append(Path(os.environ[FOLDER_VARIABLE]).expanduser().absolute())
    stated = os.environ.get("XDG_CACHE_HOME", "")
    home = Path(os.path.expanduser("~"))
    if os.path.isabs(stated):  # the specification: a relative path is to be ignored
        roots.append(Path(stated) / "fundus-rt")
    elif home.is_absolute():
        roots.append(home / ".cache" / "fundus-rt")
    roots.append(temporary_root())
    return list(dict.fromkeys(root / kind for root in roots))


def temporary_root() -> Path:
    """This user's folder below the system's temporary folder."""
    try:
        folder = Path(tempfile.gettempdir()).absolute()
    except FileNotFoundError:  # nothing at all can be written
        folder = Path("/tmp")
    return folder / f"fundus-rt-{_user()}"


def limit_from_environment() -> int:
    """Most bytes of the cache: ``$FUNDUS_RT_CACHE_LIMIT`` (a number and K, M, G or T, powers of 1024), or 8 GiB.

    Raises:
        UsageError: the variable is not such a size.
    """
    text = os.environ.get(LIMIT_VARIABLE, "").strip()
    if not text:
        return DEFAULT_LIMIT_BYTES
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(?:i?B)?", text, flags=re.IGNORECASE)
    if not found:
        raise UsageError(f"{LIMIT_VARIABLE} is {text!r}, expected a size such as 500M or 8G")
    return int(float(found[1]) * _UNITS[found[2].upper()])


def why_untrusted(folder: Path) -> str | None:
    """Why other users could put files into a folder, which may not exist yet, and what to do; None when they cannot.

    An engine is code for the GPU, so whoever can write it decides what runs. The folder has to belong to this user or to
    the administrator and must not be writable by a group or by others; no folder above it may let others put another in
    its place. Members of a group that may write to a folder *above* are trusted: many systems give every user a group of
    their own and make new folders writable for it.
    """
    if not hasattr(os, "getuid"):  # Windows: its access lists do not show in the mode
        return None
    mine = {0, os.getuid()}
    if os.path.islink(folder) and folder.lstat().st_uid not in mine:
        return f"{folder} is a link that user {folder.lstat().st_uid} made; remove it or name another folder"
    real = folder.resolve()
    if os.path.exists(real):
        found = real.stat()
        if found.st_uid not in mine:
            return (
                f"{folder} belongs to user {found.st_uid} and this process runs as user {os.getuid()}: run it as that user, "
                f"`chown` the folder, or name another with {FOLDER_VARIABLE}"
            )
        if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            return f"other users can write to {folder} (mode {stat.S_IMODE(found.st_mode):04o}): chmod 700 {folder}"
    for above in (path for path in real.parents if os.path.exists(path)):
        found = above.stat()
        if found.st_uid not in mine | _administrators_elsewhere():
            return f"user {found.st_uid} can replace {folder}, for {above} is theirs; name another with {FOLDER_VARIABLE}"
        if found.st_mode & stat.S_IWOTH and not found.st_mode & stat.S_ISVTX:
            return f"other users can replace {folder}, for {above} is writable by all: chmod o-w {above}"
    return None


def why_unwritable(folder: Path) -> str | None:
    """Make a folder for this user alone and try to write there; the system's reason when it cannot be done, else None."""
    try:
        for path in (*reversed(folder.parents), folder):
            if not path.is_dir():
                path.mkdir(mode=0o700, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return None
    except FileExistsError:
        return "a file is in its place"
    except OSError as error:
        return error.strerror or str(error)


def why_no_new_file(folder: Path) -> str | None:
    """Why nothing could be kept in a folder that may not exist yet; None when it could. Nothing is made, and nothing stays."""
    for path in (folder, *folder.parents):
        if os.path.isdir(path):  # unlike Path.is_dir, no error for a folder that may not be looked into
            try:
                with tempfile.TemporaryFile(dir=path):
                    return None
            except OSError as error:
                return error.strerror or str(error)
        if os.path.lexists(path):
            return "a file is in its place"
    return "no folder above it exists"


def trusted_writable_folder(folders: list[Path], say: Callable[[str], None]) -> Path:
    """The first folder that can be written; `say` is told of each that cannot and of what is taken in its place.

    Raises:
        UsageError: none can be written, or other users can write to the one that would be taken.
    """
    refused: list[str] = []
    for folder in folders:
        problem = why_unwritable(folder)
        if problem is not None:
            refused.append(f"{folder} cannot be written ({problem})")
            continue
        if (untrusted := why_untrusted(folder)) is not None:
            raise UsageError(f"the cache folder is refused: {untrusted}")
        if refused:
            lost = "; a restart may empty it, so set FUNDUS_RT_CACHE" if temporary_root() in folder.parents else ""
            kept = "certificates" if folder.name == "certificates" else "engines"
            say(f"{'; '.join(refused)}; {kept} are kept in {folder} instead{lost}")
        return folder
    raise UsageError(f"no cache folder: {'; '.join(refused)}. Name a folder that can be written with {FOLDER_VARIABLE}")


def _administrators_elsewhere() -> set[int]:
    """In a container with users of its own, the host's folders show as belonging to the overflow user: proc(5), uid_map."""
    try:
        whole = Path("/proc/self/uid_map").read_text(encoding="ascii").split() == ["0", "0", "4294967295"]
        return set() if whole else {int(Path("/proc/sys/kernel/overflowuid").read_text(encoding="ascii"))}
    except (OSError, ValueError):
        return set()


def _user() -> str:
    return str(os.getuid()) if hasattr(os, "getuid") else "user"
