"""Processes with a session of one thread each, on cores of their own or wherever the system puts them."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from fundus_rt.models.errors import BackendUnavailableError
from fundus_rt.runtime.onnx_providers import session_options
from fundus_rt.runtime.onnx_session import import_onnxruntime


class PinnedProcesses:
    """One process for each core, each with the file opened; closed with the ``with`` block."""

    def __init__(self, path: Path, frame: np.ndarray, count: int) -> None:
        """Start them.

        Args:
            path: an ``.onnx`` file of this package.
            frame: [H, W, 3], what each answers.
            count: how many; one core each of those that this process may use.

        Raises:
            BackendUnavailableError: this system cannot put a process on a core.
        """
        if not hasattr(os, "sched_setaffinity"):
            raise BackendUnavailableError("processes are put on cores with sched_setaffinity, which only Linux has")
        context = multiprocessing.get_context("spawn")
        cores = sorted(os.sched_getaffinity(0))
        self._ends: list[Any] = []
        self._processes: list[Any] = []
        for place in range(count):
            ours, theirs = context.Pipe()
            process = context.Process(target=_answer, args=(theirs, path, frame, cores[place % len(cores)], cores), daemon=True)
            process.start()
            self._ends.append(ours)
            self._processes.append(process)
        for end in self._ends:
            end.recv()

    def answering(self, pinned: bool) -> Callable[[int], None]:
        """A function in which every process answers one picture, on a core of its own or on any."""

        def answer(index: int) -> None:
            for end in self._ends:
                end.send(pinned)
            for end in self._ends:
                end.recv()

        return answer

    def __enter__(self) -> PinnedProcesses:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for end in self._ends:
            end.close()
        for process in self._processes:
            process.join(10)


def _answer(end: Connection, path: Path, frame: np.ndarray, core: int, cores: list[int]) -> None:
    """Answer whenever told to, until the other end is closed."""
    ort = import_onnxruntime()
    session = ort.InferenceSession(path.read_bytes(), session_options(ort, 1), providers=["CPUExecutionProvider"])
    batch = frame[None]
    end.send(None)
    try:
        while True:
            os.sched_setaffinity(0, [core] if end.recv() else cores)
            session.run(None, {"frames": batch})
            end.send(None)
    except EOFError:
        return
