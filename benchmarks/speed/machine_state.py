"""What the machine does while a figure is taken: clocks, throttling, energy, and who else uses its processors.

Everything is read, nothing estimated: what this machine does not tell is None.
"""

from __future__ import annotations

import importlib
import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path("/")
BUSY = 0.1
"""Share of the processors' time used by others from which on a figure carries a warning."""
TEGRASTATS_MS = 200
_TEGRA_RAILS = ("VDD_IN", "VIN_SYS_5V0", "POM_5V_IN")
"""Names of the rail that feeds the whole module, by board (NVIDIA Jetson Linux Developer Guide, tegrastats)."""


@dataclass(frozen=True)
class Reading:
    """The machine at one moment."""

    moment: float
    """Seconds of `time.perf_counter`."""
    clocks_mhz: list[float] | None
    """Of each core, as Linux' cpufreq says it."""
    throttle_events: int | None
    """Thermal throttling so far: the events of all cores, and of each package once."""
    package_uj: dict[str, tuple[int, int]] | None
    """By RAPL package its energy counter and the value at which it wraps, microjoules."""
    total_s: float | None
    """Processor time of the whole machine so far, idle time included, over all cores."""
    busy_s: float | None
    """Of that, what was not idle."""
    stolen_s: float | None
    """Of that, what a hypervisor gave to others."""
    own_s: float
    """Processor time of this process and its ended children."""
    load: float | None
    """Load average of the last minute."""
    gpu: dict[str, Any] | None
    """Clocks, reasons of throttling and energy counter of the first NVIDIA GPU, as NVML says them."""


def read_machine(root: Path = ROOT) -> Reading:
    """Read all that this machine tells.

    Args:
        root: below which ``sys`` and ``proc`` lie.
    """
    total, busy, stolen = processor_seconds(root)
    own = os.times()
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    return Reading(
        time.perf_counter(), clocks_mhz(root), throttle_events(root), package_energy(root), total, busy, stolen,
        own.user + own.system + own.children_user + own.children_system, load, _nvml(),
    )  # fmt: skip


def clocks_mhz(root: Path = ROOT) -> list[float] | None:
    """Clock of each core in MHz; None where cpufreq does not say it (kernel documentation, cpu-freq: kHz)."""
    paths = sorted((root / "sys/devices/system/cpu").glob("cpu[0-9]*/cpufreq/scaling_cur_freq"))
    found = [value / 1e3 for path in paths if (value := _number(path)) is not None]
    return found or None


def throttle_events(root: Path = ROOT) -> int | None:
    """Thermal throttling since the start of the machine; None where the processor does not count it.

    The events of every core, and the largest count of those that the cores of one package share.
    """
    folders = sorted((root / "sys/devices/system/cpu").glob("cpu[0-9]*/thermal_throttle"))
    cores = [value for folder in folders if (value := _number(folder / "core_throttle_count")) is not None]
    packages: dict[int, int] = {}
    for folder in folders:
        count = _number(folder / "package_throttle_count")
        which = _number(folder.parent / "topology/physical_package_id") or 0
        if count is not None:
            packages[which] = max(packages.get(which, 0), count)
    return sum(cores) + sum(packages.values()) if cores or packages else None


def package_energy(root: Path = ROOT) -> dict[str, tuple[int, int]] | None:
    """Energy counters of the processor packages (kernel documentation, Power Capping Framework); None where none can be read.

    Parts of a package, and the whole platform, which contains it, are left out.
    """
    found = {}
    for folder in sorted((root / "sys/class/powercap").glob("*:[0-9]*")):
        if folder.name.count(":") != 1 or not _text(folder / "name").startswith("package"):
            continue
        energy, most = _number(folder / "energy_uj"), _number(folder / "max_energy_range_uj")
        if energy is not None and most is not None:
            found[folder.name] = (energy, most)
    return found or None


def processor_seconds(root: Path = ROOT) -> tuple[float | None, float | None, float | None]:
    """Total, not idle, and stolen processor seconds of all cores since the start (proc(5), /proc/stat); None: not told."""
    line = next((line for line in _text(root / "proc/stat").splitlines() if line.startswith("cpu ")), "")
    ticks = [int(word) for word in line.split()[1:9]]
    if len(ticks) < 8:
        return None, None, None
    a_second = os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100
    user, nice, system, idle, waiting, hard, soft, stolen = (tick / a_second for tick in ticks)
    busy = user + nice + system + hard + soft + stolen
    return busy + idle + waiting, busy, stolen


