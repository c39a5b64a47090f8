"""What the user knows of the photographs: the table of labels, read line by line into little memory."""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fundus_rt.benchmarks.evaluation.labels_file import LabelsFile, open_labels
from fundus_rt.benchmarks.evaluation.truths import EYE_WORDS, Question, questions_of, truth_of, years
from fundus_rt.models.card import ModelCard
from fundus_rt.models.errors import UsageError
from fundus_rt.runtime.eye import EYES
from fundus_rt.runtime.inputs import Item

GROUP_COLUMNS = ("eye", "camera")
"""Columns that are reported by, wherever they are there."""
NOBODY = ("-", "--", ".", "?", "na", "n/a", "nan", "nil", "none", "null", "unknown")
"""Words that stand in a column of patients where the patient is not known, in lower case."""


@dataclass(frozen=True)
class LabelOptions:
    """How the table of labels is to be read."""

    images: Path | None = None
    """Folder that the file names are relative to; None: the table's own."""
    output_names: tuple[str, ...] = ()
    """Outputs of the card to evaluate; empty: all that the table has a column for."""
    column: str | None = None
    """Column with the truth, where it is not called as the output; for one output."""
    meanings: Mapping[str, str] = field(default_factory=dict)
    """By a word of the table the card's label that it means, for example ``{"M": "male"}``."""
    by: tuple[str, ...] = ()
    """Further columns to report by."""
    encoding: str | None = None
    """Of the table's text; None: UTF-8."""


@dataclass(frozen=True)
class Grouping:
    """One column of words over all lines."""

    codes: NDArray[np.int64]
    """[N], places in `names`."""
    names: tuple[str, ...]
    """The first is empty: the line says nothing."""


@dataclass
class Misread:
    """Truths of one question that are there and not understood."""

    count: int = 0
    understood: int = 0
    """Those that are."""
    line: int = 0
    """Of the first that is not, as the file counts."""
    said: str = ""
    """Why it is not."""


@dataclass
class LabelTable:
    """All lines of a table of labels. Names of files are not kept; `items` reads them again."""

    file: LabelsFile
    options: LabelOptions
    questions: tuple[Question, ...]
    misread: tuple[Misread, ...]
    """By question."""
    truths: list[NDArray[np.float64]]
    """By question [N, T]; nan where the line does not say. T is 1, or the number of labels of a multilabel output."""
    numbers: NDArray[np.int64]
    """[N], of each line in the file, the header being line 1."""
    patients: NDArray[np.int64]
    """[N], numbered from 0; each line without a patient is its own."""
    has_patients: bool
    ages: NDArray[np.float64] | None
    """[N], years; None where the table has no such column."""
    groups: dict[str, Grouping]
    places: dict[str, int]
    """By path of a photograph its line, counted from 0."""
    problems: dict[int, str]
    """By line why it cannot be used."""
    notes: dict[int, str]
    """By line what of it cannot be used; the rest can."""

    @property
    def path(self) -> Path:
        """Of the table."""
        return self.file.path

    def __len__(self) -> int:
        return len(self.patients)

    def items(self) -> Iterator[Item]:
        """The photographs to answer, each once, in the order of the lines."""
        for place, (_, line) in enumerate(self.file.lines()):
            if place not in self.problems and self.places.get(_full_path(line, self)) == place:
                yield Item(_full_path(line, self), self.listed_eye(place))

    def names(self) -> Iterator[str]:
        """What the table calls each photograph, line by line."""
        return ((line.get("file") or "") for _, line in self.file.lines())

    def path_of(self, place: int) -> str:
        """The photograph of a line; reads the table up to there."""
        return next(_full_path(line, self) for at, (_, line) in enumerate(self.file.lines()) if at == place)

    def listed_eye(self, place: int) -> str | None:
        """The eye that a line gives as a fact; None where it does not, or where the eye is what is asked."""
        if "eye" not in self.groups or self.asks_eye:
            return None
        return self.groups["eye"].names[self.groups["eye"].codes[place]] or None

    @property
    def asks_eye(self) -> bool:
        """Whether the eye is what the model is asked, so that no other source may tell it."""
        return any("eye" in question.columns for question in self.questions)


def read_labels(path: Path, card: ModelCard, options: LabelOptions) -> LabelTable:
    """Read a table of labels.

    Args:
        path: CSV with a header; a column ``file``, one with the truth for each question, and any of ``patient``, ``eye``,
            ``camera``, ``age`` and what `LabelOptions.by` names.
        card: of the model.
        options: how to read it.

    Raises:
        UsageError: the table cannot be read, has no line, or lacks a column; the message names what is there.
    """
    file = open_labels(path, options.encoding, [word for output in card.outputs for word in (output.name, *output.labels)])
    header = file.header
    column = None if options.column is None else file.renamed.get(options.column, options.column)
    options = replace(options, by=tuple(file.renamed.get(name, name) for name in options.by), column=column)
    questions = questions_of(card, header, options.output_names, options.column)
    missing = [name for name in options.by if name not in header]
    if missing:
        raise UsageError(f"{path.name} has no column {', '.join(missing)} to report by; it has {', '.join(header)}")
    reader = _Reader(file, questions, options)
    for number, line in file.lines():
        reader.take(line, number)
    if not len(reader.patients):
        raise UsageError(f"{path.name} has a header and no line; give one line for each photograph")
    return reader.table()


