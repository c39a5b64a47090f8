"""What a network's numbers mean: the card's statement held against what the file and its graph show."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from fundus_rt.converters.architecture import Architecture
from fundus_rt.converters.checkpoint import Checkpoint
from fundus_rt.converters.graphs.graph_ending import activation_inside
from fundus_rt.converters.parity import OutputDifference, Reference
from fundus_rt.models.card import ModelCard, OutputSpec
from fundus_rt.models.errors import UnsupportedCheckpointError

TASK_ACTIVATIONS = {"regression": "none", "multiclass": "softmax", "multilabel": "sigmoid"}
"""What makes the card's unit of a linear output; a binary output takes sigmoid on one column, softmax on two."""

INSIDE_NAMES = {"logarithm": "a logarithm", "changed": "arithmetic behind an activation"}
"""How what `activation_inside` finds is called in messages, where its own word does not do."""

STANDARDISED = 6.0
"""Answers within this many units of zero are taken for a standardised target: no fundus photograph of an infant is in sight,
and no standardised one lies six deviations out."""


def settled(architecture: Architecture, model: Any, checkpoint: Checkpoint, answers: np.ndarray) -> Architecture:
    """The architecture with the activation that its graph ends with, which has to be what the file's configuration says.

    Args:
        architecture: with the activation of the file's configuration, or None.
        model: its graph, an `onnx.ModelProto`.
        checkpoint: the file, for messages.
        answers: the original's [N, columns].

    Raises:
        UnsupportedCheckpointError: the two contradict each other.
    """
    if len(model.graph.output) != 1:
        return architecture  # `ship` says what is wrong with the number of outputs
    found = activation_inside(model, model.graph.output[0].name, answers)
    positive = architecture.activation == "none" and found == "changed"  # a softplus, whose numbers are used as they are
    if architecture.activation not in (None, found) and not positive:
        raise UnsupportedCheckpointError(
            f"{checkpoint.path.name} says that it ends with {architecture.activation}, its graph ends with {found}; which "
            f"of them holds cannot be told, so nothing is converted"
        )
    return dataclasses.replace(architecture, activation=found)


def resolved_card(card: ModelCard, architecture: Architecture, checkpoint: Checkpoint) -> ModelCard:
    """The card with columns and activation of its output stated, from the file.

    Raises:
        UnsupportedCheckpointError: the number of outputs does not fit the card, or an activation would be applied twice.
    """
    file, columns, inside = checkpoint.path.name, architecture.columns, architecture.activation
    if len(card.outputs) != 1:
        raise UnsupportedCheckpointError(f"{file} has one output, the card {card.name!r} describes {len(card.outputs)}")
    output = card.outputs[0]
    allowed = {"regression": (1,), "binary": (1, 2)}.get(output.task, (len(output.labels),))
    wanted = allowed if output.columns is None else (output.columns,)
    if columns not in allowed or columns not in wanted:
        labels = f" for the labels {', '.join(output.labels)}" if output.labels else ""
        raise UnsupportedCheckpointError(
            f"{file} gives {columns} number{'s' if columns > 1 else ''} per picture, but output {output.name!r} of the card "
            f"{card.name!r} is a {output.task} output and needs {' or '.join(map(str, wanted))}{labels}. Choose the card "
            f"that belongs to the file, or give the labels that it has."
        )
    inside_problem = _contradiction(output, columns, inside)
    if inside_problem:
        raise UnsupportedCheckpointError(f"{file} ends with {INSIDE_NAMES.get(str(inside), inside)}, {inside_problem}")
    by_task = TASK_ACTIVATIONS.get(output.task, "sigmoid" if columns == 1 else "softmax")
    resolved = by_task if inside in (None, "none", "log-softmax") else "none"
    if output.activation not in (None, resolved) and inside not in (None, "none"):
        raise UnsupportedCheckpointError(
            f"{file} already ends with {INSIDE_NAMES.get(str(inside), inside)}, "
            f"and output {output.name!r} of the card {card.name!r} asks for "
            f"{output.activation} on top, where {resolved} is needed: the probabilities would be wrong. Set the card's "
            f"activation to null."
        )
    output = dataclasses.replace(output, columns=columns, activation=output.activation or resolved)
    return dataclasses.replace(card, outputs=(output,)).validate()


