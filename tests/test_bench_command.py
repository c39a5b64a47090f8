"""``fundus-rt bench`` as a user types it: real networks, real photographs, a record that names none of them."""

from __future__ import annotations

import csv
import functools
import json
import time
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from click.testing import CliRunner, Result

from fundus_rt.benchmarks.speed import against, bench
from fundus_rt.benchmarks.speed.call import BenchCall, Feedback, Measured
from fundus_rt.benchmarks.speed.own_ways import shifted_copies
from fundus_rt.benchmarks.speed.scenarios import Length
from fundus_rt.benchmarks.speed.shown import keep_record
from fundus_rt.models.errors import FundusRtError, UsageError
from fundus_rt.models.registry import EXAMPLE_FOLDER
from fundus_rt.runtime.cli import cli
from fundus_rt.runtime.decode import decode
from tests.conftest import REPOSITORY

PHOTOGRAPHS = tuple(str(EXAMPLE_FOLDER / name) for name in ("chase_01L.jpg", "haggstrom_right.jpg"))
SHORT = Length(0.0, 12)


@pytest.fixture(autouse=True)
def small_product(monkeypatch: pytest.MonkeyPatch) -> None:
    """The ceiling from a small product: its figure is tested by itself."""
    monkeypatch.setattr("fundus_rt.benchmarks.speed.arithmetic.SIDE", 128)


def run(*words: object) -> Result:
    return CliRunner().invoke(cli, [str(word) for word in words], catch_exceptions=True)


def call(file: Path, **changes: Any) -> BenchCall:
    given = {"files": (str(file),), "images": PHOTOGRAPHS, "length": SHORT, "processes": 0, "threads": 1}
    return BenchCall(**{**given, **changes})


