"""TensorRTSession on a real GPU: engines are built here and now, and held to what ONNX Runtime answers on the CPU."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from fundus_rt.converters.engines.engine_build import BuildOptions, engine_from_onnx
from fundus_rt.models.artifacts import sha256_of_file
from fundus_rt.models.engine_files import write_record
from fundus_rt.models.engines import EngineKey, EngineProfile
from fundus_rt.models.errors import BackendUnavailableError
from fundus_rt.models.references import write_reference
from fundus_rt.models.registry import bundled_file, load_card
from fundus_rt.runtime.certify import certify
from fundus_rt.runtime.interpret import interpret
from fundus_rt.runtime.nvidia.cuda_device import CudaDevice
from fundus_rt.runtime.nvidia.machine import machine_identity
from fundus_rt.runtime.nvidia.tensorrt_library import TensorRTLibrary, import_tensorrt
from fundus_rt.runtime.nvidia.tensorrt_session import TensorRTSession
from fundus_rt.runtime.onnx_session import OnnxRuntimeSession
from fundus_rt.runtime.pipeline import Pipeline
from fundus_rt.runtime.preprocess import tensor_from_box
from tests.conftest import DATA
from tests.references import acquisition_reference
from tests.tensorrt_host import importable

pytestmark = pytest.mark.gpu

Build = Callable[[Path], Path]
FRAMES = [
    ((1200, 1600), (210, 10, 1390, 1190), False),
    ((700, 700), (-20, -31, 720, 709), True),
    ((97, 131), (3, 5, 99, 90), True),
]


@pytest.fixture(scope="module")
def library() -> Iterator[TensorRTLibrary]:
    """NVIDIA's TensorRT; where it is not installed, TensorRT-RTX from its wheel on the public index."""
    try:
        machine_identity()
    except BackendUnavailableError as reason:
        pytest.skip(str(reason))
    try:
        yield import_tensorrt()
    except BackendUnavailableError:
        with importable("tensorrt_rtx"):
            yield import_tensorrt("tensorrt_rtx")


@pytest.fixture(scope="module")
def built(library: TensorRTLibrary, tmp_path_factory: pytest.TempPathFactory) -> Build:
    """Builds the engine of a network for up to four pictures, once."""
    folder, machine = tmp_path_factory.mktemp("engines"), machine_identity()
    made: dict[Path, Path] = {}

    def build(onnx_path: Path) -> Path:
        if onnx_path not in made:
            key = EngineKey(
                sha256_of_file(onnx_path), library.flavour, library.version, machine.gpu_name, machine.compute_capability,
                machine.cuda_driver, machine.l4t, EngineProfile((1, 2, 4)),
                multiprocessors=machine.multiprocessors, board=machine.board,
            )  # fmt: skip
            path = folder / f"{onnx_path.stem}.engine"
            options = BuildOptions(workspace_bytes=1 << 30)
            write_record(path, engine_from_onnx(onnx_path, path, library, key, options, lambda line: None, folder / "log"))
            made[onnx_path] = path
        return made[onnx_path]

    return build


def network(name: str) -> Path:
    return bundled_file(load_card(name)) if name == "acquisition" else DATA / f"{name}.onnx"


def pictures(session: OnnxRuntimeSession, count: int, seed: int) -> np.ndarray:
    shape = (count, *session.card.preprocessing.input_size, 3)
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8).astype(session.card.preprocessing.input_dtype)


def require_close(answers: dict[str, np.ndarray], expected: dict[str, np.ndarray], session: OnnxRuntimeSession) -> None:
    """The receipts are the same, and every value within the tolerance that the card states in the output's own unit."""
    assert np.array_equal(answers["receipt"], expected["receipt"])
    card = session.card
    for row in range(len(expected["receipt"])):
        said = interpret({output.name: answers[output.name][row] for output in card.outputs}, card)
        wanted = interpret({output.name: expected[output.name][row] for output in card.outputs}, card)
        for output in card.outputs:
            assert abs(said[output.name].value - wanted[output.name].value) <= output.tolerance, output.name


@pytest.mark.parametrize("name", ["tiny_sex", "tiny_age", "acquisition"])
def test_answers_are_those_of_onnx_runtime_through_cuda_graphs(built: Build, name: str) -> None:
    reference = OnnxRuntimeSession(network(name))
    with TensorRTSession(built(network(name))) as session:
        for seed, count in enumerate((1, 3, 4, 1, 9, 3, 1)):
            batch = pictures(reference, count, seed)
            require_close(session.run(batch), reference.run(batch), reference)
        assert session.warnings == (), "everything was recorded, and the kernels compiled"


@pytest.mark.parametrize("name", ["tiny_age", "acquisition"])
def test_frames_are_reduced_on_the_gpu_as_on_the_host(built: Build, name: str) -> None:
    reference = OnnxRuntimeSession(network(name))
    with TensorRTSession(built(network(name))) as session:
        assert session.takes_frames
        for turn in range(3):
            for number, (shape, box, mirror) in enumerate(FRAMES):
                frame = np.random.default_rng(10 * turn + number).integers(0, 256, (*shape, 3), np.uint8)
                on_host = tensor_from_box(frame, box, reference.card.preprocessing, mirror)[None]
                require_close(session.run_frame(frame, box, mirror), reference.run(on_host), reference)


def test_an_engine_is_certified_where_it_runs(built: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FUNDUS_RT_CACHE", str(tmp_path))
    path, stored = built(network("acquisition")), tmp_path / "stored.reference"
    write_reference(stored, acquisition_reference(network("acquisition")))
    issued = certify(path, stored, "tensorrt", "cuda:0")
    assert issued.certificate.verdict == "passed" and issued.path == path.with_suffix(".parity.json")
    pipeline = Pipeline(path, "tensorrt", "cuda:0", check=False, require_certificate=True)
    assert pipeline.certificate.certificate == issued.certificate
    pipeline.close()


def test_several_threads_get_their_own_answers(built: Build) -> None:
    reference = OnnxRuntimeSession(network("acquisition"))
    problems: list[BaseException] = []
    with TensorRTSession(built(network("acquisition")), contexts=3) as session:

        def work(number: int) -> None:
            try:
                for turn in range(20):
                    batch = pictures(reference, 1 + (number + turn) % 5, 100 * number + turn)
                    require_close(session.run(batch), reference.run(batch), reference)
                    shape, box, mirror = FRAMES[turn % len(FRAMES)]
                    frame = np.random.default_rng(turn).integers(0, 256, (*shape, 3), np.uint8)
                    on_host = tensor_from_box(frame, box, reference.card.preprocessing, mirror)[None]
                    require_close(session.run_frame(frame, box, mirror), reference.run(on_host), reference)
            except BaseException as error:
                problems.append(error)

        threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert problems == []


def test_opening_and_closing_again_and_again_takes_no_memory(built: Build) -> None:
    path, reference = built(network("acquisition")), OnnxRuntimeSession(network("acquisition"))
    with CudaDevice() as device:
        free = []
        for turn in range(8):
            with TensorRTSession(path) as session:
                for count in (1, 4):
                    session.run(pictures(reference, count, turn))
                    session.run(pictures(reference, count, turn))
            free.append(device.memory()[0])
    assert free[-1] >= free[2] - (16 << 20), "the first rounds load what stays loaded"
