"""What a device can prove about itself, step by step, in one JSON file that its owner can send back.

The file is written anew after every step and names the step that is running, so one that brings the whole process down loses
nothing but itself. It holds no photograph, nothing of a patient, and no name of machine, user, folder or serial number
(`anonymous`).
"""

from __future__ import annotations

import datetime
import json
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fundus_rt.models.artifacts import atomic_path
from fundus_rt.models.errors import FundusRtError
from fundus_rt.runtime.device_check.findings import without_names

REPORT_FORMAT = 1
"""Version of the JSON file."""
PASSED, FAILED, SKIPPED = "passed", "failed", "skipped"

_PATH = re.compile(r"(?<![\w.:/\\~-])(?:~|[A-Za-z]:)?[\\/](?:[^\s'\"():;,\\/]+[\\/])*[^\s'\"():;,\\/]*")
_LIBRARY = re.compile(r"[\w+-]+\.(?:so(?:\.\d+)*|py|dll)$")
_MODEL_FILE = re.compile(r"[\w.+-]+(?=\.(?:onnx|engine|pth|h5|keras)\b)")
_SERIALS = re.compile(r"(?:GPU-|MIG-)?[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}|(?:[0-9a-f]{2}:){5}[0-9a-f]{2}", re.IGNORECASE)


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


def run_steps(steps: Sequence[Step], about: dict[str, Any], path: Path, say: Callable[[str], None]) -> dict[str, Any]:
    """Take every step and keep what it found, whatever happens to the others.

    Args:
        steps: in their order.
        about: what the report says of itself beside the steps.
        path: the JSON file, replaced as a whole after each step.
        say: gets the name of each step that begins.

    Returns:
        The report as it stands in the file: ``steps``, each with name, status, reason, figures and seconds; ``passed``, True
        where none failed and all were taken; ``running``, the step that had not ended when the file was written.

    Raises:
        OSError: the file cannot be written.
        KeyboardInterrupt: after Ctrl-C; the file is whole.
    """
    done: list[dict[str, Any]] = []
    report: dict[str, Any] = {}
    for step in steps:
        report = _written(about, done, step.name, path)
        say(step.name)
        started = time.perf_counter()
        outcome = _outcome(step)
        found = {"name": step.name, "status": outcome.status, "reason": outcome.reason, "figures": outcome.figures}
        done.append(anonymous({**found, "seconds": round(time.perf_counter() - started, 3)}))
        report = _written(about, done, None, path)
    return report


def summary(report: dict[str, Any]) -> list[str]:
    """The report as a table of lines: status, step, reason."""
    width = max((len(step["name"]) for step in report["steps"]), default=0)
    lines = [f"{step['status']:<8} {step['name']:<{width}}  {step['reason']}".rstrip() for step in report["steps"]]
    counts = {status: sum(step["status"] == status for step in report["steps"]) for status in (PASSED, FAILED, SKIPPED)}
    return [*lines, ", ".join(f"{count} {status}" for status, count in counts.items())]


def anonymous(value: Any) -> Any:
    """The same values without names of machine and user, paths and serial numbers.

    A path becomes ``…``, or ``~/…`` below the home folder; only the file name of a library or a Python module is kept.
    Of a model's file the ending is kept: somebody may have named it after somebody.
    """
    if isinstance(value, dict):
        return {str(key): anonymous(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [anonymous(entry) for entry in value]
    if not isinstance(value, str):
        return value
    return _MODEL_FILE.sub("…", _SERIALS.sub("…", _PATH.sub(_short_path, without_names(value))))


def _short_path(found: re.Match[str]) -> str:
    path = found.group(0)
    if path.count("/") + path.count("\\") < 2 and not path.startswith("~"):
        return path  # a slash between two words, "/" alone
    name = re.split(r"[\\/]", path)[-1]
    return ("~/…" if path.startswith("~") else "…") + (f"/{name}" if _LIBRARY.match(name) else "")


def _outcome(step: Step) -> Outcome:
    try:
        return step.work()
    except SkipStep as reason:
        return Outcome(SKIPPED, str(reason))
    except FundusRtError as error:
        return Outcome(FAILED, " ".join(str(error).split()))
    except Exception as error:  # a step that breaks must not take the others with it
        return Outcome(FAILED, f"{type(error).__name__}: {' '.join(str(error).split())[:400]}")


def _written(about: dict[str, Any], done: list[dict[str, Any]], running: str | None, path: Path) -> dict[str, Any]:
    failed = any(step["status"] == FAILED for step in done)
    report = {
        "format": REPORT_FORMAT,
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        **anonymous(about),
        "running": running,
        "passed": not failed and running is None,
        "steps": done,
    }
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(report, indent=1, ensure_ascii=False, default=str) + "\n", encoding="utf-8")
    return report
