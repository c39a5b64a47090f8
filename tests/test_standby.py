"""The CPU answers while an engine is built elsewhere; the engine takes over when it is certified, and not before."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnxruntime")

from fundus_rt.models.artifacts import atomic_path
from fundus_rt.models.errors import (
    BackendUnavailableError,
    CertificateError,
    DeviceLostError,
    DeviceMemoryError,
    UsageError,
)
from fundus_rt.models.references import reference_path
from fundus_rt.runtime import standby
from fundus_rt.runtime.certify import certify
from fundus_rt.runtime.commands import infer_camera
from fundus_rt.runtime.decode import decode
from fundus_rt.runtime.pipeline import Pipeline
from tests.conftest import REPOSITORY, environment
from tests.fake_engines import FakeMachine, cache_engine
from tests.photographs import half_and_half
from tests.references import with_reference

FRAME = half_and_half(60, 180)


@pytest.fixture
def model(tiny_sex: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A network with its reference, on a machine with a GPU of host memory and no engine."""
    (tmp_path / "models").mkdir()
    path = with_reference(tiny_sex, tmp_path / "models")
    FakeMachine(monkeypatch, tmp_path).install_kernels(path)
    return path


@pytest.fixture
def build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A build in another process that lasts until this file is there, and prints and ends as the file's two lines say."""
    told = tmp_path / "build_ends"
    code = (
        "import pathlib, sys, time\n"
        f"told = pathlib.Path({str(told)!r})\n"
        "assert sys.argv[1] == 'build' and sys.argv[3:] == ['--device', 'cuda:0'], sys.argv\n"
        "while not told.exists(): time.sleep(0.02)\n"
        "said, status = told.read_text().splitlines()\n"
        "print(said)\nsys.exit(int(status))\n"
    )
    monkeypatch.setattr(standby, "_BUILD", code)
    yield told
    if not told.exists():
        ends(told)


def ends(told: Path, said: str = "certificate  passed", status: int = 0) -> None:
    with atomic_path(told) as temporary:
        temporary.write_text(f"{said}\n{status}\n")


def opened(model: Path, **options: Any) -> Pipeline:
    return Pipeline(model, device="cuda:0", check=False, build=True, **options)


def answered_until(pipeline: Pipeline, wanted: Callable[[Any], bool]) -> Any:
    deadline = time.monotonic() + 60
    while not wanted(result := pipeline(FRAME)):
        assert time.monotonic() < deadline, (result.backend, result.warnings)
        time.sleep(0.02)
    return result


def test_the_cpu_answers_until_the_engine_is_certified(model: Path, build: Path) -> None:
    pipeline = opened(model)
    first = pipeline(FRAME)
    assert first.backend.device == "cpu" and first.certificate == "none"
    assert "the engine for cuda:0 is being built: answered on the CPU until it is certified" in first.warnings
    cache_engine(model)
    certify(model, None, "tensorrt", "cuda:0")
    assert pipeline(FRAME).backend.device == "cpu", "nothing is taken over before the build has ended"
    ends(build)
    later = answered_until(pipeline, lambda result: result.backend.name == "tensorrt")
    assert later.certificate == "passed" and later.backend.engine_sha256
    assert not any("answered on the CPU" in warning for warning in (*later.warnings, *pipeline.standing_warnings))
    assert later.outputs["sex"].value == pytest.approx(first.outputs["sex"].value, abs=1e-5)
    assert pipeline.certificate.verdict == "passed"
    pipeline.close()


