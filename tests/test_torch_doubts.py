"""What no tensor shows and no single picture proves: batches that mix, decisions that tracing freezes, options of a training."""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fundus_rt.benchmarks.conversion_case import ConversionCase
from fundus_rt.converters.architecture import identify_architecture
from fundus_rt.converters.backends import require_torchvision
from fundus_rt.converters.checkpoint import read_checkpoint
from fundus_rt.converters.network_options import unusual_options
from fundus_rt.converters.parity import reference_tensor
from fundus_rt.models.card import ModelCard
from fundus_rt.models.errors import UnsupportedCheckpointError
from tests import make_checkpoints as make
from tests.test_onnx_from_checkpoint import convert

torch = pytest.importorskip("torch")
make.skip_without_timm()
SIZE = 32


def card_for(columns: int, size: int = SIZE) -> ModelCard:
    return ConversionCase("x", "x", "x", ("none",), lambda *_: Path(), size, size, columns).card(size)


class Small(torch.nn.Module):  # type: ignore[misc]
    """A convolution, the mean over the picture and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.kernel, self.head = torch.nn.Conv2d(3, 8, 3, stride=2), torch.nn.Linear(8, 3)

    def features(self, images: Any) -> Any:
        return self.kernel(images).relu().mean(dim=(2, 3))

    def forward(self, images: Any) -> Any:
        return 3 * self.head(self.features(images))


class Mixing(Small):
    """Takes the mean over the batch off, in evaluation too."""

    def features(self, images: Any) -> Any:
        found = super().features(images)
        return found - 0.5 * found.mean(dim=0, keepdim=True)


class Deciding(Small):
    """Answers the other way round for bright pictures."""

    def forward(self, images: Any) -> Any:
        if images.mean() > 2:
            return -super().forward(images)
        return super().forward(images)


class Scaling(Small):
    """Divides by 255 itself."""

    def forward(self, images: Any) -> Any:
        return super().forward((images - 100.0) / 58.0)


class Failing(Small):
    """Has an operator that ONNX does not have."""

    def forward(self, images: Any) -> Any:
        return torch.special.i0(super().forward(images))


def saved(path: Path, kind: type[Any]) -> Path:
    torch.manual_seed(2)
    return make.save_torch(path, kind().state_dict())


def test_a_network_that_mixes_pictures_is_refused_whatever_the_photographs(tmp_path: Path) -> None:
    path = saved(tmp_path / "x.pth", Mixing)
    with pytest.raises(UnsupportedCheckpointError, match="differently when another one is beside it"):
        convert(path, card_for(3), tmp_path / "x.onnx", architecture=f"{__name__}:Mixing", tensors=make.photographs(SIZE, 1))


def test_decisions_and_scaling_in_own_code_are_warned_of(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    warned = {}
    for kind in (Small, Deciding, Scaling):
        path = saved(tmp_path / f"{kind.__name__}.pth", kind)
        report = convert(path, card_for(3), path.with_suffix(".onnx"), architecture=f"{__name__}:{kind.__name__}")
        warned[kind] = " ".join(report.warnings)
    assert "decides by numbers" not in warned[Small] and "normalised twice" not in warned[Small]
    assert "decides by numbers of its tensors (test_torch_doubts.py, line " in warned[Deciding]
    assert "normalised twice" in warned[Scaling] and "decides by numbers" not in warned[Scaling]
    with pytest.raises(UnsupportedCheckpointError, match="cannot be exported"):
        convert(saved(tmp_path / "f.pth", Failing), card_for(3), tmp_path / "f.onnx", architecture=f"{__name__}:Failing")
    assert "graph" not in capfd.readouterr().out


def test_options_of_the_training_that_change_the_answer_are_not_passed_over(tmp_path: Path) -> None:
    torchvision = require_torchvision()
    torch.manual_seed(0)
    state = torchvision.models.resnet18(num_classes=3).state_dict()
    card = dataclasses.replace(card_for(3), families=("resnet-18",))
    options = {"mean": [0.25] * 3, "std": [0.5] * 3, "img_size": 512, "interpolation": "lanczos"}

    def warnings_with(named: str | None = None, **args: Any) -> str:
        path = make.save_torch(tmp_path / "x.pth", {"state_dict": state, "args": argparse.Namespace(**args)})
        return " ".join(identify_architecture(read_checkpoint(path), card, named).warnings)

    assert "itself" not in warnings_with(gp=None, lr=0.1, img_size=SIZE) + warnings_with(gp="avg", bn_eps=1e-5)
    told = warnings_with(**options)
    assert all(said in told for said in ("mean [0.25, 0.25, 0.25]", "pictures of 512 pixels", "lanczos filter"))
    for named in (None, "timm/resnet18", "torchvision/resnet18"):
        with pytest.raises(UnsupportedCheckpointError, match=r"trained with gp = 'max', bn_eps = 0\.01, .*--architecture"):
            warnings_with(named, gp="max", bn_eps=1e-2)
    assert "trained with gp = 'max'" in warnings_with("timm/resnet18?global_pool=max", gp="max")


def test_options_that_the_network_has_by_itself_are_no_doubt(tmp_path: Path) -> None:
    torchvision = require_torchvision()
    state = torchvision.models.resnet18(num_classes=3).state_dict()
    card = dataclasses.replace(card_for(3), families=("resnet-18",))

    def warnings_with(beside: dict[str, Any], **args: Any) -> str:
        (tmp_path / "config.json").write_text(json.dumps(beside))
        path = make.save_torch(tmp_path / "x.pth", {"state_dict": state, "args": argparse.Namespace(**args)})
        return " ".join(identify_architecture(read_checkpoint(path), card).warnings)

    usual = {"output_stride": 32, "norm_layer": "bn", "act_layer": "ReLU", "img_size": 32.0}
    beside = {"global_pool": "avg", "model_args": {"act_layer": "nn.ReLU", "num_classes": 3}}
    assert "says" not in warnings_with(beside, **usual)
    assert "pictures of 224 pixels" in warnings_with({}, img_size=224.0)
    assert "pictures of 224 x 240 pixels" in warnings_with({}, input_size=(224.0, 240))
    with pytest.raises(UnsupportedCheckpointError, match=r"config\.json beside .* act_layer = 'silu'.*timm/NAME\?act_layer=silu"):
        warnings_with({"model_args": {"act_layer": "silu"}})
    with pytest.raises(UnsupportedCheckpointError, match=r"timm/resnet18\?global_pool=max&bn_eps=0\.01'"):
        warnings_with({"global_pool": "avg"}, gp="max", bn_eps=0.01, model="resnet18")
    with pytest.raises(UnsupportedCheckpointError, match=r"global_pool = 'max'.*'timm/resnet18\?global_pool=max'"):
        warnings_with({"global_pool": "max", "architecture": "resnet18"})


def test_the_own_options_of_networks_are_those_of_timm() -> None:
    """Against the networks themselves, as timm makes them."""
    import timm

    for name, own, other in (
        ("vit_tiny_patch16_224", {"act_layer": "gelu", "norm_eps": 1e-6}, {"norm_eps": 1e-5}),
        ("resnet18", {"act_layer": "relu", "bn_eps": 1e-5}, {"act_layer": "gelu"}),
    ):
        network = timm.create_model(name)
        parts = list(network.modules())
        kind = torch.nn.GELU if own["act_layer"] == "gelu" else torch.nn.ReLU
        assert any(isinstance(part, kind) for part in parts)
        eps = {part.eps for part in parts if isinstance(part, (torch.nn.LayerNorm, torch.nn.BatchNorm2d))}
        assert eps == {own.get("norm_eps", own.get("bn_eps"))}
        assert unusual_options(own, f"timm/{name}") == {}
        assert unusual_options(other, f"timm/{name}") == other


def test_buffers_that_a_network_computes_itself_may_be_in_the_file(tmp_path: Path) -> None:
    """Older timm saved BEiT's table of positions; one that differs is refused."""
    import timm

    torch.manual_seed(0)
    options = {"depth": 2, "embed_dim": 48, "num_heads": 2}
    network = timm.create_model("beit_base_patch16_224", num_classes=3, img_size=SIZE, **options)
    index = "blocks.0.attn.relative_position_index"
    buffers = dict(network.named_buffers())
    assert index in buffers and index not in network.state_dict()
    named = "timm/beit_base_patch16_224?" + "&".join(f"{key}={value}" for key, value in options.items())
    path = make.save_torch(tmp_path / "x.pth", dict(network.state_dict()) | {index: buffers[index].clone()})
    account = identify_architecture(read_checkpoint(path), card_for(3), named).account
    assert account.unused == {index: "numbers that the network computes by itself, the same"}
    path = make.save_torch(tmp_path / "x.pth", dict(network.state_dict()) | {index: buffers[index].flip(0)})
    with pytest.raises(UnsupportedCheckpointError, match=f"left over: {index}"):
        identify_architecture(read_checkpoint(path), card_for(3), named)


