"""Write what `fundus-rt selftest` compares a device with: the example photographs as this machine sees and answers them.

    python -m fundus_rt.benchmarks.make_example_answers

To be run again when the bundled model or an example photograph changes; on a CPU, with ONNX Runtime in float32.
"""

from __future__ import annotations

import json
import platform
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnxruntime
import PIL

from fundus_rt.models.artifacts import sha256_of_file
from fundus_rt.models.registry import bundled_file, load_card
from fundus_rt.runtime.decode import decode
from fundus_rt.runtime.device_check.selftest_examples import REFERENCE_FILE, examples, fingerprint, tensor_in_box
from fundus_rt.runtime.field_of_view import find_field_of_view
from fundus_rt.runtime.preprocess import crop_box
from fundus_rt.runtime.session import open_session


def main() -> None:
    """Write `REFERENCE_FILE`, or the file that is named."""
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else REFERENCE_FILE
    target.write_text(json.dumps(example_answers(), separators=(",", ":"), sort_keys=True) + "\n", encoding="utf-8")
    sys.stdout.write(f"wrote {target.name}\n")


def example_answers() -> dict[str, Any]:
    """Fingerprints of frames and tensors, and the bundled model's raw numbers, of every example photograph."""
    card = load_card("acquisition")
    session = open_session("acquisition", threads=1)
    photographs = {}
    for example in examples():
        frame = decode(example.content).frame
        box = crop_box(find_field_of_view(frame), frame.shape, card.preprocessing)
        tensor = tensor_in_box(example.content, box, card)
        answered = session.run(tensor[None])
        photographs[example.name] = {
            "frame": fingerprint(frame),
            "box": list(box),
            "tensor": fingerprint(tensor),
            "answers": {output.name: [float(x) for x in answered[output.name][0]] for output in card.outputs},
        }
    return {"model_sha256": sha256_of_file(bundled_file(card)), "versions": _versions(), "photographs": photographs}


def _versions() -> dict[str, str]:
    return {
        "machine": platform.machine(),
        "numpy": np.__version__,
        "opencv": cv2.__version__,
        "pillow": PIL.__version__,
        "onnxruntime": onnxruntime.__version__,
    }


if __name__ == "__main__":
    main()
