"""A library's network with arguments of its own, as RETFound's transformers pool their tokens."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fundus_rt.benchmarks.conversion_case import ConversionCase
from fundus_rt.converters.architecture import identify_architecture
from fundus_rt.converters.checkpoint import Checkpoint, read_checkpoint
from fundus_rt.converters.pytorch.torch_loading import columns_of
from fundus_rt.models.errors import UnsupportedCheckpointError, UsageError
from tests import make_checkpoints as make

torch = pytest.importorskip("torch")
make.skip_without_timm()

CARD = ConversionCase("ViT", "", "", ("none",), lambda *_: Path(), 32, 224, columns=5).card(32)
NAME = "timm/vit_tiny_patch16_224"


@pytest.fixture(scope="module")
def pooled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small transformer that averages its tokens, as a fine-tuning script saves it."""
    import timm

    torch.manual_seed(0)
    network = timm.create_model("vit_tiny_patch16_224", img_size=32, num_classes=5, global_pool="avg")
    path = tmp_path_factory.mktemp("vit") / "checkpoint-best.pth"
    return make.save_torch(path, make.training_container(dict(network.state_dict())))


def test_arguments_make_the_network_that_was_trained(pooled: Path) -> None:
    import timm

    checkpoint = read_checkpoint(pooled)
    images = np.random.default_rng(0).normal(size=(2, 32, 32, 3)).astype(np.float32)
    found = identify_architecture(checkpoint, CARD, f"{NAME}?global_pool=avg")
    own = timm.create_model("vit_tiny_patch16_224", img_size=32, num_classes=5, global_pool="avg").eval()
    own.load_state_dict(checkpoint.state)
    with torch.inference_mode():
        expected = own(torch.from_numpy(images.transpose(0, 3, 1, 2).copy())).numpy()
    np.testing.assert_allclose(found.build().answers(images), expected, atol=1e-5)
    assert "global_pool=avg" in found.description


def test_without_them_it_is_another_network_and_refused(pooled: Path) -> None:
    with pytest.raises(UnsupportedCheckpointError, match=r"norm\.weight"):
        identify_architecture(read_checkpoint(pooled), CARD, NAME)


@pytest.mark.parametrize(
    ("query", "said"), [("?global_pool", "KEY=VALUE"), ("?no_such_argument=1", "no_such_argument"), ("?1=2", "KEY=VALUE")]
)
def test_arguments_that_are_none_are_said(pooled: Path, query: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        identify_architecture(read_checkpoint(pooled), CARD, NAME + query)


@pytest.mark.parametrize(
    "option",
    ["checkpoint_path=/any/file", "pretrained=true", "pretrained_cfg=x", "cache_dir=/tmp", "weights=DEFAULT", "num_classes=7"],
)
@pytest.mark.parametrize("library", [NAME, "torchvision/resnet18"])
def test_arguments_that_open_other_files_or_are_counted_are_refused(pooled: Path, library: str, option: str) -> None:
    key = option.partition("=")[0]
    with pytest.raises(UsageError, match=f"{key} (would have the library load other weights|is counted in the file)"):
        identify_architecture(read_checkpoint(pooled), CARD, f"{library}?{option}")
    by_card = dataclasses.replace(CARD, families=(f"{library}?{option}",))
    with pytest.raises(UsageError, match=key):
        identify_architecture(read_checkpoint(pooled), by_card)


def test_averaged_tokens_are_recognised_in_the_refusal(pooled: Path) -> None:
    with pytest.raises(UnsupportedCheckpointError, match=rf"--architecture {NAME}\?global_pool=avg"):
        identify_architecture(read_checkpoint(pooled), CARD, NAME)


def small_resnet(folder: Path, name: str, seed: int = 0) -> Path:
    """A residual network of timm whose stem has torchvision's names."""
    import timm

    torch.manual_seed(seed)
    return make.save_torch(folder / "x.pth", dict(timm.create_model(name, num_classes=5).state_dict()))


def said_by_file(path: Path, name: str) -> Checkpoint:
    return dataclasses.replace(read_checkpoint(path), stated_architecture=name)


@pytest.fixture(scope="module")
def blurred(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_resnet(tmp_path_factory.mktemp("blurred"), "resnetblur18")


def test_a_network_that_the_file_calls_by_another_name_is_not_taken_for_a_plain_one(blurred: Path) -> None:
    card = dataclasses.replace(CARD, families=("resnet-18",))
    for name in ("resnetblur18", "timm/resnetblur18.some_tag"):
        with pytest.raises(UnsupportedCheckpointError, match="say --architecture timm/resnetblur18"):
            identify_architecture(said_by_file(blurred, name), card)
    for name in ("resnet18", "resnet18.a1_in1k", "tv_resnet34", "no_library_has_this", ""):
        if name == "tv_resnet34":  # timm's older name of resnet34
            with pytest.raises(UnsupportedCheckpointError, match="timm/resnet34"):
                identify_architecture(said_by_file(blurred, name), card)
            continue
        found = identify_architecture(said_by_file(blurred, name), card)
        assert any("anti-aliasing" in warning for warning in found.warnings)


def test_the_name_in_the_file_is_held_against_the_one_that_is_given(blurred: Path) -> None:
    checkpoint = said_by_file(blurred, "resnetblur18")
    assert identify_architecture(checkpoint, CARD, "timm/resnetblur18").family == "timm/resnetblur18"
    for named in ("timm/resnet18", "timm/resnet18.a1_in1k", "torchvision/resnet18"):
        with pytest.raises(UnsupportedCheckpointError, match=r"calls the network resnetblur18, but .* was asked for"):
            identify_architecture(checkpoint, CARD, named)
    assert identify_architecture(said_by_file(blurred, "resnet18"), CARD, "timm/resnet18.a1_in1k").columns == 5


def test_the_name_beside_a_file_is_proposed_first(tmp_path: Path) -> None:
    import timm

    path = make.save_torch(tmp_path / "x.pth", dict(timm.create_model("regnetx_002", num_classes=5).state_dict()))
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "regnetx_002", "num_classes": 5}))
    with pytest.raises(UnsupportedCheckpointError, match=r"config\.json .* calls regnetx_002: .*--architecture timm/regnetx_002"):
        identify_architecture(read_checkpoint(path), dataclasses.replace(CARD, families=("resnet-18",)))
    with pytest.raises(UnsupportedCheckpointError, match="--architecture timm/efficientnet_b0"):
        identify_architecture(said_by_file(path, "efficientnet_b0"), dataclasses.replace(CARD, families=("resnet-18",)))


