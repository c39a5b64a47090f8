"""Checks that every answer of a network passes before anybody sees it, whatever computed it."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from fundus_rt.models.card import ModelCard
from fundus_rt.models.errors import ModelFileError, ReceiptError
from fundus_rt.runtime.session import Batch

Answers = dict[str, NDArray[np.float32]]
"""By name of the output: float32 [N, columns]; ``receipt``: float32 [N, H]."""


def checked_answers(batch: Batch, answers: Answers, card: ModelCard) -> Answers:
    """The answers, when they belong to the batch and are whole.

    Args:
        batch: what was sent.
        answers: every output of the card, and the receipt.
        card: the network's card.

    Raises:
        ReceiptError: they were computed from something else.
        ModelFileError: not one finite row for each picture.
    """
    check_receipt(batch, answers["receipt"])
    require_finite(answers, len(batch), card)
    return answers


def check_receipt(batch: Batch, receipt: NDArray[np.float32]) -> None:
    """Compare the network's receipt with the batch that was sent.

    The receipt is the sum of each image row over width and channels, computed by the network from its own input. For
    uint8 it is exact in float32 (at most 4096 * 3 * 255 < 2^24); for float32 input it is compared to one part in 10^5.

    Args:
        batch: [N, H, W, 3].
        receipt: [N, H].

    Raises:
        ReceiptError: the sums differ, so the answer belongs to another picture.
    """
    check_row_sums("the pictures that were sent", row_sums(batch), receipt)


def require_finite(answers: Answers, count: int, card: ModelCard) -> None:
    """Refuse answers that are not one finite row for each of `count` pictures.

    Raises:
        ModelFileError: with the output that is wrong.
    """
    for output in card.outputs:
        rows = answers[output.name]
        if rows.shape[0] != count or not np.isfinite(rows).all():
            raise ModelFileError(
                f"{card.name}: output {output.name!r} is {list(rows.shape)} or not finite, expected one finite row "
                f"for each of {count} pictures; the file is damaged, convert it again"
            )


def row_sums(batch: Batch) -> NDArray[np.int32] | NDArray[np.float64]:
    """Sum of each row of each picture over width and channels, as the network's receipt states it; int32 for uint8.

    Args:
        batch: uint8 or float32 [N, H, W, 3], or one picture [H, W, 3]; its rows may lie apart, its pixels not.

    Returns:
        [N, H], or [H].
    """
    height, length = batch.shape[-3], batch.shape[-2] * batch.shape[-1]
    whole = batch.dtype == np.uint8
    sums = cv2.reduce(batch.reshape(-1, length), 1, cv2.REDUCE_SUM, dtype=cv2.CV_32S if whole else cv2.CV_64F)
    return np.asarray(sums).reshape(*batch.shape[:-3], height)


def check_row_sums(what: str, expected: NDArray[np.generic], got: NDArray[np.generic]) -> None:
    """Compare sums of rows that two sides computed of the same picture.

    Args:
        what: whose sums they are, for the message.
        expected: [N, H]; whole numbers are compared exactly, floating-point ones to one part in 10^5.
        got: [N, H].

    Raises:
        ReceiptError: they differ, so one side saw another picture.
    """
    wanted, had = expected.astype(np.float64), got.astype(np.float64)
    slack = 0.0 if np.issubdtype(expected.dtype, np.integer) else 1e-5 * np.abs(wanted) + 0.5
    if wanted.shape != had.shape or not bool(np.all(np.abs(wanted - had) <= slack)):  # what is not a number differs too
        raise ReceiptError(
            f"the sums of the rows of {what} do not match, so the answer may belong to another picture. Nothing of it was used. "
            "Stop, reopen the model, and report this with backend and device."
        )
