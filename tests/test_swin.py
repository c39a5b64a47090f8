"""Swin Transformers: hyperparameters from the tensors, both layouts, and every way in which a file can be another one."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fundus_rt.benchmarks.make_swin import answers_of, published, swin_network, tensors_of
from fundus_rt.converters.architecture import Architecture, identify_architecture
from fundus_rt.converters.checkpoint import Checkpoint, read_checkpoint
from fundus_rt.converters.pytorch.swin import identify_swin, looks_like_swin
from fundus_rt.models import ModelCard, load_card
from fundus_rt.models.errors import UnsupportedCheckpointError, UsageError
from tests import make_checkpoints as make

torch = pytest.importorskip("torch")
make.skip_without_timm()
pytestmark = pytest.mark.usefixtures("one_thread")


def card_for(height: int, width: int | None = None) -> ModelCard:
    """The card of the age model at another size."""
    card = load_card("joir-age")
    size = (height, width or height)
    return dataclasses.replace(card, preprocessing=dataclasses.replace(card.preprocessing, input_size=size))


def identified(path: Path, state: dict[str, Any], card: ModelCard) -> tuple[Checkpoint, Architecture]:
    checkpoint = read_checkpoint(make.save_torch(path / "x.pth", state))
    return checkpoint, identify_architecture(checkpoint, card)


@pytest.fixture(scope="module")
def network() -> Any:
    return make.swin_network()


CONFIGURATIONS: list[dict[str, Any]] = [
    {},
    {"outputs": 7},
    {"embed_dim": 24, "num_heads": (3, 6, 12, 24), "depths": (1, 2, 3, 1)},
    {"patch_size": 2, "img_size": 48},
    {"window_size": 4, "img_size": 112},
    {"mlp_ratio": 2.0, "qkv_bias": False},
    {"depths": (2, 2, 2), "num_heads": (1, 2, 4), "img_size": 64, "window_size": 4},
    {"img_size": 100, "window_size": 4},
    {"img_size": (96, 64), "window_size": 4},
]
"""Among them: three stages, windows that do not divide the grid, odd grids, a last stage smaller than the window, pictures
that are not square."""


@pytest.mark.parametrize("changes", CONFIGURATIONS)
@pytest.mark.parametrize("layout", [make.swin_new_layout, make.swin_microsoft_layout])
def test_hyperparameters_and_answers_come_back_from_the_tensors(tmp_path: Path, changes: dict[str, Any], layout: Any) -> None:
    original = make.swin_network(**changes)
    height, width = original.patch_embed.img_size
    _, architecture = identified(tmp_path, layout(original), card_for(height, width))
    assert architecture.columns == changes.get("outputs", 1)
    account = architecture.account
    assert account.used_parameters == account.network_parameters == sum(p.numel() for p in original.parameters())
    rebuilt = architecture.build()
    images = torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        expected = original(images).numpy()
        np.testing.assert_array_equal(rebuilt.original(images).numpy(), expected)
        np.testing.assert_allclose(rebuilt.for_export(images).numpy(), expected, atol=1e-5, rtol=1e-5)
    assert abs(np.diff(expected[:, 0])[0]) > 1e-3, "the test's network answers the same for different pictures"


def test_the_published_variants_are_named(tmp_path: Path) -> None:
    """Names from the paper's table, shapes from timm's own entry points on no memory."""
    import timm

    for entry, name in (("swin_tiny_patch4_window7_224", "Swin-T"), ("swin_base_patch4_window12_384", "Swin-B")):
        with torch.device("meta"):
            network = timm.create_model(entry, num_classes=1)
        shapes = {key: tuple(tensor.shape) for key, tensor in network.state_dict().items()}
        checkpoint = Checkpoint(tmp_path / "x.pth", "0", "torch-zip", "pytorch", shapes)
        size = int(entry.rpartition("_")[2])
        architecture = identify_architecture(checkpoint, card_for(size))
        assert architecture.description.startswith(f"{name}, patch 4, window {7 if size == 224 else 12}, {size} x {size}")


def test_stored_masks_tell_the_input_size(tmp_path: Path, network: Any) -> None:
    with pytest.raises(UnsupportedCheckpointError, match=r"64 windows of 3 x 3 at stage 1, that is 96 x 96.*\[96, 96\]"):
        identified(tmp_path, make.swin_microsoft_layout(network), card_for(192))


def test_a_window_that_the_size_does_not_allow_is_refused(tmp_path: Path, network: Any) -> None:
    with pytest.raises(UnsupportedCheckpointError, match="of another shape"):
        identified(tmp_path, make.swin_new_layout(network), card_for(32))


def test_a_replaced_head_without_pooling_is_refused_with_the_reason(tmp_path: Path, network: Any) -> None:
    """In timm's new layout ``model.head = nn.Linear(...)`` answers with four dimensions, as timm itself shows here."""
    changed = make.swin_network()
    changed.head = torch.nn.Linear(changed.num_features, 1)
    with torch.inference_mode():
        assert changed(torch.zeros(1, 3, 96, 96)).ndim == 4
    with pytest.raises(UnsupportedCheckpointError, match=r"\[N, H, W, outputs\]"):
        identified(tmp_path, changed.state_dict(), card_for(96))


