"""What a cell of the table of labels says, in the terms of the card."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fundus_rt.models.card import ModelCard, OutputSpec
from fundus_rt.models.errors import UsageError

PLAIN_COLUMNS = ("label", "value", "truth")
"""Names of a column with the truth where one output alone is asked."""
EYE_WORDS = {"l": "left", "os": "left", "r": "right", "od": "right"}
"""By a usual short word of an eye, in lower case, its name."""
OLDEST = 120
"""Years; nobody whose retina was photographed is known to have been older."""
_YES = {"1": 1.0, "yes": 1.0, "true": 1.0, "y": 1.0, "1.0": 1.0, "0": 0.0, "no": 0.0, "false": 0.0, "n": 0.0, "0.0": 0.0}


@dataclass(frozen=True)
class Question:
    """One output of the card and the columns that hold its truth."""

    output: OutputSpec
    columns: tuple[str, ...]
    """One, or one for each label of a multilabel output."""

    @property
    def width(self) -> int:
        """Numbers of one truth: 1, or one for each label of a multilabel output."""
        return len(self.output.labels) if self.output.task == "multilabel" else 1


def questions_of(
    card: ModelCard, header: Sequence[str], output_names: Sequence[str] = (), column: str | None = None
) -> tuple[Question, ...]:
    """Which outputs can be asked with the columns of a table.

    Args:
        card: of the model.
        header: names of the columns.
        output_names: the outputs that are wanted; empty: all that have a column.
        column: the column with the truth of the one output that is wanted.

    Raises:
        UsageError: an output that the card does not have, a column that the table does not have, or nothing to ask.
    """
    known = {output.name: output for output in card.outputs}
    unknown = [name for name in output_names if name not in known]
    if unknown:
        raise UsageError(f"{card.name} has no output {', '.join(unknown)}; it has {', '.join(known)}")
    wanted = [known[name] for name in output_names] or list(card.outputs)
    if column is not None:
        if len(wanted) != 1:
            raise UsageError(f"--column names the truth of one output; say which with --output-name ({', '.join(known)})")
        if column not in header:
            raise UsageError(f"the labels have no column {column!r}; they have {', '.join(header)}")
        return (Question(wanted[0], (column,)),)
    found = []
    for output in wanted:
        columns = _columns_of(output, header, alone=len(wanted) == 1)
        if columns:
            found.append(Question(output, columns))
        elif output_names:
            raise UsageError(_no_column(output, header))
    if not found:
        raise UsageError("; ".join(_no_column(output, header) for output in wanted))
    return tuple(found)


def truth_of(line: Mapping[str, str | None], question: Question, meanings: Mapping[str, str]) -> tuple[float, ...]:
    """The truth of one line: a number, the place of the label in the card's order, or 0 and 1 for each label.

    Args:
        line: cells by column.
        question: what is asked.
        meanings: by a word of the table the label that it means.

    Raises:
        ValueError: the cell is empty or says nothing that the card knows; the message says what was expected.
    """
    output = question.output
    cells = [(line.get(column) or "").strip() for column in question.columns]
    if not any(cells):
        raise ValueError(f"no label for {output.name}")
    if len(cells) > 1:
        return tuple(_yes_or_no(cell, column) for cell, column in zip(cells, question.columns, strict=True))
    cell = cells[0]
    if output.task == "regression":
        return (_number(cell, output),)
    if output.task == "multilabel":
        named = [] if cell.lower() == "none" else [_place(word.strip(), output, meanings) for word in cell.split(";")]
        return tuple(float(place in named) for place in range(len(output.labels)))
    return (float(_place(cell, output, meanings)),)


def _columns_of(output: OutputSpec, header: Sequence[str], alone: bool) -> tuple[str, ...]:
    if output.name in header:
        return (output.name,)
    if output.task == "multilabel" and all(label in header for label in output.labels):
        return output.labels
    plain = [name for name in PLAIN_COLUMNS if name in header]
    return (plain[0],) if alone and len(plain) == 1 else ()


def _no_column(output: OutputSpec, header: Sequence[str]) -> str:
    said = f"the labels have no column for the output {output.name!r}: they have {', '.join(header)}. Call the column "
    return f"{said}{output.name!r}, or name it with --output-name {output.name} --column NAME"


def years(cell: str) -> float:
    """The age in a cell.

    Raises:
        ValueError: it is no number from 0 to `OLDEST`; the message says what was expected.
    """
    value = _finite(cell.strip())
    if not 0 <= value <= OLDEST:
        raise ValueError(f"expected 0 to {OLDEST} years")
    return value


def _finite(cell: str) -> float:
    """The number in a cell, nan where there is none; ``1,234`` can mean two numbers and is none."""
    whole, comma, part = cell.partition(",")
    if comma and "," not in part and "." not in cell and len(part) != 3:
        cell = f"{whole}.{part}"
    try:
        value = float(cell)
    except ValueError:
        return math.nan
    return value if math.isfinite(value) else math.nan


def _number(cell: str, output: OutputSpec) -> float:
    if output.unit == "years":
        try:
            return years(cell)
        except ValueError as error:
            raise ValueError(f"{output.name} is {cell!r}, {error}") from None
    value = _finite(cell)
    if math.isnan(value):
        raise ValueError(f"{output.name} is {cell!r}, expected a number of {output.unit}")
    return value


def _place(cell: str, output: OutputSpec, meanings: Mapping[str, str]) -> int:
    """The label that a word means, by its place: by the call, by name in any case, or by its number counted from 0."""
    by_name = {label.lower(): place for place, label in enumerate(output.labels)}
    word = meanings.get(cell, cell)
    if {"left", "right"} <= set(by_name):
        word = EYE_WORDS.get(word.lower(), word)
    if word.lower() in by_name:
        return by_name[word.lower()]
    try:
        number = float(word)
    except ValueError:
        number = math.nan
    if number in range(len(output.labels)):
        return int(number)
    listed = ", ".join(f"{label} ({place})" for place, label in enumerate(output.labels))
    raise ValueError(
        f"{output.name} is {cell!r}, expected one of {listed}; say what the table's words mean with --label-means WORD=LABEL"
    )


def _yes_or_no(cell: str, column: str) -> float:
    if cell.lower() not in _YES:
        raise ValueError(f"{column} is {cell!r}, expected 0 or 1, yes or no, true or false")
    return _YES[cell.lower()]
