"""Thresholds for a wanted sensitivity: the highest that reaches it, what they do on unseen photographs, and the new card."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fundus_rt.benchmarks.evaluation.new_card import with_operating_points, write_card, write_onnx
from fundus_rt.benchmarks.evaluation.operating_points import OperatingPoint, hits_needed, operating_point, threshold_for
from fundus_rt.benchmarks.evaluation.two_classes import TwoClassAnswers
from fundus_rt.models.artifacts import sha256_of_file
from fundus_rt.models.errors import UsageError
from fundus_rt.models.registry import load_card
from fundus_rt.runtime.pipeline import Pipeline

stats = pytest.importorskip("scipy.stats")
pytest.importorskip("sklearn")


def answers(count: int = 600, seed: int = 0, apart: float = 2.0) -> TwoClassAnswers:
    rng = np.random.default_rng(seed)
    positive = rng.uniform(size=count) < 0.4
    probability = np.round(1 / (1 + np.exp(-(rng.normal(size=count) + apart * (positive - 0.5)))), 3)
    return TwoClassAnswers("sex", ("female", "male"), positive, probability, probability >= 0.5, 0.5, np.arange(count))


def lower_end(hits: int, of: int) -> float:
    """Of the exact 95 % interval, by the quantile of the beta distribution."""
    return float(stats.beta.ppf(0.025, hits, of - hits + 1)) if hits else 0.0


@pytest.mark.parametrize("aim", ["bound", "estimate"])
@pytest.mark.parametrize("wanted", [0.7, 0.9, 0.95])
def test_it_is_the_highest_threshold_that_reaches_the_aim(aim: str, wanted: float) -> None:
    given = answers()
    found = operating_point(given, wanted, aim)
    assert isinstance(found, OperatingPoint)
    reached = {}
    for threshold in np.unique(given.probability):
        hits = int((given.positive & (given.probability >= threshold)).sum())
        reached[threshold] = lower_end(hits, given.positive.sum()) if aim == "bound" else hits / given.positive.sum()
    best = max(threshold for threshold, value in reached.items() if value >= wanted)
    here = given.probability >= found.threshold
    np.testing.assert_array_equal(here, given.probability >= best)  # the same decisions
    assert found.threshold < best and found.threshold not in given.probability  # and none on the threshold itself
    assert found.sensitivity.count == int((here & given.positive).sum())
    assert found.specificity.count == int((~here & ~given.positive).sum())


def test_a_bound_costs_more_than_a_share() -> None:
    given = answers()
    bound, share = operating_point(given, 0.9, "bound"), operating_point(given, 0.9, "estimate")
    assert isinstance(bound, OperatingPoint) and isinstance(share, OperatingPoint)
    assert bound.threshold < share.threshold and bound.specificity.value < share.specificity.value


@pytest.mark.parametrize("of", [5, 72, 73, 200])
def test_hits_needed(of: int) -> None:
    enough = [hits for hits in range(of + 1) if lower_end(hits, of) >= 0.95]
    assert hits_needed(of, 0.95, "bound") == (min(enough) if enough else None)
    assert hits_needed(of, 0.95, "estimate") == min(hits for hits in range(of + 1) if hits >= 0.95 * of)


def test_too_few_positive_photographs_say_how_many_it_takes() -> None:
    given = answers(100)
    said = operating_point(given, 0.95, "bound")
    assert isinstance(said, str)
    assert f"with {given.positive.sum()} positive" in said and "needs 72 of them" in said  # 0.025 ** (1 / 72) = 0.950


def test_what_it_does_on_unseen_photographs_is_what_it_does() -> None:
    """Choosing by the share itself is too good here; on unseen photographs it misses what it misses in 100,000 others."""
    many = answers(100_000, seed=99)
    here, unseen, true = [], [], []
    for seed in range(60):
        found = operating_point(answers(60, seed), 0.9, "estimate")
        assert isinstance(found, OperatingPoint) and found.unseen_sensitivity is not None
        here.append(found.sensitivity.value)
        unseen.append(found.unseen_sensitivity.value)
        true.append(float((many.probability[many.positive] >= found.threshold).mean()))
    assert min(here) >= 0.9
    assert np.mean(true) < np.mean(here) - 0.03
    assert abs(np.mean(unseen) - np.mean(true)) < 0.015


def test_a_patient_is_never_chosen_on_and_asked() -> None:
    """Every positive photograph has a twin of the same patient and no other like it: with the twin gone, it is missed."""
    patients = np.repeat(np.arange(40), 2)
    positive = np.repeat(np.arange(40) < 20, 2)
    probability = np.where(positive, 0.9 - 0.02 * patients, 0.01)
    given = TwoClassAnswers("q", ("a", "b"), positive, probability, probability > 0.5, 0.5, patients)
    found = operating_point(given, 0.99, "estimate")
    assert isinstance(found, OperatingPoint) and found.sensitivity.value == 1.0
    assert found.unseen_sensitivity is not None
    # half-way to the negatives at 0.01 lies between the lowest positives: the lowest patient is found only by the gap's middle
    assert threshold_for(probability[positive & (patients < 19)], np.ones(38, np.bool_), 0.99, "estimate") == pytest.approx(0.27)
    assert found.unseen_sensitivity.of == 40


def test_the_new_card_decides_by_it_and_the_old_file_is_unchanged(tiny_sex: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    before = sha256_of_file(tiny_sex)
    pipeline = Pipeline(tiny_sex)
    point = operating_point(answers(), 0.9, "bound")
    assert isinstance(point, OperatingPoint)
    card = with_operating_points(pipeline.card, {"sex": point})
    write_card(card, tmp_path / "new.json")
    write_onnx(tiny_sex, card, tmp_path / "new.onnx")
    assert sha256_of_file(tiny_sex) == before
    assert load_card(tmp_path / "new.json").outputs[0].threshold == point.threshold
    again = Pipeline(tmp_path / "new.onnx")
    assert again.card.outputs[0].threshold == point.threshold
    chosen = again.card.provenance["operating_points"]["sex"]
    assert chosen["wanted_sensitivity"] == 0.9 and chosen["sensitivity"]["count"] == point.sensitivity.count
    noise = np.random.default_rng(0).integers(0, 256, (1, 64, 64, 3), np.uint8)
    for one, other in zip(pipeline._session.run(noise).values(), again._session.run(noise).values(), strict=True):
        np.testing.assert_array_equal(one, other)
    with pytest.raises(UsageError, match="exists already"):
        write_card(card, tmp_path / "new.json")
    with pytest.raises(UsageError, match="exists already"):
        write_onnx(tiny_sex, card, tiny_sex)
    with pytest.raises(UsageError, match="two classes"):
        with_operating_points(load_card("joir-age"), {"age": point})


@pytest.mark.parametrize(("positives", "others"), [(20, 0), (0, 20), (9, 50), (50, 9)])
@pytest.mark.parametrize("aim", ["bound", "estimate"])
def test_no_point_is_chosen_without_photographs_of_both_sides(positives: int, others: int, aim: str) -> None:
    positive = np.arange(positives + others) < positives
    probability = np.linspace(0.99, 0.01, len(positive))
    given = TwoClassAnswers("q", ("a", "b"), positive, probability, probability > 0.5, 0.5, np.arange(len(positive)))
    said = operating_point(given, 0.5, aim)
    assert isinstance(said, str) and f"{positives} positive and {others} other photographs; it takes 10 of each" in said


def test_the_bound_holds_where_patients_have_several_photographs() -> None:
    """The true sensitivity reaches the wanted one in 97.5 % of repetitions; 73 or fewer of 80 would come up once in 50."""
    patients = np.repeat(np.arange(60), 5)
    positive = patients % 2 == 0
    rng = np.random.default_rng(1)
    reached = 0
    for _ in range(80):
        scores = rng.normal(size=60)[patients] + 0.2 * rng.normal(size=300) + 1.5 * positive
        threshold = threshold_for(1 / (1 + np.exp(-scores)), positive, 0.8, "bound", patients)
        assert threshold is not None
        cut = np.log(threshold / (1 - threshold))
        reached += stats.norm.sf((cut - 1.5) / np.sqrt(1.04)) >= 0.8
    assert reached >= 74
