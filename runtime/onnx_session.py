"""ONNX Runtime as a backend."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fundus_rt.models.card import ModelCard
from fundus_rt.models.errors import BackendUnavailableError, ModelFileError
from fundus_rt.models.memory import is_out_of_memory, no_memory_to_open
from fundus_rt.models.onnx_scan import read_onnx
from fundus_rt.runtime.answers import checked_answers
from fundus_rt.runtime.graph_contract import card_of, require_contract
from fundus_rt.runtime.onnx_providers import (
    CPU,
    PROFILE,
    PROVIDERS,
    chosen_provider,
    device_failure,
    forbid_tf32,
    open_on_provider,
    provider_settings,
    session_options,
)
from fundus_rt.runtime.session import BackendInfo, Batch, require_input

_TYPES = {"tensor(uint8)": "uint8", "tensor(float)": "float32"}


class OnnxRuntimeSession:
    """A network of this package on ONNX Runtime. Thread-safe: several threads may call `run` at once."""

    takes_frames = False
    """Crop and resize are left to the host, where the filter's own library is the faster way."""

    def __init__(self, path: Path, device: str = "cpu", threads: int = 1, provider: str = "auto") -> None:
        """Open `path`.

        Args:
            path: an ``.onnx`` file written by this package.
            device: ``cpu`` or ``cuda:N``.
            threads: threads within one `run` on a CPU.
            provider: ``auto`` (CUDA on ``cuda:N``), ``cpu``, ``cuda``, ``tensorrt`` or ``tensorrt-rtx``. The two TensorRT
                providers build an engine each time, which takes up to minutes, and take at most eight pictures at once; `run`
                divides larger batches.

        Raises:
            BackendUnavailableError: ONNX Runtime is missing, or did not grant the device; the message says why.
            DeviceMemoryError: the memory, of the GPU or of the system, is not enough.
            ModelFileError: no ONNX file, one with weights elsewhere, no card in it, or a graph that its card does not describe.
        """
        ort = import_onnxruntime()
        content, self.file_sha256 = read_onnx(path)
        self.provider, index = chosen_provider(provider, device)
        on_cpu = self.provider == CPU
        options = session_options(ort, threads)
        if not on_cpu:  # only read, to know the card and to tell a bad file from a bad provider
            options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        try:
            self._session: Any = ort.InferenceSession(content, options, providers=[CPU])
        except Exception as error:  # ONNX Runtime's own exception types share no base class
            if is_out_of_memory(error):
                raise no_memory_to_open(path.name) from error
            raise ModelFileError(
                f"{path.name} cannot be opened by ONNX Runtime {ort.__version__} ({_first_line(error, path)}); "
                "expected an .onnx file written by `fundus-rt convert`"
            ) from error
        self.card: ModelCard = card_of(self._session.get_modelmeta().custom_metadata_map, path)
        inputs, outputs = self._session.get_inputs(), self._session.get_outputs()
        require_contract(
            self.card, {i.name: (_TYPES.get(i.type, i.type), i.shape) for i in inputs}, {o.name: o.shape for o in outputs}, path
        )
        self.settings = provider_settings(self.provider, index, self.card)
        self.warnings = forbid_tf32(self.provider)
        self._most = PROFILE.batch[2] if self.provider in (PROVIDERS["tensorrt"], PROVIDERS["tensorrt-rtx"]) else None
        if not on_cpu:
            self._session = open_on_provider(ort, content, self.provider, index, self.settings, self.card)
        self._session._model_bytes = (
            None  # ONNX Runtime's Python keeps the whole file for changes of provider, which are not made
        )
        self._outputs = [output.name for output in self.card.outputs]
        self.backend = BackendInfo("onnxruntime", device, ort.__version__, self.provider)

    def run(self, batch: Batch) -> dict[str, NDArray[np.float32]]:
        """Answer a batch, see `fundus_rt.runtime.session.Session.run`."""
        session = self._session  # another thread may close this one meanwhile
        if session is None:
            raise ValueError("this session is closed; open a new one")
        require_input(batch, self.card)
        names = [*self._outputs, "receipt"]
        most = self._most or max(len(batch), 1)
        parts = [self._values(session, names, batch[start : start + most]) for start in range(0, len(batch), most)]
        values = parts[0] if len(parts) == 1 else [np.concatenate(rows) for rows in zip(*parts, strict=True)]
        return checked_answers(batch, dict(zip(names, values, strict=True)), self.card)

    def close(self) -> None:
        """Release the network."""
        self._session = None

    def _values(self, session: Any, names: list[str], batch: Batch) -> list[NDArray[np.float32]]:
        try:
            return session.run(names, {"frames": batch})  # type: ignore[no-any-return]
        except Exception as error:  # ONNX Runtime's own exception types share no base class
            if self.provider == CPU and is_out_of_memory(error):
                raise MemoryError("the memory is not enough for this inference") from error
            if self.provider == CPU:
                raise
            raise device_failure(error) from error


def import_onnxruntime() -> Any:
    """The module ``onnxruntime``.

    Raises:
        BackendUnavailableError: it is not installed, or what is installed is empty.
    """
    try:
        import onnxruntime
    except ImportError as error:
        if is_out_of_memory(error):
            raise no_memory_to_open("ONNX Runtime") from error
        raise BackendUnavailableError(
            "ONNX Runtime is not installed; install one of: pip install 'fundus-rt[cpu]', pip install 'fundus-rt[gpu]'"
        ) from error
    if not hasattr(onnxruntime, "InferenceSession"):
        from fundus_rt.runtime.device_check.doctor_software import onnxruntime_wheels
        from fundus_rt.runtime.provider_causes import reinstall_command

        raise BackendUnavailableError(
            "ONNX Runtime is only partly there: two of its wheels shared its files, and one was uninstalled. "
            f"{reinstall_command(onnxruntime_wheels())}, or 'fundus-rt[cpu]' without a GPU"
        )
    if os.name == "nt":  # elsewhere $ORT_DISABLE_TELEMETRY does it, before anything is noted down: see fundus_rt.models
        onnxruntime.disable_telemetry_events()
    return onnxruntime


def _first_line(error: Exception, path: Path) -> str:
    lines = str(error).replace(str(path), path.name).strip().splitlines()
    return (lines[0] if lines else type(error).__name__)[:200]
