"""One NVIDIA GPU: memory, streams, copies, CUDA graphs and kernels, through NVIDIA's cuda-python alone.

device = CudaDevice(0)
stream = device.stream()
host, there = device.pinned((4, 4), "uint8"), device.buffer(16)
device.upload(there, host, 16, stream)
stream.synchronize()

Objects may be used from any thread; two threads must not put work on one stream at the same time. Everything is freed by
`close` or `free`, at the latest with the object. A device that was closed keeps what is still in use alive.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from fundus_rt.models.errors import FundusRtError
from fundus_rt.runtime.nvidia.cuda_driver import CudaContext
from fundus_rt.runtime.nvidia.cuda_memory import DeviceBuffer, PinnedArray, quietly
from fundus_rt.runtime.nvidia.nvrtc import compile_cuda

Argument = DeviceBuffer | PinnedArray | np.generic
"""What a kernel is given: memory, as its device address, or a NumPy scalar of the parameter's own type; `np.uint64` is any
pointer."""


class _Handle:
    """Something of the driver's that is released once, by `close` or with the object."""

    def __init__(self, context: CudaContext, handle: int, destroy: str) -> None:
        self._context = context
        self.handle = handle
        self._destroy = destroy
        self._held = True
        context.retain()

    def close(self) -> None:
        """Release it; nothing happens the second time, nor on a lost GPU."""
        held, self._held = self._held, False
        handle, self.handle = self.handle, 0
        if held:
            try:
                if handle:
                    self._context.dispose(self._destroy, handle)
            finally:
                self._context.release()

    def __del__(self) -> None:
        quietly(self.close)


class Stream(_Handle):
    """A queue of work on the GPU that waits for no other."""

    def synchronize(self) -> None:
        """Wait until everything on this stream is done.

        Raises:
            DeviceLostError: the GPU failed in something that was on it.
        """
        self._context.call("cuStreamSynchronize", self.handle)


class Graph(_Handle):
    """Recorded work. `launch` submits all of it at once, with the addresses and sizes that were recorded."""

    def __init__(self, context: CudaContext) -> None:
        """An empty graph; `CudaDevice.capture` fills it when its block ends."""
        super().__init__(context, 0, "cuGraphExecDestroy")

    def launch(self, stream: Stream) -> None:
        """Submit the recorded work.

        Raises:
            ValueError: nothing was recorded, or it was closed.
        """
        if not self.handle:
            raise ValueError("this graph holds nothing: its capture has not ended well, or it was closed")
        self._context.call("cuGraphLaunch", self.handle, stream.handle)


class Function:
    """A kernel of a `Module`, which it keeps loaded."""

    def __init__(self, module: Module, handle: int, name: str) -> None:
        self.module = module
        self.handle = handle
        self.name = name


class Module(_Handle):
    """Machine code on the device."""

    def function(self, name: str) -> Function:
        """The kernel `name` as it is written in the machine code, so ``extern "C"``.

        Raises:
            BackendUnavailableError: no kernel of that name.
        """
        return Function(self, int(self._context.call("cuModuleGetFunction", self.handle, name.encode())), name)


