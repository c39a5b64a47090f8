"""Decode the content of a picture file to a frame, with the grey levels of Pillow's decoder.

The published models were trained on what Pillow (or Keras' `load_img`, which is Pillow) read from the files, so a frame here
has exactly those values. Baseline and progressive JPEGs with one or three channels go through OpenCV, which gives the same
values for about half of the core-time, but only where it has been seen to agree: both carry their own JPEG library, so on first
use a small picture is decoded by both, and where they differ Pillow decodes everything.

What is done with what a photograph rarely has:

* *EXIF orientation* is applied: the frame is upright as a viewer shows it. Authors' pipelines ignored the tag, but trained on
  files without it; a camera that writes it would otherwise have its eyes turned on their side.
* *CMYK and YCCK* become RGB as Pillow does it, ``255 - min(255, C + K)`` on Adobe's inverted values; no colour profile is used.
* *Embedded ICC profiles* are not applied, because neither Pillow nor OpenCV does: the models have seen the file's own numbers.
* *16 bits*: the high byte is kept (``value // 256``), as Pillow and OpenCV do for colour PNG. PNM is scaled by its own maximum.
* *Alpha* is dropped, as ``Image.convert("RGB")`` does; transparent pixels keep the colour that is stored below.
* *Grey* is repeated in the three channels. *Multi-page TIFF* and multi-picture JPEG: the first picture.

A JPEG without its end marker is refused: OpenCV would answer it with a grey lower half, and Pillow, too, where the process has
set `ImageFile.LOAD_TRUNCATED_IMAGES`. Dimensions are read from the header before anything is decoded.
"""

from __future__ import annotations

import functools
import io
import re
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile, TiffImagePlugin

from fundus_rt.models.errors import DecodeError
from fundus_rt.models.memory import is_out_of_memory, memory_for

Frame = NDArray[np.uint8]

MOST_ASPECT = 8
"""Longest side of a photograph over its shortest: a strip would be padded to a square of many times its size."""
LEAST_SIDE = 32
"""Least width and height of a frame, pixels: nothing can be seen of a retina in fewer."""
BYTES_A_PIXEL = 10
"""At most, while a picture is decoded: Pillow's four, three as bytes, three of the frame; OpenCV takes six."""
MOST_PIXELS = 89_478_485
"""Most pixels of a frame: Pillow's own limit against decompression bombs (a quarter GiB at 24 bits). The largest fundus
photographs in use have about 50 megapixels."""

_READERS = ("JPEG", "PNG", TiffImagePlugin.TiffImageFile.format, "PPM", "BMP")
"""Pillow's names. The TIFF reader is imported above: Pillow would otherwise import every reader it has to find it."""
_FORMATS = {"JPEG": "jpeg", "MPO": "jpeg", "PNG": "png", "TIFF": "tiff", "PPM": "ppm", "BMP": "bmp"}
_ORIENTATION = 0x0112
_MARKER = re.compile(rb"\xff+[^\x00\xff\xd0-\xd7]", re.DOTALL)
_LOW_BITS = "the brightest pixel is {0} of 65535: a picture of 12 or fewer bits in 16? Only the high byte is used"


@dataclass(frozen=True)
class Decoded:
    """A picture file's content as a frame, and what was done to get it."""

    frame: Frame
    """uint8 [H, W, 3], BGR, C-contiguous, upright."""
    format: str
    """``jpeg``, ``png``, ``tiff``, ``ppm`` (PBM, PGM and PPM), ``bmp`` or ``dicom``."""
    orientation: int = 1
    """EXIF orientation 1 to 8 as found in the file; it has been applied. 1 where there is none."""
    eye: str | None = None
    """``left`` or ``right`` where DICOM says it, else None."""
    warnings: tuple[str, ...] = ()
    """What a reader of the result should know, one sentence each."""


def decode(content: bytes, name: str = "") -> Decoded:
    """Decode JPEG, PNG, TIFF, PPM, BMP or DICOM.

    Thread-safe. The decoders release the interpreter's lock while they work.

    Args:
        content: the whole file.
        name: what to call the file in an error; empty for "the picture".

    Raises:
        DecodeError: empty, not such a file, cut off, damaged, smaller than 32 pixels or larger than 89 megapixels.
        EyeError: two tags of a DICOM file disagree about the eye.
        BackendUnavailableError: a DICOM file and no pydicom, or a transfer syntax without its decoder.
        MemoryError: there is not the memory for its pixels; nothing is said of the file.
    """
    name = name or "the picture"
    if not content:
        raise DecodeError(f"{name} is empty (0 bytes), expected a fundus photograph; copy the file from the camera again")
    if content[128:132] == b"DICM":
        from fundus_rt.runtime.dicom import decode_dicom

        frame, eye, warnings = decode_dicom(content, name)
        return Decoded(frame, "dicom", eye=eye, warnings=warnings)
    picture = _opened(content, name)
    require_dimensions(picture.width, picture.height, name)
    jpeg = _FORMATS[str(picture.format)] == "jpeg"
    with memory_for(picture.width * picture.height * BYTES_A_PIXEL):
        return _from_jpeg(content, picture, name) if jpeg else _from_other(content, picture, name)


