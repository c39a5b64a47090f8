"""Training of a demonstration grader: augmentation, balanced batches, one loop for Keras and one for PyTorch.

Nothing is chosen on the held-out fold: the length of the training is fixed beforehand, and its last weights are taken. The
statistics of every BatchNorm are measured anew at the end, on the training photographs as they are, for a few hundred steps are
too few for their moving averages.
"""

import math
import time

import cv2
import numpy as np
import torch
from grader_networks import GRADES
from torch.nn import functional as F

from fundus_rt.converters.backends import require_keras

BATCH = 16
WARM_UP = 20
SMOOTHING = 0.05
DECAY = 0.02


def levels_of(images, spec):
    """Return normalised pictures as grey levels again, float32 0..255."""
    return ((images * np.float32(spec.std) + np.float32(spec.mean)) / np.float32(spec.scale)).astype(np.float32)


def normalised(levels, spec):
    """Return grey levels as the network takes them, float32."""
    return ((levels * np.float32(spec.scale) - np.float32(spec.mean)) / np.float32(spec.std)).astype(np.float32)


def augmented(levels, rng):
    """Return one picture turned, mirrored, scaled and recoloured at random. levels: float32 [S, S, 3], RGB, 0..255.

    Half of them are turned by whole quarters only, which leaves every pixel as sharp as it was.
    """
    picture = np.rot90(levels, int(rng.integers(4)))
    picture = np.ascontiguousarray(picture[:, ::-1] if rng.random() < 0.5 else picture)
    if rng.random() < 0.5:
        middle = (picture.shape[0] - 1) / 2
        matrix = cv2.getRotationMatrix2D((middle, middle), rng.uniform(-45, 45), rng.uniform(0.95, 1.15))
        matrix[:, 2] += rng.uniform(-0.04, 0.04, 2) * picture.shape[0]
        picture = cv2.warpAffine(picture, matrix, picture.shape[1::-1], flags=cv2.INTER_LINEAR)
    gain = np.float32(rng.uniform(0.85, 1.15) * rng.uniform(0.92, 1.08, 3))
    unit = np.clip(picture / np.float32(255.0) * gain, 0.0, 1.0) ** np.float32(rng.uniform(0.85, 1.2))
    return unit * np.float32(255.0)


def batches(levels, grades, spec, seed):
    """Yield (images float32 [BATCH, S, S, 3] normalised, grades int [BATCH]) for ever; batch i depends on (seed, i) alone.

    A grade is drawn with the root of its frequency: rare grades are seen more often than they are, without a handful of
    photographs filling a fifth of every batch.
    """
    counts = np.bincount(grades, minlength=len(GRADES))
    weights = np.sqrt(counts) / np.maximum(counts, 1)
    chances = weights[grades] / weights[grades].sum()
    number = 0
    while True:
        rng = np.random.default_rng([seed, number])
        chosen = rng.choice(len(grades), BATCH, p=chances)
        yield normalised(np.stack([augmented(levels[i], rng) for i in chosen]), spec), grades[chosen]
        number += 1


def scheduled(source, rate, steps, minutes):
    """Yield (step, learning rate, batch) until `steps` or `minutes` are over; the rate goes down to zero by then.

    minutes: of processor time, so that a busy machine takes longer and does not learn less.
    """
    started = time.process_time()
    for step, batch in enumerate(source):
        progress = max(step / steps, (time.process_time() - started) / (60.0 * minutes))
        if progress >= 1.0:
            return
        yield step, rate * min(1.0, (step + 1) / WARM_UP) * (0.5 + 0.5 * math.cos(math.pi * progress)), batch


