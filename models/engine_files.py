"""An engine file and the record beside it: written whole, and read only where the bytes are those that the record is of."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

from fundus_rt.models.artifacts import atomic_path, sha256_of_bytes, sha256_of_file
from fundus_rt.models.engines import RECORD_FORMAT, EngineKey, EngineRecord, record_from_json
from fundus_rt.models.errors import EngineError, EngineMissingError, EngineStaleError

LATER_VERSION = "its record is of a later version of fundus-rt"
EARLIER_VERSION = "its record is of an earlier version of fundus-rt, which did not tell every kind of Jetson from the others"
_SHA256_DIFFERS = "the engine file is damaged: its SHA-256 differs from its record"


def record_path(engine: Path) -> Path:
    """Where the record of an engine file lies: beside it, ``FILE.engine.json``."""
    return engine.with_name(engine.name + ".json")


def write_record(engine: Path, record: EngineRecord, mode: int = 0o644) -> None:
    """Write the record of an engine file beside it, whole or not at all; `mode` says who may do what with it.

    Raises:
        OSError: the folder cannot be written.
    """
    with atomic_path(record_path(engine), mode) as temporary:
        temporary.write_text(record.to_json() + "\n", encoding="utf-8")


def read_record(engine: Path) -> EngineRecord:
    """The record beside an engine file.

    Raises:
        EngineMissingError: the engine file does not exist.
        EngineStaleError: its record is missing or cannot be read.
    """
    if not engine.is_file():
        raise EngineMissingError(f"engine file {engine} does not exist; build it with `fundus-rt build`")
    problem, record = recorded(engine)
    if record is None:
        raise EngineStaleError(f"{engine.name}: {problem}; build the engine again with `fundus-rt build`")
    return record


def read_engine(engine: Path) -> tuple[bytes, EngineRecord]:
    """The bytes of an engine file and its record; the bytes are those that the record's SHA-256 is of.

    While it reads, an `EngineCache` of this machine does not remove the file.

    Raises:
        EngineMissingError: the engine file does not exist.
        EngineStaleError: no readable record, or the file is damaged.
    """
    record = read_record(engine)
    try:
        with open(engine, "rb") as stream, _reading(stream.fileno()):
            content = stream.read()
    except FileNotFoundError:
        raise EngineMissingError(f"{engine.name} was removed meanwhile; build it again with `fundus-rt build`") from None
    problem = size_problem(len(content), record)
    if not problem and sha256_of_bytes(content) != record.engine_sha256:
        problem = _SHA256_DIFFERS
    if problem:
        raise EngineStaleError(f"{engine.name}: {problem}; build the engine again with `fundus-rt build`")
    with contextlib.suppress(OSError):  # a folder that is only read has no order of use to keep
        os.utime(record_path(engine))
    return content, record


def recorded(engine: Path) -> tuple[str, EngineRecord | None]:
    """The record of an engine, or what is wrong with it."""
    path = record_path(engine)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return "its record is missing", None
    except (OSError, UnicodeDecodeError) as error:
        return f"its record cannot be read ({getattr(error, 'strerror', None) or 'it is not text'})", None
    try:
        return "", record_from_json(text, path.name)
    except EngineError:
        return _of_another_version(text) or "its record cannot be read", None


def model_of_earlier_record(engine: Path) -> str:
    """SHA-256 of the model that an engine with a record of an earlier version was built from; empty where it is none."""
    try:
        text = record_path(engine).read_text(encoding="utf-8")
        return str(json.loads(text)["key"]["onnx_sha256"]) if _of_another_version(text) == EARLIER_VERSION else ""
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return ""


def _of_another_version(text: str) -> str:
    try:
        stated = json.loads(text)["format"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return ""
    if not isinstance(stated, int) or isinstance(stated, bool) or stated == RECORD_FORMAT or stated < 1:
        return ""
    return LATER_VERSION if stated > RECORD_FORMAT else EARLIER_VERSION


def problem_of(engine: Path, key: EngineKey, whole: bool) -> str | None:
    """What keeps an entry from being used for a key; with `whole`, the engine's bytes are read as well."""
    problem, record = recorded(engine)
    if record is None:
        return problem
    if record.key != key:
        return f"its record is of another engine: {', '.join(record.key.differences(key))}"
    if not engine.is_file():
        return "the engine file is missing"
    if (problem := size_problem(engine.stat().st_size, record)) or not whole:
        return problem or None
    return None if sha256_of_file(engine) == record.engine_sha256 else _SHA256_DIFFERS


def size_problem(size: int, record: EngineRecord) -> str:
    """What is wrong with an engine file of so many bytes; empty when its record says the same."""
    if size == record.engine_bytes:
        return ""
    return f"the engine file is damaged: it has {size} bytes, its record says {record.engine_bytes}"


@contextlib.contextmanager
def _reading(descriptor: int) -> Iterator[None]:
    """Mark an open file as being read until it is closed; a mark that cannot be set does not stop the reading."""
    try:
        import fcntl
    except ImportError:  # Windows does not remove files that are open
        yield
        return
    with contextlib.suppress(OSError):
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    yield


def is_being_read(engine: Path) -> bool:
    """Whether some process has marked the file with `_reading`."""
    try:
        import fcntl

        with open(engine, "rb") as stream:
            fcntl.flock(stream.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except (ImportError, OSError):
        return False
    return False
