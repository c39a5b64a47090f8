"""Which network a Keras file holds, from its own configuration: families of ``keras.applications``, or layers that are known."""

from __future__ import annotations

from functools import partial

from fundus_rt.converters.architecture import Architecture, LoadAccount, Network, refusal
from fundus_rt.converters.checkpoint import Checkpoint
from fundus_rt.converters.tensorflow.efficientnet_eras import notes_on_grey_levels, stored_statistics
from fundus_rt.converters.tensorflow.keras_config import (
    Config,
    data_format_of,
    input_shape_of,
    layer_names,
    walk_layers,
)
from fundus_rt.converters.tensorflow.keras_ending import ending_of
from fundus_rt.converters.tensorflow.keras_export import KerasNetwork, build_keras, require_columns
from fundus_rt.converters.tensorflow.keras_files import CONCLUDED
from fundus_rt.converters.tensorflow.keras_landmarks import changed_backbone, landmark_of_config
from fundus_rt.converters.tensorflow.keras_modern import modernised
from fundus_rt.models.card import ModelCard
from fundus_rt.models.errors import UnsupportedCheckpointError

PACKAGES = ("tensorflow", "tf_keras", "tf2onnx")

ANY_FAMILY = "keras"
"""Family of a card that takes any network of known layers: the file's own configuration is the architecture."""


def identify_keras(checkpoint: Checkpoint, card: ModelCard) -> Architecture:
    """Say which network a Keras file holds; weights only are first rebuilt, see `keras_weights.rebuilt`.

    Args:
        checkpoint: of Keras 2 or 3.
        card: with ``keras`` among its families, any network of known layers is taken.

    Raises:
        UnsupportedCheckpointError: a family that the card does not take, one of its size changed, several inputs or outputs,
            no fixed number of outputs, pictures of another number of channels than three.
    """
    notes: tuple[str, ...] = ()
    warnings = tuple(note for note in checkpoint.notes if note.startswith(CONCLUDED))
    form = "full model" if checkpoint.format != "keras-h5-weights" else "weights with their configuration"
    made_here = checkpoint.keras_config is None
    if made_here:
        from fundus_rt.converters.tensorflow.keras_weights import rebuilt

        checkpoint, notes, warnings = rebuilt(checkpoint, card)
        form = "weights only, rebuilt from its layers' names"
    config = checkpoint.keras_config or {}
    family, title = _family(checkpoint, card, config, made_here)
    layout = data_format_of(config)
    if layout == "mixed":
        raise UnsupportedCheckpointError(
            f"{checkpoint.path.name} has layers with channels first and layers with channels last; expected one of the two"
        )
    size = _input_size(checkpoint, card, config, layout == "channels_first")
    head = ending_of(config, checkpoint.path.name)
    columns, activation = head.columns, head.activation(card.outputs[0], checkpoint.path.name)
    tensors, numbers = len(checkpoint.shapes), checkpoint.parameters
    account = LoadAccount(tensors, numbers, tensors, numbers, numbers)
    ending = {"none": "linear", None: "its end is read from the graph"}.get(activation, activation)
    described = (
        f"{title}, {size[0]} x {size[1]} pixels, {columns} output{'s' if columns > 1 else ''} ({ending}), {form}"
        + (", channels first" if layout == "channels_first" else "")
    )  # fmt: skip
    if not checkpoint.keras_version.startswith("3."):
        notes += modernised(config)[1]
    efficientnet = "EfficientNet-B" in title and "stem_conv" in layer_names(config)
    grey_levels = notes_on_grey_levels(config, stored_statistics(checkpoint), card.preprocessing, efficientnet)
    notes, warnings = notes + grey_levels[0], warnings + grey_levels[1]
    if layout == "channels_first":
        notes += (
            "channels first: the reference answers are those of TensorFlow with its own graph optimiser turning the layout for "
            "the CPU; the network itself was not rewritten",
        )

    check = partial(head.require_probabilities, output=card.outputs[0], file=checkpoint.path.name)

    def build() -> Network:
        network = require_columns(build_keras(checkpoint, described, made_here), columns, checkpoint.path.name)
        return KerasNetwork(network, size, check, layout == "channels_first")

    return Architecture(family, described, size, columns, activation, account, build, "tf2onnx", PACKAGES, notes, warnings)


def _family(checkpoint: Checkpoint, card: ModelCard, config: Config, made_here: bool) -> tuple[str, str]:
    """Family and title, which are the card's, or of any network of known layers where the card takes those.

    Args:
        checkpoint: the file.
        card: whose families count.
        config: of the network.
        made_here: whether the configuration was made by keras.applications here, so that its size is the published one.

    Raises:
        UnsupportedCheckpointError: neither.
    """
    landmark, unknown = landmark_of_config(config)
    title = f"a Keras {landmark.title}" if landmark else unknown
    changed = changed_backbone(checkpoint, landmark) if landmark and not made_here else ""
    if landmark and not changed and landmark.family in card.families:
        return landmark.family, title
    if ANY_FAMILY in card.families:
        layers = list(walk_layers(config))
        kinds = len({layer["class_name"] for layer in layers})
        known = changed or (title if landmark else "a Keras network of its own")
        return ANY_FAMILY, f"{known} ({len(layers)} layers of {kinds} kinds, {checkpoint.parameters:,} parameters)"
    advice = ""
    if changed or not landmark:
        advice = (
            f" Every layer of it is known, so a card whose families are ['{ANY_FAMILY}'] takes it as its own configuration "
            f"describes it."
        )
    error = refusal(checkpoint, card, changed or title)
    raise UnsupportedCheckpointError(f"{error}{advice}") from None


def _input_size(checkpoint: Checkpoint, card: ModelCard, config: Config, channels_first: bool) -> tuple[int, int]:
    """Height and width of the outermost input; the card's where the network takes any."""
    file = checkpoint.path.name
    shape = input_shape_of(config)
    if shape is None:
        raise UnsupportedCheckpointError(f"{file} does not say the shape of its input; save it again with one")
    where = 1 if channels_first else 3
    if len(shape) != 4 or shape[where] not in (3, None):
        channels = shape[where] if len(shape) == 4 else None
        grey = " (grey pictures); fundus photographs are prepared in colour" if channels == 1 else ""
        expected = "[None, 3, height, width]" if channels_first else "[None, height, width, 3]"
        words = f"{channels} channel{'s' if channels != 1 else ''}{grey}" if channels else f"an input of {len(shape)} dimensions"
        raise UnsupportedCheckpointError(f"{file} takes {words}: its input has the shape {shape}, expected {expected}")
    height, width = (length for index, length in enumerate(shape) if index not in (0, where))
    preset = card.preprocessing.input_size
    return int(height or preset[0]), int(width or preset[1])
