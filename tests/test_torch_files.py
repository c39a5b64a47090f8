"""Files of torch.save: what is taken out of them, and what damaged, forged and hostile ones come to."""

from __future__ import annotations

import argparse
import datetime
import pathlib
import zipfile
from collections import Counter, OrderedDict, defaultdict, deque
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fundus_rt.converters.checkpoint import Checkpoint, read_checkpoint
from fundus_rt.converters.pytorch.pickle_listing import globals_asked_for
from fundus_rt.converters.pytorch.stand_ins import Dictionary, LeftAside, Sequence
from fundus_rt.converters.pytorch.torch_names import plain_names
from fundus_rt.models.errors import UnsupportedCheckpointError, UntrustedCheckpointError
from tests import make_checkpoints as make

torch = pytest.importorskip("torch")


@pytest.fixture
def state() -> dict[str, Any]:
    """Three small tensors under names of a network."""
    return {"a.weight": torch.arange(6.0).reshape(2, 3), "a.bias": torch.ones(2), "b.weight": torch.zeros(4, 2)}


def reading(folder: Path, content: Any, trust: bool = False, **options: Any) -> Checkpoint:
    torch.save(content, folder / "x.pth", **options)
    return read_checkpoint(folder / "x.pth", trust)


def rewritten(path: Path, edit: Any, compression: int = zipfile.ZIP_STORED) -> Path:
    """The zip file again, its entries changed by `edit(name, content)`; None leaves an entry out."""
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in entries.items():
            changed = edit(name, content)
            if changed is not None:
                archive.writestr(name, changed)
    return path


BESIDE = {
    "numpy scalar": lambda: np.float32(1.5),
    "numpy array": lambda: np.arange(5.0),
    "numpy array of texts": lambda: np.array(["a", None], dtype=object),
    "path": lambda: pathlib.PurePosixPath("/data/run"),
    "own path": lambda: Path("run"),
    "date": lambda: datetime.datetime(2024, 5, 1, 12, 30),
    "set": lambda: {"a", "b"},
    "default dictionary": lambda: defaultdict(list, {"loss": [0.1]}),
    "counter": lambda: Counter("aab"),
    "queue": lambda: deque([1, 2, 3], 5),
    "options": lambda: argparse.Namespace(lr=0.1, root=Path("data")),
    "bytes": lambda: b"raw",
    "version": lambda: torch.__version__,
}


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("name", BESIDE)
def test_plain_data_beside_the_weights_needs_no_trust(tmp_path: Path, state: dict[str, Any], name: str, legacy: bool) -> None:
    content = {"model": state, "beside": BESIDE[name]()}
    found = reading(tmp_path, content, _use_new_zipfile_serialization=not legacy)
    assert found.shapes == {key: tuple(tensor.shape) for key, tensor in state.items()}
    assert globals_asked_for(tmp_path / "x.pth") == ()


def test_plain_data_is_never_made_of_what_the_file_says(tmp_path: Path, state: dict[str, Any]) -> None:
    made = LeftAside("anything", 3)
    made.__setstate__(b"\x00")
    assert vars(made) == {} and Dictionary(list) == {} and Sequence("ab") == []

    class Forged:
        def __reduce__(self) -> tuple[Any, ...]:
            return np.dtype, ("no such dtype, numpy would stop here",)

    assert len(reading(tmp_path, {"model": state, "forged": Forged()}).shapes) == 3


