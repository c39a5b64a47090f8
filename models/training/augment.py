"""Training samples for the acquisition network, drawn from a few hundred photographs of one camera.

One sample is one virtual camera (views.py) with its own look (colour.py), possibly degraded, or no fundus photograph
at all (negatives.py). `sample` returns the network's input and the targets of all its heads.
"""

from dataclasses import dataclass

import cv2
import numpy as np
from colour import random_look, random_marks
from negatives import random_negative
from views import UNSEEN, crop_position, eye_class, is_rendered, random_aperture, random_view, rendered

from fundus_rt.benchmarks.degradation import COMBINATIONS, degrade

SIZE = 224

# Views are rendered, degraded and compressed at one of these sizes before the reduction to SIZE.
WORKING_SIZES = (300, 336, 376)

# For the quality network: larger, for fine blur; and the least radius of a view, in units of the photograph's.
QUALITY_SIZES = (360, 424)
NARROWEST_QUALITY_VIEW = 0.7

CLEAN, DEGRADED, HARSH, NEGATIVE = range(4)
SHARES = (0.42, 0.34, 0.13, 0.11)


@dataclass
class Sample:
    """One training sample.

    frame: uint8 [SIZE, SIZE, 3], BGR. eye: class index of views.py.
    disc, fovea: (x, y) in the crop, fractions 0..1, or None where not in the picture.
    clean: 1 undegraded, 0 degraded, -1 neither (not learned from). fundus: 1 or 0.
    """

    frame: np.ndarray
    eye: int
    disc: np.ndarray | None
    fovea: np.ndarray | None
    clean: int
    fundus: int


def sample(photographs, scenes, rng, kind=None):
    """Return one random `Sample`. kind: CLEAN, DEGRADED, HARSH or NEGATIVE; drawn by SHARES if None."""
    photograph = photographs[int(rng.integers(len(photographs)))]
    kind = int(rng.choice(4, p=SHARES)) if kind is None else kind
    view = random_view(photograph, rng)
    mask = random_aperture(view, SIZE, rng)
    frame = rendered(photograph, view, int(rng.choice(WORKING_SIZES)))
    if kind == NEGATIVE:
        return _negative_sample(frame, scenes, rng)
    disc, disc_seen = _placed(photograph.disc, view, mask)
    fovea, fovea_seen = _placed(photograph.fovea, view, mask)
    eye = eye_class(photograph, view, disc_seen or fovea_seen)
    if kind == DEGRADED:
        # A hard mask: a soft one, applied again by each degradation, would darken the rim and give them away.
        aperture = (cv2.resize(mask, frame.shape[:2], interpolation=cv2.INTER_LINEAR) > 0.0).astype(np.float32)
        levels = frame.astype(np.float32) * (aperture / np.float32(255.0))[..., None]
        mixture = COMBINATIONS[int(rng.integers(len(COMBINATIONS)))]
        frame = (degrade(levels, aperture, mixture, rng) * 255.0 + 0.5).astype(np.uint8)
    if rng.random() < 0.4:
        frame = _recompressed(frame, rng)
    small = cv2.resize(frame, (SIZE, SIZE), interpolation=cv2.INTER_AREA).astype(np.float32) / 255.0
    points = [p for p, seen in ((disc, disc_seen), (fovea, fovea_seen)) if seen]
    small = random_marks(small, mask, points, rng)
    small = random_look(small, mask, rng)
    readable = True
    if kind == HARSH:
        small, readable = _harshly_taken(small, rng)
    small = _framed(small, mask, rng)
    return Sample(
        frame=np.ascontiguousarray(_to_bytes(small, rng)[..., ::-1]),
        eye=eye if readable else UNSEEN,
        disc=(disc + 1.0) / 2.0 if disc_seen and readable else None,
        fovea=(fovea + 1.0) / 2.0 if fovea_seen and readable else None,
        clean={CLEAN: 1, DEGRADED: 0, HARSH: -1 if readable else 0}[kind],
        fundus=1,
    )


def quality_pair(photographs, rng, blur_share=0.0):
    """Return (clean, degraded): the same view in the same look, uint8 [SIZE, SIZE, 3] BGR each.

    blur_share: chance of blur alone, the hardest to see; otherwise all seven mixtures are drawn evenly.
    Pairs leave nothing but the degradation to be learned. Here the look comes first, as where a finished photograph is
    degraded, and narrow views, which are soft in themselves, are left out.
    """
    photograph = photographs[int(rng.integers(len(photographs)))]
    view = random_view(photograph, rng)
    while abs(np.linalg.det(view.matrix)) < NARROWEST_QUALITY_VIEW**2:
        view = random_view(photograph, rng)
    size = int(rng.choice(QUALITY_SIZES))
    mask = random_aperture(view, size, rng)
    levels = rendered(photograph, view, size).astype(np.float32) / np.float32(255.0)
    if rng.random() < 0.3:
        levels = random_marks(levels, mask, [], rng)
    hard = (mask > 0.0).astype(np.float32)
    levels = random_look(levels, mask, rng, strength=rng.uniform(0.2, 0.8)) * hard[..., None]
    mixture = ("blur",) if rng.random() < blur_share else COMBINATIONS[int(rng.integers(len(COMBINATIONS)))]
    frames = [levels, degrade(levels, hard, mixture, rng)]
    small = [cv2.resize(frame, (SIZE, SIZE), interpolation=cv2.INTER_AREA) for frame in frames]
    mask = cv2.resize(mask, (SIZE, SIZE), interpolation=cv2.INTER_AREA)
    seed = int(rng.integers(2**31))
    framed = [_framed(frame, mask, np.random.default_rng(seed)) for frame in small]
    quiet = rng.random() < 0.7
    noise = 0.0 if quiet else np.float32(rng.uniform(0.002, 0.01)) * rng.standard_normal(small[0].shape, np.float32)
    return [((np.clip(frame + noise, 0.0, 1.0) * 255.0 + 0.5).astype(np.uint8))[..., ::-1] for frame in framed]


