"""Engines built by NVIDIA's own library on a machine with no GPU: every kind of network, precision and head.

What the library was asked for is read back through its own API just before it builds, for an engine can be opened only on a GPU.
"""

from __future__ import annotations

import dataclasses
import hashlib
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fundus_rt.benchmarks.precision.calibration import activation_histograms, ranges_by
from fundus_rt.converters.engines.engine_build import BuildOptions, engine_from_onnx
from fundus_rt.converters.engines.engine_lint import lint_onnx
from fundus_rt.converters.engines.engine_progress import BuildProgress
from fundus_rt.converters.precision.half_graph import halvable_beside
from fundus_rt.converters.precision.int8_graph import quantisable
from fundus_rt.converters.precision.recipe import Recipe, graph_digest, onnx_from_recipe, serialised
from fundus_rt.converters.shipping import ship
from fundus_rt.models.engines import EngineProfile, EngineRecord
from fundus_rt.models.errors import EngineError
from fundus_rt.runtime.nvidia.tensorrt_library import TensorRTLibrary
from tests.conftest import DATA, REPOSITORY
from tests.engine_graphs import PRECISIONS, antialiased, key_of, saved, small_network
from tests.make_checkpoints import photographs, skip_without_timm
from tests.tensorrt_host import FLAVOURS, host_library

onnx = pytest.importorskip("onnx")

ACQUISITION = REPOSITORY / "models" / "bundled" / "acquisition.onnx"
BUNDLED = [ACQUISITION, *sorted(DATA.glob("*.onnx"))]
FRAMES = EngineProfile((1, 1, 2), (100, 300, 600), (120, 400, 800))
WORKSPACE = 96 << 20


