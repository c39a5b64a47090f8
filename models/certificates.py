"""What a certificate says, and when it counts: that one file, computed in one way, answers as the original framework did.

A certificate is bound to the bytes of the file, to checkpoint, card and reference, and to backend, provider, version and kind of
device; it counts for nothing else. It lies in ``NAME.parity.json`` beside the model, a list with one certificate for each way to
compute, and carries its own SHA-256. The file has exactly one form for a content, so a single changed byte in it is seen.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fundus_rt.models.artifacts import bytes_of_file, sha256_of_bytes
from fundus_rt.models.card import ModelCard
from fundus_rt.models.errors import ModelFileError
from fundus_rt.models.signatures import PublicKey, Signature, is_signed_by, signed

CERTIFICATE_FORMAT = 1
"""Version of the JSON file."""
PASSED, FAILED, NONE = "passed", "failed", "none"
MOST_BYTES = 1 << 23
"""Largest file that is read."""

BACKEND_NAMES = {"onnxruntime": "ONNX Runtime", "openvino": "OpenVINO", "tensorrt": "TensorRT", "tensorrt_rtx": "TensorRT-RTX"}
_UNDESCRIBED = ("provenance", "canary")
"""Parts of a card that differ between two files of one model and decide no answer."""


@dataclass(frozen=True)
class Binding:
    """What computes, and from which file: all that a certificate is held against."""

    file_sha256: str
    """Of the ``.onnx`` or ``.engine`` file that is computed from."""
    card_sha256: str
    checkpoint_sha256: str
    """Of the published file; empty where the card does not say it."""
    backend: str
    provider: str
    version: str
    device: str
    """Kind of device in words: architecture, processor and instruction sets, or GPU and compute capability; L4T on a Jetson."""
    precision: str
    """Of the graph: ``fp32``, ``fp16``, ``int8``."""

    def why_not(self, certificate: Certificate) -> list[str]:
        """What stands between a certificate of the same file and this, one sentence a field; empty where it counts."""
        name = BACKEND_NAMES.get(self.backend, self.backend)
        words = {
            "backend": "the certificate is of the backend {}, this is {}",
            "provider": "the certificate is of the provider {}, this is {}",
            "version": f"the certificate is of {name} {{}}, this is {{}}",
            "device": "the certificate is of another kind of device, {}; this is {}",
            "precision": "the certificate is of the precision {}, this is {}",
            "card_sha256": "the card was changed since the certificate was issued (SHA-256 {:.12} -> {:.12})",
            "checkpoint_sha256": "the certificate is of another checkpoint (SHA-256 {:.12}, this is {:.12})",
        }
        found = []
        for field, sentence in words.items():
            theirs, ours = getattr(certificate, field), getattr(self, field)
            if theirs != ours and not (field == "checkpoint_sha256" and not ours):
                found.append(sentence.format(theirs or "none", ours or "none"))
        return found


@dataclass(frozen=True)
class Certificate:
    """The outcome of one replay on one device."""

    file_sha256: str
    """Of the file that was computed from, ``.onnx`` or ``.engine``."""
    onnx_sha256: str
    """Of the ``.onnx`` file that an engine was built from; that of the file itself otherwise."""
    checkpoint_sha256: str
    card_sha256: str
    """From `card_sha256`."""
    reference_sha256: str
    backend: str
    provider: str
    version: str
    device: str
    precision: str
    agreement: dict[str, dict[str, Any]]
    """By output: the figures of `fundus_rt.runtime.agreement.OutputAgreement.to_dict`."""
    verdict: str
    """``passed`` or ``failed``."""
    problems: tuple[str, ...]
    """Why it failed, one sentence each."""
    date: str
    """ISO 8601, UTC."""
    fundus_rt: str
    """Version of this package."""
    author_side: str = ""
    """Whose card the original's side followed in preprocessing, labels and operating points, in words; the reference says it."""
    failed_on: tuple[str, ...] = ()
    """SHA-256 of photographs' files, or of network inputs, that were answered otherwise than by the original: those that have to
    pass before the failure is withdrawn."""
    signature: Signature | None = None

    def message(self) -> bytes:
        """What a signature is made over: everything but the signature, as JSON of one form."""
        values = dataclasses.asdict(self)
        del values["signature"]
        return _canonical(values)

    def to_dict(self) -> dict[str, Any]:
        """As it stands in the file, with ``sha256`` over everything else."""
        values = dataclasses.asdict(self)
        values["problems"], values["failed_on"] = list(self.problems), list(self.failed_on)
        return {**values, "sha256": sha256_of_bytes(_canonical(values))}

    def signed_with(self, key_file: Path) -> Certificate:
        """The same certificate with a signature, see `fundus_rt.models.signatures.signed`."""
        return dataclasses.replace(self, signature=signed(self.message(), key_file))

    def same_binding(self, other: Certificate) -> bool:
        """Whether another certificate is about the same file computed in the same way, so that it takes this one's place."""
        fields = ("file_sha256", "card_sha256", "backend", "provider", "version", "device", "precision")
        return all(getattr(self, field) == getattr(other, field) for field in fields)


