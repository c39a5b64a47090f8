"""``fundus-rt quantize``: a float32 file becomes one of lower precision whose answers stay within the card's budget."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import click


@click.command(short_help="Turn an .onnx file into one of lower precision, within its budget.")
@click.argument("file", type=click.Path(path_type=Path), metavar="FILE.onnx")
@click.option("--precision", required=True, metavar="int8|fp16|mixed|RECIPE.json", help="What to make, or a recipe.")
@click.option("--images", multiple=True, metavar="PATH", help="Photographs.  [default: the package's examples]")
@click.option("-o", "--output", type=click.Path(path_type=Path), metavar="OUT.onnx", help="Default: FILE.PRECISION.onnx.")
@click.option(
    "--backend", type=click.Choice(["onnxruntime", "openvino", "tensorrt"]),
    help="Where it shall run: written so that its layers of int8 fuse there, and measured there (TensorRT: judged on ONNX "
    "Runtime, not timed).  [default: onnxruntime, or the recipe's]",
)  # fmt: skip
@click.option(
    "--calibration", type=click.Choice(["max", "percentile", "least-squares"]), default="max", show_default=True,
    help="How the range of an activation is found.",
)  # fmt: skip
@click.option(
    "--tolerance", type=click.FloatRange(0, min_open=True), help="Largest difference that passes.  [default: the card's budget]"
)
@click.option(
    "--weight-bits", type=click.Choice(["7", "8"]),
    help="Of weights in int8. OpenVINO adds up exactly on a processor without VNNI where they have 7.  [default: what this "
    "processor needs, or the recipe's]",
)  # fmt: skip
@click.option("--whole", is_flag=True, help="Everything that can be in the precision, without a search.")
def quantize(
    file: Path,
    precision: str,
    images: tuple[str, ...],
    output: Path | None,
    backend: str | None,
    calibration: str,
    tolerance: float | None,
    weight_bits: str | None,
    whole: bool,
) -> None:
    """Write FILE.onnx in lower precision: layers of int8 with Q/DQ pairs as ONNX Runtime, OpenVINO or TensorRT need, or fp16.

    Half of the photographs give the ranges, the others judge: piece by piece of the network, the fastest set of pieces is
    searched whose answers stay within the tolerance and change no decision. Results of trials are kept in OUT.trials.jsonl, and
    a second call goes on with them. OUT.recipe.json makes the same file again.

    int8 is measured on the backend, and a recipe can be written for another one with --backend; fp16 is judged by an emulation,
    for a processor computes it in float32. mixed, for TensorRT, is int8 where that stays within the tolerance and fp16 where it
    does not.

    Exit status: 0 written; 1 nothing stays within the tolerance, is faster, or ran in int8; 2 the call itself is wrong.
    """
    from fundus_rt.benchmarks.precision.quantisation import PRECISIONS, Progress, QuantiseCall, lines, quantise
    from fundus_rt.converters.precision.int8_graph import LEVELS
    from fundus_rt.models.registry import EXAMPLE_FOLDER
    from fundus_rt.runtime.commands.convert import _step
    from fundus_rt.runtime.device_kind import LARGEST_WEIGHT_IN_16

    kind = precision if precision in PRECISIONS else Path(precision).name.split(".")[0]
    target = output or file.with_suffix(f".{kind}.onnx")
    levels = None if weight_bits is None else LARGEST_WEIGHT_IN_16 if weight_bits == "7" else LEVELS
    photographs = images or (str(EXAMPLE_FOLDER),)
    call = QuantiseCall(file, precision, target, photographs, backend, calibration, tolerance, whole, levels)
    with _trials() as show:
        try:
            made = quantise(call, Progress(_step, show))
        except KeyboardInterrupt:
            raise click.ClickException("interrupted; every finished trial is kept, the same call goes on with them") from None
    for line in lines(made):
        click.echo(line)


@contextmanager
def _trials() -> Iterator[Callable[[str, int, int], None]]:
    """A bar over trials with the time left on standard error, when that is a terminal."""
    if not sys.stderr.isatty():
        yield lambda what, done, most: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("left"), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), speed_estimate_period=600) as progress:
        tasks: list[int] = []

        def show(what: str, done: int, most: int) -> None:
            if not tasks:
                tasks.append(progress.add_task(what, total=most))
            progress.update(tasks[0], description=what[-60:], completed=done)  # type: ignore[arg-type]

        yield show
