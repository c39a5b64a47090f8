"""Which changed versions of a photograph are made."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from fundus_rt.benchmarks.robustness.degradations import COMBINATIONS, KINDS, MOST_SEVERITY, degrade
from fundus_rt.benchmarks.robustness.disturbances import JPEG_QUALITIES, SHIFTS, recompressed, shifted
from fundus_rt.benchmarks.robustness.field import Field, Frame
from fundus_rt.models.errors import UsageError
from fundus_rt.runtime.field_of_view import FieldOfView

AS_IT_CAME, SHIFT, JPEG, PIXEL = "as it came", "shift", "jpeg", "pixel"
DISTURBANCES = (SHIFT, JPEG, PIXEL)
"""Small changes, beside the degradations."""
DEGRADATION_NAMES = tuple("+".join(kinds) for kinds in COMBINATIONS)
UNITS = {SHIFT: "{} px", JPEG: "quality {}", PIXEL: "{} places"}
"""How the level of a disturbance is written; that of a degradation is its severity."""

Change = tuple[str, int]
"""What was changed, and how much: the severity, the pixels of a shift, the quality of a JPEG, the places tried."""


@dataclass(frozen=True)
class Plan:
    """What is done to every photograph, and with which seed."""

    degradations: tuple[tuple[str, ...], ...] = COMBINATIONS
    severities: tuple[int, ...] = (1, 3, 5)
    shifts: tuple[int, ...] = SHIFTS
    qualities: tuple[int, ...] = JPEG_QUALITIES
    pixels: int = 24
    """Places at which one pixel is changed; the worst counts."""
    seed: int = 0

    def digest(self) -> str:
        """16 hexadecimal digits that are others for every other plan."""
        return hashlib.sha256(repr(dataclasses.astuple(self)).encode()).hexdigest()[:16]

    def changes(self) -> tuple[Change, ...]:
        """All changes in the order in which they are made, without the photograph as it came."""
        made = [("+".join(kinds), severity) for kinds in self.degradations for severity in self.severities]
        made += [(SHIFT, pixels) for pixels in self.shifts] + [(JPEG, quality) for quality in self.qualities]
        return tuple(made) + ((PIXEL, self.pixels),) * (self.pixels > 0)


def plan_of(only: str | None, severities: str, pixels: int, seed: int) -> Plan:
    """A plan from the words of a call.

    Args:
        only: degradations and disturbances joined with commas, a mixture with ``+``: ``blur,illumination+spots,jpeg``; None for
            all.
        severities: whole numbers from 1 to 5, joined with commas.
        pixels: places at which one pixel is changed.
        seed: not negative.

    Raises:
        UsageError: an unknown word, or a severity out of range.
    """
    try:
        levels = tuple(sorted({int(word) for word in severities.split(",")}))
    except ValueError:
        levels = (0,)
    if min(levels) < 1 or max(levels) > MOST_SEVERITY:
        raise UsageError(f"--severities is {severities!r}, expected whole numbers from 1 to {MOST_SEVERITY}, for example 1,3,5")
    if only is None:
        return Plan(COMBINATIONS, levels, pixels=pixels, seed=seed)
    words = [word.strip() for word in only.split(",")]
    chosen: list[tuple[str, ...]] = []
    for word in words:
        kinds = tuple(kind for kind in KINDS if kind in word.split("+"))
        if word not in DISTURBANCES and (len(kinds) != len(word.split("+")) or not kinds):
            raise UsageError(
                f"--only names {word!r}, expected {', '.join((*KINDS, *DISTURBANCES))}, or a mixture such as "
                f"{DEGRADATION_NAMES[-1]}"
            )
        chosen += [kinds] * (word not in DISTURBANCES and kinds not in chosen)
    return Plan(
        tuple(kinds for kinds in COMBINATIONS if kinds in chosen),
        levels,
        SHIFTS if SHIFT in words else (),
        JPEG_QUALITIES if JPEG in words else (),
        pixels if PIXEL in words else 0,
        seed,
    )


def seed_of(plan: Plan, sha256: str) -> list[int]:
    """The seed of one photograph: the plan's, and the photograph's own, so that every photograph is spoilt in another way and
    always in the same, whatever its name and the others are."""
    return [plan.seed, int(sha256[:12], 16)]


def changed_frames(
    frame: Frame, view: FieldOfView, field: Field, plan: Plan, seed: Sequence[int]
) -> Iterator[tuple[Change, Frame]]:
    """Every changed version of a photograph but those with one pixel changed, one at a time.

    Args:
        frame: uint8 [H, W, 3], BGR. Not changed.
        view, field: of this frame.
        plan: what is wanted.
        seed: from `seed_of`.
    """
    for kinds in plan.degradations:
        for severity in plan.severities:
            yield ("+".join(kinds), severity), degrade(frame, field, kinds, severity, seed)
    for pixels in plan.shifts:
        yield (SHIFT, pixels), shifted(frame, view, pixels, list(seed))
    for quality in plan.qualities:
        yield (JPEG, quality), recompressed(frame, quality)


def in_words(change: Change) -> str:
    """``blur, severity 3``, ``shift, 4 px``, ``jpeg, quality 75``."""
    name, level = change
    return name if name == AS_IT_CAME else f"{name}, {UNITS.get(name, 'severity {}').format(level)}"
