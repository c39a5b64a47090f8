"""TensorRTSession with real networks, on a driver of host memory and engines that ONNX Runtime computes."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fundus_rt.models.errors import DeviceLostError
from fundus_rt.models.registry import bundled_file, load_card
from fundus_rt.runtime.nvidia import engine_slot, tensorrt_session
from fundus_rt.runtime.nvidia.engine_slot import EngineSlot
from fundus_rt.runtime.nvidia.tensorrt_engine import find_engine
from fundus_rt.runtime.nvidia.tensorrt_session import TensorRTSession
from fundus_rt.runtime.onnx_session import OnnxRuntimeSession
from fundus_rt.runtime.session import open_session
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


@pytest.mark.parametrize("name", ["tiny_sex", "tiny_age", "acquisition"])
def test_answers_are_those_of_onnx_runtime_for_every_batch_size(opened: Open, request: pytest.FixtureRequest, name: str) -> None:
    onnx_path = bundled_file(load_card(name)) if name == "acquisition" else request.getfixturevalue(name)
    reference = OnnxRuntimeSession(onnx_path)
    session = opened(onnx_path)
    for seed, count in enumerate((1, 3, 4, 1, 9, 3, 1)):
        batch = pictures(session, count, seed)
        require_same(session.run(batch), reference.run(batch))
    assert session.run(batch[:0])["receipt"].shape == (0, batch.shape[1])
    assert session.warnings == ()
    assert (session.backend.name, session.backend.device, session.backend.version) == ("tensorrt", "Fake GPU", "10.3.0.26")


def test_it_is_opened_by_name_of_the_backend(machine: FakeMachine, tmp_path: Path, tiny_sex: Path) -> None:
    session = open_session(engine_of(tiny_sex, tmp_path), backend="tensorrt", device="cuda:0")
    batch = np.zeros((2, 64, 64, 3), np.uint8)
    require_same(session.run(batch), OnnxRuntimeSession(tiny_sex).run(batch))
    session.close()


def test_an_engine_that_rounds_products_says_so(machine: FakeMachine, tmp_path: Path, tiny_sex: Path) -> None:
    with TensorRTSession(engine_of(tiny_sex, tmp_path, flags=("tf32",))) as session:
        assert "TF32" in session.warnings[0]


def test_each_batch_size_is_recorded_once_and_then_launched(opened: Open, machine: FakeMachine) -> None:
    session = opened()
    driver = machine.driver
    for expected in (0, 1, 2, 3):
        session.run(pictures(session, 2, expected))
        assert driver.calls["cuGraphLaunch"] == expected
    assert driver.calls["cuMemcpyHtoDAsync"] == driver.calls["cuMemcpyDtoHAsync"] == 2, "once by itself, once for the recording"
    session.run(pictures(session, 1))
    session.run(pictures(session, 2))
    session.run(pictures(session, 1))
    assert driver.calls["cuGraphInstantiate"] == 2
    assert driver.calls["cuGraphLaunch"] == 5
    assert machine.trt.contexts == 2, "one for each batch size"


def test_a_batch_below_the_least_of_the_engine_is_filled_up(opened: Open, tiny_sex: Path) -> None:
    session = opened(batch=(3, 4, 6))
    batch = pictures(session, 7)
    require_same(session.run(batch), OnnxRuntimeSession(tiny_sex).run(batch))
    require_same(session.run(batch[:2]), OnnxRuntimeSession(tiny_sex).run(batch[:2]))


def test_the_contexts_of_batch_sizes_not_used_for_long_are_given_back(opened: Open, machine: FakeMachine, tiny_sex: Path) -> None:
    session = opened(batch=(1, 8, 12))
    reference = OnnxRuntimeSession(tiny_sex)
    for count in (*range(1, 13), 1, 12):
        batch = pictures(session, count, count)
        require_same(session.run(batch), reference.run(batch))
    assert machine.trt.contexts == 8
    assert machine.driver.live()["graphs"] == 8
    recorded = machine.driver.calls["cuGraphInstantiate"]
    for count in (6, 2, 6, 3, 6, 4, 6):  # the last used are 6 to 12 and 1
        session.run(pictures(session, count))
    assert machine.driver.calls["cuGraphInstantiate"] == recorded + 3, "what is used again and again stays"


def test_answers_belong_to_the_caller(opened: Open) -> None:
    session = opened()
    first = session.run(pictures(session, 2, 1))
    kept = {name: values.copy() for name, values in first.items()}
    session.run(pictures(session, 2, 2))
    session.close()
    require_same(first, kept)


def test_a_gpu_that_shares_memory_copies_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tiny_sex: Path) -> None:
    machine = FakeMachine(monkeypatch, tmp_path, integrated=True)
    session, driver = machine.open(tiny_sex), machine.driver
    for seed in range(3):
        batch = pictures(session, 3, seed)
        require_same(session.run(batch), OnnxRuntimeSession(tiny_sex).run(batch))
    assert driver.done["HtoD"] == driver.done["DtoH"] == 0
    session.close()
    assert driver.live() == {}


def test_nothing_is_left_after_closing_and_closing_twice_is_closing_once(opened: Open, machine: FakeMachine) -> None:
    session = opened()
    session.run(pictures(session, 3))
    session.run_frame(np.zeros((70, 80, 3), np.uint8), (0, 0, 70, 70), False)
    session.run(pictures(session, 2))
    assert session._engine is not None
    engine = weakref.ref(session._engine)
    session.close()
    session.close()
    assert machine.driver.live() == {}
    assert machine.trt.contexts == 0
    assert engine() is None
    assert machine.trt.gone == ["context"] * 3 + ["plan", "runtime"], "in TensorRT's order, while the GPU was there"
    with pytest.raises(ValueError, match="closed"):
        session.run(pictures(session, 1))


def test_batches_that_the_card_does_not_state_are_refused(opened: Open) -> None:
    session = opened()
    with pytest.raises(ValueError, match=r"tiny-sex takes uint8 \[N, 64, 64, 3\].*got float32"):
        session.run(np.zeros((1, 64, 64, 3), np.float32))


def test_the_bytes_of_the_engine_are_let_go_once_tensorrt_has_read_them(
    opened: Open, machine: FakeMachine, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[weakref.ref[Any]] = []

    def finding(*arguments: Any) -> Any:
        one = find_engine(*arguments)
        found.append(weakref.ref(one))
        return one

    def slot(*arguments: Any) -> EngineSlot:
        assert found[0]() is None, "they are still kept while memory is taken"
        return EngineSlot(*arguments)

    monkeypatch.setattr(tensorrt_session, "find_engine", finding)
    monkeypatch.setattr(tensorrt_session, "EngineSlot", slot)
    opened().run(np.zeros((1, 64, 64, 3), np.uint8))


# Threads.


def test_many_threads_get_their_own_answers(opened: Open, machine: FakeMachine, tiny_sex: Path) -> None:
    session = opened(contexts=3)
    reference = OnnxRuntimeSession(tiny_sex)
    problems: list[BaseException] = []

    def work(number: int) -> None:
        try:
            for turn in range(12):
                batch = pictures(session, 1 + (number + turn) % 5, 100 * number + turn)
                require_same(session.run(batch), reference.run(batch))
        except BaseException as error:
            problems.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert problems == []
    assert machine.driver.live()["streams"] <= 3
    session.close()
    assert machine.driver.live() == {}


def hold_a_slot(session: TensorRTSession, monkeypatch: pytest.MonkeyPatch) -> tuple[threading.Thread, threading.Event]:
    """A thread that is in the middle of a run until the event is set."""
    inside, go_on = threading.Event(), threading.Event()
    sums = engine_slot.row_sums

    def slowly(batch: np.ndarray) -> Any:
        if threading.current_thread().name == "slow":
            inside.set()
            go_on.wait(30)
        return sums(batch)

    monkeypatch.setattr(engine_slot, "row_sums", slowly)

    def run() -> None:
        with suppress(DeviceLostError):
            session.run(pictures(session, 1))

    thread = threading.Thread(target=run, name="slow")
    thread.start()
    assert inside.wait(30)
    return thread, go_on


def test_a_second_slot_is_made_when_it_is_wanted(opened: Open, machine: FakeMachine, monkeypatch: pytest.MonkeyPatch) -> None:
    session = opened()
    session.run(pictures(session, 1))
    session.run(pictures(session, 1))
    assert machine.driver.live()["streams"] == 1
    thread, go_on = hold_a_slot(session, monkeypatch)
    session.run(pictures(session, 1))
    assert machine.driver.live()["streams"] == 2
    go_on.set()
    thread.join()


def test_too_little_memory_for_a_second_slot_is_said_and_the_first_goes_on(
    opened: Open, machine: FakeMachine, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = opened()
    thread, go_on = hold_a_slot(session, monkeypatch)
    before = machine.driver.live()
    machine.driver.fail("cuMemAlloc", CUresult.CUDA_ERROR_OUT_OF_MEMORY, nth=3)
    second = threading.Thread(target=lambda: session.run(pictures(session, 1)))
    second.start()
    while not session.warnings:
        second.join(0.01)
    assert machine.driver.live() == before
    go_on.set()
    for each in (thread, second):
        each.join()
    (warning,) = session.warnings
    assert warning.startswith("only 1 thread(s) at a time compute: Fake GPU has not enough memory")
    session.run(pictures(session, 1))


def test_closing_lets_a_run_under_way_end_and_turns_the_waiting_away(
    opened: Open, machine: FakeMachine, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = opened(contexts=1)
    thread, go_on = hold_a_slot(session, monkeypatch)
    turned_away: list[Exception] = []

    def wait() -> None:
        try:
            session.run(pictures(session, 1))
        except ValueError as error:
            turned_away.append(error)

    waiting = threading.Thread(target=wait)
    waiting.start()
    session.close()
    waiting.join(30)
    assert "closed" in str(turned_away[0])
    assert machine.driver.live()["streams"] == 1
    go_on.set()
    thread.join()
    assert machine.driver.live() == {}


def test_a_gpu_that_is_lost_turns_all_the_waiting_away(
    opened: Open, machine: FakeMachine, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = opened(contexts=1)
    thread, go_on = hold_a_slot(session, monkeypatch)
    machine.driver.fail("DtoH", CUresult.CUDA_ERROR_LAUNCH_FAILED)
    said: list[str] = []

    def wait() -> None:
        try:
            session.run(pictures(session, 1))
        except DeviceLostError as error:
            said.append(str(error))

    waiting = [threading.Thread(target=wait) for _ in range(4)]
    for each in waiting:
        each.start()
    go_on.set()
    for each in (thread, *waiting):
        each.join(30)
    assert len(said) == 4
    assert len(set(said)) == 1


def test_closing_while_a_slot_is_made_gives_everything_back(
    opened: Open, machine: FakeMachine, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = opened()
    thread, go_on = hold_a_slot(session, monkeypatch)
    real = machine.driver.cuStreamCreate

    def closing(flags: int) -> Any:
        go_on.set()
        thread.join()
        session.close()
        machine.driver.fail("cuStreamCreate", CUresult.CUDA_ERROR_OUT_OF_MEMORY)
        return real(flags)

    monkeypatch.setattr(machine.driver, "cuStreamCreate", closing)
    with pytest.raises(ValueError, match="closed"):
        session.run(pictures(session, 1))
    assert machine.driver.live() == {}
