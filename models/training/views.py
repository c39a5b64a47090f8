"""Virtual cameras: where a training sample looks inside a photograph, and through which aperture.

Coordinates. A photograph's *retina coordinates* have their origin at the centre of its field of view and its radius as
unit; x goes right, y down. A *camera* has its own unit circle, somewhere in retina coordinates. The network's *crop*
runs from -1 to 1 in both directions and covers the camera's circle up to the inaccuracy of a field-of-view finder.
"""

from dataclasses import dataclass

import cv2
import numpy as np

# What lies beyond these limits of a photograph was not recorded (or shows the camera's own notch) and is filled with
# a mirrored, stretched continuation; the values suit IDRiD, whose circle is cut at 0.83 at the top and the bottom.
CIRCLE_LIMIT = 0.96
CUT_LIMIT = 0.82

# The continuation reaches back this far only, so that it never shows a second optic disc.
FOLD_REACH = 0.15

# Eye classes of the network's own head; `eye` sums them to left, right, unknown.
LEFT, RIGHT, LEFT_INVERTED, RIGHT_INVERTED, SIDEWAYS, UNSEEN = range(6)

UPRIGHT_LIMIT = 30.0
INVERTED_LIMIT = 140.0


@dataclass
class Photograph:
    """One training photograph.

    frame: uint8 [H, W, 3], RGB. center: (x, y) of the field of view, pixels. radius: pixels.
    disc, fovea: (x, y) in retina coordinates. eye: LEFT or RIGHT. name: the file's name.
    """

    name: str
    frame: np.ndarray
    center: tuple
    radius: float
    disc: np.ndarray
    fovea: np.ndarray
    eye: int


@dataclass
class View:
    """A virtual camera: p (camera) = (u (crop) * scale + shift); q (retina) = center + matrix @ p.

    matrix: float [2, 2], holding radius, rotation, anisotropy and mirroring. rotation: degrees, -180..180.
    fold: None or (normal float [2], offset): the retina beyond that line is replaced by a mirrored continuation.
    """

    center: np.ndarray
    matrix: np.ndarray
    rotation: float
    mirrored: bool
    scale: float
    shift: np.ndarray
    fold: tuple | None
    bend: np.ndarray


def random_rotation(rng):
    """Return degrees: mostly a few, some up to 30, some upside down, some sideways; never 30..42 (ambiguous)."""
    draw = rng.random()
    if draw < 0.62:
        angle = np.clip(rng.normal(0.0, 6.0), -29.0, 29.0)
    elif draw < 0.76:
        angle = rng.uniform(-UPRIGHT_LIMIT, UPRIGHT_LIMIT)
    elif draw < 0.87:
        angle = 180.0 + np.clip(rng.normal(0.0, 7.0), -39.0, 39.0)
    elif draw < 0.92:
        angle = 180.0 + rng.uniform(-40.0, 40.0)
    else:
        angle = rng.choice([-1.0, 1.0]) * rng.uniform(42.0, 140.0)
    return (angle + 180.0) % 360.0 - 180.0


def random_view(photograph, rng):
    """Return a `View` of the photograph: usual, wide, disc-centred, macula-centred or in between."""
    disc, fovea = photograph.disc, photograph.fovea
    temporal = (fovea - disc) / np.linalg.norm(fovea - disc)
    draw = rng.random()
    fold_chance, fold_direction = 0.1, rng.normal(size=2)
    if draw < 0.42:
        center, radius = rng.normal(0.0, 0.06, 2), rng.uniform(0.85, 1.03)
    elif draw < 0.57:
        center, radius = rng.normal(0.0, 0.05, 2), rng.uniform(1.03, 1.28)
    elif draw < 0.79:
        center, radius = disc + rng.normal(0.0, 0.1, 2), rng.uniform(0.5, 0.85)
        # A disc-centred view has its filled-in border on the nasal side. Without the same border on the temporal
        # side now and then, the border itself would tell the eye.
        fold_chance, fold_direction = 0.5, temporal + rng.normal(0.0, 0.3, 2)
    elif draw < 0.87:
        center, radius = fovea + rng.normal(0.0, 0.1, 2), rng.uniform(0.45, 0.85)
    else:
        center = fovea + rng.uniform(-0.4, 1.2) * (disc - fovea) + rng.normal(0.0, 0.12, 2)
        radius = rng.uniform(0.5, 0.95)
    rotation = random_rotation(rng)
    mirrored = bool(rng.random() < 0.5)
    angle = np.deg2rad(rotation)
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    stretch = np.diag(np.exp(rng.normal(0.0, 0.06, 2))) + np.diag(rng.normal(0.0, 0.03, 2))[::-1]
    mirror = np.diag([-1.0 if mirrored else 1.0, 1.0])
    fold = None
    if rng.random() < fold_chance:
        normal = fold_direction / np.linalg.norm(fold_direction)
        fold = (normal, float(normal @ center) + max(0.28, rng.uniform(0.35, 0.9) * radius))
    draw = rng.random()
    if draw < 0.66:
        scale, shift = rng.normal(1.04, 0.04), rng.normal(0.0, 0.02, 2)
    elif draw < 0.95:
        scale, shift = rng.uniform(0.85, 1.25), rng.uniform(-0.08, 0.08, 2)
    else:
        # What a finder gives that falls back to the whole of a wide frame.
        scale, shift = rng.uniform(1.25, 1.8), rng.uniform(-0.08, 0.08, 2)
    bend = rng.normal(0.0, 0.016, (5, 5, 2)).astype(np.float32)
    return View(center, radius * mirror @ stretch @ turn, rotation, mirrored, float(scale), shift, fold, bend)


