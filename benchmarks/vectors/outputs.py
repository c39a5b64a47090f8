"""Vectors of what a network's numbers mean: activations by SciPy, thresholds, units."""

from __future__ import annotations

from typing import Any

import numpy as np

from fundus_rt.benchmarks.extras import require_proof

Vector = dict[str, Any]

_GRADES = ["0", "1", "2", "3", "4"]
_AGE: Vector = {"task": "regression", "unit": "years", "labels": [], "activation": "none", "threshold": None}
_SEX: Vector = {"task": "binary", "unit": "probability", "labels": ["female", "male"], "scale": 1.0, "offset": 0.0}
_GRADE: Vector = {"task": "multiclass", "unit": "probability", "labels": _GRADES, "scale": 1.0, "offset": 0.0}
_FINDINGS: Vector = {
    "task": "multilabel", "unit": "probability", "labels": ["glaucoma", "drusen", "myopia"], "scale": 1.0, "offset": 0.0,
}  # fmt: skip
_CASES: tuple[tuple[Vector, list[float]], ...] = (
    ({**_AGE, "scale": 1.0, "offset": 0.0}, [53.25]),
    ({**_AGE, "scale": 12.5, "offset": 58.0}, [-0.75]),
    ({**_SEX, "activation": "sigmoid", "threshold": None}, [-0.8125]),
    ({**_SEX, "activation": "sigmoid", "threshold": None}, [0.0]),
    ({**_SEX, "activation": "sigmoid", "threshold": 0.25}, [-0.8125]),
    ({**_SEX, "activation": "sigmoid", "threshold": None}, [-800.0]),
    ({**_SEX, "activation": "none", "threshold": 0.375}, [0.375]),
    ({**_SEX, "activation": "none", "threshold": 0.375}, [0.25]),
    ({**_SEX, "activation": "softmax", "threshold": None}, [1.5, -0.25]),
    ({**_GRADE, "activation": "softmax", "threshold": None}, [0.5, 2.25, 2.0, -1.0, -3.5]),
    ({**_GRADE, "activation": "softmax", "threshold": 0.625}, [0.5, 2.25, 2.0, -1.0, -3.5]),
    ({**_GRADE, "activation": "softmax", "threshold": None}, [900.0, 901.5, 899.0, 0.0, -900.0]),
    ({**_GRADE, "activation": "none", "threshold": None}, [0.25, 0.25, 0.125, 0.125, 0.25]),
    ({**_FINDINGS, "activation": "sigmoid", "threshold": None}, [1.25, -0.5, 0.0]),
    ({**_FINDINGS, "activation": "sigmoid", "threshold": 0.875}, [1.25, -0.5, 0.0]),
)


def output_vectors() -> Vector:
    """What each set of numbers means.

    Raises:
        BackendUnavailableError: SciPy is not installed.
    """
    return {"cases": [{"output": output, "numbers": row, "expected": _meaning(output, row)} for output, row in _CASES]}


def _meaning(output: Vector, row: list[float]) -> Vector:
    if output["task"] == "regression":
        return {"value": row[0] * output["scale"] + output["offset"], "label": None, "decision": None, "probabilities": None}
    shares = _activated(output["activation"], row)
    labels, threshold = output["labels"], output["threshold"]
    if output["task"] == "binary":
        second = shares[-1]
        shares = [1 - second, second] if len(row) == 1 else shares
        label, decision = labels[1], labels[int(second >= (0.5 if threshold is None else threshold))]
    else:
        best = int(np.argmax(shares))
        label = labels[best]
        if output["task"] == "multiclass":
            decision = label if threshold is None or shares[best] >= threshold else "unknown"
        else:
            passed = [name for name, p in zip(labels, shares, strict=True) if p >= (0.5 if threshold is None else threshold)]
            decision = ", ".join(passed) or "none"
    probabilities = {name: float(f"{p:.12g}") for name, p in zip(labels, shares, strict=True)}
    return {"value": probabilities[label], "label": label, "decision": decision, "probabilities": probabilities}


def _activated(activation: str, row: list[float]) -> list[float]:
    special = require_proof("scipy.special")
    numbers = np.asarray(row, np.float64)
    return [float(p) for p in {"sigmoid": special.expit, "softmax": special.softmax, "none": np.asarray}[activation](numbers)]
