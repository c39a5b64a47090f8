"""What a model proves on this device: the steps of `fundus-rt selftest` that need it opened.

They share one `Subject`, which opens the model once; where that fails, the others are skipped.
"""

from __future__ import annotations

import itertools
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fundus_rt.models.canary import canary_from_dict
from fundus_rt.models.card import ModelCard
from fundus_rt.models.errors import EyeError, FundusRtError, ReceiptError
from fundus_rt.models.registry import EXAMPLE_FOLDER
from fundus_rt.runtime.answers import check_receipt
from fundus_rt.runtime.decode import decode
from fundus_rt.runtime.device_check.limited_process import run_limited
from fundus_rt.runtime.device_check.selftest import FAILED, PASSED, Outcome, SkipStep
from fundus_rt.runtime.device_check.selftest_examples import examples, reference, tensor_in_box, tensor_of
from fundus_rt.runtime.field_of_view import find_field_of_view
from fundus_rt.runtime.interpret import Prediction, interpret
from fundus_rt.runtime.onnx_session import OnnxRuntimeSession
from fundus_rt.runtime.pipeline import ACQUISITION, Pipeline
from fundus_rt.runtime.preprocess import crop_box, tensor_from_box
from fundus_rt.runtime.result import Result

COLD_START_LIMIT_S = 300.0
SINGLE_STREAM_S = 20.0
"""Time for the samples of one latency; slow devices take fewer."""
LEAST_SAMPLES = 5
MOST_SHARE_OF_SPREAD = 0.01
"""How far an answer may move between resizing on the GPU and on the host, as a share of the answers' range; one grey level in
some hundred pixels moves it by less, another filter by more."""

_FIRST_ANSWER = """
import json, sys, time
started = time.perf_counter()
from pathlib import Path
from fundus_rt.runtime.onnx_session import OnnxRuntimeSession
from fundus_rt.runtime.pipeline import Pipeline
model, backend, device, picture = sys.argv[1:]
pipeline = Pipeline(model, backend, device)
opened = time.perf_counter()
prepared = pipeline.prepare_bytes(Path(picture).read_bytes(), {"file name": "left"})
pipeline.finish([prepared])
answered = time.perf_counter()
status = Path("/proc/self/status")
lines = status.read_text().splitlines() if status.exists() else []
peak = max((int(line.split()[1]) / 1e3 for line in lines if line.startswith("VmHWM:")), default=0.0)
print(json.dumps({"open_s": opened - started, "first_answer_s": answered - started, "peak_memory_mb": peak}))
"""
"""A process of its own that answers one photograph: what a camera does when it is switched on."""


@dataclass
class Subject:
    """The model that is tested, and how."""

    model: str | Path
    backend: str
    device: str
    pipeline: Pipeline | None = field(default=None)
    began_on: dict[str, Any] = field(default_factory=dict)
    """What computed when the model was opened, see `computing`."""

    def opened(self) -> Pipeline:
        """The model, opened by `open_model`.

        Raises:
            SkipStep: it could not be opened.
        """
        if self.pipeline is None:
            raise SkipStep("the model was not opened")
        return self.pipeline


def open_model(subject: Subject) -> Outcome:
    """Open the model with everything before and after it."""
    started = time.perf_counter()
    subject.pipeline = Pipeline(subject.model, subject.backend, subject.device)
    seconds = time.perf_counter() - started
    backend, card = subject.pipeline.backend, subject.pipeline.card
    subject.began_on = computing(subject.pipeline)
    figures = {
        "seconds": round(seconds, 3),
        "model": {
            "name": card.name,
            "sha256": subject.pipeline.identity.sha256,
            "precision": subject.pipeline.identity.precision,
        },
        "backend": subject.began_on,
        "warnings": list(subject.pipeline.standing_warnings),
    }
    session = subject.pipeline._session._session
    if isinstance(session, OnnxRuntimeSession):
        figures["settings"] = session.settings
    return Outcome(PASSED, f"{card.name} on {backend.name} {backend.version}, {backend.device}, in {seconds:.1f} s", figures)


def computing(pipeline: Pipeline) -> dict[str, Any]:
    """What computes the answers now: ``name``, ``device`` and ``version`` of the backend, and ONNX Runtime's ``provider``."""
    backend, session = pipeline.backend, pipeline._session._session
    provider = {"provider": session.provider} if isinstance(session, OnnxRuntimeSession) else {}
    return {"name": backend.name, "device": backend.device, "version": backend.version, **provider}


def receipts(subject: Subject) -> Outcome:
    """Every answer's receipt matches its own photograph, and does not match when two photographs or two answers are exchanged."""
    pipeline = subject.opened()
    tensors = [tensor_of(example.content, pipeline.card) for example in examples()]
    answered = {}
    for index, (first, second) in enumerate(itertools.pairwise(tensors)):
        batch = np.stack([first, second])
        answered[index] = pipeline._session.run(batch)["receipt"]  # compares by itself
        if not _refused(batch[::-1], answered[index]):
            return Outcome(FAILED, "two photographs of a batch were exchanged and the receipt did not show it")
    if not _refused(np.stack(tensors[:2]), answered[len(answered) - 1]):
        return Outcome(FAILED, "the answer of another batch was taken and the receipt did not show it")
    return Outcome(PASSED, f"{len(answered)} pairs matched, every exchange was seen", {"pairs": len(answered)})


