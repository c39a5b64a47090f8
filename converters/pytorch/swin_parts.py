"""The parts of a Swin Transformer, taken out of a module of timm, torchvision or Hugging Face transformers.

The three libraries compute the same network (Liu et al., arXiv 2103.14030 and 2111.09883) but differ where a grid of tokens
is no multiple of the window: timm rolls the grid first and pads it with zeros afterwards, torchvision and transformers pad
first and roll the padded grid. They also differ in what becomes of a window larger than the grid (timm and transformers'
v2 shrink it, torchvision pads the grid), in where a shift is dropped, and transformers' v2 adds the mask of shifted windows
twice. What is read here is what each library really does.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fundus_rt.converters.backends import require

Grid = tuple[int, int]
LARGEST_LOGIT_SCALE = math.log(100.0)
"""Upper bound of the learned logarithm of v2's cosine attention factor (section 3.3 of arXiv 2111.09883)."""
LARGEST_BIAS = 16.0
"""v2's position bias is 16 sigmoid(MLP(log-spaced offset)), as the authors' code and all three libraries have it."""
MASKED = -100.0
"""What is added to the score of two tokens that are no neighbours in the picture, in all three libraries."""


@dataclass(frozen=True)
class SwinBlock:
    """One pair of window attention and MLP, its every constant looked up."""

    norms: tuple[Any, Any]
    """Modules: before attention and MLP in v1, after them in v2."""
    weight: Any
    """Query, key and value in one [3 heads d, C]; v1: the query's rows times d to the power of -1/2."""
    offset: Any
    """Their bias [3 heads d], or None."""
    projection: Any
    mlp: Callable[[Any], Any]
    heads: int
    bias: Any
    """Position bias [heads, A, A], A tokens in a window."""
    scale: Any
    """v2: factor of the cosine [heads, 1, 1]; None in v1."""
    window: Grid
    shift: Grid


@dataclass(frozen=True)
class SwinStage:
    """Patch merging (norm, linear layer), None before the first stage, and the blocks on one grid."""

    merging: tuple[Any, Any] | None
    grid: Grid
    blocks: tuple[SwinBlock, ...]


@dataclass(frozen=True)
class SwinParts:
    """A whole network, apart from the library that it came from."""

    version: int
    convolution: Any
    norm_of_patches: Any
    padding: Grid
    """Rows below and columns to the right of the picture, pixels of zeros, before the patches are cut."""
    stages: tuple[SwinStage, ...]
    norm: Any
    head: Any
    pad_first: bool
    """Whether a grid is padded before it is rolled."""
    masked: float
    """What is added to masked scores."""


def parts_of(module: Any, input_size: Grid) -> SwinParts | None:
    """The parts of a Swin Transformer for an input size in pixels; None where the module is another network.

    Only the libraries' own classes count, with average pooling and a linear head: a subclass may compute anything.
    """
    kind = f"{type(module).__module__}.{type(module).__name__}"
    if kind in ("timm.models.swin_transformer.SwinTransformer", "timm.models.swin_transformer_v2.SwinTransformerV2"):
        return _parts_of_timm(module, input_size)
    if kind == "torchvision.models.swin_transformer.SwinTransformer":
        return _parts_of_torchvision(module, input_size)
    if kind.endswith(("modeling_swin.SwinForImageClassification", "modeling_swinv2.Swinv2ForImageClassification")):
        return _parts_of_transformers(module, input_size)
    return None


def halved(grid: Grid) -> Grid:
    """The grid after patch merging: half of it, an odd side padded by one."""
    return (grid[0] + 1) // 2, (grid[1] + 1) // 2


