"""Products of 8 bits are added up exactly, also on processors that add two of them up in 16 bits (x86-64 without VNNI)."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402

from fundus_rt.benchmarks.precision import quantisation  # noqa: E402
from fundus_rt.benchmarks.precision.quantisation import Progress, QuantiseCall, lines, quantise  # noqa: E402
from fundus_rt.converters.graphs.foreign_onnx import open_original  # noqa: E402
from fundus_rt.converters.precision.recipe import read_recipe  # noqa: E402
from fundus_rt.models.errors import BackendUnavailableError  # noqa: E402
from fundus_rt.models.registry import EXAMPLE_FOLDER  # noqa: E402
from fundus_rt.runtime import onnx_providers, openvino_session  # noqa: E402
from fundus_rt.runtime.device_kind import LARGEST_WEIGHT_IN_16, sums_8_bit_products_in_16  # noqa: E402
from fundus_rt.runtime.onnx_providers import session_options  # noqa: E402
from fundus_rt.runtime.onnx_session import import_onnxruntime  # noqa: E402
from fundus_rt.runtime.session import open_session  # noqa: E402
from tests.quantised_networks import shipped  # noqa: E402

READ = 64
MADE = 32


def products(kind: str, most: int, zero: int) -> tuple[bytes, np.ndarray, np.ndarray]:
    """One layer in whole numbers near their ends: the model, its input, and what numpy's integers make of it."""
    random = np.random.default_rng(0)
    weights = random.integers(most * 3 // 4, most + 1, (READ, MADE)).astype(np.int8)
    levels = random.integers(200, 256, (1, 6, READ)).astype(np.uint8)
    unsigned = not kind.startswith("signed")
    zero_point = np.array(zero, np.uint8) if unsigned else np.array(0, np.int8)
    if not unsigned:
        levels = random.integers(90, 128, levels.shape).astype(np.int8)
    sums = (levels.astype(np.int64) - int(zero_point)) @ weights.astype(np.int64)
    stored = {
        "x_scale": np.float32(1), "x_zero": zero_point, "w": weights, "w_scale": np.ones(MADE, np.float32),
        "w_zero": np.zeros(MADE, np.int8), "y_scale": np.float32(2**14), "y_zero": np.array(0, zero_point.dtype),
    }  # fmt: skip
    given = levels.astype(np.float32) - np.float32(zero_point)
    nodes = [helper.make_node("QuantizeLinear", ["x", "x_scale", "x_zero"], ["levels"])]
    if kind == "integer":
        nodes.append(helper.make_node("MatMulInteger", ["levels", "w", "x_zero", "w_zero"], ["sums"]))
        nodes.append(helper.make_node("Cast", ["sums"], ["y"], to=TensorProto.FLOAT))
        expected = sums.astype(np.float64)
    else:
        convolution = kind.endswith("convolution")
        if convolution:
            stored["w"] = np.ascontiguousarray(weights.T[:, :, None, None])
            given = np.ascontiguousarray(given.transpose(0, 2, 1)[..., None])
            sums = sums.transpose(0, 2, 1)[..., None]
        axis = 0 if convolution else 1
        nodes.append(helper.make_node("DequantizeLinear", ["levels", "x_scale", "x_zero"], ["read"]))
        nodes.append(helper.make_node("DequantizeLinear", ["w", "w_scale", "w_zero"], ["weights"], axis=axis))
        nodes.append(helper.make_node("Conv" if convolution else "MatMul", ["read", "weights"], ["made"], name="layer"))
        nodes.append(helper.make_node("QuantizeLinear", ["made", "y_scale", "y_zero"], ["rounded"]))
        nodes.append(helper.make_node("DequantizeLinear", ["rounded", "y_scale", "y_zero"], ["y"]))
        ends = (0, 255) if unsigned else (-128, 127)
        expected = np.clip(np.rint(sums / 2**14), *ends) * 2**14
    graph = helper.make_graph(
        nodes,
        "layer",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, list(given.shape))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in stored.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return model.SerializeToString(), given, expected


@pytest.mark.parametrize("zero", [0, 7])
@pytest.mark.parametrize("kind", ["product", "convolution", "signed", "signed convolution", "integer"])
def test_onnx_runtime_adds_up_exactly(kind: str, zero: int) -> None:
    content, given, expected = products(kind, 127, zero)
    ort = import_onnxruntime()
    session = ort.InferenceSession(content, session_options(ort), providers=["CPUExecutionProvider"])
    np.testing.assert_array_equal(session.run(None, {"x": given})[0], expected)


@pytest.mark.parametrize("kind", ["product", "convolution", "signed", "signed convolution"])
def test_openvino_adds_up_exactly_what_fits(kind: str) -> None:
    pytest.importorskip("openvino")
    most = LARGEST_WEIGHT_IN_16 if sums_8_bit_products_in_16() else 127
    content, given, expected = products(kind, most, 0)
    core = openvino_session.shared_core(openvino_session.import_openvino())
    settings = {"INFERENCE_PRECISION_HINT": "f32", "EXECUTION_MODE_HINT": "ACCURACY"}
    found = core.compile_model(core.read_model(content), "CPU", settings)({"x": given})[0]
    np.testing.assert_array_equal(np.array(found), expected)


@pytest.mark.parametrize("old", [False, True])
def test_onnx_runtime_is_told_where_it_would_not_be_exact_by_itself(old: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    _pretend(monkeypatch, old)
    options = session_options(import_onnxruntime())
    if old:
        assert options.get_session_config_entry("session.x64quantprecision") == "1"
    else:
        with pytest.raises(RuntimeError):
            options.get_session_config_entry("session.x64quantprecision")


@pytest.mark.parametrize("old", [False, True])
def test_products_of_two_activations_are_refused_where_openvino_would_cut_them_off(
    old: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As behind layers of int8 that have no bias: OpenVINO then multiplies two tensors of 8 bits (2026.4)."""
    pytest.importorskip("openvino")
    stored = {"scale": np.float32(1), "zero": np.int8(0)}
    nodes = [
        node
        for name in ("a", "b")
        for node in (
            helper.make_node("QuantizeLinear", [name, "scale", "zero"], [f"{name}/int8"]),
            helper.make_node("DequantizeLinear", [f"{name}/int8", "scale", "zero"], [f"{name}/restored"]),
        )
    ]
    nodes.append(helper.make_node("MatMul", ["a/restored", "b/restored"], ["y"], name="y"))
    a, b, y = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 4, *sides])
        for name, sides in (("a", (16, 64)), ("b", (64, 16)), ("y", (16, 16)))
    )
    values = [numpy_helper.from_array(np.asarray(value), name) for name, value in stored.items()]
    graph = helper.make_graph(nodes, "attention", [a, b], [y], values)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    core = openvino_session.shared_core(openvino_session.import_openvino())
    settings = {"INFERENCE_PRECISION_HINT": "f32", "EXECUTION_MODE_HINT": "ACCURACY"}
    compiled = core.compile_model(core.read_model(model.SerializeToString()), "CPU", settings)
    _pretend(monkeypatch, old)
    if not old:
        openvino_session._require_exact_sums(compiled, Path("attention.onnx"))
        return
    with pytest.raises(BackendUnavailableError, match=r"attention\.onnx multiplies two tensors of 8 bits.*--backend onnxruntime"):
        openvino_session._require_exact_sums(compiled, Path("attention.onnx"))


def test_others_models_are_asked_exactly() -> None:
    for kind in ("product", "integer"):
        content, given, expected = products(kind, 127, 0)
        np.testing.assert_array_equal(open_original(content).run(None, {"x": given})[0], expected)


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("fma avx avx2 f16c", True),
        ("avx2 avx512f avx512_vnni", False),
        ("avx2 avx_vnni", False),
        ("", True),
        ("avx2 avx512f avx_vnni", True),
    ],
)
def test_which_processors_add_up_in_16_bits(flags: str, expected: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    info = tmp_path / "cpuinfo"
    info.write_text(f"model name\t: A processor\nflags\t\t: {flags}\n")
    for machine in ("x86_64", "AMD64"):
        monkeypatch.setattr("platform.machine", lambda machine=machine: machine)
        assert sums_8_bit_products_in_16(info) is expected
    assert sums_8_bit_products_in_16(tmp_path / "missing"), "what cannot be read is taken for the old kind"
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    assert not sums_8_bit_products_in_16(info)


def _call(folder: Path, precision: str = "int8") -> QuantiseCall:
    if not (folder / "small.onnx").exists():
        shipped(folder / "small.onnx")
    images = (str(EXAMPLE_FOLDER),)
    return QuantiseCall(folder / "small.onnx", precision, folder / "lower.onnx", images, "openvino", tolerance=10.0, whole=True)


def _largest_weight(path: Path) -> int:
    stored = [numpy_helper.to_array(tensor) for tensor in onnx.load(str(path)).graph.initializer]
    return max(int(np.abs(values.astype(int)).max()) for values in stored if values.dtype == np.int8 and values.ndim > 1)


def _pretend(monkeypatch: pytest.MonkeyPatch, old: bool) -> None:
    for module in (quantisation, openvino_session, onnx_providers):
        monkeypatch.setattr(module, "sums_8_bit_products_in_16", lambda: old)


def test_files_for_openvino_have_smaller_weights_where_sums_have_16_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("openvino")
    call = _call(tmp_path)
    _pretend(monkeypatch, False)
    quantise(call, Progress())
    assert _largest_weight(call.output) == 127
    elsewhere = call.output.rename(tmp_path / "elsewhere.onnx")

    _pretend(monkeypatch, True)
    made = quantise(call, Progress())
    assert _largest_weight(call.output) == LARGEST_WEIGHT_IN_16
    assert any("weights from -63 to 63" in line for line in lines(made))
    again = dataclasses.replace(call, precision=str(made.recipe_path), backend=None, output=tmp_path / "again.onnx")
    assert read_recipe(made.recipe_path).weight_levels == LARGEST_WEIGHT_IN_16
    assert quantise(again, Progress()).sha256 == made.sha256

    with pytest.raises(BackendUnavailableError, match=r"weights of 8 bits.*--backend onnxruntime"):
        open_session(elsewhere, "openvino")
    for path, backend in ((call.output, "openvino"), (elsewhere, "onnxruntime"), (tmp_path / "small.onnx", "openvino")):
        open_session(path, backend).close()


def test_a_recipe_is_written_for_the_processor_it_is_replayed_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("openvino")
    _pretend(monkeypatch, False)
    made = quantise(dataclasses.replace(_call(tmp_path), backend="onnxruntime"), Progress())
    _pretend(monkeypatch, True)
    replayed: Any = quantise(_call(tmp_path, str(made.recipe_path)), Progress())
    assert replayed.recipe.weight_levels == LARGEST_WEIGHT_IN_16
    back = dataclasses.replace(_call(tmp_path, str(replayed.recipe_path)), backend="onnxruntime")
    assert quantise(back, Progress()).recipe.weight_levels == 127


def test_a_file_for_a_device_without_vnni_can_be_written_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("openvino")
    _pretend(monkeypatch, False)
    call = _call(tmp_path)
    wide = quantise(call, Progress())
    kept = wide.recipe_path.rename(tmp_path / "wide.json")
    narrow = quantise(dataclasses.replace(call, weight_levels=LARGEST_WEIGHT_IN_16), Progress())
    assert _largest_weight(call.output) == LARGEST_WEIGHT_IN_16
    there = _call(tmp_path, str(narrow.recipe_path))
    assert quantise(dataclasses.replace(there, output=tmp_path / "again.onnx"), Progress()).sha256 == narrow.sha256, (
        "kept as it is"
    )

    _pretend(monkeypatch, True)
    replay = dataclasses.replace(call, precision=str(kept), backend=None, output=tmp_path / "wide.onnx")
    with pytest.raises(BackendUnavailableError, match=r"wide\.json has weights up to 127.*--weight-bits 7"):
        quantise(replay, Progress())
    assert not replay.output.exists()
    replayed = quantise(dataclasses.replace(replay, weight_levels=LARGEST_WEIGHT_IN_16), Progress())
    assert replayed.recipe.weight_levels == LARGEST_WEIGHT_IN_16
