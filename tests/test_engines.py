"""What an engine belongs to: keys that differ in one field differ, and a record comes back from its JSON as it was."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest

from fundus_rt.models.engines import EngineKey, EngineProfile, EngineRecord, record_from_json
from fundus_rt.models.errors import EngineError

ORIN = EngineKey(
    onnx_sha256="ab" * 32,
    flavour="tensorrt",
    tensorrt_version="10.3.0.26",
    gpu_name="Orin",
    compute_capability="8.7",
    cuda_driver="12.6",
    l4t="36.4.3",
    profile=EngineProfile(batch=(1, 1, 8)),
    flags=("optimisation-level=3",),
    multiprocessors=8,
    board="NVIDIA Jetson Orin Nano Developer Kit",
)
OTHER: dict[str, Any] = {
    "onnx_sha256": "cd" * 32,
    "flavour": "tensorrt_rtx",
    "tensorrt_version": "10.7.0.23",
    "gpu_name": "NVIDIA H200",
    "compute_capability": "9.0",
    "cuda_driver": "13.0",
    "l4t": "",
    "profile": EngineProfile(batch=(1, 4, 8)),
    "flags": ("optimisation-level=3", "tf32"),
    "multiprocessors": 16,
    "board": "NVIDIA Jetson AGX Orin Developer Kit",
}
WORDS = {
    "onnx_sha256": "model abababababab -> cdcdcdcdcdcd",
    "flavour": "library tensorrt -> tensorrt_rtx",
    "tensorrt_version": "TensorRT 10.3.0.26 -> 10.7.0.23",
    "gpu_name": "GPU Orin -> NVIDIA H200",
    "compute_capability": "compute capability 8.7 -> 9.0",
    "cuda_driver": "CUDA driver 12.6 -> 13.0",
    "l4t": "L4T 36.4.3 -> none",
    "profile": "profile batch 1,1,8 -> batch 1,4,8",
    "flags": "flags optimisation-level=3 -> optimisation-level=3, tf32",
    "multiprocessors": "multiprocessors 8 -> 16",
    "board": "board NVIDIA Jetson Orin Nano Developer Kit -> NVIDIA Jetson AGX Orin Developer Kit",
}
RECORD = EngineRecord(
    ORIN, "12" * 32, 4096, {"name": "joir-age", "outputs": [{"name": "age"}]}, "fp16", "2026-11-22T18:00:00Z", 61.5
)


def test_the_table_of_this_test_has_every_field_of_the_key() -> None:
    assert set(OTHER) == set(WORDS) == {field.name for field in dataclasses.fields(EngineKey)}


@pytest.mark.parametrize("name", OTHER)
def test_each_field_alone_makes_another_key_and_is_named(name: str) -> None:
    changed = dataclasses.replace(ORIN, **{name: OTHER[name]})
    assert changed.digest() != ORIN.digest()
    assert ORIN.differences(changed) == [WORDS[name]]
    assert dataclasses.replace(changed, **{name: getattr(ORIN, name)}).digest() == ORIN.digest()


def test_a_digest_is_a_file_name() -> None:
    assert len(ORIN.digest()) == 64
    assert set(ORIN.digest()) <= set("0123456789abcdef")


def test_the_order_of_flags_means_nothing() -> None:
    one = dataclasses.replace(ORIN, flags=("tf32", "optimisation-level=3"))
    two = dataclasses.replace(ORIN, flags=("optimisation-level=3", "tf32", "tf32"))
    assert one == two
    assert one.digest() == two.digest()


def test_frame_sizes_are_part_of_the_profile() -> None:
    sized = EngineProfile((1, 1, 1), (480, 1500, 3000), (640, 1900, 4000))
    changed = dataclasses.replace(ORIN, profile=sized)
    assert changed.digest() != dataclasses.replace(ORIN, profile=EngineProfile((1, 1, 1))).digest()
    assert ORIN.differences(changed) == ["profile batch 1,1,8 -> batch 1,1,1 frames 480x640,1500x1900,3000x4000"]


@pytest.mark.parametrize("limits", [(0, 1, 2), (2, 1, 3), (1, 3, 2), (1, 2)])
def test_a_profile_that_is_no_range_is_refused(limits: tuple[int, ...]) -> None:
    with pytest.raises(EngineError, match="expected three whole numbers"):
        EngineProfile(batch=limits)  # type: ignore[arg-type]


def test_a_profile_for_frames_has_two_sides() -> None:
    with pytest.raises(EngineError, match="both the height and the width"):
        EngineProfile(frame_height=(1, 2, 3))


@pytest.mark.parametrize("profile", [EngineProfile((1, 2, 4)), EngineProfile((1, 1, 1), (1, 2, 3), (4, 5, 6))])
def test_a_record_comes_back_as_it_was(profile: EngineProfile) -> None:
    record = dataclasses.replace(RECORD, key=dataclasses.replace(ORIN, profile=profile))
    back = record_from_json(record.to_json(), "a file")
    assert back == record
    assert back.key.digest() == record.key.digest()


def damaged(change: dict[str, Any]) -> str:
    values = json.loads(RECORD.to_json())
    for path, value in change.items():
        place, *rest = path.split(".")
        target, last = (values[place], rest[0]) if rest else (values, place)
        if value is ...:
            del target[last]
        else:
            target[last] = value
    return json.dumps(values)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "7",
        "null",
        "[" * 100_000,
        damaged({"format": 1}),
        damaged({"format": 3}),
        damaged({"key.multiprocessors": "8"}),
        damaged({"format": ...}),
        damaged({"key": ...}),
        damaged({"key": 3}),
        damaged({"key.l4t": ...}),
        damaged({"key.gpu_name": 7}),
        damaged({"key.unknown": "x"}),
        damaged({"key.flags": [1]}),
        damaged({"key.flags": None}),
        damaged({"key.profile": {"batch": [3, 2, 1]}}),
        damaged({"key.profile": []}),
        damaged({"engine_bytes": "4096"}),
        damaged({"engine_sha256": None}),
        damaged({"card": []}),
        damaged({"build_seconds": "long"}),
        damaged({"unknown": 1}),
    ],
)
def test_what_is_no_record_is_refused_with_its_name_and_what_to_do(text: str) -> None:
    with pytest.raises(EngineError, match=r"^x\.engine\.json is not the record .*fundus-rt build"):
        record_from_json(text, "x.engine.json")
