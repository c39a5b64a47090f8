"""TensorRT engines that were built on this machine: found by their key, built once, checked before they are used.

An entry is two files: ``DIGEST.engine``, the plain plan that every tool of TensorRT reads, and ``DIGEST.engine.json``, what
is known of it. The record is written last and removed first, so an engine without a record is one that was never finished.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from fundus_rt.models.artifacts import atomic_path, sha256_of_file
from fundus_rt.models.cache_folder import (
    cache_folders,
    limit_from_environment,
    temporary_root,
    trusted_writable_folder,
    why_untrusted,
)
from fundus_rt.models.certificate_store import certificate_path
from fundus_rt.models.engine_files import (
    EARLIER_VERSION,
    LATER_VERSION,
    is_being_read,
    model_of_earlier_record,
    problem_of,
    read_engine,
    read_record,
    record_path,
    recorded,
    size_problem,
    write_record,
)
from fundus_rt.models.engines import EngineKey, EngineRecord
from fundus_rt.models.errors import EngineError, EngineMissingError, UsageError

__all__ = ["EngineCache", "read_engine", "read_record", "record_path", "write_record"]

SUFFIX = ".engine"
_OURS = re.compile(r"\.?([0-9a-f]{64})\.engine")
"""Names of the cache's own files, those that a killed process left unfinished (they begin with a dot) included."""
_SAY_AGAIN_S = 30.0

Say = Callable[[str], None]


