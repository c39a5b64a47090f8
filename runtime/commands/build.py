"""``fundus-rt build``: an ``.onnx`` file becomes a TensorRT engine for this machine."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from fundus_rt.runtime.commands.computing_options import memory_limit

if TYPE_CHECKING:
    from fundus_rt.converters.engines.engine_build import BuildOptions
    from fundus_rt.converters.engines.engine_progress import BuildProgress
    from fundus_rt.models.engines import EngineKey, EngineProfile, EngineRecord
    from fundus_rt.runtime.nvidia.machine import MachineIdentity
    from fundus_rt.runtime.nvidia.tensorrt_library import TensorRTLibrary

MIB = 1 << 20


@click.command(short_help="Turn an .onnx file into a TensorRT engine for this machine.")
@click.argument("models", nargs=-1, required=True, metavar="FILE.onnx|NAME...")
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    metavar="FILE.engine|.onnx",
    help="Default: the cache, where infer finds it.",
)
@click.option("--batch", default="1,1,8", show_default=True, metavar="MIN,OPT,MAX", help="Pictures in one inference.")
@click.option(
    "--frames", metavar="HxW,HxW,HxW",
    help="Take whole photographs of these sizes, smallest, usual and largest, and crop, mirror and resize inside the engine.",
)  # fmt: skip
@click.option("--device", default="cuda:0", show_default=True, metavar="cuda:N", help="The GPU to build for.")
@click.option("--flavour", type=click.Choice(["auto", "tensorrt", "tensorrt_rtx"]), default="auto", show_default=True)
@click.option("--workspace", type=click.IntRange(1), metavar="MB", help="Memory for trying kernels.  [default: what is free]")
@click.option("--optimisation-level", type=click.IntRange(0, 5), metavar="0-5", help="0 builds fast, 5 makes fast engines.")
@click.option("--tf32", is_flag=True, help="Let products of float32 be rounded to 10 bits. Faster, less exact.")
@click.option(
    "--for-compute-capability", "target", metavar="X.Y",
    help="Build for another machine's GPU, with none here; TensorRT-RTX only, needs -o.",
)  # fmt: skip
@memory_limit
@click.option("--log", "log_path", type=click.Path(path_type=Path), metavar="FILE", help="Where all that TensorRT says goes.")
@click.option("--force", is_flag=True, help="Build even where the engine is there.")
@click.pass_context
def build(
    context: click.Context,
    models: tuple[str, ...],
    output: Path | None,
    batch: str,
    frames: str | None,
    device: str,
    flavour: str,
    workspace: int | None,
    optimisation_level: int | None,
    tf32: bool,
    target: str | None,
    log_path: Path | None,
    force: bool,
) -> None:
    """Build TensorRT engines. An engine fits only the GPU, driver and TensorRT that it was built with.

    The engine computes in the precision of the file; its frame sizes and batch sizes are fixed here.

    With `-o NAME.onnx` no engine is built: the portable form of an engine for whole photographs is written, an ONNX file that any
    program can run or build from. It needs no TensorRT.
    """
    from fundus_rt.runtime.commands.build_checks import check_options, check_places
    from fundus_rt.runtime.nvidia.tensorrt_library import import_tensorrt
    from fundus_rt.runtime.session import resolve_model

    profile = _profile(batch, frames)
    check_options(context, output, target)
    paths = [resolve_model(model) for model in models]
    check_places(paths, output, log_path, force)
    if output is not None and output.suffix == ".onnx":
        _write_frame_graph(paths[0], output)
        return
    library = import_tensorrt(flavour)
    machine, free_gpu = _machine(library, target, device)
    failed = False
    for path in paths:
        options = _options(path, machine, free_gpu, workspace, optimisation_level, tf32, target)
        engine = _build_one(path, library, _key(path, library, machine, profile, options), options, output, log_path, force)
        failed |= not _certified(path, engine, device, _why_not_certified_here(profile, target))
    if failed:
        context.exit(1)


def _why_not_certified_here(profile: EngineProfile, target: str | None) -> str:
    """Why an engine that was just built cannot be replayed here; empty where it can."""
    if target is not None:
        return "it is for another machine: call `fundus-rt certify FILE.engine --device cuda:0` there"
    if profile.frame_height is not None:
        return "engines for whole photographs are for other programs, which compute the filters themselves"
    return ""


def _certified(model: Path, engine: Path, device: str, why_not: str) -> bool:
    """Certify an engine by replaying the reference beside its model, and say what came of it; False where it failed."""
    from fundus_rt.models.certificates import PASSED
    from fundus_rt.models.errors import FundusRtError
    from fundus_rt.models.references import reference_path
    from fundus_rt.runtime.certify import certify
    from fundus_rt.runtime.commands.certify import report

    reference = reference_path(model)
    if not why_not and not reference.is_file():
        why_not = f"there is no {reference.name} beside the model: fundus-rt parity CHECKPOINT {model.name} writes it"
    if why_not:
        click.echo(f"certificate  none: {why_not}")
        return True
    try:
        issued = certify(engine, reference, "tensorrt", device, say=_say)
    except FundusRtError as error:  # the engine is built all the same, and every answer says that it has no certificate
        click.echo(f"certificate  none: {' '.join(str(error).split())}")
        return False
    for line in report(issued):
        click.echo(line)
    return issued.certificate.verdict == PASSED


def _write_frame_graph(path: Path, output: Path) -> None:
    """The network behind its own crop and resize, for programs that run ONNX themselves."""
    from fundus_rt.converters.engines.frame_head import frame_onnx_from_onnx

    frame_onnx_from_onnx(path, output)
    click.echo(f"wrote {output}: takes whole photographs and two filter matrices. How these are computed:")
    click.echo("  python -m pydoc fundus_rt.converters.engines.frame_head")


def _build_one(
    path: Path,
    library: TensorRTLibrary,
    key: EngineKey,
    options: BuildOptions,
    output: Path | None,
    log: Path | None,
    force: bool,
) -> Path:
    """The engine's file."""
    from fundus_rt.converters.engines.engine_build import engine_from_onnx
    from fundus_rt.converters.engines.timing_cache import timing_cache_path
    from fundus_rt.models.artifacts import atomic_path
    from fundus_rt.models.engine_cache import EngineCache
    from fundus_rt.models.engine_files import record_path, write_record

    log = log or _cache_folder("logs") / f"{path.stem}-{key.digest()[:12]}.log"

    built = False
    timing = timing_cache_path(_cache_folder("timing"), key)
    options = dataclasses.replace(options, timing_cache=timing)

    def work(temporary: Path) -> EngineRecord:
        nonlocal built
        built = True
        with _progress_line() as (say, show):
            return engine_from_onnx(path, temporary, library, key, options, say, log, show)

    if output is not None:
        with atomic_path(output) as temporary:
            record = work(temporary)
            record_path(output).unlink(missing_ok=True)
        write_record(output, record)
        engine = output
    else:
        engine, record = EngineCache().get_or_build(key, work, _say, force=force)
    for line in _report(engine, record, built):
        click.echo(line)
    return engine


