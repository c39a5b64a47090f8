"""From a published checkpoint to one ONNX file that is proved to answer as the original does."""

from __future__ import annotations

import dataclasses
import gc
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fundus_rt.converters.architecture import Architecture, identify_architecture
from fundus_rt.converters.backends import require, versions
from fundus_rt.converters.checkpoint import Checkpoint, read_checkpoint
from fundus_rt.converters.parity import OutputDifference, ShippedModel, compare_shipped, reference_tensor, run_in_batches
from fundus_rt.converters.shipping import activation_inside, embed_card, ship
from fundus_rt.models.artifacts import atomic_path, sha256_of_file
from fundus_rt.models.card import ModelCard, OutputSpec
from fundus_rt.models.errors import ParityError, UnsupportedCheckpointError, UsageError

Progress = Callable[[str], None]
Step = Callable[[str], AbstractContextManager[Any]]
TASK_ACTIVATIONS = {"regression": "none", "multiclass": "softmax", "multilabel": "sigmoid"}
"""What makes the card's unit of a linear output; a binary output takes sigmoid on one column, softmax on two."""


@dataclass(frozen=True)
class ConversionReport:
    """What a conversion read, measured and wrote."""

    output: Path
    sha256: str
    """Of the file written."""
    size: int
    """Bytes of the file written."""
    checkpoint: Path
    checkpoint_sha256: str
    architecture: Architecture
    notes: tuple[str, ...]
    """What was unwrapped or left aside while reading."""
    differences: tuple[OutputDifference, ...]
    warnings: tuple[str, ...]
    card: ModelCard
    """As it is in the file: columns, activations and provenance filled in."""
    nodes: int
    """Nodes of the graph written."""
    peak_memory: int | None
    """Largest resident memory of this process so far, bytes; None where the system does not say."""

    def lines(self) -> list[str]:
        """The report in words, for the command line."""
        found = [
            f"{self.checkpoint.name}: {self.architecture.description}",
            f"{self.architecture.account}",
            *self.notes,
            *(f"output {output.name!r}: {_columns_in_words(output)}" for output in self.card.outputs),
            *(f"against the original framework: {difference}" for difference in self.differences),
            *(f"warning: {warning}" for warning in self.warnings),
            f"wrote {self.output} ({self.size / 2**20:.1f} MiB, {self.nodes} nodes, sha256 {self.sha256[:16]})",
        ]
        if self.peak_memory is not None:
            found.append(f"peak memory {self.peak_memory / 2**30:.1f} GiB")
        return found


def onnx_from_checkpoint(
    checkpoint_path: Path | str,
    card: ModelCard,
    output: Path | str,
    *,
    tensors: np.ndarray,
    open_shipped: Callable[[Path], ShippedModel],
    trust_pickle: bool = False,
    progress: Progress | None = None,
    step: Step | None = None,
) -> ConversionReport:
    """Convert a checkpoint to one ONNX file, and write it only when it answers as the original framework does.

    Args:
        checkpoint_path: file of PyTorch (Swin) or Keras 2 (a full model of a known family).
        card: the model's card; columns and activations that it leaves open are read from the file.
        output: where the ``.onnx`` is written; the file appears whole and proved, or not at all.
        tensors: prepared frames of real photographs [N, H, W, 3], BGR, of the card's input size and dtype.
        open_shipped: opens a written file and returns a callable from frames to all outputs by name.
        trust_pickle: allow code from the checkpoint to be executed.
        progress: called with one sentence at a time, for the reader.
        step: context manager around each long step, given its description.

    Returns:
        What was read, measured and written.

    Raises:
        UsageError: frames of the wrong shape or dtype, or an output that cannot be written.
        UnsupportedCheckpointError: the checkpoint cannot be read, or is not the card's network to the last weight.
        UntrustedCheckpointError: reading it would execute code and `trust_pickle` was not given.
        ParityError: the file written does not answer as the original; it was removed.
        BackendUnavailableError: a package of the ``convert`` extra is missing.
    """
    say, during = progress or (lambda message: None), step or (lambda message: nullcontext())
    output = Path(output)
    _check_call(card, tensors, output)
    with during("Reading the checkpoint"):
        checkpoint = read_checkpoint(checkpoint_path, trust_pickle, progress)
        architecture = identify_architecture(checkpoint, card)
        card = resolved_card(card, architecture, checkpoint)
    say(f"{checkpoint.path.name} holds {architecture.description}")
    reference, model = _answers_and_graph(checkpoint, architecture, reference_tensor(tensors, card.preprocessing), during)
    _check_graph(model, architecture, checkpoint)
    original = {card.outputs[0].name: reference}
    card = dataclasses.replace(card, provenance=_provenance(checkpoint, architecture))
    path, file_sha256, notes = checkpoint.path, checkpoint.sha256, checkpoint.notes
    del checkpoint, reference
    with during("Writing the shipped graph"):
        model = ship(model, card)
    try:
        with atomic_path(output) as temporary:
            card, differences = _write_proved(model, card, temporary, tensors, original, open_shipped, during)
            sha256, size = sha256_of_file(temporary), temporary.stat().st_size
    except OSError as error:
        raise UsageError(f"{output} cannot be written ({error}); choose another place with -o") from error
    warnings = _warnings(card, differences)
    return ConversionReport(
        output, sha256, size, path, file_sha256, architecture, notes, tuple(differences), warnings, card,
        len(model.graph.node), peak_memory(),
    )  # fmt: skip


