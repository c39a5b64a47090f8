"""Reading the training photographs (IDRiD's localization part, reduced by four) and pictures of other things."""

import csv
import importlib.util
import re
from pathlib import Path

import cv2
import numpy as np
from views import LEFT, RIGHT, Photograph

FOLDER = "idrid_1072"

# Levels at or below this are the black surround in IDRiD.
SURROUND_LEVEL = 15

# IDRiD's 856-pixel fields become 642 pixels wide.
SOURCE_SCALE = 0.75

# Pictures of packages that show a retina, or parts of one.
NOT_SCENES = ("retina", "microaneurysms")


def read_photographs(folder):
    """Return the list of `Photograph` named in FOLDER/manifest.csv that lie in its part `idrid_1072`."""
    folder = Path(folder)
    with open(folder / "manifest.csv", newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["file"].startswith(FOLDER + "/")]
    if not rows:
        raise SystemExit(f"no row of {folder / 'manifest.csv'} lies in {FOLDER}/; expected IDRiD's 413 photographs")
    return [_photograph(folder, row) for row in rows]


def is_held_out(name):
    """Whether a photograph is kept for validation: every sixth block of ten consecutive numbers.

    Both eyes of one subject, where they are in the set, have neighbouring numbers; blocks keep most of them together.
    """
    return (int(re.search(r"(\d+)", name).group(1)) - 1) // 10 % 6 == 3


def _photograph(folder, row):
    frame = cv2.cvtColor(cv2.imread(str(folder / row["file"])), cv2.COLOR_BGR2RGB)
    center, radius = round_field(frame)
    landmarks = {
        name: (np.array([float(row[f"{name}_x"]), float(row[f"{name}_y"])]) - center) / radius for name in ("disc", "fovea")
    }
    # Views are rendered by bilinear sampling; a source of about twice their resolution keeps that free of aliasing.
    frame = cv2.resize(frame, None, fx=SOURCE_SCALE, fy=SOURCE_SCALE, interpolation=cv2.INTER_AREA)
    center, radius = center * SOURCE_SCALE, radius * SOURCE_SCALE
    # Only what the circle needs is kept in memory.
    left = max(0, int(center[0] - radius) - 2)
    frame = np.ascontiguousarray(frame[:, left : int(center[0] + radius) + 3])
    eye = {"left": LEFT, "right": RIGHT}[row["eye"]]
    center = (center[0] - left, center[1])
    return Photograph(Path(row["file"]).name, frame, center, radius, landmarks["disc"], landmarks["fovea"], eye)


def round_field(frame):
    """Return ((x, y), radius) in pixels of a round field on black, fitted to its left and right rims.

    Enough for IDRiD, whose circle is cut at the top and the bottom; the runtime's finder does more. frame: uint8 RGB.
    """
    height = frame.shape[0]
    points = []
    for y in range(int(0.1 * height), int(0.9 * height), 8):
        lit = np.flatnonzero(frame[y].max(axis=1) > SURROUND_LEVEL)
        if lit.size > frame.shape[1] // 4:
            points += [(lit[0], y), (lit[-1], y)]
    points = np.array(points, np.float64)
    for _ in range(3):
        matrix = np.column_stack([2.0 * points, np.ones(len(points))])
        x, y, rest = np.linalg.lstsq(matrix, (points**2).sum(axis=1), rcond=None)[0]
        radius = float(np.sqrt(rest + x * x + y * y))
        error = np.abs(np.hypot(points[:, 0] - x, points[:, 1] - y) - radius)
        points = points[error <= np.maximum(2.0, np.percentile(error, 80))]
    return np.array([x, y]), radius


def read_scenes():
    """Return photographs of other things, uint8 RGB, from the packages scikit-learn and scikit-image if installed."""
    scenes = []
    for package, inner in (("sklearn", "datasets/images"), ("skimage", "data")):
        spec = importlib.util.find_spec(package)
        for base in spec.submodule_search_locations if spec else ():
            paths = sorted(path for ending in ("jpg", "png") for path in (Path(base) / inner).glob("*." + ending))
            frames = [cv2.imread(str(path)) for path in paths if not path.stem.startswith(NOT_SCENES)]
            scenes += [cv2.cvtColor(f, cv2.COLOR_BGR2RGB) for f in frames if f is not None and min(f.shape[:2]) >= 128]
    return scenes
