"""Whole processes: from their start to the first answer, and the memory of one that does nothing else."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fundus_rt.models.errors import FundusRtError

_CHILD = """
import json, sys, time
asked = json.loads(sys.argv[1])
from fundus_rt.runtime.pipeline import Pipeline
begun = time.perf_counter()
pipeline = Pipeline(asked["file"], asked["backend"], asked["device"], threads=asked["threads"], check=asked["check"])
load_s = time.perf_counter() - begun
for turn in range(asked["answers"]):
    for path, eye in asked["photographs"]:
        with open(path, "rb") as stream:
            prepared = pipeline.prepare_bytes(stream.read(), {"call": eye})
        answer = pipeline.finish([prepared])[0]
        if isinstance(answer, Exception):
            raise answer
        if turn == 0 and path == asked["photographs"][0][0]:
            print("answered", flush=True)
peak = None
try:
    with open("/proc/self/status") as stream:
        peak = next((int(line.split()[1]) * 1024 for line in stream if line.startswith("VmHWM:")), None)
except OSError:
    pass
print(json.dumps({"load_s": load_s, "peak_bytes": peak}), flush=True)
"""


@dataclass(frozen=True)
class OwnProcess:
    """What one process did."""

    first_answer_s: float
    """Seconds from its start to its first answer: interpreter, imports, opening the file, its known pictures, one photograph."""
    load_s: float
    """Of that, opening the file."""
    peak_bytes: int | None
    """Largest resident memory (Linux' VmHWM); None where the system does not say."""


def own_process(
    file: str, photographs: Sequence[tuple[bytes, str | None]], answers: int, backend: str, device: str,
    threads: int | None, check: bool,
) -> OwnProcess:  # fmt: skip
    """Start a process that opens a model, answers photographs, and ends.

    The operating system's cache of files is warm: the file was read before.

    Args:
        file: as `fundus_rt.runtime.pipeline.Pipeline` takes it, and so are `backend`, `device`, `threads` and `check`.
        photographs: contents of picture files, and the eye of each.
        answers: how often each is answered.

    Raises:
        FundusRtError: the process failed, with what it said.
    """
    with tempfile.TemporaryDirectory(prefix="fundus-rt-bench-") as scratch:
        places = []
        for number, (content, eye) in enumerate(photographs):
            path = Path(scratch) / str(number)
            path.write_bytes(content)
            places.append((str(path), eye))
        asked = {
            "file": str(file), "photographs": places, "answers": answers, "backend": backend, "device": device,
            "threads": threads, "check": check,
        }  # fmt: skip
        with tempfile.TemporaryFile("w+") as errors:
            started = time.perf_counter()
            process = subprocess.Popen(
                [sys.executable, "-c", _CHILD, json.dumps(asked)],
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
            )
            with process:
                assert process.stdout is not None, "it was asked for"
                first = process.stdout.readline()
                seconds = time.perf_counter() - started
                rest = process.stdout.read()
            errors.seek(0)
            if process.returncode or first.strip() != "answered":
                raise FundusRtError(f"a fresh process could not answer with {Path(file).name}: {errors.read().strip()[-400:]}")
        said: dict[str, Any] = json.loads(rest)
        return OwnProcess(seconds, said["load_s"], said["peak_bytes"])
