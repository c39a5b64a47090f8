"""Chapters about what can be chosen with labels: an operating point, a preprocessing."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fundus_rt.benchmarks.evaluation.operating_points import OperatingPoint
from fundus_rt.benchmarks.evaluation.preprocessing_search import SearchResult
from fundus_rt.benchmarks.reports.document import Section, Table


def operating_point_section(output: str, points: dict[str, OperatingPoint | str]) -> Section:
    """Thresholds for a wanted sensitivity, what they cost, and what they do on photographs not seen in choosing."""
    sentences, rows = [], []
    for name, point in points.items():
        if isinstance(point, str):
            sentences.append(point)
            continue
        where = f"{name}, from {point.threshold:.6g} on"
        rows.append((where, "these photographs", str(point.sensitivity), str(point.specificity)))
        if point.unseen_sensitivity is None:
            rows.append((where, "unseen patients", f"not known: {point.why_not_unseen}", ""))
        else:
            rows.append((where, "unseen patients", str(point.unseen_sensitivity), str(point.unseen_specificity)))
        reached = "the lower end of its exact interval" if point.aim == "bound" else "the share found itself"
        sentences.append(
            f"{name}: from a probability of {point.threshold:.6g} on, {reached} reaches a sensitivity of {point.wanted:g}. "
            "It was chosen on these photographs, so what it does on them is too good; trust the line for unseen patients, "
            "and check it on new photographs before use."
        )
    columns = ("operating point", "asked on", "sensitivity", "specificity")
    note = "Unseen patients: chosen on nine tenths of the patients, asked on the rest."
    note += " Referral: the grade of --referable, or a worse one." if "referral" in points else ""
    table = Table("Operating points", columns, tuple(rows), note)
    return Section(f"{output}: operating point for a wanted sensitivity", tuple(sentences), (table,) if rows else ())


def search_section(search: SearchResult | None, notes: Sequence[str]) -> Section:
    """Every candidate of every round."""
    if search is None:
        return Section("Which preprocessing do the labels support?", tuple(notes))
    tables = []
    for number, part in enumerate(search.rounds, start=1):
        rows = tuple(
            (c.candidate, c.metric, c.gain, c.low, c.high, c.adjusted, f"{c.only_this_right} : {c.only_other_right}", c.mcnemar)
            for c in sorted(part.comparisons, key=lambda c: -c.gain if np.isfinite(c.gain) else np.inf)
        )
        columns = ("candidate", search.metric, "better by", "from", "to", "corrected p", "only it : only the other", "McNemar p")
        title = f"Round {number}: against {part.base} ({part.base_metric:.4g})"
        tables.append(Table(title, columns, rows, "Corrected for all comparisons so far (Holm). Below 0: worse."))
    said = [f"{search.sentence}.", f"Compared on {search.photographs} photographs of {search.patients} patients."]
    if search.rivals:
        said.append("Where labels cannot tell two apart, either may be the author's: ask them, or add labelled photographs.")
    return Section("Which preprocessing do the labels support?", (*said, *notes), tuple(tables))
