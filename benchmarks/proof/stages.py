"""Where a difference to the original comes from: decode, field of view, mirror, resize, normalisation, graph, precision, engine.

The chain begins with the whole of the author's pipeline and ends with the whole of ours. From one link to the next a single
stage is replaced, and every stage is given the tensor that the stages before it made, so the differences of the links add up
to the difference of the ends: the stages account for the whole.

* *decode*: the original's crop, resize, normalisation and network on the frame that our decoder gives.
* *field of view*: the same with the box of our field of view and our card's crop.
* *mirror*: the same, mirrored where the runtime's tensor is.
* *resize*: the runtime's tensor, normalised as the author does it.
* *normalisation*: the same, normalised as the shipped graph does it (`fundus_rt.benchmarks.proof.file_normalisation`).
* *fp32 graph*: the same pixels through ONNX Runtime's CPU in place of the framework: the file itself where it is fp32, else a
  fresh export of the checkpoint.
* *lower precision*: the file in place of the fresh export; half precision is emulated
  (`fundus_rt.benchmarks.proof.half_precision`).
* *engine*: what the opened session answers, in place of the file on ONNX Runtime's CPU.
* *pipeline*: what a user's call answered, in place of all these parts of it called one by one: whatever they leave out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fundus_rt.benchmarks.proof.original import OriginalModel
from fundus_rt.benchmarks.proof.photographs import Case
from fundus_rt.benchmarks.proof.stage_chain import PIPELINE, STAGES, Chain, Links
from fundus_rt.benchmarks.reports.document import Plot, Section, Series, Table
from fundus_rt.models.errors import UsageError
from fundus_rt.runtime.agreement import ROUNDING
from fundus_rt.runtime.session import Session

__all__ = ["STAGES", "OutputSplit", "StageSplit", "stage_split"]

LEAST_SHARE = 0.005
"""A stage with less of the difference is not named in a sentence."""
CANCELLING = 0.5
"""Where the whole is less than this share of the stages' differences, they cancel one another, and it is said."""


