"""The command that makes the table of conversions, on small networks of its own, in processes of its own."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fundus_rt.benchmarks.conversion_case import ConversionCase
from fundus_rt.benchmarks.conversion_row import LEAN, shipped_figures
from fundus_rt.benchmarks.conversions import markdown, summary
from fundus_rt.models.card import CARD_KEY
from tests.conftest import REPOSITORY, environment


def _network(folder: Path, size: int, columns: int, opset: int = 17) -> Path:
    """An .onnx of another exporter: Conv, BatchNormalization, ReLU, mean, Gemm; 224 + 32 + 9 * columns parameters."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    random = np.random.default_rng(0)
    shapes = {"k": (8, 3, 3, 3), "kb": (8,), "g": (8,), "b": (8,), "m": (8,), "v": (8,), "w": (8, columns), "wb": (columns,)}
    weights = {name: random.normal(0, 1, shape).astype(np.float32) for name, shape in shapes.items()}
    weights["v"] = np.abs(weights["v"]) + 1
    nodes = [
        helper.make_node("Conv", ["x", "k", "kb"], ["c"], pads=[1, 1, 1, 1], strides=[2, 2]),
        helper.make_node("BatchNormalization", ["c", "g", "b", "m", "v"], ["n"]),
        helper.make_node("Relu", ["n"], ["r"]),
        helper.make_node("GlobalAveragePool", ["r"], ["p"]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("Gemm", ["f", "w", "wb"], ["answers"]),
    ]
    graph = helper.make_graph(
        nodes,
        "made by hand",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, size, size])],
        [helper.make_tensor_value_info("answers", TensorProto.FLOAT, ["N", columns])],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    path = folder / "other.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8), str(path))
    return path


def _old_network(folder: Path, size: int, columns: int) -> Path:
    return _network(folder, size, columns, opset=11)


def _broken(folder: Path, size: int, columns: int) -> Path:
    path = folder / "broken.onnx"
    path.write_bytes(b"no network at all")
    return path


def _unmade(folder: Path, size: int, columns: int) -> Path:
    raise OSError("the disk was full")


CASES = (
    ConversionCase("small network", "ONNX opset 17", "by hand", ("onnx",), _network, 64, 96),
    ConversionCase("small network", "ONNX opset 11", "by hand", ("onnx",), _old_network, 64, 96, columns=1),
    ConversionCase("nothing", "text", "none", ("onnx",), _broken, 64, 96),
    ConversionCase("nothing", "no file", "none", ("onnx",), _unmade, 64, 96),
)


