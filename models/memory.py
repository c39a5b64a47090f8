"""Memory of this process: a limit on it, what is left of it, and how other libraries say that there is none."""

from __future__ import annotations

import re
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fundus_rt.models.errors import DeviceMemoryError, UsageError

LEAST_LIMIT = 512 << 20
"""Bytes that the package, its libraries and the bundled model need together with a photograph of 12 megapixels."""

_UNITS = {"M": 1 << 20, "G": 1 << 30}
_SAID = re.compile(
    r"bad[_ ]alloc|out of memory|Insufficient memory|Cannot allocate memory|not enough memory|can't start new thread"
    r"|Failed to allocate memory|failed to map segment|\bError -4 while (de)?compressing",  # zlib's Z_MEM_ERROR
    re.IGNORECASE,
)
_WORTH_A_CLAIM = 64 << 20
"""Bytes below which nobody asks whether they are there."""
_claims = threading.Lock()
_claimed = 0


def bytes_from_text(text: str) -> int:
    """Bytes of a size in words: ``512MB``, ``4G``, ``1.5 GiB``; M is 1024 * 1024 bytes and G is 1024 M, as systemd counts.

    Raises:
        UsageError: no size, or one below `LEAST_LIMIT`.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([MG])(?:i?B)?\s*", text, re.IGNORECASE)
    if found is None:
        raise UsageError(f"a memory limit is a number with M or G, for example 512MB or 4GB; got {text!r}")
    size = int(float(found[1]) * _UNITS[found[2].upper()])
    if size < LEAST_LIMIT:
        raise UsageError(
            f"the memory limit is {size >> 20} MB, expected at least {LEAST_LIMIT >> 20} MB: less does not even start"
        )
    return size


def limit_memory(limit: int) -> None:
    """Let the system refuse this process, and those that it starts, more private memory than `limit` bytes each (RLIMIT_DATA).

    Code of libraries and files that are only read, which the system can take back, are not counted; memory that was asked for
    and never written is. What a GPU's driver takes is not counted either.

    Raises:
        UsageError: the system has no such limit, or the process is under a lower one already.
    """
    try:
        if sys.platform != "linux":
            raise ImportError("elsewhere it is there and limits nothing")
        import resource

        _, most = resource.getrlimit(resource.RLIMIT_DATA)
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    except ImportError as error:
        raise UsageError("a memory limit needs Linux; this system cannot limit a process from within") from error
    except (ValueError, OSError) as error:
        raise UsageError(f"the memory limit cannot be {limit >> 20} MB: this process is limited to {most >> 20} MB") from error


def available_memory(root: Path = Path("/")) -> int | None:
    """Bytes that this process can take without swapping, or None where the system does not say.

    The least of what Linux calls available, what the memory limit leaves, and what its control groups (a container's or a
    service's limit) leave; pages of files that can be dropped count as free.

    Args:
        root: where ``/proc`` and ``/sys`` are.
    """
    free = _status(root / "proc/meminfo", "MemAvailable:")
    if free is None:
        return None
    left = [free, *_left_by_groups(root)]
    used = _status(root / "proc/self/status", "VmData:")
    try:
        import resource

        limit = resource.getrlimit(resource.RLIMIT_DATA)[0]
        if limit != resource.RLIM_INFINITY and used is not None:
            left.append(limit - used)
    except ImportError:
        pass
    return max(0, min(left))


@contextmanager
def memory_for(needed: int) -> Iterator[None]:
    """Claim memory for the time within, before it is asked for.

    A control group's limit is no answer to whoever asks for too much: the kernel ends the process. And what a decoder makes of
    memory that it was refused can look like a damaged file.

    Args:
        needed: bytes.

    Raises:
        MemoryError: they are not there, less what others have claimed.
    """
    global _claimed
    if needed < _WORTH_A_CLAIM:
        yield
        return
    with _claims:
        free = available_memory()
        if free is not None and free - _claimed < needed:
            raise MemoryError(f"{needed >> 20} MB are needed, {max(0, free - _claimed) >> 20} MB are free")
        _claimed += needed
    try:
        yield
    finally:
        with _claims:
            _claimed -= needed


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error is the end of memory: Python's own, or what OpenCV, ONNX Runtime, OpenVINO and the loader say of it."""
    return isinstance(error, MemoryError) or bool(_SAID.search(str(error)))


def no_memory_to_open(name: str) -> DeviceMemoryError:
    """The error for a model or library that does not fit into the memory."""
    return DeviceMemoryError(
        f"the memory is not enough to open {name}. Allow more (--memory-limit, or the limit of the service or container), "
        "close other programs, or take a smaller model"
    )


def _left_by_groups(root: Path) -> list[int]:
    """What the control groups of this process leave, versions 1 and 2, in bytes."""
    found = []
    for group in _lines(root / "proc/self/cgroup"):
        _, controllers, path = [*group.split(":", 2), "", ""][:3]
        if controllers not in ("", "memory"):
            continue
        top = root / "sys/fs/cgroup" / controllers
        names = ("memory.limit_in_bytes", "memory.usage_in_bytes") if controllers else ("memory.max", "memory.current")
        for folder in (top / path.lstrip("/"), *(top / path.lstrip("/")).parents):
            limit, used = (_number(folder / name) for name in names)
            if limit is not None and used is not None:
                found.append(limit - used + _dropped(folder / "memory.stat"))
            if folder == top:
                break
    return found


def _dropped(path: Path) -> int:
    """Bytes of files that the system can drop from memory."""
    for line in _lines(path):
        name, _, value = line.partition(" ")
        if name in ("inactive_file", "total_inactive_file") and value.strip().isdigit():
            return int(value)
    return 0


def _number(path: Path) -> int | None:
    text = "".join(_lines(path)[:1]).strip()
    return int(text) if text.isdigit() else None


def _status(path: Path, name: str) -> int | None:
    for line in _lines(path):
        words = line.split()
        if words and words[0] == name and len(words) > 1 and words[1].isdigit():
            return int(words[1]) * 1024
    return None


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return []
