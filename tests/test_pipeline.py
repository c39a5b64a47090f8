"""One object from frame to answer: mirroring, eyes, receipts, threads."""

from __future__ import annotations

import threading
from pathlib import Path

import cv2
import numpy as np
import pytest

from fundus_rt.models.errors import (
    BackendUnavailableError,
    CardError,
    EyeError,
    ModelFileError,
    NotFundusError,
    ReceiptError,
)
from fundus_rt.runtime.answers import check_receipt
from fundus_rt.runtime.pipeline import Frame, Pipeline
from tests.photographs import half_and_half


def photograph(examples: Path, name: str) -> Frame:
    frame = cv2.imread(str(examples / name))
    assert frame is not None
    return np.asarray(frame, np.uint8)


DISC = np.pi / 4
"""Share of the square around a disc that the disc covers."""


@pytest.fixture
def open_eyed(monkeypatch: pytest.MonkeyPatch) -> None:
    """An acquisition model that never knows, so that the other sources can be tested on drawn pictures."""
    monkeypatch.setattr(Pipeline, "_look", lambda *_: None)
    monkeypatch.setattr(Pipeline, "_check", lambda *_: None)


@pytest.mark.usefixtures("open_eyed")
class TestMirroring:
    """The network answers with the mean of the half that stands left in its input."""

    def test_a_right_eye_is_taken_as_it_is(self, tiny_age: Path) -> None:
        result = Pipeline(tiny_age)(half_and_half(60, 180), eye="right")
        assert result.outputs["age"].value == pytest.approx(60 / 2.55 * DISC, rel=0.05)
        assert (result.eye.value, result.eye.source, result.eye.mirrored) == ("right", "call", False)

    def test_a_left_eye_is_mirrored(self, tiny_age: Path) -> None:
        result = Pipeline(tiny_age)(half_and_half(60, 180), eye="left")
        assert result.outputs["age"].value == pytest.approx(180 / 2.55 * DISC, rel=0.05)
        assert result.eye.mirrored

    @pytest.mark.parametrize("eye", [None, "left", "right"])
    def test_a_model_without_the_rule_never_mirrors(self, tiny_sex: Path, eye: str | None) -> None:
        pipeline = Pipeline(tiny_sex)
        assert not pipeline(half_and_half(60, 180), eye=eye).eye.mirrored
        one, other = (pipeline(half_and_half(60, 180), eye=e).outputs["sex"].value for e in (None, eye))
        assert one == other

    @pytest.mark.parametrize("eye", ["left", "right"])
    def test_a_mirrored_source_is_turned_back(self, tiny_age: Path, eye: str) -> None:
        pipeline = Pipeline(tiny_age)
        frame = half_and_half(60, 180)
        turned = np.ascontiguousarray(frame[:, ::-1])
        straight = pipeline(frame, eye=eye)
        back = pipeline(turned, eye=eye, mirrored_by_source=True)
        assert back.outputs["age"].value == pytest.approx(straight.outputs["age"].value, abs=1e-3)

    def test_coordinates_are_those_of_the_picture_as_it_came(self, tiny_age: Path) -> None:
        frame = np.zeros((400, 700, 3), np.uint8)
        cv2.circle(frame, (180, 200), 150, (20, 60, 120), -1)
        result = Pipeline(tiny_age)(frame, eye="left", mirrored_by_source=True)
        assert result.field_of_view.center == pytest.approx((180, 200), abs=2)

    def test_an_unknown_eye_is_refused(self, tiny_age: Path) -> None:
        with pytest.raises(EyeError, match=r"--eye left\|right"):
            Pipeline(tiny_age)(half_and_half(60, 180))

    def test_two_sources_that_disagree_are_refused_for_every_model(self, tiny_sex: Path) -> None:
        with pytest.raises(EyeError, match="disagree"):
            Pipeline(tiny_sex).prepare(half_and_half(60, 180), {"call": "left", "file name": "right"})


