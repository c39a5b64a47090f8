"""The fastest of the proved ways to compute a model on this machine: measured once, remembered with all that it depends on."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from fundus_rt.models.artifacts import atomic_path, sha256_of_bytes
from fundus_rt.models.cache_folder import cache_folders, trusted_writable_folder, why_untrusted
from fundus_rt.models.canary import canary_picture
from fundus_rt.models.errors import BackendUnavailableError, DeviceMemoryError, UsageError
from fundus_rt.models.registry import BUNDLED_FOLDER
from fundus_rt.models.signatures import PublicKey
from fundus_rt.runtime.device_kind import device_kind
from fundus_rt.runtime.guarded_session import open_guarded
from fundus_rt.runtime.session import ENGINE_SUFFIX, package_version, resolve_model, usable_cores
from fundus_rt.runtime.ways import Say, Way, certified_ways, files_of_model, may_be_certified

FORMAT = 2
"""Of what is remembered; counts up when it is measured otherwise."""
SHORT_S = 0.25
"""Seconds of answering for each way in each of the two blocks that `chosen_way` measures by itself."""
LEAST_ANSWERS = 5
"""Of each worker in one block."""
_LONGEST_S = 3600.0
"""No answer takes as long; what is kept is damaged."""
WORTH = 1.05
"""How many times as fast a way has to be to be taken before one that comes earlier in the list."""


@dataclass(frozen=True)
class Measured:
    """How fast one way was."""

    way: Way
    seconds: float
    """Of one answer, the median over blocks; with several workers the time between two answers."""


@dataclass(frozen=True)
class Choice:
    """What is to compute, and why."""

    model: Path
    backend: str
    threads: int
    reason: str
    """In words."""
    measured: tuple[Measured, ...] = ()
    """Empty where nothing had to be measured."""


def chosen_way(
    model: str | Path,
    threads: int,
    key: PublicKey | None = None,
    say: Say = lambda sentence: None,
) -> Choice:
    """The fastest certified way to compute a model on this processor.

    Where nothing is certified, it is the file that was asked for on ONNX Runtime. Where one way is certified, it is that one.
    Where several are, they are measured for half a second each, in turns, unless the outcome is remembered for these very files,
    certificates, versions, threads and this kind of device.

    Args:
        model: see `fundus_rt.runtime.session.resolve_model`.
        threads: most threads of one inference; as many are answered at once as there are cores for.
        key: count only certificates that were signed with it.
        say: told before a measurement, for it takes seconds, and where it cannot be remembered.

    Raises:
        FundusRtError: as `open_guarded`.
    """
    path = resolve_model(model)
    if path.suffix == ENGINE_SUFFIX or path.parent.resolve() == BUNDLED_FOLDER.resolve():
        return Choice(path, "auto", threads, "it is opened as it is")
    ways = certified_ways(files_of_model(path), threads, key) if may_be_certified(path) else []
    if not ways:
        return Choice(path, "onnxruntime", threads, "no other way to compute it is certified here")
    if len(ways) == 1:
        return _choice(ways[0], "it is the only way to compute it that is certified here")
    known = remembered(ways, threads)
    if known is None:
        say(f"{len(ways)} ways to compute {path.name} are certified here; measuring which is the fastest, once")
        known = measure(ways, SHORT_S, 2, say=say)
        remember(known, threads, say)
    return fastest(known)


def after(failed: Choice) -> Choice | None:
    """The fastest of the ways that were measured beside one that cannot be opened now; None where there is none."""
    gone = (failed.model, failed.backend, failed.threads)
    left = [one for one in failed.measured if (one.way.file.path, one.way.backend.name, one.way.threads) != gone]
    return fastest(left) if left else None


def fastest(measured: Sequence[Measured]) -> Choice:
    """The fastest way; one that comes earlier is kept unless another is `WORTH` it."""
    chosen = measured[0]
    for other in measured[1:]:
        if chosen.seconds > WORTH * other.seconds:
            chosen = other
    others = "; ".join(
        f"{other.way} takes {other.seconds / chosen.seconds:.2f} times as long" for other in measured if other is not chosen
    )
    reason = f"{chosen.seconds * 1e3:.3g} ms an answer"
    reason += f"; of the other certified ways {others}" if others else "; no other certified way can be opened"
    return _choice(chosen.way, reason, tuple(measured))


def measure(
    ways: Sequence[Way],
    seconds: float,
    blocks: int,
    show: Callable[[int, int], None] = lambda done, of: None,
    say: Say = lambda sentence: None,
) -> list[Measured]:
    """Measure ways in turns; in every second block in the opposite order. One at a time is open.

    A way that cannot be opened here is left out, and it is said why.

    Args:
        ways: of one model.
        seconds: of answering in one block.
        blocks: of each way.
        show: told how many blocks of how many are done.
        say: told what is left out.

    Raises:
        FundusRtError: as `Session.run`, and as `open_guarded` where no way can be opened.
    """
    found: dict[Way, list[float]] = {way: [] for way in ways}
    for block in range(blocks):
        for place, way in enumerate(list(found) if block % 2 == 0 else list(reversed(found))):
            try:
                found[way].append(_block(way, seconds))
            except (BackendUnavailableError, DeviceMemoryError) as error:
                del found[way]
                if not found:
                    raise
                say(f"{way} is left out: {error}")
            show(block * len(ways) + place + 1, blocks * len(ways))
    return [Measured(way, statistics.median(times)) for way, times in found.items()]


def remembered(ways: Sequence[Way], threads: int) -> list[Measured] | None:
    """What was measured of these ways here; None where nothing was, or what is kept is damaged."""
    for folder in cache_folders("choices"):
        path = folder / _name(ways, threads)
        try:
            if not path.is_file() or why_untrusted(folder) is not None:
                continue
            times = json.loads(path.read_text(encoding="utf-8"))["seconds"]
            if len(times) == len(ways) and all(isinstance(value, float) and 0 < value < _LONGEST_S for value in times):
                return [Measured(way, value) for way, value in zip(ways, times, strict=True)]
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return None


def remember(measured: Sequence[Measured], threads: int, say: Say) -> None:
    """Keep what was measured for `chosen_way`.

    Args:
        measured: of all certified ways, in their order.
        threads: most threads of one inference.
        say: told where it cannot be kept.
    """
    ways = [found.way for found in measured]
    entry = {"format": FORMAT, "ways": [_facts(way) for way in ways], "seconds": [found.seconds for found in measured]}
    try:
        path = trusted_writable_folder(cache_folders("choices"), say) / _name(ways, threads)
        with atomic_path(path) as temporary:
            temporary.write_text(json.dumps(entry, indent=1) + "\n", encoding="utf-8")
    except (UsageError, OSError) as error:
        say(f"the choice cannot be remembered ({error}); it is measured again next time")


def _name(ways: Sequence[Way], threads: int) -> str:
    """The file of a choice: SHA-256 of everything that decides.

    That is the files, backends with their versions, threads, the cores of this process, the kind of device and this package's
    version; certificates by which ways there are.
    """
    about = {
        "format": FORMAT,
        "fundus_rt": package_version(),
        "ways": [_facts(way) for way in ways],
        "threads": threads,
        "cores": usable_cores(),
        "device": device_kind("cpu"),
    }
    return f"{sha256_of_bytes(json.dumps(about, sort_keys=True).encode())}.json"


def _block(way: Way, seconds: float) -> float:
    """Seconds between two answers of one way, with as many workers as there are cores for."""
    spec = way.file.card.preprocessing
    picture = canary_picture(0, spec.input_size, spec.input_dtype)[None]
    workers = max(1, usable_cores() // way.threads)
    with closing(open_guarded(way.file.path, way.backend.name, "cpu", way.threads)) as session:
        if session.backend != way.backend or session.file_sha256 != way.file.sha256:
            raise BackendUnavailableError(f"{way.file.path.name} or its backend changed while it was being measured; call again")

        def work(_: int) -> int:
            answers = 0
            while answers < LEAST_ANSWERS or time.perf_counter() - begun < seconds:
                session.run(picture)
                answers += 1
            return answers

        session.run(picture)
        session.run(picture)
        with ThreadPoolExecutor(workers) as pool:
            begun = time.perf_counter()
            answers = sum(pool.map(work, range(workers)))
            return (time.perf_counter() - begun) / answers


def _choice(way: Way, reason: str, measured: tuple[Measured, ...] = ()) -> Choice:
    return Choice(way.file.path, way.backend.name, way.threads, f"{way}: {reason}", measured)


def _facts(way: Way) -> dict[str, object]:
    """What a way is, without the name of its file."""
    about = way.backend
    return {
        "file_sha256": way.file.sha256,
        "precision": way.file.precision,
        "backend": about.name,
        "provider": about.provider,
        "version": about.version,
        "threads": way.threads,
    }
