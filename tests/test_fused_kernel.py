"""The CUDA kernels, compiled by g++, against the library that each filter is named after; and NVRTC on the same source."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fundus_rt.models.card import INTERPOLATIONS, PreprocessingSpec
from fundus_rt.models.errors import BackendUnavailableError, ReceiptError
from fundus_rt.runtime.decode import decode
from fundus_rt.runtime.field_of_view import find_field_of_view
from fundus_rt.runtime.nvidia import fused_kernel
from fundus_rt.runtime.nvidia.fused_kernel import OPTIONS, FusedPreprocessor, kernel_source
from fundus_rt.runtime.nvidia.resize_taps import ARITHMETICS
from fundus_rt.runtime.preprocess import crop_box, tensor_from_frame
from fundus_rt.runtime.resize import resize_box
from tests.cuda_on_cpu import CpuDevice, Memory, has_compiler
from tests.filter_references import by_library, noise, without_ipp
from tests.test_resize import STORED, TF_SIZES
from tests.test_resize import noise as tf_noise

needs_compiler = pytest.mark.skipif(not has_compiler, reason="g++ is not installed")
Box = tuple[int, int, int, int]


@pytest.fixture(scope="module")
def device(tmp_path_factory: pytest.TempPathFactory) -> CpuDevice:
    fused_kernel._COMPILED.clear()
    return CpuDevice(tmp_path_factory.mktemp("kernels"))


def spec(interpolation: str, size: tuple[int, int], crop_mode: str = "none") -> PreprocessingSpec:
    return PreprocessingSpec(size, crop_mode, interpolation, "RGB", 1.0, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


def result_of(spec: PreprocessingSpec) -> Memory:
    return Memory((*spec.input_size, 3), spec.input_dtype)


def by_kernels(device: Any, frame: Any, box: Box, spec: PreprocessingSpec, mirror: bool = False) -> Any:
    """The kernels' answer; its receipts are held to it."""
    fused = FusedPreprocessor(device, spec, frame.shape[:2])
    result = result_of(spec)
    assert result.nbytes == fused.result_bytes
    fused.load(frame, box, mirror)
    fused.upload(None)
    fused.enqueue(None, np.uint64(result.address))
    written = fused.check()
    exact = result.array.astype(np.float64).reshape(spec.input_size[0], -1).sum(axis=1)
    np.testing.assert_allclose(written, exact, rtol=0 if spec.input_dtype == "uint8" else 1e-6)
    fused.close()
    return result.array


CASES = (
    ((151, 207), (70, 96), (-50, -30, 220, 240)),
    ((100, 130), (120, 111), (0, 0, 130, 100)),
    ((101, 131), (61, 53), (20, -31, 161, 60)),
    ((300, 310), (40, 36), (-3, 2, 307, 299)),
    ((128, 256), (64, 128), (0, 0, 256, 128)),
    ((96, 120), (32, 20), (0, 0, 120, 96)),
    ((60, 60), (33, 29), (57, 40, 90, 90)),
)
"""Frame, result and box: beyond the frame, enlarged, reduced, at whole factors, only a corner seen."""


@needs_compiler
@pytest.mark.parametrize("name", INTERPOLATIONS)
@pytest.mark.parametrize(("shape", "size", "box"), CASES)
def test_kernels_differ_in_no_value_from_the_library(
    device: CpuDevice, name: str, shape: tuple[int, int], size: tuple[int, int], box: Box
) -> None:
    frame = noise(*shape)
    for mirror in (False, True):
        with without_ipp():
            expected = by_library(frame, box, size, name)
            ours = resize_box(frame, box, size, name)
        found = by_kernels(device, frame, box, spec(name, size), mirror)
        np.testing.assert_array_equal(found, ours[:, ::-1] if mirror else ours)
        largest = np.abs(found - (expected[:, ::-1] if mirror else expected).astype(np.float64)).max()
        assert largest <= (0.01 if name == "tf-bilinear" else 0)  # the closed form is in float64


@needs_compiler
@pytest.mark.parametrize("name", ["bilinear", "nearest"])
def test_kernels_differ_in_no_value_from_what_tensorflow_answered(device: CpuDevice, name: str) -> None:
    with np.load(STORED) as vectors:
        for index, (shape, size) in enumerate(TF_SIZES):
            found = by_kernels(device, tf_noise(*shape), (0, 0, shape[1], shape[0]), spec(f"tf-{name}", size))
            np.testing.assert_array_equal(found, vectors[f"{name}-{index}"])