class TestAcquisition:
    """The bundled model as a source beside the others, on real photographs."""

    def test_a_confident_acquisition_model_contradicts_a_wrong_call(self, tiny_age: Path, examples: Path) -> None:
        pipeline = Pipeline(tiny_age)
        frame = photograph(examples, "idrid_205.jpg")
        right = pipeline(frame, eye="right")
        assert right.eye.source == "call+acquisition model"
        with pytest.raises(EyeError, match=r"call says 'left', acquisition model says 'right'"):
            pipeline(frame, eye="left")

    def test_a_confident_acquisition_model_is_enough(self, tiny_age: Path, examples: Path) -> None:
        result = Pipeline(tiny_age)(photograph(examples, "idrid_005.jpg"))
        assert (result.eye.value, result.eye.source, result.eye.mirrored) == ("left", "acquisition model", True)

    def test_upside_down_is_not_taken_for_the_other_eye(self, examples: Path) -> None:
        pipeline = Pipeline()
        for name in ("idrid_005.jpg", "idrid_165.jpg", "idrid_325.jpg"):
            turned = np.ascontiguousarray(photograph(examples, name)[::-1, ::-1])
            assert pipeline(turned).eye.value != "right", name

    def test_the_model_itself_is_checked_against_the_other_sources(self, examples: Path) -> None:
        with pytest.raises(EyeError, match="disagree"):
            Pipeline()(photograph(examples, "idrid_205.jpg"), eye="left")

    def test_a_picture_of_something_else_is_refused(self, tiny_sex: Path) -> None:
        rng = np.random.default_rng(0)
        noise = rng.integers(0, 256, (480, 640, 3), dtype=np.uint8)
        with pytest.raises(NotFundusError, match="does not look like"):
            Pipeline(tiny_sex)(noise)
        assert Pipeline(tiny_sex, check=False)(noise).outputs

    def test_a_disc_of_something_else_is_refused_whatever_its_file_is_called(self, tiny_sex: Path) -> None:
        squares = np.kron(np.indices((8, 8)).sum(axis=0) % 2, np.ones((60, 80), np.int64)) * 200
        disc = np.zeros((480, 640), np.uint8)
        cv2.circle(disc, (320, 240), 200, 1, -1)
        frame = np.ascontiguousarray(np.repeat((squares * disc)[..., None], 3, axis=2).astype(np.uint8))
        for sources in ({}, {"file name": "right"}):
            with pytest.raises(NotFundusError, match="does not look like"):
                Pipeline(tiny_sex).prepare(frame, sources)

    def test_a_model_that_never_mirrors_is_contradicted_too(self, tiny_sex: Path, examples: Path) -> None:
        with pytest.raises(EyeError, match=r"file name says 'left', acquisition model says 'right'"):
            Pipeline(tiny_sex).prepare(photograph(examples, "idrid_205.jpg"), {"file name": "left"})


class TestReceipt:
    """An answer for another picture stops everything."""

    def test_swapped_batch_rows_are_caught(self, examples: Path) -> None:
        pipeline = Pipeline(Path(__file__).parent / "data" / "tiny_swapped.onnx", check=False)
        pictures = [pipeline.prepare(half_and_half(a, b), {}) for a, b in ((60, 180), (90, 20))]
        with pytest.raises(ReceiptError, match="another picture"):
            pipeline.finish(pictures)
        with pytest.raises(ReceiptError):  # no further answer, not even a right one
            pipeline(half_and_half(60, 180))

    @pytest.mark.parametrize("dtype", ["uint8", "float32"])
    def test_one_changed_row_is_caught(self, dtype: str) -> None:
        rng = np.random.default_rng(1)
        batch = rng.integers(0, 256, (2, 64, 64, 3)).astype(dtype)
        receipt = batch.astype(np.float64).sum(axis=(2, 3)).astype(np.float32)
        check_receipt(batch, receipt)
        receipt[1, 7] += 1 if dtype == "uint8" else 10
        with pytest.raises(ReceiptError):
            check_receipt(batch, receipt)


