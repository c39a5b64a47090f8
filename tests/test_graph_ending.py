"""What a graph does to its numbers last, held against the numbers that it gives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fundus_rt.benchmarks.conversion_case import ConversionCase
from fundus_rt.converters.graphs.graph_ending import activation_inside
from fundus_rt.models.errors import UnsupportedCheckpointError
from tests import make_checkpoints as make
from tests.test_onnx_from_checkpoint import convert, open_shipped

onnx = pytest.importorskip("onnx")
torch = pytest.importorskip("torch")

from fundus_rt.converters.pytorch.torch_export import onnx_from_torch, torch_answers  # noqa: E402

SIZE = 16


def shares(numbers: Any) -> Any:
    return numbers / numbers.sum(1, keepdim=True)


SMALL = torch.full((1, 4), 1e-3)
BOUNDS = torch.full((1, 4), 1e-7), torch.full((1, 4), 1 - 1e-7)
ENDINGS: dict[str, tuple[Any, str]] = {
    "mean of sigmoids": (lambda x: x.sigmoid().mean(dim=1, keepdim=True), "sigmoid"),
    "product of sigmoids": (lambda x: x[:, :2].sigmoid() * x[:, 2:].sigmoid(), "sigmoid"),
    "one minus a sigmoid, and it": (lambda x: torch.cat([1 - x[:, :1].sigmoid(), x[:, :1].sigmoid()], 1), "softmax"),
    "written out": (lambda x: 1 / (1 + torch.exp(-x)), "sigmoid"),
    "written out, reciprocal": (lambda x: torch.reciprocal(1 + torch.exp(-x)), "sigmoid"),
    "hard sigmoid": (torch.nn.functional.hardsigmoid, "sigmoid"),
    "geometric mean": (lambda x: (x[:, :2].sigmoid() * x[:, 2:].sigmoid()).sqrt(), "sigmoid"),
    "columns in another order": (lambda x: x.softmax(1)[:, [2, 0, 3, 1]], "softmax"),
    "halves exchanged": (lambda x: torch.cat(x.sigmoid().split(2, 1)[::-1], 1), "sigmoid"),
    "bounded by tensors": (lambda x: torch.minimum(torch.maximum(x.softmax(1), BOUNDS[0]), BOUNDS[1]), "softmax"),
    "tanh moved to 0 and 1": (lambda x: (torch.tanh(x) + 1) / 2, "sigmoid"),
    "softmax written out": (lambda x: x.exp() / x.exp().sum(1, keepdim=True), "softmax"),
    "mean of two softmaxes": (lambda x: (x[:, :2].softmax(1) + x[:, 2:].softmax(1)) / 2, "softmax"),
    "stacked and averaged": (lambda x: torch.stack([x.softmax(1), (2 * x).softmax(1)]).mean(0), "softmax"),
    "a column of two softmaxes each": (
        lambda x: torch.cat([x[:, :2].softmax(1)[:, 1:], x[:, 2:].softmax(1)[:, 1:]], 1),
        "sigmoid",
    ),
    "two of a softmax's four columns": (lambda x: x.softmax(1)[:, 1:3], "sigmoid"),
    "all columns of a softmax, exchanged": (lambda x: x.softmax(1).flip(1), "softmax"),
    "the larger of two columns": (lambda x: torch.maximum(x.softmax(1)[:, :1], x.softmax(1)[:, 1:2]), "none"),
    "the largest of a softmax": (lambda x: x.softmax(1).amax(1, keepdim=True), "none"),
    "the largest of several places": (lambda x: x.sigmoid().amax(1, keepdim=True), "sigmoid"),
    "softmax over pairs, joined": (lambda x: x.reshape(-1, 2, 2).softmax(2).flatten(1), "sigmoid"),
    "exponential of a log-softmax": (lambda x: x.log_softmax(1).exp(), "softmax"),
    "log-softmax": (lambda x: x.log_softmax(1), "log-softmax"),
    "logarithm of a bounded softmax": (lambda x: x.softmax(1).clamp_min(1e-9).log(), "log-softmax"),
    "a column of a log-softmax": (lambda x: x.log_softmax(1)[:, 1:2], "logarithm"),
    "log-sigmoid": (torch.nn.functional.logsigmoid, "logarithm"),
    "log-sigmoid as TensorFlow writes it": (lambda x: -torch.nn.functional.softplus(-x), "logarithm"),
    "logarithm of a sigmoid, with an epsilon": (lambda x: (x.sigmoid() + 1e-7).log(), "logarithm"),
    "expected age of a softmax": (lambda x: (x.softmax(1) * torch.arange(4.0) * 20).sum(1, keepdim=True), "changed"),
    "sigmoid in years": (lambda x: x.sigmoid() * 100, "changed"),
    "sum of sigmoids": (lambda x: x.sigmoid()[:, :2] + x.sigmoid()[:, 2:], "changed"),
    "log-odds of a sigmoid": (lambda x: x.sigmoid().log() - (1 - x.sigmoid()).log(), "none"),
    "softplus": (torch.nn.functional.softplus, "changed"),
    "negative log-softmax": (lambda x: -x.log_softmax(1), "changed"),
    "sigmoid around zero": (lambda x: x.sigmoid() - 0.5, "changed"),
    "difference of two probabilities": (lambda x: 2 * x.sigmoid() - 1, "changed"),
    "tanh": (torch.tanh, "changed"),
    "whole per cent": (lambda x: (100 * x.softmax(1)).round(), "changed"),
    "per cent, small ones left out": (lambda x: 100 * torch.where(x.softmax(1) > 1e-3, x.softmax(1), SMALL), "changed"),
    "squares in per cent": (lambda x: 100 * x.softmax(1) ** 2, "changed"),
    "scaled by a matrix": (lambda x: x.softmax(1) @ (100 * torch.eye(4)), "changed"),
    "mixed by a matrix": (lambda x: x.sigmoid() @ torch.ones(4, 4), "none"),
    "sigmoids divided by their sum, in per cent": (lambda x: 100 * shares(x.sigmoid()), "changed"),
    "weighted softmax": (lambda x: x.softmax(1) * (1 + torch.arange(4.0)), "changed"),
    "difference of two log-softmaxes": (lambda x: x.log_softmax(1)[:, 1:2] - x.log_softmax(1)[:, :1], "none"),
    "relu6": (torch.nn.functional.relu6, "none"),
    "clamped": (lambda x: x.clamp(0, 1), "none"),
}


class Ended(torch.nn.Module):  # type: ignore[misc]
    """Four numbers of a picture, and a function of them."""

    def __init__(self, ending: Any) -> None:
        super().__init__()
        self.kernel, self.head, self.ending = torch.nn.Conv2d(3, 8, 3, stride=2), torch.nn.Linear(8, 4), ending

    def forward(self, images: Any) -> Any:
        return self.ending(2 * self.head(self.kernel(images).relu().mean(dim=(2, 3))))


def ended(ending: Any) -> tuple[Any, np.ndarray]:
    """The graph of a network with this ending, and its answers to six pictures."""
    torch.manual_seed(3)
    network = Ended(ending).eval()
    images = np.random.default_rng(0).normal(size=(6, SIZE, SIZE, 3)).astype(np.float32) * np.arange(1, 7)[:, None, None, None]
    return onnx_from_torch(network, (SIZE, SIZE)), torch_answers(network, images.astype(np.float32))


@pytest.mark.parametrize("name", ENDINGS)
def test_an_ending_is_what_its_numbers_are(name: str) -> None:
    ending, expected = ENDINGS[name]
    model, answers = ended(ending)
    powers = np.exp(answers.astype(np.float64))
    within = {
        "sigmoid": answers.min() >= 0 and answers.max() <= 1,
        "softmax": answers.min() >= 0 and (answers.sum(1) <= 1 + 1e-5).all(),
        "log-softmax": np.allclose(powers.sum(1), 1, atol=1e-5),
        "logarithm": powers.max() <= 1 + 1e-5 and not np.allclose(powers.sum(1), 1, atol=1e-2),
        "none": True,
        "changed": answers.min() < 0 or answers.max() > 1,
    }
    assert within[expected], "the case itself is wrong"
    assert activation_inside(model, model.graph.output[0].name, answers) == expected


WRITTEN: dict[str, tuple[list[tuple[str, list[str]]], str]] = {
    "mean of two": ([("Sigmoid", ["x"]), ("HardSigmoid", ["x"]), ("Mean", ["t0", "t1"])], "sigmoid"),
    "sum of two": ([("Sigmoid", ["x"]), ("HardSigmoid", ["x"]), ("Sum", ["t0", "t1"])], "changed"),
    "half the sum": ([("Sigmoid", ["x"]), ("Sigmoid", ["x"]), ("Sum", ["t0", "t1"]), ("Mul", ["t2", "half"])], "sigmoid"),
    "half of it": ([("Sigmoid", ["x"]), ("Mul", ["half", "t0"])], "sigmoid"),
    "divided by their sum": ([("Sigmoid", ["x"]), ("ReduceL1", ["t0"]), ("Div", ["t0", "t1"])], "sigmoid"),
    "divided by their norm": ([("Sigmoid", ["x"]), ("LpNormalization", ["t0"])], "sigmoid"),
    "two divided by it": ([("Sigmoid", ["x"]), ("Div", ["half", "t0"])], "none"),
    "with a network's numbers": ([("Relu", ["x"]), ("Sigmoid", ["x"]), ("Mul", ["t0", "t1"])], "none"),
}


@pytest.mark.parametrize("name", WRITTEN)
def test_operators_that_torch_does_not_write(name: str) -> None:
    """Held against the range of the numbers that ONNX's own evaluator gives."""
    written, expected = WRITTEN[name]
    nodes = [onnx.helper.make_node(kind, inputs, [f"t{index}"]) for index, (kind, inputs) in enumerate(written)]
    ends = [onnx.helper.make_tensor_value_info(end, onnx.TensorProto.FLOAT, ["N", 3]) for end in ("x", nodes[-1].output[0])]
    half = onnx.numpy_helper.from_array(np.float32(0.5), "half")
    model = onnx.helper.make_model(onnx.helper.make_graph(nodes, "net", ends[:1], ends[1:], [half]))
    numbers = np.random.default_rng(0).normal(0, 4, (200, 3)).astype(np.float32)
    (answers,) = pytest.importorskip("onnx.reference").ReferenceEvaluator(model).run(None, {"x": numbers})
    assert (answers.min() >= 0 and answers.max() <= 1) == (expected == "sigmoid"), "the case itself is wrong"
    assert activation_inside(model, nodes[-1].output[0], answers) == expected


