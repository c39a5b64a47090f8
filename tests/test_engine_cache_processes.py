"""The cache of engines with several processes: one builds and the others wait; a killed one leaves nothing in the way."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from fundus_rt.models import engine_cache
from fundus_rt.models.engine_cache import EngineCache
from fundus_rt.models.engines import EngineRecord
from tests.conftest import environment
from tests.test_engine_cache import builder, fill
from tests.test_engines import ORIN


@pytest.fixture
def cache(tmp_path: Path) -> EngineCache:
    return EngineCache(tmp_path / "cache", limit_bytes=1 << 20)


WORKER = """
import hashlib, sys, time
from pathlib import Path
from fundus_rt.models.engine_cache import EngineCache
from fundus_rt.models.engines import EngineRecord
from tests.test_engines import ORIN
folder, name = Path(sys.argv[1]), sys.argv[2]
def build(path):
    (folder / f"building-{name}").touch()
    path.write_bytes(b"from " + name.encode())
    while not (folder / "go").exists():
        time.sleep(0.01)
    content = path.read_bytes()
    return EngineRecord(ORIN, hashlib.sha256(content).hexdigest(), len(content), {}, "fp32", "2026-11-22T18:00:00Z", 1.0)
path, record = EngineCache(folder / "cache").get_or_build(ORIN, build, lambda text: print(text, flush=True))
print(path.read_bytes().decode(), flush=True)
"""


def worker(folder: Path, name: str) -> subprocess.Popen[str]:
    found = environment()
    found["PYTHONPATH"] += f"{os.pathsep}{Path(__file__).resolve().parent.parent}"
    return subprocess.Popen([sys.executable, "-c", WORKER, str(folder), name], stdout=subprocess.PIPE, text=True, env=found)


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end, "nothing happened for a minute"
        time.sleep(0.01)


def test_of_three_processes_one_builds_and_the_others_wait_and_say_so(tmp_path: Path) -> None:
    first = worker(tmp_path, "first")
    wait_for((tmp_path / "building-first").exists)
    others = [worker(tmp_path, name) for name in ("second", "third")]
    waiting = "another process is building the same engine (tensorrt 10.3.0.26, Orin); waiting until it is done\n"
    for other in others:
        assert other.stdout is not None
        assert other.stdout.readline() == waiting
    (tmp_path / "go").touch()
    assert first.communicate(timeout=60)[0].splitlines() == ["an engine is built: no engine of this model yet", "from first"]
    for other in others:
        assert other.communicate(timeout=60)[0].splitlines() == [
            "another process has built this engine meanwhile; it is used",
            "from first",
        ]
    assert sorted(path.name for path in tmp_path.glob("building-*")) == ["building-first"]


def test_a_killed_builder_leaves_no_lock_and_its_half_is_removed(tmp_path: Path, cache: EngineCache) -> None:
    killed = worker(tmp_path, "killed")
    wait_for((tmp_path / "building-killed").exists)
    waiting = worker(tmp_path, "waiting")
    assert waiting.stdout is not None and "waiting" in waiting.stdout.readline()
    half = [path for path in (tmp_path / "cache").iterdir() if path.name.startswith(f".{ORIN.digest()}.engine")]
    assert len(half) == 1
    killed.send_signal(signal.SIGKILL)
    killed.communicate(timeout=60)
    wait_for((tmp_path / "building-waiting").exists)
    assert not half[0].exists()
    (tmp_path / "go").touch()
    assert "from waiting" in waiting.communicate(timeout=60)[0]
    assert cache.find(ORIN) is not None
    assert len([path for path in (tmp_path / "cache").iterdir() if path.suffix != ".lock"]) == 2


def test_waiting_is_said_again_and_threads_wait_for_each_other_too(
    cache: EngineCache, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(engine_cache, "_SAY_AGAIN_S", 0.05)
    said: list[str] = []
    waiting = threading.Thread(target=cache.get_or_build, args=(ORIN, builder(ORIN, b"late"), said.append))

    def build(path: Path) -> EngineRecord:
        waiting.start()
        wait_for(lambda: any(text.startswith("still waiting for the process that builds") for text in said))
        return builder(ORIN, b"early")(path)

    path, _ = cache.get_or_build(ORIN, build, lambda text: None)
    waiting.join(60)
    assert said[-1] == "another process has built this engine meanwhile; it is used"
    assert path.read_bytes() == b"early"


def test_an_engine_that_is_being_built_is_not_removed_by_another_process(tmp_path: Path) -> None:
    busy = worker(tmp_path, "busy")
    wait_for((tmp_path / "building-busy").exists)
    fill(EngineCache(tmp_path / "cache", limit_bytes=1), range(1, 3), size=50)
    (tmp_path / "go").touch()
    assert "from busy" in busy.communicate(timeout=60)[0]
