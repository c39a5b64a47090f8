"""Whether this installation can answer photographs, and on what: one finding for each part, with what to do."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from fundus_rt.runtime.device_check import doctor_machine, doctor_software
from fundus_rt.runtime.device_check.doctor_probes import LIMIT_S, probed
from fundus_rt.runtime.device_check.findings import WARNING, Finding

FLAVOURS = ("tensorrt", "tensorrt_rtx")


def examine(limit_s: float = LIMIT_S) -> Iterator[Finding]:
    """Look at everything, in turn; no check can stop the others, crash this process or hang it.

    Each library is imported in a process of its own with a time limit, so all together take at most about eight times
    `limit_s` seconds, and normally a few.

    Args:
        limit_s: seconds that one library may take.
    """
    yield _survived("Python", doctor_software.check_python)
    opencv = _probe("opencv", limit_s)
    yield _survived("NumPy", lambda: doctor_software.check_numpy(opencv))
    yield _survived("OpenCV", lambda: doctor_software.check_opencv(opencv, doctor_software.opencv_wheels()))
    yield _survived("Pillow", lambda: doctor_software.check_pillow(_probe("pillow", limit_s)))
    gpu = _probe("gpu", limit_s)
    flavours = {name: _probe(name, limit_s) for name in FLAVOURS if doctor_machine.is_installed(name)}
    has_tensorrt = any("version" in probe for probe in flavours.values())
    cuda = str(gpu.get("cuda_driver", ""))
    hardware = _survived_value(doctor_machine.nvidia_hardware, False)
    jetson = _survived_value(doctor_machine.is_jetson, False)
    ort = _probe("onnxruntime", limit_s)
    yield _survived(
        "ONNX Runtime",
        lambda: doctor_software.check_onnxruntime(ort, doctor_software.onnxruntime_wheels(), cuda, has_tensorrt, jetson),
    )
    yield _survived("DICOM", doctor_software.check_dicom)
    yield _survived("GPU", lambda: doctor_machine.check_gpu(gpu, hardware))
    yield _survived("CUDA", lambda: doctor_machine.check_cuda(gpu, _probe("nvrtc", limit_s)))
    yield _survived("TensorRT", lambda: doctor_machine.check_tensorrt(flavours, cuda))
    yield _survived("Jetson", doctor_machine.check_jetson)
    yield _survived("Power mode", doctor_machine.check_power)
    yield _survived("Memory", doctor_machine.check_memory)
    yield _survived("Engine cache", lambda: doctor_machine.check_cache(_probe("cache", limit_s), has_tensorrt))


def _probe(name: str, limit_s: float) -> dict[str, object]:
    try:
        return probed(name, limit_s)
    except Exception as error:
        return {"error": f"it could not be looked at ({error})"}


def _survived(name: str, check: Callable[[], Finding]) -> Finding:
    """A check's finding; a check that fails itself is a finding too."""
    try:
        return check()
    except Exception as error:
        return Finding(name, WARNING, f"could not be checked ({type(error).__name__}: {error})", "report this to the authors")


def _survived_value(ask: Callable[[], bool], otherwise: bool) -> bool:
    try:
        return ask()
    except Exception:
        return otherwise
