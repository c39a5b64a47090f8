"""``fundus-rt evaluate`` as a user types it, on the example photographs."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from click.testing import CliRunner, Result

from fundus_rt.benchmarks.evaluation import candidates, preprocessing_trial
from fundus_rt.models.errors import FundusRtError, UsageError
from fundus_rt.runtime.cli import cli
from tests.conftest import Run

pytest.importorskip("matplotlib")
pytest.importorskip("jinja2")
metrics = pytest.importorskip("sklearn.metrics")

EYES = {
    "chase_01L.jpg": "left", "chase_03R.jpg": "right", "haggstrom_right.jpg": "right", "hrf_06_h.jpg": "left",
    "idrid_005.jpg": "left", "idrid_085.jpg": "right", "idrid_111_12mp.jpg": "left", "idrid_165.jpg": "left",
    "idrid_205.jpg": "right", "idrid_285.jpg": "right", "idrid_325.jpg": "left",
}  # fmt: skip


def run(*arguments: object) -> Result:
    """The command in this process: each process of its own imports everything anew."""
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])


def write_csv(path: Path, columns: str, *lines: str) -> Path:
    path.write_text("\n".join((columns, *lines)) + "\n", encoding="utf-8")
    return path


def report_of(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    return found


def rows_of(folder: Path) -> list[dict[str, str]]:
    with open(folder / "photographs.csv", newline="", encoding="utf-8-sig") as stream:
        return list(csv.DictReader(stream))


def test_the_eyes_of_the_examples(fundus_rt: Run, examples: Path, tmp_path: Path) -> None:
    lines = [f"{name},{eye},{'Kowa' if name.startswith('idrid') else 'other'}" for name, eye in EYES.items()]
    labels = write_csv(tmp_path / "labels.csv", "file,eye,camera", *lines)
    out = tmp_path / "report"
    done = fundus_rt(
        "evaluate", "acquisition", "--labels", labels, "--images", examples, "--report", out, "--claim", "accuracy=0.9"
    )
    assert done.returncode == 1 and "is not contradicted, but with so wide an interval it is not shown" in done.stdout
    assert "11 of 11 labelled photographs measured" in done.stdout and "by camera, Kowa: n 7" in done.stdout
    figures = report_of(out)["figures"]["outputs"]["eye"]["figures"]
    infer = fundus_rt("infer", examples, "--format", "jsonl")  # the eye by file name or model; a contradiction would be an error
    said = {Path(r["file"]).name: r["outputs"]["eye"]["decision"] for r in map(json.loads, infer.stdout.splitlines())}
    right = sum(said[name] == eye for name, eye in EYES.items())
    assert (figures["accuracy"]["count"], figures["accuracy"]["of"]) == (right, 11)
    assert right >= 9
    rows = rows_of(out)
    assert {row["file"]: row["eye.decision"] for row in rows} == said
    assert {row["file"]: row["eye.truth"] for row in rows} == EYES
    assert all(row["eye.counted"] == "true" for row in rows)
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "Truth and decision" in page and ("data:image/jpeg" in page) == (right < 11)  # only wrong ones are shown


def test_truths_that_are_not_understood_are_no_success(examples: Path, tmp_path: Path) -> None:
    lines = [f"{name},{eye}" for name, eye in list(EYES.items())[:3]] + [f"{list(EYES)[3]},upper"]
    labels = write_csv(tmp_path / "labels.csv", "file,eye", *lines)
    done = run("evaluate", "acquisition", "--labels", labels, "--images", examples, "--report", tmp_path / "report")
    assert done.exit_code == 1 and "eye: 1 truths are not understood; the first, line 5" in done.output, done.output
    assert "1 truths are not understood and left out" in report_of(tmp_path / "report")["verdict"]["sentence"]


def test_a_wrong_answer_counts_though_the_file_name_knows_better(examples: Path, tmp_path: Path) -> None:
    """`infer` makes an error row where a name and the model disagree; here that would hide exactly the wrong answers."""
    mirrored = cv2.imread(str(examples / "idrid_005.jpg"))[:, ::-1]
    cv2.imwrite(str(tmp_path / "patient_left.png"), np.ascontiguousarray(mirrored))
    labels = write_csv(tmp_path / "labels.csv", "file,eye", "patient_left.png,left")
    out = tmp_path / "report"
    done = run("evaluate", "acquisition", "--labels", labels, "--report", out)
    assert done.exit_code == 0, done.output
    rate = report_of(out)["figures"]["outputs"]["eye"]["figures"]["accuracy"]
    assert (rate["count"], rate["of"]) == (0, 1)
    assert rows_of(out)[0]["eye.decision"] == "right"
    assert "data:image/jpeg" in (out / "report.html").read_text(encoding="utf-8")  # shown among the wrong ones


def test_every_line_is_accounted_for_and_nothing_is_asked_twice(examples: Path, tmp_path: Path) -> None:
    for name in ("idrid_005.jpg", "idrid_085.jpg", "idrid_165.jpg"):
        shutil.copy(examples / name, tmp_path / name)
    shutil.copy(examples / "idrid_005.jpg", tmp_path / "copy.jpg")
    shutil.copy(examples / "idrid_085.jpg", tmp_path / "other.jpg")
    (tmp_path / "broken.jpg").write_bytes(b"no picture")
    truth = {"idrid_005": "male", "idrid_085": "male", "copy": "male", "other": "female", "broken": "male", "gone": "male"}
    lines = [f"{name}.jpg,{sex}" for name, sex in truth.items()]
    labels = write_csv(tmp_path / "labels.csv", "file,sex", *lines, "idrid_165.jpg,")
    model = Path(__file__).parent / "data" / "tiny_sex.onnx"
    out = tmp_path / "report"
    done = run("evaluate", model, "--labels", labels, "--report", out)
    assert done.exit_code == 1, done.output  # two photographs could not be answered
    rows = {row["file"]: row for row in rows_of(out)}
    assert len(rows) == 7 and rows["idrid_005.jpg"]["sex.counted"] == "true" and rows["idrid_005.jpg"]["problem"] == ""
    expected = {
        "idrid_085.jpg": "the same content as line 5, with another label",
        "copy.jpg": "the same content as line 2, counted once",
        "other.jpg": "the same content as line 3, with another label",
        "gone.jpg": "the file cannot be read",
        "idrid_165.jpg": "no label for sex",
    }
    for name, said in expected.items():
        assert rows[name]["problem"].startswith(said) and rows[name]["sex.counted"] == "false"
    assert rows["broken.jpg"]["problem"] and rows["broken.jpg"]["sex.counted"] == "false"
    assert report_of(out)["figures"]["counted"] == 1
    before = (out / "answers.jsonl").read_bytes().splitlines()
    refused = run("evaluate", model, "--labels", labels, "--report", out)
    assert isinstance(refused.exception, FundusRtError) and "--resume" in str(refused.exception)
    labels.write_text(labels.read_text() + "idrid_165.jpg,female\n")
    again = run("evaluate", model, "--labels", labels, "--report", out, "--resume")
    assert again.exit_code == 1, again.output
    after = (out / "answers.jsonl").read_bytes().splitlines()
    assert after[: len(before)] == before
    new = [json.loads(line) for line in after[len(before) :]]
    assert sorted(Path(row["file"]).name for row in new) == ["gone.jpg", "idrid_165.jpg"]  # one new, one that may be there now
    assert report_of(out)["figures"]["counted"] == 2


def test_an_age_against_what_infer_answers(examples: Path, tmp_path: Path, tiny_age: Path) -> None:
    listed = write_csv(tmp_path / "list.csv", "file,eye", *[f"{examples / name},{eye}" for name, eye in EYES.items()])
    infer = run("infer", "--list", listed, "--model", tiny_age, "--format", "jsonl")
    said = {Path(r["file"]).name: r["outputs"]["age"]["value"] for r in map(json.loads, infer.output.splitlines())}
    assert len(said) == 11
    truth = {name: round(value + 3 * (-1) ** place, 2) for place, (name, value) in enumerate(said.items())}
    lines = [f"{name},{EYES[name]},{truth[name]},{'A' if place < 6 else 'B'}" for place, name in enumerate(said)]
    labels = write_csv(tmp_path / "labels.csv", "file,eye,age,clinic", *lines)
    out = tmp_path / "report"
    call = ("evaluate", tiny_age, "--labels", labels, "--images", examples, "--by", "clinic", "--report", out)
    done = run(*call, "--claim", "mae=2.39")
    assert done.exit_code == 1 and "WORSE than the claim of 2.39" in done.output, done.output + done.output
    found = report_of(out)
    assert found["verdict"]["passed"] is False
    age = found["figures"]["outputs"]["age"]
    mae = metrics.mean_absolute_error([truth[name] for name in said], list(said.values()))
    assert age["figures"]["mae"]["value"] == pytest.approx(mae, abs=1e-6)
    by = {(group["column"], group["group"]): group["figures"] for group in age["groups"]}
    names = list(said)
    assert by["clinic", "A"]["photographs"] == 6
    for eye in ("left", "right"):
        those = [name for name in names if EYES[name] == eye]
        expected = metrics.mean_absolute_error([truth[name] for name in those], [said[name] for name in those])
        assert by["eye", eye]["mae"]["value"] == pytest.approx(expected, abs=1e-6)
    bands = {group: figures["photographs"] for (column, group), figures in by.items() if column == "age"}
    expected_bands = [f"{int(value // 10) * 10} to {int(value // 10) * 10 + 9}" for value in truth.values()]
    assert bands == {band: expected_bands.count(band) for band in expected_bands}
    assert {row["file"]: float(row["age.error"]) for row in rows_of(out)} == pytest.approx(
        {name: said[name] - truth[name] for name in said}, abs=1e-6
    )
    better = run("evaluate", tiny_age, "--labels", labels, "--images", examples, "--claim", "mae=5")
    assert better.exit_code == 0 and "better than the claim of 5" in better.output


def test_a_call_that_is_wrong(examples: Path, tmp_path: Path, tiny_sex: Path) -> None:
    labels = write_csv(tmp_path / "labels.csv", "file,sex", "idrid_005.jpg,male")
    call = ("evaluate", tiny_sex, "--labels", labels, "--images", examples)
    for wrong, said in (
        (("--write-card", tmp_path / "new.json"), "--sensitivity 0.95"),
        (("--sensitivity", 0.9, "--write-card", labels), "ends in .json"),
        (("--claim", "mae=2.39"), "no output has the figure 'mae'"),
        (("--referable", "2"), "--referable 2"),
        (("--resume",), "--report DIR"),
        (("--label-means", "M"), "WORD=LABEL"),
    ):
        done = run(*call, *wrong)
        assert done.exit_code != 0 and said in f"{done.output} {done.exception}", (wrong, done.output)


def test_the_report_is_written_whatever_the_terminal_can_show(examples: Path, tmp_path: Path) -> None:
    """An é in a group's word, a terminal of ASCII; and a claim that one photograph cannot judge is not passed."""
    labels = tmp_path / "labels.csv"
    labels.write_bytes("file,sex,camera,note\nidrid_005.jpg,male,Caméra,Ä\n".encode("cp1252"))
    model, out = Path(__file__).parent / "data" / "tiny_sex.onnx", tmp_path / "report"
    call = ("evaluate", model, "--labels", labels, "--images", examples, "--report", out, "--by", "note", "--claim", "auc=0.9")
    refused = run(*call)
    assert isinstance(refused.exception, FundusRtError) and "--encoding cp1252" in str(refused.exception)
    done = CliRunner(charset="ascii").invoke(cli, [str(word) for word in (*call, "--encoding", "cp1252", "--resume")])
    assert done.exit_code == 1 and "by camera, Cam?ra" in done.output, (done.output, done.exception)
    found = report_of(out)
    assert found["verdict"]["passed"] is None and found["figures"]["claims"][0]["verdict"] == "cannot be told"
    assert rows_of(out)[0]["camera"] == "Caméra" and rows_of(out)[0]["labels.note"] == "Ä" and rows_of(out)[0]["note"] == ""


def test_candidates_that_cannot_be_compared_cost_no_report(
    examples: Path, tmp_path: Path, tiny_age: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(model: object) -> Path:
        raise UsageError("an engine shows no graph")

    monkeypatch.setattr(candidates, "assumed_fields", lambda card: ("crop_mode",))
    monkeypatch.setattr(preprocessing_trial, "resolve_model", refuse)
    labels = write_csv(tmp_path / "labels.csv", "file,age", "idrid_005.jpg,50")
    out = tmp_path / "report"
    call = ("evaluate", tiny_age, "--labels", labels, "--images", examples, "--no-check", "--report", out)
    done = run(*call)
    assert done.exit_code == 0 and "could not be compared: an engine shows no graph" in done.output, (done.output, done.exception)
    assert "an engine shows no graph" in (out / "report.html").read_text(encoding="utf-8")
    asked = run(*call, "--resume", "--candidates", "crop_mode")
    assert isinstance(asked.exception, UsageError)
