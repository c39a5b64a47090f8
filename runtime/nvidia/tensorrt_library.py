"""Finding NVIDIA's TensorRT: which of its two forms is installed, and which version it says it is."""

from __future__ import annotations

import ctypes
import importlib
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fundus_rt.models.errors import BackendUnavailableError

FLAVOURS = ("tensorrt", "tensorrt_rtx")
"""Python packages that offer the interface, in the order in which they are looked for."""
_LIBRARIES = {"tensorrt": r"libnvinfer\.so[.\d]*", "tensorrt_rtx": r"(libnvinfer|libtensorrt_rtx)\.so[.\d]*"}
_INSTALL = {
    "tensorrt": "on a Jetson it is part of JetPack (sudo apt-get install tensorrt python3-libnvinfer; a virtual environment "
    "needs --system-site-packages), elsewhere pip install tensorrt",
    "tensorrt_rtx": "pip install tensorrt_rtx, from NVIDIA's TensorRT for RTX download",
}


@dataclass(frozen=True)
class TensorRTLibrary:
    """NVIDIA's library as this process has it."""

    module: Any
    """The Python module with ``Builder``, ``Runtime`` and the rest."""
    flavour: str
    """``tensorrt`` or ``tensorrt_rtx``."""
    version: str
    """In full, as the library itself says at run time: ``10.3.0.26``."""

    @property
    def major_minor(self) -> tuple[int, int]:
        """The first two numbers of the version."""
        numbers = [int(part) for part in re.findall(r"\d+", self.version)[:2]]
        return (numbers[0], numbers[1]) if len(numbers) == 2 else (0, 0)


def import_tensorrt(flavour: str = "auto") -> TensorRTLibrary:
    """Load TensorRT.

    Args:
        flavour: ``tensorrt``, ``tensorrt_rtx``, or ``auto`` for the first of these that is installed.

    Raises:
        BackendUnavailableError: it is not installed or does not load; the message says what was tried and what to install.
    """
    if flavour not in ("auto", *FLAVOURS):
        raise BackendUnavailableError(f"TensorRT flavour {flavour!r} is not known, expected auto, {' or '.join(FLAVOURS)}")
    problems = []
    for name in FLAVOURS if flavour == "auto" else (flavour,):
        try:
            module = importlib.import_module(name)
        except ImportError as error:  # of the package, or of the libraries below it
            problems.append(f"{name}: {str(error).splitlines()[0] if str(error) else 'cannot be imported'}")
            continue
        if not hasattr(module, "Builder") or not hasattr(module, "Runtime"):
            problems.append(f"{name}: what is installed under this name has no Builder and no Runtime")
            continue
        return TensorRTLibrary(module, name, _version(module, name))
    wanted = FLAVOURS if flavour == "auto" else (flavour,)
    raise BackendUnavailableError(
        "TensorRT cannot be loaded (" + "; ".join(problems) + "). To install it: " + "; or ".join(_INSTALL[n] for n in wanted)
    )


def _version(module: Any, flavour: str) -> str:
    """The loaded library's own four numbers; the Python package's where the library cannot be asked.

    The Python package of JetPack says ``10.3.0`` where the library is 10.3.0.30, and engines of different last numbers do
    not fit one another, so the library itself is asked (``getInferLibMajorVersion`` and so on, TensorRT 10 and later).
    """
    stated = str(getattr(module, "__version__", "unknown"))
    for path in _loaded(_LIBRARIES[flavour]):
        try:
            library = ctypes.CDLL(path, mode=getattr(os, "RTLD_NOLOAD", 0) | getattr(os, "RTLD_LAZY", 0))
            parts = [getattr(library, f"getInferLib{part}Version")() for part in ("Major", "Minor", "Patch", "Build")]
        except (OSError, AttributeError):
            continue
        return ".".join(map(str, parts))
    return stated


def _loaded(pattern: str) -> list[str]:
    """Paths of the shared libraries in this process whose file name has the pattern; empty where the system cannot say."""
    try:
        lines = Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    paths = [line.split(maxsplit=5)[5] for line in lines if len(line.split(maxsplit=5)) == 6]
    return list(dict.fromkeys(path for path in paths if re.fullmatch(pattern, Path(path).name)))
