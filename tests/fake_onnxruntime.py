"""The module ``onnxruntime`` of a GPU wheel, as version 1.31.1 was seen to behave, with the CPU's numbers."""

from __future__ import annotations

import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from fundus_rt.runtime import onnx_providers, provider_causes
from tests.conftest import DATA

CUDA, TENSORRT, CPU = "CUDAExecutionProvider", "TensorrtExecutionProvider", "CPUExecutionProvider"
ABSENT = "cannot open shared object file: No such file or directory"
"""What the loader of Linux says of a library that is not there."""


class FakeNode:
    def __init__(self, op_type: str) -> None:
        self.op_type = op_type


class FakePart:
    def __init__(self, ep_name: str, kinds: list[str]) -> None:
        self.ep_name = ep_name
        self._kinds = kinds

    def get_nodes(self) -> list[FakeNode]:
        return [FakeNode(kind) for kind in self._kinds]


class FakeSession:
    """Computes on the CPU and says that it is another provider; `failure` is raised by `run`."""

    def __init__(self, real: Any, provider: str, parts: list[FakePart], most: int = 0, failure: str = "") -> None:
        self._real, self._provider, self._parts, self._most, self._failure = real, provider, parts, most, failure
        self.fallback = True

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    def get_providers(self) -> list[str]:
        return [self._provider, CPU]

    def get_provider_graph_assignment_info(self) -> list[FakePart]:
        return self._parts

    def disable_fallback(self) -> None:
        self.fallback = False

    def run(self, names: list[str], feeds: dict[str, np.ndarray]) -> Any:
        if self._failure:
            raise RuntimeError(self._failure)
        if self._most and len(feeds["frames"]) > self._most:
            raise RuntimeError("TensorRT EP: the input is outside of the profile's shapes")
        return self._real.run(names, feeds)


class FakeRuntime(types.ModuleType):
    """The module ``onnxruntime`` of a GPU wheel. `behaviour`: grants, cpu (goes on silently), raises or memory."""

    def __init__(self, behaviour: str = "grants", parts: list[FakePart] | None = None, **session: Any) -> None:
        super().__init__("onnxruntime")
        self.__version__, self.cuda_version, self.__file__ = "1.31.1", "13.0", str(DATA / "onnxruntime" / "__init__.py")
        self.behaviour, self.session_arguments = behaviour, session
        self.parts = parts
        self.opened: list[dict[str, Any]] = []
        self.sessions: list[FakeSession] = []
        self.SessionOptions = onnxruntime.SessionOptions
        self.GraphOptimizationLevel = onnxruntime.GraphOptimizationLevel

    def get_available_providers(self) -> list[str]:
        return [TENSORRT, CUDA, CPU]

    def InferenceSession(self, path: str, options: Any, providers: list[str], **more: Any) -> Any:
        real = onnxruntime.InferenceSession(path, options, providers=[CPU])
        wanted = providers[0]
        if wanted == CPU:
            return real
        self.opened.append({"provider": wanted, "settings": more["provider_options"][0], "options": options})
        if self.behaviour == "memory":
            raise RuntimeError(
                "CUDA failure 2: out of memory ; GPU=0 ; hostname=eyeclinic ; file=/x/y.cc ; line=1 ; expr=cudaMalloc(&p)"
            )
        if self.behaviour == "raises":  # as TensorRT without its libraries; without enable_fallback=0 the CPU would answer
            if more.get("enable_fallback", 1):
                return real
            raise RuntimeError("RegisterTensorRTPluginsAsCustomOps Please install TensorRT libraries as mentioned")
        if self.behaviour == "cpu":
            return real
        parts = self.parts if self.parts is not None else [FakePart(wanted, ["Conv", "Gemm"]), FakePart(CPU, ["Shape", "Gather"])]
        self.sessions.append(FakeSession(real, wanted, parts, **self.session_arguments))
        return self.sessions[-1]


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Any:
    def install(**arguments: Any) -> FakeRuntime:
        module = FakeRuntime(**arguments)
        monkeypatch.setitem(sys.modules, "onnxruntime", module)
        monkeypatch.delenv(onnx_providers.TF32_VARIABLE, raising=False)
        return module

    return install


@pytest.fixture
def wheels(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Only these distributions are installed."""

    def install(**versions: str) -> None:
        for name, version in versions.items():
            folder = tmp_path / f"{name}-{version}.dist-info"
            folder.mkdir()
            (folder / "RECORD").write_text("onnxruntime/__init__.py,,\n" if name.startswith("onnxruntime") else "")
            (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name.replace('_', '-')}\nVersion: {version}\n")
        monkeypatch.setattr(sys, "path", [str(tmp_path)])

    return install


@pytest.fixture
def loadable(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The system's loader finds only these."""

    def install(*names: str) -> None:
        monkeypatch.setattr(
            provider_causes, "load_problem", lambda name, mode=0: "" if name in names else f"{Path(name).name}: {ABSENT}"
        )

    return install
