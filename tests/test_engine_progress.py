"""What a build says while it runs and when it fails: progress, log, the library's errors, and what it measured."""

from __future__ import annotations

import dataclasses
import signal
import subprocess
import sys
import threading
import time
import types
from pathlib import Path
from typing import Any

import pytest

from fundus_rt.converters.engines.build_log import BuildLog
from fundus_rt.converters.engines.engine_build import BuildOptions, engine_from_onnx
from fundus_rt.converters.engines.engine_progress import ProgressTracker, run_watched
from fundus_rt.converters.engines.parser_errors import build_failure, parser_failure, start_failure
from fundus_rt.converters.engines.timing_cache import keep_timing_cache, timing_cache_path, use_timing_cache
from fundus_rt.models.errors import BackendUnavailableError, DeviceMemoryError, EngineError
from fundus_rt.runtime.nvidia.tensorrt_library import TensorRTLibrary
from tests.conftest import environment
from tests.engine_graphs import JETPACK, antialiased, key_of, saved, small_network

onnx = pytest.importorskip("onnx")


# --- progress ------------------------------------------------------------------------------------------------------------


def test_the_share_that_is_done_counts_phases_within_phases_and_never_goes_back() -> None:
    tracker = ProgressTracker()
    assert tracker.now().phase == "Reading the network" and tracker.now().fraction is None
    tracker.begin_phase("Building", 4)
    tracker.complete_step("Building", 1)
    tracker.begin_phase("Timing", 2)
    tracker.complete_step("Timing", 0)
    assert tracker.now().phase == "Building: Timing" and tracker.now().fraction == pytest.approx((2 + 0.5) / 4)
    tracker.end_phase("Timing")
    assert tracker.now().fraction == pytest.approx(0.625)
    tracker.end_phase("Building")
    assert tracker.now().phase == "Finishing" and "62% of the steps" in tracker.now().line()
    assert tracker.phases_seen == ["Building", "Timing"] and tracker.steps == 2


def test_a_library_that_says_nothing_is_heard_of_all_the_same() -> None:
    lines: list[str] = []
    done = threading.Event()

    def hear(line: str) -> None:
        lines.append(line)
        done.set()

    assert run_watched(lambda: done.wait(30), ProgressTracker(), hear, heartbeat_seconds=0.01)
    assert lines and lines[0].startswith("Reading the network, ") and lines[0].endswith(" s so far")


def test_on_a_terminal_the_line_is_drawn_and_nothing_is_said() -> None:
    done = threading.Event()
    shown: list[Any] = []

    def show(progress: Any) -> None:
        shown.append(progress)
        done.set()

    assert run_watched(lambda: done.wait(30), ProgressTracker(), pytest.fail, show, heartbeat_seconds=0.0)
    assert shown[0].elapsed >= 0


@pytest.mark.skipif(not hasattr(signal, "pthread_kill"), reason="needs signals")
def test_ctrl_c_stops_the_library_and_waits_for_it() -> None:
    tracker, ended = ProgressTracker(), list[bool]()
    lines: list[str] = []

    def work() -> None:
        time.sleep(0.1)
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
        while tracker.complete_step("Timing", 0):  # what the library's monitor is asked after each step
            time.sleep(0.01)
        time.sleep(0.5)
        ended.append(True)

    with pytest.raises(KeyboardInterrupt):
        run_watched(work, tracker, lines.append)
    assert ended and len(lines) == 1 and lines[0].startswith("stopping")


@pytest.mark.parametrize("when", ["before", "after"])
def test_ctrl_c_while_the_thread_starts_leaves_no_library_alone(when: str) -> None:
    """In a process of its own, which nothing else of the tests is in when the signal comes."""
    code = f"""
import signal, threading, time
from fundus_rt.converters.engines.engine_progress import ProgressTracker, run_watched
tracker, ended, honest = ProgressTracker(), threading.Event(), threading.Thread.start

def start(thread):
    if {when!r} == "before":
        signal.raise_signal(signal.SIGINT)
    honest(thread)
    if {when!r} == "after":
        signal.raise_signal(signal.SIGINT)

def work():
    while not tracker.cancelled:
        time.sleep(0.01)
    time.sleep(0.3)
    ended.set()

threading.Thread.start = start
try:
    run_watched(work, tracker, lambda line: None)
except KeyboardInterrupt:
    print("stopped", ended.is_set())
"""
    call = [sys.executable, "-c", code]
    done = subprocess.run(call, capture_output=True, text=True, env=environment(), timeout=60, check=False)
    assert done.stdout == "stopped True\n", done.stderr


