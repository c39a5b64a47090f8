"""What follows a comparison: where the difference comes from, and, where there is none, the reference and its certificate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fundus_rt.benchmarks.proof.parity import Feedback, Parity
from fundus_rt.benchmarks.proof.parity_certificate import Kept, certify_failed, certify_passed
from fundus_rt.benchmarks.proof.parity_frames import case_of, numbers_of, our_tensors
from fundus_rt.benchmarks.proof.parity_rows import Row
from fundus_rt.benchmarks.proof.photographs import Case, photograph_of
from fundus_rt.converters.backends import require
from fundus_rt.models.artifacts import sha256_of_file
from fundus_rt.runtime.agreement import OutputAgreement, agreement
from fundus_rt.runtime.session import ENGINE_SUFFIX, resolve_model

if TYPE_CHECKING:
    from fundus_rt.benchmarks.proof.explanations import Explanation
    from fundus_rt.benchmarks.proof.locate import Located
    from fundus_rt.benchmarks.proof.stages import StageSplit
    from fundus_rt.benchmarks.proof.value_ranges import RangeAudit

GRAPH_STAGES = ("normalisation", "fp32 graph", "lower precision", "engine")
"""Stages whose fault lies in the file's graph, or in what computes it."""
EXPLAINED_ON = 10
"""Photographs, one after the other, on which single mistakes are tried."""
LOCATED_ON = 4
"""Photographs on which two graphs are held against each other node by node."""
BUDGETS = {"fp32": 0.01, "lower": 0.05}
"""Largest error of a tensor as a share of its range: float32's rounding stays below a thousandth in a hundred layers, half
precision's and int8's below a twentieth in a network whose answers agree."""


@dataclass(frozen=True)
class EvidenceOptions:
    """How much is looked into."""

    stages: int = 8
    """Photographs that are looked at stage by stage; 0: none."""
    locate: bool = False
    """Look for the first wrong node where the graph is at fault."""
    explain: bool = True
    """Try which single mistake would give the answers of a file that fails; the original answers ten photographs for each."""
    reference_photographs: int = 32
    """Photographs in the reference; 0: no reference and no certificate."""


@dataclass
class Evidence:
    """What was found beside the answers themselves."""

    split: StageSplit | None = None
    half: tuple[OutputAgreement, ...] = ()
    """The file in true half precision, emulated on `half_photographs`; empty where it was not needed."""
    half_photographs: int = 0
    ranges: RangeAudit | None = None
    explained: tuple[Explanation, ...] = ()
    located: Located | None = None
    looked_for_node: bool = False
    not_located: str = ""
    """Why the first wrong node was asked for and not looked for; empty where it was not asked for, or looked for."""
    kept: Kept = field(default_factory=Kept)
    """The reference and the certificate."""


def evidence(parity: Parity, options: EvidenceOptions, feedback: Feedback, found: Evidence) -> None:
    """Look into a comparison; what half precision changes, and a replay that does not agree, count as problems of it.

    Args:
        parity: what was compared.
        options: how much is looked into.
        feedback: told what is done.
        found: filled as things are found, so that an error in a later step loses nothing.

    Raises:
        FundusRtError: a photograph changed meanwhile, or a graph cannot be read.
    """
    if not len(parity.answered.offsets):
        return
    if failed := not parity.passed:
        found.kept = certify_failed(parity, options.reference_photographs, feedback)
    rows = parity.sample(options.stages)
    sample = [case_of(row) for row in rows]
    onnx_file = _onnx_file(parity)
    if sample:
        from fundus_rt.benchmarks.proof.stages import stage_split

        session = parity.session()
        try:
            with feedback.step(f"Looking at {len(sample)} photographs stage by stage"):
                found.split = stage_split(parity.original, session, sample, onnx_file, numbers_of(rows, "ours", parity))
        finally:
            session.close()
    if parity.identity.precision != "fp32" and parity.backend.device.lower().startswith("cpu"):
        _judge_half(parity, sample or [case_of(row) for row in parity.sample(EXPLAINED_ON)], found, feedback)
    if parity.passed:
        found.kept = certify_passed(parity, options.reference_photographs, feedback)
        return
    if not failed:
        found.kept = certify_failed(parity, options.reference_photographs, feedback)
    _explain(parity, found, options, onnx_file, feedback)


