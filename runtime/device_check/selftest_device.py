"""What a device's own software does to a photograph before any model sees it: the first steps of `fundus-rt selftest`."""

from __future__ import annotations

import io
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import PIL
from numpy.typing import NDArray
from PIL import Image

from fundus_rt.models.card import FLOAT_INTERPOLATIONS, INTERPOLATIONS, PreprocessingSpec
from fundus_rt.models.registry import load_card
from fundus_rt.runtime.decode import decode
from fundus_rt.runtime.device_check.doctor import examine
from fundus_rt.runtime.device_check.findings import FAULT, WARNING, worst_state
from fundus_rt.runtime.device_check.selftest import FAILED, PASSED, Outcome, SkipStep
from fundus_rt.runtime.device_check.selftest_examples import examples, levels_apart, reference, tensor_in_box
from fundus_rt.runtime.field_of_view import find_field_of_view
from fundus_rt.runtime.nvidia.resize_taps import filter_matrices
from fundus_rt.runtime.preprocess import crop_box
from fundus_rt.runtime.resize import resize

MOST_LEVELS_DECODED = 2.0
"""Grey levels that another JPEG library may round differently; a wrong conversion of colours is far above."""
MOST_LEVELS_RESIZED = 1.0
"""Grey levels that a rounded resize may be away from its exact weights."""
MOST_PIXELS_MOVED = 2
"""Pixels by which a crop's edge may lie elsewhere than stored: rounding of the centre, and of the radius."""
RESIZED = (((389, 517), (224, 224)), ((97, 131), (224, 224)))
"""Test pictures' heights and widths before and after the resize; the factors are not whole."""
PACKAGES = (
    "fundus-rt", "numpy", "Pillow", "opencv-python-headless", "opencv-python", "onnxruntime", "onnxruntime-gpu", "openvino",
    "onnxruntime-ep-nv-tensorrt-rtx-cu13", "tensorrt", "tensorrt-cu12", "tensorrt-cu13", "cuda-python", "cuda-bindings",
)  # fmt: skip


