"""Runs programs as a strict container does, without one: nothing can be written, nobody is root, nothing is set."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

USER = 10001
"""A number that belongs to nobody."""

VOLUME = Path("/mnt")
"""Where the volume lies for the program."""

# Mounts are this process's own and go with it. The first argument is the volume's path or nothing. Reading is allowed everywhere,
# for the interpreter may lie in a home folder; writing is not.
_SCRIPT = """
set -e
volume=$1; shift
mount --make-rprivate /
mount -t tmpfs -o ro none /dev/shm
while read -r device where rest; do
    mount -o remount,ro,bind "$where" 2>/dev/null || :
done < /proc/self/mounts
[ -z "$volume" ] || { mount --bind "$volume" {VOLUME} && mount -o remount,rw,bind {VOLUME}; }
cd /
exec setpriv --reuid {USER} --regid {USER} --clear-groups --no-new-privs --bounding-set=-all,+dac_read_search \\
    --inh-caps=-all,+dac_read_search --ambient-caps=+dac_read_search env -i PATH=/usr/bin:/bin "$@"
""".replace("{USER}", str(USER)).replace("{VOLUME}", str(VOLUME))


def run_locked_in(
    command: Sequence[str], volume: Path | None = None, variables: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a program with a root that is read-only, as a user without name, home, groups or capabilities, without a network.

    Args:
        command: the program and its arguments.
        volume: the only folder that it can write, as `VOLUME`; None for none at all.
        variables: its environment beside ``PATH``.
    """
    if volume is not None:
        os.chown(volume, USER, USER)
    settings = [f"{name}={value}" for name, value in (variables or {}).items()]
    call = ["unshare", "--mount", "--net", "sh", "-c", _SCRIPT, "sh", str(volume or ""), *settings, *command]
    return subprocess.run(call, capture_output=True, text=True, check=False)


def require_locking_in(folder: Path) -> None:
    """Skip the test where this cannot be done, and fail it where something can be written all the same."""
    programs = ("unshare", "setpriv", "mount")
    if os.name != "posix" or os.getuid() or not all(map(shutil.which, programs)):
        pytest.skip("needs root and util-linux")
    if (done := run_locked_in(["true"])).returncode:
        pytest.skip(f"mounts of its own are not allowed here: {done.stderr.strip()}")
    for place in ("/tmp", "/var/tmp", "/dev/shm", "/", str(folder)):
        assert run_locked_in(["touch", f"{place}/x"]).returncode, f"{place} can be written"
    assert run_locked_in(["sh", "-c", "grep -c : /proc/net/dev"]).stdout == "1\n", "there is more than the loop device"
