"""Two sets of answers against each other: figures against NumPy and scikit-learn, decisions against the runtime's own words."""

from __future__ import annotations

import dataclasses
import json
import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fundus_rt.models.card import OutputSpec
from fundus_rt.models.registry import load_card
from fundus_rt.runtime.agreement import agreement, agreement_of_values, decisions, margins, values_in_unit
from fundus_rt.runtime.interpret import interpret

AGE = OutputSpec("age", "regression", "years", 0.1, activation="none", columns=1, scale=12.5, offset=48.0)
SEX = OutputSpec("sex", "binary", "probability", 1e-3, ("female", "male"), activation="sigmoid", columns=1)
TWO = OutputSpec("sex", "binary", "probability", 1e-3, ("female", "male"), activation="softmax", columns=2, threshold=0.3)
GRADES = OutputSpec("dr", "multiclass", "probability", 1e-3, ("0", "1", "2", "3", "4"), activation="softmax", columns=5)
FINDINGS = OutputSpec("f", "multilabel", "probability", 1e-3, ("AMD", "ERM", "RVO"), activation="sigmoid", columns=3)
SURE = dataclasses.replace(GRADES, threshold=0.5)
CLASSES = (SEX, dataclasses.replace(SEX, threshold=0.2), TWO, GRADES, SURE, FINDINGS)


def numbers(output: OutputSpec, photographs: int = 60, seed: int = 0) -> np.ndarray:
    """A network's numbers that differ between photographs."""
    return np.random.default_rng(seed).normal(0, 2, (photographs, output.columns or 1)).astype(np.float32)


def rows_of(columns: int) -> st.SearchStrategy[np.ndarray]:
    return hnp.arrays(np.float32, st.tuples(st.integers(1, 6), st.just(columns)), elements=st.floats(-30, 30, width=32))


@pytest.mark.parametrize("output", (*CLASSES, AGE), ids=lambda o: f"{o.task}-{o.threshold}-{o.columns}")
@settings(deadline=None)
@given(data=st.data())
def test_values_and_decisions_are_those_of_a_result(output: OutputSpec, data: st.DataObject) -> None:
    rows = data.draw(rows_of(output.columns or 1))
    card = dataclasses.replace(load_card("joir-age"), outputs=(output,))
    values = values_in_unit(rows, output)
    said = decisions(values, output)
    for index, row in enumerate(rows):
        found = interpret({output.name: row}, card)[output.name]
        if output.task == "regression":
            assert values[index, 0] == found.value
        else:
            assert said[index] == found.decision
            column = list(output.labels).index(found.label) if output.columns == len(output.labels) else 0  # type: ignore[arg-type]
            assert values[index, column] == found.value
    assert len(said) == (0 if output.task == "regression" else len(rows))


@pytest.mark.parametrize("output", CLASSES, ids=lambda o: f"{o.task}-{o.threshold}-{o.columns}")
@settings(deadline=None)
@given(data=st.data())
def test_a_margin_is_how_far_an_answer_is_from_another_decision(output: OutputSpec, data: st.DataObject) -> None:
    values = values_in_unit(data.draw(rows_of(output.columns or 1)), output)
    for row, margin in zip(values, margins(values, output), strict=True):
        said = decisions(row[None], output)
        within = row + 0.999 * margin * data.draw(hnp.arrays(np.float64, row.shape, elements=st.floats(-1, 1)))
        assert margin < 1e-9 or decisions(within[None], output) == said
        signs = np.where(np.arange(len(row)) == row.argmax(), -1.0, 1.0)
        beyond = [row + (1.001 * margin + 1e-9) * side for side in (signs, -signs, np.ones_like(row), -np.ones_like(row))]
        assert any(decisions(moved[None], output) != said for moved in beyond)


def test_an_age_has_no_margin() -> None:
    assert np.isnan(margins(values_in_unit(numbers(AGE), AGE), AGE)).all()


def test_the_figures_of_an_age() -> None:
    before = numbers(AGE)
    after = before + np.random.default_rng(1).normal(0, 1e-3, before.shape).astype(np.float32)
    found = agreement("age", before, after, AGE)
    apart = np.abs(after.astype(np.float64) - before).ravel() * 12.5
    assert found.passed and not found.problems
    assert (found.mean, found.largest) == pytest.approx((apart.mean(), apart.max()))
    assert found.percentile_95 == pytest.approx(sorted(apart)[57])  # 58 of 60 are no larger, which is 95 % at least
    for some in range(1, 40):
        found_of_some = agreement("age", before[:some], after[:some], AGE)
        assert np.mean(apart[:some] <= found_of_some.percentile_95 * (1 + 1e-12)) >= 0.95
    assert found.spread == pytest.approx(12.5 * before.astype(np.float64).std())
    assert found.largest_of_spread == pytest.approx(apart.max() / (12.5 * before.astype(np.float64).std()))
    assert found.worst == tuple(np.argsort(-apart)[:10])
    assert found.decisions_changed is found.decisions_bound is found.near_operating_point is found.weighted_kappa is None
    assert found.beyond_tolerance == 0
    assert "0 of 60 beyond 0.1 years: below 6" in str(found)


