"""What a check of the installation found: a mark, what is there, what to do; and the report that can be sent to others."""

from __future__ import annotations

import contextlib
import getpass
import os
import re
import socket
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from fundus_rt.models.cache_folder import FOLDER_VARIABLE

OK = "ok"
WARNING = "warning"
"""Pictures are answered, but not as they could be."""
FAULT = "fault"
"""Pictures may not be answered, or with a library that nobody chose."""
ABSENT = "not present"


@dataclass(frozen=True)
class Finding:
    """The result of one check."""

    name: str
    state: str
    """`OK`, `WARNING`, `FAULT` or `ABSENT`."""
    found: str
    advice: str = ""
    """What to do; empty where nothing has to be done."""
    values: dict[str, Any] = field(default_factory=dict)
    """The same for programs: versions, sizes in bytes."""


def worst_state(findings: Sequence[Finding]) -> str:
    """`FAULT`, `WARNING` or `OK`."""
    states = {finding.state for finding in findings}
    return FAULT if FAULT in states else WARNING if WARNING in states else OK


def report(findings: Sequence[Finding], version: str) -> dict[str, Any]:
    """Everything as one JSON object, without names of people and machines: see `without_names`."""
    checks = [asdict(finding) for finding in findings]
    return {"format": 1, "fundus_rt": version, "state": worst_state(findings), "checks": _cleaned(checks)}


def without_names(text: str) -> str:
    """A text without what identifies a person or a machine in paths and messages.

    The folders that the environment names become the names of the variables, the home folder becomes ``~``, the user's name in
    other paths ``USER``, the host's name ``HOST``.
    """
    replaced = [(os.environ.get(name, ""), f"${name}") for name in (FOLDER_VARIABLE, "XDG_CACHE_HOME")]
    home = os.path.expanduser("~")
    replaced += [(os.path.realpath(home), "~"), (home, "~")]
    for folder, shown in replaced:
        if len(folder) > 1 and os.path.isabs(folder):
            text = re.sub(rf"(?<![\w/]){re.escape(folder.rstrip('/'))}(?![\w-])", shown, text)
    for name in _user_names():
        text = re.sub(rf"(?<=/){re.escape(name)}(?=/|$|[\s'\":,;)])", "USER", text)
    host = socket.gethostname()
    if len(host) > 2:
        text = re.sub(rf"(?<![\w.-]){re.escape(host)}(?![\w-])", "HOST", text)
    return text


def _user_names() -> set[str]:
    names = {os.environ.get(name, "") for name in ("USER", "LOGNAME", "USERNAME", "SUDO_USER")}
    with contextlib.suppress(KeyError, OSError):  # a number without a name, as in many containers
        names.add(getpass.getuser())
    names.add(Path(os.path.expanduser("~")).name)
    return names - {"", "root"}


def _cleaned(value: Any) -> Any:
    if isinstance(value, str):
        return without_names(value)
    if isinstance(value, dict):
        return {without_names(str(key)): _cleaned(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_cleaned(item) for item in value]
    return value
