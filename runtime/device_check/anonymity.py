"""Texts and figures of a report that is sent to others, without what tells whose machine or photographs it is about."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any

from fundus_rt.runtime.device_check.findings import without_names

_FILE = r"\.(?:onnx|engine|pth|pt|h5|keras|json|jsonl|csv|log|txt|jpe?g|png|tiff?|dcm|bmp)\b"
_WORDS = r"(?:[^\W_a-z][\w.+-]*[ ])*"
"""Words before a name that may belong to it: those that begin with a capital letter or a digit."""
_CLAUSE = r"(?:[^'\"\n:;,()]|(?<=\w)'(?=\w)){0,400}"
"""Anything up to the next punctuation; an apostrophe inside a word is none."""
_PATHS = re.compile(
    rf"""(?P<address>https?://\S+)
    | file:[\\/]+ (?: {_CLAUSE}[\\/] )? [^\s'"]*
    | (?P<path> (?<![\w.:/\\~-]) (?:~|[A-Za-z]:)? [\\/]{{1,2}} (?![\s\\/])
        (?: {_CLAUSE}[\\/] )? [^\s'"():;,]* (?: {_CLAUSE}{_FILE} )? (?: [ ][^\W_a-z][\w.-]* )* )
    | {_WORDS} [^\s'"():;,\\/]* [\\/] (?: {_CLAUSE}{_FILE} | [^\s'"():;,]*\.[A-Za-z]\w*\b )
    """,
    re.VERBOSE,
)
_LIBRARY = re.compile(r"[\w+-]+\.(?:so(?:\.\d+)*|py|dll)$")
_MODEL_FILE = re.compile(rf"{_WORDS}[\w.+-]+(?=\.(?:onnx|engine|pth|h5|keras|reference)\b)")
_SERIALS = re.compile(r"(?:GPU-|MIG-)?[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}|(?:[0-9a-f]{2}:){5}[0-9a-f]{2}", re.IGNORECASE)
_MODEL_ENDINGS = (".onnx", ".engine")


def model_labels(models: Sequence[str], known: Sequence[str]) -> dict[str, str]:
    """What stands in a report for each model that was given: its name where that is public, else its number.

    Args:
        models: names or paths, as a person typed them.
        known: names of models that everybody knows.
    """
    labels = {}
    for number, model in enumerate(models, 1):
        ending = next((ending for ending in _MODEL_ENDINGS if model.lower().endswith(ending)), "")
        labels[model] = model if model in known else f"model {number}{ending}"
    return labels


def names_in(labels: Mapping[str, str], known: Sequence[str]) -> dict[str, str]:
    """Every text that may give a model's place away, and what stands for it: the whole path, its file name, each folder.

    Args:
        labels: of `model_labels`.
        known: names that give nothing away.
    """
    found: dict[str, str] = {}
    for model, label in labels.items():
        if model == label:
            continue
        found[model] = label
        for path in (PurePosixPath(model), PureWindowsPath(model)):
            found.setdefault(path.name, label)
            found.setdefault(path.stem, label.split(".", 1)[0])
            for part in path.parts[:-1]:
                found.setdefault(part, "…")
    public = {"", ".", "..", "/", "\\", *known}
    return {name: label for name, label in found.items() if name not in public and re.search(r"[^\W\d_]{2}|\d{4}", name)}


def anonymous(value: Any, names: Mapping[str, str] | None = None) -> Any:
    """The same values without names of machine and user, paths and serial numbers.

    First the names that are known are replaced, longest first. Then a path becomes ``…``, or ``~/…`` below the home folder; what
    has a slash or a backslash in it and ends in a file name is one, spaces included. Only the file name of a library or a Python
    module is kept. Of a model's file the ending is kept: somebody may have named it after somebody.

    Args:
        value: JSON-ready; keys of mappings are kept.
        names: texts to be replaced as whole words, and by what, see `names_in`.
    """
    if isinstance(value, dict):
        return {str(key): anonymous(entry, names) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [anonymous(entry, names) for entry in value]
    if not isinstance(value, str):
        return value
    for name, label in sorted((names or {}).items(), key=lambda pair: len(pair[0]), reverse=True):
        value = label.join(re.split(rf"(?<![^\W_]){re.escape(name)}(?![^\W_])", value, flags=re.IGNORECASE))
    return _MODEL_FILE.sub(_short_name, _SERIALS.sub("…", _PATHS.sub(_short_path, without_names(value))))


def _short_path(found: re.Match[str]) -> str:
    path = found.group(0)
    if found["address"] or (found["path"] and len(path) < 3):
        return path  # "/s" after a number
    name = re.split(r"[\\/]", path)[-1]
    return ("~/…" if path.startswith("~") else "…") + (f"/{name}" if _LIBRARY.match(name) else "")


def _short_name(found: re.Match[str]) -> str:
    """A model's number, which `model_labels` gave, is kept."""
    labelled = re.fullmatch(r"\d{1,2}", found.group(0)) and found.string[: found.start()].endswith("model ")
    return found.group(0) if labelled else "…"
