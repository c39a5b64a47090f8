"""The GPU as an object, on a driver of host memory: memory, copies, graphs, kernels, errors; and the real bindings' names."""

from __future__ import annotations

import gc
import importlib
import threading

import numpy as np
import pytest

from fundus_rt.models.errors import BackendUnavailableError, DeviceLostError, DeviceMemoryError
from fundus_rt.runtime.nvidia.cuda_device import CudaDevice
from fundus_rt.runtime.nvidia.cuda_driver import CaptureError, CudaContext
from fundus_rt.runtime.nvidia.machine import machine_identity
from fundus_rt.runtime.nvidia.nvrtc import compile_cuda
from tests.fake_cuda import FakeDriver, install_fake_driver
from tests.fake_cuda_names import CUresult

ADD = 'extern "C" __global__ void add(unsigned char *values, int count) { if (threadIdx.x < count) values[threadIdx.x] += 1; }'


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> FakeDriver:
    return install_fake_driver(monkeypatch)


def test_the_device_says_what_it_is(driver: FakeDriver) -> None:
    with CudaDevice(0) as device:
        assert (device.name, device.compute_capability, device.driver_version) == ("Fake GPU", (8, 7), "12.6")
        assert not device.integrated
        assert device.memory() == (8_000_000_000, 8_000_000_000)
    assert driver.live() == {}


def test_bytes_go_to_the_device_and_back(driver: FakeDriver) -> None:
    with CudaDevice() as device:
        stream, host, there = device.stream(), device.pinned((3, 5), "uint8"), device.buffer(32)
        host.array[:] = np.arange(15).reshape(3, 5)
        device.clear(there, 32, stream)
        device.clear(there, 2, stream, byte=0xFF)
        device.upload(there, host, 10, stream, to=16, start=5)
        back = device.pinned((32,), "uint8")
        device.download(back, there, 32, stream)
        stream.synchronize()
        assert back.array.tolist() == [255] * 2 + [0] * 14 + list(range(5, 15)) + [0] * 6


def test_a_rectangle_of_rows_is_copied_with_both_pitches(driver: FakeDriver) -> None:
    with CudaDevice() as device:
        stream, host, there = device.stream(), device.pinned((4, 10), "uint8"), device.buffer(18)
        host.array[:] = np.arange(40).reshape(4, 10)
        device.clear(there, 18, stream)
        device.upload_rows(there, 8, host.address + 12, 10, 3, 2, stream, to=4)
        back = device.pinned((18,), "uint8")
        device.download(back, there, 18, stream)
        stream.synchronize()
        assert back.array.tolist() == [0] * 4 + [12, 13, 14] + [0] * 5 + [22, 23, 24] + [0] * 3
        for rows, width in ((3, 3), (2, 11), (0, 3), (2, 9)):
            with pytest.raises(ValueError, match="got"):
                device.upload_rows(there, 8, host.address, 10, width, rows, stream)


@pytest.mark.parametrize(("nbytes", "to"), [(0, 0), (17, 0), (8, 9), (8, -1)])
def test_copies_beyond_the_memory_are_refused(driver: FakeDriver, nbytes: int, to: int) -> None:
    with CudaDevice() as device:
        stream, host, there = device.stream(), device.pinned((64,), "uint8"), device.buffer(16)
        with pytest.raises(ValueError, match="got a copy of"):
            device.upload(there, host, nbytes, stream, to=to)
        with pytest.raises(ValueError, match="got a copy of"):
            device.download(host, there, nbytes, stream, start=to)


def test_a_graph_repeats_what_was_recorded_with_the_values_of_the_launch(driver: FakeDriver) -> None:
    with CudaDevice() as device:
        stream, host, there, back = device.stream(), device.pinned((4,), "uint8"), device.buffer(4), device.pinned((4,), "uint8")
        with device.capture(stream) as graph:
            device.upload(there, host, 4, stream)
            device.download(back, there, 4, stream)
        stream.synchronize()
        assert driver.done["HtoD"] == 0, "recorded, not done"
        for value in (7, 9):
            host.array.fill(value)
            graph.launch(stream)
            stream.synchronize()
            assert back.array.tolist() == [value] * 4
        graph.close()
        with pytest.raises(ValueError, match="holds nothing"):
            graph.launch(stream)


