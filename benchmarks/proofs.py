"""Proofs of trained networks: did any decision change, by how much, where from; per network, backend and precision.

    python -m fundus_rt.benchmarks.proofs --graders DIR --photographs DIR              every network, every precision
    python -m fundus_rt.benchmarks.proofs --graders DIR --photographs DIR --only swin  networks with the word in their name
    python -m fundus_rt.benchmarks.proofs --markdown                                   the table, from the record that is there

The graders are those of ``models/training/train_graders.py``. Each is converted by ``fundus-rt convert`` and proved by
``fundus-rt parity`` on all its photographs, each in a process of its own, so seconds and peak memory belong to one call; the
held-out fold is also stated by itself. The lower precisions are held against the same answers of the original: fp16 by the
emulation that rounds every tensor, for a processor has no half precision; int8 is what ONNX Runtime's static quantiser makes
with 64 photographs of the training folds, and its changed decisions are figures, not failures. Each finished row is kept at once
in ``benchmarks/results``, with the date, the machine and the versions of the run that made it; a later run does only what is
missing or failed. The exit status is 1 where a row could not be made.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from fundus_rt.benchmarks.environment import environment, label
from fundus_rt.benchmarks.proof_answers import ALL, HELD_OUT
from fundus_rt.benchmarks.proof_case import graders_of, write_lists
from fundus_rt.benchmarks.proof_row import BACKENDS, PRECISIONS, row_of
from fundus_rt.models.artifacts import atomic_path
from fundus_rt.models.certificates import BACKEND_NAMES
from fundus_rt.models.errors import UsageError
from fundus_rt.runtime.exact_bounds import rate_in_words

Row = dict[str, Any]

NOT_YET = (("TensorRT", "fp32"), ("TensorRT", "fp16"))
"""Backends that need a GPU: listed as not run until a row is there."""
LEAST_SHARE = 0.005
"""A stage with less of the difference is not named in the table."""
COLUMNS: tuple[tuple[str, Callable[[Row], str]], ...] = (
    ("network", lambda row: row["network"]),
    ("backend", lambda row: _backend(row)),
    ("precision", lambda row: row["precision"]),
    ("held out: decisions changed", lambda row: _changed(row["sets"][HELD_OUT])),
    ("all: decisions changed", lambda row: _changed(row["sets"][ALL])),
    ("largest difference", lambda row: _number(row["sets"][ALL]["largest"])),
    ("of the spread", lambda row: _number(row["sets"][ALL]["largest_of_spread"])),
    ("weighted kappa", lambda row: _kappa(row["sets"][ALL])),
    ("where from", lambda row: _where_from(row)),
    ("parity, s", lambda row: f"{row['seconds']:.0f}" if "seconds" in row else "-"),
    ("peak GB", lambda row: f"{row['peak_mb'] / 1e3:.1f}" if "peak_mb" in row else "-"),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what is missing, print the table; 1 where a row could not be made."""
    options = _options(arguments)
    found = environment()
    path = options.record or Path("benchmarks/results") / f"proofs-{label(found)}.json"
    record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"rows": []}
    if options.graders is None or options.photographs is None:
        if not options.markdown:
            raise UsageError("give --graders DIR and --photographs DIR, or --markdown for the record that is there")
        sys.stdout.write(markdown([row for row in record["rows"] if options.only in row["network"]]))
        return 0
    rows = {_key(row): row for row in record["rows"]}
    stamp = {"date": datetime.date.today().isoformat(), "environment": found}
    work: Path = options.work or options.graders / "proofs"
    work.mkdir(parents=True, exist_ok=True)
    os.environ["FUNDUS_RT_CACHE"] = str(work / "cache")  # so that a new folder measures what a first proof costs
    lists = write_lists(options.graders, options.photographs, work / "lists")
    done = []
    for grader in graders_of(options.graders, options.only):
        for backend, precision in _ways(options):
            key = (grader.name, backend, precision)
            row = rows.get(key)
            if row is None or "error" in row or row["checkpoint_sha256"] != grader.sha256:
                sys.stderr.write(f"{grader.name} {backend} {precision}\n")
                rows[key] = row = row_of(grader, backend, precision, lists, work) | {"trained": _trained(grader.trained)} | stamp
                _keep(path, {"rows": list(rows.values())})
            done.append(row)
    sys.stdout.write(markdown(done))
    sys.stdout.write(f"kept as {path}\n")
    return int(any("error" in row for row in done))


