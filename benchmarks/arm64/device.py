"""What runs on the emulated device: installation, answers, replays, tests."""

from __future__ import annotations

import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

from fundus_rt.benchmarks.arm64.debian_root import GLIBC, PYTHON, RootError, run_inside

BIN = "/opt/fundus-rt/bin"
"""Of the environment that the wheels are installed in, as the root sees it."""
WORK = "work"
"""Folder of the root for what is handed over."""
SAME = ("numpy", "opencv-python-headless", "onnxruntime", "Pillow")
"""Packages whose version on the device is that of this environment."""
FOR_TESTS = ("pytest", "pytest-xdist", "hypothesis", "scipy")
LEFT_OUT = {
    "killed_at_any_moment": "takes an hour under emulation",
    "megapixels": "takes an hour under emulation",
    "in_its_own_time": "emulation is slower than the film",
    "middle_of_a_burst": "emulation is slower than the camera",
    "finds_no_memory_to_be_judged": "emulation is slower than the camera",
}
"""Tests that are not run, by a word of their names, and why."""


class Arm64:
    """The package as it is installed in the root."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def run(self, program: str, *words: str, keep: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a program of the package's environment, see `run_inside`."""
        cache = {"FUNDUS_RT_CACHE": f"/{WORK}/cache"}
        return run_inside(self.root, [f"{BIN}/{program}", *words], None, cache, keep)

    def inside(self, path: Path) -> str:
        """A path of this machine as the root sees it."""
        return f"/{path.relative_to(self.root)}"

    def hand_over(self, folder: Path, name: str) -> None:
        """Copy a folder into the root's work folder."""
        target = self.root / WORK / name
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(folder, target)

    def environment(self) -> dict[str, Any]:
        """Versions on the device, see `fundus_rt.benchmarks.environment`."""
        said = "import json; from fundus_rt.benchmarks.environment import environment; print(json.dumps(environment()))"
        return dict(json.loads(_said(self.run("python", "-c", said))))

    def rows(self, model: Path | None) -> list[dict[str, Any]]:
        """What ``infer`` says there of the examples; None: with the bundled model."""
        name = "acquisition" if model is None else self.inside(model)
        done = self.run(
            "fundus-rt", "infer", f"/{WORK}/examples", "--model", name, "--format", "jsonl", "--backend", "onnxruntime"
        )
        return [json.loads(line) for line in done.stdout.splitlines()]

    def selftest(self) -> dict[str, Any]:
        """Verdict of ``fundus-rt selftest`` there, and its steps that did not pass."""
        output = self.root / WORK / "selftest.json"
        output.unlink(missing_ok=True)
        self.run(
            "fundus-rt", "selftest", "--backend", "onnxruntime", "--samples", "3", "--output", self.inside(output), keep=False
        )
        report = json.loads(output.read_text(encoding="utf-8"))
        steps = {step["name"]: step["status"] for step in report["steps"]}
        return {"verdict": "passed" if report["passed"] else "failed", "steps": steps}

    def replayed(self, model: Path) -> dict[str, Any]:
        """The original's answers, replayed there by ``fundus-rt certify``: the verdict, and what it says of each output."""
        done = self.run("fundus-rt", "certify", self.inside(model), "--backend", "onnxruntime")
        lines = done.stdout.splitlines()
        verdicts = [line.split()[1].rstrip(",") for line in lines if line.startswith("certificate")]
        told = [line for line in lines if not line.startswith(("certificate", "file ", "computed by", "device", "author"))]
        return {"verdict": verdicts[0] if verdicts else f"did not come about (exit status {done.returncode})", "said": told}


def install(device: Arm64) -> None:
    """Build the package's wheel, collect arm64 wheels of this environment's versions, and install them there without a network.

    Raises:
        RootError: wheels are not to be had, or do not install; what pip says stands on standard error.
    """
    wheels = device.root / "wheels"
    shutil.rmtree(wheels, ignore_errors=True)
    same = [f"{name}=={importlib.metadata.version(name)}" for name in SAME]
    also = [word for name in (*same, *FOR_TESTS) for word in ("--also", name)]
    call = [sys.executable, "deploy/wheelhouse.py", str(wheels), "--extra", "cpu", "--target", "aarch64"]
    if subprocess.run([*call, "--python", PYTHON, "--glibc", GLIBC, *also], stdout=sys.stderr, check=False).returncode:
        raise RootError("there are no wheels to install; what is missing stands above")
    shutil.rmtree(device.root / "opt/fundus-rt", ignore_errors=True)
    (device.root / WORK).mkdir(exist_ok=True)
    pip = ["install", "--quiet", "--no-index", "--find-links", "/wheels", "--require-hashes", "-r", "/wheels/requirements.txt"]
    for words in (["/usr/bin/python3", "-m", "venv", "/opt/fundus-rt"], [f"{BIN}/pip", *pip]):
        if run_inside(device.root, words, None).returncode:
            raise RootError("the wheels do not install on arm64; what pip says stands above")


def run_tests(device: Arm64) -> dict[str, Any]:
    """Run the tests that need nothing but the runtime, against what is installed.

    Returns:
        ``passed``, how many; ``failed``, their names; ``skipped``, names with reasons; ``left_out``; ``seconds``.
    """
    project = device.root / WORK / "project"
    shutil.rmtree(project, ignore_errors=True)
    project.mkdir(parents=True)
    tracked = subprocess.run(["git", "ls-files", "-z"], capture_output=True, text=True, check=True).stdout
    for name in tracked.split("\0"):
        if name and not name.startswith((".typing/", "benchmarks/")) and Path(name).is_file():
            (project / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(name, project / name)
    files = (project / "tests/runtime_tests.txt").read_text(encoding="utf-8").split()
    left_out = " and ".join(f"not {word}" for word in LEFT_OUT)
    options = ["-q", "-p", "no:cacheprovider", "-n", str(len(os.sched_getaffinity(0))), "--dist", "load"]
    options += ["-o", "pythonpath=.", "-o", f"addopts=--import-mode=importlib -m 'not full and not gpu' -k '{left_out}'"]
    report = project / "tests.xml"
    words = ["-m", "pytest", *options, f"--junitxml={device.inside(report)}", *(f"tests/{name}" for name in files)]
    run_inside(device.root, ["/bin/sh", "-c", 'cd "$0" && exec "$@"', device.inside(project), f"{BIN}/python", *words], None)
    if not report.exists():
        raise RootError("the tests did not come to their end on arm64; what pytest says stands above")
    return counted(report.read_text(encoding="utf-8"))


def counted(report: str) -> dict[str, Any]:
    """The figures of a report of pytest in JUnit's form."""
    passed, failed, skipped = 0, [], {}
    suite = ElementTree.fromstring(report).find("testsuite")  # written by pytest a moment ago
    for case in () if suite is None else suite.iter("testcase"):
        name = f"{case.get('classname', '').rpartition('.')[2]}::{case.get('name')}"
        found = next((part for part in case if part.tag in ("failure", "error", "skipped")), None)
        if found is None:
            passed += 1
        elif found.tag == "skipped":
            skipped[name] = found.get("message", "")
        else:
            failed.append(name)
    seconds = 0.0 if suite is None else float(suite.get("time", 0))
    return {"passed": passed, "failed": failed, "skipped": skipped, "left_out": LEFT_OUT, "seconds": round(seconds)}


def _said(done: subprocess.CompletedProcess[str]) -> str:
    if done.returncode:
        raise RootError(f"a program of the root ended with status {done.returncode}; what it says stands above")
    return done.stdout
