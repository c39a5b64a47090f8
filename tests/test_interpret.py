"""From the network's numbers to answers, against scipy's functions and the card's words."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fundus_rt.models.card import OutputSpec
from fundus_rt.models.registry import load_card
from fundus_rt.runtime.interpret import Prediction, activate, interpret

special = pytest.importorskip("scipy.special")


def predict(output: OutputSpec, *columns: float) -> Prediction:
    card = dataclasses.replace(load_card("joir-age"), outputs=(output,))
    return interpret({output.name: np.array(columns, np.float32)}, card)[output.name]


@given(hnp.arrays(np.float64, st.integers(1, 8), elements=st.floats(-800, 800)))
def test_activations_are_scipys(row: np.ndarray) -> None:
    np.testing.assert_allclose(activate(row, "softmax"), special.softmax(row), atol=1e-12)
    np.testing.assert_allclose(activate(row, "sigmoid"), special.expit(row), atol=1e-12)
    assert activate(row, "none") is row


def test_an_age_is_a_number_with_its_unit() -> None:
    found = predict(OutputSpec("age", "regression", "years", 0.01, activation="none", columns=1), 52.25)
    assert found.to_dict() == {"value": 52.25, "unit": "years"}


def test_a_standardised_age_is_scaled_back() -> None:
    spec = OutputSpec("age", "regression", "years", 0.01, activation="none", columns=1, scale=12.5, offset=48.0)
    assert predict(spec, 0.5).value == pytest.approx(54.25)


@pytest.mark.parametrize(("logit", "said"), [(-2.0, "female"), (0.5, "male")])
def test_one_column_is_the_second_label(logit: float, said: str) -> None:
    spec = OutputSpec("sex", "binary", "probability", 0.001, ("female", "male"), activation="sigmoid", columns=1)
    found = predict(spec, logit)
    assert found.decision == said
    assert found.label == "male"
    assert found.value == pytest.approx(special.expit(logit))
    assert found.probabilities == pytest.approx({"female": 1 - special.expit(logit), "male": special.expit(logit)})


def test_two_columns_and_an_operating_point() -> None:
    spec = OutputSpec("a", "binary", "probability", 0.001, ("normal", "abnormal"), activation="softmax", columns=2, threshold=0.2)
    found = predict(spec, 1.0, 0.0)
    assert found.value == pytest.approx(special.softmax([1.0, 0.0])[1])
    assert found.decision == "abnormal"  # 0.27 is above the operating point of 0.2


def test_a_grade_is_the_most_probable_unless_the_card_wants_certainty() -> None:
    labels = ("0", "1", "2", "3", "4")
    spec = OutputSpec("dr", "multiclass", "probability", 0.001, labels, activation="softmax", columns=5)
    row = (0.0, 0.0, 1.0, 0.5, 0.0)
    assert predict(spec, *row).decision == "2"
    assert predict(dataclasses.replace(spec, threshold=0.9), *row).decision == "unknown"
    assert predict(dataclasses.replace(spec, threshold=0.9), 0, 0, 9, 0, 0).decision == "2"


def test_several_findings_at_once() -> None:
    spec = OutputSpec("d", "multilabel", "probability", 0.001, ("AMD", "ERM", "RVO"), activation="sigmoid", columns=3)
    assert predict(spec, 2.0, -2.0, 1.0).decision == "AMD, RVO"
    assert predict(spec, -2.0, -2.0, -1.0).decision == "none"
