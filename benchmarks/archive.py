"""An archive of photographs: does the cost of ``infer`` grow in proportion with their number, and does memory stay?

    python -m fundus_rt.benchmarks.archive                                100, 1,000 and 10,000 photographs, the bundled model
    python -m fundus_rt.benchmarks.archive --model NAME.onnx --counts 100,1000

Every photograph is a file of its own, a copy of one of the examples, so each is read, decoded and answered. The record goes to
``benchmarks/results``.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from fundus_rt.benchmarks.environment import environment, label, run_measured
from fundus_rt.benchmarks.spine import PROGRAM
from fundus_rt.models.registry import EXAMPLE_FOLDER


def main() -> None:
    """Measure, print and keep."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="acquisition", help="name of a bundled model, or an .onnx file")
    parser.add_argument("--counts", default="100,1000,10000", help="numbers of photographs, with commas (default: %(default)s)")
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results"), help="folder for the record")
    options = parser.parse_args()
    found = environment()
    with tempfile.TemporaryDirectory() as scratch:
        rows = [archive_row(options.model, int(count), Path(scratch)) for count in options.counts.split(",")]
    first = rows[0]
    for row in rows:
        row["seconds_each_to_first"] = round(row["seconds"] / row["photographs"] / (first["seconds"] / first["photographs"]), 3)
    record = {"date": datetime.date.today().isoformat(), "environment": found, "model": Path(options.model).name, "rows": rows}
    options.results.mkdir(parents=True, exist_ok=True)
    path = options.results / f"archive-{label(found)}.json"
    text = json.dumps(record, indent=2)
    path.write_text(text + "\n", encoding="utf-8")
    sys.stdout.write(f"{text}\nkept as {path}\n")


def archive_row(model: str, count: int, scratch: Path) -> dict[str, Any]:
    """One run of the command over so many photographs.

    Args:
        model: as `infer` takes it.
        count: photographs.
        scratch: folder for links to the examples and for the rows.

    Returns:
        Photographs, wall-clock seconds and peak resident memory (MB) of the whole process, photographs a second, bytes of rows.

    Raises:
        RuntimeError: not every photograph was answered.
    """
    folder = scratch / str(count)
    folder.mkdir()
    sources = sorted(EXAMPLE_FOLDER.glob("*.jpg"))
    copies = [scratch / source.name for source in sources]
    for source, copy in zip(sources, copies, strict=True):
        if not copy.exists():
            copy.write_bytes(source.read_bytes())
    for index in range(count):  # one file under several names: the runtime knows no better
        os.link(copies[index % len(copies)], folder / f"{index:06}.jpg")
    rows = scratch / f"{count}.jsonl"
    seconds, peak = run_measured([*PROGRAM, "infer", str(folder), "--model", model, "--output", str(rows), "--no-check"])
    with open(rows, encoding="utf-8") as stream:
        answered = sum(json.loads(line)["error"] is None for line in stream)
    if answered != count:
        raise RuntimeError(f"{answered} of {count} photographs were answered")
    return {
        "photographs": count,
        "seconds": round(seconds, 2),
        "photographs_a_second": round(count / seconds, 1),
        "peak_mb": round(peak, 1),
        "bytes_of_rows": rows.stat().st_size,
    }


if __name__ == "__main__":
    main()
