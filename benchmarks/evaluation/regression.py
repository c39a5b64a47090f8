"""How near a regressed quantity (an age) comes to the truth."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fundus_rt.benchmarks.evaluation.estimates import RESAMPLES, Estimate, Values, estimates

_NAMES = ("mae", "bias", "spread", "lower_limit", "upper_limit", "correlation", "slope", "rmse")


@dataclass(frozen=True)
class RegressionFigures:
    """Errors are answer minus truth, in the output's unit."""

    photographs: int
    patients: int
    mae: Estimate
    """Mean absolute error."""
    bias: Estimate
    """Mean error: above 0 the model says too much."""
    spread: Estimate
    """Standard deviation of the errors."""
    lower_limit: Estimate
    """Lower 95 % limit of agreement: bias - 1.96 standard deviations (Bland and Altman, Lancet 1986)."""
    upper_limit: Estimate
    correlation: Estimate
    """Pearson's, between answer and truth."""
    slope: Estimate
    """Change of the error per unit of the truth; below 0 the old are said too young and the young too old."""
    rmse: Estimate
    """Root of the mean squared error."""
    largest: float
    """Largest absolute error."""

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        named = {name: getattr(self, name).to_dict() for name in _NAMES}
        return {"photographs": self.photographs, "patients": self.patients, **named, "largest": self.largest}


def regression_figures(
    truth: Values, answer: Values, clusters: NDArray[np.int64], resamples: int = RESAMPLES
) -> RegressionFigures:
    """Errors of a regression with their intervals, resampled by patient.

    Args:
        truth: float64 [N], in the output's unit; at least one photograph.
        answer: float64 [N].
        clusters: int64 [N], the patient of each photograph, 0 to K - 1.
        resamples: of the bootstrap.
    """
    error = answer - truth
    # moments around the means, so that nothing is lost to rounding
    true_away, said_away = truth - truth.mean(), answer - answer.mean()
    parts = (np.ones(len(truth)), np.abs(error), error, error**2, true_away, said_away)
    products = (true_away**2, said_away**2, true_away * said_away, true_away * error)
    found = estimates(_statistics, np.stack([*parts, *products], axis=1), clusters, resamples)
    named = dict(zip(_NAMES, found, strict=True))
    return RegressionFigures(
        photographs=len(truth), patients=int(clusters.max()) + 1, largest=float(np.abs(error).max()), **named
    )


def _statistics(sums: Values) -> Values:
    """In the order of `_NAMES`, from the sums of `regression_figures`, [..., 10] to [..., 8]."""
    total, absolute, error, squared, true, said, true_2, said_2, true_said, true_error = np.moveaxis(sums, -1, 0)
    bias = error / total
    spread = np.sqrt(np.maximum(squared - total * bias**2, 0.0) / (total - 1))
    of_truth = true_2 - true**2 / total
    of_answer = said_2 - said**2 / total
    correlation = (true_said - true * said / total) / np.sqrt(of_truth * of_answer)
    slope = (true_error - true * error / total) / of_truth
    limits = bias - 1.96 * spread, bias + 1.96 * spread
    return np.stack([absolute / total, bias, spread, *limits, correlation, slope, np.sqrt(squared / total)], axis=-1)