CASES: dict[str, tuple[Any, str, int, str | None, str | None]] = {
    "log-softmax, five grades": (lambda x: x.log_softmax(1), "multiclass", 4, None, None),
    "a column of a log-softmax": (lambda x: x.log_softmax(1)[:, 1:2], "binary", 1, None, "logarithms of probabilities"),
    "a log-sigmoid": (lambda x: x[:, :1].sigmoid().log(), "binary", 1, None, "logarithms of probabilities"),
    "a log-softmax for labels of their own": (lambda x: x.log_softmax(1), "multilabel", 4, None, "logarithms of probabilities"),
    "two of four classes": (ENDINGS["two of a softmax's four columns"][0], "binary", 2, None, "parts of more classes"),
    "how sure it is": (ENDINGS["the largest of a softmax"][0], "binary", 1, None, "as probabilities do"),
    "averaged sigmoids": (lambda x: x.sigmoid().mean(1, keepdim=True), "binary", 1, None, None),
    "percent": (lambda x: 100 * x[:, :1].sigmoid(), "binary", 1, None, "arithmetic behind an activation"),
    "percent, a sigmoid asked for": (lambda x: 100 * x[:, :1].sigmoid(), "binary", 1, "sigmoid", "arithmetic behind"),
    "two of four classes, summed": (lambda x: x.softmax(1)[:, :2].sum(1, keepdim=True), "binary", 1, None, "arithmetic behind"),
    "summed, used as they are": (lambda x: x.softmax(1)[:, :2].sum(1, keepdim=True), "binary", 1, "none", None),
    "around zero": (lambda x: x[:, :1].sigmoid() - 0.5, "binary", 1, None, "arithmetic behind"),
    "a tanh": (lambda x: x.tanh(), "multiclass", 4, None, "arithmetic behind"),
    "negative log-softmax": (lambda x: -x.log_softmax(1), "multiclass", 4, None, "arithmetic behind"),
    "averaged sigmoids, sigmoid asked for": (lambda x: x.sigmoid().mean(1, keepdim=True), "binary", 1, "sigmoid", "already ends"),
    "two softmaxes, labels": (ENDINGS["a column of two softmaxes each"][0], "multilabel", 2, None, None),
    "two softmaxes, classes": (ENDINGS["a column of two softmaxes each"][0], "binary", 2, None, "do not exclude each other"),
}


