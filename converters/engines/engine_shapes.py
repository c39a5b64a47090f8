"""Fewest, best and most of every size that a graph leaves open, for the library's optimisation profile."""

from __future__ import annotations

from typing import Any

from fundus_rt.models.engines import EngineProfile
from fundus_rt.models.errors import EngineError

Limits = tuple[int, int, int]
Shapes = dict[str, tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]]
"""Per input: its shape at the fewest, the best and the most of everything."""
FRAME = "frame"
"""Input of a graph that takes whole photographs: uint8 [N, H, W, 3], with H and W open."""


def shapes_of(model: Any, profile: EngineProfile) -> Shapes:
    """The shapes of every input that has an open size; sizes that carry one name are one size.

    Args:
        model: an `onnx.ModelProto`.
        profile: its batch is that of every input's first size, its frame height and width those of the input ``frame``.

    Raises:
        EngineError: a size is open that the profile says nothing about, or a size is fixed that the profile names another for.
    """
    constants = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in constants]
    known = _named_sizes(inputs, profile)
    shapes: Shapes = {}
    for value in inputs:
        dims = list(value.type.tensor_type.shape.dim)
        limits = [_limits_of(value.name, axis, dim, known, profile) for axis, dim in enumerate(dims)]
        if any(not dim.HasField("dim_value") for dim in dims):
            least, best, most = (tuple(limit[position] for limit in limits) for position in range(3))
            shapes[value.name] = (least, best, most)
    return shapes


def _named_sizes(inputs: list[Any], profile: EngineProfile) -> dict[str, Limits]:
    """What each name of a size stands for, from the places where its meaning is certain."""
    known: dict[str, Limits] = {}
    for value in inputs:
        for axis, dim in enumerate(value.type.tensor_type.shape.dim):
            limits = _limits_at(value.name, axis, profile)
            if dim.dim_param and limits is not None:
                known.setdefault(dim.dim_param, limits)
    return known


def _limits_at(name: str, axis: int, profile: EngineProfile) -> Limits | None:
    if axis == 0:
        return profile.batch
    if name == FRAME and axis in (1, 2):
        return profile.frame_height if axis == 1 else profile.frame_width
    return None


def _limits_of(name: str, axis: int, dim: Any, known: dict[str, Limits], profile: EngineProfile) -> Limits:
    """Fewest, best and most of one size of one input."""
    if dim.HasField("dim_value"):
        asked = _limits_at(name, axis, profile)
        if axis == 0 and asked is not None and (asked[0] > dim.dim_value or asked[2] < dim.dim_value):
            raise EngineError(
                f"the input {name!r} takes exactly {dim.dim_value} pictures at once, the profile asks for "
                f"{','.join(map(str, asked))}; say --batch {dim.dim_value},{dim.dim_value},{dim.dim_value}, or convert the "
                f"checkpoint again with an open batch size"
            )
        return (dim.dim_value,) * 3
    found = known.get(dim.dim_param) if dim.dim_param else _limits_at(name, axis, profile)
    if found is None:
        hint = (
            "say --frames SMALLEST,BEST,LARGEST"
            if name == FRAME or dim.dim_param in ("H", "W")
            else "export it with a fixed size"
        )
        raise EngineError(
            f"size {axis} of the input {name!r} ({dim.dim_param or 'without a name'}) is open, and nothing says how small and "
            f"how large it can be; {hint}"
        )
    return found
