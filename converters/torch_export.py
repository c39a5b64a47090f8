"""A Swin network of timm: its reference answers, and its ONNX graph.

Which exporter. Both of torch 2.13's, on timm's own forward pass and on `swin_for_export` below, which computes the same from
the same weights (384 x 384, window 12, random weights, ONNX Runtime 1.31, batch 1, two cores of a Cascade Lake):

| network | exported                     | seconds | peak memory | nodes | ONNX Runtime, ms, least of the runs |
|---------|------------------------------|---------|-------------|-------|-------------------------------------|
| Swin-T  | TorchScript, timm's forward  | 4.8     | 1.7 GiB     | 3,477 | 891                                 |
| Swin-T  | dynamo, timm's forward       | 25.5    | 1.0 GiB     | 680   | 975                                 |
| Swin-T  | TorchScript, swin_for_export | 4.3     | 1.2 GiB     | 543   | 864                                 |
| Swin-B  | TorchScript, timm's forward  | 18.3    | 3.6 GiB     | 6,735 | not in the same run                 |
| Swin-B  | dynamo, timm's forward       | 69.2    | 1.9 GiB     | 1,352 | not in the same run                 |
| Swin-B  | TorchScript, swin_for_export | 19.3    | 2.2 GiB     | 1,077 | not in the same run                 |

The last column was taken in turns on a busy machine: read it as ratios. The rows of `swin_for_export` count the nodes and the
memory of a whole conversion. So TorchScript, on a forward pass whose shapes are numbers: a quarter of the time, no onnxscript
to install, opset 17 and IR 8 as TensorRT 10.3 and JetPack 6 read them (the dynamo exporter writes IR 10 and the initializers
that TensorRT 10.3's parser is reported to reject), fewer nodes than either, and no Shape, Gather or Mod left in the graph.
"""

from __future__ import annotations

import io
from typing import Any

import numpy as np

from fundus_rt.converters.backends import quiet_tracing, require
from fundus_rt.converters.parity import REFERENCE_BATCH

OPSET = 17
"""First opset with LayerNormalization as one operator, which stays sound in fp16; read by TensorRT 10.3."""


def torch_answers(network: Any, images: np.ndarray) -> np.ndarray:
    """Answers of a torch network on prepared images.

    Args:
        network: a module in evaluation mode.
        images: float32 [N, H, W, 3], normalised, in the network's colour order.

    Returns:
        float32, first axis N.
    """
    torch = require("torch")
    parts = []
    with torch.inference_mode():
        for start in range(0, len(images), REFERENCE_BATCH):
            batch = np.ascontiguousarray(images[start : start + REFERENCE_BATCH].transpose(0, 3, 1, 2))
            parts.append(network(torch.from_numpy(batch)).float().numpy())
    return np.concatenate(parts)


def onnx_from_swin(network: Any, input_size: tuple[int, int]) -> Any:
    """Export timm's `SwinTransformer` with a dynamic batch.

    Args:
        network: as `build_swin` gives it, in evaluation mode.
        input_size: height and width, pixels.

    Returns:
        An `onnx.ModelProto` with the input ``images`` float32 [N, 3, H, W] and the output ``answers`` [N, columns].
    """
    torch, onnx = require("torch"), require("onnx")
    example = torch.zeros(2, 3, *input_size)
    buffer = io.BytesIO()
    with quiet_tracing(), torch.inference_mode():
        torch.onnx.export(
            swin_for_export(network),
            (example,),
            buffer,
            dynamo=False,
            opset_version=OPSET,
            input_names=["images"],
            output_names=["answers"],
            dynamic_axes={"images": {0: "N"}, "answers": {0: "N"}},
        )
    return onnx.load_from_string(buffer.getvalue())


