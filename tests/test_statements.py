"""Lists of classes inside a file and beside it, whatever wrote them, held against the card; never guessed, never passed over."""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fundus_rt.benchmarks.conversion_case import ConversionCase
from fundus_rt.converters.architecture import identify_architecture
from fundus_rt.converters.checkpoint import read_checkpoint
from fundus_rt.converters.class_order import class_order, in_another_order
from fundus_rt.models.card import ModelCard
from fundus_rt.models.errors import UnsupportedCheckpointError
from tests.test_foreign_onnx import classifier, onnx, ordinary
from tests.test_onnx_from_checkpoint import convert

ORDER = ("drusen", "normal", "glaucoma")
CARD = ConversionCase("x", "x", "x", ("onnx", "saved-model"), lambda *_: Path(), 32, 32, 3).card(32)


def card_with(*labels: str) -> ModelCard:
    output = dataclasses.replace(CARD.outputs[0], task="multiclass", labels=labels, columns=None, activation=None)
    return dataclasses.replace(CARD, outputs=(output,))


FORMS: dict[str, Any] = {
    "list": list(ORDER),
    "columns by name": {"glaucoma": 2, "drusen": 0, "normal": 1},
    "names by column": {2: "glaucoma", 0: "drusen", 1: "normal"},
    "names by column, as JSON has them": {"2": "glaucoma", "0": "drusen", "1": "normal"},
    "JSON": json.dumps(ORDER),
    "JSON of columns": json.dumps({"normal": 1, "glaucoma": 2, "drusen": 0}),
    "Python": "{0: 'drusen', 1: 'normal', 2: 'glaucoma'}",
    "lines": "drusen\nnormal\nglaucoma\n",
    "numbered lines": "1 normal\r\n0 drusen\r\n2 glaucoma\r\n",
    "lines with a colon": "0: drusen\n1: normal\n2: glaucoma",
    "commas": "drusen, normal, glaucoma",
    "columns from one": {"glaucoma": 3, "drusen": 1, "normal": 2},
    "number behind the name": "normal 1\ndrusen 0\nglaucoma 2\n",
    "number behind the name, with a colon": "normal: 1\ndrusen: 0\nglaucoma: 2\n",
    "table with headings": "class,index\nnormal,1\ndrusen,0\nglaucoma,2\n",
    "table, number first": "index,class\n1,normal\n0,drusen\n2,glaucoma\n",
    "numbers with a dot": "0. drusen\n1. normal\n2. glaucoma\n",
    "a list with signs": "- drusen\n- normal\n- glaucoma\n",
    "quoted table": '"0","drusen"\n"1","normal"\n"2","glaucoma"\n',
    "arrows": "normal -> 1\ndrusen -> 0\nglaucoma -> 2\n",
    "lines of a printed dictionary": "0: 'drusen'\n1: 'normal'\n2: 'glaucoma'\n",
    "JSON with a key of its own": json.dumps({"names": ORDER}),
    "JSON of records": json.dumps([{"id": i, "name": name} for i, name in enumerate(ORDER)]),
    "array": np.array(ORDER),
    "heading and comments": "# of the study\nname\ndrusen\n# healthy\nnormal\nglaucoma\n",
}
NO_ORDER: dict[str, Any] = {
    "training labels": [0, 1, 1, 0],
    "a name of each picture": ["normal", "normal", "drusen"],
    "a gap": {"normal": 0, "drusen": 2},
    "a column twice": {"normal": 0, "drusen": 0},
    "one name": "drusen",
    "code": "{__import__('os').getcwd(): 0, 'b': 1}",
    "nothing": None,
    "nested": "[[[[1]]]]",
}


@pytest.mark.parametrize("form", FORMS)
def test_every_way_of_writing_an_order_down_is_read(form: str) -> None:
    assert class_order(FORMS[form]) == ORDER


@pytest.mark.parametrize("form", NO_ORDER)
def test_what_is_no_order_is_none(form: str) -> None:
    assert class_order(NO_ORDER[form]) == ()


def test_names_that_end_with_numbers_are_names() -> None:
    assert class_order("grade 0\ngrade 1\ngrade 2\n") == ("grade 0", "grade 1", "grade 2")


def test_orders_differ_where_the_same_names_change_places() -> None:
    assert in_another_order(("Normal", "AMD"), ("amd", "normal"))
    assert not in_another_order(("Normal", "AMD"), ("normal ", "amd"))
    assert not in_another_order(("normal", "amd"), ("healthy", "ill"))
    assert not in_another_order(("normal", "amd"), ())
    assert in_another_order(("No DR", "DR"), ("DR", "no_dr")) and not in_another_order(("No DR", "DR"), ("No-DR", "dr"))
    assert in_another_order(("normal", "abnormal"), ("referable", "normal"))
    assert not in_another_order(("normal", "amd"), ("normal", "glaucoma"))
    assert not in_another_order(("-", "+"), ("-", "+")) and in_another_order(("-", "+"), ("+", "-"))
    assert not in_another_order(("normal", "amd"), ("image", "normal", "amd"))
    assert in_another_order(("female", "male"), ("M", "F")) and not in_another_order(("female", "male"), ("f", "m"))
    assert not in_another_order(("mild", "moderate"), ("m", "n")) and not in_another_order(("a1", "b1"), ("1", "2"))


