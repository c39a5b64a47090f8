"""Which card speaks for the author when a shipped file is held against its checkpoint, and where the file's own differs."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from fundus_rt.models.card import ModelCard, OutputSpec
from fundus_rt.models.errors import CardError, UsageError
from fundus_rt.models.registry import load_card


@dataclass(frozen=True)
class AuthorCard:
    """The card of the author's side."""

    card: ModelCard
    """For the original network; activation and columns may be open."""
    origin: str
    """Whose it is, for the reader."""
    differences: tuple[str, ...]
    """What the file's own card says otherwise, one phrase each."""


def author_card(own: ModelCard, named: str | None) -> AuthorCard:
    """The author's statement about a model.

    Args:
        own: the card inside of the shipped file.
        named: ``--card``: a name or a ``.json`` file; its preprocessing, laterality and outputs count. None: the package's card
            of the same name, of which preprocessing, laterality and operating points count, for labels, target scale and
            tolerances may have been given at the conversion; the file's own where the package has none of that name.

    Raises:
        CardError: the named card cannot be read.
        UsageError: it describes other outputs than the file has.
    """
    if named is not None:
        stated = load_card(named)
        return _held_against(own, stated, _stated_outputs(own, stated), f"the card {stated.name} that was given")
    try:
        stated = load_card(own.name)
    except CardError:
        plain = dataclasses.replace(own, canary={}, provenance={})
        return AuthorCard(plain, "the file's own card, for the package has none of its name and --card gave none", ())
    same_points = tuple(
        dataclasses.replace(mine, threshold=theirs.threshold)
        for mine, theirs in zip(own.outputs, _same_outputs(own, stated), strict=True)
    )
    return _held_against(own, stated, same_points, f"the package's card {stated.name}")


def _held_against(own: ModelCard, stated: ModelCard, outputs: tuple[OutputSpec, ...], origin: str) -> AuthorCard:
    card = dataclasses.replace(stated, outputs=outputs, canary={}, provenance={}).validate()
    found = _differences("preprocessing", own.preprocessing, card.preprocessing, ("assumed",))
    if own.laterality != card.laterality:
        found.append(f"laterality is {own.laterality!r}, the author's is {card.laterality!r}")
    for mine, theirs in zip(own.outputs, outputs, strict=True):
        open_fields = tuple(name for name in ("activation", "columns") if getattr(theirs, name) is None)
        found += _differences(f"output {mine.name}", mine, theirs, (*open_fields, "labels_assumed"))
    return AuthorCard(card, origin, tuple(found))


def _stated_outputs(own: ModelCard, stated: ModelCard) -> tuple[OutputSpec, ...]:
    """The stated outputs; labels whose order is only assumed there give way to those of the conversion."""
    return tuple(
        dataclasses.replace(theirs, labels=mine.labels, labels_assumed=mine.labels_assumed) if theirs.labels_assumed else theirs
        for mine, theirs in zip(own.outputs, _same_outputs(own, stated), strict=True)
    )


def _same_outputs(own: ModelCard, stated: ModelCard) -> list[OutputSpec]:
    """The stated outputs in the order of the file's."""
    by_name = {output.name: output for output in stated.outputs}
    if set(by_name) != {output.name for output in own.outputs}:
        raise UsageError(
            f"the file's card {own.name} has the outputs {', '.join(o.name for o in own.outputs)}, the card {stated.name} has "
            f"{', '.join(by_name)}; give the card that belongs to the file with --card"
        )
    return [by_name[output.name] for output in own.outputs]


def _differences(where: str, own: object, stated: object, left_out: tuple[str, ...]) -> list[str]:
    """Fields of two dataclasses of one kind that differ."""
    return [
        f"{where}: {field.name} is {getattr(own, field.name)!r}, the author's is {getattr(stated, field.name)!r}"
        for field in dataclasses.fields(own)  # type: ignore[arg-type]
        if field.name not in left_out and getattr(own, field.name) != getattr(stated, field.name)
    ]
