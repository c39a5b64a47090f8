"""The table of labels: every cell is understood, or its line says why not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fundus_rt.benchmarks.evaluation.labels import LabelOptions, LabelTable, read_labels
from fundus_rt.models.card import ModelCard, OutputSpec
from fundus_rt.models.errors import UsageError
from tests.make_models import AGE, SEX, tiny_card

GRADE = OutputSpec("grade", "multiclass", "probability", 0.001, ("none", "mild", "severe"))
SIGNS = OutputSpec("signs", "multilabel", "probability", 0.001, ("drusen", "exudate"))


def read(tmp_path: Path, text: str, output: OutputSpec | ModelCard, **options: object) -> LabelTable:
    path = tmp_path / "labels.csv"
    path.write_text(text, encoding="utf-8")
    card = output if isinstance(output, ModelCard) else tiny_card("tiny", "none", output)
    return read_labels(path, card, LabelOptions(**options))  # type: ignore[arg-type]


def test_ages_patients_and_groups(tmp_path: Path) -> None:
    text = '\ufefffile,age,patient,camera,clinic\na.jpg,61.5,p1,Kowa,x\nb.jpg,"61,5",p1,Topcon,y\nc.jpg,40,,Kowa,x\n'
    table = read(tmp_path, text, AGE, by=("clinic",))
    np.testing.assert_array_equal(table.truths[0][:, 0], [61.5, 61.5, 40])
    assert table.patients.tolist() == [0, 0, 1] and table.has_patients
    assert [table.groups["camera"].names[code] for code in table.groups["camera"].codes] == ["Kowa", "Topcon", "Kowa"]
    assert [table.groups["clinic"].names[code] for code in table.groups["clinic"].codes] == ["x", "y", "x"]
    assert [item.path for item in table.items()] == [str(tmp_path / name) for name in ("a.jpg", "b.jpg", "c.jpg")]
    assert not table.problems


def test_no_line_is_dropped(tmp_path: Path) -> None:
    text = "file,age,eye\na.jpg,50,left\n,50,left\nb.jpg,,right\nc.jpg,old,right\nd.jpg,50,upper\n"
    text += "a.jpg,50,left\ne.jpg,nan,\nf.jpg,1,OD\n"
    table = read(tmp_path, text, AGE)
    assert len(table) == 8
    assert {line: said.split(",")[0][:24] for line, said in table.problems.items()} == {
        1: "the line names no file",
        2: "no label for age",
        3: "age is 'old'",
        4: "the eye is 'upper'",
        5: "the same file as line 2:",
        6: "age is 'nan'",
    }
    items = list(table.items())
    assert [(Path(item.path).name, item.listed_eye) for item in items] == [("a.jpg", "left"), ("f.jpg", "right")]


def test_one_file_with_two_labels_counts_for_neither(tmp_path: Path) -> None:
    table = read(tmp_path, "file,sex\na.jpg,male\nb.jpg,male\na.jpg,female\n", SEX)
    assert set(table.problems) == {0, 2} and "another label" in table.problems[0]
    assert [Path(item.path).name for item in table.items()] == ["b.jpg"]


@pytest.mark.parametrize(("cell", "place"), [("female", 0), ("Male", 1), (" male ", 1), ("1", 1), ("0.0", 0), ("M", 1), ("w", 0)])
def test_classes_by_name_number_or_meaning(tmp_path: Path, cell: str, place: int) -> None:
    table = read(tmp_path, f"file,label\na.jpg,{cell}\n", SEX, meanings={"M": "male", "w": "female"})
    assert table.truths[0][0, 0] == place


@pytest.mark.parametrize("cell", ["x", "2", "-1", "0.5"])
def test_a_class_that_the_card_does_not_have(tmp_path: Path, cell: str) -> None:
    table = read(tmp_path, f"file,label\na.jpg,{cell}\n", SEX)
    assert table.problems[0].startswith(f"sex is {cell!r}, expected one of female (0), male (1)")


def test_several_signs_in_one_column_or_in_columns(tmp_path: Path) -> None:
    one = read(tmp_path, "file,signs\na.jpg,drusen;exudate\nb.jpg,none\nc.jpg,Exudate\nd.jpg,\n", SIGNS)
    np.testing.assert_array_equal(one.truths[0][:3], [[1, 1], [0, 0], [0, 1]])
    assert set(one.problems) == {3}
    several = read(tmp_path, "file,drusen,exudate\na.jpg,1,yes\nb.jpg,no,0\nc.jpg,1,\n", SIGNS)
    np.testing.assert_array_equal(several.truths[0][:2], [[1, 1], [0, 0]])
    assert "exudate is ''" in several.problems[2]


def test_a_line_that_answers_one_of_two_questions_is_used_for_it(tmp_path: Path) -> None:
    card = ModelCard(**{**vars(tiny_card("tiny", "none", AGE)), "outputs": (AGE, SEX)})
    table = read(tmp_path, "file,age,sex\na.jpg,50,male\nb.jpg,51,\n", card)
    assert not table.problems and table.notes == {1: "no label for sex"}
    assert np.isnan(table.truths[1][1, 0]) and table.truths[0][1, 0] == 51
    only = read(tmp_path, "file,age,sex\na.jpg,50,male\n", card, output_names=("sex",))
    assert [question.output.name for question in only.questions] == ["sex"]
    assert only.ages is not None and only.ages[0] == 50


def test_calls_that_cannot_be_understood(tmp_path: Path) -> None:
    wrong: list[tuple[str, OutputSpec, dict[str, object], str]] = [
        ("name,age\na,1\n", AGE, {}, "columns name, age; expected one called file"),
        ("file;age\na;1\n", AGE, {}, "separated by commas"),
        ("file,years\na,1\n", AGE, {}, "no column for the output 'age'"),
        ("file,label,value\na,1,1\n", AGE, {}, "no column for the output 'age'"),
        ("file,age\n", AGE, {}, "no line"),
        ("file,age,age\na,1,1\n", AGE, {}, "two columns called age"),
        ("file,age\na,1\n", AGE, {"by": ("clinic",)}, "no column clinic"),
        ("file,age\na,1\n", AGE, {"output_names": ("sex",)}, "no output sex; it has age"),
        ("file,age\na,1\n", AGE, {"column": "years"}, "no column 'years'"),
    ]
    for text, output, options, said in wrong:
        with pytest.raises(UsageError, match=said):
            read(tmp_path, text, output, **options)
    with pytest.raises(UsageError, match="cannot be read"):
        read_labels(tmp_path / "none.csv", tiny_card("tiny", "none", AGE), LabelOptions())
    chosen = read(tmp_path, "file,years\na.jpg,33\n", AGE, column="years", images=Path("/photographs"))
    assert chosen.truths[0][0, 0] == 33 and next(chosen.items()).path == str(Path("/photographs/a.jpg"))


def test_grades_by_name(tmp_path: Path) -> None:
    table = read(tmp_path, "file,grade\na.jpg,severe\nb.jpg,1\n", GRADE)
    assert table.truths[0][:, 0].tolist() == [2, 1]
