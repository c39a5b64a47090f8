"""Two sets of answers of one network held against each other: would any patient have had another answer?

Both sides are the network's own numbers, photograph by photograph, from two ways to compute them: the original framework and a
shipped file, or one file on two devices. They are compared where it matters to a patient: in the output's unit, and in what the
operating points make of it.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fundus_rt.models.card import OutputSpec
from fundus_rt.runtime.exact_bounds import clopper_pearson, rate_in_words
from fundus_rt.runtime.interpret import UNKNOWN, activate

Values = NDArray[np.float64]

RESOLUTION = 0.02
"""Largest difference of the network's own numbers, as a share of how far apart they lie between the photographs. It finds a wrong
network whose probabilities are as near to 0 and 1 as the right one's."""
COARSE = 0.1
"""The same, at most, where a lower precision's budget allows the numbers that much."""
STEEPEST = 0.25
"""Largest slope of a sigmoid, and of a softmax's probability by its own number: p * (1 - p) at one half."""
ROUNDING = 1e-5
"""A column that varies by less than this share of its largest number tells no photographs apart: float32's rounding."""
WORST = 10
"""How many of the worst photographs are named."""


@dataclass(frozen=True)
class OutputAgreement:
    """How two sets of answers agree in one output. The difference of a photograph is the largest one of its columns."""

    name: str
    task: str
    unit: str
    photographs: int
    mean: float
    """Of the photographs' differences, in `unit`; infinite where an answer is not finite."""
    percentile_95: float
    """95 % of the photographs differ by no more, in `unit`."""
    largest: float
    """In `unit`."""
    spread: float
    """Standard deviation of the reference's values over the photographs, in the column where it is largest, in `unit`."""
    largest_of_spread: float
    """`largest` divided by `spread`: what a nearly constant network cannot hide. Infinite where `spread` is 0."""
    beyond_tolerance: int
    """Photographs that differ by more than `tolerance`."""
    decisions_changed: int | None
    """Photographs that were decided otherwise; None for a regression, which decides nothing."""
    decisions_bound: float | None
    """Upper end of the exact two-sided 95 % interval of the rate of changed decisions, 0 to 1; None for a regression."""
    near_operating_point: int | None
    """Photographs whose reference lies no further from an operating point than `largest`; None for a regression."""
    weighted_kappa: float | None
    """Quadratic weighted kappa of the most probable classes in the card's order. None where the output has no more than two
    exclusive classes, or where both sides gave one and the same class to all, for which it is not defined."""
    changed: tuple[int, ...]
    """Indices of the photographs that were decided otherwise."""
    decisions_met: int | None
    """Different decisions among the reference's; None for a regression. With one, nothing is shown of any other."""
    worst: tuple[int, ...]
    """Indices of up to `WORST` photographs, the largest difference first."""
    tolerance: float
    """Largest difference that passes, in `unit`."""
    problems: tuple[str, ...]
    """Why the two sides do not agree, one sentence each; empty where they do."""

    @property
    def passed(self) -> bool:
        """Whether the two sides agree, and the photographs could have shown if they did not."""
        return not self.problems

    def to_dict(self) -> dict[str, Any]:
        """As JSON-ready values; a number that is not finite is None."""
        found = dataclasses.asdict(self)
        for key, value in found.items():
            if isinstance(value, float) and not math.isfinite(value):
                found[key] = None
            elif isinstance(value, tuple):
                found[key] = list(value)
        return {**found, "passed": self.passed}

    def __str__(self) -> str:
        kappa = "" if self.weighted_kappa is None else f", quadratic weighted kappa {self.weighted_kappa:.4f}"
        changed = self.beyond_tolerance if self.decisions_changed is None else self.decisions_changed
        what = f"beyond {self.tolerance:g} {self.unit}" if self.decisions_changed is None else "decisions changed"
        alike = "; all were decided alike, so nothing is shown of another decision" if self.decisions_met == 1 else ""
        return (
            f"{self.name}: {rate_in_words(changed, self.photographs, what)}{alike}{kappa}; difference in {self.unit}: mean "
            f"{self.mean:.2g}, 95th percentile {self.percentile_95:.2g}, largest {self.largest:.2g} (tolerance "
            f"{self.tolerance:g}; {self.largest_of_spread:.2g} of the answers' standard deviation {self.spread:.3g})"
        )


def values_in_unit(rows: NDArray[np.generic], output: OutputSpec) -> Values:
    """The network's numbers as a result states them: years, or probabilities.

    Args:
        rows: float32 [N, columns] as the network gives them.
        output: with its activation resolved.

    Returns:
        float64 [N, columns], by the rules of `fundus_rt.runtime.interpret`.
    """
    numbers = np.asarray(rows, np.float64)
    if numbers.ndim != 2:
        raise ValueError(f"{output.name}: got an array of shape {list(numbers.shape)}, expected [photographs, columns]")
    if output.task == "regression":
        return numbers * output.scale + output.offset
    if not len(numbers):
        return numbers
    with np.errstate(invalid="ignore", over="ignore"):
        return np.stack([activate(row, output.activation or "none") for row in numbers])