def _onnx_file(parity: Parity) -> Path | None:
    """The ``.onnx`` file behind what was compared; None where only an engine is there."""
    path = resolve_model(parity.call.file)
    if path.suffix != ENGINE_SUFFIX:
        return path
    beside = path.with_suffix(".onnx")
    session = parity.session()
    try:
        return beside if beside.is_file() and session.onnx_sha256 == sha256_of_file(beside) else None
    finally:
        session.close()


def _judge_half(parity: Parity, cases: Sequence[Case], found: Evidence, feedback: Feedback) -> None:
    """Hold the file in emulated half precision against the original: a CPU computed it in float32, which proves nothing."""
    from fundus_rt.benchmarks.proof.graph_runs import has_half
    from fundus_rt.benchmarks.proof.half_precision import open_emulated
    from fundus_rt.benchmarks.proof.value_ranges import value_ranges

    model = require("onnx").load(str(resolve_model(parity.call.file)))
    if not has_half(model):
        return
    frames = our_tensors(parity, cases)
    with feedback.step(f"Judging half precision by emulation on {len(cases)} photographs"):
        photographs = [photograph_of(case, parity.original.card) for case in cases]
        right = parity.original.answers(parity.original.inputs(photographs).images)
        answered = open_emulated(model).run(frames)
        own = {output.name: output for output in parity.own.outputs}
        found.half = tuple(
            agreement(
                f"{o.name} in half precision",
                right[o.name],
                answered[o.name],
                o,
                o.allowed(parity.identity.precision),
                found_output=own[o.name],
            )
            for o in parity.original.card.outputs
        )
        found.ranges = value_ranges(model, frames)
    found.half_photographs = len(cases)
    parity.problems += [problem for one in found.half for problem in one.problems]


def _explain(parity: Parity, found: Evidence, options: EvidenceOptions, onnx_file: Path | None, feedback: Feedback) -> None:
    from fundus_rt.benchmarks.proof.explanations import explanations

    rows = _window(parity)
    cases = [case_of(row) for row in rows]
    if options.explain:
        with feedback.step("Trying which single mistake would explain the answers"):
            photographs = [photograph_of(case, parity.original.card) for case in cases]
            ours, right = numbers_of(rows, "ours", parity), numbers_of(rows, "original", parity)
            found.explained = explanations(parity.original, photographs, ours, right)
    if options.locate:
        found.not_located = _why_not_located(found.split, onnx_file)
    if options.locate and onnx_file is not None and not found.not_located:
        _locate(parity, found, cases[:LOCATED_ON], onnx_file, feedback)


def _why_not_located(split: StageSplit | None, onnx_file: Path | None) -> str:
    """Why no node is looked for; empty where one is. Without a split nothing says that the graph has no part in it."""
    if onnx_file is None:
        return "there is only an engine, and the .onnx file that it was built from is not beside it"
    if split is None or any(output.has_part(stage) for output in split.outputs for stage in GRAPH_STAGES):
        return ""
    return "no stage of the graph has a part in the difference"


def _locate(parity: Parity, found: Evidence, cases: Sequence[Case], onnx_file: Path, feedback: Feedback) -> None:
    from fundus_rt.benchmarks.proof.graph_runs import has_half
    from fundus_rt.benchmarks.proof.half_precision import emulated_half
    from fundus_rt.benchmarks.proof.locate import locate

    examined: Any = require("onnx").load(str(onnx_file))
    if has_half(examined):
        examined = emulated_half(examined)
    budget = BUDGETS["fp32" if parity.identity.precision == "fp32" else "lower"]
    with feedback.step("Looking for the first node that is wrong"):
        found.located = locate(parity.original.export(), examined, our_tensors(parity, cases), budget)
    found.looked_for_node = True


def _window(parity: Parity) -> list[Row]:
    """Rows one after the other around the worst photograph: an answer that belongs to the picture before is seen only so."""
    worst = next(iter(parity.figures[0].agreement.worst), 0)
    count = len(parity.answered.offsets)
    first = max(0, min(worst - EXPLAINED_ON // 2, count - EXPLAINED_ON))
    return [parity.answered.row(index) for index in range(first, min(first + EXPLAINED_ON, count))]
