"""What kind of device computes, as far as it decides how answers are rounded: the instruction sets of a processor, or the GPU."""

from __future__ import annotations

import platform
import re
from pathlib import Path

CPU_INFO = Path("/proc/cpuinfo")
INSTRUCTION_SETS = (
    "avx", "avx2", "fma", "f16c", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16", "avx_vnni", "amx_tile", "amx_int8",
    "amx_bf16",
    "asimd", "asimdhp", "asimddp", "i8mm", "bf16", "sve", "sve2", "sme",
)  # fmt: skip
"""Of x86-64 and arm64, by Linux' names: those by which numerical libraries choose their kernels."""
LARGEST_WEIGHT_IN_16 = 63
"""Weights of 7 bits: two products of 255 and 63 are 32130."""


def sums_8_bit_products_in_16(cpu_info: Path = CPU_INFO) -> bool:
    """Whether this processor adds products of uint8 and int8 up in 16 bits, two at a time: x86-64 without VNNI (``vpmaddubsw``).

    VNNI is ``avx512_vnni``, or ``avx_vnni`` where there is no AVX-512: libraries choose AVX-512's kernels by themselves.

    A sum beyond 32767 stays there, and two products of 255 and 127 are 64770. Where the processor's instruction sets cannot be
    read, x86-64 is taken to have none.

    Args:
        cpu_info: where Linux describes its processors.
    """
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return False
    sets = set(cpu_kind(cpu_info).split())
    return not ("avx512_vnni" in sets or ("avx_vnni" in sets and "avx512f" not in sets))


def device_kind(device: str) -> str:
    """The kind of a device in words, the same on every machine of its kind.

    Args:
        device: ``cpu`` or ``cuda:N``.

    Raises:
        BackendUnavailableError: a GPU that cannot be asked what it is: cuda-python, the driver or the GPU is missing.
    """
    if device == "cpu":
        return cpu_kind()
    from fundus_rt.runtime.nvidia.machine import machine_identity
    from fundus_rt.runtime.session import cuda_index

    machine = machine_identity(cuda_index(device))
    parts = [machine.gpu_name, f"compute capability {machine.compute_capability}", f"{machine.multiprocessors} multiprocessors"]
    parts += [machine.board] if machine.board else []
    parts += [f"L4T {machine.l4t}"] if machine.l4t else []
    return ", ".join(parts)


def cpu_kind(cpu_info: Path = CPU_INFO) -> str:
    """Architecture, the processor's model name and its instruction sets: ``x86_64, Intel(R) Xeon(R) …, avx avx2 fma``.

    Args:
        cpu_info: where Linux describes its processors; elsewhere the system's own name of the processor is all there is.
    """
    try:
        text = cpu_info.read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    fields: dict[str, list[str]] = {}
    for line in text.splitlines():
        name, _, value = line.partition(":")
        fields.setdefault(name.strip().lower(), []).append(value.strip())
    names = fields.get("model name") or _arm_names(fields) or [platform.processor() or "an unknown processor"]
    flags = set(" ".join((fields.get("flags") or fields.get("features") or [""])[:1]).split())
    parts = [platform.machine(), " and ".join(dict.fromkeys(re.sub(r"\s+", " ", name) for name in names))]
    sets = " ".join(name for name in INSTRUCTION_SETS if name in flags)
    return ", ".join(part for part in (*parts, sets) if part)


def _arm_names(fields: dict[str, list[str]]) -> list[str]:
    """Arm's processors by their numbers, for Linux gives no name: ``implementer 0x41 part 0xd42``; one of each kind."""
    makers, parts = fields.get("cpu implementer", []), fields.get("cpu part", [])
    return sorted({f"implementer {maker} part {part}" for maker, part in zip(makers, parts, strict=False)})