@dataclass(frozen=True)
class CertificateState:
    """Whether what computes is certified."""

    verdict: str
    """``passed``, ``failed`` or ``none``."""
    reason: str = ""
    """Why it is not ``passed``: one sentence without names of folders; empty where it is."""
    certificate: Certificate | None = None
    """The one that counts."""

    def __str__(self) -> str:
        return f"certificate: {self.verdict}{f' ({self.reason})' if self.reason else ''}"


def card_sha256(card: ModelCard) -> str:
    """SHA-256 of what a card says of the model and its answers, 64 hexadecimal digits.

    Its origin and its canary are left out: they differ between two files of one model. Whole numbers count as such with or
    without a decimal point, and a budget that is not stated as none.
    """
    values = {name: value for name, value in dataclasses.asdict(card).items() if name not in _UNDESCRIBED}
    values["outputs"] = [{k: v for k, v in output.items() if (k, v) != ("budget", None)} for output in values["outputs"]]
    return sha256_of_bytes(_canonical(_with_floats(values)))


def file_from_certificates(certificates: Sequence[Certificate]) -> str:
    """The text of ``NAME.parity.json``; one text for one content."""
    return _rendered({"certificates": [certificate.to_dict() for certificate in certificates], "format": CERTIFICATE_FORMAT})


def certificates_from_file(path: Path) -> tuple[list[Certificate], list[str]]:
    """The certificates in a file, and what is wrong with those that are left out.

    Raises:
        FileNotFoundError: there is none.
        LaterFormatError: it is of a later version of this package.
        ModelFileError: cut off, changed, or no such file.
    """
    name = path.name
    try:
        content = bytes_of_file(path, MOST_BYTES)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise ModelFileError(f"{name} cannot be read ({error.strerror})") from error
    try:
        if len(content) > MOST_BYTES:
            raise ValueError(f"it has more than {MOST_BYTES} bytes")
        text = content.decode("utf-8")
        values = json.loads(text, parse_constant=_refuse_constant)
        stated = values["format"]
        if isinstance(stated, int) and stated > CERTIFICATE_FORMAT:
            raise LaterFormatError(f"{name} is of a later version of fundus-rt (format {stated}); update this one")
        if stated != CERTIFICATE_FORMAT or _rendered(values) != text:
            raise ValueError("it was changed since it was written")
        entries = list(values["certificates"])
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        reason = str(error)[:120] if str(error).startswith("it ") else "it is cut off or was changed since it was written"
        raise ModelFileError(f"{name} does not count: {reason}") from error
    certificates, problems = [], []
    for entry in entries:
        try:
            certificates.append(_certificate(entry))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            problems.append(f"a certificate in {name} does not count: {str(error)[:120]}")
    return certificates, problems


class LaterFormatError(ModelFileError):
    """A file of certificates that a later version of this package wrote."""


