"""Vectors of the field of view: drawn discs whose circle is known in closed form, and the words that choose triples of points."""

from __future__ import annotations

from typing import Any

import numpy as np

Vector = dict[str, Any]

_WORDS = 640
"""Of 32 bits; 480 are needed, and one in many millions is left out."""
_DISCS = (
    # which drawing; its side, pixels; where its upper left corner lies in the frame; height and width of the frame
    (0, 240, (40, 60), (320, 380)),
    (1, 300, (-25, 30), (250, 360)),
    (2, 601, (20, 150), (640, 900)),
)
_RADIUS = 1000 / 2048
"""Of a drawing's disc, as a share of its side: it ends where u² + v² reaches 1000², of 1024² at its sides."""


def circle_vectors() -> Vector:
    """Drawings on black, and their circles."""
    raw = np.random.default_rng(0).bit_generator
    words: list[int] = []
    while len(words) < _WORDS:
        value = int(raw.random_raw())
        words += [value & 0xFFFFFFFF, value >> 32]
    return {"random_words": words, "discs": [_disc(*disc) for disc in _DISCS]}


def _disc(which: int, side: int, corner: tuple[int, int], frame: tuple[int, int]) -> Vector:
    top, left = corner
    height, width = frame
    middle = (side - 1) / 2
    x, y, radius = left + middle, top + middle, round(side * _RADIUS, 2)
    passes = {"top": y - radius < 0, "bottom": y + radius > height, "left": x - radius < 0, "right": x + radius > width}
    return {
        "drawing": which, "drawing_size": [side, side], "drawing_at": [top, left], "frame": [height, width],
        "center": [x, y], "radius": radius, "cut": [name for name, is_cut in passes.items() if is_cut],
    }  # fmt: skip
