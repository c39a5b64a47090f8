"""A TensorRT engine for this machine: found, its bytes checked, deserialised, and compared with its model card."""

from __future__ import annotations

import json
import shlex
import threading
from collections import deque
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from fundus_rt.models.artifacts import sha256_of_file
from fundus_rt.models.card import ModelCard, card_from_json
from fundus_rt.models.engine_cache import EngineCache
from fundus_rt.models.engine_files import EARLIER_VERSION, read_engine
from fundus_rt.models.engines import EngineKey, EngineProfile, EngineRecord
from fundus_rt.models.errors import (
    BackendUnavailableError,
    CardError,
    DeviceMemoryError,
    EngineError,
    EngineMissingError,
    EngineStaleError,
)
from fundus_rt.runtime.nvidia.machine import MachineIdentity
from fundus_rt.runtime.nvidia.tensorrt_library import TensorRTLibrary, import_tensorrt
from fundus_rt.runtime.session import ENGINE_SUFFIX

DTYPES = {
    "UINT8": "uint8",
    "FLOAT": "float32",
    "HALF": "float16",
    "INT32": "int32",
    "INT64": "int64",
    "INT8": "int8",
    "BOOL": "bool",
}
"""NumPy's names of TensorRT's types."""
TF32 = "tf32"
"""The flag of an engine whose products of float32 are rounded to 10 bits."""
INPUT = "frames"
RECEIPT = "receipt"


@dataclass
class Engine:
    """A deserialised engine with everything that must live as long as it does."""

    library: TensorRTLibrary
    record: EngineRecord
    card: ModelCard
    plan: Any
    """TensorRT's ``ICudaEngine``."""
    runtime: Any
    """TensorRT's ``Runtime``, which the plan needs until its end."""
    log: deque[str]
    """What TensorRT said last, warnings and errors."""
    batch: tuple[int, int]
    """Fewest and most pictures of one pass."""
    lock: threading.Lock = field(default_factory=threading.Lock)
    """Held while an execution context is made."""

    @property
    def outputs(self) -> list[str]:
        """Names of every output of the plan."""
        trt = self.library.module
        names = [self.plan.get_tensor_name(index) for index in range(self.plan.num_io_tensors)]
        return [name for name in names if self.plan.get_tensor_mode(name) == trt.TensorIOMode.OUTPUT]

    def context(self) -> Any:
        """A new execution context without memory of its own, see ``set_device_memory``.

        TensorRT for RTX finishes its kernels for the shape before the first pass, not beside later ones: a recorded CUDA graph
        would go on with the slower ones for ever.

        Raises:
            DeviceMemoryError, EngineError: TensorRT refuses.
        """
        with self.lock:
            made = self._made_context()
            if made is None:
                raise self.refusal("make an execution context")
            return made

    def close(self) -> None:
        """Let go of the plan, and then of what it needs. Every context is gone, and the GPU's own is current in this thread."""
        self.plan = None
        self.runtime = None

    def _made_context(self) -> Any:
        trt = self.library.module
        strategy = trt.ExecutionContextAllocationStrategy.USER_MANAGED
        if self.library.flavour == "tensorrt_rtx" and hasattr(trt, "DynamicShapesKernelSpecializationStrategy"):
            config = self.plan.create_runtime_config()
            config.set_execution_context_allocation_strategy(strategy)
            config.dynamic_shapes_kernel_specialization_strategy = trt.DynamicShapesKernelSpecializationStrategy.EAGER
            return self.plan.create_execution_context(config)
        return self.plan.create_execution_context(strategy)

    def refusal(self, what: str) -> DeviceMemoryError | EngineError:
        """The error for something that TensorRT did not do, with what it said."""
        return _refusal(self.library, self.log, what, self.card.name)


@dataclass(frozen=True)
class FoundEngine:
    """An engine's checked bytes, not yet deserialised."""

    name: str
    """Of the file that was asked for."""
    path: Path
    """Of the engine itself, where that is another."""
    content: bytes
    record: EngineRecord
    library: TensorRTLibrary
    warnings: tuple[str, ...] = ()
    """What every result has to say: that another engine came first and is damaged."""


