"""Not stable across hardware: an answer nearer to an operating point than answers were measured to differ."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnxruntime")
pytest.importorskip("onnx")

from fundus_rt.models.card import OutputSpec
from fundus_rt.models.certificate_store import certificate_path
from fundus_rt.models.certificates import certificates_from_file, file_from_certificates
from fundus_rt.models.references import reference_path, write_reference
from fundus_rt.runtime.certification import UNSTABLE
from fundus_rt.runtime.certify import certify
from fundus_rt.runtime.pipeline import Pipeline
from tests.make_models import SEX, half_mean_model, tiny_card, with_canary
from tests.references import sex_reference

Make = Callable[..., Path]
CONVERSION = 0.0004
"""Largest difference that the conversion is said to have measured."""


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Writes a network with an operating point and the differences that its conversion measured."""

    def made(threshold: float | None, converted: float | None = CONVERSION, output: OutputSpec = SEX) -> Path:
        card = with_canary(tiny_card("tiny-sex", "none", dataclasses.replace(output, threshold=threshold)))
        if converted is not None:
            measured = {"outputs": [{"name": output.name, "largest": converted}]}
            card = dataclasses.replace(card, provenance={"parity": measured})
        path = tmp_path / "placed.onnx"
        path.write_bytes(half_mean_model(card).SerializeToString())
        return path

    return made


@pytest.fixture
def photograph(examples: Path) -> bytes:
    return (examples / "idrid_005.jpg").read_bytes()


def answered(path: Path, photograph: bytes) -> tuple[float, list[str]]:
    """The probability of a real photograph, and what is said of its stability."""
    pipeline = Pipeline(path, check=False)
    result: Any = pipeline.finish([pipeline.prepare_bytes(photograph, {})])[0]
    pipeline.close()
    output = next(iter(result.outputs.values()))
    return output.value, [warning for warning in result.warnings if warning.startswith(UNSTABLE)]


@pytest.mark.parametrize(
    ("distance", "flagged"), [(-0.0003, True), (0.0003, True), (-0.0005, False), (0.0005, False), (0.1, False)]
)
def test_the_nearness_to_the_operating_point_decides(make: Make, photograph: bytes, distance: float, flagged: bool) -> None:
    probability = answered(make(0.5), photograph)[0]
    value, warnings = answered(make(probability + distance), photograph)
    assert value == probability
    assert bool(warnings) == flagged
    if flagged:
        assert "sex lies 0.0003 from its nearest operating point" in warnings[0] and "up to 0.0004 (probability)" in warnings[0]
        assert warnings[0].endswith("; refer")


def test_what_nobody_measured_is_not_said(make: Make, photograph: bytes) -> None:
    probability = answered(make(0.5), photograph)[0]
    assert answered(make(probability, converted=None), photograph)[1] == []


def test_a_regression_has_no_operating_point(make: Make, photograph: bytes, tiny_age: Path) -> None:
    age = OutputSpec("age", "regression", "years", 0.01, activation="none", columns=1)
    assert answered(make(None, 50.0, age), photograph)[1] == []


def test_the_larger_one_of_certificate_and_conversion_holds(make: Make, photograph: bytes) -> None:
    probability = answered(make(0.5), photograph)[0]
    path = make(probability - 0.002)
    write_reference(reference_path(path), sex_reference(path))
    certify(path)
    (issued,), _ = certificates_from_file(certificate_path(path))
    assert issued.agreement["sex"]["largest"] < 1e-5
    assert answered(path, photograph)[1] == []  # both are far below 0.002
    for largest, flagged in ((0.0021, True), (0.0019, False), (None, True)):  # None: an answer was not finite
        figures = {"sex": {**issued.agreement["sex"], "largest": largest}}
        certificate_path(path).write_text(file_from_certificates([dataclasses.replace(issued, agreement=figures)]))
        assert bool(answered(path, photograph)[1]) == flagged, largest


def test_a_certificate_that_counts_for_something_else_measured_nothing_here(make: Make, photograph: bytes) -> None:
    probability = answered(make(0.5), photograph)[0]
    path = make(probability - 0.002)
    write_reference(reference_path(path), sex_reference(path))
    certify(path)
    (issued,), _ = certificates_from_file(certificate_path(path))
    figures = {"sex": {**issued.agreement["sex"], "largest": 0.1}}
    other = dataclasses.replace(issued, agreement=figures, device="another processor")
    certificate_path(path).write_text(file_from_certificates([other]))
    assert answered(path, photograph)[1] == []


def test_it_stands_in_the_rows(make: Make, photograph: bytes, examples: Path, fundus_rt: Any) -> None:
    import json

    probability = answered(make(0.5), photograph)[0]
    words = ("infer", examples / "idrid_005.jpg", "--model", make(probability), "--no-check", "--format", "jsonl")
    row = json.loads(fundus_rt(*words).stdout)
    assert any(warning.startswith("not stable across hardware: sex lies ") for warning in row["warnings"])
    assert np.isclose(row["outputs"]["sex"]["value"], probability, atol=1e-6)
