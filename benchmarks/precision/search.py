"""Which pieces of a network may be in lower precision: each alone first, then as many as the budget takes, then the fastest."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

from fundus_rt.benchmarks.precision.trials import TrialFile, Workbench
from fundus_rt.converters.precision.node_groups import NodeGroup
from fundus_rt.converters.precision.recipe import Recipe
from fundus_rt.models.errors import ParityError
from fundus_rt.runtime.device_kind import device_kind
from fundus_rt.runtime.session import usable_cores

TURNS = 15
"""Pairs of runs by which the speed of a file is measured."""

Row = dict[str, Any]
Show = Callable[[str, int, int], None]
"""Told what is tried, how many trials are done, and how many there are at most."""


@dataclass(frozen=True)
class Found:
    """The fastest recipe inside of the budget, and what was tried on the way."""

    recipe: Recipe
    groups: tuple[NodeGroup, ...]
    """The pieces in lower precision."""
    row: Row
    """The result of the recipe's trial."""
    ratio: float | None
    """Its time for one picture as a share of the float32 file's; None in what a processor cannot time (`Search.timeable`)."""
    alone: tuple[Row, ...]
    """The result of each piece alone, in the order of the graph."""


class Search:
    """One search over the pieces of a network. Each trial is kept in a file, so it goes on where it was stopped."""

    def __init__(
        self, bench: Workbench, whole: Recipe, kept: TrialFile, judged_digest: str, show: Show, fixed: Collection[str] = ()
    ) -> None:
        """Prepare a search.

        Args:
            bench: started.
            whole: with every node that may be in lower precision, and the ranges of all of them.
            kept: results of earlier trials.
            judged_digest: of the photographs.
            show: of progress.
            fixed: nodes of `whole` that are in lower precision whatever is tried.
        """
        self._bench, self._whole, self._kept, self._show, self._fixed = bench, whole, kept, show, frozenset(fixed)
        machine = [bench.backend, bench.version, bench.threads, usable_cores(), device_kind("cpu")]
        self._where = [judged_digest, bench.tolerance, bench.card.to_json(), *machine]

    @property
    def timeable(self) -> bool:
        """Whether a processor computes it as it is written: not half precision, and not what is written for TensorRT."""
        return not self._whole.fp16 and self._whole.backend != "tensorrt"

    def recipe(self, groups: Sequence[NodeGroup]) -> Recipe:
        """The recipe with some pieces in lower precision."""
        inside = self._fixed.union(*(group.nodes for group in groups))
        return dataclasses.replace(
            self._whole,
            int8=tuple(name for name in self._whole.int8 if name in inside),
            fp16=tuple(name for name in self._whole.fp16 if name in inside),
        )

    def tried(self, groups: Sequence[NodeGroup]) -> Row:
        """The result of some pieces together, from the file where it is known."""
        recipe = self.recipe(groups)
        key = self._key("answers", recipe)
        row = self._kept.get(key)
        if row is not None:
            return row
        trial = self._bench.trial(recipe)
        return self._kept.put(
            key,
            {
                "groups": [str(group) for group in groups],
                "damage": trial.damage,
                "passed": not trial.problems,
                "problems": trial.problems,
                "outputs": {one.name: _figures(one.to_dict()) for one in trial.agreements},
            },
        )

    def timed(self, groups: Sequence[NodeGroup]) -> float:
        """`Workbench.time_ratio` of some pieces together, from the file where it is known."""
        recipe = self.recipe(groups)
        key = self._key("time", recipe)
        row = self._kept.get(key)
        if row is None:
            row = self._kept.put(key, {"groups": [str(g) for g in groups], "ratio": self._bench.time_ratio(recipe, TURNS)})
        return float(row["ratio"])

    def run(self, groups: Sequence[NodeGroup]) -> Found:
        """Search.

        The pieces whose differences alone stay inside of the budget join in the order of the damage that each does. One that
        takes the answers out of it is left out, and tried once more at the end: a photograph on the edge between two decisions
        falls to either side, whatever is added. Of all sets on the way that are inside, the one that runs fastest is taken;
        the largest where a processor cannot time them.

        Raises:
            ParityError: no piece alone stays inside of the budget, or none that does is faster than float32.
        """
        alone, most = [], 2 * len(groups)
        for index, group in enumerate(groups):
            self._show(f"alone: {group}", index, most)
            alone.append(self.tried([group]))
        order = sorted((i for i in range(len(groups)) if alone[i]["damage"] <= 1), key=lambda i: (alone[i]["damage"], i))
        taken: list[int] = []
        inside: list[list[int]] = []
        most += len(order)
        for step, index in enumerate([*order, *order]):
            if index in taken:
                continue
            self._show(f"with {groups[index]}", len(groups) + step, most)
            together = sorted([*taken, index])
            if self.tried([groups[i] for i in together])["passed"]:
                taken = together
                inside.append(together)
        if not inside:
            least = min(alone, key=lambda row: float(row["damage"]))
            raise ParityError(
                f"not one of {len(groups)} pieces of the network can be in lower precision: the mildest, {least['groups'][0]}, "
                f"does this: {'; '.join(least['problems'])}. A larger --tolerance would have to be justified by what the answers "
                "are used for"
            )
        sets = [[groups[i] for i in one] for one in inside]
        if not self.timeable:
            best = sets[-1]
            return Found(self.recipe(best), tuple(best), self.tried(best), None, tuple(alone))
        ratios = []
        for step, one in enumerate(sets):
            self._show(f"timing {len(one)} pieces", most + step - len(sets), most)
            ratios.append(self.timed(one))
        fastest = min(range(len(sets)), key=ratios.__getitem__)
        if ratios[fastest] >= 1:
            raise ParityError(
                f"{len(sets[-1])} of {len(groups)} pieces stay inside of the budget, but none of {len(sets)} sets of them is "
                f"faster than float32 here (the fastest takes {ratios[fastest]:.2f} times as long); stay with float32"
            )
        best = sets[fastest]
        return Found(self.recipe(best), tuple(best), self.tried(best), ratios[fastest], tuple(alone))

    def _key(self, what: str, recipe: Recipe) -> str:
        return hashlib.sha256(json.dumps([what, recipe.sha256, *self._where]).encode()).hexdigest()


def _figures(values: Row) -> Row:
    """The part of an agreement that is kept of a trial: nothing that tells one photograph."""
    kept = (
        "photographs",
        "mean",
        "percentile_95",
        "largest",
        "largest_of_spread",
        "decisions_changed",
        "decisions_met",
        "tolerance",
    )
    return {name: values[name] for name in kept}
