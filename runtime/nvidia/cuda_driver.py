"""The CUDA driver through NVIDIA's own bindings, every status checked and turned into an error that says what to do.

`CudaContext` is the primary context of one GPU, the one that TensorRT and every other CUDA library of the process use too. It
is kept while anything lives in it, so that memory handed out outlasts the object that made it.
"""

from __future__ import annotations

import importlib
import threading
from typing import Any, NoReturn

from fundus_rt.models.errors import BackendUnavailableError, DeviceLostError, DeviceMemoryError

INSTALL = "install NVIDIA's bindings: pip install cuda-bindings (CUDA 12: pip install 'cuda-bindings<13')"

LOST = frozenset(
    f"CUDA_ERROR_{name}"
    for name in (
        "ASSERT", "CONTAINED", "CONTEXT_IS_DESTROYED", "DEINITIALIZED", "DEVICE_UNAVAILABLE", "ECC_UNCORRECTABLE",
        "EXTERNAL_DEVICE", "HARDWARE_STACK_ERROR", "ILLEGAL_ADDRESS", "ILLEGAL_INSTRUCTION", "INVALID_ADDRESS_SPACE",
        "INVALID_PC", "LAUNCH_FAILED", "LAUNCH_TIMEOUT", "MISALIGNED_ADDRESS", "MPS_CLIENT_TERMINATED",
        "MPS_CONNECTION_FAILED", "MPS_RPC_FAILURE", "NVLINK_UNCORRECTABLE", "TENSOR_MEMORY_LEAK", "UNKNOWN",
    )
)  # fmt: skip
"""Statuses after which the context answers nothing more; the driver returns the same one from every later call."""

UNRECORDABLE = frozenset(
    f"CUDA_ERROR_{name}"
    for name in (
        "CAPTURED_EVENT", "STREAM_CAPTURE_IMPLICIT", "STREAM_CAPTURE_INVALIDATED", "STREAM_CAPTURE_ISOLATION",
        "STREAM_CAPTURE_MERGE", "STREAM_CAPTURE_UNJOINED", "STREAM_CAPTURE_UNMATCHED", "STREAM_CAPTURE_UNSUPPORTED",
        "STREAM_CAPTURE_WRONG_THREAD",
    )
)  # fmt: skip
"""Statuses that say: this work cannot be recorded as a CUDA graph."""


class CaptureError(BackendUnavailableError):
    """Work cannot be recorded as a CUDA graph. It can still be submitted piece by piece."""


def import_driver() -> Any:
    """The module of the driver's functions: `cuda.bindings.driver`, or `cuda.cuda` of the years before.

    Raises:
        BackendUnavailableError: neither is installed.
    """
    return _import_first("cuda.bindings.driver", "cuda.cuda")


def import_nvrtc() -> Any:
    """The module of the run-time compiler's functions: `cuda.bindings.nvrtc`, or `cuda.nvrtc`.

    Raises:
        BackendUnavailableError: neither is installed.
    """
    return _import_first("cuda.bindings.nvrtc", "cuda.nvrtc")


def _import_first(*names: str) -> Any:
    problems = []
    for name in names:
        try:
            return importlib.import_module(name)
        except ImportError as error:
            problems.append(str(error))
    raise BackendUnavailableError(f"NVIDIA's cuda-python is not installed ({problems[0]}); {INSTALL}")


