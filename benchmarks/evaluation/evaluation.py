"""How good a model is on the user's labelled photographs: every question that the table of labels can ask."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from fundus_rt.benchmarks.evaluation.answers import (
    Answered,
    QuestionAnswers,
    answer_options,
    answer_photographs,
    join_answers,
)
from fundus_rt.benchmarks.evaluation.claims import Claim, ClaimVerdict, judged, require_claimable
from fundus_rt.benchmarks.evaluation.estimates import RESAMPLES
from fundus_rt.benchmarks.evaluation.figures import QuestionFigures, figures_of, referral_answers, two_class_answers
from fundus_rt.benchmarks.evaluation.groups import GroupFigures, group_figures
from fundus_rt.benchmarks.evaluation.labels import LabelTable
from fundus_rt.benchmarks.evaluation.operating_points import FEWEST_OF_EACH, OperatingPoint, operating_point, why_too_few
from fundus_rt.benchmarks.evaluation.preprocessing_search import SearchResult
from fundus_rt.benchmarks.evaluation.two_classes import TwoClassAnswers, TwoClassFigures, two_class_figures
from fundus_rt.models.errors import UsageError
from fundus_rt.runtime.pipeline import Pipeline

ANSWERS_NAME = "answers.jsonl"
Progress = Callable[[str, int], AbstractContextManager[Callable[[int], None]]]
"""Shows long work: given what is done and how much of it there is; its value is called with how much is done."""


@dataclass(frozen=True)
class EvaluationOptions:
    """What is to be measured beside the figures of every task."""

    sensitivity: float | None = None
    """Choose operating points that reach it."""
    aim: str = "bound"
    """What has to reach it, see `fundus_rt.benchmarks.evaluation.operating_points.AIMS`."""
    referable: str | None = None
    """The least grade that is referred: also measure it or worse as two classes."""
    new_card: bool = False
    """The operating point of an output with two classes is to be written into a new card."""
    claims: tuple[Claim, ...] = ()
    resamples: int = RESAMPLES


@dataclass
class QuestionResult:
    """Everything that was measured of one output."""

    answers: QuestionAnswers
    figures: QuestionFigures
    groups: list[GroupFigures]
    points: dict[str, OperatingPoint | str]
    """By question with two classes: its operating point, or why there is none."""
    referral: TwoClassFigures | None
    notes: list[str]


@dataclass
class Evaluation:
    """What was measured."""

    pipeline: Pipeline
    answered: Answered
    results: dict[str, QuestionResult]
    """By output; those without a single counted photograph are missing."""
    claims: list[ClaimVerdict]
    search: SearchResult | None = None
    """Which preprocessing the labels support; None where nothing was compared."""
    search_notes: list[str] = field(default_factory=list)

    @property
    def counted(self) -> int:
        """Lines that count for at least one question."""
        return len({int(line) for result in self.results.values() for line in result.answers.lines})


def answered_photographs(
    pipeline: Pipeline,
    table: LabelTable,
    folder: Path,
    resume: bool,
    workers: int,
    batch: int,
    mirrored_by_source: bool,
    progress: Progress,
) -> Answered:
    """Ask the model about every labelled photograph; finished answers are kept in the folder at once.

    Args:
        pipeline: the opened model.
        table: the labels.
        folder: where ``answers.jsonl`` is written.
        resume: go on with the one that is there.
        workers: photographs at once.
        batch: photographs in one inference.
        mirrored_by_source: as for ``fundus-rt infer``.
        progress: shows the work.

    Raises:
        UsageError: there are answers in the folder and `resume` is not given, or no line can be used.
        StoppedError: what computes cannot be trusted any more.
    """
    if len(table.problems) == len(table):
        line, problem = next(iter(table.problems.items()))
        raise UsageError(f"no line of {table.path.name} can be used; the first says (line {table.numbers[line]}): {problem}")
    options = answer_options(table, mirrored_by_source)
    rows = folder / ANSWERS_NAME
    with progress("answering", len(table) - len(table.problems)) as show:
        answer_photographs(pipeline, table.items(), options, rows, resume, workers, batch, show)
    return join_answers(table, rows, pipeline, options)


def require_sense(options: EvaluationOptions, table: LabelTable) -> None:
    """Refuse what cannot be measured, before hours of answering.

    Raises:
        UsageError: a claim or a grade that names nothing of what the table can ask, a column with the truth of which nothing
            is understood, or too few labels to choose an operating point by.
    """
    for question, misread in zip(table.questions, table.misread, strict=True):
        if misread.count and not misread.understood:
            columns = ", ".join(question.columns)
            raise UsageError(
                f"nothing of the column {columns} is understood; the first says (line {misread.line}): {misread.said}"
            )
    require_claimable(options.claims, table.questions)
    grades = [question.output for question in table.questions if question.output.task == "multiclass"]
    if options.referable is not None and not any(options.referable in output.labels[1:] for output in grades):
        known = ", ".join(label for output in grades for label in output.labels[1:])
        raise UsageError(f"got --referable {options.referable}; expected one of {known or 'the grades of a multiclass output'}")
    if options.sensitivity is not None:
        _require_enough(options, table)


def _require_enough(options: EvaluationOptions, table: LabelTable) -> None:
    """Refuse a wanted sensitivity that the labels alone rule out.

    Raises:
        UsageError: no question with two classes has enough labels of both; for a new card, no output with two classes has.
    """
    lacking = [why_too_few(*sides) for sides in _sides(options, table)]
    if lacking and all(lacking):
        raise UsageError("; ".join(lacking))
    if not lacking:
        kind = "an output with two classes" if options.new_card else "two classes, or --referable LABEL of grades"
        raise UsageError(f"--sensitivity chooses an operating point of {kind}; the labels ask for nothing of that kind")


def _sides(options: EvaluationOptions, table: LabelTable) -> Iterator[tuple[str, int, int]]:
    """Each question with two classes that counts for the call, and its labelled lines of the positive and the other class."""
    usable = np.ones(len(table), np.bool_)
    usable[list(table.problems)] = False
    for question, truths in zip(table.questions, table.truths, strict=True):
        output = question.output
        if output.task == "binary":
            columns = {output.name: truths[:, 0]}
        elif output.task == "multilabel" and not options.new_card:
            columns = {f"{output.name}.{label}": truths[:, place] for place, label in enumerate(output.labels)}
        elif output.task == "multiclass" and options.referable in output.labels[1:] and not options.new_card:
            least = output.labels.index(options.referable)
            columns = {"referral": np.where(np.isnan(truths[:, 0]), np.nan, truths[:, 0] >= least)}
        else:
            continue
        for name, column in columns.items():
            yield name, int((column[usable] == 1).sum()), int((column[usable] == 0).sum())


def evaluate(pipeline: Pipeline, answered: Answered, options: EvaluationOptions, progress: Progress) -> Evaluation:
    """Measure every question.

    Args:
        pipeline: what answered.
        answered: what became of every line.
        options: what else is to be measured.
        progress: shows the work.

    Raises:
        UsageError: not one photograph has a label and an answer.
    """
    results = {}
    questions = answered.table.questions
    with progress("measuring", len(questions)) as show:
        for place, question in enumerate(questions):
            answers = answered.of(place)
            if len(answers.lines):
                results[question.output.name] = _result(answered, answers, options)
            show(place + 1)
    if not results:
        place, problem = next(iter(answered.problems.items()))
        line, count = answered.table.numbers[place], len(answered.table)
        raise UsageError(
            f"not one of {count} photographs has both a label and an answer; the first says (line {line}): {problem}"
        )
    figures = {name: result.figures for name, result in results.items()}
    verdicts = [judged(claim, questions, figures) for claim in options.claims]
    return Evaluation(pipeline, answered, results, verdicts)


def _result(answered: Answered, answers: QuestionAnswers, options: EvaluationOptions) -> QuestionResult:
    output = answers.question.output
    groups, notes = group_figures(answered, answers, options.resamples)
    asked = _two_class_questions(answers)
    referral = None
    if options.referable in output.labels[1:] and output.task == "multiclass":
        asked["referral"] = referral_answers(answers, options.referable)
        referral = two_class_figures(asked["referral"], options.resamples)
    points: dict[str, OperatingPoint | str] = {}
    if options.sensitivity is not None:
        points = {name: operating_point(one, options.sensitivity, options.aim) for name, one in asked.items()}
    figures = figures_of(answers, options.resamples)
    return QuestionResult(answers, figures, groups, points, referral, notes + doubts(answers, figures))


def _two_class_questions(answers: QuestionAnswers) -> dict[str, TwoClassAnswers]:
    output = answers.question.output
    if output.task == "binary":
        return {output.name: two_class_answers(answers)}
    if output.task == "multilabel":
        return {f"{output.name}.{label}": two_class_answers(answers, label) for label in output.labels}
    return {}


def doubts(answers: QuestionAnswers, figures: QuestionFigures) -> list[str]:
    """What a reader should know before he believes the figures."""
    output = answers.question.output
    found = []
    several = len(answers.lines) - (int(answers.clusters.max()) + 1)
    if several:
        found.append(
            f"{len(answers.lines)} photographs come from {len(answers.lines) - several} patients. Exact intervals take them as "
            "independent and are too narrow; those by patient are given beside them and count for claims"
        )
    if isinstance(figures, TwoClassFigures):
        if figures.auc.high is not None and figures.auc.high < 0.5:
            found.append(
                f"The model answers the other way round: {figures.labels[1]!r} is more probable where the truth is "
                f"{figures.labels[0]!r}. "
                + ("The card assumes which column is which class; the labels say that they are exchanged" if output.labels_assumed
                   else "Look at the words of the labels (--label-means) before anything else")
            )  # fmt: skip
        rarer = min(figures.prevalence.count, figures.prevalence.of - figures.prevalence.count)
        if 0 < rarer < FEWEST_OF_EACH:
            found.append(
                f"There are {rarer} photographs of the rarer class. With 5 of them DeLong's 95 % interval holds the true AUC in "
                "86 % of simulations: take it for narrower than it ought to be"
            )
        if figures.tied > 0.01:
            found.append(
                f"{figures.tied:.1%} of the pairs have equal probabilities (six decimals are kept) and count half in the AUC"
            )
    return found
