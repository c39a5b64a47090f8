"""In a container with a read-only root, as a user without a name, without a home, a network or shared memory."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY, Run, command
from tests.locked_in import VOLUME, require_locking_in, run_locked_in

pytest.importorskip("onnxruntime")

TREE = {"PYTHONPATH": str(REPOSITORY / ".typing")}


def test_photographs_are_answered_where_nothing_can_be_written(tmp_path: Path, examples: Path, fundus_rt: Run) -> None:
    require_locking_in(tmp_path)
    done = run_locked_in(command("infer", examples), variables=TREE)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    assert done.stdout == fundus_rt("infer", examples).stdout
    told = run_locked_in(command("doctor"), variables=TREE)
    assert told.returncode == 0 and "does not load" not in told.stdout, told.stdout
    assert "name a folder that can be written with FUNDUS_RT_CACHE" in told.stdout


def test_a_volume_is_the_only_place_that_is_written(tmp_path: Path, examples: Path) -> None:
    volume = tmp_path / "volume"
    volume.mkdir()
    require_locking_in(tmp_path)
    call = command("infer", examples, "--output", VOLUME / "rows.jsonl", "--resume")
    for _ in range(2):
        done = run_locked_in(call, volume, {**TREE, "FUNDUS_RT_CACHE": str(VOLUME)})
        assert done.returncode == 0 and done.stderr == "", done.stderr
    assert len((volume / "rows.jsonl").read_text().splitlines()) == 11
    assert [path.name for path in volume.iterdir()] == ["rows.jsonl"]


@pytest.mark.full
def test_the_device_proves_itself_there(tmp_path: Path) -> None:
    volume = tmp_path / "volume"
    volume.mkdir()
    require_locking_in(tmp_path)
    call = command("selftest", "--output", VOLUME / "selftest.json")
    done = run_locked_in(call, volume, {**TREE, "FUNDUS_RT_CACHE": str(VOLUME)})
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads((volume / "selftest.json").read_text())["steps"]
