"""A TensorRT whose engines are computed by ONNX Runtime on the CPU, for the tests: what the package calls, with the real names.

It holds the caller to TensorRT's rules: a context has memory, a shape and addresses before it runs; it has run once before it is
recorded; a recorded graph is only launched while its context is as it was; one context does not run twice at the same time, and
no two contexts share memory at the same time.
"""

from __future__ import annotations

import enum
import json
import struct
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from fundus_rt.runtime.nvidia import tensorrt_library
from tests.fake_cuda import FakeDriver
from tests.fake_cuda_names import CUresult

MAGIC = b"FAKEPLAN"
SCRATCH = 4096
"""Memory that a context needs for each picture, bytes."""


def fake_plan(onnx_path: Path, batch: tuple[int, int, int] = (1, 1, 8)) -> bytes:
    """The bytes of an engine that `FakeTensorRT` reads."""
    header = json.dumps({"batch": batch}).encode()
    return MAGIC + struct.pack("<I", len(header)) + header + onnx_path.read_bytes()


class Severity(enum.IntEnum):
    INTERNAL_ERROR = 0
    ERROR = 1
    WARNING = 2
    INFO = 3


class ILogger:
    Severity = Severity


class TensorIOMode(enum.IntEnum):
    INPUT = 1
    OUTPUT = 2


class DataType(enum.IntEnum):
    FLOAT = 0
    UINT8 = 5


class ExecutionContextAllocationStrategy(enum.IntEnum):
    STATIC = 0
    USER_MANAGED = 2


class DynamicShapesKernelSpecializationStrategy(enum.IntEnum):
    LAZY = 0
    EAGER = 1


class FakeTensorRT:
    """Stands in for the module `tensorrt`."""

    ILogger = ILogger
    TensorIOMode = TensorIOMode
    DataType = DataType
    ExecutionContextAllocationStrategy = ExecutionContextAllocationStrategy
    Builder = object

    def __init__(self, driver: FakeDriver, version: str = "10.3.0.26") -> None:
        self.__version__ = version
        self.driver = driver
        self.recordable = True
        """False: every recording of a context fails, as with some layers."""
        self.refuse_context = False
        self.refuse_run = False
        self.loses_gpu: CUresult | None = None
        """A status: the next run breaks the GPU, and TensorRT itself only says that it failed."""
        self.swap_rows = False
        """Answers and receipts come out in the reverse order of the pictures."""
        self.freeze = False
        """Nothing is written any more: what was answered before stays in the memory."""
        self.skips_run = False
        """The engine is not put on the stream, and nobody is told."""
        self.contexts = 0
        """Execution contexts that are alive."""
        self.gone: list[str] = []
        """What was given back, in its order, and whether the GPU was still there: ``plan``, ``plan without a GPU`` …"""
        self.runs = 0
        self.busy: set[int] = set()
        self.lock = threading.Lock()

    def Runtime(self, logger: Any) -> FakeRuntime:
        return FakeRuntime(self, logger)

    def let_go(self, what: str) -> None:
        """Note what is given back."""
        with self.lock:
            self.gone.append(what if self.driver.users else f"{what} without a GPU")


class FakeTensorRTForRTX(FakeTensorRT):
    """Stands in for the module `tensorrt_rtx`, which finishes kernels for a shape late unless it is told not to."""

    DynamicShapesKernelSpecializationStrategy = DynamicShapesKernelSpecializationStrategy


class FakeRuntimeConfig:
    dynamic_shapes_kernel_specialization_strategy = DynamicShapesKernelSpecializationStrategy.LAZY

    def set_execution_context_allocation_strategy(self, strategy: ExecutionContextAllocationStrategy) -> None:
        self.strategy = strategy


class FakeRuntime:
    def __init__(self, trt: FakeTensorRT, logger: Any) -> None:
        self._trt = trt
        self._logger = logger

    def __del__(self) -> None:
        self._trt.let_go("runtime")

    def deserialize_cuda_engine(self, content: bytes) -> FakeEngine | None:
        self._trt.driver.require_current()
        if not content.startswith(MAGIC):
            self._logger.log(Severity.ERROR, "Serialization assertion header.magicTag == kEXPECTED_MAGIC_TAG failed.")
            return None
        return FakeEngine(self._trt, self._logger, content)


class FakeEngine:
    num_optimization_profiles = 1

    def __init__(self, trt: FakeTensorRT, logger: Any, content: bytes) -> None:
        self.trt = trt
        self.logger = logger
        (length,) = struct.unpack_from("<I", content, len(MAGIC))
        start = len(MAGIC) + 4
        self.batch = tuple(json.loads(content[start : start + length])["batch"])
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.network = onnxruntime.InferenceSession(content[start + length :], options, providers=["CPUExecutionProvider"])
        self._inputs = {tensor.name: tensor for tensor in self.network.get_inputs()}
        self._tensors = {**self._inputs, **{tensor.name: tensor for tensor in self.network.get_outputs()}}
        self.device_memory_size_v2 = SCRATCH * self.batch[2]

    def __del__(self) -> None:
        self.trt.let_go("plan")

    @property
    def num_io_tensors(self) -> int:
        return len(self._tensors)

    def get_tensor_name(self, index: int) -> str:
        return list(self._tensors)[index]

    def get_tensor_mode(self, name: str) -> TensorIOMode:
        return TensorIOMode.INPUT if name in self._inputs else TensorIOMode.OUTPUT

    def get_tensor_dtype(self, name: str) -> DataType:
        return {"tensor(float)": DataType.FLOAT, "tensor(uint8)": DataType.UINT8}[self._tensors[name].type]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return tuple(size if isinstance(size, int) else -1 for size in self._tensors[name].shape)

    def get_tensor_profile_shape(self, name: str, index: int) -> list[tuple[int, ...]]:
        assert index == 0
        return [(count, *self.get_tensor_shape(name)[1:]) for count in self.batch]

    def create_runtime_config(self) -> FakeRuntimeConfig:
        return FakeRuntimeConfig()

    def create_execution_context(self, how: ExecutionContextAllocationStrategy | FakeRuntimeConfig) -> FakeContext | None:
        self.trt.driver.require_current()
        if isinstance(self.trt, FakeTensorRTForRTX):
            assert isinstance(how, FakeRuntimeConfig), "its kernels would be finished after they were recorded"
            eager = DynamicShapesKernelSpecializationStrategy.EAGER
            assert how.dynamic_shapes_kernel_specialization_strategy == eager
        strategy = how.strategy if isinstance(how, FakeRuntimeConfig) else how
        assert strategy == ExecutionContextAllocationStrategy.USER_MANAGED
        if self.trt.refuse_context:
            self.logger.log(Severity.ERROR, "createExecutionContext: Error Code 1: Cuda Runtime (out of memory)")
            return None
        return FakeContext(self)


