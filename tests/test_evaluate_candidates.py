"""Which preprocessing the labels support: candidates on the shipped file itself, and a choice that does not fool itself."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import pytest
from click.testing import CliRunner, Result

from fundus_rt.benchmarks.evaluation import preprocessing_search
from fundus_rt.benchmarks.evaluation.candidate_answers import float_input_copy
from fundus_rt.benchmarks.evaluation.candidates import (
    FIELDS,
    NORMALISATIONS,
    Candidate,
    assumed_fields,
    card_candidate,
    fed_tensor,
    neighbours,
)
from fundus_rt.benchmarks.evaluation.estimates import Values
from fundus_rt.benchmarks.evaluation.preprocessing_search import CandidateAnswers, search_preprocessing
from fundus_rt.converters.parity import reference_tensor
from fundus_rt.models.card import PreprocessingSpec
from fundus_rt.models.errors import UsageError
from fundus_rt.models.registry import load_card
from fundus_rt.runtime.cli import cli
from fundus_rt.runtime.decode import decode
from fundus_rt.runtime.guarded_session import open_guarded
from fundus_rt.runtime.session import open_session
from tests.make_models import AGE, SEX, SIZE, half_mean_model, tiny_card, with_canary

pytest.importorskip("scipy")
pytest.importorskip("sklearn")


def test_what_the_network_sees_is_the_candidates_own_tensor() -> None:
    """Through the file's normalisation, whatever it is, comes what the candidate's author would have made."""
    levels = np.random.default_rng(0).integers(0, 256, (16, 16, 3)).astype(np.float32)
    for own in (load_card("joir-age").preprocessing, load_card("joir-sex-mobilenet").preprocessing):
        base = Candidate("the card's own", own, "none")
        for candidate in neighbours(base, FIELDS):
            fed = fed_tensor(levels, candidate.spec, own)
            seen = reference_tensor(fed[None], own)
            wanted = reference_tensor(levels[None], candidate.spec)
            scale = float(np.abs(wanted).max())
            np.testing.assert_allclose(seen, wanted, atol=2e-6 * scale, err_msg=candidate.name)


def test_candidates_of_the_published_cards() -> None:
    card = load_card("joir-age")
    assert assumed_fields(card) == ("crop_mode", "interpolation", "color_order", "normalisation")
    names = [candidate.name for candidate in neighbours(card_candidate(card), FIELDS)]
    assert {"crop none", "crop center", "red and blue swapped", "resize opencv-linear", "left eyes not mirrored"} <= set(names)
    assert "resize pillow-bilinear" not in names and "ImageNet mean and deviation" not in names  # the card's own
    assert {"values from -1 to 1", "values from 0 to 1", "BGR less Caffe's means"} <= set(names)
    assert len({candidate.identity for candidate in neighbours(card_candidate(card), FIELDS)}) == len(names)
    assert assumed_fields(load_card("acquisition")) == ()
    with pytest.raises(UsageError, match="no filter to try"):
        neighbours(card_candidate(card), ("filter",))


def test_the_float_copy_answers_as_the_file(tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    model = Path(__file__).parent.parent / "models" / "bundled" / "acquisition.onnx"
    card = float_input_copy(model, tmp_path / "copy.onnx")
    assert card.preprocessing.input_dtype == "float32"
    noise = np.random.default_rng(0).integers(0, 256, (3, 224, 224, 3)).astype(np.uint8)
    ours = open_guarded(tmp_path / "copy.onnx").run(noise.astype(np.float32))
    theirs = open_session(model).run(noise)
    for name in ("eye", "gradability", "fundus", "receipt"):
        np.testing.assert_array_equal(ours[name], theirs[name])


def pretended(errors: Sequence[float], seed: int, patients: int = 150) -> CandidateAnswers:
    """Ages answered with errors of these deviations, mostly shared, as between preprocessings of one network."""
    rng = np.random.default_rng(seed)
    truth = rng.uniform(20, 80, (patients, 1))
    shared = rng.normal(0, 3, (patients, 1))
    values = np.stack([truth + shared + rng.normal(0, error, (patients, 1)) for error in errors])
    return CandidateAnswers(values, np.full((len(errors), patients), -1), truth, np.arange(patients))


def test_the_better_candidate_is_found_and_gone_on_from(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preprocessing_search, "RESAMPLES", 1500)
    own = card_candidate(load_card("joir-age"))
    asked: list[list[str]] = []

    def ask(tried: Sequence[Candidate]) -> CandidateAnswers:
        """The author resized with OpenCV's area filter and swapped colours: each of the two mends a half."""
        asked.append([candidate.name for candidate in tried])
        wrong = [(c.spec.interpolation != "opencv-area") + (c.spec.color_order != "BGR") for c in tried]
        return pretended([0.2 + 2.0 * count for count in wrong], len(asked))

    found = search_preprocessing(own, ("interpolation", "color_order"), AGE, ask)
    assert found.chosen.spec.interpolation == "opencv-area" and found.chosen.spec.color_order == "BGR"
    assert found.sure and not found.rivals and "support another preprocessing than the card's" in found.sentence
    assert len(found.rounds) == 3 and asked[0][0] == "the card's own"


