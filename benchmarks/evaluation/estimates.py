"""A measured number with its interval, and how the interval was made."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fundus_rt.runtime.exact_bounds import clopper_pearson

Values = NDArray[np.float64]
Statistic = Callable[[Values], Values]
"""From sums over photographs, float64 [..., M], to statistics, float64 [..., S]; nan where one is not defined."""

RESAMPLES = 2000
SEED = 20260101
"""Of every resampling, so that the same photographs give the same interval."""
FEWEST_CLUSTERS = 10
"""Patients below which no interval is resampled: percentiles of a bootstrap are far too narrow then."""
UNDEFINED = 0.05
"""Share of resamples in which a statistic may be undefined (a class is missing) before it gets no interval."""


@dataclass(frozen=True)
class Estimate:
    """A number and its 95 % interval; `low` and `high` are None where the photographs are too few for one."""

    value: float
    low: float | None = None
    high: float | None = None
    method: str = ""
    """How the interval was made: ``exact``, ``DeLong``, ``bootstrap``."""

    def __str__(self) -> str:
        return interval_text(self.value, self.low, self.high)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)


@dataclass(frozen=True)
class Rate:
    """A count of photographs as a rate with its exact interval (Clopper and Pearson, 1934).

    The exact interval takes photographs as independent. Where patients have several, `by_patient` is resampled by patient.
    """

    count: int
    of: int
    by_patient: Estimate | None = None

    @property
    def value(self) -> float:
        """The rate, 0 to 1; nan where there was nothing to count."""
        return self.count / self.of if self.of else math.nan

    @property
    def low(self) -> float:
        """Lower end of the exact interval."""
        return clopper_pearson(self.count, self.of)[0]

    @property
    def high(self) -> float:
        """Upper end of the exact interval."""
        return clopper_pearson(self.count, self.of)[1]

    def __str__(self) -> str:
        if not self.of:
            return "none to count"
        said = f"{interval_text(self.value, self.low, self.high)}, {self.count} of {self.of}"
        has_other = self.by_patient is not None and self.by_patient.low is not None
        return f"{said}; by patient {self.by_patient.low:.3f} to {self.by_patient.high:.3f}" if has_other else said  # type: ignore[union-attr]

    def estimate(self) -> Estimate:
        """As an `Estimate`: by patient where patients have several photographs, else exact."""
        if self.by_patient is not None and self.by_patient.low is not None:
            return self.by_patient
        return Estimate(self.value, self.low, self.high, "exact") if self.of else Estimate(math.nan)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        by_patient = self.by_patient.to_dict() if self.by_patient else None
        low, high = (self.low, self.high) if self.of else (None, None)
        value = self.value if self.of else None
        return {"count": self.count, "of": self.of, "value": value, "low": low, "high": high, "by_patient": by_patient}


def interval_text(value: float, low: float | None, high: float | None) -> str:
    """``0.912 (0.871 to 0.943)``: three decimals below 10, else two."""
    if math.isnan(value):
        return "not defined"
    digits = 3 if abs(value) < 10 else 2
    if low is None or high is None:
        return f"{value:.{digits}f} (too few for an interval)"
    return f"{value:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def bootstrap(columns: Values, clusters: NDArray[np.int64], resamples: int = RESAMPLES, seed: int = SEED) -> Values:
    """Sums over samples that are drawn with replacement from the patients, all photographs of a patient together.

    The cluster bootstrap (Davison and Hinkley, Bootstrap Methods and their Application, 1997, section 3.8): photographs of one
    person are alike, and drawing them one by one would make every interval too narrow. Every figure here is made of sums, so
    that is all that has to be drawn, and 100,000 photographs take seconds.

    Args:
        columns: float64 [N, M], what is summed.
        clusters: int64 [N], the patient of each photograph, 0 to K - 1, each at least once.
        resamples: how many samples are drawn.
        seed: of the drawing.

    Returns:
        float64 [resamples, M].
    """
    count = int(clusters.max()) + 1
    of_patient = np.stack([np.bincount(clusters, column, count) for column in columns.T], axis=1)
    rng = np.random.default_rng(seed)
    sums = np.empty((resamples, columns.shape[1]))
    for number in range(resamples):
        times = np.bincount(rng.integers(0, count, count), minlength=count).astype(np.float64)
        sums[number] = times @ of_patient
    return sums


def estimates(statistic: Statistic, columns: Values, clusters: NDArray[np.int64], resamples: int = RESAMPLES) -> list[Estimate]:
    """Statistics of the photographs, each with its percentile interval by `bootstrap`.

    Args:
        statistic: from sums of the columns.
        columns, clusters, resamples: as `bootstrap`.

    Returns:
        One `Estimate` per statistic; without an interval where there are fewer than `FEWEST_CLUSTERS` patients.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        values = statistic(columns.sum(axis=0))
        if int(clusters.max()) + 1 < FEWEST_CLUSTERS:
            return [Estimate(float(value)) for value in values]
        drawn = statistic(bootstrap(columns, clusters, resamples))
    return [percentile_estimate(float(value), column) for value, column in zip(values, drawn.T, strict=True)]