def _parts_of_timm(module: Any, input_size: Grid) -> SwinParts | None:
    linear = require("torch").nn.Linear
    head, patches = module.head, module.patch_embed
    plain = type(head).__name__ == "ClassifierHead" and type(patches).__name__ == "PatchEmbed" and not patches.dynamic_img_pad
    if not plain or module.global_pool != "avg" or not isinstance(head.fc, linear):
        return None
    version = 2 if type(module).__name__.endswith("V2") else 1
    grid, stages = _grid(input_size, patches.proj.kernel_size), []
    for stage in module.layers:
        merging = None
        if hasattr(stage.downsample, "reduction"):
            grid, merging = halved(grid), (stage.downsample.norm, stage.downsample.reduction)
        blocks = tuple(_block_of_timm(block, version) for block in stage.blocks)
        stages.append(SwinStage(merging, grid, blocks))
    return SwinParts(version, patches.proj, patches.norm, (0, 0), tuple(stages), module.norm, head.fc, False, MASKED)


def _block_of_timm(block: Any, version: int) -> SwinBlock:
    torch, attention = require("torch"), block.attn
    weight, offset, scale = _detached(attention.qkv.weight), _detached(attention.qkv.bias), None
    area = block.window_size[0] * block.window_size[1]
    if version == 1:
        weight, offset = _scaled_query(weight, offset, attention.scale)
        bias = _position_bias(attention.relative_position_bias_table, attention.relative_position_index, area)
    else:
        if attention.q_bias is not None:
            offset = torch.cat((attention.q_bias, torch.zeros_like(attention.v_bias), attention.v_bias)).detach()
        scale = _scale_of_cosine(attention.logit_scale)
        bias = _continuous_bias(attention.cpb_mlp, attention, area)
    return SwinBlock(
        (block.norm1, block.norm2), weight, offset, attention.proj, block.mlp, attention.num_heads, bias, scale,
        tuple(block.window_size), tuple(block.shift_size),
    )  # fmt: skip


def _parts_of_torchvision(module: Any, input_size: Grid) -> SwinParts | None:
    features = list(module.features)
    (convolution, _, norm), features = features[0], features[1:]
    if not isinstance(module.head, require("torch").nn.Linear):
        return None
    version = 2 if hasattr(features[0][0].attn, "logit_scale") else 1
    grid, stages, merging = _grid(input_size, convolution.kernel_size), [], None
    for layer in features:
        if hasattr(layer, "reduction"):
            grid, merging = halved(grid), (layer.norm, layer.reduction)
            continue
        stages.append(SwinStage(merging, grid, tuple(_block_of_torchvision(block, version, grid) for block in layer)))
    return SwinParts(version, convolution, norm, (0, 0), tuple(stages), module.norm, module.head, True, MASKED)


