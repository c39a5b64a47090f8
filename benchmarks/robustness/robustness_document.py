"""The report on how answers move when photographs get worse."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from fundus_rt.benchmarks.environment import environment
from fundus_rt.benchmarks.reports.document import Picture, ReportDocument, Row, Scalar, Verdict
from fundus_rt.benchmarks.reports.thumbnails import thumbnail
from fundus_rt.benchmarks.robustness.answering import Original
from fundus_rt.benchmarks.robustness.degradations import KINDS, degrade
from fundus_rt.benchmarks.robustness.field import Frame, field_in_frame
from fundus_rt.benchmarks.robustness.plan import AS_IT_CAME, Plan, in_words, seed_of
from fundus_rt.benchmarks.robustness.robustness_sections import sections, worst_sentence
from fundus_rt.benchmarks.robustness.summary import Summary
from fundus_rt.models.card import OutputSpec
from fundus_rt.runtime.agreement import decisions
from fundus_rt.runtime.field_of_view import find_field_of_view
from fundus_rt.runtime.pipeline import Pipeline


def robustness_document(
    summary: Summary,
    rows: Callable[[], Iterable[Mapping[str, Any]]],
    pipeline: Pipeline,
    original: Original | None,
    pictures: tuple[Picture, ...] = (),
) -> ReportDocument:
    """Everything that was found, for a reader.

    Args:
        summary: the figures.
        rows: gives the rows of the photographs once more, for the CSV.
        pipeline: the examined file.
        original: the checkpoint that it was held against; None where it was not.
        pictures: from `degradation_pictures`.
    """
    return ReportDocument(
        kind="robustness",
        title=f"How the answers of {pipeline.card.name} move when photographs get worse",
        verdict=verdict(summary),
        subject=_subject(summary, pipeline, original),
        figures=summary.to_dict(),
        sections=sections(summary, pictures),
        rows=lambda: _csv_rows(rows(), summary),
    )


def verdict(summary: Summary) -> Verdict:
    """Judged is only whether the file stays with its original; how far answers move is measured."""
    if not summary.photographs:
        return Verdict(
            False, f"No photograph could be answered as it came ({summary.failed} were given), so nothing was measured."
        )
    said = worst_sentence(summary)
    if not summary.compares:
        return Verdict(None, said)
    problems = summary.parity_problems()
    versions = sum(difference.photographs for difference in summary.parity.values()) // len(summary.card.outputs)
    if problems:
        return Verdict(
            False,
            f"The file does not answer as its checkpoint on changed photographs: {problems[0]}; {len(problems)} in all. {said}",
        )
    return Verdict(
        True, f"On all {versions:,} versions of {summary.photographs:,} photographs the file decided as its checkpoint. {said}"
    )


def degradation_pictures(name: str, frame: Frame, sha256: str, plan: Plan) -> tuple[Picture, ...]:
    """Thumbnails of one photograph as it came and with each kind of degradation, and all together, at each severity.

    Args:
        name: what to call the photograph.
        frame: uint8 [H, W, 3], BGR.
        sha256: of the photograph's file, for the same degradations as in the rows.
        plan: what was done.
    """
    field = field_in_frame(frame, find_field_of_view(frame))
    seed = seed_of(plan, sha256)
    found = [Picture(f"{name}, {AS_IT_CAME}", thumbnail(frame))]
    for kinds in plan.degradations:
        if len(kinds) in (1, len(KINDS)):
            for severity in plan.severities:
                changed = degrade(frame, field, kinds, severity, seed)
                found.append(Picture(in_words(("+".join(kinds), severity)), thumbnail(changed)))
    return tuple(found)


def summary_lines(summary: Summary) -> Iterator[str]:
    """The figures as lines of text, for a terminal."""
    for output in summary.card.outputs:
        yield f"{output.name}: change of the answer in {output.unit}"
        for change in summary.changes:
            found = summary.answers[change, output.name]
            decided = f"; {found.rate()}" if found.decided is not None else ""
            yield f"  {in_words(change):42} mean {found.mean:.3g}, largest {found.largest:.3g}{decided}"
    yield "acquisition check"
    for change, refusals in summary.refusals.items():
        if refusals.looked_at:
            clean = f", mean probability of a clean photograph {refusals.gradability / refusals.looked_at:.2f}"
            yield (
                f"  {in_words(change):42} {refusals.unanswerable} of {refusals.asked} unanswerable, {refusals.degraded} of "
                f"{refusals.looked_at} flagged as degraded{clean}"
            )
    for problem in summary.parity_problems():
        yield f"parity: {problem}"


def _subject(summary: Summary, pipeline: Pipeline, original: Original | None) -> dict[str, str]:
    machine = environment()
    backend = pipeline.backend
    found = {
        "model": pipeline.card.name,
        "SHA-256 of the file": pipeline.identity.sha256,
        "precision": pipeline.identity.precision,
        "backend": f"{backend.name} {backend.version} on {backend.device}",
        "photographs": f"{summary.photographs} answered, {summary.failed} not",
        "seed": str(summary.plan.seed),
        "machine": f"{machine['processor']}, {machine['cores']} cores, {machine['memory_gib']} GiB",
        "Python": str(machine["python"]),
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
    }
    if original is not None:
        found["SHA-256 of the checkpoint"] = original.checkpoint_sha256
    return found


def _csv_rows(rows: Iterable[Mapping[str, Any]], summary: Summary) -> Iterator[Row]:
    """One line a photograph: what moved its answers most, how many versions were decided otherwise or refused."""
    for row in rows:
        line: dict[str, Scalar] = {"file": row["file"], "sha256": row["sha256"], "error": row["error"]}
        versions = row.get("versions", [])
        if versions:
            line["refused_versions"] = sum(bool(version["problem"]) for version in versions)
            line["flagged_versions"] = sum(bool(version["degraded"]) for version in versions)
        for output in summary.card.outputs if versions else ():
            line.update(_csv_cells(versions, output))
        yield line


def _csv_cells(versions: list[Mapping[str, Any]], output: OutputSpec) -> dict[str, Scalar]:
    clean = versions[0]["values"][output.name]
    largest, largest_with, otherwise, apart = 0.0, "", 0, 0.0
    for version in versions:
        if version["problem"]:
            continue
        values = version["values"][output.name]
        moved = max(abs(after - before) for before, after in zip(clean, values, strict=True))
        if moved > largest:
            largest, largest_with = moved, in_words((version["change"], version["level"]))
        if output.task != "regression":
            otherwise += len(set(decisions(np.array([clean, values]), output))) > 1
        original = version.get("original", {}).get(output.name)
        if original is not None:
            apart = max(apart, *(abs(a - b) for a, b in zip(original[-len(values) :], values, strict=True)))
    cells: dict[str, Scalar] = {f"{output.name}_largest_change": largest, f"{output.name}_with": largest_with}
    if output.task != "regression":
        cells[f"{output.name}_decided_otherwise"] = otherwise
    if "original" in versions[0]:
        cells[f"{output.name}_largest_difference_from_original"] = apart
    return cells
