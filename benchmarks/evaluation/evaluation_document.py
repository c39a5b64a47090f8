"""The report of an evaluation: what it says, photograph by photograph and in all."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from datetime import datetime, timezone
from typing import Any

import numpy as np

from fundus_rt.benchmarks.environment import environment
from fundus_rt.benchmarks.evaluation.answers import Answered, QuestionAnswers
from fundus_rt.benchmarks.evaluation.choice_sections import operating_point_section, search_section
from fundus_rt.benchmarks.evaluation.claims import SHOWN, WORSE
from fundus_rt.benchmarks.evaluation.evaluation import Evaluation
from fundus_rt.benchmarks.evaluation.sections import figure_sections, group_section, two_class_section
from fundus_rt.benchmarks.reports.document import Picture, ReportDocument, Section, Table, Verdict
from fundus_rt.benchmarks.reports.thumbnails import thumbnail
from fundus_rt.models.artifacts import sha256_of_file
from fundus_rt.models.errors import FundusRtError
from fundus_rt.runtime.inputs import Item

MOST_LISTED = 50
"""Lines that are not counted and stand in the page itself; all of them stand in the table of photographs."""
WORST = 8
"""Photographs that are shown."""


def evaluation_document(evaluation: Evaluation) -> ReportDocument:
    """Everything that was measured, as a report."""
    pipeline, answered = evaluation.pipeline, evaluation.answered
    sections = [_claim_section(evaluation)] if evaluation.claims else []
    for name, result in evaluation.results.items():
        sections += figure_sections(result.answers, result.figures, result.notes)
        if result.referral is not None:
            sections.append(two_class_section(result.referral.question, result.referral, ()))
        if result.points:
            sections.append(operating_point_section(name, result.points))
        if result.groups:
            sections.append(group_section(name, result.groups, result.answers.question.output.unit))
        sections.append(_worst_section(answered, result.answers))
    if evaluation.search is not None or evaluation.search_notes:
        sections.append(search_section(evaluation.search, evaluation.search_notes))
    sections.append(_uncounted_section(answered))
    return ReportDocument(
        kind="evaluation",
        title=f"{pipeline.card.title}: on {answered.table.path.name}",
        verdict=verdict_of(evaluation),
        subject=_subject(evaluation),
        figures=evaluation_figures(evaluation),
        sections=tuple(section for section in sections if section.sentences or section.tables or section.pictures),
        rows=lambda: photograph_rows(answered, evaluation),
    )


def verdict_of(evaluation: Evaluation) -> Verdict:
    """Whether every claim holds; without a claim the report only measures."""
    table = evaluation.answered.table
    counted = f"{evaluation.counted} of {len(table)} labelled photographs were measured"
    misread = sum(misread.count for misread in table.misread)
    if misread:
        counted += f"; {misread} truths are not understood and left out, so the figures may be of the easier part"
    if not evaluation.claims:
        return Verdict(None, f"{counted}; no published figure was held against them (--claim mae=2.39)")
    verdicts = {claim.verdict for claim in evaluation.claims}
    passed = False if WORSE in verdicts else None if misread or not verdicts.issubset(SHOWN) else True
    return Verdict(passed, f"{counted}. {'. '.join(claim.sentence for claim in evaluation.claims)}")


def evaluation_figures(evaluation: Evaluation) -> dict[str, Any]:
    """All numbers, JSON-ready."""
    outputs = {}
    for name, result in evaluation.results.items():
        figures = result.figures
        outputs[name] = {
            "task": result.answers.question.output.task,
            "figures": {k: v.to_dict() for k, v in figures.items()} if isinstance(figures, dict) else figures.to_dict(),
            "referral": result.referral.to_dict() if result.referral else None,
            "operating_points": {k: v if isinstance(v, str) else v.to_dict() for k, v in result.points.items()},
            "groups": [group.to_dict() for group in result.groups],
            "notes": list(result.notes),
        }
    answered = evaluation.answered
    return {
        "lines": len(answered.table),
        "counted": evaluation.counted,
        "not_counted": len(answered.problems),
        "truths_not_understood": {
            question.output.name: misread.count
            for question, misread in zip(answered.table.questions, answered.table.misread, strict=True)
        },
        "unanswered": answered.unanswered,
        "outputs": outputs,
        "claims": [claim.to_dict() for claim in evaluation.claims],
        "preprocessing": evaluation.search.to_dict() if evaluation.search else None,
        "preprocessing_notes": list(evaluation.search_notes),
    }


def photograph_rows(answered: Answered, evaluation: Evaluation) -> Iterator[dict[str, Any]]:
    """One row for each line of the labels, in their order; nothing is left out."""
    table = answered.table
    counted = {name: set(result.answers.lines.tolist()) for name, result in evaluation.results.items()}
    for place, name in enumerate(table.names()):
        row: dict[str, Any] = {"line": int(table.numbers[place]), "file": name.encode("utf-8", "replace").decode()}
        row["problem"] = answered.problems.get(place, "")
        row["note"] = table.notes.get(place, "")
        row["eye"] = table.listed_eye(place) or answered.eyes[place]
        for column, group in table.groups.items():
            if column != "eye":
                row[f"labels.{column}" if column in row else column] = group.names[group.codes[place]]
        for number, question in enumerate(table.questions):
            output = question.output
            truth, values = table.truths[number][place], answered.values[number][place]
            row |= _question_cells(output.name, output.task, output.labels, truth, values, int(answered.decided[number][place]))
            row[f"{output.name}.counted"] = place in counted.get(output.name, ())
        yield row


def _question_cells(
    name: str, task: str, labels: tuple[str, ...], truth: np.ndarray, values: np.ndarray, decided: int
) -> dict[str, Any]:
    has_truth, has_answer = not math.isnan(truth[0]), not math.isnan(values[0])
    if task == "regression":
        both = has_truth and has_answer
        return {
            f"{name}.truth": float(truth[0]) if has_truth else None,
            f"{name}.answer": float(values[0]) if has_answer else None,
            f"{name}.error": float(values[0] - truth[0]) if both else None,
        }
    cells: dict[str, Any] = {}
    if task == "multilabel":
        for place, label in enumerate(labels):
            cells[f"{name}.{label}.truth"] = bool(truth[place]) if has_truth else None
            cells[f"{name}.{label}.probability"] = float(values[place]) if has_answer else None
        return cells
    cells[f"{name}.truth"] = labels[int(truth[0])] if has_truth else None
    cells[f"{name}.decision"] = (labels[decided] if decided >= 0 else "unknown") if has_answer else None
    for place, label in enumerate(labels):
        cells[f"{name}.{label}.probability"] = float(values[place]) if has_answer else None
    return cells


def _claim_section(evaluation: Evaluation) -> Section:
    rows = tuple(
        (c.claim.figure, c.claim.value, c.measured.value, c.measured.low, c.measured.high, c.verdict) for c in evaluation.claims
    )
    columns = ("figure", "claimed", "measured", "from", "to", "verdict")
    note = "A claim holds where the 95 % interval contains it and its worse end lies near: few photographs show little."
    sentences = tuple(f"{claim.sentence}." for claim in evaluation.claims)
    return Section("Published figures", sentences, (Table("Claims", columns, rows, note),))


def _worst_section(answered: Answered, answers: QuestionAnswers) -> Section:
    """The photographs that were answered most wrongly, with their pictures."""
    output = answers.question.output
    amounts = _wrongness(answers)
    worst = [int(at) for at in np.argsort(-amounts, kind="stable")[:WORST] if amounts[at] > 0]
    lines = {int(answers.lines[at]): at for at in worst}
    paths = {place: path for path, place in answered.table.places.items() if place in lines}
    rows, pictures = [], []
    for line, at in lines.items():
        cells = _question_cells("it", output.task, output.labels, answers.truth[at], answers.values[at], int(answers.decided[at]))
        said = "; ".join(f"{key[3:].removesuffix('.probability')} {_shown(value)}" for key, value in cells.items())
        name = _shown_name(Item(paths[line]).path)
        rows.append((f"line {answered.table.numbers[line]}", name, said))
        try:
            with open(paths[line], "rb") as stream:
                pictures.append(Picture(f"{name}: {said}", thumbnail(stream.read())))
        except (OSError, FundusRtError):  # the photograph was there when it was answered; its row stays
            continue
    title = "Largest errors" if output.task == "regression" else "Wrong and surest"
    table = Table("Photographs", ("line of the labels", "file", "truth and answer"), tuple(rows))
    return Section(f"{output.name}: {title.lower()}", (), (table,) if rows else (), (), tuple(pictures))


def _shown_name(path: str) -> str:
    """Of a photograph without its folders, which may name a patient."""
    return path.rpartition("/")[2].encode("utf-8", "replace").decode()


def _wrongness(answers: QuestionAnswers) -> np.ndarray:
    """How wrong each answer is, [M]: absolute error, or the probability that was taken from the truth; 0 for a right one."""
    task = answers.question.output.task
    if task == "regression":
        return np.asarray(np.abs(answers.values[:, 0] - answers.truth[:, 0]))
    if task == "multilabel":
        apart = np.abs(answers.values - answers.truth)
        return np.asarray(np.where(apart > 0.5, apart, 0.0).max(axis=1))
    truth = answers.truth[:, 0].astype(np.int64)
    of_truth = answers.values[np.arange(len(truth)), truth]
    return np.asarray(np.where(answers.decided == truth, 0.0, 1.0 - of_truth))


def _uncounted_section(answered: Answered) -> Section:
    """What is not in the figures, and why."""
    if not answered.problems and not answered.table.notes:
        return Section("Not counted", ("Every line of the labels was counted.",))
    names = dict(enumerate(answered.table.names())) if len(answered.table) <= 10**4 else {}
    listed = sorted({**answered.table.notes, **answered.problems}.items())
    rows = tuple(
        (f"line {answered.table.numbers[line]}", _shown_name(names.get(line, "")), said) for line, said in listed[:MOST_LISTED]
    )
    said: tuple[str, ...] = (
        f"{len(answered.problems)} of {len(answered.table)} lines are not in the figures, {answered.unanswered} of them because "
        "the photograph could not be answered.",
    )
    note = f"The first {MOST_LISTED} of {len(listed)}; all stand in photographs.csv." if len(listed) > MOST_LISTED else ""
    said += misread_sentences(answered)
    return Section("Not counted", said, (Table("Lines", ("line of the labels", "file", "why"), rows, note),))


def misread_sentences(answered: Answered) -> tuple[str, ...]:
    """How many truths of each output are there and not understood."""
    table = answered.table
    return tuple(
        f"{question.output.name}: {misread.count} truths are not understood; the first, on line {misread.line}: {misread.said}."
        for question, misread in zip(table.questions, table.misread, strict=True)
        if misread.count
    )


def _subject(evaluation: Evaluation) -> Mapping[str, str]:
    pipeline, found = evaluation.pipeline, environment()
    backend = pipeline.backend
    packages = ", ".join(f"{name} {version}" for name, version in found["packages"].items() if version)
    assumed = pipeline.card.preprocessing.assumed
    return {
        "model": f"{pipeline.card.name}, {pipeline.card.title}",
        "model file SHA-256": pipeline.identity.sha256,
        "precision": pipeline.identity.precision,
        "backend": " ".join(part for part in (backend.name, backend.version, backend.provider, backend.device) if part),
        "preprocessing": f"assumed, not published: {', '.join(assumed)}" if assumed else "as the card states it",
        "labels": f"{evaluation.answered.table.path.name}, {len(evaluation.answered.table)} lines",
        "labels SHA-256": sha256_of_file(evaluation.answered.table.path),
        "date": datetime.now(timezone.utc).date().isoformat(),
        "machine": f"{found['processor']}, {found['cores']} cores, {found['memory_gib']} GiB, {found['system']}",
        "software": f"Python {found['python']}, {packages}",
    }


def _shown(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