def _block_of_torchvision(block: Any, version: int, grid: Grid) -> SwinBlock:
    attention, (rows, columns) = block.attn, block.attn.window_size
    weight, offset, scale = _detached(attention.qkv.weight), _detached(attention.qkv.bias), None
    if version == 1:
        weight, offset = _scaled_query(weight, offset, (weight.shape[1] // attention.num_heads) ** -0.5)
    else:
        scale = _scale_of_cosine(attention.logit_scale)
        if offset is not None:  # the forward pass sets the key's third to zero, whatever is stored there
            offset = offset.clone()
            offset[len(offset) // 3 : 2 * len(offset) // 3] = 0.0
    shift = (0 if rows >= grid[0] else attention.shift_size[0], 0 if columns >= grid[1] else attention.shift_size[1])
    bias = attention.get_relative_position_bias().detach()[0]
    return SwinBlock(
        (block.norm1, block.norm2), weight, offset, attention.proj, block.mlp, attention.num_heads, bias, scale,
        (rows, columns), shift,
    )  # fmt: skip


def _parts_of_transformers(module: Any, input_size: Grid) -> SwinParts | None:
    version = 2 if type(module).__name__.startswith("Swinv2") else 1
    base = module.swinv2 if version == 2 else module.swin
    if not isinstance(module.classifier, require("torch").nn.Linear) or base.embeddings.position_embeddings is not None:
        return None
    convolution = base.embeddings.patch_embeddings.projection
    patch = convolution.kernel_size
    padding = (-input_size[0] % patch[0], -input_size[1] % patch[1])
    grid, stages = _grid((input_size[0] + padding[0], input_size[1] + padding[1]), patch), []
    merging = None
    for stage in base.encoder.layers:
        if version == 1 and min(grid) < module.config.window_size:
            return None  # the library itself stops here: its position bias keeps the larger window
        blocks = tuple(_block_of_transformers(block, version, grid, module.config) for block in stage.blocks)
        stages.append(SwinStage(merging, grid, blocks))
        if stage.downsample is not None:
            grid, merging = halved(grid), (stage.downsample.norm, stage.downsample.reduction)
    masked = MASKED if version == 1 else 2 * MASKED
    norm = base.embeddings.norm
    return SwinParts(version, convolution, norm, padding, tuple(stages), base.layernorm, module.classifier, True, masked)


def _block_of_transformers(block: Any, version: int, grid: Grid, config: Any) -> SwinBlock:
    torch, attention = require("torch"), block.attention
    inner = getattr(attention, "self", attention)  # v1 of transformers from 5 has no inner module and other names
    names = ("query", "key", "value") if hasattr(inner, "query") else ("q_proj", "k_proj", "v_proj")
    layers = [getattr(inner, name) for name in names]
    weight, offset, scale = torch.cat([layer.weight for layer in layers]).detach(), None, None
    if layers[0].bias is not None:
        zeros = torch.zeros_like(layers[0].bias)
        offset = torch.cat([zeros if layer.bias is None else layer.bias for layer in layers]).detach()
    heads = inner.num_attention_heads
    window, shift = block.window_size, block.shift_size
    if version == 1:
        window, shift = config.window_size, 0 if min(grid) <= config.window_size else shift
        weight, offset = _scaled_query(weight, offset, (len(weight) // 3 // heads) ** -0.5)
        tables = getattr(inner, "relative_position_bias", inner)
        bias = _position_bias(tables.relative_position_bias_table, tables.relative_position_index, window**2)
    else:
        scale = _scale_of_cosine(inner.logit_scale)
        bias = _continuous_bias(inner.continuous_position_bias_mlp, inner, window**2)
    projection = attention.o_proj if hasattr(attention, "o_proj") else attention.output.dense
    mlp = block.mlp if hasattr(block, "mlp") else lambda tokens: block.output(block.intermediate(tokens))
    norms = (block.layernorm_before, block.layernorm_after)
    return SwinBlock(norms, weight, offset, projection, mlp, heads, bias, scale, (window, window), (shift, shift))


def _grid(size: Grid, patch: Grid) -> Grid:
    return size[0] // patch[0], size[1] // patch[1]


def _detached(tensor: Any) -> Any:
    return None if tensor is None else tensor.detach()


def _scaled_query(weight: Any, offset: Any, scale: float) -> tuple[Any, Any]:
    """Weight and bias with the query's third multiplied by v1's attention scale."""
    third = len(weight) // 3
    weight = weight.clone()
    weight[:third] *= scale
    if offset is not None:
        offset = offset.clone()
        offset[:third] *= scale
    return weight, offset


def _scale_of_cosine(logit_scale: Any) -> Any:
    return logit_scale.detach().clamp(max=LARGEST_LOGIT_SCALE).exp()


def _position_bias(table: Any, index: Any, area: int) -> Any:
    """[heads, A, A] out of a table [rows, heads] and the row of every pair of tokens."""
    return table.detach()[index.reshape(-1)].reshape(area, area, -1).permute(2, 0, 1).contiguous()


def _continuous_bias(mlp: Any, buffers: Any, area: int) -> Any:
    """v2's [heads, A, A]: what its MLP answers for the offset of every pair of tokens."""
    torch = require("torch")
    with torch.no_grad():
        table = mlp(buffers.relative_coords_table).flatten(0, 2)
    return LARGEST_BIAS * torch.sigmoid(_position_bias(table, buffers.relative_position_index, area))
