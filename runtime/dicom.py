"""Read a fundus photograph and its eye from a DICOM file, through pydicom (an extra: ``pip install 'fundus-rt[dicom]'``).

Colour: pydicom (3 and later) turns YBR_FULL and YBR_FULL_422 into RGB (a compressed picture's values differ by up to 3 from
those of the same JPEG outside of DICOM); palettes are looked up and MONOCHROME1 is inverted here.
More than 8 stored bits become 8 by their high bits, as `fundus_rt.runtime.decode` does with 16-bit PNG. Windows (VOI LUT) and
embedded ICC profiles are not applied: a network has seen photographs as cameras export them to JPEG.

The eye is read from Image Laterality (0020,0062), Frame Laterality (0020,9072), the series' Laterality (0020,0060) and the
modifiers of the Anatomic Region (0008,2218). They may all be missing, "B" (both eyes), or, because somebody typed them,
contradict one another; then no eye is chosen.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterator
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from fundus_rt.models.errors import BackendUnavailableError, DecodeError, EyeError
from fundus_rt.models.memory import memory_for

PHOTOGRAPH_CLASSES = {
    "1.2.840.10008.5.1.4.1.1.77.1.5.1": "Ophthalmic Photography 8 Bit",
    "1.2.840.10008.5.1.4.1.1.77.1.5.2": "Ophthalmic Photography 16 Bit",
    "1.2.840.10008.5.1.4.1.1.77.1.5.5": "Wide Field Ophthalmic Photography Stereographic Projection",
    "1.2.840.10008.5.1.4.1.1.77.1.5.6": "Wide Field Ophthalmic Photography 3D Coordinates",
    "1.2.840.10008.5.1.4.1.1.77.1.4": "VL Photographic",
    "1.2.840.10008.5.1.4.1.1.77.1.4.1": "Video Photographic",
    "1.2.840.10008.5.1.4.1.1.77.1.1": "VL Endoscopic",
    "1.2.840.10008.5.1.4.1.1.7": "Secondary Capture",
    "1.2.840.10008.5.1.4.1.1.7.2": "Multi-frame Grayscale Byte Secondary Capture",
    "1.2.840.10008.5.1.4.1.1.7.3": "Multi-frame Grayscale Word Secondary Capture",
    "1.2.840.10008.5.1.4.1.1.7.4": "Multi-frame True Color Secondary Capture",
}
"""SOP classes (PS3.6, A) in which cameras and archives keep fundus photographs."""

_EYES = {"L": "left", "R": "right"}
_SIDE_CODES = {
    ("SCT", "7771000"): "L",
    ("SCT", "24028007"): "R",
    ("SCT", "51440002"): "B",
    ("SRT", "G-A101"): "L",
    ("SRT", "G-A100"): "R",
    ("SRT", "G-A102"): "B",
    ("SNM3", "G-A101"): "L",
    ("SNM3", "G-A100"): "R",
}
"""Codes of sides (PS3.16, CID 244 Laterality), in SNOMED CT and in the older SNOMED RT that cameras still write."""


def decode_dicom(content: bytes, name: str) -> tuple[NDArray[np.uint8], str | None, tuple[str, ...]]:
    """Decode the first frame of a DICOM photograph.

    Args:
        content: the whole file, with its preamble.
        name: what to call the file in an error.

    Returns:
        The frame, uint8 [H, W, 3] BGR; the eye, ``left``, ``right`` or None; warnings.

    Raises:
        BackendUnavailableError: no pydicom, or none of the decoders that the transfer syntax needs.
        DecodeError: damaged, of another kind than a photograph, or too small or too large.
        EyeError: two tags name different eyes.
    """
    from fundus_rt.runtime.decode import BYTES_A_PIXEL, no_memory_is_no_damage, require_dimensions

    pydicom = _pydicom()
    try:
        dataset = pydicom.dcmread(io.BytesIO(content))
    except Exception as error:  # pydicom raises whatever a broken element led it to
        no_memory_is_no_damage(error)
        raise DecodeError(f"{name} is a damaged DICOM file ({error}); export it again") from error
    sop_class = str(dataset.get("SOPClassUID", ""))
    if sop_class not in PHOTOGRAPH_CLASSES:
        kind = getattr(dataset.get("SOPClassUID", ""), "name", "") or "no SOP class"
        raise DecodeError(
            f"{name} is DICOM of the kind {kind!r}, expected a photograph (Ophthalmic Photography, VL Photographic "
            "or Secondary Capture); export the fundus photograph"
        )
    width, height = _number(dataset, "Columns", name), _number(dataset, "Rows", name)
    require_dimensions(width, height, name)
    eye, warnings = eye_from_dataset(dataset, name)
    frames = int(dataset.get("NumberOfFrames", 1) or 1)
    if frames > 1:
        warnings.append(f"the file holds {frames} frames, the first was taken")
    with memory_for(width * height * BYTES_A_PIXEL):
        return _bgr(_pixels(dataset, name), dataset, name), eye, tuple(warnings)


def eye_from_dataset(dataset: Any, name: str) -> tuple[str | None, list[str]]:
    """The eye that a DICOM data set names, and warnings.

    Raises:
        EyeError: one tag says left and another right.
    """
    found = [(tag, str(value).strip().upper()) for tag, value in _sides(dataset)]
    named = {value: tag for tag, value in reversed(found) if value in _EYES}
    if len(named) > 1:
        raise EyeError(
            f"{name}: the DICOM tags disagree about the eye: {named['L']} says left, {named['R']} says right; "
            "correct the file, or export the picture and give the eye with it"
        )
    both = [tag for tag, value in found if value == "B" and tag != "Laterality"]
    if both:
        return None, [f"the DICOM tag {both[0]} says both eyes: the eye is taken as unknown"]
    return (_EYES[next(iter(named))] if named else None), []


def _sides(dataset: Any) -> Iterator[tuple[str, Any]]:
    """Every tag of the first frame that names a side, and its value."""
    for tag in ("ImageLaterality", "Laterality"):
        if dataset.get(tag):
            yield tag, dataset.get(tag)
    groups = list(dataset.get("SharedFunctionalGroupsSequence") or []) + list(
        (dataset.get("PerFrameFunctionalGroupsSequence") or [])[:1]
    )
    anatomies = [anatomy for group in groups for anatomy in group.get("FrameAnatomySequence") or []]
    for anatomy in anatomies:
        if anatomy.get("FrameLaterality"):
            yield "FrameLaterality", anatomy.get("FrameLaterality")
    for holder in [dataset, *anatomies]:
        for region in holder.get("AnatomicRegionSequence") or []:
            yield from _coded_sides(region, "AnatomicRegionModifierSequence")
        for structure in holder.get("PrimaryAnatomicStructureSequence") or []:
            yield from _coded_sides(structure, "PrimaryAnatomicStructureModifierSequence")


def _coded_sides(holder: Any, sequence: str) -> Iterator[tuple[str, str]]:
    for code in holder.get(sequence) or []:
        side = _SIDE_CODES.get((str(code.get("CodingSchemeDesignator", "")), str(code.get("CodeValue", ""))))
        if side:
            yield sequence, side


def _pydicom() -> Any:
    try:
        import pydicom
        import pydicom.pixels
    except ImportError as error:
        raise BackendUnavailableError(
            f"reading DICOM needs pydicom 3 or later, which is not installed ({error}); pip install 'fundus-rt[dicom]'"
        ) from error
    return pydicom


def _number(dataset: Any, tag: str, name: str) -> int:
    value = dataset.get(tag)
    if value is None:
        raise DecodeError(f"{name} is DICOM without {tag}, so it holds no picture; export the fundus photograph")
    return int(value)


def _pixels(dataset: Any, name: str) -> NDArray[Any]:
    """The first frame as stored, YBR turned to RGB: [H, W] or [H, W, 3] of the stored type."""
    from fundus_rt.runtime.decode import no_memory_is_no_damage

    pydicom = _pydicom()
    if "PixelData" not in dataset:
        raise DecodeError(f"{name} is DICOM without pixel data; export the fundus photograph")
    try:
        # Baseline JPEG has one set of values wherever it is decoded: Pillow's, as for JPEG files.
        baseline = dataset.file_meta.TransferSyntaxUID == pydicom.uid.JPEGBaseline8Bit
        plugin = {"decoding_plugin": "pillow"} if baseline else {}
        pixels: NDArray[Any] = pydicom.pixels.pixel_array(dataset, index=0, **plugin)
    except RuntimeError as error:  # pydicom's answer to a transfer syntax without an installed decoder
        no_memory_is_no_damage(error)
        syntax = dataset.file_meta.TransferSyntaxUID.name
        raise BackendUnavailableError(
            f"{name} is DICOM compressed as {syntax}, which cannot be decoded here ({error}); pip install 'fundus-rt[dicom]'"
        ) from error
    except Exception as error:
        no_memory_is_no_damage(error)
        raise DecodeError(f"{name} is a damaged DICOM file ({error}); export it again") from error
    return pixels


def _bgr(pixels: NDArray[Any], dataset: Any, name: str) -> NDArray[np.uint8]:
    """Eight-bit BGR of a frame by its photometric interpretation (PS3.3, C.7.6.3.1.2)."""
    photometric = str(dataset.get("PhotometricInterpretation", ""))
    bits = int(dataset.get("BitsStored", 8))
    if np.issubdtype(pixels.dtype, np.floating) or int(dataset.get("PixelRepresentation", 0)):
        raise DecodeError(f"{name} has signed or real pixel values, expected unsigned grey levels; export the photograph again")
    if photometric == "PALETTE COLOR":
        from pydicom.pixels import apply_color_lut

        pixels = apply_color_lut(pixels, dataset)
        bits = 8 * pixels.dtype.itemsize
    elif photometric == "MONOCHROME1":
        largest = (1 << bits) - 1
        pixels = largest - (pixels & largest)
    eight = _eight_bits(pixels, bits)
    if eight.ndim == 2:
        return np.asarray(cv2.cvtColor(eight, cv2.COLOR_GRAY2BGR), np.uint8)
    if eight.ndim != 3 or eight.shape[2] != 3:
        raise DecodeError(f"{name} has pixels of the shape {pixels.shape}, expected one or three samples; export it again")
    if int(dataset.get("SamplesPerPixelUsed", 3)) == 2:
        eight = eight.copy()
        eight[..., 2] = 0  # C.8.17.2: the third sample is padding
    return np.asarray(cv2.cvtColor(eight, cv2.COLOR_RGB2BGR), np.uint8)


def _eight_bits(pixels: NDArray[Any], bits: int) -> NDArray[np.uint8]:
    """The high 8 of `bits` stored bits; fewer than 8 are stretched to the whole range."""
    if bits > 8:
        pixels = pixels >> (bits - 8)
    elif bits < 8:
        pixels = np.round(pixels * (255 / math.ldexp(1, bits) / (1 - math.ldexp(1, -bits))))
    return np.ascontiguousarray(np.clip(pixels, 0, 255).astype(np.uint8))
