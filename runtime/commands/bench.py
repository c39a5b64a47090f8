"""``fundus-rt bench``: how fast models answer on this machine, and against other ways to compute the same answers."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from fundus_rt.runtime.commands.computing_options import backend_and_device


@click.command(short_help="Measure how fast models answer here, and against other ways.")
@click.argument("files", nargs=-1, required=True, metavar="FILE...")
@click.option(
    "--scenario", "scenarios", type=click.Choice(["single_stream", "offline", "server"]), multiple=True,
    help="MLPerf's scenarios; may be repeated.  [default: single_stream]",
)  # fmt: skip
@click.option(
    "--part", "parts", type=click.Choice(["bytes_to_result", "network_only"]), multiple=True,
    help="What is timed: from a file's bytes to the result, or the network on ready tensors.  [default: both]",
)  # fmt: skip
@click.option("--images", multiple=True, metavar="PATH", help="Photographs.  [default: the package's examples]")
@click.option("--seconds", type=click.FloatRange(0.0), default=10.0, show_default=True, help="Least duration of a scenario.")
@click.option("--samples", type=click.IntRange(1), default=400, show_default=True, help="Least number of answers of a scenario.")
@click.option("--threads", type=click.IntRange(1), metavar="N", help="Threads of one inference.  [default: all cores]")
@click.option("--rate", type=click.FloatRange(0.0, min_open=True), metavar="N", help="server: arrivals a second.")
@click.option(
    "--latency-bound-ms", type=click.FloatRange(0.0, min_open=True), metavar="MS",
    help="server: without --rate, search for the highest rate whose p99 stays below.",
)  # fmt: skip
@click.option(
    "--processes", type=click.IntRange(0), default=5, show_default=True, help="Fresh processes for cold start and memory."
)
@click.option("--no-check", is_flag=True, help="Do not ask the acquisition model, as in `infer`.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of arrivals and orders.")
@backend_and_device
@click.option("--against", type=click.Path(path_type=Path), metavar="CHECKPOINT", help="Compare with the original framework.")
@click.option("--card", metavar="NAME|FILE.json", help="The author's statement, as in `parity`.")
@click.option("--architecture", metavar="timm/NAME|torchvision/NAME|MODULE:FUNCTION", help="The network, as in `convert`.")
@click.option("--trust-pickle", is_flag=True, help="Execute code that the checkpoint carries. Only for files you trust.")
@click.option("--no-torch-compile", is_flag=True, help="Leave out torch.compile, which takes minutes to compile.")
@click.option("--report", type=click.Path(path_type=Path, file_okay=False), metavar="DIR", help="Folder for the report.")
@click.option("--keep", is_flag=True, help="Write the record to benchmarks/results, named by machine and versions.")
@click.pass_context
def bench(
    context: click.Context,
    files: tuple[str, ...],
    scenarios: tuple[str, ...],
    parts: tuple[str, ...],
    images: tuple[str, ...],
    seconds: float,
    samples: int,
    threads: int | None,
    rate: float | None,
    latency_bound_ms: float | None,
    processes: int,
    no_check: bool,
    seed: int,
    backend: str,
    device: str,
    against: Path | None,
    card: str | None,
    architecture: str | None,
    trust_pickle: bool,
    no_torch_compile: bool,
    report: Path | None,
    keep: bool,
) -> None:
    """Measure how fast FILEs answer: latency, throughput, start, memory, and what the machine did meanwhile.

    FILE is an .onnx or .engine file of this package, or the name of a bundled model. With --against, the original framework,
    ONNX Runtime and OpenVINO with their default settings, and every FILE on every installed backend take turns in one process;
    a way that answers otherwise than the original is listed as wrong and not timed.

    Percentiles come with 95 % bounds, and "too few samples" where those do not exist: p99 takes 368 answers.

    Exit status: 0 done; 1 interrupted (what was finished is shown and kept), or a way answered otherwise; 2 the call is wrong.
    """
    from fundus_rt.benchmarks.reports.report_files import prepare_report_folder
    from fundus_rt.benchmarks.speed.bench import measure
    from fundus_rt.benchmarks.speed.call import BenchCall, Feedback
    from fundus_rt.benchmarks.speed.own_ways import PARTS
    from fundus_rt.benchmarks.speed.scenarios import Length
    from fundus_rt.benchmarks.speed.shown import keep_record, show
    from fundus_rt.models.registry import EXAMPLE_FOLDER

    call = BenchCall(
        files, scenarios or ("single_stream",), parts or PARTS, images or (str(EXAMPLE_FOLDER),), backend, device, threads,
        not no_check, Length(seconds, samples), seed, rate, latency_bound_ms, processes, against, card, architecture,
        trust_pickle, not no_torch_compile,
    )  # fmt: skip
    if report is not None:
        prepare_report_folder(report)
    measured = measure(call, Feedback(_say, _step))
    show(measured)
    if report is not None:
        from fundus_rt.benchmarks.reports.report_files import write_report
        from fundus_rt.benchmarks.speed.bench_document import bench_document

        click.echo(f"report: {write_report(bench_document(measured), report).html}")
    if keep:
        click.echo(f"kept as {keep_record(measured, Path('benchmarks/results'))}")
    if measured.failure is not None:
        raise measured.failure
    if measured.interrupted:
        raise click.ClickException("interrupted; what was finished before is shown above")
    if any(way["problem"] for way in (measured.record["against"] or {}).get("wrong", [])):
        context.exit(1)


def _say(sentence: str) -> None:
    click.echo(sentence, err=True)


@contextmanager
def _step(description: str) -> Iterator[None]:
    """A spinner on standard error while a step runs, when that is a terminal."""
    if not sys.stderr.isatty():
        yield
        return
    from rich.console import Console

    with Console(stderr=True).status(description, refresh_per_second=2):
        yield
