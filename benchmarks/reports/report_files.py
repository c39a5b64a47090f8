"""A report on the disk: ``report.json``, ``photographs.csv`` and ``report.html`` in one folder.

The rows of the photographs are run through once and kept in a file, so that 100,000 of them need no more memory than ten.
"""

from __future__ import annotations

import csv
import dataclasses
import json
import math
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import IO, Any

from fundus_rt.benchmarks.extras import require_proof
from fundus_rt.benchmarks.reports.document import Picture, ReportDocument, Row, Scalar, Section
from fundus_rt.benchmarks.reports.html import html_from_document
from fundus_rt.benchmarks.reports.json_values import json_ready
from fundus_rt.converters.backends import versions
from fundus_rt.models.artifacts import atomic_path, sha256_of_bytes, sha256_of_file
from fundus_rt.models.card import INTENDED_USE
from fundus_rt.models.errors import UsageError

FORMAT = 1
"""Version of the layout of ``report.json``; its schema is ``report_schema.json`` beside this module."""
JSON_NAME = "report.json"
CSV_NAME = "photographs.csv"
HTML_NAME = "report.html"
REASONS_KEY = "why_null"
"""Key of the reasons for which a number is null: in the report by JSON pointer, in a photograph's row by column."""
_BEGINNING = '{"report": "fundus-rt"'
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")


@dataclass(frozen=True)
class ReportFiles:
    """Where a report was written."""

    json: Path
    csv: Path
    html: Path
    photographs: int
    """Number of rows in the CSV and in the JSON."""


def prepare_report_folder(folder: Path) -> None:
    """Make the folder of a report, and see before the work begins that a report can be written into it.

    Raises:
        UsageError: it is a file, cannot be made or written, or holds files of these names that are no report of this package.
        BackendUnavailableError: Jinja or matplotlib is not installed.
    """
    for package in ("jinja2", "matplotlib"):
        require_proof(package)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UsageError(f"a report cannot be written to {folder} ({error.strerror or error}); give another folder") from error
    ours = _begins_as_ours(folder / JSON_NAME)
    names = [JSON_NAME, CSV_NAME, HTML_NAME]
    foreign = [name for name in names if (folder / name).exists() or (folder / name).is_symlink()]
    if foreign and not ours:
        raise UsageError(
            f"{folder} holds {' and '.join(foreign)}, but no report of fundus-rt; they are left as they are: give another folder "
            "or move them away"
        )


def write_report(document: ReportDocument, folder: Path) -> ReportFiles:
    """Write the three files of a report; an earlier report in the folder is replaced, other files are left alone.

    Nothing is replaced before all three files are written. ``report.json`` then comes first and holds the SHA-256 of the other
    two, so that a set torn apart by a power cut can be told.

    The CSV is UTF-8 with one line per photograph and the columns in the order of their first appearance. A text that a
    spreadsheet would take for a formula (it begins with ``=``, ``+``, ``-``, ``@``, a tab or a line break) gets an apostrophe in
    front. A number that is not finite is empty there, and null in the JSON, which gives the reason.

    Args:
        document: what the report says.
        folder: made if it is not there.

    Raises:
        UsageError: see `prepare_report_folder`; a row or the figures hold something that is no scalar, or a picture is not as
            `fundus_rt.benchmarks.reports.thumbnails.thumbnail` makes it.
        BackendUnavailableError: Jinja or matplotlib is not installed.
    """
    prepare_report_folder(folder)
    written = datetime.now(timezone.utc)
    version = versions("fundus-rt").get("fundus-rt", "of unknown version")
    with ExitStack() as stack:
        spool = stack.enter_context(tempfile.TemporaryFile("w+", encoding="ascii", dir=folder))
        columns, photographs = _spool_rows(document.photograph_rows(), spool)
        # The stack closes from its end: the JSON, entered last, takes its place first.
        html_path = stack.enter_context(atomic_path(folder / HTML_NAME))
        csv_path = stack.enter_context(atomic_path(folder / CSV_NAME))
        json_path = stack.enter_context(atomic_path(folder / JSON_NAME))
        page = html_from_document(document, photographs, written, version)
        html_path.write_text(page, encoding="utf-8", errors="backslashreplace", newline="\n")
        _write_csv(csv_path, columns, _spooled(spool))
        header = {
            "report": "fundus-rt",
            "format": FORMAT,
            "written": written.isoformat(timespec="seconds"),
            "fundus_rt": version,
            "intended_use": INTENDED_USE,
            "files": {CSV_NAME: sha256_of_file(csv_path), HTML_NAME: sha256_of_file(html_path)},
            **_content(document),
            "columns": columns,
        }
        _write_json(json_path, header, spool)
    return ReportFiles(folder / JSON_NAME, folder / CSV_NAME, folder / HTML_NAME, photographs)


