"""Which preprocessing do the labels support, and how surely?"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fundus_rt.benchmarks.evaluation.candidates import Candidate, distinct, neighbours
from fundus_rt.benchmarks.evaluation.comparison import FEWEST, METRICS, Comparison, compared, holm, metric_of
from fundus_rt.benchmarks.evaluation.estimates import Values
from fundus_rt.models.card import OutputSpec

MOST_ROUNDS = 3
RESAMPLES = 5000
"""More than for an interval: the correction for many candidates needs small probabilities."""


@dataclass(frozen=True)
class CandidateAnswers:
    """What one round answered, for the photographs that every candidate answered."""

    values: Values
    """float64 [candidates, N, C]."""
    decided: NDArray[np.int64]
    """[candidates, N]."""
    truth: Values
    """float64 [N, T]."""
    clusters: NDArray[np.int64]
    """[N], patients from 0 without gaps."""


Ask = Callable[[Sequence[Candidate]], CandidateAnswers]


@dataclass(frozen=True)
class Round:
    """Every candidate against the best one so far."""

    base: str
    base_metric: float
    comparisons: tuple[Comparison, ...]


@dataclass(frozen=True)
class SearchResult:
    """What the labels say of the preprocessing."""

    metric: str
    photographs: int
    patients: int
    rounds: tuple[Round, ...]
    chosen: Candidate
    """What the labels support best; the card's own where they do not say."""
    rivals: tuple[str, ...]
    """Those that the labels cannot tell from it."""
    sure: bool
    """The labels speak: for another preprocessing than the card's, or against every other one."""
    sentence: str

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "metric": self.metric,
            "photographs": self.photographs,
            "patients": self.patients,
            "rounds": [dataclasses.asdict(part) for part in self.rounds],
            "chosen": self.chosen.name,
            "preprocessing": dataclasses.asdict(self.chosen.spec),
            "laterality": self.chosen.laterality,
            "rivals": list(self.rivals),
            "sure": self.sure,
            "sentence": self.sentence,
        }


def search_preprocessing(own: Candidate, fields: Sequence[str], output: OutputSpec, ask: Ask) -> SearchResult:
    """Try everything that differs from the card in one thing; where something is surely better, go on from there.

    Every probability is corrected for all comparisons that were made so far (Holm), so looking at many candidates does not by
    itself make one look good.

    Args:
        own: the card's preprocessing.
        fields: of `fundus_rt.benchmarks.evaluation.candidates.FIELDS`, what may be changed.
        output: what the labels are about.
        ask: answers all photographs with each of some candidates.
    """
    base, rounds, made = own, [], 0
    runners_up: list[Candidate] = []
    while True:
        tried = distinct([base, *neighbours(base, fields), *runners_up])
        answers = ask(tried)
        comparisons = _against_first(tried, answers, output, made)
        made += len(comparisons)
        rounds.append(Round(base.name, metric_of(answers.values[0], answers.truth, output), tuple(comparisons)))
        few = deciding_patients(answers, output) < FEWEST
        better = [] if few else sorted((c for c in comparisons if c.is_better), key=lambda c: -c.gain)
        if not better:
            break
        by_name = {candidate.name: candidate for candidate in tried}
        base, runners_up = by_name[better[0].candidate], [by_name[c.candidate] for c in better[1:]]
        if len(rounds) == MOST_ROUNDS:
            break
    left = tuple(c.candidate for c in rounds[-1].comparisons if c.candidate != base.name and (few or not c.is_worse))
    sure = not few and (base.identity != own.identity or not left)
    sentence = _sentence(own, base, rounds, left, output, answers)
    photographs = answers.truth.shape[0]
    return SearchResult(METRICS[output.task], photographs, _patients(answers), tuple(rounds), base, left, sure, sentence)


def _against_first(tried: Sequence[Candidate], answers: CandidateAnswers, output: OutputSpec, made: int) -> list[Comparison]:
    found = []
    for place in range(1, len(tried)):
        found.append(
            compared(
                (tried[place].name, tried[0].name),
                (answers.values[place], answers.values[0]),
                (answers.decided[place], answers.decided[0]),
                answers.truth,
                output,
                answers.clusters,
                RESAMPLES,
            )
        )
    adjusted = holm([comparison.probability for comparison in found], made + len(found))
    return [dataclasses.replace(one, adjusted=value) for one, value in zip(found, adjusted, strict=True)]


def _patients(answers: CandidateAnswers) -> int:
    return int(answers.clusters.max(initial=-1)) + 1


def deciding_patients(answers: CandidateAnswers, output: OutputSpec) -> int:
    """Patients that a comparison rests on: all for a number; else those of the rarer class.

    Of several labels that is the rarest one that has both kinds, of more than two classes everything but the commonest.
    """
    truth = answers.truth
    if output.task == "regression":
        return _patients(answers)
    if output.task == "multiclass":
        rare = truth[:, 0] != np.argmax(np.bincount(truth[:, 0].astype(np.int64)))
        return min(len(np.unique(answers.clusters[rare])), _patients(answers))
    kinds = [column == 1 for column in truth.T if (column == 1).any() and not (column == 1).all()]
    return min((len(np.unique(answers.clusters[part])) for kind in kinds for part in (kind, ~kind)), default=0)


def _sentence(
    own: Candidate, base: Candidate, rounds: Sequence[Round], left: Sequence[str], output: OutputSpec, answers: CandidateAnswers
) -> str:
    metric = METRICS[output.task]
    patients = deciding_patients(answers, output)
    if patients < FEWEST:
        whose = "" if output.task == "regression" else " of the rarer class"
        return (
            f"{patients} patients{whose} are too few to choose a preprocessing by: it takes {FEWEST} at least, and better some "
            "hundred"
        )
    rivals = f"; not told from it: {', '.join(left)}" if left else "; every other one is surely worse"
    if base.identity == own.identity:
        if not left:
            return f"The labels support the card's own preprocessing by the {metric}: every other candidate is surely worse"
        ruled_out = len(rounds[-1].comparisons) - len(left)
        return (
            f"The labels cannot tell the card's own preprocessing from {', '.join(left)} by the {metric}"
            f"{f'; {ruled_out} other(s) are surely worse' if ruled_out else ''}"
        )
    won = next(c for part in reversed(rounds) for c in part.comparisons if c.candidate == base.name)
    return (
        f"The labels support another preprocessing than the card's: {base.name}. Its {metric} is {won.metric:.4g}, better by "
        f"{won.gain:.3g} ({won.low:.3g} to {won.high:.3g}) than with {won.against}, corrected probability "
        f"{_probability(won.adjusted)}{rivals}"
    )


def _probability(value: float) -> str:
    return "below 0.001" if value < 0.001 else f"{value:.3f}"
