"""The two kernels of the fused path for the fake driver: the same parameters and receipts, the resize by its own library.

So what a session makes of a frame on the fake driver is what the host makes of it, and a difference is the session's.
"""

from __future__ import annotations

import re

import numpy as np

from fundus_rt.models.card import PreprocessingSpec
from fundus_rt.runtime.nvidia.fused_kernel import ROWS
from fundus_rt.runtime.resize import resize_box
from tests.conftest import REPOSITORY
from tests.fake_cuda import FakeDriver

Dim = tuple[int, int, int]


def install_fake_kernels(driver: FakeDriver, spec: PreprocessingSpec) -> None:
    """Register both kernels, for networks with this preprocessing."""
    places = _places()

    def parameters(address: int) -> dict[str, int]:
        header = driver.view(int(address), 4 * places["HEADER_WORDS"]).view(np.int32)
        return {name: int(header[place]) for name, place in places.items() if place < places["HEADER_WORDS"]}

    def rows_pass(grid: Dim, block: Dim, crop: int, block_of: int, narrow: int, receipts: int, width: int, height: int) -> None:
        said = parameters(block_of)
        rows, pitch = said["CROP_HEIGHT"], said["PITCH"]
        pixels = driver.view(int(crop), rows * pitch).reshape(rows, pitch)[:, : said["CROP_WIDTH"] * 3]
        sums = driver.view(int(receipts), 4 * (1 + rows)).view(np.uint32)
        sums[0], sums[1:] = said["TICKET"], pixels.sum(axis=1, dtype=np.uint32)
        narrowed[int(narrow)] = pixels.reshape(rows, -1, 3).copy()

    def columns_pass(
        grid: Dim, block: Dim, narrow: int, block_of: int, result: int, written: int, width: int, height: int
    ) -> None:
        said = parameters(block_of)
        box = (-said["BEFORE"], -said["ABOVE"], said["BOX_WIDTH"] - said["BEFORE"], said["BOX_HEIGHT"] - said["ABOVE"])
        crop = narrowed.get(int(narrow), np.zeros((1, 1, 3), np.uint8))  # of an earlier frame, where the rows pass did not run
        tensor = resize_box(crop, box, (int(height), int(width)), spec.interpolation)
        tensor = np.ascontiguousarray(tensor[:, ::-1] if said["MIRRORED"] else tensor, spec.input_dtype)
        driver.view(int(result), tensor.nbytes)[:] = tensor.view(np.uint8).reshape(-1)
        receipts = driver.view(int(written), 8 * int(height))
        receipts[: 4 * int(height)].view(np.float32)[:] = tensor.sum(axis=(1, 2), dtype=np.float64)
        receipts[4 * int(height) :].view(np.int32)[:] = said["TICKET"]

    narrowed: dict[int, np.ndarray] = {}
    types = ["uint64"] * 4 + ["int32"] * 2
    driver.kernels["columns_pass"] = (types, columns_pass)
    driver.kernels.update({f"rows_pass_{rows}": (types, rows_pass) for rows in ROWS})


def _places() -> dict[str, int]:
    """Where each number lies in the block of parameters, from the kernels' own source."""
    source = (REPOSITORY / "runtime" / "nvidia" / "fused_kernel.cu").read_text(encoding="utf-8")
    body = re.sub(r"//.*", "", re.search(r"enum Parameter \{(.*?)\};", source, re.DOTALL)[1])  # type: ignore[index]
    places, number = {}, 0
    for entry in filter(None, (part.strip() for part in body.split(","))):
        name, _, stated = (part.strip() for part in entry.partition("="))
        number = int(stated) if stated else number
        places[name] = number
        number += 1
    return places
