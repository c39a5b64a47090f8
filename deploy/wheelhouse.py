"""A folder of wheels from which fundus-rt installs on a machine without a network.

    python deploy/wheelhouse.py wheels --extra cpu dicom                                 # for a machine like this one
    python deploy/wheelhouse.py wheels --extra cpu --target aarch64 --python 3.10        # for another one

and on that machine

    pip install --no-index --find-links wheels --require-hashes -r wheels/requirements.txt

The folder holds the project's own wheel, one wheel of everything it needs, ``requirements.txt`` with each wheel's version and
SHA-256, and ``SHA256SUMS`` for ``sha256sum -c``. It appears whole, under its name, when all of it is there and fits together.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from email.parser import BytesParser
from pathlib import Path

try:
    from packaging.markers import default_environment
    from packaging.requirements import Requirement
    from packaging.utils import NormalizedName, canonicalize_name, parse_wheel_filename
    from packaging.version import Version
except ImportError:
    sys.exit("this needs the library packaging, which reads what wheels ask for: pip install packaging")

REPOSITORY = Path(__file__).resolve().parent.parent
PARTS = ("models", "runtime", "converters", "benchmarks", "setup.cfg", "pyproject.toml", "README.md", "LICENSE", "NOTICE")
"""What the project's own wheel is built from."""
EXTRAS = ("cpu", "gpu", "openvino", "tensorrt", "dicom", "convert", "proof", "sign")
MACHINES = {"x86-64": "x86_64", "aarch64": "aarch64"}
OLDEST_GLIBC = {"x86-64": 5, "aarch64": 17}
"""Minor number of the oldest glibc 2 that wheels are tagged for (PEP 600)."""
NAMES_BEFORE_PEP_600 = {"x86-64": ("manylinux1", "manylinux2010", "manylinux2014"), "aarch64": ("manylinux2014",)}


class WheelhouseError(Exception):
    """Wheels could not be had, or do not fit together."""


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Make a folder of wheels that installs fundus-rt without a network.")
    parser.add_argument("folder", type=Path, help="the folder to make; must not exist yet")
    parser.add_argument("--extra", action="extend", nargs="+", default=[], choices=EXTRAS, help="extras of fundus-rt")
    parser.add_argument(
        "--also", action="append", default=[], metavar="REQUIREMENT", help="something else: 'numpy==1.26.*'; may be repeated"
    )
    parser.add_argument("--target", choices=["here", *MACHINES], default="here", help="processor of the Linux machine [here]")
    parser.add_argument(
        "--python", choices=["3.10", "3.11", "3.12", "3.13"], default=f"3.{sys.version_info[1]}", help="its Python [this one's]"
    )
    parser.add_argument("--glibc", default="2.28", metavar="2.N", help="its C library (`ldd --version`), or an older one [2.28]")
    given = parser.parse_args()
    if {"cpu", "gpu"} <= set(given.extra):
        parser.error("the extras cpu and gpu hold ONNX Runtime in wheels that overwrite one another; take one of them")
    if given.target == "here" and given.python != f"3.{sys.version_info[1]}":
        parser.error(f"this is Python 3.{sys.version_info[1]}; say --target as well, or run this with python{given.python}")
    if not given.glibc.startswith("2.") or not given.glibc[2:].isdigit():
        parser.error(f"--glibc is {given.glibc!r}, expected a version such as 2.35")
    try:
        count = make_wheelhouse(given.folder, given.extra, given.also, given.target, given.python, int(given.glibc[2:]))
    except (WheelhouseError, OSError) as error:
        sys.exit(f"Error: {error}")
    print(f"{count} wheels in {given.folder}; there: pip install --no-index --find-links {given.folder.name} "
          f"--require-hashes -r {given.folder.name}/requirements.txt")  # fmt: skip


def make_wheelhouse(folder: Path, extras: Sequence[str], also: Sequence[str], target: str, python: str, glibc: int) -> int:
    """Make the folder; how many wheels it holds.

    Args:
        folder: must not exist; its parent must.
        extras: extras of fundus-rt.
        also: further requirements (PEP 508), which narrow those of fundus-rt.
        target: ``here``, ``x86-64`` or ``aarch64``; the latter two are Linux.
        python: major and minor number of the target's CPython.
        glibc: minor number of the target's glibc 2; not asked for ``here``.

    Raises:
        WheelhouseError: the folder exists, or wheels are not to be had or do not fit together.
    """
    if os.path.lexists(folder):
        raise WheelhouseError(f"{folder} exists already; remove it, or give another name: wheels of two calls are never mixed")
    if not folder.absolute().parent.is_dir():
        raise WheelhouseError(f"{folder.parent} is no folder; create it")
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-unfinished-", dir=folder.absolute().parent) as room:
        own = own_wheel(Path(room))
        wheels = Path(room) / "wheels"
        wanted = [f"fundus-rt[{','.join(extras)}]" if extras else "fundus-rt", *also]
        environment = target_environment(target, python)
        for _ in range(5):
            fetch([f"{own}[{','.join(extras)}]" if extras else str(own), *wanted[1:]], wheels, target, python, glibc)
            missing = unmet_requirements(wheels, wanted, environment)
            if not missing:
                break
            # pip holds a condition such as `python_version < "3.11"` against the Python that runs it, not against the target's.
            wanted += missing
            shutil.rmtree(wheels)
        else:
            raise WheelhouseError(f"the wheels do not fit together: {'; '.join(missing)} is asked for and not among them")
        count = write_sums(wheels)
        wheels.chmod(0o755)
        if hasattr(os, "sync"):
            os.sync()  # the content is on the disk before the name is
        os.rename(wheels, folder)
    return count


