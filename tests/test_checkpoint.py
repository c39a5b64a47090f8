"""Reading checkpoint files: every container and prefix of the field, and nothing executed from a hostile one."""

from __future__ import annotations

import tarfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fundus_rt.converters.checkpoint import read_checkpoint
from fundus_rt.converters.pytorch.pickle_listing import globals_asked_for
from fundus_rt.models.errors import UnsupportedCheckpointError, UntrustedCheckpointError
from tests import make_checkpoints as make

torch = pytest.importorskip("torch")


@pytest.fixture
def state() -> dict[str, Any]:
    """Three small tensors under names of a network."""
    return {"a.weight": torch.arange(6.0).reshape(2, 3), "a.bias": torch.ones(2), "b.weight": torch.zeros(4, 2)}


def assert_holds(path: Path, state: dict[str, Any]) -> None:
    checkpoint = read_checkpoint(path)
    assert checkpoint.shapes == {name: tuple(tensor.shape) for name, tensor in state.items()}
    for name, tensor in state.items():
        np.testing.assert_array_equal(checkpoint.state[name].numpy(), tensor.numpy())


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("ending", [".pth", ".pt", ".tar", ".bin", ".ckpt"])
def test_both_formats_of_torch_under_every_ending(tmp_path: Path, state: dict[str, Any], ending: str, legacy: bool) -> None:
    path = make.save_torch(tmp_path / f"x{ending}", state, legacy)
    assert_holds(path, state)
    assert read_checkpoint(path).format == ("torch-legacy" if legacy else "torch-zip")


@pytest.mark.parametrize(
    "key", ["model", "state_dict", "model_state_dict", "state_dict_ema", "model_ema", "teacher", "visionfm_state_dict", "x"]
)
@pytest.mark.parametrize("legacy", [False, True])
def test_containers_of_the_field_are_unwrapped(tmp_path: Path, state: dict[str, Any], key: str, legacy: bool) -> None:
    content = make.training_container(state)
    content[key] = content.pop("model")
    path = make.save_torch(tmp_path / "x.pth", content, legacy)
    assert_holds(path, state)
    assert f"network taken from {key!r}" in read_checkpoint(path).notes


def test_averaged_weights_go_first_and_the_others_are_named(tmp_path: Path, state: dict[str, Any]) -> None:
    other = {name: tensor + 1 for name, tensor in state.items()}
    path = make.save_torch(tmp_path / "x.pth", {"state_dict": other, "state_dict_ema": state})
    assert_holds(path, state)
    assert any("also there and not used: state_dict" in note for note in read_checkpoint(path).notes)


@pytest.mark.parametrize("mark", [{"message_hub": {"log_scalars": {}}}, {"meta": {"mmengine_version": "0.10.4", "epoch": 3}}])
def test_mmengine_has_swapped_the_averages_into_state_dict(tmp_path: Path, state: dict[str, Any], mark: dict[str, Any]) -> None:
    last = {"steps": torch.tensor(10)} | {f"module.{name}": tensor + 1 for name, tensor in state.items()}
    path = make.save_torch(tmp_path / "x.pth", {"state_dict": state, "ema_state_dict": last} | mark)
    assert_holds(path, state)
    assert any("state_dict holds the averaged weights" in note for note in read_checkpoint(path).notes)
    without = make.save_torch(tmp_path / "y.pth", {"state_dict": state, "ema_state_dict": last})
    assert torch.equal(read_checkpoint(without).state["a.bias"], state["a.bias"] + 1)


def test_containers_nest(tmp_path: Path, state: dict[str, Any]) -> None:
    assert_holds(make.save_torch(tmp_path / "x.pth", {"model": {"state_dict": state}, "epoch": 3}), state)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "backbone.", "model.", "net.", "swin.", "module.model.backbone."])
def test_prefixes_of_wrappers_are_taken_off(tmp_path: Path, state: dict[str, Any], prefix: str) -> None:
    path = make.save_torch(tmp_path / "x.pth", {prefix + name: tensor for name, tensor in state.items()})
    assert_holds(path, state)
    assert f"prefix {prefix!r} taken off every name" in read_checkpoint(path).notes


def test_a_prefix_that_only_some_tensors_have_stays(tmp_path: Path, state: dict[str, Any]) -> None:
    mixed = {f"backbone.{name}": tensor for name, tensor in state.items()} | {"fc.weight": torch.ones(1, 2)}
    assert_holds(make.save_torch(tmp_path / "x.pth", mixed), mixed)


def test_averaged_models_counter_is_left_aside(tmp_path: Path, state: dict[str, Any]) -> None:
    averaged = {f"module.{name}": tensor for name, tensor in state.items()} | {"n_averaged": torch.tensor(7)}
    assert_holds(make.save_torch(tmp_path / "x.pth", averaged), state)


def test_safetensors(tmp_path: Path, state: dict[str, Any]) -> None:
    pytest.importorskip("safetensors.torch").save_file(state, str(tmp_path / "x.safetensors"))
    assert_holds(tmp_path / "x.safetensors", state)


def test_several_networks_without_a_known_name_are_refused_with_their_names(tmp_path: Path, state: dict[str, Any]) -> None:
    path = make.save_torch(tmp_path / "x.pth", {"generator": state, "discriminator": state})
    with pytest.raises(UnsupportedCheckpointError, match=r"'generator', 'discriminator'"):
        read_checkpoint(path)


