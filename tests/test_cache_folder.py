"""Where engines are kept: order of folders, what happens where none can be written, and folders that others can write to."""

from __future__ import annotations

import dataclasses
import errno
import os
import tempfile
from pathlib import Path
from typing import Any

import pytest

from fundus_rt.models import cache_folder
from fundus_rt.models.cache_folder import cache_folders, limit_from_environment, why_untrusted, why_unwritable
from fundus_rt.models.engine_cache import EngineCache
from fundus_rt.models.errors import UsageError
from tests.test_engine_cache import builder
from tests.test_engines import ORIN, OTHER


@pytest.fixture(autouse=True)
def own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Home and temporary folders of this test's own."""
    for name in ("home", "temporary"):
        (tmp_path / name).mkdir(mode=0o700)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name in ("XDG_CACHE_HOME", "FUNDUS_RT_CACHE", "FUNDUS_RT_CACHE_LIMIT"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def test_the_order_of_folders(own_folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spare = own_folders / "temporary" / f"fundus-rt-{os.getuid()}" / "engines"
    assert cache_folders() == [own_folders / "home" / ".cache" / "fundus-rt" / "engines", spare]
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")  # the specification says that it is to be ignored
    assert cache_folders() == [own_folders / "home" / ".cache" / "fundus-rt" / "engines", spare]
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    monkeypatch.setenv("FUNDUS_RT_CACHE", "/mine")
    assert cache_folders() == [Path("/mine/engines"), Path("/xdg/fundus-rt/engines"), spare]
    assert cache_folders("kernels")[0] == Path("/mine/kernels")


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("", 8 << 30),
        ("1000", 1000),
        ("500M", 500 << 20),
        ("8G", 8 << 30),
        ("1.5 GiB", 3 << 29),
        ("2t", 2 << 40),
        ("7 kB", 7 << 10),
    ],
)
def test_the_limit_is_read_with_its_unit(monkeypatch: pytest.MonkeyPatch, text: str, size: int) -> None:
    monkeypatch.setenv("FUNDUS_RT_CACHE_LIMIT", text)
    assert limit_from_environment() == size
    assert EngineCache().limit_bytes == size
    assert EngineCache(limit_bytes=5).limit_bytes == 5


