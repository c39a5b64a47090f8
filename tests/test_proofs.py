"""The table of proofs: one real small network through all of it, the lower precisions, and the sentences of the table."""

from __future__ import annotations

import csv
import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fundus_rt.benchmarks import proofs
from fundus_rt.benchmarks.make_torch import enliven, resnet
from fundus_rt.benchmarks.proof_answers import compared
from fundus_rt.benchmarks.proof_case import graders_of, write_lists
from fundus_rt.benchmarks.proof_precision import half_from_onnx, int8_from_onnx
from fundus_rt.models.artifacts import sha256_of_file
from fundus_rt.models.card import CARD_KEY, OutputSpec, PreprocessingSpec
from fundus_rt.models.errors import UsageError
from fundus_rt.models.registry import load_card
from fundus_rt.runtime.session import open_session
from tests.conftest import REPOSITORY

EXAMPLES = REPOSITORY / "models" / "examples"
NAMES = ("idrid_005.jpg", "idrid_085.jpg", "idrid_165.jpg", "chase_01L.jpg")
TRAINED: dict[str, Any] = {
    "settings": {"input_size": 32, "fold": 0, "seed": 1},
    "steps": 1,
    "seconds": 1,
    "held_out": {"photographs": 2, "kappa": 0.25, "kappa_interval": [0.0, 0.5], "accuracy": 0.5, "decisions": [1, 1, 0, 0, 0]}
    | {"accuracy_interval": [0.01, 0.99]},
}


