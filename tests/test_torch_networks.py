"""Torch networks other than Swin: from every published form to a file that answers as the framework does, or a refusal."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fundus_rt.benchmarks import make_torch
from fundus_rt.benchmarks.conversion_case import ConversionCase
from fundus_rt.converters.architecture import Architecture, identify_architecture
from fundus_rt.converters.checkpoint import Checkpoint, read_checkpoint
from fundus_rt.converters.conversion import ConversionReport, onnx_from_checkpoint
from fundus_rt.converters.parity import reference_tensor
from fundus_rt.converters.pytorch.candidates import looks_like_segmentation, nearest_candidates
from fundus_rt.models import ModelCard
from fundus_rt.models.errors import ParityError, UnsupportedCheckpointError, UntrustedCheckpointError, UsageError
from tests import make_checkpoints as make
from tests.conftest import DATA

torch = pytest.importorskip("torch")
onnxruntime = pytest.importorskip("onnxruntime")
make.skip_without_timm()

WEIGHTS = DATA / "weights"
SLOW = ("resnet-50", "resnet-34", "inception-v3", "densenet-121", "efficientnet-b0")
CASES = [pytest.param(c, id=c.name, marks=[pytest.mark.full] if c.name.startswith(SLOW) else []) for c in make_torch.CASES]
SMALL = next(case for case in make_torch.CASES if case.architecture == "own network")
NETWORKS = "tests.published_networks"


def open_shipped(path: Path) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
    """ONNX Runtime with nothing of this package between."""
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return lambda batch: dict(zip(names, session.run(None, {"frames": batch}), strict=True))


def card_for(size: int, columns: int, *families: str, **changes: Any) -> ModelCard:
    """A card for these families, in the shape of a benchmark's case."""
    return dataclasses.replace(SMALL, families=families or ("none",), columns=columns, **changes).card(size)


def convert(path: Path, card: ModelCard, named: str | None = None, trust: bool = False) -> ConversionReport:
    frames = make.photographs(card.preprocessing.input_size[0], 4)
    target = path.with_suffix(".onnx")
    return onnx_from_checkpoint(
        path, card, target, tensors=frames, open_shipped=open_shipped, architecture=named, trust_pickle=trust
    )


def refused(path: Path, card: ModelCard, named: str | None = None, trust: bool = False) -> str:
    """The message with which a file is refused; nothing may have been written."""
    with pytest.raises(UnsupportedCheckpointError) as caught:
        convert(path, card, named, trust)
    assert not path.with_suffix(".onnx").exists()
    return str(caught.value)


def identified(path: Path, card: ModelCard) -> tuple[Checkpoint, Architecture]:
    """The file read and accounted for, without the export."""
    checkpoint = read_checkpoint(path)
    return checkpoint, identify_architecture(checkpoint, card)


def saved(folder: Path, state: dict[str, Any]) -> Path:
    return make.save_torch(folder / "x.pth", state)


def resnet(outputs: int = 5, head: bool = False, seed: int = 0) -> Any:
    torch.manual_seed(seed)
    return make_torch.enliven(make_torch.resnet("resnet18", outputs, head), 64)


@pytest.fixture(scope="module")
def plain() -> dict[str, Any]:
    """State of a lively ResNet-18 with five outputs."""
    return dict(resnet().state_dict())


def assert_answers_as(network: Any, report: ConversionReport, size: int) -> None:
    """The written file against the network asked directly, on other pictures than those of the conversion."""
    frames = make.photographs(size, 4, seed=11)
    images = reference_tensor(frames, report.card.preprocessing).transpose(0, 3, 1, 2)
    with torch.inference_mode():
        expected = network.eval()(torch.from_numpy(images.copy())).numpy()
    answered = open_shipped(report.output)(frames)[report.card.outputs[0].name]
    assert np.ptp(expected, axis=0).max() > 0.1
    np.testing.assert_allclose(answered, expected, atol=2e-4 * np.ptp(expected))


def assert_loaded_as(network: Any, architecture: Architecture, size: int) -> None:
    """The network as it is built from the file against the one that the file is of, before any export."""
    images = make_torch.images_of(size, 4, seed=12)
    with torch.inference_mode():
        expected = network.eval()(images).numpy()
    assert np.ptp(expected, axis=0).max() > 0.1
    np.testing.assert_allclose(architecture.build().answers(images.numpy().transpose(0, 2, 3, 1)), expected, atol=1e-5)


