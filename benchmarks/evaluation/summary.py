"""The short form of an evaluation, for a terminal."""

from __future__ import annotations

from collections.abc import Iterator

from fundus_rt.benchmarks.evaluation.classes import ClassFigures
from fundus_rt.benchmarks.evaluation.estimates import counted
from fundus_rt.benchmarks.evaluation.evaluation import Evaluation, QuestionResult
from fundus_rt.benchmarks.evaluation.regression import RegressionFigures
from fundus_rt.benchmarks.evaluation.two_classes import TwoClassFigures

MOST_PROBLEMS = 5
MOST_GROUPS = 12
"""Lines about groups; the rest stands in the report."""


def summary_lines(evaluation: Evaluation) -> Iterator[str]:
    """What was measured, line by line; 95 % intervals in brackets."""
    answered = evaluation.answered
    card = evaluation.pipeline.card
    yield f"{card.name}: {evaluation.counted} of {len(answered.table)} labelled photographs measured (95 % intervals in brackets)"
    if card.preprocessing.assumed:
        yield f"  preprocessing assumed, not published: {', '.join(card.preprocessing.assumed)}"
    for name, result in evaluation.results.items():
        yield from _result_lines(name, result)
    for claim in evaluation.claims:
        yield f"claim: {claim.sentence}"
    if evaluation.search is not None:
        yield f"preprocessing: {evaluation.search.sentence}"
    for note in evaluation.search_notes:
        yield f"preprocessing: {note}"
    for question, misread in zip(answered.table.questions, answered.table.misread, strict=True):
        if misread.count:
            name, where = question.output.name, f"line {misread.line}"
            yield f"{name}: {misread.count} truths are not understood; the first, {where}: {misread.said}"
    for place, (line, problem) in enumerate(sorted(answered.problems.items())):
        if place == MOST_PROBLEMS:
            yield f"  and {len(answered.problems) - MOST_PROBLEMS} more lines, see --report"
            break
        yield f"not counted: line {answered.table.numbers[line]}: {problem}"


def _result_lines(name: str, result: QuestionResult) -> Iterator[str]:
    figures = result.figures
    unit = result.answers.question.output.unit
    if isinstance(figures, RegressionFigures):
        yield f"{name}: {counted(figures.photographs, figures.patients)}"
        yield f"  mean absolute error  {figures.mae} {unit}"
        yield f"  bias                 {figures.bias} {unit}"
        yield f"  limits of agreement  {figures.lower_limit} to {figures.upper_limit} {unit}"
        yield f"  correlation          {figures.correlation}"
        yield f"  slope of the error   {figures.slope} per {unit} of truth"
    elif isinstance(figures, ClassFigures):
        yield f"{name}: {counted(figures.photographs, figures.patients)}"
        yield f"  accuracy             {figures.accuracy}"
        if figures.decided.count < figures.decided.of:
            yield f"  decided              {figures.decided}"
            yield f"  right when decided   {figures.accuracy_when_decided}"
        yield f"  quadratic kappa      {figures.quadratic_kappa}"
        for label, found in zip(figures.labels, figures.sensitivities, strict=True):
            yield f"  sensitivity for {label}: {found}"
    elif isinstance(figures, TwoClassFigures):
        yield from _two_class_lines(figures)
    else:
        for part in figures.values():
            yield from _two_class_lines(part)
    if result.referral is not None:
        yield from _two_class_lines(result.referral)
    for point in result.points.values():
        if isinstance(point, str):
            yield f"operating point: {point}"
            continue
        wanted = f"sensitivity {point.wanted:g}, by the {point.aim}"
        yield f"operating point for {point.question}: from {point.threshold:.6g} on ({wanted})"
        yield f"  chosen on these: sensitivity {point.sensitivity}; specificity {point.specificity}"
        if point.unseen_sensitivity is None:
            yield f"  on unseen ones: not known, {point.why_not_unseen}"
        else:
            yield f"  on unseen ones:  sensitivity {point.unseen_sensitivity}; specificity {point.unseen_specificity}"
    for note in result.notes:
        yield f"  note: {note}"
    yield from _group_lines(result)


def _two_class_lines(figures: TwoClassFigures) -> Iterator[str]:
    positive = figures.labels[1]
    counts = f"{counted(figures.photographs, figures.patients)}, {figures.prevalence.count} {positive}"
    yield f"{figures.question}: {counts}"
    yield f"  AUC                  {figures.auc}"
    yield f"  accuracy             {figures.accuracy}"
    yield f"  sensitivity          {figures.sensitivity} ({positive} from {figures.threshold:.4g} on)"
    yield f"  specificity          {figures.specificity}"
    yield f"  Brier score          {figures.brier}; calibration error {figures.calibration_error:.3f}"


def _group_lines(result: QuestionResult) -> Iterator[str]:
    for place, group in enumerate(result.groups):
        if place == MOST_GROUPS:
            yield f"  and {len(result.groups) - MOST_GROUPS} more groups, see --report"
            return
        figures = group.figures
        mark = " (small group)" if group.small else ""
        if isinstance(figures, RegressionFigures):
            said = f"n {figures.photographs}, MAE {figures.mae}"
        elif isinstance(figures, ClassFigures):
            said = f"n {figures.photographs}, accuracy {figures.accuracy}"
        elif isinstance(figures, TwoClassFigures):
            said = f"n {figures.photographs}, AUC {figures.auc}"
        else:
            said = "; ".join(f"{label} AUC {part.auc}" for label, part in figures.items())
        yield f"  by {group.column}, {group.group}: {said}{mark}"