def test_a_replaced_head_in_the_old_layout_is_right(tmp_path: Path, network: Any) -> None:
    state = make.swin_microsoft_layout(network)
    assert "head.weight" in state
    assert identified(tmp_path, state, card_for(96))[1].columns == 1


def spoilt(state: dict[str, Any], case: str) -> dict[str, Any]:
    """A state_dict with one fault in it."""
    if case == "missing":
        del state["layers.1.blocks.1.mlp.fc2.bias"]
    elif case == "left over":
        state["age_embedding.weight"] = torch.zeros(2, 2)
    elif case == "shape":
        state["norm.weight"] = torch.zeros(7)
    elif case == "no head":
        del state["head.fc.weight"], state["head.fc.bias"]
    elif case == "mlp head":
        state["head.1.weight"] = state.pop("head.fc.weight")
        state["head.1.bias"] = state.pop("head.fc.bias")
    elif case == "no bias":
        del state["head.fc.bias"]
    elif case == "merging":
        state["layers.0.downsample.norm.weight"] = torch.zeros(4)
    elif case == "v2":
        state["layers.0.blocks.0.attn.logit_scale"] = torch.zeros(1)
    elif case == "table":
        state["layers.0.blocks.0.attn.relative_position_bias_table"] = torch.zeros(26, 1)
    elif case == "grey":
        state["patch_embed.proj.weight"] = torch.zeros(32, 1, 4, 4)
    return state


SPOILT = {
    "missing": r"1 missing in the file: layers\.1\.blocks\.1\.mlp\.fc2\.bias \[64\]",
    "left over": r"1 left over: age_embedding\.weight \[2, 2\]",
    "shape": r"norm\.weight \[7\] where \[256\] is needed",
    "no head": "without a head",
    "mlp head": r"head of its own \(head\.1\)",
    "no bias": r"missing in the file: head\.fc\.bias",
    "merging": r"patch merging at stages \[0, 1, 2, 3\] of 4",
    "v2": r"left over: layers\.0\.blocks\.0\.attn\.logit_scale",
    "table": "26 relative positions",
    "grey": "1 channels, expected 3",
}


@pytest.mark.parametrize("case", SPOILT)
def test_a_network_that_is_not_there_to_the_last_weight_is_refused(tmp_path: Path, network: Any, case: str) -> None:
    with pytest.raises(UnsupportedCheckpointError, match=SPOILT[case]):
        identified(tmp_path, spoilt(make.swin_new_layout(network), case), card_for(96))


@pytest.mark.parametrize("buffer", ["attn.relative_position_index", "attn_mask"])
def test_a_buffer_of_changed_code_is_refused(tmp_path: Path, network: Any, buffer: str) -> None:
    state = make.swin_microsoft_layout(network)
    state[f"layers.0.blocks.1.{buffer}"] = state[f"layers.0.blocks.1.{buffer}"] + 1
    _, architecture = identified(tmp_path, state, card_for(96))
    with pytest.raises(UnsupportedCheckpointError, match="changed code"):
        architecture.build()