def trained_keras(network, images, grades, grader, spec, limits, seed):
    """Train a Keras network in place; return the steps done. images: float32 [N, S, S, 3]. limits: (steps, minutes)."""
    _, keras = require_keras()
    loss = keras.losses.CategoricalCrossentropy(label_smoothing=SMOOTHING)
    network.compile(keras.optimizers.Adam(grader.rate, global_clipnorm=1.0), loss, metrics=["accuracy"])
    identity = np.eye(len(GRADES), dtype=np.float32)
    report, step = Report(), -1
    for step, rate, (pictures, wanted) in scheduled(batches(levels_of(images, spec), grades, spec, seed), grader.rate, *limits):
        network.optimizer.learning_rate.assign(rate)
        report.add(step, network.train_on_batch(pictures, identity[wanted])[0])
    _measure_keras_statistics(network, keras, images)
    return step + 1


def trained_torch(network, images, grades, grader, spec, limits, seed):
    """Train a network of torchvision in place; return the steps done. images: float32 [N, S, S, 3]. limits: (steps, minutes)."""
    optimizer = torch.optim.AdamW(network.parameters(), lr=grader.rate, weight_decay=DECAY)
    report, step = Report(), -1
    network.train()
    for step, rate, (pictures, wanted) in scheduled(batches(levels_of(images, spec), grades, spec, seed), grader.rate, *limits):
        for group in optimizer.param_groups:
            group["lr"] = rate
        logits = network(channels_first(pictures))
        loss = F.cross_entropy(logits, torch.from_numpy(wanted), label_smoothing=SMOOTHING)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        report.add(step, loss.item())
    _measure_torch_statistics(network, images)
    network.eval()
    return step + 1


def answers_of(network, images):
    """Return the numbers that a network of either framework gives, float32 [N, grades], eight pictures at a time."""
    parts = [images[start : start + 8] for start in range(0, len(images), 8)]
    if isinstance(network, torch.nn.Module):
        with torch.inference_mode():
            return np.concatenate([network(channels_first(part)).numpy() for part in parts])
    return np.concatenate([network.predict_on_batch(part) for part in parts])


def channels_first(images):
    """Return pictures [N, S, S, 3] as a tensor [N, 3, S, S]."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()


class Report:
    """Prints the running mean of the loss every 25 steps."""

    def __init__(self):
        self.started, self.mean = time.monotonic(), None

    def add(self, step, loss):
        self.mean = loss if self.mean is None else 0.95 * self.mean + 0.05 * loss
        if step % 25 == 24:
            print(f"  step {step + 1}, {time.monotonic() - self.started:.0f} s, loss {self.mean:.3f}", flush=True)


def _measure_keras_statistics(network, keras, images):
    """Set every BatchNorm to the mean statistics of the training photographs, dropout switched off."""
    norms = [layer for layer in network.layers if isinstance(layer, keras.layers.BatchNormalization)]
    dropouts = [layer for layer in network.layers if isinstance(layer, keras.layers.Dropout)]
    kept = [layer.momentum for layer in norms], [layer.rate for layer in dropouts]
    for layer in dropouts:
        layer.rate = 0.0
    for number, start in enumerate(range(0, len(images), 2 * BATCH)):
        for layer in norms:
            layer.momentum = number / (number + 1)
        network(images[start : start + 2 * BATCH], training=True)
    for layer, momentum in zip(norms, kept[0], strict=True):
        layer.momentum = momentum
    for layer, rate in zip(dropouts, kept[1], strict=True):
        layer.rate = rate


def _measure_torch_statistics(network, images):
    """Set every BatchNorm to the mean statistics of the training photographs; the rest of the network is in evaluation mode."""
    norms = [part for part in network.modules() if isinstance(part, torch.nn.modules.batchnorm._BatchNorm)]
    if not norms:
        return
    network.eval()
    for part in norms:
        part.reset_running_stats()
        part.momentum = None  # PyTorch: the mean over all batches
        part.train()
    with torch.no_grad():
        for start in range(0, len(images), 2 * BATCH):
            network(channels_first(images[start : start + 2 * BATCH]))
    for part in norms:
        part.momentum = 0.1
