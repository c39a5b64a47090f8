"""Swin Transformers v1 and v2 in the layouts of Microsoft, timm, torchvision and transformers, against each library."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fundus_rt.benchmarks.make_swin import CASES, answers_of, swin_network, tensors_of
from fundus_rt.converters import backends
from fundus_rt.converters.conversion import onnx_from_checkpoint
from fundus_rt.converters.graphs.graph_cleaning import clean_graph
from fundus_rt.converters.pytorch.swin_export import lean_swin, window_order
from fundus_rt.converters.pytorch.swin_parts import parts_of
from tests import make_checkpoints as make
from tests.swin_helpers import EACH, card_for, describe, identified, images_for, network_of

torch = pytest.importorskip("torch")
make.skip_without_timm()
pytestmark = pytest.mark.usefixtures("one_thread")
TITLES = {
    "Microsoft": "layout of Microsoft and timm up to 0.6",
    "timm": "layout of timm from 0.9",
    "torchvision": "layout of torchvision",
    "transformers 4": "layout of Hugging Face transformers",
    "transformers 5": "layout of Hugging Face transformers",
}
THREE_STAGES: dict[str, Any] = {"depths": (2, 2, 1), "num_heads": (1, 2, 4)}
SIZES: dict[str, dict[str, Any]] = {
    "divisible": {"img_size": 96},
    "windows that do not divide": {"img_size": 128, **THREE_STAGES},
    "odd grids": {"img_size": 100, "depths": (1, 3, 2), "num_heads": (1, 2, 4)},
    "not square": {"img_size": (80, 48), **THREE_STAGES},
    "windows before fine-tuning": {"img_size": 96, **THREE_STAGES, "pretrained_window_sizes": (2, 2, 6)},
}


@pytest.mark.parametrize("kind", SIZES)
@pytest.mark.parametrize(("layout", "version"), EACH)
def test_every_layout_answers_as_its_own_library(tmp_path: Path, layout: str, version: int, kind: str) -> None:
    changes = dict(SIZES[kind])
    if "pretrained_window_sizes" in changes and (version == 1 or layout == "torchvision"):
        pytest.skip("only v2 of timm and transformers has windows before fine-tuning")
    if version == 2 and layout != "torchvision":
        changes.setdefault("pretrained_window_sizes", (0,) * len(changes.get("depths", "four")))
    original = network_of(layout, version, 2, **changes)
    size = changes["img_size"] if isinstance(changes["img_size"], tuple) else (changes["img_size"],) * 2
    if version == 2:
        describe(tmp_path, layout, original, **changes)
    architecture = identified(tmp_path, tensors_of(layout, original), card_for(*size))
    assert TITLES[layout] in architecture.description and "window 3" in architecture.description
    assert architecture.description.startswith("Swin of" if version == 1 else "SwinV2 of")
    assert ("2-2-6" in architecture.description) == any(changes.get("pretrained_window_sizes", ()))
    assert (architecture.columns, architecture.input_size) == (2, size)
    account = architecture.account
    assert account.used_parameters == account.network_parameters == sum(p.numel() for p in original.parameters())
    built, images = architecture.build(), images_for(*size)
    expected = answers_of(original, images).numpy()
    np.testing.assert_array_equal(answers_of(built.original, images).numpy(), expected)
    np.testing.assert_allclose(answers_of(built.for_export, images).numpy(), expected, atol=1e-5, rtol=1e-5)
    assert np.abs(np.diff(expected, axis=0)).max() > 1e-2, "the test's network answers the same for different pictures"


def in_timm_names(version: int, state: dict[str, Any]) -> dict[str, Any]:
    """A torchvision network's tensors under timm's names."""
    found = {}
    for name, tensor in state.items():
        if name.endswith(("relative_position_index", "relative_coords_table")):
            continue
        parts = name.split(".")
        if parts[0] == "features" and parts[1] == "0":
            new = f"patch_embed.{'proj' if parts[2] == '0' else 'norm'}.{parts[3]}"
        elif parts[0] == "features":
            stage, merging = divmod(int(parts[1]), 2)
            rest = ".".join(parts[2:]).replace(".mlp.0.", ".mlp.fc1.").replace(".mlp.3.", ".mlp.fc2.")
            new = f"layers.{stage}.blocks.{rest}" if merging else f"layers.{stage}.downsample.{rest}"
        else:
            new = name.replace("head.", "head.fc.")
        found[new] = tensor
        if version == 2 and new.endswith("qkv.bias"):
            query, _, value = found.pop(new).chunk(3)
            found |= {new.replace("qkv.bias", "q_bias"): query, new.replace("qkv.bias", "v_bias"): value}
    return found


@pytest.mark.parametrize("version", [1, 2])
def test_torchvision_and_timm_differ_where_windows_do_not_divide_the_grid(tmp_path: Path, version: int) -> None:
    """The same weights: equal answers where windows fit; where not, one pads before it rolls and the other after."""
    for size, alike in ((96, True), (128, False)):
        original = network_of("torchvision", version, img_size=size)
        other = swin_network("timm", version, img_size=size)
        other.load_state_dict(in_timm_names(version, original.state_dict()), strict=True)
        images = images_for(size, size)
        answers = [answers_of(network, images).numpy() for network in (original, other)]
        assert (np.abs(answers[0] - answers[1]).max() < 1e-5) == alike
        assert alike or np.abs(answers[0] - answers[1]).max() > 1e-3
        for network, expected in zip((original, other), answers, strict=True):
            np.testing.assert_allclose(
                answers_of(lean_swin(network, (size, size)), images).numpy(), expected, atol=1e-5, rtol=1e-5
            )


@pytest.mark.parametrize("layout", ["Microsoft", "timm", "torchvision", "transformers 4"])
def test_steep_attention_of_v2_keeps_its_bounds_and_masks(layout: str) -> None:
    """Factors beyond the bound of 100, and scores so far apart that a mask of -100, or transformers' -200, shows."""
    network = network_of(layout, 2)
    with torch.no_grad():
        for name, weight in network.named_parameters():
            if name.endswith("logit_scale"):
                weight.fill_(6.0)
            if name.endswith(("qkv.bias", "q_bias", "query.bias")):
                weight.normal_(0.0, 2.0)
    images = images_for(96, 96)
    expected = answers_of(network, images).numpy()
    np.testing.assert_allclose(answers_of(lean_swin(network, (96, 96)), images).numpy(), expected, atol=2e-4, rtol=2e-4)
    with torch.no_grad():
        for name, weight in network.named_parameters():
            if name.endswith("logit_scale"):
                weight.fill_(4.0)
    assert np.abs(answers_of(network, images).numpy() - expected).max() > 1e-2


