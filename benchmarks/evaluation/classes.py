"""How well several classes or grades are told apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fundus_rt.benchmarks.evaluation.estimates import RESAMPLES, Estimate, Rate, Values, estimates, rate
from fundus_rt.runtime.interpret import UNKNOWN

Codes = NDArray[np.int64]


@dataclass(frozen=True)
class ClassFigures:
    """What was measured of an output with several classes."""

    labels: tuple[str, ...]
    photographs: int
    patients: int
    accuracy: Rate
    """Said rightly; ``unknown`` for a photograph of a known class counts as not right."""
    decided: Rate
    """Decided at all, which a card's threshold may withhold."""
    accuracy_when_decided: Rate
    within_one: Rate
    """The most probable class is the true one or its neighbour in the card's order."""
    kappa: Estimate
    """Cohen's kappa of the most probable class (Cohen, 1960): no order of the classes."""
    quadratic_kappa: Estimate
    """Weighted by the squared distance in the card's order (Cohen, 1968): for grades."""
    sensitivities: tuple[Rate, ...]
    """By label: said among those that are it."""
    specificities: tuple[Rate, ...]
    confusion: tuple[tuple[int, ...], ...]
    """Counts, rows by truth and columns by decision, in the order of the labels; photographs without a decision are left out."""

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        rates = ("accuracy", "decided", "accuracy_when_decided", "within_one")
        by_label = {
            label: {"sensitivity": hit.to_dict(), "specificity": spared.to_dict()}
            for label, hit, spared in zip(self.labels, self.sensitivities, self.specificities, strict=True)
        }
        return {
            "photographs": self.photographs,
            "patients": self.patients,
            **{name: getattr(self, name).to_dict() for name in rates},
            "kappa": self.kappa.to_dict(),
            "quadratic_kappa": self.quadratic_kappa.to_dict(),
            "by_label": by_label,
            "confusion": [list(row) for row in self.confusion],
        }


def class_figures(
    labels: Sequence[str], truth: Codes, likeliest: Codes, decided: Codes, clusters: Codes, resamples: int = RESAMPLES
) -> ClassFigures:
    """Measure an output with several classes.

    Args:
        labels: in the card's order.
        truth: int64 [N], places in `labels`; at least one photograph.
        likeliest: int64 [N], the most probable class.
        decided: int64 [N], the class that was said, -1 for none. A class called ``unknown`` is said as one, but not decided.
        clusters: int64 [N], the patient of each photograph, 0 to K - 1.
        resamples: of the bootstraps.
    """
    count = len(labels)
    everyone = np.ones(len(truth), np.bool_)
    withheld = labels.index(UNKNOWN) if UNKNOWN in labels else -1
    was_decided = (decided >= 0) & (decided != withheld)
    cells = np.eye(count * count)[truth * count + likeliest]
    kappas = estimates(partial(_kappas, count), cells, clusters, resamples)
    table = confusion(truth[decided >= 0], decided[decided >= 0], count)
    return ClassFigures(
        labels=tuple(labels),
        photographs=len(truth),
        patients=int(clusters.max()) + 1,
        accuracy=rate(decided == truth, everyone, clusters),
        decided=rate(was_decided, everyone, clusters),
        accuracy_when_decided=rate(decided == truth, was_decided, clusters),
        within_one=rate(np.abs(likeliest - truth) <= 1, everyone, clusters),
        kappa=kappas[0],
        quadratic_kappa=kappas[1],
        sensitivities=tuple(rate(decided == label, truth == label, clusters) for label in range(count)),
        specificities=tuple(rate(decided != label, truth != label, clusters) for label in range(count)),
        confusion=tuple(tuple(int(cell) for cell in row) for row in table),
    )


def confusion(truth: Codes, said: Codes, count: int) -> Values:
    """Counts, [count, count]: rows by truth, columns by what was said."""
    return np.bincount(truth * count + said, minlength=count * count).reshape(count, count).astype(np.float64)


def cohen_kappa(table: Values, quadratic: bool) -> Values:
    """Agreement beyond chance of confusion tables [..., K, K], with or without quadratic weights; nan where chance explains all.

    ``1 - sum(w * observed) / sum(w * expected)`` with w = 0 on the diagonal and elsewhere 1, or the squared distance.
    """
    place = np.arange(table.shape[-1])
    apart = (place[:, None] - place) ** 2.0 if quadratic else 1.0 - np.eye(len(place))
    rows, columns = table.sum(axis=-1), table.sum(axis=-2)
    expected = rows[..., :, None] * columns[..., None, :] / table.sum(axis=(-2, -1))[..., None, None]
    by_chance = (apart * expected).sum(axis=(-2, -1))
    observed = (apart * table).sum(axis=(-2, -1))
    return np.where(by_chance > 0, 1.0 - observed / np.where(by_chance > 0, by_chance, 1.0), np.nan)


def _kappas(count: int, cells: Values) -> Values:
    """Both kappas from counts of truth and answer, [..., count * count] to [..., 2]."""
    tables = cells.reshape(*cells.shape[:-1], count, count)
    return np.stack([cohen_kappa(tables, quadratic=False), cohen_kappa(tables, quadratic=True)], axis=-1)