class EngineCache:
    """Engines by key, in a folder that only this user can write to. Safe for several processes and threads at once.

    A folder that cannot be written may still be read, so engines can be laid into a read-only system beforehand; new ones
    then go to the next folder, and that is said.
    """

    def __init__(self, folder: Path | None = None, limit_bytes: int | None = None) -> None:
        """Set up; nothing is read or written yet.

        Args:
            folder: where the engines lie; None for `fundus_rt.models.cache_folder.cache_folders`. When it cannot be written,
                this user's temporary folder takes its place.
            limit_bytes: most bytes that all engines may take; None for ``$FUNDUS_RT_CACHE_LIMIT`` or 8 GiB. The engines
                that were not used for longest go first; the one just written stays, whatever its size.

        Raises:
            UsageError: ``$FUNDUS_RT_CACHE_LIMIT`` is not a size.
        """
        self.folders = cache_folders() if folder is None else [folder, temporary_root() / "engines"]
        self.limit_bytes = limit_from_environment() if limit_bytes is None else limit_bytes

    def find(self, key: EngineKey) -> EngineRecord | None:
        """The record of an engine with exactly this key, or None; `why_missing` then says why.

        Looks at the record and at the size of the file. Its bytes are checked by `read`, before anything uses them.

        Raises:
            UsageError: other users can write to the cache folder.
        """
        engine = self._engine(key)
        return None if engine is None or problem_of(engine, key, whole=False) else recorded(engine)[1]

    def path_of(self, record: EngineRecord) -> Path:
        """The file of an engine that the cache holds.

        Raises:
            EngineMissingError: it was removed meanwhile.
            UsageError: other users can write to the cache folder.
        """
        engine = self._engine(record.key)
        if engine is None:
            raise EngineMissingError("the engine was removed meanwhile; build it again with `fundus-rt build`")
        return engine

    def read(self, path: Path) -> tuple[bytes, EngineRecord]:
        """The bytes of an engine and its record, see `read_engine`."""
        return read_engine(path)

    def entries(self, onnx_sha256: str) -> list[EngineRecord]:
        """Records of every engine of a model, whatever they were built for; the last built first.

        Raises:
            UsageError: other users can write to the cache folder.
        """
        records = [entry.record for folder in self._readable() for entry in _entries(folder)]
        mine = [record for record in records if record is not None and record.key.onnx_sha256 == onnx_sha256]
        return sorted(mine, key=lambda record: record.built_at, reverse=True)

    def why_missing(self, key: EngineKey) -> str:
        """Why no engine of this key can be used: what is wrong with the one that is there, or how the nearest differs.

        ``TensorRT 10.3.0.26 -> 10.7.0.23``, ``the engine file is damaged …``, ``no engine of this model yet``. Reads the
        engine's bytes. Empty when the engine is there and whole.

        Raises:
            UsageError: other users can write to the cache folder.
        """
        engine = self._engine(key)
        if engine is not None:
            return problem_of(engine, key, whole=True) or ""
        nearest = min((record.key.differences(key) for record in self.entries(key.onnx_sha256)), key=_count, default=None)
        return ", ".join(nearest) if nearest else self.why_unknown(key.onnx_sha256)

    def why_unknown(self, onnx_sha256: str) -> str:
        """Why there is no engine of a model whose record can be read: ``no engine of this model yet``, or that an earlier version
        of this package built it.

        Raises:
            UsageError: other users can write to the cache folder.
        """
        engines = (entry.engine for folder in self._readable() for entry in _entries(folder) if entry.record is None)
        if any(model_of_earlier_record(engine) == onnx_sha256 for engine in engines):
            return EARLIER_VERSION
        return "no engine of this model yet"

    def get_or_build(
        self, key: EngineKey, build: Callable[[Path], EngineRecord], say: Say, force: bool = False
    ) -> tuple[Path, EngineRecord]:
        """The engine of a key: the one that is there and whole, or a new one.

        Of several processes that want the same engine one builds; the others wait, say so, and take what it built. A process
        that is killed while it builds leaves nothing that stands in the way of the next.

        Args:
            key: what the engine is for.
            build: writes the plan to the path that it is given, and returns its record; called at most once.
            say: told in full sentences why an engine is built, of waiting, of another folder, of engines removed.
            force: build even where a whole engine is there; it stays until the new one is finished.

        Returns:
            The engine's path, and its record.

        Raises:
            EngineError: `build` returned a record that is not of the file it wrote or of this key; what `build` raises.
            UsageError: no folder can be written, or other users can write to it.
            OSError: the disk is full.
        """
        engine = self._engine(key)
        if not force and engine is not None and problem_of(engine, key, whole=True) is None:
            return engine, read_record(engine)
        folder = trusted_writable_folder(self.folders, say)
        target = folder / f"{key.digest()}{SUFFIX}"
        with _locked(target, f"{key.flavour} {key.tensorrt_version}, {key.gpu_name}", say):
            if not force and problem_of(target, key, whole=True) is None:
                say("another process has built this engine meanwhile; it is used")
                return target, read_record(target)
            say(f"an engine is built: {'it was asked for' if force else self.why_missing(key)}")
            _remove_unfinished(target)
            with atomic_path(target, mode=0o600) as temporary:
                record = build(temporary)
                _require_own(record, key, temporary)
                record_path(target).unlink(missing_ok=True)
            write_record(target, record, mode=0o600)
        self._make_room(target, say)
        return target, record

    def count(self) -> int:
        """How many engines there are, in every folder that is read."""
        return sum(entry.record is not None for folder in self._readable() for entry in _entries(folder))

    def size(self) -> int:
        """Bytes that all engines and their records take, in every folder that is read."""
        return sum(entry.size for folder in self._readable() for entry in _entries(folder))

    def _readable(self) -> list[Path]:
        """Folders that exist. The first must be safe; one that stands in for it is left out when it is not."""
        folders = [folder for folder in self.folders if os.path.isdir(folder) and os.access(folder, os.R_OK | os.X_OK)]
        unsafe = {folder: problem for folder in folders if (problem := why_untrusted(folder)) is not None}
        if self.folders[0] in unsafe:
            raise UsageError(f"the cache folder is refused: {unsafe[self.folders[0]]}")
        return [folder for folder in folders if folder not in unsafe]

    def _engine(self, key: EngineKey) -> Path | None:
        """The file of a key; of several, the last built whose record and size agree."""
        engines = [folder / f"{key.digest()}{SUFFIX}" for folder in self._readable()]
        found = [engine for engine in engines if engine.is_file() or record_path(engine).is_file()]

        def worth(engine: Path) -> tuple[bool, str]:
            record = recorded(engine)[1]
            return problem_of(engine, key, whole=False) is None, record.built_at if record else ""

        return max(found, key=worth, default=None)

    def _make_room(self, keep: Path, say: Say) -> None:
        """Remove what is of no use, and then what was not used for longest, until the limit is kept."""
        entries = sorted(_entries(keep.parent), key=lambda entry: (not entry.useless, entry.used))
        total = sum(entry.size for entry in entries)
        for entry in entries:
            if entry.engine == keep or not (entry.useless or total > self.limit_bytes) or not _removed(entry.engine):
                continue
            total -= entry.size
            reason = (
                "it is not whole, or its record cannot be read"
                if entry.useless
                else f"the limit is {self.limit_bytes / 2**30:.2f} GiB"
            )
            name = entry.record.card.get("name", "a model") if entry.record else "an unknown model"
            say(f"an engine of {name} ({entry.size / 2**20:.1f} MiB) was removed from the cache: {reason}")


