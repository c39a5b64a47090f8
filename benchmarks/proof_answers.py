"""Answers of a shipped file held against the original's, photograph by photograph, from the rows of a finished proof.

``fundus-rt parity --report`` has asked both sides about every photograph of the float32 file. A file of a lower precision is
given the same photographs here, and held against the same answers, so the original framework is not asked again: half precision
emulated, for a processor has none, int8 as ONNX Runtime computes it.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fundus_rt.benchmarks.proof.graph_runs import GraphSession
from fundus_rt.benchmarks.proof.half_precision import open_emulated
from fundus_rt.converters.backends import require
from fundus_rt.models.artifacts import sha256_of_bytes
from fundus_rt.models.card import CARD_KEY, ModelCard, card_from_json
from fundus_rt.models.errors import FundusRtError, UsageError
from fundus_rt.runtime.agreement import agreement, values_in_unit
from fundus_rt.runtime.decode import decode
from fundus_rt.runtime.field_of_view import find_field_of_view
from fundus_rt.runtime.guarded_session import open_guarded
from fundus_rt.runtime.preprocess import tensor_from_frame

BATCH = 8
"""Photographs in one run."""
ALL, HELD_OUT = "all", "held-out"
"""Sets of photographs: those of the proof, and those of them that were not trained on."""
KEPT = (
    "photographs", "mean", "percentile_95", "largest", "spread", "largest_of_spread", "decisions_changed", "decisions_bound",
    "near_operating_point", "weighted_kappa", "tolerance", "beyond_tolerance", "passed",
)  # fmt: skip
"""Figures of an output that are kept."""
Row = dict[str, Any]


def compared(shipped: Path, rows: Path, held_out: Path) -> dict[str, Any]:
    """Hold a file's answers against the original's.

    Args:
        shipped: the file; its card says the precision. Float32 answers are those of the rows.
        rows: ``photographs.jsonl`` of the proof of the float32 file.
        held_out: CSV file whose column ``file`` names the photographs that were not trained on, as the rows do.

    Returns:
        ``sets``: the figures of `KEPT` of the card's first output, by `ALL` and `HELD_OUT`. ``lower_precision_share``: how much
        the lower precision has of the sizes of both differences, original to float32 file and float32 file to this one, 0 to 1.
        ``refused``: why the runtime does not open the file; empty where it does.

    Raises:
        UsageError: no row is finished, or a photograph has changed since.
    """
    model = require("onnx").load(str(shipped))
    card = card_from_json({entry.key: entry.value for entry in model.metadata_props}[CARD_KEY])
    output, precision = card.outputs[0], card.provenance.get("precision", "fp32")
    finished = [row for row in rows_of(rows) if row["error"] is None]
    if not finished:
        raise UsageError(f"{rows} holds no finished photograph; run the proof of the float32 file first")
    original, plain = (_numbers(finished, output.name, side) for side in ("original", "ours"))
    found = plain if precision == "fp32" else _answers(model, precision, finished, card)
    with open(held_out, newline="", encoding="utf-8") as file:
        unseen = {row["file"] for row in csv.DictReader(file)}
    chosen = {ALL: np.full(len(finished), True), HELD_OUT: np.array([row["file"] in unseen for row in finished])}
    sets = {}
    for name, some in chosen.items():
        figures = agreement(output.name, original[some], found[some], output).to_dict()
        sets[name] = {key: figures[key] for key in KEPT}
    before, middle, after = (values_in_unit(numbers, output) for numbers in (original, plain, found))
    lower, rest = float(np.abs(after - middle).sum()), float(np.abs(middle - before).sum())
    return {"sets": sets, "lower_precision_share": lower / max(lower + rest, 1e-30), "refused": _refusal(shipped)}


def rows_of(rows: Path) -> Iterator[Row]:
    """The rows of a proof, one after the other, from ``photographs.jsonl``."""
    with open(rows, encoding="utf-8") as file:
        yield from map(json.loads, file)


def _numbers(rows: list[Row], name: str, side: str) -> NDArray[np.float32]:
    return np.array([row["outputs"][name][side] for row in rows], np.float32)


def _answers(model: Any, precision: str, rows: list[Row], card: ModelCard) -> NDArray[np.float32]:
    """The graph's numbers for the photographs of rows, as the runtime decodes, crops and resizes them."""
    session = open_emulated(model) if precision == "fp16" else GraphSession(model)
    parts = []
    for start in range(0, len(rows), BATCH):
        frames = np.stack([_frame(row, card) for row in rows[start : start + BATCH]])
        parts.append(session.run(frames)[card.outputs[0].name])
    return np.concatenate(parts)


def _frame(row: Row, card: ModelCard) -> NDArray[Any]:
    content = Path(row["file"]).read_bytes()
    if sha256_of_bytes(content) != row["sha256"]:
        raise UsageError(f"{row['file']} has changed since the proof; run it again")
    frame = decode(content).frame
    return tensor_from_frame(frame, find_field_of_view(frame), card.preprocessing, mirror=row["mirrored"]["ours"])


def _refusal(shipped: Path) -> str:
    try:
        open_guarded(str(shipped), "onnxruntime", "cpu").close()
    except FundusRtError as error:
        return " ".join(str(error).split())
    return ""
