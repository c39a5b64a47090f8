"""Bright, soft spots, as dust or dried drops on the front lens scatter light.

Own implementation, from a description of its constants, of the spots of the degradation model of cofe-Net (Shen et al., IEEE TMI
2021). The published constants hold for pictures of 512 x 512 pixels that the field of view fills. What was resolved:

* The published light of a spot of diameter r pixels has the factor 14/25 + 1 - r/25. The 25 is 0.05 * 512, the largest spot: at
  1024 pixels the factor becomes negative, and under Python 2 r/25 was a whole number. Here u = r / (0.05 diameters) stands for
  r/25, from 0.2 to 1 at every size.
* Bounds of whole-number draws were no whole numbers, which Python refuses since 3.12; here diameters and edges are drawn as
  real numbers.
* Spots of 15 to 23 in the published example files, 5 to 10 in the code: at the published strength it is the code's count, and
  the highest severity comes near the files'.
* The published Gaussian of deviation 2 (5 + 20 u) pixels is cut off at a fifth to a quarter of that deviation, so it is a box;
  here it is a soft edge of that width in closed form.
* Spots are placed inside the field; outside of it they would not be seen.
"""

from __future__ import annotations

import numpy as np

from fundus_rt.benchmarks.robustness.field import Field, Floats
from fundus_rt.benchmarks.robustness.illumination import edge

LARGEST = 0.05
"""Diameter of the largest spot, diameters of the field."""
COUNT = (5, 10)
"""Published number of spots at strength 1, both included."""
MOST_STRENGTH = 2.0
"""Strength up to which spots are drawn."""
_PUBLISHED_SIDE = 512.0


def with_spots(levels: Floats, field: Field, rng: np.random.Generator, strength: float) -> Floats:
    """Add soft discs of light.

    Args:
        levels: float32 [h, w, 3], BGR, 0 to 1. Not changed.
        field: of these levels.
        rng: the same draws are made for every picture and strength.
        strength: 1 is the published amount. The number of spots and the light of each are in proportion to it: a stronger
            degradation has every spot of a weaker one and more.

    Returns:
        float32 [h, w, 3], 0 to 1.

    Raises:
        ValueError: the strength is above `MOST_STRENGTH`.
    """
    if strength > MOST_STRENGTH:
        raise ValueError(f"got the strength {strength}, expected at most {MOST_STRENGTH}")
    count = int(rng.integers(COUNT[0], COUNT[1] + 1))
    spots = _drawn(rng, int(np.ceil(COUNT[1] * MOST_STRENGTH)))
    levels = levels.copy()
    for x, y, u, side in spots[: int(np.ceil(count * strength))]:
        light = (14 / 25 + 1 - u) * (1 - np.exp(-(0.5 + u) * 0.3 * u))
        _add_disc(levels, field, (x, y), u * LARGEST / 2, side, strength * light)
    return levels


def _drawn(rng: np.random.Generator, count: int) -> list[tuple[float, float, float, float]]:
    """For each spot x and y in diameters from the field's centre, u, and the width of its edge in diameters."""
    radius, angle = 0.5 * np.sqrt(rng.uniform(0, 1, count)), rng.uniform(0, 2 * np.pi, count)
    u = rng.uniform(0.2, 1.0, count)
    side = 2 * (5 + 20 * u) * rng.uniform(1 / 5, 1 / 4, count) / _PUBLISHED_SIDE
    return [tuple(map(float, spot)) for spot in zip(radius * np.cos(angle), radius * np.sin(angle), u, side, strict=True)]  # type: ignore[misc]


def _add_disc(levels: Floats, field: Field, at: tuple[float, float], radius: float, width: float, light: float) -> None:
    """Add one soft disc in place; lengths in diameters. Only its neighbourhood is computed."""
    height, across = levels.shape[:2]
    x, y = (middle + place * field.diameter for middle, place in zip(field.center, at, strict=True))
    reach = (radius + width / 2) * field.diameter + 1
    left, right = max(0, int(x - reach)), min(across, int(x + reach) + 2)
    top, bottom = max(0, int(y - reach)), min(height, int(y + reach) + 2)
    if left >= right or top >= bottom:
        return
    dx = np.arange(left, right, dtype=np.float32)[None] - np.float32(x)
    dy = np.arange(top, bottom, dtype=np.float32)[:, None] - np.float32(y)
    disc = edge(np.asarray(np.hypot(dx, dy) / np.float32(field.diameter), np.float32), radius, width)
    part = levels[top:bottom, left:right]
    part += (np.float32(light) * disc)[..., None]
    np.minimum(part, 1, out=part)