def test_another_network_is_not_taken_for_a_swin(tmp_path: Path, network: Any) -> None:
    state = make.swin_new_layout(network)
    assert looks_like_swin({name: tuple(tensor.shape) for name, tensor in state.items()})
    for other in (make.resnet_state(), {"x.weight": torch.zeros(3)}, {"patch_embed.proj.weight": torch.zeros(8, 3, 4, 4)}):
        assert not looks_like_swin({name: tuple(tensor.shape) for name, tensor in other.items()})
        checkpoint = read_checkpoint(make.save_torch(tmp_path / "x.pth", other))
        with pytest.raises(UnsupportedCheckpointError, match=r"x\.pth holds no Swin Transformer"):
            identify_swin(checkpoint, card_for(96))


def test_a_swin_is_refused_by_a_card_of_another_family(tmp_path: Path, network: Any) -> None:
    card = dataclasses.replace(card_for(96), name="other", families=("resnet-50",))
    with pytest.raises(UnsupportedCheckpointError, match=r"holds Swin .* The card 'other' expects resnet-50"):
        identified(tmp_path, make.swin_new_layout(network), card)


@pytest.mark.parametrize("kind", ["int8", "nan"])
def test_numbers_that_are_no_weights_are_refused(tmp_path: Path, network: Any, kind: str) -> None:
    state = make.swin_new_layout(network)
    name = "layers.0.blocks.0.mlp.fc1.weight"
    state[name] = (state[name] * 40).to(torch.int8) if kind == "int8" else state[name] * float("nan")
    expected = r"fc1\.weight \(int8\)" if kind == "int8" else r"fc1\.weight \[128, 32\] holds NaN"
    with pytest.raises(UnsupportedCheckpointError, match=expected):
        identified(tmp_path, state, card_for(96))


@pytest.mark.parametrize("layout", ["timm", "Microsoft", "torchvision"])
def test_an_entry_without_tensors_before_the_linear_layer_is_taken_for_dropout_and_said(tmp_path: Path, layout: str) -> None:
    original = swin_network("torchvision" if layout == "torchvision" else "timm", 1, 3, **make.SWIN_SMALL)
    head = "head.fc." if layout == "timm" else "head."
    state = {
        name.replace(head, f"{head}1.") if name.startswith(head) else name: tensor
        for name, tensor in tensors_of(layout, original).items()
    }
    assert f"{head}1.weight" in state
    _, architecture = identified(tmp_path, state, card_for(96))
    assert any(f"({head}0): taken as dropout" in warning for warning in architecture.warnings)
    images = torch.randn(2, 3, 96, 96, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(answers_of(architecture.build().original, images), answers_of(original, images), atol=0, rtol=0)


def test_a_whole_module_with_a_head_of_its_own_answers_itself(tmp_path: Path) -> None:
    changed = make.swin_network()
    changed.head.fc = torch.nn.Sequential(torch.nn.Linear(256, 8), torch.nn.GELU(), torch.nn.Linear(8, 3))
    path = make.save_torch(tmp_path / "x.pth", changed)
    architecture = identify_architecture(read_checkpoint(path, trust_pickle=True), card_for(96))
    assert (architecture.family, architecture.columns) == ("swin", 3) and "whole pickled module" in architecture.description
    images = torch.randn(2, 3, 96, 96, generator=torch.Generator().manual_seed(3))
    expected = answers_of(changed, images).numpy()
    answered = architecture.build().answers(images.numpy().transpose(0, 2, 3, 1))
    np.testing.assert_allclose(answered, expected, atol=1e-5)
    with pytest.raises(UnsupportedCheckpointError, match="head of its own"):
        identified(tmp_path, changed.state_dict(), card_for(96))


CONFIGURATIONS_OF_TIMM = {
    "pooling": ({"global_pool": "max"}, "global_pool is 'max'"),
    "pooling as an argument": ({"model_args": {"global_pool": ""}}, "global_pool is ''"),
    "size": ({"model_args": {"img_size": 224}}, r"says 224 x 224 pixels, but the card .* prepares 96 x 96"),
    "published size": ({"pretrained_cfg": {"input_size": [3, 224, 224]}}, "says 224 x 224 pixels"),
    "window": ({"model_args": {"window_size": 7}}, r"has windows of 3, but config\.json .* says 7"),
    "width": ({"model_args": {"embed_dim": 96}}, "has embed 32, but .* says 96"),
    "unknown argument": ({"model_args": {"norm_layer": "x"}}, "model_args has norm_layer"),
    "another network": ({"architecture": "swinv2_tiny_window8_256"}, "describes 'swinv2_tiny_window8_256'"),
}


@pytest.mark.parametrize("case", CONFIGURATIONS_OF_TIMM)
@pytest.mark.parametrize("layout", [make.swin_new_layout, make.swin_microsoft_layout])
def test_the_configuration_of_timm_beside_a_v1_file_has_to_agree(tmp_path: Path, network: Any, layout: Any, case: str) -> None:
    content, expected = CONFIGURATIONS_OF_TIMM[case]
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "swin_tiny_patch4_window7_224"} | content))
    with pytest.raises(UnsupportedCheckpointError, match=expected):
        identified(tmp_path, layout(network), card_for(96))


