"""Checks of the machine: GPU and driver, TensorRT, Jetson's release and power, memory, the folder for engines."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
from pathlib import Path
from typing import Any

from fundus_rt.runtime.device_check.findings import ABSENT, FAULT, OK, WARNING, Finding
from fundus_rt.runtime.device_check.installed_wheels import distribution_version, major
from fundus_rt.runtime.device_check.limited_process import run_limited
from fundus_rt.runtime.nvidia.machine import TEGRA_RELEASE, how_to_get_a_driver, jetson_board, l4t_release

Probe = dict[str, Any]
"""What `fundus_rt.runtime.device_check.doctor_probes.probed` gave."""

PCI_DEVICES = Path("/sys/bus/pci/devices")
DRIVER_VERSION = Path("/proc/driver/nvidia/version")
MEMORY = Path("/proc/meminfo")
CONTROL_GROUP = Path("/sys/fs/cgroup")
_JETPACK = {"35": "JetPack 5", "36": "JetPack 6", "38": "JetPack 7"}
_GIB = 2**30
_LEAST_MEMORY = 1 * _GIB
_LEAST_DISK = 2 * _GIB


def nvidia_hardware(pci: Path = PCI_DEVICES) -> bool:
    """Whether an NVIDIA display or 3-D controller is on the PCI bus, or this is a Jetson; with or without a driver."""
    for device in pci.glob("*") if pci.is_dir() else ():
        try:
            vendor, kind = ((device / name).read_text(encoding="ascii").strip() for name in ("vendor", "class"))
        except (OSError, UnicodeDecodeError):
            continue
        if vendor == "0x10de" and kind.startswith("0x03"):  # PCI code and ID assignment: NVIDIA; display controller
            return True
    return is_jetson()


def is_jetson() -> bool:
    """Whether this is a Jetson, or a container that sees that it runs on one."""
    return bool(l4t_release() or jetson_board())


def check_gpu(gpu: Probe, hardware: bool) -> Finding:
    """The GPUs that CUDA shows.

    Args:
        gpu: the probe ``gpu``.
        hardware: from `nvidia_hardware`.
    """
    if "name" in gpu:
        others = f", and {', '.join(gpu['others'])}" if gpu.get("others") else ""
        kept = ("name", "compute_capability", "multiprocessors", "integrated", "others", "memory_free", "memory_total")
        values = {name: gpu[name] for name in kept if name in gpu}
        processors = f", {gpu['multiprocessors']} multiprocessors" if "multiprocessors" in gpu else ""
        found = f"{gpu['name']}, compute capability {gpu['compute_capability']}{processors}{others}{_memory(gpu)}"
        return Finding("GPU", OK, found, "", values)
    cause = str(gpu.get("error", "it says nothing"))
    if not hardware:
        return Finding("GPU", ABSENT, "no NVIDIA GPU; models run on the processor")
    found, _, advice = cause.rpartition("; ")
    found, advice = (found, advice) if found else (cause, how_to_get_a_driver())
    return Finding("GPU", WARNING, f"an NVIDIA GPU is there and cannot be used: {found}", advice)


def _memory(gpu: Probe) -> str:
    if "memory_total" not in gpu:
        return ""
    shared = " shared with the processor" if gpu.get("integrated") else ""
    return f", {gpu['memory_free'] / _GIB:.1f} of {gpu['memory_total'] / _GIB:.1f} GiB free{shared}"


def check_cuda(gpu: Probe, nvrtc: Probe, driver: Path = DRIVER_VERSION) -> Finding:
    """The driver, the CUDA it supports, and whether NVIDIA's bindings and run-time compiler fit to it.

    Args:
        gpu: the probe ``gpu``.
        nvrtc: the probe ``nvrtc``.
        driver: the file in which the kernel's part of the driver says its version.
    """
    bindings = distribution_version("cuda-bindings", "cuda-python")
    version = driver_version(driver)
    values = {"driver": version, "cuda": gpu.get("cuda_driver", ""), "bindings": bindings, "nvrtc": nvrtc.get("version", "")}
    parts = [f"driver {version}"] if version else []
    parts += [f"CUDA {gpu['cuda_driver']}"] if "cuda_driver" in gpu else []
    parts += [f"cuda-bindings {bindings}"] if bindings else []
    parts += [f"NVRTC {nvrtc['version']}"] if "version" in nvrtc else []
    found = ", ".join(parts) or "neither driver nor libraries"
    if "name" not in gpu:
        return Finding("CUDA", ABSENT, found, "", values)
    supported = major(gpu["cuda_driver"])
    package = "nvidia-cuda-nvrtc" if supported >= 13 else f"nvidia-cuda-nvrtc-cu{supported}"
    wanted = {f"'cuda-bindings<{supported + 1}'": bindings, package: nvrtc.get("version", "")}
    if later := [name for name, version in wanted.items() if major(version) > supported]:
        advice = f"pip install {' '.join(later)}, or update the driver"
        return Finding("CUDA", WARNING, f"{found}: libraries of a later CUDA than the driver supports", advice, values)
    if "version" not in nvrtc:
        advice = f"pip install {package}, or the CUDA toolkit of this machine"
        return Finding("CUDA", WARNING, f"{found}; no run-time compiler, which TensorRT's fast way needs", advice, values)
    return Finding("CUDA", OK, found, "", values)


def driver_version(path: Path = DRIVER_VERSION) -> str:
    """Version of NVIDIA's kernel module, ``580.95.05``; empty where there is none."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    found = re.search(r"NVRM version:.*?\s(\d+\.\d+(?:\.\d+)*)\s", text)
    return found[1] if found else ""


