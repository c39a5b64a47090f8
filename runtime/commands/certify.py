"""``fundus-rt certify``: the original's answers replayed on this device, and the certificate of it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from fundus_rt.runtime.commands.computing_options import backend_and_device, execution_provider

if TYPE_CHECKING:
    from fundus_rt.runtime.certify import Issued


@click.command(short_help="Replay the original's answers on this device; write the certificate.")
@click.argument("model", metavar="FILE.onnx|FILE.engine|NAME")
@click.option(
    "--reference", type=click.Path(path_type=Path), metavar="FILE.reference",
    help="What the original answered; fundus-rt parity writes it.  [default: NAME.reference beside the model]",
)  # fmt: skip
@backend_and_device
@execution_provider
@click.option(
    "--key",
    type=click.Path(path_type=Path),
    metavar="PRIVATE.pem",
    help="Sign with this Ed25519 key; only with a reference that you made.",
)
@click.pass_context
def certify(
    context: click.Context, model: str, reference: Path | None, backend: str, device: str, provider: str, key: Path | None
) -> None:
    """Have this device answer the reference photographs, hold that against the original framework's answers, and write the
    certificate into NAME.parity.json beside the model.

    It counts for these bytes, this backend and its version, and this kind of device alone; infer looks it up by itself, and with
    --require-certificate answers nothing without it. A reference holds photographs: keep it as you keep those.

    \b
    A pair of keys, to sign here and to check with infer --certificate-key:
      openssl genpkey -algorithm ed25519 -out private.pem
      openssl pkey -in private.pem -pubout -out public.pem

    Exit status: 0 passed, 1 failed (that is written too), 2 the call itself is wrong, or nothing can be certified here.
    """
    from fundus_rt.runtime.certify import certify as issued_certificate

    with _progress() as show:
        issued = issued_certificate(model, reference, backend, device, provider, key, say=_say, show=show)
    for line in report(issued):
        click.echo(line)
    if issued.replay.problems:
        context.exit(1)


def report(issued: Issued) -> Iterator[str]:
    """What a person wants to know of a certificate."""
    from fundus_rt.models.certificates import BACKEND_NAMES

    found = issued.certificate
    name = BACKEND_NAMES.get(found.backend, found.backend)
    yield f"certificate  {found.verdict}, {'signed, ' if found.signature else ''}in {issued.path}"
    yield f"file         SHA-256 {found.file_sha256}"
    yield f"computed by  {name} {found.version}{f', {found.provider}' if found.provider else ''}, {found.precision}"
    yield f"device       {found.device}"
    yield f"reference    {issued.photographs} photographs, checkpoint {found.checkpoint_sha256[:12]}"
    if found.author_side:
        yield f"author       the original's side followed {found.author_side}"
    for figures in issued.replay.agreements:
        yield str(figures)
    for problem in found.problems:
        yield f"FAILED {problem}"


def _say(sentence: str) -> None:
    """One line on standard error."""
    click.echo(sentence, err=True)


@contextmanager
def _progress() -> Iterator[Callable[[int, int], None]]:
    """How to show how far the replay is: a bar on a terminal; elsewhere nothing."""
    if not sys.stderr.isatty():
        yield lambda done, of: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("replaying"), BarColumn(), MofNCompleteColumn(), TextColumn("left"), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("replaying", total=None)
        yield lambda done, of: bar.update(task, completed=done, total=of)
