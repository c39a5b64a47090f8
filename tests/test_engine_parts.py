"""The parts of an engine build that need no TensorRT: sizes, memory, what is refused beforehand, targets, which library."""

from __future__ import annotations

import dataclasses
import enum
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from fundus_rt.converters.engines.build_log import BuildLog
from fundus_rt.converters.engines.engine_build import BuildOptions, engine_from_onnx, flags_of
from fundus_rt.converters.engines.engine_facts import card_of, precision_of
from fundus_rt.converters.engines.engine_shapes import shapes_of
from fundus_rt.converters.engines.frame_head import (
    FRAME_HEAD_FORMAT,
    FRAME_HEAD_KEY,
    FULL_FLOAT32,
    head_format_in_file,
    with_frame_head,
)
from fundus_rt.converters.engines.target import name_target
from fundus_rt.converters.engines.workspace import free_system_memory, workspace_limit
from fundus_rt.models.engines import EngineProfile
from fundus_rt.models.errors import (
    BackendUnavailableError,
    DeviceMemoryError,
    EngineError,
    ModelFileError,
)
from fundus_rt.runtime.nvidia.tensorrt_library import TensorRTLibrary, import_tensorrt
from tests.engine_graphs import JETPACK, PRECISIONS, add_card, antialiased, key_of, saved, small_card, small_network

onnx = pytest.importorskip("onnx")

RTX = TensorRTLibrary(types.SimpleNamespace(), "tensorrt_rtx", "1.4.0.76")
FRAMES = EngineProfile((1, 2, 4), (400, 1500, 3000), (500, 1900, 4000))


# --- sizes ---------------------------------------------------------------------------------------------------------------


def test_the_batch_is_the_first_size_of_the_input() -> None:
    shapes = shapes_of(small_network("fp32"), EngineProfile((1, 4, 16)))
    assert shapes == {"frames": ((1, 32, 32, 3), (4, 32, 32, 3), (16, 32, 32, 3))}


def test_one_name_is_one_size_in_every_input_of_the_frame_head() -> None:
    shapes = shapes_of(with_frame_head(small_network("fp32"), small_card()), FRAMES)
    assert shapes == {
        "frame": ((1, 400, 500, 3), (2, 1500, 1900, 3), (4, 3000, 4000, 3)),
        "row_filter": ((1, 32, 400), (2, 32, 1500), (4, 32, 3000)),
        "column_filter": ((1, 32, 500), (2, 32, 1900), (4, 32, 4000)),
    }


def test_a_fixed_batch_needs_no_profile_and_refuses_another() -> None:
    model = small_network("fp32")
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 2
    assert shapes_of(model, EngineProfile((2, 2, 2))) == {}
    with pytest.raises(EngineError, match=r"takes exactly 2 pictures .* --batch 2,2,2"):
        shapes_of(model, EngineProfile((1, 1, 1)))


def test_an_open_size_that_nothing_is_known_of_is_refused() -> None:
    with pytest.raises(EngineError, match=r"size 1 of the input 'frame' \(H\) is open.*--frames"):
        shapes_of(with_frame_head(small_network("fp32"), small_card()), EngineProfile())
    model = small_network("fp32")
    model.graph.input[0].type.tensor_type.shape.dim[3].dim_param = "channels"
    with pytest.raises(EngineError, match=r"size 3 of the input 'frames' \(channels\)"):
        shapes_of(model, EngineProfile())


# --- facts ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_precision_is_read_from_the_graph(precision: str) -> None:
    assert precision_of(small_network(precision)) == precision


def test_the_card_is_read_and_a_file_without_one_is_refused() -> None:
    model = small_network("fp32")
    assert card_of(model, "x.onnx")["name"] == "small"
    del model.metadata_props[:]
    with pytest.raises(ModelFileError, match="carries no model card"):
        card_of(model, "x.onnx")


def test_without_onnx_the_one_package_that_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(tmp_path / "x.onnx", small_network("fp32"))
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(BackendUnavailableError, match=r"needs the package onnx.*; pip install onnx$"):
        engine_from_onnx(path, tmp_path / "e", JETPACK, key_of(path), BuildOptions(1 << 20), print, tmp_path / "log")


