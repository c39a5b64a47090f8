"""What a measurement was asked for, where it says what it does, and what it found."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fundus_rt.benchmarks.speed.own_ways import PARTS
from fundus_rt.benchmarks.speed.scenarios import Length
from fundus_rt.models.errors import FundusRtError, UsageError
from fundus_rt.models.registry import EXAMPLE_FOLDER
from fundus_rt.runtime.session import usable_cores

SINGLE_STREAM, OFFLINE, SERVER = "single_stream", "offline", "server"
SCENARIOS = (SINGLE_STREAM, OFFLINE, SERVER)
FORMAT = 1
"""Version of the record's layout."""


@dataclass(frozen=True)
class BenchCall:
    """What is measured, and for how long.

    Raises:
        UsageError: options that contradict one another.
    """

    files: tuple[str, ...]
    """``.onnx`` or ``.engine`` files, or bundled models' names."""
    scenarios: tuple[str, ...] = (SINGLE_STREAM,)
    parts: tuple[str, ...] = PARTS
    images: tuple[str, ...] = (str(EXAMPLE_FOLDER),)
    backend: str = "auto"
    device: str = "cpu"
    threads: int | None = None
    """Threads of one inference; None for all cores."""
    check: bool = True
    """Have the acquisition model look at every photograph, as `infer` does."""
    length: Length = field(default_factory=lambda: Length(10.0, 400))
    seed: int = 0
    rate: float | None = None
    """Server: arrivals a second; None to search for the highest one that keeps the bound."""
    latency_bound_ms: float | None = None
    processes: int = 5
    """Fresh processes for cold start and memory; 0 for none."""
    against: Path | None = None
    """A checkpoint in its own framework."""
    card: str | None = None
    architecture: str | None = None
    trust_pickle: bool = False
    torch_compile: bool = True

    def __post_init__(self) -> None:
        if SERVER in self.scenarios and self.rate is None and self.latency_bound_ms is None:
            raise UsageError("the scenario server needs --rate N (arrivals a second) or --latency-bound-ms MS to search under")
        if SERVER not in self.scenarios and (self.rate is not None or self.latency_bound_ms is not None):
            raise UsageError("--rate and --latency-bound-ms belong to the scenario server; add --scenario server")
        if self.against is None and (self.card or self.architecture or self.trust_pickle):
            raise UsageError("--card, --architecture and --trust-pickle say what --against is; name it, or leave them out")
        if self.against is not None and not self.against.exists():
            raise UsageError(f"checkpoint {self.against} does not exist; give a downloaded .pth, .h5 or .onnx file")

    @property
    def used_threads(self) -> int:
        """Threads of one inference."""
        return self.threads or usable_cores()

    @property
    def workers(self) -> int:
        """Pictures answered at once in *offline* and *server*, so that all cores have work."""
        return max(1, usable_cores() // self.used_threads)


@dataclass(frozen=True)
class Feedback:
    """Where a run says what it does."""

    say: Callable[[str], None] = lambda sentence: None
    step: Callable[[str], AbstractContextManager[Any]] = nullcontext
    """Around each long step, given its description."""


@dataclass
class Measured:
    """What was found; filled as the run goes on, so that an interruption leaves what is finished."""

    record: dict[str, Any]
    """JSON-ready."""
    latencies: list[dict[str, Any]] = field(default_factory=list)
    """One entry for each series of measured times: file, scenario, part, way and ``seconds``."""
    interrupted: bool = False
    failure: FundusRtError | None = None
    """What ended the run after something was finished."""

    @property
    def warnings(self) -> list[str]:
        """What has to be said beside the figures."""
        found: list[str] = self.record["warnings"]
        return found