@dataclass(frozen=True)
class OutputSplit:
    """One output's differences by stage, in its unit."""

    name: str
    unit: str
    reference: NDArray[np.float64]
    """[N, columns]: the original on its author's pipeline."""
    found: NDArray[np.float64]
    """[N, columns]: ours, from the file to the answer."""
    differences: NDArray[np.float64]
    """[stages, N, columns], signed, in the order of `STAGES`; their sum is ``found - reference``."""
    alone: NDArray[np.float64] | None
    """The same where only that stage is ours; None where it was not asked for."""

    @property
    def rounding(self) -> float:
        """Differences up to this are float32's rounding."""
        finite = np.abs(self.reference[np.isfinite(self.reference)])
        return ROUNDING * float(finite.max(initial=0.0))

    @property
    def broken(self) -> NDArray[np.int64]:
        """[stages]: photographs whose answer first stops to be finite there."""
        steps = self.reference[None] + np.cumsum(self.differences, axis=0)
        bad = ~np.isfinite(steps).all(axis=2)
        first = np.where(bad.any(axis=0), bad.argmax(axis=0), -1)
        return np.array([np.count_nonzero(first == stage) for stage in range(len(STAGES))])

    def shares(self) -> dict[str, float] | None:
        """Each stage's share of all the stages' differences, 0 to 1; None where these are rounding alone."""
        broken = self.broken
        if broken.any():
            return dict(zip(STAGES, (broken / broken.sum()).tolist(), strict=True))
        sizes = np.abs(self.differences)
        if not sizes.sum(axis=0).max() > self.rounding:
            return None
        total = sizes.sum(axis=(1, 2))
        return dict(zip(STAGES, (total / total.sum()).tolist(), strict=True))

    @property
    def blamed(self) -> str | None:
        """The stage with the largest share; None where all is rounding."""
        shares = self.shares()
        return None if shares is None else max(shares, key=lambda stage: shares[stage])

    def has_part(self, stage: str) -> bool:
        """Whether a stage's differences are more than rounding, and a share that is worth naming."""
        shares = self.shares()
        return shares is not None and shares[stage] >= LEAST_SHARE and self.largest(stage) > self.rounding

    def largest(self, stage: str) -> float:
        """Largest difference of a stage on one photograph, in the unit; infinite where its answer is not finite."""
        return _largest(self.differences[STAGES.index(stage)])

    def sentences(self) -> tuple[str, ...]:
        """For the reader, the largest share first."""
        shares, broken = self.shares(), self.broken
        whole = _largest(self.found - self.reference)
        if shares is None:
            return (
                f"{self.name}: the stages together move no answer by more than {np.abs(self.differences).sum(axis=0).max():.1g} "
                f"{self.unit}, which is the rounding of float32: no stage makes a difference.",
            )
        if broken.any():
            named = ", ".join(f"{count} in the stage {stage!r}" for stage, count in zip(STAGES, broken, strict=True) if count)
            said = [f"{self.name}: of {len(self.reference)} photographs, answers stop to be finite numbers for {named}."]
        else:
            said = []
        rest = (PIPELINE,) if self.largest(PIPELINE) > self.rounding else ()
        named_stages = [stage for stage in STAGES if shares[stage] >= LEAST_SHARE or stage in rest]
        ordered = sorted(named_stages, key=lambda stage: -shares[stage])
        first = ordered[0]
        sentence = f"{self.name}: {_percent(shares[first])} of the difference is the {first} ({self._size(first)})"
        others = ", ".join(f"{_percent(shares[stage])} the {stage}" for stage in ordered[1:])
        said.append(sentence + (f"; {others}." if others else "."))
        if rest:
            said.append(
                f"{self.name}: a user's call answers up to {self.largest(PIPELINE):.2g} {self.unit} otherwise than its own "
                "parts, called one by one: the fault lies between them."
            )
        added = float(np.abs(self.differences).sum(axis=0).max()) if not broken.any() else math.inf
        if whole < CANCELLING * added and math.isfinite(whole):
            said.append(
                f"{self.name}: the stages cancel one another in part: together they move an answer by at most {whole:.2g} "
                f"{self.unit}, one by one by up to {added:.2g}."
            )
        return tuple(said)

    def to_table(self) -> Table:
        """One row a stage."""
        shares = self.shares()
        rows: list[tuple[Any, ...]] = []
        for index, stage in enumerate(STAGES):
            part = self.differences[index]
            alone = None if self.alone is None else _largest(self.alone[index])
            share = "rounding" if shares is None else _percent(shares[stage])
            rows.append((stage, share, _mean(np.abs(part)), _mean(part), _largest(part), alone))
        whole = self.found - self.reference
        rows.append(("all", "", _mean(np.abs(whole)), _mean(whole), _largest(whole), None))
        columns = (
            "stage", "share", f"mean size, {self.unit}", f"mean with sign, {self.unit}", f"largest, {self.unit}",
            f"largest of this stage alone, {self.unit}",
        )  # fmt: skip
        return Table(
            f"{self.name} by stage",
            columns,
            tuple(rows),
            note="Differences with their signs add up to the whole; shares are of the sum of their sizes. Alone: every other "
            "stage is the author's.",
        )

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready figures."""
        return {
            "unit": self.unit,
            "shares": self.shares(),
            "blamed": self.blamed,
            "rounding": self.rounding,
            "largest": {stage: _finite(self.largest(stage)) for stage in STAGES},
            "mean": {stage: _finite(_mean(np.abs(self.differences[index]))) for index, stage in enumerate(STAGES)},
            "largest_alone": None
            if self.alone is None
            else {stage: _finite(_largest(self.alone[index])) for index, stage in enumerate(STAGES)},
            "whole": _finite(_largest(self.found - self.reference)),
        }

    def _size(self, stage: str) -> str:
        largest = self.largest(stage)
        return f"up to {largest:.2g} {self.unit} on one photograph" if math.isfinite(largest) else "answers that are not finite"


@dataclass(frozen=True)
class StageSplit:
    """All outputs' differences by stage, over some photographs."""

    outputs: tuple[OutputSplit, ...]
    photographs: tuple[str, ...]
    """Names of the photographs, as the user gave them."""
    notes: tuple[str, ...]
    """How it was done, where a reader should know."""

    def blamed(self) -> tuple[str, ...]:
        """The stages with the largest share of an output's difference, without repetition; empty where all is rounding."""
        return tuple(dict.fromkeys(output.blamed for output in self.outputs if output.blamed is not None))

    def sentences(self) -> tuple[str, ...]:
        """What the split comes to, the notes last."""
        return (*(sentence for output in self.outputs for sentence in output.sentences()), *self.notes)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready figures; names of photographs are left out."""
        return {
            "photographs": len(self.photographs),
            "outputs": {output.name: output.to_dict() for output in self.outputs},
            "notes": list(self.notes),
        }

    def to_section(self) -> Section:
        """For a report: sentences, a table for each output, and its shares as a bar."""
        shares = {output.name: output.shares() for output in self.outputs}
        told = {name: found for name, found in shares.items() if found is not None}
        plots: tuple[Plot, ...] = ()
        if told:
            bars = tuple(Series(stage, y=tuple(found[stage] for found in told.values())) for stage in STAGES)
            plots = (Plot("stacked_bars", "Share of each stage", "share of the difference", "output", bars, ticks=tuple(told)),)
        counted = f"Looked at stage by stage on {len(self.photographs)} photographs."
        tables = tuple(output.to_table() for output in self.outputs)
        return Section("Where the difference comes from", (counted, *self.sentences()), tables, plots)


def stage_split(
    original: OriginalModel,
    session: Session,
    cases: Sequence[Case],
    onnx_file: Path | None,
    rows: Mapping[str, NDArray[Any]] | None = None,
    *,
    alone: bool = True,
    threads: int | None = None,
    progress: Callable[[str], None] | None = None,
) -> StageSplit:
    """Split the difference between the original and a shipped file by stage.

    One pass of the framework per photograph where the two sides agree, up to nine where they do not.

    Args:
        original: the checkpoint in its framework, with its author's card.
        session: the shipped file as the runtime opens it.
        cases: photographs, with the eye where a card mirrors left eyes. A sample is enough.
        onnx_file: the ``.onnx`` file that `session` runs, or that its engine was built from; None where there is only an engine:
            lower precision and engine are then one stage.
        rows: by output, float32 [N, columns]: what a user's call answered to the same photographs; None: the stage ``pipeline``
            is empty.
        alone: also see what each stage does where every other one is the author's; costs another pass or more each.
        threads: of one run of a graph; None for all cores.
        progress: called with one sentence for each photograph.

    Raises:
        UsageError: no photographs, or the two cards are of networks with other inputs or outputs.
        FundusRtError: a photograph that cannot be decoded, or whose eye is not known where it has to be.
    """
    if not cases:
        raise UsageError("got no photographs to split the difference on; give at least one")
    chain = Chain(original, session, onnx_file, alone, threads)
    found = []
    for index, case in enumerate(cases, start=1):
        if progress is not None:
            progress(f"stage by stage: photograph {index} of {len(cases)}")
        found.append(chain.links(case, rows and {name: numbers[index - 1] for name, numbers in rows.items()}))
    notes = list(chain.notes)
    if chain.half and chain.on_cpu:
        notes.append("The session computes on the CPU, which has no half precision: the stage 'engine' is empty.")
    elif onnx_file is None:
        notes.append("There is no ONNX file, only an engine: the stage 'engine' holds the lower precision, too.")
    units = {output.name: output.unit for output in original.card.outputs}
    outputs = tuple(_output_split(name, unit, found) for name, unit in units.items())
    return StageSplit(outputs, tuple(case.name for case in cases), tuple(notes))


def _output_split(name: str, unit: str, links: Sequence[Links]) -> OutputSplit:
    states = np.stack([np.stack([state[name] for state in link.states]) for link in links], axis=1)
    with np.errstate(invalid="ignore"):
        differences = np.diff(states, axis=0)
    alone = None
    if all(link.alone for link in links):
        alone = np.stack([np.stack([link.alone[stage][name] for stage in STAGES]) for link in links], axis=1)
    return OutputSplit(name, unit, states[0], states[-1], differences, alone)


def _largest(values: NDArray[np.float64]) -> float:
    if not values.size:
        return 0.0
    return float(np.abs(values).max()) if np.isfinite(values).all() else math.inf


def _mean(values: NDArray[np.float64]) -> float:
    return float(values.mean()) if np.isfinite(values).all() else math.inf


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"
