"""What a forked process inherits and must never release.

Releasing a network waits for its threads, which did not come along: ONNX Runtime and OpenVINO wait for ever (seen with 1.32 and
2026.4), and a driver's memory belongs to the parent. So it stays as it is for as long as the child lives.
"""

from __future__ import annotations

import ctypes
import os
import weakref
from typing import Any

_held: weakref.WeakSet[Any] = weakref.WeakSet()


def never_release_in_a_child(owner: object) -> None:
    """Let whatever an object holds at the moment of a fork outlive everything in the child; the parent is as before."""
    _held.add(owner)


def _keep() -> None:
    for owner in list(_held):
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(owner))  # one reference that nobody gives back, not even at exit


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_keep)
