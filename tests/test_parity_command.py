"""``fundus-rt parity`` as a user types it: a checkpoint, a shipped file, real photographs, and what must not pass."""

from __future__ import annotations

import csv
import dataclasses
import functools
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
from click.testing import CliRunner, Result
from PIL import Image

from fundus_rt.benchmarks import make_torch
from fundus_rt.benchmarks.conversion_case import IMAGENET
from fundus_rt.converters.shipping import embed_card
from fundus_rt.models import references
from fundus_rt.models.card import CARD_KEY, ModelCard, card_from_json
from fundus_rt.models.certificate_store import keep_certificate
from fundus_rt.models.certificates import Binding
from fundus_rt.models.errors import UsageError
from fundus_rt.models.references import read_reference
from fundus_rt.models.registry import EXAMPLE_FOLDER, load_card
from fundus_rt.runtime.cli import cli
from fundus_rt.runtime.guarded_session import GuardedSession
from fundus_rt.runtime.onnx_providers import TF32_VARIABLE
from fundus_rt.runtime.output import RowWriter
from fundus_rt.runtime.session import BackendInfo, ModelIdentity
from tests import make_checkpoints as make

torch = pytest.importorskip("torch")
safetensors = pytest.importorskip("safetensors.torch")
pytest.importorskip("onnxruntime")
pytest.importorskip("jinja2")
pytest.importorskip("matplotlib")
make.skip_without_timm()

from fundus_rt.benchmarks.proof import parity as parity_module  # noqa: E402 - after the skips
from fundus_rt.benchmarks.proof import parity_certificate, parity_rows, stages  # noqa: E402
from fundus_rt.benchmarks.proof.author_card import _held_against, author_card, settled_differences  # noqa: E402
from fundus_rt.benchmarks.proof.original import OriginalModel  # noqa: E402

SIZE = 64
PHOTOGRAPHS = ("chase_01L.jpg", "chase_03R.jpg", "haggstrom_right.jpg", "idrid_085.jpg", "idrid_165.jpg")
CASE = next(case for case in make_torch.CASES if case.architecture == "MobileNetV3-small")


@dataclasses.dataclass(frozen=True)
class Bench:
    """A checkpoint, its author's card, photographs."""

    folder: Path
    checkpoint: Path
    card: ModelCard
    photographs: Path

    def file(self, name: str, laterality: str = "mirror-left", **changes: Any) -> Path:
        """The shipped file, its own card differing from the author's in laterality or parts of its preprocessing.

        The graph is the right one's, with the colour order and normalisation of the author's card.
        """
        onnx = pytest.importorskip("onnx")
        right, path = self.folder / "right.onnx", self.folder / f"{name}.onnx"
        if not right.exists():
            convert(self.checkpoint, self.card, right, self.photographs)
        if not path.exists():
            model = onnx.load(str(right))
            shipped = card_from_json(next(entry.value for entry in model.metadata_props if entry.key == CARD_KEY))
            spec = dataclasses.replace(shipped.preprocessing, **changes)
            embed_card(model, dataclasses.replace(shipped, preprocessing=spec, laterality=laterality))
            onnx.save(model, str(path))
        return path

    def converted(self, name: str, **changes: Any) -> Path:
        """A file converted with another preprocessing in its graph."""
        path = self.folder / f"{name}.onnx"
        spec = dataclasses.replace(self.card.preprocessing, **changes)
        convert(self.checkpoint, dataclasses.replace(self.card, preprocessing=spec), path, self.photographs)
        return path

    def stated(self, name: str, card: ModelCard) -> Path:
        """A card as a file."""
        path = self.folder / f"{name}.json"
        path.write_text(card.to_json(), encoding="utf-8")
        return path


def convert(checkpoint: Path, card: ModelCard, target: Path, photographs: Path) -> None:
    stated = target.with_suffix(".card.json")
    stated.write_text(card.to_json(), encoding="utf-8")
    done = run("convert", checkpoint, "--card", stated, "-o", target, "--photographs", photographs)
    assert done.exit_code == 0, done.output


