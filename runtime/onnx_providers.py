"""ONNX Runtime's execution providers: which is asked for, with which settings, and whether it really computes.

Three things let ONNX Runtime answer on the CPU although a GPU was asked for, all seen with version 1.31: a provider that cannot
be loaded is left out; its Python layer opens the session again on the CPU when that raises, and once more in the middle of
`run`; and single nodes that a provider does not take are given to the CPU. The first two are refused here, and so is the third
for everything but the arithmetic of shapes, which ONNX Runtime puts on the CPU on purpose (so its own
``session.disable_cpu_ep_fallback`` would refuse every network with a free batch size).
"""

from __future__ import annotations

import collections
import contextlib
import importlib
import io
import json
import os
import re
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from fundus_rt.models.card import ModelCard
from fundus_rt.models.engines import EngineProfile
from fundus_rt.models.errors import BackendUnavailableError, DeviceLostError, DeviceMemoryError, FundusRtError
from fundus_rt.runtime.device_kind import sums_8_bit_products_in_16

CPU = "CPUExecutionProvider"
PLUGIN_PROVIDER = "NvTensorRTRTXExecutionProvider"
PLUGIN_WHEEL = "onnxruntime-ep-nv-tensorrt-rtx-cu13"
PLUGIN_MODULE = "onnxruntime_ep_nv_tensorrt_rtx"
PROVIDERS = {
    "cpu": CPU,
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
    "tensorrt-rtx": PLUGIN_PROVIDER,
}
"""Our names, and ONNX Runtime's."""
PROFILE = EngineProfile()
"""Batch sizes that the two TensorRT providers build their engine for; without, they would build again for every new size."""
WORKSPACE_BYTES = 1 << 30
"""Most scratch memory of an engine's build: left to itself TensorRT may take all, which on a Jetson is the system's own."""
TF32_VARIABLE = "NVIDIA_TF32_OVERRIDE"
"""The only way to keep TensorRT from TF32 through ONNX Runtime (microsoft/onnxruntime#26029); NVIDIA's libraries read it."""
SHAPE_ARITHMETIC = frozenset({
    "Add", "And", "Cast", "Ceil", "Concat", "Constant", "ConstantOfShape", "Div", "Equal", "Expand", "Floor", "Gather", "Greater",
    "Identity", "Less", "Max", "Min", "Mod", "Mul", "Neg", "Not", "Or", "Range", "ReduceProd", "Reshape", "Shape", "Size",
    "Slice", "Squeeze", "Sub", "Unsqueeze", "Where", "MemcpyToHost", "MemcpyFromHost",
})  # fmt: skip
"""Kinds of nodes that compute how large something is, and the copies between; on the CPU they cost next to nothing."""
_RECORD = "session.record_ep_graph_assignment_info"


def chosen_provider(provider: str, device: str) -> tuple[str, int]:
    """ONNX Runtime's name of the provider, and the GPU's index.

    Args:
        provider: ``auto`` (the CPU on ``cpu``, CUDA on ``cuda:N``) or one of `PROVIDERS`.
        device: ``cpu`` or ``cuda:N``.

    Raises:
        BackendUnavailableError: an unknown word, or a provider that does not compute on this device.
    """
    kind, _, index = device.partition(":")
    if device != "cpu" and (kind != "cuda" or not index.isdigit()):
        raise BackendUnavailableError(f"device {device!r} is not known, expected cpu or cuda:N")
    if provider not in ("auto", *PROVIDERS):
        raise BackendUnavailableError(f"provider {provider!r} is not known, expected one of auto, {', '.join(PROVIDERS)}")
    name = PROVIDERS[provider] if provider != "auto" else CPU if device == "cpu" else PROVIDERS["cuda"]
    if (name == CPU) != (device == "cpu"):
        wanted = "cpu" if name == CPU else "cuda:0"
        raise BackendUnavailableError(f"provider {provider} does not compute on device {device}; say --device {wanted}")
    return name, int(index or 0)