def test_a_capture_that_fails_leaves_a_stream_that_works(driver: FakeDriver) -> None:
    with CudaDevice() as device:
        stream, host, there = device.stream(), device.pinned((4,), "uint8"), device.buffer(4)
        with pytest.raises(CaptureError, match="cannot be recorded"), device.capture(stream):
            device.buffer(100)
        with pytest.raises(CaptureError), device.capture(stream):
            stream.synchronize()
        with pytest.raises(KeyError), device.capture(stream):
            raise KeyError("the block's own")
        driver.fail("cuGraphInstantiate", CUresult.CUDA_ERROR_OUT_OF_MEMORY)
        with pytest.raises(DeviceMemoryError, match="a CUDA graph"), device.capture(stream):
            device.upload(there, host, 4, stream)
        device.upload(there, host, 4, stream)
        stream.synchronize()
        assert driver.done["HtoD"] == 1
        for thing in (stream, host, there):
            thing.close() if hasattr(thing, "close") else thing.free()
    gc.collect()
    assert driver.live() == {}


def test_other_threads_may_allocate_while_one_records(driver: FakeDriver) -> None:
    with CudaDevice() as device:
        stream = device.stream()
        with device.capture(stream) as graph:
            other = threading.Thread(target=lambda: device.buffer(100).free())
            other.start()
            other.join()
        graph.launch(stream)


def test_pinned_memory_lives_as_long_as_an_array_that_looks_at_it(driver: FakeDriver) -> None:
    with CudaDevice() as device:
        pinned = device.pinned((2, 3), "float32")
        assert pinned.address == pinned.device_address == pinned.array.ctypes.data
        row = pinned.array[1]
        pinned.free()
        with pytest.raises(ValueError, match="was freed"):
            _ = pinned.array
    assert driver.live() == {"contexts": 1, "host": 1}, "the closed device keeps the context for the array"
    row[:] = 3
    assert row.tolist() == [3, 3, 3]
    del row, pinned
    gc.collect()
    assert driver.live() == {}


def test_what_is_forgotten_is_freed_with_the_object(driver: FakeDriver) -> None:
    def forget() -> None:
        device = CudaDevice()
        _ = device.buffer(10), device.pinned((4,), "uint8"), device.stream(), device.module(b"code")

    forget()
    gc.collect()
    assert driver.live() == {}


def test_freeing_twice_frees_once(driver: FakeDriver) -> None:
    device = CudaDevice()
    buffer, stream = device.buffer(10), device.stream()
    for _ in range(2):
        buffer.free()
        stream.close()
        device.close()
    assert driver.live() == {}
    assert driver.calls["cuMemFree"] == driver.calls["cuStreamDestroy"] == driver.calls["cuDevicePrimaryCtxRelease"] == 1


@pytest.mark.parametrize(
    "function",
    [
        "cuDeviceGetAttribute",
        "cuDriverGetVersion",
        "cuCtxSetCurrent",
        "cuMemHostGetDevicePointer",
        "cuMemAlloc",
        "cuMemHostAlloc",
        "cuStreamCreate",
    ],
)
def test_nothing_is_left_after_a_failure(driver: FakeDriver, function: str) -> None:
    driver.fail(function, CUresult.CUDA_ERROR_INVALID_VALUE)
    with pytest.raises(BackendUnavailableError, match=f"CUDA_ERROR_INVALID_VALUE .*from {function}"), CudaDevice() as device:
        _ = device.stream(), device.pinned((4,), "uint8"), device.buffer(4)
    gc.collect()
    assert driver.live() == {}


def test_memory_that_is_not_there_says_what_was_asked_and_what_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = install_fake_driver(monkeypatch, memory=10_000_000)
    with CudaDevice() as device:
        first = device.buffer(6_000_000)
        message = r"Fake GPU has not enough memory for a buffer of 5\.0 MB: 4\.0 MB of 10\.0 MB are free.*--batch"
        with pytest.raises(DeviceMemoryError, match=message):
            device.buffer(5_000_000)
        assert not device.lost
        first.free()
        device.buffer(5_000_000).free()
    assert driver.live() == {}