class CudaDevice:
    """One GPU, by its index among those that CUDA shows (``CUDA_VISIBLE_DEVICES``)."""

    def __init__(self, index: int = 0) -> None:
        """Open the GPU's primary context.

        Raises:
            BackendUnavailableError: cuda-python, the driver or the GPU is not there.
        """
        self._closed = True
        self._lock = threading.Lock()
        self._context = CudaContext(index)
        self._closed = False
        try:
            major, minor = (self._context.attribute(f"COMPUTE_CAPABILITY_{part}") for part in ("MAJOR", "MINOR"))
            self.compute_capability: tuple[int, int] = (major, minor)
            self.integrated: bool = bool(self._context.attribute("INTEGRATED"))
            """GPU and processor share one memory, as on a Jetson."""
            version = int(self._context.call("cuDriverGetVersion"))
        except FundusRtError:
            self.close()
            raise
        self.index = index
        self.name: str = self._context.name
        self.driver_version: str = f"{version // 1000}.{version % 1000 // 10}"
        """The newest CUDA that the driver runs: ``12.6``."""

    @property
    def lost(self) -> bool:
        """Whether the GPU stopped: every further call raises DeviceLostError."""
        return bool(self._context.lost)

    def memory(self) -> tuple[int, int]:
        """Free and total memory in bytes."""
        return self._context.memory()

    def make_current(self) -> None:
        """Have other CUDA libraries, TensorRT among them, work on this GPU in the calling thread."""
        self._context.make_current()

    def stream(self) -> Stream:
        """A new stream."""
        flag = self._context.api.CUstream_flags.CU_STREAM_NON_BLOCKING
        return Stream(self._context, int(self._context.call("cuStreamCreate", int(flag))), "cuStreamDestroy")

    def buffer(self, nbytes: int) -> DeviceBuffer:
        """Memory on the device; its content is undefined.

        Raises:
            DeviceMemoryError: not enough memory, with what was asked for and what is free.
        """
        return DeviceBuffer(self._context, nbytes)

    def pinned(self, shape: tuple[int, ...], dtype: DTypeLike) -> PinnedArray:
        """A NumPy array of zeros in page-locked memory that the device can read and write too.

        Raises:
            DeviceMemoryError: the driver can lock no more host memory.
        """
        return PinnedArray(self._context, shape, dtype)

    def upload(
        self, buffer: DeviceBuffer, pinned: PinnedArray, nbytes: int, stream: Stream, *, to: int = 0, start: int = 0
    ) -> None:
        """Put a copy from the host to the device on the stream.

        Args:
            buffer: where to, from byte `to` on.
            pinned: where from, from byte `start` on; not to be changed before the stream is done with it.
            nbytes: how much.
            stream: the stream.
        """
        _require_within(nbytes, (to, buffer.nbytes), (start, pinned.nbytes))
        self._context.call("cuMemcpyHtoDAsync", buffer.address + to, pinned.address + start, nbytes, stream.handle)

    def download(
        self, pinned: PinnedArray, buffer: DeviceBuffer, nbytes: int, stream: Stream, *, to: int = 0, start: int = 0
    ) -> None:
        """Put a copy from the device (from byte `start`) to the host (from byte `to`) on the stream."""
        _require_within(nbytes, (to, pinned.nbytes), (start, buffer.nbytes))
        self._context.call("cuMemcpyDtoHAsync", pinned.address + to, buffer.address + start, nbytes, stream.handle)

    def upload_rows(
        self,
        buffer: DeviceBuffer,
        buffer_pitch: int,
        address: int,
        pitch: int,
        width_bytes: int,
        rows: int,
        stream: Stream,
        *,
        to: int = 0,
    ) -> None:
        """Put a copy of a rectangle from host memory to the device on the stream.

        Args:
            buffer: where to, from byte `to` on.
            buffer_pitch: bytes from one row to the next in `buffer`.
            address: of the first byte of the rectangle on the host; page-locked, or the copy is not asynchronous.
            pitch: bytes from one row to the next on the host.
            width_bytes: bytes of each row to copy.
            rows: how many.
            stream: the stream.
            to: first byte in `buffer`.
        """
        if min(rows, width_bytes) < 1 or width_bytes > min(pitch, buffer_pitch):
            raise ValueError(f"got {rows} rows of {width_bytes} bytes with pitches {pitch} and {buffer_pitch}")
        _require_within((rows - 1) * buffer_pitch + width_bytes, (to, buffer.nbytes))
        api = self._context.api
        copy = api.CUDA_MEMCPY2D()
        copy.srcMemoryType = api.CUmemorytype.CU_MEMORYTYPE_HOST
        copy.srcHost = address
        copy.srcPitch = pitch
        copy.dstMemoryType = api.CUmemorytype.CU_MEMORYTYPE_DEVICE
        copy.dstDevice = buffer.address + to
        copy.dstPitch = buffer_pitch
        copy.WidthInBytes = width_bytes
        copy.Height = rows
        self._context.call("cuMemcpy2DAsync", copy, stream.handle)

    def clear(self, buffer: DeviceBuffer, nbytes: int, stream: Stream, *, byte: int = 0) -> None:
        """Put setting each of the first `nbytes` of a buffer to `byte` on the stream."""
        _require_within(nbytes, (0, buffer.nbytes))
        self._context.call("cuMemsetD8Async", buffer.address, byte, nbytes, stream.handle)

    @contextmanager
    def capture(self, stream: Stream) -> Iterator[Graph]:
        """Record what the block puts on the stream, instead of doing it.

        Nothing may be allocated, freed or waited for inside.

            with device.capture(stream) as graph:
                device.upload(there, host, 16, stream)
            graph.launch(stream)

        Raises:
            CaptureError: something in the block cannot be recorded. The stream is usable again.
            Whatever the block raises; nothing is recorded then.
        """
        api, call = self._context.api, self._context.call
        graph = Graph(self._context)
        # Other threads go on allocating meanwhile: only this thread's calls are held to the rules of recording.
        call("cuStreamBeginCapture", stream.handle, api.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL)
        try:
            yield graph
        except BaseException:
            recorded = api.cuStreamEndCapture(stream.handle)[1:]  # the block's own error is the one to report
            if recorded and int(recorded[0] or 0):
                self._context.dispose("cuGraphDestroy", recorded[0])
            graph.close()
            raise
        recording = call("cuStreamEndCapture", stream.handle)
        try:
            graph.handle = int(call("cuGraphInstantiate", recording, 0, asking="a CUDA graph"))
        finally:
            self._context.dispose("cuGraphDestroy", recording)

    def compile(self, source: str, name: str, options: Sequence[str] = ()) -> bytes:
        """Compile CUDA source for this GPU; see `fundus_rt.runtime.nvidia.nvrtc.compile_cuda`."""
        return compile_cuda(source, name, self.compute_capability, options)

    def module(self, code: bytes) -> Module:
        """Load machine code or PTX that `compile` gave.

        Raises:
            BackendUnavailableError: the code is not for this GPU or this driver.
        """
        return Module(self._context, int(self._context.call("cuModuleLoadData", code, asking="kernels")), "cuModuleUnload")

    def launch(
        self,
        function: Function,
        grid: tuple[int, int, int],
        block: tuple[int, int, int],
        arguments: Sequence[Argument],
        stream: Stream,
        shared_bytes: int = 0,
    ) -> None:
        """Put a kernel on the stream.

        Args:
            function: the kernel.
            grid: blocks in x, y, z.
            block: threads of a block in x, y, z.
            arguments: in the kernel's order, each of its parameter's own size; see `Argument`.
            stream: the stream.
            shared_bytes: shared memory for each block, beyond what the kernel declares.
        """
        values = [_kernel_value(argument) for argument in arguments]
        pointers = np.array([value.ctypes.data for value in values], np.uint64)
        self._context.call(
            "cuLaunchKernel", function.handle, *grid, *block, shared_bytes, stream.handle, int(pointers.ctypes.data), 0
        )  # the driver copies the arguments before it returns

    def close(self) -> None:
        """Let go of the GPU; what still lives on it keeps the context until it is freed."""
        with self._lock:
            closed, self._closed = self._closed, True
        if not closed:
            self._context.release()

    def __enter__(self) -> CudaDevice:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        quietly(self.close)


def _kernel_value(argument: Argument) -> np.ndarray[Any, Any]:
    """A kernel's argument in memory of its own, for the driver to copy."""
    if isinstance(argument, DeviceBuffer):
        return np.array([argument.address], np.uint64)
    if isinstance(argument, PinnedArray):
        return np.array([argument.device_address], np.uint64)
    if isinstance(argument, np.generic):
        return np.array([argument])
    raise TypeError(f"got a kernel argument of {type(argument).__name__}, expected a buffer or a NumPy scalar, np.int32(3)")


def _require_within(nbytes: int, *places: tuple[int, int]) -> None:
    for start, size in places:
        if nbytes < 1 or start < 0 or start + nbytes > size:
            raise ValueError(f"got a copy of {nbytes} bytes from byte {start} on, in memory of {size} bytes")
