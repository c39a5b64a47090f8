"""What original networks answered before, so that a second proof need not wait for a slow framework again.

One SQLite file in the cache folder: a digest of everything that an answer follows from, and the numbers. There are no names of
photographs in it, no paths, and no pixels.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import sqlite3
from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path

import numpy as np

from fundus_rt.benchmarks.proof.original import OriginalModel
from fundus_rt.converters.original_preprocessing import Photograph
from fundus_rt.models.artifacts import sha256_of_bytes
from fundus_rt.models.cache_folder import cache_folders, trusted_writable_folder
from fundus_rt.models.errors import UsageError

FORMAT = 2
"""Counts up when answers are asked for or kept in another way."""
FILE_NAME = "original-answers.sqlite3"


class AnswerCache:
    """Answers of original networks by digest. Several processes may use one file; a kill loses at most the last chunk."""

    def __init__(self, folder: Path) -> None:
        """Open or make the file in `folder`.

        Raises:
            UsageError: the file is damaged or is no cache.
        """
        self._path = folder / FILE_NAME
        try:
            self._rows = sqlite3.connect(self._path, timeout=60, isolation_level=None)
            self._rows.execute("create table if not exists answers (digest blob primary key, numbers blob) without rowid")
        except sqlite3.Error as error:
            raise self._unusable(error) from error

    def get(self, digest: bytes, columns: Mapping[str, int]) -> dict[str, np.ndarray] | None:
        """The numbers kept under a digest, float32 [columns] by output; None where there are none.

        Args:
            digest: from `answer_digest`.
            columns: how many each output has, in order.
        """
        try:
            found = self._rows.execute("select numbers from answers where digest = ?", (digest,)).fetchone()
        except sqlite3.Error as error:
            raise self._unusable(error) from error
        if found is None or len(found[0]) != 4 * sum(columns.values()):
            return None
        numbers = np.frombuffer(found[0], "<f4")
        ends = np.cumsum(list(columns.values()))
        return {name: numbers[end - count : end] for (name, count), end in zip(columns.items(), ends, strict=True)}

    def put(self, answers: Mapping[bytes, Mapping[str, np.ndarray]]) -> None:
        """Keep numbers of several photographs, all or none."""
        rows = [(key, b"".join(np.asarray(v, "<f4").tobytes() for v in found.values())) for key, found in answers.items()]
        try:
            self._rows.execute("begin immediate")
            self._rows.executemany("insert or replace into answers values (?, ?)", rows)
            self._rows.execute("commit")
        except sqlite3.Error as error:
            raise self._unusable(error) from error

    def close(self) -> None:
        """Close the file."""
        with closing(self._rows):
            pass

    def _unusable(self, error: sqlite3.Error) -> UsageError:
        return UsageError(
            f"the cache of original answers {self._path} cannot be used ({error}); remove it (it is only a cache), or name "
            "another folder with FUNDUS_RT_CACHE"
        )


def opened_cache(say: Callable[[str], None]) -> AnswerCache:
    """The cache in this user's cache folder.

    Raises:
        UsageError: no folder can be written, or others could write into it.
    """
    return AnswerCache(trusted_writable_folder(cache_folders("parity"), say))


def answer_digest(original: OriginalModel, photograph: Photograph) -> bytes:
    """What an original's answer to a photograph follows from: checkpoint, picture, crop, mirroring, preprocessing, libraries."""
    spec = dataclasses.asdict(original.card.preprocessing)
    del spec["assumed"]
    parts = {
        "format": FORMAT,
        "checkpoint": original.checkpoint_sha256,
        "beside": original.beside_sha256,
        "network": original.description,
        "framework": original.framework,
        "versions": original.versions,
        "photograph": sha256_of_bytes(photograph.content),
        "box": photograph.box,
        "mirror": photograph.mirror,
        "preprocessing": spec,
        "outputs": [(output.name, output.columns) for output in original.card.outputs],
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).digest()
