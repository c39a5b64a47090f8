"""When a certificate counts and when it does not; and that none is lost, whoever writes at the same time."""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import os
from pathlib import Path
from typing import Any

import pytest

from fundus_rt.models import certificate_store, certificates
from fundus_rt.models.artifacts import sha256_of_bytes
from fundus_rt.models.certificate_store import AskedAnew, certificate_path, certificate_state, keep_certificate
from fundus_rt.models.certificates import Binding, Certificate, card_sha256, certificates_from_file, file_from_certificates
from fundus_rt.models.errors import ModelFileError, UsageError
from fundus_rt.models.registry import BUNDLED_FOLDER, load_card
from fundus_rt.models.signatures import PublicKey, Signature

HERE = Binding(
    file_sha256="01" * 32,
    card_sha256="02" * 32,
    checkpoint_sha256="03" * 32,
    backend="onnxruntime",
    provider="CPUExecutionProvider",
    version="1.31.1",
    device="x86_64, Intel(R) Xeon(R) Processor, avx2 avx512f",
    precision="fp32",
)
CERTIFICATE = Certificate(
    **dataclasses.asdict(HERE),
    onnx_sha256="01" * 32,
    reference_sha256="04" * 32,
    agreement={"sex": {"largest": 0.000125, "decisions_changed": 0}},
    verdict="passed",
    problems=(),
    date="2026-11-22T18:00:00Z",
    fundus_rt="0.1.0",
)
FAILED = dataclasses.replace(
    CERTIFICATE, verdict="failed", problems=("sex: 2 of 11 decisions changed",), date="2026-11-23T00:00:00Z"
)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FUNDUS_RT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    (tmp_path / "models").mkdir()
    path = tmp_path / "models" / "joir-sex.onnx"
    path.write_bytes(b"a network")
    return path


def kept(model: Path, *found: Certificate) -> Path:
    for certificate in found:
        path = keep_certificate(model, certificate, lambda said: None)
    return path


def verdict(model: Path, here: Binding = HERE) -> tuple[str, str]:
    state = certificate_state(model, model, here)
    return state.verdict, state.reason


