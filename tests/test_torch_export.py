"""Export of torch modules: what ONNX has no operator for is computed otherwise, or refused in words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fundus_rt.benchmarks.conversion_case import ConversionCase
from fundus_rt.converters import conversion
from fundus_rt.converters.conversion import onnx_from_checkpoint
from fundus_rt.converters.graphs.graph_ending import activation_inside
from fundus_rt.converters.pytorch.torch_export import onnx_from_torch
from fundus_rt.models.errors import UnsupportedCheckpointError
from tests import make_checkpoints as make

torch = pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")


def pooled(size: int | tuple[int, int]) -> Any:
    torch.manual_seed(0)
    layers = [torch.nn.Conv2d(3, 4, 3), torch.nn.AdaptiveAvgPool2d(size), torch.nn.Flatten(), torch.nn.LazyLinear(2)]
    network = torch.nn.Sequential(*layers).eval()
    network(torch.zeros(1, 3, 19, 22))
    return network


@pytest.mark.parametrize("size", [1, 4, (7, 5), (17, 20)])
def test_adaptive_pooling_of_any_size_answers_as_torch_does(size: int | tuple[int, int]) -> None:
    network = pooled(size)
    model = onnx_from_torch(network, (19, 22))
    images = np.random.default_rng(0).normal(size=(3, 3, 19, 22)).astype(np.float32)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    with torch.inference_mode():
        expected = network(torch.from_numpy(images)).numpy()
    np.testing.assert_allclose(session.run(None, {"images": images})[0], expected, atol=1e-5)
    assert torch.nn.functional.adaptive_avg_pool2d.__module__ == "torch.nn.functional", "torch's own function is back"


DECISIONS: dict[str, tuple[Any, bool]] = {
    "truth": (lambda m: m > 2, True),
    "number": (lambda m: m.item() > 2, True),
    "float": (lambda m: float(m) > 2, True),
    "list": (lambda m: m.tolist() > 2, True),
    "numpy": (lambda m: m.numpy() > 2, True),
    "nothing of a tensor": (lambda m: m.ndim > 2, False),
    "a length": (lambda m: int(m.reshape(-1).shape[0]) > 2, False),
}


@pytest.mark.parametrize("name", DECISIONS)
def test_a_decision_by_a_number_of_a_tensor_is_seen_however_it_is_read(name: str) -> None:
    decides, expected = DECISIONS[name]

    class Network(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.head = torch.nn.Linear(3, 2)

        def forward(self, images: Any) -> Any:
            found = self.head(images.mean(dim=(2, 3)))
            return -found if decides(images.mean()) else found

    frozen: list[str] = []
    onnx_from_torch(Network().eval(), (8, 8), frozen)
    assert bool(frozen) == expected and all(line.startswith("test_torch_export.py, line ") for line in frozen)


class Bessel(torch.nn.Module):  # type: ignore[misc]
    """A network with a function that ONNX does not have."""

    def __init__(self) -> None:
        super().__init__()
        self.head = torch.nn.Linear(3, 5)

    def forward(self, images: Any) -> Any:
        return self.head(torch.special.i0(images.mean(dim=(2, 3))))


def test_an_operator_that_onnx_does_not_have_is_an_answer_not_a_crash(tmp_path: Path) -> None:
    path = make.save_torch(tmp_path / "x.pth", Bessel().state_dict())
    card = ConversionCase("", "", "", ("none",), lambda *_: path, 32, 32).card(32)
    target = tmp_path / "x.onnx"
    with pytest.raises(UnsupportedCheckpointError, match=r"(?s)cannot be exported.*i0"):
        onnx_from_checkpoint(
            path, card, target, tensors=make.photographs(32), open_shipped=lambda path: dict,
            architecture=f"{__name__}:Bessel",
        )  # fmt: skip
    assert not target.exists()


def converted_averages(folder: Path) -> Path:
    path, target = make.save_torch(folder / "x.pth", torch.nn.Linear(3, 5).state_dict()), folder / "x.onnx"
    card = ConversionCase("", "", "", ("none",), lambda *_: path, 32, 32).card(32)
    onnx_from_checkpoint(
        path, card, target, tensors=make.photographs(32), open_shipped=lambda path: dict, architecture=f"{__name__}:Averages",
    )  # fmt: skip
    return target


def test_a_graph_that_the_exporter_finds_too_large_is_said_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def too_large(*arguments: Any, **options: Any) -> Any:
        raise RuntimeError("The serialized model is larger than the 2GiB limit imposed by the protobuf library.")

    monkeypatch.setattr(torch.onnx, "export", too_large)
    with pytest.raises(UnsupportedCheckpointError, match=r"more than 2 GiB.*one ONNX file cannot hold more"):
        converted_averages(tmp_path)


def test_a_graph_that_no_onnx_file_can_hold_is_said_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conversion, "LARGEST_MODEL", 100)
    with pytest.raises(UnsupportedCheckpointError, match=r"more than 2 GiB.*one ONNX file cannot hold more"):
        converted_averages(tmp_path)
    assert not (tmp_path / "x.onnx").exists()


class Averages(torch.nn.Linear):  # type: ignore[misc]
    """Five numbers of a picture's mean colour."""

    def __init__(self) -> None:
        super().__init__(3, 5)

    def forward(self, images: Any) -> Any:
        return super().forward(images.mean(dim=(2, 3)))


ENDINGS: dict[str, tuple[Any, str]] = {
    "nothing": (lambda x: x, "none"),
    "softmax": (lambda x: x.softmax(1), "softmax"),
    "one of a softmax": (lambda x: x.softmax(1)[:, 1:2], "sigmoid"),
    "two of a softmax": (lambda x: x.softmax(1)[:, :2], "softmax"),
    "bounded sigmoid": (lambda x: x.sigmoid().clamp(1e-7, 1 - 1e-7), "sigmoid"),
    "sigmoid of half precision": (lambda x: x.half().sigmoid().float(), "sigmoid"),
    "joined sigmoids": (lambda x: torch.cat([x[:, :1].sigmoid(), x[:, 1:].sigmoid()], dim=1), "sigmoid"),
    "joined, one without": (lambda x: torch.cat([x[:, :1].sigmoid(), x[:, 1:]], dim=1), "none"),
    "sigmoid, then more": (lambda x: x.sigmoid() * 3, "changed"),
}


@pytest.mark.parametrize("name", ENDINGS)
def test_the_activation_is_found_behind_what_only_orders_numbers(name: str) -> None:
    ending, expected = ENDINGS[name]

    class Network(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.head = torch.nn.Linear(3, 3)

        def forward(self, images: Any) -> Any:
            return ending(self.head(images.mean(dim=(2, 3))))

    model = onnx_from_torch(Network().eval(), (16, 16))
    assert activation_inside(model, model.graph.output[0].name) == expected
