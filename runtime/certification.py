"""Whether what computes is certified, and how near an answer may come to an operating point before another device could decide
otherwise."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fundus_rt.models.card import ModelCard
from fundus_rt.models.certificate_store import certificate_state, files_seen
from fundus_rt.models.certificates import BACKEND_NAMES, NONE, PASSED, Binding, CertificateState, card_sha256
from fundus_rt.models.errors import BackendUnavailableError, CertificateError, StoppedError
from fundus_rt.models.onnx_scan import holds_half_precision
from fundus_rt.models.signatures import KEY_VARIABLE, PublicKey, read_public_key
from fundus_rt.runtime.agreement import margins, values_in_unit
from fundus_rt.runtime.device_kind import device_kind
from fundus_rt.runtime.onnx_providers import TF32_VARIABLE
from fundus_rt.runtime.session import BackendInfo, ModelIdentity

UNSTABLE = "not stable across hardware"
"""Beginning of the warning."""


class Certification:
    """What is known of a model on whatever computes it; thread-safe. Looked up for each backend that comes to compute, and again
    when a file of certificates or the reference beside the model changes."""

    def __init__(
        self,
        model: Path,
        identity: ModelIdentity,
        card: ModelCard,
        device: str,
        engine: Callable[[], Path | None],
        key: PublicKey | None,
    ) -> None:
        """Args:
        model: the file that was asked for.
        identity: its hash and precision.
        card: its card.
        device: that was asked for: ``cpu`` or ``cuda:N``.
        engine: gives the file of the engine that computes now, where one does.
        key: accept only certificates that were signed with it.
        """
        self._model = model
        self._identity = identity
        self._card = card
        self._device = device
        self._engine = engine
        self._key = key
        self.required = False
        """Answer only while the certificate of what computes says ``passed``."""
        self._known: dict[BackendInfo, tuple[CertificateState, dict[str, float]]] = {}
        self._seen: tuple[object, ...] = ()

    def state(self, backend: BackendInfo) -> CertificateState:
        """The certificate of what computes.

        Raises:
            BackendUnavailableError: a key is given and ``cryptography`` is not installed.
        """
        return self._of(backend)[0]

    def check(self, backends: Iterable[BackendInfo]) -> None:
        """Stop where a session had to go on with what is not certified.

        Raises:
            StoppedError: a certificate is required and one of these has none that passed.
        """
        try:
            for backend in set(backends) if self.required else ():
                self.check_at_start(backend)
        except CertificateError as error:
            raise StoppedError(f"nothing more is answered: {error}") from error

    def check_at_start(self, backend: BackendInfo) -> None:
        """Look the certificate up, and refuse to begin without one that passed where one is required.

        Raises:
            CertificateError: with the reason and what to do.
        """
        state = self.state(backend)
        if self.required and state.verdict != PASSED:
            raise CertificateError(
                f"{self._card.name} on {backend.name} {backend.version} ({backend.device}) has no certificate that counts: "
                f"{state.reason}. Certify it on this device with `fundus-rt certify`, or leave --require-certificate out"
            )

    def warnings(self, backend: BackendInfo, numbers: dict[str, NDArray[np.float32]]) -> list[str]:
        """What has to be said of one answer that lies nearer to an operating point than devices were measured to differ.

        Args:
            backend: what computed it.
            numbers: by output, float32 [columns], before any activation.
        """
        limits = self._of(backend)[1]
        found = []
        for output in self._card.outputs:
            if output.task == "regression" or output.name not in limits:
                continue
            margin = float(margins(values_in_unit(numbers[output.name][None], output), output)[0])
            limit = limits[output.name]
            if margin <= limit:
                found.append(
                    f"{UNSTABLE}: {output.name} lies {margin:.2g} from its nearest operating point, and answers were measured to "
                    f"differ by up to {limit:.2g} ({output.unit}) between the original and what computes here; refer"
                )
        return found

    def _of(self, backend: BackendInfo) -> tuple[CertificateState, dict[str, float]]:
        seen = files_seen(self._model, self._computed(backend), backend.engine_sha256 or self._identity.sha256)
        if seen != self._seen:  # issued, withdrawn or damaged since
            self._known, self._seen = {}, seen
        known = self._known.get(backend)
        if known is None:
            state = self._looked_up(backend)
            self._known[backend] = known = state, largest_differences(self._card, state)
        return known

    def _computed(self, backend: BackendInfo) -> Path:
        """The file that a backend computes from."""
        return (self._engine() if backend.engine_sha256 else None) or self._model

    def _looked_up(self, backend: BackendInfo) -> CertificateState:
        if why := why_never_certified(backend, self._identity.precision, self._model):
            return CertificateState(NONE, why)
        try:
            here = binding_of(backend, self._card, self._identity, self._device)
        except BackendUnavailableError as error:
            return CertificateState(NONE, f"it cannot be told what kind of device this is ({error})")
        return certificate_state(self._model, self._computed(backend), here, self._key)


def accepted_key(key_file: str | Path | None) -> PublicKey | None:
    """The key that certificates have to be signed with: in the file that is named, else in that of `KEY_VARIABLE`, else none.

    Raises:
        UsageError: the file holds no public key.
        BackendUnavailableError: ``cryptography`` is not installed.
    """
    named = key_file or os.environ.get(KEY_VARIABLE)
    return read_public_key(Path(named)) if named else None


def binding_of(backend: BackendInfo, card: ModelCard, identity: ModelIdentity, device: str) -> Binding:
    """What a certificate has to be of to count for what computes. Where the environment allows a GPU to round products to TF32,
    that is part of the provider.

    Args:
        backend: what computes now.
        card: the model's.
        identity: of the file that was asked for.
        device: that was asked for; a session that had to go on on the CPU is bound to that.

    Raises:
        BackendUnavailableError: the GPU cannot be asked what it is.
    """
    on_cpu = backend.device == "cpu"
    rounds = not on_cpu and os.environ.get(TF32_VARIABLE, "0") != "0"
    return Binding(
        file_sha256=backend.engine_sha256 or identity.sha256,
        card_sha256=card_sha256(card),
        checkpoint_sha256=checkpoint_sha256(card),
        backend=backend.name,
        provider=f"{backend.provider} with TF32".strip() if rounds else backend.provider,
        version=backend.version,
        device=device_kind("cpu" if on_cpu else device),
        precision=identity.precision,
    )


def checkpoint_sha256(card: ModelCard) -> str:
    """SHA-256 of the published file that a model was converted from; empty where its card does not say it."""
    return str(_mapping(card.provenance.get("checkpoint")).get("sha256", ""))


def why_never_certified(backend: BackendInfo, precision: str, model: Path) -> str:
    """Why a replay can prove nothing with this backend; empty where it can.

    ONNX Runtime's CPU provider puts casts around most operators of float16 and computes them in float32, and OpenVINO is told to
    compute in float32, so what they answer says nothing of half precision.
    """
    if backend.device != "cpu":
        return ""
    if "16" in precision or (model.suffix == ".onnx" and holds_half_precision(model)):
        name = BACKEND_NAMES.get(backend.name, backend.name)
        return f"{name} computes half precision on a CPU in float32, so only a GPU can certify this file"
    return ""


def largest_differences(card: ModelCard, state: CertificateState) -> dict[str, float]:
    """By output, the largest difference that was ever measured to the original, in the output's unit.

    It is the larger one of the certificate's and of the conversion's, which stands in the card; outputs of which neither is known
    are left out. A certificate that says nothing finite counts as infinitely far.
    """
    found: dict[str, float] = {}
    if state.certificate is not None:
        for name, figures in state.certificate.agreement.items():
            found[name] = _number(figures.get("largest"), np.inf)
    converted = _mapping(card.provenance.get("parity")).get("outputs")
    for figures in converted if isinstance(converted, (list, tuple)) else ():
        output = _mapping(figures).get("name")
        if isinstance(output, str):
            found[output] = max(found.get(output, 0.0), _number(_mapping(figures).get("largest"), 0.0))
    return found


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _number(value: Any, otherwise: float) -> float:
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else otherwise
