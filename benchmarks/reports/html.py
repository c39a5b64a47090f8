"""A report as one page of HTML that needs no network, no script and no other file."""

from __future__ import annotations

import base64
import importlib.resources
import io
import json
import re
from datetime import datetime
from typing import Any

from PIL import Image

from fundus_rt.benchmarks.extras import require_proof
from fundus_rt.benchmarks.reports.document import Picture, Plot, ReportDocument, Scalar, Table
from fundus_rt.benchmarks.reports.numbers import column_in_words
from fundus_rt.benchmarks.reports.plot_style import printable
from fundus_rt.benchmarks.reports.plots import svg_from_plot
from fundus_rt.benchmarks.reports.thumbnails import MOST_SIDE
from fundus_rt.models.card import INTENDED_USE
from fundus_rt.models.errors import UsageError

_VERDICTS = {True: ("Passed", "passed", "✓"), False: ("Failed", "failed", "✗"), None: ("No verdict", "neutral", "●")}
_OWN_VERDICTS: dict[tuple[str, bool | None], tuple[str, str, str]] = {
    ("robustness", True): ("Follows its checkpoint", "neutral", "●"),
    ("robustness", False): ("Leaves its checkpoint", "failed", "✗"),
    ("evaluation", True): ("Published figures hold", "passed", "✓"),
    ("evaluation", False): ("A published figure does not hold", "failed", "✗"),
}
"""By kind of report and outcome, where other words are due: a file may follow its checkpoint, and both change decisions."""
_KINDS = {
    "parity": "Parity report: the original against the converted file",
    "evaluation": "Evaluation on labelled photographs",
    "robustness": "Robustness report",
    "bench": "Speed: times, and what the machine did meanwhile",
}
_LIKE_A_NUMBER = re.compile(r"[<>≤≥±+\-−]?\d(?:[\d.,:()%±+\-–−/ ]|of |to |e-)*|–|below [\d.e-]+|above [\d.e-]+")
"""Texts that stand in a column of numbers: "0.9 %", "3 of 413", "0.971 (0.962 to 0.980)"."""


def html_from_document(document: ReportDocument, photographs: int, written: datetime, version: str) -> str:
    """The page.

    Every text of the document is escaped: a file name with ``<script>`` in it is shown as it is written. The page forbids
    itself scripts and connections (Content-Security-Policy).

    Args:
        document: what the report says; its rows are not on the page.
        photographs: how many rows there are.
        written: when, for the foot of the page.
        version: of this package.

    Raises:
        BackendUnavailableError: Jinja or matplotlib is not installed.
        UsageError: a picture is no JPEG, is too large or carries metadata.
    """
    jinja = require_proof("jinja2")
    markup = require_proof("markupsafe").Markup
    environment = jinja.Environment(autoescape=True, undefined=jinja.StrictUndefined, finalize=_shown)
    environment.filters["breakable"] = lambda text: _breakable(markup, text)
    word, style, mark = _OWN_VERDICTS.get((document.kind, document.verdict.passed), _VERDICTS[document.verdict.passed])
    row = "timed answer" if document.kind == "bench" else "photograph"
    numbers = iter(range(10**9))
    sections = [
        {
            "title": section.title,
            "sentences": section.sentences,
            "tables": [_table(table, f"table{next(numbers)}") for table in section.tables],
            "plots": [_plot(plot, next(numbers), markup) for plot in section.plots],
            "pictures": [_picture(picture) for picture in section.pictures],
        }
        for section in document.sections
    ]
    return str(
        environment.from_string(_resource("report.html")).render(
            css=markup(_resource("report.css").strip()),
            intended_use=INTENDED_USE,
            intended_use_css=markup(json.dumps(INTENDED_USE)),
            kind=_KINDS[document.kind],
            title=document.title,
            verdict_word=word,
            verdict_class=style,
            verdict_mark=mark,
            verdict_sentence=document.verdict.sentence,
            subject_title="What was compared" if document.kind == "parity" else "What was examined",
            subject=list(document.subject.items()),
            sections=sections,
            photographs=f"{photographs:,} {row}{'' if photographs == 1 else 's'}." if photographs else "",
            row=row,
            version=version,
            written=f"{written:%Y-%m-%d %H:%M} UTC",
        )
    )


def _shown(value: Any) -> Any:
    """Jinja's last word on every value: text without what HTML cannot hold."""
    return printable(value) if type(value) is str else value


def _breakable(markup: Any, text: str) -> Any:
    """A cell's text that may go on in the next line behind what stands between the parts of a path or of a name."""
    parts = re.split(r"(?<=[/_+])", printable(text))
    return markup("<wbr>").join(parts)


def _resource(name: str) -> str:
    """A text file of this package, read also where it is installed as a zip."""
    return importlib.resources.files("fundus_rt.benchmarks.reports").joinpath(name).read_text(encoding="utf-8")


def _table(table: Table, name: str) -> dict[str, Any]:
    """A table as the template takes it: its cells in words, column by column."""
    columns = [[row[number] for row in table.rows] for number in range(len(table.columns))]
    words = [column_in_words(column) for column in columns]
    return {
        "id": name,
        "title": table.title,
        "note": table.note,
        "columns": [
            {"name": heading, "number": _is_of_numbers(column)} for heading, column in zip(table.columns, columns, strict=True)
        ],
        "rows": list(zip(*words, strict=True)),
    }


def _is_of_numbers(column: list[Scalar]) -> bool:
    """Whether a column is set right-aligned: numbers and what looks like one, and at least one of them."""
    given = [value for value in column if value is not None]
    return bool(given) and all(
        not isinstance(value, bool) and (not isinstance(value, str) or _LIKE_A_NUMBER.fullmatch(value) is not None)
        for value in given
    )


def _plot(plot: Plot, number: int, markup: Any) -> dict[str, Any]:
    """A plot as the template takes it: drawn."""
    drawn = svg_from_plot(plot, number)
    count = drawn.left_out
    missing = f"{count:,} value{' is' if count == 1 else 's are'} not finite and not drawn." if count else ""
    return {"title": plot.title, "svg": markup(drawn.svg), "note": plot.note, "missing": missing}


def _picture(picture: Picture) -> dict[str, Any]:
    """A picture as the template takes it.

    Raises:
        UsageError: it is no JPEG of at most 256 pixels a side, or carries EXIF, a colour profile or a comment.
    """
    try:
        with Image.open(io.BytesIO(picture.jpeg), formats=("JPEG",)) as opened:
            width, height = opened.size
            carried = {"exif", "icc_profile", "comment", "photoshop", "xmp", "mp"} & set(opened.info)
    except OSError as error:
        raise UsageError(f"the picture {picture.caption!r} is no JPEG ({error}); make it with thumbnail()") from error
    if max(width, height) > MOST_SIDE or carried:
        raise UsageError(
            f"the picture {picture.caption!r} has {width} x {height} pixels and carries {sorted(carried) or 'no metadata'}, "
            f"expected at most {MOST_SIDE} a side and no metadata; make it with thumbnail()"
        )
    return {
        "base64": base64.b64encode(picture.jpeg).decode("ascii"),
        "width": width,
        "height": height,
        "caption": picture.caption,
        "alt": f"Photograph: {picture.caption}",
    }
