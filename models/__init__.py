"""What a model is: cards, bundled weights, identity of files."""

from fundus_rt.models.card import CARD_KEY, Citation, ModelCard, OutputSpec, PreprocessingSpec, card_from_json
from fundus_rt.models.errors import FundusRtError
from fundus_rt.models.registry import EXAMPLE_FOLDER, bundled_file, list_cards, load_card

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
