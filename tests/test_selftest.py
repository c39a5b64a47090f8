"""`fundus-rt selftest`: each step fails when what it looks for is there, and the file survives everything."""

from __future__ import annotations

import io
import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from fundus_rt.models.artifacts import sha256_of_file
from fundus_rt.models.errors import ModelFileError
from fundus_rt.models.registry import bundled_file, load_card
from fundus_rt.runtime.decode import decode
from fundus_rt.runtime.device_check import selftest, selftest_device, selftest_examples, selftest_model
from fundus_rt.runtime.device_check.selftest import (
    FAILED,
    PASSED,
    SKIPPED,
    Outcome,
    SkipStep,
    Step,
    run_steps,
    summary,
)
from fundus_rt.runtime.device_check.selftest_model import Subject
from fundus_rt.runtime.preprocess import tensor_from_box
from tests import fake_kernels
from tests.conftest import environment

pytest.importorskip("onnxruntime")


def ran(steps: list[Step], path: Path) -> dict[str, Any]:
    return run_steps(steps, {"fundus_rt": "1"}, path, lambda name: None)


def raises(error: BaseException) -> Any:
    def work() -> Outcome:
        raise error

    return work


class TestTheFile:
    def test_every_kind_of_end_is_kept(self, tmp_path: Path) -> None:
        steps = [
            Step("well", lambda: Outcome(PASSED, "all is well", {"seconds": np.float32(1.5).item()})),
            Step("badly", lambda: Outcome(FAILED, "two levels apart")),
            Step("nothing", raises(SkipStep("no GPU"))),
            Step("refused", raises(ModelFileError("the file\n  is damaged"))),
            Step("broken", raises(ZeroDivisionError("division by zero"))),
        ]
        report = ran(steps, tmp_path / "report.json")
        assert json.loads((tmp_path / "report.json").read_text()) == report
        assert [(step["status"], step["reason"]) for step in report["steps"]] == [
            (PASSED, "all is well"),
            (FAILED, "two levels apart"),
            (SKIPPED, "no GPU"),
            (FAILED, "the file is damaged"),
            (FAILED, "ZeroDivisionError: division by zero"),
        ]
        assert report["passed"] is False
        assert report["running"] is None
        assert summary(report)[-1] == "1 passed, 3 failed, 1 skipped"

    def test_skipped_steps_do_not_fail_it(self, tmp_path: Path) -> None:
        assert ran([Step("nothing", raises(SkipStep("no GPU")))], tmp_path / "r.json")["passed"] is True

    def test_the_first_step_is_in_the_file_while_the_second_runs(self, tmp_path: Path) -> None:
        path = tmp_path / "report.json"
        seen = []

        def second() -> Outcome:
            seen.append(json.loads(path.read_text()))
            return Outcome(PASSED)

        ran([Step("first", lambda: Outcome(PASSED, "done")), Step("second", second)], path)
        assert seen[0]["running"] == "second"
        assert seen[0]["passed"] is False
        assert [step["name"] for step in seen[0]["steps"]] == ["first"]
        assert seen[0]["planned"] == ["first", "second"]

    def test_it_has_not_passed_before_the_last_step(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """The disk is full after the first step: what lies there then must not say that all was well."""
        path, real = tmp_path / "report.json", selftest._written

        def full(about: Any, done: Any, running: str | None, path: Path) -> Any:
            if running == "second":
                raise OSError(28, "No space left on device")
            return real(about, done, running, path)

        monkeypatch.setattr(selftest, "_written", full)
        with pytest.raises(OSError, match="No space"):
            ran([Step("first", lambda: Outcome(PASSED)), Step("second", lambda: Outcome(PASSED))], path)
        report = json.loads(path.read_text())
        assert ([step["status"] for step in report["steps"]], report["passed"]) == ([PASSED], False)

    def test_ctrl_c_ends_it_and_leaves_a_whole_file(self, tmp_path: Path) -> None:
        taken: list[str] = []
        steps = [Step("stopped", raises(KeyboardInterrupt())), Step("next", lambda: Outcome(taken.append("next") or PASSED))]
        with pytest.raises(KeyboardInterrupt):
            ran(steps, tmp_path / "r.json")
        report = json.loads((tmp_path / "r.json").read_text())
        assert (report["running"], report["passed"], taken) == ("stopped", False, [])

    def test_a_killed_process_leaves_what_it_had(self, tmp_path: Path) -> None:
        path = tmp_path / "report.json"
        code = (
            "import sys, time; from pathlib import Path; from fundus_rt.runtime.device_check.selftest import *\n"
            "steps = [Step('first', lambda: Outcome('passed', 'done')), Step('hangs', lambda: time.sleep(60))]\n"
            "run_steps(steps, {}, Path(sys.argv[1]), lambda name: print(name, flush=True))"
        )
        process = subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, text=True, env=environment())
        assert process.stdout is not None
        while process.stdout.readline().strip() != "hangs":
            assert process.poll() is None
        time.sleep(0.1)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        report = json.loads(path.read_text())
        assert report["running"] == "hangs"
        assert report["steps"][0]["reason"] == "done"


