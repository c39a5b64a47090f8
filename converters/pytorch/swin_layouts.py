"""The four layouts in which Swin Transformers are saved: names, the library's own network, and what tensors tell of windows.

=====================  ==============================================  ==========================  =================
layout                 patch merging                                   head                        buffers in files
=====================  ==============================================  ==========================  =================
Microsoft, timm <0.7   end of a stage, ``layers.0`` to ``layers.2``    ``head``                    masks, positions
timm from 0.9          start of a stage, ``layers.1`` to ``layers.3``  ``head.fc``                 none from 0.9.6
torchvision            ``features.2``, ``.4``, ``.6``                  ``head``                    positions
transformers           end of a stage                                  ``classifier``              positions, up to 4
=====================  ==============================================  ==========================  =================
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from fundus_rt.converters.backends import require, require_timm, require_torchvision
from fundus_rt.models.card import ModelCard
from fundus_rt.models.errors import UnsupportedCheckpointError

Shapes = Mapping[str, tuple[int, ...]]
Grid = tuple[int, int]
BUFFERS = ("relative_position_index", "relative_coords_table", "attn_mask")
"""Last parts of the names of tensors that hold no weights: a network computes them from its sizes."""

LOG_OF_8 = 3.0
"""v2 maps an offset x, scaled to -8 to 8 at the window's edge, to sign(x) log2(1 + |x|) / log2(8)."""


@dataclass(frozen=True)
class SwinSizes:
    """Everything that a Swin Transformer is built from."""

    version: int
    input_size: tuple[int, int]
    """Height and width, pixels."""
    patch: int
    embed: int
    """Channels in the first stage; each further stage has twice as many."""
    depths: tuple[int, ...]
    heads: tuple[int, ...]
    windows: tuple[int, ...]
    """Side of the windows of each stage."""
    pretrained: tuple[int, ...]
    """v2: side of the windows before fine-tuning, by which offsets are scaled; 0 where they are the stage's own."""
    mlp_ratio: float
    qkv_bias: bool
    columns: int
    epsilon: float = 1e-5
    """Of LayerNorm inside the blocks; only transformers' can differ."""
    activation: str = "gelu"
    """Of the MLP; only transformers' can differ."""


@dataclass(frozen=True)
class Layout:
    """How one library names the tensors, and how its network is built."""

    title: str
    package: str
    stem: str
    """Convolution that makes patches."""
    block: str
    """Beginning of the names of a block; formatted with `stage` and `block`."""
    attention: str
    hidden: str
    """Weight of the MLP's first layer, in a block."""
    query_bias: tuple[str, str]
    """Bias of the query in v1 and in v2, in a block."""
    head: str
    build: Callable[[SwinSizes], Any]
    """The library's network, random weights."""
    network_name: Callable[[str], str]
    """The layout's name of a tensor by its name in `build`'s network."""
    file_name: Callable[[str], str] = str
    """The layout's name of a tensor by its name in a file, which may have been written by another release."""

    def stage_of(self, stage: int, block: int) -> str:
        """Beginning of the names of a block."""
        return self.block.format(stage=stage, block=block, feature=2 * stage + 1)


def layout_of(shapes: Shapes) -> Layout | None:
    """The layout of a Swin Transformer's tensors; None where they belong to another network."""
    names = " ".join(shapes)
    if not re.search(r"relative_position_bias_table|cpb_mlp\.|continuous_position_bias_mlp\.", names):
        return None
    if len(shapes.get("patch_embed.proj.weight", ())) == 4 and re.search(r"\blayers\.\d+\.blocks\.\d+\.attn\.", names):
        new = merging_stages(shapes)[:1] == [1] or not merging_stages(shapes)
        return TIMM if new else MICROSOFT
    if len(shapes.get("features.0.0.weight", ())) == 4 and re.search(r"\bfeatures\.1\.\d+\.attn\.", names):
        return TORCHVISION
    patches = re.search(r"(?:^|\s)(?:swin(?:v2)?\.)?embeddings\.patch_embeddings\.projection\.weight\b", names)
    if patches and re.search(r"\bencoder\.layers\.\d+\.blocks\.\d+\.attention\.", names):
        return TRANSFORMERS
    return None


def merging_stages(shapes: Shapes) -> list[int]:
    """Indices at which patch merging is kept, which tell Microsoft's and old timm's names from timm's since 0.9."""
    return sorted({int(m[1]) for name in shapes if (m := re.match(r"layers\.(\d+)\.downsample\.", name))})


def _same(name: str) -> str:
    return name


def _name_in_microsoft(name: str) -> str:
    moved = re.match(r"layers\.(\d+)\.(downsample\..*)", name)
    return f"layers.{int(moved[1]) - 1}.{moved[2]}" if moved else name.replace("head.fc.", "head.")


def _file_in_microsoft(name: str) -> str:
    return name.replace("head.fc.", "head.")