@pytest.mark.parametrize("case", CASES)
def test_every_case_converts_to_the_last_weight(tmp_path: Path, case: ConversionCase) -> None:
    path = case.make(tmp_path, case.size, case.columns)
    if case.trust:
        with pytest.raises(UntrustedCheckpointError, match=r"torchvision\.models\.resnet\.ResNet|DataParallel"):
            convert(path, case.card(case.size), case.named)
    report = convert(path, case.card(case.size), case.named, case.trust)
    account, difference = report.architecture.account, report.differences[0]
    assert account.used_parameters == account.network_parameters
    assert difference.spread > 0.05
    assert difference.largest < 1e-4 * max(1.0, difference.spread)
    assert 0 < report.nodes < 500


@pytest.mark.full
@pytest.mark.parametrize("case", make_torch.CASES, ids=lambda case: case.name)
def test_every_case_converts_at_full_size(tmp_path: Path, case: ConversionCase) -> None:
    report = convert(case.make(tmp_path, case.full_size, case.columns), case.card(case.full_size), case.named, case.trust)
    assert report.differences[0].largest < 1e-4 * max(1.0, report.differences[0].spread)


def test_the_head_of_image_fundus_is_rebuilt_as_it_was(tmp_path: Path) -> None:
    network = resnet(3, head=True)
    report = convert(saved(tmp_path, network.state_dict()), card_for(64, 3, "resnet-18"))
    assert_answers_as(network, report, 64)
    assert any("ReLU" in warning for warning in report.architecture.warnings)
    assert any("3 x 3 convolution" in warning for warning in report.architecture.warnings)


def test_a_whole_module_answers_itself_whatever_its_forward_pass_is(tmp_path: Path) -> None:
    network = resnet()
    network.relu = torch.nn.Hardswish()  # no tensor shows it
    path = make.save_torch(tmp_path / "x.pth", {"model": torch.nn.DataParallel(network), "epoch": 3})
    report = convert(path, card_for(64, 5, "resnet-18"), trust=True)
    assert_answers_as(network, report, 64)
    assert any("DataParallel" in note for note in report.notes)


def test_a_swin_whose_forward_pass_was_changed_is_not_converted_as_if_it_were_not(tmp_path: Path) -> None:
    network = make.swin_network(5)
    network.layers[0].blocks[0].mlp.act = torch.nn.Tanh()
    path = make.save_torch(tmp_path / "x.pth", network)
    with pytest.raises(ParityError, match="beyond the tolerance"):
        convert(path, card_for(96, 5, "swin"), trust=True)


@pytest.mark.parametrize(
    ("head", "expected"),
    [
        (lambda nn: nn.Sequential(nn.Linear(512, 32), nn.GELU(), nn.Linear(32, 5)), r"head of its own \(fc\.0\.weight"),
        (lambda nn: nn.Sequential(nn.Linear(512, 5), nn.Sigmoid()), "head of its own"),
        (lambda nn: nn.Sequential(nn.BatchNorm1d(512), nn.Linear(512, 5)), "head of its own"),
        (lambda nn: nn.Identity(), "without a head"),
    ],
)
def test_heads_that_the_tensors_do_not_explain_are_refused(tmp_path: Path, head: Any, expected: str) -> None:
    network = make_torch.resnet("resnet18", 5)
    network.fc = head(torch.nn)
    message = refused(saved(tmp_path, network.state_dict()), card_for(64, 5, "resnet-18"))
    assert re.search(expected, message), message
    assert "without a head" in expected or "--architecture package.module:factory" in message


def test_dropout_before_the_last_layer_changes_nothing_and_is_said(tmp_path: Path) -> None:
    network = resnet()
    network.fc = torch.nn.Sequential(torch.nn.Dropout(0.5), network.fc)
    _, architecture = identified(saved(tmp_path, network.state_dict()), card_for(64, 5, "resnet-18"))
    assert_loaded_as(network, architecture, 64)
    assert any("fc.0" in warning for warning in architecture.warnings)


