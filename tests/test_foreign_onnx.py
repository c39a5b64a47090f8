"""ONNX models that others exported: brought up, freed of their batch and proved, or refused with the reason."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fundus_rt.benchmarks.conversion_case import ConversionCase
from fundus_rt.benchmarks.make_foreign import CASES, export_torch
from fundus_rt.converters.architecture import identify_architecture
from fundus_rt.converters.checkpoint import read_checkpoint
from fundus_rt.converters.parity import reference_tensor
from fundus_rt.models.errors import UnsupportedCheckpointError
from tests import make_checkpoints as make
from tests.test_onnx_from_checkpoint import convert, open_shipped

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
helper, FLOAT = onnx.helper, onnx.TensorProto.FLOAT
SIZE, COLUMNS = 32, 3
CARD = ConversionCase("x", "x", "x", ("onnx",), lambda *_: Path(), SIZE, SIZE, COLUMNS).card(SIZE)


def constants(random: np.random.Generator, **shapes: tuple[int, ...]) -> list[Any]:
    """Initializers drawn at random, scaled by the numbers that each output sums."""
    return [
        onnx.numpy_helper.from_array((random.normal(size=shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32), name)
        for name, shape in shapes.items()
    ]


def classifier(path: Path, nodes: list[Any], tensors: list[Any], **changes: Any) -> Path:
    """Write a model: input ``image`` [1, 3, 32, 32] and output ``answer`` [1, 3] unless changed."""
    settings = {"image": [1, 3, SIZE, SIZE], "answer": [1, COLUMNS], "kind": FLOAT, "opset": 17, "outputs": ["answer"]} | changes
    inputs = [helper.make_tensor_value_info("image", settings["kind"], settings["image"])]
    if settings.get("ir", 8) == 3:
        inputs += [helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims) for tensor in tensors]
    outputs = [
        helper.make_tensor_value_info(name, settings.get("out", FLOAT), settings["answer"]) for name in settings["outputs"]
    ]
    graph = helper.make_graph(nodes, "net", inputs, outputs, tensors)
    opsets = [helper.make_opsetid("", settings["opset"]), *settings.get("domains", [])]
    model = helper.make_model(
        graph, opset_imports=opsets, ir_version=settings.get("ir", 8), functions=settings.get("functions", [])
    )
    onnx.save(model, str(path))
    return path


def ordinary() -> tuple[list[Any], list[Any]]:
    """Convolution, pooling, Flatten by a Reshape with the batch written in it, Gemm."""
    tensors = constants(np.random.default_rng(3), kernel=(8, 3, 3, 3), head=(COLUMNS, 8))
    tensors.append(onnx.numpy_helper.from_array(np.asarray([1, 8], np.int64), "flat"))
    nodes = [
        helper.make_node("Conv", ["image", "kernel"], ["a"], name="convolution", strides=[2, 2], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("GlobalAveragePool", ["b"], ["c"]),
        helper.make_node("Reshape", ["c", "flat"], ["d"], name="flatten"),
        helper.make_node("Gemm", ["d", "head"], ["answer"], transB=1),
    ]
    return nodes, tensors


def converted(source: Path, tolerance: float = 1e-5, original: Path | None = None) -> Any:
    """Convert, and hold the shipped file against the original bytes in ONNX Runtime, one picture at a time."""
    card = CARD
    target = source.with_suffix(".shipped.onnx")
    report = convert(source, card, target)
    pictures = make.photographs(SIZE, 5, seed=8)
    session = onnxruntime.InferenceSession(str(original or source), providers=["CPUExecutionProvider"])
    given = session.get_inputs()[0]
    images = reference_tensor(pictures, card.preprocessing)
    if given.shape[3] != 3:
        images = images.transpose(0, 3, 1, 2).copy()
    count = given.shape[0] if isinstance(given.shape[0], int) else 1
    singly = [session.run(None, {given.name: np.repeat(image[None], count, axis=0)})[0][:1] for image in images]
    expected = np.concatenate(singly).astype(np.float64)
    if report.card.outputs[0].activation == "softmax":
        expected = np.exp(expected) / np.exp(expected).sum(axis=1, keepdims=True)
    answered = open_shipped(target)(pictures)["grade"].astype(np.float64)
    if report.card.outputs[0].activation == "softmax":
        answered = np.exp(answered) / np.exp(answered).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(answered, expected, atol=tolerance)
    assert np.ptp(expected, axis=0).max() > 0.01
    return report


@pytest.mark.parametrize("case", [case for case in CASES if case.families == ("onnx",)], ids=lambda case: case.name)
def test_exports_of_published_architectures_convert(tmp_path: Path, case: ConversionCase) -> None:
    make.skip_without_timm()
    source = case.make(tmp_path, case.size, case.columns)
    report = convert(source, case.card(case.size), tmp_path / "shipped.onnx")
    difference = report.differences[0]
    assert difference.largest < 1e-4 < 0.05 < difference.spread
    assert report.architecture.account.used_parameters == report.architecture.account.network_parameters > 500_000
    assert any("does not name its architecture" in warning for warning in report.warnings)


def old_classifier(path: Path) -> Path:
    """Traits of an export of 2018: operator set 9, format 3, parameters as inputs, Upsample, Clip with attributes, Dropout."""
    nodes, tensors = ordinary()
    tensors += constants(np.random.default_rng(4), narrow=(8, 8, 1, 1), never_read=(5, 2))
    tensors.append(onnx.numpy_helper.from_array(np.asarray([1, 1, 2, 2], np.float32), "twice"))
    tensors.append(onnx.numpy_helper.from_array(np.asarray([0.1, -0.2, 0.3], np.float32), "bias"))
    nodes[4].input.append("bias")
    nodes[1] = helper.make_node("Clip", ["a"], ["clipped"], min=0.0, max=6.0)
    between = [
        helper.make_node("Upsample", ["clipped", "twice"], ["wide"], mode="linear"),
        helper.make_node("Conv", ["wide", "narrow"], ["mixed"]),
        helper.make_node("Dropout", ["mixed"], ["kept", "mask"], ratio=0.4),
        helper.make_node("Sigmoid", ["kept"], ["b"]),
    ]
    return classifier(path, nodes[:2] + between + nodes[2:], tensors, opset=9, ir=3)


def test_an_export_of_2018_is_brought_up(tmp_path: Path) -> None:
    report = converted(old_classifier(tmp_path / "old.onnx"))
    shipped = onnx.load(str(report.output))
    assert [entry.version for entry in shipped.opset_import] == [17] and len(shipped.graph.input) == 1
    assert not {node.op_type for node in shipped.graph.node} & {"Upsample", "Dropout"}
    account = report.architecture.account
    assert list(account.unused) == ["never_read"] and account.file_parameters - account.used_parameters == 10


def test_linear_upsampling_before_operator_set_11_keeps_its_grid(tmp_path: Path) -> None:
    """x / scale, not half a pixel away: on a ramp, the two differ at every second pixel. Closed form, by hand."""
    from fundus_rt.converters.graphs.onnx_upgrade import upgraded

    tensors = [onnx.numpy_helper.from_array(np.asarray([1, 1, 1, 2], np.float32), "twice")]
    nodes = [helper.make_node("Upsample", ["image", "twice"], ["answer"], mode="linear")]
    source = classifier(tmp_path / "x.onnx", nodes, tensors, opset=9, image=[1, 1, 1, 4], answer=[1, 1, 1, 8])
    model = upgraded(onnx.load(str(source)), "x.onnx")
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"image": np.asarray([[[[0, 10, 20, 30]]]], np.float32)})
    np.testing.assert_allclose(found.reshape(-1), [0, 5, 10, 15, 20, 25, 30, 30])


@pytest.fixture(scope="module")
def torch_classifier() -> Any:
    """A torch network that joins the batch with rows of the picture, resizes to a size, and has Gelu and a class token."""
    torch = pytest.importorskip("torch")
    torch.manual_seed(1)

    class Classifier(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.stem = torch.nn.Conv2d(3, 16, 4, stride=4)
            self.norm = torch.nn.BatchNorm2d(16)
            self.token = torch.nn.Parameter(torch.randn(1, 1, 16))
            self.mix = torch.nn.Linear(16, 16)
            self.drop = torch.nn.Dropout(0.3)
            self.head = torch.nn.Linear(16, COLUMNS)

        def forward(self, image: Any) -> Any:
            found = self.norm(self.stem(image))
            found = torch.nn.functional.interpolate(found, size=(10, 10), mode="bilinear")
            batch, channels, height, width = found.shape
            rows = found.permute(0, 2, 3, 1).reshape(batch * height, width, channels)
            rows = torch.nn.functional.gelu(self.mix(rows)) + rows
            tokens = rows.view(batch, height * width, channels)
            tokens = torch.cat([self.token.expand(batch, -1, -1), tokens], dim=1)
            return self.head(self.drop(torch.softmax(tokens, 1).mul(tokens).sum(1)))

    network = Classifier().eval()
    with torch.no_grad():
        network.head.weight.mul_(6)
    return network


@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
@pytest.mark.parametrize("opset", [11, 13, 18, 20])
def test_torch_exports_of_several_years_convert(tmp_path: Path, torch_classifier: Any, opset: int, dynamic: bool) -> None:
    source = export_torch(torch_classifier, tmp_path / "x.onnx", SIZE, opset, dynamic)
    report = converted(source)
    assert (report.architecture.input_size, report.architecture.columns) == ((SIZE, SIZE), COLUMNS)
    assert report.architecture.activation == "none"
    assert {entry.version for entry in onnx.load(str(report.output)).opset_import} <= {17, 18, 19}


def test_gelu_is_spelled_out_for_operator_set_19(tmp_path: Path) -> None:
    """Both forms against ONNX's own reference implementation."""
    from onnx.reference import ReferenceEvaluator

    from fundus_rt.converters.graphs.onnx_upgrade import upgraded

    nodes = [
        helper.make_node("Gelu", ["image"], ["exact"]),
        helper.make_node("Gelu", ["exact"], ["answer"], approximate="tanh"),
    ]
    source = classifier(tmp_path / "x.onnx", nodes, [], opset=20, image=[1, 40], answer=[1, 40], ir=9)
    values = np.linspace(-4, 4, 40, dtype=np.float32)[None]
    (expected,) = ReferenceEvaluator(str(source)).run(None, {"image": values})
    model = upgraded(onnx.load(str(source)), "x.onnx")
    (found,) = onnxruntime.InferenceSession(model.SerializeToString()).run(None, {"image": values})
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_channels_last_any_size_and_batches_of_two(tmp_path: Path) -> None:
    nodes, tensors = ordinary()
    nodes[0].input[0] = "first"
    turned = [helper.make_node("Transpose", ["image"], ["first"], perm=[0, 3, 1, 2]), *nodes]
    report = converted(classifier(tmp_path / "last.onnx", turned, tensors, image=[1, "h", "w", 3]))
    assert "channels last" in report.architecture.description
    nodes, tensors = ordinary()
    nodes[3] = helper.make_node("Flatten", ["c"], ["d"])
    report = converted(classifier(tmp_path / "open.onnx", nodes, tensors[:2], image=["n", "c", "h", "w"], answer=["n", COLUMNS]))
    assert "channels first, any number" in report.architecture.description
    nodes, tensors = ordinary()
    tensors[2] = onnx.numpy_helper.from_array(np.asarray([2, 8], np.int64), "flat")
    report = converted(classifier(tmp_path / "two.onnx", nodes, tensors, image=[2, 3, SIZE, SIZE], answer=[2, COLUMNS]))
    assert "2 pictures per run" in report.architecture.description