@pytest.mark.full
def test_a_densenet_of_2017_has_its_own_names(tmp_path: Path) -> None:
    """Against torchvision, whose own loader renames ``denselayer1.norm.1`` to ``denselayer1.norm1``."""
    torchvision = require_torchvision()
    torch.manual_seed(0)
    network = torchvision.models.densenet121(num_classes=3).eval()
    older = {}
    for name, tensor in network.state_dict().items():
        for part in ("norm", "conv"):
            for number in "12":
                name = name.replace(f".{part}{number}.", f".{part}.{number}.") if "denselayer" in name else name
        older[name] = tensor
    assert sum(name not in network.state_dict() for name in older) > 500
    path = make.save_torch(tmp_path / "x.pth", older)
    found = identify_architecture(read_checkpoint(path), card_for(3, 64), "torchvision/densenet121")
    images = reference_tensor(make.photographs(64, 2), card_for(3, 64).preprocessing)
    with torch.inference_mode():
        expected = network(torch.from_numpy(images.transpose(0, 3, 1, 2).copy())).numpy()
    np.testing.assert_allclose(found.build().answers(images), expected, atol=1e-5)


def test_one_network_twice_is_called_so(tmp_path: Path) -> None:
    """As Lightning saves it beside an average of its own: neither of them is the file's network."""
    torchvision = require_torchvision()
    state = torchvision.models.resnet18(num_classes=3).state_dict()
    twice = {f"model.{name}": tensor for name, tensor in state.items()}
    twice |= {f"ema_model.module.{name}": tensor + 1 for name, tensor in state.items()}
    path = make.save_torch(tmp_path / "x.ckpt", {"state_dict": twice})
    with pytest.raises(UnsupportedCheckpointError, match="one network twice, under 'model' and 'ema_model'"):
        identify_architecture(read_checkpoint(path), dataclasses.replace(card_for(3), families=("resnet-18",)))
    path = make.save_torch(tmp_path / "x.ckpt", {name: tensor for name, tensor in twice.items() if name != "model.fc.weight"})
    with pytest.raises(UnsupportedCheckpointError, match="nearest, heads left out"):
        identify_architecture(read_checkpoint(path), dataclasses.replace(card_for(3), families=("resnet-18",)))
