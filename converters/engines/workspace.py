"""How much memory a build may use for trying out kernels: what is there, less what the build itself needs."""

from __future__ import annotations

from pathlib import Path

from fundus_rt.models.errors import DeviceMemoryError
from fundus_rt.models.memory import available_memory

BUILDER_BYTES_PER_MODEL_BYTE = 5
"""Memory that the builder takes beside the workspace, for each byte of the ONNX file: 1.8 GB for a Swin-B of 350 MB on
TensorRT-RTX 1.7.1, rounded up."""
MARGIN = 512 << 20
"""Bytes that are left to the rest of the system."""
LEAST = 64 << 20
"""Bytes below which few convolutions find a fast kernel, and some find none."""


def workspace_limit(model_bytes: int, free_system: int, free_gpu: int | None = None, integrated: bool = False) -> int:
    """Bytes that the library may use as workspace.

    On a GPU that shares the system's memory (a Jetson) the builder's own memory comes out of the same pool: without a limit
    the system ends the build there. A GPU with its own memory keeps the weights beside the workspace.

    Args:
        model_bytes: size of the ONNX file.
        free_system: bytes of system memory that can be had without swapping, see `free_system_memory`.
        free_gpu: bytes that the GPU's driver calls free; None where there is no GPU.
        integrated: whether the GPU shares the system's memory.

    Raises:
        DeviceMemoryError: less than 64 MiB would be left.
    """
    own = BUILDER_BYTES_PER_MODEL_BYTE * model_bytes + MARGIN
    if free_gpu is None or integrated:
        limit = min(free_system, free_system if free_gpu is None else free_gpu) - own
        where = "of the memory that GPU and system share" if integrated else "of the system's memory"
        free = limit + own
    else:
        limit, free, where = free_gpu - 2 * model_bytes - MARGIN, free_gpu, "of the GPU's memory"
        own = 2 * model_bytes + MARGIN
    if limit < LEAST:
        raise DeviceMemoryError(
            f"{free / 2**20:.0f} MiB {where} are free, and a build of this model takes about {own / 2**20:.0f} MiB beside a "
            f"workspace of at least {LEAST / 2**20:.0f} MiB. Close other programs, add swap space, or take the risk with "
            f"--workspace {LEAST >> 20}"
        )
    return limit


def free_system_memory(root: Path = Path("/")) -> int:
    """Bytes that this process can take without swapping, see `fundus_rt.models.memory.available_memory`.

    Raises:
        DeviceMemoryError: the system does not say.
    """
    free = available_memory(root)
    if free is None:
        raise DeviceMemoryError("the system does not say how much memory is free; say it with --workspace MB")
    return free
