"""The benchmark on a GPU, without one: turns, statistics, table, and every way of an engine on a driver of host memory."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnxruntime")

from fundus_rt.benchmarks import gpu_figures, gpu_ways
from tests.conftest import environment
from tests.fake_engines import FakeMachine, cache_engine, record_of
from tests.fake_tensorrt import fake_plan


def figures(median: float, width: float = 0.1) -> dict[str, Any]:
    return {"median": median, "quartiles": [median - width, median + width], "p90": median + 2 * width, "rounds": 200}


RECORDED = {
    "engine": {"build_s": 41.6, "megabytes": 12.9},
    "backend": {"name": "tensorrt", "device": "NVIDIA H200", "version": "11.4.1.9"},
    "aim_fused_to_network_and_copy": 1.25,
    "batch_1_ms": {"network_only": figures(0.42, 0.02), "copy_only": figures(0.31, 0.01), "fused": figures(0.8, 0.03)},
    "fused_to_network_and_copy": figures(1.096, 0.02),
    "by_batch_ms_a_picture": {
        "1": {"network_only": figures(0.42), "onnxruntime_cuda": figures(1.9)},
        "8": {"network_only": figures(0.11), "onnxruntime_cuda": figures(0.7)},
        "16": {"network_only": figures(0.13), "onnxruntime_cuda": figures(0.6)},
    },
    "left_out": {"torch, batch 1 and above": "ModuleNotFoundError: No module named 'timm'"},
}
"""Of the form that a run writes; the numbers are made up, for the printer alone."""


def test_without_a_gpu_nothing_is_measured_and_nothing_written(tmp_path: Path) -> None:
    code = (
        "import sys; from unittest import mock; from fundus_rt.benchmarks import gpu_figures; "
        "from fundus_rt.models.errors import BackendUnavailableError\n"
        "with mock.patch.object(gpu_figures, 'machine_identity', side_effect=BackendUnavailableError('no driver')):\n"
        "    gpu_figures.main()"
    )
    call = [sys.executable, "-c", code, "--results", str(tmp_path / "results")]
    done = subprocess.run(call, capture_output=True, text=True, env=environment(), check=False)
    assert done.returncode == 2
    assert done.stderr == "not yet run: no GPU (no driver)\n"
    assert done.stdout == ""
    assert not list(tmp_path.iterdir())


def test_every_way_has_its_turn_in_every_round() -> None:
    now = [0.0]
    order: list[str] = []

    def way(name: str, seconds: float) -> Any:
        def call() -> None:
            order.append(name)
            now[0] += seconds

        return call

    times = gpu_figures.alternate({"a": way("a", 0.1), "b": way("b", 0.2), "c": way("c", 0.3)}, 4, lambda: now[0])
    assert order == list("aaabbbccc" + "abc" + "bca" + "cab" + "abc")
    assert {name: [round(value, 9) for value in values] for name, values in times.items()} == {
        "a": [0.1] * 4, "b": [0.2] * 4, "c": [0.3] * 4,
    }  # fmt: skip


def test_spread_by_hand() -> None:
    assert gpu_figures.spread([0.003, 0.001, 0.002]) == {"median": 2.0, "quartiles": [1.0, 3.0], "p90": 2.8, "rounds": 3}
    assert gpu_figures.spread([0.5], 1.0)["quartiles"] == [0.5, 0.5]


def test_the_table_says_what_is_met_and_what_was_not_run() -> None:
    lines = gpu_figures.table("mobilenet", RECORDED)
    assert "| fused | 0.800 | 0.770 to 0.830 |" in lines
    assert "| torch compile fp16 | not yet run |  |" in lines
    assert "fused to network and copy: 1.096 (1.076 to 1.116), aim 1.25: met" in lines
    assert "best batch: network_only 0.110 ms a picture at 8, onnxruntime_cuda 0.600 ms a picture at 16" in lines
    assert any("No module named 'timm'" in line for line in lines)
    worse = {**RECORDED, "fused_to_network_and_copy": figures(1.31)}
    assert any("aim 1.25: missed" in line for line in gpu_figures.table("mobilenet", worse))
    without = {**RECORDED, "fused_to_network_and_copy": None}
    assert not any("aim" in line for line in gpu_figures.table("mobilenet", without))


def test_the_record_is_named_after_gpu_and_library() -> None:
    assert gpu_figures.result_name("NVIDIA H200", {"mobilenet": RECORDED}) == "gpu-nvidia-h200-tensorrt11.4.1.9"


def test_an_engine_is_built_for_the_gpu_that_is_measured(monkeypatch: pytest.MonkeyPatch, tiny_sex: Path) -> None:
    called: list[str] = []
    command = SimpleNamespace(main=lambda words, standalone_mode: called.extend(words))
    monkeypatch.setattr("fundus_rt.runtime.commands.build.build", command)
    monkeypatch.setattr(gpu_figures, "EngineCache", lambda: SimpleNamespace(entries=lambda sha256: ["record"]))
    assert gpu_figures.build_engine(tiny_sex, "1,1,1", "cuda:1") == "record"
    assert called == [str(tiny_sex), "--batch", "1,1,1", "--device", "cuda:1"]


def test_the_search_for_the_crop_is_a_line_of_its_own(
    machine: FakeMachine, tiny_sex: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And no part of any other: the fused path gets the crop ready made."""
    searched: list[int] = []
    real = gpu_ways.find_field_of_view

    def find(frame: Any) -> Any:
        searched.append(frame.shape[1])
        return real(frame)

    monkeypatch.setattr(gpu_ways, "find_field_of_view", find)
    cache_engine(tiny_sex, (1, 1, 1))
    with (
        gpu_figures.TensorRTSession(tiny_sex, device="cuda:0", contexts=1) as session,
        gpu_ways.engine_ways(session, gpu_figures.photographs()) as ways,
    ):
        for name, way in ways.items():
            searched.clear()
            way()
            assert searched == ([90] if name == "field_of_view" else []), name
    assert "crop" in str(gpu_figures.__doc__).splitlines()[0]


