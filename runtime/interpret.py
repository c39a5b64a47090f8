"""From the network's numbers to an answer with unit and label."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fundus_rt.models.card import ModelCard, OutputSpec

UNKNOWN = "unknown"
"""Decision of a multiclass output whose most probable class stays below the card's threshold."""


@dataclass(frozen=True)
class Prediction:
    """One output of one picture.

    ``value`` is in ``unit``: the regressed quantity, or the probability of ``label``, which for a binary output is always the
    second label of the card, whatever was decided. ``decision`` is what the operating point of the card makes of it (None for
    a regression). ``probabilities`` are by label, 0 to 1; that of the decision is ``probabilities[decision]``.
    """

    value: float
    unit: str
    label: str | None = None
    decision: str | None = None
    probabilities: dict[str, float] | None = None

    def to_dict(self) -> dict[str, Any]:
        """As it stands in a result row; keys without a value are left out."""
        found: dict[str, Any] = {"value": round(self.value, 6), "unit": self.unit}
        if self.decision is not None:
            found["label"] = self.label
            found["decision"] = self.decision
        if self.probabilities is not None:
            found["probabilities"] = {k: round(v, 6) for k, v in self.probabilities.items()}
        return found


def interpret(rows: dict[str, NDArray[np.float32]], card: ModelCard) -> dict[str, Prediction]:
    """Predictions of one picture.

    Args:
        rows: float32 [columns] per output name, as the network gave them.
        card: the model's card; its activations are applied here.
    """
    return {output.name: _predict(rows[output.name].astype(np.float64), output) for output in card.outputs}


def _predict(row: NDArray[np.float64], output: OutputSpec) -> Prediction:
    if output.task == "regression":
        return Prediction(float(row[0]) * output.scale + output.offset, output.unit)
    values = activate(row, output.activation or "none")
    if output.task == "binary" and len(values) == 1:
        values = np.array([1.0 - values[0], values[0]])
    probabilities = {label: float(p) for label, p in zip(output.labels, values, strict=True)}
    threshold = 0.5 if output.threshold is None else output.threshold
    if output.task == "binary":
        second = output.labels[1]
        said = second if probabilities[second] >= threshold else output.labels[0]
        return Prediction(probabilities[second], output.unit, second, said, probabilities)
    best = output.labels[int(np.argmax(values))]
    if output.task == "multilabel":
        said = ", ".join(label for label, p in probabilities.items() if p >= threshold) or "none"
    else:
        said = best if output.threshold is None or probabilities[best] >= output.threshold else UNKNOWN
    return Prediction(probabilities[best], output.unit, best, said, probabilities)


def activate(row: NDArray[np.float64], activation: str) -> NDArray[np.float64]:
    """Apply what is still to be applied to logits [columns]: ``none``, ``sigmoid`` or ``softmax``; float64, stable."""
    if activation == "sigmoid":
        return np.exp(-np.logaddexp(0.0, -row))
    if activation == "softmax":
        shifted = np.exp(row - row.max())
        return np.asarray(shifted / shifted.sum())
    return row
