"""What a pickle asks for: all of it is named, by its whole name, and nothing is run that could not be named."""

from __future__ import annotations

import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import pytest

from fundus_rt.converters.checkpoint import read_checkpoint
from fundus_rt.converters.pytorch.pickle_listing import globals_asked_for
from fundus_rt.models.errors import UnsupportedCheckpointError, UntrustedCheckpointError
from tests import make_checkpoints as make

torch = pytest.importorskip("torch")


def test_strangers_among_the_names_that_a_pickle_asks_for_come_first(tmp_path: Path) -> None:
    layers = [torch.nn.Conv2d(3, 4, 1), torch.nn.ReLU(), torch.nn.BatchNorm2d(4), torch.nn.Linear(2, 2), torch.nn.GELU()]
    content = {"model": torch.nn.Sequential(*layers), "callback": make.TouchesAFile(tmp_path / "created")}
    with pytest.raises(UntrustedCheckpointError, match=r"it asks for (io|_io)\.open, torch\.nn"):
        read_checkpoint(make.save_torch(tmp_path / "x.pth", content))
    assert not (tmp_path / "created").exists()


def test_nothing_of_a_file_is_run_while_it_is_listed(tmp_path: Path) -> None:
    target = tmp_path / "created"

    class Runs:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.system, (f"touch {target}",)

    torch.save({"model": {}, "x": Runs()}, tmp_path / "x.pth")
    assert globals_asked_for(tmp_path / "x.pth") == ("posix.system",)
    assert not target.exists()
    pickle.loads(pickle.dumps(Runs()))
    assert target.exists(), "the test's pickle would have run"


def with_pickle(path: Path, content: bytes, name: str = "archive/data.pkl", **others: bytes) -> Path:
    """A zip file of torch.save with this pickle in it."""
    with zipfile.ZipFile(path, "w") as archive:
        for other, data in others.items():
            archive.writestr(f"archive/{other}", data)
        archive.writestr(name, content)
        archive.writestr("archive/version", "3\n")
        archive.writestr("archive/byteorder", "little")
    return path


def short_text(text: str) -> bytes:
    return b"\x8c" + bytes([len(text)]) + text.encode()


def running(target: Path) -> bytes:
    """Opcodes that would create `target`, without a protocol, the result dropped."""
    command = f"touch {target}".encode()
    return b"cposix\nsystem\nX" + len(command).to_bytes(4, "little") + command + b"\x85R0"


def test_a_dotted_name_does_not_pass_for_a_harmless_one(tmp_path: Path) -> None:
    for module, name in (("torch._utils", "traceback.linecache.os.system"), ("torch.nn", "modules.module.os.system")):
        content = b"\x80\x04" + short_text(module) + short_text(name) + b"\x93" + short_text("true") + b"\x85R0}."
        path = with_pickle(tmp_path / "x.pth", content)
        assert globals_asked_for(path) == (f"{module}.{name}",)
        with pytest.raises(UntrustedCheckpointError, match=rf"it asks for {module}\.{name}"):
            read_checkpoint(path)
    for name in ("_utils.traceback", "_utils._rebuild_else", "FloatStorage.x", "evilStorage"):
        path = with_pickle(tmp_path / "x.pth", b"\x80\x02ctorch\n" + name.encode() + b"\n0}.")
        assert globals_asked_for(path) == (f"torch.{name}",)


@pytest.mark.parametrize("trust", [False, True])
def test_a_pickle_that_cannot_be_followed_to_its_end_is_not_run(tmp_path: Path, trust: bool) -> None:
    target = tmp_path / "created"
    path = with_pickle(tmp_path / "x.pth", b"\x80\x02I0x10\n0" + running(target) + b"}.")
    with pytest.raises(UntrustedCheckpointError, match="cannot be listed"):
        read_checkpoint(path, trust)
    assert not target.exists()
    pickle.loads(b"\x80\x02I0x10\n0" + running(target) + b"}.")
    assert target.exists(), "Python would have run it"


def test_the_pickle_that_is_listed_is_the_one_that_torch_reads(tmp_path: Path) -> None:
    hostile = b"\x80\x02" + running(tmp_path / "created") + b"}."
    decoy = with_pickle(tmp_path / "decoy.pth", hostile, **{"a_data.pkl": b"\x80\x02}."})
    assert globals_asked_for(decoy) == ("posix.system",)
    other_case = with_pickle(tmp_path / "case.pth", hostile, "archive/DATA.PKL", **{"a_data.pkl": b"\x80\x02}."})
    assert globals_asked_for(other_case) in (("posix.system",), ())
    begun = [pickle.dumps(part, 2) for part in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})]
    appended = with_pickle(tmp_path / "appended.pth", b"\x80\x02}.").read_bytes()
    (tmp_path / "both.pth").write_bytes(b"".join([*begun, hostile, pickle.dumps([], 2)]) + appended)
    (tmp_path / "last.pth").write_bytes(b"".join([*begun, pickle.dumps({}, 2), hostile]))
    for name in ("decoy.pth", "both.pth", "last.pth"):
        assert globals_asked_for(tmp_path / name) == ("posix.system",), name
        with pytest.raises(UntrustedCheckpointError, match=r"posix\.system"):
            read_checkpoint(tmp_path / name)
    assert not (tmp_path / "created").exists()


def test_everything_that_a_trusted_file_asks_for_is_named(tmp_path: Path) -> None:
    names = b"".join(f"cstranger\nname{number}\n0".encode() for number in range(40))
    path = with_pickle(tmp_path / "x.pth", b"\x80\x02" + names + b"cbuiltins\neval\n0}.")
    said: list[str] = []
    with pytest.raises(UnsupportedCheckpointError, match="stranger"):
        read_checkpoint(path, True, said.append)
    assert len(said) == 1 and "stranger.name39" in said[0] and "builtins.eval" in said[0]


def test_the_logs_of_mmengine_need_no_trust(tmp_path: Path) -> None:
    """A training checkpoint of MMEngine keeps its averaged losses as objects of its own class."""
    number = b"cmmengine.logging.history_buffer\nHistoryBuffer\n)\x81}X\x0b\x00\x00\x00_max_lengthK\x05sb"
    path = with_pickle(tmp_path / "x.pth", b"\x80\x02}X\x04\x00\x00\x00loss" + number + b"s.")
    assert globals_asked_for(path) == ()
    with pytest.raises(UnsupportedCheckpointError, match="it has 'loss'"):
        read_checkpoint(path)


def test_another_pickle_protocol_needs_trust_and_says_why(tmp_path: Path) -> None:
    state = {"a.weight": torch.ones(2, 3), "a.bias": torch.ones(2), "b.weight": torch.zeros(4, 2)}
    torch.save(state, tmp_path / "x.pth", pickle_protocol=4)
    try:
        assert len(read_checkpoint(tmp_path / "x.pth").shapes) == 3  # a version of torch that reads it
    except UntrustedCheckpointError as error:
        assert "pickle protocol 4" in str(error)
    assert len(read_checkpoint(tmp_path / "x.pth", trust_pickle=True).shapes) == 3
