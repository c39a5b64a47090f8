"""The units: understood by systemd, as locked in as the README says, and calling the command line as it is."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY, Run

FOLDER = REPOSITORY / "deploy" / "systemd"
SERVICES = ("fundus-rt-inbox.service", "fundus-rt-camera.service")
DROP_INS = {"openvino": "fundus-rt-inbox", "gpu": "fundus-rt-inbox", "network-camera": "fundus-rt-camera"}

analyze = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not here")


def settings(name: str) -> list[tuple[str, str]]:
    """Keys and values of a unit, in order."""
    lines = [line for line in (FOLDER / name).read_text().splitlines() if "=" in line and not line.startswith("#")]
    return [(key, value) for key, _, value in (line.partition("=") for line in lines)]


@pytest.fixture
def units(tmp_path: Path) -> Path:
    """The units in a folder, with a program that is there."""
    for path in [*FOLDER.glob("*.service"), *FOLDER.glob("*.path"), *FOLDER.glob("*.timer")]:
        (tmp_path / path.name).write_text(path.read_text().replace("/opt/fundus-rt/bin/fundus-rt", "/bin/true"))
    return tmp_path


@analyze
@pytest.mark.parametrize("drop_in", [None, *DROP_INS])
def test_systemd_understands_every_line(units: Path, drop_in: str | None) -> None:
    if drop_in:
        (units / f"{DROP_INS[drop_in]}.service.d").mkdir()
        shutil.copy(FOLDER / "drop-ins" / f"{drop_in}.conf", units / f"{DROP_INS[drop_in]}.service.d")
    files = [str(path) for path in sorted(units.iterdir()) if path.is_file()]
    done = subprocess.run(["systemd-analyze", "verify", "--man=no", *files], capture_output=True, text=True, check=False)
    said = [line for line in done.stderr.splitlines() if "fundus-rt" in line]
    assert not said and done.returncode == 0, done.stderr


@analyze
@pytest.mark.parametrize("unit", SERVICES)
def test_the_services_are_locked_in_as_the_readme_says(units: Path, unit: str) -> None:
    call = ["systemd-analyze", "security", "--no-pager", "--offline=true", str(units / unit)]
    done = subprocess.run(call, capture_output=True, text=True, check=False)
    if "unrecognized option" in done.stderr:
        pytest.skip("systemd before 250 looks at loaded units only")
    found = re.search(r"Overall exposure level for \S+: ([\d.]+)", done.stdout)
    assert found, done.stderr
    (stated,) = re.findall(rf"\*\*([\d.]+)\*\* for\s+`{unit}`", (FOLDER / "README.md").read_text())
    version = subprocess.run(["systemd-analyze", "--version"], capture_output=True, text=True, check=True).stdout.split()[1]
    assert float(found[1]) == float(stated) if version == "252" else float(found[1]) < 1, done.stdout


def test_both_services_have_the_same_walls() -> None:
    """What the camera needs more than the inbox is named here, so that nothing else slips through."""
    start = ("StateDirectory", "fundus-rt")
    inbox, camera = (found[found.index(start) :] for found in map(settings, SERVICES))
    devices = [("PrivateDevices", "no"), ("DevicePolicy", "closed"), ("DeviceAllow", "char-video4linux rw")]
    assert [pair for pair in camera if pair not in inbox] == devices
    assert [pair for pair in inbox if pair not in camera] == [("PrivateDevices", "yes")]


def test_the_inbox_is_answered_as_the_unit_says(tmp_path: Path, examples: Path, fundus_rt: Run) -> None:
    """The unit's own condition and call, on an inbox that fills as one does."""
    found = dict(settings(SERVICES[0]))
    inbox, rows = tmp_path / "inbox", tmp_path / "results.jsonl"
    inbox.mkdir()

    def in_place(text: str) -> list[str]:
        moved = text.replace("/srv/fundus-rt/inbox", str(inbox)).replace("/var/lib/fundus-rt", str(tmp_path))
        return [word for word in shlex.split(moved) if word != "$OPTIONS"]

    def condition() -> int:
        return subprocess.run(in_place(found["ExecCondition"]), check=False).returncode

    successes = {0, *map(int, found["SuccessExitStatus"].split())}
    assert condition() not in successes and condition() < 255  # skipped, and neither started nor failed: systemd.service(5)
    (inbox / ".a.jpg").write_bytes((examples / "chase_01L.jpg").read_bytes())
    (inbox / ".part").mkdir()
    (inbox / ".part" / "b.jpg").touch()
    assert condition() not in successes
    (inbox / ".a.jpg").rename(inbox / "a.jpg")
    assert condition() == 0
    program, *call = in_place(found["ExecStart"])
    assert program == "/opt/fundus-rt/bin/fundus-rt" and fundus_rt(*call).returncode == 0
    whole = (examples / "idrid_005.jpg").read_bytes()
    (inbox / "b.jpg").write_bytes(whole[: len(whole) // 2])
    half = fundus_rt(*call)
    assert half.returncode == 1 and half.returncode in successes
    (inbox / "b.jpg").write_bytes(whole)
    content = rows.read_bytes()
    assert fundus_rt(*call).returncode in successes
    said = [json.loads(line) for line in rows.read_text().splitlines()]
    assert [(Path(row["file"]).name, row["error"] is None) for row in said] == [
        ("a.jpg", True),
        ("b.jpg", False),
        ("b.jpg", True),
    ]
    assert rows.read_bytes().startswith(content)


def test_the_cameras_call_is_one(tmp_path: Path, fundus_rt: Run) -> None:
    """As far as a machine without the camera goes: a film that is none ends the watch at once, with the camera's reason."""
    found = dict(settings(SERVICES[1]))
    (tmp_path / "film.mp4").write_bytes(b"no film")
    text = found["ExecStart"].replace("/var/lib/fundus-rt", str(tmp_path)).replace("${CAMERA}", str(tmp_path / "film.mp4"))
    done = fundus_rt(*[word for word in shlex.split(text)[1:] if word != "$OPTIONS"])
    assert done.returncode == 1 and "expected a film that this OpenCV reads" in done.stderr
    assert found["RestartPreventExitStatus"] == "2" and found["KillSignal"] == "SIGINT"
