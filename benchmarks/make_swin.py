"""Swin Transformers with random, lively weights, in the files in which timm, torchvision, transformers and Microsoft save them.

Each network is built by its own library. At a case's small size it is narrow and shallow, with grids and windows in the
proportions of the published network; from its full size on it has the published width and depth.
"""

from __future__ import annotations

import argparse
import json
import re
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from fundus_rt.benchmarks.conversion_case import ConversionCase
from fundus_rt.benchmarks.lively import telling_head
from fundus_rt.benchmarks.make_torch import images_of
from fundus_rt.converters.backends import require, require_timm, require_torchvision

SMALL = {"embed_dim": 32, "depths": (2, 2, 2, 2), "num_heads": (1, 2, 4, 8)}
WIDTHS = {"T": (96, 6, 3), "S": (96, 18, 3), "B": (128, 18, 4), "L": (192, 18, 6)}
"""Embedding width, depth of the third stage and heads of the first, as published (table 7 of arXiv 2103.14030)."""


def published(letter: str) -> dict[str, Any]:
    """Width, depths and heads of a published variant."""
    width, third, heads = WIDTHS[letter]
    return {"embed_dim": width, "depths": (2, 2, third, 2), "num_heads": tuple(heads * 2**stage for stage in range(4))}


def swin_network(library: str, version: int, outputs: int = 1, seed: int = 0, **changes: Any) -> Any:
    """A library's Swin Transformer with random weights, in evaluation mode.

    Args:
        library: ``timm``, ``torchvision`` or ``transformers``.
        version: 1 or 2.
        outputs: columns.
        seed: of the weights.
        changes: timm's arguments that differ from a small network at 96 pixels with windows of 3.
    """
    torch = require("torch")
    torch.manual_seed(seed)
    arguments = {"img_size": 96, "window_size": 3, **SMALL, **changes}
    network = {"timm": _in_timm, "torchvision": _in_torchvision, "transformers": _in_transformers}[library](
        version, outputs, arguments
    )
    with torch.no_grad():
        for name, weight in network.named_parameters():
            _draw(name, weight)
    return network.eval()


def _draw(name: str, weight: Any) -> None:
    if name.endswith("logit_scale"):
        weight.normal_(2.3, 0.3)
    elif weight.ndim == 1 and name.endswith("weight"):  # of a LayerNorm
        weight.normal_(1.0, 0.2)
    elif weight.ndim == 1:
        weight.normal_(0.0, 0.2 if "norm" in name else 0.1)
    elif name.endswith("relative_position_bias_table"):
        weight.normal_(0.0, 0.5)
    else:
        weight.normal_(0.0, 1.2 / np.sqrt(weight[0].numel()))


def _in_timm(version: int, outputs: int, arguments: dict[str, Any]) -> Any:
    if version == 1:
        return require_timm("timm.models.swin_transformer").SwinTransformer(num_classes=outputs, **arguments)
    return require_timm("timm.models.swin_transformer_v2").SwinTransformerV2(num_classes=outputs, **arguments)


def _in_torchvision(version: int, outputs: int, arguments: dict[str, Any]) -> Any:
    require_torchvision()
    module = require("torchvision.models.swin_transformer")
    kinds = {"block": module.SwinTransformerBlockV2, "downsample_layer": module.PatchMergingV2} if version == 2 else {}
    rest = {key: value for key, value in arguments.items() if key not in ("img_size", "window_size", "pretrained_window_sizes")}
    return module.SwinTransformer([4, 4], window_size=[arguments["window_size"]] * 2, num_classes=outputs, **rest, **kinds)


def _in_transformers(version: int, outputs: int, arguments: dict[str, Any]) -> Any:
    require_torchvision()
    library = require("transformers.models.swin" if version == 1 else "transformers.models.swinv2")
    rest = {key: list(value) if isinstance(value, tuple) else value for key, value in arguments.items() if key != "img_size"}
    size = arguments["img_size"]
    size = list(size) if isinstance(size, tuple) else size
    if version == 1:
        return library.SwinForImageClassification(library.SwinConfig(image_size=size, num_labels=outputs, **rest))
    return library.Swinv2ForImageClassification(library.Swinv2Config(image_size=size, num_labels=outputs, **rest))


def answers_of(network: Any, images: Any) -> Any:
    """Answers [N, columns] of a network of any of the libraries: float32 [N, 3, H, W] in."""
    torch = require("torch")
    with torch.inference_mode():
        answers = network(images)
    return getattr(answers, "logits", answers)