def change(before: Reading, after: Reading, answers: int | None = None, tegra_mw: list[int] | None = None) -> dict[str, Any]:
    """What happened between two readings, for the record.

    Args:
        before, after: of one machine.
        answers: how many pictures were answered between them, for the energy of one; None where nothing was counted.
        tegra_mw: readings of the whole Jetson module's power, from `tegrastats`.

    Returns:
        Clocks and throttling before and after; ``others_share``, the share of the processors' time that other processes used
        and a hypervisor took; joules of processor packages, GPU and Jetson for each answer, idle power and others' included.
    """
    seconds = after.moment - before.moment
    others = stolen = None
    if None not in (before.total_s, after.total_s, before.busy_s, after.busy_s):
        total = after.total_s - before.total_s  # type: ignore[operator]
        busy = after.busy_s - before.busy_s  # type: ignore[operator]
        if total > 0:
            others = min(max((busy - (after.own_s - before.own_s)) / total, 0.0), 1.0)
            stolen = (after.stolen_s - before.stolen_s) / total  # type: ignore[operator]
    package = package_joules(before.package_uj, after.package_uj)
    gpu = _gpu_joules(before.gpu, after.gpu)
    module = sum(tegra_mw) / len(tegra_mw) / 1e3 * seconds if tegra_mw else None
    return {
        "seconds": seconds,
        "load_before": before.load,
        "clocks_mhz": {"before": before.clocks_mhz, "after": after.clocks_mhz},
        "throttle_events": _difference(before.throttle_events, after.throttle_events),
        "gpu": {"before": before.gpu, "after": after.gpu},
        "others_share": others,
        "stolen_share": stolen,
        "joules_an_answer": {
            name: None if joules is None or not answers else joules / answers
            for name, joules in (("processor_packages", package), ("gpu", gpu), ("jetson_module", module))
        },
    }


def package_joules(before: dict[str, tuple[int, int]] | None, after: dict[str, tuple[int, int]] | None) -> float | None:
    """Joules of all packages between two readings; a counter that began anew in between has wrapped once."""
    if before is None or after is None or before.keys() != after.keys():
        return None
    return sum((after[name][0] - start) % (most + 1) for name, (start, most) in before.items()) / 1e6


def busy_warning(share: float | None) -> str | None:
    """A sentence where other processes used more than `BUSY` of the processors; None where they did not, or it is not known."""
    if share is None or share <= BUSY:
        return None
    return (
        f"others used {100 * share:.0f} % of this machine's processors while it was measured: times are too long and spread, "
        "only ratios of ways that took turns can be read; measure again on a quiet machine"
    )


@contextmanager
def tegrastats() -> Iterator[list[int]]:
    """Readings of a Jetson's power in mW while the block runs, filled in at its end; empty where there is no ``tegrastats``."""
    found: list[int] = []
    program = shutil.which("tegrastats")
    if program is None:
        yield found
        return
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen([program, "--interval", str(TEGRASTATS_MS)], stdout=output, stderr=subprocess.DEVNULL)
        try:
            yield found
        finally:
            process.terminate()
            process.wait()
            output.seek(0)
            found += tegra_milliwatts(output.read())


def tegra_milliwatts(text: str) -> list[int]:
    """Power of the whole module in each line that ``tegrastats`` printed: ``VDD_IN 4810mW/4759mW`` is 4810 now."""
    for rail in _TEGRA_RAILS:
        if found := re.findall(rf"\b{rail} (\d+)(?:mW)?/", text):
            return [int(value) for value in found]
    return []


def _nvml() -> dict[str, Any] | None:
    """The first NVIDIA GPU by NVML; None where pynvml or the driver is missing. What NVML refuses is None."""
    try:
        pynvml: Any = importlib.import_module("pynvml")
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByIndex(0)
    except pynvml.NVMLError:
        return None
    asked: dict[str, Callable[[], Any]] = {
        "graphics_mhz": lambda: pynvml.nvmlDeviceGetClockInfo(handle, pynvml.NVML_CLOCK_SM),
        "memory_mhz": lambda: pynvml.nvmlDeviceGetClockInfo(handle, pynvml.NVML_CLOCK_MEM),
        "throttle_reasons": lambda: pynvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle),
        "energy_mj": lambda: pynvml.nvmlDeviceGetTotalEnergyConsumption(handle),
    }
    found: dict[str, Any] = {}
    for name, ask in asked.items():
        try:
            found[name] = ask()
        except pynvml.NVMLError:
            found[name] = None
    pynvml.nvmlShutdown()
    return found


def _gpu_joules(before: dict[str, Any] | None, after: dict[str, Any] | None) -> float | None:
    if before is None or after is None:
        return None
    spent = _difference(before["energy_mj"], after["energy_mj"])
    return None if spent is None else spent / 1e3


def _difference(before: int | None, after: int | None) -> int | None:
    return None if before is None or after is None else after - before


def _text(path: Path) -> str:
    """Content of a small file of the system; empty where it cannot be read."""
    try:
        return path.read_text(encoding="ascii", errors="replace")
    except OSError:
        return ""


def _number(path: Path) -> int | None:
    text = _text(path).strip()
    return int(text) if text.isdigit() else None
