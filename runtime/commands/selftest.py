"""``fundus-rt selftest``: everything that a device can prove about itself, in one file to send back."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from fundus_rt.runtime.commands.computing_options import backend_and_device

if TYPE_CHECKING:
    from fundus_rt.runtime.device_check.selftest import Outcome, Step


@click.command(short_help="Prove that this device answers as it should; one file to send back.")
@click.option(
    "--model", "models", multiple=True, default=["acquisition"], show_default=True, metavar="NAME|FILE",
    help="Bundled model or .onnx file; may be given several times.",
)  # fmt: skip
@backend_and_device
@click.option("--samples", type=click.IntRange(1), default=50, show_default=True, help="Answers that latencies are taken from.")
@click.option(
    "--output", type=click.Path(path_type=Path), default=Path("fundus-rt-selftest.json"), show_default=True, metavar="FILE.json"
)
@click.pass_context
def selftest(context: click.Context, models: tuple[str, ...], backend: str, device: str, samples: int, output: Path) -> None:
    """Look at the installation, build what is missing, and hold answers, receipts and grey levels against known ones.

    The file has no photograph in it, and no name of a patient, a user, a machine or a folder. It is written after every step.

    Exit status: 0 every step passed or had a reason to be skipped, 1 a step failed.
    """
    from importlib.metadata import PackageNotFoundError, version

    from fundus_rt.models.errors import UsageError
    from fundus_rt.models.registry import list_cards
    from fundus_rt.runtime.device_check.anonymity import model_labels, names_in
    from fundus_rt.runtime.device_check.selftest import run_steps, summary

    if not output.parent.is_dir():
        raise UsageError(f"the folder {output.parent} does not exist; make it first")
    try:
        own = version("fundus-rt")
    except PackageNotFoundError:
        own = "not installed"
    public = [card.name for card in list_cards()]
    labels = model_labels(models, public)
    about = {"fundus_rt": own, "backend": backend, "device": device, "models": [labels[model] for model in models]}
    steps = _steps(models, backend, device, samples)
    report = run_steps(steps, about, output, lambda name: click.echo(f"{name} …", err=True), names_in(labels, public))
    for line in summary(report):
        click.echo(line)
    click.echo(f"kept in {output}: no photograph and no names are in it, so it can be sent back as it is")
    if not report["passed"]:
        context.exit(1)


def _steps(models: tuple[str, ...], backend: str, device: str, samples: int) -> list[Step]:
    """All steps in their order; what needs a model comes once for each."""
    from fundus_rt.runtime.device_check import selftest_device, selftest_model, selftest_reference
    from fundus_rt.runtime.device_check.selftest import Step

    steps = [
        Step("software", selftest_device.versions),
        Step("doctor", selftest_device.doctor),
        Step("clocks", selftest_device.clocks),
        Step("decoding", selftest_device.decoding),
        Step("field of view", selftest_device.fields_of_view),
        Step("resizing", selftest_device.resizing),
    ]
    for number, model in enumerate(models, 1):
        subject = selftest_model.Subject(model, backend, device)
        works = {
            "engine": partial(_engine, model, backend, device),
            "opening": partial(selftest_model.open_model, subject),
            "canary": partial(selftest_model.canary, subject),
            "receipts": partial(selftest_model.receipts, subject),
            "whole frames": partial(selftest_model.frames, subject),
            "answers": partial(selftest_model.answers, subject),
            "reference": partial(selftest_reference.reference_replay, subject),
            "cold start": partial(selftest_model.cold_start, subject),
            "latency": partial(selftest_model.latency, subject, samples),
            "closing": partial(selftest_model.close_model, subject),
        }
        prefix = f"model {number}: " if len(models) > 1 else ""
        steps += [Step(prefix + name, work) for name, work in works.items()]
    return steps


def _engine(model: str, backend: str, device: str) -> Outcome:
    """Build the TensorRT engine as `fundus-rt build` does, where it is not in the cache yet."""
    from fundus_rt.models.artifacts import sha256_of_file
    from fundus_rt.models.engine_cache import EngineCache
    from fundus_rt.models.errors import BackendUnavailableError
    from fundus_rt.runtime.commands.build import build
    from fundus_rt.runtime.device_check.selftest import FAILED, PASSED, Outcome, SkipStep
    from fundus_rt.runtime.nvidia.machine import machine_identity
    from fundus_rt.runtime.nvidia.tensorrt_library import import_tensorrt
    from fundus_rt.runtime.pipeline import ACQUISITION
    from fundus_rt.runtime.session import ENGINE_SUFFIX, cuda_index, resolve_model

    if device == "cpu" or backend in ("onnxruntime", "openvino"):
        raise SkipStep("no engine is needed: TensorRT was not asked for (--backend tensorrt --device cuda:0)")
    path = resolve_model(model)
    if path.suffix == ENGINE_SUFFIX:
        raise SkipStep("an engine was given")
    try:
        library = import_tensorrt()
    except BackendUnavailableError as error:
        if backend == "auto":
            raise SkipStep(f"no engine can be built, another backend is taken: {error}") from error
        raise
    before = {record.engine_sha256 for record in EngineCache().entries(sha256_of_file(path))}
    # The acquisition model looks at every photograph before another model does, on the same backend.
    paths = dict.fromkeys([str(path), str(resolve_model(ACQUISITION))])
    build.main([*paths, "--device", device], standalone_mode=False)
    gpu = machine_identity(cuda_index(device)).gpu_name
    records = [record for record in EngineCache().entries(sha256_of_file(path)) if record.key.gpu_name == gpu]
    if not records:
        return Outcome(FAILED, "the engine was built, and is not in the cache")
    newest = max(records, key=lambda record: record.built_at)
    figures = {
        "built_now": newest.engine_sha256 not in before,
        "build_s": newest.build_seconds,
        "engine_mb": round(newest.engine_bytes / 1e6, 1),
        "precision": newest.precision,
        "library": f"{library.flavour} {library.version}",
    }
    how = "built" if figures["built_now"] else "was there, built"
    return Outcome(PASSED, f"{how} in {newest.build_seconds:.0f} s, {figures['engine_mb']} MB, {figures['library']}", figures)
