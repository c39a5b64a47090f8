"""What the caller names: arguments of a library's network, and networks of their own, a function imported and called by name."""

from __future__ import annotations

import difflib
import importlib
import json
import sys
from pathlib import Path
from typing import Any

from fundus_rt.converters.backends import require
from fundus_rt.models.errors import UsageError

OPENING = {"checkpoint_path", "cache_dir", "weights", "weights_backbone", "url", "file", "hf_hub_id", "progress", "model_dir"}
"""Arguments with which timm and torchvision read or fetch files; those that begin with ``pretrained`` come to them."""


def options_in(name: str) -> tuple[str, dict[str, Any]]:
    """A name without its arguments, and the arguments: ``vit_large_patch16_224?global_pool=avg&qkv_bias=false``.

    Raises:
        UsageError: an argument without a value, or one that would open another file than the checkpoint.
    """
    bare, _, query = name.partition("?")
    options: dict[str, Any] = {}
    for part in filter(None, query.split("&")):
        key, equals, text = part.partition("=")
        if not equals or not key.isidentifier():
            raise UsageError(f"--architecture {name!r}: {part!r} is no argument; expected KEY=VALUE, joined by &")
        if key in OPENING or (key.startswith("pretrained") and key != "pretrained_window_sizes"):
            raise UsageError(
                f"--architecture {name!r}: {key} would have the library load other weights than those of the checkpoint; leave "
                f"it out. Only arguments that shape the network are allowed."
            )
        if key == "num_classes":
            raise UsageError(f"--architecture {name!r}: num_classes is counted in the file; leave it out")
        try:
            options[key] = json.loads(text)  # numbers, true, false, null, lists
        except ValueError:
            options[key] = text
    return bare, options


def close_names(name: str, known: list[str]) -> str:
    """The end of a sentence about a name that is not known: the nearest ones that are."""
    close = difflib.get_close_matches(name.partition(".")[0], known, 5, 0.5)
    return f"; the closest names are {', '.join(close)}" if close else "; look the name up in its documentation"


def module_of_factory(named: str) -> Any:
    """What ``package.module:factory`` returns, imported and called with the current folder on the path.

    Raises:
        UsageError: what failed.
    """
    torch = require("torch")
    place, _, path = named.partition(":")
    where = f"--architecture {named}"
    sys.path.insert(0, str(Path.cwd()))
    try:
        try:
            factory: Any = importlib.import_module(place)
        except ModuleNotFoundError as error:
            if error.name and (place == error.name or place.startswith(f"{error.name}.")):
                raise UsageError(
                    f"{where}: there is no module {place!r}, neither in the current folder nor installed; give the name with "
                    f"which Python imports it, without .py"
                ) from error
            raise UsageError(f"{where}: {place} needs {error.name}, which is not installed") from error
        except Exception as error:  # whatever the caller's own code raises
            raise UsageError(f"{where}: {place} cannot be imported ({type(error).__name__}: {error})") from error
        for part in path.split("."):
            if not hasattr(factory, part):
                names = [n for n in dir(factory) if not n.startswith("_") and callable(getattr(factory, n))]
                raise UsageError(f"{where}: {place} has no {path!r}{close_names(path, names)}")
            factory = getattr(factory, part)
        if isinstance(factory, torch.nn.Module):
            return factory
        if not callable(factory):
            raise UsageError(f"{where}: {path} is a {type(factory).__name__}, which cannot be called; expected a function")
        try:
            network = factory()
        except Exception as error:  # whatever the caller's own code raises
            raise UsageError(
                f"{where}: {path}() failed ({type(error).__name__}: {error}); it is called without arguments, so wrap it in a "
                f"function that gives them"
            ) from error
    finally:
        sys.path.remove(str(Path.cwd()))
    if not isinstance(network, torch.nn.Module):
        raise UsageError(f"{where}: {path}() returned a {type(network).__name__}, expected a torch.nn.Module")
    return network
