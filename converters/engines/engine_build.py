"""A shipped ONNX file becomes a TensorRT engine: linted, parsed, built with a line of progress, and recorded.

One code path for TensorRT 10 and 11 and for TensorRT-RTX: the network is strongly typed, so precision is what the graph says
and no flag changes it. The engine is the plain plan that every tool of TensorRT reads.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from fundus_rt.converters.engines.build_log import BuildLog, library_logger
from fundus_rt.converters.engines.engine_facts import card_of, import_onnx, precision_of
from fundus_rt.converters.engines.engine_lint import LINTED_VERSION, lint_onnx
from fundus_rt.converters.engines.engine_progress import (
    HEARTBEAT_SECONDS,
    BuildProgress,
    ProgressTracker,
    progress_monitor,
    run_watched,
)
from fundus_rt.converters.engines.engine_shapes import FRAME, Shapes, shapes_of
from fundus_rt.converters.engines.parser_errors import build_failure, parser_failure, start_failure
from fundus_rt.converters.engines.target import name_target
from fundus_rt.converters.engines.timing_cache import keep_timing_cache, use_timing_cache
from fundus_rt.models.card import ModelCard, card_from_json
from fundus_rt.models.engines import EngineKey, EngineProfile, EngineRecord
from fundus_rt.models.errors import EngineError
from fundus_rt.models.onnx_scan import read_onnx

Say = Callable[[str], None]


class Library(Protocol):
    """NVIDIA's library, as `fundus_rt.runtime.nvidia.tensorrt_library.TensorRTLibrary` describes it."""

    @property
    def module(self) -> Any:
        """The Python module."""
        ...

    @property
    def flavour(self) -> str:
        """``tensorrt`` or ``tensorrt_rtx``."""
        ...

    @property
    def version(self) -> str:
        """In full."""
        ...


@dataclass(frozen=True)
class BuildOptions:
    """What a build may do; what of it changes the engine is in the key as well, see `flags_of`."""

    workspace_bytes: int
    """Most memory for trying out kernels, see `workspace_limit`."""
    optimisation_level: int | None = None
    """0 (fast build) to 5 (fast engine); None for the library's own, 3."""
    tf32: bool = False
    """Whether products of float32 may be rounded to 10 bits of mantissa on the way (TF32). Off unless asked for."""
    target: str | None = None
    """Compute capability of another machine's GPU that the engine is for, ``8.6``; TensorRT-RTX only."""
    timing_cache: Path | None = None
    """File with what earlier builds measured; made when missing."""
    heartbeat_seconds: float = HEARTBEAT_SECONDS
    """A line of progress at least this often."""

    def __post_init__(self) -> None:
        if self.optimisation_level is not None and not 0 <= self.optimisation_level <= 5:
            raise EngineError(f"got the optimisation level {self.optimisation_level}, expected 0 to 5")


def flags_of(options: BuildOptions, profile: EngineProfile, head_format: int | None = None) -> tuple[str, ...]:
    """What changes the engine beside its profile, sorted, for its key; empty for a build as it is by default.

    An engine that takes whole frames has the version of its frame head among its flags. The workspace is left out: it follows
    the memory that happens to be free, and decides only which kernels are tried.

    Args:
        options: what the build may do.
        profile: the sizes that the engine takes.
        head_format: version of the frame head that the file has itself (`head_format_in_file`); None where the head of this
            package is put before it.
    """
    from fundus_rt.converters.engines.frame_head import FRAME_HEAD_FORMAT

    flags = [] if profile.frame_height is None else [f"frame-head={head_format or FRAME_HEAD_FORMAT}"]
    if options.optimisation_level is not None:
        flags.append(f"optimisation-level={options.optimisation_level}")
    if options.target is not None:
        flags.append(f"target={options.target}")
    if options.tf32:
        flags.append("tf32")
    return tuple(sorted(flags))


