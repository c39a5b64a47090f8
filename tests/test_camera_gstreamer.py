"""GStreamer pipelines as cameras: tried for real where this OpenCV was built with GStreamer, refused with advice where not."""

from __future__ import annotations

from pathlib import Path

import pytest

from fundus_rt.models.errors import BackendUnavailableError, UsageError
from fundus_rt.runtime import Pipeline
from fundus_rt.runtime.camera import source
from fundus_rt.runtime.camera.connection import Timeouts
from fundus_rt.runtime.camera.reader import FrameReader
from fundus_rt.runtime.camera.source import open_source, opencv_has_gstreamer, source_from_text
from tests.conftest import Run
from tests.films import Scene, frames_of, read_film, write_film
from tests.test_camera_film import rows_of

BALL = "videotestsrc num-buffers=20 pattern=ball ! video/x-raw,width=320,height=240 ! videoconvert ! video/x-raw,format=BGR"

needs_gstreamer = pytest.mark.skipif(not opencv_has_gstreamer(), reason="this OpenCV was built without GStreamer")


@pytest.fixture(scope="module")
def working() -> None:
    """Skips where OpenCV has GStreamer but the plug-ins of the tests are not installed."""
    if not open_source(source_from_text(f"{BALL} ! appsink")).isOpened():
        pytest.skip("GStreamer's base plug-ins are not installed")


@pytest.mark.skipif(opencv_has_gstreamer(), reason="this OpenCV was built with GStreamer")
def test_without_gstreamer_a_pipeline_is_refused_with_what_to_install(fundus_rt: Run) -> None:
    done = fundus_rt("infer", "--camera", f"{BALL} ! appsink")
    assert done.returncode == 2
    assert "was built without GStreamer" in done.stderr and "apt install python3-opencv" in done.stderr


@pytest.mark.parametrize(("told", "has"), [("    GStreamer:                   YES (1.20.3)", True), ("    GStreamer: NO", False)])
def test_an_older_opencv_is_asked_for_its_build(monkeypatch: pytest.MonkeyPatch, told: str, has: bool) -> None:
    monkeypatch.delattr(source.cv2.videoio_registry, "hasBackend", raising=False)
    monkeypatch.setattr(source.cv2, "getBuildInformation", lambda: f"Video I/O:\n    FFMPEG: YES\n{told}\n")
    assert opencv_has_gstreamer() is has
    with pytest.raises(UsageError if has else BackendUnavailableError, match="appsink" if has else "JetPack"):
        source_from_text("v4l2src ! fakesink")


@needs_gstreamer
@pytest.mark.usefixtures("working")
def test_a_test_source_is_read_to_its_end_and_waited_for() -> None:
    said: list[str] = []
    pipeline = source_from_text(f"{BALL} ! appsink drop=true max-buffers=1")
    assert (pipeline.kind, pipeline.name) == ("gstreamer", "gstreamer")
    reader = FrameReader(pipeline, said.append, timeouts=Timeouts(give_up=None), pauses=(0.01,))
    before = after = 0
    for frame in reader.frames():
        if "waiting for it" not in "".join(said):
            before += 1
        elif frame is not None:
            after += 1
            assert frame.pixels.shape == (240, 320, 3) and frame.number >= before
            break
    reader.close()
    assert before and after and "gstreamer gives no more frames" in said[0]


@needs_gstreamer
@pytest.mark.usefixtures("working")
def test_a_pipeline_that_shows_a_fundus_is_answered(fundus_rt: Run, examples: Path, tmp_path: Path) -> None:
    film = tmp_path / "film.avi"
    frames = [frame for _, frame in frames_of([Scene("dark", 3), Scene("sharp", 12)], examples)]
    write_film(film, frames)
    if not open_source(source_from_text(f"filesrc location={film} ! avidemux ! jpegdec ! appsink")).isOpened():
        pytest.skip("GStreamer's good plug-ins (avidemux, jpegdec) are not installed")
    pipeline = f"filesrc location={film} ! avidemux ! jpegdec ! videoconvert ! video/x-raw,format=BGR ! appsink sync=true"
    done = fundus_rt("infer", "--camera", pipeline, "--captures", 1, "--give-up", 60, "--format", "jsonl")
    assert done.returncode == 0, done.stderr
    (row,) = rows_of(done.stdout)
    direct = Pipeline()(read_film(film)[row["capture"]["frame"] % len(frames)])
    assert row["file"] == "gstreamer" and row["eye"]["value"] == direct.eye.value == "left"
    assert row["outputs"]["gradability"]["value"] == pytest.approx(direct.outputs["gradability"].value, abs=0.05)


@needs_gstreamer
@pytest.mark.usefixtures("working")
def test_a_pipeline_that_cannot_start_is_said(fundus_rt: Run) -> None:
    done = fundus_rt("infer", "--camera", "filesrc location=/nowhere/patient.avi ! appsink", "--give-up", 0)
    assert done.returncode == 1
    assert "gstreamer cannot be opened" in done.stderr and "gst-launch-1.0" in done.stderr
