"""Two ways to answer the same photographs: is one better, and how surely?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fundus_rt.benchmarks.evaluation.classes import cohen_kappa, confusion
from fundus_rt.benchmarks.evaluation.delong import auc_covariance
from fundus_rt.benchmarks.evaluation.estimates import RESAMPLES, Statistic, Values, bootstrap, ratio
from fundus_rt.benchmarks.extras import require_proof
from fundus_rt.models.card import OutputSpec

METRICS = {
    "regression": "mean absolute error",
    "binary": "area under the ROC curve",
    "multiclass": "quadratic kappa",
    "multilabel": "mean area under the ROC curves",
}
LEVEL = 0.05
"""Adjusted probability below which a difference is called one."""
FEWEST = 20
"""Patients, of classes those of the rarer side, below which no preprocessing is called better: with 3 positive of 200 patients
DeLong's test calls one of nine equal candidates better three times as often as it should, with 20 no longer."""


@dataclass(frozen=True)
class Comparison:
    """One candidate against another on the same photographs."""

    candidate: str
    against: str
    metric: float
    """Of the candidate."""
    gain: float
    """How much better than the other: of an error less, of an area or kappa more."""
    low: float
    """95 % interval of the gain, for this comparison alone."""
    high: float
    probability: float
    """Two-sided, that no difference would look like this one, for this comparison alone."""
    adjusted: float = math.nan
    """Corrected for the number of comparisons (Holm, 1979)."""
    only_this_right: int = 0
    """Photographs that the candidate decides rightly and the other wrongly; for a regression, that it is nearer to the truth."""
    only_other_right: int = 0
    mcnemar: float = 1.0
    """Exact probability of those two counts where none decides better (McNemar, 1947)."""

    @property
    def is_better(self) -> bool:
        """Surely better, with the correction."""
        return self.adjusted < LEVEL and self.gain > 0

    @property
    def is_worse(self) -> bool:
        """Surely worse, with the correction."""
        return self.adjusted < LEVEL and self.gain < 0

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)


def metric_of(values: Values, truth: Values, output: OutputSpec) -> float:
    """The metric of `METRICS` for an output, whichever way is better.

    Args:
        values: float64 [N, C], see `fundus_rt.benchmarks.evaluation.answers.QuestionAnswers`.
        truth: float64 [N, T].
        output: of the card.
    """
    clusters = np.arange(len(truth))
    return _metric_and_difference(values, values, truth, output, clusters, 0)[0]


def compared(
    names: tuple[str, str],
    values: tuple[Values, Values],
    decided: tuple[NDArray[np.int64], NDArray[np.int64]],
    truth: Values,
    output: OutputSpec,
    clusters: NDArray[np.int64],
    resamples: int = RESAMPLES,
) -> Comparison:
    """Hold one way to answer against another.

    An area under the curve is compared with DeLong's paired test, everything else with a paired bootstrap by patient.

    Args:
        names: of the candidate and of what it is held against.
        values: of both, float64 [N, C].
        decided: of both, int64 [N], the decided label.
        truth: float64 [N, T].
        output: of the card.
        clusters: int64 [N], patients from 0 without gaps.
        resamples: of the bootstrap.
    """
    metric, gain, low, high, probability = _metric_and_difference(*values, truth, output, clusters, resamples)
    right = [_is_right(numbers, said, truth, output) for numbers, said in zip(values, decided, strict=True)]
    if output.task == "regression":
        errors = [np.abs(numbers[:, 0] - truth[:, 0]) for numbers in values]
        right = [errors[0] < errors[1], errors[1] < errors[0]]
    mine, other = int((right[0] & ~right[1]).sum()), int((right[1] & ~right[0]).sum())
    exact = float(require_proof("scipy.stats").binomtest(mine, mine + other).pvalue) if mine + other else 1.0
    return Comparison(*names, metric, gain, low, high, probability, math.nan, mine, other, exact)


