"""The original's side of a proof: a checkpoint in its own framework, given photographs by its author's own libraries."""

from __future__ import annotations

import dataclasses
import gc
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fundus_rt.converters.architecture import Architecture, identify_architecture
from fundus_rt.converters.backends import versions
from fundus_rt.converters.checkpoint import Checkpoint, read_checkpoint
from fundus_rt.converters.graphs.graph_cleaning import clean_graph
from fundus_rt.converters.original_preprocessing import OriginalInputs, Photograph, original_inputs
from fundus_rt.converters.output_meaning import resolved_card, settled
from fundus_rt.converters.parity import reference_tensor
from fundus_rt.converters.shipping import ship
from fundus_rt.models.artifacts import sha256_of_bytes, sha256_of_file
from fundus_rt.models.canary import PICTURES, canary_picture
from fundus_rt.models.card import ModelCard

LIBRARIES = (
    "numpy", "Pillow", "opencv-python-headless", "opencv-python", "opencv-contrib-python", "torch", "torchvision", "tensorflow",
    "tf-keras", "keras",
)  # fmt: skip
"""Packages that decode, resize, normalise or compute on the original's side."""

WRITTEN_HERE = (".parity.json", ".recipe.json")
"""Endings of files that say nothing of a checkpoint's network."""


class OriginalModel:
    """A checkpoint in its own framework, with its author's way from a photograph to the network."""

    def __init__(
        self,
        checkpoint: Path,
        card: ModelCard,
        architecture: str | None = None,
        trust_pickle: bool = False,
        progress: Callable[[str], None] | None = None,
    ) -> None:
        """Read the checkpoint and build its network.

        Args:
            checkpoint: as `fundus_rt.converters.checkpoint.read_checkpoint` takes it.
            card: the author's statement; an activation that it leaves open is read from the file or its graph.
            architecture: what the network is where neither file nor card says it, see `identify_architecture`.
            trust_pickle: allow code from the checkpoint to be executed.
            progress: called with one sentence before code of the file is run.

        Raises:
            UnsupportedCheckpointError: it cannot be read, or is not the card's network to the last weight.
            UntrustedCheckpointError: reading it would execute code and `trust_pickle` was not given.
            BackendUnavailableError: its framework is not installed.
        """
        read = read_checkpoint(checkpoint, trust_pickle, progress)
        found = identify_architecture(read, card, architecture)
        self._network = found.build()
        read.state.clear()
        self.checkpoint_sha256 = read.sha256
        self.beside_sha256 = _beside_sha256(checkpoint)
        """Of the configurations in the checkpoint's folder: a network may be built by them, `convert` says which it read."""
        self.framework = read.framework
        """``pytorch``, ``keras``, ``tensorflow`` or ``onnx``."""
        self.description = found.description
        """The network, for the reader."""
        self.versions = versions(*dict.fromkeys((*found.packages, *LIBRARIES)))
        """Installed versions by package of everything that has a part in the answers."""
        self.repeatable = not trust_pickle and ":" not in (architecture or "")
        """False where code outside of the package builds the network: its answers follow from more than the file."""
        self._exported: Any = None
        if found.activation is None and any(output.activation is None for output in card.outputs):
            found = self._settled(found, read, card)
        self.card = resolved_card(card, found, read)
        """The author's card with columns and activation of its output."""

    def inputs(self, photographs: Sequence[Photograph]) -> OriginalInputs:
        """Network inputs as the author's libraries make them, see `fundus_rt.converters.original_preprocessing`."""
        return original_inputs(photographs, self.card.preprocessing, self.framework)

    def answers(self, images: np.ndarray) -> dict[str, np.ndarray]:
        """The framework's own answers.

        Args:
            images: float32 [N, H, W, 3], normalised, in the network's colour order.

        Returns:
            float32 [N, columns] by output, before any activation that is still to be applied.
        """
        return {self.card.outputs[0].name: np.asarray(self._network.answers(images), np.float32)}

    @property
    def network(self) -> Any:
        """What holds the framework's own object, see `fundus_rt.converters.architecture.Network`."""
        return self._network

    def export(self) -> Any:
        """The network as a fresh `onnx.ModelProto` of the shipped form in fp32, by the converters' plain path.

        It is made once; whoever changes it takes a copy.

        Raises:
            UnsupportedCheckpointError: the network cannot be exported.
        """
        if self._exported is None:
            self._exported = self._graph()
        if not any(output.name == "receipt" for output in self._exported.graph.output):
            self._exported = ship(self._exported, dataclasses.replace(self.card, canary={}, provenance={}))
        return self._exported

    def close(self) -> None:
        """Give the framework's memory back."""
        self._network.close()
        self._exported = None
        gc.collect()

    def _graph(self) -> Any:
        model = self._network.graph()
        clean_graph(model)
        return model

    def _settled(self, found: Architecture, checkpoint: Checkpoint, card: ModelCard) -> Architecture:
        """The architecture with the activation that its graph ends with, as a conversion settles it."""
        spec = card.preprocessing
        drawn = np.stack([canary_picture(which, spec.input_size, spec.input_dtype) for which in range(PICTURES)])
        self._exported = self._graph()
        return settled(found, self._exported, checkpoint, self._network.answers(reference_tensor(drawn, spec)))


def _beside_sha256(checkpoint: Path) -> str:
    """SHA-256 over names and contents of the JSON files beside a checkpoint that this package did not write."""
    found = [
        (path.name, sha256_of_file(path))
        for path in sorted(checkpoint.parent.glob("*.json"))
        if path.is_file() and not path.name.endswith(WRITTEN_HERE)
    ]
    return sha256_of_bytes(json.dumps(found).encode())