def enliven_head(network: Any, size: int, seed: int = 0) -> None:
    """Set the head so that its answers to pictures drawn here have mean 0 and deviation 1; one column: 55 and 10, like years.

    Rows of the head are the directions in which the pictures' features differ most; along others, answers of a random
    network are small differences of large numbers.
    """
    torch = require("torch")
    head = next(layer for layer in reversed(list(network.modules())) if isinstance(layer, torch.nn.Linear))
    features: list[Any] = []
    hook = head.register_forward_hook(lambda module, inputs, output: features.append(inputs[0].detach()))
    for image in images_of(size, head.out_features + 3, seed):
        answers_of(network, image[None])
    hook.remove()
    mean, deviation = (55.0, 10.0) if head.out_features == 1 else (0.0, 1.0)
    weight, bias = telling_head(torch.cat(features).numpy(), head.out_features, mean, deviation)
    with torch.no_grad():
        head.weight.copy_(torch.from_numpy(weight.T.copy()))
        head.bias.copy_(torch.from_numpy(bias))


def tensors_of(layout: str, network: Any) -> dict[str, Any]:
    """A network's tensors as a file of a layout has them.

    Args:
        layout: ``Microsoft`` (timm up to 0.6.13 too; of a network of timm), ``timm``, ``torchvision``, ``transformers 4``,
            whose names published files have, or ``transformers 5``, whose own names v1 has since.
        network: of `swin_network`.
    """
    state = {name: tensor.detach().clone() for name, tensor in network.state_dict().items()}
    if layout == "Microsoft":
        state = {_in_microsoft(name): tensor for name, tensor in state.items()}
        kept = ("relative_position_index", "relative_coords_table", "attn_mask")
        state |= {name: buffer.clone() for name, buffer in network.named_buffers() if name.endswith(kept)}
    if layout == "transformers 4":
        state = {_in_transformers_4(name): tensor for name, tensor in state.items()}
    return state


def _in_microsoft(name: str) -> str:
    moved = re.match(r"layers\.(\d+)\.(downsample\..*)", name)
    return f"layers.{int(moved[1]) - 1}.{moved[2]}" if moved else name.replace("head.fc.", "head.")


def _in_transformers_4(name: str) -> str:
    pairs = {
        "attention.q_proj.": "attention.self.query.",
        "attention.k_proj.": "attention.self.key.",
        "attention.v_proj.": "attention.self.value.",
        "attention.o_proj.": "attention.output.dense.",
        "attention.relative_position_bias.": "attention.self.",
        "mlp.fc1.": "intermediate.dense.",
        "mlp.fc2.": "output.dense.",
    }
    for new, old in pairs.items():
        name = name.replace(new, old)
    return name


