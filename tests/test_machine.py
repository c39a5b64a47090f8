"""Which machine this is: NVIDIA's real bindings over a stand-in for libcuda, and the files in which a Jetson says what it is."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from fundus_rt.models.errors import BackendUnavailableError
from fundus_rt.runtime.device_kind import device_kind
from fundus_rt.runtime.nvidia import machine
from fundus_rt.runtime.nvidia.machine import how_to_get_a_driver, jetson_board, l4t_release, machine_identity
from tests.conftest import environment
from tests.fake_cuda_driver import with_fake_driver

JETPACK_5 = "# R35 (release), REVISION: 4.1, GCID: 33958178, BOARD: t186ref, EABI: aarch64, DATE: Tue Aug  1 19:57:35 UTC 2023\n"
JETPACK_6 = (
    "# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI: aarch64, DATE: Wed Jan  8 01:49:37 UTC 2025\n"
    "# KERNEL_VARIANT: oot\nTARGET_USERSPACE_LIB_DIR=nvidia\nTARGET_USERSPACE_LIB_DIR_PATH=usr/lib/aarch64-linux-gnu/nvidia\n"
)
JETPACK_7 = "# R38 (release), REVISION: 2.0, GCID: 41844464, BOARD: generic, EABI: aarch64, DATE: Fri Aug 22 00:55:42 UTC 2025\n"


@pytest.mark.parametrize(
    ("text", "release"),
    [
        (JETPACK_5, "35.4.1"),
        (JETPACK_6, "36.4.3"),
        (JETPACK_7, "38.2.0"),
        ("# R36 (release), REVISION: 4, GCID: 1\n", "36.4"),
        ("something else of a later release\nmore", "something else of a later release"),
        ("", ""),
    ],
)
def test_the_release_of_a_jetson(tmp_path: Path, text: str, release: str) -> None:
    (tmp_path / "nv_tegra_release").write_text(text)
    assert l4t_release(tmp_path / "nv_tegra_release") == release


def test_no_release_file_is_no_jetson(tmp_path: Path) -> None:
    assert l4t_release(tmp_path / "missing") == ""
    assert l4t_release(tmp_path) == ""


@pytest.mark.parametrize(
    ("content", "name"),
    [
        (b"NVIDIA Jetson Orin Nano Developer Kit\0", "NVIDIA Jetson Orin Nano Developer Kit"),
        (b"Raspberry Pi 5 Model B Rev 1.0\0", ""),
        (b"", ""),
    ],
)
def test_the_board_of_a_jetson(tmp_path: Path, content: bytes, name: str) -> None:
    (tmp_path / "model").write_bytes(content)
    assert jetson_board(tmp_path / "model") == name
    assert jetson_board(tmp_path / "missing") == ""


ASK = """
import sys
from pathlib import Path
from fundus_rt.models.errors import BackendUnavailableError
from fundus_rt.runtime.nvidia.machine import machine_identity
try:
    print(machine_identity(int(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[2]).with_name("model")))
except BackendUnavailableError as error:
    print("refused:", error)
