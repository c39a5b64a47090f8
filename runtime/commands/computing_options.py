"""Options of several commands that say what computes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

Command = TypeVar("Command", bound=Callable[..., Any])


def backend_and_device(command: Command) -> Command:
    """Add ``--backend`` and ``--device``."""
    command = click.option("--device", default="cpu", show_default=True, metavar="cpu|cuda:N")(command)
    return click.option(
        "--backend", type=click.Choice(["auto", "onnxruntime", "openvino", "tensorrt"]), default="auto", show_default=True
    )(command)  # fmt: skip


def memory_limit(command: Command) -> Command:
    """Add ``--memory-limit``, which holds from before anything else is done."""

    def limit(context: click.Context, parameter: click.Parameter, text: str | None) -> None:
        from fundus_rt.models.memory import bytes_from_text, limit_memory

        if text is not None:
            limit_memory(bytes_from_text(text))

    return click.option(
        "--memory-limit", metavar="SIZE", callback=limit, is_eager=True, expose_value=False,
        help="Stay in so much private memory, for example 512MB or 4GB, or say that it is not enough.  [default: none]",
    )(command)  # fmt: skip


def execution_provider(command: Command) -> Command:
    """Add ``--provider``."""
    return click.option(
        "--provider",
        type=click.Choice(["auto", "cpu", "cuda", "tensorrt", "tensorrt-rtx"]),
        default="auto",
        show_default=True,
        help="ONNX Runtime's execution provider; auto is the device's own.",
    )(command)
