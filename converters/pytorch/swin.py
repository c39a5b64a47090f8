"""Swin Transformers, v1 and v2: every hyperparameter read from the tensors, in the layouts of four libraries.

Names and shapes follow Liu et al., "Swin Transformer" (arXiv 2103.14030) and "Swin Transformer V2" (arXiv 2111.09883), as
microsoft/Swin-Transformer, huggingface/pytorch-image-models, pytorch/vision and huggingface/transformers store them; see
`swin_layouts.py`. The reference answers are those of the layout's own library, with the file's tensors loaded strictly.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from fundus_rt.converters.architecture import Architecture, LoadAccount, Network, account_for
from fundus_rt.converters.backends import require
from fundus_rt.converters.checkpoint import Checkpoint
from fundus_rt.converters.pytorch.stated import stated_title
from fundus_rt.converters.pytorch.swin_config import NAMES, PUBLISHED_V2, Stated, missing_in_v2, stated_beside, stated_by_name
from fundus_rt.converters.pytorch.swin_export import lean_swin
from fundus_rt.converters.pytorch.swin_heads import with_plain_head
from fundus_rt.converters.pytorch.swin_layouts import (
    BUFFERS,
    MICROSOFT,
    TIMM,
    TORCHVISION,
    TRANSFORMERS,
    Layout,
    Shapes,
    SwinSizes,
    check_masks,
    layout_of,
    merging_stages,
    pretrained_of,
    stage_grid,
    windows_of,
)
from fundus_rt.converters.pytorch.torch_export import EXPORTER, TorchNetwork
from fundus_rt.converters.pytorch.torch_loading import check_numbers
from fundus_rt.models.card import ModelCard
from fundus_rt.models.errors import FundusRtError, UnsupportedCheckpointError


def looks_like_swin(shapes: Shapes) -> bool:
    """Whether these are the tensors of a Swin Transformer, v1 or v2, in one of the four layouts."""
    return layout_of(shapes) is not None


def identify_swin(
    checkpoint: Checkpoint, card: ModelCard, variant: str | None = None, options: Mapping[str, Any] | None = None
) -> Architecture:
    """Read a Swin Transformer's hyperparameters from its tensors.

    Embedding width, patch, depths, heads, windows, MLP widths, number of outputs; the input size from ``attn_mask`` where
    the file has it, else from the card. Where v2's windows show in no tensor, ``config.json`` beside the file or `variant`
    has to tell them. The layout is told by the patch merging alone, never by the head's name.

    Args:
        checkpoint: as `read_checkpoint` gives it.
        card: what is expected: the input size.
        variant: timm's name of a published v2 network, where the caller says which it is.
        options: arguments of that network, see `OPTIONS_OF_V2`.

    A whole pickled module whose head the tensors do not explain answers itself, and its own graph is exported.

    Raises:
        UnsupportedCheckpointError: a replaced head whose meaning the tensors do not show, windows that nothing tells,
            another input size than the file was built for, tensors missing or left over, no finite numbers.
        BackendUnavailableError: the layout's library is missing.
    """
    file, layout = checkpoint.path.name, layout_of(checkpoint.shapes)
    if layout is None:
        raise UnsupportedCheckpointError(f"{file} holds no Swin Transformer in the names of timm, torchvision or transformers")
    try:
        checkpoint, of_head = with_plain_head(checkpoint, layout)
    except UnsupportedCheckpointError:
        if checkpoint.module is None:
            raise
        from fundus_rt.converters.pytorch.named_networks import identify_module

        return replace(identify_module(checkpoint, card), family="swin")
    names = {name: layout.file_name(name) for name in checkpoint.shapes}
    if len(set(names.values())) < len(names):
        raise UnsupportedCheckpointError(f"{file} holds two tensors for one place: names of two releases are mixed in it")
    shapes = {new: checkpoint.shapes[old] for old, new in names.items()}
    values = {new: checkpoint.state[old] for old, new in names.items() if old in checkpoint.state}
    version = 2 if any("cpb_mlp." in name or "continuous_position_bias_mlp." in name for name in shapes) else 1
    stated = stated_by_name(variant, options) if variant else None
    if stated is None and layout is not TORCHVISION:
        needed = layout is TRANSFORMERS or (version == 2 and not _tells_offsets(shapes))
        stated = stated_beside(checkpoint.path, version, layout.package, needed)
    _check_stated_size(stated, card)
    sizes = _sizes(shapes, values, checkpoint, layout, version, stated, card)
    network = _on_no_memory(layout, sizes, file)
    expected = {layout.network_name(name): shape for name, shape in network.items() if not name.endswith(BUFFERS)}
    buffers = {name: new for name, new in names.items() if new.endswith(BUFFERS)}
    unused = {name: f"{name.rpartition('.')[2]}, a buffer that the network computes itself" for name in buffers}
    account = account_for(checkpoint, {old: new for old, new in names.items() if old not in unused}, expected, unused)
    check_numbers(checkpoint, [name for name in names if name not in unused])

    def build() -> Network:
        module = build_swin(checkpoint, layout, sizes, account)
        original = _answering_with_logits(module) if layout is TRANSFORMERS else module
        return TorchNetwork(original, sizes.input_size, lean_swin(module, sizes.input_size))

    return Architecture(
        "swin", _in_words(sizes, layout, shapes), sizes.input_size, sizes.columns, "none", account, build, EXPORTER,
        ("torch", layout.package), _notes(stated, layout), (*of_head, *_warnings(sizes, layout, stated)),
    )  # fmt: skip


def build_swin(checkpoint: Checkpoint, layout: Layout, sizes: SwinSizes, account: LoadAccount) -> Any:
    """The network in its layout's library with the file's weights, all of them, in float32, ready to answer.

    Raises:
        UnsupportedCheckpointError: a stored buffer differs from what the network computes itself, so the file was made by
            code that is not the Swin Transformer known here.
        BackendUnavailableError: torch or the library is missing.
    """
    torch = require("torch")
    network = layout.build(sizes)
    stored = {layout.file_name(name): tensor for name, tensor in checkpoint.state.items()}
    own = {layout.network_name(name): buffer for name, buffer in network.named_buffers()}
    for name in account.unused:
        tensor, computed = checkpoint.state[name], own.get(layout.file_name(name))
        if computed is None or not _equal(torch, computed, tensor):
            raise UnsupportedCheckpointError(
                f"{checkpoint.path.name}: the buffer {name} {list(tensor.shape)} is not the one that a Swin Transformer "
                f"v{sizes.version} at {sizes.input_size} has; the file comes from changed code and would be computed wrongly"
            )
    state = {
        name: tensor if name.endswith(BUFFERS) else stored[layout.network_name(name)].to(torch.float32)
        for name, tensor in network.state_dict().items()
    }
    network.load_state_dict(state, strict=True)
    return network.eval()


def _equal(torch: Any, computed: Any, stored: Any) -> bool:
    """Whether a buffer is what the network computes, flat or not, to the last bits of the type it was stored in."""
    if computed.numel() != stored.numel():
        return False
    precision = 4 * torch.finfo(stored.dtype).eps if stored.dtype.is_floating_point else 0.0
    pair = (computed.reshape(-1).to(torch.float32), stored.reshape(-1).to(torch.float32))
    return bool(torch.allclose(*pair, rtol=precision, atol=precision))


def _answering_with_logits(module: Any) -> Any:
    """A network of transformers that answers with its logits alone."""
    torch = require("torch")

    class Logits(torch.nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.classifier_of_transformers = module

        def forward(self, images: Any) -> Any:
            return self.classifier_of_transformers(images).logits

    return Logits().eval()


def _on_no_memory(layout: Layout, sizes: SwinSizes, file: str) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor of the library's network, built on torch's device without memory."""
    torch = require("torch")
    try:
        with torch.device("meta"):
            network = layout.build(sizes)
    except FundusRtError:
        raise
    except Exception as error:  # the libraries check their arguments with exceptions of all kinds
        raise UnsupportedCheckpointError(
            f"{file}: {layout.package} cannot build the network that the tensors describe ({type(error).__name__}: {error}); "
            f"got {sizes}, expected a Swin Transformer v{sizes.version}. Ask for the file that was evaluated."
        ) from error
    return {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}


