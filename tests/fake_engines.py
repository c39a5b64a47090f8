"""A machine with a fake GPU and a fake TensorRT, and engines for it, for the tests of the session."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from fundus_rt.models.artifacts import sha256_of_bytes, sha256_of_file
from fundus_rt.models.card import CARD_KEY, card_from_json
from fundus_rt.models.engine_cache import EngineCache
from fundus_rt.models.engine_files import write_record
from fundus_rt.models.engines import EngineKey, EngineProfile, EngineRecord
from fundus_rt.runtime.nvidia import fused_kernel
from fundus_rt.runtime.nvidia.tensorrt_session import TensorRTSession
from tests.fake_cuda import install_fake_driver
from tests.fake_kernels import install_fake_kernels
from tests.fake_tensorrt import fake_plan, install_fake_tensorrt

BATCH = (1, 2, 4)


class FakeMachine:
    """One GPU of host memory with TensorRT 10.3.0.26, and a cache folder of its own."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, folder: Path, rtx: bool = False, **options: Any) -> None:
        monkeypatch.setenv("FUNDUS_RT_CACHE", str(folder / "cache"))
        self.folder = folder
        self.driver = install_fake_driver(monkeypatch, **options)
        self.trt = install_fake_tensorrt(monkeypatch, self.driver, rtx)
        monkeypatch.setattr(fused_kernel, "_COMPILED", {})  # what the fake compiler made is of no use to a real GPU

    def open(self, onnx_path: Path, batch: tuple[int, int, int] = BATCH, **options: Any) -> TensorRTSession:
        """A session on an engine file of a network."""
        self.install_kernels(onnx_path)
        return TensorRTSession(engine_of(onnx_path, self.folder, batch), **options)

    def install_kernels(self, onnx_path: Path) -> None:
        """Register the kernels that crop and resize as the network's card says."""
        install_fake_kernels(self.driver, card_from_json(json.dumps(card_of(onnx_path))).preprocessing)


def card_of(onnx_path: Path) -> dict[str, Any]:
    """The card in an ONNX file."""
    session = onnxruntime.InferenceSession(str(onnx_path), providers=["CPUExecutionProvider"])
    card: dict[str, Any] = json.loads(session.get_modelmeta().custom_metadata_map[CARD_KEY])
    return card


def record_of(onnx_path: Path, plan: bytes, batch: tuple[int, int, int], **changes: Any) -> EngineRecord:
    """The record of an engine for the fake machine, or with other values of its key, or of `built_at`."""
    machine = {"flavour": "tensorrt", "tensorrt_version": "10.3.0.26", "gpu_name": "Fake GPU", "compute_capability": "8.7"}
    stated = {
        "onnx_sha256": sha256_of_file(onnx_path),
        **machine,
        "cuda_driver": "12.6",
        "l4t": "",
        "multiprocessors": 8,
        **changes,
    }
    built_at = stated.pop("built_at", "2026-11-22T18:00:00Z")
    key = EngineKey(**{"profile": EngineProfile(batch), **stated})
    return EngineRecord(key, sha256_of_bytes(plan), len(plan), card_of(onnx_path), "fp32", built_at, 1.0)


def engine_of(onnx_path: Path, folder: Path, batch: tuple[int, int, int] = BATCH, **changes: Any) -> Path:
    """An engine file with its record beside it."""
    plan = fake_plan(onnx_path, batch)
    path = folder / f"{onnx_path.stem}.engine"
    path.write_bytes(plan)
    write_record(path, record_of(onnx_path, plan, batch, **changes))
    return path


def cache_engine(onnx_path: Path, batch: tuple[int, int, int] = BATCH, **changes: Any) -> Path:
    """An engine in the cache; its file."""
    plan = fake_plan(onnx_path, batch)
    record = record_of(onnx_path, plan, batch, **changes)

    def build(path: Path) -> EngineRecord:
        path.write_bytes(plan)
        return record

    return EngineCache().get_or_build(record.key, build, lambda sentence: None)[0]


def pictures(session: TensorRTSession, count: int, seed: int = 0) -> np.ndarray:
    """Noise of the network's input."""
    spec = session.card.preprocessing
    noise = np.random.default_rng(seed).integers(0, 256, (count, *spec.input_size, 3), np.uint8)
    return noise.astype(spec.input_dtype)


def require_same(answers: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    """The same outputs with the same numbers, but for how a batch is summed."""
    assert answers.keys() == expected.keys()
    for name, values in expected.items():
        assert answers[name].dtype == np.float32
        np.testing.assert_allclose(answers[name], values, rtol=1e-5, atol=1e-5)
