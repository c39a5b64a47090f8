"""Swin Transformers as torch modules whose every shape but the batch is a constant, for a lean graph."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np

from fundus_rt.converters.backends import require
from fundus_rt.converters.pytorch.swin_parts import Grid, SwinBlock, SwinParts, parts_of


def lean_swin(module: Any, input_size: Grid | None = None) -> Any:
    """A module that computes what a Swin Transformer computes, v1 or v2, with every shape but the batch a constant.

    The libraries read heights and widths from each tensor, which a trace turns into chains of Shape, Gather, Mod and Concat;
    here they are the numbers that the network was built for, and the batch is the -1 of each reshape. Padding, rolling and
    cutting into windows are one selection of rows with a constant order, and so is the way back. Position biases, masks and
    attention factors are looked up once. All other weights are shared with `module`.

    Args:
        module: `SwinTransformer` or `SwinTransformerV2` of timm, `SwinTransformer` of torchvision, or
            `SwinForImageClassification` or `Swinv2ForImageClassification` of transformers.
        input_size: height and width, pixels; None: what the module was built for, which torchvision's does not know.

    Returns:
        A module in evaluation mode, float32 [N, 3, H, W] to float32 [N, columns]; None where `module` is no network of
        these classes, or one that they cannot compute at that size.
    """
    module = getattr(module, "classifier_of_transformers", module)
    if input_size is None:
        input_size = _own_input_size(module)
    parts = None if input_size is None else parts_of(module.eval(), input_size)
    return None if parts is None else _module_of(parts, module)


def _own_input_size(module: Any) -> Grid | None:
    size = getattr(getattr(module, "patch_embed", None), "img_size", None)
    size = getattr(getattr(module, "config", None), "image_size", None) if size is None else size
    if isinstance(size, int):
        return size, size
    return None if size is None else (int(size[0]), int(size[1]))


@lru_cache(maxsize=64)
def window_order(grid: Grid, window: Grid, shift: Grid, pad_first: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Where every token of every window comes from, the way back, and which pairs a shifted window keeps apart.

    Args:
        grid: rows and columns of tokens.
        window: rows and columns of a window; the grid is padded to its multiples below and to the right.
        shift: rows and columns by which the grid is rolled up and to the left.
        pad_first: whether the padded grid is rolled (torchvision, transformers) or the rolled grid padded (timm).

    Returns:
        Of each place in the windows, the token there, counted row by row, the number of tokens for padding: int64
        [windows * A]. Of each token, its place in the windows: int64 [tokens]. Which pairs of places in a window come from
        different sides of the picture: bool [windows, A, A], or None without a shift.
    """
    (height, width), (rows, columns) = grid, window
    tokens = height * width
    padding = ((0, -height % rows), (0, -width % columns))
    back = (-shift[0], -shift[1])
    places = np.arange(tokens).reshape(height, width)
    if pad_first:
        places = np.roll(np.pad(places, padding, constant_values=tokens), back, (0, 1))
    else:
        places = np.pad(np.roll(places, back, (0, 1)), padding, constant_values=tokens)
    order = _cut(places, window).reshape(-1)
    inside = np.flatnonzero(order < tokens)
    place = np.empty(tokens, np.int64)
    place[order[inside]] = inside
    if not any(shift):
        return order, place, None
    sides = [_sides(length, *cut) for length, cut in zip(places.shape, zip(window, shift, strict=True), strict=True)]
    regions = _cut(sides[0][:, None] * 3 + sides[1][None], window)
    return order, place, regions[:, :, None] != regions[:, None, :]


def _sides(length: int, window: int, shift: int) -> np.ndarray:
    """Along one side of the rolled grid: 0, 1 in the last window, 2 where the other end of the picture was rolled in."""
    position = np.arange(length)
    return (position >= length - window).astype(int) + (position >= length - shift) if shift else np.zeros(length, int)


