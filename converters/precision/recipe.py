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
from fundus_rt.converters.precision.int8_graph import activations_of, write_int8
from fundus_rt.converters.shipping import embed_card
from fundus_rt.models.card import CARD_KEY, ModelCard, card_from_json
from fundus_rt.models.errors import ModelFileError, UsageError

FORMAT = 1
"""Counts up when recipes are written, or the graphs made from them, in another way."""
PLACEMENTS = ("around", "behind")
"""Where pairs stand at an activation behind a layer: ``around`` it, for ONNX Runtime, or ``behind`` it, for OpenVINO and
TensorRT; see `int8_graph`."""
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
    """Nodes in half precision; a recipe has either these or `int8`."""
    placement: str = "behind"
    """One of `PLACEMENTS`."""
    ranges: dict[str, float] = field(default_factory=dict)
    """By tensor, the number that 127 stands for."""
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
        recipe = Recipe(**{**values, "int8": tuple(values["int8"]), "fp16": tuple(values["fp16"])})
        sound = all(isinstance(v, (int, float)) and math.isfinite(v) and v > 0 for v in recipe.ranges.values())
        sound = sound and all(isinstance(name, str) for name in (*recipe.int8, *recipe.fp16, recipe.graph_sha256))
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise UsageError(
            f"{path.name} is no recipe ({error}); make one with fundus-rt quantize FILE.onnx --precision int8"
        ) from error
    if made != FORMAT or recipe.placement not in PLACEMENTS or not sound or bool(recipe.int8) == bool(recipe.fp16):
        raise UsageError(
            f"{path.name} is a recipe of format {made} with placement {recipe.placement!r}, {len(recipe.int8)} nodes in int8 and "
            f"{len(recipe.fp16)} in fp16; expected format {FORMAT}, one of {', '.join(PLACEMENTS)}, nodes in one of the two, and "
            "ranges above 0"
        )
    return recipe


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
        write_int8(made, recipe.int8, {k: v for k, v in recipe.ranges.items() if k in needed}, recipe.placement == "around")
    else:
        write_half(made, recipe.fp16)
    lower = {"graph_sha256": recipe.graph_sha256, "recipe_sha256": recipe.sha256, "calibration": recipe.calibration}
    provenance = {**card.provenance, "precision": precision_of(model, recipe), "lower_precision": lower}
    embed_card(made, dataclasses.replace(card, provenance=provenance))
    return made


def precision_of(model: Any, recipe: Recipe) -> str:
    """``int8``, ``fp16``, or ``mixed`` where less than `MOSTLY` of the multiplications are in it."""
    work = multiplications(model)
    inside = set(recipe.int8) | set(recipe.fp16)
    share = sum(count for name, count in work.items() if name in inside) / max(1, sum(work.values()))
    return "mixed" if share < MOSTLY else "int8" if recipe.int8 else "fp16"


def serialised(model: Any) -> bytes:
    """A model as bytes, the same ones for the same model."""
    return bytes(model.SerializeToString(deterministic=True))