def _name_in_transformers(name: str) -> str:
    """Names of transformers 4 without ``swin.``; release 5 renamed v1's layers, and files of both are about."""
    name = re.sub(r"^swin(v2)?\.", "", name)
    for new, old in (
        ("attention.q_proj.", "attention.self.query."),
        ("attention.k_proj.", "attention.self.key."),
        ("attention.v_proj.", "attention.self.value."),
        ("attention.o_proj.", "attention.output.dense."),
        ("attention.relative_position_bias.", "attention.self."),
        ("mlp.fc1.", "intermediate.dense."),
        ("mlp.fc2.", "output.dense."),
    ):
        name = name.replace(new, old)
    return name


def _build_in_timm(sizes: SwinSizes) -> Any:
    arguments: dict[str, Any] = {
        "img_size": sizes.input_size,
        "patch_size": sizes.patch,
        "num_classes": sizes.columns,
        "embed_dim": sizes.embed,
        "depths": sizes.depths,
        "num_heads": sizes.heads,
        "window_size": tuple((window, window) for window in sizes.windows),
        "mlp_ratio": sizes.mlp_ratio,
        "qkv_bias": sizes.qkv_bias,
    }
    if len(set(sizes.windows)) == 1:
        arguments["window_size"] = sizes.windows[0]
    if sizes.version == 1:
        return require_timm("timm.models.swin_transformer").SwinTransformer(**arguments)
    pretrained = {"pretrained_window_sizes": sizes.pretrained}
    return require_timm("timm.models.swin_transformer_v2").SwinTransformerV2(**arguments, **pretrained)


def _build_in_torchvision(sizes: SwinSizes) -> Any:
    require_torchvision()
    module = require("torchvision.models.swin_transformer")
    own = {"block": module.SwinTransformerBlockV2, "downsample_layer": module.PatchMergingV2} if sizes.version == 2 else {}
    return module.SwinTransformer(
        patch_size=[sizes.patch, sizes.patch],
        embed_dim=sizes.embed,
        depths=list(sizes.depths),
        num_heads=list(sizes.heads),
        window_size=[sizes.windows[0], sizes.windows[0]],
        mlp_ratio=sizes.mlp_ratio,
        num_classes=sizes.columns,
        **own,
    )


def _build_in_transformers(sizes: SwinSizes) -> Any:
    require_torchvision()  # transformers imports it where it is installed
    height, width = sizes.input_size
    arguments: dict[str, Any] = {
        "image_size": height if height == width else [height, width],
        "patch_size": sizes.patch,
        "embed_dim": sizes.embed,
        "depths": list(sizes.depths),
        "num_heads": list(sizes.heads),
        "window_size": sizes.windows[0],
        "mlp_ratio": sizes.mlp_ratio,
        "qkv_bias": sizes.qkv_bias,
        "num_labels": sizes.columns,
        "layer_norm_eps": sizes.epsilon,
        "hidden_act": sizes.activation,
    }
    if sizes.version == 1:
        library = require("transformers.models.swin")
        return library.SwinForImageClassification(library.SwinConfig(**arguments))
    library = require("transformers.models.swinv2")
    config = library.Swinv2Config(**arguments, pretrained_window_sizes=list(sizes.pretrained))
    return library.Swinv2ForImageClassification(config)


MICROSOFT = Layout(
    "layout of Microsoft and timm up to 0.6", "timm", "patch_embed.proj", "layers.{stage}.blocks.{block}.", "attn.",
    "mlp.fc1.weight", ("attn.qkv.bias", "attn.q_bias"), "head", _build_in_timm, _name_in_microsoft, _file_in_microsoft,
)  # fmt: skip
TIMM = Layout(
    "layout of timm from 0.9", "timm", "patch_embed.proj", "layers.{stage}.blocks.{block}.", "attn.",
    "mlp.fc1.weight", ("attn.qkv.bias", "attn.q_bias"), "head.fc", _build_in_timm, _same,
)  # fmt: skip
TORCHVISION = Layout(
    "layout of torchvision", "torchvision", "features.0.0", "features.{feature}.{block}.", "attn.",
    "mlp.0.weight", ("attn.qkv.bias", "attn.qkv.bias"), "head", _build_in_torchvision, _same,
)  # fmt: skip
TRANSFORMERS = Layout(
    "layout of Hugging Face transformers", "transformers", "embeddings.patch_embeddings.projection",
    "encoder.layers.{stage}.blocks.{block}.", "attention.self.", "intermediate.dense.weight",
    ("attention.self.query.bias", "attention.self.query.bias"), "classifier", _build_in_transformers,
    _name_in_transformers, _name_in_transformers,
)  # fmt: skip


