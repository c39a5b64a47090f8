"""One opening of a camera, stream or film: newest frame first, none twice, and a driver that hangs is left behind.

OpenCV's calls may block for as long as a driver likes, so each opening of a source has a thread of its own. A thread that does
not come back in time is given up: what it may still read goes nowhere.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from fundus_rt.models.memory import is_out_of_memory, memory_for
from fundus_rt.runtime.camera.source import Capture
from fundus_rt.runtime.decode import BYTES_A_PIXEL, MOST_PIXELS

ROW_STEP = 4
"""Every such row, and of it every such pixel, is compared with the frame before."""
NO_MEMORY = "found not enough memory for its pictures"
"""Why a connection is over."""
_STALE = 1.0
"""Seconds after which a frame that nobody took is no live picture any more."""
_USUAL_RATE = 25.0
"""Frames a second of a film that does not say its own."""


@dataclass(frozen=True)
class Timeouts:
    """How long is waited, seconds."""

    open: float = 20.0
    """For a source to be opened and to give its first frame."""
    read: float = 5.0
    """For each further frame."""
    give_up: float | None = None
    """For a lost source to come back; None for ever, 0 not at all."""


@dataclass(frozen=True)
class CameraFrame:
    """One picture of a source."""

    number: int
    """How many frames the source gave before this one, over all its openings; in a film the frame's index."""
    arrived: float
    """When it had been read, seconds of `time.monotonic`."""
    seconds: float
    """When it was taken: seconds since the reader began, or its place in a film of which every frame is read."""
    pixels: NDArray[np.uint8]
    """uint8 [H, W, 3], BGR; nobody writes to it any more."""
    same_rows: NDArray[np.bool_] | None = None
    """For rows 0, `ROW_STEP`, 2 `ROW_STEP` ... whether they are exactly those of the frame before; None where none was before."""
    change: float = 0.0
    """Root mean square of the difference between the other rows and those of the frame before, grey levels."""


