"""What a network's numbers mean: every combination of task, columns and ending that is held against the card."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fundus_rt.converters.architecture import Architecture, LoadAccount, Network
from fundus_rt.converters.checkpoint import Checkpoint
from fundus_rt.converters.conversion_report import proof_warnings
from fundus_rt.converters.output_meaning import output_notes, output_warnings, require_logits, resolved_card
from fundus_rt.converters.parity import OutputDifference, Reference, compare_shipped
from fundus_rt.models.card import ModelCard, OutputSpec
from fundus_rt.models.errors import ParityError, UnsupportedCheckpointError
from fundus_rt.models.registry import load_card

CHECKPOINT = Checkpoint(Path("answer.pth"), "0" * 64, "torch-zip", "pytorch", {"fc.weight": (1, 8)})
LABELS = {"binary": 2, "multiclass": 5, "multilabel": 3, "regression": 0}


def network(columns: int, activation: str) -> Architecture:
    def build() -> Network:
        raise AssertionError("nothing is built to find out what numbers mean")

    account = LoadAccount(1, 8, 1, 8, 8)
    return Architecture("resnet-50", "a network", (512, 512), columns, activation, account, build, "none", ())


def card_for(task: str, **changes: Any) -> ModelCard:
    labels = tuple(f"class {i}" for i in range(LABELS[task]))
    unit = "years" if task == "regression" else "probability"
    output = dataclasses.replace(OutputSpec("answer", task, unit, 1e-3, labels), **changes)
    return dataclasses.replace(load_card("image-fundus-abnormality"), outputs=(output,))


@pytest.mark.parametrize(
    ("task", "columns", "inside", "activation"),
    [
        ("regression", 1, "none", "none"),
        ("binary", 1, "none", "sigmoid"),
        ("binary", 1, "sigmoid", "none"),
        ("binary", 2, "none", "softmax"),
        ("binary", 2, "softmax", "none"),
        ("multiclass", 5, "none", "softmax"),
        ("multiclass", 5, "softmax", "none"),
        ("multilabel", 3, "none", "sigmoid"),
        ("multilabel", 3, "sigmoid", "none"),
    ],
)
def test_what_is_still_to_be_applied(task: str, columns: int, inside: str, activation: str) -> None:
    card = resolved_card(card_for(task), network(columns, inside), CHECKPOINT)
    assert (card.outputs[0].columns, card.outputs[0].activation) == (columns, activation)
    assert resolved_card(card, network(columns, inside), CHECKPOINT) == card
    (sentence,) = output_notes(card)
    assert ("used as it is" in sentence) == (activation == "none")
    assert all(label in sentence for label in card.outputs[0].labels)


@pytest.mark.parametrize(
    ("task", "columns", "inside", "message"),
    [
        ("binary", 1, "softmax", "always 1"),
        ("regression", 1, "softmax", "always 1"),
        ("regression", 1, "sigmoid", "--standardised"),
        ("binary", 2, "sigmoid", "do not exclude each other"),
        ("multiclass", 5, "sigmoid", "multilabel"),
        ("multilabel", 3, "softmax", "multiclass"),
        ("binary", 3, "none", "needs 1 or 2"),
        ("multiclass", 1, "none", "needs 5"),
        ("multiclass", 4, "sigmoid", "needs 5"),
        ("regression", 2, "none", "needs 1"),
    ],
)
def test_contradictions_are_refused_with_the_reason(task: str, columns: int, inside: str, message: str) -> None:
    with pytest.raises(UnsupportedCheckpointError, match=message):
        resolved_card(card_for(task), network(columns, inside), CHECKPOINT)


def test_a_scaled_target_may_end_with_a_sigmoid_and_is_described() -> None:
    card = resolved_card(card_for("regression", scale=100.0), network(1, "sigmoid"), CHECKPOINT)
    assert card.outputs[0].activation == "none"
    assert "times 100, plus 0" in output_notes(card)[0]


def difference(lowest: float, highest: float) -> OutputDifference:
    return OutputDifference("answer", "years", 0.0, 0.0, 0.0, lowest, highest, 1e-3, 11, highest - lowest)


@pytest.mark.parametrize(("lowest", "highest", "doubted"), [(-1.9, 2.1, True), (0.1, 0.9, True), (31.0, 74.0, False)])
def test_answers_of_a_standardised_target_are_doubted(lowest: float, highest: float, doubted: bool) -> None:
    found = output_warnings(card_for("regression"), [difference(lowest, highest)])
    assert bool(found) == doubted
    assert not doubted or "--standardised" in found[0]


def test_an_assumed_class_order_is_said() -> None:
    assert "--labels" in output_warnings(card_for("binary", labels_assumed=True), [difference(0, 1)])[0]
    assert not output_warnings(card_for("binary"), [difference(0, 1)])


def test_a_softmax_that_the_graph_does_not_show_is_found_by_its_sums() -> None:
    card = resolved_card(card_for("multiclass"), network(5, "none"), CHECKPOINT)
    frames = np.zeros((3, 4, 4, 3), np.uint8)
    powers = np.exp(np.random.default_rng(0).normal(size=(3, 5)))
    answers = {"answer": (powers / powers.sum(axis=1, keepdims=True)).astype(np.float32)}

    def run(batch: np.ndarray) -> dict[str, np.ndarray]:
        start = calls.pop(0)
        return {"answer": answers["answer"][start : start + len(batch)], "receipt": np.zeros((len(batch), 4), np.float32)}

    calls = [0, 1]
    with pytest.raises(ParityError, match="add up to 1"):
        compare_shipped(run, frames, Reference(answers, answers), card)
    calls = [0, 1]
    explicit = dataclasses.replace(card, outputs=(dataclasses.replace(card.outputs[0], activation="none"),))
    assert compare_shipped(run, frames, Reference(answers, answers), explicit)[0].largest == 0


def numbers(values: np.ndarray) -> Reference:
    answers = {"answer": np.asarray(values, np.float32)}
    return Reference(answers, answers)


@pytest.mark.parametrize("task", ["binary", "multiclass", "multilabel"])
def test_an_activation_is_not_applied_to_what_already_looks_like_probabilities(task: str) -> None:
    columns = {"binary": 1}.get(task, LABELS[task])
    given = card_for(task)
    card = resolved_card(given, network(columns, "none"), CHECKPOINT)
    random = np.random.default_rng(0)
    likely = numbers(random.uniform(0.02, 0.9, (4, columns)))
    with pytest.raises(UnsupportedCheckpointError, match='"activation": "none" for probabilities'):
        require_logits(given, card, likely, "x.pth")
    require_logits(given, card, numbers(random.normal(size=(4, columns)) - 1), "x.pth")
    said = card_for(task, activation=card.outputs[0].activation)
    require_logits(said, resolved_card(said, network(columns, "none"), CHECKPOINT), likely, "x.pth")


@pytest.mark.parametrize("activation", ["sigmoid", "softmax", "none"])
def test_an_activation_that_the_card_asks_for_on_what_looks_like_probabilities_is_doubted(activation: str) -> None:
    task = "multiclass" if activation == "softmax" else "binary"
    columns = 5 if task == "multiclass" else 1
    card = resolved_card(card_for(task, activation=activation), network(columns, "none"), CHECKPOINT)
    random = np.random.default_rng(0)
    for values, doubted in (
        (random.uniform(0.02, 0.9, (4, columns)), activation != "none"),
        (random.normal(0, 3, (9, 5)), False),
    ):
        found = proof_warnings(card, [], numbers(values))
        assert any("lie between 0 and 1" in warning for warning in found) == doubted


def test_a_sure_network_is_held_against_its_numbers_before_the_activation() -> None:
    """Probabilities within 1e-20 of 0 and 1 pass any tolerance; the numbers that they are made of do not."""
    card = resolved_card(card_for("binary"), network(2, "none"), CHECKPOINT)
    frames = np.zeros((3, 4, 4, 3), np.uint8)
    sure = np.asarray([[60.0, 0.0], [61.5, 0.3], [63.0, -0.4]], np.float32)
    receipt = np.zeros((3, 4), np.float32)

    def run_as(answers: np.ndarray) -> Any:
        rows = iter(np.split(np.arange(3), [1]))
        return lambda batch: {"answer": answers[found], "receipt": receipt[found]} if len(found := next(rows)) else {}

    assert compare_shipped(run_as(sure), frames, numbers(sure), card)[0].largest < 1e-9
    with pytest.raises(ParityError, match="of what tells the photographs apart"):
        compare_shipped(run_as(sure[::-1].copy()), frames, numbers(sure), card)
    constant = sure + np.asarray([[0.0], [1e-5], [2e-5]], np.float32) - (sure - sure[0])
    with pytest.raises(ParityError, match=r"rounding only|for each of the"):
        compare_shipped(run_as(constant), frames, numbers(constant), card)


def test_the_spread_is_that_of_photographs_not_of_columns() -> None:
    card = resolved_card(card_for("binary"), network(2, "softmax"), CHECKPOINT)
    rows = np.asarray([[0.98, 0.02], [0.97, 0.03]], np.float32)
    run = {1: rows[:1], 2: rows[1:]}
    calls = iter((1, 2))
    answered = compare_shipped(
        lambda batch: {"answer": run[next(calls)], "receipt": np.zeros((1, 4), np.float32)},
        np.zeros((2, 4, 4, 3), np.uint8), numbers(rows), card,
    )[0]  # fmt: skip
    assert answered.spread == pytest.approx(0.01, abs=1e-6)
    assert (answered.lowest, answered.highest) == (pytest.approx(0.02), pytest.approx(0.98))
