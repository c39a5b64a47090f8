"""A program that is given a time limit and is left behind when it does not even end when it is killed."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from typing import BinaryIO, cast


@dataclass(frozen=True)
class Finished:
    """How a program ended."""

    status: int | None
    """Exit status, the negative number of a signal, or None when the time ran out."""
    output: str
    """Standard output, at most the last 20,000 characters, beginning with a whole line."""
    errors: str
    """Standard error, at most the last 20,000 characters, beginning with a whole line."""

    def reason(self, limit_s: float) -> str:
        """Why it did not end well, in words; empty when it did."""
        if self.status is None:
            return f"no answer within {limit_s:g} s"
        if self.status < 0:
            with contextlib.suppress(ValueError):
                return f"ended by {signal.Signals(-self.status).name}"
        return f"ended with status {self.status}" if self.status else ""


def unnamed_file() -> BinaryIO:
    """A file without a name that goes when it is closed; in memory where nothing at all can be written, as in a container.

    Raises:
        FileNotFoundError: nothing can be written, and this system (Windows, macOS) has no files in memory.
    """
    try:
        return cast(BinaryIO, tempfile.TemporaryFile())
    except FileNotFoundError:
        if not hasattr(os, "memfd_create"):
            raise
        return os.fdopen(os.memfd_create("fundus-rt"), "w+b")


def run_limited(command: Sequence[str], limit_s: float, handed_on: Sequence[int] = ()) -> Finished:
    """Run a program without input and wait at most `limit_s` seconds, and two more for it to end when it is killed.

    What the program has started itself is killed too. A program that hangs in the system, as with a GPU that stopped answering,
    cannot be killed; then this returns all the same.

    Args:
        command: the program and its arguments.
        limit_s: seconds.
        handed_on: numbers of open files that the program gets under the same numbers.

    Raises:
        OSError: the program cannot be started.
    """
    with unnamed_file() as output, unnamed_file() as errors:
        process = subprocess.Popen(  # files, not pipes: nobody has to wait for a grandchild that keeps a pipe open
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=errors, start_new_session=True, pass_fds=handed_on
        )
        status: int | None = None
        try:
            status = process.wait(limit_s)
        except subprocess.TimeoutExpired:
            pass
        finally:
            if status is None:
                _kill(process)
        return Finished(status, _tail(output), _tail(errors))


def _kill(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        if hasattr(os, "killpg"):
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(2)


def _tail(stream: BinaryIO) -> str:
    end = stream.seek(0, os.SEEK_END)
    begin = max(0, end - 20_000)
    stream.seek(begin)
    content = stream.read()
    if begin:
        content = content.partition(b"\n")[2]
    return content.decode("utf-8", "replace")
