"""The memory limit: its words, what is left by the system's own account, and real runs inside of it."""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import cv2
import numpy as np
import pytest

from fundus_rt.models.errors import DeviceMemoryError, UsageError
from fundus_rt.models.memory import available_memory, bytes_from_text, is_out_of_memory, memory_for
from fundus_rt.runtime import Pipeline
from fundus_rt.runtime.batch import MODEL_BYTES, NO_MEMORY, WORKER_BYTES, Answerer, AnswerOptions, most_workers
from fundus_rt.runtime.inputs import Item
from tests.conftest import Run, environment

linux = pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_DATA counts what is needed on Linux alone")


@pytest.mark.parametrize(
    ("text", "size"),
    [("512MB", 512 << 20), ("4G", 4 << 30), ("1.5 GiB", 3 << 29), (" 600m ", 600 << 20), ("8gb", 8 << 30)],
)
def test_sizes_in_words(text: str, size: int) -> None:
    assert bytes_from_text(text) == size


@pytest.mark.parametrize("text", ["", "4", "4TB", "-4G", "GB", "four", "4 G B"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="512MB or 4GB; got"):
        bytes_from_text(text)


def test_a_limit_that_nothing_starts_in_is_refused() -> None:
    with pytest.raises(UsageError, match="is 511 MB, expected at least 512 MB"):
        bytes_from_text("511M")


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("can't start new thread"),
        cv2.error("OpenCV(5.0.0) alloc.cpp:73: error: (-4:Insufficient memory) Failed to allocate 9 bytes"),
        RuntimeError("[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : Failed to allocate memory for requested buffer of size 9"),
        RuntimeError("std::bad_alloc"),
        ImportError("libx.so: cannot open: failed to map segment from shared object"),
    ],
)
def test_the_end_of_memory_is_known_by_every_librarys_words(error: Exception) -> None:
    assert is_out_of_memory(error)
    assert not is_out_of_memory(RuntimeError("the shape is wrong"))


def machine(root: Path, files: dict[str, str]) -> Path:
    for name, text in {"proc/meminfo": "MemTotal: 9 kB\nMemAvailable:  8388608 kB\n", **files}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text, encoding="ascii")
    return root


GIB = 1 << 30


def test_what_is_left_is_the_least_of_all_accounts(tmp_path: Path) -> None:
    assert available_memory(tmp_path / "nothing") is None
    assert available_memory(machine(tmp_path / "free", {})) == 8 * GIB
    second = {
        "proc/self/cgroup": "0::/kiosk.slice/screen.service\n",
        "sys/fs/cgroup/kiosk.slice/memory.max": f"{2 * GIB}\n",
        "sys/fs/cgroup/kiosk.slice/memory.current": f"{GIB}\n",
        "sys/fs/cgroup/kiosk.slice/memory.stat": f"anon 1\ninactive_file {GIB // 4}\n",
        "sys/fs/cgroup/kiosk.slice/screen.service/memory.max": "max\n",
        "sys/fs/cgroup/kiosk.slice/screen.service/memory.current": "5\n",
    }
    assert available_memory(machine(tmp_path / "two", second)) == GIB + GIB // 4  # of the group above its own
    first = {
        "proc/self/cgroup": "7:cpu:/a\n4:memory:/docker/1\n",
        "sys/fs/cgroup/memory/memory.limit_in_bytes": f"{3 * GIB}",  # in a container its own group is the top
        "sys/fs/cgroup/memory/memory.usage_in_bytes": f"{GIB}",
    }
    assert available_memory(machine(tmp_path / "one", first)) == 2 * GIB
    full = {**first, "sys/fs/cgroup/memory/memory.usage_in_bytes": f"{4 * GIB}"}
    assert available_memory(machine(tmp_path / "full", full)) == 0


@pytest.mark.parametrize(("free", "workers"), [(GIB, 2), (100 << 20, 1), (0, 1), (None, 1 << 16)])
def test_pictures_in_work_follow_the_memory(monkeypatch: pytest.MonkeyPatch, free: int | None, workers: int) -> None:
    monkeypatch.setattr("fundus_rt.runtime.batch.available_memory", lambda: free)
    model = (GIB - 2 * WORKER_BYTES) // MODEL_BYTES
    assert most_workers(model) == workers


