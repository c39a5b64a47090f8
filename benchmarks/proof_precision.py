"""A shipped file in a lower precision, for the table of proofs; by the quantiser and the fp16 converter of ONNX Runtime.

    python -m fundus_rt.benchmarks.proof_precision SHIPPED.onnx -o FILE.onnx --precision fp16|int8 [--calibration LIST.csv]

They stand for what a user gets who lowers the precision with the common tools and leaves it at that.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fundus_rt.converters.backends import require
from fundus_rt.converters.shipping import INPUT, RECEIPT, embed_card
from fundus_rt.models.artifacts import atomic_path
from fundus_rt.models.canary import PICTURES, canary_picture
from fundus_rt.models.card import CARD_KEY, ModelCard, PreprocessingSpec, card_from_json
from fundus_rt.models.errors import UsageError

PRECISIONS = ("fp16", "int8")
CALIBRATION_PHOTOGRAPHS = 64
"""How many photographs the ranges of int8 are measured on, spread evenly over the list."""
QUANTISED = ("Conv", "MatMul", "Gemm")
"""Operators that are computed in int8; the receipt and the normalisations stay in float32."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("shipped", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--precision", choices=PRECISIONS, required=True)
    parser.add_argument("--calibration", type=Path, metavar="LIST.csv", help="photographs; for int8")
    options = parser.parse_args(arguments)
    if options.precision == "fp16":
        half_from_onnx(options.shipped, options.output)
    elif options.calibration is None:
        raise UsageError("int8 needs --calibration LIST.csv, photographs whose ranges are measured; use none that are held out")
    else:
        int8_from_onnx(options.shipped, options.output, options.calibration)
    return 0


def half_from_onnx(shipped: Path, target: Path) -> None:
    """Write a shipped file in half precision: float32 weights and tensors become float16, inputs and outputs stay.

    The receipt, which sums whole rows of grey levels beyond half precision, is taken out before and put back as it was.

    Args:
        shipped: the float32 file.
        target: where to write; replaced whole.

    Raises:
        BackendUnavailableError: onnx or onnxruntime is missing.
    """
    onnx = require("onnx")
    float16 = require("onnxruntime.transformers.float16")
    model = onnx.load(str(shipped))
    receipt = next(node for node in model.graph.node if RECEIPT in node.output)
    told = next(value for value in model.graph.output if value.name == RECEIPT)
    axes = next(tensor for tensor in model.graph.initializer if tensor.name == receipt.input[1])
    for kept, gone in ((model.graph.node, receipt), (model.graph.output, told), (model.graph.initializer, axes)):
        kept.remove(gone)
    half = float16.convert_float_to_float16(model, keep_io_types=True)
    pixels = f"{receipt.input[0]}_of_{RECEIPT}"
    half.graph.node.append(onnx.helper.make_node("Cast", [INPUT], [pixels], to=onnx.TensorProto.FLOAT))
    receipt.input[0] = pixels
    half.graph.node.append(receipt)
    half.graph.output.append(told)
    half.graph.initializer.append(axes)
    _state_precision(half, "fp16")
    with atomic_path(target) as temporary:
        onnx.save(half, str(temporary))


def int8_from_onnx(shipped: Path, target: Path, calibration: Path) -> None:
    """Write a shipped file with QuantizeLinear and DequantizeLinear around its products, in signed, symmetric int8.

    Args:
        shipped: the float32 file.
        target: where to write; replaced whole.
        calibration: CSV file with a column ``file``: photographs on which the ranges of the activations are measured.

    Raises:
        BackendUnavailableError: onnx or onnxruntime is missing.
        UsageError: the list names no photograph that can be read.
    """
    quantization = require("onnxruntime.quantization")
    onnx = require("onnx")
    model = onnx.load(str(shipped), load_external_data=False)
    frames = calibration_frames(calibration, _card_of(model).preprocessing)

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc, name-defined]
        """Hands the frames out one by one."""

        def __init__(self) -> None:
            self.given: Iterator[dict[str, Any]] = ({"frames": frame[None]} for frame in frames)

        def get_next(self) -> dict[str, Any] | None:
            return next(self.given, None)

    with atomic_path(target) as temporary:
        quantization.quantize_static(
            str(shipped),
            str(temporary),
            Reader(),
            quant_format=quantization.QuantFormat.QDQ,
            op_types_to_quantize=list(QUANTISED),
            per_channel=True,
            activation_type=quantization.QuantType.QInt8,
            weight_type=quantization.QuantType.QInt8,
            extra_options={"ActivationSymmetric": True, "WeightSymmetric": True, "QuantizeBias": False},
        )
        quantised = onnx.load(str(temporary))
        _state_precision(quantised, "int8")
        onnx.save(quantised, str(temporary))


def _card_of(model: Any) -> ModelCard:
    return card_from_json({entry.key: entry.value for entry in model.metadata_props}[CARD_KEY])


def _state_precision(model: Any, precision: str) -> None:
    """Say in the card what the graph computes in."""
    card = _card_of(model)
    embed_card(model, dataclasses.replace(card, provenance={**card.provenance, "precision": precision}))


def calibration_frames(listing: Path, spec: PreprocessingSpec) -> np.ndarray:
    """Up to `CALIBRATION_PHOTOGRAPHS` photographs of a list as the network takes them: [N, H, W, 3], BGR, grey levels.

    The drawn pictures that the runtime asks about before it trusts a file come after them.

    Raises:
        UsageError: the list names no photograph, or one cannot be read.
    """
    from fundus_rt.runtime.decode import decode
    from fundus_rt.runtime.field_of_view import find_field_of_view
    from fundus_rt.runtime.inputs import items_from_list
    from fundus_rt.runtime.preprocess import tensor_from_frame

    items = list(items_from_list(str(listing)))
    chosen = np.unique(np.linspace(0, len(items) - 1, min(len(items), CALIBRATION_PHOTOGRAPHS)).round().astype(int))
    frames = []
    for item in (items[place] for place in chosen):
        if item.problem:
            raise UsageError(f"{listing}: {item.problem}")
        frame = decode(Path(item.path).read_bytes()).frame
        frames.append(tensor_from_frame(frame, find_field_of_view(frame), spec))
    known = [canary_picture(which, spec.input_size, spec.input_dtype) for which in range(PICTURES)]
    return np.stack([*frames, *known])


if __name__ == "__main__":
    sys.exit(main())
