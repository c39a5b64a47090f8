"""Drawn fundus photographs whose circle is known in closed form, and the ways in which real ones are spoilt."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.uint8]


def drawn_fundus(
    width: int,
    height: int,
    center: tuple[float, float],
    radius: float,
    *,
    brightness: float = 1.0,
    limb: float = 0.45,
    surround: tuple[int, int, int] = (0, 0, 0),
    blur: float = 0.006,
    seed: int = 0,
) -> Image:
    """A retina-like disc, uint8 [height, width, 3] BGR: red-orange, darker to its limb, with a disc, vessels, a macula.

    Args:
        center: x and y of the field's centre, pixels, pixel centres at whole numbers.
        limb: share of the brightness lost at the rim.
        surround: BGR of what lies outside.
        blur: width of the rim's transition (a normal edge), as a share of the radius.
    """
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width].astype(np.float32)
    u, v = (x - center[0]) / radius, (y - center[1]) / radius
    r = np.hypot(u, v)
    light = brightness * (1 - limb * np.minimum(r, 1.2) ** 2)
    light *= 1 - 0.45 * np.exp(-((u + 0.05) ** 2 + v**2) / 0.03)
    light *= 1 + 0.9 * np.exp(-((((u - 0.5) ** 2 + v**2) / 0.02) ** 2))
    vessels = np.zeros((height, width), np.uint8)
    for _ in range(14):
        angle, bend = rng.uniform(0, 2 * np.pi), rng.uniform(-1.5, 1.5)
        t = np.linspace(0, 1.4, 40)
        line = np.stack([0.5 + t * np.cos(angle + bend * t), t * np.sin(angle + bend * t)], axis=1) * radius + center
        cv2.polylines(vessels, [np.round(line).astype(np.int32)], False, 255, max(1, round(radius * rng.uniform(0.008, 0.025))))
    light *= 1 - 0.5 * cv2.GaussianBlur(vessels, (0, 0), max(0.5, radius * 0.004)).astype(np.float32) / 255
    color = light[..., None] * np.array([40, 90, 200], np.float32)
    edge = 1 / (1 + np.exp(np.clip((r - 1) / (blur * 0.6), -30, 30)))[..., None]
    picture = color * edge + np.array(surround, np.float32) * (1 - edge)
    picture += rng.normal(0, 1.2, picture.shape).astype(np.float32)
    return np.clip(np.round(picture), 0, 255).astype(np.uint8)


def with_jpeg(frame: Image, quality: int = 60) -> Image:
    """The frame after JPEG compression."""
    _, content = cv2.imencode(".jpg", frame, [cv2.IMWRITE_JPEG_QUALITY, quality])
    return np.asarray(cv2.imdecode(content, cv2.IMREAD_COLOR), np.uint8)


def with_text(frame: Image, color: tuple[int, int, int] = (255, 255, 255)) -> Image:
    """Burnt-in patient text in two corners, as large as cameras write it."""
    height, width = frame.shape[:2]
    size, thick = height / 700, max(1, height // 350)
    cv2.putText(frame, "OD 45deg 2024-05-17", (width // 60, height // 14), 0, size, color, thick, cv2.LINE_AA)
    cv2.putText(frame, "ID 004711 F 61y", (width // 60, height - height // 30), 0, size, color, thick, cv2.LINE_AA)
    return frame


def with_scale_bar(frame: Image) -> Image:
    """A white bar and a colour wedge at the right and the lower side."""
    height, width = frame.shape[:2]
    cv2.rectangle(frame, (int(0.72 * width), int(0.955 * height)), (int(0.97 * width), int(0.965 * height)), (255, 255, 255), -1)
    for i in range(8):
        top = int(height * (0.1 + 0.05 * i))
        cv2.rectangle(frame, (int(0.965 * width), top), (int(0.985 * width), top + height // 25), (32 * i, 32 * i, 32 * i), -1)
    return frame


def with_notch(frame: Image, center: tuple[float, float], radius: float, angle: float = -0.8, inward: bool = False) -> Image:
    """A tab outside of the rim, or a notch into it, as cameras mark the upper side."""
    reach = 0.94 if inward else 1.03
    x, y = center[0] + reach * radius * np.cos(angle), center[1] + reach * radius * np.sin(angle)
    box = cv2.boxPoints(((float(x), float(y)), (0.16 * radius, 0.1 * radius), float(np.degrees(angle))))
    cv2.fillPoly(frame, [np.round(box).astype(np.int32)], (0, 0, 0) if inward else (40, 80, 170))
    return frame


def with_glare(frame: Image, at: tuple[float, float], strength: float = 60, width: float = 0.25) -> Image:
    """A veil of stray light around a point (shares of width and height), inside and outside of the field alike."""
    h, w = frame.shape[:2]
    y, x = np.mgrid[:h, :w].astype(np.float32)
    veil = strength * np.exp(-((x / w - at[0]) ** 2 + (y / h - at[1]) ** 2) / (2 * width**2))
    return np.clip(frame + veil[..., None], 0, 255).astype(np.uint8)


def with_shadow(frame: Image, center: tuple[float, float], radius: float, angle: float) -> Image:
    """One side of the field fades almost to black, as with a small pupil."""
    h, w = frame.shape[:2]
    y, x = np.mgrid[:h, :w].astype(np.float32)
    along = ((x - center[0]) * np.cos(angle) + (y - center[1]) * np.sin(angle)) / radius
    return np.round(frame * np.clip(1 - 1.1 * np.maximum(along, 0), 0.02, 1)[..., None]).astype(np.uint8)


def with_page(frame: Image, border: int, color: tuple[int, int, int] = (255, 255, 255)) -> Image:
    """The whole frame printed on a page of another colour."""
    return np.asarray(cv2.copyMakeBorder(frame, border, border, border, border, cv2.BORDER_CONSTANT, value=color), np.uint8)


Case = tuple[Image, tuple[float, float], float]


def hard_cases() -> dict[str, Callable[[], Case]]:
    """Names and makers of (frame, true centre, true radius)."""
    cases: dict[str, Callable[[], Case]] = {}

    def add(
        name: str,
        size: tuple[int, int],
        center: tuple[float, float],
        radius: float,
        spoil: Callable[[Image], Image] = lambda frame: frame,
        shift: float = 0,
        **how: Any,
    ) -> None:
        def make() -> Case:
            frame = spoil(drawn_fundus(*size, center, radius, **how))
            return frame, (center[0] + shift, center[1] + shift), radius

        cases[name] = make

    whole = ((1200, 900), (590.3, 455.8), 410.4)
    c, r = whole[1], whole[2]
    add("whole", *whole)
    add("whole, jpeg", *whole, with_jpeg)
    add("soft rim", *whole, blur=0.02)
    add("bright to the rim", *whole, limb=0.0)
    add("dark limb", *whole, limb=0.8)
    add("dark", *whole, brightness=0.16)
    add("very dark, jpeg", *whole, lambda f: with_jpeg(f, 75), brightness=0.1, limb=0.3)
    add("raised black", *whole, surround=(18, 16, 17), brightness=0.5)
    add("cut top and bottom", (1200, 800), (600.0, 380.0), 470.0)
    add("cut left and right", (800, 1200), (380.0, 600.0), 470.0)
    add("cut right", (1000, 900), (650.0, 450.0), 400.0)
    add("cut on all sides", (1000, 800), (500.0, 400.0), 520.0)
    add("square in the circle's corners", (900, 900), (449.5, 449.5), 540.0)
    add("tight square", (901, 901), (450.0, 450.0), 450.5)
    add("off-centre, two sides cut", (1200, 900), (250.0, 260.0), 420.0)
    add("small in a large frame", (2400, 1600), (1500.5, 700.2), 180.0)
    add("white page", *whole, surround=(255, 255, 255))
    add("grey page", *whole, surround=(128, 128, 128))
    add("light grey page, jpeg", *whole, with_jpeg, surround=(200, 200, 200))
    add("white page, cut top and bottom", (1200, 800), (600.0, 380.0), 470.0, surround=(255, 255, 255))
    add("black frame on a white page", *whole, lambda f: with_page(f, 120), shift=120)
    add("black frame on a grey page", *whole, lambda f: with_page(f, 60, (90, 90, 90)), shift=60)
    add("text", *whole, with_text)
    add("text over a cut field", (1200, 800), (600.0, 380.0), 470.0, with_text)
    add("text on white", *whole, lambda f: with_text(f, (0, 0, 0)), surround=(255, 255, 255))
    add("scale bar and wedge", *whole, with_scale_bar)
    add("tab", *whole, lambda f: with_notch(f, c, r))
    add("notch", *whole, lambda f: with_notch(f, c, r, inward=True))
    add("two tabs and text, jpeg", *whole, lambda f: with_jpeg(with_text(with_notch(with_notch(f, c, r), c, r, 2.5))))
    add("glare at the rim", *whole, lambda f: with_glare(f, (0.8, 0.3)))
    add("strong glare at a corner", *whole, lambda f: with_glare(f, (0.95, 0.95), 140))
    add("veil over everything", *whole, lambda f: with_glare(f, (0.5, 0.5), 40, 0.6))
    add("one side in shadow", *whole, lambda f: with_shadow(f, c, r, 0.4))
    add("shadow and text and jpeg", *whole, lambda f: with_jpeg(with_text(with_shadow(f, c, r, 2.8))))
    add("low resolution", (320, 240), (158.2, 121.4), 108.3)
    add("tiny", (120, 96), (60.3, 47.1), 44.2)
    add("twelve megapixels", (4288, 2848), (2010.0, 1420.0), 1700.0)
    return cases


def half_and_half(left: int, right: int, size: int = 400) -> Image:
    """A disc whose left half has one green level and whose right half another, on black."""
    frame = np.zeros((size, size + 200, 3), np.uint8)
    frame[:, : (size + 200) // 2, :] = (20, left, 120)
    frame[:, (size + 200) // 2 :, :] = (20, right, 120)
    mask = np.zeros(frame.shape[:2], np.uint8)
    cv2.circle(mask, ((size + 200) // 2, size // 2), size // 2 - 20, 1, -1)
    return frame * mask[..., None]
