"""What a comparison leaves beside the file: the reference, and the certificate of this way to compute with it."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import hashlib
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fundus_rt.benchmarks.proof.parity import Feedback, Parity
from fundus_rt.benchmarks.proof.parity_figures import chosen, without_places
from fundus_rt.benchmarks.proof.parity_frames import case_of, numbers_of, our_tensors
from fundus_rt.models.certificate_store import AskedAnew, keep_certificate
from fundus_rt.models.certificates import FAILED, Certificate, card_sha256
from fundus_rt.models.errors import CertificateError, FundusRtError, UsageError
from fundus_rt.models.references import ReplayReference, reference_path, write_reference
from fundus_rt.runtime.certification import binding_of, why_never_certified
from fundus_rt.runtime.certify import Issued, Replay, certify, failed_places, why_too_few
from fundus_rt.runtime.session import resolve_model


@dataclass
class Kept:
    """What was written beside the file."""

    reference: Path | None = None
    in_reference: int = 0
    """Photographs in the reference."""
    issued: Issued | None = None
    not_issued: str = ""
    """Why there is no reference or certificate; empty where there is."""


def require_room_for_reference(file: str) -> None:
    """Try, before hours of work, whether a reference can be written beside a file.

    Args:
        file: as a user names it; a bundled model has no place beside it, and needs none.

    Raises:
        UsageError: the folder cannot be written, or something else has the reference's name.
    """
    path = Path(file)
    if not path.suffix or not path.exists():  # what is not there is said when it is opened
        return
    reference = reference_path(path)
    if reference.exists() and not reference.is_file():
        raise UsageError(f"{reference} is no file, so no reference can be written there; remove it, or say --no-reference")
    try:
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise UsageError(
            f"no reference can be written in the folder of {file} ({error.strerror}); put the file where you may write, or say "
            "--no-reference"
        ) from error


def why_none(parity: Parity, most: int) -> str:
    """Why nothing is kept beside the file, whatever the answers were; empty where something is.

    Args:
        parity: what was compared.
        most: photographs in the reference; 0: none is wanted.
    """
    if not Path(parity.call.file).suffix:
        return f"{parity.call.file} is part of the package: no reference is written beside it"
    if not most:
        return "no reference was asked for"
    return parity.other_checkpoint()


def certify_passed(parity: Parity, most: int, feedback: Feedback) -> Kept:
    """Write the reference beside the file, and certify this way to compute with it.

    A replay that does not agree counts as a problem of the comparison. Where no certificate can be issued, it is said why; where
    an error is the reason, an earlier reference stays in its place.
    """
    found = Kept(not_issued=why_none(parity, most) or why_too_few(min(len(parity.answered.offsets), most)))
    if found.not_issued:
        return found
    path, call = reference_path(Path(parity.call.file)), parity.call
    indices = chosen(parity.figures, len(parity.answered.offsets), most)
    try:
        with _earlier_put_back(path):
            with feedback.step(f"Writing the reference of {len(indices)} photographs"):
                rows = [parity.answered.row(index) for index in indices]
                frames = our_tensors(parity, [case_of(row) for row in rows])
                write_reference(path, ReplayReference(frames, numbers_of(rows, "original", parity), _facts(parity)))
            found.reference, found.in_reference = path, len(indices)
            with feedback.step("Replaying the reference for the certificate"):
                try:
                    found.issued = certify(
                    call.file, None, call.backend, call.device, call.provider, anew=_asked_anew(parity), say=feedback.say,
                )  # fmt: skip
                except CertificateError as error:  # no replay proves anything here: on a GPU the reference can
                    found.not_issued = str(error)
    except (FundusRtError, OSError) as error:
        return Kept(not_issued=str(error))
    if found.issued is not None:
        parity.problems += [f"replayed for the certificate: {problem}" for problem in found.issued.certificate.problems]
    return found


@contextlib.contextmanager
def _earlier_put_back(path: Path) -> Iterator[None]:
    """On any error, the reference that lay there before: certificates of other devices go by it. Where none did, none does."""
    with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as folder:
        earlier = Path(folder) / path.name
        was_there = path.is_file()
        if was_there:
            shutil.copy2(path, earlier)
        try:
            yield
        except BaseException:
            if was_there:
                earlier.replace(path)
            else:
                path.unlink(missing_ok=True)
            raise


def certify_failed(parity: Parity, most: int, feedback: Feedback) -> Kept:
    """Keep a certificate that says that the file, computed in this way, failed: an earlier one that says it passed gives way.

    There is none where nothing speaks against the file: photographs that were not answered, or too much alike.
    """
    path, backend = resolve_model(parity.call.file), parity.backend
    found = Kept(not_issued=why_none(parity, most) or why_never_certified(backend, parity.identity.precision, path))
    if not found.not_issued and not parity.disproved():
        found.not_issued = "nothing was found that speaks against the file, and nothing is proved"
    if found.not_issued:
        return found
    computed, onnx_sha256 = path, parity.identity.sha256
    try:
        if backend.engine_sha256:
            session = parity.session()
            computed, onnx_sha256 = session.engine_path or path, session.onnx_sha256 or onnx_sha256
            session.close()
        here = binding_of(backend, parity.own, parity.identity, parity.call.device)
        certificate = Certificate(
            **{**dataclasses.asdict(here), "checkpoint_sha256": parity.original.checkpoint_sha256},
            onnx_sha256=onnx_sha256,
            reference_sha256=_sha256_of_rows(parity),
            agreement={one.output.name: without_places(one.agreement.to_dict()) for one in parity.figures},
            verdict=FAILED,
            problems=tuple(parity.problems),
            date=datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
            fundus_rt=parity.versions.get("fundus-rt", "not installed"),
            author_side=parity.author.origin,
            failed_on=_failed_on(parity),
        )
        kept = keep_certificate(computed, certificate, feedback.say)
    except (FundusRtError, OSError) as error:
        found.not_issued = str(error)
        return found
    agreements = tuple(one.agreement for one in parity.figures)
    found.issued = Issued(certificate, kept, Replay(backend, agreements), len(parity.answered.offsets))
    return found


def _asked_anew(parity: Parity) -> AskedAnew:
    """The photographs of a comparison that passed."""
    count = len(parity.answered.offsets)
    return AskedAnew(count, frozenset(parity.answered.row(index)["sha256"] for index in range(count)))


def _failed_on(parity: Parity) -> tuple[str, ...]:
    """SHA-256 of the photographs' files that speak against the file."""
    places = failed_places(one.agreement for one in parity.figures)
    return tuple(parity.answered.row(place)["sha256"] for place in places)


def _sha256_of_rows(parity: Parity) -> str:
    """SHA-256, 64 hexadecimal digits, over the photographs' own and the original's answers: what stands for the reference."""
    digest = hashlib.sha256()
    for index in range(len(parity.answered.offsets)):
        digest.update(bytes.fromhex(parity.answered.row(index)["sha256"]))
        for output in parity.original.card.outputs:
            digest.update(parity.answered.original[output.name][index].tobytes())
    return digest.hexdigest()


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