def resolved_card(card: ModelCard, architecture: Architecture, checkpoint: Checkpoint) -> ModelCard:
    """The card with columns and activation of its output stated, from the file.

    Raises:
        UnsupportedCheckpointError: the number of outputs does not fit the card, or an activation would be applied twice.
    """
    file, columns, inside = checkpoint.path.name, architecture.columns, architecture.activation
    if len(card.outputs) != 1:
        raise UnsupportedCheckpointError(f"{file} has one output, the card {card.name!r} describes {len(card.outputs)}")
    output = card.outputs[0]
    allowed = {"regression": (1,), "binary": (1, 2)}.get(output.task, (len(output.labels),))
    wanted = allowed if output.columns is None else (output.columns,)
    if columns not in allowed or columns not in wanted:
        labels = f" for the labels {', '.join(output.labels)}" if output.labels else ""
        raise UnsupportedCheckpointError(
            f"{file} gives {columns} number{'s' if columns > 1 else ''} per picture, but output {output.name!r} of the card "
            f"{card.name!r} is a {output.task} output and needs {' or '.join(map(str, wanted))}{labels}. Choose the card "
            f"that belongs to the file, or give the labels that it has."
        )
    by_task = TASK_ACTIVATIONS.get(output.task, "sigmoid" if columns == 1 else "softmax")
    resolved = "none" if inside != "none" else by_task
    if output.activation not in (None, resolved) and inside != "none":
        raise UnsupportedCheckpointError(
            f"{file} already ends with {inside}, and output {output.name!r} of the card {card.name!r} asks for "
            f"{output.activation} on top; applied twice the probabilities would be wrong. Set the card's activation to null."
        )
    if inside == "softmax" and columns == 1:
        raise UnsupportedCheckpointError(f"{file} ends with softmax on one number, which is always 1: a broken network")
    output = dataclasses.replace(output, columns=columns, activation=output.activation or resolved)
    return dataclasses.replace(card, outputs=(output,)).validate()


def peak_memory() -> int | None:
    """Largest resident memory of this process so far, bytes; None on systems without `getrusage`."""
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _check_call(card: ModelCard, tensors: np.ndarray, output: Path) -> None:
    card.validate()
    spec = card.preprocessing
    expected = (*spec.input_size, 3)
    if tensors.ndim != 4 or len(tensors) == 0 or tensors.shape[1:] != expected or tensors.dtype != np.dtype(spec.input_dtype):
        raise UsageError(
            f"got frames of shape {tensors.shape} and type {tensors.dtype}, expected [N, {', '.join(map(str, expected))}] "
            f"{spec.input_dtype}, prepared as the card {card.name!r} says, at least one"
        )
    if output.suffix.lower() != ".onnx":
        raise UsageError(f"{output} does not end in .onnx; give the output file such a name with -o")
    if not output.parent.is_dir():
        raise UsageError(f"the folder {output.parent} does not exist; create it, or choose another place with -o")


