"""From a float32 file and photographs to a file of lower precision, its recipe, and what it was judged by."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fundus_rt.benchmarks.precision.audit import Audit, audited
from fundus_rt.benchmarks.precision.calibration import activation_histograms, ranges_by
from fundus_rt.benchmarks.precision.network_inputs import NetworkInputs, network_inputs
from fundus_rt.benchmarks.precision.search import Found, Search
from fundus_rt.benchmarks.precision.trials import TrialFile, Workbench
from fundus_rt.converters.precision.half_graph import halvable, halvable_beside
from fundus_rt.converters.precision.int8_graph import LEVELS, quantisable
from fundus_rt.converters.precision.node_groups import node_groups
from fundus_rt.converters.precision.recipe import Recipe, graph_digest, onnx_from_recipe, read_recipe, serialised, shipped_model
from fundus_rt.models.artifacts import atomic_path, sha256_of_bytes
from fundus_rt.models.card import CARD_KEY, ModelCard, card_from_json
from fundus_rt.models.errors import BackendUnavailableError, ParityError, UsageError
from fundus_rt.runtime.device_kind import LARGEST_WEIGHT_IN_16, sums_8_bit_products_in_16
from fundus_rt.runtime.guarded_session import open_guarded
from fundus_rt.runtime.pipeline import Pipeline

PRECISIONS = ("int8", "fp16", "mixed")
"""What can be asked for; ``mixed`` is int8 where it stays inside of the budget, and half precision where it does not."""
DEFAULT_BACKEND = "onnxruntime"
"""What a file is written for where nothing is said."""


@dataclass(frozen=True)
class QuantiseCall:
    """What is asked for."""

    file: Path
    precision: str
    """One of `PRECISIONS`, or the path of a recipe."""
    output: Path
    images: tuple[str, ...]
    backend: str | None = None
    """One of `int8_graph.BACKENDS`; None for `DEFAULT_BACKEND`, or the recipe's own."""
    method: str = "max"
    """One of `fundus_rt.benchmarks.precision.histograms.METHODS`."""
    tolerance: float | None = None
    """In the output's unit; None for the card's."""
    whole: bool = False
    """Put all nodes that can be into the precision, without a search."""
    weight_levels: int | None = None
    """Largest whole number of a weight in int8; None for what this processor needs, or the recipe's own."""


@dataclass(frozen=True)
class Quantised:
    """What was written, and what it was judged by."""

    call: QuantiseCall
    recipe: Recipe
    sha256: str
    precision: str
    row: dict[str, Any] | None
    """Of the trial; None where a recipe was replayed."""
    ratio: float | None
    audit: Audit | None
    judged: int
    """Photographs."""
    found: Found | None
    """Of the search; None without one."""
    refused: tuple[str, ...] = ()
    """Why some photographs were left out."""

    @property
    def measured_on(self) -> str:
        """The backend of this machine that the file was judged on: a processor's, also for TensorRT."""
        return _judge(self.recipe.backend)

    @property
    def recipe_path(self) -> Path:
        """Beside the file."""
        return self.call.output.with_suffix(".recipe.json")


@dataclass(frozen=True)
class Progress:
    """Where a run says what it does."""

    step: Callable[[str], AbstractContextManager[Any]] = nullcontext
    """Around each long step, given its description."""
    trials: Callable[[str, int, int], None] = lambda what, done, most: None
    """What is tried, how many trials are done, how many there are at most."""


