"""How a Keras network ends, from its configuration: its number of outputs, and what is applied to them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from fundus_rt.converters.graphs.graph_ending import activation_inside
from fundus_rt.converters.tensorflow.keras_config import (
    Config,
    activation_of,
    answering_layers,
    inbound_names,
    layer_name,
    settings_of,
)
from fundus_rt.models.card import OutputSpec
from fundus_rt.models.errors import UnsupportedCheckpointError

PASSING = ("Flatten", "Reshape", "Dropout", "InputLayer", "Permute")
"""Layers at a network's end that only pass numbers on."""

ACTIVATIONS = {"Softmax": "softmax", "ReLU": "relu", "LeakyReLU": "LeakyReLU", "ELU": "ELU", "PReLU": "PReLU"}
"""Layers that are activations, and how they are named here."""

POSITIVE = ("relu", "softplus", "exponential")
"""Activations with which a regression may end: the numbers are used as they are."""

PROBABILITIES = ("sigmoid", "softmax")

SCALING = ("Rescaling", "BatchNormalization")
"""Layers that multiply and add fixed numbers."""

BETWEEN = ("Average", "Maximum", "Minimum")
"""Layers that put numbers together to one that lies between them: the mean of two probabilities is a probability."""

MERGING = (*BETWEEN, "Add", "Subtract", "Multiply", "Concatenate")

SCALED, MERGED, AVERAGED, OPERATION = "a scaling layer", "arithmetic between heads", "an average", "an operation"
"""What is applied beside activations."""

DEEPEST = 6
"""How many times heads are put together one after the other, at most."""

Step = tuple[Config, Config]
"""A layer, and the network that it lies in."""


@dataclass(frozen=True)
class Ending:
    """The last linear layer, and what follows it."""

    columns: int
    applied: tuple[str, ...]
    """Activations and what else is applied to its numbers, the last first."""

    def activation(self, output: OutputSpec, file: str) -> str | None:
        """The activation inside as `Architecture` states it.

        Args:
            output: of the card.
            file: name of the checkpoint, for messages.

        Returns:
            ``none``, ``sigmoid`` or ``softmax``; None where only the network's graph tells.

        Raises:
            UnsupportedCheckpointError: an activation whose meaning is not known, or probabilities that are computed with, for
                classes.
        """
        activations = self._activations()
        last = next(iter(self.applied), "none")
        if not activations:
            return None if OPERATION in self.applied else "none"
        if last in PROBABILITIES:
            return last
        if activations[0] in PROBABILITIES:
            after = self.applied[: self.applied.index(activations[0])]
            if {SCALED, MERGED} & set(after) and self._may_be_changed(output):
                raise self._changed(file)
            return None
        if last == OPERATION:
            return None
        if activations[0] in POSITIVE and output.task == "regression":
            return "none"
        if last == SCALED and output.task == "regression":
            return None  # such as a tanh that is spread over the years of a life
        raise UnsupportedCheckpointError(
            f"{file} ends with the activation {activations[0]!r}; expected linear, sigmoid or softmax, whose meaning is known"
            + (", for classes" if activations[0] in POSITIVE else "")
        )

    def require_probabilities(self, model: Any, output: OutputSpec, file: str) -> None:
        """Hold probabilities that are computed with against the network's graph, which tells whether they still are some.

        Args:
            model: the network's graph, an `onnx.ModelProto` with one output.
            output: of the card.
            file: name of the checkpoint, for the message.

        Raises:
            UnsupportedCheckpointError: they are none any more, and the card does not say that they are used as they are.
        """
        if self._may_be_changed(output) and activation_inside(model, model.graph.output[0].name) in ("none", "changed"):
            raise self._changed(file)

    def _may_be_changed(self, output: OutputSpec) -> bool:
        """Whether something follows probabilities, where numbers of classes are expected."""
        used_as_they_are = output.task == "regression" or output.activation == "none"
        activations = self._activations()
        computed_with = bool(activations) and activations[0] in PROBABILITIES and self.applied[0] != activations[0]
        return computed_with and not used_as_they_are

    def _activations(self) -> list[str]:
        return [step for step in self.applied if step not in (SCALED, MERGED, AVERAGED, OPERATION)]

    def _changed(self, file: str) -> UnsupportedCheckpointError:
        activation = self._activations()[0]
        after = self.applied[: self.applied.index(activation)]
        return UnsupportedCheckpointError(
            f"{file} applies {activation} and then {', then '.join(reversed(after))}: for classes its numbers are neither "
            f'probabilities nor what {activation} is made of. Say "activation": "none" in the card if they are to be used as '
            f"they are."
        )


