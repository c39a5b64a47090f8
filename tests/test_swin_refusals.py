"""Swin Transformers: published names, what no tensor tells, and files that are not the network to the last weight."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fundus_rt.benchmarks.make_swin import answers_of, published, save_in, tensors_of
from fundus_rt.converters import backends
from fundus_rt.converters.architecture import identify_architecture
from fundus_rt.converters.checkpoint import Checkpoint, read_checkpoint
from fundus_rt.converters.pytorch.swin import identify_swin
from fundus_rt.converters.pytorch.swin_config import PUBLISHED_V2
from fundus_rt.converters.pytorch.swin_export import lean_swin
from fundus_rt.converters.pytorch.swin_layouts import TIMM, pretrained_of
from fundus_rt.models.errors import BackendUnavailableError, UnsupportedCheckpointError
from tests import make_checkpoints as make
from tests.swin_helpers import EACH, card_for, describe, identified, images_for, network_of

torch = pytest.importorskip("torch")
make.skip_without_timm()
pytestmark = pytest.mark.usefixtures("one_thread")


def meta_checkpoint(tmp_path: Path, layout: str, build: Callable[[], Any]) -> Checkpoint:
    """Shapes of a network built on no memory, and values of what offsets tell."""
    with torch.device("meta"):
        network = build()
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors_of(layout, network).items()}
    return Checkpoint(tmp_path / "x.pth", "0", "torch-zip", "pytorch", shapes)


def named_by(library: str, entry: str, **changes: Any) -> Any:
    if library == "timm":
        return backends.require_timm().create_model(entry, **changes)
    return getattr(backends.require("torchvision.models"), entry)(**changes)


@pytest.mark.parametrize(
    ("library", "entry", "size", "expected"),
    [
        ("timm", "swin_tiny_patch4_window7_224", 224, "Swin-T, patch 4, window 7, 224 x 224 pixels, 1000 outputs"),
        ("timm", "swin_small_patch4_window7_224", 224, "Swin-S, patch 4, window 7"),
        ("timm", "swin_base_patch4_window12_384", 384, "Swin-B, patch 4, window 12"),
        ("timm", "swin_large_patch4_window7_224", 224, "Swin-L, patch 4, window 7"),
        ("timm", "swin_s3_tiny_224", 224, "Swin-T, patch 4, window 7-7-14-7"),
        ("torchvision", "swin_t", 224, "Swin-T, patch 4, window 7"),
        ("torchvision", "swin_s", 224, "Swin-S, patch 4, window 7"),
        ("torchvision", "swin_b", 384, "Swin-B, patch 4, window 7, 384 x 384"),
        ("torchvision", "swin_v2_t", 256, "SwinV2-T, patch 4, window 8"),
        ("torchvision", "swin_v2_s", 256, "SwinV2-S, patch 4, window 8"),
        ("torchvision", "swin_v2_b", 384, "SwinV2-B, patch 4, window 8, 384 x 384"),
    ],
)
def test_the_published_variants_are_named(tmp_path: Path, library: str, entry: str, size: int, expected: str) -> None:
    backends.require_torchvision()
    layout = "torchvision" if library == "torchvision" else "timm" if entry.endswith("224") else "Microsoft"
    checkpoint = meta_checkpoint(tmp_path, layout, lambda: named_by(library, entry))
    assert identify_architecture(checkpoint, card_for(size)).description.startswith(expected)


def test_a_head_of_21841_classes_is_counted(tmp_path: Path) -> None:
    entry = "swin_large_patch4_window12_384"
    checkpoint = meta_checkpoint(tmp_path, "Microsoft", lambda: named_by("timm", entry, num_classes=21841))
    architecture = identify_architecture(checkpoint, card_for(384))
    assert architecture.columns == 21841 and architecture.description.startswith("Swin-L, patch 4, window 12, 384 x 384")
    assert "layout of Microsoft and timm up to 0.6 with its buffers" in architecture.description


def test_published_names_of_v2_mean_what_timm_builds(monkeypatch: pytest.MonkeyPatch) -> None:
    timm = backends.require_timm()
    library = backends.require_timm("timm.models.swin_transformer_v2")
    assert set(PUBLISHED_V2) == {name for name in timm.list_models("swinv2_*") if not name.startswith("swinv2_cr_")}
    monkeypatch.setattr(library, "_create_swin_transformer_v2", lambda name, pretrained=False, **arguments: arguments)
    for name, variant in PUBLISHED_V2.items():
        arguments = getattr(library, name)()
        assert variant.width_and_depths == (arguments["embed_dim"], arguments["depths"])
        assert variant.window == arguments["window_size"]
        assert variant.pretrained == arguments.get("pretrained_window_sizes", (0, 0, 0, 0))
        assert timm.get_pretrained_cfg(name).input_size == (3, variant.size, variant.size)


def test_a_v2_file_without_offsets_is_refused_with_the_candidates_and_read_when_named(tmp_path: Path) -> None:
    expected = {
        "swinv2_tiny_window8_256": "swinv2_tiny_window8_256, swinv2_tiny_window16_256",
        "swinv2_base_window12to24_192to384": "swinv2_base_window12to24_192to384",
    }
    for name, candidates in expected.items():
        checkpoint = meta_checkpoint(tmp_path, "timm", lambda name=name: named_by("timm", name))
        variant = PUBLISHED_V2[name]
        with pytest.raises(UnsupportedCheckpointError, match=rf"pixels: {candidates}\. Say which it is: --architecture timm/"):
            identify_architecture(checkpoint, card_for(variant.size))
        architecture = identify_swin(checkpoint, card_for(variant.size), f"timm/{name}")
        before = " (before fine-tuning 12-12-12-6)" if any(variant.pretrained) else ""
        size = f"{variant.size} x {variant.size}"
        assert f", patch 4, window {variant.window}{before}, {size} pixels" in architecture.description
        with pytest.raises(UnsupportedCheckpointError, match="512 x 512 pixels; for other sizes there are swinv2_"):
            identify_swin(checkpoint, card_for(512))
        with pytest.raises(UnsupportedCheckpointError, match="is no published Swin Transformer v2"):
            identify_swin(checkpoint, card_for(512), "timm/swinv2_huge")


@pytest.mark.parametrize(("window", "before"), [(16, 12), (24, 12), (12, 6), (8, 6), (3, 2), (8, 0), (8, 8), (1, 0), (4, 16)])
def test_windows_before_fine_tuning_are_read_from_the_table_of_offsets(window: int, before: int) -> None:
    library = backends.require_timm("timm.models.swin_transformer_v2")
    table = library.WindowAttention(8, (window, window), 1, pretrained_window_size=(before, before)).relative_coords_table
    name = "layers.0.blocks.0.attn.relative_coords_table"
    for stored in (table, table.half()):
        found = pretrained_of({name: tuple(table.shape)}, {name: stored}, TIMM, (1,))
        assert found == (0 if before == window else before,)


def test_windows_that_an_index_tells_leave_only_what_was_before_open(tmp_path: Path) -> None:
    """Old timm stores the index of positions of v2, but not the table of offsets."""
    name = "swinv2_base_window12to16_192to256"
    checkpoint = meta_checkpoint(tmp_path, "Microsoft", lambda: named_by("timm", name))
    shapes = {key: shape for key, shape in checkpoint.shapes.items() if not key.endswith("relative_coords_table")}
    checkpoint = dataclasses.replace(checkpoint, shapes=shapes)
    with pytest.raises(UnsupportedCheckpointError, match="windows of 16 had before fine-tuning") as error:
        identify_architecture(checkpoint, card_for(256))
    assert "swinv2_base_window16_256, swinv2_base_window12to16_192to256. Say which" in str(error.value)
    assert "window12to16_192to256 says" in "".join(identify_swin(checkpoint, card_for(256), name).notes)


def test_v2_of_transformers_without_its_configuration_is_refused(tmp_path: Path) -> None:
    network = network_of("transformers 4", 2)
    with pytest.raises(UnsupportedCheckpointError, match=r"No published network fits.*96 x 96.*own config\.json beside the file"):
        identified(tmp_path, tensors_of("transformers 4", network), card_for(96))


def test_v1_of_transformers_without_its_configuration_says_what_was_taken_for_granted(tmp_path: Path) -> None:
    network = network_of("transformers 4", 1)
    architecture = identified(tmp_path, tensors_of("transformers 4", network), card_for(96), "safetensors")
    assert "epsilon 1e-5" in architecture.warnings[0] and architecture.notes == ()
    describe(tmp_path, "transformers 4", network)
    assert identified(tmp_path, tensors_of("transformers 4", network), card_for(96)).warnings == ()


def test_settings_of_transformers_that_no_tensor_shows_are_used(tmp_path: Path) -> None:
    network = network_of("transformers 4", 1, 2, layer_norm_eps=0.3, hidden_act="relu", id2label={0: "no", 1: "yes"})
    describe(tmp_path, "transformers 4", network)
    architecture = identified(tmp_path, tensors_of("transformers 4", network), card_for(96))
    assert "epsilon 0.3, activation relu" in architecture.notes[0] and "no, yes" in architecture.notes[1]
    built, images = architecture.build(), images_for(96, 96)
    expected = answers_of(network, images)
    plain = answers_of(network_of("transformers 4", 1, 2), images)
    assert (expected - plain).abs().max() > 1e-2
    torch.testing.assert_close(answers_of(built.original, images), expected, atol=0, rtol=0)
    torch.testing.assert_close(answers_of(built.for_export, images), expected, atol=1e-5, rtol=1e-5)


CONFIGURATIONS = {
    "not JSON": ("{", r"cannot be read as a configuration"),
    "no object": ("[1]", r"no JSON object"),
    "too large": (" " * (1 << 21), r"more than 1,048,576 bytes"),
    "another network": ('{"model_type": "vit"}', r"describes 'vit', but the tensors are a Swin Transformer v1"),
    "another version": ('{"model_type": "swinv2"}', r"describes 'swinv2', but"),
    "other depths": (
        '{"model_type": "swin", "image_size": 96, "window_size": 3, "depths": [2, 2, 6, 2]}',
        r"depths \(2, 2, 2, 2\), but",
    ),
    "another size": ('{"model_type": "swin", "image_size": 224, "window_size": 3}', r"224 x 224 pixels, but the card"),
    "position embeddings": ('{"model_type": "swin", "use_absolute_embeddings": true}', r"use_absolute_embeddings"),
}


@pytest.mark.parametrize("case", CONFIGURATIONS)
def test_a_configuration_that_does_not_belong_to_the_tensors_is_refused(tmp_path: Path, case: str) -> None:
    content, message = CONFIGURATIONS[case]
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(UnsupportedCheckpointError, match=message):
        identified(tmp_path, tensors_of("transformers 4", network_of("transformers 4", 1)), card_for(96))


def test_arguments_of_timm_that_are_not_known_are_refused(tmp_path: Path) -> None:
    network = network_of("timm", 2)
    describe(tmp_path, "timm", network, always_partition=True)
    with pytest.raises(UnsupportedCheckpointError, match="model_args has always_partition"):
        identified(tmp_path, tensors_of("timm", network), card_for(96))
    describe(tmp_path, "timm", network, embed_dim=64)
    with pytest.raises(UnsupportedCheckpointError, match=r"embed 32, but .* says 64"):
        identified(tmp_path, tensors_of("timm", network), card_for(96))


def test_grids_smaller_than_the_windows_of_transformers_are_refused(tmp_path: Path) -> None:
    network = network_of("transformers 4", 1, window_size=4)
    with torch.no_grad(), pytest.raises(RuntimeError):
        network(torch.zeros(1, 3, 96, 96))
    with pytest.raises(UnsupportedCheckpointError, match=r"compute a grid of 3 x 3 tokens with windows of 4.*at least 128"):
        identified(tmp_path, tensors_of("transformers 4", network), card_for(96))
    assert lean_swin(network, (96, 96)) is None


def test_a_grid_that_microsoft_cannot_compute_is_said_to_be_computed_as_by_timm(tmp_path: Path) -> None:
    state = tensors_of("Microsoft", network_of("Microsoft", 1, img_size=128))
    architecture = identified(tmp_path, state, card_for(128))
    assert "shifts the grid before it pads it" in architecture.warnings[0]
    assert identified(tmp_path, tensors_of("Microsoft", network_of("Microsoft", 1)), card_for(96)).warnings == ()


FIRST_BLOCK = {
    "Microsoft": "layers.0.blocks.0.attn.",
    "timm": "layers.0.blocks.0.attn.",
    "torchvision": "features.1.0.attn.",
    "transformers 4": "swin{}.encoder.layers.0.blocks.0.attention.self.",
    "transformers 5": "swin{}.encoder.layers.0.blocks.0.attention.",
}
HEADS = {"Microsoft": "head", "timm": "head.fc", "torchvision": "head"}
FAULTS = ("missing", "left over", "shape", "head missing", "sequential head", "grey", "first table missing")


def spoilt(state: dict[str, Any], layout: str, version: int, fault: str) -> tuple[dict[str, Any], str]:
    """The tensors with one fault, and what the error has to say."""
    state = dict(state)
    head = HEADS.get(layout, "classifier")
    if fault == "missing":
        del state[next(name for name in reversed(state) if name.endswith(("layernorm_after.bias", "norm2.bias")))]
        return state, r"1 missing in the file: \S*(norm2|layernorm_after)\.bias \[64\]"
    if fault == "left over":
        return state | {"age_embedding.weight": torch.zeros(2, 2)}, r"1 left over: age_embedding\.weight \[2, 2\]"
    if fault == "shape":
        name = next(name for name in state if name.endswith(("mlp.fc2.weight", "mlp.3.weight", "output.dense.weight")))
        return state | {name: torch.zeros(7, 7)}, r"\[7, 7\] where "
    if fault == "head missing":
        return {name: tensor for name, tensor in state.items() if not name.startswith(head)}, "without a head: features"
    if fault == "sequential head":
        changed = {name.replace(f"{head}.", f"{head}.2.") if name.startswith(head) else name: t for name, t in state.items()}
        return changed, rf"head of its own \({head}\.2\).*--architecture package\.module:factory"
    if fault == "grey":
        name = next(name for name, tensor in state.items() if tensor.ndim == 4 and tensor.shape[1] == 3)
        return state | {name: state[name][:, :1]}, "1 channels, expected 3"
    first = FIRST_BLOCK[layout].format("v2" if version == 2 else "")
    key = "logit_scale" if version == 2 else "relative_position_bias_table"
    return {name: t for name, t in state.items() if not (name.startswith(first) and name.endswith(key))}, "is missing"


@pytest.mark.parametrize(("layout", "version"), EACH)
def test_files_that_are_not_the_network_to_the_last_weight_are_refused(tmp_path: Path, layout: str, version: int) -> None:
    small: dict[str, Any] = {"depths": (1, 2), "num_heads": (1, 2)}
    if version == 2 and layout != "torchvision":
        small["pretrained_window_sizes"] = (0, 0)
    network = network_of(layout, version, **small)
    if version == 2:
        describe(tmp_path, layout, network, **small)
    sound = tensors_of(layout, network)
    assert identified(tmp_path, sound, card_for(96)).columns == 1
    for fault in FAULTS:
        state, message = spoilt(sound, layout, version, fault)
        with pytest.raises(UnsupportedCheckpointError, match=message):
            identified(tmp_path, state, card_for(96))


@pytest.mark.parametrize(
    ("layout", "version", "buffer"),
    [
        ("Microsoft", 2, "attn_mask"),
        ("Microsoft", 2, "relative_coords_table"),
        ("Microsoft", 2, "relative_position_index"),
        ("torchvision", 1, "relative_position_index"),
        ("torchvision", 2, "relative_coords_table"),
        ("transformers 4", 1, "relative_position_index"),
    ],
)
def test_a_buffer_of_changed_code_is_refused(tmp_path: Path, layout: str, version: int, buffer: str) -> None:
    network = network_of(layout, version)
    state = tensors_of(layout, network)
    if layout == "transformers 4":
        own = network.swin.encoder.layers[0].blocks[1].attention.relative_position_bias.relative_position_index
        state["swin.encoder.layers.0.blocks.1.attention.self.relative_position_index"] = own.reshape(9, 9).clone()
        identified(tmp_path, state, card_for(96)).build()
    name = [name for name in state if name.endswith(buffer)][-1]
    state[name] = state[name].clone()
    state[name].view(-1)[1] += 1
    architecture = identified(tmp_path, state, card_for(96))
    assert any(buffer in reason for reason in architecture.account.unused.values())
    with pytest.raises(UnsupportedCheckpointError, match=f"{buffer}.*changed code"):
        architecture.build()


def test_windows_that_contradict_the_name_or_the_configuration_are_refused(tmp_path: Path) -> None:
    checkpoint = meta_checkpoint(tmp_path, "torchvision", lambda: named_by("torchvision", "swin_v2_t"))
    with pytest.raises(UnsupportedCheckpointError, match="has windows of 8, but timm/swinv2_tiny_window16_256 says 16"):
        identify_swin(checkpoint, card_for(256), "timm/swinv2_tiny_window16_256")
    assert identify_swin(checkpoint, card_for(256), "timm/swinv2_tiny_window8_256").columns == 1000
    network = network_of("transformers 4", 1)
    network.config.window_size = 6
    describe(tmp_path, "transformers 4", network)
    with pytest.raises(UnsupportedCheckpointError, match=r"has windows of 3, but config\.json says 6"):
        identified(tmp_path, tensors_of("transformers 4", network), card_for(96))


def test_masks_of_v2_tell_the_input_size(tmp_path: Path) -> None:
    state = tensors_of("Microsoft", network_of("Microsoft", 2))
    with pytest.raises(UnsupportedCheckpointError, match=r"64 windows of 3 x 3 at stage 1, that is 96 x 96.*\[96, 96\]"):
        identified(tmp_path, state, card_for(192))


def test_names_of_two_releases_in_one_file_are_refused(tmp_path: Path) -> None:
    state = tensors_of("transformers 4", network_of("transformers 4", 1))
    query = "swin.encoder.layers.0.blocks.0.attention.{}.weight"
    state[query.format("q_proj")] = state[query.format("self.query")]
    with pytest.raises(UnsupportedCheckpointError, match="two tensors for one place"):
        identified(tmp_path, state, card_for(96))


@pytest.mark.parametrize("prefix", ["", "module.", "net.", "module.model."])
def test_prefixes_of_wrappers_leave_the_names_of_transformers_whole(tmp_path: Path, prefix: str) -> None:
    state = {prefix + name: tensor for name, tensor in tensors_of("transformers 4", network_of("transformers 4", 1)).items()}
    assert "layout of Hugging Face" in identified(tmp_path, state, card_for(96)).description


def test_bfloat16_is_computed_in_float32(tmp_path: Path) -> None:
    network = network_of("torchvision", 2)
    state = {
        name: tensor.bfloat16() if tensor.is_floating_point() else tensor
        for name, tensor in tensors_of("torchvision", network).items()
    }
    built = identified(tmp_path, state, card_for(96)).build()
    expected = dict(network.state_dict()) | {name: tensor.bfloat16().float() for name, tensor in network.named_parameters()}
    network.load_state_dict(expected)
    images = images_for(96, 96)
    torch.testing.assert_close(answers_of(built.original, images), answers_of(network, images), atol=0, rtol=0)


def test_heads_that_do_not_divide_the_channels_are_refused(tmp_path: Path) -> None:
    """Three heads on 32 channels."""
    state = tensors_of("torchvision", network_of("torchvision", 1))
    for name in [name for name in state if name.startswith("features.1.") and name.endswith("bias_table")]:
        state[name] = torch.zeros(25, 3)
    with pytest.raises(UnsupportedCheckpointError, match=r"\(3, 2, 4, 8\) heads do not divide 32 channels"):
        identified(tmp_path, state, card_for(96))


def test_a_missing_library_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = tensors_of("transformers 4", network_of("transformers 4", 1))
    path = save_in("bare", state, tmp_path)
    imported = backends.importlib.import_module

    def missing(name: str) -> Any:
        if name.startswith("transformers"):
            raise ModuleNotFoundError("No module named 'transformers'", name="transformers")
        return imported(name)

    monkeypatch.setattr(backends.importlib, "import_module", missing)
    with pytest.raises(BackendUnavailableError, match=r"transformers.* is not installed.*pip install 'fundus-rt\[convert\]'"):
        identify_architecture(read_checkpoint(path), card_for(96))


@pytest.mark.full
@pytest.mark.parametrize("letter", "TSBL")
def test_published_widths_and_depths(tmp_path: Path, letter: str) -> None:
    """v2 at 256 with windows of 8, at full width and depth, in torchvision."""
    network = network_of("torchvision", 2, img_size=256, window_size=8, **published(letter))
    architecture = identified(tmp_path, tensors_of("torchvision", network), card_for(256))
    assert architecture.description.startswith(f"SwinV2-{letter}, patch 4, window 8")
    built, images = architecture.build(), images_for(256, 256)
    expected = answers_of(network, images)
    torch.testing.assert_close(answers_of(built.for_export, images), expected, atol=1e-4, rtol=1e-4)