def test_counters_may_be_missing_and_what_is_left_over_or_missing_is_not(tmp_path: Path, plain: dict[str, Any]) -> None:
    card = card_for(64, 5, "resnet-18")
    old = {name: tensor for name, tensor in plain.items() if not name.endswith("num_batches_tracked")}
    architecture = identified(saved(tmp_path, old), card)[1]
    assert any("20 counters num_batches_tracked are not in the file" in note for note in architecture.notes)
    assert architecture.account.used_tensors == architecture.account.file_tensors == len(old)
    assert "1 left over: layer1.0.se.weight" in refused(saved(tmp_path, plain | {"layer1.0.se.weight": torch.ones(4, 4)}), card)
    short = {name: tensor for name, tensor in plain.items() if name != "layer4.1.bn2.running_var"}
    message = refused(saved(tmp_path, short), card)
    assert "1 missing in the file: layer4.1.bn2.running_var [512]" in message and "99.99 % of" in message
    queue = {f"module.{name}": tensor for name, tensor in plain.items()} | {"module.queue": torch.ones(512, 8)}
    assert "1 left over: queue [512, 8]" in refused(saved(tmp_path, queue), card)


def test_numbers_that_are_no_weights_are_refused(tmp_path: Path, plain: dict[str, Any]) -> None:
    card = card_for(64, 5, "resnet-18")
    whole = plain | {"layer1.0.conv1.weight": torch.ones(64, 64, 3, 3, dtype=torch.int8)}
    assert "layer1.0.conv1.weight (int8)" in refused(saved(tmp_path, whole), card)
    broken = plain | {"conv1.weight": torch.full((64, 3, 7, 7), float("nan"))}
    assert "conv1.weight [64, 3, 7, 7] holds NaN" in refused(saved(tmp_path, broken), card)


def test_half_precision_is_computed_in_single_and_said(tmp_path: Path, plain: dict[str, Any]) -> None:
    half = {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in plain.items()}
    checkpoint, architecture = identified(saved(tmp_path, half), card_for(64, 5, "resnet-18"))
    assert any("stored as float16" in note for note in checkpoint.notes)
    answer = architecture.build().answers(np.ones((1, 64, 64, 3), np.float32))
    assert answer.dtype == np.float32 and np.isfinite(answer).all()


def test_another_depth_than_the_cards_is_refused(tmp_path: Path, plain: dict[str, Any]) -> None:
    assert "holds ResNet-18" in refused(saved(tmp_path, plain), card_for(64, 5, "resnet-50"))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("timm/resnet18x", r"has no architecture 'resnet18x'; the closest names are resnet18"),
        ("timm/resnet18.no_tag", "Invalid pretrained tag"),
        ("timm/hf-hub:someone/resnet18", "has no architecture"),
        ("torchvision/resnet18x", r"no classification network 'resnet18x'; the closest names are resnet18"),
        ("resnet18", r"expected timm/NAME"),
        (f"{NETWORKS}:", r"expected timm/NAME"),
        ("no_such_package.networks:make", "there is no module 'no_such_package.networks'"),
        (f"{NETWORKS}:resnet2", "has no 'resnet2'; the closest names are resnet20"),
        (f"{NETWORKS}:NO_FUNCTION", "is a int, which cannot be called"),
        (f"{NETWORKS}:needs_arguments", "called without arguments"),
        (f"{NETWORKS}:makes_no_network", r"returned a dict, expected a torch\.nn\.Module"),
    ],
)
def test_names_that_name_nothing_are_usage_errors(tmp_path: Path, plain: dict[str, Any], name: str, expected: str) -> None:
    with pytest.raises(UsageError, match=expected):
        convert(saved(tmp_path, plain), card_for(64, 5), name)