@needs_compiler
def test_opencvs_cubic_on_its_wheels_is_another_by_one_grey_level(device: CpuDevice) -> None:
    """Where OpenCV has Intel's IPP it takes that for cubic; the kernel has OpenCV's own code."""
    frame, box, size = noise(300, 310), (0, 0, 310, 300), (96, 96)
    found = by_kernels(device, frame, box, spec("opencv-cubic", size)).astype(int)
    difference = np.abs(found - by_library(frame, box, size, "opencv-cubic"))
    assert difference.max() <= 1 and (difference > 0).mean() < 0.08


@needs_compiler
@pytest.mark.parametrize("name", INTERPOLATIONS)
def test_photographs_become_the_tensor_of_the_host(device: CpuDevice, examples: Path, name: str) -> None:
    pictures = ["chase_01L.jpg", "idrid_085.jpg"] + (["hrf_06_h.jpg"] if name == "pillow-bilinear" else [])
    for index, picture in enumerate(pictures):
        frame = decode((examples / picture).read_bytes()).frame
        view = find_field_of_view(frame)
        card = spec(name, (224, 224), "field-of-view")
        box = crop_box(view, frame.shape, card)
        mirror = index % 2 == 1
        with without_ipp():
            ours = tensor_from_frame(frame, view, card, mirror)
            theirs = by_library(frame, box, (224, 224), name)
        found = by_kernels(device, frame, box, card, mirror)
        np.testing.assert_array_equal(found, ours)
        theirs = theirs[:, ::-1] if mirror else theirs
        assert np.abs(found - theirs.astype(np.float64)).max() <= (0.01 if name == "tf-bilinear" else 0)


@needs_compiler
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    name=st.sampled_from(INTERPOLATIONS),
    height=st.integers(1, 160),
    width=st.integers(1, 160),
    left=st.integers(-60, 150),
    top=st.integers(-60, 150),
    columns=st.integers(1, 200),
    rows=st.integers(1, 200),
    mirror=st.booleans(),
)
def test_any_crop(
    device: CpuDevice, name: str, height: int, width: int, left: int, top: int, columns: int, rows: int, mirror: bool
) -> None:
    frame, box, size = noise(height, width), (left, top, left + columns, top + rows), (17, 23)
    fused = FusedPreprocessor(device, spec(name, size), (160, 160))
    result = result_of(spec(name, size))
    if left >= width or top >= height or left + columns <= 0 or top + rows <= 0:
        with pytest.raises(ValueError, match="no pixel"):
            fused.load(frame, box, mirror)
        return
    fused.load(frame, box, mirror)
    fused.upload(None)
    fused.enqueue(None, result)
    fused.check()
    with without_ipp():
        ours = resize_box(frame, box, size, name)
    np.testing.assert_array_equal(result.array, ours[:, ::-1] if mirror else ours)


class RecordingDevice(CpuDevice):
    """Keeps what was launched, as a recorded CUDA graph does, and does it again."""

    def __init__(self, folder: Path, integrated: bool = False) -> None:
        super().__init__(folder, integrated)
        self.recorded: list[Any] = []

    def launch(self, *arguments: Any) -> None:
        self.recorded.append(lambda: CpuDevice.launch(self, *arguments))
        super().launch(*arguments)

    def download(self, *arguments: Any, **options: Any) -> None:
        self.recorded.append(lambda: CpuDevice.download(self, *arguments, **options))
        super().download(*arguments, **options)

    def replay(self) -> None:
        for step in self.recorded:
            step()


@needs_compiler
@pytest.mark.parametrize("name", ["pillow-bicubic", "opencv-area", "opencv-cubic", "tf-bilinear"])
def test_a_recorded_graph_serves_other_frames(tmp_path: Path, name: str) -> None:
    """Area changes even its arithmetic from crop to crop: general, whole factors, 2 x 2, enlarged."""
    fused_kernel._COMPILED.clear()
    device, card = RecordingDevice(tmp_path), spec(name, (40, 48))
    fused, result = FusedPreprocessor(device, card, (200, 240)), result_of(card)
    boxes = ((200, 240, (3, 5, 237, 190)), (160, 192, (0, 0, 192, 160)), (80, 96, (0, 0, 96, 80)), (30, 33, (-2, -2, 33, 31)))
    for index, (height, width, box) in enumerate(boxes):
        frame, mirror = noise(height, width, index), index % 2 == 1
        fused.load(frame, box, mirror)
        fused.upload(None)
        if index == 0:
            fused.enqueue(None, result)
        else:
            device.replay()
        fused.check()
        with without_ipp():
            ours = resize_box(frame, box, (40, 48), name)
        np.testing.assert_array_equal(result.array, ours[:, ::-1] if mirror else ours)
    assert len(device.recorded) == 3