def canary(subject: Subject) -> Outcome:
    """The two drawn pictures of the card get their two known answers; exchanged or equal answers would be seen."""
    pipeline = subject.opened()
    known = canary_from_dict(pipeline.card.canary)
    if known is None:
        raise SkipStep("the model file carries no pictures with known answers; convert the checkpoint again to get them")
    spec = pipeline.card.preprocessing
    answered = pipeline._session.run(known.batch(spec.input_size, spec.input_dtype))
    problems = known.problems(answered)
    if problems:
        return Outcome(FAILED, "; ".join(problems))
    exchanged = {name: rows[::-1] for name, rows in answered.items()}
    stale = {name: np.stack([rows[0], rows[0]]) for name, rows in answered.items()}
    if not known.problems(exchanged) or not known.problems(stale):
        return Outcome(FAILED, "exchanged or stale answers to the known pictures were not seen")
    off = {name: float(np.abs(answered[name] - rows).max()) for name, rows in known.answers.items()}
    return Outcome(PASSED, "both known answers given; exchanged and stale ones are seen", {"largest_difference": off})


def frames(subject: Subject) -> Outcome:
    """Where the session takes whole photographs: its crop, resize and mirroring against those of the host."""
    pipeline = subject.opened()
    session, card = pipeline._session, pipeline.card
    if not session.takes_frames:
        raise SkipStep("photographs are cropped and resized on the host with this backend")
    spread: dict[str, list[NDArray[np.float32]]] = {output.name: [] for output in card.outputs}
    apart = dict.fromkeys(spread, 0.0)
    for example, mirror in itertools.product(examples(), (False, True)):
        frame = decode(example.content).frame
        box = crop_box(find_field_of_view(frame), frame.shape, card.preprocessing)
        there = session.run_frame(frame, box, mirror)
        here = session.run(tensor_from_box(frame, box, card.preprocessing, mirror)[None])
        for name in spread:
            spread[name].append(here[name][0])
            apart[name] = max(apart[name], float(np.abs(there[name] - here[name]).max()))
    shares = {name: apart[name] / max(float(np.ptp(np.stack(rows), axis=0).max()), 1e-12) for name, rows in spread.items()}
    worst = max(shares.values())
    return Outcome(
        FAILED if worst > MOST_SHARE_OF_SPREAD else PASSED,
        f"photographs resized on the GPU give answers {100 * worst:.2g} % of their range away from those resized on the host",
        {"largest_difference": apart, "share_of_the_answers_range": shares},
    )


def answers(subject: Subject) -> Outcome:
    """The bundled model's answers to the example photographs against the stored ones.

    Once for the stored crops, where the card's tolerance holds, and once from the file's bytes on with the crops of this device,
    where no decision may change.
    """
    pipeline = subject.opened()
    card = pipeline.card
    if card.name != ACQUISITION:
        raise SkipStep(f"the package has no stored answers of {card.name}")
    stored = reference()["photographs"]
    same_crop, whole = _Comparison(card), _Comparison(card)
    for example in examples():
        known = stored[example.name]
        expected = interpret({name: np.asarray(row, np.float32) for name, row in known["answers"].items()}, card)
        answered = pipeline._session.run(tensor_in_box(example.content, known["box"], card)[None])
        same_crop.add(example.name, expected, interpret({output.name: answered[output.name][0] for output in card.outputs}, card))
        found = _answer(pipeline, example.content)
        if isinstance(found, EyeError):
            raise found
        whole.add(example.name, expected, found.outputs)
    over = [output.name for output in card.outputs if same_crop.largest[output.name] > output.tolerance]
    figures = {
        "photographs": len(stored),
        "same_crop": {"largest_difference_probability": same_crop.largest, "changed_decisions": same_crop.changed},
        "from_bytes": {"largest_difference_probability": whole.largest, "changed_decisions": whole.changed},
    }
    said = f"{len(whole.changed)} of {len(stored) * len(card.outputs)} decisions changed; probabilities at most "
    said += f"{max(same_crop.largest.values()):.1e} apart for the same crop, {max(whole.largest.values()):.1e} from bytes on"
    return Outcome(FAILED if over or same_crop.changed or whole.changed else PASSED, said, figures)


class _Comparison:
    """Differences of probabilities and decisions that changed, over several photographs."""

    def __init__(self, card: ModelCard) -> None:
        self.largest = dict.fromkeys((output.name for output in card.outputs), 0.0)
        self.changed: list[str] = []

    def add(self, photograph: str, expected: dict[str, Prediction], got: dict[str, Prediction]) -> None:
        for name, known in expected.items():
            here = got[name].probabilities or {}
            apart = [abs(here[label] - probability) for label, probability in (known.probabilities or {}).items()]
            self.largest[name] = max(self.largest[name], *apart)
            self.changed += [f"{photograph}: {name}"] * (got[name].decision != known.decision)


