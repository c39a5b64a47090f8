"""Swin Transformers (v1): every hyperparameter read from the tensors, in the layouts of Microsoft and timm.

Names and shapes follow Liu et al., "Swin Transformer" (arXiv 2103.14030), as microsoft/Swin-Transformer and
huggingface/pytorch-image-models store them. The two layouts differ in where a stage's patch merging is kept: at the end of
the stage before it (Microsoft, timm up to 0.6.13: ``layers.0`` to ``layers.2``) or at the start of its own (timm from 0.9:
``layers.1`` to ``layers.3``). The order of the four merged patches is the same in both.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from fundus_rt.converters.architecture import Architecture, account_for
from fundus_rt.converters.backends import require, require_timm_swin
from fundus_rt.converters.checkpoint import Checkpoint
from fundus_rt.models.card import ModelCard
from fundus_rt.models.errors import UnsupportedCheckpointError

Shapes = Mapping[str, tuple[int, ...]]

VARIANTS: dict[tuple[int, tuple[int, ...]], str] = {
    (96, (2, 2, 6, 2)): "Swin-T",
    (96, (2, 2, 18, 2)): "Swin-S",
    (128, (2, 2, 18, 2)): "Swin-B",
    (192, (2, 2, 18, 2)): "Swin-L",
}
"""Embedding width and depths of the published variants (table 7 of the paper)."""

TABLE = "layers.{}.blocks.{}.attn.relative_position_bias_table"
BUFFERS = ("relative_position_index", "attn_mask")


def looks_like_swin(shapes: Shapes) -> bool:
    """Whether these are the tensors of a Swin Transformer in Microsoft's or timm's names, v2 included."""
    return len(shapes.get("patch_embed.proj.weight", ())) == 4 and any(
        re.match(r"layers\.0\.blocks\.0\.attn\.(relative_position_bias_table|cpb_mlp)", name) for name in shapes
    )


def identify_swin(checkpoint: Checkpoint, card: ModelCard) -> Architecture:
    """Read a Swin Transformer's hyperparameters from its tensors.

    Embedding width, patch, depths, heads, windows, MLP widths, number of outputs; the input size from ``attn_mask`` where
    the file has it, else from the card. The layout is told by the patch merging alone, never by the head's name.

    Raises:
        UnsupportedCheckpointError: Swin v2, a replaced head whose meaning the tensors do not show, another input size than
            the file was built for, tensors missing or left over.
    """
    shapes, file = checkpoint.shapes, checkpoint.path.name
    if any(name.endswith(("logit_scale", "cpb_mlp.0.weight")) for name in shapes):
        raise UnsupportedCheckpointError(
            f"{file} holds a Swin Transformer v2, not supported yet; the card {card.name!r} takes v1"
        )
    embed, channels, patch, _ = shapes["patch_embed.proj.weight"]
    if channels != 3:
        raise UnsupportedCheckpointError(f"{file} holds a Swin Transformer for {channels} channels, expected 3 (colour)")
    depths, heads, window = _stages(shapes, file)
    shift, layout = _layout(shapes, file, len(depths))
    size = _input_size(shapes, card, file, patch, window, depths)
    names = {name: _name_in_timm(name, shift) for name in shapes if not name.endswith(BUFFERS)}
    head = _head(shapes, file, shift)
    names |= {f"{head}.{part}": f"head.fc.{part}" for part in ("weight", "bias") if f"{head}.{part}" in shapes}
    columns = shapes[f"{head}.weight"][0]
    hidden = shapes.get("layers.0.blocks.0.mlp.fc1.weight", (4 * embed,))[0]
    parameters = {
        "img_size": size,
        "patch_size": patch,
        "num_classes": columns,
        "embed_dim": embed,
        "depths": depths,
        "num_heads": heads,
        "window_size": window,
        "mlp_ratio": hidden / embed,
        "qkv_bias": "layers.0.blocks.0.attn.qkv.bias" in shapes,
    }
    unused = {
        name: f"{name.rpartition('.')[2]}, a buffer that the network computes itself" for name in shapes if name.endswith(BUFFERS)
    }
    account = account_for(checkpoint, names, swin_shapes(parameters), unused)
    variant = VARIANTS.get((embed, depths), f"Swin of width {embed} and depths {'-'.join(map(str, depths))}")
    described = (
        f"{variant}, patch {patch}, window {window}, {size[0]} x {size[1]} pixels, {columns} "
        f"output{'s' if columns > 1 else ''}, {layout}"
    )
    return Architecture("swin", described, size, columns, "none", account, parameters, names)


def swin_shapes(parameters: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Name and shape of every parameter of timm's `SwinTransformer` built with these arguments."""
    embed, patch, outputs = parameters["embed_dim"], parameters["patch_size"], parameters["num_classes"]
    shapes: dict[str, tuple[int, ...]] = {
        "patch_embed.proj.weight": (embed, 3, patch, patch),
        "patch_embed.proj.bias": (embed,),
    }

    def norm(name: str, width: int) -> None:
        shapes.update({f"{name}.weight": (width,), f"{name}.bias": (width,)})

    def linear(name: str, inputs: int, outputs: int, bias: bool = True) -> None:
        shapes[f"{name}.weight"] = (outputs, inputs)
        if bias:
            shapes[f"{name}.bias"] = (outputs,)

    norm("patch_embed.norm", embed)
    for stage, depth in enumerate(parameters["depths"]):
        width = embed * 2**stage
        if stage:
            norm(f"layers.{stage}.downsample.norm", 2 * width)
            linear(f"layers.{stage}.downsample.reduction", 2 * width, width, bias=False)
        rows, columns = stage_window(parameters["window_size"], parameters["img_size"], patch, stage)
        for block in range(depth):
            where, hidden = f"layers.{stage}.blocks.{block}", int(width * parameters["mlp_ratio"])
            norm(f"{where}.norm1", width)
            norm(f"{where}.norm2", width)
            shapes[f"{where}.attn.relative_position_bias_table"] = (
                (2 * rows - 1) * (2 * columns - 1),
                parameters["num_heads"][stage],
            )
            linear(f"{where}.attn.qkv", width, 3 * width, parameters["qkv_bias"])
            linear(f"{where}.attn.proj", width, width)
            linear(f"{where}.mlp.fc1", width, hidden)
            linear(f"{where}.mlp.fc2", hidden, width)
    norm("norm", width)
    linear("head.fc", width, outputs)
    return shapes


