"""TensorRT as a backend: an engine of this machine, run through CUDA graphs, several threads at a time."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fundus_rt.models.card import ModelCard
from fundus_rt.models.errors import BackendUnavailableError, DeviceMemoryError, FundusRtError, StoppedError
from fundus_rt.runtime.answers import Answers, check_row_sums, require_finite
from fundus_rt.runtime.nvidia.cuda_device import CudaDevice
from fundus_rt.runtime.nvidia.cuda_memory import PinnedMemory
from fundus_rt.runtime.nvidia.engine_slot import EngineSlot
from fundus_rt.runtime.nvidia.fused_kernel import FusedPreprocessor
from fundus_rt.runtime.nvidia.machine import machine_identity
from fundus_rt.runtime.nvidia.tensorrt_engine import RECEIPT, TF32, Engine, find_engine, open_engine
from fundus_rt.runtime.session import ENGINE_SUFFIX, BackendInfo, Batch, Box, cuda_index, require_input


class TensorRTSession:
    """A network of this package on TensorRT. Thread-safe: several threads may call `run` and `run_frame` at once.

    Each of up to `contexts` threads computes with memory, a stream and execution contexts of its own; further threads wait. The
    memory is taken when a second thread first comes at the same time.

    When the GPU is lost or out of memory, or an answer belongs to another picture, the session is dead: every later call raises
    the same error. Closing it never raises.
    """

    def __init__(self, path: Path, device: str = "cuda:0", contexts: int = 2) -> None:
        """Open the engine of a model. Nothing is built: that is what ``fundus-rt build`` is for.

        Args:
            path: an ``.engine`` with its record beside it, or an ``.onnx`` whose engine lies in the cache.
            device: ``cuda:N``.
            contexts: threads that compute at the same time, each with memory of its own.

        Raises:
            EngineMissingError, EngineStaleError: no engine of this model for this machine; with the command that builds it.
            BackendUnavailableError: TensorRT, cuda-python, the driver or the GPU is missing.
            DeviceMemoryError: the GPU's memory is not enough.
            EngineError: TensorRT refuses the engine, or it is not what its card says.
        """
        if contexts < 1:
            raise ValueError(f"got {contexts} contexts, expected 1 or more")
        self._free = threading.Condition()
        self._idle: list[EngineSlot] = []
        self._made = 1
        self._most = contexts
        self._closed = False
        self._dead: FundusRtError | None = None
        self._warnings: tuple[str, ...] = ()
        self._frame_buffers: weakref.WeakSet[PinnedMemory] = weakref.WeakSet()
        index = cuda_index(device)
        found = find_engine(Path(path), machine_identity(index))
        self._engine: Engine | None = None
        self._device = CudaDevice(index)
        try:
            self._device.make_current()
            self._engine = open_engine(found)
            for warning in found.warnings:
                self._say(warning)
            self.engine_path = found.path
            self.onnx_sha256 = found.record.key.onnx_sha256
            whole = Path(path).suffix == ENGINE_SUFFIX
            self.file_sha256 = found.record.engine_sha256 if whole else self.onnx_sha256
            del found  # with the bytes of the engine, which TensorRT has read
            self.card: ModelCard = self._engine.card
            self.backend = BackendInfo(
                self._engine.library.flavour,
                self._device.name,
                self._engine.library.version,
                engine_sha256=self._engine.record.engine_sha256,
            )
            if TF32 in self._engine.record.key.flags:
                self._say("products of float32 are rounded to 10 bits (TF32): the engine was built so")
            self.takes_frames = self._can_take_frames()
            self._idle.append(EngineSlot(self._device, self._engine, self._say))
        except BaseException:
            self._close_engine()
            raise

    @property
    def warnings(self) -> tuple[str, ...]:
        """What every result of this session has to say: what works less well than it could."""
        return self._warnings

    def run(self, batch: Batch) -> Answers:
        """Answer a batch, see `fundus_rt.runtime.session.Session.run`; one that is larger than the engine takes is split.

        Raises:
            ValueError: the batch is not what the card states, or the session is closed.
            DeviceLostError, DeviceMemoryError, ReceiptError: now or earlier.
            EngineError: TensorRT refuses to run.
        """
        require_input(batch, self.card)
        parts: list[Answers] = []
        with self._slot() as slot:
            most = slot.engine.batch[1]
            for start in range(0, len(batch), most):
                answers, sums = slot.run(batch[start : start + most])
                check_row_sums("the pictures that were sent", sums, answers[RECEIPT])
                parts.append(answers)
        joined = _joined(parts, self.card)
        require_finite(joined, len(batch), self.card)
        return joined

    def run_frame(self, frame: NDArray[np.uint8], box: Box, mirror: bool) -> Answers:
        """Answer one whole frame, see `fundus_rt.runtime.session.FrameSession.run_frame`.

        The sums of the crop's rows as they arrived on the GPU are compared with the frame's, and those of what the kernels wrote
        with the network's own receipt.

        Raises:
            ValueError: not uint8 [H, W, 3], a box without a pixel of the frame, or the session is closed.
            BackendUnavailableError: this session takes no frames.
            As `run`.
        """
        if not self.takes_frames:
            raise BackendUnavailableError(
                f"this session takes no whole frames ({'; '.join(self._warnings)}); make its input with tensor_from_frame"
            )
        if not isinstance(frame, np.ndarray) or frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3:
            got = f"{frame.dtype} {list(frame.shape)}" if isinstance(frame, np.ndarray) else type(frame).__name__
            raise ValueError(f"a frame is uint8 [H, W, 3] in BGR, got {got}")
        with self._slot() as slot:
            answers, sums = slot.run_frame(frame, box, mirror, self._is_page_locked(frame))
            check_row_sums("what the GPU made of the frame", sums, answers[RECEIPT])
        require_finite(answers, 1, self.card)
        return answers

    def frame_buffer(self, height: int, width: int) -> NDArray[np.uint8]:
        """A frame for a camera to write into, which `run_frame` sends to the GPU without copying it on the host first.

        It must not be written while `run_frame` looks at it. Slices of it, rows and columns left out, are as good.

        Args:
            height: pixels.
            width: pixels.

        Returns:
            Zeros, uint8 [height, width, 3], in page-locked memory; valid as long as somebody keeps it.

        Raises:
            DeviceMemoryError: no more memory can be locked.
        """
        with self._free:
            self._require_alive()
            pinned = self._device.pinned((height, width, 3), np.uint8)
            assert pinned.memory is not None, "just allocated"
            self._frame_buffers.add(pinned.memory)
            return pinned.array

    def _is_page_locked(self, frame: NDArray[np.uint8]) -> bool:
        """Whether the frame lies in memory that `frame_buffer` gave, with its pixels side by side."""
        height, width = frame.shape[:2]
        if frame.strides[1:] != (3, 1) or frame.strides[0] < 3 * width:
            return False
        address = int(frame.__array_interface__["data"][0])
        extent = frame.strides[0] * (height - 1) + 3 * width
        with self._free:
            return any(memory.contains(address, extent) for memory in self._frame_buffers)

    def close(self) -> None:
        """Release engine and memory; calls under way end first. Never raises."""
        with self._free:
            self._closed = True
            self._free.notify_all()
            self._release()

    def __enter__(self) -> TensorRTSession:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @contextmanager
    def _slot(self) -> Iterator[EngineSlot]:
        """A slot for the calling thread; an error that ends the session is kept for every later call."""
        slot = self._take()
        try:
            yield slot
        except (StoppedError, DeviceMemoryError) as error:
            self._die(error)
            raise
        finally:
            with self._free:
                self._idle.append(slot)
                self._free.notify_all()
                self._release()

    def _take(self) -> EngineSlot:
        while True:
            with self._free:
                self._require_alive()
                while not self._idle and self._made >= self._most:
                    self._free.wait()
                    self._require_alive()
                if self._idle:
                    return self._idle.pop()
                self._made += 1
            if (slot := self._grown()) is not None:
                return slot

    def _grown(self) -> EngineSlot | None:
        """One more slot; None where the memory does not suffice, and then there will be no further one."""
        engine = self._engine
        assert engine is not None, "a slot that is being made keeps the engine open"
        try:
            return EngineSlot(self._device, engine, self._say)
        except BaseException as error:
            too_much = isinstance(error, DeviceMemoryError)
            if isinstance(error, StoppedError) and not too_much:
                self._die(error)
            with self._free:
                self._made -= 1
                if too_much:
                    self._most = self._made
                self._free.notify_all()
                self._release()
            if not too_much:
                raise
            self._say(f"only {self._most} thread(s) at a time compute: {' '.join(str(error).split())}")
            return None

    def _release(self) -> None:
        """Give back what no call uses any more, once the session is closed. The lock is held."""
        if not self._closed:
            return
        while self._idle:
            self._idle.pop().close()
            self._made -= 1
        if self._made == 0 and self._engine is not None:
            self._close_engine()

    def _close_engine(self) -> None:
        """Let go of the engine in the GPU's own context, and then of that."""
        with suppress(FundusRtError):
            self._device.make_current()
        engine, self._engine = self._engine, None
        if engine is not None:
            engine.close()
        with suppress(FundusRtError):
            self._device.close()

    def _require_alive(self) -> None:
        if self._dead is not None:
            raise type(self._dead)(str(self._dead))
        if self._closed:
            raise ValueError("this session is closed; open a new one")

    def _die(self, error: FundusRtError) -> None:
        """Keep the first error that ends the session, without its traceback, which would keep the memory in use."""
        self._dead = self._dead or type(error)(str(error))

    def _can_take_frames(self) -> bool:
        """Whether the kernels that crop and resize exist for this card and this GPU; says why where they do not."""
        try:
            FusedPreprocessor(self._device, self.card.preprocessing, (64, 64)).close()
        except (BackendUnavailableError, ValueError) as error:
            self._say(f"photographs are reduced on the host, not on the GPU: {' '.join(str(error).split())}")
            return False
        return True

    def _say(self, sentence: str) -> None:
        with self._free:
            topic = sentence.partition(":")[0]  # the reason behind it differs in what memory is free
            if topic not in (said.partition(":")[0] for said in self._warnings):
                self._warnings += (sentence,)


def _joined(parts: list[Answers], card: ModelCard) -> Answers:
    if len(parts) == 1:
        return parts[0]
    if not parts:
        widths = {**{output.name: output.columns or 0 for output in card.outputs}, RECEIPT: card.preprocessing.input_size[0]}
        return {name: np.empty((0, width), np.float32) for name, width in widths.items()}
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
