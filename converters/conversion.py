"""From a published checkpoint to one ONNX file that is proved to answer as the original does."""

from __future__ import annotations

import dataclasses
import gc
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np

from fundus_rt.converters.architecture import Architecture, Network, identify_architecture
from fundus_rt.converters.backends import require, versions
from fundus_rt.converters.checkpoint import Checkpoint, read_checkpoint
from fundus_rt.converters.conversion_report import ConversionReport, peak_memory, proof_warnings
from fundus_rt.converters.graphs.graph_beginning import grey_level_notes
from fundus_rt.converters.graphs.graph_cleaning import clean_graph
from fundus_rt.converters.original_preprocessing import Photograph, largest_level_difference, original_inputs
from fundus_rt.converters.output_meaning import output_warnings, require_logits, resolved_card, settled
from fundus_rt.converters.output_place import require_free_place
from fundus_rt.converters.parity import (
    OutputDifference,
    Reference,
    ShippedModel,
    compare_shipped,
    reference_tensor,
    run_in_batches,
)  # fmt: skip
from fundus_rt.converters.shipping import embed_card, ship
from fundus_rt.models.artifacts import atomic_path, sha256_of_file
from fundus_rt.models.canary import PICTURES, Canary, canary_picture, chosen_canary
from fundus_rt.models.card import ModelCard
from fundus_rt.models.errors import FundusRtError, ParityError, UnsupportedCheckpointError, UsageError

Progress = Callable[[str], None]
Step = Callable[[str], AbstractContextManager[Any]]
SAME_LEVELS = 1e-3
"""Difference in grey levels below which two preprocessings are the same up to the rounding of float32."""
LARGEST_MODEL = 2**31 - 2**20
"""Bytes of a graph: what a protobuf message may have, less room for the card and for nodes put before the network."""


def onnx_from_checkpoint(
    checkpoint_path: Path | str,
    card: ModelCard,
    output: Path | str,
    *,
    tensors: np.ndarray,
    open_shipped: Callable[[Path], ShippedModel],
    photographs: Sequence[Photograph] = (),
    architecture: str | None = None,
    trust_pickle: bool = False,
    progress: Progress | None = None,
    step: Step | None = None,
) -> ConversionReport:
    """Convert a checkpoint to one ONNX file, and write it only when it answers as the original framework does.

    Args:
        checkpoint_path: file of PyTorch, Keras or ONNX, or the folder of a TensorFlow SavedModel.
        card: the model's card; columns and activations that it leaves open are read from the file.
        output: where the ``.onnx`` is written; the file appears whole and proved, or not at all. A file that this function
            wrote before is replaced, no other.
        tensors: prepared frames of real photographs [N, H, W, 3], BGR, of the card's input size and dtype.
        open_shipped: opens a written file and returns a callable from frames to all outputs by name.
        photographs: the same photographs before any preprocessing, one for each of `tensors`; the original framework then
            answers on what its own libraries make of them. Empty: it answers on `tensors`, and the report says so.
        architecture: what the network is, where neither the file nor the card says it: ``timm/NAME``, or
            ``package.module:factory``, which is imported and called.
        trust_pickle: allow code from the checkpoint to be executed.
        progress: called with one sentence at a time, for the reader.
        step: context manager around each long step, given its description.

    Returns:
        What was read, measured and written.

    Raises:
        UsageError: frames of the wrong shape or dtype, or an output that cannot be written or would replace another file.
        UnsupportedCheckpointError: the checkpoint cannot be read, or is not the card's network to the last weight.
        UntrustedCheckpointError: reading it would execute code and `trust_pickle` was not given.
        ParityError: the file written does not answer as the original; it was removed.
        BackendUnavailableError: a package of the ``convert`` extra is missing.
    """
    say, during = progress or (lambda message: None), step or (lambda message: nullcontext())
    output, given = Path(output), card
    _check_call(card, tensors, photographs, output)
    require_free_place(output, Path(checkpoint_path))
    with during("Reading the checkpoint"):
        checkpoint = read_checkpoint(checkpoint_path, trust_pickle, progress)
        found = identify_architecture(checkpoint, card, architecture)
        if found.activation is not None:
            card = resolved_card(card, found, checkpoint)
    say(f"{checkpoint.path.name} holds {found.description}")
    with during("Loading the network in its own framework"):
        network = found.build()
    checkpoint.state.clear()
    with during(f"Asking the original network about {len(tensors)} photographs"):
        reference = _reference(network, tensors, photographs, card, checkpoint.framework)
        canary = _canary(network, card)
    with during(f"Exporting with {found.exporter}"):
        model = _exported(network, checkpoint, found)
    found = _with_doubts(found, network, model, card, checkpoint.framework)
    network.close()
    del network
    gc.collect()
    found = settled(found, model, checkpoint, reference.answers[card.outputs[0].name])
    card = resolved_card(card, found, checkpoint)
    require_logits(given, card, reference, checkpoint.path.name)
    card = dataclasses.replace(card, provenance=_provenance(checkpoint, found), canary=canary.to_dict() if canary else {})
    path, file_sha256, notes = checkpoint.path, checkpoint.sha256, (*checkpoint.notes, *found.notes)
    doubts = (*checkpoint.warnings, *found.warnings)
    del checkpoint
    with during("Writing the shipped graph"):
        model = ship(model, card)
    try:
        with atomic_path(output) as temporary:
            card, differences = _write_proved(model, card, temporary, tensors, reference, open_shipped, during, canary)
            sha256, size = sha256_of_file(temporary), temporary.stat().st_size
    except OSError as error:
        raise UsageError(f"{output} cannot be written ({error}); choose another place with -o") from error
    warnings = (*doubts, *output_warnings(card, differences), *proof_warnings(card, differences, reference))
    if canary is None:
        warnings += ("the network answers the drawn pictures alike, so the file carries none to check a device with",)
    return ConversionReport(
        output, sha256, size, path, file_sha256, found, notes, tuple(differences), warnings, card,
        len(model.graph.node), peak_memory(), reference,
    )  # fmt: skip


