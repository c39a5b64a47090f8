"""Where a conversion may write: never over the checkpoint, and over no file but an earlier conversion."""

from __future__ import annotations

from pathlib import Path

from fundus_rt.converters.backends import require
from fundus_rt.models.card import CARD_KEY
from fundus_rt.models.errors import UsageError


def require_free_place(output: Path, checkpoint: Path) -> None:
    """See that writing `output` takes nothing away.

    Args:
        output: the ``.onnx`` to be written.
        checkpoint: the file, or the folder of a SavedModel, that is converted.

    Raises:
        UsageError: it is the checkpoint, lies inside it, or is a file that no conversion wrote.
    """
    if checkpoint.is_dir() and output.resolve().is_relative_to(checkpoint.resolve()):
        raise UsageError(
            f"{output} lies in {checkpoint}, the checkpoint itself, which stays as it is; name another place with -o"
        )
    if not output.exists():
        return
    if checkpoint.exists() and output.samefile(checkpoint):
        raise UsageError(
            f"{output} is the checkpoint itself, which would be replaced by its conversion; name another file with -o"
        )
    if not output.is_file() or not _is_a_conversion(output):
        raise UsageError(
            f"{output} is there already and was not written by fundus-rt convert, so it is not replaced; name another file with "
            f"-o, or move that one away"
        )


def _is_a_conversion(path: Path) -> bool:
    """Whether an ONNX file carries a card."""
    onnx = require("onnx")
    try:
        model = onnx.load_model(str(path), load_external_data=False)
    except Exception:  # protobuf's own classes: no ONNX model, so not ours
        return False
    return any(entry.key == CARD_KEY for entry in model.metadata_props)
