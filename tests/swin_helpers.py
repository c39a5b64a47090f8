"""What the tests of Swin Transformers share: small networks of each library, their files, a card that fits."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from fundus_rt.benchmarks.make_swin import save_in, swin_network
from fundus_rt.converters.architecture import Architecture, identify_architecture
from fundus_rt.converters.checkpoint import read_checkpoint
from fundus_rt.models import ModelCard, load_card

LIBRARIES = {
    "Microsoft": "timm",
    "timm": "timm",
    "torchvision": "torchvision",
    "transformers 4": "transformers",
    "transformers 5": "transformers",
}
EACH = [(layout, version) for layout in LIBRARIES for version in (1, 2) if (layout, version) != ("transformers 5", 2)]
"""Layouts and versions; release 5 of transformers renamed only v1's tensors."""


def card_for(height: int, width: int | None = None) -> ModelCard:
    card = load_card("joir-age")
    return dataclasses.replace(card, preprocessing=dataclasses.replace(card.preprocessing, input_size=(height, width or height)))


def network_of(layout: str, version: int, outputs: int = 1, **changes: Any) -> Any:
    if LIBRARIES[layout] == "transformers":
        pytest.importorskip("transformers")
    return swin_network(LIBRARIES[layout], version, outputs, **changes)


def describe(folder: Path, layout: str, network: Any, **changes: Any) -> None:
    """Write the ``config.json`` that transformers, and timm's hub for v2, write beside the tensors."""
    if LIBRARIES[layout] == "transformers":
        network.config.to_json_file(folder / "config.json", use_diff=False)
    elif layout == "timm":
        arguments = {"img_size": 96, "window_size": 3, "embed_dim": 32, "depths": (2, 2, 2, 2)} | changes
        content = {"architecture": "swinv2_tiny_window8_256.custom", "model_args": arguments}
        (folder / "config.json").write_text(json.dumps(content))


def identified(folder: Path, state: dict[str, Any], card: ModelCard, container: str = "bare") -> Architecture:
    return identify_architecture(read_checkpoint(save_in(container, state, folder)), card)


def images_for(*size: int) -> Any:
    import torch

    return torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(1))
