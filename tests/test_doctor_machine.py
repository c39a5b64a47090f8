"""The doctor's checks of the machine, with the files and programs of real ones: GPU, driver, Jetson, power, memory, cache."""

from __future__ import annotations

import importlib.metadata
import os
from pathlib import Path
from typing import Any

import pytest

from fundus_rt.runtime.device_check import doctor_machine
from fundus_rt.runtime.device_check.doctor_machine import (
    check_cache,
    check_cuda,
    check_gpu,
    check_jetson,
    check_memory,
    check_power,
    check_tensorrt,
    driver_version,
    nvidia_hardware,
    system_memory,
)
from fundus_rt.runtime.device_check.doctor_probes import probed
from fundus_rt.runtime.device_check.findings import ABSENT, FAULT, OK, WARNING
from tests.fake_cuda_driver import with_fake_driver
from tests.test_machine import JETPACK_5, JETPACK_6, JETPACK_7

GIB = 2**30
H200 = {
    "name": "NVIDIA H200",
    "compute_capability": "9.0",
    "cuda_driver": "12.6",
    "integrated": False,
    "others": [],
    "memory_free": 130 * GIB,
    "memory_total": 139 * GIB,
}
ORIN = H200 | {"name": "Orin", "compute_capability": "8.7", "integrated": True, "memory_free": 3 * GIB, "memory_total": 7 * GIB}
REFUSED = "the library of NVIDIA's driver, libcuda.so.1, cannot be loaded (none); install NVIDIA's driver of this GPU"


@pytest.fixture(autouse=True)
def no_jetson(monkeypatch: pytest.MonkeyPatch) -> None:
    """These tests also run on a Jetson."""
    monkeypatch.setattr(doctor_machine, "l4t_release", lambda path=None: _release(path) if path else "")
    monkeypatch.setattr(doctor_machine, "jetson_board", lambda: "")


_release = doctor_machine.l4t_release


@pytest.mark.parametrize(
    ("vendor", "kind", "there"),
    [("0x10de", "0x030000", True), ("0x10de", "0x030200", True), ("0x10de", "0x040300", False), ("0x8086", "0x030000", False)],
)
def test_a_gpu_is_seen_without_its_driver(tmp_path: Path, vendor: str, kind: str, there: bool) -> None:
    for name, values in (("0000:00:02.0", ("0x8086", "0x060000")), ("0000:01:00.0", (vendor, kind))):
        (tmp_path / name).mkdir()
        for file, value in zip(("vendor", "class"), values, strict=True):
            (tmp_path / name / file).write_text(value + "\n")
    (tmp_path / "0000:03:00.0").mkdir()
    assert nvidia_hardware(tmp_path) == there
    assert not nvidia_hardware(tmp_path / "missing")


def test_no_gpu_is_no_fault() -> None:
    assert check_gpu({"error": REFUSED}, hardware=False).state == ABSENT
    assert check_cuda({"error": REFUSED}, {"version": "13.0"}).state == ABSENT


def test_a_gpu_that_cannot_be_used_says_why_and_what_to_do() -> None:
    finding = check_gpu({"error": REFUSED}, hardware=True)
    assert finding.state == WARNING
    assert finding.found.endswith("cannot be loaded (none)")
    assert finding.advice == "install NVIDIA's driver of this GPU"
    assert check_gpu({"error": "no answer within 60 s"}, hardware=True).found.endswith("no answer within 60 s")


def test_gpus_with_their_memory() -> None:
    assert check_gpu(H200, True).found == "NVIDIA H200, compute capability 9.0, 130.0 of 139.0 GiB free"
    assert check_gpu(ORIN, True).found == "Orin, compute capability 8.7, 3.0 of 7.0 GiB free shared with the processor"
    two = {key: value for key, value in H200.items() if not key.startswith("memory")} | {"others": ["NVIDIA L4"]}
    assert check_gpu(two, True).found == "NVIDIA H200, compute capability 9.0, and NVIDIA L4"


def test_a_gpu_through_the_real_bindings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = with_fake_driver(tmp_path)
    monkeypatch.setenv("LD_LIBRARY_PATH", found["LD_LIBRARY_PATH"])
    gpu = probed("gpu")
    assert (gpu["name"], gpu["compute_capability"], gpu["cuda_driver"], gpu["others"]) == ("Orin", "8.7", "12.6", [])
    assert check_gpu(gpu, True).state == OK


def test_a_driver_that_hangs_does_not_hang_the_doctor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LD_LIBRARY_PATH", with_fake_driver(tmp_path)["LD_LIBRARY_PATH"])
    monkeypatch.setenv("FAKE_HANG", "1")
    gpu = probed("gpu", limit_s=3)
    assert gpu["error"] == "no answer within 3 s"
    assert check_gpu(gpu, True).state == WARNING