@pytest.mark.parametrize("name", CASES)
def test_a_foreign_graph_answers_with_the_probabilities_that_it_was_made_for(tmp_path: Path, name: str) -> None:
    """Against torch: the shipped numbers are the author's probabilities, or nothing is written and the reason is said."""
    import dataclasses

    ending, task, columns, activation, refused = CASES[name]
    torch.manual_seed(5)
    network = Ended(ending).eval()
    with torch.no_grad():
        network.head.weight.mul_(4)
    source = tmp_path / "foreign.onnx"
    onnx.save(onnx_from_torch(network, (SIZE, SIZE)), str(source))
    card = ConversionCase("x", "x", "x", ("onnx",), lambda *_: Path(), SIZE, SIZE, columns).card(SIZE)
    labels = tuple(f"class {i}" for i in range(max(2, columns)))
    output = dataclasses.replace(
        card.outputs[0], task=task, labels=labels, columns=None, activation=activation, unit="probability", tolerance=1e-4
    )
    card = dataclasses.replace(card, outputs=(output,))
    if refused:
        with pytest.raises(UnsupportedCheckpointError, match=refused):
            convert(source, card, tmp_path / "shipped.onnx")
        assert not (tmp_path / "shipped.onnx").exists()
        return
    report = convert(source, card, tmp_path / "shipped.onnx")
    pictures = make.photographs(SIZE, 4, seed=2)
    spec = card.preprocessing
    images = pictures[..., ::-1] if spec.color_order == "RGB" else pictures
    images = (images.astype(np.float64) * spec.scale - spec.mean) / spec.std
    expected = torch_answers(network, images.astype(np.float32)).astype(np.float64)
    expected = np.exp(expected) if "log" in name else expected
    found = open_shipped(tmp_path / "shipped.onnx")(pictures)[output.name].astype(np.float64)
    if report.card.outputs[0].activation == "softmax":
        found = np.exp(found) / np.exp(found).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(found, expected, atol=2e-5)