def _begins_as_ours(path: Path) -> bool:
    """Whether a file begins as a ``report.json`` of this package does."""
    try:
        with open(path, encoding="utf-8", errors="replace") as stream:
            return stream.read(len(_BEGINNING)) == _BEGINNING
    except OSError:
        return False


def _spool_rows(rows: Iterable[Row], spool: IO[str]) -> tuple[list[str], int]:
    """Write the rows to `spool`, one JSON object a line; returns the columns in order of appearance and the number of rows."""
    columns: dict[str, None] = {}
    count = 0
    for row in rows:
        values: dict[str, Any] = {}
        reasons: dict[str, str] = {}
        for name, value in row.items():
            values[name] = _scalar(value, f"row {count}, column {name!r}")
            if isinstance(values[name], float) and not math.isfinite(values[name]):
                reasons[name] = str(values[name])
                values[name] = None
        if REASONS_KEY in values:
            raise UsageError(f"row {count} has a column named {REASONS_KEY!r}, which the report uses itself; call it otherwise")
        columns.update(dict.fromkeys(values))
        spool.write(json.dumps({**values, REASONS_KEY: reasons} if reasons else values, allow_nan=False))
        spool.write("\n")
        count += 1
    return list(columns), count


def _scalar(value: Any, where: str) -> Scalar:
    """A cell as a Python value.

    Raises:
        UsageError: it is no text, number, boolean or None.
    """
    value = value.item() if hasattr(value, "item") else value  # NumPy's scalars
    if value is None or isinstance(value, (str, bool, int, float)):
        return value
    raise UsageError(f"the report's {where} is a {type(value).__name__}, expected a text, a number, a boolean or None")


def _spooled(spool: IO[str]) -> Iterator[dict[str, Any]]:
    """The rows again, from the first."""
    spool.seek(0)
    for line in spool:
        yield json.loads(line)


def _write_csv(path: Path, columns: list[str], rows: Iterable[dict[str, Any]]) -> None:
    """One line per photograph."""
    with open(path, "w", encoding="utf-8", errors="backslashreplace", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow([_cell(column) for column in columns])
        for row in rows:
            writer.writerow([_cell(row.get(column)) for column in columns])


def _cell(value: Scalar) -> Scalar:
    """A cell of the CSV: booleans in words, texts that no spreadsheet computes."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        text = value.replace("\0", "\ufffd")
        return f"'{text}" if text.startswith(_FORMULA) else text
    return value


def _content(document: ReportDocument) -> dict[str, Any]:
    """What the document says, as JSON: all but the rows of the photographs and the pixels of the pictures."""
    reasons: dict[str, str] = {}
    content = {
        "kind": document.kind,
        "title": document.title,
        "verdict": dataclasses.asdict(document.verdict),
        "subject": dict(document.subject),
        "figures": document.figures,
        "sections": [_section(section) for section in document.sections],
    }
    ready: dict[str, Any] = json_ready(content, reasons)
    return {**ready, REASONS_KEY: reasons}


def _section(section: Section) -> dict[str, Any]:
    """A section as JSON."""
    return {
        "title": section.title,
        "sentences": section.sentences,
        "tables": [dataclasses.asdict(table) for table in section.tables],
        "plots": [dataclasses.asdict(plot) for plot in section.plots],
        "pictures": [_picture(picture) for picture in section.pictures],
    }


def _picture(picture: Picture) -> dict[str, str]:
    """A picture as JSON: the page has its pixels."""
    return {"caption": picture.caption, "jpeg_sha256": sha256_of_bytes(picture.jpeg)}


def _write_json(path: Path, header: dict[str, Any], spool: IO[str]) -> None:
    """The header with one top-level entry a line, then the photographs with one row a line."""
    with open(path, "w", encoding="ascii", newline="\n") as stream:
        entries = (f"{json.dumps(key)}: {json.dumps(value, allow_nan=False)}" for key, value in header.items())
        stream.write("{" + ",\n".join(entries) + ',\n"photographs": [')
        spool.seek(0)
        for number, line in enumerate(spool):
            stream.write((",\n" if number else "\n") + line.rstrip("\n"))
        stream.write("\n]}\n")
