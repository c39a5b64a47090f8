"""A Debian for arm64 in a folder, made with Debian's own tools, whose programs run under QEMU's user-mode emulation."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

RELEASE = "bookworm"
"""Debian 12: Python 3.11."""
PYTHON = "3.11"
GLIBC = "2.36"
_NAME = "qemu-aarch64"
_FORMAT = Path("/usr/lib/binfmt.d/qemu-aarch64.conf")
"""Of Debian's qemu-user-static: which files are programs for arm64, and what runs them (systemd's binfmt.d)."""
_BINFMT = Path("/proc/sys/fs/binfmt_misc")
_TOOLS = {"debootstrap": "debootstrap", "qemu-aarch64-static": "qemu-user-static", "unshare": "util-linux", "chroot": "coreutils"}
"""Programs and the packages that have them."""
_ENTER = 'mount -t proc proc "$0/proc" && mkdir -p "$0/dev/shm" && mount -t tmpfs tmpfs "$0/dev/shm" && exec chroot "$0" "$@"'
"""In a mount namespace of its own, so that nothing stays mounted whatever ends it."""
_INSIDE = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root", "LANG": "C.UTF-8"}


class RootError(RuntimeError):
    """The root cannot be made or used here."""


def require_tools() -> None:
    """Look for all that is needed before anything begins.

    Raises:
        RootError: this is no x86-64 Linux, the user is not root, or a program is missing; with what to do.
    """
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        raise RootError(
            f"this holds arm64 against x86-64 on an x86-64 Linux machine; this is {platform.system()} on {platform.machine()};"
            " on a machine with arm64 itself run `fundus-rt selftest` and `python -m pytest`"
        )
    missing = {program: package for program, package in _TOOLS.items() if shutil.which(program, path=_search()) is None}
    if missing or not _FORMAT.exists():
        packages = sorted({*missing.values(), *([] if _FORMAT.exists() else ["qemu-user-static"])})
        raise RootError(f"{', '.join([*missing] or [_FORMAT.name])} is not here: apt-get install {' '.join(packages)}")
    if os.geteuid() != 0:
        raise RootError("a root for arm64 is made and entered by root alone (chroot, mount, binfmt_misc); run this as root")


def qemu_version() -> str:
    """Version of the emulator, ``7.2.17``."""
    said = subprocess.run(["qemu-aarch64-static", "--version"], capture_output=True, text=True, check=True).stdout
    found = re.search(r"version (\d+(?:\.\d+)+)", said)
    return found.group(1) if found else said.splitlines()[0]


@contextmanager
def emulation() -> Iterator[None]:
    """Let the kernel run programs for arm64 meanwhile; what was not there before is taken away again.

    Raises:
        RootError: the kernel does not take it.
    """
    with ExitStack() as undo:
        try:
            if not (_BINFMT / "register").exists():
                subprocess.run(["mount", "-t", "binfmt_misc", "binfmt_misc", str(_BINFMT)], check=True)
                undo.callback(subprocess.run, ["umount", str(_BINFMT)], check=False)
            if not (_BINFMT / _NAME).exists():
                lines = [line for line in _FORMAT.read_text().splitlines() if line.startswith(":")]
                (_BINFMT / "register").write_text(f"{lines[0]}\n")
                undo.callback((_BINFMT / _NAME).write_text, "-1")
        except (OSError, subprocess.CalledProcessError) as error:
            raise RootError(
                f"the kernel does not register QEMU for arm64 programs ({error}); inside a container that takes --privileged"
            ) from error
        yield


def make_root(root: Path) -> None:
    """Make the root, unless it is there. It has its name only when it is whole. Inside of `emulation`.

    Args:
        root: a folder on a file system that takes devices and programs (no ``noexec``, no ``nodev``).

    Raises:
        RootError: a folder of this name is no such root, or Debian's tools failed.
    """
    if root.exists():
        if not (root / "usr/bin/dpkg").exists() or (root / "debootstrap").exists():
            raise RootError(f"{root} is there and is no finished Debian root; remove it, or name another folder")
        return
    unfinished = root.with_name(f".{root.name}-unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.parent.mkdir(parents=True, exist_ok=True)
    choice = ["--arch=arm64", "--foreign", "--variant=minbase", "--include=python3,python3-venv"]
    _made(subprocess.run(["debootstrap", *choice, RELEASE, str(unfinished)], stdout=sys.stderr, env=_outside(), check=False))
    _made(run_inside(unfinished, ["/debootstrap/debootstrap", "--second-stage"], None))
    shutil.rmtree(unfinished / "debootstrap", ignore_errors=True)
    os.rename(unfinished, root)


def run_inside(
    root: Path, words: Sequence[str], limit_s: float | None, more: Mapping[str, str] | None = None, keep: bool = False
) -> subprocess.CompletedProcess[str]:
    """Run a program of the root to its end. Inside of `emulation`.

    Args:
        root: the root.
        words: the program, as the root sees it, and its arguments.
        limit_s: seconds; None: as long as it takes.
        more: environment variables beside the few that it gets.
        keep: return what it prints on standard output; False: it goes to standard error, as it comes.

    Raises:
        RootError: it took longer.
    """
    call = ["unshare", "--mount", "--fork", "--kill-child", "sh", "-c", _ENTER, str(root), *words]
    output = subprocess.PIPE if keep else sys.stderr
    try:
        return subprocess.run(
            call, stdout=output, text=True, env={**_INSIDE, **(more or {})}, timeout=limit_s, check=False, cwd="/"
        )
    except subprocess.TimeoutExpired as error:
        raise RootError(f"{words[0]} took more than {limit_s:.0f} s in the root and was ended") from error


def _made(done: subprocess.CompletedProcess[str] | subprocess.CompletedProcess[bytes]) -> None:
    if done.returncode:
        raise RootError(f"the root could not be made: exit status {done.returncode}; what the tools say stands above")


def _search() -> str:
    """Where Debian keeps programs for root too."""
    return os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])


def _outside() -> dict[str, str]:
    return {**os.environ, "PATH": _search()}