def _sizes(
    shapes: Shapes,
    values: dict[str, Any],
    checkpoint: Checkpoint,
    layout: Layout,
    version: int,
    stated: Stated | None,
    card: ModelCard,
) -> SwinSizes:
    file = checkpoint.path.name
    embed, channels, patch, _ = shapes[f"{layout.stem}.weight"]
    if channels != 3:
        raise UnsupportedCheckpointError(f"{file} holds a Swin Transformer for {channels} channels, expected 3 (colour)")
    first = layout.stage_of(0, 0) + layout.attention
    depths = _depths(shapes, layout)
    _check_merging(shapes, file, layout, len(depths))
    size = stated.input_size if stated and stated.input_size else card.preprocessing.input_size
    windows = windows_of(shapes, file, layout, version, depths, size, patch)
    pretrained = pretrained_of(shapes, values, layout, depths) if version == 2 else (0,) * len(depths)
    if version == 2 and layout.package == "torchvision" and pretrained is None:
        pretrained = (0,) * len(depths)  # torchvision has no windows of pre-training
    if windows is None or pretrained is None:
        if stated is None or stated.window is None or stated.pretrained is None:
            known = windows[0] if windows else None
            said = stated_title(checkpoint)[0]
            raise UnsupportedCheckpointError(missing_in_v2(file, layout.package, (embed, depths), known, size, said))
        windows = windows or (stated.window,) * len(depths)
        pretrained = pretrained or stated.pretrained
    if stated and stated.window and min(stated.window, *stage_grid(size, patch, 0)) != windows[0]:
        raise UnsupportedCheckpointError(
            f"{file} has windows of {windows[0]}, but {stated.source} says {stated.window}: they do not belong together. Give "
            f"the file and the description of one network."
        )
    check_masks(shapes, card, file, patch, windows, depths)
    key = "relative_position_bias_table" if version == 1 else "logit_scale"
    heads = [shapes.get(f"{layout.stage_of(stage, 0)}{layout.attention}{key}", (0, 0)) for stage in range(len(depths))]
    hidden = shapes.get(layout.stage_of(0, 0) + layout.hidden, (4 * embed,))[0]
    sizes = SwinSizes(
        version, (size[0], size[1]), patch, embed, depths, tuple(shape[version % 2] for shape in heads), windows, pretrained,
        hidden / embed, _has_query_bias(shapes, layout, version), shapes[f"{layout.head}.weight"][0],
        stated.epsilon if stated else 1e-5, stated.activation if stated else "gelu",
    )  # fmt: skip
    if 0 in sizes.heads:
        raise UnsupportedCheckpointError(f"{file}: {first}{key} is missing or of no use, so the heads cannot be counted")
    if any(embed * 2**stage % count for stage, count in enumerate(sizes.heads)):
        raise UnsupportedCheckpointError(f"{file}: {sizes.heads} heads do not divide {embed} channels, doubled in each stage")
    _check_claims(sizes, stated, file)
    if layout is TRANSFORMERS and version == 1:
        _check_grid_of_transformers(sizes, file)
    return sizes


