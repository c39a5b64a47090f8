"""`decode` against Pillow itself, and against every file that it must refuse."""

from __future__ import annotations

import io
import struct
import threading
import zlib
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image, ImageFile

from fundus_rt.models.errors import DecodeError
from fundus_rt.runtime import decode as module
from fundus_rt.runtime.decode import decode, opencv_decodes_as_pillow, upright
from tests.photographs import drawn_fundus

FRAME = drawn_fundus(301, 233, (148.0, 117.0), 104.0)
PICTURE = Image.fromarray(np.ascontiguousarray(FRAME[..., ::-1]))


def saved(picture: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def by_pillow(content: bytes) -> Any:
    """What the authors' pipelines read, in BGR."""
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))[..., ::-1]


def with_exif(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif.tobytes()


JPEGS = {
    "4:2:0": saved(PICTURE, "JPEG", quality=80, subsampling=2),
    "4:2:2": saved(PICTURE, "JPEG", quality=95, subsampling=1),
    "4:4:4": saved(PICTURE, "JPEG", quality=60, subsampling=0),
    "progressive": saved(PICTURE, "JPEG", quality=70, progressive=True),
    "restart markers": saved(PICTURE, "JPEG", quality=80, restart_marker_blocks=3),
    "grey": saved(PICTURE.convert("L"), "JPEG", quality=80),
    "CMYK": saved(PICTURE.convert("CMYK"), "JPEG", quality=80),
    "RGB without YCbCr": saved(PICTURE, "JPEG", quality=80, keep_rgb=True),
    "optimised Huffman tables": saved(PICTURE, "JPEG", quality=80, optimize=True),
    "noise": saved(Image.fromarray(np.random.default_rng(0).integers(0, 256, (75, 99, 3), dtype=np.uint8)), "JPEG", quality=30),
}


@pytest.mark.parametrize("name", JPEGS)
def test_jpeg_has_pillows_grey_levels(name: str) -> None:
    decoded = decode(JPEGS[name])
    assert decoded.format == "jpeg" and decoded.warnings == () and decoded.eye is None and decoded.orientation == 1
    assert decoded.frame.dtype == np.uint8 and decoded.frame.flags.c_contiguous
    np.testing.assert_array_equal(decoded.frame, by_pillow(JPEGS[name]))


def test_jpeg_by_pillow_where_opencv_differs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "opencv_decodes_as_pillow", lambda: False)
    monkeypatch.setattr(cv2, "imdecode", None)
    np.testing.assert_array_equal(decode(JPEGS["4:2:0"]).frame, by_pillow(JPEGS["4:2:0"]))


def test_opencv_is_found_to_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    real = cv2.imdecode
    monkeypatch.setattr(cv2, "imdecode", lambda content, flags: np.minimum(real(content, flags), 254))
    opencv_decodes_as_pillow.cache_clear()
    try:
        assert not opencv_decodes_as_pillow()
    finally:
        opencv_decodes_as_pillow.cache_clear()


def test_adobe_ycck_jpeg_is_inverted_as_pillow_does() -> None:
    """The Adobe marker says that 0 is full ink; its colour transform 2 says YCCK."""
    content = JPEGS["CMYK"]
    assert b"Adobe" in content
    place = content.index(b"Adobe") + 11
    ycck = content[:place] + b"\x02" + content[place + 1 :]
    np.testing.assert_array_equal(decode(ycck).frame, by_pillow(ycck))
    difference = np.abs(decode(content).frame.astype(int) - FRAME)
    assert difference.mean() < 6  # naive CMYK, but neither inverted nor with exchanged channels


