"""ONNX Runtime as a backend."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fundus_rt.models.card import CARD_KEY, ModelCard, card_from_json
from fundus_rt.models.errors import BackendUnavailableError, CardError, ModelFileError
from fundus_rt.runtime.session import BackendInfo, Batch, check_receipt, require_input

_TYPES = {"tensor(uint8)": "uint8", "tensor(float)": "float32"}


class OnnxRuntimeSession:
    """A network of this package on ONNX Runtime. Thread-safe: several threads may call `run` at once."""

    def __init__(self, path: Path, device: str = "cpu", threads: int = 1) -> None:
        """Open `path`.

        Args:
            path: an ``.onnx`` file written by this package.
            device: ``cpu`` or ``cuda:N``.
            threads: threads within one `run`.

        Raises:
            BackendUnavailableError: ONNX Runtime is missing, or did not grant the device.
            ModelFileError: not an ONNX file, no card in it, or a graph that its card does not describe.
        """
        ort = _import_onnxruntime()
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        # Threads that spin between runs take the cores that decoding needs.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        provider, provider_options = _provider(device, ort)
        try:
            self._session: Any = ort.InferenceSession(
                str(path), options, providers=[provider], provider_options=[provider_options]
            )
        except Exception as error:  # ONNX Runtime's own exception types share no base class
            raise ModelFileError(
                f"{path.name} cannot be opened by ONNX Runtime {ort.__version__} ({_first_line(error, path)}); "
                "expected an .onnx file written by `fundus-rt convert`"
            ) from error
        granted = self._session.get_providers()[0]
        if granted != provider:
            raise BackendUnavailableError(
                f"ONNX Runtime granted {granted}, asked for {provider} (device {device}). Install the matching "
                "onnxruntime-gpu without onnxruntime beside it, or say --device cpu."
            )
        self.card: ModelCard = _card_of(self._session, path)
        _require_contract(self._session, self.card, path)
        self._outputs = [output.name for output in self.card.outputs]
        self.backend = BackendInfo("onnxruntime", device, ort.__version__)

    def run(self, batch: Batch) -> dict[str, NDArray[np.float32]]:
        """Answer a batch, see `fundus_rt.runtime.session.Session.run`."""
        if self._session is None:
            raise ValueError("this session is closed; open a new one")
        require_input(batch, self.card)
        values = self._session.run([*self._outputs, "receipt"], {"frames": batch})
        answer = dict(zip([*self._outputs, "receipt"], values, strict=True))
        check_receipt(batch, answer["receipt"])
        for name in self._outputs:
            if answer[name].shape[0] != batch.shape[0] or not np.isfinite(answer[name]).all():
                raise ModelFileError(
                    f"{self.card.name}: output {name!r} is {list(answer[name].shape)} or not finite, expected one finite row "
                    f"for each of {batch.shape[0]} pictures; the file is damaged, convert it again"
                )
        return answer

    def close(self) -> None:
        """Release the network."""
        self._session = None


def _import_onnxruntime() -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise BackendUnavailableError(
            "ONNX Runtime is not installed; install one of: pip install 'fundus-rt[cpu]', pip install 'fundus-rt[gpu]'"
        ) from error
    return onnxruntime


def _provider(device: str, ort: Any) -> tuple[str, dict[str, Any]]:
    if device == "cpu":
        return "CPUExecutionProvider", {}
    kind, _, index = device.partition(":")
    if kind != "cuda" or not index.isdigit():
        raise BackendUnavailableError(f"device {device!r} is not known, expected cpu or cuda:N")
    available = ort.get_available_providers()
    if "CUDAExecutionProvider" not in available:
        raise BackendUnavailableError(
            f"device {device} asked for, but this ONNX Runtime offers only {', '.join(available)}; "
            "pip uninstall onnxruntime && pip install 'fundus-rt[gpu]', or say --device cpu"
        )
    return "CUDAExecutionProvider", {"device_id": int(index), "use_tf32": 0}


def _card_of(session: Any, path: Path) -> ModelCard:
    text = session.get_modelmeta().custom_metadata_map.get(CARD_KEY)
    if text is None:
        raise ModelFileError(
            f"{path.name} carries no model card ({CARD_KEY}): it was not written by this package. "
            "Convert the original checkpoint with `fundus-rt convert CHECKPOINT --card NAME`."
        )
    try:
        return card_from_json(text, origin=f"the card in {path.name}")
    except CardError as error:
        raise ModelFileError(str(error)) from error


def _require_contract(session: Any, card: ModelCard, path: Path) -> None:
    problems = []
    inputs = {i.name: i for i in session.get_inputs()}
    outputs = {o.name: o for o in session.get_outputs()}
    height, width = card.preprocessing.input_size
    if list(inputs) != ["frames"]:
        problems.append(f"inputs are {sorted(inputs)}, expected one named 'frames'")
    else:
        frames = inputs["frames"]
        if _TYPES.get(frames.type) != card.preprocessing.input_dtype:
            problems.append(f"input is {frames.type}, the card says {card.preprocessing.input_dtype}")
        if isinstance(frames.shape[0], int):
            problems.append(f"the batch size is fixed to {frames.shape[0]}, expected any")
        if list(frames.shape[1:]) != [height, width, 3]:
            problems.append(f"input is {frames.shape}, the card says [N, {height}, {width}, 3]")
    wanted = [*(output.name for output in card.outputs), "receipt"]
    problems += [f"output {name!r} is missing" for name in wanted if name not in outputs]
    for output in card.outputs:
        shape = outputs[output.name].shape if output.name in outputs else [output.columns]
        if shape[-1] != output.columns:
            problems.append(f"output {output.name!r} has shape {shape}, the card says {output.columns} columns")
        if output.activation is None:
            problems.append(f"the card does not say which activation output {output.name!r} still needs")
    if problems:
        listing = "\n".join(f"  - {p}" for p in problems)
        raise ModelFileError(f"{path.name}: graph and card disagree; convert the checkpoint again:\n{listing}")


def _first_line(error: Exception, path: Path) -> str:
    lines = str(error).replace(str(path), path.name).strip().splitlines()
    return (lines[0] if lines else type(error).__name__)[:200]
