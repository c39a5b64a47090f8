"""``fundus-rt doctor``: what is installed here, what works, and what to do where something does not."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from fundus_rt.runtime.device_check.findings import Finding

_COLOURS = {"ok": "green", "warning": "yellow", "fault": "red", "not present": None}


@click.command(short_help="Look at libraries, GPU and folders; say what to do.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object, without names of people and machines.")
@click.pass_context
def doctor(context: click.Context, as_json: bool) -> None:
    """Look at everything that answering needs: a line for each part, and below it what to do.

    Exit status: 0 photographs can be answered here, 1 something stands in the way.
    """
    import json
    from importlib.metadata import PackageNotFoundError, version

    from fundus_rt.runtime.device_check.doctor import examine
    from fundus_rt.runtime.device_check.findings import FAULT, report, without_names, worst_state

    try:
        own = version("fundus-rt")
    except PackageNotFoundError:
        own = "not installed"
    findings: list[Finding] = []
    for finding in examine():
        findings.append(finding)
        if not as_json:
            _show(finding, without_names)
    if as_json:
        click.echo(json.dumps(report(findings, own), indent=1, ensure_ascii=False))
    else:
        click.echo(_summary(findings, own))
    if worst_state(findings) == FAULT:
        context.exit(1)


def _show(finding: Finding, cleaned: Callable[[str], str]) -> None:
    mark = click.style(f"{finding.state:<12}", fg=_COLOURS[finding.state])
    _say(f"{mark}{finding.name:<14}{cleaned(finding.found)}")
    if finding.advice:
        _say(f"{'':<12}{'':<14}-> {cleaned(finding.advice)}")


def _say(line: str) -> None:
    click.echo(line, color=False if os.environ.get("NO_COLOR") else None)


def _summary(findings: list[Finding], version: str) -> str:
    counts = {state: sum(finding.state == state for finding in findings) for state in _COLOURS}
    if counts["fault"]:
        return f"\nfundus-rt {version}: {counts['fault']} fault(s) stand in the way of answers; do what stands after the arrows"
    warnings = f", {counts['warning']} warning(s)" if counts["warning"] else ""
    return f"\nfundus-rt {version}: photographs can be answered here{warnings}"