def own_wheel(room: Path) -> Path:
    """The project's wheel, built from a copy, so that nothing of an earlier build comes in and nothing stays in the tree."""
    tree = room / "tree"
    tree.mkdir()
    for name in PARTS:
        source = REPOSITORY / name
        if source.is_dir():
            shutil.copytree(source, tree / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info", "results"))
        else:
            shutil.copy(source, tree / name)
    pip("wheel", "--no-deps", "--wheel-dir", str(room / "own"), str(tree))
    (wheel,) = (room / "own").glob("*.whl")
    return wheel


def fetch(requirements: Sequence[str], wheels: Path, target: str, python: str, glibc: int) -> None:
    """Bring wheels of the requirements and of all that they need into a folder, with pip and its settings."""
    if target == "here":
        pip("wheel", "--wheel-dir", str(wheels), *requirements)
        return
    tags = [f"manylinux_2_{minor}" for minor in range(glibc, OLDEST_GLIBC[target] - 1, -1)]
    platforms = [f"--platform={tag}_{MACHINES[target]}" for tag in (*tags, *NAMES_BEFORE_PEP_600[target])]
    settings = ["--only-binary=:all:", "--implementation=cp", f"--python-version={python}", *platforms]
    pip("download", "--dest", str(wheels), *settings, *requirements)


def pip(*arguments: str) -> None:
    """Run pip; what it says goes to standard error."""
    if subprocess.run([sys.executable, "-m", "pip", *arguments], stdout=sys.stderr, check=False).returncode:
        raise WheelhouseError(
            "pip could not bring the wheels; what it says stands above. For another machine only wheels are taken, and conditions"
            " on the Python are held against the one that runs this: a newer --glibc helps, that Python here, or a call there"
        )


def target_environment(target: str, python: str) -> dict[str, str]:
    """What environment markers (PEP 508) are held against on the target."""
    environment = {key: str(value) for key, value in default_environment().items()}
    if target == "here":
        return environment
    return {
        **environment, "os_name": "posix", "sys_platform": "linux", "platform_system": "Linux", "platform_release": "",
        "platform_version": "", "platform_machine": MACHINES[target], "implementation_name": "cpython",
        "platform_python_implementation": "CPython", "python_version": python, "python_full_version": f"{python}.0",
        "implementation_version": f"{python}.0",
    }  # fmt: skip


def unmet_requirements(wheels: Path, wanted: Sequence[str], environment: Mapping[str, str]) -> list[str]:
    """Requirements that `wanted`, or a wheel needed for it, asks for on the target, and that no wheel of the folder meets.

    Raises:
        WheelhouseError: the folder holds two versions of one project.
    """
    there: dict[NormalizedName, tuple[Version, Path]] = {}
    for path in sorted(wheels.glob("*.whl")):
        name, version, _, _ = parse_wheel_filename(path.name)
        if name in there:
            raise WheelhouseError(f"{path.name} and {there[name][1].name} are versions of one project; pip brought both")
        there[name] = version, path
    unmet: list[str] = []
    seen: set[str] = set()
    pending = [Requirement(text) for text in wanted]
    while pending:
        requirement = pending.pop()
        if str(requirement) in seen:
            continue
        seen.add(str(requirement))
        found = there.get(canonicalize_name(requirement.name))
        if found is None or not requirement.specifier.contains(found[0], prereleases=True):
            requirement.marker = None
            unmet.append(str(requirement))
            continue
        extras = requirement.extras or {""}
        for needed in requirements_of(found[1]):
            if needed.marker is None or any(needed.marker.evaluate({**environment, "extra": extra}) for extra in extras):
                pending.append(needed)
    return sorted(set(unmet))


def requirements_of(wheel: Path) -> list[Requirement]:
    """What a wheel's metadata asks for (core metadata, ``Requires-Dist``)."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA") and name.count("/") == 1]
        metadata = BytesParser().parsebytes(archive.read(name), headersonly=True)
    return [Requirement(text) for text in metadata.get_all("Requires-Dist", [])]


def write_sums(wheels: Path) -> int:
    """Write ``requirements.txt`` (pip, with hashes) and ``SHA256SUMS`` (sha256sum) beside the wheels; how many there are."""
    pins, sums = [], []
    found = sorted(wheels.glob("*.whl"))
    for path in found:
        name, version, _, _ = parse_wheel_filename(path.name)
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        pins.append(f"{name}=={version} --hash=sha256:{digest}\n")
        sums.append(f"{digest}  {path.name}\n")
    (wheels / "requirements.txt").write_text("".join(pins), encoding="utf-8")
    (wheels / "SHA256SUMS").write_text("".join(sums), encoding="utf-8")
    return len(found)


if __name__ == "__main__":
    main()