def stage_resolution(size: tuple[int, int], patch: int, stage: int) -> tuple[int, int]:
    """Height and width of a stage's grid of tokens; every merging halves, rounding up."""
    scale = 2**stage
    return math.ceil(size[0] // patch / scale), math.ceil(size[1] // patch / scale)


def stage_window(window: int, size: tuple[int, int], patch: int, stage: int) -> tuple[int, int]:
    """Height and width of a stage's windows: no window is larger than the grid."""
    height, width = stage_resolution(size, patch, stage)
    return min(window, height), min(window, width)


def build_swin(checkpoint: Checkpoint, architecture: Architecture) -> Any:
    """The network in timm with the file's weights, all of them, in float32, ready to answer.

    Raises:
        UnsupportedCheckpointError: a stored buffer differs from what the network computes itself, so the file was made by
            code that is not the Swin Transformer known here.
        BackendUnavailableError: torch or timm is missing.
    """
    torch = require("torch")
    network = require_timm_swin().SwinTransformer(**architecture.parameters)
    state = {new: checkpoint.state[old].to(torch.float32) for old, new in architecture.names.items()}
    network.load_state_dict(state, strict=True)
    own = dict(network.named_buffers())
    for name in architecture.account.unused:
        computed = own.get(name)
        stored = checkpoint.state[name]
        if (
            computed is None
            or computed.shape != stored.shape
            or not torch.equal(computed.to(torch.float32), stored.to(torch.float32))
        ):
            raise UnsupportedCheckpointError(
                f"{checkpoint.path.name}: the buffer {name} {list(stored.shape)} is not the one that a Swin Transformer at "
                f"{architecture.input_size} has; the file comes from changed code and would be computed wrongly"
            )
    return network.eval()


def _stages(shapes: Shapes, file: str) -> tuple[tuple[int, ...], tuple[int, ...], int]:
    """Depth and heads of every stage, and the window, which the first stage's table of positions tells."""
    depths: list[int] = []
    heads: list[int] = []
    rows = shapes.get(TABLE.format(0, 0), (0,))[0]
    side = math.isqrt(rows)
    if side * side != rows or side % 2 == 0:
        raise UnsupportedCheckpointError(
            f"{file}: a table of {rows} relative positions belongs to no square window; expected (2 w - 1)^2 rows"
        )
    while TABLE.format(len(depths), 0) in shapes:
        stage = len(depths)
        depth = 0
        while TABLE.format(stage, depth) in shapes:
            depth += 1
        depths.append(depth)
        heads.append(shapes[TABLE.format(stage, 0)][1])
    return tuple(depths), tuple(heads), (side + 1) // 2


def _layout(shapes: Shapes, file: str, stages: int) -> tuple[int, str]:
    """How far patch merging has to be moved to be where timm keeps it now, and the layout's name."""
    found = sorted({int(m[1]) for name in shapes if (m := re.match(r"layers\.(\d+)\.downsample\.", name))})
    if found == list(range(stages - 1)):
        stored = any(name.endswith("attn_mask") for name in shapes)
        return 1, "layout of Microsoft and timm up to 0.6" + (" with its buffers" if stored else "")
    if found == list(range(1, stages)):
        return 0, "layout of timm from 0.9"
    raise UnsupportedCheckpointError(
        f"{file}: patch merging at stages {found} of {stages}; expected {list(range(stages - 1))} (Microsoft, old timm) or "
        f"{list(range(1, stages))} (new timm)"
    )


def _name_in_timm(name: str, shift: int) -> str:
    moved = re.match(r"layers\.(\d+)\.(downsample\..*)", name)
    return f"layers.{int(moved[1]) + shift}.{moved[2]}" if moved else name


def _head(shapes: Shapes, file: str, shift: int) -> str:
    """Name of the linear layer that gives the outputs.

    In timm's new layout ``head`` is a module that pools first and holds the linear layer as ``head.fc``. A plain
    ``head.weight`` there means that the author replaced the module and with it the pooling.
    """
    heads = sorted({name.rpartition(".")[0] for name in shapes if name.startswith("head")})
    expected = "head" if shift else "head.fc"
    if heads == [expected] and len(shapes.get(f"{expected}.weight", ())) == 2:
        return expected
    if not heads:
        raise UnsupportedCheckpointError(
            f"{file} holds a Swin Transformer without a head: features, no answer. Ask for the file of the whole network."
        )
    if heads == ["head"] and not shift:
        raise UnsupportedCheckpointError(
            f"{file} is in the layout of timm from 0.9, but its head is a plain linear layer ('head.weight'). There the "
            f"head does the pooling too, so the network as saved answers with four dimensions, [N, H, W, outputs], and how "
            f"the authors made one answer of them is not in the file. Ask them; if they averaged, rename head.* to head.fc.*."
        )
    if heads == ["head.fc"] and shift:
        return "head.fc"
    raise UnsupportedCheckpointError(
        f"{file} has a head of its own ({', '.join(heads)}); expected one linear layer {expected!r}. What lies between its "
        f"layers (activations, pooling) is not in the tensors, so it cannot be rebuilt; ask for the code."
    )


def _input_size(shapes: Shapes, card: ModelCard, file: str, patch: int, window: int, depths: tuple[int, ...]) -> tuple[int, int]:
    """The card's input size, held against the number of windows that stored masks tell."""
    size = card.preprocessing.input_size
    for stage in range(len(depths)):
        mask = next((shapes[n] for n in shapes if re.match(rf"layers\.{stage}\.blocks\.\d+\.attn_mask$", n)), None)
        height, width = stage_resolution(size, patch, stage)
        rows, columns = stage_window(window, size, patch, stage)
        if mask is None:
            continue
        if math.ceil(height / rows) * math.ceil(width / columns) != mask[0]:
            side = math.isqrt(mask[0]) * window * patch * 2**stage
            raise UnsupportedCheckpointError(
                f"{file} was built for another input size: {mask[0]} windows of {window} x {window} at stage {stage + 1}, "
                f"that is {side} x {side} pixels, but the card {card.name!r} prepares {size[0]} x {size[1]}. Use a card "
                f"with preprocessing.input_size [{side}, {side}]."
            )
    return size[0], size[1]
