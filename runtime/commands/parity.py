"""``fundus-rt parity``: a shipped file held against the checkpoint that it was made from, on photographs."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from fundus_rt.benchmarks.proof.parity import Parity
    from fundus_rt.benchmarks.proof.parity_evidence import Evidence


def _enough(context: click.Context, option: click.Parameter, count: int) -> int:
    """Refuse a reference that no certificate can be issued with."""
    from fundus_rt.models import references

    if count < references.LEAST_PHOTOGRAPHS:
        raise click.BadParameter(
            f"{count} is too few: a certificate needs {references.LEAST_PHOTOGRAPHS} photographs at least; with --no-reference "
            "none is written"
        )
    return count


@click.command(short_help="Hold a shipped file against its checkpoint on photographs.")
@click.argument("checkpoint", type=click.Path(path_type=Path), metavar="CHECKPOINT")
@click.argument("file", metavar="FILE")
@click.option("--card", metavar="NAME|FILE.json", help="The author's statement.  [default: the package's card of FILE's name]")
@click.option("--images", metavar="PATH", multiple=True, help="Photographs.  [default: the package's examples]")
@click.option("--list", "list_file", metavar="FILE.csv", help="Photographs in a column `file`; `eye` is used where it is there.")
@click.option(
    "--backend", type=click.Choice(["auto", "onnxruntime", "openvino", "tensorrt"]), default="auto", show_default=True,
    help="What runs FILE.",
)  # fmt: skip
@click.option("--device", default="cpu", show_default=True, metavar="cpu|cuda:N", help="Where FILE is computed.")
@click.option("--provider", default="auto", show_default=True, metavar="NAME", help="Of ONNX Runtime, as in `infer`.")
@click.option("--report", type=click.Path(path_type=Path, file_okay=False), metavar="DIR", help="Folder for the report.")
@click.option("--resume", is_flag=True, help="Go on with --report: no photograph is asked about twice.")
@click.option("--stages", type=click.IntRange(0), default=8, show_default=True, metavar="N",
              help="Photographs to look at stage by stage.")  # fmt: skip
@click.option("--locate", is_flag=True, help="On failure, find the first node of the graph that is wrong.")
@click.option("--no-explanation", is_flag=True, help="On failure, do not try which single mistake would give FILE's answers.")
@click.option("--no-reference", is_flag=True, help="Write no reference and no certificate beside FILE.")
@click.option("--reference-photographs", type=int, default=32, show_default=True, metavar="N", callback=_enough,
              help="Photographs in the reference at most, 8 or more.")  # fmt: skip
@click.option(
    "--architecture", metavar="timm/NAME|torchvision/NAME|MODULE:FUNCTION", help="The network, as it was said to `convert`."
)
@click.option("--trust-pickle", is_flag=True, help="Execute code that the checkpoint carries. Only for files you trust.")
@click.pass_context
def parity(
    context: click.Context,
    checkpoint: Path,
    file: str,
    card: str | None,
    images: tuple[str, ...],
    list_file: str | None,
    backend: str,
    device: str,
    provider: str,
    report: Path | None,
    resume: bool,
    stages: int,
    locate: bool,
    no_explanation: bool,
    no_reference: bool,
    reference_photographs: int,
    architecture: str | None,
    trust_pickle: bool,
) -> None:
    """Would any patient have had another answer?

    The original framework, with its author's own libraries, and FILE, with this package's runtime, answer the same photographs.
    FILE is an .onnx or .engine file of this package, or the name of a bundled model.

    Where they agree, FILE.reference is written beside FILE for `fundus-rt certify` on any device, and this device's certificate.
    The reference holds the PIXELS of up to --reference-photographs photographs: with your own photographs it is patient data.

    Exit status: 0 every photograph was answered alike; 1 not, or one could not be answered; 2 the call itself is wrong.
    """
    from fundus_rt.benchmarks.proof.parity import Feedback, ParityCall, hold_against
    from fundus_rt.benchmarks.proof.parity_certificate import require_room_for_reference
    from fundus_rt.benchmarks.proof.parity_evidence import Evidence, EvidenceOptions, evidence
    from fundus_rt.runtime.commands.convert import _say, _step

    if images and list_file:
        raise click.UsageError("give either --images or --list")
    call = ParityCall(
        checkpoint, file, card, list_file=list_file, backend=backend, device=device, provider=provider,
        architecture=architecture, trust_pickle=trust_pickle, report=report, resume=resume,
    )  # fmt: skip
    call = dataclasses.replace(call, images=images) if images else call
    if not no_reference:
        require_room_for_reference(file)
    feedback = Feedback(_say, _step, _photographs)
    try:
        found = hold_against(call, feedback)
    except KeyboardInterrupt:
        how = "with --resume it is gone on" if report else "with --report DIR and --resume it could be gone on"
        raise click.ClickException(f"interrupted; every finished row was written, {how}") from None
    more = Evidence()
    try:
        options = EvidenceOptions(stages, locate, not no_explanation, 0 if no_reference else reference_photographs)
        evidence(found, options, feedback, more)
    except BaseException as error:
        found.problems.append(f"the proof was broken off: {str(error) or type(error).__name__}")
        raise
    finally:
        with closing(found):
            _tell(found, more, report)
    if not found.passed:
        context.exit(1)


def _tell(found: Parity, more: Evidence, report: Path | None) -> None:
    """Print the comparison, and write its report."""
    from fundus_rt.benchmarks.proof.parity_document import document_from_parity
    from fundus_rt.benchmarks.proof.parity_words import lines

    for line in lines(found, more):
        click.echo(line)
    if report is not None:
        from fundus_rt.benchmarks.reports.report_files import write_report

        written = write_report(document_from_parity(found, more), report)
        click.echo(f"report: {written.html}")


@contextmanager
def _photographs(count: Callable[[], int]) -> Iterator[Callable[[int], None]]:
    """A progress bar with rate and time left on standard error, when that is a terminal."""
    if not sys.stderr.isatty():
        yield lambda done: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("Asking both sides"), BarColumn(), MofNCompleteColumn(), TextColumn("left"), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), speed_estimate_period=60) as progress:
        task = progress.add_task("photographs", total=count())
        yield lambda done: progress.update(task, completed=done)
