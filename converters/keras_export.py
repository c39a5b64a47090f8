"""A Keras 2 network through tf_keras: its reference answers, and its ONNX graph through tf2onnx.

tf_keras keeps the classes of Keras 2, so the file's own configuration is loaded as it is: DepthwiseConv2D with ``groups``
(which Keras 3 refuses), the normalisation layers of every EfficientNet era, old ``Model`` classes. Nothing is rebuilt from
a family's name, so nothing can be rebuilt wrongly.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from fundus_rt.converters.architecture import Architecture
from fundus_rt.converters.backends import quiet_standard_error, quiet_tracing, require, require_keras
from fundus_rt.converters.checkpoint import Checkpoint
from fundus_rt.converters.parity import REFERENCE_BATCH
from fundus_rt.models.errors import UnsupportedCheckpointError

OPSET = 17


def build_keras(checkpoint: Checkpoint, architecture: Architecture) -> Any:
    """Load a full-model ``.h5`` without its training state, and hold its parameters against the file's.

    Raises:
        UnsupportedCheckpointError: Keras cannot load it, or loads another number of parameters than the file holds.
        BackendUnavailableError: TensorFlow or tf_keras is missing.
    """
    _, keras = require_keras()
    try:
        with quiet_tracing():
            network = keras.models.load_model(checkpoint.path, compile=False, safe_mode=not checkpoint.trusted)
    except Exception as error:  # whatever a layer's constructor raises on settings that it does not know
        text = " ".join(str(error).split())[:300]
        raise UnsupportedCheckpointError(
            f"{checkpoint.path.name} (Keras {checkpoint.keras_version}) is recognised as {architecture.description} but "
            f"Keras cannot load it: {type(error).__name__}: {text}"
        ) from error
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


def onnx_from_keras(network: Any, input_size: tuple[int, int]) -> Any:
    """Convert with tf2onnx, batch dynamic, BatchNorm folded into the convolutions.

    Args:
        network: as `build_keras` gives it.
        input_size: height and width, pixels.

    Returns:
        An `onnx.ModelProto` with one input float32 [N, H, W, 3].

    Raises:
        UnsupportedCheckpointError: an operation that tf2onnx does not know.
        BackendUnavailableError: tf2onnx is missing.
    """
    tensorflow, _ = require_keras()
    with quiet_standard_error():
        converter = require("tf2onnx").convert
    signature = (tensorflow.TensorSpec((None, *input_size, 3), tensorflow.float32, name="images"),)
    try:
        with quiet_tracing(), _garbage_collected_often():
            model, _ = converter.from_keras(network, input_signature=signature, opset=OPSET)
    except Exception as error:  # whatever tf2onnx raises on an operation that it does not know
        text = " ".join(str(error).split())[:300]
        raise UnsupportedCheckpointError(f"tf2onnx cannot export the network: {type(error).__name__}: {text}") from error
    return model


@contextmanager
def _garbage_collected_often() -> Iterator[None]:
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
