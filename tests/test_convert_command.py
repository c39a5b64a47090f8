"""``fundus-rt convert`` as a user types it: a checkpoint, a card, real photographs, one file."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from fundus_rt.models.errors import FundusRtError, ParityError
from fundus_rt.models.registry import EXAMPLE_FOLDER, load_card
from fundus_rt.runtime.cli import cli
from tests import make_checkpoints as make

torch = pytest.importorskip("torch")
pytest.importorskip("onnxruntime")
make.skip_without_timm()

SIZE = 96


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small Swin as Microsoft's code saves it, its card, and two photographs."""
    folder = tmp_path_factory.mktemp("convert")
    state = make.swin_microsoft_layout(make.swin_network())
    make.save_torch(folder / "age.pth", make.training_container(state))
    card = load_card("joir-age")
    spec = dataclasses.replace(card.preprocessing, input_size=(SIZE, SIZE), crop_mode="none")
    output = dataclasses.replace(card.outputs[0], tolerance=1e-3)
    card = dataclasses.replace(card, preprocessing=spec, outputs=(output,))
    (folder / "card.json").write_text(card.to_json(), encoding="utf-8")
    (folder / "photographs").mkdir()
    for name in ("chase_01L.jpg", "chase_03R.jpg", "haggstrom_right.jpg"):
        shutil.copy(EXAMPLE_FOLDER / name, folder / "photographs" / name)
    return folder


def run(*words: str | Path) -> Result:
    return CliRunner().invoke(cli, [str(word) for word in words], catch_exceptions=True)


def convert(folder: Path, *words: str | Path) -> Result:
    return run(
        "convert", folder / "age.pth", "--card", folder / "card.json", "--photographs", folder / "photographs",
        "-o", folder / "age.onnx", *words,
    )  # fmt: skip


def test_a_standardised_age_comes_out_in_years(folder: Path, tmp_path: Path) -> None:
    """Against torch on Pillow's own pixels: 48 years and 15 years of deviation, whatever the runtime does in between."""
    target = tmp_path / "age.onnx"
    done = convert(folder, "--standardised", "48,15", "-o", target)
    assert done.exit_code == 0, done.output
    assert "times 15, plus 48" in done.stdout
    assert "preprocessing against the original's (Pillow and torchvision" in done.stdout
    picture = Image.open(EXAMPLE_FOLDER / "haggstrom_right.jpg").convert("RGB").resize((SIZE, SIZE), Image.Resampling.BILINEAR)
    levels = np.asarray(picture, np.float64).transpose(2, 0, 1)[None] / 255
    spec = load_card("joir-age").preprocessing
    images = (levels - np.reshape(spec.mean, (1, 3, 1, 1))) / np.reshape(spec.std, (1, 3, 1, 1))
    with torch.inference_mode():
        expected = 48 + 15 * float(make.swin_network()(torch.from_numpy(images.astype(np.float32)))[0, 0])
    answered = run("infer", EXAMPLE_FOLDER / "haggstrom_right.jpg", "--model", target, "--eye", "right", "--format", "jsonl")
    assert answered.exit_code == 0, answered.output
    assert json.loads(answered.stdout)["outputs"]["age"]["value"] == pytest.approx(expected, abs=1e-3)


def test_an_age_around_zero_is_doubted(folder: Path) -> None:
    done = convert(folder)
    assert done.exit_code == 0, done.output
    assert "--standardised MEAN,DEVIATION" in done.stdout


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--standardised", "48"), "expected two numbers"),
        (("--standardised", "48,0"), "deviation above 0"),
        (("--standardised", "nan,2"), "finite"),
        (("--architecture", "resnet50"), "package.module:factory|timm/"),
        (("--photographs", "nowhere"), "nowhere"),
        (("-o", "age.pt"), "does not end in .onnx"),
    ],
)
def test_calls_that_cannot_be_answered_say_what_was_expected(folder: Path, words: tuple[str, ...], message: str) -> None:
    done = convert(folder, *words)
    assert isinstance(done.exception, FundusRtError)
    assert not isinstance(done.exception, ParityError)
    with pytest.raises(FundusRtError, match=message):
        raise done.exception


def test_a_checkpoint_that_is_not_there_is_named(folder: Path) -> None:
    done = run("convert", folder / "none.pth", "--card", folder / "card.json")
    assert "none.pth does not exist" in str(done.exception)


def test_a_standardised_target_is_no_matter_of_a_classifier(folder: Path) -> None:
    done = run("convert", folder / "age.pth", "--card", "joir-sex-mobilenet", "--labels", "assumed", "--standardised", "48,15")
    assert "has none; leave it out" in str(done.exception)


@pytest.mark.parametrize("card", ["joir-sex-mobilenet", "diaret-resnet-50", "image-fundus-abnormality"])
def test_an_order_of_classes_that_was_not_published_has_to_be_said(folder: Path, card: str) -> None:
    done = run("convert", folder / "age.pth", "--card", card)
    assert f"--labels '{','.join(load_card(card).outputs[0].labels)}'" in str(done.exception)
    accepted = run("convert", folder / "age.pth", "--card", card, "--labels", "assumed", "--photographs", folder / "photographs")
    height = load_card(card).preprocessing.input_size[0]
    assert f"96 x 96 pixels, but the card {card!r} prepares {height} x {height}" in str(accepted.exception)


def test_sixteen_bits_and_dicom_are_handed_over_as_they_were_decoded(folder: Path, tmp_path: Path) -> None:
    """A 16-bit TIFF means other things to other libraries: the original's side gets the runtime's frame, and says nothing."""
    levels = np.asarray(Image.open(EXAMPLE_FOLDER / "haggstrom_right.jpg").convert("L").resize((300, 280)))
    Image.fromarray(levels.astype(np.uint16) * 257).save(tmp_path / "deep.tif")
    shutil.copy(EXAMPLE_FOLDER / "chase_01L.jpg", tmp_path)
    done = convert(folder, "--photographs", tmp_path)
    assert done.exit_code == 0, done.output
    assert "largest difference" in done.stdout
