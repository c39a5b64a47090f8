"""The area under the ROC curve: value, variance, interval, against scikit-learn, the closed form and simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from fundus_rt.benchmarks.evaluation.delong import auc_covariance, auc_estimate

metrics = pytest.importorskip("sklearn.metrics")
stats = pytest.importorskip("scipy.stats")


def drawn(seed: int, ups: int = 40, downs: int = 60, apart: float = 1.0, digits: int = 1) -> tuple[NDArray, NDArray]:
    """Scores [2, N] of two tests with ties, and the truth [N]."""
    rng = np.random.default_rng(seed)
    positive = np.zeros(ups + downs, np.bool_)
    positive[rng.permutation(ups + downs)[:ups]] = True
    common = rng.normal(size=ups + downs) + apart * positive
    return np.round(np.stack([common + rng.normal(size=ups + downs), common]), digits), positive


def quadratic_covariance(scores: NDArray, positive: NDArray) -> NDArray:
    """DeLong, DeLong and Clarke-Pearson (1988), equations 5 to 8, pair by pair."""
    ups, downs = scores[:, positive], scores[:, ~positive]
    m, n = ups.shape[1], downs.shape[1]
    psi = (ups[:, :, None] > downs[:, None, :]) + 0.5 * (ups[:, :, None] == downs[:, None, :])
    v10, v01 = psi.mean(axis=2), psi.mean(axis=1)
    area = psi.mean(axis=(1, 2))[:, None]
    s10 = (v10 - area) @ (v10 - area).T / (m - 1)
    s01 = (v01 - area) @ (v01 - area).T / (n - 1)
    return s10 / m + s01 / n


@pytest.mark.parametrize("seed", range(5))
def test_area_and_covariance_are_the_closed_form(seed: int) -> None:
    scores, positive = drawn(seed)
    areas, covariance = auc_covariance(scores, positive, np.arange(len(positive)))
    for score, area in zip(scores, areas, strict=True):
        assert area == pytest.approx(metrics.roc_auc_score(positive, score), abs=1e-12)
    np.testing.assert_allclose(covariance, quadratic_covariance(scores, positive), atol=1e-14)


def test_a_photograph_taken_twice_makes_nothing_surer() -> None:
    scores, positive = drawn(7)
    patients = np.arange(len(positive))
    once = auc_covariance(scores, positive, patients)
    twice = auc_covariance(np.tile(scores, 2), np.tile(positive, 2), np.tile(patients, 2))
    np.testing.assert_allclose(twice[0], once[0], atol=1e-12)
    np.testing.assert_allclose(twice[1], once[1], atol=1e-14)
    as_if_independent = auc_covariance(np.tile(scores, 2), np.tile(positive, 2), np.arange(2 * len(positive)))
    assert as_if_independent[1][0, 0] < 0.6 * once[1][0, 0]


@pytest.mark.parametrize("apart", [0.8, 2.5])
def test_the_interval_covers_the_true_area(apart: float) -> None:
    """95 % of 1,000 samples; by the binomial distribution fewer than 93 % or more than 97 % come up in one of 200 tests."""
    true = stats.norm.cdf(apart / math.sqrt(2))
    rng = np.random.default_rng(11)
    positive = np.arange(120) < 50
    inside = 0
    for _ in range(1000):
        found = auc_estimate(rng.normal(size=120) + apart * positive, positive, np.arange(120))
        assert found.low is not None and found.high is not None
        inside += found.low <= true <= found.high
    assert 930 <= inside <= 970


def test_the_interval_covers_for_two_photographs_of_each_patient() -> None:
    true = stats.norm.cdf(1.2 / math.sqrt(2 * 1.5))
    rng = np.random.default_rng(12)
    ill = np.repeat(np.arange(80) < 35, 2)
    patients = np.repeat(np.arange(80), 2)
    inside, too_sure = 0, 0
    for _ in range(600):
        scores = 1.2 * ill + np.repeat(rng.normal(size=80), 2) + math.sqrt(0.5) * rng.normal(size=160)
        found = auc_estimate(scores, ill, patients)
        naive = auc_estimate(scores, ill, np.arange(160))
        assert found.low is not None and found.high is not None and naive.low is not None and naive.high is not None
        inside += found.low <= true <= found.high
        too_sure += not naive.low <= true <= naive.high
    assert inside >= 0.925 * 600
    assert too_sure > 0.075 * 600  # taking the two as independent is wrong, and the test can see it


def test_one_ill_and_one_healthy_eye_of_each_patient() -> None:
    """What both eyes share cancels out between them: the variance is that of many samples, and smaller than of strangers."""
    rng = np.random.default_rng(13)
    ill = np.tile([True, False], 60)
    patients = np.repeat(np.arange(60), 2)
    areas, variances, of_strangers = [], [], []
    for _ in range(600):
        scores = 1.0 * ill + np.repeat(rng.normal(size=60), 2) + 0.7 * rng.normal(size=120)
        area, covariance = auc_covariance(scores[None], ill, patients)
        areas.append(area[0])
        variances.append(covariance[0, 0])
        of_strangers.append(auc_covariance(scores[None], ill, np.arange(120))[1][0, 0])
    assert np.mean(variances) == pytest.approx(np.var(areas), rel=0.2)
    assert np.mean(of_strangers) > 1.5 * np.var(areas)


def test_complete_separation_still_has_an_interval() -> None:
    positive = np.arange(30) < 12
    found = auc_estimate(positive.astype(float), positive, np.arange(30))
    assert found.value == 1.0 and found.high == 1.0
    assert found.low == pytest.approx(stats.binomtest(12, 12).proportion_ci(0.95, "exact").low, abs=1e-9)


def test_one_class_alone_has_no_area() -> None:
    assert math.isnan(auc_estimate(np.arange(5.0), np.ones(5, np.bool_), np.arange(5)).value)
    one = auc_estimate(np.array([0.4, 0.3, 0.5]), np.array([True, False, False]), np.arange(3))
    assert one.value == 0.5 and one.low is None
