"""Memory for a GPU: on the device, and page-locked on the host."""

from __future__ import annotations

import math
import threading
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from fundus_rt.models.errors import FundusRtError
from fundus_rt.runtime.nvidia.cuda_driver import CudaContext, in_megabytes


class DeviceBuffer:
    """Memory on the device. Freed by `free`, or with the object."""

    def __init__(self, context: CudaContext, nbytes: int) -> None:
        """Allocate.

        Raises:
            ValueError: `nbytes` is not above 0.
            DeviceMemoryError: not enough memory on the device.
        """
        self.address = 0
        if nbytes <= 0:
            raise ValueError(f"got a device buffer of {nbytes} bytes, expected 1 or more")
        self._context = context
        self.nbytes = nbytes
        self.address = int(context.call("cuMemAlloc", nbytes, asking=f"a buffer of {in_megabytes(nbytes)}"))
        context.retain()

    def free(self) -> None:
        """Give the memory back; nothing happens the second time. No work that uses it may still be under way."""
        address, self.address = self.address, 0
        if address:
            try:
                self._context.dispose("cuMemFree", address)
            finally:
                self._context.release()

    def __del__(self) -> None:
        quietly(self.free)


class PinnedMemory:
    """Page-locked host memory that the device reads and writes. It lives as long as an array that looks at it."""

    def __init__(self, context: CudaContext, nbytes: int) -> None:
        """Allocate; see `DeviceBuffer`."""
        self.address = 0
        self.device_address = 0
        if nbytes <= 0:
            raise ValueError(f"got {nbytes} bytes of pinned memory, expected 1 or more")
        self._context = context
        self._lock = threading.Lock()
        self.nbytes = nbytes
        flags = context.api.CU_MEMHOSTALLOC_PORTABLE | context.api.CU_MEMHOSTALLOC_DEVICEMAP
        asking = f"{in_megabytes(nbytes)} of page-locked host memory"
        self.address = int(context.call("cuMemHostAlloc", nbytes, flags, asking=asking))
        context.retain()
        try:
            self.device_address = int(context.call("cuMemHostGetDevicePointer", self.address, 0))
        except FundusRtError:
            self.free()
            raise
        self.__array_interface__: dict[str, Any] = {
            "shape": (nbytes,),
            "typestr": "|u1",
            "data": (self.address, False),
            "version": 3,
        }

    def contains(self, address: int, nbytes: int) -> bool:
        """Whether `nbytes` from a host `address` on lie in this memory."""
        return self.address <= address and address + nbytes <= self.address + self.nbytes

    def free(self) -> None:
        """Give the memory back; only for one that no array looks at."""
        with self._lock:
            address, self.address = self.address, 0
        if address:
            try:
                self._context.dispose("cuMemFreeHost", address)
            finally:
                self._context.release()

    def __del__(self) -> None:
        quietly(self.free)


class PinnedArray:
    """A NumPy array in page-locked memory, with its addresses for the host and for the device.

    The memory is given back when this object has been freed and the last array that looks at it is gone, so an array that was
    handed out stays valid.
    """

    def __init__(self, context: CudaContext, shape: tuple[int, ...], dtype: DTypeLike) -> None:
        """Allocate an array of zeros.

        Raises:
            DeviceMemoryError: the driver can lock no more host memory.
        """
        kind = np.dtype(dtype)
        memory = PinnedMemory(context, math.prod(shape) * kind.itemsize)
        self.memory: PinnedMemory | None = memory
        self.nbytes = memory.nbytes
        self.address = memory.address
        """On the host."""
        self.device_address = memory.device_address
        """The same memory as the device addresses it."""
        self._array: NDArray[Any] | None = np.asarray(memory).view(kind).reshape(shape)
        self._array.fill(0)

    @property
    def array(self) -> NDArray[Any]:
        """The array.

        Raises:
            ValueError: `free` was called.
        """
        if self._array is None:
            raise ValueError("this pinned array was freed; allocate a new one")
        return self._array

    def free(self) -> None:
        """Let go of the array; its memory goes with the last array that looks at it."""
        self._array = None
        self.memory = None
        self.address = self.device_address = 0


def quietly(release: Any) -> None:
    """For `__del__`, where an error can reach nobody; at the end of the process the modules may be gone already."""
    try:
        release()
    except (FundusRtError, AttributeError, TypeError):
        return