def test_a_line_that_cannot_be_said_stops_the_library_too() -> None:
    tracker, ended = ProgressTracker(), list[bool]()

    def work() -> None:
        while tracker.complete_step("Timing", 0):
            time.sleep(0.01)
        ended.append(True)

    def show(progress: Any) -> None:
        raise BrokenPipeError("standard error is gone")

    with pytest.raises(BrokenPipeError):
        run_watched(work, tracker, pytest.fail, show)
    assert ended


def test_what_the_work_raises_is_raised_here() -> None:
    def work() -> None:
        raise EngineError("of the library")

    with pytest.raises(EngineError, match="of the library"):
        run_watched(work, ProgressTracker(), print)


def test_the_log_keeps_every_line_at_once_and_takes_none_after_it_was_closed(tmp_path: Path) -> None:
    log = BuildLog(tmp_path / "log")
    log.write("VERBOSE", "a")
    log.write("ERROR", "b")
    assert [line.split()[1:] for line in (tmp_path / "log").read_text().splitlines()] == [["VERBOSE", "a"], ["ERROR", "b"]]
    log.close()
    log.write("WARNING", "c")
    assert log.errors == ["b"] and log.warnings == ["c"] and "c" not in (tmp_path / "log").read_text().split()


# --- errors --------------------------------------------------------------------------------------------------------------


class Said:
    """What the library's ParserError offers."""

    def __init__(self, code: str, desc: str, operator: str = "", name: str = "", node: int = -1) -> None:
        self.values = {"code": f"ErrorCode.{code}", "desc": desc, "node_operator": operator, "node_name": name, "node": node}

    def __getattr__(self, name: str) -> Any:
        return lambda: self.values[name]


def test_a_refused_node_is_told_with_its_name_and_a_remedy_and_the_parsers_words(tmp_path: Path) -> None:
    own = '(antialias == 0) && "Antialiasing is not supported " "currently."'
    errors = [Said("UNSUPPORTED_NODE_ATTR", own, "Resize", node=0)] * 2
    message = str(parser_failure(errors, antialiased(), JETPACK, tmp_path / "log"))
    assert message.count("Resize 'y': antialias is 1, read is 0; resize before the network") == 1
    assert "(the parser: Antialiasing is not supported currently.)" in message and str(tmp_path / "log") in message


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (Said("UNSUPPORTED_NODE", "false", "Relu", "act"), "Relu 'act': this operator is not supported; export the network"),
        (Said("MEM_ALLOC_FAILED", "Assertion failed: p: no room"), "the file: no room; memory ran out"),
        (Said("INVALID_GRAPH", "a\n[x.cpp::catchCudaError::1] b"), "the file: a; the graph is not valid"),
        (Said("INTERNAL_ERROR", "odd", "Add", node=99), "Add: odd; export the network without this operator, or report"),
    ],
)
def test_errors_that_the_lint_does_not_know_keep_the_parsers_words(tmp_path: Path, error: Said, expected: str) -> None:
    assert expected in str(parser_failure([error], small_network("fp32"), JETPACK, tmp_path / "log"))
    assert "no reason" in str(parser_failure([], small_network("fp32"), JETPACK, tmp_path / "log"))


NO_GPU = "[checkMacros.cpp::catchCudaError::250] Error Code 1: (cudaError 35: CUDA driver version is insufficient)"


@pytest.mark.parametrize(
    ("said", "kind", "words"),
    [
        (["Error Code 2: OutOfMemory (no further information)"], DeviceMemoryError, "smaller --workspace than 64 MiB"),
        (["Tactic Selection: no tactics to implement the operation within workspace limit."], EngineError, "larger --workspace"),
        (["10: Could not find any implementation for node Conv_3."], EngineError, "larger --workspace"),
        (["Target GPU SM 53 is not supported by this TensorRT release."], BackendUnavailableError, "does not support this GPU"),
        (
            ["OutOfMemory (Requested size was 67108865 bytes.)"],
            DeviceMemoryError,
            "more than 65 MiB and may take 64 MiB; say --workspace 130",
        ),
        (["OutOfMemory (Requested size was 999 bytes.)"], DeviceMemoryError, "smaller --workspace than 64 MiB"),
        (["something else", NO_GPU], EngineError, "built no engine: something else. "),
        ([NO_GPU], EngineError, "built no engine"),
    ],
)
def test_a_build_that_gave_nothing_says_why(tmp_path: Path, said: list[str], kind: type[Exception], words: str) -> None:
    error = build_failure(said, JETPACK, 64 << 20, tmp_path / "log")
    assert type(error) is kind and words in str(error) and str(tmp_path / "log") in str(error)


