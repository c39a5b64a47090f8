"""How rows look: table, JSON lines or CSV."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Iterator
from typing import Any, Protocol

from fundus_rt.models.card import ModelCard

Row = dict[str, Any]

_CAPTURE_COLUMNS = (
    "capture.frame", "capture.seconds", "capture.watched_since", "capture.frames_in_burst", "capture.focus",
    "timing_ms.frame_to_answer",
)  # fmt: skip


class RowFormat(Protocol):
    """How rows look as text."""

    def header(self) -> str:
        """Text before the first row, with its line end; may be empty."""
        ...

    def line(self, row: Row) -> str:
        """One row as text, with its line end."""
        ...


class JsonLines:
    """One JSON object a line."""

    def header(self) -> str:
        return ""

    def line(self, row: Row) -> str:
        text = json.dumps(row, ensure_ascii=False)
        if any("\udc80" <= letter <= "\udcff" for letter in text):
            text = json.dumps(row)  # a file name that is no text: escaped, so that the line stays UTF-8
        return text + "\n"


class Csv:
    """Comma-separated values: the JSON object flattened, a column's name being the path of keys, ``outputs.age.value``."""

    def __init__(self, card: ModelCard, camera: bool = False) -> None:
        self._columns = [
            "file", "sha256", "error", *(_CAPTURE_COLUMNS if camera else ()),
            "model.name", "model.sha256", "model.precision", "model.certificate",
            "backend.name", "backend.device", "backend.version", "backend.provider", "backend.engine_sha256",
            "eye.value", "eye.source", "eye.mirrored",
            "field_of_view.center.x", "field_of_view.center.y", "field_of_view.radius", "field_of_view.cut",
            "field_of_view.found",
        ]  # fmt: skip
        for output in card.outputs:
            path = f"outputs.{output.name}"
            self._columns += [f"{path}.value", f"{path}.unit"]
            if output.labels:
                self._columns += [f"{path}.label", f"{path}.decision"]
                self._columns += [f"{path}.probabilities.{label}" for label in output.labels]
        self._columns += ["warnings", "timing_ms.total", "key"]

    def header(self) -> str:
        return self._text(self._columns)

    def line(self, row: Row) -> str:
        values = dict(_flat(row))
        return self._text([values.get(column) for column in self._columns])

    @staticmethod
    def _text(values: list[Any]) -> str:
        stream = io.StringIO()
        csv.writer(stream, lineterminator="\n").writerow(["" if v is None else v for v in values])
        return stream.getvalue()


def _flat(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Leaves of nested objects with their paths; points get ``.x`` and ``.y``, other lists are joined."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _flat(inner, f"{path}.{key}" if path else key)
    elif isinstance(value, list) and path.endswith(".center"):
        yield from zip((f"{path}.x", f"{path}.y"), value, strict=True)
    else:
        yield path, "; ".join(map(str, value)) if isinstance(value, list) else value


class Table:
    """Aligned columns for a reader; warnings that every row would repeat stand once, above, and so does the certificate."""

    def __init__(self, card: ModelCard, standing_warnings: tuple[str, ...], certificate: str = "") -> None:
        self._card = card
        self._standing = standing_warnings
        self._certificate = certificate
        self._widths = [28, 9, *(max(16, len(o.name)) for o in card.outputs)]

    def header(self) -> str:
        said = (self._certificate, *self._standing) if self._certificate else self._standing
        notes = "".join(f"# {sentence}\n" for sentence in said)
        return notes + self._line(["file", "which eye", *(o.name for o in self._card.outputs)], "notes")

    def line(self, row: Row) -> str:
        name = os.path.basename(row["file"]) or row["file"]
        if "capture" in row:
            name = f"{name[:16]} frame {row['capture']['frame']}"
        cells = [name if len(name) <= 28 else "..." + name[-25:], (row["eye"] or {}).get("value") or "-"]
        cells += [self._cell(row["outputs"].get(output.name)) for output in self._card.outputs]
        notes = [warning for warning in row["warnings"] if warning not in self._standing]
        if "frame_to_answer" in row["timing_ms"]:
            notes.append(f"{row['timing_ms']['frame_to_answer']:.0f} ms from frame to answer")
        certificate = f"certificate: {row['model']['certificate']}"
        if self._certificate and self._certificate.partition(" (")[0] != certificate:  # another backend answered
            notes.insert(0, certificate)
        return self._line(cells, f"ERROR {row['error']}" if row["error"] else "; ".join(notes))

    @staticmethod
    def _cell(output: Row | None) -> str:
        if output is None:
            return "-"
        if "decision" not in output:
            return f"{output['value']:.1f} {output['unit']}"
        said = output["probabilities"].get(output["decision"], output["value"])
        return f"{output['decision']} {said:.2f}"

    def _line(self, cells: list[str], notes: str) -> str:
        text = "  ".join(cell.ljust(width) for cell, width in zip(cells, self._widths, strict=True))
        return f"{text}  {notes}".rstrip() + "\n"


def row_format(
    name: str, card: ModelCard, standing_warnings: tuple[str, ...], certificate: str = "", camera: bool = False
) -> RowFormat:
    """The format called ``table``, ``jsonl`` or ``csv``.

    Args:
        name: of the format.
        card: of the model that answers.
        standing_warnings: what every row would repeat.
        certificate: what a table says of it above its rows, as `fundus_rt.models.certificates.CertificateState` puts it.
        camera: the rows are of a camera: which frame, when, and the time from frame to answer have columns of their own.
    """
    if name == "table":
        return Table(card, standing_warnings, certificate)
    return Csv(card, camera) if name == "csv" else JsonLines()
