"""Families of ``keras.applications``: told by the names of their layers, and held against the size of the published network."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass

from fundus_rt.converters.checkpoint import Checkpoint, numbers_in
from fundus_rt.converters.tensorflow.keras_config import (
    NETWORKS,
    Config,
    automatic_name,
    layer_name,
    layers_of,
    settings_of,
    walk_layers,
)


@dataclass(frozen=True)
class Landmark:
    """What tells one family."""

    family: str
    title: str
    present: tuple[str, ...]
    """Layers that all have to be there."""
    absent: tuple[str, ...]
    """Layers of which none may be."""
    end: str
    """The backbone's last layer with weights, or a layer after it."""
    parameters: int
    """Numbers in the published backbone's weights, statistics of BatchNorm included; 0 where its width varies."""
    builder: str = ""
    """Its function in ``keras.applications``; empty where a file of weights only is not rebuilt."""


LANDMARKS = (
    Landmark("mobilenet", "MobileNet (v1)", ("conv_dw_1", "conv_pw_13"), (), "conv_pw_13_bn", 0, "MobileNet"),
    Landmark("mobilenet-v2", "MobileNetV2", ("block_16_project", "expanded_conv_project"), (), "Conv_1_bn", 0, "MobileNetV2"),
    Landmark("inception-v3", "Inception-v3", ("mixed0", "mixed10"), ("mixed_7a",), "mixed10", 21_802_784, "InceptionV3"),
    Landmark(
        "inception-resnet-v2",
        "Inception-ResNet-v2",
        ("conv_7b", "block8_10_conv"),
        (),
        "conv_7b_bn",
        54_336_736,
        "InceptionResNetV2",
    ),
    Landmark(
        "resnet-50",
        "ResNet-50",
        ("conv4_block6_3_conv", "conv5_block3_3_conv", "conv1_conv", "conv5_block3_3_bn"),
        ("conv4_block7_3_conv", "post_bn"),
        "conv5_block3_3_bn",
        23_587_712,
        "ResNet50",
    ),
    Landmark("resnet-50", "ResNet-50 (names of Keras 2.0 to 2.2)", ("res4f_branch2c", "bn5c_branch2c"), ("res4g_branch2c",),
             "bn5c_branch2c", 23_587_712),
    Landmark("xception", "Xception", ("block14_sepconv2",), (), "block14_sepconv2_bn", 20_861_480, "Xception"),
    Landmark("densenet-121", "DenseNet-121", ("conv4_block24_2_conv", "conv5_block16_2_conv"), ("conv4_block25_2_conv",), "bn",
             7_037_504, "DenseNet121"),
    Landmark("densenet-169", "DenseNet-169", ("conv4_block32_2_conv", "conv5_block32_2_conv"), ("conv4_block33_2_conv",), "bn",
             12_642_880, "DenseNet169"),
    Landmark("densenet-201", "DenseNet-201", ("conv4_block48_2_conv", "conv5_block32_2_conv"), ("conv4_block49_2_conv",), "bn",
             18_321_984, "DenseNet201"),
    Landmark("resnet-deep", "ResNet-101 or deeper", ("conv4_block7_3_conv", "conv5_block3_3_conv"), (), "conv5_block3_3_bn", 0),
    Landmark("squeezenet", "SqueezeNet", ("fire2/squeeze1x1", "fire9/expand3x3"), (), "fire9/expand3x3", 0),
    Landmark("efficientnet-v2", "EfficientNetV2", ("block1a_project_conv", "block4a_dwconv2"), (), "top_bn", 0),
)  # fmt: skip
"""Families by layers with weights (but for Inception-v3's, whose layers with weights have running numbers only)."""

EFFICIENTNET_REPEATS = (1, 2, 2, 3, 3, 4, 1)
"""Blocks per stage of EfficientNet-B0 (Tan & Le, arXiv 1905.11946, table 1)."""

EFFICIENTNET_SCALES = ((1.0, 1.0), (1.0, 1.1), (1.1, 1.2), (1.2, 1.4), (1.4, 1.8), (1.6, 2.2), (1.8, 2.6), (2.0, 3.1))
"""Width and depth coefficients of B0 to B7, as keras.applications and the authors' own code have them."""