def find_engine(path: Path, machine: MachineIdentity) -> FoundEngine:
    """Find the engine of a model for a machine. Nothing is ever built here, and the GPU is not touched.

    Of several in the cache an exact one comes before one that rounds products (TF32), then the last built one; one that is
    damaged is passed over, and that is said.

    Args:
        path: an ``.engine`` with its record beside it, or an ``.onnx`` whose engine lies in the cache.
        machine: the machine that it must have been built on.

    Raises:
        EngineMissingError: there is no engine of this model for this machine; with the command that builds it.
        EngineStaleError: there is one for another machine or library, or it is damaged; with the command.
        EngineError: the engine takes whole frames with their filters, which a session does not.
        BackendUnavailableError: TensorRT is missing.
    """
    return _read_file(path, machine) if path.suffix == ENGINE_SUFFIX else _read_cached(path, machine)


def open_engine(found: FoundEngine) -> Engine:
    """Deserialise an engine on the GPU whose context is current in this thread, and compare it with its card.

    Raises:
        DeviceMemoryError: the engine does not fit into the GPU's memory.
        EngineError: TensorRT cannot read it, or it is not what its card says.
    """
    library, record = found.library, found.record
    try:
        card = card_from_json(json.dumps(record.card), origin=f"the card of {found.name}")
    except CardError as error:
        raise EngineError(f"{error}\nBuild the engine again from the .onnx file.") from error
    log: deque[str] = deque(maxlen=20)
    runtime = library.module.Runtime(_logger(library.module, log))
    plan = runtime.deserialize_cuda_engine(found.content)
    if plan is None:
        raise _refusal(library, log, "read the engine", card.name)
    if problems := _contract_problems(plan, library.module, card):
        plan = runtime = None  # in this order; the error's traceback would keep them beyond the GPU's context
        listing = "\n".join(f"  - {problem}" for problem in problems)
        raise EngineError(f"{found.name}: engine and card disagree; convert the checkpoint and build again:\n{listing}")
    least, _, most = (list(shape) for shape in plan.get_tensor_profile_shape(INPUT, 0))
    return Engine(library, record, card, plan, runtime, log, (int(least[0]), int(most[0])))


def _read_file(path: Path, machine: MachineIdentity) -> FoundEngine:
    command = f"fundus-rt build MODEL.onnx --force -o {shlex.quote(str(path))}"
    try:
        content, record = read_engine(path)
    except EngineStaleError as error:
        raise EngineStaleError(f"{error}:\n  {command}") from error
    if record.key.profile.frame_height is not None:
        raise EngineError(
            f"{path.name} takes whole photographs together with their filters: it is for other programs, which compute the "
            "filters themselves. This one runs the engine of the network alone; build that from its model:\n"
            "  fundus-rt build MODEL.onnx"
        )
    library = import_tensorrt(record.key.flavour)
    differences = record.key.differences(_key_here(record.key, library, machine))
    if differences:
        raise EngineStaleError(
            f"{path.name} was built for something else ({', '.join(differences)}), and an engine is only valid where it was "
            f"built; build it here from its model:\n  {command}"
        )
    return FoundEngine(path.name, path, content, record, library)


def _read_cached(path: Path, machine: MachineIdentity) -> FoundEngine:
    command = f"fundus-rt build {shlex.quote(str(path))}"
    cache = EngineCache()
    differences: list[list[str]] = []
    damaged: list[tuple[EngineMissingError, str]] = []
    last_built_first = cache.entries(sha256_of_file(path))
    for record in sorted(last_built_first, key=lambda record: TF32 in record.key.flags):
        if record.key.profile.frame_height is not None:
            continue  # takes whole frames with their filters, for programs of other kinds
        try:
            library = import_tensorrt(record.key.flavour)
        except BackendUnavailableError:
            differences.append([f"{record.key.flavour} is not installed"])
            continue
        found = record.key.differences(_key_here(record.key, library, machine))
        if found:
            differences.append(found)
            continue
        try:
            engine = cache.path_of(record)
            content, record = read_engine(engine)
        except EngineMissingError as error:
            damaged.append((error, command + _options(record.key)))
            continue
        passed_over = (f"an engine of {path.name} was passed over for another one: {error}: {again}" for error, again in damaged)
        return FoundEngine(path.name, engine, content, record, library, tuple(passed_over))
    if damaged:
        first, again = damaged[0]
        raise type(first)(f"the engine of {path.name} cannot be used: {first}:\n  {again}") from first
    import_tensorrt()  # where it is missing, that comes first
    if differences:
        nearest = min(differences, key=len)
        said = ", ".join(nearest)
        raise EngineStaleError(f"the engine of {path.name} is for something else ({said}); build one that fits:\n  {command}")
    known = cache.why_unknown(sha256_of_file(path))
    if known == EARLIER_VERSION:
        raise EngineStaleError(f"the engine of {path.name} cannot be used: {known}; build it again:\n  {command}")
    raise EngineMissingError(f"there is no engine of {path.name} for this machine; build it once:\n  {command}")