@pytest.fixture(scope="module")
def graders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as the training leaves it, with one ResNet-18 at 32 pixels."""
    import torch

    folder = tmp_path_factory.mktemp("graders")
    torch.manual_seed(3)
    checkpoint = folder / "resnet-18.pth"
    torch.save(enliven(resnet("resnet18", 5), 32).state_dict(), checkpoint)
    spec = PreprocessingSpec(
        (32, 32), "field-of-view", "pillow-bilinear", "RGB", 1 / 255, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    )
    output = OutputSpec("dr_grade", "multiclass", "probability", 1e-3, tuple(f"grade {grade}" for grade in range(5)))
    card = dataclasses.replace(
        load_card("diaret-resnet-50"), name="grader-resnet-18", families=("resnet-18",), framework="pytorch", outputs=(output,),
        preprocessing=spec,
    )  # fmt: skip
    (folder / "resnet-18.card.json").write_text(card.to_json())
    found = {"checkpoint": {"file": checkpoint.name, "sha256": sha256_of_file(checkpoint)}}
    (folder / "resnet-18.json").write_text(json.dumps(TRAINED | found))
    for name, chosen in (("all", NAMES), ("held-out", NAMES[:2]), ("training", NAMES[2:])):
        with open(folder / f"{name}.csv", "w", newline="") as file:
            csv.writer(file).writerows([("file", "dr_grade"), *((f"/elsewhere/{one}", 0) for one in chosen)])
    return folder


@pytest.fixture(scope="module")
def proved(graders: Path) -> tuple[Path, dict[str, Any]]:
    """The folder of files and reports, and the record, after the command ran in float32."""
    record = graders / "record.json"
    words = [
        "--graders",
        str(graders),
        "--photographs",
        str(EXAMPLES),
        "--record",
        str(record),
        "--precisions",
        "fp32",
        "--backends",
        "onnxruntime",
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(REPOSITORY / ".typing"))
        patch.setenv("FUNDUS_RT_CACHE", str(graders / "other"))  # the command sets its own, which is undone here
        assert proofs.main(words) == 0
        kept = record.read_bytes()
        assert proofs.main(words) == 0
        assert record.read_bytes() == kept, "a second call made finished rows again"
    return graders / "proofs", json.loads(kept)


@pytest.mark.full
def test_a_real_network_through_the_whole_table(proved: tuple[Path, dict[str, Any]], capsys: pytest.CaptureFixture[str]) -> None:
    work, record = proved
    (row,) = record["rows"]
    whole, held_out = row["sets"]["all"], row["sets"]["held-out"]
    assert (whole["photographs"], held_out["photographs"]) == (4, 2)
    for figures in (whole, held_out):
        assert figures["decisions_changed"] == 0
        assert 0 < figures["largest"] < 1e-4
        assert figures["decisions_bound"] == pytest.approx(1 - 0.025 ** (1 / figures["photographs"]))
    report = json.loads((work / "reports" / "resnet-18" / "report.json").read_text())
    assert report["figures"]["outputs"]["dr_grade"]["largest"] == whole["largest"]
    assert row["shares"] == report["figures"]["stages"]["outputs"]["dr_grade"]["shares"]
    assert row["seconds"] > 0
    assert row["peak_mb"] > 50
    assert row["made"]["seconds"] > 0
    assert row["environment"]["packages"]["onnxruntime"]
    assert (row["kept_from_before"], row["refused"]) == (0, "")
    assert proofs.main(["--markdown", "--record", str(work.parent / "record.json")]) == 0
    printed = capsys.readouterr().out
    assert "| resnet-18 | ONNX Runtime CPU | fp32 | 0 of 2 changed: below 84.2 % at 95 % | 0 of 4 changed:" in printed
    assert "| resnet-18 | TensorRT | fp16 | not yet run |" in printed
    assert "on 4 different photographs, no answer kept from before:" in printed
    assert str(EXAMPLES) not in json.dumps(record)


@pytest.mark.full
def test_half_precision_is_in_the_graph_and_the_receipt_is_exact(proved: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    import onnx

    plain, half = proved[0] / "resnet-18-fp32.onnx", tmp_path / "half.onnx"
    half_from_onnx(plain, half)
    kinds = {tensor.data_type for tensor in onnx.load(str(half)).graph.initializer if len(tensor.dims) == 4}
    assert kinds == {onnx.TensorProto.FLOAT16}
    session = open_session(half)
    assert session.card.provenance["precision"] == "fp16"
    frames = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), np.uint8)
    answers, exact = session.run(frames), open_session(plain).run(frames)
    np.testing.assert_array_equal(answers["receipt"], frames.sum(axis=(2, 3)).astype(np.float32))
    apart = np.abs(answers["dr_grade"] - exact["dr_grade"]).max()
    assert 0 < apart < 0.05 * np.ptp(exact["dr_grade"])


@pytest.mark.full
def test_a_lower_precision_is_held_against_the_originals_answers(proved: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    work, record = proved
    rows, held_out = work / "reports" / "resnet-18" / "photographs.jsonl", work / "lists" / "held-out.csv"
    half = tmp_path / "half.onnx"
    half_from_onnx(work / "resnet-18-fp32.onnx", half)
    found = compared(half, rows, held_out)
    assert [found["sets"][name]["photographs"] for name in ("all", "held-out")] == [4, 2]
    assert record["rows"][0]["sets"]["all"]["largest"] < found["sets"]["all"]["largest"] < 0.1
    assert 0.9 < found["lower_precision_share"] <= 1
    wrong = [json.loads(line) for line in rows.read_text().splitlines()]
    wrong[0]["outputs"]["dr_grade"]["original"] = [9.0, 0.0, 0.0, 0.0, 0.0]
    wrong[1]["error"] = "could not be read"
    changed = tmp_path / "photographs.jsonl"
    changed.write_text("\n".join(map(json.dumps, wrong)))
    again = compared(half, changed, held_out)["sets"]
    assert [again[name]["photographs"] for name in ("all", "held-out")] == [3, 1]
    assert again["all"]["largest"] > 0.1
    wrong[2]["sha256"] = "0" * 64
    changed.write_text("\n".join(map(json.dumps, wrong)))
    with pytest.raises(UsageError, match="has changed"):
        compared(half, changed, held_out)


@pytest.mark.full
def test_int8_is_signed_symmetric_and_opens(proved: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    import onnx

    work = proved[0]
    target = tmp_path / "int8.onnx"
    int8_from_onnx(work / "resnet-18-fp32.onnx", target, work / "lists" / "training.csv")
    model = onnx.load(str(target))
    known = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    points = [known[node.input[2]] for node in model.graph.node if node.op_type == "QuantizeLinear"]
    assert len(points) >= 20
    assert all(point.dtype == np.int8 and not point.any() for point in points)
    assert json.loads({entry.key: entry.value for entry in model.metadata_props}[CARD_KEY])["provenance"]["precision"] == "int8"
    frames = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), np.uint8)
    np.testing.assert_array_equal(open_session(target).run(frames)["receipt"], frames.sum(axis=(2, 3)).astype(np.float32))


def row(network: str, precision: str, changed: int = 0, **changes: Any) -> dict[str, Any]:
    """A row as the record holds it; `changed` decisions of 413 and of 90."""
    figures = {"decisions_changed": changed, "largest": 2e-7, "largest_of_spread": 1e-6, "weighted_kappa": 1.0}
    found: dict[str, Any] = {
        "network": network, "backend": "onnxruntime", "precision": precision, "emulated": precision == "fp16", "refused": "",
        "sets": {"all": {**figures, "photographs": 413}, "held-out": {**figures, "photographs": 90}},
        "trained": {"input_size": 96, "said": "kappa 0.3"},
    }  # fmt: skip
    if precision == "fp32":
        found |= {"seconds": 12.3, "peak_mb": 1234, "kept_from_before": 3, "shares": None}
    return found | changes


def test_the_table_says_what_changed_what_failed_and_what_was_not_run() -> None:
    shares = {"resize": 0.91, "fp32 graph": 0.0899, "decode": 0.0001}
    broken = row("a", "fp16", 2, lower_precision_share=0.5)
    broken["sets"]["all"] |= {"largest": None, "largest_of_spread": None, "weighted_kappa": None}
    rows = [
        row("b", "fp32", kept_from_before=0),
        row("a", "fp32", shares=shares),
        row("a", "fp32", 1, backend="openvino", shares=shares),
        broken,
        row("a", "int8", lower_precision_share=1.0, refused="it does not give its known answers"),
        {key: value for key, value in row("b", "int8").items() if key != "sets"} | {"error": "it began\nit broke"},
    ]
    lines = proofs.markdown(rows).splitlines()
    assert len({line.count("|") for line in lines if line.startswith("|")}) == 1
    text = "\n".join(lines)
    assert "| 0 of 90 changed: below 4.1 % at 95 % | 0 of 413 changed: below 0.9 % at 95 % |" in text
    assert "| 2.0e-07 | 1.0e-06 | 1.0000 | 91 % resize, 9 % fp32 graph | 12 | 1.2 |" in text
    assert "| a | ONNX Runtime CPU, emulated | fp16 | 2 of 90 changed: between" in text
    assert "| not finite | not finite | - | 50.0 % lower precision | - | - |" in text
    assert "| b | ONNX Runtime CPU | int8 | it broke |" in text
    assert "| 1.0000 | rounding | 12 |" in text
    assert "| a | OpenVINO CPU | fp32 | 1 of 90 changed: between" in text
    assert text.count("not yet run") == 4
    assert "- a, 96 px: kappa 0.3" in text
    assert "`fundus-rt parity` of b with ONNX Runtime CPU on 413 different photographs" in text
    assert "`fundus-rt parity` of a " not in text
    assert "does not open a int8: it does not give" in text


def test_lists_find_the_photographs_where_they_lie_now(graders: Path, tmp_path: Path) -> None:
    lists = write_lists(graders, EXAMPLES, tmp_path / "lists")
    with open(lists["held-out"], newline="") as file:
        assert [row["file"] for row in csv.DictReader(file)] == [str(EXAMPLES / name) for name in NAMES[:2]]
    with pytest.raises(UsageError, match=r"idrid_005\.jpg \(4 missing\)"):
        write_lists(graders, tmp_path, tmp_path / "lists")


def test_graders_are_found_by_their_finished_figures(graders: Path, tmp_path: Path) -> None:
    assert [one.name for one in graders_of(graders)] == ["resnet-18"]
    with pytest.raises(UsageError, match=r"train_graders\.py"):
        graders_of(graders, only="swin")
    with pytest.raises(UsageError, match="no finished grader"):
        graders_of(tmp_path)