@pytest.mark.parametrize("text", ["much", "-1", "8 G B", "8X", "1e9"])
def test_a_limit_that_is_no_size_is_refused(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("FUNDUS_RT_CACHE_LIMIT", text)
    with pytest.raises(UsageError, match="expected a size such as 500M or 8G"):
        EngineCache()


def test_a_folder_that_cannot_be_written_is_said_and_another_taken(own_folders: Path) -> None:
    (own_folders / "file").write_text("no folder")
    said: list[str] = []
    path, record = EngineCache(own_folders / "file" / "cache").get_or_build(ORIN, builder(ORIN), said.append)
    assert path.parent == own_folders / "temporary" / f"fundus-rt-{os.getuid()}" / "engines"
    assert said[0].startswith(f"{own_folders / 'file' / 'cache'} cannot be written (a file is in its place); engines are kept in")
    assert "a restart may empty it" in said[0]
    assert EngineCache(own_folders / "file" / "cache").find(ORIN) == record


def test_the_users_own_cache_stands_in_for_the_variable_without_talk_of_restarts(
    own_folders: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (own_folders / "file").write_text("no folder")
    monkeypatch.setenv("FUNDUS_RT_CACHE", str(own_folders / "file"))
    said: list[str] = []
    path, _ = EngineCache().get_or_build(ORIN, builder(ORIN), said.append)
    assert path.parent == own_folders / "home" / ".cache" / "fundus-rt" / "engines"
    assert said[0].endswith(f"engines are kept in {path.parent} instead")


def read_only(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make a folder refuse new files as a read-only file system does; the administrator's process is refused as well."""
    real = tempfile.TemporaryFile

    def refuse(*arguments: Any, dir: Path, **options: Any) -> Any:
        if dir == folder:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        return real(*arguments, dir=dir, **options)

    monkeypatch.setattr(cache_folder.tempfile, "TemporaryFile", refuse)


def test_engines_laid_into_a_read_only_folder_are_used_and_new_ones_go_elsewhere(
    own_folders: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = EngineCache(own_folders / "cache")
    laid, record = cache.get_or_build(ORIN, builder(ORIN), lambda said: None)
    read_only(own_folders / "cache", monkeypatch)
    said: list[str] = []
    assert cache.get_or_build(ORIN, builder(ORIN, b"another"), said.append) == (laid, record)
    assert said == []
    newer = dataclasses.replace(ORIN, tensorrt_version=OTHER["tensorrt_version"])
    path, _ = cache.get_or_build(newer, builder(newer), said.append)
    assert path.parent != laid.parent
    assert "Read-only file system" in said[0]
    assert said[1] == "an engine is built: TensorRT 10.3.0.26 -> 10.7.0.23"
    assert cache.find(newer) is not None and cache.find(ORIN) == record


def test_a_damaged_engine_in_a_read_only_folder_gives_way_to_the_one_built_anew(
    own_folders: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = EngineCache(own_folders / "cache")
    laid, _ = cache.get_or_build(ORIN, builder(ORIN), lambda said: None)
    laid.write_bytes(b"A plan")  # as long as before, another byte
    read_only(own_folders / "cache", monkeypatch)
    calls = [Path("earlier")]  # so that the time in the record is a later one
    path, record = cache.get_or_build(ORIN, builder(ORIN, b"a plan", calls), lambda said: None)
    assert cache.path_of(record) == path != laid
    assert cache.read(cache.path_of(record))[0] == b"a plan"
    assert cache.get_or_build(ORIN, builder(ORIN, b"x", calls), lambda said: None) == (path, record)
    assert len(calls) == 2


def test_no_folder_at_all_is_an_error_that_names_the_variable(own_folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (own_folders / "file").write_text("no folder")
    monkeypatch.setattr(tempfile, "tempdir", str(own_folders / "file"))
    with pytest.raises(UsageError, match=r"no cache folder: .*FUNDUS_RT_CACHE"):
        EngineCache(own_folders / "file").get_or_build(ORIN, builder(ORIN), lambda said: None)


@pytest.mark.parametrize("mode", [0o777, 0o770, 0o720, 0o702, 0o1777])
def test_a_folder_that_others_can_write_to_is_refused(own_folders: Path, mode: int) -> None:
    folder = own_folders / "shared"
    folder.mkdir()
    folder.chmod(mode)
    cache = EngineCache(folder)
    for use in (
        lambda: cache.find(ORIN),
        lambda: cache.why_missing(ORIN),
        lambda: cache.get_or_build(ORIN, builder(ORIN), lambda said: None),
    ):
        with pytest.raises(UsageError, match=f"refused: other users can write to .*{mode:04o}.*chmod 700"):
            use()
    assert list(folder.iterdir()) == []
    folder.chmod(0o755)
    cache.get_or_build(ORIN, builder(ORIN), lambda said: None)


def test_a_folder_that_others_can_replace_is_refused(own_folders: Path) -> None:
    above = own_folders / "open"
    above.mkdir()
    above.chmod(0o777)
    folder = above / "cache"
    assert why_unwritable(folder) is None
    assert f"chmod o-w {above}" in (why_untrusted(folder) or "")
    above.chmod(0o1777)  # as /tmp is: only the owner may rename
    assert why_untrusted(folder) is None


def of_another_user(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make a path belong to another user than this process, who is not the administrator."""
    if os.getuid() == 0:
        os.chown(path, 4711, -1, follow_symlinks=False)
    else:
        monkeypatch.setattr(os, "getuid", lambda: 4711)


def test_a_folder_of_another_user_is_refused(own_folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = own_folders / "cache"
    folder.mkdir(mode=0o700)
    of_another_user(folder, monkeypatch)
    with pytest.raises(UsageError, match="belongs to user"):
        EngineCache(folder).find(ORIN)


@pytest.mark.skipif(os.getuid() != 0, reason="only the administrator can make a folder of another user")
def test_a_folder_below_one_of_another_user_is_refused(own_folders: Path) -> None:
    above = own_folders / "theirs"
    (above / "cache").mkdir(parents=True, mode=0o700)
    os.chown(above, 4711, -1)
    assert "user 4711 can replace" in (why_untrusted(above / "cache") or "")


@pytest.mark.skipif(os.getuid() != 0, reason="only the administrator can make a link of another user")
def test_a_link_of_another_user_is_refused(own_folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (own_folders / "real").mkdir(mode=0o700)
    (own_folders / "link").symlink_to(own_folders / "real")
    assert why_untrusted(own_folders / "link") is None
    of_another_user(own_folders / "link", monkeypatch)
    assert "is a link that user 4711 made" in (why_untrusted(own_folders / "link") or "")


def test_a_spare_folder_that_others_can_write_to_is_not_read(own_folders: Path) -> None:
    spare = cache_folder.temporary_root() / "engines"
    (own_folders / "file").write_text("no folder")
    cache = EngineCache(own_folders / "file" / "cache")
    cache.get_or_build(ORIN, builder(ORIN), lambda said: None)
    assert cache.find(ORIN) is not None
    spare.chmod(0o777)
    assert cache.find(ORIN) is None
    with pytest.raises(UsageError, match="other users can write"):
        cache.get_or_build(ORIN, builder(ORIN), lambda said: None)
