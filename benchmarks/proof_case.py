"""The trained graders that a table of proofs is made of: what `models/training/train_graders.py` left in a folder."""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fundus_rt.benchmarks.proof_answers import ALL, HELD_OUT
from fundus_rt.models.artifacts import atomic_path
from fundus_rt.models.errors import UsageError
from fundus_rt.runtime.inputs import SUFFIXES

SETS = (ALL, HELD_OUT)
"""Sets of photographs that are proved on."""
CALIBRATION = "training"
"""The list whose photographs may be used to lower the precision."""


@dataclass(frozen=True)
class Grader:
    """One trained network."""

    name: str
    """As in the training, for example ``mobilenet``."""
    checkpoint: Path
    """``.h5`` or ``.pth``."""
    card: Path
    """Card as JSON."""
    sha256: str
    """Of the checkpoint."""
    trained: dict[str, Any]
    """Figures of the training: settings, kappa and accuracy held out."""


def graders_of(folder: Path, only: str = "") -> list[Grader]:
    """The finished graders of a folder, by name.

    Args:
        folder: output folder of ``train_graders.py``.
        only: names with this text in them.

    Raises:
        UsageError: there is none.
    """
    found = []
    for path in sorted(folder.glob("*.json")):
        figures = {} if path.name.endswith(".card.json") else json.loads(path.read_text(encoding="utf-8"))
        if "checkpoint" in figures and only in path.stem:
            checkpoint = figures["checkpoint"]
            card = path.with_name(f"{path.stem}.card.json")
            found.append(Grader(path.stem, folder / checkpoint["file"], card, checkpoint["sha256"], figures))
    if not found:
        raise UsageError(
            f"{folder} holds no finished grader with {only!r} in its name; train some first:\n"
            f"  python models/training/train_graders.py --photographs DIR --output {folder}"
        )
    return found


def write_lists(graders: Path, photographs: Path, folder: Path) -> dict[str, Path]:
    """Write the training's lists with the photographs where they lie now, found by their names.

    Args:
        graders: output folder of ``train_graders.py``.
        photographs: folder with the photographs, at any depth.
        folder: where to write them; made where it is missing.

    Returns:
        The CSV files, by the names in `SETS` and `CALIBRATION`.

    Raises:
        UsageError: a photograph is not there.
    """
    places: dict[str, Path] = {}
    for path in sorted(photographs.rglob("*")):
        if path.suffix.lower() in SUFFIXES:
            places.setdefault(path.name, path)
    folder.mkdir(parents=True, exist_ok=True)
    lists = {}
    for name in (*SETS, CALIBRATION):
        with open(graders / f"{name}.csv", newline="", encoding="utf-8") as file:
            names = [Path(row["file"]).name for row in csv.DictReader(file)]
        missing = [one for one in names if one not in places]
        if missing:
            raise UsageError(
                f"{photographs} does not hold {missing[0]} ({len(missing)} missing); name the photographs trained on"
            )
        lists[name] = folder / f"{name}.csv"
        with atomic_path(lists[name]) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([("file",), *((places[one].resolve(),) for one in names)])
    return lists
