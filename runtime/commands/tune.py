"""``fundus-rt tune``: certify and measure every way to compute a model on this processor, and remember the fastest."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from fundus_rt.models.signatures import PublicKey
    from fundus_rt.runtime.choice import Measured
    from fundus_rt.runtime.ways import ModelFile

BUSY = 0.25
"""Share of the cores that others may use before the measurement is doubted."""


@click.command(short_help="Find the fastest certified way to compute a model here, and remember it.")
@click.argument("file", type=click.Path(path_type=Path), metavar="FILE.onnx")
@click.option(
    "--seconds", type=click.FloatRange(0.0), default=2.0, show_default=True, help="Of answering, for each way in each block."
)
@click.option("--blocks", type=click.IntRange(1), default=5, show_default=True, help="For each way, in changing order.")
@click.option(
    "--key", type=click.Path(path_type=Path), metavar="PRIVATE.pem", help="Sign new certificates with this Ed25519 key."
)
@click.option(
    "--certificate-key", type=click.Path(path_type=Path), metavar="PUBLIC.pem",
    help="Count only certificates signed with this Ed25519 key.  [default: $FUNDUS_RT_CERTIFICATE_KEY, else any]",
)  # fmt: skip
@click.pass_context
def tune(context: click.Context, file: Path, seconds: float, blocks: int, key: Path | None, certificate_key: Path | None) -> None:
    """Certify and measure every way to compute FILE.onnx on this processor.

    The ways are FILE.onnx and the same model in lower precision beside it (FILE.int8.onnx, as `quantize` writes it), on ONNX
    Runtime and OpenVINO where those are installed. Each is certified first by replaying FILE.reference, unless it is already;
    what does not pass is not measured. The outcome is remembered, and `infer --backend auto` goes by it as long as files,
    certificates, versions and device are the same.

    Exit status: 0 found; 1 no way to compute it is certified here; 2 the call is wrong.
    """
    from fundus_rt.runtime.certification import accepted_key
    from fundus_rt.runtime.choice import fastest, measure, remember
    from fundus_rt.runtime.session import usable_cores
    from fundus_rt.runtime.ways import certified_ways, files_of_model

    accepted = accepted_key(certificate_key)
    files = files_of_model(file, _say)
    _certify_all(files, key, accepted)
    cores = usable_cores()
    if (load := os.getloadavg()[0]) > BUSY * cores:
        _say(f"this machine is busy (load {load:.1f} on {cores} cores), so what is measured now may mislead; call again later")
    for threads, title in ((cores, "one photograph at a time"), *(((1, "many photographs"),) if cores > 1 else ())):
        ways = certified_ways(files, threads, accepted)
        if not ways:
            _say("no way to compute it is certified here, so ONNX Runtime computes it as it is")
            context.exit(1)
        with _progress(title) as show:
            found = measure(ways, seconds, blocks, show, _say)
        remember(found, threads, _say)
        choice = fastest(found)
        click.echo(f"{title}: {choice.reason}")
        for line in _lines(found):
            click.echo(line)


def _certify_all(files: Sequence[ModelFile], key: Path | None, accepted: PublicKey | None) -> None:
    """Replay the reference through every way that has no certificate that says ``passed``."""
    from fundus_rt.models.errors import FundusRtError
    from fundus_rt.models.references import reference_path
    from fundus_rt.runtime.certify import HOW_TO_GET_A_REFERENCE, certify
    from fundus_rt.runtime.ways import backends_here, certified_ways

    known = {(way.file, way.backend.name) for way in certified_ways(list(files), 1, accepted)}
    reference = reference_path(files[0].path)
    for file in files:
        for backend in backends_here():
            if (file, backend.name) in known:
                continue
            beside = reference_path(file.path)
            if not beside.is_file() and not reference.is_file():
                _say(f"there is no {reference.name}; {HOW_TO_GET_A_REFERENCE.format(model=files[0].path.name)}")
                return
            try:
                issued = certify(file.path, None if beside.is_file() else reference, backend.name, key=key, say=_say)
            except FundusRtError as error:
                _say(f"{file.path.name} on {backend.name}: {error}")
                continue
            why = "".join(f"; {problem}" for problem in issued.replay.problems)
            _say(f"{file.path.name} on {backend.name}: certificate {issued.certificate.verdict}{why}")


def _lines(found: Sequence[Measured]) -> Iterator[str]:
    for one in sorted(found, key=lambda measured: measured.seconds):
        yield f"  {one.seconds * 1e3:9.2f} ms  {1 / one.seconds:8.1f} /s  {one.way}  ({one.way.file.path.name})"


def _say(sentence: str) -> None:
    click.echo(sentence, err=True)


@contextmanager
def _progress(what: str) -> Iterator[Callable[[int, int], None]]:
    """A bar over the blocks on standard error, when that is a terminal."""
    if not sys.stderr.isatty():
        yield lambda done, of: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TextColumn("left"), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, of: bar.update(task, completed=done, total=of)