def plain_view(rotation=0.0, scale=1.03):
    """Return the whole photograph as its own camera saw it, turned by `rotation` degrees."""
    angle = np.deg2rad(rotation)
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    still = np.zeros((5, 5, 2), np.float32)
    return View(np.zeros(2), 0.97 * turn, rotation, False, scale, np.zeros(2), None, still)


def crop_grid(size):
    """Return the crop coordinates of the pixel centres: float32 [size, size, 2], (x, y), -1..1."""
    line = (np.arange(size, dtype=np.float32) + 0.5) / size * 2.0 - 1.0
    return np.stack(np.meshgrid(line, line), axis=2)


def rendered(photograph, view, size):
    """Return the view without its aperture: uint8 [size, size, 3], RGB.

    The map is computed on a grid four times coarser, which its smoothness allows.
    """
    coarse = crop_grid(size // 4)
    p = coarse * np.float32(view.scale) + view.shift.astype(np.float32)
    q = p @ view.matrix.T.astype(np.float32) + view.center.astype(np.float32)
    q += cv2.resize(view.bend, (size // 4, size // 4), interpolation=cv2.INTER_CUBIC)
    if view.fold is not None:
        normal, offset = view.fold
        along = q @ normal.astype(np.float32)
        q += (_folded(along, np.float32(offset)) - along)[..., None] * normal.astype(np.float32)
    distance = np.maximum(np.hypot(q[..., 0], q[..., 1]), 1e-6)
    q *= (_folded(distance, CIRCLE_LIMIT) / distance)[..., None]
    q[..., 1] = np.sign(q[..., 1]) * _folded(np.abs(q[..., 1]), CUT_LIMIT)
    pixels = (q * photograph.radius + np.asarray(photograph.center, np.float32)).astype(np.float32)
    pixels = cv2.resize(pixels, (size, size), interpolation=cv2.INTER_LINEAR)
    return cv2.remap(photograph.frame, pixels, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)


def _folded(value, limit):
    """Return the values with those above the limit led back below it, ever more slowly, by at most FOLD_REACH."""
    back = FOLD_REACH * (1.0 - np.exp(-0.6 * np.maximum(value - limit, 0.0) / FOLD_REACH))
    return np.minimum(value, limit) - back


def crop_position(point, view):
    """Return where a point of the retina falls in the crop: float [2], -1..1 inside."""
    camera = np.linalg.solve(view.matrix, np.asarray(point) - view.center)
    return (camera - view.shift) / view.scale


def is_rendered(point, view):
    """Whether a point of the retina is on the recorded side of the view's fold, if it has one."""
    return view.fold is None or float(view.fold[0] @ point) < view.fold[1]


def eye_class(photograph, view, seen):
    """Return the class of the network's eye head; `seen`: whether disc or fovea is in the picture."""
    if not seen:
        return UNSEEN
    eye = photograph.eye if not view.mirrored else LEFT + RIGHT - photograph.eye
    turned = abs(view.rotation)
    if turned <= UPRIGHT_LIMIT:
        return eye
    if turned >= INVERTED_LIMIT:
        return eye + LEFT_INVERTED
    return SIDEWAYS


def random_aperture(view, size, rng):
    """Return the aperture float32 [size, size], 0..1, and the view's new scale and shift.

    Round, cut at two or four sides, or a rectangle inside the circle; with or without a notch. A rectangle is cropped
    to itself or to the circle around it, as a finder may do, and changes scale and shift: use before rendering.
    """
    draw = rng.random()
    left = top = right = bottom = 1.5
    if draw < 0.35:
        pass
    elif draw < 0.58:
        top = bottom = rng.uniform(0.7, 0.98)
        bottom = bottom if rng.random() < 0.7 else rng.uniform(0.7, 1.0)
    elif draw < 0.64:
        left, right = rng.uniform(0.75, 1.0, 2)
    elif draw < 0.80:
        left = right = top = bottom = rng.uniform(0.84, 0.99)
    else:
        half = rng.uniform(0.62, 0.8, 2) if rng.random() < 0.5 else np.full(2, rng.uniform(0.62, 0.85))
        left, right, top, bottom = half[0], half[0], half[1], half[1]
        reach = half.max() if rng.random() < 0.6 else min(1.0, float(np.hypot(*half)))
        view.scale, view.shift = float(reach * rng.uniform(0.97, 1.08)), rng.normal(0.0, 0.02, 2)
    p = crop_grid(size) * np.float32(view.scale) + view.shift.astype(np.float32)
    x, y = p[..., 0], p[..., 1]
    inside = 1.0 - np.hypot(x, y)
    if rng.random() < 0.35:
        inside = _with_notch(inside, x, y, rng)
    for edge in (left + x, right - x, top + y, bottom - y):
        inside = np.minimum(inside, edge)
    softness = rng.uniform(0.01, 0.02) if rng.random() < 0.8 else rng.uniform(0.02, 0.08)
    return np.clip(inside / softness + 0.5, 0.0, 1.0).astype(np.float32)


def _with_notch(inside, x, y, rng):
    """Return the signed distance to the rim with a small bump or bite at a random angle."""
    angle = rng.uniform(0.0, 2.0 * np.pi)
    reach = rng.uniform(0.03, 0.08)
    along = x * np.cos(angle) + y * np.sin(angle) - 1.0
    across = y * np.cos(angle) - x * np.sin(angle)
    square = rng.random() < 0.5
    shape = reach - (np.maximum(np.abs(along), np.abs(across)) if square else np.hypot(along, across))
    return np.maximum(inside, shape) if rng.random() < 0.7 else np.minimum(inside, -shape)
