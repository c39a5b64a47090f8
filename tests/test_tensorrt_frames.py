"""Whole frames through a TensorRTSession: crop, resize and mirroring on the device, in one submission, with both receipts."""

from __future__ import annotations

import gc
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fundus_rt.models.errors import BackendUnavailableError, DeviceLostError, ReceiptError
from fundus_rt.models.registry import bundled_file, load_card
from fundus_rt.runtime import Pipeline
from fundus_rt.runtime.decode import decode
from fundus_rt.runtime.nvidia.tensorrt_session import TensorRTSession
from fundus_rt.runtime.onnx_session import OnnxRuntimeSession
from fundus_rt.runtime.preprocess import tensor_from_box
from tests.fake_cuda_names import CUresult
from tests.fake_engines import FakeMachine, cache_engine, pictures, require_same

Box = tuple[int, int, int, int]


@pytest.fixture(autouse=True)
def without_collector() -> Iterator[None]:
    """What a session holds goes when it closes, not when Python happens to look for cycles."""
    gc.disable()
    yield
    gc.enable()


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeMachine:
    return FakeMachine(monkeypatch, tmp_path)


def frame_of(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def on_host(session: OnnxRuntimeSession, frame: np.ndarray, box: Box, mirror: bool) -> dict[str, np.ndarray]:
    """What the host's own preprocessing and ONNX Runtime answer."""
    return session.run(tensor_from_box(frame, box, session.card.preprocessing, mirror)[None])


CASES: list[tuple[tuple[int, int], Box, bool]] = [
    ((100, 130), (10, 5, 105, 95), False),
    ((100, 130), (-7, -9, 120, 110), True),
    ((64, 64), (0, 0, 64, 64), False),
    ((300, 200), (20, 50, 180, 210), True),
    ((100, 130), (31, 6, 104, 79), False),
]


@pytest.mark.parametrize("integrated", [False, True])
@pytest.mark.parametrize("name", ["tiny_age", "acquisition"])
def test_frames_are_answered_as_the_host_would(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tiny_age: Path, name: str, integrated: bool
) -> None:
    machine = FakeMachine(monkeypatch, tmp_path, integrated=integrated)
    onnx_path = tiny_age if name == "tiny_age" else bundled_file(load_card(name))
    reference = OnnxRuntimeSession(onnx_path)
    with machine.open(onnx_path) as session:
        assert session.takes_frames
        for turn in range(2):
            for seed, (shape, box, mirror) in enumerate(CASES):
                frame = frame_of(*shape, seed + 10 * turn)
                before = frame.copy()
                require_same(session.run_frame(frame, box, mirror), on_host(reference, frame, box, mirror))
                assert np.array_equal(frame, before)
    assert machine.driver.live() == {}


def test_one_recording_serves_every_crop_of_frames_that_fit(machine: FakeMachine, tiny_age: Path) -> None:
    with machine.open(tiny_age) as session:
        session.run_frame(frame_of(300, 200), (0, 0, 200, 200), False)
        recorded = machine.driver.calls["cuGraphInstantiate"]
        for shape, box, mirror in CASES:
            session.run_frame(frame_of(*shape), box, mirror)
        assert machine.driver.calls["cuGraphInstantiate"] == recorded == 1
        assert machine.driver.calls["cuGraphLaunch"] == len(CASES)
        session.run_frame(frame_of(400, 200), (0, 0, 200, 200), False)
        assert machine.driver.calls["cuGraphInstantiate"] == 2, "memory for a larger frame is another memory"


def test_a_recording_goes_with_the_context_that_it_was_made_of(machine: FakeMachine, tiny_age: Path) -> None:
    reference = OnnxRuntimeSession(tiny_age)
    with machine.open(tiny_age, batch=(1, 8, 12)) as session:
        for turn in range(2):
            frame = frame_of(100, 130, turn)
            for _ in range(2):
                require_same(
                    session.run_frame(frame, (10, 5, 105, 95), False), on_host(reference, frame, (10, 5, 105, 95), False)
                )
            for count in range(2, 11):
                session.run(pictures(session, count))
            assert machine.trt.contexts == 8, "a recording would keep that of the frames alive"


def test_frames_and_batches_share_a_session_of_several_threads(machine: FakeMachine, tiny_age: Path) -> None:
    reference = OnnxRuntimeSession(tiny_age)
    problems: list[BaseException] = []
    with machine.open(tiny_age, contexts=2) as session:

        def work(number: int) -> None:
            try:
                for turn in range(6):
                    shape, box, mirror = CASES[(number + turn) % len(CASES)]
                    frame = frame_of(*shape, 50 * number + turn)
                    require_same(session.run_frame(frame, box, mirror), on_host(reference, frame, box, mirror))
                    batch = pictures(session, 1 + turn % 3, 50 * number + turn)
                    require_same(session.run(batch), reference.run(batch))
            except BaseException as error:
                problems.append(error)

        threads = [threading.Thread(target=work, args=(number,)) for number in range(5)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert problems == []
    assert machine.driver.live() == {}


@pytest.mark.parametrize("runs_before", [0, 1, 2])
@pytest.mark.parametrize("kind", ["HtoD", "DtoH", "kernel"])
def test_what_gets_lost_on_the_way_stops_the_session(machine: FakeMachine, tiny_age: Path, kind: str, runs_before: int) -> None:
    with machine.open(tiny_age) as session:
        for seed in range(runs_before):
            session.run_frame(frame_of(100, 130, seed), (10, 5, 105, 95), False)
        machine.driver.dropped = {kind}
        # Kernels that have never got any parameters read beyond their memory.
        with pytest.raises((ReceiptError, DeviceLostError)) as first:
            session.run_frame(frame_of(100, 130, 99), (10, 5, 105, 95), False)
        machine.driver.dropped = set()
        with pytest.raises(first.type):
            session.run_frame(frame_of(100, 130, 99), (10, 5, 105, 95), False)


@pytest.mark.parametrize("runs_before", [0, 1, 2])
@pytest.mark.parametrize("dead", ["rows_pass_4", "columns_pass"])
@pytest.mark.parametrize("seed", [0, 99])
@pytest.mark.parametrize("integrated", [False, True])
def test_a_kernel_that_does_nothing_leaves_no_answer_of_the_frame_before(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tiny_age: Path, dead: str, runs_before: int, seed: int, integrated: bool
) -> None:
    """Each by itself, before and after the recording, for another frame and for the same once more."""
    machine = FakeMachine(monkeypatch, tmp_path, integrated=integrated)
    with machine.open(tiny_age) as session:
        types, alive = machine.driver.kernels[dead]
        dying: list[int] = []
        died: list[int] = []

        def kernel(*arguments: Any) -> None:
            if dying:
                died.append(1)
            else:
                alive(*arguments)

        machine.driver.kernels[dead] = (types, kernel)
        for _ in range(runs_before):
            session.run_frame(frame_of(100, 130), (10, 5, 105, 95), False)
        dying.append(1)
        with pytest.raises(ReceiptError, match="may belong to another picture"):
            session.run_frame(frame_of(100, 130, seed), (10, 5, 105, 95), False)
        assert died, "the kernel was launched and did nothing"


@pytest.mark.parametrize("seed", [1, 2])
def test_a_network_that_looks_at_something_else_than_the_kernels_wrote_is_caught(
    machine: FakeMachine, tiny_age: Path, seed: int
) -> None:
    with machine.open(tiny_age) as session:
        session.run_frame(frame_of(100, 130, 1), (10, 5, 105, 95), False)
        machine.trt.freeze = True
        with pytest.raises(ReceiptError, match="what the GPU made of the frame"):
            session.run_frame(frame_of(100, 130, seed), (10, 5, 105, 95), False)


def test_a_gpu_that_is_lost_in_a_kernel_ends_the_session(machine: FakeMachine, tiny_age: Path) -> None:
    session = machine.open(tiny_age)
    session.run_frame(frame_of(100, 130), (10, 5, 105, 95), False)
    machine.driver.fail("kernel", CUresult.CUDA_ERROR_LAUNCH_FAILED)
    for _ in range(2):
        with pytest.raises(DeviceLostError, match="LAUNCH_FAILED"):
            session.run_frame(frame_of(100, 130), (10, 5, 105, 95), False)
    session.close()
    assert machine.driver.live() == {}


@pytest.mark.parametrize("width", [16350, 16373])
def test_the_widest_frames_are_taken_though_memory_is_taken_in_steps(machine: FakeMachine, tiny_age: Path, width: int) -> None:
    frame, box = frame_of(64, width), (width - 64, 0, width, 64)
    with machine.open(tiny_age) as session:
        require_same(session.run_frame(frame, box, False), on_host(OnnxRuntimeSession(tiny_age), frame, box, False))
        with pytest.raises(ValueError, match="16374 pixels wide, expected 16373"):
            session.run_frame(frame_of(64, 16374), (0, 0, 64, 64), False)


def test_frames_that_cannot_be_used_are_refused_and_the_session_goes_on(machine: FakeMachine, tiny_age: Path) -> None:
    with machine.open(tiny_age) as session:
        for frame, box in (
            (frame_of(100, 130)[..., 0], (0, 0, 100, 100)),
            (frame_of(100, 130).astype(np.float32), (0, 0, 100, 100)),
            (frame_of(100, 130), (200, 0, 300, 100)),
        ):
            with pytest.raises(ValueError, match="got"):
                session.run_frame(frame, box, False)
        session.run_frame(frame_of(100, 130), (0, 0, 100, 100), False)


def test_without_the_compiler_frames_are_left_to_the_host_and_that_is_said(
    machine: FakeMachine, monkeypatch: pytest.MonkeyPatch, tiny_age: Path
) -> None:
    for name in ("cuda.bindings.nvrtc", "cuda.nvrtc"):
        monkeypatch.setitem(sys.modules, name, None)  # type: ignore[arg-type]
    with machine.open(tiny_age) as session:
        assert not session.takes_frames
        (warning,) = session.warnings
        assert warning.startswith("photographs are reduced on the host, not on the GPU: NVIDIA's cuda-python is not installed")
        with pytest.raises(BackendUnavailableError, match="takes no whole frames"):
            session.run_frame(frame_of(100, 130), (0, 0, 100, 100), False)
        session.run(pictures(session, 1))


@pytest.mark.parametrize("integrated", [False, True])
def test_a_frame_that_a_camera_wrote_into_page_locked_memory_is_sent_from_there(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tiny_age: Path, integrated: bool
) -> None:
    machine = FakeMachine(monkeypatch, tmp_path, integrated=integrated)
    reference, box = OnnxRuntimeSession(tiny_age), (10, -5, 105, 95)
    session = machine.open(tiny_age)
    camera = session.frame_buffer(100, 137)
    for seed in range(3):
        camera[:] = frame_of(100, 137, seed)
        for view in (camera, camera[3:, 5:-2], camera.copy(), camera[:, ::-1]):
            require_same(session.run_frame(view, box, True), on_host(reference, view, box, True))
    assert machine.driver.done["2D"] == (0 if integrated else 6), "where the GPU has the host's memory, rows are laid out for it"
    session.close()
    camera[:] = 1
    assert machine.driver.live() == {"contexts": 1, "host": 1}
    del camera, view
    assert machine.driver.live() == {}


@pytest.mark.parametrize("runs_before", [0, 1, 2])
def test_a_frame_that_does_not_arrive_from_where_it_is_stops_the_session(
    machine: FakeMachine, tiny_age: Path, runs_before: int
) -> None:
    with machine.open(tiny_age) as session:
        camera = session.frame_buffer(100, 130)
        for seed in range(runs_before):
            camera[:] = frame_of(100, 130, seed)
            session.run_frame(camera, (10, 5, 105, 95), False)
        machine.driver.dropped = {"2D"}
        camera[:] = frame_of(100, 130, 99)
        with pytest.raises(ReceiptError):
            session.run_frame(camera, (10, 5, 105, 95), False)


def strided(frame: np.ndarray, session: TensorRTSession) -> dict[str, Any]:
    """The frame as the middle of a wider one, and as one with its rows apart."""
    wide = np.zeros((frame.shape[0], frame.shape[1] + 7, 3), np.uint8)
    wide[:, 3:-4] = frame
    return {"middle": wide[:, 3:-4], "copy": frame}


def test_frames_whose_rows_lie_apart_are_answered_too(machine: FakeMachine, tiny_age: Path) -> None:
    frame, box = frame_of(100, 130), (10, 5, 105, 95)
    expected = on_host(OnnxRuntimeSession(tiny_age), frame, box, False)
    with machine.open(tiny_age) as session:
        for view in strided(frame, session).values():
            require_same(session.run_frame(view, box, False), expected)


@pytest.fixture
def in_cache(machine: FakeMachine) -> Path:
    """The bundled network with its engine in the cache."""
    onnx_path = bundled_file(load_card("acquisition"))
    machine.install_kernels(onnx_path)
    cache_engine(onnx_path)
    return onnx_path


@pytest.mark.parametrize("backend", ["tensorrt", "auto"])
def test_the_whole_way_from_a_photograph_to_its_result_is_that_of_the_cpu(
    machine: FakeMachine, in_cache: Path, examples: Path, backend: str
) -> None:
    on_gpu, on_cpu = Pipeline("acquisition", backend=backend, device="cuda:0"), Pipeline("acquisition")
    before = machine.driver.done["kernel"]
    for path in sorted(examples.glob("*.jpg"))[:3]:
        frame = decode(path.read_bytes()).frame
        said, expected = on_gpu(frame), on_cpu(frame)
        assert said.backend.name == "tensorrt"
        assert said.warnings == expected.warnings
        for name, prediction in expected.outputs.items():
            assert said.outputs[name].decision == prediction.decision
            assert said.outputs[name].value == pytest.approx(prediction.value, abs=1e-4)
    assert machine.driver.done["kernel"] == before + 6, "both kernels for each photograph"
    camera = on_gpu.frame_buffer(*frame.shape[:2])
    camera[:] = frame
    assert on_gpu(camera).outputs == said.outputs
    on_gpu.close()
    del camera
    assert machine.driver.live() == {}


def test_a_lost_gpu_is_followed_by_the_cpu_only_by_saying_so(machine: FakeMachine, in_cache: Path, examples: Path) -> None:
    frame = decode(next(iter(sorted(examples.glob("*.jpg")))).read_bytes()).frame
    pipeline = Pipeline("acquisition", backend="auto", device="cuda:0")
    expected = pipeline(frame)
    machine.driver.fail("kernel", CUresult.CUDA_ERROR_LAUNCH_FAILED)
    said = pipeline(frame)
    assert (said.backend.name, said.backend.device) == ("onnxruntime", "cpu")
    assert any("LAUNCH_FAILED" in warning for warning in said.warnings)
    assert said.outputs["eye"].decision == expected.outputs["eye"].decision
    assert machine.driver.live() == {}
