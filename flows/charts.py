"""Geometry of charts: values → positions in per cent of a plot, which a page stretches to any width."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

COLOURS = ((68, 1, 84), (59, 82, 139), (33, 145, 140), (94, 201, 98), (253, 231, 37))  # viridis, five of its colours


@dataclass(frozen=True)
class Tick:
    """A labelled place on an axis, per cent from the left or from the top."""

    place: float
    label: str


@dataclass(frozen=True)
class Line:
    """One series: its name and mean for the legend, its SVG path in a 100 × 100 box, and its CSS class."""

    name: str
    mean: str
    path: str
    css: str


@dataclass(frozen=True)
class LineChart:
    """Lines over frame numbers, with ticks on both axes."""

    lines: list[Line]
    x_ticks: list[Tick]
    y_ticks: list[Tick]
    first: int
    last: int


def line_chart(
    series: Sequence[tuple[str, str, Sequence[float]]], first: int, *, from_zero: bool = True, digits: int = 2
) -> LineChart:
    """Chart of (name, css class, value per frame), whose first value belongs to frame `first`; NaNs are gaps."""
    sound = [value for _, _, values in series for value in values if math.isfinite(value)] or [0.0, 1.0]
    count = max(len(values) for _, _, values in series)
    y_values = nice_ticks(0.0 if from_zero else min(sound), max(sound))
    low, high = y_values[0], y_values[-1]
    lines = [
        Line(name, mean_of(values, digits), path([100 * (high - value) / (high - low) for value in values]), css)
        for name, css, values in series
    ]
    decimals = max(0, -math.floor(math.log10(y_values[1] - y_values[0]) + 1e-9))
    x_step = max(1, math.ceil((count - 1) / 8))
    x_ticks = [Tick(x_place(at, count), str(first + at)) for at in range(0, count, x_step)]
    y_ticks = [Tick(100 * (high - value) / (high - low), f"{value:.{decimals}f}") for value in y_values]
    return LineChart(lines, x_ticks, y_ticks, first, first + count - 1)


def nice_ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Round numbers, evenly spaced, from at or below `low` to at or above `high`."""
    span = max(high - low, 1e-9 + 1e-6 * abs(high))
    rough = span / (most - 1)
    size = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * size for factor in (1, 2, 2.5, 5, 10) if factor * size >= rough)
    begin, end = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [position * step for position in range(begin, max(end, begin + 1) + 1)]


def path(heights: Sequence[float]) -> str:
    """SVG path through points evenly spaced from left to right; a NaN lifts the pen."""
    drawn, pen_down = [], False
    for at, height in enumerate(heights):
        if math.isfinite(height):
            drawn.append(f"{'L' if pen_down else 'M'}{x_place(at, len(heights)):.2f} {height:.2f}")
        pen_down = math.isfinite(height)
    return "".join(drawn)


def x_place(position: int, count: int) -> float:
    """Per cent from the left of one of `count` points."""
    return 100 * position / (count - 1) if count > 1 else 50.0


def mean_of(values: Sequence[float], digits: int) -> str:
    """The mean of what is finite, as a legend shows it."""
    sound = [value for value in values if math.isfinite(value)]
    return f"{sum(sound) / len(sound):.{digits}f}" if sound else "–"


def colour(share: float) -> str:
    """A colour between dark and bright for `share` in [0, 1], as CSS."""
    place = min(max(share, 0.0), 1.0) * (len(COLOURS) - 1)
    left = min(int(place), len(COLOURS) - 2)
    mixed = [round(a + (b - a) * (place - left)) for a, b in zip(COLOURS[left], COLOURS[left + 1], strict=True)]
    return f"rgb({mixed[0]} {mixed[1]} {mixed[2]})"