def decisions(values: Values, output: OutputSpec) -> list[str]:
    """What the operating points make of values, by the rules of `fundus_rt.runtime.interpret`.

    Args:
        values: float64 [N, columns] from `values_in_unit`.
        output: with labels and threshold.

    Returns:
        N decisions; empty for a regression, which decides nothing.
    """
    if output.task == "regression":
        return []
    threshold = 0.5 if output.threshold is None else output.threshold
    if output.task == "binary":
        return [output.labels[int(probability >= threshold)] for probability in values[:, -1]]
    if output.task == "multilabel":
        return [
            ", ".join(label for label, value in zip(output.labels, row, strict=True) if value >= threshold) or "none"
            for row in values
        ]
    best = values.argmax(axis=1)
    sure = np.full(len(values), True) if output.threshold is None else values.max(axis=1) >= output.threshold
    return [output.labels[column] if said else UNKNOWN for column, said in zip(best, sure, strict=True)]


def margins(values: Values, output: OutputSpec) -> Values:
    """How far each photograph's answer lies from where it would be decided otherwise.

    Args:
        values: float64 [N, columns] from `values_in_unit`.
        output: with labels and threshold.

    Returns:
        float64 [N], in the output's unit: as long as no column moves by as much, the decision stays. NaN for a regression.
    """
    if output.task == "regression" or not len(values):
        return np.full(len(values), np.nan)
    threshold = 0.5 if output.threshold is None else output.threshold
    if output.task == "binary":
        return np.abs(values[:, -1] - threshold)
    if output.task == "multilabel":
        return np.asarray(np.abs(values - threshold).min(axis=1))
    ordered = np.sort(values, axis=1)
    gap = (ordered[:, -1] - ordered[:, -2]) / 2
    if output.threshold is None:
        return gap
    above = ordered[:, -1] - output.threshold
    return np.where(above >= 0, np.minimum(gap, above), -above)  # while it is unknown, which class is first does not matter


def agreement(
    name: str,
    reference: NDArray[np.generic],
    found: NDArray[np.generic],
    output: OutputSpec,
    tolerance: float | None = None,
    found_output: OutputSpec | None = None,
) -> OutputAgreement:
    """Hold one side's numbers against the reference's.

    Args:
        name: what to call the output in sentences.
        reference: float32 [N, columns], the network's numbers before any activation.
        found: the same for the same photographs from the side that is examined.
        output: what the numbers mean, with its activation resolved.
        tolerance: largest difference in the output's unit that passes; None for the card's.
        found_output: what the examined side's own card makes of its numbers, where that may be another; None for the same.

    Returns:
        Figures and problems. It does not pass where an answer is not finite, a difference is beyond the tolerance, a decision
        changed, the reference is the same for all photographs, so that nothing can be proved on them, or the numbers are apart
        by more than `RESOLUTION` of what tells the photographs apart.

    Raises:
        ValueError: the two sides have different shapes.
    """
    before, after = np.asarray(reference, np.float64), np.asarray(found, np.float64)
    _require_same_shape(name, before, after)
    own = output if found_output is None else found_output
    return _agreement(
        name, (before, after), (values_in_unit(before, output), values_in_unit(after, own)), (output, own), tolerance
    )


def agreement_of_values(
    name: str, reference: Values, found: Values, output: OutputSpec, tolerance: float | None = None
) -> OutputAgreement:
    """As `agreement`, for values that are in the output's unit already, as results state them.

    Args:
        name, output, tolerance: as `agreement`.
        reference, found: float64 [N, columns]; for a binary output one column, the probability of the second label, or two.
    """
    before, after = np.asarray(reference, np.float64), np.asarray(found, np.float64)
    _require_same_shape(name, before, after)
    return _agreement(name, (before, after), (before, after), (output, output), tolerance)


def _require_same_shape(name: str, reference: Values, found: Values) -> None:
    if reference.ndim != 2 or reference.shape != found.shape:
        raise ValueError(
            f"{name}: got answers of shape {list(found.shape)} against a reference of {list(reference.shape)}, expected the same "
            f"[photographs, columns]"
        )