class CudaContext:
    """The primary context of one GPU, kept until its last user has released it. Thread-safe."""

    def __init__(self, index: int) -> None:
        """Retain the context of GPU `index` for one user.

        Raises:
            BackendUnavailableError: no bindings, no driver or no such GPU.
            DeviceMemoryError, DeviceLostError: the driver's own refusal.
        """
        self.api = import_driver()
        self.index = index
        self.name = f"cuda:{index}"
        self.lost: str = ""
        """Why the GPU is lost; empty while it is not."""
        self._users = 1
        self._lock = threading.RLock()  # the collector may free a buffer, and so release, in the middle of `retain`
        try:
            status = self._answer("cuInit", 0)[0]
        except DeviceLostError:
            raise
        except Exception as error:  # the bindings raise errors of their own kinds where libcuda is not there
            raise BackendUnavailableError(
                f"the CUDA driver cannot be loaded ({_one_line(error)}); install NVIDIA's driver, or say --device cpu"
            ) from error
        self._check("cuInit", status, "")
        count = int(self._plain("cuDeviceGetCount"))
        if not 0 <= index < count:
            there = ", ".join(f"cuda:{i}" for i in range(count)) or "none"
            raise BackendUnavailableError(f"device cuda:{index} was asked for, but the GPUs of this machine are: {there}")
        self.device = self._plain("cuDeviceGet", index)
        self.name = bytes(self._plain("cuDeviceGetName", 256, self.device)).split(b"\0")[0].decode("utf-8", "replace")
        self._handle = self._plain("cuDevicePrimaryCtxRetain", self.device)

    def attribute(self, name: str) -> int:
        """A number of the device by the name of its `CUdevice_attribute`, without the prefix."""
        attribute = getattr(self.api.CUdevice_attribute, f"CU_DEVICE_ATTRIBUTE_{name}")
        return int(self._plain("cuDeviceGetAttribute", attribute, self.device))

    def call(self, function: str, *arguments: Any, asking: str = "") -> Any:
        """Call a function of the driver in this context and return what it answers after its status.

        Args:
            function: name of the function.
            arguments: as NVIDIA's bindings take them.
            asking: what is asked for, in words, for the message when memory is short.

        Raises:
            DeviceLostError: the GPU is lost, now or before.
            DeviceMemoryError: out of memory.
            CaptureError: the work cannot be recorded.
            BackendUnavailableError: any other refusal.
        """
        if self.lost:
            raise DeviceLostError(self.lost)
        self.make_current()
        return self._plain(function, *arguments, asking=asking)

    def make_current(self) -> None:
        """Have this thread's CUDA calls, TensorRT's among them, go to this context."""
        status = self._answer("cuCtxSetCurrent", self._handle)[0]
        if status != 0:
            self._check("cuCtxSetCurrent", status, "")

    def dispose(self, function: str, *arguments: Any) -> None:
        """Call a function that releases something; a lost GPU may refuse, and nothing is raised."""
        try:
            self._answer("cuCtxSetCurrent", self._handle)  # where this fails, the next call does too
            self._plain(function, *arguments)
        except DeviceLostError:
            return

    def retain(self) -> None:
        """Count one more user."""
        with self._lock:
            self._users += 1

    def release(self) -> None:
        """Count one user less; the last one gives the context back."""
        with self._lock:
            self._users -= 1
            last = self._users == 0
        if last:
            try:
                status = self._answer("cuDevicePrimaryCtxRelease", self.device)[0]
            except DeviceLostError:
                return
            if not self.lost and status.name not in LOST:
                self._check("cuDevicePrimaryCtxRelease", status, "")

    def memory(self) -> tuple[int, int]:
        """Free and total memory of the GPU in bytes."""
        free, total = self.call("cuMemGetInfo")
        return int(free), int(total)

    def _plain(self, function: str, *arguments: Any, asking: str = "") -> Any:
        try:
            status, *values = self._answer(function, *arguments)
        except RuntimeError as error:  # the bindings' own, for a function that the driver's library does not have
            raise BackendUnavailableError(
                f"the driver of {self.name} does not know {function} ({_one_line(error)}): it is older than the bindings; update "
                "it, or install those of its CUDA, for CUDA 12: pip install 'cuda-bindings<13'"
            ) from error
        if status != 0:
            self._check(function, status, asking)
        return values[0] if len(values) == 1 else tuple(values)

    def _answer(self, function: str, *arguments: Any) -> Any:
        """Status and values of a call. A status that the bindings have no name for counts as a lost GPU: nobody knows the rest.

        Raises:
            DeviceLostError: such a status.
        """
        try:
            return getattr(self.api, function)(*arguments)
        except ValueError as error:
            if "CUresult" not in str(error):
                raise
            self._lose(f"the driver answers {function} with a status that its bindings do not know ({_one_line(error)})", error)

    def _lose(self, what: str, cause: Exception | None = None) -> NoReturn:
        self.lost = (
            f"{self.name} stopped: {what}. Nothing more can be answered on it by this process: end it and start it again. "
            "If it stops again, look for Xid lines in the kernel's log, at temperature and at power, or say --device cpu."
        )
        raise DeviceLostError(self.lost) from cause

    def _check(self, function: str, status: Any, asking: str) -> None:
        if status == 0:
            return
        name = status.name
        what = f"{name} ({self._described(status)}) from {function}"
        if name == "CUDA_ERROR_OUT_OF_MEMORY":
            raise DeviceMemoryError(
                f"{self.name} has not enough memory for {asking or function}{self._memory_left()}. End other programs that use "
                "the GPU, build the engine for a smaller batch with `fundus-rt build --batch`, or say --device cpu."
            )
        if name in LOST:
            self._lose(what)
        if name in UNRECORDABLE:
            raise CaptureError(f"this work cannot be recorded as a CUDA graph on {self.name}: {what}")
        raise BackendUnavailableError(
            f"the CUDA driver refused a call on {self.name}: {what}. `fundus-rt doctor` shows whether driver, CUDA and GPU "
            "belong together."
        )

    def _described(self, status: Any) -> str:
        found, text = self.api.cuGetErrorString(status)
        return text.decode("utf-8", "replace") if found == 0 and text else "no description"

    def _memory_left(self) -> str:
        status, *sizes = self._answer("cuMemGetInfo")
        return f": {in_megabytes(sizes[0])} of {in_megabytes(sizes[1])} are free" if status == 0 else ""


def in_megabytes(count: int) -> str:
    """A number of bytes for a message: ``12.6 MB``."""
    return f"{count / 1e6:.1f} MB"


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
