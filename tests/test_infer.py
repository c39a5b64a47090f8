"""``fundus-rt infer`` as a user types it: exit status, rows, kills, bad input."""

from __future__ import annotations

import csv
import io
import json
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from fundus_rt.models.registry import bundled_file, load_card
from tests.conftest import DATA, Run, command, environment


def rows_of(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def test_the_first_command(fundus_rt: Run, examples: Path) -> None:
    done = fundus_rt("infer", examples, "--format", "jsonl")
    assert done.returncode == 0, done.stderr
    rows = rows_of(done.stdout)
    assert len(rows) == 11
    for row in rows:
        assert row["error"] is None
        assert row["model"]["name"] == "acquisition" and row["model"]["certificate"] == "none"
        assert row["backend"]["name"] == "onnxruntime" and row["backend"]["device"] == "cpu"
        assert set(row["outputs"]) == {"eye", "gradability", "fundus"}
        assert row["outputs"]["fundus"]["decision"] == "fundus"
        assert row["field_of_view"]["found"]
        assert {"decode", "field_of_view", "preprocess", "inference", "total"} <= set(row["timing_ms"])
    truth = {"chase_01L": "left", "chase_03R": "right", "hrf_06_h": "left", "idrid_111_12mp": "left", "haggstrom_right": "right"}
    truth |= {f"idrid_{n}": "left" for n in ("005", "165", "325")} | {f"idrid_{n}": "right" for n in ("085", "205", "285")}
    for row in rows:
        assert row["eye"]["value"] in (truth[Path(row["file"]).stem], None)


def test_formats_say_the_same(fundus_rt: Run, examples: Path) -> None:
    call = ("infer", examples / "idrid_005.jpg", examples / "idrid_085.jpg", "--format")
    lines = rows_of(fundus_rt(*call, "jsonl").stdout)
    table = fundus_rt(*call, "table").stdout
    sheet = list(csv.DictReader(io.StringIO(fundus_rt(*call, "csv").stdout)))
    for line, cells in zip(lines, sheet, strict=True):
        assert cells["file"] == line["file"] and cells["eye.value"] == (line["eye"]["value"] or "")
        assert float(cells["outputs.gradability.value"]) == line["outputs"]["gradability"]["value"]
    assert "idrid_005.jpg" in table and table.splitlines()[1].split()[:3] == ["file", "which", "eye"]
    assert table.startswith("# certificate: none (")


def write_bad_inputs(folder: Path) -> dict[str, str]:
    """Bad files, and a word that the sentence about each must hold."""
    real = cv2.imread(str(Path(DATA).parent.parent / "models" / "examples" / "idrid_005.jpg"))
    encoded = cv2.imencode(".jpg", real)[1].tobytes()
    (folder / "a_empty.jpg").write_bytes(b"")
    (folder / "b_zeros.jpg").write_bytes(bytes(5000))
    (folder / "c_text.jpg").write_text("this is not a picture")
    (folder / "d_truncated.jpg").write_bytes(encoded[: len(encoded) // 2])
    cv2.imwrite(str(folder / "e_one_pixel.png"), np.full((1, 1, 3), 90, np.uint8))
    cv2.imwrite(str(folder / "f_black.png"), np.zeros((600, 800, 3), np.uint8))
    header = b"P6\n30000 30000\n255\n"
    (folder / "g_huge.ppm").write_bytes(header + bytes(1000))
    return {
        "a_empty.jpg": "empty",
        "b_zeros.jpg": "",
        "c_text.jpg": "",
        "d_truncated.jpg": "",
        "e_one_pixel.png": "",
        "f_black.png": "",
        "g_huge.ppm": "",
    }


def test_every_bad_file_has_its_sentence_and_the_good_one_its_answer(fundus_rt: Run, examples: Path, tmp_path: Path) -> None:
    bad = write_bad_inputs(tmp_path)
    good = examples / "idrid_085.jpg"
    (tmp_path / "h_folder").mkdir()
    done = fundus_rt("infer", tmp_path, tmp_path / "h_folder", tmp_path / "missing.jpg", good, "--format", "jsonl")
    assert done.returncode == 1
    rows = {Path(row["file"]).name: row for row in rows_of(done.stdout)}
    assert set(rows) == {*bad, "h_folder", "missing.jpg", good.name}
    for name, row in rows.items():
        if name == good.name:
            assert row["error"] is None and row["outputs"]
        else:
            assert row["outputs"] == {} and 10 < len(row["error"]) < 400 and "Traceback" not in row["error"]
            assert "unexpected" not in row["error"] and bad.get(name, "") in row["error"], row["error"]
    assert "9 picture(s) could not be answered" in done.stderr


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak is read from Linux' /proc")
def test_a_picture_of_30000_by_30000_does_not_take_the_memory(tmp_path: Path) -> None:
    import zlib

    def chunk(kind: bytes, body: bytes) -> bytes:
        return len(body).to_bytes(4, "big") + kind + body + zlib.crc32(kind + body).to_bytes(4, "big")

    head = (30000).to_bytes(4, "big") * 2 + bytes([8, 2, 0, 0, 0])
    body = zlib.compress(bytes(90001) * 50, 1)
    (tmp_path / "bomb.png").write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", body) + chunk(b"IEND", b""))
    # VmHWM is this process's own peak; ru_maxrss would count what the process that started it had.
    measure = "import sys;from fundus_rt.runtime.cli import main\ntry:\n main()\nfinally:\n"
    measure += " sys.stderr.write('PEAK ' + open('/proc/self/status').read().split('VmHWM:')[1].split()[0])"
    call = [*command()[:2], measure, "infer", str(tmp_path / "bomb.png"), "--format", "jsonl"]
    done = subprocess.run(call, capture_output=True, text=True, env=environment(), check=False)
    assert done.returncode == 1
    (row,) = rows_of(done.stdout)
    assert "too large" in row["error"] or "megapixels" in row["error"]
    assert int(done.stderr.split("PEAK ")[1]) < 600_000  # kB; the decoded picture alone would be 2.7 GB


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "give either PATH"),
        (("x.jpg", "--list", "y.csv"), "give either PATH"),
        (("x.jpg", "--resume"), "--output"),
        (("x.jpg", "--model", "joir-age"), "fundus-rt convert CHECKPOINT --card joir-age"),
        (("x.jpg", "--model", "joir-agee"), "Did you mean"),
        (("x.jpg", "--model", "none.onnx"), "does not exist"),
        (("x.jpg", "--device", "cuda:0"), "CUDA"),
        (("x.jpg", "--eye", "both"), "both"),
        (("x.jpg", "--output", "no/such/folder/r.jsonl"), "does not exist"),
        (("--list", "none.csv"), "cannot be read"),
    ],
)
def test_a_wrong_call_ends_with_status_2_and_one_sentence(
    fundus_rt: Run, tmp_path: Path, arguments: tuple[str, ...], said: str
) -> None:
    done = fundus_rt("infer", *arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert said in done.stderr and "Traceback" not in done.stderr
    assert done.stdout == ""


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_an_output_in_a_read_only_folder(fundus_rt: Run, tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    done = fundus_rt("infer", "x.jpg", "--output", tmp_path / "r.jsonl")
    assert done.returncode == 2 and "cannot be written" in done.stderr


def test_a_model_that_is_not_ours(fundus_rt: Run, tmp_path: Path, examples: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(b"\x08\x07\x12\x04test")
    done = fundus_rt("infer", examples, "--model", tmp_path / "m.onnx")
    assert done.returncode == 2
    assert "m.onnx" in done.stderr and "fundus-rt convert" in done.stderr and "Traceback" not in done.stderr


def test_a_model_that_mirrors_never_guesses(fundus_rt: Run, tiny_age: Path, examples: Path, tmp_path: Path) -> None:
    disc = np.zeros((500, 500, 3), np.uint8)
    cv2.circle(disc, (250, 250), 230, (30, 60, 150), -1)
    cv2.imwrite(str(tmp_path / "plain.png"), disc)
    done = fundus_rt("infer", tmp_path / "plain.png", "--model", tiny_age, "--format", "jsonl")
    (row,) = rows_of(done.stdout)
    assert done.returncode == 1 and row["outputs"] == {} and row["eye"] is None
    said = fundus_rt("infer", examples / "idrid_205.jpg", "--model", tiny_age, "--eye", "left", "--format", "jsonl")
    (wrong,) = rows_of(said.stdout)
    assert said.returncode == 1 and "disagree" in wrong["error"]


def test_a_device_that_answers_wrongly_is_told_from_a_photograph_that_cannot_be_answered(
    fundus_rt: Run, examples: Path, tmp_path: Path
) -> None:
    """Status 1 is every day's; whoever watches a device has to hear of the other."""
    onnx = pytest.importorskip("onnx")
    model = onnx.load(str(bundled_file(load_card("acquisition"))))
    (card,) = [entry for entry in model.metadata_props if "canary" in entry.value]
    content = json.loads(card.value)
    content["canary"]["answers"] = {name: rows[::-1] for name, rows in content["canary"]["answers"].items()}
    card.value = json.dumps(content)
    (tmp_path / "wrong.onnx").write_bytes(model.SerializeToString())
    rows = tmp_path / "rows.jsonl"
    done = fundus_rt("infer", examples, "--model", tmp_path / "wrong.onnx", "--output", rows)
    assert done.returncode == 3 and "Error: " in done.stderr and not (rows.exists() and rows.read_text())


def test_a_list_gives_each_picture_its_eye(fundus_rt: Run, tiny_age: Path, examples: Path, tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text(f"file,eye\n{examples / 'idrid_005.jpg'},OS\n{examples / 'idrid_085.jpg'},right\n")
    done = fundus_rt("infer", "--list", tmp_path / "list.csv", "--model", tiny_age, "--format", "jsonl")
    left, right = rows_of(done.stdout)
    assert done.returncode == 0
    assert left["eye"]["mirrored"] and left["eye"]["source"].startswith("list")
    assert not right["eye"]["mirrored"]


def test_killed_at_any_moment_and_gone_on_with(examples: Path, tiny_sex: Path, tmp_path: Path) -> None:
    sources = sorted(examples.glob("idrid_[0-9][0-9][0-9].jpg"))
    for index in range(60):
        (tmp_path / f"p{index:03}.jpg").write_bytes(sources[index % len(sources)].read_bytes())
    output = tmp_path / "rows.jsonl"
    call = command("infer", tmp_path, "--model", tiny_sex, "--output", output, "--resume")
    kills = 0
    for _ in range(30):
        with subprocess.Popen(call, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
            before = output.read_bytes() if output.exists() else b""
            deadline = time.monotonic() + 60
            while process.poll() is None and time.monotonic() < deadline:
                if output.exists() and output.stat().st_size > len(before) + 3000:
                    process.send_signal(signal.SIGKILL)
                    kills += 1
                    break
                time.sleep(0.005)
            code = process.wait()
        after = output.read_bytes()
        assert after.startswith(before[: before.rfind(b"\n") + 1])
        if code == 0:
            break
    assert code == 0 and kills >= 3
    names = [row["file"] for row in rows_of(output.read_text())]
    assert names == [str(tmp_path / f"p{index:03}.jpg") for index in range(60)]


def test_an_output_is_continued_only_when_asked(fundus_rt: Run, examples: Path, tmp_path: Path) -> None:
    call = ("infer", examples / "idrid_005.jpg", "--output", tmp_path / "r.csv")
    assert fundus_rt(*call).returncode == 0
    before = (tmp_path / "r.csv").read_text()
    again = fundus_rt(*call)
    assert again.returncode == 2 and "--resume" in again.stderr
    assert fundus_rt(*call, "--resume").returncode == 0
    assert (tmp_path / "r.csv").read_text() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["r.csv"]


def test_models_list_show_cite(fundus_rt: Run) -> None:
    assert len(fundus_rt("models", "list").stdout.splitlines()) == 9
    shown = fundus_rt("models", "show", "joir-age").stdout
    assert "pictures of left eyes are mirrored" in shown and "Not a medical device" in shown
    assert json.loads(fundus_rt("models", "show", "joir-age", "--json").stdout)["name"] == "joir-age"
    assert "made available through the Japan Ocular Imaging Registry" in fundus_rt("models", "cite", "joir-age").stdout
    unknown = fundus_rt("models", "show", "swin")
    assert unknown.returncode == 2 and "Known:" in unknown.stderr
