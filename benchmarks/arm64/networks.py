"""Small networks of the published families, converted here, each with the original framework's answers beside it."""

from __future__ import annotations

import sys
from pathlib import Path

from fundus_rt.benchmarks.conversion_row import CONVERT, MODULES, cases_of, made_checkpoint
from fundus_rt.benchmarks.environment import run_measured
from fundus_rt.benchmarks.spine import PROGRAM

NETWORKS = (
    "swin-t-microsoft-timm-0.6-model-optimizer-namespace",
    "mobilenet-keras.applications-keras-2-full-model",
    "efficientnetb0-keras.applications-keras-2-full-model",
    "inceptionv3-keras.applications-keras-2-full-model",
    "resnet-50-torchvision-bare-zip",
    "resnet-18-image-fundus-torchvision-state-dict-legacy-module.-orig-mod.",
)
"""Cases of `fundus_rt.benchmarks.conversions`, at their smallest size: the published networks' operators, and weeks less of
emulation."""


def made_networks(folder: Path, photographs: Path) -> list[Path]:
    """Write, convert and prove the networks; those that are there already are kept.

    Args:
        folder: where ``NAME.onnx`` and ``NAME.reference`` (tensors and the framework's answers) come to lie.
        photographs: what the proof is made on.

    Returns:
        The ``.onnx`` files.

    Raises:
        RuntimeError: a conversion or its proof failed; with what it printed.
    """
    cases = {case.name: (module, case) for module in MODULES[:3] for case in cases_of(module)}
    found = []
    for name in NETWORKS:
        module, case = cases[name]
        room = folder / name
        output = room / "network.onnx"
        found.append(output)
        if output.with_suffix(".reference").exists():
            continue
        room.mkdir(parents=True, exist_ok=True)
        sys.stderr.write(f"{name}: converted and proved on this machine\n")
        checkpoint, card, options = made_checkpoint(module, case, case.size, room)
        run_measured([*CONVERT, checkpoint, "--card", str(card), "-o", str(output), *options])
        proof = ["parity", checkpoint, str(output), "--card", str(card), "--images", str(photographs), "--stages", "0"]
        run_measured([*PROGRAM, *proof, "--backend", "onnxruntime", *options])
    return found
