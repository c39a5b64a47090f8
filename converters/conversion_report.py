"""What a conversion read, measured and wrote, for the command line and for scripts."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from fundus_rt.converters.architecture import Architecture
from fundus_rt.converters.output_meaning import output_notes
from fundus_rt.converters.parity import OutputDifference, Reference
from fundus_rt.models.card import ModelCard

MOST_LEVELS = 1.01
"""Difference of preprocessing, grey levels, that is not worth a warning: rounding to whole levels on one side."""


@dataclass(frozen=True)
class ConversionReport:
    """What a conversion read, measured and wrote."""

    output: Path
    sha256: str
    """Of the file written."""
    size: int
    """Bytes of the file written."""
    checkpoint: Path
    checkpoint_sha256: str
    architecture: Architecture
    notes: tuple[str, ...]
    """What was unwrapped, left aside or told apart, one sentence each."""
    differences: tuple[OutputDifference, ...]
    warnings: tuple[str, ...]
    card: ModelCard
    """As it is in the file: columns, activations and provenance filled in."""
    nodes: int
    """Nodes of the graph written."""
    peak_memory: int | None
    """Largest resident memory of this process so far, bytes; None where the system does not say."""
    reference: Reference
    """The original's side of the proof."""

    def lines(self) -> list[str]:
        """The report in words, for the command line."""
        found = [
            f"{self.checkpoint.name}: {self.architecture.description}",
            f"{self.architecture.account}",
            *self.notes,
            *output_notes(self.card),
            str(self.reference),
            *(f"against the original framework: {difference}" for difference in self.differences),
            *(f"warning: {warning}" for warning in self.warnings),
            f"wrote {self.output} ({self.size / 2**20:.1f} MiB, {self.nodes} nodes, sha256 {self.sha256[:16]})",
        ]
        if self.peak_memory is not None:
            found.append(f"peak memory {self.peak_memory / 2**30:.1f} GiB")
        return found


def peak_memory() -> int | None:
    """Largest resident memory of this process so far, bytes; None on systems without `getrusage`."""
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def proof_warnings(card: ModelCard, differences: list[OutputDifference], reference: Reference) -> tuple[str, ...]:
    """What is weak about the proof, one sentence each."""
    found = []
    if reference.levels > MOST_LEVELS:
        found.append(
            f"the preprocessing differs from the original's by up to {reference.levels:.3g} grey levels in single values; the "
            f"answers are within the tolerance on these photographs, others may differ more"
        )
    for output in card.outputs:
        numbers = reference.answers[output.name]
        if output.activation in ("sigmoid", "softmax") and len(numbers) > 1 and numbers.min() >= 0 and numbers.max() <= 1:
            found.append(
                f"all numbers that the original gives for {output.name} lie between 0 and 1, as probabilities do, and "
                f"{output.activation} is applied to them because the card says so: right only if they are no probabilities yet"
            )
    for difference in differences:
        if difference.photographs == 1:
            found.append(f"{difference.name} was compared on one photograph only: whether it tells pictures apart is not shown")
        elif difference.spread < 10 * difference.tolerance:
            found.append(
                f"the photographs' answers for {difference.name} lie only {difference.spread:.2g} {difference.unit} apart, "
                f"less than ten tolerances: give photographs that differ more for a stronger proof"
            )
    if card.preprocessing.assumed:
        found.append(
            f"the authors did not publish {', '.join(card.preprocessing.assumed)} of the preprocessing; the card's values "
            f"are assumed, and every result says so"
        )
    return tuple(found)
