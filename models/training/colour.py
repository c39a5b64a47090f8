"""Looks of cameras, films and software: what may change in a fundus photograph without changing what it shows.

All functions take and return float32 [H, W, 3] RGB in 0..1 and draw from a numpy.random.Generator. The ranges are wide
on purpose: one camera is at hand for training and any other may come.
"""

import cv2
import numpy as np

LUMA = np.array([0.299, 0.587, 0.114], np.float32)


def random_look(frame, mask, rng, strength=1.0):
    """Return the frame as another camera might show it. mask: float32 [H, W]; strength: 0 (none) to 1."""
    if rng.random() < 0.85:
        frame = _with_palette(frame, mask, rng, strength)
    for chance, change in (
        (0.5, _with_contrast),
        (0.35, _with_saturation),
        (0.12, _with_mixed_channels),
        (0.06, _grey),
        (0.08, _locally_equalised),
        (0.04, _background_subtracted),
        (0.25, _sharpened),
        (0.45, _shaded),
        (0.2, _hazy),
        (0.2, _mottled),
        (0.06, _inverted_tint),
    ):
        if rng.random() < chance * strength:
            frame = change(frame, mask, rng)
    return np.clip(frame, 0.0, 1.0)


def _inside(frame, mask):
    """Return the mean of each channel inside the mask: float32 [3]."""
    weights = mask.ravel()
    return weights @ frame.reshape(-1, 3) / np.float32(max(1.0, float(weights.sum())))


def _with_palette(frame, mask, rng, strength):
    """Move each channel's mean to a drawn target, by part gain and part gamma."""
    now = np.clip(_inside(frame, mask), 0.02, 0.98)
    red = rng.uniform(0.25, 0.85)
    green = red * rng.uniform(0.22, 0.95)
    blue = green * rng.uniform(0.08, 1.0) if rng.random() < 0.85 else red * rng.uniform(0.5, 1.1)
    target = np.clip(now + strength * (np.array([red, green, blue]) - now), 0.02, 0.95)
    halfway = now * (target / now) ** rng.uniform(0.0, 0.7)
    frame = np.clip(frame * (halfway / now).astype(np.float32), 0.0, 1.0)
    gamma = np.clip(np.log(target) / np.log(np.clip(halfway, 0.02, 0.98)), 0.4, 2.5)
    levels = np.linspace(0.0, 1.0, 256, dtype=np.float32)
    table = (levels[:, None] ** gamma.astype(np.float32)).astype(np.float32)
    index = (frame * 255.0).astype(np.uint8)
    return np.stack([table[index[..., c], c] for c in range(3)], axis=2)


def _with_contrast(frame, mask, rng):
    level = _inside(frame, mask)
    factor = np.exp(rng.normal(0.0, 0.3) + rng.normal(0.0, 0.12, 3)).astype(np.float32)
    return np.clip(level + (frame - level) * factor, 0.0, 1.0)


def _with_saturation(frame, mask, rng):
    grey = (frame @ LUMA)[..., None]
    return np.clip(grey + (frame - grey) * np.float32(rng.uniform(0.2, 1.6)), 0.0, 1.0)


def _with_mixed_channels(frame, mask, rng):
    matrix = np.eye(3) + rng.normal(0.0, 0.2, (3, 3))
    return np.clip(frame @ matrix.astype(np.float32), 0.0, 1.0)


def _grey(frame, mask, rng):
    """One channel or the luminance in all three, as red-free photographs are stored."""
    weight = LUMA if rng.random() < 0.5 else np.eye(3, dtype=np.float32)[int(rng.integers(2))]
    return np.repeat((frame @ weight)[..., None], 3, axis=2)


def _locally_equalised(frame, mask, rng):
    lab = cv2.cvtColor((np.clip(frame, 0, 1) * 255).astype(np.uint8), cv2.COLOR_RGB2LAB)
    lab[..., 0] = cv2.createCLAHE(rng.uniform(1.0, 4.0), (8, 8)).apply(lab[..., 0])
    return cv2.cvtColor(lab, cv2.COLOR_LAB2RGB).astype(np.float32) / 255.0


def _background_subtracted(frame, mask, rng):
    """Ben Graham's competition preprocessing: four times the difference from a blurred copy, around grey."""
    smooth = cv2.GaussianBlur(frame, (0, 0), rng.uniform(0.02, 0.06) * frame.shape[0])
    return np.clip(rng.uniform(2.0, 4.0) * (frame - smooth) + 0.5, 0.0, 1.0).astype(np.float32)


def _sharpened(frame, mask, rng):
    smooth = cv2.GaussianBlur(frame, (0, 0), rng.uniform(0.7, 2.0))
    return np.clip(frame + np.float32(rng.uniform(0.2, 1.2)) * (frame - smooth), 0.0, 1.0)


def smooth_field(size, rng, cells=4):
    """Return a smooth random field, float32 [size, size], about -1..1."""
    return cv2.resize(rng.normal(0.0, 0.5, (cells, cells)).astype(np.float32), (size, size), interpolation=cv2.INTER_CUBIC)


