"""The operating point for a wanted sensitivity: a missed patient costs more than a second look."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fundus_rt.benchmarks.evaluation.estimates import SEED, Rate, Values, one_of_each, rate
from fundus_rt.benchmarks.evaluation.two_classes import TwoClassAnswers
from fundus_rt.runtime.exact_bounds import clopper_pearson

FOLDS = 10
FEWEST_OF_EACH = 10
"""Photographs of either class below which no operating point is chosen: with fewer, one photograph moves the sensitivity or the
specificity by more than ten points, and with none of a class there is no error of that side to weigh at all."""
AIMS = ("bound", "estimate")
"""What has to reach the wanted sensitivity: the lower end of its exact 95 % interval, or the share that was found itself."""


@dataclass(frozen=True)
class OperatingPoint:
    """A threshold on the probability and what it does."""

    question: str
    wanted: float
    """Sensitivity, 0 to 1."""
    aim: str
    """One of `AIMS`."""
    threshold: float
    """From this probability on, the positive class is said."""
    sensitivity: Rate
    """On the photographs that it was chosen on: too good."""
    specificity: Rate
    unseen_sensitivity: Rate | None
    """Chosen on nine tenths of the patients and asked on the rest, in turn; None where that cannot be done."""
    unseen_specificity: Rate | None
    why_not_unseen: str = ""

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        unseen = (self.unseen_sensitivity, self.unseen_specificity)
        return {
            "question": self.question,
            "wanted_sensitivity": self.wanted,
            "aim": self.aim,
            "threshold": self.threshold,
            "sensitivity": self.sensitivity.to_dict(),
            "specificity": self.specificity.to_dict(),
            "unseen_sensitivity": unseen[0].to_dict() if unseen[0] else None,
            "unseen_specificity": unseen[1].to_dict() if unseen[1] else None,
            "why_not_unseen": self.why_not_unseen,
        }


def operating_point(answers: TwoClassAnswers, wanted: float, aim: str) -> OperatingPoint | str:
    """The highest threshold that reaches a sensitivity, and what it does on photographs that it was not chosen on.

    Args:
        answers: truth and probabilities.
        wanted: sensitivity, above 0 and below 1.
        aim: one of `AIMS`.

    Returns:
        The operating point, or a sentence that says why there is none.
    """
    truth, probability = answers.positive, answers.probability
    lacking = why_too_few(answers.question, int(truth.sum()), int((~truth).sum()))
    if lacking:
        return lacking
    threshold = threshold_for(probability, truth, wanted, aim, answers.clusters)
    if threshold is None:
        return _why_none(answers, wanted, aim)
    said = probability >= threshold
    unseen, why_not = _unseen(answers, wanted, aim)
    return OperatingPoint(
        question=answers.question,
        wanted=wanted,
        aim=aim,
        threshold=threshold,
        sensitivity=rate(said, truth, answers.clusters),
        specificity=rate(~said, ~truth, answers.clusters),
        unseen_sensitivity=None if unseen is None else rate(unseen, truth, answers.clusters),
        unseen_specificity=None if unseen is None else rate(~unseen, ~truth, answers.clusters),
        why_not_unseen=why_not,
    )


def why_too_few(question: str, positives: int, negatives: int) -> str:
    """Why no operating point can be chosen with so many photographs of either class; empty where one can."""
    if min(positives, negatives) >= FEWEST_OF_EACH:
        return ""
    return (
        f"{question}: no operating point is chosen with {positives} positive and {negatives} other photographs; it takes "
        f"{FEWEST_OF_EACH} of each at least. Add labelled photographs of the rarer kind"
    )


def threshold_for(
    probability: Values, positive: NDArray[np.bool_], wanted: float, aim: str, clusters: NDArray[np.int64] | None = None
) -> float | None:
    """The highest threshold with which enough of the positive photographs are called positive.

    It lies half-way between the lowest probability that has to be called positive and the next lower one, so that no answer
    lies on it. The exact bound holds for independent photographs; so where patients repeat, it is taken from one photograph of
    each positive patient, drawn with a fixed seed.

    Args:
        probability: float64 [N].
        positive: bool [N].
        wanted: sensitivity, above 0 and below 1.
        aim: one of `AIMS`.
        clusters: int64 [N], the patient of each photograph; None: each is another patient.

    Returns:
        Above 0 and below 1; None where no threshold reaches it.
    """
    found = probability[positive]
    if aim == "bound" and clusters is not None:
        found = found[one_of_each(clusters[positive])]
    needed = hits_needed(len(found), wanted, aim)
    if needed is None:
        return None
    lowest = float(np.sort(found)[::-1][needed - 1])
    below = probability[probability < lowest]
    threshold = (lowest + (float(below.max()) if len(below) else 0.0)) / 2
    return threshold if 0 < threshold < 1 else None


def hits_needed(positives: int, wanted: float, aim: str) -> int | None:
    """How many of the positive photographs have to be called positive; None where even all are not enough."""
    counts = range(1, positives + 1)
    if aim == "estimate":
        return next((hits for hits in counts if hits / positives >= wanted), None)
    low, high = 1, positives + 1
    while low < high:  # the bound rises with the count
        middle = (low + high) // 2
        if clopper_pearson(middle, positives)[0] >= wanted:
            high = middle
        else:
            low = middle + 1
    return low if low <= positives else None


def _why_none(answers: TwoClassAnswers, wanted: float, aim: str) -> str:
    question, probability, patients = answers.question, answers.probability, answers.clusters[answers.positive]
    positives = len(np.unique(patients)) if aim == "bound" else len(patients)
    kind = "photographs" if positives == len(patients) else "patients"
    if hits_needed(positives, wanted, aim) is not None:
        return (
            f"{question}: no threshold between 0 and 1 has a sensitivity of {wanted:g}, for positive photographs were answered "
            f"with a probability of {float(probability.min()):g}"
        )
    enough = next(count for count in range(1, 10**7) if clopper_pearson(count, count)[0] >= wanted) if aim == "bound" else 1
    return (
        f"{question}: a sensitivity of {wanted:g} cannot be shown with {positives} positive {kind}, even if all are found: "
        f"its lower bound needs {enough} of them. Add photographs, or choose by the share itself with --aim estimate"
    )


def _unseen(answers: TwoClassAnswers, wanted: float, aim: str) -> tuple[NDArray[np.bool_] | None, str]:
    """Decisions [N] by thresholds that were chosen without the photograph's own patient, or why there are none."""
    truth = answers.positive
    kinds = [len(np.unique(answers.clusters[kind])) for kind in (truth, ~truth)]
    folds = min(FOLDS, *kinds)
    if folds < 2:
        return None, "it takes two patients of each class to choose on some and ask on others"
    fold_of = _folds(answers.clusters, truth, folds)
    said = np.zeros(len(truth), np.bool_)
    for fold in range(folds):
        asked = fold_of == fold
        chosen = ~asked
        threshold = threshold_for(answers.probability[chosen], truth[chosen], wanted, aim, answers.clusters[chosen])
        if threshold is None:
            return None, "with a part of the photographs left out, the rest is too few to choose on"
        said[asked] = answers.probability[asked] >= threshold
    return said, ""


def _folds(clusters: NDArray[np.int64], positive: NDArray[np.bool_], folds: int) -> NDArray[np.int64]:
    """The fold of each photograph [N]: patients at random, those with and those without a positive one spread evenly."""
    rng = np.random.default_rng(SEED)
    has_positive = np.zeros(int(clusters.max()) + 1, np.bool_)
    has_positive[clusters[positive]] = True
    fold_of = np.empty(len(has_positive), np.int64)
    for kind in (has_positive, ~has_positive):
        patients = rng.permutation(np.flatnonzero(kind))
        fold_of[patients] = np.arange(len(patients)) % folds
    return fold_of[clusters]