def cold_start(subject: Subject) -> Outcome:
    """A new process from nothing to its first answer."""
    subject.opened()
    picture = str(EXAMPLE_FOLDER / "idrid_005.jpg")
    call = [sys.executable, "-c", _FIRST_ANSWER, str(subject.model), subject.backend, subject.device, picture]
    started = time.perf_counter()
    done = run_limited(call, COLD_START_LIMIT_S)
    seconds = time.perf_counter() - started
    problem = done.reason(COLD_START_LIMIT_S)
    if problem:
        return Outcome(FAILED, f"{problem}: {' '.join(done.errors.split())}")
    told = json.loads(done.output.splitlines()[-1])
    figures = {"process_s": round(seconds, 3), **{name: round(value, 3) for name, value in told.items()}}
    return Outcome(PASSED, f"{seconds:.2f} s from start to end, {told['peak_memory_mb']:.0f} MB at most", figures)


def latency(subject: Subject, samples: int) -> Outcome:
    """Single stream: one photograph after the other, from a file's bytes to its result, and the network alone."""
    pipeline = subject.opened()
    usable = [example.content for example in examples() if _answered(pipeline, example.content)]
    if not usable:
        raise SkipStep("the model answers none of the example photographs")
    turns = itertools.cycle(usable)
    tensor = tensor_of(usable[0], pipeline.card)[None]
    whole = _timed(lambda: _answer(pipeline, next(turns)), samples)
    network = _timed(lambda: pipeline._session.run(tensor), samples)
    in_whole, in_network = statistics_ms(whole), statistics_ms(network)
    figures = {
        "scenario": "single_stream",
        "bytes_to_result_ms": in_whole,
        "network_ms": in_network,
        "peak_memory_mb": _peak_memory_mb(),
        "gpu_memory_in_use_mb": _gpu_memory_mb(subject.device) if pipeline.backend.name == "tensorrt" else None,
    }
    said = f"{in_whole['p50']:.3g} ms from bytes to result, network {in_network['p50']:.3g} ms"
    return Outcome(PASSED, f"{said} (medians of {len(whole)} and {len(network)})", figures)


def close_model(subject: Subject) -> Outcome:
    """Release the model, so that the next one has the memory; fails where another backend computed at the end than at first.

    A session whose GPU is lost goes on with another backend: then the figures of the steps before are not those of one.
    """
    pipeline = subject.opened()
    ended_on, warnings = computing(pipeline), list(pipeline.standing_warnings)
    pipeline.close()
    subject.pipeline = None
    figures = {"backend": ended_on, "warnings": warnings}
    if ended_on == subject.began_on:
        return Outcome(PASSED, "released; the same backend computed from the beginning to the end", figures)
    first = subject.began_on
    changed = [
        f"{name} {first.get(name)} -> {ended_on.get(name)}"
        for name in {**first, **ended_on}
        if first.get(name) != ended_on.get(name)
    ]
    return Outcome(FAILED, f"another backend computed at the end than at the beginning: {', '.join(changed)}", figures)


def statistics_ms(seconds: Sequence[float]) -> dict[str, Any]:
    """Median, 90th percentile, least and most in milliseconds, and how many samples they are of."""
    values = np.asarray(seconds) * 1e3
    named = {"p50": np.percentile(values, 50), "p90": np.percentile(values, 90), "min": values.min(), "max": values.max()}
    return {"samples": len(values), **{name: round(float(value), 3) for name, value in named.items()}}


def _refused(batch: NDArray[Any], receipt: NDArray[np.float32]) -> bool:
    try:
        check_receipt(batch, receipt)
    except ReceiptError:
        return True
    return False


def _answer(pipeline: Pipeline, content: bytes) -> Result | EyeError:
    return pipeline.finish([pipeline.prepare_bytes(content, {})])[0]


def _answered(pipeline: Pipeline, content: bytes) -> bool:
    """Whether the model answers a photograph; one that has to know the eye refuses those that the eye is not sure of."""
    try:
        return isinstance(_answer(pipeline, content), Result)
    except EyeError:
        return False


def _timed(work: Callable[[], Any], samples: int) -> list[float]:
    """Wall-clock seconds of each of several calls, as many as asked for or as fit into `SINGLE_STREAM_S`; one goes before."""
    work()
    found: list[float] = []
    while len(found) < samples and (len(found) < LEAST_SAMPLES or sum(found) < SINGLE_STREAM_S):
        started = time.perf_counter()
        work()
        found.append(time.perf_counter() - started)
    return found


def _peak_memory_mb() -> float | None:
    status = Path("/proc/self/status")
    lines = status.read_text(encoding="utf-8").splitlines() if status.exists() else []
    return next((int(line.split()[1]) / 1e3 for line in lines if line.startswith("VmHWM:")), None)


def _gpu_memory_mb(device: str) -> float | None:
    from fundus_rt.runtime.nvidia.cuda_device import CudaDevice

    try:
        gpu = CudaDevice(int(device.partition(":")[2] or 0))
    except (FundusRtError, ValueError):
        return None
    try:
        free, total = gpu.memory()
        return round((total - free) / 1e6, 1)
    finally:
        gpu.close()