def _placed(point, view, aperture):
    """Return (crop position float [2], whether the view and its aperture show it)."""
    place = crop_position(point, view)
    pixel = np.floor((place + 1.0) / 2.0 * aperture.shape[0]).astype(int)
    inside = is_rendered(point, view) and (pixel >= 0).all() and (pixel < aperture.shape[0]).all()
    return place, bool(inside and aperture[pixel[1], pixel[0]] > 0.5)


def _negative_sample(retina, scenes, rng):
    picture = random_negative(SIZE, rng, scenes, cv2.resize(retina, (SIZE, SIZE), interpolation=cv2.INTER_AREA))
    levels = picture.astype(np.float32) / 255.0
    if rng.random() < 0.3:
        levels = random_look(levels, np.ones((SIZE, SIZE), np.float32), rng)
    frame = np.ascontiguousarray(_to_bytes(levels, rng)[..., ::-1])
    return Sample(frame, UNSEEN, None, None, -1, 0)


def _recompressed(frame, rng):
    """Return the frame after a JPEG round trip; the working size is small, so the quality stays above 60."""
    quality = [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(60, 98))]
    return cv2.imdecode(cv2.imencode(".jpg", frame, quality)[1], cv2.IMREAD_COLOR)


def _harshly_taken(frame, rng):
    """Return (frame, readable): strong blur, dark, veiled, coarse or noisy; beyond reading in one case of four."""
    lost = rng.random() < 0.25
    draw = int(rng.integers(5))
    if draw == 0:
        sigma = rng.uniform(9.0, 25.0) if lost else rng.uniform(0.5, 2.5)
        frame = cv2.GaussianBlur(frame, (0, 0), sigma)
    elif draw == 1:
        gain = rng.uniform(0.0, 0.03) if lost else rng.uniform(0.12, 0.5)
        frame = frame * gain + rng.normal(0.0, 0.01, frame.shape)
    elif draw == 2:
        share = rng.uniform(0.92, 1.0) if lost else rng.uniform(0.3, 0.6)
        frame = frame * (1.0 - share) + share * rng.uniform(0.3, 0.9) * rng.uniform(0.6, 1.0, 3)
    elif draw == 3:
        cells = int(rng.integers(6, 12)) if lost else int(rng.integers(60, 160))
        coarse = cv2.resize(frame, (cells, cells), interpolation=cv2.INTER_AREA)
        frame = cv2.resize(coarse, (SIZE, SIZE), interpolation=int(rng.choice([0, 1, 2])))
    else:
        spread = rng.uniform(0.7, 1.5) if lost else rng.uniform(0.03, 0.12)
        frame = frame + rng.normal(0.0, spread, frame.shape)
    if not lost and rng.random() < 0.3:
        frame = _randomly_filtered(frame, rng)
    return np.clip(frame, 0.0, 1.0).astype(np.float32), not lost


def _randomly_filtered(frame, rng):
    """Pass the frame through a random 3 x 3 colour convolution and stretch it back to 0..1 (RandConv, Xu et al. 2021)."""
    result = np.zeros_like(frame)
    for channel in range(3):
        for source in range(3):
            result[..., channel] += cv2.filter2D(frame[..., source], -1, rng.normal(0.0, 1.0, (3, 3)).astype(np.float32))
    low, high = np.percentile(result, (1, 99))
    share = np.float32(rng.uniform(0.3, 1.0))
    return (1.0 - share) * frame + share * np.clip((result - low) / max(1e-3, high - low), 0.0, 1.0)


def _framed(frame, mask, rng):
    """Return the frame in its surround (black, nearly black, grey or white), at times with burnt-in text."""
    draw = rng.random()
    if draw < 0.75:
        surround = np.float32(0.0)
    elif draw < 0.95:
        surround = np.float32(rng.uniform(0.0, 0.07)) * rng.uniform(0.5, 1.0, 3).astype(np.float32)
    else:
        surround = np.float32(rng.uniform(0.1, 1.0))
    frame = frame * mask[..., None] + surround * (1.0 - mask[..., None])
    if rng.random() < 0.08:
        place = (int(rng.integers(0, SIZE - 30)), int(rng.choice([rng.integers(8, 30), rng.integers(SIZE - 20, SIZE)])))
        text = "".join("0123456789 :/-ABC"[int(i)] for i in rng.integers(0, 17, int(rng.integers(3, 14))))
        layer = np.zeros((SIZE, SIZE), np.uint8)
        cv2.putText(layer, text, place, cv2.FONT_HERSHEY_SIMPLEX, float(rng.uniform(0.25, 0.6)), 255, 1, cv2.LINE_AA)
        ink = layer[..., None].astype(np.float32) / 255.0
        frame = frame * (1.0 - ink) + np.float32(rng.uniform(0.5, 1.0)) * ink
    return frame


def _to_bytes(frame, rng):
    """Return uint8 [SIZE, SIZE, 3], now and then with sensor noise."""
    if rng.random() < 0.3:
        frame = frame + np.float32(rng.uniform(0.002, 0.02)) * rng.standard_normal(frame.shape, np.float32)
    return (np.clip(frame, 0.0, 1.0) * 255.0 + 0.5).astype(np.uint8)
