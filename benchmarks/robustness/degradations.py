"""Synthetic degradations of photographs at graded severity: uneven light, spots, blur, and every mixture of them.

An implementation of our own, from a description of its constants, of the degradation model of cofe-Net (Shen et al., IEEE TMI
2021, "Modeling and Enhancing Low-Quality Retinal Fundus Images"); what was resolved of its inconsistencies stands at the head of
`illumination`, `spots` and `blur`. A picture degraded here is *synthetically* degraded: whether a clinician would call it
ungradable is another question.

Every length is a share of the field of view, every draw is made before the picture is looked at, and each kind has a stream of
random numbers of its own: the same seed gives the same degradation at every resolution and severity, alone and in a mixture.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from fundus_rt.benchmarks.robustness.blur import with_blur
from fundus_rt.benchmarks.robustness.field import Field, Floats, Frame
from fundus_rt.benchmarks.robustness.illumination import with_uneven_light
from fundus_rt.benchmarks.robustness.spots import with_spots

KINDS = ("illumination", "spots", "blur")
"""In the order in which they are applied."""
COMBINATIONS = (
    ("illumination",),
    ("spots",),
    ("blur",),
    ("illumination", "spots"),
    ("illumination", "blur"),
    ("spots", "blur"),
    ("illumination", "spots", "blur"),
)
"""All seven mixtures."""
MOST_SEVERITY = 5
_GRADES = tuple(range(MOST_SEVERITY + 1))
STRENGTHS: dict[str, tuple[float, ...]] = {
    "illumination": (0, 1 / 3, 2 / 3, 1, 4 / 3, 5 / 3),
    "spots": (0, 1 / 3, 2 / 3, 1, 4 / 3, 5 / 3),
    "blur": (0, 1 / 2, 1, 2, 4, 8),
}
"""Strength at the severities 0 to 5, where 1 is the published amount; between whole severities it is interpolated. The published
blur is so weak as it was computed that it stands at severity 2; see `blur`."""

_STEPS: dict[str, Callable[[Floats, Field, np.random.Generator, float], Floats]] = {
    "illumination": with_uneven_light,
    "spots": with_spots,
    "blur": with_blur,
}


def degrade(frame: Frame, field: Field, kinds: Sequence[str], severity: float, seed: int | Sequence[int]) -> Frame:
    """A degraded copy of a frame.

    Args:
        frame: uint8 [H, W, 3], BGR. Not changed.
        field: of this frame, from `field_in_frame`. Nothing outside of it changes.
        kinds: some of `KINDS`; they are applied in that order, whatever the order here.
        severity: 0 (the very same values) to `MOST_SEVERITY`; 3 is the published strength, 2 for blur.
        seed: not negative, or several such numbers; the same seed and severity give the same degradation.

    Raises:
        ValueError: an unknown kind or a severity out of range.
    """
    unknown = sorted(set(kinds) - set(KINDS))
    if unknown:
        raise ValueError(f"got the degradations {unknown}, expected some of {', '.join(KINDS)}")
    if not 0 <= severity <= MOST_SEVERITY:
        raise ValueError(f"got the severity {severity}, expected 0 to {MOST_SEVERITY}")
    if severity == 0 or not kinds:
        return frame.copy()
    seeds = [seed] if isinstance(seed, int) else list(seed)
    levels = field.piece(frame)
    for number, kind in enumerate(KINDS):
        if kind in kinds:
            strength = float(np.interp(severity, _GRADES, STRENGTHS[kind]))
            levels = _STEPS[kind](levels, field, np.random.default_rng([*seeds, number]), strength)
    return field.placed(levels, frame)