def _depths(shapes: Shapes, layout: Layout) -> tuple[int, ...]:
    """Blocks of every stage: those that any tensor belongs to."""
    depths: list[int] = []
    while any(name.startswith(layout.stage_of(len(depths), 0)) for name in shapes):
        depth = 1
        while any(name.startswith(layout.stage_of(len(depths), depth)) for name in shapes):
            depth += 1
        depths.append(depth)
    return tuple(depths)


def _has_query_bias(shapes: Shapes, layout: Layout, version: int) -> bool:
    ending = layout.query_bias[version - 1]
    return any(name.endswith(ending) for name in shapes)


def _tells_offsets(shapes: Shapes) -> bool:
    return any(name.endswith("relative_coords_table") for name in shapes)


def _check_merging(shapes: Shapes, file: str, layout: Layout, stages: int) -> None:
    if layout not in (MICROSOFT, TIMM):
        return
    found = merging_stages(shapes)
    if found != [stage + (layout is TIMM) for stage in range(stages - 1)]:
        raise UnsupportedCheckpointError(
            f"{file}: patch merging at stages {found} of {stages}; expected {list(range(stages - 1))} (Microsoft, old timm) or "
            f"{list(range(1, stages))} (new timm)"
        )


def _check_stated_size(stated: Stated | None, card: ModelCard) -> None:
    """The size that a name or a configuration says has to be the one that the card prepares."""
    size = card.preprocessing.input_size
    if stated is None or stated.input_size in (None, size):
        return
    height, width = stated.input_size or size
    advice = f"Use a card with preprocessing.input_size [{height}, {width}]"
    if stated.source.removeprefix("timm/").partition(".")[0] in PUBLISHED_V2:
        chosen = size[0] if size[0] == size[1] else f"[{size[0]},{size[1]}]"
        advice += (
            f", or, if the network was fine-tuned at the card's size, say so: --architecture {stated.source}?img_size={chosen}"
        )
    raise UnsupportedCheckpointError(
        f"{stated.source} says {height} x {width} pixels, but the card {card.name!r} prepares {size[0]} x {size[1]}. {advice}."
    )