def quantise(call: QuantiseCall, progress: Progress) -> Quantised:
    """Make the file.

    Raises:
        ParityError: the answers leave the budget, or the backend does not compute in int8 what the file puts into it.
        ModelFileError, UsageError: a file, a recipe or an option that cannot be used.
    """
    model, card = shipped_model(call.file)
    if call.output.resolve() == call.file.resolve():
        raise UsageError(f"{call.output.name} would replace the float32 file; name another one with -o")
    if not call.output.parent.is_dir():
        raise UsageError(f"the folder {call.output.parent} does not exist; make it, or name another one with -o")
    if call.precision == "mixed" and (call.backend not in (None, "tensorrt") or call.whole):
        raise UsageError(
            "int8 and half precision in one file are for TensorRT, and are searched: a processor computes half precision in "
            "float32; leave --backend and --whole out, or ask for int8"
        )
    if call.precision not in PRECISIONS:
        return _replayed(call, model, card)
    pipeline = Pipeline(call.file)
    try:
        with progress.step("Preparing photographs"):
            inputs = network_inputs(pipeline, call.images)
    finally:
        pipeline.close()
    whole = _whole_recipe(call, model, inputs, progress)
    bench = Workbench(model, card, inputs.judged, _judge(whole.backend), call.tolerance)
    with progress.step(f"Asking the float32 file about {len(inputs.judged)} photographs"):
        bench.start()
    groups = node_groups(model, whole.int8 or whole.fp16)
    kept = TrialFile(call.output.with_suffix(".trials.jsonl"))
    search = Search(bench, whole, kept, inputs.judged_digest, progress.trials)
    if not call.whole:
        found = search.run(groups)
        if call.precision == "mixed":
            rest = dataclasses.replace(found.recipe, fp16=tuple(halvable_beside(model, found.recipe.int8)))
            search = Search(bench, rest, kept, inputs.judged_digest, progress.trials, found.recipe.int8)
            found = search.run(node_groups(model, rest.fp16))
        made = _written(call, model, card, found.recipe, found.row, found.ratio, len(inputs.judged), found)
        return dataclasses.replace(made, refused=inputs.refused)
    row = search.tried(groups)
    if not row["passed"]:
        raise ParityError(f"{call.file.name} in {call.precision} leaves the budget: {'; '.join(row['problems'])}")
    ratio = search.timed(groups) if search.timeable else None
    made = _written(call, model, card, search.recipe(groups), row, ratio, len(inputs.judged), None)
    return dataclasses.replace(made, refused=inputs.refused)


def _whole_recipe(call: QuantiseCall, model: Any, inputs: NetworkInputs, progress: Progress) -> Recipe:
    """Every node that can be in the precision, with all ranges."""
    digest = graph_digest(model)
    if call.precision == "fp16":
        return Recipe(digest, fp16=tuple(halvable(model)), backend=call.backend or "tensorrt")
    nodes = quantisable(model)
    with progress.step(f"Finding ranges on {len(inputs.calibration)} other photographs"):
        found = activation_histograms(model, nodes, inputs.calibration)
    facts = {
        "method": call.method,
        "photographs": len(inputs.calibration),
        "photographs_sha256": inputs.calibration_digest,
    }
    backend = "tensorrt" if call.precision == "mixed" else call.backend or DEFAULT_BACKEND
    ranges = ranges_by(model, found, call.method)
    levels = call.weight_levels or _weight_levels(backend)
    return Recipe(digest, tuple(nodes), backend=backend, weight_levels=levels, ranges=ranges, calibration=facts)


def _weight_levels(backend: str) -> int:
    """What a weight may be, so that the backend's sums are exact on this processor: OpenVINO has no setting for it."""
    return LARGEST_WEIGHT_IN_16 if backend == "openvino" and sums_8_bit_products_in_16() else LEVELS


def _judge(backend: str) -> str:
    """Where a file is asked and opened: whole numbers are the same everywhere, so a processor answers for TensorRT."""
    return DEFAULT_BACKEND if backend == "tensorrt" else backend


def _replayed(call: QuantiseCall, model: Any, card: ModelCard) -> Quantised:
    """The file that a recipe describes; what it may be used for is asked of `fundus-rt parity`."""
    recipe = read_recipe(Path(call.precision))
    if recipe.fp16 and recipe.int8 and call.backend not in (None, "tensorrt"):
        raise UsageError(
            f"{Path(call.precision).name} has int8 and half precision in one file, which is for TensorRT; got --backend "
            f"{call.backend}. Leave it out, or search an int8 file for that backend"
        )
    if recipe.int8 and (call.backend or call.weight_levels):
        backend = call.backend or recipe.backend
        own = recipe.weight_levels if backend == recipe.backend else LEVELS
        levels = call.weight_levels or min(own, _weight_levels(backend))
        recipe = dataclasses.replace(recipe, backend=backend, weight_levels=levels)
    if recipe.int8 and recipe.weight_levels > (most := _weight_levels(recipe.backend)):
        raise BackendUnavailableError(
            f"{Path(call.precision).name} has weights up to {recipe.weight_levels}, whose products OpenVINO does not add up "
            f"exactly on this processor, expected up to {most}; add --weight-bits 7, or replay it on a processor with VNNI"
        )
    return _written(call, model, card, recipe, None, None, 0, None)


