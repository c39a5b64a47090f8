"""Which machine this is, as far as a TensorRT engine depends on it: GPU, CUDA of the driver, Jetson's release.

The driver is asked through NVIDIA's own bindings and no context is made on the GPU, so asking takes none of its memory.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fundus_rt.models.errors import BackendUnavailableError
from fundus_rt.runtime.nvidia.cuda_driver import import_driver

TEGRA_RELEASE = Path("/etc/nv_tegra_release")
"""Jetson's release; a container gets it from the host with ``--runtime nvidia``."""
DEVICE_TREE_MODEL = Path("/proc/device-tree/model")
CONTAINER_MARKS = (Path("/.dockerenv"), Path("/run/.containerenv"))
"""Files that Docker and Podman lay into every container."""

_ADVICE = {
    "CUDA_ERROR_NO_DEVICE": "the driver is there but shows no GPU: unset CUDA_VISIBLE_DEVICES if it hides one",
    "CUDA_ERROR_INVALID_DEVICE": "the driver shows no such GPU; unset CUDA_VISIBLE_DEVICES if it hides one",
    "CUDA_ERROR_INSUFFICIENT_DRIVER": "the driver is older than the CUDA libraries: update the driver",
    "CUDA_ERROR_STUB_LIBRARY": "libcuda.so is the toolkit's stub: take its stubs folder out of LD_LIBRARY_PATH",
    "CUDA_ERROR_DEVICE_UNAVAILABLE": "another process holds the GPU for itself alone (nvidia-smi -q -d COMPUTE shows the mode)",
    "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH": "the driver was updated while it was running: restart the machine",
    "CUDA_ERROR_COMPAT_NOT_SUPPORTED_ON_DEVICE": "a forward compatibility package that this GPU does not support comes first: "
    "take its compat folder out of LD_LIBRARY_PATH",
    "CUDA_ERROR_SYSTEM_NOT_READY": "the GPUs are not connected yet: start the service nvidia-fabricmanager",
    "CUDA_ERROR_OPERATING_SYSTEM": "this user may not open the GPU: add it to the groups video and render, and log in again",
    "CUDA_ERROR_NOT_PERMITTED": "this user may not open the GPU: add it to the groups video and render, and log in again",
    "CUDA_ERROR_UNKNOWN": "often after standby, or because this user may not open /dev/nvidia*: restart the machine, and look at "
    "the groups of the user",
}
"""What to do for each status of cuInit; meanings from the CUDA Driver API, CUresult."""


@dataclass(frozen=True)
class MachineIdentity:
    """What decides, beside the model and TensorRT, whether an engine may be used here."""

    gpu_name: str
    """As the driver gives it: ``Orin``, ``NVIDIA H200``."""
    compute_capability: str
    """Major and minor: ``8.7``."""
    cuda_driver: str
    """Newest CUDA that the driver supports: ``12.6``."""
    l4t: str
    """Jetson's release, ``36.4.3``; empty elsewhere."""
    integrated: bool
    """The GPU shares the processor's memory."""
    multiprocessors: int
    """How many the GPU has: 16 of an AGX Orin, 8 of an Orin NX or Nano, which all report the name ``Orin``."""
    board: str
    """Of a Jetson, from `jetson_board`; empty elsewhere."""


