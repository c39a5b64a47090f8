"""Other ways to the same answers: the original framework as its sample code calls it and at its best, and plain runtimes."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from fundus_rt.benchmarks.conversion_speed import plain_graph_of
from fundus_rt.benchmarks.proof.original import OriginalModel
from fundus_rt.benchmarks.proof.photographs import Case, photograph_of
from fundus_rt.benchmarks.speed.own_ways import BYTES_TO_RESULT, NETWORK_ONLY, Sample
from fundus_rt.converters.backends import quiet_standard_error, quiet_tracing
from fundus_rt.converters.original_preprocessing import Photograph, normalised, original_inputs
from fundus_rt.models.artifacts import sha256_of_bytes
from fundus_rt.models.card import ModelCard

Network = Callable[[np.ndarray], np.ndarray]
"""From float32 [1, H, W, 3], normalised, in the network's colour order, to float32 [1, columns]."""


@dataclass(frozen=True)
class Way:
    """One way from a sample to the network's numbers."""

    name: str
    part: str
    answer: Callable[[int], np.ndarray]
    """From a sample's index to float32 [columns] of the card's first output."""
    precision: str = "fp32"
    """Of its graph; decides by how much its answers may differ."""


@dataclass(frozen=True)
class Missing:
    """A way that could not be opened here, and why; one that answered otherwise is none of these."""

    name: str
    reason: str


@dataclass(frozen=True)
class PreparedOriginals:
    """The photographs on the original's side."""

    photographs: list[Photograph]
    images: list[np.ndarray]
    """float32 [1, H, W, 3] each, normalised."""


def prepared_originals(original: OriginalModel, samples: Sequence[Sample]) -> PreparedOriginals:
    """Crop and eye of every photograph, which the original's sample code does not look for, and the network's inputs.

    Raises:
        DecodeError: the author's decoder cannot read a photograph.
    """
    photographs = [
        photograph_of(Case("", sample.content, sha256_of_bytes(sample.content), sample.eye), original.card) for sample in samples
    ]
    images = [_input(original.card, original.framework, photograph) for photograph in photographs]
    return PreparedOriginals(photographs, images)


def framework_ways(original: OriginalModel, prepared: PreparedOriginals, threads: int, compiled: bool) -> Iterator[Way | Missing]:
    """The original framework's ways in both parts; the first is the one that its sample code takes.

    Args:
        original: the checkpoint in its framework.
        prepared: its photographs.
        threads: of torch, for its best ways. TensorFlow's are fixed when it is loaded: all cores.
        compiled: try `torch.compile` too.
    """
    makers = _torch_networks(original, threads, compiled) if original.framework == "pytorch" else _keras_networks(original)
    if original.framework == "onnx":
        makers = {"original file, ONNX Runtime without optimisation": lambda: original.network.answers}
    for name, make in makers.items():
        try:
            with quiet_tracing():
                network = make()
                network(prepared.images[0])  # traces, compiles
        except Exception as error:  # frameworks raise classes of their own; the way is listed with the reason
            yield Missing(name, f"{type(error).__name__}: {' '.join(str(error).split())[:200]}")
            continue
        yield Way(name, NETWORK_ONLY, _on_images(network, prepared.images))
        yield Way(name, BYTES_TO_RESULT, _on_bytes(network, original, prepared.photographs))


def runtime_ways(original: OriginalModel, prepared: PreparedOriginals) -> Iterator[Way | Missing]:
    """ONNX Runtime and OpenVINO with the settings that a user gets who sets none, on the plain exporter's graph.

    Where the plain exporter cannot write the network, both are missing with its reason.
    """
    names = ("ONNX Runtime, default settings, plain export", "OpenVINO, default settings, plain export")
    try:
        with quiet_tracing(), quiet_standard_error():
            content = plain_graph_of(original.network, original.card).SerializeToString()
    except Exception as error:  # torch's and tf2onnx' exporters raise anything
        for name in names:
            yield Missing(name, f"no plain export: {type(error).__name__}: {' '.join(str(error).split())[:200]}")
        return
    for name, opened in zip(names, (_plain_onnxruntime, _plain_openvino), strict=True):
        try:
            network = opened(content)
            network(prepared.images[0])
        except Exception as error:  # a runtime that is not installed, or refuses the graph, with classes of its own
            yield Missing(name, f"{type(error).__name__}: {' '.join(str(error).split())[:200]}")
            continue
        yield Way(name, NETWORK_ONLY, _on_images(network, prepared.images))
        yield Way(name, BYTES_TO_RESULT, _on_bytes(network, original, prepared.photographs))


