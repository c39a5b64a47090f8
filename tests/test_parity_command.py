"""``fundus-rt parity`` as a user types it: a checkpoint, a shipped file, real photographs, and what must not pass."""

from __future__ import annotations

import csv
import dataclasses
import json
import shutil
import sqlite3
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest

from fundus_rt.benchmarks.proof import parity as parity_module
from fundus_rt.benchmarks.proof import parity_rows
from fundus_rt.benchmarks.proof.original import OriginalModel
from fundus_rt.converters.shipping import embed_card
from fundus_rt.models import references
from fundus_rt.models.card import CARD_KEY, card_from_json
from fundus_rt.models.errors import UsageError
from fundus_rt.runtime.onnx_providers import TF32_VARIABLE
from fundus_rt.runtime.output import RowWriter
from fundus_rt.runtime.session import BackendInfo, ModelIdentity
from tests.parity_bench import (
    CASE,
    PHOTOGRAPHS,
    Bench,
    bench_in,
    parity,
    rows_of,
    run,
    safetensors,
    torch_answer,
)

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return bench_in(tmp_path_factory.getbasetemp() / "parity-bench")


@pytest.fixture(autouse=True)
def few_are_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three photographs make a certificate here, for the sake of time."""
    monkeypatch.setattr(references, "LEAST_PHOTOGRAPHS", 3)


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch, bench: Bench) -> Path:
    """One cache for all, of its own."""
    folder = bench.folder / "cache"
    monkeypatch.setenv("FUNDUS_RT_CACHE", str(folder))
    return folder


def test_the_file_answers_as_its_checkpoint(bench: Bench, tmp_path: Path) -> None:
    file = bench.file("right")
    done = parity(bench, file, "--report", tmp_path / "report", stages=2)
    assert done.exit_code == 0, done.output
    assert "PASSED: the file answers as the original does by what its own card says of preprocessing, labels" in done.stdout
    assert "grade: 0 of 5 decisions changed: below 52.2 %" in done.stdout
    assert "quadratic weighted kappa 1.0000" in done.stdout and "stage by stage, on 2 photographs" in done.stdout
    assert "contains the pixels of 5 photographs; keep the file as you keep patients' data" in done.stdout
    assert "certificate passed" in done.stdout
    rows = rows_of(tmp_path / "report")
    assert sorted(Path(row["file"]).name for row in rows) == sorted(PHOTOGRAPHS)
    for row in rows:
        name, found = Path(row["file"]).name, row["outputs"]["grade"]
        mirror = name == "chase_01L.jpg" or row["eye"]["value"] == "left"
        assert row["mirrored"] == {"original": mirror, "ours": mirror}
        np.testing.assert_allclose(found["original"], torch_answer(bench, name, mirror), atol=2e-5)
        answered = run("infer", row["file"], "--model", file, "--format", "jsonl")
        stated = json.loads(answered.stdout)["outputs"]["grade"]
        assert found["ours_decision"] == stated["decision"]
        np.testing.assert_allclose(found["ours_values"], list(stated["probabilities"].values()), atol=1e-6)
    report = json.loads((tmp_path / "report" / "report.json").read_text(encoding="utf-8"))
    assert report["figures"]["passed"] is True and report["figures"]["outputs"]["grade"]["decisions_changed"] == 0
    with open(tmp_path / "report" / "photographs.csv", newline="", encoding="utf-8") as stream:
        table = list(csv.DictReader(stream))
    assert len(table) == 5 and {row["grade, original said"] for row in table} == {
        r["outputs"]["grade"]["original_decision"] for r in rows
    }
    page = (tmp_path / "report" / "report.html").read_text(encoding="utf-8")
    assert "<html" in page and Path(rows[0]["file"]).name in page
    assert str(Path(rows[0]["file"]).parent) not in page and str(tmp_path) not in page


def test_without_a_report_no_name_of_a_photograph_lies_in_any_folder(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Looked at while the rows are written, which is what a kill at that moment would leave behind."""
    folder, seen = tmp_path / "temporary", []
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    write = RowWriter.write

    def watched(self: RowWriter, row: Any) -> None:
        write(self, row)
        seen.append([path for path in folder.rglob("*") if path.is_file() and b"idrid" in path.read_bytes()])

    monkeypatch.setattr(RowWriter, "write", watched)
    done = parity(bench, bench.file("right"), "--no-reference")
    assert done.exit_code == 0 and "0 of 5 decisions changed" in done.stdout, done.output
    assert seen == [[]] * 5


