"""What a TensorRTSession does when memory, copies, the GPU or TensorRT fail, and what it leaves behind."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fundus_rt.models.errors import DeviceLostError, DeviceMemoryError, EngineError, ModelFileError, ReceiptError
from fundus_rt.runtime.nvidia.tensorrt_session import TensorRTSession
from fundus_rt.runtime.onnx_session import OnnxRuntimeSession
from tests.fake_cuda_names import CUresult
from tests.fake_engines import FakeMachine, engine_of, pictures, require_same

Open = Callable[..., TensorRTSession]


@pytest.fixture(autouse=True)
def without_collector() -> Iterator[None]:
    """What a session holds goes when it closes, not when Python happens to look for cycles."""
    gc.disable()
    yield
    gc.enable()


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeMachine:
    return FakeMachine(monkeypatch, tmp_path)


@pytest.fixture
def opened(machine: FakeMachine, tiny_sex: Path) -> Iterator[Open]:
    """Opens a session on an engine of a network; what is not closed by the test is closed after it."""
    sessions = []

    def open_one(onnx_path: Path = tiny_sex, **options: Any) -> TensorRTSession:
        sessions.append(machine.open(onnx_path, **options))
        return sessions[-1]

    yield open_one
    for session in sessions:
        session.close()


def test_work_that_cannot_be_recorded_runs_piece_by_piece_and_says_so(opened: Open, machine: FakeMachine, tiny_sex: Path) -> None:
    session = opened()
    machine.trt.recordable = False
    for seed in range(3):
        batch = pictures(session, 2, seed)
        require_same(session.run(batch), OnnxRuntimeSession(tiny_sex).run(batch))
    assert machine.driver.calls["cuGraphLaunch"] == 0
    assert machine.driver.calls["cuStreamBeginCapture"] == 1, "it is tried once for each batch size"
    (warning,) = session.warnings
    assert "without a CUDA graph" in warning
    assert "not permitted when stream is capturing" in warning


@pytest.mark.parametrize("runs_before", [0, 1, 2])
@pytest.mark.parametrize("kind", ["HtoD", "DtoH"])
def test_a_copy_that_gets_lost_stops_the_session(opened: Open, machine: FakeMachine, kind: str, runs_before: int) -> None:
    session = opened()
    for seed in range(runs_before):
        session.run(pictures(session, 2, seed))
    machine.driver.dropped = {kind}
    with pytest.raises(ReceiptError, match="do not match"):
        session.run(pictures(session, 2, 99))
    machine.driver.dropped = set()
    with pytest.raises(ReceiptError, match="do not match"):
        session.run(pictures(session, 2, 99))


def test_an_answer_that_is_left_from_before_is_no_answer_even_for_the_same_picture(opened: Open, machine: FakeMachine) -> None:
    session = opened()
    batch = pictures(session, 2)
    session.run(batch)
    machine.driver.dropped = {"DtoH"}
    with pytest.raises(ReceiptError):
        session.run(batch)


def test_swapped_rows_stop_the_session(opened: Open, machine: FakeMachine) -> None:
    session = opened()
    machine.trt.swap_rows = True
    session.run(pictures(session, 1))
    with pytest.raises(ReceiptError):
        session.run(pictures(session, 2))


@pytest.mark.parametrize("runs_before", [0, 1, 2])
@pytest.mark.parametrize("seed", [2, 99])
def test_an_engine_that_writes_nothing_any_more_stops_the_session(
    opened: Open, machine: FakeMachine, runs_before: int, seed: int
) -> None:
    """Also for the same pictures once more, whose receipt of before would be right."""
    session = opened()
    for _ in range(runs_before):
        session.run(pictures(session, 2, 2))
    machine.trt.freeze = True
    with pytest.raises(ReceiptError):
        session.run(pictures(session, 2, seed))


@pytest.mark.parametrize("frames", [False, True])
def test_a_recording_without_the_engine_stops_the_session_even_for_the_same_picture(
    opened: Open, machine: FakeMachine, monkeypatch: pytest.MonkeyPatch, frames: bool
) -> None:
    session, real = opened(), machine.driver.cuStreamBeginCapture
    frame = np.random.default_rng(0).integers(0, 256, (70, 80, 3), np.uint8)

    def answer() -> dict[str, np.ndarray]:
        return session.run_frame(frame, (0, 0, 70, 70), False) if frames else session.run(pictures(session, 2))

    def begin(*arguments: Any) -> Any:
        machine.trt.skips_run = True
        return real(*arguments)

    monkeypatch.setattr(machine.driver, "cuStreamBeginCapture", begin)
    answer()
    assert machine.trt.runs == 1
    with pytest.raises(ReceiptError):
        answer()


@pytest.mark.parametrize("status", [CUresult.CUDA_ERROR_ILLEGAL_ADDRESS, CUresult.CUDA_ERROR_ECC_UNCORRECTABLE])
@pytest.mark.parametrize("runs_before", [0, 3])
def test_a_lost_gpu_ends_the_session_and_keeps_no_memory(
    opened: Open, machine: FakeMachine, status: CUresult, runs_before: int
) -> None:
    session = opened()
    for seed in range(runs_before):
        session.run(pictures(session, 2, seed))
    machine.driver.fail("HtoD", status)
    with pytest.raises(DeviceLostError, match=f"Fake GPU stopped: {status.name}") as kept:
        session.run(pictures(session, 2))
    runs = machine.trt.runs
    for _ in range(3):
        with pytest.raises(DeviceLostError, match=f"Fake GPU stopped: {status.name}"):
            session.run(pictures(session, 1))
    assert machine.trt.runs == runs
    session.close()
    assert machine.driver.live() == {}, "also while somebody keeps the error, whose traceback knows the arrays"
    assert kept.traceback


@pytest.mark.parametrize("function", ["cuStreamBeginCapture", "cuStreamEndCapture", "cuGraphInstantiate"])
@pytest.mark.parametrize("status", ["OUT_OF_MEMORY", "NOT_SUPPORTED", "INVALID_VALUE"])
def test_a_recording_that_is_refused_costs_time_and_no_answer(
    opened: Open, machine: FakeMachine, tiny_sex: Path, function: str, status: str
) -> None:
    session, reference = opened(), OnnxRuntimeSession(tiny_sex)
    for count in (2, 1, 2):
        if machine.driver.calls[function] < 2:
            machine.driver.fail(function, CUresult[f"CUDA_ERROR_{status}"])
        batch = pictures(session, count)
        require_same(session.run(batch), reference.run(batch))
    assert machine.driver.calls["cuStreamBeginCapture"] == 2, "it is tried once for each batch size"
    assert machine.driver.calls["cuGraphLaunch"] == 0
    (warning,) = session.warnings
    assert warning.startswith("the engine runs without a CUDA graph, which costs time: ")
    session.close()
    assert machine.driver.live() == {}


def test_a_gpu_that_is_lost_while_it_records_ends_the_session(opened: Open, machine: FakeMachine) -> None:
    session = opened()
    machine.driver.fail("cuGraphInstantiate", CUresult.CUDA_ERROR_LAUNCH_FAILED)
    for _ in range(2):
        with pytest.raises(DeviceLostError, match="LAUNCH_FAILED"):
            session.run(pictures(session, 2))
    session.close()
    with pytest.raises(DeviceLostError, match="LAUNCH_FAILED"):
        session.run(pictures(session, 2))
    assert machine.driver.live() == {}


def test_every_allocation_may_fail_at_opening_and_nothing_is_left(machine: FakeMachine, tmp_path: Path, tiny_sex: Path) -> None:
    path = engine_of(tiny_sex, tmp_path)
    machine.install_kernels(tiny_sex)
    failed = 0
    for function in ("cuMemAlloc", "cuMemHostAlloc", "cuStreamCreate", "cuModuleLoadData"):
        before = machine.driver.calls[function]
        TensorRTSession(path).close()
        for nth in range(1, machine.driver.calls[function] - before + 1):
            machine.driver.fail(function, CUresult.CUDA_ERROR_OUT_OF_MEMORY, nth)
            with pytest.raises(DeviceMemoryError, match="not enough memory"):
                TensorRTSession(path)
            assert machine.driver.live() == {}
            failed += 1
    assert failed >= 10


def test_a_context_that_tensorrt_refuses_for_lack_of_memory_is_said(opened: Open, machine: FakeMachine) -> None:
    session = opened()
    machine.trt.refuse_context = True
    with pytest.raises(DeviceMemoryError, match=r"tensorrt 10\.3\.0\.26 could not make an .* of tiny-sex: .*out of memory"):
        session.run(pictures(session, 1))


def test_a_run_that_tensorrt_refuses_says_its_reason(opened: Open, machine: FakeMachine) -> None:
    session = opened()
    machine.trt.refuse_run = True
    with pytest.raises(EngineError, match=r"could not run the engine of tiny-sex: .*API Usage Error"):
        session.run(pictures(session, 1))
    machine.trt.refuse_run = False
    session.run(pictures(session, 1))


def test_answers_that_are_no_numbers_are_refused(opened: Open, machine: FakeMachine, tmp_path: Path, tiny_sex: Path) -> None:
    onnx = pytest.importorskip("onnx")
    model = onnx.load(tiny_sex)
    (spread,) = [tensor for tensor in model.graph.initializer if tensor.name == "spread"]
    spread.CopyFrom(onnx.numpy_helper.from_array(np.array([np.nan], np.float32), "spread"))
    damaged = tmp_path / "damaged.onnx"
    onnx.save(model, damaged)
    with pytest.raises(ModelFileError, match=r"'sex' is .* or not finite"):
        opened(damaged).run(np.zeros((1, 64, 64, 3), np.uint8))


def test_a_gpu_that_is_lost_inside_tensorrt_is_a_lost_gpu(opened: Open, machine: FakeMachine) -> None:
    session = opened()
    session.run(pictures(session, 1))
    machine.trt.loses_gpu = CUresult.CUDA_ERROR_ILLEGAL_ADDRESS
    for _ in range(2):
        with pytest.raises(DeviceLostError, match="ILLEGAL_ADDRESS"):
            session.run(pictures(session, 2))
