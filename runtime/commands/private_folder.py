"""A folder for rows that name patients' photographs, where no report is asked for: it goes when the call ends."""

from __future__ import annotations

import os
import re
import shutil
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

PREFIX = "fundus-rt-rows-"


@contextmanager
def private_folder() -> Iterator[Path]:
    """A folder of this user alone below the system's temporary folder, removed at the end of the block.

    That is also when the process is told to end (SIGTERM, SIGHUP). What a process left that was killed outright is removed by
    the next one.
    """
    _remove_what_the_dead_left(Path(tempfile.gettempdir()))
    with tempfile.TemporaryDirectory(prefix=f"{PREFIX}{os.getpid()}-") as folder, _ended_by_signals():
        yield Path(folder)


def _remove_what_the_dead_left(root: Path) -> None:
    for path in root.glob(f"{PREFIX}*"):
        found = re.fullmatch(rf"{PREFIX}(\d+)-.*", path.name)
        try:
            ours = path.stat().st_uid == os.getuid() and path.is_dir() and not path.is_symlink()
        except OSError:
            continue
        if found and ours and not _is_alive(int(found[1])):
            shutil.rmtree(path, ignore_errors=True)


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # of another user
        return True
    return True


@contextmanager
def _ended_by_signals() -> Iterator[None]:
    """The block ends as by `sys.exit` when the process is told to end."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(number: int, frame: FrameType | None) -> None:
        sys.exit(128 + number)

    before = {number: signal.signal(number, end) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
