"""What the tensors of a Swin Transformer cannot tell: published variants of v2, and ``config.json`` beside the file.

v2 computes its position biases with a small MLP from the offsets between tokens, divided by the window's size at pre-training.
Neither that size nor the window itself shows in any weight. Files of Microsoft and torchvision keep the table of offsets, from
which both can be read; timm and transformers leave it out.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fundus_rt.models.errors import UnsupportedCheckpointError, UsageError

CONFIG = "config.json"
LARGEST_CONFIG = 1 << 20
"""Bytes; a configuration has some thousand."""
HARMLESS_ARGUMENTS = {
    "mlp_ratio",
    "qkv_bias",
    "global_pool",
    "drop_rate",
    "proj_drop_rate",
    "attn_drop_rate",
    "drop_path_rate",
    "num_classes",
    "in_chans",
    "pretrained",
}
"""Arguments of timm's networks that change nothing in what a trained network of the tensors' shapes answers, or are checked."""
TOLD_BY_TENSORS = (("patch", "patch_size"), ("embed", "embed_dim"), ("depths", "depths"), ("heads", "num_heads"))
"""Fields of `SwinSizes` and their names in both libraries' configurations."""
READ_ARGUMENTS = {"img_size", "window_size", "pretrained_window_sizes", *(key for _, key in TOLD_BY_TENSORS)}
TINY, SMALL = (96, (2, 2, 6, 2)), (96, (2, 2, 18, 2))
BASE, LARGE = (128, (2, 2, 18, 2)), (192, (2, 2, 18, 2))
NAMES: dict[tuple[int, tuple[int, ...]], str] = {TINY: "T", SMALL: "S", BASE: "B", LARGE: "L"}
"""Letter of each published embedding width and depths (table 7 of arXiv 2103.14030)."""


@dataclass(frozen=True)
class Variant:
    """A published v2 network."""

    width_and_depths: tuple[int, tuple[int, ...]]
    window: int
    size: int
    """Height and width of its input, pixels."""
    pretrained: tuple[int, ...] = (0, 0, 0, 0)


FINE_TUNED = (12, 12, 12, 6)
PUBLISHED_V2 = {
    "swinv2_tiny_window8_256": Variant(TINY, 8, 256),
    "swinv2_tiny_window16_256": Variant(TINY, 16, 256),
    "swinv2_small_window8_256": Variant(SMALL, 8, 256),
    "swinv2_small_window16_256": Variant(SMALL, 16, 256),
    "swinv2_base_window8_256": Variant(BASE, 8, 256),
    "swinv2_base_window16_256": Variant(BASE, 16, 256),
    "swinv2_base_window12_192": Variant(BASE, 12, 192),
    "swinv2_base_window12to16_192to256": Variant(BASE, 16, 256, FINE_TUNED),
    "swinv2_base_window12to24_192to384": Variant(BASE, 24, 384, FINE_TUNED),
    "swinv2_large_window12_192": Variant(LARGE, 12, 192),
    "swinv2_large_window12to16_192to256": Variant(LARGE, 16, 256, FINE_TUNED),
    "swinv2_large_window12to24_192to384": Variant(LARGE, 24, 384, FINE_TUNED),
}
"""timm's names of the networks that Microsoft published, and what the names mean."""


OPTIONS_OF_V2 = ("img_size", "window_size", "pretrained_window_sizes")
"""Arguments of timm's v2 networks that no tensor shows."""


@dataclass(frozen=True)
class Stated:
    """What somebody says of a network beside its tensors; None where nothing is said."""

    source: str
    input_size: tuple[int, int] | None = None
    window: int | None = None
    pretrained: tuple[int, ...] | None = None
    epsilon: float = 1e-5
    activation: str = "gelu"
    claims: tuple[tuple[str, Any], ...] = ()
    """Sizes that the tensors tell too, by their names in `SwinSizes`: they have to agree."""
    labels: tuple[str, ...] = ()
    """Names of the columns; empty where none are given."""


