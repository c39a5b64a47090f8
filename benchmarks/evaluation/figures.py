"""Figures of a question by its task."""

from __future__ import annotations

import numpy as np

from fundus_rt.benchmarks.evaluation.answers import QuestionAnswers
from fundus_rt.benchmarks.evaluation.classes import ClassFigures, class_figures
from fundus_rt.benchmarks.evaluation.estimates import RESAMPLES
from fundus_rt.benchmarks.evaluation.regression import RegressionFigures, regression_figures
from fundus_rt.benchmarks.evaluation.two_classes import TwoClassAnswers, TwoClassFigures, two_class_figures

QuestionFigures = RegressionFigures | TwoClassFigures | ClassFigures | dict[str, TwoClassFigures]
"""A multilabel output has figures by its labels."""


def figures_of(answers: QuestionAnswers, resamples: int = RESAMPLES) -> QuestionFigures:
    """Measure one question.

    Args:
        answers: at least one photograph.
        resamples: of the bootstraps.
    """
    output = answers.question.output
    if output.task == "regression":
        return regression_figures(answers.truth[:, 0], answers.values[:, 0], answers.clusters, resamples)
    if output.task == "binary":
        return two_class_figures(two_class_answers(answers), resamples)
    if output.task == "multilabel":
        return {label: two_class_figures(two_class_answers(answers, label), resamples) for label in output.labels}
    truth, likeliest = answers.truth[:, 0].astype(np.int64), answers.values.argmax(axis=1)
    return class_figures(output.labels, truth, likeliest, answers.decided, answers.clusters, resamples)


def two_class_answers(answers: QuestionAnswers, label: str | None = None) -> TwoClassAnswers:
    """A binary output, or one label of a multilabel output, as a question with two classes."""
    output = answers.question.output
    threshold = 0.5 if output.threshold is None else output.threshold
    if label is None:
        positive, probability, said = answers.truth[:, 0] == 1, answers.values[:, 1], answers.decided == 1
        return TwoClassAnswers(
            output.name, (output.labels[0], output.labels[1]), positive, probability, said, threshold, answers.clusters
        )
    place = output.labels.index(label)
    probability = answers.values[:, place]
    labels = (f"no {label}", label)
    said = probability >= threshold
    return TwoClassAnswers(label, labels, answers.truth[:, place] == 1, probability, said, threshold, answers.clusters)


def referral_answers(answers: QuestionAnswers, label: str) -> TwoClassAnswers:
    """Grades as a question with two classes: this grade or a worse one, by the sum of their probabilities.

    It is called positive where the runtime said such a grade.

    Args:
        answers: of a multiclass output.
        label: one of its labels after the first.
    """
    output = answers.question.output
    place = output.labels.index(label)
    probability = np.clip(answers.values[:, place:].sum(axis=1), 0.0, 1.0)
    labels = (f"below {label}", f"{label} or worse")
    question = f"{output.name}: {labels[1]}"
    return TwoClassAnswers(
        question, labels, answers.truth[:, 0] >= place, probability, answers.decided >= place, 0.5, answers.clusters
    )
