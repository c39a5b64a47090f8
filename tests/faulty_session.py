"""A real session behind every fault that a device or a driver may have."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fundus_rt.models.card import ModelCard
from fundus_rt.models.errors import (
    DeviceLostError,
)
from fundus_rt.runtime.answers import check_receipt
from fundus_rt.runtime.onnx_session import OnnxRuntimeSession
from fundus_rt.runtime.preprocess import tensor_from_box
from fundus_rt.runtime.session import BackendInfo

Answers = dict[str, NDArray[np.float32]]


class Faulty:
    """A real ONNX Runtime session behind a fault, as a device or a driver may have one."""

    takes_frames = False
    warnings: tuple[str, ...] = ()

    def __init__(self, path: Path, fault: Callable[[Faulty, Any, Answers], Answers] | None = None) -> None:
        self._real = OnnxRuntimeSession(path)
        self.card: ModelCard = self._real.card
        self.file_sha256 = self._real.file_sha256
        self.backend = BackendInfo("onnxruntime", "cuda:0", "1")
        self.fault = fault
        self.batches: list[Any] = []
        self.closed = False

    def run(self, batch: Any) -> Answers:
        self.batches.append(np.array(batch))
        answers = self._real.run(batch)
        if self.fault is not None:
            answers = self.fault(self, batch, answers)
        check_receipt(batch, answers["receipt"])
        return answers

    def close(self) -> None:
        self.closed = True


def stale(faulty: Faulty, batch: Any, answers: Answers) -> Answers:
    """The outputs of the first batch again and again, receipts too."""
    faulty.__dict__.setdefault("first", answers)
    return dict(faulty.__dict__["first"])


def stale_outputs_only(faulty: Faulty, batch: Any, answers: Answers) -> Answers:
    faulty.__dict__.setdefault("first", answers)
    return {**faulty.__dict__["first"], "receipt": answers["receipt"]}


def swapped_rows(faulty: Faulty, batch: Any, answers: Answers) -> Answers:
    return {name: rows if name == "receipt" else rows[::-1].copy() for name, rows in answers.items()}


def first_row_for_all(faulty: Faulty, batch: Any, answers: Answers) -> Answers:
    return {name: rows if name == "receipt" else np.repeat(rows[:1], len(rows), axis=0) for name, rows in answers.items()}


def other_weights(faulty: Faulty, batch: Any, answers: Answers) -> Answers:
    return {name: rows if name == "receipt" else rows * np.float32(1.2) for name, rows in answers.items()}


def zeros(faulty: Faulty, batch: Any, answers: Answers) -> Answers:
    return {name: rows if name == "receipt" else np.zeros_like(rows) for name, rows in answers.items()}


def lost(faulty: Faulty, batch: Any, answers: Answers) -> Answers:
    raise DeviceLostError("the GPU does not answer")


class CropsItself(Faulty):
    """A session that takes whole frames, with a crop and resize of its own that may be wrong."""

    takes_frames = True

    def __init__(self, path: Path, wrong: Callable[[Any], Any] | None = None) -> None:
        super().__init__(path)
        self.wrong = wrong
        self.frames = 0

    def run_frame(self, frame: Any, box: Any, mirror: bool) -> Answers:
        self.frames += 1
        tensor = tensor_from_box(frame, box, self.card.preprocessing, mirror)
        return self._real.run((tensor if self.wrong is None else self.wrong(tensor))[None])

    def frame_buffer(self, height: int, width: int) -> Any:
        return np.zeros((height, width, 3), np.uint8)
