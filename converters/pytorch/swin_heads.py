"""Heads of Swin Transformers: one linear layer, also behind an entry without tensors; all others are refused."""

from __future__ import annotations

import re
from dataclasses import replace

from fundus_rt.converters.checkpoint import Checkpoint
from fundus_rt.converters.pytorch.swin_layouts import TIMM, Layout, Shapes
from fundus_rt.models.errors import UnsupportedCheckpointError


def with_plain_head(checkpoint: Checkpoint, layout: Layout) -> tuple[Checkpoint, tuple[str, ...]]:
    """A checkpoint whose head is one linear layer, and what is taken for granted of an entry without tensors before it.

    Raises:
        UnsupportedCheckpointError: another head, or none.
    """
    shapes = {layout.file_name(name): shape for name, shape in checkpoint.shapes.items()}
    after = f"{layout.head}.1"
    inside = [name for name in shapes if name.startswith(f"{layout.head}.")]
    alone = len(shapes.get(f"{after}.weight", ())) == 2 and all(name.startswith(f"{after}.") for name in inside)
    if not alone or checkpoint.module is not None:
        _check_head(shapes, checkpoint.path.name, layout)
        return checkpoint, ()

    def plain(name: str) -> str:
        inner = layout.file_name(name)
        return inner.replace(f"{after}.", f"{layout.head}.") if inner.startswith(f"{after}.") else name

    renamed = replace(
        checkpoint,
        shapes={plain(name): shape for name, shape in checkpoint.shapes.items()},
        state={plain(name): tensor for name, tensor in checkpoint.state.items()},
    )
    _check_head({layout.file_name(name): shape for name, shape in renamed.shapes.items()}, checkpoint.path.name, layout)
    return renamed, (
        f"The head has an entry without tensors before its linear layer ({layout.head}.0): taken as dropout or flattening, which "
        f"leave the averaged features as they are; an activation there would change every answer, and no tensor would show it.",
    )


def _check_head(shapes: Shapes, file: str, layout: Layout) -> None:
    """One linear layer has to be the head.

    In timm's new layout ``head`` is a module that pools first and holds the linear layer as ``head.fc``. A plain
    ``head.weight`` there means that the author replaced the module and with it the pooling.
    """
    heads = sorted({name.rpartition(".")[0] for name in shapes if re.match(r"(head|classifier|fc)\b", name)})
    if heads == [layout.head] and len(shapes.get(f"{layout.head}.weight", ())) == 2:
        return
    if not heads:
        raise UnsupportedCheckpointError(
            f"{file} holds a Swin Transformer without a head: features, no answer. Ask for the file of the whole network."
        )
    if heads == ["head"] and layout is TIMM:
        raise UnsupportedCheckpointError(
            f"{file} is in the layout of timm from 0.9, but its head is a plain linear layer ('head.weight'). There the "
            f"head does the pooling too, so the network as saved answers with four dimensions, [N, H, W, outputs], and how "
            f"the authors made one answer of them is not in the file. Ask them; if they averaged, rename head.* to head.fc.*."
        )
    raise UnsupportedCheckpointError(
        f"{file} has a head of its own ({', '.join(heads)}); expected one linear layer {layout.head!r}. What lies between its "
        f"layers (activations, pooling) is not in the tensors, so it cannot be rebuilt from them. If you have the code that "
        f"builds the network, name it: --architecture package.module:factory."
    )