def versions() -> Outcome:
    """Software and hardware, as far as they have a bearing on answers and speed."""
    installed = {}
    for name in PACKAGES:
        try:
            installed[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    figures = {
        "system": f"{platform.system()} {platform.release()}",
        "machine": platform.machine(),
        "python": platform.python_version(),
        "packages": installed,
        "opencv": cv2.__version__,
        "pillow": PIL.__version__,
        "numpy": np.__version__,
    }
    return Outcome(PASSED, f"{figures['machine']}, Python {figures['python']}, OpenCV {figures['opencv']}", figures)


def doctor() -> Outcome:
    """Everything that `fundus-rt doctor` looks at; a fault fails."""
    findings = list(examine())
    named = [f"{finding.name}: {finding.found}" for finding in findings if finding.state in (FAULT, WARNING)]
    figures = {finding.name: {"state": finding.state, "found": finding.found, **finding.values} for finding in findings}
    faulty = worst_state(findings) == FAULT
    return Outcome(FAILED if faulty else PASSED, "; ".join(named) or f"{len(findings)} findings, nothing wrong", figures)


def clocks(cores: Path = Path("/sys/devices/system/cpu"), devices: Path = Path("/sys/class/devfreq")) -> Outcome:
    """Clocks of cores and GPU in MHz, as the system gives them: without them no latency means anything."""
    found_clocks = {}
    for folder in [*sorted(cores.glob("cpu[0-9]*/cpufreq")), *sorted(devices.glob("*"))]:
        name = folder.parent.name if folder.name == "cpufreq" else folder.name
        found: dict[str, Any] = {what: _content(folder / what) for what in ("scaling_governor", "governor")}
        in_khz = {what: _content(folder / what) for what in ("scaling_cur_freq", "scaling_max_freq")}
        in_hz = {what: _content(folder / what) for what in ("cur_freq", "max_freq")}
        found |= {f"{what}_mhz": int(value) / 1e3 for what, value in in_khz.items() if value and value.isdigit()}
        found |= {f"{what}_mhz": int(value) / 1e6 for what, value in in_hz.items() if value and value.isdigit()}
        found_clocks[name] = {what: value for what, value in found.items() if value is not None}
    if not found_clocks:
        raise SkipStep("this system does not tell its clocks")
    return Outcome(PASSED, f"clocks of {len(found_clocks)} units", {"clocks": found_clocks})


def decoding() -> Outcome:
    """The example photographs, decoded as in the runtime, by Pillow alone, and as they were when the package was made."""
    stored = reference()["photographs"]
    figures: dict[str, Any] = {"photographs": 0, "same_as_stored": 0, "largest_levels": 0.0, "largest_levels_to_pillow": 0.0}
    for example in examples():
        frame = decode(example.content).frame
        pillow = np.asarray(Image.open(io.BytesIO(example.content)).convert("RGB"))[..., ::-1]
        apart = levels_apart(frame, stored[example.name]["frame"])
        to_pillow = float(cv2.absdiff(frame, np.ascontiguousarray(pillow)).max())
        figures["photographs"] += 1
        figures["same_as_stored"] += apart["same"]
        figures["largest_levels"] = max(figures["largest_levels"], apart["largest_levels"])
        figures["largest_levels_to_pillow"] = max(figures["largest_levels_to_pillow"], to_pillow)
    wrong = figures["largest_levels"] > MOST_LEVELS_DECODED or figures["largest_levels_to_pillow"] > 0
    return Outcome(
        FAILED if wrong else PASSED,
        f"{figures['same_as_stored']} of {figures['photographs']} photographs to the last bit; at most "
        f"{figures['largest_levels']:g} grey levels from the stored ones, {figures['largest_levels_to_pillow']:g} from Pillow's",
        figures,
    )


def fields_of_view() -> Outcome:
    """The crop of each example photograph against the stored one: versions of OpenCV differ in hundredths of a pixel, and where
    that decides a rounding the crop is another one."""
    card, stored = load_card("acquisition"), reference()["photographs"]
    moved = {}
    for example in examples():
        frame = decode(example.content).frame
        box = crop_box(find_field_of_view(frame), frame.shape, card.preprocessing)
        moved[example.name] = max(abs(here - there) for here, there in zip(box, stored[example.name]["box"], strict=True))
    figures = {"photographs": len(moved), "other_crops": sum(map(bool, moved.values())), "largest_pixels": max(moved.values())}
    said = f"{figures['other_crops']} of {len(moved)} crops differ from the stored ones"
    said += f", by at most {figures['largest_pixels']} pixels"
    return Outcome(FAILED if figures["largest_pixels"] > MOST_PIXELS_MOVED else PASSED, said, figures)


def resizing() -> Outcome:
    """This device's OpenCV and Pillow against the exact weights of each filter, and against the stored tensors."""
    largest: dict[str, float] = {}
    share: dict[str, float] = {}
    for (height, width), size in RESIZED:
        picture = drawn_picture(height, width)
        for name in INTERPOLATIONS:
            if not name.endswith("-nearest"):  # those take a pixel and compute nothing
                difference = np.abs(resize(picture, size, name) - exact_resize(picture, size, name))
                largest[name] = max(largest.get(name, 0.0), round(float(difference.max()), 4))
                share[name] = max(share.get(name, 0.0), round(float((difference > 1e-3).mean()), 5))
    figures: dict[str, Any] = {"largest_levels_by_filter": largest, "share_of_values_that_differ_by_filter": share}
    card, stored = load_card("acquisition"), reference()["photographs"]
    tensors = [
        levels_apart(tensor_in_box(example.content, stored[example.name]["box"], card), stored[example.name]["tensor"])
        for example in examples()
    ]
    figures["tensors_same_as_stored"] = sum(apart["same"] for apart in tensors)
    figures["largest_levels_of_tensors"] = max(apart["largest_levels"] for apart in tensors)
    worst = max(largest.values())
    wrong = worst > MOST_LEVELS_RESIZED or figures["largest_levels_of_tensors"] > MOST_LEVELS_DECODED
    return Outcome(
        FAILED if wrong else PASSED,
        f"filters at most {worst:g} grey levels from their exact weights; {figures['tensors_same_as_stored']} of {len(tensors)} "
        f"tensors to the last bit, at most {figures['largest_levels_of_tensors']:g} grey levels apart",
        figures,
    )


def drawn_picture(height: int, width: int) -> NDArray[np.uint8]:
    """A picture by formula, uint8 [height, width, 3]: waves of growing frequency, hard edges and scattered pixels."""
    down, across = np.mgrid[0:height, 0:width].astype(np.int64)
    waves = (down * down * 3 + across * across * 5) >> 6 & 255
    edges = ((down // 9 + across // 7) % 2) * 255
    scattered = (down * 7919 + across * 104729) * 2654435761 >> 16 & 255
    return np.stack([waves, edges, scattered], axis=2).astype(np.uint8)


def exact_resize(picture: NDArray[np.uint8], size: tuple[int, int], interpolation: str) -> NDArray[np.float64]:
    """A resize by its weights in float64: rounded to grey levels where the library does, between the passes for Pillow."""
    spec = PreprocessingSpec(size, "none", interpolation, "BGR", 1.0, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    height, width = picture.shape[:2]
    rows, columns = filter_matrices(spec, (0, 0, width, height), picture.shape, False)
    rows, columns = (m.astype(np.float64) / m.sum(axis=1, keepdims=True, dtype=np.float64) for m in (rows, columns))
    narrow = columns @ picture.astype(np.float64)
    if interpolation.startswith("pillow"):
        narrow = np.floor(narrow + 0.5).clip(0, 255)
    result = np.tensordot(rows, narrow, axes=1)
    return np.asarray(result if interpolation in FLOAT_INTERPOLATIONS else np.floor(result + 0.5).clip(0, 255))


def _content(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return None