class TestWhatCounts:
    def test_one_for_exactly_this(self, model: Path) -> None:
        assert kept(model, CERTIFICATE) == model.with_name("joir-sex.parity.json")
        state = certificate_state(model, model, HERE)
        assert (state.verdict, state.reason, state.certificate) == ("passed", "", CERTIFICATE)
        assert str(state) == "certificate: passed"

    def test_none_says_how_to_get_one(self, model: Path) -> None:
        assert verdict(model) == ("none", "there is no parity.json beside the model; `fundus-rt certify` writes it")

    def test_a_failed_one_says_why(self, model: Path) -> None:
        kept(model, FAILED)
        assert verdict(model) == ("failed", "the certificate says that it failed: sex: 2 of 11 decisions changed")

    @pytest.mark.parametrize(
        ("field", "value", "words"),
        [
            ("version", "1.30.0", "the certificate is of ONNX Runtime 1.30.0, this is 1.31.1"),
            ("backend", "tensorrt", "the certificate is of the backend tensorrt, this is onnxruntime"),
            ("provider", "CUDAExecutionProvider", "of the provider CUDAExecutionProvider, this is CPUExecutionProvider"),
            ("device", "aarch64, Cortex", "of another kind of device, aarch64, Cortex; this is x86_64, Intel"),
            ("precision", "int8", "of the precision int8, this is fp32"),
            ("card_sha256", "aa" * 32, "the card was changed since the certificate was issued"),
            ("checkpoint_sha256", "aa" * 32, "of another checkpoint"),
            ("file_sha256", "aa" * 32, "of another file: this one's SHA-256 is not in it"),
        ],
    )
    def test_one_for_something_else_names_the_field(self, model: Path, field: str, value: str, words: str) -> None:
        kept(model, dataclasses.replace(CERTIFICATE, **{field: value}))
        found, reason = verdict(model)
        assert found == "none" and words in reason

    def test_every_field_of_what_computes_is_compared(self) -> None:
        for field in dataclasses.fields(Binding):
            other = dataclasses.replace(CERTIFICATE, **{field.name: "ff" * 32})
            assert certificates.state_of([other], HERE).verdict == "none", field.name
        assert certificates.state_of([CERTIFICATE], HERE).verdict == "passed"

    def test_a_card_without_a_checkpoint_is_not_held_against_it(self, model: Path) -> None:
        kept(model, CERTIFICATE)
        assert verdict(model, dataclasses.replace(HERE, checkpoint_sha256=""))[0] == "passed"

    def test_the_reference_beside_the_model_counts_where_it_is_there(self, model: Path) -> None:
        reference = model.with_suffix(".reference")
        reference.write_bytes(b"photographs and answers")
        kept(model, dataclasses.replace(CERTIFICATE, reference_sha256=sha256_of_bytes(b"photographs and answers")))
        assert verdict(model)[0] == "passed"
        reference.write_bytes(b"photographs and answerz")
        assert verdict(model) == ("none", "the reference beside the model is not the one that the certificate was issued with")
        reference.unlink()
        assert verdict(model)[0] == "passed"

    def test_yesterdays_engine_is_another_file(self, tmp_path: Path) -> None:
        """A rebuilt engine has other bytes under the same name."""
        engine = tmp_path / "joir-sex.engine"
        engine.write_bytes(b"of today")
        yesterday = dataclasses.replace(CERTIFICATE, file_sha256=sha256_of_bytes(b"of yesterday"), backend="tensorrt")
        kept(engine, yesterday)
        here = dataclasses.replace(HERE, file_sha256=sha256_of_bytes(b"of today"), backend="tensorrt")
        assert certificate_state(engine, engine, here).verdict == "none"
        today = dataclasses.replace(yesterday, file_sha256=here.file_sha256)
        kept(engine, today)
        assert certificate_state(engine, engine, here).verdict == "passed"
        assert certificate_path(engine).name == "joir-sex.parity.json"

    @pytest.mark.parametrize("date", ["2020-01-01T00:00:00Z", "2099-01-01T00:00:00Z"])
    def test_of_two_that_count_the_failed_one_whatever_the_clock_said(self, model: Path, cache: Path, date: str) -> None:
        kept(model, CERTIFICATE)
        (cache / "certificates").mkdir(parents=True, mode=0o700)
        cache.chmod(0o700)
        elsewhere = cache / "certificates" / f"{HERE.file_sha256}.parity.json"
        failed = dataclasses.replace(
            FAILED, date=date, reference_sha256="ab" * 32, agreement={"sex": {"photographs": 11}}, failed_on=("cd" * 32,)
        )
        elsewhere.write_text(file_from_certificates([failed]))
        assert verdict(model)[0] == "failed"
        (cache / "certificates").chmod(0o777)  # others could have put it there
        assert verdict(model)[0] == "passed"
        (cache / "certificates").chmod(0o700)
        other = dataclasses.replace(failed, version="1.0")
        elsewhere.write_text(file_from_certificates([failed, other]))
        kept(model, dataclasses.replace(FAILED, date=date))  # with the reference of the one that passed
        kept(model, CERTIFICATE)  # with another reference than that of the first failure
        assert verdict(model)[0] == "failed"
        for count, digests in ((10, {"cd" * 32}), (40, {"ef" * 32})):  # on fewer photographs, and on others, than had failed
            keep_certificate(model, CERTIFICATE, lambda said: None, AskedAnew(count, frozenset(digests)))
            assert verdict(model)[0] == "failed"
        keep_certificate(model, CERTIFICATE, lambda said: None, AskedAnew(11, frozenset({"cd" * 32, "ef" * 32})))
        assert verdict(model)[0] == "passed"
        assert certificates_from_file(elsewhere) == ([other], [])

    def test_a_signed_one_is_not_replaced_by_an_unsigned_one(self, model: Path) -> None:
        pytest.importorskip("cryptography")
        signature = Signature("ed25519", "00", "00")
        kept(model, dataclasses.replace(CERTIFICATE, signature=signature), CERTIFICATE)
        found = certificates_from_file(certificate_path(model))[0]
        assert [one.signature for one in found] == [signature, None]
        kept(model, dataclasses.replace(CERTIFICATE, signature=signature, date="2026-11-24T00:00:00Z"))
        assert len(certificates_from_file(certificate_path(model))[0]) == 1

    def test_of_too_many_those_that_passed_go_first(self, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(certificate_store, "MOST_CERTIFICATES", 2)
        others = [dataclasses.replace(CERTIFICATE, version=version) for version in ("1", "2")]
        kept(model, FAILED, *others)
        assert certificates_from_file(certificate_path(model))[0] == [FAILED, others[1]]

    def test_an_unsigned_failure_counts_where_a_signature_is_asked_for(self) -> None:
        key = PublicKey("ff" * 32)
        assert certificates.state_of([FAILED], HERE, key=key).verdict == "failed"
        assert certificates.state_of([CERTIFICATE], HERE, key=key).verdict == "none"

    def test_a_failure_counts_with_any_reference(self, model: Path) -> None:
        model.with_suffix(".reference").write_bytes(b"another one since")
        kept(model, FAILED)
        assert verdict(model)[0] == "failed"


class TestChangedBytes:
    def test_every_single_changed_byte_voids_it(self, model: Path) -> None:
        path = kept(model, dataclasses.replace(CERTIFICATE, signature=Signature("0a" * 32, "0b" * 64)))
        content = path.read_bytes()
        for place in range(len(content)):
            changed = bytearray(content)
            changed[place] ^= (1, 0x20)[place % 2]
            path.write_bytes(changed)
            try:
                found = certificates_from_file(path)[0]
            except ModelFileError:
                continue
            assert certificates.state_of(found, HERE).verdict == "none", f"byte {place} ({content[place : place + 1]!r})"
        path.write_bytes(content)
        assert verdict(model)[0] == "passed"

    def test_a_space_more_voids_it_too(self, model: Path) -> None:
        path = kept(model, CERTIFICATE)
        text = path.read_text()
        for changed in (text + "\n", text.replace('": ', '":  ', 1), text.rstrip("\n")):
            path.write_text(changed)
            assert verdict(model) == (
                "none", "joir-sex.parity.json does not count: it was changed since it was written"
            )  # fmt: skip

    def test_one_that_is_cut_off_anywhere(self, model: Path) -> None:
        path = kept(model, CERTIFICATE)
        content = path.read_bytes()
        for length in range(0, len(content), 7):
            path.write_bytes(content[:length])
            assert verdict(model)[0] == "none"
            with pytest.raises(ModelFileError, match=r"joir-sex\.parity\.json does not count"):
                certificates_from_file(path)

    def test_a_better_verdict_by_hand(self, model: Path) -> None:
        path = kept(model, FAILED)
        values = json.loads(path.read_text())
        values["certificates"][0]["verdict"] = "passed"
        path.write_text(json.dumps(values, sort_keys=True, indent=1) + "\n")
        found, reason = verdict(model)
        assert found == "none" and "its SHA-256 is not that of its content" in reason

    def test_a_verdict_that_its_own_problems_contradict(self, model: Path) -> None:
        kept(model, dataclasses.replace(FAILED, verdict="passed"))
        assert verdict(model)[0] == "none"

    def test_one_damaged_certificate_leaves_the_others(self, model: Path) -> None:
        other = dataclasses.replace(CERTIFICATE, version="1.30.0")
        path = kept(model, CERTIFICATE, other)
        values = json.loads(path.read_text())
        values["certificates"][1]["device"] = "another"
        path.write_text(json.dumps(values, sort_keys=True, indent=1) + "\n")
        assert verdict(model)[0] == "passed"
        assert verdict(model, dataclasses.replace(HERE, version="1.30.0"))[0] == "none"

    @pytest.mark.parametrize("text", ["", "null", "[]", "7", '"x"', "[" * 100_000, "\xff", '{"format": 1}', '{"format": NaN}'])
    def test_what_is_no_certificate_at_all(self, model: Path, text: str) -> None:
        certificate_path(model).write_bytes(text.encode("latin-1"))
        assert verdict(model)[0] == "none"

    @pytest.mark.parametrize("field", ["device", "provider", "problems"])
    def test_one_that_would_write_to_a_terminal(self, model: Path, field: str) -> None:
        bad: Any = ("x\x1b[2J",) if field == "problems" else "x\x1b[2J"
        verdict_of_it = "failed" if field == "problems" else "passed"
        kept(model, dataclasses.replace(CERTIFICATE, verdict=verdict_of_it, **{field: bad}))
        found, reason = verdict(model)
        assert found == "none" and "\x1b" not in reason

    def test_one_of_a_later_version(self, model: Path) -> None:
        certificate_path(model).write_text('{"certificates": "of another form", "format": 2}')
        assert verdict(model) == (
            "none", "joir-sex.parity.json is of a later version of fundus-rt (format 2); update this one"
        )  # fmt: skip
        with pytest.raises(UsageError, match=r"later version .* nothing of it was changed"):
            kept(model, CERTIFICATE)
        assert "of another form" in certificate_path(model).read_text()


class TestKeeping:
    def test_one_for_each_way_to_compute_and_the_newer_in_place_of_the_older(self, model: Path) -> None:
        other = dataclasses.replace(CERTIFICATE, version="1.30.0")
        path = kept(model, CERTIFICATE, other, FAILED)
        assert certificates_from_file(path) == ([other, FAILED], [])

    def test_a_damaged_file_is_replaced_and_that_is_said(self, model: Path) -> None:
        path = kept(model, CERTIFICATE)
        path.write_bytes(path.read_bytes()[:200])
        said: list[str] = []
        keep_certificate(model, CERTIFICATE, said.append)
        assert len(said) == 1 and said[0].endswith("it is replaced")
        assert verdict(model)[0] == "passed"

    def test_the_oldest_go_when_there_are_too_many(self, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(certificate_store, "MOST_CERTIFICATES", 3)
        found = [dataclasses.replace(CERTIFICATE, version=f"1.{number}") for number in range(5)]
        assert certificates_from_file(kept(model, *found))[0] == found[2:]

    @pytest.mark.parametrize("how", ["rights", "write"])
    def test_a_folder_that_cannot_be_written(self, model: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
        if how == "rights":
            real = os.access
            monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != model.parent and real(path, mode))
        else:
            real_add = certificate_store._add

            def add(path: Path, *rest: Any) -> None:
                if path.parent == model.parent:
                    raise PermissionError(13, "Permission denied")
                real_add(path, *rest)

            monkeypatch.setattr(certificate_store, "_add", add)
        said: list[str] = []
        path = keep_certificate(model, CERTIFICATE, said.append)
        assert path == cache / "certificates" / f"{HERE.file_sha256}.parity.json"
        assert len(said) == 1 and "cannot be written" in said[0] and str(path.parent) in said[0]
        assert not certificate_path(model).exists()
        assert verdict(model)[0] == "passed"

    def test_nothing_is_written_into_the_installed_package(self, cache: Path) -> None:
        said: list[str] = []
        path = keep_certificate(BUNDLED_FOLDER / "acquisition.onnx", CERTIFICATE, said.append)
        assert path.parent == cache / "certificates" and "part of the installed package" in said[0]
        assert not (BUNDLED_FOLDER / "acquisition.parity.json").exists()

    def test_one_that_is_killed_in_the_middle_leaves_the_old_file(self, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        path = kept(model, CERTIFICATE)
        (path.parent / f".{path.name}.abc123.json").write_text("half")  # of a process that had no time to tidy up

        def killed(*_: object) -> None:
            raise KeyboardInterrupt

        with monkeypatch.context() as cut, pytest.raises(KeyboardInterrupt):
            cut.setattr(os, "replace", killed)
            kept(model, FAILED)
        assert verdict(model)[0] == "passed"
        kept(model, dataclasses.replace(CERTIFICATE, version="1.30.0"))
        names = {found.name for found in path.parent.iterdir()}
        assert names <= {model.name, path.name, f".{path.name}.lock"}
        assert len(certificates_from_file(path)[0]) == 2

    def test_processes_that_write_at_once_lose_nothing(self, model: Path) -> None:
        start = multiprocessing.get_context("spawn")
        workers = [start.Process(target=keep_several, args=(str(model), first)) for first in (0, 100)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join(120)
        assert [worker.exitcode for worker in workers] == [0, 0]
        found, problems = certificates_from_file(certificate_path(model))
        assert {one.version for one in found} == {f"1.{number}" for first in (0, 100) for number in range(first, first + 8)}
        assert problems == []


def keep_several(model: str, first: int) -> None:
    """What one of two processes writes."""
    for number in range(first, first + 8):
        keep_certificate(Path(model), dataclasses.replace(CERTIFICATE, version=f"1.{number}"), lambda said: None)


class TestCards:
    def test_what_decides_an_answer_changes_the_hash(self) -> None:
        card = load_card("acquisition")
        before = card_sha256(card)
        (first, *rest) = card.outputs
        changed = [
            dataclasses.replace(card, outputs=(dataclasses.replace(first, threshold=0.123), *rest)),
            dataclasses.replace(card, outputs=(dataclasses.replace(first, labels=tuple(reversed(first.labels))), *rest)),
            dataclasses.replace(card, preprocessing=dataclasses.replace(card.preprocessing, interpolation="pillow-lanczos")),
            dataclasses.replace(card, laterality="mirror-left"),
        ]
        assert len({before, *map(card_sha256, changed)}) == 5

    def test_where_it_came_from_does_not(self) -> None:
        card = load_card("acquisition")
        other = dataclasses.replace(card, provenance={"precision": "fp16"}, canary={"drawing": 1})
        assert card_sha256(other) == card_sha256(card)
        whole = dataclasses.replace(card, preprocessing=dataclasses.replace(card.preprocessing, scale=1, mean=(0, 0, 0)))
        same = dataclasses.replace(card, preprocessing=dataclasses.replace(card.preprocessing, scale=1.0, mean=(0.0, 0.0, 0.0)))
        assert card_sha256(whole) == card_sha256(same)
