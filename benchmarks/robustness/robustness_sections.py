"""The chapters of the report on how answers move when photographs get worse."""

from __future__ import annotations

import math
import os

from fundus_rt.benchmarks.reports.document import Picture, Plot, Scalar, Section, Series, Table
from fundus_rt.benchmarks.robustness.plan import AS_IT_CAME, DEGRADATION_NAMES, UNITS, in_words
from fundus_rt.benchmarks.robustness.summary import Difference, Summary
from fundus_rt.models.card import OutputSpec
from fundus_rt.runtime.exact_bounds import rate_in_words

_SYNTHETIC = (
    "The photographs were spoilt by drawing: uneven light, spots and blur after the published degradation model of cofe-Net, at "
    "the severities 1 to 5. Severity 3 is the published strength, for blur 2; every photograph is spoilt in its own way, and "
    "always in the same. Whether a clinician would call such a picture ungradable is another question."
)


def sections(summary: Summary, pictures: tuple[Picture, ...]) -> tuple[Section, ...]:
    """All chapters, in the order in which they are read.

    Args:
        summary: the figures.
        pictures: thumbnails of one photograph, spoilt; may be empty.
    """
    found = [_short(summary), *(_output_section(summary, output) for output in summary.card.outputs), _check_section(summary)]
    if summary.disturbances:
        found.append(_disturbance_section(summary))
    if summary.falls and len(summary.plan.severities) > 1:
        found.append(_order_section(summary))
    if summary.compares:
        found.append(_parity_section(summary))
    if pictures:
        found.append(Section("What was done to a photograph", (_SYNTHETIC,), pictures=pictures))
    if summary.degradations:
        found += [_figures_section(summary, output) for output in summary.card.outputs]
    return tuple(found)


def worst_sentence(summary: Summary) -> str:
    """Which change moved most: decisions where there are any, else the answer in its unit."""
    decided = [(key, found) for key, found in summary.answers.items() if found.decided is not None and found.photographs]
    if decided:
        (change, name), found = max(decided, key=lambda pair: ((pair[1].decided or 0) / pair[1].photographs, pair[1].mean))
        if not found.decided:
            return "No change of the photographs changed a decision of the file."
        return f"Most decisions changed with {in_words(change)}: {name}, {found.rate()}."
    moved = [(key, found) for key, found in summary.answers.items() if found.photographs]
    if not moved:
        return "Every changed photograph was refused."
    (change, name), found = max(moved, key=lambda pair: pair[1].mean)
    unit = next(output.unit for output in summary.card.outputs if output.name == name)
    how = f"{name} by {found.mean:.3g} {unit} on average and {found.largest:.3g} at most"
    return f"Answers moved most with {in_words(change)}: {how}."


def _short(summary: Summary) -> Section:
    failed = f" {summary.failed} could not be answered even as they came and are left out." if summary.failed else ""
    sentences = [
        f"{summary.photographs} photographs were changed in {len(summary.changes)} ways each, and every version was answered as "
        f"fundus-rt infer answers it.{failed}",
        worst_sentence(summary),
    ]
    refused = max(summary.refusals.items(), key=lambda pair: pair[1].unanswerable)
    if refused[1].unanswerable:
        rate = rate_in_words(refused[1].unanswerable, refused[1].asked, "could not be answered")
        sentences.append(f"The acquisition check refuses most with {in_words(refused[0])}: {rate}.")
    else:
        sentences.append("The acquisition check refused no version.")
    return Section("In short", tuple(sentences))


def _output_section(summary: Summary, output: OutputSpec) -> Section:
    """One output: how far its answers move, and how many decisions change."""
    plots = []
    if summary.degradations:
        plots.append(_change_plot(summary, output))
        if output.task != "regression":
            plots.append(_decision_plot(summary, output))
    return Section(f"Answers: {output.name}", _first_changes(summary, output), plots=tuple(plots))


