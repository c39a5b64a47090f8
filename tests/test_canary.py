"""Known pictures, and the session that asks for them: every fault a device can have is injected here."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from fundus_rt.models.canary import PICTURES, Canary, canary_from_dict, canary_picture, chosen_canary
from fundus_rt.models.card import ModelCard
from fundus_rt.models.errors import (
    CanaryError,
    DeviceLostError,
    DeviceMemoryError,
    ModelFileError,
    ReceiptError,
)
from fundus_rt.models.registry import list_cards, load_card
from fundus_rt.runtime import guarded_session
from fundus_rt.runtime.guarded_session import GuardedSession, open_guarded
from fundus_rt.runtime.onnx_session import OnnxRuntimeSession
from fundus_rt.runtime.pipeline import Pipeline
from fundus_rt.runtime.preprocess import tensor_from_box
from fundus_rt.runtime.session import BackendInfo, check_receipt
from tests.photographs import half_and_half

Answers = dict[str, NDArray[np.float32]]


class Faulty:
    """A real ONNX Runtime session behind a fault, as a device or a driver may have one."""

    takes_frames = False
    warnings: tuple[str, ...] = ()

    def __init__(self, path: Path, fault: Callable[[Faulty, Any, Answers], Answers] | None = None) -> None:
        self._real = OnnxRuntimeSession(path)
        self.card: ModelCard = self._real.card
        self.backend = BackendInfo("onnxruntime", "cuda:0", "1")
        self.fault = fault
        self.batches: list[Any] = []
        self.closed = False

    def run(self, batch: Any) -> Answers:
        self.batches.append(np.array(batch))
        answers = self._real.run(batch)
        if self.fault is not None:
            answers = self.fault(self, batch, answers)
        check_receipt(batch, answers["receipt"])
        return answers

    def close(self) -> None:
        self.closed = True


def stale(faulty: Faulty, batch: Any, answers: Answers) -> Answers:
    """The outputs of the first batch again and again, receipts too."""
    faulty.__dict__.setdefault("first", answers)
    return dict(faulty.__dict__["first"])


def stale_outputs_only(faulty: Faulty, batch: Any, answers: Answers) -> Answers:
    faulty.__dict__.setdefault("first", answers)
    return {**faulty.__dict__["first"], "receipt": answers["receipt"]}


def swapped_rows(faulty: Faulty, batch: Any, answers: Answers) -> Answers:
    return {name: rows if name == "receipt" else rows[::-1].copy() for name, rows in answers.items()}


def first_row_for_all(faulty: Faulty, batch: Any, answers: Answers) -> Answers:
    return {name: rows if name == "receipt" else np.repeat(rows[:1], len(rows), axis=0) for name, rows in answers.items()}


def other_weights(faulty: Faulty, batch: Any, answers: Answers) -> Answers:
    return {name: rows if name == "receipt" else rows * np.float32(1.2) for name, rows in answers.items()}


def zeros(faulty: Faulty, batch: Any, answers: Answers) -> Answers:
    return {name: rows if name == "receipt" else np.zeros_like(rows) for name, rows in answers.items()}


def lost(faulty: Faulty, batch: Any, answers: Answers) -> Answers:
    raise DeviceLostError("the GPU does not answer")


class TestPictures:
    def test_they_are_the_same_everywhere(self) -> None:
        """Whole numbers only: the bytes are those of any machine, so they can be held against a stored hash."""
        content = b"".join(canary_picture(which, (64, 96)).tobytes() for which in range(PICTURES))
        assert hashlib.sha256(content).hexdigest() == "521b2ad554e91ab717c5ea1a612b926954be3312bfce28f47cb84da3e9b68b33"

    @pytest.mark.parametrize("which", range(PICTURES))
    def test_they_look_like_a_round_field_of_view(self, which: int) -> None:
        picture = canary_picture(which, (200, 200))
        assert picture.shape == (200, 200, 3)
        assert picture.dtype == np.uint8
        assert picture[:10, :10].max() == 0
        assert picture[100, 40:160].mean() > 30
        assert picture[..., 2].mean() > picture[..., 0].mean(), "red is the third channel"

    def test_levels_are_those_of_uint8_in_float32_too(self) -> None:
        assert np.array_equal(canary_picture(1, (50, 70), "float32"), canary_picture(1, (50, 70)).astype(np.float32))

    def test_no_two_are_alike(self) -> None:
        pictures = [canary_picture(which, (64, 64)).astype(int) for which in range(PICTURES)]
        assert min(np.abs(a - b).mean() for i, a in enumerate(pictures) for b in pictures[:i]) > 5


class TestChoice:
    def test_the_two_most_different_are_taken(self) -> None:
        canary = chosen_canary({"age": [[50.0], [20.0], [51.0], [58.0]]})
        assert canary is not None
        assert canary.pictures == (1, 3)
        assert canary.answers["age"].tolist() == [[20.0], [58.0]]

    def test_an_output_that_hardly_tells_them_apart_is_left_out(self) -> None:
        canary = chosen_canary({"age": [[50.0], [20.0], [51.0], [58.0]], "sex": [[0.5], [0.5], [0.51], [0.5]]})
        assert canary is not None
        assert list(canary.answers) == ["age"]

    @pytest.mark.parametrize("rows", [[[50.0]] * 4, [[50.0], [50.001], [50.0], [50.0]], [[np.nan], [1], [2], [3]]])
    def test_answers_that_are_alike_make_no_canary(self, rows: Any) -> None:
        assert chosen_canary({"age": rows}) is None

    def test_what_is_written_is_read_back(self) -> None:
        canary = chosen_canary({"grade": np.arange(20, dtype=np.float32).reshape(4, 5) / 3})
        assert canary is not None
        read = canary_from_dict(json.loads(json.dumps(canary.to_dict())))
        assert read is not None
        assert read.pictures == canary.pictures
        assert np.array_equal(read.answers["grade"], canary.answers["grade"])

    def test_another_drawing_is_no_canary_of_ours(self) -> None:
        assert canary_from_dict({"drawing": 2, "pictures": [0, 1], "answers": {"age": [[1.0], [2.0]]}}) is None

    @pytest.mark.parametrize(
        "values",
        [
            {"drawing": 1},
            {"drawing": 1, "pictures": [0, 9], "answers": {"age": [[1.0], [2.0]]}},
            {"drawing": 1, "pictures": [0, 1], "answers": {"age": [[1.0], [1.0]]}},
            {"drawing": 1, "pictures": [0, 1], "answers": {}},
            {"drawing": 1, "pictures": [0, 1, 2], "answers": {"age": [[1.0], [2.0]]}},
            {"drawing": 1, "pictures": [0, 1], "answers": {"age": [["old"], ["young"]]}},
            {"drawing": 1, "pictures": [0, 1], "answers": {"age": [[1.0], [float("nan")]]}},
        ],
    )
    def test_a_damaged_one_is_an_error(self, values: dict[str, Any]) -> None:
        with pytest.raises(ValueError, match="convert the checkpoint again"):
            canary_from_dict(values)

    @pytest.mark.parametrize("card", [card for card in list_cards() if card.bundled], ids=lambda card: card.name)
    def test_every_bundled_model_has_one(self, card: ModelCard) -> None:
        assert isinstance(canary_from_dict(card.canary), Canary)


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

    def test_no_backend_to_go_on_with_is_said_with_the_first_cause(self, tiny_sex: Path) -> None:
        def missing() -> Any:
            raise guarded_session.BackendUnavailableError("ONNX Runtime is not installed")

        with pytest.raises(DeviceLostError, match=r"does not answer.*ONNX Runtime is not installed"):
            GuardedSession(Faulty(tiny_sex, lost), continue_with=missing)

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

    def test_the_cards_own_canary_is_what_is_shipped(self) -> None:
        assert open_guarded("acquisition").card.canary == load_card("acquisition").canary
