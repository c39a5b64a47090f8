"""One stream on the GPU with its memory and the execution contexts of an engine: what one thread at a time computes with.

TensorRT's own rule for CUDA graphs is one execution context for each recorded shape, for a graph is only valid while its context
stays as it was. So each batch size has a context of its own; they share the memory of the slot, which suffices for the largest.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from fundus_rt.models.errors import BackendUnavailableError, DeviceMemoryError, EngineError, FundusRtError
from fundus_rt.runtime.answers import Answers, row_sums
from fundus_rt.runtime.nvidia.cuda_device import CudaDevice, Graph, Stream
from fundus_rt.runtime.nvidia.fused_kernel import MOST_WIDTH, FusedPreprocessor
from fundus_rt.runtime.nvidia.tensorrt_engine import DTYPES, INPUT, RECEIPT, Engine
from fundus_rt.runtime.session import Batch, Box

SHAPES_KEPT = 8
"""Batch sizes whose contexts and graphs a slot keeps; the one not used for longest goes first."""
NO_NUMBER = 0xFF
"""A byte of which four make a float32 that is not a number."""
ALIGNMENT = 256
"""Of every tensor's address, bytes; TensorRT asks for it."""
FRAME_STEP = 64
"""Memory for frames is taken for sides rounded up to a multiple of this, pixels."""

Say = Callable[[str], None]
Sums = NDArray[np.int32] | NDArray[np.float64] | NDArray[np.float32]
"""[N, H]: the sum of each row of each picture."""
Value = TypeVar("Value")


