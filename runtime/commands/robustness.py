"""``fundus-rt robustness``: how a model's answers move when photographs get worse."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from fundus_rt.runtime.commands.computing_options import backend_and_device
from fundus_rt.runtime.commands.private_folder import private_folder

if TYPE_CHECKING:
    from fundus_rt.benchmarks.proof.original import OriginalModel
    from fundus_rt.benchmarks.reports.document import Picture
    from fundus_rt.benchmarks.robustness.plan import Plan
    from fundus_rt.models.card import ModelCard


@click.command(short_help="How answers move when photographs get worse.")
@click.argument("file", metavar="FILE|NAME")
@click.option("--images", multiple=True, metavar="PATH", help="Photographs.  [default: the package's examples]")
@click.option("--list", "list_file", metavar="FILE.csv", help="CSV with a file column and, optionally, an eye column.")
@click.option("--checkpoint", type=click.Path(path_type=Path), help="The published file: measure how parity moves as well.")
@click.option("--card", "card_name", metavar="NAME|FILE.json", help="The author's card of the checkpoint.  [default: the file's]")
@click.option("--architecture", metavar="NAME", help="The checkpoint's network, where file and card do not say it; see convert.")
@click.option("--trust-pickle", is_flag=True, help="Execute code that the checkpoint carries. Only for files you trust.")
@click.option("--severities", default="1,3,5", show_default=True, metavar="N,N,...", help="Of the degradations, 1 to 5.")
@click.option("--only", metavar="A,B,...", help="Of illumination, spots, blur, mixtures (blur+spots), shift, jpeg, pixel.")
@click.option("--pixels", type=click.IntRange(1, 10000), default=24, show_default=True, help="Places to change one pixel at.")
@click.option("--seed", type=click.IntRange(0, 2**31), default=0, show_default=True)
@click.option("--report", type=click.Path(path_type=Path, file_okay=False), metavar="DIR", help="Rows and report go here.")
@click.option("--resume", is_flag=True, help="Go on with the rows in --report.")
@backend_and_device
@click.pass_context
def robustness(
    context: click.Context,
    file: str,
    images: tuple[str, ...],
    list_file: str | None,
    checkpoint: Path | None,
    card_name: str | None,
    architecture: str | None,
    trust_pickle: bool,
    severities: str,
    only: str | None,
    pixels: int,
    seed: int,
    report: Path | None,
    resume: bool,
    backend: str,
    device: str,
) -> None:
    """Spoil photographs step by step and measure how the answers of FILE move.

    Uneven light, spots, blur and their mixtures at several severities; a shift by a few pixels, JPEG compression, one changed
    pixel. With --checkpoint, the original framework answers the same spoilt photographs.

    Exit status: 0 done, 1 some photographs could not be answered as they came, or the file left its checkpoint, 2 the call
    itself is wrong.
    """
    from fundus_rt.benchmarks.proof.photographs import cases, count_cases
    from fundus_rt.benchmarks.reports.report_files import prepare_report_folder, write_report
    from fundus_rt.benchmarks.robustness.answering import watch_for
    from fundus_rt.benchmarks.robustness.plan import plan_of
    from fundus_rt.benchmarks.robustness.robustness import ROWS, measure
    from fundus_rt.benchmarks.robustness.robustness_document import robustness_document, summary_lines, verdict
    from fundus_rt.models.registry import EXAMPLE_FOLDER
    from fundus_rt.runtime.pipeline import Pipeline

    _require_sense(images, list_file, checkpoint, card_name or architecture or trust_pickle, report, resume)
    plan = plan_of(only, severities, pixels, seed)
    paths = images or (() if list_file else (str(EXAMPLE_FOLDER),))
    if report:
        prepare_report_folder(report)
    with ExitStack() as stack:
        pipeline = Pipeline(file, backend, device)
        stack.callback(pipeline.close)
        watch = watch_for(pipeline, backend, device)
        if watch is not None:
            stack.callback(watch.close)
        original = _original(checkpoint, pipeline.card, card_name, architecture, trust_pickle) if checkpoint else None
        if original is not None:
            stack.callback(original.close)
        folder = report or stack.enter_context(private_folder())
        with _progress(lambda: count_cases(paths, list_file)) as show:
            measured = measure(cases(paths, list_file), pipeline, watch, original, plan, folder / ROWS, resume, show)
        page = None
        if report:  # before anything is printed: what a terminal cannot show must not cost the report
            pictures = _pictures(paths, list_file, plan)
            page = write_report(robustness_document(measured.summary, measured.rows, pipeline, original, pictures), report).html
        for line in summary_lines(measured.summary):
            click.echo(line)
        if page is not None:
            click.echo(f"report: {page}", err=True)
        judged = verdict(measured.summary)
        click.echo(judged.sentence, err=True)
    failed = measured.summary.failed
    if failed:
        click.echo(f"{failed} photograph(s) could not be answered as they came; their rows say why.", err=True)
    if failed or judged.passed is False:
        context.exit(1)


def _require_sense(
    images: tuple[str, ...],
    list_file: str | None,
    checkpoint: Path | None,
    of_it: object,
    report: Path | None,
    resume: bool,
) -> None:
    from fundus_rt.models.errors import UsageError

    if images and list_file:
        raise UsageError("give either --images PATH or --list FILE.csv, not both")
    if checkpoint is None and of_it:
        raise UsageError("--card, --architecture and --trust-pickle say what a --checkpoint is; name it, or leave them out")
    if checkpoint is not None and not checkpoint.exists():
        raise UsageError(f"checkpoint {checkpoint} does not exist; give a downloaded .pth, .h5 or .onnx file")
    if resume and report is None:
        raise UsageError("--resume goes on with the rows of a --report folder; name it")


def _original(
    checkpoint: Path, own: ModelCard, card_name: str | None, architecture: str | None, trust_pickle: bool
) -> OriginalModel:
    """The checkpoint in its own framework, on its author's card."""
    from fundus_rt.benchmarks.proof.author_card import author_card
    from fundus_rt.benchmarks.proof.original import OriginalModel

    author = author_card(own, card_name)
    for difference in author.differences:
        click.echo(f"The file's own card differs from {author.origin}: {difference}", err=True)
    return OriginalModel(checkpoint, author.card, architecture, trust_pickle, lambda sentence: click.echo(sentence, err=True))


def _pictures(paths: tuple[str, ...], list_file: str | None, plan: Plan) -> tuple[Picture, ...]:
    """Thumbnails of the first photograph that can be decoded, spoilt; none where there is no degradation to show."""
    from fundus_rt.benchmarks.proof.photographs import cases
    from fundus_rt.benchmarks.robustness.robustness_document import degradation_pictures
    from fundus_rt.models.errors import FundusRtError
    from fundus_rt.runtime.decode import decode

    for case in cases(paths, list_file) if plan.degradations else ():
        try:
            return degradation_pictures(Path(case.name).name, decode(case.content).frame, case.sha256, plan)
        except FundusRtError:  # its row says why
            continue
    return ()


@contextmanager
def _progress(total: Callable[[], int]) -> Iterator[Callable[[int], None]]:
    """A bar with the time left on standard error, when that is a terminal."""
    if not sys.stderr.isatty():
        yield lambda done: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("photographs"), BarColumn(), MofNCompleteColumn(), TextColumn("left"), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), speed_estimate_period=600) as progress:
        task = progress.add_task("photographs", total=total())
        yield lambda done: progress.update(task, completed=done)
