"""What `fundus_rt.runtime.device_check.doctor` asks in processes of their own: importing a broken library may end or hang one.

A probe yields names and values one after the other and each is written down at once, so what was learnt before a crash is kept.
"""

from __future__ import annotations

import ctypes
import json
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fundus_rt.runtime.device_check.findings import without_names
from fundus_rt.runtime.device_check.limited_process import run_limited, unnamed_file

Values = Iterator[tuple[str, Any]]

LIMIT_S = 60.0
"""Seconds for one probe; the first import of CUDA's libraries from an SD card takes many."""
_START = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from fundus_rt.runtime.device_check.doctor_probes import main; main(sys.argv[2], sys.argv[3])"
)


def probed(name: str, limit_s: float = LIMIT_S) -> dict[str, Any]:
    """Run a probe in a process of its own, with this process's search path.

    Returns:
        What the probe yielded; ``error`` when it raised, crashed or did not end in time; ``said``, its standard error.
    """
    with _answer_file() as (answer, handed_on):
        done = run_limited([sys.executable, "-c", _START, json.dumps(sys.path), name, str(answer)], limit_s, handed_on)
        values: dict[str, Any] = {}
        if answer.is_file():
            values = json.loads(answer.read_text(encoding="utf-8") or "{}")
    if reason := done.reason(limit_s):
        values.setdefault("error", f"{reason} {_last_line(done.errors)}".strip())
    return {**values, "said": done.errors}


@contextmanager
def _answer_file() -> Iterator[tuple[Path, tuple[int, ...]]]:
    """A file that a probe can write, and the numbers of open files that it needs for that."""
    try:
        folder = tempfile.TemporaryDirectory()
    except FileNotFoundError:  # nothing at all can be written
        with unnamed_file() as memory:
            yield Path(f"/proc/self/fd/{memory.fileno()}"), (memory.fileno(),)
        return
    with folder:
        yield Path(folder.name) / "answer.json", ()


def main(name: str, answer: str) -> None:
    """Run a probe in this process and write what it yields to the file `answer`."""
    values: dict[str, Any] = {}
    try:
        for key, value in PROBES[name]():
            values[key] = value
            Path(answer).write_text(json.dumps(values), encoding="utf-8")
    except BaseException as error:  # whatever a library raises on import is the finding
        text = " ".join(str(error).split())
        values["error"] = f"{type(error).__name__}: {text}" if type(error).__module__ == "builtins" else text
        Path(answer).write_text(json.dumps(values), encoding="utf-8")


def _opencv() -> Values:
    import numpy as np

    yield "numpy", np.__version__
    import cv2

    yield "file", getattr(cv2, "__file__", None) or ""
    yield "version", cv2.__version__
    # Arrays have to cross between the two libraries; importing alone does not show that they do.
    picture = np.full((4, 4, 3), 77, np.uint8)
    yield "works", bool((cv2.resize(picture, (2, 2), interpolation=cv2.INTER_AREA) == 77).all())


def _pillow() -> Values:
    import PIL
    from PIL import Image, features

    yield "version", PIL.__version__
    yield "jpeg", bool(features.check("jpg"))
    yield "works", Image.new("RGB", (4, 4), (1, 2, 3)).resize((2, 2)).getpixel((0, 0)) == (1, 2, 3)


def _onnxruntime() -> Values:
    import onnxruntime

    yield "file", getattr(onnxruntime, "__file__", None) or ""
    yield "version", onnxruntime.__version__
    yield "providers", list(onnxruntime.get_available_providers())
    yield "cuda", str(getattr(onnxruntime, "cuda_version", "") or "")
    from fundus_rt.models.registry import bundled_file, load_card

    session = onnxruntime.InferenceSession(str(bundled_file(load_card("acquisition"))), providers=["CPUExecutionProvider"])
    yield "works", [node.name for node in session.get_inputs()] == ["frames"]
    yield "cuda_problem", _cuda_provider_problem(onnxruntime)


def _cuda_provider_problem(ort: Any) -> str:
    """What keeps ONNX Runtime's CUDA provider from loading; empty when nothing does, or the wheel has none."""
    from fundus_rt.runtime.provider_causes import CUDNN, LIBRARIES, load_problem, loader_cause

    library = Path(ort.__file__).parent / "capi" / LIBRARIES["CUDAExecutionProvider"]
    if not library.is_file():
        return ""
    getattr(ort, "preload_dlls", lambda: None)()
    load_problem(str(library.with_name("libonnxruntime_providers_shared.so")), ctypes.RTLD_GLOBAL)
    if message := load_problem(str(library)):
        return loader_cause(message)
    missing = all(load_problem(name) for name in CUDNN)
    return f"cuDNN is missing ({CUDNN[0]}): pip install 'onnxruntime-gpu[cuda,cudnn]'" if missing else ""


def _gpu() -> Values:
    from fundus_rt.models.errors import FundusRtError
    from fundus_rt.runtime.nvidia.machine import machine_identity

    first = machine_identity(0)
    yield "name", first.gpu_name
    yield "compute_capability", first.compute_capability
    yield "cuda_driver", first.cuda_driver
    yield "integrated", first.integrated
    yield "multiprocessors", first.multiprocessors
    others: list[str] = []
    try:
        while True:
            others.append(machine_identity(len(others) + 1).gpu_name)
    except FundusRtError:
        yield "others", others
    from fundus_rt.runtime.nvidia.cuda_device import CudaDevice

    free, total = CudaDevice(0).memory()
    yield "memory_free", free
    yield "memory_total", total


def _nvrtc() -> Values:
    from fundus_rt.runtime.nvidia.cuda_driver import import_nvrtc

    status, major, minor = import_nvrtc().nvrtcVersion()
    if status != 0:
        raise RuntimeError(f"nvrtcVersion answers {status}")
    yield "version", f"{major}.{minor}"


def _tensorrt(flavour: str) -> Callable[[], Values]:
    def probe() -> Values:
        from fundus_rt.runtime.nvidia.tensorrt_library import import_tensorrt

        yield "version", import_tensorrt(flavour).version

    return probe


def _cache() -> Values:
    from fundus_rt.models.cache_folder import why_no_new_file, why_untrusted
    from fundus_rt.models.engine_cache import EngineCache

    cache = EngineCache()
    yield "limit", cache.limit_bytes
    refused: list[list[str]] = []
    for folder in cache.folders:
        if problem := why_no_new_file(folder):
            refused.append([str(folder), problem])
            continue
        yield "folder", str(folder)
        yield "untrusted", why_untrusted(folder) or ""
        free = shutil.disk_usage(next(path for path in (folder, *folder.parents) if path.is_dir())).free
        yield "disk_free", free
        break
    yield "refused", refused
    yield "engines", cache.count()
    yield "size", cache.size()


PROBES: dict[str, Callable[[], Values]] = {
    "opencv": _opencv,
    "pillow": _pillow,
    "onnxruntime": _onnxruntime,
    "gpu": _gpu,
    "nvrtc": _nvrtc,
    "tensorrt": _tensorrt("tensorrt"),
    "tensorrt_rtx": _tensorrt("tensorrt_rtx"),
    "cache": _cache,
}


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return f"({without_names(lines[-1])[:200]})" if lines else ""
