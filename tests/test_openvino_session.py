"""OpenVINO as a backend: the same answers as were stored, whoever asks and however many at once."""

from __future__ import annotations

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("openvino")

from fundus_rt.models.certificate_store import certificate_path
from fundus_rt.models.errors import BackendUnavailableError, ModelFileError
from fundus_rt.models.references import reference_path, write_reference
from fundus_rt.runtime import openvino_session
from fundus_rt.runtime.openvino_session import OpenVinoSession
from fundus_rt.runtime.session import open_session
from tests.conftest import REPOSITORY, Run, environment
from tests.references import acquisition_reference, example_tensors, sex_reference, with_reference

ACQUISITION = REPOSITORY / "models" / "bundled" / "acquisition.onnx"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FUNDUS_RT_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize("threads", [1, 2])
def test_the_bundled_model_gives_its_stored_answers(threads: int) -> None:
    """Stored when the package was made, by the framework that the model was trained in."""
    session = OpenVinoSession(ACQUISITION, threads=threads)
    reference = acquisition_reference(ACQUISITION)
    for size in (1, 3, 11):
        answers = session.run(np.array(reference.frames[:size]))
        for output in session.card.outputs:
            np.testing.assert_allclose(answers[output.name], reference.answers[output.name][:size], atol=2e-4, rtol=1e-4)
    assert session.backend.name == "openvino" and session.backend.version[:4].isdigit() and session.backend.provider == "CPU"
    session.close()
    with pytest.raises(ValueError, match="closed"):
        session.run(np.array(reference.frames[:1]))


def test_every_thread_gets_the_answer_to_its_own_picture(tiny_sex: Path) -> None:
    session = open_session(tiny_sex, "openvino", threads=1)
    frames = example_tensors(session.card.preprocessing)
    expected = sex_reference(tiny_sex).answers["sex"]
    rows = [index % len(frames) for index in range(300)]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda index: session.run(np.array(frames[index : index + 1]))["sex"][0], rows))
    np.testing.assert_allclose(found, expected[rows], atol=1e-5)


def test_an_answer_is_the_callers_and_stays(tiny_sex: Path) -> None:
    session = OpenVinoSession(tiny_sex)
    frames = example_tensors(session.card.preprocessing)
    first = session.run(np.array(frames[:1]))
    before = {name: rows.copy() for name, rows in first.items()}
    session.run(np.array(frames[1:2]))
    assert all(np.array_equal(first[name], before[name]) for name in before)
    first["sex"][:] = 0.0
    assert not np.array_equal(session.run(np.array(frames[:1]))["sex"], first["sex"])


def test_infer_and_certify_say_what_computed(fundus_rt: Run, tiny_sex: Path, examples: Path, tmp_path: Path) -> None:
    model = with_reference(tiny_sex, tmp_path)
    picture = examples / "idrid_005.jpg"
    done = fundus_rt("certify", model, "--backend", "openvino")
    assert done.returncode == 0, done.stderr
    assert "computed by  OpenVINO" in done.stdout and "sex: 0 of 11 decisions changed" in done.stdout
    rows = {}
    for backend in ("openvino", "onnxruntime"):
        answered = fundus_rt("infer", picture, "--model", model, "--backend", backend, "--format", "jsonl")
        rows[backend] = json.loads(answered.stdout)
    assert rows["openvino"]["backend"]["name"] == "openvino" and rows["openvino"]["model"]["certificate"] == "passed"
    assert rows["onnxruntime"]["model"]["certificate"] == "none"
    ours, theirs = (rows[name]["outputs"]["sex"]["probabilities"]["male"] for name in ("openvino", "onnxruntime"))
    assert ours == pytest.approx(theirs, abs=1e-6)
    (certificate,) = json.loads(certificate_path(model).read_text())["certificates"]
    assert (certificate["backend"], certificate["provider"]) == ("openvino", "CPU")


def test_half_precision_is_not_certified(tiny_sex: Path, tmp_path: Path, fundus_rt: Run) -> None:
    onnx = pytest.importorskip("onnx")
    model = onnx.load(str(tiny_sex))
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.ones(3, np.float16), "half"))
    path = tmp_path / "half.onnx"
    onnx.save(model, str(path))
    write_reference(reference_path(path), sex_reference(tiny_sex))
    done = fundus_rt("certify", path, "--backend", "openvino")
    assert done.returncode == 2 and "OpenVINO computes half precision on a CPU in float32" in done.stderr


def test_what_it_cannot_do_is_said(tiny_sex: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BackendUnavailableError, match="got device 'cuda:0', expected cpu"):
        OpenVinoSession(tiny_sex, "cuda:0")
    with pytest.raises(BackendUnavailableError, match="the provider 'cuda' is ONNX Runtime's"):
        open_session(tiny_sex, "openvino", provider="cuda")
    onnx = pytest.importorskip("onnx")
    broken = tmp_path / "broken.onnx"
    model = onnx.load(str(tiny_sex))
    model.graph.node[0].op_type = "NoSuchOperator"
    broken.write_bytes(model.SerializeToString())
    with pytest.raises(ModelFileError, match=r"broken\.onnx cannot be opened by OpenVINO") as caught:
        OpenVinoSession(broken)
    assert str(tmp_path) not in str(caught.value)
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(BackendUnavailableError, match=r"OpenVINO is not installed.*fundus-rt\[openvino\]"):
        OpenVinoSession(tiny_sex)


def test_a_file_without_a_card_is_refused(tiny_sex: Path, tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    model = onnx.load(str(tiny_sex))
    del model.metadata_props[:]
    path = tmp_path / "bare.onnx"
    onnx.save(model, str(path))
    with pytest.raises(ModelFileError, match=r"bare\.onnx carries no model card"):
        OpenVinoSession(path)


def test_a_precision_that_was_not_asked_for_is_refused(tiny_sex: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """OpenVINO takes bfloat16 by itself on processors with AMX; here its answer about what it granted is changed."""
    import openvino

    class Granted:
        def __init__(self, compiled: Any) -> None:
            self.compiled = compiled

        def get_property(self, name: str) -> Any:
            return openvino.Type.bf16 if name == "INFERENCE_PRECISION_HINT" else self.compiled.get_property(name)

    require = openvino_session._require_granted
    monkeypatch.setattr(openvino_session, "_require_granted", lambda compiled: require(Granted(compiled)))
    with pytest.raises(BackendUnavailableError, match="computes on CPU in bf16, expected f32 on CPU"):
        OpenVinoSession(tiny_sex)


def test_a_signal_after_sessions_were_closed_is_handled(tiny_sex: Path) -> None:
    """Ctrl-C, once the first of two sessions was closed before the second; in a process of its own, for it may break."""
    code = f"""
import gc, signal
from pathlib import Path
from fundus_rt.runtime.openvino_session import OpenVinoSession
first, second = (OpenVinoSession(Path({str(tiny_sex)!r}), threads=count) for count in (1, 2))
first.close()
second.close()
del first, second
gc.collect()
try:
    signal.raise_signal(signal.SIGINT)
except KeyboardInterrupt:
    print("stopped")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment(), check=False)
    assert (done.returncode, done.stdout) == (0, "stopped\n"), done.stderr