def engine_from_onnx(
    onnx_path: Path,
    engine_path: Path,
    library: Library,
    key: EngineKey,
    options: BuildOptions,
    say: Say,
    log_path: Path,
    show: Callable[[BuildProgress], None] | None = None,
) -> EngineRecord:
    """Build an engine and write its bytes.

    Where the key's profile names frame sizes and the graph takes the network's own input, the portable frame head is put
    before it (`fundus_rt.converters.engines.frame_head`). Ctrl-C stops the library at its next step; nothing is left behind
    but the log and the timing cache.

    Args:
        onnx_path: a file written by this package.
        engine_path: where the plan goes; the caller makes the write atomic.
        library: which TensorRT builds.
        key: what the engine is for; the SHA-256 in it is that of the file.
        options: what the build may do.
        say: gets lines for a person.
        log_path: gets everything that the library says; begun anew.
        show: gets the progress several times a second, for a line on a terminal.

    Returns:
        What is known of the engine.

    Raises:
        EngineError: the graph cannot be built, or the file is not the one that the key names; the message says what to do.
        ModelFileError: the file carries no model card, or has weights in another file.
        BackendUnavailableError: the library cannot build for the target.
        DeviceMemoryError: the library ran out of memory.
        KeyboardInterrupt: after Ctrl-C.
    """
    content, digest = read_onnx(onnx_path)
    if digest != key.onnx_sha256:
        raise EngineError(f"{onnx_path.name} is not the file that was asked for: it changed meanwhile; build again")
    onnx = import_onnx()
    try:
        model = onnx.load_model_from_string(content)
    except Exception as error:  # protobuf's own classes
        raise EngineError(
            f"{onnx_path.name} is not an ONNX file ({type(error).__name__}); convert the checkpoint again"
        ) from error
    card = card_of(model, onnx_path.name)
    head_is_inside = FRAME in {value.name for value in model.graph.input}
    if head_is_inside or key.profile.frame_height is not None:
        _require_exact_products(model, card, onnx_path.name, options)
    if key.profile.frame_height is not None and not head_is_inside:
        model = _with_head(model, card, onnx_path.name)
        content = model.SerializeToString()
    _lint(model, library, onnx_path.name, say)
    shapes = shapes_of(model, key.profile)
    precision = precision_of(model)
    say(_headline(card, precision, library, options, shapes, log_path))
    log = BuildLog(log_path)
    tracker = ProgressTracker()
    begin = time.monotonic()
    work = _work(library, [content], engine_path, shapes, options, tracker, log, say)
    del model, content  # on a small machine the library needs their room
    try:
        sha256, size = run_watched(work, tracker, say, show, options.heartbeat_seconds)
    finally:
        log.close()
    return EngineRecord(
        key=key,
        engine_sha256=sha256,
        engine_bytes=size,
        card=card,
        precision=precision,
        built_at=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        build_seconds=round(time.monotonic() - begin, 1),
    )


def _require_exact_products(model: Any, card: dict[str, Any], name: str, options: BuildOptions) -> None:
    """Refuse products that may be rounded where a filter of the frame head needs them exact, whoever put the head there.

    Raises:
        EngineError: products may be rounded (TF32), and the author's filter is then no longer what its library computes.
    """
    from fundus_rt.converters.engines.frame_head import FULL_FLOAT32, head_facts

    facts = head_facts(model, name) or {}
    filters = (facts.get("interpolation"), _parsed(card, name).preprocessing.interpolation)
    inexact = [used for used in filters if used in FULL_FLOAT32]
    if not inexact and facts.get("tf32_is_exact") is False:
        inexact = ["of the frame head"]
    if options.tf32 and inexact:
        remedy = "leave out --tf32" if facts else "leave out --tf32, or --frames"
        raise EngineError(f"the filter {inexact[0]} inside an engine needs products in full float32; {remedy}")


def _with_head(model: Any, card: dict[str, Any], name: str) -> Any:
    """The graph with the portable frame head before it."""
    from fundus_rt.converters.engines.frame_head import with_frame_head

    return with_frame_head(model, _parsed(card, name))


def _parsed(card: dict[str, Any], name: str) -> ModelCard:
    return card_from_json(json.dumps(card), origin=f"the card in {name}")


def _lint(model: Any, library: Library, name: str, say: Say) -> None:
    """Say what TensorRT 10.3 would refuse; where that or an older one builds, it is an error that lists everything at once."""
    findings = lint_onnx(model)
    refused = "\n".join(f"  - {finding.line()}" for finding in findings if finding.refused)
    doubtful = "\n".join(f"  - {finding.line()}" for finding in findings if not finding.refused)
    if refused and library.flavour == "tensorrt" and _version_pair(library.version) <= LINTED_VERSION:
        raise EngineError(f"{name} cannot become an engine of TensorRT {library.version}:\n{refused}")
    shown = ".".join(map(str, LINTED_VERSION))
    if refused:
        say(f"TensorRT {shown} (JetPack 6) would refuse {name}; {library.flavour} {library.version} may take it:\n{refused}")
    if doubtful:
        say(f"doubtful in {name} where TensorRT {shown} (JetPack 6) is to read it:\n{doubtful}")