def test_an_engine_at_hand_answers_at_once(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache_engine(model)
    certify(model, None, "tensorrt", "cuda:0")
    monkeypatch.setattr(subprocess, "Popen", None)  # nothing is built
    pipeline = opened(model, require_certificate=True)
    result = pipeline(FRAME)
    assert result.backend.name == "tensorrt" and result.certificate == "passed"
    pipeline.close()


def test_an_engine_without_a_certificate_does_not_take_over(model: Path, build: Path) -> None:
    pipeline = opened(model)
    cache_engine(model)  # no replay: the build was cut short behind the engine
    ends(build)
    result = answered_until(pipeline, lambda result: any("no engine that counts" in warning for warning in result.warnings))
    assert result.backend.device == "cpu"
    assert any("its certificate says none" in warning for warning in result.warnings)
    pipeline.close()


def test_an_engine_that_answers_otherwise_does_not_take_over(model: Path, build: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its certificate is of yesterday; today the device computes something else."""
    from fundus_rt.runtime.nvidia.tensorrt_session import TensorRTSession

    cache_engine(model)
    certify(model, None, "tensorrt", "cuda:0")
    honest = TensorRTSession.run

    def wrong(self: TensorRTSession, batch: np.ndarray) -> dict[str, np.ndarray]:
        answers = honest(self, batch)
        return {name: values if name == "receipt" else values + 0.5 for name, values in answers.items()}

    with monkeypatch.context() as hidden:
        hidden.setattr("fundus_rt.runtime.standby.open_session", missing_engine(standby.open_session))
        pipeline = opened(model)
    monkeypatch.setattr(TensorRTSession, "run", wrong)
    ends(build)
    result = answered_until(pipeline, lambda result: any("no engine that counts" in warning for warning in result.warnings))
    assert result.backend.device == "cpu" and any("known answers" in warning for warning in result.warnings)
    pipeline.close()


def missing_engine(open_session: Callable[..., Any]) -> Callable[..., Any]:
    from fundus_rt.models.errors import EngineMissingError

    def opened_or_missing(model: Any, backend: str, *rest: Any) -> Any:
        if backend == "tensorrt":
            raise EngineMissingError("no engine yet")
        return open_session(model, backend, *rest)

    return opened_or_missing


def test_a_build_that_fails_is_said_in_its_own_words(model: Path, build: Path) -> None:
    pipeline = opened(model)
    ends(build, "Error: no kernel fits into the workspace of 4 MiB", 2)
    result = answered_until(pipeline, lambda result: any("no engine that counts" in warning for warning in result.warnings))
    (said,) = (warning for warning in result.warnings if "no engine that counts" in warning)
    assert said == "cuda:0 has no engine that counts (no kernel fits into the workspace of 4 MiB): answered on the CPU"
    pipeline.close()


def test_closing_ends_the_build(model: Path, build: Path) -> None:
    pipeline = opened(model)
    (thread,) = (found for found in threading.enumerate() if found.name == "engine build")
    pipeline.close()
    thread.join(30)
    assert not thread.is_alive() and not build.exists()


def test_a_lost_gpu_after_the_exchange_goes_back_to_the_cpu(model: Path, build: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fundus_rt.models.errors import DeviceLostError
    from fundus_rt.runtime.nvidia.tensorrt_session import TensorRTSession

    pipeline = opened(model)
    cache_engine(model)
    certify(model, None, "tensorrt", "cuda:0")
    ends(build)
    answered_until(pipeline, lambda result: result.backend.name == "tensorrt")

    def lost(*_: Any) -> Any:
        raise DeviceLostError("the GPU fell off the bus")

    monkeypatch.setattr(TensorRTSession, "run", lost)
    monkeypatch.setattr(TensorRTSession, "run_frame", lost)
    result = pipeline(FRAME)
    assert result.backend.device == "cpu" and any("fell off the bus" in warning for warning in result.warnings)
    pipeline.close()


def test_threads_that_answer_while_it_changes_over_all_get_right_answers(model: Path, build: Path) -> None:
    pipeline = opened(model)
    expected = pipeline(FRAME).outputs["sex"].value
    stop, found, errors = threading.Event(), [], []

    def work() -> None:
        try:
            while not stop.is_set():
                result = pipeline(FRAME)
                found.append((result.backend.name, result.outputs["sex"].value))
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    cache_engine(model)
    certify(model, None, "tensorrt", "cuda:0")
    ends(build)
    try:
        answered_until(pipeline, lambda result: result.backend.name == "tensorrt")
        time.sleep(0.2)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert not errors and {name for name, _ in found} == {"onnxruntime", "tensorrt"}
    assert all(value == pytest.approx(expected, abs=1e-5) for _, value in found)
    pipeline.close()


def test_what_cannot_be_proved_is_not_begun(model: Path, build: Path) -> None:
    with pytest.raises(CertificateError):
        opened(model, require_certificate=True)  # the CPU is not certified
    with pytest.raises(UsageError, match=r"for a GPU; got tiny_sex\.onnx on cpu"):
        Pipeline(model, build=True)
    reference_path(model).unlink()
    with pytest.raises(UsageError, match=r"there is no tiny_sex\.reference beside"):
        opened(model)


def test_the_command_says_what_does_not_go_together(model: Path) -> None:
    call = [
        sys.executable,
        "-c",
        "from fundus_rt.runtime.cli import main; main()",
        "infer",
        str(REPOSITORY),
        "--model",
        str(model),
    ]
    for words in (["--build-meanwhile"], ["--build-meanwhile", "--device", "cuda:0", "--backend", "tensorrt"]):
        done = subprocess.run([*call, *words], capture_output=True, text=True, env={**os.environ, **environment()}, check=False)
        assert done.returncode == 2 and "--build-meanwhile goes with --device cuda:N" in done.stderr


@pytest.mark.parametrize("error", [DeviceLostError, DeviceMemoryError])
def test_a_gpu_that_is_lost_or_full_from_the_start_leaves_it_to_the_cpu(
    model: Path, build: Path, monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    honest = standby.open_session

    def on_a_broken_gpu(name: Any, backend: str, *arguments: Any) -> Any:
        if backend == "tensorrt":
            raise error("the GPU has gone")
        return honest(name, backend, *arguments)

    monkeypatch.setattr(standby, "open_session", on_a_broken_gpu)
    pipeline = Pipeline(model, device="cuda:0", build=True)  # with the acquisition model beside it
    found = pipeline(decode((REPOSITORY / "models/examples/chase_01L.jpg").read_bytes()).frame)
    assert found.backend.device == "cpu"
    assert any("TensorRT on cuda:0 failed (the GPU has gone): answered on the CPU" in said for said in found.warnings)
    pipeline.close()
    ends(build)


def test_the_camera_is_watched_from_the_cpu_where_the_acquisition_model_has_no_engine(
    model: Path, build: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = opened(model)

    def nothing_there(name: Any, backend: str, device: str, *arguments: Any, **options: Any) -> Any:
        if device == "cuda:0":
            raise BackendUnavailableError("nothing computes on cuda:0")
        return Pipeline(name, backend, device, *arguments, **options)

    monkeypatch.setattr("fundus_rt.runtime.pipeline.Pipeline", nothing_there)
    with pytest.raises(BackendUnavailableError, match="nothing computes"):
        infer_camera._judging(pipeline, 1, False)
    judging = infer_camera._judging(pipeline, 1, True)
    assert judging.backend.device == "cpu" and judging.card.name == "acquisition"
    judging.close()
    pipeline.close()
    ends(build)
