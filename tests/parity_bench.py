"""A checkpoint, its shipped files and photographs for the tests of ``fundus-rt parity``, and the command itself."""

from __future__ import annotations

import dataclasses
import functools
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from fundus_rt.benchmarks import make_torch
from fundus_rt.benchmarks.conversion_case import IMAGENET
from fundus_rt.converters.shipping import embed_card
from fundus_rt.models.card import CARD_KEY, ModelCard, card_from_json
from fundus_rt.models.registry import EXAMPLE_FOLDER
from fundus_rt.runtime.cli import cli
from tests import make_checkpoints as make

torch = pytest.importorskip("torch")
safetensors = pytest.importorskip("safetensors.torch")
pytest.importorskip("onnxruntime")
pytest.importorskip("jinja2")
pytest.importorskip("matplotlib")
make.skip_without_timm()

SIZE = 64
PHOTOGRAPHS = ("chase_01L.jpg", "chase_03R.jpg", "haggstrom_right.jpg", "idrid_085.jpg", "idrid_165.jpg")
CASE = next(case for case in make_torch.CASES if case.architecture == "MobileNetV3-small")


@dataclasses.dataclass(frozen=True)
class Bench:
    """A checkpoint, its author's card, photographs."""

    folder: Path
    checkpoint: Path
    card: ModelCard
    photographs: Path

    def file(self, name: str, laterality: str = "mirror-left", **changes: Any) -> Path:
        """The shipped file, its own card differing from the author's in laterality or parts of its preprocessing.

        The graph is the right one's, with the colour order and normalisation of the author's card.
        """
        onnx = pytest.importorskip("onnx")
        right, path = self.folder / "right.onnx", self.folder / f"{name}.onnx"
        if not right.exists():
            convert(self.checkpoint, self.card, right, self.photographs)
        if not path.exists():
            model = onnx.load(str(right))
            shipped = card_from_json(next(entry.value for entry in model.metadata_props if entry.key == CARD_KEY))
            spec = dataclasses.replace(shipped.preprocessing, **changes)
            embed_card(model, dataclasses.replace(shipped, preprocessing=spec, laterality=laterality))
            onnx.save(model, str(path))
        return path

    def converted(self, name: str, **changes: Any) -> Path:
        """A file converted with another preprocessing in its graph."""
        path = self.folder / f"{name}.onnx"
        spec = dataclasses.replace(self.card.preprocessing, **changes)
        convert(self.checkpoint, dataclasses.replace(self.card, preprocessing=spec), path, self.photographs)
        return path

    def stated(self, name: str, card: ModelCard) -> Path:
        """A card as a file."""
        path = self.folder / f"{name}.json"
        path.write_text(card.to_json(), encoding="utf-8")
        return path


@functools.cache
def bench_in(folder: Path) -> Bench:
    """One for all modules of a process; the folder is made."""
    (folder / "net").mkdir(parents=True)
    card = dataclasses.replace(CASE.card(SIZE), name="parity-case", laterality="mirror-left")
    photographs = folder / "photographs"
    photographs.mkdir()
    for name in PHOTOGRAPHS:
        shutil.copy(EXAMPLE_FOLDER / name, photographs / name)
    return Bench(folder, CASE.make(folder / "net", SIZE, CASE.columns), card, photographs)


def convert(checkpoint: Path, card: ModelCard, target: Path, photographs: Path) -> None:
    stated = target.with_suffix(".card.json")
    stated.write_text(card.to_json(), encoding="utf-8")
    done = run("convert", checkpoint, "--card", stated, "-o", target, "--photographs", photographs)
    assert done.exit_code == 0, done.output


def run(*words: str | Path) -> Result:
    return CliRunner().invoke(cli, [str(word) for word in words], catch_exceptions=True)


def parity(bench: Bench, file: Path, *words: str | Path, images: Path | None = None, stages: int = 0) -> Result:
    given = () if "--list" in words else ("--images", images or bench.photographs)
    return run("parity", bench.checkpoint, file, "--stages", str(stages), *given, *words)


def rows_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "photographs.jsonl").read_text(encoding="utf-8").splitlines()]


def torch_answer(bench: Bench, name: str, mirror: bool) -> np.ndarray:
    """The checkpoint's own numbers by nothing but Pillow, NumPy and torch, on the square of the field of view."""
    from fundus_rt.runtime.field_of_view import find_field_of_view
    from fundus_rt.runtime.preprocess import crop_box

    picture = Image.open(bench.photographs / name).convert("RGB")
    frame = np.ascontiguousarray(np.asarray(picture)[..., ::-1])
    box = crop_box(find_field_of_view(frame), frame.shape, bench.card.preprocessing)
    square = picture.crop(box)
    if mirror:
        square = square.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    levels = np.asarray(square.resize((SIZE, SIZE), Image.Resampling.BILINEAR), np.float64)
    scale, mean, std = IMAGENET
    images = ((levels * scale - mean) / std).transpose(2, 0, 1)[None].astype(np.float32)
    with torch.inference_mode():
        return np.asarray(torch_network(bench.checkpoint)(torch.from_numpy(images))[0].numpy())


@functools.cache
def torch_network(checkpoint: Path) -> Any:
    """The checkpoint's network, by timm and safetensors alone."""
    network = make_torch.library_network("timm/mobilenetv3_small_100", SIZE, CASE.columns)
    network.load_state_dict(safetensors.load_file(checkpoint))
    return network.eval()


def passed_certificates(folder: Path) -> list[dict[str, Any]]:
    """Those that say so, of every file in the folder."""
    found = (json.loads(path.read_text(encoding="utf-8"))["certificates"] for path in folder.glob("*.parity.json"))
    return [one for certificates in found for one in certificates if one["verdict"] == "passed"]
