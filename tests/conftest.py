"""What several tests use: the example photographs, the tiny models, the command line in a process of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
DATA = Path(__file__).parent / "data"

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(autouse=True, scope="session")
def ctrl_c() -> Iterator[None]:
    """Ctrl-C interrupts, here and in child processes, also where a shell started the tests in the background and ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def examples() -> Path:
    """The folder of example photographs."""
    return REPOSITORY / "models" / "examples"


@pytest.fixture
def tiny_age() -> Path:
    """A network that mirrors left eyes; see make_models.py."""
    return DATA / "tiny_age.onnx"


@pytest.fixture
def tiny_sex() -> Path:
    """A network with two classes that never mirrors; see make_models.py."""
    return DATA / "tiny_sex.onnx"


@pytest.fixture
def fundus_rt() -> Run:
    """Runs ``fundus-rt ARGUMENTS`` of the working tree in a process of its own."""

    def run(*arguments: object, **options: object) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command(*arguments), capture_output=True, text=True, env=environment(), timeout=300, check=False, **options
        )  # type: ignore[call-overload,no-any-return]

    return run


def command(*arguments: object) -> list[str]:
    """The words of a call of the command line."""
    start = "from fundus_rt.runtime.cli import main; main()"
    return [sys.executable, "-c", start, *map(str, arguments)]


def environment() -> dict[str, str]:
    """The environment in which the working tree is found without being installed."""
    return {**os.environ, "PYTHONPATH": str(REPOSITORY / ".typing"), "NO_COLOR": "1"}


@pytest.fixture
def one_thread() -> Iterator[None]:
    """torch on one thread: small products on many threads only wait for each other."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
