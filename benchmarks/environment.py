"""What a figure was measured on."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

PACKAGES = (
    "fundus-rt",
    "numpy",
    "opencv-python-headless",
    "Pillow",
    "onnxruntime",
    "openvino",
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


def run_measured(arguments: list[str], accepted: tuple[int, ...] = (0,), log: Path | None = None) -> tuple[float, float]:
    """Run a command to its end; wall-clock seconds and peak resident memory in MB of its process.

    The peak is Linux' VmHWM, read every 10 ms: what `wait4` reports would count the memory of the process that started it.

    Args:
        arguments: the command's words.
        accepted: exit statuses that are no failure.
        log: where to keep what it printed; None: nowhere.

    Raises:
        RuntimeError: it failed; with what it printed.
    """
    with tempfile.TemporaryFile() as output:
        started = time.perf_counter()
        process = subprocess.Popen(arguments, stdout=output, stderr=subprocess.STDOUT)
        peak, seconds = 0.0, 0.0
        while process.poll() is None:
            seconds = time.perf_counter() - started
            peak = max(peak, _peak_mb(process.pid))
            time.sleep(0.01)
        output.seek(0)
        text = output.read().decode(errors="replace")
        if log is not None:
            log.write_text(text, encoding="utf-8")
        if process.returncode not in accepted:
            raise RuntimeError(f"{' '.join(arguments)} ended with {process.returncode}:\n{text}")
    return seconds, peak


def _peak_mb(process: int) -> float:
    """Peak resident memory so far in MB; 0 where the system does not say or the process has gone."""
    try:
        for line in Path(f"/proc/{process}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1e3
    except OSError:
        pass
    return 0.0


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
