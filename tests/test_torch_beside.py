"""What training scripts leave beside a network: used, refused, or left aside with a word; nothing goes without one."""

from __future__ import annotations

import argparse
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fundus_rt.converters.checkpoint import Checkpoint, read_checkpoint
from fundus_rt.models.errors import UnsupportedCheckpointError

torch = pytest.importorskip("torch")

STATE = {"conv.weight": torch.arange(12.0).reshape(4, 3, 1, 1), "fc.weight": torch.ones(2, 4), "fc.bias": torch.zeros(2)}


def reading(folder: Path, beside: dict[str, Any], trust: bool = False) -> Checkpoint:
    torch.save({"model": STATE} | beside, folder / "x.pth")
    return read_checkpoint(folder / "x.pth", trust)


LOST: dict[str, tuple[dict[str, Any], str]] = {
    "scaler of a target": ({"target_scaler": {"mean": torch.ones(1), "scale": torch.ones(1)}}, r"target_scaler\.scale \[1\]"),
    "scaler, but of a target": ({"scaler": {"mean": torch.ones(2), "scale": torch.ones(2)}}, r"scaler\.mean \[2\]"),
    "weights called a metric": ({"metric": {"weight": torch.ones(2, 4)}}, r"metric\.weight \[2, 4\]"),
    "weights among options": ({"config": {"proj.weight": torch.ones(2, 2)}}, r"config\.proj\.weight"),
    "weights of a criterion": ({"criterion": {"arcface.weight": torch.ones(2, 4)}}, r"criterion\.arcface\.weight"),
    "best thresholds by name": ({"optimal_head": {"weight": torch.ones(2, 2)}}, r"optimal_head\.weight"),
    "head in numpy": ({"head": {"weight": np.ones((2, 4), np.float32), "bias": np.ones(2)}}, r"head\.weight \[2, 4\]"),
    "calibration in numpy": ({"calibration": {"W": np.eye(2)}}, r"calibration\.W \[2, 2\]"),
    "simple namespace": ({"extra": types.SimpleNamespace(head=torch.ones(2, 4))}, r"extra\.head \[2, 4\]"),
}


@pytest.mark.parametrize("trust", [False, True])
@pytest.mark.parametrize("name", LOST)
def test_what_may_be_a_part_of_the_network_is_not_dropped(tmp_path: Path, name: str, trust: bool) -> None:
    beside, expected = LOST[name]
    with pytest.raises(UnsupportedCheckpointError, match=rf"lie outside .*{expected}"):
        reading(tmp_path, beside, trust)


def test_what_training_alone_needs_is_left_aside(tmp_path: Path) -> None:
    network = torch.nn.Linear(4, 2)
    optimizer = torch.optim.AdamW(network.parameters())
    network(torch.ones(1, 4)).sum().backward()
    optimizer.step()
    beside = {
        "optimizer": optimizer.state_dict(),
        "optim_state": {"fc.weight": {"exp_avg": torch.ones(2, 4)}},
        "scheduler": torch.optim.lr_scheduler.StepLR(optimizer, 3).state_dict(),
        "scaler": torch.amp.GradScaler("cpu").state_dict() | {"_growth_tracker": torch.zeros(2, dtype=torch.int32)},
        "amp_scaler": {"scale": torch.ones(1)},
        "criterion": {"pos_weight": torch.ones(2)},
        "metrics": {"confusion": torch.ones(2, 2)},
        "confusion_matrix": np.ones((2, 2)),
        "val_predictions": np.ones((9, 2), np.float32),
        "np_rng_state": np.random.RandomState(0).get_state(),
        "val_auc": np.linspace(0, 1, 5),
        "counts": np.arange(6).reshape(2, 3),
        "epoch": 3,
        "lr": 1e-4,
        "val_loss_mean": 0.3,
        "max_epochs": 90,
        "clip_max_norm": 1.0,
        "args": argparse.Namespace(temperature=0.07, warmup=torch.ones(2)),
    }
    found = reading(tmp_path, beside)
    assert set(found.shapes) == set(STATE) and found.warnings == ()
    aside = next(note for note in found.notes if note.startswith("training state")).rpartition(": ")[2].split(", ")
    assert {"optimizer", "optim_state", "scaler", "amp_scaler", "criterion", "metrics", "args"} <= set(aside)
    assert "arrays beside the network, left aside: val_auc, counts" in found.notes