def _report(engine: Path, record: EngineRecord, built: bool) -> Iterator[str]:
    """What a person wants to know of the engine."""
    key = record.key
    names = {"tensorrt": "TensorRT", "tensorrt_rtx": "TensorRT-RTX"}
    place = " ".join(part for part in (key.gpu_name or "any GPU of", f"compute capability {key.compute_capability}") if part)
    least, best, most = key.profile.batch
    yield f"engine     {engine}"
    yield f"model      {record.card.get('name', 'unknown')}, {record.precision}, TF32 {'on' if 'tf32' in key.flags else 'off'}"
    yield f"size       {record.engine_bytes / MIB:.1f} MiB"
    yield f"built      {'now' if built else record.built_at}, in {record.build_seconds:.0f} s" + (
        "" if built else " (it was there)"
    )
    yield f"for        {names.get(key.flavour, key.flavour)} {key.tensorrt_version} on {place}"
    yield f"batch      {least} to {most}, best at {best}"
    if key.profile.frame_height and key.profile.frame_width:
        sizes = [f"{height}x{width}" for height, width in zip(key.profile.frame_height, key.profile.frame_width, strict=True)]
        yield f"frames     {sizes[0]} to {sizes[2]}, best at {sizes[1]}"


def _profile(batch: str, frames: str | None) -> EngineProfile:
    """The sizes that the engine takes, from the two options.

    Raises:
        UsageError: they are not of the form that is expected.
    """
    from fundus_rt.models.engines import EngineProfile
    from fundus_rt.models.errors import EngineError, UsageError

    counts = [int(part) for part in batch.split(",") if part.strip().isdigit()]
    if len(counts) not in (1, 3) or len(counts) != len(batch.split(",")):
        raise UsageError(f"--batch is {batch!r}, expected one number or three, MIN,OPT,MAX, for example 1,4,16")
    least, best, most = counts * 3 if len(counts) == 1 else counts
    heights = widths = None
    if frames is not None:
        sizes = [part.lower().split("x") for part in frames.split(",")]
        if len(sizes) not in (1, 3) or any(len(size) != 2 or not all(side.strip().isdigit() for side in size) for size in sizes):
            raise UsageError(f"--frames is {frames!r}, expected HxW,HxW,HxW, for example 480x640,1500x1900,3000x4000")
        sizes = sizes * 3 if len(sizes) == 1 else sizes
        heights = (int(sizes[0][0]), int(sizes[1][0]), int(sizes[2][0]))
        widths = (int(sizes[0][1]), int(sizes[1][1]), int(sizes[2][1]))
    try:
        return EngineProfile((least, best, most), heights, widths)
    except EngineError as error:
        raise UsageError(f"--batch or --frames: {error}") from error


