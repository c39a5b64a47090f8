"""Swin Transformers: hyperparameters from the tensors, both layouts, and every way in which a file can be another one."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fundus_rt.converters.architecture import Architecture, identify_architecture
from fundus_rt.converters.checkpoint import Checkpoint, read_checkpoint
from fundus_rt.converters.pytorch.swin import identify_swin, looks_like_swin
from fundus_rt.models import ModelCard, load_card
from fundus_rt.models.errors import UnsupportedCheckpointError
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
