"""The same figures for parts of the photographs: by eye, camera, age band and what the user names."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fundus_rt.benchmarks.evaluation.answers import Answered, QuestionAnswers
from fundus_rt.benchmarks.evaluation.classes import ClassFigures
from fundus_rt.benchmarks.evaluation.figures import QuestionFigures, figures_of
from fundus_rt.benchmarks.evaluation.regression import RegressionFigures
from fundus_rt.benchmarks.evaluation.two_classes import TwoClassFigures

SMALL = 30
"""Photographs (or, of two classes, photographs of the rarer class) below which a group is marked: its interval is wide."""
AGE_BAND = 10
"""Years."""
MOST_GROUPS = 40
"""Groups of one column that are reported; a column with more is no grouping."""


@dataclass(frozen=True)
class GroupFigures:
    """What was measured of one group."""

    column: str
    group: str
    figures: QuestionFigures
    small: bool
    """Too few photographs to say much."""

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        measured = self.figures
        several = {name: part.to_dict() for name, part in measured.items()} if isinstance(measured, dict) else measured.to_dict()
        return {"column": self.column, "group": self.group, "small": self.small, "figures": several}


def group_figures(answered: Answered, answers: QuestionAnswers, resamples: int) -> tuple[list[GroupFigures], list[str]]:
    """Measure every group of every column.

    Args:
        answered: all lines, for their columns.
        answers: of the question.
        resamples: of the bootstraps.

    Returns:
        The groups, and a sentence for each column that was not reported.
    """
    found, left_out = [], []
    for column, codes, names in _groupings(answered, answers):
        present = np.unique(codes)
        if len(present) > MOST_GROUPS:
            left_out.append(f"{column} has {len(present)} values, more than {MOST_GROUPS}: it is not reported by them")
            continue
        for code in present:
            part = answers.part(codes == code)
            figures = figures_of(part, resamples)
            found.append(GroupFigures(column, names[int(code)] or "not said", figures, _is_small(part, figures)))
    return found, left_out


def _groupings(answered: Answered, answers: QuestionAnswers) -> Iterator[tuple[str, NDArray[np.int64], tuple[str, ...]]]:
    table, lines, output = answered.table, answers.lines, answers.question.output
    columns = {name: group for name, group in table.groups.items() if name not in answers.question.columns}
    if "eye" not in answers.question.columns:
        yield "eye", *_eyes(answered, lines)
    for name, group in columns.items():
        if name != "eye":
            yield name, group.codes[lines], group.names
    ages = table.ages[lines] if table.ages is not None else None
    if ages is None and output.task == "regression" and output.unit == "years":
        ages = answers.truth[:, 0]
    if ages is not None and not np.isnan(ages).all():
        yield "age", *_age_bands(ages)


def _eyes(answered: Answered, lines: NDArray[np.int64]) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """The eye of the table, else the one that the runtime went by."""
    names = ("", "left", "right")
    listed = (answered.table.listed_eye(int(line)) or answered.eyes[int(line)] for line in lines)
    return np.array([names.index(eye) for eye in listed], np.int64), names


def _age_bands(ages: NDArray[np.float64]) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    known = ages[~np.isnan(ages)]
    lowest, highest = int(known.min() // AGE_BAND), int(known.max() // AGE_BAND)
    names = ("", *(f"{band * AGE_BAND} to {band * AGE_BAND + AGE_BAND - 1}" for band in range(lowest, highest + 1)))
    codes = np.where(np.isnan(ages), 0, np.nan_to_num(ages) // AGE_BAND - lowest + 1)
    return codes.astype(np.int64), names


def _is_small(part: QuestionAnswers, figures: QuestionFigures) -> bool:
    if isinstance(figures, (RegressionFigures, ClassFigures)):
        return len(part.lines) < SMALL
    rarest = (figures,) if isinstance(figures, TwoClassFigures) else figures.values()
    return any(min(one.prevalence.count, one.photographs - one.prevalence.count) < SMALL for one in rarest)
