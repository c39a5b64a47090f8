"""From a live source to rows: every captured view is answered once, from one frame, and says which."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from datetime import datetime, timezone

from fundus_rt.models.artifacts import sha256_of_bytes
from fundus_rt.models.errors import StoppedError
from fundus_rt.models.memory import is_out_of_memory
from fundus_rt.runtime.batch import AnswerOptions, Row, empty_row, failure
from fundus_rt.runtime.camera.burst import Advice, Burst, BurstCollector
from fundus_rt.runtime.camera.connection import CameraFrame
from fundus_rt.runtime.camera.judge import FrameJudge, FrameQuality
from fundus_rt.runtime.camera.reader import FrameReader
from fundus_rt.runtime.pipeline import Pipeline

_SETTLED = 0.25
"""Seconds for which advice has to stay the same before it is told; what flickers helps nobody."""


class CameraAnswerer:
    """Watches a source and answers the best frame of each view."""

    def __init__(
        self, name: str, reader: FrameReader, judge: FrameJudge, pipeline: Pipeline, options: AnswerOptions,
        tell: Callable[[Advice], None],
    ) -> None:  # fmt: skip
        """Args:
        name: what rows call the source.
        reader, judge, pipeline: what gives frames, judges and answers them.
        options: the eye that the call gives, and whether the source mirrors.
        tell: is given advice whenever it changes.
        """
        self._name = name
        self._reader = reader
        self._judge = judge
        self._pipeline = pipeline
        self._options = options
        self._tell = tell
        self._since = datetime.now(timezone.utc).isoformat(timespec="seconds")
        self._collector = BurstCollector()
        self._told: Advice | None = None
        self._next: tuple[Advice, float] | None = None
        self.last_problem = ""
        """The last reason, in words, why a frame was not captured."""

    def rows(self) -> Generator[Row, None, None]:
        """A row for each captured view, until a film ends; for a live source for ever.

        Raises:
            CameraError: see `FrameReader.frames`.
            StoppedError: what computes cannot be trusted or is gone.
        """
        try:
            for frame in self._reader.frames():
                if frame is None:
                    self._collector.lost()
                    continue
                advice, burst = self._collector.add(frame, self._judged(frame))
                if burst is not None:
                    yield self._answered(burst)
                else:
                    self._say(advice, frame.seconds)
            burst = self._collector.end()
            if burst is not None:
                yield self._answered(burst)
        finally:
            self._reader.close()

    def _judged(self, frame: CameraFrame) -> FrameQuality:
        try:
            return self._judge(frame)
        except StoppedError:
            raise
        except Exception as error:
            if not is_out_of_memory(error):
                raise
        return FrameQuality(False, "not enough memory to look at the picture: close other programs, or allow more")

    def _answered(self, burst: Burst) -> Row:
        frame = burst.frame
        row = empty_row(self._name, None, None, self._pipeline)
        row["capture"] = {
            "frame": frame.number,
            "seconds": round(frame.seconds, 3),
            "watched_since": self._since,
            "frames_in_burst": burst.frames,
            "focus": round(burst.quality.focus, 1),
        }
        waited = time.monotonic() - frame.arrived
        try:
            result = self._pipeline(frame.pixels, self._options.eye, self._options.mirrored_by_source)
            row.update(result.to_dict())
        except StoppedError:
            raise
        except Exception as error:  # as for files: the row says what happened, and the next view is another one
            row.update(failure(error, row))
        row["timing_ms"]["burst"] = round(waited * 1e3, 2)
        row["timing_ms"]["frame_to_answer"] = round((time.monotonic() - frame.arrived) * 1e3, 2)
        row["sha256"] = sha256_of_bytes(frame.pixels.tobytes())
        self._say_at_once(
            Advice("retake", row["error"]) if row["error"] else Advice("captured", f"frame {frame.number} of {self._name}")
        )
        return row

    def _say(self, advice: Advice, seconds: float) -> None:
        """Tell advice that is new and has settled."""
        if advice.state == "retake":
            self.last_problem = advice.words
        if self._next is None or self._next[0] != advice:
            self._next = (advice, seconds)
        settled = seconds - self._next[1] >= _SETTLED
        if settled and advice != self._told:
            self._told = advice
            self._tell(advice)

    def _say_at_once(self, advice: Advice) -> None:
        self._told, self._next = advice, None
        self._tell(advice)
