"""What `fundus-rt build` refuses before it begins: places that must not be written, and options that would have no effect."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Sequence
from pathlib import Path

import click
from click.core import ParameterSource

NEEDS_ENGINE = {
    "batch": "--batch", "frames": "--frames", "device": "--device", "flavour": "--flavour", "workspace": "--workspace",
    "optimisation_level": "--optimisation-level", "tf32": "--tf32", "target": "--for-compute-capability", "log_path": "--log",
}  # fmt: skip
"""Options that say something about an engine, by the name of their parameter; an ONNX file that is written has none of it."""


def check_places(models: Sequence[Path], output: Path | None, log: Path | None, force: bool) -> None:
    """Refuse an output or a log that would replace a model, an engine or its record, or that cannot be written.

    Args:
        models: files that are read.
        output: engine or ONNX file that is to be written; None for the cache.
        log: file for what the library says; None for the cache.
        force: whether an output that is there may be replaced.

    Raises:
        UsageError: with what to say instead.
    """
    from fundus_rt.models.engine_files import record_path
    from fundus_rt.models.errors import UsageError

    if len(models) > 1 and (output or log):
        raise UsageError(f"-o and --log name one file, {len(models)} models were given; build them one by one, or leave both out")
    if output is not None:
        if output.suffix not in (".engine", ".onnx"):
            raise UsageError(f"-o is {output}, expected a name that ends in .engine, or in .onnx for the portable form")
        _require_place(output, "-o")
        if _is_one_of(output, models):
            raise UsageError(f"{output} is the model itself; name another file with -o")
        if output.exists() and not force:
            raise UsageError(f"{output} exists; remove it, or say --force to replace it")
        if _is_one_of(record_path(output), models):
            raise UsageError(f"the record of {output} would replace the model {record_path(output)}; name another file with -o")
    if log is not None:
        _require_place(log, "--log")
        if _is_one_of(log, models) or log.suffix in (".onnx", ".engine"):
            raise UsageError(
                f"--log would replace {log}, which is or is named like a model; name another file, such as build.log"
            )
        if output is not None and _is_one_of(log, (output, record_path(output))):
            raise UsageError(f"--log and -o would both write {log}; name another file with --log, such as build.log")


def check_options(context: click.Context, output: Path | None, target: str | None) -> None:
    """Refuse options that contradict each other, and those that would have no effect on what is written.

    Raises:
        UsageError: with the options that have to be left out.
    """
    from fundus_rt.models.errors import UsageError

    if target is not None and output is None:
        raise UsageError(
            "an engine for another machine does not belong into this machine's cache; name a file with -o FILE.engine"
        )
    given = [option for name, option in NEEDS_ENGINE.items() if _was_given(context, name)]
    if output is not None and output.suffix == ".onnx" and given:
        raise UsageError(
            f"with -o {output.name} an ONNX file is written and no engine is built, so {', '.join(given)} would have no effect; "
            "leave that out, or name an engine with -o FILE.engine"
        )
    if target is not None and _was_given(context, "device"):
        raise UsageError(
            "--device names a GPU of this machine and --for-compute-capability one of another; leave one of the two out"
        )


def _was_given(context: click.Context, name: str) -> bool:
    return context.get_parameter_source(name) not in (None, ParameterSource.DEFAULT, ParameterSource.DEFAULT_MAP)


def _require_place(path: Path, option: str) -> None:
    from fundus_rt.models.errors import UsageError

    if not path.parent.is_dir():
        raise UsageError(f"{option} is {path}: the folder {path.parent} does not exist; make it first")
    if path.is_dir():
        raise UsageError(f"{option} is {path}, which is a folder; name a file in it")


def _is_one_of(path: Path, others: Iterable[Path]) -> bool:
    """Whether two names are one file: the same place, or two names that the file system has for it."""
    for other in others:
        if path.resolve() == other.resolve():
            return True
        with contextlib.suppress(OSError):  # one of them does not exist
            if path.samefile(other):
                return True
    return False
