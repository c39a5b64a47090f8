"""Rows on their way out: table, JSON lines or CSV; each written whole, so that a kill loses none that is finished."""

from __future__ import annotations

import csv
import io
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from fundus_rt.models.card import ModelCard
from fundus_rt.models.errors import UsageError

FORMATS = ("table", "jsonl", "csv")

Row = dict[str, Any]


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
        return json.dumps(row, ensure_ascii=False) + "\n"


class Csv:
    """Comma-separated values: the JSON object flattened, a column's name being the path of keys, ``outputs.age.value``."""

    def __init__(self, card: ModelCard) -> None:
        self._columns = [
            "file", "sha256", "error",
            "model.name", "model.sha256", "model.precision", "model.certificate",
            "backend.name", "backend.device", "backend.version",
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
    """Aligned columns for a reader; warnings that every row would repeat stand once, above."""

    def __init__(self, card: ModelCard, standing_warnings: tuple[str, ...]) -> None:
        self._card = card
        self._standing = standing_warnings
        self._widths = [28, 9, *(max(16, len(o.name)) for o in card.outputs)]

    def header(self) -> str:
        notes = "".join(f"# {warning}\n" for warning in self._standing)
        return notes + self._line(["file", "which eye", *(o.name for o in self._card.outputs)], "notes")

    def line(self, row: Row) -> str:
        name = os.path.basename(row["file"]) or row["file"]
        cells = [name if len(name) <= 28 else "..." + name[-25:], (row["eye"] or {}).get("value") or "-"]
        cells += [self._cell(row["outputs"].get(output.name)) for output in self._card.outputs]
        notes = [warning for warning in row["warnings"] if warning not in self._standing]
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


class RowWriter:
    """Writes rows to a stream, each in one system call."""

    def __init__(self, stream: BinaryIO, row_format: RowFormat, fresh: bool) -> None:
        """Args:
        stream: unbuffered or standard output; a row reaches the system before `write` returns.
        row_format: how a row looks.
        fresh: whether the header is still to be written.
        """
        self._stream = stream
        self._format = row_format
        if fresh:
            self._put(row_format.header())

    def write(self, row: Row) -> None:
        """Write one row."""
        self._put(self._format.line(row))

    def _put(self, text: str) -> None:
        if text:
            # File names may hold bytes that are no UTF-8; they go out as they came in.
            self._stream.write(text.encode("utf-8", "surrogateescape"))
            self._stream.flush()


def row_format(name: str, card: ModelCard, standing_warnings: tuple[str, ...]) -> RowFormat:
    """The format called ``table``, ``jsonl`` or ``csv``."""
    if name == "table":
        return Table(card, standing_warnings)
    return Csv(card) if name == "csv" else JsonLines()


@contextmanager
def open_output(path: Path | None, resume: bool, format_name: str) -> Iterator[tuple[BinaryIO, frozenset[bytes]]]:
    """The stream to write rows to, and the keys of the rows that it holds already.

    A file is locked while it is open, and a last line that a kill left unfinished is cut off.

    Args:
        path: the file, or None for standard output.
        resume: go on with what the file holds.
        format_name: ``jsonl`` or ``csv`` where `resume` is set.

    Raises:
        UsageError: the file cannot be written, is in use, holds rows that would be overwritten, or is no such file.
    """
    if path is None:
        yield sys.stdout.buffer, frozenset()
        return
    from filelock import FileLock, Timeout

    if path.is_dir():
        raise UsageError(f"output {path} is a folder; give a file name")
    if not path.parent.is_dir():
        raise UsageError(f"output {path} cannot be written: folder {path.parent} does not exist; create it")
    if path.exists() and path.stat().st_size and not resume:
        raise UsageError(f"output {path} exists already; add --resume to go on with it, give another name, or remove it")
    lock = FileLock(path.with_name(f".{path.name}.lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise UsageError(f"output {path} is being written by another run; wait for it or give another name") from None
    except OSError as error:
        raise UsageError(
            f"output {path} cannot be written ({error.strerror}); give a folder that exists and is writable"
        ) from error
    try:
        with _opened(path) as stream:
            yield stream, _finished_keys(stream, path, format_name)
    finally:
        lock.release()
        Path(lock.lock_file).unlink(missing_ok=True)


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    try:
        stream = open(path, "r+b" if path.exists() else "w+b", buffering=0)  # noqa: SIM115 - closed below
    except OSError as error:
        raise UsageError(f"output {path} cannot be written ({error.strerror}); give a writable file") from error
    with stream:
        yield stream


def _finished_keys(stream: BinaryIO, path: Path, format_name: str) -> frozenset[bytes]:
    """Keys of the whole rows in an output file; leaves the stream at the end of the last one."""
    keys = set()
    end = 0
    column: int | None = None
    with open(stream.fileno(), "rb", closefd=False) as reader:
        for number, line in enumerate(reader, start=1):
            if not line.endswith(b"\n"):
                break
            text = line.decode("utf-8", "surrogateescape")
            try:
                if format_name == "jsonl":
                    keys.add(bytes.fromhex(json.loads(text)["key"]))
                elif column is None:
                    column = next(csv.reader([text])).index("key")
                else:
                    keys.add(bytes.fromhex(next(csv.reader([text]))[column]))
            except (ValueError, KeyError, IndexError, TypeError) as error:
                raise UsageError(
                    f"output {path}, line {number}, is no {format_name} row of this program, so --resume cannot go on with it; "
                    "give the same --format as before or another file"
                ) from error
            end += len(line)
    stream.truncate(end)
    stream.seek(end)
    return frozenset(keys)
