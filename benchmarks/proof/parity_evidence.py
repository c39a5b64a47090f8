"""What follows a comparison: where the difference comes from, and, where there is none, the reference and its certificate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fundus_rt.benchmarks.proof.parity import Feedback, Parity
from fundus_rt.benchmarks.proof.parity_rows import Row
from fundus_rt.benchmarks.proof.photographs import Case, case_again, photograph_of
from fundus_rt.converters.backends import require
from fundus_rt.models.artifacts import sha256_of_file
from fundus_rt.models.certificates import card_sha256
from fundus_rt.models.errors import CertificateError, UsageError
from fundus_rt.models.references import ReplayReference, reference_path, write_reference
from fundus_rt.runtime.agreement import OutputAgreement, agreement
from fundus_rt.runtime.decode import decode
from fundus_rt.runtime.field_of_view import find_field_of_view
from fundus_rt.runtime.preprocess import tensor_from_frame
from fundus_rt.runtime.session import ENGINE_SUFFIX, resolve_model

if TYPE_CHECKING:
    from fundus_rt.benchmarks.proof.explanations import Explanation
    from fundus_rt.benchmarks.proof.locate import Located
    from fundus_rt.benchmarks.proof.stages import StageSplit
    from fundus_rt.benchmarks.proof.value_ranges import RangeAudit
    from fundus_rt.runtime.certify import Issued

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
    reference: Path | None = None
    in_reference: int = 0
    """Photographs in the reference."""
    issued: Issued | None = None
    not_issued: str = ""
    """Why there is no reference or certificate; empty where there is."""


def evidence(parity: Parity, options: EvidenceOptions, feedback: Feedback) -> Evidence:
    """Look into a comparison; what half precision changes counts as a problem of it.

    Raises:
        FundusRtError: a photograph changed meanwhile, or a graph cannot be read.
    """
    found = Evidence()
    if not len(parity.answered.offsets):
        return found
    sample = parity.sample(options.stages)
    onnx_file = _onnx_file(parity)
    if sample:
        from fundus_rt.benchmarks.proof.stages import stage_split

        session = parity.session()
        try:
            with feedback.step(f"Looking at {len(sample)} photographs stage by stage"):
                found.split = stage_split(parity.original, session, sample, onnx_file)
        finally:
            session.close()
    if parity.identity.precision != "fp32" and parity.backend.device.lower().startswith("cpu"):
        _judge_half(parity, sample or parity.sample(EXPLAINED_ON), found, feedback)
    if not parity.passed:
        _explain(parity, found, options, onnx_file, feedback)
    else:
        _certify(parity, found, options, feedback)
    return found


def our_tensors(parity: Parity, cases: Sequence[Case]) -> np.ndarray:
    """Photographs as the file's network takes them, [N, H, W, 3], BGR, mirrored where the file's card and the eye say so."""
    mirrors = parity.own.laterality == "mirror-left"
    tensors = []
    for case in cases:
        frame = decode(case.content).frame
        mirror = mirrors and case.eye == "left"
        tensors.append(tensor_from_frame(frame, find_field_of_view(frame), parity.own.preprocessing, mirror))
    return np.stack(tensors)


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
            agreement(f"{o.name} in half precision", right[o.name], answered[o.name], o, found_output=own[o.name])
            for o in parity.original.card.outputs
        )
        found.ranges = value_ranges(model, frames)
    found.half_photographs = len(cases)
    parity.problems += [problem for one in found.half for problem in one.problems]


def _explain(parity: Parity, found: Evidence, options: EvidenceOptions, onnx_file: Path | None, feedback: Feedback) -> None:
    from fundus_rt.benchmarks.proof.explanations import explanations

    rows = _window(parity)
    cases = [_case_of(row) for row in rows]
    if options.explain:
        with feedback.step("Trying which single mistake would explain the answers"):
            photographs = [photograph_of(case, parity.original.card) for case in cases]
            ours, right = _numbers(rows, "ours", parity), _numbers(rows, "original", parity)
            found.explained = explanations(parity.original, photographs, ours, right)
    blamed = found.split.blamed() if found.split else ()
    if options.locate and onnx_file is not None and set(blamed) & set(GRAPH_STAGES):
        from fundus_rt.benchmarks.proof.graph_runs import has_half
        from fundus_rt.benchmarks.proof.half_precision import emulated_half
        from fundus_rt.benchmarks.proof.locate import locate

        examined: Any = require("onnx").load(str(onnx_file))
        if has_half(examined):
            examined = emulated_half(examined)
        budget = BUDGETS["fp32" if parity.identity.precision == "fp32" else "lower"]
        with feedback.step("Looking for the first node that is wrong"):
            found.located = locate(parity.original.export(), examined, our_tensors(parity, cases[:LOCATED_ON]), budget)
        found.looked_for_node = True


def _window(parity: Parity) -> list[Row]:
    """Rows one after the other around the worst photograph: an answer that belongs to the picture before is seen only so."""
    worst = next(iter(parity.figures[0].agreement.worst), 0)
    count = len(parity.answered.offsets)
    first = max(0, min(worst - EXPLAINED_ON // 2, count - EXPLAINED_ON))
    return [parity.answered.row(index) for index in range(first, min(first + EXPLAINED_ON, count))]


def _case_of(row: Row) -> Case:
    return case_again(row["file"], row["sha256"], row["eye"]["value"])


def _numbers(rows: Sequence[Row], side: str, parity: Parity) -> dict[str, np.ndarray]:
    """float32 [N, columns] by output, of one side."""
    return {
        output.name: np.array([row["outputs"][output.name][side] for row in rows], np.float32)
        for output in parity.original.card.outputs
    }


def _certify(parity: Parity, found: Evidence, options: EvidenceOptions, feedback: Feedback) -> None:
    """Write the reference beside the file, and certify this way to compute with it."""
    from fundus_rt.benchmarks.proof.parity_figures import chosen
    from fundus_rt.runtime.certify import certify, why_too_few

    path = Path(parity.call.file)
    if not path.suffix:
        found.not_issued = f"{parity.call.file} is part of the package: no reference is written beside it"
    elif not options.reference_photographs:
        found.not_issued = "no reference was asked for"
    else:
        found.not_issued = why_too_few(min(len(parity.answered.offsets), options.reference_photographs))
    if found.not_issued:
        return
    indices = chosen(parity.figures, len(parity.answered.offsets), options.reference_photographs)
    rows = [parity.answered.row(index) for index in indices]
    with feedback.step(f"Writing the reference of {len(rows)} photographs"):
        reference = ReplayReference(
            our_tensors(parity, [_case_of(row) for row in rows]), _numbers(rows, "original", parity), _facts(parity)
        )
        try:
            write_reference(reference_path(path), reference)
        except OSError as error:
            raise UsageError(f"{reference_path(path)} cannot be written ({error.strerror}); say --no-reference") from error
    found.reference, found.in_reference = reference_path(path), len(rows)
    call = parity.call
    try:
        with feedback.step("Replaying the reference for the certificate"):
            found.issued = certify(call.file, None, call.backend, call.device, call.provider, say=feedback.say)
    except CertificateError as error:
        found.not_issued = str(error)
    else:
        parity.problems += [f"replayed for the certificate: {problem}" for problem in found.issued.certificate.problems]


def _facts(parity: Parity) -> dict[str, Any]:
    """What the reference says of its origin: hashes and versions, no names of photographs."""
    return {
        "checkpoint_sha256": parity.original.checkpoint_sha256,
        "card_sha256": card_sha256(parity.own),
        "network": parity.original.description,
        "framework": parity.original.framework,
        "versions": parity.versions,
        "author_side": parity.author.origin,
    }