def no_memory_is_no_damage(error: Exception) -> None:
    """Raise `MemoryError` where that is what a decoder's error means: it says nothing of the file."""
    if is_out_of_memory(error):
        raise MemoryError(str(error)) from error


def require_dimensions(width: int, height: int, name: str) -> None:
    """Raise `DecodeError` for a picture that is too small to show a retina or too large to be decoded safely."""
    if min(width, height) < LEAST_SIDE:
        raise DecodeError(f"{name} has {width} x {height} pixels, expected at least {LEAST_SIDE} each way; give the photograph")
    if max(width, height) > MOST_ASPECT * min(width, height):
        raise DecodeError(
            f"{name} has {width} x {height} pixels, one side more than {MOST_ASPECT} times the other, expected a photograph; "
            "cut the photograph out of the strip"
        )
    if width * height > MOST_PIXELS:
        raise DecodeError(
            f"{name} has {width} x {height} = {width * height / 1e6:.0f} megapixels, more than the {MOST_PIXELS / 1e6:.0f} that "
            "are decoded; reduce it or cut out the photograph first"
        )


def _opened(content: bytes, name: str) -> Image.Image:
    """The picture with its header read and nothing decoded."""
    try:
        return Image.open(io.BytesIO(content), formats=_READERS)
    except Image.DecompressionBombError as error:
        raise DecodeError(f"{name} is too large to be decoded safely ({error}); reduce it first") from error
    except Exception as error:  # plugins raise whatever a broken header led them to
        no_memory_is_no_damage(error)
        raise DecodeError(
            f"{name} ({len(content)} bytes beginning with {content[:4].hex(' ')}) is not a picture that can be read; "
            "expected JPEG, PNG, TIFF, PPM, BMP or DICOM, whole"
        ) from error


def _from_jpeg(content: bytes, picture: Image.Image, name: str) -> Decoded:
    _require_end_of_jpeg(content, name)
    orientation = _orientation(picture)
    count = getattr(picture, "n_frames", 1)
    warnings = (f"the file holds {count} pictures, the first was taken",) if count > 1 else ()
    if picture.mode in ("L", "RGB") and opencv_decodes_as_pillow():
        flags = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
        frame = cv2.imdecode(np.frombuffer(content, np.uint8), flags)
        if frame is None:
            raise DecodeError(f"{name} is a damaged JPEG: its header is whole, its picture is not; copy the file again")
    else:
        frame = _bgr(picture, name)
    frame = np.asarray(frame, np.uint8)
    refuse_filled_end(frame, name)
    return Decoded(upright(frame, orientation), "jpeg", orientation, warnings=warnings)


def _from_other(content: bytes, picture: Image.Image, name: str) -> Decoded:
    kind = _FORMATS[str(picture.format)]
    orientation = _orientation(picture)
    count = getattr(picture, "n_frames", 1)
    warnings = [f"the file holds {count} pages, the first was taken"] if count > 1 else []
    if ImageFile.LOAD_TRUNCATED_IMAGES:
        warnings.append("Pillow's LOAD_TRUNCATED_IMAGES is set in this process: a file that is cut off would not be noticed")
    _load(picture, name)
    if "A" in picture.getbands() and picture.getchannel("A").getextrema()[0] != picture.getchannel("A").getextrema()[1]:
        warnings.append("the picture has transparent parts; transparency was dropped")
    if picture.mode.startswith("I"):
        grey, more = _high_byte(picture, name)
        warnings += more
        frame = np.asarray(cv2.cvtColor(grey, cv2.COLOR_GRAY2BGR), np.uint8)
    else:
        frame = _bgr(picture, name)
    remaining = orientation if _orientation(picture) != 1 else 1  # Pillow turns a TIFF upright itself and drops the tag
    return Decoded(upright(frame, remaining), kind, orientation, warnings=tuple(warnings))


def _load(picture: Image.Image, name: str) -> None:
    try:
        picture.load()
    except Exception as error:  # OSError, SyntaxError, struct.error, zlib.error and others, by plugin and damage
        no_memory_is_no_damage(error)
        raise DecodeError(f"{name} is cut off or damaged ({error}), expected a whole file; copy it again") from error


def _bgr(picture: Image.Image, name: str) -> Frame:
    """The picture as Pillow converts it to RGB, in OpenCV's order."""
    _load(picture, name)
    try:
        rgb = picture if picture.mode == "RGB" else picture.convert("RGB")
    except Exception as error:
        no_memory_is_no_damage(error)
        raise DecodeError(f"{name} has the colour mode {picture.mode}, which cannot be converted; save it as RGB") from error
    return np.asarray(cv2.cvtColor(np.asarray(rgb), cv2.COLOR_RGB2BGR), np.uint8)