@pytest.mark.parametrize("output", (GRADES, SURE), ids=["always", "or unknown"])
@settings(deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(2, 80))
def test_kappa_is_scikit_learns(output: OutputSpec, seed: int, photographs: int) -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    before, after = numbers(output, photographs, seed), numbers(output, photographs, seed + 1)
    first, second = before.argmax(axis=1), after.argmax(axis=1)
    found = agreement("dr", before, after, output).weighted_kappa
    if len({*first, *second}) == 1:
        assert found is None
    else:
        assert found == pytest.approx(metrics.cohen_kappa_score(first, second, weights="quadratic", labels=range(5)))


def test_a_changed_decision_fails_however_small_the_difference() -> None:
    before = numbers(SEX)
    before[7] = 1e-5
    after = before.copy()
    after[7] = -1e-5
    found = agreement("sex", before, after, SEX)
    assert found.largest < SEX.tolerance
    assert (found.decisions_changed, found.changed) == (1, (7,))
    assert found.decisions_bound == pytest.approx(0.0894, abs=1e-3)  # Clopper and Pearson, 1 of 60
    assert found.near_operating_point == 1
    assert not found.passed
    assert any("1 of 60 decisions changed" in problem for problem in found.problems)


def test_a_certain_network_is_told_from_another_by_its_own_numbers() -> None:
    before = 40 + numbers(SEX)
    found = agreement("sex", before, before[::-1].copy(), SEX)
    assert found.largest < 1e-12 and found.decisions_changed == 0
    assert any("apart by" in problem for problem in found.problems)


@settings(deadline=None)
@given(st.floats(0.0, 0.05))
def test_two_per_cent_of_what_tells_photographs_apart(share: float) -> None:
    assume(abs(share - 0.02) > 1e-4)
    before = np.linspace(0, 1, 11, dtype=np.float64)[:, None]
    after = before.copy()
    after[4] += share
    found = agreement("age", before, after, dataclasses.replace(AGE, tolerance=100.0))
    assert found.passed == (share < 0.02)


def test_beyond_the_tolerance() -> None:
    before = np.linspace(0, 100, 51)[:, None].astype(np.float32)
    after = before.copy()
    after[3] += 1.0
    after[9] -= 0.5
    output = dataclasses.replace(AGE, scale=1.0, offset=0.0)
    found = agreement("age", before, after, output)
    assert not found.passed and found.beyond_tolerance == 2
    assert found.worst[:2] == (3, 9)
    assert agreement("age", before, after, output, tolerance=1.0).passed


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("output", (AGE, *CLASSES), ids=lambda o: f"{o.task}-{o.threshold}-{o.columns}")
@pytest.mark.parametrize("side", [0, 1])
def test_what_is_not_finite_never_passes(bad: float, output: OutputSpec, side: int) -> None:
    sides = [numbers(output), numbers(output)]
    sides[side][5, -1] = bad
    found = agreement("x", sides[0], sides[1], output)
    assert not found.passed and any("NaN or infinity" in problem for problem in found.problems)
    assert found.worst[0] == 5 and found.largest == math.inf
    if output.task != "regression":
        assert found.changed == (5,)
    text = json.dumps(found.to_dict(), allow_nan=False)
    assert json.loads(text)["largest"] is None and json.loads(text)["passed"] is False
    assert "of 60" in str(found)


def test_nothing_is_proved_on_one_photograph_on_none_or_on_equal_ones() -> None:
    one = numbers(SEX, 1)
    assert "one photograph only" in agreement("sex", one, one, SEX).problems[0]
    assert "no photograph" in agreement("sex", one[:0], one[:0], SEX).problems[0]
    same = np.full((9, 1), 1.25, np.float32)
    assert "same for all 9" in agreement("sex", same, same, SEX).problems[0]
    nearly = same + np.float32(1e-6) * np.arange(9, dtype=np.float32)[:, None]
    assert not agreement("sex", nearly, nearly, SEX).passed
    assert agreement("sex", one[:0], one[:0], SEX).decisions_bound == 1.0


def test_a_constant_column_beside_a_telling_one_is_left_alone() -> None:
    before = numbers(FINDINGS)
    before[:, 1] = -3.0
    assert agreement("f", before, before, FINDINGS).passed


def test_the_examined_sides_own_operating_point_decides_for_it() -> None:
    before = numbers(SEX)
    moved = dataclasses.replace(SEX, threshold=0.9)
    found = agreement("sex", before, before, SEX, found_output=moved)
    between = (values_in_unit(before, SEX)[:, 0] >= 0.5) & (values_in_unit(before, SEX)[:, 0] < 0.9)
    assert found.changed == tuple(np.flatnonzero(between)) and between.any()
    assert found.largest == 0 and not found.passed


def test_a_standardised_target_that_the_examined_side_forgot() -> None:
    before = numbers(AGE)
    found = agreement("age", before, before, AGE, found_output=dataclasses.replace(AGE, scale=1.0, offset=0.0))
    assert found.largest == pytest.approx(np.abs(before * 11.5 + 48).max(), rel=1e-6) and not found.passed


def test_values_that_are_in_the_unit_already() -> None:
    before, after = numbers(GRADES), numbers(GRADES) + np.float32(1e-4)
    by_numbers = agreement("dr", before, after, GRADES)
    by_values = agreement_of_values("dr", values_in_unit(before, GRADES), values_in_unit(after, GRADES), GRADES)
    assert by_values == by_numbers


@pytest.mark.parametrize("shape", [(59, 5), (60, 4), (60,)])
def test_answers_of_another_shape_are_no_answers(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="expected the same"):
        agreement("dr", numbers(GRADES), np.zeros(shape), GRADES)
