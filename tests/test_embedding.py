"""What docs/embedding.md promises to a process that calls the package, and the camera's main loop that it names."""

from __future__ import annotations

import importlib.util
import json
import os
import pickle
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from fundus_rt.models.canary import DRAWING
from fundus_rt.models.certificates import CERTIFICATE_FORMAT
from fundus_rt.models.engines import RECORD_FORMAT
from fundus_rt.models.errors import CanaryError, FundusRtError, NotFundusError
from fundus_rt.models.references import REFERENCE_FORMAT
from fundus_rt.runtime import Pipeline
from fundus_rt.runtime.camera.source import source_from_text
from fundus_rt.runtime.guarded_session import GuardedSession
from fundus_rt.runtime.onnx_session import OnnxRuntimeSession
from fundus_rt.runtime.result import Result
from tests.conftest import REPOSITORY, environment
from tests.films import Scene, frames_of, write_film
from tests.photographs import half_and_half

PAGE = (REPOSITORY / "docs" / "embedding.md").read_text(encoding="utf-8")


def photograph(examples: Path, name: str = "haggstrom_right.jpg") -> Any:
    return cv2.imread(str(examples / name))


def numbers_of(result: Any) -> dict[str, bytes]:
    assert isinstance(result, Result)
    return {name: values.tobytes() for name, values in result.numbers.items()}


def in_process(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment(), timeout=900, check=False
    )


