"""Answers from the processor while a GPU's engine is built in another process; the engine takes over once it is certified."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import IO

from fundus_rt.models.certificates import PASSED
from fundus_rt.models.errors import DeviceLostError, DeviceMemoryError, EngineMissingError, UsageError
from fundus_rt.models.references import reference_path
from fundus_rt.models.signatures import PublicKey
from fundus_rt.runtime.certification import Certification
from fundus_rt.runtime.guarded_session import GuardedSession, open_guarded
from fundus_rt.runtime.session import ENGINE_SUFFIX, Session, identify_model, open_session, resolve_model

_BUILD = "import os; getattr(os, 'nice', lambda by: None)(10); from fundus_rt.runtime.cli import main; main()"  # answers go first
_POLL_S = 0.2
"""Seconds between two looks at whether the build has ended or is no longer wanted."""


def open_while_building(
    model: str | Path, device: str, threads: int | None = None, key: PublicKey | None = None
) -> GuardedSession:
    """Open the engine of a model; where there is none for this machine, answer on the CPU and have one built meanwhile.

    The build is ``fundus-rt build`` in a process of its own, of lower priority. Its engine takes over after it has given the
    original's answers to the photographs of the reference beside the model, and the known answers to the canary's pictures.
    Until then, and for good where it cannot be built or proved, every result says why it is from the CPU.

    Args:
        model: an ``.onnx`` file with its reference beside it.
        device: ``cuda:N``.
        threads: of one inference on the CPU; None for all cores.
        key: count only certificates that were signed with it.

    Raises:
        UsageError: no GPU is asked for, or there is no reference, without which no engine can be proved.
        As `open_guarded` for what is opened.
    """
    path = resolve_model(model)
    if device == "cpu" or path.suffix == ENGINE_SUFFIX:
        raise UsageError(f"an engine is built meanwhile of an .onnx file for a GPU; got {path.name} on {device}")
    if not reference_path(path).is_file():
        raise UsageError(
            f"there is no {reference_path(path).name} beside {path.name}, so an engine cannot be proved here; "
            f"`fundus-rt parity CHECKPOINT {path.name}` writes it (the bundled model has none; `fundus-rt build` first)"
        )

    def on_cpu() -> Session:
        return open_session(path, "onnxruntime", "cpu", threads)

    try:
        return GuardedSession(open_session(path, "tensorrt", device), continue_with=on_cpu)
    except EngineMissingError:
        waiting = f"the engine for {device} is being built: answered on the CPU until it is certified"
        guarded = GuardedSession(on_cpu(), continue_with=on_cpu, said=(waiting,))
    except (DeviceLostError, DeviceMemoryError) as error:  # no device to build on either
        why = f"TensorRT on {device} failed ({' '.join(str(error).split())}): answered on the CPU"
        return GuardedSession(on_cpu(), said=(why,))
    work = _Build(path, device, key, guarded, waiting)
    threading.Thread(target=work.run, name="engine build", daemon=True).start()
    return guarded


def open_beside(model: str, device: str, threads: int | None) -> GuardedSession:
    """Open a small model that looks on: on the GPU where its engine is there, else on the CPU, and nothing is said of it."""
    try:
        return GuardedSession(open_session(model, "tensorrt", device))
    except (EngineMissingError, DeviceLostError, DeviceMemoryError):
        return open_guarded(model, "onnxruntime", "cpu", threads)


class _Build:
    """One build, from its process to the exchange."""

    def __init__(self, model: Path, device: str, key: PublicKey | None, guarded: GuardedSession, waiting: str) -> None:
        self._model = model
        self._device = device
        self._key = key
        self._guarded = guarded
        self._waiting = waiting

    def run(self) -> None:
        """Build, prove, exchange; or say why not."""
        try:
            why = self._build()
            if not self._guarded.closed:
                self._take_over(why)
        except Exception as error:  # whatever it is, the CPU goes on, and results say why
            text = " ".join(str(error).split()) or type(error).__name__
            self._guarded.say_instead(self._waiting, f"{self._device} has no engine that counts ({text}): answered on the CPU")

    def _build(self) -> str:
        """The last sentence of a build that did not end well; empty for one that did, or that is not wanted any more."""
        with tempfile.TemporaryFile() as output:
            command = [sys.executable, "-c", _BUILD, "build", str(self._model), "--device", self._device]
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT)
            try:
                while process.poll() is None:
                    if self._guarded.closed:
                        process.terminate()
                    try:
                        process.wait(_POLL_S)
                    except subprocess.TimeoutExpired:
                        continue
            finally:
                process.kill()
            return _last_line(output) if process.returncode else ""

    def _take_over(self, why: str) -> None:
        """Put the engine in the CPU's place where it is certified.

        Raises:
            FundusRtError: it cannot be opened, or does not know its pictures.
        """
        try:
            session = open_session(self._model, "tensorrt", self._device)
        except EngineMissingError as error:
            raise EngineMissingError(why or str(error)) from error
        identity = identify_model(session)
        engine = getattr(session, "engine_path", None)
        known = Certification(self._model, identity, session.card, self._device, lambda: engine, self._key)
        state = known.state(session.backend)
        if state.verdict != PASSED:
            session.close()
            raise EngineMissingError(f"its certificate says {state.verdict}: {state.reason}")
        self._guarded.exchange(session, self._waiting)


def _last_line(output: IO[bytes]) -> str:
    """Of what a process printed, at most 400 characters."""
    output.seek(0)
    lines = [line.strip() for line in output.read().decode("utf-8", "replace").splitlines() if line.strip()]
    return lines[-1].removeprefix("Error: ")[:400] if lines else "the build ended without a word"
