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
    """What the file's own card says otherwise, and could decide answers by, one phrase each."""
    is_own: bool = False
    """Nobody but the file itself spoke for the author."""
    taken: tuple[str, ...] = ()
    """What the author's statement leaves open and was taken from the file's own card, one sentence each."""

    def problems(self) -> list[str]:
        """A file that says otherwise of itself than the author is wrong even where these photographs do not show it."""
        if not self.differences:
            return []
        return [
            f"In the file's own card, {'; '.join(self.differences)}. If that is wanted, say so with --card FILE.json, the card "
            "as it ought to be"
        ]


def author_card(own: ModelCard, named: str | None) -> AuthorCard:
    """The author's statement about a model.

    Args:
        own: the card inside of the shipped file.
        named: ``--card``: a name or a ``.json`` file. None: the package's card of the same name; the file's own where the package
            has none of that name. Of a ``.json`` file everything counts. A card of the package leaves two things open that the
            conversion is told: class labels whose order it only assumes, and the scale and offset of a standardised target,
            where it states none.

    Raises:
        CardError: the named card cannot be read.
        UsageError: it describes other outputs than the file has.
    """
    if named is not None:
        stated = load_card(named)
        return _held_against(own, stated, f"the card {stated.name} that was given", open_scale=not named.endswith(".json"))
    try:
        stated = load_card(own.name)
    except CardError:
        plain = dataclasses.replace(own, canary={}, provenance={})
        return AuthorCard(plain, "the file's own card, for the package has none of its name and --card gave none", (), True)
    return _held_against(own, stated, f"the package's card {stated.name}", open_scale=True)


def settled_differences(own: ModelCard, author: AuthorCard, resolved: ModelCard) -> tuple[str, ...]:
    """Where the file's own card differs in what the author's left open and the checkpoint itself decided.

    Args:
        own: the card inside of the shipped file.
        author: before the checkpoint was opened.
        resolved: the author's card with the activation that the checkpoint's graph or file decides.
    """
    mine = {output.name: output.activation for output in own.outputs}
    return tuple(
        f"output {after.name}: activation is {mine[after.name]!r}, by the checkpoint it is {after.activation!r}"
        for before, after in zip(author.card.outputs, resolved.outputs, strict=True)
        if before.activation is None and mine[after.name] != after.activation
    )


def _held_against(own: ModelCard, stated: ModelCard, origin: str, open_scale: bool) -> AuthorCard:
    pairs = list(zip(own.outputs, _same_outputs(own, stated), strict=True))
    outputs = tuple(_author_output(mine, theirs, open_scale) for mine, theirs in pairs)
    card = dataclasses.replace(stated, outputs=outputs, canary={}, provenance={}).validate()
    found = _differences("preprocessing", own.preprocessing, card.preprocessing, ("assumed",))
    if own.laterality != card.laterality:
        found.append(f"laterality is {own.laterality!r}, the author's is {card.laterality!r}")
    taken: list[str] = []
    for (mine, theirs), output in zip(pairs, outputs, strict=True):
        open_fields = tuple(name for name in ("activation", "columns") if getattr(output, name) is None)
        found += _differences(f"output {mine.name}", mine, output, (*open_fields, "labels_assumed"))
        taken += _taken(mine, theirs, output)
    return AuthorCard(card, origin, tuple(found), taken=tuple(taken))


def _author_output(mine: OutputSpec, theirs: OutputSpec, open_scale: bool) -> OutputSpec:
    """The stated output with what it leaves open as the conversion was told; a smaller tolerance or budget of the
    file's counts."""
    told = theirs.labels_assumed and not mine.labels_assumed
    unscaled = open_scale and theirs.task == "regression" and (theirs.scale, theirs.offset) == (1.0, 0.0)
    return dataclasses.replace(
        theirs,
        labels=mine.labels if told else theirs.labels,
        labels_assumed=theirs.labels_assumed and not told,
        scale=mine.scale if unscaled else theirs.scale,
        offset=mine.offset if unscaled else theirs.offset,
        tolerance=min(mine.tolerance, theirs.tolerance),
        budget=None if None in (mine.budget, theirs.budget) else min(mine.budget or 0.0, theirs.budget or 0.0),
    )


def _taken(mine: OutputSpec, theirs: OutputSpec, output: OutputSpec) -> list[str]:
    """What the file's card was asked for, so that a reader can see whether it is right."""
    found = []
    if theirs.labels_assumed and not output.labels_assumed:
        found.append(
            f"output {mine.name}: the labels {', '.join(mine.labels)} are those told at the conversion; their order is not "
            "published, and this proof does not show that it is right"
        )
    if (output.scale, output.offset) != (theirs.scale, theirs.offset):
        found.append(
            f"output {mine.name}: times {output.scale:g}, plus {output.offset:g} is as told at the conversion; the author's "
            "card states no scale, and this proof does not show that it is right"
        )
    return found


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