class _Reader:
    """Collects the lines into columns of numbers."""

    def __init__(self, file: LabelsFile, questions: tuple[Question, ...], options: LabelOptions) -> None:
        self.file, self.path, self.questions, self.options = file, file.path, questions, options
        header = file.header
        self.misread = tuple(Misread() for _ in questions)
        self.truths = [array("d") for _ in questions]
        self.numbers = array("q")
        self.patients = array("q")
        self.patient_numbers: dict[str, int] = {}
        self.has_patients = "patient" in header
        self.ages = array("d") if "age" in header else None
        columns = dict.fromkeys((*(name for name in GROUP_COLUMNS if name in header), *options.by))
        self.codes = {name: array("q") for name in columns}
        self.words: dict[str, dict[str, int]] = {name: {"": 0} for name in columns}
        self.places: dict[str, int] = {}
        self.problems: dict[int, str] = {}
        self.notes: dict[int, str] = {}

    def take(self, line: Mapping[str, str | None], number: int) -> None:
        place = len(self.patients)
        self.numbers.append(number)
        said: list[tuple[float, ...]] = []
        unsaid: list[str] = []
        problems: list[str] = []
        notes: list[str] = []
        for question, column, misread in zip(self.questions, self.truths, self.misread, strict=True):
            try:
                truth = truth_of(line, question, self.options.meanings)
                misread.understood += 1
            except ValueError as error:
                if any((line.get(name) or "").strip() for name in question.columns):
                    misread.count += 1
                    misread.line, misread.said = misread.line or number, misread.said or str(error)
                truth = (math.nan,) * question.width
                unsaid.append(str(error))
            column.extend(truth)
            said.append(truth)
        (problems if len(unsaid) == len(self.questions) else notes).extend(unsaid)
        self._take_patient(line.get("patient") or "")
        notes += self._take_age(line.get("age"))
        problems += self._take_groups(line)
        if not line.get("file"):
            problems.insert(0, "the line names no file")
        if not problems:
            problems += self._problem_of_repeat(_full_path(line, self), place, said)
        if problems:
            self.problems[place] = "; ".join(problems)
        if notes:
            self.notes[place] = "; ".join(notes)

    def _take_groups(self, line: Mapping[str, str | None]) -> list[str]:
        problems = []
        for name, codes in self.codes.items():
            word = (line.get(name) or "").strip()
            if name == "eye":
                word = EYE_WORDS.get(word.lower(), word.lower())
                asked = any("eye" in question.columns for question in self.questions)
                if word and word not in EYES and not asked:
                    problems.append(f"the eye is {word!r}, expected left, right, OD, OS or nothing")
            codes.append(self.words[name].setdefault(word, len(self.words[name])))
        return problems

    def _take_age(self, cell: str | None) -> list[str]:
        if self.ages is None:
            return []
        said = []
        try:
            age = years(cell or "")
        except ValueError as error:
            age = math.nan
            said = [f"the age is {cell!r}, {error}"] if (cell or "").strip() else []
        self.ages.append(age)
        return said

    def _problem_of_repeat(self, path: str, place: int, said: list[tuple[float, ...]]) -> list[str]:
        first = self.places.setdefault(path, place)
        if first == place:
            return []
        width = [question.width for question in self.questions]
        before = [tuple(column[first * w : first * w + w]) for column, w in zip(self.truths, width, strict=True)]
        if _same_truths(before, said):
            return [f"the same file as line {self.numbers[first]}: counted once"]
        self.problems[first] = f"line {self.numbers[place]} gives the same file another label: neither is used"
        return [f"line {self.numbers[first]} gives the same file another label: neither is used"]

    def _take_patient(self, name: str) -> None:
        known = self.patient_numbers
        name = "" if name.strip().lower() in NOBODY else name.strip()
        self.patients.append(known.setdefault(name or f"\0line {len(self.patients)}", len(known)))

    def table(self) -> LabelTable:
        truths = [
            np.array(column, np.float64).reshape(-1, question.width)
            for column, question in zip(self.truths, self.questions, strict=True)
        ]
        groups = {name: Grouping(np.array(codes, np.int64), tuple(self.words[name])) for name, codes in self.codes.items()}
        return LabelTable(
            file=self.file,
            options=self.options,
            questions=self.questions,
            misread=self.misread,
            truths=truths,
            numbers=np.array(self.numbers, np.int64),
            patients=np.array(self.patients, np.int64),
            has_patients=self.has_patients,
            ages=None if self.ages is None else np.array(self.ages, np.float64),
            groups=groups,
            places=self.places,
            problems=self.problems,
            notes=self.notes,
        )


def _same_truths(some: Sequence[tuple[float, ...]], others: Sequence[tuple[float, ...]]) -> bool:
    return all(np.array_equal(one, other, equal_nan=True) for one, other in zip(some, others, strict=True))


def _full_path(line: Mapping[str, str | None], table: Any) -> str:
    folder = table.options.images or table.path.parent
    return str(folder / (line.get("file") or ""))
