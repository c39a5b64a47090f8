"""Which engine a session opens, and why it refuses one: missing, stale, damaged, unreadable, of another card."""

from __future__ import annotations

import dataclasses
import json
import shlex
import sys
import threading
from collections import deque
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fundus_rt.converters.engines.engine_build import BuildOptions, flags_of
from fundus_rt.models.engine_files import read_record, record_path, write_record
from fundus_rt.models.engines import EngineProfile
from fundus_rt.models.errors import BackendUnavailableError, DeviceMemoryError, EngineError, EngineMissingError, EngineStaleError
from fundus_rt.runtime.commands.build import build
from fundus_rt.runtime.nvidia.tensorrt_engine import DTYPES, _logger
from fundus_rt.runtime.nvidia.tensorrt_session import TensorRTSession
from fundus_rt.runtime.onnx_session import OnnxRuntimeSession
from tests import fake_tensorrt
from tests.fake_cuda_names import CUresult
from tests.fake_engines import FakeMachine, cache_engine, engine_of, pictures, record_of, require_same
from tests.tensorrt_host import importable


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tiny_sex: Path) -> FakeMachine:
    made = FakeMachine(monkeypatch, tmp_path)
    made.install_kernels(tiny_sex)
    return made


def refused(error: type[Exception], match: str, path: Path, machine: FakeMachine, **options: Any) -> None:
    with pytest.raises(error, match=match):
        TensorRTSession(path, **options)
    assert machine.driver.live() == {}


def test_the_engine_of_an_onnx_file_is_found_in_the_cache(machine: FakeMachine, tiny_sex: Path) -> None:
    cache_engine(tiny_sex)
    with TensorRTSession(tiny_sex) as session:
        batch = pictures(session, 3)
        require_same(session.run(batch), OnnxRuntimeSession(tiny_sex).run(batch))


def test_of_several_engines_the_one_for_this_machine_is_taken(machine: FakeMachine, tiny_sex: Path) -> None:
    cache_engine(tiny_sex, gpu_name="Orin")
    cache_engine(tiny_sex, batch=(1, 1, 1))
    cache_engine(tiny_sex, tensorrt_version="10.7.0.23")
    with TensorRTSession(tiny_sex) as session:
        assert session._engine is not None
        assert session._engine.batch == (1, 1)


def test_an_engine_for_every_gpu_of_a_kind_is_taken_on_one_of_them(machine: FakeMachine, tmp_path: Path, tiny_sex: Path) -> None:
    anywhere = {"gpu_name": "", "cuda_driver": "", "flags": ("target=8.7",)}
    with TensorRTSession(engine_of(tiny_sex, tmp_path, **anywhere)) as session:
        session.run(pictures(session, 1))
    path = engine_of(tiny_sex, tmp_path, **{**anywhere, "compute_capability": "8.6"})
    refused(EngineStaleError, r"compute capability 8\.6 -> 8\.7", path, machine)


def test_an_engine_that_takes_frames_and_filters_is_not_the_one_of_a_session(machine: FakeMachine, tiny_sex: Path) -> None:
    sides = (64, 128, 256)
    cache_engine(tiny_sex, profile=EngineProfile((1, 1, 1), sides, sides))
    refused(EngineMissingError, r"fundus-rt build \S+\.onnx$", tiny_sex, machine)