def swin_for_export(network: Any) -> Any:
    """A module that computes what timm's `SwinTransformer` computes, with every shape but the batch a constant.

    timm reads heights and widths from each tensor, which a trace turns into chains of Shape, Gather, Mod and Concat; here
    they are the numbers that the network was built for, and the batch is the -1 of each reshape. The tables of relative
    positions are looked up once. Weights are shared with `network`.
    """
    torch = require("torch")

    class SwinForExport(torch.nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.network = network
            for block in (block for stage in network.layers for block in stage.blocks):
                bias = block.attn._get_rel_pos_bias().detach().clone()
                block.attn.register_buffer("position_bias", bias, persistent=False)

        def forward(self, images: Any) -> Any:
            tokens = self.network.patch_embed.norm(self.network.patch_embed.proj(images).permute(0, 2, 3, 1))
            resolution = self.network.layers[0].blocks[0].input_resolution
            for stage in self.network.layers:
                if hasattr(stage.downsample, "reduction"):
                    tokens = _merge_patches(torch, stage.downsample, tokens, resolution)
                    resolution = stage.blocks[0].input_resolution
                for block in stage.blocks:
                    tokens = tokens + _shifted_attention(torch, block, block.norm1(tokens))
                    tokens = tokens + block.mlp(block.norm2(tokens))
            return self.network.head.fc(self.network.norm(tokens).mean(dim=(1, 2)))

    return SwinForExport().eval()


def _merge_patches(torch: Any, layer: Any, tokens: Any, resolution: tuple[int, int]) -> Any:
    """[N, h, w, C] to [N, h / 2, w / 2, 2 C]; an odd side is padded by one, as timm does."""
    (height, width), channels = resolution, layer.dim
    if height % 2 or width % 2:
        tokens = torch.nn.functional.pad(tokens, (0, 0, 0, width % 2, 0, height % 2))
    height, width = (height + 1) // 2, (width + 1) // 2
    tokens = tokens.reshape(-1, height, 2, width, 2, channels).permute(0, 1, 3, 4, 2, 5)
    return layer.reduction(layer.norm(tokens.reshape(-1, height, width, 4 * channels)))


def _shifted_attention(torch: Any, block: Any, tokens: Any) -> Any:
    """Roll, cut into windows, attend, put together, roll back: [N, h, w, C] to the same."""
    (height, width), (rows, columns), shift = block.input_resolution, block.window_size, block.shift_size
    if any(shift):
        tokens = torch.roll(tokens, shifts=(-shift[0], -shift[1]), dims=(1, 2))
    below, right = -height % rows, -width % columns
    if below or right:
        tokens = torch.nn.functional.pad(tokens, (0, 0, 0, right, 0, below))
    down, across = (height + below) // rows, (width + right) // columns
    windows = tokens.reshape(-1, down, rows, across, columns, block.dim).permute(0, 1, 3, 2, 4, 5)
    windows = _attention(block.attn, windows.reshape(-1, rows * columns, block.dim), block.attn_mask)
    tokens = windows.reshape(-1, down, across, rows, columns, block.dim).permute(0, 1, 3, 2, 4, 5)
    tokens = tokens.reshape(-1, height + below, width + right, block.dim)
    if below or right:
        tokens = tokens[:, :height, :width, :]
    return torch.roll(tokens, shifts=shift, dims=(1, 2)) if any(shift) else tokens


def _attention(attention: Any, windows: Any, mask: Any) -> Any:
    """Window attention with its position bias, and the mask of shifted windows where there is one."""
    area, heads = attention.window_area, attention.num_heads
    parts = attention.qkv(windows).reshape(-1, area, 3, heads, attention.dim // heads).permute(2, 0, 3, 1, 4)
    query, key, value = parts.unbind(0)
    weights = (query * attention.scale) @ key.transpose(-2, -1) + attention.position_bias
    if mask is not None:
        weights = weights.reshape(-1, mask.shape[0], heads, area, area) + mask[None, :, None]
        weights = weights.reshape(-1, heads, area, area)
    mixed = weights.softmax(dim=-1) @ value
    return attention.proj(mixed.transpose(1, 2).reshape(-1, area, attention.dim))
