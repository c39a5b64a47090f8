"""``fundus-rt infer --camera`` on films of the example photographs: motion, blur, blinks, bad framing, cut files."""

from __future__ import annotations

import csv
import io
import json
import re
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from click.testing import CliRunner

from fundus_rt.models.errors import UsageError
from fundus_rt.runtime import Pipeline
from fundus_rt.runtime.cli import cli
from tests.conftest import Run
from tests.films import Scene, frames_of, read_film, write_film

LEFT_EYE, RIGHT_EYE = "chase_01L.jpg", "chase_03R.jpg"
EXAM = (
    Scene("nothing", 3), Scene("dark", 3), Scene("left", 4), Scene("blurred", 5),
    Scene("sharp", 3), Scene("dark", 2), Scene("moved", 3), Scene("sharp", 6), Scene("moved", 3),
    Scene("dark", 7),
    Scene("far", 4, RIGHT_EYE), Scene("near", 4, RIGHT_EYE), Scene("moved", 4, RIGHT_EYE), Scene("sharp", 6, RIGHT_EYE),
    Scene("dark", 3, RIGHT_EYE),
)  # fmt: skip
"""A left eye with a blink inside of a burst, then a right one."""


@pytest.fixture(scope="module")
def exam(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A film, and the kind of each of its frames."""
    examples = Path(__file__).parent.parent / "models" / "examples"
    kinds, frames = zip(*frames_of(EXAM, examples), strict=True)
    path = tmp_path_factory.mktemp("film") / "exam.avi"
    write_film(path, frames)
    return path, list(kinds)


def rows_of(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def test_each_eye_is_answered_once_from_a_sharp_frame_as_the_pipeline_answers_it(
    fundus_rt: Run, exam: tuple[Path, list[str]], tiny_age: Path
) -> None:
    film, kinds = exam
    done = fundus_rt("infer", "--camera", film, "--every-frame", "--model", tiny_age, "--format", "jsonl")
    assert done.returncode == 0, done.stderr
    rows, frames, pipeline = rows_of(done.stdout), read_film(film), Pipeline(tiny_age)
    assert [row["eye"]["value"] for row in rows] == ["left", "right"]
    for row in rows:
        number = row["capture"]["frame"]
        assert kinds[number] == "sharp"
        assert row["capture"]["seconds"] == pytest.approx(number / 10.0)
        expected = pipeline(frames[number]).to_dict()
        assert {key: row[key] for key in ("outputs", "eye", "field_of_view", "warnings")} == {
            key: expected[key] for key in ("outputs", "eye", "field_of_view", "warnings")
        }
        assert row["file"] == str(film) and row["error"] is None
        assert row["timing_ms"]["frame_to_answer"] >= row["timing_ms"]["burst"] + row["timing_ms"]["inference"]
    said = [line for line in done.stderr.splitlines() if re.match("hold|retake|captured", line)]
    for words in ("dark:", "too far left", "not sharp", "too small", "cut:|too large"):
        assert any(re.match(f"retake: ({words})", line) for line in said), words
    assert sum(line.startswith("captured: frame") for line in said) == 2


def test_in_its_own_time_a_film_is_seen_from_its_newest_frames(
    fundus_rt: Run, exam: tuple[Path, list[str]], tmp_path: Path
) -> None:
    film, kinds = exam
    out = tmp_path / "rows.csv"
    done = fundus_rt("infer", "--camera", film, "--captures", 1, "--output", out)
    assert done.returncode == 0, done.stderr
    (cells,) = csv.DictReader(io.StringIO(out.read_text()))
    assert kinds[int(cells["capture.frame"])] == "sharp"
    assert float(cells["capture.seconds"]) >= int(cells["capture.frame"]) / 10.0
    assert float(cells["timing_ms.frame_to_answer"]) > 0
    again = fundus_rt("infer", "--camera", film, "--captures", 1, "--every-frame", "--output", out, "--resume")
    assert again.returncode == 0, again.stderr
    assert len(list(csv.DictReader(io.StringIO(out.read_text())))) == 2


def test_the_table_names_frame_and_latency(fundus_rt: Run, exam: tuple[Path, list[str]]) -> None:
    done = fundus_rt("infer", "--camera", exam[0], "--every-frame", "--captures", 1)
    assert re.search(r"^exam\.avi frame \d+ +left .* \d+ ms from frame to answer$", done.stdout, re.MULTILINE)


def test_a_film_without_a_good_frame_ends_with_advice(fundus_rt: Run, examples: Path, tmp_path: Path) -> None:
    film = tmp_path / "blurred.avi"
    write_film(film, [frame for _, frame in frames_of([Scene("dark", 2), Scene("blurred", 12)], examples)])
    done = fundus_rt("infer", "--camera", film, "--every-frame", "--format", "jsonl")
    assert (done.returncode, done.stdout) == (1, "")
    assert "nothing was captured" in done.stderr and "not sharp: focus, and hold still" in done.stderr


def test_an_eye_that_contradicts_the_call_is_not_captured(fundus_rt: Run, exam: tuple[Path, list[str]]) -> None:
    done = fundus_rt("infer", "--camera", exam[0], "--every-frame", "--eye", "right", "--format", "jsonl")
    assert [row["eye"]["source"] for row in rows_of(done.stdout)] == ["call+acquisition model"]
    assert "retake: other eye: this looks like the left one, and --eye says right" in done.stderr


def pictures_in(content: bytes) -> list[tuple[int, int]]:
    """Where each JPEG of a Motion JPEG film begins and ends."""
    begins = [found.start() for found in re.finditer(b"\xff\xd8\xff", content)]
    return [(begin, content.index(b"\xff\xd9", begin) + 2) for begin in begins]


@pytest.mark.parametrize(("damage", "cut"), [("file ends", 3), ("data missing", 2)])
def test_no_answer_from_a_frame_that_is_cut_off(fundus_rt: Run, examples: Path, tmp_path: Path, damage: str, cut: int) -> None:
    """Decoders fill what is missing with the frame before: half of one picture, half of another, here the sharpest of all."""
    whole, broken = tmp_path / "whole.avi", tmp_path / "broken.avi"
    scenes = [Scene("soft", cut), Scene("sharp", 1), Scene("soft", 7)]
    write_film(whole, [frame for _, frame in frames_of(scenes, examples)])
    content = whole.read_bytes()
    begin, end = pictures_in(content)[cut]
    middle = (begin + end) // 2
    missing = b"" if damage == "file ends" else b"\xff\xd9".ljust(end - middle, b"\0") + content[end:]
    broken.write_bytes(content[:middle] + missing)
    decoded = read_film(broken)
    intact = read_film(whole)
    assert np.array_equal(decoded[cut][:160], intact[cut][:160]) and not np.array_equal(decoded[cut][320:], intact[cut][320:])
    done = fundus_rt("infer", "--camera", broken, "--every-frame", "--format", "jsonl")
    rows = rows_of(done.stdout)
    assert done.returncode == 0 and len(rows) == 1, done.stderr
    assert rows[0]["capture"]["frame"] != cut
    assert ("cut off or damaged" in done.stderr) == (damage == "file ends")


def test_an_mp4_without_its_end_is_an_error(fundus_rt: Run, examples: Path, tmp_path: Path) -> None:
    film = tmp_path / "film.mp4"
    write_film(film, [frame for _, frame in frames_of([Scene("sharp", 8)], examples)], codec="mp4v")
    assert fundus_rt("infer", "--camera", film, "--every-frame").returncode == 0
    film.write_bytes(film.read_bytes()[:-2000])
    done = fundus_rt("infer", "--camera", film)
    assert done.returncode == 1 and "cannot be opened; expected a film that this OpenCV reads" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--camera", "nothing.mp4"), "there is no such file, and it is no camera"),
        (("--camera", "0", "picture.jpg"), "give either PATH"),
        (("--captures", "2", "picture.jpg"), "--captures goes with --camera"),
        (("--camera", "0", "--batch", "2"), "--batch is for files"),
        (("--camera", "rtsp://host/x", "--frame-size", "640x480"), "--frame-size is for a camera's number"),
        (("--camera", "0", "--frame-size", "big"), "expected width and height"),
    ],
)
def test_calls_that_make_no_sense(arguments: tuple[str, ...], words: str) -> None:
    done = CliRunner().invoke(cli, ["infer", *arguments])
    said = str(done.exception) if isinstance(done.exception, UsageError) else done.output
    assert done.exit_code != 0 and words in said


def test_opencv_sees_what_the_films_are_made_of(examples: Path) -> None:
    """The kinds differ as their names say, by OpenCV's own measures."""
    frames = dict(frames_of([Scene(kind, 1) for kind in ("sharp", "blurred", "dark")], examples))
    edges = {kind: cv2.Laplacian(frame[:, :, 1], cv2.CV_64F).var() for kind, frame in frames.items()}
    assert edges["blurred"] < 0.5 * edges["sharp"] and frames["dark"].mean() < 4
