"""The lint before an engine build: every rule is broken once, what the package ships breaks none, and NVIDIA's parser agrees."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fundus_rt.converters.engines.engine_lint import lint_onnx
from fundus_rt.converters.engines.frame_head import with_frame_head
from fundus_rt.converters.engines.operator_table import DOUBTFUL, READ, REMEDIES
from fundus_rt.runtime.nvidia.tensorrt_library import TensorRTLibrary
from tests.conftest import DATA, REPOSITORY
from tests.engine_graphs import BREAKING, PRECISIONS, Breaking, small_card, small_network
from tests.tensorrt_host import host_library

onnx = pytest.importorskip("onnx")

SHIPPED = [REPOSITORY / "models" / "bundled" / "acquisition.onnx", *sorted(DATA.glob("*.onnx"))]
RETIRED = {"ImageScaler", "ParametricSoftplus", "ScaledTanh"}
"""In NVIDIA's table and no longer in ONNX."""


@pytest.fixture(scope="module")
def library() -> TensorRTLibrary:
    return host_library()


def parsed(library: TensorRTLibrary, model: Any) -> bool:
    """Whether NVIDIA's own parser takes a graph."""
    trt = library.module
    logger = trt.Logger(trt.ILogger.INTERNAL_ERROR)
    builder = trt.Builder(logger)
    network = builder.create_network(0)
    return bool(trt.OnnxParser(network, logger).parse(model.SerializeToString()))


@pytest.mark.parametrize("case", BREAKING, ids=[f"{n}-{case.name}" for n, case in enumerate(BREAKING)])
def test_a_graph_that_breaks_a_rule_is_found(case: Breaking) -> None:
    found = [f for f in lint_onnx(case.model()) if (f.rule, f.operator, f.refused) == (case.rule, case.operator, case.refused)]
    assert found, [finding.line() for finding in lint_onnx(case.model())]
    assert found[0].problem and found[0].remedy and found[0].line().endswith(found[0].remedy)


@pytest.mark.parametrize("case", BREAKING, ids=[f"{n}-{case.name}" for n, case in enumerate(BREAKING)])
def test_nvidias_parser_agrees(library: TensorRTLibrary, case: Breaking) -> None:
    if case.rtx is None:
        pytest.skip("what this parser does says nothing about TensorRT 10.3's")
    assert parsed(library, case.model()) != case.rtx


@pytest.mark.parametrize("path", SHIPPED, ids=[path.stem for path in SHIPPED])
def test_what_the_package_ships_is_clean(path: Path) -> None:
    assert lint_onnx(path) == []


@pytest.mark.parametrize("head", [False, True], ids=["network", "frames"])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_every_precision_is_clean_with_and_without_the_frame_head(precision: str, head: bool) -> None:
    model = small_network(precision)
    assert lint_onnx(with_frame_head(model, small_card()) if head else model) == []


def graph(body: str, known: str = "", gives: str = "float[N,3,8,8]") -> Any:
    return Breaking("", "", body, known=known, gives=gives).model()


def test_a_number_beyond_32_bits_is_no_fault_and_nvidias_parser_agrees(library: TensorRTLibrary) -> None:
    known = f"int64[1] a = {{0}}, int64[1] e = {{{2**63 - 1}}}, int64[1] d = {{3}}"
    model = graph("y = Slice(x, a, e, d)", known)
    assert lint_onnx(model) == [] and parsed(library, model)


def test_the_input_may_be_uint8_where_a_cast_comes_first(library: TensorRTLibrary) -> None:
    model = Breaking("", "", "a = Cast<to=1>(x) y = Transpose<perm=[0,3,1,2]>(a)", takes="uint8[N,8,8,3]").model()
    assert lint_onnx(model) == [] and parsed(library, model)


def test_numbers_in_another_file_are_found(tmp_path: Path) -> None:
    model = small_network("fp32")
    onnx.save(model, tmp_path / "x.onnx", save_as_external_data=True, location="x.data", size_threshold=16)
    found = lint_onnx(tmp_path / "x.onnx")
    assert {finding.rule for finding in found} == {"external data"} and "first_weights" in {f.node for f in found}


def test_a_newer_file_format_is_doubtful_not_refused() -> None:
    model = small_network("fp32")
    model.ir_version = 12
    assert [(finding.rule, finding.refused) for finding in lint_onnx(model)] == [("IR version", False)]


def test_sparse_constants_are_found() -> None:
    model = small_network("fp32")
    values = onnx.numpy_helper.from_array(np.ones(1, np.float32), "sparse")
    places = onnx.numpy_helper.from_array(np.zeros(1, np.int64), "places")
    model.graph.sparse_initializer.append(onnx.helper.make_sparse_tensor(values, places, [4]))
    assert [finding.rule for finding in lint_onnx(model)] == ["sparse constant"]


def test_nodes_inside_branches_and_functions_are_looked_at() -> None:
    branch = "m = ReduceMax<keepdims=0>(x) c = Cast<to=9>(m) y = If(c) <then_branch = t () => (float[N,3] v) { v = Det(x) }, " \
        "else_branch = e () => (float[N,3] u) { u = ReduceMax<keepdims=0, axes=[2,3]>(x) }>"  # fmt: skip
    assert [finding.operator for finding in lint_onnx(graph(branch, gives="float[N,3]"))] == ["Det"]
    model = onnx.parser.parse_model("""<ir_version: 8, opset_import: ["" : 17, "own" : 1]>
        g (float[N,3,8,8] x) => (float[N,3] y) { y = own.volume(x) }
        <opset_import: ["" : 17], domain: "own"> volume (a) => (b) { b = Det(a) }""")
    assert [finding.operator for finding in lint_onnx(model)] == ["Det"]


def test_every_finding_names_the_node_by_its_name_or_its_output() -> None:
    model = graph("y = Det(x)", gives="float[N,3]")
    assert lint_onnx(model)[0].line().startswith("Det 'y': ")
    model.graph.node[0].name = "volume"
    assert lint_onnx(model)[0].line().startswith("Det 'volume': ")


def every_operator() -> Iterator[str]:
    """Operators of ONNX's own domain, in any version of it."""
    yield from {schema.name for schema in onnx.defs.get_all_schemas_with_history() if schema.domain == ""}


def test_the_table_names_operators_of_onnx() -> None:
    known = set(every_operator())
    assert known >= READ - RETIRED and not DOUBTFUL & READ
    assert set(REMEDIES) <= known - READ


def test_nvidias_newer_parser_reads_the_whole_table(library: TensorRTLibrary) -> None:
    trt = library.module
    logger = trt.Logger(trt.ILogger.INTERNAL_ERROR)
    builder = trt.Builder(logger)
    parser = trt.OnnxParser(builder.create_network(0), logger)
    reads = {name for name in (*every_operator(), *RETIRED) if parser.supports_operator(name)}
    assert len(reads) > 140
    assert READ - reads <= {"DeformConv"}, "this one comes from a plug-in library that TensorRT-RTX does not have"