def _check_call(card: ModelCard, tensors: np.ndarray, photographs: Sequence[Photograph], output: Path) -> None:
    card.validate()
    spec = card.preprocessing
    expected = (*spec.input_size, 3)
    if tensors.ndim != 4 or len(tensors) == 0 or tensors.shape[1:] != expected or tensors.dtype != np.dtype(spec.input_dtype):
        raise UsageError(
            f"got frames of shape {tensors.shape} and type {tensors.dtype}, expected [N, {', '.join(map(str, expected))}] "
            f"{spec.input_dtype}, prepared as the card {card.name!r} says, at least one"
        )
    if photographs and len(photographs) != len(tensors):
        raise UsageError(f"got {len(photographs)} photographs and {len(tensors)} frames; give one photograph for each frame")
    if output.suffix.lower() != ".onnx":
        raise UsageError(f"{output} does not end in .onnx; give the output file such a name with -o")
    if not output.parent.is_dir():
        raise UsageError(f"the folder {output.parent} does not exist; create it, or choose another place with -o")


def _with_doubts(found: Architecture, network: Network, model: Any, card: ModelCard, framework: str) -> Architecture:
    """The architecture with what its graph itself does to grey levels (files of Keras say that in their configuration), and a
    warning of decisions that its graph does not have."""
    notes, warnings = ((), ()) if framework == "keras" else grey_level_notes(model, card)
    frozen = getattr(network, "frozen", [])
    if frozen:
        warnings += (
            f"the network's own code decides by numbers of its tensors ({'; '.join(frozen[:4])}), and the graph has only the way "
            f"that it took while it was exported: right only if the decision is about shapes, which are always the same here",
        )
    return dataclasses.replace(found, notes=(*found.notes, *notes), warnings=(*found.warnings, *warnings))


def _exported(network: Network, checkpoint: Checkpoint, found: Architecture) -> Any:
    """The network's graph, cleaned; what an exporter or a file of ONNX cannot hold is an answer, not a crash."""
    try:
        model = network.graph()
        _require_one_file(model)
        clean_graph(model)
        _require_one_file(model)
        return model
    except FundusRtError:
        raise
    except Exception as error:  # exporters raise classes of their own
        text = " ".join(str(error).split())[:300]
        if isinstance(error, OverflowError) or "2GiB" in text or "2GB" in text:
            raise UnsupportedCheckpointError(
                f"{checkpoint.path.name} ({found.description}) becomes a graph of more than 2 GiB, and one ONNX file cannot hold "
                f"more; this version does not convert it. Use a smaller input, window or network."
            ) from error
        raise UnsupportedCheckpointError(
            f"{checkpoint.path.name} ({found.description}) cannot be exported with {found.exporter}: {type(error).__name__}: "
            f"{text}. An operator that ONNX does not have can be replaced where the network is defined."
        ) from error


