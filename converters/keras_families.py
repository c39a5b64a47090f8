"""Families of ``keras.applications``, told from the layer names of a file's own configuration."""

from __future__ import annotations

import math
import re
from typing import Any

from fundus_rt.converters.architecture import Architecture, LoadAccount, refusal
from fundus_rt.converters.checkpoint import Checkpoint
from fundus_rt.converters.keras_files import last_layer, layer_names, walk_layers
from fundus_rt.models.card import ModelCard
from fundus_rt.models.errors import UnsupportedCheckpointError

EFFICIENTNET_REPEATS = (1, 2, 2, 3, 3, 4, 1)
"""Blocks per stage of EfficientNet-B0 (Tan & Le, arXiv 1905.11946, table 1)."""

EFFICIENTNET_SCALES = ((1.0, 1.0), (1.0, 1.1), (1.1, 1.2), (1.2, 1.4), (1.4, 1.8), (1.6, 2.2), (1.8, 2.6), (2.0, 3.1))
"""Width and depth coefficients of B0 to B7, as keras.applications and the authors' own code have them."""

LANDMARKS = (
    ("mobilenet", "MobileNet (v1)", ("conv_dw_1", "conv_pw_13"), ()),
    ("inception-v3", "Inception-v3", ("mixed0", "mixed10"), ("mixed_7a",)),
    ("inception-resnet-v2", "Inception-ResNet-v2", ("mixed_7a", "conv_7b", "block8_10"), ()),
    ("resnet-50", "ResNet-50", ("conv4_block6_out", "conv5_block3_out", "conv1_conv"), ("conv4_block7_out", "conv1_pad_v2")),
    ("mobilenet-v2", "MobileNetV2", ("block_16_project", "expanded_conv_project"), ()),
    ("xception", "Xception", ("block14_sepconv2",), ()),
    ("densenet", "DenseNet", ("conv5_block16_concat", "conv4_block24_concat"), ()),
    ("resnet-deep", "ResNet-101 or deeper", ("conv4_block7_out", "conv5_block3_out"), ()),
    ("efficientnet-v2", "EfficientNetV2", ("block1a_project_conv", "block4a_dwconv2"), ()),
)
"""Family, its name for the reader, layers that all have to be there, layers of which none may be."""


def identify_keras(checkpoint: Checkpoint, card: ModelCard) -> Architecture:
    """Say which family of keras.applications a full-model ``.h5`` holds.

    Raises:
        UnsupportedCheckpointError: a family that is not known, more than one output, no fixed number of outputs, a layout
            with channels first.
    """
    config = checkpoint.keras_config or {}
    names = set(layer_names(config))
    family, title = _family(names, config)
    if not family or family not in card.families:
        raise refusal(checkpoint, card, title)
    if any(_settings(layer).get("data_format") == "channels_first" for layer in walk_layers(config)):
        raise UnsupportedCheckpointError(
            f"{checkpoint.path.name} has its channels first, which Keras cannot run on a CPU, so it cannot be proved; not "
            f"supported yet. Rebuild it with data_format='channels_last' and the same weights."
        )
    size = _input_size(checkpoint, card, config)
    columns, activation = _ending(checkpoint, last_layer(config))
    tensors, numbers = len(checkpoint.shapes), checkpoint.parameters
    account = LoadAccount(tensors, numbers, tensors, numbers, numbers)
    described = (
        f"{title}, {size[0]} x {size[1]} pixels, {columns} output{'s' if columns > 1 else ''} "
        f"({activation if activation != 'none' else 'linear'}), full model"
    )
    return Architecture(family, described, size, columns, activation, account)


def _family(names: set[str], config: dict[str, Any]) -> tuple[str, str]:
    """Family and title; an empty family and a description where none fits."""
    if "stem_conv" in names and "block1a_dwconv" in names and "top_conv" in names:
        return _efficientnet(names, config)
    for family, title, present, absent in LANDMARKS:
        if names.issuperset(present) and names.isdisjoint(absent):
            return family, f"a Keras {title}"
    return "", f"a Keras network of {len(names)} layers that is not known"