def is_installed(module: str) -> bool:
    """Whether a module can be found, without importing it."""
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError, AttributeError):
        return False


def check_tensorrt(probes: dict[str, Probe], cuda_driver: str) -> Finding:
    """TensorRT and its flavour.

    Args:
        probes: the probe of each flavour that is installed.
        cuda_driver: newest CUDA that the driver supports, ``12.6``; empty where CUDA shows no GPU.
    """
    working = {flavour: probe["version"] for flavour, probe in probes.items() if "version" in probe}
    broken = {flavour: str(probe.get("error")) for flavour, probe in probes.items() if "version" not in probe}
    values = {"flavours": working}
    if working:
        found = ", ".join(f"{version} ({flavour})" for flavour, version in working.items())
        if old := [flavour for flavour, version in working.items() if flavour == "tensorrt" and major(version) < 10]:
            advice = "TensorRT 10 or later is needed: JetPack 6 or later on a Jetson, a newer wheel elsewhere"
            return Finding("TensorRT", WARNING, f"{found}; too old", advice, {"flavours": working, "too_old": old})
        return Finding("TensorRT", OK, found + ("" if cuda_driver else "; engines can be built but not run here"), "", values)
    if broken:
        flavour, cause = next(iter(broken.items()))
        found, _, advice = cause.partition("). To install it: ")
        return Finding(
            "TensorRT", WARNING, f"{flavour} is installed and does not load: {found}", advice or "install it again", values
        )
    advice = f"pip install tensorrt-cu{major(cuda_driver)}"
    if is_jetson():
        advice = "sudo apt-get install tensorrt python3-libnvinfer; a virtual environment needs --system-site-packages to see it"
    return Finding("TensorRT", ABSENT, "not installed", advice if cuda_driver else "", values)


def check_jetson(release: Path = TEGRA_RELEASE) -> Finding:
    """Jetson's board and release."""
    l4t, board = l4t_release(release), jetson_board()
    values = {"l4t": l4t, "board": board}
    if not l4t and not board:
        return Finding("Jetson", ABSENT, "this is no Jetson", "", values)
    name = board or "a Jetson"
    if not l4t:
        advice = "in a container: docker run --runtime nvidia -v /etc/nv_tegra_release:/etc/nv_tegra_release:ro"
        return Finding(
            "Jetson", WARNING, f"{name}; its release cannot be seen, so engines do not notice an update", advice, values
        )
    major = l4t.split(".")[0]
    jetpack = f" ({_JETPACK[major]})" if major in _JETPACK else ""
    old = major.isdigit() and int(major) < 36
    advice = "JetPack 6 or later is needed for TensorRT and Python 3.10" if old else ""
    return Finding("Jetson", WARNING if old else OK, f"{name}, L4T {l4t}{jetpack}", advice, values)