def _answers_and_graph(
    checkpoint: Checkpoint, architecture: Architecture, images: np.ndarray, during: Step
) -> tuple[np.ndarray, Any]:
    """The framework's own answers, and its network as a float ONNX graph; the framework's memory is given back."""
    if checkpoint.framework == "keras":
        from fundus_rt.converters.keras_export import build_keras, forget_keras, keras_answers, onnx_from_keras

        with during("Loading the network in Keras"):
            network = build_keras(checkpoint, architecture)
        with during(f"Asking Keras about {len(images)} photographs"):
            answers = keras_answers(network, images)
        with during("Exporting with tf2onnx"):
            model = onnx_from_keras(network, architecture.input_size)
        del network
        forget_keras()
        return answers, model
    from fundus_rt.converters.swin import build_swin
    from fundus_rt.converters.torch_export import onnx_from_swin, torch_answers

    with during("Loading the network in timm"):
        network = build_swin(checkpoint, architecture)
    checkpoint.state.clear()
    with during(f"Asking torch about {len(images)} photographs"):
        answers = torch_answers(network, images)
    with during("Exporting with torch"):
        model = onnx_from_swin(network, architecture.input_size)
    del network
    gc.collect()
    return answers, model


def _check_graph(model: Any, architecture: Architecture, checkpoint: Checkpoint) -> None:
    """The graph's end has to be what the file's configuration says."""
    if len(model.graph.output) != 1:
        return  # `ship` says what is wrong with the number of outputs
    found = activation_inside(model, model.graph.output[0].name)
    if found != architecture.activation:
        raise UnsupportedCheckpointError(
            f"{checkpoint.path.name} says that it ends with {architecture.activation}, its graph ends with {found}; which "
            f"of them holds cannot be told, so nothing is converted"
        )


def _write_proved(
    model: Any,
    card: ModelCard,
    path: Path,
    tensors: np.ndarray,
    original: dict[str, np.ndarray],
    open_shipped: Callable[[Path], ShippedModel],
    during: Step,
) -> tuple[ModelCard, list[OutputDifference]]:
    """Write, measure, put the measurement into the card, write again and replay the final bytes."""
    onnx = require("onnx")
    with during(f"Running the written file on {len(tensors)} photographs"):
        onnx.save_model(model, str(path))
        shipped = open_shipped(path)
        differences = compare_shipped(shipped, tensors, original, card)
        before = run_in_batches(shipped, tensors[:1])
        del shipped
    measured = {"batch_sizes": [1, 2, 3], "outputs": [difference.to_dict() for difference in differences]}
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
    if checkpoint.framework == "keras":
        packages, exporter = ["tensorflow", "tf_keras", "tf2onnx"], "tf2onnx"
    else:
        packages, exporter = ["torch", "timm"], "torch.onnx (TorchScript)"
    return {
        "checkpoint": {
            "file": checkpoint.path.name,
            "sha256": checkpoint.sha256,
            "bytes": checkpoint.path.stat().st_size,
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
        "exporter": exporter,
        "versions": versions("fundus-rt", *packages, "onnx", "numpy"),
    }


def _warnings(card: ModelCard, differences: list[OutputDifference]) -> tuple[str, ...]:
    found = []
    for difference in differences:
        if difference.photographs == 1:
            found.append(f"{difference.name} was compared on one photograph only: whether it tells pictures apart is not shown")
        elif difference.spread < 10 * difference.tolerance:
            found.append(
                f"the photographs' answers for {difference.name} lie only {difference.spread:.2g} {difference.unit} apart, "
                f"less than ten tolerances: give photographs that differ more for a stronger proof"
            )
    if card.preprocessing.assumed:
        found.append(
            f"the authors did not publish {', '.join(card.preprocessing.assumed)} of the preprocessing; the card's values "
            f"are assumed, and every result says so"
        )
    return tuple(found)


def _columns_in_words(output: OutputSpec) -> str:
    numbers = f"{output.columns} number" + ("s" if output.columns != 1 else "")
    applied = "used as it is" if output.activation == "none" else f"{output.activation} is applied to the network's answer"
    return f"{numbers}, {applied}, in {output.unit}" + (f"; in order: {', '.join(output.labels)}" if output.labels else "")