@pytest.mark.parametrize(
    ("text", "version"),
    [
        (
            "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.183.01  Sun May 12 19:39:15 UTC 2024\nGCC version:  12",
            "535.183.01",
        ),
        ("NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.95.05  Release Build  (dvs-builder)\n", "580.95.05"),
        ("NVRM version: NVIDIA UNIX Open Kernel Module for aarch64  540.4.0  Release Build  (buildbrain)\n", "540.4.0"),
        ("something else", ""),
    ],
)
def test_the_version_of_the_driver(tmp_path: Path, text: str, version: str) -> None:
    (tmp_path / "version").write_text(text)
    assert driver_version(tmp_path / "version") == version
    assert driver_version(tmp_path / "missing") == ""


@pytest.mark.parametrize(
    ("bindings", "nvrtc", "cuda", "state", "advice"),
    [
        ("12.9.2", {"version": "12.6"}, "12.6", OK, ""),
        ("12.9.2", {"version": "12.6"}, "13.0", OK, ""),
        ("13.5.0", {"version": "12.6"}, "12.6", WARNING, "pip install 'cuda-bindings<13', or update the driver"),
        ("12.9.2", {"version": "13.0"}, "12.6", WARNING, "pip install nvidia-cuda-nvrtc-cu12, or update the driver"),
        ("12.9.2", {"error": "no libnvrtc"}, "12.6", WARNING, "pip install nvidia-cuda-nvrtc-cu12, or the CUDA toolkit"),
        ("13.5.0", {"error": "no libnvrtc"}, "13.0", WARNING, "pip install nvidia-cuda-nvrtc, or the CUDA toolkit"),
    ],
)
def test_cuda_libraries_and_driver(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bindings: str, nvrtc: dict[str, Any], cuda: str, state: str, advice: str
) -> None:
    monkeypatch.setattr(importlib.metadata, "version", lambda name: bindings)
    finding = check_cuda(H200 | {"cuda_driver": cuda}, nvrtc, tmp_path / "missing")
    assert finding.state == state
    assert finding.advice.startswith(advice) and bool(finding.advice) == bool(advice)
    assert f"CUDA {cuda}, cuda-bindings {bindings}" in finding.found


@pytest.mark.parametrize(
    ("probes", "cuda", "state", "words"),
    [
        ({"tensorrt": {"version": "10.3.0.30"}}, "12.6", OK, "10.3.0.30 (tensorrt)"),
        ({"tensorrt": {"version": "11.4.0.106"}, "tensorrt_rtx": {"version": "1.7.1"}}, "13.0", OK, "1.7.1 (tensorrt_rtx)"),
        ({"tensorrt": {"version": "11.4.0.106"}}, "", OK, "can be built but not run here"),
        ({"tensorrt": {"version": "8.5.2.2"}}, "11.4", WARNING, "too old"),
        ({"tensorrt": {"error": "TensorRT cannot be loaded (x). To install it: y"}}, "12.6", WARNING, "does not load: TensorRT"),
        ({"tensorrt": {"error": "ended by SIGSEGV"}}, "", WARNING, "ended by SIGSEGV"),
        ({}, "", ABSENT, "not installed"),
        ({}, "12.6", ABSENT, "not installed"),
    ],
)
def test_tensorrt(probes: dict[str, Any], cuda: str, state: str, words: str) -> None:
    finding = check_tensorrt(probes, cuda)
    assert finding.state == state
    assert words in finding.found
    assert bool(finding.advice) == (state == WARNING or (state == ABSENT and bool(cuda)))
    if not probes and cuda:
        assert finding.advice == "pip install tensorrt-cu12"


@pytest.mark.parametrize(
    ("text", "state", "found"),
    [
        (JETPACK_5, WARNING, "a Jetson, L4T 35.4.1 (JetPack 5)"),
        (JETPACK_6, OK, "a Jetson, L4T 36.4.3 (JetPack 6)"),
        (JETPACK_7, OK, "a Jetson, L4T 38.2.0 (JetPack 7)"),
    ],
)
def test_jetson(tmp_path: Path, text: str, state: str, found: str) -> None:
    (tmp_path / "release").write_text(text)
    finding = check_jetson(tmp_path / "release")
    assert (finding.state, finding.found) == (state, found)
    assert check_jetson(tmp_path / "missing").state == ABSENT