@pytest.mark.parametrize("legacy", [False, True])
def test_code_in_a_pickle_is_named_and_not_run(tmp_path: Path, legacy: bool) -> None:
    target = tmp_path / "created"
    path = make.hostile_checkpoint(tmp_path / "x.pth", target, legacy)
    with pytest.raises(UntrustedCheckpointError, match=r"io\.open.*--trust-pickle"):
        read_checkpoint(path)
    assert globals_asked_for(path) == ("io.open",)
    assert not target.exists()


@pytest.mark.parametrize("legacy", [False, True])
def test_a_whole_pickled_module_needs_trust_and_then_gives_its_tensors(tmp_path: Path, legacy: bool) -> None:
    network = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
    path = make.save_torch(tmp_path / "x.pth", torch.nn.DataParallel(network), legacy)
    with pytest.raises(UntrustedCheckpointError, match=r"torch\.nn\.parallel\.data_parallel\.DataParallel"):
        read_checkpoint(path)
    said: list[str] = []
    checkpoint = read_checkpoint(path, trust_pickle=True, progress=said.append)
    assert set(checkpoint.shapes) == set(network.state_dict())
    assert len(said) == 1 and "DataParallel" in said[0]


def test_a_trusted_pickle_of_a_class_that_is_not_installed_says_so(tmp_path: Path) -> None:
    path = make.save_torch(tmp_path / "x.pth", {"model": make.TouchesAFile(tmp_path / "created")})
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in entries.items():
            archive.writestr(name, content.replace(b"cio\nopen", b"cno_such_module\nopen"))
    with pytest.raises(UnsupportedCheckpointError, match="no_such_module"):
        read_checkpoint(path, trust_pickle=True)


def test_plain_tensors_say_nothing_about_code_even_when_trusted(tmp_path: Path, state: dict[str, Any]) -> None:
    said: list[str] = []
    read_checkpoint(make.save_torch(tmp_path / "x.pth", state), trust_pickle=True, progress=said.append)
    assert said == []


STRANGERS = {
    "empty": (b"", "empty"),
    "page": (b"\n<!DOCTYPE html><html>Google Drive can't scan this file", "web page"),
    "pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:00", "git lfs pull"),
    "gzip": (b"\x1f\x8b\x08\x00rest", "archive"),
    "noise": (bytes(range(200, 256)) * 4, "begins with"),
    "text": (b"hello, this is no checkpoint", "begins with"),
}


@pytest.mark.parametrize("name", STRANGERS)
def test_files_that_are_no_checkpoints_are_named(tmp_path: Path, name: str) -> None:
    content, expected = STRANGERS[name]
    (tmp_path / "x.pth").write_bytes(content)
    with pytest.raises(UnsupportedCheckpointError, match=expected):
        read_checkpoint(tmp_path / "x.pth")


def test_other_files_and_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedCheckpointError, match="does not exist"):
        read_checkpoint(tmp_path / "none.pth")
    with pytest.raises(UnsupportedCheckpointError, match="folder"):
        read_checkpoint(tmp_path)
    with pytest.raises(UnsupportedCheckpointError, match=r"torch\.save did not write"):
        read_checkpoint(make.plain_pickle(tmp_path / "x.pkl"))
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr("model.pth", b"")
    with pytest.raises(UnsupportedCheckpointError, match=r"zip archive of model\.pth"):
        read_checkpoint(tmp_path / "x.zip")
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": {"fc.weight": "model-00001-of-00002.safetensors"}}')
    with pytest.raises(UnsupportedCheckpointError, match="kept in several files"):
        read_checkpoint(tmp_path / "model.safetensors.index.json")
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        archive.add(tmp_path / "x.zip", "x.zip")
    with pytest.raises(UnsupportedCheckpointError, match="archive"):
        read_checkpoint(tmp_path / "x.tar")


def test_a_torchscript_program_is_refused(tmp_path: Path) -> None:
    torch.jit.save(torch.jit.trace(torch.nn.Linear(2, 1), torch.zeros(1, 2)), str(tmp_path / "x.pt"))
    with pytest.raises(UnsupportedCheckpointError, match="TorchScript"):
        read_checkpoint(tmp_path / "x.pt")


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("share", [0.02, 0.3, 0.6, 0.95])
def test_a_file_cut_short_is_refused(tmp_path: Path, legacy: bool, share: float) -> None:
    whole = make.save_torch(tmp_path / "x.pth", {"w": torch.randn(300, 300), "v": torch.randn(50)}, legacy).read_bytes()
    (tmp_path / "x.pth").write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(UnsupportedCheckpointError, match="download it again"):
        read_checkpoint(tmp_path / "x.pth")


def test_a_dictionary_without_tensors_and_a_bare_tensor_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedCheckpointError, match="cannot tell which entry is the network"):
        read_checkpoint(make.save_torch(tmp_path / "x.pth", {"epoch": 3}))
    with pytest.raises(UnsupportedCheckpointError, match="holds a Tensor"):
        read_checkpoint(make.save_torch(tmp_path / "x.pth", torch.zeros(3)))


def test_what_stands_where_the_network_should_is_named(tmp_path: Path, state: dict[str, Any]) -> None:
    for content, expected in (
        ({"model": None}, "'model' is a NoneType"),
        ({"models": [state, state]}, r"'models' is a list of 2 \(dict\)"),
        ([state, state], r"holds a list of 2 \(dict\)"),
    ):
        with pytest.raises(UnsupportedCheckpointError, match=expected):
            read_checkpoint(make.save_torch(tmp_path / "x.pth", content))


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_the_file_of_a_folder_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / name).write_bytes(b"any")
    with pytest.raises(UnsupportedCheckpointError, match=f"give the file of the network in it: .*{name}"):
        read_checkpoint(tmp_path)