@contextmanager
def torch_threads(threads: int) -> Iterator[None]:
    """torch on so many threads inside the block, where torch is installed."""
    try:
        import torch
    except ImportError:
        yield
        return
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _on_images(network: Network, images: list[np.ndarray]) -> Callable[[int], np.ndarray]:
    return lambda index: np.asarray(network(images[index % len(images)])[0])


def _on_bytes(network: Network, original: OriginalModel, photographs: list[Photograph]) -> Callable[[int], np.ndarray]:
    card, framework = original.card, original.framework

    def answer(index: int) -> np.ndarray:
        return np.asarray(network(_input(card, framework, photographs[index % len(photographs)]))[0])

    return answer


def _input(card: ModelCard, framework: str, photograph: Photograph) -> np.ndarray:
    """The network's input as the author's libraries make it, float32 [1, H, W, 3].

    For Keras what its `load_img` does (Pillow: open, RGB, resize), with the card's crop before the resize.
    """
    spec = card.preprocessing
    if framework not in ("keras", "tensorflow") or not spec.interpolation.startswith("pillow-"):
        return original_inputs([photograph], spec, framework).images
    with Image.open(io.BytesIO(photograph.content)) as opened:
        picture: Image.Image = ImageOps.exif_transpose(opened).convert("RGB")
    if photograph.box != (0, 0, *picture.size):
        picture = picture.crop(photograph.box)
    picture = ImageOps.mirror(picture) if photograph.mirror else picture
    height, width = spec.input_size
    name = spec.interpolation.partition("-")[2].upper()
    levels = np.asarray(picture.resize((width, height), Image.Resampling[name]), np.float32)
    return normalised(levels[None], spec, framework)


def _keras_networks(original: OriginalModel) -> dict[str, Callable[[], Network]]:
    """``model.predict`` and `tf.function`; a SavedModel has its own function alone."""
    held = original.network
    network = getattr(held, "network", None)
    if network is None or getattr(held, "channels_first", False):
        return {f"{original.framework}, its own call": lambda: held.answers}

    def traced() -> Network:
        import tensorflow

        call = tensorflow.function(lambda images: network(images, training=False), reduce_retracing=True)
        return lambda images: np.asarray(call(tensorflow.constant(images)).numpy())

    return {
        "Keras, model.predict": lambda: lambda images: np.asarray(network.predict(images, verbose=0)),
        "Keras, tf.function": traced,
    }


def _torch_networks(original: OriginalModel, threads: int, compiled: bool) -> dict[str, Callable[[], Network]]:
    """Eager without gradients; inference mode in channels-last memory; and that compiled."""
    import torch

    network = original.network.original

    def answers(called: Any, mode: Any, memory_format: Any) -> Network:
        def answer(images: np.ndarray) -> np.ndarray:
            with mode():
                given = torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))
                return np.asarray(called(given.contiguous(memory_format=memory_format)).numpy())

        return answer

    def best() -> Network:
        torch.set_num_threads(threads)
        return answers(network, torch.inference_mode, torch.channels_last)

    def compile_it() -> Network:
        with quiet_standard_error():
            called = torch.compile(network)
            network_answers = answers(called, torch.inference_mode, torch.channels_last)
            height, width = original.card.preprocessing.input_size
            network_answers(np.zeros((1, height, width, 3), np.float32))
        return network_answers

    found: dict[str, Callable[[], Network]] = {
        "PyTorch, eager, no_grad": lambda: answers(network, torch.no_grad, torch.contiguous_format),
        "PyTorch, inference_mode, channels_last": best,
    }
    if compiled:
        found["PyTorch, torch.compile, inference_mode, channels_last"] = compile_it
    return found


def _plain_onnxruntime(content: bytes) -> Network:
    from fundus_rt.runtime.onnx_session import import_onnxruntime

    session = import_onnxruntime().InferenceSession(content, providers=["CPUExecutionProvider"])
    first = session.get_inputs()[0]
    channels_first = first.shape[1] == 3

    def answer(images: np.ndarray) -> np.ndarray:
        given = np.ascontiguousarray(images.transpose(0, 3, 1, 2)) if channels_first else images
        return np.asarray(session.run(None, {first.name: given})[0])

    return answer


def _plain_openvino(content: bytes) -> Network:
    from fundus_rt.runtime.openvino_session import import_openvino, shared_core

    core = shared_core(import_openvino())
    compiled = core.compile_model(core.read_model(content), "CPU")
    shape = compiled.inputs[0].get_partial_shape()
    channels_first = shape[1].is_static and shape[1].get_length() == 3
    request = compiled.create_infer_request()

    def answer(images: np.ndarray) -> np.ndarray:
        given = np.ascontiguousarray(images.transpose(0, 3, 1, 2)) if channels_first else images
        return np.array(request.infer([given])[compiled.outputs[0]])

    return answer
