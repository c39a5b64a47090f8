"""A Keras 2 network through tf_keras: its reference answers, and its ONNX graph through tf2onnx.

The file's own configuration is the network (see `keras_modern` for what is renamed in it): nothing is rebuilt from a family's
name where the file says what it is. The weights are put in by name (`keras_loading`).
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from fundus_rt.converters.backends import quiet_standard_error, quiet_tracing, require, require_keras
from fundus_rt.converters.checkpoint import Checkpoint
from fundus_rt.converters.parity import REFERENCE_BATCH
from fundus_rt.converters.tensorflow.keras_loading import load_weights
from fundus_rt.converters.tensorflow.keras_modern import custom_layers, modernised
from fundus_rt.models.errors import UnsupportedCheckpointError

OPSET = 17


class KerasNetwork:
    """A Keras network with a checkpoint's weights: see `fundus_rt.converters.architecture.Network`."""

    def __init__(
        self, network: Any, input_size: tuple[int, int], check: Callable[[Any], None], channels_first: bool = False
    ) -> None:
        """Hold a network as `build_keras` gives it.

        Args:
            network: a ``tf_keras`` model.
            input_size: height and width of the pictures.
            check: called with the graph, before it is handed on.
            channels_first: whether it takes [N, 3, H, W], as those of ``data_format="channels_first"`` do.
        """
        self.network = network
        self.input_size = input_size
        self.check = check
        self.channels_first = channels_first

    def answers(self, images: np.ndarray) -> np.ndarray:
        """Answers of Keras: float32, first axis N, of images float32 [N, H, W, 3]."""
        if self.channels_first:
            return channels_first_answers(self.network, np.ascontiguousarray(images.transpose(0, 3, 1, 2)))
        return keras_answers(self.network, images)

    def graph(self) -> Any:
        """ONNX graph by tf2onnx."""
        model = onnx_from_keras(self.network, self.input_size, self.channels_first)
        self.check(model)
        return model

    def close(self) -> None:
        """Forget the network, and what Keras keeps of it."""
        self.network = None
        forget_keras()


def build_keras(checkpoint: Checkpoint, description: str, made_here: bool = False) -> Any:
    """Build the network of a file's configuration, without its training state, and load every weight of the file into it.

    Args:
        checkpoint: with `keras_config`, searched for code; the weights are read from its path.
        description: for the message of a failure.
        made_here: whether the configuration is that of keras.applications itself, and not one that lay beside the weights.

    Raises:
        UnsupportedCheckpointError: Keras cannot build it, the weights are not exactly the network's, several inputs or outputs,
            or an output that is not one row of numbers per picture.
        BackendUnavailableError: TensorFlow or tf_keras is missing.
    """
    _, keras = require_keras()
    config, _ = modernised(checkpoint.keras_config or {})
    try:
        with quiet_tracing(), quiet_standard_error():
            network = keras.models.model_from_config(config, custom_objects=custom_layers())
    except Exception as error:  # whatever a layer's constructor raises on settings that it does not know
        text = " ".join(str(error).split())[:300]
        raise UnsupportedCheckpointError(
            f"{checkpoint.path.name} (Keras {checkpoint.keras_version}) is recognised as {description} but "
            f"Keras cannot build it: {type(error).__name__}: {text}"
        ) from error
    if not network.built:
        raise UnsupportedCheckpointError(
            f"{checkpoint.path.name} does not say the shape of its input, so its layers have no weights to load into; save it "
            f"again from a network that was called once, or whose first layer has input_shape"
        )
    with require("h5py").File(checkpoint.path, "r") as file:
        made_apart = checkpoint.format == "keras-h5-weights" and not made_here
        load_weights(network, file.get("model_weights", file), checkpoint.path, made_apart)
    loaded = int(sum(np.prod(weight.shape) for weight in network.weights))
    if loaded != checkpoint.parameters:
        raise UnsupportedCheckpointError(
            f"{checkpoint.path.name}: the network has {loaded:,} parameters, the file {checkpoint.parameters:,}; a network "
            f"loaded in part gives wrong answers, so nothing is converted"
        )
    if len(network.outputs) != 1 or len(network.inputs) != 1:
        raise UnsupportedCheckpointError(
            f"{checkpoint.path.name} has {len(network.inputs)} inputs and {len(network.outputs)} outputs, expected one each"
        )
    shape = tuple(network.outputs[0].shape)
    if len(shape) != 2:
        raise UnsupportedCheckpointError(
            f"{checkpoint.path.name} answers with {list(shape)}, expected [N, columns]: a map or a sequence, not one row of "
            f"numbers for each picture"
        )
    return network