@needs_compiler
def test_shared_memory_of_a_jetson_needs_no_copy_of_the_crop(tmp_path: Path) -> None:
    fused_kernel._COMPILED.clear()
    frame, box, card = noise(200, 300), (0, 0, 300, 200), spec("pillow-bilinear", (32, 32))
    apart, together = CpuDevice(tmp_path), CpuDevice(tmp_path, integrated=True)
    np.testing.assert_array_equal(by_kernels(apart, frame, box, card), by_kernels(together, frame, box, card))
    assert [kind for kind, _ in apart.copies] == ["upload", "upload", "download"]
    assert [kind for kind, _ in together.copies] == ["upload", "download"]
    assert sum(size for _, size in together.copies) < 16000 < frame.nbytes


@needs_compiler
def test_pixels_or_weights_of_another_frame_are_noticed(device: CpuDevice) -> None:
    card = spec("pillow-bilinear", (32, 32))
    fused, result = FusedPreprocessor(device, card, (90, 80)), result_of(card)
    frame = noise(90, 80)

    def again(lose: str = "") -> Any:
        fused.load(frame, (0, 0, 80, 90), False)
        if lose != "upload":
            fused.upload(None)
        if lose == "crop":
            assert fused._device_crop is not None
            fused._device_crop.array[12345] ^= 1
        if lose != "kernels":
            fused.enqueue(None, result)
        return fused.check()

    np.testing.assert_array_equal(again(), result.array.reshape(32, -1).sum(axis=1))
    for lose in ("upload", "crop", "kernels"):
        with pytest.raises(ReceiptError, match="another picture"):
            again(lose)
        again()
    other = noise(90, 80, 1)
    fused.load(frame, (0, 0, 80, 90), False)
    fused.upload(None)
    fused.enqueue(None, result)
    frame[:] = other  # the caller's mistake: the frame changed under way
    with pytest.raises(ReceiptError):
        fused.check()


class DyingDevice(CpuDevice):
    """Does not run one of its kernels."""

    dead: Any = None

    def launch(self, function: Any, *arguments: Any) -> None:
        if function is not self.dead:
            super().launch(function, *arguments)


@needs_compiler
@pytest.mark.parametrize("name", ["pillow-bilinear", "tf-bilinear"])
@pytest.mark.parametrize("dead", ["_rows_pass", "_columns_pass"])
@pytest.mark.parametrize(
    ("frames_before", "seed"), [(0, 0), (1, 1), *(pytest.param(*pair, marks=pytest.mark.full) for pair in ((0, 1), (1, 0)))]
)
def test_a_kernel_that_does_not_run_leaves_no_receipt_of_the_frame_before(
    tmp_path: Path, name: str, dead: str, seed: int, frames_before: int
) -> None:
    """Each by itself; also for the same frame once more."""
    fused_kernel._COMPILED.clear()
    device, card = DyingDevice(tmp_path), spec(name, (32, 30))
    fused, result = FusedPreprocessor(device, card, (90, 80)), result_of(card)
    for turn in range(frames_before + 1):
        device.dead = getattr(fused, dead) if turn == frames_before else None
        fused.load(noise(90, 80, seed if turn else 0), (0, 0, 80, 90), False)
        fused.upload(None)
        fused.enqueue(None, result)
        if turn < frames_before:
            fused.check()
    with pytest.raises(ReceiptError, match="another picture"):
        fused.check()


