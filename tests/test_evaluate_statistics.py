"""Figures of an evaluation against SciPy, scikit-learn and closed forms."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

from fundus_rt.benchmarks.evaluation.answers import QuestionAnswers
from fundus_rt.benchmarks.evaluation.claims import (
    BETTER,
    HOLDS,
    OPEN,
    UNKNOWN,
    Claim,
    _verdict,
    claim_from_text,
    judged,
    require_claimable,
)
from fundus_rt.benchmarks.evaluation.classes import class_figures
from fundus_rt.benchmarks.evaluation.comparison import compared, holm
from fundus_rt.benchmarks.evaluation.estimates import Estimate, bootstrap, estimates, rate, ratio
from fundus_rt.benchmarks.evaluation.evaluation import doubts
from fundus_rt.benchmarks.evaluation.figures import figures_of, referral_answers
from fundus_rt.benchmarks.evaluation.regression import regression_figures
from fundus_rt.benchmarks.evaluation.truths import Question
from fundus_rt.benchmarks.evaluation.two_classes import TwoClassAnswers, two_class_figures
from fundus_rt.models.card import OutputSpec
from fundus_rt.models.errors import UsageError

metrics = pytest.importorskip("sklearn.metrics")
calibration = pytest.importorskip("sklearn.calibration")
stats = pytest.importorskip("scipy.stats")

AGE = OutputSpec("age", "regression", "years", 0.01)
SEX = OutputSpec("sex", "binary", "probability", 0.001, ("female", "male"))
GRADE = OutputSpec("grade", "multiclass", "probability", 0.001, ("0", "1", "2", "3", "4"))


def ages(count: int = 200, seed: int = 3) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    truth = rng.uniform(20, 80, count)
    return truth, 5 + 0.9 * truth + rng.normal(0, 3, count)


def two_classes(count: int = 300, seed: int = 4) -> TwoClassAnswers:
    rng = np.random.default_rng(seed)
    probability = np.round(rng.uniform(size=count), 3)
    positive = rng.uniform(size=count) < probability
    return TwoClassAnswers("sex", ("female", "male"), positive, probability, probability >= 0.4, 0.4, np.arange(count))


def test_errors_of_an_age_are_those_of_scipy() -> None:
    truth, said = ages()
    found = regression_figures(truth, said, np.arange(200))
    line = stats.linregress(truth, said - truth)
    assert found.mae.value == pytest.approx(metrics.mean_absolute_error(truth, said))
    assert found.rmse.value == pytest.approx(math.sqrt(metrics.mean_squared_error(truth, said)))
    assert found.bias.value == pytest.approx(np.mean(said - truth))
    assert found.spread.value == pytest.approx(np.std(said - truth, ddof=1))
    assert found.upper_limit.value - found.lower_limit.value == pytest.approx(2 * 1.96 * np.std(said - truth, ddof=1))
    assert found.correlation.value == pytest.approx(stats.pearsonr(truth, said).statistic)
    assert found.slope.value == pytest.approx(line.slope)
    assert found.slope.low is not None and found.slope.high is not None
    assert found.slope.high - found.slope.low == pytest.approx(2 * 1.97 * line.stderr, rel=0.15)
    # Bland and Altman (1999): the standard error of a limit of agreement is 1.71 standard deviations by the root of n
    assert found.upper_limit.low is not None and found.upper_limit.high is not None
    expected = 2 * 1.96 * found.spread.value * math.sqrt(1 / 200 + 1.96**2 / (2 * 199))
    assert found.upper_limit.high - found.upper_limit.low == pytest.approx(expected, rel=0.15)


def test_the_interval_is_that_of_scipys_bootstrap() -> None:
    truth, said = ages(80)
    errors = np.abs(said - truth)
    theirs = stats.bootstrap((errors,), np.mean, n_resamples=20000, method="percentile", random_state=1).confidence_interval
    found = regression_figures(truth, said, np.arange(80), resamples=8000).mae
    assert (found.low, found.high) == (pytest.approx(theirs.low, abs=0.03), pytest.approx(theirs.high, abs=0.03))


def test_a_photograph_taken_twice_makes_no_error_surer() -> None:
    truth, said = ages(60)
    once = regression_figures(truth, said, np.arange(60))
    twice = regression_figures(np.tile(truth, 2), np.tile(said, 2), np.tile(np.arange(60), 2))
    assert twice.photographs == 120 and twice.patients == 60
    assert (twice.mae.low, twice.mae.high) == (pytest.approx(once.mae.low), pytest.approx(once.mae.high))


def test_the_interval_of_the_mean_error_covers_the_truth_for_patients_with_two_eyes() -> None:
    rng = np.random.default_rng(5)
    patients = np.repeat(np.arange(40), 2)
    true = math.sqrt(2 / math.pi) * math.sqrt(9 + 1)
    inside = 0
    for _ in range(200):
        errors = np.abs(np.repeat(rng.normal(0, 3, 40), 2) + rng.normal(0, 1, 80))
        found = estimates(ratio, np.stack([errors, np.ones(80)], axis=1), patients, 300)[0]
        assert found.low is not None and found.high is not None
        inside += found.low <= true <= found.high
    assert 0.88 * 200 <= inside <= 0.99 * 200


def test_few_patients_have_no_interval() -> None:
    found = regression_figures(*ages(6), np.arange(6))
    assert found.mae.low is None and found.mae.value > 0


def test_two_classes_are_measured_as_scikit_learn_does() -> None:
    answers = two_classes()
    found = two_class_figures(answers)
    truth, probability, said = answers.positive, answers.probability, answers.said
    assert found.auc.value == pytest.approx(metrics.roc_auc_score(truth, probability))
    assert found.brier.value == pytest.approx(metrics.brier_score_loss(truth, probability))
    assert found.sensitivity.value == pytest.approx(metrics.recall_score(truth, said))
    assert found.specificity.value == pytest.approx(metrics.recall_score(~truth, ~said))
    assert found.positive_predictive.value == pytest.approx(metrics.precision_score(truth, said))
    exact = stats.binomtest(found.sensitivity.count, found.sensitivity.of).proportion_ci(0.95, "exact")
    assert (found.sensitivity.low, found.sensitivity.high) == (pytest.approx(exact.low), pytest.approx(exact.high))
    observed, mean = calibration.calibration_curve(truth, probability, n_bins=10)
    np.testing.assert_allclose([part.observed.value for part in found.calibration], observed)
    np.testing.assert_allclose([part.mean_probability for part in found.calibration], mean)
    counts = np.bincount(np.digitize(probability, np.linspace(0, 1, 11)[1:-1], right=True))
    assert found.calibration_error == pytest.approx(float(counts @ np.abs(observed - mean) / counts.sum()))
    alarms, hits = np.array(found.roc).T
    assert metrics.auc(alarms, hits) == pytest.approx(found.auc.value)
    pairs = probability[truth][:, None] == probability[~truth][None]
    assert found.tied == pytest.approx(pairs.mean())


def test_a_rate_by_patient_is_wider_where_patients_repeat() -> None:
    answers = two_classes(100)
    right = answers.said == answers.positive
    found = rate(np.tile(right, 2), np.ones(200, np.bool_), np.tile(np.arange(100), 2))
    assert found.by_patient is not None and found.by_patient.low is not None
    deviation = math.sqrt(right.mean() * (1 - right.mean()) / 100)
    assert found.by_patient.low == pytest.approx(right.mean() - 1.96 * deviation, abs=0.02)
    assert found.by_patient.low < found.low
    assert rate(right, np.ones(100, np.bool_), np.arange(100)).by_patient is None


@pytest.mark.parametrize("seed", range(3))
def test_kappa_is_that_of_scikit_learn(seed: int) -> None:
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, 5, 250)
    said = np.clip(truth + rng.integers(-1, 2, 250), 0, 4)
    decided = np.where(rng.uniform(size=250) < 0.1, -1, said)
    found = class_figures(GRADE.labels, truth, said, decided, np.arange(250))
    assert found.quadratic_kappa.value == pytest.approx(metrics.cohen_kappa_score(truth, said, weights="quadratic"))
    assert found.kappa.value == pytest.approx(metrics.cohen_kappa_score(truth, said))
    kept = decided >= 0
    np.testing.assert_array_equal(found.confusion, metrics.confusion_matrix(truth[kept], decided[kept], labels=range(5)))
    assert found.accuracy.count == int((decided == truth).sum()) and found.accuracy.of == 250
    assert found.accuracy_when_decided.value == pytest.approx(metrics.accuracy_score(truth[kept], decided[kept]))
    recalls = metrics.recall_score(truth, np.where(kept, decided, 9), labels=range(5), average=None)
    np.testing.assert_allclose([one.value for one in found.sensitivities], recalls)
    assert found.quadratic_kappa.low is not None
    assert found.quadratic_kappa.low < found.quadratic_kappa.value < (found.quadratic_kappa.high or 0)


def test_unknown_is_said_but_not_decided() -> None:
    labels = ("left", "right", "unknown")
    truth, decided = np.array([0, 1, 1, 2]), np.array([0, 1, 2, 2])
    found = class_figures(labels, truth, decided, decided, np.arange(4))
    assert (found.accuracy.count, found.decided.count) == (3, 2)
    assert (found.accuracy_when_decided.count, found.accuracy_when_decided.of) == (2, 2)
    assert found.confusion[1] == (0, 1, 1)


def test_the_bootstrap_draws_patients_whole() -> None:
    patients = np.array([0, 0, 0, 1, 2, 2])
    drawn = bootstrap(np.eye(6), patients, 200)  # how often each photograph is drawn
    assert (drawn[:, 0] == drawn[:, 1]).all() and (drawn[:, 0] == drawn[:, 2]).all() and (drawn[:, 4] == drawn[:, 5]).all()
    assert (drawn[:, [0, 3, 4]].sum(axis=1) == 3).all()


def test_holm() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])  # Holm's own way by hand
    assert holm([0.01, 0.5], comparisons=10) == pytest.approx([0.1, 1.0])


def test_mcnemar_and_the_paired_area() -> None:
    truth = np.repeat([1.0, 0.0], 20)[:, None]
    rng = np.random.default_rng(0)
    mine, other = (np.clip(0.5 + 0.3 * (truth[:, 0] - 0.5) * s + rng.normal(0, 0.2, 40), 0, 1) for s in (3, 1))
    values = np.stack([1 - mine, mine], axis=1), np.stack([1 - other, other], axis=1)
    right = np.repeat([1, 0], 20)
    wrong = right.copy()
    wrong[:7] = 0  # seven that only the first decides rightly
    first = right.copy()
    first[-1] = 1  # one that only the second does
    found = compared(("a", "b"), values, (first, wrong), truth, SEX, np.arange(40))
    assert (found.only_this_right, found.only_other_right) == (7, 1)
    assert found.mcnemar == pytest.approx(2 * (1 + 8) / 2**8)
    areas = [metrics.roc_auc_score(truth[:, 0], one) for one in (mine, other)]
    assert found.metric == pytest.approx(areas[0]) and found.gain == pytest.approx(areas[0] - areas[1])
    assert found.low < found.gain < found.high
    z = found.gain / ((found.high - found.gain) / stats.norm.ppf(0.975))
    assert found.probability == pytest.approx(2 * stats.norm.sf(z))


def test_the_difference_of_two_errors_is_paired() -> None:
    """Both sides share a large error, so only a paired comparison sees the small difference."""
    rng = np.random.default_rng(1)
    truth = rng.uniform(20, 80, (100, 1))
    shared = np.abs(rng.normal(0, 10, (100, 1)))
    values = truth + shared, truth + shared + 0.5 + rng.normal(0, 0.2, (100, 1))
    found = compared(("a", "b"), values, (np.zeros(100), np.zeros(100)), truth, AGE, np.arange(100), 2000)  # type: ignore[arg-type]
    assert found.gain == pytest.approx(0.5, abs=0.1) and found.low > 0.4 and found.probability < 0.002
    unpaired = stats.ttest_ind(np.abs(values[0] - truth), np.abs(values[1] - truth)).pvalue
    assert unpaired > 0.3


def test_claims() -> None:
    questions = (Question(AGE, ("age",)), Question(SEX, ("sex",)))
    truth, said = ages()
    figures = {"age": regression_figures(truth, said, np.arange(200)), "sex": two_class_figures(two_classes())}
    mae = figures["age"].mae  # type: ignore[union-attr]
    assert judged(claim_from_text(f"mae={mae.value:.3f}"), questions, figures).verdict == "holds"
    assert judged(claim_from_text("mae=2.0"), questions, figures).verdict == "worse"
    assert judged(claim_from_text("age.mae=4"), questions, figures).verdict == "better"
    assert judged(claim_from_text("auc=0.971"), questions, figures).verdict == "worse"
    assert judged(claim_from_text("sex.auc=0.5"), questions, figures).verdict == "better"
    assert claim_from_text("accuracy=91.2%") == Claim("", "accuracy", pytest.approx(0.912))
    few = {"age": regression_figures(*ages(4), np.arange(4))}
    assert judged(claim_from_text("mae=2"), questions, few).verdict == "cannot be told"
    for wrong in ("mae", "mae=x", "=2"):
        with pytest.raises(UsageError, match="NAME=NUMBER"):
            claim_from_text(wrong)
    with pytest.raises(UsageError, match="no output has the figure 'kappa2'"):
        require_claimable([Claim("", "kappa2", 1.0)], questions)


def question_answers(output: OutputSpec, truth: np.ndarray, values: np.ndarray, decided: np.ndarray) -> QuestionAnswers:
    count = len(truth)
    return QuestionAnswers(Question(output, (output.name,)), np.arange(count), truth, values, decided, np.arange(count))


def test_grades_as_a_referral() -> None:
    """This grade or worse: the probabilities of its grades summed, the truth cut at the same place."""
    rng = np.random.default_rng(8)
    values = rng.dirichlet(np.ones(5), 80)
    truth = rng.integers(0, 5, (80, 1)).astype(float)
    given = question_answers(GRADE, truth, values, values.argmax(axis=1))
    found = two_class_figures(referral_answers(given, "2"))
    assert found.auc.value == pytest.approx(metrics.roc_auc_score(truth[:, 0] >= 2, values[:, 2:].sum(axis=1)))
    assert found.sensitivity.value == pytest.approx(metrics.recall_score(truth[:, 0] >= 2, values.argmax(axis=1) >= 2))


def test_several_labels_are_each_measured_alone() -> None:
    signs = OutputSpec("signs", "multilabel", "probability", 0.001, ("drusen", "exudate"), threshold=0.3)
    rng = np.random.default_rng(9)
    values, truth = rng.uniform(size=(60, 2)), rng.integers(0, 2, (60, 2)).astype(float)
    found = figures_of(question_answers(signs, truth, values, np.full(60, -1)))
    assert isinstance(found, dict) and list(found) == ["drusen", "exudate"]
    for place, one in enumerate(found.values()):
        assert one.auc.value == pytest.approx(metrics.roc_auc_score(truth[:, place], values[:, place]))
        assert one.sensitivity.value == pytest.approx(metrics.recall_score(truth[:, place], values[:, place] >= 0.3))


def test_exchanged_labels_are_named() -> None:
    rng = np.random.default_rng(10)
    truth = rng.integers(0, 2, (100, 1)).astype(float)
    male = np.clip(0.5 + 0.3 * (0.5 - truth[:, 0]) + rng.normal(0, 0.1, 100), 0, 1)
    assumed = dataclasses.replace(SEX, labels_assumed=True)
    given = question_answers(assumed, truth, np.stack([1 - male, male], axis=1), (male >= 0.5).astype(np.int64))
    said = doubts(given, figures_of(given))
    assert any("the labels say that they are exchanged" in one for one in said)
    right = question_answers(SEX, 1 - truth, given.values, given.decided)
    assert not doubts(right, figures_of(right))
    few = question_answers(SEX, np.r_[np.ones((5, 1)), np.zeros((95, 1))], given.values, given.decided)
    assert any(one.startswith("There are 5 photographs of the rarer class") for one in doubts(few, figures_of(few)))


@pytest.mark.parametrize(
    "text", ["accuracy=55", "auc=97.1", "sensitivity=-0.1", "mae=-1", "qwk=-1.2", "specificity=101%", "auc=nan"]
)
def test_a_claim_that_its_figure_cannot_have_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        claim_from_text(text)


def test_a_claim_without_its_per_cent_is_told_how_to_be_written() -> None:
    with pytest.raises(UsageError, match=r"write 0\.55 or 55%"):
        claim_from_text("accuracy=55")
    assert claim_from_text("accuracy=55%").value == 0.55 and claim_from_text("mae=55").value == 55


def test_an_interval_without_width_supports_no_claim() -> None:
    """All 24 photographs of 12 patients are right: 12 independent ones bound the rate at 0.025 ** (1 / 12) and no higher."""
    patients, right = np.repeat(np.arange(12), 2), np.ones(24, np.bool_)
    found = rate(right, right, patients).estimate()
    assert found.low == pytest.approx(0.025 ** (1 / 12)) and found.high == 1.0
    assert _verdict(Claim("", "accuracy", 0.99), found) == OPEN
    assert _verdict(Claim("", "accuracy", 0.7), found) == BETTER
    assert _verdict(Claim("", "mae", 2.39), Estimate(2.0, 2.0, 2.0, "bootstrap")) == UNKNOWN


@pytest.mark.parametrize(
    ("figure", "claimed", "low", "high", "verdict"),
    [
        ("auc", 0.971, 0.93, 0.99, HOLDS), ("auc", 0.971, 0.91, 0.99, OPEN), ("brier", 0.1, 0.02, 0.14, HOLDS),
        ("brier", 0.1, 0.09, 0.16, OPEN), ("mae", 2.39, 1.0, 2.7, HOLDS), ("mae", 2.39, 2.3, 2.8, OPEN),
    ],
)  # fmt: skip
def test_a_claim_is_shown_where_the_worse_end_lies_near(
    figure: str, claimed: float, low: float, high: float, verdict: str
) -> None:
    assert _verdict(Claim("", figure, claimed), Estimate((low + high) / 2, low, high, "bootstrap")) == verdict