def test_flags_hold_what_changes_the_engine_and_nothing_else() -> None:
    assert flags_of(BuildOptions(1), EngineProfile()) == flags_of(BuildOptions(2), EngineProfile()) == ()
    assert flags_of(BuildOptions(1, 5, True, "8.6"), FRAMES) == (
        f"frame-head={FRAME_HEAD_FORMAT}", "optimisation-level=5", "target=8.6", "tf32",
    )  # fmt: skip
    assert flags_of(BuildOptions(1), FRAMES, FRAME_HEAD_FORMAT + 6) == (f"frame-head={FRAME_HEAD_FORMAT + 6}",)
    with pytest.raises(EngineError, match="level 6, expected 0 to 5"):
        BuildOptions(1, 6)


# --- before the library is asked -----------------------------------------------------------------------------------------


def test_on_jetpack_6_everything_that_its_tensorrt_would_refuse_is_listed_before_it_is_asked(tmp_path: Path) -> None:
    model = antialiased()
    model.graph.node.append(onnx.helper.make_node("Det", ["x"], ["volume"]))
    path = saved(tmp_path / "x.onnx", model)
    with pytest.raises(EngineError, match=r"TensorRT 10.3.0.30:\n  - Resize 'y': antialias is 1.*\n  - Det 'volume': ") as caught:
        engine_from_onnx(path, tmp_path / "e", JETPACK, key_of(path), BuildOptions(1 << 20), print, tmp_path / "log")
    assert "two MatMul" in str(caught.value) and not (tmp_path / "e").exists()


def test_a_file_that_changed_after_its_key_was_made_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path / "x.onnx", small_network("fp32"))
    key = key_of(path)
    saved(path, small_network("fp16"))
    with pytest.raises(EngineError, match="changed meanwhile"):
        engine_from_onnx(path, tmp_path / "e", JETPACK, key, BuildOptions(1 << 20), print, tmp_path / "log")


def test_a_log_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"cannot be written \(Is a directory\); name another file with --log"):
        BuildLog(tmp_path)


def test_a_file_that_is_no_onnx_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.onnx").write_bytes(b"not a model")
    with pytest.raises((EngineError, ModelFileError), match=r"convert|carries no model card"):
        path = tmp_path / "x.onnx"
        engine_from_onnx(path, tmp_path / "e", JETPACK, key_of(path), BuildOptions(1 << 20), print, tmp_path / "log")


def network_with(interpolation: str) -> Any:
    """A small network whose card names a filter."""
    model, card = small_network("fp32"), small_card()
    del model.metadata_props[:]
    add_card(model, dataclasses.replace(card, preprocessing=dataclasses.replace(card.preprocessing, interpolation=interpolation)))
    return model


@pytest.mark.parametrize("interpolation", FULL_FLOAT32)
@pytest.mark.parametrize("head_in_file", [False, True])
def test_rounded_products_are_refused_where_the_filter_needs_them_exact(
    tmp_path: Path, interpolation: str, head_in_file: bool
) -> None:
    """Also where the head stands in the file itself, as `build -o NAME.frames.onnx` writes it."""
    model = network_with(interpolation)
    path = saved(tmp_path / "x.frames.onnx", with_frame_head(model) if head_in_file else model)
    key = key_of(path, profile=FRAMES)
    with pytest.raises(EngineError, match=rf"{interpolation} inside an engine needs .* full float32; leave out --tf32"):
        engine_from_onnx(path, tmp_path / "e", JETPACK, key, BuildOptions(1 << 20, tf32=True), print, tmp_path / "log")
    assert not (tmp_path / "log").exists()


def test_the_version_of_a_frame_head_is_read_from_the_file_that_has_one(tmp_path: Path) -> None:
    plain = saved(tmp_path / "x.onnx", small_network("fp32"))
    model = with_frame_head(small_network("fp32"))
    (entry,) = (entry for entry in model.metadata_props if entry.key == FRAME_HEAD_KEY)
    assert head_format_in_file(plain) is None
    assert head_format_in_file(saved(tmp_path / "x.frames.onnx", model)) == FRAME_HEAD_FORMAT
    entry.value = entry.value.replace(f'"format": {FRAME_HEAD_FORMAT}', '"format": 41')
    assert head_format_in_file(saved(tmp_path / "x.frames.onnx", model)) == 41
    entry.value = "[]"
    with pytest.raises(ModelFileError, match=r"frame_head in x\.frames\.onnx cannot be read"):
        head_format_in_file(saved(tmp_path / "x.frames.onnx", model))


# --- memory --------------------------------------------------------------------------------------------------------------


