"""Find the circular field of view of a fundus photograph.

A fundus camera images a disc; the rest of the frame is a surround that is usually black. Published preprocessing crops to
that disc, so its centre and radius have to be right to about a hundredth of the radius: in frames that cut the disc, under
scale bars and burnt-in text, on white pages, in dark photographs and where one side of the rim fades into the surround.

The way, on a copy of at most `_SIDE` pixels: guess the surround's colour; take every pixel's distance from it; fit a circle
to the outline of what differs, by consensus, so that text, notches and straight cuts do not count; move the rim to the
steepest fall along each radius; keep the circle that most of its visible rim confirms. Where no circle is confirmed, the
photograph is taken as full-frame and `FieldOfView.found` says so.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from fundus_rt.models.errors import NotFundusError

SIDES = ("top", "bottom", "left", "right")
"""Sides of a frame, the values that `FieldOfView.cut` may hold, in this order."""

_SIDE = 400
"""Largest longer side, in pixels, of the copy on which the circle is found; the least for large frames is half of it."""
_LEAST_CONTRAST = 8
"""Grey levels between the darkest and the brightest part below which a frame shows nothing."""
_CUT_TOLERANCE = 0.01
"""A circle may pass a side of the frame by this share of its radius and still count as whole: the error of the fit."""
_TRIPLES = 160
"""Circles that are tried for a consensus. With a third of the outline off the circle, 47 of them are through good points."""
_CLEAR_STEP = 0.1
"""A rim whose median step is this share of the field's brightness is beyond doubt; below, other thresholds are tried, too:
the blocks of strong JPEG compression make a fainter rim of their own."""
_ANGLES = 180
"""Directions in which the rim is looked for."""
_REACH = 0.12
"""The rim is looked for this share of the radius inside and outside of the consensus circle."""
_STEPS = 49
"""Samples along each radius over twice `_REACH`; odd, so that the middle one lies on the circle."""

_Floats = NDArray[np.float32]
_Image = NDArray[np.uint8]


@dataclass(frozen=True)
class FieldOfView:
    """The disc that the camera imaged, in pixels of the frame.

    Pixel centres are at whole numbers, x to the right and y down; the frame is the one after EXIF orientation and before
    any mirroring.
    """

    center: tuple[float, float]
    """x and y of the disc's centre, pixels."""
    radius: float
    """Radius of the disc, pixels."""
    cut: tuple[str, ...] = ()
    """The sides of the frame, of `SIDES`, beyond which the disc continues; all four when no border was found."""
    found: bool = True
    """False where no border of a circular field is visible. `center` is then the middle of the frame and `radius` half
    of its longer side, so that the square around the circle holds the whole frame, padded with black to a square:
    nothing of the retina is lost and its proportions are kept."""
    confidence: float = 1.0
    """Share of the rim inside the frame, 0 to 1, on which a step from field to surround was seen; 0 when not found."""


@dataclass(frozen=True)
class _Circle:
    """A candidate, in pixels of the small copy."""

    x: float
    y: float
    radius: float
    score: float = 0.0
    confidence: float = 0.0


def find_field_of_view(frame: _Image) -> FieldOfView:
    """Locate the circular field of view.

    Args:
        frame: uint8 [H, W, 3]. The order of the channels does not matter. Not changed.

    Returns:
        Centre and radius in pixels of `frame`; `FieldOfView.found` is False for a full-frame photograph.

    Raises:
        NotFundusError: the frame is empty, black or of one colour.
        ValueError: `frame` is not uint8 [H, W, 3].
    """
    if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3:
        raise ValueError(f"got an array of {frame.dtype} {frame.shape}, expected uint8 [H, W, 3]")
    height, width = frame.shape[:2]
    if height == 0 or width == 0:
        raise NotFundusError(f"the frame is empty ({width} x {height} pixels); give a fundus photograph")
    small, step, start = _reduced(frame)
    _refuse_featureless(small)
    circle = _best_circle(small) or _circle_within_page(small)
    if circle is None:
        return FieldOfView(((width - 1) / 2, (height - 1) / 2), max(width, height) / 2, SIDES, False, 0.0)
    return _in_frame(circle, step, start, width, height)


