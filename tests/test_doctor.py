"""`fundus-rt doctor`: it survives what crashes or hangs, tells wheels apart by their files, and names nobody."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fundus_rt.runtime.device_check import doctor, doctor_machine
from fundus_rt.runtime.device_check.doctor_probes import probed
from fundus_rt.runtime.device_check.doctor_software import check_numpy, check_onnxruntime, check_opencv, check_pillow
from fundus_rt.runtime.device_check.findings import ABSENT, FAULT, OK, WARNING, Finding, report, without_names, worst_state
from fundus_rt.runtime.device_check.installed_wheels import Wheel
from tests.conftest import Run, command, environment

SITE = Path("/site-packages")


# --- probes: imports in a process of their own


def fake_module(folder: Path, name: str, text: str) -> None:
    (folder / f"{name}.py").write_text(text)


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("import os; os.abort()", "ended by SIGABRT"),
        ("import ctypes; ctypes.string_at(0)", "ended by SIGSEGV"),
        ("raise ImportError('libGL.so.1: cannot open shared object file: No such file or directory')", "libGL.so.1"),
        ("import sys; sys.exit(0)", "SystemExit: 0"),
        ("import os; os._exit(7)", "ended with status 7"),
        ("class Own(Exception): pass\nraise Own('of its own kind')", "of its own kind"),
        ("print('noise'); __version__ = '4.8.0'", "has no attribute 'full'"),
    ],
)
def test_an_import_that_breaks_is_a_finding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, error: str) -> None:
    if "noise" in text:
        fake_module(tmp_path, "numpy", "__version__ = '9.9'")
    fake_module(tmp_path, "cv2", text)
    monkeypatch.syspath_prepend(tmp_path)
    found = probed("opencv", 60)
    assert error in found["error"]
    assert "numpy" in found  # what was learnt before is kept
    assert check_opencv(found, []).state == FAULT


def test_an_import_that_hangs_is_a_finding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_module(tmp_path, "onnxruntime", "import time; time.sleep(600)")
    monkeypatch.syspath_prepend(tmp_path)
    found = probed("onnxruntime", 2)
    assert found["error"] == "no answer within 2 s"
    finding = check_onnxruntime(found, [], "", False, False)
    assert (finding.state, finding.found) == (FAULT, "does not open a model: no answer within 2 s")


def test_the_libraries_of_this_machine_answer() -> None:
    found = probed("opencv")
    assert (found["works"], "error" in found) == (True, False)
    import cv2
    import numpy as np

    assert (found["version"], found["numpy"]) == (cv2.__version__, np.__version__)
    assert os.path.samefile(found["file"], cv2.__file__)
    assert probed("pillow")["works"]


# --- judgement of what the probes say

NUMPY_2 = (
    "A module that was compiled using NumPy 1.x cannot be run in\nNumPy 2.2.6 as it may crash.\n"
    "AttributeError: _ARRAY_API not found\n"
)
JETPACK_CV2 = "/usr/lib/python3.10/dist-packages/cv2/__init__.py"
HEADLESS = Wheel("opencv-python-headless", "4.11.0.86", SITE, True)
WINDOWS = Wheel("opencv-python", "4.11.0.86", SITE, True)


def test_jetpacks_own_opencv_is_known_as_such() -> None:
    finding = check_opencv({"numpy": "1.26.4", "file": JETPACK_CV2, "version": "4.8.0", "works": True}, [])
    assert (finding.state, finding.found) == (OK, f"4.8.0, without a wheel, from {JETPACK_CV2}")


@pytest.mark.parametrize(
    ("probe", "wheels", "found", "advice"),
    [
        (
            {"numpy": "2.2.6", "error": "ImportError: numpy.core.multiarray failed to import", "said": NUMPY_2},
            [],
            "built for NumPy 1, as JetPack's is, and cannot be used with NumPy 2.2.6",
            "pip install 'numpy<2'",
        ),
        ({"numpy": "2.2.6", "error": "ModuleNotFoundError: No module named 'cv2'"}, [], "not installed", "pip install opencv-"),
        (
            {"numpy": "2.2.6", "error": "ImportError: libGL.so.1: cannot open shared object file: No such file or directory"},
            [WINDOWS],
            "libGL.so.1 is missing",
            "pip uninstall -y opencv-python && pip install opencv-python-headless",
        ),
        (
            {"numpy": "1.26.4", "error": "ended by SIGSEGV"},
            [HEADLESS],
            "does not load: ended by SIGSEGV",
            "pip uninstall -y opencv-python-headless && pip install opencv-python-headless",
        ),
        ({"numpy": "1.26.4", "file": JETPACK_CV2, "version": "4.8.0", "works": False}, [], "not resized", "pip install"),
        (
            {"numpy": "2.2.6", "error": "ImportError: numpy.core.multiarray failed to import"},
            [WINDOWS],
            "built for NumPy 1",
            "pip install 'numpy<2', or a newer OpenCV: pip uninstall -y opencv-python && pip install opencv-python-headless",
        ),
        (
            {"numpy": "2.2.6", "error": "ModuleNotFoundError: No module named 'cv2'"},
            [Wheel("opencv-python-headless", "5.0.0.93", SITE, False)],
            "files of opencv-python-headless 5.0.0.93 are missing",
            "pip uninstall -y opencv-python-headless && pip install opencv-python-headless",
        ),
        ({"error": "ImportError: broken"}, [], "NumPy does not load", ""),
    ],
)
def test_what_is_wrong_with_opencv(probe: dict[str, Any], wheels: list[Wheel], found: str, advice: str) -> None:
    finding = check_opencv(probe, wheels)
    assert finding.state == FAULT
    assert found in finding.found
    assert advice in finding.advice


@pytest.mark.parametrize(("version", "state"), [("1.26.4", OK), ("2.4.6", OK), ("1.24.0", WARNING), ("", FAULT)])
def test_numpy(version: str, state: str) -> None:
    assert check_numpy({"numpy": version}).state == state


def test_pillow_without_jpeg_is_a_fault() -> None:
    assert check_pillow({"version": "13.0.0", "jpeg": True, "works": True}).state == OK
    assert "without JPEG" in check_pillow({"version": "13.0.0", "jpeg": False, "works": True}).found
    assert check_pillow({"error": "ModuleNotFoundError: No module named 'PIL'"}).state == FAULT


CPU_WHEEL = Wheel("onnxruntime", "1.31.1", SITE, True)
GPU_WHEEL = Wheel("onnxruntime-gpu", "1.31.1", SITE, True)
ORT = {"file": str(SITE / "onnxruntime" / "__init__.py"), "version": "1.31.1", "works": True, "cuda": ""}
ON_CPU = {**ORT, "providers": ["CPUExecutionProvider"]}
ON_CUDA = {**ORT, "providers": ["CUDAExecutionProvider", "CPUExecutionProvider"], "cuda": "13.0"}


@pytest.mark.parametrize(
    ("probe", "wheel", "cuda", "tensorrt", "jetson", "state", "words"),
    [
        (ON_CPU, CPU_WHEEL, "", False, False, OK, ""),
        (ON_CPU, CPU_WHEEL, "13.0", True, False, OK, ""),
        (ON_CPU, CPU_WHEEL, "12.6", False, True, OK, ""),
        (ON_CPU, CPU_WHEEL, "13.0", False, False, WARNING, "uninstall -y onnxruntime && pip install onnxruntime-gpu"),
        (ON_CUDA, GPU_WHEEL, "13.0", False, False, OK, ""),
        (
            ON_CUDA | {"cuda_problem": "libcublasLt.so.13 is missing. pip install it"},
            GPU_WHEEL,
            "13.0",
            True,
            False,
            WARNING,
            "pip",
        ),
        (ON_CUDA | {"cuda_problem": "libcuda.so.1 is missing"}, GPU_WHEEL, "", False, False, OK, ""),
        (ON_CUDA, GPU_WHEEL, "12.6", True, False, WARNING, "update the driver, or pip install 'onnxruntime-gpu<1.27'"),
        (ON_CPU | {"works": False, "error": "Fail: bad"}, CPU_WHEEL, "", False, False, FAULT, "pip install onnxruntime"),
    ],
)
def test_onnxruntime(
    probe: dict[str, Any], wheel: Wheel, cuda: str, tensorrt: bool, jetson: bool, state: str, words: str
) -> None:
    finding = check_onnxruntime(probe, [wheel], cuda, tensorrt, jetson)
    assert (finding.state, words in finding.advice, bool(finding.advice)) == (state, True, bool(words))


def test_onnxruntime_that_is_not_there() -> None:
    missing = {"error": "ModuleNotFoundError: No module named 'onnxruntime'"}
    assert check_onnxruntime(missing, [], "", False, False).advice == "pip install onnxruntime"
    assert check_onnxruntime(missing, [], "13.0", False, False).advice == "pip install onnxruntime-gpu"
    assert check_onnxruntime(missing, [], "12.6", False, False).advice == "pip install 'onnxruntime-gpu<1.27'"


# --- the whole


def test_a_check_that_fails_itself_is_a_finding_and_the_others_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object) -> Any:
        raise RuntimeError("unforeseen")

    monkeypatch.setattr(doctor, "probed", fail)
    for name in ("check_memory", "check_power", "nvidia_hardware", "is_jetson", "check_jetson"):
        monkeypatch.setattr(doctor_machine, name, fail)
    found = {finding.name: finding for finding in doctor.examine()}
    assert len(found) == 13
    assert found["Memory"] == Finding(
        "Memory", WARNING, "could not be checked (RuntimeError: unforeseen)", "report this to the authors"
    )
    assert found["OpenCV"].state == FAULT
    assert found["Python"].state == OK
    assert found["GPU"].state == ABSENT


def test_the_command_answers_in_lines_and_in_json(fundus_rt: Run) -> None:
    text, machine = fundus_rt("doctor"), fundus_rt("doctor", "--json")
    answer = json.loads(machine.stdout)
    assert text.returncode == machine.returncode == (1 if answer["state"] == FAULT else 0)
    lines = text.stdout.splitlines()
    for check in answer["checks"]:
        assert any(line.startswith(f"{check['state']:<12}{check['name']:<14}") for line in lines), check
        assert check["state"] != OK or not check["advice"] or check["name"] == "DICOM"
    names = [check["name"] for check in answer["checks"]]
    first = ["Python", "NumPy", "OpenCV", "Pillow", "ONNX Runtime", "DICOM", "GPU", "CUDA", "TensorRT", "Jetson"]
    assert names == [*first, "Power mode", "Memory", "Engine cache"]
    import numpy as np

    assert next(check for check in answer["checks"] if check["name"] == "NumPy")["values"] == {"version": np.__version__}


def test_a_broken_library_gives_exit_status_1_and_names_nobody(tmp_path: Path) -> None:
    home = tmp_path / "home" / "jane.doe"
    (home / "libraries").mkdir(parents=True)
    fake_module(home / "libraries", "cv2", "raise ImportError('/data/jane.doe/x.so: undefined symbol on ' + __file__)")
    found = environment() | {"HOME": str(home), "USER": "jane.doe", "LOGNAME": "jane.doe"}
    found["PYTHONPATH"] += f"{os.pathsep}{home / 'libraries'}"
    found["PYTHONPATH"] = os.pathsep.join(reversed(found["PYTHONPATH"].split(os.pathsep)))
    found.pop("XDG_CACHE_HOME", None), found.pop("FUNDUS_RT_CACHE", None)
    done = subprocess.run(command("doctor", "--json"), env=found, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 1, done.stderr
    answer = json.loads(done.stdout)
    assert answer["state"] == FAULT
    opencv = next(check for check in answer["checks"] if check["name"] == "OpenCV")
    assert "/data/USER/x.so: undefined symbol on ~/libraries/cv2.py" in opencv["found"]
    assert "jane.doe" not in done.stdout + done.stderr
    assert str(tmp_path) not in done.stdout
    assert next(check for check in answer["checks"] if check["name"] == "Engine cache")["values"]["folder"].startswith("~/.cache")


def test_names_are_taken_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/jane")
    monkeypatch.setenv("USER", "jane")
    monkeypatch.setenv("FUNDUS_RT_CACHE", "/mnt/dr-smith/cache")
    monkeypatch.setattr(socket, "gethostname", lambda: "clinic-7")
    assert without_names("/home/jane/x and /home/janet/x, /scratch/jane/y") == "~/x and /home/janet/x, /scratch/USER/y"
    assert without_names("/mnt/dr-smith/cache/engines on clinic-7; clinic-77") == "$FUNDUS_RT_CACHE/engines on HOST; clinic-77"
    cleaned = report([Finding("a", OK, "/home/jane", values={"x": ["/home/jane/y", 3], "z": {"/home/jane": None}})], "0.1.0")
    assert cleaned["checks"][0] == {
        "name": "a",
        "state": OK,
        "found": "~",
        "advice": "",
        "values": {"x": ["~/y", 3], "z": {"~": None}},
    }


def test_the_worst_state_decides() -> None:
    ok, absent, warning, fault = (Finding("x", state, "") for state in (OK, ABSENT, WARNING, FAULT))
    assert [worst_state(found) for found in ([], [ok, absent], [ok, warning], [warning, fault, ok])] == [OK, OK, WARNING, FAULT]


def test_the_doctor_itself_needs_none_of_what_it_looks_at() -> None:
    code = "import sys, fundus_rt.runtime.device_check.doctor, fundus_rt.runtime.commands.doctor; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment(), check=True)
    assert not {"numpy", "cv2", "PIL", "onnxruntime", "cuda", "tensorrt"} & set(done.stdout.split())