EFFICIENTNET_PARAMETERS = (4_049_564, 6_575_232, 7_768_562, 10_783_528, 17_673_816, 28_513_520, 40_960_136, 64_097_680)
"""Numbers in the backbones of B0 to B7 (`count_params` of keras.applications, less the 7 of the Normalization layer)."""

MOBILENET_WIDTHS = (64, 128, 128, 256, 256, 512, 512, 512, 512, 512, 512, 1024, 1024)
"""Filters after each of MobileNet's 13 blocks (Howard et al., arXiv 1704.04861, table 1)."""

MOBILENET_V2_STAGES = ((1, 16, 1), (6, 24, 2), (6, 32, 3), (6, 64, 4), (6, 96, 3), (6, 160, 3), (6, 320, 1))
"""Expansion, filters and blocks of MobileNetV2's stages (Sandler et al., arXiv 1801.04381, table 2)."""


def efficientnet(number: int) -> Landmark:
    """The landmark of EfficientNet-B`number`."""
    title, numbers = f"EfficientNet-B{number}", EFFICIENTNET_PARAMETERS[number]
    return Landmark(f"efficientnet-b{number}", title, (), (), "top_bn", numbers, f"EfficientNetB{number}")


def landmark_of(names: Collection[str], top_filters: int | None) -> tuple[Landmark | None, str]:
    """The family that has these layers.

    Args:
        names: of all layers, or of those with weights.
        top_filters: filters of the layer ``top_conv``. With the depths they tell EfficientNets apart: B1 and B2 have the same
            depths, and the same 32 filters in their stem.

    Returns:
        The landmark, and in words what was found: one of the two is what counts.
    """
    names = set(names)
    if {"stem_conv", "block1a_dwconv", "top_conv"} <= names:
        depths = tuple(len({n for n in names if re.fullmatch(rf"block{stage}[a-z]+_dwconv", n)}) for stage in range(1, 8))
        for number, (width, depth) in enumerate(EFFICIENTNET_SCALES):
            scaled = tuple(math.ceil(depth * repeats) for repeats in EFFICIENTNET_REPEATS)
            if depths == scaled and top_filters == round_filters(1280 * width):
                return efficientnet(number), ""
        shown = "-".join(map(str, depths))
        return None, f"a Keras EfficientNet of depths {shown} and {top_filters} filters at its top, none of B0 to B7"
    for landmark in LANDMARKS:
        if names.issuperset(landmark.present) and names.isdisjoint(landmark.absent):
            return landmark, ""
    return None, f"a Keras network of {len(names)} layers that is not known"


def landmark_of_config(config: Config) -> tuple[Landmark | None, str]:
    """As `landmark_of`, of a whole configuration."""
    layers = list(walk_layers(config))
    top = next((settings_of(layer).get("filters") for layer in layers if layer_name(layer) == "top_conv"), None)
    return landmark_of([layer_name(layer) for layer in layers], top)


def published_parameters(landmark: Landmark, width: int) -> int:
    """Numbers in the weights of the published backbone; 0 where that is not known.

    Args:
        landmark: the family.
        width: filters of MobileNet's ``conv_pw_13`` or MobileNetV2's ``block_16_project``, which tell alpha.
    """
    if landmark.family == "mobilenet":
        alpha, total = width / 1024, 0
        before = int(32 * alpha)
        total += 27 * before + 4 * before
        for filters in MOBILENET_WIDTHS:
            after = int(filters * alpha)
            total += 9 * before + 4 * before + before * after + 4 * after
            before = after
        return total
    if landmark.family == "mobilenet-v2":
        return _mobilenet_v2_parameters(mobilenet_v2_alpha(width))
    return landmark.parameters


def mobilenet_v2_alpha(width: int) -> float:
    """MobileNetV2's alpha from the filters of ``block_16_project``: the published one, else the plain quotient."""
    known = (0.35, 0.5, 0.75, 1.0, 1.3, 1.4)
    return next((alpha for alpha in known if round_filters(320 * alpha) == width), width / 320)