def _count(differences: list[str]) -> int:
    return len(differences)


@dataclass(frozen=True)
class _Entry:
    engine: Path
    record: EngineRecord | None
    """None where the engine file or a record that this version can read is missing."""
    useless: bool
    """No version of this package can use it."""
    size: int
    used: float
    """When it was last used, seconds since 1970."""


def _entries(folder: Path) -> list[_Entry]:
    """What the cache holds in a folder, what killed processes left unfinished included. Other files are not looked at."""
    files: dict[str, list[os.stat_result]] = {}
    for path in folder.iterdir():
        if found := _OURS.match(path.name):
            with contextlib.suppress(FileNotFoundError):  # another process may be tidying up
                files.setdefault(found[1], []).append(path.stat())
    entries = []
    for digest, stats in files.items():
        engine = folder / f"{digest}{SUFFIX}"
        problem, record = recorded(engine) if engine.is_file() else ("", None)
        useless = record is None and problem != LATER_VERSION
        size, used = sum(found.st_size for found in stats), max(found.st_mtime for found in stats)
        entries.append(_Entry(engine, record, useless, size, used))
    return entries


def _require_own(record: EngineRecord, key: EngineKey, engine: Path) -> None:
    """Refuse a record that is not of the file that was just written."""
    problem = size_problem(engine.stat().st_size, record)
    if record.key != key:
        problem = f"the engine was built for another key: {', '.join(key.differences(record.key))}"
    elif not problem and (record.engine_bytes == 0 or sha256_of_file(engine) != record.engine_sha256):
        problem = "the build wrote nothing, or its record is of other bytes"
    if problem:
        raise EngineError(f"{problem}; nothing was kept. Build again, and report this if it stays")


@contextlib.contextmanager
def _locked(engine: Path, what: str, say: Say) -> Iterator[None]:
    """Hold the lock of one entry. The system gives it back when a process ends, however it ends."""
    from filelock import FileLock, Timeout

    lock = FileLock(_lock_path(engine), mode=0o600)
    begin = time.monotonic()
    try:
        lock.acquire(timeout=0)
    except Timeout:
        say(f"another process is building the same engine ({what}); waiting until it is done")
        while not lock.is_locked:
            try:
                lock.acquire(timeout=_SAY_AGAIN_S, poll_interval=0.2)
            except Timeout:
                say(f"still waiting for the process that builds the engine, {time.monotonic() - begin:.0f} s so far")
    try:
        yield
    finally:
        lock.release()


def _lock_path(engine: Path) -> Path:
    return engine.with_name(f".{engine.stem}.lock")


def _removed(engine: Path) -> bool:
    """Remove an entry, unless a process is building or reading it."""
    from filelock import FileLock, Timeout

    try:
        with FileLock(_lock_path(engine), timeout=0, mode=0o600):
            if is_being_read(engine):
                return False
            record_path(engine).unlink(missing_ok=True)
            engine.unlink(missing_ok=True)
            certificate_path(engine).unlink(missing_ok=True)
            _remove_unfinished(engine)
    except (Timeout, OSError):
        return False
    return True


def _remove_unfinished(engine: Path) -> None:
    """Remove what a killed process left of an entry. The caller holds the entry's lock."""
    for path in engine.parent.iterdir():
        if path.name.startswith(f".{engine.name}"):
            path.unlink(missing_ok=True)
