"""A small network whose answers really vary on the example photographs, converted for the tests of the proof."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from fundus_rt.benchmarks.lively import telling_head
from fundus_rt.benchmarks.proof.original import OriginalModel
from fundus_rt.benchmarks.proof.photographs import Case, photograph_of
from fundus_rt.converters.conversion import onnx_from_checkpoint
from fundus_rt.models.artifacts import sha256_of_bytes
from fundus_rt.models.card import ModelCard, OutputSpec, PreprocessingSpec
from fundus_rt.models.registry import EXAMPLE_FOLDER, load_card
from fundus_rt.runtime.decode import decode
from fundus_rt.runtime.field_of_view import find_field_of_view
from fundus_rt.runtime.preprocess import tensor_from_frame
from fundus_rt.runtime.session import Session, open_session

SIZE = 96
NAMED = "tests.proof_networks:grader"
PHOTOGRAPHS = {
    "chase_01L.jpg": "left",
    "chase_03R.jpg": "right",
    "haggstrom_right.jpg": "right",
    "idrid_085.jpg": "right",
    "idrid_165.jpg": "left",
}
IMAGENET = (1 / 255, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
HALVES = (1 / 255, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


class Grader(nn.Module):  # type: ignore[misc]
    """Three convolutions, the maps' means over a grid, LayerNorm, one linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2, self.conv3 = (nn.Conv2d(a, b, 5, 2, 2) for a, b in ((3, 12), (12, 16), (16, 16)))
        self.norm = nn.LayerNorm(144)
        self.head = nn.Linear(144, 1)

    def features(self, images: Any) -> Any:
        """What the linear layer sees."""
        maps = torch.relu(self.conv1(images))
        maps = self.conv3(torch.relu(self.conv2(maps)))
        return self.norm(nn.functional.avg_pool2d(torch.relu(maps), 4).flatten(1))

    def forward(self, images: Any) -> Any:
        """Years."""
        return self.head(self.features(images))


def grader() -> nn.Module:
    """The network as a researcher's own code builds it."""
    return Grader()


def card_for(numbers: Any = IMAGENET, color_order: str = "RGB", **changes: Any) -> ModelCard:
    """An age card of that network that mirrors left eyes."""
    scale, mean, std = numbers
    card = load_card("joir-age")
    spec = PreprocessingSpec((SIZE, SIZE), "field-of-view", "pillow-bilinear", color_order, scale, mean, std)
    output = OutputSpec("age", "regression", "years", 0.01, activation="none", columns=1)
    return dataclasses.replace(
        card, families=("none",), preprocessing=spec, outputs=(output,), laterality="mirror-left", **changes
    )


def cases() -> list[Case]:
    """Example photographs with their eyes."""
    contents = {name: (EXAMPLE_FOLDER / name).read_bytes() for name in PHOTOGRAPHS}
    return [Case(name, content, sha256_of_bytes(content), PHOTOGRAPHS[name]) for name, content in contents.items()]


def tensors(card: ModelCard) -> np.ndarray:
    """The runtime's frames of the photographs."""
    made = []
    for case in cases():
        frame = decode(case.content).frame
        made.append(tensor_from_frame(frame, find_field_of_view(frame), card.preprocessing, case.eye == "left"))
    return np.stack(made)


def write_checkpoint(path: Path, seed: int = 0, loud: float = 1.0) -> Path:
    """Weights that are drawn, but for the last layer, which tells the photographs apart by ten years.

    Args:
        path: where to write the `state_dict`.
        seed: of the drawn weights.
        loud: factor on the last convolution. LayerNorm takes it out again.
    """
    torch.manual_seed(seed)
    network = Grader().eval()
    card = card_for()
    levels = tensors(card)[..., ::-1] * card.preprocessing.scale
    shown = (levels - np.array(card.preprocessing.mean)) / np.array(card.preprocessing.std)
    with torch.no_grad():
        for convolution in (network.conv1, network.conv2):
            convolution.weight *= 2
        features = network.features(torch.from_numpy(np.ascontiguousarray(shown.transpose(0, 3, 1, 2), np.float32)))
        kernel, bias = telling_head(features.numpy(), 1, mean=55.0, deviation=10.0)
        network.head.weight.copy_(torch.from_numpy(kernel.T.copy()))
        network.head.bias.copy_(torch.from_numpy(bias))
        network.conv3.weight *= loud
        network.conv3.bias *= loud
    torch.save(network.state_dict(), path)
    return path


def original_of(path: Path, card: ModelCard | None = None) -> OriginalModel:
    """The checkpoint in PyTorch."""
    return OriginalModel(path, card or card_for(), architecture=NAMED)


def convert(checkpoint: Path, output: Path, card: ModelCard | None = None) -> Path:
    """The shipped file, proved on the photographs."""
    card = card or card_for()

    def open_shipped(path: Path) -> Callable[[np.ndarray], Any]:
        return open_session(path, threads=1).run

    photographs = [photograph_of(case, card) for case in cases()]
    onnx_from_checkpoint(
        checkpoint, card, output, tensors=tensors(card), open_shipped=open_shipped, photographs=photographs, architecture=NAMED
    )
    return output


class Reopened:
    """A session that a test spoils: it answers what `spoil` makes of the right answers."""

    takes_frames = False

    def __init__(self, session: Session, spoil: Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]) -> None:
        self._session, self._spoil = session, spoil
        self.card, self.backend, self.warnings = session.card, session.backend, session.warnings

    def run(self, batch: np.ndarray) -> dict[str, np.ndarray]:
        """The spoilt answers."""
        return self._spoil(self._session.run(batch))

    def close(self) -> None:
        """Close the session."""
        self._session.close()
