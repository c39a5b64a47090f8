"""The cards that the package knows by name."""

from __future__ import annotations

import difflib
from pathlib import Path

from fundus_rt.models.card import ModelCard, card_from_json
from fundus_rt.models.errors import CardError

_FOLDER = Path(__file__).parent
CARD_FOLDER = _FOLDER / "cards"
BUNDLED_FOLDER = _FOLDER / "bundled"
EXAMPLE_FOLDER = _FOLDER / "examples"
VECTOR_FOLDER = _FOLDER / "vectors"
"""Test vectors for programs in other languages, see ``docs/porting.md``; written by `fundus_rt.benchmarks.make_vectors`."""


def list_cards() -> list[ModelCard]:
    """Every known card, by name."""
    return [load_card(path.stem) for path in sorted(CARD_FOLDER.glob("*.json"))]


def load_card(name: str | Path) -> ModelCard:
    """A card by its name, or from a ``.json`` file.

    Raises:
        CardError: no such card or file, or a card that does not validate.
    """
    path = Path(name)
    if path.suffix != ".json":
        known = sorted(p.stem for p in CARD_FOLDER.glob("*.json"))
        if str(name) not in known:
            near = difflib.get_close_matches(str(name), known, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise CardError(f"no card is named {str(name)!r}.{hint} Known: {', '.join(known)}; or give a .json file.")
        path = CARD_FOLDER / f"{name}.json"
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CardError(f"card file {path} cannot be read ({error}); give a card's name or a readable .json file") from error
    card = card_from_json(text, origin=path.name)
    return card


def bundled_file(card: ModelCard) -> Path:
    """Where the weights of a card that ships with the package lie.

    Raises:
        CardError: the package ships no weights for this card; the message says where they are to be had.
    """
    if not card.bundled:
        raise CardError(
            f"the weights of {card.name!r} are not part of this package. {card.weights} Then convert them:\n"
            f"  fundus-rt convert CHECKPOINT --card {card.name} -o {card.name}.onnx"
        )
    return BUNDLED_FOLDER / card.bundled