def test_functions_inside_the_file_are_inlined(tmp_path: Path) -> None:
    nodes, tensors = ordinary()
    nodes[1] = helper.make_node("Bend", ["a"], ["b"], domain="author")
    body = [helper.make_node("Relu", ["x"], ["y"])]
    function = helper.make_function("author", "Bend", ["x"], ["y"], body, [helper.make_opsetid("", 17)])
    report = converted(
        classifier(tmp_path / "x.onnx", nodes, tensors, functions=[function], domains=[helper.make_opsetid("author", 1)])
    )
    assert not onnx.load(str(report.output)).functions


def test_a_batch_that_cannot_be_freed_names_the_node(tmp_path: Path) -> None:
    nodes, tensors = ordinary()
    tensors.append(onnx.numpy_helper.from_array(np.asarray([[0]], np.int64), "first"))
    nodes[4].output[0] = "all"
    nodes.append(helper.make_node("GatherND", ["all", "first"], ["answer"], name="only_the_first"))
    source = classifier(tmp_path / "x.onnx", nodes, tensors)
    with pytest.raises(UnsupportedCheckpointError, match=r"exported for 1 picture at a time .*answers to 2 pictures at once"):
        convert(source, CARD, tmp_path / "y.onnx")
    nodes[5] = helper.make_node("MatMul", ["square", "all"], ["answer"], name="crossed")
    tensors[3] = onnx.numpy_helper.from_array(np.ones((1, 1), np.float32), "square")
    source = classifier(tmp_path / "z.onnx", nodes, tensors)
    with pytest.raises(UnsupportedCheckpointError, match=r"node crossed \(MatMul\) fails on 2 pictures"):
        convert(source, CARD, tmp_path / "y.onnx")


