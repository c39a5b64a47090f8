"""Exact bounds of a rate, against SciPy's beta distribution and its own exact test."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fundus_rt.runtime.exact_bounds import clopper_pearson, rate_in_words, upper_bound

stats = pytest.importorskip("scipy.stats")


@settings(deadline=None)
@given(st.integers(1, 3000), st.floats(0, 1), st.sampled_from([0.5, 0.9, 0.95, 0.99]))
def test_the_two_sided_interval_is_scipys(of: int, share: float, confidence: float) -> None:
    count = round(share * of)
    exact = stats.binomtest(count, of).proportion_ci(confidence, "exact")
    assert clopper_pearson(count, of, confidence) == pytest.approx((exact.low, exact.high), rel=1e-7, abs=1e-12)


@settings(deadline=None)
@given(st.integers(1, 3000), st.floats(0, 1), st.sampled_from([0.05, 0.5, 0.95, 0.999]))
def test_the_one_sided_bound_is_the_quantile_of_the_beta_distribution(of: int, share: float, confidence: float) -> None:
    count = round(share * of)
    expected = 1.0 if count == of else stats.beta.ppf(confidence, count + 1, of - count)
    assert upper_bound(count, of, confidence) == pytest.approx(expected, rel=1e-7, abs=1e-12)


@pytest.mark.parametrize(("count", "of"), [(0, 100_000), (1, 100_000), (37, 100_000), (50_000, 100_000), (99_999, 100_000)])
def test_a_hundred_thousand_photographs(count: int, of: int) -> None:
    exact = stats.binomtest(count, of).proportion_ci(0.95, "exact")
    assert clopper_pearson(count, of) == pytest.approx((exact.low, exact.high), rel=1e-6)


@pytest.mark.parametrize("of", [1, 11, 413])
def test_none_of_n_has_a_closed_form(of: int) -> None:
    assert upper_bound(0, of) == pytest.approx(1 - 0.05 ** (1 / of), rel=1e-12)
    assert clopper_pearson(0, of) == (0.0, pytest.approx(1 - 0.025 ** (1 / of), rel=1e-12))
    assert clopper_pearson(of, of) == (pytest.approx(0.025 ** (1 / of), rel=1e-12), 1.0)


@pytest.mark.parametrize(
    ("count", "of", "words"),
    [
        (0, 413, "0 of 413 changed: below 0.9 % at 95 %"),  # 0.889 %
        (3, 413, "3 of 413 changed: between 0.1 % and 2.2 % at 95 %"),  # 0.150 % and 2.108 %
        (413, 413, "413 of 413 changed: above 99.1 % at 95 %"),  # 99.111 %
        (0, 100_000, "0 of 100000 changed: below 0.004 % at 95 %"),  # 0.00369 %
        (1, 1000, "1 of 1000 changed: between 0.002 % and 0.6 % at 95 %"),  # 0.00253 % and 0.556 %
        (0, 0, "0 of 0 changed"),
    ],
)
def test_words_are_rounded_outwards(count: int, of: int, words: str) -> None:
    assert rate_in_words(count, of) == words


def test_nothing_looked_at_tells_nothing() -> None:
    assert clopper_pearson(0, 0) == (0.0, 1.0)
    assert upper_bound(0, 0) == 1.0


@pytest.mark.parametrize(("count", "of", "confidence"), [(-1, 5, 0.95), (6, 5, 0.95), (1, 5, 0.0), (1, 5, 1.0)])
def test_what_is_no_rate_is_refused(count: int, of: int, confidence: float) -> None:
    with pytest.raises(ValueError, match="expected"):
        clopper_pearson(count, of, confidence)
