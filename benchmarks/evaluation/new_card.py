"""A card, and a file with the same network, that carry another operating point. Nothing that is there already is changed."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path

from fundus_rt.benchmarks.evaluation.operating_points import OperatingPoint
from fundus_rt.converters.backends import require
from fundus_rt.converters.shipping import embed_card
from fundus_rt.models.artifacts import atomic_path
from fundus_rt.models.card import ModelCard
from fundus_rt.models.errors import UsageError


def require_new(path: Path, suffix: str) -> None:
    """Refuse a name that is taken, of another kind, or in a folder that is not there.

    Raises:
        UsageError: one of these.
    """
    if path.suffix != suffix:
        raise UsageError(f"got {path.name}, expected a name that ends in {suffix}")
    if path.exists():
        raise UsageError(f"{path} exists already and is not changed; give another name")
    if not path.parent.is_dir():
        raise UsageError(f"{path} cannot be written: the folder {path.parent} does not exist; create it")


def with_operating_points(card: ModelCard, points: Mapping[str, OperatingPoint]) -> ModelCard:
    """The card with other thresholds, and how they were chosen in its provenance.

    Args:
        card: of the evaluated file.
        points: by the name of a binary output.

    Raises:
        UsageError: an output that the card does not have or that is not binary.
    """
    binary = {output.name for output in card.outputs if output.task == "binary"}
    wrong = [name for name in points if name not in binary]
    if wrong or not points:
        raise UsageError(
            f"a card holds an operating point for a question with two classes; {card.name} has {', '.join(binary) or 'none'}, "
            f"and one was chosen for {', '.join(points) or 'none'}"
        )
    outputs = tuple(
        dataclasses.replace(output, threshold=points[output.name].threshold) if output.name in points else output
        for output in card.outputs
    )
    chosen = {name: {**point.to_dict(), "date": datetime.now(timezone.utc).date().isoformat()} for name, point in points.items()}
    earlier = card.provenance.get("operating_points", {})
    provenance = {**card.provenance, "operating_points": {**earlier, **chosen}}
    return dataclasses.replace(card, outputs=outputs, provenance=provenance).validate()


def write_card(card: ModelCard, path: Path) -> None:
    """Write a card as JSON.

    Raises:
        UsageError: see `require_new`.
    """
    require_new(path, ".json")
    with atomic_path(path) as temporary:
        temporary.write_text(card.to_json() + "\n", encoding="utf-8")


def write_onnx(model: Path, card: ModelCard, path: Path) -> None:
    """Write the network of a shipped file with another card in it.

    Args:
        model: the evaluated ``.onnx`` file; only read.
        card: what the new file carries.
        path: the new file.

    Raises:
        UsageError: see `require_new`; or the evaluated file is an engine, which cannot carry another card.
        BackendUnavailableError: the package onnx is missing.
    """
    require_new(path, ".onnx")
    if model.suffix != ".onnx":
        raise UsageError(f"{model.name} is no .onnx file; evaluate the .onnx that it was built from to write another one")
    onnx = require("onnx")
    network = onnx.load(str(model))
    embed_card(network, card)
    with atomic_path(path) as temporary:
        onnx.save(network, str(temporary))
