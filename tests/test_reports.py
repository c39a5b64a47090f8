"""The three files of a report: right for a machine, safe in a spreadsheet, readable and harmless in a browser."""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import io
import itertools
import json
import re
import sys
import tracemalloc
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from PIL import Image

from fundus_rt.benchmarks.reports import report_files
from fundus_rt.benchmarks.reports.document import PLOT_KINDS, Picture, Plot, ReportDocument, Section, Series, Table, Verdict
from fundus_rt.benchmarks.reports.report_files import prepare_report_folder, write_report
from fundus_rt.benchmarks.reports.thumbnails import thumbnail
from fundus_rt.models.card import INTENDED_USE
from fundus_rt.models.errors import BackendUnavailableError, UsageError
from tests.conftest import REPOSITORY
from tests.report_samples import HOSTILE, SAMPLES, parity_sample

SCHEMA = json.loads((REPOSITORY / "benchmarks" / "reports" / "report_schema.json").read_text(encoding="utf-8"))
VOID = {"meta", "img", "br", "hr", "link", "input", "col", "wbr"}


def strict_json(path: Path) -> Any:
    """The content of a JSON file; NaN and Infinity, which are no JSON, are an error."""

    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is no JSON")

    return json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)


def short(rows: Any = (), **changes: Any) -> ReportDocument:
    """A report with nothing but rows."""
    document = ReportDocument("parity", "a title", Verdict(True, "All well."), {"file": "x"}, {}, (), rows)
    return dataclasses.replace(document, **changes)


class Page(HTMLParser):
    """A page as a list of elements, read by the standard library's parser; complains of tags that do not nest."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.texts: list[tuple[str, str]] = []
        self.feed(text)
        self.close()
        assert self.open == [], self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = [name for name, _ in attrs]
        assert len(set(names)) == len(names), (tag, names)
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        assert tag in VOID or "svg" in self.open, f"<{tag}/> is not closed in HTML"

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open[-1] == tag, (self.open, tag)
        self.open.pop()

    def handle_data(self, data: str) -> None:
        self.texts.append((self.open[-1] if self.open else "", data))

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]

    def text(self, *without: str) -> str:
        return " ".join(" ".join(data for tag, data in self.texts if tag not in without).split())


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The folders of the three sample reports."""
    folders = {name: tmp_path_factory.mktemp(name) for name in SAMPLES}
    for name, folder in folders.items():
        write_report(SAMPLES[name](), folder)
    return folders


@pytest.mark.parametrize("name", SAMPLES)
def test_report_json_keeps_to_its_schema(written: dict[str, Path], name: str) -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    validator = jsonschema.Draft202012Validator(SCHEMA)
    report = strict_json(written[name] / "report.json")
    validator.validate(report)
    assert report["kind"] == name
    for damage in ({"format": 2}, {"extra": 1}, {"verdict": {"passed": "yes", "sentence": "x"}}, {"photographs": [{"a": [1]}]}):
        assert not validator.is_valid({**report, **damage}), damage


def test_the_schema_knows_what_the_document_knows() -> None:
    plot = SCHEMA["$defs"]["plot"]
    assert tuple(plot["properties"]["kind"]["enum"]) == PLOT_KINDS
    for definition, kind in ((plot, Plot), (plot["properties"]["series"]["items"], Series), (SCHEMA["$defs"]["table"], Table)):
        assert set(definition["properties"]) == {field.name for field in dataclasses.fields(kind)}
    assert SCHEMA["properties"]["format"]["const"] == report_files.FORMAT


def test_what_is_not_finite_is_null_with_its_reason(written: dict[str, Path]) -> None:
    parity = strict_json(written["parity"] / "report.json")
    assert parity["figures"]["sex"]["kappa"] is None
    assert parity["why_null"]["/figures/sex/kappa"] == "nan"
    robustness = strict_json(written["robustness"] / "report.json")
    assert robustness["photographs"][1] == {"file": "b.jpg", "change": None, "why_null": {"change": "inf"}}


