"""`fundus-rt selftest` as a command: its steps in one call, its engine, its exit status."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import re
from pathlib import Path
from types import SimpleNamespace

import pytest

from fundus_rt.models.engines import EngineKey, EngineRecord
from fundus_rt.models.errors import BackendUnavailableError
from fundus_rt.runtime.commands import build
from fundus_rt.runtime.commands import selftest as command
from fundus_rt.runtime.device_check.selftest import FAILED, SKIPPED, SkipStep, run_steps
from tests.conftest import Run

pytest.importorskip("onnxruntime")


class TestCommand:
    @pytest.mark.parametrize(("backend", "device"), [("auto", "cpu"), ("onnxruntime", "cuda:0"), ("auto", "cuda:0")])
    def test_no_engine_is_needed(self, backend: str, device: str) -> None:
        if device != "cpu" and importlib.util.find_spec("tensorrt"):
            pytest.skip("TensorRT is installed")
        with pytest.raises(SkipStep, match="no engine"):
            command._engine("acquisition", backend, device)

    def test_an_engine_that_was_asked_for_needs_tensorrt(self) -> None:
        if importlib.util.find_spec("tensorrt"):
            pytest.skip("TensorRT is installed")
        with pytest.raises(BackendUnavailableError, match="TensorRT"):
            command._engine("acquisition", "tensorrt", "cuda:0")

    def test_an_engine_is_built_as_the_command_does(self, monkeypatch: pytest.MonkeyPatch, tiny_sex: Path) -> None:
        built: list[str] = []
        cache: list[EngineRecord] = []
        key = EngineKey("0" * 64, "tensorrt", "10.3.0.26", "Orin", "8.7", "12.6", "36.4.3")
        record = EngineRecord(key, "1" * 64, 13_000_000, {}, "fp32", "2026-11-22T12:00:00+00:00", 612.5)

        def build(arguments: list[str], standalone_mode: bool) -> None:
            built.extend(arguments)
            cache.append(record)
            cache.append(
                dataclasses.replace(record, key=dataclasses.replace(key, gpu_name="T4"), built_at="2099", build_seconds=1)
            )

        monkeypatch.setattr(
            "fundus_rt.runtime.nvidia.machine.machine_identity", lambda index: SimpleNamespace(gpu_name=("T4", "Orin")[index])
        )
        monkeypatch.setattr(
            "fundus_rt.runtime.nvidia.tensorrt_library.import_tensorrt",
            lambda: SimpleNamespace(flavour="tensorrt", version="10.3"),
        )
        monkeypatch.setattr(
            "fundus_rt.models.engine_cache.EngineCache", lambda: SimpleNamespace(entries=lambda sha256: list(cache))
        )
        monkeypatch.setattr("fundus_rt.runtime.commands.build.build", SimpleNamespace(main=build))
        first = command._engine(str(tiny_sex), "tensorrt", "cuda:1")
        assert [Path(name).name for name in built[:2]] == ["tiny_sex.onnx", "acquisition.onnx"], "every photograph is shown to it"
        assert built[2:] == ["--device", "cuda:1"]
        again = command._engine("acquisition", "tensorrt", "cuda:1")
        assert first.figures == {
            "built_now": True, "build_s": 612.5, "engine_mb": 13.0, "precision": "fp32", "library": "tensorrt 10.3",
        }  # fmt: skip
        assert again.figures["built_now"] is False

    def test_ctrl_c_during_a_build_stops_the_whole_test(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        """Click makes an error of it that is an ordinary one to whoever catches those."""

        def stopped(*_: object, **__: object) -> None:
            raise KeyboardInterrupt

        monkeypatch.setenv("FUNDUS_RT_CACHE", str(tmp_path))
        monkeypatch.setattr(build.build, "callback", stopped)
        monkeypatch.setattr(
            "fundus_rt.runtime.nvidia.tensorrt_library.import_tensorrt",
            lambda: SimpleNamespace(flavour="tensorrt", version="10.3"),
        )
        steps = [step for step in command._steps(("acquisition",), "tensorrt", "cuda:0", 5) if step.name in ("engine", "opening")]
        with pytest.raises(KeyboardInterrupt):
            run_steps(steps, {}, tmp_path / "report.json", lambda name: None)
        assert json.loads((tmp_path / "report.json").read_text())["running"] == "engine"

    def test_one_call(self, fundus_rt: Run, tmp_path: Path, tiny_sex: Path) -> None:
        path = tmp_path / "report.json"
        done = fundus_rt("selftest", "--samples", 5, "--model", tiny_sex, "--output", path)
        report = json.loads(path.read_text())
        by_name = {step["name"]: step for step in report["steps"]}
        assert done.returncode == 0, done.stdout + done.stderr
        assert report["passed"] is True
        assert report["planned"] == list(by_name) and report["models"] == ["model 1.onnx"]
        assert by_name["opening"]["figures"]["model"]["name"] == "tiny-sex"
        assert by_name["latency"]["figures"]["bytes_to_result_ms"]["samples"] == 5
        assert by_name["engine"]["status"] == by_name["answers"]["status"] == SKIPPED
        assert f"{len(by_name) - sum(s['status'] == SKIPPED for s in report['steps'])} passed, 0 failed" in done.stdout
        assert str(tmp_path) not in path.read_text()

    def test_a_model_that_cannot_be_opened(self, fundus_rt: Run, tmp_path: Path) -> None:
        folder = tmp_path / "jane doe"
        folder.mkdir()
        (folder / "secret_name.onnx").write_bytes(b"nothing")
        path = tmp_path / "report.json"
        done = fundus_rt("selftest", "--model", folder / "secret_name.onnx", "--output", path)
        assert done.returncode == 1
        assert "failed   opening" in done.stdout
        assert "kept in" in done.stdout
        assert not re.search(r"secret|jane|\bdoe\b", path.read_text() + "".join(done.stdout.splitlines()[:-1]))

    def test_no_part_of_a_models_name_is_in_the_file(self, fundus_rt: Run, tmp_path: Path) -> None:
        models = ["Jane Doe/pat/missing.onnx", "Jane Doe 1960.onnx", "jane_doe", "file:///mnt/jane/doe.onnx"]
        path = tmp_path / "report.json"
        done = fundus_rt("selftest", *(word for model in models for word in ("--model", model)), "--output", path)
        opened = [step for step in json.loads(path.read_text())["steps"] if step["name"].endswith("opening")]
        assert done.returncode == 1 and len(opened) == 4
        assert all(step["status"] == FAILED and "model" in step["reason"] for step in opened)
        numbers_aside = re.sub(r"\d*\.\d+|[0-9a-f]{16,}", "", path.read_text())  # a time or a hash may hold any digits
        assert not re.search(r"jane|\bdoe\b|1960|\bpat\b|missing\.onnx", numbers_aside, re.IGNORECASE)

    def test_a_folder_that_is_not_there(self, fundus_rt: Run, tmp_path: Path) -> None:
        done = fundus_rt("selftest", "--output", tmp_path / "none" / "report.json")
        assert done.returncode == 2
        assert "make it first" in done.stderr
