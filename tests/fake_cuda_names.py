"""Names and numbers of NVIDIA's bindings that the fake driver uses, and a compiler that compiles nothing."""

from __future__ import annotations

import ctypes
import enum
import itertools
from collections.abc import Callable
from typing import Any

Answer = tuple[Any, ...]


class CUresult(enum.IntEnum):
    CUDA_SUCCESS = 0
    CUDA_ERROR_INVALID_VALUE = 1
    CUDA_ERROR_OUT_OF_MEMORY = 2
    CUDA_ERROR_NO_DEVICE = 100
    CUDA_ERROR_INVALID_CONTEXT = 201
    CUDA_ERROR_NO_BINARY_FOR_GPU = 209
    CUDA_ERROR_ECC_UNCORRECTABLE = 214
    CUDA_ERROR_NOT_FOUND = 500
    CUDA_ERROR_NOT_SUPPORTED = 801
    CUDA_ERROR_ILLEGAL_ADDRESS = 700
    CUDA_ERROR_CONTEXT_IS_DESTROYED = 709
    CUDA_ERROR_LAUNCH_FAILED = 719
    CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED = 900
    CUDA_ERROR_STREAM_CAPTURE_INVALIDATED = 901
    CUDA_ERROR_STREAM_CAPTURE_UNMATCHED = 903
    CUDA_ERROR_UNKNOWN = 999


class CUdevice_attribute(enum.IntEnum):
    CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT = 16
    CU_DEVICE_ATTRIBUTE_INTEGRATED = 18
    CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR = 75
    CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR = 76


class CUstreamCaptureMode(enum.IntEnum):
    CU_STREAM_CAPTURE_MODE_GLOBAL = 0
    CU_STREAM_CAPTURE_MODE_THREAD_LOCAL = 1


class CUstream_flags(enum.IntEnum):
    CU_STREAM_NON_BLOCKING = 1


class CUmemorytype(enum.IntEnum):
    CU_MEMORYTYPE_HOST = 1
    CU_MEMORYTYPE_DEVICE = 2


OK = CUresult.CUDA_SUCCESS
STICKY = {
    CUresult.CUDA_ERROR_ECC_UNCORRECTABLE,
    CUresult.CUDA_ERROR_ILLEGAL_ADDRESS,
    CUresult.CUDA_ERROR_LAUNCH_FAILED,
    CUresult.CUDA_ERROR_UNKNOWN,
}
CONTEXT = 0xC0
TOTAL = 8_000_000_000
ALIGNMENT = 256


Work = Callable[[], CUresult]


class FakeStream:
    """Work that waits for somebody to wait for it, or that is being recorded."""

    def __init__(self) -> None:
        self.work: list[Work] = []
        self.recording: list[Work] | None = None
        self.recorder = 0
        self.spoiled = False


class FakeNvrtc:
    """Stands in for the module `cuda.bindings.nvrtc`: every source compiles to its own text."""

    def __init__(self) -> None:
        self._sources: dict[int, bytes] = {}
        self._numbers = itertools.count(1)

    def nvrtcGetSupportedArchs(self) -> Answer:
        return 0, [75, 80, 87, 90]

    def nvrtcCreateProgram(self, source: bytes, name: bytes, count: int, headers: list[bytes], names: list[bytes]) -> Answer:
        number = next(self._numbers)
        self._sources[number] = source
        return 0, number

    def nvrtcCompileProgram(self, program: int, count: int, options: list[bytes]) -> Answer:
        assert count == len(options)
        return (0,)

    def nvrtcGetCUBINSize(self, program: int) -> Answer:
        return 0, len(self._sources[program])

    def nvrtcGetCUBIN(self, program: int, content: bytes) -> Answer:
        address = ctypes.cast(ctypes.c_char_p(content), ctypes.c_void_p).value
        assert address is not None
        ctypes.memmove(address, self._sources[program], len(content))
        return (0,)

    def nvrtcDestroyProgram(self, program: int) -> Answer:
        del self._sources[program]
        return (0,)
