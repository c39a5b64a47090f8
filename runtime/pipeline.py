"""From a frame to an answer, in one object that a camera's process can hold.

from fundus_rt.runtime import Pipeline

pipeline = Pipeline("acquisition")
result = pipeline(frame)                  # uint8 [H, W, 3], BGR
print(result.outputs["eye"].decision)
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from fundus_rt.models.card import ModelCard
from fundus_rt.models.certificates import CertificateState
from fundus_rt.models.errors import EyeError, NotFundusError
from fundus_rt.runtime.answers import Answers
from fundus_rt.runtime.certification import Certification, accepted_key
from fundus_rt.runtime.decode import decode
from fundus_rt.runtime.eye import EyeDecision, require_eye, resolve_eye
from fundus_rt.runtime.field_of_view import FieldOfView, find_field_of_view, mirrored_view
from fundus_rt.runtime.guarded_session import GuardedSession, open_guarded
from fundus_rt.runtime.interpret import Prediction, interpret
from fundus_rt.runtime.preprocess import crop_box, tensor_from_box
from fundus_rt.runtime.result import EyeResult, Result
from fundus_rt.runtime.session import BackendInfo, Batch, Box, ModelIdentity, identify_model, resolve_model
from fundus_rt.runtime.standby import open_beside, open_while_building

Frame = NDArray[np.uint8]
"""uint8 [H, W, 3], BGR, upright as the camera or its EXIF orientation says."""

ACQUISITION = "acquisition"


@dataclass
class Prepared:
    """A picture on its way to the network."""

    tensor: Batch | None
    """[H, W, 3] of the network's input; a view of a buffer when `Pipeline.prepare` was given one. None where `frame` is set."""
    field_of_view: FieldOfView
    eye_sources: dict[str, str | None]
    eye: EyeResult
    warnings: list[str]
    timing_ms: dict[str, float] = field(default_factory=dict)
    frame: Frame | None = None
    """The whole picture, where the session crops and resizes it itself."""
    box: Box = (0, 0, 0, 0)
    """The part of `frame` that the model sees."""