class EngineSlot:
    """Runs batches and frames, one at a time. Not thread-safe: a session hands it to one thread after another."""

    def __init__(self, device: CudaDevice, engine: Engine, say: Say) -> None:
        """Take the memory for the largest batch.

        Args:
            device: the GPU.
            engine: opened on that GPU.
            say: told in a full sentence where something works less well than it could.

        Raises:
            DeviceMemoryError: the GPU's memory is not enough; nothing is kept.
        """
        self.device = device
        self.engine = engine
        self.say = say
        self._shapes: OrderedDict[int, _Shape] = OrderedDict()
        self._fused: FusedPreprocessor | None = None
        self._frames: _Submission | None = None
        height, width = engine.card.preprocessing.input_size
        self._held: list[Any] = []
        try:
            self.stream: Stream = self._hold(device.stream())
            self.input = self._hold(device.pinned((engine.batch[1], height, width, 3), engine.card.preprocessing.input_dtype))
            self.output = self._hold(device.pinned((_layout(engine, engine.batch[1])[1],), np.uint8))
            # Where the GPU shares the host's memory, the engine reads and writes the page-locked arrays themselves.
            self.device_input = None if device.integrated else self._hold(device.buffer(self.input.nbytes))
            self.device_output = None if device.integrated else self._hold(device.buffer(self.output.nbytes))
            scratch = int(engine.plan.device_memory_size_v2)
            self.scratch = self._hold(device.buffer(scratch)) if scratch else None
        except FundusRtError:
            self.close()
            raise
        self.input_address = (self.device_input.address if self.device_input else self.input.device_address) or 0
        self.output_address = (self.device_output.address if self.device_output else self.output.device_address) or 0

    def run(self, batch: Batch) -> tuple[Answers, Sums]:
        """Answer up to the engine's most pictures.

        Returns:
            The answers in new arrays, and what the receipt must say: the sums of the rows, computed while the GPU worked.

        Raises:
            DeviceLostError, DeviceMemoryError: the GPU's.
            EngineError: TensorRT refuses.
        """
        with self._working():
            shape = self._shape(max(len(batch), self.engine.batch[0]))
            np.copyto(self.input.array[: len(batch)], batch)
            sums = self._submit(shape.submission, shape, lambda: row_sums(batch))
            return shape.answers(len(batch)), sums

    def run_frame(self, frame: NDArray[np.uint8], box: Box, mirror: bool, page_locked: bool) -> tuple[Answers, Sums]:
        """Answer one whole frame: its crop goes to the GPU, kernels reduce it into the engine's input, and the engine runs.

        Args:
            frame, box, mirror: as `fundus_rt.runtime.session.FrameSession.run_frame` takes them.
            page_locked: the frame lies in page-locked memory, so its crop is sent from where it is.

        Returns:
            The answers, and what the receipt must say: the sums of the rows that the kernels wrote for the engine.

        Raises:
            ReceiptError: the pixels that arrived are not those that were sent.
            As `run`.
        """
        with self._working():
            fused = self._fused_for(frame.shape[0], frame.shape[1])
            shape = self._shape(max(1, self.engine.batch[0]))
            if self._frames is None:
                self._frames = self._frame_submission(fused, shape)
            fused.load(frame, box, mirror, page_locked)
            fused.upload(self.stream)
            self._submit(self._frames, shape, fused.sum_rows)
            written = fused.check()[None]
            whole = self.engine.card.preprocessing.input_dtype == "uint8"
            return shape.answers(1), written.astype(np.int32) if whole else written

    def close(self) -> None:
        """Give everything back; what the driver refuses to take back is left to the end of the process. Never raises."""
        with suppress(FundusRtError):
            self.device.make_current()
        with suppress(FundusRtError):
            self._forget_frames()
        while self._shapes:
            with suppress(FundusRtError):
                self._shapes.popitem()[1].close()
        while self._held:
            thing = self._held.pop()
            with suppress(FundusRtError):
                thing.close() if isinstance(thing, Stream) else thing.free()

    def _submit(self, submission: _Submission, shape: _Shape, meanwhile: Callable[[], Value]) -> Value:
        """Submit work and wait for it, with something to do on the host meanwhile; the first time it is recorded afterwards."""
        shape.forget_answers()
        submission.submit()
        value = meanwhile()
        self.stream.synchronize()
        submission.record()
        return value

    def _frame_submission(self, fused: FusedPreprocessor, shape: _Shape) -> _Submission:
        target = np.uint64(self.input_address)

        def enqueue() -> None:
            fused.enqueue(self.stream, target)
            shape.enqueue()

        return _Submission(self, enqueue)

    @contextmanager
    def _working(self) -> Iterator[None]:
        """Have TensorRT work on this GPU in the calling thread, and let nothing be under way when an error leaves the block.

        TensorRT only says that something failed. Where the reason is a lost GPU, that is what is raised.
        """
        self.device.make_current()
        try:
            yield
        except BaseException as error:
            try:
                self.stream.synchronize()
            except FundusRtError as reason:
                if isinstance(error, EngineError):
                    raise reason from error
            raise

    def _shape(self, rows: int) -> _Shape:
        if rows in self._shapes:
            self._shapes.move_to_end(rows)
            return self._shapes[rows]
        if len(self._shapes) >= SHAPES_KEPT:
            oldest, dropped = self._shapes.popitem(last=False)
            if oldest == max(1, self.engine.batch[0]):
                self._forget_frames()
            dropped.close()
        self._shapes[rows] = _Shape(self, rows)
        return self._shapes[rows]

    def _fused_for(self, height: int, width: int) -> FusedPreprocessor:
        if self._fused is not None:
            most = self._fused.max_frame
            if height <= most[0] and width <= most[1]:
                return self._fused
            height, width = max(height, most[0]), max(width, most[1])
        self._forget_frames()
        tall, wide = (-(-side // FRAME_STEP) * FRAME_STEP for side in (height, width))
        most = (tall, max(width, min(wide, MOST_WIDTH)))
        self._fused = FusedPreprocessor(self.device, self.engine.card.preprocessing, most)
        return self._fused

    def _forget_frames(self) -> None:
        if self._frames is not None:
            self._frames.close()
            self._frames = None
        if self._fused is not None:
            self._fused.close()
            self._fused = None

    def _hold(self, thing: Any) -> Any:
        self._held.append(thing)
        return thing


class _Submission:
    """Work that is done again and again: piece by piece the first time, recorded as a CUDA graph from then on."""

    def __init__(self, slot: EngineSlot, enqueue: Callable[[], None]) -> None:
        self._slot = slot
        self._enqueue: Callable[[], None] | None = enqueue
        self._graph: Graph | None = None
        self._refused = False

    def submit(self) -> None:
        if self._graph is not None:
            self._graph.launch(self._slot.stream)
        elif self._enqueue is not None:
            self._enqueue()

    def record(self) -> None:
        """Record the work, after it has run once: TensorRT settles a context's inner state in its first run.

        What cannot be recorded, for whatever reason but a lost GPU, goes on piece by piece, and that is said.
        """
        if self._graph is not None or self._refused or self._enqueue is None:
            return
        try:
            with self._slot.device.capture(self._slot.stream) as graph:
                self._enqueue()
        except (BackendUnavailableError, DeviceMemoryError, EngineError) as error:
            self._refused = True
            self._slot.say(f"the engine runs without a CUDA graph, which costs time: {' '.join(str(error).split())}")
            return
        self._graph = graph

    def close(self) -> None:
        self._enqueue = None  # it knows the shape, which knows this
        if self._graph is not None:
            self._graph.close()
            self._graph = None


class _Shape:
    """An execution context for one batch size, with the places of its outputs."""

    def __init__(self, slot: EngineSlot, rows: int) -> None:
        self._slot = slot
        self._rows = rows
        places, self._nbytes = _layout(slot.engine, rows)
        self._context = slot.engine.context()
        try:
            self._bind(places)
        except BaseException:
            self._context = None  # the error's traceback would keep it
            raise
        bytes_ = slot.output.array
        self._views = {
            name: bytes_[start : start + math.prod(shape) * np.dtype(dtype).itemsize].view(dtype).reshape(shape)
            for name, (start, shape, dtype) in places.items()
        }
        self._numbers = bytes_[: self._nbytes].view(np.float32)
        self.submission = _Submission(slot, self._upload_and_enqueue)

    def enqueue(self) -> None:
        """Put the engine on the stream, and the download of what it says; what it said before is written over first."""
        slot = self._slot
        if slot.device_output is not None:
            slot.device.clear(slot.device_output, self._nbytes, slot.stream, byte=NO_NUMBER)
        if not self._context.execute_async_v3(slot.stream.handle):
            raise slot.engine.refusal("run the engine")
        if slot.device_output is not None:
            slot.device.download(slot.output, slot.device_output, self._nbytes, slot.stream)

    def forget_answers(self) -> None:
        """Write over what was answered before on the host: a download that gets lost then leaves no number."""
        self._numbers.fill(np.nan)

    def answers(self, count: int) -> Answers:
        """The first `count` rows of every output of the card, and of the receipt, in new arrays."""
        names = [*(output.name for output in self._slot.engine.card.outputs), RECEIPT]
        return {name: self._views[name][:count].copy() for name in names}

    def close(self) -> None:
        self.submission.close()
        self._context = None
        self._views.clear()
        self._numbers = np.empty(0, np.float32)

    def _upload_and_enqueue(self) -> None:
        slot = self._slot
        if slot.device_input is not None:
            slot.device.upload(slot.device_input, slot.input, slot.input.nbytes // slot.engine.batch[1] * self._rows, slot.stream)
        self.enqueue()

    def _bind(self, places: dict[str, tuple[int, tuple[int, ...], str]]) -> None:
        slot, context = self._slot, self._context
        height, width = slot.engine.card.preprocessing.input_size
        if slot.scratch is not None:
            context.set_device_memory(slot.scratch.address, slot.scratch.nbytes)
        done = context.set_input_shape(INPUT, (self._rows, height, width, 3)) and context.set_tensor_address(
            INPUT, slot.input_address
        )
        for name, (start, shape, _) in places.items():
            stated = tuple(int(size) for size in context.get_tensor_shape(name))
            if stated != shape:
                raise EngineError(
                    f"output {name!r} of the engine is {list(stated)} for {self._rows} pictures, expected {list(shape)}; "
                    "build the engine again with `fundus-rt build`"
                )
            done = done and context.set_tensor_address(name, slot.output_address + start)
        if not done:
            raise slot.engine.refusal(f"take {self._rows} pictures")


def _layout(engine: Engine, rows: int) -> tuple[dict[str, tuple[int, tuple[int, ...], str]], int]:
    """Where each output of `rows` pictures lies in one block of memory (start, shape, dtype), and the block's bytes.

    Raises:
        EngineError: an output whose size cannot be known beforehand.
    """
    places: dict[str, tuple[int, tuple[int, ...], str]] = {}
    stated = {output.name: (output.columns,) for output in engine.card.outputs}
    stated[RECEIPT] = (engine.card.preprocessing.input_size[0],)
    end = 0
    for name in engine.outputs:
        sizes = [int(size) for size in engine.plan.get_tensor_shape(name)]
        shape = (rows, *(stated.get(name) or sizes[1:]))
        if min(shape) < 0 or sizes[0] >= 0:
            raise EngineError(f"output {name!r} of the engine is {sizes}, expected [N, ...] of known size; convert it again")
        dtype = DTYPES[engine.plan.get_tensor_dtype(name).name]
        places[name] = (end, shape, dtype)
        end += -(-math.prod(shape) * np.dtype(dtype).itemsize // ALIGNMENT) * ALIGNMENT
    return places, end
