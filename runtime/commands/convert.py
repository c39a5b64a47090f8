"""``fundus-rt convert``: a published checkpoint becomes one verified ``.onnx`` file."""

from __future__ import annotations

import dataclasses
import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from fundus_rt.converters.original_preprocessing import Photograph
    from fundus_rt.models.card import ModelCard

ASSUMED = "assumed"
"""Word for ``--labels`` that accepts a card's unpublished class order."""
MOST_PHOTOGRAPHS = 64
"""Photographs on which a conversion is checked at most: the framework's side takes seconds each for large networks."""


@click.command(short_help="Turn a published checkpoint into a verified .onnx file.")
@click.argument("checkpoint", type=click.Path(path_type=Path), metavar="CHECKPOINT")
@click.option("--card", "card_name", required=True, metavar="NAME|FILE.json", help="What the checkpoint is; see `models list`.")
@click.option("-o", "--output", type=click.Path(path_type=Path), metavar="FILE.onnx", help="Default: NAME.onnx of the card.")
@click.option("--labels", metavar="A,B,...|assumed", help="Classes in the order of the outputs, where they are not published.")
@click.option("--standardised", metavar="MEAN,DEVIATION", help="Of a regression's target, where it was trained standardised.")
@click.option(
    "--architecture", metavar="timm/NAME|torchvision/NAME|MODULE:FUNCTION",
    help="The network, where file and card do not say it: by its name in timm or torchvision, or your own function.",
)  # fmt: skip
@click.option("--photographs", metavar="PATH", help="Photographs to check on.  [default: the package's examples]")
@click.option("--trust-pickle", is_flag=True, help="Execute code that the checkpoint carries. Only for files you trust.")
def convert(
    checkpoint: Path,
    card_name: str,
    output: Path | None,
    labels: str | None,
    standardised: str | None,
    architecture: str | None,
    photographs: str | None,
    trust_pickle: bool,
) -> None:
    """Convert CHECKPOINT to one .onnx file, and prove it equal to the original framework.

    CHECKPOINT is a file of PyTorch (.pth, .pt, .bin, .tar, .safetensors), of Keras (.h5, .hdf5, .keras), an .onnx of another
    exporter, or the folder of a TensorFlow SavedModel.

    The original framework, with its own libraries' preprocessing, and the new file, with ours, both answer real photographs;
    a file whose answers differ by more than the card's tolerance is not written (exit status 1).
    """
    from fundus_rt.converters.conversion import onnx_from_checkpoint
    from fundus_rt.models.errors import UsageError
    from fundus_rt.models.registry import load_card

    card = _with_target_scale(_with_labels(load_card(card_name), labels), standardised)
    target = output or Path(f"{card.name}.onnx")
    if not checkpoint.exists():
        raise UsageError(f"checkpoint {checkpoint} does not exist; give a downloaded .pth, .h5 or .onnx file")
    with _step("Preparing photographs"):
        tensors, originals = _prepared(card, photographs)
    report = onnx_from_checkpoint(
        checkpoint,
        card,
        target,
        tensors=tensors,
        open_shipped=_open_shipped,
        photographs=originals,
        architecture=architecture,
        trust_pickle=trust_pickle,
        progress=_say,
        step=_step,
    )
    for line in report.lines():
        click.echo(line)
    if card.citation.acknowledgement:
        click.echo(f"The authors ask for a citation and an acknowledgement: fundus-rt models cite {card.name}")


def _with_labels(card: ModelCard, labels: str | None) -> ModelCard:
    """The card with the class names that the user gave; an order that is only assumed has to be accepted by name.

    Raises:
        UsageError: the card's order is assumed and nothing was said, or other names than the card has room for.
    """
    from fundus_rt.models.errors import UsageError

    open_order = [output for output in card.outputs if output.labels_assumed]
    if labels is None and open_order:
        order = ",".join(open_order[0].labels)
        raise UsageError(
            f"the authors of {card.name} did not publish which number is which class, and it is not in the file. If you know the "
            f"order, say it: --labels '{order}' or another. With --labels {ASSUMED} the card's order is taken, and every result "
            f"says that it is assumed."
        )
    if labels is None or labels == ASSUMED:
        return card
    if len(card.outputs) != 1:
        raise UsageError(f"--labels names the classes of one output, card {card.name} has {len(card.outputs)}; edit the card")
    names = tuple(label.strip() for label in labels.split(","))
    if len(names) != len(card.outputs[0].labels):
        raise UsageError(
            f"--labels gives {len(names)} names, card {card.name} has {len(card.outputs[0].labels)} classes: "
            f"{', '.join(card.outputs[0].labels)}"
        )
    return dataclasses.replace(
        card, outputs=(dataclasses.replace(card.outputs[0], labels=names, labels_assumed=False),)
    ).validate()