@needs_compiler
def test_one_row_that_was_not_written_is_noticed(tmp_path: Path) -> None:
    fused_kernel._COMPILED.clear()
    source = kernel_source().replace("stride = width * 3, arithmetic", "stride = (y == 7 ? 0 : width) * 3, arithmetic")
    skipping = source.replace("  if (thread == 0) {\n    written", "  if (thread == 0 && y != 7) {\n    written")
    assert len({kernel_source(), source, skipping}) == 3
    device, card = CpuDevice(tmp_path), spec("pillow-bilinear", (32, 32))
    fused, result = FusedPreprocessor(device, card, (90, 80)), result_of(card)
    whole = fused._columns_pass
    broken = device.module(device.compile(skipping, "skipping.cu", OPTIONS)).function("columns_pass")
    for kernel in (whole, broken):
        fused._columns_pass = kernel
        fused.load(noise(90, 80), (0, 0, 80, 90), False)
        fused.upload(None)
        fused.enqueue(None, result)
        if kernel is whole:
            fused.check()
    with pytest.raises(ReceiptError):
        fused.check()


@needs_compiler
def test_refusals_say_what_was_got(device: CpuDevice) -> None:
    fused = FusedPreprocessor(device, spec("pillow-bilinear", (32, 32)), (60, 80))
    with pytest.raises(ValueError, match="load first"):
        fused.upload(None)
    with pytest.raises(ValueError, match="load first"):
        fused.check()
    with pytest.raises(ValueError, match="61 x 80"):
        fused.load(noise(61, 80), (0, 0, 80, 61), False)
    with pytest.raises(ValueError, match="boxes up to"):
        fused.load(noise(60, 80), (-500, 0, 80, 60), False)
    with pytest.raises(ValueError, match="float32"):
        fused.load(noise(60, 80).astype(np.float32), (0, 0, 80, 60), False)
    with pytest.raises(ValueError, match="16374 pixels wide, expected 16373"):
        FusedPreprocessor(device, spec("pillow-bilinear", (32, 32)), (60, 16374))


@needs_compiler
def test_the_widest_frames_fit_into_a_blocks_memory(device: CpuDevice) -> None:
    for width in (16373, 8191):
        frame = noise(5, width)
        found = by_kernels(device, frame, (0, 0, width, 5), spec("pillow-box", (16, 20)))
        np.testing.assert_array_equal(found, by_library(frame, (0, 0, width, 5), (16, 20), "pillow-box"))


@needs_compiler
def test_the_emulation_sees_threads_that_part_at_a_barrier(tmp_path: Path) -> None:
    source = kernel_source().replace("if (first_row >= rows) return;", "if (threadIdx.x == 3) return;")
    assert source != kernel_source()
    module = CpuDevice(tmp_path).module(CpuDevice(tmp_path).compile(source, "broken.cu", OPTIONS))
    memory = Memory((4096,), np.int32)
    memory.array[:] = 1
    arguments = [memory, memory, memory, memory, np.int32(1), np.int32(1)]
    with pytest.raises(AssertionError, match="different barriers"):
        CpuDevice(tmp_path).launch(module.function("rows_pass_1"), (1, 1, 1), (256, 1, 1), arguments, None, 1024)


def test_source_and_host_agree_on_numbers() -> None:
    source = kernel_source()
    found = re.search(r"enum Arithmetic \{(.*?)\}", source)
    assert found is not None
    names = [name.strip().lower().replace("_", "-") for name in found[1].split(",")]
    assert tuple(names) == ARITHMETICS
    assert re.search(rf"#define THREADS {fused_kernel.THREADS}\b", source)
    assert re.search(rf"HEADER_WORDS = {fused_kernel.HEADER_WORDS}\b", source)
    assert "#include" not in source


@pytest.mark.parametrize("architecture", [(7, 5), (8, 0), (8, 6), (8, 7), (8, 9), (9, 0), (12, 0)])
def test_nvrtc_makes_machine_code_of_the_source(architecture: tuple[int, int]) -> None:
    """Needs no GPU. 8.7 is Jetson Orin."""
    from fundus_rt.runtime.nvidia.nvrtc import compile_cuda

    try:
        code = compile_cuda('extern "C" __global__ void nothing() {}', "nothing.cu", architecture)
    except BackendUnavailableError as error:
        pytest.skip(f"NVRTC is not to be had here: {str(error).splitlines()[0]}")
    assert code[:4] == b"\x7fELF"
    code = compile_cuda(kernel_source(), "fused_kernel.cu", architecture, OPTIONS)
    assert code[:4] == b"\x7fELF"
    assert all(name in code for name in (b"rows_pass_1", b"rows_pass_2", b"rows_pass_4", b"columns_pass"))