def mirrored_view(view: FieldOfView, width: int) -> FieldOfView:
    """A field of view in the coordinates of the frame with left and right exchanged; `width` is the frame's, in pixels."""
    swapped = {"left": "right", "right": "left"}
    cut = tuple(swapped.get(side, side) for side in view.cut)
    return dataclasses.replace(view, center=(width - 1 - view.center[0], view.center[1]), cut=cut)


def _reduced(frame: _Image) -> tuple[_Image, int, float]:
    """A copy whose longer side is at most `_SIDE` pixels; how many pixels of the frame one of its pixels spans; where in
    the frame the centre of its first pixel lies (x and y alike).

    Means of 2 x 2 pixels, taken a stride apart: the whole of a large frame is never read.
    """
    height, width = frame.shape[:2]
    if max(height, width) <= _SIDE:
        return frame, 1, 0.0
    stride = -(-max(height, width) // (2 * _SIDE))
    first = stride // 2
    columns, rows = max(2, (width - first) // stride), max(2, (height - first) // stride)
    lines = frame[first::stride][:rows, first : first + columns * stride]
    taken = cv2.resize(lines, (columns, lines.shape[0]), interpolation=cv2.INTER_NEAREST)
    columns, rows = columns // 2, max(1, lines.shape[0] // 2)
    small = cv2.resize(taken[: 2 * rows, : 2 * columns], (columns, rows), interpolation=cv2.INTER_AREA)
    return np.asarray(small, np.uint8), 2 * stride, first + stride / 2


def _in_frame(circle: _Circle, step: int, start: float, width: int, height: int) -> FieldOfView:
    """The circle of the small copy in pixels of the frame, and the sides that cut it."""
    radius = circle.radius * step
    x, y = circle.x * step + start, circle.y * step + start
    slack = radius * (1 - _CUT_TOLERANCE)
    beyond = (y - slack < -0.5, y + slack > height - 0.5, x - slack < -0.5, x + slack > width - 0.5)
    cut = tuple(side for side, is_cut in zip(SIDES, beyond, strict=True) if is_cut)
    return FieldOfView((x, y), radius, cut, True, circle.confidence)


def _refuse_featureless(small: _Image) -> None:
    """Raise `NotFundusError` for a frame that is black or of one colour but for noise."""
    ranges = [cv2.minMaxLoc(plane)[:2] for plane in cv2.split(cv2.blur(small, (5, 5)))]
    contrast = max(high - low for low, high in ranges)
    if contrast >= _LEAST_CONTRAST:
        return
    color = "black" if max(high for _, high in ranges) < 32 else "of one colour"
    raise NotFundusError(
        f"the frame is {color}: its grey levels differ by {contrast:.0f} of 255, expected the bright disc of a "
        "fundus photograph; check the exposure and that this is the right file"
    )


def _best_circle(small: _Image) -> _Circle | None:
    """The circle that its rim confirms best, or None when no candidate is confirmed."""
    best: _Circle | None = None
    for distance, noise in _distances(small):
        for factor in (1.0, 2.5, 6.0):
            points = _outline(distance, noise * factor)
            circle = _consensus_circle(points, small.shape[1], small.shape[0])
            if circle is None:
                continue
            circle = _refined(circle, distance, noise)
            if circle is not None and (best is None or circle.score > best.score):
                best = circle
            if best is not None and best.score > 0.9:
                return best
    return best


def _circle_within_page(small: _Image) -> _Circle | None:
    """The circle in a whole frame, black surround included, that lies on a page of another colour; None without a page."""
    height, width = small.shape[:2]
    page = np.median(np.concatenate([small[0], small[-1], small[:, 0], small[:, -1]]), axis=0)
    mask = cv2.compare(_distance(small, page), 16.0, cv2.CMP_GT)
    left, top, columns, rows = cv2.boundingRect(mask)
    if min(columns, rows) < 32 or (columns >= width - 2 and rows >= height - 2):
        return None
    circle = _best_circle(np.ascontiguousarray(small[top + 1 : top + rows - 1, left + 1 : left + columns - 1]))
    if circle is None:
        return None
    return dataclasses.replace(circle, x=circle.x + left + 1, y=circle.y + top + 1)


def _distances(small: _Image) -> Iterator[tuple[_Image, float]]:
    """For each plausible colour of the surround: every pixel's distance from it, and the distance that noise reaches.

    The surround is the darkest part of the frame's margin (the usual black), or the colour that most of the corners
    share (white and grey pages). Distances are the largest of the three channels' differences, grey levels.
    """
    block = max(2, min(small.shape[:2]) // 16)
    corners = [
        small[rows, columns].reshape(-1, 3)
        for rows in (slice(block), slice(-block, None))
        for columns in (slice(block), slice(-block, None))
    ]
    sides = small[0], small[-1], small[:, 0], small[:, -1]
    margin = np.concatenate([*sides, *corners])
    value = np.maximum(np.maximum(margin[:, 0], margin[:, 1]), margin[:, 2])
    darkest = margin[value <= np.sort(value)[value.size // 10] + 6.0]
    dark = np.median(darkest, axis=0)
    yield _distance(small, dark), _noise(darkest, dark)
    middles = np.array([np.median(corner, axis=0) for corner in corners])
    page = np.median(middles, axis=0)
    alike = [corner for corner, middle in zip(corners, middles, strict=True) if np.abs(middle - page).max() <= 12]
    if len(alike) >= 2 and np.abs(page - dark).max() > 16:
        yield _distance(small, page), _noise(np.concatenate(alike), page)


def _distance(small: _Image, color: NDArray[Any]) -> _Image:
    """The largest of the three channels' differences from a colour, uint8 [H, W], single odd pixels removed."""
    planes = [cv2.absdiff(plane, float(level)) for plane, level in zip(cv2.split(small), color, strict=True)]
    return np.asarray(cv2.medianBlur(cv2.max(cv2.max(planes[0], planes[1]), planes[2]), 3), np.uint8)


def _noise(pixels: _Image, color: NDArray[Any]) -> float:
    """The distance from `color` that almost all pixels of the surround keep, at least 4 grey levels."""
    return max(4.0, min(24.0, 1.5 * float(np.sort(np.abs(pixels - color).max(axis=1))[len(pixels) * 9 // 10])))


def _outline(distance: _Image, threshold: float) -> _Floats:
    """Outline of the largest thing that differs from the surround, float32 [points, 2] (x, y), without the frame's sides.

    Thin things (burnt-in text, scale bars) are opened away. Of each row and each column the first and the last pixel are
    taken: dark parts inside the field do not matter.
    """
    mask = cv2.compare(distance, threshold, cv2.CMP_GT)
    mask = cv2.morphologyEx(mask, cv2.MORPH_OPEN, np.ones((5, 5), np.uint8))
    contours = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)[0]
    if not contours:
        return np.empty((0, 2), np.float32)
    largest = max(contours, key=lambda contour: cv2.contourArea(contour))
    left, top, columns, rows = cv2.boundingRect(largest)
    field = np.zeros((rows, columns), np.uint8)
    cv2.drawContours(field, [largest], 0, 1, cv2.FILLED, offset=(-left, -top))
    height, width = mask.shape
    x_y = _ends_of_rows(field, left, width) + np.array([left, top], np.float32)
    y_x = _ends_of_rows(np.asarray(cv2.transpose(field), np.uint8), top, height) + np.array([top, left], np.float32)
    return np.concatenate([x_y, y_x[:, ::-1]])


def _ends_of_rows(field: _Image, offset: int, length: int) -> _Floats:
    """Where each row of a mask without empty rows begins and ends, float32 [points, 2] (place in the row, row).

    Ends that lie at the sides of the frame are left out: `offset` is the place of the mask's first column in rows of `length`.
    """
    first = field.argmax(axis=1)
    last = field.shape[1] - 1 - np.ascontiguousarray(field[:, ::-1]).argmax(axis=1)
    begins, ends = np.flatnonzero(first + offset > 1), np.flatnonzero(last + offset < length - 2)
    along = np.concatenate([first[begins] - 0.5, last[ends] + 0.5])
    return np.stack([along, np.concatenate([begins, ends])], axis=1).astype(np.float32)


def _consensus_circle(points: _Floats, width: int, height: int) -> _Circle | None:
    """The circle through three of the points that lies near most of them (RANSAC, Fischler and Bolles 1981).

    The choice of triples is fixed, so that a frame always gets the same answer.
    """
    if len(points) < 24:
        return None
    rng = np.random.default_rng(0)
    triples = points[rng.integers(len(points), size=(_TRIPLES, 3))].astype(np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        centers, radii = _circles_through(triples)
    sides = np.array([width, height])
    usable = np.isfinite(radii) & (radii > 0.06 * sides.min()) & (radii < 0.8 * sides.max())
    usable &= ((centers > -0.1 * sides) & (centers < 1.1 * sides)).all(axis=1)
    if not usable.any():
        return None
    centers, radii = centers[usable].astype(np.float32), radii[usable].astype(np.float32)
    some = points[:: max(1, len(points) // 120)]
    squares = (some[:, 0] - centers[:, :1]) ** 2 + (some[:, 1] - centers[:, 1:]) ** 2
    slack = 2 * radii * (1.0 + 0.008 * radii)
    near = np.count_nonzero(np.abs(squares - radii[:, None] ** 2) < slack[:, None], axis=1)
    best = int(np.argmax(near))
    if near[best] < 10:
        return None
    return _Circle(float(centers[best, 0]), float(centers[best, 1]), float(radii[best]))


def _circles_through(triples: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Centres [n, 2] and radii [n] of the circles through n triples of points [n, 3, 2]; infinite where on one line."""
    origin = triples[:, 0]
    b, c = (triples[:, 1] - origin).T, (triples[:, 2] - origin).T
    twice_area = 2 * (b[0] * c[1] - b[1] * c[0])
    bb, cc = (b**2).sum(axis=0), (c**2).sum(axis=0)
    offset = np.stack([c[1] * bb - b[1] * cc, b[0] * cc - c[0] * bb]) / twice_area
    return origin + offset.T, np.hypot(*offset)


def _refined(circle: _Circle, distance: _Image, noise: float) -> _Circle | None:
    """The circle through the steepest falls of `distance` along radii near a candidate, judged; None when not confirmed."""
    angles, edges, _, strong, _ = _rim(circle, distance, noise)
    if np.count_nonzero(strong) < 0.06 * _ANGLES:
        return None
    circle = _fit(circle, angles[strong], edges[strong])
    _, edges, falls, strong, outside = _rim(circle, distance, noise)
    confirmed = strong & (np.abs(edges) < np.maximum(0.02, 1.0 / circle.radius))
    visible = np.isfinite(outside)
    contradicted = visible & ~confirmed & (outside > 2 * noise)
    seen, unlike, all_visible = (int(np.count_nonzero(which)) for which in (confirmed, contradicted, visible))
    if seen < 0.08 * _ANGLES or seen < 1.5 * unlike:
        return None
    share = min(1.0, seen / max(1, all_visible))
    gap = float(np.diff(np.flatnonzero(np.concatenate([confirmed, confirmed]))).max()) / _ANGLES
    if gap > 0.85 or (gap > 0.75 and share < 0.8):  # too short an arc to be sure of a circle
        return None
    if share < 0.6 and (noise > 10 or _purity(circle, distance, noise) < 0.9):
        return None
    bright = float(np.sort(distance[::8, ::8], axis=None)[-(distance[::8, ::8].size // 8) - 1])
    clear = min(1.0, float(np.median(falls[confirmed])) / (_CLEAR_STEP * max(1.0, bright)))
    score = clear * (share - unlike / max(1, all_visible))
    return _Circle(circle.x, circle.y, circle.radius, score, share)


def _purity(circle: _Circle, distance: _Image, noise: float) -> float:
    """Share of the pixels outside of the circle that have the surround's colour, 0 where there are none."""
    y, x = np.ogrid[: distance.shape[0], : distance.shape[1]]
    outside = distance[(x - circle.x) ** 2 + (y - circle.y) ** 2 > (1.04 * circle.radius) ** 2]
    return float(np.count_nonzero(outside <= 2 * noise) / max(1, outside.size))


def _rim(circle: _Circle, distance: _Image, noise: float) -> tuple[_Floats, _Floats, _Floats, NDArray[np.bool_], _Floats]:
    """Where the field ends along each radius.

    Returns:
        Five arrays [_ANGLES]: the angles; the place of the steepest fall, as a share of the radius from the circle; the fall,
        grey levels; whether it is a sharp step from field to surround; the distance from the surround's colour just outside
        the circle, NaN where that is outside the frame.
    """
    angles = np.linspace(0, 2 * np.pi, _ANGLES, endpoint=False, dtype=np.float32)
    shares = np.linspace(-_REACH, _REACH, _STEPS, dtype=np.float32)
    lengths = circle.radius * (1 + shares)
    x = circle.x + np.cos(angles)[:, None] * lengths
    y = circle.y + np.sin(angles)[:, None] * lengths
    samples = cv2.remap(distance, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE).astype(np.float32)
    height, width = distance.shape
    inside = (x > -0.5) & (x < width - 0.5) & (y > -0.5) & (y < height - 0.5)
    samples[~inside] = np.nan
    sums = np.cumsum(samples, axis=1)  # NaN from the frame's side outwards: nothing is looked for there
    window = 4
    means = (sums[:, window:] - sums[:, :-window]) / window
    falls = means[:, : -window - 1] - means[:, window + 1 :]
    falls[np.isnan(falls)] = -1.0
    best = falls.argmax(axis=1)
    rows = np.arange(_ANGLES)
    fall = falls[rows, best]
    around = [falls[rows, np.clip(best + i, 0, falls.shape[1] - 1)] for i in (-1, 1)]
    bend = around[0] + around[1] - 2 * fall
    peak = np.where(bend < 0, (around[0] - around[1]) / np.where(bend < 0, 2 * bend, 1), 0)
    first = window + 1
    edges = shares[0] + (best + first + np.clip(peak, -0.5, 0.5)) * (shares[1] - shares[0])
    ends = samples[:, :6].mean(axis=1) - np.nan_to_num(samples[:, -6:].mean(axis=1))
    strong = (fall > max(3.0, 0.75 * noise)) & (fall > 0.3 * ends) & (best > 0) & (best < falls.shape[1] - 1)
    outside = samples[:, _STEPS // 2 + 6 : _STEPS // 2 + 10].mean(axis=1)
    return angles, edges.astype(np.float32), fall, strong, outside


def _fit(circle: _Circle, angles: _Floats, edges: _Floats) -> _Circle:
    """Least-squares circle through rim points, outliers down-weighted with Tukey's biweight (Gauss-Newton steps)."""
    x, y, radius = circle.x, circle.y, circle.radius
    px = x + np.cos(angles) * radius * (1 + edges)
    py = y + np.sin(angles) * radius * (1 + edges)
    for _ in range(3):
        dx, dy = px - x, py - y
        lengths = np.maximum(np.hypot(dx, dy), 1e-6)
        residuals = lengths - radius
        spread = max(0.3, 1.4826 * float(np.median(np.abs(residuals))))
        weights = np.clip(1 - (residuals / (4.685 * spread)) ** 2, 0, None) ** 2
        design = np.stack([dx / lengths, dy / lengths, np.ones_like(lengths)], axis=1)
        normal = design.T @ (design * weights[:, None]) + 1e-6 * np.eye(3)
        step = np.linalg.solve(normal, design.T @ (weights * residuals))
        x, y, radius = x + float(step[0]), y + float(step[1]), radius + float(step[2])
    return _Circle(x, y, max(1.0, radius))
