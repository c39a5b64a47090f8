"""One row of the table of conversions: write the checkpoint, convert it with the command line, read what came out."""

from __future__ import annotations

import argparse
import importlib
import json
import sys
import tempfile
import traceback
from pathlib import Path
from typing import Any

from fundus_rt.benchmarks.conversion_case import ConversionCase
from fundus_rt.benchmarks.environment import run_measured
from fundus_rt.models.card import CARD_KEY

MODULES = tuple(f"fundus_rt.benchmarks.make_{kind}" for kind in ("swin", "torch", "keras", "foreign"))
"""Modules with a tuple ``CASES``, in the order of the table."""
CONVERT = [sys.executable, "-c", "from fundus_rt.runtime.cli import main; main()", "convert"]
"""The command line's conversion, in a process of its own: its seconds and peak memory are those of a user."""
LEAN = ("cancelling_transposes", "dead_initializers", "foldable_batch_norms", "idle_nodes", "constant_nodes", "shape_nodes")
"""Counts of `fundus_rt.converters.graphs.graph_cleaning.leanness` that a lean graph has at zero."""


def cases_of(module: str) -> tuple[ConversionCase, ...]:
    """The cases of a module.

    Raises:
        ImportError: the module or something that it needs is missing.
    """
    return tuple(importlib.import_module(module).CASES)


def row_of(module: str, case: ConversionCase, size: int, speed: bool) -> dict[str, Any]:
    """Make, convert and measure one case.

    Args:
        module: where the case is.
        case: what to convert.
        size: input size, pixels.
        speed: hold the shipped graph against the plain exporter's in ONNX Runtime too.

    Returns:
        The row: what the case is, and either ``error`` (the text of what failed) or the figures.
    """
    row: dict[str, Any] = {
        "case": case.name,
        "module": module,
        "architecture": case.architecture,
        "container": case.container,
        "layout": case.layout,
        "size": size,
    }
    with tempfile.TemporaryDirectory() as scratch:
        try:
            return row | _figures(module, case, size, speed, Path(scratch))
        except Exception as error:  # a row says what failed, whatever it was, and the others go on
            return row | {"error": _in_short(error, scratch)}


def _figures(module: str, case: ConversionCase, size: int, speed: bool, folder: Path) -> dict[str, Any]:
    output = folder / "converted.onnx"
    checkpoint, card, options = made_checkpoint(module, case, size, folder)
    seconds, peak_mb = run_measured([*CONVERT, checkpoint, "--card", str(card), "-o", str(output), *options])
    figures = shipped_figures(output) | {"seconds": round(seconds, 1), "peak_mb": round(peak_mb)}
    if speed:
        measured = folder / "speed.json"
        words = [sys.executable, "-m", "fundus_rt.benchmarks.conversion_speed", checkpoint, str(card), str(output)]
        run_measured([*words, "-o", str(measured), *options])
        figures |= json.loads(measured.read_text())
    return figures


def made_checkpoint(module: str, case: ConversionCase, size: int, folder: Path) -> tuple[str, Path, list[str]]:
    """Write a case's checkpoint, in a process of its own, and its card; path, card and what `convert` has to be told besides.

    Raises:
        RuntimeError: it could not be written; with what was printed.
    """
    card = folder / "card.json"
    card.write_text(case.card(size).to_json())
    this = [sys.executable, "-m", "fundus_rt.benchmarks.conversion_row"]
    run_measured([*this, "--module", module, "--case", case.name, "--size", str(size), "--folder", str(folder)])
    options = (["--architecture", case.named] if case.named else []) + (["--trust-pickle"] if case.trust else [])
    return (folder / "checkpoint.txt").read_text(), card, options


def shipped_figures(path: Path) -> dict[str, Any]:
    """What a shipped file says about its own conversion, and how lean its graph is.

    Args:
        path: the ``.onnx``.

    Returns:
        Parameters in the file, used and in the network, and the share matched in per cent; the largest difference to the
        framework in the output's unit, of the network alone where the author's own preprocessing was on the other side; both
        divided by the range of the photographs' answers; nodes, bytes, counts of leanness.
    """
    import onnx

    from fundus_rt.converters.graphs.graph_cleaning import leanness

    model = onnx.load(str(path))
    provenance = json.loads({entry.key: entry.value for entry in model.metadata_props}[CARD_KEY])["provenance"]
    parameters, outputs = provenance["parameters"], provenance["parity"]["outputs"]
    worst = max(outputs, key=_relative)
    alone = worst.get("network_largest")
    return {
        "found": provenance["architecture"],
        "parameters_in_file": parameters["in_file"],
        "parameters_used": parameters["used"],
        "parameters_in_network": parameters["in_network"],
        "matched_per_cent": round(100 * parameters["used"] / max(1, parameters["in_network"]), 3),
        "unit": worst["unit"],
        "range": worst["highest"] - worst["lowest"],
        "largest": worst["largest"],
        "largest_of_network": worst["largest"] if alone is None else alone,
        "relative_to_range": _relative(worst),
        "photographs": worst["photographs"],
        "bytes": path.stat().st_size,
        **leanness(model),
    }


def _relative(output: dict[str, Any]) -> float:
    """Largest difference of the network itself, divided by the range of the photographs' answers."""
    alone = output.get("network_largest")
    return float((output["largest"] if alone is None else alone) / max(output["highest"] - output["lowest"], 1e-30))


def _in_short(error: Exception, scratch: str) -> str:
    """The end of what a failing process printed, without the temporary folder's name; of another error, where it was."""
    text = str(error) if isinstance(error, RuntimeError) else "".join(traceback.format_exception(error)[-2:])
    return text.replace(scratch, "...").strip()[-800:]


def main() -> None:
    """Write one case's checkpoint into a folder, and its path into ``checkpoint.txt`` there."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--module", required=True)
    parser.add_argument("--case", required=True)
    parser.add_argument("--size", type=int, required=True)
    parser.add_argument("--folder", type=Path, required=True)
    options = parser.parse_args()
    case = next(case for case in cases_of(options.module) if case.name == options.case)
    path = case.make(options.folder, options.size, case.columns)
    (options.folder / "checkpoint.txt").write_text(str(path))


if __name__ == "__main__":
    main()
