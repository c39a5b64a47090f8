"""The folder of wheels for a machine without a network: complete for its Python and processor, or not there at all."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from deploy import wheelhouse
from deploy.wheelhouse import WheelhouseError, make_wheelhouse, target_environment, unmet_requirements
from tests.conftest import REPOSITORY, environment
from tests.locked_in import require_locking_in, run_locked_in


def lay(folder: Path, name: str, version: str, *needs: str, tag: str = "py3-none-any") -> Path:
    """A wheel with metadata and nothing else."""
    folder.mkdir(exist_ok=True)
    path = folder / f"{name}-{version}-{tag}.whl"
    info = f"{name}-{version}.dist-info"
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n" + "".join(f"Requires-Dist: {one}\n" for one in needs)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{info}/METADATA", metadata)
        archive.writestr(f"{info}/WHEEL", f"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: {tag}\n")
        archive.writestr(f"{info}/RECORD", "")
    return path


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is the only place where pip finds wheels."""
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "shelf"))
    return tmp_path / "shelf"


def own(monkeypatch: pytest.MonkeyPatch, *needs: str) -> None:
    """The project's own wheel is a small one, whose building needs no network."""
    monkeypatch.setattr(wheelhouse, "own_wheel", lambda room: lay(room / "own", "fundus_rt", "0.1.0", *needs))


OTHER = "3.10" if sys.version_info[1] != 10 else "3.12"
"""A Python that does not run these tests."""


def test_what_only_the_targets_python_needs_is_there(tmp_path: Path, shelf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """pip holds such conditions against the Python that runs it; a wheel for this one's sake must not decide for that one."""
    there = f'python_version == "{OTHER}" and platform_machine == "aarch64"'
    own(monkeypatch, "reader", f"backport>=1; {there}", 'codec; extra == "dicom"', 'other; extra == "cpu"')
    lay(shelf, "reader", "2.0")
    lay(shelf, "backport", "1.5", "deeper")
    lay(shelf, "deeper", "1.0", tag=f"cp{OTHER.replace('.', '')}-cp{OTHER.replace('.', '')}-manylinux_2_17_aarch64")
    lay(shelf, "codec", "3.0")
    folder = tmp_path / "wheels"
    assert make_wheelhouse(folder, ["dicom"], [], "aarch64", OTHER, 28) == 5
    pins = [line.split()[0] for line in (folder / "requirements.txt").read_text().splitlines()]
    assert pins == ["backport==1.5", "codec==3.0", "deeper==1.0", "fundus-rt==0.1.0", "reader==2.0"]
    for line in (folder / "SHA256SUMS").read_text().splitlines():
        digest, name = line.split("  ")
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest
    assert sorted(path.name for path in tmp_path.iterdir()) == ["shelf", "wheels"]


@pytest.mark.parametrize("version", ["1.5", "2.5"])
def test_wheels_that_do_not_fit_together_make_no_folder(
    version: str, tmp_path: Path, shelf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """pip takes version 1.5, for this Python, which is not what the other one needs; or finds nothing for this one at all."""
    own(monkeypatch, f'array<2; python_version != "{OTHER}"', f'array>=2,<2.5; python_version == "{OTHER}"')
    lay(shelf, "array", version)
    with pytest.raises(WheelhouseError, match="pip could not bring the wheels"):
        make_wheelhouse(tmp_path / "wheels", [], [], "x86-64", OTHER, 28)
    assert [path.name for path in tmp_path.iterdir()] == ["shelf"]


def test_a_folder_that_is_there_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "wheels").mkdir()
    (tmp_path / "wheels" / "old.whl").touch()
    script = REPOSITORY / "deploy" / "wheelhouse.py"
    done = subprocess.run([sys.executable, script, tmp_path / "wheels"], capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "exists already; remove it, or give another name" in done.stderr
    assert [path.name for path in (tmp_path / "wheels").iterdir()] == ["old.whl"] and len(list(tmp_path.iterdir())) == 1


def test_requirements_are_held_against_the_targets_processor(tmp_path: Path) -> None:
    lay(tmp_path, "fundus_rt", "0.1.0", 'gpu-code>=2; platform_machine == "x86_64"', 'arm-code; platform_machine == "aarch64"')
    lay(tmp_path, "gpu_code", "1.9")
    assert unmet_requirements(tmp_path, ["fundus-rt"], target_environment("x86-64", "3.12")) == ["gpu-code>=2"]
    assert unmet_requirements(tmp_path, ["fundus-rt"], target_environment("aarch64", "3.12")) == ["arm-code"]
    lay(tmp_path, "gpu_code", "2.0")
    with pytest.raises(WheelhouseError, match="versions of one project"):
        unmet_requirements(tmp_path, ["fundus-rt"], target_environment("x86-64", "3.12"))


@pytest.mark.full
def test_an_environment_without_a_network_answers(tmp_path: Path, examples: Path) -> None:
    script = REPOSITORY / "deploy" / "wheelhouse.py"
    made = subprocess.run(
        [sys.executable, script, "wheels", "--extra", "cpu"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    if "pip could not bring" in made.stderr:
        pytest.skip("the packages cannot be had here")
    assert made.returncode == 0, made.stderr
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    words = made.stdout.split("there: ")[1].split()
    variables = {**os.environ, "PIP_CONFIG_FILE": os.devnull, "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": ""}
    offline = {"cwd": tmp_path, "env": variables, "capture_output": True, "text": True, "check": False}
    wheel = next((tmp_path / "wheels").glob("fundus_rt-*.whl"))
    content = wheel.read_bytes()
    wheel.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    done = subprocess.run([tmp_path / "venv" / "bin" / words[0], *words[1:]], **offline)  # type: ignore[call-overload]
    assert done.returncode and "DO NOT MATCH THE HASHES" in done.stderr
    wheel.write_bytes(content)
    done = subprocess.run([tmp_path / "venv" / "bin" / words[0], *words[1:]], **offline)  # type: ignore[call-overload]
    assert done.returncode == 0, done.stderr
    call = ["infer", str(examples), "--format", "jsonl"]
    there = subprocess.run([tmp_path / "venv" / "bin" / "fundus-rt", *call], **offline)  # type: ignore[call-overload]
    code = "from fundus_rt.runtime.cli import main; main()"
    here = subprocess.run([sys.executable, "-c", code, *call], env=environment(), capture_output=True, text=True, check=True)
    said, expected = ([json.loads(line) for line in text.splitlines()] for text in (there.stdout, here.stdout))
    assert len(said) == 11
    require_locking_in(tmp_path)
    confined = run_locked_in([str(tmp_path / "venv" / "bin" / "fundus-rt"), *call])
    assert confined.returncode == 0, confined.stderr
    assert [json.loads(line)["outputs"] for line in confined.stdout.splitlines()] == [row["outputs"] for row in said]
    for one, other in zip(said, expected, strict=True):
        assert one["outputs"]["eye"]["probabilities"] == pytest.approx(other["outputs"]["eye"]["probabilities"], abs=1e-3)
