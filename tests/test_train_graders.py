"""The training of the demonstration graders: folds that do not leak, figures against closed forms, and one real small run."""

from __future__ import annotations

import csv
import importlib
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from tests.conftest import REPOSITORY, Run, environment

TRAINING = REPOSITORY / "models" / "training"
COLUMNS = ("file", "width", "height", "dr_grade", "eye", "camera")
EXAMPLES = ("idrid_005", "idrid_085", "idrid_165", "idrid_205", "idrid_285", "idrid_325", "chase_01L", "chase_03R")


@pytest.fixture(autouse=True)
def scripts(monkeypatch: pytest.MonkeyPatch) -> None:
    """The scripts import each other by their bare names, as they do when Python runs one of them."""
    monkeypatch.syspath_prepend(str(TRAINING))


def module(name: str) -> ModuleType:
    return importlib.import_module(name)


def write_manifest(folder: Path, rows: list[tuple[Any, ...]]) -> None:
    with open(folder / "manifest.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([COLUMNS, *rows])


def graded_folder(folder: Path) -> Path:
    """120 numbered files (bytes, no pictures), two pairs with the same content, and four at another size."""
    rows: list[tuple[Any, ...]] = []
    same = {7: 95, 34: 61}
    for number in range(1, 121):
        name = f"IDRiD_{number:03}.jpg"
        content = next((first for first, second in same.items() if second == number), number)
        (folder / name).write_bytes(b"content %d" % content)
        rows.append((name, 1072, 712, number * 7 % 5, "left", "a camera"))
    (folder / "original").mkdir()
    for number in (3, 50, 77, 118):
        name = f"original/IDRiD_{number:03}_train.jpg"
        (folder / name).write_bytes(b"larger %d" % number)
        rows.insert(0, (name, 4288, 2848, number * 7 % 5, "left", "a camera"))
    rows.append(("IDRiD_400.jpg", 1072, 712, "", "left", "a camera"))  # without a grade
    rows.append(("IDRiD_401.jpg", 1072, 712, "3", "left", "a camera"))  # without a file
    write_manifest(folder, rows)
    return folder


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_no_content_no_neighbour_and_no_copy_is_on_both_sides(tmp_path: Path, seed: int) -> None:
    scripts = module("grader_photographs")
    photographs, copies = scripts.read_graded(graded_folder(tmp_path))
    assert (len(photographs), copies) == (120, 4)
    assert all("original" not in str(p.path) for p in photographs)
    folds = scripts.fold_of(photographs, seed)
    held_out_once: list[int] = []
    for fold in range(scripts.FOLDS):
        training, held_out = scripts.divided(photographs, folds, fold)
        ours, theirs = [photographs[i] for i in training], [photographs[i] for i in held_out]
        assert not {p.sha256 for p in ours} & {p.sha256 for p in theirs}
        assert all(abs(p.number - q.number) > 1 for p in ours for q in theirs)
        assert len(ours) > 70
        assert np.bincount([p.grade for p in theirs], minlength=5).min() > 0
        held_out_once += held_out.tolist()
    assert sorted(held_out_once) == list(range(120))


def test_lists_name_the_photographs_of_the_fold(tmp_path: Path) -> None:
    from fundus_rt.runtime.inputs import items_from_list

    scripts = module("grader_photographs")
    photographs, _ = scripts.read_graded(graded_folder(tmp_path))
    folds = scripts.fold_of(photographs, 0)
    scripts.write_lists(photographs, folds, 2, tmp_path)
    named = {
        name: {item.path for item in items_from_list(str(tmp_path / f"{name}.csv"))} for name in ("all", "training", "held-out")
    }
    assert len(named["all"]) == 120
    assert named["held-out"] == {str(p.path) for p, fold in zip(photographs, folds, strict=True) if fold == 2}
    assert not named["training"] & named["held-out"]


def test_quality_has_the_figures_of_the_closed_forms() -> None:
    from scipy.stats import beta

    quality = module("train_graders").quality
    grades = np.array([0, 0, 1, 2, 2, 3, 4, 4, 0, 2])
    decisions = np.array([0, 1, 1, 2, 4, 3, 4, 0, 0, 2])
    found = quality(grades, decisions, 0)
    apart, by_chance = np.mean((grades - decisions) ** 2), np.mean((grades[:, None] - decisions[None, :]) ** 2)
    assert found["kappa"] == pytest.approx(1 - apart / by_chance)
    assert found["accuracy"] == 0.7
    assert found["accuracy_interval"] == pytest.approx([beta.ppf(0.025, 7, 4), beta.ppf(0.975, 8, 3)])
    assert found["kappa_interval"][0] < found["kappa"] < found["kappa_interval"][1]
    assert found["decisions"] == [3, 2, 2, 1, 2]
    assert np.trace(found["confusion"]) == 7


def test_a_batch_depends_on_seed_and_number_and_stays_within_the_grey_levels() -> None:
    fitting, networks = module("grader_fitting"), module("grader_networks")
    spec = networks.card_of("mobilenet", 32, "None.").preprocessing
    levels = np.random.default_rng(0).uniform(0, 255, (12, 32, 32, 3)).astype(np.float32)
    grades = np.arange(12) % 5
    np.testing.assert_allclose(fitting.levels_of(fitting.normalised(levels, spec), spec), levels, atol=1e-3)

    def three(seed: int) -> list[np.ndarray]:
        source = fitting.batches(levels, grades, spec, seed)
        return [next(source)[0] for _ in range(3)]

    first, again, other = three(5), three(5), three(6)
    for batch, same in zip(first, again, strict=True):
        np.testing.assert_array_equal(batch, same)
    assert not np.array_equal(first[0], other[0])
    assert not np.array_equal(first[0], first[1])
    assert all(batch.dtype == np.float32 and np.abs(batch).max() <= 1.001 for batch in first)


def test_another_fold_is_not_mixed_into_a_folder(tmp_path: Path) -> None:
    script = module("train_graders")
    (tmp_path / "mobilenet.json").write_text(json.dumps({"settings": {"seed": script.SEED, "fold": 0}}))
    with pytest.raises(SystemExit, match="fold 0"):
        script.main(["--photographs", str(tmp_path), "--output", str(tmp_path), "--fold", "1"])


@pytest.mark.full
def test_trained_networks_convert_and_are_not_trained_twice(tmp_path: Path, examples: Path, fundus_rt: Run) -> None:
    rows = []
    for index, name in enumerate(EXAMPLES):
        target = tmp_path / f"IDRiD_{20 * index + 1:03}.jpg"
        target.write_bytes((examples / f"{name}.jpg").read_bytes())
        rows.append((target.name, 1072, 712, max(2, index - 3) % 5, "left", "a camera"))
    write_manifest(tmp_path, rows)
    output = tmp_path / "graders"
    words = [sys.executable, str(TRAINING / "train_graders.py"), "--photographs", str(tmp_path), "--output", str(output)]
    words += ["--networks", "mobilenet,resnet-50", "--steps", "2", "--size", "32"]
    done = subprocess.run(words, capture_output=True, text=True, env=environment(), timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert "mobilenet: 2 steps" in done.stdout
    for name, suffix in (("mobilenet", "h5"), ("resnet-50", "pth")):
        figures = json.loads((output / f"{name}.json").read_text())
        assert figures["steps"] == 2
        assert figures["held_out"]["photographs"] + figures["training"]["photographs"] <= len(EXAMPLES)
        converted = tmp_path / f"{name}.onnx"
        found = fundus_rt("convert", output / f"{name}.{suffix}", "--card", output / f"{name}.card.json", "-o", converted)
        assert found.returncode == 0, found.stderr
        assert converted.exists()
    before = {path: path.stat().st_mtime_ns for path in output.iterdir()}
    again = subprocess.run(words, capture_output=True, text=True, env=environment(), timeout=300, check=False)
    assert again.stdout == "\n".join(line for line in done.stdout.splitlines() if "training" not in line) + "\n"
    assert before == {path: path.stat().st_mtime_ns for path in output.iterdir()}
