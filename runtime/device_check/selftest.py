"""What a device can prove about itself, step by step, in one JSON file that its owner can send back.

The file is written anew after every step and names the step that is running, so one that brings the whole process down loses
nothing but itself. It holds no photograph, nothing of a patient, and no name of machine, user, folder or serial number
(`anonymous`).
"""

from __future__ import annotations

import datetime
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fundus_rt.models.artifacts import atomic_path
from fundus_rt.models.errors import FundusRtError
from fundus_rt.runtime.device_check.anonymity import anonymous

REPORT_FORMAT = 2
"""Version of the JSON file."""
PASSED, FAILED, SKIPPED = "passed", "failed", "skipped"

MOST_CHARACTERS = 600
"""Of a reason; of a longer one the beginning and, for what a program said last, twice as much of the end are kept."""


@dataclass(frozen=True)
class Outcome:
    """What a step found."""

    status: str
    """``passed``, ``failed`` or ``skipped``."""
    reason: str = ""
    """One sentence; a step that failed or was skipped always has one."""
    figures: dict[str, Any] = field(default_factory=dict)
    """JSON-ready values; names end in their unit."""


@dataclass(frozen=True)
class Step:
    """One thing to find out."""

    name: str
    work: Callable[[], Outcome]


class SkipStep(Exception):
    """Raised by a step that has nothing to look at here; its text is the reason."""


def run_steps(
    steps: Sequence[Step],
    about: dict[str, Any],
    path: Path,
    say: Callable[[str], None],
    names: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Take every step and keep what it found, whatever happens to the others.

    Args:
        steps: in their order.
        about: what the report says of itself beside the steps.
        path: the JSON file, replaced as a whole after each step.
        say: gets the name of each step that begins.
        names: texts that must not stand in the file, and what stands there instead (`anonymous`).

    Returns:
        The report as it stands in the file: ``planned``, the names of all steps; ``steps``, those that were taken, each with
        name, status, reason, figures and seconds; ``passed``, True where none failed and every planned one was taken;
        ``running``, the step that had not ended when the file was written.

    Raises:
        OSError: the file cannot be written.
        KeyboardInterrupt: after Ctrl-C; the file is whole.
    """
    done: list[dict[str, Any]] = []
    planned = [step.name for step in steps]
    about = {**anonymous(about, names), "planned": planned}
    report = _written(about, done, None, path)
    for step in steps:
        report = _written(about, done, step.name, path)
        say(step.name)
        started = time.perf_counter()
        outcome = _outcome(step)
        seconds = round(time.perf_counter() - started, 3)
        reason = _shortened(anonymous(outcome.reason, names))  # a name that is cut in two would not be recognised
        figures = anonymous(outcome.figures, names)
        done.append({"name": step.name, "status": outcome.status, "reason": reason, "figures": figures, "seconds": seconds})
        report = _written(about, done, None, path)
    return report


def summary(report: dict[str, Any]) -> list[str]:
    """The report as a table of lines: status, step, reason."""
    width = max((len(step["name"]) for step in report["steps"]), default=0)
    lines = [f"{step['status']:<8} {step['name']:<{width}}  {step['reason']}".rstrip() for step in report["steps"]]
    counts = {status: sum(step["status"] == status for step in report["steps"]) for status in (PASSED, FAILED, SKIPPED)}
    return [*lines, ", ".join(f"{count} {status}" for status, count in counts.items())]


def _shortened(text: str) -> str:
    part = MOST_CHARACTERS // 3
    return text if len(text) <= MOST_CHARACTERS else f"{text[:part]} … {text[-2 * part :]}"


def _outcome(step: Step) -> Outcome:
    try:
        return step.work()
    except SkipStep as reason:
        return Outcome(SKIPPED, str(reason))
    except FundusRtError as error:
        return Outcome(FAILED, " ".join(str(error).split()))
    except Exception as error:  # a step that breaks must not take the others with it
        if isinstance(error.__cause__, KeyboardInterrupt):  # as click's Abort, which is an ordinary error
            raise KeyboardInterrupt from error
        return Outcome(FAILED, f"{type(error).__name__}: {' '.join(str(error).split())}")


def _written(about: dict[str, Any], done: list[dict[str, Any]], running: str | None, path: Path) -> dict[str, Any]:
    failed = any(step["status"] == FAILED for step in done)
    report = {
        "format": REPORT_FORMAT,
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        **about,
        "running": running,
        "passed": not failed and running is None and len(done) == len(about["planned"]),
        "steps": done,
    }
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(report, indent=1, ensure_ascii=False, default=str) + "\n", encoding="utf-8")
    return report