def _with_target_scale(card: ModelCard, standardised: str | None) -> ModelCard:
    """The card with the mean and deviation of a standardised target that the user gave."""
    from fundus_rt.models.errors import UsageError

    if standardised is None:
        return card
    try:
        mean, deviation = (float(number) for number in standardised.split(","))
    except ValueError as error:
        raise UsageError(
            f"--standardised is {standardised!r}, expected two numbers, MEAN,DEVIATION, for example 55.2,17"
        ) from error
    if len(card.outputs) != 1 or card.outputs[0].task != "regression":
        raise UsageError(f"--standardised is for a card with one regression, {card.name} has none; leave it out")
    if not (math.isfinite(mean) and math.isfinite(deviation) and deviation > 0):
        raise UsageError(f"--standardised is {standardised!r}, expected a finite mean and a deviation above 0")
    return dataclasses.replace(card, outputs=(dataclasses.replace(card.outputs[0], scale=deviation, offset=mean),)).validate()


def _prepared(card: ModelCard, photographs: str | None) -> tuple[Any, list[Photograph]]:
    """Network inputs [N, H, W, 3] from real photographs, as the runtime makes them, and the photographs themselves with crop
    and mirroring for the original's side; where left eyes are mirrored, each photograph is taken both ways."""
    import numpy as np

    from fundus_rt.benchmarks.proof.photographs import plain_content
    from fundus_rt.converters.original_preprocessing import Photograph
    from fundus_rt.models.errors import FundusRtError, UsageError
    from fundus_rt.models.registry import EXAMPLE_FOLDER
    from fundus_rt.runtime.decode import decode
    from fundus_rt.runtime.field_of_view import find_field_of_view
    from fundus_rt.runtime.inputs import items_from_paths
    from fundus_rt.runtime.preprocess import crop_box, tensor_from_frame

    mirrors = (False, True) if card.laterality == "mirror-left" else (False,)
    tensors: list[Any] = []
    originals: list[Photograph] = []
    for item in items_from_paths([photographs or str(EXAMPLE_FOLDER)]):
        if len(tensors) >= MOST_PHOTOGRAPHS:
            break
        try:
            if item.problem:
                raise UsageError(item.problem)
            content = Path(item.path).read_bytes()
            decoded = decode(content)
            view = find_field_of_view(decoded.frame)
        except (FundusRtError, OSError) as error:
            raise UsageError(f"photograph {item.path} cannot be used to check the conversion: {error}") from error
        box = crop_box(view, decoded.frame.shape, card.preprocessing)
        plain = plain_content(content)
        originals += [Photograph(plain, box, mirror) for mirror in mirrors]
        tensors += [tensor_from_frame(decoded.frame, view, card.preprocessing, mirror=mirror) for mirror in mirrors]
    return np.stack(tensors), originals


def _open_shipped(path: Path) -> Callable[[Any], dict[str, Any]]:
    """The runtime's own session on a converted file."""
    from fundus_rt.runtime.session import open_session

    return open_session(path).run


def _say(message: str) -> None:
    """One line on standard error; with --trust-pickle, what is about to be executed is among them."""
    click.echo(message, err=True)


@contextmanager
def _step(message: str) -> Iterator[None]:
    """Say on standard error what is being done, and for how long where that is over two seconds."""
    started = time.monotonic()
    with _spinner(message):
        yield
    elapsed = time.monotonic() - started
    if elapsed > 2:
        click.echo(f"{message}: {elapsed:.0f} s", err=True)


def _spinner(message: str) -> AbstractContextManager[Any]:
    """A line with the time that has gone by on a terminal; the message alone elsewhere."""
    if not sys.stderr.isatty():
        click.echo(f"{message} ...", err=True)
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    progress = Progress(
        SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn(),
        console=console, transient=True, disable=not sys.stderr.isatty(),
    )  # fmt: skip
    progress.add_task(message, total=None)
    return progress
