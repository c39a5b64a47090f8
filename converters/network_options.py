"""Options with which a network was made that no tensor shows and that change every answer, as training scripts state them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

NETWORK_OPTIONS = ("gp", "global_pool", "bn_eps", "norm_eps", "act_layer", "norm_layer", "output_stride")
"""Options of timm's training script and of its ``model_args``."""
INNER = ("model_args", "model_kwargs")
"""Under which timm's configurations and its training script have them."""
BATCH_NORM, LAYER_NORM = ("bn", "batchnorm", "batchnorm2d"), ("ln", "layernorm")
OWN_OPTIONS: tuple[tuple[str, dict[str, tuple[Any, ...]]], ...] = (
    (
        r"(^|/|\b)(vit_(tiny|small|base|large|huge)_patch\d+_\d+|deit|beit|convnext(v2)?_(nano|tiny|small|base|large))",
        {"act_layer": ("gelu",), "norm_eps": (1e-6,), "norm_layer": LAYER_NORM},
    ),
    (r"swin", {"act_layer": ("gelu",), "norm_eps": (1e-5,), "norm_layer": LAYER_NORM}),
    (r"(^|/|\b)(wide_)?(resnet|resnext|densenet)-?_?\d", {"act_layer": ("relu",), "norm_layer": BATCH_NORM}),
    (r"(^|/|\b)(tf_)?efficientnet[_-]b\d", {"act_layer": ("silu", "swish"), "norm_layer": BATCH_NORM}),
)
"""What networks of some names have by themselves in timm 1.0 (the defaults of its constructors)."""
ALWAYS: dict[str, tuple[Any, ...]] = {
    "gp": ("avg", "token"),
    "global_pool": ("avg", "token"),
    "bn_eps": (1e-5,),
    "norm_eps": (1e-5,),
    "output_stride": (32,),
}
"""What nearly all of them have by themselves."""


def stated_options(options: Mapping[Any, Any]) -> dict[str, Any]:
    """`NETWORK_OPTIONS` in a dictionary, and in its `INNER`, as far as they are words or numbers."""
    found = dict(options)
    for key in INNER:
        inner = options.get(key)
        found |= inner if isinstance(inner, Mapping) else {}
    said = {key: found.get(key) for key in NETWORK_OPTIONS}
    return {key: value for key, value in said.items() if isinstance(value, (str, int, float)) and value}


def unusual_options(said: Mapping[str, Any], names: str) -> dict[str, Any]:
    """Those of the options that a network does not have by itself.

    Args:
        said: options and their values.
        names: what the network is called, by the file, the caller and this package.
    """
    usual = dict(ALWAYS)
    for pattern, options in OWN_OPTIONS:
        if re.search(pattern, names.lower()):
            usual |= options
            break
    return {key: value for key, value in said.items() if _plain(value) not in usual.get(key, ())}


def as_arguments(said: Mapping[str, Any]) -> str:
    """Options as they are written behind the name of a network: ``global_pool=max&act_layer=silu``."""
    return "&".join(f"{'global_pool' if key == 'gp' else key}={_argument(value)}"[:60] for key, value in said.items())


def _argument(value: Any) -> Any:
    return "avg" if value is True else value  # MAE's fine-tuning says ``global_pool=True`` for the mean of all tokens


def _plain(value: Any) -> Any:
    return value.rpartition(".")[2].lower() if isinstance(value, str) else value
