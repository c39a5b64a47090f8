"""Is a frame worth an answer? Acquisition model, framing and sharpness say so; where it is not, in words for the photographer."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fundus_rt.models.errors import DecodeError, NotFundusError
from fundus_rt.runtime.camera.connection import ROW_STEP, CameraFrame
from fundus_rt.runtime.camera.framing import framing_problem
from fundus_rt.runtime.camera.sharpness import LEAST_DETAIL, sharpness_of
from fundus_rt.runtime.decode import refuse_filled_end
from fundus_rt.runtime.field_of_view import FieldOfView
from fundus_rt.runtime.pipeline import Pipeline

_INNER = 0.9
"""Share of the radius, above and below the centre, in which rows are looked at."""
_MIXED_SHARE = 0.1
"""Share of those rows that have to be old ones."""
_CHANGED = 1.0
"""Root mean square of the change of the other rows, grey levels, from which there is one."""
_DARK = 16
"""Grey level, the mean of the brightest channel, below which a frame without a fundus is called dark."""


@dataclass(frozen=True)
class FrameQuality:
    """What is known of a frame before it is answered."""

    in_view: bool
    """A fundus is seen, well or badly."""
    problem: str = ""
    """Why the frame is not worth an answer, and what to do; empty when it is."""
    eye: str | None = None
    """``left`` or ``right`` where the acquisition model is sure."""
    focus: float = 0.0
    """`fundus_rt.runtime.camera.sharpness.Sharpness.focus`; 0 where there was another problem before."""


class FrameJudge:
    """Judges frames one by one."""

    def __init__(
        self,
        acquisition: Pipeline,
        eye: str | None = None,
        eye_needed: bool = False,
        mirrored_by_source: bool = False,
        any_framing: bool = False,
        any_quality: bool = False,
    ) -> None:
        """Args:
        acquisition: the opened acquisition model.
        eye: what the call says, or None.
        eye_needed: the model that answers has to know the eye.
        mirrored_by_source: the source hands out mirrored pictures.
        any_framing: do not look at where the field of view lies.
        any_quality: let what is neither sharp nor clean pass as well, as behind a cataract.
        """
        self._acquisition = acquisition
        self._eye = eye
        self._eye_needed = eye_needed
        self._mirrored = mirrored_by_source
        self._any_framing = any_framing
        self._any_quality = any_quality

    def __call__(self, camera_frame: CameraFrame) -> FrameQuality:
        """Judge a frame.

        Raises:
            StoppedError: the acquisition model cannot be trusted any more.
        """
        frame = camera_frame.pixels
        try:
            seen = self._acquisition(frame, None, self._mirrored)
        except NotFundusError:
            return FrameQuality(False, _nothing_seen(frame))
        if seen.outputs["fundus"].decision != "fundus":
            return FrameQuality(False, _nothing_seen(frame))
        eye = seen.eye.value
        if _has_filled_end(frame) or is_mixed(camera_frame, seen.field_of_view):
            return FrameQuality(True, "incomplete: a part of the picture is missing; look at the camera's cable or network", eye)
        problem = "" if self._any_framing else framing_problem(seen.field_of_view, *frame.shape[:2])
        problem = problem or self._eye_problem(eye)
        if problem:
            return FrameQuality(True, problem, eye)
        sharpness = sharpness_of(frame, seen.field_of_view)
        if self._any_quality:
            return FrameQuality(True, "", eye, sharpness.focus)
        if sharpness.detail < LEAST_DETAIL:
            return FrameQuality(True, "not sharp: focus, and hold still", eye)
        if seen.outputs["gradability"].decision != "clean":
            return FrameQuality(True, "degraded: look for uneven light, reflections or dust, and focus again", eye)
        return FrameQuality(True, "", eye, sharpness.focus)

    def _eye_problem(self, seen: str | None) -> str:
        if self._eye is not None and seen is not None and seen != self._eye:
            return f"other eye: this looks like the {seen} one, and --eye says {self._eye}"
        if self._eye_needed and self._eye is None and seen is None:
            return "which eye? It cannot be told surely: show disc and macula, or say --eye left|right"
        return ""


def is_mixed(frame: CameraFrame, view: FieldOfView) -> bool:
    """Whether a part of the field of view is still that of the frame before, as decoders leave it where data is missing.

    Rows that are exactly those of the frame before, for a tenth of the field's height, beside rows that did change. Compression
    also leaves what stands still as it was; there the other rows hardly change either.
    """
    if frame.same_rows is None or frame.same_rows.all() or frame.change < _CHANGED:
        return False
    first = max(0, round((view.center[1] - _INNER * view.radius) / ROW_STEP))
    last = round((view.center[1] + _INNER * view.radius) / ROW_STEP)
    inside = frame.same_rows[first : last + 1]
    changes = np.flatnonzero(np.concatenate([[True], ~inside, [True]]))
    return not inside.all() and int(np.diff(changes).max()) - 1 >= _MIXED_SHARE * len(inside)


def _has_filled_end(frame: NDArray[np.uint8]) -> bool:
    try:
        refuse_filled_end(frame, "the frame")
    except DecodeError:
        return True
    return False


def _nothing_seen(frame: NDArray[np.uint8]) -> str:
    if float(frame[::8, ::8].max(axis=2).mean()) < _DARK:
        return "dark: look at the light, and that the eye is open"
    return "no fundus is seen: bring the camera to the pupil"
