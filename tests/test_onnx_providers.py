"""ONNX Runtime's providers: what is asked for is what computes, or an error says why.

The fakes behave as onnxruntime-gpu 1.31.1 was seen to behave on a machine without a GPU; where that wheel, a compiler or a GPU
is there, the real thing is asked instead.
"""

from __future__ import annotations

import os
import sys
import types
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fundus_rt.models.errors import BackendUnavailableError, DeviceLostError, DeviceMemoryError, FundusRtError, ModelFileError
from fundus_rt.models.registry import bundled_file, load_card
from fundus_rt.runtime import onnx_providers, provider_causes
from fundus_rt.runtime.onnx_session import OnnxRuntimeSession
from tests.conftest import DATA

onnxruntime = pytest.importorskip("onnxruntime")

from tests.fake_onnxruntime import CPU, CUDA, TENSORRT, FakePart, FakeSession, fake, loadable, wheels  # noqa: E402

__all__ = ["fake", "loadable", "wheels"]
TINY = DATA / "tiny_sex.onnx"
RTX = "NvTensorRTRTXExecutionProvider"


def batch(count: int = 1, seed: int = 0) -> np.ndarray:
    height, width = OnnxRuntimeSession(TINY).card.preprocessing.input_size
    return np.random.default_rng(seed).integers(0, 256, (count, height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    ("provider", "device", "expected"),
    [
        ("auto", "cpu", (CPU, 0)),
        ("cpu", "cpu", (CPU, 0)),
        ("auto", "cuda:1", (CUDA, 1)),
        ("cuda", "cuda:0", (CUDA, 0)),
        ("tensorrt", "cuda:2", (TENSORRT, 2)),
        ("tensorrt-rtx", "cuda:0", (RTX, 0)),
    ],
)
def test_provider_of_a_device(provider: str, device: str, expected: tuple[str, int]) -> None:
    assert onnx_providers.chosen_provider(provider, device) == expected


@pytest.mark.parametrize(
    ("provider", "device", "said"),
    [
        ("cuda", "cpu", "--device cuda:0"),
        ("cpu", "cuda:0", "--device cpu"),
        ("auto", "gpu", "cuda:N"),
        ("vulkan", "cpu", "tensorrt-rtx"),
    ],
)
def test_provider_that_does_not_fit_its_device(provider: str, device: str, said: str) -> None:
    with pytest.raises(BackendUnavailableError, match=said):
        onnx_providers.chosen_provider(provider, device)


@pytest.mark.parametrize(("behaviour", "provider"), [("cpu", "cuda"), ("raises", "tensorrt"), ("cpu", "auto")])
def test_silent_answers_of_the_cpu_are_refused(fake: Any, loadable: Any, wheels: Any, behaviour: str, provider: str) -> None:
    fake(behaviour=behaviour)
    wheels(onnxruntime_gpu="1.31.1")
    loadable()
    with pytest.raises(BackendUnavailableError, match=r"asked for \w+ExecutionProvider on GPU 3: .*no NVIDIA driver"):
        OnnxRuntimeSession(TINY, "cuda:3", provider=provider)


def test_granted_session_answers_without_tf32_and_without_falling_back(fake: Any) -> None:
    runtime = fake()
    pictures = batch(3)
    session = OnnxRuntimeSession(TINY, "cuda:1")
    answered = session.run(pictures)
    assert session.provider == CUDA
    assert set(answered) == {"sex", "receipt"}
    assert answered["receipt"].shape == pictures.shape[:2]
    opened = runtime.opened[0]
    assert opened["settings"]["use_tf32"] == "0"
    assert opened["settings"]["enable_cuda_graph"] == "0"
    assert opened["settings"]["device_id"] == "1"
    assert opened["settings"] == session.settings
    assert runtime.sessions[0].fallback is False, "onnxruntime would go on on the CPU in the middle of a run"
    assert session.warnings == ()


def test_the_library_can_be_kept_from_falling_back() -> None:
    """Otherwise onnxruntime's `run` opens the network on the CPU again when a provider fails, and answers."""
    session = onnxruntime.InferenceSession(str(TINY), providers=[CPU], enable_fallback=0)
    session.disable_fallback()
    assert session._enable_fallback is False
    assert onnxruntime.InferenceSession(str(TINY), providers=[CPU])._enable_fallback is True


def test_heavy_nodes_on_the_cpu_are_refused_by_kind(fake: Any) -> None:
    fake(parts=[FakePart(CUDA, ["Gemm"]), FakePart(CPU, ["Conv", "Conv", "Shape"])])
    with pytest.raises(BackendUnavailableError, match=r"took 1 of 4 nodes and left to others: 2 Conv on CPUExecutionProvider"):
        OnnxRuntimeSession(TINY, "cuda:0")


def test_provider_without_a_node_is_refused(fake: Any) -> None:
    fake(parts=[FakePart(CPU, ["Shape"])])
    with pytest.raises(BackendUnavailableError, match="took 0 of 1"):
        OnnxRuntimeSession(TINY, "cuda:0")


def test_nodes_are_counted_in_two_ways_alike() -> None:
    onnx = pytest.importorskip("onnx")
    path, card = bundled_file(load_card("acquisition")), load_card("acquisition")
    in_file = Counter(node.op_type for node in onnx.load(path).graph.node)
    options = onnx_providers.session_options(onnxruntime)
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    session = onnxruntime.InferenceSession(str(path), options, providers=[CPU])

    def opened(options: Any) -> Any:
        return onnxruntime.InferenceSession(str(path), options, providers=[CPU])

    class Old:
        """A session of an onnxruntime that cannot say."""

    profiled = onnx_providers.nodes_by_provider(onnxruntime, Old(), opened, card)
    told = profiled
    if hasattr(session, "get_provider_graph_assignment_info"):
        told = onnx_providers.nodes_by_provider(onnxruntime, session, opened, card)
    for found in (told, profiled):
        assert set(found) == {CPU}
        assert found[CPU]["Conv"] == in_file["Conv"] > 0
        assert found[CPU]["ReduceMax"] == in_file["ReduceMax"] > 0
    with pytest.raises(BackendUnavailableError, match="18 Conv on CPUExecutionProvider"):
        onnx_providers.require_nodes(profiled, CUDA)


def test_tensorrt_takes_eight_at_once_and_says_its_shapes(fake: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = fake(most=8)
    pictures = batch(19)
    session = OnnxRuntimeSession(TINY, "cuda:0", provider="tensorrt")
    answered = session.run(pictures)
    height, width = pictures.shape[1:3]
    settings = runtime.opened[0]["settings"]
    assert settings["trt_profile_max_shapes"] == f"frames:8x{height}x{width}x3"
    assert settings["trt_engine_cache_enable"] == "0"
    assert os.environ[onnx_providers.TF32_VARIABLE] == "0"
    monkeypatch.undo()
    expected = OnnxRuntimeSession(TINY).run(pictures)
    assert all(np.array_equal(answered[name], expected[name]) for name in expected)


def test_allowed_tf32_is_in_every_result(fake: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    fake()
    monkeypatch.setenv(onnx_providers.TF32_VARIABLE, "1")
    session = OnnxRuntimeSession(TINY, "cuda:0", provider="tensorrt")
    assert "TF32" in session.warnings[0]


class FakePlugin(types.ModuleType):
    @staticmethod
    def get_library_path() -> str:
        return "/plugins/libonnxruntime_providers_nv_tensorrt_rtx.so"


def test_tensorrt_rtx_is_registered_once_and_given_its_gpu(fake: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = fake()
    monkeypatch.setitem(sys.modules, "onnxruntime_ep_nv_tensorrt_rtx", FakePlugin("onnxruntime_ep_nv_tensorrt_rtx"))
    registered: list[tuple[str, str]] = []
    given: list[tuple[list[Any], dict[str, str]]] = []
    gpus = [types.SimpleNamespace(ep_name=RTX, number=0), types.SimpleNamespace(ep_name=RTX, number=1)]
    runtime.get_ep_devices = lambda: [types.SimpleNamespace(ep_name=CPU)] + (gpus if registered else [])
    runtime.register_execution_provider_library = lambda name, path: registered.append((name, path))
    real_options = onnx_providers.session_options

    class Options:
        """Session options that take plug-in devices."""

        def __init__(self, real: Any) -> None:
            self.real = real

        def add_session_config_entry(self, key: str, value: str) -> None:
            self.real.add_session_config_entry(key, value)

        def add_provider_for_devices(self, devices: list[Any], settings: dict[str, str]) -> None:
            given.append((devices, settings))

    def opened(path: str, options: Any, **more: Any) -> Any:
        if not isinstance(options, Options):
            return onnxruntime.InferenceSession(path, options, providers=[CPU])
        assert more == {"enable_fallback": 0}
        real = onnxruntime.InferenceSession(path, options.real, providers=[CPU])
        return FakeSession(real, RTX, [FakePart(RTX, ["Conv"])], most=8)

    runtime.InferenceSession = opened
    monkeypatch.setattr(onnx_providers, "session_options", lambda ort, threads=1: Options(real_options(onnxruntime, threads)))
    for _ in range(2):
        session = OnnxRuntimeSession(TINY, "cuda:1", provider="tensorrt-rtx")
        assert session.run(batch(9))["receipt"].shape[0] == 9
    assert registered == [(RTX, FakePlugin.get_library_path())]
    assert given[0][0] == [gpus[1]]
    assert given[0][1]["enable_cuda_graph"] == "0"
    with pytest.raises(BackendUnavailableError, match="offers 2"):
        OnnxRuntimeSession(TINY, "cuda:2", provider="tensorrt-rtx")


@pytest.mark.parametrize(
    ("message", "kind", "kept"),
    [
        ("CUDA failure 2: out of memory ; GPU=0 ; hostname=eyeclinic ; file=/home/anna/x.cc", DeviceMemoryError, "out of memory"),
        (
            "[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : Non-zero status code returned while running Conv node. Name:'c' Status "
            "Message: /onnxruntime_src/onnxruntime/core/framework/bfc_arena.cc:376 Failed to allocate memory for requested "
            "buffer of size 1073741824",
            DeviceMemoryError,
            "1073741824",
        ),
        (
            "CUDA failure 700: an illegal memory access was encountered ; GPU=0 ; hostname=eyeclinic",
            DeviceLostError,
            "failure 700",
        ),
        (
            "CUDNN failure 4: CUDNN_STATUS_INTERNAL_ERROR ; GPU=0 ; hostname=eyeclinic ; file=/a/b.cc",
            DeviceLostError,
            "CUDNN failure 4",
        ),
        ("[ONNXRuntimeError] : 11 : EP_FAIL : TensorRT EP execution context enqueue failed.", DeviceLostError, "enqueue failed"),
        ("[ONNXRuntimeError] : 9 : NOT_IMPLEMENTED : Conv needs cuDNN, see /home/anna/readme", BackendUnavailableError, "cuDNN"),
    ],
)
def test_failures_while_running(fake: Any, message: str, kind: type[FundusRtError], kept: str) -> None:
    fake(failure=message)
    session = OnnxRuntimeSession(TINY, "cuda:0")
    with pytest.raises(kind) as caught:
        session.run(batch())
    assert kept in str(caught.value)
    assert not any(word in str(caught.value) for word in ("eyeclinic", "anna", "/onnxruntime_src"))


def test_memory_that_is_not_enough_to_open(fake: Any) -> None:
    fake(behaviour="memory")
    with pytest.raises(DeviceMemoryError, match="--device cpu"):
        OnnxRuntimeSession(TINY, "cuda:0")


def test_a_bad_file_is_not_blamed_on_the_gpu(fake: Any, tmp_path: Path) -> None:
    fake()
    (tmp_path / "x.onnx").write_bytes(b"nothing")
    with pytest.raises(ModelFileError, match=r"x\.onnx"):
        OnnxRuntimeSession(tmp_path / "x.onnx", "cuda:0")


def test_the_cpu_wheel_has_no_cuda() -> None:
    if CUDA in onnxruntime.get_available_providers():
        pytest.skip("this is a GPU wheel")
    with pytest.raises(BackendUnavailableError, match=r"granted nothing, asked for CUDAExecutionProvider .*was built without it"):
        OnnxRuntimeSession(TINY, "cuda:0")


def test_settings_are_options_of_the_gpu_wheel() -> None:
    if CUDA not in onnxruntime.get_available_providers():
        pytest.skip("needs the wheel onnxruntime-gpu")
    folder = Path(onnxruntime.__file__).parent / "capi"
    card = load_card("acquisition")
    for provider, name in provider_causes.LIBRARIES.items():
        text = (folder / name).read_bytes()
        settings = onnx_providers.provider_settings(provider, 0, card)
        assert settings
        assert not [option for option in settings if option.encode() + b"\0" not in text]


def test_settings_are_options_of_the_plugin() -> None:
    pytest.importorskip("onnxruntime_ep_nv_tensorrt_rtx")
    header = onnx_providers.plugin_library().with_name("tensorrt_rtx_provider_options.h").read_text()
    settings = onnx_providers.provider_settings(RTX, 0, load_card("acquisition"))
    assert settings
    assert not [option for option in settings if f'"{option}"' not in header]


def test_a_runtime_without_plugins(fake: Any, wheels: Any) -> None:
    wheels(onnxruntime="1.17.3")
    with pytest.raises(BackendUnavailableError, match="takes no plug-ins"):
        fake_runtime = fake()
        onnx_providers.open_on_provider(fake_runtime, TINY, RTX, 0, {}, load_card("acquisition"))


def test_the_gpu_wheel_without_a_driver_says_what_is_missing() -> None:
    if CUDA not in onnxruntime.get_available_providers():
        pytest.skip("needs the wheel onnxruntime-gpu")
    if not provider_causes.load_problem("libcuda.so.1"):
        pytest.skip("there is a driver")
    with pytest.raises(BackendUnavailableError, match=r"\.so\.\d+"):
        OnnxRuntimeSession(TINY, "cuda:0")


@pytest.mark.gpu
@pytest.mark.parametrize("provider", ["cuda", "tensorrt", "tensorrt-rtx"])
def test_a_gpu_gives_the_answers_of_the_cpu(provider: str) -> None:
    path = bundled_file(load_card("acquisition"))
    try:
        session = OnnxRuntimeSession(path, "cuda:0", provider=provider)
    except BackendUnavailableError as error:
        pytest.skip(str(error))
    pictures = np.random.default_rng(1).integers(0, 256, (9, 224, 224, 3), dtype=np.uint8)
    expected, answered = OnnxRuntimeSession(path).run(pictures), session.run(pictures)
    for name, rows in expected.items():
        assert np.abs(answered[name] - rows).max() <= 1e-3 * max(float(np.abs(rows).max()), 1.0)