def machine_identity(
    device_index: int = 0, tegra_release: Path = TEGRA_RELEASE, board: Path = DEVICE_TREE_MODEL
) -> MachineIdentity:
    """Ask the driver for a GPU.

    Args:
        device_index: among the GPUs that CUDA shows, from 0.
        tegra_release: the file that says Jetson's release.
        board: the file that names a Jetson's board.

    Raises:
        BackendUnavailableError: cuda-python, the driver or the GPU is missing, or they do not fit together; the message has
            the cause and what to do.
    """
    api = import_driver()
    _ask(api, "cuInit", 0)
    version = int(_ask(api, "cuDriverGetVersion"))
    count = int(_ask(api, "cuDeviceGetCount"))
    if not 0 <= device_index < count:
        there = ", ".join(f"cuda:{index}" for index in range(count)) or "none"
        raise BackendUnavailableError(
            f"device cuda:{device_index} was asked for, but the GPUs of this machine are: {there}; "
            "unset CUDA_VISIBLE_DEVICES if it hides one"
        )
    device = _ask(api, "cuDeviceGet", device_index)

    def attribute(name: str) -> int:
        return int(_ask(api, "cuDeviceGetAttribute", getattr(api.CUdevice_attribute, f"CU_DEVICE_ATTRIBUTE_{name}"), device))

    name = bytes(_ask(api, "cuDeviceGetName", 256, device)).split(b"\0")[0].decode("utf-8", "replace")
    capability = f"{attribute('COMPUTE_CAPABILITY_MAJOR')}.{attribute('COMPUTE_CAPABILITY_MINOR')}"
    cuda = f"{version // 1000}.{version % 1000 // 10}"
    shared = bool(attribute("INTEGRATED"))
    processors = attribute("MULTIPROCESSOR_COUNT")
    return MachineIdentity(name, capability, cuda, l4t_release(tegra_release), shared, processors, jetson_board(board))


def l4t_release(path: Path = TEGRA_RELEASE) -> str:
    """Jetson's release: ``36.4.3`` from ``# R36 (release), REVISION: 4.3, …``.

    Empty where the file does not exist: no Jetson, or a container that does not see it. A first line of another form is given
    as it stands, for it still tells releases apart.
    """
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    first = lines[0].strip() if lines else ""
    found = re.match(r"#\s*R(\d+)\s*\([^)]*\),\s*REVISION:\s*([\d.]+)", first)
    return f"{found[1]}.{found[2].rstrip('.')}" if found else first


def jetson_board(path: Path = DEVICE_TREE_MODEL) -> str:
    """Name of the board from the device tree: ``NVIDIA Jetson Orin Nano Developer Kit``; empty elsewhere."""
    try:
        model = path.read_bytes().rstrip(b"\0").decode("utf-8", "replace").strip()
    except OSError:
        return ""
    return model if re.search("jetson|nvidia", model, re.IGNORECASE) else ""


def how_to_get_a_driver() -> str:
    """What to do where the driver's library is missing: by whether this is a Jetson, and whether a container."""
    jetson = bool(jetson_board() or l4t_release())
    if any(mark.exists() for mark in CONTAINER_MARKS):
        return f"start the container with `docker run {'--runtime nvidia' if jetson else '--gpus all'}`"
    return "flash or repair JetPack" if jetson else "install NVIDIA's driver of this GPU"


def _ask(api: Any, function: str, *arguments: Any) -> Any:
    """Call a function of the driver and return its value; every refusal becomes an error that says what to do."""
    try:
        status, *values = getattr(api, function)(*arguments)
    except Exception as error:  # the bindings have errors of their own kinds for libraries and functions that are not there
        reason = " ".join(str(error).split())[:200]
        # Seen with cuda-bindings 13.5: the first for a driver before CUDA 12.0, the second for a single function of a later CUDA.
        if re.search(r"Failed to get cu\w+|function \w+ is not found|undefined symbol", reason, re.IGNORECASE):
            raise BackendUnavailableError(
                f"NVIDIA's driver is too old for the installed cuda-bindings ({reason}); update the driver, "
                "or pip install the cuda-bindings of its CUDA: 'cuda-bindings<13', 'cuda-bindings<12'"
            ) from error
        raise BackendUnavailableError(
            f"the library of NVIDIA's driver, libcuda.so.1, cannot be loaded ({reason}); {how_to_get_a_driver()}"
        ) from error
    if status != 0:
        advice = _ADVICE.get(status.name, "look at `nvidia-smi` and at the lines with NVRM in the kernel's log")
        raise BackendUnavailableError(f"NVIDIA's driver refuses {function}: {status.name}{_described(api, status)}; {advice}")
    return values[0] if values else None


def _described(api: Any, status: Any) -> str:
    try:
        found, text = api.cuGetErrorString(status)
    except Exception:
        return ""
    return f" ({text.decode('utf-8', 'replace')})" if found == 0 and text else ""