def provider_settings(provider: str, index: int, card: ModelCard) -> dict[str, str]:
    """Options of a provider, in ONNX Runtime's words.

    Everywhere: no TF32 (it keeps 10 bits of the 23 that a float32 has), no captured graph (`run` takes batches of any size), and
    no precision but the graph's own. CUDA: memory grows by what is needed, not by doubling, and convolution algorithms are
    chosen by rule, not by trying each with its scratch memory: on a Jetson this memory is the system's. TensorRT: no engine
    cache, for ONNX Runtime deserialises what it finds there unchecked; ``--backend tensorrt`` keeps engines.
    """
    if provider == CPU:
        return {}
    if provider == PROVIDERS["cuda"]:
        return {
            "device_id": str(index),
            "use_tf32": "0",
            "enable_cuda_graph": "0",
            "arena_extend_strategy": "kSameAsRequested",
            "cudnn_conv_algo_search": "HEURISTIC",
        }
    height, width = card.preprocessing.input_size
    shapes = [f"frames:{batch}x{height}x{width}x3" for batch in PROFILE.batch]
    if provider == PLUGIN_PROVIDER:
        names = ("nv_profile_min_shapes", "nv_profile_opt_shapes", "nv_profile_max_shapes")
        return {"enable_cuda_graph": "0", "nv_max_workspace_size": str(WORKSPACE_BYTES), **dict(zip(names, shapes, strict=True))}
    names = ("trt_profile_min_shapes", "trt_profile_opt_shapes", "trt_profile_max_shapes")
    return {
        "device_id": str(index),
        "trt_fp16_enable": "0",
        "trt_int8_enable": "0",
        "trt_cuda_graph_enable": "0",
        "trt_engine_cache_enable": "0",
        "trt_max_workspace_size": str(WORKSPACE_BYTES),
        **dict(zip(names, shapes, strict=True)),
    }


def forbid_tf32(provider: str) -> tuple[str, ...]:
    """Keep NVIDIA's libraries from TF32 where the provider has no option for it; what results have to say where they may use it.

    Sets an environment variable of this process, unless the user has set it: then that holds and is said.
    """
    if provider not in (PROVIDERS["tensorrt"], PLUGIN_PROVIDER):
        return ()
    if os.environ.setdefault(TF32_VARIABLE, "0") == "0":
        return ()
    return (
        f"TF32 is allowed by {TF32_VARIABLE}={os.environ[TF32_VARIABLE]}: answers carry a rounding of about one in a thousand",
    )


def open_on_provider(ort: Any, content: bytes, provider: str, index: int, settings: dict[str, str], card: ModelCard) -> Any:
    """Open a network on a GPU's provider, or say why that cannot be.

    Args:
        ort: the module ``onnxruntime``.
        content: of an ``.onnx`` file that was already opened on the CPU, so that what fails here is not the file's fault.
        provider: ONNX Runtime's name.
        index: of the GPU.
        settings: from `provider_settings`.
        card: the file's card.

    Returns:
        An ``onnxruntime.InferenceSession`` whose nodes are on the provider.

    Raises:
        BackendUnavailableError: not granted, or for the shapes only; the message has the cause.
        DeviceMemoryError: the GPU's memory is not enough.
    """
    with contextlib.redirect_stdout(io.StringIO()):  # it prints what it misses; the cause is looked for below
        getattr(ort, "preload_dlls", lambda: None)()  # CUDA's libraries from pip, where the loader does not look
    options = session_options(ort)
    options.add_session_config_entry("session.use_device_allocator_for_initializers", "1")
    options.add_session_config_entry(_RECORD, "1")
    opened = partial(_opened, ort, content, provider, index, settings)
    session: Any = None
    said = ""
    try:
        if provider == PLUGIN_PROVIDER or provider in ort.get_available_providers():
            session = opened(options)
    except BackendUnavailableError:
        raise
    except Exception as error:  # ONNX Runtime's own exception types share no base class
        if isinstance(failure := device_failure(error), DeviceMemoryError):
            raise failure from error
        said = _own_words(error)
    granted = session.get_providers()[0] if session is not None else "nothing"
    if granted != provider:
        from fundus_rt.runtime.provider_causes import why_not_granted

        raise BackendUnavailableError(
            f"ONNX Runtime granted {granted}, asked for {provider} on GPU {index}: "
            f"{why_not_granted(ort, provider, index, said)}. Or say --device cpu."
        )
    session.disable_fallback()
    require_nodes(nodes_by_provider(ort, session, opened, card), provider)
    return session


def _opened(ort: Any, content: bytes, provider: str, index: int, settings: dict[str, str], options: Any) -> Any:
    """A session that does not go on on the CPU by itself, neither when it is opened nor while it runs."""
    if provider == PLUGIN_PROVIDER:
        options.add_provider_for_devices([_plugin_device(ort, index)], settings)
        return ort.InferenceSession(content, options, enable_fallback=0)
    return ort.InferenceSession(content, options, providers=[provider], provider_options=[settings], enable_fallback=0)


