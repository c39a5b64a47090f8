"""Replay the original's answers on this device, and issue the certificate.

Nothing but the runtime's own dependencies is needed: the reference beside the model holds the pictures as the network takes them
and what the original framework answered.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fundus_rt.models import references
from fundus_rt.models.artifacts import sha256_of_file
from fundus_rt.models.card import ModelCard
from fundus_rt.models.certificate_store import AskedAnew, keep_certificate
from fundus_rt.models.certificates import FAILED, PASSED, Certificate, card_sha256
from fundus_rt.models.errors import CertificateError, ModelFileError, UsageError
from fundus_rt.models.references import ReplayReference, read_reference, reference_path
from fundus_rt.runtime.agreement import OutputAgreement, agreement
from fundus_rt.runtime.answers import Answers
from fundus_rt.runtime.certification import binding_of, checkpoint_sha256, why_never_certified
from fundus_rt.runtime.guarded_session import GuardedSession, open_guarded
from fundus_rt.runtime.session import BackendInfo, identify_model, package_version, resolve_model

REPLAY_SIZES = (1, 2, 3, 4)
"""Pictures in one inference, in turn: a certificate is for batches of any size."""

HOW_TO_GET_A_REFERENCE = (
    "write one where the original framework is installed: fundus-rt parity CHECKPOINT {model} --images PHOTOGRAPHS"
)


@dataclass(frozen=True)
class Replay:
    """What a device answered, held against what the original did."""

    backend: BackendInfo
    agreements: tuple[OutputAgreement, ...]

    @property
    def problems(self) -> tuple[str, ...]:
        """Why it does not agree; empty where it does."""
        return tuple(problem for found in self.agreements for problem in found.problems)


@dataclass(frozen=True)
class Issued:
    """A certificate that was just written."""

    certificate: Certificate
    path: Path
    replay: Replay
    photographs: int


def certify(
    model: str | Path,
    reference: Path | None = None,
    backend: str = "auto",
    device: str = "cpu",
    provider: str = "auto",
    key: Path | None = None,
    anew: AskedAnew | None = None,
    say: Callable[[str], None] = lambda sentence: None,
    show: Callable[[int, int], None] = lambda done, of: None,
) -> Issued:
    """Replay a reference through a model as `fundus_rt.runtime.pipeline.Pipeline` would compute it, and keep the certificate.

    Args:
        model, backend, device, provider: see `fundus_rt.runtime.guarded_session.open_guarded`.
        reference: None for ``NAME.reference`` beside the model.
        key: private key to sign with, see `fundus_rt.models.signatures.signed`.
        anew: photographs that `fundus_rt.benchmarks.proof.parity` just asked the original about, where it passed on them.
        say: told in full sentences what a result would have to say, and where the certificate goes when not beside the model.
        show: told how many photographs of how many were replayed.

    Returns:
        The certificate, ``passed`` or ``failed``, and where it was written.

    Raises:
        UsageError: there is no reference, or another one beside the model; the key cannot be used.
        CertificateError: no replay can prove anything with this backend or on so few photographs, or the device changed under it.
        ModelFileError: the reference is damaged, or of another model.
        FundusRtError: as `open_guarded`.
    """
    path = resolve_model(model)
    found, reference_sha256 = read_reference(_reference_file(path, reference))
    if key is not None:
        _require_key(key)
    session = open_guarded(model, backend, device, None, provider)
    for warning in session.warnings:
        say(warning)
    try:
        card, identity, computed = session.card, identify_model(session), session.engine_path or path
        if why := why_never_certified(session.backend, identity.precision, path):
            raise CertificateError(f"{path.name} is not certified: {why}")
        require_fitting(found, card)
        digests = found.digests()
        if why := why_too_few(len(set(digests))):
            raise CertificateError(f"{path.name} is not certified: {why}")
        here, onnx_sha256 = binding_of(session.backend, card, identity, device), session.onnx_sha256 or identity.sha256
        replayed = replay(session, found, show)
        if sha256_of_file(path) != identity.sha256:
            raise CertificateError(f"{path.name} changed while it was being certified; call again")
    finally:
        session.close()
    certificate = Certificate(
        file_sha256=here.file_sha256,
        onnx_sha256=onnx_sha256,
        checkpoint_sha256=found.facts["checkpoint_sha256"],
        card_sha256=here.card_sha256,
        reference_sha256=reference_sha256,
        backend=here.backend,
        provider=here.provider,
        version=here.version,
        device=here.device,
        precision=here.precision,
        agreement={figures.name: figures.to_dict() for figures in replayed.agreements},
        verdict=FAILED if replayed.problems else PASSED,
        problems=replayed.problems,
        date=datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
        fundus_rt=package_version(),
        author_side=" ".join(str(found.facts.get("author_side", "")).split()),
        failed_on=tuple(digests[place] for place in failed_places(replayed.agreements)),
    )
    if key is not None:
        certificate = certificate.signed_with(key)
    if anew is not None:
        anew = AskedAnew(anew.photographs, anew.digests.union(digests))
    return Issued(certificate, keep_certificate(computed, certificate, say, anew), replayed, len(found.frames))


def replay(
    session: GuardedSession, reference: ReplayReference, show: Callable[[int, int], None] = lambda done, of: None
) -> Replay:
    """Have a session answer every picture of a reference, in batches of changing size, and hold that against the original.

    Args:
        session: an opened model that the reference fits, see `require_fitting`.
        reference: the pictures and the original's answers.
        show: told how many were answered of how many.

    Raises:
        CertificateError: not one and the same backend answered them all.
        FundusRtError: what the session raises.
    """
    parts: list[Answers] = []
    first, precision = session.backend, identify_model(session).precision
    start, turn, count = 0, 0, len(reference.frames)
    while start < count:
        size = REPLAY_SIZES[turn % len(REPLAY_SIZES)]
        answers, backend = session.answer(np.array(reference.frames[start : start + size]))
        if backend != first:
            raise CertificateError(
                f"{first.name} on {first.device} failed during the replay and {backend.name} on {backend.device} went on, so "
                f"neither is certified; {'; '.join(session.warnings)}"
            )
        parts.append(answers)
        start, turn = start + size, turn + 1
        show(min(start, count), count)
    found = (
        agreement(o.name, reference.answers[o.name], np.concatenate([part[o.name] for part in parts]), o, o.allowed(precision))
        for o in session.card.outputs
    )
    return Replay(first, tuple(found))


def failed_places(agreements: Iterable[OutputAgreement]) -> list[int]:
    """Which photographs speak against a file, in outputs that do not agree: those decided otherwise, and those furthest apart."""
    failed = (found for found in agreements if found.problems)
    return sorted({place for found in failed for place in (*found.changed, *found.worst)})


def why_too_few(photographs: int) -> str:
    """Why so many different photographs are no ground for a certificate; empty where they are."""
    least = references.LEAST_PHOTOGRAPHS
    if photographs >= least:
        return ""
    return f"a certificate needs {least} different photographs at least, got {photographs}; give `fundus-rt parity` more of them"


def require_fitting(reference: ReplayReference, card: ModelCard) -> None:
    """Refuse a reference that is not of this model.

    Raises:
        ModelFileError: with every reason.
    """
    spec = card.preprocessing
    expected = (*spec.input_size, 3)
    found = []
    if reference.frames.shape[1:] != expected or reference.frames.dtype != spec.input_dtype:
        got = f"{reference.frames.dtype} {list(reference.frames.shape[1:])}"
        found.append(f"its frames are {got}, the network takes {spec.input_dtype} {list(expected)}")
    columns = {name: rows.shape[1] for name, rows in reference.answers.items()}
    wanted = {output.name: output.columns for output in card.outputs}
    if columns != wanted:
        found.append(f"its outputs are {columns}, the card's {wanted}")
    if reference.facts["card_sha256"] != card_sha256(card):
        found.append("it was written with another card; thresholds, labels and preprocessing are part of it")
    stated = checkpoint_sha256(card)
    if stated and reference.facts["checkpoint_sha256"] != stated:
        found.append(f"it is of checkpoint {reference.facts['checkpoint_sha256']:.12}, the model of {stated:.12}")
    if found:
        raise ModelFileError(
            f"the reference is not one of {card.name}: {'; '.join(found)}. Write it again with `fundus-rt parity`"
        )


def _reference_file(model: Path, stated: Path | None) -> Path:
    """The reference that is replayed.

    Raises:
        UsageError: there is none, or the stated one is not the one beside the model, by which the runtime would go.
    """
    beside = reference_path(model)
    if stated is None:
        if not beside.is_file():
            raise UsageError(
                f"there is no {beside.name} beside {model.name}; {HOW_TO_GET_A_REFERENCE.format(model=model.name)}. "
                "Or name it with --reference FILE"
            )
        return beside
    if beside.is_file() and _differ(beside, stated):
        raise UsageError(
            f"beside the model lies another reference, {beside.name}, and a certificate of {stated.name} would not count while "
            "it does; leave --reference out, or put the other one in its place"
        )
    return stated


def _differ(one: Path, other: Path) -> bool:
    """Whether two files have other bytes; a file that is not there is reported when it is read."""
    return other.is_file() and not one.samefile(other) and sha256_of_file(one) != sha256_of_file(other)


def _require_key(key: Path) -> None:
    """Try the key before the replay, which may take minutes."""
    from fundus_rt.models.signatures import signed

    signed(b"", key)