class Pipeline:
    """A model with everything before and after it. Thread-safe; buffers are kept per thread and reused."""

    def __init__(
        self,
        model: str | Path = ACQUISITION,
        backend: str = "auto",
        device: str = "cpu",
        threads: int | None = None,
        check: bool = True,
        provider: str = "auto",
        require_certificate: bool = False,
        certificate_key: str | Path | None = None,
        build: bool = False,
    ) -> None:
        """Open `model`.

        Args:
            model: the name of a card whose weights the package ships, or an ``.onnx`` file written by this package.
            backend: ``auto``, ``onnxruntime`` or ``tensorrt``.
            device: ``cpu`` or ``cuda:N``.
            threads: threads of one inference; None for all cores.
            check: have the acquisition model look at every picture, so that what is no fundus photograph, or the other
                eye than a source says, is refused. A model that mirrors left eyes always asks it.
            provider: of ONNX Runtime: ``auto``, ``cpu``, ``cuda``, ``tensorrt`` or ``tensorrt-rtx``.
            require_certificate: answer only while what computes `model` has a certificate that says ``passed``. The acquisition
                model that looks on needs none.
            certificate_key: file of a public key; certificates that were not signed with it count as ``none``. None for the file
                that ``$FUNDUS_RT_CERTIFICATE_KEY`` names, where it is set.

            build: where a GPU has no engine of `model` yet, answer on the CPU and have it built meanwhile, see
                `fundus_rt.runtime.standby.open_while_building`; `backend` and `provider` are ``auto`` then.

        Raises:
            CardError, ModelFileError, BackendUnavailableError: see `open_guarded`.
            CertificateError: a certificate is required and none that passed counts here.
            UsageError: the file of the key is no public key.
        """
        key = accepted_key(certificate_key)
        self.asked = (backend, device, provider)
        """What the call asked for; `backend` is what computes now."""
        self._session: GuardedSession = (
            open_while_building(model, device, threads, key) if build else open_guarded(model, backend, device, threads, provider)
        )
        self.card: ModelCard = self._session.card
        self.identity: ModelIdentity = identify_model(self._session)
        path, engine = resolve_model(model), lambda: self._session.engine_path
        self._certification = Certification(path, self.identity, self.card, device, engine, key)
        self._certification.required = require_certificate
        try:
            self._certification.check_at_start(self._session.backend)
        except BaseException:
            self._session.close()
            raise
        self._buffers = threading.local()
        self.checks = check and not self._mirrors and self.card.name != ACQUISITION
        wanted = self._mirrors or self.checks
        self._acquisition: GuardedSession | None = None
        if wanted:
            beside = open_beside(ACQUISITION, device, threads) if build else None
            self._acquisition = beside or open_guarded(ACQUISITION, backend, device, threads, provider)

    @property
    def certificate(self) -> CertificateState:
        """Whether what computes now is certified, and why not where it is not."""
        return self._certification.state(self._session.backend)

    @property
    def standing_warnings(self) -> tuple[str, ...]:
        """What every result of this model has to say, of its card and of what computes."""
        sessions = [self._session] if self._acquisition is None else [self._session, self._acquisition]
        said = (warning for session in sessions for warning in session.warnings)
        return tuple(dict.fromkeys((*_standing_warnings(self.card), *said)))

    def __call__(self, frame: Frame, eye: str | None = None, mirrored_by_source: bool = False) -> Result:
        """Answer one frame.

        Args:
            frame: uint8 [H, W, 3], BGR; only read.
            eye: ``left`` or ``right`` where the caller knows it.
            mirrored_by_source: the source hands out mirrored pictures; they are turned back first.

        Raises:
            NotFundusError: no fundus photograph in the frame.
            EyeError: the model has to know the eye and it is unknown, or two sources disagree.
            StoppedError: the network answered for another picture, does not know its known pictures any more, or its device
                is lost; the pipeline answers no more.
        """
        buffer = self._buffer()
        prepared = self._prepare(frame, {"call": eye}, mirrored_by_source, buffer[0])
        result = self.finish([prepared], buffer)[0]
        if isinstance(result, EyeError):
            raise result
        return result

    def prepare_bytes(
        self,
        content: bytes,
        eye_sources: dict[str, str | None],
        mirrored_by_source: bool = False,
        out: Batch | None = None,
        whole: bool = True,
    ) -> Prepared:
        """Decode the content of a picture file and `prepare` it; DICOM adds its own eye to the sources.

        Args:
            content: of the file.
            eye_sources, mirrored_by_source, out: as `prepare`.
            whole: leave crop and resize to a session that takes whole frames. Those are answered one by one, so for a batch
                that is to be answered at once it is False.

        Raises:
            DecodeError: not a picture, or only a part of one. Others as `prepare`.
        """
        started = time.perf_counter()
        decoded = decode(content)
        elapsed = (time.perf_counter() - started) * 1e3
        prepared = self._prepare(decoded.frame, {**eye_sources, "dicom": decoded.eye}, mirrored_by_source, out, whole)
        prepared.timing_ms = {"decode": elapsed, **prepared.timing_ms}
        prepared.warnings[:0] = decoded.warnings
        return prepared

    def prepare(
        self, frame: Frame, eye_sources: dict[str, str | None], mirrored_by_source: bool = False, out: Batch | None = None
    ) -> Prepared:
        """Everything before the network: field of view, eye, crop, resize, mirror.

        Args:
            frame: uint8 [H, W, 3], BGR.
            eye_sources: by source ``left``, ``right`` or None, see `fundus_rt.runtime.eye.resolve_eye`.
            mirrored_by_source: turn the frame back before anything else.
            out: where to write the network's input, [H, W, 3] of its size and dtype; None for a new array.

        Raises:
            NotFundusError, EyeError: as `__call__`.
        """
        kept = frame.copy() if self._session.takes_frames and isinstance(frame, np.ndarray) else frame
        return self._prepare(kept, eye_sources, mirrored_by_source, out)

    def _prepare(
        self, frame: Frame, eye_sources: dict[str, str | None], mirrored_by_source: bool, out: Batch | None, whole: bool = True
    ) -> Prepared:
        """As `prepare`, for a frame that nobody writes to before it is answered."""
        frame = _require_frame(frame)
        timing: dict[str, float] = {}
        warnings: list[str] = []
        if mirrored_by_source:
            frame = np.ascontiguousarray(frame[:, ::-1])
            warnings.append("the source was said to mirror its pictures: this one was turned back before anything else")
        with _timed(timing, "field_of_view"):
            view = find_field_of_view(frame)
        if not view.found:
            warnings.append("no border of a circular field of view was found: the whole frame was taken")
        sources = dict(eye_sources)
        mirrored = False
        if self._mirrors:
            with _timed(timing, "acquisition"):
                sources["acquisition model"] = self._look(frame, view, warnings)
            mirrored = require_eye(resolve_eye(sources), self.card.name) == "left"
        box = crop_box(view, frame.shape, self.card.preprocessing)
        tensor = None
        if not (whole and self._session.takes_frames):
            with _timed(timing, "preprocess"):
                tensor = tensor_from_box(frame, box, self.card.preprocessing, mirrored, out)
        if self.checks:
            with _timed(timing, "acquisition"):
                sources["acquisition model"] = self._check(frame, view, tensor)
        decision = resolve_eye(sources)
        eye = EyeResult(decision.value, decision.source, mirrored)
        shown = mirrored_view(view, frame.shape[1]) if mirrored_by_source else view
        return Prepared(tensor, shown, sources, eye, warnings, timing, frame if tensor is None else None, box)

    def finish(self, pictures: Sequence[Prepared], batch: Batch | None = None) -> list[Result | EyeError]:
        """Run the network on prepared pictures and say what its numbers mean, in their order.

        Args:
            pictures: from `prepare`.
            batch: the array [N, H, W, 3] whose rows the pictures were written into; None to gather them.

        Returns:
            A `Result` for each picture, or the `EyeError` of one whose eye the network itself contradicts.

        Raises:
            StoppedError: as `__call__`.
        """
        started = time.perf_counter()
        answers, backends = self._answers(pictures, batch)
        self._certification.check(backends)
        elapsed = (time.perf_counter() - started) * 1e3 / len(pictures)
        results: list[Result | EyeError] = []
        for index, picture in enumerate(pictures):
            numbers = {o.name: np.array(answers[o.name][index]) for o in self.card.outputs}
            outputs = interpret(numbers, self.card)
            picture.timing_ms["inference"] = elapsed
            picture.timing_ms["total"] = sum(picture.timing_ms.values())
            picture.warnings += self._certification.warnings(backends[index], numbers)
            results.append(self._result(picture, outputs, backends[index], numbers))
        return results

    def frame_buffer(self, height: int, width: int) -> Frame:
        """Zeros, uint8 [height, width, 3], for a camera to write its frames into: on a GPU they are sent without a copy first.

        It must not be written while it is being answered.
        """
        return self._session.frame_buffer(height, width)

    @property
    def backend(self) -> BackendInfo:
        """What computes."""
        return self._session.backend

    def close(self) -> None:
        """Release the networks."""
        self._session.close()
        if self._acquisition is not None:
            self._acquisition.close()

    @property
    def _mirrors(self) -> bool:
        return self.card.laterality == "mirror-left"

    def _buffer(self) -> Batch:
        """This thread's own batch of one; written anew for every frame."""
        if not hasattr(self._buffers, "one"):
            height, width = self.card.preprocessing.input_size
            self._buffers.one = np.empty((1, height, width, 3), self.card.preprocessing.input_dtype)
        return self._buffers.one  # type: ignore[no-any-return]

    def _answers(self, pictures: Sequence[Prepared], batch: Batch | None) -> tuple[Answers, list[BackendInfo]]:
        """The network's outputs for prepared pictures, [N, columns] by name, and what computed each picture's."""
        if any(picture.frame is not None for picture in pictures):
            each = [self._answer_of(picture) for picture in pictures]
            outputs = {o.name: np.concatenate([answers[o.name] for answers, _ in each]) for o in self.card.outputs}
            return outputs, [backend for _, backend in each]
        sent: Batch = np.stack([p.tensor for p in pictures]) if batch is None else batch[: len(pictures)]  # type: ignore[misc]
        answers, backend = self._session.answer(sent)
        return answers, [backend] * len(pictures)

    def _answer_of(self, picture: Prepared) -> tuple[Answers, BackendInfo]:
        if picture.tensor is not None:  # prepared after the session had to go on without its GPU
            return self._session.answer(picture.tensor[None])
        assert picture.frame is not None, "a picture has its tensor or its frame"
        return self._session.answer_frame(picture.frame, picture.box, picture.eye.mirrored)

    def _look(self, frame: Frame, view: FieldOfView, warnings: list[str]) -> str | None:
        """The eye by the acquisition model, None where it is not sure; refuses what is no fundus photograph."""
        assert self._acquisition is not None, "opened with every model that mirrors"
        seen = self._seen(self._acquisition, frame, view)
        warnings += _gradability_warning(seen)
        return _confident_eye(seen)

    def _check(self, frame: Frame, view: FieldOfView, tensor: Batch | None) -> str | None:
        """As `_look`, for a model that the eye does not matter to: only a check, so the network's own crop serves for it.

        Reducing that crop again costs a tenth of going back to the frame. It softens, so gradability is not read from it.
        """
        session = self._acquisition
        assert session is not None, "opened with every model that is checked"
        height, width = session.card.preprocessing.input_size
        spec = self.card.preprocessing
        fits = spec.crop_mode == "field-of-view" and spec.input_dtype == "uint8" and min(spec.input_size) >= max(height, width)
        if tensor is not None and fits:
            reduced = np.asarray(cv2.resize(tensor, (width, height), interpolation=cv2.INTER_AREA), np.uint8)
            return _confident_eye(self._judged(session, session.run(reduced[None])))
        return _confident_eye(self._seen(session, frame, view))

    def _seen(self, session: GuardedSession, frame: Frame, view: FieldOfView) -> dict[str, Prediction]:
        """What the acquisition model says of a frame; `NotFundusError` for what is no fundus photograph."""
        box = crop_box(view, frame.shape, session.card.preprocessing)
        return self._judged(session, session.run_frame(frame, box, mirror=False))

    def _judged(self, session: GuardedSession, answers: Answers) -> dict[str, Prediction]:
        seen = interpret({o.name: answers[o.name][0] for o in session.card.outputs}, session.card)
        if seen["fundus"].decision != "fundus":
            raise NotFundusError(
                f"this does not look like a colour fundus photograph (probability {seen['fundus'].value:.2f}); "
                "take the picture again, or check that the right file was given"
            )
        return seen

    def _result(
        self, picture: Prepared, outputs: dict[str, Prediction], backend: BackendInfo, numbers: Answers
    ) -> Result | EyeError:
        eye = picture.eye
        warnings = [*self.standing_warnings, *picture.warnings]
        if self.card.name == ACQUISITION:
            warnings += _gradability_warning(outputs)
            if outputs["fundus"].decision != "fundus":
                warnings.append("this does not look like a colour fundus photograph: take the picture again")
            try:
                decision: EyeDecision = resolve_eye({**picture.eye_sources, "acquisition model": _confident_eye(outputs)})
            except EyeError as error:
                return error
            eye = EyeResult(decision.value, decision.source, False)
        certificate = self._certification.state(backend)
        return Result(
            self.identity, backend, eye, picture.field_of_view, outputs, tuple(warnings), picture.timing_ms, numbers,
            certificate.verdict, certificate.reason,
        )  # fmt: skip


