"""Which names in torch files are those of numbers that an answer may need, and which are those of training's records."""

from __future__ import annotations

import re

STATISTICS = {"mean", "means", "mu", "std", "stds", "stdev", "sd", "deviation", "sigma", "var", "variance"}
TELLING_WORDS = STATISTICS | {"scale", "offset", "shift", "temperature", "threshold", "thresholds", "thr", "cutoff"}
TELLING_WORDS |= {
    "calibration",
    "calibrator",
    "platt",
    "normalization",
    "normalisation",
    "scaler",
    "min",
    "max",
    "intercept",
    "slope",
}
TELLING_WORDS |= {"divisor", "prior", "priors", "thresh", "cut", "youden", "temp", "calib", "operating"}
"""Words of the keys of numbers that an answer may have to be scaled, shifted, sharpened or cut by."""
DOUBTFUL_WORDS = {"avg", "average", "norm", "range", "stats", "factor", "scaling"}
"""Words that say so only beside one of an answer."""
ANSWER_WORDS = {"age", "ages", "years", "target", "targets", "label", "labels", "y", "output", "outputs", "answer", "answers"}
ANSWER_WORDS |= {"best", "optimal", "optimum", "calibration", "calibrated"}
"""Words of what a network answers with, or of what was chosen for its answers."""
SCORES = {"loss", "losses", "acc", "accs", "accuracy", "accuracies", "auc", "aucs", "auroc", "mae", "mse", "rmse", "f", "score"}
SCORES |= {"scores", "kappa", "qwk", "sensitivity", "specificity", "precision", "recall", "iou", "dice", "epoch", "epochs", "lr"}
SCORES |= {"lrs", "history", "hist"}
RECORD_WORDS = SCORES | {"rate", "step", "steps", "iter", "iters", "iterations", "size", "length", "grad", "delta", "patience"}
RECORD_WORDS |= {"norm"}
"""Words of the keys of records; a number that has one of them is none of those that an answer needs."""
WEIGHT_WORDS = {"weight", "weights", "bias", "kernel", "w", "b", "logit", "logits", "adjust", "embedding", "head"}
WEIGHT_WORDS |= {"gamma", "beta"}
"""Words of the names of tensors that belong to a network."""


def words_of(name: str) -> set[str]:
    """The words of a name, in small letters."""
    return {word for word in re.split(r"[^a-z]+", name.lower()) if word}


def tells(name: str, in_options: bool) -> bool:
    """Whether a number of this name may belong to the answer.

    Args:
        name: path to the number, its parts between dots.
        in_options: whether it lies among training options or records, where most such words are about augmentation.
    """
    if re.search(r"(mean|std)\.[012]$", name):
        return False  # of the three colours, which `held_against_statements` looks at
    words = words_of(name)
    of_norm = "norm" in words and not words.isdisjoint(STATISTICS)
    of_answer = of_norm or not words.isdisjoint(ANSWER_WORDS)
    if not words.isdisjoint(RECORD_WORDS - ({"norm"} if of_answer else set())):
        return False
    telling = TELLING_WORDS | DOUBTFUL_WORDS if of_answer else TELLING_WORDS
    return not words.isdisjoint(telling) and (of_answer or not in_options)


def is_a_record(name: str) -> bool:
    """Whether a row of numbers of this name is what training wrote down: losses, accuracies, learning rates."""
    words = words_of(name)
    return not words.isdisjoint(SCORES) and words.isdisjoint(WEIGHT_WORDS | TELLING_WORDS)


def is_optimizer(key: str) -> bool:
    """Whether an entry of this key is the state of an optimizer, a schedule or the like, which names nothing."""
    return any(word in key.lower() for word in ("optim", "sched", "scaler", "callbacks", "loops"))
