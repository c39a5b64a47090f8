"""The file with the labels: its encoding, its columns and its lines; what is not a proper table is refused with its line."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fundus_rt.models.errors import UsageError

ENCODING = "utf-8-sig"
_SYNONYMS = {
    "file": ("filename", "file_name", "image", "path"),
    "patient": ("patient_id", "patientid", "patient id", "subject", "subject_id"),
    "eye": ("laterality", "side"),
    "camera": ("device",),
    "age": ("age_years",),
}
"""Other usual names of the columns that are known, in lower case."""


@dataclass(frozen=True)
class LabelsFile:
    """A CSV file with a header."""

    path: Path
    encoding: str
    header: tuple[str, ...]
    """Names of the columns; one that is known under another name or case is called as it is known."""
    renamed: dict[str, str]
    """By the name in the file how the column is called here, where that differs."""
    doubts: tuple[str, ...]
    """Sentences about columns that look known and are not used."""

    def lines(self) -> Iterator[tuple[int, dict[str, str]]]:
        """The number of each line in the file, where it begins, and its cells by column; what a short line lacks is empty.

        Raises:
            UsageError: a line has more cells than there are columns, opens a quote that is never closed, or holds a cell too
                long to be one; the message gives its number in the file.
        """
        rows = _rows(self.path, self.encoding)
        next(rows, None)
        for number, row in rows:
            if any(cell.strip() for cell in row[len(self.header) :]):
                raise UsageError(
                    f"{self.path.name}, line {number}: {len(row)} cells where the header has {len(self.header)}; a comma "
                    'inside a cell, as in 63,5, needs quotes: "63,5"'
                )
            yield number, dict(zip(self.header, (*row, *[""] * (len(self.header) - len(row))), strict=False))


def open_labels(path: Path, encoding: str | None, known: Sequence[str]) -> LabelsFile:
    """Read the header of a table of labels.

    Args:
        path: of the CSV file.
        encoding: of its text; None: UTF-8.
        known: names that a column can have beside ``file``, ``patient``, ``eye``, ``camera`` and ``age``: those of the outputs.

    Raises:
        UsageError: the file cannot be read or decoded, has no column ``file``, or has two columns of one name.
    """
    encoding = ENCODING if encoding is None or encoding.lower().replace("_", "-") in ("utf-8", "utf8") else encoding
    written = [name.strip() for name in next(_rows(path, encoding), (0, []))[1]]
    doubled = sorted({name for name in written if name and written.count(name) > 1})
    if doubled:
        raise UsageError(f"{path.name} has two columns called {', '.join(doubled)}; give each its own name")
    renamed, doubts = _known_names(written, known)
    header = tuple(renamed.get(name, name) for name in written)
    if "file" not in header:
        got = ", ".join(written) or "nothing"
        raise UsageError(f"{path.name} has the columns {got}; expected one called file, separated by commas, and the labels")
    return LabelsFile(path, encoding, header, renamed, doubts)


def _known_names(written: Sequence[str], known: Sequence[str]) -> tuple[dict[str, str], tuple[str, ...]]:
    """Which columns are meant by another case or a usual synonym, where only one can be; and what is said of the others."""
    renamed: dict[str, str] = {}
    doubts = []
    for name in dict.fromkeys((*_SYNONYMS, *known)):
        synonyms = _SYNONYMS.get(name, ())
        like = [column for column in written if column not in known and column.lower() in (name.lower(), *synonyms)]
        like = [column for column in like if column not in renamed]
        if name in written:
            unused = [column for column in like if column != name]
        else:
            cased = [column for column in like if column.lower() == name.lower()]
            meant = cased if len(cased) == 1 else like
            if len(meant) == 1:
                renamed[meant[0]] = name
            unused = [column for column in like if column not in renamed]
        doubts += [
            f"the column {column!r} looks like {name!r} but is not used; call the one that is meant {name!r}" for column in unused
        ]
    return renamed, tuple(doubts)


def _rows(path: Path, encoding: str) -> Iterator[tuple[int, list[str]]]:
    """Every row that is not blank, with the number of the line that it begins on."""
    number = 1
    try:
        with _opened(path, encoding) as stream:
            reader = csv.reader(stream, strict=True)
            for row in reader:
                if row:
                    yield number, row
                number = reader.line_num + 1
    except UnicodeDecodeError as error:
        raise UsageError(
            f"{path.name}, about line {number}: the text is not {encoding.removesuffix('-sig')} "
            f"(byte 0x{error.object[error.start]:02x}). "
            "Save it as 'CSV UTF-8', or say what it is: --encoding cp1252 (Western Excel), --encoding cp932 (Japanese)"
        ) from error
    except csv.Error as error:
        raise UsageError(
            f"{path.name}, line {number}: {error}. A quote that is opened there has to be closed behind its cell, and a cell "
            f"holds at most {csv.field_size_limit()} characters"
        ) from error


def _opened(path: Path, encoding: str) -> Any:
    try:
        return open(path, newline="", encoding=encoding)
    except LookupError as error:
        raise UsageError(f"--encoding {encoding} is not known; expected one such as utf-8, cp1252 or cp932") from error
    except OSError as error:
        raise UsageError(f"labels {path} cannot be read ({error.strerror}); give a CSV file with a file column") from error