def test_a_report_of_all_scenarios(tiny_age: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "COPIES", 3)
    words = [word for path in PHOTOGRAPHS for word in ("--images", path)]
    scenarios = [word for name in ("single_stream", "offline", "server") for word in ("--scenario", name)]
    done = run(
        "bench", tiny_age, *words, *scenarios, "--rate", 200, "--seconds", 0, "--samples", 12, "--processes", 1,
        "--threads", 1, "--report", tmp_path / "report",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    text = (tmp_path / "report/report.json").read_text()
    report = json.loads(text)
    jsonschema.validate(report, json.loads((REPOSITORY / "benchmarks/reports/report_schema.json").read_text()))
    assert report["kind"] == "bench" and [found["name"] for found in report["figures"]["files"]] == [tiny_age.name]
    found = report["figures"]["files"][0]
    alone = found["scenarios"]["single_stream"]["network_only"]
    assert alone["answers"] == 12 and alone["percentiles_ms"]["p50"]["low"] <= alone["median_ms"]
    assert alone["percentiles_ms"]["p99"] == {
        "percent": 99, "value": None, "low": None, "high": None, "samples": 12, "samples_needed": 368,
    }  # fmt: skip
    assert found["scenarios"]["server"]["bytes_to_result"]["answers"] == 368  # the bound of p99 takes them
    assert found["scenarios"]["offline"]["bytes_to_result"]["answers"] >= 12
    fresh = found["processes"]
    assert fresh["first_answer_s"] > fresh["load_s"] > 0
    assert fresh["peak_bytes"] is None or 20e6 < fresh["peak_bytes"] < 4e9
    page = (tmp_path / "report/report.html").read_text()
    assert not any(name in text + page for name in ("chase_01L", "haggstrom_right", str(tmp_path), str(EXAMPLE_FOLDER)))
    assert page.count("<svg") >= 4 and "too few samples" in page
    with open(tmp_path / "report/photographs.csv", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == 2 * (12 + 368)  # two parts; offline times whole passes
    shown = sorted(float(row["ms"]) for row in rows if row["file"] == tiny_age.name and row["part"] == "network_only"
                   and row["scenario"] == "single_stream")  # fmt: skip
    assert alone["median_ms"] == pytest.approx(np.median(shown), abs=1e-3)


def test_an_interruption_keeps_what_is_finished(tiny_sex: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(bench, "offline", interrupted)
    measured = bench.measure(call(tiny_sex, scenarios=("single_stream", "offline")), Feedback())
    assert measured.interrupted and measured.record["interrupted"]
    found = measured.record["files"][0]["scenarios"]
    assert set(found) == {"single_stream"} and len(found["single_stream"]) == 2


class Cached:
    """A model that keeps as many answers as it is allowed to."""

    def __init__(self, entries: int) -> None:
        self.answer = functools.lru_cache(entries)(lambda index: time.sleep(0.004))

    def by_part(self, part: str, samples: Any) -> Any:
        return self.answer


@pytest.mark.parametrize(("entries", "least", "most"), [(0, 0.8, 1.3), (16, 5, 1e9), (64, 5, 1e9), (1000, 5, 1e9)])
def test_a_cache_of_any_size_shows(entries: int, least: float, most: float) -> None:
    found = bench._same_against_unique(Cached(entries), [None] * 66, "network_only", 1.0, 0)  # type: ignore[arg-type, list-item]
    assert least < found["unique_to_same"]["value"] < most and found["rounds"] == 30


def test_a_comparison_that_fails_leaves_what_was_measured(tiny_sex: Path, tmp_path: Path) -> None:
    checkpoint = tmp_path / "x.pth"
    checkpoint.write_bytes(b"no checkpoint")
    done = run("bench", tiny_sex, "--images", PHOTOGRAPHS[0], "--seconds", 0, "--samples", 6, "--processes", 0, "--threads", 1,
               "--against", checkpoint, "--card", "joir-sex-mobilenet", "--report", tmp_path / "report")  # fmt: skip
    assert isinstance(done.exception, FundusRtError)
    report = json.loads((tmp_path / "report/report.json").read_text())
    assert report["figures"]["files"][0]["scenarios"]["single_stream"]
    assert any("ended early" in warning for warning in report["figures"]["warnings"])


def test_copies_are_different_photographs_of_one_size() -> None:
    content = Path(PHOTOGRAPHS[0]).read_bytes()
    copies = shifted_copies(content, 3)
    frames = [decode(copy).frame for copy in copies]
    assert len(set(copies)) == 3 and len({frame.shape for frame in frames}) == 1
    assert np.abs(np.roll(frames[0], 2, axis=1).astype(int) - frames[2]).mean() < 3


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--scenario", "server"), "needs --rate"),
        (("--rate", "3"), "belong to the scenario server"),
        (("--card", "joir-age"), "say what --against is"),
        (("--against", "nowhere.pth"), "does not exist"),
    ],
)
def test_calls_that_make_no_sense_say_so(tiny_sex: Path, words: tuple[str, ...], message: str) -> None:
    done = run("bench", tiny_sex, *words)
    assert isinstance(done.exception, UsageError) and message in str(done.exception)


@pytest.fixture(scope="module")
def grader(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """A small network: its checkpoint, its shipped file, and the file of other weights."""
    pytest.importorskip("torch")
    from tests import proof_networks

    folder = tmp_path_factory.mktemp("grader")
    right = proof_networks.write_checkpoint(folder / "right.pth")
    wrong = proof_networks.write_checkpoint(folder / "wrong.pth", seed=1)
    return right, proof_networks.convert(right, folder / "right.onnx"), proof_networks.convert(wrong, folder / "wrong.onnx")


def test_all_ways_take_turns_and_a_wrong_one_is_not_timed(grader: tuple[Path, Path, Path], tmp_path: Path) -> None:
    from tests.proof_networks import NAMED, card_for

    checkpoint, right, wrong = grader
    stated = tmp_path / "card.json"
    stated.write_text(card_for().to_json())
    asked = call(
        right, files=(str(right), str(wrong)), card=str(stated), against=checkpoint, architecture=NAMED,
        torch_compile=False,
    )  # fmt: skip
    measured = Measured({"against": None})
    contents = [Path(path).read_bytes() for path in PHOTOGRAPHS]
    against.measure_against(asked, contents, measured, Feedback())
    found = measured.record["against"]
    parts = {part: {way["name"]: way for way in ways["ways"]} for part, ways in found["parts"].items()}
    ours = {"right.onnx, onnxruntime", "right.onnx, openvino"}
    torch_ways = {"PyTorch, eager, no_grad", "PyTorch, inference_mode, channels_last"}
    plain = {"ONNX Runtime, default settings, plain export", "OpenVINO, default settings, plain export"}
    assert set(parts["bytes_to_result"]) == ours | torch_ways | plain
    assert set(parts["network_only"]) == ours | torch_ways | plain
    assert {(way["name"], way["part"]) for way in found["wrong"] if "WRONG" in way["problem"]} == {
        (f"wrong.onnx, {backend}", part) for backend in ("onnxruntime", "openvino") for part in parts
    }
    assert all(way["largest_difference"] <= 0.01 for ways in parts.values() for way in ways.values())
    series = {(one["part"], one["way"]): one["seconds"] for one in measured.latencies}
    first, other = (np.array(series["network_only", name]) for name in ("PyTorch, eager, no_grad", "right.onnx, onnxruntime"))
    ratio = parts["network_only"]["right.onnx, onnxruntime"]["first_to_this"]
    assert ratio["value"] == pytest.approx(np.median(first / other)) and ratio["low"] <= ratio["value"] <= ratio["high"]


def test_records_of_two_processors_are_both_kept(tmp_path: Path) -> None:
    def record(processor: str) -> Measured:
        found = {"processor": processor, "machine": "x86_64", "cores": 2, "packages": {"onnxruntime": "1.32.0"}}
        return Measured({"environment": found, "files": [{"name": "a.onnx"}]})

    first, other = keep_record(record("Xeon"), tmp_path), keep_record(record("AMD EPYC (R)"), tmp_path)
    assert (
        first.name == "bench-a-x86_64-2cores-ort1.32.0.json" and other.name == "bench-a-x86_64-2cores-ort1.32.0-AMD-EPYC-R-.json"
    )
    assert keep_record(record("Xeon"), tmp_path) == first and keep_record(record("AMD EPYC (R)"), tmp_path) == other
    assert len(list(tmp_path.iterdir())) == 2