RNG = torch.get_rng_state()
RECORDS: dict[str, Any] = {
    "cuda_rng_state_all": [RNG],
    "torch_cuda_random_state_all": [RNG],
    "generator_state": RNG,
    "sampler_state": {"indices": torch.arange(5)},
    "train_idx": torch.arange(7),
    "val_labels": torch.arange(5),
    "y_true": torch.arange(5),
    "mask": torch.ones(5, dtype=torch.bool),
    "loss_weights": torch.ones(2),
    "train_loss": torch.rand(5),
    "val_aucs": torch.rand(5),
    "val_acc_history": torch.rand(20),
    "lr_history": torch.rand(4),
    "roc_auc": torch.rand(3),
    "test_acc": torch.tensor([0.9, 0.8]),
}


@pytest.mark.parametrize("key", RECORDS)
def test_what_cannot_be_weights_is_left_aside_with_a_word(tmp_path: Path, key: str) -> None:
    found = reading(tmp_path, {key: RECORDS[key]})
    assert set(found.shapes) == set(STATE) and found.warnings == ()
    assert any(key in note and "left aside" in note for note in found.notes)


@pytest.mark.parametrize("key", ["loss_bias", "history_head", "acc_mean", "centers"])
def test_a_row_of_numbers_that_may_be_a_part_is_refused(tmp_path: Path, key: str) -> None:
    with pytest.raises(UnsupportedCheckpointError, match=rf"lie outside .*{key} \[2\]"):
        reading(tmp_path, {key: torch.ones(2)})


TOLD_IN_OPTIONS: dict[str, tuple[dict[str, Any], str]] = {
    "options": ({"config": {"age_mean": 55.25, "age_std": 17.5}}, "config.age_mean = 55.25, config.age_std = 17.5"),
    "namespace": ({"args": argparse.Namespace(target_mean=55.25)}, "args.target_mean = 55.25"),
    "hparams": ({"hparams": {"norm_mean": 55.25}}, "hparams.norm_mean = 55.25"),
    "Lightning": ({"hyper_parameters": {"label_mean": 55.25}}, "hyper_parameters.label_mean = 55.25"),
    "meta": ({"meta": {"mean_age": 55.25}}, "meta.mean_age = 55.25"),
    "metrics": ({"metrics": {"best_threshold": 0.375}}, "metrics.best_threshold = 0.375"),
    "at the top": ({"norm_mean": 55.25, "norm_std": 17.5}, "norm_mean = 55.25, norm_std = 17.5"),
    "a pair": ({"target_norm": [55.25, 17.5]}, "target_norm.0 = 55.25, target_norm.1 = 17.5"),
    "statistics": ({"y_stats": {"avg": 55.25, "sd": 17.5}}, "y_stats.avg = 55.25, y_stats.sd = 17.5"),
}


@pytest.mark.parametrize("name", TOLD_IN_OPTIONS)
def test_telling_numbers_among_options_are_warned_of(tmp_path: Path, name: str) -> None:
    beside, expected = TOLD_IN_OPTIONS[name]
    (warning,) = reading(tmp_path, beside).warnings
    assert f"the file holds {expected}, which was not used" in warning


def test_usual_training_arguments_are_listed_and_make_no_warning(tmp_path: Path) -> None:
    usual = {"lr": 1e-4, "min_lr": 1e-6, "batch_size": 16, "epochs": 90, "momentum": 0.9, "weight_decay": 0.05, "clip_grad": 1.0}
    usual |= {"scale": [0.08, 1.0], "temperature": 0.07, "label_smoothing": 0.1, "layer_scale": 1e-5, "data_path": "/home/jane"}
    usual |= {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225], "norm_mean": [0.485, 0.456, 0.406]}
    found = reading(tmp_path, {"args": argparse.Namespace(**usual), "epoch": 3, "best_acc": 0.5})
    assert found.warnings == ()
    (note,) = (note for note in found.notes if note.startswith("entries of the file that were not used"))
    for said in ("args.lr = 0.0001", "args.batch_size = 16", "args.data_path", "epoch = 3", "best_acc = 0.5"):
        assert said in note
    assert "jane" not in note and "args.mean" not in note


