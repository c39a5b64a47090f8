"""A graph in pieces that follow one another, with about as many multiplications each: what a search puts on and off."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from fundus_rt.converters.precision.heavy_nodes import constants, multiplications, named

GROUPS = 12
"""Pieces that a graph is divided into, at most."""


@dataclass(frozen=True)
class NodeGroup:
    """Consecutive nodes between two tensors through which everything passes."""

    nodes: tuple[str, ...]
    """Names (`heavy_nodes.named`), only of nodes that the precision is for."""
    multiplications: int
    """For one picture."""

    def __str__(self) -> str:
        return f"{self.nodes[0]} .. {self.nodes[-1]}" if len(self.nodes) > 1 else self.nodes[0]


def node_groups(model: Any, allowed: Collection[str], most: int = GROUPS) -> list[NodeGroup]:
    """Divide a graph where only one tensor leads on, between the blocks of a network; a block that does more than its share of
    the multiplications, such as two branches side by side, is divided between its heavy nodes.

    The first and the last piece with heavy nodes hold one block each, for the first and the last layers are the delicate ones.

    Args:
        model: an `onnx.ModelProto` in the shipped form.
        allowed: names of the nodes that the precision is for.
        most: pieces at most, but for the first and the last.

    Returns:
        The pieces with at least one allowed node, in the order of the graph.
    """
    work = multiplications(model)
    blocks = [[name for name in block if name in set(allowed)] for block in _blocks(model)]
    share = 1.5 * sum(work.values()) / most
    blocks = [piece for block in blocks for piece in _pieces(block, work, share)]
    if len(blocks) < 3:
        return [_group(block, work) for block in blocks]
    found: list[list[str]] = [blocks[0], []]
    for block in blocks[1:-1]:
        if found[-1] and sum(work.get(name, 0) for name in (*found[-1], *block)) > share:
            found.append([])
        found[-1] += block
    return [_group(piece, work) for piece in (*found, blocks[-1]) if piece]


def _pieces(block: list[str], work: dict[str, int], share: float) -> list[list[str]]:
    """A block as it is, or in consecutive pieces where it does more than a share of the multiplications."""
    if sum(work.get(name, 0) for name in block) <= share:
        return [block] if block else []
    found: list[list[str]] = [[]]
    for name in block:
        if work.get(name, 0) + sum(work.get(one, 0) for one in found[-1]) > share and any(one in work for one in found[-1]):
            found.append([])
        found[-1].append(name)
    return found


def _group(names: list[str], work: dict[str, int]) -> NodeGroup:
    return NodeGroup(tuple(names), sum(work.get(name, 0) for name in names))


def _blocks(model: Any) -> list[list[str]]:
    """Nodes between the places at which one tensor alone is still to be read."""
    stored = constants(model)
    nodes = named(model)
    left: dict[str, int] = {}
    for node in nodes.values():
        for name in set(node.input) - stored:
            left[name] = left.get(name, 0) + 1
    ends = {value.name for value in model.graph.output}
    alive = {value.name for value in model.graph.input if value.name not in stored}
    found: list[list[str]] = [[]]
    for name, node in nodes.items():
        found[-1].append(name)
        for read in set(node.input) - stored:
            left[read] -= 1
        alive |= {made for made in node.output if made and made not in ends}
        alive = {one for one in alive if left.get(one, 0) > 0}
        if len(alive) <= 1:
            found.append([])
    return [block for block in found if block]
