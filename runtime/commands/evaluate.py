"""``fundus-rt evaluate``: how good a model is on labelled photographs."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fundus_rt.runtime.commands.computing_options import backend_and_device
from fundus_rt.runtime.commands.private_folder import private_folder

if TYPE_CHECKING:
    from fundus_rt.benchmarks.evaluation.evaluation import Evaluation

CANDIDATE_CHOICES = ("auto", "none", "all", "crop_mode", "interpolation", "color_order", "normalisation", "laterality")


@click.command(short_help="Measure a model on your labelled photographs.")
@click.argument("model", metavar="FILE")
@click.option("--labels", required=True, type=click.Path(path_type=Path), metavar="FILE.csv", help="A file column and the truth.")
@click.option(
    "--images", type=click.Path(path_type=Path), metavar="DIR", help="Folder of the files; default: that of the labels."
)
@click.option("--encoding", metavar="NAME", help="Of the text of the labels, such as cp1252; default: UTF-8.")
@click.option("--output-name", "names", multiple=True, metavar="NAME", help="Output to measure; default: all with a column.")
@click.option("--column", metavar="NAME", help="Column with the truth, where it is not called as the output.")
@click.option("--label-means", "meanings", multiple=True, metavar="WORD=LABEL", help="A word of the labels and the card's label.")
@click.option("--by", multiple=True, metavar="COLUMN", help="Also report by this column.")
@click.option(
    "--claim", "--claims", "claims", multiple=True, metavar="NAME=VALUE", help="A published figure: mae=2.39, auc=0.971."
)
@click.option("--sensitivity", type=click.FloatRange(0, 1, True, True), help="Choose operating points that reach it.")
@click.option(
    "--aim", type=click.Choice(["bound", "estimate"]), default="bound", show_default=True,
    help="What has to reach it: the lower end of the exact interval, or the share itself.",
)  # fmt: skip
@click.option("--referable", metavar="LABEL", help="Of grades: also measure this one or worse against the rest.")
@click.option("--write-card", type=click.Path(path_type=Path), metavar="FILE.json", help="New card with the operating points.")
@click.option("--write-onnx", type=click.Path(path_type=Path), metavar="FILE.onnx", help="The same network with that card.")
@click.option(
    "--candidates", multiple=True, default=("auto",), type=click.Choice(CANDIDATE_CHOICES), show_default=True,
    help="Preprocessings to compare; auto: of what the card assumes.",
)  # fmt: skip
@click.option("--candidate-photographs", type=click.IntRange(1), default=1000, show_default=True, help="At most, for those.")
@backend_and_device
@click.option("--mirrored-by-source", is_flag=True, help="The source hands out mirrored pictures.")
@click.option("--no-check", is_flag=True, help="Do not ask the acquisition model where the eye does not matter.")
@click.option(
    "--batch", type=click.IntRange(1, 256), default=1, show_default=True, metavar="N", help="Pictures in one inference."
)
@click.option("--report", type=click.Path(path_type=Path), metavar="DIR", help="Page, CSV and JSON; answers are kept there.")
@click.option("--resume", is_flag=True, help="Go on with the answers in the --report folder.")
@click.pass_context
def evaluate(context: click.Context, /, model: str, report: Path | None, resume: bool, **call: Any) -> None:
    """Measure FILE, an .onnx or the name of a bundled model, on photographs whose truth is known.

    Exit status: 0 measured; 1 measured, but photographs could not be answered, truths were not understood, or a claim
    is not shown to hold; 2 the call is wrong.
    """
    from fundus_rt.benchmarks.evaluation.claims import SHOWN
    from fundus_rt.benchmarks.evaluation.evaluation_document import evaluation_document
    from fundus_rt.benchmarks.reports.report_files import prepare_report_folder, write_report

    if resume and report is None:
        raise click.UsageError("--resume goes on with the answers of a --report DIR; name it")
    if call["sensitivity"] is None and (call["write_card"] or call["write_onnx"]):
        raise click.UsageError("a new card holds an operating point: say which sensitivity it has to reach, --sensitivity 0.95")
    with ExitStack() as stack:
        if report is not None:
            prepare_report_folder(report)
        folder = report or stack.enter_context(private_folder())
        with _interruptible(report is not None):
            evaluation = _evaluated(stack, model, folder, resume, call)
        files = None
        if report is not None:  # before anything is printed: what a terminal cannot show must not cost the report
            with _progress("writing the report", 1) as show:
                files = write_report(evaluation_document(evaluation), report)
                show(1)
        for line in _summary(evaluation):
            _echo(line)
        if files is not None:
            _echo(f"Report: {files.html}")
        _write_new_card(evaluation, model, call["write_card"], call["write_onnx"])
    misread = any(misread.count for misread in evaluation.answered.table.misread)
    if misread or evaluation.answered.unanswered or any(claim.verdict not in SHOWN for claim in evaluation.claims):
        context.exit(1)


def _evaluated(stack: ExitStack, model: str, folder: Path, resume: bool, call: dict[str, Any]) -> Evaluation:
    from fundus_rt.benchmarks.evaluation.claims import claim_from_text
    from fundus_rt.benchmarks.evaluation.evaluation import EvaluationOptions, answered_photographs, evaluate, require_sense
    from fundus_rt.benchmarks.evaluation.labels import LabelOptions, read_labels
    from fundus_rt.benchmarks.evaluation.new_card import require_new
    from fundus_rt.benchmarks.extras import require_proof
    from fundus_rt.runtime.pipeline import Pipeline
    from fundus_rt.runtime.session import usable_cores

    for module in ("scipy.stats", "sklearn.metrics"):
        require_proof(module)  # a missing one is said now, not after hours of answering
    for path, suffix in ((call["write_card"], ".json"), (call["write_onnx"], ".onnx")):
        if path is not None:
            require_new(path, suffix)
    options = EvaluationOptions(
        call["sensitivity"], call["aim"], call["referable"], claims=tuple(claim_from_text(text) for text in call["claims"]),
        new_card=bool(call["write_card"] or call["write_onnx"]),
    )  # fmt: skip
    meanings = _meanings(call["meanings"])
    reading = LabelOptions(call["images"], call["names"], call["column"], meanings, call["by"], call["encoding"])
    workers = usable_cores()
    pipeline = Pipeline(model, call["backend"], call["device"], max(1, usable_cores() // workers), not call["no_check"])
    stack.callback(pipeline.close)
    table = read_labels(call["labels"], pipeline.card, reading)
    for doubt in table.file.doubts:
        click.echo(f"{table.path.name}: {doubt}", err=True)
    require_sense(options, table)
    mirrored = call["mirrored_by_source"]
    answered = answered_photographs(pipeline, table, folder, resume, workers, call["batch"], mirrored, _progress)
    evaluation = evaluate(pipeline, answered, options, _progress)
    _compare_preprocessings(evaluation, model, folder, call)
    return evaluation


def _compare_preprocessings(evaluation: Evaluation, model: str, folder: Path, call: dict[str, Any]) -> None:
    """Which preprocessing the labels support: of what the card assumes, or of what the call names."""
    from fundus_rt.benchmarks.evaluation.candidates import FIELDS, assumed_fields
    from fundus_rt.benchmarks.evaluation.preprocessing_trial import PreprocessingTrial
    from fundus_rt.models.errors import FundusRtError

    chosen = set(call["candidates"])
    automatic = chosen == {"auto"}
    assumed = assumed_fields(evaluation.pipeline.card)
    wanted = {*(FIELDS if "all" in chosen else ()), *(assumed if "auto" in chosen else ()), *(chosen & set(FIELDS))}
    if not wanted or "none" in chosen:
        return
    first = next(iter(evaluation.results))
    place = [question.output.name for question in evaluation.answered.table.questions].index(first)
    try:
        trial = PreprocessingTrial(
            evaluation.pipeline, model, evaluation.answered, place, folder, call["candidate_photographs"], _progress,
            call["mirrored_by_source"],
        )  # fmt: skip
        evaluation.search_notes = trial.notes
        evaluation.search = trial.search([name for name in FIELDS if name in wanted])
    except FundusRtError as error:  # nobody asked for it, and the figures are measured already
        if not automatic:
            raise
        said = f"the card assumes its preprocessing, but candidates could not be compared: {error}"
        evaluation.search_notes = [*evaluation.search_notes, said]


def _write_new_card(evaluation: Evaluation, model: str, card_path: Path | None, onnx_path: Path | None) -> None:
    """The card with the chosen operating points, in a file of its own and in a copy of the network."""
    from fundus_rt.benchmarks.evaluation.new_card import with_operating_points, write_card, write_onnx
    from fundus_rt.benchmarks.evaluation.operating_points import OperatingPoint
    from fundus_rt.models.errors import UsageError
    from fundus_rt.runtime.session import resolve_model

    if card_path is None and onnx_path is None:
        return
    points, reasons = {}, []
    for name, result in evaluation.results.items():
        for question, point in result.points.items():
            if isinstance(point, str):
                reasons.append(point)
            elif isinstance(point, OperatingPoint) and question == name:
                points[name] = point
    if not points and reasons:
        raise UsageError(f"no new card was written: {'; '.join(reasons)}")
    card = with_operating_points(evaluation.pipeline.card, points)
    if card_path is not None:
        write_card(card, card_path)
        click.echo(f"New card: {card_path}")
    if onnx_path is not None:
        write_onnx(resolve_model(model), card, onnx_path)
        click.echo(f"New file: {onnx_path}. Certificates of the old one do not count for it.")


def _echo(line: str) -> None:
    """Print a line; a letter that the terminal's encoding lacks becomes a question mark."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    click.echo(line.encode(encoding, "replace").decode(encoding))


def _summary(evaluation: Evaluation) -> Iterator[str]:
    """What the terminal shows."""
    from fundus_rt.benchmarks.evaluation.summary import summary_lines

    return summary_lines(evaluation)


def _meanings(texts: tuple[str, ...]) -> dict[str, str]:
    found = {}
    for text in texts:
        word, equals, label = text.partition("=")
        if not (word.strip() and equals and label.strip()):
            raise click.UsageError(f"--label-means takes WORD=LABEL, got {text!r}")
        found[word.strip()] = label.strip()
    return found


@contextmanager
def _interruptible(kept: bool) -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        how = "every finished answer was written; --resume goes on" if kept else "with --report DIR, --resume could go on"
        raise click.ClickException(f"interrupted; {how}") from None


@contextmanager
def _progress(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """A bar with the time left on standard error, when that is a terminal."""
    if not sys.stderr.isatty():
        yield lambda done: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("left"), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), speed_estimate_period=30, transient=True) as bar:
        task = bar.add_task(what, total=total)
        yield lambda done: bar.update(task, completed=done)