OTHERS = {
    "png": (saved(PICTURE, "PNG"), "png"),
    "png, interlace and grey": (saved(PICTURE.convert("L"), "PNG"), "png"),
    "png, palette": (saved(PICTURE.quantize(64), "PNG"), "png"),
    "png, one bit": (saved(PICTURE.convert("1"), "PNG"), "png"),
    "png, grey and alpha": (saved(PICTURE.convert("LA"), "PNG"), "png"),
    "tiff": (saved(PICTURE, "TIFF"), "tiff"),
    "tiff, LZW": (saved(PICTURE, "TIFF", compression="tiff_lzw"), "tiff"),
    "tiff, deflate": (saved(PICTURE, "TIFF", compression="tiff_adobe_deflate"), "tiff"),
    "tiff, JPEG": (saved(PICTURE, "TIFF", compression="jpeg"), "tiff"),
    "tiff, grey": (saved(PICTURE.convert("L"), "TIFF"), "tiff"),
    "tiff, CMYK": (saved(PICTURE.convert("CMYK"), "TIFF"), "tiff"),
    "ppm": (saved(PICTURE, "PPM"), "ppm"),
    "pgm": (saved(PICTURE.convert("L"), "PPM"), "ppm"),
    "bmp": (saved(PICTURE, "BMP"), "bmp"),
    "bmp, palette": (saved(PICTURE.quantize(16), "BMP"), "bmp"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_formats_have_pillows_grey_levels(name: str) -> None:
    content, kind = OTHERS[name]
    decoded = decode(content)
    assert decoded.format == kind and decoded.warnings == ()
    assert decoded.frame.flags.c_contiguous and decoded.frame.shape == FRAME.shape
    np.testing.assert_array_equal(decoded.frame, by_pillow(content))


def png16(values: Any) -> bytes:
    """A PNG of 16 bits, written by OpenCV (Pillow writes none in colour)."""
    return cv2.imencode(".png", values)[1].tobytes()


SIXTEEN = np.random.default_rng(1).integers(0, 65536, (48, 57, 3)).astype(np.uint16)


@pytest.mark.parametrize("kind", [".png", ".tiff"])
@pytest.mark.parametrize("channels", [1, 3])
def test_sixteen_bits_keep_their_high_byte(kind: str, channels: int) -> None:
    values = SIXTEEN if channels == 3 else SIXTEEN[..., 0]
    decoded = decode(cv2.imencode(kind, values)[1].tobytes())
    expected = np.broadcast_to(values.reshape(48, 57, channels) // 256, (48, 57, 3))
    assert decoded.warnings == ()
    np.testing.assert_array_equal(decoded.frame, expected)


def test_twelve_bits_in_sixteen_are_warned_of() -> None:
    decoded = decode(png16(SIXTEEN[..., 0] % 4096))
    assert len(decoded.warnings) == 1 and "12 or fewer bits" in decoded.warnings[0]


def test_portable_greymap_is_scaled_by_its_own_maximum() -> None:
    values = np.linspace(0, 4095, 48 * 57).round().astype(">u2")
    decoded = decode(b"P5 57 48 4095\n" + values.tobytes())
    expected = values.astype(float).reshape(48, 57, 1) / 4095 * 255
    assert decoded.warnings == () and np.abs(decoded.frame - expected).max() <= 1


def test_alpha_is_dropped_and_said() -> None:
    layers = np.dstack([FRAME[..., ::-1], np.where(np.arange(301) < 100, 0, 255) * np.ones((233, 1))]).astype(np.uint8)
    decoded = decode(saved(Image.fromarray(layers), "PNG"))
    np.testing.assert_array_equal(decoded.frame, FRAME)
    assert len(decoded.warnings) == 1 and "transparen" in decoded.warnings[0]


def test_multi_page_tiff_and_multi_picture_jpeg_give_their_first() -> None:
    other = Image.new("RGB", (64, 64), (200, 0, 0))
    for content in (
        saved(PICTURE, "TIFF", save_all=True, append_images=[other]),
        saved(PICTURE, "MPO", save_all=True, append_images=[other], quality=80),
    ):
        decoded = decode(content)
        np.testing.assert_array_equal(decoded.frame, by_pillow(content))
        assert len(decoded.warnings) == 1 and "first" in decoded.warnings[0]


def test_icc_profile_is_not_applied() -> None:
    from PIL import ImageCms

    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("XYZ")).tobytes()
    np.testing.assert_array_equal(decode(saved(PICTURE, "PNG", icc_profile=profile)).frame, FRAME)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied(orientation: int) -> None:
    """Pillow's own `exif_transpose` is the independent source."""
    from PIL import ImageOps

    for content in (
        saved(PICTURE, "JPEG", quality=80, exif=with_exif(orientation)),
        saved(PICTURE, "PNG", exif=with_exif(orientation)),
        saved(PICTURE, "TIFF", tiffinfo={0x0112: orientation}),
        saved(PICTURE, "TIFF", tiffinfo={0x0112: orientation}, compression="tiff_lzw"),
    ):
        decoded = decode(content)
        expected = ImageOps.exif_transpose(Image.open(io.BytesIO(content))).convert("RGB")
        assert decoded.orientation == orientation and decoded.frame.flags.c_contiguous
        np.testing.assert_array_equal(decoded.frame, np.asarray(expected)[..., ::-1])


def test_damaged_exif_does_not_matter() -> None:
    content = saved(PICTURE, "JPEG", quality=80, exif=b"Exif\x00\x00MM\x00*\xff\xff\xff\xff")
    assert decode(content).orientation == 1
    assert upright(FRAME, 1) is FRAME


def refused(content: bytes, *words: str) -> None:
    with pytest.raises(DecodeError) as caught:
        decode(content, "p.img")
    message = str(caught.value)
    assert message.startswith("p.img") and "\n" not in message
    for word in words:
        assert word in message, message


@pytest.mark.parametrize("name", JPEGS)
def test_truncated_jpeg_is_refused_wherever_it_ends(name: str) -> None:
    content = JPEGS[name]
    for share in (0.02, 0.3, 0.5, 0.8, 0.99):
        refused(content[: int(len(content) * share)])
    refused(content[:-1])
    refused(content[:-2], "cut off")


def test_truncated_jpeg_with_a_thumbnail_is_refused() -> None:
    """The thumbnail in the EXIF block brings an end marker of its own."""
    thumbnail = saved(PICTURE.resize((64, 50)), "JPEG")
    block = b"Exif\x00\x00" + b"\x00" * 8 + thumbnail
    content = JPEGS["4:2:0"]
    with_thumbnail = content[:2] + b"\xff\xe1" + struct.pack(">H", len(block) + 2) + block + content[2:]
    np.testing.assert_array_equal(decode(with_thumbnail).frame, by_pillow(content))
    refused(with_thumbnail[:-500], "cut off")


def test_bytes_after_the_end_of_a_jpeg_do_not_matter() -> None:
    np.testing.assert_array_equal(decode(JPEGS["4:2:0"] + b"camera's own data").frame, by_pillow(JPEGS["4:2:0"]))


def test_jpeg_whose_data_ends_early_is_refused() -> None:
    """Its end marker is there, but half of its picture is not: decoders fill up with one colour."""
    bright = np.ascontiguousarray(np.full((240, 320, 3), 90, np.uint8) + np.arange(240, dtype=np.uint8)[:, None, None] // 2)
    content = saved(Image.fromarray(bright), "JPEG", quality=80)
    refused(content[: int(len(content) * 0.75)] + b"\xff\xd9", "damaged")


@pytest.mark.parametrize("name", [n for n in OTHERS if n != "tiff, JPEG"])
def test_truncated_files_are_refused(name: str) -> None:
    content = OTHERS[name][0]
    for share in (0.02, 0.3, 0.7):
        refused(content[: int(len(content) * share)])


def test_process_wide_leave_to_cut_off_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    refused(JPEGS["CMYK"][:-400], "cut off")
    assert any("LOAD_TRUNCATED_IMAGES" in warning for warning in decode(OTHERS["png"][0]).warnings)


def test_what_is_no_picture_is_refused() -> None:
    refused(b"", "empty", "0 bytes")
    refused(b"\x00" * 5000, "not a picture")
    refused(b"hello, I am a text file" * 40, "not a picture")
    refused(b"%PDF-1.7\n" + b"x" * 500, "not a picture")
    refused(saved(PICTURE, "GIF"), "not a picture")
    refused(JPEGS["4:2:0"][:3], "not a picture")


def test_too_small_is_refused() -> None:
    refused(saved(Image.new("RGB", (1, 1)), "PNG"), "1 x 1", "32")
    refused(saved(Image.new("RGB", (4000, 31)), "JPEG"), "4000 x 31")
    assert decode(saved(Image.new("RGB", (32, 32)), "PNG")).frame.shape == (32, 32, 3)


def huge_png() -> bytes:
    """900 million black pixels in a few hundred kilobytes, as bombs are made."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    packer = zlib.compressobj(9)
    rows = b"".join(packer.compress(b"\x00" * 90_001) for _ in range(300)) + packer.flush()
    header = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def huge_tiff() -> bytes:
    """The header of 900 million uncompressed pixels, and none of them."""
    tags = ((256, 30_000), (257, 30_000), (258, 8), (259, 1), (262, 1), (273, 200), (277, 1), (278, 30_000), (279, 900_000_000))
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    return b"II*\x00" + struct.pack("<IH", 8, len(tags)) + entries + b"\x00" * 100


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_too_large_is_refused_before_anything_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ImageFile.ImageFile, "load", None)
    monkeypatch.setattr(cv2, "imdecode", None)
    refused(huge_png(), "too large")
    refused(huge_tiff(), "too large")
    jpeg = bytearray(JPEGS["4:2:0"])
    place = jpeg.index(b"\xff\xc0") + 5
    jpeg[place : place + 4] = struct.pack(">HH", 10_000, 12_000)
    refused(bytes(jpeg), "12000 x 10000", "megapixels")
    refused(b"P6 30000 30000 255\n" + b"\x00" * 1000, "too large")


def test_decoding_in_threads() -> None:
    results: list[bool] = []
    content = JPEGS["4:2:0"]
    expected = by_pillow(content)

    def work() -> None:
        results.extend(bool(np.array_equal(decode(content).frame, expected)) for _ in range(20))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [True] * 80
