"""A machine without OpenCV, or with one that does not fit, is told what to do, not shown where it failed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import environment

BROKEN = {
    "is not installed": None,
    "was built for another NumPy": "raise ImportError('numpy.core.multiarray failed to import')",
    "cannot be loaded (libGL.so.1": "raise ImportError('libGL.so.1: cannot open shared object file: No such file or directory')",
}
ADVICE = "on a Jetson use JetPack's (apt install python3-opencv"


def run(code: str, tmp_path: Path, module: str | None) -> subprocess.CompletedProcess[str]:
    """Run code where `cv2` is missing, or is this module."""
    begin = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); "
    if module is None:
        begin += "sys.modules['cv2'] = None; "
        hidden = "import importlib.abc\nclass Gone(importlib.abc.MetaPathFinder):\n def find_spec(self, name, *_):\n"
        hidden += "  if name == 'cv2': raise ModuleNotFoundError('No module named cv2', name='cv2')\n"
        (tmp_path / "hide.py").write_text(hidden + "import sys\nsys.modules.pop('cv2', None)\nsys.meta_path.insert(0, Gone())\n")
        begin += "import hide; "
    else:
        (tmp_path / "cv2.py").write_text(module + "\n")
    return subprocess.run(
        [sys.executable, "-c", begin + code], capture_output=True, text=True, env=environment(), timeout=120, check=False
    )


@pytest.mark.parametrize(("cause", "module"), BROKEN.items())
def test_the_command_says_what_to_do(tmp_path: Path, examples: Path, cause: str, module: str | None) -> None:
    code = f"sys.argv[1:] = ['infer', {str(examples)!r}]; from fundus_rt.runtime.cli import main; main()"
    done = run(code, tmp_path, module)
    assert done.returncode == 2 and done.stderr.startswith(f"Error: OpenCV {cause}"), done.stderr
    assert ADVICE in done.stderr and "Traceback" not in done.stderr


def test_a_calling_program_gets_an_error_of_the_package(tmp_path: Path) -> None:
    code = (
        "from fundus_rt.models.errors import FundusRtError\n"
        "try:\n from fundus_rt.runtime import Pipeline\nexcept FundusRtError as error: print(error)"
    )
    done = run("\n" + code, tmp_path, None)
    assert done.returncode == 0 and "OpenCV is not installed" in done.stdout and ADVICE in done.stdout, done.stderr


def test_help_needs_no_opencv(tmp_path: Path) -> None:
    done = run("sys.argv[1:] = ['--help']; from fundus_rt.runtime.cli import main; main()", tmp_path, None)
    assert done.returncode == 0 and "infer" in done.stdout