def _high_byte(picture: Image.Image, name: str) -> tuple[Frame, list[str]]:
    """Eight bits of a grey picture of 16, uint8 [H, W], and warnings."""
    values = np.asarray(picture)
    low, high = int(values.min()), int(values.max())
    if low < 0 or high > 65535:
        raise DecodeError(f"{name} has grey levels from {low} to {high}, expected 0 to 65535 at most; save it with 8 or 16 bits")
    warnings = [_LOW_BITS.format(high)] if high < 4096 else []
    return np.asarray(values >> 8, np.uint8), warnings


def _orientation(picture: Image.Image) -> int:
    """EXIF orientation 1 to 8; 1 where there is none or it is damaged."""
    try:
        value = picture.getexif().get(_ORIENTATION, 1)
    except Exception as error:  # a damaged EXIF block says nothing about the picture itself
        no_memory_is_no_damage(error)
        return 1
    return int(value) if value in range(1, 9) else 1


def upright(frame: Frame, orientation: int) -> Frame:
    """Apply an EXIF orientation (CIPA DC-008, 4.6.4: which side of the stored picture is up and left), C-contiguous."""
    if orientation in (5, 7):
        frame = np.asarray(cv2.transpose(frame), np.uint8)
        return frame if orientation == 5 else np.asarray(cv2.rotate(frame, cv2.ROTATE_180), np.uint8)
    if orientation in (2, 4):
        return np.asarray(cv2.flip(frame, 1 if orientation == 2 else 0), np.uint8)
    turns = {3: cv2.ROTATE_180, 6: cv2.ROTATE_90_CLOCKWISE, 8: cv2.ROTATE_90_COUNTERCLOCKWISE}
    return np.asarray(cv2.rotate(frame, turns[orientation]), np.uint8) if orientation in turns else frame


def _require_end_of_jpeg(content: bytes, name: str) -> None:
    """Raise `DecodeError` unless the first picture of a JPEG file has its end marker.

    A file that ends in the marker is whole: inside compressed data the byte 0xFF is never followed by 0xD9. Otherwise the
    segments are walked, so that the end marker of a thumbnail does not count.
    """
    if content.endswith(b"\xff\xd9"):
        return
    place = 2
    while True:
        found = _MARKER.search(content, place)
        if found is None:
            raise DecodeError(
                f"{name} is a JPEG that is cut off: {len(content)} bytes without the marker that ends the picture; "
                "copy the file again"
            )
        marker, place = content[found.end() - 1], found.end()
        if marker == 0xD9:
            return
        if marker not in (0x01, 0xD8):
            place += int.from_bytes(content[place : place + 2], "big")


def refuse_filled_end(frame: Frame, name: str) -> None:
    """Raise `DecodeError` where the end of a JPEG is one flat colour, which decoders put where its data is missing.

    A black surround or a page of one colour around the photograph is flat as well: it is known by the first row.
    """
    rows = max(16, frame.shape[0] // 50)
    if not np.array_equal(frame[-1, 0], frame[-1, -1]) or np.ptp(frame[-1].reshape(-1, 3), axis=0).any():
        return
    color = frame[-1, 0]
    if int(color.max()) < 48 or np.abs(frame[0].astype(np.int16) - color).max() < 16:
        return
    if (frame[-rows:] == color).all():
        flat = int(np.argmin((frame[::-1] == color).all(axis=(1, 2)))) or frame.shape[0]
        raise DecodeError(
            f"{name} is a damaged JPEG: its last {flat} of {frame.shape[0]} rows are one flat colour, as where data is "
            "missing; copy the file again"
        )


@functools.lru_cache(maxsize=1)
def opencv_decodes_as_pillow() -> bool:
    """Whether this machine's OpenCV gives the values of this machine's Pillow for JPEG, seen on small noisy pictures."""
    rng = np.random.default_rng(0)
    texture = cv2.resize(rng.integers(0, 256, (20, 29, 3), dtype=np.uint8), (117, 83), interpolation=cv2.INTER_CUBIC)
    picture = Image.fromarray(np.asarray(texture, np.uint8))
    for kind, options in (
        (picture, {"subsampling": 0}),
        (picture, {"subsampling": 1}),
        (picture, {"subsampling": 2}),
        (picture, {"subsampling": 2, "progressive": True}),
        (picture.convert("L"), {}),
    ):
        file = io.BytesIO()
        kind.save(file, "JPEG", quality=70, **options)
        decoded = cv2.imdecode(np.frombuffer(file.getvalue(), np.uint8), cv2.IMREAD_COLOR)
        expected = np.asarray(Image.open(file).convert("RGB"))[..., ::-1]
        if decoded is None or not np.array_equal(decoded, expected):
            return False
    return True