def stage_grid(size: Grid, patch: int, stage: int, up: bool = False) -> Grid:
    """Rows and columns of a stage's tokens; every merging halves, rounding up.

    Args:
        size: height and width, pixels.
        patch: side of a patch, pixels.
        stage: from 0.
        up: whether a rest of the picture that fills no patch is padded to one (transformers) or left out.
    """
    scale = 2**stage
    first = [math.ceil(side / patch) if up else side // patch for side in size]
    return math.ceil(first[0] / scale), math.ceil(first[1] / scale)


def windows_of(
    shapes: Shapes, file: str, layout: Layout, version: int, depths: tuple[int, ...], size: Grid, patch: int
) -> tuple[int, ...] | None:
    """Side of the windows of every stage; None where v2's tensors do not tell it.

    A stage whose tensors have the smaller window of a smaller grid is given the first stage's, which shrinks to it again.

    Raises:
        UnsupportedCheckpointError: v1's table of relative positions belongs to no square window.
    """
    sides = [_side(shapes, layout, version, stage, depth) for stage, depth in enumerate(depths)]
    if sides[0] is None or isinstance(sides[0], str):
        if version == 1:
            found = f"{sides[0]} belongs to no square window" if sides[0] else "the first table of relative positions is missing"
            raise UnsupportedCheckpointError(f"{file}: {found}; expected (2 w - 1)^2 rows for windows of w x w")
        return None
    first = sides[0]
    windows = []
    for stage, side in enumerate(sides):
        grid = stage_grid(size, patch, stage)
        shrunk = {min(first, grid[0]), min(first, grid[1])}
        own = isinstance(side, int) and side not in shrunk
        windows.append(side if own and isinstance(side, int) else first)
    return tuple(windows)


def _side(shapes: Shapes, layout: Layout, version: int, stage: int, depth: int) -> int | str | None:
    """Side of a stage's windows; a text where a table's rows fit none, None where no tensor tells it."""
    for block in range(depth):
        where = layout.stage_of(stage, block) + layout.attention
        if version == 1:
            rows = shapes.get(f"{where}relative_position_bias_table", (0,))[0]
            side = math.isqrt(rows)
            if rows and side * side == rows and side % 2:
                return (side + 1) // 2
            return f"a table of {rows} relative positions" if rows else None
        table = shapes.get(f"{where}relative_coords_table", ())
        if len(table) == 4 and table[1] == table[2]:
            return (table[1] + 1) // 2
        area = _area(shapes, where, layout.stage_of(stage, block))
        if area:
            return math.isqrt(area) if math.isqrt(area) ** 2 == area else None
    return None


def _area(shapes: Shapes, attention: str, block: str) -> int:
    """Tokens in a window, by the index of relative positions, flat or not, or by the mask; 0 where neither is stored."""
    index = shapes.get(f"{attention}relative_position_index", ())
    if index:
        return math.isqrt(math.prod(index))
    mask = shapes.get(f"{block}attn_mask", ())
    return mask[-1] if len(mask) == 3 else 0


def pretrained_of(shapes: Shapes, values: Mapping[str, Any], layout: Layout, depths: tuple[int, ...]) -> tuple[int, ...] | None:
    """v2: side of each stage's windows before fine-tuning, 0 where it was the same; None where the file does not tell it.

    The largest entry of a stored table of offsets is log2(1 + 8 (w - 1) / (p - 1)) / 3 with windows of w, before of p.
    """
    found = []
    for stage in range(len(depths)):
        name = f"{layout.stage_of(stage, 0)}{layout.attention}relative_coords_table"
        if name not in shapes or name not in values or len(shapes[name]) != 4:
            return None
        rows = (shapes[name][1] + 1) // 2
        largest = float(values[name].double().max())
        if rows == 1 or not 0.0 < largest < math.inf:
            found.append(0)
            continue
        before = 1 + round(8 * (rows - 1) / (2 ** (LOG_OF_8 * largest) - 1))
        found.append(0 if before == rows else before)
    return tuple(found)


def check_masks(
    shapes: Shapes, card: ModelCard, file: str, patch: int, windows: tuple[int, ...], depths: tuple[int, ...]
) -> None:
    """Hold the card's input size against the number of windows that stored masks tell.

    Raises:
        UnsupportedCheckpointError: the file was built for another size.
    """
    size = card.preprocessing.input_size
    for stage, depth in enumerate(depths):
        names = [f"layers.{stage}.blocks.{block}.attn_mask" for block in range(depth)]
        mask = next((shapes[name] for name in names if name in shapes), None)
        if mask is None:
            continue
        grid = stage_grid((size[0], size[1]), patch, stage)
        rows, columns = min(windows[stage], grid[0]), min(windows[stage], grid[1])
        if math.ceil(grid[0] / rows) * math.ceil(grid[1] / columns) != mask[0]:
            side = math.isqrt(mask[0]) * windows[stage] * patch * 2**stage
            raise UnsupportedCheckpointError(
                f"{file} was built for another input size: {mask[0]} windows of {windows[stage]} x {windows[stage]} at stage "
                f"{stage + 1}, that is {side} x {side} pixels, but the card {card.name!r} prepares {size[0]} x {size[1]}. "
                f"Use a card with preprocessing.input_size [{side}, {side}]."
            )