def test_transformers_add_the_mask_of_v2_twice() -> None:
    """Read off the libraries: pairs kept apart whose scores are 200 higher still win over -100, but not over -200.

    Half a window's tokens are opposite to the others, and keys are the negative of queries: tokens are as unlike their own
    half, as far as the factor of 100 allows, as they are like the other half, which the mask keeps apart.
    """
    unit = torch.nn.functional.normalize(torch.ones(1, 1, 32), dim=-1)
    tokens = torch.cat([unit, unit, -unit, -unit], dim=1)
    other = (torch.arange(4)[:, None] < 2) != (torch.arange(4)[None] < 2)
    mask = torch.where(other, -100.0, 0.0)[None]
    drawn = torch.cat([torch.eye(32), -torch.eye(32), torch.eye(32)])
    found = {}
    for layout in ("timm", "transformers 4"):
        network = network_of(layout, 2, img_size=64, window_size=2)
        parts = parts_of(network, (64, 64))
        assert parts is not None and parts.masked == (-200.0 if layout == "transformers 4" else -100.0)
        if layout == "timm":
            attention = network.layers[0].blocks[1].attn
            weights, biases = [attention.qkv.weight], [attention.q_bias, attention.v_bias]
        else:
            attention = network.swinv2.encoder.layers[0].blocks[1].attention.self
            weights = [attention.query.weight, attention.key.weight, attention.value.weight]
            biases, drawn = (
                [attention.query.bias, attention.value.bias],
                torch.cat([torch.eye(32), -torch.eye(32), torch.eye(32)]),
            )
        with torch.no_grad():
            for weight, value in zip(weights, drawn.chunk(len(weights)), strict=True):
                weight.copy_(value)
            for bias in biases:
                bias.zero_()
            attention.logit_scale.fill_(9.0)
            if layout == "timm":
                attention.proj.weight.copy_(torch.eye(32))
                attention.proj.bias.zero_()
                mixed = attention(tokens, mask)
            else:
                mixed = attention(tokens, mask)[0]
        found[layout] = float((mixed[0, 0] @ tokens[0, 0]).detach())  # 1: own half alone, -1: the other half alone
    assert found["timm"] < -0.99 < -0.9 < found["transformers 4"]


def by_hand(grid: tuple[int, int], window: tuple[int, int], shift: tuple[int, int], pad_first: bool) -> np.ndarray:
    """Rolled, padded and cut with torch's own operators; padding is -1."""
    tokens = torch.arange(grid[0] * grid[1]).reshape(1, *grid, 1)
    padding = (0, 0, 0, -grid[1] % window[1], 0, -grid[0] % window[0])
    back = (-shift[0], -shift[1])
    if pad_first:
        tokens = torch.roll(torch.nn.functional.pad(tokens, padding, value=-1), back, (1, 2))
    else:
        tokens = torch.nn.functional.pad(torch.roll(tokens, back, (1, 2)), padding, value=-1)
    rows = tokens[0, :, :, 0].unfold(0, window[0], window[0]).unfold(1, window[1], window[1])
    return np.asarray(rows.reshape(-1))


