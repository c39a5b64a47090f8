"""Weights of a Keras 2 HDF5 file into a network, each by its name and shape, each exactly once.

Keras itself loads in order of the layers and compares counts and shapes, or by name and skips what does not fit; both can
put a tensor in the wrong place without a word. Here a tensor is paired by the name of its layer and its own name, and
whatever is left over on either side is an error.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from fundus_rt.converters.tensorflow.hdf5_links import text_of
from fundus_rt.converters.tensorflow.keras_config import automatic_name
from fundus_rt.models.errors import UnsupportedCheckpointError

SHOWN = 5
IDLE_LAYERS = (
    "InputLayer",
    "Dropout",
    "SpatialDropout1D",
    "SpatialDropout2D",
    "GaussianNoise",
    "GaussianDropout",
    "AlphaDropout",
)
IDLE_NAMES = ("input", "dropout", "spatial_dropout2d", "gaussian_noise", "gaussian_dropout", "alpha_dropout", "fixed_dropout")
"""Layers that do nothing to an answer, by their classes and by the names that Keras gives them."""


def stored_names(group: Any, key: str) -> list[str]:
    """``layer_names`` or ``weight_names`` of a group, put together where HDF5's limit of 64 KiB split them.

    Args:
        group: HDF5 group or file.
        key: name of the attribute; its parts are called ``key0``, ``key1``, ...
    """
    if key in group.attrs:
        parts = [group.attrs[key]]
    else:
        parts, number = [], 0
        while f"{key}{number}" in group.attrs:
            parts.append(group.attrs[f"{key}{number}"])
            number += 1
    return [text_of(name) for part in parts for name in part]


def stored_layers(group: Any) -> dict[str, dict[str, tuple[int, ...]]]:
    """Every layer that a group lists, in order, with the shapes of its weights by name; empty for a layer without any."""
    found = {}
    for name in stored_names(group, "layer_names"):
        weights = stored_names(group[name], "weight_names")
        found[name] = {weight: tuple(int(length) for length in group[name][weight].shape) for weight in weights}
    return found


def without_number(name: str) -> str:
    """A layer's name without the running number that Keras appends to names it makes itself."""
    return re.sub(r"_\d+$", "", name)


def _order_of_numbers(names: Iterable[str]) -> list[str]:
    """Kinds of the layers and their places, sorted by running number; equal for two sessions that made the same network."""
    kinds: dict[str, list[tuple[int, int]]] = {}
    for place, name in enumerate(names):
        number = re.search(r"_(\d+)$", name)
        kinds.setdefault(without_number(name), []).append((int(number.group(1)) if number else 0, place))
    return [f"{kind} {place}" for kind, found in kinds.items() for _, place in sorted(found)]


def load_weights(network: Any, group: Any, path: Path, made_apart: bool = False) -> None:
    """Put every weight of the file into a network.

    Layers are paired by name. Where the file's names are not the network's, they are paired in order, and names may differ
    in Keras' running numbers only (``conv2d_7`` and ``conv2d_101``), which have to give the same order. Inside a layer or a
    nested network each weight is paired by its own name; where running numbers differ there, by ascending number.

    Args:
        network: a ``tf_keras`` model.
        group: the file's group with ``layer_names``.
        path: of the file, for messages.
        made_apart: whether the network's configuration comes from another file than the weights, so that equal names of
            Keras' own (``conv2d_1``) may be those of different layers; the order of the layers has to be the same then too.

    Raises:
        UnsupportedCheckpointError: a weight of the network that the file lacks, one of the file that no layer takes, one of
            another shape, or another order of layers.
    """
    every = stored_layers(group)
    if made_apart:
        _require_same_kinds(network, every, path)
    stored = {name: weights for name, weights in every.items() if weights}
    layers = {layer.name: layer for layer in network.layers if layer.weights}
    missing, left = [name for name in layers if name not in stored], [name for name in stored if name not in layers]
    if missing or left:
        in_order = list(zip(stored, layers, strict=False))
        fitting = len(stored) == len(layers) and all(without_number(old) == without_number(new) for old, new in in_order)
        if not fitting or _order_of_numbers(stored) != _order_of_numbers(layers):
            raise _unfit(path, [f"layer {name!r}" for name in missing], [f"layer {name!r}" for name in left])
        pairs = [(name, layers[new]) for name, new in in_order]
    else:
        pairs = [(name, layers[name]) for name in stored]
    assigned: set[int] = set()
    places = _places(network)
    latest: dict[str, tuple[int, str]] = {}
    for name, layer in pairs:
        found = dict(_paired(layer, list(stored[name]), name, path))
        for weight in stored[name]:
            variable = found[weight]
            kind, place = places[id(variable)]
            if made_apart and kind and place < latest.get(kind, (-1, ""))[0]:
                raise _in_another_order(path, f"{name}/{weight}", latest[kind][1])
            latest[kind] = place, f"{name}/{weight}"
            values = np.asarray(group[name][weight])
            if tuple(variable.shape) != values.shape:
                shapes = f"{list(values.shape)} in the file where {list(variable.shape)} is needed"
                raise UnsupportedCheckpointError(f"{path.name}: {name}/{weight} is {shapes}; nothing is converted")
            refuse_whole_numbers(values.dtype, np.dtype(variable.dtype.as_numpy_dtype), f"{name}/{weight}", path)
            variable.assign(values)
            assigned.add(id(variable))
    _load_own_weights(network, group, path, assigned)
    forgotten = [weight.name for weight in network.weights if id(weight) not in assigned]
    if forgotten:
        raise _unfit(path, forgotten, [])
    for layer in network._flatten_layers():
        layer.finalize_state()  # a Normalization layer computes with copies of its mean and variance
    _check_normalization(network, path)


