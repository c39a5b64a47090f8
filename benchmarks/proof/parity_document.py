"""A comparison as a report: what a clinician reads first, then the figures, the photographs, and where it comes from."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fundus_rt.benchmarks.environment import environment
from fundus_rt.benchmarks.proof import parity_words
from fundus_rt.benchmarks.proof.parity import Parity
from fundus_rt.benchmarks.proof.parity_evidence import Evidence
from fundus_rt.benchmarks.proof.parity_figures import OutputFigures, without_places
from fundus_rt.benchmarks.proof.photographs import case_again
from fundus_rt.benchmarks.reports.document import Picture, Plot, ReportDocument, Row, Section, Series, Table, Verdict
from fundus_rt.benchmarks.reports.numbers import number_in_words
from fundus_rt.benchmarks.reports.thumbnails import thumbnail
from fundus_rt.models.errors import FundusRtError

SHOWN = 6
"""Photographs that are shown small."""
LISTED = 100
"""Photographs that a table lists at most; the CSV has them all."""


def document_from_parity(parity: Parity, more: Evidence) -> ReportDocument:
    """The report of a comparison.

    Args:
        parity: not closed yet: its rows are read while the report is written.
        more: what was looked into.
    """
    sections = [_outcome(parity, one) for one in parity.figures if len(parity.answered.offsets)]
    sections.append(_photographs(parity))
    if more.split is not None:
        sections.append(more.split.to_section())
    if more.half:
        sections.append(Section("Half precision", tuple(line.strip() for line in parity_words.half_precision(more))))
    if more.ranges is not None:
        sections.append(more.ranges.to_section())
    if causes := parity_words.causes(more):
        sections.append(Section("What would explain it", tuple(causes)))
    if more.located is not None:
        sections.append(more.located.to_section())
    sections.append(Section("How it was done", tuple(line.strip() for line in _method(parity, more))))
    sentence = parity_words.verdict(parity)
    return ReportDocument(
        kind="parity",
        title=f"{parity.own.title}: the shipped file against the published checkpoint",
        verdict=Verdict(parity.passed, sentence[0].upper() + sentence[1:]),
        subject=_subject(parity),
        figures=_figures(parity, more),
        sections=tuple(sections),
        rows=lambda: _rows(parity),
    )


def _subject(parity: Parity) -> dict[str, str]:
    machine = environment()
    backend = parity.backend
    return {
        "checkpoint": f"{parity.call.checkpoint.name}, {parity.original.description}",
        "checkpoint SHA-256": parity.original.checkpoint_sha256,
        "file": f"{Path(parity.call.file).name}, {parity.identity.precision}",
        "file SHA-256": parity.identity.sha256,
        "card": f"{parity.own.name}; the author's side follows {parity.author.origin}",
        "backend": " ".join(part for part in (backend.name, backend.version, backend.device, backend.provider) if part),
        "versions": ", ".join(f"{name} {version}" for name, version in parity.versions.items()),
        "machine": f"{machine['processor']}, {machine['cores']} cores, {machine['system']}, Python {machine['python']}",
        "photographs": parity_words.counted(parity)[0],
    }


def _figures(parity: Parity, more: Evidence) -> dict[str, Any]:
    milliseconds = parity.answered.milliseconds
    means = [float(np.mean(column[np.isfinite(column)])) if np.isfinite(column).any() else None for column in milliseconds.T]
    return {
        "passed": parity.passed,
        "problems": list(parity.problems),
        "photographs": len(parity.answered.offsets),
        "not_answered": len(parity.answered.failed),
        "copies": parity.copies,
        "outputs": {one.output.name: without_places(one.agreement.to_dict()) for one in parity.figures},
        "half_precision": {one.name: without_places(one.to_dict()) for one in more.half},
        "card_differences": list(parity.author.differences),
        "stages": more.split.to_dict() if more.split is not None else None,
        "explanations": [explanation.mistake for explanation in more.explained],
        "node": more.located.node if more.located is not None else None,
        "milliseconds": dict(zip(("original", "file"), means, strict=True)),
        "peak_memory_bytes": parity.peak_memory,
        "certificate": more.kept.issued.certificate.verdict if more.kept.issued is not None else None,
    }


def _outcome(parity: Parity, one: OutputFigures) -> Section:
    found = one.agreement
    rows: list[tuple[str, float | int | None]] = [
        (f"mean difference, {found.unit}", found.mean),
        (f"95th percentile, {found.unit}", found.percentile_95),
        (f"largest difference, {found.unit}", found.largest),
        (f"tolerance, {found.unit}", found.tolerance),
        (f"photographs beyond {found.tolerance:g} {found.unit}", found.beyond_tolerance),
        (f"standard deviation of the original's answers, {found.unit}", found.spread),
        ("largest difference as a share of that", found.largest_of_spread),
    ]
    if found.decisions_changed is not None:
        rows.append(("decisions changed", found.decisions_changed))
        rows.append(("photographs as near to an operating point as the largest difference", found.near_operating_point))
    if found.weighted_kappa is not None:
        rows.append(("quadratic weighted kappa", found.weighted_kappa))
    words = tuple((name, number_in_words(value) if isinstance(value, float) else value) for name, value in rows)
    table = Table(f"Figures for {found.name}", ("figure", "value"), words)
    return Section(f"Output {found.name}", (str(found), *found.problems), (table,), _plots(one))


def _plots(one: OutputFigures) -> tuple[Plot, ...]:
    column = one.telling_column
    before, after = one.original[:, column], one.ours[:, column]
    what = f"probability of {parity_words.label(one, column)}" if one.output.labels else one.output.unit
    cloud = Series("photographs", tuple(before.tolist()), tuple(after.tolist()))
    plots = [
        Plot("scatter", "Every photograph", f"by the original, {what}", f"by the file, {what}", (cloud,), identity=True),
        Plot(
            "bland_altman",
            "Difference over the mean",
            f"mean of both, {what}",
            f"file less original, {what}",
            (Series("photographs", tuple(((before + after) / 2).tolist()), tuple((after - before).tolist())),),
        ),
    ]
    if one.output.task == "multiclass":
        plots.append(_confusion(one))
    return tuple(plots)


def _confusion(one: OutputFigures) -> Plot:
    classes = list(dict.fromkeys((*one.output.labels, *one.original_decisions, *one.decisions)))
    counts = np.zeros((len(classes), len(classes)))
    for before, after in zip(one.original_decisions, one.decisions, strict=True):
        counts[classes.index(before), classes.index(after)] += 1
    matrix = tuple(tuple(row) for row in counts.tolist())
    return Plot("confusion", "Decisions", "by the file", "by the original", matrix=matrix, ticks=tuple(classes))


def _photographs(parity: Parity) -> Section:
    """Photographs that are worth a look, and those that were not answered."""
    tables = []
    worst: dict[int, None] = {}
    for one in parity.figures:
        name = one.output.name
        tables += [
            _table(parity, one, f"{name}: decided otherwise", one.agreement.changed),
            _table(parity, one, f"{name}: near an operating point", one.within_reach()),
            _table(parity, one, f"{name}: largest differences", one.agreement.worst),
        ]
        worst.update(dict.fromkeys((*one.agreement.changed[:SHOWN], *one.agreement.worst)))
    failed = [(_name(row), _nameless(row)) for row in itertools.islice(parity.answered.failures(), LISTED)]
    more = len(parity.answered.failed) - len(failed)
    note = f"{more} more are in photographs.csv." if more else ""
    tables.append(Table("Not answered", ("photograph", "reason"), tuple(failed), note) if failed else None)
    pictures = tuple(_picture(parity, index) for index in list(worst)[:SHOWN])
    sentences = () if len(parity.answered.failed) else ("Every photograph was answered by both sides.",)
    return Section("Photographs to look at", sentences, tuple(table for table in tables if table is not None), (), pictures)


def _table(parity: Parity, one: OutputFigures, title: str, indices: Any) -> Table | None:
    """Photographs with both answers; None where there are none."""
    if not len(indices):
        return None
    rows = []
    for index in list(indices)[:LISTED]:
        column = int(np.abs(one.ours[index] - one.original[index]).argmax())
        cells: list[Any] = [
            _name(parity.answered.row(index)),
            float(one.original[index, column]),
            float(one.ours[index, column]),
        ]
        cells.append(float(one.apart[index]))
        if one.original_decisions:
            cells += [one.original_decisions[index], one.decisions[index], float(one.margins[index])]
        rows.append(tuple(cells))
    columns = ["photograph", f"original, {one.output.unit}", f"file, {one.output.unit}", "difference"]
    if one.original_decisions:
        columns += ["original said", "file said", "to the nearest operating point"]
    left = len(indices) - len(rows)
    return Table(title, tuple(columns), tuple(rows), f"{left} more are in photographs.csv." if left else "")


def _picture(parity: Parity, index: int) -> Picture:
    row = parity.answered.row(index)
    case = case_again(row["file"], row["sha256"], None)
    try:
        return Picture(_name(row), thumbnail(case.content))
    except FundusRtError as error:
        raise FundusRtError(f"{row['file']} was answered but cannot be shown: {error}") from error


def _name(row: Mapping[str, Any]) -> str:
    """Of a photograph without its folders, which may name a patient; photographs.csv has what the call named."""
    return os.path.basename(str(row["file"]))


def _nameless(row: Mapping[str, Any]) -> str:
    """Why a photograph was not answered, without its folders."""
    return str(row["error"]).replace(str(row["file"]), _name(row))


def _method(parity: Parity, more: Evidence) -> Iterator[str]:
    yield (
        "Every photograph was answered twice: by the original framework with the author's own decoder, crop, resize and "
        "normalisation, and by the shipped file with this package's, as a user calls it."
    )
    yield from parity_words.setting(parity)
    yield from parity_words.kept(parity, more)
    yield parity_words.timing(parity)
    yield "Bounds are exact two-sided 95 % intervals (Clopper and Pearson)."


def _rows(parity: Parity) -> Iterator[Row]:
    """One row for each photograph, for the CSV."""
    labels = {output.name: output.labels for output in parity.original.card.outputs}
    for row in parity.answered.rows():
        flat: dict[str, Any] = {
            "file": row["file"],
            "sha256": row["sha256"],
            "eye": (row["eye"] or {}).get("value"),
            "error": row["error"],
        }
        for name, found in row["outputs"].items():
            if "original_values" in found:
                flat.update(_columns(name, found, labels[name]))
        yield flat


def _columns(name: str, found: dict[str, Any], labels: tuple[str, ...]) -> dict[str, Any]:
    """One output of one row: values of both sides by column, decisions, the largest difference."""
    flat: dict[str, Any] = {}
    before, after = found["original_values"], found["ours_values"]
    names = labels if len(labels) == len(before) else labels[-1:] if labels else ("",)
    for label, mine, theirs in zip(names, after, before, strict=True):
        column = f"{name} {label}".strip()
        flat[f"{column}, original"], flat[f"{column}, file"] = theirs, mine
    differences = [abs(mine - theirs) for mine, theirs in zip(after, before, strict=True) if None not in (mine, theirs)]
    flat[f"{name}, difference"] = max(differences, default=None)
    for side, word in (("original", "original"), ("ours", "file")):
        if f"{side}_decision" in found:
            flat[f"{name}, {word} said"] = found[f"{side}_decision"]
    return flat
