"""Films of fundus photographs as a shaky hand and a blinking eye make them, from the example photographs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.uint8]

SIZE = 480
"""Side of the films' square frames, pixels."""
RATE = 10.0
"""Frames a second of the films."""


@dataclass(frozen=True)
class Scene:
    """Frames of one kind, `count` of them in a row."""

    kind: str
    """``sharp``, ``soft`` (nearly sharp), ``blurred``, ``moved``, ``dark``, ``left`` (off to that side), ``far``,
    ``near`` or ``nothing``."""
    count: int
    photograph: str = "chase_01L.jpg"


def frames_of(scenes: Sequence[Scene], examples: Path) -> Iterator[tuple[str, Image]]:
    """The kind and the frame, uint8 [SIZE, SIZE, 3] BGR, of every frame; each with noise of its own, as a sensor has it."""
    rng = np.random.default_rng(16)
    for scene in scenes:
        whole = _squared(cv2.imread(str(examples / scene.photograph)))
        for index in range(scene.count):
            frame = _changed(whole, scene.kind, index).astype(np.float32)
            noisy = frame + rng.normal(0, 1.0, frame.shape)
            yield scene.kind, np.clip(np.rint(noisy), 0, 255).astype(np.uint8)


def write_film(path: Path, frames: Iterable[Image], codec: str = "MJPG", rate: float = RATE) -> None:
    """Write a film with OpenCV."""
    film = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*codec), rate, (SIZE, SIZE))
    assert film.isOpened(), f"this OpenCV cannot write {codec}"
    film.set(cv2.VIDEOWRITER_PROP_QUALITY, 95)
    for frame in frames:
        film.write(frame)
    film.release()


def read_film(path: Path) -> list[Image]:
    """Every frame of a film, as OpenCV decodes it."""
    film = cv2.VideoCapture(str(path))
    frames = []
    while True:
        good, frame = film.read()
        if not good:
            film.release()
            return frames
        frames.append(frame)


def _squared(photograph: Image) -> Image:
    """The photograph in a black square, as large as fits."""
    height, width = photograph.shape[:2]
    side = max(height, width)
    square = np.zeros((side, side, 3), np.uint8)
    top, left = (side - height) // 2, (side - width) // 2
    square[top : top + height, left : left + width] = photograph
    return np.asarray(cv2.resize(square, (SIZE, SIZE), interpolation=cv2.INTER_AREA), np.uint8)


def _changed(whole: Image, kind: str, index: int) -> Image:
    sway = _placed(whole, 1.0, 2.0 * np.sin(index), 2.0 * np.cos(index))  # a hand is never still
    if kind == "sharp":
        return sway
    if kind == "soft":
        return np.asarray(cv2.GaussianBlur(sway, (0, 0), 0.6), np.uint8)
    if kind == "blurred":
        return np.asarray(cv2.GaussianBlur(sway, (0, 0), 3.5), np.uint8)
    if kind == "moved":
        return np.asarray(cv2.blur(sway, (25, 1)), np.uint8)
    if kind == "dark":
        return (sway // 40).astype(np.uint8)
    if kind == "left":
        return _placed(whole, 1.0, -0.2 * SIZE, 0.0)
    if kind == "near":
        return _placed(whole, 1.7, 0.0, 0.0)
    if kind == "far":
        return _placed(whole, 0.4, 0.0, 0.0)
    assert kind == "nothing", kind
    rows, columns = np.mgrid[:SIZE, :SIZE]
    return np.stack([rows // 2, columns // 2, (rows + columns) // 4], axis=2).astype(np.uint8)


def _placed(frame: Image, scale: float, right: float, down: float) -> Image:
    """The frame scaled about its middle and moved by so many pixels; black comes in from outside."""
    middle = (SIZE - 1) / 2
    to = np.array([[scale, 0, middle * (1 - scale) + right], [0, scale, middle * (1 - scale) + down]], np.float32)
    return np.asarray(cv2.warpAffine(frame, to, (SIZE, SIZE), flags=cv2.INTER_CUBIC), np.uint8)