@pytest.mark.usefixtures("open_eyed")
class TestEmbedding:
    """What a camera's process relies on."""

    def test_threads_do_not_mix_pictures(self, tiny_age: Path) -> None:
        pipeline = Pipeline(tiny_age, threads=1)
        frames = [half_and_half(20 + 12 * i, 230 - 12 * i, 200 + 10 * i) for i in range(12)]
        expected = [pipeline(frame, eye="left").outputs["age"].value for frame in frames]
        wrong: list[int] = []

        def work(start: int) -> None:
            for step in range(60):
                index = (start + step) % len(frames)
                if pipeline(frames[index], eye="left").outputs["age"].value != expected[index]:
                    wrong.append(index)

        threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not wrong

    def test_a_result_stays_as_it_is(self, tiny_age: Path) -> None:
        pipeline = Pipeline(tiny_age)
        result = pipeline(half_and_half(60, 180), eye="left")
        before = result.to_dict()
        pipeline(half_and_half(200, 10), eye="right")
        assert result.to_dict() == before

    def test_the_frame_is_only_read(self, tiny_age: Path) -> None:
        frame = half_and_half(60, 180)
        before = frame.copy()
        frame.setflags(write=False)
        Pipeline(tiny_age)(frame, eye="left", mirrored_by_source=True)
        assert np.array_equal(frame, before)

    def test_a_view_is_answered_as_its_copy(self, tiny_age: Path) -> None:
        pipeline = Pipeline(tiny_age)
        wide = half_and_half(60, 180)
        view = wide[::2, ::2]
        copied = pipeline(np.ascontiguousarray(view), eye="right")
        assert pipeline(view, eye="right").outputs == copied.outputs

    @pytest.mark.parametrize("frame", [np.zeros((64, 64), np.uint8), np.zeros((64, 64, 3), np.float32), [[0]]])
    def test_what_is_no_frame_is_refused(self, tiny_age: Path, frame: object) -> None:
        with pytest.raises(ValueError, match=r"uint8 \[H, W, 3\]"):
            Pipeline(tiny_age)(frame, eye="left")  # type: ignore[arg-type]

    def test_a_black_frame_is_refused(self, tiny_age: Path) -> None:
        with pytest.raises(NotFundusError):
            Pipeline(tiny_age)(np.zeros((480, 640, 3), np.uint8), eye="left")

    def test_a_closed_pipeline_says_so(self, tiny_sex: Path) -> None:
        pipeline = Pipeline(tiny_sex)
        pipeline.close()
        with pytest.raises(ValueError, match="closed"):
            pipeline(half_and_half(60, 180))


class TestOpening:
    """Models and backends that cannot be used."""

    def test_not_an_onnx_file(self, tmp_path: Path) -> None:
        (tmp_path / "m.onnx").write_bytes(b"PK\x03\x04 not a model")
        with pytest.raises(ModelFileError, match="is not an ONNX file"):
            Pipeline(tmp_path / "m.onnx")

    def test_a_checkpoint_is_to_be_converted(self, tmp_path: Path) -> None:
        (tmp_path / "m.pth").write_bytes(b"x")
        with pytest.raises(ModelFileError, match="fundus-rt convert"):
            Pipeline(tmp_path / "m.pth")

    def test_a_file_that_is_not_there(self) -> None:
        with pytest.raises(ModelFileError, match="does not exist"):
            Pipeline("nowhere.onnx")

    def test_a_known_model_without_weights(self) -> None:
        with pytest.raises(CardError, match="not part of this package"):
            Pipeline("joir-age")

    @pytest.mark.parametrize(
        ("options", "said"),
        [({"backend": "abacus"}, "expected one of"), ({"device": "tpu"}, "cpu or cuda:N"), ({"device": "cuda:0"}, "offers only")],
    )
    def test_what_is_not_granted_is_an_error(self, tiny_sex: Path, options: dict[str, str], said: str) -> None:
        ort = pytest.importorskip("onnxruntime")
        if "CUDAExecutionProvider" in ort.get_available_providers():
            pytest.skip("this machine grants CUDA")
        with pytest.raises(BackendUnavailableError, match=said):
            Pipeline(tiny_sex, **options)
