"""Everything that the library says, in a file: each line is written as it comes, so a build that is killed keeps them."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

from fundus_rt.models.errors import EngineError

_KEPT_ALIVE: list[Any] = []
_SEVERITIES = ("INTERNAL_ERROR", "ERROR", "WARNING", "INFO", "VERBOSE")


class BuildLog:
    """A log file and, of what was said last, the errors and warnings."""

    def __init__(self, path: Path) -> None:
        """Begin the file anew.

        Raises:
            EngineError: it cannot be written.
        """
        self.path = path
        self.errors: list[str] = []
        """Texts that the library called errors; it recovers from some of them."""
        self.warnings: list[str] = []
        self._begin = time.monotonic()
        self._lock = threading.Lock()
        try:
            self._file = open(path, "w", buffering=1, encoding="utf-8", errors="replace")  # noqa: SIM115
        except OSError as error:
            raise EngineError(f"the log {path} cannot be written ({error.strerror}); name another file with --log") from error

    def write(self, severity: str, text: str) -> None:
        """Write one message with its severity and the seconds since the beginning."""
        with self._lock:
            if severity in ("INTERNAL_ERROR", "ERROR"):
                self.errors.append(text)
            elif severity == "WARNING":
                self.warnings.append(text)
            if not self._file.closed:
                self._file.write(f"{time.monotonic() - self._begin:10.3f} {severity:<14} {text}\n")

    def close(self) -> None:
        """Close the file; later messages are kept out of it."""
        with self._lock:
            self._file.close()


def library_logger(trt: Any, log: BuildLog) -> Any:
    """The library's ``ILogger`` that writes everything, verbose messages included, to a log.

    The library keeps the first logger of a process for what belongs to no build, without counting references: every logger
    lives as long as the process.
    """

    class Logger(trt.ILogger):  # type: ignore[misc]
        """Hands every message on; nothing may be raised into the library."""

        def __init__(self) -> None:
            super().__init__()

        def log(self, severity: Any, msg: str) -> None:
            try:
                name = getattr(severity, "name", str(severity))
                log.write(name if name in _SEVERITIES else "INFO", msg)
            except Exception:  # the disk is full, for example: the build can go on
                pass

    _KEPT_ALIVE.append(Logger())
    return _KEPT_ALIVE[-1]
