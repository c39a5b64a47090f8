"""Signed certificates: only those of the given key count, and the library that checks them is asked for only then."""

from __future__ import annotations

import builtins
import dataclasses
from pathlib import Path
from typing import Any

import pytest

from fundus_rt.models import certificates
from fundus_rt.models.certificate_store import certificate_state, keep_certificate
from fundus_rt.models.errors import BackendUnavailableError, UsageError
from fundus_rt.models.signatures import PublicKey, read_public_key, signed
from tests.test_certificates import CERTIFICATE, FAILED, HERE


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FUNDUS_RT_CACHE", str(tmp_path / "cache"))
    (tmp_path / "joir-sex.onnx").write_bytes(b"a network")
    return tmp_path / "joir-sex.onnx"


def quiet(said: str) -> None:
    pass


def verdict(model: Path, key: PublicKey | None = None) -> tuple[str, str]:
    state = certificate_state(model, model, HERE, key)
    return state.verdict, state.reason


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two pairs of keys, one protected by a password and one of another kind, as openssl would write them."""
    serialization = pytest.importorskip("cryptography.hazmat.primitives.serialization")
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519

    folder = tmp_path_factory.mktemp("keys")
    plain = serialization.NoEncryption()
    made = {"mine": ed25519.Ed25519PrivateKey.generate(), "theirs": ed25519.Ed25519PrivateKey.generate()}
    private: dict[str, Any] = {name: (key, plain) for name, key in made.items()}
    private["locked"] = made["mine"], serialization.BestAvailableEncryption(b"secret")
    private["curve"] = ec.generate_private_key(ec.SECP256R1()), plain
    found = {}
    for name, (key, encryption) in private.items():
        found[name] = folder / f"{name}.pem"
        pkcs8 = serialization.PrivateFormat.PKCS8
        found[name].write_bytes(key.private_bytes(serialization.Encoding.PEM, pkcs8, encryption))
        found[f"{name} public"] = folder / f"{name}.public.pem"
        info = serialization.PublicFormat.SubjectPublicKeyInfo
        found[f"{name} public"].write_bytes(key.public_key().public_bytes(serialization.Encoding.PEM, info))
    return found


def test_only_what_was_signed_with_the_key_counts(model: Path, keys: dict[str, Path]) -> None:
    mine, theirs = read_public_key(keys["mine public"]), read_public_key(keys["theirs public"])
    keep_certificate(model, CERTIFICATE, quiet)
    assert verdict(model, key=mine) == ("none", "the certificate is not signed, and only those of the given key are accepted")
    keep_certificate(model, CERTIFICATE.signed_with(keys["mine"]), quiet)
    assert verdict(model, key=mine)[0] == verdict(model)[0] == "passed"
    assert verdict(model, key=theirs) == ("none", "the certificate is signed with another key than the given one")


def test_a_signature_of_something_else(model: Path, keys: dict[str, Path]) -> None:
    signature = FAILED.signed_with(keys["mine"]).signature
    keep_certificate(model, dataclasses.replace(CERTIFICATE, signature=signature), quiet)
    key = read_public_key(keys["mine public"])
    assert verdict(model, key=key) == ("none", "the certificate's signature is wrong")


def test_a_foreign_signature_under_the_given_keys_name(model: Path, keys: dict[str, Path]) -> None:
    key = read_public_key(keys["mine public"])
    theirs = CERTIFICATE.signed_with(keys["theirs"]).signature
    assert theirs is not None
    keep_certificate(
        model, dataclasses.replace(CERTIFICATE, signature=dataclasses.replace(theirs, public_key=key.content)), quiet
    )
    assert verdict(model, key=key) == ("none", "the certificate's signature is wrong")


def test_the_library_itself_accepts_the_signature(keys: dict[str, Path]) -> None:
    from cryptography.hazmat.primitives.asymmetric import ed25519

    found = CERTIFICATE.signed_with(keys["mine"]).signature
    assert found is not None
    public = ed25519.Ed25519PublicKey.from_public_bytes(bytes.fromhex(found.public_key))
    public.verify(bytes.fromhex(found.value), b"fundus-rt certificate\0" + CERTIFICATE.message())


def test_what_is_no_key(keys: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "text.pem").write_text("no key")
    with pytest.raises(UsageError, match=r"openssl genpkey -algorithm ed25519 -out private\.pem"):
        signed(b"", tmp_path / "text.pem")
    with pytest.raises(UsageError, match="is not a private Ed25519 key"):
        signed(b"", keys["curve"])
    with pytest.raises(UsageError, match="protected by a password"):
        signed(b"", keys["locked"])
    with pytest.raises(UsageError, match="cannot be read"):
        signed(b"", tmp_path / "missing.pem")
    for wrong in (keys["mine"], keys["curve public"], tmp_path / "text.pem"):
        with pytest.raises(UsageError, match=r"is not a public Ed25519 key .*-pubout -out public\.pem"):
            read_public_key(wrong)


def test_without_the_library_the_extra_is_named(keys: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *rest: Any, **options: Any) -> Any:
        if name.partition(".")[0] == "cryptography":
            raise ImportError(name)
        return real(name, *rest, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(BackendUnavailableError, match=r"pip install 'fundus-rt\[sign\]'"):
        read_public_key(keys["mine public"])
    assert certificates.state_of([CERTIFICATE], HERE).verdict == "passed", "without a key nothing of it is needed"
