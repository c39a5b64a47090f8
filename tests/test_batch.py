"""Many pictures: order, bounded memory, one picture's fault is its own."""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest

from fundus_rt.models.errors import ReceiptError
from fundus_rt.runtime.batch import Answerer, AnswerOptions, row_key
from fundus_rt.runtime.inputs import Item
from fundus_rt.runtime.pipeline import Pipeline

PHOTOGRAPHS = ["chase_01L.jpg", "haggstrom_right.jpg", "idrid_005.jpg", "idrid_085.jpg", "idrid_165.jpg"]


def answerer(pipeline: Pipeline, workers: int = 2, batch: int = 1, finished: frozenset[bytes] = frozenset()) -> Answerer:
    return Answerer(pipeline, AnswerOptions(), workers, batch, finished)


@pytest.mark.parametrize(("workers", "batch"), [(1, 1), (2, 1), (1, 3), (3, 2), (2, 8)])
def test_rows_come_in_order_and_do_not_depend_on_workers_or_batch(
    tiny_sex: Path, examples: Path, workers: int, batch: int
) -> None:
    pipeline = Pipeline(tiny_sex)
    items = [Item(str(examples / name)) for name in PHOTOGRAPHS]
    items.insert(2, Item("missing.jpg"))
    rows = list(answerer(pipeline, workers, batch).rows(items))
    assert [row["file"] for row in rows] == [item.path for item in items]
    assert [bool(row["error"]) for row in rows] == [False, False, True, False, False, False]
    alone = [next(answerer(pipeline).rows([item])) for item in items]
    assert [row["outputs"] for row in rows] == [row["outputs"] for row in alone]
    assert len({row["outputs"]["sex"]["value"] for row in rows if row["outputs"]}) == len(PHOTOGRAPHS)


def test_only_a_few_items_are_ever_drawn_ahead(tiny_sex: Path) -> None:
    drawn = 0

    def items() -> Iterator[Item]:
        nonlocal drawn
        for index in range(3000):
            drawn += 1
            yield Item(f"missing-{index}.jpg")

    for done, _ in enumerate(answerer(Pipeline(tiny_sex), workers=2, batch=4).rows(items())):
        assert drawn - done <= 2 * 2 * 4 + 4
    assert drawn == 3000


def test_finished_rows_are_left_out_and_another_content_is_not(tiny_sex: Path, examples: Path, tmp_path: Path) -> None:
    pipeline = Pipeline(tiny_sex)
    for name in PHOTOGRAPHS:
        shutil.copy(examples / name, tmp_path)
    items = [Item(str(tmp_path / name)) for name in PHOTOGRAPHS]
    rows = list(answerer(pipeline).rows(items))
    finished = frozenset(bytes.fromhex(row["key"]) for row in rows)
    assert list(answerer(pipeline, finished=finished).rows(items)) == []
    shutil.copy(examples / "chase_03R.jpg", items[0].path)  # a camera that uses a file name again
    (again,) = answerer(pipeline, finished=finished).rows(items)
    assert again["file"] == items[0].path and again["sha256"] != rows[0]["sha256"]


def test_everything_that_decides_an_answer_is_in_the_key(tiny_sex: Path, tiny_age: Path) -> None:
    pipeline, other = Pipeline(tiny_sex), Pipeline(tiny_age)
    item, options = Item("a.jpg"), AnswerOptions()
    keys = [
        row_key(item, "00", pipeline, options),
        row_key(Item("b.jpg"), "00", pipeline, options),
        row_key(Item("a.jpg", "left"), "00", pipeline, options),
        row_key(item, "01", pipeline, options),
        row_key(item, "00", other, options),
        row_key(item, "00", pipeline, dataclasses.replace(options, eye="left")),
        row_key(item, "00", pipeline, dataclasses.replace(options, eye="right")),
        row_key(item, "00", pipeline, dataclasses.replace(options, mirrored_by_source=True)),
        row_key(item, "00", Pipeline(tiny_sex, check=False), options),
    ]
    assert len(set(keys)) == len(keys)
    assert row_key(Item(os.path.abspath("a.jpg")), "00", pipeline, options) == keys[0]


def test_a_fault_that_nobody_thought_of_is_that_pictures_alone(
    tiny_sex: Path, examples: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = Pipeline(tiny_sex)
    prepare = pipeline.prepare_bytes

    def faulty(content: bytes, *rest: object, **options: object) -> object:
        if content == (examples / PHOTOGRAPHS[1]).read_bytes():
            raise RuntimeError("odd")
        return prepare(content, *rest, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(pipeline, "prepare_bytes", faulty)
    rows = list(answerer(pipeline, batch=3).rows([Item(str(examples / name)) for name in PHOTOGRAPHS]))
    assert [bool(row["error"]) for row in rows] == [False, True, False, False, False]
    assert "RuntimeError: odd" in rows[1]["error"]
    assert rows[1]["key"] is None  # may be gone the next time, so --resume tries again


def test_a_network_that_fails_on_one_picture_answers_the_others(
    tiny_sex: Path, examples: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = Pipeline(tiny_sex)
    answer = pipeline._session.answer
    bad = pipeline.prepare_bytes((examples / PHOTOGRAPHS[1]).read_bytes(), {}).tensor

    def faulty(batch: np.ndarray) -> object:
        if any(np.array_equal(row, bad) for row in batch):
            raise RuntimeError("not finite")
        return answer(batch)

    monkeypatch.setattr(pipeline._session, "answer", faulty)
    rows = list(answerer(pipeline, batch=3).rows([Item(str(examples / name)) for name in PHOTOGRAPHS]))
    assert [bool(row["error"]) for row in rows] == [False, True, False, False, False]
    good = [name for name in PHOTOGRAPHS if name != PHOTOGRAPHS[1]]
    alone = [next(answerer(pipeline).rows([Item(str(examples / name))])) for name in good]
    assert [row["outputs"] for row in rows if row["outputs"]] == [row["outputs"] for row in alone]


def test_an_answer_for_another_picture_ends_the_run(examples: Path) -> None:
    pipeline = Pipeline(Path(__file__).parent / "data" / "tiny_swapped.onnx", check=False)
    with pytest.raises(ReceiptError):
        list(answerer(pipeline, batch=2).rows([Item(str(examples / name)) for name in PHOTOGRAPHS]))


def test_the_eye_of_a_file_name_counts(tiny_age: Path, examples: Path, tmp_path: Path) -> None:
    shutil.copy(examples / "idrid_205.jpg", tmp_path / "case_7_right.jpg")
    shutil.copy(examples / "idrid_205.jpg", tmp_path / "case_7_left.jpg")
    items = [Item(str(tmp_path / f"case_7_{eye}.jpg")) for eye in ("right", "left")]
    right, left = answerer(Pipeline(tiny_age)).rows(items)
    assert right["eye"] == {"value": "right", "source": "file name+acquisition model", "mirrored": False}
    assert left["outputs"] == {} and "file name says 'left', acquisition model says 'right'" in left["error"]


def test_a_strip_is_that_rows_error(tiny_sex: Path, tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "strip.png"), np.full((40, 4000, 3), 90, np.uint8))
    (row,) = answerer(Pipeline(tiny_sex)).rows([Item(str(tmp_path / "strip.png"))])
    assert row["outputs"] == {} and "one side more than 8 times the other" in row["error"]