def _shaded(frame, mask, rng):
    """Vignetting and a gentle, smooth unevenness of the light."""
    size = frame.shape[0]
    line = np.linspace(-1.0, 1.0, size, dtype=np.float32)
    distance = line[None, :] ** 2 + line[:, None] ** 2
    light = 1.0 - np.float32(rng.uniform(-0.1, 0.5)) * distance
    light = light * (1.0 + np.float32(rng.uniform(0.0, 0.3)) * smooth_field(size, rng, int(rng.integers(2, 5))))
    return np.clip(frame * light[..., None], 0.0, 1.0)


def _mottled(frame, mask, rng):
    """A texture as pigment and choroidal vessels give: patches with edges, mostly in red and green."""
    field = smooth_field(frame.shape[0], rng, int(rng.integers(8, 36)))
    if rng.random() < 0.5:
        field = 0.5 - 2.0 * np.abs(field)
    weight = np.float32(rng.uniform(0.03, 0.16)) * rng.uniform(0.3, 1.0, 3).astype(np.float32)
    return np.clip(frame * (1.0 + field[..., None] * weight), 0.0, 1.0)


def _hazy(frame, mask, rng):
    """A veil of light, as a cataract or a small pupil gives, of one tint."""
    share = np.float32(rng.uniform(0.0, 0.35))
    tint = np.float32(rng.uniform(0.3, 0.8)) * rng.uniform(0.5, 1.0, 3).astype(np.float32)
    return frame * (1.0 - share) + share * tint


def _inverted_tint(frame, mask, rng):
    """Exchange two channels: colours no camera gives, which keep the network from relying on any."""
    order = [(1, 0, 2), (2, 1, 0), (0, 2, 1)][int(rng.integers(3))]
    return np.ascontiguousarray(frame[..., order])


def random_marks(frame, mask, points, rng):
    """Return the frame with random bright and dark patches, lesions, and weaker or stronger landmarks.

    points: list of crop positions (-1..1) of disc and fovea, float [2] each.
    """
    size = frame.shape[0]
    line = (np.arange(size, dtype=np.float32) + 0.5) / size * 2.0 - 1.0
    change = np.zeros((size, size), np.float32)
    for point in points:
        if rng.random() < 0.35:
            change += rng.uniform(-0.4, 0.25) * _blob(line, point, rng.uniform(0.06, 0.2), 1.0)
    if rng.random() < 0.35:
        for _ in range(int(rng.integers(1, 4))):
            place, reach, ratio = rng.uniform(-0.9, 0.9, 2), rng.uniform(0.05, 0.35), rng.uniform(0.5, 2.0)
            change += rng.normal(0.0, 0.25) * _blob(line, place, reach, ratio)
    frame = frame * np.clip(1.0 + change, 0.2, 2.0)[..., None]
    if rng.random() < 0.2:
        frame = _with_lesions(frame, line, rng)
    if rng.random() < 0.15:
        frame = _erased(frame, points, rng)
    return np.clip(frame, 0.0, 1.0)


def _blob(line, point, reach, ratio):
    """Return an axis-parallel Gaussian bump of height 1, float32 [size, size]."""
    x = np.exp(-0.5 * ((line - np.float32(point[0])) / np.float32(reach)) ** 2)
    y = np.exp(-0.5 * ((line - np.float32(point[1])) / np.float32(reach * ratio)) ** 2)
    return y[:, None] * x[None, :]


def _with_lesions(frame, line, rng):
    """Clusters of small spots, all bright (drusen, exudates, laser scars) or all dark (haemorrhages)."""
    bright = rng.random() < 0.5
    colour = np.array([0.95, 0.85, 0.5] if bright else [0.3, 0.05, 0.03], np.float32)
    layer = np.zeros(frame.shape[:2], np.float32)
    center = rng.uniform(-0.6, 0.6, 2)
    for _ in range(int(rng.integers(3, 25))):
        spot = center + rng.normal(0.0, rng.uniform(0.1, 0.5), 2)
        x, y = (np.clip((spot + 1.0) / 2.0, 0, 1) * frame.shape[0]).astype(int)
        axes = (int(rng.integers(1, 7)), int(rng.integers(1, 7)))
        cv2.ellipse(layer, (int(x), int(y)), axes, float(rng.uniform(0, 180)), 0, 360, float(rng.uniform(0.2, 0.8)), -1)
    layer = cv2.GaussianBlur(layer, (0, 0), rng.uniform(0.4, 1.2))[..., None]
    return frame * (1.0 - layer) + layer * colour


def _erased(frame, points, rng):
    """Cover one region, sometimes a landmark, with its own mean colour, black, or noise."""
    size = frame.shape[0]
    half = rng.uniform(0.05, 0.3, 2)
    center = points[int(rng.integers(len(points)))] if points and rng.random() < 0.4 else rng.uniform(-0.8, 0.8, 2)
    low = np.clip(((center - half + 1.0) / 2.0 * size), 0, size - 2).astype(int)
    high = np.clip(((center + half + 1.0) / 2.0 * size), low + 1, size).astype(int)
    region = frame[low[1] : high[1], low[0] : high[0]]
    draw = rng.random()
    if draw < 0.5:
        filling = region.mean((0, 1))
    elif draw < 0.75:
        filling = np.float32(rng.uniform(0.0, 0.1))
    else:
        filling = np.clip(region.mean((0, 1)) + rng.normal(0.0, 0.15, region.shape), 0, 1)
    frame = frame.copy()
    frame[low[1] : high[1], low[0] : high[0]] = filling
    return frame