def run(*words: str | Path) -> Result:
    return CliRunner().invoke(cli, [str(word) for word in words], catch_exceptions=True)


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    folder = tmp_path_factory.mktemp("parity")
    (folder / "net").mkdir()
    card = dataclasses.replace(CASE.card(SIZE), name="parity-case", laterality="mirror-left")
    photographs = folder / "photographs"
    photographs.mkdir()
    for name in PHOTOGRAPHS:
        shutil.copy(EXAMPLE_FOLDER / name, photographs / name)
    return Bench(folder, CASE.make(folder / "net", SIZE, CASE.columns), card, photographs)


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True)
def few_are_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three photographs make a certificate here, for the sake of time."""
    monkeypatch.setattr(references, "LEAST_PHOTOGRAPHS", 3)


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch, bench: Bench) -> Path:
    """One cache for the module, of its own."""
    folder = bench.folder / "cache"
    monkeypatch.setenv("FUNDUS_RT_CACHE", str(folder))
    return folder


def parity(bench: Bench, file: Path, *words: str | Path, images: Path | None = None, stages: int = 0) -> Result:
    given = () if "--list" in words else ("--images", images or bench.photographs)
    return run("parity", bench.checkpoint, file, "--stages", str(stages), *given, *words)


def rows_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "photographs.jsonl").read_text(encoding="utf-8").splitlines()]


def torch_answer(bench: Bench, name: str, mirror: bool) -> np.ndarray:
    """The checkpoint's own numbers by nothing but Pillow, NumPy and torch, on the square of the field of view."""
    from fundus_rt.runtime.field_of_view import find_field_of_view
    from fundus_rt.runtime.preprocess import crop_box

    picture = Image.open(bench.photographs / name).convert("RGB")
    frame = np.ascontiguousarray(np.asarray(picture)[..., ::-1])
    box = crop_box(find_field_of_view(frame), frame.shape, bench.card.preprocessing)
    square = picture.crop(box)
    if mirror:
        square = square.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    levels = np.asarray(square.resize((SIZE, SIZE), Image.Resampling.BILINEAR), np.float64)
    scale, mean, std = IMAGENET
    images = ((levels * scale - mean) / std).transpose(2, 0, 1)[None].astype(np.float32)
    with torch.inference_mode():
        return np.asarray(torch_network(bench.checkpoint)(torch.from_numpy(images))[0].numpy())


@functools.cache
def torch_network(checkpoint: Path) -> Any:
    """The checkpoint's network, by timm and safetensors alone."""
    network = make_torch.library_network("timm/mobilenetv3_small_100", SIZE, CASE.columns)
    network.load_state_dict(safetensors.load_file(checkpoint))
    return network.eval()


def test_the_file_answers_as_its_checkpoint(bench: Bench, tmp_path: Path) -> None:
    file = bench.file("right")
    done = parity(bench, file, "--report", tmp_path / "report", stages=2)
    assert done.exit_code == 0, done.output
    assert "PASSED: the file answers as the original does. grade: 0 of 5 decisions changed: below 52.2 %" in done.stdout
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
    assert "<html" in (tmp_path / "report" / "report.html").read_text(encoding="utf-8")


def test_the_reference_holds_our_frames_and_the_originals_answers(bench: Bench, tmp_path: Path) -> None:
    file = Path(shutil.copy(bench.file("right"), tmp_path / "right.onnx"))
    assert parity(bench, file, "--reference-photographs", "3").exit_code == 0
    reference, _ = read_reference(tmp_path / "right.reference")
    assert reference.frames.shape == (3, SIZE, SIZE, 3) and reference.answers["grade"].shape == (3, CASE.columns)
    known = [torch_answer(bench, name, mirror) for name in PHOTOGRAPHS for mirror in (False, True)]
    for answer in reference.answers["grade"]:
        assert min(float(np.abs(answer - row).max()) for row in known) < 2e-5
    content = (tmp_path / "right.reference").read_bytes()
    assert not any(Path(name).stem.encode() in content for name in PHOTOGRAPHS)
    certificate = json.loads((tmp_path / "right.parity.json").read_text(encoding="utf-8"))
    assert not any(Path(name).stem in json.dumps(certificate) for name in PHOTOGRAPHS)


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


