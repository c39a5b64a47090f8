"""Area under the ROC curve with the variance of DeLong et al., which no library of this package's kind offers.

Sources: DeLong, DeLong and Clarke-Pearson, Biometrics 44 (1988), 837-845, for variance and covariance; Sun and Xu, IEEE Signal
Processing Letters 21 (2014), 1389-1393, for its computation by ranks in O(N log N); Obuchowski, Biometrics 53 (1997), 567-578,
for several photographs of one patient, which becomes DeLong's where each patient has one.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fundus_rt.benchmarks.evaluation.estimates import Estimate, Values, renumbered
from fundus_rt.benchmarks.extras import require_proof

_NORMAL_975 = 1.959963984540054
"""Of the standard normal distribution: 97.5 % lie below."""


def auc_covariance(scores: Values, positive: NDArray[np.bool_], clusters: NDArray[np.int64]) -> tuple[Values, Values]:
    """Areas under the ROC curves of several scores of the same photographs, and their covariance.

    Args:
        scores: float64 [R, N], larger where a photograph looks more positive.
        positive: bool [N], the truth; at least one of each kind.
        clusters: int64 [N], the patient of each photograph.

    Returns:
        Areas float64 [R] and covariance float64 [R, R]; nan where a kind has photographs of one patient alone.
    """
    found = [_components(row, positive) for row in np.atleast_2d(np.asarray(scores, np.float64))]
    areas = np.array([area for area, _ in found])
    parts = np.stack([part for _, part in found])
    patients = renumbered(clusters)
    count = int(patients.max()) + 1
    totals = []
    with np.errstate(divide="ignore", invalid="ignore"):
        for kind in (positive, ~positive):
            those = patients[kind]
            away = np.stack([np.bincount(those, (part - area)[kind], count) for area, part in zip(areas, parts, strict=True)])
            totals.append((away / kind.sum(), len(np.unique(those))))
        (of_positive, few), (of_negative, many) = totals
        between = of_positive @ of_negative.T * (count / (count - 1.0) if count > 1 else math.nan)
        covariance = of_positive @ of_positive.T * np.float64(few) / np.float64(few - 1)
        covariance = covariance + of_negative @ of_negative.T * np.float64(many) / np.float64(many - 1)
    return areas, covariance + between + between.T


def auc_estimate(scores: Values, positive: NDArray[np.bool_], clusters: NDArray[np.int64]) -> Estimate:
    """The area under a ROC curve with its 95 % interval.

    The interval is symmetric on the logit of the area, so it stays inside of 0 to 1 and keeps its coverage for good models
    (Pepe, The Statistical Evaluation of Medical Tests, 2003, section 5.2.4). Where the classes are separated completely the
    variance is 0 and says nothing: then as many pairs as there are patients of the rarer kind are independent and all right, and
    the exact bound of that count is the lower end.

    Args:
        scores: float64 [N].
        positive, clusters: as `auc_covariance`.

    Returns:
        Without a value where a kind is missing.
    """
    if positive.all() or not positive.any():
        return Estimate(math.nan)
    areas, covariance = auc_covariance(scores[None], positive, clusters)
    area, variance = float(areas[0]), float(covariance[0, 0])
    if area in (0.0, 1.0):
        kinds = [len(np.unique(clusters[kind])) for kind in (positive, ~positive)]
        pairs = min(*kinds, len(np.unique(clusters)) // 2)
        if not pairs:
            return Estimate(area)
        reach = 1.0 - 0.025 ** (1.0 / pairs)
        return Estimate(area, max(0.0, area - reach), min(1.0, area + reach), "exact for independent pairs")
    if not math.isfinite(variance) or variance <= 0:
        return Estimate(area)
    middle = math.log(area / (1 - area))
    half = _NORMAL_975 * math.sqrt(variance) / (area * (1 - area))
    low, high = (1 / (1 + math.exp(-(middle + sign * half))) for sign in (-1, 1))
    return Estimate(area, low, high, "DeLong")


def _components(scores: Values, positive: NDArray[np.bool_]) -> tuple[float, Values]:
    """The area, and for each photograph the share of the other kind that it is ranked rightly against (ties count half)."""
    stats: Any = require_proof("scipy.stats")
    ups, downs = int(positive.sum()), int((~positive).sum())
    together = stats.rankdata(scores)
    shares = np.empty(len(scores))
    shares[positive] = (together[positive] - stats.rankdata(scores[positive])) / downs
    shares[~positive] = 1.0 - (together[~positive] - stats.rankdata(scores[~positive])) / ups
    return float(shares[positive].mean()), shares
