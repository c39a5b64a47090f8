"""Residual networks in torchvision's names: depth, width and head read from the tensors.

Names and shapes follow He et al., "Deep Residual Learning" (arXiv 1512.03385), as pytorch/vision stores them
(``conv1``, ``bn1``, ``layer1`` to ``layer4``, ``fc``), ResNeXt (arXiv 1611.05431) and Wide ResNet (arXiv 1605.07146) included.
The Image+Fundus models (arXiv 2408.08790) put Linear-BatchNorm-ReLU-Linear in the place of ``fc``.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

from fundus_rt.converters.architecture import Architecture, Network
from fundus_rt.converters.backends import require, require_torchvision
from fundus_rt.converters.checkpoint import Checkpoint
from fundus_rt.converters.pytorch.stated import stated_title
from fundus_rt.converters.pytorch.torch_export import EXPORTER, TorchNetwork
from fundus_rt.converters.pytorch.torch_loading import account_of_module, load_exactly, names_in
from fundus_rt.models.card import ModelCard
from fundus_rt.models.errors import UnsupportedCheckpointError

Shapes = dict[str, tuple[int, ...]]

FIRST_BLOCK = "layer1.0.conv1.weight"
DEPTHS: dict[tuple[bool, tuple[int, ...]], int] = {
    (False, (2, 2, 2, 2)): 18,
    (False, (3, 4, 6, 3)): 34,
    (True, (3, 4, 6, 3)): 50,
    (True, (3, 4, 23, 3)): 101,
    (True, (3, 8, 36, 3)): 152,
}
"""Depth by bottleneck or not, and blocks per stage (table 1 of the paper)."""
HEADS_OUTSIDE = ("fc", "head.fc", "head", "classifier")
"""Names under which a module around the network keeps the last linear layer (MMPretrain: ``head.fc``)."""
TAKEN_FOR_GRANTED = (
    "No tensor shows these, so they are taken as in torchvision: the stride of a bottleneck in its 3 x 3 convolution (Caffe's "
    "networks have it in the 1 x 1), no smoothing before a stride (anti-aliasing, as in resnetaa50 and resnetblur50 of timm), "
    "BatchNorm's epsilon of 1e-5, and no activation after the last layer."
)
HEAD_ADVICE = (
    "Activations have no tensors, so what lies between the layers cannot be known from the file. Write the network as a "
    "function without arguments and name it with --architecture package.module:factory."
)


def looks_like_resnet(shapes: Shapes) -> bool:
    """Whether these are the tensors of a residual network of four stages in torchvision's names, also below a prefix."""
    before = _before(shapes)
    if before is None:
        return False
    stem = shapes.get(f"{before}conv1.weight", ())
    stages = {match[1] for name in shapes if (match := re.match(rf"{re.escape(before)}layer(\d+)\.0\.conv1\.weight$", name))}
    return len(stem) == 4 and stem[2:] == (7, 7) and stages == {"1", "2", "3", "4"}


