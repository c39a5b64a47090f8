"""Programs with a time limit: one that hangs is left, with what it started; how another ended is said."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from fundus_rt.runtime.device_check.limited_process import run_limited


def test_a_program_that_hangs_is_left_with_all_it_started(tmp_path: Path) -> None:
    script = "sleep 600 & echo $! > child; echo begun; sleep 600"
    done = run_limited(["sh", "-c", f"cd {tmp_path}; {script}"], limit_s=1)
    assert (done.status, done.output) == (None, "begun\n")
    assert done.reason(1) == "no answer within 1 s"
    child = int((tmp_path / "child").read_text())
    end = time.monotonic() + 60
    while Path(f"/proc/{child}").exists() and "Z" not in Path(f"/proc/{child}/stat").read_text().split()[2]:
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_program_whose_child_keeps_the_output_open_is_not_waited_for(tmp_path: Path) -> None:
    done = run_limited(["sh", "-c", "setsid sleep 20 & echo over"], limit_s=15)
    assert (done.status, done.output) == (0, "over\n")


def test_how_a_program_ended_is_said() -> None:
    assert run_limited(["sh", "-c", "kill -SEGV $$"], 20).reason(20) == "ended by SIGSEGV"
    failed = run_limited(["sh", "-c", "echo why >&2; exit 3"], 20)
    assert (failed.reason(20), failed.errors) == ("ended with status 3", "why\n")
    assert run_limited(["true"], 20).reason(20) == ""
    with pytest.raises(FileNotFoundError):
        run_limited(["no-such-program-anywhere"], 1)