def _check_claims(sizes: SwinSizes, stated: Stated | None, file: str) -> None:
    """What is said beside the tensors has to be what the tensors say."""
    for name, value in stated.claims if stated else ():
        if getattr(sizes, name) != value:
            raise UnsupportedCheckpointError(
                f"{file} has {name} {getattr(sizes, name)}, but {stated.source if stated else ''} says {value}: they do not "
                f"belong together. Give the file and the description of one network."
            )


def _check_grid_of_transformers(sizes: SwinSizes, file: str) -> None:
    grids = [stage_grid(sizes.input_size, sizes.patch, stage, up=True) for stage in range(len(sizes.depths))]
    small = [grid for grid in grids if min(grid) < sizes.windows[0]]
    if small:
        raise UnsupportedCheckpointError(
            f"{file} is in the layout of Hugging Face transformers, whose Swin Transformer v1 cannot compute a grid of "
            f"{small[0][0]} x {small[0][1]} tokens with windows of {sizes.windows[0]}; expected an input of at least "
            f"{sizes.windows[0] * sizes.patch * 2 ** (len(sizes.depths) - 1)} pixels, the card prepares "
            f"{sizes.input_size[0]} x {sizes.input_size[1]}"
        )


def _in_words(sizes: SwinSizes, layout: Layout, shapes: Shapes) -> str:
    kind = "Swin" if sizes.version == 1 else "SwinV2"
    letter = NAMES.get((sizes.embed, sizes.depths))
    variant = f"{kind}-{letter}" if letter else f"{kind} of width {sizes.embed} and depths {'-'.join(map(str, sizes.depths))}"
    windows = "-".join(map(str, sizes.windows)) if max(sizes.windows) > sizes.windows[0] else str(sizes.windows[0])
    before = f" (before fine-tuning {'-'.join(map(str, sizes.pretrained))})" if any(sizes.pretrained) else ""
    stored = any(name.endswith("attn_mask") for name in shapes)
    return (
        f"{variant}, patch {sizes.patch}, window {windows}{before}, {sizes.input_size[0]} x {sizes.input_size[1]} pixels, "
        f"{sizes.columns} output{'s' if sizes.columns > 1 else ''}, {layout.title}{' with its buffers' if stored else ''}"
    )


def _notes(stated: Stated | None, layout: Layout) -> tuple[str, ...]:
    if stated is None:
        return ()
    window = f"windows of {stated.window}, " if stated.window else ""
    window += f"{stated.input_size[0]} x {stated.input_size[1]} pixels, " if stated.input_size and not window else ""
    if any(stated.pretrained or ()):
        window += f"before fine-tuning {'-'.join(map(str, stated.pretrained or ()))}, "
    if layout is TRANSFORMERS:
        window += f"LayerNorm's epsilon {stated.epsilon:g}, activation {stated.activation}, "
    notes = [f"{stated.source} says: {window.removesuffix(', ')}"] if window else []
    if stated.labels:
        notes.append(f"{stated.source} names the columns {', '.join(stated.labels[:8])}: hold that against the card's labels")
    return tuple(notes)


def _warnings(sizes: SwinSizes, layout: Layout, stated: Stated | None) -> tuple[str, ...]:
    found = []
    if layout is TRANSFORMERS and stated is None:
        found.append(
            "config.json is not beside the checkpoint: LayerNorm's epsilon 1e-5 and the activation GELU, the defaults of "
            "Hugging Face transformers, were taken for granted"
        )
    grids = [stage_grid(sizes.input_size, sizes.patch, stage) for stage in range(len(sizes.depths))]
    uneven = any(side % min(side, window) for grid, window in zip(grids, sizes.windows, strict=True) for side in grid)
    if layout is MICROSOFT and uneven:
        found.append(
            f"windows of {sizes.windows[0]} do not divide the grids of {sizes.input_size[0]} x {sizes.input_size[1]} pixels, "
            f"which Microsoft's code and timm up to 0.9.5 cannot compute: the answers are those of timm from 0.9.6, which "
            f"shifts the grid before it pads it"
        )
    return tuple(found)