class TestPhotographs:
    def test_stored_frames_are_pillows(self) -> None:
        stored = selftest_examples.reference()["photographs"]
        assert sorted(stored) == [example.name for example in selftest_examples.examples()]
        example = selftest_examples.examples()[0]
        pixels = np.asarray(Image.open(io.BytesIO(example.content)).convert("RGB"))[..., ::-1]
        assert selftest_examples.levels_apart(pixels, stored[example.name]["frame"])["same"] is True

    def test_stored_answers_are_of_the_bundled_graph(self) -> None:
        """Computed by another implementation of ONNX, in plain NumPy."""
        onnx = pytest.importorskip("onnx")
        from onnx.reference import ReferenceEvaluator

        card = load_card("acquisition")
        example = next(e for e in selftest_examples.examples() if e.name == "haggstrom_right")
        stored = selftest_examples.reference()["photographs"][example.name]
        tensor = selftest_examples.tensor_in_box(example.content, stored["box"], card)[None]
        evaluator = ReferenceEvaluator(onnx.load(bundled_file(card)))
        names = [output.name for output in card.outputs]
        for name, numbers in zip(names, evaluator.run(names, {"frames": tensor}), strict=True):
            assert np.abs(np.asarray(numbers)[0] - stored["answers"][name]).max() < 1e-4, (
                "run benchmarks/make_example_answers.py again"
            )

    def test_one_level_is_told_from_exchanged_colours(self) -> None:
        picture = selftest_device.drawn_picture(64, 80)
        stored = selftest_examples.fingerprint(picture)
        assert selftest_examples.levels_apart(picture, stored) == {"same": True, "largest_levels": 0.0, "mean_levels": 0.0}
        other = picture.copy()
        other[::2] ^= 1
        assert 0 < selftest_examples.levels_apart(other, stored)["largest_levels"] <= 1
        assert selftest_examples.levels_apart(picture[..., ::-1], stored)["largest_levels"] > 50
        with pytest.raises(ValueError, match=r"\[63, 80, 3\]"):
            selftest_examples.levels_apart(picture[1:], stored)

    @pytest.fixture
    def one_example(self, monkeypatch: pytest.MonkeyPatch) -> None:
        few = [example for example in selftest_examples.examples() if example.name == "idrid_005"]
        for module in (selftest_device, selftest_model):
            monkeypatch.setattr(module, "examples", lambda: few)

    def test_decoding(self, one_example: None, monkeypatch: pytest.MonkeyPatch) -> None:
        assert selftest_device.decoding().status == PASSED

        def swapped(content: bytes) -> SimpleNamespace:
            return SimpleNamespace(frame=np.ascontiguousarray(decode(content).frame[..., ::-1]))

        monkeypatch.setattr(selftest_device, "decode", swapped)
        found = selftest_device.decoding()
        assert found.status == FAILED
        assert found.figures["largest_levels"] > 50

    def test_fields_of_view(self, one_example: None, monkeypatch: pytest.MonkeyPatch) -> None:
        assert selftest_device.fields_of_view().status == PASSED
        real = selftest_device.crop_box
        monkeypatch.setattr(selftest_device, "crop_box", lambda *given: tuple(edge + 3 for edge in real(*given)))
        found = selftest_device.fields_of_view()
        assert (found.status, found.figures["largest_pixels"], found.figures["other_crops"]) == (FAILED, 3, 1)

    def test_resizing(self, one_example: None, monkeypatch: pytest.MonkeyPatch) -> None:
        found = selftest_device.resizing()
        assert found.status == PASSED
        assert max(found.figures["largest_levels_by_filter"].values()) <= 1
        real = selftest_device.resize  # type: ignore[attr-defined]

        def usual_choice(picture: Any, size: tuple[int, int], name: str) -> Any:
            return cv2.resize(picture, size[::-1]) if name == "pillow-bilinear" else real(picture, size, name)

        monkeypatch.setattr(selftest_device, "resize", usual_choice)
        found = selftest_device.resizing()
        assert found.status == FAILED
        assert found.figures["largest_levels_by_filter"]["pillow-bilinear"] > 10