def test_bytes_of_a_crop_that_reaches_beyond_the_frame() -> None:
    assert gpu_ways.crop_bytes((-10, 5, 90, 105), (100, 80, 3)) == 80 * 95 * 3


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tiny_sex: Path) -> FakeMachine:
    """A GPU of host memory, on which engines are built by copying."""
    fake = FakeMachine(monkeypatch, tmp_path)
    fake.install_kernels(tiny_sex)

    def build_engine(path: Path, batch: str, device: str) -> Any:
        assert device == "cuda:0"
        least, best, most = (int(part) for part in batch.replace("32", "4").replace("16", "2").split(","))
        cache_engine(path, (least, best, most), built_at=f"2026-11-22T18:00:0{most}Z")  # the later one is taken
        return record_of(path, fake_plan(path), (least, best, most))

    frames = [np.random.default_rng(seed).integers(0, 256, (80, 90 + seed, 3), dtype=np.uint8) for seed in range(2)]
    monkeypatch.setattr(gpu_figures, "build_engine", build_engine)
    monkeypatch.setattr(gpu_figures, "photographs", lambda: frames)
    return fake


def test_all_ways_of_an_engine(machine: FakeMachine, tiny_sex: Path) -> None:
    found = gpu_figures.network_figures("tiny", tiny_sex, "cuda:0", 6)
    assert set(found["batch_1_ms"]) == {
        "network_only", "copy_only", "fused", "field_of_view", "tensor_to_answer", "host_preprocessing", "host_and_network",
    }  # fmt: skip
    assert all(ways["rounds"] == 6 and ways["median"] > 0 for ways in found["batch_1_ms"].values())
    assert found["fused_to_network_and_copy"]["median"] > 0
    assert list(found["by_batch_ms_a_picture"]) == ["1", "2", "4"]
    assert "CUDAExecutionProvider" in found["left_out"]["onnxruntime_cuda, batch 1 and above"]
    assert "KeyError: 'tiny'" in found["left_out"]["torch, batch 1 and above"], "no network of torch is known for this file"
    assert len(found["left_out"]) == 2, "the same reason stands there once"
    assert any("not yet run" in line for line in gpu_figures.table("tiny", found))
    assert not any(machine.driver.live().values()), "everything was given back"


def test_the_record_is_kept(
    machine: FakeMachine, tiny_sex: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    results = tmp_path / "results"
    monkeypatch.setattr(sys, "argv", ["gpu_figures", "--model", str(tiny_sex), "--rounds", "5", "--results", str(results)])
    gpu_figures.main()
    (path,) = results.iterdir()
    record = json.loads(path.read_text())
    assert path.name == "gpu-fake-gpu-tensorrt10.3.0.26.json"
    assert record["environment"]["gpu"]["gpu_name"] == "Fake GPU"
    assert record["networks"]["tiny_sex"]["batch_1_ms"]["fused"]["rounds"] == 5
    assert "### tiny_sex" in capsys.readouterr().out