def _efficientnet(names: set[str], config: dict[str, Any]) -> tuple[str, str]:
    """The variant by its depths and the width of its stem; scaled as Tan & Le's code does."""
    depths = tuple(len({n for n in names if re.fullmatch(rf"block{stage}[a-z]+_dwconv", n)}) for stage in range(1, 8))
    stem = next(_settings(layer).get("filters") for layer in walk_layers(config) if _settings(layer).get("name") == "stem_conv")
    for number, (width, depth) in enumerate(EFFICIENTNET_SCALES):
        scaled = tuple(math.ceil(depth * repeats) for repeats in EFFICIENTNET_REPEATS)
        if depths == scaled and stem == _round_filters(32 * width):
            return f"efficientnet-b{number}", f"a Keras EfficientNet-B{number}"
    return (
        "",
        f"a Keras EfficientNet of depths {'-'.join(map(str, depths))} and {stem} filters in its stem, none of B0 to B7",
    )


def _round_filters(filters: float) -> int:
    """The nearest multiple of 8 that is not below nine tenths of `filters` (`round_filters` of the authors' code)."""
    rounded = max(8, int(filters + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * filters else rounded


def _input_size(checkpoint: Checkpoint, card: ModelCard, config: dict[str, Any]) -> tuple[int, int]:
    """Height and width of the outermost input; the card's where the network takes any."""
    for layer in (config, *walk_layers(config)):
        settings = _settings(layer)
        shape = settings.get("batch_input_shape") or settings.get("batch_shape")
        if not shape:
            continue
        if len(shape) != 4 or shape[3] != 3:
            raise UnsupportedCheckpointError(
                f"{checkpoint.path.name} takes an input of shape {shape}, expected [None, height, width, 3] (colour)"
            )
        height, width = card.preprocessing.input_size
        return int(shape[1] or height), int(shape[2] or width)
    raise UnsupportedCheckpointError(f"{checkpoint.path.name} does not say the shape of its input; save it again with one")


def _ending(checkpoint: Checkpoint, layer: dict[str, Any]) -> tuple[int, str]:
    """Number of outputs and the activation at the network's end.

    Endings that are understood: a Dense layer, one followed by an activation, and MobileNet's own 1 x 1 convolution
    ``conv_preds``, whose number of filters is the number of outputs.
    """
    file = checkpoint.path.name
    kind, settings = layer["class_name"], _settings(layer)
    activation = settings.get("activation", "softmax" if kind == "Softmax" else "linear")
    if isinstance(activation, dict):
        activation = activation.get("config")
    if activation not in ("linear", "sigmoid", "softmax", None):
        raise UnsupportedCheckpointError(
            f"{file} ends with the activation {activation!r}; expected linear, sigmoid or softmax, whose meaning is known"
        )
    columns = settings.get("units") or settings.get("filters") or _columns_before(checkpoint)
    if not columns:
        raise UnsupportedCheckpointError(
            f"{file} ends with a layer {kind} ({settings.get('name')!r}), expected a Dense layer: the file holds features "
            f"without a head, or a head that is not known. Ask for the file of the whole network."
        )
    return int(columns), "none" if activation in ("linear", None) else str(activation)


def _columns_before(checkpoint: Checkpoint) -> int:
    """Outputs of the last layer with units or filters, when the network ends in layers without weights (activation,
    reshape); 0 when that layer is not a head."""
    layers = list(walk_layers(checkpoint.keras_config or {}))
    for layer in reversed(layers):
        settings = _settings(layer)
        if layer["class_name"] == "Dense" or settings.get("name") == "conv_preds":
            return int(settings.get("units") or settings.get("filters") or 0)
        if layer["class_name"] not in ("Activation", "Softmax", "Reshape", "Flatten", "Dropout"):
            return 0
    return 0


def _settings(layer: dict[str, Any]) -> dict[str, Any]:
    settings = layer.get("config")
    return settings if isinstance(settings, dict) else {}
