"""What a TensorRT engine belongs to: the model, the library and the machine it was built for, and what lies beside the file.

An engine is only valid for the TensorRT version, GPU and driver that it was built with, and two builds of one model give
different bytes and different rounding. So an engine is known by its key, what is kept of it is bound to its own bytes, and
neither is read from the engine file, which stays the plain plan that every tool of TensorRT reads.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from fundus_rt.models.errors import EngineError

RECORD_FORMAT = 2
"""Version of the JSON beside an engine. The first one did not know multiprocessors and board."""


@dataclass(frozen=True)
class EngineProfile:
    """The shapes that an engine takes: fewest, best, most.

    ``frame_height`` and ``frame_width`` are of the photographs, in pixels, for an engine that takes whole frames; None for one
    that takes the network's own input.
    """

    batch: tuple[int, int, int] = (1, 1, 8)
    frame_height: tuple[int, int, int] | None = None
    frame_width: tuple[int, int, int] | None = None

    def __post_init__(self) -> None:
        for name, limits in (("batch", self.batch), ("frame height", self.frame_height), ("frame width", self.frame_width)):
            if limits is not None and not (len(limits) == 3 and 1 <= limits[0] <= limits[1] <= limits[2]):
                raise EngineError(f"got the {name} profile {limits}, expected three whole numbers, 1 <= fewest <= best <= most")
        if (self.frame_height is None) != (self.frame_width is None):
            raise EngineError("a profile for frames needs both the height and the width")


@dataclass(frozen=True)
class EngineKey:
    """Everything that decides whether an engine may be used."""

    onnx_sha256: str
    flavour: str
    """``tensorrt`` or ``tensorrt_rtx``."""
    tensorrt_version: str
    """In full, as the library itself says: ``10.3.0.26``."""
    gpu_name: str
    compute_capability: str
    """``8.7``; major and minor."""
    cuda_driver: str
    """CUDA version of the driver: ``12.6``."""
    l4t: str
    """Jetson's release, ``36.4.3``; empty elsewhere."""
    profile: EngineProfile = field(default_factory=EngineProfile)
    flags: tuple[str, ...] = ()
    """What else changes the engine: ``optimisation-level=3``, ``tf32`` …; kept sorted, for their order means nothing."""
    multiprocessors: int = 0
    """Of the GPU; 0 where the engine is for every GPU of a compute capability. Jetsons of one name differ in it."""
    board: str = ""
    """The board of a Jetson: ``NVIDIA Jetson AGX Orin Developer Kit``; empty elsewhere."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "flags", tuple(sorted(set(self.flags))))

    def digest(self) -> str:
        """SHA-256 of the key, 64 hexadecimal digits."""
        text = json.dumps(asdict(self), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    def differences(self, wanted: EngineKey) -> list[str]:
        """What stands between this key and the wanted one, in words: ``TensorRT 10.3.0.26 -> 10.7.0.23``."""
        names = {
            "onnx_sha256": "model",
            "flavour": "library",
            "tensorrt_version": "TensorRT",
            "gpu_name": "GPU",
            "compute_capability": "compute capability",
            "cuda_driver": "CUDA driver",
            "l4t": "L4T",
            "profile": "profile",
            "flags": "flags",
            "multiprocessors": "multiprocessors",
            "board": "board",
        }
        found = []
        for entry in fields(self):
            mine, other = getattr(self, entry.name), getattr(wanted, entry.name)
            if mine != other:
                found.append(f"{names[entry.name]} {_shown(mine)} -> {_shown(other)}")
        return found


@dataclass(frozen=True)
class EngineRecord:
    """What is known of one engine file; kept as JSON beside it."""

    key: EngineKey
    engine_sha256: str
    engine_bytes: int
    card: dict[str, Any]
    """The model card that the ONNX file carried."""
    precision: str
    """Of the graph: ``fp32``, ``fp16``, ``int8``."""
    built_at: str
    """ISO 8601, UTC."""
    build_seconds: float

    def to_json(self) -> str:
        """The text of the file beside the engine."""
        return json.dumps({"format": RECORD_FORMAT, **asdict(self)}, indent=1, sort_keys=True)


def record_from_json(text: str, origin: str) -> EngineRecord:
    """An engine's record from the JSON beside it.

    Raises:
        EngineError: not such a record, or of a newer format.
    """
    try:
        values = json.loads(text)
        if values.pop("format") != RECORD_FORMAT:
            raise ValueError("another format")
        key = dict(values.pop("key"))
        profile: dict[str, Any] = {name: None if limits is None else tuple(limits) for name, limits in key.pop("profile").items()}
        key["flags"] = tuple(key["flags"])
        record = EngineRecord(key=EngineKey(profile=EngineProfile(**profile), **key), **values)
        if wrong := _wrongly_typed(record):
            raise TypeError(f"{', '.join(wrong)} of another type")
        return record
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, EngineError) as error:
        raise EngineError(
            f"{origin} is not the record of an engine that this version reads ({error}); "
            "build the engine again with `fundus-rt build`"
        ) from error


def _wrongly_typed(record: EngineRecord) -> list[str]:
    kinds = {"engine_sha256": str, "engine_bytes": int, "card": dict, "precision": str, "built_at": str}
    wrong = [name for name, kind in kinds.items() if not isinstance(getattr(record, name), kind)]
    if not isinstance(record.build_seconds, (int, float)):
        wrong.append("build_seconds")
    if not isinstance(record.key.multiprocessors, int):
        wrong.append("multiprocessors")
    texts = [entry.name for entry in fields(EngineKey) if entry.name not in ("profile", "flags", "multiprocessors")]
    wrong += [name for name in texts if not isinstance(getattr(record.key, name), str)]
    return wrong + ([] if all(isinstance(flag, str) for flag in record.key.flags) else ["flags"])


def _shown(value: Any) -> str:
    if isinstance(value, EngineProfile):
        parts = [f"batch {','.join(map(str, value.batch))}"]
        if value.frame_height and value.frame_width:
            parts.append(f"frames {','.join(f'{h}x{w}' for h, w in zip(value.frame_height, value.frame_width, strict=True))}")
        return " ".join(parts)
    if isinstance(value, tuple):
        return ", ".join(value) or "none"
    text = str(value or "none")
    return text[:12] if len(text) == 64 else text