def _require_one_file(model: Any) -> None:
    """Protobuf counts and writes less than 2 GiB; `OverflowError` where a model is larger."""
    message = require("google.protobuf.message")
    try:
        size = model.ByteSize()
    except message.EncodeError as error:
        raise OverflowError("the model cannot be written") from error
    if size > LARGEST_MODEL:
        raise OverflowError(f"the model has {size} bytes, more than {LARGEST_MODEL}")


def _reference(
    network: Network, tensors: np.ndarray, photographs: Sequence[Photograph], card: ModelCard, framework: str
) -> Reference:
    """The original's answers, on its own preprocessing where photographs are there, and on ours where that differs."""
    name, spec = card.outputs[0].name, card.preprocessing
    ours = reference_tensor(tensors, spec)
    if not photographs:
        answers = {name: network.answers(ours)}
        return Reference(answers, answers)
    theirs = original_inputs(photographs, spec, framework)
    levels = largest_level_difference(theirs.images, ours, spec)
    answers = {name: network.answers(theirs.images)}
    same_tensors = answers if levels < SAME_LEVELS else {name: network.answers(ours)}
    return Reference(answers, same_tensors, theirs.libraries, levels)


def _canary(network: Network, card: ModelCard) -> Canary | None:
    """The original's answers to the drawn pictures by which a device is checked later; None where it answers them alike."""
    spec = card.preprocessing
    pictures = np.stack([canary_picture(which, spec.input_size, spec.input_dtype) for which in range(PICTURES)])
    return chosen_canary({card.outputs[0].name: network.answers(reference_tensor(pictures, spec))})


def _require_canary(shipped: ShippedModel, canary: Canary | None, card: ModelCard) -> None:
    """The written file has to know the drawn pictures as the original does, or every device would refuse it."""
    if canary is None:
        return
    spec = card.preprocessing
    problems = canary.problems(run_in_batches(shipped, canary.batch(spec.input_size, spec.input_dtype)))
    if problems:
        raise ParityError(
            f"the converted model does not answer drawn pictures as the original does, so nothing was written: "
            f"{'; '.join(problems)}. Check that the card {card.name!r} belongs to the file."
        )


def _write_proved(
    model: Any,
    card: ModelCard,
    path: Path,
    tensors: np.ndarray,
    reference: Reference,
    open_shipped: Callable[[Path], ShippedModel],
    during: Step,
    canary: Canary | None,
) -> tuple[ModelCard, list[OutputDifference]]:
    """Write, measure, put the measurement into the card, write again and replay the final bytes."""
    onnx = require("onnx")
    with during(f"Running the written file on {len(tensors)} photographs"):
        onnx.save_model(model, str(path))
        shipped = open_shipped(path)
        differences = compare_shipped(shipped, tensors, reference, card)
        before = run_in_batches(shipped, tensors[:1])
        _require_canary(shipped, canary, card)
        del shipped
    measured = {
        "batch_sizes": [1, 2, 3],
        "original_preprocessing": reference.libraries,
        "largest_level_difference": reference.levels if reference.libraries else None,
        "outputs": [difference.to_dict() for difference in differences],
    }
    card = dataclasses.replace(card, provenance={**card.provenance, "parity": measured})
    embed_card(model, card)
    with during("Checking the final file"):
        onnx.save_model(model, str(path))
        after = run_in_batches(open_shipped(path), tensors[:1])
    if any(not np.array_equal(before[name], after[name]) for name in before):
        raise ParityError(f"{path.name} answers differently after its card was completed; nothing was written")
    return card, differences


def _provenance(checkpoint: Checkpoint, architecture: Architecture) -> dict[str, Any]:
    account = architecture.account
    return {
        "checkpoint": {
            "file": checkpoint.path.name,
            "sha256": checkpoint.sha256,
            "bytes": _size(checkpoint.path),
            "format": checkpoint.format,
            "notes": list(checkpoint.notes),
        },
        "architecture": architecture.description,
        "parameters": {
            "in_file": account.file_parameters,
            "used": account.used_parameters,
            "in_network": account.network_parameters,
        },
        "activation_inside": architecture.activation,
        "exporter": architecture.exporter,
        "versions": versions("fundus-rt", *architecture.packages, "onnx", "numpy"),
    }


def _size(path: Path) -> int:
    """Bytes of a file, or of all files in a folder (SavedModel)."""
    files = [found for found in path.rglob("*") if found.is_file()] if path.is_dir() else [path]
    return sum(found.stat().st_size for found in files)