def _contradiction(output: OutputSpec, columns: int, inside: str | None) -> str:
    """Why a network that ends with `inside` cannot be what the card says of its output; empty when it can."""
    where = f"output {output.name!r} of the card is a {output.task} output"
    if inside == "softmax" and columns == 1:
        return "on one number, which is always 1: a broken network"
    if inside == "changed" and output.task != "regression" and output.activation != "none":
        return (
            f"such as a sigmoid times 100, a softmax minus 0.5, a negative logarithm or a tanh, so its numbers are neither "
            f"probabilities nor what an activation makes probabilities of, but {where}. Export the network without what follows "
            f'the activation, or say "activation": "none" in the card if the numbers are probabilities all the same'
        )
    if inside == "logarithm" or (inside == "log-softmax" and output.task not in ("binary", "multiclass")):
        return (
            f"which gives logarithms of probabilities, but {where}, and neither sigmoid nor softmax makes its numbers of "
            f"them. Export the network without the logarithm at its end, or let it give the numbers before the activation"
        )
    if output.task == "regression" and inside == "sigmoid" and (output.scale, output.offset) == (1.0, 0.0):
        return (
            f"a number between 0 and 1, but {where} in {output.unit}. If the authors trained on a scaled target, say how it was "
            f"scaled: --standardised MEAN,DEVIATION (0,100 where ages were divided by 100)"
        )
    if output.task in ("binary", "multiclass") and columns > 1 and inside == "sigmoid":
        return (
            f"so its {columns} numbers are probabilities of their own that do not exclude each other, or parts of more classes, "
            f"but {where}. "
            f"If each label can be present by itself, make it a multilabel output in the card"
        )
    if output.task == "multilabel" and inside == "softmax":
        return f"so only one label can be present, but {where}. Make it a multiclass output in the card"
    return ""


def output_notes(card: ModelCard) -> list[str]:
    """What each output's numbers mean, one sentence each, as it will be in the file."""
    found = []
    for output in card.outputs:
        numbers = f"{output.columns} number" + ("s" if output.columns != 1 else "")
        applied = "used as it is" if output.activation == "none" else f"{output.activation} is applied to the network's answer"
        if (output.scale, output.offset) != (1.0, 0.0):
            applied = f"times {output.scale:g}, plus {output.offset:g}"
        order = f"; in order: {', '.join(output.labels)}" if output.labels else ""
        found.append(f"output {output.name!r}: {numbers}, {applied}, in {output.unit}{order}")
    return found


def output_warnings(card: ModelCard, differences: list[OutputDifference]) -> list[str]:
    """What a reader should doubt about the outputs' meaning, one sentence each."""
    found = []
    for output in card.outputs:
        if output.labels_assumed:
            found.append(
                f"which number is which class of {output.name!r} was not published: {', '.join(output.labels)} is assumed, and "
                f"every result says so; say it with --labels"
            )
    for output, difference in zip(card.outputs, differences, strict=True):
        years = output.task == "regression" and output.unit == "years"
        if years and difference.lowest > -STANDARDISED and difference.highest < STANDARDISED:
            found.append(
                f"the photographs' answers run from {difference.lowest:.3g} to {difference.highest:.3g} years: the target was "
                f"probably standardised. Ask for its mean and deviation, and give them with --standardised MEAN,DEVIATION"
            )
    return found


def require_logits(stated: ModelCard, card: ModelCard, reference: Reference, file: str) -> None:
    """Refuse to apply an activation to numbers that already look like probabilities, unless the card says so itself.

    Args:
        stated: the card as it was given.
        card: the same with its activation resolved.
        reference: what the original answered.
        file: name of the checkpoint, for the message.

    Raises:
        UnsupportedCheckpointError: every number lies between 0 and 1 and the given card leaves the activation open.
    """
    for given, output in zip(stated.outputs, card.outputs, strict=True):
        numbers = reference.answers[output.name]
        open_activation = given.activation is None and output.activation in ("sigmoid", "softmax")
        if open_activation and len(numbers) > 1 and numbers.min() >= 0 and numbers.max() <= 1:
            raise UnsupportedCheckpointError(
                f"{file}: all numbers that the original gives for {output.name!r} lie between 0 and 1 ({numbers.min():.3g} to "
                f"{numbers.max():.3g}), as probabilities do, though its graph does not end with {output.activation}. Applied "
                f'twice it would be wrong. Say in the card which holds: "activation": "none" for probabilities, '
                f'"{output.activation}" for logits.'
            )
