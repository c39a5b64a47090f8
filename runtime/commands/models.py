"""``fundus-rt models``: what models there are, what each needs, and whom to cite."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from fundus_rt.models.card import ModelCard


@click.group(invoke_without_command=True, short_help="List, show and cite models.")
@click.pass_context
def models(context: click.Context) -> None:
    """List, show and cite models. Without a subcommand: list."""
    if context.invoked_subcommand is None:
        context.invoke(list_models)


@models.command("list", short_help="All models, a line each.")
def list_models() -> None:
    """All models, a line each."""
    from fundus_rt.models.registry import list_cards

    cards = list_cards()
    width = max(len(card.name) for card in cards)
    for card in cards:
        outputs = ", ".join(f"{output.name} ({output.unit})" for output in card.outputs)
        click.echo(f"{card.name.ljust(width)}  {_status(card).ljust(14)}  {outputs}")


@models.command("show", short_help="Everything a card says.")
@click.argument("name", metavar="NAME|FILE.json")
@click.option("--json", "as_json", is_flag=True, help="The card itself, to be edited and given to --card.")
def show(name: str, as_json: bool) -> None:
    """Everything that is known of a model."""
    from fundus_rt.models.registry import load_card

    card = load_card(name)
    click.echo(card.to_json() if as_json else _described(card))


@models.command("cite", short_help="Whom to cite and to acknowledge.")
@click.argument("name", metavar="NAME|FILE.json")
def cite(name: str) -> None:
    """Whom to cite and to acknowledge when a model is used."""
    from fundus_rt.models.registry import load_card

    card = load_card(name)
    click.echo(card.citation.text)
    if card.citation.url:
        click.echo(card.citation.url)
    if card.citation.acknowledgement:
        click.echo(f"\nAcknowledgement asked for by the authors:\n{card.citation.acknowledgement}")
    click.echo(f"\nLicence: {card.licence}")


def _status(card: ModelCard) -> str:
    return "bundled" if card.bundled else "bring weights"


def _described(card: ModelCard) -> str:
    spec = card.preprocessing
    mirrored = {"mirror-left": "pictures of left eyes are mirrored", "none": "pictures are never mirrored"}[card.laterality]
    mean, std = (", ".join(f"{v:g}" for v in values) for values in (spec.mean, spec.std))
    fields = [
        ("Intended use", card.intended_use),
        ("Architecture", f"{card.architecture} ({card.framework})"),
        *(("Output", _described_output(card, index)) for index in range(len(card.outputs))),
        ("Input", f"{spec.input_size[0]} x {spec.input_size[1]} pixels, crop {spec.crop_mode}, filter {spec.interpolation}"),
        ("Normalisation", f"{spec.color_order}, (value * {spec.scale:.6g} - [{mean}]) / [{std}]"),
        ("Assumed", ", ".join(spec.assumed) or "nothing: all of the above is published or ours"),
        ("Laterality", mirrored),
        ("Weights", f"{card.weights} {card.weights_url}".strip()),
        ("Licence", card.licence),
        ("Performance", card.performance),
        *(("Limit", limit) for limit in card.limits),
        *(("Note", note) for note in card.notes),
        ("Cite", f"{card.citation.text} {card.citation.url}".strip()),
    ]
    if card.citation.acknowledgement:
        fields.append(("Acknowledge", card.citation.acknowledgement))
    lines = [f"{card.name}: {card.title}"]
    for name, text in fields:
        lines += textwrap.wrap(text, 100, initial_indent=f"  {name:<14}", subsequent_indent=" " * 16)
    return "\n".join(lines)


def _described_output(card: ModelCard, index: int) -> str:
    output = card.outputs[index]
    classes = f" over {', '.join(output.labels)}" if output.labels else ""
    assumed = " (order not published: assumed)" if output.labels_assumed else ""
    point = f", said from {output.threshold:g} on" if output.threshold is not None else ""
    tolerance = f"conversion tolerance {output.tolerance:g} {output.unit}"
    tolerance += f", in lower precision {output.budget:g}" if output.budget is not None else ""
    return f"{output.name}: {output.task} in {output.unit}{classes}{assumed}{point}; {tolerance}"
