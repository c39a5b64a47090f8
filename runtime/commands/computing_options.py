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


def execution_provider(command: Command) -> Command:
    """Add ``--provider``."""
    return click.option(
        "--provider",
        type=click.Choice(["auto", "cpu", "cuda", "tensorrt", "tensorrt-rtx"]),
        default="auto",
        show_default=True,
        help="ONNX Runtime's execution provider; auto is the device's own.",
    )(command)