def test_a_missing_engine_comes_with_the_command_that_builds_it(machine: FakeMachine, tiny_sex: Path, tiny_age: Path) -> None:
    cache_engine(tiny_age)
    refused(
        EngineMissingError,
        rf"no engine of tiny_sex\.onnx for this machine.*\n  fundus-rt build \S*{tiny_sex.name}$",
        tiny_sex,
        machine,
    )


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"tensorrt_version": "10.7.0.23"}, r"TensorRT 10\.7\.0\.23 -> 10\.3\.0\.26"),
        ({"gpu_name": "Orin"}, "GPU Orin -> Fake GPU"),
        ({"cuda_driver": "12.4"}, r"CUDA driver 12\.4 -> 12\.6"),
        ({"l4t": "36.4.3"}, r"L4T 36\.4\.3 -> none"),
        ({"compute_capability": "8.6"}, r"compute capability 8\.6 -> 8\.7"),
    ],
)
def test_an_engine_of_something_else_says_what_differs(
    machine: FakeMachine, tmp_path: Path, tiny_sex: Path, changes: dict[str, str], said: str
) -> None:
    cache_engine(tiny_sex, **changes)
    refused(EngineStaleError, rf"{said}.*\n  fundus-rt build \S+\.onnx$", tiny_sex, machine)
    path = engine_of(tiny_sex, tmp_path, **changes)
    refused(
        EngineStaleError,
        rf"tiny_sex\.engine was built for .*{said}.*\n  fundus-rt build MODEL\.onnx --force -o \S+",
        path,
        machine,
    )


def test_an_engine_of_a_library_that_is_not_installed_is_said(machine: FakeMachine, tmp_path: Path, tiny_sex: Path) -> None:
    cache_engine(tiny_sex, flavour="tensorrt_rtx")
    refused(EngineStaleError, "tensorrt_rtx is not installed", tiny_sex, machine)
    refused(BackendUnavailableError, "tensorrt_rtx", engine_of(tiny_sex, tmp_path, flavour="tensorrt_rtx"), machine)


def test_tensorrt_for_rtx_finishes_its_kernels_before_they_are_recorded(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tiny_sex: Path
) -> None:
    machine = FakeMachine(monkeypatch, tmp_path, rtx=True)
    machine.install_kernels(tiny_sex)
    with TensorRTSession(engine_of(tiny_sex, tmp_path, flavour="tensorrt_rtx")) as session:
        for seed in range(2):
            batch = pictures(session, 2, seed)
            require_same(session.run(batch), OnnxRuntimeSession(tiny_sex).run(batch))
        assert session.backend.name == "tensorrt_rtx"
    assert machine.driver.calls["cuGraphLaunch"] == 1


def test_a_damaged_engine_is_never_deserialised(machine: FakeMachine, tmp_path: Path, tiny_sex: Path) -> None:
    for path, model, command in (
        (cache_engine(tiny_sex), tiny_sex, r"fundus-rt build \S+\.onnx --batch 1,2,4$"),
        (file := engine_of(tiny_sex, tmp_path), file, r"fundus-rt build MODEL\.onnx --force -o \S+$"),
    ):
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
        refused(EngineStaleError, rf"damaged.*SHA-256[^\n]*:\n  {command}", model, machine)
    record_path(file).unlink()
    refused(EngineStaleError, "its record is missing", file, machine)