def _require_same_kinds(network: Any, stored: Iterable[str], path: Path) -> None:
    """See that the layers without weights, too, are those that the file lists: pooling, activations, rescaling.

    Names count without their running numbers. What does nothing to an answer (inputs, dropout) may be missing.

    Raises:
        UnsupportedCheckpointError: a kind of layer that only one of the two has.
    """
    idle = tuple(layer.name for layer in network.layers if type(layer).__name__ in IDLE_LAYERS)
    own = Counter(without_number(layer.name) for layer in network.layers if layer.name not in idle)
    given = Counter(without_number(name) for name in stored if name not in idle and without_number(name) not in IDLE_NAMES)
    missing, more = sorted((own - given).elements()), sorted((given - own).elements())
    if missing or more:
        raise UnsupportedCheckpointError(
            f"{path.name} lists layers that the network of the configuration beside it has not "
            f"({', '.join(more[:8]) or 'none'}), and lacks some that it has ({', '.join(missing[:8]) or 'none'}). The weights "
            f"would fit, the answers would be others: write the JSON, model.to_json(), from the network that was saved."
        )


def refuse_whole_numbers(stored: np.dtype[Any], needed: np.dtype[Any], name: str, path: Path) -> None:
    """Refuse whole numbers for a weight that computes with fractions.

    Args:
        stored: data type in the file.
        needed: data type of the network's weight.
        name: of the weight, for the message.
        path: of the file, for the message.

    Raises:
        UnsupportedCheckpointError: quantized weights, whose scale is not in the file.
    """
    if stored.kind in "iub" and needed.kind not in "iub":
        raise UnsupportedCheckpointError(
            f"{path.name}: {name} holds whole numbers ({stored}) where the network computes with {needed}: it was quantized, and "
            f"the scale of its numbers is not in the file. Ask for the file with the weights as they were trained."
        )


def _places(network: Any) -> dict[int, tuple[str, int]]:
    """Kind and place in the network of each weight whose layer has a name of Keras' own, and its place; others have no kind.

    The places are those that `save_weights` would list: layer by layer, the weights of frozen layers last in each.
    """
    kinds: dict[int, str] = {}
    for layer in network._flatten_layers():
        automatic = without_number(layer.name) == automatic_name(type(layer).__name__)
        for variable in layer.weights:  # a layer comes after the network that it lies in, and counts
            kinds[id(variable)] = f"{type(layer).__name__}/{_kind(variable.name)}" if automatic else ""
    listed = [variable for layer in network.layers for variable in layer.trainable_weights + layer.non_trainable_weights]
    return {id(variable): (kinds[id(variable)], place) for place, variable in reversed(list(enumerate(listed)))}


def _in_another_order(path: Path, name: str, before: str) -> UnsupportedCheckpointError:
    return UnsupportedCheckpointError(
        f"{path.name} lists {name} after {before}, its network has them the other way round. Both names were given by Keras, "
        f"which numbers layers anew in each session (and lists frozen layers last), so which weights belong to which layer "
        f"cannot be told. Write model.to_json() again from the session that saved the weights, with the same layers frozen; or "
        f"load the weights where the network is defined, and save both with model.save('model.h5')."
    )


def _load_own_weights(network: Any, group: Any, path: Path, assigned: set[int]) -> None:
    """Weights that belong to the network itself and to none of its layers."""
    if "top_level_model_weights" not in group:
        return
    names = stored_names(group["top_level_model_weights"], "weight_names")
    own = [weight for weight in network.weights if id(weight) not in assigned]
    by_name = {weight.name: weight for weight in own}
    if set(names) != set(by_name):
        raise _unfit(path, [name for name in by_name if name not in names], [name for name in names if name not in by_name])
    for name in names:
        by_name[name].assign(np.asarray(group["top_level_model_weights"][name]))
        assigned.add(id(by_name[name]))


