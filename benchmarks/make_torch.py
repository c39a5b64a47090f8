"""Checkpoints of torch networks other than Swin, with random weights, in the forms in which training scripts save them."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fundus_rt.benchmarks.conversion_case import IMAGENET, ConversionCase
from fundus_rt.benchmarks.lively import pictures, telling_head

RESIDUAL = ("resnet18", "resnet34", "resnet50")
LAST_IN_BRANCH = {"resnet18": "bn2", "resnet34": "bn2", "resnet50": "bn3"}
HALVES = (1 / 255, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
"""Scale, mean and deviation of timm's Vision Transformers and of its Inception-v3."""

Saver = Callable[[Path, Any, dict[str, Any]], Path]
"""Writes a network and its state_dict under a folder in one container."""


def resnet(name: str, outputs: int, image_fundus_head: bool = False) -> Any:
    """torchvision's ResNet, with one linear layer or with the head of Image+Fundus (arXiv 2408.08790)."""
    import torch

    from fundus_rt.converters.backends import require_torchvision

    network = getattr(require_torchvision().models, name)(weights=None, num_classes=outputs)
    if image_fundus_head:
        inputs, nn = network.fc.in_features, torch.nn
        network.fc = nn.Sequential(nn.Linear(inputs, 512), nn.BatchNorm1d(512), nn.ReLU(), nn.Linear(512, outputs))
    return network


def library_network(named: str, size: int, outputs: int) -> Any:
    """A network of timm or torchvision with random weights; ``timm/NAME`` or ``torchvision/NAME``."""
    from fundus_rt.converters.backends import require_timm, require_torchvision

    library, _, name = named.partition("/")
    if library == "torchvision":
        options = {"init_weights": False} if name == "inception_v3" else {}
        return require_torchvision().models.get_model(name, weights=None, num_classes=outputs, **options)
    sized = {"img_size": size} if name.startswith("vit") else {}
    return require_timm().create_model(name, pretrained=False, num_classes=outputs, **sized)


