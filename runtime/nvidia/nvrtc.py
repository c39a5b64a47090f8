"""CUDA source to machine code at run time, with NVIDIA's NVRTC. Needs no GPU."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fundus_rt.models.errors import BackendUnavailableError
from fundus_rt.runtime.nvidia.cuda_driver import import_nvrtc


def compile_cuda(source: str, name: str, compute_capability: tuple[int, int], options: Sequence[str] = ()) -> bytes:
    """Compile CUDA source for a GPU.

    Args:
        source: CUDA C++ text.
        name: the file name that the compiler's messages use.
        compute_capability: major and minor, ``(8, 7)``.
        options: further options of NVRTC, ``--fmad=false``.

    Returns:
        A cubin for this very architecture, or, where this NVRTC is older than the GPU, PTX of the newest architecture that it
        knows, which the driver finishes when the module is loaded.

    Raises:
        BackendUnavailableError: no NVRTC, one that knows no architecture up to this GPU's, or source that does not compile; the
            compiler's log is in the message.
    """
    nvrtc = import_nvrtc()
    try:
        architecture, machine_code = _architecture(nvrtc, compute_capability)
        program = _call(nvrtc, "nvrtcCreateProgram", source.encode(), name.encode(), 0, [], [])
    except (RuntimeError, OSError) as error:  # the bindings' own errors where libnvrtc is not there
        reason = " ".join(str(error).split())[:200]
        raise BackendUnavailableError(
            f"NVIDIA's run-time compiler cannot be loaded ({reason}); install it: pip install nvidia-cuda-nvrtc "
            "(CUDA 12: nvidia-cuda-nvrtc-cu12), or the CUDA toolkit of this machine"
        ) from error
    try:
        every = [f"--gpu-architecture={architecture}", *options]
        status = nvrtc.nvrtcCompileProgram(program, len(every), [option.encode() for option in every])[0]
        if status != 0:
            log = _text(nvrtc, "nvrtcGetProgramLogSize", "nvrtcGetProgramLog", program)
            raise BackendUnavailableError(
                f"{name} does not compile for {architecture} with NVRTC {'.'.join(map(str, _version(nvrtc)))}:\n"
                f"{log.rstrip(bytes(1)).decode('utf-8', 'replace').strip()}"
            )
        kind = "CUBIN" if machine_code else "PTX"
        return _text(nvrtc, f"nvrtcGet{kind}Size", f"nvrtcGet{kind}", program)
    finally:
        nvrtc.nvrtcDestroyProgram(program)


def _architecture(nvrtc: Any, wanted: tuple[int, int]) -> tuple[str, bool]:
    """The architecture to compile for, and whether to machine code (else to PTX)."""
    number = wanted[0] * 10 + wanted[1]
    known = [int(value) for value in _call(nvrtc, "nvrtcGetSupportedArchs")]
    if number in known:
        return f"sm_{number}", True
    older = [value for value in known if value < number]
    if not older:
        raise BackendUnavailableError(
            f"NVRTC {'.'.join(map(str, _version(nvrtc)))} compiles for compute capability {known[0] / 10} and later, "
            f"this GPU has {wanted[0]}.{wanted[1]}; install an older CUDA's NVRTC"
        )
    return f"compute_{max(older)}", False


def _version(nvrtc: Any) -> tuple[int, int]:
    major, minor = _call(nvrtc, "nvrtcVersion")
    return int(major), int(minor)


def _text(nvrtc: Any, size_function: str, function: str, program: Any) -> bytes:
    content = bytes(bytearray(int(_call(nvrtc, size_function, program))))
    _call(nvrtc, function, program, content)  # the bindings write into the bytes that they are given
    return content


def _call(nvrtc: Any, function: str, *arguments: Any) -> Any:
    status, *values = getattr(nvrtc, function)(*arguments)
    if status != 0:
        raise BackendUnavailableError(f"NVRTC refused {function}: {status.name}; reinstall NVRTC of your CUDA version")
    return values[0] if len(values) == 1 else tuple(values)