class FakeContext:
    def __init__(self, engine: FakeEngine) -> None:
        self._engine = engine
        self._trt = engine.trt
        self._memory: tuple[int, int] = (0, 0)
        self._shape: tuple[int, ...] = ()
        self._addresses: dict[str, int] = {}
        self._changes = 0
        self._has_run = -1
        with self._trt.lock:
            self._trt.contexts += 1

    def __del__(self) -> None:
        with self._trt.lock:
            self._trt.contexts -= 1
        self._trt.let_go("context")

    def set_device_memory(self, address: int, size: int) -> None:
        assert size >= self._engine.device_memory_size_v2
        assert address % 256 == 0
        self._memory = (address, size)
        self._changes += 1

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        least, _, most = self._engine.get_tensor_profile_shape(name, 0)
        if not all(low <= size <= high for low, size, high in zip(least, shape, most, strict=True)):
            self._engine.logger.log(Severity.ERROR, f"setInputShape: {shape} is outside of the profile {least} to {most}")
            return False
        self._shape = shape
        self._changes += 1
        return True

    def set_tensor_address(self, name: str, address: int) -> bool:
        assert address % 256 == 0
        self._addresses[name] = address
        self._changes += 1
        return True

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._shape[0] if size < 0 else size for size in self._engine.get_tensor_shape(name))

    def execute_async_v3(self, stream: int) -> bool:
        engine, driver = self._engine, self._trt.driver
        driver.require_current()
        complete = self._memory[0] and self._shape and len(self._addresses) == engine.num_io_tensors
        if self._trt.loses_gpu:
            driver.sticky = self._trt.loses_gpu
        if not complete or self._trt.refuse_run or self._trt.loses_gpu:
            engine.logger.log(Severity.ERROR, "enqueueV3: Error Code 3: API Usage Error (not all of the context is set)")
            return False
        if driver.recording(stream) and (self._has_run != self._changes or not self._trt.recordable):
            driver.spoil(stream)
            engine.logger.log(Severity.ERROR, "enqueueV3: operation not permitted when stream is capturing")
            return False
        self._has_run = self._changes
        changes = self._changes
        if not self._trt.skips_run:
            driver.submit(stream, lambda: self._compute(changes))
        return True

    def _compute(self, changes: int) -> CUresult:
        assert changes == self._changes, "a recorded graph was launched after its context had been changed"
        trt, resources = self._trt, {id(self), self._memory[0]}
        with trt.lock:
            assert not trt.busy & resources, "one context or its memory was used twice at the same time"
            trt.busy |= resources
            trt.runs += 1
        try:
            if not trt.freeze:
                self._write(self._engine.network.run(None, {"frames": self._input()}))
        finally:
            with trt.lock:
                trt.busy -= resources
        return CUresult.CUDA_SUCCESS

    def _input(self) -> np.ndarray[Any, Any]:
        dtype = np.dtype("uint8" if self._engine.get_tensor_dtype("frames") == DataType.UINT8 else "float32")
        nbytes = int(np.prod(self._shape)) * dtype.itemsize
        return self._trt.driver.view(self._addresses["frames"], nbytes).copy().view(dtype).reshape(self._shape)

    def _write(self, values: list[np.ndarray[Any, Any]]) -> None:
        self._trt.driver.view(*self._memory).fill(0x5A)
        for tensor, value in zip(self._engine.network.get_outputs(), values, strict=True):
            rows = value[::-1] if self._trt.swap_rows else value
            content = np.ascontiguousarray(rows).view(np.uint8).reshape(-1)
            self._trt.driver.view(self._addresses[tensor.name], content.nbytes)[:] = content


def install_fake_tensorrt(monkeypatch: pytest.MonkeyPatch, driver: FakeDriver, rtx: bool = False) -> FakeTensorRT:
    """Put a fake in the place of the module `tensorrt`, or of `tensorrt_rtx`, for the time of a test; the other is not there."""
    trt = FakeTensorRTForRTX(driver) if rtx else FakeTensorRT(driver)
    monkeypatch.setitem(sys.modules, "tensorrt", None if rtx else trt)  # type: ignore[arg-type]
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", trt if rtx else None)  # type: ignore[arg-type]
    # Another test may have loaded the real library into this process; its version is not the fake's.
    monkeypatch.setattr(tensorrt_library, "_loaded", lambda pattern: [])
    return trt