def test_parameters_beside_the_file_are_read_from_beside_it_only(tmp_path: Path) -> None:
    nodes, tensors = ordinary()
    source = classifier(tmp_path / "whole.onnx", nodes, tensors)
    model = onnx.load(str(source))
    folder = tmp_path / "model"
    folder.mkdir()
    onnx.save(model, str(folder / "x.onnx"), save_as_external_data=True, location="x.data", size_threshold=0)
    report = converted(folder / "x.onnx", original=source)
    assert any("x.data, sha256" in note for note in report.notes)
    (folder / "x.data").write_bytes(b"short")
    with pytest.raises(UnsupportedCheckpointError, match=r"x\.data, which has 5 bytes, fewer than"):
        read_checkpoint(folder / "x.onnx")
    (folder / "x.data").unlink()
    with pytest.raises(UnsupportedCheckpointError, match=r"x\.data, which is not there"):
        read_checkpoint(folder / "x.onnx")
    (tmp_path / "secret").write_bytes(bytes(10_000))
    (folder / "x.data").symlink_to(tmp_path / "secret")
    with pytest.raises(UnsupportedCheckpointError, match="only plain files"):
        read_checkpoint(folder / "x.onnx")
    for location in ("../secret", str(tmp_path / "secret"), ""):
        broken = onnx.load(str(folder / "x.onnx"), load_external_data=False)
        for tensor in broken.graph.initializer:
            next(entry for entry in tensor.external_data if entry.key == "location").value = location
        onnx.save(broken, str(folder / "y.onnx"))
        with pytest.raises(UnsupportedCheckpointError, match="only plain files in the model's own folder"):
            read_checkpoint(folder / "y.onnx")