def test_where_labels_cannot_tell_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preprocessing_search, "RESAMPLES", 1500)
    own = card_candidate(load_card("joir-age"))

    def ask(tried: Sequence[Candidate]) -> CandidateAnswers:
        return pretended([4.0 if c.spec.color_order == "BGR" else 0.2 for c in tried], 1)

    found = search_preprocessing(own, ("interpolation", "color_order"), AGE, ask)
    assert found.chosen is own and not found.sure
    assert "cannot tell the card's own preprocessing from resize pillow-bicubic" in found.sentence
    assert "red and blue swapped" not in found.rivals and "1 other(s) are surely worse" in found.sentence
    alone = search_preprocessing(own, ("color_order",), AGE, ask)
    assert alone.sure and "support the card's own preprocessing" in alone.sentence
    few = search_preprocessing(own, ("color_order",), AGE, lambda tried: pretended([0.2, 9.0], 1, patients=12))
    assert not few.sure and "12 patients are too few" in few.sentence


def test_looking_at_many_candidates_makes_none_look_good(monkeypatch: pytest.MonkeyPatch) -> None:
    """13 candidates that are all alike, 30 times: without the correction about a third of the searches would find one better."""
    monkeypatch.setattr(preprocessing_search, "RESAMPLES", 700)
    own = card_candidate(load_card("joir-age"))
    assert len(neighbours(own, FIELDS)) == 13
    wrong = sum(
        search_preprocessing(own, FIELDS, AGE, lambda tried, s=seed: pretended([1.0] * len(tried), s, 60)).sure
        for seed in range(30)
    )
    assert wrong <= 4  # of 30 at 5 %: more comes up once in 60


def answered_classes(scores: Values, positives: int) -> CandidateAnswers:
    """Two classes by scores [candidates, N]; the first photographs are the positive ones, each of a patient of its own."""
    truth = (np.arange(scores.shape[1]) < positives).astype(np.float64)[:, None]
    values = np.stack([1 / (1 + np.exp(scores)), 1 / (1 + np.exp(-scores))], axis=2)
    return CandidateAnswers(values, np.zeros(scores.shape, np.int64), truth, np.arange(scores.shape[1]))


@pytest.mark.parametrize(("positives", "sure"), [(3, False), (19, False), (181, False), (20, True), (100, True)])
def test_the_rarer_class_decides_whether_there_are_enough(positives: int, sure: bool) -> None:
    """With 3 positive of 200 a test of equal candidates erred in 16 % of repetitions, so that nothing is called better there."""
    own = card_candidate(load_card("joir-age"))
    noise = np.random.default_rng(0).normal(size=(1, 200))

    def ask(tried: Sequence[Candidate]) -> CandidateAnswers:
        apart = np.array([[3.0 if c.spec.color_order != own.spec.color_order else 0.2] for c in tried])
        return answered_classes(noise + apart * (np.arange(200) < positives), positives)

    found = search_preprocessing(own, ("color_order",), SEX, ask)
    assert (found.chosen.name != own.name) == sure and found.sure == sure
    if not sure:
        assert f"{min(positives, 200 - positives)} patients of the rarer class are too few" in found.sentence


