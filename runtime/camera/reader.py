"""Frames of a source that may hang, vanish and come back, for as long as is wanted."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

from fundus_rt.models.errors import CameraError
from fundus_rt.runtime.camera.connection import NO_MEMORY, CameraFrame, Connection, Timeouts
from fundus_rt.runtime.camera.source import CameraSource, Capture, open_source

PAUSES = (0.5, 1.0, 2.0, 5.0, 10.0)
"""Seconds before a lost source is tried again; the last one is repeated."""
_ALLOW_MORE = "close other programs, allow more (--memory-limit, or the limit of the service), or take smaller pictures"
_MOST_HANGING = 4
"""Threads that may hang in a driver before no further one is started."""
_SAY_AGAIN = 30.0
"""Seconds after which it is said again that a source is being waited for."""


class FrameReader:
    """Reads a source, and opens it again for as long as is wanted."""

    def __init__(
        self,
        source: CameraSource,
        tell: Callable[[str], None],
        every_frame: bool = False,
        timeouts: Timeouts | None = None,
        open_capture: Callable[[CameraSource], Capture] = open_source,
        pauses: tuple[float, ...] = PAUSES,
    ) -> None:
        """Args:
        source: what to read.
        tell: is given sentences about a source that is lost, waited for, or back.
        every_frame: of a film, hand out every frame as fast as it is taken, instead of the newest in the film's own time.
        timeouts: None for the usual ones.
        open_capture: how a source is opened.
        pauses: as `PAUSES`.
        """
        self._source = source
        self._tell = tell
        self._every = every_frame and source.kind == "film"
        self._timeouts = timeouts or Timeouts()
        self._open = lambda: open_capture(source)
        self._pauses = pauses
        self._began = time.monotonic()
        self._current: Connection | None = None
        self._hanging: list[Connection] = []

    def frames(self) -> Iterator[CameraFrame | None]:
        """Frames in their order; None where the source was lost, so that nothing before it goes with anything after it.

        Ends with a film. The frame before a loss or before the end of a film may be cut off: it is for the taker to wait for
        another one after it.

        Raises:
            CameraError: a film cannot be read, or a lost source did not come back in time.
        """
        number, attempt = 0, 0
        lost_at = said_at = 0.0
        while True:
            connection = self._connect(number)
            taken = 0
            for frame in connection.frames(self._timeouts, self._tell):
                if attempt:
                    self._tell(f"{self._source.name} is back after {frame.arrived - lost_at:.0f} s")
                    attempt = 0
                if not taken:
                    self._compare_size(frame)
                taken += 1
                yield frame
            number = max(number, connection.next_number)
            if self._source.kind == "film":
                self._require_read_film(connection)
                return
            now = time.monotonic()
            if not attempt:
                lost_at = said_at = now
                self._tell(f"{self._source.name} {connection.over}; waiting for it. {self._hint()}")
            elif now - said_at >= _SAY_AGAIN:
                said_at = now
                self._tell(f"{self._source.name} {connection.over}; waiting for it since {now - lost_at:.0f} s")
            if taken:
                yield None
            self._pause(attempt, lost_at)
            attempt += 1

    def close(self) -> None:
        """Stop reading. A thread that hangs in a driver is left to it."""
        if self._current is not None:
            self._current.abandon()
            self._current.thread.join(timeout=1.0)

    def _connect(self, number: int) -> Connection:
        if self._current is not None and self._current.thread.is_alive():
            self._hanging.append(self._current)
        self._hanging = [old for old in self._hanging if old.thread.is_alive()]
        if len(self._hanging) >= _MOST_HANGING:
            return self._hanging[0]  # it is over: this is one more pause
        live = self._source.kind != "film"
        self._current = Connection(self._open, self._source.name, number, self._began, live, self._every)
        return self._current

    def _compare_size(self, frame: CameraFrame) -> None:
        height, width = frame.pixels.shape[:2]
        if self._source.size not in (None, (width, height)):
            wanted = " x ".join(map(str, self._source.size or ()))
            self._tell(f"{self._source.name} gives {width} x {height} pixels, not the {wanted} that it was asked for")

    def _pause(self, attempt: int, lost_at: float) -> None:
        pause = self._pauses[min(attempt, len(self._pauses) - 1)]
        limit = self._timeouts.give_up
        if limit is not None:
            left = lost_at + limit - time.monotonic()
            if left <= 0:
                raise CameraError(f"{self._source.name} did not come back within {limit:g} s. {self._hint()}")
            pause = min(pause, left)
        time.sleep(pause)

    def _require_read_film(self, connection: Connection) -> None:
        if connection.over == NO_MEMORY:
            raise CameraError(f"the film {self._source.name} {NO_MEMORY}; {_ALLOW_MORE}")
        if connection.hung or connection.next_number == 0:
            raise CameraError(
                f"the film {self._source.name} {connection.over}; expected a film that this OpenCV reads, such as an .mp4 or an "
                ".avi in Motion JPEG. Copy it again, or convert it"
            )
        if connection.next_number < 0.9 * connection.announced:
            self._tell(
                f"the film {self._source.name} ends after {connection.next_number} of {connection.announced:.0f} frames: it is "
                "cut off or damaged"
            )

    def _hint(self) -> str:
        if self._current is not None and self._current.over == NO_MEMORY:
            return f"{_ALLOW_MORE[0].upper()}{_ALLOW_MORE[1:]}."
        return {
            "device": "Look at its cable and its number (ls /dev/video*), and that no other program uses it.",
            "stream": "Look at the network, the camera, and the user and password in its URL.",
            "gstreamer": "Try the pipeline with gst-launch-1.0, fakesink in the place of appsink.",
        }.get(self._source.kind, "")
