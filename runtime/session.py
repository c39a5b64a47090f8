"""A network that is ready to answer: one interface over every backend, and the checks that each answer passes."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from fundus_rt.models.card import ModelCard
from fundus_rt.models.errors import BackendUnavailableError, ModelFileError
from fundus_rt.models.registry import bundled_file, load_card

BACKENDS = ("onnxruntime", "openvino", "tensorrt")

ENGINE_SUFFIX = ".engine"
Box = tuple[int, int, int, int]
Batch = NDArray[Any]
"""Network input: uint8 or float32 [N, H, W, 3], BGR, grey levels 0 to 255."""


@dataclass(frozen=True)
class BackendInfo:
    """What computes: backend name, device as the backend names it, backend version."""

    name: str
    device: str
    version: str
    provider: str = ""
    """Of ONNX Runtime: its name of the execution provider that was granted."""
    engine_sha256: str = ""
    """Of the engine that answers; empty where the ``.onnx`` file does."""


class Session(Protocol):
    """A loaded network. `run` may be called from several threads at once."""

    card: ModelCard
    file_sha256: str
    """Of the file that was asked for: of the very bytes that were opened, or, where an engine from the cache computes, of the
    ``.onnx`` file that the engine was built from."""

    @property
    def backend(self) -> BackendInfo:
        """What computes."""
        ...

    @property
    def warnings(self) -> tuple[str, ...]:
        """What every result of this session has to say."""
        ...

    @property
    def takes_frames(self) -> bool:
        """Whether this is a `FrameSession`."""
        ...

    def run(self, batch: Batch) -> dict[str, NDArray[np.float32]]:
        """Answer a batch: float32 [N, columns] per output of the card, and the receipt float32 [N, H].

        The arrays belong to the caller. Raises ReceiptError when the answer was computed from another input.
        """
        ...

    def close(self) -> None:
        """Release the network; `run` raises from then on."""
        ...


class FrameSession(Session, Protocol):
    """A session that also takes whole frames: one whose `takes_frames` is True."""

    def run_frame(self, frame: NDArray[np.uint8], box: Box, mirror: bool) -> dict[str, NDArray[np.float32]]:
        """Answer one whole frame: crop, resize and mirroring are done where the network is.

        Args:
            frame: uint8 [H, W, 3], BGR; only read.
            box: left, top, right, bottom in whole pixels, as `fundus_rt.runtime.preprocess.crop_box` gives it.
            mirror: exchange left and right.

        Returns:
            As `run` for a batch of one, with the same numbers as for the tensor of `tensor_from_frame`.

        Raises:
            ReceiptError: as `run`.
        """
        ...

    def frame_buffer(self, height: int, width: int) -> NDArray[np.uint8]:
        """Zeros, uint8 [height, width, 3], in memory that `run_frame` sends on without a copy on the host."""
        ...


@dataclass(frozen=True)
class ModelIdentity:
    """Which file answered: card name, SHA-256 of the file, precision of its graph."""

    name: str
    sha256: str
    precision: str


def resolve_model(model: str | Path) -> Path:
    """The ``.onnx`` or ``.engine`` file behind a card's name or a path.

    Raises:
        CardError: an unknown name, or a known model whose weights are not part of the package.
        ModelFileError: the file does not exist or is of another kind.
    """
    path = Path(model)
    if path.suffix in (".onnx", ENGINE_SUFFIX):
        if not path.is_file():
            raise ModelFileError(f"model file {path} does not exist; give an .onnx file written by `fundus-rt convert`")
        return path
    if path.is_file() and path.suffix:
        raise ModelFileError(
            f"{path} is not an .onnx file. A checkpoint is converted first:\n  fundus-rt convert {path} --card NAME -o NAME.onnx"
        )
    return bundled_file(load_card(str(model)))


def open_session(
    model: str | Path, backend: str = "onnxruntime", device: str = "cpu", threads: int | None = None, provider: str = "auto"
) -> Session:
    """Open a model file on a backend, as it is; `fundus_rt.runtime.guarded_session.open_guarded` also chooses and guards.

    Args:
        model: a card's name whose weights the package ships, an ``.onnx`` file written by this package, or an ``.engine`` built
            from one.
        backend: ``onnxruntime``, ``openvino`` (processors only) or ``tensorrt``.
        device: ``cpu`` or ``cuda:N``.
        threads: threads that one `Session.run` may use on a CPU; None for all cores that this process may use.
        provider: of ONNX Runtime, see `fundus_rt.runtime.onnx_session.OnnxRuntimeSession`.

    Raises:
        ModelFileError: the file is not ONNX, carries no card, or its graph and card disagree.
        BackendUnavailableError: the backend is not installed or did not grant the device.
        EngineMissingError: TensorRT has no engine of this model for this machine.
    """
    if backend not in BACKENDS:
        raise BackendUnavailableError(f"backend {backend!r} is not known, expected one of {', '.join(BACKENDS)}")
    path = resolve_model(model)
    if backend != "onnxruntime" and provider != "auto":
        raise BackendUnavailableError(f"the provider {provider!r} is ONNX Runtime's; say --backend onnxruntime with it")
    if backend == "tensorrt":
        from fundus_rt.runtime.nvidia.tensorrt_session import TensorRTSession

        return TensorRTSession(path, device=device)
    if path.suffix == ENGINE_SUFFIX:
        raise BackendUnavailableError(f"{path.name} is a TensorRT engine; open it with --backend tensorrt --device cuda:0")
    if backend == "openvino":
        from fundus_rt.runtime.openvino_session import OpenVinoSession

        return OpenVinoSession(path, device, threads or usable_cores())
    from fundus_rt.runtime.onnx_session import OnnxRuntimeSession

    return OnnxRuntimeSession(path, device=device, threads=threads or usable_cores(), provider=provider)


def identify_model(session: Session) -> ModelIdentity:
    """Name, SHA-256 and precision of what a session opened."""
    return ModelIdentity(session.card.name, session.file_sha256, str(session.card.provenance.get("precision", "fp32")))


def cuda_index(device: str) -> int:
    """The number of a GPU: 1 for ``cuda:1``.

    Raises:
        BackendUnavailableError: not of the form ``cuda:N``.
    """
    kind, _, index = device.partition(":")
    if kind != "cuda" or not index.isdigit():
        raise BackendUnavailableError(f"TensorRT runs on an NVIDIA GPU: got device {device!r}, expected cuda:N")
    return int(index)


def usable_cores() -> int:
    """Number of processor cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def package_version() -> str:
    """Of this package; ``not installed`` where it runs from its source."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("fundus-rt")
    except PackageNotFoundError:
        return "not installed"


def require_input(batch: Batch, card: ModelCard) -> None:
    """Refuse a batch whose dtype or shape the card does not state.

    Raises:
        ValueError: with what was got and what is expected.
    """
    height, width = card.preprocessing.input_size
    if batch.ndim != 4 or batch.shape[1:] != (height, width, 3) or batch.dtype != card.preprocessing.input_dtype:
        raise ValueError(
            f"{card.name} takes {card.preprocessing.input_dtype} [N, {height}, {width}, 3] in BGR, "
            f"got {batch.dtype} {list(batch.shape)}; make it with tensor_from_frame"
        )
