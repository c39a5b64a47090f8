"""The ways to compute a model on this processor that are proved: its files of every precision, on every backend that is here."""

from __future__ import annotations

import glob
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from fundus_rt.models.cache_folder import cache_folders
from fundus_rt.models.card import ModelCard
from fundus_rt.models.certificate_store import certificate_path
from fundus_rt.models.certificates import BACKEND_NAMES, PASSED, card_sha256
from fundus_rt.models.errors import BackendUnavailableError, ModelFileError
from fundus_rt.models.onnx_scan import onnx_facts, read_onnx
from fundus_rt.models.signatures import PublicKey
from fundus_rt.runtime.certification import Certification, checkpoint_sha256
from fundus_rt.runtime.graph_contract import card_of
from fundus_rt.runtime.session import BackendInfo, ModelIdentity

Say = Callable[[str], None]


@dataclass(frozen=True)
class ModelFile:
    """One ``.onnx`` file of a model."""

    path: Path
    sha256: str
    card: ModelCard = field(compare=False)

    @property
    def precision(self) -> str:
        """Of its graph: ``fp32``, ``fp16``, ``int8``."""
        return str(self.card.provenance.get("precision", "fp32"))


@dataclass(frozen=True)
class Way:
    """A file, and what computes it."""

    file: ModelFile
    backend: BackendInfo
    threads: int
    """Of one inference."""

    def __str__(self) -> str:
        name = BACKEND_NAMES.get(self.backend.name, self.backend.name)
        return f"{self.file.path.name} on {name}, {self.file.precision}, {self.threads} thread{'s' * (self.threads != 1)}"


def may_be_certified(path: Path) -> bool:
    """Whether a certificate may be there for a file or one beside it with such a name; a few looks into folders."""
    beside = any(certificate_path(file).is_file() for file in (path, *_others(path)))
    return beside or any(folder.is_dir() and any(folder.iterdir()) for folder in cache_folders("certificates"))


def files_of_model(path: Path, say: Say = lambda sentence: None) -> list[ModelFile]:
    """``NAME.onnx`` and those files beside it that are the same model in another precision: ``NAME.int8.onnx`` and the like.

    They are of the same checkpoint, and their cards say the same of preprocessing, outputs and operating points.

    Args:
        path: the file that is asked for; it comes first.
        say: told why a file with such a name is none.

    Raises:
        ModelFileError: `path` itself is no ONNX file of this package.
    """
    asked = _model_file(path)
    found = [asked]
    for other in _others(path):
        try:
            file = _model_file(other)
        except ModelFileError as error:
            say(str(error))
            continue
        checkpoint = checkpoint_sha256(asked.card)
        if not checkpoint or checkpoint_sha256(file.card) != checkpoint:
            say(f"{other.name} is left out: its card does not say that it is of the same checkpoint as {path.name}")
        elif card_sha256(file.card) != card_sha256(asked.card):
            say(f"{other.name} is left out: its card says otherwise than that of {path.name}")
        else:
            found.append(file)
    return found


def backends_here() -> list[BackendInfo]:
    """The backends for processors that are installed, the default one first, as their sessions name themselves."""
    found = []
    for about in (_onnxruntime, _openvino):
        try:
            found.append(about())
        except BackendUnavailableError:
            continue
    return found


def thread_counts(most: int) -> list[int]:
    """Numbers of threads worth trying: all that are granted, and half of them, for two hyper-threads share one core's units."""
    return [most, most // 2] if most >= 4 else [most]


def certified_ways(files: list[ModelFile], threads: int, key: PublicKey | None) -> list[Way]:
    """Every way whose certificate says ``passed`` on this device, those of the first file and the default backend first.

    Args:
        files: of one model, see `files_of_model`.
        threads: most threads of one inference.
        key: count only certificates that were signed with it.

    Raises:
        BackendUnavailableError: a key is given and ``cryptography`` is not installed.
    """
    return list(_certified(files, threads, key))


def _certified(files: list[ModelFile], threads: int, key: PublicKey | None) -> Iterator[Way]:
    for file in files:
        identity = ModelIdentity(file.card.name, file.sha256, file.precision)
        known = Certification(file.path, identity, file.card, "cpu", lambda: None, key)
        for backend in backends_here():
            if known.state(backend).verdict == PASSED:
                yield from (Way(file, backend, count) for count in thread_counts(threads))


def _model_file(path: Path) -> ModelFile:
    content, sha256 = read_onnx(path)
    return ModelFile(path, sha256, card_of(onnx_facts(content, path.name).metadata, path))


def _others(path: Path) -> list[Path]:
    return sorted(path.parent.glob(f"{glob.escape(path.stem)}.*.onnx"))


def _onnxruntime() -> BackendInfo:
    from fundus_rt.runtime.onnx_providers import CPU
    from fundus_rt.runtime.onnx_session import import_onnxruntime

    return BackendInfo("onnxruntime", "cpu", import_onnxruntime().__version__, CPU)


def _openvino() -> BackendInfo:
    from fundus_rt.runtime.openvino_session import CPU, import_openvino, version_of

    return BackendInfo("openvino", "cpu", version_of(import_openvino()), CPU)