@pytest.mark.parametrize(
    "status", [CUresult.CUDA_ERROR_ILLEGAL_ADDRESS, CUresult.CUDA_ERROR_LAUNCH_FAILED, CUresult.CUDA_ERROR_ECC_UNCORRECTABLE]
)
def test_a_lost_gpu_is_said_once_and_for_all_and_closes_quietly(driver: FakeDriver, status: CUresult) -> None:
    device = CudaDevice()
    stream, host, there = device.stream(), device.pinned((4,), "uint8"), device.buffer(4)
    driver.fail("HtoD", status)
    device.upload(there, host, 4, stream)
    with pytest.raises(DeviceLostError, match=f"Fake GPU stopped: {status.name} .*from cuStreamSynchronize.*start it again"):
        stream.synchronize()
    assert device.lost
    calls = driver.calls.total()
    for _ in range(2):
        with pytest.raises(DeviceLostError, match="from cuStreamSynchronize"):
            device.buffer(4)
    assert driver.calls.total() == calls, "a lost GPU is not asked again"
    stream.close()
    there.free()
    host.free()
    device.close()
    gc.collect()
    assert driver.live() == {}


@pytest.mark.parametrize("function", ["cuMemAlloc", "cuStreamSynchronize", "cuCtxSetCurrent"])
def test_a_status_that_the_bindings_do_not_know_is_a_lost_gpu(
    driver: FakeDriver, monkeypatch: pytest.MonkeyPatch, function: str
) -> None:
    """The bindings raise ValueError then, as does every Enum of Python."""
    with CudaDevice() as device:
        stream, there = device.stream(), device.buffer(4)

        def unknown(*_: object) -> tuple[CUresult]:
            return (CUresult(12345),)

        with monkeypatch.context() as patch:
            patch.setattr(driver, function, unknown)
            with pytest.raises(DeviceLostError, match=f"Fake GPU stopped: the driver answers {function} with .*12345"):
                device.buffer(8)
                stream.synchronize()
            stream.close()
            there.free()
        assert device.lost
        with pytest.raises(DeviceLostError, match="12345"):
            device.buffer(4)


