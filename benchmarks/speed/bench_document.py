"""A measurement as a report: what was found in sentences, the tables, the curves of latencies, and the ratios."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

from fundus_rt.benchmarks.reports.document import Plot, ReportDocument, Row, Section, Series, Table, Verdict
from fundus_rt.benchmarks.speed.call import Measured
from fundus_rt.benchmarks.speed.shown import PART_WORDS, in_words, interval_in_words, tables, title_of

MOST_CURVES = 8
"""Curves in one plot."""
_HOW = (
    "Single stream, offline and server are the scenarios of MLPerf Inference: the next photograph when the last was answered; "
    "all photographs at once; photographs that arrive at random (Poisson), where a latency counts from the scheduled arrival.",
    "A percentile stands with the 95 % interval that order statistics give whatever the distribution is. Where a sample is too "
    "small for that interval, no percentile is given: the median takes 6 answers, p90 takes 36, p99 takes 368.",
    "Bytes to result is everything from a file's content in memory to the result: decoding, the search for the field of view, "
    "the acquisition model's look, resize, network and interpretation. Network only begins with the prepared input.",
)


def bench_document(measured: Measured) -> ReportDocument:
    """The report of a measurement."""
    record = measured.record
    sections = [
        _section("Latency", ("Latency",), record, _HOW, _curves(record)),
        _section("Throughput and energy", ("Photographs",), record, _energy(record)),
        _section("Start and memory", ("Fresh",), record),
        _section("Against other ways", ("Ways", "Not timed"), record, _against_words(record), _ratio_plots(record)),
        _section("Distance to the arithmetic floor", ("Arithmetic",), record, _floor_words(record)),
        _section("Caching", ("Different",), record),
        _section("The machine meanwhile", (), record, tuple(_machine_words(record))),
    ]
    title = f"Speed of {', '.join(dict.fromkeys(found['name'] for found in record['files'])) or 'nothing yet'}"
    return ReportDocument(
        "bench", title, Verdict(None, _sentence(record)), _subject(record), record,
        tuple(section for section in sections if section.tables or section.sentences), functools.partial(_rows, measured),
    )  # fmt: skip


def _section(
    title: str, beginnings: tuple[str, ...], record: dict[str, Any], sentences: tuple[str, ...] = (), plots: tuple[Plot, ...] = ()
) -> Section:
    """A chapter with those tables of a record whose titles begin so; without one it has nothing to say."""
    chosen = tuple(
        Table(name, columns, tuple(rows)) for name, columns, rows in tables(record) if beginnings and name.startswith(beginnings)
    )
    return Section(title, sentences if chosen or not beginnings else (), chosen, plots)


def _sentence(record: dict[str, Any]) -> str:
    """The page's first sentence: the fastest way where ways took turns, else the first file's median."""
    interrupted = "The run was interrupted; what was finished stands here. " if record["interrupted"] else ""
    for part, found in ((record["against"] or {}).get("parts", {})).items():
        if len(found["ways"]) > 1:
            best = max(found["ways"], key=lambda way: float(way["first_to_this"]["value"]))
            first = found["ways"][0]["name"]
            return (
                f"{interrupted}{PART_WORDS[part].capitalize()}, the fastest of {len(found['ways'])} ways is {best['name']}: "
                f"{interval_in_words(best['first_to_this'])} times as fast as {first}, by ratios of the same rounds."
            )
    for found in record["files"]:
        for scenario, parts in found["scenarios"].items():
            for part, figures in parts.items():
                rate = in_words(figures["rate"])
                said = f"{rate} photographs a second" if figures["rate"] is not None else "no rate keeps the bound"
                return f"{interrupted}{title_of(found)}, {scenario.replace('_', ' ')}, {PART_WORDS[part]}: {said}."
    return f"{interrupted}Nothing was finished."


def _subject(record: dict[str, Any]) -> dict[str, str]:
    """Files, machine and options; no names of photographs."""
    environment, asked = record["environment"], record["asked"]
    found = {f"File {one['name']}": f"SHA-256 {one['sha256']}, {one['precision']}" for one in record["files"]}
    if record["against"]:
        against = record["against"]
        found["Checkpoint"] = f"{against['network']}, SHA-256 {against['checkpoint_sha256']}"
    packages = {**environment["packages"], **(record["against"] or {}).get("versions", {})}
    return {
        **found,
        "Processor": f"{environment['processor']}, {environment['cores']} usable cores, {environment['memory_gib']} GiB",
        "System": f"{environment['system']} {environment['machine']}, Python {environment['python']}",
        "Packages": ", ".join(f"{name} {version}" for name, version in packages.items() if version),
        "Asked for": f"{', '.join(asked['scenarios'])}; at least {asked['least_seconds']:g} s and {asked['least_samples']} "
        f"answers after {asked['warm_up']} that are not counted; {asked['threads']} threads for one inference, "
        f"{asked['workers']} at "
        f"once offline; backend {asked['backend']} on {asked['device']}; seed {asked['seed']}",
        "Date": record["date"],
    }


def _curves(record: dict[str, Any]) -> tuple[Plot, ...]:
    """Cumulative curves of latency, one plot for each scenario and part."""
    found: dict[tuple[str, str], list[Series]] = {}
    for one in record["files"]:
        for scenario, parts in one["scenarios"].items():
            for part, figures in parts.items():
                if curve := figures.get("curve"):
                    found.setdefault((scenario, part), []).append(_curve(title_of(one), curve))
    return tuple(
        _curve_plot(f"{scenario.replace('_', ' ').capitalize()}, {PART_WORDS[part]}", series)
        for (scenario, part), series in found.items()
    )


def _curve(name: str, curve: list[list[float]]) -> Series:
    return Series(name, tuple(100 * share for _, share in curve), tuple(ms for ms, _ in curve))


def _curve_plot(title: str, series: list[Series]) -> Plot:
    return Plot(
        "lines", f"Latency: {title}", "share of the answers that were no slower, %", "latency, ms", tuple(series[:MOST_CURVES]),
        "A flat line is a steady time; the rise at its right end is the slowest answers.",
    )  # fmt: skip


def _ratio_plots(record: dict[str, Any]) -> tuple[Plot, ...]:
    """Of each part, how many times as fast as the first way every way is, and the curves of their times."""
    plots = []
    for part, found in ((record["against"] or {}).get("parts", {})).items():
        ways = found["ways"]
        if not ways:
            continue
        ratios = [way["first_to_this"] for way in ways]
        bounds = all(ratio["low"] is not None for ratio in ratios)
        series = Series(
            "times as fast", (), tuple(ratio["value"] for ratio in ratios),
            tuple(ratio["low"] for ratio in ratios) if bounds else (), tuple(ratio["high"] for ratio in ratios) if bounds else (),
        )  # fmt: skip
        plots.append(Plot(
            "bars", f"In turns, {PART_WORDS[part]}", "way", f"times as fast as {ways[0]['name']}", (series,),
            f"Median of {found['rounds']} rounds' ratios; the thin lines are 95 % intervals of a bootstrap over the rounds."
            if bounds else "Too few rounds for intervals.", ticks=tuple(way["name"] for way in ways),
        ))  # fmt: skip
        plots.append(_curve_plot(f"in turns, {PART_WORDS[part]}", [_curve(way["name"], way["curve"]) for way in ways]))
    return tuple(plots)


def _against_words(record: dict[str, Any]) -> tuple[str, ...]:
    against = record["against"]
    if not against:
        return ()
    return (
        "All ways were open in one process and answered the same photograph in each round, in a drawn order; each turn is two "
        "answers, of which the second is timed. A ratio compares two times of one round, so what disturbs the machine "
        "disturbs both.",
        f"Before that, every way answered {min(8, against['photographs'])} photographs; one whose answers are not the "
        "first way's within the card's tolerance (in lower precision its budget) is listed as wrong and was not timed.",
        "The original's bytes-to-result way is its sample code: decode, crop, resize and normalise by its author's libraries, "
        "then the framework. The crop is handed to it for nothing, and nothing checks the photograph; our "
        "files' way finds the crop, "
        + ("asks the acquisition model," if record["asked"]["check"] else "leaves the acquisition model out,")
        + " and checks the receipt of every answer.",
    )


def _floor_words(record: dict[str, Any]) -> tuple[str, ...]:
    if record["ceiling_gflop_s"] is None:
        return ()
    return (
        f"This machine did {in_words(record['ceiling_gflop_s'])} GFLOP/s in a float32 matrix product of 2,048 rows and columns "
        f"by NumPy's BLAS on {record['asked']['threads']} threads, the best of several, in this run. The floor "
        f"is the time that the "
        "network's convolutions and matrix products would take at that speed, two operations for each multiplication and "
        "addition.",
    )


def _energy(record: dict[str, Any]) -> tuple[str, ...]:
    return ("Joules are those of the whole package, module or GPU while it was measured, idle power included, warm-up counted.",)


def _machine_words(record: dict[str, Any]) -> Iterator[str]:
    """Load, others' share, clocks and throttling of the whole run; what is not told is said to be so."""
    machine = record["machine"]
    if machine is None:
        return
    load, others = record["load_before"], machine["others_share"]
    yield f"Load average before: {'not told here' if load is None else f'{load:.2f}'}."
    yield (
        "How much of the processors others used is not told here."
        if others is None
        else f"Others used {100 * others:.0f} % of the processors during the run, {100 * machine['stolen_share']:.1f} % of all "
        "were taken by a hypervisor."
    )
    clocks = machine["clocks_mhz"]
    yield (
        "The clocks are not told here."
        if clocks["before"] is None or clocks["after"] is None
        else f"Clocks of the cores before {_span(clocks['before'])} MHz, after {_span(clocks['after'])} MHz."
    )
    events = machine["throttle_events"]
    yield "Thermal throttling is not told here." if events is None else f"Thermal throttling events during the run: {events}."
    yield from record["warnings"]


def _span(values: list[float]) -> str:
    return f"{min(values):.0f} to {max(values):.0f}"


def _rows(measured: Measured) -> Iterator[Row]:
    """One row for each timed answer."""
    for series in measured.latencies:
        named = {key: series[key] for key in ("file", "scenario", "part", "way")}
        for number, seconds in enumerate(series["seconds"]):
            yield {**named, "number": number, "ms": round(seconds * 1e3, 4)}