@pytest.mark.parametrize(
    ("content", "names"),
    [
        ({"teacher": {"backbone.a.weight": 0, "backbone.b.weight": 0}, "student": {"x": 0}}, {"a.weight", "b.weight"}),
        (
            {"state_dict": {"model.net.a.weight": 0, "model.net.b.weight": 0}, "hyper_parameters": {"x": 1}},
            {"a.weight", "b.weight"},
        ),
        ({"model": {"module._orig_mod.a.weight": 0, "module._orig_mod.b.bias": 0}, "opt": {"x": 0}}, {"a.weight", "b.bias"}),
        ({"ema": {"module.a.weight": 0, "module.b.bias": 0}, "model": {"a.weight": 0, "b.bias": 0}}, {"a.weight", "b.bias"}),
        ({"a.weight": 0, "b.weight": 0, "optimizer": {"state": {"x": 0}}}, {"a.weight", "b.weight"}),
        ({"epoch": 0, "state_dict": {"a.weight": 0, "b.weight": 0}}, {"a.weight", "b.weight"}),
        ({"vit.a.weight": 0, "vit.b.weight": 0}, {"a.weight", "b.weight"}),
        ({"layer1._orig_mod.0.weight": 0, "fc.weight": 0}, {"layer1.0.weight", "fc.weight"}),
        ({"backbone.a.weight": 0, "head.fc.weight": 0}, {"backbone.a.weight", "head.fc.weight"}),
        ({"model.a.weight": 0, "model.b.weight": 0, "criterion.weight": 0}, {"a.weight", "b.weight"}),
        ({"module.a.weight": 0, "module.b.weight": 0, "module.queue": 0}, {"a.weight", "b.weight", "queue"}),
        ({"0.a.weight": 0, "0.b.weight": 0}, {"0.a.weight", "0.b.weight"}),
        ({"fc.weight": 0, "fc.bias": 0}, {"fc.weight", "fc.bias"}),
    ],
)
def test_networks_are_found_under_their_own_names(tmp_path: Path, content: dict[str, Any], names: set[str]) -> None:
    def with_tensors(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: torch.tensor(12) if k == "epoch" else with_tensors(v) for k, v in value.items()}
        return torch.ones(3) * value

    assert set(reading(tmp_path, with_tensors(content)).shapes) == names


OUTSIDE = {
    "head beside an encoder": ({"classifier.weight": (2, 4), "classifier.bias": (2,)}, r"classifier\.weight \[2, 4\]"),
    "bias of one output": ({"classifier.bias": (1,)}, r"classifier\.bias \[1\]"),
    "temperature": ({"temperature": (1,)}, r"temperature \[1\]"),
    "another container": ({"head": {"weight": (2, 2)}}, r"head\.weight \[2, 2\]"),
    "another network": ({"state_dict": {"a.weight": (7, 3)}}, r"state_dict\.a\.weight \[7, 3\]"),
    "list": ({"prototypes": [(5, 2), (3, 2)]}, r"prototypes\.0 \[5, 2\], prototypes\.1 \[3, 2\]"),
    "deep down": ({"x": {"y": [{"z": {"u": {"v": {"w": {"weight": (2, 2)}}}}}]}}, r"x\.y\.0\.z\.u\.v\.w\.weight"),
    "metric learning": ({"metric_fc": {"weight": (2, 2)}}, r"metric_fc\.weight"),
}


def tensors_of(shapes: Any) -> Any:
    """Dictionaries and lists of shapes as ones of tensors."""
    if isinstance(shapes, dict):
        return {key: tensors_of(value) for key, value in shapes.items()}
    return [tensors_of(value) for value in shapes] if isinstance(shapes, list) else torch.randn(shapes)


@pytest.mark.parametrize("key", ["model", "encoder"])
@pytest.mark.parametrize("name", OUTSIDE)
def test_no_tensor_outside_the_network_is_dropped(tmp_path: Path, state: dict[str, Any], name: str, key: str) -> None:
    beside, expected = OUTSIDE[name]
    content = {key: state, "optimizer": {"state": {0: torch.zeros(3)}}} | tensors_of(beside)
    with pytest.raises(
        UnsupportedCheckpointError, match=rf"lie outside .*{expected}" if key == "model" else r"outside|cannot tell"
    ):
        reading(tmp_path, content)


def test_a_list_of_tensors_beside_tensors_is_not_dropped(tmp_path: Path, state: dict[str, Any]) -> None:
    with pytest.raises(UnsupportedCheckpointError, match=r"outside .*prototypes\.0"):
        reading(tmp_path, state | {"prototypes": [torch.zeros(3)]})


def test_what_training_leaves_beside_the_network_is_no_part_of_it(tmp_path: Path, state: dict[str, Any]) -> None:
    beside = {
        "optimizer_states": [{"exp_avg": torch.zeros(3)}],
        "lr_schedulers": [torch.zeros(3)],
        "scaler": {"scale": torch.ones(2)},
        "cuda_rng_state": [torch.zeros(16, dtype=torch.uint8)],
        "rng_state": torch.zeros(16, dtype=torch.uint8),
        "args": argparse.Namespace(weights=torch.ones(2)),
        "history": {"val_loss": torch.ones(9)},
        "class_weights": torch.ones(2),
        "criterion.weight": torch.ones(2),
        "best_loss": torch.tensor(0.25),
        "epoch": torch.tensor([12]),
    }
    found = reading(tmp_path, {"model": state, "ema": {"decay": torch.tensor(0.9), "module": state}} | beside)
    assert set(found.shapes) == set(state)
    assert "single numbers beside the network, left aside: best_loss = 0.25, epoch = 12, decay = 0.9" in found.notes
    assert "also there and not used: model" in found.notes
    aside = next(note for note in found.notes if note.startswith("training state"))
    assert {"optimizer_states", "scaler", "rng_state"} <= set(aside.rpartition(": ")[2].split(", "))