BESIDE = {
    "config.json": json.dumps({"id2label": {str(i): name for i, name in enumerate(ORDER)}}),
    "config.json of timm": json.dumps({"pretrained_cfg": {"label_names": ORDER}}),
    "config.json, columns by name": json.dumps({"label2id": {name: i for i, name in enumerate(ORDER)}}),
    "class_indices.json": json.dumps({name: i for i, name in enumerate(ORDER)}),
    "labels.txt": "0 drusen\n1 normal\n2 glaucoma\n",
}


def refused(path: Path) -> None:
    """The card's own order is refused; the file's, and names of another kind, are not."""
    with pytest.raises(UnsupportedCheckpointError, match="Give --labels 'drusen,normal,glaucoma'"):
        identify_architecture(read_checkpoint(path), card_with("normal", "drusen", "glaucoma"))
    assert identify_architecture(read_checkpoint(path), card_with("Drusen", "Normal", "Glaucoma")).columns == 3
    assert identify_architecture(read_checkpoint(path), card_with("a", "b", "c")).columns == 3


@pytest.mark.parametrize("name", BESIDE)
@pytest.mark.parametrize("folder", [".", "onnx"])
def test_the_order_beside_a_graph_counts(tmp_path: Path, name: str, folder: str) -> None:
    (tmp_path / folder).mkdir(exist_ok=True)
    path = classifier(tmp_path / folder / "model.onnx", *ordinary())
    (tmp_path / name.split()[0].rstrip(",")).write_text(BESIDE[name])
    refused(path)


@pytest.mark.parametrize("key", ["names", "classes", "id2label"])
def test_the_order_in_the_metadata_of_a_graph_counts(tmp_path: Path, key: str) -> None:
    path = classifier(tmp_path / "model.onnx", *ordinary())
    model = onnx.load(str(path))
    onnx.helper.set_model_props(model, {key: str(dict(enumerate(ORDER))), "stride": "32"})
    onnx.save(model, str(path))
    refused(path)
    assert "drusen, normal, glaucoma" in " ".join(convert(path, card_with(*ORDER), tmp_path / "shipped.onnx").notes)
    onnx.helper.set_model_props(model, {key: str(list(ORDER)), "class_names": "normal,drusen,glaucoma"})
    onnx.save(model, str(path))
    with pytest.raises(UnsupportedCheckpointError, match="which order holds cannot be told"):
        read_checkpoint(path)


@pytest.mark.parametrize("key", ["idx_to_class", "labels", "id2label", "label_map", "class_to_idx", "target_names"])
def test_the_order_in_a_file_of_torch_counts(tmp_path: Path, key: str) -> None:
    torch = pytest.importorskip("torch")
    state = {"conv.weight": torch.ones(4, 3, 3, 3), "fc.weight": torch.ones(3, 4)}
    names = {name: i for i, name in enumerate(ORDER)} if key == "class_to_idx" else list(ORDER)
    torch.save({"model": state, key: names}, tmp_path / "x.pth")
    assert read_checkpoint(tmp_path / "x.pth").classes == ORDER
    torch.save({"model": state, key: names, "hyper_parameters": {"class_names": list(ORDER[::-1])}}, tmp_path / "x.pth")
    with pytest.raises(UnsupportedCheckpointError, match="lists its classes twice"):
        read_checkpoint(tmp_path / "x.pth")


CONTAINERS: dict[str, Any] = {
    "options": {"hparams": {"class_to_idx": {name: i for i, name in enumerate(ORDER)}}},
    "options of a script": {"opt": argparse.Namespace(class_names=list(ORDER))},
    "options of the data": {"config": {"data": {"train": {"classes": list(ORDER)}}}},
    "a data module": {"datamodule_hyper_parameters": {"labels": list(ORDER)}},
    "an array": {"classes": np.array(ORDER)},
    "an array of objects": {"classes": np.array(ORDER, object)},
    "an encoder's": {"label_encoder": list(ORDER)},
}


@pytest.mark.parametrize("name", CONTAINERS)
def test_the_order_counts_wherever_a_file_of_torch_has_it(tmp_path: Path, name: str) -> None:
    torch = pytest.importorskip("torch")
    state = {"conv.weight": torch.ones(4, 3, 3, 3), "fc.weight": torch.ones(3, 4)}
    torch.save({"model": state, **CONTAINERS[name]}, tmp_path / "x.pth")
    assert [order for _, order in read_checkpoint(tmp_path / "x.pth").class_lists] == [ORDER]


@pytest.mark.parametrize("key", ["model_args", "model_kwargs"])
def test_options_of_the_network_count_wherever_they_are(tmp_path: Path, key: str) -> None:
    torch = pytest.importorskip("torch")
    state = {"conv.weight": torch.ones(4, 3, 3, 3), "fc.weight": torch.ones(3, 4)}
    for options in (
        {"args": argparse.Namespace(**{key: {"global_pool": "max"}})},
        {"opt": {"net": {key: {"global_pool": "max"}}}},
    ):
        torch.save({"model": state, **options}, tmp_path / "x.pth")
        assert read_checkpoint(tmp_path / "x.pth").stated_preparation["global_pool"] == "max"