def damage(engine: Path) -> None:
    content = bytearray(engine.read_bytes())
    content[len(content) // 2] ^= 1
    engine.write_bytes(content)


def test_a_damaged_engine_hides_no_whole_one(machine: FakeMachine, tiny_sex: Path) -> None:
    cache_engine(tiny_sex, batch=(1, 1, 3), built_at="2026-11-22T17:00:00Z")
    later = cache_engine(tiny_sex, batch=(1, 4, 16), flags=("optimisation-level=3",), built_at="2026-11-22T19:00:00Z")
    damage(later)
    with TensorRTSession(tiny_sex) as session:
        assert session._engine is not None
        assert session._engine.batch == (1, 3)
        (warning,) = session.warnings
        assert warning.startswith("an engine of tiny_sex.onnx was passed over")
        assert "damaged" in warning
        assert warning.endswith(f": fundus-rt build {tiny_sex} --batch 1,4,16 --optimisation-level 3")
    later.unlink()
    with TensorRTSession(tiny_sex) as session:
        assert session.warnings == (), "an engine that was removed is none"


@pytest.mark.parametrize(
    ("changes", "options"),
    [
        ({"batch": (1, 1, 8)}, ""),
        ({"batch": (1, 2, 4)}, " --batch 1,2,4"),
        ({"batch": (1, 1, 8), "flags": ("tf32",)}, " --tf32"),
        ({"batch": (2, 2, 2), "flags": ("tf32", "optimisation-level=5")}, " --batch 2,2,2 --optimisation-level 5 --tf32"),
    ],
)
def test_the_command_that_mends_a_damaged_engine_builds_that_very_one(
    machine: FakeMachine, tiny_sex: Path, changes: dict[str, Any], options: str
) -> None:
    """The key of what the command builds is the damaged engine's: the options are read by the command line itself."""
    engine = cache_engine(tiny_sex, **changes)
    damage(engine)
    with pytest.raises(EngineStaleError, match="damaged") as refusal:
        TensorRTSession(tiny_sex)
    said = str(refusal.value).splitlines()[-1].strip()
    assert said == f"fundus-rt build {tiny_sex}{options}"
    stated = build.make_context("build", shlex.split(said)[2:]).params
    level = stated["optimisation_level"]
    wanted = flags_of(BuildOptions(1, level, stated["tf32"], None), EngineProfile())
    key = read_record(engine).key
    assert (key.flags, key.profile.batch) == (wanted, tuple(map(int, stated["batch"].split(","))))


def test_an_exact_engine_comes_before_a_later_one_that_rounds(machine: FakeMachine, tiny_sex: Path) -> None:
    exact = cache_engine(tiny_sex, built_at="2026-11-22T17:00:00Z")
    cache_engine(tiny_sex, flags=("tf32",), built_at="2026-11-22T19:00:00Z")
    with TensorRTSession(tiny_sex) as session:
        assert session.warnings == ()
    damage(exact)
    with TensorRTSession(tiny_sex) as session:
        assert ["passed over" in warning or "TF32" in warning for warning in session.warnings] == [True, True]


def test_an_engine_file_that_takes_frames_says_what_it_is_for(machine: FakeMachine, tmp_path: Path, tiny_sex: Path) -> None:
    sides = (64, 128, 256)
    path = engine_of(tiny_sex, tmp_path, profile=EngineProfile((1, 1, 1), sides, sides))
    message = r"tiny_sex\.engine takes whole photographs .* for other programs(.|\n)*fundus-rt build MODEL\.onnx$"
    refused(EngineError, message, path, machine)


def test_contexts_are_made_one_at_a_time(machine: FakeMachine, tiny_sex: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, inside, most = fake_tensorrt.FakeEngine.create_execution_context, [0], [0]

    def slowly(self: Any, how: Any) -> Any:
        inside[0] += 1
        most[0] = max(most[0], inside[0])
        threading.Event().wait(0.05)
        made = real(self, how)
        inside[0] -= 1
        return made

    monkeypatch.setattr(fake_tensorrt.FakeEngine, "create_execution_context", slowly)
    cache_engine(tiny_sex)
    with TensorRTSession(tiny_sex, contexts=3) as session:
        batches = [pictures(session, count) for count in (1, 2, 3)]
        threads = [threading.Thread(target=session.run, args=(batch,)) for batch in batches]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert most == [1]


def test_what_tensorrt_cannot_read_comes_with_its_own_words(machine: FakeMachine, tmp_path: Path, tiny_sex: Path) -> None:
    path = tmp_path / "other.engine"
    path.write_bytes(b"of another kind")
    write_record(path, record_of(tiny_sex, b"of another kind", (1, 2, 4)))
    message = r"tensorrt 10\.3\.0\.26 could not read the engine of tiny-sex: .*magicTag.*fundus-rt build"
    refused(EngineError, message, path, machine)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"preprocessing": {"input_size": [32, 64]}}, r"input is \[-1, 64, 64, 3\], the card says \[N, 32, 64, 3\]"),
        ({"preprocessing": {"interpolation": "tf-bilinear"}}, "input is uint8, the card says float32"),
        ({"outputs": {"name": "age"}}, "output 'age' is missing"),
        ({"outputs": {"columns": 2}}, r"output 'sex' is float32 \[-1, 1\], expected float32 \[N, 2\]"),
        ({"outputs": {"activation": None}}, "does not say which activation output 'sex'"),
    ],
)
def test_an_engine_that_its_card_does_not_describe_is_refused(
    machine: FakeMachine, tmp_path: Path, tiny_sex: Path, change: dict[str, dict[str, Any]], said: str
) -> None:
    path = engine_of(tiny_sex, tmp_path)
    record = read_record(path)
    card = json.loads(json.dumps(record.card))
    card["preprocessing"].update(change.get("preprocessing", {}))
    card["outputs"][0].update(change.get("outputs", {}))
    write_record(path, dataclasses.replace(record, card=card))
    refused(EngineError, rf"engine and card disagree.*\n(.*\n)*.*{said}", path, machine)