def test_equal_candidates_are_seldom_called_better_at_the_least_number() -> None:
    """Nine equal candidates, 20 positive of 200: at most one in twenty repetitions may err; 6 or more of 25 have p < 0.002."""
    own = card_candidate(load_card("joir-age"))
    erred = 0
    for seed in range(25):
        rng = np.random.default_rng(seed)
        shared = rng.normal(size=200) + (np.arange(200) < preprocessing_search.FEWEST)

        def ask(tried: Sequence[Candidate], shared: Values = shared, rng: np.random.Generator = rng) -> CandidateAnswers:
            return answered_classes(shared + 0.6 * rng.normal(size=(len(tried), 200)), preprocessing_search.FEWEST)

        erred += search_preprocessing(own, FIELDS, SEX, ask).chosen.name != own.name
    assert erred < 6


def run(*arguments: object) -> Result:
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])


def photographs(folder: Path, examples: Path) -> list[Path]:
    """33 small photographs: the examples in three brightnesses, none twice."""
    found = []
    for path in sorted(examples.glob("*.jpg")):
        frame = decode(path.read_bytes()).frame
        small = cv2.resize(frame, (300, round(300 * frame.shape[0] / frame.shape[1])), interpolation=cv2.INTER_AREA)
        for gamma in (0.8, 1.0, 1.25):
            found.append(folder / f"{path.stem.split('_')[0]}{len(found)}.png")
            cv2.imwrite(str(found[-1]), (255 * (small / 255.0) ** gamma).astype(np.uint8))
    return found


def test_the_file_itself_shows_how_its_author_cropped(examples: Path, tmp_path: Path) -> None:
    """The card assumes the field of view; the truth is the network's own answer to the whole picture, and a little noise."""
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("jinja2")
    spec = PreprocessingSpec(
        (SIZE, SIZE), "field-of-view", "pillow-bilinear", "RGB", 1.0, (0, 0, 0), (1, 1, 1), assumed=("crop_mode",)
    )
    card = dataclasses.replace(with_canary(tiny_card("tiny-age", "none", AGE)), preprocessing=spec)
    onnx.save(half_mean_model(card), str(tmp_path / "assumed.onnx"))
    rng = np.random.default_rng(0)
    lines = ["file,age"]
    for path in photographs(tmp_path, examples):
        whole = cv2.resize(cv2.imread(str(path)), (256, 256), interpolation=cv2.INTER_AREA)
        lines.append(f"{path.name},{whole[:, :128, 1].mean() / 2.55 + rng.normal(0, 0.3):.2f}")
    labels = tmp_path / "labels.csv"
    labels.write_text("\n".join(lines) + "\n")
    out = tmp_path / "report"
    call = ("evaluate", tmp_path / "assumed.onnx", "--labels", labels, "--report", out, "--no-check")
    done = run(*call)
    assert done.exit_code == 0, done.output
    assert "preprocessing: The labels support another preprocessing than the card's: crop none" in done.output
    found = json.loads((out / "report.json").read_text())["figures"]["preprocessing"]
    assert found["chosen"] == "crop none" and found["sure"] and found["preprocessing"]["crop_mode"] == "none"
    assert found["rounds"][0]["base_metric"] > 1.0 and found["photographs"] == 33
    assert not (out / "float-input.onnx").exists()
    before = (out / "candidates-1.jsonl").read_bytes()
    again = run(*call, "--resume")
    assert again.exit_code == 0 and (out / "candidates-1.jsonl").read_bytes() == before
    chosen = next(line for line in done.output.splitlines() if line.startswith("preprocessing: The"))
    assert chosen in again.output.splitlines()
    assert len(NORMALISATIONS) == 4