def test_places_in_a_file_beside_it_that_are_no_numbers_are_refused(tmp_path: Path) -> None:
    nodes, tensors = ordinary()
    source = classifier(tmp_path / "x.onnx", nodes, tensors)
    model = onnx.load(str(source))
    onnx.save(model, str(source), save_as_external_data=True, location="x.data", size_threshold=0)
    for key, told in (("offset", "abc"), ("offset", "-8"), ("length", "-8"), ("length", "1e3"), ("offset", "9" * 40)):
        broken = onnx.load(str(source), load_external_data=False)
        next(entry for entry in broken.graph.initializer[0].external_data if entry.key == key).value = told
        onnx.save(broken, str(tmp_path / "y.onnx"))
        with pytest.raises(UnsupportedCheckpointError, match=rf"'kernel', kept in x\.data, that its {key} is '{told}'"):
            read_checkpoint(tmp_path / "y.onnx")


def test_parameters_are_counted_wherever_they_are(tmp_path: Path) -> None:
    """In Constant nodes, in a function, in a branch and in a sparse initializer: the same parameters as initializers have."""
    nodes, tensors = ordinary()
    kernel, head, flat = tensors
    constant = [helper.make_node("Constant", [], [tensor.name], value=tensor) for tensor in tensors]
    report = converted(classifier(tmp_path / "constants.onnx", [*constant, *nodes], []))
    account = report.architecture.account
    assert account.file_tensors == account.used_tensors == 3
    assert account.file_parameters == account.network_parameters == 8 * 3 * 3 * 3 + COLUMNS * 8 + 2
    body = [helper.make_node("Constant", [], ["kernel"], value=kernel), nodes[0]]
    function = helper.make_function("author", "Stem", ["image"], ["a"], body, [helper.make_opsetid("", 17)])
    stem = helper.make_node("Stem", ["image"], ["a"], domain="author")
    domains = [helper.make_opsetid("author", 1)]
    source = classifier(tmp_path / "f.onnx", [stem, *nodes[1:]], [head, flat], functions=[function], domains=domains)
    assert read_checkpoint(source).shapes == {"head": (COLUMNS, 8), "flat": (2,), "kernel": (8, 3, 3, 3)}
    model = onnx.load(str(classifier(tmp_path / "s.onnx", nodes, [kernel, flat])))
    values = onnx.numpy_helper.from_array(np.asarray([2, -3], np.float32), "head")
    places = onnx.numpy_helper.from_array(np.asarray([1, 20], np.int64), "places")
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(values, places, [COLUMNS, 8]))
    onnx.save(model, str(tmp_path / "s.onnx"))
    assert identify_architecture(read_checkpoint(tmp_path / "s.onnx"), CARD).account == account


