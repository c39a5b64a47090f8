"""A recipe: which nodes of one graph get which precision, with which ranges. Small, readable, and replayed to the same bytes."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fundus_rt.converters.backends import require
from fundus_rt.converters.precision.half_graph import write_half
from fundus_rt.converters.precision.heavy_nodes import multiplications
from fundus_rt.converters.precision.int8_graph import BACKENDS, LEVELS, activations_of, write_int8
from fundus_rt.converters.shipping import embed_card
from fundus_rt.models.card import CARD_KEY, ModelCard, card_from_json
from fundus_rt.models.errors import ModelFileError, UsageError

FORMAT = 3
"""Counts up when recipes are written, or the graphs made from them, in another way."""
MOSTLY = 0.9
"""From this share of the multiplications on, a file is called by the precision of its nodes; below, ``mixed``."""


@dataclass(frozen=True)
class Recipe:
    """How a lower precision is made from one float32 file."""

    graph_sha256: str
    """Of the float32 graph, `graph_digest`."""
    int8: tuple[str, ...] = ()
    """Nodes in int8, by the names of `heavy_nodes.named`, in the order of the graph."""
    fp16: tuple[str, ...] = ()
    """Nodes in half precision, by the same names; beside nodes in int8 only in what is written for TensorRT."""
    backend: str = "tensorrt"
    """What the file is written for, one of `int8_graph.BACKENDS`; the same nodes and ranges can be written for another."""
    weight_levels: int = LEVELS
    """Largest whole number of a weight in int8: 127, or 63 where a backend adds two products up in 16 bits."""
    ranges: dict[str, tuple[float, float]] = field(default_factory=dict)
    """By tensor, the least number, at most 0, and the largest, at least 0, that are kept as they are."""
    calibration: dict[str, Any] = field(default_factory=dict)
    """How the ranges were found: method, number of photographs, a digest of their contents. No names of files."""

    def to_json(self) -> str:
        """As text, one line for each range and node."""
        return json.dumps({"format": FORMAT, **dataclasses.asdict(self)}, indent=1, ensure_ascii=False) + "\n"

    @property
    def sha256(self) -> str:
        """Of `to_json`."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()


def read_recipe(path: Path) -> Recipe:
    """A recipe from its file.

    Raises:
        UsageError: it is not a recipe of this format.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        made = values.pop("format")
        if made != FORMAT:
            raise UsageError(
                f"{path.name} is a recipe of format {made}, expected {FORMAT}; make it anew with fundus-rt quantize FILE.onnx"
            )
        ranges = {name: (float(least), float(most)) for name, (least, most) in values["ranges"].items()}
        recipe = Recipe(**{**values, "int8": tuple(values["int8"]), "fp16": tuple(values["fp16"]), "ranges": ranges})
        sound = all(math.isfinite(most - least) and least <= 0 <= most and least < most for least, most in ranges.values())
        sound = sound and isinstance(recipe.weight_levels, int) and 1 <= recipe.weight_levels <= LEVELS
        sound = sound and all(isinstance(name, str) for name in (*recipe.int8, *recipe.fp16, recipe.graph_sha256))
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise UsageError(
            f"{path.name} is no recipe ({error}); make one with fundus-rt quantize FILE.onnx --precision int8"
        ) from error
    if recipe.backend not in BACKENDS or not sound or not _followable(recipe):
        raise UsageError(
            f"{path.name} is a recipe for {recipe.backend!r}, {len(recipe.int8)} nodes in int8 and {len(recipe.fp16)} in fp16; "
            f"expected one of {', '.join(BACKENDS)}, nodes in one of the two (both for TensorRT, each node once), weight_levels "
            f"of 1 to {LEVELS}, and ranges around 0"
        )
    return recipe


def _followable(recipe: Recipe) -> bool:
    """Whether there are nodes, each in one precision, and half precision beside int8 only where it is computed so."""
    if recipe.int8 and recipe.fp16:
        return recipe.backend == "tensorrt" and not set(recipe.int8) & set(recipe.fp16)
    return bool(recipe.int8 or recipe.fp16)


def graph_digest(model: Any) -> str:
    """SHA-256 of a graph with its weights, without the card, which may change without changing an answer."""
    return hashlib.sha256(model.graph.SerializeToString(deterministic=True)).hexdigest()


def shipped_model(path: Path) -> tuple[Any, ModelCard]:
    """The graph and the card of an ``.onnx`` file of this package in float32.

    Raises:
        ModelFileError: it is none, or its precision is lower already.
    """
    onnx = require("onnx")
    try:
        model = onnx.load(str(path))
    except Exception as error:  # onnx raises protobuf's own classes
        raise ModelFileError(f"{path.name} cannot be read as ONNX ({' '.join(str(error).split())[:200]})") from error
    text = next((entry.value for entry in model.metadata_props if entry.key == CARD_KEY), None)
    if text is None:
        raise ModelFileError(f"{path.name} carries no model card; expected an .onnx file written by fundus-rt convert")
    card = card_from_json(text, origin=f"the card in {path.name}")
    found = str(card.provenance.get("precision", "fp32"))
    if found != "fp32" or any(node.op_type == "DequantizeLinear" for node in model.graph.node):
        raise ModelFileError(f"{path.name} is in {found} already; give the float32 file that fundus-rt convert wrote")
    return model, card


def onnx_from_recipe(model: Any, card: ModelCard, recipe: Recipe) -> Any:
    """The graph that a recipe describes, with the card inside; the same bytes each time (`serialised`).

    The card keeps its canary, the original's answers to the drawn pictures: it vouches for the original, with room for rounding
    of a tenth of what the two answers lie apart. A file that does not stay within it is not the original to any purpose.

    Args:
        model: the float32 `onnx.ModelProto`; it stays as it is.
        card: the float32 file's.
        recipe: for this graph.

    Raises:
        UsageError: the recipe was written for another graph, or cannot be followed.
    """
    if recipe.graph_sha256 != graph_digest(model):
        raise UsageError("the recipe was written for another graph; make one for this file, or give the file it was made from")
    made = require("onnx").ModelProto()
    made.CopyFrom(model)
    if recipe.int8:
        needed = set(activations_of(model, recipe.int8))
        ranges = {k: v for k, v in recipe.ranges.items() if k in needed}
        write_int8(made, recipe.int8, ranges, recipe.backend, recipe.weight_levels)
    if recipe.fp16:
        write_half(made, recipe.fp16)
    lower = {"graph_sha256": recipe.graph_sha256, "recipe_sha256": recipe.sha256, "calibration": recipe.calibration}
    provenance = {**card.provenance, "precision": precision_of(model, recipe), "lower_precision": lower}
    embed_card(made, dataclasses.replace(card, provenance=provenance))
    return made


def precision_of(model: Any, recipe: Recipe) -> str:
    """``int8`` or ``fp16`` where at least `MOSTLY` of the multiplications are in it, else ``mixed``."""
    work = multiplications(model)
    for kind, nodes in (("int8", recipe.int8), ("fp16", recipe.fp16)):
        if sum(work.get(name, 0) for name in nodes) >= MOSTLY * max(1, sum(work.values())):
            return kind
    return "mixed"


def serialised(model: Any) -> bytes:
    """A model as bytes, the same ones for the same model."""
    return bytes(model.SerializeToString(deterministic=True))
