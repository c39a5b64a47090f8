"""The table of labels: every cell is understood, or its line says why not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fundus_rt.benchmarks.evaluation.evaluation import EvaluationOptions, require_sense
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


def test_lines_have_the_numbers_that_an_editor_shows(tmp_path: Path) -> None:
    """A blank line, and a cell of two lines."""
    table = read(tmp_path, 'file,age,clinic\n\na.jpg,50,"one\ntwo"\nb.jpg,old,x\n\na.jpg,50,x\n', AGE)
    assert table.numbers.tolist() == [3, 5, 7] and "line 3" in table.problems[2] and table.misread[0].line == 5


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


@pytest.mark.parametrize("cell", ["999", "-3", "1e9", '"1,234"', "inf"])
def test_no_age_that_nobody_has(tmp_path: Path, cell: str) -> None:
    table = read(tmp_path, f"file,age\na.jpg,61\nb.jpg,{cell}\n", AGE)
    assert "expected 0 to 120 years" in table.problems[1] and 0 not in table.problems
    assert table.ages is not None and np.isnan(table.ages[1])


def test_what_is_no_table_is_refused_with_its_line(tmp_path: Path) -> None:
    good = "file,age\na.jpg,61\n\n"
    for bad, said in (
        ("b.jpg,63,5\nc.jpg,4\n", "line 4: 3 cells where the header has 2"),
        ('"b.jpg,63\nc.jpg,4\nd.jpg,5\n', "line 4: unexpected end of data"),
        (f"{'x' * 140_000},63\n", "line 4: field larger than field limit"),
    ):
        with pytest.raises(UsageError, match=said):
            read(tmp_path, good + bad, AGE)
    assert len(read(tmp_path, good + "b.jpg,63,,\nc.jpg\n", AGE)) == 3  # empty cells behind the last column say nothing


def test_another_encoding_is_refused_until_it_is_named(tmp_path: Path) -> None:
    path = tmp_path / "labels.csv"
    path.write_bytes("file,age,camera\na.jpg,61,Caméra\n".encode("cp1252"))
    card = tiny_card("tiny", "none", AGE)
    with pytest.raises(UsageError, match=r"not utf-8 .byte 0xe9.*--encoding cp1252"):
        read_labels(path, card, LabelOptions())
    assert read_labels(path, card, LabelOptions(encoding="cp1252")).groups["camera"].names == ("", "Caméra")
    with pytest.raises(UsageError, match="--encoding klingon is not known"):
        read_labels(path, card, LabelOptions(encoding="klingon"))


def test_columns_in_another_case_or_by_a_usual_name(tmp_path: Path) -> None:
    table = read(tmp_path, "Filename,Age,Patient_ID,Laterality,Camera\na,63,p1,OD,c\nb,60,p1,OS,d\n", AGE, by=("Camera",))
    assert table.patients.tolist() == [0, 0] and table.truths[0][:, 0].tolist() == [63, 60]
    assert [table.listed_eye(place) for place in (0, 1)] == ["right", "left"] and not table.file.doubts
    assert set(table.groups) == {"eye", "camera"}
    several = read(tmp_path, "file,age,subject,patient_id\na,63,p1,q\nb,60,p1,r\n", AGE)
    assert not several.has_patients and len(several.file.doubts) == 2 and "'subject' looks like" in several.file.doubts[0]
    both = read(tmp_path, "file,age,Patient,patient_id\na,63,p1,q\nb,60,p1,r\n", AGE)
    assert both.patients.tolist() == [0, 0] and "'patient_id' looks like 'patient'" in both.file.doubts[0]


def test_a_placeholder_is_no_patient(tmp_path: Path) -> None:
    lines = [f"{place},50,{word}" for place, word in enumerate(("-", "-", "NA", "na", "unknown", "Unknown", "p", "p"))]
    table = read(tmp_path, "\n".join(("file,age,patient", *lines)) + "\n", AGE)
    assert table.patients.tolist() == [0, 1, 2, 3, 4, 5, 6, 6]


def test_truths_that_the_card_does_not_know(tmp_path: Path) -> None:
    eye = OutputSpec("eye", "multiclass", "probability", 0.001, ("left", "right", "neither"))
    card = ModelCard(**{**vars(tiny_card("tiny", "none", AGE)), "outputs": (AGE, eye)})
    table = read(tmp_path, "file,age,eye\na,50,OS\nb,51,od\nc,52,upper\n", card)
    assert table.truths[1][:2, 0].tolist() == [0, 1]
    assert (table.misread[1].count, table.misread[1].understood, table.misread[1].line) == (1, 2, 4)
    require_sense(EvaluationOptions(), table)
    with pytest.raises(UsageError, match=r"nothing of the column eye is understood; the first says .line 2.: eye is 'upper'"):
        require_sense(EvaluationOptions(), read(tmp_path, "file,age,eye\na,50,upper\nb,51,\n", card))


def test_a_wanted_sensitivity_is_refused_before_the_work(tmp_path: Path) -> None:
    wanted = EvaluationOptions(0.9)
    one_sided = read(tmp_path, "file,sex\n" + "".join(f"{place},male\n" for place in range(20)), SEX)
    with pytest.raises(UsageError, match="20 positive and 0 other photographs; it takes 10 of each"):
        require_sense(wanted, one_sided)
    lines = "".join(f"{place},{('male', 'female')[place % 2]}\n" for place in range(20))
    require_sense(wanted, read(tmp_path, f"file,sex\n{lines}", SEX))
    grades = read(tmp_path, "file,grade\n" + "".join(f"{place},{place % 3}\n" for place in range(30)), GRADE)
    require_sense(EvaluationOptions(0.9, referable="mild"), grades)
    for options in (wanted, EvaluationOptions(0.9, referable="mild", new_card=True)):
        with pytest.raises(UsageError, match="two classes"):
            require_sense(options, grades)
