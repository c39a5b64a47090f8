"""Nothing is reported to the makers of the libraries: no identifier, no list of events waits in the home folder to be sent."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import command, environment

pytest.importorskip("onnxruntime")


def left_in_home(home: Path, call: list[str]) -> list[str]:
    """The files that a call leaves in a home folder that was empty."""
    home.mkdir()
    # A test machine is told from a device by these, and nothing is reported from it.
    kept = {name: value for name, value in environment().items() if name not in ("CI", "GITHUB_ACTIONS", "TF_BUILD")}
    for name in ("ORT_DISABLE_TELEMETRY", "XDG_CACHE_HOME", "FUNDUS_RT_CACHE"):
        kept.pop(name, None)
    done = subprocess.run(call, env={**kept, "HOME": str(home)}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return [path.name for path in home.rglob("*") if path.is_file()]


@pytest.mark.skipif(os.name != "posix", reason="Windows keeps such events elsewhere")
def test_answering_leaves_no_identifier_behind(tmp_path: Path, examples: Path) -> None:
    """Wheels of ONNX Runtime from 1.29 on write one when they are imported, and send it with the names of models."""
    assert left_in_home(tmp_path / "ours", command("infer", examples / "chase_01L.jpg")) == []


def test_openvino_asks_nobody_and_leaves_nothing_behind(tmp_path: Path) -> None:
    """Its wheels bring a package that asks a server and keeps an identity when OpenVINO is imported."""
    pytest.importorskip("openvino")
    code = """
import sys
asked = []
watched = ("urllib.Request", "socket.getaddrinfo", "socket.connect")
sys.addaudithook(lambda event, arguments: asked.append(event) if event in watched else None)
from fundus_rt.runtime.openvino_session import import_openvino
import_openvino()
sys.exit(" ".join(asked) or 0)
"""
    assert left_in_home(tmp_path / "home", [sys.executable, "-c", code]) == []


def test_who_wants_it_can_have_it(tmp_path: Path) -> None:
    said = "import fundus_rt.models, os; print(os.environ['ORT_DISABLE_TELEMETRY'])"
    for asked, expected in ({}, "1"), ({"ORT_DISABLE_TELEMETRY": "0"}, "0"):
        variables = {name: value for name, value in environment().items() if name != "ORT_DISABLE_TELEMETRY"}
        done = subprocess.run(
            [sys.executable, "-c", said], env={**variables, **asked}, capture_output=True, text=True, check=True
        )
        assert done.stdout.strip() == expected
