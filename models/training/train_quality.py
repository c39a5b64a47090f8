"""Training of the quality network on pairs: one view clean, the same view degraded."""

import copy
import math
import time

import cv2
import numpy as np
import torch
from augment import quality_pair
from network import QualityNetwork, normalised
from torch.nn import functional as F

PAIRS = 16
FRESH_PAIRS = 2
MEMORY = 4000
PEAK_RATE = 2e-3
AVERAGING = 0.99
SEED_OFFSET = 1


class Pairs(torch.utils.data.IterableDataset):
    """An endless stream of pairs, uint8 [2, 3, S, S]; pair i depends on (seed, i) alone."""

    def __init__(self, photographs, seed, blur_share):
        super().__init__()
        self.photographs, self.seed, self.blur_share = photographs, seed, blur_share

    def __iter__(self):
        cv2.setNumThreads(1)
        worker = torch.utils.data.get_worker_info()
        index, step = (worker.id, worker.num_workers) if worker else (0, 1)
        while True:
            pair = quality_pair(self.photographs, np.random.default_rng([self.seed, index]), self.blur_share)
            yield np.stack([np.ascontiguousarray(frame.transpose(2, 0, 1)) for frame in pair])
            index += step


def batches(loader, rng):
    """Yield uint8 [2 PAIRS, 3, S, S], clean ones first: the new pairs and earlier ones, turned or mirrored at random.

    A pair takes much longer to draw than to learn from, and is good in every orientation.
    """
    seen = []
    for fresh in loader:
        older = [_turned(seen[int(rng.integers(len(seen)))], rng) for _ in range(PAIRS - FRESH_PAIRS) if seen]
        seen += list(fresh)
        del seen[:-MEMORY]
        pairs = torch.stack([*fresh, *older])
        yield torch.cat([pairs[:, 0], pairs[:, 1]])


def _turned(pair, rng):
    """Return the pair, [2, 3, S, S], in one of its eight orientations."""
    pair = pair.rot90(int(rng.integers(4)), (2, 3))
    return pair.flip(3) if rng.random() < 0.5 else pair


def trained_quality(photographs, seed, steps, minutes, workers, network=None, blur_share=0.0):
    """Return (network with averaged weights, batches learned from); ends after `steps` or `minutes`.

    network: one to go on with, or None for a new one. blur_share: see `quality_pair`.
    """
    network = (network or QualityNetwork()).train().to(memory_format=torch.channels_last)
    average = copy.deepcopy(network)
    optimizer = torch.optim.AdamW(network.parameters(), lr=PEAK_RATE, weight_decay=0.01)
    loader = torch.utils.data.DataLoader(
        Pairs(photographs, seed + SEED_OFFSET, blur_share), batch_size=FRESH_PAIRS, num_workers=workers, prefetch_factor=16
    )
    started, running = time.monotonic(), 0.7
    for step, frames in enumerate(batches(loader, np.random.default_rng(seed))):
        progress = max(step / steps, (time.monotonic() - started) / (60.0 * minutes))
        if progress >= 1.0:
            break
        for group in optimizer.param_groups:
            group["lr"] = PEAK_RATE * min(1.0, (step + 1) / 50) * (0.5 + 0.5 * math.cos(math.pi * progress))
        score = network(normalised(frames.float().contiguous(memory_format=torch.channels_last)))[:, 0]
        clean, degraded = score.chunk(2)
        loss = F.softplus(-clean).mean() + F.softplus(degraded).mean() + F.softplus(degraded - clean).mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 2.0)
        optimizer.step()
        averaged(average, network, step, AVERAGING)
        running = 0.97 * running + 0.03 * loss.item() / 3.0
        if step % 50 == 49:
            print(f"quality step {step + 1}/{steps} {time.monotonic() - started:.0f} s loss {running:.3f}", flush=True)
    return average.eval(), step


@torch.no_grad()
def averaged(average, network, step, averaging):
    """Move the averaged weights and statistics towards the network's, faster in the first steps."""
    share = 1.0 - min(averaging, (1.0 + step) / (10.0 + step))
    for kept, current in zip(average.state_dict().values(), network.state_dict().values(), strict=True):
        if kept.dtype.is_floating_point:
            kept.lerp_(current, share)
        else:
            kept.copy_(current)
