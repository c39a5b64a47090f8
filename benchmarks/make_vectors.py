"""Write the test vectors of ``docs/porting.md``: what has to come out of every step, for programs in other languages.

    python -m fundus_rt.benchmarks.make_vectors [FOLDER]

Needs TensorFlow and SciPy (extras ``[convert,proof]``). The same versions write the same bytes. To be run again when the bundled
model, an example photograph or a step of the preprocessing changes.
"""

from __future__ import annotations

import sys
from pathlib import Path

from fundus_rt.benchmarks.vectors.circles import circle_vectors
from fundus_rt.benchmarks.vectors.drawn import canary_vectors, crop_vectors, orientation_vectors, resize_vectors
from fundus_rt.benchmarks.vectors.outputs import output_vectors
from fundus_rt.benchmarks.vectors.photographs import lines, photograph_vectors
from fundus_rt.models.artifacts import atomic_path
from fundus_rt.models.registry import VECTOR_FOLDER


def all_vectors() -> dict[str, bytes]:
    """Every file of the vectors by name."""
    photographs, raw = photograph_vectors()
    documents = {
        "canary.json": canary_vectors(),
        "crop.json": crop_vectors(),
        "field_of_view.json": circle_vectors(),
        "orientation.json": orientation_vectors(),
        "outputs.json": output_vectors(),
        "photographs.json": photographs,
        "resize.json": resize_vectors(),
    }
    return {**{name: lines(document).encode() for name, document in documents.items()}, **raw}


def main() -> None:
    """Write them into the folder that is named, or the package's own."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else VECTOR_FOLDER
    folder.mkdir(exist_ok=True)
    for name, content in all_vectors().items():
        with atomic_path(folder / name) as path:
            path.write_bytes(content)
        sys.stdout.write(f"{name} {len(content)}\n")


if __name__ == "__main__":
    main()
