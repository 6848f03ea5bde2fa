"""Scatter plots as SVG text, in the colours of the page around them: readable in light and in dark."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 560, 320
LEFT, RIGHT, TOP, BOTTOM = 64, 24, 16, 48


@dataclass(frozen=True)
class Point:
    """A system on a plot."""

    x: float
    y: float
    label: str


def scatter(points: Sequence[Point], x_title: str, y_title: str) -> str:
    """Points with their names, on logarithmic axes with ticks at 1, 2 and 5 times powers of ten.

    Args:
        points: at least one; all coordinates are above 0.
        x_title, y_title: what the axes show, with the unit.
    """
    xs, ys = _Axis([p.x for p in points], LEFT, WIDTH - RIGHT), _Axis([p.y for p in points], HEIGHT - BOTTOM, TOP)
    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(f"{y_title} against {x_title}")}">']
    for value in xs.ticks:
        x = xs.place(value)
        parts += [_line(x, TOP, x, HEIGHT - BOTTOM), _text(x, HEIGHT - BOTTOM + 16, _number(value), "middle")]
    for value in ys.ticks:
        y = ys.place(value)
        parts += [_line(LEFT, y, WIDTH - RIGHT, y), _text(LEFT - 6, y + 4, _number(value), "end")]
    parts.append(_text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 10, x_title, "middle"))
    middle = (TOP + HEIGHT - BOTTOM) / 2
    turned = f'<text transform="translate(14 {middle:.0f}) rotate(-90)" text-anchor="middle">{escape(y_title)}</text>'
    parts.append(turned)
    taken: list[tuple[float, float]] = []
    for point in sorted(points, key=lambda p: p.y):
        x, y = xs.place(point.x), ys.place(point.y)
        parts.append(f'<circle class="point" cx="{x:.1f}" cy="{y:.1f}" r="4.5"/>')
        side = "end" if x > WIDTH * 0.72 else "start"
        label_y = y + 4
        while any(abs(label_y - other_y) < 13 and abs(x - other_x) < 130 for other_x, other_y in taken):
            label_y += 13
        taken.append((x, label_y))
        parts.append(_text(x - 9 if side == "end" else x + 9, label_y, point.label, side))
    return "".join([*parts, "</svg>"])


class _Axis:
    """A logarithmic axis between two places of the picture."""

    def __init__(self, values: Sequence[float], start: float, end: float) -> None:
        low, high = math.log10(min(values)), math.log10(max(values))
        margin = max(0.08 * (high - low), 0.05)
        self.low, self.high, self.start, self.end = low - margin, high + margin, start, end
        exponents = range(math.floor(self.low), math.ceil(self.high) + 1)
        steps = (1, 2, 5) if self.high - self.low < 2.5 else (1,)
        ticks = [step * 10.0**exponent for exponent in exponents for step in steps]
        self.ticks = [tick for tick in ticks if self.low <= math.log10(tick) <= self.high]

    def place(self, value: float) -> float:
        share = (math.log10(value) - self.low) / (self.high - self.low)
        return self.start + share * (self.end - self.start)


def _line(x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line class="grid" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 1 else f"{value:.10f}".rstrip("0")