def _paired(layer: Any, stored: list[str], name: str, path: Path) -> Iterator[tuple[str, Any]]:
    """Names of a layer's weights in the file with its variables."""
    variables = {id(variable): variable for variable in layer.trainable_weights + layer.non_trainable_weights}.values()
    for simplify in (_exact, _last_two, _unnumbered):
        wanted = {simplify(variable.name): variable for variable in variables}
        given = {simplify(weight): weight for weight in stored}
        if len(wanted) == len(variables) and len(given) == len(stored) and set(wanted) == set(given):
            return ((given[key], wanted[key]) for key in given)
    kinds, wanted_kinds = {_kind(weight): weight for weight in stored}, {_kind(weight.name): weight for weight in variables}
    alone = len(kinds) == len(stored) == len(variables) and set(kinds) == set(wanted_kinds)
    if alone and not hasattr(layer, "layers"):
        return ((weight, wanted_kinds[kind]) for kind, weight in kinds.items())
    numbered = _by_number(stored, {variable.name: variable for variable in variables})
    if numbered is not None and len(numbered) == len(variables):
        return iter(numbered)
    taken = {_unnumbered(weight) for weight in stored}
    needed = {_unnumbered(variable.name) for variable in variables}
    raise _unfit(
        path,
        [f"{name}/{variable.name}" for variable in variables if _unnumbered(variable.name) not in taken],
        [f"{name}/{weight}" for weight in stored if _unnumbered(weight) not in needed],
    )


def _by_number(stored: list[str], variables: dict[str, Any]) -> list[tuple[str, Any]] | None:
    """Weights with variables of a nested network whose layers have other running numbers; None where that is not certain.

    Keras counts layers of one kind as they are made, so the first of the file is the first of the network. The places in
    the two lists say nothing: Keras lists the weights of frozen layers last.
    """
    given, wanted = _numbered_layers(stored), _numbered_layers(list(variables))
    if given is None or wanted is None or set(given) != set(wanted):
        return None
    pairs: list[tuple[str, Any]] = []
    for kind, layers in given.items():
        if len(layers) != len(wanted[kind]):
            return None
        for old, new in zip(layers, wanted[kind], strict=True):
            if set(old) != set(new):
                return None
            pairs += [(old[weight], variables[new[weight]]) for weight in old]
    return pairs


def _numbered_layers(names: list[str]) -> dict[str, list[dict[str, str]]] | None:
    """Full names by kind of layer, layers in the order of their numbers, and weight; None where the numbers give no order."""
    kinds: dict[str, dict[tuple[int, ...], dict[str, str]]] = {}
    for name in names:
        scope, _, weight = _last_two(name).rpartition("/")
        number = re.search(r"(_\d+)*$", scope)
        digits = tuple(int(part) for part in number.group().split("_")[1:]) if number else ()
        layer = kinds.setdefault(re.sub(r"(_\d+)+$", "", scope), {}).setdefault(digits or (0,), {})
        weight = re.sub(r"_\d+$", "", weight)
        if weight in layer:
            return None  # two layers of one name or number
        layer[weight] = name
    if any(len({len(number) for number in layers}) > 1 for layers in kinds.values()):
        return None
    return {kind: [layers[number] for number in sorted(layers)] for kind, layers in kinds.items()}


def _exact(name: str) -> str:
    return name


def _last_two(name: str) -> str:
    """Layer and weight, without the scopes around them: ``conv1/kernel``."""
    return "/".join(name.removesuffix(":0").split("/")[-2:])


def _unnumbered(name: str) -> str:
    """As `_last_two`, and without running numbers: ``conv2d_1_1/kernel`` and ``conv2d/kernel`` are one."""
    *scope, weight = _last_two(name).split("/")
    parts = [re.sub(r"(_\d+)+$", "", part) for part in scope]
    return "/".join([*parts, re.sub(r"_\d+$", "", weight)])


def _kind(name: str) -> str:
    """What a weight is within its layer: ``kernel``, ``bias``, ``gamma``; the letters of Keras 1 said in Keras 2's words."""
    weight = re.sub(r"_\d+$", "", name.removesuffix(":0").split("/")[-1])
    letters = {"_W": "kernel", "_b": "bias", "_gamma": "gamma", "_beta": "beta"}
    return next((word for ending, word in letters.items() if weight.endswith(ending)), weight)


def _check_normalization(network: Any, path: Path) -> None:
    """Raise unless every Normalization layer computes with the mean and variance that were put into it."""
    for layer in network._flatten_layers():
        if type(layer).__name__ == "Normalization" and layer.weights:
            stored = (layer.adapt_mean.numpy(), layer.adapt_variance.numpy())
            used = (np.ravel(layer.mean), np.ravel(layer.variance))
            if not all(np.array_equal(np.ravel(a), b) for a, b in zip(stored, used, strict=True)):
                raise UnsupportedCheckpointError(
                    f"{path.name}: this version of tf_keras does not compute {layer.name} with the file's mean and variance "
                    f"(known of Keras 2.7 and 3.0 to 3.5); install another one"
                )


def _unfit(path: Path, missing: list[str], left: list[str]) -> UnsupportedCheckpointError:
    lines = ""
    for words, names in (("the network needs and the file lacks", missing), ("the file holds and the network has not", left)):
        if names:
            more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
            lines += f"\n  {words}: {', '.join(names[:SHOWN])}{more}"
    return UnsupportedCheckpointError(
        f"{path.name} does not fit its network to the last weight.{lines or ' Its weights have other names.'}\nA network "
        f"loaded in part gives wrong answers, so nothing is converted."
    )