def stated_by_name(name: str, options: Mapping[str, Any] | None = None) -> Stated:
    """What a published name of v2 says; ``timm/`` before it and a tag after a dot are left aside.

    Args:
        name: of timm, without arguments.
        options: the arguments of `OPTIONS_OF_V2` with which the network was made, where it was made with some.

    Raises:
        UnsupportedCheckpointError: no published v2 network has this name.
        UsageError: an argument of another kind.
    """
    variant = PUBLISHED_V2.get(name.removeprefix("timm/").partition(".")[0])
    if variant is None:
        raise UnsupportedCheckpointError(f"{name} is no published Swin Transformer v2; known are {', '.join(PUBLISHED_V2)}")
    embed, depths = variant.width_and_depths
    claims = (("embed", embed), ("depths", depths))
    given = options or {}
    try:
        size, window = _pair(given.get("img_size", variant.size)), given.get("window_size", variant.window)
        before = tuple(int(value) for value in given.get("pretrained_window_sizes", variant.pretrained))
        if not isinstance(window, int) or len(before) != len(depths):
            raise ValueError("one number for window_size, four for pretrained_window_sizes")
    except (TypeError, ValueError) as error:
        raise UsageError(
            f"--architecture {name} with {dict(given)} cannot be read ({error}); expected for example "
            f"?img_size=128&window_size=8&pretrained_window_sizes=[0,0,0,0]"
        ) from error
    return Stated(name, size, window, before, claims=claims)


def stated_beside(path: Path, version: int, layout: str, needed: bool = True) -> Stated | None:
    """What ``config.json`` in the checkpoint's folder says: that of transformers, or of timm's hub.

    Args:
        path: the checkpoint.
        version: of the network that its tensors are, 1 or 2.
        layout: package whose names the tensors have.
        needed: False where the tensors tell every size: then a file that names no architecture of timm is none of theirs.

    Returns:
        None where there is no such file.

    Raises:
        UnsupportedCheckpointError: it cannot be read, or describes another network.
    """
    file = path.parent / CONFIG
    if not file.is_file():
        return None
    try:
        if file.stat().st_size > LARGEST_CONFIG:
            raise ValueError(f"it has more than {LARGEST_CONFIG:,} bytes")
        content = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError("it is no JSON object")
        kind, name = content.get("model_type"), content.get("architecture")
        if not needed and not isinstance(name, str):
            return None
        if layout == "transformers" and kind == ("swin" if version == 1 else "swinv2"):
            return _of_transformers(file, content)
        if layout == "timm" and isinstance(name, str) and name.startswith(("swin_", "swinv2_")[version - 1]):
            return _of_timm(file, name, content, version)
    except (ValueError, TypeError, KeyError, IndexError, OSError) as error:
        raise UnsupportedCheckpointError(
            f"{file} beside {path.name} cannot be read as a configuration ({error}); mend it, or move it away"
        ) from error
    raise UnsupportedCheckpointError(
        f"{CONFIG} beside {path.name} describes {name or kind or 'a network without a name'!r}, but the tensors are a Swin "
        f"Transformer v{version} in the names of {layout}: they do not belong together. Put the checkpoint into the folder "
        f"of its own {CONFIG}, or into a folder without one."
    )


def _of_transformers(file: Path, content: Mapping[str, Any]) -> Stated:
    """Defaults are those of SwinConfig and Swinv2Config, which write every field that differs."""
    labels = content.get("id2label") or {}
    named = tuple(str(labels[key]) for key in sorted(labels, key=int))
    told = tuple((own, _fixed(content[key])) for own, key in TOLD_BY_TENSORS if key in content)
    if content.get("use_absolute_embeddings"):
        raise ValueError("use_absolute_embeddings is set, which no published Swin Transformer has")
    window = int(content.get("window_size", 7))
    return Stated(
        file.name,
        _pair(content.get("image_size", 224)),
        window,
        tuple(int(value) for value in content.get("pretrained_window_sizes") or (0, 0, 0, 0)),
        float(content.get("layer_norm_eps", 1e-5)),
        str(content.get("hidden_act", "gelu")),
        told,
        () if all(name.startswith("LABEL_") for name in named) else named,
    )