def _cut(places: np.ndarray, window: Grid) -> np.ndarray:
    """[H, W] into [windows, A], row by row."""
    height, width = places.shape
    cut = places.reshape(height // window[0], window[0], width // window[1], window[1])
    return cut.transpose(0, 2, 1, 3).reshape(-1, window[0] * window[1])


def _module_of(parts: SwinParts, module: Any) -> Any:
    torch = require("torch")

    class LeanSwin(torch.nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.network = module  # so that a trace finds its parameters

        def forward(self, images: Any) -> Any:
            if any(parts.padding):
                images = torch.nn.functional.pad(images, (0, parts.padding[1], 0, parts.padding[0]))
            (height, width), channels = parts.stages[0].grid, parts.convolution.out_channels
            tokens = parts.convolution(images).reshape(-1, channels, height * width).permute(0, 2, 1)
            tokens = parts.norm_of_patches(tokens)
            for stage, before in zip(parts.stages, (parts.stages[0], *parts.stages), strict=False):
                if stage.merging is not None:
                    tokens = _merge_patches(torch, tokens, stage.merging, before.grid, parts.version)
                for block in stage.blocks:
                    tokens = _run_block(torch, tokens, block, stage.grid, parts)
            return parts.head(parts.norm(tokens).mean(dim=1))

    return LeanSwin().eval()


def _merge_patches(torch: Any, tokens: Any, merging: tuple[Any, Any], grid: Grid, version: int) -> Any:
    """[N, h w, C] to [N, h w / 4, 2 C]: four neighbours, down first; an odd side is padded by one."""
    norm, reduction = merging
    order, _, _ = window_order(grid, (2, 2), (0, 0), True)
    down_first = order.reshape(-1, 4)[:, [0, 2, 1, 3]].reshape(-1)
    tokens = _select(torch, tokens, down_first, grid[0] * grid[1])
    tokens = tokens.reshape(-1, len(order) // 4, reduction.in_features)
    return reduction(norm(tokens)) if version == 1 else norm(reduction(tokens))


def _run_block(torch: Any, tokens: Any, block: SwinBlock, grid: Grid, parts: SwinParts) -> Any:
    """[N, tokens, C] to the same: the norm stands before attention and MLP in v1, after them in v2."""
    first, second = block.norms
    if parts.version == 1:
        tokens = tokens + _attention(torch, first(tokens), block, grid, parts)
        return tokens + block.mlp(second(tokens))
    tokens = tokens + first(_attention(torch, tokens, block, grid, parts))
    return tokens + second(block.mlp(tokens))


def _attention(torch: Any, tokens: Any, block: SwinBlock, grid: Grid, parts: SwinParts) -> Any:
    """Attention inside windows: [N, tokens, C] to the same."""
    order, back, apart = window_order(grid, block.window, block.shift, parts.pad_first)
    area, heads = block.window[0] * block.window[1], block.heads
    width = len(block.weight) // 3
    tokens = _select(torch, tokens, order, grid[0] * grid[1])
    mixed = torch.nn.functional.linear(tokens, block.weight, block.offset)
    mixed = mixed.reshape(-1, area, 3 * heads, width // heads).transpose(1, 2)
    query, key, value = mixed.split(heads, dim=1)
    if block.scale is not None:
        query, key = query * (block.scale / _length(query)), key / _length(key)
    scores = query @ key.transpose(-2, -1) + block.bias
    if apart is not None:
        mask = torch.from_numpy(np.where(apart, np.float32(parts.masked), np.float32(0.0))[:, None])
        scores = (scores.reshape(-1, len(apart), heads, area, area) + mask).reshape(-1, heads, area, area)
    mixed = (scores.softmax(dim=-1) @ value).transpose(1, 2).reshape(-1, len(order), width)
    return _select(torch, block.projection(mixed), back, len(order))


def _length(vectors: Any) -> Any:
    """Euclidean length along the last axis, at least 1e-12, as `torch.nn.functional.normalize` divides by."""
    return vectors.norm(dim=-1, keepdim=True).clamp_min(1e-12)


def _select(torch: Any, tokens: Any, order: np.ndarray, count: int) -> Any:
    """Rows of [N, count, C] in a constant order; the number `count` stands for a row of zeros."""
    if order.max() == count:
        tokens = torch.nn.functional.pad(tokens, (0, 0, 0, 1))
    elif np.array_equal(order, np.arange(count)):
        return tokens
    return tokens.index_select(1, torch.from_numpy(order))
