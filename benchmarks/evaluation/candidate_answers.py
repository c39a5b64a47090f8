"""Answers of one shipped file with other preprocessings than its card's."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fundus_rt.benchmarks.evaluation.answers import label_values, read_rows
from fundus_rt.benchmarks.evaluation.candidates import Candidate, fed_tensor
from fundus_rt.converters.backends import require
from fundus_rt.converters.shipping import INPUT, embed_card
from fundus_rt.models.artifacts import atomic_path, sha256_of_bytes
from fundus_rt.models.card import CARD_KEY, ModelCard, OutputSpec, card_from_json
from fundus_rt.models.errors import FundusRtError, ModelFileError, StoppedError
from fundus_rt.runtime.batch import read_item
from fundus_rt.runtime.decode import decode
from fundus_rt.runtime.field_of_view import find_field_of_view
from fundus_rt.runtime.guarded_session import GuardedSession
from fundus_rt.runtime.inputs import Item
from fundus_rt.runtime.interpret import interpret
from fundus_rt.runtime.output import open_output
from fundus_rt.runtime.preprocess import crop_box, tensor_from_box
from fundus_rt.runtime.rows import JsonLines

AT_ONCE = 4
"""Candidates in one inference: bounds the network's memory."""


@dataclass(frozen=True)
class KnownPhotograph:
    """A photograph that the card's own preprocessing was answered for already."""

    path: str
    eye: str
    """``left``, ``right`` or empty where nothing tells it."""


def float_input_copy(model: Path, target: Path) -> ModelCard:
    """Write a copy of a shipped file that takes grey levels which are not whole numbers; the network itself is untouched.

    With it a filter that does not round, and another normalisation, can be fed exactly.

    Args:
        model: an ``.onnx`` file of this package.
        target: where the copy is written.

    Returns:
        The card of the copy: as the file's, but for the type of its input.

    Raises:
        BackendUnavailableError: the package onnx is missing.
        ModelFileError: not a shipped file.
    """
    onnx = require("onnx")
    copy = onnx.load(str(model))
    texts = [entry.value for entry in copy.metadata_props if entry.key == CARD_KEY]
    frames = [value for value in copy.graph.input if value.name == INPUT]
    if not texts or not frames:
        raise ModelFileError(f"{model.name} is no .onnx file of this package: its card or its input {INPUT!r} is missing")
    card = card_from_json(texts[0], origin=model.name)
    card = dataclasses.replace(card, preprocessing=dataclasses.replace(card.preprocessing, interpolation="tf-bilinear"))
    frames[0].type.tensor_type.elem_type = onnx.TensorProto.FLOAT
    embed_card(copy, card)
    with atomic_path(target) as temporary:
        onnx.save(copy, str(temporary))
    return card


def answer_candidates(
    session: GuardedSession,
    candidates: Sequence[Candidate],
    photographs: Iterable[KnownPhotograph],
    output: Path,
    model_sha256: str,
    workers: int,
    show: Callable[[int], None] = lambda done: None,
    mirrored_by_source: bool = False,
) -> None:
    """Answer photographs once for each candidate; a finished photograph is kept at once and not asked again.

    Args:
        session: of the `float_input_copy`.
        candidates: what to try.
        photographs: what to ask.
        output: JSON lines; rows that it holds are gone on with.
        model_sha256: of the file that is evaluated.
        workers: photographs at once.
        show: called with the number that is done.
        mirrored_by_source: the photographs are turned back first.
    """
    tried = hashlib.sha256(repr([model_sha256, [c.identity for c in candidates]]).encode()).hexdigest()

    def row_of(photograph: KnownPhotograph) -> dict[str, Any] | None:
        content = read_item(Item(photograph.path))
        digest = sha256_of_bytes(content)
        parts = (photograph.path, digest, photograph.eye, str(mirrored_by_source), tried)
        key = hashlib.sha256("\0".join(parts).encode("utf-8", "surrogateescape")).hexdigest()[:32]
        if bytes.fromhex(key) in writer.finished:
            return None
        row: dict[str, Any] = {
            "file": photograph.path,
            "sha256": digest,
            "tried": tried,
            "answers": None,
            "error": None,
            "key": key,
        }
        try:
            frame = decode(content).frame
            frame = np.ascontiguousarray(frame[:, ::-1]) if mirrored_by_source else frame
            row["answers"] = _answers(session, candidates, frame, photograph.eye)
        except StoppedError:
            raise
        except (FundusRtError, ValueError) as error:
            row["error"] = " ".join(str(error).split())
        return row

    source, done = iter(photographs), 0
    with open_output(output, True, JsonLines()) as writer, ThreadPoolExecutor(workers) as pool:
        while some := list(islice(source, 2 * workers)):
            for row in pool.map(row_of, some):
                done += 1
                if row is not None:
                    writer.write(row)
                show(done)


def candidate_values(
    rows: Path, candidates: Sequence[Candidate], model_sha256: str, output: OutputSpec
) -> Iterator[tuple[str, NDArray[np.float64], NDArray[np.int64]]]:
    """What was answered: path, values [candidates, C] and decided labels [candidates], see `label_values`.

    Photographs that failed are left out.

    Args:
        rows: what `answer_candidates` wrote.
        candidates, model_sha256: what it was called with; rows of other calls are passed over.
        output: of the card.
    """
    tried = hashlib.sha256(repr([model_sha256, [c.identity for c in candidates]]).encode()).hexdigest()
    for row in read_rows(rows):
        if row["tried"] == tried and row["answers"] is not None:
            found = [label_values(answer[output.name], output) for answer in row["answers"]]
            yield row["file"], np.array([numbers for numbers, _ in found]), np.array([said for _, said in found], np.int64)


def _answers(
    session: GuardedSession, candidates: Sequence[Candidate], frame: NDArray[np.uint8], eye: str
) -> list[dict[str, Any]]:
    """By candidate the outputs of one photograph, as they stand in a result row."""
    view = find_field_of_view(frame)
    resized: dict[tuple[str, str, bool], NDArray[Any]] = {}
    tensors = []
    own = session.card.preprocessing
    for candidate in candidates:
        if candidate.laterality == "mirror-left" and not eye:
            raise FundusRtError("the eye is not known, and a candidate mirrors left eyes; give it in an eye column")
        mirrored = candidate.laterality == "mirror-left" and eye == "left"
        made = (candidate.spec.crop_mode, candidate.spec.interpolation, mirrored)
        if made not in resized:
            resized[made] = tensor_from_box(frame, crop_box(view, frame.shape, candidate.spec), candidate.spec, mirrored)
        tensors.append(fed_tensor(resized[made], candidate.spec, own))
    found: list[dict[str, Any]] = []
    for start in range(0, len(tensors), AT_ONCE):
        answers = session.run(np.stack(tensors[start : start + AT_ONCE]))
        for place in range(len(tensors[start : start + AT_ONCE])):
            said = interpret({o.name: answers[o.name][place] for o in session.card.outputs}, session.card)
            found.append({name: prediction.to_dict() for name, prediction in said.items()})
    return found
