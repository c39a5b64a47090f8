"""Many pictures: decoding, preprocessing and inference of different pictures at the same time, in bounded memory.

Each worker takes a few pictures at once from reading to answer. Pillow, OpenCV and ONNX Runtime release the interpreter's
lock, so with one worker a core, and one inference thread in each, every core always has work and no hand-over between
stages has to be waited for.
"""

from __future__ import annotations

import hashlib
import itertools
import os
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass
from typing import Any

import cv2
import numpy as np

from fundus_rt.models.artifacts import sha256_of_bytes
from fundus_rt.models.errors import BackendUnavailableError, EngineError, FundusRtError, StoppedError
from fundus_rt.models.memory import available_memory, is_out_of_memory
from fundus_rt.runtime.eye import eye_from_file_name
from fundus_rt.runtime.inputs import Item
from fundus_rt.runtime.pipeline import Pipeline, Prepared
from fundus_rt.runtime.result import Result

Row = dict[str, Any]

_LARGEST_FILE = 1 << 30
"""Bytes above which a file is refused unread: an 8-bit photograph of 100 megapixels is 300 MB uncompressed."""
WORKER_BYTES = 256 << 20
"""Memory of one worker with a photograph of 12 megapixels and its share of the network's, rounded up."""
MODEL_BYTES = 4
"""Memory of an opened model for each byte of its file, at the most."""
NO_MEMORY = "not enough memory for this picture; give a smaller one, or allow more memory"


@dataclass(frozen=True)
class AnswerOptions:
    """What, besides the picture and the model, decides an answer."""

    eye: str | None = None
    """The eye that the call gives for every picture."""
    mirrored_by_source: bool = False
    read_file_names: bool = True
    """Take a file's name as a source of the eye. False where the eye is what is being measured."""


class Answerer:
    """Answers items as rows, in their order."""

    def __init__(self, pipeline: Pipeline, options: AnswerOptions, workers: int, batch: int, finished: frozenset[bytes]):
        """Args:
        pipeline: the opened model.
        options: the call's own sources.
        workers: pictures or batches in work at once.
        batch: pictures in one inference.
        finished: `row_key` digests of rows that an earlier run wrote; their pictures are left out.
        """
        self._pipeline = pipeline
        self._options = options
        self._workers = workers
        self._batch = batch
        self._finished = finished
        self.taken = 0
        """Items whose rows have been given, or that were finished already."""

    def rows(self, items: Iterable[Item]) -> Iterator[Row]:
        """One row for each item that is not finished already, in the order of the items.

        At most twice as many batches as workers are in memory, however many items there are.

        Raises:
            StoppedError: what computes cannot be trusted or is gone: no further row is given.
        """
        source = iter(items)
        waiting: deque[tuple[list[Item], Future[list[Row]]]] = deque()
        if self._workers > 1:
            cv2.setNumThreads(1)
        with ThreadPoolExecutor(self._workers, thread_name_prefix="answer") as pool:
            try:
                while True:
                    while len(waiting) < 2 * self._workers and (some := list(itertools.islice(source, self._batch))):
                        waiting.append((some, pool.submit(self._answer, some)))
                    if not waiting:
                        return
                    taken, answered = waiting.popleft()
                    rows = answered.result()
                    if any(row["error"] == NO_MEMORY for row in rows):  # once more, each alone with the memory
                        wait([other for _, other in waiting])
                        rows = [row for item in taken for row in self._answer([item])]
                    self.taken += len(taken)
                    yield from rows
            finally:
                pool.shutdown(wait=True, cancel_futures=True)

    def _answer(self, items: list[Item]) -> list[Row]:
        height, width = self._pipeline.card.preprocessing.input_size
        tensors = np.empty((len(items), height, width, 3), self._pipeline.card.preprocessing.input_dtype)
        rows: list[Row] = []
        prepared: list[tuple[int, Prepared]] = []
        for item in items:
            row, picture = self._prepare(item, tensors[len(prepared)])
            if picture is not None:
                prepared.append((len(rows), picture))
            if row is not None:
                rows.append(row)
        for (index, _), result in zip(prepared, self._results([picture for _, picture in prepared], tensors), strict=True):
            if isinstance(result, Result):
                rows[index].update(result.to_dict())
            else:
                rows[index].update(failure(result, rows[index]))
        return rows

    def _results(self, pictures: list[Prepared], tensors: Any) -> list[Result | Exception]:
        """Answers of a batch; when it fails as a whole, each picture is asked for alone, so that only the faulty ones fail."""
        if not pictures:
            return []
        try:
            return list(self._pipeline.finish(pictures, tensors))
        except StoppedError:
            raise
        except Exception as error:  # backends raise what they like; one picture must not end the run of all others
            if len(pictures) == 1:
                return [error]
        return [self._results([picture], tensors[i : i + 1])[0] for i, picture in enumerate(pictures)]

    def _prepare(self, item: Item, out: Any) -> tuple[Row | None, Prepared | None]:
        """The item's row, None where it is finished already; and the picture, None where there is nothing to answer."""
        try:
            content = read_item(item)
        except FundusRtError as error:
            row = empty_row(item.path, None, None, self._pipeline)
            row["error"] = str(error)
            return row, None
        except MemoryError:
            return empty_row(item.path, None, None, self._pipeline) | {"error": NO_MEMORY}, None
        digest = sha256_of_bytes(content)
        key = row_key(item, digest, self._pipeline, self._options)
        if bytes.fromhex(key) in self._finished:
            return None, None
        row = empty_row(item.path, digest, key, self._pipeline)
        sources = {
            "call": self._options.eye,
            "list": item.listed_eye,
            "file name": eye_from_file_name(os.path.basename(item.path)) if self._options.read_file_names else None,
        }
        try:
            return row, self._pipeline.prepare_bytes(
                content, sources, self._options.mirrored_by_source, out, whole=self._batch == 1
            )
        except StoppedError:
            raise
        except Exception as error:  # one picture must not end the run of all others; the row says what happened
            row.update(failure(error, row))
        return row, None