def test_a_list_that_is_not_understood_is_said_so(tmp_path: Path) -> None:
    path = classifier(tmp_path / "model.onnx", *ordinary())
    (tmp_path / "labels.txt").write_text("drusen\nnormal\nglaucoma", encoding="utf-16")
    (tmp_path / "classes.json").write_text('{"drusen": 0, "normal": 0}')
    notes = " ".join(identify_architecture(read_checkpoint(path), card_with(*ORDER)).notes)
    assert "labels.txt beside the checkpoint cannot be read" in notes and "classes.json beside model.onnx is no list" in notes


@pytest.mark.parametrize("first", [["image", "diagnosis", "age"], ["image", "age"]])
def test_every_list_of_a_file_is_held_against_the_card(tmp_path: Path, first: list[str]) -> None:
    """Names of a table's columns, which come first, do not hide the classes behind them."""
    torch = pytest.importorskip("torch")
    path = classifier(tmp_path / "model.onnx", *ordinary())
    model = onnx.load(str(path))
    onnx.helper.set_model_props(model, {"names": str(first), "classes": str(list(ORDER))})
    onnx.save(model, str(path))
    refused(path)
    torch.save({"model": {"fc.weight": torch.ones(3, 4)}, "label_names": first, "class_names": list(ORDER)}, tmp_path / "x.pth")
    read = read_checkpoint(tmp_path / "x.pth")
    assert dict(read.class_lists) == {"label_names": tuple(first), "class_names": ORDER}
    graph = dataclasses.replace(read_checkpoint(path), classes=read.classes, class_lists=read.class_lists)
    with pytest.raises(UnsupportedCheckpointError, match="Give --labels 'drusen,normal,glaucoma', the order of the file\\."):
        identify_architecture(graph, card_with("normal", "drusen", "glaucoma"))


def test_lists_beside_a_graph_are_noted_and_may_not_contradict_each_other(tmp_path: Path) -> None:
    path = classifier(tmp_path / "model.onnx", *ordinary())
    (tmp_path / "labels.txt").write_text("drusen\nnormal\nglaucoma\n")
    found = identify_architecture(read_checkpoint(path), card_with("a", "b", "c"))
    assert "labels.txt beside model.onnx lists 'drusen', 'normal', 'glaucoma'" in found.notes
    with pytest.raises(UnsupportedCheckpointError, match="or move it away if it belongs to another model"):
        identify_architecture(read_checkpoint(path), card_with("normal", "drusen", "glaucoma"))
    (tmp_path / "classes.txt").write_text("normal\ndrusen\nglaucoma\n")
    with pytest.raises(UnsupportedCheckpointError, match=r"classes\.txt beside .* and labels\.txt beside .* cannot be told"):
        identify_architecture(read_checkpoint(path), card_with(*ORDER))
    (tmp_path / "labels.txt").unlink()
    model = onnx.load(str(path))
    onnx.helper.set_model_props(model, {"classes": str(list(ORDER))})
    onnx.save(model, str(path))
    with pytest.raises(UnsupportedCheckpointError, match=r"model\.onnx \(classes\) .* and classes\.txt beside .* cannot be told"):
        identify_architecture(read_checkpoint(path), card_with("a", "b", "c"))


def test_the_order_in_the_header_of_safetensors_counts(tmp_path: Path) -> None:
    numpy_format = pytest.importorskip("safetensors.numpy")
    state = {"conv.weight": np.ones((4, 3, 3, 3), np.float32)}
    numpy_format.save_file(state, str(tmp_path / "x.safetensors"), metadata={"format": "pt", "class_names": json.dumps(ORDER)})
    assert read_checkpoint(tmp_path / "x.safetensors").classes == ORDER


def test_the_order_in_the_folder_of_a_saved_model_counts(tmp_path: Path) -> None:
    make = pytest.importorskip("tests.make_checkpoints")
    tensorflow = pytest.importorskip("tensorflow")

    class Network(tensorflow.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            self.head = tensorflow.Variable(np.ones((3, 3), np.float32))

        @tensorflow.function(input_signature=[tensorflow.TensorSpec([None, 32, 32, 3], tensorflow.float32)])  # type: ignore[untyped-decorator]
        def __call__(self, images: Any) -> Any:
            return tensorflow.reduce_mean(images, axis=(1, 2)) @ self.head

    assert make is not None
    network = Network()
    tensorflow.saved_model.save(network, str(tmp_path / "net"), signatures=network.__call__)
    for place in (tmp_path / "net" / "assets" / "labels.txt", tmp_path / "labels.txt"):
        place.write_text("drusen\nnormal\nglaucoma\n")
        refused(tmp_path / "net")
        place.unlink()
    assert identify_architecture(read_checkpoint(tmp_path / "net"), card_with("normal", "drusen", "glaucoma")).columns == 3