@pytest.mark.parametrize("named", [None, "timm/resnet18"])
def test_a_configuration_of_images_that_the_card_does_not_follow_is_warned_of(tmp_path: Path, named: str | None) -> None:
    path, card = small_resnet(tmp_path, "resnet18"), dataclasses.replace(CARD, families=("resnet-18",))
    own = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225], "resample": 2}
    beside = tmp_path / "preprocessor_config.json"
    beside.write_text(json.dumps(own))
    before = identify_architecture(read_checkpoint(path), card, named).warnings
    assert not any("preprocessor_config" in warning for warning in before)
    beside.write_text(json.dumps({"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "resample": 3}))
    config = {"architecture": "resnet18", "pretrained_cfg": {"mean": [0.5] * 3, "std": [0.25] * 3, "interpolation": "bilinear"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    after = " ".join(identify_architecture(read_checkpoint(path), card, named).warnings)
    assert "preprocessor_config.json beside the checkpoint says mean [0.5, 0.5, 0.5] and std [0.5, 0.5, 0.5]" in after
    assert "Pillow's bicubic filter" in after and "Pillow's bilinear" not in after
    assert "config.json beside the checkpoint says mean [0.5, 0.5, 0.5] and std [0.25, 0.25, 0.25]" in after
    beside.write_text("{")
    assert any("cannot be read" in warning for warning in identify_architecture(read_checkpoint(path), card, named).warnings)


def test_labels_in_another_order_than_the_cards_are_refused(tmp_path: Path) -> None:
    path, card = small_resnet(tmp_path, "resnet18"), dataclasses.replace(CARD, families=("resnet-18",))
    labels = list(card.outputs[0].labels)
    beside = tmp_path / "config.json"
    for content in ({"label_names": labels[::-1]}, {"id2label": {str(i): label for i, label in enumerate(labels[::-1])}}):
        beside.write_text(json.dumps(content))
        with pytest.raises(UnsupportedCheckpointError, match=f"Give --labels '{','.join(labels[::-1])}'"):
            identify_architecture(read_checkpoint(path), card)
    for content in ({"label_names": labels}, {"label_names": ["a", "b", "c", "d", "e"]}):
        beside.write_text(json.dumps(content))
        assert identify_architecture(read_checkpoint(path), card).columns == 5


class Squeezed(torch.nn.Module):  # type: ignore[misc, name-defined]
    """Takes off every dimension of length 1 after its pooling, that of the pictures too."""

    def __init__(self, number: bool) -> None:
        super().__init__()
        self.conv, self.head, self.number = torch.nn.Conv2d(3, 4, 3, 2), torch.nn.Linear(4, 5), number

    def forward(self, images: Any) -> Any:
        pooled = torch.nn.functional.adaptive_avg_pool2d(self.conv(images), 1)
        return self.head(pooled.squeeze(3).squeeze(2) if self.number else pooled.squeeze())


def test_a_network_that_takes_the_pictures_dimension_off_is_refused(tmp_path: Path) -> None:
    checkpoint = Checkpoint(tmp_path / "x.pth", "0", "torch-zip", "pytorch", {})
    assert columns_of(checkpoint, Squeezed(True), (32, 32), "it") == 5
    with pytest.raises(UnsupportedCheckpointError, match=r"pictures \[1, 3, 32, 32\] with a tensor \[5\].*\.squeeze\(\)"):
        columns_of(checkpoint, Squeezed(False), (32, 32), "it")