def most_workers(model_bytes: int) -> int:
    """How many pictures can be in work at once in the memory that is left; at least one.

    Args:
        model_bytes: size of the model's file.
    """
    free = available_memory()
    return 1 << 16 if free is None else max(1, (free - MODEL_BYTES * model_bytes) // WORKER_BYTES)


def failure(error: Exception, row: Row) -> Row:
    """What a row says of an error, in one line. A fault that may be gone the next time leaves no key: it is tried again."""
    text = " ".join(str(error).split())
    if is_out_of_memory(error):
        return {"error": NO_MEMORY, "key": None}
    if isinstance(error, FundusRtError):
        return {"error": text, "key": None if isinstance(error, (BackendUnavailableError, EngineError)) else row["key"]}
    return {"error": f"unexpected {type(error).__name__}: {text}; please report this with the picture's format", "key": None}


def row_key(item: Item, digest: str, pipeline: Pipeline, options: AnswerOptions) -> str:
    """What makes a row the same row: path, content, model, eye and options; 32 hexadecimal digits.

    The certificate is not part of it: one that was issued since changes nothing of an answer. So a run that is gone on with keeps
    the rows that it has, each with what was known of the certificate when it was answered.
    """
    parts = [
        os.path.abspath(item.path), digest, pipeline.identity.sha256, str(options.eye), str(item.listed_eye),
        str(options.mirrored_by_source), str(pipeline.checks), *pipeline.asked,
    ]  # fmt: skip
    if not options.read_file_names:
        parts.append("names not read")
    return hashlib.sha256("\0".join(parts).encode("utf-8", "surrogateescape")).hexdigest()[:32]


def read_item(item: Item) -> bytes:
    """The content of an item's file.

    Raises:
        FundusRtError: the item has a problem, or its file cannot be read or is no photograph by its size.
    """
    if item.problem:
        raise FundusRtError(item.problem)
    try:
        size = os.path.getsize(item.path)
        if size > _LARGEST_FILE:
            raise FundusRtError(f"the file has {size / 1e9:.1f} GB, expected a photograph below {_LARGEST_FILE / 1e9:.1f} GB")
        with open(item.path, "rb") as stream:
            return stream.read()
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise FundusRtError(f"the file cannot be read ({reason}); check its name and its rights") from error


def empty_row(path: str, digest: str | None, key: str | None, pipeline: Pipeline) -> Row:
    """A row before its answer is known.

    Args:
        path: what the row calls its picture.
        digest: SHA-256 of the picture, or None where it could not be read.
        key: see `row_key`; None where the row is no reason to leave the picture out of a later run.
        pipeline: the opened model.
    """
    return {
        "file": path,
        "sha256": digest,
        "model": {**asdict(pipeline.identity), "certificate": pipeline.certificate.verdict},
        "backend": asdict(pipeline.backend),
        "eye": None,
        "field_of_view": None,
        "outputs": {},
        "warnings": [],
        "timing_ms": {},
        "error": None,
        "key": key,
    }