def require_columns(network: Any, columns: int, file: str) -> Any:
    """The network, if it gives as many numbers as its configuration was read to give.

    Args:
        network: as `build_keras` or `build_keras3` gives it.
        columns: numbers for each picture that were told from the configuration.
        file: name of the checkpoint, for the message.

    Raises:
        UnsupportedCheckpointError: another number, or no fixed one: a Dense layer at each place of a map, for example.
    """
    shape = tuple(network.outputs[0].shape)
    if shape[1:] != (columns,):
        raise UnsupportedCheckpointError(
            f"{file} answers with {list(shape)}, but its last layer with weights has {columns} outputs: it stands at each place "
            f"of a map, or its numbers are put together afterwards. Expected [None, {columns}]."
        )
    return network


def keras_answers(network: Any, images: np.ndarray) -> np.ndarray:
    """Answers of a Keras network on prepared images.

    Args:
        network: as `build_keras` gives it.
        images: float32 [N, H, W, 3], as the network expects them.

    Returns:
        float32, first axis N.
    """
    return np.asarray(network.predict(images, batch_size=REFERENCE_BATCH, verbose=0))


def channels_first_answers(network: Any, images: np.ndarray) -> np.ndarray:
    """Answers of a network with its channels first, on the CPU.

    TensorFlow has no convolutions with channels first on a CPU. Its own graph optimiser (Grappler's layout pass) turns the
    network's graph into channels last, as it does the other way round for GPUs; the network itself is not rewritten here.

    Args:
        network: a ``tf_keras`` model of ``data_format="channels_first"``.
        images: float32 [N, 3, H, W], as the network expects them.

    Returns:
        float32, first axis N.
    """
    tensorflow, _ = require_keras()
    freeze = require("tensorflow.python.framework.convert_to_constants").convert_variables_to_constants_v2
    protocol = require("tensorflow.core.protobuf.config_pb2")
    rewriter = require("tensorflow.core.protobuf.rewriter_config_pb2").RewriterConfig
    with quiet_tracing():
        signature = tensorflow.TensorSpec((None, *images.shape[1:]), tensorflow.float32)
        traced = tensorflow.function(lambda tensor: network(tensor, training=False)).get_concrete_function(signature)
        frozen = freeze(traced)
    settings = protocol.ConfigProto()
    passes = settings.graph_options.rewrite_options
    passes.layout_optimizer = rewriter.ON
    passes.cpu_layout_conversion = rewriter.NCHW_TO_NHWC
    passes.min_graph_nodes = -1  # graphs of any size
    graph = tensorflow.Graph()
    with graph.as_default():
        tensorflow.import_graph_def(frozen.graph.as_graph_def(), name="")
    given, wanted = frozen.inputs[0].name, frozen.outputs[0].name
    with quiet_standard_error(), tensorflow.compat.v1.Session(graph=graph, config=settings) as session:
        parts = [
            session.run(wanted, {given: images[start : start + REFERENCE_BATCH]})
            for start in range(0, len(images), REFERENCE_BATCH)
        ]
    return np.concatenate(parts)


def onnx_from_keras(network: Any, input_size: tuple[int, int], channels_first: bool = False) -> Any:
    """Convert with tf2onnx, batch dynamic, BatchNorm folded into the convolutions.

    Args:
        network: as `build_keras` gives it.
        input_size: height and width, pixels.
        channels_first: whether the network takes [N, 3, H, W].

    Returns:
        An `onnx.ModelProto` with one input float32 [N, H, W, 3], or [N, 3, H, W] with its channels first.

    Raises:
        UnsupportedCheckpointError: an operation that tf2onnx does not know.
        BackendUnavailableError: tf2onnx is missing.
    """
    tensorflow, _ = require_keras()
    with quiet_standard_error():
        converter = require("tf2onnx").convert
    shape = (None, 3, *input_size) if channels_first else (None, *input_size, 3)
    signature = (tensorflow.TensorSpec(shape, tensorflow.float32, name="images"),)
    try:
        with quiet_tracing(), garbage_collected_often():
            model, _ = converter.from_keras(network, input_signature=signature, opset=OPSET)
    except Exception as error:  # whatever tf2onnx raises on an operation that it does not know
        text = " ".join(str(error).split())[:300]
        raise UnsupportedCheckpointError(f"tf2onnx cannot export the network: {type(error).__name__}: {text}") from error
    return model


@contextmanager
def garbage_collected_often() -> Iterator[None]:
    """Let Python find cyclic garbage soon inside the block.

    tf2onnx copies the whole graph, weights included, before each of its passes, and the copies end as cycles. Python looks
    for those only after the number of objects has grown by a quarter, and TensorFlow has millions: 9.7 GiB for
    EfficientNet-B7. With the objects of before set aside, a quarter of little is soon reached, and looking is quick.
    """
    thresholds = gc.get_threshold()
    gc.collect()
    gc.freeze()
    gc.collect()
    gc.set_threshold(thresholds[0], thresholds[1], 1)
    try:
        yield
    finally:
        gc.set_threshold(*thresholds)
        gc.unfreeze()
        gc.collect()


def forget_keras() -> None:
    """Free what Keras keeps of the networks loaded so far."""
    _, keras = require_keras()
    keras.backend.clear_session()
    gc.collect()