def _version_pair(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")[:2] if part.isdigit())


def _headline(card: dict[str, Any], precision: str, library: Library, options: BuildOptions, shapes: Shapes, log: Path) -> str:
    """What is about to be done, so that a log of the terminal tells what an engine is."""
    names = {"tensorrt": "TensorRT", "tensorrt_rtx": "TensorRT-RTX"}
    level = "the library's own optimisation level" if options.optimisation_level is None else (
        f"optimisation level {options.optimisation_level}"
    )  # fmt: skip
    sizes = "; ".join(f"{name} {' / '.join('x'.join(map(str, shape)) for shape in limits)}" for name, limits in shapes.items())
    return (
        f"building an engine of {card.get('name', 'a model')} with {names.get(library.flavour, library.flavour)} "
        f"{library.version}: {precision}, TF32 {'on' if options.tf32 else 'off'}, {level}, workspace at most "
        f"{options.workspace_bytes / 2**20:.0f} MiB; {sizes or 'every size fixed'}. All that the library says goes to {log}"
    )


def _work(
    library: Library,
    graphs: list[bytes],
    engine_path: Path,
    shapes: Shapes,
    options: BuildOptions,
    tracker: ProgressTracker,
    log: BuildLog,
    say: Say,
) -> Callable[[], tuple[str, int]]:
    """The library's part, to be run in a thread of its own; it takes the graph out of the list and writes the plan.

    Returns:
        A function that gives the SHA-256 and the size of what it wrote.
    """

    def work() -> tuple[str, int]:
        trt = library.module
        logger = library_logger(trt, log)
        builder: Any = None
        network: Any = None
        parser: Any = None
        config: Any = None
        plan: Any = None
        try:
            builder = _builder(trt, logger, library, log)
            network = builder.create_network(_typed(trt))
            parser = trt.OnnxParser(network, logger)  # holds the weights until the build is done
            _parse(parser, graphs.pop(), library, log)
            config = _configured(builder, trt, shapes, options)
            config.progress_monitor = progress_monitor(trt, tracker)
            reused = use_timing_cache(config, options.timing_cache, log, say)
            log.write("INFO", f"fundus-rt: the timing cache is {'that of earlier builds' if reused else 'empty'}")
            name_target(config, library, options.target, say)
            plan = None if tracker.cancelled else builder.build_serialized_network(network, config)
            keep_timing_cache(config, options.timing_cache, say)
            if tracker.cancelled:
                raise EngineError("the build was stopped; nothing was kept but what was measured")
            if plan is None:
                raise build_failure(log.errors, library, options.workspace_bytes, log.path)
            engine_path.write_bytes(plan)
            return hashlib.sha256(plan).hexdigest(), plan.nbytes
        finally:  # an error keeps this frame alive, and with it the library's threads: let go of its objects, last made first
            plan = config = parser = network = builder = None

    return work


def _builder(trt: Any, logger: Any, library: Library, log: BuildLog) -> Any:
    """The library's builder, with NVIDIA's own plug-ins, as which it reads some operators.

    Raises:
        BackendUnavailableError: the library does not start.
    """
    try:
        builder = trt.Builder(logger)
    except TypeError as error:  # what the bindings make of a library that gives no builder
        raise start_failure(log.errors, library, log.path) from error
    if hasattr(trt, "init_libnvinfer_plugins"):
        trt.init_libnvinfer_plugins(logger, "")
    return builder


def _parse(parser: Any, graph: bytes, library: Library, log: BuildLog) -> None:
    if not parser.parse(graph):
        model = import_onnx().load_model_from_string(graph)
        raise parser_failure([parser.get_error(index) for index in range(parser.num_errors)], model, library, log.path)


def _typed(trt: Any) -> int:
    """Flags of a strongly typed network: asked for on TensorRT 10, the only kind on 11."""
    flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    return 0 if flag is None else 1 << int(flag)


def _configured(builder: Any, trt: Any, shapes: Shapes, options: BuildOptions) -> Any:
    """The build's configuration, without what only one flavour knows.

    Raises:
        EngineError: the library refuses the profile.
    """
    config = builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_bytes)
    if options.tf32:
        config.set_flag(trt.BuilderFlag.TF32)
    else:
        config.clear_flag(trt.BuilderFlag.TF32)  # the library has it on by default
    if options.optimisation_level is not None:
        config.builder_optimization_level = options.optimisation_level
    if shapes:
        profile = builder.create_optimization_profile()
        for name, limits in shapes.items():
            profile.set_shape(name, *limits)
        if config.add_optimization_profile(profile) < 0:
            raise EngineError(f"the library refuses the sizes {shapes}; say others with --batch or --frames")
    return config
