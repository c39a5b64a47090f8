"""What the rows of a proof come to: figures per output, and the photographs worth looking at."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fundus_rt.benchmarks.proof.parity_rows import Answered
from fundus_rt.models.card import OutputSpec
from fundus_rt.runtime.agreement import ROUNDING, OutputAgreement, agreement, decisions, margins, values_in_unit

SUM_ERROR = 1e-3
"""How far a probability may lie outside of 0 to 1 by rounding."""


@dataclass(frozen=True)
class OutputFigures:
    """One output over all photographs that both sides answered, N of them."""

    output: OutputSpec
    """The author's."""
    own: OutputSpec
    """The file's."""
    agreement: OutputAgreement
    original: np.ndarray
    """float64 [N, columns], in the output's unit."""
    ours: np.ndarray
    """float64 [N, columns], in the output's unit."""
    original_decisions: tuple[str, ...]
    """Empty for a regression."""
    decisions: tuple[str, ...]
    """The file's; empty for a regression."""
    margins: np.ndarray
    """float64 [N]: how far the original's answer lies from another decision; NaN for a regression."""

    @property
    def apart(self) -> np.ndarray:
        """float64 [N]: the largest difference of each photograph, in the output's unit; infinite where one is not finite."""
        difference = np.abs(self.ours - self.original).max(axis=1, initial=0.0)
        return np.where(np.isfinite(difference), difference, np.inf)

    @property
    def disagrees(self) -> bool:
        """Whether the answers speak against the file; that they are too few or too alike to prove anything does not."""
        found, finite = self.agreement, self.original[np.isfinite(self.original).all(axis=1)]
        telling = len(finite) > 0 and bool((np.ptp(finite, axis=0) > ROUNDING * np.abs(finite).max(axis=0)).any())
        return bool(found.changed or found.beyond_tolerance or (found.problems and telling))

    def nearest(self, most: int) -> list[int]:
        """Photographs in the order of their distance to an operating point; none for a regression."""
        order = np.argsort(self.margins, kind="stable")
        return [int(index) for index in order[:most] if np.isfinite(self.margins[index])]

    def within_reach(self) -> list[int]:
        """Photographs whose margin is no larger than the largest difference, the nearest first."""
        count = self.agreement.near_operating_point or 0
        return self.nearest(count)

    @property
    def telling_column(self) -> int:
        """The column in which the original's answers differ most."""
        finite = self.original[np.isfinite(self.original).all(axis=1)]
        return int(finite.std(axis=0).argmax()) if len(finite) else 0


def figures(answered: Answered, outputs: Sequence[OutputSpec], own: Sequence[OutputSpec], precision: str) -> list[OutputFigures]:
    """Figures of every output.

    Args:
        answered: both sides' numbers.
        outputs: the author's, resolved.
        own: the file's, in any order.
        precision: of the file's graph, which decides how large a difference passes.
    """
    own_by_name = {output.name: output for output in own}
    return [_figures(answered, output, own_by_name[output.name], precision) for output in outputs]


def _figures(answered: Answered, output: OutputSpec, own: OutputSpec, precision: str) -> OutputFigures:
    before, after = answered.original[output.name], answered.ours[output.name]
    original, ours = values_in_unit(before, output), values_in_unit(after, own)
    return OutputFigures(
        output,
        own,
        agreement(output.name, before, after, output, output.allowed(precision), found_output=own),
        original,
        ours,
        tuple(decisions(original, output)),
        tuple(decisions(ours, own)),
        margins(original, output),
    )


def further_problems(found: Sequence[OutputFigures], unanswered: int) -> list[str]:
    """What stands against the proof beside the agreement of the answers, one sentence each."""
    problems = []
    if unanswered:
        problems.append(f"{unanswered} photograph{'s' * (unanswered != 1)} could not be answered by both sides")
    for one in found:
        finite = one.original[np.isfinite(one.original)]
        if one.output.task != "regression" and finite.size and not (finite.min() >= -SUM_ERROR and finite.max() <= 1 + SUM_ERROR):
            problems.append(
                f"{one.output.name}: the original's values run from {finite.min():.3g} to {finite.max():.3g} and are no "
                f"probabilities; the activation {one.output.activation!r} of the card does not fit the network"
            )
    return problems


def without_places(found: dict[str, Any]) -> dict[str, Any]:
    """Figures without the places of photographs in this run, which mean nothing outside of it."""
    return {name: value for name, value in found.items() if name not in ("changed", "worst")}


def chosen(found: Sequence[OutputFigures], photographs: int, most: int) -> list[int]:
    """Photographs that stand for all: a third the worst, a third the nearest to an operating point, the rest spread evenly over
    the original's answers.

    Args:
        found: figures of every output.
        photographs: how many there are.
        most: how many to choose; all where there are fewer.
    """
    picked: dict[int, None] = {}
    third = -(-most // 3)
    groups = (
        (_turns([[int(i) for i in np.argsort(-one.apart, kind="stable")[:third]] for one in found]), third),
        (_turns([one.nearest(third) for one in found]), 2 * third),
        (_turns([_spread(one, most) for one in found]), most),
        (iter(range(photographs)), most),
    )
    for candidates, until in groups:
        for index in candidates:
            if len(picked) >= min(until, most):
                break
            picked.setdefault(index)
    return list(picked)


def _spread(one: OutputFigures, most: int) -> list[int]:
    """Photographs at even steps of rank of the original's answers, both ends among them; first coarse, then finer steps."""
    order = np.argsort(one.original[:, one.telling_column], kind="stable")
    places: dict[int, None] = {}
    steps = 1
    while len(order) and len(places) < min(most, len(order)):
        places.update(dict.fromkeys(round(step * (len(order) - 1) / steps) for step in range(steps + 1)))
        steps *= 2
    return [int(order[place]) for place in places]


def _turns(lists: Sequence[Sequence[int]]) -> Iterator[int]:
    """One of each list in turn."""
    for place in range(max((len(one) for one in lists), default=0)):
        for one in lists:
            if place < len(one):
                yield one[place]