def _agreement(
    name: str,
    numbers: tuple[Values, Values],
    values: tuple[Values, Values],
    outputs: tuple[OutputSpec, OutputSpec],
    tolerance: float | None,
) -> OutputAgreement:
    """Each pair is the reference's and the examined side's."""
    reference, found, output = *values, outputs[0]
    limit = output.tolerance if tolerance is None else tolerance
    finite = np.logical_and.reduce([np.isfinite(side).all(axis=1) for side in (*numbers, *values)])
    apart = np.full(len(reference), np.inf)
    apart[finite] = np.abs(found[finite] - reference[finite]).max(axis=1)
    largest = float(apart.max()) if len(apart) else math.inf
    spread = float(reference[finite].std(axis=0).max()) if finite.any() else 0.0
    said = list(zip(decisions(reference, output), decisions(found, outputs[1]), strict=True))
    changed = tuple(index for index, (before, after) in enumerate(said) if before != after or not finite[index])
    decides = output.task != "regression"
    beyond = int(np.count_nonzero(~(apart <= limit)))
    budget = limit if limit > output.tolerance else 0.0
    problems = _problems(name, *numbers, finite, _in_numbers(budget, output))
    if finite.any() and not apart[finite].max() <= limit:
        problems.append(
            f"{name}: the largest difference is {apart[finite].max():.3g} {output.unit}, beyond the tolerance of {limit:g}; "
            f"{beyond} of {len(apart)} photographs are beyond it"
        )
    if changed:
        problems.append(f"{name}: {rate_in_words(len(changed), len(apart), 'decisions changed')}")
    return OutputAgreement(
        name=name,
        task=output.task,
        unit=output.unit,
        photographs=len(apart),
        mean=float(apart.mean()) if len(apart) else math.inf,
        percentile_95=_percentile_95(apart),
        largest=largest,
        spread=spread,
        largest_of_spread=largest / spread if spread > 0 else math.inf,
        beyond_tolerance=beyond,
        decisions_changed=len(changed) if decides else None,
        decisions_bound=clopper_pearson(len(changed), len(apart))[1] if decides else None,
        near_operating_point=int(np.count_nonzero(margins(reference, output)[finite] <= largest)) if decides else None,
        weighted_kappa=_weighted_kappa(reference[finite], found[finite], outputs),
        changed=changed,
        decisions_met=len({before for before, _ in said}) if decides else None,
        worst=tuple(int(index) for index in np.argsort(-apart, kind="stable")[:WORST]),
        tolerance=limit,
        problems=tuple(problems),
    )


def _percentile_95(apart: Values) -> float:
    """A difference that was measured, and that at least 95 % do not exceed."""
    if not len(apart):
        return math.inf
    return float(np.percentile(apart, 95, method="higher"))


def _in_numbers(budget: float, output: OutputSpec) -> float:
    """How far the network's own numbers may be apart so that no answer moves by more than a budget in the output's unit."""
    if output.task == "regression":
        return budget / abs(output.scale)
    return budget if output.activation in (None, "none") else budget / STEEPEST


def _problems(name: str, reference: Values, found: Values, finite: NDArray[np.bool_], budget: float) -> list[str]:
    """What the network's own numbers show: not finite, nothing to prove on, or too far apart.

    `budget` is what a lower precision may move them by; 0 where there is none.
    """
    if not len(reference):
        return [f"{name}: no photograph was answered by both sides, so nothing is proved"]
    problems = []
    for who, side in (("the reference", reference), ("the examined side", found)):
        broken = np.count_nonzero(~np.isfinite(side).all(axis=1))
        if broken:
            problems.append(f"{name}: {who} answered {broken} of {len(side)} photographs with NaN or infinity")
    reference, found = reference[finite], found[finite]
    if not len(reference):
        return problems
    between = np.ptp(reference, axis=0)
    telling = between > ROUNDING * np.abs(reference).max(axis=0)
    if not telling.any():
        few = (
            "there is one photograph only" if len(finite) == 1 else f"the reference is the same for all {len(finite)} photographs"
        )
        return [*problems, f"{name}: {few}, so nothing can be proved; give photographs whose answers differ"]
    shares = np.abs(found - reference).max(axis=0)[telling] / between[telling]
    allowed = np.clip(budget / between[telling], RESOLUTION, COARSE)
    worst = int(np.argmax(shares / allowed))
    if shares[worst] > allowed[worst]:
        problems.append(
            f"{name}: the network's own numbers are apart by {100 * shares[worst]:.3g} % of what tells the photographs apart, "
            f"more than {100 * allowed[worst]:.3g} %"
        )
    return problems


def _weighted_kappa(reference: Values, found: Values, outputs: tuple[OutputSpec, OutputSpec]) -> float | None:
    """Cohen's kappa with quadratic weights (Cohen, Psychological Bulletin 70, 1968) of the most probable labels."""
    labels, own = outputs[0].labels, outputs[1].labels
    if outputs[0].task != "multiclass" or len(labels) < 3 or not len(reference) or set(own) != set(labels):
        return None
    classes = len(labels)
    place = np.array([labels.index(label) for label in own])
    counts = np.zeros((classes, classes))
    np.add.at(counts, (reference.argmax(axis=1), place[found.argmax(axis=1)]), 1)
    weights = np.subtract.outer(np.arange(classes), np.arange(classes)).astype(np.float64) ** 2
    by_chance = np.outer(counts.sum(axis=1), counts.sum(axis=0)) / len(reference)
    expected = float((weights * by_chance).sum())
    return 1.0 - float((weights * counts).sum()) / expected if expected > 0 else None
