"""Train graders of diabetic retinopathy (0 to 4) as subjects for proofs of conversions: real decisions, not good ones.

    python models/training/train_graders.py --photographs DIR --output DIR [--networks mobilenet,swin-t] [--fold K]

The first DIR holds manifest.csv with a column dr_grade and the photographs (IDRiD). Of five folds one is held out: grades are
spread evenly, blocks of ten consecutive numbers and files of the same content are never divided, and neighbours of held-out
photographs are not trained on. MobileNet, EfficientNet-B0 and Inception-v3 become Keras 2 files (.h5), ResNet-50 and Swin-T
files of PyTorch (.pth); all begin with random weights. Beside each checkpoint stand its card and its figures; held-out.csv,
training.csv and all.csv name the photographs. One folder holds graders of one seed and one fold.

Each network is written when it is finished; a second call does only what is missing. The training ends after the steps or the
minutes of processor time given, whichever comes first; the steps done are in the figures.

Needs fundus-rt installed with its extras `cpu`, `convert` and `proof`.
"""

import argparse
import json
import time
from pathlib import Path

import cv2
import numpy as np
import torch
from grader_fitting import answers_of, trained_keras, trained_torch
from grader_networks import GRADERS, GRADES, card_of, keras_network, torch_network
from grader_photographs import FOLDS, author_inputs, divided, fold_of, read_graded, read_originals, write_lists
from scipy import stats
from sklearn.metrics import cohen_kappa_score, confusion_matrix

from fundus_rt.benchmarks.environment import environment
from fundus_rt.converters.backends import require_keras
from fundus_rt.models.artifacts import atomic_path, sha256_of_file

SEED = 20261122
RESAMPLES = 1000


def quality(grades, decisions, seed):
    """Return accuracy with its exact interval and quadratic kappa with a bootstrap interval, both at 95 %, and the confusion.

    grades, decisions: int [N].
    """
    right = stats.binomtest(int((grades == decisions).sum()), len(grades))
    interval = right.proportion_ci(0.95, "exact")
    drawn = np.random.default_rng(seed).integers(len(grades), size=(RESAMPLES, len(grades)))
    resampled = np.percentile([kappa(grades[rows], decisions[rows]) for rows in drawn], (2.5, 97.5))
    return {
        "photographs": len(grades),
        "accuracy": right.statistic,
        "accuracy_interval": [interval.low, interval.high],
        "accuracy_of_the_most_frequent_grade": float(np.bincount(grades).max() / len(grades)),
        "kappa": kappa(grades, decisions),
        "kappa_interval": resampled.tolist(),
        "decisions": np.bincount(decisions, minlength=len(GRADES)).tolist(),
        "confusion": confusion_matrix(grades, decisions, labels=range(len(GRADES))).tolist(),
    }


def kappa(grades, decisions):
    """Return Cohen's kappa with quadratic weights; 0 where all grades and decisions are one and the same."""
    if len({*grades, *decisions}) < 2:
        return 0.0
    return float(cohen_kappa_score(grades, decisions, labels=range(len(GRADES)), weights="quadratic"))


def trained(name, images, grades, training, spec, options):
    """Return (network, steps done) of one grader, trained on the photographs with the indices `training`."""
    grader, limits = GRADERS[name], (options.steps, options.minutes)
    arguments = (images[training], grades[training], grader, spec, limits, options.seed)
    torch.manual_seed(options.seed)
    if grader.framework == "pytorch":
        network = torch_network(name)
        return network, trained_torch(network, *arguments)
    tensorflow, keras = require_keras()
    tensorflow.config.threading.set_intra_op_parallelism_threads(options.threads)
    tensorflow.config.threading.set_inter_op_parallelism_threads(1)
    keras.backend.clear_session()
    keras.utils.set_random_seed(options.seed)
    network = keras_network(name, images.shape[1])
    return network, trained_keras(network, *arguments)


def saved(network, name, path):
    """Write a network as its framework's users do: Keras whole and compiled, PyTorch its state, Swin's under `model`."""
    with atomic_path(path) as temporary:
        if not isinstance(network, torch.nn.Module):
            network.save(str(temporary), save_format="h5")
        else:
            state = network.state_dict()
            torch.save({"model": state} if name == "swin-t" else state, temporary)


def written(name, photographs, originals, folds, options):
    """Train, measure and write one grader: NAME.h5 or .pth, NAME.card.json, and last NAME.json with its figures."""
    size = options.size or GRADERS[name].size
    card = card_of(name, size, "Not measured yet.")
    training, held_out = divided(photographs, folds, options.fold)
    grades = np.array([p.grade for p in photographs])
    images = author_inputs(originals, card)
    started = time.monotonic()
    network, steps = trained(name, images, grades, training, card.preprocessing, options)
    seconds = round(time.monotonic() - started)
    decisions = answers_of(network, images).argmax(axis=1)
    figures = {
        "settings": settings(name, options),
        "steps": steps,
        "seconds": seconds,
        "held_out": quality(grades[held_out], decisions[held_out], options.seed),
        "training": quality(grades[training], decisions[training], options.seed),
        "environment": environment(),
    }
    checkpoint = options.output / f"{name}{GRADERS[name].suffix}"
    saved(network, name, checkpoint)
    figures["checkpoint"] = {"file": checkpoint.name, "sha256": sha256_of_file(checkpoint)}
    card = card_of(name, size, in_words(figures["held_out"]))
    for path, text in ((card_path(options.output, name), card.to_json()), (figures_path(options.output, name), dumped(figures))):
        with atomic_path(path) as temporary:
            temporary.write_text(text + "\n", encoding="utf-8")
    return figures


