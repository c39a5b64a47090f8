"""DICOM photographs written by pydicom itself, and what their tags say of the eye."""

from __future__ import annotations

import io
import sys
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fundus_rt.models.errors import BackendUnavailableError, DecodeError, EyeError
from fundus_rt.runtime.decode import decode
from tests.photographs import drawn_fundus

pydicom = pytest.importorskip("pydicom", minversion="3")
from pydicom.dataset import Dataset, FileMetaDataset  # noqa: E402
from pydicom.encaps import encapsulate  # noqa: E402
from pydicom.sequence import Sequence  # noqa: E402
from pydicom.uid import ExplicitVRLittleEndian, JPEGBaseline8Bit, generate_uid  # noqa: E402

FRAME = drawn_fundus(120, 96, (60.0, 48.0), 42.0)
RGB = np.ascontiguousarray(FRAME[..., ::-1])
GREY = RGB[..., 1]
OPHTHALMIC_8 = "1.2.840.10008.5.1.4.1.1.77.1.5.1"
OPHTHALMIC_16 = "1.2.840.10008.5.1.4.1.1.77.1.5.2"


def written(pixels: Any, photometric: str = "RGB", *, bits: int = 8, syntax: str = ExplicitVRLittleEndian, **tags: Any) -> bytes:
    """A DICOM file. `pixels` are [H, W], [H, W, samples], [frames, H, W, samples], or the bytes of an encoded picture."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.SOPClassUID = tags.pop("SOPClassUID", OPHTHALMIC_8)
    dataset.SOPInstanceUID = generate_uid()
    dataset.Rows, dataset.Columns = FRAME.shape[:2]
    dataset.SamplesPerPixel = 1 if photometric.startswith(("MONO", "PALETTE")) else 3
    if dataset.SamplesPerPixel == 3:
        dataset.PlanarConfiguration = 0
    dataset.PhotometricInterpretation = photometric
    dataset.BitsAllocated = 16 if bits > 8 else 8
    dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = bits, bits - 1, 0
    dataset.PixelData = encapsulate([pixels]) if isinstance(pixels, bytes) else pixels.tobytes()
    for tag, value in tags.items():
        setattr(dataset, tag, value)
    file = io.BytesIO()
    pydicom.dcmwrite(file, dataset, enforce_file_format=True)
    return file.getvalue()


def coded(value: str, scheme: str = "SCT") -> Dataset:
    code = Dataset()
    code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = value, scheme, "side"
    return code


def region(value: str, scheme: str = "SCT") -> Sequence:
    eye = coded("81745001")
    eye.AnatomicRegionModifierSequence = Sequence([coded(value, scheme)])
    return Sequence([eye])


def frame_laterality(side: str) -> Sequence:
    anatomy, group = Dataset(), Dataset()
    anatomy.FrameLaterality = side
    group.FrameAnatomySequence = Sequence([anatomy])
    return Sequence([group])


def test_uncompressed_rgb() -> None:
    decoded = decode(written(RGB))
    assert (decoded.format, decoded.eye, decoded.warnings, decoded.orientation) == ("dicom", None, (), 1)
    assert decoded.frame.flags.c_contiguous
    np.testing.assert_array_equal(decoded.frame, FRAME)


def test_planar_rgb() -> None:
    decoded = decode(written(np.ascontiguousarray(RGB.transpose(2, 0, 1)), PlanarConfiguration=1))
    np.testing.assert_array_equal(decoded.frame, FRAME)


def test_ybr_full_is_turned_to_rgb() -> None:
    """Pillow's YCbCr is the full-range ITU-R BT.601 that DICOM means; Pillow turns it back in fixed point."""
    stored = Image.fromarray(RGB).convert("YCbCr")
    decoded = decode(written(np.asarray(stored), "YBR_FULL"))
    assert np.abs(decoded.frame.astype(int) - np.asarray(stored.convert("RGB"))[..., ::-1]).max() <= 2


@pytest.mark.parametrize("photometric", ["YBR_FULL_422", "YBR_FULL"])
def test_jpeg_baseline(photometric: str) -> None:
    file = io.BytesIO()
    Image.fromarray(RGB).save(file, "JPEG", quality=90, subsampling=1 if photometric.endswith("422") else 0)
    decoded = decode(written(file.getvalue(), photometric, syntax=JPEGBaseline8Bit, SOPClassUID="1.2.840.10008.5.1.4.1.1.77.1.4"))
    expected = np.asarray(Image.open(file).convert("RGB"))[..., ::-1].astype(int)
    assert np.abs(decoded.frame - expected).max() <= 3 and np.abs(decoded.frame - expected).mean() < 0.6


def test_monochrome() -> None:
    expected = np.repeat(GREY[..., None], 3, axis=2)
    np.testing.assert_array_equal(decode(written(GREY, "MONOCHROME2")).frame, expected)
    np.testing.assert_array_equal(decode(written(255 - GREY, "MONOCHROME1")).frame, expected)


