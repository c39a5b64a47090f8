"""Why ONNX Runtime does not compute on the GPU that was asked for: found by looking, since ONNX Runtime itself goes on silently.

Seen with onnxruntime-gpu 1.31 on a machine without a GPU: a session that asks for CUDA opens, prints to standard error and
answers on the CPU; one that asks for TensorRT does so after printing to standard output. What is missing is only known to the
system's loader, so the provider's own shared library is loaded here and the loader's message read.
"""

from __future__ import annotations

import ctypes
import re
from collections.abc import Callable, Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from fundus_rt.runtime.device_check.doctor_software import onnxruntime_wheels
from fundus_rt.runtime.device_check.installed_wheels import Wheel, in_one_folder
from fundus_rt.runtime.nvidia.machine import how_to_get_a_driver
from fundus_rt.runtime.onnx_providers import PLUGIN_PROVIDER, PLUGIN_WHEEL, plugin_library

LIBRARIES = {
    "CUDAExecutionProvider": "libonnxruntime_providers_cuda.so",
    "TensorrtExecutionProvider": "libonnxruntime_providers_tensorrt.so",
}
"""The file, beside ONNX Runtime's own, that holds a provider."""
CUDNN = ("libcudnn.so.9", "libcudnn.so.8")
"""Needed for convolutions; recent wheels are not linked with it and only look for it when the first one is met."""
_MAJORS = range(8, 21)


def why_not_granted(ort: Any, provider: str, index: int, said: str = "") -> str:
    """What stands between this process and a provider of ONNX Runtime, in words, with what to do about it.

    Args:
        ort: the module ``onnxruntime``.
        provider: ONNX Runtime's name of it, ``CUDAExecutionProvider``.
        index: of the GPU.
        said: ONNX Runtime's own message, for the case that nothing is found.
    """
    looks: tuple[Callable[[], str], ...] = (
        _several_wheels,
        lambda: _wheel_without(ort, provider),
        lambda: _library_problem(ort, provider),
        lambda: _driver_problem(index, str(getattr(ort, "cuda_version", ""))),
        lambda: _cudnn_problem(provider),
    )
    found = next((cause for look in looks if (cause := look())), "")
    if found:
        return found
    own = f"ONNX Runtime says: {said}. " if said else "ONNX Runtime says nothing about it. "
    return own + "Its wheel, its libraries, the driver and the GPU were looked at and seem right; run `fundus-rt doctor`."


def reinstall_command(wheels: Sequence[Wheel]) -> str:
    """The commands that leave one whole ONNX Runtime with CUDA.

    Uninstalling only one of two takes files away that both share: what is left can be imported and has nothing in it.
    """
    names = " ".join(sorted({"onnxruntime", "onnxruntime-gpu", *(wheel.name for wheel in wheels)}))
    return f"pip uninstall -y {names} && pip install 'fundus-rt[gpu]'"


def _several_wheels() -> str:
    wheels = in_one_folder(onnxruntime_wheels())
    if not wheels:
        return ""
    listing = " and ".join(map(str, wheels))
    return f"{listing} are installed, and the one installed last overwrote files of the other. {reinstall_command(wheels)}"


def _wheel_without(ort: Any, provider: str) -> str:
    if provider == PLUGIN_PROVIDER:
        old = not hasattr(ort, "register_execution_provider_library")
        return f"ONNX Runtime {ort.__version__} takes no plug-ins; it needs 1.24 or later" if old else ""
    available = ort.get_available_providers()
    if provider in available:
        return ""
    wheels = onnxruntime_wheels()
    listing = ", ".join(map(str, wheels)) or f"ONNX Runtime {ort.__version__}"
    return f"{listing} was built without it (it offers only {', '.join(available)}). {reinstall_command(wheels)}"


def _library_problem(ort: Any, provider: str) -> str:
    """What the loader says of the provider's shared library; empty where it loads or there is none to look at."""
    try:
        path = plugin_library() if provider == PLUGIN_PROVIDER else Path(ort.__file__).parent / "capi" / LIBRARIES[provider]
    except (ImportError, OSError) as error:
        return f"the plug-in is not installed or not whole ({error}): pip install {PLUGIN_WHEEL}"
    if not path.is_file():
        return ""
    load_problem(str(path.with_name("libonnxruntime_providers_shared.so")), ctypes.RTLD_GLOBAL)  # ONNX Runtime does so first
    message = load_problem(str(path))
    return loader_cause(message) if message else ""


