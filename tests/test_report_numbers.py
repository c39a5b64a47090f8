"""Figures in words."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fundus_rt.benchmarks.reports.numbers import column_in_words, interval_in_words, number_in_words, share_in_words


@pytest.mark.parametrize(
    ("value", "unit", "words"),
    [
        (0.00213, "", "0.00213"),
        (213.4, "years", "213 years"),
        (2.3456, "years", "2.35 years"),
        (12345.6, "", "12,346"),
        (2.13e-7, "years", "below 1e-6 years"),
        (-2.13e-7, "", "above -1e-6"),
        (0.0000213, "", "2.13e-5"),
        (0.0, "", "0"),
        (-0.0, "", "0"),
        (413, "photographs", "413 photographs"),
        (100000, "", "100,000"),
        (None, "years", "–"),
        (float("nan"), "", "not a number"),
        (float("-inf"), "", "minus infinite"),
    ],
)
def test_numbers_in_words(value: float | None, unit: str, words: str) -> None:
    assert number_in_words(value, unit) == words


@settings(deadline=None)
@given(st.floats(1e-6, 1e12) | st.floats(-1e12, -1e-6))
def test_a_number_in_words_is_the_number(value: float) -> None:
    assert float(number_in_words(value).replace(",", "")) == pytest.approx(value, rel=0.006)


@settings(deadline=None)
@given(st.floats(0, 1) | st.floats(0, 0.01) | st.floats(0.99, 1))
def test_a_share_is_never_rounded_to_none_or_all(share: float) -> None:
    words = share_in_words(share)
    assert (words == "0 %") == (100 * share == 0) and (words == "100 %") == (100 * share == 100)
    if words[0].isdigit():
        assert float(words[:-2]) == pytest.approx(100 * share, abs=0.5)
        assert 0 < float(words[:-2]) < 100 or share in (0, 1)


def test_shares_intervals_and_columns_in_words() -> None:
    assert [share_in_words(s) for s in (0.914, 0.024, 0.00034, 0.997, 1.0, 0.0)] == [
        "91 %",
        "2.4 %",
        "0.034 %",
        "99.70 %",
        "100 %",
        "0 %",
    ]
    assert interval_in_words(2.1, 2.706, "years") == "2.10 to 2.71 years"
    assert column_in_words((2.39, 71.4)) == ["2.39", "71.40"]
    assert column_in_words((0.31, 2.39, 71.4)) == ["0.31", "2.39", "71.40"]
    assert column_in_words((0.031, 2.39)) == ["0.031", "2.390"]
    assert column_in_words((1.0, 0.53, 0.477, 0.58)) == ["1.000", "0.530", "0.477", "0.580"]
    assert column_in_words((18.181, 2 / 11)) == ["18.18", "0.18"]
    assert column_in_words((1.5, -0.0, 3e-9, None, 7, True, "x")) == ["1.50", "0", "below 1e-6", "–", "7", "yes", "x"]
    assert column_in_words((0.91, 0.02, 4e-6, -4e-6)) == ["0.910", "0.020", "below 0.001", "above -0.001"]
    assert column_in_words((12000.0, 0.4, 3e-6)) == ["12,000", "0.400", "below 0.001"]
    assert column_in_words((0.0442, 0.00002)) == ["0.0442", "below 0.0001"]
    assert column_in_words((3e-6, 2.5e-5)) == ["3.00e-6", "2.50e-5"]


@settings(deadline=None)
@given(st.lists(st.floats(allow_nan=False, allow_infinity=False, width=32), min_size=1, max_size=6))
def test_a_column_never_shows_a_nought_for_what_is_none(values: list[float]) -> None:
    for value, words in zip(values, column_in_words(values), strict=True):
        if words.startswith(("below ", "above ")):
            assert 0 < abs(value) < abs(float(words[6:]))
            assert (value > 0) == words.startswith("below")
        else:
            assert float(words.replace(",", "")) == pytest.approx(value, rel=0.06)