"""


def asked(found: dict[str, str], release: Path, index: int = 0) -> str:
    words = [sys.executable, "-c", ASK, str(index), str(release)]
    done = subprocess.run(words, env=found, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_a_gpu_through_the_real_bindings(tmp_path: Path) -> None:
    (tmp_path / "nv_tegra_release").write_text(JETPACK_6)
    (tmp_path / "model").write_bytes(b"NVIDIA Jetson AGX Orin Developer Kit\0")
    assert asked(with_fake_driver(tmp_path), tmp_path / "nv_tegra_release") == (
        "MachineIdentity(gpu_name='Orin', compute_capability='8.7', cuda_driver='12.6', l4t='36.4.3', integrated=True, "
        "multiprocessors=16, board='NVIDIA Jetson AGX Orin Developer Kit')"
    )
    assert "cuda_driver='13.0', l4t=''" in asked(with_fake_driver(tmp_path, FAKE_VERSION="13000"), tmp_path / "missing")


@pytest.mark.parametrize(
    ("defined", "variables", "index", "words"),
    [
        ((), {"FAKE_INIT": "100"}, 0, ("CUDA_ERROR_NO_DEVICE (words of the driver)", "CUDA_VISIBLE_DEVICES")),
        ((), {"FAKE_INIT": "803"}, 0, ("CUDA_ERROR_SYSTEM_DRIVER_MISMATCH", "restart the machine")),
        ((), {"FAKE_INIT": "802"}, 0, ("CUDA_ERROR_SYSTEM_NOT_READY", "nvidia-fabricmanager")),
        ((), {"FAKE_INIT": "304"}, 0, ("CUDA_ERROR_OPERATING_SYSTEM", "groups video and render")),
        ((), {"FAKE_INIT": "719"}, 0, ("CUDA_ERROR_LAUNCH_FAILED", "nvidia-smi")),
        ((), {"FAKE_COUNT": "0"}, 0, ("cuda:0 was asked for", "the GPUs of this machine are: none")),
        ((), {"FAKE_COUNT": "2"}, 2, ("cuda:2 was asked for", "the GPUs of this machine are: cuda:0, cuda:1")),
        (("WITHOUT_ATTRIBUTES",), {}, 0, ("too old for the installed cuda-bindings", "cuDeviceGetAttribute", "cuda-bindings<13")),
        (("BEFORE_CUDA_12",), {}, 0, ("too old for the installed cuda-bindings", "update the driver")),
    ],
)
def test_a_refusal_of_the_driver_says_its_cause_and_what_to_do(
    tmp_path: Path, defined: tuple[str, ...], variables: dict[str, str], index: int, words: tuple[str, ...]
) -> None:
    answer = asked(with_fake_driver(tmp_path, *defined, **variables), tmp_path / "missing", index)
    assert answer.startswith("refused: ")
    assert [word for word in words if word not in answer] == []


def test_no_driver_on_this_machine(tmp_path: Path) -> None:
    pytest.importorskip("cuda.bindings", reason="needs NVIDIA's cuda-bindings")
    answer = asked(environment(), tmp_path / "missing")
    if answer.startswith("MachineIdentity"):
        pytest.skip("this machine has a GPU")
    assert "NVIDIA's driver" in answer or "the GPUs of this machine are: none" in answer


def test_without_cuda_python_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "cuda"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "cuda", None)
    with pytest.raises(BackendUnavailableError, match="pip install cuda-bindings"):
        machine_identity()


@pytest.mark.parametrize(
    ("container", "jetson", "advice"),
    [
        (False, False, "install NVIDIA's driver"),
        (False, True, "JetPack"),
        (True, False, "docker run --gpus all"),
        (True, True, "docker run --runtime nvidia"),
    ],
)
def test_how_to_get_a_driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, container: bool, jetson: bool, advice: str) -> None:
    mark = tmp_path / ".dockerenv"
    if container:
        mark.touch()
    monkeypatch.setattr(machine, "CONTAINER_MARKS", (mark,))
    monkeypatch.setattr(machine, "jetson_board", lambda: "NVIDIA Jetson Orin Nano Developer Kit" if jetson else "")
    monkeypatch.setattr(machine, "l4t_release", lambda: "")
    assert advice in how_to_get_a_driver()


@pytest.mark.gpu
def test_the_gpu_of_this_machine() -> None:
    found = machine_identity()
    listed = subprocess.run(
        ["nvidia-smi", "--query-gpu=name,compute_cap", "--format=csv,noheader", "-i", "0"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert f"{found.gpu_name}, {found.compute_capability}" == listed.stdout.strip()
    assert found.multiprocessors > 0 and device_kind("cuda:0").startswith(f"{found.gpu_name}, compute capability")
