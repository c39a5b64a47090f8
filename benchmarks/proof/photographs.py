"""The photographs of a proof: read one after the other, and taken along their author's way."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from PIL import Image, ImageOps

from fundus_rt.converters.original_preprocessing import Photograph
from fundus_rt.models.artifacts import sha256_of_bytes
from fundus_rt.models.card import ModelCard, PreprocessingSpec
from fundus_rt.models.errors import DecodeError, EyeError, FundusRtError
from fundus_rt.runtime.batch import read_item
from fundus_rt.runtime.decode import decode
from fundus_rt.runtime.field_of_view import find_field_of_view
from fundus_rt.runtime.inputs import Item, items_from_list, items_from_paths
from fundus_rt.runtime.preprocess import crop_box

PLAIN_MODES = ("L", "P", "RGB", "RGBA", "CMYK")
"""Pillow's modes of 8 bits, which the author's libraries decode by themselves."""


@dataclass(frozen=True)
class Case:
    """One photograph of a proof."""

    name: str
    """Path as the user gave it."""
    content: bytes
    """The file; empty where it cannot be read."""
    sha256: str
    """Of the content; empty where it cannot be read."""
    eye: str | None = None
    """``left`` or ``right``: what a list says, or what all sources together say once they were asked; None: not known."""
    problem: str = ""
    """Why it cannot be read; empty where it can."""


def cases(paths: Sequence[str] = (), list_file: str | None = None) -> Iterator[Case]:
    """The photographs behind files, folders and globs, or those that a list names; what cannot be read is given with its problem.

    Args:
        paths: as `fundus_rt.runtime.inputs.items_from_paths` takes them.
        list_file: a CSV file with a ``file`` and, optionally, an ``eye`` column; instead of `paths`.

    Raises:
        UsageError: the list cannot be read.
    """
    for item in items_from_list(list_file) if list_file else items_from_paths(paths):
        yield _case(item)


def count_cases(paths: Sequence[str] = (), list_file: str | None = None) -> int:
    """How many photographs `cases` gives; none of them is read."""
    return sum(1 for _ in (items_from_list(list_file) if list_file else items_from_paths(paths)))


def case_again(name: str, sha256: str, eye: str | None) -> Case:
    """A photograph of an earlier row, read once more.

    Raises:
        FundusRtError: the file is gone, or holds another picture than before.
    """
    content = read_item(Item(name))
    if sha256_of_bytes(content) != sha256:
        raise FundusRtError(f"{name} has changed while it was looked at; leave the photographs alone until the proof is done")
    return Case(name, content, sha256, eye)


def photograph_of(case: Case, card: ModelCard) -> Photograph:
    """A photograph for the original's side, by its author's rules: nothing of it comes from what our pipeline made.

    The box is that of the field of view in the picture as the author's own decoder gives it.

    Args:
        case: with the eye that the sources state, where the card mirrors left eyes.
        card: of the author's side; its crop, filter and laterality count.

    Raises:
        EyeError: the card mirrors left eyes and the eye is not known.
        DecodeError: the author's decoder cannot read the file.
    """
    if card.laterality == "mirror-left" and case.eye is None:
        raise EyeError(
            f"the original's side of {card.name} mirrors left eyes, and no source says which eye this is; give an eye column "
            "with --list FILE.csv"
        )
    content = plain_content(case.content)
    frame = author_frame(content, card.preprocessing)
    box = crop_box(find_field_of_view(frame), frame.shape, card.preprocessing)
    return Photograph(content, box, mirror=card.laterality == "mirror-left" and case.eye == "left")


def plain_content(content: bytes) -> bytes:
    """A picture file that means the same to every library: what is none (DICOM, 16 bits) is decoded by the runtime, as PNG.

    Raises:
        DecodeError: not a picture.
    """
    if content[128:132] != b"DICM":
        try:
            with Image.open(io.BytesIO(content)) as opened:
                plain = opened.mode in PLAIN_MODES
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise DecodeError(f"Pillow cannot read a picture of {len(content):,} bytes ({error}); give a whole file") from error
        if plain:
            return content
    return bytes(cv2.imencode(".png", decode(content).frame, [cv2.IMWRITE_PNG_COMPRESSION, 1])[1])


def author_frame(content: bytes, spec: PreprocessingSpec) -> np.ndarray:
    """A picture as the author's library decodes it: OpenCV for an ``opencv-*`` filter, else Pillow.

    Args:
        content: a file from `plain_content`.
        spec: only `interpolation` is used.

    Returns:
        uint8 [H, W, 3], BGR, upright.

    Raises:
        DecodeError: the library cannot read it.
    """
    if spec.interpolation.startswith("opencv-"):
        frame = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)
        if frame is None:
            raise DecodeError(f"OpenCV cannot read a picture of {len(content):,} bytes; give a whole file")
        return np.asarray(frame, np.uint8)
    try:
        with Image.open(io.BytesIO(content)) as opened:
            picture = ImageOps.exif_transpose(opened).convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DecodeError(f"Pillow cannot read a picture of {len(content):,} bytes ({error}); give a whole file") from error
    return np.ascontiguousarray(np.asarray(picture, np.uint8)[..., ::-1])


def _case(item: Item) -> Case:
    try:
        content = read_item(item)
    except FundusRtError as error:
        return Case(item.path, b"", "", item.listed_eye, " ".join(str(error).split()))
    return Case(item.path, content, sha256_of_bytes(content), item.listed_eye)
