"""Graded photographs for the demonstration graders: reading them, dividing them into folds, making network inputs."""

import csv
import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from sklearn.model_selection import StratifiedGroupKFold

from fundus_rt.benchmarks.proof.photographs import cases, photograph_of
from fundus_rt.converters.original_preprocessing import original_inputs

FOLDS = 5

# Both eyes of one subject, where they are in IDRiD, have neighbouring numbers; it names no patients. Blocks of this many
# consecutive numbers stay together, and at a block's ends so many neighbours of held-out photographs are not trained on.
BLOCK = 10
MARGIN = 1


@dataclass(frozen=True)
class Graded:
    """One photograph and its grade of diabetic retinopathy.

    path: the file. number: its number in its data set. grade: 0 to 4. eye, camera: as the manifest has them.
    sha256: of the file's bytes, computed here.
    """

    path: Path
    number: int
    grade: int
    eye: str
    camera: str
    sha256: str


def read_graded(folder):
    """Return (list of `Graded` in order of their numbers, copies left out) of the rows of manifest.csv that have a dr_grade.

    IDRiD numbers its photographs alike in all its parts, so a second file with the same number shows the same photograph at
    another size: the first one in the manifest whose size is the most frequent is kept.
    """
    folder = Path(folder)
    with open(folder / "manifest.csv", newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["dr_grade"] != "" and (folder / row["file"]).exists()]
    if not rows:
        raise SystemExit(f"no row of {folder / 'manifest.csv'} has a dr_grade and a file; expected IDRiD's photographs")
    sizes = [(row["width"], row["height"]) for row in rows]
    rows.sort(key=lambda row: -sizes.count((row["width"], row["height"])))
    kept = {}
    for row in rows:
        kept.setdefault(_number(row["file"]), row)
    photographs = [_graded(folder, number, row) for number, row in sorted(kept.items())]
    return photographs, len(rows) - len(photographs)


def fold_of(photographs, seed):
    """Return each photograph's fold, int [N]: grades spread evenly, blocks and files of the same content never divided."""
    groups = _groups(photographs)
    most = int(np.bincount([p.grade for p in photographs]).max())
    if min(len(set(groups)), most) < FOLDS:
        raise SystemExit(
            f"{len(set(groups))} group(s) of photographs, {most} of the most frequent grade, cannot make {FOLDS} folds; "
            f"give more photographs, until both are {FOLDS} or more"
        )
    folds = np.full(len(photographs), -1)
    splitter = StratifiedGroupKFold(n_splits=FOLDS, shuffle=True, random_state=seed)
    for fold, (_, held_out) in enumerate(splitter.split(groups, [p.grade for p in photographs], groups)):
        folds[held_out] = fold
    return folds


def divided(photographs, folds, fold):
    """Return (indices to train on, indices held out); the held-out fold's neighbours in number are in neither."""
    held_out = np.flatnonzero(folds == fold)
    near = {photographs[i].number + step for i in held_out for step in range(-MARGIN, MARGIN + 1)}
    return np.array([i for i, p in enumerate(photographs) if p.number not in near], int), held_out


def read_originals(photographs, card):
    """Return the photographs read and with the box of their field of view, for all cards that crop and decode alike."""
    return [photograph_of(case, card) for case in cases([str(photograph.path) for photograph in photographs])]


def author_inputs(originals, card):
    """Return float32 [N, H, W, 3], RGB, normalised, as the card says; with Pillow, by which `load_img` and torchvision resize."""
    return np.concatenate([original_inputs([one], card.preprocessing, "pillow").images for one in originals])


def write_lists(photographs, folds, fold, folder):
    """Write all.csv, training.csv and held-out.csv: file, dr_grade, eye, camera, fold; for `--list` and `--labels`."""
    training, held_out = divided(photographs, folds, fold)
    for name, chosen in (("all", range(len(photographs))), ("training", training), ("held-out", held_out)):
        with open(Path(folder) / f"{name}.csv", "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(("file", "dr_grade", "eye", "camera", "fold"))
            for i in chosen:
                p = photographs[i]
                writer.writerow((p.path.resolve(), p.grade, p.eye, p.camera, folds[i]))


def _number(name):
    digits = re.search(r"(\d+)", Path(name).name)
    if digits is None:
        raise SystemExit(f"{name} has no number in its name; expected names like IDRiD_001.jpg")
    return int(digits.group(1))


def _graded(folder, number, row):
    path = folder / row["file"]
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return Graded(path, number, int(row["dr_grade"]), row["eye"], row["camera"], digest)


def _groups(photographs):
    """Group number of each photograph: its block, blocks that hold the same content joined into one."""
    block = {p.number: (p.number - 1) // BLOCK for p in photographs}
    first_with = {}
    for p in photographs:
        other = block[first_with.setdefault(p.sha256, p).number]
        mine = block[p.number]
        if other != mine:
            block = {number: other if value == mine else value for number, value in block.items()}
    return [block[p.number] for p in photographs]
