"""How much memory `infer` takes, model by model, and that it stays inside of a limit which the system enforces.

    python -m fundus_rt.benchmarks.memory mobilenet.onnx mobilenet.int8.onnx swin-b.onnx     and the bundled model
    python -m fundus_rt.benchmarks.memory swin-b.onnx --limits 512MB,1GB,2GB,4GB,8GB --backends onnxruntime

For every file and backend one process answers one photograph of 12 megapixels, as the command line does it, once for each limit
from the smallest on, until it gets through; then once without a limit. The system holds the limit (`prlimit --data`): private
memory beyond it is refused. The peak is that of resident memory, code of libraries included. The record goes to
``benchmarks/results``.
"""

from __future__ import annotations

import argparse
import datetime
import json
import shutil
import sys
from pathlib import Path
from typing import Any

from fundus_rt.benchmarks.environment import environment, label, run_measured
from fundus_rt.benchmarks.spine import PROGRAM
from fundus_rt.models.artifacts import atomic_path
from fundus_rt.models.memory import bytes_from_text
from fundus_rt.models.registry import EXAMPLE_FOLDER
from fundus_rt.runtime.session import resolve_model
from fundus_rt.runtime.ways import files_of_model

PHOTOGRAPH = "idrid_111_12mp.jpg"
"""Of the examples: 4288 x 2848 pixels."""
BACKENDS = ("onnxruntime", "openvino")
LIMITS = "512MB,768MB,1GB,1.5GB,2GB,3GB,4GB,6GB,8GB"


def main() -> None:
    """Measure, print and keep."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("models", nargs="*", type=Path, help=".onnx files")
    parser.add_argument("--backends", default=",".join(BACKENDS), help="with commas (default: %(default)s)")
    parser.add_argument("--limits", default=LIMITS, help="tried from the first on (default: %(default)s)")
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results"), help="folder for the record")
    options = parser.parse_args()
    if shutil.which("prlimit") is None:
        raise SystemExit("prlimit is not here; it is part of util-linux")
    limits = sorted(bytes_from_text(text) for text in options.limits.split(","))
    rows = []
    for model in ("acquisition", *options.models):
        for backend in options.backends.split(","):
            rows.append(memory_row(str(model), backend, limits))
            sys.stderr.write(f"{json.dumps(rows[-1])}\n")
    found = environment()
    record = {"date": datetime.date.today().isoformat(), "environment": found, "photograph": PHOTOGRAPH, "rows": rows}
    options.results.mkdir(parents=True, exist_ok=True)
    path = options.results / f"memory-{label(found)}.json"
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    sys.stdout.write(f"{markdown(rows)}\nkept as {path}\n")


def memory_row(model: str, backend: str, limits: list[int]) -> dict[str, Any]:
    """What one model takes on one backend.

    Args:
        model: as `infer` takes it.
        backend: ``onnxruntime`` or ``openvino``.
        limits: bytes, rising.

    Returns:
        The least limit (MB) that one photograph is answered in, and peaks of resident memory (MB), within that limit and
        without one.

    Raises:
        RuntimeError: it is not answered within any of the limits, or not without one.
    """
    file = files_of_model(resolve_model(model))[0]
    call = [*PROGRAM, "infer", str(EXAMPLE_FOLDER / PHOTOGRAPH), "--model", model, "--backend", backend, "--eye", "left"]
    refused = "no limit was given"
    for limit in limits:
        try:
            _, inside = run_measured(["prlimit", f"--data={limit}", *call])
        except RuntimeError as error:
            refused = str(error)
            continue
        _, free = run_measured(call)
        return {
            "model": Path(model).name,
            "file_mb": round(file.path.stat().st_size / 1e6, 1),
            "precision": file.precision,
            "backend": backend,
            "least_limit_mb": limit >> 20,
            "peak_mb_inside": round(inside),
            "peak_mb": round(free),
        }
    raise RuntimeError(f"{Path(model).name} on {backend} is not answered within {limits[-1] >> 20} MB: {refused}")


def markdown(rows: list[dict[str, Any]]) -> str:
    """The rows as a Markdown table."""
    lines = ["| model | precision | file, MB | backend | answers within, MB | peak, MB |", "|---|---|---|---|---|---|"]
    for row in rows:
        cells = (row[name] for name in ("model", "precision", "file_mb", "backend", "least_limit_mb", "peak_mb"))
        lines.append("| " + " | ".join(str(cell) for cell in cells) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
