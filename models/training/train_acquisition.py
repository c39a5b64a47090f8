"""Train the bundled `acquisition` model: which eye, degraded or not, fundus photograph or not.

    python models/training/train_acquisition.py --photographs DIR --output models/bundled/acquisition.onnx

DIR holds manifest.csv and idrid_1072/ (413 photographs of one Kowa camera). Training starts from random weights. Every
sixth block of ten photographs is kept for calibration and validation; this script looks at no photograph of another camera
before the weights, the temperature and the thresholds are fixed. The figures go to acquisition_results.json.

Both learning rates go down by the clock where a machine is too slow for all batches within the minutes given, so a busy
machine gives other weights; the batches done are in the results.

Needs fundus-rt installed with its extras `cpu` and `convert`, and scipy. With scikit-learn and scikit-image installed, the
photographs these packages bring along serve as pictures of other things.
"""

import argparse
import collections
import copy
import json
import math
import time
from pathlib import Path

import cv2
import numpy as np
import torch
from augment import SIZE, sample
from evaluate_acquisition import evaluated
from export_acquisition import calibrated, export
from network import GRID, AcquisitionNetwork, QualityNetwork, normalised
from photographs import is_held_out, read_photographs, read_scenes
from torch.nn import functional as F
from train_quality import averaged, trained_quality
from views import LEFT, LEFT_INVERTED, RIGHT, RIGHT_INVERTED, SIDEWAYS, UNSEEN

SEED = 20261122
BATCH = 32
# Drawing a sample costs as much as learning from it, so each serves twice: half of a batch is fresh, the other half is
# the mirror image of what was fresh this many batches ago.
REPLAY_AGE = 60
PEAK_RATE = 2.5e-3
WARM_UP = 200
DECAY = 0.02
AVERAGING = 0.998

# The quality network's training: (part of the batches, chance of blur alone). Even mixtures leave blur unlearned as long
# as light and spots can still be learned, so it gets a time of its own.
QUALITY_STAGES = ((0.7, 0.0), (0.3, 0.5))

# Eye classes of a mirrored picture.
MIRROR = torch.tensor([RIGHT, LEFT, RIGHT_INVERTED, LEFT_INVERTED, SIDEWAYS, UNSEEN])


class Samples(torch.utils.data.IterableDataset):
    """An endless stream of samples as tensors; sample i depends on (seed, i) alone."""

    def __init__(self, photographs, scenes, seed):
        super().__init__()
        self.photographs, self.scenes, self.seed = photographs, scenes, seed

    def __iter__(self):
        cv2.setNumThreads(1)
        worker = torch.utils.data.get_worker_info()
        index, step = (worker.id, worker.num_workers) if worker else (0, 1)
        while True:
            yield tensors(sample(self.photographs, self.scenes, np.random.default_rng([self.seed, index])))
            index += step


def tensors(drawn):
    """Return (frame uint8 [3, S, S], eye, clean, fundus, places float32 [2, GRID^2 + 1]) of a `Sample`."""
    places = np.stack([place_target(drawn.disc), place_target(drawn.fovea)])
    frame = np.ascontiguousarray(drawn.frame.transpose(2, 0, 1))
    return frame, drawn.eye, np.float32(drawn.clean), np.float32(drawn.fundus), places


def place_target(point):
    """Return a distribution over the grid's cells and "absent", float32 [GRID^2 + 1]; point: fractions or None."""
    target = np.zeros(GRID * GRID + 1, np.float32)
    if point is None:
        target[-1] = 1.0
        return target
    line = (np.arange(GRID) + 0.5) / GRID
    # A spread of 0.6 cells: sharp, and yet the neighbours say where between the cells the point lies.
    x, y = (np.exp(-0.5 * ((line - value) * GRID / 0.6) ** 2) for value in point)
    cells = (y[:, None] * x[None, :]).ravel()
    target[:-1] = cells / cells.sum()
    return target


def mirrored(frames, eye, clean, fundus, places):
    """Return a batch of samples mirrored left to right: left and right eyes change places."""
    cells = places[..., :-1].unflatten(2, (GRID, GRID)).flip(3).flatten(2)
    return frames.flip(3), MIRROR[eye], clean, fundus, torch.cat([cells, places[..., -1:]], dim=2)


def batches(loader):
    """Yield batches of BATCH samples, half of them replayed; the first REPLAY_AGE ones hold fresh samples only."""
    seen = collections.deque()
    for fresh in loader:
        seen.append(fresh)
        if len(seen) > REPLAY_AGE:
            old = mirrored(*seen.popleft())
            fresh = [torch.cat(pair) for pair in zip(fresh, old, strict=True)]
        yield fresh


def losses(output, eye, clean, fundus, places):
    """Return the four losses by name; samples that are neither clean nor degraded do not enter `clean`."""
    known = (clean >= 0).float()
    clean_loss = F.binary_cross_entropy_with_logits(output["clean"][:, 0], clean.clamp(min=0.0), weight=known)
    return {
        "eye": F.cross_entropy(output["eye"], eye, label_smoothing=0.02),
        "clean": 0.5 * clean_loss,
        "fundus": 0.3 * F.binary_cross_entropy_with_logits(output["fundus"][:, 0], fundus),
        "places": -0.4 * (places * output["places"].log_softmax(dim=2)).sum(dim=(1, 2)).mean(),
    }


