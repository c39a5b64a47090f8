"""What a figure was measured on."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

PACKAGES = (
    "fundus-rt",
    "numpy",
    "opencv-python-headless",
    "Pillow",
    "onnxruntime",
    "torch",
    "timm",
    "tensorflow",
    "tf-keras",
    "tf2onnx",
    "onnx",
)


def environment() -> dict[str, Any]:
    """Processor, cores, memory in GiB, Python and package versions (None: not installed). No host name, no paths."""
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "system": platform.system(),
        "machine": platform.machine(),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
    }


def label(found: dict[str, Any]) -> str:
    """Short name for a result file: machine, cores, ONNX Runtime version."""
    return f"{found['machine']}-{found['cores']}cores-ort{found['packages']['onnxruntime']}"


def run_measured(arguments: list[str], env: dict[str, str] | None = None) -> tuple[float, float]:
    """Run a command to its end; wall-clock seconds and peak resident memory in MB of its process.

    Raises:
        RuntimeError: it failed; with what it printed.
    """
    import time

    started = time.perf_counter()
    process = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=env)
    assert process.stdout is not None
    output = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    elapsed = time.perf_counter() - started
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"{' '.join(arguments)} ended with {process.returncode}:\n{output.decode(errors='replace')}")
    return elapsed, usage.ru_maxrss / (1e6 if sys.platform == "darwin" else 1e3)


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith(("model name", "Model")):
                return line.partition(":")[2].strip()
    return platform.processor()


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
