"""A CUDA driver of plain host memory, for tests: what runtime/nvidia/cuda_driver.py calls, with the real names, values and rules.

Work on a stream is done only when somebody waits for the stream, so that reading a result too early shows. Work is recorded
while a stream is capturing, and then done by each launch. Kernels are Python functions, registered by name. Errors can be
asked for: `fail` makes a call return a status, `dropped` loses copies. `live` counts what was not given back.
"""

from __future__ import annotations

import ctypes
import itertools
import sys
import threading
from collections import Counter
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tests.fake_cuda_names import (
    ALIGNMENT,
    CONTEXT,
    OK,
    STICKY,
    TOTAL,
    Answer,
    CUdevice_attribute,
    CUmemorytype,
    CUresult,
    CUstream_flags,
    CUstreamCaptureMode,
    FakeNvrtc,
    FakeStream,
    Work,
)


class FakeDriver:
    """Stands in for the module `cuda.bindings.driver`.

    `users` counts retained contexts, `done` work by kind; `dropped` names kinds of work that get lost (``HtoD``, ``DtoH``);
    `kernels` has by name the dtypes of the parameters, and a function of grid, block and the parameters' values.
    """

    CUresult = CUresult
    CUdevice_attribute = CUdevice_attribute
    CUstreamCaptureMode = CUstreamCaptureMode
    CUstream_flags = CUstream_flags
    CUmemorytype = CUmemorytype
    CUDA_MEMCPY2D = SimpleNamespace
    CU_MEMHOSTALLOC_PORTABLE = 1
    CU_MEMHOSTALLOC_DEVICEMAP = 2

    def __init__(self, integrated: bool = False, devices: int = 1, memory: int = TOTAL) -> None:
        self.integrated = integrated
        self.devices = devices
        self.total = memory
        self.users = 0
        self.calls: Counter[str] = Counter()
        self.done: Counter[str] = Counter()
        self.dropped: set[str] = set()
        self.kernels: dict[str, tuple[list[str], Callable[..., None]]] = {}
        self.sticky = OK
        self._failing: dict[str, tuple[int, CUresult]] = {}
        self._numbers = itertools.count(0x1000)
        self._memory: dict[str, dict[int, np.ndarray[Any, Any]]] = {"device": {}, "host": {}}
        self._streams: dict[int, FakeStream] = {}
        self._graphs: dict[int, list[Work]] = {}
        self._executables: dict[int, list[Work]] = {}
        self._modules: set[int] = set()
        self._functions: dict[int, str] = {}
        self._threads = threading.local()
        self._lock = threading.RLock()

    def fail(self, function: str, status: CUresult, nth: int = 1) -> None:
        """Have the `nth` call of a function from now on return `status`; for work, the `nth` that is done of a kind."""
        self._failing[function] = (nth, status)

    def live(self) -> dict[str, int]:
        """What was allocated or made and not given back."""
        counts = {
            "contexts": self.users,
            "device": len(self._memory["device"]),
            "host": len(self._memory["host"]),
            "streams": len(self._streams),
            "graphs": len(self._graphs) + len(self._executables),
            "modules": len(self._modules),
        }
        return {name: count for name, count in counts.items() if count}

    def view(self, address: int, nbytes: int) -> np.ndarray[Any, Any]:
        """The bytes at a device address or a mapped one.

        Raises:
            IndexError: they are not within one allocation.
        """
        self._require(address, nbytes, "device", "host")
        return np.frombuffer((ctypes.c_uint8 * nbytes).from_address(address), np.uint8)

    def submit(self, stream: int, work: Work) -> CUresult:
        """Put work on a stream, as a library such as TensorRT does."""
        with self._lock:
            queue = self._streams[stream]
            if queue.recording is not None:
                queue.recording.append(work)
            else:
                queue.work.append(work)
            return self.sticky

    def require_current(self) -> None:
        """What a library that uses the CUDA runtime relies on: this thread's calls go to the right GPU."""
        assert getattr(self._threads, "current", 0) == CONTEXT, "no context is current in this thread"

    def recording(self, stream: int) -> bool:
        """Whether work on the stream is recorded now."""
        return self._streams[stream].recording is not None

    def spoil(self, stream: int) -> bool:
        """Do what a recording does not allow; True where the stream was recording."""
        queue = self._streams[stream]
        queue.spoiled = queue.recording is not None
        return queue.spoiled

    def cuInit(self, flags: int) -> Answer:
        return self._answer("cuInit", context=False)

    def cuDriverGetVersion(self) -> Answer:
        return self._answer("cuDriverGetVersion", 12060, context=False)

    def cuGetErrorString(self, status: CUresult) -> Answer:
        return OK, status.name.replace("CUDA_ERROR_", "").lower().replace("_", " ").encode()

    def cuDeviceGetCount(self) -> Answer:
        return self._answer("cuDeviceGetCount", self.devices, context=False)

    def cuDeviceGet(self, index: int) -> Answer:
        return self._answer("cuDeviceGet", index, context=False)

    def cuDeviceGetName(self, length: int, device: int) -> Answer:
        return self._answer("cuDeviceGetName", b"Fake GPU".ljust(length, b"\0"), context=False)

    def cuDeviceGetAttribute(self, attribute: CUdevice_attribute, device: int) -> Answer:
        values = {16: 8, 18: int(self.integrated), 75: 8, 76: 7}
        return self._answer("cuDeviceGetAttribute", values[attribute], context=False)

    def cuDevicePrimaryCtxRetain(self, device: int) -> Answer:
        answer = self._answer("cuDevicePrimaryCtxRetain", CONTEXT, context=False)
        with self._lock:
            self.users += answer[0] == OK
        return answer

    def cuDevicePrimaryCtxRelease(self, device: int) -> Answer:
        with self._lock:
            assert self.users > 0, "released once more than retained"
            self.users -= 1
        return self._answer("cuDevicePrimaryCtxRelease", context=False)

    def cuCtxSetCurrent(self, context: int) -> Answer:
        assert self.users > 0, "the context was made current after its release"
        self._threads.current = context
        return self._answer("cuCtxSetCurrent", context=False)

    def cuMemGetInfo(self) -> Answer:
        if self.sticky != OK:
            return self.sticky, None, None
        return OK, self.total - self._used(), self.total

    def cuMemAlloc(self, nbytes: int) -> Answer:
        return self._allocate("cuMemAlloc", "device", nbytes)

    def cuMemFree(self, address: int) -> Answer:
        return self._release("cuMemFree", self._memory["device"], address)

    def cuMemHostAlloc(self, nbytes: int, flags: int) -> Answer:
        assert flags == 3, "the memory is for every thread and mapped"
        return self._allocate("cuMemHostAlloc", "host", nbytes)

    def cuMemFreeHost(self, address: int) -> Answer:
        return self._release("cuMemFreeHost", self._memory["host"], address)

    def cuMemHostGetDevicePointer(self, address: int, flags: int) -> Answer:
        assert address in self._memory["host"]
        return self._answer("cuMemHostGetDevicePointer", address)

    def cuMemcpyHtoDAsync(self, to: int, source: int, nbytes: int, stream: int) -> Answer:
        return self._copy("HtoD", "cuMemcpyHtoDAsync", (to, "device"), (source, "host"), nbytes, stream)

    def cuMemcpyDtoHAsync(self, to: int, source: int, nbytes: int, stream: int) -> Answer:
        return self._copy("DtoH", "cuMemcpyDtoHAsync", (to, "host"), (source, "device"), nbytes, stream)

    def cuMemcpy2DAsync(self, copy: Any, stream: int) -> Answer:
        assert (copy.srcMemoryType, copy.dstMemoryType) == (1, 2), "only from the host to the device"
        rows = range(copy.Height)
        pairs = [(copy.dstDevice + row * copy.dstPitch, copy.srcHost + row * copy.srcPitch) for row in rows]
        width = copy.WidthInBytes

        def work() -> CUresult:
            for to, source in pairs:
                self._require(to, width, "device")
                self._require(source, width, "host")
                ctypes.memmove(to, source, width)
            return OK

        return self._work("2D", "cuMemcpy2DAsync", work, stream)

    def cuMemsetD8Async(self, address: int, value: int, nbytes: int, stream: int) -> Answer:
        def work() -> CUresult:
            self._require(address, nbytes, "device")
            ctypes.memset(address, value, nbytes)
            return OK

        return self._work("memset", "cuMemsetD8Async", work, stream)

    def cuStreamCreate(self, flags: int) -> Answer:
        return self._made("cuStreamCreate", self._streams, FakeStream())

    def cuStreamDestroy(self, stream: int) -> Answer:
        return self._release("cuStreamDestroy", self._streams, stream)

    def cuStreamSynchronize(self, stream: int) -> Answer:
        if self.spoil(stream):
            return (CUresult.CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED,)
        with self._lock:
            work, self._streams[stream].work = self._streams[stream].work, []
        self._do(work)
        return self._answer("cuStreamSynchronize")

    def cuStreamBeginCapture(self, stream: int, mode: CUstreamCaptureMode) -> Answer:
        answer = self._answer("cuStreamBeginCapture")
        if answer[0] == OK:
            queue = self._streams[stream]
            assert queue.recording is None, "the stream is recording already"
            assert mode == CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL, "other threads go on allocating"
            queue.recording, queue.recorder, queue.spoiled = [], threading.get_ident(), False
        return answer

    def cuStreamEndCapture(self, stream: int) -> Answer:
        queue = self._streams[stream]
        if queue.recording is None:
            return CUresult.CUDA_ERROR_STREAM_CAPTURE_UNMATCHED, None
        recorded, queue.recording = queue.recording, None
        if queue.spoiled:
            return CUresult.CUDA_ERROR_STREAM_CAPTURE_INVALIDATED, None
        return self._made("cuStreamEndCapture", self._graphs, recorded)

    def cuGraphInstantiate(self, graph: int, flags: int) -> Answer:
        return self._made("cuGraphInstantiate", self._executables, list(self._graphs[graph]))

    def cuGraphLaunch(self, graph: int, stream: int) -> Answer:
        work = self._executables[graph]
        return self._work("graph", "cuGraphLaunch", lambda: self._do(work), stream)

    def cuGraphExecDestroy(self, graph: int) -> Answer:
        return self._release("cuGraphExecDestroy", self._executables, graph)

    def cuGraphDestroy(self, graph: int) -> Answer:
        return self._release("cuGraphDestroy", self._graphs, graph)

    def cuModuleLoadData(self, image: bytes) -> Answer:
        answer = self._answer("cuModuleLoadData", next(self._numbers))
        if answer[0] == OK:
            self._modules.add(answer[1])
        return answer

    def cuModuleUnload(self, module: int) -> Answer:
        self._modules.discard(module)
        return self._answer("cuModuleUnload")

    def cuModuleGetFunction(self, module: int, name: bytes) -> Answer:
        if name.decode() not in self.kernels:
            return CUresult.CUDA_ERROR_NOT_FOUND, None
        number = next(self._numbers)
        self._functions[number] = name.decode()
        return self._answer("cuModuleGetFunction", number)

    def cuLaunchKernel(self, function: int, *rest: int) -> Answer:
        grid, block, (_, stream, parameters, extra) = rest[:3], rest[3:6], rest[6:]
        assert extra == 0
        dtypes, kernel = self.kernels[self._functions[function]]
        pointers = (ctypes.c_uint64 * len(dtypes)).from_address(parameters)
        values = [
            np.frombuffer(ctypes.string_at(pointer, np.dtype(dtype).itemsize), dtype)[0]
            for pointer, dtype in zip(pointers, dtypes, strict=True)
        ]

        def work() -> CUresult:
            kernel(grid, block, *values)
            return OK

        return self._work("kernel", "cuLaunchKernel", work, stream)

    def _used(self) -> int:
        return sum(memory.nbytes for memory in self._memory["device"].values())

    def _answer(self, function: str, *values: Any, context: bool = True) -> Answer:
        with self._lock:
            self.calls[function] += 1
            status = self.sticky
            if context and getattr(self._threads, "current", 0) != CONTEXT:
                status = CUresult.CUDA_ERROR_INVALID_CONTEXT
            status = self._due(function) or status
        if status in STICKY:
            self.sticky = status
        return (status, *((None,) * len(values) if status != OK else values))

    def _due(self, function: str) -> CUresult | None:
        """The status that was asked for with `fail`, when it is this call's turn."""
        if function not in self._failing:
            return None
        nth, status = self._failing.pop(function)
        if nth == 1:
            return status
        self._failing[function] = (nth - 1, status)
        return None

    def _made(self, function: str, where: dict[int, Any], what: Any) -> Answer:
        answer = self._answer(function, next(self._numbers))
        if answer[0] == OK:
            where[answer[1]] = what
        return answer

    def _allocate(self, function: str, kind: str, nbytes: int) -> Answer:
        if self._spoils_recording():
            return CUresult.CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, None
        if kind == "device" and self._used() + nbytes > self.total:
            return CUresult.CUDA_ERROR_OUT_OF_MEMORY, None
        memory = np.full(nbytes + ALIGNMENT, 0xA5, np.uint8)
        memory = memory[-memory.ctypes.data % ALIGNMENT :][:nbytes]
        answer = self._answer(function, memory.ctypes.data)
        if answer[0] == OK:
            with self._lock:
                self._memory[kind][answer[1]] = memory
        return answer

    def _release(self, function: str, where: dict[int, Any], key: int) -> Answer:
        assert int(key) in where, f"{function} of what is not there"
        with self._lock:
            del where[int(key)]
        return self._answer(function)

    def _spoils_recording(self) -> bool:
        mine = [q for q in list(self._streams.values()) if q.recording is not None and q.recorder == threading.get_ident()]
        for queue in mine:
            queue.spoiled = True
        return bool(mine)

    def _require(self, address: int, nbytes: int, *kinds: str) -> None:
        with self._lock:
            for kind in kinds:
                for start, memory in self._memory[kind].items():
                    if start <= address and address + nbytes <= start + memory.nbytes:
                        return
        raise IndexError(f"{nbytes} bytes at {address:#x} are in no allocation ({' or '.join(kinds)})")

    def _copy(self, kind: str, function: str, to: tuple[int, str], source: tuple[int, str], nbytes: int, stream: int) -> Answer:
        def work() -> CUresult:
            for address, where in (to, source):
                self._require(address, nbytes, where)
            ctypes.memmove(to[0], source[0], nbytes)
            return OK

        return self._work(kind, function, work, stream)

    def _work(self, kind: str, function: str, work: Work, stream: int) -> Answer:
        def counted() -> CUresult:
            with self._lock:
                self.done[kind] += 1
                status = self._due(kind)
            if status is not None:
                return status
            return OK if kind in self.dropped else work()

        answer = self._answer(function)
        if answer[0] == OK:
            self.submit(stream, counted)
        return answer

    def _do(self, work: list[Work]) -> CUresult:
        for piece in work:
            if self.sticky != OK:
                break
            try:
                status = piece()
            except IndexError:
                status = CUresult.CUDA_ERROR_ILLEGAL_ADDRESS
            if status != OK:
                self.sticky = status
        return self.sticky


def install_fake_driver(monkeypatch: pytest.MonkeyPatch, **options: Any) -> FakeDriver:
    """Put a `FakeDriver` and a `FakeNvrtc` in the place of NVIDIA's bindings for the time of a test."""
    driver = FakeDriver(**options)
    monkeypatch.setitem(sys.modules, "cuda.bindings.driver", driver)  # type: ignore[arg-type]
    monkeypatch.setitem(sys.modules, "cuda.bindings.nvrtc", FakeNvrtc())  # type: ignore[arg-type]
    return driver