def test_a_jetson_keeps_room_for_the_builder_in_the_memory_it_shares() -> None:
    model, gib = 350 << 20, 1 << 30
    own = 5 * model + (512 << 20)
    assert workspace_limit(model, 6 * gib, 5 * gib, integrated=True) == 5 * gib - own
    assert workspace_limit(model, 4 * gib, 5 * gib, integrated=True) == 4 * gib - own
    assert workspace_limit(model, 4 * gib) == 4 * gib - own
    assert workspace_limit(model, 1 * gib, 8 * gib) == 8 * gib - 2 * model - (512 << 20)


@pytest.mark.parametrize(("free_gpu", "integrated", "words"), [(None, False, "system's"), (2 << 30, True, "share")])
def test_too_little_memory_is_said_with_what_to_do(free_gpu: int | None, integrated: bool, words: str) -> None:
    with pytest.raises(DeviceMemoryError, match=rf"2048 MiB .*{words}.* about 2262 MiB .* --workspace"):
        workspace_limit(350 << 20, 2 << 30, free_gpu, integrated)


def test_free_memory_is_what_the_system_calls_available(tmp_path: Path) -> None:
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/meminfo").write_text("MemTotal:  100 kB\nMemFree: 1 kB\nMemAvailable:    7340032 kB\n")
    assert free_system_memory(tmp_path) == 7 << 30
    with pytest.raises(DeviceMemoryError, match="--workspace"):
        free_system_memory(tmp_path / "missing")


# --- other machines, other libraries -------------------------------------------------------------------------------------


class Capability(enum.Enum):
    """Of TensorRT-RTX's Python API."""

    CURRENT = 1
    SM75 = 75
    SM86 = 86
    SM130 = 130


class Targeted:
    """The part of TensorRT-RTX's configuration that names GPUs."""

    num_compute_capabilities = 0

    def set_compute_capability(self, capability: Any, index: int) -> bool:
        self.named = (capability, index)
        return True


def test_a_target_that_the_library_can_name_is_named() -> None:
    library = TensorRTLibrary(types.SimpleNamespace(ComputeCapability=Capability), "tensorrt_rtx", "1.4.0.76")
    for target, expected in (("8.6", Capability.SM86), ("7.5", Capability.SM75), ("13.0", Capability.SM130)):
        config = Targeted()
        name_target(config, library, target, pytest.fail)
        assert config.num_compute_capabilities == 1 and config.named == (expected, 0)


def test_other_targets_rest_on_the_engines_portability_and_that_is_said() -> None:
    said: list[str] = []
    for target in (None, "8.0", "8.9", "12.0", "12.1"):
        name_target(Targeted(), RTX, target, said.append)
    assert not said
    name_target(Targeted(), RTX, "9.0", said.append)
    assert len(said) == 1 and "8.0, 8.6, 8.9, 12.0 and later, not 9.0" in said[0]


@pytest.mark.parametrize(
    ("library", "target", "words"),
    [
        (JETPACK, "8.7", "only on the machine"),
        (RTX, "7.5", "cannot name"),
        (RTX, "99.9", "no GPU later"),
        (RTX, "Orin", "expected two numbers"),
    ],
)
def test_targets_that_cannot_be_built_for_are_refused(library: Any, target: str, words: str) -> None:
    with pytest.raises(BackendUnavailableError, match=words):
        name_target(Targeted(), library, target, pytest.fail)


def fake_module(name: str, version: str) -> types.ModuleType:
    module = types.ModuleType(name)
    module.__dict__.update(Builder=object, Runtime=object, __version__=version)
    return module


def test_tensorrt_comes_before_tensorrt_rtx_and_each_can_be_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fundus_rt.runtime.nvidia.tensorrt_library._loaded", lambda pattern: [])
    monkeypatch.setitem(sys.modules, "tensorrt", fake_module("tensorrt", "10.3.0"))
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", fake_module("tensorrt_rtx", "1.4.0.76"))
    assert [(import_tensorrt(f).flavour, import_tensorrt(f).version) for f in ("auto", "tensorrt_rtx")] == [
        ("tensorrt", "10.3.0"), ("tensorrt_rtx", "1.4.0.76"),
    ]  # fmt: skip
    assert import_tensorrt().major_minor == (10, 3)
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    assert import_tensorrt().flavour == "tensorrt_rtx"
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", types.ModuleType("tensorrt_rtx"))
    with pytest.raises(BackendUnavailableError, match=r"tensorrt: .*; tensorrt_rtx: .* no Builder .* JetPack.*pip install"):
        import_tensorrt()
    with pytest.raises(BackendUnavailableError, match="'trt' is not known"):
        import_tensorrt("trt")
