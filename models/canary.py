"""Two drawn pictures with known answers, by which a device shows at any time that it still computes what it should.

The pictures are drawn with whole numbers by a formula, so every device has exactly the same ones without a decoder, a resize or
somebody's photograph. The conversion asks the original network about all of them, takes the two that it answers most
differently, and puts their numbers and answers into the card. A session that is stale, mixes up rows, has other weights or runs
on a dying device gives other answers, or the same one twice.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

DRAWING = 1
"""Version of the formula; a card that names another one has no canary that this package can draw."""
TOLERANCE = 0.1
"""How far an answer may lie from the known one, as a share of how far the two known answers lie apart. Another device's rounding
moves answers by far less, other weights and other pictures by more."""
ROUNDING = 2e-3
"""The same as a share of the largest known number, where that is more: what half precision or TF32 may move a sound answer by."""
LEAST_DIFFERENCE = 1e-2
"""Two pictures tell nothing where no output differs by more than this share of its largest number."""

_LOOKS = (
    # red, green, blue; disc's column and row; how many lesions in 256
    (190, 90, 40, 420, -40, 0),
    (120, 45, 20, -420, 30, 0),
    (225, 150, 100, 380, 60, 3),
    (160, 60, 10, 0, 0, 14),
)
"""Drawn fundi: colours, where the optic disc lies (1024 is half the picture), spots."""
PICTURES = len(_LOOKS)
"""How many pictures there are to choose from."""


def canary_picture(which: int, size: tuple[int, int], dtype: str = "uint8") -> NDArray[Any]:
    """One drawn fundus, [H, W, 3], BGR, grey levels 0 to 255; the same to the last bit everywhere.

    Args:
        which: 0 to `PICTURES` - 1.
        size: height and width, pixels.
        dtype: ``uint8`` or ``float32`` as the network takes it; the levels are whole numbers in both.
    """
    height, width = size
    red, green, blue, disc_column, disc_row, spots = _LOOKS[which]
    u = ((2 * np.arange(width, dtype=np.int64) + 1 - width) * 1024 // width)[None, :]
    v = ((2 * np.arange(height, dtype=np.int64) + 1 - height) * 1024 // height)[:, None]
    radius = u * u + v * v
    shade = 256 - (radius >> 14)  # darker towards the edge
    from_disc = (u - disc_column) ** 2 + (v - disc_row) ** 2
    arch = np.abs(v - disc_row) - 40 - ((u - disc_column) ** 2 >> 11)  # two vessels that bow around the middle
    vessel = (np.abs(arch) < 22) | (np.abs(np.abs(v - disc_row) * 3 - np.abs(u - disc_column)) < 14)
    lesion = ((((u >> 5) * 37 + (v >> 5) * 91) & 255) < spots) & (radius < 810_000)
    macula = (u + disc_column // 4) ** 2 + v * v < 12_000
    picture = np.empty((height, width, 3), np.int64)
    for channel, level in enumerate((blue, green, red)):
        plane = level * shade >> 8
        plane = np.where(macula, plane * 5 >> 3, plane)
        plane = np.where(vessel, plane * (4 + channel) >> 3, plane)
        plane = np.where(from_disc < 22_000, np.minimum(plane + 90 - 20 * channel, 255), plane)
        plane = np.where(lesion, (60, 70, 120)[channel] if spots < 10 else (110, 200, 230)[channel], plane)
        picture[..., channel] = np.where(radius < 1_000_000, plane, 0)
    return picture.clip(0, 255).astype(dtype)


@dataclass(frozen=True)
class Canary:
    """Two of the drawn pictures, and what the original network answers to them."""

    pictures: tuple[int, int]
    answers: dict[str, NDArray[np.float32]]
    """By output: float32 [2, columns], as the network gives them, before any activation; at least one tells the two apart."""

    def batch(self, size: tuple[int, int], dtype: str) -> NDArray[Any]:
        """Both pictures as the network takes them, [2, H, W, 3]."""
        return np.stack([canary_picture(which, size, dtype) for which in self.pictures])

    def problems(self, answered: Mapping[str, NDArray[np.float32]]) -> list[str]:
        """What is wrong with a session's answers to `batch`, in words; empty where they are the known ones."""
        found = []
        for name, known in self.answers.items():
            numbers = answered.get(name)
            if numbers is None or numbers.shape != known.shape or not np.isfinite(numbers).all():
                found.append(f"{name}: {'no answer' if numbers is None else f'{numbers.shape} or not finite'}")
                continue
            apart = float(np.abs(known[0] - known[1]).max())
            allowed = max(TOLERANCE * apart, ROUNDING * float(np.abs(known).max()))
            off = float(np.abs(numbers - known).max())
            if off <= allowed:
                continue
            if float(np.abs(numbers[::-1] - known).max()) <= allowed:
                found.append(f"{name}: the two answers are exchanged")
            elif np.array_equal(numbers[0], numbers[1]):
                found.append(f"{name}: one answer was given for both")
            else:
                found.append(f"{name}: {off:.3g} away from the known answers, which are {apart:.3g} apart")
        return found

    def to_dict(self) -> dict[str, Any]:
        """As it stands in a card."""
        answers = {name: [[float(x) for x in row] for row in values] for name, values in self.answers.items()}
        return {"drawing": DRAWING, "pictures": list(self.pictures), "answers": answers}


def canary_from_dict(values: Mapping[str, Any]) -> Canary | None:
    """The canary of a card, None where it carries none that can be drawn.

    Raises:
        ValueError: an entry that is not as `Canary.to_dict` writes it.
    """
    if not values or values.get("drawing") != DRAWING:
        return None
    try:
        first, second = (int(which) for which in values["pictures"])
        answers = {name: np.asarray(rows, np.float32) for name, rows in values["answers"].items()}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"the card's canary cannot be read ({error}); convert the checkpoint again") from error
    right = all(rows.ndim == 2 and len(rows) == 2 and np.isfinite(rows).all() for rows in answers.values())
    right = right and any(np.ptp(rows, axis=0).max() > 0 for rows in answers.values())
    if not (answers and right and min(first, second) >= 0 and max(first, second) < PICTURES):
        raise ValueError("the card's canary has no two different answers to two known pictures; convert the checkpoint again")
    return Canary((first, second), answers)


def chosen_canary(answers: Mapping[str, Sequence[Any] | NDArray[Any]]) -> Canary | None:
    """The two pictures that a network tells apart best, by the output that does so best.

    Args:
        answers: of the original network to all `PICTURES` pictures, [PICTURES, columns] by output name.

    Returns:
        The canary, with every output; None where none tells two pictures apart.
    """
    numbers = {name: np.asarray(rows, np.float32) for name, rows in answers.items()}
    best: tuple[float, tuple[int, int]] = (0.0, (0, 1))
    for rows in numbers.values():
        if not np.isfinite(rows).all():
            return None
        best = max(best, *((_difference(rows, *pair), pair) for pair in combinations(range(PICTURES), 2)))
    if best[0] <= LEAST_DIFFERENCE:
        return None
    return Canary(best[1], {name: rows[list(best[1])] for name, rows in numbers.items()})


def _difference(rows: NDArray[np.float32], first: int, second: int) -> float:
    """How far two answers lie apart, as a share of the largest number."""
    return float(np.abs(rows[first] - rows[second]).max()) / max(float(np.abs(rows).max()), 1e-30)
