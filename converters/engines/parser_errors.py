"""The library's errors, rewritten into where, what and what to do; its own words are kept behind them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fundus_rt.converters.engines.engine_lint import lint_onnx
from fundus_rt.models.errors import BackendUnavailableError, DeviceMemoryError, EngineError, FundusRtError

_REMEDIES = {
    "MODEL_DESERIALIZE_FAILED": "the file is damaged or newer than this library; convert the checkpoint again",
    "INVALID_GRAPH": "the graph is not valid; convert the checkpoint again",
    "MEM_ALLOC_FAILED": "memory ran out while the graph was read; close other programs",
    "UNSUPPORTED_NODE_ATTR": "export the network without this attribute",
    "UNSUPPORTED_NODE_INPUT": "export the network with other inputs of this operator, constants where they are computed",
    "UNSUPPORTED_NODE_DATATYPE": "export the network with float32 or float16 numbers at this operator",
    "UNSUPPORTED_NODE_DYNAMIC": "export the network with fixed sizes at this operator",
    "UNSUPPORTED_NODE_SHAPE": "export the network with other shapes at this operator",
    "REFIT_FAILED": "build the engine again",
}
"""By the parser's error code, where the lint has nothing to say about the node."""
_OTHERWISE = "export the network without this operator, or report this with the log"
_NOISE = re.compile(r"catchCudaError|CUDA driver version is insufficient")
"""Lines that the library writes wherever there is no GPU; they are the cause of nothing else."""
_CAUSES: tuple[tuple[str, type[FundusRtError], str], ...] = (
    (
        r"out of memory|OutOfMemory|insufficient memory|memory allocation|std::bad_alloc",
        DeviceMemoryError,
        "memory ran out. Close other programs, add swap space on a Jetson, or say a smaller --workspace than {workspace} MiB",
    ),
    (
        r"[Cc]ould not find any implementation|within workspace limit",
        EngineError,
        "no kernel fits into the workspace of {workspace} MiB; say a larger --workspace, or another --optimisation-level",
    ),
    (
        r"SM \S+ is not supported|[Uu]nsupported SM|no kernel image",
        BackendUnavailableError,
        "this library does not support this GPU; install the TensorRT that NVIDIA lists for it",
    ),
)
"""What the library says when a build fails, and what it means."""


def parser_failure(errors: list[Any], model: Any, library: Any, log_path: Path) -> EngineError:
    """One error about everything that the parser refused.

    Args:
        errors: the parser's ``ParserError`` objects.
        model: the `onnx.ModelProto` that was parsed, for the names of nodes and for what the lint knows about them.
        library: which TensorRT parsed.
        log_path: where everything that it said is.
    """
    findings = {(finding.operator, finding.node): finding for finding in lint_onnx(model)}
    lines: dict[str, None] = {}
    for error in errors:
        operator, node = error.node_operator(), _node_name(error, model)
        finding = findings.get((operator, node))
        own = _own_words(error.desc())
        remedy = finding.remedy if finding else _REMEDIES.get(_code(error), _OTHERWISE)
        place = " ".join(part for part in (operator, repr(node) if node else "") if part) or "the file"
        problem = finding.problem if finding else own
        kept = f" (the parser: {own})" if finding else ""
        lines[f"  - {place}: {problem}; {remedy}{kept}"] = None
    if not lines:
        lines["  - the parser gives no reason; look into the log"] = None
    return EngineError(
        f"{library.flavour} {library.version} cannot read the network; its own words are in {log_path}:\n" + "\n".join(lines)
    )


def build_failure(errors: list[str], library: Any, workspace_bytes: int, log_path: Path) -> FundusRtError:
    """The error of a build that gave no engine.

    Args:
        errors: what the library called errors, in order.
        library: which TensorRT built.
        workspace_bytes: the limit that the build had.
        log_path: where everything that it said is.
    """
    for text in errors:
        found = re.search(r"Requested size was (\d+)", text)
        if found and int(found[1]) > workspace_bytes:
            needed = -(-int(found[1]) // 2**20)  # kernels are chosen up to the limit, so a larger one may ask for more
            return DeviceMemoryError(
                f"{library.flavour} {library.version} built no engine: at the largest sizes the network needs a workspace of "
                f"more than {needed} MiB and may take {workspace_bytes >> 20} MiB; say --workspace {2 * needed}, "
                f"or smaller sizes with --batch or --frames. Log: {log_path}"
            )
    telling = [text for text in errors if not _NOISE.search(text)] or errors
    own = "; ".join(_own_words(text) for text in telling[-3:]) or "it gives no reason"
    for pattern, kind, meaning in _CAUSES:
        if any(re.search(pattern, text) for text in telling):
            meaning = meaning.format(workspace=workspace_bytes >> 20)
            return kind(f"{library.flavour} {library.version} built no engine: {meaning} (the library: {own}). Log: {log_path}")
    return EngineError(
        f"{library.flavour} {library.version} built no engine: {own}. Everything it said is in {log_path}; report this with it"
    )


def start_failure(errors: list[str], library: Any, log_path: Path) -> BackendUnavailableError:
    """The error of a library that does not start, which TensorRT does not without a GPU and its driver."""
    own = "; ".join(_own_words(text) for text in errors[-2:]) or "it gives no reason"
    return BackendUnavailableError(
        f"{library.flavour} {library.version} does not start: {own}. TensorRT builds only where a GPU and its driver are: see "
        f"`fundus-rt doctor`. Log: {log_path}"
    )


def _node_name(error: Any, model: Any) -> str:
    """The name of the node that an error is about; its first output where it has none."""
    if error.node_name():
        return str(error.node_name())
    position = error.node()
    nodes = model.graph.node
    if 0 <= position < len(nodes) and nodes[position].op_type == error.node_operator() and nodes[position].output:
        return str(nodes[position].name or nodes[position].output[0])
    return ""


def _code(error: Any) -> str:
    return str(error.code()).rpartition(".")[2]


def _own_words(text: str) -> str:
    """The library's text on one line, without the condition in C++ that it begins with."""
    lines = [line for line in text.splitlines() if line.strip() and not _NOISE.search(line)]
    text = " ".join(" ".join(lines).split())
    if found := re.match(r"Assertion failed: .*?: (.+)", text):
        text = found[1]
    elif '&& "' in text:
        text = " ".join(_quoted(text))
    return "this operator is not supported" if text == "false" else text[:600]


def _quoted(text: str) -> Iterator[str]:
    """The strings behind the condition of a check: ``(a == "b") && "One " "sentence."``."""
    for found in re.finditer(r'"([^"]*)"', text[text.rindex('&& "') + 3 :]):
        yield found[1].strip()