def check_power(limit_s: float = 10.0) -> Finding:
    """Jetson's power mode, as ``nvpmodel -q`` says it."""
    program = shutil.which("nvpmodel", path=f"{os.environ.get('PATH', '')}{os.pathsep}/usr/sbin{os.pathsep}/sbin")
    if program is None:
        return Finding("Power mode", ABSENT, "no nvpmodel, which sets it on a Jetson")
    done = run_limited([program, "-q"], limit_s)
    mode = re.search(r"NV Power Mode:\s*(\S+)(?:\s+(\d+))?", done.output)
    if not mode:
        cause = done.reason(limit_s) or "nvpmodel -q does not say it"
        return Finding("Power mode", WARNING, f"not known: {cause}", "sudo nvpmodel -q")
    number = f" (number {mode[2]})" if mode[2] else ""
    return Finding("Power mode", OK, f"{mode[1]}{number}; nvpmodel -p --verbose lists all", "", {"mode": mode[1]})


def check_memory(meminfo: Path = MEMORY, group: Path = CONTROL_GROUP) -> Finding:
    """The processor's memory; what a container's limit leaves of it."""
    free, total = system_memory(meminfo, group)
    values = {"free": free, "total": total}
    if not total:
        return Finding("Memory", OK, "not known on this system", "", values)
    found = f"{free / _GIB:.1f} of {total / _GIB:.1f} GiB free"
    if free < _LEAST_MEMORY:
        return Finding(
            "Memory", WARNING, found, "end other programs, or raise the container's limit, before building engines", values
        )
    return Finding("Memory", OK, found, "", values)


def system_memory(meminfo: Path = MEMORY, group: Path = CONTROL_GROUP) -> tuple[int, int]:
    """Free and total bytes that this process may use (proc(5), Linux control groups 2); zeros where the system does not say."""
    try:
        text = meminfo.read_text(encoding="ascii")
        found = {name: int(value) * 1024 for name, value in re.findall(r"^(\w+):\s+(\d+) kB$", text, flags=re.MULTILINE)}
        free, total = found["MemAvailable"], found["MemTotal"]
    except (OSError, KeyError, ValueError):
        return 0, 0
    try:
        limit = int((group / "memory.max").read_text(encoding="ascii"))
        used = int((group / "memory.current").read_text(encoding="ascii"))
    except (OSError, ValueError):  # no control group, or "max"
        return free, total
    return max(0, min(free, limit - used)), min(total, limit)


def check_cache(cache: Probe, needed: bool) -> Finding:
    """The folder for engines: whether it can be written, by whom, how full it and its disk are.

    Args:
        cache: the probe ``cache``.
        needed: TensorRT is installed.
    """
    name = "Engine cache"
    values: dict[str, Any] = {
        key: cache[key] for key in ("folder", "limit", "engines", "size", "disk_free", "refused") if key in cache
    }
    if cache.get("untrusted"):
        found, _, advice = str(cache["untrusted"]).rpartition(": ")
        return Finding(name, FAULT if needed else WARNING, f"refused: {found or advice}", advice if found else "", values)
    refused = "; ".join(f"{folder} cannot be written ({problem})" for folder, problem in cache.get("refused", ()))
    if "folder" not in cache:
        cause = refused or str(cache.get("error"))
        return Finding(name, WARNING, f"none: {cause}", "name a folder that can be written with FUNDUS_RT_CACHE", values)
    found = cache["folder"]
    if "size" in cache:
        found += f", {cache['engines']} engine(s), {cache['size'] / _GIB:.1f} of {cache['limit'] / _GIB:.1f} GiB"
    if "disk_free" in cache:
        found += f"; {cache['disk_free'] / _GIB:.1f} GiB free on the disk"
    if refused:
        advice = "name a folder that can be written and stays with FUNDUS_RT_CACHE"
        return Finding(name, WARNING, f"{refused}; instead {found}", advice, values)
    if "error" in cache:
        return Finding(name, WARNING, f"{found}; {cache['error']}", "name another folder with FUNDUS_RT_CACHE", values)
    if cache["disk_free"] < _LEAST_DISK:
        return Finding(name, WARNING, found, "make room on the disk, or lower FUNDUS_RT_CACHE_LIMIT", values)
    return Finding(name, OK, found, "", values)