class TestDeterminism:
    def test_the_same_bytes_give_the_same_bits_in_each_call_thread_and_pipeline(self, examples: Path) -> None:
        frame, other = photograph(examples), photograph(examples, "chase_01L.jpg")
        pipeline = Pipeline(threads=1)
        first = numbers_of(pipeline(frame))
        found: list[dict[str, bytes]] = []

        def work() -> None:
            for _ in range(3):
                pipeline(other)
                found.append(numbers_of(pipeline(frame)))

        threads = [threading.Thread(target=work) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        found.append(numbers_of(Pipeline(threads=1)(frame)))
        assert len(found) == 10 and all(one == first for one in found)

    def test_threads_and_neighbours_move_the_last_digits_only(self, examples: Path) -> None:
        frames = [photograph(examples, name) for name in ("haggstrom_right.jpg", "chase_01L.jpg", "idrid_005.jpg")]
        pipeline = Pipeline(threads=1)
        alone = [pipeline(frame).numbers for frame in frames]
        together = pipeline.finish([pipeline.prepare(frame, {}) for frame in frames])
        others = [Pipeline(threads=2)(frame).numbers for frame in frames]
        for one, batch, other in zip(alone, together, others, strict=True):
            assert isinstance(batch, Result)
            for name in one:
                assert np.abs(one[name] - batch.numbers[name]).max() < 1e-5
                assert np.abs(one[name] - other[name]).max() < 1e-5


class TestThreadsAndMemory:
    def test_calls_while_it_is_closed_get_an_answer_or_are_told_so(self, tiny_sex: Path) -> None:
        for _ in range(5):
            session = GuardedSession(OnnxRuntimeSession(tiny_sex))
            batch = np.zeros((1, 64, 64, 3), np.uint8)
            ended: list[str] = []

            def ask(session: GuardedSession = session, batch: Any = batch, ended: list[str] = ended) -> None:
                with pytest.raises(ValueError) as told:
                    while True:
                        session.run(batch)
                ended.append(str(told.value))

            threads = [threading.Thread(target=ask) for _ in range(4)]
            for thread in threads:
                thread.start()
            session.close()
            for thread in threads:
                thread.join(60)
            assert ended == ["this session is closed; open a new one"] * 4

    def test_a_session_that_is_closed_between_two_steps_of_a_call(self, tiny_sex: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        session = OnnxRuntimeSession(tiny_sex)
        monkeypatch.setattr("fundus_rt.runtime.onnx_session.require_input", lambda *_: session.close())
        assert session.run(np.zeros((1, 64, 64, 3), np.uint8))["sex"].shape == (1, 1)

    @pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="the memory of a process is read from /proc")
    def test_memory_does_not_grow_with_the_calls(self, tiny_sex: Path) -> None:
        pipeline, frame = Pipeline(tiny_sex, check=False, threads=1), half_and_half(60, 180, 500)

        def resident() -> int:
            return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

        for _ in range(20):
            pipeline(frame, mirrored_by_source=True)
        before = resident()
        for _ in range(60):
            pipeline(frame, mirrored_by_source=True)
        assert resident() - before < 8_000_000  # a frame has 1 MB: one that is kept each time shows as 60

    def test_a_result_keeps_no_pixels(self, tiny_sex: Path) -> None:
        result = Pipeline(tiny_sex, check=False)(half_and_half(60, 180, 900))
        assert len(pickle.dumps(result)) < 4000

    def test_opencvs_threads_are_left_alone(self, tiny_sex: Path) -> None:
        before = cv2.getNumThreads()
        Pipeline(tiny_sex, check=False)(half_and_half(60, 180))
        assert cv2.getNumThreads() == before


class TestErrors:
    def test_a_refused_picture_leaves_the_pipeline_as_it_was(self, tiny_sex: Path) -> None:
        pipeline = Pipeline(tiny_sex, check=False)
        expected = numbers_of(pipeline(half_and_half(60, 180)))
        with pytest.raises(NotFundusError):
            pipeline(np.zeros((480, 640, 3), np.uint8))
        with pytest.raises(ValueError, match="uint8"):
            pipeline(np.zeros((64, 64), np.uint8))
        assert numbers_of(pipeline(half_and_half(60, 180))) == expected

    def test_an_interrupt_leaves_the_pipeline_as_it_was(self, tiny_sex: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        pipeline = Pipeline(tiny_sex, check=False)
        expected = numbers_of(pipeline(half_and_half(60, 180)))

        def interrupted(*_: Any) -> Any:
            raise KeyboardInterrupt

        with monkeypatch.context() as patched:
            patched.setattr("fundus_rt.runtime.pipeline.interpret", interrupted)
            with pytest.raises(KeyboardInterrupt):
                pipeline(half_and_half(200, 20))
        assert numbers_of(pipeline(half_and_half(60, 180))) == expected

    def test_the_page_names_classes_that_there_are(self) -> None:
        import fundus_rt.models.errors as errors

        rows = [line.split("|")[1] for line in PAGE.split("## Errors")[1].split("## ")[0].splitlines() if line.startswith("| `")]
        names = [name for row in rows for name in row.replace("`", "").replace(":", ",").replace(" ", "").split(",")]
        assert len(names) > 12
        for name in set(names) - {"ValueError", "MemoryError"}:
            assert issubclass(getattr(errors, name), FundusRtError)
        assert issubclass(errors.ReceiptError, errors.StoppedError) and issubclass(errors.DeviceLostError, errors.StoppedError)


class TestProcesses:
    @pytest.mark.skipif(not hasattr(os, "fork"), reason="there are no forked processes here")
    def test_a_forked_process_is_told_to_open_its_own(self, tiny_sex: Path) -> None:
        done = in_process(f"""
import os
from fundus_rt.models.errors import StoppedError
from fundus_rt.runtime import Pipeline
from tests.photographs import half_and_half
pipeline = Pipeline({str(tiny_sex)!r}, check=False, threads=2)
before = pipeline(half_and_half(60, 180)).outputs
child = os.fork()
if child == 0:
    try:
        pipeline(half_and_half(60, 180))
    except StoppedError as error:
        same = Pipeline({str(tiny_sex)!r}, check=False, threads=2)(half_and_half(60, 180)).outputs == before
        os._exit(7 if same and "open it again in this process" in str(error) else 1)
    os._exit(2)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
assert pipeline(half_and_half(60, 180)).outputs == before
print("told")
""")
        assert done.stdout == "told\n", done.stderr

    def test_it_cannot_be_pickled(self, tiny_sex: Path) -> None:
        with pytest.raises(TypeError, match="pickle"):
            pickle.dumps(Pipeline(tiny_sex, check=False))

    def test_it_installs_no_handler_writes_nothing_and_calls_nobody(self, examples: Path, tmp_path: Path) -> None:
        """Seen from inside of the interpreter: every file that is opened, every connection, every process."""
        done = in_process(f"""
import json, os, signal, sys, tempfile
import cv2
tempfile.gettempdir()
handlers = [signal.getsignal(number) for number in signal.valid_signals()]
frame = cv2.imread({str(examples / "haggstrom_right.jpg")!r})
seen = []
def look(event, arguments):
    written = event == "open" and (str(arguments[1] or "r")[0] in "wax" or (arguments[2] or 0) & (os.O_WRONLY | os.O_RDWR))
    if written and not str(arguments[0]).endswith(".pyc") and "__pycache__" not in str(arguments[0]):
        seen.append(str(arguments[0]))
    if event.split(".")[0] in ("socket", "subprocess") or event in ("os.system", "os.mkdir", "os.rename", "os.remove"):
        seen.append(event)
sys.dont_write_bytecode = True
sys.addaudithook(look)
from fundus_rt.runtime import Pipeline
result = Pipeline()(frame)
found = list(seen)
assert [signal.getsignal(number) for number in signal.valid_signals()] == handlers
sys.stderr.write(json.dumps([found, json.dumps(result.to_dict())]))
""")
        found, row = json.loads(done.stderr.splitlines()[-1])
        assert (found, done.stdout) == ([], "")
        assert "haggstrom" not in row and str(REPOSITORY) not in row


class TestVersions:
    def test_the_page_has_the_numbers_of_the_code(self) -> None:
        from fundus_rt.converters.precision import recipe

        for words in (
            f"`drawing` {DRAWING}",
            f"| certificate, reference | `format` {CERTIFICATE_FORMAT}, {REFERENCE_FORMAT} |",
            f"| engine record | `format` {RECORD_FORMAT} |",
            f"| recipe of lower precision | `format` {recipe.FORMAT} |",
        ):
            assert words in PAGE

    def test_the_page_names_what_there_is(self) -> None:
        names = [
            name for name in ("prepare", "prepare_bytes", "finish", "frame_buffer", "close") if callable(getattr(Pipeline, name))
        ]
        names += [
            name for name in ("backend", "certificate", "standing_warnings") if isinstance(getattr(Pipeline, name), property)
        ]
        assert len(names) == 8 and all(f"`{name}`" in PAGE for name in names)

    def test_a_row_keeps_its_keys(self, tiny_sex: Path) -> None:
        row = Pipeline(tiny_sex, check=False)(half_and_half(60, 180)).to_dict()
        assert set(row) >= {"model", "backend", "eye", "field_of_view", "outputs", "warnings", "timing_ms"}
        assert set(row["model"]) >= {"name", "sha256", "precision", "certificate"}
        assert set(row["backend"]) >= {"name", "device", "version", "provider", "engine_sha256"}
        assert set(row["eye"]) >= {"value", "source", "mirrored"}
        assert set(row["field_of_view"]) >= {"center", "radius", "cut", "found"}
        assert set(row["outputs"]["sex"]) >= {"value", "unit", "label", "decision", "probabilities"}


@pytest.fixture(scope="module")
def loop() -> Any:
    """The module ``examples/camera_loop.py``."""
    path = REPOSITORY / "examples" / "camera_loop.py"
    assert len(path.read_text(encoding="utf-8").splitlines()) < 100
    spec = importlib.util.spec_from_file_location("camera_loop", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    scenes = [Scene("dark", 2), Scene("left", 3), Scene("blurred", 4), Scene("sharp", 6), Scene("dark", 2)]
    path = tmp_path_factory.mktemp("film") / "exam.avi"
    write_film(path, [frame for _, frame in frames_of(scenes, REPOSITORY / "models" / "examples")])
    return path


class TestCameraLoop:
    def test_a_film_is_answered_once_with_advice(self, loop: Any, film: Path, tiny_age: Path, capsys: Any) -> None:
        rows: list[dict[str, Any]] = []
        assert loop.watch(source_from_text(str(film)), str(tiny_age), True, rows.append) == 0
        said = capsys.readouterr().err
        (row,) = rows
        assert row["error"] is None and row["eye"]["value"] == "left" and 9 <= row["capture"]["frame"] <= 14
        assert "retake: not sharp: focus, and hold still" in said and "captured: frame" in said

    def test_a_device_that_cannot_be_trusted_is_opened_again_and_then_given_up(
        self, loop: Any, film: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        opened = []

        def stopped(*_: Any, **__: Any) -> Any:
            opened.append(0)
            raise CanaryError("it does not know its pictures")

        monkeypatch.setattr(loop, "Pipeline", stopped)
        assert loop.watch(source_from_text(str(film)), "acquisition", True) == 1
        assert len(opened) == loop.MOST_REOPENINGS + 1
        assert "take it out of use" in capsys.readouterr().err

    def test_a_call_that_cannot_be_followed(self, loop: Any, capsys: Any) -> None:
        assert loop.main(["nothing.mp4"]) == 2
        assert "there is no such file" in capsys.readouterr().err
        assert loop.main([]) == 2
