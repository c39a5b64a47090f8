"""What ``fundus-rt parity`` leaves beside the file: reference and certificate, or the reason for neither."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fundus_rt.benchmarks.proof import parity_certificate, stages
from fundus_rt.models import references
from fundus_rt.models.certificate_store import keep_certificate
from fundus_rt.models.certificates import Binding
from fundus_rt.models.errors import CertificateError, UsageError
from fundus_rt.models.references import read_reference
from fundus_rt.runtime.guarded_session import GuardedSession
from tests.parity_bench import (
    CASE,
    PHOTOGRAPHS,
    SIZE,
    Bench,
    bench_in,
    parity,
    passed_certificates,
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


def test_what_a_cpu_cannot_prove_leaves_the_reference_for_a_device_that_can(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: Any, **more: Any) -> None:
        raise CertificateError("only a GPU can certify this file")

    monkeypatch.setattr(parity_certificate, "certify", refuse)
    file = Path(shutil.copy(bench.file("right"), tmp_path / "right.onnx"))
    done = parity(bench, file)
    assert done.exit_code == 0 and "no certificate: only a GPU can certify this file" in done.stdout, done.output
    assert "right.reference: it contains the pixels of 5 photographs" in done.stdout
    assert len(read_reference(tmp_path / "right.reference")[0].frames) == 5


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