def test_a_configuration_that_agrees_or_is_of_something_else_is_no_hindrance(tmp_path: Path, network: Any) -> None:
    arguments = {"img_size": 96, "window_size": 3, "embed_dim": 32, "depths": [2, 2, 2, 2], "global_pool": "avg"}
    for content in ({"architecture": "swin_tiny_patch4_window7_224", "model_args": arguments}, {"lr": 1e-4}):
        (tmp_path / "config.json").write_text(json.dumps(content))
        assert identified(tmp_path, make.swin_new_layout(network), card_for(96))[1].columns == 1


def test_arguments_of_a_named_swin_are_refused_where_they_are_not_read(tmp_path: Path) -> None:
    name = "timm/swin_tiny_patch4_window7_224"
    state = swin_network("timm", 1, 2, img_size=64, window_size=7, **published("T")).state_dict()
    path = make.save_torch(tmp_path / "x.pth", state)
    assert identify_architecture(read_checkpoint(path), card_for(64), name).family == name
    for query in ("global_pool=max", "embed_dim=24", "img_size=64", "global_pool=max&embed_dim=24"):
        with pytest.raises(UsageError, match=f"none is read here; got .*{query.rpartition('&')[2].partition('=')[0]}"):
            identify_architecture(read_checkpoint(path), card_for(64), f"{name}?{query}")


def test_a_named_v2_is_read_at_the_size_that_it_was_fine_tuned_at(tmp_path: Path) -> None:
    name = "timm/swinv2_tiny_window8_256"
    original = swin_network("timm", 2, 2, img_size=128, window_size=8, **published("T"))
    checkpoint = read_checkpoint(make.save_torch(tmp_path / "x.pth", original.state_dict()))
    with pytest.raises(UnsupportedCheckpointError, match=rf"Say which it is: --architecture {name}\?img_size=128, if it was"):
        identify_architecture(checkpoint, card_for(128))
    with pytest.raises(UnsupportedCheckpointError, match=rf"{name} says 256 x 256 pixels.*{name}\?img_size=128") as error:
        identify_architecture(checkpoint, card_for(128), name)
    assert "holds a network for" not in str(error.value)
    architecture = identify_architecture(checkpoint, card_for(128), f"{name}?img_size=128")
    assert architecture.input_size == (128, 128) and "window 8" in architecture.description
    images = torch.randn(2, 3, 128, 128, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(answers_of(architecture.build().original, images), answers_of(original, images), atol=0, rtol=0)
    before = f"{name}?img_size=128&window_size=4&pretrained_window_sizes=[8,8,8,8]"
    assert "window 4 (before fine-tuning 8-8-8-8)" in identify_architecture(checkpoint, card_for(128), before).description
    for query in ("window_size=[8,8]", "pretrained_window_sizes=8", "img_size=large"):
        with pytest.raises(UsageError):
            identify_architecture(checkpoint, card_for(128), f"{name}?{query}")
    with pytest.raises(UsageError, match="only img_size, window_size, pretrained_window_sizes are read here; got mlp_ratio"):
        identify_architecture(checkpoint, card_for(128), f"{name}?mlp_ratio=4.0")


def test_the_other_second_version_of_timm_is_not_taken_for_microsofts(tmp_path: Path) -> None:
    import timm

    torch.manual_seed(0)
    original = timm.create_model("swinv2_cr_tiny_224", img_size=64, num_classes=2).eval()
    checkpoint = read_checkpoint(make.save_torch(tmp_path / "x.pth", original.state_dict()))
    architecture = identify_architecture(checkpoint, card_for(64), "timm/swinv2_cr_tiny_224")
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(answers_of(architecture.build().original, images), answers_of(original, images), atol=1e-6, rtol=0)
