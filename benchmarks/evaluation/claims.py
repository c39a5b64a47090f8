"""Does a published figure hold on these photographs?"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from fundus_rt.benchmarks.evaluation.estimates import Estimate, Rate
from fundus_rt.benchmarks.evaluation.figures import QuestionFigures
from fundus_rt.benchmarks.evaluation.truths import Question
from fundus_rt.models.errors import UsageError

HOLDS, BETTER, WORSE = "holds", "better", "worse"
OPEN, UNKNOWN = "not contradicted", "cannot be told"
SHOWN = (HOLDS, BETTER)
"""Verdicts by which a claim is shown to hold."""
MARGIN, RELATIVE_MARGIN = 0.05, 0.15
"""How far the worse end of a measured interval may lie from a claim that holds: in the figure itself for those up to 1, as a
share of the claim for errors in a unit. A wider interval only does not contradict."""
_TWO_CLASSES = ("auc", "accuracy", "sensitivity", "specificity", "brier")
_CLAIMABLE = {
    "regression": ("mae", "rmse", "correlation"),
    "binary": _TWO_CLASSES,
    "multilabel": _TWO_CLASSES,
    "multiclass": ("accuracy", "quadratic_kappa"),
}
_RANGES = {
    **dict.fromkeys((*_TWO_CLASSES, "accuracy"), (0.0, 1.0)),
    **dict.fromkeys(("correlation", "quadratic_kappa"), (-1.0, 1.0)),
    **dict.fromkeys(("mae", "rmse"), (0.0, math.inf)),
}
"""What each figure can be."""
_LOWER_IS_BETTER = ("mae", "rmse", "brier")
_WORDS = {"qwk": "quadratic_kappa", "kappa": "quadratic_kappa"}


@dataclass(frozen=True)
class Claim:
    """A figure that somebody published."""

    output: str
    """Name of the output, or of a label of a multilabel one; empty: the only one that has such a figure."""
    figure: str
    """``mae``, ``auc``, ``accuracy``, ..."""
    value: float


@dataclass(frozen=True)
class ClaimVerdict:
    """What these photographs say of a claim."""

    claim: Claim
    measured: Estimate
    verdict: str
    """``holds``: the interval contains it, and its worse end lies within the margin; ``not contradicted``: that lies further off.
    ``better`` and ``worse``: the whole interval lies on that side of it."""
    sentence: str

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)


def claim_from_text(text: str) -> Claim:
    """``mae=2.39``, ``sex.auc=0.971`` or ``accuracy=91.2%``.

    Raises:
        UsageError: another form, no number, or one that the figure cannot have.
    """
    name, _, number = text.rpartition("=")
    output, _, figure = name.strip().rpartition(".")
    digits = number.strip()
    try:
        value = float(digits.rstrip("%")) / (100 if digits.endswith("%") else 1)
    except ValueError:
        value = math.nan
    if not figure or not math.isfinite(value):
        raise UsageError(f"got the claim {text!r}, expected NAME=NUMBER such as mae=2.39, auc=0.971 or sex.accuracy=91.2%")
    figure = _WORDS.get(figure.lower(), figure.lower())
    low, high = _RANGES.get(figure, (-math.inf, math.inf))
    if not low <= value <= high:
        hint = f"; write {value / 100:g} or {value:g}%" if 1 < value <= 100 and high == 1 else ""
        raise UsageError(f"got the claim {text!r}, but {figure.replace('_', ' ')} lies between {low:g} and {high:g}{hint}")
    return Claim(output, figure, value)


def require_claimable(claims: Sequence[Claim], questions: Sequence[Question]) -> None:
    """Refuse claims about nothing that will be measured, before hours of answering.

    Raises:
        UsageError: no question, or several, have such a figure.
    """
    for claim in claims:
        _place_of(claim, _claimable_names(questions))


def judged(claim: Claim, questions: Sequence[Question], figures: Mapping[str, QuestionFigures]) -> ClaimVerdict:
    """Hold a claim against what was measured.

    Args:
        claim: the published figure.
        questions: what was asked.
        figures: by output; one without a counted photograph is missing.

    Raises:
        UsageError: as `require_claimable`.
    """
    name = _place_of(claim, _claimable_names(questions))
    output, _, label = name.partition(".")
    measured = figures.get(output)
    part = measured.get(label) if isinstance(measured, dict) else measured
    found = getattr(part, claim.figure) if part is not None else Estimate(math.nan)
    found = found.estimate() if isinstance(found, Rate) else found
    verdict = _verdict(claim, found)
    what = f"{name} {claim.figure.replace('_', ' ')}"
    sentences = {
        HOLDS: f"{what}: measured {found}; the claim of {claim.value:g} holds",
        OPEN: f"{what}: measured {found}; the claim of {claim.value:g} lies inside and is not contradicted, but with so wide an "
        "interval it is not shown either: it takes more photographs",
        BETTER: f"{what}: measured {found}; better than the claim of {claim.value:g}",
        WORSE: f"{what}: measured {found}; WORSE than the claim of {claim.value:g}, which does not hold on these photographs",
        UNKNOWN: f"{what}: measured {found}; the photographs are too few to judge the claim of {claim.value:g}",
    }
    return ClaimVerdict(claim, found, verdict, sentences[verdict])


def _verdict(claim: Claim, measured: Estimate) -> str:
    if measured.low is None or measured.high is None or math.isnan(measured.value):
        return UNKNOWN
    if math.isclose(measured.low, measured.high, rel_tol=1e-9):  # an interval without width: resampling could not tell
        return UNKNOWN
    if measured.low <= claim.value <= measured.high:
        worse_end = measured.high if claim.figure in _LOWER_IS_BETTER else measured.low
        margin = RELATIVE_MARGIN * claim.value if _RANGES[claim.figure][1] == math.inf else MARGIN
        return HOLDS if abs(claim.value - worse_end) <= margin else OPEN
    return BETTER if (measured.high < claim.value) == (claim.figure in _LOWER_IS_BETTER) else WORSE


def _claimable_names(questions: Sequence[Question]) -> dict[str, tuple[str, ...]]:
    """By output, or output and label, the figures that a claim can name."""
    found = {}
    for question in questions:
        output = question.output
        labels = [f"{output.name}.{label}" for label in output.labels] if output.task == "multilabel" else [output.name]
        found.update(dict.fromkeys(labels, _CLAIMABLE[output.task]))
    return found


def _place_of(claim: Claim, named: Mapping[str, tuple[str, ...]]) -> str:
    fitting = [
        name for name, known in named.items() if claim.figure in known and claim.output in ("", name, name.rpartition(".")[2])
    ]
    if len(fitting) != 1:
        known = ", ".join(f"{name}.{figure}" for name, figures in named.items() for figure in figures)
        said = "several outputs have" if fitting else "no output has"
        raise UsageError(f"{said} the figure {claim.figure!r} of a claim; name one of {known}")
    return fitting[0]
