"""What a build is doing: phase and elapsed time while the library works, and a way to stop it.

The library works in a thread of its own, so that the caller's thread can tell how far it is and can be interrupted. An
exception must not pass through the library's callbacks, which would end the process; asked to stop, they answer so instead.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

POLL_SECONDS = 0.2
"""How often the caller's thread looks; also the longest that Ctrl-C waits before it is noticed."""
HEARTBEAT_SECONDS = 15.0
"""A line at least this often while a build runs, whether or not the library says anything."""


@dataclass(frozen=True)
class BuildProgress:
    """How far a build is."""

    phase: str
    """What the library is doing, in its own words, outermost first: ``Building engine: Optimizing graph``."""
    fraction: float | None
    """Share of the library's steps that are done, 0 to 1, never going back; None before it has said how many there are."""
    elapsed: float
    """Seconds since the build began."""

    def line(self) -> str:
        """``Building engine: Timing tactics, 33% of the steps, 45 s so far``."""
        share = "" if self.fraction is None else f", {self.fraction:.0%} of the steps"
        return f"{self.phase}{share}, {self.elapsed:.0f} s so far"


class ProgressTracker:
    """What the library's callbacks report, kept for another thread to read. Thread-safe."""

    def __init__(self) -> None:
        self.phases_seen: list[str] = []
        """Names of every phase that began, in order, each once."""
        self.steps = 0
        """Steps that the library has completed."""
        self._lock = threading.Lock()
        self._running: dict[str, tuple[int, int]] = {}
        self._farthest: float | None = None
        self._cancelled = threading.Event()
        self._begin = time.monotonic()

    @property
    def cancelled(self) -> bool:
        """Whether `cancel` was called."""
        return self._cancelled.is_set()

    def cancel(self) -> None:
        """Ask the library to stop at its next step."""
        self._cancelled.set()

    def begin_phase(self, name: str, steps: int) -> None:
        """A phase began; it has this many steps."""
        with self._lock:
            self._running[name] = (0, steps)
            if name not in self.phases_seen:
                self.phases_seen.append(name)

    def end_phase(self, name: str) -> None:
        """A phase ended."""
        with self._lock:
            self._running.pop(name, None)

    def complete_step(self, name: str, step: int) -> bool:
        """A step of a phase was completed; False asks the library to stop."""
        with self._lock:
            self.steps += 1
            if name in self._running:
                self._running[name] = (step + 1, self._running[name][1])
        return not self.cancelled

    def now(self) -> BuildProgress:
        """How far the build is at this moment."""
        with self._lock:
            running = list(self._running.items())
        elapsed = time.monotonic() - self._begin
        if not running:
            return BuildProgress("Finishing" if self.phases_seen else "Reading the network", self._farthest, elapsed)
        inner = 0.0
        for _, (done, steps) in reversed(running):  # a phase within a phase is a part of one of its steps
            inner = min((done + inner) / steps, 1.0) if steps > 0 else inner
        self._farthest = max(inner, self._farthest or 0.0)
        names = [running[0][0], running[-1][0]] if len(running) > 1 else [running[0][0]]
        return BuildProgress(": ".join(names), self._farthest, elapsed)


def progress_monitor(trt: Any, tracker: ProgressTracker) -> Any:
    """The library's ``IProgressMonitor`` that reports to a tracker."""

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        """Hands every call on."""

        def __init__(self) -> None:
            super().__init__()

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            tracker.begin_phase(phase_name, num_steps)

        def phase_finish(self, phase_name: str) -> None:
            tracker.end_phase(phase_name)

        def step_complete(self, phase_name: str, step: int) -> bool:
            return tracker.complete_step(phase_name, step)

    return Monitor()


def run_watched(
    work: Callable[[], Any],
    tracker: ProgressTracker,
    say: Callable[[str], None],
    show: Callable[[BuildProgress], None] | None = None,
    heartbeat_seconds: float = HEARTBEAT_SECONDS,
) -> Any:
    """Do the work in a thread and tell how far it is, until it ends.

    Args:
        work: what to do; the library's calls.
        tracker: where the work's progress is reported.
        say: gets one line every `heartbeat_seconds`.
        show: gets the progress several times a second, for a line that is drawn over; `say` is then left for what is new.
        heartbeat_seconds: seconds between two lines.

    Returns:
        What `work` returned.

    Raises:
        KeyboardInterrupt: after Ctrl-C, once the library has stopped. Also whatever `work`, `say` or `show` raised.
    """
    outcome: dict[str, Any] = {}
    ended = threading.Event()  # Ctrl-C during Thread.join would make Python take the thread for ended (bpo-45274, until 3.12)

    def target() -> None:
        try:
            outcome["value"] = work()
        except BaseException as error:  # it belongs to the caller's thread
            outcome["error"] = error
        finally:
            ended.set()

    worker = threading.Thread(target=target, name="engine-build", daemon=True)
    stopping_said = False
    said = time.monotonic()
    interruption: BaseException | None = _start(worker)
    while True:
        try:  # around the loop, not in it: Ctrl-C between two rounds must not leave the library alone either
            if interruption is not None:
                tracker.cancel()
            while not ended.is_set():
                if isinstance(interruption, KeyboardInterrupt) and not stopping_said:
                    stopping_said = True
                    say("stopping: the library ends the step it is in, this can take some seconds")
                ended.wait(POLL_SECONDS)
                if show is not None:
                    show(tracker.now())
                elif time.monotonic() - said >= heartbeat_seconds and not ended.is_set():
                    said = time.monotonic()
                    say(tracker.now().line() + (", stopping" if tracker.cancelled else ""))
            break
        except BaseException as error:  # Ctrl-C, or standard error is gone: the library has to stop before anything else
            interruption = interruption or error
    if interruption is not None:
        raise interruption
    if "error" in outcome:
        raise outcome["error"]
    return outcome["value"]


def _start(worker: threading.Thread) -> KeyboardInterrupt | None:
    """Start a thread that must not be left alone: a Ctrl-C that comes meanwhile is returned once the thread runs."""
    came: list[int] = []
    held = None
    if threading.current_thread() is threading.main_thread():  # no other thread is ever interrupted
        held = signal.getsignal(signal.SIGINT)
    if held is not None:
        signal.signal(signal.SIGINT, lambda number, frame: came.append(number))
    try:
        worker.start()
    finally:
        if held is not None:
            signal.signal(signal.SIGINT, held)
    return KeyboardInterrupt() if came else None
