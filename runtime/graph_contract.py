"""What a shipped ONNX file has to be, whatever opens it: a card in its metadata, and a graph that the card describes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from fundus_rt.models.card import CARD_KEY, ModelCard, card_from_json
from fundus_rt.models.errors import CardError, ModelFileError

Shape = Sequence[object]
"""Whole numbers, and anything else for an axis that is free."""


def card_of(metadata: Mapping[str, str], path: Path) -> ModelCard:
    """The card in a file's metadata.

    Raises:
        ModelFileError: there is none, or it is damaged.
    """
    text = metadata.get(CARD_KEY)
    if text is None:
        raise ModelFileError(
            f"{path.name} carries no model card ({CARD_KEY}): it was not written by this package. "
            "Convert the original checkpoint with `fundus-rt convert CHECKPOINT --card NAME`."
        )
    try:
        return card_from_json(text, origin=f"the card in {path.name}")
    except CardError as error:
        raise ModelFileError(str(error)) from error


def require_contract(card: ModelCard, inputs: Mapping[str, tuple[str, Shape]], outputs: Mapping[str, Shape], path: Path) -> None:
    """Refuse a graph that its card does not describe.

    Args:
        card: of the file.
        inputs: by name, element type in NumPy's words and shape.
        outputs: by name, shape.
        path: of the file, for the message.

    Raises:
        ModelFileError: with every difference.
    """
    problems = []
    height, width = card.preprocessing.input_size
    if list(inputs) != ["frames"]:
        problems.append(f"inputs are {sorted(inputs)}, expected one named 'frames'")
    else:
        kind, shape = inputs["frames"]
        if kind != card.preprocessing.input_dtype:
            problems.append(f"input is {kind}, the card says {card.preprocessing.input_dtype}")
        if not shape or isinstance(shape[0], int):
            problems.append(f"the batch size is fixed to {shape[0] if shape else 'none'}, expected any")
        if list(shape[1:]) != [height, width, 3]:
            problems.append(f"input is {list(shape)}, the card says [N, {height}, {width}, 3]")
    wanted = [*(output.name for output in card.outputs), "receipt"]
    problems += [f"output {name!r} is missing" for name in wanted if name not in outputs]
    for output in card.outputs:
        found = outputs.get(output.name, [output.columns])
        if not found or found[-1] != output.columns:
            problems.append(f"output {output.name!r} has shape {list(found)}, the card says {output.columns} columns")
        if output.activation is None:
            problems.append(f"the card does not say which activation output {output.name!r} still needs")
    if problems:
        listing = "\n".join(f"  - {p}" for p in problems)
        raise ModelFileError(f"{path.name}: graph and card disagree; convert the checkpoint again:\n{listing}")
