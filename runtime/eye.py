"""Which eye is it? Every source is asked, and two that disagree are an error, never a choice.

A model that was trained on mirrored left eyes answers wrongly for the wrong eye without any outward sign, so an eye is
never guessed here.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from pathlib import PurePath

from fundus_rt.models.errors import EyeError

EYES = ("left", "right")

_WORDS = {"left": "left", "lefteye": "left", "os": "left", "right": "right", "righteye": "right", "od": "right"}
_LETTERS = {"L": "left", "R": "right", "OS": "left", "OD": "right"}
_NUMBERED = re.compile(r"^[A-Za-z]*\d+(OS|OD|L|R)$")
_SEPARATORS = re.compile(r"(?:[^\w\udc80-\udcff]|_)+")
"""What stands between tokens; bytes that are no text (surrogates) count as letters."""
_OPTIC_DISC = {"disc", "disk", "cup", "oc", "seg", "segmentation", "mask", "masks", "label", "gt", "fovea", "onh", "papilla"}
"""Words beside which ``OD`` means the optic disc."""


@dataclass(frozen=True)
class EyeDecision:
    """The eye of a picture (None: unknown), and the sources that say so, joined by ``+``."""

    value: str | None
    source: str | None


def eye_from_file_name(name: str) -> str | None:
    """``left`` or ``right`` when the file name says so in whole tokens, else None.

    Tokens are what stands between characters that are no letters or digits of any script, so that no part of a patient's
    name is taken for one. Read are the words left, right, OD and OS in any case, and a number that ends in L, R, OD or OS
    in capitals (``01L`` of CHASE_DB1, ``RET002OD`` of PAPILA). ``bright`` is not right, a lone L or R may be an initial, and
    OD beside words such as disc, cup or mask is the optic disc. A name with tokens of both eyes says nothing. Folder names
    are not read.
    """
    stem = PurePath(name.replace("\\", "/")).name.rsplit(".", 1)[0]
    tokens = [token for token in _SEPARATORS.split(unicodedata.normalize("NFC", stem)) if token]
    disc = any(token.lower() in _OPTIC_DISC for token in tokens)
    found = set()
    for token in tokens:
        if disc and re.search(r"OD$", token, re.IGNORECASE):
            continue
        numbered = _NUMBERED.match(token)
        if token.lower() in _WORDS:
            found.add(_WORDS[token.lower()])
        elif numbered:
            found.add(_LETTERS[numbered.group(1)])
    return found.pop() if len(found) == 1 else None


def resolve_eye(sources: dict[str, str | None]) -> EyeDecision:
    """The one eye that all sources name.

    Args:
        sources: by name of the source (``call``, ``list``, ``dicom``, ``file name``, ``acquisition model``) ``left``,
            ``right`` or None where the source does not say.

    Raises:
        EyeError: two sources disagree, or a source says something that is no eye.
    """
    said = {name: eye for name, eye in sources.items() if eye is not None}
    wrong = {name: eye for name, eye in said.items() if eye not in EYES}
    if wrong:
        raise EyeError(f"{_listing(wrong)}: expected left or right")
    if len(set(said.values())) > 1:
        raise EyeError(
            f"sources disagree about the eye: {_listing(said)}. Look at the picture and correct the wrong source; "
            "if the camera mirrors its pictures, say --mirrored-by-source."
        )
    if not said:
        return EyeDecision(None, None)
    return EyeDecision(next(iter(said.values())), "+".join(said))


def require_eye(decision: EyeDecision, model: str) -> str:
    """The eye, for a model that mirrors left eyes.

    Raises:
        EyeError: the eye is unknown; the message says how to give it.
    """
    if decision.value is None:
        raise EyeError(
            f"{model} needs to know which eye this is, and neither the call, a list, DICOM, the file name nor the "
            "acquisition model says so surely. Give it: --eye left|right, or an eye column in --list FILE.csv."
        )
    return decision.value


def _listing(said: dict[str, str]) -> str:
    return ", ".join(f"{name} says {eye!r}" for name, eye in said.items())
