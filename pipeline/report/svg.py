"""Charts as inline SVG: bars, lines, scatter and matrix. Colours are CSS classes of the page; text is escaped.

Small charts are 340 units wide: one unit is then about one pixel on a phone, and the text is legible.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np

WIDTH = 340
NAMED = 40
"""Matrices with more classes than this are drawn as an image without names and numbers."""

RIGHT, WRONG = (50, 125, 175), (200, 75, 65)
POINTS = 300
"""Curves with more logged values than this are drawn as means of blocks, with the range of each block."""

# Ten colours for light and dark backgrounds; more classes get evenly spaced hues.
_COLOURS = ["#4e79a7", "#f28e2b", "#d9534f", "#3fa39b", "#59a14f"]
_COLOURS += ["#c9a227", "#a56a9c", "#e07b91", "#8c6d55", "#6f7bd0"]


@dataclass(frozen=True)
class Bar:
    """One bar.

    Attributes:
        label: Name.
        value: Length.
        text: The value as text.
        kind: CSS class.
        low: Lower end of the whisker; no whisker if it is not below `high`.
        high: Upper end of the whisker.
    """

    label: str
    value: float
    text: str
    kind: str
    low: float = 0.0
    high: float = 0.0


@dataclass(frozen=True)
class Point:
    """One mark of the scatter.

    Attributes:
        x: Position.
        y: Position.
        kind: 0 draws a circle, 1 a cross.
        group: Class, for the colour.
        sample: Marks with the same number belong together.
        title: Tooltip.
    """

    x: float
    y: float
    kind: int
    group: int
    sample: int
    title: str


def colour(index: int, count: int) -> str:
    """CSS colour of class `index` of `count`; grey for -1, the unknown class."""
    if index < 0:
        return "#8a8f98"
    if count <= len(_COLOURS):
        return _COLOURS[index]
    # Golden-angle steps give neighbouring indices distinct hues.
    return f"hsl({index * 137.508 % 360:.0f} 55% {(45, 58)[index % 2]}%)"


def bars(rows: Sequence[Bar], top: float, title: str) -> str:
    """Draw horizontal bars from 0 to `top`, each below its label."""
    step, parts = 34, []
    for i, bar in enumerate(rows):
        y = i * step
        length = WIDTH * min(max(bar.value / top, 0), 1)
        parts.append(
            f'<g class="bar {bar.kind}"><title>{escape(f"{bar.label}: {bar.text}")}</title>'
            f'<text x="0" y="{y + 13}">{escape(_short(bar.label, 38))}</text>'
            f'<text class="value" x="{WIDTH}" y="{y + 13}">{escape(bar.text)}</text>'
            f'<rect class="track" y="{y + 19}" width="{WIDTH}" height="7" rx="2"/>'
            f'<rect class="fill" y="{y + 19}" width="{length:.1f}" height="7" rx="2"/>'
            f"{_whisker(bar, top, y + 22.5)}</g>"
        )
    return _svg(WIDTH, step * len(rows), "".join(parts), title)


def _whisker(bar: Bar, top: float, y: float) -> str:
    if bar.low >= bar.high:
        return ""
    low, high = (WIDTH * min(max(value / top, 0), 1) for value in (bar.low, bar.high))
    return f'<path class="whisker" d="M{low:.1f} {y}H{high:.1f}M{low:.1f} {y - 4}v8M{high:.1f} {y - 4}v8"/>'


@dataclass(frozen=True)
class _Scale:
    """Maps values from [low, high] to page units [start, end]. With `log`, the bounds are exponents of ten."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: Any) -> Any:
        bent = np.log10(value) if self.log else np.asarray(value)
        return self.start + (bent - self.low) / (self.high - self.low) * (self.end - self.start)

    def ticks(self) -> list[float]:
        if not self.log:
            return ticks(self.low, self.high)
        decades = range(math.ceil(self.low), math.floor(self.high) + 1)
        return [10.0**d for d in decades[:: max(1, len(decades) // 4)]] or [10.0**self.low, 10.0**self.high]


def lines(series: Sequence[tuple[Sequence[float], Sequence[float]]], title: str) -> str:
    """Draw curves, with gaps where y is not finite.

    The y axis is logarithmic if all values are positive and the largest is over 50 times the median.

    Args:
        series: `(x, y)` of each curve; the i-th has the CSS class `s{i}`.
        title: Label for screen readers.

    Returns:
        SVG; empty if no value is finite.
    """
    height, left, right, bottom = 170, 40, WIDTH - 6, 148
    curves = [(np.asarray(x, float), np.asarray(y, float)) for x, y in series]
    xs, finite = np.concatenate([x for x, _ in curves]), np.concatenate([y[np.isfinite(y)] for _, y in curves])
    if finite.size == 0:
        return ""
    log = bool(finite.min() > 0 and finite.max() > 50 * np.median(finite))
    bounds = np.array([finite.min(), finite.max()])
    first, last = (xs.min(), xs.max()) if xs.min() < xs.max() else _padded(xs.min(), xs.max())
    low, high = _padded(*(np.log10(bounds) if log else bounds))
    across, up = _Scale(first, last, left, right), _Scale(low, high, bottom, 8, log)
    parts = []
    for value in up.ticks():
        y, text = float(up(value)), _compact(value)
        parts.append(f'<path class="grid" d="M{left} {y:.1f}H{right}"/>')
        parts.append(f'<text class="tick" x="{left - 5}" y="{y + 4:.1f}" text-anchor="end">{text}</text>')
    for value in across.ticks():
        x, text = min(float(across(value)), right - 8), _compact(value)
        parts.append(f'<text class="tick" x="{x:.1f}" y="{bottom + 17}" text-anchor="middle">{text}</text>')
    for i, (steps, values) in reversed(list(enumerate(curves))):
        parts.append(f'<g class="s{i}">{_curve(steps, values, across, up, band=i == 0)}</g>')
    return _svg(WIDTH, height, "".join(parts), title + (" (log scale)" if log else ""))


def scatter(points: Sequence[Point], groups: int, title: str) -> str:
    """Draw a map without axes. Marks of a group share a colour, and have `data-sample` for the script of the page."""
    width, height, pad = 720, 480, 12
    xy = np.array([(p.x, p.y) for p in points])
    span = np.ptp(xy, axis=0)
    xy = (xy - xy.min(axis=0)) / np.where(span > 0, span, 1) * (width - 2 * pad, height - 2 * pad) + pad
    marks: dict[int, list[str]] = {}
    for point, (x, y) in zip(points, xy, strict=True):
        data = f'data-sample="{point.sample}" data-x="{x:.1f}" data-y="{y:.1f}"'
        data += f' aria-label="{escape(point.title)}"'
        if point.kind == 0:
            mark = f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" {data}/>'
        else:
            mark = f'<path d="M{x - 3.5:.1f} {y - 3.5:.1f}l7 7m0-7l-7 7" {data}/>'
        marks.setdefault(point.group, []).append(mark)
    body = "".join(
        f'<g data-group="{group}" style="color:{colour(group, groups)}">{"".join(marks[group])}</g>'
        for group in sorted(marks)
    )
    return _svg(width, height, f'{body}<path class="pair" d=""/>', title, "map")


def matrix(counts: np.ndarray, names: Sequence[str], title: str) -> str:
    """Draw a confusion matrix, shaded by the fraction of each row, with numbers and names if they fit.

    Args:
        counts: `[K, K]`; rows are true classes.
        names: Names of the K classes.
        title: Label for screen readers.
    """
    k = len(names)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    if k > NAMED:
        right = np.eye(k, dtype=bool)[..., None]
        return pixels(np.sqrt(shares), np.where(right, RIGHT, WRONG), title)
    cell = max(5, min(44, 380 // k))
    label = 8 + 7 * max(len(_short(name, 16)) for name in names)
    parts = []
    for row, column in np.argwhere(counts):
        x, y, share = label + column * cell, label + row * cell, shares[row, column]
        words = f"{names[row]} predicted as {names[column]}: {counts[row, column]} ({100 * share:.0f} %)"
        parts.append(
            f'<g class="{"hit" if row == column else "miss"}"><title>{escape(words)}</title>'
            f'<rect x="{x}" y="{y}" width="{cell - 1}" height="{cell - 1}" fill-opacity="{0.08 + 0.92 * share:.2f}"/>'
        )
        if cell >= 26:
            kind = "count strong" if share > 0.55 else "count"
            number = _compact(counts[row, column])
            parts.append(f'<text class="{kind}" x="{x + cell / 2 - 0.5}" y="{y + cell / 2 + 3.5}">{number}</text>')
        parts.append("</g>")
    for i, name in enumerate(names):
        middle = label + i * cell + cell / 2
        text = escape(_short(name, 16))
        parts.append(f'<text class="tick" x="{label - 6}" y="{middle + 4}" text-anchor="end">{text}</text>')
        parts.append(f'<text class="tick" transform="translate({middle + 4} {label - 6}) rotate(-90)">{text}</text>')
    size = label + k * cell + 1
    return _svg(size, size, "".join(parts), title, "matrix")


def pixels(strength: np.ndarray, colour: np.ndarray | tuple[int, int, int], title: str) -> str:
    """Draw `strength [n, m]` in [0, 1] as the opacity of a colour, for light and dark backgrounds.

    Args:
        strength: `[n, m]` in [0, 1].
        colour: RGB in 0..255, one for all or one per pixel.
        title: Label for screen readers.
    """
    import cv2

    image = np.zeros((*strength.shape, 4), np.uint8)
    image[..., :3] = np.asarray(colour)[..., ::-1]  # OpenCV writes BGR
    image[..., 3] = np.round(255 * strength)
    png = base64.b64encode(cv2.imencode(".png", image)[1].tobytes()).decode()
    return f'<img class="pixels" alt="{escape(title)}" src="data:image/png;base64,{png}">'


def ticks(low: float, high: float) -> list[float]:
    """At least three round numbers in [low, high]: multiples of the largest possible step 1, 2 or 5 times 10**n."""
    power = 10.0 ** math.floor(math.log10(high - low))
    for factor in (5, 2, 1, 0.5, 0.2, 0.1):
        step = factor * power
        numbers = range(math.ceil(low / step), math.floor(high / step) + 1)
        if len(numbers) >= 3:
            break
    return [float(f"{i * step:.12g}") for i in numbers]


def _padded(low: float, high: float) -> tuple[float, float]:
    pad = 0.05 * (high - low) or 0.05 * abs(high) or 1.0
    return low - pad, high + pad


def _curve(x: np.ndarray, y: np.ndarray, across: _Scale, up: _Scale, band: bool) -> str:
    """The path of one curve: all values if there are few, else the mean and (as a band) the range of each block."""
    parts = []
    if len(x) > POINTS:
        blocks = [b for b in np.array_split(np.arange(len(x)), POINTS) if np.isfinite(y[b]).all()]
        highs, lows = [(x[b].mean(), y[b].max()) for b in blocks], [(x[b].mean(), y[b].min()) for b in blocks]
        x, y = np.array([x[b].mean() for b in blocks]), np.array([y[b].mean() for b in blocks])
        if band and blocks:
            outline = "L".join(f"{across(a):.1f} {up(b):.1f}" for a, b in [*highs, *reversed(lows)])
            parts.append(f'<path class="band" d="M{outline}Z"/>')
    path, pen = [], "M"
    for a, b in zip(x, y, strict=True):
        if math.isfinite(b):
            path.append(f"{pen}{across(a):.1f} {up(b):.1f}")
        pen = "L" if math.isfinite(b) else "M"
    if path:
        # Round caps make a single value visible as a dot.
        parts.append(f'<path class="line" d="{"".join(path)}{"h0" if len(path) == 1 else ""}"/>')
    return "".join(parts)


def _compact(value: float) -> str:
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= size:
            return f"{value / (1e3 if letter == 'k' else size):.3g}{letter}"
    return f"{value:.3g}"


def _short(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"


def _svg(width: float, height: float, body: str, title: str, kind: str = "chart") -> str:
    return (
        f'<svg class="{kind}" viewBox="0 0 {width:g} {height:g}" role="img" aria-label="{escape(title)}" '
        f'style="--width:{width:g}px">{body}</svg>'
    )
