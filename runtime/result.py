"""What is said of one picture."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fundus_rt.runtime.field_of_view import FieldOfView
from fundus_rt.runtime.interpret import Prediction
from fundus_rt.runtime.session import BackendInfo, ModelIdentity


@dataclass(frozen=True)
class EyeResult:
    """``left``, ``right`` or None; the sources that say so; whether the network saw the picture mirrored."""

    value: str | None
    source: str | None
    mirrored: bool


@dataclass(frozen=True)
class Result:
    """The answer for one picture. It owns its memory: nothing of it changes when the pipeline runs on.

    ``timing_ms`` holds wall-clock milliseconds by stage; ``inference`` is the batch's time divided by its pictures.
    ``certificate`` is ``passed`` or ``failed`` by the parity certificate of what computed this answer, or ``none`` where none
    counts; ``certificate_reason`` says why it is not ``passed``.
    """

    model: ModelIdentity
    backend: BackendInfo
    eye: EyeResult
    field_of_view: FieldOfView
    outputs: dict[str, Prediction]
    warnings: tuple[str, ...] = ()
    timing_ms: dict[str, float] = field(default_factory=dict)
    numbers: dict[str, NDArray[np.float32]] = field(default_factory=dict, compare=False, repr=False)
    """By output, float32 [columns]: what the network itself gave, before any activation. No part of a row."""
    certificate: str = "none"
    certificate_reason: str = ""

    def to_dict(self) -> dict[str, Any]:
        """The result as JSON-ready values, without the keys that belong to a file (path, hash, error)."""
        view = self.field_of_view
        return {
            "model": {**asdict(self.model), "certificate": self.certificate},
            "backend": asdict(self.backend),
            "eye": asdict(self.eye),
            "field_of_view": {
                "center": [round(view.center[0], 1), round(view.center[1], 1)],
                "radius": round(view.radius, 1),
                "cut": list(view.cut),
                "found": view.found,
            },
            "outputs": {name: prediction.to_dict() for name, prediction in self.outputs.items()},
            "warnings": list(self.warnings),
            "timing_ms": {name: round(value, 2) for name, value in self.timing_ms.items()},
        }
