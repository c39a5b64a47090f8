"""Whose word counts for the author of a model, in what, and what is taken from the file itself."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace

from fundus_rt.benchmarks.proof.author_card import _held_against, author_card, settled_differences
from fundus_rt.benchmarks.proof.parity_words import verdict
from fundus_rt.models.registry import load_card


def test_the_packages_card_speaks_for_the_author_in_all_that_it_states() -> None:
    """An age whose scale, tolerance and mean the file states by itself: only the scale could not be known to the package."""
    stated = load_card("joir-age")
    output = dataclasses.replace(
        stated.outputs[0], scale=12.0, offset=50.0, activation="sigmoid", columns=1, tolerance=1000.0, unit="months"
    )
    spec = dataclasses.replace(stated.preprocessing, mean=(0.5, 0.5, 0.5))
    own = dataclasses.replace(stated, outputs=(output,), preprocessing=spec, provenance={"precision": "fp16"})
    found = author_card(own, None)
    assert found.origin == "the package's card joir-age" and found.card.preprocessing == stated.preprocessing
    assert found.card.outputs == (dataclasses.replace(stated.outputs[0], scale=12.0, offset=50.0),)
    assert found.card.provenance == {}
    assert found.differences == (
        f"preprocessing: mean is (0.5, 0.5, 0.5), the author's is {stated.preprocessing.mean!r}",
        "output age: unit is 'months', the author's is 'years'",
        "output age: tolerance is 1000.0, the author's is 0.01",
    )
    assert len(found.taken) == 1 and "times 12, plus 50 is as told at the conversion" in found.taken[0]
    settled = dataclasses.replace(found.card.outputs[0], activation="none", columns=1)
    resolved = dataclasses.replace(found.card, outputs=(settled,))
    assert settled_differences(own, found, resolved) == ("output age: activation is 'sigmoid', by the checkpoint it is 'none'",)
    finer = dataclasses.replace(stated, outputs=(dataclasses.replace(stated.outputs[0], tolerance=0.001),))
    assert author_card(finer, None).card.outputs == finer.outputs and not author_card(finer, None).taken
    wider = dataclasses.replace(stated, outputs=(dataclasses.replace(stated.outputs[0], budget=9.0),))
    held = author_card(wider, None)
    assert held.card.outputs == stated.outputs and held.differences == ("output age: budget is 9.0, the author's is 0.25",)
    none = dataclasses.replace(stated, outputs=(dataclasses.replace(stated.outputs[0], budget=None),))
    assert author_card(none, None).card.outputs == none.outputs and not author_card(none, None).differences
    unknown = author_card(dataclasses.replace(own, name="somebodys-own"), None)
    assert unknown.card.preprocessing == spec and "own card" in unknown.origin and unknown.is_own and not found.is_own
    own_word, other = (SimpleNamespace(problems=[], figures=[], author=author) for author in (unknown, found))
    assert "for nobody else said it" in verdict(own_word) and "nobody" not in verdict(other)  # type: ignore[arg-type]


def test_a_card_that_is_given_states_the_scale_too(tmp_path: Path) -> None:
    stated = load_card("joir-age")
    own = dataclasses.replace(stated, outputs=(dataclasses.replace(stated.outputs[0], scale=12.0),))
    (tmp_path / "age.json").write_text(stated.to_json(), encoding="utf-8")
    found = author_card(own, str(tmp_path / "age.json"))
    assert found.card.outputs == stated.outputs and found.differences == ("output age: scale is 12.0, the author's is 1.0",)
    assert author_card(own, "joir-age").card.outputs == own.outputs  # the package's, by name


def test_labels_are_the_files_only_where_they_are_not_published() -> None:
    open_card, published = load_card("joir-sex-mobilenet"), load_card("joir-sex-mobilenet")
    published = dataclasses.replace(published, outputs=(dataclasses.replace(published.outputs[0], labels_assumed=False),))
    reversed_ = dataclasses.replace(open_card.outputs[0], labels=open_card.outputs[0].labels[::-1])
    told = dataclasses.replace(open_card, outputs=(dataclasses.replace(reversed_, labels_assumed=False),))
    found = author_card(told, None)
    assert found.card.outputs[0].labels == reversed_.labels and found.differences == ()
    assert len(found.taken) == 1 and "this proof does not show that it is right" in found.taken[0]
    for own, stated in ((dataclasses.replace(open_card, outputs=(reversed_,)), open_card), (told, published)):
        found = _held_against(own, stated, "a card", open_scale=True)
        assert found.card.outputs[0].labels == open_card.outputs[0].labels and not found.taken
        assert len(found.differences) == 1 and "labels is" in found.differences[0]
