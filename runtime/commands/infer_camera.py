"""The camera's side of ``fundus-rt infer``: options that exclude one another, sentences on standard error, when to stop."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from fundus_rt.runtime.batch import AnswerOptions
    from fundus_rt.runtime.camera.answering import CameraAnswerer
    from fundus_rt.runtime.camera.burst import Advice
    from fundus_rt.runtime.camera.source import CameraSource
    from fundus_rt.runtime.output import RowWriter
    from fundus_rt.runtime.pipeline import Pipeline

Command = TypeVar("Command", bound=Callable[..., Any])


@dataclass(frozen=True)
class WatchOptions:
    """The options that only go with ``--camera``."""

    frame_size: str | None
    captures: int | None
    every_frame: bool
    any_framing: bool
    any_quality: bool
    give_up: float | None


def camera_options(command: Command) -> Command:
    """Add ``--camera`` and the options that go with it."""
    options = [
        click.option(
            "--camera", metavar="SOURCE",
            help="Watch a camera in the place of PATH: its number, rtsp://…, a film, or a GStreamer pipeline.",
        ),
        click.option("--frame-size", metavar="WIDTHxHEIGHT", help="Ask a camera for this size.  [default: the driver's]"),
        click.option("--captures", type=click.IntRange(1), metavar="N", help="Stop after N captured answers.  [default: go on]"),
        click.option("--every-frame", is_flag=True, help="Look at every frame of a film, not at the newest in its own time."),
        click.option("--any-framing", is_flag=True, help="Do not ask for a whole field of view in the middle of the picture."),
        click.option("--any-quality", is_flag=True, help="Take what is neither sharp nor clean as well, as behind a cataract."),
        click.option(
            "--give-up", type=click.FloatRange(0), metavar="SECONDS",
            help="End when a camera was lost for so long.  [default: wait for ever]",
        ),
    ]  # fmt: skip
    for option in reversed(options):
        command = option(command)
    return command


def require_camera_sense(camera: str | None, files: bool, batch: int, watch: WatchOptions) -> None:
    """Raise `click.UsageError` for options that do not go together."""
    if camera is None:
        for name, value in asdict(watch).items():
            if value not in (None, False):
                raise click.UsageError(f"--{name.replace('_', '-')} goes with --camera")
    elif files:
        raise click.UsageError("give either PATH... or --list FILE.csv, or --camera SOURCE")
    elif batch != 1:
        raise click.UsageError("--batch is for files; a camera's pictures are answered one by one")


def answer_camera(
    source: CameraSource, pipeline: Pipeline, threads: int, options: AnswerOptions, writer: RowWriter, watch: WatchOptions,
    build_meanwhile: bool = False,
) -> int:  # fmt: skip
    """Write a row for each captured view until there are enough, a film ends, or Ctrl-C.

    Returns:
        The exit status: 0 when something was captured and all of it answered, else 1.
    """
    from fundus_rt.runtime.camera.answering import CameraAnswerer
    from fundus_rt.runtime.camera.connection import Timeouts
    from fundus_rt.runtime.camera.judge import FrameJudge
    from fundus_rt.runtime.camera.reader import FrameReader
    from fundus_rt.runtime.camera.source import silence_opencv
    from fundus_rt.runtime.pipeline import ACQUISITION

    silence_opencv()
    judging = pipeline if pipeline.card.name == ACQUISITION else _judging(pipeline, threads, build_meanwhile)
    eye_needed = pipeline.card.laterality == "mirror-left"
    judge = FrameJudge(judging, options.eye, eye_needed, options.mirrored_by_source, watch.any_framing, watch.any_quality)
    reader = FrameReader(
        source, lambda sentence: click.echo(sentence, err=True), watch.every_frame, Timeouts(give_up=watch.give_up)
    )
    answerer = CameraAnswerer(source.name, reader, judge, pipeline, options, _tell)
    return _write_captures(answerer, writer, watch.captures, source)


def _judging(pipeline: Pipeline, threads: int, build_meanwhile: bool) -> Pipeline:
    """The acquisition model where the other one computes; on the CPU where its engine is missing and nobody need wait for one."""
    from fundus_rt.models.errors import BackendUnavailableError, EngineMissingError
    from fundus_rt.runtime.pipeline import ACQUISITION, Pipeline

    backend, device, provider = pipeline.asked
    try:
        return Pipeline(ACQUISITION, backend, device, threads, provider=provider)
    except (BackendUnavailableError, EngineMissingError):
        if not build_meanwhile:
            raise
    click.echo(f"the acquisition model, which looks at the frames, computes on the CPU: {device} has no engine of it", err=True)
    return Pipeline(ACQUISITION, "onnxruntime", "cpu", threads)


def _tell(advice: Advice) -> None:
    click.echo(f"{advice.state}: {advice.words}", err=True)


def _write_captures(answerer: CameraAnswerer, writer: RowWriter, captures: int | None, source: CameraSource) -> int:
    answered = failed = 0
    rows = answerer.rows()
    try:
        for row in rows:
            writer.write(row)
            failed += row["error"] is not None
            answered += row["error"] is None
            if answered == captures:
                break
    except KeyboardInterrupt:
        click.echo(f"stopped; {answered} picture(s) were captured and answered, their rows are written", err=True)
        return 0 if not failed else 1
    finally:
        rows.close()
    if failed:
        click.echo(f"{failed} captured picture(s) could not be answered; their rows say why and what to do.", err=True)
    if not answered:
        advice = answerer.last_problem or "no frame was good for long enough"
        click.echo(f"nothing was captured of {source.name}; the last reason was: {advice}", err=True)
    return 1 if failed or not answered else 0
