"""One fault of a graph, as it is told to a person."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

LINTED_VERSION = (10, 3)
"""The TensorRT that the lint is about: that of JetPack 6."""


@dataclass(frozen=True)
class LintFinding:
    """What is wrong with one place of a graph."""

    rule: str
    """Which rule was broken: ``operator``, ``uint8`` …"""
    node: str
    """Name of the node, its first output where it has no name, or of the tensor; empty for the whole file."""
    operator: str
    """ONNX operator of the node; empty where the finding is not about one."""
    problem: str
    """What is there, and what is read instead."""
    remedy: str
    """What to do."""
    refused: bool = True
    """False for what is only doubtful, or goes wrong elsewhere."""

    @classmethod
    def of(cls, node: Any, rule: str, problem: str, remedy: str, refused: bool = True) -> LintFinding:
        """A finding about a node."""
        return cls(rule, node.name or (node.output[0] if node.output else ""), node.op_type, problem, remedy, refused)

    def line(self) -> str:
        """One line: ``Resize 'up': antialias is 1, ...; export ...``."""
        place = " ".join(part for part in (self.operator, repr(self.node) if self.node else "") if part)
        return f"{place}: {self.problem}; {self.remedy}" if place else f"{self.problem}; {self.remedy}"
