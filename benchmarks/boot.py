"""From the start of the process to its first certified answer.

    python -m fundus_rt.benchmarks.boot NAME.onnx                       on the CPU, by every backend that is certified
    python -m fundus_rt.benchmarks.boot NAME.onnx --device cuda:0       on a GPU, with its engine at hand and without

Beside NAME.onnx lie its reference and certificates (`fundus-rt parity`, `fundus-rt certify`). The clock starts before the process
does and stops when its first row has arrived, decoded photograph and all. Without an engine the first answers are the CPU's
(`infer --build-meanwhile`, in an empty cache folder); it is also measured when the first one of the engine comes. The record goes
to ``benchmarks/results``.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from fundus_rt.benchmarks.environment import environment, label
from fundus_rt.benchmarks.spine import PROGRAM
from fundus_rt.models.artifacts import atomic_path
from fundus_rt.models.registry import EXAMPLE_FOLDER

PHOTOGRAPH = EXAMPLE_FOLDER / "haggstrom_right.jpg"
PATIENCE_S = 1800
"""For an engine, whose build takes minutes on a Jetson."""

Row = dict[str, Any]
Wanted = Callable[[Row], bool]


def main() -> None:
    """Measure, print and keep."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", type=Path, help="an .onnx file with its reference and certificates beside it")
    parser.add_argument("--device", default="cpu", help="cpu or cuda:N (default: %(default)s)")
    parser.add_argument("--backends", default="onnxruntime,openvino", help="on the CPU, with commas (default: %(default)s)")
    parser.add_argument("--runs", type=int, default=10, help="processes of each kind (default: %(default)s)")
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results"), help="folder for the record")
    options = parser.parse_args()
    rows = on_gpu(options.model, options.device, options.runs) if options.device != "cpu" else []
    for backend in options.backends.split(",") if options.device == "cpu" else ():
        rows.append(first_answers(options.model, ["--backend", backend], options.runs))
    found = environment()
    record = {"date": datetime.date.today().isoformat(), "environment": found, "device": options.device, "rows": rows}
    path = options.results / f"boot-{options.model.stem}-{label(found)}{'-gpu' * (options.device != 'cpu')}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(record, indent=2)
    with atomic_path(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")
    sys.stdout.write(f"{text}\nkept as {path}\n")


def on_gpu(model: Path, device: str, runs: int) -> list[Row]:
    """With the engine in the cache, several times; and once without, until the engine answers."""
    with tempfile.TemporaryDirectory() as cache:
        cold = until_engine(model, device, Path(cache))
    return [cold, first_answers(model, ["--backend", "tensorrt", "--device", device], runs)]


def first_answers(model: Path, words: list[str], runs: int) -> Row:
    """Seconds from start to first certified answer, the median, least and most of several processes.

    Raises:
        RuntimeError: it does not answer, or without a certificate.
    """
    seconds: list[float] = []
    row: Row = {}
    for _ in range(runs):
        call = [*PROGRAM, "infer", str(PHOTOGRAPH), "--model", str(model), *words, "--require-certificate", "--eye", "right"]
        ((took, row),) = _when(call, [lambda found: found["error"] is None], None)
        seconds.append(took)
    return {
        "way": " ".join(words),
        "backend": row["backend"],
        "certificate": row["model"]["certificate"],
        "processes": runs,
        "seconds_median": round(statistics.median(seconds), 3),
        "seconds_least": round(min(seconds), 3),
        "seconds_most": round(max(seconds), 3),
    }


def until_engine(model: Path, device: str, cache: Path) -> Row:
    """Seconds to the first answer, by the CPU, and to the first by the engine that was built meanwhile.

    Raises:
        RuntimeError: one of them does not come.
    """
    variables = {**os.environ, "FUNDUS_RT_CACHE": str(cache)}
    with tempfile.TemporaryDirectory() as folder:
        for index in range(200_000):  # a photograph again and again, as from a camera
            os.symlink(PHOTOGRAPH, Path(folder) / f"{index:06}.jpg")
        call = [*PROGRAM, "infer", folder, "--model", str(model), "--device", device, "--build-meanwhile", "--eye", "right"]
        wanted = [lambda found: found["error"] is None, lambda found: bool(found["backend"]["engine_sha256"])]
        (first, row), (engine, later) = _when(call, wanted, variables)
    return {
        "way": "--build-meanwhile, no engine yet",
        "first_answer_seconds": round(first, 3),
        "first_backend": row["backend"],
        "engine_answers_after_seconds": round(engine, 1),
        "backend": later["backend"],
        "certificate": later["model"]["certificate"],
    }


def _when(call: list[str], wanted: list[Wanted], variables: dict[str, str] | None) -> list[tuple[float, Row]]:
    """Seconds until a process has printed a row of each kind, one after the other, and the rows; the process is ended then."""
    found: list[tuple[float, Row]] = []
    begun = time.perf_counter()
    process = subprocess.Popen([*call, "--format", "jsonl"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=variables)
    try:
        for row in _rows(process):
            took = time.perf_counter() - begun
            if wanted[len(found)](row):
                found.append((took, row))
            if len(found) == len(wanted):
                return found
            if took > PATIENCE_S:
                break
    finally:
        process.terminate()
        said = process.communicate()[1]
    raise RuntimeError(f"{' '.join(call)} did not come to it: {said.decode(errors='replace')[-400:]}")


def _rows(process: subprocess.Popen[bytes]) -> Iterator[Row]:
    assert process.stdout is not None, "asked for"
    for line in process.stdout:
        yield json.loads(line)


if __name__ == "__main__":
    main()
