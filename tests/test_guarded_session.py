"""The session that asks for its known pictures: every fault a device can have is injected here."""

from __future__ import annotations

import dataclasses
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fundus_rt.models.errors import (
    CanaryError,
    DeviceLostError,
    DeviceMemoryError,
    ModelFileError,
    ReceiptError,
)
from fundus_rt.models.registry import load_card
from fundus_rt.runtime import guarded_session
from fundus_rt.runtime.guarded_session import GuardedSession, open_guarded
from fundus_rt.runtime.onnx_session import OnnxRuntimeSession
from fundus_rt.runtime.pipeline import Pipeline
from fundus_rt.runtime.preprocess import tensor_from_box
from fundus_rt.runtime.result import Result
from tests.faulty_session import (
    Answers,
    CropsItself,
    Faulty,
    first_row_for_all,
    lost,
    other_weights,
    stale,
    stale_outputs_only,
    swapped_rows,
    zeros,
)
from tests.photographs import half_and_half


class TestGuard:
    def test_a_sound_session_opens_and_answers_as_without_a_guard(self, tiny_sex: Path) -> None:
        session = GuardedSession(Faulty(tiny_sex))
        batch = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), np.uint8)
        assert np.array_equal(session.run(batch)["sex"], OnnxRuntimeSession(tiny_sex).run(batch)["sex"])
        assert session.warnings == ()

    @pytest.mark.parametrize(
        ("fault", "said"),
        [
            (swapped_rows, "exchanged"),
            (first_row_for_all, "one answer was given for both"),
            (other_weights, "away from the known answers"),
            (zeros, "one answer was given for both"),
        ],
    )
    def test_a_fault_stops_it_at_the_start(self, tiny_sex: Path, fault: Any, said: str) -> None:
        faulty = Faulty(tiny_sex, fault)
        with pytest.raises(CanaryError, match=said):
            GuardedSession(faulty)
        assert faulty.closed

    @pytest.mark.parametrize("fault", [swapped_rows, first_row_for_all, other_weights, zeros])
    def test_a_fault_that_comes_later_stops_it_within_n_answers(self, tiny_sex: Path, fault: Any) -> None:
        faulty = Faulty(tiny_sex)
        session = GuardedSession(faulty, every=6)
        batch = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), np.uint8)
        session.run(batch)
        faulty.fault = fault
        given = 0
        with pytest.raises(CanaryError):
            while given < 20:
                session.run(batch)
                given += len(batch)
        assert given < 6
        faulty.fault = None
        with pytest.raises(CanaryError):  # it stays stopped, whatever the device does now
            session.run(batch)

    def test_outputs_that_got_stuck_are_seen_by_the_changing_order(self, tiny_sex: Path) -> None:
        """ONNX Runtime #20050: the outputs of an earlier run are given again, here those of the first look itself."""
        session = GuardedSession(Faulty(tiny_sex, stale_outputs_only), every=2)
        with pytest.raises(CanaryError, match="exchanged"):
            session.run(np.zeros((2, 64, 64, 3), np.uint8))

    def test_stale_receipts_stop_it_at_the_first_other_picture(self, tiny_sex: Path) -> None:
        session = GuardedSession(Faulty(tiny_sex, stale))
        with pytest.raises(ReceiptError):
            session.run(np.zeros((2, 64, 64, 3), np.uint8))
        with pytest.raises(ReceiptError):
            session.run(np.zeros((2, 64, 64, 3), np.uint8))

    def test_the_two_pictures_are_asked_for_in_changing_order(self, tiny_sex: Path) -> None:
        faulty = Faulty(tiny_sex)
        session = GuardedSession(faulty, every=1)
        session.run(np.zeros((1, 64, 64, 3), np.uint8))
        first, second = (batch for batch in faulty.batches if len(batch) == 2)
        assert np.array_equal(first, second[::-1])
        assert not np.array_equal(first[0], first[1])

    def test_answers_under_way_are_not_given_after_another_thread_found_the_fault(self, tiny_sex: Path) -> None:
        faulty = Faulty(tiny_sex)
        session = GuardedSession(faulty)
        inside, let_go = threading.Event(), threading.Event()

        def slow(faulty: Faulty, batch: Any, answers: Answers) -> Answers:
            inside.set()
            assert let_go.wait(30)
            return answers

        faulty.fault = slow
        ended: list[Any] = []

        def ask() -> None:
            try:
                ended.append(session.run(np.zeros((1, 64, 64, 3), np.uint8)))
            except CanaryError as error:
                ended.append(error)

        waiting = threading.Thread(target=ask)
        waiting.start()
        assert inside.wait(30)
        session._stop(CanaryError("found by another thread"))
        let_go.set()
        waiting.join(30)
        assert [type(end) for end in ended] == [CanaryError]

    def test_a_look_that_could_not_be_made_is_due_again(self, tiny_sex: Path) -> None:
        def breaks(faulty: Faulty, batch: Any, answers: Answers) -> Answers:
            if len(batch) == 2:
                raise guarded_session.ModelFileError("the engine refuses two pictures")
            return answers

        faulty = Faulty(tiny_sex)
        session = GuardedSession(faulty, every=3)
        faulty.fault = breaks
        given = errors = 0
        for _ in range(12):
            try:
                session.run(np.zeros((1, 64, 64, 3), np.uint8))
                given += 1
            except ModelFileError:
                errors += 1
        assert (given, errors) == (2, 10)

    def test_a_file_without_known_answers_says_so(self, tiny_sex: Path) -> None:
        faulty = Faulty(tiny_sex)
        faulty.card = dataclasses.replace(faulty.card, canary={})
        assert "no pictures with known answers" in GuardedSession(faulty).warnings[0]
        assert not faulty.batches

    def test_a_damaged_canary_is_a_damaged_file(self, tiny_sex: Path) -> None:
        faulty = Faulty(tiny_sex)
        faulty.card = dataclasses.replace(faulty.card, canary={"drawing": 1})
        with pytest.raises(ModelFileError, match="convert the checkpoint again"):
            GuardedSession(faulty)


