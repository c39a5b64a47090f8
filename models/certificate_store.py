"""Where certificates lie: beside the model, or in the cache where that folder cannot be written. Several processes may write."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from fundus_rt.models.artifacts import atomic_path, sha256_of_file
from fundus_rt.models.cache_folder import cache_folders, trusted_writable_folder, why_untrusted
from fundus_rt.models.certificates import (
    FAILED,
    NONE,
    PASSED,
    Binding,
    Certificate,
    CertificateState,
    LaterFormatError,
    certificates_from_file,
    file_from_certificates,
    state_of,
)
from fundus_rt.models.errors import ModelFileError, UsageError
from fundus_rt.models.references import reference_path
from fundus_rt.models.registry import BUNDLED_FOLDER
from fundus_rt.models.signatures import PublicKey

CERTIFICATE_SUFFIX = ".parity.json"
MOST_CERTIFICATES = 500
"""In one file; of more, those that passed and were written first go."""
_WAIT_S = 60.0


@dataclass(frozen=True)
class AskedAnew:
    """What the original was asked about anew, and the file passed on."""

    photographs: int
    digests: frozenset[str]
    """SHA-256 of the photographs' files, and of those network inputs that were replayed."""


def certificate_path(model_file: Path) -> Path:
    """Where the certificates of a model file lie: ``NAME.parity.json`` beside ``NAME.onnx`` or ``NAME.engine``."""
    return model_file.with_suffix(CERTIFICATE_SUFFIX)


def certificate_state(model_file: Path, computed_file: Path, here: Binding, key: PublicKey | None = None) -> CertificateState:
    """Whether what computes here is certified.

    Args:
        model_file: what was asked for; beside it lies the reference, where there is one.
        computed_file: what is computed from: the same, or an engine of it in the cache.
        here: what computes.
        key: accept only certificates that were signed with it.

    Raises:
        BackendUnavailableError: a key is given and ``cryptography`` is not installed.
    """
    found: list[Certificate] = []
    problems: list[str] = []
    for path in _places(computed_file, here.file_sha256):
        try:
            certificates, damaged = certificates_from_file(path)
        except FileNotFoundError:
            continue
        except ModelFileError as error:
            problems.append(str(error))
            continue
        found += certificates
        problems += damaged
    if not found:
        missing = f"there is no {CERTIFICATE_SUFFIX[1:]} beside the model; `fundus-rt certify` writes it"
        return CertificateState(NONE, "; ".join(problems) or missing)
    beside = reference_path(model_file)
    try:
        reference = sha256_of_file(beside) if beside.is_file() else None
    except OSError as error:
        return CertificateState(NONE, f"{beside.name} cannot be read ({error.strerror})")
    state = state_of(found, here, reference, key)
    if state.verdict == NONE and problems:
        return CertificateState(NONE, "; ".join([*problems, state.reason]))
    return state


def files_seen(model_file: Path, computed_file: Path, file_sha256: str) -> tuple[object, ...]:
    """What changes when a certificate or the reference does: a few looks into folders, microseconds each.

    Args:
        model_file, computed_file: as `certificate_state`.
        file_sha256: of the computed file.
    """
    folders = cache_folders("certificates")
    places = [reference_path(model_file), certificate_path(computed_file)]
    places += [folder / f"{file_sha256}{CERTIFICATE_SUFFIX}" for folder in folders]
    found: list[object] = []
    for place in (*places, *folders):
        try:
            about = os.stat(place)
        except OSError:
            found.append(None)
            continue
        is_folder = place in folders
        found.append((about.st_mode, about.st_uid) if is_folder else (about.st_ino, about.st_size, about.st_mtime_ns))
    return tuple(found)


def keep_certificate(
    computed_file: Path, certificate: Certificate, say: Callable[[str], None], anew: AskedAnew | None = None
) -> Path:
    """Write a certificate beside the file that it is of, in the place of an earlier one for the same way to compute.

    A failure that was found with another reference stays beside it and goes on counting, unless it is withdrawn; so does a signed
    certificate beside an unsigned one.

    Args:
        computed_file: the ``.onnx`` or ``.engine`` file.
        certificate: what is kept.
        anew: failures with other references are withdrawn whose photographs are all among these, and no more than these.
        say: told in full sentences where else it goes, and of a damaged file that is replaced.

    Returns:
        The file that it was written to.

    Raises:
        UsageError: no folder can be written, another process does not let go of the file, or it is of a later version.
        OSError: the disk is full.
    """
    path = certificate_path(computed_file)
    why = _why_elsewhere(path)
    if not why:
        try:
            _add(path, certificate, say, anew)
            _drop_elsewhere(computed_file, certificate, path, anew)
            return path
        except PermissionError as error:
            why = f"{path.parent} cannot be written ({error.strerror})"
    elsewhere = trusted_writable_folder(cache_folders("certificates"), say) / f"{certificate.file_sha256}{CERTIFICATE_SUFFIX}"
    _add(elsewhere, certificate, say, anew)
    say(f"{why}: the certificate is kept in {elsewhere.parent}, where this user's calls find it")
    if certificate.verdict == PASSED and any(one.same_binding(certificate) and one.verdict == FAILED for one in _read(path)):
        say(f"{path.name} beside the model says of the same that it failed, and goes on counting until it is removed there")
    return elsewhere