def test_what_nothing_reads_is_listed_where_small_and_refused_where_large(tmp_path: Path) -> None:
    nodes, tensors = ordinary()
    small = constants(np.random.default_rng(0), left=(10, 100))
    source = classifier(tmp_path / "small.onnx", nodes, tensors + small)
    assert identify_architecture(read_checkpoint(source), CARD).account.unused == {"left": "no node of the graph reads it"}
    large = constants(np.random.default_rng(0), other_head=(11, 91))
    refused(classifier(tmp_path / "large.onnx", nodes, tensors + large), r"reads 1 of its tensors: other_head \[11, 91\]")
    inside = helper.make_node("Constant", [], ["other_head"], value=large[0])
    refused(classifier(tmp_path / "inside.onnx", [inside, *nodes], tensors), r"reads 1 of its tensors: other_head \[11, 91\]")
    empty = [helper.make_node("GlobalAveragePool", ["image"], ["means"]), helper.make_node("Flatten", ["means"], ["answer"])]
    refused(classifier(tmp_path / "empty.onnx", empty, []), "holds no parameters")


def refused(source: Path, message: str) -> None:
    with pytest.raises(UnsupportedCheckpointError, match=message):
        identify_architecture(read_checkpoint(source), CARD)


def test_inputs_and_outputs_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    nodes, tensors = ordinary()
    cast = [helper.make_node("Cast", ["image"], ["pixels"], to=FLOAT), *nodes]
    cast[1].input[0] = "pixels"
    refused(classifier(tmp_path / "a.onnx", cast, tensors, kind=onnx.TensorProto.UINT8), r"uint8 numbers.*prepares the picture")
    refused(classifier(tmp_path / "b.onnx", cast, tensors, kind=onnx.TensorProto.FLOAT16), "float16 numbers.*half precision")
    nodes, tensors = ordinary()
    refused(classifier(tmp_path / "c.onnx", nodes, tensors, outputs=["answer", "c"]), "outputs answer, c, expected one")
    refused(classifier(tmp_path / "d.onnx", nodes[:2], tensors, outputs=["b"], answer=[1, 8, 16, 16]), "a map: a segmentation")
    refused(classifier(tmp_path / "e.onnx", nodes[:2], tensors, outputs=["b"], answer=None), "a map: a segmentation")
    grey = constants(np.random.default_rng(0), kernel=(8, 1, 3, 3)) + tensors[1:]
    refused(classifier(tmp_path / "f.onnx", nodes, grey, image=[1, 1, SIZE, SIZE]), r"input of shape \[1, 1, 32, 32\]")
    refused(classifier(tmp_path / "g.onnx", nodes, tensors, image=[1, 3, 64, 64]), "64 x 64 pixels, but the card")
    first = onnx.numpy_helper.from_array(np.asarray(0, np.int64), "first")
    one = [*nodes, helper.make_node("Gather", ["answer", "first"], ["one"], axis=1)]
    squeezed = {"outputs": ["one"], "answer": [1]}
    refused(classifier(tmp_path / "i.onnx", one, [*tensors, first], **squeezed), r"shape \[1\].*without the Squeeze")
    best = [*nodes, helper.make_node("ArgMax", ["answer"], ["best"], axis=1)]
    number = {"outputs": ["best"], "answer": [1, 1], "out": onnx.TensorProto.INT64}
    refused(classifier(tmp_path / "h.onnx", best, tensors, **number), "answers with int64 numbers")


