"""Figures for the exported acquisition model, on photographs it has not been trained on.

Held out: one part of IDRiD (same camera as the training photographs) and, whole, the cameras of CHASE_DB1 (disc-centred),
HRF and Wikimedia. The photographs in original/idrid overlap the training photographs and are not used.
"""

import csv
import platform
import time
from pathlib import Path

import cv2
import numpy as np
import onnxruntime
import torch
from augment import SIZE
from colour import random_look
from negatives import random_negative
from photographs import read_scenes
from scipy.stats import beta
from views import LEFT, plain_view, rendered

from fundus_rt.benchmarks.degradation import COMBINATIONS, degrade
from fundus_rt.runtime.field_of_view import find_field_of_view

CAMERAS = {"CHASE_DB1": "original/chase_db1", "HRF": "original/hrf", "Wikimedia": "original/wikimedia"}
SIDES = ("left", "right")

# Degradations are applied at the published size.
DEGRADED_SIZE = 512
BOOTSTRAPS = 1000
SEED = 5


def field_square(frame, size, center=None, radius=None):
    """Return the square around the field of view: uint8 [size, size, 3]; black beyond the frame. frame: BGR."""
    if center is None:
        found = find_field_of_view(frame)
        center, radius = found.center, found.radius
    side = max(1, round(2 * radius))
    left, top = (round(c + 0.5 - side / 2) for c in center)
    square = np.zeros((side, side, 3), np.uint8)
    height, width = frame.shape[:2]
    x0, x1, y0, y1 = max(0, left), min(width, left + side), max(0, top), min(height, top + side)
    square[y0 - top : y1 - top, x0 - left : x1 - left] = frame[y0:y1, x0:x1]
    return cv2.resize(square, (size, size), interpolation=cv2.INTER_AREA)


class Shipped:
    """The exported file in ONNX Runtime on the CPU, two threads."""

    def __init__(self, path):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 2
        self.session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self.names = [output.name for output in self.session.get_outputs()]

    def __call__(self, frames):
        """frames: uint8 [N, S, S, 3] -> outputs by name; the receipt is checked."""
        frames = np.ascontiguousarray(frames)
        parts = []
        for start in range(0, len(frames), 64):
            output = dict(zip(self.names, self.session.run(None, {"frames": frames[start : start + 64]}), strict=True))
            assert np.array_equal(output["receipt"], frames[start : start + 64].sum((2, 3), dtype=np.int64))
            parts.append(output)
        return {name: np.concatenate([part[name] for part in parts]) for name in self.names}


def exact_interval(successes, trials):
    """Return the 95 % Clopper-Pearson interval of a share, rounded outwards; [0, 1] without trials."""
    low = beta.ppf(0.025, successes, trials - successes + 1) if successes else 0.0
    high = beta.ppf(0.975, successes + 1, trials - successes) if successes < trials else 1.0
    return [float(np.floor(low * 1e4) / 1e4), float(np.ceil(high * 1e4) / 1e4)]


def share(successes, trials):
    return {
        "count": int(successes),
        "of": int(trials),
        "share": round(float(successes / trials), 4) if trials else None,
        "interval": exact_interval(int(successes), int(trials)),
    }


def decisions(output, threshold):
    """Return int [N]: 0 left, 1 right, -1 unknown, by the decision rule."""
    best = output["eye"][:, :2].argmax(axis=1)
    return np.where(output["eye"][:, :2].max(axis=1) >= threshold, best, -1)


def laterality(output, truth, threshold):
    """Return how many were decided and how many of these rightly; truth: int [N], 0 left, 1 right."""
    taken = decisions(output, threshold)
    decided = taken >= 0
    right = (taken == truth)[decided]
    return {"decided": share(decided.sum(), len(truth)), "right_when_decided": share(right.sum(), decided.sum())}


def auc(scores, labels):
    """Return the area under the ROC curve: the chance that a positive scores above a negative, ties half."""
    positive, negative = np.sort(scores[labels]), scores[~labels]
    below = np.searchsorted(positive, negative, "left")
    upto = np.searchsorted(positive, negative, "right")
    return float((len(positive) - 0.5 * (below + upto)).mean() / len(positive))


def held_out_crops(photographs, rotation=0.0, size=SIZE):
    """Return the held-out photographs as uint8 [N, size, size, 3] BGR, turned; the rim shows no notch and no cut."""
    crops = []
    for photograph in photographs:
        view = plain_view(rotation)
        frame = cv2.resize(rendered(photograph, view, 448), (size, size), interpolation=cv2.INTER_AREA)
        crops.append((frame * _disc_mask(size, 1.0 / view.scale)[..., None])[..., ::-1])
    return np.stack(crops)