def ratio(sums: Values) -> Values:
    """The first of two sums divided by the second: a mean, or a rate; [..., 2] to [..., 1]."""
    return np.asarray(sums[..., :1] / sums[..., 1:])


def percentile_estimate(value: float, drawn: Values) -> Estimate:
    """A number with the middle 95 % of its resampled values; nan among those are left out, when they are few."""
    defined = drawn[np.isfinite(drawn)]
    if not math.isfinite(value) or len(defined) < (1 - UNDEFINED) * len(drawn):
        return Estimate(value)
    low, high = np.percentile(defined, [2.5, 97.5])
    return Estimate(value, float(low), float(high), "bootstrap")


def have_several(clusters: NDArray[np.int64]) -> bool:
    """Whether a patient has more than one photograph."""
    return len(clusters) > int(clusters.max(initial=-1)) + 1


def renumbered(clusters: NDArray[np.int64]) -> NDArray[np.int64]:
    """The patients of a part of the photographs, numbered from 0 without gaps, as `bootstrap` takes them."""
    return np.asarray(np.unique(clusters, return_inverse=True)[1], np.int64).reshape(-1)


def one_of_each(clusters: NDArray[np.int64]) -> NDArray[np.int64]:
    """Places [K] of one photograph of each patient, drawn with `SEED`: photographs that are independent of each other."""
    order = np.random.default_rng(SEED).permutation(len(clusters))
    return np.asarray(order[np.unique(clusters[order], return_index=True)[1]], np.int64)


def rate(happened: NDArray[np.bool_], among: NDArray[np.bool_], clusters: NDArray[np.int64]) -> Rate:
    """How often something happened among some of the photographs.

    Args:
        happened: [N].
        among: [N], the photographs that are counted.
        clusters: int64 [N], the patient of each.
    """
    count, of = int((happened & among).sum()), int(among.sum())
    if not of or not have_several(clusters):
        return Rate(count, of)
    columns = np.stack([happened & among, among], axis=1).astype(np.float64)
    found = estimates(ratio, columns, clusters)[0]
    if found.low is None or found.high is None or math.isclose(found.low, found.high, rel_tol=1e-9):
        found = _exact_by_patient(found.value, len(np.unique(clusters[among])))
    return Rate(count, of, found)


def _exact_by_patient(value: float, patients: int) -> Estimate:
    """The exact interval of as many independent photographs as there are patients, for a rate that resampling cannot bound.

    Where all photographs of all patients are alike, every resample is the same and its interval has no width, which no finite
    number of patients supports. Parts of a patient are rounded outwards.
    """
    low = clopper_pearson(math.floor(value * patients + 1e-9), patients)[0]
    high = clopper_pearson(math.ceil(value * patients - 1e-9), patients)[1]
    return Estimate(value, low, high, "exact, by patient")


def counted(photographs: int, patients: int) -> str:
    """How many photographs of how many patients, in words; where no two are known to be of one patient, that is said."""
    whose = f" of {patients} patients" if patients < photographs else ", no two known to be of one patient"
    return f"{photographs} photographs{whose}"
