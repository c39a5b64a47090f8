"""Engines are certified where they are built, beside themselves, and an engine of yesterday is not the one of today."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnxruntime")

from fundus_rt.models.artifacts import sha256_of_file
from fundus_rt.models.certificates import certificates_from_file
from fundus_rt.models.engine_cache import EngineCache
from fundus_rt.models.engine_files import EARLIER_VERSION, record_path
from fundus_rt.models.engines import EngineRecord
from fundus_rt.models.errors import EngineStaleError
from fundus_rt.models.references import reference_path, write_reference
from fundus_rt.runtime.certify import certify
from fundus_rt.runtime.device_kind import device_kind
from fundus_rt.runtime.nvidia import machine as machine_module
from fundus_rt.runtime.nvidia.tensorrt_session import TensorRTSession
from fundus_rt.runtime.pipeline import Pipeline
from tests.fake_engines import FakeMachine, cache_engine, record_of
from tests.fake_tensorrt import fake_plan
from tests.photographs import half_and_half
from tests.references import sex_reference, with_reference


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FUNDUS_RT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def model(tiny_sex: Path, tmp_path: Path) -> Path:
    """A network that answers as its original did, with the reference beside it."""
    (tmp_path / "models").mkdir()
    return with_reference(tiny_sex, tmp_path / "models")


def state(model: Path, **options: Any) -> tuple[str, str]:
    pipeline = Pipeline(model, check=False, **options)
    try:
        return pipeline.certificate.verdict, pipeline.certificate.reason
    finally:
        pipeline.close()


def test_an_engine_in_the_cache_is_certified_beside_itself(
    model: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = FakeMachine(monkeypatch, tmp_path)
    machine.install_kernels(model)
    engine = cache_engine(model)
    issued = certify(model, None, "tensorrt", "cuda:0")
    found = issued.certificate
    assert issued.path == engine.with_suffix(".parity.json") and found.verdict == "passed"
    assert (found.file_sha256, found.onnx_sha256) == (sha256_of_file(engine), sha256_of_file(model))
    assert found.device == device_kind("cuda:0") == "Fake GPU, compute capability 8.7, 8 multiprocessors"
    pipeline = Pipeline(model, "tensorrt", "cuda:0", check=False, require_certificate=True)
    result = pipeline(half_and_half(60, 180))
    assert (result.certificate, result.backend.engine_sha256) == ("passed", found.file_sha256)
    pipeline.close()
    assert state(model)[0] == "none", "the CPU was not certified"

    cache_engine(model, built_at="2026-11-23T18:00:00Z", batch=(1, 1, 2))  # rebuilt with other bytes, and later
    assert state(model, backend="tensorrt", device="cuda:0") == (
        "none", "there is no parity.json beside the model; `fundus-rt certify` writes it",
    )  # fmt: skip
    assert certificates_from_file(issued.path)[0] == [found]


def test_a_build_certifies_by_itself(model: Path, tiny_sex: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnx")
    from click.testing import CliRunner

    from fundus_rt.runtime.commands.build import build

    machine = FakeMachine(monkeypatch, tmp_path)
    machine.install_kernels(model)

    def made(path: Path, target: Path, library: Any, key: Any, *_: Any) -> EngineRecord:
        plan = fake_plan(path, key.profile.batch)
        target.write_bytes(plan)
        return dataclasses.replace(record_of(path, plan, key.profile.batch), key=key)

    monkeypatch.setattr("fundus_rt.converters.engines.engine_build.engine_from_onnx", made)
    done = CliRunner().invoke(build, [str(model), "--workspace", "64"])
    assert done.exit_code == 0, done.output
    assert "certificate  passed, in" in done.output and "0 of 11 decisions changed" in done.output
    assert state(model, backend="tensorrt", device="cuda:0")[0] == "passed"
    named = CliRunner().invoke(build, [str(model), "--workspace", "64", "-o", str(tmp_path / "x.engine")])
    assert named.exit_code == 0 and (tmp_path / "x.parity.json").is_file()

    write_reference(reference_path(model), dataclasses.replace(sex_reference(tiny_sex), answers={"sex": np.ones((11, 1), "f4")}))
    failed = CliRunner().invoke(build, [str(model), "--workspace", "64"])
    assert failed.exit_code == 1 and "certificate  failed" in failed.output
    reference_path(model).write_bytes(b"damaged")
    damaged = CliRunner().invoke(build, [str(model), "--workspace", "64"])
    assert damaged.exit_code == 1 and "certificate  none: tiny_sex.reference is not a whole reference" in damaged.output
    reference_path(model).unlink()
    without = CliRunner().invoke(build, [str(model), "--workspace", "64"])
    assert without.exit_code == 0 and "certificate  none: there is no tiny_sex.reference beside the model" in without.output


def test_jetsons_of_one_name_are_told_apart(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """AGX Orin, Orin NX and Orin Nano all report the GPU's name Orin."""
    machine = FakeMachine(monkeypatch, tmp_path)
    machine.install_kernels(model)
    cache_engine(model, multiprocessors=16)
    with pytest.raises(EngineStaleError, match=r"for something else \(multiprocessors 16 -> 8\); build one that fits"):
        TensorRTSession(model)
    cache_engine(model)
    TensorRTSession(model).close()
    monkeypatch.setattr(machine_module, "jetson_board", lambda *_: "NVIDIA Jetson Orin NX Engineering Reference Developer Kit")
    with pytest.raises(EngineStaleError, match="board none -> NVIDIA Jetson Orin NX"):
        TensorRTSession(model)


def test_an_engine_with_a_record_of_an_earlier_version_is_stale_and_says_why(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import json

    machine = FakeMachine(monkeypatch, tmp_path)
    machine.install_kernels(model)
    engine = cache_engine(model)
    key = EngineCache().entries(sha256_of_file(model))[0].key
    values = json.loads(record_path(engine).read_text())
    assert values["format"] == 2 and {"multiprocessors", "board"} <= set(values["key"])
    old = {**values, "format": 1, "key": {k: v for k, v in values["key"].items() if k not in ("multiprocessors", "board")}}
    earlier = engine.with_name("ab" * 32 + ".engine")  # its key had fewer fields, and so another digest
    engine.rename(earlier)
    record_path(engine).unlink()
    record_path(earlier).write_text(json.dumps(old))
    assert EngineCache().why_missing(key) == EARLIER_VERSION
    with pytest.raises(
        EngineStaleError, match=r"did not tell every kind of Jetson from the others; build it again:\n  fundus-rt build"
    ):
        TensorRTSession(model)
    with pytest.raises(EngineStaleError, match="did not tell every kind of Jetson from the others"):
        TensorRTSession(earlier)
    other = dataclasses.replace(key, onnx_sha256="00" * 32)
    assert EngineCache().why_missing(other) == "no engine of this model yet"