def state_of(
    certificates: Sequence[Certificate], here: Binding, reference_sha256: str | None = None, key: PublicKey | None = None
) -> CertificateState:
    """What certificates say of what computes here.

    Args:
        certificates: those that were found.
        here: what computes.
        reference_sha256: of the reference beside the model; None where none lies there.
        key: accept only what was signed with it; None accepts unsigned certificates too. A failure counts unsigned.

    Returns:
        ``failed`` where one that counts says so, whenever it was issued and with whichever reference: the same file, computed
        in the same way, answered wrongly once. Else ``passed`` by the one issued last; ``none`` with the reason that is nearest
        where none counts.

    Raises:
        BackendUnavailableError: a key is given and ``cryptography`` is not installed.
    """
    of_file = [certificate for certificate in certificates if certificate.file_sha256 == here.file_sha256]
    if not of_file:
        return CertificateState(NONE, "the certificate is of another file: this one's SHA-256 is not in it")
    refusals: list[list[str]] = []
    counting: list[Certificate] = []
    for certificate in of_file:
        reasons = here.why_not(certificate)
        if certificate.verdict != FAILED and reference_sha256 not in (None, certificate.reference_sha256):
            reasons.append("the reference beside the model is not the one that the certificate was issued with")
        if key is not None and certificate.verdict != FAILED and (why := _why_unaccepted(certificate, key)):
            reasons.append(why)
        if reasons:
            refusals.append(reasons)
        else:
            counting.append(certificate)
    if not counting:
        nearest = min(refusals, key=len)
        return CertificateState(NONE, "; ".join(nearest))
    last = max(counting, key=lambda certificate: (certificate.verdict == FAILED, certificate.date))
    reason = f"the certificate says that it failed: {'; '.join(last.problems)}" if last.verdict == FAILED else ""
    return CertificateState(last.verdict, reason, last)


def _why_unaccepted(certificate: Certificate, key: PublicKey) -> str:
    if certificate.signature is None:
        return "the certificate is not signed, and only those of the given key are accepted"
    if certificate.signature.public_key != key.content:
        return "the certificate is signed with another key than the given one"
    return "" if is_signed_by(certificate.message(), certificate.signature, key) else "the certificate's signature is wrong"


def _certificate(values: Any) -> Certificate:
    """A certificate from its JSON object.

    Raises:
        ValueError, KeyError, TypeError: not one, or changed since it was issued.
    """
    stated = {name: value for name, value in dict(values).items() if name != "sha256"}
    if sha256_of_bytes(_canonical(stated)) != values["sha256"]:
        raise ValueError("its SHA-256 is not that of its content")
    fields = {field.name for field in dataclasses.fields(Certificate)}
    if set(stated) != fields:
        raise ValueError(f"it has other fields: {', '.join(sorted(set(stated) ^ fields))}")
    texts = fields - {"agreement", "problems", "failed_on", "signature"}
    if wrong := sorted(name for name in texts if not isinstance(stated[name], str)):
        raise TypeError(f"{', '.join(wrong)} of another type")
    if unprintable := sorted(name for name in texts if not stated[name].isprintable()):
        raise ValueError(f"{', '.join(unprintable)} with characters that cannot be printed")
    if bad := [name for name in fields if name.endswith("sha256") and not re.fullmatch("[0-9a-f]{64}", stated[name])]:
        raise ValueError(f"{', '.join(sorted(bad))} of another form")
    agreement, problems, signature = stated["agreement"], stated["problems"], stated["signature"]
    if not isinstance(agreement, dict) or not agreement or not all(isinstance(figures, dict) for figures in agreement.values()):
        raise TypeError("its figures are of another type")
    if not isinstance(problems, list) or not all(isinstance(problem, str) and problem.isprintable() for problem in problems):
        raise TypeError("its problems are of another type")
    failed_on = stated["failed_on"]
    if not isinstance(failed_on, list) or not all(re.fullmatch("[0-9a-f]{64}", str(digest)) for digest in failed_on):
        raise TypeError("its failed photographs are of another type")
    if stated["verdict"] != (FAILED if problems else PASSED):
        raise ValueError(f"its verdict {stated['verdict']!r} is not that of its problems")
    found = None if signature is None else Signature(**{name: str(value) for name, value in signature.items()})
    return Certificate(**{**stated, "problems": tuple(problems), "failed_on": tuple(failed_on), "signature": found})


def _canonical(values: Any) -> bytes:
    return json.dumps(values, sort_keys=True, separators=(",", ":"), allow_nan=False).encode("ascii")


def _rendered(values: Any) -> str:
    return json.dumps(values, sort_keys=True, indent=1, allow_nan=False) + "\n"


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"it holds {name}")


def _with_floats(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _with_floats(inner) for name, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_with_floats(inner) for inner in value]
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value