def _of_timm(file: Path, name: str, content: Mapping[str, Any], version: int) -> Stated:
    published = stated_by_name(name) if version == 2 else Stated(name)
    arguments = dict(content.get("model_args") or {})
    claims = dict(published.claims)
    claims |= {own: arguments[key] for own, key in TOLD_BY_TENSORS if key in arguments}
    unknown = set(arguments) - HARMLESS_ARGUMENTS - READ_ARGUMENTS
    if unknown:
        raise ValueError(f"model_args has {', '.join(sorted(unknown))}, whose meaning for the answers is not known here")
    for pooling in (arguments.get("global_pool"), content.get("global_pool")):
        if pooling not in (None, "avg"):
            raise ValueError(
                f"global_pool is {pooling!r}, and only 'avg' is rebuilt from tensors: write the network as a function without "
                f"arguments and name it with --architecture package.module:factory"
            )
    own_size = (content.get("pretrained_cfg") or content).get("input_size") or (3, *(published.input_size or ()))
    size = arguments.get("img_size") or list(own_size)[1:] or None
    window = arguments.get("window_size", published.window)
    if version == 1 and not isinstance(window, int):
        window = None  # the table of relative positions tells every stage's
    elif not isinstance(window, int):
        raise ValueError(f"model_args has the window_size {window!r}, expected one number")
    pretrained = tuple(int(value) for value in arguments.get("pretrained_window_sizes") or published.pretrained or ()) or None
    labels = tuple(str(label) for label in content.get("label_names") or ())
    told = tuple((own, _fixed(value)) for own, value in claims.items())
    return Stated(f"{file.name} ({name})", _pair(size) if size else None, window, pretrained, claims=told, labels=labels)


def _fixed(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _pair(size: Any) -> tuple[int, int]:
    if isinstance(size, int):
        return size, size
    height, width = size
    return int(height), int(width)


def missing_in_v2(
    file: str,
    layout: str,
    shape: tuple[int, tuple[int, ...]],
    window: int | None,
    size: tuple[int, int],
    stated: str = "",
) -> str:
    """The message for a v2 file that does not tell its windows: what is missing, the candidates, how to state them.

    Args:
        file: its name.
        layout: package whose names the tensors have.
        shape: embedding width and depths.
        window: side of the windows where the file tells it.
        size: height and width in pixels that the card prepares.
        stated: ``timm/NAME`` that the file says itself, or empty.
    """
    said = stated.removeprefix("timm/")
    known = [name for name, v in PUBLISHED_V2.items() if v.width_and_depths == shape and window in (None, v.window)]
    fitting = [name for name in known if (PUBLISHED_V2[name].size,) * 2 == size]
    missing = "the size of its windows, nor the one before fine-tuning" if window is None else (
        f"the size that its windows of {window} had before fine-tuning"
    )  # fmt: skip
    text = (
        f"{file} holds a Swin Transformer v2 of width {shape[0]} and depths {'-'.join(map(str, shape[1]))} without its tables "
        f"of offsets (relative_coords_table), so the tensors do not show {missing}; both change every answer. "
    )
    if fitting:
        text += f"Published networks that fit the tensors and {size[0]} x {size[1]} pixels: {', '.join(fitting)}. "
    else:
        others = f"; for other sizes there are {', '.join(known)}" if known else ""
        text += f"No published network fits the tensors and {size[0]} x {size[1]} pixels{others}. "
    if layout == "transformers":
        return text + (
            f"Put the model's own {CONFIG} beside the file (model_type, image_size, window_size, pretrained_window_sizes)."
        )
    text += f"The file calls it {said}. " if said else ""
    example = (fitting or known or ["swinv2_base_window12to24_192to384"])[0]
    example = said if said in known else example
    chosen = f"?img_size={size[0] if size[0] == size[1] else f'[{size[0]},{size[1]}]'}"
    chosen = chosen if (PUBLISHED_V2[example].size,) * 2 != size else ""
    return text + (
        f"Say which it is: --architecture timm/{example}{chosen}{', if it was fine-tuned at that size' if chosen else ''}; or "
        f'put a {CONFIG} beside the file that has {{"architecture": "{example}"}}.'
    )
