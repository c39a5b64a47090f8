"""The drawn pictures with known answers, and how two of them are chosen."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from fundus_rt.models.canary import PICTURES, Canary, canary_from_dict, canary_picture, chosen_canary
from fundus_rt.models.card import ModelCard
from fundus_rt.models.registry import list_cards, load_card

Answers = dict[str, NDArray[np.float32]]


class TestPictures:
    def test_they_are_the_same_everywhere(self) -> None:
        """Whole numbers only: the bytes are those of any machine, so they can be held against a stored hash."""
        content = b"".join(canary_picture(which, (64, 96)).tobytes() for which in range(PICTURES))
        assert hashlib.sha256(content).hexdigest() == "521b2ad554e91ab717c5ea1a612b926954be3312bfce28f47cb84da3e9b68b33"

    @pytest.mark.parametrize("which", range(PICTURES))
    def test_they_look_like_a_round_field_of_view(self, which: int) -> None:
        picture = canary_picture(which, (200, 200))
        assert picture.shape == (200, 200, 3)
        assert picture.dtype == np.uint8
        assert picture[:10, :10].max() == 0
        assert picture[100, 40:160].mean() > 30
        assert picture[..., 2].mean() > picture[..., 0].mean(), "red is the third channel"

    def test_levels_are_those_of_uint8_in_float32_too(self) -> None:
        assert np.array_equal(canary_picture(1, (50, 70), "float32"), canary_picture(1, (50, 70)).astype(np.float32))

    def test_no_two_are_alike(self) -> None:
        pictures = [canary_picture(which, (64, 64)).astype(int) for which in range(PICTURES)]
        assert min(np.abs(a - b).mean() for i, a in enumerate(pictures) for b in pictures[:i]) > 5


class TestChoice:
    def test_the_two_most_different_are_taken(self) -> None:
        canary = chosen_canary({"age": [[50.0], [20.0], [51.0], [58.0]]})
        assert canary is not None
        assert canary.pictures == (1, 3)
        assert canary.answers["age"].tolist() == [[20.0], [58.0]]

    def test_an_output_that_hardly_tells_them_apart_is_still_held_to_its_numbers(self) -> None:
        canary = chosen_canary({"age": [[50.0], [20.0], [51.0], [58.0]], "sex": [[0.5], [0.5], [0.51], [0.5]]})
        assert canary is not None
        age = canary.answers["age"]
        assert canary.problems({"age": age, "sex": np.float32([[0.5004], [0.5]])}) == []
        assert canary.problems({"age": age, "sex": np.float32([[0.52], [0.5]])}) == [
            "sex: 0.02 away from the known answers, which are 0 apart"
        ]

    def test_the_bundled_models_eye_is_held_too(self) -> None:
        """Right for left, a file that is not the one: the output that decides on mirroring."""
        canary = canary_from_dict(load_card("acquisition").canary)
        assert canary is not None
        wrong = {name: rows[:, [1, 2, 0]] if name == "eye" else rows for name, rows in canary.answers.items()}
        assert canary.problems(canary.answers) == []
        assert [problem.partition(":")[0] for problem in canary.problems(wrong)] == ["eye"]

    @pytest.mark.parametrize("rows", [[[50.0]] * 4, [[50.0], [50.001], [50.0], [50.0]], [[np.nan], [1], [2], [3]]])
    def test_answers_that_are_alike_make_no_canary(self, rows: Any) -> None:
        assert chosen_canary({"age": rows}) is None

    def test_what_is_written_is_read_back(self) -> None:
        canary = chosen_canary({"grade": np.arange(20, dtype=np.float32).reshape(4, 5) / 3})
        assert canary is not None
        read = canary_from_dict(json.loads(json.dumps(canary.to_dict())))
        assert read is not None
        assert read.pictures == canary.pictures
        assert np.array_equal(read.answers["grade"], canary.answers["grade"])

    def test_another_drawing_is_no_canary_of_ours(self) -> None:
        assert canary_from_dict({"drawing": 2, "pictures": [0, 1], "answers": {"age": [[1.0], [2.0]]}}) is None

    @pytest.mark.parametrize(
        "values",
        [
            {"drawing": 1},
            {"drawing": 1, "pictures": [0, 9], "answers": {"age": [[1.0], [2.0]]}},
            {"drawing": 1, "pictures": [0, 1], "answers": {"age": [[1.0], [1.0]]}},
            {"drawing": 1, "pictures": [0, 1], "answers": {}},
            {"drawing": 1, "pictures": [0, 1, 2], "answers": {"age": [[1.0], [2.0]]}},
            {"drawing": 1, "pictures": [0, 1], "answers": {"age": [["old"], ["young"]]}},
            {"drawing": 1, "pictures": [0, 1], "answers": {"age": [[1.0], [float("nan")]]}},
        ],
    )
    def test_a_damaged_one_is_an_error(self, values: dict[str, Any]) -> None:
        with pytest.raises(ValueError, match="convert the checkpoint again"):
            canary_from_dict(values)

    @pytest.mark.parametrize("card", [card for card in list_cards() if card.bundled], ids=lambda card: card.name)
    def test_every_bundled_model_has_one(self, card: ModelCard) -> None:
        assert isinstance(canary_from_dict(card.canary), Canary)