def test_too_few_photographs_make_no_certificate(bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    monkeypatch.setenv("FUNDUS_RT_CACHE", str(bench.folder / "cache"))
    file = Path(shutil.copy(bench.file("right"), tmp_path / "right.onnx"))
    done = parity(bench, file)
    assert done.exit_code == 0, done.output
    assert "no certificate: a certificate needs 8 different photographs at least, got 5" in done.stdout
    assert not (tmp_path / "right.reference").exists() and not (tmp_path / "right.parity.json").exists()


def test_a_reference_of_too_few_is_refused_at_once(bench: Bench) -> None:
    done = run("parity", bench.checkpoint, bench.file("right"), "--reference-photographs", "2")
    assert done.exit_code == 2 and "2 is too few: a certificate needs 3 photographs" in done.output
    assert "Opening" not in done.output


def resaved(bench: Bench, folder: Path) -> Path:
    """The checkpoint's own weights, saved once more: a file of another SHA-256."""
    path = folder / "resaved.safetensors"
    safetensors.save_file(safetensors.load_file(bench.checkpoint), path, {"saved": "again"})
    return path


def test_where_no_certificate_can_be_issued_figures_and_earlier_files_stay(bench: Bench, tmp_path: Path) -> None:
    file, reference = Path(shutil.copy(bench.file("right"), tmp_path / "right.onnx")), tmp_path / "right.reference"
    reference.write_bytes(b"of an earlier proof")
    words = ("--images", bench.photographs, "--stages", "0")
    done = run("parity", resaved(bench, tmp_path), file, *words, "--report", tmp_path / "first")
    assert done.exit_code == 0, done.output
    assert "PASSED: " in done.stdout and "no certificate: the file says that it was made from another checkpoint" in done.stdout
    assert "no certificate will be written" in done.stderr and "Writing the reference" not in done.stderr
    assert (tmp_path / "first" / "report.json").is_file() and reference.read_bytes() == b"of an earlier proof"
    (tmp_path / "right.parity.json").write_text('{"certificates": [], "format": 2}', encoding="utf-8")
    done = run("parity", bench.checkpoint, file, *words, "--report", tmp_path / "second")
    assert done.exit_code == 0, done.output
    assert "PASSED: " in done.stdout and "no certificate: right.parity.json is of a later version" in done.stdout
    assert (tmp_path / "second" / "report.json").is_file() and reference.read_bytes() == b"of an earlier proof"
    assert sorted(path.name for path in tmp_path.glob(".*")) in ([], [".right.parity.json.lock"])


def test_a_reference_that_cannot_be_written_is_known_at_once(bench: Bench, tmp_path: Path) -> None:
    file = Path(shutil.copy(bench.file("right"), tmp_path / "right.onnx"))
    (tmp_path / "right.reference").mkdir()
    done = parity(bench, file)
    assert isinstance(done.exception, UsageError) and "--no-reference" in str(done.exception) and not done.output


def test_figures_and_report_outlive_an_error_in_what_follows(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*arguments: Any) -> None:
        raise UsageError("no graph to be had")

    monkeypatch.setattr(stages, "stage_split", broken)
    done = parity(bench, bench.file("right"), "--report", tmp_path / "report", stages=1)
    assert isinstance(done.exception, UsageError)
    assert "0 of 5 decisions changed" in done.stdout and "the proof was broken off: no graph to be had" in done.stdout
    assert json.loads((tmp_path / "report" / "report.json").read_text(encoding="utf-8"))["figures"]["passed"] is False


def test_a_failure_takes_the_place_of_an_earlier_pass(bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same file and card, first on photographs that do not show the fault, then on all."""
    changed, calls = bench.file("resize", interpolation="opencv-linear"), []
    file = Path(shutil.copy(changed, tmp_path / "other.onnx"))
    own = dataclasses.replace(bench.card.preprocessing, interpolation="opencv-linear")
    easy = bench.stated("easy", dataclasses.replace(bench.card, preprocessing=own))
    assert parity(bench, file, "--card", easy).exit_code == 0
    (passed,) = passed_certificates(tmp_path)
    infer = ("infer", bench.photographs / "idrid_085.jpg", "--model", file)
    assert "certificate: passed" in run(*infer).stdout
    author, unproved = ("--card", bench.stated("author", bench.card)), tmp_path / "one"
    unproved.mkdir()
    shutil.copy(bench.photographs / "idrid_085.jpg", unproved / "idrid_085.jpg")
    assert parity(bench, file, *author, "--no-reference", "--no-explanation").exit_code == 1
    alike = parity(bench, file, "--card", easy, images=unproved)
    assert alike.exit_code == 1 and "no certificate: nothing was found that speaks against the file" in alike.stdout
    assert passed_certificates(tmp_path) == [passed]
    monkeypatch.setattr(parity_certificate, "keep_certificate", lambda *given: calls.append(given) or keep_certificate(*given))
    done = parity(bench, file, *author, "--no-explanation")
    assert done.exit_code == 1 and "certificate failed for onnxruntime" in done.stdout
    ((_, failed, _),) = calls
    assert [one.name for one in dataclasses.fields(Binding) if getattr(failed, one.name) != passed[one.name]] == []
    assert failed.agreement["grade"]["photographs"] == 5 and failed.problems and len(failed.reference_sha256) == 64
    assert "certificate: failed" in run(*infer).stdout
    text = (tmp_path / "other.parity.json").read_text(encoding="utf-8")
    assert not any(Path(name).stem in text for name in PHOTOGRAPHS) and str(tmp_path) not in text


def test_a_replay_that_fails_fails_the_proof(bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A device that answers batches otherwise than single photographs: the rows agree, the replay does not."""
    answer = GuardedSession.answer

    def spoilt(self: GuardedSession, frames: np.ndarray) -> Any:
        answers, backend = answer(self, frames)
        for numbers in answers.values() if len(frames) > 1 else ():
            numbers[:] = numbers[::-1].copy()
        return answers, backend

    monkeypatch.setattr(GuardedSession, "answer", spoilt)
    file = Path(shutil.copy(bench.file("right"), tmp_path / "right.onnx"))
    done = parity(bench, file)
    assert "certificate failed" in done.stdout and "FAILED: " in done.stdout and "PASSED" not in done.stdout
    assert "replayed for the certificate: grade: " in done.stdout
    assert done.exit_code == 1


def test_no_reference_where_none_is_wanted(bench: Bench, tmp_path: Path) -> None:
    file = Path(shutil.copy(bench.file("right"), tmp_path / "right.onnx"))
    done = parity(bench, file, "--no-reference")
    assert done.exit_code == 0, done.output
    assert not (tmp_path / "right.reference").exists() and not (tmp_path / "right.parity.json").exists()
    assert "no certificate: no reference was asked for" in done.stdout


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
    assert not file.with_suffix(".reference").exists() and not passed_certificates(bench.folder)


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


def test_a_card_that_differs_fails_even_where_no_photograph_shows_it(bench: Bench, tmp_path: Path) -> None:
    """Right eyes only: a file that would not mirror left ones answers every photograph as the original does."""
    file = Path(shutil.copy(bench.file("straight", laterality="none"), tmp_path / "straight.onnx"))
    for name in ("chase_03R.jpg", "haggstrom_right.jpg", "idrid_085.jpg"):
        shutil.copy(bench.photographs / name, tmp_path / name)
    words = ("--reference-photographs", "3")
    done = parity(bench, file, "--card", bench.stated("author", bench.card), *words, images=tmp_path)
    assert done.exit_code == 1, done.output
    assert "grade: 0 of 3 decisions changed" in done.stdout
    assert "FAILED: " in done.stdout and "laterality is 'none', the author's is 'mirror-left'. If that is wanted" in done.stdout
    assert not (tmp_path / "straight.reference").exists() and not passed_certificates(tmp_path)
    wanted = dataclasses.replace(bench.card, laterality="none")
    done = parity(bench, file, "--card", bench.stated("wanted", wanted), *words, images=tmp_path)
    assert done.exit_code == 0, done.output
    assert len(passed_certificates(tmp_path)) == 1


def passed_certificates(folder: Path) -> list[dict[str, Any]]:
    """Those that say so, of every file in the folder."""
    found = (json.loads(path.read_text(encoding="utf-8"))["certificates"] for path in folder.glob("*.parity.json"))
    return [one for certificates in found for one in certificates if one["verdict"] == "passed"]


def test_a_photograph_that_cannot_be_answered_is_listed_and_fails(bench: Bench, tmp_path: Path) -> None:
    folder = tmp_path / "some"
    folder.mkdir()
    for name in PHOTOGRAPHS[:3]:
        shutil.copy(bench.photographs / name, folder / name)
    shutil.copy(bench.photographs / PHOTOGRAPHS[0], folder / "copy_01L.jpg")
    cv2.imwrite(str(folder / "chart.png"), np.full((300, 300, 3), 200, np.uint8))
    (folder / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 no picture")
    file = Path(shutil.copy(bench.file("right"), tmp_path / "right.onnx"))
    done = parity(bench, file, "--report", tmp_path / "report", images=folder)
    assert done.exit_code == 1, done.output
    assert "5 photographs, 3 answered by both sides; 1 more were copies of others" in done.stdout
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
    original: Any = SimpleNamespace(checkpoint_sha256="c" * 64, description="", card=bench.card, versions={})
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


def test_the_packages_card_speaks_for_the_author_in_all_that_it_states() -> None:
    """An age whose scale, tolerance and mean the file states by itself: only the scale could not be known to the package."""
    stated = load_card("joir-age")
    output = dataclasses.replace(
        stated.outputs[0], scale=12.0, offset=50.0, activation="sigmoid", columns=1, tolerance=1000.0, unit="months"
    )
    spec = dataclasses.replace(stated.preprocessing, mean=(0.5, 0.5, 0.5))
    own = dataclasses.replace(stated, outputs=(output,), preprocessing=spec, provenance={"precision": "fp16"})
    found = author_card(own, None)
    assert found.origin == "the package's card joir-age" and found.card.preprocessing == stated.preprocessing
    assert found.card.outputs == (dataclasses.replace(stated.outputs[0], scale=12.0, offset=50.0),)
    assert found.card.provenance == {}
    assert found.differences == (
        f"preprocessing: mean is (0.5, 0.5, 0.5), the author's is {stated.preprocessing.mean!r}",
        "output age: unit is 'months', the author's is 'years'",
        "output age: tolerance is 1000.0, the author's is 0.01",
    )
    assert len(found.taken) == 1 and "times 12, plus 50 is as told at the conversion" in found.taken[0]
    settled = dataclasses.replace(found.card.outputs[0], activation="none", columns=1)
    resolved = dataclasses.replace(found.card, outputs=(settled,))
    assert settled_differences(own, found, resolved) == ("output age: activation is 'sigmoid', by the checkpoint it is 'none'",)
    finer = dataclasses.replace(stated, outputs=(dataclasses.replace(stated.outputs[0], tolerance=0.001),))
    assert author_card(finer, None).card.outputs == finer.outputs and not author_card(finer, None).taken
    unknown = author_card(dataclasses.replace(own, name="somebodys-own"), None)
    assert unknown.card.preprocessing == spec and "own card" in unknown.origin


def test_a_card_that_is_given_states_the_scale_too(tmp_path: Path) -> None:
    stated = load_card("joir-age")
    own = dataclasses.replace(stated, outputs=(dataclasses.replace(stated.outputs[0], scale=12.0),))
    (tmp_path / "age.json").write_text(stated.to_json(), encoding="utf-8")
    found = author_card(own, str(tmp_path / "age.json"))
    assert found.card.outputs == stated.outputs and found.differences == ("output age: scale is 12.0, the author's is 1.0",)
    assert author_card(own, "joir-age").card.outputs == own.outputs  # the package's, by name


def test_labels_are_the_files_only_where_they_are_not_published() -> None:
    open_card, published = load_card("joir-sex-mobilenet"), load_card("joir-sex-mobilenet")
    published = dataclasses.replace(published, outputs=(dataclasses.replace(published.outputs[0], labels_assumed=False),))
    reversed_ = dataclasses.replace(open_card.outputs[0], labels=open_card.outputs[0].labels[::-1])
    told = dataclasses.replace(open_card, outputs=(dataclasses.replace(reversed_, labels_assumed=False),))
    found = author_card(told, None)
    assert found.card.outputs[0].labels == reversed_.labels and found.differences == ()
    assert len(found.taken) == 1 and "this proof does not show that it is right" in found.taken[0]
    for own, stated in ((dataclasses.replace(open_card, outputs=(reversed_,)), open_card), (told, published)):
        found = _held_against(own, stated, "a card", open_scale=True)
        assert found.card.outputs[0].labels == open_card.outputs[0].labels and not found.taken
        assert len(found.differences) == 1 and "labels is" in found.differences[0]
