"""The ways from a photograph to an answer on a GPU that `gpu_figures` compares; each is a call that returns when all is done."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fundus_rt.benchmarks import published
from fundus_rt.models.card import ModelCard
from fundus_rt.runtime.field_of_view import find_field_of_view
from fundus_rt.runtime.nvidia.engine_slot import EngineSlot
from fundus_rt.runtime.nvidia.tensorrt_session import TensorRTSession
from fundus_rt.runtime.onnx_session import OnnxRuntimeSession
from fundus_rt.runtime.preprocess import crop_box, tensor_from_box
from fundus_rt.runtime.session import Batch, Box

Ways = dict[str, Callable[[], Any]]
Frame = NDArray[np.uint8]
TORCH_TWINS = {
    "mobilenet": "mobilenetv1_100",
    "efficientnet-b7": "tf_efficientnet_b7",
    "swin-base": "swin_base_patch4_window12_384",
}
"""timm's network of the same architecture, for the ways of torch: two of the three are published for Keras."""


class BareNetwork:
    """An engine alone, as ``trtexec --useCudaGraph`` times it: input and outputs lie on the GPU, and nothing is copied."""

    def __init__(self, session: TensorRTSession, rows: int) -> None:
        """Record the engine's pass for `rows` pictures.

        Raises:
            DeviceMemoryError: beside the session's own memory there is no room.
        """
        engine = session._engine
        assert engine is not None, "the session is open"
        self._slot = EngineSlot(session._device, engine, lambda said: None)
        with self._slot._working():
            context = self._slot._shape(rows)._context
            stream = self._slot.stream
            context.execute_async_v3(stream.handle)
            stream.synchronize()
            with session._device.capture(stream) as graph:
                context.execute_async_v3(stream.handle)
        self._graph = graph

    def __call__(self) -> None:
        """One pass."""
        self._graph.launch(self._slot.stream)
        self._slot.stream.synchronize()

    def close(self) -> None:
        """Give the memory back."""
        self._graph.close()
        self._slot.close()


class BytesCopied:
    """The bytes of a crop from page-locked memory to the GPU, and as many numbers back as the network answers."""

    def __init__(self, session: TensorRTSession, sizes: list[int]) -> None:
        """Take memory for the largest of the crops, whose `sizes` in bytes come in turn."""
        self._device = session._device
        self._turns = cycle(sizes)
        columns = sum(output.columns or 0 for output in session.card.outputs) + session.card.preprocessing.input_size[0]
        self._stream = self._device.stream()
        self._host, self._there = self._device.pinned((max(sizes),), "uint8"), self._device.buffer(max(sizes))
        self._back, self._answer = self._device.pinned((columns,), "float32"), self._device.buffer(columns * 4)

    def __call__(self) -> None:
        """One copy each way."""
        self._device.upload(self._there, self._host, next(self._turns), self._stream)
        self._device.download(self._back, self._answer, self._answer.nbytes, self._stream)
        self._stream.synchronize()

    def close(self) -> None:
        """Give the memory back."""
        self._stream.close()
        for memory in (self._there, self._answer, self._host, self._back):
            memory.free()


@contextmanager
def engine_ways(session: TensorRTSession, frames: list[Frame]) -> Iterator[Ways]:
    """The ways of one engine; all take the same photographs in the same turns, one at a call.

    ``fused``: from a decoded photograph and its crop to the answer in one submission. ``network_only`` and ``copy_only``: what
    of that cannot be avoided. ``field_of_view``: the search for that crop, on the processor. ``host_preprocessing``: crop and
    resize by the filter's own library on the processor; ``host_and_network``: that, then the engine; ``tensor_to_answer``: the
    engine from a ready tensor on, copies included.
    """
    spec = session.card.preprocessing
    boxes = [crop_box(find_field_of_view(frame), frame.shape, spec) for frame in frames]
    pairs = list(zip(frames, boxes, strict=True))
    tensor = tensor_from_box(*pairs[0], spec)[None]

    def on_each(work: Callable[[Frame, Box], Any]) -> Callable[[], Any]:
        turns = cycle(pairs)
        return lambda: work(*next(turns))

    with contextlib.ExitStack() as stack:
        bare = stack.enter_context(contextlib.closing(BareNetwork(session, 1)))
        sizes = [crop_bytes(box, frame.shape) for frame, box in pairs]
        ways: Ways = {
            "network_only": bare,
            "copy_only": stack.enter_context(contextlib.closing(BytesCopied(session, sizes))),
            "field_of_view": on_each(lambda frame, _: crop_box(find_field_of_view(frame), frame.shape, spec)),
            "host_preprocessing": on_each(lambda frame, box: tensor_from_box(frame, box, spec)),
            "tensor_to_answer": lambda: session.run(tensor),
            "host_and_network": on_each(lambda frame, box: session.run(tensor_from_box(frame, box, spec)[None])),
        }
        if session.takes_frames:
            ways["fused"] = on_each(lambda frame, box: session.run_frame(frame, box, False))
        yield ways


def crop_bytes(box: Box, shape: tuple[int, ...]) -> int:
    """Bytes of the part of a crop (left, top, right, bottom) that lies in a frame of `shape`."""
    left, top, right, bottom = box
    return (min(right, shape[1]) - max(left, 0)) * (min(bottom, shape[0]) - max(top, 0)) * 3


def onnxruntime_way(path: Path, device: str, rows: int, card: ModelCard) -> Callable[[], Any]:
    """ONNX Runtime with CUDA on ready tensors, copies included.

    Raises:
        BackendUnavailableError: it does not grant CUDA.
    """
    session = OnnxRuntimeSession(path, device, provider="cuda")
    batch = noise(rows, card)
    return lambda: session.run(batch)


def torch_ways(network: str, rows: int, device: str) -> Ways:
    """torch in float32 with its own defaults, and compiled in half precision with CUDA graphs.

    The normalised input lies on the GPU, the answer comes back.

    Raises:
        KeyError: no twin of this network is known.
        ImportError: torch or timm is not installed.
        RuntimeError: torch has no CUDA.
    """
    twin = TORCH_TWINS[network]
    import timm
    import torch

    if not torch.cuda.is_available():
        raise RuntimeError("this torch has no CUDA")
    sized = {"img_size": published.SIZE} if network == "swin-base" else {}
    plain = timm.create_model(twin, pretrained=False, num_classes=1, **sized).eval().to(device)
    half = torch.compile(copy.deepcopy(plain).half(), mode="reduce-overhead")
    given = torch.randn(rows, 3, published.SIZE, published.SIZE, device=device)

    def call(model: Any, pixels: Any) -> Callable[[], Any]:
        def answer() -> Any:
            with torch.inference_mode():
                return model(pixels).cpu()

        return answer

    return {"torch_eager_fp32": call(plain, given), "torch_compile_fp16": call(half, given.half())}


def noise(rows: int, card: ModelCard, seed: int = 0) -> Batch:
    """Random grey levels of the network's input, [rows, H, W, 3]."""
    height, width = card.preprocessing.input_size
    levels = np.random.default_rng(seed).integers(0, 256, (rows, height, width, 3), dtype=np.uint8)
    return levels.astype(card.preprocessing.input_dtype)