@pytest.fixture(scope="module")
def library() -> TensorRTLibrary:
    return host_library()


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Progress is looked at often, for these builds take less than a second."""
    monkeypatch.setattr("fundus_rt.converters.engines.engine_progress.POLL_SECONDS", 0.01)


class Asked:
    """The library, and what its builder was asked for at the moment when it builds."""

    def __init__(self, library: TensorRTLibrary) -> None:
        trt, self.facts = library.module, dict[str, Any]()
        spy = types.SimpleNamespace(**vars(trt))
        spy.Builder = lambda logger: _Builder(trt, trt.Builder(logger), self.facts)
        self.library = dataclasses.replace(library, module=spy)


class _Builder:
    def __init__(self, trt: Any, builder: Any, facts: dict[str, Any]) -> None:
        self.trt, self.builder, self.facts = trt, builder, facts

    def __getattr__(self, name: str) -> Any:
        return getattr(self.builder, name)

    def create_network(self, flags: int) -> Any:
        self.facts["strongly typed"] = flags == 1 << int(self.trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
        return self.builder.create_network(flags)

    def create_optimization_profile(self) -> Any:
        self.profile = self.builder.create_optimization_profile()
        return self.profile

    def build_serialized_network(self, network: Any, config: Any) -> Any:
        trt = self.trt
        tensors = [network.get_input(i) for i in range(network.num_inputs)]
        self.facts["shapes"] = {t.name: [tuple(shape) for shape in self.profile.get_shape(t.name)] for t in tensors}
        tensors += [network.get_output(i) for i in range(network.num_outputs)]
        self.facts["types"] = {tensor.name: tensor.dtype.name for tensor in tensors}
        layers = [network.get_layer(i) for i in range(network.num_layers)]
        self.facts["layers"] = {layer.type.name for layer in layers}
        self.facts["convolutions"] = {layer.get_output(0).dtype.name for layer in layers if layer.type.name == "CONVOLUTION"}
        self.facts["workspace"] = config.get_memory_pool_limit(trt.MemoryPoolType.WORKSPACE)
        self.facts["tf32"] = config.get_flag(trt.BuilderFlag.TF32)
        self.facts["level"] = config.builder_optimization_level
        return self.builder.build_serialized_network(network, config)


def built(
    path: Path,
    library: TensorRTLibrary,
    folder: Path,
    profile: EngineProfile | None = None,
    say: Callable[[str], None] = print,
    show: Callable[[BuildProgress], None] | None = None,
    **options: Any,
) -> EngineRecord:
    given = BuildOptions(**{"workspace_bytes": WORKSPACE, **options})
    key = key_of(path, library, profile)
    return engine_from_onnx(path, folder / "x.engine", library, key, given, say, folder / "x.log", show)


def assert_whole(record: EngineRecord, folder: Path) -> None:
    content = (folder / "x.engine").read_bytes()
    assert record.engine_bytes == len(content) > 10_000
    assert record.engine_sha256 == hashlib.sha256(content).hexdigest()
    assert record.built_at.endswith("+00:00") and record.build_seconds >= 0


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_the_acquisition_network_becomes_an_engine_under_either_name_of_the_library(tmp_path: Path, flavour: str) -> None:
    lines: list[str] = []
    record = built(ACQUISITION, host_library(flavour), tmp_path, say=lines.append)
    assert_whole(record, tmp_path)
    assert (record.key.flavour, record.precision, record.card["name"]) == (flavour, "fp32", "acquisition")
    assert "fp32, TF32 off" in lines[0] and "workspace at most 96 MiB" in lines[0] and str(tmp_path / "x.log") in lines[0]
    log = (tmp_path / "x.log").read_text()
    assert log.count("VERBOSE") > 1000 and "Opset version" in log and "timing cache is empty" in log


@pytest.mark.parametrize("frames", [False, True], ids=["network", "frames"])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_every_precision_is_built_as_the_graph_says_with_and_without_the_frame_head(
    tmp_path: Path, library: TensorRTLibrary, precision: str, frames: bool
) -> None:
    path, asked = saved(tmp_path / "x.onnx", small_network(precision)), Asked(library)
    record = built(path, asked.library, tmp_path, FRAMES if frames else EngineProfile((1, 2, 4)))
    assert_whole(record, tmp_path)
    assert record.precision == precision
    facts = asked.facts
    assert facts["strongly typed"] and facts["workspace"] == WORKSPACE and not facts["tf32"] and facts["level"] == 3
    assert facts["convolutions"] == {"HALF" if precision == "fp16" else "FLOAT"}
    assert ({"QUANTIZE", "DEQUANTIZE"} <= facts["layers"]) == (precision == "int8")
    if frames:
        assert facts["shapes"] == {
            "frame": [(1, 100, 120, 3), (1, 300, 400, 3), (2, 600, 800, 3)],
            "row_filter": [(1, 32, 100), (1, 32, 300), (2, 32, 600)],
            "column_filter": [(1, 32, 120), (1, 32, 400), (2, 32, 800)],
        }
        extra = {"row_filter": "FLOAT", "column_filter": "FLOAT", "receipt_network": "FLOAT", "receipt_filters": "FLOAT"}
        assert facts["types"] == {"frame": "UINT8", "age": "FLOAT", "receipt": "FLOAT", **extra}
    else:
        assert facts["shapes"] == {"frames": [(1, 32, 32, 3), (2, 32, 32, 3), (4, 32, 32, 3)]}
        assert facts["types"] == {"frames": "UINT8", "age": "FLOAT", "receipt": "FLOAT"}


@pytest.mark.parametrize("flavour", FLAVOURS)
@pytest.mark.parametrize("halves", [False, True], ids=["int8", "mixed"])
def test_a_recipe_written_for_tensorrt_becomes_an_engine_of_its_precisions(tmp_path: Path, flavour: str, halves: bool) -> None:
    pytest.importorskip("onnxruntime")
    from tests.quantised_networks import photographs as network_photographs
    from tests.quantised_networks import shipped

    model, card = shipped(tmp_path / "fp32.onnx")
    nodes = [name for name in quantisable(model) if name != "three" or not halves]
    ranges = ranges_by(model, activation_histograms(model, nodes, network_photographs()[:3]), "max")
    beside = tuple(halvable_beside(model, nodes)) if halves else ()
    recipe = Recipe(graph_digest(model), tuple(nodes), beside, backend="tensorrt", ranges=ranges)
    path, asked = tmp_path / "int8.onnx", Asked(host_library(flavour))
    path.write_bytes(serialised(onnx_from_recipe(model, card, recipe)))
    assert_whole(built(path, asked.library, tmp_path, EngineProfile((1, 2, 4))), tmp_path)
    assert {"QUANTIZE", "DEQUANTIZE", "CONVOLUTION"} <= asked.facts["layers"]
    assert asked.facts["convolutions"] == ({"FLOAT", "HALF"} if halves else {"FLOAT"})


@pytest.mark.parametrize("path", BUNDLED, ids=[path.stem for path in BUNDLED])
def test_every_bundled_network_takes_whole_frames(tmp_path: Path, library: TensorRTLibrary, path: Path) -> None:
    assert_whole(built(path, library, tmp_path, FRAMES), tmp_path)


def test_what_is_asked_for_reaches_the_library(tmp_path: Path, library: TensorRTLibrary) -> None:
    path, asked = saved(tmp_path / "x.onnx", small_network("fp32")), Asked(library)
    built(path, asked.library, tmp_path, workspace_bytes=64 << 20, tf32=True, optimisation_level=1)
    assert (asked.facts["workspace"], asked.facts["tf32"], asked.facts["level"]) == (64 << 20, True, 1)


TORCH = {
    "Swin": ("swin", 48),
    "MobileNet": ("torchvision/mobilenet_v2", 64),
    "ResNet": ("torchvision/resnet18", 64),
    "EfficientNet": ("timm/efficientnet_b0", 64),
    "Inception": ("torchvision/inception_v3", 96),
    "DenseNet": ("timm/densenet121", 64),
}
SLOW = ("Inception", "DenseNet")


def shipped_torch_network(named: str, size: int, path: Path) -> Path:
    """A network of the field with random weights in the shipped form; what its numbers are does not matter to a builder."""
    from fundus_rt.benchmarks import make_swin, make_torch
    from fundus_rt.converters.pytorch.swin_export import lean_swin
    from fundus_rt.converters.pytorch.torch_export import onnx_from_torch

    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    if named == "swin":
        small = {"img_size": size, "depths": (2, 2), "num_heads": (1, 2)}
        network = lean_swin(make_swin.swin_network("timm", 1, 5, **small))
    else:
        network = make_torch.library_network(named, size, 5).eval()
    card = dataclasses.replace(make_torch.CASES[0], columns=5).card(size)
    return saved(path, ship(onnx_from_torch(network, (size, size)), card))


@pytest.mark.parametrize("family", [pytest.param(f, marks=[pytest.mark.full] if f in SLOW else []) for f in TORCH])
def test_every_family_of_torch_networks_becomes_an_engine(tmp_path: Path, library: TensorRTLibrary, family: str) -> None:
    skip_without_timm()
    path = shipped_torch_network(*TORCH[family], tmp_path / "x.onnx")
    assert lint_onnx(path) == []
    assert_whole(built(path, library, tmp_path, EngineProfile((1, 1, 4))), tmp_path)
    if family == "MobileNet":
        assert_whole(built(path, library, tmp_path, FRAMES), tmp_path)


KERAS = ("MobileNet", "EfficientNetB0", "InceptionV3", "ResNet50", "DenseNet121")


@pytest.mark.full
@pytest.mark.parametrize("application", KERAS)
def test_every_family_of_keras_networks_becomes_an_engine(tmp_path: Path, library: TensorRTLibrary, application: str) -> None:
    pytest.importorskip("tf_keras")
    from fundus_rt.benchmarks.make_keras import CASES, WHOLE
    from fundus_rt.converters.conversion import onnx_from_checkpoint
    from tests.test_torch_networks import open_shipped

    case = next(case for case in CASES if case.architecture == application and case.container == WHOLE)
    source = case.make(tmp_path, case.size, case.columns)
    path = tmp_path / "x.onnx"
    onnx_from_checkpoint(source, case.card(case.size), path, tensors=photographs(case.size, 4), open_shipped=open_shipped)
    assert lint_onnx(path) == []
    assert_whole(built(path, library, tmp_path), tmp_path)
    assert_whole(built(path, library, tmp_path, FRAMES), tmp_path)


def test_progress_is_told_in_the_librarys_phases(tmp_path: Path, library: TensorRTLibrary, often: None) -> None:
    seen: list[BuildProgress] = []
    built(ACQUISITION, library, tmp_path, show=seen.append)
    assert any("engine" in progress.phase.lower() for progress in seen)
    fractions = [progress.fraction for progress in seen if progress.fraction is not None]
    assert fractions == sorted(fractions) and fractions and 0 < fractions[-1] <= 1


def test_without_a_terminal_a_line_is_said_from_time_to_time(tmp_path: Path, library: TensorRTLibrary, often: None) -> None:
    lines: list[str] = []
    built(ACQUISITION, library, tmp_path, say=lines.append, heartbeat_seconds=0.01)
    assert any(line.endswith(" s so far") for line in lines[1:])


def test_what_the_parser_refuses_is_told_with_node_remedy_and_log(tmp_path: Path, library: TensorRTLibrary) -> None:
    lines: list[str] = []
    path = saved(tmp_path / "x.onnx", antialiased())
    with pytest.raises(EngineError) as caught:
        built(path, library, tmp_path, say=lines.append)
    message = str(caught.value)
    assert "Resize 'y': antialias is 1, read is 0; resize before the network" in message
    assert "(the parser: Antialiasing is not supported currently.)" in message and str(tmp_path / "x.log") in message
    assert "TensorRT 10.3 (JetPack 6) would refuse x.onnx" in lines[0] and "antialias" in lines[0]
    assert "Resize" in (tmp_path / "x.log").read_text() and not (tmp_path / "x.engine").exists()


def test_a_damaged_timing_cache_is_said_and_nothing_is_kept_where_nothing_was_measured(
    tmp_path: Path, library: TensorRTLibrary
) -> None:
    lines: list[str] = []
    path, timing = saved(tmp_path / "x.onnx", small_network("fp32")), tmp_path / "x.timing"
    built(path, library, tmp_path, say=lines.append, timing_cache=timing, heartbeat_seconds=600)
    assert len(lines) == 1 and not timing.exists(), "a machine with no GPU measures nothing"
    timing.write_bytes(b"damaged" * 40)
    built(path, library, tmp_path, say=lines.append, timing_cache=timing, heartbeat_seconds=600)
    assert "timing cache does not fit" in lines[2]


def test_a_build_that_is_stopped_leaves_no_engine(tmp_path: Path, library: TensorRTLibrary, often: None) -> None:
    lines: list[str] = []

    def show(progress: BuildProgress) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        built(ACQUISITION, library, tmp_path, say=lines.append, show=show)
    assert lines[-1].startswith("stopping") and not (tmp_path / "x.engine").exists()
