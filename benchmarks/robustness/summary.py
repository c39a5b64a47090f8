"""From the rows of many photographs to figures, one row at a time: memory does not grow with their number."""

from __future__ import annotations

import itertools
import math
import os
import textwrap
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fundus_rt.benchmarks.robustness.plan import AS_IT_CAME, DEGRADATION_NAMES, Change, Plan, in_words
from fundus_rt.models.card import ModelCard, OutputSpec
from fundus_rt.runtime.agreement import decisions
from fundus_rt.runtime.exact_bounds import clopper_pearson, rate_in_words

NAMED = 10
"""Photographs that are named at most where decisions changed."""
FALL = 0.1
"""A change that shrinks from one severity to a higher one by more than this share of its largest is not monotone."""


@dataclass
class Difference:
    """Differences between two answers to one version, over the photographs, in the output's unit."""

    photographs: int = 0
    total: float = 0.0
    largest: float = 0.0
    largest_in: str = ""
    """The photograph with the largest difference."""
    decided: int | None = None
    """Photographs that were decided otherwise; None for a regression."""
    changed: list[str] = field(default_factory=list)
    """Up to `NAMED` of them."""

    @property
    def mean(self) -> float:
        """NaN without a photograph."""
        return self.total / self.photographs if self.photographs else math.nan

    def add(self, name: str, before: list[float], after: list[float], output: OutputSpec) -> float:
        """Count one photograph; its largest difference over the columns."""
        both = np.array([before, after], np.float64)
        apart = float(np.abs(both[1] - both[0]).max()) if np.isfinite(both).all() else math.inf
        said = decisions(both, output)
        self.photographs += 1
        self.total += apart
        if apart > self.largest or not self.largest_in:
            self.largest, self.largest_in = apart, name
        if said:
            otherwise = said[0] != said[1] or not math.isfinite(apart)
            self.decided = (self.decided or 0) + otherwise
            if otherwise and len(self.changed) < NAMED:
                self.changed.append(name)
        return apart

    def rate(self) -> str:
        """``0 of 413 changed: below 0.9 % at 95 %``; empty for a regression."""
        return "" if self.decided is None else rate_in_words(self.decided, self.photographs)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; a mean or a largest difference that is not finite is None."""
        bounds = None if self.decided is None else list(clopper_pearson(self.decided, self.photographs))
        return {
            "photographs": self.photographs,
            "mean": self.mean if math.isfinite(self.mean) else None,
            "largest": self.largest if math.isfinite(self.largest) else None,
            "largest_in": os.path.basename(self.largest_in),
            "decisions_changed": self.decided,
            "decisions_changed_interval_95": bounds,
            "changed": [os.path.basename(name) for name in self.changed],
        }


@dataclass
class Refusals:
    """What the acquisition check makes of one version."""

    asked: int = 0
    unanswerable: int = 0
    degraded: int = 0
    """Of those that were answered and looked at."""
    looked_at: int = 0
    gradability: float = 0.0
    """Sum of the probabilities of a clean photograph over `looked_at`."""

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "photographs": self.asked,
            "unanswerable": self.unanswerable,
            "unanswerable_interval_95": list(clopper_pearson(self.unanswerable, self.asked)),
            "flagged_degraded": self.degraded,
            "looked_at": self.looked_at,
            "mean_probability_of_clean": self.gradability / self.looked_at if self.looked_at else None,
        }


@dataclass
class Falls:
    """How often an answer moved back towards the clean one while a degradation grew."""

    photographs: int = 0
    not_monotone: int = 0
    most: float = 0.0
    most_in: str = ""

    def add(self, name: str, apart: list[float], least: float) -> None:
        """Count one photograph.

        Args:
            name: of the photograph.
            apart: distance from the clean answer at rising severity.
            least: a fall by less is rounding.
        """
        self.photographs += 1
        fall = max((before - after for before, after in itertools.pairwise(apart)), default=0.0)
        if fall > max(least, FALL * max(apart)):
            self.not_monotone += 1
            if fall > self.most:
                self.most, self.most_in = fall, name


class Summary:
    """Figures of all photographs, by change and output."""

    def __init__(self, card: ModelCard, plan: Plan, compares: bool) -> None:
        """Args:
        card: of the examined file.
        plan: the versions.
        compares: whether the original was asked as well.
        """
        self.card = card
        self.plan = plan
        self.compares = compares
        self.changes = plan.changes()
        every: tuple[Change, ...] = ((AS_IT_CAME, 0), *self.changes)
        names = [output.name for output in card.outputs]
        self.answers = {(change, name): Difference() for change in self.changes for name in names}
        """How far the file's answer is from its own to the photograph as it came."""
        self.parity = {(change, name): Difference() for change in every for name in names} if compares else {}
        """How far the file's answer is from the original's to the same version."""
        self.refusals = {change: Refusals() for change in every}
        self.falls = {(kind, name): Falls() for kind in self.degradations for name in names}
        self.photographs = 0
        self.failed = 0
        self.problems: Counter[str] = Counter()
        """Why versions could not be answered; the commonest are kept."""

    @property
    def degradations(self) -> tuple[str, ...]:
        """Names of the degradations that were made."""
        return tuple(name for name in DEGRADATION_NAMES if any(change[0] == name for change in self.changes))

    @property
    def disturbances(self) -> tuple[Change, ...]:
        """The small changes that were made."""
        return tuple(change for change in self.changes if change[0] not in DEGRADATION_NAMES)

    def add(self, row: Mapping[str, Any]) -> None:
        """Count the row of one photograph."""
        if row.get("error"):
            self.failed += 1
            return
        self.photographs += 1
        versions = {(version["change"], version["level"]): version for version in row["versions"]}
        clean = versions[(AS_IT_CAME, 0)]["values"]
        apart: dict[tuple[str, str], list[float]] = {}
        for change, version in versions.items():
            self._count_refusal(change, version)
            if version["problem"]:
                continue
            for output in self.card.outputs:
                self._count(row["file"], change, version, clean[output.name], output, apart)
        for (kind, name), distances in apart.items():
            if len(distances) > 1:
                self.falls[kind, name].add(row["file"], distances, self._tolerance(name))

    def _count(
        self, file: str, change: Change, version: Row, clean: list[float], output: OutputSpec,
        apart: dict[tuple[str, str], list[float]],
    ) -> None:  # fmt: skip
        values = version["values"][output.name]
        if change[0] != AS_IT_CAME:
            moved = self.answers[change, output.name].add(file, clean, values, output)
            if (change[0], output.name) in self.falls:
                apart.setdefault((change[0], output.name), []).append(moved)
        original = version.get("original", {}).get(output.name)
        if original is not None:
            self.parity[change, output.name].add(file, original[-len(values) :], values, output)

    def _count_refusal(self, change: Change, version: Row) -> None:
        found = self.refusals[change]
        found.asked += 1
        if version["problem"]:
            found.unanswerable += 1
            self.problems[textwrap.shorten(version["problem"].split(" (")[0], 160, placeholder=" ...")] += 1
        if version["degraded"] is not None:
            found.looked_at += 1
            found.degraded += version["degraded"]
            found.gradability += version["gradability"]

    def _tolerance(self, name: str) -> float:
        return next(output.tolerance for output in self.card.outputs if output.name == name)

    def mean_falls(self, kind: str, name: str) -> bool:
        """Whether the mean change of an output shrinks anywhere from one severity to the next."""
        means = [self.answers[(kind, severity), name].mean for severity in self.plan.severities]
        means = [mean for mean in means if math.isfinite(mean)]
        slack = FALL * max(means, default=0.0)
        return any(after < before - slack for before, after in itertools.pairwise(means))

    def parity_problems(self) -> list[str]:
        """Where the file left its original, one sentence each; empty where it did nowhere, or was not compared."""
        found = []
        for (change, name), difference in self.parity.items():
            limit = self._tolerance(name)
            where = f"{in_words(change)}, {name}"
            if difference.largest > limit:
                found.append(
                    f"{where}: the largest difference from the original is {difference.largest:.3g}, tolerance {limit:g}, in "
                    f"{difference.largest_in}"
                )
            if difference.decided:
                found.append(f"{where}: {difference.rate()} (file against original)")
        return found

    def to_dict(self) -> dict[str, Any]:
        """Every figure, JSON-ready."""

        def by_change(found: Mapping[tuple[Change, str], Difference]) -> list[dict[str, Any]]:
            return [
                {"change": change[0], "level": change[1], "output": name, **difference.to_dict()}
                for (change, name), difference in found.items()
            ]

        return {
            "photographs": self.photographs,
            "not_answered_as_they_came": self.failed,
            "seed": self.plan.seed,
            "answers": by_change(self.answers),
            "acquisition_check": [
                {"change": change[0], "level": change[1], **found.to_dict()} for change, found in self.refusals.items()
            ],
            "parity": by_change(self.parity),
            "not_monotone": [
                {"change": kind, "output": name, "photographs": found.photographs, "not_monotone": found.not_monotone,
                 "largest_fall": found.most, "largest_fall_in": found.most_in, "mean_falls": self.mean_falls(kind, name)}
                for (kind, name), found in self.falls.items()
            ],
            "why_unanswerable": dict(self.problems.most_common(NAMED)),
        }  # fmt: skip


Row = Mapping[str, Any]


def summarised(rows: Iterable[Mapping[str, Any]], card: ModelCard, plan: Plan, compares: bool) -> Summary:
    """The figures of rows, read once."""
    summary = Summary(card, plan, compares)
    for row in rows:
        summary.add(row)
    return summary
