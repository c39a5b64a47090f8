"""Signatures of certificates with Ed25519 (RFC 8032), by the package ``cryptography``, which only the extra ``[sign]`` installs.

A certificate shows by its own SHA-256 that nothing of it was changed by accident. Who issued it, only a signature shows: whoever
can write a file can write a certificate.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fundus_rt.models.artifacts import bytes_of_file
from fundus_rt.models.errors import BackendUnavailableError, UsageError

ALGORITHM = "ed25519"
KEY_VARIABLE = "FUNDUS_RT_CERTIFICATE_KEY"
"""Environment variable with the file of the public key that certificates must be signed with."""
_PURPOSE = b"fundus-rt certificate\0"
"""Stands before what is signed, so that a signature made for something else says nothing here."""
_MOST_BYTES = 1 << 16


@dataclass(frozen=True)
class Signature:
    """A signature and the key that it can be checked with."""

    public_key: str
    """32 bytes as hexadecimal digits."""
    value: str
    """64 bytes as hexadecimal digits."""
    algorithm: str = ALGORITHM


@dataclass(frozen=True)
class PublicKey:
    """A key by which certificates are accepted."""

    content: str
    """32 bytes as hexadecimal digits."""


def signed(message: bytes, key_file: Path) -> Signature:
    """Sign a message.

    Args:
        message: what is signed.
        key_file: a private Ed25519 key without a password, PEM, as ``openssl genpkey -algorithm ed25519`` writes it.

    Raises:
        UsageError: the file is not such a key.
        BackendUnavailableError: ``cryptography`` is not installed.
    """
    serialization, ed25519 = _cryptography()
    key = _loaded(key_file, "private", lambda content: serialization.load_pem_private_key(content, None))
    if not isinstance(key, ed25519.Ed25519PrivateKey):
        raise _other_key(key_file, "private")
    public = key.public_key().public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
    return Signature(public.hex(), key.sign(_PURPOSE + message).hex())


def read_public_key(key_file: Path) -> PublicKey:
    """The public key in a PEM file, as ``openssl pkey -in private.pem -pubout`` writes it.

    Raises:
        UsageError: the file is not such a key.
        BackendUnavailableError: ``cryptography`` is not installed.
    """
    serialization, ed25519 = _cryptography()
    key = _loaded(key_file, "public", serialization.load_pem_public_key)
    if not isinstance(key, ed25519.Ed25519PublicKey):
        raise _other_key(key_file, "public")
    return PublicKey(key.public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw).hex())


def is_signed_by(message: bytes, signature: Signature, key: PublicKey) -> bool:
    """Whether a signature of a message was made with the private half of a key.

    Raises:
        BackendUnavailableError: ``cryptography`` is not installed.
    """
    from_bytes = _cryptography()[1].Ed25519PublicKey.from_public_bytes
    if signature.algorithm != ALGORITHM or signature.public_key != key.content:
        return False
    from cryptography.exceptions import InvalidSignature

    try:
        from_bytes(bytes.fromhex(key.content)).verify(bytes.fromhex(signature.value), _PURPOSE + message)
    except (InvalidSignature, ValueError):
        return False
    return True


def _cryptography() -> tuple[Any, Any]:
    """The modules of ``cryptography`` that read keys and that compute."""
    try:
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import ed25519
    except ImportError as error:
        raise BackendUnavailableError(
            "cryptography is not installed; signing certificates and checking signatures need it: pip install 'fundus-rt[sign]'"
        ) from error
    return serialization, ed25519


def _loaded(key_file: Path, kind: str, load: Any) -> Any:
    try:
        content = bytes_of_file(key_file, _MOST_BYTES)
    except OSError as error:
        raise UsageError(f"the {kind} key {key_file} cannot be read ({error.strerror}); give a PEM file") from error
    try:
        return load(content)
    except TypeError as error:  # cryptography's answer to a key that asks for a password
        raise UsageError(
            f"the {kind} key {key_file} is protected by a password, which cannot be given here; "
            "write one without: openssl pkey -in KEY -out private.pem"
        ) from error
    except Exception as error:  # its other refusals share no base class
        raise _other_key(key_file, kind) from error


def _other_key(key_file: Path, kind: str) -> UsageError:
    command = "openssl genpkey -algorithm ed25519 -out private.pem"
    if kind == "public":
        command = "openssl pkey -in private.pem -pubout -out public.pem"
    return UsageError(f"{key_file} is not a {kind} Ed25519 key in PEM; make one with: {command}")
