"""``fundus-rt certify``, and what every answer says of it: on real photographs, against answers that nobody here computed."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnxruntime")

from fundus_rt.models.artifacts import sha256_of_file
from fundus_rt.models.certificate_store import certificate_path
from fundus_rt.models.errors import CertificateError, ModelFileError, StoppedError, UsageError
from fundus_rt.models.references import ReplayReference, reference_path, write_reference
from fundus_rt.runtime import guarded_session
from fundus_rt.runtime.certify import certify, replay
from fundus_rt.runtime.decode import decode
from fundus_rt.runtime.device_check.anonymity import model_labels, names_in
from fundus_rt.runtime.device_check.selftest import FAILED, PASSED, SkipStep, Step, run_steps
from fundus_rt.runtime.device_check.selftest_model import Subject
from fundus_rt.runtime.device_check.selftest_reference import reference_replay
from fundus_rt.runtime.device_kind import cpu_kind
from fundus_rt.runtime.guarded_session import GuardedSession
from fundus_rt.runtime.onnx_session import OnnxRuntimeSession
from fundus_rt.runtime.pipeline import Pipeline
from tests.conftest import REPOSITORY, Run, environment
from tests.faulty_session import Faulty, lost
from tests.photographs import half_and_half
from tests.references import CHECKPOINT, acquisition_reference, sex_reference, with_reference

ACQUISITION = REPOSITORY / "models" / "bundled" / "acquisition.onnx"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FUNDUS_RT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "models").mkdir()
    return tmp_path / "models"


@pytest.fixture
def model(tiny_sex: Path, folder: Path) -> Path:
    """A network that answers as its original did, with the reference beside it."""
    return with_reference(tiny_sex, folder)


@pytest.fixture
def wrong(tiny_sex: Path, folder: Path) -> Path:
    """The same with a reference whose original answered two photographs the other way round."""
    reference = sex_reference(tiny_sex)
    order = np.arange(len(reference.frames))
    low, high = int(reference.answers["sex"].argmin()), int(reference.answers["sex"].argmax())
    order[[low, high]] = high, low
    answers = {"sex": reference.answers["sex"][order]}
    return with_reference(tiny_sex, folder, dataclasses.replace(reference, answers=answers))


def state(model: Path, **options: Any) -> tuple[str, str]:
    pipeline = Pipeline(model, check=False, **options)
    try:
        return pipeline.certificate.verdict, pipeline.certificate.reason
    finally:
        pipeline.close()


class TestCommand:
    def test_a_model_that_answers_as_its_original_did(self, fundus_rt: Run, model: Path, examples: Path) -> None:
        done = fundus_rt("certify", model)
        assert done.returncode == 0, done.stderr
        assert "certificate  passed, in " in done.stdout and "sex: 0 of 11 decisions changed" in done.stdout
        values = json.loads(certificate_path(model).read_text())
        (found,) = values["certificates"]
        assert found["file_sha256"] == found["onnx_sha256"] == sha256_of_file(model)
        assert found["reference_sha256"] == sha256_of_file(reference_path(model))
        assert (found["checkpoint_sha256"], found["provider"]) == (CHECKPOINT, "CPUExecutionProvider")
        assert found["device"] == cpu_kind() and found["agreement"]["sex"]["photographs"] == 11
        assert "idrid" not in certificate_path(model).read_text() and str(model.parent) not in certificate_path(model).read_text()

        picture = examples / "idrid_005.jpg"
        row = json.loads(fundus_rt("infer", picture, "--model", model, "--format", "jsonl").stdout)
        assert row["model"]["certificate"] == "passed" and row["backend"]["engine_sha256"] == ""
        lines = fundus_rt("infer", picture, "--model", model, "--format", "csv", "--require-certificate").stdout.splitlines()
        assert dict(zip(lines[0].split(","), lines[1].split(","), strict=True))["model.certificate"] == "passed"
        table = fundus_rt("infer", picture, "--model", model)
        assert table.stdout.startswith("# certificate: passed\n") and "certificate" not in table.stdout.splitlines()[-1]

    def test_a_model_that_answers_otherwise(self, fundus_rt: Run, wrong: Path, examples: Path) -> None:
        done = fundus_rt("certify", wrong)
        assert done.returncode == 1 and "certificate  failed, in " in done.stdout
        assert "FAILED sex: the largest difference is" in done.stdout
        row = json.loads(fundus_rt("infer", examples / "idrid_005.jpg", "--model", wrong, "--format", "jsonl").stdout)
        assert row["model"]["certificate"] == "failed"
        refused = fundus_rt("infer", examples / "idrid_005.jpg", "--model", wrong, "--require-certificate")
        assert refused.returncode == 2 and refused.stdout == "" and "the certificate says that it failed" in refused.stderr

    def test_without_a_reference_it_says_how_to_get_one(self, fundus_rt: Run, tiny_sex: Path, examples: Path) -> None:
        done = fundus_rt("certify", tiny_sex)
        assert done.returncode == 2 and "fundus-rt parity CHECKPOINT tiny_sex.onnx --images" in done.stderr
        refused = fundus_rt("infer", examples / "idrid_005.jpg", "--model", tiny_sex, "--require-certificate")
        assert refused.returncode == 2 and "there is no parity.json beside the model" in refused.stderr

    def test_signing_and_asking_for_the_signature(
        self, fundus_rt: Run, model: Path, examples: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        pytest.importorskip("cryptography")
        private, public = tmp_path / "private.pem", tmp_path / "public.pem"
        try:
            subprocess.run(["openssl", "genpkey", "-algorithm", "ed25519", "-out", private], check=True, capture_output=True)
            subprocess.run(["openssl", "pkey", "-in", private, "-pubout", "-out", public], check=True, capture_output=True)
        except (FileNotFoundError, subprocess.CalledProcessError):
            pytest.skip("needs openssl with Ed25519")
        monkeypatch.setenv("FUNDUS_RT_CERTIFICATE_KEY", str(public))
        assert fundus_rt("certify", model).returncode == 0
        assert state(model) == ("none", "the certificate is not signed, and only those of the given key are accepted")
        done = fundus_rt("certify", model, "--key", private)
        assert done.returncode == 0 and "passed, signed, in" in done.stdout
        assert state(model) == ("passed", "")
        monkeypatch.delenv("FUNDUS_RT_CERTIFICATE_KEY")
        words = ("infer", examples / "idrid_005.jpg", "--model", model, "--require-certificate", "--certificate-key")
        assert fundus_rt(*words, public).returncode == 0
        assert "is not a public Ed25519 key" in fundus_rt(*words, private).stderr

    def test_it_needs_nothing_but_the_runtime(self, model: Path) -> None:
        heavy = ("torch", "tensorflow", "keras", "tf_keras", "onnx", "scipy", "timm", "sklearn", "matplotlib", "pandas", "rich")
        script = (
            "import sys\nfrom fundus_rt.runtime.cli import cli\n"
            f"cli(['certify', {str(model)!r}], standalone_mode=False)\n"
            f"print([name for name in {heavy!r} if name in sys.modules])"
        )
        done = subprocess.run([sys.executable, "-c", script], env=environment(), capture_output=True, text=True, check=True)
        assert "certificate  passed" in done.stdout and done.stdout.splitlines()[-1] == "[]"


class TestAnswers:
    def test_the_bundled_model_on_its_stored_answers(self, tmp_path: Path, cache: Path) -> None:
        """Three outputs, three tasks; and nothing is written into the installed package."""
        path = tmp_path / "stored.reference"
        write_reference(path, acquisition_reference(ACQUISITION))
        said: list[str] = []
        issued = certify("acquisition", path, say=said.append)
        assert issued.certificate.verdict == "passed" and set(issued.certificate.agreement) == {"eye", "gradability", "fundus"}
        assert issued.path.parent == cache / "certificates" and "installed package" in said[0]
        assert state(ACQUISITION)[0] == "passed"

    @pytest.mark.parametrize("what", ["model", "reference", "certificate"])
    def test_one_changed_byte_voids_it(self, model: Path, what: str) -> None:
        assert state(model)[0] == "none"
        certify(model)
        assert state(model) == ("passed", "")
        path = {"model": model, "reference": reference_path(model), "certificate": certificate_path(model)}[what]
        content = bytearray(path.read_bytes())
        place = content.rindex(b"fundus-rt tests") if what == "model" else len(content) // 2
        content[place] ^= 1
        path.write_bytes(content)
        found, reason = state(model)
        assert (
            found == "none"
            and {"model": "another file", "reference": "reference", "certificate": "does not count"}[what] in reason
        )

    def test_another_version_of_the_backend(self, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        import onnxruntime

        certify(model)
        before = onnxruntime.__version__
        monkeypatch.setattr(onnxruntime, "__version__", "99.1")
        assert state(model) == ("none", f"the certificate is of ONNX Runtime {before}, this is 99.1")

    def test_results_and_error_rows_say_it(self, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        certify(model)
        pipeline = Pipeline(model, check=False, require_certificate=True)
        result = pipeline(half_and_half(60, 180))
        assert (result.certificate, result.certificate_reason) == ("passed", "")
        assert result.to_dict()["model"]["certificate"] == "passed"

    def test_an_answer_from_another_backend_has_that_ones_certificate(self, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """The GPU is lost in between: what was certified there says nothing of the CPU, and the other way round."""
        certify(model)
        faulty = Faulty(model)
        guarded = GuardedSession(faulty, continue_with=lambda: OnnxRuntimeSession(model))
        monkeypatch.setattr("fundus_rt.runtime.pipeline.open_guarded", lambda *_: guarded)
        pipeline = Pipeline(model, check=False)
        before = pipeline(half_and_half(60, 180))
        assert before.certificate == "none" and "this is" in before.certificate_reason
        faulty.fault = lost
        assert pipeline(half_and_half(60, 180)).certificate == pipeline.certificate.verdict == "passed"

    def test_nothing_is_answered_by_an_uncertified_stand_in(self, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        certify(model)
        other = OnnxRuntimeSession(model)
        other.backend = dataclasses.replace(other.backend, version="0.9")
        faulty = Faulty(model)
        faulty.backend = OnnxRuntimeSession(model).backend
        guarded = GuardedSession(faulty, continue_with=lambda: other)
        monkeypatch.setattr("fundus_rt.runtime.pipeline.open_guarded", lambda *_: guarded)
        pipeline = Pipeline(model, check=False, require_certificate=True)
        pipeline(half_and_half(60, 180))
        faulty.fault = lost
        for _ in range(2):
            with pytest.raises(StoppedError, match=r"nothing more is answered: .* this is 0\.9"):
                pipeline(half_and_half(60, 180))


class TestReplay:
    def test_batches_of_every_size_and_every_photograph_once(self, model: Path, tiny_sex: Path) -> None:
        faulty = Faulty(model)
        session = GuardedSession(faulty)
        faulty.batches.clear()
        shown: list[tuple[int, int]] = []
        reference = sex_reference(tiny_sex)
        assert not replay(session, reference, lambda done, of: shown.append((done, of))).problems
        assert [len(batch) for batch in faulty.batches] == [1, 2, 3, 4, 1] and shown[-1] == (11, 11)
        assert np.array_equal(np.concatenate(faulty.batches), reference.frames)

    def test_the_answers_of_another_batch_fail(self, model: Path, tiny_sex: Path) -> None:
        """The previous answers again, with receipts that match: only the replay can tell."""
        held: list[Any] = []

        def previous(faulty: Faulty, batch: Any, answers: Any) -> Any:
            held.append(answers)
            same = [earlier for earlier in held if len(earlier["sex"]) == len(batch)]
            return {**answers, "sex": same[0]["sex"]}

        faulty = Faulty(model)
        session = GuardedSession(faulty)
        faulty.fault = previous
        problems = replay(session, sex_reference(tiny_sex)).problems
        assert any("of what tells the photographs apart" in problem for problem in problems)

    def test_a_device_that_is_lost_in_the_middle_certifies_nothing(self, model: Path, tiny_sex: Path) -> None:
        faulty = Faulty(model)
        session = GuardedSession(faulty, continue_with=lambda: OnnxRuntimeSession(model))

        def soon(faulty: Faulty, batch: Any, answers: Any) -> Any:
            return answers if len(batch) < 3 else lost(faulty, batch, answers)

        faulty.fault = soon
        with pytest.raises(CertificateError, match="failed during the replay and onnxruntime on cpu went on"):
            replay(session, sex_reference(tiny_sex))

    @pytest.mark.parametrize(
        ("change", "words"),
        [
            (lambda r: {"facts": {**r.facts, "card_sha256": "ee" * 32}}, "with another card"),
            (lambda r: {"frames": r.frames[:, :32]}, r"its frames are uint8 \[32, 64, 3\]"),
            (lambda r: {"frames": r.frames.astype(np.float32)}, "its frames are float32"),
            (lambda r: {"answers": {"age": r.answers["sex"]}}, "its outputs are"),
            (lambda r: {"answers": {"sex": np.repeat(r.answers["sex"], 2, axis=1)}}, "its outputs are"),
        ],
    )
    def test_a_reference_of_another_model_is_refused(self, model: Path, tiny_sex: Path, change: Any, words: str) -> None:
        reference = sex_reference(tiny_sex)
        write_reference(reference_path(model), dataclasses.replace(reference, **change(reference)))
        with pytest.raises(ModelFileError, match=words):
            certify(model)
        assert not certificate_path(model).exists()

    def test_too_few_photographs_certify_nothing(self, model: Path, tiny_sex: Path) -> None:
        """Copies of one photograph are one."""
        reference = sex_reference(tiny_sex)
        rows = np.array([0, 1, 2, 3, 4, 5, 6, 6, 6])
        few = dataclasses.replace(reference, frames=reference.frames[rows], answers={"sex": reference.answers["sex"][rows]})
        write_reference(reference_path(model), few)
        with pytest.raises(CertificateError, match="needs 8 different photographs at least, got 7"):
            certify(model)
        assert not certificate_path(model).exists()

    def test_another_reference_than_the_one_beside_the_model(self, model: Path, tmp_path: Path, tiny_sex: Path) -> None:
        other = tmp_path / "other.reference"
        other.write_bytes(reference_path(model).read_bytes())
        assert certify(model, other).certificate.verdict == "passed"
        reference = sex_reference(tiny_sex)
        write_reference(other, ReplayReference(reference.frames[:5], {"sex": reference.answers["sex"][:5]}, reference.facts))
        with pytest.raises(UsageError, match=r"another reference, tiny_sex\.reference"):
            certify(model, other)

    def test_a_file_that_is_replaced_before_it_is_hashed(
        self, model: Path, tiny_age: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """What a certificate and a result name are the bytes that were opened, whatever lies there since."""
        right, opened = model.read_bytes(), sha256_of_file(model)
        real = guarded_session.open_session

        def replaced_after_opening(*arguments: Any, **options: Any) -> Any:
            session = real(*arguments, **options)
            model.write_bytes(right + b"\x10\x09")
            return session

        monkeypatch.setattr(guarded_session, "open_session", replaced_after_opening)
        with pytest.raises(CertificateError, match="changed while it was being certified"):
            certify(model)
        model.write_bytes(right)
        pipeline = Pipeline(model, check=False)
        assert pipeline.identity.sha256 == opened != sha256_of_file(model)

    def test_a_certificate_that_goes_while_a_camera_runs(self, model: Path, wrong: Path, examples: Path) -> None:
        certify(wrong)
        failed = certificate_path(wrong).read_bytes()
        write_reference(reference_path(model), sex_reference(model))
        certificate_path(model).unlink()
        certify(model)
        pipeline = Pipeline(model, check=False)
        frame = decode((examples / "idrid_005.jpg").read_bytes()).frame
        assert pipeline(frame).certificate == "passed"
        certificate_path(model).write_bytes(failed)
        assert pipeline(frame).certificate == "failed"
        certificate_path(model).unlink()
        assert pipeline(frame).certificate == "none"

    def test_a_file_that_changes_meanwhile(self, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def meanwhile(done: int, of: int) -> None:
            model.write_bytes(model.read_bytes() + b"\x10\x09")

        with pytest.raises(CertificateError, match="changed while it was being certified"):
            certify(model, show=meanwhile)
        assert not certificate_path(model).exists()


class TestSelftest:
    def test_the_step_replays_what_lies_beside_the_model(self, model: Path) -> None:
        subject = Subject(model, "auto", "cpu", Pipeline(model, check=False))
        outcome = reference_replay(subject)
        assert outcome.status == PASSED and outcome.figures["photographs"] == 11
        assert json.dumps(outcome.figures) and outcome.figures["outputs"]["sex"]["passed"]

    def test_it_fails_where_the_answers_are_others(self, wrong: Path) -> None:
        outcome = reference_replay(Subject(wrong, "auto", "cpu", Pipeline(wrong, check=False)))
        assert outcome.status == FAILED and "beyond the tolerance" in outcome.reason

    def test_the_name_of_a_damaged_reference_stays_out_of_the_report(self, model: Path) -> None:
        named = model.rename(model.with_name("jane_doe.onnx"))
        reference_path(named).write_bytes(b"damaged")
        labels = model_labels([str(named)], ["acquisition"])
        step = Step("reference", partial(reference_replay, Subject(named, "auto", "cpu", Pipeline(named, check=False))))
        path = named.with_name("report.json")
        report = run_steps([step], {}, path, lambda name: None, names_in(labels, ["acquisition"]))
        assert report["steps"][0]["status"] == FAILED and "is not a whole reference" in report["steps"][0]["reason"]
        assert "jane" not in path.read_text()

    def test_it_is_skipped_without_a_reference(self, tiny_sex: Path) -> None:
        with pytest.raises(SkipStep, match="fundus-rt parity"):
            reference_replay(Subject(tiny_sex, "auto", "cpu", Pipeline(tiny_sex, check=False)))


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("processor : 0\nmodel name : Intel(R)  Xeon\nflags : fpu avx2 sse avx512f\n\nmodel name : Intel(R) Xeon\n",
         "Intel(R) Xeon, avx2 avx512f"),
        ("processor : 0\nFeatures : fp asimd asimddp\nCPU implementer : 0x41\nCPU part : 0xd42\n",
         "implementer 0x41 part 0xd42, asimd asimddp"),
    ],
)  # fmt: skip
def test_the_kind_of_a_processor(tmp_path: Path, text: str, kind: str) -> None:
    (tmp_path / "cpuinfo").write_text(text)
    assert cpu_kind(tmp_path / "cpuinfo") == f"{os.uname().machine}, {kind}"
    assert cpu_kind(tmp_path / "missing").startswith(f"{os.uname().machine}, ")