@pytest.mark.parametrize("pad_first", [True, False])
@pytest.mark.parametrize(
    ("grid", "window", "shift"),
    [
        ((6, 6), (3, 3), (1, 1)),
        ((7, 5), (3, 3), (1, 1)),
        ((4, 9), (4, 2), (0, 1)),
        ((3, 3), (7, 7), (0, 0)),
        ((5, 1), (2, 1), (1, 0)),
    ],
)
def test_order_of_tokens_in_windows(grid: Any, window: Any, shift: Any, pad_first: bool) -> None:
    order, back, apart = window_order(grid, window, shift, pad_first)
    expected = by_hand(grid, window, shift, pad_first)
    tokens = grid[0] * grid[1]
    np.testing.assert_array_equal(np.where(order == tokens, -1, order), expected)
    np.testing.assert_array_equal(order[back], np.arange(tokens))
    assert (apart is None) == (shift == (0, 0))


@pytest.mark.parametrize("size", [96, 128, (160, 96)])
@pytest.mark.parametrize("version", [1, 2])
def test_pairs_kept_apart_are_those_of_timm(version: int, size: Any) -> None:
    network = swin_network("timm", version, img_size=size)
    seen = 0
    for block in (block for stage in network.layers for block in stage.blocks):
        _, _, apart = window_order(tuple(block.input_resolution), tuple(block.window_size), tuple(block.shift_size), False)
        assert (apart is None) == (block.attn_mask is None)
        if apart is not None:
            np.testing.assert_array_equal(np.where(apart, -100.0, 0.0), block.attn_mask.numpy())
            seen += 1
    assert seen >= 3


def open_shipped(path: Path) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
    onnxruntime = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return lambda batch: dict(zip(names, session.run(None, {"frames": batch}), strict=True))


def one_of_each() -> list[Any]:
    """One case of every layout and version; the two sets of names of transformers count once."""
    return list({(case.layout.partition(" ")[0], case.architecture.partition("-")[0]): case for case in CASES}.values())


@pytest.mark.parametrize("case", one_of_each(), ids=lambda case: case.name)
def test_a_file_of_every_layout_becomes_a_proved_graph(tmp_path: Path, case: Any) -> None:
    if "transformers" in case.layout:
        pytest.importorskip("transformers")
    path = case.make(tmp_path, case.size, case.columns)
    pictures = make.photographs(case.size)
    target = tmp_path / "x.onnx"
    report = onnx_from_checkpoint(path, case.card(case.size), target, tensors=pictures, open_shipped=open_shipped)
    difference = report.differences[0]
    assert difference.largest < 1e-5 * max(1.0, abs(difference.highest)) and difference.spread > 0.1
    assert report.architecture.account.used_parameters == report.architecture.account.network_parameters
    kinds = [node.op_type for node in pytest.importorskip("onnx").load(str(target)).graph.node]
    assert not {"Shape", "Mod", "Slice", "Where", "ConstantOfShape", "Expand", "Identity"} & set(kinds), set(kinds)
    assert len(kinds) < 345


def test_cases_cover_what_the_field_saves() -> None:
    assert len({case.name for case in CASES}) == len(CASES) >= 20
    assert {case.architecture for case in CASES} == {f"{kind}-{size}" for kind in ("Swin", "SwinV2") for size in "TSBL"}
    assert len(one_of_each()) == 8


def nodes_of(module: Any, size: int) -> list[str]:
    from fundus_rt.converters.pytorch.torch_export import onnx_from_torch

    model = onnx_from_torch(module, (size, size))
    clean_graph(model)
    return [node.op_type for node in model.graph.node]


def test_the_lean_graph_has_two_selections_for_each_attention_and_no_padding() -> None:
    kinds = nodes_of(lean_swin(swin_network("timm", 1)), 96)
    assert kinds.count("Gather") == 2 * 6 + 3, "six blocks in windows and back, three mergings; the last stage is one window"
    assert kinds.count("Pad") == 0
    assert kinds.count("Softmax") == 8 and kinds.count("Split") == 8
    assert kinds.count("Reshape") == 1 + 8 * 2 + 3 + 2 * 3 and kinds.count("Transpose") == 1 + 8 * 3
    assert len(kinds) == 256


def test_other_modules_are_not_taken_for_a_swin() -> None:
    library = backends.require_timm("timm.models.swin_transformer")

    class Changed(library.SwinTransformer):  # type: ignore[misc, name-defined]
        def forward(self, images: Any) -> Any:
            return -super().forward(images)

    small = {"img_size": 96, "window_size": 3, "embed_dim": 32, "depths": (1, 1), "num_heads": (1, 2)}
    assert lean_swin(torch.nn.Linear(3, 3), (96, 96)) is None
    assert lean_swin(Changed(**small)) is None
    assert lean_swin(library.SwinTransformer(global_pool="max", **small)) is None
    assert lean_swin(library.SwinTransformer(num_classes=0, **small)) is None
    replaced = library.SwinTransformer(**small)
    replaced.head = torch.nn.Linear(64, 1)
    assert lean_swin(replaced) is None
    assert lean_swin(network_of("torchvision", 1)) is None, "torchvision's network does not know its input size"
    images = images_for(96, 96)
    plain = library.SwinTransformer(**small).eval()
    torch.testing.assert_close(answers_of(lean_swin(plain), images), answers_of(plain, images), atol=1e-5, rtol=1e-5)