def holm(probabilities: Sequence[float], comparisons: int | None = None) -> list[float]:
    """Probabilities corrected for their number (Holm, Scandinavian Journal of Statistics 6, 1979, 65-70).

    Args:
        probabilities: of each comparison alone.
        comparisons: how many were made in all, where that is more.
    """
    count = max(comparisons or 0, len(probabilities))
    order = np.argsort(probabilities)
    adjusted = [0.0] * len(probabilities)
    reached = 0.0
    for rank, place in enumerate(order):
        reached = max(reached, min(1.0, (count - rank) * probabilities[place]))
        adjusted[place] = reached
    return adjusted


def _is_right(values: Values, decided: NDArray[np.int64], truth: Values, output: OutputSpec) -> NDArray[np.bool_]:
    if output.task == "multilabel":
        threshold = 0.5 if output.threshold is None else output.threshold
        return np.asarray(((values >= threshold) == (truth == 1)).all(axis=1))
    return np.asarray(decided == truth[:, 0])


def _metric_and_difference(
    mine: Values, other: Values, truth: Values, output: OutputSpec, clusters: NDArray[np.int64], resamples: int
) -> tuple[float, float, float, float, float]:
    """Metric of `mine`, its gain over `other`, the interval of that, and the probability."""
    if output.task in ("binary", "multilabel"):
        return _area_difference(mine, other, truth, output, clusters)
    statistic: Statistic
    if output.task == "regression":
        errors = np.abs(mine[:, 0] - truth[:, 0]), np.abs(other[:, 0] - truth[:, 0])
        columns, statistic = np.stack([errors[1] - errors[0], np.ones(len(truth))], axis=1), ratio
        metric = float(errors[0].mean())
    else:
        count, codes = len(output.labels), truth[:, 0].astype(np.int64)
        said = mine.argmax(axis=1), other.argmax(axis=1)
        columns = np.concatenate([np.eye(count * count)[codes * count + one] for one in said], axis=1)
        statistic = partial(_kappa_gain, count)
        metric = float(cohen_kappa(confusion(codes, said[0], count), quadratic=True))
    gain = float(statistic(columns.sum(axis=0))[0])
    if not resamples or np.array_equal(mine, other):
        return metric, gain, gain, gain, 1.0
    drawn = statistic(bootstrap(columns, clusters, resamples))[:, 0]
    drawn = drawn[np.isfinite(drawn)]
    if not len(drawn):
        return metric, gain, math.nan, math.nan, 1.0
    tail = min(int((drawn <= 0).sum()), int((drawn >= 0).sum()))
    low, high = np.percentile(drawn, [2.5, 97.5])
    return metric, gain, float(low), float(high), min(1.0, 2 * (tail + 1) / (len(drawn) + 1))


def _kappa_gain(count: int, cells: Values) -> Values:
    """Quadratic kappa of the first half of the counts less that of the second, [..., 2 * count * count] to [..., 1]."""
    tables = cells.reshape(*cells.shape[:-1], 2, count, count)
    kappas = cohen_kappa(tables, quadratic=True)
    return np.asarray(kappas[..., :1] - kappas[..., 1:])


def _area_difference(
    mine: Values, other: Values, truth: Values, output: OutputSpec, clusters: NDArray[np.int64]
) -> tuple[float, float, float, float, float]:
    """By DeLong's covariance; of several labels the mean area, whose parts are bounded by their largest deviation together."""
    columns = [1] if output.task == "binary" else list(range(len(output.labels)))
    gains, deviations, metrics = [], [], []
    for place, column in enumerate(columns):
        positive = truth[:, place] == 1
        if positive.all() or not positive.any():
            continue
        areas, covariance = auc_covariance(np.stack([mine[:, column], other[:, column]]), positive, clusters)
        variance = covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1]
        metrics.append(float(areas[0]))
        gains.append(float(areas[0] - areas[1]))
        deviations.append(math.sqrt(max(float(variance), 0.0)))
    if not metrics:
        return math.nan, math.nan, math.nan, math.nan, 1.0
    gain, deviation = float(np.mean(gains)), float(np.mean(deviations))
    if not math.isfinite(deviation) or deviation == 0:
        return float(np.mean(metrics)), gain, math.nan, math.nan, 1.0
    normal: Any = require_proof("scipy.stats").norm
    half = float(normal.ppf(0.975)) * deviation
    return float(np.mean(metrics)), gain, gain - half, gain + half, float(2 * normal.sf(abs(gain) / deviation))
