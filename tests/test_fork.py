"""A process that forks after it opened a pipeline: the child opens its own, and ends as any process does."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import environment

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="there are no forked processes here")

PARENT = """
import gc, os, sys, threading
from fundus_rt.models.errors import StoppedError
from fundus_rt.runtime import Pipeline
from tests.photographs import half_and_half

def opened():
    return Pipeline({model!r}, backend={backend!r}, threads={threads}, check=False)

frame = half_and_half(60, 180)
pipeline = opened()
before = pipeline(frame).outputs
stop = threading.Event()
busy = threading.Thread(target=lambda: [pipeline(frame) for _ in iter(stop.is_set, True)])
if {busy}:
    busy.start()
child = os.fork()
if child == 0:
{child}
    sys.exit(0)
stop.set()
status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
assert pipeline(frame).outputs == before
if {busy}:
    busy.join()
pipeline.close()
print("child", status)
"""
OPENS_ITS_OWN = """
    pipeline = opened()
    gc.collect()
    assert pipeline(frame).outputs == before
    pipeline.close()
    gc.collect()
"""
CLOSES_THE_OTHER = """
    try:
        pipeline(frame)
        sys.exit(1)
    except StoppedError as error:
        assert "post_fork" in str(error)
        pipeline.close()
    del pipeline
    gc.collect()
    assert opened()(frame).outputs == before
"""
DOES_NOTHING = """
    pass
"""


@pytest.mark.parametrize("child", [OPENS_ITS_OWN, CLOSES_THE_OTHER, DOES_NOTHING], ids=["own", "close", "exit"])
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_a_child_never_waits_for_its_parents_threads(tiny_sex: Path, backend: str, threads: int, child: str) -> None:
    pytest.importorskip(backend)
    code = PARENT.format(model=str(tiny_sex), backend=backend, threads=threads, busy=child == CLOSES_THE_OTHER, child=child)
    kept = environment()
    kept["PYTHONPATH"] += f"{os.pathsep}{Path(__file__).resolve().parent.parent}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=kept, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (0, "child 0\n"), done.stderr
