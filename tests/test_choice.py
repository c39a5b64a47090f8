"""The fastest of the certified ways: what may be chosen, what is remembered, and what a user sees of it."""

from __future__ import annotations

import dataclasses
import json
import re
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnx")
pytest.importorskip("openvino")

from fundus_rt.models.artifacts import sha256_of_file
from fundus_rt.models.card import CARD_KEY, card_from_json
from fundus_rt.models.certificate_store import certificate_path
from fundus_rt.models.errors import BackendUnavailableError
from fundus_rt.models.references import reference_path, write_reference
from fundus_rt.runtime import choice
from fundus_rt.runtime.certify import certify
from fundus_rt.runtime.choice import Measured, chosen_way, fastest
from fundus_rt.runtime.commands import infer
from fundus_rt.runtime.openvino_session import OpenVinoSession
from fundus_rt.runtime.ways import Way, backends_here, certified_ways, files_of_model, thread_counts
from tests.conftest import Run
from tests.references import CHECKPOINT, sex_reference


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FUNDUS_RT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(choice, "SHORT_S", 0.0)
    return tmp_path / "cache"


def write_copy(
    source: Path,
    target: Path,
    checkpoint: str = CHECKPOINT,
    precision: str = "fp32",
    threshold: float = 0.5,
    budget: float | None = None,
) -> Path:
    """A copy whose card says what it is of; the graph is the same."""
    import onnx

    model = onnx.load(str(source))
    (entry,) = (entry for entry in model.metadata_props if entry.key == CARD_KEY)
    card = card_from_json(entry.value)
    stated = {"checkpoint": {"sha256": checkpoint}, "precision": precision}
    output = dataclasses.replace(card.outputs[0], threshold=threshold, budget=budget)
    entry.value = dataclasses.replace(card, provenance=stated, outputs=(output,)).to_json()
    onnx.save(model, str(target))
    return target


@pytest.fixture
def model(tiny_sex: Path, tmp_path: Path) -> Path:
    """A network with its reference beside it, certified by nothing yet."""
    (tmp_path / "models").mkdir()
    path = write_copy(tiny_sex, tmp_path / "models" / "sex.onnx")
    write_reference(reference_path(path), sex_reference(path))
    return path


def certified(path: Path, *backends: str) -> Path:
    """The file with certificates of these backends; the reference is that of ``sex.onnx``."""
    reference = reference_path(path)
    for backend in backends:
        stated = None if reference.is_file() else path.with_name("sex.reference")
        assert certify(path, stated, backend).certificate.verdict == "passed"
    return path


def slow(monkeypatch: pytest.MonkeyPatch, is_slow: Any) -> list[str]:
    """Make ways slow by what opens them; the list gets the backend of every session that is opened."""
    real, opened = choice.open_guarded, []

    def slowed(file: Path, backend: str, *rest: Any) -> Any:
        session = real(file, backend, *rest)
        opened.append(backend)
        if is_slow(file, backend):
            run = session.run
            monkeypatch.setattr(session, "run", lambda batch: (time.sleep(0.03), run(batch))[1])
        return session

    monkeypatch.setattr(choice, "open_guarded", slowed)
    return opened