@dataclass(frozen=True)
class _Swin:
    """A published network and the file it is written to."""

    letter: str
    version: int
    layout: str
    container: str
    window: int
    """At full size."""
    full_size: int
    pretrained: tuple[int, ...] = ()
    timm_name: str = ""
    """For the ``config.json`` of timm's hub, where the tensors do not tell the windows."""

    @property
    def uneven(self) -> bool:
        """Whether windows do not divide a grid, at full size and, with windows of 3 at 128 pixels, at the small one."""
        grids = [self.full_size // 4 // 2**stage for stage in range(4)]
        return any(grid % min(grid, self.window) for grid in grids)


def make_swin(kind: _Swin, folder: Path, size: int, columns: int) -> Path:
    """Write the checkpoint of a case, and ``config.json`` beside it where its library does; see `ConversionCase.make`."""
    full = size >= kind.full_size
    changes: dict[str, Any] = {"img_size": size, **(published(kind.letter) if full else SMALL)}
    changes["window_size"] = kind.window if full else 3
    if kind.pretrained:
        changes["pretrained_window_sizes"] = kind.pretrained if full else (2, 2, 2, 2)
    library = {"Microsoft": "timm", "transformers 4": "transformers", "transformers 5": "transformers"}.get(
        kind.layout, kind.layout
    )
    network = swin_network(library, kind.version, columns, **changes)
    enliven_head(network, size)
    target = folder / f"{kind.letter}{kind.version}-{kind.layout}-{kind.container}".replace(" ", "-").replace(",", "").lower()
    target.mkdir(parents=True, exist_ok=True)
    if library == "transformers":
        network.config.to_json_file(target / "config.json", use_diff=False)
    if kind.timm_name:
        arguments = {key: list(value) if isinstance(value, tuple) else value for key, value in changes.items()}
        (target / "config.json").write_text(json.dumps({"architecture": kind.timm_name, "model_args": arguments}))
    return save_in(kind.container, tensors_of(kind.layout, network), target)


def save_in(container: str, state: dict[str, Any], folder: Path) -> Path:
    """Write tensors in one of the containers that `CASES` names; returns the file's path."""
    torch = require("torch")
    if container == "safetensors":
        path = folder / "model.safetensors"
        require("safetensors.torch").save_file({name: tensor.contiguous() for name, tensor in state.items()}, str(path))
        return path
    path, legacy = folder / "checkpoint.pth", container.endswith("legacy")
    content: Any = state
    if container == "half precision":
        content = {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in state.items()}
    elif container.startswith("model + optimizer"):
        moments = {"state": {0: {"exp_avg": torch.zeros(3)}}, "param_groups": [{"lr": 1e-4}]}
        content = {"model": state, "optimizer": moments, "epoch": 12, "args": argparse.Namespace(lr=1e-4, data="fundus")}
    elif container == "state_dict_ema":
        averaged = {f"module.{name}": tensor for name, tensor in state.items()}
        content = {"epoch": 3, "state_dict": {name: tensor * 0 for name, tensor in averaged.items()}, "state_dict_ema": averaged}
    elif container == "model_state_dict, net.":
        content = {"model_state_dict": {f"net.{name}": tensor for name, tensor in state.items()}, "loss": 0.1}
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    return path


_FINE_TUNED = (12, 12, 12, 6)
KINDS = (
    _Swin("T", 1, "Microsoft", "model + optimizer + Namespace", 7, 224),
    _Swin("S", 1, "Microsoft", "bare, legacy", 7, 224),
    _Swin("B", 1, "Microsoft", "model_state_dict, net.", 12, 384),
    _Swin("L", 1, "Microsoft", "bare", 12, 384),
    _Swin("T", 1, "timm", "safetensors", 7, 384),
    _Swin("S", 1, "timm", "state_dict_ema", 7, 224),
    _Swin("B", 1, "timm", "bare", 12, 384),
    _Swin("T", 1, "torchvision", "bare", 7, 384),
    _Swin("B", 1, "torchvision", "model + optimizer + Namespace, legacy", 7, 224),
    _Swin("T", 1, "transformers 4", "safetensors", 7, 384),
    _Swin("B", 1, "transformers 4", "bare", 12, 384),
    _Swin("S", 1, "transformers 5", "model_state_dict, net.", 7, 224),
    _Swin("T", 2, "Microsoft", "bare", 8, 256),
    _Swin("B", 2, "Microsoft", "model + optimizer + Namespace", 24, 384, _FINE_TUNED),
    _Swin("L", 2, "Microsoft", "half precision", 24, 384, _FINE_TUNED),
    _Swin("T", 2, "timm", "safetensors", 8, 256, (), "swinv2_tiny_window8_256"),
    _Swin("B", 2, "timm", "state_dict_ema", 16, 256, _FINE_TUNED, "swinv2_base_window12to16_192to256"),
    _Swin("S", 2, "torchvision", "bare", 8, 256),
    _Swin("B", 2, "torchvision", "state_dict_ema", 8, 384),
    _Swin("T", 2, "transformers 4", "bare, legacy", 16, 256),
    _Swin("B", 2, "transformers 4", "safetensors", 24, 384, _FINE_TUNED),
)
COLUMNS = (1, 5, 2)
"""Given out in turn."""
CASES = tuple(
    ConversionCase(
        f"{'Swin' if kind.version == 1 else 'SwinV2'}-{kind.letter}",
        f"{kind.container}{' + config.json' if kind.timm_name or kind.layout.startswith('transformers') else ''}",
        {"Microsoft": "Microsoft, timm 0.6", "timm": "timm 0.9"}.get(kind.layout, kind.layout),
        ("swin",),
        partial(make_swin, kind),
        128 if kind.uneven else 96,
        kind.full_size,
        COLUMNS[number % 3],
    )
    for number, kind in enumerate(KINDS)
)
"""Every variant, layout and container somewhere, not each with each."""
