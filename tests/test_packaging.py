"""What the wheel holds, and that it answers where nothing but the wheel is."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy of the files that git knows or would add."""
    pytest.importorskip("setuptools", minversion="68")
    tree = tmp_path_factory.mktemp("tree")
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=REPOSITORY, capture_output=True, check=False
    )
    if listed.returncode:
        pytest.skip("not a git checkout, so there is no list of the files to build from")
    for name in filter(None, listed.stdout.decode().split("\0")):
        source = REPOSITORY / name
        if source.is_file() and not source.is_symlink() and ".typing" not in Path(name).parts:
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, tree / name)
    out = tmp_path_factory.mktemp("wheel")
    call = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", str(out), str(tree)]
    done = subprocess.run(call, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (found,) = out.glob("*.whl")
    return found


def test_the_wheel_holds_the_four_rooms_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    packed = {name for name in names if ".dist-info/" not in name}
    expected = set()
    for room in ("models", "converters", "runtime", "benchmarks"):
        for path in (REPOSITORY / room).rglob("*"):
            relative = path.relative_to(REPOSITORY)
            wanted = (
                path.suffix in {".py", ".json", ".onnx", ".jpg", ".md", ".cu", ".html", ".css", ".bgr"} or path.name == "py.typed"
            )
            if wanted and not {"training", "results", "__pycache__"} & set(relative.parts):
                expected.add(f"fundus_rt/{relative.as_posix()}")
    assert packed == expected
    assert any(name.endswith("licenses/NOTICE") or name.endswith("NOTICE") for name in names)
    assert any(name.endswith("LICENSE") for name in names)


def test_the_wheel_stays_small(wheel: Path) -> None:
    assert wheel.stat().st_size < 10_000_000


def test_top_level_is_the_house() -> None:
    listed = subprocess.run(["git", "ls-files"], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("not a git checkout")
    top = {line.split("/")[0] for line in listed.stdout.splitlines()}
    rooms = {"converters", "runtime", "models", "benchmarks", "tests", "setup.cfg", "README.md"}
    tools = {"pyproject.toml", "CHANGELOG.md", "LICENSE", "NOTICE", ".ci", ".typing", ".gitignore", "noxfile.py", "ruff.toml"}
    tools |= {"deploy", "docs", "examples"}
    assert rooms <= top
    assert top - rooms <= tools
    assert len((REPOSITORY / "pyproject.toml").read_text().splitlines()) == 3
