"""Frames of cameras that are lost, hang, freeze, lie and come back; with a stand-in for OpenCV's capture."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest

from fundus_rt.models.errors import CameraError, UsageError
from fundus_rt.runtime import Pipeline
from fundus_rt.runtime.batch import AnswerOptions
from fundus_rt.runtime.camera import connection
from fundus_rt.runtime.camera.answering import CameraAnswerer
from fundus_rt.runtime.camera.connection import CameraFrame, Timeouts
from fundus_rt.runtime.camera.judge import FrameJudge
from fundus_rt.runtime.camera.reader import FrameReader
from fundus_rt.runtime.camera.source import CameraSource, source_from_text
from tests.fake_camera import Action, FakeCamera, hang, one_by_one, paced, pause, pictures
from tests.films import Scene, frames_of, read_film, write_film

DEVICE = CameraSource("device", "camera:0", 0)


@pytest.fixture
def released() -> Iterator[threading.Event]:
    """What a hanging driver waits for; set at the end, so that no thread outlives the test."""
    event = threading.Event()
    yield event
    event.set()


def reader_of(
    camera: FakeCamera, said: list[str], read: float = 0.4, give_up: float | None = 0.2, opening: float = 5.0
) -> FrameReader:
    timeouts = Timeouts(open=opening, read=read, give_up=give_up)
    return FrameReader(DEVICE, said.append, timeouts=timeouts, open_capture=camera, pauses=(0.01,))


def taken(reader: FrameReader, found: list[CameraFrame | None] | None = None) -> list[CameraFrame | None]:
    """Everything until the source is given up, appended to `found` as it comes."""
    found = [] if found is None else found
    with pytest.raises(CameraError, match="did not come back within"):
        for frame in reader.frames():
            found.append(frame)
    reader.close()
    return found


def test_a_camera_that_is_lost_and_comes_back() -> None:
    first, second = pictures(4), pictures(3, first=10)
    found: list[CameraFrame | None] = []
    said: list[str] = []
    camera = FakeCamera(one_by_one(first, found), None, None, one_by_one(second, found))
    taken(reader_of(camera, said, read=5.0), found)
    gap = found.index(None)
    before, after = found[:gap], [frame for frame in found[gap:] if frame is not None]
    assert (len(before), len(after)) == (4, 3)
    everything = [*first, *second]
    numbers = []
    for frame in (*before, *after):
        assert frame is not None
        assert np.array_equal(frame.pixels, everything[frame.number])
        numbers.append(frame.number)
    assert numbers == sorted(set(numbers))
    assert "camera:0 gives no more frames; waiting for it. Look at its cable" in said[0]
    assert any("camera:0 is back after" in sentence for sentence in said)


def test_a_camera_that_hangs_is_opened_again_and_its_late_frame_goes_nowhere(released: threading.Event) -> None:
    late = pictures(1, first=99)[0]
    found: list[CameraFrame | None] = []
    said: list[str] = []
    late_reads: list[int] = []

    def first() -> Iterator[Action]:
        yield from one_by_one(pictures(2), found)
        yield hang(released)
        for index in range(100):
            late_reads.append(index)
            yield late

    camera = FakeCamera(first(), one_by_one(pictures(3, first=10), found))
    with pytest.raises(CameraError):
        for frame in (reader := reader_of(camera, said, read=1.0)).frames():
            found.append(frame)
            if None in found:
                released.set()  # the driver returns while the new opening is read
    reader.close()
    assert len(late_reads) == 1, "the thread that was given up reads on beside the new one"
    assert "camera:0 gave no frame for 1 s; waiting for it" in said[0]
    frames = [frame for frame in found if frame is not None]
    assert not any(np.array_equal(frame.pixels, late) for frame in frames)
    assert [frame.number for frame in frames] == sorted({frame.number for frame in frames})
    assert [frame.number for frame in frames] == [0, 1, 2, 3, 4]


def test_a_camera_that_hangs_while_it_is_opened(released: threading.Event) -> None:
    camera, said = FakeCamera([hang(released), *pictures(1)]), []  # type: ignore[var-annotated]
    assert taken(reader_of(camera, said, opening=0.1)) == []
    assert "camera:0 gave no frame for 0.1 s" in said[0]


def test_hanging_threads_do_not_pile_up(released: threading.Event) -> None:
    camera = FakeCamera(*([hang(released)] for _ in range(100)))
    assert taken(reader_of(camera, [], opening=0.02, give_up=1.0)) == []
    assert camera.opened <= 5


def test_a_frozen_camera_gives_its_picture_once_and_it_is_said() -> None:
    still, other = pictures(2)
    said: list[str] = []
    everything: list[CameraFrame | None] = []

    def script() -> Iterator[Action]:
        for _ in range(1000):
            if said:
                break
            yield still
            yield pause(0.01)
        yield other
        yield other
        while len(everything) < 2:
            yield pause(0.01)

    taken(reader_of(FakeCamera(script()), said, read=0.8), everything)
    found = [frame for frame in everything if frame is not None]
    assert sum(np.array_equal(frame.pixels, still) for frame in found) == 1
    assert sum(np.array_equal(frame.pixels, other) for frame in found) == 1
    assert "camera:0 sends the same picture again and again" in said[0]
    assert found[-1].number > 2  # those that came again are counted


def test_the_newest_frame_wins(released: threading.Event) -> None:
    all_given, go_on = threading.Event(), threading.Event()
    many = pictures(40)
    camera = FakeCamera([many[0], hang(go_on), *many[1:], all_given.set, hang(released)])  # type: ignore[list-item]
    frames = (reader := reader_of(camera, [], read=5.0)).frames()
    first = next(frames)
    go_on.set()
    assert all_given.wait(10)
    newest = next(frames)
    reader.close()
    assert first is not None and newest is not None
    assert (first.number, newest.number) == (0, 39)
    assert np.array_equal(newest.pixels, many[39]) and newest.seconds >= first.seconds


def test_a_frame_that_waited_too_long_is_not_taken(released: threading.Event, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "_STALE", 0.3)
    given, go_on = threading.Event(), threading.Event()
    one, two = pictures(2)
    camera = FakeCamera([one, hang(go_on), two, given.set, hang(released)])  # type: ignore[list-item]
    frames = (reader := reader_of(camera, [], read=1.0, give_up=0.0)).frames()
    assert next(frames) is not None
    go_on.set()
    assert given.wait(10)
    time.sleep(0.5)  # the answer to the first frame takes its time, and the camera dies meanwhile
    assert next(frames) is None
    reader.close()


def test_a_frame_that_nobody_took_before_a_loss_is_not_taken_after_it() -> None:
    ended, go_on = threading.Event(), threading.Event()
    one, two = pictures(2)
    camera = FakeCamera([one, hang(go_on), two, ended.set])  # type: ignore[list-item]
    frames = (reader := reader_of(camera, [], read=5.0, give_up=0.0)).frames()
    assert next(frames) is not None
    go_on.set()
    assert ended.wait(10)
    time.sleep(0.3)
    assert next(frames) is None
    reader.close()


def test_what_a_driver_raises_is_a_loss_and_its_words_are_kept_back() -> None:
    def fail() -> None:
        raise RuntimeError("rtsp://nurse:secret@host")

    said: list[str] = []
    taken(reader_of(FakeCamera([*pictures(1), fail]), said))
    assert "camera:0 failed inside of OpenCV (RuntimeError)" in said[0] and "secret" not in "".join(said)


def test_grey_and_four_channel_frames_become_bgr() -> None:
    color = pictures(1)[0]
    everything: list[CameraFrame | None] = []
    camera = FakeCamera(one_by_one([color[:, :, 0].copy(), np.dstack([color, color[:, :, 0]])], everything))
    found = [frame for frame in taken(reader_of(camera, [], read=5.0), everything) if frame is not None]
    assert [frame.pixels.shape for frame in found] == [(48, 64, 3)] * 2
    assert np.array_equal(found[0].pixels[:, :, 2], color[:, :, 0]) and np.array_equal(found[1].pixels, color)


def test_a_clock_set_back_moves_no_frame(monkeypatch: pytest.MonkeyPatch) -> None:
    backwards = itertools.count(2_000_000_000, -3600)
    monkeypatch.setattr(time, "time", lambda: float(next(backwards)))
    everything: list[CameraFrame | None] = []
    camera = FakeCamera(one_by_one(pictures(5), everything))
    found = [frame for frame in taken(reader_of(camera, [], read=5.0), everything) if frame is not None]
    seconds = [frame.seconds for frame in found]
    assert len(found) == 5 and seconds == sorted(seconds) and seconds[0] >= 0


def test_a_slow_taker_of_every_frame_is_no_hanging_film(tmp_path: Path, examples: Path) -> None:
    film = tmp_path / "film.avi"
    write_film(film, [frame for _, frame in frames_of([Scene("sharp", 5)], examples)])
    reader = FrameReader(source_from_text(str(film)), lambda sentence: None, True, Timeouts(read=0.2))
    found = []
    for frame in reader.frames():
        assert frame is not None
        found.append(frame)
        time.sleep(0.5 if frame.number < 2 else 0)
    expected = read_film(film)
    assert [frame.number for frame in found] == list(range(5))
    assert all(np.array_equal(frame.pixels, pixels) for frame, pixels in zip(found, expected, strict=True))


def test_a_loss_in_the_middle_of_a_burst_begins_a_new_one(examples: Path) -> None:
    """The last frame before the loss is the sharpest of all, with its lower half missing."""
    soft = [frame for _, frame in frames_of([Scene("soft", 3)], examples)]
    sharp = [frame for _, frame in frames_of([Scene("sharp", 1)], examples)]
    after = [frame for _, frame in frames_of([Scene("soft", 40)], examples)]
    camera = FakeCamera(paced([*soft, *sharp], 0.2), paced(after, 0.1))
    pipeline = Pipeline()
    judge = FrameJudge(pipeline)
    reader = reader_of(camera, [], read=5.0, give_up=None)
    answerer = CameraAnswerer("camera:0", reader, judge, pipeline, AnswerOptions(), lambda advice: None)
    rows = answerer.rows()
    row = next(rows)
    rows.close()
    assert row["file"] == "camera:0" and row["error"] is None
    assert row["capture"]["frame"] >= 4
    direct = pipeline(after[row["capture"]["frame"] - 4])
    assert row["outputs"] == direct.to_dict()["outputs"]


@pytest.mark.parametrize(
    ("text", "kind", "name"),
    [
        ("0", "device", "camera:0"),
        ("/dev/video2", "device", "camera:video2"),
        ("rtsp://nurse:secret@10.0.0.5:554/live?password=secret", "stream", "rtsp://10.0.0.5:554"),
        ("http://nurse:secret@kiosk/film.mp4", "stream", "http://kiosk"),
    ],
)
def test_names_of_sources_hold_no_secret(text: str, kind: str, name: str) -> None:
    source = source_from_text(text)
    assert (source.kind, source.name) == (kind, name)
    assert "secret" not in repr(source)


def test_a_url_that_cannot_be_read_is_not_quoted() -> None:
    with pytest.raises(UsageError) as error:
        source_from_text("rtsp://nurse:secret@host:port/x")
    assert "secret" not in str(error.value) and "rtsp://host:554" in str(error.value)


def test_a_camera_that_finds_no_memory_is_not_sent_to_its_cable() -> None:
    def short() -> None:
        raise MemoryError

    said: list[str] = []
    found = taken(reader_of(FakeCamera([*pictures(1), pause(0.2), short]), said))
    assert sum(frame is not None for frame in found) == 1
    assert "camera:0 found not enough memory for its pictures; waiting for it. Close other programs" in said[0]
    assert not any("cable" in sentence for sentence in said)


def test_a_film_that_finds_no_memory_is_not_called_cut_off(
    tmp_path: Path, examples: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    film = tmp_path / "film.avi"
    write_film(film, (frame for _, frame in frames_of([Scene("sharp", 3)], examples)))
    monkeypatch.setattr("fundus_rt.models.memory._WORTH_A_CLAIM", 0)
    monkeypatch.setattr("fundus_rt.models.memory.available_memory", lambda: 1000)
    said: list[str] = []
    with pytest.raises(CameraError, match=r"film.avi found not enough memory for its pictures; close other programs"):
        list(FrameReader(source_from_text(str(film)), said.append, True).frames())
    assert said == []


def test_a_frame_that_finds_no_memory_to_be_judged_is_left_out_and_the_watch_goes_on(examples: Path) -> None:
    frames = [frame for _, frame in frames_of([Scene("sharp", 12)], examples)]
    honest, calls = Pipeline(), itertools.count()

    class Short:
        """The acquisition model on a device whose memory comes and goes."""

        def __call__(self, *arguments: object) -> object:
            if next(calls) in (1, 2):
                raise cv2.error("OpenCV(5.0.0) alloc.cpp:73: error: (-4:Insufficient memory) Failed to allocate 48 bytes")
            return honest(*arguments)  # type: ignore[arg-type]

    said: list[str] = []
    reader = reader_of(FakeCamera(paced(frames, 0.1)), [], read=5.0)
    answerer = CameraAnswerer(
        "camera:0",
        reader,
        FrameJudge(Short()),
        honest,
        AnswerOptions(),
        lambda advice: said.append(advice.words),  # type: ignore[arg-type]
    )
    rows = []
    with pytest.raises(CameraError, match="did not come back"):
        for row in answerer.rows():
            rows.append(row)
    assert len(rows) == 1 and rows[0]["error"] is None and rows[0]["capture"]["frame"] >= 3
    assert next(calls) > 8
