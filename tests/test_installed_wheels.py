"""Wheels of one library that overwrite one another: told apart by their files, and what the doctor says of them."""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path

from fundus_rt.runtime.device_check.doctor_software import check_onnxruntime, check_opencv
from fundus_rt.runtime.device_check.findings import FAULT, OK
from fundus_rt.runtime.device_check.installed_wheels import Wheel, imported_from, in_one_folder, wheels_with


def lay(site: Path, name: str, version: str, files: dict[str, str]) -> None:
    """Install a wheel by hand as pip does: its files, over what is there, and its record with their hashes."""
    lines = []
    for path, text in files.items():
        (site / path).parent.mkdir(parents=True, exist_ok=True)
        (site / path).write_text(text)
        digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()
        lines.append(f"{path},sha256={digest},{len(text)}")
    info = site / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    (info / "RECORD").write_text("\n".join([*lines, f"{info.name}/RECORD,,", ""]))


def opencv_in(site: Path) -> list[Wheel]:
    return wheels_with("cv2", r"opencv", r"cv2.*\.(so|pyd)", [str(site)])


def test_of_two_wheels_in_one_folder_the_last_wins_and_is_told_by_its_files(tmp_path: Path) -> None:
    lay(tmp_path, "opencv-python", "4.10.0.84", {"cv2/__init__.py": "", "cv2/cv2.abi3.so": "with windows"})
    lay(tmp_path, "opencv-python-headless", "5.0.0.93", {"cv2/__init__.py": "", "cv2/cv2.abi3.so": "without windows"})
    lay(tmp_path, "opencv-stubs", "1.0", {"cv2-stubs/__init__.py": ""})
    wheels = opencv_in(tmp_path)
    assert [(str(wheel), wheel.own_files) for wheel in wheels] == [
        ("opencv-python 4.10.0.84", False),
        ("opencv-python-headless 5.0.0.93", True),
    ]
    winner = imported_from(wheels, str(tmp_path / "cv2" / "__init__.py"))
    assert winner is not None and winner.name == "opencv-python-headless"
    values = {"numpy": "2.4.6", "file": str(tmp_path / "cv2" / "__init__.py"), "version": "5.0.0", "works": True}
    finding = check_opencv(values, wheels)
    assert finding.state == FAULT
    assert "the files of opencv-python-headless are the ones imported" in finding.found
    assert finding.advice == ("pip uninstall -y opencv-python opencv-python-headless && pip install opencv-python-headless")
    (tmp_path / "cv2" / "cv2.abi3.so").write_text("of neither")
    assert imported_from(opencv_in(tmp_path), str(tmp_path / "cv2" / "__init__.py")) is None
    assert "a mixture of their files" in check_opencv(values, opencv_in(tmp_path)).found


def test_a_mutilated_pair_names_what_is_left(tmp_path: Path) -> None:
    for name in ("onnxruntime", "onnxruntime-gpu"):
        files = {"onnxruntime/__init__.py": "", "onnxruntime/capi/onnxruntime_pybind11_state.so": name}
        lay(tmp_path, name, "1.31.1", files)
    lay(tmp_path, "onnxruntime-ep-nv-tensorrt-rtx-cu13", "0.5.0", {"onnxruntime_ep_nv_tensorrt_rtx/__init__.py": ""})
    wheels = wheels_with("onnxruntime", r"(onnxruntime|ort)\b", r"onnxruntime_pybind11_state.*", [str(tmp_path)])
    assert [wheel.name for wheel in wheels] == ["onnxruntime", "onnxruntime-gpu"]
    broken = {"error": "AttributeError: module 'onnxruntime' has no attribute '__version__'", "file": ""}
    finding = check_onnxruntime(broken, wheels, cuda_driver="13.0", has_tensorrt=False, jetson=False)
    assert finding.state == FAULT
    assert "does not load (AttributeError: module 'onnxruntime' has no attribute '__version__')" in finding.found
    assert finding.advice == "pip uninstall -y onnxruntime onnxruntime-gpu && pip install onnxruntime-gpu"
    for cuda, jetson in (("", False), ("12.6", True)):
        advice = check_onnxruntime(broken, wheels, cuda, False, jetson).advice
        assert advice == "pip uninstall -y onnxruntime onnxruntime-gpu && pip install onnxruntime"


def test_wheels_in_different_folders_do_not_overwrite_one_another(tmp_path: Path) -> None:
    for place, version in (("own", "5.0.0.93"), ("system", "4.8.0.74")):
        lay(tmp_path / place, "opencv-python-headless", version, {"cv2/__init__.py": "", "cv2/cv2.abi3.so": version})
    wheels = opencv_in(tmp_path / "own") + opencv_in(tmp_path / "system")
    assert in_one_folder(wheels) == []
    file = str(tmp_path / "own" / "cv2" / "__init__.py")
    finding = check_opencv({"numpy": "2.4.6", "file": file, "version": "5.0.0", "works": True}, wheels)
    assert (finding.state, finding.found) == (
        OK,
        "5.0.0, opencv-python-headless (comes before opencv-python-headless 4.8.0.74)",
    )
