"""Pictures that are not colour fundus photographs, drawn by rule, for the `fundus` output.

No collection of such pictures is bundled; the real non-fundus pictures the network meets are only as well covered as
this list: external eyes, natural scenes, documents, scans like OCT, noise, gradients, round things without a retina.
Every function returns uint8 [size, size, 3] RGB and draws from a numpy.random.Generator.
"""

import cv2
import numpy as np
from colour import smooth_field

SKIN = ((235, 200, 175), (205, 160, 130), (150, 105, 80), (95, 65, 50))


def random_negative(size, rng, scenes, retina):
    """Return a picture that is no fundus photograph.

    scenes: list of uint8 [H, W, 3] RGB photographs of other things (may be empty).
    retina: uint8 [size, size, 3], a fundus view, whose palette or pixels some kinds reuse.
    """
    kinds = [external_eye, external_eye, document, scan, noise, gradient, round_texture, scrambled, single_colour]
    if scenes:
        kinds += [scene, scene]
    picture = kinds[int(rng.integers(len(kinds)))](size, rng, scenes, retina)
    if rng.random() < 0.3:
        picture = _in_circle(picture, size, rng)
    return picture


def _colour(rng):
    return rng.uniform(0.0, 255.0, 3)


def _in_circle(picture, size, rng):
    mask = np.zeros((size, size), np.uint8)
    cv2.circle(mask, (size // 2, size // 2), int(size * rng.uniform(0.4, 0.52)), 1, -1)
    return picture * mask[..., None]


def external_eye(size, rng, scenes, retina):
    """An eye seen from outside: skin, lids, sclera, iris, pupil, highlights, lashes."""
    skin = np.array(SKIN[int(rng.integers(len(SKIN)))], np.float32) + rng.normal(0, 12, 3)
    picture = np.ones((size, size, 3), np.float32) * skin
    picture += 18.0 * smooth_field(size, rng, 5)[..., None]
    zoom = rng.uniform(0.5, 2.2)
    center = (size * rng.uniform(0.35, 0.65), size * rng.uniform(0.35, 0.65))
    width, height = size * 0.42 * zoom, size * rng.uniform(0.14, 0.26) * zoom
    iris_radius = height * rng.uniform(0.8, 1.1)
    tilt = rng.uniform(-15.0, 15.0)
    sclera = np.zeros((size, size), np.float32)
    cv2.ellipse(sclera, _point(center), _point((width, height)), tilt, 0, 360, 1.0, -1)
    eye = np.ones((size, size, 3), np.float32) * (np.array([225, 215, 210]) + rng.normal(0, 12, 3))
    for _ in range(int(rng.integers(0, 20))):
        start = (rng.uniform(0, size), rng.uniform(0, size))
        cv2.line(eye, _point(start), _point(np.add(start, rng.normal(0, 20, 2))), (200, 120, 110), 1, cv2.LINE_AA)
    middle = (center[0] + rng.normal(0, 0.15) * width, center[1])
    iris = [(60, 40, 25), (110, 75, 45), (80, 110, 140), (90, 120, 80)][int(rng.integers(4))]
    cv2.circle(eye, _point(middle), int(iris_radius), iris, -1, cv2.LINE_AA)
    for angle in rng.uniform(0, 2 * np.pi, 60):
        rim = np.add(middle, 0.95 * iris_radius * np.array([np.cos(angle), np.sin(angle)]))
        shade = tuple(float(c) for c in np.clip(np.add(iris, rng.normal(0, 25)), 0, 255))
        cv2.line(eye, _point(middle), _point(rim), shade, 1, cv2.LINE_AA)
    pupil = (8, 8, 8) if rng.random() < 0.7 else (190, 70, 40)
    cv2.circle(eye, _point(middle), int(iris_radius * rng.uniform(0.25, 0.6)), pupil, -1, cv2.LINE_AA)
    for _ in range(int(rng.integers(0, 3))):
        spot = np.add(middle, rng.normal(0, 0.35, 2) * iris_radius)
        cv2.circle(eye, _point(spot), int(1 + iris_radius * rng.uniform(0.03, 0.2)), (250, 250, 250), -1, cv2.LINE_AA)
    sclera = cv2.GaussianBlur(sclera, (0, 0), 1.0)[..., None]
    picture = picture * (1.0 - sclera) + eye * sclera
    for along in rng.uniform(-1.0, 1.0, int(rng.integers(0, 40))):
        root = (center[0] + along * width, center[1] - height * np.sqrt(1.0 - along * along))
        tip = np.add(root, (along * 0.3 * height + rng.normal(0, 3), -height * rng.uniform(0.3, 0.8)))
        cv2.line(picture, _point(root), _point(tip), (25, 18, 15), 1, cv2.LINE_AA)
    return _finished(picture, rng)


def _point(pair):
    return round(float(pair[0])), round(float(pair[1]))


def _finished(picture, rng):
    picture = cv2.GaussianBlur(picture.astype(np.float32), (0, 0), rng.uniform(0.3, 1.5))
    picture = picture * rng.uniform(0.5, 1.2) + rng.normal(0, rng.uniform(0, 6), picture.shape)
    return np.clip(picture, 0, 255).astype(np.uint8)


def scene(size, rng, scenes, retina):
    """A random part of a photograph of something else, in its own or in shifted colours."""
    source = scenes[int(rng.integers(len(scenes)))]
    side = int(min(source.shape[:2]) * rng.uniform(0.15, 1.0))
    y, x = (int(rng.integers(0, source.shape[axis] - side + 1)) for axis in (0, 1))
    part = cv2.resize(source[y : y + side, x : x + side], (size, size), interpolation=cv2.INTER_AREA)
    part = np.rot90(part, int(rng.integers(4)))
    if rng.random() < 0.5:
        part = part[:, :, rng.permutation(3)]
    if rng.random() < 0.3:
        part = part * np.array([1.0, rng.uniform(0.3, 0.8), rng.uniform(0.05, 0.5)])
    return np.ascontiguousarray(part).astype(np.uint8)


def document(size, rng, scenes, retina):
    """Lines of text and boxes on paper or on a dark screen."""
    paper = np.full(3, rng.uniform(200, 255)) if rng.random() < 0.7 else rng.uniform(0, 80, 3)
    picture = (np.ones((size, size, 3), np.float32) * paper).astype(np.uint8)
    ink = tuple(float(c) for c in (255.0 - paper) * rng.uniform(0.6, 1.0))
    letters = "abcdefghij klmnopqrst uvwxyz 0123456789 OD OS /:.-"
    scale, y = rng.uniform(0.25, 1.0), 8
    while y < size:
        text = "".join(letters[int(i)] for i in rng.integers(0, len(letters), 60))
        cv2.putText(picture, text, (int(rng.integers(-20, 20)), y), cv2.FONT_HERSHEY_SIMPLEX, scale, ink, 1, cv2.LINE_AA)
        y += int(8 + 26 * scale * rng.uniform(0.8, 1.6))
    for _ in range(int(rng.integers(0, 4))):
        corners = rng.integers(0, size, 4)
        cv2.rectangle(picture, _point(corners[:2]), _point(corners[2:]), ink, 1)
    return picture


def scan(size, rng, scenes, retina):
    """Grey layers with speckle, like a section of an OCT volume."""
    line = np.arange(size, dtype=np.float32)
    top = size * rng.uniform(0.3, 0.6) + size * 0.08 * np.sin(line / size * rng.uniform(2, 6) + rng.uniform(0, 6))
    top -= size * 0.1 * np.exp(-0.5 * ((line - size * rng.uniform(0.3, 0.7)) / (0.08 * size)) ** 2)
    depth = (line[:, None] - top[None, :]) / size
    picture = np.full((size, size), rng.uniform(5, 40), np.float32)
    for _ in range(int(rng.integers(4, 9))):
        start, thickness = rng.uniform(0.0, 0.3), rng.uniform(0.01, 0.06)
        picture += rng.uniform(20, 140) * ((depth > start) & (depth < start + thickness))
    picture *= rng.gamma(rng.uniform(2, 8), 1.0, picture.shape) / 4.0
    return _finished(np.repeat(picture[..., None], 3, axis=2), rng)


def noise(size, rng, scenes, retina):
    cells = int(rng.choice([size, size // 2, size // 8, size // 32]))
    picture = rng.uniform(0, 255, (cells, cells, 3)).astype(np.float32)
    if rng.random() < 0.4:
        picture = picture.mean(2, keepdims=True).repeat(3, axis=2) * rng.uniform(0.3, 1.0, 3)
    return cv2.resize(picture, (size, size), interpolation=int(rng.choice([0, 1, 2]))).clip(0, 255).astype(np.uint8)


def gradient(size, rng, scenes, retina):
    share = np.clip(0.5 + smooth_field(size, rng, int(rng.integers(2, 4))), 0, 1)[..., None]
    return (share * _colour(rng) + (1.0 - share) * _colour(rng)).astype(np.uint8)


def single_colour(size, rng, scenes, retina):
    return np.clip(_colour(rng) + rng.normal(0, rng.uniform(0, 4), (size, size, 3)), 0, 255).astype(np.uint8)


def round_texture(size, rng, scenes, retina):
    """A disc in fundus colours, some with spots or straight lines, but without vessels or nerve."""
    red = rng.uniform(90, 240)
    colour = np.array([red, red * rng.uniform(0.3, 0.8), red * rng.uniform(0.1, 0.6)])
    picture = np.ones((size, size, 3), np.float32) * colour
    picture *= 1.0 + rng.uniform(0.05, 0.5) * smooth_field(size, rng, int(rng.choice([3, 6, 12, 40])))[..., None]
    for _ in range(int(rng.integers(0, 9))):
        place = rng.uniform(0, size, 2)
        spot = tuple(float(c) for c in _colour(rng))
        cv2.circle(picture, _point(place), int(rng.integers(2, size // 5)), spot, -1, cv2.LINE_AA)
    return _in_circle(_finished(picture, rng), size, rng)


def scrambled(size, rng, scenes, retina):
    """Tiles of a fundus view in random order: its colours and textures without its anatomy."""
    tiles = int(rng.integers(5, 12))
    side = size // tiles
    blocks = [retina[y * side : (y + 1) * side, x * side : (x + 1) * side] for y in range(tiles) for x in range(tiles)]
    order = rng.permutation(len(blocks))
    rows = [np.concatenate([blocks[i] for i in order[r * tiles : (r + 1) * tiles]], axis=1) for r in range(tiles)]
    return cv2.resize(np.concatenate(rows, axis=0), (size, size), interpolation=cv2.INTER_AREA)