class TestGoingOn:
    def test_a_lost_gpu_stops_a_backend_that_was_asked_for(self, tiny_sex: Path) -> None:
        faulty = Faulty(tiny_sex)
        session = GuardedSession(faulty)
        faulty.fault = lost
        for _ in range(2):
            with pytest.raises(DeviceLostError):
                session.run(np.zeros((1, 64, 64, 3), np.uint8))

    @pytest.mark.parametrize("error", [DeviceLostError("it is gone"), DeviceMemoryError("it is full")])
    def test_auto_goes_on_by_saying_so_in_every_result(self, tiny_sex: Path, error: Exception) -> None:
        def fails(faulty: Faulty, batch: Any, answers: Answers) -> Answers:
            raise error

        faulty = Faulty(tiny_sex)
        session = GuardedSession(faulty, continue_with=lambda: OnnxRuntimeSession(tiny_sex))
        batch = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), np.uint8)
        expected = session.run(batch)["sex"]
        assert session.backend.device == "cuda:0"
        faulty.fault = fails
        assert np.array_equal(session.run(batch)["sex"], expected)
        assert session.backend.device == "cpu"
        assert faulty.closed
        assert str(error) in session.warnings[0]
        assert "cpu" in session.warnings[0]

    def test_a_gpu_that_is_lost_at_the_start(self, tiny_sex: Path) -> None:
        session = GuardedSession(Faulty(tiny_sex, lost), continue_with=lambda: OnnxRuntimeSession(tiny_sex))
        assert session.backend.device == "cpu"
        with pytest.raises(DeviceLostError):
            GuardedSession(Faulty(tiny_sex, lost))

    def test_the_second_backend_has_to_know_the_pictures_too(self, tiny_sex: Path) -> None:
        with pytest.raises(CanaryError):
            GuardedSession(Faulty(tiny_sex, lost), continue_with=lambda: Faulty(tiny_sex, other_weights))

    def test_the_second_backend_is_looked_at_before_it_answers(self, tiny_sex: Path) -> None:
        faulty, other = Faulty(tiny_sex), Faulty(tiny_sex, other_weights)
        session = GuardedSession(faulty, continue_with=lambda: other)
        faulty.fault = lost
        for _ in range(2):
            with pytest.raises(CanaryError):
                session.run(np.zeros((1, 64, 64, 3), np.uint8))
        assert faulty.closed and other.closed

    def test_a_call_that_meets_the_closed_session_is_asked_again(self, tiny_sex: Path) -> None:
        """One thread goes on with the CPU and closes the session under another thread's call."""
        faulty = Faulty(tiny_sex)
        session = GuardedSession(faulty, continue_with=lambda: OnnxRuntimeSession(tiny_sex))

        def closed_meanwhile(faulty: Faulty, batch: Any, answers: Answers) -> Answers:
            assert session._may_continue(DeviceLostError("seen by another thread"), faulty)
            raise ValueError("this session is closed; open a new one")

        faulty.fault = closed_meanwhile
        batch = np.zeros((1, 64, 64, 3), np.uint8)
        answers, backend = session.answer(batch)
        assert np.array_equal(answers["sex"], OnnxRuntimeSession(tiny_sex).run(batch)["sex"])
        assert backend.device == "cpu"

    def test_no_backend_to_go_on_with_is_said_with_the_first_cause(self, tiny_sex: Path) -> None:
        def missing() -> Any:
            raise guarded_session.BackendUnavailableError("ONNX Runtime is not installed")

        with pytest.raises(DeviceLostError, match=r"does not answer.*ONNX Runtime is not installed"):
            GuardedSession(Faulty(tiny_sex, lost), continue_with=missing)

    def test_a_backend_that_fails_in_its_own_way_stops_the_session_too(self, tiny_sex: Path) -> None:
        def broken() -> Any:
            raise RuntimeError("out of handles")

        faulty = Faulty(tiny_sex)
        session = GuardedSession(faulty, continue_with=broken)
        faulty.fault = lost
        for _ in range(2):
            with pytest.raises(DeviceLostError, match="out of handles"):
                session.run(np.zeros((1, 64, 64, 3), np.uint8))

    def test_nothing_is_opened_once_it_is_closed(self, tiny_sex: Path) -> None:
        """A device that is lost while another thread closes the session: nothing may answer after that."""
        opened: list[Any] = []
        faulty = Faulty(tiny_sex)
        session = GuardedSession(faulty, continue_with=lambda: opened.append(0) or OnnxRuntimeSession(tiny_sex))

        def closed_meanwhile(faulty: Faulty, batch: Any, answers: Answers) -> Answers:
            session.close()
            raise DeviceLostError("it is gone")

        faulty.fault = closed_meanwhile
        with pytest.raises(DeviceLostError):
            session.run(np.zeros((1, 64, 64, 3), np.uint8))
        assert not opened and faulty.closed

    def test_results_name_the_device_and_the_cause(self, tiny_sex: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        faulty = Faulty(tiny_sex)
        guarded = GuardedSession(faulty, continue_with=lambda: OnnxRuntimeSession(tiny_sex))
        monkeypatch.setattr("fundus_rt.runtime.pipeline.open_guarded", lambda *_: guarded)
        pipeline = Pipeline(tiny_sex, check=False)
        assert not pipeline(half_and_half(60, 180)).warnings
        faulty.fault = lost
        for _ in range(2):
            result = pipeline(half_and_half(60, 180))
            assert result.backend.device == "cpu"
            assert any("does not answer" in warning for warning in result.warnings)

    def test_a_frame_that_a_cpu_has_to_crop_gives_the_same_answer(self, tiny_sex: Path) -> None:
        guarded = GuardedSession(Faulty(tiny_sex))
        frame, box = half_and_half(60, 180), (10, 5, 190, 185)
        tensor = tensor_from_box(frame, box, guarded.card.preprocessing, mirror=True)
        expected = guarded.run(tensor[None])["sex"]
        assert np.array_equal(guarded.run_frame(frame, box, True)["sex"], expected)

    def test_a_file_that_was_replaced_since_is_not_gone_on_with(self, tiny_sex: Path) -> None:
        first, second = Faulty(tiny_sex, lost), Faulty(tiny_sex)
        second.file_sha256 = "ab" * 32
        with pytest.raises(DeviceLostError, match="the model's file was replaced since it was opened"):
            GuardedSession(first, continue_with=lambda: second)
        assert second.closed


class TestWholeFrames:
    def test_a_sound_way_opens_and_is_looked_at_straight_and_mirrored(self, tiny_sex: Path) -> None:
        session = CropsItself(tiny_sex)
        GuardedSession(session)
        assert session.frames == 2

    @pytest.mark.parametrize(
        "wrong",
        [
            lambda tensor: np.ascontiguousarray(tensor[:, ::-1]),
            lambda tensor: np.roll(tensor, 3, axis=1),
            lambda tensor: tensor // 2,
            np.zeros_like,
        ],
        ids=["mirrored", "shifted", "darker", "black"],
    )
    def test_kernels_that_make_another_picture_stop_it(self, tiny_sex: Path, wrong: Any) -> None:
        """Their receipts are honest sums of the wrong picture: only the host's own crop and resize can tell."""
        session = CropsItself(tiny_sex, wrong)
        with pytest.raises(CanaryError, match="host's crop and resize"):
            GuardedSession(session)
        assert session.closed

    def test_kernels_that_go_wrong_later_are_found(self, tiny_sex: Path) -> None:
        session = CropsItself(tiny_sex)
        guarded = GuardedSession(session, every=4)
        session.wrong = np.zeros_like
        frame = half_and_half(60, 180)
        with pytest.raises(CanaryError):
            for _ in range(4):
                guarded.run_frame(frame, (0, 0, 200, 200), False)

    def test_a_prepared_picture_does_not_change_with_the_cameras_buffer(
        self, tiny_sex: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Box, eye and pixels are of one frame, whatever the camera writes into its buffer next."""
        monkeypatch.setattr("fundus_rt.runtime.pipeline.open_guarded", lambda *_: GuardedSession(CropsItself(tiny_sex)))
        pipeline = Pipeline(tiny_sex, check=False)
        camera = pipeline.frame_buffer(400, 600)
        camera[:] = half_and_half(60, 180)
        expected = pipeline(camera).outputs["sex"].value
        prepared = pipeline.prepare(camera, {})
        camera[:] = half_and_half(200, 20)
        result = pipeline.finish([prepared])[0]
        assert isinstance(result, Result)
        assert result.outputs["sex"].value == expected


class TestChoosingABackend:
    def test_a_cpu_is_onnx_runtime(self) -> None:
        session = open_guarded("acquisition")
        assert (session.backend.name, session.backend.device) == ("onnxruntime", "cpu")
        assert session.warnings == ()

    def test_auto_says_why_it_did_not_take_tensorrt(self, tiny_sex: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def opened(model: Any, backend: str, device: str, threads: Any = None) -> Any:
            if backend == "tensorrt":
                raise guarded_session.EngineMissingError("no engine of this model yet")
            return Faulty(tiny_sex)

        monkeypatch.setattr(guarded_session, "open_session", opened)
        session = open_guarded(tiny_sex, "auto", "cuda:0")
        assert session.warnings == ("TensorRT was not used (no engine of this model yet)",)

    @pytest.mark.parametrize("error", [DeviceLostError("it is gone"), DeviceMemoryError("it is full")])
    def test_auto_goes_on_when_the_gpu_fails_at_the_start(
        self, tiny_sex: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
    ) -> None:
        def opened(model: Any, backend: str, device: str, threads: Any = None) -> Any:
            if device == "cpu":
                return OnnxRuntimeSession(tiny_sex)
            raise error

        monkeypatch.setattr(guarded_session, "open_session", opened)
        session = open_guarded(tiny_sex, "auto", "cuda:0")
        assert session.backend.device == "cpu"
        assert len(session.warnings) == 1 and str(error) in session.warnings[0]

    def test_auto_names_every_way_that_it_tried(self, tiny_sex: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def opened(model: Any, backend: str, device: str, threads: Any = None) -> Any:
            raise (
                guarded_session.EngineMissingError("run `fundus-rt build`")
                if backend == "tensorrt"
                else (guarded_session.BackendUnavailableError("no CUDA provider"))
            )

        monkeypatch.setattr(guarded_session, "open_session", opened)
        with pytest.raises(guarded_session.BackendUnavailableError, match=r"fundus-rt build.*no CUDA provider"):
            open_guarded(tiny_sex, "auto", "cuda:0")

    def test_the_cards_own_canary_is_what_is_shipped(self) -> None:
        assert open_guarded("acquisition").card.canary == load_card("acquisition").canary
