"""Chapters of an evaluation's report, by task."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fundus_rt.benchmarks.evaluation.answers import QuestionAnswers
from fundus_rt.benchmarks.evaluation.classes import ClassFigures
from fundus_rt.benchmarks.evaluation.estimates import SEED, Estimate, Rate, counted
from fundus_rt.benchmarks.evaluation.figures import QuestionFigures
from fundus_rt.benchmarks.evaluation.groups import SMALL, GroupFigures
from fundus_rt.benchmarks.evaluation.regression import RegressionFigures
from fundus_rt.benchmarks.evaluation.two_classes import TwoClassFigures
from fundus_rt.benchmarks.reports.document import Plot, Scalar, Section, Series, Table

MOST_POINTS = 5000
"""Of a plot; more are drawn at random, so that the report stays small."""
_MEASURED = ("figure", "value", "from", "to", "how the interval was made")
Cells = tuple[Scalar, ...]


def figure_sections(answers: QuestionAnswers, figures: QuestionFigures, notes: Sequence[str]) -> list[Section]:
    """What was measured of one output; a multilabel one has a chapter for each label."""
    name = answers.question.output.name
    if isinstance(figures, RegressionFigures):
        return [regression_section(answers, figures, notes)]
    if isinstance(figures, ClassFigures):
        return [class_section(name, figures, notes)]
    if isinstance(figures, TwoClassFigures):
        return [two_class_section(name, figures, notes)]
    return [two_class_section(f"{name}: {label}", part, notes) for label, part in figures.items()]


def regression_section(answers: QuestionAnswers, figures: RegressionFigures, notes: Sequence[str]) -> Section:
    """Errors, their plot against the mean (Bland and Altman), answer against truth."""
    output = answers.question.output
    unit = output.unit
    rows = (
        _cells(f"mean absolute error, {unit}", figures.mae),
        _cells(f"bias (answer less truth), {unit}", figures.bias),
        _cells(f"standard deviation of the error, {unit}", figures.spread),
        _cells(f"lower limit of agreement, {unit}", figures.lower_limit),
        _cells(f"upper limit of agreement, {unit}", figures.upper_limit),
        _cells("correlation", figures.correlation),
        _cells(f"change of the error per {unit} of truth", figures.slope),
        _cells(f"root mean squared error, {unit}", figures.rmse),
        (f"largest absolute error, {unit}", figures.largest, None, None, ""),
    )
    truth, said = answers.truth[:, 0], answers.values[:, 0]
    shown = _sample(len(truth))
    lines = tuple(
        Series(name, y=(one.value,), low=_end(one.low), high=_end(one.high))
        for name, one in (("bias", figures.bias), ("lower limit", figures.lower_limit), ("upper limit", figures.upper_limit))
    )
    points = Series("photographs", _floats(((truth + said) / 2)[shown]), _floats((said - truth)[shown]))
    bland_altman = Plot(
        "bland_altman",
        "Difference against mean",
        f"mean of answer and truth, {unit}",
        f"answer less truth, {unit}",
        (points, *lines),
        f"95 % of the differences lie between the limits of agreement.{_sampled_note(len(truth))}",
    )
    scatter = Plot(
        "scatter",
        "Answer against truth",
        f"truth, {unit}",
        f"answer, {unit}",
        (Series("photographs", _floats(truth[shown]), _floats(said[shown])),),
        _sampled_note(len(truth)).strip(),
        identity=True,
    )
    said_first = (
        f"{counted(figures.photographs, figures.patients)}: mean absolute error {figures.mae} {unit}, bias "
        f"{figures.bias} {unit}. 95 % of the errors lie between {figures.lower_limit.value:.1f} and "
        f"{figures.upper_limit.value:.1f} {unit}."
    )
    return Section(output.name, (said_first, *notes), (Table("Errors", _MEASURED, rows),), (bland_altman, scatter))


def two_class_section(title: str, figures: TwoClassFigures, notes: Sequence[str]) -> Section:
    """Rates at the operating point, the curve over all, what the probabilities are worth."""
    positive = figures.labels[1]
    rates = (
        ("prevalence", figures.prevalence),
        ("accuracy", figures.accuracy),
        (f"sensitivity for {positive}", figures.sensitivity),
        ("specificity", figures.specificity),
        ("positive predictive value, at this prevalence", figures.positive_predictive),
        ("negative predictive value, at this prevalence", figures.negative_predictive),
    )
    table = Table(
        f"At the operating point: {positive} from a probability of {figures.threshold:.4g} on",
        ("figure", "count", "of", "rate", "from", "to", "by patient"),
        tuple(_rate_cells(name, one) for name, one in rates),
        "Exact 95 % intervals (Clopper and Pearson).",
    )
    overall = Table(
        "Over all operating points",
        _MEASURED,
        (
            _cells("area under the ROC curve", figures.auc),
            _cells("Brier score", figures.brier),
            ("expected calibration error", figures.calibration_error, None, None, ""),
        ),
        "A Brier score of 0 is perfect; always answering the prevalence has "
        f"{figures.prevalence.value * (1 - figures.prevalence.value):.3f}.",
    )
    plots = []
    if figures.roc:
        curve = (*figures.roc[: -1 : max(1, len(figures.roc) // MOST_POINTS)], figures.roc[-1])
        here = Series("operating point", (1 - figures.specificity.value,), (figures.sensitivity.value,))
        shown = Series(f"AUC {figures.auc}", tuple(x for x, _ in curve), tuple(y for _, y in curve))
        plots.append(Plot("roc", "ROC curve", "1 - specificity", "sensitivity", (shown, here)))
    bins = figures.calibration
    plots.append(
        Plot(
            "calibration",
            "Calibration",
            f"mean probability of {positive}",
            f"observed rate of {positive}",
            (
                Series(
                    "photographs in ten bins",
                    tuple(part.mean_probability for part in bins),
                    tuple(part.observed.value for part in bins),
                    tuple(part.observed.low for part in bins),
                    tuple(part.observed.high for part in bins),
                ),
            ),
            "On the diagonal a probability means what it says; bars are exact 95 % intervals.",
        )
    )
    said = (
        f"{counted(figures.photographs, figures.patients)}, {figures.prevalence.count} of them {positive}: "
        f"area under the ROC curve {figures.auc}, sensitivity {figures.sensitivity}, specificity {figures.specificity}."
    )
    return Section(title, (said, *notes), (table, overall), tuple(plots))


def class_section(name: str, figures: ClassFigures, notes: Sequence[str]) -> Section:
    """Agreement, each class alone, the table of confusion."""
    kappas = Table(
        "Agreement",
        _MEASURED,
        (
            _cells("quadratic kappa", figures.quadratic_kappa),
            _cells("kappa", figures.kappa),
            _cells("accuracy", figures.accuracy.estimate()),
        ),
        "The quadratic kappa takes the card's order of the classes as grades; where they are none, read the other one.",
    )
    shares = (
        ("said rightly", figures.accuracy),
        ("decided", figures.decided),
        ("right when decided", figures.accuracy_when_decided),
        ("most probable class is the true one or its neighbour", figures.within_one),
        *((f"sensitivity for {label}", one) for label, one in zip(figures.labels, figures.sensitivities, strict=True)),
        *((f"specificity for {label}", one) for label, one in zip(figures.labels, figures.specificities, strict=True)),
    )
    rates = Table(
        "Rates",
        ("figure", "count", "of", "rate", "from", "to", "by patient"),
        tuple(_rate_cells(name, one) for name, one in shares),
        "Exact 95 % intervals (Clopper and Pearson).",
    )
    matrix = tuple(tuple(float(cell) for cell in row) for row in figures.confusion)
    plot = Plot("confusion", "Truth and decision", "decision", "truth", matrix=matrix, ticks=figures.labels)
    said = (
        f"{counted(figures.photographs, figures.patients)}: accuracy {figures.accuracy}; quadratic kappa "
        f"{figures.quadratic_kappa}."
    )
    return Section(name, (said, *notes), (kappas, rates), (plot,))


def group_section(name: str, groups: Sequence[GroupFigures], unit: str) -> Section:
    """One line for each group, one plot for each column whose groups have intervals."""
    rows: list[Cells] = []
    plots = []
    for column in dict.fromkeys(group.column for group in groups):
        members = [group for group in groups if group.column == column]
        bars: list[tuple[str, Estimate]] = []
        for group in members:
            mark = "small group" if group.small else ""
            rows += [(f"{column}: {group.group}", *line, mark) for line in _group_lines(group)]
            bars += [(group.group, group.figures.mae)] if isinstance(group.figures, RegressionFigures) else []
        if len(bars) > 1 and all(one.low is not None for _, one in bars):
            series = Series(
                "mean absolute error",
                y=tuple(one.value for _, one in bars),
                low=tuple(one.low or 0.0 for _, one in bars),
                high=tuple(one.high or 0.0 for _, one in bars),
            )
            ticks = tuple(tick for tick, _ in bars)
            plots.append(Plot("bars", f"By {column}", column, f"mean absolute error, {unit}", (series,), ticks=ticks))
    columns = ("group", "what", "photographs", "patients", "figure", "note")
    note = (
        f"A small group has fewer than {SMALL} photographs (of two classes, of the rarer one): read its interval, not its figure."
    )
    return Section(f"{name} by group", (), (Table("Groups", columns, tuple(rows), note),), tuple(plots))


def _group_lines(group: GroupFigures) -> list[Cells]:
    """What, photographs, patients and the figure with its interval, for one group."""
    figures = group.figures
    if isinstance(figures, dict):
        return [(f"{label}: AUC", one.photographs, one.patients, str(one.auc)) for label, one in figures.items()]
    named: list[tuple[str, Estimate | Rate]]
    if isinstance(figures, RegressionFigures):
        named = [("mean absolute error", figures.mae), ("bias", figures.bias)]
    elif isinstance(figures, ClassFigures):
        named = [("accuracy", figures.accuracy), ("quadratic kappa", figures.quadratic_kappa)]
    else:
        named = [("AUC", figures.auc), ("sensitivity", figures.sensitivity), ("specificity", figures.specificity)]
    return [(name, figures.photographs, figures.patients, str(one)) for name, one in named]


def _cells(name: str, estimate: Estimate) -> Cells:
    return name, estimate.value, estimate.low, estimate.high, estimate.method or "too few"


def _rate_cells(name: str, one: Rate) -> Cells:
    by_patient = one.by_patient
    other = f"{by_patient.low:.3f} to {by_patient.high:.3f}" if by_patient is not None and by_patient.low is not None else ""
    if not one.of:
        return name, 0, 0, None, None, None, ""
    return name, one.count, one.of, one.value, one.low, one.high, other


def _end(value: float | None) -> tuple[float, ...]:
    return () if value is None else (value,)


def _sample(count: int) -> np.ndarray:
    if count <= MOST_POINTS:
        return np.arange(count)
    return np.sort(np.random.default_rng(SEED).choice(count, MOST_POINTS, replace=False))


def _sampled_note(count: int) -> str:
    return "" if count <= MOST_POINTS else f" {MOST_POINTS} of {count} photographs are drawn, chosen at random."


def _floats(values: np.ndarray) -> tuple[float, ...]:
    return tuple(float(value) for value in values)
