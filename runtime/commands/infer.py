"""``fundus-rt infer``: answers for photographs."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fundus_rt.runtime.commands.computing_options import backend_and_device, execution_provider, memory_limit
from fundus_rt.runtime.commands.infer_camera import WatchOptions, answer_camera, camera_options, require_camera_sense

if TYPE_CHECKING:
    from fundus_rt.runtime.batch import Answerer
    from fundus_rt.runtime.camera.source import CameraSource
    from fundus_rt.runtime.inputs import Item
    from fundus_rt.runtime.output import RowWriter
    from fundus_rt.runtime.pipeline import Pipeline


@click.command(short_help="Answer photographs with a model.")
@click.argument("paths", nargs=-1, metavar="PATH...")
@camera_options
@click.option("--list", "list_file", metavar="FILE.csv", help="CSV with a file column and, optionally, an eye column.")
@click.option("--model", default="acquisition", show_default=True, metavar="NAME|FILE", help="Bundled model or .onnx file.")
@click.option(
    "--eye", type=click.Choice(["auto", "left", "right"]), default="auto", show_default=True, help="Eye of all pictures."
)
@click.option("--mirrored-by-source", is_flag=True, help="The source hands out mirrored pictures.")
@click.option("--no-check", is_flag=True, help="Do not ask the acquisition model where the eye does not matter. Faster.")
@backend_and_device
@execution_provider
@click.option(
    "--build-meanwhile", is_flag=True,
    help="Where the GPU has no engine of the model: answer on the CPU, build it in another process, change over once it is "
    "certified.",
)  # fmt: skip
@memory_limit
@click.option("--format", "format_name", type=click.Choice(["table", "jsonl", "csv"]), help="Default: by --output, else table.")
@click.option("--output", type=click.Path(path_type=Path), metavar="FILE", help="Write rows here, each as soon as it is done.")
@click.option(
    "--batch", type=click.IntRange(1, 256), default=1, show_default=True, metavar="N", help="Pictures in one inference."
)
@click.option("--resume", is_flag=True, help="Go on with --output: no row is lost, none written twice.")
@click.option(
    "--require-certificate", is_flag=True,
    help="Answer only what is certified as passed on this device (fundus-rt certify). Asked of --model alone, not of the "
    "acquisition model that looks on. Rows that --resume keeps are not asked again.",
)  # fmt: skip
@click.option(
    "--certificate-key", type=click.Path(path_type=Path), metavar="PUBLIC.pem",
    help="Count only certificates signed with this Ed25519 key.  [default: $FUNDUS_RT_CERTIFICATE_KEY, else any]",
)  # fmt: skip
@click.pass_context
def infer(
    context: click.Context,
    /,
    paths: tuple[str, ...],
    camera: str | None,
    list_file: str | None,
    model: str,
    eye: str,
    mirrored_by_source: bool,
    no_check: bool,
    backend: str,
    device: str,
    provider: str,
    build_meanwhile: bool,
    format_name: str | None,
    output: Path | None,
    batch: int,
    resume: bool,
    require_certificate: bool,
    certificate_key: Path | None,
    **watching: Any,
) -> None:
    """Answer photographs: files, folders, globs or DICOM files; one row each. Or watch a --camera: one row each captured view.

    Exit status: 0 all answered, 1 some could not be (their rows say why), 2 the call itself is wrong, 3 stopped: what computes
    cannot be trusted or is gone, or memory or disk are not enough.
    """
    from fundus_rt.runtime.batch import Answerer, AnswerOptions, most_workers
    from fundus_rt.runtime.output import open_output
    from fundus_rt.runtime.pipeline import Pipeline
    from fundus_rt.runtime.rows import row_format
    from fundus_rt.runtime.session import resolve_model, usable_cores

    watch = WatchOptions(**watching)
    require_camera_sense(camera, bool(paths or list_file), batch, watch)
    source = _source(camera, watch.frame_size)
    _require_sense(paths, list_file, source is not None, output, resume)
    if build_meanwhile and (device == "cpu" or (backend, provider) != ("auto", "auto")):
        raise click.UsageError("--build-meanwhile goes with --device cuda:N and chooses backend and provider itself")
    name = format_name or {".jsonl": "jsonl", ".csv": "csv"}.get(output.suffix if output else "", "table")
    if resume and name == "table":
        raise click.UsageError("--resume needs rows that can be read again: use --format jsonl or csv")
    items, few = _counted(_items(paths, list_file), usable_cores()) if source is None else ([], 1)
    workers = max(1, min(usable_cores(), few, most_workers(resolve_model(model).stat().st_size)))
    threads = max(1, usable_cores() // workers)
    certificates: dict[str, Any] = {"require_certificate": require_certificate, "certificate_key": certificate_key}
    if (backend, device, provider) == ("auto", "cpu", "auto"):
        pipeline, threads = _opened_fastest(model, threads, not no_check, certificates)
    else:
        pipeline = Pipeline(
            model, backend, device, threads, not no_check, provider, **certificates, build=build_meanwhile
        )  # fmt: skip
    options = AnswerOptions(None if eye == "auto" else eye, mirrored_by_source)
    with open_output(
        output,
        resume,
        row_format(name, pipeline.card, pipeline.standing_warnings, str(pipeline.certificate), camera=source is not None),
    ) as writer:
        if source is not None:
            context.exit(answer_camera(source, pipeline, threads, options, writer, watch, build_meanwhile))
        answerer = Answerer(pipeline, options, workers, batch, writer.finished)
        total = (lambda: sum(1 for _ in _items(paths, list_file))) if output or not sys.stdout.isatty() else None
        failed = writer.failed + _write_all(answerer, items, writer, total)
    if failed:
        click.echo(f"{failed} picture(s) could not be answered; their rows say why and what to do.", err=True)
        context.exit(1)


def _opened_fastest(model: str, threads: int, check: bool, certificates: dict[str, Any]) -> tuple[Pipeline, int]:
    """The fastest certified way on this processor that can be opened, and its threads; of several it is said which."""
    from fundus_rt.models.errors import BackendUnavailableError, DeviceMemoryError
    from fundus_rt.runtime.certification import accepted_key
    from fundus_rt.runtime.choice import after, chosen_way
    from fundus_rt.runtime.pipeline import Pipeline

    key = accepted_key(certificates["certificate_key"])
    choice = chosen_way(model, threads, key, lambda sentence: click.echo(sentence, err=True))
    while True:
        if choice.measured:
            click.echo(f"auto: {choice.reason}", err=True)
        try:
            return Pipeline(choice.model, choice.backend, "cpu", choice.threads, check, **certificates), choice.threads
        except (BackendUnavailableError, DeviceMemoryError) as error:
            other = after(choice)
            if other is None:
                raise
            click.echo(f"auto: {choice.model.name} on {choice.backend} is left out: {error}", err=True)
            choice = other


def _write_all(answerer: Answerer, items: Iterable[Item], writer: RowWriter, total: Callable[[], int] | None) -> int:
    """Write every row; how many could not be answered. `total` counts all pictures and is only asked for a progress bar."""
    failed = 0
    try:
        with _progress(total) as show:
            for row in answerer.rows(items):
                writer.write(row)
                failed += row["error"] is not None
                show(answerer.taken)
    except KeyboardInterrupt:
        raise click.ClickException("interrupted; every finished row was written. With --output FILE, --resume goes on") from None
    return failed


def _require_sense(paths: tuple[str, ...], list_file: str | None, camera: bool, output: Path | None, resume: bool) -> None:
    if not camera and bool(paths) == bool(list_file):
        raise click.UsageError("give either PATH... or --list FILE.csv; for example: fundus-rt infer photographs/")
    if resume and output is None:
        raise click.UsageError("--resume goes on with an --output FILE; name it")


def _source(camera: str | None, frame_size: str | None) -> CameraSource | None:
    from fundus_rt.runtime.camera.source import source_from_text

    return None if camera is None else source_from_text(camera, frame_size)


def _items(paths: tuple[str, ...], list_file: str | None) -> Iterator[Item]:
    from fundus_rt.runtime.inputs import items_from_list, items_from_paths

    return items_from_list(list_file) if list_file else items_from_paths(paths)


def _counted(items: Iterator[Item], most: int) -> tuple[Iterable[Item], int]:
    """The same items, and their number up to `most`: a single picture gets all cores for itself."""
    first = list(itertools.islice(items, most))
    return itertools.chain(first, items), len(first)


@contextmanager
def _progress(total: Callable[[], int] | None) -> Iterator[Callable[[int], None]]:
    """A progress bar with rate and time left on standard error, when that is a terminal and `total` is given."""
    if total is None or not sys.stderr.isatty():
        yield lambda done: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("answering"), BarColumn(), MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"), TextColumn("left"), TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=Console(stderr=True), speed_estimate_period=30) as progress:
        task = progress.add_task("answering", total=total(), rate="")

        def show(done: int) -> None:
            speed = progress.tasks[0].finished_speed or progress.tasks[0].speed
            progress.update(task, completed=done, rate=f"{speed:.1f}/s" if speed else "")

        yield show