def test_figures_of_numpy_are_plain_numbers_and_others_are_refused(tmp_path: Path) -> None:
    figures = {"a/b": np.float32(0.5), "n": np.int64(3), "list": np.asarray([1.0, np.inf]), "sure": np.bool_(True)}
    write_report(short([{"x": np.float64(2.5), "n": np.int32(7)}], figures=figures), tmp_path)
    report = strict_json(tmp_path / "report.json")
    assert report["figures"] == {"a/b": 0.5, "n": 3, "list": [1.0, None], "sure": True}
    assert report["why_null"] == {"/figures/list/1": "inf"}
    assert report["photographs"] == [{"x": 2.5, "n": 7}]
    with pytest.raises(UsageError, match=r"/figures/when.* is a Path|/figures/when.* is a PosixPath"):
        write_report(short(figures={"when": tmp_path}), tmp_path)
    with pytest.raises(UsageError, match="row 0, column 'x' is a list"):
        write_report(short([{"x": [1]}]), tmp_path)
    with pytest.raises(UsageError, match="why_null"):
        write_report(short([{"why_null": 1}]), tmp_path)


def test_csv_holds_every_row_and_computes_nothing_in_a_spreadsheet(tmp_path: Path) -> None:
    rows = [
        {"file": "=cmd|' /C calc'!A0", "value": -1.25, "ok": True},
        {"file": "+1", "later": "@x"},
        {"file": "-x\n=y", "value": float("nan"), "later": "a,\"b\""},
        {"file": "plain -.jpg", "value": 0.1 + 0.2, "ok": False},
        {"file": "halb\udcff.jpg", "-head": "\t=1"},
    ]  # fmt: skip
    result = write_report(short(iter(rows)), tmp_path)
    with open(result.csv, newline="", encoding="utf-8") as stream:
        found = list(csv.reader(stream))
    assert found[0] == ["file", "value", "ok", "later", "'-head"]
    assert found[1] == ["'=cmd|' /C calc'!A0", "-1.25", "true", "", ""]
    assert found[2] == ["'+1", "", "", "'@x", ""]
    assert found[3] == ["'-x\n=y", "", "", 'a,"b"', ""]
    assert float(found[4][1]) == 0.1 + 0.2 and found[4][0] == "plain -.jpg"
    assert found[5][0] == "halb\\udcff.jpg" and found[5][4] == "'\t=1"
    report = strict_json(result.json)
    assert report["columns"] == ["file", "value", "ok", "later", "-head"] and result.photographs == 5
    assert report["photographs"][0]["file"] == rows[0]["file"] and report["photographs"][4]["file"] == "halb\udcff.jpg"


def test_memory_is_flat_over_many_photographs(tmp_path: Path) -> None:
    calls = []

    def peak(count: int) -> int:
        def rows() -> Iterator[dict[str, Any]]:
            calls.append(count)
            for number in range(count):
                yield {"file": f"{number:08d}.jpg", "value": number / 7, "text": f"{number} takes some room " * 4}

        tracemalloc.start()
        assert write_report(short(rows), tmp_path).photographs == count
        highest = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return highest

    peak(10)  # imports
    few, many = peak(100), peak(20_000)
    assert (tmp_path / "report.json").stat().st_size > 1_200_000
    assert many < few + 2_500_000  # files are hashed in pieces of 1 MiB; the rows as dictionaries would take several times that
    assert calls == [10, 100, 20_000]  # each function of rows is run through once