def test_a_container_on_a_jetson_that_does_not_see_the_release(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor_machine, "jetson_board", lambda: "NVIDIA Jetson Orin Nano Developer Kit")
    finding = check_jetson(tmp_path / "missing")
    assert finding.state == WARNING
    assert "--runtime nvidia" in finding.advice


@pytest.mark.parametrize(
    ("script", "state", "found"),
    [
        ("printf 'NV Power Mode: MAXN_SUPER\\n2\\n'", OK, "MAXN_SUPER (number 2); nvpmodel -p --verbose lists all"),
        ("printf 'NVPM WARN: fan\\nNV Power Mode: 15W\\n0\\n'", OK, "15W (number 0); nvpmodel -p --verbose lists all"),
        ("echo no >&2; exit 1", WARNING, "not known: ended with status 1"),
        ("true", WARNING, "not known: nvpmodel -q does not say it"),
        ("sleep 600", WARNING, "not known: no answer within 1 s"),
    ],
)
def test_power_mode(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, state: str, found: str) -> None:
    program = tmp_path / "nvpmodel"
    program.write_text(f'#!/bin/sh\n[ "$1" = -q ] || exit 9\n{script}\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    finding = check_power(limit_s=1 if "sleep" in script else 20)
    assert (finding.state, finding.found) == (state, found)


def test_no_nvpmodel_is_no_fault(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(doctor_machine.shutil, "which", lambda name, path: None)
    assert check_power().state == ABSENT


MEMINFO = "MemTotal:        7802148 kB\nMemFree:          301184 kB\nMemAvailable:    3145728 kB\nHugePages_Total:       0\n"


def test_memory_and_a_containers_limit(tmp_path: Path) -> None:
    (tmp_path / "meminfo").write_text(MEMINFO)
    assert system_memory(tmp_path / "meminfo", tmp_path) == (3 * GIB, 7802148 * 1024)
    assert check_memory(tmp_path / "meminfo", tmp_path).found == "3.0 of 7.4 GiB free"
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text(f"{GIB}\n")
    assert system_memory(tmp_path / "meminfo", tmp_path)[0] == 3 * GIB
    (tmp_path / "memory.max").write_text(f"{GIB + GIB // 2}\n")
    finding = check_memory(tmp_path / "meminfo", tmp_path)
    assert (finding.state, finding.found) == (WARNING, "0.5 of 1.5 GiB free")
    assert check_memory(tmp_path / "missing", tmp_path).state == OK


CACHE = {
    "folder": "/c/engines",
    "untrusted": "",
    "refused": [],
    "limit": 8 * GIB,
    "disk_free": 9 * GIB,
    "engines": 2,
    "size": GIB,
}


@pytest.mark.parametrize(
    ("change", "needed", "state", "words"),
    [
        ({}, True, OK, "/c/engines, 2 engine(s), 1.0 of 8.0 GiB; 9.0 GiB free on the disk"),
        ({"disk_free": GIB}, True, WARNING, "1.0 GiB free on the disk"),
        ({"untrusted": "others can write to /c (mode 0777): chmod 700 /c"}, True, FAULT, "refused: others can write"),
        ({"untrusted": "others can write to /c (mode 0777): chmod 700 /c"}, False, WARNING, "refused: others can write"),
        (
            {"refused": [["/x", "Read-only file system"]]},
            True,
            WARNING,
            "/x cannot be written (Read-only file system); instead /c",
        ),
        ({"error": "PermissionError: no"}, True, WARNING, "PermissionError: no"),
    ],
)
def test_the_folder_for_engines(change: dict[str, Any], needed: bool, state: str, words: str) -> None:
    finding = check_cache(CACHE | change, needed)
    assert finding.state == state
    assert words in finding.found
    assert bool(finding.advice) == (state != OK)


def test_no_folder_for_engines_at_all() -> None:
    finding = check_cache({"limit": GIB, "error": "UsageError: none", "refused": [["/x", "Read-only file system"]]}, True)
    assert (finding.state, finding.found) == (WARNING, "none: /x cannot be written (Read-only file system)")


def test_the_probe_of_the_cache_makes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tmp_path.chmod(0o700)
    monkeypatch.setenv("FUNDUS_RT_CACHE", str(tmp_path / "new" / "cache"))
    found = probed("cache")
    assert found["folder"] == str(tmp_path / "new" / "cache" / "engines")
    assert (found["refused"], found["untrusted"], found["engines"]) == ([], "", 0)
    assert not (tmp_path / "new").exists()
    (tmp_path / "new").write_text("a file")
    found = probed("cache")
    assert found["refused"] == [[str(tmp_path / "new" / "cache" / "engines"), "a file is in its place"]]
    assert found["folder"] != found["refused"][0][0]
