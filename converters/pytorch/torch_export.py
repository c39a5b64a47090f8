"""A network of torch: its reference answers, and its ONNX graph.

Which exporter. Both of torch 2.13's, on timm's own forward pass and on the lean module of `swin_export.py`, which computes the
same from the same weights (384 x 384, window 12, random weights, ONNX Runtime 1.31, batch 1, two cores of a Cascade Lake):

| network | exported                     | seconds | peak memory | nodes | ONNX Runtime, ms, least of the runs |
|---------|------------------------------|---------|-------------|-------|-------------------------------------|
| Swin-T  | TorchScript, timm's forward  | 4.8     | 1.7 GiB     | 3,477 | 891                                 |
| Swin-T  | dynamo, timm's forward       | 25.5    | 1.0 GiB     | 680   | 975                                 |
| Swin-T  | TorchScript, lean module     | 4.3     | 1.2 GiB     | 543   | 864                                 |
| Swin-B  | TorchScript, timm's forward  | 18.3    | 3.6 GiB     | 6,735 | not in the same run                 |
| Swin-B  | dynamo, timm's forward       | 69.2    | 1.9 GiB     | 1,352 | not in the same run                 |
| Swin-B  | TorchScript, lean module     | 19.3    | 2.2 GiB     | 1,077 | not in the same run                 |

The last column was taken in turns on a busy machine: read it as ratios. The rows of the lean module count the nodes and the
memory of a whole conversion; it has lost nodes since (Swin-T 378, Swin-B 744). So TorchScript, on a forward pass whose shapes
are numbers: a quarter of the time, no onnxscript to install, opset 17 and IR 8 as TensorRT 10.3 and JetPack 6 read them (the
dynamo exporter writes IR 10 and the initializers that TensorRT 10.3's parser is reported to reject), fewer nodes than either,
and no Shape, Gather or Mod left in the graph.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from fundus_rt.converters.backends import quiet_tracing, require
from fundus_rt.converters.parity import REFERENCE_BATCH

OPSET = 17
"""First opset with LayerNormalization as one operator, which stays sound in fp16; read by TensorRT 10.3."""
LIBRARIES = {"torch", "torchvision", "timm", "transformers"}
"""Packages whose decisions while they are traced are about shapes."""
PYTHON_VALUES = ("Python boolean", "Python float", "Python number", "Python scalar", "Python list", "NumPy array")
"""What the tracer says that a tensor was made into."""
EXPORTER = "torch.onnx (TorchScript)"


class TorchNetwork:
    """A torch module with a checkpoint's weights: see `fundus_rt.converters.architecture.Network`.

    After `graph`, `frozen` names the lines of the author's own code that decided something by a tensor's numbers while the
    network was traced; the graph has only the way that was taken then.
    """

    def __init__(self, original: Any, input_size: tuple[int, int], for_export: Any = None) -> None:
        """Put the module into evaluation mode, float32, on the CPU.

        Args:
            original: the network as its own library computes it; gives the reference answers.
            input_size: height and width, pixels.
            for_export: a module that computes the same from the same weights and exports to a leaner graph; None: `original`.
        """
        self.original = original.float().cpu().eval()
        self.for_export = self.original if for_export is None else for_export.eval()
        self.input_size = input_size
        self.frozen: list[str] = []

    def answers(self, images: np.ndarray) -> np.ndarray:
        """Answers of `original`: float32, first axis N, of images float32 [N, H, W, 3]."""
        return torch_answers(self.original, images)

    def graph(self) -> Any:
        """ONNX graph of `for_export`."""
        return onnx_from_torch(self.for_export, self.input_size, self.frozen)

    def close(self) -> None:
        """Drop the modules."""
        self.original = self.for_export = None


def torch_answers(network: Any, images: np.ndarray) -> np.ndarray:
    """Answers of a torch network on prepared images.

    Args:
        network: a module in evaluation mode.
        images: float32 [N, H, W, 3], normalised, in the network's colour order.

    Returns:
        float32, first axis N.
    """
    torch = require("torch")
    parts = []
    with torch.inference_mode():
        for start in range(0, len(images), REFERENCE_BATCH):
            batch = np.ascontiguousarray(images[start : start + REFERENCE_BATCH].transpose(0, 3, 1, 2))
            parts.append(network(torch.from_numpy(batch)).float().numpy())
    return np.concatenate(parts)


def onnx_from_torch(network: Any, input_size: tuple[int, int], frozen: list[str] | None = None) -> Any:
    """Export a module with a dynamic batch.

    Args:
        network: a module in evaluation mode that takes [N, 3, H, W].
        input_size: height and width, pixels.
        frozen: gets the lines of own code that made a Python value of a tensor, ``net.py, line 12``.

    Returns:
        An `onnx.ModelProto` with the input ``images`` float32 [N, 3, H, W] and the output ``answers`` [N, columns].
    """
    torch, onnx = require("torch"), require("onnx")
    example = torch.zeros(2, 3, *input_size)
    traced = torch.jit.TracerWarning
    with ExitStack() as stack:
        file = Path(stack.enter_context(TemporaryDirectory(prefix="fundus-rt-"))) / "graph.onnx"
        for context in (quiet_tracing(), torch.inference_mode(), _pooling_as_products(torch)):
            stack.enter_context(context)
        stack.enter_context(_without_graph_on_failure(torch))
        seen = stack.enter_context(warnings.catch_warnings(record=True))
        warnings.simplefilter("always", traced)
        torch.onnx.export(
            network,
            (example,),
            str(file),  # into a buffer the exporter refuses what has 2 GiB at any step, as Swin v2-L with windows of 24 has
            dynamo=False,
            opset_version=OPSET,
            input_names=["images"],
            output_names=["answers"],
            dynamic_axes={"images": {0: "N"}, "answers": {0: "N"}},
        )
        model = onnx.load(str(file))
    if frozen is not None:
        lines = [warning for warning in seen if issubclass(warning.category, traced) and _is_own_decision(warning)]
        frozen += dict.fromkeys(f"{Path(line.filename).name}, line {line.lineno}" for line in lines)
    return model


@contextmanager
def _without_graph_on_failure(torch: Any) -> Iterator[None]:
    """Keep the exporter from printing its whole graph to standard output where it fails; its error says which operator it is."""
    printer = getattr(torch._C, "_jit_onnx_log", None)
    if printer is None:
        yield
        return
    torch._C._jit_onnx_log = lambda *_: None
    try:
        yield
    finally:
        torch._C._jit_onnx_log = printer


def _is_own_decision(warning: Any) -> bool:
    """Whether a tracer's warning is about a Python value of a tensor, by which something can be decided, in code of neither a
    library nor this package. Whole numbers are left out: those are lengths."""
    file = Path(warning.filename)
    ours = file.resolve().is_relative_to(Path(__file__).resolve().parents[1])
    told = any(kind in str(warning.message) for kind in PYTHON_VALUES)
    return told and not ours and LIBRARIES.isdisjoint(file.parts)


@contextmanager
def _pooling_as_products(torch: Any) -> Iterator[None]:
    """Trace adaptive average pooling as two matrix products where its output does not divide its input.

    ONNX has no such operator. Bin i of n over a side of L averages the positions from floor(i L / n) to ceil((i + 1) L / n), as
    torch documents for `AdaptiveAvgPool2d`.
    """
    functional = torch.nn.functional
    original = functional.adaptive_avg_pool2d

    def bins(length: int, count: int) -> Any:
        matrix = torch.zeros(count, length)
        for index in range(count):
            start, end = index * length // count, -(-(index + 1) * length // count)
            matrix[index, start:end] = 1 / (end - start)
        return matrix

    def pooled(images: Any, size: Any) -> Any:
        wanted = [size, size] if isinstance(size, int) else list(size)
        given = [int(length) for length in images.shape[-2:]]
        height, width = (length if count is None else count for length, count in zip(given, wanted, strict=True))
        if given[0] % height == 0 and given[1] % width == 0:
            return original(images, size)
        return bins(given[0], height) @ images @ bins(given[1], width).T

    functional.adaptive_avg_pool2d = pooled
    try:
        yield
    finally:
        functional.adaptive_avg_pool2d = original
