"""References for the tests: real photographs as a network takes them, with answers that no part of the package computed."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from fundus_rt.models.card import CARD_KEY, ModelCard, PreprocessingSpec, card_from_json
from fundus_rt.models.certificates import card_sha256
from fundus_rt.models.references import ReplayReference, reference_path, write_reference
from fundus_rt.models.registry import EXAMPLE_FOLDER
from fundus_rt.runtime.decode import decode
from fundus_rt.runtime.field_of_view import find_field_of_view
from fundus_rt.runtime.preprocess import tensor_from_box, tensor_from_frame

CHECKPOINT = "c0" * 32
"""SHA-256 of the checkpoint that the references say they are of."""


def card_in(model: Path) -> ModelCard:
    """The card in an ONNX file."""
    session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    return card_from_json(session.get_modelmeta().custom_metadata_map[CARD_KEY])


def facts_of(card: ModelCard) -> dict[str, Any]:
    return {"checkpoint_sha256": CHECKPOINT, "card_sha256": card_sha256(card), "versions": {"torch": "2.13.0"}}


@functools.lru_cache(maxsize=4)
def example_tensors(spec: PreprocessingSpec) -> Any:
    """The example photographs as a network takes them, [N, H, W, 3]; not to be written to."""
    tensors = []
    for path in sorted(EXAMPLE_FOLDER.glob("*.jpg")):
        frame = decode(path.read_bytes()).frame
        tensors.append(tensor_from_frame(frame, find_field_of_view(frame), spec))
    batch = np.stack(tensors)
    batch.setflags(write=False)
    return batch


def sex_reference(model: Path) -> ReplayReference:
    """The example photographs for ``tiny_sex.onnx``, answered by its closed form in float64: see make_models.py."""
    card = card_in(model)
    batch = example_tensors(card.preprocessing)
    means = batch[:, :, : batch.shape[2] // 2, 1].astype(np.float64).mean(axis=(1, 2))
    answers = ((means - 60.0) / 40.0).astype(np.float32)[:, None]
    return ReplayReference(batch, {"sex": answers}, facts_of(card))


def acquisition_reference(model: Path) -> ReplayReference:
    """The example photographs for the bundled model, with the answers that were stored when the package was made."""
    card = card_in(model)
    stored = json.loads((EXAMPLE_FOLDER / "acquisition_answers.json").read_text(encoding="utf-8"))["photographs"]
    frames = [
        tensor_from_box(decode((EXAMPLE_FOLDER / f"{name}.jpg").read_bytes()).frame, known["box"], card.preprocessing, False)
        for name, known in stored.items()
    ]
    answers = {
        output.name: np.asarray([known["answers"][output.name] for known in stored.values()], np.float32)
        for output in card.outputs
    }
    return ReplayReference(np.stack(frames), answers, facts_of(card))


def with_reference(model: Path, folder: Path, reference: ReplayReference | None = None) -> Path:
    """A copy of ``tiny_sex.onnx`` in a folder with a reference beside it."""
    copy = folder / model.name
    copy.write_bytes(model.read_bytes())
    write_reference(reference_path(copy), reference or sex_reference(model))
    return copy