class TestModel:
    @pytest.fixture
    def subject(self, monkeypatch: pytest.MonkeyPatch) -> Subject:
        few = [e for e in selftest_examples.examples() if e.name in ("haggstrom_right", "idrid_005", "idrid_085")]
        monkeypatch.setattr(selftest_model, "examples", lambda: few)
        subject = Subject("acquisition", "onnxruntime", "cpu")
        assert selftest_model.open_model(subject).status == PASSED
        return subject

    def test_a_model_that_is_not_open_is_skipped(self) -> None:
        with pytest.raises(SkipStep):
            selftest_model.receipts(Subject("acquisition", "onnxruntime", "cpu"))

    def test_receipts(self, subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
        assert selftest_model.receipts(subject).figures == {"pairs": 2}
        monkeypatch.setattr(selftest_model, "check_receipt", lambda batch, receipt: None)
        found = selftest_model.receipts(subject)
        assert (found.status, "exchanged" in found.reason) == (FAILED, True)

    def test_canary(self, subject: Subject) -> None:
        assert selftest_model.canary(subject).status == PASSED
        session = subject.opened()._session
        real = session.run
        session.run = lambda batch: {name: rows * 0.5 for name, rows in real(batch).items()}  # type: ignore[method-assign]
        found = selftest_model.canary(subject)
        assert found.status == FAILED
        assert "away from the known answers" in found.reason

    def test_answers(self, subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
        found = selftest_model.answers(subject)
        assert found.status == PASSED
        assert found.figures["from_bytes"]["changed_decisions"] == []
        altered = json.loads(json.dumps(selftest_examples.reference()))
        altered["photographs"]["idrid_005"]["answers"]["eye"].reverse()
        monkeypatch.setattr(selftest_model, "reference", lambda: altered)
        found = selftest_model.answers(subject)
        assert found.status == FAILED
        assert found.figures["same_crop"]["changed_decisions"] == ["idrid_005: eye"]
        assert found.figures["from_bytes"]["changed_decisions"] == ["idrid_005: eye"]

    def test_answers_within_the_same_decisions_have_a_tolerance(self, subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
        altered = json.loads(json.dumps(selftest_examples.reference()))
        altered["photographs"]["idrid_085"]["answers"]["fundus"][0] -= 0.01
        monkeypatch.setattr(selftest_model, "reference", lambda: altered)
        found = selftest_model.answers(subject)
        same_crop = found.figures["same_crop"]
        assert (found.status, same_crop["changed_decisions"]) == (FAILED, [])
        assert same_crop["largest_difference_probability"]["fundus"] == pytest.approx(0.01, abs=1e-4)

    def test_a_crop_that_is_moved_by_this_device_is_told_apart(self, subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
        """As OpenCV 4.5 and 5.0 do on one of the examples: probabilities move, the network's arithmetic is not to blame."""
        from fundus_rt.runtime import pipeline

        real = pipeline.crop_box
        monkeypatch.setattr(pipeline, "crop_box", lambda *given: tuple(edge + 1 for edge in real(*given)))
        found = selftest_model.answers(subject)
        assert max(found.figures["same_crop"]["largest_difference_probability"].values()) < 1e-4
        assert max(found.figures["from_bytes"]["largest_difference_probability"].values()) > 1e-3

    @pytest.mark.parametrize(("shift", "status"), [(0, PASSED), (6, FAILED)])
    def test_whole_frames(self, subject: Subject, shift: int, status: str) -> None:
        with pytest.raises(SkipStep, match="on the host"):
            selftest_model.frames(subject)
        pipeline = subject.opened()
        session = pipeline._session

        def run_frame(frame: Any, box: Any, mirror: bool) -> Any:
            moved = np.roll(frame, shift * frame.shape[1] // 32, axis=1)
            return session.run(tensor_from_box(moved, box, pipeline.card.preprocessing, mirror)[None])

        subject.pipeline = SimpleNamespace(  # type: ignore[assignment]
            card=pipeline.card, _session=SimpleNamespace(takes_frames=True, run=session.run, run_frame=run_frame)
        )
        assert selftest_model.frames(subject).status == status

    def test_cold_start(self, subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PYTHONPATH", environment()["PYTHONPATH"])
        found = selftest_model.cold_start(subject)
        assert found.status == PASSED
        assert 0 < found.figures["open_s"] < found.figures["first_answer_s"] < found.figures["process_s"]
        subject.device = "tpu"
        found = selftest_model.cold_start(subject)
        assert (found.status, "tpu" in found.reason) == (FAILED, True)

    def test_another_backend_at_the_end_than_at_the_beginning_fails(self, subject: Subject) -> None:
        assert subject.began_on["name"] == "onnxruntime" and subject.began_on["provider"] == "CPUExecutionProvider"
        closed: list[bool] = []
        subject.pipeline = SimpleNamespace(  # type: ignore[assignment]
            backend=SimpleNamespace(name="tensorrt", device="GPU", version=subject.began_on["version"]),
            standing_warnings=("the GPU was lost",), _session=SimpleNamespace(_session=None), close=lambda: closed.append(True),
        )  # fmt: skip
        found = selftest_model.close_model(subject)
        assert (found.status, closed) == (FAILED, [True])
        assert "name onnxruntime -> tensorrt, device" in found.reason and "version" not in found.reason
        assert found.figures["warnings"] == ["the GPU was lost"]

    def test_the_same_backend_at_the_end_passes(self, subject: Subject) -> None:
        begun = subject.began_on
        found = selftest_model.close_model(subject)
        assert (found.status, found.figures["backend"], subject.pipeline) == (PASSED, begun, None)

    def test_latency(self, subject: Subject) -> None:
        figures = selftest_model.latency(subject, 6).figures
        assert figures["bytes_to_result_ms"]["samples"] == figures["network_ms"]["samples"] == 6
        assert figures["network_ms"]["p50"] < figures["bytes_to_result_ms"]["p50"]


def test_statistics_are_numpys_percentiles_in_milliseconds() -> None:
    """By hand: the ninth tenth of 1 ... 11 is the tenth value."""
    seconds = [value / 1e3 for value in (11, 2, 9, 4, 7, 6, 5, 8, 3, 10, 1)]
    assert selftest_model.statistics_ms(seconds) == {"samples": 11, "p50": 6.0, "p90": 10.0, "min": 1.0, "max": 11.0}


def test_clocks(tmp_path: Path) -> None:
    core, gpu = tmp_path / "cpu" / "cpu0" / "cpufreq", tmp_path / "devfreq" / "17000000.gpu"
    for folder in (core, gpu):
        folder.mkdir(parents=True)
    (core / "scaling_governor").write_text("schedutil\n")
    (core / "scaling_max_freq").write_text("1510400\n")
    (gpu / "cur_freq").write_text("306000000\n")
    found = selftest_device.clocks(tmp_path / "cpu", tmp_path / "devfreq").figures["clocks"]
    assert found == {
        "cpu0": {"scaling_governor": "schedutil", "scaling_max_freq_mhz": 1510.4},
        "17000000.gpu": {"cur_freq_mhz": 306.0},
    }
    with pytest.raises(SkipStep):
        selftest_device.clocks(tmp_path / "none", tmp_path / "none")


@pytest.mark.parametrize(("kernel_shift", "status"), [(0, PASSED), (40, FAILED)])
def test_photographs_resized_on_the_gpu_and_on_the_host(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kernel_shift: int, status: str
) -> None:
    """A whole session on a driver of host memory; the kernels that resize give other levels than the host in one case."""
    from fundus_rt.models.registry import bundled_file
    from tests.fake_engines import FakeMachine, engine_of

    path = bundled_file(load_card("acquisition"))
    machine = FakeMachine(monkeypatch, tmp_path)
    machine.install_kernels(path)
    few = [e for e in selftest_examples.examples() if e.name in ("haggstrom_right", "idrid_005")]
    monkeypatch.setattr(selftest_model, "examples", lambda: few)
    subject = Subject(engine_of(path, tmp_path), "tensorrt", "cuda:0")
    opened = selftest_model.open_model(subject)
    assert opened.figures["backend"]["device"] == "Fake GPU"
    if kernel_shift:  # only now: a session whose kernels are wrong from the beginning is not even opened
        real = fake_kernels.resize_box
        monkeypatch.setattr(fake_kernels, "resize_box", lambda *given: np.roll(real(*given), kernel_shift, axis=1))
    assert selftest_model.frames(subject).status == status
    assert selftest_model.latency(subject, 5).figures["gpu_memory_in_use_mb"] > 0
    selftest_model.close_model(subject)


def test_the_stored_answers_are_of_the_bundled_file() -> None:
    assert selftest_examples.reference()["model_sha256"] == sha256_of_file(bundled_file(load_card("acquisition")))
