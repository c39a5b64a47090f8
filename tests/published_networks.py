"""Networks of published files that have no library: written from the names and shapes of their tensors and their papers."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional


class Block(nn.Module):  # type: ignore[misc]
    """Two 3 x 3 convolutions and a shortcut without parameters (He et al., arXiv 1512.03385, option A)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.stride, self.added = stride, outputs - inputs

    def forward(self, maps: Any) -> Any:
        """Half of the new channels are zeros before the old ones, half after them."""
        found = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(maps)))))
        half = self.added // 2
        return torch.relu(
            found + functional.pad(maps[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, half, self.added - half))
        )


class SmallResNet(nn.Module):  # type: ignore[misc]
    """The residual network of section 4.2 of that paper, for pictures of 32 x 32 pixels."""

    def __init__(self, blocks: int, classes: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16)
        for stage, (inputs, outputs) in enumerate(((16, 16), (16, 32), (32, 64)), start=1):
            first = Block(inputs, outputs, 1 if stage == 1 else 2)
            setattr(self, f"layer{stage}", nn.Sequential(first, *(Block(outputs, outputs, 1) for _ in range(blocks - 1))))
        self.linear = nn.Linear(64, classes)

    def forward(self, images: Any) -> Any:
        """Logits."""
        maps = torch.relu(self.bn1(self.conv1(images)))
        maps = self.layer3(self.layer2(self.layer1(maps)))
        return self.linear(maps.mean(dim=(2, 3)))


def resnet20() -> nn.Module:
    """ResNet-20 for the ten classes of CIFAR-10."""
    return SmallResNet(3, 10)


class Answers(nn.Module):  # type: ignore[misc]
    """A network of one layer that answers in whichever form is asked for."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.form = form

    def forward(self, images: Any) -> Any:
        """`form` of the convolution's answer."""
        maps = self.conv(images)
        rows = maps.mean(dim=(2, 3))
        forms = {"map": maps, "pair": (rows, maps), "entries": {"logits": rows, "features": maps}, "classes": rows.argmax(1)}
        forms |= {"flat": rows[:, 0], "whole numbers": rows.long(), "dropout": functional.dropout(rows), "rows": rows}
        return forms[self.form]


def answers_map() -> nn.Module:
    """Four dimensions."""
    return Answers("map")


def answers_pair() -> nn.Module:
    """Two tensors."""
    return Answers("pair")


def answers_entries() -> nn.Module:
    """A dictionary."""
    return Answers("entries")


def answers_flat() -> nn.Module:
    """One dimension."""
    return Answers("flat")


def answers_whole_numbers() -> nn.Module:
    """Numbers that are not floating point."""
    return Answers("whole numbers")


def answers_by_chance() -> nn.Module:
    """Dropout in evaluation too."""
    return Answers("dropout")


def answers_rows() -> nn.Module:
    """One row for each picture, as it has to be."""
    return Answers("rows")


def needs_arguments(classes: int) -> nn.Module:
    """A factory that cannot be called as it is."""
    return SmallResNet(3, classes)


def makes_no_network() -> dict[str, int]:
    """A factory that returns something else."""
    return {"classes": 10}


NO_FUNCTION = 3