@pytest.mark.parametrize(
    ("form", "expected"),
    [
        ("map", r"a map \[2, 4, 62, 62\], four dimensions.*pooling.*segmentation"),
        ("pair", r"a tuple of 2 \(\[2, 4\], \[2, 4, 62, 62\]\)"),
        ("entries", "a dict of logits, features"),
        ("flat", r"a tensor \[2\]; expected two dimensions"),
        ("whole_numbers", "a class is chosen inside"),
        ("by_chance", "differently each time"),
    ],
)
@pytest.mark.parametrize("whole", [False, True], ids=["factory", "module"])
def test_answers_that_are_no_rows_are_refused_with_the_reason(tmp_path: Path, form: str, expected: str, whole: bool) -> None:
    from tests import published_networks

    network = getattr(published_networks, f"answers_{form}" if form != "by_chance" else "answers_by_chance")()
    path = make.save_torch(tmp_path / "x.pth", network if whole else network.state_dict())
    named = None if whole else f"{NETWORKS}:answers_{form}"
    message = refused(path, card_for(64, 4), named, trust=whole)
    assert re.search(expected, message), message


def test_a_pickled_module_of_an_own_class_is_accepted_by_a_card_that_names_the_class(tmp_path: Path) -> None:
    from tests import published_networks

    torch.manual_seed(2)
    network = published_networks.answers_rows()
    path = make.save_torch(tmp_path / "x.pth", network)
    assert "tests.published_networks:Answers" in refused(path, card_for(64, 4, "resnet-18"), trust=True)
    card = card_for(64, 4, "tests.published_networks:Answers")
    card = dataclasses.replace(card, outputs=(dataclasses.replace(card.outputs[0], tolerance=0.1),))
    report = convert(path, card, trust=True)
    assert report.architecture.account.network_parameters == sum(p.numel() for p in network.parameters())


def test_timm_s_other_names_are_used_only_where_no_number_changes(tmp_path: Path) -> None:
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    network = make_torch.enliven(timm.create_model("convnext_atto", num_classes=5), 64)
    published = {}  # the names of the authors' own repository, facebookresearch/ConvNeXt
    for name, tensor in network.state_dict().items():
        name = name.replace("stem.", "downsample_layers.0.").replace("head.norm.", "norm.").replace("head.fc.", "head.")
        parts = name.split(".")
        if parts[0] == "stages" and parts[2] == "downsample":
            name = ".".join(["downsample_layers", *parts[1:2], *parts[3:]])
        name = name.replace(".blocks.", ".").replace("conv_dw", "dwconv").replace("mlp.fc1", "pwconv1")
        published[name.replace("mlp.fc2", "pwconv2")] = tensor
    assert "stages.0.0.dwconv.weight" in published
    _, architecture = identified(saved(tmp_path, published), card_for(64, 5, "timm/convnext_atto"))
    assert any("timm's own rules" in note for note in architecture.notes)
    assert_loaded_as(network, architecture, 64)
    grown = published | {"stages.0.0.extra": torch.ones(3)}
    assert "left over" in refused(saved(tmp_path, grown), card_for(64, 5, "timm/convnext_atto"))


def test_a_transformer_for_another_input_size_is_refused_with_its_own(tmp_path: Path) -> None:
    timm = pytest.importorskip("timm")
    state = timm.create_model("vit_tiny_patch16_224", num_classes=5, img_size=64).state_dict()
    message = refused(saved(tmp_path, state), card_for(96, 5, "timm/vit_tiny_patch16_224"))
    assert "64 x 64 pixels (17 positions)" in message and "[64, 64]" in message


def test_a_swin_that_is_named_is_held_against_its_name(tmp_path: Path) -> None:
    path = saved(tmp_path, make_torch.library_network("timm/swin_tiny_patch4_window7_224", 224, 5).state_dict())
    named = "timm/swin_tiny_patch4_window7_224"
    assert identified(path, card_for(224, 5, named))[1].family == named
    message = refused(path, card_for(224, 5, "timm/swin_small_patch4_window7_224"))
    assert "holds Swin-T" in message and "has 48,841,103" in message


def test_a_replaced_head_of_a_library_s_network_is_refused(tmp_path: Path) -> None:
    network = make_torch.library_network("timm/mobilenetv3_small_050", 64, 5)
    network.classifier = torch.nn.Sequential(torch.nn.Linear(1024, 8), torch.nn.ReLU(), torch.nn.Linear(8, 5))
    message = refused(saved(tmp_path, network.state_dict()), card_for(64, 5, "timm/mobilenetv3_small_050"))
    assert "no tensor classifier.weight" in message and "classifier.2.weight [5, 8]" in message


