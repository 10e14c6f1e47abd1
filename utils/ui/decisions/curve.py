"""The loss curve as numbers for a small picture that is drawn several times a minute. Draws nothing.

The dashboard's pictures take a tenth of a second each, which a training would feel; this one takes a millisecond.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from utils.training.curves import COLOURS, Panel, Series

WIDTH, HEIGHT = 640.0, 240.0
LEFT, RIGHT, TOP, BOTTOM = 52.0, 10.0, 10.0, 28.0
"""Room for the numbers around the curves."""
TICKS = 4


@dataclass(frozen=True)
class Line:
    """One curve: `points` for an SVG polyline, `dots` where its values are marked."""

    label: str
    colour: str
    points: str
    dots: tuple[tuple[float, float], ...]
    last: str


@dataclass(frozen=True)
class LossCurve:
    """Curves and axes in the units of the picture.

    Attributes:
        lines: curves. across: (height, text) of the lines of the y axis. along: (place, text) on the x axis.
        unit: of the y axis. axis: of the x axis.
    """

    lines: tuple[Line, ...]
    across: tuple[tuple[float, str], ...]
    along: tuple[tuple[float, str], ...]
    unit: str
    axis: str
    width: float = WIDTH
    height: float = HEIGHT
    left: float = LEFT
    right: float = WIDTH - RIGHT
    bottom: float = HEIGHT - BOTTOM

    @classmethod
    def of(cls, panel: Panel) -> LossCurve:
        """From a panel of curves; what is not finite is left out."""
        pairs = [[(x, y) for x, y in zip(series.x, series.y) if math.isfinite(y)] for series in panel.series]
        xs, ys = [x for line in pairs for x, _ in line], [y for line in pairs for _, y in line]
        if not xs:
            return cls((), (), (), panel.ylabel, panel.xlabel)
        (x0, x1), (y0, y1) = _span(xs), _span(ys)

        def place(x: float, y: float) -> tuple[float, float]:
            across = LEFT + (x - x0) / (x1 - x0) * (WIDTH - LEFT - RIGHT)
            return round(across, 1), round(HEIGHT - BOTTOM - (y - y0) / (y1 - y0) * (HEIGHT - TOP - BOTTOM), 1)

        lines = tuple(
            _line(series, line, COLOURS[number], place)
            for number, (series, line) in enumerate(zip(panel.series, pairs))
        )
        across = tuple((place(x0, y)[1], f"{y:.3g}") for y in _ticks(y0, y1))
        along = tuple(
            (place(x, y0)[0], f"{x:,.0f}") for x in sorted({float(round(x)) for x in _ticks(x0, x1)}) if x0 <= x <= x1
        )
        return cls(lines, across, along, panel.ylabel, panel.xlabel)


def _line(
    series: Series,
    pairs: Sequence[tuple[float, float]],
    colour: str,
    place: Callable[[float, float], tuple[float, float]],
) -> Line:
    placed = [place(x, y) for x, y in pairs]
    points = " ".join(f"{x},{y}" for x, y in placed)
    return Line(
        series.label, colour, points, tuple(placed) if series.dots else (), f"{pairs[-1][1]:.3f}" if pairs else ""
    )


def _span(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def _ticks(low: float, high: float) -> list[float]:
    return [low + (high - low) * number / TICKS for number in range(TICKS + 1)]