def _written(
    call: QuantiseCall,
    model: Any,
    card: ModelCard,
    recipe: Recipe,
    row: dict[str, Any] | None,
    ratio: float | None,
    judged: int,
    found: Found | None,
) -> Quantised:
    """Write file and recipe, after the audit."""
    made = onnx_from_recipe(model, card, recipe)
    content = serialised(made)
    audit = None
    with atomic_path(call.output) as temporary:
        temporary.write_bytes(content)
        if recipe.int8 and recipe.backend != "tensorrt":
            audit = audited(temporary, recipe.backend)
            audit.require(recipe.int8)
        _require_opened(temporary, _judge(recipe.backend))
    precision = str(_card_of(made).provenance["precision"])
    result = Quantised(call, recipe, sha256_of_bytes(content), precision, row, ratio, audit, judged, found)
    with atomic_path(result.recipe_path) as temporary:
        temporary.write_text(recipe.to_json(), encoding="utf-8")
    return result


def _require_opened(path: Path, backend: str) -> None:
    """Open the file as every call of the package does, known pictures included; raises what that raises."""
    open_guarded(path, backend).close()


def _card_of(model: Any) -> ModelCard:
    return card_from_json(next(entry.value for entry in model.metadata_props if entry.key == CARD_KEY), origin="the card written")


def lines(made: Quantised) -> list[str]:
    """What was made and what it was judged by, in sentences."""
    nodes = {kind: len(names) for kind, names in (("int8", made.recipe.int8), ("fp16", made.recipe.fp16)) if names}
    found = []
    if made.refused:
        found.append(f"{len(made.refused)} photographs were left out; of the first: {made.refused[0]}")
    if made.found is not None:
        passed = sum(bool(row["passed"]) for row in made.found.alone)
        found.append(
            f"search: {passed} of {len(made.found.alone)} pieces of the network stay inside of the budget alone, "
            f"{len(made.found.groups)} together"
        )
    if made.row is not None:
        how = "by the emulation of half precision" if made.recipe.fp16 else f"on {made.measured_on}"
        for name, one in made.row["outputs"].items():
            changed = "" if one["decisions_changed"] is None else f"{one['decisions_changed']} decisions changed, "
            found.append(
                f"{name} against float32, {how}, {made.judged} photographs: {changed}largest difference {one['largest']:.2g}, "
                f"mean {one['mean']:.2g} (tolerance {one['tolerance']:g})"
            )
    if made.recipe.int8 and made.recipe.weight_levels < LEVELS:
        found.append(
            f"weights from -{made.recipe.weight_levels} to {made.recipe.weight_levels}: without VNNI, two products have to fit "
            "into 16 bits"
        )
    if made.audit is not None:
        found.append(f"{made.audit.backend} computes {100 * made.audit.share:.1f} % of the multiplications in int8")
    elif made.recipe.int8:
        found.append(
            "written for TensorRT: what it computes in int8 was not looked at here; build and certify an engine on its GPU"
        )
    if made.recipe.fp16:
        found.append("half precision is for a GPU: a processor computes it in float32, so nothing of it was looked at here")
    if made.ratio is not None:
        found.append(f"one picture takes {made.ratio:.2f} of float32's time here (median of pairs measured in turns)")
    counted = ", ".join(f"{count} nodes in {kind}" for kind, count in nodes.items())
    found.append(f"wrote {made.call.output} ({made.precision}, {counted}, sha256 {made.sha256[:16]})")
    found.append(f"wrote {made.recipe_path}; it makes the same bytes again: fundus-rt quantize FILE.onnx --precision RECIPE.json")
    return found
