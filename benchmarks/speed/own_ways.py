"""This package's two ways of answering: from the bytes of a file to the result, and the network alone on prepared tensors."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from fundus_rt.models.errors import DecodeError, EyeError, NotFundusError, UsageError
from fundus_rt.runtime.answers import Answers
from fundus_rt.runtime.batch import read_item
from fundus_rt.runtime.decode import decode
from fundus_rt.runtime.guarded_session import GuardedSession, open_guarded
from fundus_rt.runtime.inputs import items_from_paths
from fundus_rt.runtime.pipeline import Pipeline
from fundus_rt.runtime.session import Batch

BYTES_TO_RESULT = "bytes_to_result"
NETWORK_ONLY = "network_only"
PARTS = (BYTES_TO_RESULT, NETWORK_ONLY)
"""What a measurement spans."""
MOST_PHOTOGRAPHS = 64
"""Photographs that are held in memory."""


@dataclass(frozen=True)
class Sample:
    """A photograph as every way takes it."""

    content: bytes
    """The file."""
    eye: str | None
    """``left``, ``right`` or None, as this package's pipeline settled it."""
    tensor: Batch
    """The shipped network's input, [1, H, W, 3]."""


@dataclass(frozen=True)
class OwnModel:
    """A shipped file, opened."""

    pipeline: Pipeline
    session: GuardedSession
    """The same network once more, without anything before it."""
    load_s: float
    """Seconds from the call to the opened pipeline, its networks' known pictures included."""

    def answer_bytes(self, sample: Sample) -> Answers:
        """The network's numbers, by the whole way: decode, field of view, eye, check, resize, network, interpretation.

        Raises:
            FundusRtError: see `Pipeline`.
        """
        prepared = self.pipeline.prepare_bytes(sample.content, {"call": sample.eye})
        result = self.pipeline.finish([prepared])[0]
        if isinstance(result, EyeError):
            raise result
        return result.numbers

    def answer_tensor(self, sample: Sample) -> Answers:
        """The network's numbers for the prepared tensor."""
        answers = self.session.run(sample.tensor)
        return {output.name: answers[output.name][0] for output in self.session.card.outputs}

    def close(self) -> None:
        """Release the networks."""
        self.pipeline.close()
        self.session.close()

    def by_part(self, part: str, samples: Sequence[Sample]) -> Callable[[int], Answers]:
        """A function from a sample's index to the answer, by one of `PARTS`."""
        answer = self.answer_bytes if part == BYTES_TO_RESULT else self.answer_tensor
        return lambda index: answer(samples[index])


def open_own(file: str | Path, backend: str, device: str, threads: int | None, check: bool) -> OwnModel:
    """Open a shipped file and time it.

    Args:
        file: as `Pipeline` takes it, and so are `backend`, `device`, `threads` and `check`.

    Raises:
        FundusRtError: see `Pipeline`.
    """
    started = time.perf_counter()
    pipeline = Pipeline(file, backend, device, threads=threads, check=check)
    load_s = time.perf_counter() - started
    try:
        return OwnModel(pipeline, open_guarded(file, backend, device, threads), load_s)
    except BaseException:
        pipeline.close()
        raise


def read_photographs(paths: Sequence[str]) -> list[bytes]:
    """Contents of the first `MOST_PHOTOGRAPHS` pictures behind files, folders and globs.

    Raises:
        UsageError: there is none, or one cannot be read.
    """
    contents = []
    for item in items_from_paths(paths):
        if item.problem:
            raise UsageError(f"{item.path}: {item.problem}")
        contents.append(read_item(item))
        if len(contents) == MOST_PHOTOGRAPHS:
            break
    if not contents:
        raise UsageError("no photograph was given; name files or folders with --images")
    return contents


def samples_of(pipeline: Pipeline, contents: Sequence[bytes]) -> tuple[list[Sample], int]:
    """The photographs that a model answers, with their tensors, and how many it refuses.

    Raises:
        UsageError: it answers none of them.
    """
    found: list[Sample] = []
    reason = ""
    for content in contents:
        try:
            prepared = pipeline.prepare_bytes(content, {}, whole=False)
        except (DecodeError, EyeError, NotFundusError) as error:
            reason = " ".join(str(error).split())
            continue
        assert prepared.tensor is not None, "not left to the session"
        found.append(Sample(content, prepared.eye.value, np.ascontiguousarray(prepared.tensor[None])))
    if not found:
        raise UsageError(f"{pipeline.card.name} answers none of the {len(contents)} photographs, the last because: {reason}")
    return found, len(contents) - len(found)


def shifted_copies(content: bytes, count: int) -> list[bytes]:
    """Different JPEG files of one photograph, each moved by another number of pixels and so of the same cost to answer.

    Args:
        content: of a picture file.
        count: how many; the first is not moved.

    Returns:
        JPEG, quality 92, of one size in pixels.
    """
    frame = decode(content).frame
    return [
        bytes(cv2.imencode(".jpg", np.roll(frame, shift, axis=1), [cv2.IMWRITE_JPEG_QUALITY, 92])[1]) for shift in range(count)
    ]
