"""OpenVINO as a backend for processors."""

from __future__ import annotations

import os
import queue
import re
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fundus_rt.models.card import CARD_KEY, ModelCard
from fundus_rt.models.errors import BackendUnavailableError, ModelFileError
from fundus_rt.models.memory import is_out_of_memory, no_memory_to_open
from fundus_rt.models.onnx_scan import read_onnx
from fundus_rt.runtime.answers import checked_answers
from fundus_rt.runtime.device_kind import LARGEST_WEIGHT_IN_16, sums_8_bit_products_in_16
from fundus_rt.runtime.graph_contract import card_of, require_contract
from fundus_rt.runtime.inherited import never_release_in_a_child
from fundus_rt.runtime.session import BackendInfo, Batch, require_input, usable_cores

_TYPES = {"u8": "uint8", "f32": "float32"}
CPU = "CPU"
"""OpenVINO's name of the device."""
_CUT_OFF = (
    "OpenVINO adds up in 16 bits on a processor without VNNI, and this one has none, or does not tell; large sums would "
    "be cut off. Use --backend onnxruntime, whose sums are exact"
)
_cores: dict[int, Any] = {}
"""By process."""
_making = threading.Lock()


class OpenVinoSession:
    """A network of this package on OpenVINO's CPU device. Thread-safe: several threads may call `run` at once."""

    takes_frames = False
    """Crop and resize are left to the host, as with ONNX Runtime."""
    warnings: tuple[str, ...] = ()

    def __init__(self, path: Path, device: str = "cpu", threads: int = 1) -> None:
        """Open `path`.

        It computes in float32, whatever the processor could do in less (OpenVINO takes bfloat16 by itself where a processor has
        AMX), in as many streams of `threads` threads as this process has cores, and threads are not tied to cores, for a second
        process would be tied to the same ones.

        Args:
            path: an ``.onnx`` file written by this package.
            device: ``cpu``.
            threads: threads within one `run`.

        Raises:
            BackendUnavailableError: OpenVINO is missing, or grants something else than float32 on the CPU.
            ModelFileError: not an ONNX file, no card in it, or a graph that its card does not describe.
        """
        if device != "cpu":
            raise BackendUnavailableError(f"OpenVINO is used on processors: got device {device!r}, expected cpu")
        openvino = import_openvino()
        streams = max(1, usable_cores() // threads)
        core = shared_core(openvino)
        content, self.file_sha256 = read_onnx(path)
        model = _read(core, content, path)
        self.card: ModelCard = card_of(_metadata(model), path)
        require_contract(self.card, *_signature(model), path)
        _require_exact_products(model, path)
        settings = {
            "INFERENCE_PRECISION_HINT": "f32",
            "EXECUTION_MODE_HINT": "ACCURACY",
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": str(streams),
            "INFERENCE_NUM_THREADS": str(streams * threads),
            "ENABLE_CPU_PINNING": "NO",
        }
        try:
            compiled = core.compile_model(model, CPU, settings)
        except RuntimeError as error:
            if is_out_of_memory(error):
                raise no_memory_to_open(path.name) from error
            raise ModelFileError(
                f"{path.name} cannot be compiled by OpenVINO {version_of(openvino)} ({_said(error, path)})"
            ) from error
        _require_granted(compiled)
        _require_exact_sums(compiled, path)
        self._names = [*(output.name for output in self.card.outputs), "receipt"]
        self._requests: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._compiled: Any = compiled
        self.backend = BackendInfo("openvino", device, version_of(openvino), CPU)

    def run(self, batch: Batch) -> dict[str, NDArray[np.float32]]:
        """Answer a batch, see `fundus_rt.runtime.session.Session.run`."""
        compiled = self._compiled
        if compiled is None:
            raise ValueError("this session is closed; open a new one")
        require_input(batch, self.card)
        try:
            request = self._requests.get_nowait()
        except queue.Empty:
            request = compiled.create_infer_request()
        found = request.infer({"frames": np.ascontiguousarray(batch)}, share_inputs=True, share_outputs=True)
        answers = {name: np.array(found[name]) for name in self._names}  # copies: the request's memory is used again
        self._requests.put(request)
        return checked_answers(batch, answers, self.card)

    def close(self) -> None:
        """Release the network."""
        self._compiled = None
        self._requests = queue.SimpleQueue()


def import_openvino() -> Any:
    """The module ``openvino``, without its reports to its maker.

    Its wheels bring ``openvino_telemetry`` along, which asks a server of Google and keeps an identity in the home folder whenever
    OpenVINO is imported.

    Raises:
        BackendUnavailableError: it is not installed, or cannot be imported.
    """
    try:
        sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # Python's way to say that it is not there
        import openvino
    except ImportError as error:
        if is_out_of_memory(error):
            raise no_memory_to_open("OpenVINO") from error
        reason = "is not installed" if getattr(error, "name", "") == "openvino" else f"cannot be imported ({error})"
        raise BackendUnavailableError(f"OpenVINO {reason}; install it with pip install 'fundus-rt[openvino]'") from error
    return openvino


def shared_core(openvino: Any) -> Any:
    """The one ``openvino.Core`` of this process, which lives as long as it does.

    Each Core gives the thread that makes it a stack for signals and takes it away when it is released (2026.4,
    ``SigAltStackSetup``). Of two, the first released frees the stack that the second restores: the next signal that Python
    handles, such as Ctrl-C, would end the process with a segmentation fault.
    """
    process = os.getpid()  # a forked process makes one of its own
    with _making:
        if process not in _cores:
            _cores[process] = openvino.Core()
            never_release_in_a_child(_cores[process])
        return _cores[process]


def version_of(openvino: Any) -> str:
    """Version with its build, ``2026.4.1-22982``: two builds of one version may compute otherwise."""
    found = re.match(r"[0-9.]+(-[0-9]+)?", str(openvino.__version__))
    return found.group() if found else str(openvino.__version__)


def _read(core: Any, content: bytes, path: Path) -> Any:
    try:
        return core.read_model(content)
    except RuntimeError as error:
        if is_out_of_memory(error):
            raise no_memory_to_open(path.name) from error
        raise ModelFileError(
            f"{path.name} cannot be opened by OpenVINO ({_said(error, path)}); expected an .onnx file of `fundus-rt convert`"
        ) from error


def _metadata(model: Any) -> dict[str, str]:
    """The texts that an ONNX file carries, as OpenVINO keeps them."""
    if not model.has_rt_info(["framework", CARD_KEY]):
        return {}
    return {CARD_KEY: str(model.get_rt_info(["framework", CARD_KEY]).value)}


def _signature(model: Any) -> tuple[dict[str, tuple[str, list[Any]]], dict[str, list[Any]]]:
    """Inputs with their types and shapes, outputs with their shapes; a free axis is None."""

    def shape(port: Any) -> list[Any]:
        return [axis.get_length() if axis.is_static else None for axis in port.get_partial_shape()]

    def kind(port: Any) -> str:
        name = str(port.get_element_type().get_type_name())
        return _TYPES.get(name, name)

    return (
        {port.get_any_name(): (kind(port), shape(port)) for port in model.inputs},
        {port.get_any_name(): shape(port) for port in model.outputs},
    )


def _require_exact_products(model: Any, path: Path) -> None:
    """Refuse weights of 8 bits whose products OpenVINO would not add up exactly on this processor; it has no setting for it."""
    if not sums_8_bit_products_in_16():
        return
    for node in model.get_ops():
        if node.get_type_name() == "Constant" and node.get_element_type().get_type_name() in ("i8", "u8"):
            weights = node.data if len(node.get_output_shape(0)) > 1 else np.zeros(1)
            if max(int(weights.max()), -int(weights.min())) > LARGEST_WEIGHT_IN_16:
                raise BackendUnavailableError(
                    f"{path.name} has weights of 8 bits, whose products {_CUT_OFF}, or write another file: "
                    "fundus-rt quantize FILE.onnx --precision int8 --backend openvino --weight-bits 7"
                )


def _require_exact_sums(compiled: Any, path: Path) -> None:
    """Refuse products of two tensors of 8 bits, neither of them weights, that are not added up exactly on this processor."""
    if not sums_8_bit_products_in_16():
        return
    for layer in compiled.get_runtime_model().get_ops():
        kind, precision = (str(layer.get_rt_info()[key].astype(str)) for key in ("layerType", "runtimePrecision"))
        if kind != "MatMul" or precision not in ("i8", "u8"):
            continue
        sources = [value.get_node().get_rt_info()["layerType"].astype(str) for value in layer.input_values()]
        if "Const" not in sources:
            raise BackendUnavailableError(
                f"{path.name} multiplies two tensors of 8 bits in {layer.get_friendly_name()}, whose products {_CUT_OFF}"
            )


def _require_granted(compiled: Any) -> None:
    """Refuse a device or a precision that was not asked for."""
    devices = list(compiled.get_property("EXECUTION_DEVICES"))
    precision = compiled.get_property("INFERENCE_PRECISION_HINT").to_string()
    if devices != [CPU] or precision != "f32":
        raise BackendUnavailableError(
            f"OpenVINO computes on {', '.join(devices)} in {precision}, expected f32 on {CPU}; use --backend onnxruntime"
        )


def _said(error: Exception, path: Path) -> str:
    """What OpenVINO says, in one line without folders."""
    lines = [line.strip() for line in str(error).replace(str(path), path.name).splitlines() if line.strip()]
    return (lines[-1] if lines else type(error).__name__)[:200]