def test_a_card_that_cannot_be_read_is_refused(machine: FakeMachine, tmp_path: Path, tiny_sex: Path) -> None:
    path = engine_of(tiny_sex, tmp_path)
    write_record(path, dataclasses.replace(read_record(path), card={"name": "x"}))
    refused(EngineError, r"the card of tiny_sex\.engine", path, machine)


@pytest.mark.parametrize("device", ["cpu", "cuda", "cuda:x", "gpu:0"])
def test_other_devices_are_refused(machine: FakeMachine, tiny_sex: Path, device: str) -> None:
    refused(BackendUnavailableError, f"got device '{device}', expected cuda:N", tiny_sex, machine, device=device)


def test_a_machine_without_gpu_or_tensorrt_says_so(machine: FakeMachine, monkeypatch: pytest.MonkeyPatch, tiny_sex: Path) -> None:
    cache_engine(tiny_sex)
    refused(BackendUnavailableError, "cuda:1 was asked for", tiny_sex, machine, device="cuda:1")
    monkeypatch.setitem(sys.modules, "tensorrt", None)  # type: ignore[arg-type]
    refused(BackendUnavailableError, "TensorRT cannot be loaded", tiny_sex, machine)
    machine.driver.fail("cuInit", CUresult.CUDA_ERROR_NO_DEVICE)
    refused(BackendUnavailableError, "NO_DEVICE", tiny_sex, machine)


def test_an_engine_too_large_for_the_memory_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tiny_sex: Path) -> None:
    machine = FakeMachine(monkeypatch, tmp_path, memory=60_000)
    machine.install_kernels(tiny_sex)
    path = engine_of(tiny_sex, tmp_path)
    refused(DeviceMemoryError, r"not enough memory for a buffer of .* of 0\.1 MB are free", path, machine)


def test_the_fake_has_only_what_the_real_library_has() -> None:
    """Every name of TensorRT's that the session uses, in NVIDIA's own bindings; and its logger hears what goes wrong."""
    with importable("tensorrt"):
        import tensorrt

        for real, fake in (
            ("ICudaEngine", fake_tensorrt.FakeEngine),
            ("IExecutionContext", fake_tensorrt.FakeContext),
            ("Runtime", fake_tensorrt.FakeRuntime),
        ):
            used = {name for name in dir(fake) if not name.startswith("_")}
            assert [name for name in sorted(used) if not hasattr(getattr(tensorrt, real), name)] == []
        assert hasattr(tensorrt.ICudaEngine, "device_memory_size_v2")
        assert hasattr(tensorrt.IRuntimeConfig, "set_execution_context_allocation_strategy")
        for real, fake_enum in (
            (tensorrt.DataType, fake_tensorrt.DataType),
            (tensorrt.TensorIOMode, fake_tensorrt.TensorIOMode),
            (tensorrt.ExecutionContextAllocationStrategy, fake_tensorrt.ExecutionContextAllocationStrategy),
            (tensorrt.ILogger.Severity, fake_tensorrt.Severity),
        ):
            assert {name: int(value) for name, value in fake_enum.__members__.items()} == {
                name: int(real.__members__[name]) for name in fake_enum.__members__
            }
        for name, dtype in DTYPES.items():
            assert np.dtype(tensorrt.nptype(getattr(tensorrt.DataType, name))) == np.dtype(dtype)
        said: deque[str] = deque()
        assert tensorrt.Runtime(_logger(tensorrt, said)).deserialize_cuda_engine(b"no engine" * 20) is None
        assert any("deserializeCudaEngine" in line for line in said)