def _mobilenet_v2_parameters(alpha: float) -> int:
    before = round_filters(32 * alpha)
    total = 27 * before + 4 * before
    for expansion, filters, blocks in MOBILENET_V2_STAGES:
        after = round_filters(filters * alpha)
        for _ in range(blocks):
            inside = expansion * before
            total += (before * inside + 4 * inside if expansion > 1 else 0) + 13 * inside + inside * after + 4 * after
            before = after
    last = round_filters(1280 * alpha) if alpha > 1 else 1280
    return total + before * last + 4 * last


def round_filters(filters: float) -> int:
    """The nearest multiple of 8 that is not below nine tenths of `filters` (`round_filters` of the authors' code)."""
    rounded = max(8, int(filters + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * filters else rounded


def changed_backbone(checkpoint: Checkpoint, landmark: Landmark) -> str:
    """How a file's backbone differs from the published one in its size; empty where it does not, or cannot be told.

    A network with the layer names of Xception and other widths or blocks is not Xception.
    """
    config = checkpoint.keras_config or {}
    width_of = {"mobilenet": "conv_pw_13", "mobilenet-v2": "block_16_project"}.get(landmark.family)
    widths = (settings_of(layer).get("filters", 0) for layer in walk_layers(config) if layer_name(layer) == width_of)
    expected = published_parameters(landmark, next(widths, 0))
    names = _backbone_layers(config, landmark.end)
    if not checkpoint.shapes or not expected or not names:
        return ""
    if checkpoint.format == "keras-archive":
        places = [place for place, layer in _archive_places(config) if layer_name(layer) in names]
        found = sum(numbers_in(checkpoint.shapes[name]) for name in checkpoint.shapes if name.partition("/vars/")[0] in places)
    else:
        outermost = landmark.end in {layer_name(layer) for layer in layers_of(config)}
        found = sum(numbers_in(shape) for name, shape in checkpoint.shapes.items() if _belongs(name, names, outermost))
    if found == expected:
        return ""
    return f"a Keras network with the layer names of {landmark.title}, but {found:,} parameters in them in place of {expected:,}"


def _archive_places(config: Config, before: str = "") -> Iterator[tuple[str, Config]]:
    """Where a ``.keras`` archive keeps each layer's weights, and the layer.

    Keras 3 names them by their class in the order of the configuration: ``layers/conv2d``, ``layers/conv2d_1``, and those of
    a nested network under ``layers/functional/``.
    """
    seen: Counter[str] = Counter()
    for layer in layers_of(config):
        if ".ops." in str(layer.get("module", "")):
            continue  # arithmetic between layers, which Keras does not count among them
        words = automatic_name(str(layer["class_name"]))
        place = f"{before}layers/{words}" + (f"_{seen[words]}" if seen[words] else "")
        seen[words] += 1
        yield place, layer
        yield from _archive_places(layer, f"{place}/") if layer["class_name"] in NETWORKS else ()


def _backbone_layers(config: Config, end: str) -> set[str]:
    """Names of the layers up to `end` in the network that has it, Normalization layers left out."""
    layers = layers_of(config)
    names = [layer_name(layer) for layer in layers]
    if end in names:
        own = layers[: names.index(end) + 1]
        return {layer_name(layer) for layer in own if layer["class_name"] != "Normalization"}
    for layer in layers:
        if isinstance(layer.get("config"), (dict, list)):
            found = _backbone_layers(layer, end)
            if found:
                return found
    return set()


def _belongs(tensor: str, names: set[str], outermost: bool) -> bool:
    """Whether a tensor of the file, ``conv1/conv1/kernel:0`` or ``mobilenet/conv1_1/kernel:0``, is of one of these layers.

    Args:
        tensor: its path in the file: outermost layer, scopes, weight.
        names: of the layers.
        outermost: whether they are the file's outermost layers; else they lie in a nested network, and names may have
            running numbers.
    """
    parts = tensor.split("/")
    if outermost:
        return any("/".join(parts[:end]) in names for end in range(1, len(parts)))  # DenseNet has names with a slash
    inner = ("/".join(parts[start:-1]) for start in range(1, len(parts) - 1))
    return any(name in names or re.sub(r"_\d+$", "", name) in names for name in inner)
