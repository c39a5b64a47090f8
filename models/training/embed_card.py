"""Put the card of the bundled model into its file: the last step after training, and after every change of the card.

python models/training/embed_card.py

The known answers to the drawn pictures come from onnx's reference implementation of the operators, not from a runtime that will
be checked with them.
"""

import dataclasses
import os
import tempfile
from pathlib import Path

import numpy as np
import onnx
from onnx.reference import ReferenceEvaluator

from fundus_rt.models.canary import PICTURES, canary_picture, chosen_canary
from fundus_rt.models.card import CARD_KEY
from fundus_rt.models.registry import CARD_FOLDER, bundled_file, load_card


def canary_of(model, card):
    """Return the canary of a model, as it stands in a card."""
    spec = card.preprocessing
    pictures = np.stack([canary_picture(which, spec.input_size, spec.input_dtype) for which in range(PICTURES)])
    names = [output.name for output in card.outputs]
    answers = ReferenceEvaluator(model).run(names, {"frames": pictures})
    return chosen_canary(dict(zip(names, answers, strict=True))).to_dict()


def main():
    card = load_card("acquisition")
    target = bundled_file(card)
    model = onnx.load(target)
    card = dataclasses.replace(card, canary=canary_of(model, card))
    (CARD_FOLDER / "acquisition.json").write_text(card.to_json() + "\n", encoding="utf-8")
    onnx.helper.set_model_props(model, {CARD_KEY: card.to_json()})
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        written = Path(folder) / target.name
        onnx.save(model, written)
        os.replace(written, target)


if __name__ == "__main__":
    main()
