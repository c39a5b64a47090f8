"""Ranges of activations and steps of weights, against numpy on the numbers themselves."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fundus_rt.benchmarks.precision.histograms import METHODS, SHARE, Histogram
from fundus_rt.converters.precision.int8_graph import rounded_weights


def numbers(spread: float, count: int = 30000) -> np.ndarray:
    return np.random.default_rng(3).laplace(0, spread, count).astype(np.float32)


def histogram(parts: list[np.ndarray]) -> Histogram:
    found = Histogram()
    for part in parts:
        found.add(part)
    return found


def test_a_range_by_the_largest_number_is_numpys_and_one_by_percentile_is_within_a_bin() -> None:
    values = numbers(2.0)
    found = histogram([values])
    assert found.range_by("max") == (values.min(), values.max())
    low, high = (float(np.quantile(values, share, method="inverted_cdf")) for share in (1 - SHARE, SHARE))
    width = 2 * found.reach / 4096 + 1e-6
    least, most = found.range_by("percentile")
    assert low - width <= least <= low + width and high - width <= most <= high + width


@pytest.mark.parametrize("method", METHODS)
def test_a_range_behind_a_relu_begins_at_0_and_one_of_negative_numbers_ends_there(method: str) -> None:
    found = histogram([np.maximum(numbers(2.0), 0)]).range_by(method)
    assert found[0] == 0 < found[1]
    found = histogram([-np.abs(numbers(2.0))]).range_by(method)
    assert found[0] < 0 == found[1]
    assert histogram([np.zeros(9, np.float32)]).range_by(method) == (0.0, 1.0)


def test_a_range_by_least_squares_does_no_worse_than_the_best_of_many_on_the_numbers_themselves() -> None:
    values = np.concatenate([numbers(0.5, 300000), np.float32([40.0])])

    def error(least: float, most: float) -> float:
        scale = (most - least) / 255
        levels = np.clip(np.rint(values / scale), np.rint(least / scale), np.rint(most / scale))
        return float(np.square(levels * scale - values).sum())

    least, most = histogram([values]).range_by("least-squares")
    ends = float(values.min()), float(values.max())
    assert error(least, most) <= 1.02 * min(error(share * ends[0], share * ends[1]) for share in np.linspace(1 / 40, 1, 300))
    assert error(least, most) < 0.9 * error(*ends)


def test_a_distribution_in_parts_that_grow_is_the_one_of_all_numbers_at_once() -> None:
    values = numbers(3.0)
    values = values[np.argsort(np.abs(values))]
    parts, once = histogram(np.array_split(values, 7)), histogram([values])
    assert parts.reach == once.reach and parts.counts.sum() == len(values)
    assert np.abs(np.cumsum(parts.counts) - np.cumsum(once.counts)).max() <= 1  # a number on the edge of two bins


def test_numbers_that_are_not_finite_are_refused() -> None:
    with pytest.raises(ValueError, match="not finite"):
        histogram([np.float32([1.0, np.nan])])


@settings(max_examples=30, deadline=None)
@given(hnp.arrays(np.float32, (3, 4, 2), elements=st.floats(-1e4, 1e4, width=32)), st.integers(0, 2))
def test_rounded_weights_are_within_half_a_step_of_their_own_channel(weights: np.ndarray, axis: int) -> None:
    levels, scales = rounded_weights(weights, axis)
    shape = [1, 1, 1]
    shape[axis] = -1
    apart = np.abs(levels * scales.reshape(shape).astype(np.float64) - weights)
    assert (apart <= scales.reshape(shape) * 0.501).all()
    assert levels.min() >= -127 and len(scales) == weights.shape[axis] and (scales > 0).all()
