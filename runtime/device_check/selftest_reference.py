"""The step of `fundus-rt selftest` that replays the original framework's answers, where a reference lies beside the model."""

from __future__ import annotations

from fundus_rt.models.references import read_reference, reference_path
from fundus_rt.runtime.certification import why_never_certified
from fundus_rt.runtime.certify import replay, require_fitting
from fundus_rt.runtime.device_check.selftest import FAILED, PASSED, Outcome, SkipStep
from fundus_rt.runtime.device_check.selftest_model import Subject
from fundus_rt.runtime.session import resolve_model


def reference_replay(subject: Subject) -> Outcome:
    """Every picture of ``NAME.reference`` gets the original's answer, within the card's tolerance and with the same decision.

    No certificate is written: that is what `fundus-rt certify` is for.
    """
    pipeline = subject.opened()
    path = resolve_model(subject.model)
    beside = reference_path(path)
    if not beside.is_file():
        raise SkipStep("no reference lies beside the model; `fundus-rt parity` writes one where the original framework is")
    if why := why_never_certified(pipeline.backend, pipeline.identity.precision, path):
        raise SkipStep(why)
    reference, digest = read_reference(beside)
    require_fitting(reference, pipeline.card)
    found = replay(pipeline._session, reference)
    figures = {
        "photographs": len(reference.frames),
        "reference_sha256": digest,
        "certificate": pipeline.certificate.verdict,
        "outputs": {one.name: one.to_dict() for one in found.agreements},
    }
    if found.problems:
        return Outcome(FAILED, "; ".join(found.problems), figures)
    return Outcome(PASSED, "; ".join(map(str, found.agreements)), figures)
