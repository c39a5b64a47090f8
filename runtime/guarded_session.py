"""A session that answers only as long as it can be trusted: known pictures at the start and in between, one stop for good."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import cast

import numpy as np
from numpy.typing import NDArray

from fundus_rt.models.canary import PICTURES, Canary, canary_from_dict, canary_picture
from fundus_rt.models.card import ModelCard
from fundus_rt.models.errors import (
    BackendUnavailableError,
    CanaryError,
    DeviceLostError,
    DeviceMemoryError,
    EngineMissingError,
    ModelFileError,
    StoppedError,
)
from fundus_rt.runtime.answers import Answers
from fundus_rt.runtime.inherited import never_release_in_a_child
from fundus_rt.runtime.preprocess import tensor_from_box
from fundus_rt.runtime.session import ENGINE_SUFFIX, BackendInfo, Batch, Box, FrameSession, Session, open_session, resolve_model

CANARY_EVERY = 500
"""Answered pictures after which the two known ones are asked for again."""
FRAME_TOLERANCE = 2e-3
"""How far an answer to a whole frame may lie from the one to the host's tensor, as a share of the largest number: single values
of the tensor may differ by one grey level (OpenCV's cubic filter)."""


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

    said: list[str] = []
    problems: list[str] = []
    for way, name in (("tensorrt", "TensorRT"), ("onnxruntime", "ONNX Runtime on the GPU")):
        try:
            session = open_session(model, way, device, threads)
        except (BackendUnavailableError, EngineMissingError) as error:
            problems.append(f"{name}: {' '.join(str(error).split())}")
            said.append(f"{name} was not used ({' '.join(str(error).split())})")
        except (DeviceLostError, DeviceMemoryError) as error:
            said.append(f"{name} on {device} failed ({' '.join(str(error).split())}): answered on the CPU")
            return GuardedSession(on_cpu(), said=tuple(said))
        else:
            return GuardedSession(session, continue_with=on_cpu, said=tuple(said))
    raise BackendUnavailableError(f"nothing computes on {device}. {' '.join(problems)}")


class GuardedSession:
    """Another session with a guard before it. Thread-safe as that one is.

    Opening it asks for the two known pictures of the card (`fundus_rt.models.canary`), and so does every `CANARY_EVERY` answers,
    in changing order, so that an answer that got stuck shows. Where the session takes whole frames, drawn ones have to give the
    same answers through the GPU's crop and resize as through the host's. A wrong answer, a receipt that does not match or a lost
    device stops it: every later call raises the same error, and so do the calls that are under way.
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
        self._lock = threading.RLock()
        self._process = os.getpid()
        never_release_in_a_child(self)
        self._answered = 0
        self._turn = False
        self._closed = False
        self._stopped: StoppedError | None = None
        self._said = said
        self.card: ModelCard = session.card
        self.file_sha256 = session.file_sha256
        try:
            self._canary: Canary | None = canary_from_dict(session.card.canary)
            if self._canary is None:
                self._said += (
                    "the model file carries no pictures with known answers, so the device cannot be checked with them",
                )
            self._look(session)
        except ValueError as error:
            session.close()
            raise ModelFileError(f"{session.card.name}: {error}") from error
        except (DeviceLostError, DeviceMemoryError) as error:
            if not self._may_continue(error, session):
                session.close()
                raise
        except BaseException:
            session.close()
            raise

    @property
    def backend(self) -> BackendInfo:
        """What computes now."""
        return self._session.backend

    @property
    def engine_path(self) -> Path | None:
        """The file of the engine that computes now; None where the ``.onnx`` file is computed from."""
        return getattr(self._session, "engine_path", None)

    @property
    def onnx_sha256(self) -> str:
        """SHA-256 of the ``.onnx`` file that the engine was built from; empty where there is no engine."""
        return getattr(self._session, "onnx_sha256", "")

    @property
    def warnings(self) -> tuple[str, ...]:
        """What every result has to say."""
        return self._said + self._session.warnings

    def run(self, batch: Batch) -> Answers:
        """Answer a batch, see `fundus_rt.runtime.session.Session.run`.

        Raises:
            StoppedError: of whichever kind stopped this session, now or earlier.
        """
        return self.answer(batch)[0]

    def answer(self, batch: Batch) -> tuple[Answers, BackendInfo]:
        """As `run`, with what computed it."""
        return self._guarded(lambda session: session.run(batch), len(batch))

    @property
    def takes_frames(self) -> bool:
        """Whether crop, resize and mirroring are better left to `run_frame`."""
        return self._session.takes_frames

    def run_frame(self, frame: NDArray[np.uint8], box: Box, mirror: bool) -> Answers:
        """Answer one frame, see `fundus_rt.runtime.session.FrameSession.run_frame`; on the host where the session cannot."""
        return self.answer_frame(frame, box, mirror)[0]

    def answer_frame(self, frame: NDArray[np.uint8], box: Box, mirror: bool) -> tuple[Answers, BackendInfo]:
        """As `run_frame`, with what computed it."""

        def ask(session: Session) -> Answers:
            if session.takes_frames:
                return cast(FrameSession, session).run_frame(frame, box, mirror)
            return session.run(tensor_from_box(frame, box, self.card.preprocessing, mirror)[None])

        return self._guarded(ask, 1)

    def frame_buffer(self, height: int, width: int) -> NDArray[np.uint8]:
        """Zeros, uint8 [height, width, 3], for a camera to write into: what `run_frame` reads fastest."""
        if self._session.takes_frames:
            return cast(FrameSession, self._session).frame_buffer(height, width)
        return np.zeros((height, width, 3), np.uint8)

    @property
    def closed(self) -> bool:
        """Whether it was closed."""
        return self._closed

    def exchange(self, other: Session, instead_of: str) -> None:
        """Go on with another session of the same file, after it has shown its known answers; calls under way are answered by
        either. The one before is closed, and opened again where the new one loses its device.

        Args:
            other: an opened session; it is closed where it is not taken.
            instead_of: what was said because it was missing.

        Raises:
            CanaryError: it does not give the known answers.
            ModelFileError: it is of another file.
        """
        self._admit(other)
        with self._lock:
            unwanted = self._closed or self._stopped is not None
            before = other if unwanted else self._session
            if not unwanted:
                self._session = other
                self._said = tuple(sentence for sentence in self._said if sentence != instead_of)
        before.close()

    def say_instead(self, before: str, now: str) -> None:
        """What results have to say from now on in the place of an earlier sentence."""
        with self._lock:
            self._said = tuple(now if sentence == before else sentence for sentence in self._said)

    def close(self) -> None:
        """Release the network; waits for one that is just being put in its place. Nothing in a forked process."""
        if os.getpid() != self._process:
            return
        with self._lock:
            self._closed = True
            self._session.close()

    def _guarded(self, ask: Callable[[Session], Answers], count: int) -> tuple[Answers, BackendInfo]:
        self._require_trusted()
        session = self._session
        try:
            answers = ask(session)
            with self._lock:
                self._answered += count
                if self._answered >= self._every and self._session is session:
                    self._look(session)  # one that does not pass is due again at the next answer
                    self._answered = 0
        except Exception as error:
            if isinstance(error, (DeviceLostError, DeviceMemoryError)) and self._may_continue(error, session):
                return self._guarded(ask, count)
            if self._session is not session and not isinstance(error, StoppedError):
                return self._guarded(ask, count)  # it was closed under this call, for another thread went on elsewhere
            if isinstance(error, StoppedError):
                self._stop(error)
            raise
        self._require_trusted()  # another thread may have found out meanwhile
        return answers, session.backend

    def _require_trusted(self) -> None:
        if os.getpid() != self._process:  # threads, locks held by them and a GPU's state do not come along
            raise StoppedError(
                f"{self.card.name} was opened before this process was forked from another one; open it again in this process, "
                "where the worker starts (gunicorn: in the hook post_fork; multiprocessing: take the start method spawn)"
            )
        if self._stopped is not None:
            raise type(self._stopped)(str(self._stopped))

    def _stop(self, error: StoppedError) -> None:
        """Keep the first error that stops this session, without its traceback, which would keep the device's memory in use."""
        self._stopped = self._stopped or type(error)(str(error))

    def _admit(self, other: Session) -> None:
        """Close another session and raise where it is of another file or does not give the known answers."""
        try:
            if other.file_sha256 != self.file_sha256:
                raise ModelFileError("the model's file was replaced since it was opened; start again")
            self._look(other)
        except BaseException:
            other.close()
            raise

    def _look(self, session: Session) -> None:
        """Ask for the two known pictures, and for drawn frames; `CanaryError` where the answers are not the known ones."""
        problems: list[str] = []
        spec = self.card.preprocessing
        if self._canary is not None:
            self._turn = not self._turn
            order = [0, 1] if self._turn else [1, 0]
            answered = session.run(np.ascontiguousarray(self._canary.batch(spec.input_size, spec.input_dtype)[order]))
            problems += self._canary.problems({name: rows[order] for name, rows in answered.items()})
        if session.takes_frames:
            problems += frame_problems(cast(FrameSession, session))
        if problems:
            info = session.backend
            raise CanaryError(
                f"{self.card.name} does not give its known answers to its known pictures on {info.name} {info.version} "
                f"({info.device}): {'; '.join(problems)}. None of its answers can be trusted. Run `fundus-rt doctor`, try "
                "another backend, and convert the checkpoint again if it stays."
            )

    def _may_continue(self, error: StoppedError, failed: Session) -> bool:
        """Put the other session in place of the failed one, once, after it has shown its known answers; False where none is."""
        with self._lock:
            if self._session is not failed:
                return True  # another thread has done it
            if self._continue_with is None or self._stopped is not None or self._closed:
                return False
            open_other, self._continue_with = self._continue_with, None
            before = failed.backend
            failed.close()  # first, for both may share one memory
            try:
                other = open_other()
                self._admit(other)
            except CanaryError as wrong:
                self._stop(wrong)
                raise
            except Exception as second:  # a backend raises classes of its own, and nothing is there to answer any more
                ended = type(error)(f"{error} It cannot be gone on with on the CPU either: {second}")
                self._stop(ended)
                raise ended from error
            cause = " ".join(str(error).split())
            self._said += (f"{before.name} on {before.device} failed ({cause}): answered on {other.backend.device} since",)
            self._session = other
        return True


def frame_problems(session: FrameSession) -> list[str]:
    """What is wrong with a session's own crop and resize: drawn frames, straight and mirrored, held against the host's.

    The crop is larger than the network's input and reaches beyond the frame, so every part of the way is used.
    """
    spec = session.card.preprocessing
    height, width = spec.input_size
    found = []
    for which, mirror in ((0, False), (PICTURES - 1, True)):
        frame = canary_picture(which, (2 * height + 37, 3 * width + 11))
        box = (width // 2, -9, width // 2 + 2 * height + 30, 2 * height + 21)
        expected = session.run(tensor_from_box(frame, box, spec, mirror)[None])
        for name, rows in session.run_frame(frame, box, mirror).items():
            apart = float(np.abs(rows - expected[name]).max())
            if not apart <= FRAME_TOLERANCE * float(np.abs(expected[name]).max()) + 1e-6:
                found.append(f"{name}: {apart:.3g} away from the host's crop and resize of a {'mirrored ' * mirror}frame")
    return found