def _disc_mask(size, radius):
    line = (np.arange(size) + 0.5) / size * 2.0 - 1.0
    return (line[:, None] ** 2 + line[None, :] ** 2 < radius**2).astype(np.uint8)


def read_camera(folder, part):
    """Return (frames: list of uint8 BGR, truth int [N]) of one held-out camera."""
    with open(Path(folder) / "manifest.csv", newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["file"].startswith(part + "/")]
    return [cv2.imread(str(Path(folder) / row["file"])) for row in rows], np.array([SIDES.index(row["eye"]) for row in rows])


def _tinted(gains, gamma=1.0):
    """Return a function on uint8 BGR crops; gains in RGB order."""
    table = 255.0 * np.linspace(0, 1, 256)[:, None] ** gamma * np.array(gains)[::-1]
    table = np.clip(table, 0, 255).astype(np.uint8)[None]
    return lambda crop: cv2.LUT(crop, table)


def _zoomed(scale, dx=0.0, dy=0.0, square=False):
    """Return a function that crops to `scale` of the half side around (dx, dy); square: without a round mask."""

    def change(crop):
        side = crop.shape[0]
        result = field_square(crop, side, ((1 + dx) * side / 2 - 0.5, (1 + dy) * side / 2 - 0.5), scale * side / 2)
        return result if square else result * _disc_mask(side, 1.0 / scale if scale > 1 else 0.98)[..., None]

    return change


def _cut(crop):
    crop = crop.copy()
    crop[: SIZE // 8] = crop[-SIZE // 8 :] = 0
    return crop


def _jpeg(crop):
    return cv2.imdecode(cv2.imencode(".jpg", crop, [cv2.IMWRITE_JPEG_QUALITY, 25])[1], cv2.IMREAD_COLOR)


def _equalised(crop):
    lab = cv2.cvtColor(crop, cv2.COLOR_BGR2LAB)
    lab[..., 0] = cv2.createCLAHE(4.0, (8, 8)).apply(np.ascontiguousarray(lab[..., 0]))
    return cv2.cvtColor(lab, cv2.COLOR_LAB2BGR)


def _blurred(crop):
    return cv2.GaussianBlur(crop, (0, 0), 2.0)


def _coarse(crop):
    return cv2.resize(cv2.resize(crop, (90, 90), interpolation=cv2.INTER_AREA), (SIZE, SIZE), interpolation=cv2.INTER_LINEAR)


def _grey(crop):
    return np.repeat(cv2.cvtColor(crop, cv2.COLOR_BGR2GRAY)[..., None], 3, axis=2)


def _repainted(crop):
    mask = (crop.max(axis=2) > 12).astype(np.float32)
    look = random_look(crop[..., ::-1].astype(np.float32) / 255.0, mask, np.random.default_rng(int(crop.sum()) % 9973))
    return (look * mask[..., None] * 255.0).astype(np.uint8)[..., ::-1]


SHIFTS = {
    "none": lambda crop: crop,
    "red": _tinted((1.4, 0.75, 0.8)),
    "yellow": _tinted((1.2, 1.3, 0.3)),
    "green": _tinted((0.6, 1.2, 0.7)),
    "bluish": _tinted((0.8, 0.9, 2.5)),
    "dark": _tinted((0.3, 0.3, 0.3)),
    "bright": _tinted((1.5, 1.5, 1.5), 0.7),
    "grey": _grey,
    "locally equalised": _equalised,
    "random look": _repainted,
    "cut at top and bottom": _cut,
    "square inside the field": _zoomed(0.7, square=True),
    "field radius 0.87 of the true one": _zoomed(0.87, square=True),
    "field radius 1.25 of the true one": _zoomed(1.25),
    "field centre 0.08 aside": _zoomed(1.0, 0.08, 0.08, square=True),
    "jpeg quality 25": _jpeg,
    "blurred by 2 pixels": _blurred,
    "90 pixels wide": _coarse,
}


def evaluated(path, folder, held_out, calibration):
    """Return all figures of the exported file as plain JSON values."""
    model, threshold = Shipped(path), calibration["eye_threshold"]
    cameras = {name: read_camera(folder, part) for name, part in CAMERAS.items()}
    crops = {name: np.stack([field_square(f, SIZE) for f in frames]) for name, (frames, _) in cameras.items()}
    truth = {name: eyes for name, (_, eyes) in cameras.items()}
    crops["IDRiD held out"] = held_out_crops(held_out)
    truth["IDRiD held out"] = np.array([photograph.eye - LEFT for photograph in held_out])
    large = {name: np.stack([field_square(f, DEGRADED_SIZE) for f in frames]) for name, (frames, _) in cameras.items()}
    large["IDRiD held out"] = held_out_crops(held_out, size=DEGRADED_SIZE)
    shifts = {
        shift: {name: laterality(model(np.stack([change(c) for c in crops[name]])), truth[name], threshold) for name in crops}
        for shift, change in SHIFTS.items()
    }
    return {
        "laterality": shifts.pop("none"),
        "laterality_under_shifts": shifts,
        "laterality_upside_down_unknown": {
            name: share((decisions(model(crop[:, ::-1, ::-1]), threshold) < 0).sum(), len(crop)) for name, crop in crops.items()
        },
        "laterality_by_rotation": _by_rotation(model, held_out, truth["IDRiD held out"], threshold),
        "gradability_synthetic": {name: _gradability(model, frames) for name, frames in large.items()},
        "fundus": _fundus(model, crops, calibration["fundus_threshold"]),
        "file_bytes": Path(path).stat().st_size,
        "milliseconds_per_frame_two_threads": _milliseconds(model),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "onnxruntime": onnxruntime.__version__,
            "opencv": cv2.__version__,
            "numpy": np.__version__,
        },
    }