def identify_resnet(checkpoint: Checkpoint, card: ModelCard) -> Architecture:
    """Read a residual network's depth, width, groups and head from its tensors.

    A whole pickled module answers and is exported itself: its forward pass may differ from torchvision's.

    Raises:
        UnsupportedCheckpointError: no head, a head whose activations the tensors do not show, another number of blocks or
            channels than any published network has, tensors missing or left over; the file says that it is another network.
    """
    shapes, file = checkpoint.shapes, checkpoint.path.name
    before = _before(shapes) or ""
    bottleneck = f"{before}layer1.0.conv3.weight" in shapes
    blocks = tuple(_blocks(shapes, before, stage) for stage in (1, 2, 3, 4))
    groups, base = _width(shapes, before, bottleneck)
    family, title = _family(bottleneck, blocks, groups, base)
    size = card.preprocessing.input_size
    if checkpoint.module is not None:
        from fundus_rt.converters.pytorch.named_networks import identify_module

        return replace(identify_module(checkpoint, card), family=family)
    channels = shapes[f"{before}conv1.weight"][1]
    if channels != 3:
        raise UnsupportedCheckpointError(f"{file} holds a {title} for {channels} channels, expected 3 (colour)")
    _check_statement(checkpoint, family, title)
    head = _head(shapes, before, file, title)
    warnings = [TAKEN_FOR_GRANTED]
    layers, described, columns = _layers_of_head(shapes, head, file, title, warnings)
    if not head.startswith(before):
        warnings.append(
            f"The head {head!r} lies outside of the network below {before!r}: that the features are averaged over the picture "
            f"and go into it as they are is taken for granted."
        )
    if blocks not in {depths for kind, depths in DEPTHS if kind == bottleneck}:
        raise UnsupportedCheckpointError(
            f"{file} holds a residual network with {'-'.join(map(str, blocks))} blocks per stage, expected one of "
            f"{', '.join('-'.join(map(str, depths)) for kind, depths in DEPTHS if kind == bottleneck)}"
        )
    network = resnet_network(bottleneck, blocks, groups, base, layers)
    names = names_in(network, {_inside(name, before, head): shape for name, shape in shapes.items()})
    names = {name: names[_inside(name, before, head)] for name in shapes}
    notes: list[str] = []
    account = account_of_module(checkpoint, network, names, notes)

    def build() -> Network:
        return TorchNetwork(load_exactly(checkpoint, network, names, account), size)

    description = (
        f"{title} in torchvision's names, {described}, {columns} output{'s' if columns > 1 else ''}, {size[0]} x {size[1]} pixels"
    )
    return Architecture(
        family,
        description,
        size,
        columns,
        None,
        account,
        build,
        EXPORTER,
        ("torch", "torchvision"),
        tuple(notes),
        tuple(warnings),
    )


def _check_statement(checkpoint: Checkpoint, family: str, title: str) -> None:
    """The name that the file gives its network, where it gives one that is known, has to be that of `family`."""
    stated, source = stated_title(checkpoint)
    name = stated.partition("/")[2]
    if name and name.replace("_", "") != family.replace("-", ""):
        raise UnsupportedCheckpointError(
            f"{checkpoint.path.name} holds the tensors of a {title}, but {source} calls the network {name}. Networks with the "
            f"same tensors compute differently, so it is not taken for a plain {title}: say --architecture {stated}."
        )


def resnet_network(bottleneck: bool, blocks: tuple[int, ...], groups: int, base: int, layers: list[tuple[str, int, int]]) -> Any:
    """torchvision's `ResNet` with random weights and the head that `layers` describes.

    Args:
        bottleneck: three convolutions per block instead of two.
        blocks: blocks per stage.
        groups: groups of a bottleneck's 3 x 3 convolution.
        base: width of a group in the first stage, channels.
        layers: kind (``linear``, ``norm``, ``relu``, ``nothing``), inputs and outputs of each layer of the head.

    Raises:
        BackendUnavailableError: torch or torchvision is missing.
    """
    nn = require("torch").nn
    resnet = require_torchvision().models.resnet
    kind = resnet.Bottleneck if bottleneck else resnet.BasicBlock
    network = resnet.ResNet(kind, list(blocks), groups=groups, width_per_group=base, num_classes=2)
    makers = {
        "linear": nn.Linear,
        "norm": lambda inputs, outputs: nn.BatchNorm1d(outputs),
        "relu": lambda inputs, outputs: nn.ReLU(),
        "nothing": lambda inputs, outputs: nn.Identity(),
    }
    made = [makers[kind](inputs, outputs) for kind, inputs, outputs in layers]
    network.fc = made[0] if len(made) == 1 else nn.Sequential(*made)
    return network.eval()


def _before(shapes: Shapes) -> str | None:
    """What stands before the names of the network; None where there is no first block."""
    found = [name for name in shapes if name.endswith(FIRST_BLOCK)]
    before = found[0][: -len(FIRST_BLOCK)] if len(found) == 1 else None
    return before if before is not None and (not before or before.endswith(".")) else None


def _blocks(shapes: Shapes, before: str, stage: int) -> int:
    count = 0
    while f"{before}layer{stage}.{count}.conv1.weight" in shapes:
        count += 1
    return count


