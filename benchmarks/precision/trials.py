"""One file of lower precision tried out: its answers on the judged photographs, the known pictures, and its speed."""

from __future__ import annotations

import json
import os
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fundus_rt.benchmarks.proof.half_precision import open_emulated
from fundus_rt.converters.precision.recipe import Recipe, onnx_from_recipe, serialised
from fundus_rt.models.canary import canary_from_dict
from fundus_rt.models.card import ModelCard
from fundus_rt.runtime.agreement import OutputAgreement, agreement
from fundus_rt.runtime.session import Session, open_session

Answers = dict[str, NDArray[np.float32]]


@dataclass(frozen=True)
class Trial:
    """What one recipe does to the answers."""

    agreements: tuple[OutputAgreement, ...]
    canary: tuple[str, ...]
    """What the known pictures show, one sentence each; empty where their answers are within the room that they leave."""

    @property
    def problems(self) -> list[str]:
        """Why the file is outside of the budget; empty where it is inside."""
        found = [problem for one in self.agreements for problem in one.problems]
        return found + [f"the answers to the drawn pictures: {problem}" for problem in self.canary]

    @property
    def damage(self) -> float:
        """Largest difference over its tolerance, over the outputs: up to 1 is inside of the budget."""
        return max(one.largest / one.tolerance for one in self.agreements)


@dataclass
class Workbench:
    """The float32 file, the photographs that everything is judged on, and where files are tried out."""

    model: Any
    """`onnx.ModelProto`, float32."""
    card: ModelCard
    judged: NDArray[Any]
    """[N, H, W, 3], the judged photographs."""
    backend: str
    """``onnxruntime`` or ``openvino``."""
    tolerance: float | None = None
    """Largest difference that passes, in the output's unit; None for the card's budget."""
    threads: int | None = None
    reference: Answers = field(default_factory=dict)
    """Of the float32 file on the same backend, on `judged`."""
    version: str = ""
    """Of the backend."""

    def start(self) -> None:
        """Ask the float32 file."""
        with tempfile.TemporaryDirectory() as folder:
            session = self.opened(self.model, Path(folder))
            self.reference = answers_of(session, self.judged)
            self.version = session.backend.version
            session.close()

    def opened(self, model: Any, folder: Path) -> Session:
        """A graph on the backend, through a file in `folder`."""
        path = folder / "tried.onnx"
        path.write_bytes(serialised(model))
        return open_session(path, self.backend, threads=self.threads)

    def trial(self, recipe: Recipe) -> Trial:
        """Make the file that a recipe describes, and hold its answers against the float32 file's.

        Half precision is judged by the emulation (`fundus_rt.benchmarks.proof.half_precision`), int8 by the backend itself; where
        both are in one file, the emulation computes its int8 as it is written.
        """
        made = onnx_from_recipe(self.model, self.card, recipe)
        canary = canary_from_dict(self.card.canary)
        spec = self.card.preprocessing
        pictures = canary.batch(spec.input_size, spec.input_dtype) if canary is not None else None
        if recipe.fp16:
            emulated = open_emulated(made, threads=self.threads)
            found = _joined([emulated.run(frame[None]) for frame in self.judged])
            known = emulated.run(pictures) if pictures is not None else {}
        else:
            with tempfile.TemporaryDirectory() as folder:
                session = self.opened(made, Path(folder))
                found = answers_of(session, self.judged)
                known = session.run(pictures) if pictures is not None else {}
                session.close()
        precision = "mixed" if recipe.int8 and recipe.fp16 else "int8" if recipe.int8 else "fp16"
        compared = tuple(
            agreement(o.name, self.reference[o.name], found[o.name], o, self.tolerance or o.allowed(precision))
            for o in self.card.outputs
        )
        return Trial(compared, tuple(canary.problems(known)) if canary is not None else ())

    def time_ratio(self, recipe: Recipe, turns: int) -> float:
        """How long one picture takes, as a share of the float32 file's: the median of pairs that were measured in turns."""
        with tempfile.TemporaryDirectory() as first, tempfile.TemporaryDirectory() as second:
            before = self.opened(self.model, Path(first))
            after = self.opened(onnx_from_recipe(self.model, self.card, recipe), Path(second))
            ratio = paired_ratio(before, after, self.judged[:1], turns)
            before.close()
            after.close()
        return ratio


def paired_ratio(before: Session, after: Session, frames: NDArray[Any], turns: int) -> float:
    """Median of ``after / before`` over pairs of runs, with the order changed each time; two pairs come first to warm up."""
    ratios = []
    for turn in range(turns + 2):
        order = (before, after) if turn % 2 else (after, before)
        took = {}
        for session in order:
            started = time.perf_counter()
            session.run(frames)
            took[id(session)] = time.perf_counter() - started
        ratios.append(took[id(after)] / took[id(before)])
    return statistics.median(ratios[2:])


def answers_of(session: Session, frames: NDArray[Any]) -> Answers:
    """Answers to network inputs, one at a time: [N, columns] by output."""
    return _joined([session.run(frame[None]) for frame in frames])


def _joined(answered: Sequence[Any]) -> Answers:
    return {name: np.concatenate([one[name] for one in answered]) for name in answered[0]}


class TrialFile:
    """Results of trials in JSON lines beside the output, so that a search that was stopped goes on where it was."""

    def __init__(self, path: Path) -> None:
        """Read what is there; a last line that was cut off is left out."""
        self.path = path
        self._rows: dict[str, dict[str, Any]] = {}
        if path.exists():
            for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
                try:
                    row = json.loads(line)
                    self._rows[row["key"]] = row
                except (ValueError, KeyError, TypeError):
                    continue

    def get(self, key: str) -> dict[str, Any] | None:
        """The row kept under a key."""
        return self._rows.get(key)

    def put(self, key: str, row: dict[str, Any]) -> dict[str, Any]:
        """Keep a row; it is on the disk when this returns."""
        kept = {"key": key, **row}
        begun = self.path.exists() and not self.path.read_bytes().endswith(b"\n") and self.path.stat().st_size > 0
        with open(self.path, "a", encoding="utf-8") as stream:
            stream.write(("\n" if begun else "") + json.dumps(kept) + "\n")
            stream.flush()
            os.fsync(stream.fileno())
        self._rows[key] = kept
        return kept
