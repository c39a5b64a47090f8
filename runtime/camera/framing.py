"""Where the field of view lies in a frame, and what to do about it."""

from __future__ import annotations

import numpy as np

from fundus_rt.runtime.field_of_view import FieldOfView

_UNEVEN = 0.06
"""Share of the radius by which a side may cut more off than the opposite one: cameras that cut top and bottom by design do it
evenly."""
_SMALLEST = 0.5
"""Least diameter, as a share of the frame's shorter side."""
_LEAST_SHOWN = 0.8
"""Least share of the disc's area that the frame holds; 0.87 to 1 in the cameras of the example photographs."""


def framing_problem(view: FieldOfView, height: int, width: int) -> str:
    """What is wrong with the framing, and what to do, in words; empty when nothing is.

    Args:
        view: in pixels of the frame.
        height, width: of the frame, pixels.
    """
    if not view.found:
        return "cut: no rim of the round field of view is seen; move back, or say --any-framing if the camera shows none"
    (x, y), radius = view.center, view.radius
    beyond = {"left": radius - x - 0.5, "right": x + radius + 0.5 - width}
    beyond |= {"up": radius - y - 0.5, "down": y + radius + 0.5 - height}
    lost = {side: max(0.0, pixels / radius) for side, pixels in beyond.items()}
    for side, opposite in (("left", "right"), ("right", "left"), ("up", "down"), ("down", "up")):
        if lost[side] > lost[opposite] + _UNEVEN:
            return f"too far {side}: the field of view is cut there; bring it to the middle of the picture"
    if _shown_share(view, height, width) < _LEAST_SHOWN:
        return "too large: too much of the field of view is cut; move back"
    if 2 * radius < _SMALLEST * min(height, width):
        return "too small: move closer"
    return ""


def _shown_share(view: FieldOfView, height: int, width: int) -> float:
    """Share of the disc's area inside the frame, counted on a grid of 201 x 201 points."""
    steps = np.linspace(-1, 1, 201)
    disc = steps[:, None] ** 2 + steps[None, :] ** 2 <= 1
    x, y = view.center[0] + view.radius * steps, view.center[1] + view.radius * steps
    inside = ((y >= -0.5) & (y < height - 0.5))[:, None] & ((x >= -0.5) & (x < width - 0.5))[None, :]
    return float(np.count_nonzero(disc & inside) / np.count_nonzero(disc))