def table(output: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    settings = environment()
    settings["PYTHONPATH"] += f":{REPOSITORY}"
    command = [sys.executable, "-m", "fundus_rt.benchmarks.conversions", "--cases", __name__, "--output", str(output)]
    return subprocess.run(
        [*command, *arguments], capture_output=True, text=True, env=settings, cwd=REPOSITORY, timeout=300, check=False
    )


def rows(output: Path) -> dict[str, dict[str, Any]]:
    return {row["case"]: row for row in json.loads(output.read_text())["rows"]}


def test_the_table_of_small_networks(tmp_path: Path) -> None:
    """Two conversions succeed with true figures; later calls do not repeat them; failures are rows and the exit status."""
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    output = tmp_path / "record.json"
    done = table(output, "--only", "small", "--speed")
    assert done.returncode == 0, done.stderr + done.stdout
    assert "2 of 2 converted: 2 at 100 %, 2 within 0.0001 of the range, 2 lean" in done.stdout
    found = rows(output)
    for case, row in zip(CASES[:2], found.values(), strict=True):
        parameters = 224 + 32 + 9 * case.columns
        assert row["case"] == case.name and (row["container"], row["layout"]) == (case.container, case.layout)
        assert row["parameters_in_file"] == row["parameters_in_network"] == row["parameters_used"] == parameters
        assert row["matched_per_cent"] == 100 and row["size"] == 64
        assert 0 <= row["largest_of_network"] < 1e-4 * row["range"] and row["photographs"] >= 2
        assert row["relative_to_range"] == pytest.approx(row["largest_of_network"] / row["range"])
        assert row["seconds"] > 0 and row["peak_mb"] > 50
        assert row["speed_ratio"] > 0 and row["processor_ratio"] > 0 and row["speed_rounds"] >= 9
        assert not any(row[name] for name in LEAN)
    assert [row["unit"] for row in found.values()] == ["probability", "years"]
    assert set(json.loads(output.read_text())) == {"rows"}
    assert all(
        row["environment"]["packages"]["onnxruntime"] and re.fullmatch(r"\d{4}-\d\d-\d\d", row["date"]) for row in found.values()
    )

    before = output.read_text()
    found[CASES[0].name] |= {"seconds": 12345.0, "date": "2001-02-03", "environment": {"packages": {"onnxruntime": "0.1"}}}
    record = json.loads(before) | {"rows": list(found.values())}
    output.write_text(json.dumps(record))
    again = table(output)
    assert again.returncode == 1, "two of the four cases fail"
    after = rows(output)
    assert after[CASES[0].name]["seconds"] == 12345.0, "a finished row was run again"
    assert after[CASES[0].name]["date"] == "2001-02-03" < after[CASES[2].name]["date"]
    assert after[CASES[0].name]["environment"]["packages"] == {"onnxruntime": "0.1"}
    assert "12345.0" in again.stdout
    listed = table(output, "--markdown", "--only", "opset-17").stdout.splitlines()
    assert len(listed) == 3 and "12345.0" in listed[2]
    assert "broken.onnx" in after[CASES[2].name]["error"] and "the disk was full" in after[CASES[3].name]["error"]
    assert str(tmp_path) not in output.read_text()
    assert again.stdout.count("FAILED") >= 4
    assert again.stderr.count("small-network") == 0 and again.stderr.count("nothing") == 2


def test_a_word_that_no_case_has_is_an_error(tmp_path: Path) -> None:
    done = table(tmp_path / "record.json", "--only", "no such network")
    assert done.returncode == 2 and "no such network" in done.stderr
    assert not (tmp_path / "record.json").exists()


def test_a_file_without_parameters_has_figures(tmp_path: Path) -> None:
    """Weights that are computed, or a record of an earlier version: nothing is divided by zero."""
    onnx = pytest.importorskip("onnx")
    source = _network(tmp_path, 64, 1)
    model = onnx.load(str(source))
    outputs = [{"unit": "years", "highest": 2.0, "lowest": 1.0, "largest": 0.5, "photographs": 3}]
    provenance = {
        "architecture": "none", "parameters": {"in_file": 0, "used": 0, "in_network": 0}, "parity": {"outputs": outputs}
    }  # fmt: skip
    onnx.helper.set_model_props(model, {CARD_KEY: json.dumps({"provenance": provenance})})
    onnx.save(model, str(source))
    figures = shipped_figures(source)
    assert figures["matched_per_cent"] == 0 and figures["relative_to_range"] == 0.5


def test_what_is_above_the_aim_or_not_lean_is_counted_so() -> None:
    good = dict.fromkeys(LEAN, 0) | {
        "case": "a", "architecture": "A", "container": "x|y", "layout": "z", "size": 64, "parameters_used": 1000,
        "matched_per_cent": 100.0, "largest_of_network": 1e-6, "unit": "years", "relative_to_range": 1e-7, "largest": 0.01,
        "seconds": 1.0, "peak_mb": 900, "nodes": 7,
    }  # fmt: skip
    bad = good | {
        "case": "b",
        "matched_per_cent": 99.9,
        "relative_to_range": 2e-4,
        "shape_nodes": 3,
        "speed_ratio": 1.25,
        "processor_ratio": 1.5,
    }
    assert summary([good, bad]).startswith("2 of 2 converted: 1 at 100 %, 1 within 0.0001 of the range, 1 lean")
    lines = markdown([good, bad]).splitlines()
    assert "x/y" in lines[2] and lines[2].count("|") == lines[0].count("|")
    assert "shape nodes 3" in lines[3] and "99.9 %" in lines[3] and "1.25" in lines[3]
