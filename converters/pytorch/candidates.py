"""What an unknown torch file resembles: its tensors held against those of common networks, for an error that helps."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from typing import Any

from fundus_rt.converters.backends import require, require_timm, require_torchvision
from fundus_rt.converters.checkpoint import numbers_in
from fundus_rt.converters.pytorch.torch_names import plain_names
from fundus_rt.models.errors import BackendUnavailableError

Shapes = dict[str, tuple[int, ...]]

REFERENCES = (
    *(f"timm/resnet{depth}" for depth in (18, 34, 50, 101)),
    "timm/seresnext50_32x4d",
    *(f"timm/densenet{depth}" for depth in (121, 161, 169, 201)),
    "timm/inception_v3",
    "timm/inception_resnet_v2",
    "timm/legacy_xception",
    "timm/vgg16",
    "timm/mobilenetv2_100",
    "timm/mobilenetv3_small_100",
    "timm/mobilenetv3_large_100",
    *(f"timm/efficientnet_b{size}" for size in range(8)),
    *(f"timm/convnext_{size}" for size in ("tiny", "small", "base")),
    *(f"timm/vit_{size}_patch16_224" for size in ("small", "base", "large")),
    "timm/swin_tiny_patch4_window7_224",
    "timm/swin_base_patch4_window7_224",
    "torchvision/vgg16",
    "torchvision/mobilenet_v2",
    "torchvision/mobilenet_v3_small",
    "torchvision/mobilenet_v3_large",
    "torchvision/efficientnet_b0",
    "torchvision/convnext_tiny",
    "torchvision/vit_b_16",
)
"""Networks that the field fine-tunes; timm's, and torchvision's where the names differ."""
BUFFERS = ("running_mean", "running_var", "num_batches_tracked", "relative_position_index", "attn_mask")
LISTED = 3
LEAST = 0.05
"""Share of a network's parameters below which a resemblance is none."""
SEGMENTATION = re.compile(r"(^|\.|_)(up|down|dec|decode|decoder|upsample|upconv|deconv|unet|wnet|outc|segmentation_head)\d*[._]")
FITS = 0.99
"""Share from which a network is taken as found; its positions may be for another input size."""
MOST_VARIANTS = 30
OWN = "for a network of your own, --architecture package.module:factory"


@dataclass(frozen=True)
class Resemblance:
    """How much a file has of a common network, its head left out."""

    name: str
    share: float
    """Of the network's parameters, how many the file has."""
    of_file: float
    """Of the file's parameters, how many those are."""
    missing: tuple[str, ...]
    """The network's tensors that the file has not."""

    @property
    def likeness(self) -> float:
        """The common parameters, twice, over those of both: 1 where they are the same network (Dice's coefficient)."""
        return 2 * self.share * self.of_file / max(1e-9, self.share + self.of_file)

    def __str__(self) -> str:
        more = f" and {len(self.missing) - 2} more" if len(self.missing) > 2 else ""
        lacks = f"; missing {', '.join(self.missing[:2])}{more}" if self.missing else ""
        return f"{self.name} ({100 * self.share:.4g} % of its parameters, {100 * self.of_file:.4g} % of the file's{lacks})"


def nearest_candidates(shapes: Shapes, stated: str = "", source: str = "") -> str:
    """What a file holds, as far as its tensors tell, for an error message: the nearest networks and how to name one.

    Names and shapes are compared with those of common networks (built without memory for their weights), their heads left
    out. Nothing is downloaded.

    Args:
        shapes: shape of every tensor of the file.
        stated: ``timm/NAME`` or ``torchvision/NAME`` that the file, or a configuration beside it, says itself; proposed first.
        source: who says so.

    Returns:
        A noun phrase without a full stop, to be put after "holds".
    """
    found = _told_by_tensors(shapes)
    if not stated:
        return found
    name = stated.partition("/")[2]
    return (
        f"a network that {source} calls {name}: name it with --architecture {stated}, if that is right; by its tensors, {found}"
    )


def _told_by_tensors(shapes: Shapes) -> str:
    if looks_like_segmentation(shapes):
        return (
            "a segmentation network (an encoder and a decoder without any linear layer, as U-Nets have), which answers for "
            "every pixel; only networks that answer with a row of numbers per picture are supported"
        )
    copies = _two_copies(shapes)
    if copies is not None:
        return (
            f"one network twice, under {copies[0]!r} and {copies[1]!r} (the last step's and an average, for example); save the "
            f"state_dict of the one that was evaluated"
        )
    try:
        found = _compared(shapes, REFERENCES)
        found = _compared(shapes, _variants(found[0])) + found if found[0].share >= LEAST else found
    except BackendUnavailableError as error:
        return f"a network that is not known, and that cannot be held against common ones ({error})"
    found = [one for one in sorted(found, key=lambda one: -one.likeness) if one.share >= LEAST][:LISTED]
    if not found:
        return (
            f"a network that is not known: it shares not even {100 * LEAST:g} % with any of {len(REFERENCES)} common ones"
            f"{_alike_in_names(shapes)}; say what it is with --architecture timm/NAME or torchvision/NAME, or {OWN}"
        )
    best = [one.name for one in found if (one.share, one.of_file) == (found[0].share, found[0].of_file)]
    listing = ", ".join(map(str, found))
    return (
        f"a network that its tensors alone do not settle; the nearest, heads left out: {listing}{_twins(best)}; say which it is, "
        f"for example with --architecture {found[0].name}, or {OWN}"
    )


