"""The stored tiny models are those that make_models.py writes, and foreign models are refused."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from fundus_rt.models.card import CARD_KEY
from fundus_rt.models.errors import ModelFileError
from fundus_rt.runtime.session import open_session
from tests import make_models

onnx = pytest.importorskip("onnx")


@pytest.mark.parametrize("name", sorted(p.name for p in make_models.DATA.glob("tiny_*.onnx")))
def test_stored_models_are_what_the_script_makes(name: str) -> None:
    stored = onnx.load(make_models.DATA / name)
    made = make_models.all_models()[name]
    assert stored.graph == made.graph
    assert {p.key: p.value for p in stored.metadata_props} == {p.key: p.value for p in made.metadata_props}


def saved(model: object, tmp_path: Path) -> Path:
    onnx.save(model, tmp_path / "m.onnx")
    return tmp_path / "m.onnx"


def test_a_model_without_a_card_is_not_ours(tmp_path: Path) -> None:
    model = make_models.half_mean_model(make_models.tiny_card("tiny-sex", "none", make_models.SEX))
    del model.metadata_props[:]
    with pytest.raises(ModelFileError, match=CARD_KEY.replace(".", r"\.")):
        open_session(saved(model, tmp_path))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda card: dataclasses.replace(card, title=""), "title is empty"),
        (
            lambda c: dataclasses.replace(c, preprocessing=dataclasses.replace(c.preprocessing, input_size=(32, 32))),
            r"\[N, 32, 32, 3\]",
        ),
        (
            lambda c: dataclasses.replace(c, preprocessing=dataclasses.replace(c.preprocessing, interpolation="tf-bilinear")),
            "float32",
        ),
        (lambda c: dataclasses.replace(c, outputs=(dataclasses.replace(c.outputs[0], columns=2),)), "2 columns"),
        (lambda c: dataclasses.replace(c, outputs=(dataclasses.replace(c.outputs[0], name="age"),)), "'age' is missing"),
        (lambda c: dataclasses.replace(c, outputs=(dataclasses.replace(c.outputs[0], activation=None),)), "activation"),
    ],
)
def test_a_graph_that_its_card_does_not_describe_is_refused(tmp_path: Path, change: object, said: str) -> None:
    card = make_models.tiny_card("tiny-sex", "none", make_models.SEX)
    model = make_models.half_mean_model(card)
    onnx.helper.set_model_props(model, {CARD_KEY: change(card).to_json()})  # type: ignore[operator]
    with pytest.raises(ModelFileError, match=said):
        open_session(saved(model, tmp_path))


def test_a_fixed_batch_is_refused(tmp_path: Path) -> None:
    model = make_models.half_mean_model(make_models.tiny_card("tiny-sex", "none", make_models.SEX))
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    with pytest.raises(ModelFileError, match="batch size is fixed to 1"):
        open_session(saved(model, tmp_path))