def _by_rotation(model, held_out, truth, threshold):
    """Return, per angle in degrees, the shares decided as the true eye and as the other one (both turns together)."""
    result = {}
    for angle in range(0, 181, 15):
        turns = sorted({angle, -angle})
        taken = np.concatenate([decisions(model(held_out_crops(held_out, turn)), threshold) for turn in turns])
        eyes = np.tile(truth, len(turns))
        result[str(angle)] = {
            "true_eye": round(float((taken == eyes).mean()), 4),
            "other_eye": round(float((taken == 1 - eyes).mean()), 4),
            "unknown": round(float((taken < 0).mean()), 4),
        }
    return result


def _gradability(model, frames):
    """Return the AUC of clean against degraded with a bootstrap interval over photographs, and per mixture."""
    rng = np.random.default_rng(SEED)
    clean = model(_small(frames))["gradability"][:, 0]
    degraded = np.empty((len(COMBINATIONS), len(frames)))
    for row, mixture in enumerate(COMBINATIONS):
        changed = []
        for frame in frames:
            mask = (frame.max(axis=2) > 12).astype(np.float32)
            levels = frame[..., ::-1].astype(np.float32) / 255.0
            changed.append((degrade(levels, mask, mixture, rng)[..., ::-1] * 255.0 + 0.5).astype(np.uint8))
        degraded[row] = model(_small(changed))["gradability"][:, 0]
    labels = np.arange(len(frames) * (1 + len(COMBINATIONS))) < len(frames)

    def area(chosen):
        return auc(np.concatenate([clean[chosen], degraded[:, chosen].ravel()]), labels)

    draws = [area(rng.integers(0, len(frames), len(frames))) for _ in range(BOOTSTRAPS)]
    single = np.arange(2 * len(frames)) < len(frames)
    return {
        "photographs": len(frames),
        "auc": round(area(np.arange(len(frames))), 4),
        "interval": [round(float(v), 4) for v in np.percentile(draws, (2.5, 97.5))],
        "auc_by_mixture": {
            "+".join(mixture): round(auc(np.concatenate([clean, row]), single), 4)
            for mixture, row in zip(COMBINATIONS, degraded, strict=True)
        },
        "median_score_clean": round(float(np.median(clean)), 4),
        "median_score_degraded": round(float(np.median(degraded)), 4),
    }


def _small(frames):
    return np.stack([cv2.resize(frame, (SIZE, SIZE), interpolation=cv2.INTER_AREA) for frame in frames])


def _fundus(model, crops, threshold):
    rng = np.random.default_rng(SEED)
    scenes = read_scenes()
    drawn = np.stack([random_negative(SIZE, rng, scenes, crops["CHASE_DB1"][0])[..., ::-1] for _ in range(400)])
    shifted = np.concatenate([np.stack([change(c) for c in crop]) for crop in crops.values() for change in SHIFTS.values()])
    scores = model(shifted)["fundus"][:, 0]
    return {
        "threshold": threshold,
        "lowest_score_by_camera": {name: round(float(model(crop)["fundus"].min()), 4) for name, crop in crops.items()},
        "real_kept_under_shifts": share((scores >= threshold).sum(), len(scores)),
        "drawn_negatives_refused": share((model(drawn)["fundus"][:, 0] < threshold).sum(), len(drawn)),
    }


def _milliseconds(model):
    """Return the median time of one frame over 200 runs, after 20 to warm up."""
    frame = np.zeros((1, SIZE, SIZE, 3), np.uint8)
    times = []
    for _ in range(220):
        started = time.perf_counter()
        model(frame)
        times.append(time.perf_counter() - started)
    return round(1000.0 * float(np.median(times[20:])), 2)
