"""Why a provider is not granted: the wheels, the loader's own words, the driver."""

from __future__ import annotations

import shutil
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from fundus_rt.models.errors import BackendUnavailableError
from fundus_rt.runtime import provider_causes
from fundus_rt.runtime.onnx_session import OnnxRuntimeSession
from tests.conftest import DATA, environment

pytest.importorskip("onnxruntime")

from tests.fake_onnxruntime import ABSENT, CUDA, fake, loadable, wheels

__all__ = ["fake", "loadable", "wheels"]
TINY = DATA / "tiny_sex.onnx"


def test_two_wheels_are_the_cause(fake: Any, wheels: Any) -> None:
    fake(behaviour="cpu")
    wheels(onnxruntime="1.30.0", onnxruntime_gpu="1.31.1", numpy="2.0")
    with pytest.raises(
        BackendUnavailableError, match=r"onnxruntime 1\.30\.0 and onnxruntime-gpu 1\.31\.1 are installed"
    ) as caught:
        OnnxRuntimeSession(TINY, "cuda:0")
    assert "pip uninstall -y onnxruntime onnxruntime-gpu &&" in str(caught.value), "one of them alone leaves an empty package"


def test_what_is_left_after_one_of_two_wheels_was_uninstalled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", types.ModuleType("onnxruntime"))
    with pytest.raises(BackendUnavailableError, match="only partly there"):
        OnnxRuntimeSession(TINY)


@pytest.mark.parametrize(
    ("message", "installed", "said"),
    [
        ("libcublasLt.so.13", ("libcublasLt.so.12",), "built for CUDA 13 and CUDA 12 is installed"),
        ("libcublasLt.so.12", ("libcublasLt.so.13",), "built for CUDA 12 and CUDA 13 is installed"),
        ("libcublasLt.so.13", (), "libcublasLt.so.13 of NVIDIA's CUDA is missing"),
        ("libcudnn.so.9", ("libcudnn.so.8",), "needs cuDNN 9, and cuDNN 8 is installed"),
        ("libcudnn.so.9", (), "needs cuDNN 9, and there is none"),
        ("libcurand.so.10", (), "libcurand.so.10 of NVIDIA's CUDA is missing"),
        ("libcuda.so.1", (), "no NVIDIA driver"),
        ("libnvidia-ml.so.1", (), "no NVIDIA driver"),
        ("libnvinfer.so.10", ("libnvinfer.so.11",), "needs TensorRT 10, and TensorRT 11 is installed"),
        ("libnvinfer.so.10", (), "--backend tensorrt"),
    ],
)
def test_what_a_missing_library_means(loadable: Any, wheels: Any, message: str, installed: tuple[str, ...], said: str) -> None:
    wheels(numpy="2.0")
    loadable(*installed)
    assert said in provider_causes.loader_cause(f"{message}: {ABSENT}")


def test_libraries_of_another_cuda_that_pip_installed(loadable: Any, wheels: Any) -> None:
    wheels(nvidia_cublas_cu12="12.6.4.1", nvidia_cudnn_cu12="9.5.1.17")
    loadable()
    cause = provider_causes.loader_cause(f"libcublasLt.so.13: {ABSENT}")
    assert "built for CUDA 13 and CUDA 12 is installed" in cause
    assert "pip install 'onnxruntime-gpu[cuda,cudnn]' nvidia-cublas" in cause


def test_a_library_of_another_build_is_named_without_its_path() -> None:
    said = provider_causes.loader_cause("/home/anna/capi/libonnxruntime_providers_cuda.so: undefined symbol: cudaMallocHost")
    assert "libonnxruntime_providers_cuda.so: undefined symbol: cudaMallocHost" in said
    assert "anna" not in said


def test_missing_cudnn_is_found_last(fake: Any, wheels: Any, loadable: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = fake(behaviour="cpu")
    wheels(onnxruntime_gpu="1.31.1")
    monkeypatch.setattr(provider_causes, "_driver_problem", lambda index, built_for: "")
    loadable()
    assert "cuDNN is missing" in provider_causes.why_not_granted(runtime, CUDA, 0)
    loadable("libcudnn.so.9")
    assert "says: strange" in provider_causes.why_not_granted(runtime, CUDA, 0, "strange")


def compiled(folder: Path, name: str, source: str, *arguments: str) -> Path:
    if shutil.which("gcc") is None:
        pytest.skip("needs gcc")
    path = folder / name
    call = ["gcc", "-shared", "-fPIC", "-x", "c", "-", "-o", str(path), f"-Wl,-soname,{name}", *arguments]
    subprocess.run(call, input=source, text=True, check=True)
    return path


def test_the_loader_of_this_system_says_it_in_these_words(tmp_path: Path, wheels: Any) -> None:
    needed = compiled(tmp_path, "libcurand.so.93", "int x;")
    link = ("-Wl,--no-as-needed", f"-L{tmp_path}", "-l:libcurand.so.93")
    path = compiled(tmp_path, "libonnxruntime_providers_cuda.so", "int y;", *link)
    needed.unlink()
    wheels(numpy="2.0")
    assert "libcurand.so.93 of NVIDIA's CUDA is missing" in provider_causes.loader_cause(provider_causes.load_problem(str(path)))


DRIVER = """
int cuInit(unsigned flags) { return STATUS; }
int cuGetErrorString(int code, const char** text) { *text = "no CUDA-capable device is detected"; return 0; }
int cuDriverGetVersion(int* version) { *version = VERSION; return 0; }
int cuDeviceGetCount(int* count) { *count = 1; return 0; }
"""


@pytest.mark.parametrize(
    ("status", "version", "index", "said"),
    [
        (100, 13000, 0, "no CUDA-capable device is detected (code 100)"),
        (0, 12060, 0, "supports CUDA up to 12.6, and this ONNX Runtime was built for CUDA 13.0"),
        (0, 13010, 1, "GPU 1 was asked for, and the driver has 1"),
        (0, 13010, 0, "nothing"),
    ],
)
def test_what_the_driver_says(tmp_path: Path, status: int, version: int, index: int, said: str) -> None:
    compiled(tmp_path, "libcuda.so.1", DRIVER, f"-DSTATUS={status}", f"-DVERSION={version}")
    code = f"from fundus_rt.runtime import provider_causes as p; print(p._driver_problem({index}, '13.0') or 'nothing')"
    variables = {**environment(), "LD_LIBRARY_PATH": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=variables, check=True)
    assert said in done.stdout