def loader_cause(message: str) -> str:
    """A loader's message about a provider's library, turned into what to do.

    Args:
        message: for example ``libcublasLt.so.13: cannot open shared object file: No such file or directory``.
    """
    missing = re.match(r"(?P<stem>lib[\w+-]+)\.so\.(?P<major>\d+)[.\d]*: cannot open", message)
    if not missing:
        return f"the provider's library does not load: {Path(message.split(':')[0]).name}:{message.partition(':')[2]}"
    stem, major = missing["stem"], int(missing["major"])
    if stem in ("libcuda", "libnvidia-ml"):
        return f"there is no NVIDIA driver here ({stem}.so.{major} is missing); {how_to_get_a_driver()}"
    other = next((n for n in _MAJORS if n != major and not load_problem(f"{stem}.so.{n}")), None)
    if stem.startswith(("libnvinfer", "libnvonnxparser")):
        here = f"TensorRT {other} is installed" if other else "there is none"
        return (
            f"this ONNX Runtime needs TensorRT {major}, and {here}. pip install 'tensorrt=={major}.*', or say --backend tensorrt"
        )
    if stem.startswith("libcudnn"):
        here = f", and cuDNN {other} is installed" if other else ", and there is none"
        return f"this ONNX Runtime needs cuDNN {major}{here}. {_libraries_command()}"
    in_pip = _cuda_majors_of_pip() - {major}
    if stem in ("libcublas", "libcublasLt", "libcudart") and (other or in_pip):
        return (
            f"this ONNX Runtime was built for CUDA {major} and CUDA {other or max(in_pip)} is installed ({stem}.so.{major} is "
            f"missing). {_libraries_command(major)}, or install an onnxruntime-gpu built for CUDA {other or max(in_pip)}"
        )
    return f"{stem}.so.{major} of NVIDIA's CUDA is missing. {_libraries_command(major if 'cub' in stem or 'rt' in stem else 0)}"


def _libraries_command(major: int = 0) -> str:
    """How to get CUDA's libraries; the wheel's own extra leaves cuBLAS out (seen in 1.31.1)."""
    cublas = "nvidia-cublas-cu12" if major == 12 else "nvidia-cublas"
    return f"pip install 'onnxruntime-gpu[cuda,cudnn]' {cublas}"


def _driver_problem(index: int, built_for: str) -> str:
    """What NVIDIA's driver says when it is asked for its version and its GPUs."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError as error:
        return loader_cause(str(error))
    status = driver.cuInit(0)
    if status:
        text = ctypes.c_char_p()
        driver.cuGetErrorString(status, ctypes.byref(text))
        return (
            f"NVIDIA's driver does not start: {(text.value or b'unknown').decode()} (code {status}). "
            "`nvidia-smi` should list the GPU; a container needs `docker run --gpus all`, on a Jetson `--runtime nvidia`"
        )
    version, count = ctypes.c_int(), ctypes.c_int()
    driver.cuDriverGetVersion(ctypes.byref(version))
    driver.cuDeviceGetCount(ctypes.byref(count))
    supports, wanted = version.value // 1000, built_for.split(".")[0]
    if wanted.isdigit() and supports < int(wanted):
        return (
            f"NVIDIA's driver supports CUDA up to {supports}.{version.value % 1000 // 10}, and this ONNX Runtime was built for "
            f"CUDA {built_for}. Install a newer driver, or an onnxruntime-gpu built for CUDA {supports}"
        )
    if index >= count.value:
        return f"GPU {index} was asked for, and the driver has {count.value}, counted from 0 (CUDA_VISIBLE_DEVICES may hide some)"
    return ""


def _cudnn_problem(provider: str) -> str:
    if provider != "CUDAExecutionProvider" or not all(load_problem(name) for name in CUDNN):
        return ""
    return f"cuDNN is missing ({CUDNN[0]}), and convolutions need it. {_libraries_command()}"


def load_problem(name: str, mode: int = ctypes.DEFAULT_MODE) -> str:
    """The system loader's own message about a shared library; empty where it loads."""
    try:
        ctypes.CDLL(name, mode=mode)
    except OSError as error:
        return str(error)
    return ""


def _cuda_majors_of_pip() -> set[int]:
    """Major versions of CUDA whose libraries pip installed."""
    found = {int(name.rpartition("-cu")[2]) for name, _ in _distributions() if re.match(r"nvidia-[a-z-]+-cu\d+$", name)}
    return found | {int(version.split(".")[0]) for name, version in _distributions() if name == "nvidia-cublas"}


def _distributions() -> Iterator[tuple[str, str]]:
    for distribution in metadata.distributions():
        name = distribution.metadata["Name"]
        if name:
            yield str(name).lower().replace("_", "-"), distribution.version
