"""``fundus-rt build``: options, where the engine goes, what is printed, and what is said where there is no GPU."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner, Result

from fundus_rt.models.artifacts import sha256_of_file
from fundus_rt.models.engine_cache import EngineCache
from fundus_rt.models.engines import EngineProfile, record_from_json
from fundus_rt.models.errors import BackendUnavailableError, DeviceMemoryError, EngineError, UsageError
from fundus_rt.runtime.commands.build import build
from tests.conftest import REPOSITORY, Run, command
from tests.engine_graphs import saved, small_network
from tests.tensorrt_host import host_environment, host_library, importable

pytest.importorskip("onnx")

ACQUISITION = REPOSITORY / "models" / "bundled" / "acquisition.onnx"
TARGET = ("--for-compute-capability", "8.6")
GIB = 1 << 30


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return saved(tmp_path / "small.onnx", small_network("fp16"))


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FUNDUS_RT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch, cache: Path) -> Iterator[SimpleNamespace]:
    """TensorRT-RTX, and a driver that describes a GPU; what is built is built by the real library."""
    machine = SimpleNamespace(
        gpu_name="NVIDIA RTX 4000",
        compute_capability="8.9",
        cuda_driver="13.0",
        l4t="",
        integrated=False,
        free=4 * GIB,
        multiprocessors=48,
        board="",
    )
    device = SimpleNamespace(memory=lambda: (machine.free, 8 * GIB), close=lambda: None)
    monkeypatch.setattr("fundus_rt.runtime.nvidia.machine.machine_identity", lambda *_: machine)
    monkeypatch.setattr("fundus_rt.runtime.nvidia.cuda_device.CudaDevice", lambda *_: device)
    with importable("tensorrt_rtx"):
        yield machine


def called(*words: object) -> Result:
    result = CliRunner().invoke(build, [*map(str, words)])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def test_an_engine_goes_into_the_cache_and_is_built_once(model: Path, gpu: SimpleNamespace) -> None:
    first = called(model, "--batch", "1,2,4")
    assert first.exit_code == 0
    lines = dict(line.split(maxsplit=1) for line in first.stdout.splitlines())
    engine = Path(lines["engine"])
    record = record_from_json(engine.with_name(engine.name + ".json").read_text(), "x")
    assert record.engine_sha256 == sha256_of_file(engine) and record.precision == "fp16"
    assert (record.key.gpu_name, record.key.compute_capability, record.key.cuda_driver) == ("NVIDIA RTX 4000", "8.9", "13.0")
    assert record.key.flavour == "tensorrt_rtx" and record.key.tensorrt_version == host_library().version
    assert record.key.profile == EngineProfile((1, 2, 4)) and record.key.flags == ()
    assert record.key.onnx_sha256 == sha256_of_file(model)
    assert EngineCache().find(record.key) == record
    assert lines["model"] == "small, fp16, TF32 off" and lines["batch"] == "1 to 4, best at 2"
    assert lines["for"].endswith("on NVIDIA RTX 4000 compute capability 8.9") and lines["built"].startswith("now")
    assert "no engine of this model yet" in first.stderr and "workspace at most" in first.stderr

    before = engine.stat().st_mtime_ns
    again = called(model, "--batch", "1,2,4")
    assert "(it was there)" in again.stdout and str(engine) in again.stdout and "building" not in again.stderr
    assert engine.stat().st_mtime_ns == before
    forced = called(model, "--batch", "1,2,4", "--force")
    assert "building an engine" in forced.stderr and str(engine) in forced.stdout
    assert engine.stat().st_mtime_ns > before
    other = called(model)
    assert str(engine) not in other.stdout and "profile batch 1,2,4 -> batch 1,1,8" in other.stderr


def test_every_choice_is_in_the_key_and_in_the_log(model: Path, gpu: SimpleNamespace, tmp_path: Path) -> None:
    log = tmp_path / "x.log"
    words = ("--tf32", "--optimisation-level", "1", "--workspace", "177", "--frames", "100x120,300x400,600x800")
    result = called(model, *words, "--log", log, "-o", tmp_path / "x.engine")
    assert result.exit_code == 0
    record = record_from_json((tmp_path / "x.engine.json").read_text(), "x")
    assert {"tf32", "optimisation-level=1"} < set(record.key.flags)
    assert [flag for flag in record.key.flags if flag.startswith("frame-head=")]
    assert record.key.profile == EngineProfile((1, 1, 8), (100, 300, 600), (120, 400, 800))
    assert "TF32 on, optimisation level 1, workspace at most 177 MiB" in result.stderr
    assert "frames     100x120 to 600x800, best at 300x400" in result.stdout
    assert "VERBOSE" in log.read_text() and (tmp_path / "x.engine").stat().st_size == record.engine_bytes


def test_the_workspace_follows_the_memory_that_is_free(model: Path, gpu: SimpleNamespace, tmp_path: Path) -> None:
    result = called(model, "-o", tmp_path / "a.engine")
    expected = (4 * GIB - 2 * model.stat().st_size - (512 << 20)) / 2**20
    assert f"workspace at most {expected:.0f} MiB" in result.stderr
    gpu.free = GIB // 2
    with pytest.raises(DeviceMemoryError, match="512 MiB of the GPU's memory are free"):
        called(model, "-o", tmp_path / "b.engine")
    assert not (tmp_path / "b.engine").exists()


@pytest.mark.skipif(sys.platform != "linux", reason="limits hold on Linux")
def test_a_build_stays_in_its_memory_limit_and_takes_a_workspace_that_fits(tmp_path: Path) -> None:
    call = command("build", ACQUISITION, *TARGET, "-o", tmp_path / "a.engine", "--memory-limit", "1GB")
    variables = {**host_environment(), "FUNDUS_RT_CACHE": str(tmp_path / "cache")}
    done = subprocess.run(call, env=variables, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = re.search(r"workspace at most (\d+) MiB", done.stderr)
    assert found and 64 <= int(found[1]) < 512, "less than the limit, for the builder itself needs some"


def test_a_workspace_that_is_too_small_is_answered_with_the_one_that_is_enough(
    model: Path, gpu: SimpleNamespace, tmp_path: Path
) -> None:
    words = (model, "--frames", "100x120,300x400,600x800", "-o", tmp_path / "x.engine")
    with pytest.raises(EngineError, match=r"no kernel fits into the workspace of 4 MiB; say a larger --workspace"):
        called(*words, "--workspace", "4")
    with pytest.raises(
        DeviceMemoryError, match=r"needs a workspace of more than \d+ MiB and may take 70 MiB; say --workspace"
    ) as caught:
        called(*words, "--workspace", "70")
    found = re.search(r"--workspace (\d+)", str(caught.value))
    assert found and called(*words, "--workspace", found[1]).exit_code == 0


def test_an_engine_of_an_older_library_is_rebuilt_with_the_reason(
    model: Path, gpu: SimpleNamespace, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as older:
        older.setattr("fundus_rt.runtime.nvidia.tensorrt_library._version", lambda *_: "1.4.0.76")
        called(model)
    assert f"TensorRT 1.4.0.76 -> {host_library().version}" in called(model).stderr


def test_without_a_gpu_the_command_says_what_is_missing(model: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_driver(*_: Any) -> Any:
        raise BackendUnavailableError("the library of NVIDIA's driver cannot be loaded")

    monkeypatch.setattr("fundus_rt.runtime.nvidia.machine.machine_identity", no_driver)
    with (
        importable("tensorrt_rtx"),
        pytest.raises(BackendUnavailableError, match=r"driver.*--for-compute-capability 8.6 -o FILE"),
    ):
        called(model)
    with importable("tensorrt"), pytest.raises(BackendUnavailableError, match=r"driver.*only on the machine that runs it"):
        called(model)
    with importable("tensorrt"), pytest.raises(BackendUnavailableError, match=r"ahead of time"):
        called(model, *TARGET, "-o", cache.parent / "x.engine")


def test_an_engine_for_another_machine_is_built_with_no_gpu(model: Path, cache: Path) -> None:
    target = cache.parent / "x.engine"
    with importable("tensorrt_rtx"):
        result = called(model, *TARGET, "-o", target)
        assert "on any GPU of compute capability 8.6" in result.stdout
        record = record_from_json(target.with_name("x.engine.json").read_text(), "x")
        assert (record.key.gpu_name, record.key.compute_capability, record.key.flags) == ("", "8.6", ("target=8.6",))
        with pytest.raises(UsageError, match=r"exists; remove it, or say --force"):
            called(model, *TARGET, "-o", target)
        assert called(model, *TARGET, "-o", target, "--force").exit_code == 0
        with pytest.raises(UsageError, match="does not belong into this machine's cache"):
            called(model, *TARGET)
    assert not (cache / "engines").exists()


def test_the_portable_form_needs_no_tensorrt(cache: Path, tmp_path: Path) -> None:
    """The network with its frame head, which ONNX Runtime runs as it is."""
    onnxruntime = pytest.importorskip("onnxruntime")
    target = tmp_path / "acquisition.frames.onnx"
    assert "two filter matrices" in called("acquisition", "-o", target).stdout
    session = onnxruntime.InferenceSession(str(target), providers=["CPUExecutionProvider"])
    assert [given.name for given in session.get_inputs()] == ["frame", "row_filter", "column_filter"]
    assert {"eye", "receipt", "receipt_network", "receipt_filters"} <= {output.name for output in session.get_outputs()}
    with pytest.raises(UsageError, match="exists"):
        called("acquisition", "-o", target)
    with pytest.raises(UsageError, match="the model itself"):
        called(ACQUISITION, "-o", ACQUISITION, "--force")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--batch", "1,2"), "--batch is '1,2', expected one number or three"),
        (("--batch", "4,2,1"), "1 <= fewest <= best <= most"),
        (("--batch", "one"), "expected one number or three"),
        (("--frames", "1500"), "--frames is '1500', expected HxW,HxW,HxW"),
        (("--frames", "600x800,300x400,100x100"), "frame height"),
        (("-o", "missing/x.engine"), "does not exist"),
        (("acquisition", "-o", "x.engine"), "2 models were given"),
        (("-o", "small.onnx.json"), "expected a name that ends in .engine, or in .onnx"),
        (("-o", "plan"), "expected a name that ends in .engine, or in .onnx"),
        (("-o", "missing/x.onnx"), "does not exist"),
        (
            ("-o", "x.onnx", "--batch", "1,1,8", "--tf32", "--device", "cuda:0"),
            "so --batch, --device, --tf32 would have no effect",
        ),
        (("-o", "x.onnx", "--frames", "300x400", "--log", "x.log"), "so --frames, --log would have no effect"),
        ((*TARGET, "-o", "x.engine", "--device", "cuda:1"), "leave one of the two out"),
        (("--log", "missing/x.log"), "the folder missing does not exist"),
        (("--log", "."), "is a folder"),
        (("--log", "small.onnx"), "--log would replace small.onnx"),
        (("--log", "../{folder}/small.onnx"), "which is or is named like a model"),
        (("--log", "alias.log"), "which is or is named like a model"),
        (("--log", "linked.log"), "which is or is named like a model"),
        (("--log", "other.onnx"), "which is or is named like a model"),
        (("--log", "x.engine.json", "-o", "x.engine"), "--log and -o would both write x.engine.json"),
    ],
)
def test_a_wrong_call_is_refused_with_what_is_expected(
    model: Path, gpu: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "alias.log").symlink_to(model)
    (tmp_path / "linked.log").hardlink_to(model)
    before, there = model.read_bytes(), sorted(path.name for path in tmp_path.iterdir())
    with pytest.raises(UsageError) as caught:
        called(model, *(word.format(folder=tmp_path.name) for word in words))
    assert message in str(caught.value)
    assert model.read_bytes() == before and sorted(path.name for path in tmp_path.iterdir()) == there


def test_the_commands_own_message_and_status_for_a_log_without_a_folder(fundus_rt: Run, model: Path, tmp_path: Path) -> None:
    result = fundus_rt("build", model, "--log", tmp_path / "missing" / "x.log")
    assert result.returncode == 2 and "Traceback" not in result.stderr
    assert result.stderr.startswith("Error: --log is ") and result.stderr.endswith("does not exist; make it first\n")


def test_a_gpu_that_no_library_can_know_is_refused(model: Path, cache: Path) -> None:
    with importable("tensorrt_rtx"), pytest.raises(BackendUnavailableError, match=r"99\.9; TensorRT-RTX .* no GPU later than 12"):
        called(model, "--for-compute-capability", "99.9", "-o", cache.parent / "x.engine")
    assert not list(cache.parent.glob("x.engine*"))


def test_the_version_of_a_head_in_the_file_is_in_the_key(model: Path, gpu: SimpleNamespace, tmp_path: Path) -> None:
    import onnx

    framed = tmp_path / "small.frames.onnx"
    called(model, "-o", framed)
    graph = onnx.load(str(framed))
    (entry,) = (entry for entry in graph.metadata_props if entry.key == "fundus_rt.frame_head")
    entry.value = entry.value.replace('"format": 1', '"format": 41')
    onnx.save(graph, str(framed))
    called(framed, "--frames", "100x120", "-o", tmp_path / "x.engine")
    assert "frame-head=41" in record_from_json((tmp_path / "x.engine.json").read_text(), "x").key.flags


def test_one_number_means_that_batch_alone(model: Path, gpu: SimpleNamespace) -> None:
    assert "batch      3 to 3, best at 3" in called(model, "--batch", "3").stdout


def test_a_process_without_tensorrt_names_what_to_install(fundus_rt: Run, tmp_path: Path) -> None:
    result = fundus_rt("build", ACQUISITION, "-o", tmp_path / "x.engine", "--flavour", "tensorrt_rtx")
    if "cannot be loaded" not in result.stderr:
        pytest.skip("TensorRT-RTX is installed here")
    assert result.returncode == 2 and "Error: TensorRT cannot be loaded (tensorrt_rtx: " in result.stderr
    assert "pip install" in result.stderr and "Traceback" not in result.stderr


@pytest.mark.skipif(not hasattr(signal, "SIGINT") or os.name != "posix", reason="needs signals")
def test_ctrl_c_ends_the_command_cleanly(tmp_path: Path) -> None:
    code = "from fundus_rt.runtime.cli import main; main()"
    words = ["build", str(ACQUISITION), *TARGET, "-o", str(tmp_path / "a.engine")]
    variables = {**host_environment(), "FUNDUS_RT_CACHE": str(tmp_path / "cache")}
    process = subprocess.Popen([sys.executable, "-c", code, *words], env=variables, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    first = process.stderr.readline()
    assert first.startswith("building an engine"), first
    time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    rest = process.communicate(timeout=120)[1]
    assert process.returncode == 1 and "Aborted" in rest and "Traceback" not in rest, rest
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache"]


def test_on_a_terminal_the_phase_is_drawn_in_one_line(tmp_path: Path) -> None:
    pty = pytest.importorskip("pty")
    leader, follower = pty.openpty()
    code = "from fundus_rt.runtime.cli import main; main()"
    words = ["build", str(ACQUISITION), *TARGET, "-o", str(tmp_path / "a.engine")]
    variables = {**host_environment(), "FUNDUS_RT_CACHE": str(tmp_path / "cache"), "TERM": "xterm"}
    process = subprocess.Popen([sys.executable, "-c", code, *words], env=variables, stderr=follower, stdout=subprocess.PIPE)
    os.close(follower)
    drawn = b""
    with contextlib.suppress(OSError):  # the other end is closed
        while piece := os.read(leader, 4096):
            drawn += piece
    os.close(leader)
    printed = process.communicate(timeout=120)[0].decode()
    assert process.returncode == 0 and printed.startswith("engine     ")
    text = drawn.decode(errors="replace")
    assert "building an engine of acquisition" in text and "Building engine" in text and "so far" not in text


def test_no_name_of_a_folder_is_in_the_record(model: Path, cache: Path) -> None:
    with importable("tensorrt_rtx"):
        called(model, *TARGET, "-o", cache.parent / "x.engine")
    text = json.dumps(json.loads((cache.parent / "x.engine.json").read_text()))
    assert str(cache.parent) not in text and "small.onnx" not in text