def test_another_resize_is_found(bench: Bench, tmp_path: Path) -> None:
    file = bench.file("resize", interpolation="opencv-linear")
    done = parity(bench, file, "--card", bench.stated("author", bench.card), "--report", tmp_path / "report", stages=2)
    assert done.exit_code == 1, done.output
    assert "interpolation is 'opencv-linear', the author's is 'pillow-bilinear'" in done.stdout
    assert "FAILED: the file does not answer as the original does" in done.stdout
    assert "of the difference is the resize" in done.stdout
    assert "as if photographs were resized with opencv-linear, not pillow-bilinear" in done.stdout
    apart = {}
    for row in rows_of(tmp_path / "report"):
        found = row["outputs"]["grade"]
        apart[row["file"]] = max(abs(a - b) for a, b in zip(found["ours_values"], found["original_values"], strict=True))
    worst = max(apart, key=lambda name: apart[name])
    assert worst in next(line for line in done.stdout.splitlines() if "largest difference: " in line)
    (certificate,) = json.loads(file.with_suffix(".parity.json").read_text(encoding="utf-8"))["certificates"]
    assert certificate["verdict"] == "failed" and not file.with_suffix(".reference").exists()


def test_red_and_blue_exchanged_are_found(bench: Bench) -> None:
    file = bench.converted("colours", color_order="BGR")
    done = parity(bench, file, "--card", bench.stated("author", bench.card))
    assert done.exit_code == 1, done.output
    assert "color_order is 'BGR', the author's is 'RGB'" in done.stdout
    assert "as if red and blue were swapped" in done.stdout


def test_the_search_for_an_explanation_can_be_left_out(bench: Bench) -> None:
    file = bench.converted("colours", color_order="BGR")
    done = parity(bench, file, "--card", bench.stated("author", bench.card), "--no-explanation")
    assert done.exit_code == 1, done.output
    assert "FAILED: " in done.stdout and "as if red and blue were swapped" not in done.stdout


def test_a_left_eye_that_is_not_mirrored_is_found(bench: Bench, tmp_path: Path) -> None:
    file = bench.file("straight", laterality="none")
    done = parity(bench, file, "--card", bench.stated("author", bench.card), "--report", tmp_path / "report")
    assert done.exit_code == 1
    assert "laterality is 'none', the author's is 'mirror-left'" in done.stdout
    for row in rows_of(tmp_path / "report"):
        found = row["outputs"]["grade"]
        far = np.abs(np.subtract(found["ours_values"], found["original_values"])).max() > 1e-3
        assert far == row["mirrored"]["original"] == (row["eye"]["value"] == "left")
        assert row["mirrored"]["ours"] is False


def test_the_first_wrong_node_is_looked_for_whenever_the_graph_may_be_at_fault(bench: Bench, tmp_path: Path) -> None:
    """The classifier's bias is wrong by little beside what another resize does. Where the graph is right, it is said."""
    onnx = pytest.importorskip("onnx")
    words = ("--card", bench.stated("author", bench.card), "--locate", "--no-explanation", "--no-reference")
    model = onnx.load(str(bench.file("resize", interpolation="opencv-linear")))
    bias = next(one for one in model.graph.initializer if list(one.dims) == [CASE.columns])
    bias.CopyFrom(
        onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(bias) + np.float32([0.3, *[0] * (CASE.columns - 1)]), bias.name)
    )
    shipped = card_from_json(next(entry.value for entry in model.metadata_props if entry.key == CARD_KEY))
    embed_card(model, dataclasses.replace(shipped, canary={}))
    onnx.save(model, str(tmp_path / "both.onnx"))
    for stages_asked in (0, 1):
        done = parity(bench, tmp_path / "both.onnx", *words, stages=stages_asked)
        assert done.exit_code == 1 and bias.name in done.stdout and "The first tensor beyond the budget" in done.stdout, (
            done.output
        )
    assert "of the difference is the resize" in done.stdout
    right = parity(bench, bench.file("resize", interpolation="opencv-linear"), *words, stages=1)
    assert "no node was looked for: no stage of the graph has a part in the difference" in right.stdout


