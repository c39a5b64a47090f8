"""Which network a checkpoint holds, concluded from the file and held against the card."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from fundus_rt.converters.checkpoint import Checkpoint, numbers_in
from fundus_rt.models.card import ModelCard
from fundus_rt.models.errors import UnsupportedCheckpointError, UsageError

GRAPH_FAMILIES = ("onnx", "saved-model")
"""Files that hold a graph, whose family cannot be told: accepted for any card, with a warning of the architecture."""
SHOWN = 6
"""How many names an error lists before it says how many more there are."""


@dataclass(frozen=True)
class LoadAccount:
    """What became of every tensor of the file."""

    file_tensors: int
    file_parameters: int
    used_tensors: int
    used_parameters: int
    network_parameters: int
    """Parameters that the network has; equal to `used_parameters`, or the checkpoint is refused."""
    unused: dict[str, str] = field(default_factory=dict)
    """Tensors not used, with the reason for each."""

    def __str__(self) -> str:
        share = 100.0 * self.used_parameters / max(1, self.network_parameters)
        shown = "100" if self.used_parameters == self.network_parameters else f"{min(share, 99.99):.4g}"
        text = (
            f"{self.used_tensors} of the file's {self.file_tensors} tensors used; {shown} % of the network's "
            f"{self.network_parameters:,} parameters come from the file"
        )
        reasons: dict[str, int] = {}
        for reason in self.unused.values():
            reasons[reason] = reasons.get(reason, 0) + 1
        return text + "".join(f"; {count} not used: {reason}" for reason, count in reasons.items())


class Network(Protocol):
    """A network in the framework that it was published for, with the file's weights in it, ready to answer."""

    def answers(self, images: np.ndarray) -> np.ndarray:
        """The framework's own answers.

        Args:
            images: float32 [N, H, W, 3], normalised, in the network's colour order.

        Returns:
            float32, first axis N, as the network gives them: [N, columns] for a network that can be shipped.
        """
        ...

    def graph(self) -> Any:
        """The network as an `onnx.ModelProto`: one input float32 [N, 3, H, W] or [N, H, W, 3], N dynamic, one output."""
        ...

    def close(self) -> None:
        """Give the framework's memory back."""
        ...


@dataclass(frozen=True)
class Architecture:
    """A network, identified from its checkpoint."""

    family: str
    """Family name as cards list it, for example ``swin`` or ``efficientnet-b7``."""
    description: str
    """For the reader: variant, window, input size, layout of the file."""
    input_size: tuple[int, int]
    """Height and width in pixels."""
    columns: int
    """Numbers per image that the network gives."""
    activation: str | None
    """What the network already applies at its end, as `activation_inside` of `converters.graphs.graph_ending` names it. None:
    only its graph tells."""
    account: LoadAccount
    build: Callable[[], Network] = field(repr=False)
    """Builds the network in its framework and loads every tensor of the account."""
    exporter: str
    """What writes its graph, for the card's provenance."""
    packages: tuple[str, ...]
    """Packages whose versions the card's provenance states."""
    notes: tuple[str, ...] = ()
    """What the reader is told about the network beside its description, one sentence each."""
    warnings: tuple[str, ...] = ()
    """What the file cannot tell and was taken for granted, one sentence each."""


def identify_architecture(checkpoint: Checkpoint, card: ModelCard, named: str | None = None) -> Architecture:
    """Say which network a checkpoint holds, from its tensors or its own configuration, never from its file name.

    Args:
        checkpoint: as `read_checkpoint` gives it.
        card: what is expected: families, input size.
        named: what the caller says it is, ``timm/NAME``, ``torchvision/NAME`` or ``package.module:factory``; then the card's
            families are not asked.

    Returns:
        The architecture, every parameter of which is accounted for.

    Raises:
        UnsupportedCheckpointError: another network than the card expects, one that is not supported, tensors missing or
            left over, another input size, another order of the classes; the message says what was found and what was expected.
        UsageError: `named` is neither form, or cannot be imported.
    """
    if named is not None and checkpoint.framework != "pytorch":
        raise UsageError(
            f"{checkpoint.path.name} ({checkpoint.format}) says itself which network it is; --architecture is for files of "
            f"PyTorch, which hold tensors only. Leave it out."
        )
    architecture = _identify(checkpoint, card, named)
    if named is None and architecture.family not in (*card.families, *GRAPH_FAMILIES):
        raise refusal(checkpoint, card, architecture.description)
    if architecture.input_size != card.preprocessing.input_size:
        height, width = architecture.input_size
        raise UnsupportedCheckpointError(
            f"{checkpoint.path.name} holds a network for {height} x {width} pixels, but the card {card.name!r} prepares "
            f"{card.preprocessing.input_size[0]} x {card.preprocessing.input_size[1]}. Use a card with "
            f"preprocessing.input_size [{height}, {width}]."
        )
    from fundus_rt.converters.statements import held_against_statements

    by_card = architecture.family if "?" in architecture.family else ""
    return held_against_statements(checkpoint, card, architecture, named or by_card)


