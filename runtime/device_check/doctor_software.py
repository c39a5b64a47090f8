"""Checks of the libraries: Python, NumPy, OpenCV, Pillow, ONNX Runtime, and which of several wheels of one library wins."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Sequence
from typing import Any

from fundus_rt.runtime.device_check.findings import ABSENT, FAULT, OK, WARNING, Finding, without_names
from fundus_rt.runtime.device_check.installed_wheels import (
    Wheel,
    distribution_version,
    imported_from,
    in_one_folder,
    major,
    wheels_with,
)

Probe = dict[str, Any]
"""What `fundus_rt.runtime.device_check.doctor_probes.probed` gave."""

_FOR_CUDA_12 = "'onnxruntime-gpu<1.27'"
"""Wheels on the public index are built for CUDA 13 from 1.27 on."""
_OLD_NUMPY_ABI = re.compile(r"_ARRAY_API|numpy\.core\.multiarray failed|compiled using NumPy 1|compiled against ABI version")
_MISSING_LIBRARY = re.compile(r"(lib[\w+.-]+\.so[.\d]*): cannot open shared object file")


def opencv_wheels() -> list[Wheel]:
    """Installed wheels that bring ``cv2``."""
    return wheels_with("cv2", r"opencv", r"cv2.*\.(so|pyd)")


def onnxruntime_wheels() -> list[Wheel]:
    """Installed wheels that bring ``onnxruntime``."""
    return wheels_with("onnxruntime", r"(onnxruntime|ort)\b", r"onnxruntime_pybind11_state.*\.(so|pyd)")


def check_python() -> Finding:
    """Python, processor, cores."""
    version = platform.python_version()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    values = {"version": version, "machine": platform.machine(), "system": platform.system(), "cores": cores}
    found = f"{version}, {platform.system()} on {platform.machine()}, {cores} core(s)"
    return Finding("Python", OK, found, "", values)


def check_numpy(opencv: Probe) -> Finding:
    """NumPy, as the probe ``opencv`` saw it."""
    version = str(opencv.get("numpy", ""))
    if not version:
        return Finding("NumPy", FAULT, f"does not load: {opencv.get('error')}", "pip install --force-reinstall numpy")
    if tuple(int(number) for number in re.findall(r"\d+", version)[:2]) < (1, 26):
        return Finding(
            "NumPy", WARNING, version, "NumPy 1.26 or later is needed: pip install 'numpy>=1.26'", {"version": version}
        )
    return Finding("NumPy", OK, version, "", {"version": version})


def check_opencv(opencv: Probe, wheels: Sequence[Wheel]) -> Finding:
    """OpenCV: whether it works with this NumPy, and whose it is.

    Args:
        opencv: the probe ``opencv``.
        wheels: from `opencv_wheels`.
    """
    values = {"version": opencv.get("version", ""), **_described(wheels, opencv)}
    contrib = "contrib-" if any("contrib" in wheel.name for wheel in wheels) else ""
    one = f"opencv-{contrib}python-headless"
    if shared := _shared("OpenCV", opencv, wheels, one, values):
        return shared
    if opencv.get("works"):
        return Finding("OpenCV", OK, f"{opencv['version']}, {_origin(opencv, wheels)}", "", values)
    error = str(opencv.get("error", "pictures are not resized as they should be"))
    numpy = str(opencv.get("numpy", ""))
    if not numpy:
        return Finding("OpenCV", FAULT, "not looked at, for NumPy does not load", "", values)
    names = " ".join(wheel.name for wheel in wheels)
    repair = f"pip uninstall -y {names} && pip install {one}" if wheels else f"pip install {one}"
    if not numpy.startswith("1.") and _OLD_NUMPY_ABI.search(error + str(opencv.get("said", ""))):
        found = f"built for NumPy 1, as JetPack's is, and cannot be used with NumPy {numpy}"
        return Finding("OpenCV", FAULT, found, f"pip install 'numpy<2', or a newer OpenCV: {repair}", values)
    if not wheels and "No module named 'cv2'" in error:
        return Finding("OpenCV", FAULT, "not installed", f"{repair}; on a Jetson it is part of JetPack", values)
    if (missing := _MISSING_LIBRARY.search(error)) and not any("headless" in wheel.name for wheel in wheels):
        return Finding("OpenCV", FAULT, f"does not load, for {missing[1]} is missing (windows need it)", repair, values)
    return Finding("OpenCV", FAULT, f"does not load: {_short(error)}{_mutilated(wheels)}", repair, values)


def check_pillow(pillow: Probe) -> Finding:
    """Pillow, and whether it reads JPEG."""
    if not pillow.get("works"):
        error = _short(str(pillow.get("error", "it does not resize as it should")))
        return Finding("Pillow", FAULT, f"does not load: {error}", "pip install --force-reinstall Pillow")
    version = {"version": pillow["version"]}
    if not pillow.get("jpeg"):
        return Finding("Pillow", FAULT, f"{pillow['version']}, without JPEG", "pip install --force-reinstall Pillow", version)
    return Finding("Pillow", OK, pillow["version"], "", version)


def check_onnxruntime(ort: Probe, wheels: Sequence[Wheel], cuda_driver: str, has_tensorrt: bool, jetson: bool) -> Finding:
    """ONNX Runtime: whose it is, what it offers, and whether it opens a model.

    Args:
        ort: the probe ``onnxruntime``.
        wheels: from `onnxruntime_wheels`.
        cuda_driver: newest CUDA that the driver supports, ``12.6``; empty where CUDA shows no GPU.
        has_tensorrt: TensorRT is installed.
        jetson: this is a Jetson, where the GPU is TensorRT's.
    """
    name = "ONNX Runtime"
    on_gpu = bool(cuda_driver) and not jetson
    one = (_FOR_CUDA_12 if major(cuda_driver) == 12 else "onnxruntime-gpu") if on_gpu else "onnxruntime"
    values = {key: ort[key] for key in ("version", "providers", "cuda") if key in ort} | _described(wheels, ort)
    if shared := _shared(name, ort, wheels, one, values):
        return shared
    if not ort.get("works"):
        error = str(ort.get("error", "the model that comes with this package has other inputs"))
        if not wheels and "No module named 'onnxruntime'" in error:
            return Finding(name, FAULT, "not installed", f"pip install {one}", values)
        repair = f"pip uninstall -y {' '.join([wheel.name for wheel in wheels] or ['onnxruntime'])} && pip install {one}"
        return Finding(name, FAULT, f"does not open a model: {_short(error)}{_mutilated(wheels)}", repair, values)
    providers = [str(provider).removesuffix("ExecutionProvider") for provider in ort["providers"]]
    built_for = f", built for CUDA {ort['cuda']}" if ort.get("cuda") else ""
    found = f"{ort['version']}, {_origin(ort, wheels)}, offers {', '.join(providers)}{built_for}"
    if on_gpu and major(str(ort.get("cuda"))) > major(cuda_driver):
        advice = f"update the driver, or pip install {one}"
        return Finding(name, WARNING, f"{found}, and the driver supports CUDA up to {cuda_driver}", advice, values)
    if on_gpu and ort.get("cuda_problem"):
        cause, _, advice = str(ort["cuda_problem"]).rpartition(". ")
        cause, advice = (cause, advice) if cause else (advice, "say --device cpu, or --backend tensorrt")
        return Finding(name, WARNING, f"{found}; its CUDA provider does not load: {cause}", advice, values)
    if on_gpu and not has_tensorrt and "CUDA" not in providers:
        names = " ".join(wheel.name for wheel in wheels) or "onnxruntime"
        advice = f"pip uninstall -y {names} && pip install {one}"
        return Finding(name, WARNING, f"{found}; it leaves the GPU unused", advice, values)
    return Finding(name, OK, found, "", values)


def check_dicom() -> Finding:
    """What reading DICOM needs."""
    version = distribution_version("pydicom")
    if not version:
        return Finding("DICOM", ABSENT, "DICOM files cannot be read", "where they are wanted: pip install 'fundus-rt[dicom]'")
    plugins = {name: distribution_version(name) for name in ("pylibjpeg", "pylibjpeg-libjpeg", "pylibjpeg-openjpeg")}
    missing = [name for name, found in plugins.items() if not found]
    values = {"pydicom": version, **plugins}
    if missing:
        found = f"pydicom {version} without {', '.join(missing)}: some compressed files cannot be read"
        return Finding("DICOM", OK, found, "where they are wanted: pip install 'fundus-rt[dicom]'", values)
    return Finding("DICOM", OK, f"pydicom {version} with pylibjpeg {plugins['pylibjpeg']}", "", values)


def _shared(name: str, probe: Probe, wheels: Sequence[Wheel], one: str, values: dict[str, Any]) -> Finding | None:
    """The fault of several wheels in one folder, with the commands that leave one whole."""
    together = in_one_folder(wheels)
    if not together:
        return None
    winner = imported_from(wheels, str(probe.get("file", "")))
    if winner and probe.get("works"):
        wins = f"the files of {winner.name} are the ones imported"
    elif probe.get("works"):
        wins = f"what is imported is {probe['version']}, a mixture of their files"
    else:
        wins = f"what is left of them does not load ({_short(str(probe.get('error')))})"
    found = f"{' and '.join(map(str, together))} overwrite one another in one folder; {wins}"
    repair = f"pip uninstall -y {' '.join(wheel.name for wheel in together)} && pip install {one}"
    return Finding(name, FAULT, found, repair, values)


def _origin(probe: Probe, wheels: Sequence[Wheel]) -> str:
    """Whose files are imported, and what else is installed."""
    winner = imported_from(wheels, str(probe.get("file", "")))
    others = ", ".join(str(wheel) for wheel in wheels if wheel != winner)
    if winner is None:
        whose = f"without a wheel, from {probe.get('file')}"
    else:
        whose = winner.name if winner.version.startswith(str(probe["version"])) else str(winner)
    return f"{whose} (comes before {others})" if others else whose


def _mutilated(wheels: Sequence[Wheel]) -> str:
    spoilt = " and ".join(str(wheel) for wheel in wheels if not wheel.own_files)
    return f" (files of {spoilt} are missing or another's, as after another wheel of it was uninstalled)" if spoilt else ""


def _described(wheels: Sequence[Wheel], probe: Probe) -> dict[str, Any]:
    winner = imported_from(wheels, str(probe.get("file", "")))
    return {
        "wheels": {wheel.name: wheel.version for wheel in wheels},
        "imported": winner.name if winner else probe.get("file", ""),
    }


def _short(error: str) -> str:
    error = without_names(error)  # a name that is cut in two would not be recognised later
    return error if len(error) <= 200 else f"{error[:200]} …"
