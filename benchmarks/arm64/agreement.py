"""The rows of two machines held against each other, photograph by photograph, in the output's own unit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fundus_rt.models.card import ModelCard

Row = Mapping[str, Any]


def compared(card: ModelCard, ours: Sequence[Row], theirs: Sequence[Row]) -> dict[str, Any]:
    """Hold every answer of one machine against the other's.

    Args:
        card: of the model; its outputs' tolerances are the bound.
        ours: rows of ``infer --format jsonl`` on this machine.
        theirs: those of the other machine, of the same photographs in the same order.

    Returns:
        ``photographs``; ``outputs``, for each the unit, the largest difference, its tolerance and the decisions that differ;
        ``field_of_view``, the largest difference of centre and radius in pixels; ``problems``, one sentence for each thing that
        must not be, empty where the two agree.
    """
    names = [row["file"].rpartition("/")[2] for row in ours]
    if names != [row["file"].rpartition("/")[2] for row in theirs]:
        return {"photographs": len(ours), "problems": [f"{len(ours)} rows here, {len(theirs)} there, of other photographs"]}
    problems = [] if ours else ["no photograph was answered"]
    apart = 0.0
    pairs = []
    for name, one, other in zip(names, ours, theirs, strict=True):
        if one["error"] or other["error"]:
            problems.append(f"{name}: {one['error'] or 'answered'} here, {other['error'] or 'answered'} there")
            continue
        pairs.append((name, one, other))
        apart = max(apart, _field_apart(one["field_of_view"], other["field_of_view"]))
        for part in ("sha256", "eye"):
            if one[part] != other[part]:
                problems.append(f"{name}: {part} is {one[part]} here, {other[part]} there")
    outputs = {}
    for spec in card.outputs:
        differences = {name: _difference(one["outputs"][spec.name], other["outputs"][spec.name]) for name, one, other in pairs}
        changed = [name for name, one, other in pairs if _decided(one, spec.name) != _decided(other, spec.name)]
        largest = float(np.max([0.0, *differences.values()]))
        outputs[spec.name] = {
            "unit": spec.unit,
            "largest_difference": round(largest, 7),  # rows have six places
            "tolerance": spec.tolerance,
            "decisions_changed": len(changed),
        }
        problems += [f"{name}: another decision of {spec.name}" for name in changed]
        problems += [
            f"{name}: {spec.name} differs by {value:.3g} {spec.unit}, tolerance {spec.tolerance:g}"
            for name, value in differences.items()
            if not value <= spec.tolerance
        ]
    return {"photographs": len(ours), "outputs": outputs, "field_of_view_pixels": apart, "problems": problems}


def _decided(row: Row, output: str) -> Any:
    return row["outputs"][output].get("decision")


def _difference(one: Row, other: Row) -> float:
    """Largest difference of an output's numbers, in its unit: of every class, where there are classes."""
    classes = one.get("probabilities")
    if not classes:
        return abs(float(one["value"]) - float(other["value"]))
    if set(classes) != set(other["probabilities"]):
        return float("inf")
    found = [abs(float(classes[label]) - float(other["probabilities"][label])) for label in classes]
    return float(np.max(found))  # a NaN stays one


def _field_apart(one: Row, other: Row) -> float:
    numbers = zip([*one["center"], one["radius"]], [*other["center"], other["radius"]], strict=True)
    return max(abs(float(a) - float(b)) for a, b in numbers)
