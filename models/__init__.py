"""What a model is: cards, bundled weights, identity of files."""

import os

from fundus_rt.models.card import CARD_KEY, Citation, ModelCard, OutputSpec, PreprocessingSpec, card_from_json
from fundus_rt.models.errors import FundusRtError
from fundus_rt.models.registry import EXAMPLE_FOLDER, bundled_file, list_cards, load_card

# ONNX Runtime's own wheels for Linux and macOS, from 1.29 on, report to their maker unless this is set before they are imported:
# names and hashes of models, the machine, an identifier kept in the home folder. A device in a clinic reports to nobody.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

__all__ = [
    "CARD_KEY",
    "EXAMPLE_FOLDER",
    "Citation",
    "FundusRtError",
    "ModelCard",
    "OutputSpec",
    "PreprocessingSpec",
    "bundled_file",
    "card_from_json",
    "list_cards",
    "load_card",
]
