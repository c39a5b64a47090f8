"""NAME.reference: read by NumPy alone, the same bytes for the same content, and safe to open whoever wrote it."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import pickle
import struct
import time
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fundus_rt.models import references
from fundus_rt.models.errors import ModelFileError, UsageError
from fundus_rt.models.references import ReplayReference, read_reference, reference_path, write_reference

FACTS = {"checkpoint_sha256": "ab" * 32, "card_sha256": "cd" * 32, "versions": {"torch": "2.13.0"}}


def small(dtype: str = "uint8", count: int = 3) -> ReplayReference:
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (count, 8, 9, 3)).astype(dtype)
    answers = {"age": rng.normal(size=(count, 1)).astype(np.float32), "eye/side": rng.normal(size=(count, 3)).astype(np.float32)}
    return ReplayReference(frames, answers, dict(FACTS))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.reference"


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_it_comes_back_as_it_was_with_the_hash_of_its_bytes(path: Path, dtype: str) -> None:
    written = write_reference(path, small(dtype))
    found, digest = read_reference(path)
    assert written == digest == hashlib.sha256(path.read_bytes()).hexdigest()
    expected = small(dtype)
    assert found.frames.dtype == dtype and np.array_equal(found.frames, expected.frames)
    assert list(found.answers) == ["age", "eye/side"] and found.facts == FACTS
    assert all(np.array_equal(found.answers[name], rows) for name, rows in expected.answers.items())


def test_numpy_and_any_zip_program_read_it(path: Path) -> None:
    write_reference(path, small())
    with np.load(path, allow_pickle=False) as arrays:
        assert np.array_equal(arrays["frames"], small().frames)
        assert np.array_equal(arrays["answers/1"], small().answers["eye/side"])
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        assert json.loads(archive.read("reference.json"))["outputs"] == ["age", "eye/side"]


def test_the_same_content_gives_the_same_bytes_at_any_time(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_reference(path, small())
    before = path.read_bytes()
    monkeypatch.setattr(time, "time", lambda: 2_000_000_000.0)
    other = dataclasses.replace(small(), facts=dict(reversed(FACTS.items())), frames=np.asfortranarray(small().frames))
    write_reference(path, other)
    assert path.read_bytes() == before


def test_it_lies_beside_the_model() -> None:
    assert reference_path(Path("a/joir.age.onnx")) == Path("a/joir.age.reference")
    assert reference_path(Path("b/joir.engine")) == Path("b/joir.reference")


def tiny() -> ReplayReference:
    """With few bytes, for tests that try each."""
    return ReplayReference(np.zeros((1, 2, 2, 3), np.uint8), {"age": np.ones((1, 1), np.float32)}, dict(FACTS))


def test_every_byte_counts(path: Path) -> None:
    write_reference(path, tiny())
    content = path.read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    accepted = 0
    for place in range(len(content)):
        changed = bytearray(content)
        changed[place] ^= 0x41
        path.write_bytes(changed)
        try:
            found = read_reference(path)
        except ModelFileError:
            continue
        accepted += 1
        assert found[1] != digest
    assert accepted < len(content) / 5, "most of the file is checked by more than its hash"


def test_a_file_that_is_cut_off_anywhere_is_refused(path: Path) -> None:
    write_reference(path, tiny())
    content = path.read_bytes()
    for length in range(len(content)):
        path.write_bytes(content[:length])
        with pytest.raises(ModelFileError, match=r"model\.reference is not a whole reference .*fundus-rt parity"):
            read_reference(path)


def array_bytes(values: Any, **options: Any) -> bytes:
    stream = io.BytesIO()
    np.save(stream, values, **options)
    return stream.getvalue()


def archive(parts: dict[str, bytes], compression: int = zipfile.ZIP_STORED, comment: bytes = b"") -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", compression) as made:
        for name, content in parts.items():
            made.writestr(name, content)
        made.comment = comment
    return stream.getvalue()


def parts(**changes: bytes) -> dict[str, bytes]:
    good = small()
    described = {"facts": FACTS, "format": 1, "outputs": ["age", "eye/side"]}
    found = {"reference.json": json.dumps(described).encode(), "frames.npy": array_bytes(good.frames)}
    found |= {f"answers/{number}.npy": array_bytes(rows) for number, rows in enumerate(good.answers.values())}
    return found | {name.replace("__", "/").replace("_", "."): content for name, content in changes.items()}


def described(**changes: Any) -> bytes:
    return json.dumps({"facts": FACTS, "format": 1, "outputs": ["age", "eye/side"], **changes}).encode()


class Harmful:
    """Would write a file when it is unpickled."""

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return exec, ("open('harmed', 'w').close()",)


def header(shape: str, descr: str = "'|u1'", fortran: str = "False") -> bytes:
    text = f"{{'descr': {descr}, 'fortran_order': {fortran}, 'shape': {shape}, }}".encode()
    text += b" " * (63 - (len(text) + 10) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text


HOSTILE: dict[str, Callable[[], bytes]] = {
    "empty": lambda: b"",
    "no archive": lambda: b"PK\x03\x04" + bytes(100),
    "a pickle": lambda: pickle.dumps(Harmful()),
    "pickled objects in it": lambda: archive(parts(frames_npy=array_bytes(np.array([Harmful()], object)))),
    "a bomb": lambda: archive(parts(frames_npy=bytes(50_000_000)), zipfile.ZIP_DEFLATED),
    "an array that says it is huge": lambda: archive(parts(frames_npy=header("(1000000000000, 8, 9, 3)"))),
    "an array of negative size": lambda: archive(parts(frames_npy=header("(-1, -8, 9, 3)") + bytes(216))),
    "a header without end": lambda: archive(parts(frames_npy=header("(" * 5000))),
    "Fortran order": lambda: archive(parts(frames_npy=array_bytes(np.asfortranarray(small().frames)))),
    "float64": lambda: archive(parts(frames_npy=array_bytes(small().frames.astype(float)))),
    "big-endian": lambda: archive(parts(answers__0_npy=array_bytes(small().answers["age"].astype(">f4")))),
    "grey frames": lambda: archive(parts(frames_npy=array_bytes(small().frames[..., :1]))),
    "frames of three axes": lambda: archive(parts(frames_npy=array_bytes(small().frames[0]))),
    "no frames": lambda: archive(parts(frames_npy=array_bytes(small().frames[:0]))),
    "an answer too few": lambda: archive(parts(answers__0_npy=array_bytes(small().answers["age"][:2]))),
    "not a number": lambda: archive(parts(answers__0_npy=array_bytes(np.full((3, 1), np.nan, np.float32)))),
    "bytes behind an array": lambda: archive(parts(frames_npy=array_bytes(small().frames) + b"x")),
    "an entry more": lambda: archive(parts(more_npy=b"x")),
    "another description": lambda: archive(parts(reference_json=b"[]")),
    "a deep description": lambda: archive(parts(reference_json=b"[" * 200_000)),
    "no text": lambda: archive(parts(reference_json=b"\xff\xfe\xff")),
    "an output twice": lambda: archive(parts(reference_json=described(outputs=["age", "age"]))),
    "outputs that are no texts": lambda: archive(parts(reference_json=described(outputs=[["age"], {}]))),
    "no hashes": lambda: archive(parts(reference_json=described(facts={}))),
    "a wrong hash": lambda: archive(parts(reference_json=described(facts={**FACTS, "card_sha256": "../../etc"}))),
    "a later format": lambda: archive(parts(reference_json=described(format=2))),
    "a comment": lambda: archive(parts(), comment=b"hello"),
    "many entries": lambda: archive({f"{number}": b"" for number in range(300)}),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_what_somebody_else_made_up_is_refused_in_small_memory(path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(path.parent)
    path.write_bytes(HOSTILE[kind]())
    tracemalloc.start()
    try:
        with pytest.raises(ModelFileError, match=r"model\.reference is not a whole reference that this version reads"):
            read_reference(path)
        assert tracemalloc.get_traced_memory()[1] < 8_000_000
    finally:
        tracemalloc.stop()
    assert not (path.parent / "harmed").exists()


def test_the_parts_of_the_table_above_are_sound(path: Path) -> None:
    path.write_bytes(archive(parts()))
    assert read_reference(path)[0].facts == FACTS


def test_a_sound_content_that_is_compressed_is_refused(path: Path) -> None:
    path.write_bytes(archive(parts(), zipfile.ZIP_DEFLATED))
    with pytest.raises(ModelFileError, match="its entries are compressed"):
        read_reference(path)


def test_a_reference_of_a_later_version_says_so(path: Path) -> None:
    path.write_bytes(archive(parts(reference_json=described(format=2))))
    with pytest.raises(ModelFileError, match=r"format 2, this version reads 1; update fundus-rt"):
        read_reference(path)


def test_a_missing_one_says_how_to_get_it(path: Path) -> None:
    with pytest.raises(ModelFileError, match="`fundus-rt parity` writes it"):
        read_reference(path)


def test_more_than_is_read_is_not_written_and_not_read(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_reference(path, small())
    monkeypatch.setattr(references, "MOST_BYTES", 1000)
    with pytest.raises(ModelFileError, match="more than 1000 bytes"):
        read_reference(path)
    with pytest.raises(UsageError, match="give fewer photographs"):
        write_reference(path, small())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"frames": np.zeros((3, 8, 9, 3), np.float64)}, "float64"),
        ({"frames": np.full((3, 8, 9, 3), np.inf, np.float32)}, "the frames are not finite"),
        ({"answers": {}}, "0 outputs"),
        ({"answers": {"age": np.zeros((2, 1), np.float32)}}, "'age'"),
        ({"answers": {"age": np.full((3, 1), np.nan, np.float32)}}, "not finite"),
        ({"facts": {"checkpoint_sha256": "ab" * 32}}, "card_sha256 is None"),
        ({"facts": {**FACTS, "path": Path("x")}}, "no JSON"),
        ({"facts": {**FACTS, "x": float("nan")}}, "no JSON"),
    ],
)
def test_what_could_not_be_read_again_is_not_written(path: Path, change: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        write_reference(path, dataclasses.replace(small(), **change))
    assert not path.exists()


def test_a_write_that_is_interrupted_leaves_the_old_file(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_reference(path, small())
    before = path.read_bytes()

    def cut(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(np.lib.format, "write_array", cut)
    with pytest.raises(KeyboardInterrupt):
        write_reference(path, small("float32"))
    assert path.read_bytes() == before and list(path.parent.iterdir()) == [path]