def _figures_section(summary: Summary, output: OutputSpec) -> Section:
    """The same in numbers, and who was decided otherwise."""
    decides = output.task != "regression"
    measured = ("degradation", "severity", "photographs", f"mean change, {output.unit}", f"largest change, {output.unit}")
    rows: list[tuple[Scalar, ...]] = []
    otherwise: list[tuple[Scalar, ...]] = []
    for change in (change for change in summary.changes if change[0] in DEGRADATION_NAMES):
        found = summary.answers[change, output.name]
        cells = (change[0], change[1], found.photographs, _number(found.mean), _number(found.largest))
        rows.append((*cells, *((found.rate(),) if decides else ())))
        if found.changed:
            otherwise.append((change[0], change[1], _names(found)))
    tables = [Table(f"{output.name} under degradation", (*measured, *(("decisions changed",) if decides else ())), tuple(rows))]
    if otherwise:
        tables.append(
            Table(f"Who was decided otherwise: {output.name}", ("degradation", "severity", "photographs"), tuple(otherwise))
        )
    return Section(f"Figures: {output.name}", (), tuple(tables) if rows else ())


def _first_changes(summary: Summary, output: OutputSpec) -> tuple[str, ...]:
    """From which severity on decisions change, for each degradation that comes alone."""
    if output.task == "regression":
        return ()
    sentences = []
    for kind in (kind for kind in summary.degradations if "+" not in kind):
        changed = [level for level in summary.plan.severities if summary.answers[(kind, level), output.name].decided]
        if changed:
            found = summary.answers[(kind, changed[0]), output.name]
            sentences.append(f"With {kind} alone decisions change from severity {changed[0]} on: {_names(found)}.")
        else:
            sentences.append(_no_change(summary, kind, output))
    return tuple(sentences)


def _no_change(summary: Summary, kind: str, output: OutputSpec) -> str:
    """That no decision changes, as far as versions were answered at all."""
    levels = summary.plan.severities
    answered = {level: summary.answers[(kind, level), output.name].photographs for level in levels}
    refused = sum(summary.refusals[(kind, level)].asked for level in levels) - sum(answered.values())
    told = [level for level, count in answered.items() if count]
    if not told:
        return f"With {kind} alone every version was refused ({refused}), so nothing is known of its decisions."
    left_out = f"; {refused} refused versions are left out" if refused else ""
    return f"With {kind} alone no decision changes up to severity {told[-1]}{left_out}."


def _names(found: Difference) -> str:
    """The photographs that were decided otherwise, without their folders."""
    more = (found.decided or 0) - len(found.changed)
    return ", ".join(os.path.basename(name) for name in found.changed) + (f" and {more} more" if more else "")


def _change_plot(summary: Summary, output: OutputSpec) -> Plot:
    series = tuple(
        Series(
            kind,
            (0.0, *(float(severity) for severity in summary.plan.severities)),
            (0.0, *(summary.answers[(kind, severity), output.name].mean for severity in summary.plan.severities)),
        )
        for kind in summary.degradations
    )
    return Plot(
        "lines", f"{output.name}: mean change of the answer", "severity", f"mean change, {output.unit}", series,
        note="Distance from the file's own answer to the photograph as it came; refused versions are left out.",
    )  # fmt: skip


def _decision_plot(summary: Summary, output: OutputSpec) -> Plot:
    kinds = summary.degradations

    def share(kind: str, severity: int) -> tuple[float, float, float]:
        """Per cent of changed decisions and the ends of its interval; not finite where nothing was answered."""
        found = summary.answers[(kind, severity), output.name]
        if not found.photographs:
            return math.nan, math.nan, math.nan
        low, high = found.to_dict()["decisions_changed_interval_95"]
        return 100 * (found.decided or 0) / found.photographs, 100 * low, 100 * high

    series = []
    for severity in summary.plan.severities:
        heights, low, high = zip(*(share(kind, severity) for kind in kinds), strict=True)
        series.append(Series(f"severity {severity}", tuple(map(float, range(len(kinds)))), heights, low, high))
    return Plot(
        "bars", f"{output.name}: decisions changed", "", "decisions changed, %", tuple(series), ticks=kinds,
        note="With exact 95 % intervals.",
    )  # fmt: skip


