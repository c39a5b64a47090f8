"""How well two classes are told apart, at the operating point and over all of them, and what the probabilities are worth."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fundus_rt.benchmarks.evaluation.delong import auc_estimate
from fundus_rt.benchmarks.evaluation.estimates import RESAMPLES, Estimate, Rate, Values, estimates, rate, ratio
from fundus_rt.benchmarks.extras import require_proof

BINS = 10
"""Of the calibration curve, equally wide."""


@dataclass(frozen=True)
class TwoClassAnswers:
    """Truth and answers of photographs for one question with two classes."""

    question: str
    """Name of the output, or of the label where an output has several."""
    labels: tuple[str, str]
    """The other class, and the one whose probability is answered (the positive one)."""
    positive: NDArray[np.bool_]
    """[N], the truth."""
    probability: Values
    """float64 [N], of the positive class, 0 to 1."""
    said: NDArray[np.bool_]
    """[N], the decision at the card's operating point, as the runtime gave it."""
    threshold: float
    """The operating point."""
    clusters: NDArray[np.int64]
    """int64 [N], the patient of each photograph, 0 to K - 1."""


@dataclass(frozen=True)
class CalibrationBin:
    """Photographs whose probability lies between `low` and `high`."""

    low: float
    high: float
    mean_probability: float
    observed: Rate
    """How many of them are positive."""


@dataclass(frozen=True)
class TwoClassFigures:
    """What was measured of one question with two classes."""

    question: str
    labels: tuple[str, str]
    threshold: float
    photographs: int
    patients: int
    prevalence: Rate
    """Positive ones by the truth."""
    accuracy: Rate
    sensitivity: Rate
    specificity: Rate
    positive_predictive: Rate
    """Truly positive among those called positive: at this prevalence only."""
    negative_predictive: Rate
    auc: Estimate
    tied: float
    """Share of the pairs of a positive and a negative photograph with the same probability; they count half in the area."""
    brier: Estimate
    """Mean squared difference of probability and truth (Brier, 1950)."""
    calibration_error: float
    """Expected calibration error: mean distance of observed rate and mean probability over `BINS` bins, weighted by photographs
    (Naeini et al., AAAI 2015)."""
    calibration: tuple[CalibrationBin, ...]
    roc: tuple[tuple[float, float], ...]
    """Points of the curve: false positive rate and sensitivity."""

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; the curves are left to the plots."""
        rates = ("prevalence", "accuracy", "sensitivity", "specificity", "positive_predictive", "negative_predictive")
        return {
            "question": self.question,
            "labels": list(self.labels),
            "threshold": self.threshold,
            "photographs": self.photographs,
            "patients": self.patients,
            **{name: getattr(self, name).to_dict() for name in rates},
            "auc": self.auc.to_dict(),
            "tied_pairs": self.tied,
            "brier": self.brier.to_dict(),
            "calibration_error": self.calibration_error,
        }


def two_class_figures(answers: TwoClassAnswers, resamples: int = RESAMPLES) -> TwoClassFigures:
    """Measure one question with two classes.

    Args:
        answers: at least one photograph.
        resamples: of the bootstraps.
    """
    truth, said, clusters = answers.positive, answers.said, answers.clusters
    everyone = np.ones(len(truth), np.bool_)
    squared = (answers.probability - truth) ** 2
    curve = calibration_curve(answers.probability, truth)
    off = sum(part.observed.of * abs(part.observed.value - part.mean_probability) for part in curve)
    return TwoClassFigures(
        question=answers.question,
        labels=answers.labels,
        threshold=answers.threshold,
        photographs=len(truth),
        patients=int(clusters.max()) + 1,
        prevalence=rate(truth, everyone, clusters),
        accuracy=rate(said == truth, everyone, clusters),
        sensitivity=rate(said, truth, clusters),
        specificity=rate(~said, ~truth, clusters),
        positive_predictive=rate(truth, said, clusters),
        negative_predictive=rate(~truth, ~said, clusters),
        auc=auc_estimate(answers.probability, truth, clusters),
        tied=_tied_share(answers.probability, truth),
        brier=estimates(ratio, np.stack([squared, everyone.astype(np.float64)], axis=1), clusters, resamples)[0],
        calibration_error=off / len(truth),
        calibration=curve,
        roc=roc_points(answers.probability, truth),
    )


def calibration_curve(probability: Values, positive: NDArray[np.bool_]) -> tuple[CalibrationBin, ...]:
    """Observed rate against mean probability in `BINS` equally wide bins; empty ones are left out.

    Args:
        probability: float64 [N], 0 to 1.
        positive: bool [N].
    """
    places = np.searchsorted(np.linspace(0, 1, BINS + 1)[1:-1], probability)
    found = []
    for place in range(BINS):
        inside = places == place
        if inside.any():
            observed = Rate(int(positive[inside].sum()), int(inside.sum()))
            found.append(CalibrationBin(place / BINS, (place + 1) / BINS, float(probability[inside].mean()), observed))
    return tuple(found)


def roc_points(probability: Values, positive: NDArray[np.bool_]) -> tuple[tuple[float, float], ...]:
    """False positive rate and sensitivity at each threshold, from (0, 0) to (1, 1); empty where a class is missing.

    Args:
        probability: float64 [N].
        positive: bool [N].
    """
    if positive.all() or not positive.any():
        return ()
    alarms, hits, _ = require_proof("sklearn.metrics").roc_curve(positive, probability)
    return tuple(zip(alarms.tolist(), hits.tolist(), strict=True))


def _tied_share(probability: Values, positive: NDArray[np.bool_]) -> float:
    ups, downs = int(positive.sum()), int((~positive).sum())
    if not ups or not downs:
        return math.nan
    _, places = np.unique(probability, return_inverse=True)
    places = np.asarray(places).reshape(-1)
    here = np.bincount(places[positive], minlength=places.max() + 1)
    there = np.bincount(places[~positive], minlength=places.max() + 1)
    return float(here @ there / (ups * downs))
