"""Photographs as a file's network takes them, along the runtime's own way, for calibration and for judging."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fundus_rt.models.artifacts import sha256_of_bytes
from fundus_rt.models.errors import FundusRtError, UsageError
from fundus_rt.runtime.batch import read_item
from fundus_rt.runtime.eye import eye_from_file_name
from fundus_rt.runtime.inputs import items_from_paths
from fundus_rt.runtime.pipeline import Pipeline

MOST_CALIBRATED = 64
"""Photographs that ranges are taken from at most: more change them little."""
MOST_JUDGED = 200
"""Photographs that parity is measured on at most: every trial of a search answers all of them."""
LEAST = 3
"""Photographs without which neither ranges nor parity mean anything."""


@dataclass(frozen=True)
class NetworkInputs:
    """Photographs in two halves, so that no range was taken from a photograph that it is judged on."""

    calibration: NDArray[Any]
    """[N, H, W, 3], BGR, of the card's input type."""
    judged: NDArray[Any]
    """As `calibration`, other photographs."""
    calibration_digest: str
    """Of the contents that ranges are taken from, whatever their names and order."""
    judged_digest: str
    """The same of the judged ones."""
    refused: tuple[str, ...]
    """Why the runtime does not answer some photographs, without their names: no fundus in them, an unknown eye, or damaged."""


def network_inputs(pipeline: Pipeline, paths: Sequence[str], show: Callable[[int], None] = lambda done: None) -> NetworkInputs:
    """Read photographs, every other one for calibration; copies of one content count once.

    Args:
        pipeline: of the float32 file; its field of view, eye and resize are the ones that every answer goes through.
        paths: files, folders and globs.
        show: told after each photograph how many were read.

    Raises:
        UsageError: fewer than `LEAST` photographs for either half.
    """
    halves: tuple[list[Any], list[Any]] = ([], [])
    digests: tuple[list[str], list[str]] = ([], [])
    refused: list[str] = []
    for count, found in enumerate(_tensors(pipeline, paths), 1):
        show(count)
        if isinstance(found, str):
            refused.append(found)
            continue
        which = 0 if len(halves[0]) <= len(halves[1]) and len(halves[0]) < MOST_CALIBRATED else 1
        halves[which].append(found[1])
        digests[which].append(found[0])
        if len(halves[0]) >= MOST_CALIBRATED and len(halves[1]) >= MOST_JUDGED:
            break
    if min(map(len, halves)) < LEAST:
        raise UsageError(
            f"{sum(map(len, halves))} photographs can be used and {len(refused)} not{_first(refused)}; half of them are for "
            f"ranges, half for judging, and each needs {LEAST}; name more with --images"
        )
    digest = [hashlib.sha256("".join(sorted(half)).encode()).hexdigest() for half in digests]
    return NetworkInputs(np.stack(halves[0]), np.stack(halves[1]), digest[0], digest[1], tuple(refused))


def _first(refused: Sequence[str]) -> str:
    return f" ({refused[0]})" if refused else ""


def _tensors(pipeline: Pipeline, paths: Sequence[str]) -> Iterator[tuple[str, Any] | str]:
    """Digest of the content and network input of each photograph; for one that is refused, why."""
    met: set[str] = set()
    for item in items_from_paths(paths):
        try:
            content = read_item(item)
            sha256 = sha256_of_bytes(content)
            if sha256 in met:
                continue
            met.add(sha256)
            sources = {"list": item.listed_eye, "file name": eye_from_file_name(os.path.basename(item.path))}
            prepared = pipeline.prepare_bytes(content, sources, whole=False)
        except FundusRtError as error:
            yield " ".join(str(error).split())
            continue
        yield sha256, prepared.tensor
