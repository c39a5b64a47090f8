"""Makes the tiny ONNX models of the tests, whose answers are known in closed form.

    python tests/make_models.py          writes them to tests/data

They are stored, so that the runtime can be tested where onnx is not installed; `test_models_are_current` compares.
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any

import numpy as np

from fundus_rt.models.canary import PICTURES, canary_picture, chosen_canary
from fundus_rt.models.card import CARD_KEY, Citation, ModelCard, OutputSpec, PreprocessingSpec

DATA = Path(__file__).parent / "data"
SIZE = 64


def tiny_card(name: str, laterality: str, output: OutputSpec) -> ModelCard:
    """A card for a network that looks at one half of the picture."""
    return ModelCard(
        name=name,
        title="Half brightness",
        architecture="Mean of one half of the green channel",
        families=("tiny",),
        framework="pytorch",
        outputs=(output,),
        preprocessing=PreprocessingSpec((SIZE, SIZE), "field-of-view", "pillow-bilinear", "RGB", 1.0, (0, 0, 0), (1, 1, 1)),
        laterality=laterality,
        weights="Made by tests/make_models.py.",
        weights_url="",
        licence="Apache-2.0",
        citation=Citation("None."),
        performance="Exact.",
        limits=("A test's model.",),
    )


AGE = OutputSpec("age", "regression", "years", 0.01, activation="none", columns=1)
SEX = OutputSpec("sex", "binary", "probability", 0.001, ("female", "male"), activation="sigmoid", columns=1)


def with_canary(card: ModelCard) -> ModelCard:
    """The card with its canary, whose answers come from the closed form."""
    means = [canary_picture(which, (SIZE, SIZE))[:, : SIZE // 2, 1].astype(np.float64).mean() for which in range(PICTURES)]
    middle, spread = (0.0, 2.55) if card.outputs[0].task == "regression" else (60.0, 40.0)
    canary = chosen_canary({card.outputs[0].name: [[(mean - middle) / spread] for mean in means]})
    assert canary is not None
    return dataclasses.replace(card, canary=canary.to_dict())


def half_mean_model(card: ModelCard, swap_rows: bool = False) -> Any:
    """uint8 frames [N, 64, 64, 3] -> mean green of the left half: / 2.55 for an age (0 to 100), (mean - 60) / 40 for a logit.

    With `swap_rows` the answers and the receipt come from the batch in reverse order, as from a faulty backend.
    """
    import onnx
    from onnx import TensorProto, helper

    nodes = [helper.make_node("Cast", ["frames"], ["raw"], to=TensorProto.FLOAT)]
    source = "raw"
    if swap_rows:
        nodes.append(helper.make_node("Slice", ["raw", "last", "before_first", "batch_axis", "back"], ["reversed"]))
        source = "reversed"
    nodes += [
        helper.make_node("ReduceSum", [source, "row_axes"], ["receipt"], keepdims=0),
        helper.make_node("Slice", [source, "starts", "ends", "axes"], ["half"]),
        helper.make_node("ReduceMean", ["half"], ["mean"], axes=[1, 2], keepdims=0),
        helper.make_node("Sub", ["mean", "middle"], ["shifted"]),
        helper.make_node("Div", ["shifted", "spread"], [card.outputs[0].name]),
    ]
    constants = {
        "row_axes": [2, 3], "starts": [0, 1], "ends": [SIZE // 2, 2], "axes": [2, 3],
        "last": [-1], "before_first": [-10000], "batch_axis": [0], "back": [-1],
    }  # fmt: skip
    used = {name for node in nodes for name in node.input}
    tensors = [
        helper.make_tensor(name, TensorProto.INT64, [len(values)], values) for name, values in constants.items() if name in used
    ]
    middle, spread = (0.0, 2.55) if card.outputs[0].task == "regression" else (60.0, 40.0)
    tensors.append(helper.make_tensor("middle", TensorProto.FLOAT, [1], [middle]))
    tensors.append(helper.make_tensor("spread", TensorProto.FLOAT, [1], [spread]))
    graph = helper.make_graph(
        nodes,
        card.name,
        [helper.make_tensor_value_info("frames", TensorProto.UINT8, ["N", SIZE, SIZE, 3])],
        [
            helper.make_tensor_value_info(card.outputs[0].name, TensorProto.FLOAT, ["N", 1]),
            helper.make_tensor_value_info("receipt", TensorProto.FLOAT, ["N", SIZE]),
        ],
        tensors,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9, producer_name="fundus-rt tests")
    helper.set_model_props(model, {CARD_KEY: card.to_json()})
    onnx.checker.check_model(model)
    return model


def all_models() -> dict[str, Any]:
    """Every stored model by file name. The faulty one has no canary, or it could not even be opened."""
    age = tiny_card("tiny-age", "mirror-left", AGE)
    sex = tiny_card("tiny-sex", "none", SEX)
    return {
        "tiny_age.onnx": half_mean_model(with_canary(age)),
        "tiny_sex.onnx": half_mean_model(with_canary(sex)),
        "tiny_swapped.onnx": half_mean_model(dataclasses.replace(sex, name="tiny-swapped"), swap_rows=True),
    }


if __name__ == "__main__":
    DATA.mkdir(exist_ok=True)
    for name, model in all_models().items():
        (DATA / name).write_bytes(model.SerializeToString(deterministic=True))
        sys.stdout.write(f"{name}\n")
