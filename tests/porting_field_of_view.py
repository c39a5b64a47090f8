"""The field of view once more in plain Python, written from docs/porting.md alone (see porting.py)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import median
from typing import Any

Picture = list[list[list[int]]]
Plane = list[list[int]]


@dataclass
class Circle:
    x: float
    y: float
    r: float
    score: float = 0.0


def field_of_view(frame: Picture, words: list[int]) -> dict[str, Any]:
    """Centre, radius, cut sides and whether a circle was found."""
    height, width = len(frame), len(frame[0])
    small, step, start = reduced(frame)
    circle = best_circle(small, words)
    if circle is None:
        sides = ["top", "bottom", "left", "right"]
        return {"center": [(width - 1) / 2, (height - 1) / 2], "radius": max(width, height) / 2, "found": False, "cut": sides}
    x, y, r = circle.x * step + start, circle.y * step + start, circle.r * step
    passes = {
        "top": y - 0.99 * r < -0.5, "bottom": y + 0.99 * r > height - 0.5,
        "left": x - 0.99 * r < -0.5, "right": x + 0.99 * r > width - 0.5,
    }  # fmt: skip
    return {"center": [x, y], "radius": r, "found": True, "cut": [side for side, is_cut in passes.items() if is_cut]}


def reduced(frame: Picture) -> tuple[Picture, int, float]:
    height, width = len(frame), len(frame[0])
    longer = max(height, width)
    if longer <= 400:
        return frame, 1, 0.0
    stride = -(-longer // 800)
    first = stride // 2
    rows, columns = (height - first) // stride, (width - first) // stride
    taken = [[frame[first + r * stride][first + c * stride] for c in range(columns)] for r in range(rows)]
    small = [
        [
            [(taken[r][c][k] + taken[r][c + 1][k] + taken[r + 1][c][k] + taken[r + 1][c + 1][k] + 2) >> 2 for k in range(3)]
            for c in range(0, columns - 1, 2)
        ]
        for r in range(0, rows - 1, 2)
    ]
    return small, 2 * stride, first + stride / 2


def best_circle(small: Picture, words: list[int]) -> Circle | None:
    best: Circle | None = None
    for color, surround in surrounds(small):
        distance = distances(small, color)
        apart = sorted(max(abs(level - c) for level, c in zip(pixel, color, strict=True)) for pixel in surround)
        noise = max(4.0, min(24.0, 1.5 * apart[len(apart) * 9 // 10]))
        for factor in (1.0, 2.5, 6.0):
            circle = consensus(outline(distance, noise * factor), len(small[0]), len(small), words)
            circle = circle and judged(circle, distance, noise)
            if circle is not None and (best is None or circle.score > best.score):
                best = circle
            if best is not None and best.score > 0.9:
                return best
    return best


def surrounds(small: Picture) -> list[tuple[list[float], list[list[int]]]]:
    height, width = len(small), len(small[0])
    b = max(2, min(height, width) // 16)
    corners = [
        [small[r][c] for r in rows for c in columns]
        for rows in (range(b), range(height - b, height))
        for columns in (range(b), range(width - b, width))
    ]
    margin = [
        *small[0],
        *small[-1],
        *(row[0] for row in small),
        *(row[-1] for row in small),
        *(p for some in corners for p in some),
    ]
    levels = sorted(max(pixel) for pixel in margin)
    dark_ones = [pixel for pixel in margin if max(pixel) <= levels[len(levels) // 10] + 6]
    dark = medians(dark_ones)
    found = [(dark, dark_ones)]
    middles = [medians(corner) for corner in corners]
    page = medians(middles)
    alike = [some for some, middle in zip(corners, middles, strict=True) if differ(middle, page) <= 12]
    if len(alike) >= 2 and differ(page, dark) > 16:
        found.append((page, [pixel for some in alike for pixel in some]))
    return found


def medians(pixels: list[Any]) -> list[float]:
    return [float(median(pixel[k] for pixel in pixels)) for k in range(3)]


def differ(one: list[float], other: list[float]) -> float:
    return max(abs(a - b) for a, b in zip(one, other, strict=True))


def distances(small: Picture, color: list[float]) -> Plane:
    a, b, c = color
    raw = [[round(max(abs(p[0] - a), abs(p[1] - b), abs(p[2] - c))) for p in row] for row in small]
    wide = [[row[0], *row, row[-1]] for row in raw]
    wide = [wide[0], *wide, wide[-1]]
    return [
        [sorted((*above[c : c + 3], *row[c : c + 3], *below[c : c + 3]))[4] for c in range(len(raw[0]))]
        for above, row, below in zip(wide, wide[1:], wide[2:], strict=False)
    ]


def outline(distance: Plane, threshold: float) -> list[tuple[float, float]]:
    height, width = len(distance), len(distance[0])
    mask = [[level > threshold for level in row] for row in distance]
    for combine in (all, any):  # erosion, dilation: rows, then columns
        mask = [[combine(row[max(0, c - 2) : c + 3]) for c in range(width)] for row in mask]
        turned = [[mask[r][c] for r in range(height)] for c in range(width)]
        turned = [[combine(row[max(0, r - 2) : r + 3]) for r in range(height)] for row in turned]
        mask = [[turned[c][r] for c in range(width)] for r in range(height)]
    region = largest_region(mask)
    if not region:
        return []
    rows: dict[int, list[int]] = {}
    columns: dict[int, list[int]] = {}
    for r, c in region:
        rows.setdefault(r, []).append(c)
        columns.setdefault(c, []).append(r)
    points = [(min(some) - 0.5, float(r)) for r, some in sorted(rows.items()) if min(some) > 1]
    points += [(max(some) + 0.5, float(r)) for r, some in sorted(rows.items()) if max(some) < width - 2]
    points += [(float(c), min(some) - 0.5) for c, some in sorted(columns.items()) if min(some) > 1]
    return points + [(float(c), max(some) + 0.5) for c, some in sorted(columns.items()) if max(some) < height - 2]


def largest_region(mask: list[list[bool]]) -> list[tuple[int, int]]:
    height, width = len(mask), len(mask[0])
    seen = [[False] * width for _ in range(height)]
    largest: list[tuple[int, int]] = []
    for r in range(height):
        for c in range(width):
            if mask[r][c] and not seen[r][c]:
                region, waiting = [], [(r, c)]
                seen[r][c] = True
                while waiting:
                    y, x = waiting.pop()
                    region.append((y, x))
                    for v in range(max(0, y - 1), min(height, y + 2)):
                        for u in range(max(0, x - 1), min(width, x + 2)):
                            if mask[v][u] and not seen[v][u]:
                                seen[v][u] = True
                                waiting.append((v, u))
                largest = max(largest, region, key=len)
    return largest


def consensus(points: list[tuple[float, float]], width: int, height: int, words: list[int]) -> Circle | None:
    count = len(points)
    if count < 24:
        return None
    numbers = [word * count >> 32 for word in words if word * count % 2**32 >= 2**32 % count][:480]
    some = points[:: max(1, count // 120)]
    best, most = None, 9
    for i in range(0, 480, 3):
        circle = through(*(points[number] for number in numbers[i : i + 3]))
        if circle is None or not 0.06 * min(width, height) < circle.r < 0.8 * max(width, height):
            continue
        if not (-0.1 * width < circle.x < 1.1 * width and -0.1 * height < circle.y < 1.1 * height):
            continue
        slack = 2 * circle.r * (1 + 0.008 * circle.r)
        near = sum(abs((x - circle.x) ** 2 + (y - circle.y) ** 2 - circle.r**2) < slack for x, y in some)
        if near > most:
            best, most = circle, near
    return best


def through(a: tuple[float, float], b: tuple[float, float], c: tuple[float, float]) -> Circle | None:
    bx, by, cx, cy = b[0] - a[0], b[1] - a[1], c[0] - a[0], c[1] - a[1]
    area = 2 * (bx * cy - by * cx)
    if area == 0:
        return None
    bb, cc = bx * bx + by * by, cx * cx + cy * cy
    x, y = (cy * bb - by * cc) / area, (bx * cc - cx * bb) / area
    return Circle(a[0] + x, a[1] + y, math.hypot(x, y))


@dataclass
class Ray:
    angle: float
    edge: float
    fall: float
    strong: bool
    outside: float | None


def rim(circle: Circle, distance: Plane, noise: float) -> list[Ray]:
    return [ray(circle, distance, noise, 2 * math.pi * a / 180) for a in range(180)]


def ray(circle: Circle, distance: Plane, noise: float, angle: float) -> Ray:
    height, width = len(distance), len(distance[0])
    samples: list[float | None] = []
    for i in range(49):
        length = circle.r * (1 + -0.12 + 0.005 * i)
        x, y = circle.x + math.cos(angle) * length, circle.y + math.sin(angle) * length
        inside = -0.5 < x < width - 0.5 and -0.5 < y < height - 0.5 and None not in samples
        samples.append(bilinear(distance, x, y) if inside else None)
    falls = {}
    for i in range(5, 45):
        inner, outer = mean(samples[i - 4 : i]), mean(samples[i + 1 : i + 5])
        falls[i] = -1.0 if inner is None or outer is None else inner - outer
    best = max(falls, key=lambda i: falls[i])
    fall = falls[best]
    before, after = falls[max(5, best - 1)], falls[min(44, best + 1)]
    bend = before + after - 2 * fall
    finer = max(-0.5, min(0.5, (before - after) / (2 * bend))) if bend < 0 else 0.0
    first = mean(samples[:6])
    ends = math.inf if first is None else first - (mean(samples[-6:]) or 0.0)
    strong = fall > max(3.0, 0.75 * noise) and fall > 0.3 * ends and 5 < best < 44
    return Ray(angle, -0.12 + 0.005 * (best + finer), fall, strong, mean(samples[30:34]))


def mean(samples: list[float | None]) -> float | None:
    known = [sample for sample in samples if sample is not None]
    return sum(known) / len(known) if len(known) == len(samples) else None


def bilinear(plane: Plane, x: float, y: float) -> int:
    height, width = len(plane), len(plane[0])
    c, r = math.floor(x), math.floor(y)
    t, s = x - c, y - r
    left, right = max(0, min(width - 1, c)), max(0, min(width - 1, c + 1))
    above, below = plane[max(0, min(height - 1, r))], plane[max(0, min(height - 1, r + 1))]
    return round((above[left] * (1 - t) + above[right] * t) * (1 - s) + (below[left] * (1 - t) + below[right] * t) * s)


def judged(circle: Circle, distance: Plane, noise: float) -> Circle | None:
    strong = [one for one in rim(circle, distance, noise) if one.strong]
    if len(strong) < 10.8:
        return None
    circle = fitted(circle, strong)
    rays = rim(circle, distance, noise)
    confirmed = [i for i, one in enumerate(rays) if one.strong and abs(one.edge) < max(0.02, 1 / circle.r)]
    visible = [i for i, one in enumerate(rays) if one.outside is not None]
    contradicted = [i for i in visible if i not in confirmed and (rays[i].outside or 0) > 2 * noise]
    if len(confirmed) < 14.4 or len(confirmed) < 1.5 * len(contradicted):
        return None
    share = min(1.0, len(confirmed) / max(1, len(visible)))
    gap = max(b - a for a, b in zip(confirmed, [*confirmed[1:], confirmed[0] + 180], strict=True)) / 180
    if gap > 0.85 or (gap > 0.75 and share < 0.8):
        return None
    if share < 0.6 and (noise > 10 or purity(circle, distance, noise) < 0.9):
        return None
    levels = sorted(level for row in distance[::8] for level in row[::8])
    bright = levels[-(len(levels) // 8) - 1]
    clear = min(1.0, median(rays[i].fall for i in confirmed) / (0.1 * max(1.0, bright)))
    circle.score = clear * (share - len(contradicted) / max(1, len(visible)))
    return circle


def purity(circle: Circle, distance: Plane, noise: float) -> float:
    outside = [
        level
        for y, row in enumerate(distance)
        for x, level in enumerate(row)
        if math.hypot(x - circle.x, y - circle.y) > 1.04 * circle.r
    ]
    return sum(level <= 2 * noise for level in outside) / max(1, len(outside))


def fitted(circle: Circle, rays: list[Ray]) -> Circle:
    x, y, r = circle.x, circle.y, circle.r
    lengths = [r * (1 + one.edge) for one in rays]
    points = [(x + math.cos(one.angle) * n, y + math.sin(one.angle) * n) for one, n in zip(rays, lengths, strict=True)]
    for _ in range(3):
        away = [math.hypot(px - x, py - y) for px, py in points]
        residuals = [a - r for a in away]
        spread = max(0.3, 1.4826 * median(abs(e) for e in residuals))
        normal, right = [[0.0] * 3 for _ in range(3)], [0.0] * 3
        for (px, py), a, e in zip(points, away, residuals, strict=True):
            weight = max(0.0, 1 - (e / (4.685 * spread)) ** 2) ** 2
            row = ((px - x) / a, (py - y) / a, 1.0)
            for i in range(3):
                right[i] += weight * row[i] * e
                for j in range(3):
                    normal[i][j] += weight * row[i] * row[j]
        dx, dy, dr = solved(normal, right)
        x, y, r = x + dx, y + dy, r + dr
    return Circle(x, y, r)


def solved(matrix: list[list[float]], right: list[float]) -> list[float]:
    """Cramer's rule for three equations."""

    def determinant(m: list[list[float]]) -> float:
        (a, b, c), (d, e, f), (g, h, i) = m
        return a * (e * i - f * h) - b * (d * i - f * g) + c * (d * h - e * g)

    whole = determinant(matrix)
    columns = [[[right[r] if c == k else matrix[r][c] for c in range(3)] for r in range(3)] for k in range(3)]
    return [determinant(column) / whole for column in columns]