def _width(shapes: Shapes, before: str, bottleneck: bool) -> tuple[int, int]:
    """Groups of a bottleneck's 3 x 3 convolution, and channels of a group in the first stage."""
    if not bottleneck:
        return 1, 64
    width, per_group, *_ = shapes.get(f"{before}layer1.0.conv2.weight", (64, 64))
    groups = max(1, width // max(1, per_group))
    return groups, width // groups


def _family(bottleneck: bool, blocks: tuple[int, ...], groups: int, base: int) -> tuple[str, str]:
    depth = DEPTHS.get((bottleneck, blocks), "")
    if groups > 1:
        return f"resnext-{depth}-{groups}x{base}d", f"ResNeXt-{depth} {groups}x{base}d"
    if base != 64:
        return f"wide-resnet-{depth}-{base / 64:g}", f"Wide ResNet-{depth}-{base / 64:g}"
    return f"resnet-{depth}", f"ResNet-{depth}"


def _head(shapes: Shapes, before: str, file: str, title: str) -> str:
    """Name of the module that makes the answer of the features."""
    body = re.compile(rf"{re.escape(before)}(conv1|bn1|layer[1-4])\.")
    others = [name for name in shapes if not body.match(name)]
    known: tuple[str, ...] = (f"{before}fc", *HEADS_OUTSIDE) if before else ("fc",)
    for head in known:
        if any(name.startswith(f"{head}.") for name in others):
            return head
    if others:
        raise UnsupportedCheckpointError(
            f"{file} holds a {title} whose head is not one that is known: {', '.join(others[:6])}; expected 'fc'. {HEAD_ADVICE}"
        )
    raise UnsupportedCheckpointError(
        f"{file} holds a {title} without a head: features, no answer. Ask for the file of the whole network."
    )


def _layers_of_head(
    shapes: Shapes, head: str, file: str, title: str, warnings: list[str]
) -> tuple[list[tuple[str, int, int]], str, int]:
    """Layers of a head, the head in words, and its outputs.

    Known: a linear layer; one behind an entry without tensors (dropout and flattening change nothing in evaluation, and ReLU
    changes nothing on averaged values that are not negative); the head of Image+Fundus, whose ReLU is concluded from the gap.
    """
    plain = shapes.get(f"{head}.weight", ())
    if len(plain) == 2:
        return [("linear", plain[1], plain[0])], "plain head", plain[0]
    parts = {name[len(head) + 1 :]: shape for name, shape in shapes.items() if name.startswith(f"{head}.")}
    linear = {
        name.partition(".")[0]: shape for name, shape in parts.items() if re.fullmatch(r"\d+\.weight", name) and len(shape) == 2
    }
    norms = {name.partition(".")[0] for name in parts if name.endswith(".running_var")}
    if list(linear) == ["1"] and not norms:
        outputs, inputs = linear["1"]
        warnings.append(
            f"The head has an entry without tensors before its linear layer ({head}.0): taken as dropout, flattening or ReLU, "
            f"all of which leave the averaged features as they are."
        )
        return (
            [("nothing", inputs, inputs), ("linear", inputs, outputs)],
            "head of one linear layer after an entry without tensors",
            outputs,
        )
    if sorted(linear) == ["0", "3"] and norms == {"1"}:
        hidden, inputs = linear["0"]
        outputs = linear["3"][0]
        warnings.append(
            f"The head is Linear, BatchNorm, an entry without tensors ({head}.2), Linear; the entry is taken as ReLU, as in the "
            f"code of Image+Fundus."
        )
        layers = [("linear", inputs, hidden), ("norm", hidden, hidden), ("relu", hidden, hidden), ("linear", hidden, outputs)]
        return layers, "head Linear-BatchNorm-ReLU-Linear as in Image+Fundus", outputs
    shown = ", ".join(f"{head}.{name} {list(shape)}" for name, shape in list(parts.items())[:8])
    raise UnsupportedCheckpointError(
        f"{file} holds a {title} with a head of its own ({shown}); known are one linear layer, and Linear-BatchNorm-ReLU-Linear "
        f"as in Image+Fundus. {HEAD_ADVICE}"
    )


def _inside(name: str, before: str, head: str) -> str:
    """Name of a tensor in torchvision's network."""
    if name.startswith(f"{head}."):
        return f"fc{name[len(head) :]}"
    return name.removeprefix(before)
