"""Crop, mirror and resize on the GPU: a photograph's pixels in, the network's input out, nothing between on the host.

Two CUDA kernels (``fused_kernel.cu``, compiled by NVRTC when a session opens) follow the weights of
`resize_taps`. What they write is what `tensor_from_frame` gives, to the last bit, with two exceptions that lie
in OpenCV: its wheels for x86-64 compute ``opencv-cubic`` with Intel's IPP, which differs from OpenCV's own code by one grey level
in 3 to 4 % of the values, and the kernels have OpenCV's own; and where OpenCV is compiled with fused multiplications, as on ARM,
its ``opencv-cubic`` and ``opencv-area`` may differ by one where a sum lies next to a half.

    fused = FusedPreprocessor(device, card.preprocessing, max_frame=(2848, 4288))
    fused.load(frame, box, mirror)          # host: the crop and the weights into page-locked memory
    fused.upload(stream)                    # two copies, or none where the GPU shares the host's memory
    fused.enqueue(stream, network_input)    # two kernels and the download of the receipts; may be recorded in a CUDA graph
    ...                                     # the network, on the same stream
    fused.sum_rows()                        # host, meanwhile: what the receipts must say
    stream.synchronize()
    written = fused.check()                 # raises ReceiptError; equals the receipt that the network gives
"""

from __future__ import annotations

import math
from importlib.resources import files
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fundus_rt.models.card import PreprocessingSpec
from fundus_rt.models.errors import ReceiptError
from fundus_rt.runtime.answers import row_sums
from fundus_rt.runtime.nvidia.resize_taps import ARITHMETICS, Taps, resize_taps
from fundus_rt.runtime.resize import Box

SOURCE = "fused_kernel.cu"
THREADS = 256
HEADER_WORDS = 16
TILE_BYTES = 32 * 1024
"""Shared memory that a block takes for rows of the crop: with it three blocks or more fit on a multiprocessor."""
MOST_WIDTH = (48 * 1024 - 32) // 3
"""Pixels of a row that fits into the shared memory that every GPU gives to a block."""
ROWS = (4, 2, 1)
"""Rows of the crop that one block can take, most first; each is a kernel of its own."""
OPTIONS = ("--fmad=false",)
"""NVRTC's options: no contraction of multiplications and additions."""
_COMPILED: dict[tuple[int, int], bytes] = {}
"""Machine code by compute capability, for the life of the process."""