def test_an_earlier_report_is_replaced_and_stays_whole_when_the_new_one_fails(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    write_report(parity_sample(), tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def breaking() -> Iterator[dict[str, Any]]:
        yield {"file": "a"}
        raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        write_report(short(breaking), tmp_path)
    broken = Section("s", pictures=(Picture("p", b"no jpeg"),))
    with pytest.raises(UsageError, match="no JPEG"):
        write_report(short([{"file": "a"}], sections=(broken,)), tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    write_report(short([{"file": "new"}]), tmp_path)
    after = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert after.keys() == before.keys() and after["notes.txt"] == b"mine"
    assert b"patient_" not in after["photographs.csv"] + after["report.json"] + after["report.html"]


def test_the_json_names_the_bytes_of_the_other_two(written: dict[str, Path]) -> None:
    for folder in written.values():
        files = strict_json(folder / "report.json")["files"]
        assert files == {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in files}
        assert set(files) == {"photographs.csv", "report.html"}


def test_files_of_others_are_left_as_they_are(tmp_path: Path) -> None:
    for name in ("report.json", "photographs.csv", "report.html"):
        folder = tmp_path / name
        folder.mkdir()
        (folder / name).write_text('{"report": "of another program"}')
        with pytest.raises(UsageError, match=re.escape(name)):
            write_report(short(), folder)
        assert [path.name for path in folder.iterdir()] == [name]
        assert (folder / name).read_text() == '{"report": "of another program"}'
    (tmp_path / "file").write_text("x")
    with pytest.raises(UsageError, match="cannot be written"):
        prepare_report_folder(tmp_path / "file")


@pytest.mark.parametrize("name", SAMPLES)
def test_the_page_stands_alone_and_is_in_order(written: dict[str, Path], name: str) -> None:
    text = (written[name] / "report.html").read_text(encoding="utf-8")
    assert text.startswith("<!DOCTYPE html>\n")
    page = Page(text)
    ids = [value for _, attributes in page.elements for key, value in attributes.items() if key == "id"]
    assert len(set(ids)) == len(ids) and all(ids)
    refers = [value for _, attributes in page.elements for key, value in attributes.items() if key in ("href", "aria-labelledby")]
    assert refers and all(value and (value.removeprefix("#") in ids or value.startswith("data:image/png;")) for value in refers)
    for tag, attributes in page.elements:
        assert tag not in ("script", "iframe", "object", "embed", "link", "base", "form")
        assert not any(key.startswith("on") for key in attributes), (tag, attributes)
        for value in attributes.values():
            assert "://" not in (value or "") and not (value or "").startswith("//"), (tag, value)
    assert "url(" not in text.split("</style>")[0] and "@import" not in text
    policy = next(m["content"] for m in page.all("meta") if m.get("http-equiv") == "Content-Security-Policy")
    assert policy and "default-src 'none'" in policy and "script" not in policy
    assert page.all("html") == [{"lang": "en"}]
    headings = [int(tag[1]) for tag, _ in page.elements if re.fullmatch("h[1-6]", tag)]
    assert headings[0] == 1 and headings.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(headings))
    assert all(attributes.get("scope") in ("col", "row") for attributes in page.all("th"))
    assert all(attributes.get("alt") for attributes in page.all("img"))
    assert all(attributes.get("role") == "img" and attributes.get("aria-label") for attributes in page.all("svg"))
    assert page.text("style").count(INTENDED_USE) == 2
    sample = SAMPLES[name]()
    assert sample.verdict.sentence in page.text() and sample.title in page.text("title")
    assert len(page.all("svg")) == sum(len(s.plots) for s in sample.sections)
    assert len(page.all("img")) == sum(len(s.pictures) for s in sample.sections)
    assert len(text) < 400_000


@pytest.mark.parametrize(("passed", "word"), [(True, "Passed"), (False, "Failed"), (None, "No verdict")])
def test_the_verdict_is_said_in_a_word_and_readable(tmp_path: Path, passed: bool | None, word: str) -> None:
    page_path = write_report(short(verdict=Verdict(passed, "As <expected>.")), tmp_path).html
    text = page_path.read_text(encoding="utf-8")
    style = {"Passed": "passed", "Failed": "failed", "No verdict": "neutral"}[word]
    assert f"{word} As <expected>." in Page(text).text("style", "title")
    assert [a["class"] for a in Page(text).all("section")] == [f"verdict {style}"]
    rule = re.search(rf"\.{style} {{ color: (#\w+); background: (#\w+);", text)
    assert rule and contrast(rule[1], rule[2]) >= 4.5
    assert contrast("#55606b", "#ffffff") >= 4.5 and "--soft: #55606b" in text


def contrast(first: str, second: str) -> float:
    """Ratio of contrast of two colours ``#rrggbb`` (WCAG 2.1)."""

    def luminance(colour: str) -> float:
        parts = [int(colour[n : n + 2], 16) / 255 for n in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return float(np.dot(linear, [0.2126, 0.7152, 0.0722]))

    lighter, darker = sorted((luminance(first), luminance(second)), reverse=True)
    return (lighter + 0.05) / (darker + 0.05)


def test_hostile_names_are_shown_as_they_are_written(tmp_path: Path) -> None:
    bad = HOSTILE + "\x00\x1b"
    plot = Plot("bars", bad, bad, bad, (Series(bad, (), (1.0,)), Series("_hidden", (), (2.0,))), bad, ticks=(bad,))
    jpeg = thumbnail(np.full((40, 40, 3), 128, np.uint8))
    section = Section(bad, (bad,), (Table(bad, (bad,), ((bad,),), bad),), (plot,), (Picture(bad, jpeg),))
    text = write_report(short([], title=bad, verdict=Verdict(None, bad), subject={bad: bad}, sections=(section,)), tmp_path).html
    page = Page(text.read_text(encoding="utf-8"))
    assert page.all("script") == []
    shown = page.text("style")
    assert shown.count(HOSTILE) >= 10 and "\x00" not in shown and "_hidden" in shown
    assert HOSTILE in str(page.all("img")[0]["alt"]) and HOSTILE in str(page.all("svg")[0]["aria-label"])


def test_numbers_of_a_table_are_short_and_stand_to_the_right(tmp_path: Path) -> None:
    table = Table("t", ("name", "value", "rate", "text"), (("a", 2.13e-9, "0.9 %", "long"), ("b", 12.3456, "3 of 413", "4")))
    page = Page(write_report(short(sections=(Section("s", tables=(table,)),)), tmp_path).html.read_text(encoding="utf-8"))
    heads = {data: attributes.get("class") for (tag, data), attributes in zip(
        [t for t in page.texts if t[0] == "th"][3:7], page.all("th")[3:7], strict=True)}  # fmt: skip
    assert heads == {"name": None, "value": "number", "rate": "number", "text": None}
    assert "below 1e-6 0.9 %" in page.text() and "12.3 3 of 413" in page.text()
    assert strict_json(tmp_path / "report.json")["sections"][0]["tables"][0]["rows"][0][1] == 2.13e-9


def test_tables_series_and_reports_that_do_not_fit_are_refused() -> None:
    with pytest.raises(UsageError, match="row 0 has 1 cells, expected 2"):
        Table("t", ("a", "b"), ((1,),))
    with pytest.raises(UsageError, match="1 lower and 0 upper"):
        Series("s", (), (1.0,), (0.5,))
    with pytest.raises(UsageError, match="'audit' is unknown"):
        short(kind="audit")


def test_a_picture_with_metadata_never_gets_onto_a_page(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x010E] = "MRN 12345"
    for size, extras in (((64, 64), {"exif": exif}), ((300, 300), {}), ((64, 64), {"comment": b"x"})):
        stream = io.BytesIO()
        Image.new("RGB", size).save(stream, "JPEG", **extras)
        with pytest.raises(UsageError, match="make it with thumbnail"):
            write_report(short(sections=(Section("s", pictures=(Picture("p", stream.getvalue()),)),)), tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("module", ["jinja2", "matplotlib"])
def test_a_missing_library_names_its_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(BackendUnavailableError, match=rf"{module} is not installed.*fundus-rt\[proof\]"):
        write_report(short(sections=(Section("s", plots=(Plot("histogram", "t", "x", "y"),)),)), tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("missing", ["jinja2", "matplotlib"])
def test_a_missing_library_is_said_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(BackendUnavailableError, match=rf"{missing} is not installed.*fundus-rt\[proof\]"):
        prepare_report_folder(tmp_path / "report")
    assert not (tmp_path / "report").exists()
