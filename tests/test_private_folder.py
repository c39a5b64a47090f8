"""Without a report, no row with a photograph's name outlives the call, however it ends."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

pytest.importorskip("onnxruntime")
pytest.importorskip("scipy")

from fundus_rt.runtime.commands.private_folder import PREFIX, private_folder
from tests.conftest import command, environment


def interrupted(tmp_path: Path, tiny_age: Path, examples: Path, number: int) -> list[Path]:
    """What is left after `evaluate` was sent a signal while it had rows."""
    labels = tmp_path / "labels.csv"
    names = sorted(examples.glob("*.jpg"))
    for copy in range(60):
        for path in names:
            (tmp_path / f"{copy}{path.name}").write_bytes(path.read_bytes() + bytes([copy]))
    labels.write_text("file,age\n" + "".join(f"{copy}{path.name},50\n" for copy in range(60) for path in names))
    (tmp_path / "tmp").mkdir(exist_ok=True)
    words = command("evaluate", tiny_age, "--labels", labels)
    running = subprocess.Popen(
        words, env={**environment(), "TMPDIR": str(tmp_path / "tmp")}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    for _ in range(600):
        rows = list((tmp_path / "tmp").glob(f"{PREFIX}*/answers.jsonl"))
        if rows and rows[0].stat().st_size > 2000:
            break
        assert running.poll() is None, "it ended before it was interrupted"
        time.sleep(0.05)
    assert rows and rows[0].parent.stat().st_mode & 0o077 == 0
    running.send_signal(number)
    assert running.wait(60) != 0
    return list((tmp_path / "tmp").glob(f"{PREFIX}*"))


def test_it_is_gone_when_the_process_is_told_to_end(tmp_path: Path, tiny_age: Path, examples: Path) -> None:
    assert interrupted(tmp_path, tiny_age, examples, signal.SIGTERM) == []


def test_what_a_kill_left_goes_with_the_next_call(
    tmp_path: Path, tiny_age: Path, examples: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (left,) = interrupted(tmp_path, tiny_age, examples, signal.SIGKILL)
    other = tmp_path / "tmp" / f"{PREFIX}{os.getpid()}-of-a-living-process"
    other.mkdir()
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path / "tmp"))
    with private_folder() as folder:
        assert folder.is_dir() and not left.exists() and other.is_dir()
    assert not folder.exists()
