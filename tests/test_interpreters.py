"""The same answers on every interpreter that is here, and with the oldest versions that are supported.

Each interpreter gets an environment of its own with the built wheel's requirements. JetPack 6 is the oldest set: Python
3.10, NumPy 1.26, OpenCV 4.5.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY, command

OLDEST = [
    "numpy==1.26.4",
    "opencv-python-headless==4.5.5.64",
    "onnxruntime==1.17.3",
    "Pillow==10.1.0",
    "click==8.1.7",
    "rich==13.0.0",
    "filelock==3.12.0",
]
NEWEST = ["numpy", "opencv-python-headless", "onnxruntime", "Pillow", "click", "rich", "filelock"]
RUNTIME_TESTS = (REPOSITORY / "tests" / "runtime_tests.txt").read_text().split()
"""Tests that need nothing but the runtime, also for `fundus_rt.benchmarks.arm64`."""
SETS = {"3.10": OLDEST, "3.11": NEWEST, "3.12": NEWEST, "3.13": NEWEST}


def candidates(version: str) -> list[str]:
    """Where an interpreter may be: on the path, or among pyenv's."""
    root = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    on_path = shutil.which(f"python{version}")
    return ([on_path] if on_path else []) + [str(p) for p in sorted(root.glob(f"versions/{version}.*/bin/python"))]


def works(python: str) -> bool:
    """Whether the interpreter starts and can make environments; a shim of pyenv may not."""
    return subprocess.run([python, "-c", "import venv, ensurepip"], capture_output=True, check=False).returncode == 0


def environment_of(version: str, folder: Path) -> str:
    """Path of the Python of a fresh environment for `version`; skips where it cannot be had."""
    found = next(filter(works, candidates(version)), None)
    if found is None:
        pytest.skip(f"python{version} is not on this machine")
    subprocess.run([found, "-m", "venv", str(folder)], check=True)
    python = str(folder / "bin" / "python")
    packages = [*SETS[version], "pytest", "hypothesis", "scipy"]
    done = subprocess.run(
        [python, "-m", "pip", "install", "--quiet", "--only-binary=:all:", *packages], capture_output=True, text=True, check=False
    )
    if done.returncode:
        pytest.skip(f"the packages for python{version} cannot be installed here: {done.stderr.strip().splitlines()[-1]}")
    return python


def answers(python: str, examples: Path) -> list[dict[str, object]]:
    """What the command line says of the example photographs under an interpreter."""
    # .typing is named itself, so that an installed copy of the package cannot be the one that answers.
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY / ".typing")}
    call = [python, *command("infer", examples, "--format", "jsonl")[1:]]
    done = subprocess.run(call, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


IN_ONE_PROCESS = "--import-mode=importlib -m 'not full and not gpu' -k 'not killed_at_any_moment and not megapixels'"
"""The project's own options for pytest but for pytest-xdist's, which is not in that environment, less the slowest tests."""


QUICK = {"3.10"}
"""The oldest; the others are tried with the full-size networks."""


@pytest.mark.parametrize("version", [v if v in QUICK else pytest.param(v, marks=pytest.mark.full) for v in sorted(SETS)])
def test_same_files_same_answers(version: str, tmp_path: Path, examples: Path) -> None:
    python = environment_of(version, tmp_path / "venv")
    here, there = answers(sys.executable, examples), answers(python, examples)
    assert len(here) == len(there) == 11
    for one, other in zip(here, there, strict=True):
        assert one["file"] == other["file"]
        ours, theirs = one["field_of_view"], other["field_of_view"]
        assert [*ours["center"], ours["radius"]] == pytest.approx([*theirs["center"], theirs["radius"]], abs=0.5)
        assert ours["cut"] == theirs["cut"]
        for name, output in one["outputs"].items():  # type: ignore[attr-defined]
            found = other["outputs"][name]  # type: ignore[index]
            assert found["decision"] == output["decision"]
            # OpenCV's interpolation differs between versions in the last bits, so a centre that lies on the border between
            # two pixels can move the crop by one.
            assert found["probabilities"] == pytest.approx(output["probabilities"], abs=0.05)
    if version == "3.10":
        tests = [str(REPOSITORY / "tests" / name) for name in RUNTIME_TESTS]
        done = subprocess.run(
            [python, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-o", f"addopts={IN_ONE_PROCESS}", *tests],
            capture_output=True,
            text=True,
            cwd=REPOSITORY,
            check=False,
        )
        assert done.returncode == 0, done.stdout[-4000:]