def session_options(ort: Any, threads: int = 1) -> Any:
    """Options of every session: `threads` within one `run`, which spin while it lasts and not between runs."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    # Threads that spin between runs take the cores that decoding needs; those that never spin are woken for every layer.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    if sums_8_bit_products_in_16():
        # ONNX Runtime else lets sums of uint8 by int8 stop at 32767. With this it multiplies uint8 by uint8, slower and exact;
        # elsewhere it is exact by itself.
        options.add_session_config_entry("session.x64quantprecision", "1")
    return options


def nodes_by_provider(
    ort: Any, session: Any, opened: Callable[[Any], Any], card: ModelCard
) -> dict[str, collections.Counter[str]]:
    """How many nodes of each kind every provider took.

    Args:
        ort: the module ``onnxruntime``.
        session: opened with the wish to record it; an ONNX Runtime that is too old (before 1.24) cannot say.
        opened: then opens the network once more, with the options that it is given, for a run that is profiled.
        card: the network's card.
    """
    if hasattr(session, "get_provider_graph_assignment_info"):
        return _counted(
            (part.ep_name, node.op_type) for part in session.get_provider_graph_assignment_info() for node in part.get_nodes()
        )
    with tempfile.TemporaryDirectory() as folder:
        options = session_options(ort)
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(folder) / "nodes")
        profiled = opened(options)
        profiled.run(None, {"frames": np.zeros((1, *card.preprocessing.input_size, 3), card.preprocessing.input_dtype)})
        events = json.loads(Path(profiled.end_profiling()).read_text(encoding="utf-8"))
    told = (event.get("args", {}) for event in events if event.get("cat") == "Node")
    return _counted((args["provider"], args["op_name"]) for args in told if "provider" in args)


def require_nodes(found: dict[str, collections.Counter[str]], provider: str) -> None:
    """Refuse a session that leaves work to another provider than the one asked for.

    Args:
        found: from `nodes_by_provider`.
        provider: ONNX Runtime's name.

    Raises:
        BackendUnavailableError: with the kinds of nodes and where they went.
    """
    elsewhere = [
        f"{count} {kind} on {name}"
        for name, kinds in sorted(found.items())
        for kind, count in sorted(kinds.items())
        if name != provider and kind not in SHAPE_ARITHMETIC
    ]
    taken = sum(found.get(provider, collections.Counter()).values())
    if elsewhere or not taken:
        total = sum(sum(kinds.values()) for kinds in found.values())
        raise BackendUnavailableError(
            f"{provider} was granted, but took {taken} of {total} nodes and left to others: {', '.join(elsewhere) or 'all'}. "
            "Such a session is slow, and nobody chose how it computes. Try another ONNX Runtime or provider, or say --device cpu."
        )


def device_failure(error: Exception) -> FundusRtError:
    """What an exception out of ONNX Runtime on a GPU means.

    Its messages name the machine and paths; only the failure itself is repeated.
    """
    text = str(error)
    words = _own_words(error)
    if re.search(r"out of memory|Failed to allocate memory|ALLOC_FAILED|Available memory of", text, re.IGNORECASE):
        return DeviceMemoryError(
            f"the GPU's memory is not enough ({words}). Use a smaller --batch, close what else uses the GPU, or say --device cpu."
        )
    if "NOT_IMPLEMENTED" in text:
        return BackendUnavailableError(
            f"the provider lacks what the network needs ({words}); without cuDNN it has no convolutions"
        )
    return DeviceLostError(
        f"the GPU or its driver failed ({words}). Nothing of this batch was used. Open the model again; if it stays, look at "
        "`fundus-rt doctor` and the system's log (dmesg), and restart the machine."
    )


def plugin_library() -> Path:
    """The shared library of TensorRT for RTX' plug-in; importing its Python package also loads what that needs.

    Raises:
        ImportError, FileNotFoundError: the plug-in's wheel is not installed, or not whole.
    """
    return Path(importlib.import_module(PLUGIN_MODULE).get_library_path())


def _plugin_device(ort: Any, index: int) -> Any:
    """The GPU of TensorRT for RTX, after its library was registered once in this process."""

    def devices() -> list[Any]:
        return [device for device in ort.get_ep_devices() if device.ep_name == PLUGIN_PROVIDER]

    if not devices():
        ort.register_execution_provider_library(PLUGIN_PROVIDER, str(plugin_library()))
    found = devices()
    if index >= len(found):
        raise BackendUnavailableError(
            f"GPU {index} was asked for, and TensorRT for RTX offers {len(found)}, counted from 0. It takes GPUs of compute "
            "capability 8.6, 8.9, 12.0 and later."
        )
    return found[index]


def _counted(pairs: Iterator[tuple[str, str]]) -> dict[str, collections.Counter[str]]:
    found: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    for provider, kind in pairs:
        found[provider][kind] += 1
    return dict(found)


def _own_words(error: Exception) -> str:
    """The failure in a message of ONNX Runtime, without the machine's name, paths and source lines around it."""
    text = " ".join(str(error).split())
    exact = re.search(r"(CUDA|CUDNN|CUBLAS|CUFFT)\w* failure \d+: [^;]+|Failed to allocate memory for[^.;]*", text)
    if exact:
        return exact.group(0).strip()
    return re.sub(r"(?<![\w.])(?:~|[A-Za-z]:)?[\\/][\w.+@\\/~-]{3,}", "…", text)[:200] or type(error).__name__