class TestWays:
    def test_nothing_certified_is_the_file_itself_on_the_default(self, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        opened = slow(monkeypatch, lambda file, backend: False)
        found = chosen_way(model, 1)
        assert (found.model, found.backend, found.threads, opened) == (model, "onnxruntime", 1, [])

    def test_the_only_certified_way_needs_no_measurement(self, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        opened = slow(monkeypatch, lambda file, backend: False)
        found = chosen_way(certified(model, "openvino"), 1)
        assert (found.backend, found.measured, opened) == ("openvino", (), [])

    def test_the_same_model_in_lower_precision_beside_it(self, model: Path, tiny_sex: Path) -> None:
        folder = model.parent
        right = write_copy(tiny_sex, folder / "sex.int8.onnx", precision="int8")
        write_copy(tiny_sex, folder / "sex.other.onnx", checkpoint="d1" * 32)
        write_copy(tiny_sex, folder / "sex.threshold.onnx", threshold=0.4)
        (folder / "sex.broken.onnx").write_bytes(b"\x08")
        write_copy(tiny_sex, folder / "sexes.int8.onnx")
        said: list[str] = []
        files = files_of_model(model, said.append)
        assert [(file.path, file.sha256, file.precision) for file in files] == [
            (model, sha256_of_file(model), "fp32"), (right, sha256_of_file(right), "int8"),
        ]  # fmt: skip
        assert ["broken" in said[0], "same checkpoint" in said[1], "says otherwise" in said[2], len(said)] == [
            True,
            True,
            True,
            3,
        ]

    def test_names_with_a_pattern_in_them(self, tiny_sex: Path, tmp_path: Path) -> None:
        path = write_copy(tiny_sex, tmp_path / "sex[12].onnx")
        write_copy(tiny_sex, tmp_path / "sex1.int8.onnx")
        assert [file.path for file in files_of_model(path)] == [path]

    def test_a_way_that_failed_or_is_void_is_none(self, model: Path, tiny_sex: Path) -> None:
        lower = certified(write_copy(tiny_sex, model.with_name("sex.int8.onnx"), precision="int8"), "onnxruntime", "openvino")
        certified(model, "onnxruntime", "openvino")
        assert len(certified_ways(files_of_model(model), 1, None)) == 4
        lower.write_bytes(lower.read_bytes() + b"\x10\x09")
        assert {way.file.path for way in certified_ways(files_of_model(model), 1, None)} == {model}
        reference = sex_reference(model)
        answers = {"sex": reference.answers["sex"][::-1]}
        write_reference(reference_path(model), dataclasses.replace(reference, answers=answers))
        assert certify(model, backend="openvino").certificate.verdict == "failed"
        assert certified_ways(files_of_model(model), 1, None) == []

    @pytest.mark.parametrize(
        ("precision", "budget", "verdict"),
        [("int8", 0.02, "passed"), ("mixed", 0.02, "passed"), ("fp32", 0.02, "failed"), ("int8", None, "failed"),
         ("int8", 0.002, "failed")],
    )  # fmt: skip
    def test_lower_precision_has_the_budget_that_the_card_states(
        self, tiny_sex: Path, tmp_path: Path, precision: str, budget: float | None, verdict: str
    ) -> None:
        """The original's answers are 0.02 away before the sigmoid, which is 0.005 of a probability at most."""
        path = write_copy(tiny_sex, tmp_path / "sex.onnx", precision=precision, budget=budget)
        reference = sex_reference(path)
        write_reference(
            reference_path(path), dataclasses.replace(reference, answers={"sex": reference.answers["sex"] + np.float32(0.02)})
        )
        found = certify(path).certificate
        assert found.verdict == verdict and found.agreement["sex"]["tolerance"] == (
            budget if budget and precision != "fp32" else 0.001
        )
        assert 0.002 < found.agreement["sex"]["largest"] < 0.005

    def test_half_of_the_threads_is_tried_where_that_leaves_two(self) -> None:
        assert [thread_counts(most) for most in (1, 2, 3, 4, 7, 12)] == [[1], [2], [3], [4, 2], [7, 3], [12, 6]]


class TestChoice:
    def test_the_fastest_is_taken_and_remembered(self, model: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        certified(model, "onnxruntime", "openvino")
        opened = slow(monkeypatch, lambda file, backend: backend == "onnxruntime")
        said: list[str] = []
        found = chosen_way(model, 1, say=said.append)
        assert found.backend == "openvino" and opened == ["onnxruntime", "openvino", "openvino", "onnxruntime"]
        assert "measuring" in said[0]
        assert (
            found.reason.startswith("sex.onnx on OpenVINO, fp32, 1 thread: ")
            and "sex.onnx on ONNX Runtime, fp32, 1 thread takes" in found.reason
        )
        assert chosen_way(model, 1) == found and len(opened) == 4
        (kept,) = (cache / "choices").iterdir()
        assert "sex" not in kept.read_text() and str(model.parent) not in kept.read_text()
        damaged = [kept.read_text()[:-40], re.sub(r'"seconds": \[[^]]*\]', '"seconds": [1e-9, 1e999]', kept.read_text())]
        for count, content in enumerate(damaged, 1):
            kept.write_text(content)
            assert chosen_way(model, 1).backend == "openvino" and len(opened) == 4 + 4 * count

    def test_a_way_that_cannot_be_opened_is_left_out(self, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        certified(model, "onnxruntime", "openvino")
        honest = choice.open_guarded

        def without_openvino(file: Path, backend: str, *arguments: Any) -> Any:
            if backend == "openvino":
                raise BackendUnavailableError("OpenVINO cannot be imported")
            return honest(file, backend, *arguments)

        monkeypatch.setattr(choice, "open_guarded", without_openvino)
        said: list[str] = []
        found = chosen_way(model, 1, say=said.append)
        assert found.backend == "onnxruntime" and "no other certified way can be opened" in found.reason
        assert said[-1] == "sex.onnx on OpenVINO, fp32, 1 thread is left out: OpenVINO cannot be imported"

    def test_one_that_was_chosen_and_cannot_be_opened_now_gives_way_to_the_next(
        self, model: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        certified(model, "onnxruntime", "openvino")
        with monkeypatch.context() as measured:
            slow(measured, lambda file, backend: backend == "onnxruntime")
            assert chosen_way(model, 1).backend == "openvino"

        def gone(*arguments: Any) -> None:
            raise BackendUnavailableError("OpenVINO cannot be imported")

        monkeypatch.setattr(OpenVinoSession, "__init__", gone)
        found, threads = infer._opened_fastest(str(model), 1, False, {"require_certificate": True, "certificate_key": None})
        assert found.backend.name == "onnxruntime" and threads == 1
        found.close()

    @pytest.mark.parametrize("what", ["threads", "cores", "version", "file", "device"])
    def test_what_it_depends_on(self, model: Path, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
        certified(model, "onnxruntime", "openvino")
        opened = slow(monkeypatch, lambda file, backend: False)
        chosen_way(model, 1)
        if what == "file":
            model.write_bytes(model.read_bytes() + b"\x10\x09")
            certified(model, "onnxruntime", "openvino")
        elif what == "version":
            monkeypatch.setattr(choice, "package_version", lambda: "99")
        elif what == "device":
            monkeypatch.setattr(choice, "device_kind", lambda device: "another")
        elif what == "cores":
            monkeypatch.setattr(choice, "usable_cores", lambda: 3)
        chosen_way(model, 2 if what == "threads" else 1)
        assert len(opened) == 8

    def test_where_nothing_can_be_remembered_it_is_said(self, model: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        certified(model, "onnxruntime", "openvino")
        monkeypatch.setattr(choice, "cache_folders", lambda kind: [])
        said: list[str] = []
        assert chosen_way(model, 1, say=said.append).measured and "cannot be remembered" in said[-1]

    def test_a_little_faster_is_not_enough(self, model: Path) -> None:
        (file,) = files_of_model(model)
        first, second = (Way(file, backend, 1) for backend in backends_here())
        assert fastest([Measured(first, 1.04), Measured(second, 1.0)]).backend == "onnxruntime"
        assert fastest([Measured(first, 1.06), Measured(second, 1.0)]).backend == "openvino"


class TestCommands:
    def test_tune_certifies_measures_and_infer_goes_by_it(
        self, fundus_rt: Run, model: Path, tiny_sex: Path, examples: Path
    ) -> None:
        lower = write_copy(tiny_sex, model.with_name("sex.int8.onnx"), precision="int8")
        done = fundus_rt("tune", model, "--seconds", 0, "--blocks", 2)
        assert done.returncode == 0, done.stderr
        assert done.stderr.count("certificate passed") == 4 and done.stdout.count("one photograph at a time: ") == 1
        assert all(f"{name}, {p}" in done.stdout for name in ("ONNX Runtime", "OpenVINO") for p in ("fp32", "int8"))
        again = fundus_rt("tune", model, "--seconds", 0, "--blocks", 1)
        assert "certificate passed" not in again.stderr and again.returncode == 0

        answered = fundus_rt("infer", examples / "idrid_005.jpg", "--model", model, "--format", "jsonl", "--require-certificate")
        assert answered.returncode == 0, answered.stderr
        assert "measuring" not in answered.stderr and answered.stderr.startswith("auto: ")
        row = json.loads(answered.stdout)
        file = lower if ", int8, " in answered.stderr.split(":")[1] else model
        assert row["model"]["sha256"] == sha256_of_file(file) and row["model"]["certificate"] == "passed"
        assert {"onnxruntime": "ONNX Runtime", "openvino": "OpenVINO"}[row["backend"]["name"]] in answered.stderr.split(",")[0]

    def test_tune_without_a_reference_says_how_to_get_one(self, fundus_rt: Run, model: Path) -> None:
        reference_path(model).unlink()
        done = fundus_rt("tune", model)
        assert done.returncode == 1 and "fundus-rt parity CHECKPOINT sex.onnx --images" in done.stderr
        assert "no way to compute it is certified" in done.stderr and not certificate_path(model).exists()
