"""Differences between a converted model and the framework it came from, in the unit of each output."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from fundus_rt.models.card import ModelCard, OutputSpec, PreprocessingSpec
from fundus_rt.models.errors import FundusRtError, ParityError

ShippedModel = Callable[[np.ndarray], Mapping[str, np.ndarray]]
"""A shipped file, opened: frames [N, H, W, 3] in, every output by its name."""

REFERENCE_BATCH = 2
"""Photographs that a framework answers at once: bounds its peak memory."""
RESOLUTION = 0.02
"""Largest difference of the network alone, as a share of how far the photographs' own numbers lie apart. In float32, converted
networks of a hundred layers stay below a thousandth."""
BATCH_SIZES = (1, 2, 3)
"""Sizes in which the photographs are sent, in turn, so that a frozen batch dimension shows."""


@dataclass(frozen=True)
class OutputDifference:
    """How far one output is from the framework's, over all photographs and columns, in the output's unit."""

    name: str
    unit: str
    largest: float
    mean: float
    percentile_95: float
    lowest: float
    """Smallest value that the framework gave over the photographs."""
    highest: float
    """Largest value that the framework gave over the photographs."""
    tolerance: float
    photographs: int
    spread: float
    """How far the framework's answers for the photographs lie apart, in the column where they do so most: what the differences
    are to be held against."""
    network_largest: float | None = None
    """Largest difference of the network alone, both sides given the same tensors; None where that is `largest` itself."""

    def __str__(self) -> str:
        return (
            f"{self.name}: largest difference {self.largest:.2g} {self.unit}, mean {self.mean:.2g}, 95th percentile "
            f"{self.percentile_95:.2g} (tolerance {self.tolerance:g}); the {self.photographs} photographs' answers run "
            f"from {self.lowest:.4g} to {self.highest:.4g}, at most {self.spread:.3g} apart in one column"
            + ("" if self.network_largest is None else f"; of the network alone {self.network_largest:.2g}")
        )

    def to_dict(self) -> dict[str, Any]:
        """For the card's provenance."""
        return asdict(self)


def reference_tensor(frames: np.ndarray, spec: PreprocessingSpec) -> np.ndarray:
    """The network's input as its author makes it, apart from the shipped graph: ``(value * scale - mean) / std``.

    Args:
        frames: [N, H, W, 3], BGR, uint8 or float32, grey levels 0 to 255.
        spec: the card's preprocessing.

    Returns:
        float32 [N, H, W, 3] in the network's colour order.
    """
    pixels = frames.astype(np.float32)
    if spec.color_order == "RGB":
        pixels = pixels[..., ::-1]
    scaled = pixels * np.float32(spec.scale) - np.asarray(spec.mean, np.float32)
    return np.ascontiguousarray(scaled / np.asarray(spec.std, np.float32))


def values_of(answers: np.ndarray, output: OutputSpec) -> np.ndarray:
    """Answers of a network in the output's unit.

    Args:
        answers: [N, columns] as the network gives them.
        output: with `activation` resolved.

    Returns:
        float64 [N, columns]: years, probabilities.
    """
    numbers = answers.astype(np.float64)
    if output.activation == "sigmoid":
        return np.asarray(0.5 * (1.0 + np.tanh(0.5 * numbers)))
    if output.activation == "softmax":
        powers = np.exp(numbers - numbers.max(axis=1, keepdims=True))
        return np.asarray(powers / powers.sum(axis=1, keepdims=True))
    return numbers * output.scale + output.offset


@dataclass(frozen=True)
class Reference:
    """What the original framework answered."""

    answers: dict[str, np.ndarray]
    """[N, columns] by output name, before activation, for photographs on their author's way (or, where only frames were
    given, for the frames)."""
    same_tensors: dict[str, np.ndarray]
    """The same for the runtime's own frames; equal to `answers` where the two ways give the same tensors."""
    libraries: str = ""
    """What prepared the photographs on the original's side; empty where only frames were given."""
    levels: float = 0.0
    """Largest difference between the two ways' tensors, grey levels."""

    def __str__(self) -> str:
        if not self.libraries:
            return "preprocessing was not compared: frames were given, not photographs"
        return f"preprocessing against the original's ({self.libraries}): largest difference {self.levels:.2g} grey levels"


def compare_shipped(shipped: ShippedModel, frames: np.ndarray, reference: Reference, card: ModelCard) -> list[OutputDifference]:
    """Run a shipped file on photographs and hold it against the framework's answers.

    Args:
        shipped: the file, opened.
        frames: [N, H, W, 3], BGR, of the card's input dtype.
        reference: the framework's answers.
        card: with every output's activation resolved.

    Returns:
        One difference per output, each within the card's tolerance.

    Raises:
        ParityError: an answer that is not finite, no probability, constant over the photographs, or further from the
            framework's than the card's tolerance; or a receipt that is not the sum of the frame sent. Lists all of them.
    """
    answered = run_in_batches(shipped, frames)
    problems = _receipt_problems(answered.get("receipt"), frames)
    differences = []
    for output in card.outputs:
        found = answered.get(output.name)
        expected = reference.answers[output.name]
        if found is None or found.shape != expected.shape:
            shape = "missing" if found is None else f"of shape {found.shape}"
            problems.append(f"output {output.name!r} is {shape}, expected {expected.shape}")
            continue
        problems += _answer_problems(output, found, expected)
        if not (np.isfinite(found).all() and np.isfinite(expected).all()):
            continue
        problems += _resolution_problems(output, found, reference.same_tensors[output.name])
        difference = _difference(output, found, expected, reference.same_tensors[output.name])
        if not difference.largest <= output.tolerance:
            problems.append(f"beyond the tolerance: {difference}\n    ({reference})")
        differences.append(difference)
    if problems:
        listing = "\n".join(f"  - {problem}" for problem in problems)
        raise ParityError(
            f"the converted model does not answer as the original does, so nothing was written:\n{listing}\n"
            f"Check that the card {card.name!r} belongs to the file."
        )
    return differences


