"""On a GPU: an engine that was just built is opened, and has the sizes, names and types that were asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fundus_rt.converters.engines.engine_build import BuildOptions, engine_from_onnx
from fundus_rt.models.artifacts import sha256_of_file
from fundus_rt.models.engines import EngineKey, EngineProfile
from fundus_rt.models.errors import BackendUnavailableError
from fundus_rt.runtime.nvidia.machine import machine_identity
from fundus_rt.runtime.nvidia.tensorrt_library import TensorRTLibrary, import_tensorrt
from tests.engine_graphs import PRECISIONS, saved, small_network
from tests.tensorrt_host import host_library

pytestmark = pytest.mark.gpu
pytest.importorskip("onnx")


@pytest.fixture(scope="module")
def library() -> TensorRTLibrary:
    """NVIDIA's own installation, else the library that the tests fetch."""
    try:
        return import_tensorrt()
    except BackendUnavailableError:
        return host_library()


def built(path: Path, library: TensorRTLibrary, folder: Path, profile: EngineProfile) -> Path:
    machine = machine_identity()
    key = EngineKey(
        sha256_of_file(path), library.flavour, library.version, machine.gpu_name, machine.compute_capability,
        machine.cuda_driver, machine.l4t, profile, multiprocessors=machine.multiprocessors, board=machine.board,
    )  # fmt: skip
    options = BuildOptions(512 << 20, timing_cache=folder / "x.timing")
    engine_from_onnx(path, folder / "x.engine", library, key, options, print, folder / "x.log")
    return folder / "x.engine"


def opened(engine: Path, library: TensorRTLibrary) -> Any:
    trt = library.module
    logger = trt.Logger(trt.ILogger.WARNING)
    runtime = trt.Runtime(logger)
    plan = runtime.deserialize_cuda_engine(engine.read_bytes())
    assert plan is not None
    return plan, runtime, logger


@pytest.mark.parametrize("precision", PRECISIONS)
def test_an_engine_opens_with_what_was_asked_for(tmp_path: Path, library: TensorRTLibrary, precision: str) -> None:
    path = saved(tmp_path / "x.onnx", small_network(precision))
    plan, *kept = opened(built(path, library, tmp_path, EngineProfile((1, 2, 4))), library)
    names = [plan.get_tensor_name(index) for index in range(plan.num_io_tensors)]
    types = {name: plan.get_tensor_dtype(name).name for name in names}
    assert types == {"frames": "UINT8", "age": "FLOAT", "receipt": "FLOAT"}
    assert [tuple(shape) for shape in plan.get_tensor_profile_shape("frames", 0)] == [(n, 32, 32, 3) for n in (1, 2, 4)]
    assert {plan.get_tensor_format(name, 0).name for name in names} == {"LINEAR"}
    del plan, kept


def test_an_engine_for_whole_frames_opens_with_its_three_inputs(tmp_path: Path, library: TensorRTLibrary) -> None:
    path = saved(tmp_path / "x.onnx", small_network("fp32"))
    profile = EngineProfile((1, 1, 1), (100, 300, 600), (120, 400, 800))
    plan, *kept = opened(built(path, library, tmp_path, profile), library)
    for name, sides in (("frame", (1, 2)), ("row_filter", (2,)), ("column_filter", (2,))):
        least, _, most = (tuple(shape) for shape in plan.get_tensor_profile_shape(name, 0))
        expected = ((100, 600), (120, 800)) if name == "frame" else (((100, 600),) if name == "row_filter" else ((120, 800),))
        assert tuple((least[side], most[side]) for side in sides) == expected
    del plan, kept


def test_what_was_measured_is_used_by_the_next_build(tmp_path: Path, library: TensorRTLibrary) -> None:
    if library.flavour == "tensorrt_rtx":
        pytest.skip("TensorRT-RTX chooses its kernels where the engine runs and measures nothing while it builds")
    path = saved(tmp_path / "x.onnx", small_network("fp32"))
    built(path, library, tmp_path, EngineProfile())
    assert (tmp_path / "x.timing").stat().st_size > 0
    built(path, library, tmp_path, EngineProfile())
    assert "the timing cache is that of earlier builds" in (tmp_path / "x.log").read_text()