def test_a_library_that_does_not_start_says_why(tmp_path: Path) -> None:
    class Silent:
        """A module whose builder is none, as TensorRT's is without a driver."""

        class ILogger:
            """The library's."""

        def Builder(self, logger: Any) -> None:
            logger.log(types.SimpleNamespace(name="ERROR"), "CUDA initialization failure with error: 35")
            raise TypeError("pybind11::init(): factory function returned nullptr")

    path = saved(tmp_path / "x.onnx", small_network("fp32"))
    library = TensorRTLibrary(Silent(), "tensorrt", "10.7.0.23")
    with pytest.raises(BackendUnavailableError, match=r"does not start: CUDA initialization failure with error: 35.*doctor"):
        engine_from_onnx(path, tmp_path / "e", library, key_of(path, library), BuildOptions(1), print, tmp_path / "log")
    assert "initialization failure" in (tmp_path / "log").read_text()
    assert "no reason" in str(start_failure([], JETPACK, tmp_path / "log"))


# --- timing cache --------------------------------------------------------------------------------------------------------


class Config:
    """Thin stand-in for the library's configuration: a cache is its bytes; what is not of this machine is refused."""

    def __init__(self, measured: bytes = b"", own: bytes = b"this") -> None:
        self.measured, self.own, self.cache = measured, own, b"?"

    def create_timing_cache(self, content: bytes) -> Any:
        return types.SimpleNamespace(content=content, serialize=lambda: b"head" + content)

    def set_timing_cache(self, cache: Any, ignore_mismatch: bool) -> bool:
        assert ignore_mismatch is False
        if cache.content and not cache.content.startswith(b"head" + self.own):
            return False
        self.cache = cache.content
        return True

    def get_timing_cache(self) -> Any:
        return self.create_timing_cache(self.measured)


def test_measurements_are_kept_and_used_again(tmp_path: Path) -> None:
    path, log, said = tmp_path / "timing" / "x.timing", BuildLog(tmp_path / "log"), list[str]()
    assert not use_timing_cache(Config(), path, log, said.append) and not said
    keep_timing_cache(Config(b"this"), path, said.append)
    again = Config()
    assert use_timing_cache(again, path, log, said.append) and again.cache == b"headthis" and not said


def test_measurements_of_another_machine_are_said_and_left_out(tmp_path: Path) -> None:
    path, log, said = tmp_path / "x.timing", BuildLog(tmp_path / "log"), list[str]()
    path.write_bytes(b"headother")
    config = Config()
    assert not use_timing_cache(config, path, log, said.append)
    assert config.cache == b"" and len(said) == 1 and "does not fit" in said[0]
    keep_timing_cache(Config(b"this"), path, said.append)
    assert use_timing_cache(Config(), path, log, said.append)


def test_nothing_is_written_where_nothing_was_measured_and_a_folder_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    said: list[str] = []
    keep_timing_cache(Config(b""), tmp_path / "x.timing", said.append)
    keep_timing_cache(Config(b"this"), None, said.append)
    assert not (tmp_path / "x.timing").exists() and not said
    (tmp_path / "file").write_bytes(b"")
    keep_timing_cache(Config(b"this"), tmp_path / "file" / "x.timing", said.append)
    assert len(said) == 1 and "cannot be written" in said[0]


def test_the_measurements_belong_to_library_gpu_and_driver_not_to_the_model(tmp_path: Path) -> None:
    path = saved(tmp_path / "x.onnx", small_network("fp32"))
    key = key_of(path)
    assert timing_cache_path(tmp_path, key) == timing_cache_path(tmp_path, dataclasses.replace(key, onnx_sha256="0" * 64))
    others = ({"tensorrt_version": "10.7"}, {"gpu_name": "x"}, {"cuda_driver": "13"}, {"compute_capability": "7.5"})
    found = {timing_cache_path(tmp_path, dataclasses.replace(key, **change)) for change in ({}, *others)}
    assert len(found) == 5