def _places(computed_file: Path, file_sha256: str) -> Iterator[Path]:
    """Files that may hold a certificate; those in a cache folder that other users can write to are left out."""
    yield certificate_path(computed_file)
    for folder in cache_folders("certificates"):
        path = folder / f"{file_sha256}{CERTIFICATE_SUFFIX}"
        if path.is_file() and why_untrusted(folder) is None:
            yield path


def _why_elsewhere(path: Path) -> str:
    """Why a certificate does not belong beside its model; empty where it does."""
    if path.parent.resolve() == BUNDLED_FOLDER.resolve():
        return "the model is part of the installed package"
    return "" if os.access(path.parent, os.W_OK | os.X_OK) else f"{path.parent} cannot be written"


def _add(path: Path, certificate: Certificate, say: Callable[[str], None], anew: AskedAnew | None) -> None:
    with _locked(path):
        for other in path.parent.iterdir():  # what a killed process left
            if other.name.startswith(f".{path.name}.") and other.suffix == ".json":
                other.unlink(missing_ok=True)
        kept = [earlier for earlier in _earlier(path, say) if not _replaces(certificate, earlier, anew)]
        if any(one.verdict == FAILED and one.same_binding(certificate) for one in kept) and certificate.verdict == PASSED:
            say(
                f"{path.name} holds a failure of the same with another reference, which counts until `fundus-rt parity` passes "
                "on the same photographs"
            )
        text = file_from_certificates(_most([*kept, certificate]))
        with atomic_path(path) as temporary:
            temporary.write_text(text, encoding="utf-8", newline="\n")


def _most(certificates: list[Certificate]) -> list[Certificate]:
    """`MOST_CERTIFICATES` of them: of those that passed the first go, and failures only where nothing else is left."""
    left_out = max(0, len(certificates) - MOST_CERTIFICATES)
    first = sorted(range(len(certificates)), key=lambda place: (certificates[place].verdict == FAILED, place))[:left_out]
    return [certificate for place, certificate in enumerate(certificates) if place not in first]


def _replaces(certificate: Certificate, earlier: Certificate, anew: AskedAnew | None) -> bool:
    """Whether a new certificate takes the place of an earlier one."""
    if not earlier.same_binding(certificate) or (earlier.signature is not None and certificate.signature is None):
        return False
    if earlier.verdict != FAILED or earlier.reference_sha256 == certificate.reference_sha256:
        return True
    if certificate.verdict == FAILED:
        return False
    counts = [figures.get("photographs") for figures in earlier.agreement.values()]
    most = max((count for count in counts if isinstance(count, int)), default=0)
    return anew is not None and anew.photographs >= most and anew.digests.issuperset(earlier.failed_on)


def _drop_elsewhere(computed_file: Path, certificate: Certificate, written: Path, anew: AskedAnew | None) -> None:
    """Take what an earlier call kept of the same way to compute out of the cache, where this user may write."""
    for path in _places(computed_file, certificate.file_sha256):
        found = _read(path) if path != written else []
        left = [one for one in found if not _replaces(certificate, one, anew)]
        if len(left) == len(found):
            continue
        with contextlib.suppress(OSError), _locked(path), atomic_path(path) as temporary:
            left = [one for one in _read(path) if not _replaces(certificate, one, anew)]
            temporary.write_text(file_from_certificates(left), encoding="utf-8", newline="\n")


def _read(path: Path) -> list[Certificate]:
    """What counts in a file; nothing where it is not there or damaged."""
    try:
        return certificates_from_file(path)[0]
    except (FileNotFoundError, ModelFileError):
        return []


def _earlier(path: Path, say: Callable[[str], None]) -> list[Certificate]:
    try:
        certificates, problems = certificates_from_file(path)
    except FileNotFoundError:
        return []
    except LaterFormatError as error:
        raise UsageError(f"{error}, or remove the file; nothing of it was changed") from error
    except ModelFileError as error:
        say(f"{error}; it is replaced")
        return []
    for problem in problems:
        say(f"{problem}; it is left out from now on")
    return certificates


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold the lock of a file of certificates. The system gives it back when a process ends, however it ends."""
    from filelock import FileLock, Timeout

    lock = FileLock(path.with_name(f".{path.name}.lock"))
    try:
        lock.acquire(timeout=_WAIT_S)
    except Timeout:
        raise UsageError(f"another process has held {path.name} for {_WAIT_S:.0f} s; wait for it to end and call again") from None
    try:
        yield
    finally:
        lock.release()