def _check_section(summary: Summary) -> Section:
    rows: list[tuple[Scalar, ...]] = []
    for change, found in summary.refusals.items():
        if found.looked_at or found.unanswerable:
            flagged = f"{found.degraded} of {found.looked_at}"
            clean = found.gradability / found.looked_at if found.looked_at else None
            rows.append((in_words(change), rate_in_words(found.unanswerable, found.asked, "refused"), flagged, clean))
    table = Table(
        "What the acquisition check makes of it",
        ("version", "unanswerable", "flagged as degraded", "mean probability of a clean photograph"),
        tuple(rows),
    )
    sentences = [f"{count} versions could not be answered: {problem}" for problem, count in summary.problems.most_common(5)]
    return Section("Refused or flagged", tuple(sentences), (table,))


def _disturbance_section(summary: Summary) -> Section:
    tables = []
    for output in summary.card.outputs:
        rows = []
        for change in summary.disturbances:
            found = summary.answers[change, output.name]
            level = UNITS[change[0]].format(change[1])
            worst = os.path.basename(found.largest_in) if found.largest > 0 else ""
            rows.append((change[0], level, _number(found.mean), _number(found.largest), worst, found.rate()))
        columns = ("change", "level", f"mean, {output.unit}", f"largest, {output.unit}", "largest in", "decisions changed")
        tables.append(Table(f"{output.name} under small changes", columns, tuple(rows)))
    return Section(
        "Small changes that should not matter",
        (
            "The photograph moved by a few pixels inside its frame, compressed again as JPEG by Pillow, or with one pixel of the "
            "field of view made as bright or as dark as it can be; of the pixel, the worst of all tried places counts.",
        ),
        tuple(tables),
    )


def _order_section(summary: Summary) -> Section:
    rows: list[tuple[Scalar, ...]] = []
    sentences = []
    for (kind, name), found in summary.falls.items():
        rows.append((kind, name, found.photographs, found.not_monotone, _number(found.most), os.path.basename(found.most_in)))
        if summary.mean_falls(kind, name):
            sentences.append(f"The mean change of {name} shrinks somewhere although {kind} grows.")
    if not sentences:
        sentences.append("The mean change of every output grows, or stays, with the severity of every degradation.")
    table = Table(
        "Photographs whose answer moved back while the degradation grew",
        ("degradation", "output", "photographs", "moved back", "farthest, in the output's unit", "in"),
        tuple(rows),
        note="Counted is a fall of the distance from the clean answer by over a tenth of its largest and the card's tolerance.",
    )
    return Section("Does a worse picture move the answer farther?", tuple(sentences), (table,))


def _parity_section(summary: Summary) -> Section:
    """The file against the checkpoint on the same changed photographs."""
    tables, plots = [], []
    for output in summary.card.outputs:
        rows = []
        for (change, name), found in summary.parity.items():
            if name == output.name and found.photographs:
                cells = (in_words(change), found.photographs, _number(found.mean), _number(found.largest))
                rows.append((*cells, os.path.basename(found.largest_in), found.rate()))
        columns = (
            "version",
            "photographs",
            f"mean difference, {output.unit}",
            f"largest, {output.unit}",
            "largest in",
            "decisions",
        )
        tables.append(Table(f"{output.name}: the file against its checkpoint", columns, tuple(rows)))
        start = summary.parity[(AS_IT_CAME, 0), output.name].largest
        series = tuple(
            Series(
                kind,
                (0.0, *(float(severity) for severity in summary.plan.severities)),
                (start, *(summary.parity[(kind, severity), output.name].largest for severity in summary.plan.severities)),
            )
            for kind in summary.degradations
        )
        if series:
            plots.append(Plot("lines", f"{output.name}: parity", "severity", f"largest difference, {output.unit}", series))
    problems = summary.parity_problems()
    return Section(
        "Parity on changed photographs",
        (
            "Both sides were given the same changed photograph as a file without loss (PNG): the original its author's decoder, "
            "crop and resize, the file ours. The one changed pixel was not given to the original.",
            *(problems or ("The file stayed within the card's tolerance, and with every decision, on every version.",)),
        ),
        tuple(tables),
        tuple(plots),
    )


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None
