"""Engines for another machine's GPU: what TensorRT-RTX can build ahead of time, with no GPU at hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fundus_rt.models.errors import BackendUnavailableError

PORTABLE = ("8.0", "8.6", "8.9", "12.0")
"""Compute capabilities on which an engine of TensorRT-RTX runs when no target is named, and later ones; its documentation,
page "CPU-Only AOT and TensorRT-RTX Engines"."""
NEWEST = 12
"""Major number of the newest GPUs that this documentation speaks of."""


def name_target(config: Any, library: Any, target: str | None, say: Callable[[str], None]) -> None:
    """Tell the library which GPU an engine is for.

    A capability that the library can name is set. Any other from 8.0 to 12.x is left to the engine's own portability, and said:
    whether the engine runs there is known only after trying. A GPU of a later generation is refused.

    Args:
        config: the build's configuration.
        library: which TensorRT builds.
        target: compute capability, ``8.6``; None for the GPU at hand.
        say: gets a line where the library's documentation does not list the capability.

    Raises:
        BackendUnavailableError: the library builds only on the machine itself, or for no such GPU.
    """
    if target is None:
        return
    major, minor = parsed_target(target, library.flavour)
    named = getattr(getattr(library.module, "ComputeCapability", None), f"SM{major}{minor}", None)
    if named is not None and hasattr(config, "set_compute_capability"):
        config.num_compute_capabilities = 1
        if config.set_compute_capability(named, 0) is False:
            raise BackendUnavailableError(f"TensorRT-RTX {library.version} refuses the compute capability {target}")
        return
    if (major, minor) < (8, 0):
        raise BackendUnavailableError(
            f"this TensorRT-RTX ({library.version}) cannot name the compute capability {target}, and without a name its engines "
            f"are for {', '.join(PORTABLE)} and later; build on the machine itself"
        )
    if major > NEWEST:
        raise BackendUnavailableError(
            f"got the compute capability {target}; TensorRT-RTX {library.version} cannot name it, and its documentation knows no "
            f"GPU later than {NEWEST}.x. Correct the number, install a later TensorRT-RTX, or build on the machine itself"
        )
    if target not in PORTABLE and (major, minor) < (12, 0):
        say(
            f"the documentation of TensorRT-RTX lists {', '.join(PORTABLE)} and later, not {target}: whether the engine runs "
            "there is known only after trying it"
        )


def parsed_target(target: str, flavour: str) -> tuple[int, int]:
    """Major and minor of a compute capability in words.

    Raises:
        BackendUnavailableError: not a capability, or a flavour that builds only for the GPU at hand.
    """
    if flavour != "tensorrt_rtx":
        raise BackendUnavailableError(
            f"TensorRT builds an engine only on the machine that runs it: leave out the target {target} and call "
            "`fundus-rt build` there. TensorRT-RTX (--flavour tensorrt_rtx) builds ahead of time"
        )
    major, _, minor = target.partition(".")
    if not (major.isdigit() and minor.isdigit()):
        raise BackendUnavailableError(f"got the compute capability {target!r}, expected two numbers such as 8.6")
    return int(major), int(minor)