def _two_copies(shapes: Shapes) -> tuple[str, str] | None:
    """First parts of the names under which a file holds the same network twice (a last step and its average)."""
    parts: dict[str, Shapes] = {}
    for name, shape in shapes.items():
        first, _, rest = name.partition(".")
        parts.setdefault(first, {})[rest] = shape
    if len(parts) != 2:
        return None
    (first, one), (second, other) = parts.items()
    plain = [{short: held[name] for name, short in plain_names(held)[0].items()} for held in (one, other)]
    return (first, second) if len(one) > 1 and plain[0] == plain[1] else None


def looks_like_segmentation(shapes: Shapes) -> bool:
    """Whether the tensors are those of an encoder and a decoder of convolutions, with no linear layer."""
    linear = any(len(shape) == 2 for shape in shapes.values())
    layers = [name for name, shape in shapes.items() if len(shape) == 4]
    return bool(layers) and not linear and any(SEGMENTATION.search(name) for name in layers)


def _twins(best: list[str]) -> str:
    """What to say where networks fit equally well, timm's twins with TensorFlow's padding included."""
    is_model = require_timm().is_model
    names = [name for name in best if name.startswith("timm/")]
    twins = [f"timm/tf_{name[5:]}" for name in names if is_model(f"tf_{name[5:]}")]
    if len(best) + len(twins) < 2:
        return ""
    return (
        f"; {' and '.join([*best, *twins])} have the same tensors, and differ, where they do, in padding and BatchNorm's "
        f"epsilon, which the file cannot tell"
    )


def _compared(shapes: Shapes, names: tuple[str, ...]) -> list[Resemblance]:
    """Every named network with the share of its parameters that the file has, and what it lacks; best first."""
    total = sum(numbers_in(shape) for name, shape in shapes.items() if not name.endswith(BUFFERS))
    scored = []
    for name in names:
        reference = _reference_shapes(name)
        own = sum(numbers_in(shape) for shape in reference.values())
        given = max(_below_prefixes(shapes, reference), key=lambda one: _fitting(one, reference))
        fitting = _fitting(given, reference)
        missing = tuple(tensor for tensor, shape in reference.items() if given.get(tensor) != shape)
        scored.append(Resemblance(name, fitting / own, fitting / max(1, total), missing))
    return sorted(scored, key=lambda one: -one.likeness)


def _variants(nearest: Resemblance) -> tuple[str, ...]:
    """Other networks of timm whose names begin with that of the nearest, where that one does not fit itself."""
    library, _, name = nearest.name.partition("/")
    if library != "timm" or nearest.share > FITS:
        return ()
    return tuple(f"timm/{other}" for other in require_timm().list_models(f"{name}*")[:MOST_VARIANTS] if other != name)


def _fitting(given: Shapes, reference: Shapes) -> int:
    """Parameters of a reference that the file has, under the same name and of the same shape."""
    return sum(numbers_in(shape) for tensor, shape in reference.items() if given.get(tensor) == shape)


def _below_prefixes(shapes: Shapes, reference: Shapes) -> list[Shapes]:
    """The file's tensors as they are named, and by their names below each prefix that a network may be kept under."""
    first = next(iter(reference))
    before = {name[: -len(first)] for name in shapes if name.endswith(f".{first}")}
    before |= {name.partition(".")[0] + "." for name in shapes}
    return [shapes, *({name.removeprefix(one): shape for name, shape in shapes.items()} for one in sorted(before))]


def _alike_in_names(shapes: Shapes) -> str:
    """The common network whose names a file has, though of other widths; empty where there is none."""
    given = {name for name in shapes if not name.endswith(BUFFERS)}
    shares = {}
    for name in REFERENCES:
        reference = set(_reference_shapes(name))
        shares[name] = 2 * len(given & reference) / (len(given) + len(reference))
    best = max(shares, key=lambda name: shares[name])
    return f" in shape, but has the names of {best} ({100 * shares[best]:.3g} % of them)" if shares[best] > 0.5 else ""


@cache
def _reference_shapes(name: str) -> Shapes:
    """Shapes of a common network's trained tensors without its head."""
    torch = require("torch")
    library, _, bare = name.partition("/")
    with torch.device("meta"):
        network: Any
        if library == "timm":
            network = require_timm().create_model(bare, pretrained=False)
            head = network.pretrained_cfg.get("classifier") or "head"
        else:
            network = require_torchvision().models.get_model(bare, weights=None)
            head = [part for part, module in network.named_modules() if isinstance(module, torch.nn.Linear)][-1]
    heads = tuple(f"{part}." for part in (head if isinstance(head, (tuple, list)) else [head]))
    return {tensor: tuple(one.shape) for tensor, one in network.named_parameters() if not tensor.startswith(heads)}
