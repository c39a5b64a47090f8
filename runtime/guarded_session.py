"""A session that answers only as long as it can be trusted: known pictures at the start and in between, one stop for good."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import cast

import numpy as np
from numpy.typing import NDArray

from fundus_rt.models.canary import Canary, canary_from_dict
from fundus_rt.models.card import ModelCard
from fundus_rt.models.errors import (
    BackendUnavailableError,
    CanaryError,
    DeviceLostError,
    DeviceMemoryError,
    EngineMissingError,
    FundusRtError,
    ModelFileError,
    StoppedError,
)
from fundus_rt.runtime.preprocess import tensor_from_box
from fundus_rt.runtime.session import ENGINE_SUFFIX, BackendInfo, Batch, Box, FrameSession, Session, open_session, resolve_model

CANARY_EVERY = 500
"""Answered pictures after which the two known ones are asked for again."""


def open_guarded(
    model: str | Path, backend: str = "auto", device: str = "cpu", threads: int | None = None, provider: str = "auto"
) -> GuardedSession:
    """Open a model on the backend that is asked for, with a guard before it.

    Args:
        model: see `fundus_rt.runtime.session.open_session`.
        backend: ``onnxruntime``, ``tensorrt`` or ``auto``: ONNX Runtime on a CPU; on a GPU TensorRT where an engine is there,
            ONNX Runtime where none is, and the CPU when the GPU is lost or its memory full. What ``auto`` could not have is
            said in every result.
        device: ``cpu`` or ``cuda:N``. A GPU that is asked for and not there is an error, with ``auto`` too.
        threads: threads of one inference on a CPU; None for all cores.
        provider: of ONNX Runtime; any other than ``auto`` makes the backend ``auto`` take ONNX Runtime.

    Raises:
        As `open_session`; CanaryError.
    """
    if backend != "auto":
        return GuardedSession(open_session(model, backend, device, threads, provider))
    if device == "cpu" or provider != "auto":
        return GuardedSession(open_session(model, "onnxruntime", device, threads, provider))
    if resolve_model(model).suffix == ENGINE_SUFFIX:
        return GuardedSession(open_session(model, "tensorrt", device, threads))

    def on_cpu() -> Session:
        return open_session(model, "onnxruntime", "cpu", threads)

    try:
        return GuardedSession(open_session(model, "tensorrt", device, threads), continue_with=on_cpu)
    except (BackendUnavailableError, EngineMissingError) as error:
        said = f"TensorRT was not used ({' '.join(str(error).split())})"
    return GuardedSession(open_session(model, "onnxruntime", device, threads), continue_with=on_cpu, said=(said,))


class GuardedSession:
    """Another session with a guard before it. Thread-safe as that one is.

    Opening it asks for the two known pictures of the card (`fundus_rt.models.canary`), and so does every `CANARY_EVERY` answers,
    in changing order, so that an answer that got stuck shows. A wrong answer to them, a receipt that does not match or a lost
    device stops it: every later call raises the same error.
    """

    def __init__(
        self,
        session: Session,
        every: int = CANARY_EVERY,
        continue_with: Callable[[], Session] | None = None,
        said: tuple[str, ...] = (),
    ) -> None:
        """Guard `session`, and ask it for its known pictures.

        Args:
            session: an opened session; it is closed with this one.
            every: pictures between two looks at the known ones.
            continue_with: opens another session, to go on with when the device is lost or its memory is full; every later
                result says so (`warnings`). None: such an error reaches the caller.
            said: what every result has to say from the start.

        Raises:
            CanaryError: the session does not give the known answers; it is closed.
            ModelFileError: the card's canary is damaged.
        """
        self._session = session
        self._every = every
        self._continue_with = continue_with
        self._lock = threading.Lock()
        self._answered = 0
        self._turn = False
        self._stopped: StoppedError | None = None
        self._said = said
        self.card: ModelCard = session.card
        try:
            self._canary: Canary | None = canary_from_dict(session.card.canary)
        except ValueError as error:
            session.close()
            raise ModelFileError(f"{session.card.name}: {error}") from error
        if self._canary is None:
            self._said += ("the model file carries no pictures with known answers, so the device cannot be checked with them",)
        try:
            self._look()
        except (CanaryError, DeviceLostError, DeviceMemoryError) as error:
            if isinstance(error, CanaryError) or not self._may_continue(error, session):
                session.close()
                raise
            self._look()

    @property
    def backend(self) -> BackendInfo:
        """What computes now."""
        return self._session.backend

    @property
    def warnings(self) -> tuple[str, ...]:
        """What every result has to say."""
        return self._said + self._session.warnings

    def run(self, batch: Batch) -> dict[str, NDArray[np.float32]]:
        """Answer a batch, see `fundus_rt.runtime.session.Session.run`.

        Raises:
            StoppedError: of whichever kind stopped this session, now or earlier.
        """
        return self._guarded(lambda session: session.run(batch), len(batch))

    @property
    def takes_frames(self) -> bool:
        """Whether crop, resize and mirroring are better left to `run_frame`."""
        return self._session.takes_frames

    def run_frame(self, frame: NDArray[np.uint8], box: Box, mirror: bool) -> dict[str, NDArray[np.float32]]:
        """Answer one frame, see `fundus_rt.runtime.session.FrameSession.run_frame`; on the host where the session cannot."""

        def ask(session: Session) -> dict[str, NDArray[np.float32]]:
            if session.takes_frames:
                return cast(FrameSession, session).run_frame(frame, box, mirror)
            return session.run(tensor_from_box(frame, box, self.card.preprocessing, mirror)[None])

        return self._guarded(ask, 1)

    def frame_buffer(self, height: int, width: int) -> NDArray[np.uint8]:
        """Zeros, uint8 [height, width, 3], for a camera to write into: what `run_frame` reads fastest."""
        if self._session.takes_frames:
            return cast(FrameSession, self._session).frame_buffer(height, width)
        return np.zeros((height, width, 3), np.uint8)

    def close(self) -> None:
        """Release the network."""
        self._session.close()

    def _guarded(self, ask: Callable[[Session], dict[str, NDArray[np.float32]]], count: int) -> dict[str, NDArray[np.float32]]:
        if self._stopped is not None:
            raise type(self._stopped)(str(self._stopped))
        session = self._session
        try:
            answers = ask(session)
            with self._lock:
                self._answered += count
                due = self._answered >= self._every
                if due:
                    self._answered = 0
            if due:
                self._look()
        except (StoppedError, DeviceMemoryError) as error:
            if isinstance(error, (DeviceLostError, DeviceMemoryError)) and self._may_continue(error, session):
                return self._guarded(ask, count)
            if isinstance(error, StoppedError):
                self._stopped = type(error)(str(error))  # without the traceback, which would keep the device's memory
            raise
        return answers

    def _look(self) -> None:
        """Ask for the two known pictures; `CanaryError` where the answers are not the known ones."""
        if self._canary is None:
            return
        spec = self.card.preprocessing
        self._turn = not self._turn
        order = [0, 1] if self._turn else [1, 0]
        answered = self._session.run(np.ascontiguousarray(self._canary.batch(spec.input_size, spec.input_dtype)[order]))
        problems = self._canary.problems({name: rows[order] for name, rows in answered.items()})
        if problems:
            raise CanaryError(
                f"{self.card.name} does not give its known answers to its two known pictures on {self.backend.name} "
                f"{self.backend.version} ({self.backend.device}): {'; '.join(problems)}. None of its answers can be trusted. Run "
                "`fundus-rt doctor`, try another backend, and convert the checkpoint again if it stays."
            )

    def _may_continue(self, error: Exception, failed: Session) -> bool:
        """Put the other session in place of the failed one, once; False where there is none."""
        with self._lock:
            if self._session is not failed:
                return True  # another thread has done it
            if self._continue_with is None:
                return False
            before = failed.backend
            try:
                self._session = self._continue_with()
            except FundusRtError as other:
                raise type(error)(f"{error} It cannot be gone on with on the CPU either: {other}") from error
            self._continue_with = None
            cause = " ".join(str(error).split())
            self._said += (
                f"{before.name} on {before.device} failed ({cause}): answered on {self._session.backend.device} since",
            )
        failed.close()
        return True
