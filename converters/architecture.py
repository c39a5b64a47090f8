"""Which network a checkpoint holds, concluded from the file and held against the card."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from fundus_rt.converters.checkpoint import Checkpoint, numbers_in
from fundus_rt.models.card import ModelCard
from fundus_rt.models.errors import UnsupportedCheckpointError

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
        text = (
            f"{self.used_tensors} of the file's {self.file_tensors} tensors used; {share:.4g} % of the network's "
            f"{self.network_parameters:,} parameters come from the file"
        )
        reasons: dict[str, int] = {}
        for reason in self.unused.values():
            reasons[reason] = reasons.get(reason, 0) + 1
        return text + "".join(f"; {count} not used: {reason}" for reason, count in reasons.items())


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
    activation: str
    """What the network already applies at its end: ``none``, ``sigmoid`` or ``softmax``."""
    account: LoadAccount
    parameters: dict[str, Any] = field(default_factory=dict)
    """Arguments with which the network is built (torch)."""
    names: dict[str, str] = field(default_factory=dict, repr=False)
    """Name in the network of each used tensor of the file (torch)."""


def identify_architecture(checkpoint: Checkpoint, card: ModelCard) -> Architecture:
    """Say which network a checkpoint holds, from its tensors or its own configuration, never from its name.

    Args:
        checkpoint: as `read_checkpoint` gives it.
        card: what is expected: families, input size.

    Returns:
        The architecture, every parameter of which is accounted for.

    Raises:
        UnsupportedCheckpointError: another network than the card expects, one that is not supported, tensors missing or
            left over, another input size; the message says what was found and what was expected.
    """
    from fundus_rt.converters.keras_families import identify_keras
    from fundus_rt.converters.swin import identify_swin, looks_like_swin

    if checkpoint.framework == "keras":
        architecture = identify_keras(checkpoint, card)
    elif looks_like_swin(checkpoint.shapes):
        architecture = identify_swin(checkpoint, card)
    else:
        raise refusal(checkpoint, card, describe_torch_network(checkpoint.shapes))
    if architecture.family not in card.families:
        raise refusal(checkpoint, card, architecture.description)
    if architecture.input_size != card.preprocessing.input_size:
        height, width = architecture.input_size
        raise UnsupportedCheckpointError(
            f"{checkpoint.path.name} holds a network for {height} x {width} pixels, but the card {card.name!r} prepares "
            f"{card.preprocessing.input_size[0]} x {card.preprocessing.input_size[1]}. Use a card with "
            f"preprocessing.input_size [{height}, {width}]."
        )
    return architecture


def refusal(checkpoint: Checkpoint, card: ModelCard, found: str) -> UnsupportedCheckpointError:
    """The error for a checkpoint of another network than the card's, with the account of its tensors."""
    examples = ", ".join(f"{name} {list(shape)}" for name, shape in list(checkpoint.shapes.items())[:3])
    return UnsupportedCheckpointError(
        f"{checkpoint.path.name} holds {found}, but the card {card.name!r} expects {' or '.join(card.families)}. None of "
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
    listing = ""
    for word, found in (("missing in the file", missing), ("left over", left_over), ("of another shape", misshapen)):
        if found:
            more = f" and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
            listing += f"\n  {len(found)} {word}: {', '.join(found[:SHOWN])}{more}"
    if listing:
        raise UnsupportedCheckpointError(
            f"{checkpoint.path.name} does not fit its network to the last weight: {account}.{listing}\n"
            f"A network loaded in part gives wrong answers, so nothing is converted; ask for the file that was evaluated."
        )
    return account


def describe_torch_network(shapes: dict[str, tuple[int, ...]]) -> str:
    """A guess, for an error message, at what network a torch state_dict belongs to."""
    names = set(shapes)

    def has(*parts: str) -> bool:
        return all(any(part in name for name in names) for part in parts)

    if has("layer1.0.conv1.weight", "layer4."):
        blocks = [len({n.split(".")[1] for n in names if n.startswith(f"layer{i}.")}) for i in (1, 2, 3, 4)]
        kind = "bottleneck" if has("layer1.0.conv3.weight") else "basic"
        return f"a ResNet ({kind} blocks {'-'.join(map(str, blocks))}, torchvision's names), not supported yet"
    for parts, found in (
        (("layer1.0.conv1.weight", "layer3."), "a small ResNet with three stages"),
        (
            ("features.1.0.attn.relative_position_bias_table",),
            "a Swin Transformer in torchvision's layout, not supported yet",
        ),
        (("attention.self.query", "relative_position_bias_table"), "a Swin Transformer of Hugging Face, not supported yet"),
        (("cls_token", "blocks.0.attn.qkv.weight"), "a Vision Transformer"),
        (("conv_stem.weight", "conv_head.weight"), "an EfficientNet or MobileNetV3 of timm"),
        (("features.denseblock1",), "a DenseNet of torchvision"),
        (("stages.0.blocks.0.conv_dw.weight",), "a ConvNeXt of timm"),
        (("Mixed_5b", "Mixed_7c"), "an Inception-v3 of torchvision"),
    ):
        if has(*parts):
            return found
    return "a network that is not known"
