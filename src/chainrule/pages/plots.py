"""Scatter plots and curves as SVG text, in the colours of the page around them: readable in light and in dark."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 560, 320
LEFT, RIGHT, TOP, BOTTOM = 64, 24, 16, 48


@dataclass(frozen=True)
class Point:
    """A named point of a scatter plot."""

    x: float
    y: float
    label: str


@dataclass(frozen=True)
class Line:
    """A named curve through points (x, y), at least one."""

    points: Sequence[tuple[float, float]]
    label: str


def scatter(points: Sequence[Point], x_title: str, y_title: str) -> str:
    """Points with their names, on logarithmic axes with ticks at 1, 2 and 5 times powers of ten.

    Args:
        points: at least one; all coordinates are above 0.
        x_title, y_title: what the axes show, with the unit.
    """
    xs, ys = _Axis([p.x for p in points], LEFT, WIDTH - RIGHT), _Axis([p.y for p in points], HEIGHT - BOTTOM, TOP)
    parts = _frame(xs, ys, x_title, y_title)
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


def lines(curves: Sequence[Line], x_title: str, y_title: str) -> str:
    """Curves with their names above the plot, told apart by their dashes, on even axes.

    Args:
        curves: at least one, four at most.
        x_title, y_title: what the axes show, with the unit.
    """
    places = [point for curve in curves for point in curve.points]
    xs = _EvenAxis([x for x, _ in places], LEFT, WIDTH - RIGHT)
    ys = _EvenAxis([y for _, y in places], HEIGHT - BOTTOM, TOP + 18)
    parts, left = _frame(xs, ys, x_title, y_title), LEFT
    for number, curve in enumerate(curves):
        shown = " ".join(f"{xs.place(x):.1f},{ys.place(y):.1f}" for x, y in curve.points)
        parts.append(f'<polyline class="curve curve-{number}" points="{shown}"/>')
        parts.append(f'<polyline class="curve curve-{number}" points="{left},{TOP - 4} {left + 28},{TOP - 4}"/>')
        parts.append(_text(left + 34, TOP, curve.label, "start"))
        left += 52 + 7 * len(curve.label)
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


class _EvenAxis:
    """An axis with even steps of 1, 2 or 5 times a power of ten."""

    def __init__(self, values: Sequence[float], start: float, end: float) -> None:
        low, high = min(values), max(values)
        if low == high:
            low, high = low - 0.5, high + 0.5
        power = 10.0 ** math.floor(math.log10((high - low) / 4))
        step = next(factor * power for factor in (1, 2, 5, 10) if (high - low) / (factor * power) <= 6)
        self.low, self.high, self.start, self.end = low, high, start, end
        self.ticks = [step * tick for tick in range(math.ceil(low / step), math.floor(high / step) + 1)]

    def place(self, value: float) -> float:
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)


def _frame(xs: _Axis | _EvenAxis, ys: _Axis | _EvenAxis, x_title: str, y_title: str) -> list[str]:
    """The start of a plot: grid, ticks and titles of the axes."""
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
    return [*parts, turned]


def _line(x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line class="grid" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _number(value: float) -> str:
    return f"{value:,.10f}".rstrip("0").rstrip(".")
