"""One checkpoint that a conversion is tried on: made with random weights, of a true architecture, in a form that is published."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from fundus_rt.models.card import ModelCard, OutputSpec, PreprocessingSpec
from fundus_rt.models.registry import load_card

IMAGENET = (1 / 255, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
"""Scale, mean and deviation of most torch networks."""
MINUS_ONE_TO_ONE = (1 / 127.5, (1.0, 1.0, 1.0), (1.0, 1.0, 1.0))
"""Scale, mean and deviation of keras.applications' mode ``tf``."""
RAW = (1.0, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
"""Grey levels as they are: the network scales by itself."""


@dataclass(frozen=True)
class ConversionCase:
    """What to write, and what a user would say to `fundus-rt convert` about it."""

    architecture: str
    """For the reader, for example ``Swin-T`` or ``EfficientNet-B0``."""
    container: str
    """What is around the tensors, for example ``model + optimizer, zip`` or ``Keras 2 full model``."""
    layout: str
    """Whose names the tensors have, for example ``torchvision``."""
    families: tuple[str, ...]
    """For the card: what it accepts."""
    make: Callable[[Path, int, int], Path]
    """Writes the checkpoint with random, lively weights: folder, input size in pixels, outputs; returns its path."""
    size: int
    """Smallest input size, pixels, at which the architecture is itself."""
    full_size: int
    """Input size at which it is published, pixels."""
    columns: int = 5
    """Outputs: 1 is a regression in years, 2 and more are classes."""
    normalisation: tuple[float, tuple[float, float, float], tuple[float, float, float]] = IMAGENET
    named: str | None = None
    """``--architecture``, where it is needed."""
    trust: bool = False
    """``--trust-pickle``, where it is needed."""

    @property
    def name(self) -> str:
        """Unique name of the case, for a file or a test."""
        words = f"{self.architecture}-{self.layout}-{self.container}".lower()
        return "-".join("".join(c if c.isalnum() or c == "." else " " for c in words).split())

    def card(self, size: int) -> ModelCard:
        """A card for the case at an input size in pixels."""
        scale, mean, std = self.normalisation
        base = load_card("image-fundus-multi-disease")
        if self.columns == 1:
            output = OutputSpec("age", "regression", "years", 1e-2)
        elif self.columns == 2:
            output = OutputSpec("sex", "binary", "probability", 1e-3, ("female", "male"))
        else:
            output = OutputSpec("grade", "multiclass", "probability", 1e-3, tuple(f"grade {i}" for i in range(self.columns)))
        spec = PreprocessingSpec((size, size), "field-of-view", "pillow-bilinear", "RGB", scale, mean, std)
        return dataclasses.replace(
            base, name="conversion-case", families=self.families, outputs=(output,), preprocessing=spec, laterality="none"
        ).validate()