def test_operators_that_cannot_be_shipped_are_named(tmp_path: Path) -> None:
    nodes, tensors = ordinary()
    nodes[1] = helper.make_node("FusedBend", ["a"], ["b"], name="fused", domain="com.microsoft")
    domains = [helper.make_opsetid("com.microsoft", 1)]
    refused(classifier(tmp_path / "a.onnx", nodes, tensors, domains=domains), r"com\.microsoft\.FusedBend \(node 'fused'\)")
    nodes, tensors = ordinary()
    tensors += [onnx.numpy_helper.from_array(np.ones(8, np.float32), name) for name in ("g", "s", "m", "v")]
    norm = helper.make_node("BatchNormalization", ["a", "g", "s", "m", "v"], ["b", "x", "y"], name="norm", training_mode=1)
    refused(classifier(tmp_path / "b.onnx", [nodes[0], norm, *nodes[2:]], tensors), "still training .node 'norm'")
    nodes, tensors = ordinary()
    tensors.append(onnx.numpy_helper.from_array(np.asarray(True), "training"))
    nodes[1] = helper.make_node("Dropout", ["a", "", "training"], ["b"], name="drop")
    with pytest.raises(UnsupportedCheckpointError, match=r"Dropout that is still training \(node 'drop'\)"):
        convert(classifier(tmp_path / "c.onnx", nodes, tensors), CARD, tmp_path / "y.onnx")
    nodes, tensors = ordinary()
    nodes[1] = helper.make_node("RMSNormalization", ["a", "g"], ["b"], axis=1)
    tensors.append(onnx.numpy_helper.from_array(np.ones((8, 16, 16), np.float32), "g"))
    source = classifier(tmp_path / "d.onnx", nodes, tensors, opset=23, ir=10)
    with pytest.raises(UnsupportedCheckpointError, match=r"RMSNormalization"):
        convert(source, CARD, tmp_path / "y.onnx")


def test_our_own_files_and_damaged_ones_are_refused(tmp_path: Path) -> None:
    source = classifier(tmp_path / "x.onnx", *ordinary())
    report = converted(source)
    with pytest.raises(UnsupportedCheckpointError, match="already converted"):
        read_checkpoint(report.output)
    (tmp_path / "short.onnx").write_bytes(source.read_bytes()[:300])
    with pytest.raises(UnsupportedCheckpointError, match="cut short"):
        read_checkpoint(tmp_path / "short.onnx")
    (tmp_path / "x.bin").write_bytes(source.read_bytes())
    assert read_checkpoint(tmp_path / "x.bin").format == "onnx", "told from the content"


def test_the_published_vessel_network_is_refused_as_a_map() -> None:
    folder = os.environ.get("FUNDUS_RT_WEIGHTS")
    found = sorted(Path(folder).glob("onnx_opset9_retina_vessel_M2UNetDRIVE.onnx")) if folder else []
    if not found:
        pytest.skip("FUNDUS_RT_WEIGHTS names no folder with M2UNetDRIVE.onnx, which others published")
    checkpoint = read_checkpoint(found[0])
    assert checkpoint.parameters == 566_389 and re.search("format 3, operator set ai.onnx 9", checkpoint.notes[0])
    with pytest.raises(UnsupportedCheckpointError, match=r"shape \[1, 1, 544, 544\].*a map: a segmentation"):
        identify_architecture(checkpoint, CARD)
