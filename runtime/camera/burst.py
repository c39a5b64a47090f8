"""Hold, retake, captured: which frame of a live picture is answered, and what the photographer is told meanwhile."""

from __future__ import annotations

from dataclasses import dataclass

from fundus_rt.runtime.camera.connection import CameraFrame
from fundus_rt.runtime.camera.judge import FrameQuality

ABSENCE = 0.5
"""Seconds without a fundus after which what comes next is a new view; a blink lasts 0.1 to 0.4 s."""
_LEAST_FRAMES = 3
"""Good frames that a burst needs."""
_LEAST_SPAN = 0.3
"""Seconds that a burst needs to last, so that there is something to choose from."""
_LONGEST_SPAN = 1.5
"""Seconds after which the best frame is taken although the picture still gets sharper."""
_NEAR_BEST = 0.7
"""Share of the best focus of this view below which a frame is called not sharp."""
_OTHER_EYE = 3
"""Frames of the other eye, one after the other, after which it is believed that the eye has changed."""

_Judged = tuple[CameraFrame, FrameQuality]


@dataclass(frozen=True)
class Burst:
    """The best frame of good ones of one view."""

    frame: CameraFrame
    quality: FrameQuality
    frames: int
    """Good frames that it was chosen from."""


@dataclass(frozen=True)
class Advice:
    """What the photographer is told."""

    state: str
    """``hold``, ``retake`` or ``captured``."""
    words: str


class BurstCollector:
    """Takes judged frames in their order, and says which one is to be answered.

    A frame only counts once another one of the same connection came after it: the last one before a loss may be cut off.
    """

    def __init__(self) -> None:
        self._seen_at = float("-inf")
        self._pending: _Judged | None = None
        self._best: _Judged | None = None
        self._begin_view(None)

    def add(self, frame: CameraFrame, quality: FrameQuality) -> tuple[Advice, Burst | None]:
        """Take the next frame.

        Returns:
            What to tell, and the burst whose best frame is to be answered now, mostly None.
        """
        self._confirm()
        if quality.in_view:
            self._seen_at = frame.seconds
            self._watch_eye(quality.eye)
            advice = self._advice(frame, quality)
        else:
            advice = Advice("retake", quality.problem)
        burst = self._finished(frame.seconds)
        if frame.seconds - self._seen_at > ABSENCE:
            self._begin_view(None)
        return advice, burst

    def lost(self) -> None:
        """The source was lost: nothing from before goes with what comes next."""
        self._begin_view(None)

    def end(self) -> Burst | None:
        """The film has ended: its last frame may be cut off, so it does not count; a burst before it does."""
        self._pending = None
        return self._capture() if self._count >= _LEAST_FRAMES else None

    def _begin_view(self, eye: str | None) -> None:
        self._eye = eye
        self._other_eye = 0
        self._captured = False
        self._begin_burst()

    def _begin_burst(self) -> None:
        self._pending = self._best = None
        self._count = 0
        self._began_at = 0.0

    def _watch_eye(self, eye: str | None) -> None:
        """Begin a new view once the eye has surely changed."""
        self._eye = self._eye or eye
        self._other_eye = 0 if eye in (None, self._eye) else self._other_eye + 1
        if self._other_eye >= _OTHER_EYE:
            self._begin_view(eye)

    def _advice(self, frame: CameraFrame, quality: FrameQuality) -> Advice:
        """What to tell of a frame with a fundus; one that is worth an answer becomes the pending one."""
        if self._captured:
            return Advice("captured", "show the other eye, or the next one")
        if quality.problem or self._other_eye:
            return Advice("retake", quality.problem or "it is not clear which eye this is: hold still")
        if self._best is not None and quality.focus < _NEAR_BEST * self._best[1].focus:
            return Advice("retake", "not as sharp as before: hold still, and focus")
        self._pending = (frame, quality)
        return Advice("hold", "hold still")

    def _confirm(self) -> None:
        """Let the frame before this one count."""
        pending, self._pending = self._pending, None
        if pending is None:
            return
        if self._best is not None and self._best[1].focus < _NEAR_BEST * pending[1].focus:
            self._begin_burst()  # so much sharper than all before that those do not count
        if self._best is None:
            self._began_at = pending[0].seconds
        if self._best is None or pending[1].focus > self._best[1].focus:
            self._best = pending
        self._count += 1

    def _finished(self, seconds: float) -> Burst | None:
        """The burst, when it holds enough and the picture gets no sharper."""
        if self._best is None or self._count < _LEAST_FRAMES or seconds - self._began_at < _LEAST_SPAN:
            return None
        sharper = self._pending is not None and self._pending[1].focus > self._best[1].focus
        return None if sharper and seconds - self._began_at < _LONGEST_SPAN else self._capture()

    def _capture(self) -> Burst | None:
        if self._best is None:
            return None
        burst = Burst(*self._best, self._count)
        self._begin_burst()
        self._captured = True
        return burst