def test_memory_is_claimed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fundus_rt.models.memory.available_memory", lambda: GIB)
    with memory_for(GIB // 2), memory_for(GIB // 2):
        with pytest.raises(MemoryError, match="512 MB are needed, 0 MB are free"), memory_for(GIB // 2):
            pytest.fail("was let in")
        with memory_for(1 << 20):  # nothing beside the rest of a process
            pass
    with memory_for(GIB):
        pass
    monkeypatch.setattr("fundus_rt.models.memory.available_memory", lambda: None)
    with memory_for(1 << 50):  # a system that does not say
        pass


@pytest.mark.parametrize("format", ["png", "tiff", "ppm", "bmp", "jpg"])
@pytest.mark.parametrize("where", ["before", "PIL.ImageFile.ImageFile.load", "PIL.Image.Image.getexif"])
def test_a_whole_picture_that_finds_no_memory_is_not_called_damaged(
    format: str, where: str, tmp_path: Path, tiny_sex: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / f"a.{format}"
    cv2.imwrite(str(path), np.zeros((3000, 4000, 3), np.uint8))

    def refuse(*arguments: object) -> None:
        raise MemoryError

    with closing(Pipeline(tiny_sex, check=False)) as pipeline, monkeypatch.context() as short:
        if where == "before":
            short.setattr("fundus_rt.models.memory.available_memory", lambda: 100 << 20)
        elif format == "jpg" and where.endswith("load"):
            short.setattr("cv2.imdecode", refuse)
        else:
            short.setattr(where, refuse)
        (row,) = Answerer(pipeline, AnswerOptions(eye="left"), 1, 1, frozenset()).rows([Item(str(path))])
    assert row["error"] == NO_MEMORY and row["key"] is None


def test_a_file_that_does_not_fit_into_memory_is_a_row(tiny_sex: Path, examples: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(item: Item) -> bytes:
        raise MemoryError

    monkeypatch.setattr("fundus_rt.runtime.batch.read_item", refuse)
    with closing(Pipeline(tiny_sex)) as pipeline:
        (row,) = Answerer(pipeline, AnswerOptions(), 1, 1, frozenset()).rows([Item(str(examples / "chase_01L.jpg"))])
    assert row["error"] == NO_MEMORY and row["key"] is None


@linux
def test_all_examples_inside_of_512_mb(examples: Path, fundus_rt: Run) -> None:
    done = fundus_rt("infer", examples, "--memory-limit", "512MB", "--format", "jsonl")
    assert done.returncode == 0, done.stderr
    free = fundus_rt("infer", examples, "--format", "jsonl")
    kept = ("file", "sha256", "eye", "field_of_view", "outputs", "warnings", "error", "key")
    for one, other in zip(done.stdout.splitlines(), free.stdout.splitlines(), strict=True):
        assert [json.loads(one)[name] for name in kept] == [json.loads(other)[name] for name in kept]


@linux
def test_a_picture_too_large_for_the_limit_is_a_row_that_resume_answers(tmp_path: Path, examples: Path, fundus_rt: Run) -> None:
    small = cv2.imread(str(examples / "haggstrom_right.jpg"))
    cv2.imwrite(str(tmp_path / "b_large.jpg"), cv2.resize(small, (9000, 9000), interpolation=cv2.INTER_NEAREST))
    for name in ("a", "c"):
        (tmp_path / f"{name}.jpg").write_bytes((examples / "haggstrom_right.jpg").read_bytes())
    rows = tmp_path / "rows.jsonl"
    done = fundus_rt("infer", tmp_path, "--memory-limit", "512MB", "--output", rows)
    assert done.returncode == 1, done.stderr
    one, large, other = (json.loads(line) for line in rows.read_text().splitlines())
    assert "not enough memory for this picture" in large["error"] and large["key"] is None and not large["outputs"]
    assert one["error"] is None and one["outputs"] == other["outputs"]
    again = fundus_rt("infer", tmp_path, "--output", rows, "--resume")
    assert again.returncode == 0, again.stderr
    answered = {Path(row["file"]).name: row for row in map(json.loads, rows.read_text().splitlines())}
    assert answered["b_large.jpg"]["error"] is None and answered["b_large.jpg"]["outputs"]
    assert len(answered) == 3


@linux
def test_a_model_too_large_for_the_limit_is_said(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    from fundus_rt.models.registry import bundled_file, load_card

    model = onnx.load(str(bundled_file(load_card("acquisition"))))
    heavy = np.ones((400 << 20) // 4, np.float32)
    model.graph.initializer.append(onnx.numpy_helper.from_array(heavy, "weight_of_nothing"))
    model.graph.node.append(onnx.helper.make_node("ReduceSum", ["weight_of_nothing"], ["sum_of_nothing"]))
    path = tmp_path / "heavy.onnx"
    path.write_bytes(model.SerializeToString())
    code = "from fundus_rt.runtime.cli import main; main()"
    call = [sys.executable, "-c", code, "infer", str(path.parent), "--model", str(path), "--memory-limit", "600MB"]
    done = subprocess.run(call, capture_output=True, text=True, env=environment(), check=False)
    assert done.returncode == 3, done.stderr
    assert "the memory is not enough" in done.stderr and "Traceback" not in done.stderr


@linux
def test_a_process_that_is_limited_already_cannot_have_more(examples: Path) -> None:
    code = (
        "import resource; resource.setrlimit(resource.RLIMIT_DATA, (1 << 30, 1 << 30)); "
        "from fundus_rt.runtime.cli import main; main()"
    )
    call = [sys.executable, "-c", code, "infer", str(examples), "--memory-limit", "2GB"]
    done = subprocess.run(call, capture_output=True, text=True, env={**environment(), "COLUMNS": "200"}, check=False)
    assert done.returncode == 2 and "limited to 1024 MB" in done.stderr


def test_the_error_says_what_to_do() -> None:
    from fundus_rt.models.memory import no_memory_to_open

    assert isinstance(no_memory_to_open("x.onnx"), DeviceMemoryError)
    assert "--memory-limit" in str(no_memory_to_open("x.onnx"))