def test_of_a_teacher_and_its_student_the_teacher_is_taken(tmp_path: Path, state: dict[str, Any]) -> None:
    student = {"module.backbone.a.weight": torch.zeros(2), "module.head.weight": torch.zeros(3, 3)}
    found = reading(tmp_path, {"student": student, "teacher": state, "center": torch.zeros(1, 8)})
    assert set(found.shapes) == set(state)
    assert "also there and not used: student, center" in found.notes


def test_what_the_file_says_of_itself_is_handed_on(tmp_path: Path, state: dict[str, Any]) -> None:
    openmmlab = {"state_dict": state, "meta": {"dataset_meta": {"classes": ["glaucoma", "normal"]}}}
    assert reading(tmp_path, openmmlab).classes == ("glaucoma", "normal")
    older = {"state_dict": state, "meta": {"CLASSES": ("normal", "glaucoma")}}
    assert reading(tmp_path, older).classes == ("normal", "glaucoma")
    folders = {"model": state, "class_to_idx": {"normal": 1, "glaucoma": 0}}
    assert reading(tmp_path, folders).classes == ("glaucoma", "normal")
    assert reading(tmp_path, {"model": state, "class_to_idx": {"normal": 1, "glaucoma": 1}}).classes == ()
    assert reading(tmp_path, {"model": state, "args": argparse.Namespace(model="vit_l")}).stated_architecture == "vit_l"
    assert reading(tmp_path, {"state_dict": state, "arch": "tf_x"}).stated_architecture == "tf_x"
    silent = reading(tmp_path, {"model": state})
    assert silent.classes == () and silent.stated_architecture == ""


def test_what_the_file_says_of_itself_is_repeated(tmp_path: Path, state: dict[str, Any]) -> None:
    content = {"state_dict": state, "arch": "densenet121", "args": argparse.Namespace(model="vit_large")}
    notes = reading(tmp_path, content | {"meta": {"CLASSES": ("normal", "glaucoma")}}).notes
    assert {"the file calls its network 'densenet121'", "the file calls its network 'vit_large'"} <= set(notes)
    assert "the file lists its classes as 'normal', 'glaucoma'" in notes
    assert "\x1b" not in "".join(reading(tmp_path, {"state_dict": state, "arch": "\x1b[2J"}).notes)


def test_a_whole_module_is_unwrapped_and_kept(tmp_path: Path) -> None:
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1), torch.nn.BatchNorm2d(4))
    averaged = torch.optim.swa_utils.AveragedModel(torch.nn.DataParallel(network))
    found = reading(tmp_path, {"model": averaged, "epoch": 3}, trust=True)
    assert type(found.module) is torch.nn.Sequential
    assert set(found.shapes) == set(network.state_dict())
    assert any("Sequential), taken out of DataParallel in AveragedModel" in note for note in found.notes)
    assert reading(tmp_path, network.state_dict(), trust=True).module is None


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        (b"ctorch.nn.modules.linear\nLinear\n", b"ctorch.nn.modules.linear\nFormer\n", "a class is not in its module any more"),
        (
            b"ctorch.nn.modules.linear\n",
            b"ctorch.nn.modules.former\n",
            r"installed torch \S+ has no torch\.nn\.modules\.former",
        ),
        (b"ctorch.nn.modules.linear\n", b"cretina_models\n", "put its folder on PYTHONPATH"),
    ],
)
def test_classes_that_have_moved_are_named(tmp_path: Path, old: bytes, new: bytes, expected: str) -> None:
    torch.save(torch.nn.Linear(2, 1), tmp_path / "x.pth")
    rewritten(tmp_path / "x.pth", lambda name, content: content.replace(old, new))
    with pytest.raises(UnsupportedCheckpointError, match=expected):
        read_checkpoint(tmp_path / "x.pth", trust_pickle=True)