def trained(photographs, scenes, steps, minutes, checkpoint, workers):
    """Return (network with averaged weights, batches learned from).

    Ends after `steps` batches or `minutes`, whichever comes first, the learning rate going down to zero by then.
    checkpoint: path to save the averaged weights to every 100 batches, or None.
    """
    network = AcquisitionNetwork().to(memory_format=torch.channels_last)
    average = copy.deepcopy(network)
    optimizer = torch.optim.AdamW(network.parameters(), lr=PEAK_RATE, weight_decay=DECAY)
    loader = torch.utils.data.DataLoader(
        Samples(photographs, scenes, SEED), batch_size=BATCH // 2, num_workers=workers, prefetch_factor=4
    )
    started, running = time.monotonic(), {}
    for step, (frames, *targets) in enumerate(batches(loader)):
        progress = max(step / steps, (time.monotonic() - started) / (60.0 * minutes))
        if progress >= 1.0:
            break
        for group in optimizer.param_groups:
            group["lr"] = PEAK_RATE * min(1.0, (step + 1) / WARM_UP) * (0.5 + 0.5 * math.cos(math.pi * progress))
        output = network(normalised(frames.float().contiguous(memory_format=torch.channels_last)))
        parts = losses(output, *targets)
        loss = sum(parts.values())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 2.0)
        optimizer.step()
        averaged(average, network, step, AVERAGING)
        for name, value in parts.items():
            running[name] = 0.97 * running.get(name, value.item()) + 0.03 * value.item()
        if step % 50 == 49:
            report = " ".join(f"{name} {value:.3f}" for name, value in running.items())
            print(f"step {step + 1}/{steps} {time.monotonic() - started:.0f} s {report}", flush=True)
        if checkpoint and step % 100 == 99:
            torch.save({"network": average.state_dict()}, checkpoint)
    return average.eval(), step


def fitted(options, photographs, scenes):
    """Return what training gives: both networks' weights, and what it took. Saved to options.checkpoint if that is set."""
    started = time.monotonic()
    network, steps = trained(photographs, scenes, options.steps, options.minutes, options.checkpoint, options.workers)
    quality, quality_batches = None, 0
    for stage, (part, blur_share) in enumerate(QUALITY_STAGES):
        limits = round(part * options.quality_steps), part * options.quality_minutes
        quality, steps_done = trained_quality(photographs, SEED + stage, *limits, options.workers, quality, blur_share)
        quality_batches += steps_done
    result = {
        "network": network.state_dict(),
        "quality": quality.state_dict(),
        "batches": steps,
        "quality_batches": quality_batches,
        "seconds": round(time.monotonic() - started),
    }
    if options.checkpoint:
        torch.save(result, options.checkpoint)
    return result


def parsed():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photographs", type=Path, required=True, help="folder with manifest.csv and idrid_1072/")
    parser.add_argument("--output", type=Path, required=True, help="the ONNX file to write")
    parser.add_argument("--results", type=Path, default=Path(__file__).with_name("acquisition_results.json"))
    parser.add_argument("--steps", type=int, default=4000, help=f"batches of {BATCH} (default: %(default)s)")
    parser.add_argument("--minutes", type=float, default=40.0, help="end earlier on a busy machine (default: %(default)s)")
    parser.add_argument("--quality-steps", type=int, default=1500, help="batches of pairs (default: %(default)s)")
    parser.add_argument("--quality-minutes", type=float, default=12.0, help="likewise (default: %(default)s)")
    parser.add_argument("--workers", type=int, default=1, help="processes that draw samples (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=2, help="threads of the training process (default: %(default)s)")
    parser.add_argument("--checkpoint", type=Path, help="where to save the weights, also every 100 batches")
    parser.add_argument("--weights", type=Path, help="a finished checkpoint: export and evaluate it, train nothing")
    return parser.parse_args()


def main():
    options = parsed()
    torch.manual_seed(SEED)
    torch.set_num_threads(options.threads)
    cv2.setNumThreads(1)
    photographs, scenes = read_photographs(options.photographs), read_scenes()
    fitting = [p for p in photographs if not is_held_out(p.name)]
    held_out = [p for p in photographs if is_held_out(p.name)]
    print(f"{len(fitting)} photographs to train on, {len(held_out)} held out, {len(scenes)} scenes", flush=True)
    state = torch.load(options.weights, weights_only=True) if options.weights else fitted(options, fitting, scenes)
    network, quality = AcquisitionNetwork().eval(), QualityNetwork().eval()
    network.load_state_dict(state["network"])
    quality.load_state_dict(state["quality"])
    calibration = calibrated(network, quality, held_out, scenes)
    export(network, quality, calibration, options.output)
    training = {"seed": SEED, "batch": BATCH, "photographs": len(fitting), "held_out": len(held_out), "scenes": len(scenes)}
    results = {
        "training": training | {name: state[name] for name in ("batches", "quality_batches", "seconds")},
        "input_size": SIZE,
        "calibration": calibration,
        **evaluated(options.output, options.photographs, held_out, calibration),
    }
    options.results.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
