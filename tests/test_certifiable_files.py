"""Which files can be certified at all: all weights in the one file that is hashed, and no half precision on a CPU."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("onnxruntime")

from fundus_rt.models.errors import CertificateError, ModelFileError
from fundus_rt.models.onnx_scan import holds_half_precision
from fundus_rt.models.references import reference_path, write_reference
from fundus_rt.runtime.certify import certify
from fundus_rt.runtime.pipeline import Pipeline
from tests.conftest import REPOSITORY
from tests.references import sex_reference

ACQUISITION = REPOSITORY / "models" / "bundled" / "acquisition.onnx"


class TestWeightsElsewhere:
    """A hash of the ``.onnx`` says nothing of a file beside it."""

    @pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
    def test_they_are_refused(self, tmp_path: Path, backend: str) -> None:
        onnx = pytest.importorskip("onnx")
        pytest.importorskip(backend)
        model = onnx.load(str(ACQUISITION))
        path = tmp_path / "model.onnx"
        onnx.save(model, str(path), save_as_external_data=True, location="model.bin", size_threshold=0)
        with pytest.raises(ModelFileError, match=r"model\.onnx has weights in another file"):
            Pipeline(path, backend, check=False)

    def test_in_a_constant_too(self, tmp_path: Path, tiny_sex: Path) -> None:
        onnx = pytest.importorskip("onnx")
        model = onnx.load(str(tiny_sex))
        tensor = onnx.numpy_helper.from_array(np.ones(3, np.float32), "outside")
        tensor.ClearField("raw_data")
        tensor.data_location = onnx.TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value="model.bin")
        model.graph.node.append(onnx.helper.make_node("Constant", [], ["outside"], value=tensor))
        (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
        with pytest.raises(ModelFileError, match="weights in another file"):
            Pipeline(tmp_path / "model.onnx", check=False)


class TestHalfPrecision:
    def test_a_cpu_never_certifies_it(self, tmp_path: Path, tiny_sex: Path) -> None:
        onnx = pytest.importorskip("onnx")
        model = onnx.load(str(tiny_sex))
        (entry,) = (entry for entry in model.metadata_props if entry.key == "fundus_rt.card")
        card = json.loads(entry.value)
        entry.value = json.dumps({**card, "provenance": {"precision": "fp16"}})
        path = tmp_path / "half.onnx"
        onnx.save(model, str(path))
        write_reference(reference_path(path), sex_reference(tiny_sex))
        with pytest.raises(
            CertificateError, match=r"half\.onnx is not certified: ONNX Runtime computes half precision on a CPU in"
        ):
            certify(path)
        found = Pipeline(path, check=False).certificate
        assert found.verdict == "none"
        assert found.reason == "ONNX Runtime computes half precision on a CPU in float32, so only a GPU can certify this file"

    def test_the_graph_itself_tells(self, tmp_path: Path, tiny_sex: Path) -> None:
        onnx = pytest.importorskip("onnx")
        from tests.engine_graphs import saved, small_network

        for precision in ("fp32", "fp16", "int8"):
            path = saved(tmp_path / f"{precision}.onnx", small_network(precision))
            expected = any(tensor.data_type in (10, 16) for tensor in onnx.load(str(path)).graph.initializer)
            assert holds_half_precision(path) == expected == (precision == "fp16")
        assert not holds_half_precision(ACQUISITION)
        model = onnx.load(str(tiny_sex))
        first = model.graph.node[0]
        cast = onnx.helper.make_node("Cast", [model.graph.output[0].name], ["in_half"], to=onnx.TensorProto.FLOAT16)
        model.graph.node.append(cast)
        onnx.save(model, str(tmp_path / "cast.onnx"))
        assert first.op_type == "Cast" and holds_half_precision(tmp_path / "cast.onnx")
        cut = tmp_path / "cut.onnx"
        cut.write_bytes(tiny_sex.read_bytes()[:700])
        with pytest.raises(ModelFileError, match=r"cut\.onnx is not an ONNX file"):
            holds_half_precision(cut)