def _confident_eye(seen: dict[str, Prediction]) -> str | None:
    """What the acquisition model says surely of a fundus photograph; None for anything else."""
    said = seen["eye"].decision
    return said if said in ("left", "right") and seen["fundus"].decision == "fundus" else None


def _gradability_warning(seen: dict[str, Prediction]) -> list[str]:
    found = seen["gradability"]
    if found.decision == "clean":
        return []
    return [f"the picture looks degraded (probability of a clean one {found.value:.2f}): consider taking it again"]


def _standing_warnings(card: ModelCard) -> tuple[str, ...]:
    """What every result of this model has to say."""
    found = []
    if card.preprocessing.assumed:
        found.append(f"preprocessing assumed, not published: {', '.join(card.preprocessing.assumed)}")
    for output in card.outputs:
        if output.labels_assumed:
            found.append(f"which column of {output.name} is which class is not published; labels are assumed")
    return tuple(found)


def _require_frame(frame: Frame) -> Frame:
    if not isinstance(frame, np.ndarray) or frame.ndim != 3 or frame.shape[2] != 3 or frame.dtype != np.uint8:
        got = f"{frame.dtype} {list(frame.shape)}" if isinstance(frame, np.ndarray) else type(frame).__name__
        raise ValueError(f"a frame is uint8 [H, W, 3] in BGR, got {got}; convert grey frames with cv2.COLOR_GRAY2BGR")
    return np.ascontiguousarray(frame)


@contextmanager
def _timed(timing: dict[str, float], stage: str) -> Iterator[None]:
    started = time.perf_counter()
    yield
    timing[stage] = (time.perf_counter() - started) * 1e3
