"""The kernels on a GPU, against the library that each filter is named after. Run with ``pytest -m gpu``."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fundus_rt.models.card import INTERPOLATIONS, PreprocessingSpec
from fundus_rt.models.errors import BackendUnavailableError, ReceiptError
from fundus_rt.runtime.decode import decode
from fundus_rt.runtime.field_of_view import find_field_of_view
from fundus_rt.runtime.nvidia.cuda_device import CudaDevice
from fundus_rt.runtime.nvidia.fused_kernel import FusedPreprocessor
from fundus_rt.runtime.nvidia.resize_taps import filter_matrices
from fundus_rt.runtime.nvidia.tensorrt_library import import_tensorrt
from fundus_rt.runtime.preprocess import crop_box, tensor_from_frame
from fundus_rt.runtime.resize import resize_box
from tests.filter_references import by_library, noise, without_ipp

pytestmark = pytest.mark.gpu

Box = tuple[int, int, int, int]
CASES = (
    ((151, 207), (70, 96), (-50, -30, 220, 240)),
    ((100, 130), (120, 111), (0, 0, 130, 100)),
    ((101, 131), (61, 53), (20, -31, 161, 60)),
    ((2000, 2100), (384, 384), (50, 0, 2050, 2000)),
    ((128, 256), (64, 128), (0, 0, 256, 128)),
    ((96, 120), (32, 20), (0, 0, 120, 96)),
    ((300, 9001), (64, 96), (-3, 2, 9003, 299)),
)
"""Frame, result and box; among them crops for each number of rows that a block takes."""


@pytest.fixture(scope="module")
def device() -> Iterator[CudaDevice]:
    try:
        found = CudaDevice(0)
    except BackendUnavailableError as error:
        pytest.skip(f"no GPU: {error}")
    yield found
    found.close()


def spec(interpolation: str, size: tuple[int, int], crop_mode: str = "none") -> PreprocessingSpec:
    return PreprocessingSpec(size, crop_mode, interpolation, "RGB", 1.0, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


class Held:
    """A preprocessor with a result of its own, and its work recorded as a CUDA graph after the first frame."""

    def __init__(self, device: CudaDevice, spec: PreprocessingSpec, max_frame: tuple[int, int]) -> None:
        self.device = device
        self.fused = FusedPreprocessor(device, spec, max_frame)
        self.stream = device.stream()
        self.there = device.buffer(self.fused.result_bytes)
        self.here = device.pinned((*spec.input_size, 3), spec.input_dtype)
        self.graph: Any = None

    def __call__(self, frame: Any, box: Box, mirror: bool) -> Any:
        self.fused.load(frame, box, mirror)
        self.fused.upload(self.stream)
        if self.graph is None:
            self._enqueue()
            self.stream.synchronize()
            with self.device.capture(self.stream) as self.graph:
                self._enqueue()
        else:
            self.graph.launch(self.stream)
            self.stream.synchronize()
        written = self.fused.check()
        exact = self.here.array.astype(np.float64).reshape(len(written), -1).sum(axis=1)
        np.testing.assert_allclose(written, exact, rtol=0 if self.here.array.dtype == np.uint8 else 1e-6)
        return self.here.array.copy()

    def _enqueue(self) -> None:
        self.fused.enqueue(self.stream, self.there)
        self.device.download(self.here, self.there, self.fused.result_bytes, self.stream)


@pytest.mark.parametrize("name", INTERPOLATIONS)
@pytest.mark.parametrize(("shape", "size", "box"), CASES)
def test_kernels_differ_in_no_value_from_the_library(
    device: CudaDevice, name: str, shape: tuple[int, int], size: tuple[int, int], box: Box
) -> None:
    held = Held(device, spec(name, size), shape)
    for mirror in (False, True):
        frame = noise(*shape, seed=int(mirror))
        with without_ipp():
            expected, ours = by_library(frame, box, size, name), resize_box(frame, box, size, name)
        found = held(frame, box, mirror)
        np.testing.assert_array_equal(found, ours[:, ::-1] if mirror else ours)
        largest = np.abs(found - (expected[:, ::-1] if mirror else expected).astype(np.float64)).max()
        assert largest <= (0.02 if name == "tf-bilinear" else 0)  # the closed form is in float64


@pytest.mark.parametrize("name", INTERPOLATIONS)
def test_one_recorded_graph_serves_every_photograph(device: CudaDevice, examples: Path, name: str) -> None:
    card = spec(name, (384, 384), "field-of-view")
    held = Held(device, card, (2848, 4288))
    for index, path in enumerate(sorted(examples.glob("*.jpg"))):
        frame = decode(path.read_bytes()).frame
        view, mirror = find_field_of_view(frame), index % 2 == 1
        with without_ipp():
            ours = tensor_from_frame(frame, view, card, mirror)
        np.testing.assert_array_equal(held(frame, crop_box(view, frame.shape, card), mirror), ours)


def test_pixels_or_weights_of_another_frame_are_noticed(device: CudaDevice) -> None:
    held = Held(device, spec("pillow-bilinear", (96, 96)), (300, 310))
    frame, box = noise(300, 310), (0, 0, 310, 300)
    held(frame, box, False)
    held.fused.load(noise(300, 310, 1), box, False)  # and not uploaded
    assert held.graph is not None
    held.graph.launch(held.stream)
    held.stream.synchronize()
    with pytest.raises(ReceiptError):
        held.fused.check()
    held(frame, box, True)


@pytest.mark.parametrize("name", ["pillow-bilinear", "pillow-lanczos", "opencv-linear", "opencv-area", "tf-bilinear"])
def test_an_engine_with_the_frame_head_sees_the_same(device: CudaDevice, name: str) -> None:
    """TensorRT's own products; TF32 is left on where the head says that it does no harm."""
    from fundus_rt.converters.engines.frame_head import FULL_FLOAT32, with_frame_head
    from tests.test_frame_head import card_for, identity, most

    try:
        trt = import_tensorrt().module
    except BackendUnavailableError as error:
        pytest.skip(str(error))
    size, shape, box = (96, 80), (301, 407), (-5, 3, 400, 299)
    device.make_current()
    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    assert parser.parse(with_frame_head(identity(card_for(name, size))).SerializeToString())
    config, profile = builder.create_builder_config(), builder.create_optimization_profile()
    shapes = {"frame": (1, *shape, 3), "row_filter": (1, size[0], shape[0]), "column_filter": (1, size[1], shape[1])}
    for tensor, sizes in shapes.items():
        profile.set_shape(tensor, sizes, sizes, sizes)
    config.add_optimization_profile(profile)
    if name in FULL_FLOAT32:
        config.clear_flag(trt.BuilderFlag.TF32)
    engine = trt.Runtime(logger).deserialize_cuda_engine(builder.build_serialized_network(network, config))
    context, stream = engine.create_execution_context(), device.stream()
    frame = noise(*shape)
    spec_ = spec(name, size)
    rows, columns = filter_matrices(spec_, box, frame.shape, True)
    held = {}
    inputs = {"frame": frame, "row_filter": rows, "column_filter": columns}
    outputs = {"age": (1, size[0] * size[1] * 3), "receipt": (1, shape[0]), "receipt_network": (1, size[0])}
    outputs["receipt_filters"] = (1, sum(size))
    for tensor, values in inputs.items():
        held[tensor] = device.pinned((1, *values.shape), values.dtype)
        held[tensor].array[:] = values
        assert context.set_input_shape(tensor, shapes[tensor])
    for tensor, sizes in outputs.items():
        held[tensor] = device.pinned(sizes, np.float32)
    for tensor, memory in held.items():
        assert context.set_tensor_address(tensor, memory.device_address)
    assert context.execute_async_v3(stream.handle)
    stream.synchronize()
    with without_ipp():
        expected = by_library(frame, box, size, name)[:, ::-1].astype(np.float64)
    difference = np.abs(held["age"].array.reshape(*size, 3) - expected)
    largest, share = most(name, False)
    assert difference.max() <= largest and (difference > 0.01).mean() <= share
    np.testing.assert_array_equal(held["receipt"].array[0], frame.reshape(shape[0], -1).sum(axis=1))
