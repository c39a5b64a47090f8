"""Power cuts, full and read-only disks, a clock that was set back: no finished answer is lost, and none is wrong."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fundus_rt.models.artifacts import atomic_path
from fundus_rt.models.registry import EXAMPLE_FOLDER, bundled_file, load_card
from fundus_rt.runtime.output import open_output
from fundus_rt.runtime.rows import JsonLines
from tests.conftest import Run

CARD = load_card("acquisition")


def key(number: int) -> str:
    return f"{number:032x}"


class Disk:
    """What would be on the disk after a power cut: every file as it was when it was last brought there."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.kept: dict[int, bytes] = {}
        honest = os.fsync

        def fsync(handle: int) -> None:
            honest(handle)
            about = os.fstat(handle)
            path = Path(f"/proc/self/fd/{handle}")
            if path.resolve().is_file():
                self.kept[about.st_ino] = path.read_bytes()

        monkeypatch.setattr(os, "fsync", fsync)

    def after_power_cut(self, path: Path, zeros: int = 0) -> None:
        path.write_bytes(self.kept.get(path.stat().st_ino, b"") + bytes(zeros))


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="needs Linux")
@pytest.mark.parametrize("zeros", [0, 1, 5000])
def test_a_power_cut_loses_no_row_that_was_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, zeros: int) -> None:
    disk = Disk(monkeypatch)
    path = tmp_path / "rows.jsonl"
    with open_output(path, False, JsonLines()) as writer:
        for number in range(3):
            writer.write({"file": f"{number}.jpg", "error": None, "key": key(number)})
            left = disk.kept[path.stat().st_ino]
            assert [json.loads(line)["key"] for line in left.splitlines()] == [key(n) for n in range(number + 1)]
    disk.after_power_cut(path, zeros)
    with open_output(path, True, JsonLines()) as writer:
        assert writer.finished == {bytes.fromhex(key(number)) for number in range(3)}
        writer.write({"file": "3.jpg", "error": None, "key": key(3)})
    assert [json.loads(line)["key"] for line in path.read_bytes().splitlines()] == [key(n) for n in range(4)]


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="needs Linux")
def test_a_file_that_is_replaced_is_on_the_disk_before_its_name_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = Disk(monkeypatch)
    target = tmp_path / "a.engine"
    target.write_bytes(b"old")
    with atomic_path(target) as temporary:
        temporary.write_bytes(b"new and whole")
    disk.after_power_cut(target)
    assert target.read_bytes() == b"new and whole"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 64 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = shutil.which("mount")
    call = [mount or "mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
    if mount is None or subprocess.run(call, capture_output=True, check=False).returncode:
        pytest.skip("this user may not mount")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_keeps_every_whole_row_and_resume_adds_the_rest(small_disk: Path, fundus_rt: Run) -> None:
    rows = small_disk / "rows.jsonl"
    one = fundus_rt("infer", EXAMPLE_FOLDER / "haggstrom_right.jpg", "--format", "jsonl").stdout
    (small_disk / "filler").write_bytes(b"x" * (60 * 1024 - 4 * len(one) // 4096 * 4096 - 4096))
    full = fundus_rt("infer", EXAMPLE_FOLDER, "--output", rows)
    assert full.returncode == 3 and "No space left on device; what was written so far is whole" in full.stderr, full.stderr
    whole = [json.loads(line) for line in rows.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]
    assert 0 < len(whole) < 11 and all(row["error"] is None for row in whole)
    (small_disk / "filler").unlink()
    done = fundus_rt("infer", EXAMPLE_FOLDER, "--output", rows, "--resume")
    assert done.returncode == 0, done.stderr
    after = [json.loads(line) for line in rows.read_text(encoding="utf-8").splitlines()]
    assert after[: len(whole)] == whole and len(after) == 11
    straight = fundus_rt("infer", EXAMPLE_FOLDER, "--format", "jsonl").stdout.splitlines()
    assert [row["outputs"] for row in after] == [json.loads(line)["outputs"] for line in straight]


def test_a_read_only_disk_is_said_and_answers_still_come(
    small_disk: Path, fundus_rt: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    photograph = small_disk / "a.jpg"
    with open(EXAMPLE_FOLDER / "haggstrom_right.jpg", "rb") as source:
        content = source.read()
    subprocess.run(["mount", "-o", "remount,size=4m", str(small_disk)], check=True)
    photograph.write_bytes(content)
    model = small_disk / "model.onnx"
    model.write_bytes(bundled_file(CARD).read_bytes())
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    monkeypatch.setenv("FUNDUS_RT_CACHE", str(small_disk / "cache"))
    refused = fundus_rt("infer", photograph, "--output", small_disk / "rows.jsonl")
    assert refused.returncode == 2 and "Read-only file system" in refused.stderr and "Traceback" not in refused.stderr
    answered = fundus_rt("infer", photograph, "--model", model, "--format", "jsonl")
    assert answered.returncode == 0, answered.stderr
    assert json.loads(answered.stdout)["outputs"]["fundus"]["decision"] == "fundus"


def test_a_clock_that_was_set_back_makes_no_other_engine_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine from before the clock was set back looks newer than the one just built, which has to stay and to answer."""
    pytest.importorskip("onnxruntime")
    from fundus_rt.models.engine_cache import EngineCache
    from fundus_rt.runtime.nvidia.tensorrt_session import TensorRTSession
    from tests.fake_engines import FakeMachine, cache_engine, record_of
    from tests.fake_tensorrt import fake_plan

    model = tmp_path / "model.onnx"
    model.write_bytes(bundled_file(CARD).read_bytes())
    FakeMachine(monkeypatch, tmp_path).install_kernels(model)
    before = cache_engine(model, batch=(1, 1, 2), built_at="2031-01-01T00:00:00Z")
    in_future = time.time() + 4 * 365 * 86400
    for path in before.parent.iterdir():
        os.utime(path, (in_future, in_future))
    plan = fake_plan(model, (1, 2, 4))
    record = record_of(model, plan, (1, 2, 4))

    def build(path: Path) -> Any:
        path.write_bytes(plan)
        return record

    kept = EngineCache(limit_bytes=1).get_or_build(record.key, build, lambda sentence: None)[0]
    assert kept.is_file() and not before.exists()
    with TensorRTSession(model) as session:
        assert session.engine_path == kept