def ending_of(config: Config, file: str) -> Ending:
    """How a network ends.

    Endings that are understood: a Dense layer, or a convolution whose map is pooled or reshaped to one row (MobileNet's own
    ``conv_preds``), each followed by activations, scaling or operations, and several such heads put together.

    Args:
        config: of the network.
        file: name of the checkpoint, for messages.

    Raises:
        UnsupportedCheckpointError: another end.
    """
    return _ending(answering_layers(config), file)


def _ending(steps: Iterator[Step], file: str, depth: int = 0) -> Ending:
    applied: list[str] = []
    reshaped = pooled = False
    kind = name = ""
    for layer, network in steps:
        kind, name = str(layer["class_name"]), layer_name(layer)
        if kind in PASSING:
            reshaped = reshaped or kind in ("Flatten", "Reshape")
        elif kind in ("GlobalAveragePooling2D", "GlobalMaxPooling2D") and not pooled:
            pooled = True
        elif kind == "Dense" or (kind == "Conv2D" and (reshaped or pooled)):
            settings, activation = settings_of(layer), activation_of(layer) or "linear"
            if pooled and activation not in ("linear", "relu"):
                raise UnsupportedCheckpointError(
                    f"{file} applies {activation!r} at each place of a map ({name!r}) and pools afterwards: its answers are "
                    f"neither logits nor what {activation!r} of a logit would be. Expected the activation after the pooling."
                )
            applied += [] if pooled or activation == "linear" else [activation]
            return Ending(int(settings.get("units") or settings.get("filters") or 0), tuple(applied))
        elif kind == "Conv2D":
            raise UnsupportedCheckpointError(
                f"{file} ends with a map of {settings_of(layer).get('filters')} channels ({name!r}, a convolution that nothing "
                f"pools or reshapes), expected one row of numbers for each picture: it is a segmentation network or one whose "
                f"pooling was left out"
            )
        elif pooled:
            break
        elif len(inbound_names(layer)) > 1 and (kind in MERGING or _is_operation(layer)) and depth < DEEPEST:
            return _merged(applied, layer, network, file, depth + 1)
        else:
            step = _step(layer)
            if step is None:
                break
            applied += [step] if step != "linear" else []
    raise UnsupportedCheckpointError(
        f"{file} ends with a layer {kind} ({name!r}), expected a Dense layer: the file holds features "
        f"without a head, or a head that is not known. Ask for the file of the whole network."
        if pooled or not applied
        else f"{file} ends with a layer {kind} ({name!r}) followed by {', then '.join(reversed(applied))}, expected a Dense "
        f"layer or a pooled convolution in front of these. Export the network as ONNX or as a SavedModel where it is defined."
    )


def _step(layer: Config) -> str | None:
    """What a layer with one input applies; None for one that is not understood here."""
    kind = str(layer["class_name"])
    if _is_operation(layer):
        return OPERATION
    if kind == "Activation":
        return activation_of(layer) or "linear"
    return SCALED if kind in SCALING else ACTIVATIONS.get(kind)


def _is_operation(layer: Config) -> bool:
    """Whether it is arithmetic written between layers: in Keras 3 it comes from modules called ``ops``."""
    return layer["class_name"] == "TFOpLambda" or ".ops." in f"{layer.get('module')}."


def _merged(applied: list[str], layer: Config, network: Config, file: str, depth: int) -> Ending:
    """The ending of heads of one form that are put together, such as those of an ensemble."""
    kind, name = str(layer["class_name"]), layer_name(layer)
    heads = [_ending(answering_layers(network, source), file, depth) for source in inbound_names(layer)]
    if kind not in MERGING or ".ops." in f"{layer.get('module')}.":
        kind = "operation"
    joined = kind == "Concatenate"
    if len({head.applied for head in heads}) > 1 or (len({head.columns for head in heads}) > 1 and not joined):
        found = ", ".join(f"{head.columns} with {' and '.join(head.applied) or 'nothing'} applied" for head in heads)
        raise UnsupportedCheckpointError(
            f"{file} puts {len(heads)} heads together at its end ({kind} {name!r}) that differ in their numbers of outputs or in "
            f"what is applied to them ({found}); what that means is not known. Expected heads of one form."
        )
    columns = sum(head.columns for head in heads) if joined else heads[0].columns
    inner = heads[0].applied
    if kind == "operation":
        return Ending(columns, (*applied, OPERATION, *inner))
    between = kind in BETWEEN or (joined and inner[:1] != ("softmax",))
    return Ending(columns, (*applied, AVERAGED if between else MERGED, *inner))