def own_network(outputs: int = 5) -> Any:
    """A small network as a researcher writes it: convolutions, and a head whose activations no tensor shows."""
    import torch

    nn = torch.nn

    class Own(nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.conv1, self.bn1 = nn.Conv2d(3, 16, 5, 2, 2), nn.BatchNorm2d(16)
            self.conv2, self.bn2 = nn.Conv2d(16, 32, 3, 2, 1, bias=False), nn.BatchNorm2d(32)
            self.head = nn.Sequential(nn.Linear(64, 24), nn.Tanh(), nn.Dropout(0.3), nn.Linear(24, outputs))

        def forward(self, images: Any) -> Any:
            found = torch.relu(self.bn1(self.conv1(images)))
            found = torch.relu(self.bn2(self.conv2(found)))
            return self.head(torch.cat([found.mean(dim=(2, 3)), found.amax(dim=(2, 3))], dim=1))

    return Own()


def images_of(size: int, count: int = 12, seed: int = 1) -> Any:
    """Tensors float32 [count, 3, size, size], normalised as `IMAGENET` says, of pictures made without files."""
    import torch

    scale, mean, std = IMAGENET
    levels = pictures(size, count, seed) * scale
    return torch.from_numpy(((levels - mean) / std).astype("float32").transpose(0, 3, 1, 2).copy())


def enliven(network: Any, size: int, seed: int = 0) -> Any:
    """Give a network weights with which its answers differ from picture to picture, and not by chaos.

    Every BatchNorm gets the statistics that it meets under the layers before it, moved a little; the last one of a residual
    branch a small factor, without which a deep random network makes differences of 1e-7 as large as its answers. The last
    linear layer looks along the directions in which the pictures' features differ most, and gives logits of deviation 1.

    Returns:
        The network in evaluation mode.
    """
    import torch

    random = torch.Generator().manual_seed(seed)
    nn = torch.nn
    norms = [part for part in network.modules() if isinstance(part, (nn.BatchNorm1d, nn.BatchNorm2d))]
    with torch.no_grad():
        for name, weight in network.named_parameters():
            if name.rpartition(".")[2] in ("gamma", "layer_scale"):
                weight.fill_(0.2)
            elif weight.ndim == 1 and name.endswith("bias"):
                weight.normal_(0, 0.1, generator=random)
            elif weight.ndim == 1:
                weight.uniform_(0.7, 1.3, generator=random)
        for name, part in network.named_modules():
            if name.rpartition(".")[2] == "bn3" or (name.endswith("bn2") and type(network).__name__ == "ResNet"):
                part.weight *= 0.2
        momenta = [part.momentum for part in norms]
        for part in norms:
            part.momentum = 1.0
        network.eval()
        for part in norms:
            part.train()
        shown = images_of(size)
        network(shown)
        for part, momentum in zip(norms, momenta, strict=True):
            part.momentum = momentum
            part.running_var.clamp_(min=float(part.running_var.mean()) * 0.2)
            part.running_var *= 0.8 + 0.4 * torch.rand(part.running_var.shape, generator=random)
        network.eval()
        _set_last_layer(torch, network, shown)
    return network


def _set_last_layer(torch: Any, network: Any, shown: Any) -> None:
    last = [part for name, part in network.named_modules() if isinstance(part, torch.nn.Linear) and "AuxLogits" not in name][-1]
    met: list[Any] = []
    hook = last.register_forward_pre_hook(lambda part, inputs: met.append(inputs[0].detach().reshape(len(shown), -1)))
    network(shown)
    hook.remove()
    kernel, bias = telling_head(met[0].numpy(), last.out_features)
    last.weight.copy_(torch.from_numpy(kernel.T.copy()))
    if last.bias is not None:
        last.bias.copy_(torch.from_numpy(bias))


def optimizer_state() -> dict[str, Any]:
    """What an optimizer leaves in a checkpoint."""
    import torch

    return {"state": {0: {"step": 5, "exp_avg": torch.zeros(3)}}, "param_groups": [{"lr": 1e-4, "params": [0]}]}


def bare(folder: Path, network: Any, state: dict[str, Any]) -> Path:
    """`torch.save(model.state_dict())` of today."""
    return _save(folder / "bare.pth", state)


def training(folder: Path, network: Any, state: dict[str, Any]) -> Path:
    """A data-parallel training's dictionary, with optimizer and `argparse.Namespace`."""
    content = {"model": _prefixed(state, "module."), "optimizer": optimizer_state(), "epoch": 7}
    return _save(folder / "training.pth", content | {"args": argparse.Namespace(lr=1e-4, data="fundus")})


def legacy(folder: Path, network: Any, state: dict[str, Any]) -> Path:
    """``{'state_dict', 'best_loss'}`` in the format before torch 1.6, compiled names, ``.tar``."""
    return _save(folder / "legacy.tar", {"state_dict": _prefixed(state, "module._orig_mod."), "best_loss": 0.31}, legacy=True)


def whole_module(folder: Path, network: Any, state: dict[str, Any]) -> Path:
    """`torch.save(model)` of a data-parallel module, as Image+Fundus was published."""
    import torch

    return _save(folder / "module.pth", torch.nn.DataParallel(network))


def safetensors(folder: Path, network: Any, state: dict[str, Any]) -> Path:
    """``.safetensors`` as the Hugging Face hub keeps timm's networks."""
    from safetensors.torch import save_file

    path = folder / "model.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, str(path), {"format": "pt"})
    return path


def lightning(folder: Path, network: Any, state: dict[str, Any]) -> Path:
    """A checkpoint of PyTorch Lightning; the loss with its class weights is a part of the module."""
    import torch

    content = {
        "epoch": 3,
        "global_step": 120,
        "pytorch-lightning_version": "2.1.0",
        "state_dict": _prefixed(state, "model.") | {"criterion.weight": torch.ones(5)},
        "loops": {},
        "callbacks": {"ModelCheckpoint": {"best_model_score": torch.tensor(0.8), "best_model_path": "x.ckpt"}},
        "optimizer_states": [optimizer_state()],
        "lr_schedulers": [],
        "hyper_parameters": {"model_name": "resnet18", "lr": 1e-3},
    }
    return _save(folder / "lightning.ckpt", content)


def mmpretrain(folder: Path, network: Any, state: dict[str, Any]) -> Path:
    """OpenMMLab's classifier: ``backbone.`` and ``head.fc.``, classes in ``meta``."""
    renamed = {f"head.{k}" if k.startswith("fc.") else f"backbone.{k}": v for k, v in state.items()}
    return _save(folder / "mm.pth", {"meta": {"CLASSES": ("a", "b", "c", "d", "e"), "epoch": 9}, "state_dict": renamed})


def checkpoint_saver(folder: Path, network: Any, state: dict[str, Any]) -> Path:
    """timm's `CheckpointSaver`: averaged weights beside those of the last step."""
    last = {name: tensor + 1 if tensor.is_floating_point() else tensor for name, tensor in state.items()}
    content = {"epoch": 2, "arch": "a_timm_name", "state_dict": last, "optimizer": optimizer_state(), "version": 2}
    content |= {"args": argparse.Namespace(model="a_timm_name"), "state_dict_ema": state, "metric": 0.81}
    return _save(folder / "saver.pth.tar", content)


def _save(path: Path, content: Any, legacy: bool = False) -> Path:
    import torch

    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    return path


def _prefixed(state: dict[str, Any], prefix: str) -> dict[str, Any]:
    return {prefix + name: tensor for name, tensor in state.items()}


def _maker(network: Callable[[int, int], Any], save: Saver) -> Callable[[Path, int, int], Path]:
    def make(folder: Path, size: int, outputs: int) -> Path:
        import torch

        torch.manual_seed(0)
        made = enliven(network(size, outputs), size)
        return save(folder, made, {name: tensor.clone() for name, tensor in made.state_dict().items()})

    return make


def _resnet_case(name: str, container: str, save: Saver, head: bool = False, **changes: Any) -> ConversionCase:
    make = _maker(lambda size, outputs: resnet(name, outputs, head), save)
    title = f"ResNet-{name[6:]}" + (" Image+Fundus" if head else "")
    return ConversionCase(title, container, "torchvision", (f"resnet-{name[6:]}",), make, 64, 512, **changes)


def _named_case(title: str, named: str, container: str, save: Saver, size: int = 64, **changes: Any) -> ConversionCase:
    make = _maker(lambda pixels, outputs: library_network(named, pixels, outputs), save)
    return ConversionCase(title, container, named.partition("/")[0], (named,), make, size, 224, **changes)


CASES: tuple[ConversionCase, ...] = (
    _resnet_case("resnet50", "bare, zip", bare, columns=2),
    _resnet_case("resnet50", "model + optimizer + args, module.", training, head=True, columns=7),
    _resnet_case("resnet50", "whole DataParallel module", whole_module, head=True, columns=2, trust=True),
    _resnet_case("resnet18", "state_dict, legacy, module._orig_mod.", legacy, head=True, columns=1),
    _resnet_case("resnet18", "Lightning, model. + criterion.", lightning),
    _resnet_case("resnet18", "OpenMMLab, backbone. + head.", mmpretrain),
    _named_case("ResNet-34", "timm/resnet34", "bare, zip", bare),
    _named_case("MobileNetV3-small", "timm/mobilenetv3_small_100", "safetensors", safetensors),
    _named_case("ConvNeXt-atto", "timm/convnext_atto", "timm CheckpointSaver with EMA", checkpoint_saver),
    _named_case("ViT-tiny", "timm/vit_tiny_patch16_224", "bare, zip", bare, normalisation=HALVES),
    _named_case("DenseNet-121", "timm/densenet121", "bare, zip", bare),
    _named_case("EfficientNet-B0", "timm/efficientnet_b0", "safetensors", safetensors),
    _named_case("EfficientNet-B0 of TensorFlow", "timm/tf_efficientnet_b0", "safetensors", safetensors),
    _named_case("Inception-v3", "torchvision/inception_v3", "bare, with AuxLogits", bare, 96, normalisation=HALVES),
    _named_case("MobileNetV2", "torchvision/mobilenet_v2", "model + optimizer + args, module.", training),
    ConversionCase(
        "own network",
        "model + optimizer + args, module.",
        "own",
        ("own-network",),
        _maker(lambda size, outputs: own_network(outputs), training),
        64,
        224,
        named="fundus_rt.benchmarks.make_torch:own_network",
    ),
)
"""Architectures, containers and prefixes of the field, each at least once."""
