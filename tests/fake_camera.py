"""A camera that does as it is told: frames, losses, hangs, driver errors."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.uint8]
Action = Image | Callable[[], None]
"""A frame to give, or something to do before the next one, which may raise or block."""


class FakeCamera:
    """Stands in for `cv2.VideoCapture`: each opening plays the next script; when a script ends, so do the frames."""

    def __init__(self, *scripts: Iterable[Action] | None) -> None:
        """Args:
        scripts: of one opening each; None: it cannot be opened. After the last one it cannot be opened any more.
        """
        self._scripts = iter(scripts)
        self.opened = 0

    def __call__(self, source: Any) -> FakeCapture:
        self.opened += 1
        return FakeCapture(next(self._scripts, None))


class FakeCapture:
    """One opening."""

    def __init__(self, script: Iterable[Action] | None) -> None:
        self._script: Iterator[Action] | None = None if script is None else iter(script)

    def isOpened(self) -> bool:
        return self._script is not None

    def read(self) -> tuple[bool, Image | None]:
        assert self._script is not None
        for action in self._script:
            if isinstance(action, np.ndarray):
                return True, action
            action()
        return False, None

    def get(self, prop: int, /) -> float:
        return 0.0

    def release(self) -> None:
        self._script = None


def pictures(count: int, first: int = 0) -> list[Image]:
    """Different noise pictures, uint8 [48, 64, 3]."""
    return [np.random.default_rng(first + i).integers(0, 256, (48, 64, 3), np.uint8) for i in range(count)]


def pause(seconds: float = 0.02) -> Callable[[], None]:
    """Wait before the next frame."""
    return lambda: time.sleep(seconds)


def paced(frames: Iterable[Image], seconds: float = 0.02) -> list[Action]:
    """Frames with a pause before each."""
    actions: list[Action] = []
    for frame in frames:
        actions += [pause(seconds), frame]
    return actions


def one_by_one(frames: Iterable[Image], taken: list[Any]) -> Iterator[Action]:
    """Frames, each held until the one before it was appended to `taken`, and the end until the last one was."""
    for frame in frames:
        before = len(taken)
        yield frame
        while len(taken) == before:
            yield pause(0.005)


def hang(until: threading.Event) -> Callable[[], None]:
    """Block as a driver does."""
    return lambda: until.wait(30) and None