def _identify(checkpoint: Checkpoint, card: ModelCard, named: str | None) -> Architecture:
    """The one module that knows this kind of file; each is imported only when it is needed."""
    if checkpoint.framework == "onnx":
        from fundus_rt.converters.graphs.foreign_onnx import identify_onnx

        return identify_onnx(checkpoint, card)
    if checkpoint.framework == "tensorflow":
        from fundus_rt.converters.tensorflow.saved_model import identify_saved_model

        return identify_saved_model(checkpoint, card)
    if checkpoint.framework == "keras" and checkpoint.keras_version.startswith("3."):
        from fundus_rt.converters.tensorflow.keras3_export import identify_keras3

        return identify_keras3(checkpoint, card)
    if checkpoint.framework == "keras":
        from fundus_rt.converters.tensorflow.keras_families import identify_keras

        return identify_keras(checkpoint, card)
    return _identify_torch(checkpoint, card, named)


def _identify_torch(checkpoint: Checkpoint, card: ModelCard, named: str | None) -> Architecture:
    """A torch network: what the caller says it is, the pickled module itself, what the card names, what the tensors show."""
    named = named or next((family for family in card.families if family.startswith(("timm/", "torchvision/"))), None)
    if named is not None:
        from fundus_rt.converters.pytorch.named_networks import identify_named

        return identify_named(checkpoint, card, named)
    from fundus_rt.converters.pytorch.swin import identify_swin, looks_like_swin

    if looks_like_swin(checkpoint.shapes):
        from fundus_rt.converters.pytorch.named_networks import answered_by_module

        return answered_by_module(checkpoint, identify_swin(checkpoint, card))
    from fundus_rt.converters.pytorch.resnet import identify_resnet, looks_like_resnet

    if looks_like_resnet(checkpoint.shapes):
        return identify_resnet(checkpoint, card)
    if checkpoint.module is not None:
        from fundus_rt.converters.pytorch.named_networks import identify_module

        return identify_module(checkpoint, card)
    from fundus_rt.converters.pytorch.candidates import nearest_candidates
    from fundus_rt.converters.pytorch.stated import stated_title

    raise refusal(checkpoint, card, nearest_candidates(checkpoint.shapes, *stated_title(checkpoint)))


def refusal(checkpoint: Checkpoint, card: ModelCard, found: str) -> UnsupportedCheckpointError:
    """The error for a checkpoint of another network than the card's, with the account of its tensors."""
    examples = ", ".join(f"{name} {list(shape)}" for name, shape in list(checkpoint.shapes.items())[:3])
    return UnsupportedCheckpointError(
        f"{checkpoint.path.name} holds {found}. The card {card.name!r} expects {' or '.join(card.families)}. None of "
        f"its {len(checkpoint.shapes)} tensors ({checkpoint.parameters:,} numbers; first: {examples}) was used. Choose the "
        f"card that belongs to the file (fundus-rt models list), or the file that belongs to the card."
    )


def account_for(
    checkpoint: Checkpoint, names: dict[str, str], expected: dict[str, tuple[int, ...]], unused: dict[str, str]
) -> LoadAccount:
    """Hold the tensors of a file against those of a network; every one has to be used, or left aside for a reason.

    Args:
        checkpoint: the file.
        names: name in the network of each tensor of the file that is meant for it.
        expected: shape of every tensor of the network.
        unused: tensors of the file that are rightly not used, with the reason.

    Raises:
        UnsupportedCheckpointError: one list of everything that is missing, left over or of another shape.
    """
    shapes = checkpoint.shapes
    given = {names[name]: shapes[name] for name in names}
    missing = [f"{name} {list(shape)}" for name, shape in expected.items() if name not in given]
    left_over = [f"{name} {list(shapes[name])}" for name in shapes if name not in unused and names.get(name) not in expected]
    misshapen = [
        f"{name} {list(given[name])} where {list(shape)} is needed"
        for name, shape in expected.items()
        if name in given and given[name] != shape
    ]
    used = {name: shape for name, shape in expected.items() if given.get(name) == shape}
    account = LoadAccount(
        len(shapes),
        checkpoint.parameters,
        len(used),
        sum(numbers_in(shape) for shape in used.values()),
        sum(numbers_in(shape) for shape in expected.values()),
        unused,
    )
    places: dict[str, list[str]] = {}
    for name in names:
        if name not in unused:
            places.setdefault(names[name], []).append(name)
    twice = [f"{' and '.join(found)} for {place}" for place, found in places.items() if len(found) > 1]
    listing = ""
    for word, found in (
        ("missing in the file", missing), ("left over", left_over), ("of another shape", misshapen), ("in one place", twice),
    ):  # fmt: skip
        if found:
            more = f" and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
            listing += f"\n  {len(found)} {word}: {', '.join(found[:SHOWN])}{more}"
    if listing:
        raise UnsupportedCheckpointError(
            f"{checkpoint.path.name} does not fit its network to the last weight: {account}.{listing}\n"
            f"A network loaded in part gives wrong answers, so nothing is converted; ask for the file that was evaluated."
        )
    return account