def settings(name, options):
    """Return what decides about a result, as it is kept in its figures."""
    size = options.size or GRADERS[name].size
    return {"seed": options.seed, "fold": options.fold, "folds": FOLDS, "input_size": size, "steps": options.steps} | {
        "minutes": options.minutes
    }


def in_words(found):
    """Return the held-out figures as one sentence."""
    low, high = found["kappa_interval"]
    least, most = (100 * value for value in found["accuracy_interval"])
    return (
        f"On {found['photographs']} held-out photographs: quadratic kappa {found['kappa']:.2f} ({low:.2f} to {high:.2f}), "
        f"accuracy {100 * found['accuracy']:.0f} % ({least:.0f} to {most:.0f} %; always the most frequent grade: "
        f"{100 * found['accuracy_of_the_most_frequent_grade']:.0f} %)."
    )


def finished(name, options):
    """Return the figures of a grader that is written already, or None; ends the program where its settings were others."""
    path = figures_path(options.output, name)
    if not path.exists():
        return None
    figures = json.loads(path.read_text(encoding="utf-8"))
    made, wanted = figures["settings"], settings(name, options)
    if made != wanted:
        raise SystemExit(f"{path} was made with {made}, asked for is {wanted}; give another folder, or remove that file")
    return figures


def refuse_other_folds(options):
    """End the program where the folder holds a grader of another seed or fold: the lists beside it are those of one fold."""
    for path in (figures_path(options.output, name) for name in GRADERS):
        made = json.loads(path.read_text(encoding="utf-8"))["settings"] if path.exists() else {}
        if made and (made["seed"], made["fold"]) != (options.seed, options.fold):
            raise SystemExit(f"{path} has seed {made['seed']} and fold {made['fold']}; give another folder for other ones")


def figures_path(folder, name):
    """Return where a grader's figures are kept."""
    return folder / f"{name}.json"


def card_path(folder, name):
    """Return where a grader's card is kept."""
    return folder / f"{name}.card.json"


def dumped(figures):
    """Return figures as JSON text."""
    return json.dumps(figures, indent=1)


def parsed(arguments=None):
    """Return the options of the command line, checked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photographs", type=Path, required=True, help="folder with manifest.csv and the photographs")
    parser.add_argument("--output", type=Path, required=True, help="folder for checkpoints, cards, figures and lists")
    parser.add_argument("--networks", default=",".join(GRADERS), help="which, with commas (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=900, help="batches of 16 for each network (default: %(default)s)")
    parser.add_argument("--minutes", type=float, default=15.0, help="of the processor, for each network (default: %(default)s)")
    parser.add_argument("--fold", type=int, default=0, choices=range(FOLDS), help="which is held out (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=SEED, help="of weights, folds and batches (default: %(default)s)")
    parser.add_argument("--size", type=int, help="input size in pixels (default: each network's own, 56 to 128)")
    parser.add_argument("--threads", type=int, default=2, help="(default: %(default)s)")
    options = parser.parse_args(arguments)
    unknown = sorted(set(options.networks.split(",")) - set(GRADERS))
    if unknown:
        parser.error(f"--networks names {', '.join(unknown)}; known are {', '.join(GRADERS)}")
    return options


def main(arguments=None):
    """Train what is missing and say how good each grader is."""
    options = parsed(arguments)
    cv2.setNumThreads(1)
    torch.set_num_threads(options.threads)
    refuse_other_folds(options)
    options.output.mkdir(parents=True, exist_ok=True)
    photographs, copies = read_graded(options.photographs)
    folds = fold_of(photographs, options.seed)
    training, held_out = divided(photographs, folds, options.fold)
    print(f"{len(training)} photographs to train on, {len(held_out)} held out, {copies} copies left out", flush=True)
    originals = None  # all five cards crop to the field of view of Pillow's picture
    for name in options.networks.split(","):
        found = finished(name, options)
        if found is None:
            print(f"{name}: training", flush=True)
            write_lists(photographs, folds, options.fold, options.output)
            originals = originals or read_originals(photographs, card_of(name, GRADERS[name].size, "Not measured yet."))
            found = written(name, photographs, originals, folds, options)
        print(f"{name}: {found['steps']} steps in {found['seconds']} s. {in_words(found['held_out'])}", flush=True)


if __name__ == "__main__":
    main()