TELLING: dict[str, tuple[dict[str, Any], str]] = {
    "of the age": ({"age_mean": 55.25, "age_std": 17.5}, "age_mean = 55.25, age_std = 17.5"),
    "of numpy": ({"age_mean": np.float64(55.25), "age_std": np.float32(17.5)}, "age_mean = 55.25, age_std = 17.5"),
    "in a dictionary": (
        {"target_scaler": {"mean": 55.25, "scale": 17.5}},
        "target_scaler.mean = 55.25, target_scaler.scale = 17.5",
    ),
    "temperature": ({"temperature": 1.75}, "temperature = 1.75"),
    "thresholds": ({"thresholds": [0.25, 0.5]}, "thresholds.0 = 0.25, thresholds.1 = 0.5"),
    "tensors": ({"target_mean": torch.tensor(55.25)}, "target_mean = 55.25"),
    "array": ({"target_std": np.ones(1)}, "target_std (an array)"),
}


@pytest.mark.parametrize("name", TELLING)
def test_numbers_that_an_answer_may_need_are_warned_of(tmp_path: Path, name: str) -> None:
    beside, expected = TELLING[name]
    for trust in (False, True):
        (warning,) = reading(tmp_path, beside, trust).warnings
        assert f"the file holds {expected}, which was not used" in warning and "--standardised" in warning


class TargetScaler:
    """As scikit-learn's: numbers in an object of its own, which only a trusted file may bring."""

    def __init__(self) -> None:
        self.mean_ = 55.25

    def transform(self, numbers: np.ndarray) -> np.ndarray:
        return numbers - self.mean_


def test_a_scaler_that_a_trusted_file_brings_is_warned_of(tmp_path: Path) -> None:
    (warning,) = reading(tmp_path, {"target": TargetScaler()}, True).warnings
    assert "the file holds target (TargetScaler), which was not used" in warning


@pytest.mark.parametrize("key", ["ema_model", "swa_state_dict", "model_state_dict_ema", "averaged_model", "shadow"])
def test_averaged_weights_under_another_name_are_not_passed_over(tmp_path: Path, key: str) -> None:
    with pytest.raises(UnsupportedCheckpointError, match=rf"network twice, once with averaged weights \({key}\)"):
        reading(tmp_path, {key: {name: 2 * tensor for name, tensor in STATE.items()}})
    assert "network taken from 'ema'" in " ".join(reading(tmp_path, {"ema": STATE}).notes)


def test_a_second_network_is_warned_of(tmp_path: Path) -> None:
    (warning,) = reading(tmp_path, {"fold_2": {name: 2 * tensor for name, tensor in STATE.items()}}).warnings
    assert "more than once, and fold_2 was not used" in warning


def test_a_number_beyond_all_others_is_none(tmp_path: Path) -> None:
    assert reading(tmp_path, {"threshold": 10**400}).state.keys() == STATE.keys()


def test_a_better_network_beside_the_last_is_warned_of(tmp_path: Path) -> None:
    better = {name: tensor + 1 for name, tensor in STATE.items()}
    (warning,) = reading(tmp_path, {"best_model": better}).warnings
    assert "best_model was not used" in warning
    assert reading(tmp_path, {"student": better}).warnings == ()


def test_the_preprocessing_in_the_options_is_handed_on(tmp_path: Path) -> None:
    options = argparse.Namespace(mean=[0.5, 0.5, 0.5], std=(0.25, 0.25, 0.25), interpolation="bicubic", lr=0.1)
    stated = reading(tmp_path, {"args": options}).stated_preparation
    assert stated == {"mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25], "interpolation": "bicubic"}
    assert reading(tmp_path, {"normalization": {"mean": [0.5] * 3, "std": [0.5] * 3}}).stated_preparation["std"] == [0.5] * 3