def _options(key: EngineKey) -> str:
    """The options of ``fundus-rt build`` that an engine was built with, where they are not the usual ones."""
    stated = {"--batch": ",".join(map(str, key.profile.batch))} if key.profile.batch != EngineProfile().batch else {}
    for name, _, value in (flag.partition("=") for flag in key.flags):
        if name in (TF32, "optimisation-level"):
            stated[f"--{name}"] = value
    if key.flavour != "tensorrt":
        stated["--flavour"] = key.flavour
    return "".join(f" {' '.join((name, value)).rstrip()}" for name, value in stated.items())


def _key_here(key: EngineKey, library: TensorRTLibrary, machine: MachineIdentity) -> EngineKey:
    """The key that the engine would have if it were built here and now."""
    here = replace(key, flavour=library.flavour, tensorrt_version=library.version, compute_capability=machine.compute_capability)
    if not key.gpu_name:  # built for every GPU of a compute capability
        return here
    return replace(
        here,
        gpu_name=machine.gpu_name,
        cuda_driver=machine.cuda_driver,
        l4t=machine.l4t,
        multiprocessors=machine.multiprocessors,
        board=machine.board,
    )


def _contract_problems(plan: Any, trt: Any, card: ModelCard) -> list[str]:
    """What the engine's tensors and the card disagree in, as is asked of an ONNX file."""
    tensors = {plan.get_tensor_name(index): None for index in range(plan.num_io_tensors)}
    modes = {name: plan.get_tensor_mode(name) == trt.TensorIOMode.INPUT for name in tensors}
    shapes = {name: [int(size) for size in plan.get_tensor_shape(name)] for name in tensors}
    dtypes = {name: DTYPES.get(plan.get_tensor_dtype(name).name, plan.get_tensor_dtype(name).name) for name in tensors}
    inputs = [name for name, is_input in modes.items() if is_input]
    height, width = card.preprocessing.input_size
    problems = []
    if inputs != [INPUT]:
        problems.append(f"inputs are {sorted(inputs)}, expected one named '{INPUT}'")
    else:
        if dtypes[INPUT] != card.preprocessing.input_dtype:
            problems.append(f"input is {dtypes[INPUT]}, the card says {card.preprocessing.input_dtype}")
        if shapes[INPUT][1:] != [height, width, 3]:
            problems.append(f"input is {shapes[INPUT]}, the card says [N, {height}, {width}, 3]")
        if plan.num_optimization_profiles < 1:
            problems.append("it has no profile of batch sizes")
    wanted = {**{output.name: output.columns for output in card.outputs}, RECEIPT: height}
    for name, columns in wanted.items():
        if name not in tensors or modes[name]:
            problems.append(f"output {name!r} is missing")
        elif dtypes[name] != "float32" or len(shapes[name]) != 2 or shapes[name][1] not in (columns, -1):
            problems.append(f"output {name!r} is {dtypes[name]} {shapes[name]}, expected float32 [N, {columns}]")
    known = DTYPES.values()
    problems += [f"output {name!r} is {dtype}, a type that is not read" for name, dtype in dtypes.items() if dtype not in known]
    unstated = [output.name for output in card.outputs if output.activation is None]
    return problems + [f"the card does not say which activation output {name!r} still needs" for name in unstated]


def _logger(trt: Any, log: deque[str]) -> Any:
    """A logger of TensorRT's kind that keeps warnings and errors."""

    class Logger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, msg: str) -> None:
            if severity <= trt.ILogger.Severity.WARNING:
                log.append(msg)

    return Logger()


def _refusal(library: TensorRTLibrary, log: deque[str], what: str, name: str) -> DeviceMemoryError | EngineError:
    said = " ".join(" | ".join(list(log)[-3:]).split())[:600] or "it gave no reason"
    text = f"{library.flavour} {library.version} could not {what} of {name}: {said}"
    if any(words in said.lower() for words in ("out of memory", "outofmemory", "out_of_memory")):
        return DeviceMemoryError(
            f"{text}. End other programs that use the GPU, or build the engine for a smaller batch (--batch)."
        )
    return EngineError(f"{text}. Build the engine again on this machine with `fundus-rt build`.")
