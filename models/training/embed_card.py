"""Put the card of the bundled model into its file: the last step after training, and after every change of the card.

python models/training/embed_card.py
"""

import os
import tempfile
from pathlib import Path

import onnx

from fundus_rt.models.card import CARD_KEY
from fundus_rt.models.registry import bundled_file, load_card


def main():
    card = load_card("acquisition")
    target = bundled_file(card)
    model = onnx.load(target)
    onnx.helper.set_model_props(model, {CARD_KEY: card.to_json()})
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        written = Path(folder) / target.name
        onnx.save(model, written)
        os.replace(written, target)


if __name__ == "__main__":
    main()
