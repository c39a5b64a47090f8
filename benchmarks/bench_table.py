"""Records of ``fundus-rt bench --against`` as the README's table: one line for each network.

python -m fundus_rt.benchmarks.bench_table benchmarks/results/bench-*.json
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Collection
from pathlib import Path
from typing import Any

HEAD = (
    "| network | published way, ms | plain ONNX Runtime | plain OpenVINO | ours, fp32 | ours, best | against the "
    "fastest fp32 peer | share of the fp32 floor | file to result, published, ms | plain runtimes, the faster | ours, fp32 | "
    "ours, best |\n|---|---|---|---|---|---|---|---|---|---|---|---|\n"
)
PARTS = ("network_only", "bytes_to_result")
PLAIN = {"ONNX Runtime": "ONNX Runtime, default", "OpenVINO": "OpenVINO, default"}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("records", type=Path, nargs="+", help="records that bench --against --keep wrote")
    parser.add_argument("--without", action="append", default=[], metavar="FILE.onnx", help="files that are not certified")
    options = parser.parse_args()
    records = [json.loads(path.read_text(encoding="utf-8")) for path in options.records]
    sys.stdout.write(HEAD + "".join(line_of(record, options.without) for record in records if has_line(record)))


def has_line(record: dict[str, Any]) -> bool:
    """Whether a record compares ways in both parts."""
    return set(PARTS) <= set((record.get("against") or {}).get("parts", {}))


def line_of(record: dict[str, Any], without: Collection[str] = ()) -> str:
    """One network's line: medians in milliseconds, everything else in times as fast as the published way.

    Args:
        record: of a run on a processor, its float32 file first; one that `has_line`.
        without: names of files that are left out.
    """
    parts = record["against"]["parts"]
    network, whole = (_Part(parts[name]["ways"], record, without) for name in PARTS)
    single = record["files"][0]["arithmetic"]["floor_ms"]
    cells = [
        record["files"][0]["name"].removesuffix(".onnx"),
        f"{network.published['median_ms']:.0f}",
        *(_times(network.plain(start)) for start in PLAIN.values()),
        _times(network.ours("fp32")),
        _times(network.ours(None)),
        f"{network.against_peer():.2f}x",
        f"{100 * single / network.ours('fp32')['median_ms']:.0f} %" if single else "-",
        f"{whole.published['median_ms']:.0f}",
        _times(max(filter(None, map(whole.plain, PLAIN.values())), key=_ratio, default=None)),
        _times(whole.ours("fp32")),
        _times(whole.ours(None)),
    ]
    return f"| {' | '.join(cells)} |\n"


class _Part:
    """The ways of one part of a record."""

    def __init__(self, ways: list[dict[str, Any]], record: dict[str, Any], without: Collection[str]) -> None:
        self._ways = [way for way in ways if way["name"].rpartition(", ")[0] not in without]
        self._precisions = {file["name"]: file["precision"] for file in record["files"]}
        self.published = ways[0]
        """The original framework as its sample code calls it."""

    def plain(self, start: str) -> dict[str, Any] | None:
        """A runtime with default settings on a plain export; None where it was not timed."""
        return next((way for way in self._ways if way["name"].startswith(start)), None)

    def ours(self, precision: str | None) -> dict[str, Any]:
        """This package's fastest way, of one precision or of all."""
        own = [way for way in self._ways if way["name"].rpartition(", ")[0] in self._precisions]
        chosen = [way for way in own if precision in (None, self._precisions[way["name"].rpartition(", ")[0]])]
        return max(chosen, key=_ratio)

    def against_peer(self) -> float:
        """How many times as fast as the fastest float32 way of others the best one of ours is."""
        own = self._precisions
        peers = [_ratio(way) for way in self._ways if way["name"].rpartition(", ")[0] not in own]
        return _ratio(self.ours(None)) / max(peers)


def _ratio(way: dict[str, Any]) -> float:
    return float(way["first_to_this"]["value"])


def _times(way: dict[str, Any] | None) -> str:
    return "-" if way is None else f"{_ratio(way):.1f}x"


if __name__ == "__main__":
    main()
