"""The package on arm64 instructions: installed from wheels, tested, and every answer held against this x86-64 machine.

    python -m fundus_rt.benchmarks.arm64 --root /var/tmp/fundus-rt-arm64

As root, in a checkout, with Debian's debootstrap and qemu-user-static. It makes a Debian for arm64 (once), installs the wheel
that is built here with arm64 wheels of this environment's versions, runs the runtime's tests there, has ``fundus-rt selftest``
and ``fundus-rt certify`` replay the known answers, and compares what ``fundus-rt infer`` says of the example photographs with
what it says here. Emulated: what it shows is about answers, not about speed. The record goes to ``benchmarks/results``; the exit
status is 1 where an answer, a replay or a test was wrong, 2 where it cannot be done here.
"""

from __future__ import annotations

import argparse
import datetime
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from fundus_rt.benchmarks.arm64.agreement import compared
from fundus_rt.benchmarks.arm64.debian_root import RELEASE, RootError, emulation, make_root, qemu_version, require_tools
from fundus_rt.benchmarks.arm64.device import SAME, Arm64, install, run_tests
from fundus_rt.benchmarks.arm64.networks import made_networks
from fundus_rt.benchmarks.environment import environment
from fundus_rt.benchmarks.spine import PROGRAM
from fundus_rt.models.artifacts import atomic_path
from fundus_rt.models.card import ModelCard
from fundus_rt.models.registry import EXAMPLE_FOLDER
from fundus_rt.runtime.pipeline import Pipeline


def main() -> int:
    """Make what is missing, run, print and keep."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--root", type=Path, required=True, help="folder of the Debian for arm64; made where it is missing (0.7 GB)"
    )
    parser.add_argument("--no-tests", action="store_true", help="leave the runtime's tests out (an hour, emulated)")
    parser.add_argument("--no-networks", action="store_true", help="the bundled model alone; needs no extra [convert]")
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results"), help="folder for the record")
    options = parser.parse_args()
    try:
        require_tools()
        if not Path("deploy/wheelhouse.py").exists():
            raise RootError("this runs in a checkout of the project; change to its top folder")
        with emulation():
            record = measured(options.root.absolute(), not options.no_tests, not options.no_networks)
    except RootError as error:
        sys.stderr.write(f"Error: {error}\n")
        return 2
    versions = record["arm64"]["packages"]
    options.results.mkdir(parents=True, exist_ok=True)
    path = options.results / f"arm64-python{record['arm64']['python']}-ort{versions['onnxruntime']}.json"
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    sys.stdout.write(f"{summary(record)}kept as {path}\n")
    return int(bool(record["problems"]))


def measured(root: Path, tests: bool, networks: bool) -> dict[str, Any]:
    """All that is to be known, as the record."""
    make_root(root)
    device = Arm64(root)
    install(device)
    device.hand_over(EXAMPLE_FOLDER, "examples")
    models: dict[str, Path | None] = {"acquisition": None}
    if networks:
        models |= {path.parent.name: path for path in made_networks(root / "work" / "networks", EXAMPLE_FOLDER)}
    record: dict[str, Any] = {
        "date": datetime.date.today().isoformat(),
        "emulator": f"QEMU {qemu_version()}, user mode, Debian {RELEASE}",
        "x86_64": environment(),
        "arm64": device.environment(),
        "photographs": sorted(path.name for path in EXAMPLE_FOLDER.glob("*.jpg")),
        "selftest": device.selftest(),
        "models": {name: one_model(device, name, path) for name, path in models.items()},
    }
    if tests:
        record["tests"] = run_tests(device)
    record["problems"] = problems(record)
    return record


def one_model(device: Arm64, name: str, path: Path | None) -> dict[str, Any]:
    """What both machines say of the example photographs, and the replay of the original's answers; None: the bundled model."""
    sys.stderr.write(f"{name}: answered on both\n")
    model = "acquisition" if path is None else str(path)
    words = ["infer", str(EXAMPLE_FOLDER), "--model", model, "--format", "jsonl", "--backend", "onnxruntime"]
    done = subprocess.run([*PROGRAM, *words], capture_output=True, text=True, check=False)
    ours = [json.loads(line) for line in done.stdout.splitlines()]
    found = compared(card_of(path), ours, device.rows(path))
    return found if path is None else found | {"replay": device.replayed(path)}


def card_of(path: Path | None) -> ModelCard:
    """The card of a model's file."""
    pipeline = Pipeline("acquisition" if path is None else path, backend="onnxruntime", check=False)
    pipeline.close()
    return pipeline.card


def problems(record: dict[str, Any]) -> list[str]:
    """What must not be, one sentence each."""
    found = [f"{name}: {said}" for name, model in record["models"].items() for said in model["problems"]]
    for name, model in record["models"].items():
        if model.get("replay", {}).get("verdict", "passed") != "passed":
            found.append(f"{name}: the replay of the original's answers {model['replay']['verdict']}")
    if record["selftest"]["verdict"] != "passed":
        found.append(f"selftest: {record['selftest']['verdict']}")
    for package in SAME:
        there, here = (record[side]["packages"].get(package) for side in ("arm64", "x86_64"))
        if there != here:
            found.append(f"{package} is {there} on arm64, {here} here")
    tests = record.get("tests", {})
    return found + [f"test {name} failed" for name in tests.get("failed", [])]


def summary(record: dict[str, Any]) -> str:
    """A line for each model and output, the tests, and what was wrong."""
    lines = []
    for name, model in record["models"].items():
        for output, row in model.get("outputs", {}).items():
            lines.append(
                f"{name}, {output}: {row['decisions_changed']} of {model['photographs']} decisions changed, largest difference "
                f"{row['largest_difference']:.2g} {row['unit']} (tolerance {row['tolerance']:g})"
            )
    if "tests" in record:
        tests = record["tests"]
        lines.append(f"tests: {tests['passed']} passed, {len(tests['skipped'])} skipped, {len(tests['failed'])} failed")
    lines += [f"PROBLEM {said}" for said in record["problems"]] or ["arm64 answers as x86-64 does"]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