def run_in_batches(shipped: ShippedModel, frames: np.ndarray) -> dict[str, np.ndarray]:
    """Run all frames, in batches of 1, 2, 3, 1, ... and put the answers together.

    Raises:
        ParityError: the file does not run.
    """
    parts: dict[str, list[np.ndarray]] = {}
    start = turn = 0
    while start < len(frames):
        size = BATCH_SIZES[turn % len(BATCH_SIZES)]
        for name, answer in _run(shipped, np.ascontiguousarray(frames[start : start + size])).items():
            parts.setdefault(name, []).append(np.array(answer))
        start, turn = start + size, turn + 1
    return {name: np.concatenate(answers) for name, answers in parts.items()}


def _run(shipped: ShippedModel, batch: np.ndarray) -> Mapping[str, np.ndarray]:
    try:
        return shipped(batch)
    except FundusRtError:
        raise
    except Exception as error:  # each backend raises its own classes
        text = " ".join(str(error).split())[:300]
        raise ParityError(f"the converted model does not run on a batch of {len(batch)} ({text}); nothing was written") from error


def _difference(output: OutputSpec, found: np.ndarray, expected: np.ndarray, same_tensors: np.ndarray) -> OutputDifference:
    original, shipped = values_of(expected, output), values_of(found, output)
    apart = np.abs(shipped - original)
    alone = None if same_tensors is expected else float(np.abs(shipped - values_of(same_tensors, output)).max())
    return OutputDifference(
        output.name,
        output.unit,
        float(apart.max()),
        float(apart.mean()),
        float(np.percentile(apart, 95)),
        float(original.min()),
        float(original.max()),
        output.tolerance,
        len(apart),
        float(np.ptp(original, axis=0).max()),
        alone,
    )


def _resolution_problems(output: OutputSpec, found: np.ndarray, expected: np.ndarray) -> list[str]:
    """Whether the two sides' numbers, before any activation, agree far better than they differ between photographs.

    Probabilities of a sure network all lie near 0 and 1, where a wrong network would lie too; its numbers before the activation
    tell the photographs apart all the same. Columns that differ by no more than float32's rounding are left out.
    """
    if len(expected) < 2 or not np.isfinite(expected).all() or not np.isfinite(found).all():
        return []
    spread = np.ptp(expected.astype(np.float64), axis=0)
    telling = spread > 1e-5 * np.abs(expected).max(axis=0)
    if not telling.any():
        return [
            f"{output.name}: the original's numbers differ between the {len(expected)} photographs by rounding only, so nothing "
            f"can be proved on them; give photographs that differ more"
        ]
    shares = np.abs(found.astype(np.float64) - expected).max(axis=0)[telling] / spread[telling]
    if shares.max() <= RESOLUTION:
        return []
    return [
        f"{output.name}: with the same tensors given to both, the numbers are apart by {100 * shares.max():.3g} % of what tells "
        f"the photographs apart, more than {100 * RESOLUTION:g} %"
    ]


def _answer_problems(output: OutputSpec, found: np.ndarray, expected: np.ndarray) -> list[str]:
    problems = []
    for word, answers in (("the original framework", expected), ("the converted model", found)):
        if not np.isfinite(answers).all():
            problems.append(
                f"{output.name}: {word} answers with NaN or infinity on {(~np.isfinite(answers)).any(axis=1).sum()} photographs"
            )
    if problems:
        return problems
    values = values_of(expected, output)
    if output.task != "regression" and (values.min() < 0 or values.max() > 1):
        problems.append(
            f"{output.name}: values from {values.min():.4g} to {values.max():.4g} are no probabilities; the card's "
            f"activation {output.activation!r} does not fit the network"
        )
    if output.activation == "softmax" and expected.min() >= 0 and np.abs(expected.sum(axis=1) - 1).max() < 1e-3:
        problems.append(
            f"{output.name}: the network's numbers are between 0 and 1 and add up to 1 for each photograph, so a softmax is "
            f'inside already where its graph does not show it; set the card\'s activation to "none"'
        )
    if len(expected) > 1 and np.ptp(expected, axis=0).max() <= 1e-6 * max(np.abs(expected).max(), 1e-30):
        problems.append(
            f"{output.name}: the original framework itself answers {expected[0].tolist()} for each of the "
            f"{len(expected)} photographs; its weights are damaged or untrained, or the card's preprocessing is wrong, and "
            f"nothing can be proved"
        )
    return problems


def _receipt_problems(receipt: np.ndarray | None, frames: np.ndarray) -> list[str]:
    """The receipt is the sum over width and channels: exact for grey levels, to float32's rounding for others."""
    sums = frames.astype(np.float64).sum(axis=(2, 3))
    if receipt is None or receipt.shape != sums.shape:
        return [f"the receipt is {'missing' if receipt is None else f'of shape {receipt.shape}'}, expected {sums.shape}"]
    exact = frames.dtype == np.uint8
    if not (np.array_equal(receipt, sums) if exact else np.allclose(receipt, sums, rtol=1e-5)):
        return [f"the receipt is up to {np.abs(receipt - sums).max():g} away from the sums of the frames sent"]
    return []