def test_a_photograph_that_cannot_be_answered_is_listed_and_fails(bench: Bench, tmp_path: Path) -> None:
    folder = tmp_path / "some"
    folder.mkdir()
    for name in PHOTOGRAPHS[:3]:
        shutil.copy(bench.photographs / name, folder / name)
    shutil.copy(bench.photographs / PHOTOGRAPHS[0], folder / "copy_01L.jpg")
    shutil.copy(bench.photographs / PHOTOGRAPHS[1], folder / "without_an_eye.jpg")  # told by the picture, and the same
    cv2.imwrite(str(folder / "chart.png"), np.full((300, 300, 3), 200, np.uint8))
    (folder / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 no picture")
    file = Path(shutil.copy(bench.file("right"), tmp_path / "right.onnx"))
    done = parity(bench, file, "--report", tmp_path / "report", images=folder)
    assert done.exit_code == 1, done.output
    assert "5 photographs, 3 answered by both sides; 2 more were copies of others" in done.stdout
    assert "not answered: " in done.stdout and "chart.png" in done.stdout and "broken.jpg" in done.stdout
    assert "2 photographs could not be answered by both sides" in done.stdout
    assert not (tmp_path / "right.reference").exists()
    errors = {Path(row["file"]).name for row in rows_of(tmp_path / "report") if row["error"]}
    assert errors == {"chart.png", "broken.jpg"}


def test_resume_asks_about_no_photograph_twice(bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, report = bench.file("right"), tmp_path / "report"
    asked: list[int] = []
    ours = parity_rows.ParityRows.rows
    monkeypatch.setattr(parity_rows.ParityRows, "rows", lambda self, some: asked.append(len(some)) or ours(self, some))
    assert parity(bench, file, "--report", report, "--no-reference").exit_code == 0
    whole = (report / "photographs.jsonl").read_bytes()
    lines = whole.splitlines(keepends=True)
    (report / "photographs.jsonl").write_bytes(b"".join(lines[:3]) + lines[3][:50])  # as a kill leaves it
    asked.clear()
    done = parity(bench, file, "--report", report, "--no-reference", "--resume")
    assert done.exit_code == 0, done.output
    assert sum(asked) == 2 and "5 photographs, 5 answered" in done.stdout
    again = rows_of(report)
    assert [row["sha256"] for row in again] == [json.loads(line)["sha256"] for line in lines]
    refused = parity(bench, file, "--report", report)
    assert isinstance(refused.exception, UsageError) and "--resume" in str(refused.exception)
    looser = dataclasses.replace(bench.card, outputs=(dataclasses.replace(bench.card.outputs[0], threshold=0.99),))
    asked.clear()
    third = parity(bench, file, "--report", report, "--no-reference", "--resume", "--card", bench.stated("looser", looser))
    assert sum(asked) == 5 and "decided otherwise" in third.stdout and third.exit_code == 1


def test_rows_of_another_engine_device_or_rounding_are_not_gone_on_with(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    call = parity_module.ParityCall(bench.checkpoint, "right.engine", device="cuda:0")
    original: Any = SimpleNamespace(
        checkpoint_sha256="c" * 64, beside_sha256="d" * 64, description="", card=bench.card, versions={}
    )
    digests = set()
    for engine, device in (("a", "cuda:0"), ("b", "cuda:0"), ("a", "cpu"), ("b", "cpu")):
        backend = BackendInfo(name="tensorrt", provider="", device=device, version="10", engine_sha256=engine * 64)
        identity = ModelIdentity("right", "d" * 64, "fp16")
        pipeline: Any = SimpleNamespace(backend=backend, card=bench.card, identity=identity, asked=("auto", device, "auto"))
        for rounds in ("0", "1") if device != "cpu" else ("0",):
            monkeypatch.setenv(TF32_VARIABLE, rounds)
            digests.add(parity_module._run_digest(call, original, pipeline))
            assert parity_module._run_digest(call, original, pipeline) in digests
    assert len(digests) == 6


def test_what_the_original_answered_is_kept_without_names(
    bench: Bench, own_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    answers = OriginalModel.answers
    monkeypatch.setattr(OriginalModel, "answers", lambda self, images: asked.append(len(images)) or answers(self, images))
    monkeypatch.setenv("FUNDUS_RT_CACHE", str(tmp_path / "cache"))
    file = bench.file("right")
    first = parity(bench, file, "--no-reference")
    assert first.exit_code == 0 and sum(asked) == 5
    second = parity(bench, file, "--no-reference")
    assert second.exit_code == 0 and sum(asked) == 5
    assert "5 of the original's answers were kept from before" in second.stdout
    content = next((tmp_path / "cache").rglob("*.sqlite3")).read_bytes()
    assert not any(Path(name).stem.encode() in content for name in PHOTOGRAPHS)
    other = bench.file("resize", interpolation="opencv-linear")
    parity(bench, other, "--no-reference")
    assert sum(asked) == 10  # another preprocessing, another answer
    with sqlite3.connect(next((tmp_path / "cache").rglob("*.sqlite3"))) as rows:
        assert rows.execute("select count(*), max(length(numbers)) from answers").fetchone() == (10, 4 * CASE.columns)


def test_a_list_says_which_eye(bench: Bench, tmp_path: Path) -> None:
    shutil.copy(bench.photographs / "idrid_085.jpg", tmp_path / "one.jpg")
    shutil.copy(bench.photographs / "chase_03R.jpg", tmp_path / "two.jpg")
    (tmp_path / "list.csv").write_text("file,eye\none.jpg,OD\ntwo.jpg,OD\n", encoding="utf-8")
    done = parity(bench, bench.file("right"), "--list", tmp_path / "list.csv", "--report", tmp_path / "report", "--no-reference")
    assert done.exit_code == 0, done.output
    assert all("list" in row["eye"]["source"] for row in rows_of(tmp_path / "report"))
    (tmp_path / "list.csv").write_text("file,eye\none.jpg,OD\ntwo.jpg,OS\n", encoding="utf-8")
    wrong = parity(bench, bench.file("right"), "--list", tmp_path / "list.csv", "--no-reference")
    assert wrong.exit_code == 1 and "sources disagree about the eye" in wrong.stdout


def test_another_checkpoint_is_another_network(bench: Bench, tmp_path: Path) -> None:
    """The same architecture with other weights: each answer is a probability of the right labels, and none is right."""
    state = safetensors.load_file(bench.checkpoint)
    state["blocks.3.0.conv_pw.weight"] = state["blocks.3.0.conv_pw.weight"].flip(0).contiguous()
    safetensors.save_file(state, tmp_path / "other.safetensors")
    done = run("parity", tmp_path / "other.safetensors", bench.file("right"), "--images", bench.photographs, "--stages", "0")
    assert done.exit_code == 1, done.output
    assert "made from another checkpoint" in done.stdout


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--resume",), "--resume goes on with the rows of a --report folder"),
        (("--card", "joir-age"), "give the card that belongs to the file"),
        (("--card", "nothing-like-it"), "no card is named"),
    ],
)
def test_calls_that_make_no_sense_say_so(bench: Bench, words: tuple[str, ...], message: str) -> None:
    done = parity(bench, bench.file("right"), *words)
    assert done.exception is not None and message in str(done.exception)


def test_images_and_a_list_are_one_too_many(bench: Bench, tmp_path: Path) -> None:
    done = run("parity", bench.checkpoint, bench.file("right"), "--images", "a", "--list", "b")
    assert done.exit_code == 2 and "either --images or --list" in done.output
