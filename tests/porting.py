"""The pipeline once more in plain Python, written from docs/porting.md alone: no NumPy, no OpenCV, nothing of the package.

A picture is a list of rows, a row a list of pixels, a pixel a list of B, G, R.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable
from typing import Any

Picture = list[list[list[Any]]]
Box = tuple[int, int, int, int]


def f32(x: float) -> float:
    return float(struct.unpack("f", struct.pack("f", x))[0])


def picture_of(values: Any, height: int, width: int) -> Picture:
    flat = list(values)
    return [[flat[3 * (r * width + c) : 3 * (r * width + c) + 3] for c in range(width)] for r in range(height)]


def values_of(picture: Picture) -> list[Any]:
    return [value for row in picture for pixel in row for value in pixel]


# 1. The file: the entry of metadata_props in the protobuf message ModelProto


def card_text(onnx: bytes) -> str:
    for number, content in _fields(onnx):
        if number == 14:
            entry = dict(_fields(content))
            if entry[1] == b"fundus_rt.card":
                return entry[2].decode("utf-8")
    raise ValueError("no card")


def _fields(message: bytes) -> list[tuple[int, bytes]]:
    found, place = [], 0

    def varint() -> int:
        nonlocal place
        value = shift = 0
        while True:
            byte = message[place]
            place += 1
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value

    while place < len(message):
        key = varint()
        if key & 7 == 0:
            varint()
        elif key & 7 == 2:
            length = varint()
            found.append((key >> 3, message[place : place + length]))
            place += length
        else:
            place += {1: 8, 5: 4}[key & 7]
    return found


# 2. and 3. Orientation, crop


def upright(stored: Picture, orientation: int) -> Picture:
    h, w = len(stored), len(stored[0])
    places: dict[int, Callable[[int, int], tuple[int, int]]] = {
        1: lambda r, c: (r, c), 2: lambda r, c: (r, w - 1 - c), 3: lambda r, c: (h - 1 - r, w - 1 - c),
        4: lambda r, c: (h - 1 - r, c), 5: lambda r, c: (c, r), 6: lambda r, c: (h - 1 - c, r),
        7: lambda r, c: (h - 1 - c, w - 1 - r), 8: lambda r, c: (c, w - 1 - r),
    }  # fmt: skip
    rows, columns = (h, w) if orientation < 5 else (w, h)
    found = [[places[orientation](r, c) for c in range(columns)] for r in range(rows)]
    return [[stored[r][c] for r, c in row] for row in found]


def crop_box(mode: str, frame: tuple[int, int], center: tuple[float, float] = (0, 0), radius: float = 0) -> Box:
    height, width = frame
    if mode == "none":
        return 0, 0, width, height
    if mode == "center":
        side = min(width, height)
        left, top = round((width - side) / 2), round((height - side) / 2)
    else:
        side = max(1, round(2 * radius))
        left, top = round(center[0] + 0.5 - side / 2), round(center[1] + 0.5 - side / 2)
    return left, top, left + side, top + side


def cropped(picture: Picture, box: Box) -> Picture:
    left, top, right, bottom = box
    height, width = len(picture), len(picture[0])
    return [
        [picture[r][c] if 0 <= r < height and 0 <= c < width else [0, 0, 0] for c in range(left, right)]
        for r in range(top, bottom)
    ]


def mirrored(picture: Picture) -> Picture:
    return [row[::-1] for row in picture]


# 4. Resize: for each output index the source indices with their weights, then two passes

Taps = list[list[tuple[int, Any]]]


def resize(picture: Picture, size: tuple[int, int], name: str) -> Picture:
    m, n = size, (len(picture), len(picture[0]))
    if name.endswith("nearest"):
        rows, columns = (nearest(name, n[k], m[k]) for k in (0, 1))
        return [[picture[r][c] for c in columns] for r in rows]
    if name.startswith("pillow"):
        for k in (1, 0):
            if n[k] != m[k]:
                picture = passed(picture, pillow_taps(name, n[k], m[k]), k, pillow_sum)
        return picture
    if name == "tf-bilinear":
        taps = [tf_taps(n[k], m[k]) for k in (0, 1)]
        return passed(passed(picture, taps[1], 1, tf_sum), taps[0], 0, tf_sum)
    factors = [1 / (m[k] / n[k]) for k in (0, 1)]
    whole = n[0] % m[0] == 0 and n[1] % m[1] == 0
    by_area = name == "opencv-area" and min(factors) >= 1
    if whole and (by_area or (name == "opencv-linear" and factors == [2, 2])):
        return blocks(picture, size, n[0] // m[0], n[1] // m[1])
    if by_area:
        taps = [area_taps(n[k], m[k]) for k in (0, 1)]
        narrow = passed(picture, taps[1], 1, lambda products: float_sum([(0.0, 1.0), *products]))
        return passed(narrow, taps[0], 0, lambda products: bounded(round(float_sum(products))))
    taps = [opencv_taps(name, n[k], m[k]) for k in (0, 1)]
    narrow = passed(picture, taps[1], 1, lambda products: sum(p * w for p, w in products))
    if name == "opencv-cubic":
        return passed(narrow, taps[0], 0, lambda products: bounded(round(sum(p * w for p, w in products) / 2**22)))
    return passed(narrow, taps[0], 0, lambda products: (sum((w * (s >> 4)) >> 16 for s, w in products) + 2) >> 2)


def passed(picture: Picture, taps: Taps, axis: int, add: Callable[[list[tuple[Any, Any]]], Any]) -> Picture:
    """One pass along the rows (axis 1) or the columns (axis 0)."""
    if axis == 1:
        return [[[add([(row[j][k], w) for j, w in some]) for k in range(3)] for some in taps] for row in picture]
    width = len(picture[0])
    return [[[add([(picture[j][c][k], w) for j, w in some]) for k in range(3)] for c in range(width)] for some in taps]


def bounded(x: int) -> int:
    return max(0, min(255, x))


def nearest(name: str, n: int, m: int) -> list[int]:
    if name == "opencv-nearest":
        return [min(math.floor(i * (1 / (m / n))), n - 1) for i in range(m)]
    if name == "tf-nearest":
        return [min(math.floor(f32((i + 0.5) * f32(n / m))), n - 1) for i in range(m)]
    found, place = [], 0.5 * (n / m)
    for _ in range(m):
        found.append(int(place))
        place += n / m
    return found


def pillow_taps(name: str, n: int, m: int) -> Taps:
    support, f = {
        "pillow-bilinear": (1.0, lambda x: max(0.0, 1 - abs(x))),
        "pillow-bicubic": (2.0, bicubic),
        "pillow-lanczos": (3.0, lambda x: sinc(x) * sinc(x / 3) if -3 <= x < 3 else 0.0),
        "pillow-box": (0.5, lambda x: 1.0 if -0.5 < x <= 0.5 else 0.0),
    }[name]
    scale = n / m
    stretch = max(scale, 1.0)
    taps: Taps = []
    for i in range(m):
        center, reach = (i + 0.5) * scale, support * stretch
        first, last = max(0, int(center - reach + 0.5)), min(n, int(center + reach + 0.5))
        weights = [f((j - center + 0.5) * (1 / stretch)) for j in range(first, last)]
        total = 0.0
        for w in weights:
            total += w
        fixed = [w / total * 2**22 for w in weights]
        taps.append([(first + k, int(w + math.copysign(0.5, w))) for k, w in enumerate(fixed)])
    return taps


def bicubic(x: float) -> float:
    a, x = -0.5, abs(x)
    if x < 1:
        return ((a + 2) * x - (a + 3)) * x * x + 1
    return (((x - 5) * x + 8) * x - 4) * a if x < 2 else 0.0


def sinc(x: float) -> float:
    return 1.0 if x == 0 else math.sin(math.pi * x) / (math.pi * x)


def pillow_sum(products: list[tuple[Any, Any]]) -> int:
    return bounded((2**21 + sum(p * w for p, w in products)) >> 22)


def edge(j: int, n: int) -> int:
    return max(0, min(n - 1, j))


def tf_taps(n: int, m: int) -> Taps:
    taps: Taps = []
    for i in range(m):
        x = f32(f32((i + 0.5) * f32(n / m)) - 0.5)
        j = math.floor(x)
        taps.append([(edge(j, n), f32(x - j)), (edge(j + 1, n), None)])
    return taps


def tf_sum(products: list[tuple[Any, Any]]) -> float:
    (a, t), (b, _) = products
    return f32(a + f32(f32(b - a) * t))


def opencv_taps(name: str, n: int, m: int) -> Taps:
    s = 1 / (m / n)
    taps: Taps = []
    for i in range(m):
        if name == "opencv-area":
            j = math.floor(i * s)
            t = f32((i + 1) - (j + 1) * (m / n))
            t = 0.0 if t <= 0 else f32(t - math.floor(t))
        else:
            x = f32((i + 0.5) * s - 0.5)
            j = math.floor(x)
            t = f32(x - j)
        if name == "opencv-cubic":
            taps.append([(edge(j - 1 + k, n), round(f32(w * 2048))) for k, w in enumerate(cubic_weights(t))])
        else:
            taps.append([(edge(j, n), round(f32(f32(1 - t) * 2048))), (edge(j + 1, n), round(f32(t * 2048)))])
    return taps


def cubic_weights(t: float) -> list[float]:
    a, u, v = -0.75, f32(t + 1), f32(1 - t)
    w0 = f32(f32(f32(f32(f32(f32(a * u) - 5 * a) * u) + 8 * a) * u) - 4 * a)
    w1, w2 = (f32(f32(f32(f32(f32((a + 2) * x) - (a + 3)) * x) * x) + 1) for x in (t, v))
    return [w0, w1, w2, f32(f32(f32(1 - w0) - w1) - w2)]


def blocks(picture: Picture, size: tuple[int, int], down: int, along: int) -> Picture:
    def level(r: int, c: int, k: int) -> int:
        total = sum(picture[down * r + y][along * c + x][k] for y in range(down) for x in range(along))
        if down == along == 2:
            return (total + 2) >> 2
        return round(f32(total * f32(1 / (down * along))))

    return [[[level(r, c, k) for k in range(3)] for c in range(size[1])] for r in range(size[0])]


def area_taps(n: int, m: int) -> Taps:
    s = 1 / (m / n)
    taps: Taps = []
    for i in range(m):
        b = i * s
        e, cell = b + s, min(s, n - b)
        last = min(math.floor(e), n - 1)
        whole = min(math.ceil(b), last)
        some = [(whole - 1, f32((whole - b) / cell))] if whole - b > 0.001 else []
        some += [(j, f32(1 / cell)) for j in range(whole, last)]
        if e - last > 0.001:
            some.append((last, f32(min(min(e - last, 1), cell) / cell)))
        taps.append(some)
    return taps


def float_sum(products: list[tuple[Any, Any]]) -> float:
    total = f32(products[0][0] * products[0][1])
    for p, w in products[1:]:
        total = f32(total + f32(p * w))
    return total


# 6. to 8. Receipt, meaning, canary


def receipt(picture: Picture) -> list[int]:
    return [sum(sum(pixel) for pixel in row) for row in picture]


def meaning(output: dict[str, Any], numbers: list[float]) -> dict[str, Any]:
    if output["task"] == "regression":
        return {"value": numbers[0] * output["scale"] + output["offset"], "decision": None, "probabilities": None}
    labels, threshold = output["labels"], output["threshold"]
    shares = numbers
    if output["activation"] == "sigmoid":
        shares = [1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x)) for x in numbers]
    elif output["activation"] == "softmax":
        powers = [math.exp(x - max(numbers)) for x in numbers]
        shares = [p / sum(powers) for p in powers]
    if output["task"] == "binary" and len(shares) == 1:
        shares = [1 - shares[0], shares[0]]
    least = 0.5 if threshold is None else threshold
    best = shares.index(max(shares))
    if output["task"] == "binary":
        best, decision = 1, labels[int(shares[1] >= least)]
    elif output["task"] == "multiclass":
        decision = labels[best] if threshold is None or shares[best] >= threshold else "unknown"
    else:
        decision = ", ".join(label for label, p in zip(labels, shares, strict=True) if p >= least) or "none"
    return {"value": shares[best], "decision": decision, "probabilities": dict(zip(labels, shares, strict=True))}


DRAWINGS = ((190, 90, 40, 420, -40, 0), (120, 45, 20, -420, 30, 0), (225, 150, 100, 380, 60, 3), (160, 60, 10, 0, 0, 14))


def drawing(which: int, height: int, width: int) -> Picture:
    red, green, blue, dc, dr, spots = DRAWINGS[which]

    def level(r: int, c: int, k: int) -> int:
        u, v = (2 * c + 1 - width) * 1024 // width, (2 * r + 1 - height) * 1024 // height
        q, d = u * u + v * v, (u - dc) ** 2 + (v - dr) ** 2
        p = ((blue, green, red)[k] * (256 - (q >> 14))) >> 8
        if (u + dc // 4) ** 2 + v * v < 12000:
            p = (p * 5) >> 3
        arch = abs(v - dr) - 40 - ((u - dc) ** 2 >> 11)
        if abs(arch) < 22 or abs(3 * abs(v - dr) - abs(u - dc)) < 14:
            p = (p * (4 + k)) >> 3
        if d < 22000:
            p = min(p + 90 - 20 * k, 255)
        if (((u >> 5) * 37 + (v >> 5) * 91) & 255) < spots and q < 810000:
            p = (60, 70, 120)[k] if spots < 10 else (110, 200, 230)[k]
        return 0 if q >= 1000000 else p

    return [[[level(r, c, k) for k in range(3)] for c in range(width)] for r in range(height)]


def canary_holds(known: list[list[float]], answered: list[list[float]]) -> bool:
    apart = max(abs(a - b) for a, b in zip(*known, strict=True))
    largest = max(abs(x) for row in known for x in row)
    off = max(abs(x - y) for one, other in zip(known, answered, strict=True) for x, y in zip(one, other, strict=True))
    return off <= max(0.1 * apart, 0.002 * largest)