@pytest.mark.parametrize("bits", [10, 12, 16])
def test_more_than_eight_bits_keep_the_high_ones(bits: int) -> None:
    deep = (GREY.astype(np.uint16) << (bits - 8)) | 3
    expected = np.repeat(GREY[..., None], 3, axis=2)
    np.testing.assert_array_equal(decode(written(deep, "MONOCHROME2", bits=bits, SOPClassUID=OPHTHALMIC_16)).frame, expected)
    inverted = ((1 << bits) - 1 - deep).astype(np.uint16)
    np.testing.assert_array_equal(decode(written(inverted, "MONOCHROME1", bits=bits)).frame, expected)
    color = (RGB.astype(np.uint16) << (bits - 8)) | 1
    np.testing.assert_array_equal(decode(written(color, "RGB", bits=bits)).frame, FRAME)


def test_palette() -> None:
    colors = np.random.default_rng(0).integers(0, 256, (256, 3))
    tags: dict[str, Any] = {}
    for i, name in enumerate(("Red", "Green", "Blue")):
        tags[f"{name}PaletteColorLookupTableDescriptor"] = [256, 0, 8]
        tags[f"{name}PaletteColorLookupTableData"] = colors[:, i].astype(np.uint8).tobytes()
    decoded = decode(written(GREY, "PALETTE COLOR", SOPClassUID="1.2.840.10008.5.1.4.1.1.7", **tags))
    np.testing.assert_array_equal(decoded.frame, colors[GREY][..., ::-1])


def test_first_of_several_frames() -> None:
    decoded = decode(written(np.stack([RGB, RGB[::-1]]), NumberOfFrames=2))
    np.testing.assert_array_equal(decoded.frame, FRAME)
    assert len(decoded.warnings) == 1 and "2 frames" in decoded.warnings[0]


def test_unused_third_sample_is_black() -> None:
    decoded = decode(written(RGB, SamplesPerPixelUsed=2))
    assert not decoded.frame[..., 0].any()
    np.testing.assert_array_equal(decoded.frame[..., 1:], FRAME[..., 1:])


@pytest.mark.parametrize(
    ("tags", "eye"),
    [
        ({"ImageLaterality": "L"}, "left"),
        ({"ImageLaterality": "R"}, "right"),
        ({"Laterality": "R"}, "right"),
        ({"SharedFunctionalGroupsSequence": frame_laterality("L")}, "left"),
        ({"PerFrameFunctionalGroupsSequence": frame_laterality("R")}, "right"),
        ({"AnatomicRegionSequence": region("7771000")}, "left"),
        ({"AnatomicRegionSequence": region("G-A100", "SRT")}, "right"),
        ({"ImageLaterality": "L", "Laterality": "L", "AnatomicRegionSequence": region("7771000")}, "left"),
        ({"ImageLaterality": "R", "Laterality": "B"}, "right"),  # the series holds both eyes, the picture one
        ({"ImageLaterality": ""}, None),
        ({"ImageLaterality": "U"}, None),
        ({}, None),
    ],
)
def test_eye(tags: dict[str, Any], eye: str | None) -> None:
    decoded = decode(written(RGB, **tags))
    assert decoded.eye == eye and decoded.warnings == ()


def test_both_eyes_is_unknown_and_said() -> None:
    decoded = decode(written(RGB, ImageLaterality="B"))
    assert decoded.eye is None and len(decoded.warnings) == 1 and "both" in decoded.warnings[0]


@pytest.mark.parametrize(
    "tags",
    [
        {"ImageLaterality": "L", "Laterality": "R"},
        {"ImageLaterality": "R", "SharedFunctionalGroupsSequence": frame_laterality("L")},
        {"ImageLaterality": "R", "AnatomicRegionSequence": region("7771000")},
    ],
)
def test_tags_that_disagree_about_the_eye(tags: dict[str, Any]) -> None:
    with pytest.raises(EyeError, match="disagree"):
        decode(written(RGB, **tags), "a.dcm")


def refused(content: bytes, *words: str) -> None:
    with pytest.raises(DecodeError) as caught:
        decode(content, "a.dcm")
    for word in ("a.dcm", *words):
        assert word in str(caught.value)


def test_what_is_no_photograph_is_refused() -> None:
    refused(written(GREY, "MONOCHROME2", SOPClassUID="1.2.840.10008.5.1.4.1.1.77.1.5.4"), "Tomography")
    refused(written(GREY, "MONOCHROME2", SOPClassUID="1.2.3.4"), "expected a photograph")
    refused(written(RGB, Rows=30_000, Columns=30_000), "megapixels")
    refused(written(RGB, Rows=1, Columns=1), "1 x 1")
    refused(written(GREY, "MONOCHROME2", PixelRepresentation=1), "signed")


def test_truncated_files_are_refused() -> None:
    content = written(RGB)
    for length in (133, 200, 600, len(content) // 2, len(content) - 100):
        refused(content[:length])


def test_no_pydicom(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pydicom", None)
    with pytest.raises(BackendUnavailableError, match=r"pip install 'fundus-rt\[dicom\]'"):
        decode(written(RGB))
