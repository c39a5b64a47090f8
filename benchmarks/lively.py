"""What keeps a network with random weights alive: pictures that differ, and a last layer that tells them apart."""

from __future__ import annotations

import numpy as np


def pictures(size: int, count: int = 12, seed: int = 1) -> np.ndarray:
    """Pictures that look like fundus photographs to a network: enough for answers to differ, and made without files.

    Args:
        size: height and width, pixels.
        count: how many.
        seed: of the random numbers.

    Returns:
        float32 [count, size, size, 3], RGB, whole grey levels 0 to 255: orange discs on black, each of another brightness and
        colour, with a bright spot, dark curves and noise.
    """
    random = np.random.default_rng(seed)
    down, across = np.mgrid[0:size, 0:size] / size - 0.5
    found = []
    for _ in range(count):
        colour = np.array([180, 90, 40]) * random.uniform(0.5, 1.3, 3)
        spot = np.exp(-((down - random.uniform(-0.2, 0.2)) ** 2 + (across - random.uniform(-0.3, 0.3)) ** 2) / 0.005)
        curves = 30 * (np.sin(20 * across + random.uniform(0, 6)) > 0.9 * np.cos(9 * down))
        picture = colour + (90 * spot - curves)[..., None] + random.normal(0, 12, (size, size, 3))
        found.append(picture * (down**2 + across**2 < 0.23)[..., None])
    return np.asarray(np.clip(np.stack(found), 0, 255).round(), np.float32)


def telling_head(features: np.ndarray, columns: int, mean: float = 0.0, deviation: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """A linear layer that looks along the directions in which pictures differ most.

    Along others, the answers of a random network are small differences of large numbers, and rounding errors are as large.

    Args:
        features: [pictures, features], the layer's inputs.
        columns: outputs.
        mean: of each output over the pictures.
        deviation: of each output over the pictures.

    Returns:
        Weights float32 [features, columns] and bias float32 [columns].
    """
    wide = np.asarray(features, np.float64)
    kernel = np.linalg.svd(wide - wide.mean(axis=0), full_matrices=False)[2][:columns].T
    kernel = kernel * deviation / np.std(wide @ kernel, axis=0)
    return kernel.astype(np.float32), (mean - np.mean(wide @ kernel, axis=0)).astype(np.float32)