def _machine(library: TensorRTLibrary, target: str | None, device: str) -> tuple[MachineIdentity, int | None]:
    """The machine at hand, or the one that is named, and the free memory of its GPU, bytes; None where it is another's.

    Raises:
        BackendUnavailableError: no GPU is at hand and none is named, or the library builds for none but its own.
    """
    from fundus_rt.models.errors import BackendUnavailableError
    from fundus_rt.runtime.nvidia.cuda_device import CudaDevice
    from fundus_rt.runtime.nvidia.machine import MachineIdentity, machine_identity
    from fundus_rt.runtime.session import cuda_index

    if target is not None:
        from fundus_rt.converters.engines.target import parsed_target

        major, minor = parsed_target(target, library.flavour)
        return MachineIdentity("", f"{major}.{minor}", "", "", False, 0, ""), None
    try:
        machine = machine_identity(cuda_index(device))
        gpu = CudaDevice(cuda_index(device))
    except BackendUnavailableError as error:
        hint = (
            "To build for another machine, say which: --for-compute-capability 8.6 -o FILE.engine"
            if library.flavour == "tensorrt_rtx"
            else "TensorRT builds an engine only on the machine that runs it"
        )
        raise BackendUnavailableError(f"{error}. {hint}") from error
    try:
        free = gpu.memory()[0]
    finally:
        gpu.close()
    return machine, free


def _options(
    path: Path,
    machine: MachineIdentity,
    free_gpu: int | None,
    workspace: int | None,
    level: int | None,
    tf32: bool,
    target: str | None,
) -> BuildOptions:
    from fundus_rt.converters.engines.engine_build import BuildOptions
    from fundus_rt.converters.engines.workspace import free_system_memory, workspace_limit

    if workspace is not None:
        limit = workspace * MIB
    else:
        limit = workspace_limit(path.stat().st_size, free_system_memory(), free_gpu, machine.integrated)
    return BuildOptions(limit, level, tf32, target)


def _key(
    path: Path, library: TensorRTLibrary, machine: MachineIdentity, profile: EngineProfile, options: BuildOptions
) -> EngineKey:
    from fundus_rt.converters.engines.engine_build import flags_of
    from fundus_rt.converters.engines.frame_head import head_format_in_file
    from fundus_rt.models.artifacts import sha256_of_file
    from fundus_rt.models.engines import EngineKey

    return EngineKey(
        onnx_sha256=sha256_of_file(path),
        flavour=library.flavour,
        tensorrt_version=library.version,
        gpu_name=machine.gpu_name,
        compute_capability=machine.compute_capability,
        cuda_driver=machine.cuda_driver,
        l4t=machine.l4t,
        profile=profile,
        flags=flags_of(options, profile, head_format_in_file(path) if profile.frame_height else None),
        multiprocessors=machine.multiprocessors,
        board=machine.board,
    )


def _cache_folder(kind: str) -> Path:
    """A folder of the cache for what lies beside the engines."""
    from fundus_rt.models.cache_folder import cache_folders, trusted_writable_folder

    return trusted_writable_folder(cache_folders(kind), _say)


def _say(message: str) -> None:
    """One line on standard error."""
    click.echo(message, err=True)


@contextmanager
def _progress_line() -> Iterator[tuple[Callable[[str], None], Callable[[BuildProgress], None] | None]]:
    """How to say a line, and how to show progress: on a terminal in a line that is drawn over; elsewhere None, and a line is
    said every 15 seconds."""
    if not sys.stderr.isatty():
        yield _say, None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    with Progress(
        SpinnerColumn(), TextColumn("{task.description}", markup=False), BarColumn(bar_width=20), TimeElapsedColumn(),
        console=Console(stderr=True), transient=True,
    ) as line:  # fmt: skip
        task = line.add_task("Reading the network", total=None)

        def say(message: str) -> None:
            line.console.print(message, markup=False, highlight=False, soft_wrap=True)

        def show(progress: BuildProgress) -> None:
            line.update(task, description=progress.phase[:80], total=1.0, completed=progress.fraction or 0.0)

        yield say, show
