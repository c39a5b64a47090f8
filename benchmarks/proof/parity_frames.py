"""Rows of a comparison taken up again: their photographs, the tensors that the file's network gets, and the answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from fundus_rt.benchmarks.proof.parity_rows import Row
from fundus_rt.benchmarks.proof.photographs import Case, case_again
from fundus_rt.runtime.decode import decode
from fundus_rt.runtime.field_of_view import find_field_of_view
from fundus_rt.runtime.preprocess import tensor_from_frame

if TYPE_CHECKING:
    from fundus_rt.benchmarks.proof.parity import Parity


def case_of(row: Row) -> Case:
    """The photograph of a row, read again, with the eye that all sources stated.

    Raises:
        FundusRtError: the file is gone, or holds another picture than before.
    """
    return case_again(row["file"], row["sha256"], row["eye"]["value"])


def our_tensors(parity: Parity, cases: Sequence[Case]) -> np.ndarray:
    """Photographs as the file's network takes them, [N, H, W, 3], BGR, mirrored where the file's card and the eye say so."""
    mirrors = parity.own.laterality == "mirror-left"
    tensors = []
    for case in cases:
        frame = decode(case.content).frame
        mirror = mirrors and case.eye == "left"
        tensors.append(tensor_from_frame(frame, find_field_of_view(frame), parity.own.preprocessing, mirror))
    return np.stack(tensors)


def numbers_of(rows: Sequence[Row], side: str, parity: Parity) -> dict[str, np.ndarray]:
    """float32 [N, columns] by output: the numbers of one side, ``original`` or ``ours``, before any activation."""
    return {
        output.name: np.array([row["outputs"][output.name][side] for row in rows], np.float32)
        for output in parity.original.card.outputs
    }