class FusedPreprocessor:
    """The way from a frame to a network's input on one GPU, for one frame at a time.

    An object holds one frame: `load`, `upload`, `enqueue`, wait, `check`. Several frames under way need as many objects.
    """

    def __init__(self, device: Any, spec: PreprocessingSpec, max_frame: tuple[int, int]) -> None:
        """Compile the kernels and take memory.

        Args:
            device: a `fundus_rt.runtime.nvidia.cuda_device.CudaDevice`.
            spec: the card's preprocessing; `input_size` and `interpolation` are used.
            max_frame: height and width of the largest frame, pixels.

        Raises:
            ValueError: a frame so wide that a row does not fit into a block's memory (`MOST_WIDTH` pixels).
            BackendUnavailableError: NVRTC is missing.
            DeviceMemoryError: the GPU's memory is not enough.
        """
        self._device = device
        self._spec = spec
        self.max_frame = max_frame
        height, width = spec.input_size
        self._most_pitch = _pitch(max_frame[1])
        if max_frame[1] > MOST_WIDTH:
            raise ValueError(
                f"got frames up to {max_frame[1]} pixels wide, expected {MOST_WIDTH} at most; crop or reduce them, or "
                "preprocess on the host"
            )
        self._rows = next((rows for rows in ROWS if rows * (self._most_pitch + 4) <= TILE_BYTES), 1)
        self._longest = 2 * max(max_frame) + 2  # a field of view that is cut on all sides is larger than its frame
        words = HEADER_WORDS + height + width + sum(n * m for n, m in zip(self._most_taps(), (height, width), strict=True))
        self._parameters = device.pinned((words,), np.int32)
        self._crop = device.pinned((max_frame[0] * self._most_pitch,), np.uint8)
        self._device_parameters = device.buffer(4 * words)
        self._device_crop = None if device.integrated else device.buffer(self._crop.nbytes)
        value_bytes = 1 if resize_taps(spec.interpolation, (height, width), (height, width)).arithmetic == "pillow" else 4
        self._narrow = device.buffer(max_frame[0] * width * 3 * value_bytes)
        receipts = 1 + max_frame[0] + 2 * height  # of the rows pass: ticket and sums; of the columns pass: sums and tickets
        self._device_receipts = device.buffer(4 * receipts)
        self._receipts = device.pinned((receipts,), np.uint32)
        self._ticket = 0
        self._loaded: NDArray[np.uint8] | None = None
        self._sums: NDArray[Any] | None = None
        module = device.module(machine_code(device))
        self._rows_pass, self._columns_pass = module.function(f"rows_pass_{self._rows}"), module.function("columns_pass")

    @property
    def result_bytes(self) -> int:
        """Size of the network's input for one picture."""
        return math.prod(self._spec.input_size) * 3 * np.dtype(self._spec.input_dtype).itemsize

    def tables(self, box: Box, frame_shape: tuple[int, ...], mirror: bool, ticket: int = 0) -> NDArray[np.int32]:
        """The block of parameters that the kernels read; its layout is stated in ``fused_kernel.cu``.

        Args:
            box: left, top, right, bottom in whole pixels of the frame, right and bottom excluded; may reach beyond it.
            frame_shape: height and width of the frame, and more.
            mirror: exchange left and right.
            ticket: number that the kernels hand back with the receipts.

        Raises:
            ValueError: a frame or a box larger than memory was taken for, or a box without a pixel of the frame.
        """
        left, top, right, bottom = box
        self._require_fit(box, frame_shape)
        height, width = self._spec.input_size
        rows, columns = min(bottom, frame_shape[0]) - max(top, 0), min(right, frame_shape[1]) - max(left, 0)
        taps = resize_taps(self._spec.interpolation, (bottom - top, right - left), (height, width))
        before, above = max(-left, 0), max(-top, 0)
        along = taps.columns if taps.arithmetic == "tf-bilinear" else _settled(taps.columns, before, columns)
        order = slice(None, None, -1) if mirror else slice(None)
        first, weights = along.first[order], along.weights[order]
        header = np.zeros(HEADER_WORDS, np.int32)
        area = taps.columns.weights.shape[1] * taps.rows.weights.shape[1]
        header[:12] = (
            ticket,
            ARITHMETICS.index(taps.arithmetic),
            rows,
            columns,
            _pitch(columns),
            bottom - top,
            right - left,
            above,
            before,
            taps.rows.weights.shape[1],
            weights.shape[1],
            width * 3 // 8 * 8,
        )
        header[12] = np.float32(1.0 / area).view(np.int32)
        header[13] = mirror
        parts = (header, first, taps.rows.first, _words(weights), _words(taps.rows.weights))
        return np.concatenate([part.astype(np.int32, copy=False) for part in parts])

    def load(self, frame: NDArray[np.uint8], box: Box, mirror: bool, page_locked: bool = False) -> None:
        """Write a frame's crop and its weights into page-locked memory.

        The frame before it must have been waited for.

        Args:
            frame: uint8 [H, W, 3], BGR. Not changed; the caller leaves it as it is until `sum_rows` or `check` is done.
            box: left, top, right, bottom in whole pixels of the frame; black where it reaches beyond it.
            mirror: exchange left and right.
            page_locked: the frame lies in page-locked memory with its pixels side by side, so `upload` sends the crop from where
                it is. A GPU that shares the host's memory gets a copy all the same, for its rows begin at multiples of 16 bytes.

        Raises:
            ValueError: as `tables`, or another dtype or shape.
        """
        if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3:
            raise ValueError(f"got a frame of {frame.dtype} {list(frame.shape)}, expected uint8 [H, W, 3] in BGR")
        self._ticket = (self._ticket + 1) & 0x7FFFFFFF
        parameters = self.tables(box, frame.shape, mirror, self._ticket)
        self._parameters.array[: parameters.size] = parameters
        self._parameter_bytes = 4 * parameters.size
        left, top, right, bottom = box
        crop = frame[max(top, 0) : bottom, max(left, 0) : right]
        pitch = _pitch(crop.shape[1])
        self._crop_bytes = crop.shape[0] * pitch
        self._in_place = page_locked and self._device_crop is not None
        if not self._in_place:
            rows = self._crop.array[: self._crop_bytes].reshape(crop.shape[0], pitch)
            rows[:, : crop.shape[1] * 3].reshape(crop.shape)[...] = crop
        self._loaded, self._sums = crop, None

    def upload(self, stream: Any) -> None:
        """Put the copies of what `load` wrote on the stream; not part of a recorded graph, for their sizes are the crop's.

        Raises:
            ValueError: `load` was not called.
        """
        if self._loaded is None:
            raise ValueError("no frame is loaded; call load first")
        self._device.upload(self._device_parameters, self._parameters, self._parameter_bytes, stream)
        if self._device_crop is not None and self._in_place:
            rows, columns = self._loaded.shape[:2]
            address, pitch = self._loaded.__array_interface__["data"][0], self._loaded.strides[0]
            self._device.upload_rows(self._device_crop, _pitch(columns), address, pitch, columns * 3, rows, stream)
        elif self._device_crop is not None:
            self._device.upload(self._device_crop, self._crop, self._crop_bytes, stream)

    def enqueue(self, stream: Any, result: Any) -> None:
        """Put the two kernels and the download of the receipts on the stream; may be recorded, and then serves every frame.

        Args:
            stream: the stream that the network runs on.
            result: the network's input for one picture on the device, [h, w, 3] of the card's dtype: a `DeviceBuffer`, or
                its address as ``numpy.uint64``.
        """
        height, width = (np.int32(side) for side in self._spec.input_size)
        block = (THREADS, 1, 1)
        crop = self._crop if self._device_crop is None else self._device_crop
        blocks = -(-self.max_frame[0] // self._rows)
        self._device.launch(
            self._rows_pass,
            (blocks, 1, 1),
            block,
            [crop, self._device_parameters, self._narrow, self._device_receipts, width, height],
            stream,
            self._rows * (self._most_pitch + 4),
        )
        written = np.uint64(self._device_receipts.address + 4 * (1 + self.max_frame[0]))
        arguments = [self._narrow, self._device_parameters, result, written, width, height]
        self._device.launch(self._columns_pass, (int(height), 1, 1), block, arguments, stream, 8 * THREADS)
        self._device.download(self._receipts, self._device_receipts, self._receipts.nbytes, stream)

    def sum_rows(self) -> NDArray[Any]:
        """The sum of each row of the loaded crop over width and channels, from the frame itself: what the receipts must say.

        `check` does it where it has not been done; done before, it costs no time while the GPU works.

        Returns:
            int32 [rows of the crop].

        Raises:
            ValueError: no frame was loaded.
        """
        if self._loaded is None:
            raise ValueError("no frame is loaded; call load first")
        if self._sums is None:
            self._sums = row_sums(self._loaded)
        return self._sums

    def check(self) -> NDArray[np.float32]:
        """Compare the sums of the crop's rows as they arrived on the device with the crop that was loaded.

        Call it when the stream is done. The pixels that were sent and the weights are both held to: each kernel reads the frame's
        number from the same block as the weights and hands it back, the second one for every row that it wrote.

        Returns:
            float32 [h], the sum of each row of what was written for the network over width and channels. Exact for uint8; the
            network's own receipt has the same numbers.

        Raises:
            ReceiptError: the kernels saw another crop, or other weights, or one of them did not run.
            ValueError: no frame was loaded.
        """
        sums, receipts = self.sum_rows(), self._receipts.array
        height, start = self._spec.input_size[0], 1 + self.max_frame[0]
        tickets = np.append(receipts[start + height :], receipts[0])
        if (tickets != self._ticket).any() or not np.array_equal(receipts[1 : 1 + len(sums)], sums):
            raise ReceiptError(
                "the pixels that the GPU reduced are not those of the frame that was sent, so its answer may belong to another "
                "picture. Nothing of it was used. Stop, reopen the model, and report this with the GPU and its driver."
            )
        written: NDArray[np.float32] = receipts[start : start + height].view(np.float32).copy()
        return written

    def close(self) -> None:
        """Give the memory back; nothing may be under way."""
        self._loaded = self._sums = None
        held = (self._parameters, self._crop, self._device_parameters, self._device_crop, self._narrow)
        for memory in (*held, self._device_receipts, self._receipts):
            if memory is not None:
                memory.free()

    def _most_taps(self) -> tuple[int, int]:
        """Weights of each row and of each column of the largest box."""
        taps = resize_taps(self._spec.interpolation, (self._longest, self._longest), self._spec.input_size)
        return taps.rows.weights.shape[1] + 2, taps.columns.weights.shape[1] + 2

    def _require_fit(self, box: Box, frame_shape: tuple[int, ...]) -> None:
        left, top, right, bottom = box
        height, width = frame_shape[:2]
        if min(right, width) <= max(left, 0) or min(bottom, height) <= max(top, 0):
            raise ValueError(f"got the box {box}, which has no pixel of the frame of {width} x {height}")
        if height > self.max_frame[0] or width > self.max_frame[1] or max(right - left, bottom - top) > self._longest:
            raise ValueError(
                f"got a frame of {height} x {width} pixels with the box {box}, memory was taken for frames up to "
                f"{self.max_frame[0]} x {self.max_frame[1]} and boxes up to {self._longest}; open the session for larger frames"
            )


def kernel_source() -> str:
    """The text of the CUDA kernels."""
    return files("fundus_rt.runtime.nvidia").joinpath(SOURCE).read_text(encoding="utf-8")


def machine_code(device: Any) -> bytes:
    """The kernels compiled for a GPU, once in a process.

    Raises:
        BackendUnavailableError: NVRTC is missing.
    """
    if device.compute_capability not in _COMPILED:
        _COMPILED[device.compute_capability] = device.compile(kernel_source(), SOURCE, OPTIONS)
    return _COMPILED[device.compute_capability]


def _pitch(width: int) -> int:
    """Bytes from row to row of a crop: its own, rounded up to loads of 16 bytes."""
    return -(-width * 3 // 16) * 16


def _words(weights: NDArray[Any]) -> NDArray[np.int32]:
    """Weights tap by tap, as words of 32 bits."""
    return np.ascontiguousarray(weights.T).reshape(-1).view(np.int32)


def _settled(taps: Taps, before: int, inside: int) -> Taps:
    """Weights that no longer need the edge: indices within the crop's own columns, black ones left out, doubled ones added up.

    Args:
        taps: on the box.
        before: black columns of the box left of the crop.
        inside: columns of the crop.
    """
    place = np.clip(taps.first[:, None] + np.arange(taps.weights.shape[1]), 0, taps.length - 1) - before
    seen = (place >= 0) & (place < inside)
    first = np.where(seen, place, inside).min(axis=1)
    band = max(1, int((np.where(seen, place, -1).max(axis=1) - first).max()) + 1)
    first = np.clip(first, 0, inside - band)
    weights = np.zeros((len(first), band), taps.weights.dtype)
    everywhere = np.arange(len(first))
    for k in range(taps.weights.shape[1]):
        here = seen[:, k]
        weights[everywhere[here], (place[:, k] - first)[here]] += taps.weights[here, k]  # one place in each row at one k
    return Taps(first.astype(np.int32), weights, inside)