def test_values_that_the_driver_is_not_asked_for_are_no_lost_gpu(driver: FakeDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> tuple[CUresult]:
        raise ValueError("an argument of another kind")

    monkeypatch.setattr(driver, "cuMemAlloc", refuse)
    with CudaDevice() as device:
        with pytest.raises(ValueError, match="another kind"):
            device.buffer(8)
        assert not device.lost


def test_a_copy_from_memory_that_was_freed_loses_the_gpu(driver: FakeDriver) -> None:
    with CudaDevice() as device:
        stream, host, there = device.stream(), device.pinned((4,), "uint8"), device.buffer(4)
        device.upload(there, host, 4, stream)
        there.free()
        with pytest.raises(DeviceLostError, match="ILLEGAL_ADDRESS"):
            stream.synchronize()


def test_gpus_that_are_not_there_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    install_fake_driver(monkeypatch, devices=2)
    with pytest.raises(BackendUnavailableError, match="cuda:5 was asked for, but the GPUs of this machine are: cuda:0, cuda:1"):
        CudaDevice(5)


def test_missing_bindings_and_a_missing_driver_say_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = install_fake_driver(monkeypatch)

    def no_libcuda(flags: int) -> None:
        raise RuntimeError("libcuda.so.1: cannot open shared object file")

    monkeypatch.setattr(driver, "cuInit", no_libcuda)
    with pytest.raises(BackendUnavailableError, match=r"driver cannot be loaded \(libcuda.*--device cpu"):
        CudaDevice()
    for name in ("cuda.bindings.driver", "cuda.cuda"):
        monkeypatch.setitem(importlib.import_module("sys").modules, name, None)
    with pytest.raises(BackendUnavailableError, match="pip install cuda-bindings"):
        CudaDevice()


def test_a_kernel_gets_its_arguments_by_value_at_the_time_of_the_call(driver: FakeDriver) -> None:
    def add(grid: tuple[int, int, int], block: tuple[int, int, int], address: int, count: int, factor: float) -> None:
        assert (grid, block) == ((2, 1, 1), (32, 1, 1))
        driver.view(int(address), int(count))[:] += np.uint8(factor)

    driver.kernels["add"] = (["uint64", "int32", "float32"], add)
    with CudaDevice() as device:
        stream, host = device.stream(), device.pinned((4,), "uint8")
        kernel = device.module(device.compile(ADD, "add.cu")).function("add")
        device.launch(kernel, (2, 1, 1), (32, 1, 1), [host, np.int32(3), np.float32(2.0)], stream)
        device.launch(kernel, (2, 1, 1), (32, 1, 1), [np.uint64(host.device_address), np.int32(1), np.float32(5)], stream)
        stream.synchronize()
        assert host.array.tolist() == [7, 2, 2, 0]
        with pytest.raises(TypeError, match="got a kernel argument of int"):
            device.launch(kernel, (1, 1, 1), (1, 1, 1), [3], stream)  # type: ignore[list-item]
        with pytest.raises(BackendUnavailableError, match="CUDA_ERROR_NOT_FOUND"):
            device.module(b"x").function("absent")


def test_each_thread_works_in_the_context_of_the_device(driver: FakeDriver) -> None:
    problems: list[Exception] = []
    with CudaDevice() as device:

        def work() -> None:
            try:
                device.buffer(8).free()
            except BackendUnavailableError as error:
                problems.append(error)

        threads = [threading.Thread(target=work) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not problems
    assert driver.live() == {}


def test_nvrtc_compiles_for_a_gpu_that_is_not_there() -> None:
    pytest.importorskip("cuda.bindings.nvrtc")
    try:
        machine_code = compile_cuda(ADD, "add.cu", (8, 7), ["--fmad=false"])
    except BackendUnavailableError as error:
        pytest.skip(str(error).splitlines()[0])
    assert machine_code.startswith(b"\x7fELF")
    assert b"add" in machine_code
    newest = compile_cuda(ADD, "add.cu", (99, 0))
    assert b".visible .entry add(" in newest, "PTX, for the driver to finish"
    with pytest.raises(BackendUnavailableError, match=r"compile for sm_87.*\n.*\"nothing\" is undefined"):
        compile_cuda(ADD.replace("+= 1", "+= nothing"), "add.cu", (8, 7))
    with pytest.raises(BackendUnavailableError, match=r"this GPU has 3\.5"):
        compile_cuda(ADD, "add.cu", (3, 5))


def test_the_context_counts_its_users(driver: FakeDriver) -> None:
    context = CudaContext(0)
    context.retain()
    context.release()
    assert driver.users == 1
    context.release()
    assert driver.users == 0


@pytest.fixture
def real_gpu() -> None:
    try:
        machine_identity()
    except BackendUnavailableError as reason:
        pytest.skip(str(reason))


@pytest.mark.gpu
@pytest.mark.usefixtures("real_gpu")
def test_a_real_gpu_copies_records_and_adds() -> None:
    with CudaDevice() as device:
        stream, host, there, back = device.stream(), device.pinned((8,), "uint8"), device.buffer(8), device.pinned((8,), "uint8")
        kernel = device.module(device.compile(ADD, "add.cu")).function("add")
        with device.capture(stream) as graph:
            device.upload_rows(there, 4, host.address, 4, 4, 2, stream)
            device.launch(kernel, (1, 1, 1), (32, 1, 1), [there, np.int32(6)], stream)
            device.download(back, there, 8, stream)
        for value in (3, 200):
            host.array.fill(value)
            graph.launch(stream)
            stream.synchronize()
            assert back.array.tolist() == [value + 1] * 6 + [value] * 2
        free, total = device.memory()
        assert 0 < free <= total
        with pytest.raises(DeviceMemoryError, match="has not enough memory"):
            device.buffer(total * 4)


@pytest.mark.gpu
@pytest.mark.usefixtures("real_gpu")
def test_a_real_gpu_refuses_what_cannot_be_recorded() -> None:
    with CudaDevice() as device:
        stream = device.stream()
        with pytest.raises(CaptureError), device.capture(stream):
            stream.synchronize()
        stream.synchronize()