def markdown(rows: Iterable[Row]) -> str:
    """The rows as a Markdown table; what failed or was not run says so.

    Below it, how good each network is on its held-out fold, what a proof costs, and which files the runtime refuses.
    """
    found = sorted(rows, key=lambda row: row["network"])
    lines = ["| " + " | ".join(name for name, _ in COLUMNS) + " |", "|" + "---|" * len(COLUMNS)]
    networks = {row["network"]: row for row in found}
    for network in networks:
        ours = [row for row in found if row["network"] == network]
        lines += [_line(row) for row in ours]
        known = {(row["backend"], row["precision"]) for row in ours}
        lines += [_row((network, *two, "not yet run")) for two in NOT_YET if (two[0].lower(), two[1]) not in known]
    lines.append("")
    lines += [f"- {name}, {row['trained']['input_size']} px: {row['trained']['said']}" for name, row in networks.items()]
    lines += [_cost(row) for row in found if row.get("kept_from_before") == 0]
    lines += [
        f"- the runtime does not open {row['network']} {row['precision']}: {row['refused']}"
        for row in found
        if row.get("refused")
    ]
    return "\n".join(lines) + "\n"


def _line(row: Row) -> str:
    if "error" in row:
        return _row((row["network"], _backend(row), row["precision"], row["error"].splitlines()[-1]))
    return _row(tuple(text(row) for _, text in COLUMNS))


def _row(cells: tuple[str, ...]) -> str:
    padded = (*cells, *[""] * (len(COLUMNS) - len(cells)))
    return "| " + " | ".join(cell.replace("|", "/") for cell in padded) + " |"


def _backend(row: Row) -> str:
    return f"{BACKEND_NAMES[row['backend']]} CPU{', emulated' if row['emulated'] else ''}"


def _changed(figures: Row) -> str:
    return rate_in_words(figures["decisions_changed"], figures["photographs"])


def _number(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.1e}"


def _kappa(figures: Row) -> str:
    return "-" if figures["weighted_kappa"] is None else f"{figures['weighted_kappa']:.4f}"


def _where_from(row: Row) -> str:
    """Shares of the stages; of a lower precision its own, for the others are those of the float32 file."""
    if row["precision"] != "fp32":
        return f"{100 * row['lower_precision_share']:.1f} % lower precision"
    if row["shares"] is None:
        return "rounding"
    shares = sorted(row["shares"].items(), key=lambda item: -item[1])
    return ", ".join(f"{100 * share:.0f} % {stage}" for stage, share in shares if share >= LEAST_SHARE)


def _cost(row: Row) -> str:
    """What a proof cost that asked the original framework about every photograph."""
    count = row["sets"][ALL]["photographs"]
    return (
        f"- `fundus-rt parity` of {row['network']} with {_backend(row)} on {count} different photographs, no answer kept from "
        f"before: {row['seconds']:.0f} s, {row['peak_mb'] / 1e3:.1f} GB at most."
    )


def _trained(figures: dict[str, Any]) -> dict[str, Any]:
    """What the table says of a network's training."""
    held_out, settings = figures["held_out"], figures["settings"]
    low, high = held_out["kappa_interval"]
    least, most = held_out["accuracy_interval"]
    said = (
        f"quadratic kappa {held_out['kappa']:.2f} ({low:.2f} to {high:.2f}), accuracy {100 * held_out['accuracy']:.0f} % "
        f"({100 * least:.0f} to {100 * most:.0f} %) on {held_out['photographs']} held-out photographs; decisions per grade "
        f"{held_out['decisions']}"
    )
    return {"input_size": settings["input_size"], "fold": settings["fold"], "seed": settings["seed"], "said": said} | {
        "held_out": held_out, "steps": figures["steps"], "seconds": figures["seconds"]
    }  # fmt: skip


def _ways(options: argparse.Namespace) -> list[tuple[str, str]]:
    """Backend and precision of each row of a network: every backend in float32, the first one in the lower precisions."""
    backends, precisions = options.backends.split(","), options.precisions.split(",")
    return [(backend, p) for p in precisions for backend in (backends if p == "fp32" else backends[:1])]


def _key(row: Row) -> tuple[str, ...]:
    return (row["network"], row["backend"], row["precision"])


def _keep(path: Path, record: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--graders", type=Path, metavar="DIR", help="output folder of train_graders.py")
    parser.add_argument("--photographs", type=Path, metavar="DIR", help="folder with the photographs that were trained on")
    parser.add_argument("--only", default="", metavar="TEXT", help="networks with this in their name")
    parser.add_argument("--precisions", default=",".join(PRECISIONS), metavar="A,B", help="[default: %(default)s]")
    parser.add_argument("--backends", default=",".join(BACKENDS), metavar="A,B", help="[default: %(default)s]")
    parser.add_argument("--work", type=Path, metavar="DIR", help="converted files and reports  [default: GRADERS/proofs]")
    parser.add_argument("--record", type=Path, metavar="FILE.json", help="the record  [default: in benchmarks/results]")
    parser.add_argument("--markdown", action="store_true", help="print the table from the record, measure nothing")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    sys.exit(main())