ODD = {
    "sparse": (lambda: torch.eye(3).to_sparse(), "is not dense"),
    "complex": (lambda: torch.zeros(2, dtype=torch.complex64), "is complex"),
    "meta": (lambda: torch.zeros(2, device="meta"), "meta device"),
    "quantized": (lambda: torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8), "is quantized"),
    "repeated": (lambda: torch.zeros(1).expand(10**12), "repeats its own numbers"),
    "nested": (lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]), "is not dense"),
    "none": (lambda: torch.zeros(0, 3, 4, 4), "holds no numbers"),
    "none of a window": (lambda: torch.zeros(24, 3, 0, 0), "holds no numbers"),
    "overlapping": (lambda: torch.zeros(11).as_strided((6, 6), (1, 1)), "repeats its own numbers"),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ODD)
def test_tensors_that_no_network_has_are_refused(tmp_path: Path, state: dict[str, Any], name: str) -> None:
    make_tensor, expected = ODD[name]
    with pytest.raises(UnsupportedCheckpointError, match=rf"c\.weight .*{expected}"):
        reading(tmp_path, state | {"c.weight": make_tensor()})
    with pytest.raises(UnsupportedCheckpointError, match=r"outside .*c\.weight"):
        reading(tmp_path, {"model": state, "c.weight": make_tensor()})


def test_views_of_one_storage_are_read_and_endless_ones_refused(tmp_path: Path) -> None:
    whole = torch.randn(3 * 10**5)
    tied = {"a.weight": whole[: 10**5].reshape(100, 1000), "b.weight": whole[10**5 :], "b.tied": whole[10**5 :]}
    np.testing.assert_array_equal(reading(tmp_path, tied).state["b.tied"].numpy(), whole[10**5 :].numpy())
    with pytest.raises(UnsupportedCheckpointError, match="views of the same numbers"):
        reading(tmp_path, {f"layer{index}.weight": whole for index in range(40)})


def test_zip_files_that_torch_did_not_write_are_refused(tmp_path: Path, state: dict[str, Any]) -> None:
    path = tmp_path / "x.pth"
    torch.save({"a.weight": torch.zeros(10**6), "b.weight": torch.zeros(2)}, path)
    rewritten(path, lambda name, content: content, zipfile.ZIP_DEFLATED)
    with pytest.raises(UnsupportedCheckpointError, match="would unpack to 4,0"):
        read_checkpoint(path)
    torch.save(state, path)
    with zipfile.ZipFile(path) as archive:
        name = next(name for name in archive.namelist() if name.endswith("data.pkl"))
        content = archive.read(name)
    with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr(name, content)
    with pytest.raises(UnsupportedCheckpointError, match="two entries of one name"):
        read_checkpoint(path)


