"""The cache of engines: built once, whole or not at all, checked before use, named when stale, limited in size."""

from __future__ import annotations

import dataclasses
import fcntl
import hashlib
import json
import os
import stat
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from fundus_rt.models import engine_cache
from fundus_rt.models.engine_cache import EngineCache, read_engine, read_record, record_path, write_record
from fundus_rt.models.engines import EngineKey, EngineRecord
from fundus_rt.models.errors import EngineError, EngineMissingError, EngineStaleError
from tests.test_engines import ORIN, OTHER, WORDS

Build = Callable[[Path], EngineRecord]


def builder(key: EngineKey, content: bytes = b"a plan", calls: list[Path] | None = None) -> Build:
    """A build that writes `content`."""

    def build(path: Path) -> EngineRecord:
        if calls is not None:
            calls.append(path)
        path.write_bytes(content)
        digest = hashlib.sha256(content).hexdigest()
        return EngineRecord(
            key, digest, len(content), {"name": "joir-age"}, "fp32", f"2026-11-22T18:00:0{len(calls or [])}Z", 1.0
        )

    return build


@pytest.fixture(autouse=True)
def temporary_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A temporary folder of this test's own, for the cache falls back to the system's."""
    folder = tmp_path / "temporary"
    folder.mkdir(mode=0o700)
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


@pytest.fixture
def cache(tmp_path: Path) -> EngineCache:
    return EngineCache(tmp_path / "cache", limit_bytes=1 << 20)


def files(folder: Path) -> list[str]:
    """Everything in a folder but the lock files."""
    return sorted(path.name for path in folder.iterdir() if path.suffix != ".lock")


def test_an_engine_is_built_once_and_then_found(cache: EngineCache, tmp_path: Path) -> None:
    said: list[str] = []
    calls: list[Path] = []
    assert cache.find(ORIN) is None
    path, record = cache.get_or_build(ORIN, builder(ORIN, b"plan", calls), said.append)
    assert said == ["an engine is built: no engine of this model yet"]
    assert cache.get_or_build(ORIN, builder(ORIN, b"other", calls), said.append) == (path, record)
    assert len(said) == len(calls) == 1
    assert cache.find(ORIN) == record
    assert cache.path_of(record) == path
    assert cache.read(path) == (b"plan", record)
    assert cache.why_missing(ORIN) == ""
    assert path.read_bytes() == b"plan"
    assert files(tmp_path / "cache") == [f"{ORIN.digest()}.engine", f"{ORIN.digest()}.engine.json"]


def test_an_engine_can_be_built_anew_and_the_old_one_stays_until_then(cache: EngineCache) -> None:
    path, _ = cache.get_or_build(ORIN, builder(ORIN, b"old"), lambda said: None)

    def build(temporary: Path) -> EngineRecord:
        assert cache.read(path)[0] == b"old"
        return builder(ORIN, b"new")(temporary)

    said: list[str] = []
    assert cache.get_or_build(ORIN, build, said.append, force=True)[0] == path
    assert said == ["an engine is built: it was asked for"]
    assert cache.read(path)[0] == b"new"


def test_folder_and_files_are_for_their_owner_alone(cache: EngineCache, tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        EngineCache(tmp_path / "a" / "b").get_or_build(ORIN, builder(ORIN), lambda said: None)
    finally:
        os.umask(before)
    modes = {stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "a" / "b").iterdir()}
    assert modes == {0o600}
    assert {stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "a", tmp_path / "a" / "b")} == {0o700}


@pytest.mark.parametrize("name", OTHER)
def test_a_key_that_differs_in_one_field_is_stale_and_says_which(cache: EngineCache, name: str) -> None:
    cache.get_or_build(ORIN, builder(ORIN), lambda said: None)
    wanted = dataclasses.replace(ORIN, **{name: OTHER[name]})
    assert cache.find(wanted) is None
    expected = "no engine of this model yet" if name == "onnx_sha256" else WORDS[name]
    assert cache.why_missing(wanted) == expected
    said: list[str] = []
    cache.get_or_build(wanted, builder(wanted, b"new"), said.append)
    assert said == [f"an engine is built: {expected}"]
    assert cache.find(ORIN) is not None


def test_the_nearest_of_several_engines_is_the_one_compared(cache: EngineCache) -> None:
    far = dataclasses.replace(ORIN, gpu_name="NVIDIA H200", compute_capability="9.0", l4t="")
    for key in (far, ORIN):
        cache.get_or_build(key, builder(key), lambda said: None)
    assert cache.why_missing(dataclasses.replace(ORIN, tensorrt_version="10.7.0.23")) == "TensorRT 10.3.0.26 -> 10.7.0.23"
    assert {record.key.gpu_name for record in cache.entries(ORIN.onnx_sha256)} == {"Orin", "NVIDIA H200"}
    assert cache.entries("00" * 32) == []


def flipped(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def of_another(path: Path) -> None:
    record = read_record(path)
    write_record(path, dataclasses.replace(record, key=dataclasses.replace(record.key, l4t="36.5.0")))


DAMAGE: dict[str, tuple[Callable[[Path], object], str, bool]] = {
    "one bit": (flipped, "the engine file is damaged: its SHA-256 differs from its record", True),
    "cut off": (lambda path: os.truncate(path, 3), "the engine file is damaged: it has 3 bytes, its record says 6", False),
    "empty": (lambda path: os.truncate(path, 0), "the engine file is damaged: it has 0 bytes, its record says 6", False),
    "no engine": (lambda path: path.unlink(), "the engine file is missing", False),
    "no record": (lambda path: record_path(path).unlink(), "its record is missing", False),
    "record cut off": (lambda path: os.truncate(record_path(path), 40), "its record cannot be read", False),
    "record not text": (
        lambda path: record_path(path).write_bytes(b"\xff\xfe"),
        "its record cannot be read (it is not text)",
        False,
    ),
    "other record": (of_another, "its record is of another engine: L4T 36.5.0 -> 36.4.3", False),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_named_and_built_anew_and_never_handed_out(cache: EngineCache, damage: str) -> None:
    spoil, reason, found_by_size = DAMAGE[damage]
    path, record = cache.get_or_build(ORIN, builder(ORIN), lambda said: None)
    spoil(path)
    assert (cache.find(ORIN) is not None) == found_by_size
    assert cache.why_missing(ORIN) == reason
    if damage != "other record":
        with pytest.raises(EngineMissingError if damage == "no engine" else EngineStaleError, match="fundus-rt build"):
            cache.read(path)
    said: list[str] = []
    assert cache.get_or_build(ORIN, builder(ORIN), said.append) == (path, record)
    assert said == [f"an engine is built: {reason}"]
    assert cache.read(path) == (b"a plan", record)


def test_a_build_that_fails_leaves_nothing_and_keeps_what_was_there(cache: EngineCache, tmp_path: Path) -> None:
    def failing(path: Path) -> EngineRecord:
        path.write_bytes(b"half a plan")
        raise EngineError("the parser refuses Resize")

    with pytest.raises(EngineError, match="refuses Resize"):
        cache.get_or_build(ORIN, failing, lambda said: None)
    assert files(tmp_path / "cache") == []
    path, _ = cache.get_or_build(ORIN, builder(ORIN), lambda said: None)
    flipped(path)
    with pytest.raises(EngineError, match="refuses Resize"):
        cache.get_or_build(ORIN, failing, lambda said: None)
    assert files(tmp_path / "cache") == [path.name, record_path(path).name]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"key": dataclasses.replace(ORIN, l4t="36.5.0")}, "built for another key: L4T 36.4.3 -> 36.5.0"),
        ({"engine_sha256": "00" * 32}, "of other bytes"),
        ({"engine_bytes": 7}, "it has 6 bytes, its record says 7"),
    ],
)
def test_a_record_of_other_bytes_or_another_key_is_not_kept(
    cache: EngineCache, tmp_path: Path, change: dict[str, object], reason: str
) -> None:
    def build(path: Path) -> EngineRecord:
        return dataclasses.replace(builder(ORIN)(path), **change)  # type: ignore[arg-type]

    with pytest.raises(EngineError, match=reason):
        cache.get_or_build(ORIN, build, lambda said: None)
    assert files(tmp_path / "cache") == []


def test_a_power_cut_between_engine_and_record_leaves_no_engine_with_an_old_record(
    cache: EngineCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, _ = cache.get_or_build(ORIN, builder(ORIN, b"first!"), lambda said: None)
    flipped(path)
    with monkeypatch.context() as cut, pytest.raises(KeyboardInterrupt):
        cut.setattr(engine_cache, "write_record", lambda *arguments, **options: _raise(KeyboardInterrupt()))
        cache.get_or_build(ORIN, builder(ORIN, b"second"), lambda said: None)
    assert cache.find(ORIN) is None
    assert cache.why_missing(ORIN) == "its record is missing"


def _raise(error: BaseException) -> None:
    raise error


def test_a_build_that_writes_nothing_is_not_kept(cache: EngineCache) -> None:
    with pytest.raises(EngineError, match="wrote nothing"):
        cache.get_or_build(ORIN, builder(ORIN, b""), lambda said: None)


def key_number(number: int) -> EngineKey:
    return dataclasses.replace(ORIN, onnx_sha256=f"{number:064x}")


def fill(cache: EngineCache, numbers: range, size: int) -> list[Path]:
    """Engines of `size` bytes, the first the one that was not used for longest."""
    paths = []
    for number in numbers:
        path, _ = cache.get_or_build(key_number(number), builder(key_number(number), bytes(size)), lambda said: None)
        os.utime(record_path(path), (number, number))
        os.utime(path, (number, number))
        paths.append(path)
    return paths


def test_the_engine_not_used_for_longest_goes_first_and_is_said(tmp_path: Path) -> None:
    paths = fill(EngineCache(tmp_path / "cache"), range(1, 5), size=100_000)
    EngineCache(tmp_path / "cache").read(paths[0])  # the oldest is used: now the second is the one not used for longest
    said: list[str] = []
    limited = EngineCache(tmp_path / "cache", limit_bytes=420_000)
    fifth, _ = limited.get_or_build(key_number(5), builder(key_number(5), bytes(100_000)), said.append)
    assert [path.exists() for path in paths] == [True, False, True, True]
    assert fifth.exists()
    assert said[1:] == ["an engine of joir-age (0.1 MiB) was removed from the cache: the limit is 0.00 GiB"]
    assert limited.size() <= 420_000


def test_the_engine_just_written_stays_whatever_its_size(tmp_path: Path) -> None:
    cache = EngineCache(tmp_path / "cache", limit_bytes=10)
    paths = fill(cache, range(1, 3), size=5_000)
    assert [path.exists() for path in paths] == [False, True]


def test_an_engine_that_is_being_read_stays(tmp_path: Path) -> None:
    paths = fill(EngineCache(tmp_path / "cache"), range(1, 3), size=5_000)
    with open(paths[0], "rb") as stream:
        fcntl.flock(stream.fileno(), fcntl.LOCK_SH)
        fill(EngineCache(tmp_path / "cache", limit_bytes=10), range(3, 4), size=5_000)
        assert [path.exists() for path in paths] == [True, False]
    fill(EngineCache(tmp_path / "cache", limit_bytes=10), range(4, 5), size=5_000)
    assert not paths[0].exists()


def test_reading_marks_the_file_as_being_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (path,) = fill(EngineCache(tmp_path / "cache"), range(1, 2), size=50)
    free: list[bool] = []

    def tried(descriptor: int, how: int) -> None:
        real(descriptor, how)
        with open(path, "rb") as other:
            try:
                real(other.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
                free.append(True)
            except BlockingIOError:
                free.append(False)

    real = fcntl.flock
    monkeypatch.setattr(fcntl, "flock", tried)
    read_engine(path)
    assert free == [False]


def test_what_no_version_can_read_is_removed_and_foreign_files_are_not(tmp_path: Path) -> None:
    cache = EngineCache(tmp_path / "cache")
    paths = fill(cache, range(1, 5), size=50)
    record_path(paths[0]).write_text("{")
    record_path(paths[1]).unlink()
    later = json.loads(record_path(paths[2]).read_text())
    record_path(paths[2]).write_text(json.dumps({**later, "format": 99}))
    (tmp_path / "cache" / f".{'0' * 64}.engine.abc.engine").write_bytes(b"half")
    mine = [tmp_path / "cache" / name for name in ("joir-age.engine", "timing.cache", ".hidden.engine")]
    for path in mine:
        path.write_bytes(b"of someone else")
    said: list[str] = []
    cache.get_or_build(key_number(9), builder(key_number(9)), said.append)
    assert [path.exists() for path in paths] == [False, False, True, True]
    assert all(path.exists() for path in mine)
    assert not (tmp_path / "cache" / f".{'0' * 64}.engine.abc.engine").exists()
    assert len(said) == 4
    assert all("cannot be read" in text for text in said[1:])


def test_a_file_given_by_name_is_read_like_an_entry(tmp_path: Path) -> None:
    engine = tmp_path / "joir-age.engine"
    with pytest.raises(EngineMissingError, match=r"does not exist; build it with `fundus-rt build`"):
        read_record(engine)
    record = builder(ORIN)(engine)
    with pytest.raises(EngineStaleError, match=r"joir-age\.engine: its record is missing"):
        read_engine(engine)
    write_record(engine, record)
    assert json.loads((tmp_path / "joir-age.engine.json").read_text())["key"]["gpu_name"] == "Orin"
    assert read_record(engine) == record
    assert read_engine(engine) == (b"a plan", record)
    flipped(engine)
    with pytest.raises(EngineStaleError, match="SHA-256 differs"):
        read_engine(engine)
