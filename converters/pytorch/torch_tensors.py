"""Whether the tensors of a torch file are ones that a network has, seen before anything is computed with them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fundus_rt.models.errors import UnsupportedCheckpointError

COPIES = 8
"""How many times the file's size its tensors may take in memory together, before they are held for a forgery."""


def check_tensors(torch: Any, path: Path, state: Mapping[str, Any], notes: list[str]) -> None:
    """Refuse tensors that a network does not have, before anything is computed with them.

    Raises:
        UnsupportedCheckpointError: sparse, quantized, complex or meta tensors, tensors of another package's class, tensors
            without a number in them or that repeat their own numbers, or more numbers than the file can hold.
    """
    total = 0
    for name, tensor in state.items():
        problem = _problem_of(torch, tensor)
        if problem:
            shape = [] if tensor.is_nested else list(tensor.shape)
            raise UnsupportedCheckpointError(
                f"{path.name}: the tensor {name} {shape} {problem}; expected plain tensors of numbers. Save "
                f"model.state_dict() of the float network"
            )
        total += tensor.numel() * tensor.element_size()
    held = path.stat().st_size
    if total > COPIES * held + 2**24:
        raise UnsupportedCheckpointError(
            f"{path.name} has {held:,} bytes, but its tensors claim {total:,}: many of them are views of the same numbers, "
            f"which no network has; it is damaged or forged"
        )
    kinds = sorted({str(t.dtype).removeprefix("torch.") for t in state.values() if t.is_floating_point()} - {"float32"})
    if kinds:
        notes.append(f"weights are stored as {' and '.join(kinds)}; the network is computed in float32")


def _problem_of(torch: Any, tensor: Any) -> str:
    if type(tensor) not in (torch.Tensor, torch.nn.Parameter, torch.nn.Buffer):
        return f"is of the class {type(tensor).__module__}.{type(tensor).__name__}"
    if tensor.is_meta:
        return "is on torch's meta device: it has a shape and no numbers"
    if tensor.is_nested or tensor.layout != torch.strided:
        return f"is not dense ({str(tensor.layout).removeprefix('torch.')})"
    if tensor.is_quantized:
        return f"is quantized ({str(tensor.dtype).removeprefix('torch.')})"
    if tensor.is_complex():
        return "is complex"
    if not tensor.numel():
        return "holds no numbers"
    extent = 1 + sum((length - 1) * stride for length, stride in zip(tensor.shape, tensor.stride(), strict=True))
    if tensor.numel() > extent:
        return f"repeats its own numbers (strides {list(tensor.stride())})"
    return ""
