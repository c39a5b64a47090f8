"""Model cards: what they must state, and how they say what is wrong."""

from __future__ import annotations

import dataclasses
import json

import pytest

from fundus_rt.models.card import INTENDED_USE, ModelCard, OutputSpec, card_from_json
from fundus_rt.models.errors import CardError
from fundus_rt.models.registry import bundled_file, list_cards, load_card

CARDS = {card.name: card for card in list_cards()}
PUBLISHED = [name for name in CARDS if name != "acquisition"]


def test_every_system_has_a_card() -> None:
    assert set(CARDS) == {
        "joir-age",
        "joir-sex-efficientnet-b7",
        "joir-sex-mobilenet",
        "diaret-inception-v3",
        "diaret-resnet-50",
        "diaret-inception-resnet-v2",
        "image-fundus-abnormality",
        "image-fundus-multi-disease",
        "acquisition",
    }


@pytest.mark.parametrize("name", CARDS)
def test_card_round_trips_and_states_what_it_must(name: str) -> None:
    card = CARDS[name]
    assert card_from_json(card.to_json()) == card
    assert card.intended_use == INTENDED_USE
    assert card.licence and card.citation.text and card.limits and card.performance and card.weights


@pytest.mark.parametrize("name", PUBLISHED)
def test_unpublished_preprocessing_is_marked(name: str) -> None:
    assert {"crop_mode", "interpolation", "mean", "std"} <= set(CARDS[name].preprocessing.assumed)


@pytest.mark.parametrize("name", [n for n in PUBLISHED if n.startswith("joir")])
def test_joir_cards_follow_the_registry(name: str) -> None:
    card = CARDS[name]
    assert card.preprocessing.input_size == (384, 384)
    assert "made available through the Japan Ocular Imaging Registry website" in card.citation.acknowledgement
    assert card.laterality == ("mirror-left" if name == "joir-age" else "none")


@pytest.mark.parametrize(
    ("name", "size", "labels"),
    [
        ("joir-age", 384, 0),
        ("diaret-inception-v3", 299, 5),
        ("diaret-resnet-50", 224, 5),
        ("diaret-inception-resnet-v2", 299, 5),
        ("image-fundus-abnormality", 512, 2),
        ("image-fundus-multi-disease", 512, 7),
    ],
)
def test_input_size_and_classes(name: str, size: int, labels: int) -> None:
    assert CARDS[name].preprocessing.input_size == (size, size)
    assert len(CARDS[name].outputs[0].labels) == labels


def test_class_order_that_nobody_published_is_marked() -> None:
    assert all(CARDS[name].outputs[0].labels_assumed for name in PUBLISHED if CARDS[name].outputs[0].labels)


def test_validate_lists_every_problem_at_once() -> None:
    card = CARDS["joir-age"]
    broken = dataclasses.replace(
        card,
        name="Not A Name",
        laterality="mirror-right",
        limits=(),
        outputs=(OutputSpec("age", "regression", "", -1.0, labels=("x",), threshold=2.0),),
        preprocessing=dataclasses.replace(card.preprocessing, interpolation="bilinear", std=(1.0, 0.0, 1.0), assumed=("colour",)),
    )
    with pytest.raises(CardError) as caught:
        broken.validate()
    text = str(caught.value)
    for part in ("name is", "laterality is", "limits is", "unit is empty", "tolerance", "labels", "threshold", "interpolation"):
        assert part in text
    assert text.count("\n  - ") == len(broken.problems()) == 10
    assert "'colour', which is no field" in text


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda d: d.pop("licence"), "'licence' is missing"),
        (lambda d: d.update(colour="red"), "unknown key 'colour'"),
        (lambda d: d["preprocessing"].update(mean=["a", 0, 0]), "preprocessing.mean: expected a list of numbers"),
        (lambda d: d.update(outputs="age"), "outputs: expected a list"),
        (lambda d: d["outputs"][0].update(budget=1e-9), "budget is 1e-09, expected a number of"),
        (lambda d: d["outputs"][0].update(tolerance="small"), "outputs[0].tolerance: expected float"),
        (lambda d: d["preprocessing"].update(input_size=[384]), "input_size is (384,)"),
        (lambda d: d["preprocessing"].update(input_size=[384.5, 384]), "input_size is"),
        (lambda d: d.update(preprocessing=None), "preprocessing: expected an object, got NoneType"),
        (lambda d: d["outputs"][0].update(labels_assumed="no"), "labels_assumed: expected true or false"),
        (lambda d: d["outputs"].append(d["outputs"][0]), "output names repeat"),
    ],
)
def test_wrong_cards_are_refused_with_the_reason(change: object, said: str) -> None:
    data = json.loads(CARDS["joir-age"].to_json())
    change(data)  # type: ignore[operator]
    with pytest.raises(CardError, match=r"problem|expected") as caught:
        card_from_json(json.dumps(data))
    assert said in str(caught.value)


@pytest.mark.parametrize("text", ["", "[]", "{", '"card"'])
def test_what_is_no_card_is_refused(text: str) -> None:
    with pytest.raises(CardError, match="expected"):
        card_from_json(text)


def test_a_typing_error_in_a_name_gets_a_hint() -> None:
    with pytest.raises(CardError, match="Did you mean 'joir-age'"):
        load_card("joir-aeg")


def test_weights_that_are_not_here_are_said_where_to_get() -> None:
    with pytest.raises(CardError, match=r"(?s)Japan Ocular Imaging Registry.*fundus-rt convert CHECKPOINT --card joir-age"):
        bundled_file(load_card("joir-age"))


def test_acquisition_ships() -> None:
    card: ModelCard = load_card("acquisition")
    assert bundled_file(card).is_file()
    assert bundled_file(card).stat().st_size <= 4_000_000
