"""Vectors of whole photographs with the bundled model: from the file to the decision, every step by its own library.

Only the field of view is our own finder's, for nobody else has one.
"""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from fundus_rt.models.artifacts import sha256_of_bytes, sha256_of_file
from fundus_rt.models.card import CARD_KEY, ModelCard, card_from_json
from fundus_rt.models.registry import EXAMPLE_FOLDER, bundled_file, load_card
from fundus_rt.runtime.field_of_view import find_field_of_view
from fundus_rt.runtime.onnx_session import import_onnxruntime

Vector = dict[str, Any]

STORED = ("chase_01L.jpg", "haggstrom_right.jpg", "idrid_005.jpg")
"""Photographs whose network input is stored in full: one on black, one that fills its frame, one cut above and below."""
_PLACES = 12
"""Pixels whose values are stored of each frame and input."""
_DIGITS = 6
"""Digits behind the point of the network's numbers: what is beyond differs between processors."""


def photograph_vectors(folder: Path = EXAMPLE_FOLDER) -> tuple[Vector, dict[str, bytes]]:
    """Every example photograph with the bundled model, and the raw network inputs of `STORED` by file name.

    Raises:
        BackendUnavailableError: ONNX Runtime is not installed.
    """
    model = bundled_file(load_card("acquisition"))
    session = import_onnxruntime().InferenceSession(str(model), providers=["CPUExecutionProvider"])
    card = card_from_json(session.get_modelmeta().custom_metadata_map[CARD_KEY])
    raw: dict[str, bytes] = {}
    photographs = []
    for path in sorted(folder.glob("*.jpg")):
        vector, given = _photograph(path, session, card)
        photographs.append(vector)
        if path.name in STORED:
            name = f"{path.stem}.frames.bgr"
            raw[name] = given.tobytes()
            vector["input"]["file"] = name
    height, width = card.preprocessing.input_size
    return {
        "model": {"file": model.name, "sha256": sha256_of_file(model), "input": ["frames", "uint8", ["N", height, width, 3]]},
        "tolerance": {o.name: o.tolerance for o in card.outputs},
        "photographs": photographs,
    }, raw


def _photograph(path: Path, session: Any, card: ModelCard) -> tuple[Vector, NDArray[np.uint8]]:
    content = path.read_bytes()
    rgb = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(content))).convert("RGB"))
    frame = np.ascontiguousarray(rgb[..., ::-1])
    view = find_field_of_view(frame)
    center = [round(place, 2) for place in view.center]
    radius = round(view.radius, 2)
    side = int(np.rint(2 * radius))
    left, top = (int(np.rint(place + 0.5 - side / 2)) for place in center)
    box = (left, top, left + side, top + side)
    height, width = card.preprocessing.input_size
    cropped = np.asarray(Image.fromarray(frame).crop(box))
    given = np.asarray(cv2.resize(cropped, (width, height), interpolation=cv2.INTER_AREA))
    names = [output.name for output in card.outputs]
    *answers, receipt = session.run([*names, "receipt"], {"frames": given[None]})
    return {
        "file": path.name,
        "sha256": sha256_of_bytes(content),
        "frame": _fingerprint(frame),
        "field_of_view": {"center": center, "radius": radius, "cut": list(view.cut), "found": view.found},
        "box": list(box),
        "input": _fingerprint(given),
        "receipt": [int(value) for value in receipt[0]],
        "outputs": {name: [round(float(x), _DIGITS) for x in rows[0]] for name, rows in zip(names, answers, strict=True)},
        "decisions": {output.name: _decision(output, rows[0]) for output, rows in zip(card.outputs, answers, strict=True)},
    }, given


def _fingerprint(picture: NDArray[np.uint8]) -> Vector:
    """Size, SHA-256 of the bytes row by row (B, G, R), and pixels as row, column, B, G, R."""
    height, width = picture.shape[:2]
    places = [((2 * i + 1) * height // (2 * _PLACES), (5 * i + 3) % _PLACES * width // _PLACES) for i in range(_PLACES)]
    pixels = [[row, column, *(int(level) for level in picture[row, column])] for row, column in places]
    return {"size": [height, width], "sha256": sha256_of_bytes(picture.tobytes()), "pixels": pixels}


def _decision(output: Any, row: NDArray[np.float32]) -> str:
    """The acquisition model's outputs are probabilities already: three classes, or one column for the second label."""
    if output.task == "binary":
        return str(output.labels[int(row[0] >= output.threshold)])
    best = int(np.argmax(row))
    return str(output.labels[best]) if row[best] >= output.threshold else "unknown"


def lines(vector: Vector) -> str:
    """JSON text with each case on a line of its own."""
    parts = []
    for key, value in vector.items():
        if isinstance(value, list) and value and isinstance(value[0], dict):
            inner = ",\n".join("  " + json.dumps(case, separators=(",", ":"), ensure_ascii=False) for case in value)
            parts.append(f" {json.dumps(key)}: [\n{inner}\n ]")
        else:
            parts.append(f" {json.dumps(key)}: {json.dumps(value, separators=(',', ':'), ensure_ascii=False)}")
    return "{\n" + ",\n".join(parts) + "\n}\n"
