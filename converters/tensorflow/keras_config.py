"""The configuration that a Keras file holds: its layers, how they hang together, and which one answers.

Pure JSON: nothing of Keras is imported, and nothing that the configuration names is looked up.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from fundus_rt.models.errors import UnsupportedCheckpointError

Config = dict[str, Any]

NETWORKS = ("Functional", "Model", "Sequential")
"""Classes that hold layers."""

ACTIVATION_CLASSES = {"ReLU": "relu", "Softmax": "softmax"}
"""Layers that compute what a function of Keras does (ReLU also bounded or leaking, as its own settings say)."""


def walk_layers(config: Config) -> Iterator[Config]:
    """Every layer of a ``model_config``, nested models before what is in them, and layers given as another's activation."""
    for layer in layers_of(config):
        yield layer
        inside = activation_layer(layer)
        if inside is not None:
            yield inside
        if layer["class_name"] in NETWORKS:
            yield from walk_layers(layer)
        elif isinstance(layer.get("config"), dict) and isinstance(layer["config"].get("layer"), dict):
            yield layer["config"]["layer"]  # a wrapper such as TimeDistributed


def layers_of(config: Config) -> list[Config]:
    """The layers directly in a network's configuration; a Sequential before Keras 2.2.3 has a list in place of an object."""
    settings = config.get("config", {})
    layers: list[Config] = settings if isinstance(settings, list) else settings.get("layers", [])
    return layers


def settings_of(layer: Config) -> Config:
    """A layer's own settings; empty where it has none."""
    settings = layer.get("config")
    return settings if isinstance(settings, dict) else {}


def layer_name(layer: Config) -> str:
    """The name under which other layers and the weights refer to it."""
    return str(layer.get("name") or settings_of(layer).get("name") or layer["class_name"])


def automatic_name(kind: str) -> str:
    """The name, before its running number, that Keras gives to a layer of a class: ``conv2d``, ``global_max_pooling2d``."""
    words = re.sub(r"(.)([A-Z][a-z0-9]+)", r"\1_\2", re.sub(r"\W+", "", kind))
    return re.sub(r"([a-z])([A-Z])", r"\1_\2", words).lower()


def layer_names(config: Config) -> list[str]:
    """Names of all layers in the file's order."""
    return [layer_name(layer) for layer in walk_layers(config)]


def activation_layer(layer: Config) -> Config | None:
    """The layer that stands for a layer's activation, as in ``Conv2D(activation=LeakyReLU(0.1))``; None for a function.

    An Activation layer is a function again, which `activation_of` names.
    """
    activation = settings_of(layer).get("activation")
    if not isinstance(activation, dict) or not isinstance(activation.get("config"), dict):
        return None
    return activation_layer(activation) if activation.get("class_name") == "Activation" else activation


def activation_of(layer: Config) -> str | None:
    """Name of the activation function in a layer's settings, whichever way it is written.

    Returns:
        The name of a function; of a layer (`activation_layer`) ``relu`` and ``softmax`` for those two, else its class, for its
        own name says nothing of what it computes; None where there is none.
    """
    inside = activation_layer(layer)
    if inside is not None:
        kind = str(inside.get("class_name"))
        return ACTIVATION_CLASSES.get(kind, kind)
    activation = settings_of(layer).get("activation")
    while isinstance(activation, dict):
        inner = activation.get("config", activation.get("class_name"))
        activation = inner.get("activation") if isinstance(inner, dict) else inner
    return None if activation is None else str(activation)


def data_format_of(config: Config) -> str:
    """``channels_first``, ``channels_last``, or ``mixed`` where layers disagree."""
    formats = {str(settings_of(layer)["data_format"]) for layer in walk_layers(config) if settings_of(layer).get("data_format")}
    if len(formats) > 1:
        return "mixed"
    return formats.pop() if formats else "channels_last"


def input_shape_of(config: Config) -> list[int | None] | None:
    """Shape of the outermost input with the batch in front; None where the configuration does not say it.

    Raises:
        UnsupportedCheckpointError: the network takes several inputs.
    """
    settings = settings_of(config)
    inputs = settings.get("input_layers")
    if inputs and not isinstance(inputs[0], str) and len(inputs) > 1:
        names = ", ".join(str(entry[0]) for entry in inputs)
        raise UnsupportedCheckpointError(f"the network takes {len(inputs)} inputs ({names}), expected one picture")
    for layer in (config, *walk_layers(config)):
        own = settings_of(layer)
        shape = own.get("batch_input_shape") or own.get("batch_shape")
        if shape:
            return list(shape)
    return None


def answering_layers(config: Config, start: str | None = None) -> Iterator[tuple[Config, Config]]:
    """The layer that gives the network's output, then what feeds it, and so on back, as long as each has one input.

    Nested models are gone through: their last layer follows in place of the model itself.

    Args:
        config: of the network.
        start: name of the layer to begin with, in place of the one that gives the output.

    Yields:
        A layer, and the configuration of the network that it lies in.

    Raises:
        UnsupportedCheckpointError: the network has more than one output.
    """
    layers = layers_of(config)
    by_name = {layer_name(layer): layer for layer in layers}
    sequential = config.get("class_name") == "Sequential" or isinstance(config.get("config"), list)
    last: Config | None = layers[-1] if layers else None
    outputs = None if sequential else settings_of(config).get("output_layers")
    if start is not None:
        last = by_name.get(start)
    elif outputs:
        outputs = [outputs] if isinstance(outputs[0], str) else outputs
        if len(outputs) != 1:
            names = ", ".join(str(entry[0]) for entry in outputs)
            raise UnsupportedCheckpointError(
                f"the network has {len(outputs)} outputs ({names}), expected one; cut it down to one in Keras, with "
                f"keras.Model(model.input, model.get_layer(NAME).output), and save that"
            )
        last = by_name.get(str(outputs[0][0]))
    while last is not None:
        if last["class_name"] in NETWORKS:
            yield from answering_layers(last)
        else:
            yield last, config
        if sequential:
            position = layers.index(last)
            last = layers[position - 1] if position else None
        else:
            sources = inbound_names(last)
            last = by_name.get(sources[0]) if len(sources) == 1 else None


def inbound_names(layer: Config) -> list[str]:
    """Names of the layers whose outputs a layer of a Functional network takes, in order; Keras 2 and 3."""
    found: list[str] = []

    def look(value: Any) -> None:
        if isinstance(value, dict):
            history = value.get("config", {}).get("keras_history") if value.get("class_name") == "__keras_tensor__" else None
            if history:
                found.append(str(history[0]))
            else:
                for inner in value.values():
                    look(inner)
        elif isinstance(value, list):
            if len(value) >= 3 and isinstance(value[0], str) and isinstance(value[1], int) and isinstance(value[2], int):
                found.append(value[0])
                look(value[3:])
            else:
                for inner in value:
                    look(inner)

    look(layer.get("inbound_nodes", []))
    return found