def test_what_the_architecture_expects_and_what_the_tensors_cannot_tell_is_warned_of(tmp_path: Path) -> None:
    network = make_torch.library_network("timm/tf_mobilenetv3_small_075", 64, 5)
    path = saved(tmp_path, network.state_dict())
    text = " ".join(identified(path, card_for(64, 5, "timm/tf_mobilenetv3_small_075"))[1].warnings)
    assert "mobilenetv3_small_075 may have the same tensors" in text
    assert "trained with mean [0.5, 0.5, 0.5] and std [0.5, 0.5, 0.5]" in text and "mean [0.485, 0.456, 0.406]" in text


@pytest.mark.parametrize(
    ("named", "prefix", "expected"),
    [
        ("timm/densenet169", "", "timm/densenet169 (100 % of its parameters"),
        ("timm/efficientnet_b0", "backbone.", "timm/efficientnet_b0 and timm/tf_efficientnet_b0 have the same tensors"),
        ("torchvision/mobilenet_v3_small", "", "torchvision/mobilenet_v3_small (100 %"),
        ("timm/convnext_small", "", "timm/convnext_small (100 % of its parameters, 99."),
        ("timm/mobilenetv2_050", "", "has the names of timm/mobilenetv2_100"),
        ("timm/resnet50d", "", "nearest, heads left out: timm/resnet50d (100 % of its parameters"),
        ("timm/regnetx_002", "", "shares not even 5 %"),
    ],
)
def test_an_unknown_file_is_told_its_nearest_networks(named: str, prefix: str, expected: str) -> None:
    with torch.device("meta"):
        network = make_torch.library_network(named, 64, 5)
    shapes = {prefix + name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    if prefix:
        shapes["head.0.weight"] = (5, 64)
    found = nearest_candidates(shapes)
    assert expected in found and "--architecture" in found


def test_the_residual_network_of_cifar_is_converted_by_its_factory(tmp_path: Path) -> None:
    from tests import published_networks

    path = tmp_path / "x.th"
    path.write_bytes((WEIGHTS / "resnet20_cifar10.th").read_bytes())
    report = convert(path, card_for(32, 10), f"{NETWORKS}:resnet20")
    assert (
        report.architecture.account.used_parameters == 269_722 + 2 * 688
    )  # the paper's 0.27 million, and BatchNorm's statistics
    network = published_networks.resnet20()
    state = torch.load(path, map_location="cpu", weights_only=True)["state_dict"]
    network.load_state_dict({name.removeprefix("module."): tensor for name, tensor in state.items()}, strict=True)
    assert_answers_as(network, report, 32)
    assert any("19 counters" in note for note in report.architecture.notes)
    report.output.unlink()
    assert "names of timm/resnet34" in refused(path, card_for(32, 10, "resnet-18"))


def test_a_network_for_vessels_is_called_one_for_segmentation(tmp_path: Path) -> None:
    path = tmp_path / "x.pth"
    path.write_bytes((WEIGHTS / "lwnet_wnet_drive.pth").read_bytes())
    message = refused(path, card_for(64, 1, "resnet-18"))
    assert "a segmentation network" in message and "every pixel" in message
    assert not looks_like_segmentation({"up.weight": (3, 3, 1, 1), "fc.weight": (5, 3)})


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("torch_ckpt_dict_zip_retina_disc_cup_automorph_28.pth", "a segmentation network"),
        ("torch_state_dict_legacy_retina_vessel_M2UNetDRIVE.pth", "a segmentation network"),
        ("torch_state_dict_dataparallel_MiniFASNetV2.pth", "a network that is not known"),
    ],
)
def test_other_published_files_are_refused_with_what_they_are(tmp_path: Path, name: str, expected: str) -> None:
    folder = os.environ.get("FUNDUS_RT_WEIGHTS", "")
    if not folder or not (Path(folder) / name).is_file():
        pytest.skip(f"{name} is not in the folder that FUNDUS_RT_WEIGHTS names")
    path = tmp_path / "x.pth"
    path.write_bytes((Path(folder) / name).read_bytes())
    assert expected in refused(path, card_for(80, 3, "resnet-18"))
