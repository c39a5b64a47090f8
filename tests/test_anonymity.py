"""What a report that is sent to others must not hold: names of people, machines, folders and files of theirs."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("onnxruntime")

from fundus_rt.runtime.device_check.anonymity import anonymous, model_labels, names_in
from fundus_rt.runtime.device_check.selftest import FAILED, Outcome, Step, run_steps


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("/home/anna/clinic/patient_7/x.onnx is damaged", "… is damaged"),
        ("/usr/lib/libcuda.so.1: cannot open", "…/libcuda.so.1: cannot open"),
        ("C:\\Users\\anna\\x.png", "…"),
        ("GPU-12345678-1234-1234-1234-123456789abc", "…"),
        ("00:1a:2b:3c:4d:5e", "…"),
        ("anna-schmidt_v2.onnx cannot be opened", "….onnx cannot be opened"),
        ("batch 1,4/8 and/or 3 frames/s", "batch 1,4/8 and/or 3 frames/s"),
        ("see http://docs.nvidia.com/x/y", "see http://docs.nvidia.com/x/y"),
        ("see https://docs.nvidia.com/x/y.html for it", "see https://docs.nvidia.com/x/y.html for it"),
        ("/media/usb/Jane Doe/model.onnx does not exist", "… does not exist"),
        ("cannot read '/data/Praxis Dr Mueller/ages/joir.onnx'", "cannot read '…'"),
        ("Jane Doe 1960.onnx is damaged", "….onnx is damaged"),
        ("19600214.onnx is damaged", "….onnx is damaged"),
        ("C:\\Users\\Jane Doe\\m.onnx", "…"),
        ("/mnt/café müller/m.onnx", "…"),
        ("the folder /mnt/jane doe/pat is full", "the folder … is full"),
        ("file:///mnt/jane/m.onnx", "…"),
        ("file://server/jane doe/m.onnx is damaged", "… is damaged"),
        ("path=/mnt/jane/m.onnx", "…"),
        ("\\\\server\\share\\jane\\x.onnx", "…"),
        ("model file Jane Doe/pat/missing.onnx does not exist", "model file … does not exist"),
        ("model file jane/x.png does not exist", "model file … does not exist"),
        ("/mnt/O'Brien/x.jpg is damaged", "… is damaged"),
        ("model 1.onnx carries no card", "model 1.onnx carries no card"),
    ],
)
def test_names_stay_out(text: str, expected: str) -> None:
    assert anonymous({"a": [text]}) == {"a": [expected]}


@pytest.mark.parametrize(
    ("model", "text", "expected"),
    [
        ("Jane_Doe", "Jane_Doe carries no card", "model 1 carries no card"),
        ("jane doe 1960.onnx", "jane doe 1960.onnx is damaged", "model 1.onnx is damaged"),
        ("jane doe/pat/x.onnx", "model file jane doe/pat/x.onnx does not exist", "model file model 1.onnx does not exist"),
        ("jane doe/pat/x.onnx", "the folder JANE DOE is full", "the folder … is full"),
        ("C:\\Praxis Müller\\m.engine", "Praxis Müller: m.engine", "…: model 1.engine"),
        ("acquisition", "acquisition carries no card", "acquisition carries no card"),
        ("/bundled/acquisition.onnx", "no answers of acquisition", "no answers of acquisition"),
    ],
)
def test_a_model_that_was_given_is_told_by_its_number(model: str, text: str, expected: str) -> None:
    labels = model_labels([model], ["acquisition"])
    assert anonymous(text, names_in(labels, ["acquisition"])) == expected


def test_a_long_reason_is_cut_after_the_names_are_out_of_it(tmp_path: Path) -> None:
    """Wherever the cut falls: a half of a name would not be recognised."""
    given = "/media/usb/jane doe/pat seven/model.onnx"
    names = names_in(model_labels([given], []), [])
    for length in range(350, 410):
        reason = "x" * 700 + " " + given + " " + "y" * length
        outcome = Outcome(FAILED, reason)
        step = Step("long", lambda outcome=outcome: outcome)
        report = run_steps([step], {}, tmp_path / "r.json", lambda name: None, names)
        said = report["steps"][0]["reason"]
        assert len(said) < 700 and not set("japstv/") & set(said), "a letter of the path that its label does not have"


def test_home_and_host_stay_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/srv/anna-schmidt")
    monkeypatch.setattr("socket.gethostname", lambda: "eyeclinic-7")
    said = anonymous("on eyeclinic-7: /srv/anna-schmidt/.cache/fundus-rt is full")
    assert said == "on HOST: ~/… is full"