@pytest.mark.parametrize(
    "edit",
    [
        lambda name, content: content[:-8] if name.endswith("data/0") else content,
        lambda name, content: None if name.endswith("data/0") else content,
        lambda name, content: content.replace(b"K\x06t", b"K\xfft", 1),
        lambda name, content: content.replace(b"QK\x00K", b"QK\x09K", 1),
        lambda name, content: content[: len(content) // 2] if name.endswith("data.pkl") else content,
        lambda name, content: b"" if name.endswith("data.pkl") else content,
    ],
    ids=["storage cut", "storage gone", "storage too small", "offset beyond", "pickle cut", "pickle empty"],
)
def test_zip_files_with_a_wrong_storage_are_refused(tmp_path: Path, state: dict[str, Any], edit: Any) -> None:
    torch.save(state, tmp_path / "x.pth")
    before = (tmp_path / "x.pth").read_bytes()
    rewritten(tmp_path / "x.pth", edit)
    assert (tmp_path / "x.pth").read_bytes() != before
    with pytest.raises(UnsupportedCheckpointError):
        read_checkpoint(tmp_path / "x.pth")


def test_any_flipped_byte_of_a_legacy_file_is_read_or_refused(tmp_path: Path, state: dict[str, Any]) -> None:
    content = make.save_torch(tmp_path / "x.pth", state, legacy=True).read_bytes()
    refused = 0
    for at in range(0, len(content), 7):
        (tmp_path / "y.pth").write_bytes(content[:at] + bytes([content[at] ^ 0x55]) + content[at + 1 :])
        try:
            read_checkpoint(tmp_path / "y.pth")
        except UnsupportedCheckpointError:
            refused += 1
    assert refused > len(content) // 7 // 3


def test_any_flipped_byte_of_a_weight_in_a_zip_file_is_found(tmp_path: Path, state: dict[str, Any]) -> None:
    content = make.save_torch(tmp_path / "x.pth", state).read_bytes()
    at = content.index(state["a.weight"].numpy().tobytes())
    for offset in range(0, 24, 5):
        (tmp_path / "y.pth").write_bytes(content[: at + offset] + bytes([content[at + offset] ^ 1]) + content[at + offset + 1 :])
        with pytest.raises(UnsupportedCheckpointError, match=r"checksum of \S*data/\d does not hold"):
            read_checkpoint(tmp_path / "y.pth")
    for at in range(0, len(content), 11):
        (tmp_path / "y.pth").write_bytes(content[:at] + bytes([content[at] ^ 0x95]) + content[at + 1 :])
        try:
            found = read_checkpoint(tmp_path / "y.pth")
        except UnsupportedCheckpointError:
            continue
        assert all(torch.equal(found.state[name], tensor) for name, tensor in state.items()), f"byte {at} changed a weight"


def test_files_without_checksums_are_read(tmp_path: Path, state: dict[str, Any]) -> None:
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        assert len(reading(tmp_path, state).shapes) == 3
    finally:
        torch.serialization.set_crc32_options(before)


def test_containers_that_hold_themselves_end(tmp_path: Path, state: dict[str, Any]) -> None:
    itself: dict[str, Any] = {"epoch": 3}
    itself["again"] = itself
    with pytest.raises(UnsupportedCheckpointError, match="cannot tell which entry"):
        reading(tmp_path, itself)
    nested: dict[str, Any] = {"x": 1}
    for _ in range(40):
        nested = {"left": nested, "right": nested}
    assert len(reading(tmp_path, {"model": state, "log": nested}).shapes) == 3
    deep = state
    for _ in range(7):
        deep = {"model": deep}
    with pytest.raises(UnsupportedCheckpointError, match=r"deeper than five|cannot tell"):
        reading(tmp_path, deep)


def test_a_pickle_that_claims_more_than_it_holds_is_not_believed(tmp_path: Path, state: dict[str, Any]) -> None:
    path = tmp_path / "x.pth"
    claims = b"\x80\x02cos\nsystem\n\x96" + (2**40).to_bytes(8, "little") + b"abc."
    torch.save(state, path)
    rewritten(path, lambda name, content: claims if name.endswith("data.pkl") else content)
    with pytest.raises(UnsupportedCheckpointError):
        read_checkpoint(path)
    index = b"\x80\x02cposix\nsystem\nr" + (2**31 - 1).to_bytes(4, "little") + b"."
    torch.save(state, path)
    rewritten(path, lambda name, content: index if name.endswith("data.pkl") else content)
    with pytest.raises(UntrustedCheckpointError, match=r"posix\.system"):
        read_checkpoint(path)


def test_a_safetensors_file_is_held_to_the_same_rules(tmp_path: Path, state: dict[str, Any]) -> None:
    save_file = pytest.importorskip("safetensors.torch").save_file
    half = {f"model.{name}": tensor.half() for name, tensor in state.items()}
    save_file(half, str(tmp_path / "x.safetensors"))
    found = read_checkpoint(tmp_path / "x.safetensors")
    assert set(found.shapes) == set(state) and any("stored as float16" in note for note in found.notes)
    content = (tmp_path / "x.safetensors").read_bytes()
    (tmp_path / "x.safetensors").write_bytes(content[:-3])
    with pytest.raises(UnsupportedCheckpointError, match="not a readable safetensors"):
        read_checkpoint(tmp_path / "x.safetensors")


def test_names_lose_what_they_share_and_nothing_else() -> None:
    names, prefix = plain_names(["net.module.conv.weight", "net.module.fc._orig_mod.weight"])
    assert prefix == "net.module."
    assert list(names.values()) == ["conv.weight", "fc.weight"]
    assert plain_names(["a.weight", "a.bias"]) == ({"a.weight": "a.weight", "a.bias": "a.bias"}, "")
    assert plain_names([]) == ({}, "")


def test_ordered_dictionaries_with_metadata_are_states(tmp_path: Path) -> None:
    network = torch.nn.Sequential(torch.nn.Linear(3, 2))
    kept = network.state_dict()
    assert isinstance(kept, OrderedDict) and hasattr(kept, "_metadata")
    assert set(reading(tmp_path, kept).shapes) == set(kept)


def test_a_name_made_of_losses_takes_no_time(tmp_path: Path, state: dict[str, Any]) -> None:
    name = "loss." * 20000 + "!"
    assert set(reading(tmp_path, state | {name: torch.ones(2)}).shapes) == {*state, name}
    assert set(reading(tmp_path, state | {"head.loss_fn.weight": torch.ones(2)}).shapes) == set(state)