class Connection:
    """One opening of a source, read in a thread of its own."""

    def __init__(
        self, open_capture: Callable[[], Capture], name: str, number: int, began: float, live: bool, every: bool
    ) -> None:
        self._open = open_capture
        self._name = name
        self._began = began
        self._live = live
        self._every = every
        self._changed = threading.Condition()
        self._frame: CameraFrame | None = None
        self._abandoned = False
        self._before: NDArray[np.uint8] | None = None
        self._heard_at = time.monotonic()
        self._new_at: float | None = None
        self.next_number = number
        """Of the next frame."""
        self.announced = 0.0
        """Frames that a film says it has."""
        self.over = ""
        """Why there are no more frames."""
        self.hung = False
        self.thread = threading.Thread(target=self._run, name="camera", daemon=True)
        self.thread.start()

    def frames(self, timeouts: Timeouts, tell: Callable[[str], None]) -> Iterator[CameraFrame]:
        """Frames until there are no more, see `over`."""
        frozen_said = False
        while True:
            with self._changed:
                while self._frame is None and not self.over:
                    limit = timeouts.read if self._new_at is not None else timeouts.open
                    left = self._heard_at + limit - time.monotonic()
                    if left <= 0:
                        self._give_up(limit)
                        break
                    self._changed.wait(min(left, timeouts.read))
                    if self._live and not frozen_said and self._frozen(timeouts.read):
                        tell(f"{self._name} sends the same picture again and again: it is frozen, or its lens is covered")
                        frozen_said = True
                frame, self._frame = self._frame, None
                if self._every:
                    self._heard_at = time.monotonic()  # the thread has waited for us, not for the film
                self._changed.notify_all()
                if frame is None or (self.over and self._live):
                    return
            if self._every or time.monotonic() - frame.arrived <= _STALE:
                frozen_said = False
                yield frame

    def abandon(self) -> None:
        """Let the thread end as soon as it can, and take nothing from it any more."""
        with self._changed:
            self._abandoned = True
            self.over = self.over or "was closed"
            self._changed.notify_all()

    def _give_up(self, seconds: float) -> None:
        self.hung = self._abandoned = True
        self.over = f"gave no frame for {seconds:g} s"

    def _frozen(self, seconds: float) -> bool:
        return self._new_at is not None and self._heard_at - self._new_at > seconds

    def _run(self) -> None:
        capture: Capture | None = None
        reason = "cannot be opened"
        try:
            capture = self._open()
            if capture.isOpened():
                reason = self._read_all(capture)
        except Exception as error:  # whatever a driver or OpenCV raises, the source is lost; its text may hold a URL
            reason = NO_MEMORY if is_out_of_memory(error) else f"failed inside of OpenCV ({type(error).__name__})"
        finally:
            if capture is not None:
                capture.release()
            with self._changed:
                self.over = self.over or reason
                self._changed.notify_all()

    def _read_all(self, capture: Capture) -> str:
        rate = capture.get(cv2.CAP_PROP_FPS)
        rate = rate if 1 <= rate <= 1000 else _USUAL_RATE
        self.announced = capture.get(cv2.CAP_PROP_FRAME_COUNT)
        size = capture.get(cv2.CAP_PROP_FRAME_WIDTH) * capture.get(cv2.CAP_PROP_FRAME_HEIGHT)
        needed = int(size) * BYTES_A_PIXEL if 0 < size < MOST_PIXELS else 0  # drivers say what they like
        first, start = self.next_number, time.monotonic()
        while True:
            with memory_for(needed):  # what a decoder makes of memory that it was refused looks like the end of a film
                good, pixels = capture.read()
            if not good or pixels is None:
                return "gives no more frames" if self.next_number > first else "cannot be read"
            index = self.next_number - first
            if not self._live and not self._every:
                self._wait_until(start + index / rate)
            arrived = time.monotonic()
            seconds = index / rate if self._every else arrived - self._began
            pixels = _bgr(pixels)
            frame = CameraFrame(self.next_number, arrived, seconds, pixels, *self._compared(pixels))
            if not self._hand_over(frame):
                return "was closed"

    def _compared(self, pixels: NDArray[np.uint8]) -> tuple[NDArray[np.bool_] | None, float]:
        """`CameraFrame.same_rows` and `CameraFrame.change`."""
        before, sample = self._before, pixels[::ROW_STEP, ::ROW_STEP].copy()
        self._before = sample
        if before is None or before.shape != sample.shape:
            return None, 0.0
        same = np.asarray((sample == before).all(axis=(1, 2)))
        others = max(1, np.count_nonzero(~same) * sample.shape[1] * 3)
        return same, float(cv2.norm(sample, before, cv2.NORM_L2)) / others**0.5

    def _hand_over(self, frame: CameraFrame) -> bool:
        """Put a frame in the place of an older one, or behind it where every frame counts; False when nobody wants more."""
        with self._changed:
            while self._every and self._frame is not None and not self._abandoned:
                self._changed.wait()
            if self._abandoned:
                return False
            self._heard_at = frame.arrived
            self.next_number += 1
            if self._live and frame.same_rows is not None and frame.same_rows.all():
                return True  # a sensor never gives the same numbers twice: this is an old picture
            self._new_at = frame.arrived
            self._frame = frame
            self._changed.notify_all()
            return True

    def _wait_until(self, moment: float) -> None:
        with self._changed:
            while not self._abandoned and (left := moment - time.monotonic()) > 0:
                self._changed.wait(left)


def _bgr(pixels: Any) -> NDArray[np.uint8]:
    if pixels.dtype == np.uint8 and pixels.ndim == 3 and pixels.shape[2] == 3:
        return pixels  # type: ignore[no-any-return]
    if pixels.dtype == np.uint8 and pixels.ndim == 2:
        return np.asarray(cv2.cvtColor(pixels, cv2.COLOR_GRAY2BGR), np.uint8)
    if pixels.dtype == np.uint8 and pixels.ndim == 3 and pixels.shape[2] == 4:
        return np.ascontiguousarray(pixels[:, :, :3])
    raise ValueError(f"got frames of {pixels.dtype} {pixels.shape}, expected uint8 [H, W, 3] in BGR")
